//! The contract as tests, for any implementation: stamp them out with [`spool_suite!`](crate::spool_suite).
//!
//! Every function takes a fixture with fresh, empty storage of its own.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    AppendError, LeaseError, Leased, RecordId, RewindError, Sequence, SettleError, Spool,
    SpoolHealth,
};

/// No step of the suite may take longer.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long something that must not happen is given to happen.
const QUIET: Duration = Duration::from_millis(50);

/// Storage that a spool can be opened on again and again.
#[async_trait]
pub trait SpoolFixture: Send + Sync {
    /// The implementation under test.
    type Spool: Spool;

    /// Opens the spool; always the same storage. The one opened before has been closed.
    async fn open(&self) -> Self::Spool;

    /// The largest record that the opened spool takes, at least 1,000 bytes.
    fn record_bytes_max(&self) -> usize;
}

/// Stamps out one test per rule of the contract; the argument makes a fresh fixture.
#[macro_export]
macro_rules! spool_suite {
    ($fixture:expr) => {
        $crate::spool_suite!(@tests $fixture;
            records_come_back_in_order_without_gaps
            lease_waits_for_the_first_record
            lease_keeps_to_its_limits_but_gives_at_least_one_record
            concurrent_leases_share_records_without_overlap
            cancelled_lease_moves_nothing
            settling_is_cumulative_and_idempotent
            settling_beyond_the_end_is_refused
            rewinding_back_gives_records_again
            rewinding_forward_skips_records
            rewinding_beyond_the_end_is_refused
            rewinding_back_wakes_a_waiting_lease
            unsettled_records_survive_reopening
            sizes_from_empty_to_the_limit_are_kept_exactly
            oversized_record_is_refused_and_takes_no_sequence
            dropped_append_harms_nobody
            every_concurrent_appender_is_served
            closing_finishes_what_was_accepted_and_refuses_the_rest
            any_order_of_calls_agrees_with_a_model
        );
    };
    (@tests $fixture:expr; $($name:ident)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                $crate::suite::$name(&$fixture).await;
            }
        )*
    };
}

/// Opens the spool and waits for the turn to lease.
async fn opened<F: SpoolFixture>(fixture: &F) -> F::Spool {
    let spool = fixture.open().await;
    soon("the turn", spool.turn()).await.expect("turn is given");
    spool
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// An id that no other record of this process has.
pub fn fresh_id() -> RecordId {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    RecordId(u128::from(NEXT.fetch_add(1, Ordering::Relaxed)).to_be_bytes())
}

fn record(number: u64) -> Bytes {
    Bytes::from(format!(
        "record {number} {}",
        "x".repeat((number % 97) as usize)
    ))
}

async fn append_numbered<S: Spool>(spool: &S, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let sequence = soon("append", spool.append(fresh_id(), record(number)))
            .await
            .expect("append succeeds");
        assert_eq!(sequence, Sequence(number));
    }
}

async fn lease_exactly<S: Spool>(spool: &S, count: usize) -> Vec<Leased> {
    let mut leased = Vec::new();
    while leased.len() < count {
        let more = spool.lease(count - leased.len(), usize::MAX);
        leased.extend(soon("lease", more).await.expect("lease succeeds"));
    }
    leased
}

fn assert_numbered(leased: &[Leased], numbers: std::ops::RangeInclusive<u64>) {
    let expected: Vec<_> = numbers
        .map(|number| Leased {
            sequence: Sequence(number),
            record: record(number),
        })
        .collect();
    assert_eq!(leased, expected);
}

async fn assert_nothing_to_lease<S: Spool>(spool: &S) {
    let waited = tokio::time::timeout(QUIET, spool.lease(1, 1)).await;
    assert!(waited.is_err(), "leased {waited:?} where nothing was left");
}

/// What was appended is leased, in order and numbered from 1.
pub async fn records_come_back_in_order_without_gaps<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=40).await;
    assert_numbered(&lease_exactly(&spool, 40).await, 1..=40);
    assert_nothing_to_lease(&spool).await;
    let status = spool.status();
    assert_eq!(
        (status.last_durable, status.unsettled_records),
        (Sequence(40), 40)
    );
    assert_eq!(status.health, SpoolHealth::Ok);
    spool.close().await;
}

/// A lease on an empty spool returns with the first record, not before.
pub async fn lease_waits_for_the_first_record<F: SpoolFixture>(fixture: &F) {
    let spool = Arc::new(opened(fixture).await);
    let waiting = tokio::spawn({
        let spool = spool.clone();
        async move { spool.lease(10, usize::MAX).await }
    });
    tokio::time::sleep(QUIET).await;
    assert!(!waiting.is_finished(), "leased from an empty spool");
    append_numbered(&*spool, 1..=1).await;
    let leased = soon("the waiting lease", waiting)
        .await
        .expect("no panic")
        .expect("lease succeeds");
    assert_numbered(&leased, 1..=1);
    spool.close().await;
}

/// Count and size bound a lease; a record larger than the size comes alone.
pub async fn lease_keeps_to_its_limits_but_gives_at_least_one_record<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    for _ in 0..6 {
        soon(
            "append",
            spool.append(fresh_id(), Bytes::from(vec![7; 100])),
        )
        .await
        .expect("append succeeds");
    }
    let mut counts = Vec::new();
    for (records_max, bytes_max) in [(2, usize::MAX), (10, 250), (10, 1), (0, 0)] {
        counts.push(
            soon("lease", spool.lease(records_max, bytes_max))
                .await
                .expect("lease succeeds")
                .len(),
        );
    }
    assert!(counts[0] <= 2 && counts[1] <= 2, "{counts:?}");
    assert_eq!(counts[2..], [1, 1]);
    spool.close().await;
}

/// Two callers never get the same record, and together get all.
pub async fn concurrent_leases_share_records_without_overlap<F: SpoolFixture>(fixture: &F) {
    let spool = Arc::new(opened(fixture).await);
    append_numbered(&*spool, 1..=60).await;
    let lease_some = || {
        let spool = spool.clone();
        tokio::spawn(async move {
            let mut mine = Vec::new();
            while let Ok(Ok(leased)) =
                tokio::time::timeout(QUIET * 4, spool.lease(3, usize::MAX)).await
            {
                mine.extend(leased.into_iter().map(|leased| leased.sequence.0));
            }
            mine
        })
    };
    let (one, two) = (lease_some(), lease_some());
    let mut all = soon("leases", one).await.expect("no panic");
    all.extend(soon("leases", two).await.expect("no panic"));
    assert_eq!(all.len(), 60, "{all:?}");
    assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), (1..=60).collect());
    spool.close().await;
}

/// Dropping a lease at any moment loses no record.
pub async fn cancelled_lease_moves_nothing<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=20).await;
    let mut given = 0;
    for polls in 0..30_u64 {
        // Polled a few times, then dropped wherever it is.
        let lease = tokio::time::timeout(
            Duration::from_micros(polls * 20),
            spool.lease(1, usize::MAX),
        );
        if let Ok(leased) = lease.await {
            given += 1;
            assert_numbered(&leased.expect("lease succeeds"), given..=given);
        }
        if given == 20 {
            break;
        }
    }
    if given < 20 {
        assert_numbered(
            &lease_exactly(&spool, (20 - given) as usize).await,
            given + 1..=20,
        );
    }
    spool.close().await;
}

/// An older settle changes nothing; a newer one covers all before it.
pub async fn settling_is_cumulative_and_idempotent<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=10).await;
    lease_exactly(&spool, 10).await;
    for (through, unsettled) in [(0, 10), (7, 3), (3, 3), (7, 3), (10, 0)] {
        soon("settle", spool.settle(Sequence(through)))
            .await
            .expect("settle succeeds");
        assert_eq!(
            spool.status().unsettled_records,
            unsettled,
            "after settling {through}"
        );
    }
    let status = spool.status();
    assert_eq!(
        (
            status.settled,
            status.unsettled_bytes,
            status.oldest_unsettled_age
        ),
        (Sequence(10), 0, None)
    );
    spool.close().await;
}

/// Nobody can have committed what was never given out.
pub async fn settling_beyond_the_end_is_refused<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=3).await;
    let refused = soon("settle", spool.settle(Sequence(4))).await;
    assert_eq!(
        refused,
        Err(SettleError::Ahead {
            through: 4,
            last: 3
        })
    );
    assert_eq!(spool.status().settled, Sequence(0));
    spool.close().await;
}

/// A peer that went back in time gets everything after its last commit again, settled or not.
pub async fn rewinding_back_gives_records_again<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=12).await;
    lease_exactly(&spool, 12).await;
    soon("settle", spool.settle(Sequence(9)))
        .await
        .expect("settle succeeds");
    for after in [11, 5, 0] {
        let outcome = soon("rewind", spool.rewind(Sequence(after)))
            .await
            .expect("rewind succeeds");
        assert_eq!(outcome.missing, None);
        assert_numbered(
            &lease_exactly(&spool, 12 - after as usize).await,
            after + 1..=12,
        );
    }
    assert_eq!(
        spool.status().unsettled_records,
        12,
        "what the peer lost is not settled any more"
    );
    spool.close().await;
}

/// A peer that is ahead of the settled mark is not sent old records.
pub async fn rewinding_forward_skips_records<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=12).await;
    soon("rewind", spool.rewind(Sequence(8)))
        .await
        .expect("rewind succeeds");
    assert_numbered(&lease_exactly(&spool, 4).await, 9..=12);
    spool.close().await;
}

/// A peer that knows records this spool does not have is told so.
pub async fn rewinding_beyond_the_end_is_refused<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=2).await;
    assert_eq!(
        soon("rewind", spool.rewind(Sequence(3))).await,
        Err(RewindError::Ahead { last: 2 })
    );
    assert_numbered(&lease_exactly(&spool, 2).await, 1..=2);
    spool.close().await;
}

/// A lease that waits at the end goes on when there is something to give again.
pub async fn rewinding_back_wakes_a_waiting_lease<F: SpoolFixture>(fixture: &F) {
    let spool = Arc::new(opened(fixture).await);
    append_numbered(&*spool, 1..=3).await;
    lease_exactly(&*spool, 3).await;
    let waiting = tokio::spawn({
        let spool = spool.clone();
        async move { spool.lease(10, usize::MAX).await }
    });
    tokio::time::sleep(QUIET).await;
    soon("rewind", spool.rewind(Sequence(1)))
        .await
        .expect("rewind succeeds");
    let leased = soon("the waiting lease", waiting)
        .await
        .expect("no panic")
        .expect("lease succeeds");
    assert_eq!(
        leased.first().map(|leased| leased.sequence),
        Some(Sequence(2))
    );
    spool.close().await;
}

/// Identity, records and the settled mark outlive the process; sequences go on.
pub async fn unsettled_records_survive_reopening<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    let id = spool.id();
    append_numbered(&spool, 1..=10).await;
    lease_exactly(&spool, 6).await;
    soon("settle", spool.settle(Sequence(4)))
        .await
        .expect("settle succeeds");
    spool.close().await;
    drop(spool);

    let spool = opened(fixture).await;
    assert_eq!(spool.id(), id);
    assert_eq!(spool.status().settled, Sequence(4));
    assert_numbered(&lease_exactly(&spool, 6).await, 5..=10);
    append_numbered(&spool, 11..=11).await;
    assert_numbered(&lease_exactly(&spool, 1).await, 11..=11);
    soon("rewind", spool.rewind(Sequence(0)))
        .await
        .expect("rewind succeeds");
    assert_numbered(&lease_exactly(&spool, 11).await, 1..=11);
    spool.close().await;
}

/// Records are opaque: no size and no byte is special.
pub async fn sizes_from_empty_to_the_limit_are_kept_exactly<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    let sizes = [
        0,
        1,
        3,
        4,
        5,
        7,
        8,
        9,
        511,
        512,
        513,
        fixture.record_bytes_max(),
    ];
    for (fill, bytes) in sizes.iter().enumerate() {
        // The first is all zero, like unwritten disk.
        soon(
            "append",
            spool.append(fresh_id(), Bytes::from(vec![(fill * 85) as u8; *bytes])),
        )
        .await
        .expect("append succeeds");
    }
    for (fill, leased) in lease_exactly(&spool, sizes.len())
        .await
        .into_iter()
        .enumerate()
    {
        assert_eq!(
            leased.record,
            vec![(fill * 85) as u8; sizes[fill]],
            "record of {} bytes",
            sizes[fill]
        );
    }
    spool.close().await;
}

/// A record over the limit is refused by itself; its neighbours are not touched.
pub async fn oversized_record_is_refused_and_takes_no_sequence<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    append_numbered(&spool, 1..=1).await;
    let bytes_max = fixture.record_bytes_max();
    let refused = soon(
        "append",
        spool.append(fresh_id(), Bytes::from(vec![1; bytes_max + 1])),
    )
    .await;
    assert_eq!(
        refused,
        Err(AppendError::TooLarge {
            bytes: bytes_max + 1,
            bytes_max
        })
    );
    append_numbered(&spool, 2..=2).await;
    assert_numbered(&lease_exactly(&spool, 2).await, 1..=2);
    spool.close().await;
}

/// A caller that goes away may or may not have stored its record; everybody else's are whole and in order.
pub async fn dropped_append_harms_nobody<F: SpoolFixture>(fixture: &F) {
    let spool = opened(fixture).await;
    let mut answered = Vec::new();
    for round in 0..40_u64 {
        let abandoned = spool.append(fresh_id(), Bytes::from_static(b"abandoned"));
        let _ = tokio::time::timeout(Duration::from_micros(round * 10), abandoned).await;
        let kept = Bytes::from(format!("kept {round}"));
        answered.push((
            soon("append", spool.append(fresh_id(), kept.clone()))
                .await
                .expect("append succeeds"),
            kept,
        ));
    }
    let last = spool.status().last_durable.0;
    let leased = lease_exactly(&spool, last as usize).await;
    for (number, leased) in (1..).zip(&leased) {
        assert_eq!(leased.sequence, Sequence(number));
    }
    for (sequence, kept) in answered {
        assert_eq!(leased[sequence.0 as usize - 1].record, kept);
    }
    spool.close().await;
}

/// Under load each caller's records are stored in its own order, and none waits for ever.
pub async fn every_concurrent_appender_is_served<F: SpoolFixture>(fixture: &F) {
    const APPENDERS: u64 = 32;
    const EACH: u64 = 20;
    let spool = Arc::new(opened(fixture).await);
    let mut tasks = Vec::new();
    for appender in 0..APPENDERS {
        let spool = spool.clone();
        tasks.push(tokio::spawn(async move {
            let mut given = Vec::new();
            for number in 0..EACH {
                let record = Bytes::from(format!("{appender} {number}"));
                given.push((
                    spool
                        .append(fresh_id(), record.clone())
                        .await
                        .expect("append succeeds"),
                    record,
                ));
            }
            given
        }));
    }
    let mut stored = std::collections::BTreeMap::new();
    for task in tasks {
        let given = soon("appends", task).await.expect("no panic");
        assert!(given.is_sorted_by_key(|(sequence, _)| *sequence));
        stored.extend(given);
    }
    assert_eq!(stored.len() as u64, APPENDERS * EACH);
    for leased in lease_exactly(&*spool, stored.len()).await {
        assert_eq!(stored.get(&leased.sequence), Some(&leased.record));
    }
    spool.close().await;
}

/// Close waits for appends in flight, ends waiting leases, and may be called again.
pub async fn closing_finishes_what_was_accepted_and_refuses_the_rest<F: SpoolFixture>(fixture: &F) {
    let spool = Arc::new(opened(fixture).await);
    let waiting = tokio::spawn({
        let spool = spool.clone();
        async move { while spool.lease(100, usize::MAX).await.is_ok() {} }
    });
    let mut appends = tokio::task::JoinSet::new();
    for number in 0..50 {
        let spool = spool.clone();
        appends.spawn(async move { (number, spool.append(fresh_id(), record(number)).await) });
    }
    tokio::task::yield_now().await;
    soon("close", spool.close()).await;
    soon("close again", spool.close()).await;
    soon("the waiting lease", waiting).await.expect("no panic");
    let mut stored = std::collections::BTreeMap::new();
    while let Some(answered) = soon("append", appends.join_next()).await {
        match answered.expect("no panic") {
            (number, Ok(sequence)) => assert_eq!(stored.insert(sequence, record(number)), None),
            (_, Err(AppendError::Closed)) => {}
            (number, Err(error)) => panic!("append {number}: {error}"),
        }
    }
    assert_eq!(
        soon("append", spool.append(fresh_id(), record(1))).await,
        Err(AppendError::Closed)
    );
    assert!(matches!(
        soon("lease", spool.lease(1, 1)).await,
        Err(LeaseError::Closed)
    ));
    assert_eq!(
        soon("settle", spool.settle(Sequence(0))).await,
        Err(SettleError::Closed)
    );
    assert_eq!(
        soon("rewind", spool.rewind(Sequence(0))).await,
        Err(RewindError::Closed)
    );
    drop(spool);

    let spool = opened(fixture).await;
    assert_eq!(spool.status().last_durable.0, stored.len() as u64);
    for leased in lease_exactly(&spool, stored.len()).await {
        assert_eq!(stored.get(&leased.sequence), Some(&leased.record));
    }
    spool.close().await;
}

/// Seeded random calls, reopening among them, give what a list and three numbers give.
pub async fn any_order_of_calls_agrees_with_a_model<F: SpoolFixture>(fixture: &F) {
    const SEED: u64 = 0x5eed_0001;
    let mut random = SEED;
    let mut below = |limit: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % limit.max(1)
    };
    let mut spool = opened(fixture).await;
    let (mut last, mut settled, mut leased) = (0_u64, 0_u64, 0_u64);
    for step in 0..400 {
        let at = format!("step {step} of seed {SEED:#x}");
        match below(10) {
            0..=3 => {
                for _ in 0..=below(6) {
                    last += 1;
                    let stored = soon(&at, spool.append(fresh_id(), record(last))).await;
                    assert_eq!(stored, Ok(Sequence(last)), "{at}");
                }
            }
            4..=6 if leased < last => {
                let got = soon(
                    &at,
                    spool.lease(1 + below(8) as usize, 40 + below(400) as usize),
                )
                .await;
                let got = got.expect("lease succeeds");
                assert!(!got.is_empty(), "{at}");
                assert_numbered(&got, leased + 1..=leased + got.len() as u64);
                leased += got.len() as u64;
            }
            7 => {
                let through = below(leased + 1);
                soon(&at, spool.settle(Sequence(through)))
                    .await
                    .expect("settle succeeds");
                settled = settled.max(through);
            }
            8 => {
                leased = below(last + 1);
                let outcome = soon(&at, spool.rewind(Sequence(leased)))
                    .await
                    .expect("rewind succeeds");
                assert_eq!(outcome.missing, None, "{at}");
                settled = settled.min(leased);
            }
            9 if below(3) == 0 => {
                spool.close().await;
                drop(spool);
                spool = opened(fixture).await;
                leased = settled;
            }
            _ => {}
        }
        let status = spool.status();
        let seen = (
            status.last_durable.0,
            status.settled.0,
            status.unsettled_records,
        );
        assert_eq!(seen, (last, settled, last - settled), "{at}");
    }
    spool.close().await;
}
