//! HTTP/2 as attackers speak it, frame by frame: each abuse ends its own connection or is answered within bounds, and
//! costs others nothing.

use tokio::io::AsyncWriteExt as _;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::*;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// After which nothing more is expected, of a machine that is busy too.
const SILENCE: StdDuration = StdDuration::from_secs(5);
/// How many times an abuse is repeated; far over every limit.
const MANY: u32 = 10_000;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A call of `/kit/Never` in HPACK: POST, http, then literals.
fn call() -> Vec<u8> {
    let mut block = vec![0x83, 0x86];
    let literal = |block: &mut Vec<u8>, name: u8, value: &str| {
        block.push(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    };
    literal(&mut block, 0x04, "/kit/Never");
    literal(&mut block, 0x01, "kit");
    // content-type is entry 31: fifteen and sixteen more; then the length.
    block.extend([0x0f, 16, 16]);
    block.extend(b"application/grpc");
    block
}

/// The stream ids of a client.
fn ids() -> impl Iterator<Item = u32> {
    (0..MANY).map(|number| 2 * number + 1)
}

/// What came back before the end of the connection, or before the wait was over.
#[derive(Debug, Default)]
struct Seen {
    resets: usize,
    goaway: Option<u32>,
    closed: bool,
}

impl Seen {
    /// True if the server wants no more of this.
    fn is_over(&self) -> bool {
        self.goaway.is_some_and(|code| code != 0) || self.closed
    }
}

struct Attacker {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
}

impl Attacker {
    async fn new(edge: &Edge) -> Self {
        let (reader, writer) = TcpStream::connect(edge.addr).await.unwrap().into_split();
        let mut attacker = Self { reader, writer };
        let mut start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        start.extend(frame(SETTINGS, 0, 0, &[]));
        assert!(attacker.send(&start).await);
        attacker
    }

    /// Sends as much as the server takes within five seconds; false if it takes no more.
    async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = tokio::time::timeout(SILENCE, self.writer.write_all(bytes));
        matches!(sent.await, Ok(Ok(())))
    }

    /// Sends frames until all are out or the server takes no more, reading what comes back meanwhile.
    async fn flood(self, frames: Vec<u8>) -> Seen {
        let Self { reader, mut writer } = self;
        let writing = tokio::spawn(async move {
            let _ = writer.write_all(&frames).await;
            writer
        });
        let seen = read(reader).await;
        writing.abort();
        seen
    }
}

/// Reads frames until the end, or until nothing came for five seconds.
async fn read(mut reader: OwnedReadHalf) -> Seen {
    let mut seen = Seen::default();
    let mut head = [0; 9];
    loop {
        let step = async {
            reader.read_exact(&mut head).await?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            reader.read_exact(&mut payload).await?;
            std::io::Result::Ok(payload)
        };
        match tokio::time::timeout(SILENCE, step).await {
            Err(_) => return seen,
            Ok(Err(_)) => {
                seen.closed = true;
                return seen;
            }
            Ok(Ok(payload)) => match head[3] {
                RST_STREAM => seen.resets += 1,
                GOAWAY => {
                    let code = payload[4..8].try_into().unwrap();
                    seen.goaway = Some(u32::from_be_bytes(code));
                }
                _ => {}
            },
        }
    }
}

/// Lets an attack run while another client asks for its health all the time; what the attacker saw.
async fn attack(edge: &Edge, frames: Vec<u8>) -> Seen {
    let mut other = edge.health();
    check(&mut other).await.unwrap();
    let attacker = Attacker::new(edge).await;
    let flooding = tokio::spawn(attacker.flood(frames));
    let mut asked = 0;
    while !flooding.is_finished() || asked == 0 {
        let began = Instant::now();
        check(&mut other).await.unwrap();
        assert!(
            began.elapsed() < StdDuration::from_secs(3),
            "another client waited {:?}",
            began.elapsed()
        );
        asked += 1;
        tokio::time::sleep(StdDuration::from_millis(5)).await;
    }
    flooding.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_well_formed_call_of_these_frames_arrives() {
    let edge = start(GrpcLimits::default()).await;
    let mut attacker = Attacker::new(&edge).await;
    let call = frame(HEADERS, END_HEADERS | END_STREAM, 1, &call());
    assert!(attacker.send(&call).await);
    soon("arrival", edge.arrived.acquire())
        .await
        .unwrap()
        .forget();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let edge = start(GrpcLimits::default()).await;
    let mut frames = Vec::new();
    for id in ids() {
        frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &call()));
        frames.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
    }
    let seen = attack(&edge, frames).await;
    assert!(seen.is_over(), "{seen:?}");
    let arrived = edge.arrived.available_permits();
    assert!(arrived < 1_000, "{arrived} of {MANY} calls were begun");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_over_the_limit_are_refused() {
    let limits = GrpcLimits::default();
    let edge = start(limits.clone()).await;
    let mut frames = Vec::new();
    for id in ids() {
        frames.extend(frame(HEADERS, END_HEADERS, id, &call()));
    }
    let seen = attack(&edge, frames).await;
    assert!(seen.is_over() || seen.resets > 1_000, "{seen:?}");
    let most = edge.running.most.load(Ordering::SeqCst);
    assert!(most <= limits.concurrency_max, "{most} calls ran at once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_without_end_closes_the_connection() {
    let edge = start(GrpcLimits::default()).await;
    let mut frames = frame(HEADERS, 0, 1, &call());
    for _ in 0..MANY {
        frames.extend(frame(CONTINUATION, 0, 1, &[0x00, 0x01, b'a', 0x01, b'b']));
    }
    let seen = attack(&edge, frames).await;
    assert!(seen.is_over(), "{seen:?}");
    assert_eq!(edge.arrived.available_permits(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_frames_of_data_end_the_connection() {
    let edge = start(GrpcLimits::default()).await;
    let mut frames = frame(HEADERS, END_HEADERS, 1, &call());
    for _ in 0..10 * MANY {
        frames.extend(frame(DATA, 0, 1, &[]));
    }
    let seen = attack(&edge, frames).await;
    assert!(seen.is_over(), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_unpacks_to_more_than_the_limit_is_refused() {
    let edge = start(GrpcLimits::default()).await;
    // Three of them are within the limit.
    let mut attacker = Attacker::new(&edge).await;
    let within = frame(HEADERS, END_HEADERS | END_STREAM, 1, &unpacking(2));
    assert!(attacker.send(&within).await);
    soon("arrival", edge.arrived.acquire())
        .await
        .unwrap()
        .forget();
    let over = frame(HEADERS, END_HEADERS | END_STREAM, 1, &unpacking(1_000));
    let seen = attack(&edge, over).await;
    assert_eq!(edge.arrived.available_permits(), 0, "{seen:?}");
}

/// A call with a header of 3,000 bytes that goes into the table, and so many references of one byte to it.
fn unpacking(references: usize) -> Vec<u8> {
    let mut block = call();
    block.extend([0x40, 0x01, b'a', 0x7f]);
    let mut rest = 3_000 - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
    block.extend(vec![b'x'; 3_000]);
    block.extend(vec![0xbe; references]);
    block
}

/// The protocol asks for an answer to each; one who reads none gets no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_and_settings_of_one_who_reads_nothing_cost_others_nothing() {
    let edge = start(GrpcLimits::default()).await;
    let mut attacker = Attacker::new(&edge).await;
    let mut frames = Vec::new();
    for _ in 0..10 * MANY {
        frames.extend(frame(PING, 0, 0, &[7; 8]));
        frames.extend(frame(SETTINGS, 0, 0, &[]));
    }
    let flooding = tokio::spawn(async move {
        for _ in 0..20 {
            if !attacker.send(&frames).await {
                return false;
            }
        }
        true
    });
    let mut other = edge.health();
    while !flooding.is_finished() {
        check(&mut other).await.unwrap();
        tokio::time::sleep(StdDuration::from_millis(5)).await;
    }
    assert!(!flooding.await.unwrap(), "the server took all of it");
    check(&mut other).await.unwrap();
}
