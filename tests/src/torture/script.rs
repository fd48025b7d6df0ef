//! What the spools of a torture hold. A delivery is a function of the seed, its spool and its sequence, so that
//! it can be sent again at any time without being kept.

use std::collections::{BTreeMap, BTreeSet};

use pass_domain::identity::{IDENTITY_VERSION, Part, event_id};
use pass_domain::ids::{EventId, SourceUid};
use pass_domain::kind::Kind;
use pass_proto::v1;

use crate::callback::BASE_SECOND;
use crate::dice::Dice;

/// The one source.
pub(super) const SOURCE: &str = "torture";
/// Facts in one delivery, at most.
const FACTS_MAX: u64 = 4;
/// Events of one pass, about. All spools tell of the same passes.
const EVENTS_PER_PASS: usize = 20;
/// One delivery in so many tells again what one of another spool tells.
const REPEATS_ONE_IN: u64 = 20;
/// What happens in a torture.
const KINDS: [Kind; 4] = [
    Kind::Downloaded,
    Kind::Fetched,
    Kind::Updated,
    Kind::Scanned,
];

/// All deliveries of all spools.
#[derive(Debug)]
pub(super) struct Script {
    seed: u64,
    passes: usize,
    /// How many deliveries each spool has.
    pub(super) lengths: Vec<u64>,
    /// Ids of the events that come of them, in no order.
    pub(super) events: BTreeSet<EventId>,
    /// How many events each pass has, by its vendor's id.
    pub(super) revisions: BTreeMap<String, i64>,
}

/// A fact in short.
struct Told {
    id: EventId,
    pass: String,
    kind: Kind,
    second: i64,
}

impl Script {
    /// Makes so many spools of at least so many events in all.
    pub(super) fn new(seed: u64, spools: usize, events: usize) -> Self {
        let mut script = Self {
            seed,
            passes: (events / EVENTS_PER_PASS).max(1),
            lengths: vec![0; spools],
            events: BTreeSet::new(),
            revisions: BTreeMap::new(),
        };
        while script.events.len() < events {
            for spool in 0..spools {
                script.lengths[spool] += 1;
                for told in script.told(spool, script.lengths[spool]) {
                    if script.events.insert(told.id) {
                        *script.revisions.entry(told.pass).or_default() += 1;
                    }
                }
            }
        }
        script
    }

    /// How many deliveries there are.
    pub(super) fn deliveries(&self) -> u64 {
        self.lengths.iter().sum()
    }

    fn dice(&self, spool: usize, sequence: u64) -> Dice {
        let place = ((spool as u64) << 48) | sequence;
        Dice::new(Dice::new(self.seed ^ place).roll())
    }

    /// The facts of a delivery.
    fn told(&self, spool: usize, sequence: u64) -> Vec<Told> {
        let mut dice = self.dice(spool, sequence);
        if dice.once_in(REPEATS_ONE_IN) {
            let other = (spool + 1) % self.lengths.len();
            return self.told_first(other, sequence);
        }
        self.told_first(spool, sequence)
    }

    /// The facts of a delivery that repeats no other.
    fn told_first(&self, spool: usize, sequence: u64) -> Vec<Told> {
        let mut dice = self.dice(spool, sequence);
        let source = SourceUid::new(SOURCE).expect("a valid uid");
        let pass = format!("pass-{}", dice.index(self.passes));
        let second = BASE_SECOND + i64::try_from(sequence).expect("a torture is short");
        (0..=dice.below(FACTS_MAX))
            .map(|ordinal| {
                let kind = KINDS[dice.index(KINDS.len())];
                let told = format!("{spool}-{sequence}-{ordinal}");
                Told {
                    id: event_id(&source, kind.name(), &[Part::Text(&told)], None),
                    pass: pass.clone(),
                    kind,
                    second,
                }
            })
            .collect()
    }

    /// A delivery as a gateway sends it.
    pub(super) fn delivery(&self, spool: usize, sequence: u64) -> v1::IngestDelivery {
        let facts = self
            .told(spool, sequence)
            .into_iter()
            .map(|told| v1::Fact {
                id: told.id.as_bytes().to_vec(),
                identity_version: IDENTITY_VERSION.cast_signed(),
                identity_basis: v1::IdentityBasis::VendorId.into(),
                vendor_pass_id: told.pass,
                kind: told.kind.number(),
                vendor_kind: told.kind.name().to_owned(),
                assertion: v1::EventAssertion::Reported.into(),
                occur_time: Some(time(told.second)),
                occur_time_basis: v1::OccurTimeBasis::VendorEvent.into(),
                ..v1::Fact::default()
            })
            .collect();
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(spool as u64 + 1).to_be_bytes());
        id[8..].copy_from_slice(&sequence.to_be_bytes());
        v1::IngestDelivery {
            sequence,
            id: id.to_vec(),
            source: SOURCE.to_owned(),
            vendor: "standard".to_owned(),
            receive_time: Some(time(BASE_SECOND)),
            method: "POST".to_owned(),
            path: format!("/webhooks/{SOURCE}"),
            body: format!("{spool}-{sequence}").into(),
            auth: Some(v1::AuthVerdict {
                scheme: v1::AuthScheme::ApiKey.into(),
                ..v1::AuthVerdict::default()
            }),
            adapter_version: "standard/1".to_owned(),
            decoded: Some(v1::ingest_delivery::Decoded::Facts(v1::DecodedFacts {
                facts,
                ..v1::DecodedFacts::default()
            })),
            ..v1::IngestDelivery::default()
        }
    }
}

fn time(seconds: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds, nanos: 0 }
}
