//! Events for filters, and lists of them.

use std::cell::OnceCell;
use std::sync::Arc;

use pass_domain::event::Event;
use pass_domain::filter::{Field, FieldType, Filter, Record, Schema, Value};
use pass_domain::ids::{PassKey, SourceUid};
use pass_proto::convert::{
    assertion_to_wire, event_to_wire, identity_basis_to_wire, wallet_to_wire,
};
use pass_proto::v1;
use pass_store::{self as store, EventParent, Page, PassStore, Scope};

use super::mask::Mask;
use super::personal;
use super::walk::Rows;
use super::words;

const SOURCE: u16 = 1;
const PASS: u16 = 2;
const VENDOR: u16 = 3;
const ORGANIZATION: u16 = 4;
const KIND: u16 = 5;
const VENDOR_KIND: u16 = 6;
const ASSERTION: u16 = 7;
const OCCUR_TIME: u16 = 8;
const RECEIVE_TIME: u16 = 9;
const RECORD_TIME: u16 = 10;
const TIME_SUSPECT: u16 = 11;
const INSTALLATION: u16 = 12;
const WALLET: u16 = 13;
const CAMPAIGN: u16 = 14;
const DISTRIBUTION: u16 = 15;
const CLASS: u16 = 16;
const SERIAL_NUMBER: u16 = 17;
const EXTERNAL_ID: u16 = 18;
const EFFECT_CHANGED: u16 = 19;
const EFFECT_LATE: u16 = 20;
const EFFECT_STATE_BEFORE: u16 = 21;
const EFFECT_STATE_AFTER: u16 = 22;
const DELIVERY: u16 = 23;
const IDENTITY_BASIS: u16 = 24;
const ATTRIBUTES: u16 = 25;

/// A field of a schema.
pub(super) const fn field(name: &'static str, id: u16, field_type: FieldType) -> Field {
    Field {
        name,
        id,
        field_type,
    }
}

/// The fields that filters on events may name.
pub(crate) static SCHEMA: Schema = Schema {
    fields: &[
        field("source", SOURCE, FieldType::Text),
        field("pass", PASS, FieldType::Text),
        field("vendor", VENDOR, FieldType::Text),
        field("organization", ORGANIZATION, FieldType::Text),
        field("kind", KIND, FieldType::Enum(words::KINDS)),
        field("vendor_kind", VENDOR_KIND, FieldType::Text),
        field("assertion", ASSERTION, FieldType::Enum(words::ASSERTIONS)),
        field("occur_time", OCCUR_TIME, FieldType::Time),
        field("receive_time", RECEIVE_TIME, FieldType::Time),
        field("record_time", RECORD_TIME, FieldType::Time),
        field("time_suspect", TIME_SUSPECT, FieldType::Boolean),
        field("installation", INSTALLATION, FieldType::Text),
        field("wallet", WALLET, FieldType::Enum(words::WALLETS)),
        field("campaign", CAMPAIGN, FieldType::Text),
        field("distribution", DISTRIBUTION, FieldType::Text),
        field("class", CLASS, FieldType::Text),
        field("serial_number", SERIAL_NUMBER, FieldType::Text),
        field("external_id", EXTERNAL_ID, FieldType::Text),
        field("effect.changed", EFFECT_CHANGED, FieldType::Boolean),
        field("effect.late", EFFECT_LATE, FieldType::Boolean),
        field(
            "effect.state_before",
            EFFECT_STATE_BEFORE,
            FieldType::Enum(words::STATES),
        ),
        field(
            "effect.state_after",
            EFFECT_STATE_AFTER,
            FieldType::Enum(words::STATES),
        ),
        field("delivery", DELIVERY, FieldType::Text),
        field(
            "identity_basis",
            IDENTITY_BASIS,
            FieldType::Enum(words::IDENTITY_BASES),
        ),
        field("attributes", ATTRIBUTES, FieldType::TextMap),
    ],
};

/// A text that means "not given" when it is empty.
pub(super) fn given(text: &str) -> Value<'_> {
    if text.is_empty() {
        Value::Absent
    } else {
        Value::Text(text)
    }
}

/// An event as filters see it.
pub(crate) struct EventRecord<'a> {
    event: &'a Event,
    pass: OnceCell<String>,
    delivery: OnceCell<String>,
}

impl<'a> EventRecord<'a> {
    /// Shows an event to a filter.
    pub(crate) fn new(event: &'a Event) -> Self {
        Self {
            event,
            pass: OnceCell::new(),
            delivery: OnceCell::new(),
        }
    }
}

impl Record for EventRecord<'_> {
    fn value(&self, field: u16) -> Value<'_> {
        let event = self.event;
        let fact = &event.fact;
        match field {
            SOURCE => Value::Text(event.source.as_str()),
            PASS => Value::Text(self.pass.get_or_init(|| event.pass_key().to_string())),
            VENDOR => given(&event.vendor),
            ORGANIZATION => given(&event.organization),
            KIND => Value::Enum(fact.kind.number()),
            VENDOR_KIND => given(&fact.vendor_kind),
            ASSERTION => Value::Enum(assertion_to_wire(fact.assertion)),
            OCCUR_TIME => Value::Time(fact.occur_time),
            RECEIVE_TIME => Value::Time(event.receive_time),
            RECORD_TIME => Value::Time(event.record_time),
            TIME_SUSPECT => Value::Boolean(event.time_suspect),
            INSTALLATION => fact
                .installation
                .as_ref()
                .map_or(Value::Absent, |one| Value::Text(one.id.as_str())),
            WALLET => fact.wallet.as_ref().map_or(Value::Absent, |wallet| {
                Value::Enum(wallet_to_wire(wallet.kind))
            }),
            CAMPAIGN => given(&fact.refs.campaign),
            DISTRIBUTION => given(&fact.refs.distribution),
            CLASS => given(&fact.refs.class),
            SERIAL_NUMBER => given(&fact.refs.serial_number),
            EXTERNAL_ID => given(&fact.refs.external_id),
            EFFECT_CHANGED => Value::Boolean(event.effect.changed),
            EFFECT_LATE => Value::Boolean(event.effect.late),
            EFFECT_STATE_BEFORE => Value::Enum(event.effect.state_before.number()),
            EFFECT_STATE_AFTER => Value::Enum(event.effect.state_after.number()),
            DELIVERY => Value::Text(
                self.delivery
                    .get_or_init(|| format!("deliveries/{}", event.delivery)),
            ),
            IDENTITY_BASIS => Value::Enum(identity_basis_to_wire(fact.identity_basis)),
            _ => Value::Absent,
        }
    }

    fn map_value(&self, field: u16, key: &str) -> Option<&str> {
        (field == ATTRIBUTES)
            .then(|| self.event.fact.attributes.get(key).map(String::as_str))
            .flatten()
    }

    fn set_any(&self, field: u16, predicate: &mut dyn FnMut(&str) -> bool) -> bool {
        field == ATTRIBUTES && self.event.fact.attributes.keys().any(|key| predicate(key))
    }
}

/// Narrows a parent by what the filter demands, so that an index is used. To a pass only for who may see all of
/// its source: to others the pass itself may be out of sight, and some of its events not.
pub(crate) fn narrowed(parent: EventParent, filter: &Filter, scope: &Scope) -> EventParent {
    let pass = || filter.required_text(PASS)?.parse::<PassKey>().ok();
    let of = |key: PassKey| {
        if scope.allows_source(&key.source) {
            EventParent::Pass(key)
        } else {
            EventParent::Source(key.source)
        }
    };
    let source = || SourceUid::new(filter.required_text(SOURCE)?).ok();
    match parent {
        EventParent::Pass(key) => EventParent::Pass(key),
        EventParent::Source(uid) => match pass() {
            Some(key) if key.source == uid => of(key),
            _ => EventParent::Source(uid),
        },
        EventParent::All => pass()
            .map(of)
            .unwrap_or_else(|| source().map_or(EventParent::All, EventParent::Source)),
    }
}

/// A list of events.
pub(crate) struct EventRows<'a> {
    pub(crate) store: &'a dyn PassStore,
    pub(crate) scope: Scope,
    pub(crate) parent: EventParent,
    pub(crate) descending: bool,
    pub(crate) filter: Filter,
    pub(crate) mask: Mask,
    pub(crate) epoch: u64,
}

impl Rows for EventRows<'_> {
    type Row = Arc<Event>;
    type Wire = v1::PassEvent;

    async fn fetch(&self, from: u64, rows_max: u32) -> Result<Page<Arc<Event>>, store::Error> {
        self.store
            .events_list(&self.scope, &self.parent, self.descending, from, rows_max)
            .await
    }

    fn place(&self, row: &Arc<Event>) -> u64 {
        row.position.0
    }

    fn wire(&self, row: &Arc<Event>) -> Option<v1::PassEvent> {
        if !self.wants_all() && !self.filter.matches(&EventRecord::new(row)) {
            return None;
        }
        let mut wire = event_to_wire(row, self.epoch);
        if !self.scope.personal {
            personal::strip_event(&mut wire);
        }
        self.mask.apply(&mut wire);
        Some(wire)
    }

    fn wants_all(&self) -> bool {
        self.filter.is_empty()
    }
}
