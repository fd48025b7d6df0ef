//! What the tests of this crate share: sources, clocks, spools.

pub(crate) mod pass_state;
pub(crate) mod shared;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use pass_sources::{AuthConfig, SecretConfig, SourceConfig, UndecodablePolicy};
use pass_spool::{
    AppendError, EmbeddedOptions, EmbeddedSpool, LeaseError, Leased, RecordId, RewindError,
    RewindOutcome, Sequence, SettleError, Spool, SpoolHealth, SpoolId, SpoolStatus,
};
use service_kit::clock::Clock;
use service_kit::config::Origin;
use tokio::sync::Semaphore;

use crate::books::Books;
use crate::config::{Ack, AckMode, FailedAuth, Http};
use crate::policy::{Live, Policy};
use crate::record::record_bytes_max;

/// The secret of every source here.
pub(crate) const SECRET: &str = "0123456789abcdef-canary";
/// The largest body here, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 2_048;
/// How long a test waits for what has to come.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A clock that stands at 2026-03-01T00:00:00Z until it is set; it panics when set to a negative time.
#[derive(Clone)]
pub(crate) struct TestClock(Arc<AtomicI64>);

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicI64::new(1_772_323_200)))
    }

    pub(crate) fn set_seconds(&self, seconds: i64) {
        self.0.store(seconds, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let seconds = self.0.load(Ordering::Relaxed);
        assert!(seconds >= 0, "a planted panic");
        Timestamp::from_second(seconds).unwrap()
    }
}

fn source(name: &str, vendor: &str, scheme: &str) -> SourceConfig {
    SourceConfig {
        name: name.to_owned(),
        vendor: vendor.to_owned(),
        organization: "acme".to_owned(),
        auth: AuthConfig {
            scheme: scheme.to_owned(),
            secrets: vec![SecretConfig {
                id: "k1".to_owned(),
                value: Some(SECRET.to_owned()),
                ..SecretConfig::default()
            }],
            ..AuthConfig::default()
        },
        ..SourceConfig::default()
    }
}

/// `plain` (standard), `strict` (standard, rejects), `kit` (passkit), `url` (secret in the URL), `applied`.
pub(crate) fn source_configs() -> Vec<SourceConfig> {
    vec![
        source("plain", "standard", "api_key"),
        SourceConfig {
            undecodable: UndecodablePolicy::Reject,
            ..source("strict", "standard", "api_key")
        },
        source("kit", "passkit", "api_key"),
        source("url", "standard", "url_secret"),
        source("applied", "standard", "api_key"),
    ]
}

pub(crate) fn ack() -> Ack {
    Ack {
        sources: [("applied".to_owned(), AckMode::Applied)].into(),
        ..Ack::default()
    }
}

/// A policy of all sources in force, and its books.
pub(crate) fn live(http: &Http, ack: &Ack) -> (Arc<Live>, Arc<Books>) {
    live_of(&source_configs(), http, ack)
}

/// The same of other sources.
pub(crate) fn live_of(sources: &[SourceConfig], http: &Http, ack: &Ack) -> (Arc<Live>, Arc<Books>) {
    let policy = Policy::build(sources, ack, http, &[], &Origin::Default, None)
        .unwrap_or_else(|faults| panic!("{faults}"));
    let books = Arc::new(Books::new());
    let live = Live::new(policy, Arc::clone(&books)).unwrap();
    (Arc::new(live), books)
}

/// Failing credentials are answered at once: most tests are about something else.
pub(crate) fn http() -> Http {
    Http {
        failed_auth: FailedAuth {
            client_per_sec: 0,
            source_per_sec: 0,
            ..FailedAuth::default()
        },
        body_bytes_max: service_kit::config::ByteSize::from_bytes(BODY_BYTES_MAX as u64),
        ..Http::default()
    }
}

/// The smallest spool that takes bodies of `BODY_BYTES_MAX`.
pub(crate) fn spool_options(dir: &Path) -> EmbeddedOptions {
    let mut options = EmbeddedOptions::new(dir.join("spool"));
    options.record_bytes_max = record_bytes_max(BODY_BYTES_MAX);
    options.segment_bytes = 64 << 10;
    options.bytes_max = 4 * options.segment_bytes;
    options.retain_bytes = Some(0);
    options
}

pub(crate) fn open_spool(dir: &Path) -> Arc<dyn Spool> {
    Arc::new(EmbeddedSpool::open(spool_options(dir)).unwrap())
}

/// A spool whose appends end as told, for what a real disk does only when it breaks.
pub(crate) struct StubSpool {
    pub(crate) append: Result<Sequence, AppendError>,
    /// Appends wait for a permit each.
    pub(crate) gate: Semaphore,
    pub(crate) health: SpoolHealth,
    pub(crate) unproven: Option<Arc<str>>,
    pub(crate) trouble: Option<Arc<str>>,
}

impl StubSpool {
    pub(crate) fn new(append: Result<Sequence, AppendError>) -> Self {
        Self {
            append,
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
            health: SpoolHealth::Ok,
            unproven: None,
            trouble: None,
        }
    }
}

#[async_trait]
impl Spool for StubSpool {
    fn id(&self) -> SpoolId {
        SpoolId::from_bytes([7; 16])
    }

    async fn append(&self, _id: RecordId, _record: Bytes) -> Result<Sequence, AppendError> {
        self.gate.acquire().await.unwrap().forget();
        self.append.clone()
    }

    async fn lease(
        &self,
        _records_max: usize,
        _bytes_max: usize,
    ) -> Result<Vec<Leased>, LeaseError> {
        std::future::pending().await
    }

    async fn settle(&self, _through: Sequence) -> Result<(), SettleError> {
        Ok(())
    }

    async fn rewind(&self, _after: Sequence) -> Result<RewindOutcome, RewindError> {
        Ok(RewindOutcome::default())
    }

    fn status(&self) -> SpoolStatus {
        SpoolStatus {
            last_durable: Sequence(0),
            settled: Sequence(0),
            oldest_kept: Sequence(1),
            unsettled_records: 0,
            unsettled_bytes: 0,
            disk_bytes: 0,
            disk_bytes_max: 0,
            oldest_unsettled_age: None,
            sync_last: Duration::ZERO,
            health: self.health.clone(),
            unproven: self.unproven.clone(),
            trouble: self.trouble.clone(),
        }
    }

    async fn close(&self) {}
}
