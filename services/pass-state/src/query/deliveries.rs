//! Deliveries for filters, and lists of them.

use pass_domain::delivery::Outcome;
use pass_domain::filter::{FieldType, Filter, Record, Schema, Value};
use pass_proto::convert::{
    auth_scheme_to_wire, delivery_view, event_name, outcome_to_wire, reason_to_wire, time_to_wire,
};
use pass_proto::v1;
use pass_store::{
    self as store, DeliveryRecord, Page, PassStore, QuarantineRecord, QuarantineState, Scope,
};

use super::events::{field, given};
use super::mask::Mask;
use super::personal;
use super::walk::Rows;
use super::words;

const SOURCE: u16 = 1;
const VENDOR: u16 = 2;
const ORGANIZATION: u16 = 3;
const OUTCOME: u16 = 4;
const QUARANTINE: u16 = 5;
const REASON: u16 = 6;
const RECEIVE_TIME: u16 = 7;
const RECORD_TIME: u16 = 8;
const METHOD: u16 = 9;
const AUTH_SCHEME: u16 = 10;
const KEY_ID: u16 = 11;
const DUPLICATE_FACTS: u16 = 12;
const DIFFERING_DUPLICATES: u16 = 13;

/// The fields that filters on deliveries may name.
pub(crate) static SCHEMA: Schema = Schema {
    fields: &[
        field("source", SOURCE, FieldType::Text),
        field("vendor", VENDOR, FieldType::Text),
        field("organization", ORGANIZATION, FieldType::Text),
        field("outcome", OUTCOME, FieldType::Enum(words::OUTCOMES)),
        field(
            "quarantine",
            QUARANTINE,
            FieldType::Enum(words::QUARANTINES),
        ),
        field("reason", REASON, FieldType::Enum(words::REASONS)),
        field("receive_time", RECEIVE_TIME, FieldType::Time),
        field("record_time", RECORD_TIME, FieldType::Time),
        field("method", METHOD, FieldType::Text),
        field(
            "auth_scheme",
            AUTH_SCHEME,
            FieldType::Enum(words::AUTH_SCHEMES),
        ),
        field("key_id", KEY_ID, FieldType::Text),
        field("duplicate_facts", DUPLICATE_FACTS, FieldType::Integer),
        field(
            "differing_duplicates",
            DIFFERING_DUPLICATES,
            FieldType::Integer,
        ),
    ],
};

struct Shown<'a>(&'a DeliveryRecord);

impl Record for Shown<'_> {
    fn value(&self, field: u16) -> Value<'_> {
        let record = self.0;
        let delivery = &record.delivery;
        let quarantine = record.quarantine.as_ref();
        match field {
            SOURCE => Value::Text(delivery.source.as_str()),
            VENDOR => given(&delivery.vendor),
            ORGANIZATION => given(&delivery.organization),
            OUTCOME => Value::Enum(outcome_to_wire(record.outcome)),
            QUARANTINE => quarantine.map_or(Value::Absent, |stay| {
                Value::Enum(quarantine_to_wire(stay.state))
            }),
            REASON => quarantine.map_or(Value::Absent, |stay| {
                Value::Enum(reason_to_wire(stay.reason))
            }),
            RECEIVE_TIME => Value::Time(delivery.receive_time),
            RECORD_TIME => Value::Time(record.record_time),
            METHOD => Value::Text(delivery.method.name()),
            AUTH_SCHEME => Value::Enum(auth_scheme_to_wire(delivery.auth.scheme)),
            KEY_ID => given(&delivery.auth.key_id),
            DUPLICATE_FACTS => Value::Integer(record.duplicate_facts.into()),
            DIFFERING_DUPLICATES => Value::Integer(record.differing_duplicates.into()),
            _ => Value::Absent,
        }
    }
}

/// True if every match is in open quarantine, so that an index is used. Seen by the filter's canonical text,
/// whose conditions at the top level are joined by ` AND `; quoted texts are passed over.
pub(crate) fn demands_open_quarantine(filter: &Filter) -> bool {
    let text = filter.to_string();
    let (mut depth, mut quoted, mut escaped, mut start) = (0_i32, false, false, 0);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' if depth == 0 && text[at..].starts_with(" AND ") => {
                if &text[start..at] == OPEN {
                    return true;
                }
                start = at + " AND ".len();
            }
            _ => {}
        }
    }
    &text[start..] == OPEN
}

const OPEN: &str = "quarantine = OPEN";

fn quarantine_to_wire(state: QuarantineState) -> i32 {
    let wire = match state {
        QuarantineState::Open => v1::QuarantineState::Open,
        QuarantineState::Replayed => v1::QuarantineState::Replayed,
        QuarantineState::Discarded => v1::QuarantineState::Discarded,
    };
    wire as i32
}

fn quarantine(record: &QuarantineRecord) -> v1::Quarantine {
    v1::Quarantine {
        state: quarantine_to_wire(record.state),
        reason: reason_to_wire(record.reason),
        detail: record.detail.clone(),
        update_time: Some(time_to_wire(record.update_time)),
        discard_reason: record.discard_reason.clone(),
    }
}

/// A delivery for the client, with personal data or without.
pub(crate) fn encode(record: &DeliveryRecord, personal: bool, mask: &Mask) -> v1::Delivery {
    let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);
    let outcome: Outcome = record.outcome;
    let mut wire = v1::Delivery {
        record_time: Some(time_to_wire(record.record_time)),
        body_bytes: i64::try_from(record.body_bytes).unwrap_or(i64::MAX),
        outcome: outcome_to_wire(outcome),
        events: record
            .events
            .iter()
            .map(|(pass, id)| event_name(pass, *id))
            .collect(),
        duplicate_facts: count(record.duplicate_facts),
        differing_duplicates: count(record.differing_duplicates),
        quarantine: record.quarantine.as_ref().map(quarantine),
        ..delivery_view(&record.delivery)
    };
    if !personal {
        personal::strip_delivery(&mut wire);
    }
    mask.apply(&mut wire);
    wire
}

/// A list of deliveries.
pub(crate) struct DeliveryRows<'a> {
    pub(crate) store: &'a dyn PassStore,
    pub(crate) scope: Scope,
    pub(crate) quarantine_open: bool,
    pub(crate) filter: Filter,
    pub(crate) mask: Mask,
}

impl Rows for DeliveryRows<'_> {
    type Row = DeliveryRecord;
    type Wire = v1::Delivery;

    async fn fetch(&self, from: u64, rows_max: u32) -> Result<Page<DeliveryRecord>, store::Error> {
        self.store
            .deliveries_list(&self.scope, self.quarantine_open, from, rows_max)
            .await
    }

    fn place(&self, row: &DeliveryRecord) -> u64 {
        row.number
    }

    fn wire(&self, row: &DeliveryRecord) -> Option<v1::Delivery> {
        (self.wants_all() || self.filter.matches(&Shown(row)))
            .then(|| encode(row, self.scope.personal, &self.mask))
    }

    fn wants_all(&self) -> bool {
        self.filter.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_quarantine_is_seen_only_where_every_match_has_it() {
        for (text, expected) in [
            ("quarantine = OPEN", true),
            ("source = acme AND quarantine = OPEN", true),
            ("quarantine = OPEN AND (source = a OR source = b)", true),
            ("quarantine = OPEN OR source = a", false),
            ("NOT quarantine = OPEN", false),
            ("quarantine = REPLAYED", false),
            ("source = \"x AND quarantine = OPEN\"", false),
            ("source = \"\\\" AND quarantine = OPEN\"", false),
            ("(quarantine = OPEN AND source = a) OR source = b", false),
            ("", false),
        ] {
            let filter = Filter::parse(text, &SCHEMA).unwrap();
            assert_eq!(demands_open_quarantine(&filter), expected, "{text}");
        }
    }
}
