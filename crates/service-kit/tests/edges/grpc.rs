use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration as StdDuration, Instant};

use axum::Router;
use axum::extract::Extension;
use axum::routing::post;
use service_kit::admin::Readiness;
use service_kit::config::{Duration, Faults, Validate as _};
use service_kit::grpc::{
    Channel, ChannelConfig, Credentials, GrpcLimits, GrpcListener, Peer, channel, follow_readiness,
    server,
};
use service_kit::shutdown::{Phase, Shutdown};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::Routes;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::soon;

pub(crate) mod abuse;

const SERVICE: &str = "kit.v1.Example";

struct Edge {
    addr: SocketAddr,
    shutdown: Shutdown,
    readiness: Readiness,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
    arrived: Arc<Semaphore>,
    running: Arc<Running>,
}

/// Calls that run now, and the most that ever did at once.
#[derive(Default)]
struct Running {
    now: AtomicUsize,
    most: AtomicUsize,
}

struct Run(Arc<Running>);

impl Run {
    fn begin(running: &Arc<Running>) -> Self {
        let now = running.now.fetch_add(1, Ordering::SeqCst) + 1;
        running.most.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(running))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server with health and one call, `/kit/Never`, whose answer never begins.
async fn start(limits: GrpcLimits) -> Edge {
    start_with(limits, |listener| listener).await
}

async fn start_with(
    limits: GrpcLimits,
    settings: impl FnOnce(GrpcListener) -> GrpcListener,
) -> Edge {
    let shutdown = Shutdown::new();
    let readiness = Readiness::new(shutdown.clone());
    let (reporter, health) = tonic_health::server::health_reporter();
    let following = readiness.clone();
    tokio::spawn(async move { follow_readiness(reporter, following, &[SERVICE]).await });
    let arrived = Arc::new(Semaphore::new(0));
    let running = Arc::new(Running::default());
    let never = {
        let (arrived, running) = (Arc::clone(&arrived), Arc::clone(&running));
        async move |Extension(peer): Extension<Peer>| {
            peer.authorize();
            let _run = Run::begin(&running);
            arrived.add_permits(1);
            std::future::pending::<()>().await;
        }
    };
    let routes = Routes::from(Router::new().route("/kit/Never", post(never))).add_service(health);
    let listener = GrpcListener::bind(([127, 0, 0, 1], 0).into(), limits.clone())
        .await
        .unwrap();
    let listener = settings(listener);
    let addr = listener.local_addr();
    let router = server(&limits).add_routes(routes);
    Edge {
        addr,
        serving: tokio::spawn(listener.serve(router, shutdown.clone())),
        shutdown,
        readiness,
        arrived,
        running,
    }
}

impl Edge {
    fn channel(&self) -> Channel {
        channel(
            &ChannelConfig {
                endpoint: format!("http://{}", self.addr).into(),
                ..ChannelConfig::default()
            },
            &Credentials::default(),
        )
        .unwrap()
    }

    fn health(&self) -> HealthClient<Channel> {
        HealthClient::new(self.channel())
    }
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

async fn check(client: &mut HealthClient<Channel>) -> Result<ServingStatus, Status> {
    let answer = soon("answer", client.check(about(SERVICE))).await?;
    Ok(answer.into_inner().status())
}

async fn never(channel: Channel) -> Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    client
        .unary::<(), (), _>(
            Request::new(()),
            PathAndQuery::from_static("/kit/Never"),
            tonic_prost::ProstCodec::default(),
        )
        .await
        .unwrap_err()
}

#[tokio::test]
async fn health_follows_readiness_to_the_end() {
    let edge = start(GrpcLimits::default()).await;
    let part = edge.readiness.register("part");
    let mut client = edge.health();
    let mut watch = client.watch(about(SERVICE)).await.unwrap().into_inner();
    let mut seen = Vec::new();
    for wanted in [true, false, true] {
        if wanted {
            part.ok();
        } else {
            part.not_ready("down");
        }
        let wanted = if wanted {
            ServingStatus::Serving
        } else {
            ServingStatus::NotServing
        };
        while seen.last() != Some(&wanted) {
            let message = soon("change", watch.message()).await.unwrap().unwrap();
            seen.push(message.status());
        }
    }
    edge.shutdown.advance(Phase::Draining);
    let message = soon("change", watch.message()).await.unwrap().unwrap();
    assert_eq!(message.status(), ServingStatus::NotServing);
    // New work is still accepted while draining.
    assert_eq!(
        check(&mut edge.health()).await.unwrap(),
        ServingStatus::NotServing
    );
}

#[tokio::test]
async fn a_connection_without_preface_is_closed_and_one_in_use_is_not() {
    let edge = start(GrpcLimits {
        preface_timeout: Duration::from_millis(300),
        ..GrpcLimits::default()
    })
    .await;
    let mut client = edge.health();
    let mut watch = client.watch(about("")).await.unwrap().into_inner();
    soon("status", watch.message()).await.unwrap().unwrap();

    let began = Instant::now();
    let mut silent = TcpStream::connect(edge.addr).await.unwrap();
    let mut bytes = Vec::new();
    let _ = soon("close", silent.read_to_end(&mut bytes)).await;
    assert!(began.elapsed() >= StdDuration::from_millis(250));
    let alive = tokio::time::timeout(StdDuration::from_millis(100), watch.message()).await;
    assert!(alive.is_err(), "the connection in use ended: {alive:?}");
}

#[tokio::test]
async fn an_endless_stream_is_cut_when_the_drain_takes_too_long() {
    let edge = start(GrpcLimits {
        drain_timeout: Duration::from_millis(200),
        ..GrpcLimits::default()
    })
    .await;
    let mut client = edge.health();
    let mut watch = client.watch(about("")).await.unwrap().into_inner();
    soon("status", watch.message()).await.unwrap().unwrap();
    edge.shutdown.advance(Phase::Stopping);
    soon("end", edge.serving).await.unwrap().unwrap();
    let end = soon("error", async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                other => return other,
            }
        }
    })
    .await;
    assert!(end.is_err(), "{end:?}");
}

#[tokio::test]
async fn an_idle_server_stops_at_once() {
    let edge = start(GrpcLimits::default()).await;
    let mut client = edge.health();
    check(&mut client).await.unwrap();
    edge.shutdown.advance(Phase::Stopping);
    let began = Instant::now();
    soon("end", edge.serving).await.unwrap().unwrap();
    assert!(
        began.elapsed() < StdDuration::from_secs(5),
        "waited for the drain timeout"
    );
}

#[tokio::test]
async fn an_old_connection_gets_notice_and_is_cut_after_its_grace() {
    let edge = start(GrpcLimits {
        connection_age_max: Duration::from_millis(300),
        connection_grace: Duration::from_secs(3),
        ..GrpcLimits::default()
    })
    .await;
    let began = Instant::now();
    let mut client = edge.health();
    let mut watch = client.watch(about("")).await.unwrap().into_inner();
    soon("status", watch.message()).await.unwrap().unwrap();
    // After the notice the same channel opens a new connection for new calls,
    // while the old one still carries its stream.
    tokio::time::sleep(StdDuration::from_millis(500)).await;
    check(&mut client).await.unwrap();
    assert!(
        began.elapsed() < StdDuration::from_millis(3_250),
        "too slow to tell"
    );
    let end = soon("cut", watch.message()).await;
    assert!(end.is_err(), "{end:?}");
    assert!(began.elapsed() >= StdDuration::from_millis(3_250));
    check(&mut client).await.unwrap();
}

#[tokio::test]
async fn a_connection_without_an_authorized_call_is_cut_early_and_one_with_it_is_not() {
    let edge = start_with(GrpcLimits::default(), |listener| {
        listener.close_unauthorized_after(StdDuration::from_secs(2))
    })
    .await;
    let authorized = edge.channel();
    tokio::spawn(never(authorized.clone()));
    soon("arrival", edge.arrived.acquire())
        .await
        .unwrap()
        .forget();
    let mut streams = Vec::new();
    for channel in [authorized, edge.channel()] {
        let mut client = HealthClient::new(channel);
        let mut watch = client.watch(about("")).await.unwrap().into_inner();
        soon("status", watch.message()).await.unwrap().unwrap();
        streams.push(watch);
    }
    let end = soon("cut", streams[1].message()).await;
    assert!(end.is_err(), "{end:?}");
    let alive = tokio::time::timeout(StdDuration::from_millis(100), streams[0].message()).await;
    assert!(alive.is_err(), "the authorized one ended: {alive:?}");
}

#[tokio::test]
async fn calls_over_the_limit_are_shed_and_open_streams_do_not_count() {
    let edge = start(GrpcLimits {
        concurrency_max: 1,
        ..GrpcLimits::default()
    })
    .await;
    let channel = edge.channel();
    let mut client = HealthClient::new(channel.clone());
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(soon("stream", client.watch(about(""))).await.unwrap());
    }
    check(&mut client).await.unwrap();

    let busy = tokio::spawn(never(channel.clone()));
    soon("arrival", edge.arrived.acquire())
        .await
        .unwrap()
        .forget();
    let refused = check(&mut client).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    busy.abort();
}

#[tokio::test]
async fn an_answer_that_does_not_begin_in_time_is_an_error() {
    let edge = start(GrpcLimits {
        request_timeout: Duration::from_millis(200),
        ..GrpcLimits::default()
    })
    .await;
    let status = soon("timeout", never(edge.channel())).await;
    // tonic's own word for its timeout.
    assert!(
        matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{status}"
    );
}

#[tokio::test]
async fn a_channel_connects_later_and_refuses_what_is_no_endpoint() {
    // Nobody listens there: making the channel succeeds, the call does not.
    let client = channel(
        &ChannelConfig {
            endpoint: "http://127.0.0.1:1".into(),
            ..ChannelConfig::default()
        },
        &Credentials::default(),
    );
    let mut client = HealthClient::new(client.unwrap());
    assert_eq!(
        check(&mut client).await.unwrap_err().code(),
        Code::Unavailable
    );
    for text in ["", "127.0.0.1:50051", "ftp://host:1", "http://", "/path"] {
        let config = ChannelConfig {
            endpoint: text.into(),
            ..ChannelConfig::default()
        };
        assert!(
            channel(&config, &Credentials::default()).is_err(),
            "{text:?}"
        );
        let mut faults = Faults::default();
        config.validate(&mut faults);
        assert_eq!(faults.len(), 1, "{text:?}");
    }
}
