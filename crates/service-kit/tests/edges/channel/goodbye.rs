//! A server that says good-bye to a call whose message it has, frame by frame.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::grpc::abuse::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, SETTINGS, frame};

const ACK: u8 = 1;

/// The question for health: the first call of a connection.
const QUESTION: u32 = 1;

/// Answers the first connection's question for its health and leaves its next call out. Returns, with how many bytes
/// that had sent by then, when the client is gone.
pub(super) async fn leave_out_one_call(listener: TcpListener) -> usize {
    let (mut stream, _) = listener.accept().await.unwrap();
    // Whoever comes again gets no further.
    drop(listener);
    stream.read_exact(&mut [0; 24]).await.unwrap();
    send(&mut stream, SETTINGS, 0, 0, &[]).await;
    let mut left_out = 0;
    while let Some((kind, flags, id, bytes)) = receive(&mut stream).await {
        match kind {
            SETTINGS if flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await,
            DATA if id == QUESTION && flags & END_STREAM != 0 => {
                let flags = END_HEADERS | END_STREAM;
                send(&mut stream, HEADERS, flags, QUESTION, &unimplemented()).await;
            }
            DATA if id > QUESTION && left_out == 0 => {
                left_out = bytes;
                // The last call that is taken, and NO_ERROR.
                let mut last = QUESTION.to_be_bytes().to_vec();
                last.extend(0_u32.to_be_bytes());
                send(&mut stream, GOAWAY, 0, 0, &last).await;
                stream.shutdown().await.unwrap();
            }
            _ => {}
        }
    }
    left_out
}

/// The head of an answer in HPACK: 200, the content type, and that there is no such service.
fn unimplemented() -> Vec<u8> {
    // `:status: 200` is entry 8; content-type is entry 31: fifteen and sixteen more; then the length.
    let mut block = vec![0x88, 0x0f, 16, 16];
    block.extend(b"application/grpc");
    block.extend([0x00, 11]);
    block.extend(b"grpc-status");
    block.push(2);
    block.extend(b"12");
    block
}

async fn send(stream: &mut TcpStream, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    let frame = frame(kind, flags, id, payload);
    stream.write_all(&frame).await.unwrap();
}

/// The next frame's kind, flags, stream and length.
async fn receive(stream: &mut TcpStream) -> Option<(u8, u8, u32, usize)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let [a, b, c, kind, flags, id @ ..] = head;
    let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
    stream.read_exact(&mut vec![0; length]).await.ok()?;
    Some((kind, flags, u32::from_be_bytes(id), length))
}
