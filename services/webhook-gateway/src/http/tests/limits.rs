//! Limits, and what happens when something breaks.

use std::convert::Infallible;

use axum::body::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use pass_spool::AppendError;
use tokio::sync::Semaphore;

use super::*;
use crate::testing::BODY_BYTES_MAX;

#[tokio::test]
async fn only_plain_json_is_taken() {
    let rig = Rig::new();
    for (name, value, slug) in [
        ("content-encoding", "gzip", "content-encoding"),
        ("content-encoding", "identity, br", "content-encoding"),
        ("content-type", "text/plain", "media-type"),
        (
            "content-type",
            "application/x-www-form-urlencoded",
            "media-type",
        ),
        ("content-type", "+json", "media-type"),
        ("content-type", "application/jsonp", "media-type"),
    ] {
        let mut request = post("/webhooks/plain", event("p"));
        request.headers_mut().insert(name, value.parse().unwrap());
        rig.ask(request).await.is_problem(415, slug);
    }
    let mut twice = post("/webhooks/plain", event("p"));
    twice
        .headers_mut()
        .append("content-type", "text/plain".parse().unwrap());
    rig.ask(twice).await.is_problem(415, "media-type");
    for (name, value) in [
        ("content-encoding", "Identity"),
        ("content-type", "application/json; charset=utf-8"),
        ("content-type", "Application/JSON"),
        ("content-type", "application/vnd.vendor.event+json"),
    ] {
        let mut request = post("/webhooks/plain", event("p"));
        request.headers_mut().insert(name, value.parse().unwrap());
        assert_eq!(rig.ask(request).await.status, 200, "{value}");
    }
    let mut absent = post("/webhooks/plain", event("p"));
    absent.headers_mut().remove("content-type");
    assert_eq!(rig.ask(absent).await.status, 200);
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_declared_or_streamed() {
    let rig = Rig::new();
    rig.ask(post("/webhooks/plain", vec![b' '; BODY_BYTES_MAX + 1]))
        .await
        .is_problem(413, "body-too-large");
    let streamed =
        stream::repeat_with(|| Ok::<_, Infallible>(Bytes::from_static(&[b' '; 512]))).take(5);
    rig.ask(post("/webhooks/plain", Body::from_stream(streamed)))
        .await
        .is_problem(413, "body-too-large");
    let mut full = event("p").into_bytes();
    full.resize(BODY_BYTES_MAX, b' ');
    assert_eq!(rig.ask(post("/webhooks/plain", full)).await.status, 200);
    assert_eq!(rig.books.total(Tally::TooLarge), 2);
}

#[tokio::test]
async fn a_body_that_stalls_or_breaks_off_is_given_up() {
    let mut http = testing::http();
    http.limits.body.total = service_kit::config::Duration::from_millis(50);
    let rig = Rig::over(
        Arc::new(StubSpool::new(Ok(Sequence(1)))),
        &http,
        &testing::ack(),
        false,
    );
    let stalled = stream::pending::<Result<Bytes, Infallible>>();
    rig.ask(post("/webhooks/plain", Body::from_stream(stalled)))
        .await
        .is_problem(408, "body-too-slow");
    let broken = stream::iter([
        Ok(Bytes::from_static(b"{")),
        Err(std::io::Error::from(std::io::ErrorKind::ConnectionReset)),
    ]);
    rig.ask(post("/webhooks/plain", Body::from_stream(broken)))
        .await
        .is_problem(400, "body-broken");
    assert_eq!(
        (
            rig.books.total(Tally::TooSlow),
            rig.books.total(Tally::Abandoned)
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn a_spool_that_cannot_store_answers_503_with_a_time_to_retry() {
    for (error, slug, seconds, tally) in [
        (AppendError::Full, "spool-full", "30", Tally::Full),
        (AppendError::Stuck, "storage", "5", Tally::Storage),
        (
            AppendError::Unavailable("no server answers".into()),
            "spool-unavailable",
            "5",
            Tally::Unavailable,
        ),
        (
            AppendError::Poisoned("EIO".into()),
            "storage",
            "5",
            Tally::Storage,
        ),
        (AppendError::Closed, "stopping", "5", Tally::Stopping),
    ] {
        let rig = Rig::stub(Err(error));
        let answer = rig.ask(post("/webhooks/plain", event("p"))).await;
        answer.is_problem(503, slug);
        assert_eq!(answer.headers["retry-after"], seconds);
        assert_eq!(rig.books.total(tally), 1);
        assert_eq!(rig.books.total(Tally::Stored), 0);
    }
    let rig = Rig::stub(Err(AppendError::TooLarge {
        bytes: 2,
        bytes_max: 1,
    }));
    rig.ask(post("/webhooks/plain", event("p")))
        .await
        .is_problem(500, "internal");
}

#[tokio::test]
async fn a_spool_that_was_put_back_takes_nothing_until_pass_state_knows_it_again() {
    let rig = Rig::new();
    rig.forward
        .send_modify(|status| status.spool_restored = true);
    let answer = rig.ask(post("/webhooks/plain", event("p"))).await;
    answer.is_problem(503, "spool-restored");
    assert_eq!(answer.headers["retry-after"], "30");
    assert_eq!(rig.books.total(Tally::Restored), 1);
    assert_eq!(rig.stored().await.len(), 0);
    rig.forward
        .send_modify(|status| status.spool_restored = false);
    let answer = rig.ask(post("/webhooks/plain", event("p"))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(rig.stored().await.len(), 1);
}

/// Fills a real spool until it pushes back, settles, and sees it accept again by itself.
#[tokio::test]
async fn a_full_spool_pushes_back_and_takes_again_once_it_drains() {
    let rig = Rig::new();
    let mut accepted = 0_u64;
    let answer = loop {
        let answer = rig
            .ask(post(
                "/webhooks/plain",
                event(&format!("p-{accepted}-{}", "x".repeat(200))),
            ))
            .await;
        if answer.status != 200 {
            break answer;
        }
        accepted += 1;
        assert!(accepted < 5_000, "the spool takes no end");
    };
    answer.is_problem(503, "spool-full");
    assert_eq!(rig.spool.status().last_durable, Sequence(accepted));
    // What the forwarder does once pass-state has everything.
    rig.spool.rewind(Sequence(accepted)).await.unwrap();
    rig.spool.settle(Sequence(accepted)).await.unwrap();
    let settled = test_kit::wait_for("room in the spool", testing::SOON, async || {
        let answer = rig.ask(post("/webhooks/plain", event("again"))).await;
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.body.to_string())
        }
    });
    settled.await.unwrap();
}

#[tokio::test]
async fn over_the_limits_in_flight_callers_are_told_to_come_back() {
    let gated = || {
        let spool = StubSpool {
            gate: Semaphore::new(0),
            ..StubSpool::new(Ok(Sequence(1)))
        };
        Arc::new(spool)
    };
    let mut by_count = testing::http();
    by_count.requests_in_flight_max = 1;
    let mut by_bytes = testing::http();
    by_bytes.bytes_in_flight_max = by_bytes.body_bytes_max;
    for http in [by_count, by_bytes] {
        let spool = gated();
        let rig = Rig::over(
            Arc::clone(&spool) as Arc<dyn Spool>,
            &http,
            &testing::ack(),
            false,
        );
        // A body without a declared length counts as the largest.
        let body = Body::from_stream(stream::iter([Ok::<_, Infallible>(event("p"))]));
        let mut first = Box::pin(rig.ask(post("/webhooks/plain", body)));
        assert!(first.as_mut().now_or_never().is_none());
        let answer = rig.ask(post("/webhooks/plain", event("q"))).await;
        answer.is_problem(503, "busy");
        assert_eq!(answer.headers["retry-after"], "1");
        spool.gate.add_permits(1);
        assert_eq!(first.await.status, 200);
        spool.gate.add_permits(1);
        assert_eq!(
            rig.ask(post("/webhooks/plain", event("q"))).await.status,
            200
        );
    }
}

#[tokio::test]
async fn a_sender_that_goes_away_is_counted_and_frees_its_place() {
    let spool = Arc::new(StubSpool {
        gate: Semaphore::new(0),
        ..StubSpool::new(Ok(Sequence(1)))
    });
    let mut http = testing::http();
    http.requests_in_flight_max = 1;
    let rig = Rig::over(
        Arc::clone(&spool) as Arc<dyn Spool>,
        &http,
        &testing::ack(),
        false,
    );
    for _ in 0..3 {
        let mut gone = Box::pin(rig.ask(post("/webhooks/plain", event("p"))));
        assert!(gone.as_mut().now_or_never().is_none());
    }
    assert_eq!(rig.books.total(Tally::Abandoned), 3);
    spool.gate.add_permits(1);
    assert_eq!(
        rig.ask(post("/webhooks/plain", event("p"))).await.status,
        200
    );
}

#[tokio::test]
async fn a_panic_is_answered_500_and_nothing_else_dies() {
    let rig = Rig::stub(Ok(Sequence(1)));
    rig.clock.set_seconds(-1);
    rig.ask(post("/webhooks/plain", event("p")))
        .await
        .is_problem(500, "internal");
    rig.clock.set_seconds(1);
    assert_eq!(
        rig.ask(post("/webhooks/plain", event("p"))).await.status,
        200
    );
    assert_eq!(
        (
            rig.books.total(Tally::Internal),
            rig.books.total(Tally::Stored)
        ),
        (1, 1)
    );
}

#[tokio::test]
async fn facts_that_outgrow_a_record_are_quarantined_with_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut http = testing::http();
    http.body_bytes_max = service_kit::config::ByteSize::from_mib(1);
    let mut options = testing::spool_options(dir.path());
    options.record_bytes_max = record::record_bytes_max(1 << 20);
    options.segment_bytes = 4 << 20;
    options.bytes_max = 16 << 20;
    let spool: Arc<dyn Spool> = Arc::new(pass_spool::EmbeddedSpool::open(options).unwrap());
    let rig = Rig::over(Arc::clone(&spool), &http, &testing::ack(), false);
    // Thirty-two events that each say as much as they may.
    let attributes: Vec<String> = (0..30)
        .map(|n| format!(r#""a{n}":"{}""#, "é".repeat(500)))
        .collect();
    let events: Vec<String> = (0..32)
        .map(|n| format!(r#"{{"kind":"INSTALLED","pass":"p{n}","occur_time":"2026-02-28T12:00:00Z","attributes":{{{}}}}}"#, attributes.join(",")))
        .collect();
    let body = format!(r#"{{"events":[{}]}}"#, events.join(","));
    assert!(body.len() < 1 << 20, "{}", body.len());
    let answer = rig.ask(post("/webhooks/plain", body.clone())).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let stored = &rig.spool.lease(1, 4 << 20).await.unwrap()[0];
    assert!(stored.record.len() <= record::record_bytes_max(1 << 20));
    assert_eq!(
        record::decode(stored.record.clone()).unwrap().body,
        body.as_bytes()
    );
}

/// Whatever strangers send, with the right key or without: it is answered by the table, only a 200 is
/// stored, and nothing panics.
#[test]
fn any_request_gets_an_answer_of_the_table() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let rig = runtime.block_on(async { Rig::stub(Ok(Sequence(1))) });
    let text = || proptest::collection::vec(any::<u8>(), 0..64);
    let paths = prop_oneof![
        4 => Just("/webhooks/plain".to_owned()),
        2 => Just("/webhooks/kit?a=b&c".to_owned()),
        1 => "/webhooks/url/[!-~&&[^#?%<>\"{}|\\\\^`]]{0,40}",
        1 => "/webhooks/url/(%[0-9a-f]{2}){0,8}",
        1 => "/[a-z/%0-9]{0,40}",
    ];
    let methods = proptest::sample::select(vec!["POST", "POST", "POST", "PUT", "DELETE", "BREW"]);
    let bodies = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..BODY_BYTES_MAX + 64),
        "[{}\\[\\]\":,a-z0-9 ]{0,200}".prop_map(String::into_bytes),
        "[a-z]{1,20}".prop_map(|pass| event(&pass).into_bytes()),
    ];
    let config = ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let inputs = (methods, paths, text(), text(), any::<bool>(), bodies);
    let checked = runner.run(&inputs, |(method, path, kind, key, authentic, body)| {
        let Ok(mut request) = Request::builder()
            .method(method)
            .uri(&path)
            .body(Body::from(body))
        else {
            return Ok(());
        };
        let headers = request.headers_mut();
        if let Ok(kind) = http::HeaderValue::from_bytes(&kind)
            && !authentic
        {
            headers.insert("content-type", kind);
        }
        if let Ok(key) = http::HeaderValue::from_bytes(&key) {
            headers.insert("traceparent", key.clone());
            headers.insert("authorization", key);
        }
        if authentic {
            headers.insert("authorization", SECRET.parse().unwrap());
        }
        let before = rig.books.total(Tally::Stored) + rig.books.total(Tally::Quarantined);
        let answer = runtime.block_on(rig.ask(request));
        let stored = rig.books.total(Tally::Stored) + rig.books.total(Tally::Quarantined) - before;
        prop_assert_eq!(stored, u64::from(answer.status == 200));
        prop_assert!([200, 401, 404, 405, 413, 415].contains(&answer.status.as_u16()));
        prop_assert!(authentic || answer.status != 200);
        Ok(())
    });
    checked.unwrap();
    assert!(rig.books.total(Tally::Stored) > 0, "no case was accepted");
    assert_eq!(rig.books.total(Tally::Internal), 0);
}
