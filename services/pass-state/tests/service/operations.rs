//! Health, reflection, start and end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider};
use pass_domain::kind::Kind;
use pass_proto::v1;
use pass_state::{BuildError, Config, Dependencies, PassState, RunError};
use service_kit::clock::SystemClock;
use service_kit::shutdown::{Phase, Shutdown};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::faulty::Faulty;
use crate::harness::*;
use crate::make::*;

const SERVICES: [&str; 5] = [
    "",
    "passline.v1.IngestService",
    "passline.v1.SubscriptionService",
    "passline.v1.PassService",
    "passline.v1.DeliveryService",
];

async fn health(server: &Server, service: &str) -> Result<ServingStatus, Code> {
    let mut client = HealthClient::new(server.channel.clone());
    let request = HealthCheckRequest {
        service: service.into(),
    };
    let answer = client
        .check(request)
        .await
        .map_err(|status| status.code())?;
    Ok(answer.into_inner().status())
}

async fn all(server: &Server, status: ServingStatus) -> bool {
    for service in SERVICES {
        if health(server, service).await != Ok(status) {
            return false;
        }
    }
    true
}

#[tokio::test]
async fn health_follows_the_store_and_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let (serving, not_serving) = (ServingStatus::Serving, ServingStatus::NotServing);
    eventually("serving", || all(&server, serving)).await;
    assert_eq!(
        health(&server, "no.such.Service").await,
        Err(Code::NotFound)
    );
    assert!(server.get("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(server.get("/livez").await.starts_with("HTTP/1.1 200"));
    assert!(server.get("/version").await.contains("pass-state"));

    store.blind.store(true, Ordering::SeqCst);
    eventually("not serving", || all(&server, not_serving)).await;
    let answer = server.get("/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("store"));
    store.blind.store(false, Ordering::SeqCst);
    eventually("serving again", || all(&server, serving)).await;

    // A write that fails counts too, although reads work.
    store.unavailable.store(1, Ordering::SeqCst);
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.send(installs(0..1)).await;
    gateway.end().await;
    eventually("not serving", || all(&server, not_serving)).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..1)).await;
    eventually("serving again", || all(&server, serving)).await;

    server.shutdown.advance(Phase::Draining);
    eventually("draining", || all(&server, not_serving)).await;
    // New work is still taken while load balancers look away.
    assert_eq!(gateway.deliver(installs(1..2)).await, ["APPLIED"]);
    server.stop().await;
}

#[tokio::test]
async fn those_who_watch_the_health_do_not_hold_up_the_end() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel.clone());
    let request = HealthCheckRequest {
        service: String::new(),
    };
    let mut watching = client.watch(request).await.unwrap().into_inner();
    watching.message().await.unwrap().unwrap();
    let began = std::time::Instant::now();
    server.stop().await;
    assert!(began.elapsed() < std::time::Duration::from_secs(10));
}

macro_rules! services_by_reflection {
    ($version:ident, $channel:expr) => {{
        use pb::server_reflection_request::MessageRequest;
        use pb::server_reflection_response::MessageResponse;
        use tonic_reflection::pb::$version as pb;
        let mut client =
            pb::server_reflection_client::ServerReflectionClient::new($channel.clone());
        let ask = |message| pb::ServerReflectionRequest {
            host: String::new(),
            message_request: Some(message),
        };
        let requests = tokio_stream::iter([
            ask(MessageRequest::ListServices(String::new())),
            ask(MessageRequest::FileContainingSymbol(
                "passline.v1.SubscriptionService".into(),
            )),
            // What grpcurl needs to show an error's details.
            ask(MessageRequest::FileContainingSymbol(
                "google.rpc.ErrorInfo".into(),
            )),
        ]);
        match client.server_reflection_info(requests).await {
            Err(status) => Err(status.code()),
            Ok(answers) => {
                let mut answers = answers.into_inner();
                let first = answers.message().await.unwrap().unwrap();
                for _ in 0..2 {
                    let file = answers.message().await.unwrap().unwrap();
                    assert!(matches!(
                        file.message_response,
                        Some(MessageResponse::FileDescriptorResponse(_))
                    ));
                }
                let Some(MessageResponse::ListServicesResponse(list)) = first.message_response
                else {
                    panic!("{first:?}");
                };
                Ok(list
                    .service
                    .into_iter()
                    .map(|service| service.name)
                    .collect::<Vec<_>>())
            }
        }
    }};
}

#[tokio::test]
async fn both_reflections_tell_the_services_unless_switched_off() {
    let server = Server::start().await;
    let old = services_by_reflection!(v1alpha, server.channel).unwrap();
    let new = services_by_reflection!(v1, server.channel).unwrap();
    for list in [old, new] {
        for service in &SERVICES[1..] {
            assert!(list.iter().any(|name| name == service), "{list:?}");
        }
        assert!(list.iter().any(|name| name == "grpc.health.v1.Health"));
    }
    server.stop().await;

    let server = Server::with(|config| config.grpc.reflection = false).await;
    let off = services_by_reflection!(v1, server.channel);
    assert_eq!(off.unwrap_err(), Code::Unimplemented);
    server.stop().await;
}

fn dependencies(dir: &tempfile::TempDir) -> Dependencies {
    Dependencies {
        store: None,
        clock: Arc::new(SystemClock),
        data_dir: dir.path().to_owned(),
    }
}

#[tokio::test]
async fn a_start_that_cannot_work_names_the_key() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.grpc.listen = ([127, 0, 0, 1], 0).into();
    config.admin.listen = taken.local_addr().unwrap();
    let error = PassState::build(config.clone(), dependencies(&dir)).await;
    let error = error.unwrap_err();
    assert!(matches!(error, BuildError::Bind { .. }), "{error:?}");
    assert!(error.to_string().starts_with("admin.listen can't be bound"));
    assert!(!dir.path().join("pass-state").exists(), "nothing was made");

    // A database that no waiting makes fit.
    config.admin.listen = ([127, 0, 0, 1], 0).into();
    config.store.path = Some(dir.path().to_owned());
    let service = PassState::build(config, dependencies(&dir)).await.unwrap();
    let running = service.run(Shutdown::new());
    let error = soon("the end", running).await.unwrap_err();
    assert!(matches!(error, RunError::Store { .. }), "{error:?}");
    let place = dir.path().to_str().unwrap();
    assert!(error.to_string().contains(place), "{error}");
}

#[tokio::test]
async fn a_store_that_is_away_at_the_start_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    store.blind.store(true, Ordering::SeqCst);
    let waiting = Server::over(Some(store.clone()), dir, |_| {}).await;
    store.blind.store(false, Ordering::SeqCst);
    eventually("serving", || all(&waiting, ServingStatus::Serving)).await;
    waiting.stop().await;
}

#[tokio::test]
async fn a_stop_before_the_start_is_done_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    store.blind.store(true, Ordering::SeqCst);
    let waiting = Server::over(Some(store), dir, |_| {}).await;
    waiting.stop().await;
}

#[tokio::test]
async fn a_bug_in_the_writer_ends_the_service_with_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    store.panics.store(true, Ordering::SeqCst);
    gateway.send(installs(0..1)).await;
    assert_eq!(gateway.end().await.code(), Code::Unavailable);
    let error = server.ended().await.unwrap_err();
    assert!(matches!(error, RunError::Task("writer")), "{error}");
}

#[tokio::test]
async fn a_sampled_delivery_gets_a_span_under_its_own_trace() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let layer = service_kit::telemetry::tracing_layer(&provider);
    let subscriber = tracing_subscriber::registry().with(layer);
    // The runtime of this test has one thread, so all tasks of the service see it.
    let _default = tracing::subscriber::set_default(subscriber);
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut deliveries = installs(0..3);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    deliveries[0].trace.traceparent = format!("00-{trace}-b7ad6b7169203331-01");
    deliveries[1].trace.traceparent = format!("00-{trace}-b7ad6b7169203332-00");
    gateway.deliver(deliveries).await;
    server.stop().await;
    let spans = exporter.get_finished_spans().unwrap();
    let applied: Vec<_> = spans
        .iter()
        .filter(|span| span.name == "pass-state apply")
        .collect();
    assert_eq!(applied.len(), 1, "only sampled ones");
    assert_eq!(applied[0].span_context.trace_id().to_string(), trace);
    assert_eq!(applied[0].parent_span_id.to_string(), "b7ad6b7169203331");
    let batch = spans.iter().find(|span| span.name == "pass-state append");
    let links = &batch.unwrap().links.links;
    assert_eq!(links.len(), 1);
    assert_eq!(links[0].span_context.trace_id().to_string(), trace);
}

#[tokio::test]
async fn events_carry_the_trace_and_the_key_that_was_used() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut told = delivery(1, "a", Kind::Installed, 0);
    told.trace.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
    let traceparent = told.trace.traceparent.clone();
    gateway.deliver(vec![told]).await;
    let mut subscriber = server.subscribe(from_beginning()).await.unwrap();
    let event = subscriber.events(1).await.remove(0);
    assert_eq!(event.trace.as_ref().unwrap().traceparent, traceparent);
    assert_eq!(event.auth.as_ref().unwrap().key_id, "k1");
    assert_eq!(event.record_time.unwrap().seconds, at(2_000).as_second());
    assert_eq!(event.notes, ["TRAILING_SPACE_KEY"]);
    assert_eq!(event.delivery, format!("deliveries/{}", id(1)));
    assert_eq!(event.kind(), v1::EventKind::Installed);
    server.stop().await;
}
