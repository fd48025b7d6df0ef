//! Deliveries and quarantine.

use pass_domain::delivery::Delivery;
use pass_domain::kind::Kind;
use pass_proto::convert::delivery_to_wire;
use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as ToStore;
use pass_proto::v1::ingest_response::Message as ToGateway;
use prost_types::FieldMask;
use service_kit::config::Duration as Span;

use crate::harness::*;
use crate::make::*;

fn name(number: u64) -> String {
    format!("deliveries/{}", id(number))
}

fn replay(number: u64) -> v1::ReplayDeliveryRequest {
    v1::ReplayDeliveryRequest {
        name: name(number),
        request_id: "6b1f".into(),
    }
}

async fn get(server: &Server, number: u64, view: v1::DeliveryView) -> v1::Delivery {
    let request = v1::GetDeliveryRequest {
        name: name(number),
        view: view as i32,
        read_mask: None,
    };
    let found = server.deliveries().get_delivery(request).await.unwrap();
    found.into_inner().delivery.unwrap()
}

/// Answers the next redecode request with what the delivery now decodes to.
async fn redecode(
    gateway: &mut Gateway,
    now: impl FnOnce(v1::IngestDelivery) -> v1::IngestDelivery,
) {
    let Some(ToGateway::Redecode(asked)) = gateway.answer().await.unwrap() else {
        panic!("not asked to decode again");
    };
    let redecoded = v1::IngestRedecoded {
        redecode_number: asked.redecode_number,
        delivery: Some(now(asked.delivery.unwrap())),
    };
    gateway.say(ToStore::Redecoded(redecoded)).await;
}

fn decoded(delivery: Delivery) -> v1::IngestDelivery {
    v1::IngestDelivery {
        adapter_version: "passworks/2".into(),
        ..delivery_to_wire(&delivery)
    }
}

#[tokio::test]
async fn a_delivery_is_shown_with_what_became_of_it() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway
        .deliver(vec![delivery(1, "a", Kind::Installed, 0), undecodable(2)])
        .await;
    let found = get(&server, 1, v1::DeliveryView::Full).await;
    assert_eq!(found.name, name(1));
    assert_eq!(&found.body[..], b"{\"n\":1}");
    assert_eq!(found.body_bytes, 7);
    assert_eq!(found.outcome(), v1::DeliveryOutcome::Applied);
    assert_eq!(found.events.len(), 1);
    assert!(found.events[0].starts_with("sources/acme/passes/a/events/evt_"));
    assert_eq!(found.quarantine, None);
    assert_eq!(found.auth.unwrap().key_id, "k1");
    let basic = get(&server, 1, v1::DeliveryView::Unspecified).await;
    assert!(basic.body.is_empty());
    assert_eq!(basic.body_bytes, 7);
    let stay = get(&server, 2, v1::DeliveryView::Basic)
        .await
        .quarantine
        .unwrap();
    assert_eq!(stay.state(), v1::QuarantineState::Open);
    assert_eq!(stay.reason(), v1::UndecodableReason::KindUnknown);
    assert!(!stay.detail.is_empty());

    let request = |name: String, view, paths: &[&str]| v1::GetDeliveryRequest {
        name,
        view,
        read_mask: Some(FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        }),
    };
    let masked = request(name(2), 0, &["quarantine.state"]);
    let masked = server.deliveries().get_delivery(masked).await.unwrap();
    let expected = v1::Delivery {
        quarantine: Some(v1::Quarantine {
            state: v1::QuarantineState::Open as i32,
            ..v1::Quarantine::default()
        }),
        ..v1::Delivery::default()
    };
    assert_eq!(masked.into_inner().delivery, Some(expected));
    let bad = request("deliveries/del_1".into(), 9, &["boddy"]);
    let status = server.deliveries().get_delivery(bad).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["name", "read_mask", "view"]);
    let absent = request(name(99), 0, &[]);
    let status = server.deliveries().get_delivery(absent).await.unwrap_err();
    assert_eq!(reason(&status), Reason::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn deliveries_are_listed_newest_first_and_filtered_by_every_documented_field() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut deliveries = installs(1..6);
    deliveries.push(undecodable(6));
    deliveries.push(control(7));
    deliveries.push(delivery(8, "pass-1", Kind::Installed, 1));
    deliveries.push(of_source("other", 9, "x", Kind::Created, 0));
    gateway.deliver(deliveries).await;
    let list = async |filter: &str, page_size, token: String| {
        let request = v1::ListDeliveriesRequest {
            page_size,
            page_token: token,
            filter: filter.into(),
            read_mask: None,
        };
        let answer = server.deliveries().list_deliveries(request).await.unwrap();
        let answer = answer.into_inner();
        let names: Vec<String> = answer.deliveries.iter().map(|d| d.name.clone()).collect();
        assert!(answer.deliveries.iter().all(|d| d.body.is_empty()));
        (names, answer.next_page_token)
    };
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let (names, next) = list("", 2, token).await;
        all.extend(names);
        token = next;
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (1..=9).rev().map(name).collect();
    assert_eq!(all, expected);
    for (filter, expected) in [
        ("source = other", 1),
        ("vendor = passworks AND organization = acme-gmbh", 9),
        ("outcome = QUARANTINED", 1),
        ("outcome = DUPLICATE", 1),
        ("quarantine = OPEN", 1),
        ("quarantine = OPEN AND source = other", 0),
        ("NOT quarantine:*", 8),
        ("reason = KIND_UNKNOWN", 1),
        ("receive_time = \"2026-01-01T00:16:40Z\"", 9),
        ("record_time > \"2026-01-01T00:33:20Z\"", 0),
        ("method = POST", 9),
        ("auth_scheme = HMAC AND key_id = k1", 9),
        ("duplicate_facts > 0", 1),
        ("differing_duplicates > 0", 0),
    ] {
        let (names, _) = list(filter, 0, String::new()).await;
        assert_eq!(names.len(), expected, "{filter}");
    }
    let bad = v1::ListDeliveriesRequest {
        page_size: -3,
        filter: "nope = 1".into(),
        ..v1::ListDeliveriesRequest::default()
    };
    let status = server.deliveries().list_deliveries(bad).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["filter", "page_size"]);
    let bad = v1::ListDeliveriesRequest {
        page_token: "x".into(),
        ..v1::ListDeliveriesRequest::default()
    };
    let status = server.deliveries().list_deliveries(bad).await.unwrap_err();
    assert_eq!(reason(&status), Reason::PageTokenMismatch);
    server.stop().await;
}

#[tokio::test]
async fn a_replay_applies_what_a_gateway_now_makes_of_the_stored_delivery() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(vec![undecodable(1)]).await;
    let mut live = server.subscribe(from_end()).await.unwrap();
    live.started().await;
    let mut client = server.deliveries();
    let asking = tokio::spawn(async move { client.replay_delivery(replay(1)).await });
    redecode(&mut gateway, |stored| {
        assert_eq!(
            &stored.body[..],
            b"{\"n\":1}",
            "the stored bytes are decoded"
        );
        assert_eq!(stored.id, id(1).as_bytes());
        // What a gateway says of anything but the decoding is not taken over.
        let mut again = decoded(delivery(1, "healed", Kind::Installed, 5));
        again.body = "forged".into();
        again.receive_time = None;
        again
    })
    .await;
    let answer = soon("the replay", asking).await.unwrap().unwrap();
    let shown = answer.into_inner().delivery.unwrap();
    assert_eq!(
        shown.quarantine.unwrap().state(),
        v1::QuarantineState::Replayed
    );
    assert_eq!(live.passes(1).await, ["healed"]);
    let found = get(&server, 1, v1::DeliveryView::Full).await;
    assert_eq!(&found.body[..], b"{\"n\":1}");
    assert_eq!(found.adapter_version, "passworks/2");
    assert_eq!(found.events.len(), 1);

    // Again: as it is, without asking the gateway.
    let again = server
        .deliveries()
        .replay_delivery(replay(1))
        .await
        .unwrap();
    let again = again.into_inner().delivery.unwrap();
    assert!(again.body.is_empty());
    assert_eq!(again.events, found.events);
    let books = server.log().await.books.unwrap();
    assert_eq!((books.quarantine_open, books.events), (0, 1));
    // The stream goes on as if nothing had happened.
    assert_eq!(gateway.deliver(installs(5..6)).await, ["APPLIED"]);
    server.stop().await;
}

#[tokio::test]
async fn a_replay_that_still_cannot_be_decoded_stays_open_with_the_new_reason() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(vec![undecodable(1)]).await;
    let mut client = server.deliveries();
    let asking = tokio::spawn(async move { client.replay_delivery(replay(1)).await });
    redecode(&mut gateway, |stored| v1::IngestDelivery {
        decoded: Some(v1::ingest_delivery::Decoded::Undecodable(
            v1::UndecodableDelivery {
                reason: v1::UndecodableReason::FieldMissing as i32,
                detail: "pass_id is missing".into(),
            },
        )),
        ..stored
    })
    .await;
    let answer = soon("the replay", asking).await.unwrap().unwrap();
    let stay = answer.into_inner().delivery.unwrap().quarantine.unwrap();
    assert_eq!(stay.state(), v1::QuarantineState::Open);
    assert_eq!(stay.reason(), v1::UndecodableReason::FieldMissing);
    server.stop().await;
}

#[tokio::test]
async fn a_replay_needs_a_gateway_that_serves_the_source_and_answers() {
    let server =
        Server::with(|config| config.ingest.redecode_timeout = Span::from_millis(100)).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut strange = undecodable(2);
    strange.source = pass_domain::ids::SourceUid::new("strange").unwrap();
    gateway
        .deliver(vec![
            undecodable(1),
            strange,
            delivery(3, "a", Kind::Created, 0),
        ])
        .await;
    let refused = async |number| {
        let status = server.deliveries().replay_delivery(replay(number)).await;
        reason(&status.unwrap_err())
    };
    assert_eq!(refused(2).await, Reason::NoGateway, "no gateway has it");
    assert_eq!(refused(1).await, Reason::NoGateway, "the gateway is silent");
    assert_eq!(refused(3).await, Reason::NotQuarantined);
    assert_eq!(refused(99).await, Reason::NotFound);
    gateway.close();
    drop(gateway);
    eventually("the gateway's leave", || async {
        refused(1).await == Reason::NoGateway
    })
    .await;
    let bad = v1::ReplayDeliveryRequest {
        name: "x".into(),
        request_id: "x".repeat(65),
    };
    let status = server.deliveries().replay_delivery(bad).await.unwrap_err();
    assert_eq!(bad_fields(&status), ["name", "request_id"]);
    let info = server.log().await.books.unwrap();
    assert_eq!(info.quarantine_open, 2);
    server.stop().await;
}

#[tokio::test]
async fn a_discard_is_kept_with_its_reason_and_may_be_repeated() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway
        .deliver(vec![undecodable(1), delivery(2, "a", Kind::Created, 0)])
        .await;
    let discard = |number, reason: &str| v1::DiscardDeliveryRequest {
        name: name(number),
        reason: reason.into(),
        request_id: String::new(),
    };
    for _ in 0..2 {
        let done = server
            .deliveries()
            .discard_delivery(discard(1, "a test of the vendor's"))
            .await;
        let stay = done.unwrap().into_inner().delivery.unwrap().quarantine;
        let stay = stay.unwrap();
        assert_eq!(stay.state(), v1::QuarantineState::Discarded);
        assert_eq!(stay.discard_reason, "a test of the vendor's");
    }
    let kept = get(&server, 1, v1::DeliveryView::Full).await;
    assert_eq!(&kept.body[..], b"{\"n\":1}");
    let refused = async |request| {
        let status = server.deliveries().discard_delivery(request).await;
        status.unwrap_err()
    };
    let status = refused(discard(2, "x")).await;
    assert_eq!(reason(&status), Reason::NotQuarantined);
    assert_eq!(reason(&refused(discard(9, "x")).await), Reason::NotFound);
    for text in [String::new(), "x".repeat(513), "a\0b".into()] {
        assert_eq!(bad_fields(&refused(discard(1, &text)).await), ["reason"]);
    }
    server.stop().await;
}

#[tokio::test]
async fn facts_of_a_replay_that_are_known_already_add_no_event() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway
        .deliver(vec![delivery(1, "a", Kind::Installed, 0), undecodable(2)])
        .await;
    let mut client = server.deliveries();
    let asking = tokio::spawn(async move { client.replay_delivery(replay(2)).await });
    redecode(&mut gateway, |stored| v1::IngestDelivery {
        decoded: decoded(delivery(2, "a", Kind::Installed, 0)).decoded,
        ..stored
    })
    .await;
    let answer = soon("the replay", asking).await.unwrap().unwrap();
    let shown = answer.into_inner().delivery.unwrap();
    assert_eq!(shown.duplicate_facts, 1);
    assert_eq!(server.log().await.head_position, 1);
    server.stop().await;
}
