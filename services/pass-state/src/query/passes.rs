//! Passes for filters, and lists of them.

use std::cell::OnceCell;

use pass_domain::cursor::Cursor;
use pass_domain::fact::Refs;
use pass_domain::filter::{FieldType, Filter, Record, Schema, Value};
use pass_domain::ids::SourceUid;
use pass_proto::convert::{PassView, pass_to_wire, wallet_to_wire};
use pass_proto::v1;
use pass_store::{self as store, Page, PassOrder, PassRecord, PassStore, Scope};

use super::events::{field, given};
use super::mask::Mask;
use super::personal;
use super::walk::Rows;
use super::words;

const SOURCE: u16 = 1;
const VENDOR: u16 = 2;
const ORGANIZATION: u16 = 3;
const STATE: u16 = 4;
const VOIDED: u16 = 5;
const INSTALLED_COUNT: u16 = 6;
const REDEEMED_COUNT: u16 = 7;
const REVISION: u16 = 8;
const CAMPAIGN: u16 = 9;
const DISTRIBUTION: u16 = 10;
const CLASS: u16 = 11;
const SERIAL_NUMBER: u16 = 12;
const EXTERNAL_ID: u16 = 13;
const VENDOR_STATUS: u16 = 14;
const WALLET: u16 = 15;
const INSTALLATIONS_UNCERTAIN: u16 = 16;
const ORDER_AMBIGUOUS: u16 = 17;

/// The fields that filters on passes may name. `wallet` is the set of wallets that the pass is in now.
pub(crate) static SCHEMA: Schema = Schema {
    fields: &[
        field("source", SOURCE, FieldType::Text),
        field("vendor", VENDOR, FieldType::Text),
        field("organization", ORGANIZATION, FieldType::Text),
        field("state", STATE, FieldType::Enum(words::STATES)),
        field("voided", VOIDED, FieldType::Boolean),
        field("installed_count", INSTALLED_COUNT, FieldType::Integer),
        field("redeemed_count", REDEEMED_COUNT, FieldType::Integer),
        field("revision", REVISION, FieldType::Integer),
        field("campaign", CAMPAIGN, FieldType::Text),
        field("distribution", DISTRIBUTION, FieldType::Text),
        field("class", CLASS, FieldType::Text),
        field("serial_number", SERIAL_NUMBER, FieldType::Text),
        field("external_id", EXTERNAL_ID, FieldType::Text),
        field("vendor_status", VENDOR_STATUS, FieldType::Text),
        field("wallet", WALLET, FieldType::TextSet),
        field(
            "installations_uncertain",
            INSTALLATIONS_UNCERTAIN,
            FieldType::Boolean,
        ),
        field("order_ambiguous", ORDER_AMBIGUOUS, FieldType::Boolean),
    ],
};

/// A pass as filters see it.
struct Shown<'a> {
    pass: &'a PassRecord,
    refs: OnceCell<Refs>,
}

impl Record for Shown<'_> {
    fn value(&self, field: u16) -> Value<'_> {
        let pass = self.pass;
        let state = &pass.state;
        let refs = || self.refs.get_or_init(|| state.refs());
        let count = |count: u64| Value::Integer(i64::try_from(count).unwrap_or(i64::MAX));
        match field {
            SOURCE => Value::Text(pass.key.source.as_str()),
            VENDOR => given(&pass.vendor),
            ORGANIZATION => given(&pass.organization),
            STATE => Value::Enum(state.state().number()),
            VOIDED => Value::Boolean(state.voided()),
            INSTALLED_COUNT => count(state.fold.open_installations().count() as u64),
            REDEEMED_COUNT => Value::Integer(state.redeemed_count()),
            REVISION => count(state.fold.event_count()),
            CAMPAIGN => given(&refs().campaign),
            DISTRIBUTION => given(&refs().distribution),
            CLASS => given(&refs().class),
            SERIAL_NUMBER => given(&refs().serial_number),
            EXTERNAL_ID => given(&refs().external_id),
            VENDOR_STATUS => state
                .snapshot
                .as_ref()
                .and_then(|snapshot| snapshot.vendor_status.as_ref())
                .map_or(Value::Absent, |status| given(&status.name)),
            INSTALLATIONS_UNCERTAIN => Value::Boolean(state.fold.installations_uncertain),
            ORDER_AMBIGUOUS => Value::Boolean(state.fold.order_ambiguous),
            _ => Value::Absent,
        }
    }

    fn set_any(&self, field: u16, predicate: &mut dyn FnMut(&str) -> bool) -> bool {
        field == WALLET
            && self
                .pass
                .state
                .fold
                .installations
                .iter()
                .filter(|installation| installation.open)
                .filter_map(|installation| installation.wallet.as_ref())
                .any(|wallet| predicate(words::name(words::WALLETS, wallet_to_wire(wallet.kind))))
    }
}

/// The source that the filter demands, so that an index is used.
pub(crate) fn narrowed(source: Option<SourceUid>, filter: &Filter) -> Option<SourceUid> {
    source.or_else(|| SourceUid::new(filter.required_text(SOURCE)?).ok())
}

/// A pass for the client, in the log of an epoch; with personal data or without.
pub(crate) fn encode(pass: &PassRecord, epoch: u64, personal: bool, mask: &Mask) -> v1::Pass {
    let cursor = (pass.last_position.0 > 0).then_some(Cursor {
        epoch,
        position: pass.last_position,
        digest: pass.last_digest,
    });
    let mut wire = pass_to_wire(PassView {
        key: &pass.key,
        vendor: &pass.vendor,
        organization: &pass.organization,
        state: &pass.state,
        digest: pass.digest,
        cursor,
    });
    if !personal {
        personal::strip_pass(&mut wire);
    }
    mask.apply(&mut wire);
    wire
}

/// A list of passes.
pub(crate) struct PassRows<'a> {
    pub(crate) store: &'a dyn PassStore,
    pub(crate) scope: Scope,
    pub(crate) source: Option<SourceUid>,
    pub(crate) order: PassOrder,
    pub(crate) filter: Filter,
    pub(crate) mask: Mask,
    pub(crate) epoch: u64,
}

impl Rows for PassRows<'_> {
    type Row = PassRecord;
    type Wire = v1::Pass;

    async fn fetch(&self, from: u64, rows_max: u32) -> Result<Page<PassRecord>, store::Error> {
        self.store
            .passes_list(
                &self.scope,
                self.source.as_ref(),
                self.order,
                from,
                rows_max,
            )
            .await
    }

    fn place(&self, row: &PassRecord) -> u64 {
        match self.order {
            PassOrder::FirstSeen => row.number,
            PassOrder::LastEventDescending => row.last_position.0,
        }
    }

    fn wire(&self, row: &PassRecord) -> Option<v1::Pass> {
        let shown = Shown {
            pass: row,
            refs: OnceCell::new(),
        };
        (self.wants_all() || self.filter.matches(&shown))
            .then(|| encode(row, self.epoch, self.scope.personal, &self.mask))
    }

    fn wants_all(&self) -> bool {
        self.filter.is_empty()
    }
}
