//! Databases and spools put back from copies: what comes back by itself, what is lost, and what cursors do.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pass_proto::v1::ErrorReason;
use pass_proto::v1::subscribe_request::Start;
use serde_json::Value;
use system_tests::callback::{standard, traffic};
use system_tests::client::{Caller, Outcome};
use system_tests::dice::Dice;
use system_tests::fleet::{Database, Fleet, Layout, Member, SpoolKind, spool_dir};
use system_tests::follower::Follower;
use test_kit::{NatsSettings, TestNats, TestPostgres, wait_for};

use crate::programs;

mod spools;

const LIMIT: Duration = Duration::from_secs(30);

/// Waits until the log has another epoch than `before`, and notes it: from here on it must stay.
pub(crate) async fn another_epoch(fleet: &Fleet, before: &str) -> String {
    wait_for("another epoch", LIMIT, async || {
        match fleet.reader().info().await {
            Ok(info) if info.epoch != before => Ok(()),
            Ok(_) => Err(format!("still {before}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await
    .unwrap();
    fleet.note_epoch().await.unwrap()
}

/// Checks that every replica refuses cursors as being of another history.
pub(crate) async fn assert_refused(fleet: &Fleet, cursors: &[String]) {
    for state in 0..fleet.states.len() {
        for cursor in cursors {
            assert_eq!(
                fleet.reader_of(state).refusal(cursor).await.unwrap(),
                Some(ErrorReason::CursorEpochMismatch),
                "{cursor} at {}",
                fleet.states[state].name()
            );
        }
    }
}

/// Checks that a subscriber which starts at the beginning sees the whole log.
pub(crate) async fn assert_seen_anew(fleet: &Fleet) {
    let head = fleet.reader().info().await.unwrap().head_position;
    let mut follower = fleet.follower();
    follower.caught_up(head, LIMIT).await.unwrap();
    follower.stop();
}

/// Waits until who was subscribed all the time has been told of it.
pub(crate) async fn told_of_another_history(follower: &Follower) {
    wait_for("the subscriber to be refused", LIMIT, async || {
        let broken = follower.progress().broken.unwrap_or_default();
        if broken.contains("another history") {
            Ok(())
        } else {
            Err(format!("{broken:?}"))
        }
    })
    .await
    .unwrap();
}

/// The ERROR lines that tell of a new epoch, one for each time that a database was found to have gone back.
pub(crate) fn epoch_changes(fleet: &Fleet) -> Vec<String> {
    let logs = fleet.logs().unwrap();
    let errors = logs.lines().filter(|line| line.contains("ERROR"));
    errors
        .filter(|line| line.contains("new epoch"))
        .map(str::to_owned)
        .collect()
}

/// What a gateway says of itself under `/status`.
pub(crate) async fn status(gateway: &Member) -> anyhow::Result<Value> {
    let (_, told) = gateway.service().admin("/status").await?;
    Ok(serde_json::from_str(&told)?)
}

/// Lets traffic flow until so many more callbacks are stored.
async fn some_traffic(fleet: &Fleet, count: usize) {
    let enough = fleet.log.stored_count() + count;
    fleet.wait_for_stored(enough, LIMIT).await.unwrap();
}

async fn load(fleet: &Fleet, dice: &mut Dice, tag: &str) {
    fleet.load(traffic(dice, tag, 15), 4, LIMIT).await.unwrap();
}

async fn assert_clean(fleet: &Fleet) {
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
}

/// Copies with modes: a spool directory that others may read is refused.
fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn put_back(copy: &Path, place: &Path) {
    fs::remove_dir_all(place).unwrap();
    copy_tree(copy, place);
}

/// Ends all services of a kind in order.
async fn end(members: &mut [Member]) {
    for member in members {
        member.take().end().await.unwrap();
    }
}

/// Starts all services of a kind and waits until they are ready.
async fn start(members: &mut [Member]) {
    for member in members {
        member.start().await.unwrap();
    }
}

/// `pass-state backup` while it runs; the copy is put in place of the database later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_sqlite_copy_made_under_load_is_put_back_and_gateways_refill_it() {
    let layout = Layout {
        gateways: 2,
        states: 1,
        ..Layout::default()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    let before = fleet.note_epoch().await.unwrap();
    let copy = fleet.dir().join("copy.db");
    let copy_text = copy.to_str().unwrap();

    let senders = fleet.senders(71, "sqlite", 4);
    some_traffic(&fleet, 100).await;
    fleet.states[0]
        .command(&["backup", copy_text])
        .await
        .unwrap();
    let cursor_at_copy = fleet.reader().info().await.unwrap().head_cursor;
    // A copy never replaces another one.
    let again = fleet.states[0].command(&["backup", copy_text]).await;
    assert!(again.is_err(), "{again:?}");
    some_traffic(&fleet, 200).await;
    assert!(senders.finish().await);
    assert_clean(&fleet).await;
    let full = fleet.reader().info().await.unwrap();

    end(&mut fleet.states).await;
    let database = fleet.states[0].data_dir().join("pass-state");
    fs::remove_dir_all(&database).unwrap();
    fs::create_dir(&database).unwrap();
    fs::rename(&copy, database.join("passline.db")).unwrap();
    start(&mut fleet.states).await;
    another_epoch(&fleet, &before).await;
    assert_clean(&fleet).await;
    assert_eq!(
        fleet.reader().info().await.unwrap().head_position,
        full.head_position
    );
    assert_refused(&fleet, &[cursor_at_copy, full.head_cursor]).await;
    assert_seen_anew(&fleet).await;
    assert_eq!(
        epoch_changes(&fleet).len(),
        1,
        "{:#?}",
        epoch_changes(&fleet)
    );
    fleet
        .finish_with_errors(&["the database went back in time"])
        .await
        .unwrap();
}

/// Finds one of PostgreSQL's programs.
#[expect(
    clippy::disallowed_methods,
    reason = "the test command hands over its tools by environment"
)]
fn postgres_program(name: &str) -> PathBuf {
    let programs = std::env::var_os("PASSLINE_POSTGRES_BIN").expect("`tests/run` sets it");
    Path::new(&programs).join(name)
}

async fn run_postgres(name: &str, arguments: &[&str]) {
    let output = tokio::process::Command::new(postgres_program(name))
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, output).await.unwrap().unwrap();
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn dump(url: &str, file: &Path) {
    let file = file.to_str().unwrap();
    run_postgres(
        "pg_dump",
        &["--format=custom", "--file", file, "--dbname", url],
    )
    .await;
}

/// Restores a dump into a database of its own, which all replicas use from their next start on.
async fn restore(fleet: &Fleet, postgres: &TestPostgres, old_url: &str, file: &Path) {
    let url = postgres.database().await.unwrap();
    let file = file.to_str().unwrap();
    run_postgres(
        "pg_restore",
        &[
            "--exit-on-error",
            "--no-owner",
            "--single-transaction",
            "--dbname",
            &url,
            file,
        ],
    )
    .await;
    for state in &fleet.states {
        state.edit_config(old_url, &url).unwrap();
    }
}

/// A PostgreSQL, the URL of a database on it, and services that use it.
async fn on_postgres(gateways: usize, states: usize) -> (TestPostgres, String, Fleet) {
    let postgres = TestPostgres::start().await.unwrap();
    let url = postgres.database().await.unwrap();
    let layout = Layout {
        gateways,
        states,
        database: Database::Postgres { url: url.clone() },
        ..Layout::default()
    };
    let fleet = Fleet::started(&programs(), &layout).await.unwrap();
    (postgres, url, fleet)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_made_under_load_is_restored_into_a_fresh_database_and_gateways_refill_it() {
    let (postgres, url, mut fleet) = on_postgres(2, 2).await;
    let before = fleet.note_epoch().await.unwrap();
    let file = fleet.dir().join("passline.dump");
    let senders = fleet.senders(72, "dump", 4);
    some_traffic(&fleet, 100).await;
    dump(&url, &file).await;
    let cursor_at_dump = fleet.reader().info().await.unwrap().head_cursor;
    some_traffic(&fleet, 200).await;
    assert!(senders.finish().await);
    assert_clean(&fleet).await;
    let full = fleet.reader().info().await.unwrap();

    end(&mut fleet.states).await;
    restore(&fleet, &postgres, &url, &file).await;
    start(&mut fleet.states).await;
    another_epoch(&fleet, &before).await;
    assert_clean(&fleet).await;
    assert_eq!(
        fleet.reader().info().await.unwrap().head_position,
        full.head_position
    );
    assert_refused(&fleet, &[cursor_at_dump, full.head_cursor]).await;
    assert_seen_anew(&fleet).await;
    assert_eq!(
        epoch_changes(&fleet).len(),
        1,
        "{:#?}",
        epoch_changes(&fleet)
    );
    fleet
        .finish_with_errors(&["the database went back in time"])
        .await
        .unwrap();
}

fn give_to(owner: &Path, path: &Path) {
    let owned = fs::metadata(owner).unwrap();
    chown(path, Some(owned.uid()), Some(owned.gid())).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give_to(owner, &entry.unwrap().path());
        }
    }
}

/// The files of the whole server are put back under replicas that run on, and notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_base_backup_put_back_under_running_replicas_is_noticed_and_refilled() {
    let (mut postgres, _, fleet) = on_postgres(2, 2).await;
    let before = fleet.note_epoch().await.unwrap();
    let mut follower = fleet.follower();
    let data = postgres.data_dir();
    let copy = data.with_file_name("copy");
    let senders = fleet.senders(73, "base", 4);
    some_traffic(&fleet, 100).await;
    run_postgres(
        "pg_basebackup",
        &[
            "--checkpoint=fast",
            "--wal-method=stream",
            "--dbname",
            &postgres.url("postgres"),
            "--pgdata",
            copy.to_str().unwrap(),
        ],
    )
    .await;
    some_traffic(&fleet, 200).await;
    assert!(senders.finish().await);
    assert_clean(&fleet).await;
    let full = fleet.reader().info().await.unwrap();
    follower.caught_up(full.head_position, LIMIT).await.unwrap();

    postgres.stop().await.unwrap();
    give_to(&data, &copy);
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&copy, &data).unwrap();
    postgres.restart().await.unwrap();
    another_epoch(&fleet, &before).await;
    // Nobody delivers anything: streams that were open all the time say hello again by themselves.
    assert_clean(&fleet).await;
    assert_refused(&fleet, &[full.head_cursor]).await;
    assert_seen_anew(&fleet).await;
    told_of_another_history(&follower).await;
    let changes = epoch_changes(&fleet);
    assert_eq!(changes.len(), 1, "{changes:#?}");
    fleet.finish_with_errors(&["new epoch"]).await.unwrap();
}

/// The gateway whose deliveries the copy lacks is gone with its spool, so nobody tells that the log went back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_that_no_spool_tells_of_a_rotated_epoch_keeps_readers_from_missing_events()
{
    let (postgres, url, mut fleet) = on_postgres(2, 1).await;
    let before = fleet.note_epoch().await.unwrap();
    let mut dice = Dice::new(74);
    load(&fleet, &mut dice, "both").await;
    assert_clean(&fleet).await;
    let cursor_at_dump = fleet.reader().info().await.unwrap().head_cursor;
    let file = fleet.dir().join("passline.dump");
    dump(&url, &file).await;

    let last = standard("INSTALLED", "card", 60, Some("phone"));
    let mut gone = Caller::new(fleet.gateways[1].address());
    for callback in [&standard("CREATED", "card", 0, None), &last] {
        let outcome = gone.deliver(callback, &fleet.log).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
    }
    assert_clean(&fleet).await;
    let cursor_seen = fleet.reader().info().await.unwrap().head_cursor;
    fleet.gateways[1].take().end().await.unwrap();
    fs::remove_dir_all(fleet.gateways[1].data_dir()).unwrap();

    end(&mut fleet.states).await;
    restore(&fleet, &postgres, &url, &file).await;
    start(&mut fleet.states).await;
    wait_for("the gateway's stream", LIMIT, async || {
        match &status(&fleet.gateways[0]).await.unwrap()["forward"]["connected"] {
            Value::Bool(true) => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await
    .unwrap();
    let reader = fleet.reader();
    let info = reader.info().await.unwrap();
    assert_eq!(
        (info.epoch, info.head_cursor),
        (before.clone(), cursor_at_dump.clone()),
        "the spool that is left lost nothing"
    );
    assert_eq!(
        reader.refusal(&cursor_seen).await.unwrap(),
        Some(ErrorReason::CursorAhead)
    );

    // Something new takes the place of the lost event, and the vendor's repetition the place after it, where
    // it was before: a reader that goes on after it would never learn of the new one.
    let mut left = Caller::new(fleet.gateways[0].address());
    let head = info.head_position + 2;
    for callback in [&standard("CREATED", "other", 0, None), &last] {
        let outcome = left.deliver(callback, &fleet.log).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
    }
    fleet.drained(LIMIT).await.unwrap();
    assert_eq!(reader.info().await.unwrap().head_position, head);
    let skipped = reader
        .subscribe_to_head(Start::AfterCursor(cursor_seen.clone()))
        .await;
    assert_eq!(skipped.unwrap().len(), 0, "this is why it must be rotated");

    let mut follower = fleet.follower();
    follower.caught_up(head, LIMIT).await.unwrap();
    let told = fleet.states[0].command(&["epoch", "rotate"]).await.unwrap();
    let after = another_epoch(&fleet, &before).await;
    assert!(told.contains(&format!("epoch {after}")), "{told}");
    assert!(told.contains(&format!("head position {head}")), "{told}");
    assert_refused(&fleet, &[cursor_seen, cursor_at_dump]).await;
    wait_for("the subscriber to be refused", LIMIT, async || {
        follower.progress().broken.ok_or("it goes on")
    })
    .await
    .unwrap();
    assert_seen_anew(&fleet).await;

    // What the gateway that is gone took in is lost but for what the vendor sent again.
    let verdict = fleet.verdict(LIMIT).await.unwrap();
    assert_eq!(
        (verdict.duplicated.len(), verdict.phantom.len()),
        (0, 0),
        "{verdict}"
    );
    let lost = |kind: &str| {
        let of_kind = verdict.lost.iter().filter(|what| what.starts_with(kind));
        of_kind.count()
    };
    assert_eq!((lost("delivery"), lost("event")), (2, 1), "{verdict}");
    // Nobody noticed anything.
    fleet.finish().await.unwrap();
}
