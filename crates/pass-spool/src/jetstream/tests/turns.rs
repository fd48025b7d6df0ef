//! Several gateways on one spool.

use std::time::Instant;

use test_kit::ChaosProxy;

use super::*;
use crate::{LeaseError, RewindError, SettleError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_one_in_turn_leases_what_all_append() {
    let bench = Bench::start().await;
    let (one, other) = (bench.open_in_turn().await, bench.open().await);
    for number in (1..=20).step_by(2) {
        append(&one, number..=number).await;
        append(&other, number + 1..=number + 1).await;
    }
    assert_eq!(lease_numbers(&one, 20).await, (1..=20).collect::<Vec<_>>());
    assert!(matches!(other.lease(1, 1).await, Err(LeaseError::TurnLost)));
    assert!(matches!(
        other.settle(Sequence(1)).await,
        Err(SettleError::TurnLost)
    ));
    assert!(matches!(
        other.rewind(Sequence(0)).await,
        Err(RewindError::TurnLost)
    ));
    one.settle(Sequence(15)).await.expect("settle succeeds");
    let told = |spool: &JetStreamSpool| {
        let status = spool.status();
        (
            status.last_durable.0,
            status.settled.0,
            status.unsettled_records,
            status.oldest_kept.0,
            status.disk_bytes,
        )
    };
    wait_for("the same figures", DEADLINE, async || {
        let (one, other) = (told(&one), told(&other));
        if one == other && one.1 == 15 && one.2 == 5 {
            Ok(())
        } else {
            Err(format!("{one:?} {other:?}"))
        }
    })
    .await
    .expect("both tell the same");
    wait_for("an age", DEADLINE, async || {
        match (
            one.status().oldest_unsettled_age,
            other.status().oldest_unsettled_age,
        ) {
            (Some(one), Some(other)) => {
                assert!(one < DEADLINE && other < DEADLINE);
                Ok(())
            }
            ages => Err(format!("{ages:?}")),
        }
    })
    .await
    .expect("ages are told");
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_hands_the_turn_over_at_once() {
    let bench = Bench::start().await;
    let (one, other) = (bench.open_in_turn().await, bench.open().await);
    append(&one, 1..=10).await;
    lease_numbers(&one, 10).await;
    one.settle(Sequence(6)).await.expect("settle succeeds");
    let waiting = tokio::time::timeout(Duration::from_millis(300), other.turn()).await;
    assert!(waiting.is_err(), "two have the turn");
    let began = Instant::now();
    one.close().await;
    in_turn(&other).await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "took {:?}",
        began.elapsed()
    );
    assert_eq!(other.status().settled, Sequence(6));
    assert_eq!(lease_numbers(&other, 10).await, [7, 8, 9, 10]);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateways_turn_is_taken_over_within_six_seconds() {
    let bench = Bench::start().await;
    let (one, other) = (bench.open_in_turn().await, bench.open().await);
    append(&one, 1..=10).await;
    lease_numbers(&one, 10).await;
    one.settle(Sequence(4)).await.expect("settle succeeds");
    wait_for(
        "a renewal that carries the mark",
        DEADLINE,
        async || match other.status().settled {
            Sequence(4) => Ok(()),
            settled => Err(settled),
        },
    )
    .await
    .expect("mark is written");
    // Dropped without closing, nothing is given back, as when the process is killed.
    drop(one);
    let began = Instant::now();
    in_turn(&other).await;
    assert!(
        began.elapsed() < Duration::from_secs(6),
        "took {:?}",
        began.elapsed()
    );
    assert_eq!(lease_numbers(&other, 10).await, [5, 6, 7, 8, 9, 10]);
    append(&other, 11..=11).await;
    assert_eq!(lease_numbers(&other, 11).await, [11]);
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_is_cut_off_stops_before_another_begins_and_waits_for_the_next_turn() {
    let bench = Bench::start().await;
    let proxy = ChaosProxy::start(bench.nats.address())
        .await
        .expect("proxy starts");
    let mut behind = bench.options.clone();
    behind.servers = vec![format!("nats://{}", proxy.address())];
    let one = JetStreamSpool::open(behind).await.expect("spool opens");
    in_turn(&one).await;
    let other = bench.open().await;
    append(&other, 1..=2).await;
    assert_eq!(lease_numbers(&one, 2).await, [1, 2]);

    proxy.refuse(true);
    proxy.cut_all().await;
    let lost = async {
        let lost = tokio::time::timeout(DEADLINE, one.lease(1, 1))
            .await
            .expect("lease ends");
        assert!(matches!(lost, Err(LeaseError::TurnLost)), "{lost:?}");
        Instant::now()
    };
    let taken = async {
        in_turn(&other).await;
        Instant::now()
    };
    let (lost, taken) = tokio::join!(lost, taken);
    assert!(lost <= taken, "two had the turn for {:?}", lost - taken);
    assert_eq!(lease_numbers(&other, 2).await, [1, 2]);

    proxy.refuse(false);
    let early = tokio::time::timeout(Duration::from_secs(3), one.turn()).await;
    assert!(early.is_err(), "the turn was taken from a live holder");
    assert!(matches!(
        one.settle(Sequence(2)).await,
        Err(SettleError::TurnLost)
    ));
    other.settle(Sequence(2)).await.expect("settle succeeds");
    other.close().await;
    in_turn(&one).await;
    append(&one, 3..=3).await;
    assert_eq!(lease_numbers(&one, 3).await, [3]);
    one.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_is_passed_goes_to_the_one_that_waits_although_its_giver_wants_it_again() {
    let bench = Bench::start().await;
    let (one, other) = (bench.open_in_turn().await, bench.open().await);
    append(&one, 1..=10).await;
    lease_numbers(&one, 10).await;
    one.settle(Sequence(6)).await.expect("settle succeeds");
    let leasing = async {
        let lost = tokio::time::timeout(DEADLINE, one.lease(1, 1)).await;
        let lost = lost.expect("lease ends");
        assert!(matches!(lost, Err(LeaseError::TurnLost)), "{lost:?}");
    };
    let began = Instant::now();
    tokio::join!(leasing, one.pass_turn());
    assert_eq!(one.settle(Sequence(7)).await, Err(SettleError::TurnLost));
    assert_eq!(one.rewind(Sequence(7)).await, Err(RewindError::TurnLost));
    let mut again = Box::pin(one.turn());
    tokio::select! {
        () = in_turn(&other) => {}
        given = &mut again => panic!("{given:?} although another waits"),
    }
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "took {:?}",
        began.elapsed()
    );
    assert_eq!(other.status().settled, Sequence(6));
    assert_eq!(lease_numbers(&other, 10).await, [7, 8, 9, 10]);
    let early = tokio::time::timeout(Duration::from_secs(4), &mut again).await;
    assert!(early.is_err(), "the turn was taken from a live holder");
    // Whoever has no turn has none to give.
    one.pass_turn().await;
    append(&other, 11..=11).await;
    assert_eq!(lease_numbers(&other, 11).await, [11]);
    other.pass_turn().await;
    let given = tokio::time::timeout(DEADLINE, again).await;
    assert!(matches!(given, Ok(Ok(()))), "{given:?}");
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_nobody_else_wants_comes_back() {
    let bench = Bench::start().await;
    let one = bench.open_in_turn().await;
    append(&one, 1..=3).await;
    assert_eq!(lease_numbers(&one, 2).await[..2], [1, 2]);
    one.settle(Sequence(2)).await.expect("settle succeeds");
    let began = Instant::now();
    one.pass_turn().await;
    in_turn(&one).await;
    let took = began.elapsed();
    assert!(
        took > Duration::from_secs(2) && took < Duration::from_secs(6),
        "took {took:?}"
    );
    assert_eq!(lease_numbers(&one, 3).await, [3]);
    one.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_is_reported_too_early_is_looked_at_again_before_a_rewind_is_refused() {
    let bench = Bench::start().await;
    let (one, other) = (bench.open_in_turn().await, bench.open().await);
    append(&one, 1..=2).await;
    let late = async {
        // A new leader of a cluster catches up within moments.
        tokio::time::sleep(Duration::from_secs(1)).await;
        append(&other, 3..=3).await;
    };
    let (rewound, ()) = tokio::join!(one.rewind(Sequence(3)), late);
    assert_eq!(rewound, Ok(crate::RewindOutcome::default()));
    assert_eq!(
        one.rewind(Sequence(4)).await,
        Err(RewindError::Ahead { last: 3 })
    );
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_is_had_and_kept_although_answers_to_its_writes_come_too_late() {
    let bench = Bench::start().await;
    let (one, other) = (bench.open().await, bench.open().await);
    *one.shared.answers_late.lock().expect("not poisoned") = Duration::from_millis(1_500);
    in_turn(&one).await;
    let until = Instant::now() + Duration::from_secs(10);
    let mut waiting = Box::pin(other.turn());
    while Instant::now() < until {
        let look = Duration::from_millis(20);
        let taken = tokio::time::timeout(look, &mut waiting).await;
        assert!(taken.is_err(), "{taken:?} although another has the turn");
        assert!(one.shared.term().is_some(), "the turn lapsed");
    }
    drop(waiting);
    append(&one, 1..=3).await;
    assert_eq!(lease_numbers(&one, 3).await, [1, 2, 3]);
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_deleted_is_made_anew_and_forwarding_goes_on() {
    let bench = Bench::start().await;
    let (one, other) = (bench.open_in_turn().await, bench.open().await);
    append(&one, 1..=5).await;
    assert_eq!(lease_numbers(&one, 5).await, [1, 2, 3, 4, 5]);
    one.settle(Sequence(3)).await.expect("settle succeeds");
    let context = &one.link.context;
    context
        .delete_key_value("PASSLINE-turn")
        .await
        .expect("deleted");
    let lost = tokio::time::timeout(DEADLINE, one.lease(1, 1))
        .await
        .expect("lease ends");
    assert!(matches!(lost, Err(LeaseError::TurnLost)), "{lost:?}");
    // Either may be first to have it again.
    tokio::select! {
        () = in_turn(&one) => {}
        () = in_turn(&other) => {}
    }
    let (holder, waiter) = if one.shared.term().is_some() {
        (one, other)
    } else {
        (other, one)
    };
    assert!(waiter.shared.term().is_none(), "two have the turn");
    // Where the other side stands is its own business, so nothing is taken for settled.
    assert_eq!(lease_numbers(&holder, 5).await, [1, 2, 3, 4, 5]);
    assert_eq!(holder.status().trouble, None);
    holder.close().await;
    in_turn(&waiter).await;
    waiter.close().await;
}
