//! The contract of a spool: what a gateway may rely on, whichever implementation stands behind it.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

/// Identifies one spool for as long as its storage exists: 16 random bytes, printed as 32 hex digits.
///
/// A sequence means something only together with the id of its spool.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpoolId([u8; 16]);

impl SpoolId {
    /// Makes an id of its 16 bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpoolId({self})")
    }
}

/// Says that a text is not a spool id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("spool id is not 32 hexadecimal digits")]
pub struct SpoolIdInvalid;

impl FromStr for SpoolId {
    type Err = SpoolIdInvalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != 32 {
            return Err(SpoolIdInvalid);
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let high = (pair[0] as char).to_digit(16).ok_or(SpoolIdInvalid)?;
            let low = (pair[1] as char).to_digit(16).ok_or(SpoolIdInvalid)?;
            *byte = (high * 16 + low) as u8;
        }
        Ok(Self(bytes))
    }
}

/// A record's number within its spool: counts from 1, gapless, never reused. 0 stands before the first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Sequence(pub u64);

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What an append gives its record to be told apart from all others: 16 bytes that never come twice.
///
/// A spool that has to ask a server again, not knowing whether a record was stored, asks with the same id, so that the
/// record is stored once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RecordId(pub [u8; 16]);

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One record handed out by [`Spool::lease`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// The record's number.
    pub sequence: Sequence,
    /// The bytes as they were appended. May share one buffer with its neighbours.
    pub record: Bytes,
}

/// A durable, bounded, ordered queue of opaque records.
///
/// Records are appended, leased in order, and settled once the other side has committed them. Settled records are
/// kept for a while so that [`Spool::rewind`] can give them again to a peer that was restored to an earlier moment.
///
/// A spool may be shared by several processes: all of them append, one of them at a time leases, settles and rewinds.
/// [`Spool::turn`] waits to be that one.
#[async_trait]
pub trait Spool: Send + Sync + 'static {
    /// Returns the spool's identity.
    fn id(&self) -> SpoolId;

    /// Stores a record and resolves only once a successful sync covers it.
    ///
    /// Cancel-safe in this sense: dropping the future harms nothing, but the record may be stored all the same.
    /// Records of one caller that awaits each append get rising sequences.
    async fn append(&self, id: RecordId, record: Bytes) -> Result<Sequence, AppendError>;

    /// Waits until this process is the one that leases, settles and rewinds; at once where nobody else can be.
    ///
    /// To be called before a forwarding session begins. When the turn is lost, a waiting or later [`Spool::lease`]
    /// fails with [`LeaseError::TurnLost`]. Two processes may both believe to have it for a moment; what keeps the log
    /// whole is that pass-state fences the older session. Cancel-safe.
    async fn turn(&self) -> Result<(), LeaseError> {
        Ok(())
    }

    /// Gives the turn back, for a process that has it and can't forward: another one may be able to. Does nothing
    /// where nobody else can be, or without the turn.
    async fn pass_turn(&self) {}

    /// Returns the next durable records after the lease position, in order; waits until there is at least one.
    ///
    /// Returns at most `records_max` records and `bytes_max` bytes, but always at least one record. Cancel-safe: the
    /// position moves only with the return. Concurrent callers get disjoint records. Sequences follow each other
    /// without gaps, except across a range that an operator has quarantined.
    async fn lease(&self, records_max: usize, bytes_max: usize) -> Result<Vec<Leased>, LeaseError>;

    /// Says that everything up to and including `through` is committed downstream.
    ///
    /// Cumulative and idempotent: an older value than the present one changes nothing.
    async fn settle(&self, through: Sequence) -> Result<(), SettleError>;

    /// Moves the lease position, back or forward, so that the next leased record is the first one after `after`.
    ///
    /// `after` is the last sequence that the other side has committed; 0 means from the start. When it lies before
    /// what was settled, the settled mark goes back with it: the other side has lost those records, so they must not
    /// be dropped. Records that retention has already dropped are named in the outcome, and leasing goes on at the
    /// oldest kept one.
    async fn rewind(&self, after: Sequence) -> Result<RewindOutcome, RewindError>;

    /// Takes a snapshot for health, metrics and logs. Cheap: no IO.
    fn status(&self) -> SpoolStatus;

    /// Finishes what was accepted, syncs and releases the storage. Idempotent; appends and leases then fail as closed.
    async fn close(&self);
}

/// What a [`Spool::rewind`] could not give back.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RewindOutcome {
    /// Sequences asked for that retention has already dropped.
    pub missing: Option<RangeInclusive<u64>>,
}

/// A moment's figures of a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpoolStatus {
    /// The last record that a successful sync covers; 0 when there is none.
    pub last_durable: Sequence,
    /// The last record known to be committed downstream.
    pub settled: Sequence,
    /// The oldest record that can still be leased; one past `last_durable` when there is none.
    pub oldest_kept: Sequence,
    /// Durable records not yet settled.
    pub unsettled_records: u64,
    /// Bytes that the unsettled records take on disk. Rounded up to whole groups; 0 only if all is settled.
    pub unsettled_bytes: u64,
    /// Bytes of disk taken by all segments, prepared and retained ones included.
    pub disk_bytes: u64,
    /// The ceiling of `disk_bytes`.
    pub disk_bytes_max: u64,
    /// How long ago the oldest unsettled record was appended, by the wall clock.
    pub oldest_unsettled_age: Option<Duration>,
    /// How long the last write and sync took.
    pub sync_last: Duration,
    /// Whether appends can be expected to succeed.
    pub health: SpoolHealth,
    /// What could not be proven about the durability of this spool, where its owner has allowed that.
    pub unproven: Option<Arc<str>>,
    /// Why nobody can be told to have the [turn](Spool::turn) although records are taken, once that has lasted half a
    /// minute: nothing is forwarded from here meanwhile.
    pub trouble: Option<Arc<str>>,
}

/// Whether a spool can take records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SpoolHealth {
    /// Syncs return in time.
    Ok,
    /// A sync takes, or the last one took, more than 1 s.
    Slow,
    /// A sync has been running for more than 5 s: not ready.
    Stuck,
    /// No room; comes back by itself once there is.
    Full,
    /// A storage error ended this spool's life in this process; the reason follows. Only a restart helps.
    Poisoned(Arc<str>),
    /// The server that keeps this spool can't be reached or used; the reason follows. Comes back by itself.
    Unavailable(Arc<str>),
}

/// Why a record was not (or not certainly) stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Certainly not stored: the size limit is reached or the disk is full. Passes by itself.
    #[error("spool is full: settle records, raise its size, or free disk space")]
    Full,
    /// Certainly not stored.
    #[error("record of {bytes} bytes exceeds record_bytes_max of {bytes_max}")]
    TooLarge {
        /// The record's size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Unknown: no sync returned within 8 s.
    #[error("disk has not answered for 8 s; whether the record is stored is unknown")]
    Stuck,
    /// Unknown: a storage error; nothing more is written by this process.
    #[error("spool is poisoned and needs a restart: {0}")]
    Poisoned(Arc<str>),
    /// Unknown: the server that keeps this spool did not confirm it in time, or can't be used; the reason follows.
    #[error("spool is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// Certainly not stored.
    #[error("spool is closed")]
    Closed,
}

/// Why no records could be leased. The position has not moved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LeaseError {
    /// Stored bytes fail their checks; nothing is skipped.
    #[error("damage in {} at offset {offset}: {detail}; stop the process and quarantine the damage", file.display())]
    Damaged {
        /// The damaged file.
        file: PathBuf,
        /// Where the first unreadable byte range begins.
        offset: u64,
        /// Which check failed.
        detail: &'static str,
    },
    /// A read failed.
    #[error("cannot read {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// Records at the position are gone although nobody settled them.
    #[error("records from {first} are gone, the oldest kept is {oldest_kept}; rewind to go on")]
    Dropped {
        /// The first record asked for.
        first: u64,
        /// The oldest one there is.
        oldest_kept: u64,
    },
    /// All durable records are leased, and there will be no more.
    #[error("spool is poisoned and needs a restart: {0}")]
    Poisoned(Arc<str>),
    /// The server that keeps this spool can't be reached or used; the reason follows.
    #[error("spool is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// Another process leases this spool now; wait for the next [`Spool::turn`].
    #[error("another gateway forwards this spool now")]
    TurnLost,
    /// The spool is closed.
    #[error("spool is closed")]
    Closed,
}

/// Why a settle was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettleError {
    /// The other side speaks of records that this spool never gave out.
    #[error("settled sequence {through} lies beyond the last record {last}")]
    Ahead {
        /// The sequence asked for.
        through: u64,
        /// The last durable record.
        last: u64,
    },
    /// The server that keeps this spool can't be reached or used; the reason follows.
    #[error("spool is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// Another process leases this spool now; wait for the next [`Spool::turn`].
    #[error("another gateway forwards this spool now")]
    TurnLost,
    /// The spool is closed.
    #[error("spool is closed")]
    Closed,
}

/// Why a rewind was refused. Nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RewindError {
    /// The other side has committed records that this spool does not have: it was restored, or replaced.
    #[error(
        "sequence lies beyond the last record {last}; this spool was restored or is not the one meant"
    )]
    Ahead {
        /// The last durable record.
        last: u64,
    },
    /// The server that keeps this spool can't be reached or used; the reason follows.
    #[error("spool is unavailable: {0}")]
    Unavailable(Arc<str>),
    /// Another process leases this spool now; wait for the next [`Spool::turn`].
    #[error("another gateway forwards this spool now")]
    TurnLost,
    /// The spool is closed.
    #[error("spool is closed")]
    Closed,
}
