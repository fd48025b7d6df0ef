//! Events: facts as recorded in the log.

use std::sync::Arc;

use jiff::Timestamp;

use crate::delivery::{AuthVerdict, TraceContext};
use crate::fact::{Fact, Personal};
use crate::fold::{InstallationKey, State};
use crate::ids::{DeliveryId, PassKey, SourceUid};

/// A place in the log: 1-based, gapless, in commit order. 0 is the place before the first event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position(pub u64);

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What recording an event did to its pass, as known at that moment. Never changes afterwards and is no
/// part of the event's identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The pass's state before.
    pub state_before: State,
    /// The pass's state after.
    pub state_after: State,
    /// Installations that this event opened.
    pub opened: Vec<InstallationKey>,
    /// Installations that this event closed.
    pub closed: Vec<InstallationKey>,
    /// True if the event sorted before facts already folded.
    pub late: bool,
    /// True if anything above changed, or the event is a redemption.
    pub changed: bool,
}

/// A fact as recorded in the log, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The event's place in the log.
    pub position: Position,
    /// The fact.
    pub fact: Fact,
    /// The source's uid.
    pub source: SourceUid,
    /// The vendor's name.
    pub vendor: String,
    /// The organization; empty if none is configured.
    pub organization: String,
    /// The delivery that first told.
    pub delivery: DeliveryId,
    /// When the gateway received that delivery.
    pub receive_time: Timestamp,
    /// When the store recorded the event; never goes back.
    pub record_time: Timestamp,
    /// How that delivery's sender was authenticated.
    pub auth: AuthVerdict,
    /// Which version of the adapter decoded it.
    pub adapter_version: String,
    /// The trace it belongs to.
    pub trace: TraceContext,
    /// Quirks met while decoding.
    pub notes: Vec<String>,
    /// What recording it did to the pass.
    pub effect: Effect,
    /// True if the occur time cannot be right (see [`crate::time::is_suspect`]).
    pub time_suspect: bool,
    /// Personal data of the delivery; `None` if there is none, it was erased, or the caller may not see it.
    pub personal: Option<Arc<Personal>>,
}

impl Event {
    /// The pass the event is about.
    #[must_use]
    pub fn pass_key(&self) -> PassKey {
        PassKey {
            source: self.source.clone(),
            pass: self.fact.pass.clone(),
        }
    }
}
