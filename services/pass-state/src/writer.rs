//! The one writer: everything that changes the store goes through one task, in one queue.
//!
//! It takes all parts that wait, up to a bound, and commits them in one transaction; while that runs, the
//! next batch gathers. So a batch is as large as the load makes it, and nobody waits for a timer. Opening a
//! spool, replays and discards keep their place in the queue, so a new stream's committed sequence includes
//! what the older one had handed over.
//!
//! | the store says | the writer does |
//! |---|---|
//! | committed | answers each part; moves the log's end |
//! | for the moment not, unknown, or set up wrongly | answers [`Unapplied`]; the streams end and send again |
//! | never these data (refused, damaged row) | halves the batch until one delivery is left; that one goes to quarantine and the others proceed |
//!
//! Invariants: a part is answered after its commit, never before; the parts of one stream are appended in
//! the order in which they came.

use std::sync::Arc;
use std::time::Instant;

use pass_domain::cursor::Cursor;
use pass_domain::delivery::Delivery;
use pass_domain::ids::DeliveryId;
use pass_store::{
    self as store, AppendPart, DeliveryRecord, PartOutcome, PassStore, Replayed, SpoolHello,
    SpoolId, SpoolOpened,
};
use service_kit::clock::Clock;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::config::WriterConfig;
use crate::health::StoreHealth;
use crate::metrics::Measures;
use crate::tail::Tail;

mod poison;
mod spans;

/// The writer is gone, which happens only while the service ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the writer has ended")]
pub(crate) struct Ended;

/// A part was not recorded, or it is unknown whether it was: the stream must end and send again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unapplied;

/// Deliveries of one stream, in sequence order without gaps, on their way to the store.
pub(crate) struct Part {
    /// The spool.
    pub(crate) spool: SpoolId,
    /// The stream's generation.
    pub(crate) generation: u64,
    /// Sequence and delivery: at least one, at most the configured batch.
    pub(crate) deliveries: Vec<(u64, Arc<Delivery>)>,
    /// About how many bytes they are.
    pub(crate) bytes: usize,
}

type Reply<T> = oneshot::Sender<T>;
type PartReply = Reply<Result<PartOutcome, Unapplied>>;

enum Command {
    Append(Part, PartReply),
    Open(SpoolHello, Reply<Result<SpoolOpened, store::Error>>),
    Replay(Box<Delivery>, Reply<Result<Replayed, store::Error>>),
    Discard(
        DeliveryId,
        String,
        Reply<Result<Option<DeliveryRecord>, store::Error>>,
    ),
    LeaveEpoch(Cursor, Reply<Result<(), store::Error>>),
}

/// A handle to the writer; clones share the queue.
#[derive(Clone)]
pub(crate) struct Writer {
    queue: mpsc::Sender<Command>,
}

impl Writer {
    /// Queues a part, waiting for room in the queue. The answer comes after the commit.
    pub(crate) async fn append(
        &self,
        part: Part,
    ) -> Result<oneshot::Receiver<Result<PartOutcome, Unapplied>>, Ended> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Append(part, reply);
        self.queue.send(command).await.map_err(|_| Ended)?;
        Ok(answer)
    }

    /// Makes the caller the one live stream of a spool.
    pub(crate) async fn open(
        &self,
        hello: SpoolHello,
    ) -> Result<Result<SpoolOpened, store::Error>, Ended> {
        self.ask(|reply| Command::Open(hello, reply)).await
    }

    /// Applies a delivery in quarantine, decoded again.
    pub(crate) async fn replay(
        &self,
        delivery: Box<Delivery>,
    ) -> Result<Result<Replayed, store::Error>, Ended> {
        self.ask(|reply| Command::Replay(delivery, reply)).await
    }

    /// Takes a delivery out of quarantine.
    pub(crate) async fn discard(
        &self,
        id: DeliveryId,
        reason: String,
    ) -> Result<Result<Option<DeliveryRecord>, store::Error>, Ended> {
        self.ask(|reply| Command::Discard(id, reason, reply)).await
    }

    /// Gives the log a new epoch if it still has that of a place, and not the place.
    pub(crate) async fn leave_epoch_without(
        &self,
        place: Cursor,
    ) -> Result<Result<(), store::Error>, Ended> {
        self.ask(|reply| Command::LeaveEpoch(place, reply)).await
    }

    /// How many commands wait, for whoever wants to know now and then.
    pub(crate) fn depth(&self) -> Depth {
        Depth(self.queue.downgrade())
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Ended> {
        let (reply, answer) = oneshot::channel();
        self.queue.send(command(reply)).await.map_err(|_| Ended)?;
        answer.await.map_err(|_| Ended)
    }
}

/// The length of the writer's queue. Does not keep the queue open.
pub(crate) struct Depth(mpsc::WeakSender<Command>);

impl Depth {
    /// The length now; 0 once the writer has no handles.
    pub(crate) fn now(&self) -> usize {
        let queue = self.0.upgrade();
        queue.map_or(0, |queue| queue.max_capacity() - queue.capacity())
    }
}

/// The writer's task, before it runs.
pub(crate) struct WriterTask {
    queue: mpsc::Receiver<Command>,
    /// Taken from the queue, but it did not fit into the batch before.
    held: Option<Command>,
    store: Arc<dyn PassStore>,
    tail: Arc<Tail>,
    health: Arc<StoreHealth>,
    measures: Arc<Measures>,
    clock: Arc<dyn Clock>,
    config: WriterConfig,
}

/// Makes the writer and its handle.
pub(crate) fn writer(
    store: Arc<dyn PassStore>,
    tail: Arc<Tail>,
    health: Arc<StoreHealth>,
    measures: Arc<Measures>,
    clock: Arc<dyn Clock>,
    config: WriterConfig,
) -> (Writer, WriterTask) {
    let (sender, queue) = mpsc::channel(config.queue_max);
    let task = WriterTask {
        queue,
        held: None,
        store,
        tail,
        health,
        measures,
        clock,
        config,
    };
    (Writer { queue: sender }, task)
}

impl WriterTask {
    /// Works until `stop`, then finishes what is queued.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = match self.held.take() {
                Some(command) => Some(command),
                None => tokio::select! {
                    command = self.queue.recv() => command,
                    () = stop.cancelled(), if !self.queue.is_closed() => {
                        self.queue.close();
                        continue;
                    }
                },
            };
            match next {
                None => return,
                Some(Command::Append(part, reply)) => {
                    let batch = self.gather(part, reply);
                    self.apply(batch).await;
                }
                Some(other) => self.obey(other).await,
            }
        }
    }

    /// Takes what waits, as far as it fits.
    fn gather(&mut self, part: Part, reply: PartReply) -> Vec<(Part, PartReply)> {
        let bytes_max = self.config.batch_bytes_max.as_usize();
        let (mut deliveries, mut bytes) = (part.deliveries.len(), part.bytes);
        let mut batch = vec![(part, reply)];
        while let Ok(command) = self.queue.try_recv() {
            match command {
                Command::Append(part, reply)
                    if deliveries + part.deliveries.len() <= self.config.batch_deliveries_max
                        && bytes + part.bytes <= bytes_max =>
                {
                    deliveries += part.deliveries.len();
                    bytes += part.bytes;
                    batch.push((part, reply));
                }
                other => {
                    self.held = Some(other);
                    break;
                }
            }
        }
        batch
    }

    async fn apply(&self, batch: Vec<(Part, PartReply)>) {
        #[cfg(feature = "planted-bugs")]
        let batch = self.plant(batch);
        let traces = spans::of_batch(&batch);
        let mut shares = Vec::with_capacity(batch.len());
        let mut groups: Vec<AppendPart> = Vec::new();
        for (part, reply) in batch {
            let same = |group: &AppendPart| {
                group.spool == part.spool && group.generation == part.generation
            };
            let at = groups.iter().position(same).unwrap_or_else(|| {
                groups.push(AppendPart {
                    spool: part.spool,
                    generation: part.generation,
                    deliveries: Vec::new(),
                });
                groups.len() - 1
            });
            shares.push((at, part.deliveries.len(), reply));
            groups[at].deliveries.extend(part.deliveries);
        }
        let began = Instant::now();
        let deliveries = shares.iter().map(|(_, deliveries, _)| deliveries).sum();
        let appending = poison::append(self.store.as_ref(), groups, self.clock.now());
        let done = appending.instrument(traces.batch.clone()).await;
        drop(traces);
        self.measures.applied(deliveries, began.elapsed());
        self.measures.recorded(&done.recorded);
        for error in done.refused.iter().chain(&done.failed) {
            self.measures.apply_failed(error);
        }
        self.note(done.failed.as_ref());
        if let Some(head) = done.head {
            self.tail.committed(head).await;
        }
        let mut groups: Vec<_> = done.groups.into_iter().map(Shared::new).collect();
        for (at, deliveries, reply) in shares {
            // A stream that is gone wants no answer.
            let _ = reply.send(groups[at].take(deliveries));
        }
    }

    async fn obey(&self, command: Command) {
        match command {
            Command::Append(part, reply) => self.apply(vec![(part, reply)]).await,
            Command::Open(hello, reply) => {
                let opened = self.store.spool_open(&hello).await;
                // What a caller may not do says nothing of the store.
                if !matches!(opened, Err(store::Error::Untrusted)) {
                    self.note(opened.as_ref().err());
                }
                if let Ok(opened) = &opened {
                    if opened.epoch_changed {
                        tracing::error!(
                            spool.id = %hello.spool,
                            gateway.id = %hello.gateway,
                            settled_sequence = hello.settled_sequence,
                            "the database went back in time; the log has a new epoch and the gateway refills it"
                        );
                    }
                    // The stream ends once the tail is in another epoch: not for lagging behind.
                    if opened.epoch != self.tail.head().epoch {
                        self.tail.poll().await;
                    }
                }
                let _ = reply.send(opened);
            }
            Command::Replay(delivery, reply) => {
                let replayed = self
                    .store
                    .delivery_replay(&delivery, self.clock.now())
                    .await;
                self.note(replayed.as_ref().err());
                if let Ok(Replayed::Done(_, head)) = &replayed {
                    self.tail.committed(*head).await;
                }
                let _ = reply.send(replayed);
            }
            Command::Discard(id, reason, reply) => {
                let now = self.clock.now();
                let discarded = self.store.delivery_discard(id, &reason, now).await;
                self.note(discarded.as_ref().err());
                let _ = reply.send(discarded);
            }
            Command::LeaveEpoch(place, reply) => {
                let left = self.store.epoch_leave(place).await;
                self.note(left.as_ref().err());
                if left.is_ok() {
                    self.tail.poll().await;
                }
                let _ = reply.send(left.map(|_| ()));
            }
        }
    }

    fn note(&self, failed: Option<&store::Error>) {
        match failed {
            None => self.health.wrote(),
            Some(error) => self.health.failed(&format!("writing failed: {error}")),
        }
    }

    /// The bug that the chaos tests must catch: an answer before the commit.
    #[cfg(feature = "planted-bugs")]
    fn plant(&self, batch: Vec<(Part, PartReply)>) -> Vec<(Part, PartReply)> {
        if !self.config.planted_ack_before_commit {
            return batch;
        }
        let early = |(part, reply): (Part, PartReply)| {
            let outcomes: Vec<_> = part
                .deliveries
                .iter()
                .map(|(sequence, _)| (*sequence, pass_domain::delivery::Outcome::Applied))
                .collect();
            let committed_sequence = outcomes.last().map_or(0, |(sequence, _)| *sequence);
            let _ = reply.send(Ok(PartOutcome::Committed {
                committed_sequence,
                outcomes,
            }));
            (part, oneshot::channel().0)
        };
        batch.into_iter().map(early).collect()
    }
}

/// The outcome of a group of parts, handed out part by part.
struct Shared {
    outcome: Result<PartOutcome, Unapplied>,
    taken: usize,
}

impl Shared {
    fn new(outcome: Result<PartOutcome, Unapplied>) -> Self {
        Self { outcome, taken: 0 }
    }

    /// The outcome of the next part, which has so many deliveries.
    fn take(&mut self, deliveries: usize) -> Result<PartOutcome, Unapplied> {
        let from = self.taken;
        self.taken += deliveries;
        match &self.outcome {
            Ok(PartOutcome::Committed {
                committed_sequence,
                outcomes,
            }) => Ok(PartOutcome::Committed {
                committed_sequence: *committed_sequence,
                outcomes: outcomes.get(from..self.taken).unwrap_or_default().to_vec(),
            }),
            Ok(PartOutcome::Fenced) => Ok(PartOutcome::Fenced),
            Ok(PartOutcome::Gap { expected_sequence }) => Ok(PartOutcome::Gap {
                expected_sequence: *expected_sequence,
            }),
            Err(Unapplied) => Err(Unapplied),
        }
    }
}
