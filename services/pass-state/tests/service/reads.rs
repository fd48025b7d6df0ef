//! Unary reads: happy paths, every documented error, and garbage.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_domain::event::Position;
use pass_domain::kind::Kind;
use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::lookup_passes_request::Key;
use prost_types::FieldMask;
use service_kit::config::Duration as Span;
use tonic::{Code, Request};

use crate::faulty::Faulty;
use crate::harness::*;
use crate::make::*;

fn mask(paths: &[&str]) -> Option<FieldMask> {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    Some(FieldMask { paths })
}

fn get(name: &str) -> v1::GetPassRequest {
    v1::GetPassRequest {
        name: name.into(),
        ..v1::GetPassRequest::default()
    }
}

fn list(parent: &str) -> v1::ListPassesRequest {
    v1::ListPassesRequest {
        parent: parent.into(),
        ..v1::ListPassesRequest::default()
    }
}

fn history(parent: &str) -> v1::ListEventsRequest {
    v1::ListEventsRequest {
        parent: parent.into(),
        ..v1::ListEventsRequest::default()
    }
}

fn last_part(name: &str) -> String {
    name.rsplit_once('/').unwrap().1.to_owned()
}

/// A service with passes `pass-0` to `pass-9` of `acme`, installed; `pass-1` uninstalled; and one of `other`.
async fn filled() -> (Server, Gateway) {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut deliveries = installs(0..10);
    deliveries.push(delivery(10, "pass-1", Kind::Uninstalled, 60));
    deliveries.push(of_source("other", 11, "else", Kind::Created, 70));
    gateway.deliver(deliveries).await;
    (server, gateway)
}

async fn list_names(server: &Server, request: v1::ListPassesRequest) -> (Vec<String>, String) {
    let answer = server.passes().list_passes(request).await.unwrap();
    let answer = answer.into_inner();
    let names = answer.passes.iter().map(|pass| last_part(&pass.name));
    (names.collect(), answer.next_page_token)
}

#[tokio::test]
async fn a_pass_shows_what_its_events_add_up_to() {
    let (server, _gateway) = filled().await;
    let pass = server
        .passes()
        .get_pass(get("sources/acme/passes/pass-1"))
        .await;
    let pass = pass.unwrap().into_inner().pass.unwrap();
    assert_eq!(pass.state(), v1::PassState::Uninstalled);
    assert_eq!(pass.revision, 2);
    assert_eq!(pass.vendor_pass_id, "pass-1");
    assert!(!pass.etag.is_empty());
    let cursor: Cursor = pass.cursor.parse().unwrap();
    assert_eq!(cursor.position, Position(11));
    let masked = v1::GetPassRequest {
        read_mask: mask(&["name", "refs.serial_number"]),
        ..get("sources/acme/passes/pass-1")
    };
    let masked = server.passes().get_pass(masked).await.unwrap().into_inner();
    let expected = v1::Pass {
        name: "sources/acme/passes/pass-1".into(),
        refs: Some(v1::PassRefs {
            serial_number: "SN-pass-1".into(),
            ..v1::PassRefs::default()
        }),
        ..v1::Pass::default()
    };
    assert_eq!(masked.pass, Some(expected));

    let absent = server
        .passes()
        .get_pass(get("sources/acme/passes/nope"))
        .await;
    let status = absent.unwrap_err();
    assert_eq!(reason(&status), Reason::NotFound);
    assert_eq!(metadata(&status, "resource"), "sources/acme/passes/nope");
    server.stop().await;
}

#[tokio::test]
async fn every_bad_field_of_a_read_is_named() {
    let (server, _gateway) = filled().await;
    let bad = v1::GetPassRequest {
        name: "passes/pass-1".into(),
        read_mask: mask(&["nme", "refs.nme"]),
        min_cursor: "garbage".into(),
    };
    let status = server.passes().get_pass(bad).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        bad_fields(&status),
        ["min_cursor", "name", "read_mask", "read_mask"]
    );
    let bad = v1::ListPassesRequest {
        page_size: -1,
        order_by: "age".into(),
        filter: "state = ".into(),
        ..list("acme")
    };
    let status = server.passes().list_passes(bad).await.unwrap_err();
    assert_eq!(
        bad_fields(&status),
        ["filter", "order_by", "page_size", "parent"]
    );
    let bad = v1::ListEventsRequest {
        order_by: "occur_time".into(),
        ..history("sources/acme")
    };
    let status = server.passes().list_events(bad).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["order_by", "parent"]);
    let bad = v1::LookupPassesRequest {
        parent: "sources/Acme".into(),
        ..v1::LookupPassesRequest::default()
    };
    let status = server.passes().lookup_passes(bad).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["key", "parent"]);
    let bad = v1::GetEventRequest {
        name: "sources/acme/passes/pass-1/events/evt_1".into(),
        min_cursor: "x".into(),
        ..v1::GetEventRequest::default()
    };
    let status = server.passes().get_event(bad).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["min_cursor", "name"]);
    let cursor = v1::GetPassRequest {
        min_cursor: "garbage".into(),
        ..get("sources/acme/passes/pass-1")
    };
    let status = server.passes().get_pass(cursor).await.unwrap_err();
    assert_eq!(reason(&status), Reason::CursorInvalid);
    server.stop().await;
}

#[tokio::test]
async fn a_batch_keeps_the_order_asked_for() {
    let (server, _gateway) = filled().await;
    let batch = |names: &[&str], allow_missing| v1::BatchGetPassesRequest {
        names: names
            .iter()
            .map(|name| format!("sources/acme/passes/{name}"))
            .collect(),
        allow_missing,
        ..v1::BatchGetPassesRequest::default()
    };
    let ask = async |request| {
        let answer = server
            .passes()
            .batch_get_passes(request)
            .await?
            .into_inner();
        let names = answer.passes.iter().map(|pass| last_part(&pass.name));
        Ok::<_, tonic::Status>(names.collect::<Vec<_>>())
    };
    let wish = ["pass-7", "pass-2", "pass-7"];
    assert_eq!(ask(batch(&wish, false)).await.unwrap(), wish);
    let wish = ["pass-7", "nope", "pass-2"];
    assert_eq!(ask(batch(&wish, true)).await.unwrap(), ["pass-7", "pass-2"]);
    let status = ask(batch(&wish, false)).await.unwrap_err();
    assert_eq!(reason(&status), Reason::NotFound);
    assert_eq!(metadata(&status, "resource"), "sources/acme/passes/nope");
    for wish in [&[][..], &["x"; 101]] {
        let status = ask(batch(wish, true)).await.unwrap_err();
        assert_eq!(bad_fields(&status), ["names"]);
    }
    server.stop().await;
}

#[tokio::test]
async fn passes_are_listed_page_by_page_in_both_orders() {
    let (server, _gateway) = filled().await;
    let head = server.log().await.head_cursor;
    let page = |token: &str, order: &str| v1::ListPassesRequest {
        page_size: 4,
        page_token: token.into(),
        order_by: order.into(),
        ..list("sources/-")
    };
    let answer = server.passes().list_passes(page("", "")).await.unwrap();
    assert_eq!(answer.into_inner().cursor, head);
    for (order, first, last) in [
        ("name", "pass-0", "else"),
        ("last_event desc", "else", "pass-0"),
    ] {
        let (mut all, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let (names, next) = list_names(&server, page(&token, order)).await;
            assert!(names.len() <= 4);
            all.extend(names);
            pages += 1;
            if next.is_empty() {
                break;
            }
            token = next;
        }
        assert_eq!(all.len(), 11, "{order}: {all:?}");
        assert!(pages <= 4, "{pages}");
        assert_eq!((all[0].as_str(), all[10].as_str()), (first, last));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 11);
    }
    let (names, _) = list_names(&server, list("sources/other")).await;
    assert_eq!(names, ["else"]);
    server.stop().await;
}

#[tokio::test]
async fn passes_are_filtered_by_every_documented_field() {
    let (server, _gateway) = filled().await;
    for (filter, expected) in [
        ("state = UNINSTALLED", 1),
        ("state = INSTALLED AND source = acme", 9),
        ("source = other", 1),
        ("source = \"no such source\"", 0),
        ("vendor = passworks AND organization = acme-gmbh", 11),
        ("voided = false", 11),
        ("installed_count > 0", 9),
        ("redeemed_count = 0", 11),
        ("revision = 2", 1),
        ("campaign = spring", 11),
        ("distribution:*", 0),
        ("NOT class:*", 11),
        ("serial_number = SN-pass-3 OR external_id = ext-pass-4", 2),
        ("vendor_status:*", 0),
        ("wallet:APPLE", 9),
        ("wallet:GOOGLE", 0),
        ("installations_uncertain = true", 0),
        ("order_ambiguous = false", 11),
    ] {
        let request = v1::ListPassesRequest {
            filter: filter.into(),
            ..list("sources/-")
        };
        let (names, _) = list_names(&server, request).await;
        assert_eq!(names.len(), expected, "{filter}: {names:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn events_are_filtered_by_every_documented_field() {
    let (server, _gateway) = filled().await;
    let delivery = format!("delivery = \"deliveries/{}\"", id(3));
    for (filter, expected) in [
        ("source = acme", 11),
        ("pass = \"sources/acme/passes/pass-1\"", 2),
        ("pass = \"sources/acme/passes/pass-1\" OR kind = CREATED", 3),
        ("pass = nonsense", 0),
        ("vendor = passworks AND organization = acme-gmbh", 12),
        ("kind = INSTALLED", 10),
        ("vendor_kind = vendor.created", 1),
        ("assertion = DERIVED", 0),
        ("occur_time >= \"2026-01-01T00:01:00Z\"", 2),
        ("receive_time = \"2026-01-01T00:16:40Z\"", 12),
        ("record_time = \"2026-01-01T00:33:20Z\"", 12),
        ("time_suspect = true", 0),
        ("installation = reg-1", 10),
        ("wallet = APPLE", 10),
        ("campaign = spring", 12),
        ("distribution:*", 0),
        ("class:*", 0),
        ("serial_number = SN-pass-3", 1),
        ("external_id:pass", 11),
        ("effect.changed = true", 12),
        ("effect.late = true", 0),
        ("effect.state_before = INSTALLED", 1),
        ("effect.state_after = INSTALLED", 10),
        (&delivery, 1),
        ("identity_basis = EVENT_FIELDS", 12),
        ("attributes.tier = gold AND attributes:tier", 12),
        ("attributes.tier = silver", 0),
    ] {
        let request = v1::ListEventsRequest {
            filter: filter.into(),
            ..history("sources/-/passes/-")
        };
        let answer = server.passes().list_events(request).await.unwrap();
        let events = answer.into_inner().events;
        assert_eq!(events.len(), expected, "{filter}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_history_is_listed_both_ways_and_an_event_is_found_by_its_name() {
    let (server, _gateway) = filled().await;
    let kinds = async |request| {
        let answer = server.passes().list_events(request).await.unwrap();
        let events = answer.into_inner().events;
        events.iter().map(v1::PassEvent::kind).collect::<Vec<_>>()
    };
    let parent = "sources/acme/passes/pass-1";
    let (on, off) = (v1::EventKind::Installed, v1::EventKind::Uninstalled);
    assert_eq!(kinds(history(parent)).await, [on, off]);
    let backwards = v1::ListEventsRequest {
        order_by: "position desc".into(),
        ..history(parent)
    };
    assert_eq!(kinds(backwards).await, [off, on]);
    assert_eq!(kinds(history("sources/acme/passes/-")).await.len(), 11);
    assert_eq!(kinds(history("sources/none/passes/-")).await.len(), 0);

    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let request = v1::ListEventsRequest {
            page_size: 5,
            page_token: token,
            order_by: "position desc".into(),
            ..history("sources/-/passes/-")
        };
        let answer = server.passes().list_events(request).await.unwrap();
        let answer = answer.into_inner();
        all.extend(answer.events);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let positions: Vec<u64> = all
        .iter()
        .map(|event| event.cursor.parse::<Cursor>().unwrap().position.0)
        .collect();
    assert!(
        positions.iter().copied().eq((1..=12).rev()),
        "{positions:?}"
    );

    let event = |name: &str| v1::GetEventRequest {
        name: name.into(),
        ..v1::GetEventRequest::default()
    };
    let found = server
        .passes()
        .get_event(event(&all[0].name))
        .await
        .unwrap();
    let found = found.into_inner().event.unwrap();
    assert_eq!(found, all[0]);
    assert_eq!(found.personal.unwrap().display_name, "Ada");
    // The event is there, but not of that pass.
    let elsewhere = format!("sources/acme/passes/pass-0/events/{}", all[0].id);
    let status = server.passes().get_event(event(&elsewhere)).await;
    assert_eq!(reason(&status.unwrap_err()), Reason::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn a_pass_id_that_needs_encoding_is_found_by_its_name() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let odd = "a/b%2F?#é".replace('é', "e");
    gateway
        .deliver(vec![delivery(1, &odd, Kind::Installed, 0)])
        .await;
    let (names, _) = list_names(&server, list("sources/acme")).await;
    let name = format!("sources/acme/passes/{}", names[0]);
    let pass = server.passes().get_pass(get(&name)).await.unwrap();
    assert_eq!(pass.into_inner().pass.unwrap().vendor_pass_id, odd);
    let events = server.passes().list_events(history(&name)).await.unwrap();
    assert_eq!(events.into_inner().events.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn passes_are_found_by_serial_number_and_external_id() {
    let (server, _gateway) = filled().await;
    let lookup = |parent: &str, key| v1::LookupPassesRequest {
        parent: parent.into(),
        key: Some(key),
        read_mask: mask(&["name"]),
        min_cursor: String::new(),
    };
    for (parent, key, expected) in [
        ("sources/-", Key::SerialNumber("SN-pass-4".into()), 1),
        ("sources/acme", Key::ExternalId("ext-pass-4".into()), 1),
        ("sources/other", Key::ExternalId("ext-pass-4".into()), 0),
        ("sources/-", Key::SerialNumber("ext-pass-4".into()), 0),
    ] {
        let request = lookup(parent, key.clone());
        let answer = server.passes().lookup_passes(request).await.unwrap();
        let passes = answer.into_inner().passes;
        assert_eq!(passes.len(), expected, "{parent} {key:?}");
    }
    let empty = lookup("sources/-", Key::SerialNumber(String::new()));
    let status = server.passes().lookup_passes(empty).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["serial_number"]);
    server.stop().await;
}

#[tokio::test]
async fn a_page_token_goes_with_its_request_and_its_history_only() {
    let (server, mut gateway) = filled().await;
    let first = v1::ListPassesRequest {
        page_size: 2,
        ..list("sources/acme")
    };
    let (_, token) = list_names(&server, first.clone()).await;
    let next = v1::ListPassesRequest {
        page_token: token.clone(),
        ..first.clone()
    };
    assert_eq!(
        list_names(&server, next.clone()).await.0,
        ["pass-2", "pass-3"]
    );
    let others = [
        v1::ListPassesRequest {
            filter: "voided = false".into(),
            ..next.clone()
        },
        v1::ListPassesRequest {
            page_size: 3,
            ..next.clone()
        },
        v1::ListPassesRequest {
            parent: "sources/-".into(),
            ..next.clone()
        },
        v1::ListPassesRequest {
            page_token: "garbage".into(),
            ..first.clone()
        },
    ];
    for other in others {
        let status = server.passes().list_passes(other).await.unwrap_err();
        assert_eq!(reason(&status), Reason::PageTokenMismatch);
        assert_eq!(bad_fields(&status), ["page_token"]);
    }
    let events = v1::ListEventsRequest {
        page_token: token,
        ..history("sources/acme/passes/-")
    };
    let status = server.passes().list_events(events).await.unwrap_err();
    assert_eq!(reason(&status), Reason::PageTokenMismatch);
    // The database goes back: places of the old history are void.
    gateway.close();
    let ahead = v1::IngestHello {
        settled_sequence: 100,
        oldest_sequence: 1,
        ..hello(1)
    };
    let _gateway = Gateway::with(&server.channel, ahead).await;
    let status = server.passes().list_passes(next).await.unwrap_err();
    assert_eq!(reason(&status), Reason::PageTokenMismatch);
    server.stop().await;
}

#[tokio::test]
async fn a_search_that_examines_too_much_gives_short_pages_that_lead_on() {
    let server = Server::with(|config| config.reads.rows_examined_max = 500).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..900)).await;
    let (mut found, mut token, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let request = v1::ListPassesRequest {
            filter: "serial_number = SN-pass-3 OR serial_number = SN-pass-800".into(),
            page_token: token,
            ..list("sources/-")
        };
        let (names, next) = list_names(&server, request).await;
        found.extend(names);
        pages += 1;
        if next.is_empty() {
            break;
        }
        token = next;
    }
    assert_eq!(found, ["pass-3", "pass-800"]);
    assert_eq!(pages, 2);
    server.stop().await;
}

#[tokio::test]
async fn pages_never_exceed_what_a_client_can_take() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    for batch in 0..8_u64 {
        let mut deliveries = installs(batch * 40..batch * 40 + 40);
        for delivery in &mut deliveries {
            if let pass_domain::delivery::Decoded::Facts(facts) = &mut delivery.decoded {
                for n in 0..30 {
                    let text = "x".repeat(1_000);
                    facts.facts[0].attributes.insert(format!("a{n}"), text);
                }
            }
        }
        gateway.deliver(deliveries).await;
    }
    let (mut count, mut token, mut pages) = (0, String::new(), 0);
    loop {
        let request = v1::ListEventsRequest {
            page_size: 500,
            page_token: token,
            ..history("sources/-/passes/-")
        };
        let answer = server.passes().list_events(request).await.unwrap();
        let answer = answer.into_inner();
        count += answer.events.len();
        pages += 1;
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(count, 320);
    assert!(pages > 2, "{pages} pages of about 10 MB");
    server.stop().await;
}

#[tokio::test]
async fn a_read_waits_for_its_min_cursor_and_says_when_it_is_not_reached() {
    let server = Server::with(|config| config.reads.min_cursor_wait = Span::from_millis(300)).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..1)).await;
    let head: Cursor = server.log().await.head_cursor.parse().unwrap();
    let at_least = |cursor: Cursor| v1::GetPassRequest {
        min_cursor: cursor.to_string(),
        ..get("sources/acme/passes/pass-1")
    };
    let next = Cursor {
        position: Position(2),
        ..head
    };
    let status = server.passes().get_pass(at_least(next)).await.unwrap_err();
    assert_eq!(reason(&status), Reason::MinCursorNotReached);
    let other = Cursor {
        epoch: head.epoch ^ 1,
        ..head
    };
    let status = server.passes().get_pass(at_least(other)).await.unwrap_err();
    assert_eq!(reason(&status), Reason::CursorEpochMismatch);
    // Asked before the commit, answered after it.
    let mut passes = server.passes();
    let asking = tokio::spawn(async move { passes.get_pass(at_least(next)).await });
    gateway.deliver(installs(1..2)).await;
    soon("the answer", asking).await.unwrap().unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_call_ends_at_the_shorter_deadline_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |config| {
        config.grpc.limits.request_timeout = Span::from_millis(1_500);
    })
    .await;
    store.stuck.store(true, Ordering::SeqCst);
    let ask = async |timeout: Option<&'static str>| {
        let mut request = Request::new(get("sources/acme/passes/x"));
        if let Some(timeout) = timeout {
            let metadata = request.metadata_mut();
            metadata.insert("grpc-timeout", timeout.parse().unwrap());
        }
        let began = std::time::Instant::now();
        let status = server.passes().get_pass(request).await.unwrap_err();
        assert_eq!(reason(&status), Reason::DeadlineExceeded);
        began.elapsed()
    };
    // The client's is met a little early, so that our answer comes before the client gives up.
    assert!(ask(Some("1000m")).await < Duration::from_secs(1));
    assert!(ask(None).await >= Duration::from_millis(1_500));
    server.stop().await;
}

#[tokio::test]
async fn an_empty_log_tells_about_itself() {
    let server = Server::start().await;
    let log = server.log().await;
    assert_eq!(log.head_position, 0);
    assert_eq!(log.head_record_time, None);
    assert_eq!(log.oldest_cursor, log.head_cursor);
    assert_eq!(log.database, "sqlite");
    assert_eq!(log.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(log.books, Some(v1::LogBooks::default()));
    server.stop().await;
}
