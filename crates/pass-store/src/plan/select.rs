//! Which deliveries of an append are to be looked at, by generation and sequence.

use std::collections::HashMap;

use pass_domain::delivery::{Delivery, Outcome};
use pass_domain::ids::DeliveryId;

use crate::contract::{AppendPart, PartOutcome, SpoolId};

/// A spool's place, as in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpoolPlace {
    pub(crate) generation: u64,
    pub(crate) committed_sequence: u64,
    /// The last delivery that moved it; `None` until one does.
    pub(crate) moved_by: Option<DeliveryId>,
}

/// A delivery that no sequence accounts for yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fresh<'a> {
    /// Its part.
    pub(crate) part: usize,
    /// Its place among the part's outcomes.
    pub(crate) at: usize,
    pub(crate) delivery: &'a Delivery,
}

/// What [`select`] found.
#[derive(Debug)]
pub(crate) struct Selected<'a> {
    /// One per part; fresh deliveries still stand as `Duplicate`.
    pub(crate) parts: Vec<PartOutcome>,
    pub(crate) fresh: Vec<Fresh<'a>>,
}

/// Checks each part against its spool's place, which moves on. A part that is fenced or does not follow is
/// left out as a whole; the others go on.
pub(crate) fn select<'a>(
    parts: &'a [AppendPart],
    places: &mut HashMap<SpoolId, SpoolPlace>,
) -> Selected<'a> {
    let mut selected = Selected {
        parts: Vec::with_capacity(parts.len()),
        fresh: Vec::new(),
    };
    for (part_at, part) in parts.iter().enumerate() {
        // A spool without a row was opened in a history that this database does not have.
        let Some(place) = places
            .get_mut(&part.spool)
            .filter(|place| place.generation == part.generation)
        else {
            selected.parts.push(PartOutcome::Fenced);
            continue;
        };
        if let Some(expected_sequence) = gap(part, place.committed_sequence) {
            selected.parts.push(PartOutcome::Gap { expected_sequence });
            continue;
        }
        let committed_before = place.committed_sequence;
        let mut outcomes = Vec::with_capacity(part.deliveries.len());
        for (sequence, delivery) in &part.deliveries {
            if *sequence > committed_before {
                selected.fresh.push(Fresh {
                    part: part_at,
                    at: outcomes.len(),
                    delivery,
                });
                place.committed_sequence = *sequence;
                place.moved_by = Some(delivery.id);
            }
            outcomes.push((*sequence, Outcome::Duplicate));
        }
        selected.parts.push(PartOutcome::Committed {
            committed_sequence: place.committed_sequence,
            outcomes,
        });
    }
    selected
}

/// The sequence that should have come, if the part leaves one out.
fn gap(part: &AppendPart, committed_sequence: u64) -> Option<u64> {
    let mut expected = committed_sequence + 1;
    let mut last = None;
    for (sequence, _) in &part.deliveries {
        let follows = last.is_none_or(|last: u64| last.checked_add(1) == Some(*sequence));
        if !follows || *sequence > expected {
            return Some(expected);
        }
        expected = expected.max(sequence.saturating_add(1));
        last = Some(*sequence);
    }
    None
}
