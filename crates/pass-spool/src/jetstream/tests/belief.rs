//! What is believed of servers and streams, and what is not.

use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, StorageType};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::link::{config_check, queue_length};
use super::super::options::{JetStreamOpenError, NatsCredentials};
use super::super::proof;
use super::*;
use crate::{AppendError, LeaseError, RewindError};

/// What must be named, and what spoils it.
type Case<T> = (&'static str, fn(&mut T));

fn unavailable(spool: &JetStreamSpool) -> String {
    match spool.status().health {
        SpoolHealth::Unavailable(reason) => reason.to_string(),
        health => panic!("{health:?}"),
    }
}

#[tokio::test]
async fn without_monitoring_no_record_is_taken() {
    let mut bench = Bench::start().await;
    bench.options.monitoring_urls.clear();
    let spool = bench.open().await;
    let reason = unavailable(&spool);
    assert!(
        reason.contains("monitoring_urls") && reason.contains("allow_unsynced"),
        "{reason}"
    );
    let refused = spool.append(fresh_id(), record(1)).await;
    assert_eq!(refused, Err(AppendError::Unavailable(reason.into())));
    let info = spool.link.stream.get_info().await.expect("info");
    assert_eq!(info.state.last_sequence, 0);
    assert_eq!(spool.status().unproven, None);
    spool.close().await;
}

#[tokio::test]
async fn monitoring_that_does_not_answer_or_speaks_for_another_server_proves_nothing() {
    let mut bench = Bench::start().await;
    bench.options.monitoring_urls = vec!["http://127.0.0.1:9".into()];
    let spool = bench.open().await;
    let reason = unavailable(&spool);
    assert!(
        reason.contains("monitoring_urls") && reason.contains("http://127.0.0.1:9"),
        "{reason}"
    );
    spool.close().await;

    let stranger = Bench::start().await;
    bench.options.monitoring_urls = vec![stranger.nats.monitoring_url()];
    let spool = bench.open().await;
    let reason = unavailable(&spool);
    assert!(reason.contains("speaks for NATS server test_"), "{reason}");
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_acknowledges_before_it_syncs_is_used_only_if_that_is_allowed() {
    let settings = NatsSettings {
        sync_always: false,
        ..NatsSettings::default()
    };
    let mut bench = Bench::with(settings).await;
    let spool = bench.open().await;
    let reason = unavailable(&spool);
    assert!(reason.contains("sync_interval: always"), "{reason}");
    assert!(matches!(
        spool.append(fresh_id(), record(1)).await,
        Err(AppendError::Unavailable(_))
    ));
    spool.close().await;

    bench.options.allow_unsynced = true;
    let spool = bench.open_in_turn().await;
    let status = spool.status();
    assert_eq!(status.health, SpoolHealth::Ok);
    assert!(
        status
            .unproven
            .is_some_and(|reason| reason.contains("sync_interval: always"))
    );
    append(&spool, 1..=1).await;
    assert_eq!(lease_numbers(&spool, 1).await, [1]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_without_syncing_is_not_believed_any_more() {
    let mut bench = Bench::start().await;
    let spool = bench.open().await;
    append(&spool, 1..=1).await;
    reconfigure_unsynced(&mut bench.nats).await;
    wait_for("disbelief", Duration::from_secs(10), async || {
        match spool.status().health {
            SpoolHealth::Unavailable(reason) if reason.contains("sync_interval: always") => Ok(()),
            health => Err(format!("{health:?}")),
        }
    })
    .await
    .expect("the server is not believed any more");
    let refused = spool.append(fresh_id(), record(2)).await;
    assert!(
        matches!(refused, Err(AppendError::Unavailable(_))),
        "{refused:?}"
    );
    let info = spool.link.stream.get_info().await.expect("info");
    assert_eq!(info.state.last_sequence, 1);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_comes_back_without_syncing_is_noticed_over_the_same_connection() {
    let mut servers = TestNats::cluster(3, NatsSettings::default())
        .await
        .expect("cluster starts");
    let mut options = options_for(&servers[0], servers[0].url());
    options.monitoring_urls = servers.iter().map(TestNats::monitoring_url).collect();
    options.replicas = 3;
    let spool = JetStreamSpool::open(options).await.expect("spool opens");
    wait_health(&spool, &SpoolHealth::Ok).await;
    let epoch = spool.shared.standing.borrow().epoch;
    reconfigure_unsynced(&mut servers[2]).await;
    // No longer than it takes to look twice: a proof from before is worth nothing.
    wait_for("disbelief", Duration::from_secs(12), async || {
        match spool.status().health {
            SpoolHealth::Unavailable(reason) if reason.contains("sync_interval: always") => Ok(()),
            health => Err(format!("{health:?}")),
        }
    })
    .await
    .expect("the member is not believed any more");
    assert_eq!(spool.shared.standing.borrow().epoch, epoch);
    spool.close().await;
}

/// Restarts the server with settings that let it answer before it syncs.
async fn reconfigure_unsynced(server: &mut TestNats) {
    server.stop().await.expect("server stops");
    let file = server.store_dir().with_file_name("nats.conf");
    let text = std::fs::read_to_string(&file).expect("configuration");
    let changed = text.replace("sync_interval: always", "sync_interval: \"2m\"");
    assert_ne!(text, changed);
    std::fs::write(&file, changed).expect("configuration");
    server.restart().await.expect("server starts");
}

/// Says of a server whether it syncs, to whoever asks; returns where to ask.
async fn monitoring(name: &'static str, sync_always: bool) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("bound");
    let url = format!("http://{}", listener.local_addr().expect("address"));
    let body = format!(
        r#"{{"server_name":"{name}","jetstream":{{"config":{{"sync_always":{sync_always}}}}}}}"#
    );
    tokio::spawn(async move {
        while let Ok((mut asking, _)) = listener.accept().await {
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            // Read first, so that closing resets nothing.
            let mut question = [0; 1024];
            let _ = asking.read(&mut question).await;
            let _ = asking.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn two_servers_of_one_name_must_both_sync() {
    let (synced, unsynced) = (
        monitoring("twin", true).await,
        monitoring("twin", false).await,
    );
    let holders = [proof::Holder {
        name: "twin".into(),
        away: false,
    }];
    for (urls, believed) in [
        ([&synced, &synced], true),
        ([&synced, &unsynced], false),
        ([&unsynced, &synced], false),
    ] {
        let mut options = JetStreamOptions::new(vec!["nats://127.0.0.1:9".into()]);
        options.monitoring_urls = urls.map(String::clone).to_vec();
        let proven = proof::prove(&options, &holders, &mut proof::Proven::new()).await;
        assert_eq!(proven.is_ok(), believed, "{urls:?}: {proven:?}");
    }
}

#[test]
fn the_client_queues_no_more_than_a_bounded_number_of_bytes() {
    let bytes = |record_bytes_max| {
        let mut options = JetStreamOptions::new(Vec::new());
        options.record_bytes_max = record_bytes_max;
        queue_length(&options) * record_bytes_max
    };
    for record_bytes_max in [1, 1000, 200_000, 2 << 20, 8 << 20] {
        assert!(bytes(record_bytes_max) <= 64 << 20, "{record_bytes_max}");
    }
    assert_eq!(bytes(super::super::RECORD_BYTES_CEILING), 256 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_made_anew_is_another_spool() {
    let bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=5).await;
    let client = async_nats::connect(bench.nats.url())
        .await
        .expect("connected");
    let context = async_nats::jetstream::new(client);
    context.delete_stream("PASSLINE").await.expect("deleted");
    let after = bench.open_in_turn().await;
    assert_ne!(after.id(), spool.id());
    assert_eq!(
        (after.status().last_durable, after.status().settled),
        (Sequence(0), Sequence(0))
    );
    wait_for("the end of the older one", DEADLINE, async || {
        match spool.status().health {
            SpoolHealth::Poisoned(reason) if reason.contains("made anew") => Ok(()),
            health => Err(format!("{health:?}")),
        }
    })
    .await
    .expect("it is noticed");
    assert!(matches!(
        spool.append(fresh_id(), record(1)).await,
        Err(AppendError::Poisoned(_))
    ));
    spool.close().await;
    append(&after, 1..=1).await;
    assert_eq!(lease_numbers(&after, 1).await, [1]);
    after.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_restored_to_an_earlier_moment_is_noticed_and_says_where_it_ends() {
    let mut bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=5).await;
    bench.nats.stop().await.expect("server stops");
    let backup = tempfile::tempdir().expect("directory");
    dir_copy(&bench.nats.store_dir(), &backup.path().join("store"));
    bench.nats.restart().await.expect("server starts");
    wait_health(&spool, &SpoolHealth::Ok).await;
    append(&spool, 6..=10).await;
    bench.nats.stop().await.expect("server stops");
    std::fs::remove_dir_all(bench.nats.store_dir()).expect("removed");
    dir_copy(&backup.path().join("store"), &bench.nats.store_dir());
    bench.nats.restart().await.expect("server starts");
    wait_for("the end of the spool", DEADLINE, async || {
        match spool.status().health {
            SpoolHealth::Poisoned(reason) if reason.contains("ends at 5 but ended at 10") => Ok(()),
            health => Err(format!("{health:?}")),
        }
    })
    .await
    .expect("it is noticed");
    spool.close().await;
    let after = bench.open_in_turn().await;
    assert_eq!(after.id(), spool.id());
    assert_eq!(
        after.rewind(Sequence(10)).await,
        Err(RewindError::Ahead { last: 5 })
    );
    after.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_given_another_id_is_another_spool_with_all_its_records() {
    let bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=5).await;
    spool.settle(Sequence(5)).await.expect("settle succeeds");
    let client = async_nats::connect(bench.nats.url())
        .await
        .expect("connected");
    let context = async_nats::jetstream::new(client);
    let mut stream = context.get_stream("PASSLINE").await.expect("stream");
    let mut config = stream.info().await.expect("info").config.clone();
    config
        .metadata
        .insert("passline.spool_id".into(), "0123456789abcdef".repeat(2));
    context.update_stream(config).await.expect("updated");
    wait_for(
        "the end of the older spool",
        DEADLINE,
        async || match spool.status().health {
            SpoolHealth::Poisoned(_) => Ok(()),
            health => Err(format!("{health:?}")),
        },
    )
    .await
    .expect("it is noticed");
    assert!(matches!(
        spool.lease(1, 1).await,
        Err(LeaseError::Poisoned(_))
    ));
    spool.close().await;
    let after = bench.open_in_turn().await;
    assert_eq!(after.id().to_string(), "0123456789abcdef".repeat(2));
    assert_eq!(after.status().settled, Sequence(0));
    assert_eq!(lease_numbers(&after, 5).await, [1, 2, 3, 4, 5]);
    after.close().await;
}

fn dir_copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).expect("directory");
    for entry in std::fs::read_dir(from).expect("list") {
        let entry = entry.expect("entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            dir_copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).expect("copy");
        }
    }
}

#[tokio::test]
async fn a_stream_that_breaks_a_promise_is_refused_with_the_command_that_mends_it() {
    let bench = Bench::start().await;
    bench.open().await.close().await;
    let client = async_nats::connect(bench.nats.url())
        .await
        .expect("connected");
    let context = async_nats::jetstream::new(client);
    let mut stream = context.get_stream("PASSLINE").await.expect("stream");
    let good = stream.info().await.expect("info").config.clone();
    assert_eq!(config_check(&bench.options, &good), Ok(()));
    let mut bad = good.clone();
    bad.max_age = Duration::from_secs(3600);
    context.update_stream(bad).await.expect("updated");
    let refused = JetStreamSpool::open(bench.options.clone())
        .await
        .expect_err("refused");
    let text = refused.to_string();
    assert!(
        matches!(refused, JetStreamOpenError::Stream { .. })
            && text.contains("max_age")
            && text.contains("nats stream edit PASSLINE --max-age=0"),
        "{text}"
    );
    let cases: [Case<Config>; 13] = [
        ("storage", |config| config.storage = StorageType::Memory),
        ("retention", |config| {
            config.retention = async_nats::jetstream::stream::RetentionPolicy::WorkQueue
        }),
        ("persist_mode", |config| {
            config.persist_mode = Some(PersistenceMode::Async)
        }),
        ("discard", |config| config.discard = DiscardPolicy::Old),
        ("max_msgs", |config| config.max_messages = 5),
        ("max_bytes", |config| config.max_bytes = -1),
        ("max_msg_size", |config| config.max_message_size = 1000),
        ("replicas", |config| config.num_replicas = 0),
        ("duplicate window", |config| {
            config.duplicate_window = Duration::from_secs(1)
        }),
        ("direct", |config| config.allow_direct = false),
        ("rollup", |config| config.allow_rollup = true),
        ("subjects", |config| config.subjects.push("other".into())),
        ("sealed", |config| config.sealed = true),
    ];
    for (named, spoil) in cases {
        let mut config = good.clone();
        spoil(&mut config);
        let detail = config_check(&bench.options, &config).expect_err(named);
        assert!(detail.contains(named), "{named}: {detail}");
    }
}

#[tokio::test]
async fn a_stream_of_someone_else_is_left_alone() {
    let bench = Bench::start().await;
    let client = async_nats::connect(bench.nats.url())
        .await
        .expect("connected");
    let context = async_nats::jetstream::new(client);
    let config = Config {
        name: "PASSLINE".into(),
        subjects: vec!["PASSLINE.deliveries".into()],
        discard: DiscardPolicy::New,
        max_bytes: 1 << 20,
        allow_direct: true,
        ..Config::default()
    };
    context.create_stream(config).await.expect("created");
    let refused = JetStreamSpool::open(bench.options.clone())
        .await
        .expect_err("refused");
    assert!(
        refused.to_string().contains("not made by Passline"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_larger_ceiling_is_applied_to_the_stream_and_a_smaller_one_is_not() {
    let mut bench = Bench::start().await;
    for (configured, expected) in [
        (64 << 20, 64 << 20),
        (128 << 20, 128 << 20),
        (32 << 20, 128 << 20),
    ] {
        bench.options.bytes_max = configured;
        let spool = bench.open().await;
        assert_eq!(spool.status().disk_bytes_max, expected);
        spool.close().await;
    }
}

#[tokio::test]
async fn a_payload_limit_below_the_largest_record_is_refused_with_both_keys() {
    let mut bench = Bench::start().await;
    bench.options.record_bytes_max = 1 << 20;
    let refused = JetStreamSpool::open(bench.options.clone())
        .await
        .expect_err("refused");
    let text = refused.to_string();
    assert!(
        text.contains("max_payload") && text.contains("record_bytes_max"),
        "{text}"
    );
}

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_an_error_that_says_what_to_do() {
    let mut options = JetStreamOptions::new(vec!["nats://127.0.0.1:9".into()]);
    options.connect_timeout = Duration::from_millis(1500);
    let began = std::time::Instant::now();
    let refused = JetStreamSpool::open(options).await.expect_err("refused");
    assert!(began.elapsed() < Duration::from_secs(3));
    let text = refused.to_string();
    assert!(
        text.contains("nats://127.0.0.1:9") && text.contains("start the servers"),
        "{text}"
    );
}

#[tokio::test]
async fn credentials_are_used_and_never_shown() {
    let settings = NatsSettings {
        credentials: Some(("gateway".into(), "s3cret".into())),
        ..NatsSettings::default()
    };
    let mut bench = Bench::with(settings).await;
    bench.options.connect_timeout = Duration::from_millis(1500);
    assert!(JetStreamSpool::open(bench.options.clone()).await.is_err());
    let credentials = NatsCredentials::UserPassword {
        user: "gateway".into(),
        password: "s3cret".into(),
    };
    assert!(!format!("{credentials:?}").contains("s3cret"));
    bench.options.credentials = Some(credentials.into());
    assert!(!bench.options.login_in_the_clear(), "it is this machine");
    let servers = ["tls://nats.example:4222", "nats://nats.example:4222"];
    for (server, clear) in servers.into_iter().zip([false, true]) {
        let mut away = bench.options.clone();
        away.servers = vec![server.to_owned()];
        assert_eq!(away.login_in_the_clear(), clear);
        away.tls_required = true;
        assert!(!away.login_in_the_clear());
    }
    let shown = format!("{:?}", bench.options);
    assert!(
        shown.contains("[REDACTED]") && !shown.contains("s3cret"),
        "{shown}"
    );
    let spool = bench.open().await;
    append(&spool, 1..=1).await;
    spool.close().await;
}

#[test]
fn settings_that_do_not_fit_are_named() {
    let cases: [Case<JetStreamOptions>; 11] = [
        ("servers", |options| options.servers.clear()),
        ("servers", |options| {
            options.servers = vec!["nats://a b".into()]
        }),
        ("stream", |options| options.stream = "a.b".into()),
        ("replicas", |options| options.replicas = 2),
        ("record_bytes_max", |options| options.record_bytes_max = 0),
        ("bytes_max", |options| options.bytes_max = 1000),
        ("retain_bytes", |options| {
            options.retain_bytes = Some(u64::MAX)
        }),
        ("window_records", |options| options.window_records = 0),
        ("window_bytes", |options| options.window_bytes = 1000),
        ("append_in_flight_max", |options| {
            options.append_in_flight_max = usize::MAX
        }),
        ("monitoring_urls", |options| {
            options.monitoring_urls = vec!["https://host".into()]
        }),
    ];
    for (named, spoil) in cases {
        let mut options = JetStreamOptions::new(vec!["nats://127.0.0.1:4222".into()]);
        options.check().expect("defaults fit");
        spoil(&mut options);
        let text = options.check().expect_err(named).to_string();
        assert!(text.contains(named), "{named}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_servers_keep_the_spool_while_one_is_down_and_all_must_be_proven() {
    let mut servers = TestNats::cluster(3, NatsSettings::default())
        .await
        .expect("cluster starts");
    let mut options = options_for(&servers[0], servers[0].url());
    options.servers = servers.iter().map(TestNats::url).collect();
    options.replicas = 3;
    options.bytes_max = 64 << 20;
    let spool = JetStreamSpool::open(options.clone())
        .await
        .expect("spool opens");
    let reason = unavailable(&spool);
    assert!(reason.contains("speaks for NATS server test_"), "{reason}");
    spool.close().await;

    options.monitoring_urls = servers.iter().map(TestNats::monitoring_url).collect();
    let spool = JetStreamSpool::open(options).await.expect("spool opens");
    wait_health(&spool, &SpoolHealth::Ok).await;
    in_turn(&spool).await;
    append(&spool, 1..=50).await;
    let connected = spool.link.client.server_info().server_name;
    let index = servers
        .iter()
        .position(|server| connected == format!("test_{}", server.address().port()))
        .expect("one of ours");
    servers[index].kill().await.expect("server dies");
    let mut next = 51;
    let began = std::time::Instant::now();
    let mut id = fresh_id();
    while next <= 100 {
        assert!(
            began.elapsed() < 3 * DEADLINE,
            "appends do not come back: {:?}",
            spool.status()
        );
        // Asked again with the same id, as long as it is not known whether it was stored.
        match spool.append(id, record(next)).await {
            Ok(sequence) => {
                assert_eq!(sequence, Sequence(next));
                next += 1;
                id = fresh_id();
            }
            Err(AppendError::Unavailable(_)) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => panic!("{error}"),
        }
    }
    wait_health(&spool, &SpoolHealth::Ok).await;
    // The bucket's leader may have died, too: then the turn is lost until there is a new one, and taken again.
    let mut given = 0;
    while given < 100 {
        assert!(
            began.elapsed() < 4 * DEADLINE,
            "leases do not come back: {:?}",
            spool.status()
        );
        in_turn(&spool).await;
        if spool.rewind(Sequence(given)).await.is_err() {
            continue;
        }
        while given < 100 {
            match spool.lease(10, 1 << 20).await {
                Ok(leased) => {
                    for leased in leased {
                        given += 1;
                        assert_eq!((leased.sequence.0, leased.record), (given, record(given)));
                    }
                }
                Err(LeaseError::TurnLost | LeaseError::Unavailable(_)) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    spool.close().await;
}
