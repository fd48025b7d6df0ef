//! Ends at bad moments: kills and signals under load, and a planted defect that only a kill brings to light.
//! The program `chaos` does the same for as long as one likes.

use std::sync::Arc;
use std::time::Duration;

use system_tests::callback::traffic;
use system_tests::chaos::{self, Plan, Report, Victims};
use system_tests::client;
use system_tests::dice::Dice;
use system_tests::service::Strace;
use system_tests::stand::{Options, Stand};
use test_kit::tool;
use tokio::time::Instant;

use crate::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_at_random_moments_lose_and_repeat_nothing() {
    let plan = Plan {
        rounds: 12,
        seed: 21,
        ..Plan::default()
    };
    let report = chaos::run(&programs(), &plan, &mut |_| {}).await.unwrap();
    report.verdict.assert_clean();
    assert_eq!(report.rounds, 12);
    assert!(report.verdict.stored > 100, "{}", report.verdict);
}

/// Kills pass-state while each of its commits is drawn out, so that there nearly always is one to be killed in.
async fn kills_in_slow_commits(writer_keys: &str) -> Report {
    let strace = tool("PASSLINE_STRACE").unwrap();
    let plan = Plan {
        rounds: 6,
        seed: 22,
        options: Options {
            writer_keys: writer_keys.to_owned(),
            state_strace: Some(Strace::slowing_writes(strace, Duration::from_millis(2))),
            ..Options::default()
        },
        stop_when_broken: true,
        judge_each_round: true,
        victims: Victims::State,
    };
    chaos::run(&programs(), &plan, &mut |_| {}).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pass_state_that_acknowledges_before_it_commits_is_caught() {
    let report = kills_in_slow_commits("planted_ack_before_commit = true").await;
    assert!(
        !report.verdict.is_clean(),
        "the planted defect went unnoticed in {} kills",
        report.rounds
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_the_middle_of_commits_lose_and_repeat_nothing() {
    let report = kills_in_slow_commits("").await;
    report.verdict.assert_clean();
    assert_eq!(report.rounds, 6);
}

/// SIGTERM to each in turn while callbacks keep coming: whatever was answered 200 is there, and the services
/// end with 0.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_under_load_loses_nothing() {
    let mut stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    stand.note_epoch().await.unwrap();
    let mut dice = Dice::new(23);
    let callbacks = traffic(&mut dice, "drain", 150);
    let sent = tokio::spawn({
        let (address, log) = (stand.http(), Arc::clone(&stand.log));
        let deadline = Instant::now() + Duration::from_secs(90);
        async move { client::load(address, callbacks, 4, &log, deadline).await }
    });
    stand
        .wait_for_stored(50, Duration::from_secs(30))
        .await
        .unwrap();
    stand.take_gateway().end().await.unwrap();
    stand.start_gateway().await.unwrap();
    let before = stand.log.stored_count();
    stand
        .wait_for_stored(before + 50, Duration::from_secs(30))
        .await
        .unwrap();
    stand.take_state().end().await.unwrap();
    stand.start_state().await.unwrap();
    assert_eq!(sent.await.unwrap(), 0, "some callbacks were never stored");
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    stand.finish().await.unwrap();
}
