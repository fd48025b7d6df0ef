//! Requests for every method, by hand: a method without any here fails the matrix.

use bytes::Bytes;
use pass_proto::convert::delivery_to_wire;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as ToStore;
use pass_proto::v1::lookup_passes_request::Key;
use prost_types::FieldMask;

use super::{NORTH, SOUTH, World, deliveries, message};
use crate::harness::{from_beginning, from_end, hello, request};
use crate::make::id;

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// What the northern organization told.
    North,
    /// What the southern one told, by this name.
    South(String),
    /// Something that nobody told, by this name, and otherwise as [`About::South`].
    Nothing(String),
    /// Whatever there is.
    All,
    /// Nothing: it can't be read.
    Nonsense,
}

/// A request, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) about: About,
    pub(super) messages: Vec<Bytes>,
}

fn asked(about: About, request: &impl prost::Message) -> Asked {
    Asked {
        about,
        messages: vec![message(request)],
    }
}

fn south(name: &str) -> About {
    About::South(name.to_owned())
}

fn nothing(name: &str) -> About {
    About::Nothing(name.to_owned())
}

const NORTHERN_PASS: &str = "sources/acme/passes/pass-north-1";
const SOUTHERN_PASS: &str = "sources/zeta/passes/pass-south-1";
/// As long as the southern one, and nobody's.
const NO_PASS: &str = "sources/zeta/passes/pass-south-9";

/// The same question about the north, the south, nothing, and nonsense.
fn each<R: prost::Message>(
    [northern, southern, no]: [&str; 3],
    ask: impl Fn(String) -> R,
) -> Vec<Asked> {
    vec![
        asked(About::North, &ask(northern.to_owned())),
        asked(south(southern), &ask(southern.to_owned())),
        asked(nothing(no), &ask(no.to_owned())),
        asked(About::Nonsense, &ask("nonsense".to_owned())),
    ]
}

/// Requests for a method; `None` if nobody has thought of it.
pub(super) fn requests(world: &World, path: &str) -> Option<Vec<Asked>> {
    let (service, method) = path.trim_start_matches('/').split_once('/')?;
    match service.strip_prefix("passline.v1.")? {
        "PassService" => of_passes(world, method),
        "DeliveryService" => of_deliveries(method),
        "SubscriptionService" if method == "Subscribe" => Some(of_subscriptions()),
        "IngestService" if method == "Ingest" => Some(of_ingest()),
        _ => None,
    }
}

fn of_passes(world: &World, method: &str) -> Option<Vec<Asked>> {
    let passes = [NORTHERN_PASS, SOUTHERN_PASS, NO_PASS];
    let sources = ["sources/acme", "sources/zeta", "sources/zetb"];
    Some(match method {
        "GetPass" => each(passes, |name| v1::GetPassRequest {
            name,
            ..v1::GetPassRequest::default()
        }),
        "BatchGetPasses" => {
            let ask = |names: &[&str], allow_missing| v1::BatchGetPassesRequest {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
                allow_missing,
                ..v1::BatchGetPassesRequest::default()
            };
            let mut asks = each(passes, |name| ask(&[&name], false));
            asks.push(asked(About::All, &ask(&passes, true)));
            asks
        }
        "ListPasses" => {
            let ask = |parent: String| v1::ListPassesRequest {
                parent,
                ..v1::ListPassesRequest::default()
            };
            let mut asks = each(sources, ask);
            for (order_by, filter) in [
                ("", ""),
                ("last_event desc", ""),
                ("", "organization = \"south\""),
                ("", "source = \"zeta\""),
                ("", "NOT source = \"acme\""),
            ] {
                let all = v1::ListPassesRequest {
                    order_by: order_by.into(),
                    filter: filter.into(),
                    ..ask("sources/-".into())
                };
                asks.push(asked(About::All, &all));
            }
            asks
        }
        "LookupPasses" => {
            let ask = |parent: String, key: Key| v1::LookupPassesRequest {
                parent,
                key: Some(key),
                ..v1::LookupPassesRequest::default()
            };
            let shared = || Key::ExternalId("shared".into());
            let serial = |text: &str| Key::SerialNumber(text.into());
            let mut asks = each(sources, |parent| ask(parent, shared()));
            let all = |key| ask("sources/-".into(), key);
            asks.push(asked(About::All, &all(shared())));
            let (theirs, no) = ("SN-pass-south-1", "SN-pass-south-9");
            asks.push(asked(south(theirs), &all(serial(theirs))));
            asks.push(asked(nothing(no), &all(serial(no))));
            asks
        }
        "GetEvent" => {
            let [northern, southern] =
                [NORTHERN_PASS, SOUTHERN_PASS].map(|pass| &world.events[pass]);
            let (pass, event) = southern.rsplit_once('/')?;
            // Another last digit, and nobody's id.
            let digit = if event.ends_with('0') { '1' } else { '0' };
            let no = format!("{pass}/{}{digit}", &event[..event.len() - 1]);
            each([northern, southern, &no], |name| v1::GetEventRequest {
                name,
                ..v1::GetEventRequest::default()
            })
        }
        "ListEvents" => {
            let ask = |parent: String| v1::ListEventsRequest {
                parent,
                ..v1::ListEventsRequest::default()
            };
            let mut asks = each(passes, ask);
            asks.extend(each(
                sources
                    .map(|source| format!("{source}/passes/-"))
                    .each_ref()
                    .map(String::as_str),
                ask,
            ));
            for (order_by, filter) in [
                ("", ""),
                ("position desc", ""),
                ("", "organization = \"south\""),
                ("", "attributes.tier = \"tier-south\""),
                ("", &format!("pass = \"{SOUTHERN_PASS}\"")),
            ] {
                let all = v1::ListEventsRequest {
                    order_by: order_by.into(),
                    filter: filter.into(),
                    ..ask("sources/-/passes/-".into())
                };
                asks.push(asked(About::All, &all));
            }
            asks
        }
        "GetLogInfo" => vec![asked(About::All, &v1::GetLogInfoRequest {})],
        _ => return None,
    })
}

fn of_deliveries(method: &str) -> Option<Vec<Asked>> {
    let name = |number: u64| format!("deliveries/{}", id(number));
    // The one in quarantine, so that something could happen to it.
    let names = [NORTH.2 + 2, SOUTH.2 + 2, 999].map(name);
    let names = names.each_ref().map(String::as_str);
    Some(match method {
        "GetDelivery" => {
            let ask = |view: v1::DeliveryView| {
                move |name: String| v1::GetDeliveryRequest {
                    name,
                    view: view as i32,
                    read_mask: None,
                }
            };
            let mut asks = each(names, ask(v1::DeliveryView::Full));
            asks.extend(each(names, ask(v1::DeliveryView::Basic)));
            let applied = [NORTH.2 + 1, SOUTH.2 + 1, 999].map(name);
            asks.extend(each(
                applied.each_ref().map(String::as_str),
                ask(v1::DeliveryView::Full),
            ));
            let masked = v1::GetDeliveryRequest {
                read_mask: Some(FieldMask {
                    paths: ["source", "body", "headers", "path"]
                        .map(str::to_owned)
                        .into(),
                }),
                ..ask(v1::DeliveryView::Full)(names[0].to_owned())
            };
            asks.push(asked(About::North, &masked));
            asks
        }
        "ListDeliveries" => [
            "",
            "quarantine = OPEN",
            "organization = \"south\"",
            "source = \"zeta\"",
        ]
        .map(|filter| {
            let all = v1::ListDeliveriesRequest {
                filter: filter.into(),
                ..v1::ListDeliveriesRequest::default()
            };
            asked(About::All, &all)
        })
        .into(),
        "ReplayDelivery" => each(names, |name| v1::ReplayDeliveryRequest {
            name,
            request_id: String::new(),
        }),
        "DiscardDelivery" => each(names, |name| v1::DiscardDeliveryRequest {
            name,
            reason: "because".into(),
            request_id: String::new(),
        }),
        _ => return None,
    })
}

fn of_subscriptions() -> Vec<Asked> {
    let mut asks = vec![asked(About::Nonsense, &v1::SubscribeRequest::default())];
    for (start, filter) in [
        (from_beginning(), ""),
        (from_beginning(), "organization = \"south\""),
        (from_end(), ""),
    ] {
        let all = v1::SubscribeRequest {
            filter: filter.into(),
            stop_at_head: true,
            ..start
        };
        asks.push(asked(About::All, &all));
    }
    asks
}

/// A stream that says hello and sends what was sent before, once more.
fn of_ingest() -> Vec<Asked> {
    let stream = |of: (&str, &str, u64), spool: u8| {
        let hello = v1::IngestHello {
            sources: vec![of.1.to_owned()],
            ..hello(spool)
        };
        let deliveries = (1..)
            .zip(deliveries(of))
            .map(|(sequence, delivery)| v1::IngestDelivery {
                sequence,
                ..delivery_to_wire(&delivery)
            });
        let batch = v1::IngestBatch {
            batch_number: 1,
            deliveries: deliveries.collect(),
        };
        vec![
            message(&request(ToStore::Hello(hello))),
            message(&request(ToStore::Batch(batch))),
        ]
    };
    vec![
        Asked {
            about: About::North,
            messages: stream(NORTH, 7),
        },
        Asked {
            about: south("zeta"),
            messages: stream(SOUTH, 8),
        },
        Asked {
            about: About::Nonsense,
            messages: vec![Bytes::new()],
        },
    ]
}
