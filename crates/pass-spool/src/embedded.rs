//! The embedded spool: a segmented log in a directory of its own.
//!
//! Limits: one process per directory; one writer thread; a record fits one segment; the disk is the ceiling of
//! durability (one copy).
//!
//! Invariants, each with its test:
//!
//! - An append resolves only after a sync that covers its record, in a segment whose directory entry was synced
//!   before the first record went in.
//! - At most one group is written but not synced. After any error on a live segment nothing is written any more.
//! - What is leased has been durable before; what is dropped was settled, and the mark that says so is durable.
//! - A byte that fails a check is never passed over in silence.
//!
//! Where to read on: [`format`] for the bytes, `writer` for the way of an append, `recover` and `survey` for opening.

mod directory;
mod disk;
pub(crate) mod format;
mod keeper;
mod options;
mod quarantine;
mod reader;
mod recover;
mod scan;
mod shared;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub use self::disk::{DiskOp, FaultHook};
pub(crate) use self::options::system_time;
pub use self::options::{
    APPEND_QUEUE_CEILING, EmbeddedOptions, OpenError, SEGMENT_BYTES_CEILING, SyncObserver,
    WallClock,
};
pub use self::quarantine::{Quarantined, quarantine_damage};
pub use self::shared::APPEND_WAIT_MAX;
pub(crate) use self::shared::{SYNC_SLOW, SYNC_STUCK};

use self::directory::Directory;
use self::keeper::{Keeper, KeeperDesk};
use self::reader::Reader;
use self::recover::recover;
use self::shared::Shared;
use self::writer::{Command, Writer, group_bytes_max};
use crate::{
    AppendError, LeaseError, Leased, RecordId, RewindError, RewindOutcome, Sequence, SettleError,
    Spool, SpoolId, SpoolStatus,
};

/// The most records of one lease, whatever is asked for.
pub const LEASE_RECORDS_CEILING: usize = 65_536;
/// The most bytes of one lease, whatever is asked for, unless a single record is larger.
pub const LEASE_BYTES_CEILING: usize = 64 << 20;

/// A [`Spool`] in a local directory.
///
/// Appends need a Tokio runtime with timers; leases read on its blocking pool. Dropping it without
/// [`Spool::close`] finishes what was accepted, too, and blocks for as long as that takes.
pub struct EmbeddedSpool {
    shared: Arc<Shared>,
    options: EmbeddedOptions,
    commands: mpsc::Sender<Command>,
    /// Everything up to here has been leased.
    position: tokio::sync::Mutex<u64>,
    reader: Arc<Mutex<Reader>>,
    desk: Arc<KeeperDesk>,
    life: tokio::sync::Mutex<Option<Life>>,
}

/// What ends with the spool: its threads, then its hold on the directory.
struct Life {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    desk: Arc<KeeperDesk>,
    _directory: Directory,
}

impl Life {
    /// Waits for the threads; the writer's queue must have been closed.
    fn end(self) {
        // A panic of either has poisoned the spool already; there is nothing to add.
        let _ = self.writer.join();
        self.desk.stop();
        let _ = self.keeper.join();
    }
}

impl EmbeddedSpool {
    /// Opens the spool of a directory, or makes one. Blocks: recovers, and prepares the first segment.
    ///
    /// Leasing begins behind the settled mark as it was last stored, which may lag: [`Spool::rewind`] to what the
    /// other side has committed.
    ///
    /// # Errors
    ///
    /// Names the file and what to do, see [`OpenError`]. A full disk is no error: the spool opens with health
    /// [`Full`](crate::SpoolHealth::Full), unless there is not even room to secure its last group.
    pub fn open(options: EmbeddedOptions) -> Result<Self, OpenError> {
        options.check()?;
        let disk = options.disk.clone();
        let directory = Directory::acquire(&options.dir, &disk)?;
        let numbers = directory.segments(&disk)?;
        let id = directory.id(&disk, !numbers.is_empty())?;
        let recovered = recover(&directory, &disk, &numbers, id)?;
        let position = recovered.state.settled;
        let last = recovered.tail.next - 1;
        let shared = Arc::new(Shared::new(
            id,
            directory.path.clone(),
            options.bytes_max,
            last,
            recovered.state,
        ));
        let desk = Arc::new(KeeperDesk::default());
        let mut keeper = Keeper {
            shared: shared.clone(),
            desk: desk.clone(),
            options: options.clone(),
            next_number: recovered.next_number,
        };
        keeper
            .prepare_first()
            .map_err(OpenError::io("prepare a segment in", &directory.path))?;

        let (commands, queue) = mpsc::channel(options.append_queue_max);
        let writer = Writer {
            shared: shared.clone(),
            desk: desk.clone(),
            commands: queue,
            disk: disk.clone(),
            clock: options.clock.clone(),
            sync_observer: options.sync_observer.clone(),
            tail: recovered.tail,
            active: None,
            group_bytes_max: group_bytes_max(options.segment_bytes),
            #[cfg(feature = "planted-bugs")]
            planted_answer_before_sync: options.planted_answer_before_sync,
        };
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            thread::Builder::new()
                .name(name.into())
                .spawn(run)
                .map_err(OpenError::io("start a thread for", &options.dir))
        };
        let keeper = spawn("spool-keeper", Box::new(move || keeper.run()))?;
        let writer = match spawn("spool-writer", Box::new(move || writer.run())) {
            Ok(writer) => writer,
            Err(error) => {
                desk.stop();
                let _ = keeper.join();
                return Err(error);
            }
        };
        tracing::info!(spool.id = %id, dir = %options.dir.display(), last_durable = last, settled = position, "spool is open");
        let life = Life {
            writer,
            keeper,
            desk: desk.clone(),
            _directory: directory,
        };
        Ok(Self {
            shared,
            commands,
            position: tokio::sync::Mutex::new(position),
            reader: Arc::new(Mutex::new(Reader::new(disk))),
            desk,
            life: tokio::sync::Mutex::new(Some(life)),
            options,
        })
    }

    /// Why no append can succeed any more.
    fn ended(&self) -> AppendError {
        self.shared
            .poisoned()
            .map_or(AppendError::Closed, AppendError::Poisoned)
    }
}

impl fmt::Debug for EmbeddedSpool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedSpool")
            .field("id", &self.shared.id)
            .field("dir", &self.shared.dir)
            .finish_non_exhaustive()
    }
}

impl Drop for EmbeddedSpool {
    fn drop(&mut self) {
        if let Some(life) = self.life.get_mut().take() {
            self.shared.closed.store(true, Ordering::Release);
            // Replaces the sender by one of a dead channel, which closes the writer's queue.
            self.commands = mpsc::channel(1).0;
            life.end();
        }
    }
}

#[async_trait]
impl Spool for EmbeddedSpool {
    fn id(&self) -> SpoolId {
        self.shared.id
    }

    async fn append(&self, _id: RecordId, record: Bytes) -> Result<Sequence, AppendError> {
        let bytes_max = self.options.record_bytes_max;
        if record.len() > bytes_max {
            return Err(AppendError::TooLarge {
                bytes: record.len(),
                bytes_max,
            });
        }
        if self.shared.is_poisoned() || self.shared.is_closed() {
            return Err(self.ended());
        }
        if self.shared.sync_running() > APPEND_WAIT_MAX {
            return Err(AppendError::Stuck);
        }
        let (answer, answered) = oneshot::channel();
        let stored = async {
            self.commands
                .send(Command::Append { record, answer })
                .await
                .map_err(|_| self.ended())?;
            answered.await.map_err(|_| self.ended())?
        };
        tokio::time::timeout(APPEND_WAIT_MAX, stored)
            .await
            .unwrap_or(Err(AppendError::Stuck))
    }

    async fn lease(&self, records_max: usize, bytes_max: usize) -> Result<Vec<Leased>, LeaseError> {
        let records_max = records_max.clamp(1, LEASE_RECORDS_CEILING);
        let bytes_max = bytes_max.min(LEASE_BYTES_CEILING);
        loop {
            let mut woken = std::pin::pin!(self.shared.progress.notified());
            // Registered before looking, so that progress in between is not missed.
            woken.as_mut().enable();
            {
                let mut position = self.position.lock().await;
                if self.shared.is_closed() {
                    return Err(LeaseError::Closed);
                }
                let durable = self.shared.durable();
                if *position < durable {
                    let (shared, reader, after) =
                        (self.shared.clone(), self.reader.clone(), *position);
                    let reading = tokio::task::spawn_blocking(move || {
                        let mut reader = reader
                            .lock()
                            .unwrap_or_else(std::sync::PoisonError::into_inner);
                        reader.read(&shared, after, durable, records_max, bytes_max)
                    });
                    // The runtime is shutting down, or the reader panicked: either way this spool gives no more.
                    let (leased, after) = reading.await.map_err(|_| LeaseError::Closed)??;
                    *position = after;
                    self.shared.state().leased = after;
                    if !leased.is_empty() {
                        return Ok(leased);
                    }
                    continue;
                }
                if let Some(reason) = self.shared.poisoned() {
                    return Err(LeaseError::Poisoned(reason));
                }
            }
            woken.await;
        }
    }

    async fn settle(&self, through: Sequence) -> Result<(), SettleError> {
        if self.shared.is_closed() {
            return Err(SettleError::Closed);
        }
        let last = self.shared.durable();
        if through.0 > last {
            return Err(SettleError::Ahead {
                through: through.0,
                last,
            });
        }
        let mut state = self.shared.state();
        state.peer_heard = true;
        if through.0 > state.settled {
            state.settled = through.0;
            drop(state);
            self.desk.settled_moved();
        }
        Ok(())
    }

    async fn rewind(&self, after: Sequence) -> Result<RewindOutcome, RewindError> {
        let mut position = self.position.lock().await;
        if self.shared.is_closed() {
            return Err(RewindError::Closed);
        }
        let last = self.shared.durable();
        if after.0 > last {
            return Err(RewindError::Ahead { last });
        }
        let missing = {
            let mut state = self.shared.state();
            let oldest_kept = state.oldest_kept(last);
            let reachable = after.0.max(oldest_kept - 1);
            state.peer_heard = true;
            state.leased = reachable;
            state.settled = state.settled.min(reachable);
            *position = reachable;
            (reachable > after.0).then(|| after.0 + 1..=reachable)
        };
        self.shared.progress.notify_waiters();
        Ok(RewindOutcome { missing })
    }

    fn status(&self) -> SpoolStatus {
        self.shared.status(&self.options.clock)
    }

    async fn close(&self) {
        // Held to the end, so that a second caller returns only once the spool is closed.
        let mut life = self.life.lock().await;
        let Some(ending) = life.take() else { return };
        self.shared.closed.store(true, Ordering::Release);
        self.shared.progress.notify_waiters();
        // Fails only if the writer has ended already.
        let _ = self.commands.send(Command::Close).await;
        let _ = tokio::task::spawn_blocking(move || ending.end()).await;
    }
}
