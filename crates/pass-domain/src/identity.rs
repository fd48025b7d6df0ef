//! When two facts are the same one: the rule that makes an id from a fact.
//!
//! An id is a SHA-256 over (identity version, source uid, tag, parts), each length-prefixed and typed, an
//! absent part marked. Times enter as integer nanoseconds, never as text. What is only a guess, the
//! assertion and the delivery stay outside, so the same fact told twice, in other framings, a year apart,
//! has the same id.
//!
//! The id is a UUIDv8. Where the parts contain a vendor time it leads with that time in milliseconds, so
//! that ids of one period are neighbours in the store's unique index; the rest is digest. The version is
//! frozen once released: golden ids below must never change.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::ids::{EventId, SourceUid};
use crate::time::to_parts;

/// The identity rule's version. A change is a new version, never an edit.
pub const IDENTITY_VERSION: u32 = 1;

/// One part of an identity.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// The vendor did not give this part. Differs from an empty text.
    Absent,
    /// A text, byte for byte.
    Text(&'a str),
    /// An instant, as nanoseconds since 1970.
    Time(Timestamp),
    /// A whole number.
    Integer(i64),
    /// Bytes, such as another digest.
    Bytes(&'a [u8]),
}

impl<'a> Part<'a> {
    /// A text, or absent.
    #[must_use]
    pub fn text(text: Option<&'a str>) -> Self {
        text.map_or(Part::Absent, Part::Text)
    }

    /// An instant, or absent.
    #[must_use]
    pub fn time(time: Option<Timestamp>) -> Self {
        time.map_or(Part::Absent, Part::Time)
    }

    /// A whole number, or absent.
    #[must_use]
    pub fn integer(number: Option<i64>) -> Self {
        number.map_or(Part::Absent, Part::Integer)
    }
}

/// Makes a fact's id from its source, its tag (the kind, or the name of a transition) and its parts.
/// `lead` is the vendor time among the parts, if there is one.
#[must_use]
pub fn event_id(
    source: &SourceUid,
    tag: &str,
    parts: &[Part<'_>],
    lead: Option<Timestamp>,
) -> EventId {
    let mut digest = Sha256::new();
    digest.update(b"passline.event");
    digest.update(IDENTITY_VERSION.to_be_bytes());
    feed(&mut digest, Part::Text(source.as_str()));
    feed(&mut digest, Part::Text(tag));
    for part in parts {
        feed(&mut digest, *part);
    }
    let digest = digest.finalize();
    let mut bytes = [0_u8; 16];
    bytes.copy_from_slice(&digest[..16]);
    if let Some(lead) = lead {
        let (seconds, nanos) = to_parts(lead);
        let millis = seconds
            .saturating_mul(1_000)
            .saturating_add(i64::from(nanos) / 1_000_000);
        let millis = u64::try_from(millis).unwrap_or(0).min((1 << 48) - 1);
        bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    }
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    EventId::from_bytes(bytes)
}

/// A 64-bit digest of some content, for ties and for noticing that a second sighting differs.
#[must_use]
pub fn content_digest(parts: &[Part<'_>]) -> u64 {
    let mut digest = Sha256::new();
    digest.update(b"passline.content");
    for part in parts {
        feed(&mut digest, *part);
    }
    let digest = digest.finalize();
    let mut bytes = [0_u8; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(bytes)
}

fn feed(digest: &mut Sha256, part: Part<'_>) {
    let mut put = |marker: u8, bytes: &[u8]| {
        digest.update([marker]);
        digest.update(
            u32::try_from(bytes.len())
                .expect("a part is far below 4 GiB")
                .to_be_bytes(),
        );
        digest.update(bytes);
    };
    match part {
        Part::Absent => put(0, &[]),
        Part::Text(text) => put(1, text.as_bytes()),
        Part::Time(time) => put(2, &time.as_nanosecond().to_be_bytes()),
        Part::Integer(number) => put(3, &number.to_be_bytes()),
        Part::Bytes(bytes) => put(4, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::from_parts;

    fn source() -> SourceUid {
        SourceUid::new("acme").expect("valid")
    }

    #[test]
    fn ids_are_frozen() {
        let time = from_parts(1_608_644_748, 43_410_000);
        let with_time = event_id(
            &source(),
            "INSTALLED",
            &[Part::Text("5u5EO18473CDVG0Vw0VgPV"), Part::time(time)],
            time,
        );
        let without = event_id(
            &source(),
            "DELETED",
            &[Part::Text("5u5EO18473CDVG0Vw0VgPV")],
            None,
        );
        assert_eq!(
            with_time.to_string(),
            "evt_01768ab2e30b862782f8d2d7f82ef051"
        );
        assert_eq!(without.to_string(), "evt_bcbef302acff8ab9933eb50b8c65207a");
    }

    #[test]
    fn parts_cannot_flow_into_each_other() {
        let id = |parts: &[Part<'_>]| event_id(&source(), "T", parts, None);
        let all = [
            id(&[Part::Text("ab"), Part::Text("c")]),
            id(&[Part::Text("a"), Part::Text("bc")]),
            id(&[Part::Text("abc")]),
            id(&[Part::Text("abc"), Part::Absent]),
            id(&[Part::Text("abc"), Part::Text("")]),
            id(&[Part::Bytes(b"abc")]),
            id(&[Part::Integer(0)]),
            id(&[Part::Time(Timestamp::UNIX_EPOCH)]),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn ids_of_later_times_sort_later() {
        let at = |seconds| {
            let time = from_parts(seconds, 0);
            event_id(&source(), "T", &[Part::time(time)], time)
        };
        assert!(at(1_600_000_000) < at(1_600_000_001));
        assert!(at(-5) < at(1_600_000_000));
    }
}
