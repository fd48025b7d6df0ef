use std::os::unix::process::CommandExt as _;
use std::process::Stdio;
use std::time::Instant;

use rustix::process::{Pid, kill_process, kill_process_group};

use super::*;
use crate::process::runs;

async fn count(server: &TestPostgres, url: &str) -> String {
    server.sql(url, "SELECT count(*) FROM notes").await.unwrap()
}

const NOTES: &str = "CREATE TABLE notes (id bigint PRIMARY KEY); INSERT INTO notes VALUES (1)";

const BUSY: &str =
    "SELECT sum(1) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b";

#[tokio::test]
async fn a_restart_keeps_the_port_and_the_data() {
    let mut server = TestPostgres::start().await.unwrap();
    let (address, url) = (server.address(), server.database().await.unwrap());
    server.sql(&url, NOTES).await.unwrap();

    server.restart().await.unwrap();
    assert_eq!(server.address(), address);
    assert_eq!(count(&server, &url).await, "1");
}

#[tokio::test]
async fn a_kill_ends_every_process_and_loses_no_commit() {
    let mut server = TestPostgres::start().await.unwrap();
    let url = server.database().await.unwrap();
    server.sql(&url, NOTES).await.unwrap();
    // A backend that computes for hours does not notice by itself that its server is gone.
    let busy = url.clone();
    let held = async { server.sql(&busy, BUSY).await };
    let backend = async {
        let query = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'SELECT sum(1)%'";
        wait_for("the busy backend", START_LIMIT, async || {
            server
                .sql(&url, query)
                .await
                .unwrap()
                .parse::<u32>()
                .map_err(|error| error.to_string())
        })
        .await
        .unwrap()
    };
    let backend = tokio::select! {
        pid = backend => pid,
        outcome = held => panic!("it came to an end: {outcome:?}"),
    };
    // Its client is gone by now, and it has not noticed that either.
    assert!(runs(backend));

    server.kill().await.unwrap();
    assert!(!runs(backend));
    let refused = server.sql(&url, "SELECT 1").await.unwrap_err().to_string();
    assert!(refused.contains("Connection refused"), "{refused}");

    server.restart().await.unwrap();
    assert_eq!(count(&server, &url).await, "1");
}

#[tokio::test]
async fn two_servers_start_at_once_and_share_nothing() {
    let (one, two) = tokio::try_join!(TestPostgres::start(), TestPostgres::start()).unwrap();
    assert_ne!(one.address(), two.address());
    one.sql(&one.url("postgres"), NOTES).await.unwrap();
    let error = two
        .sql(&two.url("postgres"), "SELECT * FROM notes")
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("relation \"notes\" does not exist"),
        "{error}"
    );
}

#[tokio::test]
async fn a_setting_that_a_test_asks_for_wins() {
    let server =
        TestPostgres::start_with(&[("max_connections", "17"), ("application_name", "it's")])
            .await
            .unwrap();
    let shown = server
        .sql(
            &server.url("postgres"),
            "SHOW max_connections; SHOW fsync; SHOW synchronous_commit; SHOW full_page_writes",
        )
        .await
        .unwrap();
    assert_eq!(shown, "17\non\non\non");
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_its_log() {
    let error = TestPostgres::start_with(&[("shared_buffers", "much")])
        .await
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("invalid value for parameter \"shared_buffers\""),
        "{error:#}"
    );
}

#[tokio::test]
async fn text_is_not_sorted_by_bytes() {
    let server = TestPostgres::start().await.unwrap();
    let sorted = server
        .sql(
            &server.url("postgres"),
            "SELECT string_agg(t, '' ORDER BY t) FROM unnest(ARRAY['b', 'a', 'B', 'A']) t",
        )
        .await
        .unwrap();
    assert_eq!(sorted, "aAbB");
}

#[tokio::test]
async fn a_standby_follows_and_takes_over() {
    let mut primary = TestPostgres::start().await.unwrap();
    let standby = primary.standby().await.unwrap();
    let url = standby.url("postgres");
    let refused = standby
        .sql(&url, "CREATE TABLE early ()")
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("read-only transaction"), "{refused}");

    // Committed here means applied there, before the primary is gone.
    let names = format!("standby_{}", standby.address().port());
    primary
        .sql(
            &primary.url("postgres"),
            &format!(
                "ALTER SYSTEM SET synchronous_standby_names = '{names}'; ALTER SYSTEM SET synchronous_commit = 'remote_apply';
                 SELECT pg_reload_conf()"
            ),
        )
        .await
        .unwrap();
    wait_for("the synchronous standby", START_LIMIT, async || {
        let query = "SELECT sync_state FROM pg_stat_replication";
        let state = primary.sql(&primary.url("postgres"), query).await.unwrap();
        if state == "sync" { Ok(()) } else { Err(state) }
    })
    .await
    .unwrap();
    primary.sql(&primary.url("postgres"), NOTES).await.unwrap();
    primary.kill().await.unwrap();

    standby.promote().await.unwrap();
    standby
        .sql(&url, "INSERT INTO notes VALUES (2)")
        .await
        .unwrap();
    assert_eq!(count(&standby, &url).await, "2");
}

#[tokio::test]
async fn a_standby_of_a_server_with_synchronous_standbys_can_write_once_promoted() {
    let primary = TestPostgres::start().await.unwrap();
    primary
        .sql(
            &primary.url("postgres"),
            "ALTER SYSTEM SET synchronous_standby_names = '*'",
        )
        .await
        .unwrap();
    let standby = primary.standby().await.unwrap();
    standby.promote().await.unwrap();
    let shown = standby
        .sql(&standby.url("postgres"), "SHOW synchronous_standby_names")
        .await
        .unwrap();
    assert_eq!(shown, "");
}

#[tokio::test]
async fn a_dropped_server_leaves_no_process_and_no_file() {
    for killed in [false, true] {
        let mut server = TestPostgres::start().await.unwrap();
        let (pid, data) = (server.process.as_ref().unwrap().pid(), server.data_dir());
        if killed {
            server.kill().await.unwrap();
        }
        drop(server);
        assert!(!runs(pid));
        assert!(!data.parent().unwrap().exists());
    }
}

/// What the next test runs in a process of its own, and kills: it does nothing unless it is asked to.
#[tokio::test]
async fn holds_a_server_when_asked() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the parent process asks by environment"
    )]
    let Some(report) = std::env::var_os("TEST_KIT_REPORT") else {
        return;
    };
    let server = TestPostgres::start().await.unwrap();
    let pid = server.process.as_ref().unwrap().pid();
    std::fs::write(report, format!("{pid}\n{}\n", server.data_dir().display())).unwrap();
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_server_ends_when_the_process_that_holds_it_is_killed() {
    // As the system kills for want of memory.
    check_holder_killed_by(|holder| kill_process(holder, Signal::KILL)).await;
}

#[tokio::test]
async fn a_server_ends_when_the_process_group_that_holds_it_is_killed() {
    // As nextest kills a test that hangs.
    check_holder_killed_by(|holder| kill_process_group(holder, Signal::KILL)).await;
}

async fn check_holder_killed_by(kill: impl FnOnce(Pid) -> rustix::io::Result<()>) {
    let directory = tempfile::tempdir().unwrap();
    let report = directory.path().join("report");
    let mut holder = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "postgres::tests::holds_a_server_when_asked"])
        .env("TEST_KIT_REPORT", &report)
        .process_group(0)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let (pid, data) = wait_for("the server in the other process", START_LIMIT, async || {
        let ended = holder.try_wait().map_err(|error| error.to_string())?;
        assert_eq!(ended, None, "the other process");
        let text = std::fs::read_to_string(&report).map_err(|error| error.to_string())?;
        let (pid, rest) = text.split_once('\n').ok_or("no line")?;
        let data = rest.strip_suffix('\n').ok_or("no second line")?;
        Ok::<_, String>((pid.parse::<u32>().unwrap(), PathBuf::from(data)))
    })
    .await
    .unwrap();
    assert!(runs(pid));

    kill(Pid::from_child(&holder)).unwrap();
    holder.wait().unwrap();
    // PostgreSQL itself looks every minute whether its files are there, which must not be what ends it.
    let limit = Duration::from_secs(20);
    wait_for("the end of the server and its files", limit, async || {
        let left = (runs(pid), data.parent().unwrap().exists());
        if left == (false, false) {
            Ok(())
        } else {
            Err(format!("runs and exists: {left:?}"))
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_start_takes_well_under_ten_seconds() {
    TestPostgres::start().await.unwrap();
    let started = Instant::now();
    let server = TestPostgres::start().await.unwrap();
    let took = started.elapsed();
    drop(server);
    println!(
        "a start takes {took:?}, with the end {:?}",
        started.elapsed()
    );
    assert!(took < Duration::from_secs(10), "{took:?}");
}
