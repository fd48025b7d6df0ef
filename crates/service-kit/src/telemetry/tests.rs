use super::*;
use crate::tls::{ClientAuth, Protocol, TlsServer, TlsServerConfig};

fn span_to(endpoint: String, tls: Option<TlsClientConfig>) -> TelemetryGuard {
    let config = TelemetryConfig {
        service_name: "kit-under-test".to_owned(),
        otlp_endpoint: Some(endpoint),
        tls,
        ..TelemetryConfig::default()
    };
    let (exporter, _) = otlp::span_exporter(&config, &[]).unwrap().unwrap();
    let provider = provider(&config, exporter);
    let subscriber = tracing_subscriber::registry().with(tracing_layer(&provider));
    tracing::subscriber::with_default(subscriber, || {
        tracing::info_span!("span-under-test").in_scope(|| {});
    });
    TelemetryGuard {
        provider: Some(provider),
    }
}

/// A collector's address, and the bodies of what it gets.
async fn collector(
    tls: Option<TlsServer>,
) -> (
    std::net::SocketAddr,
    tokio::sync::mpsc::UnboundedReceiver<String>,
) {
    let (sender, received) = tokio::sync::mpsc::unbounded_channel();
    let export = async move |body: axum::body::Bytes| {
        let _ = sender.send(String::from_utf8_lossy(&body).into_owned());
        [("content-type", "application/grpc"), ("grpc-status", "0")]
    };
    let routes = axum::Router::new().route(
        "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
        axum::routing::post(export),
    );
    let limits = crate::grpc::GrpcLimits::default();
    let listener = crate::grpc::GrpcListener::bind(([127, 0, 0, 1], 0).into(), limits.clone())
        .await
        .unwrap()
        .with_tls(tls);
    let address = listener.local_addr();
    let router = crate::grpc::server(&limits).add_routes(routes.into());
    tokio::spawn(listener.serve(router, crate::shutdown::Shutdown::new()));
    (address, received)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_reach_a_collector_at_the_latest_when_telemetry_ends() {
    let (address, mut received) = collector(None).await;
    span_to(format!("http://{address}"), None).shutdown().await;
    let body = received
        .try_recv()
        .expect("exported before shutdown returned");
    assert!(body.contains("span-under-test"));
    assert!(body.contains("kit-under-test"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_with_tls_is_trusted_by_its_authority_only() {
    let dir = tempfile::tempdir().unwrap();
    let ca = test_kit::pki::TestCa::new("collectors").unwrap();
    let ca_file = dir.path().join("ca.crt");
    test_kit::pki::replace(&ca_file, &ca.pem()).unwrap();
    let own = ca.issue(&["127.0.0.1"]).unwrap();
    let (cert_file, key_file) = own.write(dir.path(), "collector").unwrap();
    let tls = TlsServerConfig {
        cert_file,
        key_file,
        client_ca_file: None,
        client_auth: ClientAuth::Required,
        handshake_timeout: Duration::from_secs(5),
    };
    let tls = TlsServer::load("grpc.tls", &tls, Protocol::Grpc).unwrap();
    let (address, mut received) = collector(Some(tls)).await;
    let endpoint = format!("https://{address}");

    let stranger = test_kit::pki::TestCa::new("strangers").unwrap();
    let other_file = dir.path().join("other.crt");
    test_kit::pki::replace(&other_file, &stranger.pem()).unwrap();
    let trusting = |ca_file| {
        Some(TlsClientConfig {
            ca_file: Some(ca_file),
            ..TlsClientConfig::default()
        })
    };
    span_to(endpoint.clone(), trusting(other_file))
        .shutdown()
        .await;
    assert!(received.try_recv().is_err(), "a stranger got the span");
    span_to(endpoint, trusting(ca_file)).shutdown().await;
    let export = received.try_recv().unwrap();
    for expected in [
        "span-under-test",
        "service.version",
        "service.instance.id",
        INSTANCE.as_str(),
    ] {
        assert!(export.contains(expected), "{expected} in {export:?}");
    }
}

#[tokio::test]
async fn a_collector_that_is_away_holds_nobody_up() {
    let began = std::time::Instant::now();
    let guard = span_to("http://127.0.0.1:1".to_owned(), None);
    assert!(
        began.elapsed() < StdDuration::from_secs(1),
        "a span waited for its export"
    );
    guard.shutdown().await;
    assert!(began.elapsed() < FLUSH_TIMEOUT * 2);
}

#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn json_lines_have_their_fields_at_the_top() {
    let lines = Lines::default();
    let writer = lines.clone();
    let layer = log_layer(LogFormat::Json, false, move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        let span = tracing::info_span!("receive", service.name = "kit");
        span.in_scope(|| tracing::info!(request.id = 7, "received"));
    });
    let bytes = lines.0.lock().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(line["message"], "received");
    assert_eq!(line["request.id"], 7);
    assert_eq!(line["span"]["service.name"], "kit");
    assert_eq!(line["level"], "INFO");
}

#[test]
fn control_characters_do_not_forge_lines() {
    let lines = Lines::default();
    let writer = lines.clone();
    let layer = log_layer(LogFormat::Text, false, move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tracing::info!("one \u{1b}[31mred");
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn a_bad_filter_and_ratio_are_faults() {
    let config = TelemetryConfig {
        log_filter: "a=b=c".to_owned(),
        sample_ratio: 1.5,
        otlp_endpoint: Some("x:4317".to_owned()),
        ..TelemetryConfig::default()
    };
    let mut faults = Faults::default();
    config.validate(&mut faults);
    assert_eq!(faults.len(), 3, "{faults}");
    let mut faults = Faults::default();
    TelemetryConfig::default().validate(&mut faults);
    assert!(faults.is_empty(), "{faults}");
}
