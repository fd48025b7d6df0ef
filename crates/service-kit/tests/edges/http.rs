use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration as StdDuration, Instant};

use axum::Router;
use axum::extract::{Extension, Request};
use axum::http::StatusCode;
use axum::routing::{get, post};
use service_kit::config::{ByteSize, Duration};
use service_kit::listener::{
    BodyError, BodyTimeouts, HttpLimits, HttpListener, PeerAddr, read_body,
};
use service_kit::shutdown::{Phase, Shutdown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{PATIENCE, soon};

struct Edge {
    addr: SocketAddr,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
    /// Requests to `/slow` that have arrived.
    arrived: Arc<Semaphore>,
    /// Lets as many requests to `/slow` finish as it has permits.
    gate: Arc<Semaphore>,
}

fn short() -> HttpLimits {
    HttpLimits {
        header_read_timeout: Duration::from_millis(300),
        keep_alive_idle: Duration::from_millis(900),
        body: BodyTimeouts {
            total: Duration::from_secs(5),
            rate_grace: Duration::from_millis(300),
            bytes_per_sec_min: ByteSize::from_bytes(50),
        },
        ..HttpLimits::default()
    }
}

async fn start(limits: HttpLimits) -> Edge {
    let shutdown = Shutdown::new();
    let arrived = Arc::new(Semaphore::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let timeouts = limits.body;
    let echo =
        async move |request: Request| match read_body(request.into_body(), 1024, timeouts).await {
            Ok(body) => (StatusCode::OK, body),
            Err(BodyError::TooLarge { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, "large".into()),
            Err(BodyError::TooSlow { .. }) => (StatusCode::REQUEST_TIMEOUT, "slow".into()),
            Err(BodyError::Broken { .. }) => (StatusCode::BAD_REQUEST, "broken".into()),
        };
    let slow = {
        let (arrived, gate) = (Arc::clone(&arrived), Arc::clone(&gate));
        async move || {
            arrived.add_permits(1);
            gate.acquire().await.unwrap().forget();
            "done"
        }
    };
    let router = Router::new()
        .route("/echo", post(echo))
        .route("/slow", get(slow))
        .route("/panic", get(async || -> &str { panic!("on purpose") }))
        .route(
            "/peer",
            get(async |Extension(PeerAddr(peer)): Extension<PeerAddr>| peer.to_string()),
        );
    let listener = HttpListener::bind(([127, 0, 0, 1], 0).into(), limits)
        .await
        .unwrap();
    Edge {
        addr: listener.local_addr(),
        serving: tokio::spawn(listener.serve(router, shutdown.clone())),
        shutdown,
        arrived,
        gate,
    }
}

impl Edge {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    async fn slow_request(&self) -> TcpStream {
        let mut stream = self.connect().await;
        send(&mut stream, "GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await;
        soon("arrival", self.arrived.acquire())
            .await
            .unwrap()
            .forget();
        stream
    }
}

async fn send(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

/// Reads until the peer closes; a reset counts as closed.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = soon("close", stream.read_to_end(&mut bytes)).await;
    String::from_utf8(bytes).unwrap()
}

/// Reads one answer whose body ends with `end`.
async fn until_text(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut bytes = [0; 1024];
        let count = soon("answer", stream.read(&mut bytes)).await.unwrap();
        assert_ne!(count, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    text
}

const PEER: &str = "GET /peer HTTP/1.1\r\nhost: x\r\n\r\n";

async fn ask_peer(stream: &mut TcpStream) -> String {
    let own = stream.local_addr().unwrap().to_string();
    send(stream, PEER).await;
    until_text(stream, &own).await
}

#[tokio::test]
async fn requests_carry_the_peers_address() {
    let edge = start(short()).await;
    let answer = ask_peer(&mut edge.connect().await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("content-length:"), "{answer}");
}

#[tokio::test]
async fn a_panic_costs_one_answer_and_not_the_connection() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    send(&mut stream, "GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let answer = until_text(&mut stream, "internal error").await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    ask_peer(&mut stream).await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    let own = stream.local_addr().unwrap().to_string();
    let echo = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\n\r\nabc";
    send(&mut stream, &format!("{echo}{PEER}")).await;
    let answers = until_text(&mut stream, &own).await;
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 2, "{answers}");
    assert!(answers.contains("abc"), "{answers}");
}

#[tokio::test]
async fn a_silent_connection_is_closed() {
    let edge = start(short()).await;
    let began = Instant::now();
    assert_eq!(until_closed(&mut edge.connect().await).await, "");
    assert!(began.elapsed() >= StdDuration::from_millis(250));
}

#[tokio::test]
async fn a_dripped_head_is_cut_off_though_bytes_keep_coming() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    let began = Instant::now();
    let drip = async {
        send(&mut stream, "GET /peer HTTP/1.1\r\n").await;
        loop {
            // A write fails some time after the peer has closed.
            if stream.write_all(b"a: b\r\n").await.is_err() {
                return;
            }
            tokio::time::sleep(StdDuration::from_millis(20)).await;
        }
    };
    soon("close", drip).await;
    assert!(began.elapsed() >= StdDuration::from_millis(250));
    assert!(began.elapsed() < PATIENCE / 2);
}

#[tokio::test]
async fn a_dripped_body_is_answered_as_too_slow() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    send(
        &mut stream,
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n",
    )
    .await;
    let (mut read, mut write) = stream.into_split();
    let drip = tokio::spawn(async move {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(StdDuration::from_millis(50)).await;
        }
    });
    let mut bytes = vec![0; 1024];
    let count = soon("answer", read.read(&mut bytes)).await.unwrap();
    let answer = String::from_utf8_lossy(&bytes[..count]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    drop(read);
    drip.abort();
}

#[tokio::test]
async fn a_slow_but_honest_sender_is_served() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    send(
        &mut stream,
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n",
    )
    .await;
    // 100 bytes in a second: twice the least rate, and three times as long as
    // the grace alone would allow.
    for _ in 0..10 {
        tokio::time::sleep(StdDuration::from_millis(100)).await;
        send(&mut stream, "0123456789").await;
    }
    let answer = until_text(&mut stream, "0123456789").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_refused_unread() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    send(
        &mut stream,
        "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 1025\r\n\r\n",
    )
    .await;
    let answer = until_closed(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test]
async fn oversized_heads_are_refused() {
    let edge = start(short()).await;
    let large = format!(
        "GET /peer HTTP/1.1\r\nhost: x\r\na: {}",
        "x".repeat(17 << 10)
    );
    let many = format!(
        "GET /peer HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(64)
    );
    for head in [large, many] {
        let mut stream = edge.connect().await;
        send(&mut stream, &head).await;
        let answer = until_closed(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }
    let most = format!(
        "GET /peer HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(63)
    );
    let mut stream = edge.connect().await;
    let own = stream.local_addr().unwrap().to_string();
    send(&mut stream, &most).await;
    assert!(
        until_text(&mut stream, &own)
            .await
            .starts_with("HTTP/1.1 200")
    );
}

#[tokio::test]
async fn an_idle_connection_outlives_the_head_timeout_and_closes_at_its_own() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    ask_peer(&mut stream).await;
    // Longer than the time for a head, shorter than that for idleness.
    tokio::time::sleep(StdDuration::from_millis(500)).await;
    ask_peer(&mut stream).await;
    let began = Instant::now();
    assert_eq!(until_closed(&mut stream).await, "");
    assert!(began.elapsed() >= StdDuration::from_millis(800));
}

#[tokio::test]
async fn half_a_head_after_an_answer_gets_only_the_head_timeout() {
    let edge = start(HttpLimits {
        keep_alive_idle: Duration::from_mins(5),
        ..short()
    })
    .await;
    let mut stream = edge.connect().await;
    ask_peer(&mut stream).await;
    send(&mut stream, "GET /pe").await;
    assert_eq!(until_closed(&mut stream).await, "");
}

#[tokio::test]
async fn a_request_being_served_has_no_deadline_here() {
    let edge = start(short()).await;
    let mut stream = edge.slow_request().await;
    // Longer than both timeouts of an idle connection.
    tokio::time::sleep(StdDuration::from_millis(1200)).await;
    edge.gate.add_permits(1);
    until_text(&mut stream, "done").await;
}

#[tokio::test]
async fn an_old_connection_closes_after_its_answer() {
    let edge = start(HttpLimits {
        connection_age_max: Duration::from_millis(300),
        ..short()
    })
    .await;
    let mut stream = edge.slow_request().await;
    tokio::time::sleep(StdDuration::from_millis(400)).await;
    edge.gate.add_permits(1);
    let answer = until_closed(&mut stream).await;
    assert!(answer.ends_with("done"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn an_old_connection_is_cut_after_its_grace() {
    let edge = start(HttpLimits {
        connection_age_max: Duration::from_millis(200),
        connection_grace: Duration::from_millis(200),
        ..short()
    })
    .await;
    let mut stream = edge.slow_request().await;
    assert_eq!(until_closed(&mut stream).await, "");
}

#[tokio::test]
async fn over_the_connection_limit_callers_wait_for_a_place() {
    let edge = start(HttpLimits {
        connections_max: 1,
        ..short()
    })
    .await;
    let mut first = edge.slow_request().await;
    let mut second = edge.connect().await;
    send(&mut second, PEER).await;
    let early = tokio::time::timeout(StdDuration::from_millis(200), second.readable()).await;
    assert!(early.is_err(), "served over the limit");
    edge.gate.add_permits(1);
    until_text(&mut first, "done").await;
    drop(first);
    let own = second.local_addr().unwrap().to_string();
    until_text(&mut second, &own).await;
}

#[tokio::test]
async fn at_the_connection_limit_idle_connections_make_room() {
    let edge = start(HttpLimits {
        connections_max: 3,
        header_read_timeout: Duration::from_secs(60),
        keep_alive_idle: Duration::from_mins(5),
        ..short()
    })
    .await;
    let mut busy = edge.slow_request().await;
    let _fresh = edge.connect().await;
    let mut idle = edge.connect().await;
    ask_peer(&mut idle).await;
    ask_peer(&mut edge.connect().await).await;
    assert_eq!(until_closed(&mut idle).await, "");
    edge.gate.add_permits(1);
    until_text(&mut busy, "done").await;
}

#[tokio::test]
async fn drain_accepts_at_first_then_finishes_what_is_in_flight() {
    let edge = start(short()).await;
    let mut in_flight = edge.slow_request().await;
    edge.shutdown.advance(Phase::Draining);
    ask_peer(&mut edge.connect().await).await;

    edge.shutdown.advance(Phase::Stopping);
    soon("refusal", async {
        while TcpStream::connect(edge.addr).await.is_ok() {
            tokio::time::sleep(StdDuration::from_millis(5)).await;
        }
    })
    .await;
    assert!(!edge.serving.is_finished());
    edge.gate.add_permits(1);
    let answer = until_closed(&mut in_flight).await;
    assert!(answer.ends_with("done"), "{answer}");
    soon("end", edge.serving).await.unwrap();
}

#[tokio::test]
async fn answers_of_a_draining_listener_are_the_last_on_their_connections() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    let before = ask_peer(&mut stream).await;
    assert!(!before.contains("connection: close"), "{before}");
    edge.shutdown.advance(Phase::Draining);
    for mut stream in [stream, edge.connect().await] {
        send(&mut stream, PEER).await;
        let last = until_closed(&mut stream).await;
        assert!(last.starts_with("HTTP/1.1 200"), "{last}");
        assert!(last.contains("connection: close"), "{last}");
    }
}

#[tokio::test]
async fn whoever_connected_before_stopping_gets_an_answer() {
    let shutdown = Shutdown::new();
    let router = Router::new().route("/peer", get(async || "here"));
    let listener = HttpListener::bind(([127, 0, 0, 1], 0).into(), short())
        .await
        .unwrap();
    let mut waiting = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(listener.local_addr()).await.unwrap();
        send(&mut stream, PEER).await;
        waiting.push(stream);
    }
    // Nobody was accepted so far.
    shutdown.advance(Phase::Stopping);
    let serving = tokio::spawn(listener.serve(router, shutdown));
    for mut stream in waiting {
        let answer = until_closed(&mut stream).await;
        assert!(answer.ends_with("here"), "{answer}");
    }
    soon("end", serving).await.unwrap();
}

/// A request may be on its way when the other side decides to close.
#[tokio::test]
async fn a_connection_that_was_in_use_just_now_is_not_closed_at_once_when_stopping_begins() {
    let limits = HttpLimits {
        keep_alive_idle: Duration::from_mins(5),
        header_read_timeout: Duration::from_secs(60),
        ..short()
    };
    for _ in 0..20 {
        let edge = start(limits.clone()).await;
        let began = Instant::now();
        let fresh = edge.connect().await;
        let mut used = edge.connect().await;
        ask_peer(&mut used).await;
        let mut silent = edge.connect().await;
        ask_peer(&mut silent).await;
        edge.shutdown.advance(Phase::Stopping);
        let mut asking = [fresh, used];
        for stream in &mut asking {
            let _ = stream.write_all(PEER.as_bytes()).await;
        }
        if began.elapsed() >= StdDuration::from_millis(400) {
            // "Just now" was too long ago on this machine: half a second is when silence ends a connection.
            continue;
        }
        for mut stream in asking {
            let last = until_closed(&mut stream).await;
            assert!(last.contains("connection: close"), "{last}");
        }
        assert_eq!(until_closed(&mut silent).await, "");
        soon("end", edge.serving).await.unwrap();
        return;
    }
    panic!("the machine was too slow every time");
}

/// More is on its way than the kernel holds when the answer is written: a reset would overtake it.
#[tokio::test]
async fn the_answer_to_a_body_that_nobody_reads_arrives() {
    let edge = start(short()).await;
    let mut stream = edge.connect().await;
    let head = "GET /peer HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for _ in 0..10 {
        stream.write_all(&[b'x'; 10_000]).await.unwrap();
        tokio::time::sleep(StdDuration::from_millis(1)).await;
    }
    let mut answer = String::new();
    soon("close", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn drain_cuts_what_does_not_finish_in_time() {
    let edge = start(HttpLimits {
        drain_timeout: Duration::from_millis(200),
        ..short()
    })
    .await;
    let mut in_flight = edge.slow_request().await;
    edge.shutdown.advance(Phase::Stopping);
    soon("end", edge.serving).await.unwrap();
    assert_eq!(until_closed(&mut in_flight).await, "");
}

#[tokio::test]
async fn abort_cuts_at_once() {
    let edge = start(short()).await;
    let mut in_flight = edge.slow_request().await;
    edge.shutdown.advance(Phase::Aborting);
    soon("end", edge.serving).await.unwrap();
    assert_eq!(until_closed(&mut in_flight).await, "");
}

#[tokio::test]
async fn dropping_the_server_cuts_its_connections() {
    let edge = start(short()).await;
    let mut in_flight = edge.slow_request().await;
    edge.serving.abort();
    assert_eq!(until_closed(&mut in_flight).await, "");
}
