//! The program's commands for operators.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use pass_proto::status::Reason;
use test_kit::{ChaosProxy, PortLease, TestPostgres};
use tokio::process::Child;

use crate::database::Database;
use crate::harness::*;
use crate::make::*;

/// Runs the program; `env` is all of its environment.
async fn run(args: &[&str], data_dir: &Path, env: &[(&str, &str)]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pass-state"));
    command
        .args(args)
        .arg("--data-dir")
        .arg(data_dir)
        .env_clear()
        .envs(env.iter().copied())
        .kill_on_drop(true);
    soon("the command's end", command.output()).await.unwrap()
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

#[tokio::test]
async fn a_backup_of_a_running_service_is_its_log_at_one_moment() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..5)).await;
    let then = server.log().await;
    let restored = tempfile::tempdir().unwrap();
    let copy = restored.path().join("pass-state").join("passline.db");
    std::fs::create_dir(copy.parent().unwrap()).unwrap();
    let file = copy.to_str().unwrap();
    let output = run(&["backup", file], server.data_dir(), &[]).await;
    assert!(output.status.success(), "{}", text(&output));
    let again = run(&["backup", file], server.data_dir(), &[]).await;
    assert_eq!(again.status.code(), Some(1), "it overwrites nothing");
    gateway.deliver(installs(5..6)).await;
    server.stop().await;

    let server = Server::over(None, restored, |_| {}).await;
    assert_eq!(server.log().await.head_cursor, then.head_cursor);
    let mut subscriber = server.subscribe(from_beginning()).await.unwrap();
    assert_eq!(subscriber.passes(5).await[4], "pass-4");
    server.stop().await;
}

#[tokio::test]
async fn a_backup_of_postgresql_names_the_tools_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("PASS_STATE__STORE__BACKEND", "postgres"),
        (
            "PASS_STATE__STORE__POSTGRES__URL",
            "{ env = \"DATABASE_URL\" }",
        ),
        ("DATABASE_URL", "postgres://u:hidden-word@127.0.0.1:1/log"),
    ];
    let output = run(&["backup", "copy.db"], dir.path(), &env).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output).contains("pg_dump"), "{}", text(&output));

    let output = run(&["migrate"], dir.path(), &env).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(!text(&output).contains("hidden-word"), "{}", text(&output));
}

#[tokio::test]
async fn commands_make_no_database_where_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["epoch", "rotate"][..], &["backup", "copy.db"]] {
        let output = run(args, dir.path(), &[]).await;
        assert_eq!(output.status.code(), Some(64));
        assert!(text(&output).contains("--data-dir"), "{}", text(&output));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let output = run(&["migrate"], dir.path(), &[]).await;
    assert!(output.status.success(), "{}", text(&output));
    assert!(dir.path().join("pass-state/passline.db").is_file());
}

#[tokio::test]
async fn a_rotated_epoch_is_printed_and_a_running_service_tells_its_clients() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..3)).await;
    let mut live = server.subscribe(from_beginning()).await.unwrap();
    live.passes(3).await;
    let output = run(&["epoch", "rotate"], server.data_dir(), &[]).await;
    assert!(output.status.success(), "{}", text(&output));
    let (_, status) = live.rest().await;
    let status = status.unwrap();
    assert_eq!(reason(&status), Reason::CursorEpochMismatch);
    let log = server.log().await;
    let lines = [
        format!("epoch {}", log.epoch),
        "head position 3".to_owned(),
        format!("head cursor {}", log.head_cursor),
    ];
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(printed.lines().collect::<Vec<_>>(), lines);
    server.stop().await;
}

#[tokio::test]
async fn a_postgresql_is_migrated_and_rotated_by_commands() {
    let postgres = TestPostgres::start().await.unwrap();
    let database = Database::postgres(&postgres).await;
    let Database::Postgres(url) = &database else {
        unreachable!()
    };
    let dir = tempfile::tempdir().unwrap();
    let env = [
        ("PASS_STATE__STORE__BACKEND", "postgres"),
        ("PASS_STATE__STORE__MIGRATIONS", "off"),
        (
            "PASS_STATE__STORE__POSTGRES__URL",
            "{ env = \"DATABASE_URL\" }",
        ),
        ("DATABASE_URL", url.as_str()),
    ];
    let early = run(&["epoch", "rotate"], dir.path(), &env).await;
    assert_eq!(early.status.code(), Some(1));
    assert!(
        text(&early).contains("pass-state migrate"),
        "{}",
        text(&early)
    );
    for args in [&["migrate"][..], &["migrate"], &["epoch", "rotate"]] {
        let output = run(args, dir.path(), &env).await;
        assert!(output.status.success(), "{args:?}: {}", text(&output));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Starts the service with a PostgreSQL; `env` comes on top.
fn serve(data_dir: &Path, url: &str, env: &[(&str, String)]) -> Child {
    let any_port = "127.0.0.1:0".to_owned();
    tokio::process::Command::new(env!("CARGO_BIN_EXE_pass-state"))
        .args(["serve", "--data-dir"])
        .arg(data_dir)
        .env_clear()
        .env("PASS_STATE__STORE__BACKEND", "postgres")
        .env(
            "PASS_STATE__STORE__POSTGRES__URL",
            "{ env = \"DATABASE_URL\" }",
        )
        .env("DATABASE_URL", url)
        .env("PASS_STATE__GRPC__LISTEN", &any_port)
        .env("PASS_STATE__ADMIN__LISTEN", &any_port)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn terminate(process: &Child) {
    let kill = ["-s", "TERM", &process.id().unwrap().to_string()].map(str::to_owned);
    let mut kill = tokio::process::Command::new("kill")
        .args(kill)
        .spawn()
        .unwrap();
    assert!(kill.wait().await.unwrap().success());
}

// The server takes the connection and never says a word.
#[tokio::test]
async fn a_database_that_does_not_answer_keeps_no_process_from_ending() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("postgres://u@{}/log", silent.local_addr().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let patient = [(
        "PASS_STATE__STORE__POSTGRES__CONNECT_TIMEOUT",
        "1m".to_owned(),
    )];
    let mut process = serve(dir.path(), &url, &patient);
    let _connection = soon("the connection", silent.accept()).await.unwrap();
    terminate(&process).await;
    let status = soon("the end", process.wait()).await.unwrap();
    assert!(status.success(), "{status}");
}

/// The database falls silent in the middle of work: connections live, and nothing comes back. The end takes no longer
/// than is said of it, `drain_delay` and `drain_timeout` and `export_timeout` and 10 s.
#[tokio::test]
async fn a_database_that_falls_silent_keeps_no_process_from_ending_in_time() {
    let postgres = TestPostgres::start().await.unwrap();
    let proxy = ChaosProxy::start(postgres.address()).await.unwrap();
    let url = postgres.database().await.unwrap();
    let address = postgres.address().to_string();
    let url = url.replace(&address, &proxy.address().to_string());
    let dir = tempfile::tempdir().unwrap();
    let (grpc, admin) = (PortLease::take().unwrap(), PortLease::take().unwrap());
    let env = [
        ("PASS_STATE__GRPC__LISTEN", grpc.address().to_string()),
        ("PASS_STATE__ADMIN__LISTEN", admin.address().to_string()),
        ("PASS_STATE__DRAIN_DELAY", "0s".to_owned()),
        ("PASS_STATE__GRPC__LIMITS__DRAIN_TIMEOUT", "1s".to_owned()),
        ("PASS_STATE__TELEMETRY__EXPORT_TIMEOUT", "1s".to_owned()),
        // A transaction may wait for longer than the end may take.
        ("PASS_STATE__STORE__POSTGRES__LOCK_TIMEOUT", "1m".to_owned()),
    ];
    let mut process = serve(dir.path(), &url, &env);
    let healthcheck = |file: &Path| {
        let file = file.to_str().unwrap().to_owned();
        let listen = admin.address().to_string();
        let dir = dir.path().to_owned();
        async move {
            let env = [("PASS_STATE__ADMIN__LISTEN", listen.as_str())];
            run(&["healthcheck", "--config", &file], &dir, &env).await
        }
    };
    // What is on disk for the next start may be broken; this process is well.
    let broken = dir.path().join("pass-state.toml");
    std::fs::write(&broken, "[store]\nbackend = \"paper\"\n").unwrap();
    eventually("health", || async {
        healthcheck(&broken).await.status.success()
    })
    .await;

    let channel = connect(grpc.address()).await;
    let mut gateway = Gateway::with(&channel, hello(1)).await;
    gateway.deliver(installs(0..1)).await;
    proxy.pause(true);
    gateway.send(installs(1..2)).await;
    let began = Instant::now();
    terminate(&process).await;
    let status = soon("the end", process.wait()).await.unwrap();
    assert!(status.success(), "{status}");
    assert!(
        began.elapsed() < Duration::from_secs(12),
        "{:?}",
        began.elapsed()
    );
}
