//! What is kept, what is dropped, and the size limit.

use std::fs;
use std::time::Duration;

use super::{Bench, append, files, lease_numbers, record, wait_for};
use crate::suite::fresh_id;
use crate::{AppendError, EmbeddedSpool, RewindOutcome, Sequence, Spool, SpoolHealth};

#[tokio::test]
async fn settled_segments_are_dropped_by_age_and_the_missing_range_is_named() {
    let bench = Bench::with_segments(1024, 400);
    let spool = bench.open();
    append(&spool, 1..=30).await;
    lease_numbers(&spool, 30).await;
    spool.settle(Sequence(20)).await.expect("settle succeeds");
    bench.clock.advance(Duration::from_secs(23 * 3600));
    append(&spool, 31..=31).await;
    assert_eq!(spool.status().oldest_kept, Sequence(1), "not yet");
    bench.clock.advance(Duration::from_secs(2 * 3600));
    wait_for("retention", || spool.status().oldest_kept > Sequence(1)).await;

    let oldest = spool.status().oldest_kept.0;
    assert!(
        (15..=21).contains(&oldest),
        "dropped the settled segments and no others: {oldest}"
    );
    let outcome = spool.rewind(Sequence(3)).await.expect("rewind succeeds");
    assert_eq!(
        outcome,
        RewindOutcome {
            missing: Some(4..=oldest - 1)
        }
    );
    assert_eq!(
        lease_numbers(&spool, 31).await,
        (oldest..=31).collect::<Vec<_>>()
    );
    let id = spool.id();
    spool.close().await;
    drop(spool);

    let spool = bench.open();
    assert_eq!((spool.id(), spool.status().oldest_kept.0), (id, oldest));
    assert_eq!(spool.append(fresh_id(), record(32)).await, Ok(Sequence(32)));
    spool.close().await;
}

#[tokio::test]
async fn settled_segments_are_dropped_by_size() {
    let bench = Bench::with_segments(1024, 400);
    let mut options = bench.options();
    options.bytes_max = 64 << 10;
    options.retain_bytes = Some(4096);
    let spool = EmbeddedSpool::open(options).expect("opens");
    for round in 0..10_u64 {
        append(&spool, round * 20 + 1..=round * 20 + 20).await;
        lease_numbers(&spool, round * 20 + 20).await;
        spool
            .settle(Sequence(round * 20 + 20))
            .await
            .expect("settle succeeds");
        // Retained, active and prepared segments.
        wait_for("retention", || spool.status().disk_bytes <= 4096 + 2 * 1024).await;
    }
    let on_disk: u64 = files(&bench.dir(), ".log")
        .iter()
        .map(|path| fs::metadata(path).expect("file").len())
        .sum();
    assert!(on_disk <= 4096 + 3 * 1024, "{on_disk}");
    spool.close().await;
}

#[tokio::test]
async fn nothing_is_dropped_before_the_peer_has_spoken() {
    let bench = Bench::with_segments(1024, 400);
    let spool = bench.open();
    append(&spool, 1..=30).await;
    lease_numbers(&spool, 30).await;
    spool.settle(Sequence(30)).await.expect("settle succeeds");
    spool.close().await;
    drop(spool);
    bench.clock.advance(Duration::from_secs(48 * 3600));
    let spool = bench.open();
    // Longer than a round of the keeper: it must have had its chance.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let outcome = spool.rewind(Sequence(7)).await.expect("rewind succeeds");
    assert_eq!(
        outcome.missing, None,
        "the peer was restored, and gets its records"
    );
    assert_eq!(
        lease_numbers(&spool, 30).await,
        (8..=30).collect::<Vec<_>>()
    );
    spool.close().await;
}

#[tokio::test]
async fn what_a_peer_lost_is_kept_until_it_is_settled_again() {
    let bench = Bench::with_segments(1024, 400);
    let spool = bench.open();
    append(&spool, 1..=30).await;
    lease_numbers(&spool, 30).await;
    spool.settle(Sequence(30)).await.expect("settle succeeds");
    spool.rewind(Sequence(10)).await.expect("rewind succeeds");
    bench.clock.advance(Duration::from_secs(48 * 3600));
    wait_for("retention", || spool.status().oldest_kept > Sequence(1)).await;
    assert!(spool.status().oldest_kept <= Sequence(11));
    assert_eq!(
        lease_numbers(&spool, 30).await,
        (11..=30).collect::<Vec<_>>()
    );
    spool.settle(Sequence(30)).await.expect("settle succeeds");
    wait_for("retention", || spool.status().oldest_kept > Sequence(11)).await;
    spool.close().await;
}

#[tokio::test]
async fn sequences_go_on_after_everything_was_settled_and_dropped() {
    let bench = Bench::with_segments(1024, 400);
    let mut last = 0;
    for _ in 0..4 {
        let spool = bench.open();
        append(&spool, last + 1..=last + 12).await;
        last += 12;
        lease_numbers(&spool, last).await;
        spool.settle(Sequence(last)).await.expect("settle succeeds");
        bench.clock.advance(Duration::from_secs(48 * 3600));
        wait_for("retention", || spool.status().oldest_kept.0 + 12 > last).await;
        spool.close().await;
    }
    assert_eq!(bench.open().status().last_durable, Sequence(last));
}

#[tokio::test]
async fn a_full_spool_refuses_keeps_giving_and_recovers_by_itself() {
    let bench = Bench::with_segments(1024, 400);
    let mut options = bench.options();
    options.bytes_max = 8 * 1024;
    options.retain_bytes = Some(0);
    let spool = EmbeddedSpool::open(options).expect("opens");
    let mut last = 0;
    let refused = loop {
        match spool.append(fresh_id(), record(last + 1)).await {
            Ok(sequence) => last = sequence.0,
            Err(error) => break error,
        }
        assert!(last < 1000, "never full");
    };
    assert_eq!(refused, AppendError::Full);
    let status = spool.status();
    assert_eq!(status.health, SpoolHealth::Full);
    assert!(status.disk_bytes <= status.disk_bytes_max);
    assert!(status.unsettled_bytes > 0);
    assert_eq!(
        lease_numbers(&spool, last).await,
        (1..=last).collect::<Vec<_>>()
    );

    spool.settle(Sequence(last)).await.expect("settle succeeds");
    wait_for("room", || spool.status().health == SpoolHealth::Ok).await;
    assert_eq!(
        spool.append(fresh_id(), record(last + 1)).await,
        Ok(Sequence(last + 1)),
        "no sequence was wasted"
    );
    spool.close().await;
}

#[tokio::test]
async fn the_age_of_the_oldest_unsettled_record_is_reported() {
    let bench = Bench::new();
    let spool = bench.open();
    append(&spool, 1..=2).await;
    bench.clock.advance(Duration::from_secs(60));
    append(&spool, 3..=3).await;
    bench.clock.advance(Duration::from_secs(5));
    assert_eq!(
        spool.status().oldest_unsettled_age,
        Some(Duration::from_secs(65))
    );
    spool.settle(Sequence(2)).await.expect("settle succeeds");
    assert_eq!(
        spool.status().oldest_unsettled_age,
        Some(Duration::from_secs(5))
    );
    let killed = bench.copy("killed");
    spool.close().await;
    let spool = EmbeddedSpool::open(bench.options_at(&killed)).expect("opens");
    assert_eq!(
        spool.status().oldest_unsettled_age,
        Some(Duration::from_secs(65)),
        "ages outlive the process"
    );
    spool.close().await;
}
