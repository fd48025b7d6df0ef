//! Several services on one database.

use std::time::Duration;

use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::subscribe_response::Frame;
use pass_state::{PassState, RunError};
use service_kit::config::Duration as Span;
use test_kit::TestPostgres;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt as _;

use crate::database::{Database, on_both};
use crate::harness::*;
use crate::make::*;

async fn replica(database: &Database) -> Server {
    replica_with(database, |_| {}).await
}

async fn replica_with(database: &Database, change: impl FnOnce(&mut pass_state::Config)) -> Server {
    Server::with(|config| {
        database.configure(config);
        change(config);
    })
    .await
}

on_both!(
    what_one_replica_commits_every_replica_tells,
    a_place_got_from_one_replica_can_be_waited_for_on_another,
    a_newer_stream_on_another_replica_fences_the_older,
    streams_of_two_gateways_on_two_replicas_make_one_log,
    a_rotated_epoch_ends_streams_on_every_replica,
    a_replica_waits_for_the_schema_until_somebody_migrates,
);

/// By polling alone: hints are off.
async fn what_one_replica_commits_every_replica_tells(database: Database) {
    let without_hints =
        |config: &mut pass_state::Config| config.store.postgres.notifications = false;
    let a = replica_with(&database, without_hints).await;
    let b = replica_with(&database, without_hints).await;
    let mut live = b.subscribe(from_beginning()).await.unwrap();
    let caught_up = |frame: &Frame| matches!(frame, Frame::CaughtUp(_));
    live.until("CaughtUp", caught_up).await;
    let mut gateway = Gateway::connect(&a, 1).await;
    gateway.deliver(installs(0..3)).await;
    assert_eq!(live.passes(3).await, ["pass-0", "pass-1", "pass-2"]);
    let (log_a, log_b) = (a.log().await, b.log().await);
    assert_eq!(log_a.head_cursor, log_b.head_cursor);
    assert_eq!(log_a.epoch, log_b.epoch);
    assert_eq!(log_b.database, database.name());
    // A place is a place on every replica.
    let mut resumed = a.subscribe(after(&live.cursor)).await.unwrap();
    gateway.deliver(installs(3..4)).await;
    assert_eq!(resumed.passes(1).await, ["pass-3"]);
    assert_eq!(live.passes(1).await, ["pass-3"]);
    a.stop().await;
    gateway_moves(&b).await;
    assert_eq!(
        live.passes(1).await,
        ["pass-4"],
        "a replica less is no loss"
    );
    b.stop().await;
}

async fn gateway_moves(to: &Server) {
    let mut gateway = Gateway::connect(to, 1).await;
    assert_eq!(gateway.ready.committed_sequence, 4);
    gateway.deliver(installs(4..5)).await;
}

async fn a_place_got_from_one_replica_can_be_waited_for_on_another(database: Database) {
    let slow = |config: &mut pass_state::Config| {
        config.subscriptions.poll_interval = Span::from_secs(10);
        config.subscriptions.poll_interval_idle = Span::from_secs(10);
        config.store.postgres.notifications = false;
    };
    let a = replica_with(&database, slow).await;
    let b = replica_with(&database, slow).await;
    let mut gateway = Gateway::connect(&a, 1).await;
    for n in 0..5 {
        gateway.deliver(installs(n..n + 1)).await;
        let request = v1::GetPassRequest {
            name: format!("sources/acme/passes/pass-{n}"),
            min_cursor: a.log().await.head_cursor,
            ..v1::GetPassRequest::default()
        };
        let mut passes = b.passes();
        let read = soon("the read", passes.get_pass(request)).await;
        assert!(read.unwrap().into_inner().pass.is_some());
    }
    b.stop().await;
    a.stop().await;
}

async fn a_newer_stream_on_another_replica_fences_the_older(database: Database) {
    let a = replica(&database).await;
    let b = replica(&database).await;
    let mut older = Gateway::connect(&a, 1).await;
    older.deliver(installs(0..3)).await;
    let mut newer = Gateway::connect(&b, 1).await;
    assert_eq!(newer.ready.committed_sequence, 3);
    older.send(installs(3..4)).await;
    let status = older.end().await;
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(reason(&status), Reason::SpoolFenced);
    newer.deliver(installs(3..5)).await;
    let info = a.log().await;
    assert_eq!(info.books.unwrap().events, 5, "nothing of the older one");
    b.stop().await;
    a.stop().await;
}

async fn streams_of_two_gateways_on_two_replicas_make_one_log(database: Database) {
    let a = replica(&database).await;
    let b = replica(&database).await;
    let mut on_a = Gateway::connect(&a, 1).await;
    let mut on_b = Gateway::connect(&b, 2).await;
    let mut live = [
        a.subscribe(from_beginning()).await.unwrap(),
        b.subscribe(from_beginning()).await.unwrap(),
    ];
    let writing = async {
        tokio::join!(
            async {
                for n in 0..40 {
                    on_a.deliver(installs(n * 5..n * 5 + 5)).await;
                }
            },
            async {
                // Every fact of the other gateway again, in other deliveries, and as many of its own.
                for n in 0..40 {
                    let again = (n * 5..n * 5 + 5).zip(installs(n * 5..n * 5 + 5));
                    let again = again.map(|(number, mut delivery)| {
                        delivery.id = id(10_000 + number);
                        delivery
                    });
                    on_b.deliver(again.collect()).await;
                    on_b.deliver(installs(1_000 + n * 5..1_005 + n * 5)).await;
                }
            }
        )
    };
    let reading = async {
        let mut logs = Vec::new();
        for subscriber in &mut live {
            logs.push(subscriber.events(400).await);
        }
        logs
    };
    let both = Box::pin(async { tokio::join!(writing, reading) });
    let (_, logs) = soon("400 events", both).await;
    assert_eq!(logs[0], logs[1], "every replica tells the same");
    let mut names: Vec<_> = logs[0].iter().map(|event| &event.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 400);
    let books = a.log().await.books.unwrap();
    assert_eq!((books.events, books.duplicate_facts), (400, 200));
    b.stop().await;
    a.stop().await;
}

async fn a_rotated_epoch_ends_streams_on_every_replica(database: Database) {
    let a = replica(&database).await;
    let b = replica(&database).await;
    let mut gateway = Gateway::connect(&a, 1).await;
    gateway.deliver(installs(0..3)).await;
    let mut live = [
        a.subscribe(from_beginning()).await.unwrap(),
        b.subscribe(from_beginning()).await.unwrap(),
    ];
    for subscriber in &mut live {
        subscriber.passes(3).await;
    }
    let nowhere = std::path::Path::new("/nonexistent");
    let head = PassState::epoch_rotate(&database.config(), nowhere)
        .await
        .unwrap();
    for subscriber in &mut live {
        let (_, status) = subscriber.rest().await;
        let status = status.unwrap();
        assert_eq!(reason(&status), Reason::CursorEpochMismatch);
        assert_eq!(metadata(&status, "head_cursor"), head.cursor().to_string());
    }
    // Gateways go on, once they have said hello in the new one.
    assert_eq!(reason(&gateway.end().await), Reason::StreamRotated);
    let mut gateway = Gateway::connect(&a, 1).await;
    gateway.deliver(installs(3..4)).await;
    assert_eq!(b.log().await.books.unwrap().events, 4);
    b.stop().await;
    a.stop().await;
}

async fn a_replica_waits_for_the_schema_until_somebody_migrates(database: Database) {
    let waiting = Server::with(|config| {
        database.configure(config);
        config.store.migrations = pass_state::config::Migrations::Off;
    })
    .await;
    let answer = waiting.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    eventually("the reason", || async {
        waiting.get("/readyz").await.contains("pass-state migrate")
    })
    .await;
    assert!(waiting.get("/livez").await.starts_with("HTTP/1.1 200"));
    let mut passes = waiting.passes();
    let asking = passes.get_log_info(v1::GetLogInfoRequest {});
    let status = soon("an answer", asking).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), Reason::StoreUnavailable);
    assert!(status.get_details_retry_info().is_some());
    let nowhere = std::path::Path::new("/nonexistent");
    PassState::migrate(&database.config(), nowhere)
        .await
        .unwrap();
    eventually("readiness", || async {
        waiting.get("/readyz").await.starts_with("HTTP/1.1 200")
    })
    .await;
    let mut gateway = Gateway::connect(&waiting, 1).await;
    gateway.deliver(installs(0..1)).await;
    waiting.stop().await;
}

#[tokio::test]
async fn a_store_that_turns_out_unfit_while_it_is_waited_for_ends_the_service() {
    let database = Database::sqlite();
    let waiting = replica_with(&database, |config| {
        config.store.migrations = pass_state::config::Migrations::Off;
    })
    .await;
    let file = database.config().store.path.unwrap();
    std::fs::write(&file, "this is no database".repeat(1_000)).unwrap();
    let error = waiting.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Store { .. }), "{error:?}");
    assert!(error.to_string().contains(file.to_str().unwrap()));
}

#[tokio::test]
async fn a_postgresql_that_is_away_at_the_start_is_waited_for_and_its_url_is_not_shown() {
    let mut postgres = TestPostgres::start().await.unwrap();
    let database = Database::postgres(&postgres).await;
    let Database::Postgres(url) = &database else {
        unreachable!()
    };
    let database = Database::Postgres(url.replace("passline@", "passline:hidden-word@"));
    postgres.kill().await.unwrap();
    let waiting = replica(&database).await;
    let answer = waiting.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    eventually("a reason", || async {
        !waiting.get("/readyz").await.contains("starting")
    })
    .await;
    let answer = waiting.get("/readyz").await;
    assert!(!answer.contains("hidden-word"), "{answer}");
    let status = waiting.subscribe(from_end()).await.err().unwrap();
    assert_eq!(reason(&status), Reason::StoreUnavailable);
    postgres.restart().await.unwrap();
    eventually("readiness", || async {
        waiting.get("/readyz").await.starts_with("HTTP/1.1 200")
    })
    .await;
    let mut gateway = Gateway::connect(&waiting, 1).await;
    gateway.deliver(installs(0..1)).await;
    waiting.stop().await;
}

/// A migration that takes its time: it waits for the lock that all of them hold.
#[tokio::test]
async fn probes_are_answered_while_the_schema_is_migrated() {
    let postgres = TestPostgres::start().await.unwrap();
    let database = Database::postgres(&postgres).await;
    let Database::Postgres(url) = &database else {
        unreachable!()
    };
    let hold = format!(
        "SELECT pg_advisory_lock({}); SELECT pg_sleep(60);",
        i64::from_be_bytes(*b"passline")
    );
    let release = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted \
                   AND pid <> pg_backend_pid()";
    let (holding, working) = (postgres.sql(url, &hold), async {
        let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted";
        eventually("the lock", || async {
            postgres.sql(url, held).await.unwrap() == "1"
        })
        .await;
        let start = || {
            replica_with(&database, |config| {
                config.grpc.health_listen = Some(([127, 0, 0, 1], 0).into());
            })
        };
        let is_migrating = async |server: &Server| {
            let answer = server.get("/readyz").await;
            answer.starts_with("HTTP/1.1 503") && answer.contains("migrating the database's schema")
        };
        let stopped = start().await;
        eventually("a migration", || is_migrating(&stopped)).await;
        stopped.stop().await;

        let migrating = start().await;
        eventually("a migration", || is_migrating(&migrating)).await;
        assert!(migrating.get("/livez").await.starts_with("HTTP/1.1 200"));
        let scrape = migrating.get("/metrics").await;
        assert!(
            scrape.contains("passline_ready{check=\"store\"} 0"),
            "{scrape}"
        );
        let mut health = HealthClient::new(connect(migrating.health.unwrap()).await);
        for (service, status) in [
            ("liveness", ServingStatus::Serving),
            ("readiness", ServingStatus::NotServing),
        ] {
            let service = service.to_owned();
            let asking = health.check(HealthCheckRequest { service });
            let answer = soon("health", asking).await.unwrap().into_inner();
            assert_eq!(answer.status(), status);
        }
        postgres.sql(url, release).await.unwrap();
        eventually("readiness", || async {
            migrating.get("/readyz").await.starts_with("HTTP/1.1 200")
        })
        .await;
        let mut gateway = Gateway::connect(&migrating, 1).await;
        assert_eq!(gateway.deliver(installs(0..1)).await, ["APPLIED"]);
        migrating.stop().await;
    });
    let (held, ()) = tokio::join!(holding, working);
    assert!(held.is_err(), "the lock was taken away");
}

/// What alerts look at beside readiness must be there from the first scrape, or they never see a process that has no
/// database.
#[tokio::test]
async fn a_service_without_its_database_shows_that_it_is_not_ready() {
    let mut postgres = TestPostgres::start().await.unwrap();
    let database = Database::postgres(&postgres).await;
    postgres.kill().await.unwrap();
    let waiting = replica(&database).await;
    let scrape = waiting.get("/metrics").await;
    for line in [
        "passline_ready{check=\"store\"} 0",
        "passline_ingest_streams 0",
        "passline_ingest_streams_total 0",
        "passline_apply_failures_total{cause=\"unavailable\"} 0",
    ] {
        assert!(
            scrape.lines().any(|shown| shown == line),
            "{line} in {scrape}"
        );
    }
    waiting.stop().await;
}

#[tokio::test]
async fn a_stop_while_the_database_is_away_ends_in_order() {
    let mut postgres = TestPostgres::start().await.unwrap();
    let database = Database::postgres(&postgres).await;
    postgres.kill().await.unwrap();
    let waiting = replica(&database).await;
    let began = std::time::Instant::now();
    waiting.stop().await;
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_notification_wakes_another_replica_long_before_its_next_poll() {
    let postgres = TestPostgres::start().await.unwrap();
    let database = Database::postgres(&postgres).await;
    let slow = |config: &mut pass_state::Config| {
        config.subscriptions.poll_interval = Span::from_secs(10);
        config.subscriptions.poll_interval_idle = Span::from_secs(15);
    };
    let a = replica_with(&database, slow).await;
    let b = replica_with(&database, slow).await;
    let mut live = b.subscribe(from_end()).await.unwrap();
    let caught_up = |frame: &Frame| matches!(frame, Frame::CaughtUp(_));
    live.until("CaughtUp", caught_up).await;
    let mut gateway = Gateway::connect(&a, 1).await;
    let began = std::time::Instant::now();
    gateway.deliver(installs(0..1)).await;
    assert_eq!(live.passes(1).await, ["pass-0"]);
    assert!(began.elapsed() < Duration::from_secs(5), "by the timer");
    b.stop().await;
    a.stop().await;
}

/// Delivers passes `from..until` one batch of five after the other, through whatever happens to the database.
async fn deliver_through(server: &Server, from: u64, until: u64) -> u32 {
    let mut interruptions = 0;
    let mut first = from;
    let mut gateway: Option<Gateway> = None;
    while first < until {
        let Some(open) = &mut gateway else {
            gateway = try_connect(server, 1).await;
            if let Some(open) = &gateway {
                // The store's word on what arrived: an unknown outcome may have been a commit.
                first = from + open.sequence;
            } else {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            continue;
        };
        open.send(installs(first..first + 5)).await;
        match open.committed().await {
            Ok(_) => first += 5,
            Err(status) => {
                assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                interruptions += 1;
                gateway = None;
            }
        }
    }
    interruptions
}

#[tokio::test]
async fn a_database_that_is_killed_under_load_costs_no_event_and_repeats_none() {
    let mut postgres = TestPostgres::start().await.unwrap();
    let database = Database::postgres(&postgres).await;
    let a = replica(&database).await;
    let b = replica(&database).await;
    let epoch = a.log().await.epoch;
    let mut live = b.subscribe(from_beginning()).await.unwrap();
    live.started().await;
    let writing = deliver_through(&a, 0, 2_000);
    let harm = async {
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            postgres.kill().await.unwrap();
            postgres.restart().await.unwrap();
        }
    };
    let reading = async {
        let mut told = Vec::new();
        while told.len() < 2_000 {
            match live.frame().await {
                Ok(Some(Frame::Events(frame))) => told.extend(frame.events),
                Ok(Some(_)) => {}
                // A stream that was catching up when the database went; it goes on from its place.
                Ok(None) | Err(_) => {
                    let place = live.cursor.clone();
                    eventually("a new stream", || async {
                        b.subscribe(after(&place)).await.is_ok()
                    })
                    .await;
                    live = b.subscribe(after(&place)).await.unwrap();
                }
            }
        }
        told
    };
    let all = Box::pin(async { tokio::join!(writing, harm, reading) });
    let all = tokio::time::timeout(Duration::from_secs(60), all).await;
    let (interruptions, (), told) = all.unwrap();
    assert!(interruptions > 0, "nobody noticed");
    let expected = (0..2_000).map(|n| format!("sources/acme/passes/pass-{n}"));
    assert!(told.into_iter().map(|event| event.pass).eq(expected));
    eventually("readiness", || async {
        a.get("/readyz").await.starts_with("HTTP/1.1 200")
            && b.get("/readyz").await.starts_with("HTTP/1.1 200")
    })
    .await;
    assert_eq!(a.log().await.epoch, epoch, "a crash loses nothing");
    b.stop().await;
    a.stop().await;
}
