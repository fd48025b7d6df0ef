//! Deliveries for tests.

use std::collections::BTreeMap;

use pass_domain::Timestamp;
use pass_domain::delivery::{
    AuthScheme, AuthVerdict, Decoded, DecodedFacts, Delivery, Method, TraceContext, Undecodable,
    UndecodableReason,
};
use pass_domain::fact::{
    Assertion, Fact, IdentityBasis, InstallationRef, InstallationScope, Personal, Refs, TimeBasis,
    Wallet, WalletKind,
};
use pass_domain::identity::{IDENTITY_VERSION, Part, event_id};
use pass_domain::ids::{DeliveryId, SourceUid, VendorId};
use pass_domain::kind::Kind;

/// 2026-01-01T00:00:00Z and so many seconds.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + seconds).unwrap()
}

pub(crate) fn id(number: u64) -> DeliveryId {
    let mut bytes = [7; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    DeliveryId::from_bytes(bytes)
}

pub(crate) fn fact(source: &str, pass: &str, kind: Kind, seconds: i64) -> Fact {
    let source = SourceUid::new(source).unwrap();
    let parts = [Part::Text(pass), Part::Time(at(seconds))];
    Fact {
        id: event_id(&source, kind.name(), &parts, Some(at(seconds))),
        identity_version: IDENTITY_VERSION,
        identity_basis: IdentityBasis::EventFields,
        pass: VendorId::new(pass).unwrap(),
        kind,
        vendor_kind: format!("vendor.{}", kind.name().to_lowercase()),
        assertion: Assertion::Reported,
        occur_time: at(seconds),
        time_basis: TimeBasis::VendorEvent,
        installation: (kind == Kind::Installed).then(|| InstallationRef {
            id: VendorId::new("reg-1").unwrap(),
            scope: InstallationScope::Registration,
        }),
        wallet: (kind == Kind::Installed).then(|| Wallet {
            kind: WalletKind::Apple,
            native: "passbook".into(),
            device_os: String::new(),
            device_app: String::new(),
        }),
        refs: Refs {
            campaign: "spring".into(),
            serial_number: format!("SN-{pass}"),
            external_id: format!("ext-{pass}"),
            ..Refs::default()
        },
        redemption: None,
        attributes: BTreeMap::from([("tier".to_owned(), "gold".to_owned())]),
        content_digest: 1,
    }
}

/// A delivery of one fact about a pass of source `acme`, made `seconds` into 2026.
pub(crate) fn delivery(number: u64, pass: &str, kind: Kind, seconds: i64) -> Delivery {
    of_source("acme", number, pass, kind, seconds)
}

pub(crate) fn of_source(
    source: &str,
    number: u64,
    pass: &str,
    kind: Kind,
    seconds: i64,
) -> Delivery {
    let facts = DecodedFacts {
        facts: vec![fact(source, pass, kind, seconds)],
        snapshot: None,
        personal: Personal {
            display_name: "Ada".into(),
            ..Personal::default()
        },
        notes: vec!["TRAILING_SPACE_KEY".into()],
    };
    with(source, number, Decoded::Facts(Box::new(facts)))
}

pub(crate) fn undecodable(number: u64) -> Delivery {
    let why = Undecodable {
        reason: UndecodableReason::KindUnknown,
        detail: "event: this adapter does not know the kind".into(),
    };
    with("acme", number, Decoded::Undecodable(why))
}

pub(crate) fn control(number: u64) -> Delivery {
    let vendor_kind = "ping".to_owned();
    with("acme", number, Decoded::Control { vendor_kind })
}

fn with(source: &str, number: u64, decoded: Decoded) -> Delivery {
    Delivery {
        id: id(number),
        source: SourceUid::new(source).unwrap(),
        vendor: "passworks".into(),
        organization: "acme-gmbh".into(),
        receive_time: at(1_000),
        method: Method::Post,
        path: format!("/webhooks/{source}"),
        headers: vec![("content-type".into(), "application/json".into())],
        body: format!("{{\"n\":{number}}}").into_bytes(),
        auth: AuthVerdict {
            scheme: AuthScheme::Hmac,
            key_id: "k1".into(),
            detail: "hex".into(),
        },
        adapter_version: "passworks/1".into(),
        trace: TraceContext::default(),
        decoded,
    }
}

/// Deliveries `from..until`, each installing a pass of its own.
pub(crate) fn installs(range: std::ops::Range<u64>) -> Vec<Delivery> {
    range
        .map(|n| delivery(n, &format!("pass-{n}"), Kind::Installed, n as i64))
        .collect()
}
