//! Reading in order: a durable pull consumer, made anew whenever its order is in doubt.
//!
//! The consumer starts at the first record that was not fetched yet. What it redelivers is known already and left out;
//! a record that comes too early, a new connection, a missed heartbeat or a deleted consumer makes a new one. Where a
//! new consumer begins with a gap, the stream itself is asked what comes next: only what it says is believed, since
//! skipped records would be lost for good.
//!
//! No two consumers have the same name. Making one whose name exists already would succeed and change nothing, so
//! that it went on where another one stood. Those that were left behind end by themselves.
//!
//! The consumer acknowledges cumulatively (`AckPolicy::All`), since that is what settling is: one message for each
//! settle, however many records it covers. Its window of unacknowledged records bounds what is under way. Where to
//! start after a restart is not taken from it but from the turn's entry: making a consumer anew at a position moves
//! its own mark there, and that may lie before or behind what is settled.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::Subject;
use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::timeout;

use super::link::{Link, with_sources};
use super::options::JetStreamOptions;
use super::shared::Shared;
use crate::{LeaseError, Leased, Sequence};

/// What the consumers' names begin with.
const CONSUMER: &str = "forwarder";
/// The server drops a consumer that nobody has asked for this long.
const UNUSED_MAX: Duration = Duration::from_secs(300);
/// How long dropping a consumer may take that is not needed any more.
const DROP_MAX: Duration = Duration::from_millis(500);
/// Records asked for at once.
const PULL_RECORDS_MAX: usize = 1024;
/// After this long the server gives a record again that was not acknowledged.
const ACK_WAIT: Duration = Duration::from_secs(60);
/// How often the server says that it has nothing.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long one question to the server stays open.
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// Pause before a consumer that failed is made anew.
const PAUSE: Duration = Duration::from_millis(200);
/// A lease fails once no consumer could be made for this long.
const TROUBLE_MAX: Duration = Duration::from_secs(10);

/// What settles a record and all before it.
pub(super) const ACK: Bytes = Bytes::from_static(b"+ACK");

/// Where to acknowledge the records that are leased and not settled.
#[derive(Clone, Default)]
pub(super) struct Acks(Arc<Mutex<VecDeque<(u64, Subject)>>>);

impl Acks {
    fn with<T>(&self, change: impl FnOnce(&mut VecDeque<(u64, Subject)>) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets all; their consumer is gone.
    fn clear(&self) {
        self.with(VecDeque::clear);
    }

    /// Where the first of them is acknowledged.
    #[cfg(test)]
    pub(super) fn first(&self) -> Option<Subject> {
        self.with(|acks| acks.front().map(|(_, subject)| subject.clone()))
    }

    /// Takes out everything up to `through`; returns where the last of it is acknowledged.
    pub(super) fn settled(&self, through: u64) -> Option<Subject> {
        self.with(|acks| {
            let mut last = None;
            while acks
                .front()
                .is_some_and(|(sequence, _)| *sequence <= through)
            {
                last = acks.pop_front().map(|(_, subject)| subject);
            }
            last
        })
    }
}

struct Fetched {
    sequence: u64,
    record: Bytes,
    ack: Option<Subject>,
}

/// An open consumer.
struct Pull {
    messages: Box<pull::Stream>,
    /// The connection it was made on.
    epoch: u64,
    /// Nothing has come of it yet.
    fresh: bool,
}

/// The lease position and what is fetched beyond it.
pub(super) struct Reader {
    acks: Acks,
    /// Tells this process's consumers from those of others.
    me: String,
    /// How many consumers were begun.
    starts: u64,
    /// The consumer that was begun last, if it may still be there.
    consumer: Option<String>,
    /// The term that the rest belongs to.
    term: u64,
    /// Everything up to here has been leased.
    position: u64,
    /// Everything up to here has been leased or fetched.
    fetched_through: u64,
    fetched: VecDeque<Fetched>,
    fetched_bytes: usize,
    pull: Option<Pull>,
    trouble_since: Option<Instant>,
}

impl Reader {
    pub(super) fn new(acks: Acks, me: String) -> Self {
        Self {
            acks,
            me,
            starts: 0,
            consumer: None,
            term: 0,
            position: 0,
            fetched_through: 0,
            fetched: VecDeque::new(),
            fetched_bytes: 0,
            pull: None,
            trouble_since: None,
        }
    }

    /// Begins at the settled mark if the term is a new one.
    pub(super) fn enter(&mut self, term: u64, shared: &Shared) {
        if self.term != term {
            self.term = term;
            self.restart(shared.figures().settled);
        }
    }

    /// Goes on behind `position`, wherever it stood.
    pub(super) fn restart(&mut self, position: u64) {
        self.position = position;
        self.discard();
    }

    /// Lets go of the consumer and of what was fetched from it and not leased.
    pub(super) fn discard(&mut self) {
        self.pull = None;
        self.fetched.clear();
        self.fetched_bytes = 0;
        self.fetched_through = self.position;
        self.acks.clear();
    }

    /// Lets go of everything, and of the consumer on the server if that is quick.
    pub(super) async fn end(&mut self, link: &Link) {
        self.discard();
        self.drop_consumer(link).await;
    }

    async fn drop_consumer(&mut self, link: &Link) {
        let Some(name) = &self.consumer else { return };
        let dropping = timeout(DROP_MAX, link.stream.delete_consumer(name)).await;
        if !matches!(dropping, Ok(Ok(_))) {
            tracing::debug!(
                consumer = name,
                "an unused consumer of the NATS spool stays for a few minutes"
            );
        }
        self.consumer = None;
    }

    /// The consumer on the server.
    #[cfg(test)]
    pub(super) fn consumer(&self) -> Option<&str> {
        self.consumer.as_deref()
    }

    /// Goes back to `position` and keeps the consumer, as if the server had given one that stands elsewhere.
    #[cfg(test)]
    pub(super) fn mislead(&mut self, position: u64) {
        let pull = self.pull.take();
        self.restart(position);
        self.pull = pull.map(|pull| Pull {
            fresh: true,
            ..pull
        });
    }

    /// Leases what is fetched, within the limits but at least one record; nothing if nothing is.
    pub(super) fn take(&mut self, records_max: usize, bytes_max: usize) -> Vec<Leased> {
        let mut leased = Vec::new();
        let mut bytes = 0_usize;
        while let Some(next) = self.fetched.front() {
            let more = bytes.saturating_add(next.record.len());
            if !leased.is_empty() && (leased.len() >= records_max || more > bytes_max) {
                break;
            }
            let Some(Fetched {
                sequence,
                record,
                ack,
            }) = self.fetched.pop_front()
            else {
                break;
            };
            bytes = more;
            self.fetched_bytes -= record.len();
            assert!(
                sequence > self.position,
                "records are leased in order, once"
            );
            self.position = sequence;
            if let Some(ack) = ack {
                self.acks.with(|acks| acks.push_back((sequence, ack)));
            }
            leased.push(Leased {
                sequence: Sequence(sequence),
                record,
            });
        }
        leased
    }

    /// Waits for records, or for a reason to look again. Cancel-safe.
    pub(super) async fn fill(
        &mut self,
        link: &Link,
        options: &JetStreamOptions,
        shared: &Shared,
    ) -> Result<(), LeaseError> {
        let epoch = shared.standing.borrow().epoch;
        if self.pull.as_ref().is_none_or(|pull| pull.epoch != epoch) {
            self.pull = None;
            match self.start(link, options, epoch).await {
                Ok(pull) => {
                    self.pull = Some(pull);
                    self.trouble_since = None;
                }
                Err(reason) => return self.troubled(shared, reason).await,
            }
        }
        let Some(pull) = &mut self.pull else {
            return Ok(());
        };
        let mut next = pull.messages.next().await;
        loop {
            let Some(Ok(message)) = next else {
                // The consumer is gone, silent or elsewhere: whether it still is our turn is asked at once, too.
                let reason = match next {
                    Some(Err(error)) => with_sources(&error),
                    _ => "it ended".into(),
                };
                tracing::debug!(reason, "making the consumer of the NATS spool anew");
                self.pull = None;
                shared.turn_wanted.notify_one();
                if self.fetched.is_empty() {
                    tokio::time::sleep(PAUSE).await;
                }
                return Ok(());
            };
            self.fetch(message, link, options, shared).await?;
            if self.fetched.len() >= options.window_records
                || self.fetched_bytes >= options.window_bytes
            {
                return Ok(());
            }
            let Some(pull) = &mut self.pull else {
                return Ok(());
            };
            next = match pull.messages.next().now_or_never() {
                Some(next) => next,
                None => return Ok(()),
            };
        }
    }

    /// Keeps a record if it is the next one.
    async fn fetch(
        &mut self,
        message: Message,
        link: &Link,
        options: &JetStreamOptions,
        shared: &Shared,
    ) -> Result<(), LeaseError> {
        let Ok(sequence) = message.info().map(|info| info.stream_sequence) else {
            return Err(unavailable("NATS gave a record without its sequence"));
        };
        let expected = self.fetched_through + 1;
        let fresh = self
            .pull
            .as_mut()
            .is_some_and(|pull| std::mem::take(&mut pull.fresh));
        if sequence < expected {
            // What is settled comes again only if its acknowledgement was lost.
            if let Some(ack) = message.message.reply
                && sequence <= shared.figures().settled
            {
                let _ = link.client.publish(ack, ACK).await;
            }
            return Ok(());
        }
        if sequence > expected {
            if !fresh {
                tracing::debug!(
                    expected,
                    sequence,
                    "a record came too early; making the consumer anew"
                );
                self.pull = None;
                return Ok(());
            }
            self.pull = None;
            let info = link
                .stream
                .get_info()
                .await
                .map_err(|error| unavailable(&with_sources(&error)))?;
            if expected < info.state.first_sequence {
                return Err(LeaseError::Dropped {
                    first: expected,
                    oldest_kept: info.state.first_sequence,
                });
            }
            let next = link
                .stream
                .raw_message_builder()
                .sequence(expected)
                .next_by_subject(options.subject())
                .send()
                .await
                .map_err(|error| unavailable(&with_sources(&error)))?;
            if next.sequence != sequence {
                return Err(unavailable(&format!(
                    "NATS gave record {sequence} where {} comes next",
                    next.sequence
                )));
            }
            tracing::error!(
                first = expected,
                last = sequence - 1,
                stream = options.stream,
                "records are missing within the stream"
            );
        }
        let message = message.message;
        self.fetched_through = sequence;
        self.fetched_bytes += message.payload.len();
        self.fetched.push_back(Fetched {
            sequence,
            record: message.payload,
            ack: message.reply,
        });
        Ok(())
    }

    async fn start(
        &mut self,
        link: &Link,
        options: &JetStreamOptions,
        epoch: u64,
    ) -> Result<Pull, String> {
        self.acks.clear();
        for fetched in &mut self.fetched {
            fetched.ack = None;
        }
        self.drop_consumer(link).await;
        self.starts += 1;
        let name = format!("{CONSUMER}-{}-{}", self.me, self.starts);
        // Before it is there: it may be made although no answer comes.
        self.consumer = Some(name.clone());
        let config = pull::Config {
            durable_name: Some(name),
            inactive_threshold: UNUSED_MAX,
            description: Some("Passline: the gateway that forwards".into()),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: self.fetched_through + 1,
            },
            ack_policy: AckPolicy::All,
            ack_wait: ACK_WAIT,
            max_ack_pending: i64::try_from(options.window_records).unwrap_or(i64::MAX),
            ..pull::Config::default()
        };
        let consumer = link
            .stream
            .create_consumer(config)
            .await
            .map_err(|error| with_sources(&error))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(options.window_records.min(PULL_RECORDS_MAX))
            .max_bytes_per_batch(options.window_bytes)
            .heartbeat(HEARTBEAT)
            .expires(PULL_EXPIRES)
            .messages()
            .await
            .map_err(|error| with_sources(&error))?;
        Ok(Pull {
            messages: Box::new(messages),
            epoch,
            fresh: true,
        })
    }

    async fn troubled(&mut self, shared: &Shared, reason: String) -> Result<(), LeaseError> {
        let since = *self.trouble_since.get_or_insert_with(Instant::now);
        tracing::debug!(reason, "cannot make the consumer of the NATS spool");
        shared.turn_wanted.notify_one();
        if since.elapsed() > TROUBLE_MAX {
            self.trouble_since = None;
            return Err(unavailable(&format!("cannot read the stream: {reason}")));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

fn unavailable(reason: &str) -> LeaseError {
    LeaseError::Unavailable(reason.into())
}
