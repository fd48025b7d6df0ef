//! How much is being handled at once: requests, and bytes of bodies.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub(crate) struct InFlight {
    requests: AtomicUsize,
    bytes: AtomicUsize,
    requests_max: usize,
    bytes_max: usize,
}

impl InFlight {
    pub(super) fn new(requests_max: usize, bytes_max: usize) -> Self {
        Self {
            requests: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            requests_max,
            bytes_max,
        }
    }

    /// Requests being handled, and the bytes reserved for their bodies.
    pub(crate) fn now(&self) -> (usize, usize) {
        (
            self.requests.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        )
    }

    /// Takes a place for a body of at most `bytes`; `None` if there is none. Dropping it gives it back.
    pub(super) fn enter(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        // Adding first and looking then can refuse one too many at the limit, and never admits one.
        let mut place = Place {
            in_flight: Arc::clone(self),
            bytes: 0,
        };
        if self.requests.fetch_add(1, Ordering::Relaxed) >= self.requests_max {
            return None;
        }
        place.bytes = bytes;
        if self
            .bytes
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes)
            > self.bytes_max
        {
            return None;
        }
        Some(place)
    }
}

#[derive(Debug)]
pub(super) struct Place {
    in_flight: Arc<InFlight>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.in_flight
            .bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
        self.in_flight.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_a_refusal_takes_nothing() {
        let in_flight = Arc::new(InFlight::new(2, 100));
        let first = in_flight.enter(60).unwrap();
        assert!(in_flight.enter(60).is_none());
        let second = in_flight.enter(40).unwrap();
        assert!(in_flight.enter(0).is_none());
        drop(first);
        assert!(in_flight.enter(61).is_none());
        drop(in_flight.enter(60).unwrap());
        drop(second);
        assert_eq!(in_flight.requests.load(Ordering::Relaxed), 0);
        assert_eq!(in_flight.bytes.load(Ordering::Relaxed), 0);
    }
}
