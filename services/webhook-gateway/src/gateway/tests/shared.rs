//! The service on a spool that others share and a server keeps, both played by the test.

use super::*;
use crate::testing::shared::{SharedSpool, Turn};

#[tokio::test]
async fn a_spool_whose_server_is_away_turns_callbacks_away_until_it_is_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut peer = PassState::start().await;
    let mut gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let shared = SharedSpool::new(Arc::clone(&gateway.spool), Turn::Ours);
    gateway.spool = Arc::clone(&shared) as _;
    let (http, admin, observer) = (
        gateway.http_addr(),
        gateway.admin_addr(),
        gateway.observer(),
    );
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));
    let mut stream = peer.ready(0).await;

    shared.turn_to(Turn::Away);
    let answer = send(http, "/webhooks/plain").await;
    assert!(
        answer.starts_with("HTTP/1.1 503")
            && answer.contains("\r\nretry-after: 5\r\n")
            && answer.contains("problems/spool-unavailable"),
        "{answer}"
    );
    assert_eq!(observer.books().total(Tally::Unavailable), 1);
    test_kit::wait_for("the readiness check", SOON, async || {
        let (head, body) = admin_json(admin, "/readyz").await;
        if head.starts_with("HTTP/1.1 503") && body.to_string().contains("no server answers") {
            Ok(())
        } else {
            Err(body)
        }
    })
    .await
    .unwrap();
    assert!(stream.ended().await);

    shared.turn_to(Turn::Ours);
    let mut stream = peer.ready(0).await;
    assert!(
        send(http, "/webhooks/plain")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert_eq!(stream.batch().await.deliveries[0].sequence, 1);
    test_kit::wait_for("readiness", SOON, async || {
        let (head, body) = admin_json(admin, "/readyz").await;
        if head.starts_with("HTTP/1.1 200") {
            Ok(())
        } else {
            Err(body)
        }
    })
    .await
    .unwrap();
    shutdown.advance(Phase::Aborting);
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_gateway_that_waits_for_its_turn_takes_callbacks_and_says_that_it_waits() {
    let dir = tempfile::tempdir().unwrap();
    let mut peer = PassState::start().await;
    let mut gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let shared = SharedSpool::new(Arc::clone(&gateway.spool), Turn::Theirs);
    gateway.spool = Arc::clone(&shared) as _;
    let (http, admin, observer) = (
        gateway.http_addr(),
        gateway.admin_addr(),
        gateway.observer(),
    );
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));
    let mut forward = observer.watch_forward();
    timeout(SOON, forward.wait_for(|status| status.waiting_for_turn))
        .await
        .expect("it waits for its turn")
        .unwrap();
    assert!(
        send(http, "/webhooks/plain")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let (head, _) = admin_json(admin, "/readyz").await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let (_, status) = admin_json(admin, "/status").await;
    assert_eq!(status["forward"]["waiting_for_turn"], true);
    assert_eq!(status["spool"]["unsettled_records"], 1);
    assert!(peer.nobody_within(Duration::from_millis(50)).await);
    shutdown.advance(Phase::Stopping);
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_durability_that_is_not_proven_is_told_although_the_gateway_is_ready() {
    let spool = StubSpool {
        unproven: Some("sync_interval is not always".into()),
        ..StubSpool::new(Ok(Sequence(1)))
    };
    let warning = r#""warning":"durability is not proven: sync_interval is not always""#;
    let status = ready_with(spool, warning).await;
    assert_eq!(status["spool"]["unproven"], "sync_interval is not always");
    assert_eq!(status["spool"]["backend"], "jetstream");
}

#[tokio::test]
async fn a_turn_that_nobody_can_be_told_to_have_is_told_although_the_gateway_is_ready() {
    let spool = StubSpool {
        trouble: Some("the bucket is gone".into()),
        ..StubSpool::new(Ok(Sequence(1)))
    };
    let warning = r#""warning":"nothing may be forwarded: the bucket is gone""#;
    let status = ready_with(spool, warning).await;
    assert_eq!(status["spool"]["trouble"], "the bucket is gone");
}

/// Runs a gateway on this spool until it is ready with this warning; returns what it tells the operator.
async fn ready_with(spool: StubSpool, warning: &str) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let peer = PassState::start().await;
    let mut gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let spool: Arc<dyn Spool> = Arc::new(spool);
    gateway.spool = Arc::clone(&spool);
    let forward = gateway.forward.subscribe();
    gateway.observer = Arc::new(Observer {
        live: Arc::clone(&gateway.live),
        books: Arc::clone(&gateway.observer.books),
        spool,
        spool_backend: SpoolBackend::Jetstream,
        forward,
        reload: Arc::clone(&gateway.observer.reload),
        certificates: Vec::new(),
        client_tls: None,
    });
    let admin = gateway.admin_addr();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));
    test_kit::wait_for("readiness", SOON, async || {
        let (head, body) = admin_json(admin, "/readyz").await;
        if head.starts_with("HTTP/1.1 200") && body.to_string().contains(warning) {
            Ok(())
        } else {
            Err(body)
        }
    })
    .await
    .unwrap();
    let (_, status) = admin_json(admin, "/status").await;
    shutdown.advance(Phase::Aborting);
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
    status
}
