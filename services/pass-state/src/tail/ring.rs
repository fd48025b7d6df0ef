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

    pub(super) fn read(&self, epoch: u64, after: Position, events_max: usize) -> RingRead {
        if epoch != self.epoch {
            return RingRead::OtherEpoch;
        }
        if after.0 < self.before {
            return RingRead::Behind;
        }
        let skip = usize::try_from(after.0 - self.before).unwrap_or(usize::MAX);
        let skip = skip.min(self.events.len());
        let until = skip.saturating_add(events_max).min(self.events.len());
        let events = self.events.range(skip..until);
        RingRead::Events(events.map(|(event, _)| Arc::clone(event)).collect())
    }
}
