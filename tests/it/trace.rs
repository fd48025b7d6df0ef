//! One trace from the sender to the transaction, also across a restart of the gateway in between. Both
//! services run in this process, so that one exporter in memory sees the spans of both.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use pass_state::PassState;
use service_kit::clock::SystemClock;
use service_kit::shutdown::{Phase, Shutdown};
use service_kit::telemetry;
use system_tests::callback::{Callback, standard};
use system_tests::client::{Caller, ClientLog, Outcome};
use system_tests::history::Reader;
use system_tests::sources::source_config;
use test_kit::{PortLease, wait_for};
use tokio::task::JoinHandle;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use webhook_gateway::Gateway;

const SENDER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SENDER_SPAN: &str = "00f067aa0ba902b7";

/// A service in this process.
struct Running {
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

impl Running {
    async fn end(self) {
        self.shutdown.advance(Phase::Draining);
        self.shutdown.advance(Phase::Stopping);
        tokio::time::timeout(Duration::from_secs(30), self.task)
            .await
            .expect("it ends")
            .unwrap();
    }
}

async fn start_gateway(dir: &Path, state: &PortLease) -> (Running, std::net::SocketAddr) {
    let mut config = webhook_gateway::Config::default();
    config.http.listen.set_port(0);
    config.admin.listen.set_port(0);
    config.pass_state.endpoint = format!("http://{}", state.address()).into();
    config.spool.segment_bytes = service_kit::config::ByteSize::from_mib(4);
    config.sources = vec![source_config("standard").unwrap()];
    let dependencies = webhook_gateway::Dependencies {
        clock: Arc::new(SystemClock),
        env: Vec::new(),
        data_dir: dir.to_owned(),
        config_from: None,
    };
    let gateway = Gateway::build(config, dependencies).await.unwrap();
    let address = gateway.http_addr();
    let shutdown = Shutdown::new();
    let task = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { gateway.run(shutdown).await.unwrap() }
    });
    (Running { shutdown, task }, address)
}

async fn start_state(dir: &Path, port: &PortLease) -> Running {
    let mut config = pass_state::Config::default();
    config.grpc.listen = port.address();
    config.admin.listen.set_port(0);
    let dependencies = pass_state::Dependencies {
        store: None,
        clock: Arc::new(SystemClock),
        data_dir: dir.to_owned(),
    };
    let service = PassState::build(config, dependencies).await.unwrap();
    let shutdown = Shutdown::new();
    // On a thread of its own, as in a process of its own: the future need not move between threads.
    let runtime = tokio::runtime::Handle::current();
    let task = tokio::task::spawn_blocking({
        let shutdown = shutdown.clone();
        move || runtime.block_on(service.run(shutdown)).unwrap()
    });
    Running { shutdown, task }
}

/// A callback whose sender traces it.
fn traced(pass: &str) -> Arc<Callback> {
    let mut callback = (*standard("CREATED", pass, 0, None)).clone();
    callback.headers.push((
        "traceparent".to_owned(),
        format!("00-{SENDER_TRACE}-{SENDER_SPAN}-01"),
    ));
    Arc::new(callback)
}

/// The one span of a name in the sender's trace.
fn only<'a>(spans: &'a [SpanData], name: &str) -> Result<&'a SpanData, String> {
    let found: Vec<_> = spans
        .iter()
        .filter(|span| {
            span.name == name && span.span_context.trace_id().to_string() == SENDER_TRACE
        })
        .collect();
    match found[..] {
        [span] => Ok(span),
        _ => Err(format!(
            "{} spans `{name}` among {:?}",
            found.len(),
            spans.iter().map(|s| &s.name).collect::<Vec<_>>()
        )),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_leads_from_the_sender_to_the_transaction_across_a_restart() {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    tracing_subscriber::registry()
        .with(telemetry::tracing_layer(&provider))
        .init();

    for (round, restart) in [("straight", false), ("restarted", true)] {
        let dir = tempfile::tempdir().unwrap();
        let port = PortLease::take().unwrap();
        let log = ClientLog::default();
        exporter.reset();

        let (mut gateway, address) = start_gateway(&dir.path().join("gateway"), &port).await;
        let mut state = None;
        if !restart {
            state = Some(start_state(&dir.path().join("state"), &port).await);
        }
        let outcome = Caller::new(address).deliver(&traced("traced"), &log).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
        if restart {
            gateway.end().await;
            state = Some(start_state(&dir.path().join("state"), &port).await);
            gateway = start_gateway(&dir.path().join("gateway"), &port).await.0;
        }
        let reader = Reader::new(port.address());
        reader
            .wait_for_deliveries(1, Duration::from_secs(20))
            .await
            .unwrap();
        let event = reader.history().await.unwrap().subscribed.remove(0);

        // A span is exported when it ends, which is after what it led to is seen.
        wait_for(
            "the spans of the trace",
            Duration::from_secs(20),
            async || {
                let spans = exporter
                    .get_finished_spans()
                    .map_err(|error| error.to_string())?;
                let received = only(&spans, "POST /webhooks/{source}")?;
                let forwarded = only(&spans, "forward")?;
                let applied = only(&spans, "pass-state apply")?;
                let id = |span: &SpanData| span.span_context.span_id().to_string();
                assert_eq!(received.parent_span_id.to_string(), SENDER_SPAN, "{round}");
                assert_eq!(
                    forwarded.parent_span_id.to_string(),
                    id(received),
                    "{round}"
                );
                assert_eq!(applied.parent_span_id.to_string(), id(forwarded), "{round}");
                let stored = event
                    .trace
                    .clone()
                    .expect("the event keeps its trace")
                    .traceparent;
                assert!(stored.contains(SENDER_TRACE), "{round}: {stored}");
                Ok::<_, String>(())
            },
        )
        .await
        .unwrap();
        gateway.end().await;
        state.expect("started by now").end().await;
    }
}
