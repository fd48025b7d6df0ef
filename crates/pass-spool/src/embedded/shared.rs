//! What the spool's threads and callers share: positions, the index of segments, health.
//!
//! Publishing order of a group: sync returned, index updated, `durable` stored with Release, then wake. Whoever reads
//! `durable` with Acquire finds everything up to it in the index and in the files.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::format::age_of;
use super::options::WallClock;
use crate::{Sequence, SpoolHealth, SpoolId, SpoolStatus};

/// A sync longer than this is reported as slow.
pub(crate) const SYNC_SLOW: Duration = Duration::from_secs(1);
/// A sync longer than this makes the spool unready.
pub(crate) const SYNC_STUCK: Duration = Duration::from_secs(5);
/// An append waits at most this long; then its outcome counts as unknown.
pub const APPEND_WAIT_MAX: Duration = Duration::from_secs(8);

const MARKS_MAX: usize = 4096;

/// One segment that holds records, or is about to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) first: u64,
    /// The last durable sequence here; `first - 1` while there is none.
    pub(super) last: u64,
    /// What the file takes on disk.
    pub(super) file_bytes: u64,
    /// When its last frame was written; for a segment not read at open, when the next one's first frame was.
    pub(super) newest_ms: u64,
}

/// Where in time and bytes a sequence stands.
#[derive(Debug, Clone, Copy)]
struct Mark {
    first: u64,
    time_ms: u64,
    bytes_before: u64,
}

/// Marks of kept groups: one each for recent ones, thinned for old ones, never more than `MARKS_MAX`.
#[derive(Debug, Default)]
pub(super) struct Marks {
    marks: VecDeque<Mark>,
    bytes: u64,
}

impl Marks {
    pub(super) fn push(&mut self, first: u64, time_ms: u64, group_bytes: u64) {
        if self.marks.len() >= MARKS_MAX {
            let thin = MARKS_MAX / 4 * 3;
            let mut index = 0;
            self.marks.retain(|_| {
                index += 1;
                index > thin || index % 2 == 1
            });
        }
        self.marks.push_back(Mark {
            first,
            time_ms,
            bytes_before: self.bytes,
        });
        self.bytes += group_bytes;
    }

    /// Time of, and bytes from, the group that holds a sequence; or of an older one.
    fn find(&self, sequence: u64) -> Option<(u64, u64)> {
        let index = self.marks.partition_point(|mark| mark.first <= sequence);
        let mark = self.marks.get(index.saturating_sub(1))?;
        Some((mark.time_ms, self.bytes - mark.bytes_before))
    }

    pub(super) fn forget_before(&mut self, sequence: u64) {
        while self
            .marks
            .get(1)
            .is_some_and(|second| second.first <= sequence)
        {
            self.marks.pop_front();
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    /// Oldest first; each holds at least one record, but for the last, which may be fresh.
    pub(super) segments: VecDeque<Segment>,
    pub(super) marks: Marks,
    pub(super) settled: u64,
    /// Records up to here were leased; retention stops here.
    pub(super) leased: u64,
    /// The settled mark in its file.
    pub(super) settled_stored: u64,
    /// Whether the other side has spoken since open; nothing is dropped before.
    pub(super) peer_heard: bool,
    /// All segment files, prepared ones included.
    pub(super) disk_bytes: u64,
}

impl State {
    pub(super) fn oldest_kept(&self, last_durable: u64) -> u64 {
        self.segments
            .front()
            .map_or(last_durable + 1, |segment| segment.first)
    }
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) id: SpoolId,
    pub(super) dir: PathBuf,
    pub(super) disk_bytes_max: u64,
    durable: AtomicU64,
    /// Wakes leases: more is durable, the position moved, or the end came.
    pub(super) progress: Notify,
    state: Mutex<State>,
    poison: OnceLock<Arc<str>>,
    pub(super) full: AtomicBool,
    pub(super) closed: AtomicBool,
    epoch: Instant,
    /// Microseconds from `epoch` plus 1 while a sync runs, else 0.
    sync_started_us: AtomicU64,
    sync_last_us: AtomicU64,
}

impl Shared {
    pub(super) fn new(
        id: SpoolId,
        dir: PathBuf,
        disk_bytes_max: u64,
        durable: u64,
        state: State,
    ) -> Self {
        Self {
            id,
            dir,
            disk_bytes_max,
            durable: AtomicU64::new(durable),
            progress: Notify::new(),
            state: Mutex::new(state),
            poison: OnceLock::new(),
            full: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            epoch: Instant::now(),
            sync_started_us: AtomicU64::new(0),
            sync_last_us: AtomicU64::new(0),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Publishes what a successful sync covers; `update` brings the index up to it first.
    pub(super) fn publish(&self, last: u64, update: impl FnOnce(&mut State)) {
        debug_assert!(last >= self.durable());
        update(&mut self.state());
        self.durable.store(last, Ordering::Release);
        self.progress.notify_waiters();
    }

    /// Ends all writing for the life of this process. The first reason stays.
    pub(super) fn poison(&self, reason: &str) {
        if self.poison.set(reason.into()).is_ok() {
            tracing::error!(spool.id = %self.id, reason, "spool is poisoned; nothing more is accepted until a restart");
        }
        self.progress.notify_waiters();
    }

    pub(super) fn poisoned(&self) -> Option<Arc<str>> {
        self.poison.get().cloned()
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn sync_begins(&self) {
        self.sync_started_us
            .store(self.now_us() + 1, Ordering::Relaxed);
    }

    /// Returns how long it took.
    pub(super) fn sync_ends(&self) -> Duration {
        let started = self.sync_started_us.swap(0, Ordering::Relaxed);
        let took = (self.now_us() + 1).saturating_sub(started);
        self.sync_last_us.store(took, Ordering::Relaxed);
        if took > SYNC_SLOW.as_micros() as u64 {
            tracing::warn!(spool.id = %self.id, sync_ms = took / 1000, "disk sync was slow");
        }
        Duration::from_micros(took)
    }

    /// How long the present sync has been running.
    pub(super) fn sync_running(&self) -> Duration {
        match self.sync_started_us.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            started => Duration::from_micros((self.now_us() + 1).saturating_sub(started)),
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }

    fn health(&self, sync_last: Duration) -> SpoolHealth {
        let running = self.sync_running();
        if let Some(reason) = self.poisoned() {
            SpoolHealth::Poisoned(reason)
        } else if running > SYNC_STUCK {
            SpoolHealth::Stuck
        } else if self.full.load(Ordering::Relaxed) {
            SpoolHealth::Full
        } else if running.max(sync_last) > SYNC_SLOW {
            SpoolHealth::Slow
        } else {
            SpoolHealth::Ok
        }
    }

    pub(super) fn status(&self, clock: &WallClock) -> SpoolStatus {
        let sync_last = Duration::from_micros(self.sync_last_us.load(Ordering::Relaxed));
        let health = self.health(sync_last);
        let state = self.state();
        let last_durable = self.durable();
        let unsettled_records = last_durable.saturating_sub(state.settled);
        let oldest = if unsettled_records > 0 {
            state.marks.find(state.settled + 1)
        } else {
            None
        };
        SpoolStatus {
            last_durable: Sequence(last_durable),
            settled: Sequence(state.settled),
            oldest_kept: Sequence(state.oldest_kept(last_durable)),
            unsettled_records,
            unsettled_bytes: oldest.map_or(0, |(_, bytes)| bytes),
            disk_bytes: state.disk_bytes,
            disk_bytes_max: self.disk_bytes_max,
            oldest_unsettled_age: oldest.map(|(time_ms, _)| age_of(time_ms, clock())),
            sync_last,
            health,
            unproven: None,
            trouble: None,
        }
    }
}
