//! A pass while planning, and its row.

use std::borrow::Cow;

use pass_domain::delivery::Delivery;
use pass_domain::fact::Fact;
use pass_domain::fold::PassState;
use pass_domain::identity::{Part, content_digest};
use pass_domain::ids::{EventId, SourceUid, VendorId};

use super::rows::PassRow;
use crate::stored;

/// A pass while planning.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    pub(super) source: &'a SourceUid,
    pub(super) pass: &'a VendorId,
    /// 0 until it is known to be written.
    pub(super) number: u64,
    pub(super) state: PassState,
    pub(super) recent: Vec<(EventId, u64)>,
    pub(super) last_position: u64,
    pub(super) last_digest: u64,
    /// All recorded facts; `None` while they have not been loaded.
    pub(super) history: Option<Vec<Cow<'a, Fact>>>,
    /// The delivery that last changed it, if any did.
    pub(super) changed_by: Option<&'a Delivery>,
}

/// A pass's row, if a delivery changed it.
pub(super) fn pass_row(slot: &Slot<'_>) -> Option<PassRow> {
    let delivery = slot.changed_by?;
    let refs = slot.state.refs();
    let state = stored::state_bytes(&slot.state);
    Some(PassRow {
        number: slot.number,
        source: slot.source.as_str().to_owned(),
        vendor_pass_id: slot.pass.as_str().to_owned(),
        // PostgreSQL's texts cannot hold a NUL; the events, as blobs, keep it.
        vendor: delivery.vendor.replace('\0', ""),
        organization: delivery.organization.replace('\0', ""),
        serial_number: refs.serial_number,
        external_id: refs.external_id,
        last_position: slot.last_position,
        last_digest: slot.last_digest,
        digest: content_digest(&[Part::Bytes(&state)]),
        body: stored::pass_blob(&state, &slot.recent),
    })
}

/// Gives a pass the next number if it has none; returns how many numbers were used.
pub(super) fn number_if_new(slot: &mut Slot<'_>, last_pass_number: u64) -> u64 {
    if slot.number != 0 {
        return 0;
    }
    slot.number = last_pass_number + 1;
    1
}
