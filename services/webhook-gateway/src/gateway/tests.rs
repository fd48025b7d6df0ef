//! The whole service over real sockets.

use std::path::Path;

use pass_domain::delivery::Outcome;
use pass_spool::{AppendError, Sequence};
use service_kit::config::Duration as Millis;
use service_kit::shutdown::Phase;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::*;
use crate::books::Tally;
use crate::testing::pass_state::PassState;
use crate::testing::{self, SECRET, SOON, StubSpool, TestClock};

mod jetstream;
mod shared;

fn config(pass_state: SocketAddr) -> Config {
    let mut config = Config {
        sources: testing::source_configs(),
        http: testing::http(),
        ack: testing::ack(),
        ..Config::default()
    };
    config.http.listen = ([127, 0, 0, 1], 0).into();
    config.admin.listen = ([127, 0, 0, 1], 0).into();
    config.pass_state.endpoint = format!("http://{pass_state}").into();
    config.forward.drain_timeout = Millis::from_millis(200);
    config.spool.segment_bytes = service_kit::config::ByteSize::from_kib(64);
    config.spool.bytes_max = service_kit::config::ByteSize::from_kib(256);
    config
}

fn dependencies(dir: &Path) -> Dependencies {
    Dependencies {
        clock: Arc::new(TestClock::new()),
        env: Vec::new(),
        data_dir: dir.to_owned(),
        config_from: None,
    }
}

/// Sends one request on a connection of its own and reads the answer to its end.
async fn ask(addr: SocketAddr, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "{head}\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .expect("an answer")
        .unwrap();
    answer
}

async fn send(addr: SocketAddr, path: &str) -> String {
    let body = r#"{"kind":"INSTALLED","pass":"p-1"}"#;
    ask(
        addr,
        &format!("POST {path} HTTP/1.1\r\nauthorization: {SECRET}"),
        body,
    )
    .await
}

#[tokio::test]
async fn a_callback_goes_through_to_pass_state_and_the_service_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut peer = PassState::start().await;
    let gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let (http, admin, observer) = (
        gateway.http_addr(),
        gateway.admin_addr(),
        gateway.observer(),
    );
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));

    assert!(
        send(http, "/webhooks/plain")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(dir.path().join("gateway/spool").is_dir());
    let mut stream = peer.ready(0).await;
    let batch = stream.batch().await;
    assert_eq!(batch.deliveries[0].source, "plain");
    stream.commit(1, [1], Outcome::Applied).await;

    // The next one waits for pass-state's word.
    let (answer, ()) = tokio::join!(send(http, "/webhooks/applied"), async {
        let batch = stream.batch().await;
        stream
            .commit(batch.batch_number, [2], Outcome::Duplicate)
            .await;
    });
    assert!(answer.contains(r#""status":"duplicate""#), "{answer}");

    test_kit::wait_for("readiness", SOON, async || {
        let answer = ask(admin, "GET /readyz HTTP/1.1", "").await;
        if answer.starts_with("HTTP/1.1 200") {
            Ok(())
        } else {
            Err(answer)
        }
    })
    .await
    .unwrap();
    let status = ask(admin, "GET /status HTTP/1.1", "").await;
    let status: serde_json::Value =
        serde_json::from_str(status.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(status["forward"]["committed_sequence"], 2);
    assert_eq!(status["spool"]["last_durable"], 2);
    assert_eq!(status["sources"][0]["requests"]["stored"], 1);

    shutdown.advance(Phase::Draining);
    assert!(
        ask(admin, "GET /readyz HTTP/1.1", "")
            .await
            .starts_with("HTTP/1.1 503")
    );
    assert!(
        send(http, "/webhooks/plain")
            .await
            .starts_with("HTTP/1.1 200"),
        "draining still accepts"
    );
    shutdown.advance(Phase::Stopping);
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
    assert!(stream.ended().await);
    assert!(TcpStream::connect(http).await.is_err());
    assert_eq!(observer.books().total(Tally::Stored), 3);

    // The spool is free again, and the last delivery, never acknowledged, is still in it.
    let gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));
    let mut stream = peer.ready(2).await;
    assert_eq!(stream.batch().await.deliveries[0].sequence, 3);
    shutdown.advance(Phase::Aborting);
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
}

/// Its sender has no other way to learn that the gateway is about to end than the answer.
#[tokio::test]
async fn a_callback_on_a_connection_from_before_is_stored_though_the_gateway_stops() {
    let dir = tempfile::tempdir().unwrap();
    let peer = PassState::start().await;
    let gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let (http, observer) = (gateway.http_addr(), gateway.observer());
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));
    let mut stream = TcpStream::connect(http).await.unwrap();
    let body = r#"{"kind":"INSTALLED","pass":"p-1"}"#;
    let head = format!(
        "POST /webhooks/plain HTTP/1.1\r\nhost: x\r\nauthorization: {SECRET}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    shutdown.advance(Phase::Stopping);
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .expect("the connection ends")
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
    assert_eq!(observer.books().total(Tally::Stored), 1);
    assert_eq!(observer.spool().last_durable.0, 1);
}

#[tokio::test]
async fn without_pass_state_the_gateway_is_ready_and_keeps_accepting() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(nobody.local_addr().unwrap());
    drop(nobody);
    let gateway = Gateway::build(config, dependencies(dir.path()))
        .await
        .unwrap();
    let (http, admin, observer) = (
        gateway.http_addr(),
        gateway.admin_addr(),
        gateway.observer(),
    );
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));
    let mut forward = observer.watch_forward();
    timeout(SOON, forward.wait_for(|status| status.last_error.is_some()))
        .await
        .expect("a failed attempt")
        .unwrap();
    for path in ["/webhooks/plain", "/webhooks/applied"] {
        let answer = send(http, path).await;
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains(r#""status":"stored""#),
            "{answer}"
        );
    }
    assert!(
        ask(admin, "GET /readyz HTTP/1.1", "")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert_eq!(observer.spool().unsettled_records, 2);
    shutdown.advance(Phase::Stopping);
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_body_is_asked_for_only_where_it_will_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let peer = PassState::start().await;
    let gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let http = gateway.http_addr();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(gateway.run(shutdown.clone()));
    for (path, length, expected) in [
        ("/webhooks/plain", 2, "HTTP/1.1 100 Continue"),
        ("/webhooks/plain", 1_000_000, "HTTP/1.1 413"),
        ("/webhooks/absent", 2, "HTTP/1.1 404"),
    ] {
        let mut stream = TcpStream::connect(http).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: {SECRET}\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; expected.len()];
        timeout(SOON, stream.read_exact(&mut answer))
            .await
            .expect("an answer")
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), expected);
    }
    shutdown.advance(Phase::Aborting);
    timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_second_gateway_on_the_same_spool_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let peer = PassState::start().await;
    let _first = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let second = Gateway::build(config(peer.addr), dependencies(dir.path())).await;
    assert!(matches!(
        second.err(),
        Some(BuildError::Spool(OpenError::Locked { .. }))
    ));
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(taken.local_addr().unwrap());
    config.http.listen = taken.local_addr().unwrap();
    let error = Gateway::build(config, dependencies(dir.path()))
        .await
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .starts_with("http.listen can't be bound to 127.0.0.1:"),
        "{error}"
    );
}

#[tokio::test]
async fn a_poisoned_spool_ends_the_process_within_a_second_and_every_answer_is_503() {
    let peer = PassState::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::build(config(peer.addr), dependencies(dir.path()))
        .await
        .unwrap();
    let mut spool = StubSpool::new(Err(AppendError::Poisoned("EIO".into())));
    spool.health = SpoolHealth::Poisoned("EIO".into());
    gateway.spool = Arc::new(spool);
    let (http, admin) = (gateway.http_addr(), gateway.admin_addr());
    let began = Instant::now();
    let running = tokio::spawn(gateway.run(Shutdown::new()));
    assert!(
        send(http, "/webhooks/plain")
            .await
            .starts_with("HTTP/1.1 503")
    );
    let ready = ask(admin, "GET /readyz HTTP/1.1", "").await;
    assert!(
        ready.starts_with("HTTP/1.1 503") && ready.contains("the spool failed"),
        "{ready}"
    );
    let error = timeout(SOON, running)
        .await
        .expect("the gateway ends")
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, RunError::SpoolPoisoned(reason) if &*reason == "EIO"));
    assert!(
        began.elapsed() < Duration::from_secs(1),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn readiness_follows_the_spools_health() {
    let readiness = Readiness::new(Shutdown::new());
    let check = readiness.register("spool");
    for (health, ready) in [
        (SpoolHealth::Ok, true),
        (SpoolHealth::Slow, true),
        (SpoolHealth::Stuck, false),
        (SpoolHealth::Full, false),
        (SpoolHealth::Unavailable("no server answers".into()), false),
        (SpoolHealth::Ok, true),
    ] {
        let spool = StubSpool {
            health,
            ..StubSpool::new(Ok(Sequence(1)))
        };
        assert!(
            timeout(Duration::from_millis(1), follow_health(&spool, &check))
                .await
                .is_err()
        );
        assert_eq!(readiness.is_ready(), ready);
    }
}

/// The answer to a request of the admin listener, as JSON.
async fn admin_json(admin: SocketAddr, path: &str) -> (String, serde_json::Value) {
    let answer = ask(admin, &format!("GET {path} HTTP/1.1"), "").await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), serde_json::from_str(body).unwrap())
}
