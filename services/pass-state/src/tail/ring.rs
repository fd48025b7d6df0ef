//! The newest events, consecutive, in bounded memory.

use std::collections::VecDeque;
use std::sync::Arc;

use pass_domain::event::{Event, Position};

use super::event_bytes;

/// The ring. Bounded by events and by bytes; the oldest go first.
pub(super) struct Ring {
    events_max: usize,
    bytes_max: usize,
    epoch: u64,
    /// Position before the oldest event.
    before: u64,
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
}

impl Ring {
    pub(super) fn new(events_max: usize, bytes_max: usize, epoch: u64, end: Position) -> Self {
        Self {
            events_max,
            bytes_max,
            epoch,
            before: end.0,
            events: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The newest position.
    pub(super) fn end(&self) -> Position {
        Position(self.before + self.events.len() as u64)
    }

    /// Forgets everything and goes on after a place.
    pub(super) fn restart(&mut self, epoch: u64, end: Position) {
        self.epoch = epoch;
        self.before = end.0;
        self.events.clear();
        self.bytes = 0;
    }

    /// Adds the next event. One that is not next restarts the ring at it, so positions stay consecutive.
    pub(super) fn push(&mut self, event: Arc<Event>) {
        if event.position.0 != self.end().0 + 1 {
            self.restart(self.epoch, Position(event.position.0 - 1));
        }
        let bytes = event_bytes(&event);
        self.bytes += bytes;
        self.events.push_back((event, bytes));
        while self.events.len() > self.events_max || self.bytes > self.bytes_max {
            let Some((_, bytes)) = self.events.pop_front() else {
                break;
            };
            self.bytes -= bytes;
            self.before += 1;
        }
    }

    /// Events after a place: at most `events_max`, and about `bytes_max` but at least one.
    pub(super) fn read(
        &self,
        epoch: u64,
        after: Position,
        events_max: usize,
        bytes_max: usize,
    ) -> RingRead {
        if epoch != self.epoch {
            return RingRead::OtherEpoch;
        }
        if after.0 < self.before {
            return RingRead::Behind;
        }
        let skip = usize::try_from(after.0 - self.before).unwrap_or(usize::MAX);
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
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use pass_domain::delivery::{AuthScheme, AuthVerdict, TraceContext};
    use pass_domain::event::Effect;
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

    /// Positions after a place; `None` if the ring does not reach back to it.
    fn after(ring: &Ring, place: u64) -> Option<Vec<u64>> {
        match ring.read(7, Position(place), 100, usize::MAX) {
            RingRead::Events(events) => Some(events.iter().map(|e| e.position.0).collect()),
            RingRead::Behind => None,
            RingRead::OtherEpoch => panic!("the epoch is 7"),
        }
    }

    #[test]
    fn the_oldest_events_go_first_and_a_reader_before_them_is_behind() {
        let mut ring = Ring::new(3, usize::MAX, 7, Position(10));
        assert_eq!(after(&ring, 10), Some(vec![]));
        assert_eq!(after(&ring, 9), None);
        for position in 11..=15 {
            ring.push(event(position, 0));
        }
        assert_eq!(ring.end(), Position(15));
        assert_eq!(after(&ring, 11), None);
        assert_eq!(after(&ring, 12), Some(vec![13, 14, 15]));
        assert_eq!(after(&ring, 15), Some(vec![]));
        assert_eq!(
            after(&ring, 99),
            Some(vec![]),
            "a reader ahead of the ring waits"
        );
        assert!(matches!(
            ring.read(8, Position(15), 1, 1),
            RingRead::OtherEpoch
        ));
    }

    #[test]
    fn bytes_are_bounded_in_the_ring_and_in_a_read() {
        let one = event_bytes(&event(1, 10_000));
        let mut ring = Ring::new(1_000, 5 * one, 7, Position(0));
        for position in 1..=20 {
            ring.push(event(position, 10_000));
        }
        assert_eq!(after(&ring, 15), Some(vec![16, 17, 18, 19, 20]));
        assert_eq!(after(&ring, 14), None);
        for (bytes_max, expected) in [(0, 1), (one, 1), (2 * one, 2), (9 * one, 5)] {
            let RingRead::Events(events) = ring.read(7, Position(15), 100, bytes_max) else {
                panic!("within the ring");
            };
            assert_eq!(events.len(), expected, "{bytes_max}");
        }
    }

    #[test]
    fn a_gap_restarts_the_ring_so_positions_stay_consecutive() {
        let mut ring = Ring::new(10, usize::MAX, 7, Position(0));
        ring.push(event(1, 0));
        ring.push(event(5, 0));
        ring.push(event(6, 0));
        assert_eq!(after(&ring, 4), Some(vec![5, 6]));
        assert_eq!(after(&ring, 1), None);
    }
}
