//! Wire to domain and back. Everything that comes in is checked here; nothing past this module handles a
//! wire type.

mod ingest;
mod read;
mod words;

pub use ingest::{Fallback, delivery_from_wire, delivery_into_wire, delivery_to_wire};
pub use read::{
    PassView, delivery_view, event_into_wire, event_name, event_to_wire, parse_delivery_name,
    parse_event_name, pass_to_wire,
};
pub use words::*;

use jiff::Timestamp;
use pass_domain::time;

/// A timestamp for the wire.
#[must_use]
pub fn time_to_wire(time: Timestamp) -> prost_types::Timestamp {
    let (seconds, nanos) = time::to_parts(time);
    prost_types::Timestamp { seconds, nanos }
}

/// A timestamp from the wire; `None` outside years 0001 to 9999.
#[must_use]
pub fn time_from_wire(time: &prost_types::Timestamp) -> Option<Timestamp> {
    time::from_parts(time.seconds, time.nanos)
}
