//! Tests of the embedded spool, on real files in directories of their own.

mod damage;
mod directory;
mod faults;
mod golden;
mod load;
mod retention;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use tempfile::TempDir;

use super::EmbeddedSpool;
use super::options::EmbeddedOptions;
use crate::suite::{SpoolFixture, fresh_id};
use crate::{Sequence, Spool, SpoolId};

/// No wait may take longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// A wall clock that stands still until told otherwise.
#[derive(Clone)]
struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(1_700_000_000)))
    }

    fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

struct Bench {
    temp: TempDir,
    clock: ManualClock,
    segment_bytes: u64,
    record_bytes_max: usize,
}

impl Bench {
    fn new() -> Self {
        Self::with_segments(64 << 10, 4096)
    }

    fn with_segments(segment_bytes: u64, record_bytes_max: usize) -> Self {
        let temp = tempfile::tempdir().expect("temporary directory");
        Self {
            temp,
            clock: ManualClock::new(),
            segment_bytes,
            record_bytes_max,
        }
    }

    fn dir(&self) -> PathBuf {
        self.temp.path().join("spool")
    }

    fn options(&self) -> EmbeddedOptions {
        self.options_at(&self.dir())
    }

    fn options_at(&self, dir: &Path) -> EmbeddedOptions {
        let clock = self.clock.clone();
        let mut options = EmbeddedOptions::new(dir);
        options.segment_bytes = self.segment_bytes;
        options.bytes_max = 1 << 30;
        options.record_bytes_max = self.record_bytes_max;
        options.clock = Arc::new(move || clock.now());
        options
    }

    fn open(&self) -> EmbeddedSpool {
        EmbeddedSpool::open(self.options()).expect("spool opens")
    }

    /// Copies the directory as a power cut or kill would leave it, to be opened while the original lives on.
    fn copy(&self, name: &str) -> PathBuf {
        let to = self.temp.path().join(name);
        dir_copy(&self.dir(), &to);
        to
    }
}

#[async_trait]
impl SpoolFixture for Bench {
    type Spool = EmbeddedSpool;

    async fn open(&self) -> EmbeddedSpool {
        Bench::open(self)
    }

    fn record_bytes_max(&self) -> usize {
        self.record_bytes_max
    }
}

mod contract_in_roomy_segments {
    crate::spool_suite!(super::Bench::with_segments(1 << 20, 200_000));
}

/// Segments so small that almost every group rolls.
mod contract_in_tiny_segments {
    crate::spool_suite!(super::Bench::with_segments(1200, 1000));
}

fn dir_copy(from: &Path, to: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    let _ = fs::remove_dir_all(to);
    fs::DirBuilder::new()
        .mode(0o700)
        .create(to)
        .expect("directory");
    for entry in fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        match fs::copy(entry.path(), to.join(entry.file_name())) {
            // The keeper has just renamed it; without a record in it, it might as well not be there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            copied => drop(copied.expect("copy")),
        }
    }
}

fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    found.sort();
    found
}

fn record(number: u64) -> Bytes {
    Bytes::from(format!(
        "record {number} {}",
        "y".repeat((number * 37 % 300) as usize)
    ))
}

/// Appends one after the other, so that each record is a group of its own.
async fn append(spool: &EmbeddedSpool, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(
            spool.append(fresh_id(), record(number)).await,
            Ok(Sequence(number))
        );
    }
}

async fn lease_numbers(spool: &EmbeddedSpool, upto: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last().is_none_or(|last| *last < upto) {
        let lease = tokio::time::timeout(DEADLINE, spool.lease(1000, 1 << 20));
        for leased in lease.await.expect("lease in time").expect("lease succeeds") {
            assert_eq!(leased.record, record(leased.sequence.0));
            numbers.push(leased.sequence.0);
        }
    }
    numbers
}

/// Opens a directory and checks that it holds exactly the records 1 to `last`.
async fn assert_holds(options: EmbeddedOptions, id: SpoolId, last: u64) {
    let spool = EmbeddedSpool::open(options).expect("spool opens");
    assert_eq!(
        (spool.id(), spool.status().last_durable),
        (id, Sequence(last))
    );
    spool.rewind(Sequence(0)).await.expect("rewind succeeds");
    if last > 0 {
        assert_eq!(
            lease_numbers(&spool, last).await,
            (1..=last).collect::<Vec<_>>()
        );
    }
    spool.close().await;
}

async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < DEADLINE,
            "{what} did not happen within {DEADLINE:?}"
        );
        // The condition is another thread's work; there is nothing to wait on but time.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
