//! Ends at bad moments: kills and signals under load, and a planted defect that only a kill brings to light.
//! The program `chaos` does the same for as long as one likes.

use std::time::Duration;

use system_tests::chaos::kill::{self, Plan, Report, Victims};
use system_tests::client::Outcome;
use system_tests::fleet::Layout;
use system_tests::service::Strace;
use system_tests::stand::{Options, Stand};
use test_kit::tool;

use crate::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_and_repeat_nothing() {
    let plan = Plan {
        rounds: 12,
        seed: 21,
        ..Plan::default()
    };
    let report = kill::run(&programs(), &plan, &mut |_| {}).await.unwrap();
    report.verdict.assert_clean();
    assert_eq!(report.rounds, 12);
    assert!(report.verdict.stored > 100, "{}", report.verdict);
}

/// Kills until a planted defect shows, at the most: each may miss it, on a busy machine most of them.
const PLANTED_MAX: usize = 40;

/// Kills a service while each of its writes is drawn out, so that there nearly always is one to be killed in.
async fn kills_in_slow_writes(
    rounds: usize,
    victims: Victims,
    spool_keys: &str,
    writer_keys: &str,
) -> Report {
    let slow = || {
        Some(Strace::slowing_writes(
            tool("PASSLINE_STRACE").unwrap(),
            Duration::from_millis(2),
        ))
    };
    let mut options = Options {
        spool_keys: spool_keys.to_owned(),
        writer_keys: writer_keys.to_owned(),
        ..Options::default()
    };
    match victims {
        Victims::Gateway => options.gateway_strace = slow(),
        Victims::State => options.state_strace = slow(),
        Victims::Both => unreachable!("one at a time here"),
    }
    let plan = Plan {
        rounds,
        seed: 22,
        layout: Layout {
            options,
            ..Layout::pair()
        },
        stop_when_broken: true,
        judge_each_round: true,
        victims,
    };
    kill::run(&programs(), &plan, &mut |_| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_state_that_acknowledges_before_it_commits_is_caught() {
    let report = kills_in_slow_writes(
        PLANTED_MAX,
        Victims::State,
        "",
        "planted_ack_before_commit = true",
    )
    .await;
    let caught = !report.verdict.is_clean();
    assert!(
        caught,
        "the planted defect went unnoticed in {} kills",
        report.rounds
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_answers_before_it_writes_is_caught() {
    let report = kills_in_slow_writes(
        PLANTED_MAX,
        Victims::Gateway,
        "planted_answer_before_sync = true",
        "",
    )
    .await;
    let caught = !report.verdict.lost.is_empty();
    assert!(
        caught,
        "the planted defect went unnoticed in {} kills",
        report.rounds
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_of_commits_lose_and_repeat_nothing() {
    let report = kills_in_slow_writes(6, Victims::State, "", "").await;
    report.verdict.assert_clean();
    assert_eq!(report.rounds, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_of_spool_writes_lose_and_repeat_nothing() {
    let report = kills_in_slow_writes(6, Victims::Gateway, "", "").await;
    report.verdict.assert_clean();
    assert_eq!(report.rounds, 6);
}

/// Guarantee 1 where the disk fails: a record whose sync failed is not answered 200, then or later, and the
/// process ends so that the next one reads what is really there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_sync_gets_no_200_and_ends_the_gateway_with_an_error() {
    let strace = tool("PASSLINE_STRACE").unwrap();
    let mut stand = Stand::new(
        &programs(),
        &Options {
            gateway_strace: Some(Strace::failing_sync(strace, 40)),
            ..Options::default()
        },
    )
    .unwrap();
    stand.start_state().await.unwrap();
    stand.start_gateway().await.unwrap();
    let senders = stand.senders(24, "eio", 4);
    let (status, log) = stand.take_gateway().ended().await.unwrap();
    assert!(
        !status.success() && log.contains("restart"),
        "{status}: {log}"
    );
    let stored = stand.log.stored_count();
    assert!(stored >= 20, "only {stored} stored before the failure");
    let refused = stand.log.attempts().iter().any(
        |attempt| matches!(&attempt.outcome, Outcome::Indeterminate(why) if why.starts_with("503")),
    );
    assert!(refused, "nobody was told 503");

    stand.set_gateway_strace(None);
    stand.start_gateway().await.unwrap();
    stand
        .wait_for_stored(stored + 50, Duration::from_secs(30))
        .await
        .unwrap();
    assert!(
        senders.finish().await,
        "some callbacks were not stored in time"
    );
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    stand
        .finish_with_errors(&["the spool failed", "spool is poisoned"])
        .await
        .unwrap();
}

/// Deterministic crash points: the gateway dies right before the first, second, … call of each kind on the way
/// of a write, while it recovers or serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_call_that_changes_the_disk_loses_and_repeats_nothing() {
    let strace = tool("PASSLINE_STRACE").unwrap();
    let mut stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    stand.note_epoch().await.unwrap();
    let mut follower = stand.follower();
    let senders = stand.senders(25, "call", 4);
    stand
        .wait_for_stored(20, Duration::from_secs(30))
        .await
        .unwrap();
    stand.take_gateway().kill().await.unwrap();
    let mut died = 0;
    for call in [
        "pwrite64",
        "fdatasync",
        "fsync",
        "rename",
        "unlink",
        "ftruncate",
    ] {
        for nth in [1, 2, 3, 7, 20] {
            stand.set_gateway_strace(Some(Strace::killing_at(strace.clone(), call, nth)));
            // It may die before strace can be asked for it.
            if stand.launch_gateway().await.is_ok() {
                let by_itself = stand
                    .take_gateway()
                    .ended_or_killed(Duration::from_millis(400))
                    .await
                    .unwrap();
                died += usize::from(by_itself);
            }
        }
    }
    assert!(
        died >= 10,
        "only {died} deaths at a call: the calls are not those that the spool makes"
    );
    stand.set_gateway_strace(None);
    stand.start_gateway().await.unwrap();
    assert!(
        senders.finish().await,
        "some callbacks were not stored in time"
    );
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    let head = stand.reader().info().await.unwrap().head_position;
    follower
        .caught_up(head, Duration::from_secs(20))
        .await
        .unwrap();
    follower.stop();
    stand.finish().await.unwrap();
}

/// SIGTERM to each in turn while callbacks keep coming: whatever was answered 200 is there, and the services
/// end with 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_loses_nothing() {
    let mut stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    stand.note_epoch().await.unwrap();
    let senders = stand.senders(23, "drain", 4);
    for _ in 0..3 {
        stand
            .wait_for_stored(stand.log.stored_count() + 50, Duration::from_secs(30))
            .await
            .unwrap();
        stand.take_gateway().end().await.unwrap();
        stand.start_gateway().await.unwrap();
        stand
            .wait_for_stored(stand.log.stored_count() + 50, Duration::from_secs(30))
            .await
            .unwrap();
        stand.take_state().end().await.unwrap();
        stand.start_state().await.unwrap();
    }
    assert!(
        senders.finish().await,
        "some callbacks were not stored in time"
    );
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    stand.finish().await.unwrap();
}
