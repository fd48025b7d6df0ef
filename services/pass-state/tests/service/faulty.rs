//! The real store with faults on cue, for what a healthy database never does.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use pass_domain::Timestamp;
use pass_domain::cursor::Cursor;
use pass_domain::delivery::{Decoded, Delivery};
use pass_domain::event::{Event, Position};
use pass_domain::ids::{DeliveryId, EventId, PassKey, SourceUid};
use pass_store::{
    AppendPart, Appended, DeliveryRecord, Error, EventParent, Head, LogInfo, LookupKey, Page,
    PassOrder, PassRecord, PassStore, Replayed, Scope, SpoolHello, SpoolOpened, SqlStore,
    SqliteOptions,
};
use tokio::sync::{Semaphore, watch};

pub(crate) struct Faulty {
    inner: RwLock<Arc<SqlStore>>,
    /// Appends that fail for the moment.
    pub(crate) unavailable: AtomicUsize,
    /// Appends that are done and then reported as unknown.
    pub(crate) unknown: AtomicUsize,
    /// Appends that fail since somebody set the database up wrongly.
    pub(crate) unfit: AtomicUsize,
    /// Deliveries whose facts are refused for ever.
    pub(crate) refused: Mutex<HashSet<DeliveryId>>,
    /// Deliveries that are refused even without facts.
    pub(crate) cursed: Mutex<HashSet<DeliveryId>>,
    /// The head cannot be read.
    pub(crate) blind: AtomicBool,
    /// Appends wait for a permit each; start it full.
    pub(crate) gate: Semaphore,
    /// Pages of events wait for a permit each; start it full.
    pub(crate) page_gate: Semaphore,
    /// Appends so far.
    pub(crate) appends: AtomicUsize,
    /// Pages of events read so far.
    pub(crate) pages: AtomicUsize,
    /// The next append is our bug.
    pub(crate) panics: AtomicBool,
    /// Unary reads of passes never end.
    pub(crate) stuck: AtomicBool,
    /// Hints of other processes' commits.
    pub(crate) hints: watch::Sender<u64>,
    /// Epochs that were left since a place was lost.
    pub(crate) rotations: AtomicUsize,
}

impl Faulty {
    pub(crate) async fn new(dir: &tempfile::TempDir) -> Arc<Self> {
        let options = SqliteOptions::new(dir.path().join("faulty.db"));
        Arc::new(Self {
            inner: RwLock::new(Arc::new(SqlStore::open(options).await.unwrap())),
            unavailable: AtomicUsize::new(0),
            unknown: AtomicUsize::new(0),
            unfit: AtomicUsize::new(0),
            refused: Mutex::default(),
            cursed: Mutex::default(),
            blind: AtomicBool::new(false),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            page_gate: Semaphore::new(Semaphore::MAX_PERMITS),
            appends: AtomicUsize::new(0),
            pages: AtomicUsize::new(0),
            panics: AtomicBool::new(false),
            stuck: AtomicBool::new(false),
            hints: watch::Sender::new(0),
            rotations: AtomicUsize::new(0),
        })
    }

    /// The database that is used at the moment.
    pub(crate) fn inner(&self) -> Arc<SqlStore> {
        Arc::clone(&self.inner.read().unwrap())
    }

    /// Goes on with another database, as a failover does.
    pub(crate) fn fail_over(&self, to: Arc<SqlStore>) {
        *self.inner.write().unwrap() = to;
    }
}

fn take(count: &AtomicUsize) -> bool {
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        })
        .is_ok()
}

#[async_trait::async_trait]
impl PassStore for Faulty {
    async fn spool_open(&self, hello: &SpoolHello) -> Result<SpoolOpened, Error> {
        self.inner().spool_open(hello).await
    }

    async fn append(&self, parts: &[AppendPart], now: Timestamp) -> Result<Appended, Error> {
        self.appends.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.unwrap().forget();
        assert!(!self.panics.load(Ordering::SeqCst), "on cue");
        if take(&self.unavailable) {
            return Err(Error::Unavailable("on cue".into()));
        }
        if take(&self.unfit) {
            return Err(Error::Unfit("on cue".into()));
        }
        let refused = |delivery: &Delivery| {
            let decoded = !matches!(delivery.decoded, Decoded::Undecodable(_));
            decoded && self.refused.lock().unwrap().contains(&delivery.id)
                || self.cursed.lock().unwrap().contains(&delivery.id)
        };
        let mut deliveries = parts.iter().flat_map(|part| &part.deliveries);
        if deliveries.any(|(_, delivery)| refused(delivery)) {
            return Err(Error::Refused("on cue".into()));
        }
        let appended = self.inner().append(parts, now).await?;
        if take(&self.unknown) {
            return Err(Error::OutcomeUnknown("on cue".into()));
        }
        Ok(appended)
    }

    async fn delivery_replay(
        &self,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Result<Replayed, Error> {
        self.inner().delivery_replay(delivery, now).await
    }

    async fn delivery_discard(
        &self,
        id: DeliveryId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Option<DeliveryRecord>, Error> {
        self.inner().delivery_discard(id, reason, now).await
    }

    fn hints(&self) -> Option<watch::Receiver<u64>> {
        Some(self.hints.subscribe())
    }

    async fn epoch_rotate(&self) -> Result<Head, Error> {
        self.inner().epoch_rotate().await
    }

    async fn epoch_leave(&self, lost: Cursor) -> Result<Head, Error> {
        let before = self.inner().head().await?;
        let after = self.inner().epoch_leave(lost).await?;
        if after.epoch != before.epoch {
            self.rotations.fetch_add(1, Ordering::SeqCst);
        }
        Ok(after)
    }

    async fn head(&self) -> Result<Head, Error> {
        if self.blind.load(Ordering::SeqCst) {
            return Err(Error::Unavailable("on cue".into()));
        }
        self.inner().head().await
    }

    async fn log_info(&self) -> Result<LogInfo, Error> {
        self.inner().log_info().await
    }

    async fn digest_at(&self, position: Position) -> Result<Option<u64>, Error> {
        self.inner().digest_at(position).await
    }

    async fn position_before_time(&self, record_time: Timestamp) -> Result<Position, Error> {
        self.inner().position_before_time(record_time).await
    }

    async fn events_after(
        &self,
        scope: &Scope,
        after: Position,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Error> {
        self.pages.fetch_add(1, Ordering::SeqCst);
        self.page_gate.acquire().await.unwrap().forget();
        self.inner().events_after(scope, after, rows_max).await
    }

    async fn event_find(&self, scope: &Scope, id: EventId) -> Result<Option<Arc<Event>>, Error> {
        self.inner().event_find(scope, id).await
    }

    async fn events_list(
        &self,
        scope: &Scope,
        parent: &EventParent,
        descending: bool,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Error> {
        let inner = self.inner();
        let listing = inner.events_list(scope, parent, descending, from, rows_max);
        listing.await
    }

    async fn passes_find(
        &self,
        scope: &Scope,
        keys: &[PassKey],
    ) -> Result<Vec<Option<PassRecord>>, Error> {
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.inner().passes_find(scope, keys).await
    }

    async fn passes_list(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        order: PassOrder,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<PassRecord>, Error> {
        let inner = self.inner();
        let listing = inner.passes_list(scope, source, order, from, rows_max);
        listing.await
    }

    async fn passes_lookup(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        key: &LookupKey,
        rows_max: u32,
    ) -> Result<Vec<PassRecord>, Error> {
        self.inner()
            .passes_lookup(scope, source, key, rows_max)
            .await
    }

    async fn delivery_find(
        &self,
        scope: &Scope,
        id: DeliveryId,
        with_body: bool,
    ) -> Result<Option<DeliveryRecord>, Error> {
        self.inner().delivery_find(scope, id, with_body).await
    }

    async fn deliveries_list(
        &self,
        scope: &Scope,
        quarantine_open: bool,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<DeliveryRecord>, Error> {
        let inner = self.inner();
        let listing = inner.deliveries_list(scope, quarantine_open, from, rows_max);
        listing.await
    }

    async fn close(&self) {
        self.inner().close().await;
    }
}
