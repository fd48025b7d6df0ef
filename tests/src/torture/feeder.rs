//! A gateway reduced to its ingest stream: it holds one spool of the script, prefers one replica, and goes to
//! any when a stream ends. Now and then it does so without need, and goes on sending on the old stream, too, as
//! a gateway does of which somebody started a copy: that must be refused.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use pass_proto::status::reason_of;
use pass_proto::v1::ingest_request::Message as ToStore;
use pass_proto::v1::ingest_response::Message as ToGateway;
use pass_proto::v1::ingest_service_client::IngestServiceClient;
use pass_proto::v1::{self, DeliveryOutcome, ErrorReason};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};

use super::script::{SOURCE, Script};
use crate::dice::Dice;

/// Longest wait for a connection, and for an answer on it.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Batches that are not acknowledged, at most.
const IN_FLIGHT_MAX: u64 = 4;
/// It leaves a stream after one in so many acknowledgements.
const LEAVES_ONCE_IN: u64 = 60;
/// It prefers its own replica but once in so many times.
const STRAYS_ONCE_IN: u64 = 3;

/// How far a feeder is.
#[derive(Clone, Debug, Default)]
pub(super) struct Fed {
    /// The last sequence that was acknowledged.
    pub(super) acknowledged: u64,
    /// Streams that got as far as being ready.
    pub(super) streams: usize,
    /// Streams that were ended because a newer one of the same spool was open.
    pub(super) fenced: usize,
    /// What was wrong first, if anything.
    pub(super) broken: Option<String>,
}

/// A feeder in a task of its own, which ends when everything is acknowledged.
#[derive(Debug)]
pub(super) struct Feeder {
    progress: watch::Receiver<Fed>,
    task: JoinHandle<()>,
}

impl Feeder {
    /// Feeds one spool of the script, whose number is also that of the replica it prefers.
    pub(super) fn start(script: &Arc<Script>, spool: usize, replicas: Vec<SocketAddr>) -> Self {
        let (sender, progress) = watch::channel(Fed::default());
        let feeding = Feeding {
            script: Arc::clone(script),
            spool,
            dice: Dice::new(script.lengths[spool] ^ ((spool as u64) << 32)),
            progress: sender,
            left: None,
        };
        let task = tokio::spawn(feeding.run(replicas));
        Self { progress, task }
    }

    /// How far it is.
    pub(super) fn progress(&self) -> Fed {
        self.progress.borrow().clone()
    }

    /// True once everything is acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.task.is_finished()
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Both directions of a stream.
type Halves = (
    mpsc::Sender<v1::IngestRequest>,
    Streaming<v1::IngestResponse>,
);

/// A stream that was left though nothing was wrong, with batches under way.
struct Left {
    to_store: mpsc::Sender<v1::IngestRequest>,
    from_store: Streaming<v1::IngestResponse>,
    batch_number: u64,
    sent: u64,
}

struct Feeding {
    script: Arc<Script>,
    spool: usize,
    dice: Dice,
    progress: watch::Sender<Fed>,
    left: Option<Left>,
}

impl Feeding {
    async fn run(mut self, replicas: Vec<SocketAddr>) {
        let length = self.script.lengths[self.spool];
        while self.progress.borrow().acknowledged < length {
            let own = self.spool % replicas.len();
            let replica = if self.dice.once_in(STRAYS_ONCE_IN) {
                self.dice.index(replicas.len())
            } else {
                own
            };
            if let Err(status) = self.session(replicas[replica]).await {
                self.note(&status);
                // The replica is away; there is nothing to wait for but time.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Feeds a replica until everything is acknowledged, or the feeder wants to leave.
    async fn session(&mut self, address: SocketAddr) -> Result<(), Status> {
        let length = self.script.lengths[self.spool];
        let acknowledged = self.progress.borrow().acknowledged;
        let hello = v1::IngestHello {
            protocol_version: 1,
            gateway_id: format!("feeder-{}", self.spool),
            spool_id: format!("{:032x}", self.spool + 1),
            settled_sequence: acknowledged,
            oldest_sequence: 1,
            sources: vec![SOURCE.to_owned()],
            body_bytes_max: 64 << 10,
        };
        let (to_store, mut from_store) = open(address, hello).await?;
        let Some(ToGateway::Ready(ready)) = next(&mut from_store).await? else {
            return Err(Status::internal("the first answer is not ready"));
        };
        self.progress.send_modify(|fed| fed.streams += 1);
        let mut sent = ready.committed_sequence;
        if !(acknowledged..=length).contains(&sent) {
            self.found(format!(
                "{acknowledged} of {length} were acknowledged, of which the store has {sent}"
            ));
            return Err(Status::data_loss("see above"));
        }
        self.progress.send_modify(|fed| fed.acknowledged = sent);
        let batch_max = u64::try_from(ready.batch_deliveries_max).unwrap_or(1);
        if let Some(left) = self.left.take() {
            self.overstay(left);
        }
        let (mut batch_number, mut committed_batch) = (0, 0);
        while self.progress.borrow().acknowledged < length {
            while sent < length && batch_number - committed_batch < IN_FLIGHT_MAX {
                let until = (sent + 1 + self.dice.below(batch_max)).min(length);
                batch_number += 1;
                let batch = self.batch(batch_number, sent + 1..=until);
                sent = until;
                // If the stream has ended, its end is read below.
                let _ = to_store.send(batch).await;
            }
            match next(&mut from_store).await? {
                Some(ToGateway::Committed(committed)) => {
                    committed_batch = committed.batch_number;
                    self.acknowledged(&committed, sent);
                }
                Some(ToGateway::Ready(_) | ToGateway::Redecode(_)) | None => {}
            }
            if self.dice.once_in(LEAVES_ONCE_IN) {
                self.left = Some(Left {
                    to_store,
                    from_store,
                    batch_number,
                    sent,
                });
                return Ok(());
            }
        }
        Ok(())
    }

    fn batch(&self, batch_number: u64, sequences: RangeInclusive<u64>) -> v1::IngestRequest {
        let deliveries = sequences
            .map(|sequence| self.script.delivery(self.spool, sequence))
            .collect();
        message(ToStore::Batch(v1::IngestBatch {
            batch_number,
            deliveries,
        }))
    }

    /// Sends on a stream although a newer one is ready, and sees to it that nothing comes of it.
    fn overstay(&self, mut left: Left) {
        let until = (left.sent + 4).min(self.script.lengths[self.spool]);
        if left.sent == until {
            return;
        }
        let batch = self.batch(left.batch_number + 1, left.sent + 1..=until);
        let progress = self.progress.clone();
        tokio::spawn(async move {
            // If the stream has ended, its end is read below.
            let _ = left.to_store.send(batch).await;
            loop {
                match next(&mut left.from_store).await {
                    Ok(Some(ToGateway::Committed(committed)))
                        if committed.batch_number > left.batch_number =>
                    {
                        let what = format!("a stream commits after a newer one: {committed:?}");
                        progress.send_modify(|fed| {
                            fed.broken.get_or_insert(what);
                        });
                    }
                    Ok(_) => {}
                    Err(status) => {
                        let fenced = reason_of(&status) == Some(ErrorReason::SpoolFenced);
                        progress.send_modify(|fed| fed.fenced += usize::from(fenced));
                        return;
                    }
                }
            }
        });
    }

    fn acknowledged(&self, committed: &v1::IngestCommitted, sent: u64) {
        let before = self.progress.borrow().acknowledged;
        if committed.committed_sequence < before || committed.committed_sequence > sent {
            self.found(format!(
                "{} is acknowledged after {before}, {sent} sent",
                committed.committed_sequence
            ));
        }
        for outcome in &committed.outcomes {
            if !matches!(
                outcome.outcome(),
                DeliveryOutcome::Applied | DeliveryOutcome::Duplicate
            ) {
                self.found(format!("{outcome:?}"));
            }
        }
        self.progress
            .send_modify(|fed| fed.acknowledged = committed.committed_sequence);
    }

    /// Notes why a stream ended, where that is more than a replica's death or end.
    fn note(&self, status: &Status) {
        let reason = reason_of(status);
        // A hello that was given up may be read late, and fence the stream after it.
        let fenced = reason == Some(ErrorReason::SpoolFenced);
        if reason.is_some() && !fenced && status.code() != Code::Unavailable {
            self.found(status.to_string());
        }
    }

    fn found(&self, what: String) {
        self.progress.send_modify(|fed| {
            fed.broken
                .get_or_insert(format!("feeder {}: {what}", self.spool));
        });
    }
}

async fn open(address: SocketAddr, hello: v1::IngestHello) -> Result<Halves, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .expect("an address is an authority")
        .connect_timeout(ANSWER_LIMIT);
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let (to_store, requests) = mpsc::channel(16);
    let first = to_store.send(message(ToStore::Hello(hello)));
    first.await.expect("the receiver is in this function");
    let mut client = IngestServiceClient::new(channel);
    let opening = client.ingest(ReceiverStream::new(requests));
    let opened = tokio::time::timeout(ANSWER_LIMIT, opening)
        .await
        .map_err(|_| Status::unavailable("Ingest hangs"))??;
    Ok((to_store, opened.into_inner()))
}

fn message(message: ToStore) -> v1::IngestRequest {
    v1::IngestRequest {
        message: Some(message),
    }
}

async fn next(from_store: &mut Streaming<v1::IngestResponse>) -> Result<Option<ToGateway>, Status> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, from_store.message())
        .await
        .map_err(|_| Status::unavailable("no answer"))??;
    let answer = answer.ok_or_else(|| Status::unavailable("the stream ended"))?;
    Ok(answer.message)
}
