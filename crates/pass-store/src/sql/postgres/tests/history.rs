//! A database that goes back in time, and wake-ups.

use std::sync::Arc;
use std::time::Duration;

use pass_domain::delivery::Outcome;
use pass_domain::event::Position;
use test_kit::{ChaosProxy, TestPostgres, wait_for};

use super::super::PostgresOptions;
use super::{open, send, server, updated};
use crate::contract::{Error, Head, PassStore, Scope, SpoolHello};
use crate::sql::SqlStore;
use crate::suite::{Feed, hello, whole_log};

/// Puts a database back to where it was when it had so many events, as a failover to a standby that missed
/// the rest would. Every connection is cut, as then.
async fn put_back(server: &TestPostgres, url: &str, position: u64) {
    put_back_unseen(server, url, position).await;
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
               WHERE datname = current_database() AND pid <> pg_backend_pid()";
    server.sql(url, cut).await.expect("cut");
}

/// The same behind a proxy that keeps its clients' connections.
async fn put_back_unseen(server: &TestPostgres, url: &str, position: u64) {
    let text = format!(
        "BEGIN; \
         UPDATE log_head SET position = {position}, last_delivery_number = {position}, deliveries = {position}, \
           applied = {position}, facts = {position}, events = {position}, \
           digest = saved.digest FROM saved WHERE saved.position = {position}; \
         DELETE FROM event WHERE position > {position}; DELETE FROM delivery WHERE number > {position}; \
         DELETE FROM delivery_personal WHERE number > {position}; \
         UPDATE pass SET body = saved.body, digest = saved.pass_digest, last_position = {position}, \
           last_digest = saved.digest FROM saved WHERE saved.position = {position}; \
         UPDATE spool SET committed_sequence = LEAST(committed_sequence, {position}); \
         COMMIT"
    );
    server.sql(url, &text).await.expect("put back");
}

/// Takes note of where the database is.
async fn save(server: &TestPostgres, url: &str) {
    let text = "CREATE TABLE IF NOT EXISTS saved AS SELECT position, digest, ''::bytea AS body, 0::bigint AS pass_digest \
                FROM log_head LIMIT 0; \
                INSERT INTO saved SELECT h.position, h.digest, p.body, p.digest FROM log_head h, pass p";
    server.sql(url, text).await.expect("saved");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_went_back_gets_one_new_epoch_however_many_notice() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let (first, second, third) = (open(&url).await, open(&url).await, open(&url).await);
    for sequence in 1..=2 {
        send(&*first, sequence).await.expect("sent");
    }
    save(&server, &url).await;
    for sequence in 3..=4 {
        send(&*first, sequence).await.expect("sent");
    }
    let lost = first.head().await.expect("read");
    assert_eq!(second.head().await.expect("read"), lost);
    put_back(&server, &url, 2).await;

    // All three ask at once: two have seen what is gone, one never looked.
    let settled = SpoolHello {
        settled_sequence: 4,
        oldest_sequence: 1,
        ..hello(1)
    };
    let (a, b, c) = tokio::join!(
        first.spool_open(&settled),
        second.epoch_seen(),
        third.spool_open(&settled)
    );
    let (a, c) = (a.expect("opened"), c.expect("opened"));
    assert_eq!((a.committed_sequence, c.committed_sequence), (2, 2));
    let now = read(&first).await;
    assert_ne!(now.epoch, lost.epoch);
    assert_eq!(now.position, Position(2));
    if let Some(epoch) = b {
        assert_eq!(epoch, now.epoch, "a reader sees the new epoch or waits");
    }
    // Whoever notices later finds that it was done.
    assert!(!(a.epoch_changed && c.epoch_changed), "changed twice");
    let again = second.spool_open(&settled).await.expect("opened");
    assert!(!again.epoch_changed);
    for store in [&first, &second, &third] {
        assert_eq!(read(store).await.epoch, now.epoch);
    }
    let mut feed = Feed::open(&(Arc::clone(&second) as Arc<dyn PassStore>), 1).await;
    assert_eq!(
        feed.append([updated(3), updated(4)]).await,
        [Outcome::Applied; 2]
    );
    let refilled = third.head().await.expect("read");
    assert_eq!(
        (refilled.epoch, refilled.position, refilled.digest),
        (now.epoch, lost.position, lost.digest)
    );
    for store in [first, second, third] {
        store.close().await;
    }
}

/// Has the server count the epochs from now on.
async fn count_epochs(server: &TestPostgres, url: &str) {
    let text = "CREATE TABLE epochs (epoch bigint); \
         CREATE FUNCTION count_epoch() RETURNS trigger LANGUAGE plpgsql AS \
           $$ BEGIN INSERT INTO epochs VALUES (NEW.epoch); RETURN NULL; END $$; \
         CREATE TRIGGER count_epoch AFTER UPDATE ON log_head FOR EACH ROW \
           WHEN (OLD.epoch <> NEW.epoch) EXECUTE FUNCTION count_epoch()";
    server.sql(url, text).await.expect("counting");
}

async fn epochs(server: &TestPostgres, url: &str) -> String {
    let count = server.sql(url, "SELECT count(*) FROM epochs").await;
    count.expect("counted")
}

// Whatever finds out about one restore, and in whatever order: replicas by what they have seen, subscribers'
// places, spools, and the operator who rotates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_restore_is_one_change_of_the_epoch_whoever_finds_out() {
    for rotates in [true, false] {
        let server = server().await;
        let url = server.database().await.expect("a database");
        let (first, second) = (open(&url).await, open(&url).await);
        for sequence in 1..=2 {
            send(&*first, sequence).await.expect("sent");
        }
        save(&server, &url).await;
        let mut spools = Vec::new();
        for id in 2..=3 {
            spools.push(Feed::open(&(Arc::clone(&second) as Arc<dyn PassStore>), id).await);
        }
        for sequence in 3..=4 {
            send(&*first, sequence).await.expect("sent");
        }
        let lost = second.head().await.expect("read");
        count_epochs(&server, &url).await;
        put_back(&server, &url, 2).await;
        let hello = |id, settled_sequence| SpoolHello {
            settled_sequence,
            oldest_sequence: 1,
            ..hello(id)
        };
        if rotates {
            let rotated = first.epoch_rotate().await.expect("rotated");
            assert_ne!(rotated.epoch, lost.epoch);
            assert_eq!(epochs(&server, &url).await, "1");
        }
        for _ in 0..2 {
            let hellos = [hello(1, 4), hello(2, 1), hello(3, 1)];
            let (a, b, c, d, e) = tokio::join!(
                first.epoch_leave(lost.cursor()),
                second.epoch_leave(lost.cursor()),
                first.spool_open(&hellos[0]),
                second.spool_open(&hellos[1]),
                first.spool_open(&hellos[2]),
            );
            let epoch = a.expect("left").epoch;
            assert_eq!(b.expect("left").epoch, epoch);
            for opened in [c, d, e] {
                assert_eq!(opened.expect("opened").epoch, epoch);
            }
            assert_eq!(epochs(&server, &url).await, "1", "rotated: {rotates}");
        }
        drop(spools);
        first.close().await;
        second.close().await;
    }
}

/// The head, once connections that were cut have been found out.
async fn read(store: &SqlStore) -> Head {
    let read = wait_for("a reader", Duration::from_secs(10), async || {
        store.head().await.map_err(|error| error.to_string())
    });
    read.await.expect("read")
}

impl SqlStore {
    /// The epoch that a subscriber would see now; `None` if it is told to wait.
    async fn epoch_seen(&self) -> Option<u64> {
        self.head().await.ok().map(|head| head.epoch)
    }
}

// Somebody who had not seen the end wrote on, past where the others had been: the position alone does not
// tell, the event there does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_events_at_seen_positions_are_noticed_by_readers_and_writers() {
    for (by_reading, cut) in [(true, true), (false, true), (true, false), (false, false)] {
        let server = server().await;
        let url = server.database().await.expect("a database");
        let store = open(&url).await;
        send(&*store, 1).await.expect("sent");
        save(&server, &url).await;
        send(&*store, 2).await.expect("sent");
        let before = store.head().await.expect("read");
        if cut {
            put_back(&server, &url, 1).await;
        } else {
            put_back_unseen(&server, &url, 1).await;
        }
        let stranger = open(&url).await;
        let mut feed = Feed::open(&(Arc::clone(&stranger) as Arc<dyn PassStore>), 2).await;
        assert_eq!(
            feed.append([updated(7), updated(8), updated(9)]).await,
            [Outcome::Applied; 3]
        );
        assert_eq!(stranger.head().await.expect("read").epoch, before.epoch);
        let after = if by_reading {
            read(&store).await
        } else {
            store.spool_open(&hello(3)).await.expect("opened");
            stranger.head().await.expect("read")
        };
        assert_ne!(
            after.epoch, before.epoch,
            "by reading: {by_reading}, cut: {cut}"
        );
        assert_eq!(after.position, Position(4));
        assert_eq!(whole_log(&*stranger).await.len(), 4);
        store.close().await;
        stranger.close().await;
    }
}

// A server that is merely started anew has the same history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_the_epoch_and_wakes_listeners_up() {
    let mut server = TestPostgres::start().await.expect("a server");
    let url = server.database().await.expect("a database");
    let (writer, listener) = (open(&url).await, open(&url).await);
    send(&*writer, 1).await.expect("sent");
    let before = listener.head().await.expect("read");
    let mut hints = listener.hints().expect("they are on");
    server.restart().await.expect("started anew");
    let wait = Duration::from_secs(10);
    wait_for("the writer", wait, async || {
        send(&*writer, 2).await.map_err(|error| error.to_string())
    })
    .await
    .expect("sent");
    let after = wait_for("a reader", wait, async || {
        listener.head().await.map_err(|error| error.to_string())
    })
    .await
    .expect("read");
    assert_eq!((after.epoch, after.position), (before.epoch, Position(2)));
    // A new connection is a hint; once there is one, so is each commit.
    tokio::time::timeout(wait, hints.changed())
        .await
        .expect("in time")
        .expect("open");
    wait_for("a hint of a commit", wait, async || {
        hints.mark_unchanged();
        let sequence = listener
            .head()
            .await
            .map_err(|error| error.to_string())?
            .position
            .0
            + 1;
        send(&*writer, sequence)
            .await
            .map_err(|error| error.to_string())?;
        match tokio::time::timeout(Duration::from_millis(500), hints.changed()).await {
            Ok(Ok(())) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .expect("woken");
    writer.close().await;
    listener.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_of_others_are_hinted_at_and_own_ones_are_not() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let (writer, listener) = (open(&url).await, open(&url).await);
    let (mut own, mut others) = (
        writer.hints().expect("they are on"),
        listener.hints().expect("they are on"),
    );
    let wait = Duration::from_secs(10);
    for hints in [&mut own, &mut others] {
        tokio::time::timeout(wait, hints.wait_for(|hints| *hints > 0))
            .await
            .expect("in time")
            .expect("connected");
    }
    own.mark_unchanged();
    others.mark_unchanged();
    for sequence in 1..=3 {
        send(&*writer, sequence).await.expect("sent");
        tokio::time::timeout(wait, others.changed())
            .await
            .expect("in time")
            .expect("open");
    }
    assert!(!own.has_changed().expect("open"));
    let quiet = PostgresOptions {
        notifications: false,
        ..PostgresOptions::new(&url)
    };
    let quiet = SqlStore::open_postgres(quiet).await.expect("opened");
    assert!(quiet.hints().is_none());
    for store in [&*writer, &*listener, &quiet] {
        store.close().await;
    }
}

// The real thing: the standby missed the last commits, the primary is lost, and the address leads to the
// standby, promoted. The store notices by itself, and the spool refills the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_that_loses_commits_is_noticed_and_refilled() {
    let mut primary = TestPostgres::start().await.expect("a server");
    let direct = primary.database().await.expect("a database");
    let proxy = ChaosProxy::start(primary.address()).await.expect("a proxy");
    let address = primary.address().to_string();
    let url = direct.replace(&address, &proxy.address().to_string());
    let store = open(&url).await;
    send(&*store, 1).await.expect("sent");
    let mut standby = primary.standby().await.expect("a standby");
    send(&*store, 2).await.expect("sent");
    wait_for("replication", Duration::from_secs(20), async || {
        let there = direct.replace(&address, &standby.address().to_string());
        match standby.sql(&there, "SELECT position FROM log_head").await {
            Ok(position) if position == "2" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .expect("replicated");
    standby.stop().await.expect("stopped");
    for sequence in 3..=5 {
        send(&*store, sequence).await.expect("sent");
    }
    let lost = store.head().await.expect("read");
    primary.kill().await.expect("killed");
    standby.restart().await.expect("started");
    proxy.set_upstream(standby.address());
    proxy.cut_all().await;
    // Until it is promoted, there is nothing to write to and nothing that may be read.
    let waiting = store.spool_open(&hello(1)).await;
    assert!(matches!(waiting, Err(Error::Unavailable(_))), "{waiting:?}");
    standby.promote().await.expect("promoted");
    let after = wait_for("the new primary", Duration::from_secs(10), async || {
        store.head().await.map_err(|error| error.to_string())
    })
    .await
    .expect("read");
    assert_eq!(after.position, Position(2));
    assert_ne!(after.epoch, lost.epoch, "noticed by reading alone");
    let settled = SpoolHello {
        settled_sequence: 5,
        oldest_sequence: 1,
        ..hello(1)
    };
    let opened = store.spool_open(&settled).await.expect("opened");
    assert_eq!(
        (opened.committed_sequence, opened.epoch_changed),
        (2, false)
    );
    let mut feed = Feed::open(&(Arc::clone(&store) as Arc<dyn PassStore>), 1).await;
    assert_eq!(
        feed.append((3..=5).map(updated)).await,
        [Outcome::Applied; 3]
    );
    let refilled = store.head().await.expect("read");
    assert_eq!(
        (refilled.epoch, refilled.position, refilled.digest),
        (after.epoch, lost.position, lost.digest)
    );
    store.close().await;
}

// A standby that has everything so far and whose clients would be told of nothing new.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_from_a_standby() {
    let mut primary = TestPostgres::start().await.expect("a server");
    let direct = primary.database().await.expect("a database");
    let proxy = ChaosProxy::start(primary.address()).await.expect("a proxy");
    let address = primary.address().to_string();
    let options = PostgresOptions {
        acquire_timeout: Duration::from_secs(1),
        ..PostgresOptions::new(direct.replace(&address, &proxy.address().to_string()))
    };
    let store = SqlStore::open_postgres(options).await.expect("opened");
    send(&store, 1).await.expect("sent");
    let before = store.head().await.expect("read");
    let standby = primary.standby().await.expect("a standby");
    primary.kill().await.expect("killed");
    proxy.set_upstream(standby.address());
    proxy.cut_all().await;
    for _ in 0..2 {
        let read = store.head().await;
        assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    }
    standby.promote().await.expect("promoted");
    assert_eq!(read(&store).await, before);
    store.close().await;
}

// Replicas that write about the same passes at the same time: one gapless log, nothing twice, and whoever
// follows it sees every position in its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_that_write_at_once_make_one_log() {
    const REPLICAS: u8 = 4;
    const BATCHES: u64 = 25;
    let server = server().await;
    let url = server.database().await.expect("a database");
    let mut writers = Vec::new();
    for spool in 1..=REPLICAS {
        let store = open(&url).await;
        writers.push(tokio::spawn(async move {
            let shared = Arc::clone(&store) as Arc<dyn PassStore>;
            let mut feed = Feed::open(&shared, spool).await;
            for batch in 0..BATCHES {
                // All tell the same facts in deliveries of their own, each from another end.
                let at = if spool % 2 == 0 {
                    batch
                } else {
                    BATCHES - 1 - batch
                };
                let told = (0..4).map(|place| {
                    let mut told = updated(at * 4 + place);
                    told.id = updated(u64::from(spool) * 10_000 + at * 4 + place).id;
                    told
                });
                feed.append(told).await;
            }
            store.close().await;
        }));
    }
    let reader = open(&url).await;
    let mut last = 0;
    while last < BATCHES * 4 {
        let page = reader
            .events_after(&Scope::everything(), Position(last), 7)
            .await
            .expect("read");
        for event in page.rows {
            last += 1;
            assert_eq!(event.position.0, last);
        }
    }
    for writer in writers {
        writer.await.expect("written");
    }
    let books = reader.log_info().await.expect("read").books;
    assert!(books.balance());
    assert_eq!(
        (books.deliveries, books.events, books.duplicate_facts),
        (
            u64::from(REPLICAS) * BATCHES * 4,
            BATCHES * 4,
            u64::from(REPLICAS - 1) * BATCHES * 4
        )
    );
    assert_eq!(whole_log(&*reader).await.len() as u64, BATCHES * 4);
    reader.close().await;
}
