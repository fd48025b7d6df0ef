//! Rates, proxies, and what failing credentials cost.

use std::net::IpAddr;

use tokio::time::Instant;

use super::*;
use crate::config::{FailedAuth, Rates};
use crate::testing::StubSpool;

const WRONG: &str = "0123456789abcdef-wrong!";

fn rig(change: impl FnOnce(&mut Http)) -> Rig {
    let mut http = testing::http();
    change(&mut http);
    let spool = Arc::new(StubSpool::new(Ok(Sequence(1))));
    Rig::over(spool, &http, &testing::ack(), false)
}

fn from(address: &str, mut request: Request<Body>) -> Request<Body> {
    let address: IpAddr = address.parse().unwrap();
    let peer = PeerAddr(SocketAddr::from((address, 9)));
    request.extensions_mut().insert(peer);
    request
}

fn with(name: &'static str, value: &str, mut request: Request<Body>) -> Request<Body> {
    request.headers_mut().insert(name, value.parse().unwrap());
    request
}

fn wrong(request: Request<Body>) -> Request<Body> {
    with("authorization", WRONG, request)
}

#[track_caller]
fn is_limited(answer: &Answer, seconds: &str) {
    answer.is_problem(429, "rate-limited");
    assert_eq!(answer.headers["retry-after"], seconds);
}

#[tokio::test]
async fn a_source_over_its_rate_is_told_when_to_come_back_and_others_are_served() {
    let rig = rig(|http| {
        http.rates = Rates {
            source_per_sec: 1,
            source_burst: 3,
            ..Rates::default()
        };
    });
    for _ in 0..3 {
        assert_eq!(
            rig.ask(post("/webhooks/plain", event("p"))).await.status,
            200
        );
    }
    is_limited(&rig.ask(post("/webhooks/plain", event("p"))).await, "1");
    // Now it is known, so the body isn't looked at any more.
    let endless = Body::from_stream(futures_util::stream::pending::<
        Result<axum::body::Bytes, std::io::Error>,
    >());
    is_limited(&rig.ask(post("/webhooks/plain", endless)).await, "1");
    assert_eq!(
        rig.ask(post("/webhooks/strict", event("p"))).await.status,
        200
    );
    assert_eq!(rig.books.total(Tally::Limited), 2);
    let again = test_kit::wait_for("room again", testing::SOON, async || {
        match rig
            .ask(post("/webhooks/plain", event("p")))
            .await
            .status
            .as_u16()
        {
            200 => Ok(()),
            status => Err(status.to_string()),
        }
    });
    again.await.unwrap();
}

#[tokio::test]
async fn nobody_without_a_credential_can_use_a_sources_rate_up() {
    let rig = rig(|http| {
        http.rates.source_per_sec = 1;
        http.rates.source_burst = 1;
        http.failed_auth.client_per_sec = 0;
        http.failed_auth.source_per_sec = 0;
    });
    for _ in 0..50 {
        let answer = rig.ask(wrong(post("/webhooks/plain", event("p")))).await;
        answer.is_problem(401, "unauthorized");
    }
    assert_eq!(
        rig.ask(post("/webhooks/plain", event("p"))).await.status,
        200
    );
}

#[tokio::test]
async fn a_source_may_have_a_rate_of_its_own() {
    let mut sources = testing::source_configs();
    sources[0].rate_per_sec = Some(1);
    sources[0].rate_burst = Some(1);
    let rig = Rig::of_sources(&sources, &testing::http());
    assert_eq!(
        rig.ask(post("/webhooks/plain", event("p"))).await.status,
        200
    );
    is_limited(&rig.ask(post("/webhooks/plain", event("p"))).await, "1");
    for _ in 0..10 {
        assert_eq!(
            rig.ask(post("/webhooks/strict", event("p"))).await.status,
            200
        );
    }
}

#[tokio::test]
async fn sources_that_do_not_exist_share_one_rate() {
    let rig = rig(|http| {
        http.rates.source_per_sec = 1;
        http.rates.source_burst = 2;
    });
    for path in ["/webhooks/absent-1", "/webhooks/absent-2"] {
        rig.ask(post(path, "{}")).await.is_problem(404, "not-found");
    }
    is_limited(&rig.ask(post("/webhooks/absent-3", "{}")).await, "1");
    // Nor does any other path get past it.
    is_limited(&rig.ask(post("/favicon.ico", "")).await, "1");
    assert_eq!(
        rig.ask(post("/webhooks/plain", event("p"))).await.status,
        200
    );
}

#[tokio::test]
async fn a_client_address_over_its_rate_is_refused_whatever_it_sends() {
    let rig = rig(|http| {
        http.rates.client_per_sec = 1;
        http.rates.client_burst = 2;
    });
    for path in ["/webhooks/plain", "/webhooks/strict"] {
        let answer = rig.ask(from("198.51.100.1", post(path, event("p")))).await;
        assert_eq!(answer.status, 200);
    }
    for path in ["/webhooks/plain", "/webhooks/absent", "/"] {
        is_limited(
            &rig.ask(from("198.51.100.1", post(path, event("p")))).await,
            "1",
        );
    }
    assert_eq!(rig.books.total(Tally::ClientLimited), 3);
    let other = from("198.51.100.2", post("/webhooks/plain", event("p")));
    assert_eq!(rig.ask(other).await.status, 200);
}

#[tokio::test]
async fn behind_a_trusted_proxy_the_client_is_whom_it_speaks_for() {
    let mut sources = testing::source_configs();
    sources[0].allow_from = vec!["198.51.100.0/24".parse().unwrap()];
    let mut http = testing::http();
    http.trusted_proxies = vec!["10.0.0.0/8".parse().unwrap()];
    http.rates.client_per_sec = 1;
    http.rates.client_burst = 1;
    let rig = Rig::of_sources(&sources, &http);
    let ask = async |peer: &str, said: Option<&str>| {
        let mut request = from(peer, post("/webhooks/plain", event("p")));
        if let Some(said) = said {
            request = with("x-forwarded-for", said, request);
        }
        rig.ask(request).await.status.as_u16()
    };
    assert_eq!(ask("10.0.0.1", Some("198.51.100.7")).await, 200);
    // Counted by the client, not by the proxy.
    assert_eq!(ask("10.0.0.1", Some("198.51.100.7")).await, 429);
    assert_eq!(ask("10.0.0.1", Some("198.51.100.8, 10.2.3.4")).await, 200);
    // On no allow-list: another client, one who only claims it, and nobody.
    assert_eq!(
        ask("10.0.0.1", Some("198.51.100.9, 203.0.113.1")).await,
        401
    );
    assert_eq!(ask("203.0.113.2", Some("198.51.100.9")).await, 401);
    assert_eq!(ask("10.0.0.3", Some("rubbish")).await, 401);
    assert_eq!(ask("10.0.0.4", None).await, 401);
    let refused = Tally::Refused(RefusalCause::AddressNotAllowed);
    assert_eq!(rig.books.total(refused), 4);
}

fn strict_about_failures(http: &mut Http) {
    http.failed_auth = FailedAuth {
        client_per_sec: 1,
        client_burst: 2,
        source_per_sec: 0,
        delay: service_kit::config::Duration::from_millis(300),
        delayed_max: 1,
        ..FailedAuth::default()
    };
}

#[tokio::test(start_paused = true)]
async fn failures_are_slowed_and_over_a_number_turned_away_and_successes_never() {
    let rig = rig(strict_about_failures);
    let failing = || from("198.51.100.1", wrong(post("/webhooks/plain", event("p"))));
    for _ in 0..2 {
        rig.ask(failing()).await.is_problem(401, "unauthorized");
    }
    let began = Instant::now();
    let mut slowed = Box::pin(rig.ask(failing()));
    assert!(slowed.as_mut().now_or_never().is_none());
    let over = rig.ask(failing()).await;
    over.is_problem(429, "too-many-failures");
    assert_eq!(over.headers["retry-after"], "1");
    // The same address with the right key, and others without it.
    for _ in 0..20 {
        let right = from("198.51.100.1", post("/webhooks/plain", event("p")));
        assert_eq!(rig.ask(right).await.status, 200);
    }
    let other = from("198.51.100.2", wrong(post("/webhooks/plain", event("p"))));
    rig.ask(other).await.is_problem(401, "unauthorized");
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody else waited");
    slowed.await.is_problem(401, "unauthorized");
    assert!(began.elapsed() >= Duration::from_millis(300));
    let refused = Tally::Refused(RefusalCause::WrongCredential);
    assert_eq!(
        rig.books.total(refused),
        5,
        "each counts, however it was answered"
    );
}

#[tokio::test]
async fn an_answer_that_is_held_back_holds_no_place_and_is_counted_if_nobody_waits_for_it() {
    let rig = rig(|http| {
        strict_about_failures(http);
        http.requests_in_flight_max = 1;
    });
    let failing = || wrong(post("/webhooks/plain", event("p")));
    for _ in 0..2 {
        rig.ask(failing()).await.is_problem(401, "unauthorized");
    }
    let mut slowed = Box::pin(rig.ask(failing()));
    assert!(slowed.as_mut().now_or_never().is_none());
    assert_eq!(
        rig.ask(post("/webhooks/plain", event("p"))).await.status,
        200
    );
    drop(slowed);
    let refused = Tally::Refused(RefusalCause::WrongCredential);
    assert_eq!(
        (rig.books.total(refused), rig.books.total(Tally::Abandoned)),
        (3, 0)
    );
}
