//! The suite on SQLite, and what only files can do.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use pass_domain::delivery::Outcome;
use pass_domain::event::Position;
use pass_domain::kind::Kind;
use sea_orm::ConnectionTrait;
use tempfile::TempDir;

use super::{SqlStore, SqliteOptions};
use crate::contract::{Error, PassStore, Scope, SpoolHello};
use crate::suite::make::{Says, at, delivery, short};
use crate::suite::{Feed, hello, outcomes, whole_log};

async fn sqlite() -> (Arc<dyn PassStore>, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqlStore::open(SqliteOptions::new(directory.path().join("log.db")))
        .await
        .expect("opened");
    (Arc::new(store), directory)
}

crate::store_suite!(sqlite);

fn updated(number: u64) -> pass_domain::delivery::Delivery {
    let seconds = i64::try_from(number).expect("small");
    delivery(
        "acme",
        number,
        &Says::Facts(vec![short(1, Kind::Updated, seconds)], None),
    )
}

// A backup is put back after more was committed: the gateway's settled sequence gives it away, the epoch
// changes, and the spool refills the log.
#[tokio::test]
async fn a_restored_file_is_noticed_and_refilled() {
    let directory = tempfile::tempdir().expect("a directory");
    let (path, backup) = (
        directory.path().join("log.db"),
        directory.path().join("backup.db"),
    );
    let open = || async {
        Arc::new(
            SqlStore::open(SqliteOptions::new(&path))
                .await
                .expect("opened"),
        ) as Arc<dyn PassStore>
    };
    let store = open().await;
    Feed::open(&store, 1)
        .await
        .append([updated(1), updated(2)])
        .await;
    store.close().await;
    std::fs::copy(&path, &backup).expect("copied");
    let store = open().await;
    Feed::open(&store, 1)
        .await
        .append([updated(3), updated(4)])
        .await;
    let lost = store.head().await.expect("read");
    assert_eq!(lost.position, Position(4));
    store.close().await;

    std::fs::copy(&backup, &path).expect("copied");
    let store = open().await;
    assert_eq!(
        store.head().await.expect("read").epoch,
        lost.epoch,
        "a file cannot know that it is old"
    );
    let says = SpoolHello {
        settled_sequence: 4,
        oldest_sequence: 1,
        ..hello(1)
    };
    let opened = store.spool_open(&says).await.expect("opened");
    assert_eq!(
        (
            opened.committed_sequence,
            opened.epoch_changed,
            opened.missing
        ),
        (2, true, None)
    );
    assert_eq!(opened.committed_delivery, Some(updated(2).id));
    let mut feed = Feed::open(&store, 1).await;
    assert_eq!(
        feed.append([updated(3), updated(4)]).await,
        [Outcome::Applied; 2]
    );
    let refilled = store.head().await.expect("read");
    assert_eq!(
        (refilled.position, refilled.digest),
        (lost.position, lost.digest)
    );
    assert_ne!(refilled.epoch, lost.epoch);
    store.close().await;
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("deep/er/log.db");
    let store: Arc<dyn PassStore> = Arc::new(
        SqlStore::open(SqliteOptions::new(&path))
            .await
            .expect("opened"),
    );
    Feed::open(&store, 1).await.append([updated(1)]).await;
    let head = store.head().await.expect("read");
    // Not closed: as after a kill, the commit is in the write-ahead log only.
    let mode =
        |path: &std::path::Path| path.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(&path.with_file_name("log.db-wal")), 0o600);
    assert_eq!(mode(path.parent().expect("a directory")), 0o700);
    let again = SqlStore::open(SqliteOptions {
        migrate: false,
        ..SqliteOptions::new(&path)
    })
    .await
    .expect("opened");
    assert_eq!(again.head().await.expect("read"), head);
    assert_eq!(whole_log(&again).await.len(), 1);
    let opened = again.spool_open(&hello(1)).await.expect("opened");
    assert_eq!(opened.committed_delivery, Some(updated(1).id));
    again.close().await;
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processes_that_start_at_once_on_a_new_file_make_one_schema() {
    for _ in 0..3 {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log.db");
        let starts: Vec<_> = (0..8)
            .map(|_| tokio::spawn(SqlStore::open(SqliteOptions::new(&path))))
            .collect();
        let mut epochs = Vec::new();
        for start in starts {
            let store = start.await.expect("ran").expect("opened");
            epochs.push(store.head().await.expect("read").epoch);
            store.close().await;
        }
        assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
    }
}

// A release that is put back meets the schema of the newer one, which only adds.
#[tokio::test]
async fn a_schema_that_a_newer_release_added_to_is_used() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log.db");
    let open = |migrate| {
        SqlStore::open(SqliteOptions {
            migrate,
            ..SqliteOptions::new(&path)
        })
    };
    let store = open(true).await.expect("opened");
    let later = "INSERT INTO seaql_migrations VALUES ('m29990101_000001_from_the_future', 1)";
    let writer = store.sqlite_writer();
    writer.execute_unprepared(later).await.expect("inserted");
    store.close().await;
    for migrate in [true, false] {
        open(migrate).await.expect("opened").close().await;
    }
    let store = open(true).await.expect("opened");
    let contracts =
        "INSERT INTO seaql_migrations VALUES ('m29990101_000002_needs_29990101_000001_drop', 1)";
    let writer = store.sqlite_writer();
    writer
        .execute_unprepared(contracts)
        .await
        .expect("inserted");
    store.close().await;
    for migrate in [true, false] {
        let error = open(migrate).await.expect_err("it lacks what was dropped");
        assert!(
            matches!(&error, Error::Unfit(text) if text.contains("or a newer one")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_unfit_file_is_refused_with_the_fix() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("log.db");
    let open = |migrate| {
        SqlStore::open(SqliteOptions {
            migrate,
            ..SqliteOptions::new(&path)
        })
    };
    let empty = open(false).await.expect_err("there is no schema");
    assert!(
        matches!(empty, Error::NotMigrated { lacking } if lacking > 0),
        "{empty}"
    );
    open(true).await.expect("opened").close().await;
    open(false)
        .await
        .expect("the schema is there")
        .close()
        .await;
    // A page of the file is overwritten.
    let mut bytes = std::fs::read(&path).expect("read");
    bytes[4_096..8_192].fill(0xa5);
    std::fs::write(&path, bytes).expect("written");
    let damaged = open(true).await.expect_err("it is damaged");
    assert!(
        matches!(damaged, Error::Unfit(_) | Error::Unavailable(_)),
        "{damaged}"
    );
    std::fs::write(
        &path,
        "not a database, but long enough to be read as one ".repeat(100),
    )
    .expect("written");
    assert!(open(true).await.is_err());
}

// The file is held by someone else: waiting helps, and nothing was done.
#[tokio::test]
async fn a_locked_file_is_unavailable_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = SqliteOptions {
        busy_timeout: std::time::Duration::from_millis(20),
        ..SqliteOptions::new(directory.path().join("log.db"))
    };
    let store = SqlStore::open(options.clone()).await.expect("opened");
    let other = SqlStore::open(options).await.expect("opened");
    let (held, _) = other.begin().await.expect("begun");
    let error = store.spool_open(&hello(1)).await.expect_err("locked");
    assert!(
        matches!(error, Error::Unavailable(_)) && error.is_certainly_not_done(),
        "{error}"
    );
    assert_eq!(*store.fatal().borrow(), None);
    held.rollback().await.expect("rolled back");
    store.spool_open(&hello(1)).await.expect("free again");
    store.close().await;
    other.close().await;
}

// An unreadable row stops that call only; a damaged file stops every write.
#[tokio::test]
async fn damage_is_an_error_and_never_skipped() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(
        SqlStore::open(SqliteOptions::new(directory.path().join("log.db")))
            .await
            .expect("opened"),
    );
    let shared: Arc<dyn PassStore> = Arc::clone(&store) as Arc<dyn PassStore>;
    let mut feed = Feed::open(&shared, 1).await;
    feed.append([updated(1), updated(2)]).await;
    let writer = store.sqlite_writer();
    writer
        .execute_unprepared("UPDATE event SET body = x'02ff' WHERE position = 2")
        .await
        .expect("changed");
    let read = store
        .events_after(&Scope::everything(), Position(0), 10)
        .await;
    assert!(matches!(read, Err(Error::Corrupt(_))), "{read:?}");
    writer
        .execute_unprepared("UPDATE log_head SET applied = applied + 1")
        .await
        .expect("changed");
    let before = store.head().await.expect("read");
    let part = feed.part([updated(3)]);
    let error = store
        .append(&[part], at(0))
        .await
        .expect_err("the books do not balance");
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    assert_eq!(store.head().await.expect("read"), before);
    writer
        .execute_unprepared("UPDATE log_head SET applied = applied - 1")
        .await
        .expect("changed");
    let part = crate::contract::AppendPart {
        spool: feed.spool,
        generation: feed.generation,
        deliveries: vec![(3, Arc::new(updated(3)))],
    };
    let appended = store.append(&[part], at(0)).await.expect("mended");
    assert_eq!(outcomes(&appended, 0), [Outcome::Applied]);
    store.fatal.send_replace(Some("IOERR".to_owned()));
    let part = feed.part([updated(4)]);
    assert!(matches!(
        store.append(&[part], at(0)).await,
        Err(Error::Unavailable(_))
    ));
    store.close().await;
}

// The position a row would take is taken already: the unique keys are the last line, and nothing is kept.
#[tokio::test]
async fn a_broken_key_refuses_the_whole_batch() {
    let (store, directory) = sqlite().await;
    let mut feed = Feed::open(&store, 1).await;
    feed.append([updated(1)]).await;
    store.close().await;
    let store = Arc::new(
        SqlStore::open(SqliteOptions::new(directory.path().join("log.db")))
            .await
            .expect("opened"),
    );
    store
        .sqlite_writer()
        .execute_unprepared("UPDATE log_head SET position = 0")
        .await
        .expect("changed");
    let shared: Arc<dyn PassStore> = Arc::clone(&store) as Arc<dyn PassStore>;
    let mut feed = Feed::open(&shared, 1).await;
    let part = feed.part([updated(2), updated(3)]);
    let error = store
        .append(&[part], at(0))
        .await
        .expect_err("position 1 is taken");
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert_eq!(store.log_info().await.expect("read").books.deliveries, 1);
    store.close().await;
}

// A full disk is back-pressure: nothing is recorded, nothing is fatal, and once there is space the same
// append succeeds on the same store.
#[tokio::test]
async fn a_full_disk_holds_up_and_passes() {
    let (_, directory) = sqlite().await;
    let path = directory.path().join("log.db");
    let store = Arc::new(
        SqlStore::open(SqliteOptions::new(path))
            .await
            .expect("opened"),
    );
    let shared: Arc<dyn PassStore> = Arc::clone(&store) as Arc<dyn PassStore>;
    let mut feed = Feed::open(&shared, 1).await;
    let mut large = updated(1);
    large.body = vec![b'x'; 1 << 20];
    let part = feed.part([large]);
    let writer = store.sqlite_writer();
    writer
        .execute_unprepared("PRAGMA max_page_count = 1")
        .await
        .expect("limited");
    for _ in 0..2 {
        let error = store
            .append(std::slice::from_ref(&part), at(0))
            .await
            .expect_err("full");
        assert!(
            matches!(error, Error::Unavailable(_)) && error.is_transient(),
            "{error}"
        );
        writer
            .execute_unprepared("PRAGMA max_page_count = 1")
            .await
            .expect("limited");
    }
    assert_eq!(*store.fatal().borrow(), None);
    assert_eq!(store.head().await.expect("read").position, Position(0));
    writer
        .execute_unprepared("PRAGMA max_page_count = 1000000")
        .await
        .expect("limited");
    let appended = store.append(&[part], at(0)).await.expect("there is space");
    assert_eq!(outcomes(&appended, 0), [Outcome::Applied]);
    store.close().await;
}

// Every statement finds its rows by a key: none walks a whole table.
#[tokio::test]
async fn no_statement_scans_a_table() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = SqlStore::open(SqliteOptions::new(directory.path().join("log.db")))
        .await
        .expect("opened");
    let statements = &store.statements;
    let mut texts = statements.lookup_texts();
    texts.extend(
        [
            &statements.head_lock,
            &statements.head_read,
            &statements.head_write,
            &statements.spool_progress,
            &statements.events_after,
            &statements.events_after_personal,
            &statements.events_before,
            &statements.events_of_pass_after,
            &statements.events_of_pass_before,
            &statements.event_by_id,
            &statements.event_time,
            &statements.event_id_at,
            &statements.passes_last_event,
        ]
        .map(String::clone),
    );
    // As the entities spell them.
    for text in [
        "SELECT * FROM delivery WHERE delivery_id = ?",
        "SELECT * FROM delivery WHERE number < ? ORDER BY number DESC LIMIT ?",
        "SELECT * FROM quarantine WHERE state = 1 AND number < ? ORDER BY number DESC LIMIT ?",
        "SELECT * FROM pass WHERE number > ? ORDER BY number LIMIT ?",
        "SELECT * FROM pass WHERE serial_number = ? ORDER BY source, number LIMIT ?",
        "SELECT * FROM pass WHERE external_id = ? AND source = ? ORDER BY source, number LIMIT ?",
    ] {
        texts.push(text.to_owned());
    }
    for text in texts {
        let plan = sea_orm::Statement::from_sql_and_values(
            store.backend(),
            format!("EXPLAIN QUERY PLAN {text}"),
            vec![super::rows::number(1); text.matches('?').count()],
        );
        for row in store
            .sqlite_writer()
            .query_all_raw(plan)
            .await
            .expect("explained")
        {
            let step: String = row.try_get_by_index(3).expect("a text");
            let subquery = step == "SCAN e" || step.starts_with("SCAN (");
            assert!(subquery || !step.starts_with("SCAN"), "{step}: {text}");
            assert!(!step.contains("TEMP B-TREE"), "{step}: {text}");
        }
    }
    store.close().await;
}

// What SQLite does when a commit finds the disk full: it rolls back by itself, and the driver, which does not
// know, goes on counting a transaction. It would then begin and end savepoints instead: a rolled back one
// leaves the transaction open, and what "commits" after it is seen by nobody and lost.
#[tokio::test]
async fn a_transaction_that_sqlite_ended_by_itself_costs_no_later_commit() {
    let (shared, directory) = sqlite().await;
    shared.close().await;
    let store = SqlStore::open(SqliteOptions::new(directory.path().join("log.db")))
        .await
        .expect("opened");
    let (transaction, _) = store.begin().await.expect("begun");
    transaction
        .execute_unprepared("ROLLBACK")
        .await
        .expect("rolled back behind the driver");
    drop(transaction);
    drop(store.begin().await.expect("begun"));
    let shared: Arc<dyn PassStore> = Arc::new(store);
    let mut feed = Feed::open(&shared, 1).await;
    assert_eq!(feed.append([updated(1)]).await, [Outcome::Applied]);
    assert_eq!(
        shared.head().await.expect("read").position,
        Position(1),
        "others see what was acknowledged"
    );
    shared.close().await;
}

// A backup is a database of its own: what was committed before is in it, what came later is not.
#[tokio::test]
async fn a_backup_is_a_database_that_opens() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Arc::new(
        SqlStore::open(SqliteOptions::new(directory.path().join("log.db")))
            .await
            .expect("opened"),
    );
    let shared: Arc<dyn PassStore> = Arc::clone(&store) as Arc<dyn PassStore>;
    let mut feed = Feed::open(&shared, 1).await;
    feed.append([updated(1), updated(2)]).await;
    let head = store.head().await.expect("read");
    let copy = directory.path().join("copy.db");
    store.backup(&copy).await.expect("copied");
    let mode = copy.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    feed.append([updated(3)]).await;

    let before = std::fs::read(&copy).expect("read");
    let again = store.backup(&copy).await;
    assert!(matches!(again, Err(Error::Unfit(_))), "{again:?}");
    assert_eq!(
        std::fs::read(&copy).expect("read"),
        before,
        "what is there is left alone"
    );
    let nowhere = directory.path().join("no such directory/copy.db");
    assert!(matches!(store.backup(&nowhere).await, Err(Error::Unfit(_))));

    let copied = SqlStore::open(SqliteOptions {
        migrate: false,
        ..SqliteOptions::new(&copy)
    })
    .await
    .expect("opened");
    assert_eq!(copied.head().await.expect("read"), head);
    assert_eq!(whole_log(&copied).await.len(), 2);
    assert_eq!(store.head().await.expect("read").position, Position(3));
    copied.close().await;
    shared.close().await;
}
