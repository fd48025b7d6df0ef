//! A server that fails, and a network that does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pass_domain::delivery::Outcome;
use pass_domain::event::Position;
use sea_orm::ConnectionTrait;
use test_kit::{ChaosProxy, Cut, TestPostgres, wait_for};

use super::super::PostgresOptions;
use super::{open, send, server, updated};
use crate::contract::{Error, PassStore, Scope};
use crate::sql::connection::{Readers, Transaction};
use crate::sql::{Failure, SqlStore};
use crate::suite::make::at;
use crate::suite::{Feed, outcomes, whole_log};

fn through(url: &str, proxy: &ChaosProxy) -> PostgresOptions {
    let (before, rest) = url.split_once('@').expect("a role");
    let (_, database) = rest.split_once('/').expect("a database");
    let mut options = PostgresOptions::new(format!("{before}@{}/{database}", proxy.address()));
    options.notifications = false;
    options
}

// The power goes while batches are written. What was acknowledged is there, nothing is there twice, callers
// were told to wait or that the outcome is unknown, and nobody has to help.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_costs_waiting_and_nothing_else() {
    let mut server = TestPostgres::start().await.expect("a server");
    let url = server.database().await.expect("a database");
    let store = open(&url).await;
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move {
            let (mut sequence, mut failures, mut longest_gap) = (1, 0, Duration::ZERO);
            let mut last_done = Instant::now();
            while failures == 0 || sequence < 300 {
                match send(&*store, sequence).await {
                    Ok(Outcome::Applied | Outcome::Duplicate) => {
                        sequence += 1;
                        longest_gap = longest_gap.max(last_done.elapsed());
                        last_done = Instant::now();
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(error) if error.is_transient() => failures += 1,
                    Err(error) => panic!("{error}"),
                }
                // So that a server that is away is not asked a thousand times a second.
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (sequence - 1, longest_gap)
        }
    });
    wait_for(
        "some commits",
        Duration::from_secs(20),
        async || match store.head().await {
            Ok(head) if head.position.0 > 20 => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await
    .expect("written");
    server.kill().await.expect("killed");
    assert!(
        matches!(store.head().await, Err(Error::Unavailable(_))),
        "nobody is there to answer"
    );
    server.restart().await.expect("started anew");
    let started = Instant::now();
    let (sent, longest_gap) = writer.await.expect("written");
    assert!(
        longest_gap < Duration::from_secs(20),
        "without a commit for {longest_gap:?}, the server's own start included"
    );
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(whole_log(&*store).await.len() as u64, sent);
    assert!(store.log_info().await.expect("read").books.balance());
    store.close().await;
}

// The answer to COMMIT is lost, or COMMIT itself: the caller does not know, and doing it again is harmless.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_without_an_answer_is_unknown_and_repeated_without_harm() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let proxy = ChaosProxy::start(server.address()).await.expect("a proxy");
    let options = through(&url, &proxy);
    let store = SqlStore::open_postgres(options).await.expect("opened");
    let mut feed = {
        let shared: Arc<dyn PassStore> = open(&url).await;
        Feed::open(&shared, 1).await
    };
    let (mut done, mut lost) = (0, 0);
    for (round, cut) in (0..24).zip(
        [Cut::SwallowAnswer, Cut::AfterSending, Cut::BeforeSending]
            .iter()
            .cycle(),
    ) {
        let part = feed.part([updated(round)]);
        proxy.cut_when_client_sends(b"COMMIT", 1, *cut);
        let error = store
            .append(std::slice::from_ref(&part), at(0))
            .await
            .expect_err("cut");
        assert!(
            matches!(error, Error::OutcomeUnknown(_)),
            "{cut:?}: {error}"
        );
        let again = store.append(&[part], at(0)).await.expect("appended");
        match (cut, outcomes(&again, 0)[0]) {
            (Cut::SwallowAnswer, Outcome::Duplicate) => done += 1,
            (Cut::BeforeSending, Outcome::Applied) => lost += 1,
            (Cut::AfterSending, Outcome::Duplicate | Outcome::Applied) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((proxy.cuts(), done, lost), (24, 8, 8));
    assert_eq!(whole_log(&store).await.len(), 24);
    store.close().await;
}

// Cut at any other statement, an append has certainly not happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_cut_before_its_commit_did_not_happen() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let proxy = ChaosProxy::start(server.address()).await.expect("a proxy");
    let store = SqlStore::open_postgres(through(&url, &proxy))
        .await
        .expect("opened");
    let mut feed = {
        let shared: Arc<dyn PassStore> = open(&url).await;
        Feed::open(&shared, 1).await
    };
    let part = feed.part([updated(1)]);
    for needle in ["INSERT INTO event", "UPDATE log_head", "UPDATE spool"] {
        proxy.cut_when_client_sends(needle.as_bytes(), 1, Cut::SwallowAnswer);
        let error = store.append(std::slice::from_ref(&part), at(0)).await;
        let error = error.expect_err(needle);
        assert!(matches!(error, Error::Unavailable(_)), "{needle}: {error}");
        assert_eq!(store.head().await.expect("read").position, Position(0));
    }
    let appended = store.append(&[part], at(0)).await.expect("appended");
    assert_eq!(outcomes(&appended, 0), [Outcome::Applied]);
    // A connection that turns out to be gone when a transaction begins is replaced without a word.
    let part = feed.part([updated(2)]);
    proxy.cut_when_client_sends(b"FOR UPDATE", 1, Cut::BeforeSending);
    let appended = store.append(&[part], at(0)).await.expect("appended");
    assert_eq!(outcomes(&appended, 0), [Outcome::Applied]);
    assert_eq!(proxy.cuts(), 4);
    store.close().await;
}

// A commit waits for a standby that is away. Neither time-out may turn that into success: a statement that is
// cancelled then would, since PostgreSQL gives up waiting, not committing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_waits_for_a_standby_is_never_called_done() {
    let server = TestPostgres::start().await.expect("a server");
    let url = server.database().await.expect("a database");
    let commit_timeout = Duration::from_millis(1_500);
    let options = PostgresOptions {
        statement_timeout: Duration::from_millis(200),
        lock_timeout: Duration::from_millis(200),
        commit_timeout,
        ..PostgresOptions::new(&url)
    };
    let store = SqlStore::open_postgres(options).await.expect("opened");
    assert_eq!(send(&store, 1).await.expect("sent"), Outcome::Applied);
    let generation = store
        .spool_open(&crate::suite::hello(1))
        .await
        .expect("opened")
        .generation;
    let part = crate::AppendPart {
        spool: crate::suite::hello(1).spool,
        generation,
        deliveries: vec![(2, Arc::new(updated(2)))],
    };
    let names = |value: &str| {
        format!("ALTER SYSTEM SET synchronous_standby_names = '{value}'; SELECT pg_reload_conf()")
    };
    let admin = server.url("postgres");
    server.sql(&admin, &names("nobody")).await.expect("set");
    wait_for(
        "the setting",
        Duration::from_secs(10),
        async || match server.sql(&admin, "SHOW synchronous_standby_names").await {
            Ok(names) if names == "nobody" => Ok(()),
            other => Err(format!("{other:?}")),
        },
    )
    .await
    .expect("set");
    let started = Instant::now();
    let error = store
        .append(std::slice::from_ref(&part), at(0))
        .await
        .expect_err("the standby is away");
    assert!(matches!(error, Error::OutcomeUnknown(_)), "{error}");
    assert!(
        started.elapsed() >= commit_timeout,
        "{:?}",
        started.elapsed()
    );
    // The server goes on waiting, and holds the head meanwhile: nobody can see or follow that commit.
    assert_eq!(store.head().await.expect("read").position, Position(1));
    let error = store
        .append(std::slice::from_ref(&part), at(0))
        .await
        .expect_err("the head is held");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");

    server.sql(&admin, &names("")).await.expect("set");
    let again = wait_for("the commit", Duration::from_secs(10), async || {
        store
            .append(std::slice::from_ref(&part), at(0))
            .await
            .map_err(|error| error.to_string())
    })
    .await
    .expect("appended");
    assert_eq!(
        outcomes(&again, 0),
        [Outcome::Duplicate],
        "it was committed after all"
    );
    assert_eq!(whole_log(&store).await.len(), 2);
    store.close().await;
}

// PostgreSQL answers the COMMIT of a transaction in which a statement failed with a ROLLBACK, and the driver
// calls that success. It must never be sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_with_a_failed_statement_cannot_be_committed() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let store = open(&url).await;
    let (transaction, head) = store.begin().await.expect("begun");
    transaction
        .execute_unprepared("UPDATE log_head SET applied = applied + 7")
        .await
        .expect("changed");
    transaction
        .execute_unprepared("SELECT 1 / 0")
        .await
        .expect_err("impossible");
    let committed = store.commit(transaction, &head, 0).await;
    let Err(Failure::Database(error)) = committed else {
        panic!("{committed:?}")
    };
    assert!(store.classify(&error).is_certainly_not_done(), "{error}");
    assert_eq!(send(&*store, 1).await.expect("sent"), Outcome::Applied);
    store.close().await;
}

// A future that is dropped while a statement runs leaves a connection in the middle of an answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_dropped_in_the_middle_disturbs_nobody() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let store = open(&url).await;
    let (transaction, _) = store.begin().await.expect("begun");
    {
        let slow = transaction.execute_unprepared("SELECT pg_sleep(20)");
        tokio::time::timeout(Duration::from_millis(100), slow)
            .await
            .expect_err("it sleeps");
    }
    drop(transaction);
    // The server may not notice before it has slept; nothing on this side waits for it but the lock.
    server
        .sql(&url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()")
        .await
        .expect("ended");
    assert_eq!(send(&*store, 1).await.expect("sent"), Outcome::Applied);
    for _ in 0..20 {
        let slow = store.readers().execute_unprepared("SELECT pg_sleep(20)");
        tokio::time::timeout(Duration::from_millis(5), slow)
            .await
            .expect_err("it sleeps");
        let head = store.head().await.expect("read");
        assert_eq!(head.position, Position(1));
    }
    store.close().await;
}

// Replicas wait for each other; one that stopped in the middle is put out of the way by the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_in_a_transaction_holds_the_others_up_for_a_while_only() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let options = PostgresOptions {
        idle_in_transaction_timeout: Duration::from_millis(1_000),
        lock_timeout: Duration::from_millis(200),
        ..PostgresOptions::new(&url)
    };
    let stopped = SqlStore::open_postgres(options.clone())
        .await
        .expect("opened");
    let other = SqlStore::open_postgres(options).await.expect("opened");
    let (transaction, head) = stopped.begin().await.expect("begun");
    let error = send(&other, 1).await.expect_err("the head is held");
    assert!(
        matches!(error, Error::Unavailable(_)) && error.is_certainly_not_done(),
        "{error}"
    );
    wait_for("the lock", Duration::from_secs(10), async || {
        match send(&other, 1).await {
            Ok(outcome) => Ok(outcome),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
    .expect("sent");
    let Transaction::Postgres(_) = &transaction else {
        panic!("of PostgreSQL")
    };
    stopped
        .commit(transaction, &head, 0)
        .await
        .expect_err("the server ended it");
    assert_eq!(send(&stopped, 2).await.expect("sent"), Outcome::Applied);
    stopped.close().await;
    other.close().await;
}

// The network swallows everything without a word: calls end all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_network_is_unavailable_in_time() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let proxy = ChaosProxy::start(server.address()).await.expect("a proxy");
    let options = PostgresOptions {
        // Of writes only: neither readers nor an idle writer wait that long for a server that is gone.
        statement_timeout: Duration::from_secs(60),
        read_timeout: Duration::from_millis(100),
        lock_timeout: Duration::from_millis(100),
        connect_timeout: Duration::from_secs(1),
        acquire_timeout: Duration::from_secs(1),
        ..through(&url, &proxy)
    };
    let store = SqlStore::open_postgres(options).await.expect("opened");
    assert_eq!(send(&store, 1).await.expect("sent"), Outcome::Applied);
    store.head().await.expect("read");
    // The statement is to meet the silence, not the making of a connection.
    let Readers::Postgres(readers) = store.readers() else {
        panic!("of PostgreSQL")
    };
    wait_for("an idle reader", Duration::from_secs(10), async || {
        let idle = readers.idle();
        (idle > 0).then_some(()).ok_or(idle)
    })
    .await
    .expect("it comes back");
    proxy.pause(true);
    let started = Instant::now();
    let (written, read) = tokio::join!(send(&store, 2), store.head());
    assert!(matches!(written, Err(Error::Unavailable(_))), "{written:?}");
    assert!(matches!(read, Err(Error::Unavailable(_))), "{read:?}");
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    proxy.pause(false);
    proxy.cut_all().await;
    wait_for("the server", Duration::from_secs(10), async || {
        send(&store, 2).await.map_err(|error| error.to_string())
    })
    .await
    .expect("sent");
    assert_eq!(store.head().await.expect("read").position, Position(2));
    store.close().await;
}

// The unique keys are the last line, and nothing of the batch is kept; damage stops that call only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_key_refuses_the_batch_and_a_damaged_row_the_read() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let store = open(&url).await;
    assert_eq!(send(&*store, 1).await.expect("sent"), Outcome::Applied);
    let head = "UPDATE log_head SET position = 0, digest = 0, epoch = epoch + 1";
    server.sql(&url, head).await.expect("changed");
    let error = send(&*store, 2).await.expect_err("position 1 is taken");
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(store.log_info().await.expect("read").books.deliveries, 1);
    let event = "UPDATE event SET body = '\\x02ff'; UPDATE log_head SET position = 1";
    server.sql(&url, event).await.expect("changed");
    let read = store
        .events_after(&Scope::everything(), Position(0), 10)
        .await;
    assert!(matches!(read, Err(Error::Corrupt(_))), "{read:?}");
    server
        .sql(&url, "DROP TABLE quarantine")
        .await
        .expect("dropped");
    let read = store
        .deliveries_list(&Scope::everything(), true, 0, 10)
        .await;
    assert!(matches!(read, Err(Error::Unfit(_))), "{read:?}");
    assert_eq!(*store.fatal().borrow(), None);
    store.close().await;
}

// A server can be told to lose commits while sessions are open. From then on nothing is written, and who asks is
// told why; what had begun before keeps what it began with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_lose_commits_are_noticed_by_open_sessions() {
    let server = TestPostgres::start().await.expect("a server");
    let url = server.database().await.expect("a database");
    let admin = server.url("postgres");
    let store = open(&url).await;
    let wait = Duration::from_secs(10);
    let mut sequence = 0;
    for (setting, value) in [
        ("synchronous_commit", "off"),
        ("synchronous_commit", "local"),
        ("fsync", "off"),
        ("full_page_writes", "off"),
    ] {
        let set = |value: &str| {
            format!("ALTER SYSTEM SET {setting} = '{value}'; SELECT pg_reload_conf()")
        };
        wait_for("the usual settings", wait, async || {
            let sent = send(&*store, sequence + 1).await;
            sent.map_err(|error| error.to_string())
        })
        .await
        .expect("sent");
        sequence += 1;
        let (transaction, head) = store.begin().await.expect("begun");
        server.sql(&admin, &set(value)).await.expect("set");
        let shown = format!("SHOW {setting}");
        wait_for("the setting", wait, async || {
            match server.sql(&admin, &shown).await {
                Ok(shown) if shown == value => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .expect("set");
        if setting == "synchronous_commit" {
            let kept = format!("SELECT 1 / (current_setting('{setting}') = 'on')::integer");
            let kept = transaction.execute_unprepared(&kept).await;
            kept.expect("the transaction keeps what it began with");
        }
        store
            .commit(transaction, &head, 0)
            .await
            .expect("committed");
        let refused = wait_for("the refusal", wait, async || {
            match send(&*store, sequence + 1).await {
                Ok(_) => {
                    sequence += 1;
                    Err("sent".to_owned())
                }
                Err(error) => Ok(error),
            }
        });
        let error = refused.await.expect("refused");
        let reason = format!("{setting} is {value}: acknowledged commits would be lost");
        assert!(
            matches!(&error, Error::Unavailable(text) if text.contains(&reason)),
            "{error}"
        );
        assert_eq!(
            store.head().await.expect("read").position,
            Position(sequence)
        );
        let reset = format!("ALTER SYSTEM RESET {setting}; SELECT pg_reload_conf()");
        server.sql(&admin, &reset).await.expect("reset");
    }
    store.close().await;
}
