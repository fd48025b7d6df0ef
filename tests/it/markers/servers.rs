//! Passwords of the servers that the services use: wrong ones, so that they are refused and the services say so.

use system_tests::fleet::{Database, Fleet, Layout, SpoolKind};
use test_kit::{NatsSettings, TestNats, TestPostgres};

use super::*;

const PASSWORD: &str = "wrong-server-password-8b30e6";

/// Starts one service of a fleet, waits until its log says `why` its server refused it, and checks that the password
/// is nowhere.
async fn assert_hidden(mut fleet: Fleet, is_state: bool, why: &str) {
    let member = match is_state {
        true => &mut fleet.states[0],
        false => &mut fleet.gateways[0],
    };
    member.launch().await.unwrap();
    let logs = wait_for("the server's refusal", LIMIT, async || {
        let logs = fleet.logs().unwrap();
        if logs.contains(why) {
            Ok(logs)
        } else {
            Err(logs)
        }
    })
    .await
    .unwrap();
    let member = if is_state {
        &fleet.states[0]
    } else {
        &fleet.gateways[0]
    };
    let mut shown = Shown::default();
    shown.add("the log", logs);
    for path in ["/readyz", "/status", "/metrics"] {
        // A service that gives up has no listener any more.
        if let Ok((_, text)) = member.service().admin(path).await {
            shown.add(path, text);
        }
    }
    let findings = shown.findings(&[Marker::new("the password", PASSWORD)]);
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

fn verbose() -> String {
    format!("[telemetry]\nlog_filter = \"{LOG_EVERYTHING},sqlx=debug,async_nats=debug\"\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_postgresql_refuses_is_shown_nowhere() {
    let postgres = TestPostgres::start().await.unwrap();
    let url = postgres.database().await.unwrap();
    let by_password = "host all all 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(postgres.data_dir().join("pg_hba.conf"), by_password).unwrap();
    let reload = "SELECT pg_reload_conf()";
    postgres.sql(&url, reload).await.unwrap();
    let layout = Layout {
        database: Database::Postgres {
            url: url.replace("passline@", &format!("passline:{PASSWORD}@")),
        },
        options: Options {
            state_tables: verbose(),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let fleet = Fleet::new(&programs(), &layout).unwrap();
    assert_hidden(fleet, true, "password authentication failed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_nats_refuses_is_shown_nowhere() {
    let settings = NatsSettings {
        credentials: Some(("passline".to_owned(), "right".to_owned())),
        ..NatsSettings::default()
    };
    let nats = TestNats::start(settings).await.unwrap();
    let layout = Layout {
        spool: SpoolKind::on(&nats),
        options: Options {
            spool_keys: format!("user = \"passline\"\npassword = {{ value = {PASSWORD:?} }}\n"),
            gateway_tables: verbose(),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let fleet = Fleet::new(&programs(), &layout).unwrap();
    assert_hidden(fleet, false, "authorization violation").await;
}
