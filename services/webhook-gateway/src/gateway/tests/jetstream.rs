//! Gateways on one stream of a real NATS server. Each runs in a runtime of its own, so that it can be killed.

use std::path::PathBuf;

use pass_proto::status::Fault;
use test_kit::{ChaosProxy, NatsSettings, TestNats, wait_for};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::*;
use crate::config::SpoolSecret;
use crate::import::{ImportError, spool_import};
use crate::testing::pass_state::log::Recorder;

/// The most that it may take until another gateway goes on.
const TAKEOVER_MAX: Duration = Duration::from_secs(10);

fn on(nats: &TestNats, pass_state: SocketAddr, name: &str) -> Config {
    let mut config = config(pass_state);
    config.gateway_id = name.to_owned();
    config.ack = Default::default();
    config.spool = Default::default();
    config.spool.backend = SpoolBackend::Jetstream;
    let keys = &mut config.spool.jetstream;
    keys.servers = vec![nats.url()];
    keys.monitoring_urls = vec![nats.monitoring_url()];
    keys.replicas = 1;
    keys.bytes_max = service_kit::config::ByteSize::from_mib(64);
    config
}

/// A running gateway.
struct Running {
    name: &'static str,
    http: SocketAddr,
    admin: SocketAddr,
    observer: Arc<Observer>,
    shutdown: Shutdown,
    ended: oneshot::Receiver<Result<(), RunError>>,
    runtime: Option<Runtime>,
    data_dir: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    async fn start(name: &'static str, config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let dependencies = dependencies(&data_dir);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let (built, building) = oneshot::channel();
        let (done, ended) = oneshot::channel();
        runtime.spawn(async move {
            let gateway = Gateway::build(config, dependencies).await.unwrap();
            let addresses = (
                gateway.http_addr(),
                gateway.admin_addr(),
                gateway.observer(),
            );
            let _ = built.send(addresses);
            let _ = done.send(gateway.run(stop).await);
        });
        let (http, admin, observer) = timeout(SOON, building)
            .await
            .expect("the gateway is built")
            .unwrap();
        Self {
            name,
            http,
            admin,
            observer,
            shutdown,
            ended,
            runtime: Some(runtime),
            data_dir,
            _dir: dir,
        }
    }

    /// Ends it without a chance to say anything to anyone.
    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    async fn stop(mut self) {
        self.shutdown.advance(Phase::Stopping);
        timeout(SOON, &mut self.ended)
            .await
            .expect("the gateway ends")
            .unwrap()
            .unwrap();
    }

    /// Posts one delivery; gives its id if it was answered 200, else the answer.
    async fn post(&self) -> Result<Vec<u8>, String> {
        let answer = send(self.http, "/webhooks/plain").await;
        let id = answer
            .starts_with("HTTP/1.1 200")
            .then(|| answer.split_once(r#"{"delivery":"del_"#))
            .flatten()
            .and_then(|(_, rest)| rest.get(..32));
        let Some(id) = id else { return Err(answer) };
        let byte = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).unwrap();
        Ok((0..32).step_by(2).map(byte).collect())
    }

    async fn until_ready(&self, wanted: bool) -> serde_json::Value {
        wait_for("readiness", SOON, async || {
            let (head, body) = admin_json(self.admin, "/readyz").await;
            if head.starts_with("HTTP/1.1 200") == wanted {
                Ok(body)
            } else {
                Err(body)
            }
        })
        .await
        .unwrap()
    }
}

/// Waits until the log has everything that was answered 200, and checks that nothing is in it twice.
async fn assert_complete(recorder: &Recorder, accepted: &[Vec<u8>]) {
    wait_for("everything that was accepted", SOON, async || {
        let log = recorder.log.lock().unwrap();
        let counts = log.counts();
        let lacking = accepted
            .iter()
            .filter(|id| !counts.contains_key(&***id))
            .count();
        if lacking == 0 {
            Ok(())
        } else {
            Err(format!(
                "{lacking} lack; {} streams, the last of {}",
                log.streams, log.gateway
            ))
        }
    })
    .await
    .unwrap();
    let log = recorder.log.lock().unwrap();
    assert!(
        log.counts().values().all(|count| *count == 1),
        "one is there twice"
    );
    assert_eq!(log.faults, Vec::<String>::new());
}

async fn nats(sync_always: bool) -> TestNats {
    TestNats::start(NatsSettings {
        sync_always,
        ..NatsSettings::default()
    })
    .await
    .unwrap()
}

/// The gateway that forwards, and the other one.
async fn pair(nats: &TestNats, recorder: &Recorder) -> (Running, Running) {
    let a = Running::start("a", on(nats, recorder.addr, "a")).await;
    let b = Running::start("b", on(nats, recorder.addr, "b")).await;
    told_apart(a, b).await
}

async fn told_apart(a: Running, b: Running) -> (Running, Running) {
    for gateway in [&a, &b] {
        gateway.until_ready(true).await;
    }
    let is_forwarding = |gateway: &Running| gateway.observer.forward().connected;
    let is_waiting = |gateway: &Running| gateway.observer.forward().waiting_for_turn;
    let first = wait_for("one that forwards and one that waits", SOON, async || {
        if is_forwarding(&a) && is_waiting(&b) {
            Ok(true)
        } else if is_forwarding(&b) && is_waiting(&a) {
            Ok(false)
        } else {
            Err(format!(
                "{:?} {:?}",
                a.observer.forward(),
                b.observer.forward()
            ))
        }
    })
    .await
    .unwrap();
    if first { (a, b) } else { (b, a) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_any_gateway_takes_is_forwarded_once_also_after_the_forwarding_one_was_killed() {
    let (nats, recorder) = (nats(true).await, Recorder::start().await);
    let (mut forwarding, waiting) = pair(&nats, &recorder).await;
    let mut accepted = Vec::new();
    for _ in 0..20 {
        accepted.push(forwarding.post().await.unwrap());
        accepted.push(waiting.post().await.unwrap());
    }
    assert_complete(&recorder, &accepted).await;
    assert_eq!(recorder.log.lock().unwrap().gateway, forwarding.name);
    assert_eq!(forwarding.observer.spool_id(), waiting.observer.spool_id());

    for _ in 0..5 {
        accepted.push(forwarding.post().await.unwrap());
    }
    forwarding.kill();
    let killed = Instant::now();
    for _ in 0..5 {
        accepted.push(waiting.post().await.unwrap());
    }
    let mut forward = waiting.observer.watch_forward();
    timeout(TAKEOVER_MAX, forward.wait_for(|status| status.connected))
        .await
        .expect("the other one goes on")
        .unwrap();
    assert_complete(&recorder, &accepted).await;
    assert!(killed.elapsed() < TAKEOVER_MAX, "{:?}", killed.elapsed());
    for gateway in [&forwarding, &waiting] {
        assert!(
            !gateway.data_dir.exists(),
            "nothing is kept on this machine"
        );
    }
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_stops_hands_its_turn_over_at_once() {
    let (nats, recorder) = (nats(true).await, Recorder::start().await);
    let (forwarding, waiting) = pair(&nats, &recorder).await;
    let mut accepted = vec![forwarding.post().await.unwrap()];
    accepted.push(waiting.post().await.unwrap());
    let began = Instant::now();
    forwarding.stop().await;
    let mut forward = waiting.observer.watch_forward();
    timeout(SOON, forward.wait_for(|status| status.connected))
        .await
        .expect("the other one goes on")
        .unwrap();
    // A turn that was not given back ends after 5 s.
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    accepted.push(waiting.post().await.unwrap());
    assert_complete(&recorder, &accepted).await;
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_killed_costs_nothing_that_was_answered_200() {
    let (mut nats, recorder) = (nats(true).await, Recorder::start().await);
    let (forwarding, waiting) = pair(&nats, &recorder).await;
    let mut accepted = Vec::new();
    for _ in 0..10 {
        accepted.push(forwarding.post().await.unwrap());
        accepted.push(waiting.post().await.unwrap());
    }
    nats.kill().await.unwrap();
    for gateway in [&forwarding, &waiting] {
        let began = Instant::now();
        let answer = gateway.post().await.unwrap_err();
        assert!(
            answer.starts_with("HTTP/1.1 503")
                && answer.contains("\r\nretry-after: 5\r\n")
                && answer.contains("problems/spool-unavailable"),
            "{answer}"
        );
        assert!(
            began.elapsed() < Duration::from_secs(9),
            "{:?}",
            began.elapsed()
        );
        let body = gateway.until_ready(false).await;
        assert!(body.to_string().contains("unavailable"), "{body}");
    }
    nats.restart().await.unwrap();
    for gateway in [&forwarding, &waiting] {
        gateway.until_ready(true).await;
        accepted.push(gateway.post().await.unwrap());
    }
    assert_complete(&recorder, &accepted).await;
    forwarding.stop().await;
    waiting.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarding_gateway_that_is_cut_off_from_the_server_is_replaced_and_comes_back_to_wait() {
    let (nats, recorder) = (nats(true).await, Recorder::start().await);
    let proxy = ChaosProxy::start(nats.address()).await.unwrap();
    let mut config = on(&nats, recorder.addr, "a");
    config.spool.jetstream.servers = vec![format!("nats://{}", proxy.address())];
    let cut_off = Running::start("a", config).await;
    wait_for("the stream of a", SOON, async || {
        let forward = cut_off.observer.forward();
        if forward.connected {
            Ok(())
        } else {
            Err(format!("{forward:?}"))
        }
    })
    .await
    .unwrap();
    let other = Running::start("b", on(&nats, recorder.addr, "b")).await;
    let (cut_off, other) = told_apart(cut_off, other).await;
    assert_eq!(cut_off.name, "a");
    let mut accepted = vec![cut_off.post().await.unwrap(), other.post().await.unwrap()];

    proxy.refuse(true);
    proxy.cut_all().await;
    let mut forward = other.observer.watch_forward();
    timeout(TAKEOVER_MAX, forward.wait_for(|status| status.connected))
        .await
        .expect("the other one goes on")
        .unwrap();
    accepted.push(other.post().await.unwrap());
    cut_off.until_ready(false).await;
    let answer = cut_off.post().await.unwrap_err();
    assert!(answer.contains("problems/spool-unavailable"), "{answer}");
    assert_complete(&recorder, &accepted).await;

    proxy.refuse(false);
    cut_off.until_ready(true).await;
    accepted.push(cut_off.post().await.unwrap());
    assert_complete(&recorder, &accepted).await;
    assert!(cut_off.observer.forward().waiting_for_turn);
    assert_eq!(recorder.log.lock().unwrap().gateway, other.name);
    cut_off.stop().await;
    other.stop().await;
}

/// Starts a gateway that has the turn, behind a proxy to pass-state, and then one that waits and reaches it directly.
async fn behind_a_proxy(nats: &TestNats, recorder: &Recorder) -> (ChaosProxy, Running, Running) {
    let proxy = ChaosProxy::start(recorder.addr).await.unwrap();
    let first = Running::start("a", on(nats, proxy.address(), "a")).await;
    wait_for("the stream of a", SOON, async || {
        let forward = first.observer.forward();
        if forward.connected {
            Ok(())
        } else {
            Err(format!("{forward:?}"))
        }
    })
    .await
    .unwrap();
    let other = Running::start("b", on(nats, recorder.addr, "b")).await;
    let (first, other) = told_apart(first, other).await;
    assert_eq!(first.name, "a");
    (proxy, first, other)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_does_not_reach_pass_state_hands_its_turn_over_and_goes_on_taking_callbacks()
{
    let (nats, recorder) = (nats(true).await, Recorder::start().await);
    let (proxy, cut_off, other) = behind_a_proxy(&nats, &recorder).await;
    let mut accepted = vec![cut_off.post().await.unwrap(), other.post().await.unwrap()];
    proxy.refuse(true);
    proxy.cut_all().await;
    accepted.push(cut_off.post().await.unwrap());
    let mut forward = other.observer.watch_forward();
    timeout(TAKEOVER_MAX, forward.wait_for(|status| status.connected))
        .await
        .expect("the other one goes on")
        .unwrap();
    for gateway in [&cut_off, &other] {
        accepted.push(gateway.post().await.unwrap());
        gateway.until_ready(true).await;
    }
    assert_complete(&recorder, &accepted).await;
    assert_eq!(recorder.log.lock().unwrap().gateway, other.name);
    // It stays there, although the first one can forward again.
    proxy.refuse(false);
    let mut forward = cut_off.observer.watch_forward();
    timeout(SOON, forward.wait_for(|status| status.waiting_for_turn))
        .await
        .expect("it waits for its turn")
        .unwrap();
    accepted.push(cut_off.post().await.unwrap());
    assert_complete(&recorder, &accepted).await;
    assert!(other.observer.forward().connected);
    cut_off.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_alone_that_could_not_reach_pass_state_for_long_gets_its_turn_back() {
    let (nats, recorder) = (nats(true).await, Recorder::start().await);
    let proxy = ChaosProxy::start(recorder.addr).await.unwrap();
    proxy.refuse(true);
    let alone = Running::start("a", on(&nats, proxy.address(), "a")).await;
    let accepted = vec![alone.post().await.unwrap()];
    // Longer than it keeps its turn.
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert!(!alone.observer.forward().connected);
    proxy.refuse(false);
    assert_complete(&recorder, &accepted).await;
    assert!(!alone.observer.forward().waiting_for_turn);
    alone.stop().await;
}

/// Another gateway may be configured otherwise, or be another release.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_pass_state_refuses_hands_its_turn_over() {
    let (nats, recorder) = (nats(true).await, Recorder::start().await);
    let mut peer = PassState::start().await;
    let refused = Running::start("a", on(&nats, peer.addr, "a")).await;
    let fault = Fault::field("hello.body_bytes_max", "is 2 MiB; at most 1 MiB is taken");
    let stream = peer.stream().await;
    let other = Running::start("b", on(&nats, recorder.addr, "b")).await;
    let mut forward = other.observer.watch_forward();
    timeout(SOON, forward.wait_for(|status| status.waiting_for_turn))
        .await
        .expect("the other one waits")
        .unwrap();
    stream.fail(fault.into()).await;
    timeout(TAKEOVER_MAX, forward.wait_for(|status| status.connected))
        .await
        .expect("the other one goes on")
        .unwrap();
    let accepted = [refused.post().await.unwrap(), other.post().await.unwrap()];
    assert_complete(&recorder, &accepted).await;
    refused.until_ready(false).await;
    refused.stop().await;
    other.stop().await;
}

/// The way from the embedded spool to JetStream, while other gateways are at it already.
#[tokio::test(flavor = "multi_thread")]
async fn an_embedded_spool_is_imported_into_the_stream_once_however_often_it_is_asked_for() {
    let (nats, recorder) = (nats(true).await, Recorder::start().await);
    // Nobody listens there, so all of it stays in the spool.
    let mut embedded = config(([127, 0, 0, 1], 9).into());
    embedded.ack = Default::default();
    let lone = Running::start("lone", embedded).await;
    let mut accepted = Vec::new();
    for _ in 0..20 {
        accepted.push(lone.post().await.unwrap());
    }
    let dir = lone.data_dir.join("gateway/spool");
    let busy = spool_import(&on(&nats, recorder.addr, "i"), dependencies(&dir), &dir).await;
    assert!(matches!(busy, Err(ImportError::Open(_))), "{busy:?}");
    lone.shutdown.advance(Phase::Stopping);
    let mut lone = lone;
    timeout(SOON, &mut lone.ended)
        .await
        .unwrap()
        .unwrap()
        .unwrap();

    let gateway = Running::start("a", on(&nats, recorder.addr, "a")).await;
    for _ in 0..2 {
        let importer = on(&nats, recorder.addr, "i");
        let imported = spool_import(&importer, dependencies(&dir), &dir)
            .await
            .unwrap();
        assert_eq!((imported.records, imported.unreadable), (20, 0));
        assert_eq!(imported.spool, gateway.observer.spool_id());
    }
    accepted.push(gateway.post().await.unwrap());
    assert_complete(&recorder, &accepted).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_logs_in_as_configured_and_does_not_tell_its_password() {
    let settings = NatsSettings {
        credentials: Some(("passline".to_owned(), SECRET.to_owned())),
        ..NatsSettings::default()
    };
    let (nats, recorder) = (
        TestNats::start(settings).await.unwrap(),
        Recorder::start().await,
    );
    let password = |value: &str| SpoolSecret {
        value: Some(value.to_owned()),
        ..SpoolSecret::default()
    };
    let mut config = on(&nats, recorder.addr, "a");
    config.spool.jetstream.user = Some("passline".to_owned());
    config.spool.jetstream.password = Some(password("wrong-canary"));
    config.spool.jetstream.connect_timeout = Millis::from_secs(1);
    let dir = tempfile::tempdir().unwrap();
    let error = Gateway::build(config.clone(), dependencies(dir.path()))
        .await
        .err()
        .unwrap();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(
        text.contains("authorization") && !text.contains("canary"),
        "{text}"
    );

    config.spool.jetstream.password = Some(password(SECRET));
    let gateway = Running::start("a", config).await;
    let accepted = [gateway.post().await.unwrap()];
    assert_complete(&recorder, &accepted).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_sync_is_refused_unless_that_is_allowed() {
    let (nats, recorder) = (nats(false).await, Recorder::start().await);
    let gateway = Running::start("a", on(&nats, recorder.addr, "a")).await;
    let body = gateway.until_ready(false).await;
    assert!(body.to_string().contains("sync_interval"), "{body}");
    let answer = gateway.post().await.unwrap_err();
    assert!(answer.contains("problems/spool-unavailable"), "{answer}");
    gateway.stop().await;

    let mut config = on(&nats, recorder.addr, "a");
    config.spool.jetstream.allow_unsynced = true;
    let gateway = Running::start("a", config).await;
    let body = gateway.until_ready(true).await;
    assert!(
        body.to_string().contains("durability is not proven"),
        "{body}"
    );
    let (_, status) = admin_json(gateway.admin, "/status").await;
    assert_eq!(status["spool"]["backend"], "jetstream");
    assert!(status["spool"]["unproven"].is_string(), "{status}");
    let accepted = [gateway.post().await.unwrap()];
    assert_complete(&recorder, &accepted).await;
    gateway.stop().await;
}

#[tokio::test]
async fn servers_that_do_not_answer_are_named_with_what_to_do() {
    let (mut nats, dir) = (nats(true).await, tempfile::tempdir().unwrap());
    let mut config = on(&nats, ([127, 0, 0, 1], 9).into(), "a");
    config.spool.jetstream.connect_timeout = Millis::from_millis(300);
    nats.kill().await.unwrap();
    let error = Gateway::build(config, dependencies(dir.path()))
        .await
        .err()
        .unwrap();
    let text = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(
        text.starts_with("spool.jetstream can't be opened: ") && text.contains(&nats.url()),
        "{text}"
    );
}
