//! PostgreSQL fails over to a standby under load: to one that has everything, and to one that missed the last
//! seconds.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use system_tests::callback::{Callback, standard, time_text};
use system_tests::client::Outcome;
use system_tests::fleet::{Database, Fleet, Layout, Options, SpoolKind};
use test_kit::{ChaosProxy, NatsSettings, TestNats, TestPostgres, wait_for};
use tokio::time::Instant;

use crate::programs;
use crate::restore::{
    another_epoch, assert_refused, assert_seen_anew, epoch_changes, status, told_of_another_history,
};

const LIMIT: Duration = Duration::from_secs(30);

/// A primary and its standby. Services only know the proxy before them.
struct Pair {
    primary: TestPostgres,
    standby: TestPostgres,
    proxy: ChaosProxy,
    /// The database, at the proxy.
    url: String,
    /// The database, at the standby.
    standby_url: String,
}

impl Pair {
    /// Makes one whose standby streams, without the primary waiting for it.
    async fn start() -> Self {
        let primary = TestPostgres::start().await.unwrap();
        let database = primary.database().await.unwrap();
        let standby = primary.standby().await.unwrap();
        let proxy = ChaosProxy::start(primary.address()).await.unwrap();
        let at = |address: std::net::SocketAddr| {
            database.replace(&primary.address().to_string(), &address.to_string())
        };
        Self {
            url: at(proxy.address()),
            standby_url: at(standby.address()),
            primary,
            standby,
            proxy,
        }
    }

    /// Has the primary answer no commit that the standby does not have on disk.
    async fn make_synchronous(&self) {
        let name = format!("standby_{}", self.standby.address().port());
        let text = format!(
            "ALTER SYSTEM SET synchronous_standby_names = '{name}'; SELECT pg_reload_conf()"
        );
        let postgres = self.primary.url("postgres");
        self.primary.sql(&postgres, &text).await.unwrap();
        let query = "SELECT sync_state FROM pg_stat_replication";
        until(&self.primary, &postgres, query, "sync").await;
    }

    /// Has the standby receive nothing any more.
    async fn cut_off_standby(&self) {
        let text = "ALTER SYSTEM SET primary_conninfo = ''; SELECT pg_reload_conf()";
        let postgres = self.standby.url("postgres");
        self.standby.sql(&postgres, text).await.unwrap();
        let query = "SELECT count(*) FROM pg_stat_wal_receiver";
        until(&self.standby, &postgres, query, "0").await;
    }

    /// Kills the primary, promotes the standby and sends clients there; returns when it was promoted.
    async fn fail_over(&mut self) -> Instant {
        self.primary.kill().await.unwrap();
        self.standby.promote().await.unwrap();
        let promoted = Instant::now();
        self.proxy.set_upstream(self.standby.address());
        promoted
    }

    /// Waits until the standby, which nobody waits for at a commit, would answer so.
    async fn until_standby_has(&self, query: &str, wanted: u64) {
        let url = &self.standby_url;
        until(&self.standby, url, query, &wanted.to_string()).await;
    }

    fn database(&self) -> Database {
        Database::Postgres {
            url: self.url.clone(),
        }
    }
}

/// Waits until a server answers a query so.
async fn until(server: &TestPostgres, url: &str, query: &str, wanted: &str) {
    wait_for(query, LIMIT, async || match server.sql(url, query).await {
        Ok(answer) if answer == wanted => Ok(()),
        Ok(answer) => Err(answer),
        Err(error) => Err(format!("{error:#}")),
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_to_a_synchronous_standby_loses_nothing_and_keeps_the_epoch() {
    let mut pair = Pair::start().await;
    let layout = Layout {
        gateways: 2,
        states: 2,
        database: pair.database(),
        ..Layout::default()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    pair.make_synchronous().await;
    fleet.note_epoch().await.unwrap();
    let mut follower = fleet.follower();

    let senders = fleet.senders(81, "sync", 8);
    fleet.wait_for_stored(300, LIMIT).await.unwrap();
    let promoted = pair.fail_over().await;
    fleet.recovered(LIMIT).await.unwrap();
    let away = promoted.elapsed();
    assert!(away < Duration::from_secs(10), "{away:?}");
    assert!(senders.finish().await);

    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    let head = fleet.reader().info().await.unwrap().head_position;
    follower.caught_up(head, LIMIT).await.unwrap();
    fleet.finish().await.unwrap();
}

/// The standby is cut off under load, and more is acknowledged before the primary dies.
async fn fail_over_to_a_standby_that_missed_something(spool: SpoolKind, seed: u64) {
    let mut pair = Pair::start().await;
    let layout = Layout {
        gateways: 2,
        states: 2,
        database: pair.database(),
        spool,
        ..Layout::default()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    let before = fleet.note_epoch().await.unwrap();
    let follower = fleet.follower();

    let senders = fleet.senders(seed, "async", 8);
    fleet.wait_for_stored(200, LIMIT).await.unwrap();
    pair.cut_off_standby().await;
    let more = fleet.log.stored_count() + 200;
    fleet.wait_for_stored(more, LIMIT).await.unwrap();
    // What was stored until here is committed and acknowledged.
    fleet.recovered(LIMIT).await.unwrap();
    let seen = fleet.reader().info().await.unwrap();
    let promoted = pair.fail_over().await;
    another_epoch(&fleet, &before).await;
    fleet.recovered(LIMIT).await.unwrap();
    let away = promoted.elapsed();
    assert!(away < Duration::from_secs(10), "{away:?}");
    assert!(senders.finish().await);

    // The verdict also says whether the epoch changed once more.
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    let changes = epoch_changes(&fleet);
    assert_eq!(changes.len(), 1, "{changes:#?}");
    assert_refused(&fleet, &[seen.head_cursor]).await;
    assert_seen_anew(&fleet).await;
    told_of_another_history(&follower).await;
    fleet.finish_with_errors(&["new epoch"]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standby_missed_is_refilled_from_the_spools_and_old_cursors_are_refused() {
    fail_over_to_a_standby_that_missed_something(SpoolKind::Embedded, 82).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standby_missed_is_refilled_from_the_shared_stream() {
    let nats = TestNats::start(NatsSettings::default()).await.unwrap();
    fail_over_to_a_standby_that_missed_something(SpoolKind::on(&nats), 83).await;
}

/// A callback of so many bytes that a few dozen fill a segment of the spool.
fn large(pass: &str) -> Arc<Callback> {
    let body = json!({
        "kind": "CREATED", "pass": pass, "occur_time": time_text(0), "padding": "x".repeat(50_000),
    });
    Callback::json("standard", &body)
}

/// Ids of the deliveries answered 200 by the one gateway, which are numbered 1, 2, … as its spool does.
fn stored(fleet: &Fleet) -> Vec<String> {
    let attempts = fleet.log.attempts().into_iter();
    attempts
        .filter_map(|attempt| match attempt.outcome {
            Outcome::Stored(receipt) => Some(format!("deliveries/{}", receipt.delivery)),
            Outcome::Refused(_) | Outcome::Indeterminate(_) => None,
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standby_missed_and_the_spool_dropped_is_alarmed_on_both_sides_exactly() {
    let mut pair = Pair::start().await;
    let layout = Layout {
        gateways: 1,
        states: 1,
        database: pair.database(),
        options: Options {
            spool_keys: "retain_bytes = 0".to_owned(),
            ..Options::default()
        },
        ..Layout::default()
    };
    let fleet = Fleet::started(&programs(), &layout).await.unwrap();
    let before = fleet.note_epoch().await.unwrap();
    // One connection: the order of the answers is that of the sequences.
    let send = async |tag: &str, count: usize| {
        let callbacks = (0..count).map(|number| large(&format!("{tag}-{number}")));
        fleet.load(callbacks.collect(), 1, LIMIT).await.unwrap();
    };
    send("kept", 10).await;
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    let committed = 10;
    pair.until_standby_has("SELECT committed_sequence FROM spool", committed)
        .await;
    pair.cut_off_standby().await;
    send("missed", 80).await;
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    let gateway = &fleet.gateways[0];
    let oldest_kept = wait_for("the spool to drop segments", LIMIT, async || {
        let oldest = status(gateway).await.unwrap()["spool"]["oldest_kept"].as_u64();
        // All but the newest segment is gone.
        oldest
            .filter(|oldest| *oldest > 80)
            .ok_or_else(|| format!("{oldest:?}"))
    })
    .await
    .unwrap();
    let seen = fleet.reader().info().await.unwrap();

    pair.fail_over().await;
    another_epoch(&fleet, &before).await;
    let after = standard("CREATED", "after", 0, None);
    fleet.load(vec![after], 1, LIMIT).await.unwrap();
    fleet.drained(LIMIT).await.unwrap();

    let (first, last) = (committed + 1, oldest_kept - 1);
    let info = fleet.reader().info().await.unwrap();
    let told: Vec<&str> = info
        .spools
        .iter()
        .map(|spool| spool.missing_sequences.as_str())
        .collect();
    assert_eq!(told, [format!("{first}-{last}")]);
    assert_eq!(
        status(gateway).await.unwrap()["forward"]["missing"],
        json!([first, last])
    );

    // And that is what is missing, no more and no less.
    let recorded: BTreeSet<String> = fleet
        .reader()
        .history()
        .await
        .unwrap()
        .deliveries
        .into_iter()
        .map(|delivery| delivery.name)
        .collect();
    let missing: Vec<u64> = (1..)
        .zip(stored(&fleet))
        .filter_map(|(sequence, name)| (!recorded.contains(&name)).then_some(sequence))
        .collect();
    assert_eq!(missing, (first..=last).collect::<Vec<u64>>());
    assert_eq!(recorded.len(), stored(&fleet).len() - missing.len());
    assert_refused(&fleet, &[seen.head_cursor]).await;
    assert_seen_anew(&fleet).await;
    fleet
        .finish_with_errors(&[
            "new epoch",
            "sequences are on neither side any more",
            "deliveries are missing: the database lost them",
            "pass-state lacks deliveries that the spool no longer keeps",
        ])
        .await
        .unwrap();
}
