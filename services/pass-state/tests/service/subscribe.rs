//! What a subscriber meets.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_domain::kind::Kind;
use pass_proto::convert::time_to_wire;
use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_store::PassStore as _;
use prost_types::FieldMask;
use service_kit::config::{ByteSize, Duration as Span};
use service_kit::shutdown::Phase;
use tokio::sync::Semaphore;
use tonic::Code;

use crate::faulty::Faulty;
use crate::harness::*;
use crate::make::*;

#[tokio::test]
async fn the_log_is_told_in_order_first_what_was_and_then_what_comes() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..3)).await;
    let mut subscriber = server.subscribe(from_beginning()).await.unwrap();
    let started = subscriber.started().await;
    let log = server.log().await;
    assert_eq!(started.epoch, log.epoch);
    assert_eq!(started.head_cursor, log.head_cursor);
    assert_eq!(started.oldest_cursor, log.oldest_cursor);
    assert_eq!(started.start_cursor, log.oldest_cursor);
    assert_eq!(subscriber.passes(3).await, ["pass-0", "pass-1", "pass-2"]);
    let caught_up = subscriber
        .until("CaughtUp", |frame| matches!(frame, Frame::CaughtUp(_)))
        .await;
    let Frame::CaughtUp(caught_up) = caught_up else {
        unreachable!()
    };
    assert_eq!(caught_up.cursor, log.head_cursor);
    assert_eq!(caught_up.server_time, Some(time_to_wire(at(2_000))));
    gateway.deliver(installs(3..5)).await;
    assert_eq!(subscriber.passes(2).await, ["pass-3", "pass-4"]);
    assert_eq!(subscriber.cursor, server.log().await.head_cursor);
    server.stop().await;
}

#[tokio::test]
async fn resuming_from_any_cursor_misses_nothing_and_repeats_nothing() {
    let server = Server::with(|config| config.subscriptions.page_events = 16).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..100)).await;
    let mut cursor = String::new();
    let mut seen = Vec::new();
    while seen.len() < 100 {
        let start = if cursor.is_empty() {
            from_beginning()
        } else {
            after(&cursor)
        };
        let wish = v1::SubscribeRequest {
            batch_size: 7,
            ..start
        };
        let mut subscriber = server.subscribe(wish).await.unwrap();
        let events = subscriber.events(1).await;
        assert!(events.len() <= 7);
        // From a frame's cursor and from an event's own alike.
        cursor = if seen.len() % 2 == 0 {
            subscriber.cursor.clone()
        } else {
            events.last().unwrap().cursor.clone()
        };
        seen.extend(events.into_iter().map(|event| event.pass));
    }
    let expected: Vec<String> = (0..100)
        .map(|n| format!("sources/acme/passes/pass-{n}"))
        .collect();
    assert_eq!(seen, expected);
    server.stop().await;
}

#[tokio::test]
async fn from_end_and_from_time_start_where_they_say() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..2)).await;
    server.clock.advance(Duration::from_secs(100));
    gateway.deliver(installs(2..4)).await;
    let mut live = server.subscribe(from_end()).await.unwrap();
    assert_eq!(
        live.started().await.start_cursor,
        server.log().await.head_cursor
    );
    let since = v1::SubscribeRequest {
        start: Some(Start::FromTime(time_to_wire(at(2_050)))),
        ..v1::SubscribeRequest::default()
    };
    let mut since = server.subscribe(since).await.unwrap();
    assert_eq!(since.passes(2).await, ["pass-2", "pass-3"]);
    gateway.deliver(installs(4..5)).await;
    assert_eq!(live.passes(1).await, ["pass-4"]);
    assert_eq!(since.passes(1).await, ["pass-4"]);
    server.stop().await;
}

#[tokio::test]
async fn filters_and_masks_are_those_of_lists() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut deliveries = installs(0..5);
    deliveries.push(delivery(6, "pass-3", Kind::Uninstalled, 50));
    gateway.deliver(deliveries).await;
    let wish = v1::SubscribeRequest {
        filter: "kind = UNINSTALLED AND effect.changed = true".into(),
        read_mask: Some(FieldMask {
            paths: vec!["pass".into(), "effect.state_after".into()],
        }),
        stop_at_head: true,
        ..from_beginning()
    };
    let mut subscriber = server.subscribe(wish).await.unwrap();
    let events = subscriber.events(1).await;
    let expected = v1::PassEvent {
        pass: "sources/acme/passes/pass-3".into(),
        effect: Some(v1::EventEffect {
            state_after: v1::PassState::Uninstalled as i32,
            ..v1::EventEffect::default()
        }),
        ..v1::PassEvent::default()
    };
    assert_eq!(events, [expected]);
    server.stop().await;
}

#[tokio::test]
async fn stop_at_head_ends_with_ok_at_the_end_as_it_was() {
    let server = Server::start().await;
    let wish = || v1::SubscribeRequest {
        stop_at_head: true,
        ..from_beginning()
    };
    let (frames, status) = server.subscribe(wish()).await.unwrap().rest().await;
    assert!(status.is_none() && frames.len() == 2, "{frames:?}");
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..50)).await;
    let mut subscriber = server.subscribe(wish()).await.unwrap();
    let head = subscriber.started().await.head_cursor;
    gateway.deliver(installs(50..60)).await;
    let (frames, status) = subscriber.rest().await;
    assert!(status.is_none(), "{status:?}");
    let events: usize = frames
        .iter()
        .map(|frame| match frame {
            Frame::Events(events) => events.events.len(),
            _ => 0,
        })
        .sum();
    assert_eq!(events, 50);
    let Some(Frame::Closing(closing)) = frames.last() else {
        panic!("{frames:?}");
    };
    assert_eq!(closing.reason(), v1::ClosingReason::HeadReached);
    assert_eq!(closing.cursor, head);
    server.stop().await;
}

#[tokio::test]
async fn stop_at_head_passes_over_what_a_page_has_beyond_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..5)).await;
    store.page_gate.forget_permits(Semaphore::MAX_PERMITS);
    let wish = v1::SubscribeRequest {
        stop_at_head: true,
        ..from_beginning()
    };
    let mut subscriber = server.subscribe(wish).await.unwrap();
    let head = subscriber.started().await.head_cursor;
    gateway.deliver(installs(5..9)).await;
    store.page_gate.add_permits(1_000);
    let (frames, status) = subscriber.rest().await;
    assert!(status.is_none(), "{status:?}");
    let [Frame::Events(events), Frame::Closing(closing)] = &frames[..] else {
        panic!("{frames:?}");
    };
    assert_eq!(events.events.len(), 5);
    assert_eq!(events.cursor, head);
    assert_eq!(closing.cursor, head);
    server.stop().await;
}

#[tokio::test]
async fn bookmarks_tell_of_progress_when_idle_and_when_everything_is_filtered_out() {
    let server = Server::with(|config| {
        config.subscriptions.bookmark_events = 1_000;
        config.subscriptions.page_events = 256;
    })
    .await;
    let mut gateway = Gateway::connect(&server, 1).await;
    for batch in 0..4 {
        gateway
            .deliver(installs(batch * 600..batch * 600 + 600))
            .await;
    }
    let wish = v1::SubscribeRequest {
        filter: "kind = DELETED".into(),
        bookmark_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..from_beginning()
    };
    let mut subscriber = server.subscribe(wish).await.unwrap();
    subscriber.started().await;
    let mut scanned = Vec::new();
    loop {
        match subscriber.frame().await.unwrap().unwrap() {
            Frame::Bookmark(bookmark) => {
                let cursor: Cursor = bookmark.cursor.parse().unwrap();
                scanned.push(cursor.position.0);
            }
            Frame::CaughtUp(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(scanned.len() >= 2 && scanned.is_sorted(), "{scanned:?}");
    // Live, but nothing is wanted: the place still moves.
    gateway.deliver(installs(5_000..5_001)).await;
    let head = server.log().await.head_cursor;
    let began = std::time::Instant::now();
    let frame = subscriber.frame().await.unwrap().unwrap();
    assert!(matches!(frame, Frame::Bookmark(_)), "{frame:?}");
    assert_eq!(subscriber.cursor, head);
    assert!(began.elapsed() < Duration::from_secs(5));
    // A bookmark is a place to resume from.
    let mut resumed = server.subscribe(after(&head)).await.unwrap();
    gateway.deliver(installs(6_000..6_001)).await;
    assert_eq!(resumed.passes(1).await, ["pass-6000"]);
    server.stop().await;
}

/// A subscriber that does not read, on a connection of its own whose buffers are soon full.
async fn deaf(server: &Server) -> Subscriber {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", server.addr));
    let endpoint = endpoint
        .unwrap()
        .initial_stream_window_size(65_535)
        .initial_connection_window_size(65_535);
    let channel = endpoint.connect().await.unwrap();
    let mut client = v1::subscription_service_client::SubscriptionServiceClient::new(channel);
    let stream = client.subscribe(from_end()).await.unwrap().into_inner();
    Subscriber::of(stream)
}

/// Installs with much to say.
fn bulky(range: std::ops::Range<u64>) -> Vec<pass_domain::delivery::Delivery> {
    let mut deliveries = installs(range);
    for delivery in &mut deliveries {
        if let pass_domain::delivery::Decoded::Facts(facts) = &mut delivery.decoded {
            for n in 0..8 {
                let text = "x".repeat(1_000);
                facts.facts[0].attributes.insert(format!("a{n}"), text);
            }
        }
    }
    deliveries
}

#[tokio::test]
async fn a_slow_subscriber_falls_behind_and_still_gets_everything_once() {
    let server = Server::with(|config| {
        config.subscriptions.ring_events_max = 64;
        config.subscriptions.frame_bytes_max = ByteSize::from_kib(32);
    })
    .await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut slow = deaf(&server).await;
    let mut quick = server.subscribe(from_end()).await.unwrap();
    let mut seen = Vec::new();
    for batch in 0..10 {
        gateway.deliver(bulky(batch * 50..batch * 50 + 50)).await;
        // The slow one holds up neither the writer nor the quick one.
        seen.extend(quick.passes(50).await);
    }
    let expected: Vec<String> = (0..500).map(|n| format!("pass-{n}")).collect();
    assert_eq!(seen, expected);

    let (mut seen, mut fell_behind) = (Vec::new(), 0);
    while seen.len() < 500 {
        match slow.frame().await.unwrap().unwrap() {
            Frame::Events(frame) => {
                let bytes = prost::Message::encoded_len(&frame);
                assert!(bytes <= 40 << 10, "a frame of {bytes} bytes");
                seen.extend(frame.events.into_iter().map(|event| event.pass));
            }
            Frame::FellBehind(_) => fell_behind += 1,
            Frame::Started(_) | Frame::CaughtUp(_) | Frame::Bookmark(_) => {}
            Frame::Closing(closing) => panic!("{closing:?}"),
        }
    }
    assert!(fell_behind >= 1);
    let expected: Vec<String> = expected
        .iter()
        .map(|pass| format!("sources/acme/passes/{pass}"))
        .collect();
    assert_eq!(seen, expected);
    let caught_up = |frame: &Frame| matches!(frame, Frame::CaughtUp(_));
    slow.until("CaughtUp", caught_up).await;
    server.stop().await;
}

#[tokio::test]
async fn a_subscriber_that_takes_nothing_is_cut_and_can_go_on() {
    let server = Server::with(|config| {
        config.subscriptions.stall_timeout = Span::from_millis(200);
        config.subscriptions.frame_bytes_max = ByteSize::from_kib(16);
        config.subscriptions.subscribers_max = 1;
    })
    .await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut stalled = deaf(&server).await;
    gateway.deliver(bulky(0..200)).await;
    // Its place is free again although it never read.
    eventually("a free place", || async {
        server.subscribe(from_end()).await.is_ok()
    })
    .await;
    let (frames, status) = stalled.rest().await;
    let status = status.unwrap();
    assert_eq!(reason(&status), Reason::SubscriberStalled);
    let mut seen: Vec<String> = Vec::new();
    for frame in frames {
        if let Frame::Events(frame) = frame {
            seen.extend(frame.events.into_iter().map(|event| event.pass));
        }
    }
    assert!(seen.len() < 200);
    let cursor = metadata(&status, "cursor");
    assert_eq!(cursor, stalled.cursor, "it names the last frame");
    let wish = v1::SubscribeRequest {
        stop_at_head: true,
        ..after(&cursor)
    };
    let mut resumed = None;
    eventually("a place", || async {
        server.subscribe(from_end()).await.is_ok()
    })
    .await;
    while resumed.is_none() {
        resumed = server.subscribe(wish.clone()).await.ok();
    }
    let rest = resumed.unwrap().events(200 - seen.len()).await;
    seen.extend(rest.into_iter().map(|event| event.pass));
    let expected: Vec<String> = (0..200)
        .map(|n| format!("sources/acme/passes/pass-{n}"))
        .collect();
    assert_eq!(seen, expected);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_ends_while_the_client_is_slow_promises_no_more_than_it_queued() {
    let server = Server::with(|config| {
        config.subscriptions.stream_age_max = Span::from_secs(1);
        config.subscriptions.frame_bytes_max = ByteSize::from_kib(16);
    })
    .await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut slow = deaf(&server).await;
    gateway.deliver(bulky(0..200)).await;
    // Its task is over: it has its place back, and only the queued frames are left.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let (frames, status) = slow.rest().await;
    let status = status.unwrap();
    assert_eq!(reason(&status), Reason::StreamRotated);
    let mut seen: Vec<String> = Vec::new();
    for frame in frames {
        if let Frame::Events(frame) = frame {
            seen.extend(frame.events.into_iter().map(|event| event.pass));
        }
    }
    assert!(seen.len() < 200, "the client was not slow enough to tell");
    let wish = v1::SubscribeRequest {
        stop_at_head: true,
        ..after(&metadata(&status, "cursor"))
    };
    let mut resumed = server.subscribe(wish).await.unwrap();
    for event in resumed.events(200 - seen.len()).await {
        seen.push(event.pass);
    }
    let expected = (0..200).map(|n| format!("sources/acme/passes/pass-{n}"));
    assert!(seen.into_iter().eq(expected));
    server.stop().await;
}

#[tokio::test]
async fn a_hundred_live_subscribers_cost_the_store_one_reader() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut subscribers = Vec::new();
    for _ in 0..100 {
        let mut subscriber = server.subscribe(from_end()).await.unwrap();
        let caught_up = |frame: &Frame| matches!(frame, Frame::CaughtUp(_));
        subscriber.until("CaughtUp", caught_up).await;
        subscribers.push(subscriber);
    }
    let before = store.pages.load(Ordering::SeqCst);
    for batch in 0..5 {
        gateway.deliver(installs(batch * 10..batch * 10 + 10)).await;
    }
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.passes(50).await.len(), 50);
    }
    let pages = store.pages.load(Ordering::SeqCst) - before;
    assert!(pages <= 5, "{pages} pages for 5 commits");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_at_its_age_closes_with_the_place_to_go_on_from() {
    let server = Server::with(|config| {
        config.subscriptions.stream_age_max = Span::from_secs(1);
    })
    .await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..3)).await;
    let mut subscriber = server.subscribe(from_beginning()).await.unwrap();
    let (frames, status) = subscriber.rest().await;
    let Some(Frame::Closing(closing)) = frames.last() else {
        panic!("{frames:?}");
    };
    assert_eq!(closing.reason(), v1::ClosingReason::Rotated);
    assert_eq!(closing.cursor, server.log().await.head_cursor);
    let status = status.unwrap();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), Reason::StreamRotated);
    assert_eq!(metadata(&status, "cursor"), closing.cursor);
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_service_closes_its_streams_with_their_place() {
    let server = Server::start().await;
    let mut subscriber = server.subscribe(from_end()).await.unwrap();
    subscriber.started().await;
    server.shutdown.advance(Phase::Stopping);
    let (frames, status) = subscriber.rest().await;
    let Some(Frame::Closing(closing)) = frames.last() else {
        panic!("{frames:?}");
    };
    assert_eq!(closing.reason(), v1::ClosingReason::Draining);
    let status = status.unwrap();
    assert_eq!(reason(&status), Reason::ServerDraining);
    assert_eq!(metadata(&status, "cursor"), closing.cursor);
    server.stop().await;
}

#[tokio::test]
async fn one_subscriber_too_many_is_told_the_limit() {
    let server = Server::with(|config| config.subscriptions.subscribers_max = 2).await;
    let one = server.subscribe(from_end()).await.unwrap();
    let _two = server.subscribe(from_end()).await.unwrap();
    let status = server.subscribe(from_end()).await.err().unwrap();
    assert_eq!(reason(&status), Reason::TooManySubscribers);
    assert_eq!(metadata(&status, "limit"), "2");
    drop(one);
    eventually("a free place", || async {
        server.subscribe(from_end()).await.is_ok()
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn cursors_that_are_no_place_in_this_log_get_errors_of_their_own() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..3)).await;
    let log = server.log().await;
    let head: Cursor = log.head_cursor.parse().unwrap();
    let refused = async |cursor: String| {
        let status = server.subscribe(after(&cursor)).await.err().unwrap();
        (reason(&status), status)
    };

    let (got, status) = refused("nonsense".into()).await;
    assert_eq!(got, Reason::CursorInvalid);
    assert_eq!(bad_fields(&status), ["after_cursor"]);

    let beyond = Cursor {
        position: pass_domain::event::Position(4),
        ..head
    };
    let (got, status) = refused(beyond.to_string()).await;
    assert_eq!(got, Reason::CursorAhead);
    assert_eq!(metadata(&status, "head_cursor"), log.head_cursor);

    let other_epoch = Cursor {
        epoch: head.epoch ^ 1,
        ..head
    };
    let other_event = Cursor {
        digest: head.digest ^ 1,
        ..head
    };
    for cursor in [other_epoch, other_event] {
        let (got, status) = refused(cursor.to_string()).await;
        assert_eq!(got, Reason::CursorEpochMismatch);
        assert_eq!(metadata(&status, "epoch"), log.epoch);
        assert_eq!(metadata(&status, "head_cursor"), log.head_cursor);
    }
    server.stop().await;
}

#[tokio::test]
async fn every_bad_field_of_a_request_is_named_at_once() {
    let server = Server::start().await;
    let refused =
        async |request: v1::SubscribeRequest| server.subscribe(request).await.err().unwrap();
    let bad = v1::SubscribeRequest {
        start: None,
        filter: "no_such_field = 1".into(),
        read_mask: Some(FieldMask {
            paths: vec!["nme".into()],
        }),
        batch_size: -1,
        bookmark_interval: Some(prost_types::Duration {
            seconds: 61,
            nanos: 0,
        }),
        stop_at_head: false,
    };
    let status = refused(bad).await;
    assert_eq!(reason(&status), Reason::FieldInvalid);
    assert_eq!(status.message().matches("filter").count(), 1, "{status:?}");
    assert_eq!(
        bad_fields(&status),
        [
            "batch_size",
            "bookmark_interval",
            "filter",
            "read_mask",
            "start"
        ]
    );
    let status = refused(v1::SubscribeRequest {
        start: Some(Start::FromBeginning(false)),
        ..v1::SubscribeRequest::default()
    })
    .await;
    assert_eq!(bad_fields(&status), ["from_beginning"]);
    let status = refused(v1::SubscribeRequest {
        filter: "kind = NOPE".into(),
        ..from_end()
    })
    .await;
    assert_eq!(reason(&status), Reason::FilterInvalid);
    assert_eq!(metadata(&status, "column"), "8");
    assert_eq!(bad_fields(&status), ["filter"]);
    assert_eq!(reason(&refused(after("")).await), Reason::FieldInvalid);
    server.stop().await;
}

#[tokio::test]
async fn a_database_put_back_in_time_ends_open_streams_and_refuses_old_cursors() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..3)).await;
    let mut subscriber = server.subscribe(from_beginning()).await.unwrap();
    subscriber.passes(3).await;
    let old = subscriber.cursor.clone();
    drop(gateway);
    // The gateway remembers more than the database has.
    let ahead = v1::IngestHello {
        settled_sequence: 10,
        oldest_sequence: 1,
        ..hello(1)
    };
    let gateway = Gateway::with(&server.channel, ahead).await;
    let (_, status) = subscriber.rest().await;
    assert_eq!(reason(&status.unwrap()), Reason::CursorEpochMismatch);
    let log = server.log().await;
    assert_eq!(gateway.ready.epoch, log.epoch);
    let status = server.subscribe(after(&old)).await.err().unwrap();
    assert_eq!(reason(&status), Reason::CursorEpochMismatch);
    let mut fresh = server.subscribe(from_beginning()).await.unwrap();
    assert_eq!(fresh.passes(3).await.len(), 3);
    server.stop().await;
}

#[tokio::test]
async fn commits_of_another_process_are_seen_by_polling() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut subscriber = server.subscribe(from_end()).await.unwrap();
    subscriber.started().await;
    let hello = pass_store::SpoolHello {
        spool: pass_store::SpoolId([9; 16]),
        gateway: "elsewhere".into(),
        settled_sequence: 0,
        oldest_sequence: 0,
        may_change_epoch: true,
    };
    let opened = store.spool_open(&hello).await.unwrap();
    let deliveries = installs(0..3).into_iter().zip(1..);
    let part = pass_store::AppendPart {
        spool: hello.spool,
        generation: opened.generation,
        deliveries: deliveries
            .map(|(delivery, sequence)| (sequence, std::sync::Arc::new(delivery)))
            .collect(),
    };
    store.append(&[part], at(2_000)).await.unwrap();
    assert_eq!(subscriber.passes(3).await.len(), 3);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_comes_and_goes_while_the_log_grows_sees_every_event_once_in_order() {
    let server = Server::with(|config| {
        // Small, so that every start finds itself somewhere else between store and ring.
        config.subscriptions.ring_events_max = 64;
        config.subscriptions.page_events = 16;
    })
    .await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let writing = async {
        for batch in 0..60 {
            gateway.deliver(installs(batch * 25..batch * 25 + 25)).await;
        }
    };
    let reading = async {
        let (mut seen, mut wish) = (Vec::new(), from_beginning());
        for round in 1.. {
            let mut subscriber = server.subscribe(wish).await.unwrap();
            let mut frames = 0;
            while seen.len() < 1_500 && frames < round % 7 + 1 {
                if let Some(Frame::Events(frame)) = subscriber.frame().await.unwrap() {
                    seen.extend(frame.events.into_iter().map(|event| event.pass));
                    frames += 1;
                }
            }
            if seen.len() >= 1_500 {
                return seen;
            }
            wish = v1::SubscribeRequest {
                batch_size: round % 11 + 1,
                ..after(&subscriber.cursor)
            };
        }
        unreachable!()
    };
    let both = Box::pin(async { tokio::join!(writing, reading) });
    let ((), seen) = soon("1,500 events", both).await;
    let expected = (0..1_500).map(|n| format!("sources/acme/passes/pass-{n}"));
    assert!(seen.into_iter().eq(expected));
    server.stop().await;
}
