//! What a principal of one organization gets, beside what an all-seeing one gets: the same without the rest.

use std::collections::BTreeMap;

use pass_domain::kind::Kind;
use pass_proto::access::{SCOPES, Scope, required_scopes};
use pass_proto::status::Reason;
use pass_proto::v1;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, Value};
use tonic::Code;

use super::requests::{About, requests};
use super::{Answer, PERSONAL, Who, World, without_spools};
use crate::harness::*;
use crate::make::of_source;

/// What belongs to the south: its name, its source, and the passes that have it in their names.
const SOUTHERN: [&str; 2] = ["south", "zeta"];

/// The rows in answers: messages with a source, wherever they stand.
fn rows(message: &DynamicMessage, found: &mut Vec<DynamicMessage>) {
    if message.get_field_by_name("source").is_some() {
        found.push(message.clone());
        return;
    }
    for (_, value) in message.fields() {
        match value {
            Value::Message(inner) => rows(inner, found),
            Value::List(values) => {
                let inner = values.iter().filter_map(Value::as_message);
                inner.for_each(|inner| rows(inner, found));
            }
            _ => {}
        }
    }
}

fn rows_of(answer: &Answer, output: &MessageDescriptor) -> Vec<DynamicMessage> {
    let mut found = Vec::new();
    for message in &answer.messages {
        let message = DynamicMessage::decode(output.clone(), message.clone()).unwrap();
        rows(&message, &mut found);
    }
    found
}

fn is_northern(row: &DynamicMessage) -> bool {
    let source = row.get_field_by_name("source").unwrap();
    source.as_str() == Some("acme")
}

/// What each method answers with.
fn outputs() -> BTreeMap<String, MessageDescriptor> {
    let pool = DescriptorPool::decode(pass_proto::DESCRIPTORS).unwrap();
    let services: Vec<_> = pool.services().collect();
    (services.iter().flat_map(|service| service.methods()))
        .map(|method| {
            let service = method.parent_service().full_name().to_owned();
            (format!("/{service}/{}", method.name()), method.output())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_another_organization_is_told_or_touched() {
    let all_seeing = Who::all("all-seeing");
    // An organization alone is nothing to send deliveries of.
    let asks = SCOPES.into_iter().filter(|scope| *scope != Scope::Ingest);
    let asks: Vec<Scope> = asks.collect();
    let limited = [
        Who::new("by-organization", &asks, &[], &["north"]),
        Who::new("by-source", &SCOPES, &["acme"], &[]),
        Who::new(
            "by-both",
            &SCOPES,
            &["acme", "nowhere"],
            &["north", "nobody"],
        ),
    ];
    let mut principals = vec![&all_seeing];
    principals.extend(&limited);
    let world = World::start(&principals).await;
    let before = world.state(&all_seeing).await;
    let outputs = outputs();
    for (path, required) in required_scopes(pass_proto::DESCRIPTORS).unwrap() {
        let asks = requests(&world, &path).unwrap();
        // Of this method: rows told, and rows or refusals that hid something.
        let (mut told_rows, mut hidden) = (0, 0);
        for who in &limited {
            for ask in &asks {
                let what = format!("{path} by {} about {:?}", who.text, ask.about);
                // What would change something of one's own, or takes a stream over, has tests of its own.
                let changes = matches!(required, Scope::Admin | Scope::Ingest);
                if changes && ask.about == About::North {
                    continue;
                }
                let answer = world.call(&path, &who.bearer(), ask.messages.clone()).await;
                match &ask.about {
                    About::South(name) => {
                        hidden += 1;
                        if required == Scope::Ingest {
                            assert_eq!(reason(&answer.status), Reason::PermissionDenied, "{what}");
                            continue;
                        }
                        // The same answer as about nothing, but for the name that was asked for.
                        let twin = asks.iter().find_map(|twin| match &twin.about {
                            About::Nothing(other) if other.len() == name.len() => {
                                Some((other, twin))
                            }
                            _ => None,
                        });
                        let (other, twin) = twin.unwrap_or_else(|| panic!("{what}: no twin"));
                        let about_nothing = world
                            .call(&path, &who.bearer(), twin.messages.clone())
                            .await;
                        let text = |answer: &Answer, name: &str| {
                            let ended = format!("{:?}", answer.ended());
                            (answer.messages.clone(), ended.replace(name, "NAME"))
                        };
                        assert_eq!(text(&answer, name), text(&about_nothing, other), "{what}");
                        assert_eq!(rows_of(&answer, &outputs[&path]).len(), 0, "{what}");
                        // And there is something to be hidden, unless asking would change it.
                        if required != Scope::Admin {
                            let seen = world
                                .call(&path, &all_seeing.bearer(), ask.messages.clone())
                                .await;
                            let seen = rows_of(&seen, &outputs[&path]);
                            assert!(seen.iter().any(|row| !is_northern(row)), "{what}");
                        }
                    }
                    About::North | About::All | About::Nonsense | About::Nothing(_) => {
                        let told = answer.told();
                        if !matches!(ask.about, About::Nothing(_)) {
                            for word in SOUTHERN {
                                assert!(!told.contains(word), "{what}: {told}");
                            }
                        }
                        let seen = world
                            .call(&path, &all_seeing.bearer(), ask.messages.clone())
                            .await;
                        let seen = rows_of(&seen, &outputs[&path]);
                        hidden += seen.iter().filter(|row| !is_northern(row)).count();
                        let expected: Vec<_> = seen.into_iter().filter(is_northern).collect();
                        told_rows += expected.len();
                        assert_eq!(rows_of(&answer, &outputs[&path]), expected, "{what}");
                    }
                }
            }
        }
        // So that none of this holds for want of anything to tell or to hide.
        let tells_rows = matches!(required, Scope::Read | Scope::Consume);
        if path != "/passline.v1.PassService/GetLogInfo" {
            assert_eq!(told_rows > 0, tells_rows, "{path}");
            assert!(hidden > 0, "{path}");
        }
    }
    let after = world.state(&all_seeing).await;
    assert_eq!(without_spools(&after), without_spools(&before));
    world.stop().await;
}

#[tokio::test]
async fn a_filter_by_pass_loses_no_event_of_a_pass_that_moved_on() {
    let reader = Who::new("reader", &[Scope::Read], &[], &["north"]);
    let gateways = Who::new("gateways", &[Scope::Ingest], &["*"], &[]);
    let world = World::start(&[&reader, &gateways]).await;
    let mut gateway = Gateway::by(&world.server.channel, &gateways.bearer(), hello(3)).await;
    let kinds = [("north", Kind::Installed), ("south", Kind::Updated)];
    for ((organization, kind), number) in kinds.into_iter().zip(50..) {
        let mut made = of_source("zeta", number, "moved", kind, 50);
        made.organization = organization.into();
        assert_eq!(gateway.deliver(vec![made]).await, ["APPLIED"]);
    }
    let path = "/passline.v1.PassService/ListEvents";
    let pass = "sources/zeta/passes/moved";
    let list = async |parent: &str, filter: &str| {
        let request = v1::ListEventsRequest {
            parent: parent.into(),
            filter: filter.into(),
            ..v1::ListEventsRequest::default()
        };
        let messages = vec![super::message(&request)];
        let answer = world.call(path, &reader.bearer(), messages).await;
        let listed = v1::ListEventsResponse::decode(answer.messages[0].clone()).unwrap();
        let events = listed.events.into_iter();
        events
            .map(|event| (event.pass, event.organization))
            .collect::<Vec<_>>()
    };
    let by_pass = format!("pass = \"{pass}\"");
    for parent in ["sources/-/passes/-", "sources/zeta/passes/-"] {
        let listed = list(parent, &by_pass).await;
        assert_eq!(listed, [(pass.to_owned(), "north".to_owned())], "{parent}");
        let all = list(parent, "").await;
        assert!(listed.iter().all(|event| all.contains(event)), "{all:?}");
    }
    // The pass itself is the other's now.
    assert_eq!(list(pass, "").await, []);
    world.stop().await;
}

#[tokio::test]
async fn the_books_and_spools_are_for_those_who_may_see_all_sources() {
    let reads = [Scope::Read];
    let limited = Who::new("limited", &reads, &["acme", "zeta"], &["north", "south"]);
    let all = Who::new("all", &reads, &["*"], &[]);
    let world = World::start(&[&limited, &all]).await;
    let path = "/passline.v1.PassService/GetLogInfo";
    let mut told = Vec::new();
    for who in [&all, &limited] {
        let answer = world
            .call(path, &who.bearer(), vec![bytes::Bytes::new()])
            .await;
        told.push(v1::GetLogInfoResponse::decode(answer.messages[0].clone()).unwrap());
    }
    assert_eq!(told[0].spools.len(), 1);
    assert_eq!(told[0].books.as_ref().unwrap().deliveries, 8);
    let expected = v1::GetLogInfoResponse {
        books: None,
        spools: Vec::new(),
        ..told[0].clone()
    };
    assert_eq!(told[1], expected);
    assert!(expected.insecure.is_empty(), "it listens on loopback");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn personal_data_is_told_only_to_those_who_may_see_it() {
    let may = Who::all("may");
    let scopes = SCOPES
        .into_iter()
        .filter(|scope| *scope != Scope::ReadPersonal);
    let may_not = Who::new("may-not", &scopes.collect::<Vec<_>>(), &["*"], &[]);
    let world = World::start(&[&may, &may_not]).await;
    let outputs = outputs();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (path, required) in required_scopes(pass_proto::DESCRIPTORS).unwrap() {
        for ask in requests(&world, &path).unwrap() {
            if required == Scope::Admin && matches!(ask.about, About::North | About::South(_)) {
                continue;
            }
            let with = world.call(&path, &may.bearer(), ask.messages.clone()).await;
            let without = world
                .call(&path, &may_not.bearer(), ask.messages.clone())
                .await;
            let told = without.told();
            assert!(!told.contains("personal"), "{path} {ask:?}: {told}");
            assert_eq!(without.ended(), with.ended(), "{path} {ask:?}");
            let [with_rows, rows] =
                [&with, &without].map(|answer| rows_of(answer, &outputs[&path]));
            assert_eq!(rows.len(), with_rows.len(), "{path} {ask:?}");
            let told = with.told();
            for word in PERSONAL {
                *seen.entry(word).or_default() += usize::from(told.contains(word));
            }
        }
    }
    assert!(
        seen.values().all(|count| *count > 0),
        "some of it is never told: {seen:?}"
    );
    world.stop().await;
}

#[tokio::test]
async fn a_delivery_is_replayed_and_discarded_by_who_may_not_see_its_body() {
    let admin = Who::new("admin", &[Scope::Admin], &["acme"], &[]);
    let gateways = Who::new("gateways", &[Scope::Ingest], &["*"], &[]);
    let world = World::start(&[&admin, &gateways]).await;
    let mut gateway = Gateway::by(&world.server.channel, &gateways.bearer(), hello(3)).await;
    let path = "/passline.v1.DeliveryService/ReplayDelivery";
    let (channel, bearer) = (world.server.channel.clone(), admin.bearer());
    let name = format!("deliveries/{}", crate::make::id(super::NORTH.2 + 2));
    let request = v1::ReplayDeliveryRequest {
        name,
        request_id: String::new(),
    };
    let replaying = tokio::spawn(async move {
        super::call(&channel, path, &bearer, vec![super::message(&request)]).await
    });
    let asked = gateway.answer().await.unwrap().unwrap();
    let v1::ingest_response::Message::Redecode(asked) = asked else {
        panic!("{asked:?}");
    };
    let delivery = asked.delivery.unwrap();
    assert_eq!(delivery.body, "north personal-body", "the gateway needs it");
    let redecoded = v1::IngestRedecoded {
        redecode_number: asked.redecode_number,
        delivery: Some(v1::IngestDelivery {
            decoded: Some(v1::ingest_delivery::Decoded::Control("ping".into())),
            ..delivery
        }),
    };
    gateway
        .say(v1::ingest_request::Message::Redecoded(redecoded))
        .await;
    let answer = soon("the replay", replaying).await.unwrap();
    assert_eq!(answer.status.code(), Code::Ok, "{:?}", answer.status);
    assert!(!answer.told().contains("personal"));
    world.stop().await;
}
