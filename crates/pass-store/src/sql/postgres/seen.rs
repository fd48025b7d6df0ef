//! What this process has seen of the log's end, so that it notices a database that went back in time.
//!
//! A failover to a standby that missed the last commits, or a restored backup, shows the same epoch with a
//! lower position, or with another event where this process had seen one. Then positions may be given out a
//! second time, so the log needs a new epoch before anything else is written. The epoch in the database is
//! compared with the one that was seen: whoever comes second finds another one and leaves it alone, so
//! however many replicas notice, it changes once.

use std::sync::{Mutex, PoisonError};

use crate::contract::Head;
use crate::plan::HeadRow;

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sql) struct Mark {
    pub(in crate::sql) epoch: u64,
    pub(in crate::sql) position: u64,
    /// Of the event there; 0 at the start.
    pub(in crate::sql) digest: u64,
}

impl From<&HeadRow> for Mark {
    fn from(head: &HeadRow) -> Self {
        Self {
            epoch: head.epoch,
            position: head.position,
            digest: head.digest,
        }
    }
}

impl From<&Head> for Mark {
    fn from(head: &Head) -> Self {
        Self {
            epoch: head.epoch,
            position: head.position.0,
            digest: head.digest,
        }
    }
}

/// What a mark in the database says about one that was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sql) enum Verdict {
    /// It goes on from there, or has another epoch already.
    Fine,
    /// It went back in time.
    WentBack,
    /// It does if this digest is that of the event at this position.
    IfAt {
        /// The position that was seen.
        position: u64,
        /// The digest that was seen there.
        digest: u64,
    },
}

/// The furthest place that was seen.
#[derive(Debug, Default)]
pub(in crate::sql) struct Seen(Mutex<Option<Mark>>);

impl Seen {
    /// Takes note of the log's end as read or committed.
    pub(in crate::sql) fn head(&self, mark: Mark) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            // Answers may come in another order than they were made.
            Some(seen) if seen.epoch == mark.epoch && seen.position >= mark.position => {}
            _ => *seen = Some(mark),
        }
    }

    /// Takes note of an event that was read.
    pub(in crate::sql) fn event(&self, position: u64, digest: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = &mut *seen
            && seen.position < position
        {
            seen.position = position;
            seen.digest = digest;
        }
    }

    /// The position that was seen, for looking up what stands there now; 0 if nothing was seen.
    pub(in crate::sql) fn position(&self) -> u64 {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.map_or(0, |seen| seen.position)
    }

    /// Compares the log's end with what was seen.
    pub(in crate::sql) fn verdict(&self, found: Mark) -> Verdict {
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = seen.filter(|seen| seen.epoch == found.epoch) else {
            return Verdict::Fine;
        };
        match found.position.cmp(&seen.position) {
            std::cmp::Ordering::Less => Verdict::WentBack,
            std::cmp::Ordering::Equal if found.digest == seen.digest => Verdict::Fine,
            std::cmp::Ordering::Equal => Verdict::WentBack,
            std::cmp::Ordering::Greater if seen.position == 0 => Verdict::Fine,
            std::cmp::Ordering::Greater => Verdict::IfAt {
                position: seen.position,
                digest: seen.digest,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(epoch: u64, position: u64, digest: u64) -> Mark {
        Mark {
            epoch,
            position,
            digest,
        }
    }

    #[test]
    fn a_lower_end_or_another_event_there_is_going_back() {
        let seen = Seen::default();
        assert_eq!(seen.verdict(mark(1, 5, 50)), Verdict::Fine);
        seen.head(mark(1, 5, 50));
        assert_eq!(seen.verdict(mark(1, 5, 50)), Verdict::Fine);
        assert_eq!(seen.verdict(mark(1, 4, 40)), Verdict::WentBack);
        assert_eq!(seen.verdict(mark(1, 5, 51)), Verdict::WentBack);
        let unsure = Verdict::IfAt {
            position: 5,
            digest: 50,
        };
        assert_eq!(seen.verdict(mark(1, 6, 60)), unsure);
        assert_eq!(
            seen.verdict(mark(2, 4, 40)),
            Verdict::Fine,
            "somebody noticed before"
        );
    }

    #[test]
    fn the_furthest_place_of_the_latest_epoch_is_kept() {
        let seen = Seen::default();
        seen.event(9, 90);
        assert_eq!(seen.position(), 0, "of which epoch it is, is not known");
        seen.head(mark(1, 5, 50));
        seen.head(mark(1, 4, 40));
        assert_eq!(seen.position(), 5);
        seen.event(7, 70);
        seen.event(6, 60);
        assert_eq!(seen.verdict(mark(1, 7, 70)), Verdict::Fine);
        seen.head(mark(2, 3, 30));
        assert_eq!(seen.position(), 3);
        assert_eq!(seen.verdict(mark(2, 2, 20)), Verdict::WentBack);
    }
}
