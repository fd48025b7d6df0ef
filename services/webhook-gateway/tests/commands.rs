//! The program's commands for operators.

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use test_kit::{PortLease, wait_for};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(20);

fn program(args: &[&str], data_dir: &Path, env: &[(&str, String)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_webhook-gateway"));
    command
        .args(args)
        .arg("--data-dir")
        .arg(data_dir)
        .env_clear()
        .envs(env.iter().map(|(name, value)| (name, value)))
        .kill_on_drop(true);
    command
}

/// What is on disk for the next start may be broken; whoever restarts what is unwell must leave this one alone.
#[tokio::test]
async fn a_running_gateway_is_asked_by_its_admin_table_alone() {
    let dir = tempfile::tempdir().unwrap();
    let admin = PortLease::take().unwrap();
    let env = [
        ("GATEWAY__HTTP__LISTEN", "127.0.0.1:0".to_owned()),
        ("GATEWAY__ADMIN__LISTEN", admin.address().to_string()),
    ];
    let mut serving = program(&["serve"], dir.path(), &env).spawn().unwrap();
    let file = dir.path().join("gateway.toml");
    let broken = "[[sources]]\nname = \"a\"\nvendor = \"nobody\"\n[nowhere]\n";
    let admin = format!("[admin]\nlisten = \"{}\"\n{broken}", admin.address());
    std::fs::write(&file, admin).unwrap();
    let ask = async |args: &[&str]| -> Output {
        let args = [args, &["--config", file.to_str().unwrap()]].concat();
        program(&args, dir.path(), &[]).output().await.unwrap()
    };
    wait_for("health", LIMIT, async || {
        let output = ask(&["healthcheck"]).await;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    })
    .await
    .unwrap();
    assert!(ask(&["log-filter", "warn"]).await.status.success());
    assert_eq!(ask(&["check-config"]).await.status.code(), Some(64));
    std::fs::write(&file, "[admin]\nlisten = \"nowhere\"\n").unwrap();
    assert_eq!(ask(&["healthcheck"]).await.status.code(), Some(64));
    serving.kill().await.unwrap();
}
