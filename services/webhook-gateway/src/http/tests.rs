//! The router as a service: every row of the table of answers, every limit, in front of a real spool.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::FutureExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use pass_domain::delivery::Outcome;
use pass_domain::ids::DeliveryId;
use pass_proto::v1;
use pass_sources::{RefusalCause, SourceConfig};
use pass_spool::{AppendError, Sequence, Spool};
use serde_json::Value;
use service_kit::listener::PeerAddr;
use service_kit::telemetry::Sampling;
use tempfile::TempDir;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::{Edge, router};
use crate::books::{Books, Tally};
use crate::config::{Ack, Http};
use crate::forward::ForwardStatus;
use crate::policy::Live;
use crate::record;
use crate::testing::{self, SECRET, StubSpool, TestClock};
use crate::waiters::Waiters;

mod abuse;
mod limits;

struct Rig {
    router: Router,
    spool: Arc<dyn Spool>,
    books: Arc<Books>,
    waiters: Arc<Waiters>,
    forward: watch::Sender<ForwardStatus>,
    clock: TestClock,
    _dir: Option<TempDir>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = testing::open_spool(dir.path());
        Self {
            _dir: Some(dir),
            ..Self::over(spool, &testing::http(), &testing::ack(), false)
        }
    }

    fn stub(append: Result<Sequence, AppendError>) -> Self {
        Self::over(
            Arc::new(StubSpool::new(append)),
            &testing::http(),
            &testing::ack(),
            false,
        )
    }

    fn of_sources(sources: &[SourceConfig], http: &Http) -> Self {
        let spool = Arc::new(StubSpool::new(Ok(Sequence(1))));
        let (live, books) = testing::live_of(sources, http, &testing::ack());
        Self::with(spool, http, &testing::ack(), false, live, books)
    }

    fn over(spool: Arc<dyn Spool>, http: &Http, ack: &Ack, traced: bool) -> Self {
        let (live, books) = testing::live(http, ack);
        Self::with(spool, http, ack, traced, live, books)
    }

    fn with(
        spool: Arc<dyn Spool>,
        http: &Http,
        ack: &Ack,
        traced: bool,
        live: Arc<Live>,
        books: Arc<Books>,
    ) -> Self {
        let sampling = if traced {
            Sampling::of_ratio(1.0)
        } else {
            Sampling::OFF
        };
        Self::sampled(spool, http, ack, sampling, live, books)
    }

    fn sampled(
        spool: Arc<dyn Spool>,
        http: &Http,
        ack: &Ack,
        sampling: Sampling,
        live: Arc<Live>,
        books: Arc<Books>,
    ) -> Self {
        let waiters = Arc::new(Waiters::new(ack.waiters_max, true));
        let clock = TestClock::new();
        let forward = watch::Sender::new(ForwardStatus::default());
        let edge = Edge::new(
            http,
            Arc::clone(&live),
            Arc::clone(&spool),
            Arc::new(clock.clone()),
            Arc::clone(&books),
            Arc::clone(&waiters),
            forward.subscribe(),
            sampling,
            None,
        );
        Self {
            router: router(Arc::new(edge)),
            spool,
            books,
            waiters,
            forward,
            clock,
            _dir: None,
        }
    }

    async fn ask(&self, request: Request<Body>) -> Answer {
        Answer::of(self.router.clone().oneshot(request).await.unwrap()).await
    }

    async fn stored(&self) -> Vec<v1::IngestDelivery> {
        if self.spool.status().last_durable == Sequence(0) {
            return Vec::new();
        }
        let leased = self.spool.lease(1_000, 1 << 20).await.unwrap();
        leased
            .into_iter()
            .map(|leased| record::decode(leased.record).unwrap())
            .collect()
    }
}

struct Answer {
    status: StatusCode,
    headers: http::HeaderMap,
    body: Value,
}

impl Answer {
    async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Self {
            status: parts.status,
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap(),
        }
    }

    #[track_caller]
    fn is_problem(&self, status: u16, slug: &str) {
        assert_eq!(self.status.as_u16(), status, "{}", self.body);
        assert_eq!(
            self.body["type"],
            format!("https://passline.dev/problems/{slug}")
        );
        assert_eq!(self.headers["content-type"], "application/problem+json");
    }
}

/// A request as a vendor with the right key sends it.
fn request(method: Method, path: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", SECRET)
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap();
    request
        .extensions_mut()
        .insert(PeerAddr(SocketAddr::from(([127, 0, 0, 1], 9))));
    request
}

fn post(path: &str, body: impl Into<Body>) -> Request<Body> {
    request(Method::POST, path, body)
}

fn event(pass: &str) -> String {
    format!(r#"{{"kind":"INSTALLED","pass":"{pass}","occur_time":"2026-02-28T12:00:00Z"}}"#)
}

#[tokio::test]
async fn an_authentic_delivery_is_stored_before_it_is_answered() {
    let rig = Rig::new();
    let body = event("p-1");
    let answer = rig
        .ask(post("/webhooks/plain?token=canary-query", body.clone()))
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.body["status"], "stored");
    assert!(answer.body.get("reason").is_none());
    assert_eq!(rig.spool.status().last_durable, Sequence(1));

    let stored = rig.stored().await;
    let delivery = &stored[0];
    assert_eq!(delivery.sequence, 0);
    let id = DeliveryId::from_bytes(delivery.id.as_slice().try_into().unwrap()).to_string();
    assert_eq!(answer.body["delivery"], id);
    // Version 7, of the clock that was passed in.
    assert_eq!(&id[16..17], "7");
    assert_eq!(
        u64::from_str_radix(&id[4..16], 16).unwrap(),
        1_772_323_200_000
    );
    assert_eq!(delivery.body, body.as_bytes());
    assert_eq!(
        (
            delivery.source.as_str(),
            delivery.vendor.as_str(),
            delivery.method.as_str()
        ),
        ("plain", "standard", "POST")
    );
    assert_eq!(delivery.auth.as_ref().unwrap().key_id, "k1");
    assert_eq!(delivery.trace, None);
    let Some(v1::ingest_delivery::Decoded::Facts(facts)) = &delivery.decoded else {
        panic!("{delivery:?}")
    };
    let event =
        pass_domain::ids::EventId::from_bytes(facts.facts[0].id.as_slice().try_into().unwrap())
            .to_string();
    assert_eq!(answer.body["events"], serde_json::json!([event]));

    let page = &rig.books.snapshot()[0];
    assert_eq!(
        (page.accepted(), page.facts, page.get(Tally::Stored)),
        (1, 1, 1)
    );
}

#[tokio::test]
async fn credentials_never_reach_the_spool() {
    let rig = Rig::new();
    let secret = percent_encoding::utf8_percent_encode(SECRET, percent_encoding::NON_ALPHANUMERIC)
        .to_string();
    assert_eq!(
        rig.ask(post("/webhooks/plain?token=canary-query", event("p")))
            .await
            .status,
        200
    );
    assert_eq!(
        rig.ask(post(&format!("/webhooks/url/{secret}"), event("p")))
            .await
            .status,
        200
    );
    for leased in rig.spool.lease(10, 1 << 20).await.unwrap() {
        let text = String::from_utf8_lossy(&leased.record).into_owned();
        assert!(!text.contains("canary"), "{text}");
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_is_stored_and_says_why() {
    let rig = Rig::new();
    let answer = rig.ask(post("/webhooks/plain", "not json")).await;
    assert_eq!(
        (
            answer.status.as_u16(),
            &answer.body["status"],
            &answer.body["reason"]
        ),
        (200, &"quarantined".into(), &"NOT_JSON".into())
    );
    assert_eq!(answer.body["events"], serde_json::json!([]));
    let answer = rig
        .ask(post("/webhooks/plain", r#"{"kind":"EXPLODED","pass":"p"}"#))
        .await;
    assert_eq!(answer.body["reason"], "KIND_UNKNOWN");
    assert_eq!(rig.stored().await.len(), 2);
    assert_eq!(rig.books.total(Tally::Quarantined), 2);
}

#[tokio::test]
async fn a_source_that_rejects_stores_nothing() {
    let rig = Rig::new();
    rig.ask(post("/webhooks/strict", "not json"))
        .await
        .is_problem(400, "not-json");
    let answer = rig
        .ask(post(
            "/webhooks/strict",
            r#"{"kind":"EXPLODED","pass":"p"}"#,
        ))
        .await;
    answer.is_problem(422, "undecodable");
    assert_eq!(answer.body["reason"], "KIND_UNKNOWN");
    assert_eq!(rig.spool.status().last_durable, Sequence(0));
    assert_eq!(rig.books.total(Tally::Rejected), 2);
}

#[tokio::test]
async fn every_failing_credential_gets_the_same_words_and_stores_nothing() {
    let rig = Rig::new();
    let mut texts = std::collections::BTreeSet::new();
    for (path, key, body) in [
        ("/webhooks/plain", None, "{}"),
        ("/webhooks/plain", Some("canary-wrong-key-0123456789"), "{}"),
        (
            "/webhooks/plain",
            Some("canary-wrong-key-0123456789"),
            "not json",
        ),
        ("/webhooks/url", Some(SECRET), "{}"),
        ("/webhooks/url/canary-wrong", Some(SECRET), "{}"),
        ("/webhooks/url/%ff%fe", Some(SECRET), "{}"),
    ] {
        let mut request = post(path, body);
        request.headers_mut().remove("authorization");
        if let Some(key) = key {
            request
                .headers_mut()
                .insert("authorization", key.parse().unwrap());
        }
        let answer = rig.ask(request).await;
        answer.is_problem(401, "unauthorized");
        assert!(answer.headers.contains_key("www-authenticate"));
        texts.insert(answer.body.to_string());
    }
    assert_eq!(texts.len(), 1);
    assert!(!texts.first().unwrap().contains("canary"));
    assert_eq!(rig.spool.status().last_durable, Sequence(0));
    let total: u64 = RefusalCause::ALL
        .into_iter()
        .map(|cause| rig.books.total(Tally::Refused(cause)))
        .sum();
    assert_eq!(total, 6);
    assert_eq!(
        rig.books
            .total(Tally::Refused(RefusalCause::MissingCredential)),
        2
    );
}

#[tokio::test]
async fn what_is_not_a_source_is_not_found() {
    let rig = Rig::new();
    for path in [
        "/",
        "/webhooks",
        "/webhooks/",
        "/webhooks/absent",
        "/webhooks/plain/",
        "/webhooks/plain/secret",
        "/webhooks/url/a/b",
        "/Webhooks/plain",
    ] {
        rig.ask(post(path, "{}")).await.is_problem(404, "not-found");
    }
    assert_eq!(rig.books.total(Tally::NotFound), 8);
}

#[tokio::test]
async fn a_method_that_the_vendor_does_not_use_is_told_those_it_does() {
    let rig = Rig::new();
    for (path, method, allow) in [
        ("/webhooks/plain", Method::PUT, "POST"),
        ("/webhooks/plain", Method::GET, "POST"),
        ("/webhooks/kit", Method::PATCH, "POST, PUT, DELETE"),
    ] {
        let answer = rig.ask(request(method, path, "{}")).await;
        answer.is_problem(405, "method-not-allowed");
        assert_eq!(answer.headers["allow"], allow);
    }
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        assert_eq!(
            rig.ask(request(method, "/webhooks/kit", "{}")).await.status,
            200
        );
    }
    assert_eq!(
        rig.stored()
            .await
            .iter()
            .map(|delivery| delivery.method.as_str())
            .collect::<Vec<_>>(),
        ["POST", "PUT", "DELETE"]
    );
}

#[tokio::test]
async fn ack_applied_tells_what_pass_state_said_and_falls_back_to_stored() {
    let rig = Rig::new();
    let ask = async |pass: &str| {
        rig.ask(post("/webhooks/applied", event(pass))).await.body["status"].clone()
    };
    // Away: at once.
    assert_eq!(ask("p").await, "stored");
    rig.waiters.connected(Some(1));
    for (sequence, outcome, status) in [
        (2, Outcome::Applied, "applied"),
        (3, Outcome::Duplicate, "duplicate"),
        (4, Outcome::Quarantined, "quarantined"),
        (5, Outcome::Control, "applied"),
    ] {
        let (told, ()) = tokio::join!(ask("p"), async {
            test_kit::wait_for("the request to wait", testing::SOON, async || {
                if rig.waiters.waiting() == 1 {
                    Ok(())
                } else {
                    Err("no")
                }
            })
            .await
            .unwrap();
            rig.waiters
                .committed(sequence, [(sequence, outcome)].into_iter());
        });
        assert_eq!(told, status);
    }
    // A source that does not ask for it does not wait.
    assert_eq!(
        rig.ask(post("/webhooks/plain", event("p"))).await.body["status"],
        "stored"
    );
}

#[tokio::test(start_paused = true)]
async fn ack_applied_gives_up_at_its_deadline_and_over_its_cap() {
    let ack = Ack {
        timeout: service_kit::config::Duration::from_millis(200),
        waiters_max: 1,
        ..testing::ack()
    };
    let spool: Arc<dyn Spool> = Arc::new(StubSpool::new(Ok(Sequence(1))));
    let rig = Rig::over(spool, &testing::http(), &ack, false);
    rig.waiters.connected(Some(0));
    let began = tokio::time::Instant::now();
    let mut late = Box::pin(rig.ask(post("/webhooks/applied", event("p"))));
    assert!(late.as_mut().now_or_never().is_none());
    assert_eq!(
        rig.ask(post("/webhooks/applied", event("q"))).await.body["status"],
        "stored"
    );
    assert_eq!(began.elapsed(), Duration::ZERO, "over the cap nobody waits");
    let answer = late.await;
    assert_eq!(
        (answer.status.as_u16(), &answer.body["status"]),
        (200, &"stored".into())
    );
    assert!(began.elapsed() >= Duration::from_millis(200));
    assert_eq!(rig.waiters.waiting(), 0);
}

#[tokio::test]
async fn a_sender_that_leaves_while_it_waits_for_pass_state_is_counted_with_what_it_brought() {
    let spool: Arc<dyn Spool> = Arc::new(StubSpool::new(Ok(Sequence(1))));
    let rig = Rig::over(spool, &testing::http(), &testing::ack(), false);
    rig.waiters.connected(Some(0));
    let mut waits = Box::pin(rig.ask(post("/webhooks/applied", event("p"))));
    assert!(waits.as_mut().now_or_never().is_none());
    assert_eq!(rig.waiters.waiting(), 1, "the delivery is stored");
    drop(waits);
    assert_eq!(
        (
            rig.books.total(Tally::Stored),
            rig.books.total(Tally::Abandoned)
        ),
        (1, 0)
    );
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_traced_delivery_continues_the_senders_trace() {
    use tracing_subscriber::layer::SubscriberExt as _;
    let exporter = opentelemetry_sdk::trace::InMemorySpanExporter::default();
    let provider = opentelemetry_sdk::trace::SdkTracerProvider::builder()
        .with_simple_exporter(exporter.clone())
        .build();
    let subscriber =
        tracing_subscriber::registry().with(service_kit::telemetry::tracing_layer(&provider));
    let _default = tracing::subscriber::set_default(subscriber);
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::over(
        testing::open_spool(dir.path()),
        &testing::http(),
        &testing::ack(),
        true,
    );
    let mut request = post(&format!("/webhooks/url/{SECRET}"), event("p"));
    request
        .headers_mut()
        .insert("traceparent", PARENT.parse().unwrap());
    assert_eq!(rig.ask(request).await.status, 200);

    let spans = exporter.get_finished_spans().unwrap();
    assert_eq!(spans.len(), 1);
    assert_eq!(spans[0].name, "POST /webhooks/{source}");
    assert_eq!(spans[0].parent_span_id.to_string(), "b7ad6b7169203331");
    assert!(
        !format!("{spans:?}").contains("canary"),
        "the secret is in the span"
    );
    let attribute = |key: &str| {
        spans[0]
            .attributes
            .iter()
            .find(|kv| kv.key.as_str() == key)
            .map(|kv| kv.value.to_string())
    };
    assert_eq!(
        attribute("http.response.status_code").as_deref(),
        Some("200")
    );
    assert_eq!(
        attribute("http.route").as_deref(),
        Some("/webhooks/{source}")
    );
    assert_eq!(attribute("source.name").as_deref(), Some("url"));
    let trace = rig.stored().await[0].trace.clone().unwrap();
    assert_eq!(
        trace.traceparent,
        format!("{}{}-01", &PARENT[..36], spans[0].span_context.span_id())
    );
}

/// Anybody could say that a trace is recorded.
#[tokio::test]
async fn a_delivery_that_chance_does_not_choose_keeps_its_trace_and_is_not_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let (live, books) = testing::live(&testing::http(), &testing::ack());
    let rig = Rig::sampled(
        testing::open_spool(dir.path()),
        &testing::http(),
        &testing::ack(),
        Sampling::of_ratio(0.0),
        live,
        books,
    );
    let mut request = post("/webhooks/plain", event("p"));
    let headers = request.headers_mut();
    headers.insert("traceparent", PARENT.parse().unwrap());
    assert_eq!(rig.ask(request).await.status, 200);
    let trace = rig.stored().await[0].trace.clone().unwrap();
    assert_eq!(trace.traceparent, format!("{}-00", &PARENT[..52]));
}

#[tokio::test]
async fn without_traces_the_senders_context_is_handed_on_if_it_is_one() {
    let rig = Rig::new();
    for parent in [PARENT, "nonsense"] {
        let mut request = post("/webhooks/plain", event("p"));
        request
            .headers_mut()
            .insert("traceparent", parent.parse().unwrap());
        request
            .headers_mut()
            .insert("tracestate", "vendor=1".parse().unwrap());
        assert_eq!(rig.ask(request).await.status, 200);
    }
    let stored = rig.stored().await;
    let trace = stored[0].trace.clone().unwrap();
    assert_eq!(
        (trace.traceparent.as_str(), trace.tracestate.as_str()),
        (
            PARENT
                .strip_suffix("01")
                .map(|trace| trace.to_owned() + "00")
                .unwrap()
                .as_str(),
            "vendor=1"
        )
    );
    assert_eq!(stored[1].trace, None);
}
