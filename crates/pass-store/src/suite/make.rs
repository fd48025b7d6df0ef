//! Deliveries, facts and snapshots to try stores with, made from small numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pass_domain::Timestamp;
use pass_domain::delivery::{
    AuthScheme, AuthVerdict, Decoded, DecodedFacts, Delivery, Method, TraceContext, Undecodable,
    UndecodableReason,
};
use pass_domain::fact::{
    Assertion, Fact, IdentityBasis, InstallationRef, InstallationScope, Personal, Redemption, Refs,
    Snapshot, TimeBasis, VendorStatus, Wallet, WalletKind,
};
use pass_domain::fold::{Fold, PassState};
use pass_domain::identity::{IDENTITY_VERSION, Part, content_digest, event_id};
use pass_domain::ids::{DeliveryId, EventId, PassKey, SourceUid, VendorId};
use pass_domain::kind::Kind;
use pass_domain::time::from_parts;
use proptest::prelude::*;

/// 2023-11-14T22:13:20Z, where made times start.
const START_SECONDS: i64 = 1_700_000_000;

/// An instant some seconds after the start.
#[must_use]
pub fn at(seconds: i64) -> Timestamp {
    from_parts(START_SECONDS + seconds, 0).expect("in range")
}

/// A source.
#[must_use]
pub fn source(name: &str) -> SourceUid {
    SourceUid::new(name).expect("a valid uid")
}

/// A pass of a source.
#[must_use]
pub fn pass(source_name: &str, number: u8) -> PassKey {
    PassKey {
        source: source(source_name),
        pass: pass_id(number),
    }
}

fn pass_id(number: u8) -> VendorId {
    VendorId::new(&format!("pass-{number}")).expect("a valid id")
}

/// A fact in short. Equal short facts of one source are the same fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Short {
    /// Which pass.
    pub pass: u8,
    /// What happened.
    pub kind: Kind,
    /// When, in seconds after the start.
    pub at: i64,
    /// Which installation, if it says.
    pub installation: Option<u8>,
}

/// A fact without an installation.
#[must_use]
pub fn short(pass: u8, kind: Kind, at: i64) -> Short {
    Short {
        pass,
        kind,
        at,
        installation: None,
    }
}

impl Short {
    /// The fact in full. Transitions of PassKit's kind rest on their time; others on their fields.
    #[must_use]
    pub fn fact(self, source: &SourceUid) -> Fact {
        let pass = pass_id(self.pass);
        let time = at(self.at);
        let installation = self
            .installation
            .map(|number| VendorId::new(&format!("device-{number}")).expect("valid"));
        let parts = [
            Part::Text(pass.as_str()),
            Part::Time(time),
            Part::text(installation.as_ref().map(VendorId::as_str)),
        ];
        let transition = self.installation.is_none()
            && matches!(
                self.kind,
                Kind::Created | Kind::Installed | Kind::Uninstalled | Kind::Voided
            );
        let id = event_id(source, self.kind.name(), &parts, Some(time));
        let content_digest = content_digest(&parts);
        Fact {
            id,
            identity_version: IDENTITY_VERSION,
            identity_basis: if transition {
                IdentityBasis::TransitionTime
            } else {
                IdentityBasis::EventFields
            },
            pass,
            kind: self.kind,
            vendor_kind: self.kind.name().to_lowercase(),
            assertion: if transition {
                Assertion::Derived
            } else {
                Assertion::Reported
            },
            occur_time: time,
            time_basis: if transition {
                TimeBasis::VendorState
            } else {
                TimeBasis::VendorEvent
            },
            installation: installation.map(|id| InstallationRef {
                id,
                scope: InstallationScope::Device,
            }),
            wallet: (self.kind == Kind::Installed).then(|| Wallet {
                kind: WalletKind::Apple,
                native: "passbook".to_owned(),
                device_os: "iOS".to_owned(),
                device_app: String::new(),
            }),
            refs: Refs {
                campaign: "spring".to_owned(),
                serial_number: format!("serial-{}", self.pass),
                external_id: format!("member-{}", self.pass / 2),
                ..Refs::default()
            },
            redemption: (self.kind == Kind::Redeemed).then(|| Redemption {
                count: Some(self.at),
                time: Some(time),
                scanner: "till 4".to_owned(),
            }),
            attributes: BTreeMap::from([("tier".to_owned(), "gold".to_owned())]),
            content_digest,
        }
    }
}

/// A snapshot in short: pass, time and whether it is void.
pub type ShortSnapshot = (u8, i64, bool);

fn snapshot((pass, seconds, voided): ShortSnapshot) -> Snapshot {
    Snapshot {
        pass: pass_id(pass),
        update_time: at(seconds),
        content_digest: content_digest(&[Part::Integer(seconds), Part::Integer(i64::from(voided))]),
        voided: Some(voided),
        redeemed_count: Some(seconds / 2),
        vendor_status: Some(VendorStatus {
            number: Some(1),
            name: "LIVE".to_owned(),
            attained: vec!["CREATED".to_owned()],
        }),
        create_time: Some(at(0)),
        refs: Refs {
            class: "loyalty".to_owned(),
            ..Refs::default()
        },
    }
}

/// What a made delivery says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// Facts, and maybe a snapshot.
    Facts(Vec<Short>, Option<ShortSnapshot>),
    /// A handshake.
    Control,
    /// Nothing that can be decoded.
    Nonsense,
}

/// A delivery's id from a number.
#[must_use]
pub fn delivery_id(number: u64) -> DeliveryId {
    let mut bytes = [0x70; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    DeliveryId::from_bytes(bytes)
}

/// A delivery in full. Its number makes its id and its receive time.
#[must_use]
pub fn delivery(source_name: &str, number: u64, says: &Says) -> Delivery {
    let source = source(source_name);
    let decoded = match says {
        Says::Facts(facts, state) => Decoded::Facts(Box::new(DecodedFacts {
            facts: facts.iter().map(|short| short.fact(&source)).collect(),
            snapshot: state.map(snapshot),
            personal: Personal {
                display_name: format!("Holder {number}"),
                email_address: "holder@example.test".to_owned(),
                ip_addresses: BTreeMap::from([("scannedIp".to_owned(), "192.0.2.1".to_owned())]),
                ..Personal::default()
            },
            notes: vec!["TRAILING_SPACE_KEY".to_owned()],
        })),
        Says::Control => Decoded::Control {
            vendor_kind: "ping".to_owned(),
        },
        Says::Nonsense => Decoded::Undecodable(Undecodable {
            reason: UndecodableReason::NotJson,
            detail: "body: not JSON; see the raw bytes".to_owned(),
        }),
    };
    Delivery {
        id: delivery_id(number),
        source,
        vendor: "passkit".to_owned(),
        organization: "acme".to_owned(),
        receive_time: from_parts(
            START_SECONDS + 500_000,
            i32::try_from(number % 1_000_000_000).expect("small"),
        )
        .expect("in range"),
        method: Method::Post,
        path: format!("/webhooks/{source_name}?secret=REDACTED"),
        headers: vec![("content-type".to_owned(), "application/json".to_owned())],
        body: format!("{{\"number\":{number}}}").into_bytes(),
        auth: AuthVerdict {
            scheme: AuthScheme::Hmac,
            key_id: "key-1".to_owned(),
            detail: "hex".to_owned(),
        },
        adapter_version: "passkit/1".to_owned(),
        trace: TraceContext {
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            tracestate: String::new(),
        },
        decoded,
    }
}

/// Kinds in a mix that makes passes come and go.
pub fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::Installed),
        3 => Just(Kind::Uninstalled),
        1 => Just(Kind::Created),
        1 => Just(Kind::Updated),
        1 => Just(Kind::Redeemed),
        1 => Just(Kind::Voided),
        1 => Just(Kind::Reinstated),
        1 => Just(Kind::Expired),
        1 => Just(Kind::Downloaded),
        1 => Just(Kind::Deleted),
    ]
}

/// Facts about few passes at few times, so that they meet.
pub fn shorts() -> impl Strategy<Value = Short> {
    (
        0..3_u8,
        kinds(),
        0..12_i64,
        proptest::option::weighted(0.5, 0..3_u8),
    )
        .prop_map(|(pass, kind, at, installation)| Short {
            pass,
            kind,
            at,
            installation,
        })
}

/// What deliveries may say.
pub fn sayings() -> impl Strategy<Value = Says> {
    prop_oneof![
        12 => (proptest::collection::vec(shorts(), 0..5), proptest::option::weighted(0.4, (0..3_u8, 0..12_i64, any::<bool>())))
            .prop_map(|(facts, state)| Says::Facts(facts, state)),
        1 => Just(Says::Control),
        1 => Just(Says::Nonsense),
    ]
}

/// Deliveries and the order in which they come, some of them twice, with the sizes of the batches.
#[derive(Clone, Debug)]
pub struct Story {
    /// What the deliveries say; the place is the number.
    pub says: Vec<Says>,
    /// Places in `says`, each at least once.
    pub order: Vec<usize>,
    /// Sizes of batches, repeated as needed.
    pub batches: Vec<usize>,
}

/// Stories of up to a dozen deliveries.
pub fn stories() -> impl Strategy<Value = Story> {
    (
        proptest::collection::vec(sayings(), 1..12),
        proptest::collection::vec(1..5_usize, 1..4),
    )
        .prop_flat_map(|(says, batches)| {
            let places: Vec<usize> = (0..says.len()).collect();
            let repeated = proptest::collection::vec(0..says.len(), 0..6)
                .prop_map(move |again| places.iter().copied().chain(again).collect::<Vec<_>>());
            (Just(says), repeated.prop_shuffle(), Just(batches))
        })
        .prop_map(|(says, order, batches)| Story {
            says,
            order,
            batches,
        })
}

impl Story {
    /// The deliveries in their order, cut into batches.
    #[must_use]
    pub fn batches(&self, source_name: &str, first_number: u64) -> Vec<Vec<Arc<Delivery>>> {
        let mut deliveries = self.order.iter().map(|&place| {
            Arc::new(delivery(
                source_name,
                first_number + place as u64,
                &self.says[place],
            ))
        });
        let mut sizes = self.batches.iter().cycle();
        let mut batches = Vec::new();
        loop {
            let size = *sizes.next().expect("there is a size");
            let batch: Vec<_> = deliveries.by_ref().take(size).collect();
            if batch.is_empty() {
                return batches;
            }
            batches.push(batch);
        }
    }

    /// What the passes must be in the end, by the set of deliveries alone.
    #[must_use]
    pub fn passes(&self, source_name: &str) -> BTreeMap<PassKey, PassState> {
        let source = source(source_name);
        let mut facts: BTreeMap<PassKey, BTreeSet<Short>> = BTreeMap::new();
        let mut states: BTreeMap<PassKey, PassState> = BTreeMap::new();
        for says in &self.says {
            let Says::Facts(told, state) = says else {
                continue;
            };
            for short in told {
                facts
                    .entry(pass(source_name, short.pass))
                    .or_default()
                    .insert(*short);
            }
            if let Some(state) = state {
                states
                    .entry(pass(source_name, state.0))
                    .or_default()
                    .merge_snapshot(&snapshot(*state));
            }
        }
        for (key, shorts) in facts {
            let facts: Vec<Fact> = shorts
                .into_iter()
                .map(|short| short.fact(&source))
                .collect();
            states.entry(key).or_default().fold = Fold::from_facts(&facts);
        }
        states
    }

    /// The events that must be in the log in the end, each once.
    #[must_use]
    pub fn events(&self, source_name: &str) -> BTreeSet<EventId> {
        let source = source(source_name);
        let facts = self.says.iter().flat_map(|says| match says {
            Says::Facts(facts, _) => facts.as_slice(),
            Says::Control | Says::Nonsense => &[],
        });
        facts.map(|short| short.fact(&source).id).collect()
    }
}
