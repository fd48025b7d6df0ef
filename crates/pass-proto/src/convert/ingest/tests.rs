use super::*;
use pass_domain::fact::{Assertion, IdentityBasis, InstallationScope, TimeBasis, WalletKind};

fn fallback() -> Fallback {
    Fallback {
        id: DeliveryId::from_bytes([9; 16]),
        receive_time: Timestamp::UNIX_EPOCH,
    }
}

fn delivery() -> Delivery {
    let time = pass_domain::time::from_parts(1_608_644_748, 43_410_000).expect("in range");
    let pass = VendorId::new("p/1").expect("valid");
    Delivery {
        id: DeliveryId::from_bytes([1; 16]),
        source: SourceUid::new("acme").expect("valid"),
        vendor: "passkit".into(),
        organization: "org".into(),
        receive_time: time,
        method: Method::Put,
        path: "/webhooks/acme".into(),
        headers: vec![("content-type".into(), "application/json".into())],
        body: b"{}".to_vec(),
        auth: AuthVerdict {
            scheme: AuthScheme::Hmac,
            key_id: "k1".into(),
            detail: "hex,ascii".into(),
        },
        adapter_version: "passkit/1".into(),
        trace: TraceContext {
            traceparent: "00-1-2-01".into(),
            tracestate: "a=b".into(),
        },
        decoded: Decoded::Facts(Box::new(DecodedFacts {
            facts: vec![Fact {
                id: EventId::from_bytes([2; 16]),
                identity_version: 1,
                identity_basis: IdentityBasis::TransitionTime,
                pass: pass.clone(),
                kind: Kind::Installed,
                vendor_kind: "PASS_EVENT_INSTALLED".into(),
                assertion: Assertion::Derived,
                occur_time: time,
                time_basis: TimeBasis::VendorState,
                installation: Some(InstallationRef {
                    id: pass.clone(),
                    scope: InstallationScope::Device,
                }),
                wallet: Some(Wallet {
                    kind: WalletKind::Apple,
                    native: "n".into(),
                    device_os: "ios".into(),
                    device_app: "a".into(),
                }),
                refs: Refs {
                    campaign: "c".into(),
                    ..Refs::default()
                },
                redemption: Some(Redemption {
                    count: Some(-1),
                    time: Some(time),
                    scanner: "s".into(),
                }),
                attributes: BTreeMap::from([("a".into(), "b".into())]),
                content_digest: u64::MAX,
            }],
            snapshot: Some(Snapshot {
                pass,
                update_time: time,
                content_digest: 3,
                voided: Some(false),
                redeemed_count: Some(2),
                vendor_status: Some(VendorStatus {
                    number: Some(0),
                    name: "PASS_ISSUED".into(),
                    attained: vec!["RENDERED".into()],
                }),
                create_time: Some(time),
                refs: Refs {
                    serial_number: "s".into(),
                    ..Refs::default()
                },
            }),
            personal: Personal {
                email_address: "holder@example.com".into(),
                ..Personal::default()
            },
            notes: vec!["METADATA_CASE".into()],
        })),
    }
}

#[test]
fn a_delivery_crosses_the_wire_unchanged() {
    let delivery = delivery();
    assert_eq!(
        delivery_from_wire(delivery_to_wire(&delivery), fallback()),
        delivery
    );
    for decoded in [
        Decoded::Control {
            vendor_kind: "verify".into(),
        },
        Decoded::Undecodable(Undecodable {
            reason: UndecodableReason::TooDeep,
            detail: "d".into(),
        }),
    ] {
        let delivery = Delivery {
            decoded,
            ..delivery.clone()
        };
        assert_eq!(
            delivery_from_wire(delivery_to_wire(&delivery), fallback()),
            delivery
        );
    }
}

#[test]
fn what_is_wrong_for_ever_is_quarantined_with_its_bytes_and_the_field() {
    type Spoil = fn(&mut v1::IngestDelivery);
    fn fact(wire: &mut v1::IngestDelivery) -> &mut v1::Fact {
        match &mut wire.decoded {
            Some(v1::ingest_delivery::Decoded::Facts(facts)) => &mut facts.facts[0],
            _ => panic!("facts expected"),
        }
    }
    let cases: [(Spoil, &str); 9] = [
        (|w| w.id.clear(), "id must be 16 bytes"),
        (|w| w.source = "No".into(), "source"),
        (|w| w.receive_time = None, "receive_time"),
        (|w| w.method = "GET".into(), "method"),
        (|w| w.auth = None, "auth"),
        (|w| w.decoded = None, "decoded"),
        (
            |w| fact(w).vendor_pass_id = "a\0".into(),
            "facts[0].vendor_pass_id",
        ),
        (|w| fact(w).kind = 0, "facts[0].kind"),
        (
            |w| {
                fact(w).occur_time = Some(prost_types::Timestamp {
                    seconds: i64::MAX,
                    nanos: 0,
                })
            },
            "facts[0].occur_time",
        ),
    ];
    for (spoil, field) in cases {
        let mut wire = delivery_to_wire(&delivery());
        spoil(&mut wire);
        let delivery = delivery_from_wire(wire, fallback());
        assert_eq!(delivery.body, b"{}");
        match delivery.decoded {
            Decoded::Undecodable(undecodable) => {
                assert_eq!(undecodable.reason, UndecodableReason::StoreRefused);
                assert!(
                    undecodable.detail.contains(field),
                    "{field}: {}",
                    undecodable.detail
                );
            }
            other => panic!("{field}: {other:?}"),
        }
    }
}

#[test]
fn texts_lose_their_nul_and_what_is_over_the_bound() {
    let mut wire = delivery_to_wire(&delivery());
    wire.vendor = "a\0b".into();
    wire.organization = "é".repeat(1_000);
    let delivery = delivery_from_wire(wire, fallback());
    assert_eq!(delivery.vendor, "a\u{fffd}b");
    assert_eq!(delivery.organization, "é".repeat(512));
}
