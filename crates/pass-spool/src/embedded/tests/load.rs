//! Sanity of throughput and of recovery time. Bounds are wide: these are no benchmarks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Bench;
use crate::{Sequence, Spool};

/// Sanity, not a benchmark: 64 appenders, 100,000 records of 1.3 KB, while one peer drains.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_records_pass_through_in_order() {
    const EACH: u64 = 1563;
    let bench = Bench::with_segments(8 << 20, 4096);
    let spool = Arc::new(bench.open());
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    let payload = bytes::Bytes::from(vec![b'p'; 1300]);
    for _ in 0..64 {
        let (spool, payload) = (spool.clone(), payload.clone());
        tasks.spawn(async move {
            for _ in 0..EACH {
                spool
                    .append(crate::suite::fresh_id(), payload.clone())
                    .await
                    .expect("append succeeds");
            }
        });
    }
    let mut next = 1;
    while next <= 64 * EACH {
        let leased = spool.lease(500, 1 << 20).await.expect("lease succeeds");
        for leased in &leased {
            assert_eq!((leased.sequence.0, leased.record.len()), (next, 1300));
            next += 1;
        }
        spool
            .settle(Sequence(next - 1))
            .await
            .expect("settle succeeds");
    }
    let took = began.elapsed();
    println!(
        "{} records in {took:?}: {:.0} a second",
        next - 1,
        (next - 1) as f64 / took.as_secs_f64()
    );
    while let Some(task) = tasks.join_next().await {
        task.expect("no panic");
    }
    assert!(took < Duration::from_secs(120), "{took:?}");
    spool.close().await;
}

/// The bound of recovery: it reads what is unsettled once, and writes one group. 256 MiB here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_backlog_is_opened_within_its_bound() {
    const RECORDS: u64 = 64 * 3200;
    let bench = Bench::with_segments(64 << 20, 4096);
    let spool = Arc::new(bench.open());
    let mut tasks = tokio::task::JoinSet::new();
    let payload = bytes::Bytes::from(vec![b'p'; 1300]);
    for _ in 0..64 {
        let (spool, payload) = (spool.clone(), payload.clone());
        tasks.spawn(async move {
            for _ in 0..RECORDS / 64 {
                spool
                    .append(crate::suite::fresh_id(), payload.clone())
                    .await
                    .expect("append succeeds");
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no panic");
    }
    let bytes = spool.status().unsettled_bytes;
    spool.close().await;
    drop(spool);
    let began = Instant::now();
    let spool = bench.open();
    let took = began.elapsed();
    println!("opened {} MiB in {took:?}", bytes >> 20);
    assert!(
        bytes > 250 << 20 && took < Duration::from_millis(2500),
        "{bytes} bytes in {took:?}"
    );
    assert_eq!(spool.status().last_durable, Sequence(RECORDS));
    spool.close().await;
}
