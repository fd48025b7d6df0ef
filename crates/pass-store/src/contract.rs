//! What a store does: the trait, its words and its error. One suite (`suite`, feature `testing`) holds every
//! implementation to it.
//!
//! Invariants every implementation keeps:
//! - Positions are 1, 2, 3, … in commit order; none becomes visible below one that a reader has seen.
//! - An event id and a delivery id are recorded at most once, for ever, by unique keys.
//! - A spool's committed sequence changes in the transaction that records its deliveries.
//! - Record times never go back.

use std::sync::Arc;

use pass_domain::Timestamp;
use pass_domain::cursor::Cursor;
use pass_domain::delivery::{Delivery, Outcome, UndecodableReason};
use pass_domain::event::{Event, Position};
use pass_domain::fold::PassState;
use pass_domain::ids::{DeliveryId, EventId, PassKey, SourceUid};
use pass_domain::kind::Kind;

/// What a caller may see: which rows, and whether personal data. Every read takes one.
///
/// A row may be seen if its source is listed, or if the organization that it was recorded with is. The
/// organization of an event or a delivery is the one that its source belonged to then; of a pass, the one that
/// its source belonged to when it last told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Sorted; `None` is all.
    sources: Option<Arc<[SourceUid]>>,
    /// Sorted, none empty.
    organizations: Arc<[String]>,
    /// Whether personal data (names, addresses, positions, raw bodies) may be read.
    pub personal: bool,
}

impl Scope {
    /// All rows, and personal data.
    #[must_use]
    pub fn everything() -> Self {
        Self {
            sources: None,
            organizations: Arc::default(),
            personal: true,
        }
    }

    /// Rows of these sources and of these organizations, without personal data. An empty organization is no
    /// organization: rows without one are seen by their source alone.
    #[must_use]
    pub fn limited(
        sources: impl IntoIterator<Item = SourceUid>,
        organizations: impl IntoIterator<Item = String>,
    ) -> Self {
        let mut sources: Vec<SourceUid> = sources.into_iter().collect();
        sources.sort_unstable();
        sources.dedup();
        let mut organizations: Vec<String> = organizations
            .into_iter()
            .filter(|organization| !organization.is_empty())
            .collect();
        organizations.sort_unstable();
        organizations.dedup();
        Self {
            sources: Some(sources.into()),
            organizations: organizations.into(),
            personal: false,
        }
    }

    /// The same rows, with or without personal data.
    #[must_use]
    pub fn with_personal(self, personal: bool) -> Self {
        Self { personal, ..self }
    }

    /// True if a row of the source and organization may be seen.
    #[must_use]
    pub fn allows(&self, source: &SourceUid, organization: &str) -> bool {
        self.allows_source(source) || self.organizations.iter().any(|one| one == organization)
    }

    /// True if every row of the source may be seen, whatever its organization.
    #[must_use]
    pub fn allows_source(&self, source: &SourceUid) -> bool {
        self.sources
            .as_ref()
            .is_none_or(|sources| sources.binary_search(source).is_ok())
    }

    /// True if some row of the source may be seen, as far as can be told without looking at rows.
    #[must_use]
    pub fn may_allow(&self, source: &SourceUid) -> bool {
        self.allows_source(source) || !self.organizations.is_empty()
    }

    /// True if deliveries of the source and organization may be sent. What a delivery says of its organization
    /// is its sender's word, so that an organization alone lets nobody write: the source must be listed, and
    /// the organization too, unless there is none.
    #[must_use]
    pub fn allows_sending(&self, source: &SourceUid, organization: &str) -> bool {
        self.allows_all()
            || (self.allows_source(source)
                && (organization.is_empty()
                    || self.organizations.iter().any(|one| one == organization)))
    }

    /// True if every row may be seen.
    #[must_use]
    pub fn allows_all(&self) -> bool {
        self.sources.is_none()
    }

    /// The sources, sorted; `None` is all.
    #[must_use]
    pub fn sources(&self) -> Option<&[SourceUid]> {
        self.sources.as_deref()
    }

    /// The organizations, sorted.
    #[must_use]
    pub fn organizations(&self) -> &[String] {
        &self.organizations
    }
}

/// A spool's id: 16 random bytes made with the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpoolId(pub [u8; 16]);

impl std::fmt::Display for SpoolId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a gateway says of its spool when it connects.
#[derive(Clone, Debug)]
pub struct SpoolHello {
    /// The spool.
    pub spool: SpoolId,
    /// The gateway's id, for people.
    pub gateway: String,
    /// The highest sequence the store ever acknowledged to it; 0 if none. If it is above what the store
    /// has, the database was put back in time: the store changes the log's epoch in the same transaction,
    /// unless that was done already, on account of another spool or an earlier hello.
    pub settled_sequence: u64,
    /// Whether the store may change the epoch on the spool's word; otherwise such a hello is refused, as
    /// [`Error::Untrusted`].
    pub may_change_epoch: bool,
    /// The oldest sequence the spool still holds; 0 if it is empty. Sequences lost on both sides are
    /// remembered as missing.
    pub oldest_sequence: u64,
}

/// A spool's place in the store, after a gateway connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolOpened {
    /// Grows with each connection of this spool; appends of an older generation are fenced.
    pub generation: u64,
    /// The last committed sequence; 0 if none.
    pub committed_sequence: u64,
    /// The delivery with that sequence; `None` if unknown, as after a release that did not keep it, or if the
    /// sequence is one of those that are missing.
    pub committed_delivery: Option<DeliveryId>,
    /// The log's epoch in which that holds.
    pub epoch: u64,
    /// True if the database had gone back in time and nobody had noticed before, so that the epoch was
    /// changed.
    pub epoch_changed: bool,
    /// Sequences that neither side holds any more (first and last), if any are known.
    pub missing: Option<(u64, u64)>,
}

/// Deliveries of one spool, in sequence order without gaps.
#[derive(Clone, Debug)]
pub struct AppendPart {
    /// The spool.
    pub spool: SpoolId,
    /// The generation that [`PassStore::spool_open`] gave to the stream.
    pub generation: u64,
    /// Sequence and delivery.
    pub deliveries: Vec<(u64, Arc<Delivery>)>,
}

/// What became of one part of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartOutcome {
    /// Committed. One outcome per delivery; those that were committed before are `Duplicate`.
    Committed {
        /// The last committed sequence of the spool.
        committed_sequence: u64,
        /// Sequence and outcome.
        outcomes: Vec<(u64, Outcome)>,
    },
    /// A newer stream of the spool took over; nothing of the part was recorded.
    Fenced,
    /// The part does not follow the last committed sequence; nothing of it was recorded.
    Gap {
        /// The sequence that should have come.
        expected_sequence: u64,
    },
}

/// What an append did.
#[derive(Clone, Debug)]
pub struct Appended {
    /// One outcome per part, in order.
    pub parts: Vec<PartOutcome>,
    /// The end of the log after it.
    pub head: Head,
    /// How many events it recorded, by source and kind; for metrics.
    pub recorded: Vec<(SourceUid, Kind, u64)>,
}

/// The end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The log's epoch.
    pub epoch: u64,
    /// Position of the last event; 0 if there is none.
    pub position: Position,
    /// [`Cursor::digest_of`] the last event; 0 if there is none.
    pub digest: u64,
    /// Record time of the last transaction, which may have recorded no event.
    pub record_time: Timestamp,
}

impl Head {
    /// The cursor of the last event.
    #[must_use]
    pub fn cursor(&self) -> Cursor {
        Cursor {
            epoch: self.epoch,
            position: self.position,
            digest: self.digest,
        }
    }
}

/// The books (see `LogBooks` in the protos for each counter's meaning).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each counter is documented in the protos' LogBooks"
)]
pub struct Books {
    pub deliveries: u64,
    pub applied: u64,
    pub duplicate: u64,
    pub control: u64,
    pub quarantined: u64,
    pub facts: u64,
    pub events: u64,
    pub duplicate_facts: u64,
    pub quarantined_facts: u64,
    pub differing_duplicates: u64,
    pub quarantine_open: u64,
}

impl Books {
    /// True if every delivery and every fact is accounted for.
    #[must_use]
    pub fn balance(&self) -> bool {
        self.deliveries == self.applied + self.duplicate + self.control + self.quarantined
            && self.facts == self.events + self.duplicate_facts + self.quarantined_facts
    }
}

/// A pool of connections at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Open and lent to nobody.
    pub idle: u32,
    /// Lent.
    pub used: u32,
    /// How many there may be.
    pub max: u32,
}

/// A spool as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolRecord {
    /// The spool.
    pub spool: SpoolId,
    /// The gateway that last opened it.
    pub gateway: String,
    /// The last committed sequence.
    pub committed_sequence: u64,
    /// Sequences that neither side holds any more, for people; empty if none.
    pub missing: String,
}

/// About the log.
#[derive(Clone, Debug)]
pub struct LogInfo {
    /// Its end.
    pub head: Head,
    /// Position before the oldest event kept (0 until there is retention).
    pub oldest: Position,
    /// The books.
    pub books: Books,
    /// At most 1,000 spools.
    pub spools: Vec<SpoolRecord>,
    /// `sqlite` or `postgresql`.
    pub database: &'static str,
}

/// A pass as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassRecord {
    /// The store's number of the pass, in the order in which passes were first seen.
    pub number: u64,
    /// Which pass.
    pub key: PassKey,
    /// The vendor's name.
    pub vendor: String,
    /// The organization; empty if none.
    pub organization: String,
    /// What is known of it.
    pub state: PassState,
    /// Digest of `state`, for the etag.
    pub digest: u64,
    /// Position of its last event; 0 if it has none yet.
    pub last_position: Position,
    /// [`Cursor::digest_of`] that event.
    pub last_digest: u64,
}

/// A delivery's stay in quarantine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuarantineRecord {
    /// Where it stands.
    pub state: QuarantineState,
    /// Why it is there.
    pub reason: UndecodableReason,
    /// What is wrong, in words.
    pub detail: String,
    /// When it last changed.
    pub update_time: Timestamp,
    /// The operator's words; empty unless discarded.
    pub discard_reason: String,
}

/// Where a delivery in quarantine stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QuarantineState {
    /// Waiting.
    Open,
    /// Decoded after all.
    Replayed,
    /// Given up by an operator.
    Discarded,
}

/// A delivery as recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryRecord {
    /// The store's number of the delivery, in commit order.
    pub number: u64,
    /// The delivery. `decoded` holds no facts here (they are in the events); `body` is empty unless asked
    /// for and in scope.
    pub delivery: Arc<Delivery>,
    /// Length of the body in bytes.
    pub body_bytes: u64,
    /// When it was recorded.
    pub record_time: Timestamp,
    /// What became of it.
    pub outcome: Outcome,
    /// The events that its facts are recorded as, also where another delivery told first.
    pub events: Vec<(PassKey, EventId)>,
    /// Facts that were known already.
    pub duplicate_facts: u32,
    /// Those that said something else than the first sighting.
    pub differing_duplicates: u32,
    /// Its stay in quarantine, if it was ever there.
    pub quarantine: Option<QuarantineRecord>,
}

/// What a replay did.
#[derive(Clone, Debug)]
pub enum Replayed {
    /// Applied (or found to be a duplicate, or still undecodable: see the record). Also for a delivery that
    /// was replayed before.
    Done(Box<DeliveryRecord>, Head),
    /// The delivery is not and never was in quarantine.
    NotQuarantined,
    /// It has events already and decoding it again gives others; nothing was changed.
    Conflict,
    /// There is no such delivery.
    NotFound,
}

/// In which order passes are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassOrder {
    /// As they were first seen: ascending `number`; the page goes on after a number.
    FirstSeen,
    /// Newest event first: descending `last_position`; the page goes on before a position (0 = the end).
    LastEventDescending,
}

/// By what other name passes are looked up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupKey {
    /// The serial number.
    SerialNumber(String),
    /// The issuer's own id.
    ExternalId(String),
}

/// One page of rows, and where the next one starts.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// The rows.
    pub rows: Vec<T>,
    /// What to pass as `from` for the next page; `None` if the end was reached.
    pub next: Option<u64>,
}

/// Which events to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventParent {
    /// Those of one pass.
    Pass(PassKey),
    /// Those of one source.
    Source(SourceUid),
    /// All.
    All,
}

/// Why the store could not do it, and whether it may have happened all the same.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be used at the moment. Certainly not done.
    #[error("the database cannot be used at the moment: {0}")]
    Unavailable(String),
    /// The connection was lost at the worst moment: done or not, unknown. Doing it again is harmless.
    #[error("it is unknown whether the transaction was committed: {0}")]
    OutcomeUnknown(String),
    /// The database refuses these data, and would again. Certainly not done.
    #[error("the database refuses these data: {0}")]
    Refused(String),
    /// A hello tells that the database went back in time, from a spool whose word does not suffice for a new
    /// epoch. Certainly not done.
    #[error("the spool is not trusted to change the log's epoch")]
    Untrusted,
    /// A row holds what it cannot hold. Certainly not done.
    #[error("damaged row: {0}")]
    Corrupt(String),
    /// The database is set up in a way that would break a guarantee.
    #[error("unfit database: {0}")]
    Unfit(String),
    /// The schema is older than this release; opening succeeds once somebody has migrated it.
    #[error(
        "the schema lacks {lacking} migrations: run `pass-state migrate`, or set store.migrations = \"auto\""
    )]
    NotMigrated {
        /// How many.
        lacking: usize,
    },
}

impl Error {
    /// True if the same call may succeed later without anyone changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Unavailable(_) | Error::OutcomeUnknown(_) => true,
            Error::Refused(_)
            | Error::Untrusted
            | Error::Corrupt(_)
            | Error::Unfit(_)
            | Error::NotMigrated { .. } => false,
        }
    }

    /// True if nothing was changed for certain.
    #[must_use]
    pub fn is_certainly_not_done(&self) -> bool {
        match self {
            Error::Unavailable(_)
            | Error::Refused(_)
            | Error::Untrusted
            | Error::Corrupt(_)
            | Error::Unfit(_)
            | Error::NotMigrated { .. } => true,
            Error::OutcomeUnknown(_) => false,
        }
    }
}

/// A store of the log.
#[async_trait::async_trait]
pub trait PassStore: Send + Sync + 'static {
    /// Makes the caller the one live stream of a spool and says where it stands.
    async fn spool_open(&self, hello: &SpoolHello) -> Result<SpoolOpened, Error>;

    /// Records deliveries in one transaction: dedupes, folds, writes events, passes, books and spool
    /// progress. Either all committed parts are durable on return or, on error, none was recorded (unless
    /// [`Error::OutcomeUnknown`]). `now` is the record time unless the log's is later.
    async fn append(&self, parts: &[AppendPart], now: Timestamp) -> Result<Appended, Error>;

    /// Applies a delivery in quarantine, decoded again, as of its original receive time.
    async fn delivery_replay(&self, delivery: &Delivery, now: Timestamp)
    -> Result<Replayed, Error>;

    /// Takes a delivery out of quarantine without applying it. `None` if there is no such delivery or it
    /// was never in quarantine. A replayed one is returned as it is.
    async fn delivery_discard(
        &self,
        id: DeliveryId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Option<DeliveryRecord>, Error>;

    /// Gives the log a new epoch, so that cursors from before are refused. For after a restore: what a spool
    /// says later of that loss is no news. The epoch changes once, also if the store itself notices the loss
    /// in the same call.
    async fn epoch_rotate(&self) -> Result<Head, Error>;

    /// Gives the log a new epoch if it still has that of a place which it does not hold any more: the database
    /// went back in time under who knows that place. Otherwise changes nothing, since somebody else noticed
    /// before or nothing is lost. Returns the end of the log after it. In one transaction, so however many
    /// notice together, the epoch changes once.
    async fn epoch_leave(&self, lost: Cursor) -> Result<Head, Error>;

    /// The end of the log.
    async fn head(&self) -> Result<Head, Error>;

    /// Hints that another process has committed: the value changes. A hint may be late or lost, which costs
    /// time and nothing else, since whoever follows the log asks for [`PassStore::head`] now and then anyway.
    /// `None` if this store has no such hints.
    fn hints(&self) -> Option<tokio::sync::watch::Receiver<u64>> {
        None
    }

    /// About the log.
    async fn log_info(&self) -> Result<LogInfo, Error>;

    /// The end of the log and the books, by reading one row.
    async fn books(&self) -> Result<(Head, Books), Error> {
        let info = self.log_info().await?;
        Ok((info.head, info.books))
    }

    /// The connections that reads use; asks nobody.
    fn connections(&self) -> Connections {
        Connections::default()
    }

    /// [`Cursor::digest_of`] the event at a position; `None` if there is none. Position 0 gives 0.
    async fn digest_at(&self, position: Position) -> Result<Option<u64>, Error>;

    /// The position before the first event recorded at or after a time.
    async fn position_before_time(&self, record_time: Timestamp) -> Result<Position, Error>;

    /// Events in log order after a position: at most `rows_max`. Out-of-scope ones are left out of the rows,
    /// so [`Page::next`] (the position up to which rows were examined) moves even if the page is empty.
    async fn events_after(
        &self,
        scope: &Scope,
        after: Position,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Error>;

    /// One event.
    async fn event_find(&self, scope: &Scope, id: EventId) -> Result<Option<Arc<Event>>, Error>;

    /// Events of a parent, in log order after `from`, or descending before `from` (0 = from the end); at
    /// most `rows_max` rows are examined. A pass that is out of scope has none, however many there are.
    async fn events_list(
        &self,
        scope: &Scope,
        parent: &EventParent,
        descending: bool,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Error>;

    /// Passes by name, in the order asked for; `None` where there is none or it is out of scope.
    async fn passes_find(
        &self,
        scope: &Scope,
        keys: &[PassKey],
    ) -> Result<Vec<Option<PassRecord>>, Error>;

    /// Passes of a source, or all; at most `rows_max` rows are examined.
    async fn passes_list(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        order: PassOrder,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<PassRecord>, Error>;

    /// Passes by another name, source by source, in the order in which they were first seen: at most `rows_max`.
    async fn passes_lookup(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        key: &LookupKey,
        rows_max: u32,
    ) -> Result<Vec<PassRecord>, Error>;

    /// One delivery.
    async fn delivery_find(
        &self,
        scope: &Scope,
        id: DeliveryId,
        with_body: bool,
    ) -> Result<Option<DeliveryRecord>, Error>;

    /// Deliveries, newest first, before `from` (a number; 0 = from the end); only those in open quarantine
    /// if `quarantine_open`; at most `rows_max` rows are examined.
    async fn deliveries_list(
        &self,
        scope: &Scope,
        quarantine_open: bool,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<DeliveryRecord>, Error>;

    /// Finishes and closes all connections.
    async fn close(&self);
}
