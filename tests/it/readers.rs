//! Hostile and useless readers: each gets a typed error or is left alone, and costs the others nothing.

use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_domain::event::Position;
use pass_proto::status::reason_of;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::{self, ErrorReason as Reason};
use system_tests::callback::{standard, traffic};
use system_tests::client::Caller;
use system_tests::dice::Dice;
use system_tests::stand::{Options, Stand};
use tonic::Code;
use tonic::transport::Channel;

use crate::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_in_reads_gets_a_typed_error_while_a_subscriber_goes_on() {
    let stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    let mut caller = Caller::new(stand.http());
    for at in 0..5 {
        caller
            .deliver(&standard("FETCHED", "read-me", at, None), &stand.log)
            .await;
    }
    let reader = stand.reader();
    reader
        .wait_for_deliveries(5, Duration::from_secs(20))
        .await
        .unwrap();
    let mut honest = reader.subscribe(Start::FromEnd(true)).await.unwrap();
    honest.message().await.unwrap().expect("the first frame");

    let head: Cursor = reader.info().await.unwrap().head_cursor.parse().unwrap();
    let ahead = Cursor {
        position: Position(1_000_000),
        ..head
    };
    let other_event = Cursor {
        digest: head.digest ^ 1,
        ..head
    };
    let other_epoch = Cursor {
        epoch: head.epoch ^ 1,
        ..head
    };
    for (start, filter, code, reason) in [
        (
            Some(Start::AfterCursor("garbage".to_owned())),
            "",
            Code::InvalidArgument,
            Reason::CursorInvalid,
        ),
        (
            Some(Start::AfterCursor("A".repeat(100_000))),
            "",
            Code::InvalidArgument,
            Reason::CursorInvalid,
        ),
        (
            Some(Start::AfterCursor(ahead.to_string())),
            "",
            Code::FailedPrecondition,
            Reason::CursorAhead,
        ),
        (
            Some(Start::AfterCursor(other_event.to_string())),
            "",
            Code::FailedPrecondition,
            Reason::CursorEpochMismatch,
        ),
        (
            Some(Start::AfterCursor(other_epoch.to_string())),
            "",
            Code::FailedPrecondition,
            Reason::CursorEpochMismatch,
        ),
        (None, "", Code::InvalidArgument, Reason::FieldInvalid),
        (
            Some(Start::FromBeginning(false)),
            "",
            Code::InvalidArgument,
            Reason::FieldInvalid,
        ),
        (
            Some(Start::FromBeginning(true)),
            "kind = = INSTALLED",
            Code::InvalidArgument,
            Reason::FilterInvalid,
        ),
        (
            Some(Start::FromBeginning(true)),
            "no_such_field = 1",
            Code::InvalidArgument,
            Reason::FilterInvalid,
        ),
    ] {
        let shown = format!("{start:?} {filter:?}")
            .chars()
            .take(100)
            .collect::<String>();
        let request = v1::SubscribeRequest {
            start,
            filter: filter.to_owned(),
            stop_at_head: true,
            ..v1::SubscribeRequest::default()
        };
        let status = first_error(&reader.subscriptions, request).await;
        assert_eq!(
            (status.code(), reason_of(&status)),
            (code, Some(reason)),
            "{shown}: {status:?}"
        );
    }

    let list = |filter: String, page_token: String| v1::ListEventsRequest {
        parent: "sources/-/passes/-".to_owned(),
        page_size: 2,
        filter,
        page_token,
        ..v1::ListEventsRequest::default()
    };
    let first = reader
        .passes
        .clone()
        .list_events(list(String::new(), String::new()))
        .await
        .unwrap()
        .into_inner();
    assert!(!first.next_page_token.is_empty());
    for (request, reason) in [
        (
            list("kind = INSTALLED".to_owned(), first.next_page_token.clone()),
            Reason::PageTokenMismatch,
        ),
        (
            list(String::new(), "garbage".to_owned()),
            Reason::PageTokenMismatch,
        ),
        (
            list(String::new(), "\u{fffd}".repeat(10_000)),
            Reason::PageTokenMismatch,
        ),
        (
            list("(".repeat(10_000), String::new()),
            Reason::FilterInvalid,
        ),
        (list("\"".to_owned(), String::new()), Reason::FilterInvalid),
        (
            list(format!("kind = {}", "A".repeat(100_000)), String::new()),
            Reason::FilterInvalid,
        ),
    ] {
        let status = reader
            .passes
            .clone()
            .list_events(request)
            .await
            .unwrap_err();
        assert_eq!(
            (status.code(), reason_of(&status)),
            (Code::InvalidArgument, Some(reason)),
            "{status:?}"
        );
    }
    for (name, code, reason) in [
        (
            "sources/standard/passes/unknown",
            Code::NotFound,
            Reason::NotFound,
        ),
        (
            "sources/standard",
            Code::InvalidArgument,
            Reason::FieldInvalid,
        ),
        (
            "sources/../passes/%00",
            Code::InvalidArgument,
            Reason::FieldInvalid,
        ),
        ("", Code::InvalidArgument, Reason::FieldInvalid),
    ] {
        let request = v1::GetPassRequest {
            name: name.to_owned(),
            ..v1::GetPassRequest::default()
        };
        let status = reader.passes.clone().get_pass(request).await.unwrap_err();
        assert_eq!(
            (status.code(), reason_of(&status)),
            (code, Some(reason)),
            "{name:?}: {status:?}"
        );
    }

    caller
        .deliver(&standard("SCANNED", "read-me", 9, None), &stand.log)
        .await;
    let event = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let frame = honest.message().await.unwrap().expect("the stream goes on");
            if let Some(v1::subscribe_response::Frame::Events(batch)) = frame.frame {
                return batch.events[0].clone();
            }
        }
    })
    .await
    .expect("the honest subscriber gets the event");
    assert_eq!(event.kind(), v1::EventKind::Scanned);
    drop(honest);
    stand
        .verdict(Duration::from_secs(20))
        .await
        .unwrap()
        .assert_clean();
    stand.finish().await.unwrap();
}

/// Guarantee 7: subscribers that read nothing cost the others nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscribers_that_read_nothing_hold_up_neither_ingest_nor_those_who_read() {
    let stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    let mut deaf = Vec::new();
    for _ in 0..40 {
        // Each on a connection of its own, since one connection's window is shared by its streams.
        let reader = stand.reader();
        let frames = reader.subscribe(Start::FromBeginning(true)).await.unwrap();
        deaf.push((reader, frames));
    }
    let mut follower = stand.follower();
    let callbacks = traffic(&mut Dice::new(41), "deaf", 400);
    assert!(callbacks.len() > 2000);
    stand
        .load(callbacks, 8, Duration::from_secs(60))
        .await
        .unwrap();
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    let head = stand.reader().info().await.unwrap().head_position;
    follower
        .caught_up(head, Duration::from_secs(20))
        .await
        .unwrap();
    follower.stop();

    // Those who were deaf have missed nothing, if they read at last.
    let (_reader, frames) = &mut deaf[0];
    let mut seen = 0;
    tokio::time::timeout(Duration::from_secs(30), async {
        while seen < head {
            let frame = frames.message().await.unwrap().expect("the stream goes on");
            if let Some(v1::subscribe_response::Frame::Events(batch)) = frame.frame {
                for event in batch.events {
                    seen += 1;
                    let cursor: Cursor = event.cursor.parse().unwrap();
                    assert_eq!(i64::try_from(cursor.position.0).unwrap(), seen);
                }
            }
        }
    })
    .await
    .expect("all events come");
    drop(deaf);
    stand.finish().await.unwrap();
}

/// The error that a subscription ends with, at once or in the stream.
async fn first_error(
    client: &v1::subscription_service_client::SubscriptionServiceClient<Channel>,
    request: v1::SubscribeRequest,
) -> tonic::Status {
    let mut frames = match client.clone().subscribe(request).await {
        Err(status) => return status,
        Ok(frames) => frames.into_inner(),
    };
    loop {
        match frames.message().await {
            Err(status) => return status,
            Ok(Some(_)) => {}
            Ok(None) => panic!("the subscription ended without an error"),
        }
    }
}
