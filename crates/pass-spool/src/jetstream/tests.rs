//! Tests of the JetStream spool, each over a server of its own.

mod belief;
mod faults;
mod retention;
mod rights;
mod tls;
mod turns;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use test_kit::{NatsSettings, TestNats, wait_for};

use super::JetStreamSpool;
use super::options::JetStreamOptions;
use crate::suite::{SpoolFixture, fresh_id};
use crate::{Sequence, Spool, SpoolHealth};

/// No wait may take longer.
const DEADLINE: Duration = Duration::from_secs(20);

struct Bench {
    nats: TestNats,
    options: JetStreamOptions,
}

impl Bench {
    async fn start() -> Self {
        Self::with(NatsSettings::default()).await
    }

    async fn with(settings: NatsSettings) -> Self {
        let nats = TestNats::start(settings).await.expect("server starts");
        let options = options_for(&nats, nats.url());
        Self { nats, options }
    }

    async fn open(&self) -> JetStreamSpool {
        JetStreamSpool::open(self.options.clone())
            .await
            .expect("spool opens")
    }

    /// Opens the spool and has the turn.
    async fn open_in_turn(&self) -> JetStreamSpool {
        let spool = self.open().await;
        in_turn(&spool).await;
        spool
    }
}

#[async_trait]
impl SpoolFixture for Bench {
    type Spool = JetStreamSpool;

    async fn open(&self) -> JetStreamSpool {
        Bench::open(self).await
    }

    fn record_bytes_max(&self) -> usize {
        self.options.record_bytes_max
    }
}

mod contract {
    crate::spool_suite!(super::Bench::start().await);
}

fn options_for(nats: &TestNats, url: String) -> JetStreamOptions {
    let mut options = JetStreamOptions::new(vec![url]);
    options.monitoring_urls = vec![nats.monitoring_url()];
    options.bytes_max = 256 << 20;
    options.record_bytes_max = 200_000;
    options
}

async fn in_turn(spool: &JetStreamSpool) {
    tokio::time::timeout(DEADLINE, spool.turn())
        .await
        .expect("turn in time")
        .expect("turn is given");
}

fn record(number: u64) -> Bytes {
    Bytes::from(format!(
        "record {number} {}",
        "z".repeat((number * 37 % 300) as usize)
    ))
}

async fn append(spool: &JetStreamSpool, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(
            spool.append(fresh_id(), record(number)).await,
            Ok(Sequence(number))
        );
    }
}

/// Leases up to and including `upto`, whose records must be the numbered ones.
async fn lease_numbers(spool: &JetStreamSpool, upto: u64) -> Vec<u64> {
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

/// The consumer that the spool reads with.
async fn consumer(spool: &JetStreamSpool) -> String {
    let reader = spool.reader.lock().await;
    reader.consumer().expect("there is a consumer").to_owned()
}

async fn wait_health(spool: &JetStreamSpool, wanted: &SpoolHealth) {
    let outcome = wait_for("the spool's health", DEADLINE, async || {
        match spool.status().health {
            health if health == *wanted => Ok(()),
            health => Err(format!("{health:?}")),
        }
    });
    outcome.await.expect("health changes");
}
