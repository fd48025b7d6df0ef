//! What stays open: gateways and subscribers, and what a changed principals file does to them.

use bytes::Bytes;
use pass_domain::kind::Kind;
use pass_proto::access::{SCOPES, Scope};
use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as ToStore;
use pass_proto::v1::subscribe_response::Frame;
use prost::Message as _;
use tonic::Status;
use tonic::transport::Channel;

use super::{NORTH, SOUTH, Who, World, without_spools, write};
use crate::harness::*;
use crate::make::*;

fn of(organization: &str, source: &str, number: u64) -> pass_domain::delivery::Delivery {
    let pass = format!("{organization}-{number}");
    let mut made = of_source(source, number, &pass, Kind::Installed, 50);
    made.organization = organization.into();
    made
}

fn announcing(spool: u8, sources: &[&str]) -> v1::IngestHello {
    v1::IngestHello {
        sources: sources.iter().map(|source| (*source).to_owned()).collect(),
        ..hello(spool)
    }
}

#[tokio::test]
async fn a_live_subscriber_sees_what_is_its_own_and_the_log_moving() {
    let reader = Who::new("reader", &[Scope::Consume], &[], &["north"]);
    let gateways = Who::new("gateways", &[Scope::Ingest], &["*"], &[]);
    let world = World::start(&[&reader, &gateways]).await;
    let mut gateway = Gateway::by(&world.server.channel, &gateways.bearer(), hello(3)).await;
    let wish = v1::SubscribeRequest {
        bookmark_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..from_beginning()
    };
    let mut live = world
        .server
        .subscribe_as(&reader.bearer(), wish)
        .await
        .unwrap();
    assert_eq!(live.passes(2).await, ["pass-north-1", "pass-north-2"]);
    live.until("caught up", |frame| matches!(frame, Frame::CaughtUp(_)))
        .await;
    // The ring, from here on.
    gateway
        .deliver(vec![
            of("south", "zeta", 1),
            of("north", "acme", 2),
            of("south", "acme", 3),
        ])
        .await;
    let events = live.events(1).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].organization, "north");
    assert!(
        events[0].personal.is_none(),
        "it may not read personal data"
    );
    let Frame::Bookmark(bookmark) = live
        .until("a bookmark", |frame| !matches!(frame, Frame::Events(_)))
        .await
    else {
        panic!("no bookmark");
    };
    assert_ne!(bookmark.cursor, events[0].cursor, "the log went on");
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_sends_and_announces_what_its_principal_may() {
    let all_seeing = Who::all("all-seeing");
    let by_source = Who::new("by-source", &[Scope::Ingest], &["acme"], &[]);
    let by_both = Who::new("by-both", &[Scope::Ingest], &["acme"], &["north"]);
    let world = World::start(&[&all_seeing, &by_source, &by_both]).await;
    let before = world.state(&all_seeing).await;
    let channel = &world.server.channel;

    for who in [&by_source, &by_both] {
        let status = refusal(channel, who, announcing(4, &["acme", "zeta"])).await;
        assert_eq!(reason(&status), Reason::PermissionDenied);
        assert_eq!(metadata(&status, "source"), "zeta");
    }
    // The organization is the sender's own word: it makes nobody's source one's own, and is no other's.
    let refused = [
        (&by_source, "", "zeta"),
        (&by_source, "north", "acme"),
        (&by_both, "", "zeta"),
        (&by_both, "north", "zeta"),
        (&by_both, "south", "zeta"),
        (&by_both, "south", "acme"),
    ];
    for (who, organization, source) in refused {
        let hello = announcing(5, &["acme"]);
        let mut gateway = Gateway::by(channel, &who.bearer(), hello).await;
        // One that is not allowed spoils its batch: nothing of it is recorded.
        let batch = vec![of("", "acme", 20), of(organization, source, 21)];
        gateway.send(batch).await;
        let status = gateway.end().await;
        let what = format!("{organization} {source}");
        assert_eq!(reason(&status), Reason::PermissionDenied, "{what}");
        assert_eq!(metadata(&status, "source"), source);
        assert!(status.message().contains(organization), "{status:?}");
    }
    let after = world.state(&all_seeing).await;
    assert_eq!(without_spools(&after), without_spools(&before));
    for (who, spool, organizations) in [(&by_source, 6, &[""][..]), (&by_both, 7, &["", "north"])] {
        let mut gateway = Gateway::by(channel, &who.bearer(), announcing(spool, &["acme"])).await;
        for (organization, number) in organizations.iter().zip(22..) {
            let made = vec![of(organization, "acme", number + u64::from(spool))];
            assert_eq!(gateway.deliver(made).await, ["APPLIED"], "{organization}");
        }
    }
    world.stop().await;
}

/// Says hello and returns why that is refused.
async fn refusal(channel: &Channel, who: &Who, hello: v1::IngestHello) -> Status {
    let (to_store, mut from_store) = ingest_as(channel, &who.bearer()).await;
    to_store.send(request(ToStore::Hello(hello))).await.unwrap();
    soon("refusal", from_store.message()).await.unwrap_err()
}

#[tokio::test]
async fn a_gateway_of_some_sources_gives_the_log_no_new_epoch() {
    let limited = Who::new("limited", &[Scope::Ingest], &["acme"], &[]);
    let gateways = Who::new("gateways", &[Scope::Ingest], &["*"], &[]);
    let reader = Who::new("reader", &[Scope::Read], &["acme"], &[]);
    let world = World::start(&[&limited, &gateways, &reader]).await;
    let channel = &world.server.channel;
    let epoch = async || {
        let path = "/passline.v1.PassService/GetLogInfo";
        let answer = world.call(path, &reader.bearer(), vec![Bytes::new()]).await;
        let log = v1::GetLogInfoResponse::decode(answer.messages[0].clone()).unwrap();
        log.epoch
    };
    let before = epoch().await;
    let lost = |spool| v1::IngestHello {
        settled_sequence: 1_000,
        oldest_sequence: 1,
        ..announcing(spool, &["acme"])
    };
    for spool in [8, 9] {
        let status = refusal(channel, &limited, lost(spool)).await;
        assert_eq!(reason(&status), Reason::PermissionDenied);
        assert!(status.message().contains("sources = "), "{status:?}");
    }
    let absurd = v1::IngestHello {
        settled_sequence: u64::MAX,
        ..announcing(8, &["acme"])
    };
    let status = refusal(channel, &limited, absurd).await;
    assert_eq!(bad_fields(&status), ["hello.settled_sequence"]);
    assert_eq!(epoch().await, before);
    assert!(world.server.get("/readyz").await.contains(" 200 "));
    // Whose word suffices is heard; the other goes on sending from then on.
    Gateway::by(channel, &gateways.bearer(), lost(9)).await;
    assert_ne!(epoch().await, before);
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_is_asked_to_decode_only_what_its_principal_may_see() {
    let admin = Who::new("admin", &[Scope::Admin], &["*"], &[]);
    let northern = Who::new("northern", &[Scope::Ingest], &["acme"], &["north"]);
    let world = World::start(&[&admin, &northern]).await;
    let hello = announcing(3, &["acme"]);
    let mut gateway = Gateway::by(&world.server.channel, &northern.bearer(), hello).await;
    let replay = |number: u64| {
        let (channel, bearer) = (world.server.channel.clone(), admin.bearer());
        let request = v1::ReplayDeliveryRequest {
            name: format!("deliveries/{}", id(number)),
            request_id: String::new(),
        };
        async move {
            let path = "/passline.v1.DeliveryService/ReplayDelivery";
            super::call(&channel, path, &bearer, vec![super::message(&request)]).await
        }
    };
    let answer = replay(SOUTH.2 + 2).await;
    assert_eq!(reason(&answer.status), Reason::NoGateway);
    let replaying = tokio::spawn(replay(NORTH.2 + 2));
    let asked = gateway.answer().await.unwrap();
    assert!(
        matches!(&asked, Some(v1::ingest_response::Message::Redecode(one))
            if one.delivery.as_ref().unwrap().organization == "north"),
        "{asked:?}"
    );
    replaying.abort();
    world.stop().await;
}

#[tokio::test]
async fn streams_of_principals_that_changed_end_and_all_others_go_on() {
    let [gone, stays, narrowed] = ["gone", "stays", "narrowed"].map(Who::all);
    let gateways = Who::new("gateways", &[Scope::Ingest], &["*"], &[]);
    let world = World::start(&[&gone, &stays, &narrowed, &gateways]).await;
    let mut streams = Vec::new();
    for who in [&gone, &narrowed, &stays] {
        let mut live = world
            .server
            .subscribe_as(&who.bearer(), from_beginning())
            .await
            .unwrap();
        live.passes(4).await;
        live.until("caught up", |frame| matches!(frame, Frame::CaughtUp(_)))
            .await;
        streams.push(live);
    }
    let mut ingesting = Gateway::by(&world.server.channel, &gone.bearer(), hello(4)).await;
    let mut gateway = Gateway::by(&world.server.channel, &gateways.bearer(), hello(3)).await;
    let other = Who {
        text: narrowed
            .text
            .replace("sources = [\"*\"]", "sources = [\"acme\"]"),
        ..narrowed.clone()
    };
    write(&world.principals, &[&stays, &other, &gateways]);
    let mut still = streams.pop().unwrap();
    for mut live in streams {
        let (frames, status) = live.rest().await;
        assert_eq!(reason(&status.unwrap()), Reason::StreamRotated);
        assert!(
            matches!(frames.last(), Some(Frame::Closing(_))),
            "{frames:?}"
        );
    }
    assert_eq!(reason(&ingesting.end().await), Reason::StreamRotated);
    gateway
        .deliver(vec![of("north", "acme", 30), of("south", "zeta", 31)])
        .await;
    assert_eq!(still.passes(2).await, ["north-30", "south-31"]);

    let refused = world
        .server
        .subscribe_as(&gone.bearer(), from_beginning())
        .await;
    assert_eq!(reason(&refused.err().unwrap()), Reason::Unauthenticated);
    let wish = v1::SubscribeRequest {
        stop_at_head: true,
        ..from_beginning()
    };
    let mut again = world
        .server
        .subscribe_as(&narrowed.bearer(), wish)
        .await
        .unwrap();
    let events: Vec<String> = (again.rest().await.0.into_iter())
        .filter_map(|frame| match frame {
            Frame::Events(frame) => Some(frame.events),
            _ => None,
        })
        .flatten()
        .map(|event| event.source)
        .collect();
    assert_eq!(events, ["acme"; 3]);
    world.stop().await;
}

#[tokio::test]
async fn a_broken_principals_file_changes_nothing() {
    let (one, other) = (Who::all("one"), Who::new("other", &SCOPES, &["*"], &[]));
    let world = World::start(&[&one]).await;
    let path = "/passline.v1.PassService/GetLogInfo";
    let works = async |who: &Who| {
        let answer = world
            .call(path, &who.bearer(), vec![bytes::Bytes::new()])
            .await;
        answer.status.code() == tonic::Code::Ok
    };
    let broken = Who {
        text: other.text.replace("scopes", "scopez"),
        ..other.clone()
    };
    write(&world.principals, &[&other, &broken]);
    let server = &world.server;
    eventually("the broken file is refused", || async move {
        let metrics = server.get("/metrics").await;
        let mut lines = metrics.lines();
        lines.any(|line| line.starts_with("passline_config_reload_failed") && line.ends_with(" 1"))
    })
    .await;
    assert!(works(&one).await && !works(&other).await);
    write(&world.principals, &[&other]);
    eventually("the good file is taken in", || works(&other)).await;
    assert!(!works(&one).await);
    world.stop().await;
}
