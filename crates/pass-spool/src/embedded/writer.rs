//! The one thread that writes records: group commit without a timer.
//!
//! While a sync runs, appends queue; when it returns, all that queued becomes the next group: one frame, one write,
//! one sync. So a lone append waits for one sync, and many share one. A group never spans two segments, and at most
//! one group is ever written but not synced: recovery counts on that.
//!
//! Any error of a write or sync poisons: the file is not touched again, not even to sync it, because the kernel may
//! report a failed write-back only once and call the lost pages clean afterwards.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use super::format::{
    RECORD_OVERHEAD_BYTES, Tail, frame_bytes_for, frame_encode, frame_seed, millis_of,
};
use super::keeper::{KeeperDesk, TakeError};
use super::options::{SyncObserver, WallClock};
use super::shared::{Segment, Shared};
use crate::{AppendError, Sequence};

/// A group takes no further record once it would exceed this.
const GROUP_BYTES_MAX: usize = 1 << 20;
/// And no more records than this.
const GROUP_RECORDS_MAX: usize = 8192;
/// A frame buffer that a rare large group has grown beyond this is given back.
const BUFFER_BYTES_KEPT: usize = 4 << 20;

pub(super) type Answer = oneshot::Sender<Result<Sequence, AppendError>>;

pub(super) enum Command {
    Append { record: Bytes, answer: Answer },
    Close,
}

/// A zero-filled, synced segment whose directory entry is synced too.
#[derive(Debug)]
pub(super) struct Blank {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) file_bytes: u64,
    /// Where the first frame goes.
    pub(super) offset: u64,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<KeeperDesk>,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) disk: Disk,
    pub(super) clock: WallClock,
    pub(super) sync_observer: SyncObserver,
    pub(super) tail: Tail,
    pub(super) active: Option<Blank>,
    /// What [`group_bytes_max`] says.
    pub(super) group_bytes_max: usize,
    #[cfg(feature = "planted-bugs")]
    pub(super) planted_answer_before_sync: bool,
}

/// Bytes of records in one group: a quarter of a segment at most, so that small segments are not mostly unused tails.
pub(super) fn group_bytes_max(segment_bytes: u64) -> usize {
    usize::try_from(segment_bytes / 4)
        .unwrap_or(GROUP_BYTES_MAX)
        .min(GROUP_BYTES_MAX)
}

/// Poisons when dropped before being disarmed: a panic of the thread must not leave appends waiting.
struct PanicGuard(Arc<Shared>, bool);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if !self.1 {
            self.0.poison("the writer thread panicked");
        }
    }
}

impl Writer {
    /// Runs until the queue is closed and empty.
    pub(super) fn run(mut self) {
        let mut guard = PanicGuard(self.shared.clone(), false);
        let mut group: Vec<(Bytes, Answer)> = Vec::new();
        let mut buffer = Vec::new();
        let mut carried = None;
        loop {
            let Some(command) = carried.take().or_else(|| self.commands.blocking_recv()) else {
                break;
            };
            let mut body_bytes = 0;
            let mut next = Some(command);
            while let Some(command) = next.take() {
                match command {
                    Command::Append { record, answer } => {
                        let bytes = record.len() + RECORD_OVERHEAD_BYTES;
                        let fits = body_bytes + bytes <= self.group_bytes_max
                            && group.len() < GROUP_RECORDS_MAX;
                        if !group.is_empty() && !fits {
                            carried = Some(Command::Append { record, answer });
                            break;
                        }
                        body_bytes += bytes;
                        group.push((record, answer));
                    }
                    // What was accepted before is still in the queue and gets its turn.
                    Command::Close => self.commands.close(),
                }
                next = self.commands.try_recv().ok();
            }
            if !group.is_empty() {
                self.commit(&mut group, &mut buffer, body_bytes);
            }
        }
        guard.1 = true;
    }

    fn commit(
        &mut self,
        group: &mut Vec<(Bytes, Answer)>,
        buffer: &mut Vec<u8>,
        body_bytes: usize,
    ) {
        let first = self.tail.next;
        #[cfg(feature = "planted-bugs")]
        if self.planted_answer_before_sync {
            for (index, (_, answer)) in group.iter_mut().enumerate() {
                let (unheard, _) = oneshot::channel();
                let answer = std::mem::replace(answer, unheard);
                let _ = answer.send(Ok(Sequence(first + index as u64)));
            }
        }
        match self.store(group, buffer, body_bytes) {
            Ok(()) => {
                for (index, (_, answer)) in group.drain(..).enumerate() {
                    // A caller that has gone away is no concern of ours; the record is stored.
                    let _ = answer.send(Ok(Sequence(first + index as u64)));
                }
            }
            Err(error) => {
                for (_, answer) in group.drain(..) {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
        if buffer.capacity() > BUFFER_BYTES_KEPT {
            *buffer = Vec::new();
        }
    }

    /// Writes and syncs one group, and publishes it.
    fn store(
        &mut self,
        group: &[(Bytes, Answer)],
        buffer: &mut Vec<u8>,
        body_bytes: usize,
    ) -> Result<(), AppendError> {
        if let Some(reason) = self.shared.poisoned() {
            return Err(AppendError::Poisoned(reason));
        }
        let frame_bytes = frame_bytes_for(body_bytes);
        if self
            .active
            .as_ref()
            .is_none_or(|active| active.offset + frame_bytes > active.file_bytes)
        {
            self.roll()?;
        }
        let active = self.active.as_mut().expect("roll leaves an active segment");
        assert!(
            active.offset + frame_bytes <= active.file_bytes,
            "open checks that a segment holds any group"
        );

        let time_ms = millis_of((self.clock)());
        let seed = frame_seed(self.shared.id);
        let records = group.iter().map(|(record, _)| record.as_ref());
        let header = frame_encode(buffer, seed, active.number, self.tail, time_ms, records);
        debug_assert_eq!(buffer.len() as u64, frame_bytes);

        self.shared.sync_begins();
        let stored = self
            .disk
            .write_at(&active.file, &active.path, buffer, active.offset)
            .map_err(|error| ("write", error))
            .and_then(|()| {
                self.disk
                    .sync_data(&active.file, &active.path)
                    .map_err(|error| ("sync", error))
            });
        let took = self.shared.sync_ends();
        if let Err((action, error)) = stored {
            self.shared.poison(&format!(
                "{action} of {} failed: {error}",
                active.path.display()
            ));
            return Err(AppendError::Poisoned(
                self.shared.poisoned().expect("poisoned just above"),
            ));
        }

        (self.sync_observer)(took);
        self.tail = header.tail(active.offset);
        active.offset += frame_bytes;
        let last = self.tail.next - 1;
        self.shared.publish(last, |state| {
            state.marks.push(header.first, time_ms, frame_bytes);
            let segment = state
                .segments
                .back_mut()
                .expect("the active segment is in the index");
            segment.last = last;
            segment.newest_ms = time_ms;
        });
        Ok(())
    }

    /// Goes on in a fresh segment.
    fn roll(&mut self) -> Result<(), AppendError> {
        let blank = self.desk.take(&self.shared).map_err(|error| match error {
            TakeError::NoRoom => AppendError::Full,
            TakeError::Poisoned(reason) => AppendError::Poisoned(reason),
            TakeError::Stopped => AppendError::Closed,
        })?;
        let first = self.tail.next;
        self.shared.state().segments.push_back(Segment {
            number: blank.number,
            first,
            last: first - 1,
            file_bytes: blank.file_bytes,
            newest_ms: millis_of((self.clock)()),
        });
        self.active = Some(blank);
        Ok(())
    }
}
