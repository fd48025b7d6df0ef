//! What stays open: gateways and subscribers, and what a changed principals file does to them.

use pass_domain::kind::Kind;
use pass_proto::access::{SCOPES, Scope};
use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as ToStore;
use pass_proto::v1::subscribe_response::Frame;

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
    let by_organization = Who::new("by-organization", &[Scope::Ingest], &[], &["north"]);
    let world = World::start(&[&all_seeing, &by_source, &by_organization]).await;
    let before = world.state(&all_seeing).await;
    let channel = &world.server.channel;

    let (to_store, mut from_store) = ingest_as(channel, &by_source.bearer()).await;
    let hello = request(ToStore::Hello(announcing(4, &["acme", "zeta"])));
    to_store.send(hello).await.unwrap();
    let status = soon("refusal", from_store.message()).await.unwrap_err();
    assert_eq!(reason(&status), Reason::PermissionDenied);
    assert_eq!(metadata(&status, "source"), "zeta");

    for (who, spool) in [(&by_source, 4), (&by_organization, 5)] {
        let sources: &[&str] = if spool == 4 {
            &["acme"]
        } else {
            &["acme", "zeta"]
        };
        let mut gateway = Gateway::by(channel, &who.bearer(), announcing(spool, sources)).await;
        // One that is not allowed spoils its batch: nothing of it is recorded.
        gateway
            .send(vec![of("north", "acme", 20), of("south", "zeta", 21)])
            .await;
        let status = gateway.end().await;
        assert_eq!(reason(&status), Reason::PermissionDenied);
        assert_eq!(metadata(&status, "source"), "zeta");
    }
    let after = world.state(&all_seeing).await;
    assert_eq!(without_spools(&after), without_spools(&before));
    let mut gateway =
        Gateway::by(channel, &by_organization.bearer(), announcing(6, &["acme"])).await;
    assert_eq!(
        gateway.deliver(vec![of("north", "acme", 22)]).await,
        ["APPLIED"]
    );
    world.stop().await;
}

#[tokio::test]
async fn a_gateway_is_asked_to_decode_only_what_its_principal_may_see() {
    let admin = Who::new("admin", &[Scope::Admin], &["*"], &[]);
    let northern = Who::new("northern", &[Scope::Ingest], &[], &["north"]);
    let world = World::start(&[&admin, &northern]).await;
    // It says that it serves the other's source, too.
    let hello = announcing(3, &["acme", "zeta"]);
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
    // Longer than it takes a good one to be taken in.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(works(&one).await && !works(&other).await);
    write(&world.principals, &[&other]);
    eventually("the good file is taken in", || works(&other)).await;
    assert!(!works(&one).await);
    world.stop().await;
}
