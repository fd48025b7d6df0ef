//! The JetStream spool: one stream on NATS servers, shared by all gateways of a deployment.
//!
//! Limits: one stream per spool, a record is one message; the stream's `max_bytes` is the ceiling; servers of NATS 2.11
//! or later with JetStream.
//!
//! Invariants, each with its test:
//!
//! - An append resolves only after the server's acknowledgement, over a connection to servers that were proven to sync
//!   before they acknowledge (or `allow_unsynced` says to do without), about the stream that was opened.
//! - A record asked for twice is stored once: the message id is the record's.
//! - What is leased comes in the stream's order, each record once per rewind, whatever the connection does.
//! - What is not settled is never dropped: the stream refuses new records when full and drops none by age; only the
//!   process that has the turn purges, and only what is settled.
//!
//! A stream that was restored to an earlier moment counts its sequences anew, so it must become another spool: give it
//! another id (`nats stream edit PASSLINE --metadata=passline.spool_id=…`, 32 hexadecimal digits) and restart the
//! gateways. Then everything in it is forwarded again, and pass-state drops what it has.
//!
//! Figures that only the servers know are as old as the last look, at most a second in quiet times;
//! `unsettled_bytes` is reckoned from the average record.
//!
//! A gateway keeps nothing: the spool's identity is in the stream's metadata, whose turn it is to forward and what is
//! settled in a key-value bucket beside it.
//!
//! A NATS user whose permissions are restricted needs these, with `PASSLINE` for the stream's name:
//!
//! - to publish: `PASSLINE.deliveries` (records), `$KV.PASSLINE-turn.>` (the turn), `$JS.ACK.PASSLINE.>` (settling);
//! - to publish, as questions about the stream `PASSLINE` and the bucket's stream `KV_PASSLINE-turn`: `$JS.API.INFO`,
//!   `$JS.API.STREAM.INFO.*`, `$JS.API.STREAM.CREATE.*` and `$JS.API.STREAM.UPDATE.PASSLINE` (to make them and to raise
//!   `max_bytes`), `$JS.API.STREAM.PURGE.PASSLINE` (to drop what is settled), `$JS.API.DIRECT.GET.>` and
//!   `$JS.API.STREAM.MSG.GET.*` (to read single records), `$JS.API.CONSUMER.CREATE.PASSLINE.>`,
//!   `$JS.API.CONSUMER.MSG.NEXT.PASSLINE.>` and `$JS.API.CONSUMER.DELETE.PASSLINE.>` (the consumers, named
//!   `forwarder-…`, each used once);
//! - to subscribe: `_INBOX.>`.
//!
//! Where to read on: `link` for the stream, `append` for the way of a record, `turn` for whose turn it is, `reader` for
//! order, `proof` and `overseer` for what is believed of the servers, `retention` for what is dropped.

mod answers;
mod append;
mod link;
mod login;
mod options;
mod overseer;
mod proof;
mod reader;
mod retention;
mod shared;
#[cfg(test)]
mod tests;
mod turn;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::options::{
    APPEND_IN_FLIGHT_CEILING, JetStreamOpenError, JetStreamOptions, NatsCredentials, NatsLogin,
    RECORD_BYTES_CEILING, WINDOW_RECORDS_CEILING,
};

use self::answers::Answers;
use self::append::Appender;
use self::link::{Link, with_sources};
use self::overseer::{BEHIND_MAX, Overseer};
use self::reader::{ACK, Acks, Reader};
use self::retention::Retention;
use self::shared::{Counted, Gate, Shared, Standing, Term};
use self::turn::TurnKeeper;
use crate::embedded::{APPEND_WAIT_MAX, LEASE_BYTES_CEILING, LEASE_RECORDS_CEILING};
use crate::{
    AppendError, LeaseError, Leased, RecordId, RewindError, RewindOutcome, Sequence, SettleError,
    Spool, SpoolId, SpoolStatus,
};

/// How long giving back the turn may take at the end.
const RELEASE_MAX: Duration = Duration::from_secs(5);
/// Pause before the stream's end is looked at again that lies too early.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// How long the last acknowledgements may take to leave.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// A [`Spool`] on NATS JetStream, shared by the gateways of a deployment.
///
/// All of them append; the one that has the [turn](Spool::turn) leases, settles and rewinds. Dropping it without
/// [`Spool::close`] is like killing its process: others wait 5 s before they take the turn.
pub struct JetStreamSpool {
    shared: Arc<Shared>,
    options: Arc<JetStreamOptions>,
    link: Link,
    appender: Appender,
    reader: Mutex<Reader>,
    acks: Acks,
    tasks: Mutex<Option<Tasks>>,
    #[cfg(test)]
    retention: Retention,
}

/// What runs for as long as the spool is open. Ends with it.
struct Tasks {
    turn: JoinHandle<()>,
    others: [JoinHandle<()>; 3],
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.turn.abort();
        for task in &self.others {
            task.abort();
        }
    }
}

impl JetStreamSpool {
    /// Opens the spool that is a stream, or makes the stream; needs a server that answers.
    ///
    /// An open spool outlives any outage of the servers. What can't be believed of them is no error here, but makes
    /// the spool [unavailable](crate::SpoolHealth::Unavailable) until it can.
    ///
    /// # Errors
    ///
    /// Names the setting or the server and what to do, see [`JetStreamOpenError`]; after at most `connect_timeout` and
    /// the time of a few questions.
    pub async fn open(options: JetStreamOptions) -> Result<Self, JetStreamOpenError> {
        options.check()?;
        let (link, id, info, standing) = Box::pin(link::open(&options)).await?;
        let me = link::random_id()?.to_string();
        let options = Arc::new(options);
        let shared = Arc::new(Shared::new(id, options.clock.clone(), standing));
        shared.figures().note(&info);
        let mut overseer = Overseer::new(shared.clone(), link.clone(), options.clone());
        Box::pin(overseer.look()).await;
        let mut turn = TurnKeeper::new(shared.clone(), link.clone(), options.clone(), me.clone());
        turn.mark_read()
            .await
            .map_err(|detail| JetStreamOpenError::Server {
                action: "read whose turn it is".into(),
                detail,
            })?;
        let retention = || Retention {
            shared: shared.clone(),
            link: link.clone(),
            options: options.clone(),
        };
        let answers = Answers::new(link.client.clone());
        let listening = answers
            .listen()
            .await
            .map_err(|error| JetStreamOpenError::Server {
                action: "subscribe to answers".into(),
                detail: with_sources(&error),
            })?;
        let tasks = Tasks {
            turn: tokio::spawn(turn.run()),
            others: [
                tokio::spawn(overseer.run()),
                tokio::spawn(retention().run()),
                tokio::spawn(listening),
            ],
        };
        let figures = shared.status();
        tracing::info!(spool.id = %id, stream = options.stream, last_durable = %figures.last_durable, settled = %figures.settled, "spool is open");
        let acks = Acks::default();
        Ok(Self {
            appender: Appender {
                shared: shared.clone(),
                answers,
                options: options.clone(),
                slots: Semaphore::new(options.append_in_flight_max),
                subject: options.subject(),
            },
            reader: Mutex::new(Reader::new(acks.clone(), me)),
            acks,
            tasks: Mutex::new(Some(tasks)),
            #[cfg(test)]
            retention: retention(),
            shared,
            options,
            link,
        })
    }

    /// The reason why this process's idea of the spool is wrong, if it is.
    fn poisoned(&self) -> Option<Arc<str>> {
        match &self.shared.standing.borrow().gate {
            Gate::Poisoned(reason) => Some(reason.clone()),
            Gate::Checking | Gate::Fit | Gate::Unfit(_) => None,
        }
    }

    /// This process's term, or why there can be no lease.
    fn term(&self) -> Result<Term, LeaseError> {
        if self.shared.is_closed() {
            return Err(LeaseError::Closed);
        }
        if let Some(reason) = self.poisoned() {
            return Err(LeaseError::Poisoned(reason));
        }
        self.shared.term().ok_or(LeaseError::TurnLost)
    }

    /// Waits for anything that a waiting lease must look at.
    async fn disturbed(&self, term: Term) {
        let (mut terms, mut closed) =
            (self.shared.term.subscribe(), self.shared.closed.subscribe());
        let (mut wanting, mut standings) = (
            self.shared.wanting.subscribe(),
            self.shared.standing.subscribe(),
        );
        let epoch = standings.borrow().epoch;
        let changed = |standing: &Standing| {
            standing.epoch != epoch || matches!(standing.gate, Gate::Poisoned(_))
        };
        tokio::select! {
            _ = terms.wait_for(|now| now.is_none_or(|now| now.number != term.number)) => {}
            _ = closed.wait_for(|closed| *closed) => {}
            _ = wanting.wait_for(|wanting| *wanting > 0) => {}
            _ = standings.wait_for(changed) => {}
        }
    }
}

impl fmt::Debug for JetStreamSpool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamSpool")
            .field("id", &self.shared.id)
            .field("stream", &self.options.stream)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Spool for JetStreamSpool {
    fn id(&self) -> SpoolId {
        self.shared.id
    }

    async fn append(&self, id: RecordId, record: Bytes) -> Result<Sequence, AppendError> {
        self.appender.append(id, record).await
    }

    async fn turn(&self) -> Result<(), LeaseError> {
        let _waiting = Counted::new(&self.shared.turn_waiters);
        self.shared.turn_wanted.notify_one();
        let mut terms = self.shared.term.subscribe();
        let (mut closed, mut standings) = (
            self.shared.closed.subscribe(),
            self.shared.standing.subscribe(),
        );
        let poisoned = |standing: &Standing| matches!(standing.gate, Gate::Poisoned(_));
        let held = |term: &Option<Term>| term.is_some_and(|term| Instant::now() < term.until);
        tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => {}
            _ = standings.wait_for(poisoned) => {}
            _ = terms.wait_for(held) => {}
        }
        self.term().map(drop)
    }

    async fn pass_turn(&self) {
        // The keeper of the turn sees that it was taken from it, and tells the others.
        if self.shared.term.send_replace(None).is_some() {
            self.shared.turn_wanted.notify_one();
        }
    }

    async fn lease(&self, records_max: usize, bytes_max: usize) -> Result<Vec<Leased>, LeaseError> {
        let records_max = records_max.clamp(1, LEASE_RECORDS_CEILING);
        let bytes_max = bytes_max.min(LEASE_BYTES_CEILING);
        let mut wanting = self.shared.wanting.subscribe();
        loop {
            let term = self.term()?;
            // Whoever wants the reader gets it before a lease waits with it again.
            let _ = wanting.wait_for(|wanting| *wanting == 0).await;
            let disturbed = self.disturbed(term);
            let mut reader = tokio::select! {
                reader = self.reader.lock() => reader,
                () = self.disturbed(term) => continue,
            };
            // Looked at again: it may have been a long wait.
            if self.term()?.number != term.number {
                continue;
            }
            reader.enter(term.number, &self.shared);
            let leased = reader.take(records_max, bytes_max);
            if let Some(last) = leased.last() {
                let mut figures = self.shared.figures();
                figures.last = figures.last.max(last.sequence.0);
                return Ok(leased);
            }
            tokio::select! {
                biased;
                () = disturbed => {}
                filled = reader.fill(&self.link, &self.options, &self.shared) => filled?,
            }
        }
    }

    async fn settle(&self, through: Sequence) -> Result<(), SettleError> {
        if self.shared.is_closed() {
            return Err(SettleError::Closed);
        }
        if self.shared.term().is_none() {
            return Err(SettleError::TurnLost);
        }
        {
            let mut figures = self.shared.figures();
            if through.0 > figures.last {
                return Err(SettleError::Ahead {
                    through: through.0,
                    last: figures.last,
                });
            }
            figures.peer_heard = true;
            if through.0 <= figures.settled {
                return Ok(());
            }
            figures.settled = through.0;
        }
        if let Some(ack) = self.acks.settled(through.0) {
            // Lost, it is made up for by the next one, or by a new consumer.
            let _ = timeout(DRAIN_MAX, self.link.client.publish(ack, ACK)).await;
        }
        Ok(())
    }

    async fn rewind(&self, after: Sequence) -> Result<RewindOutcome, RewindError> {
        let _wanting = Counted::new(&self.shared.wanting);
        let mut reader = self.reader.lock().await;
        let began = Instant::now();
        let (term, info) = loop {
            if self.shared.is_closed() {
                return Err(RewindError::Closed);
            }
            let Some(term) = self.shared.term() else {
                return Err(RewindError::TurnLost);
            };
            // Other gateways append, too, so what is known here may be old.
            let info = self
                .link
                .stream
                .get_info()
                .await
                .map_err(|error| RewindError::Unavailable(with_sources(&error).into()))?;
            let last = info.state.last_sequence;
            let known = self.shared.figures().last;
            if last < known {
                let reason = format!("the stream ends at {last} but ended at {known}");
                return Err(RewindError::Unavailable(reason.into()));
            }
            if after.0 <= last {
                break (term, info);
            }
            // A new leader of a cluster may know the end a moment later.
            if began.elapsed() >= BEHIND_MAX {
                return Err(RewindError::Ahead { last });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        };
        let reachable = after.0.max(info.state.first_sequence.saturating_sub(1));
        reader.enter(term.number, &self.shared);
        reader.restart(reachable);
        let mut figures = self.shared.figures();
        figures.note(&info);
        // Whether the other side means this spool's records is known once it settles.
        figures.peer_heard = false;
        figures.settled = figures.settled.min(reachable);
        Ok(RewindOutcome {
            missing: (reachable > after.0).then(|| after.0 + 1..=reachable),
        })
    }

    fn status(&self) -> SpoolStatus {
        self.shared.status()
    }

    async fn close(&self) {
        // Held to the end, so that a second caller returns only once the spool is closed.
        let mut tasks = self.tasks.lock().await;
        let Some(mut ending) = tasks.take() else {
            return;
        };
        self.shared.closed.send_replace(true);
        // Everything that was accepted has its answer once all slots are free.
        let all = u32::try_from(self.options.append_in_flight_max).unwrap_or(u32::MAX);
        let _ = timeout(APPEND_WAIT_MAX, self.appender.slots.acquire_many(all)).await;
        self.appender.slots.close();
        if timeout(RELEASE_MAX, &mut ending.turn).await.is_err() {
            tracing::warn!("the turn could not be given back in time; others take it in 5 s");
        }
        drop(ending);
        let _wanting = Counted::new(&self.shared.wanting);
        self.reader.lock().await.end(&self.link).await;
        let _ = timeout(DRAIN_MAX, self.link.client.flush()).await;
        let _ = timeout(DRAIN_MAX, self.link.client.drain()).await;
    }
}
