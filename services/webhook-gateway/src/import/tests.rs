//! Imports between real embedded spools. The way to JetStream is tested with the service, over a real server.

use std::sync::Arc;

use bytes::Bytes;
use pass_proto::v1;
use service_kit::config::ByteSize;
use tempfile::TempDir;

use super::*;
use crate::testing::{self, TestClock};

struct Rig {
    dir: TempDir,
    config: Config,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config {
            http: testing::http(),
            ..Config::default()
        };
        config.spool.segment_bytes = ByteSize::from_kib(64);
        config.spool.bytes_max = ByteSize::from_mib(1);
        Self { dir, config }
    }

    fn aside(&self) -> PathBuf {
        self.dir.path().join("aside")
    }

    fn dependencies(&self) -> Dependencies {
        Dependencies {
            clock: Arc::new(TestClock::new()),
            env: Vec::new(),
            data_dir: self.dir.path().join("data"),
            config_from: None,
        }
    }

    async fn import(&self, dir: &Path) -> Result<Imported, ImportError> {
        spool_import(&self.config, self.dependencies(), dir).await
    }

    /// Makes a spool of other settings with these records, the first `settled` of them settled.
    async fn other(&self, records: &[Bytes], settled: u64) {
        let mut options = EmbeddedOptions::new(self.aside());
        options.segment_bytes = 128 << 10;
        options.bytes_max = 8 * options.segment_bytes;
        options.record_bytes_max = 100_000;
        let spool = EmbeddedSpool::open(options).unwrap();
        for record in records {
            spool
                .append(RecordId([0; 16]), record.clone())
                .await
                .unwrap();
        }
        spool.settle(Sequence(settled)).await.unwrap();
        spool.close().await;
    }

    /// The numbers of the records that the configured spool holds.
    async fn content(&self) -> Vec<u8> {
        let spool = backend::open(
            &self.config,
            &[],
            &self.dependencies().data_dir,
            &self.dependencies().clock,
            Arc::new(|_| {}),
        )
        .await
        .unwrap();
        let last = spool.status().last_durable.0;
        let mut records = Vec::new();
        while (records.len() as u64) < last {
            let leased = spool.lease(1_000, 1 << 20).await.unwrap();
            records.extend(leased.into_iter().map(|leased| number(&leased.record)));
        }
        spool.close().await;
        records
    }
}

fn record(number: u8) -> Bytes {
    record::encode(&v1::IngestDelivery {
        id: vec![number; 16],
        source: "plain".into(),
        body: Bytes::from(vec![b'x'; 1_000]),
        ..Default::default()
    })
}

/// The number of a record; 0 for what is none.
fn number(record: &Bytes) -> u8 {
    record::decode(record.clone()).map_or(0, |delivery| delivery.id[0])
}

fn records(numbers: std::ops::RangeInclusive<u8>) -> Vec<Bytes> {
    numbers.map(record).collect()
}

#[tokio::test]
async fn everything_that_is_kept_is_imported_in_order_settled_or_not_and_as_often_as_asked() {
    let rig = Rig::new();
    let all: Vec<u8> = (1..=200).collect();
    rig.other(&records(1..=200), 150).await;
    let imported = rig.import(&rig.aside()).await.unwrap();
    assert_eq!(
        (imported.records, imported.unreadable, imported.missing),
        (200, 0, 0)
    );
    assert_eq!(imported.dropped, None);
    assert_eq!(rig.content().await, all);
    // The other spool is as it was.
    let again = rig.import(&rig.aside()).await.unwrap();
    assert_eq!(again, imported);
    assert_eq!(rig.content().await, [all.clone(), all].concat());
}

#[tokio::test]
async fn what_this_release_cannot_read_is_imported_and_told() {
    let rig = Rig::new();
    let strange = Bytes::from_static(b"\x09from another release");
    rig.other(&[record(1), strange, record(2)], 0).await;
    let imported = rig.import(&rig.aside()).await.unwrap();
    assert_eq!((imported.records, imported.unreadable), (3, 1));
    assert!(
        imported.to_string().contains("1 of them can't be read"),
        "{imported}"
    );
    assert_eq!(rig.content().await, [1, 0, 2]);
}

#[test]
fn records_without_an_id_get_one_of_their_own_that_is_the_same_each_time() {
    let [one, other] = [SpoolId::from_bytes([7; 16]), SpoolId::from_bytes([8; 16])];
    let ids = std::collections::BTreeSet::from([
        id_of_place(one, 1),
        id_of_place(one, 2),
        id_of_place(other, 1),
    ]);
    assert_eq!(ids.len(), 3);
    assert_eq!(id_of_place(one, 1), id_of_place(one, 1));
}

#[tokio::test]
async fn a_directory_without_a_spool_is_refused_and_stays_empty() {
    let rig = Rig::new();
    for dir in [rig.dir.path().join("nothing"), rig.dir.path().to_owned()] {
        let error = rig.import(&dir).await.unwrap_err();
        assert!(error.is_usage(), "{error}");
        assert!(error.to_string().contains("is no spool"), "{error}");
    }
    assert_eq!(std::fs::read_dir(rig.dir.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn the_configured_spool_is_not_imported_into_itself_by_any_name() {
    let rig = Rig::new();
    assert_eq!(rig.content().await, Vec::<u8>::new());
    let own = rig.config.spool_dir(&rig.dependencies().data_dir);
    let link = rig.dir.path().join("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    for dir in [own.clone(), own.join("../spool"), link] {
        let error = rig.import(&dir).await.unwrap_err();
        assert!(
            error.is_usage() && error.to_string().contains("move it aside"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_configured_spool_that_is_in_use_is_refused_with_what_to_do() {
    let rig = Rig::new();
    rig.other(&records(1..=3), 0).await;
    let dependencies = rig.dependencies();
    let running = backend::open(
        &rig.config,
        &[],
        &dependencies.data_dir,
        &dependencies.clock,
        Arc::new(|_| {}),
    )
    .await
    .unwrap();
    let error = rig.import(&rig.aside()).await.unwrap_err();
    assert!(!error.is_usage());
    assert!(error.to_string().contains("stop the gateway"), "{error}");
    assert_eq!(running.status().last_durable, Sequence(0));
    running.close().await;
}

#[tokio::test]
async fn a_spool_that_is_full_ends_the_import_with_the_record_it_did_not_take() {
    let mut rig = Rig::new();
    rig.config.spool.bytes_max = ByteSize::from_kib(256);
    rig.config.spool.retain_bytes = Some(ByteSize::from_bytes(0));
    rig.other(&records(1..=200), 0).await;
    rig.other(&records(1..=200), 0).await;
    let error = rig.import(&rig.aside()).await.unwrap_err();
    let ImportError::Append { sequence, source } = error else {
        panic!("{error}")
    };
    assert_eq!(source, AppendError::Full);
    let content = rig.content().await;
    assert!(sequence > 1 && content.len() as u64 >= sequence - 1);
    // What is there is the beginning, whole.
    assert_eq!(content[..100], (1..=100).collect::<Vec<u8>>());
}
