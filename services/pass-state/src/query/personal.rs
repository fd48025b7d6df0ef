//! Takes personal data out of answers for callers without the scope for it.
//!
//! What is marked `debug_redact` in the protos is personal, and so is what their comments name besides: the
//! query of a delivery's path, and headers that may tell of a person. The store leaves most of it out already;
//! this is what decides.

use pass_proto::v1;

/// Headers that tell of the message and not of a person. All others count as personal.
const PLAIN_HEADERS: [&str; 5] = [
    "content-type",
    "webhook-id",
    "webhook-timestamp",
    "svix-id",
    "svix-timestamp",
];

/// Leaves an event without personal data.
pub(crate) fn strip_event(event: &mut v1::PassEvent) {
    event.personal = None;
    if let Some(redemption) = &mut event.redemption {
        redemption.scanner.clear();
    }
}

/// Leaves a pass without personal data.
pub(crate) fn strip_pass(pass: &mut v1::Pass) {
    if let Some(redemption) = &mut pass.last_redemption {
        redemption.scanner.clear();
    }
}

/// Leaves a delivery without personal data.
pub(crate) fn strip_delivery(delivery: &mut v1::Delivery) {
    delivery.body.clear();
    (delivery.headers).retain(|header| PLAIN_HEADERS.contains(&header.name.as_str()));
    if let Some(query) = delivery.path.find('?') {
        delivery.path.truncate(query);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_reflect::{DescriptorPool, DynamicMessage, Kind, MessageDescriptor, Value};

    use super::*;
    use crate::query::{deliveries, events, passes};

    /// Fills every field that a message has, also those that will be added, with values of their own.
    fn full(descriptor: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields().filter(|_| depth < 6) {
            let text = || Value::String(format!("?{}", field.full_name()));
            let value = match field.kind() {
                Kind::Message(inner) if field.is_map() => {
                    let _ = inner;
                    Value::Map([(prost_reflect::MapKey::String("k".into()), text())].into())
                }
                Kind::Message(inner) => Value::Message(full(&inner, depth + 1)),
                Kind::String => text(),
                Kind::Bytes => Value::Bytes(field.full_name().to_owned().into()),
                Kind::Bool => Value::Bool(true),
                Kind::Enum(_) => Value::EnumNumber(1),
                Kind::Int32 => Value::I32(1),
                Kind::Int64 => Value::I64(1),
                other => panic!("{other:?}"),
            };
            let value = if field.is_list() {
                Value::List(vec![value])
            } else {
                value
            };
            message.set_field(&field, value);
        }
        message
    }

    /// The fields that are marked as personal and still there.
    fn personal(message: &DynamicMessage, found: &mut BTreeSet<String>) {
        for (field, value) in message.fields() {
            let options = field.options();
            let redacted = options.get_field_by_name("debug_redact");
            if redacted.is_some_and(|value| value.as_bool() == Some(true)) {
                found.insert(field.full_name().to_owned());
            }
            match value {
                Value::Message(inner) => personal(inner, found),
                Value::List(values) => {
                    for value in values {
                        value
                            .as_message()
                            .into_iter()
                            .for_each(|inner| personal(inner, found));
                    }
                }
                _ => {}
            }
        }
    }

    /// Which personal fields a full message has, and which are left once it was stripped.
    fn before_and_after<M: prost::Message + Default>(
        name: &str,
        strip: fn(&mut M),
    ) -> (BTreeSet<String>, BTreeSet<String>) {
        let pool = DescriptorPool::decode(pass_proto::DESCRIPTORS).unwrap();
        let descriptor = pool.get_message_by_name(name).unwrap();
        let message = full(&descriptor, 0);
        let mut typed = M::decode(message.encode_to_vec().as_slice()).unwrap();
        strip(&mut typed);
        let stripped =
            DynamicMessage::decode(descriptor, typed.encode_to_vec().as_slice()).unwrap();
        let (mut before, mut after) = (BTreeSet::new(), BTreeSet::new());
        personal(&message, &mut before);
        personal(&stripped, &mut after);
        (before, after)
    }

    #[test]
    fn nothing_that_the_protos_mark_as_personal_is_left() {
        for (before, after) in [
            before_and_after("passline.v1.PassEvent", strip_event),
            before_and_after("passline.v1.Pass", strip_pass),
            before_and_after("passline.v1.Delivery", strip_delivery),
        ] {
            assert!(!before.is_empty());
            assert_eq!(after, BTreeSet::new(), "of {before:?}");
        }
    }

    #[test]
    fn a_delivery_keeps_no_query_and_no_header_that_may_tell_of_a_person() {
        let header = |name: &str| v1::Header {
            name: name.into(),
            value: "x".into(),
        };
        let mut delivery = v1::Delivery {
            path: "/webhooks/acme?name=x".into(),
            headers: ["content-type", "user-agent", "x-new", "webhook-id"]
                .map(header)
                .into(),
            body: "x".into(),
            ..v1::Delivery::default()
        };
        strip_delivery(&mut delivery);
        assert_eq!(delivery.path, "/webhooks/acme");
        let names: Vec<&str> = delivery
            .headers
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        assert_eq!(names, ["content-type", "webhook-id"]);
    }

    #[test]
    fn no_filter_names_personal_data() {
        let schemas = [&events::SCHEMA, &passes::SCHEMA, &deliveries::SCHEMA];
        let names: Vec<&str> = (schemas.iter())
            .flat_map(|schema| schema.fields.iter().map(|field| field.name))
            .collect();
        for word in [
            "personal", "scanner", "body", "header", "path", "agent", "address", "email", "name",
            "position",
        ] {
            assert!(
                !names.iter().any(|name| name.contains(word)),
                "{word} in {names:?}"
            );
        }
    }
}
