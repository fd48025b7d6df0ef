//! A pass-state whose part is played by the test: it sees each stream open, reads what the gateway sends in
//! order, and answers or fails on cue.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt as _;
use pass_domain::delivery::Outcome;
use pass_proto::convert::outcome_to_wire;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as Theirs;
use pass_proto::v1::ingest_response::Message as Ours;
use pass_proto::v1::ingest_service_server::{IngestService, IngestServiceServer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::SOON;

pub(crate) mod log;

pub(crate) struct PassState {
    pub(crate) addr: SocketAddr,
    streams: mpsc::UnboundedReceiver<Stream>,
    serving: JoinHandle<()>,
}

impl Drop for PassState {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl PassState {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (opened, streams) = mpsc::unbounded_channel();
        let serving = tokio::spawn(async move {
            let service =
                IngestServiceServer::new(Service { opened }).max_decoding_message_size(8 << 20);
            let incoming = TcpListenerStream::new(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self {
            addr,
            streams,
            serving,
        }
    }

    /// The next stream that a gateway opens.
    pub(crate) async fn stream(&mut self) -> Stream {
        timeout(SOON, self.streams.recv())
            .await
            .expect("a gateway opens a stream")
            .unwrap()
    }

    /// The next stream, past its hello, with everything up to `committed` committed.
    pub(crate) async fn ready(&mut self, committed: u64) -> Stream {
        let mut stream = self.stream().await;
        stream.hello().await;
        stream.send_ready(committed).await;
        stream
    }

    /// True if no gateway opens a stream for a while.
    pub(crate) async fn nobody_within(&mut self, while_: Duration) -> bool {
        timeout(while_, self.streams.recv()).await.is_err()
    }
}

struct Service {
    opened: mpsc::UnboundedSender<Stream>,
}

#[tonic::async_trait]
impl IngestService for Service {
    type IngestStream = ReceiverStream<Result<v1::IngestResponse, Status>>;

    async fn ingest(
        &self,
        request: Request<Streaming<v1::IngestRequest>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let (outbox, messages) = mpsc::channel(64);
        let _ = self.opened.send(Stream {
            inbox: request.into_inner(),
            outbox,
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// One stream, seen from pass-state. Dropping it ends it without a word.
pub(crate) struct Stream {
    inbox: Streaming<v1::IngestRequest>,
    outbox: mpsc::Sender<Result<v1::IngestResponse, Status>>,
}

/// The limits of [`Stream::send_ready`].
pub(crate) fn ready(committed: u64) -> v1::IngestReady {
    v1::IngestReady {
        protocol_version: 1,
        committed_sequence: committed,
        window_deliveries: 1_024,
        window_bytes: 4 << 20,
        batch_deliveries_max: 100,
        message_bytes_max: 1 << 20,
        epoch: "epoch-1".to_owned(),
        missing_first_sequence: 0,
        missing_last_sequence: 0,
        committed_delivery_id: String::new(),
    }
}

impl Stream {
    async fn receive(&mut self) -> Theirs {
        let message = timeout(SOON, self.inbox.next())
            .await
            .expect("the gateway sends a message");
        message
            .expect("the stream goes on")
            .unwrap()
            .message
            .unwrap()
    }

    pub(crate) async fn hello(&mut self) -> v1::IngestHello {
        match self.receive().await {
            Theirs::Hello(hello) => hello,
            other => panic!("{other:?} is no hello"),
        }
    }

    pub(crate) async fn batch(&mut self) -> v1::IngestBatch {
        match self.receive().await {
            Theirs::Batch(batch) => batch,
            other => panic!("{other:?} is no batch"),
        }
    }

    pub(crate) async fn redecoded(&mut self) -> v1::IngestRedecoded {
        match self.receive().await {
            Theirs::Redecoded(redecoded) => redecoded,
            other => panic!("{other:?} is no answer to a redecode"),
        }
    }

    /// Reads batches until `count` deliveries are there; gives their sequences and the last batch's number.
    pub(crate) async fn sequences(&mut self, count: usize) -> (Vec<u64>, u64) {
        let (mut sequences, mut number) = (Vec::new(), 0);
        while sequences.len() < count {
            let batch = self.batch().await;
            assert_eq!(
                batch.batch_number,
                number + 1,
                "batches are numbered without gaps"
            );
            number = batch.batch_number;
            sequences.extend(batch.deliveries.iter().map(|delivery| delivery.sequence));
        }
        (sequences, number)
    }

    /// Gets the stream ready and refuses the first batch; false if the gateway has ended it before.
    pub(crate) async fn refuse_batch(mut self, status: Status) -> bool {
        self.try_send(Ours::Ready(ready(0))).await;
        for what in ["hello", "batch"] {
            let message = timeout(SOON, self.inbox.next()).await;
            let message = message.unwrap_or_else(|_| panic!("no {what} and no end"));
            if !matches!(message, Some(Ok(_))) {
                return false;
            }
        }
        self.fail(status).await;
        true
    }

    /// True if the gateway sends nothing for a while.
    pub(crate) async fn silent_for(&mut self, while_: Duration) -> bool {
        timeout(while_, self.inbox.next()).await.is_err()
    }

    /// True once the gateway has ended its side.
    pub(crate) async fn ended(&mut self) -> bool {
        loop {
            match timeout(SOON, self.inbox.next())
                .await
                .expect("the gateway ends the stream")
            {
                None | Some(Err(_)) => return true,
                Some(Ok(_)) => {}
            }
        }
    }

    pub(crate) async fn send(&self, message: Ours) {
        assert!(self.try_send(message).await, "the gateway is there");
    }

    /// False if the stream is over.
    async fn try_send(&self, message: Ours) -> bool {
        let response = v1::IngestResponse {
            message: Some(message),
        };
        self.outbox.send(Ok(response)).await.is_ok()
    }

    pub(crate) async fn send_ready(&self, committed: u64) {
        self.send(Ours::Ready(ready(committed))).await;
    }

    pub(crate) async fn commit(
        &self,
        batch_number: u64,
        sequences: impl IntoIterator<Item = u64>,
        outcome: Outcome,
    ) {
        assert!(
            self.try_commit(batch_number, sequences, outcome).await,
            "the gateway is there"
        );
    }

    /// False if the stream is over.
    async fn try_commit(
        &self,
        batch_number: u64,
        sequences: impl IntoIterator<Item = u64>,
        outcome: Outcome,
    ) -> bool {
        let outcomes: Vec<_> = sequences
            .into_iter()
            .map(|sequence| v1::IngestOutcome {
                sequence,
                outcome: outcome_to_wire(outcome),
            })
            .collect();
        let committed_sequence = outcomes.last().unwrap().sequence;
        self.try_send(Ours::Committed(v1::IngestCommitted {
            batch_number,
            committed_sequence,
            outcomes,
        }))
        .await
    }

    pub(crate) async fn fail(self, status: Status) {
        self.outbox.send(Err(status)).await.unwrap();
        // Kept until the client had time to read the status, which ends the stream.
        let _ = timeout(SOON, self.outbox.closed()).await;
    }
}
