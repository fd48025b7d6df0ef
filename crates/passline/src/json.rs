//! Messages of the API as JSON: proto field names in `snake_case`, enums by
//! name, times as RFC 3339, 64-bit numbers as numbers, absent and zero fields
//! left out.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;

/// The compiled protos, decoded once.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(pass_proto::DESCRIPTORS).expect("our own build wrote the descriptors")
});

/// Turns a message of package `passline.v1` called `name` into JSON.
///
/// A number of 64 bits over 2^53 stays exact in the text; scripts that read
/// numbers as doubles should expect that.
pub(crate) fn message(name: &str, message: &impl Message) -> Value {
    let descriptor = POOL
        .get_message_by_name(&format!("passline.v1.{name}"))
        .expect("callers name messages of our own protos");
    let dynamic = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .expect("both sides come from the same protos");
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(false)
        .skip_default_fields(true);
    dynamic
        .serialize_with_options(serde_json::value::Serializer, &options)
        .unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pass_proto::v1;

    #[test]
    fn fields_have_their_proto_names_and_numbers_stay_numbers() {
        let pass = v1::Pass {
            name: "sources/a/passes/b".into(),
            vendor_pass_id: "b".into(),
            state: v1::PassState::Installed as i32,
            redeemed_count: 3,
            vendor_update_time: Some(prost_types::Timestamp {
                seconds: 1,
                nanos: 500_000_000,
            }),
            ..v1::Pass::default()
        };
        assert_eq!(
            message("Pass", &pass).to_string(),
            r#"{"name":"sources/a/passes/b","redeemed_count":3,"state":"PASS_STATE_INSTALLED","vendor_pass_id":"b","vendor_update_time":"1970-01-01T00:00:01.500Z"}"#
        );
    }

    #[test]
    fn enum_numbers_of_a_newer_server_survive() {
        let pass = v1::Pass {
            state: 99,
            ..v1::Pass::default()
        };
        assert_eq!(message("Pass", &pass)["state"], 99);
    }
}
