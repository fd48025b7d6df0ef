//! The newest events, consecutive, in bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;

use pass_domain::cursor::Cursor;
use pass_domain::event::Event;

use super::event_bytes;

/// The ring. Bounded by events and by bytes; the oldest go first.
pub(super) struct Ring {
    events_max: usize,
    bytes_max: usize,
    /// Place before the oldest event.
    before: Cursor,
    events: VecDeque<(Arc<Event>, usize)>,
    bytes: usize,
}

/// What a read of the ring gave.
#[derive(Debug)]
pub(crate) enum RingRead {
    /// The events after the place, in order; none if the place is the end.
    Events(Vec<Arc<Event>>),
    /// The place is before the oldest event kept: read pages from the store.
    Behind,
    /// The ring is of another epoch.
    OtherEpoch,
    /// The ring has another event at the place.
    OtherHistory,
}

impl Ring {
    pub(super) fn new(events_max: usize, bytes_max: usize, end: Cursor) -> Self {
        Self {
            events_max,
            bytes_max,
            before: end,
            events: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The place of the newest event.
    pub(super) fn end(&self) -> Cursor {
        self.events
            .back()
            .map_or(self.before, |(event, _)| self.place(event))
    }

    /// Forgets everything and goes on after a place.
    pub(super) fn restart(&mut self, end: Cursor) {
        self.before = end;
        self.events.clear();
        self.bytes = 0;
    }

    /// Adds the next event. One that is not next restarts the ring after it, so positions stay consecutive.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        if event.position.0 != self.end().position.0 + 1 {
            self.restart(self.place(&event));
            return;
        }
        let bytes = event_bytes(&event);
        self.bytes += bytes;
        self.events.push_back((event, bytes));
        while self.events.len() > self.events_max || self.bytes > self.bytes_max {
            let Some((event, bytes)) = self.events.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            self.before = self.place(&event);
        }
    }

    /// Events after a place: at most `events_max`, and about `bytes_max` but at least one.
    pub(super) fn read(&self, after: Cursor, events_max: usize, bytes_max: usize) -> RingRead {
        if after.epoch != self.before.epoch {
            return RingRead::OtherEpoch;
        }
        let Some(skip) = after.position.0.checked_sub(self.before.position.0) else {
            return RingRead::Behind;
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let same = match skip.checked_sub(1) {
            None => self.before == after,
            // A place beyond the end shows when the ring gets there.
            Some(at) => (self.events.get(at)).is_none_or(|(event, _)| self.place(event) == after),
        };
        if !same {
            return RingRead::OtherHistory;
        }
        let skip = skip.min(self.events.len());
        let until = skip.saturating_add(events_max).min(self.events.len());
        let mut bytes = 0;
        let events = self.events.range(skip..until).take_while(|(_, size)| {
            let room = bytes == 0 || bytes + size <= bytes_max;
            bytes += size;
            room
        });
        RingRead::Events(events.map(|(event, _)| Arc::clone(event)).collect())
    }

    fn place(&self, event: &Event) -> Cursor {
        Cursor::of(self.before.epoch, event.position, &event.fact.id)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use pass_domain::delivery::{AuthScheme, AuthVerdict, TraceContext};
    use pass_domain::event::{Effect, Position};
    use pass_domain::fact::{Assertion, Fact, IdentityBasis, Refs, TimeBasis};
    use pass_domain::ids::{DeliveryId, EventId, SourceUid, VendorId};
    use pass_domain::kind::Kind;

    use super::*;

    fn event(position: u64, text_bytes: usize) -> Arc<Event> {
        Arc::new(Event {
            position: Position(position),
            fact: Fact {
                id: EventId::from_bytes([1; 16]),
                identity_version: 1,
                identity_basis: IdentityBasis::EventFields,
                pass: VendorId::new("p").unwrap(),
                kind: Kind::Updated,
                vendor_kind: "x".repeat(text_bytes),
                assertion: Assertion::Reported,
                occur_time: Timestamp::UNIX_EPOCH,
                time_basis: TimeBasis::VendorEvent,
                installation: None,
                wallet: None,
                refs: Refs::default(),
                redemption: None,
                attributes: BTreeMap::new(),
                content_digest: 0,
            },
            source: SourceUid::new("acme").unwrap(),
            vendor: "v".into(),
            organization: String::new(),
            delivery: DeliveryId::from_bytes([2; 16]),
            receive_time: Timestamp::UNIX_EPOCH,
            record_time: Timestamp::UNIX_EPOCH,
            auth: AuthVerdict {
                scheme: AuthScheme::None,
                key_id: String::new(),
                detail: String::new(),
            },
            adapter_version: String::new(),
            trace: TraceContext::default(),
            notes: Vec::new(),
            effect: Effect::default(),
            time_suspect: false,
            personal: None,
        })
    }

    /// The place of an event in these tests, which all have the same id.
    fn place(position: u64) -> Cursor {
        Cursor::of(7, Position(position), &EventId::from_bytes([1; 16]))
    }

    /// Positions after a place; `None` if the ring does not reach back to it.
    fn after(ring: &Ring, position: u64) -> Option<Vec<u64>> {
        match ring.read(place(position), 100, usize::MAX) {
            RingRead::Events(events) => Some(events.iter().map(|e| e.position.0).collect()),
            RingRead::Behind => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_oldest_events_go_first_and_a_reader_before_them_is_behind() {
        let mut ring = Ring::new(3, usize::MAX, place(10));
        assert_eq!(after(&ring, 10), Some(vec![]));
        assert_eq!(after(&ring, 9), None);
        for position in 11..=15 {
            ring.push(event(position, 0));
        }
        assert_eq!(ring.end(), place(15));
        assert_eq!(after(&ring, 11), None);
        assert_eq!(after(&ring, 12), Some(vec![13, 14, 15]));
        assert_eq!(after(&ring, 15), Some(vec![]));
        assert_eq!(
            after(&ring, 99),
            Some(vec![]),
            "a reader ahead of the ring waits"
        );
    }

    #[test]
    fn a_place_of_another_history_is_told_from_one_in_the_ring() {
        let mut ring = Ring::new(3, usize::MAX, place(10));
        for position in 11..=15 {
            ring.push(event(position, 0));
        }
        let epoch = Cursor {
            epoch: 8,
            ..place(15)
        };
        assert!(matches!(ring.read(epoch, 1, 1), RingRead::OtherEpoch));
        // The place before the oldest event counts as much as those of the events.
        for position in 12..=15 {
            let other = Cursor {
                digest: 1,
                ..place(position)
            };
            let read = ring.read(other, 1, 1);
            assert!(matches!(read, RingRead::OtherHistory), "{position}");
        }
        ring.restart(place(20));
        let other = Cursor {
            digest: 1,
            ..place(20)
        };
        assert!(matches!(ring.read(other, 1, 1), RingRead::OtherHistory));
    }

    #[test]
    fn bytes_are_bounded_in_the_ring_and_in_a_read() {
        let one = event_bytes(&event(1, 10_000));
        let mut ring = Ring::new(1_000, 5 * one, Cursor::beginning(7));
        for position in 1..=20 {
            ring.push(event(position, 10_000));
        }
        assert_eq!(after(&ring, 15), Some(vec![16, 17, 18, 19, 20]));
        assert_eq!(after(&ring, 14), None);
        for (bytes_max, expected) in [(0, 1), (one, 1), (2 * one, 2), (9 * one, 5)] {
            let RingRead::Events(events) = ring.read(place(15), 100, bytes_max) else {
                panic!("within the ring");
            };
            assert_eq!(events.len(), expected, "{bytes_max}");
        }
    }

    #[test]
    fn a_gap_restarts_the_ring_so_positions_stay_consecutive() {
        let mut ring = Ring::new(10, usize::MAX, Cursor::beginning(7));
        ring.push(event(1, 0));
        ring.push(event(5, 0));
        ring.push(event(6, 0));
        assert_eq!(after(&ring, 5), Some(vec![6]));
        assert_eq!(after(&ring, 1), None);
    }
}
