//! The thread beside the writer: prepares the next segment, stores the settled mark, removes what need not be kept.
//!
//! None of this is on the way of an append, except that the writer waits for the next segment when it outruns its
//! preparation. A lack of room while preparing is back-pressure and is tried again; any other error poisons.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::directory::{segment_path, watermark_write};
use super::disk::{Disk, is_lack_of_room};
use super::format::{HeaderKind, SEGMENT_HEADER_BYTES, age_of, header_encode};
use super::options::EmbeddedOptions;
use super::shared::{Segment, Shared, State};
use super::writer::Blank;

/// How often the keeper looks around unasked; also the least time between two writes of the settled mark.
const ROUND: Duration = Duration::from_secs(1);
/// How long after a lack of room it tries again.
const ROOM_RETRY: Duration = Duration::from_millis(400);
/// Zeros are written and synced in pieces of this size, so that a record's sync never waits behind a whole segment.
const ZEROS_BYTES: usize = 2 << 20;

/// Why the writer gets no segment.
pub(super) enum TakeError {
    NoRoom,
    Poisoned(Arc<str>),
    Stopped,
}

#[derive(Debug, Default)]
struct Desk {
    blank: Option<Blank>,
    /// Set while the last attempt failed for lack of room.
    no_room: bool,
    /// Set when settling may have made the room that is lacking.
    hurry: bool,
    stopping: bool,
}

/// Where writer and keeper meet.
#[derive(Debug, Default)]
pub(super) struct KeeperDesk {
    desk: Mutex<Desk>,
    changed: Condvar,
}

impl KeeperDesk {
    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Takes the prepared segment, waiting for one that is being prepared.
    pub(super) fn take(&self, shared: &Shared) -> Result<Blank, TakeError> {
        let mut desk = self.lock();
        loop {
            if let Some(reason) = shared.poisoned() {
                return Err(TakeError::Poisoned(reason));
            }
            if let Some(blank) = desk.blank.take() {
                self.changed.notify_all();
                return Ok(blank);
            }
            if desk.no_room {
                // Under the lock, so that room found meanwhile is not reported as lacking for ever.
                shared.full.store(true, Ordering::Relaxed);
                return Err(TakeError::NoRoom);
            }
            if desk.stopping {
                return Err(TakeError::Stopped);
            }
            desk = self
                .changed
                .wait(desk)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Tells the keeper that settling has moved on; it hurries only if room is lacking.
    pub(super) fn settled_moved(&self) {
        let mut desk = self.lock();
        if desk.no_room {
            desk.hurry = true;
            self.changed.notify_all();
        }
    }

    pub(super) fn stop(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }
}

/// Wakes the writer when the keeper's thread is gone: a panic must not leave appends waiting.
struct PanicGuard(Arc<Shared>, Arc<KeeperDesk>, bool);

impl Drop for PanicGuard {
    fn drop(&mut self) {
        if !self.2 {
            self.0.poison("the keeper thread panicked");
            self.1.changed.notify_all();
        }
    }
}

pub(super) struct Keeper {
    pub(super) shared: Arc<Shared>,
    pub(super) desk: Arc<KeeperDesk>,
    pub(super) options: EmbeddedOptions,
    /// The number of the next segment.
    pub(super) next_number: u64,
}

impl Keeper {
    /// Prepares the first segment, on the opener's thread: its errors, but for a lack of room, are the opener's.
    pub(super) fn prepare_first(&mut self) -> io::Result<()> {
        match self.prepare() {
            Ok(()) => Ok(()),
            Err(error) if is_lack_of_room(&error) => {
                self.room_is_lacking(&error);
                self.shared.full.store(true, Ordering::Relaxed);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Runs until told to stop; then stores the settled mark and removes the unused segment.
    pub(super) fn run(mut self) {
        let mut guard = PanicGuard(self.shared.clone(), self.desk.clone(), false);
        let mut prepare_tried = Instant::now();
        let mut round_begun = Instant::now();
        loop {
            let mut desk = self.desk.lock();
            if !desk.stopping && !desk.hurry && (desk.blank.is_some() || desk.no_room) {
                let wait = if desk.no_room { ROOM_RETRY } else { ROUND };
                desk = self
                    .desk
                    .changed
                    .wait_timeout(desk, wait)
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .0;
            }
            if desk.stopping {
                break;
            }
            let hurry = std::mem::take(&mut desk.hurry);
            let lacking = desk.no_room;
            let wanted = desk.blank.is_none();
            drop(desk);
            if self.shared.is_poisoned() {
                self.desk.changed.notify_all();
                self.wait_for_stop();
                break;
            }
            if hurry || round_begun.elapsed() >= ROUND {
                round_begun = Instant::now();
                self.drop_settled();
            }
            if wanted && (!lacking || hurry || prepare_tried.elapsed() >= ROOM_RETRY) {
                prepare_tried = Instant::now();
                if let Err(error) = self.prepare() {
                    if is_lack_of_room(&error) {
                        self.room_is_lacking(&error);
                    } else {
                        self.poison("prepare a segment in", &error);
                    }
                }
            }
        }
        self.finish();
        guard.2 = true;
    }

    fn wait_for_stop(&self) {
        let mut desk = self.desk.lock();
        while !desk.stopping {
            desk = self
                .desk
                .changed
                .wait(desk)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn finish(&mut self) {
        if self.shared.is_poisoned() {
            return;
        }
        if let Err(error) = self.watermark_store() {
            tracing::warn!(spool.id = %self.shared.id, %error, "settled mark not stored; more is sent again");
        }
        if let Some(blank) = self.desk.lock().blank.take() {
            // Only tidiness: an unused segment left behind is removed at the next open.
            let _ = self.options.disk.unlink(&blank.path);
        }
    }

    fn poison(&self, action: &str, error: &io::Error) {
        self.shared.poison(&format!(
            "cannot {action} {}: {error}",
            self.shared.dir.display()
        ));
        self.desk.changed.notify_all();
    }

    fn room_is_lacking(&self, error: &io::Error) {
        let mut desk = self.desk.lock();
        if !desk.no_room {
            tracing::warn!(spool.id = %self.shared.id, %error, "no room for another spool segment");
        }
        desk.no_room = true;
        self.desk.changed.notify_all();
    }

    /// Makes the next segment ready, or says why not. What was begun is removed.
    fn prepare(&mut self) -> io::Result<()> {
        let bytes = self.options.segment_bytes;
        if self.shared.state().disk_bytes + bytes > self.options.bytes_max {
            return Err(rustix::io::Errno::NOSPC.into());
        }
        let number = self.next_number;
        self.next_number += 1;
        let path = segment_path(&self.shared.dir, number);
        let header = header_encode(HeaderKind::Segment, self.shared.id, number);
        match segment_create(&self.options.disk, &self.shared.dir, &path, &header, bytes) {
            Ok(file) => {
                let offset = SEGMENT_HEADER_BYTES as u64;
                self.shared.state().disk_bytes += bytes;
                let mut desk = self.desk.lock();
                desk.blank = Some(Blank {
                    number,
                    path,
                    file,
                    file_bytes: bytes,
                    offset,
                });
                desk.no_room = false;
                self.shared.full.store(false, Ordering::Relaxed);
                drop(desk);
                self.desk.changed.notify_all();
                Ok(())
            }
            Err(error) => {
                let _ = self.options.disk.unlink(&path.with_added_extension("tmp"));
                let _ = self.options.disk.unlink(&path);
                Err(error)
            }
        }
    }

    /// Stores the settled mark if it moved, and removes segments whose time is over.
    fn drop_settled(&mut self) {
        let victims = {
            let mut state = self.shared.state();
            let victims = victims_take(&mut state, &self.options);
            let oldest = state.oldest_kept(self.shared.durable());
            state.marks.forget_before(oldest);
            victims
        };
        // The mark is durable before the first file goes, so that a missing file is always explained.
        match self.watermark_store() {
            Ok(()) => {}
            Err(error) if is_lack_of_room(&error) => {
                tracing::warn!(spool.id = %self.shared.id, %error, "settled mark not stored; trying again");
                let mut state = self.shared.state();
                for victim in victims.into_iter().rev() {
                    state.segments.push_front(victim);
                }
                return;
            }
            Err(error) => return self.poison("store the settled mark in", &error),
        }
        for victim in victims {
            let path = segment_path(&self.shared.dir, victim.number);
            if let Err(error) = self.options.disk.unlink(&path) {
                return self.poison("remove a settled segment from", &error);
            }
            self.shared.state().disk_bytes -= victim.file_bytes;
        }
    }

    fn watermark_store(&mut self) -> io::Result<()> {
        let (settled, stored) = {
            let state = self.shared.state();
            (state.settled, state.settled_stored)
        };
        if settled != stored {
            watermark_write(
                &self.shared.dir,
                &self.options.disk,
                self.shared.id,
                settled,
            )?;
            self.shared.state().settled_stored = settled;
        }
        Ok(())
    }
}

/// Takes the segments out of the index that are wholly settled and too old or too many.
///
/// The newest segment that holds a record stays whatever its age: it is what keeps sequences from starting over.
fn victims_take(state: &mut State, options: &EmbeddedOptions) -> Vec<Segment> {
    let mut victims = Vec::new();
    if !state.peer_heard {
        return victims;
    }
    let floor = state.settled.min(state.leased);
    let now = (options.clock)();
    let mut kept_bytes: u64 = state
        .segments
        .iter()
        .take_while(|segment| segment.last <= floor)
        .map(|segment| segment.file_bytes)
        .sum();
    while let (Some(oldest), Some(next)) = (state.segments.front(), state.segments.get(1)) {
        let expired = age_of(oldest.newest_ms, now) > options.retain_age
            || kept_bytes > options.retain_bytes();
        if oldest.last > floor || next.last < next.first || !expired {
            break;
        }
        kept_bytes -= oldest.file_bytes;
        victims.extend(state.segments.pop_front());
    }
    victims
}

/// Creates a segment so that it appears under its name only when complete: written, synced, renamed, entry synced.
pub(super) fn segment_create(
    disk: &Disk,
    dir: &Path,
    path: &Path,
    content: &[u8],
    file_bytes: u64,
) -> io::Result<File> {
    let unfinished = path.with_added_extension("tmp");
    let file = disk.create_new(&unfinished)?;
    disk.reserve(&file, &unfinished, file_bytes)?;
    disk.write_at(&file, &unfinished, content, 0)?;
    let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(file_bytes).unwrap_or(ZEROS_BYTES))];
    let mut offset = content.len() as u64;
    while offset < file_bytes {
        let piece = (file_bytes - offset).min(zeros.len() as u64);
        disk.write_at(&file, &unfinished, &zeros[..piece as usize], offset)?;
        disk.sync_data(&file, &unfinished)?;
        offset += piece;
    }
    disk.sync_all(&file, &unfinished)?;
    disk.rename(&unfinished, path)?;
    disk.sync_dir(dir)?;
    Ok(file)
}
