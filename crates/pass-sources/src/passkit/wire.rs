//! PassKit's callback as it is on the wire.

use std::borrow::Cow;
use std::fmt;

use pass_domain::Timestamp;
use pass_domain::time::{SECONDS_MIN, from_parts, parse_rfc3339, to_parts};
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::enums::Code;
use crate::json::{List, Loose, Members, Text, object};

object! {
    /// The body.
    pub(super) struct Callback<'a> {
        event: Text<'a> = "event",
        pass: Pass<'a> = "pass",
    }
}

object! {
    /// The pass. The metadata's key is written in two ways in the vendor's own documents.
    pub(super) struct Pass<'a> {
        id: Text<'a> = "id",
        class_id: Loose<'a> = "classId",
        protocol: Code<'a> = "protocol",
        person_details: Members<'a> = "personDetails",
        metadata: Metadata<'a> = "metadata",
        metadata_other_case: Metadata<'a> = "metaData",
        record_data: Members<'a> = "recordData",
        external_id: Loose<'a> = "externalId",
    }
}

object! {
    /// What happened to the pass so far.
    pub(super) struct Metadata<'a> {
        status: Code<'a> = "status",
        lifecycle_events: List<Code<'a>> = "lifecycleEvents",
        utm: Members<'a> = "utm",
        alt_id: Loose<'a> = "altId",
        issue_ip_address: Loose<'a> = "issueIpAddress",
        install_ip_address: Loose<'a> = "installIpAddress",
        render_location: Members<'a> = "renderLocation",
        render_ip_address: Loose<'a> = "renderIpAddress",
        install_user_agent: Loose<'a> = "installUserAgent",
        render_user_agent: Loose<'a> = "renderUserAgent",
        install_device_attributes: List<Code<'a>> = "installDeviceAttributes",
        render_device_attributes: List<Code<'a>> = "renderDeviceAttributes",
        issue_at: Moment = "issueAt",
        rendered_at: Moment = "renderedAt",
        first_installed_at: Moment = "firstInstalledAt",
        last_installed_at: Moment = "lastInstalledAt",
        first_uninstalled_at: Moment = "firstUninstalledAt",
        last_uninstalled_at: Moment = "lastUninstalledAt",
        invalidated_at: Moment = "invalidatedAt",
        last_updated_at: Moment = "lastUpdatedAt",
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Code<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CodeVisitor;

        impl<'de> Visitor<'de> for CodeVisitor {
            type Value = Code<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an enum's number or name")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Self::Value, E> {
                Ok(Code::Number(number))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
                i64::try_from(number)
                    .map(Code::Number)
                    .map_err(|_| E::custom("out of range"))
            }

            fn visit_borrowed_str<E: de::Error>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Code::Name(Cow::Borrowed(name)))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Code::Name(Cow::Owned(name.to_owned())))
            }
        }

        deserializer.deserialize_any(CodeVisitor)
    }
}

/// A time: `{seconds, nanos}` with members missing where they are 0, or an RFC 3339 text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A time.
    At(Timestamp),
    /// The zero time of the vendor's language, which stands for "not yet".
    Absent,
    /// An object without members.
    Empty,
    /// A member is there twice.
    Duplicate,
    /// Not a time, or out of range.
    Invalid,
}

impl Moment {
    fn from_time(time: Option<Timestamp>) -> Self {
        match time {
            None => Moment::Invalid,
            Some(time) if to_parts(time) == (SECONDS_MIN, 0) => Moment::Absent,
            Some(time) => Moment::At(time),
        }
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MomentVisitor;

        impl<'de> Visitor<'de> for MomentVisitor {
            type Value = Moment;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds and nanos, or an RFC 3339 text")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Moment::from_time(parse_rfc3339(text)))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let (mut seconds, mut nanos) = (None::<i64>, None::<i64>);
                let mut is_duplicate = false;
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    match &*key.0 {
                        "seconds" => is_duplicate |= seconds.replace(map.next_value()?).is_some(),
                        "nanos" => is_duplicate |= nanos.replace(map.next_value()?).is_some(),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                if is_duplicate {
                    return Ok(Moment::Duplicate);
                }
                if seconds.is_none() && nanos.is_none() {
                    return Ok(Moment::Empty);
                }
                let nanos = i32::try_from(nanos.unwrap_or(0)).unwrap_or(-1);
                Ok(Moment::from_time(from_parts(seconds.unwrap_or(0), nanos)))
            }
        }

        deserializer.deserialize_any(MomentVisitor)
    }
}
