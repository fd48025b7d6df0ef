//! Settings and open errors of the embedded spool.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::disk::Disk;
use super::format::{FRAME_HEADER_BYTES, RECORD_OVERHEAD_BYTES, SEGMENT_HEADER_BYTES};

/// Tells the wall-clock time. It only dates records for retention and ages; nothing else depends on it.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// Is told how long each successful write and sync took. Called where appends wait for it, so it must not block.
pub type SyncObserver = Arc<dyn Fn(Duration) + Send + Sync>;

/// The largest permitted segment, 1 GiB.
pub const SEGMENT_BYTES_CEILING: u64 = 1 << 30;
/// The largest permitted `append_queue_max`.
pub const APPEND_QUEUE_CEILING: usize = 65_536;

/// Settings of an [`EmbeddedSpool`](crate::EmbeddedSpool). Start from [`EmbeddedOptions::new`].
#[derive(Clone)]
pub struct EmbeddedOptions {
    /// The spool's own directory. Created with mode 0700 if absent; refused if group or others may enter it.
    pub dir: PathBuf,
    /// Size of one segment. Default 64 MiB, at most 1 GiB; must hold a record of `record_bytes_max`.
    pub segment_bytes: u64,
    /// Ceiling of all segments together. Default 10 GiB, at least 4 segments.
    pub bytes_max: u64,
    /// The largest record. Default 2 MiB.
    pub record_bytes_max: usize,
    /// Settled segments older than this are removed. Default 24 h.
    pub retain_age: Duration,
    /// Settled segments beyond this are removed, oldest first. Default `None`, a quarter of `bytes_max`; at most
    /// `bytes_max` less 3 segments.
    pub retain_bytes: Option<u64>,
    /// Appends that may wait for the writer; more wait outside. Default 1,024, at most 65,536.
    pub append_queue_max: usize,
    /// The wall clock. Default the system's.
    pub clock: WallClock,
    /// Is told how long each group's write and sync took. Default nobody.
    pub sync_observer: SyncObserver,
    /// Answers appends before their sync: a planted defect for tests of the tests.
    #[cfg(feature = "planted-bugs")]
    pub planted_answer_before_sync: bool,
    pub(super) disk: Disk,
}

impl EmbeddedOptions {
    /// Makes the default settings for a directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            segment_bytes: 64 << 20,
            bytes_max: 10 << 30,
            record_bytes_max: 2 << 20,
            retain_age: Duration::from_secs(24 * 60 * 60),
            retain_bytes: None,
            append_queue_max: 1024,
            clock: Arc::new(system_time),
            sync_observer: Arc::new(|_| {}),
            #[cfg(feature = "planted-bugs")]
            planted_answer_before_sync: false,
            disk: Disk::default(),
        }
    }

    /// Has every storage call announced to `hook`, which may make it fail or wait. For tests.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn with_fault_hook(mut self, hook: Arc<super::disk::FaultHook>) -> Self {
        self.disk = Disk::hooked(hook);
        self
    }

    /// Bytes of settled segments kept.
    pub fn retain_bytes(&self) -> u64 {
        self.retain_bytes.unwrap_or(self.bytes_max / 4)
    }

    /// Checks the settings against each other; the text names the first that doesn't fit, and what would.
    pub fn check(&self) -> Result<(), OpenError> {
        let invalid = |what: String| Err(OpenError::Options { what });
        if self.record_bytes_max == 0 {
            return invalid("record_bytes_max must be at least 1".into());
        }
        let overhead =
            (SEGMENT_HEADER_BYTES + FRAME_HEADER_BYTES + RECORD_OVERHEAD_BYTES + 8) as u64;
        let segment_bytes_min = (self.record_bytes_max as u64)
            .saturating_add(overhead)
            .next_multiple_of(8);
        if self.segment_bytes > SEGMENT_BYTES_CEILING || !self.segment_bytes.is_multiple_of(8) {
            return invalid(format!(
                "segment_bytes is {} but must be a multiple of 8 up to {SEGMENT_BYTES_CEILING}",
                self.segment_bytes
            ));
        }
        if self.segment_bytes < segment_bytes_min {
            return invalid(format!(
                "segment_bytes is {} but record_bytes_max of {} needs {segment_bytes_min}",
                self.segment_bytes, self.record_bytes_max
            ));
        }
        if self.bytes_max < 4 * self.segment_bytes {
            return invalid(format!(
                "bytes_max is {} but must hold 4 segments of segment_bytes {}",
                self.bytes_max, self.segment_bytes
            ));
        }
        if self.retain_bytes() > self.bytes_max - 3 * self.segment_bytes {
            return invalid(format!(
                "retain_bytes is {} but must leave 3 segments of bytes_max {}",
                self.retain_bytes(),
                self.bytes_max
            ));
        }
        if self.append_queue_max == 0 || self.append_queue_max > APPEND_QUEUE_CEILING {
            return invalid(format!(
                "append_queue_max must be 1 to {APPEND_QUEUE_CEILING}"
            ));
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the clock that is passed in by default"
)]
pub(crate) fn system_time() -> SystemTime {
    SystemTime::now()
}

impl fmt::Debug for EmbeddedOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedOptions")
            .field("dir", &self.dir)
            .field("segment_bytes", &self.segment_bytes)
            .field("bytes_max", &self.bytes_max)
            .field("record_bytes_max", &self.record_bytes_max)
            .field("retain_age", &self.retain_age)
            .field("retain_bytes", &self.retain_bytes())
            .field("append_queue_max", &self.append_queue_max)
            .finish_non_exhaustive()
    }
}

/// Why a spool could not be opened. Nothing that was stored has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Settings that don't fit each other.
    #[error("{what}")]
    Options {
        /// Names the setting and the bound.
        what: String,
    },
    /// Another process, or another spool in this one, owns the directory.
    #[error("spool directory {} is in use by another process; stop it first", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// Others than the owner may enter the directory.
    #[error("spool directory {} has mode {mode:04o} but holds personal data; run chmod 0700 {}", dir.display(), dir.display())]
    Exposed {
        /// The directory.
        dir: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Written by a release that this one does not understand.
    #[error("{} is of spool format {version}, this release reads {}; use the newer release", file.display(), super::format::FORMAT_VERSION)]
    Version {
        /// The file.
        file: PathBuf,
        /// Its format version.
        version: u16,
    },
    /// The id file is missing beside segments, or damaged, or a segment belongs to another spool.
    #[error("{}: {detail}; restore the file, or move the directory aside to start an empty spool", file.display())]
    Identity {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        detail: &'static str,
    },
    /// Stored records fail their checks before the end of the log.
    #[error(
        "damage in {} at offset {offset}: {detail}; sequence {sequence} is the first affected; restore the file, or \
         move the damage aside with quarantine_damage",
        file.display()
    )]
    Damaged {
        /// The damaged, or missing, file.
        file: PathBuf,
        /// Where the first unreadable byte range begins.
        offset: u64,
        /// The first sequence that can't be read.
        sequence: u64,
        /// Which check failed.
        detail: &'static str,
    },
    /// A storage call failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl OpenError {
    /// Makes the mapper for the errors of one storage call.
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
