//! What is dropped, and what never is.

use super::*;
use crate::suite::fresh_id;
use crate::{AppendError, LeaseError, SpoolHealth};

/// The system's clock and a number of hours.
#[expect(
    clippy::disallowed_methods,
    reason = "the server's own clock dates records; the test moves ahead of it"
)]
fn hours_ahead(hours: Arc<AtomicU64>) -> crate::WallClock {
    Arc::new(move || SystemTime::now() + Duration::from_secs(hours.load(Ordering::Relaxed) * 3600))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settled_records_are_dropped_by_age_and_unsettled_ones_never() {
    let mut bench = Bench::start().await;
    let hours = Arc::new(AtomicU64::new(0));
    bench.options.clock = hours_ahead(hours.clone());
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=20).await;
    lease_numbers(&spool, 20).await;
    spool.settle(Sequence(12)).await.expect("settle succeeds");
    hours.store(23, Ordering::Relaxed);
    assert_eq!(
        spool.retention.sweep().await,
        Ok(0),
        "dropped before its age"
    );
    hours.store(25, Ordering::Relaxed);
    assert_eq!(spool.retention.sweep().await, Ok(12));
    assert_eq!(
        spool.retention.sweep().await,
        Ok(0),
        "dropped what is not settled"
    );
    let status = spool.status();
    assert_eq!(
        (status.oldest_kept, status.unsettled_records),
        (Sequence(13), 8)
    );
    let outcome = spool.rewind(Sequence(3)).await.expect("rewind succeeds");
    assert_eq!(outcome.missing, Some(4..=12));
    assert_eq!(
        lease_numbers(&spool, 20).await,
        (13..=20).collect::<Vec<_>>()
    );
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_records_older_than_the_age_are_dropped() {
    let mut bench = Bench::start().await;
    bench.options.retain_age = Duration::from_millis(1500);
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=50).await;
    // The server dates records by its own clock, so the age has to pass.
    tokio::time::sleep(Duration::from_millis(1600)).await;
    append(&spool, 51..=77).await;
    spool.settle(Sequence(70)).await.expect("settle succeeds");
    assert_eq!(spool.retention.sweep().await, Ok(50));
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settled_records_are_dropped_beyond_their_bytes() {
    let mut bench = Bench::start().await;
    bench.options.retain_bytes = Some(20_000);
    let spool = bench.open_in_turn().await;
    for _ in 0..100 {
        spool
            .append(fresh_id(), Bytes::from(vec![1; 1000]))
            .await
            .expect("append succeeds");
    }
    spool.settle(Sequence(90)).await.expect("settle succeeds");
    let through = spool.retention.sweep().await.expect("sweep succeeds");
    assert!((70..=75).contains(&through), "dropped through {through}");
    assert_eq!(
        spool
            .rewind(Sequence(0))
            .await
            .expect("rewind succeeds")
            .missing,
        Some(1..=through)
    );
    assert_eq!(
        spool.status().settled,
        Sequence(through),
        "the peer may have lost what is kept"
    );
    assert_eq!(spool.retention.sweep().await, Ok(0));
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_dropped_until_the_other_side_was_heard_in_this_turn() {
    let mut bench = Bench::start().await;
    bench.options.clock = hours_ahead(Arc::new(AtomicU64::new(48)));
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=10).await;
    spool.settle(Sequence(10)).await.expect("settle succeeds");
    spool.close().await;
    let spool = bench.open().await;
    assert_eq!(spool.status().settled, Sequence(10));
    assert_eq!(
        spool.retention.sweep().await,
        Ok(0),
        "dropped without the turn"
    );
    in_turn(&spool).await;
    assert_eq!(
        spool.retention.sweep().await,
        Ok(0),
        "dropped what the other side may have lost"
    );
    spool.rewind(Sequence(4)).await.expect("rewind succeeds");
    assert_eq!(
        spool.retention.sweep().await,
        Ok(0),
        "dropped before it is known that the other side means this spool"
    );
    spool.settle(Sequence(4)).await.expect("settle succeeds");
    assert_eq!(spool.retention.sweep().await, Ok(4));
    assert_eq!(lease_numbers(&spool, 10).await, [5, 6, 7, 8, 9, 10]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_stream_refuses_records_until_settled_ones_make_room() {
    let mut bench = Bench::start().await;
    bench.options.bytes_max = 1 << 20;
    let spool = bench.open_in_turn().await;
    let large = Bytes::from(vec![3; 100_000]);
    let mut stored = 0;
    loop {
        match spool.append(fresh_id(), large.clone()).await {
            Ok(sequence) => {
                stored += 1;
                assert_eq!(sequence, Sequence(stored));
            }
            Err(error) => {
                assert_eq!(error, AppendError::Full);
                break;
            }
        }
    }
    assert_eq!(stored, 10);
    assert_eq!(spool.status().health, SpoolHealth::Full);
    assert_eq!(spool.status().disk_bytes_max, 1 << 20);
    for sequence in 1..=stored {
        let leased = spool.lease(1, usize::MAX).await.expect("lease succeeds");
        assert_eq!(
            leased[0].sequence,
            Sequence(sequence),
            "an unsettled record was dropped"
        );
    }
    spool.settle(Sequence(8)).await.expect("settle succeeds");
    // Nobody sweeps by hand: room comes by itself, since a full stream is looked at every 5 s.
    wait_health(&spool, &SpoolHealth::Ok).await;
    assert_eq!(spool.append(fresh_id(), large).await, Ok(Sequence(11)));
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_an_operator_purged_are_an_error_until_a_rewind_names_them() {
    let bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=6).await;
    spool.link.stream.purge().sequence(4).await.expect("purged");
    let refused = spool.lease(10, usize::MAX).await;
    assert!(
        matches!(
            refused,
            Err(LeaseError::Dropped {
                first: 1,
                oldest_kept: 4
            })
        ),
        "{refused:?}"
    );
    let outcome = spool.rewind(Sequence(0)).await.expect("rewind succeeds");
    assert_eq!(outcome.missing, Some(1..=3));
    assert_eq!(lease_numbers(&spool, 6).await, [4, 5, 6]);
    spool.close().await;
}
