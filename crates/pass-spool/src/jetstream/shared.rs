//! What the spool's tasks and callers share: figures, the standing of the server, the turn.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::stream::Info;
use tokio::sync::{Notify, watch};

use crate::embedded::{SYNC_SLOW, SYNC_STUCK, WallClock};
use crate::{Sequence, SpoolHealth, SpoolId, SpoolStatus};

/// How the server stands, as far as records are concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Gate {
    /// A new connection that has not been looked at yet.
    Checking,
    /// It may be believed when it says that a record is stored.
    Fit,
    /// It may not, for this reason; passes by itself once the reason does.
    Unfit(Arc<str>),
    /// This process's idea of the spool is wrong, for this reason.
    Poisoned(Arc<str>),
}

/// The connection and what stands behind it.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) connected: bool,
    /// Counts connections.
    pub(super) epoch: u64,
    pub(super) gate: Gate,
}

/// This process's turn, while it has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Term {
    /// Tells one term of this process from the next.
    pub(super) number: u64,
    /// Others may take the turn later than this, if it is not renewed.
    pub(super) until: Instant,
}

/// What changes with every record.
#[derive(Debug, Default)]
pub(super) struct Figures {
    /// The last sequence known to be stored.
    pub(super) last: u64,
    pub(super) settled: u64,
    /// The stream's first sequence as last told.
    pub(super) first: u64,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) bytes_max: u64,
    /// The first unsettled record's sequence and the time of it, if known.
    pub(super) oldest_unsettled: Option<(u64, SystemTime)>,
    /// The other side was found to stand where it says in this term, and something was settled since, so that the
    /// settled mark can be relied on.
    pub(super) peer_heard: bool,
    pub(super) sync_last: Duration,
    pub(super) in_flight: usize,
    /// Since when appends are in flight without any answer.
    pub(super) waiting_since: Option<Instant>,
    /// Bytes of a record that found no room, until there is.
    pub(super) refused_bytes: Option<u64>,
    pub(super) unproven: Option<Arc<str>>,
    /// Why it can't be told whose turn it is, once that has lasted.
    pub(super) trouble: Option<Arc<str>>,
}

impl Figures {
    /// Takes over what the server says of the stream.
    pub(super) fn note(&mut self, info: &Info) {
        self.last = self.last.max(info.state.last_sequence);
        self.first = info.state.first_sequence;
        self.messages = info.state.messages;
        self.bytes = info.state.bytes;
        self.bytes_max = u64::try_from(info.config.max_bytes).unwrap_or(0);
    }
}

pub(super) struct Shared {
    pub(super) id: SpoolId,
    pub(super) standing: watch::Sender<Standing>,
    pub(super) term: watch::Sender<Option<Term>>,
    /// Calls of `rewind` and `close` that want the reader; a waiting lease lets go of it.
    pub(super) wanting: watch::Sender<usize>,
    pub(super) closed: watch::Sender<bool>,
    /// Asks the keeper of the turn to look at once.
    pub(super) turn_wanted: Notify,
    pub(super) turn_waiters: watch::Sender<usize>,
    /// How late answers to writes of the turn come.
    #[cfg(test)]
    pub(super) answers_late: Mutex<Duration>,
    figures: Mutex<Figures>,
    clock: WallClock,
}

impl Shared {
    pub(super) fn new(id: SpoolId, clock: WallClock, standing: watch::Sender<Standing>) -> Self {
        Self {
            id,
            standing,
            term: watch::Sender::new(None),
            wanting: watch::Sender::new(0),
            closed: watch::Sender::new(false),
            turn_wanted: Notify::new(),
            turn_waiters: watch::Sender::new(0),
            #[cfg(test)]
            answers_late: Mutex::default(),
            figures: Mutex::new(Figures::default()),
            clock,
        }
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        // Every change leaves the figures whole, so those of a caller that panicked are still right.
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How late answers to writes of the turn come.
    #[cfg(test)]
    pub(super) fn answer_late(&self) -> Duration {
        *self.answers_late.lock().expect("never poisoned")
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.clock)()
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// This process's term, if others can't have taken the turn.
    pub(super) fn term(&self) -> Option<Term> {
        self.term
            .borrow()
            .filter(|term| Instant::now() < term.until)
    }

    /// Sets the gate, unless the connection is another one by now or the end has come.
    pub(super) fn gate_set(&self, epoch: u64, gate: Gate) {
        self.standing.send_if_modified(|standing| {
            let settled = matches!(standing.gate, Gate::Poisoned(_));
            if settled || standing.epoch != epoch || standing.gate == gate {
                return false;
            }
            match &gate {
                Gate::Checking => {}
                Gate::Fit => tracing::info!(spool.id = %self.id, "the NATS spool can take records"),
                Gate::Unfit(reason) => {
                    tracing::warn!(spool.id = %self.id, reason = %reason, "the NATS spool takes no records");
                }
                Gate::Poisoned(reason) => {
                    tracing::error!(spool.id = %self.id, reason = %reason, "the NATS spool is not the one it was; a restart is needed");
                }
            }
            standing.gate = gate;
            true
        });
    }

    pub(super) fn status(&self) -> SpoolStatus {
        let now = self.now();
        let health = self.health();
        let figures = self.figures();
        let unsettled = figures.last.saturating_sub(figures.settled);
        let average = figures.bytes.div_ceil(figures.messages.max(1)).max(1);
        SpoolStatus {
            last_durable: Sequence(figures.last),
            // Each is told at its own time; the mark may be the newer one.
            settled: Sequence(figures.settled.min(figures.last)),
            oldest_kept: Sequence(figures.first.max(1)),
            unsettled_records: unsettled,
            unsettled_bytes: unsettled.saturating_mul(average),
            disk_bytes: figures.bytes,
            disk_bytes_max: figures.bytes_max,
            oldest_unsettled_age: figures
                .oldest_unsettled
                .filter(|(sequence, _)| unsettled > 0 && *sequence == figures.settled + 1)
                .map(|(_, time)| now.duration_since(time).unwrap_or_default()),
            sync_last: figures.sync_last,
            health,
            unproven: figures.unproven.clone(),
            trouble: figures.trouble.clone(),
        }
    }

    fn health(&self) -> SpoolHealth {
        let standing = self.standing.borrow().clone();
        match standing.gate {
            Gate::Poisoned(reason) => return SpoolHealth::Poisoned(reason),
            _ if !standing.connected => {
                return SpoolHealth::Unavailable("no connection to any NATS server".into());
            }
            Gate::Checking => {
                return SpoolHealth::Unavailable("the NATS server is being checked".into());
            }
            Gate::Unfit(reason) => return SpoolHealth::Unavailable(reason),
            Gate::Fit => {}
        }
        let figures = self.figures();
        let waiting = figures
            .waiting_since
            .map(|since| since.elapsed())
            .unwrap_or_default();
        if figures.refused_bytes.is_some() {
            SpoolHealth::Full
        } else if waiting > SYNC_STUCK {
            SpoolHealth::Stuck
        } else if waiting > SYNC_SLOW || figures.sync_last > SYNC_SLOW {
            SpoolHealth::Slow
        } else {
            SpoolHealth::Ok
        }
    }
}

/// Counts in a watched number for as long as it lives.
pub(super) struct Counted<'a>(&'a watch::Sender<usize>);

impl<'a> Counted<'a> {
    pub(super) fn new(number: &'a watch::Sender<usize>) -> Self {
        number.send_modify(|number| *number += 1);
        Self(number)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|number| *number -= 1);
    }
}
