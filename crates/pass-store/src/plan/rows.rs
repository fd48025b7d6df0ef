//! The rows that a plan reads and writes, as plain values.

use pass_domain::delivery::{Outcome, UndecodableReason};
use pass_domain::fold::PassState;
use pass_domain::ids::{DeliveryId, EventId, SourceUid};

use crate::contract::Books;

/// The log's head, as in its row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeadRow {
    pub(crate) epoch: u64,
    pub(crate) position: u64,
    pub(crate) digest: u64,
    pub(crate) record_micros: i64,
    pub(crate) last_pass_number: u64,
    pub(crate) last_delivery_number: u64,
    pub(crate) books: Books,
}

/// A pass as loaded.
#[derive(Clone, Debug)]
pub(crate) struct PassLoaded {
    pub(crate) number: u64,
    pub(crate) source: String,
    pub(crate) vendor_pass_id: String,
    pub(crate) state: PassState,
    pub(crate) recent: Vec<(EventId, u64)>,
    pub(crate) last_position: u64,
    pub(crate) last_digest: u64,
}

/// A pass to write.
#[derive(Clone, Debug)]
pub(crate) struct PassRow {
    pub(crate) number: u64,
    pub(crate) source: String,
    pub(crate) vendor_pass_id: String,
    pub(crate) vendor: String,
    pub(crate) organization: String,
    pub(crate) serial_number: String,
    pub(crate) external_id: String,
    pub(crate) last_position: u64,
    pub(crate) last_digest: u64,
    pub(crate) digest: u64,
    pub(crate) body: Vec<u8>,
}

/// An event to write.
#[derive(Clone, Debug)]
pub(crate) struct EventRow {
    pub(crate) position: u64,
    pub(crate) event_id: EventId,
    pub(crate) pass_number: u64,
    pub(crate) delivery_number: u64,
    pub(crate) content_digest: u64,
    pub(crate) body: Vec<u8>,
}

/// A delivery to write.
#[derive(Clone, Debug)]
pub(crate) struct DeliveryRow<'a> {
    pub(crate) number: u64,
    pub(crate) delivery_id: DeliveryId,
    pub(crate) source: &'a SourceUid,
    pub(crate) outcome: Outcome,
    pub(crate) body: Vec<u8>,
    pub(crate) personal: Vec<u8>,
    pub(crate) raw_body: &'a [u8],
    pub(crate) quarantine: Option<(UndecodableReason, String)>,
}

/// Rows on their way to a store.
#[derive(Debug)]
pub(crate) enum Made<'a> {
    /// Of deliveries.
    Rows(Rows<'a>),
    /// Passes, once all deliveries are applied.
    Passes(Vec<PassRow>),
}

/// What applying deliveries makes; passes come at the end.
#[derive(Debug, Default)]
pub(crate) struct Rows<'a> {
    pub(crate) deliveries: Vec<DeliveryRow<'a>>,
    pub(crate) events: Vec<EventRow>,
}
