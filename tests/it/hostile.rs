//! Hostile and broken senders: each gets the documented answer, leaves nothing behind, and costs an honest
//! sender nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use system_tests::callback::{Callback, standard};
use system_tests::client::{Caller, ClientLog, Outcome};
use system_tests::slow::{Ended, drip, exchange};
use system_tests::sources::STANDARD_KEY;
use system_tests::stand::{Options, Stand};

use crate::programs;

/// An honest sender's longest wait for an answer, in a debug build on a machine busy with other tests.
const HONEST_LIMIT: Duration = Duration::from_secs(3);

/// Sends one callback after the other until told to stop; returns how many, and the slowest answer.
fn honest_sender(
    address: std::net::SocketAddr,
    log: Arc<ClientLog>,
    stop: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<(usize, Duration)> {
    tokio::spawn(async move {
        let mut caller = Caller::new(address);
        let (mut sent, mut slowest) = (0, Duration::ZERO);
        while !stop.load(Ordering::Relaxed) {
            let callback = standard(
                "FETCHED",
                "honest",
                i64::try_from(sent).expect("small"),
                None,
            );
            let began = tokio::time::Instant::now();
            let outcome = caller.deliver(&callback, &log).await;
            assert!(
                matches!(outcome, Outcome::Stored(_)),
                "an honest callback got {outcome:?}"
            );
            slowest = slowest.max(began.elapsed());
            sent += 1;
            // A sender with something else to do in between; a busy loop would be an attack of its own.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        (sent, slowest)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_senders_are_cut_off_in_time_while_an_honest_one_is_served() {
    const LIMIT: Duration = Duration::from_secs(10);
    let mut stand = Stand::new(
        &programs(),
        &Options {
            http_limit_keys: "header_read_timeout = \"1s\"\nkeep_alive_idle = \"1s\"\n\
                              body = { total = \"3s\", rate_grace = \"500ms\", bytes_per_sec_min = \"1KiB\" }"
                .to_owned(),
            ..Options::default()
        },
    )
    .unwrap();
    stand.start_gateway().await.unwrap();
    let address = stand.http();
    let stop = Arc::new(AtomicBool::new(false));
    let honest = honest_sender(address, Arc::clone(&stand.log), Arc::clone(&stop));

    let head = format!(
        "POST /webhooks/standard HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: {STANDARD_KEY}\r\n"
    );
    let body = format!("{head}content-length: 10000\r\n\r\n{{");
    let stalled = format!("{head}content-length: 500\r\n\r\n{{\"kind\":");
    // Who it is, what it sends at once, what it drips, and what it must be told before the end, if anything.
    let kinds: [(&str, String, &str, Option<u16>); 5] = [
        ("silent", String::new(), "", None),
        ("silent after half a head", head.clone(), "", None),
        ("dripping headers", head.clone(), "x-a: b\r\n", None),
        ("dripping a body", body, "x", Some(408)),
        ("silent in the body", stalled, "", Some(408)),
    ];
    let mut senders = Vec::new();
    for (who, start, more, told) in &kinds {
        for _ in 0..20 {
            let (start, more) = (start.clone(), (*more).to_owned());
            let (who, told) = (*who, *told);
            senders.push(tokio::spawn(async move {
                let ended = drip(
                    address,
                    start.as_bytes(),
                    more.as_bytes(),
                    Duration::from_millis(100),
                    LIMIT,
                )
                .await;
                (who, told, ended)
            }));
        }
    }
    for sender in senders {
        let (who, told, ended) = sender.await.unwrap();
        let ended: Ended = ended.unwrap_or_else(|error| panic!("{who}: {error:#}"));
        assert!(
            ended.after < Duration::from_secs(8),
            "{who}: closed only after {:?}",
            ended.after
        );
        if let Some(status) = told {
            assert_eq!(ended.status(), Some(status), "{who}: {ended:?}");
        } else {
            assert!(
                ended
                    .status()
                    .is_none_or(|status| status == 408 || status == 431),
                "{who}: {ended:?}"
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, slowest) = honest.await.unwrap();
    assert!(sent >= 20, "the honest sender got only {sent} answers");
    assert!(
        slowest < HONEST_LIMIT,
        "the honest sender waited {slowest:?}"
    );
    stand.take_gateway().end().await.unwrap();
}

/// A request that is refused, as bytes on the wire, and the statuses that may be the answer. No status means
/// that closing without one is fine, too.
type Refused = (&'static str, Vec<u8>, Vec<Option<u16>>);

fn refused_requests() -> Vec<Refused> {
    let request = |head: &str, body: &[u8]| {
        let mut bytes =
            format!("POST /webhooks/standard HTTP/1.1\r\nhost: x\r\n{head}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    };
    let key = format!("authorization: {STANDARD_KEY}\r\n");
    let json = format!("{key}content-type: application/json\r\n");
    let large = vec![b' '; 70_000];
    let mut chunked = Vec::new();
    for chunk in large.chunks(7_000) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        chunked.extend_from_slice(chunk);
        chunked.extend_from_slice(b"\r\n");
    }
    let many_headers: String = (0..100).map(|index| format!("x-{index}: y\r\n")).collect();
    let unclear = vec![Some(400), Some(431), None];
    vec![
        (
            "too large by its own word",
            request(&format!("{json}content-length: 70000\r\n"), &large),
            vec![Some(413)],
        ),
        (
            "too large in chunks",
            request(&format!("{json}transfer-encoding: chunked\r\n"), &chunked),
            vec![Some(413)],
        ),
        (
            "absurdly large by its own word",
            request(&format!("{json}content-length: 99999999999999\r\n"), b"{"),
            vec![Some(413)],
        ),
        (
            "compressed",
            request(
                &format!("{json}content-encoding: gzip\r\ncontent-length: 2\r\n"),
                b"\x1f\x8b",
            ),
            vec![Some(415)],
        ),
        (
            "a form",
            request(
                &format!("{key}content-type: multipart/form-data\r\ncontent-length: 2\r\n"),
                b"{}",
            ),
            vec![Some(415)],
        ),
        (
            "without a key",
            request("content-length: 2\r\n", b"{}"),
            vec![Some(401)],
        ),
        (
            "with a wrong key",
            request(
                "authorization: marker-key-standard-e90d45\r\ncontent-length: 2\r\n",
                b"{}",
            ),
            vec![Some(401)],
        ),
        (
            "with two keys",
            request(&format!("{key}{key}content-length: 2\r\n"), b"{}"),
            vec![Some(401)],
        ),
        (
            "with a negative length",
            request(&format!("{json}content-length: -1\r\n"), b"{}"),
            unclear.clone(),
        ),
        (
            "with two lengths",
            request(
                &format!("{json}content-length: 2\r\ncontent-length: 3\r\n"),
                b"{}",
            ),
            unclear.clone(),
        ),
        (
            "with a huge header",
            request(
                &format!(
                    "{json}x-big: {}\r\ncontent-length: 2\r\n",
                    "a".repeat(40_000)
                ),
                b"{}",
            ),
            unclear.clone(),
        ),
        (
            "with many headers",
            request(&format!("{json}{many_headers}content-length: 2\r\n"), b"{}"),
            unclear.clone(),
        ),
        (
            "not HTTP",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello hello hello\r\n\r\n".to_vec(),
            unclear.clone(),
        ),
        (
            "HTTP/2 without a word",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
            vec![Some(400), Some(404), Some(405), Some(505), None],
        ),
        (
            "to nobody",
            b"POST /webhooks/nobody HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
            vec![Some(404)],
        ),
        (
            "to nowhere",
            b"POST /../../etc/passwd HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}".to_vec(),
            vec![Some(404)],
        ),
        (
            "by GET",
            b"GET /webhooks/standard HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            vec![Some(405)],
        ),
        (
            "by DELETE",
            b"DELETE /webhooks/standard HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
            vec![Some(405)],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_requests_get_their_answers_and_leave_nothing_behind() {
    let stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    let address = stand.http();
    let stop = Arc::new(AtomicBool::new(false));
    let honest = honest_sender(address, Arc::clone(&stand.log), Arc::clone(&stop));

    for (what, request, statuses) in refused_requests() {
        let ended = exchange(address, &request, Duration::from_secs(10))
            .await
            .unwrap();
        assert!(statuses.contains(&ended.status()), "{what}: {ended:?}");
        if ended.status() == Some(405) {
            assert!(
                ended.answer.to_ascii_lowercase().contains("allow: post"),
                "{what}: {ended:?}"
            );
        }
    }

    // Authentic but not understood: kept, with 200.
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let wide = format!(r#"{{"kind":"CREATED","pass":"{}"}}"#, "p".repeat(5000));
    for body in [
        "",
        "not json",
        "{",
        "[]",
        "\u{0}",
        "\"\\ud800\"",
        r#"{"kind":"CREATED","pass":"a\u0000b"}"#,
        r#"{"kind":"CREATED","pass":1e400}"#,
        r#"{"kind":"CREATED","pass":"p","occur_time":"+294277-01-01T00:00:00Z"}"#,
        &deep,
        &wide,
    ] {
        let callback = Callback::raw("standard", Bytes::copy_from_slice(body.as_bytes()));
        let shown: String = body.chars().take(60).collect();
        match Caller::new(address).deliver(&callback, &stand.log).await {
            Outcome::Stored(receipt) => assert_eq!(receipt.status, "quarantined", "{shown:?}"),
            outcome => panic!("{shown:?}: {outcome:?}"),
        }
    }
    let invalid_utf8 = Callback::raw("standard", Bytes::from_static(b"{\"kind\":\"\xff\xfe\"}"));
    let outcome = Caller::new(address)
        .deliver(&invalid_utf8, &stand.log)
        .await;
    assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");

    stop.store(true, Ordering::Relaxed);
    let (sent, slowest) = honest.await.unwrap();
    assert!(
        sent > 0 && slowest < HONEST_LIMIT,
        "the honest sender waited {slowest:?}"
    );
    // Whatever was refused would be a phantom here.
    let verdict = stand.verdict(Duration::from_secs(30)).await.unwrap();
    verdict.assert_clean();
    assert_eq!(verdict.deliveries, verdict.stored);
    stand.finish().await.unwrap();
}
