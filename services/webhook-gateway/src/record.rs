//! The form in which a delivery lies in the spool: one version byte, then a `passline.v1.IngestDelivery`
//! with sequence 0 in protobuf encoding.
//!
//! A spool outlives releases, so a change of this form needs a new version byte, and every version ever
//! released stays readable (see the golden file under `tests/golden/`). Fields that are added to the message
//! need none.

use bytes::Bytes;
use pass_proto::v1;
use prost::Message;

/// The version this release writes.
pub const RECORD_VERSION: u8 = 1;

/// Room for everything in a record but the body and the facts: headers, path, verdict, trace; in bytes.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 48 << 10;

/// Why a record of the spool can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is not even a version byte.
    #[error("record is empty")]
    Empty,
    /// Another release wrote it.
    #[error(
        "record has version {version}, this release reads {RECORD_VERSION}; use the release that wrote it"
    )]
    Version {
        /// The record's version.
        version: u8,
    },
    /// The bytes are not the message.
    #[error("record is no delivery")]
    Malformed(#[from] prost::DecodeError),
}

/// The largest record that a delivery with a body of up to `body_bytes_max` may become, in bytes.
///
/// Below pass-state's limit for one message (twice the body and 64 KiB), so that whatever is stored can be
/// forwarded.
#[must_use]
pub fn record_bytes_max(body_bytes_max: usize) -> usize {
    body_bytes_max
        .saturating_mul(2)
        .saturating_add(RECORD_OVERHEAD_BYTES)
}

/// Writes a record.
#[must_use]
pub fn encode(delivery: &v1::IngestDelivery) -> Bytes {
    // A vector, not `BytesMut`: its small writes cost a third.
    let mut record = Vec::with_capacity(1 + delivery.encoded_len());
    record.push(RECORD_VERSION);
    delivery.encode_raw(&mut record);
    Bytes::from(record)
}

/// Reads a record; the body shares the record's buffer.
///
/// # Errors
/// If the record is of another version or not a delivery.
pub fn decode(mut record: Bytes) -> Result<v1::IngestDelivery, RecordError> {
    if record.is_empty() {
        return Err(RecordError::Empty);
    }
    let message = record.split_off(1);
    match record[0] {
        RECORD_VERSION => Ok(v1::IngestDelivery::decode(message)?),
        version => Err(RecordError::Version { version }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use pass_domain::delivery::{
        AuthScheme, AuthVerdict, Decoded, DecodedFacts, Delivery, Method, TraceContext,
    };
    use pass_domain::fact::{
        Assertion, Fact, IdentityBasis, InstallationRef, InstallationScope, Personal, Redemption,
        Refs, Snapshot, TimeBasis, VendorStatus, Wallet, WalletKind,
    };
    use pass_domain::ids::{DeliveryId, EventId, SourceUid, VendorId};
    use pass_domain::kind::Kind;
    use pass_proto::convert::delivery_to_wire;

    use super::*;

    const GOLDEN: &[u8] = include_bytes!("../tests/golden/record-v1.bin");

    /// A delivery with something in every field.
    fn full() -> Delivery {
        let time = |text: &str| text.parse().unwrap();
        let pass = VendorId::new("pass-1").unwrap();
        let one = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let refs = Refs {
            campaign: "campaign".into(),
            distribution: "distribution".into(),
            class: "class".into(),
            serial_number: "serial".into(),
            external_id: "external".into(),
        };
        Delivery {
            id: DeliveryId::from_bytes([1; 16]),
            source: SourceUid::new("acme").unwrap(),
            vendor: "standard".into(),
            organization: "acme ltd".into(),
            receive_time: time("2026-03-01T00:00:00.123456789Z"),
            method: Method::Put,
            path: "/webhooks/acme?token=[REDACTED]".into(),
            headers: vec![("content-type".into(), "application/json".into())],
            body: b"{}".to_vec(),
            auth: AuthVerdict {
                scheme: AuthScheme::Hmac,
                key_id: "k1".into(),
                detail: "hex,ascii".into(),
            },
            adapter_version: "standard/1".into(),
            trace: TraceContext {
                traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
                tracestate: "vendor=1".into(),
            },
            decoded: Decoded::Facts(Box::new(DecodedFacts {
                facts: vec![Fact {
                    id: EventId::from_bytes([2; 16]),
                    identity_version: 1,
                    identity_basis: IdentityBasis::EventFields,
                    pass: pass.clone(),
                    kind: Kind::Redeemed,
                    vendor_kind: "redeemed".into(),
                    assertion: Assertion::Derived,
                    occur_time: time("2026-02-28T12:00:00Z"),
                    time_basis: TimeBasis::VendorState,
                    installation: Some(InstallationRef {
                        id: VendorId::new("reg-1").unwrap(),
                        scope: InstallationScope::Device,
                    }),
                    wallet: Some(Wallet {
                        kind: WalletKind::Apple,
                        native: "passbook".into(),
                        device_os: "ios".into(),
                        device_app: "wallet".into(),
                    }),
                    refs: refs.clone(),
                    redemption: Some(Redemption {
                        count: Some(3),
                        time: Some(time("2026-02-28T11:59:59Z")),
                        scanner: "till".into(),
                    }),
                    attributes: one("channel", "web"),
                    content_digest: 0x0102_0304_0506_0708,
                }],
                snapshot: Some(Snapshot {
                    pass,
                    update_time: time("2026-02-28T12:00:01Z"),
                    content_digest: 9,
                    voided: Some(true),
                    redeemed_count: Some(3),
                    vendor_status: Some(VendorStatus {
                        number: Some(4),
                        name: "ACTIVE".into(),
                        attained: vec!["ISSUED".into()],
                    }),
                    create_time: Some(time("2026-01-01T00:00:00Z")),
                    refs,
                }),
                personal: Personal {
                    display_name: "Name".into(),
                    email_address: "name@example.com".into(),
                    ip_addresses: one("ip", "192.0.2.1"),
                    user_agents: one("agent", "x"),
                    position: one("city", "Lisbon"),
                    attributes: one("free", "text"),
                },
                notes: vec!["ACTION_AT".into()],
            })),
        }
    }

    #[test]
    fn version_1_is_written_and_read_as_it_was_released() {
        let wire = delivery_to_wire(&full());
        assert_eq!(
            encode(&wire),
            GOLDEN,
            "the stored form changed: raise RECORD_VERSION and keep reading the old one"
        );
        assert_eq!(decode(Bytes::from_static(GOLDEN)).unwrap(), wire);
    }

    #[test]
    fn a_record_of_another_version_names_both_versions() {
        let error = decode(Bytes::from_static(&[9, 0])).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("version 9, this release reads 1"),
            "{error}"
        );
        assert!(matches!(decode(Bytes::new()), Err(RecordError::Empty)));
        assert!(matches!(
            decode(Bytes::from_static(&[1, 0xff])),
            Err(RecordError::Malformed(_))
        ));
    }

    #[test]
    fn a_record_round_trips_and_shares_its_body() {
        let delivery = v1::IngestDelivery {
            source: "acme".into(),
            body: Bytes::from_static(b"{}"),
            ..Default::default()
        };
        let record = encode(&delivery);
        let range = record.as_ptr_range();
        let read = decode(record.clone()).unwrap();
        assert_eq!(read, delivery);
        assert!(range.contains(&read.body.as_ptr()));
    }
}
