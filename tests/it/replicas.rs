//! Several replicas of pass-state on one PostgreSQL: the order of the log, and what gateways and subscribers
//! notice of a replica's end.

use std::time::Duration;

use system_tests::callback::standard;
use system_tests::fleet::{Database, Fleet, Layout, Options};
use system_tests::follower::{Follower, Habits};
use system_tests::torture::{self, Plan};
use test_kit::{TestPostgres, wait_for};
use tokio::time::Instant;

use crate::programs;

/// A torture that fits into a test run; `chaos torture` is the long one.
fn short() -> Plan {
    Plan {
        events: 10_000,
        delay_max: Duration::from_millis(20),
        limit: Duration::from_secs(60),
        ..Plan::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_on_any_replica_see_one_log_without_gaps_while_replicas_are_killed() {
    let plan = Plan {
        seed: 51,
        ..short()
    };
    let report = torture::run(&programs(), &plan, &mut |_| {}).await.unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert!(report.events >= 10_000, "{report:#?}");
    assert!(report.kills >= 3, "{report:#?}");
    // Subscribers changed replicas, and feeders had streams fenced.
    assert!(report.subscriptions > 2 * plan.subscribers, "{report:#?}");
    assert!(report.fenced > 0, "{report:#?}");
}

/// The classic mistake: positions from a sequence are not taken in the order of commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_from_a_sequence_are_caught_within_ten_seconds() {
    let plan = Plan {
        seed: 52,
        kills: false,
        planted_sequence_positions: true,
        ..short()
    };
    let report = torture::run(&programs(), &plan, &mut |_| {}).await.unwrap();
    let (what, after) = report.violation.expect("a subscriber sees the defect");
    assert!(after < Duration::from_secs(10), "{after:?}: {what}");
}

/// Two gateways and two replicas on a database of their own, which lives as long as the first value.
async fn two_and_two(options: Options) -> (TestPostgres, Fleet) {
    let postgres = TestPostgres::start().await.unwrap();
    let layout = Layout {
        gateways: 2,
        states: 2,
        database: Database::on(&postgres).await.unwrap(),
        options,
        ..Layout::default()
    };
    let fleet = Fleet::started(&programs(), &layout).await.unwrap();
    fleet.note_epoch().await.unwrap();
    (postgres, fleet)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_go_on_at_another_replica_within_seconds_of_a_kill() {
    let (_postgres, mut fleet) = two_and_two(Options::default()).await;
    let mut follower = fleet.follower();
    let senders = fleet.senders(53, "killed", 4);
    for victim in [0, 1, 0] {
        let enough = fleet.log.stored_count() + 100;
        fleet
            .wait_for_stored(enough, Duration::from_secs(30))
            .await
            .unwrap();
        fleet.states[victim].take().kill().await.unwrap();
        let alone = fleet.recovered(Duration::from_secs(30)).await.unwrap();
        assert!(
            alone < Duration::from_secs(5),
            "the other replica had everything only after {alone:?}"
        );
        fleet.states[victim].start().await.unwrap();
    }
    finish(fleet, senders, &mut follower).await;
}

/// SIGTERM to one replica after the other, each with streams of gateways and subscribers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_replica_hands_its_streams_on_and_loses_nothing() {
    let (_postgres, mut fleet) = two_and_two(Options::default()).await;
    let mut follower = fleet.follower();
    let senders = fleet.senders(54, "drained", 4);
    for victim in [0, 1, 0, 1] {
        let enough = fleet.log.stored_count() + 100;
        fleet
            .wait_for_stored(enough, Duration::from_secs(30))
            .await
            .unwrap();
        fleet.states[victim].take().end().await.unwrap();
        fleet.recovered(Duration::from_secs(30)).await.unwrap();
        fleet.states[victim].start().await.unwrap();
    }
    finish(fleet, senders, &mut follower).await;
}

async fn finish(fleet: Fleet, senders: system_tests::client::Senders, follower: &mut Follower) {
    assert!(
        senders.finish().await,
        "some callbacks were not stored in time"
    );
    fleet
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    let head = fleet.reader().info().await.unwrap().head_position;
    follower
        .caught_up(head, Duration::from_secs(20))
        .await
        .unwrap();
    fleet.finish().await.unwrap();
}

/// The longest time from a callback to the subscribers of every replica, one of which did not record it.
async fn slowest_arrival(fleet: &Fleet) -> Duration {
    let followers: Vec<Follower> = fleet
        .grpc_addresses()
        .iter()
        .map(|address| Follower::start(&[*address], Habits::default()))
        .collect();
    let mut slowest = Duration::ZERO;
    for number in 1..=4 {
        // The log rests, so that replicas look at it seldom.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let began = Instant::now();
        let callback = standard("CREATED", &format!("late-{number}"), 0, None);
        fleet
            .load(vec![callback], 1, Duration::from_secs(10))
            .await
            .unwrap();
        wait_for("the event", Duration::from_secs(20), async || {
            let seen: Vec<u64> = followers
                .iter()
                .map(|follower| follower.progress().position)
                .collect();
            if seen.iter().all(|position| *position >= number) {
                Ok(())
            } else {
                Err(format!("{seen:?} of {number}"))
            }
        })
        .await
        .unwrap();
        slowest = slowest.max(began.elapsed());
    }
    slowest
}

/// Polling is the truth: a lost wake-up costs the interval, never the event.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_reach_subscribers_of_other_replicas_without_any_notification() {
    let options = Options {
        store_keys: "notifications = false".to_owned(),
        ..Options::default()
    };
    let (_postgres, fleet) = two_and_two(options).await;
    let slowest = slowest_arrival(&fleet).await;
    // The interval at rest is 1 s.
    assert!(slowest < Duration::from_secs(8), "{slowest:?}");
    fleet.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn notifications_bring_events_to_other_replicas_long_before_the_next_poll() {
    let options = Options {
        state_tables: "[subscriptions]\npoll_interval = \"10s\"\npoll_interval_idle = \"60s\"\n"
            .to_owned(),
        ..Options::default()
    };
    let (_postgres, fleet) = two_and_two(options).await;
    let slowest = slowest_arrival(&fleet).await;
    // Without them an event would wait for a poll, more than 8 s after the one before.
    assert!(slowest < Duration::from_secs(6), "{slowest:?}");
    fleet.finish().await.unwrap();
}
