//! Storing a record: publish, wait for the acknowledgement, and ask again with the same id when in doubt.
//!
//! The server drops a record whose id it has seen in the last minute and says where the first one is. So asking again
//! is harmless, and an answer that got lost is not a record that got lost or doubled.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{HeaderMap, Message, StatusCode, header};
use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::answers::Answers;
use super::options::JetStreamOptions;
use super::shared::{Gate, Shared, Standing};
use crate::embedded::APPEND_WAIT_MAX;
use crate::{AppendError, RecordId, Sequence};

/// An append waits this long for a server that is known to be away.
const AWAY_WAIT_MAX: Duration = Duration::from_secs(1);
/// After this long without an answer the server is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(2_500);
/// Pause before asking a server again that can't serve the stream just now.
const PAUSE: Duration = Duration::from_millis(100);
/// What the server says of a stream at its `max_bytes`; its code alone says only that storing failed.
const NO_ROOM: &str = "maximum bytes exceeded";

pub(super) struct Appender {
    pub(super) shared: Arc<Shared>,
    pub(super) answers: Answers,
    pub(super) options: Arc<JetStreamOptions>,
    pub(super) slots: Semaphore,
    pub(super) subject: String,
}

/// What one question came to.
enum Answer {
    Stored(u64),
    Full,
    Refused(String),
    /// Not stored by this question; the server may be able to a little later.
    NotNow(String),
    /// Unknown.
    Silence,
}

/// Counts an append that waits for the server, for as long as it does.
struct InFlight<'a>(&'a Shared);

impl<'a> InFlight<'a> {
    fn new(shared: &'a Shared) -> Self {
        let mut figures = shared.figures();
        figures.in_flight += 1;
        figures
            .waiting_since
            .get_or_insert_with(std::time::Instant::now);
        drop(figures);
        Self(shared)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        let mut figures = self.0.figures();
        figures.in_flight -= 1;
        if figures.in_flight == 0 {
            figures.waiting_since = None;
        }
    }
}

impl Appender {
    pub(super) async fn append(
        &self,
        id: RecordId,
        record: Bytes,
    ) -> Result<Sequence, AppendError> {
        let bytes_max = self.options.record_bytes_max;
        if record.len() > bytes_max {
            return Err(AppendError::TooLarge {
                bytes: record.len(),
                bytes_max,
            });
        }
        let deadline = Instant::now() + APPEND_WAIT_MAX;
        let _slot = match timeout_at(deadline, self.slots.acquire()).await {
            Ok(Ok(slot)) => slot,
            Ok(Err(_)) => return Err(AppendError::Closed),
            Err(_) => return Err(unavailable("too many appends wait for NATS")),
        };
        if self.shared.is_closed() {
            return Err(AppendError::Closed);
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, id.to_string());
        headers.insert(header::NATS_EXPECTED_STREAM, self.options.stream.as_str());
        // Whether an earlier question may have stored the record.
        let mut in_doubt = false;
        let mut not_now_until = None;
        loop {
            let epoch = self.fit(deadline).await?;
            let began = Instant::now();
            let answer = {
                let _in_flight = InFlight::new(&self.shared);
                self.ask(&headers, &record, epoch, deadline).await
            };
            match answer {
                Answer::Stored(sequence) => {
                    // The server that said so may be another one than was looked at.
                    self.fit(deadline).await?;
                    self.stored(sequence, began.elapsed());
                    return Ok(Sequence(sequence));
                }
                Answer::Full if in_doubt => {
                    return Err(unavailable(
                        "the stream is full; whether the record is stored is unknown",
                    ));
                }
                Answer::Full => {
                    self.shared.figures().refused_bytes = Some(record.len() as u64);
                    return Err(AppendError::Full);
                }
                Answer::Refused(reason) => return Err(AppendError::Unavailable(reason.into())),
                Answer::NotNow(reason) => {
                    let until = *not_now_until.get_or_insert(began + AWAY_WAIT_MAX);
                    if Instant::now() + PAUSE >= until.min(deadline) {
                        return Err(AppendError::Unavailable(reason.into()));
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Answer::Silence => {
                    in_doubt = true;
                    if Instant::now() >= deadline {
                        return Err(unavailable(
                            "NATS has not answered for 8 s; whether the record is stored is unknown",
                        ));
                    }
                }
            }
        }
    }

    /// Waits a little for a server that can be believed; tells which connection it is behind.
    async fn fit(&self, deadline: Instant) -> Result<u64, AppendError> {
        let decided = |standing: &Standing| {
            matches!(standing.gate, Gate::Poisoned(_))
                || (standing.connected && standing.gate != Gate::Checking)
        };
        let mut standing = self.shared.standing.borrow().clone();
        if !decided(&standing) {
            let mut standings = self.shared.standing.subscribe();
            let until = deadline.min(Instant::now() + AWAY_WAIT_MAX);
            match timeout_at(until, standings.wait_for(decided)).await {
                Ok(Ok(now)) => standing = now.clone(),
                Ok(Err(_)) => return Err(AppendError::Closed),
                Err(_) => {
                    return Err(unavailable(
                        "no connection to any NATS server that could be checked",
                    ));
                }
            }
        }
        match standing.gate {
            Gate::Fit => Ok(standing.epoch),
            Gate::Checking => Err(unavailable("the NATS server is being checked")),
            Gate::Unfit(reason) => Err(AppendError::Unavailable(reason)),
            Gate::Poisoned(reason) => Err(AppendError::Poisoned(reason)),
        }
    }

    /// Asks once; gives up when the connection changes, since its answer can't come any more.
    async fn ask(
        &self,
        headers: &HeaderMap,
        record: &Bytes,
        epoch: u64,
        deadline: Instant,
    ) -> Answer {
        let asking = self
            .answers
            .ask(self.subject.clone(), headers.clone(), record.clone());
        let mut standings = self.shared.standing.subscribe();
        let changed = standings.wait_for(|standing| !standing.connected || standing.epoch != epoch);
        tokio::select! {
            biased;
            answer = timeout_at(deadline.min(Instant::now() + ASK_AGAIN), asking) => match answer {
                Ok(Some(message)) => read(&message),
                Ok(None) | Err(_) => Answer::Silence,
            },
            _ = changed => Answer::Silence,
        }
    }

    fn stored(&self, sequence: u64, took: Duration) {
        (self.options.sync_observer)(took);
        let mut figures = self.shared.figures();
        figures.last = figures.last.max(sequence);
        figures.sync_last = took;
        figures.refused_bytes = None;
        if figures.in_flight > 0 {
            figures.waiting_since = Some(std::time::Instant::now());
        }
    }
}

fn read(message: &Message) -> Answer {
    if message.status == Some(StatusCode::NO_RESPONDERS) {
        return Answer::NotNow("no NATS server serves the stream just now".into());
    }
    let error = match serde_json::from_slice::<Response<PublishAck>>(&message.payload) {
        Ok(Response::Ok(ack)) => return Answer::Stored(ack.sequence),
        Ok(Response::Err { error }) => error,
        Err(error) => {
            return Answer::Refused(format!("NATS answered what is no acknowledgement: {error}"));
        }
    };
    let text = error.to_string();
    match error.error_code() {
        ErrorCode::INSUFFICIENT_RESOURCES | ErrorCode::STORAGE_RESOURCES_EXCEEDED => Answer::Full,
        ErrorCode::STREAM_STORE_FAILED if text.contains(NO_ROOM) => Answer::Full,
        // The same id is on its way through the cluster, so its answer is still to come.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => {
            Answer::NotNow(format!("NATS can't say just now: {text}"))
        }
        _ if error.code() == 503 => Answer::NotNow(format!("NATS can't store just now: {text}")),
        _ => Answer::Refused(format!("NATS refuses the record: {text}")),
    }
}

fn unavailable(reason: &str) -> AppendError {
    AppendError::Unavailable(reason.into())
}
