//! The forwarder between a real spool and a scripted pass-state.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pass_domain::delivery::{
    AuthScheme, AuthVerdict, Decoded, Delivery, Method, Outcome, TraceContext, Undecodable,
    UndecodableReason,
};
use pass_domain::ids::{DeliveryId, SourceUid};
use pass_proto::convert::delivery_to_wire;
use pass_proto::status::Fault;
use pass_proto::v1;
use pass_proto::v1::ingest_response::Message as Ours;
use pass_spool::{EmbeddedSpool, RecordId, Sequence, Spool};
use service_kit::admin::Readiness;
use service_kit::config::Duration as Millis;
use service_kit::grpc::{self, ChannelConfig};
use service_kit::shutdown::Shutdown;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{ForwardStatus, Forwarder};
use crate::books::{Books, Tally};
use crate::config::Forward;
use crate::policy::Live;
use crate::record;
use crate::testing::pass_state::{PassState, ready};
use crate::testing::{self, BODY_BYTES_MAX, SOON};
use crate::waiters::Waiters;

mod alarms;
mod chance;
mod sources;
mod turns;

/// Long enough for something that must not happen to show itself.
const A_WHILE: Duration = Duration::from_millis(150);

struct Rig {
    peer: PassState,
    spool: Arc<dyn Spool>,
    live: Arc<Live>,
    books: Arc<Books>,
    waiters: Arc<Waiters>,
    readiness: Readiness,
    status: watch::Receiver<ForwardStatus>,
    stop: CancellationToken,
    running: JoinHandle<()>,
    _dir: TempDir,
}

fn quick() -> Forward {
    Forward {
        retry_max: Millis::from_millis(50),
        blocked_retry: Millis::from_millis(100),
        ..Forward::default()
    }
}

impl Rig {
    async fn new() -> Self {
        Self::with(quick(), false).await
    }

    async fn with(config: Forward, traced: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = testing::open_spool(dir.path());
        Self::over(dir, spool, config, traced).await
    }

    async fn over(dir: TempDir, spool: Arc<dyn Spool>, config: Forward, traced: bool) -> Self {
        Self::of(dir, spool, config, traced, false).await
    }

    async fn of(
        dir: TempDir,
        spool: Arc<dyn Spool>,
        config: Forward,
        traced: bool,
        shared: bool,
    ) -> Self {
        let peer = PassState::start().await;
        let (live, books) = testing::live(&testing::http(), &testing::ack());
        let waiters = Arc::new(Waiters::new(16, true));
        let readiness = Readiness::new(Shutdown::new());
        let check = readiness.register("forward");
        let sender = watch::Sender::new(ForwardStatus::default());
        let (status, stop) = (sender.subscribe(), CancellationToken::new());
        let forwarder = Forwarder {
            gateway_id: "test".to_owned(),
            shared,
            body_bytes_max: BODY_BYTES_MAX,
            record_bytes_max: record::record_bytes_max(BODY_BYTES_MAX),
            config,
            channel: grpc::channel(
                &ChannelConfig {
                    endpoint: format!("http://{}", peer.addr).into(),
                    ..ChannelConfig::default()
                },
                &grpc::Credentials::default(),
            )
            .unwrap(),
            spool: Arc::clone(&spool),
            live: Arc::clone(&live),
            books: Arc::clone(&books),
            waiters: Arc::clone(&waiters),
            status: sender,
            traced,
        };
        let running = tokio::spawn(forwarder.run(check, stop.clone()));
        Self {
            peer,
            spool,
            live,
            books,
            waiters,
            readiness,
            status,
            stop,
            running,
            _dir: dir,
        }
    }

    async fn append(&self, count: u8) {
        for number in 0..count {
            self.spool
                .append(RecordId([0; 16]), record::encode(&wire(number)))
                .await
                .unwrap();
        }
    }

    async fn wait(
        &self,
        what: &str,
        mut condition: impl FnMut(&ForwardStatus) -> bool,
    ) -> ForwardStatus {
        let mut watched = self.status.clone();
        match tokio::time::timeout(SOON, watched.wait_for(|status| condition(status))).await {
            Ok(status) => status.unwrap().clone(),
            Err(_) => panic!(
                "waited {SOON:?} for {what}; at last {:?}",
                *self.status.borrow()
            ),
        }
    }

    async fn committed(&self, sequence: u64) {
        self.wait("the commit", |status| {
            status.committed_sequence == sequence && status.in_flight_deliveries == 0
        })
        .await;
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(SOON, self.running)
            .await
            .expect("the forwarder stops")
            .unwrap();
        self.spool.close().await;
    }
}

fn delivery(number: u8, body: &[u8]) -> Delivery {
    Delivery {
        id: DeliveryId::from_bytes([number; 16]),
        source: SourceUid::new("plain").unwrap(),
        vendor: "standard".to_owned(),
        organization: "acme".to_owned(),
        receive_time: "2026-03-01T00:00:00Z".parse().unwrap(),
        method: Method::Post,
        path: "/webhooks/plain".to_owned(),
        headers: Vec::new(),
        body: body.to_vec(),
        auth: AuthVerdict {
            scheme: AuthScheme::ApiKey,
            key_id: "k1".to_owned(),
            detail: String::new(),
        },
        adapter_version: "standard/0".to_owned(),
        trace: TraceContext::default(),
        decoded: Decoded::Undecodable(Undecodable {
            reason: UndecodableReason::NotJson,
            detail: "planted".to_owned(),
        }),
    }
}

fn wire(number: u8) -> v1::IngestDelivery {
    delivery_to_wire(&delivery(number, b"body"))
}

#[tokio::test]
async fn forwarding_goes_on_after_what_is_committed() {
    let mut rig = Rig::new().await;
    rig.append(5).await;
    let mut stream = rig.peer.stream().await;
    let hello = stream.hello().await;
    assert_eq!(
        (hello.protocol_version, hello.gateway_id.as_str()),
        (1, "test")
    );
    assert_eq!(hello.spool_id, rig.spool.id().to_string());
    assert_eq!(
        (hello.settled_sequence, hello.body_bytes_max),
        (0, BODY_BYTES_MAX as i64)
    );
    assert_eq!(hello.sources, ["plain", "strict", "kit", "url", "applied"]);
    stream.send_ready(2).await;
    let (sequences, number) = stream.sequences(3).await;
    assert_eq!(sequences, [3, 4, 5]);
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(5).await;
    assert_eq!(rig.spool.status().settled, Sequence(5));
    assert_eq!(rig.books.total(Tally::Committed(Outcome::Applied)), 3);
    // What comes later goes over the same stream.
    rig.append(1).await;
    assert_eq!(stream.batch().await.deliveries[0].sequence, 6);
    assert_eq!(rig.status.borrow().streams, 1);
    rig.stop().await;
}

#[tokio::test]
async fn what_was_not_acknowledged_is_sent_again_after_the_store_was_away() {
    let mut rig = Rig::new().await;
    rig.append(3).await;
    let mut stream = rig.peer.ready(0).await;
    assert_eq!(stream.sequences(3).await.0, [1, 2, 3]);
    stream.fail(Status::unavailable("store is away")).await;
    rig.wait("the failure", |status| {
        !status.connected && status.in_flight_deliveries == 0
    })
    .await;
    // One was committed although its acknowledgement never left.
    let mut stream = rig.peer.ready(1).await;
    let (sequences, number) = stream.sequences(2).await;
    assert_eq!(sequences, [2, 3]);
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(3).await;
    assert!(
        rig.readiness.is_ready(),
        "an outage of pass-state is no reason to refuse callbacks"
    );
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_that_ends_without_a_word_is_opened_again() {
    let mut rig = Rig::new().await;
    rig.append(1).await;
    for _ in 0..3 {
        let mut stream = rig.peer.ready(0).await;
        assert_eq!(stream.batch().await.batch_number, 1);
        drop(stream);
    }
    let mut stream = rig.peer.ready(0).await;
    stream.batch().await;
    stream.commit(1, [1], Outcome::Applied).await;
    rig.committed(1).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_repeated_acknowledgement_settles_and_counts_once() {
    let mut rig = Rig::new().await;
    rig.append(2).await;
    let mut stream = rig.peer.ready(0).await;
    let (sequences, number) = stream.sequences(2).await;
    for _ in 0..3 {
        stream
            .commit(number, sequences.clone(), Outcome::Duplicate)
            .await;
    }
    rig.committed(2).await;
    rig.append(1).await;
    let batch = stream.batch().await;
    stream
        .commit(batch.batch_number, [3], Outcome::Applied)
        .await;
    rig.committed(3).await;
    assert_eq!(rig.books.total(Tally::Committed(Outcome::Duplicate)), 2);
    assert_eq!(rig.status.borrow().streams, 1);
    rig.stop().await;
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_not_sent_ends_the_stream_and_settles_nothing() {
    let mut rig = Rig::new().await;
    rig.append(2).await;
    let mut stream = rig.peer.ready(0).await;
    let (_, number) = stream.sequences(2).await;
    stream.commit(number + 1, [9], Outcome::Applied).await;
    let mut stream = rig.peer.ready(0).await;
    assert_eq!(rig.spool.status().settled, Sequence(0));
    let (_, number) = stream.sequences(2).await;
    stream.commit(number, [1], Outcome::Applied).await;
    rig.peer.ready(0).await;
    assert_eq!(rig.spool.status().settled, Sequence(0));
    rig.stop().await;
}

#[tokio::test]
async fn without_progress_the_stream_is_opened_anew() {
    let mut rig = Rig::with(
        Forward {
            ack_timeout: Millis::from_millis(200),
            ..quick()
        },
        false,
    )
    .await;
    let mut idle = rig.peer.ready(0).await;
    assert!(
        idle.silent_for(Duration::from_millis(400)).await,
        "with nothing in flight nothing is missed"
    );
    rig.append(1).await;
    assert_eq!(idle.batch().await.deliveries[0].sequence, 1);
    let mut stream = rig.peer.ready(0).await;
    assert_eq!(stream.batch().await.deliveries[0].sequence, 1);
    stream.commit(1, [1], Outcome::Applied).await;
    rig.committed(1).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_peer_that_never_gets_ready_is_given_up() {
    let mut rig = Rig::with(
        Forward {
            hello_timeout: Millis::from_millis(100),
            ..quick()
        },
        false,
    )
    .await;
    let mut silent = rig.peer.stream().await;
    silent.hello().await;
    rig.peer.ready(0).await;
    rig.stop().await;
}

#[tokio::test]
async fn no_more_than_the_window_is_in_flight() {
    let mut rig = Rig::new().await;
    rig.append(10).await;
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream
        .send(Ours::Ready(v1::IngestReady {
            window_deliveries: 3,
            batch_deliveries_max: 2,
            ..ready(0)
        }))
        .await;
    let (first, second) = (stream.batch().await, stream.batch().await);
    assert_eq!((first.deliveries.len(), second.deliveries.len()), (2, 1));
    assert!(stream.silent_for(A_WHILE).await);
    let status = rig
        .wait("a full window", |status| status.in_flight_deliveries == 3)
        .await;
    assert!(status.in_flight_bytes > 0);
    stream.commit(1, [1, 2], Outcome::Applied).await;
    let third = stream.batch().await;
    assert_eq!(
        third
            .deliveries
            .iter()
            .map(|delivery| delivery.sequence)
            .collect::<Vec<_>>(),
        [4, 5]
    );
    assert!(stream.silent_for(A_WHILE).await);
    rig.stop.cancel();
    rig.running.abort();
}

#[tokio::test]
async fn messages_stay_below_what_pass_state_takes() {
    use prost::Message as _;
    let mut rig = Rig::new().await;
    for number in 0..40 {
        let delivery = delivery(number, &vec![b'x'; 1_000]);
        rig.spool
            .append(
                RecordId([0; 16]),
                record::encode(&delivery_to_wire(&delivery)),
            )
            .await
            .unwrap();
    }
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream
        .send(Ours::Ready(v1::IngestReady {
            message_bytes_max: 8_192,
            ..ready(0)
        }))
        .await;
    let mut seen = 0;
    while seen < 40 {
        let batch = stream.batch().await;
        seen += batch.deliveries.len();
        let bytes = v1::IngestRequest {
            message: Some(v1::ingest_request::Message::Batch(batch)),
        }
        .encoded_len();
        assert!(bytes <= 8_192, "{bytes}");
    }
    rig.stop.cancel();
    rig.running.abort();
}

#[tokio::test]
async fn a_stored_delivery_is_decoded_again_as_of_its_receive_time() {
    let mut rig = Rig::new().await;
    let stream = rig.peer.ready(0).await;
    let mut stream = stream;
    let body = br#"{"kind":"INSTALLED","pass":"p-1"}"#;
    let stored = delivery_to_wire(&delivery(9, body));
    stream
        .send(Ours::Redecode(v1::IngestRedecode {
            redecode_number: 7,
            delivery: Some(stored.clone()),
        }))
        .await;
    let answer = stream.redecoded().await;
    assert_eq!(answer.redecode_number, 7);
    let decoded = answer.delivery.unwrap();
    let Some(v1::ingest_delivery::Decoded::Facts(facts)) = &decoded.decoded else {
        panic!("{decoded:?}")
    };
    assert_eq!(facts.facts[0].occur_time, stored.receive_time);
    assert_eq!(decoded.adapter_version, "standard/1");
    let same = |mut delivery: v1::IngestDelivery| {
        delivery.decoded = None;
        delivery.adapter_version.clear();
        delivery
    };
    assert_eq!(same(decoded), same(stored.clone()));
    // A source that is not configured here is left to another gateway.
    let foreign = v1::IngestDelivery {
        source: "elsewhere".to_owned(),
        ..stored.clone()
    };
    stream
        .send(Ours::Redecode(v1::IngestRedecode {
            redecode_number: 8,
            delivery: Some(foreign),
        }))
        .await;
    stream
        .send(Ours::Redecode(v1::IngestRedecode {
            redecode_number: 9,
            delivery: Some(stored),
        }))
        .await;
    assert_eq!(stream.redecoded().await.redecode_number, 9);
    rig.stop().await;
}

#[tokio::test]
async fn requests_that_wait_learn_the_outcome_and_nobody_waits_without_a_stream() {
    let mut rig = Rig::new().await;
    rig.append(2).await;
    assert_eq!(rig.waiters.outcome(1, SOON).await, None, "no stream yet");
    let mut stream = rig.peer.ready(0).await;
    let (sequences, number) = stream.sequences(2).await;
    let waiters = Arc::clone(&rig.waiters);
    let waiting = tokio::spawn(async move { waiters.outcome(2, SOON).await });
    test_kit::wait_for("the wait", SOON, async || {
        if rig.waiters.waiting() == 1 {
            Ok(())
        } else {
            Err("nobody waits")
        }
    })
    .await
    .unwrap();
    stream.commit(number, sequences, Outcome::Duplicate).await;
    assert_eq!(waiting.await.unwrap(), Some(Outcome::Duplicate));
    assert_eq!(
        rig.waiters.outcome(1, SOON).await,
        Some(Outcome::Duplicate),
        "it came before the question"
    );

    let waiters = Arc::clone(&rig.waiters);
    let waiting = tokio::spawn(async move { waiters.outcome(3, SOON).await });
    test_kit::wait_for("the wait", SOON, async || {
        if rig.waiters.waiting() == 1 {
            Ok(())
        } else {
            Err("nobody waits")
        }
    })
    .await
    .unwrap();
    stream.fail(Status::unavailable("store is away")).await;
    assert_eq!(waiting.await.unwrap(), None);
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_waits_for_acknowledgements_but_not_for_ever() {
    let mut rig = Rig::new().await;
    rig.append(1).await;
    let mut stream = rig.peer.ready(0).await;
    stream.batch().await;
    rig.stop.cancel();
    assert!(stream.silent_for(A_WHILE).await, "it waits");
    stream.commit(1, [1], Outcome::Applied).await;
    assert!(stream.ended().await);
    let spool = Arc::clone(&rig.spool);
    rig.stop().await;
    assert_eq!(spool.status().settled, Sequence(1));

    let mut rig = Rig::with(
        Forward {
            drain_timeout: Millis::from_millis(50),
            ..quick()
        },
        false,
    )
    .await;
    rig.append(1).await;
    let mut stream = rig.peer.ready(0).await;
    stream.batch().await;
    rig.stop().await;
    drop(stream);
}

#[tokio::test]
async fn the_hop_of_a_sampled_delivery_is_a_span_of_its_trace() {
    use tracing_subscriber::layer::SubscriberExt as _;
    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-";
    let exporter = opentelemetry_sdk::trace::InMemorySpanExporter::default();
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let subscriber =
        tracing_subscriber::registry().with(service_kit::telemetry::tracing_layer(&provider));
    let _default = tracing::subscriber::set_default(subscriber);
    let mut rig = Rig::with(quick(), true).await;
    for (number, flags) in [(1, "01"), (2, "00")] {
        let mut delivery = delivery(number, b"{}");
        delivery.trace = TraceContext {
            traceparent: format!("{PARENT}{flags}"),
            tracestate: "vendor=1".to_owned(),
        };
        rig.spool
            .append(
                RecordId([0; 16]),
                record::encode(&delivery_to_wire(&delivery)),
            )
            .await
            .unwrap();
    }
    let mut stream = rig.peer.ready(0).await;
    let mut traces = Vec::new();
    let mut number = 0;
    while traces.len() < 2 {
        let batch = stream.batch().await;
        number = batch.batch_number;
        traces.extend(
            batch
                .deliveries
                .into_iter()
                .map(|delivery| delivery.trace.unwrap()),
        );
    }
    assert!(
        exporter.get_finished_spans().unwrap().is_empty(),
        "the span lasts until the acknowledgement"
    );
    stream.commit(number, [1, 2], Outcome::Applied).await;
    rig.committed(2).await;
    let spans = exporter.get_finished_spans().unwrap();
    assert_eq!(spans.len(), 1);
    assert_eq!(spans[0].name, "forward");
    assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");
    assert_eq!(
        traces[0].traceparent,
        format!("{}{}-01", &PARENT[..36], spans[0].span_context.span_id())
    );
    assert_eq!(traces[0].tracestate, "vendor=1");
    assert_eq!(
        traces[1].traceparent,
        format!("{PARENT}00"),
        "an unsampled one is handed on as it is"
    );
    rig.stop().await;
}
