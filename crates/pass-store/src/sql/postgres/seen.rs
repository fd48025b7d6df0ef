//! What this process has seen of the log's end, so that it notices a database that went back in time.
//!
//! A failover to a standby that missed the last commits, or a restored backup, shows the same epoch with a
//! lower position, or with another event where this process had seen one. Then positions may be given out a
//! second time, so the log needs a new epoch before anything else is written. The epoch in the database is
//! compared with the one that was seen: whoever comes second finds another one and leaves it alone, so
//! however many replicas notice, it changes once.

use std::cmp::Ordering;
use std::sync::{Mutex, PoisonError};

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

impl Mark {
    /// True if a log of the same epoch does not hold this place: `found` is its end, and `there` the digest of
    /// the event at this position, if it has one. Both must have been asked for, at the same moment, after this
    /// place was known.
    pub(in crate::sql) fn is_gone(self, found: Mark, there: Option<u64>) -> bool {
        self.epoch == found.epoch
            && match self.position.cmp(&found.position) {
                Ordering::Greater => true,
                Ordering::Equal => self.digest != found.digest,
                Ordering::Less => self.position > 0 && there != Some(self.digest),
            }
    }
}

/// The furthest place that was seen.
#[derive(Debug, Default)]
pub(in crate::sql) struct Seen(Mutex<Option<Mark>>);

impl Seen {
    /// Takes note of the log's end, of a log that holds what was seen before.
    pub(in crate::sql) fn head(&self, mark: Mark) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            // Answers may come in another order than they were made.
            Some(seen) if seen.epoch == mark.epoch && seen.position >= mark.position => {}
            _ => *seen = Some(mark),
        }
    }

    /// Takes note of an event that was read, while what was seen before had that epoch. If it has another one by
    /// now, it is not known of which of them the event is.
    pub(in crate::sql) fn event(&self, epoch: u64, position: u64, digest: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = &mut *seen
            && seen.epoch == epoch
            && seen.position < position
        {
            seen.position = position;
            seen.digest = digest;
        }
    }

    /// What was seen.
    pub(in crate::sql) fn mark(&self) -> Option<Mark> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let seen = mark(1, 5, 50);
        assert!(!seen.is_gone(mark(1, 5, 50), Some(50)));
        assert!(seen.is_gone(mark(1, 4, 40), None));
        assert!(seen.is_gone(mark(1, 5, 51), Some(51)));
        assert!(!seen.is_gone(mark(1, 6, 60), Some(50)));
        assert!(seen.is_gone(mark(1, 6, 60), Some(51)));
        assert!(seen.is_gone(mark(1, 6, 60), None));
        assert!(
            !seen.is_gone(mark(2, 4, 40), None),
            "somebody noticed before"
        );
        assert!(!mark(1, 0, 0).is_gone(mark(1, 6, 60), None));
    }

    #[test]
    fn the_furthest_place_of_the_latest_epoch_is_kept() {
        let seen = Seen::default();
        seen.event(1, 9, 90);
        assert_eq!(seen.mark(), None, "of which epoch it is, is not known");
        seen.head(mark(1, 5, 50));
        seen.head(mark(1, 4, 40));
        assert_eq!(seen.mark(), Some(mark(1, 5, 50)));
        seen.event(1, 7, 70);
        seen.event(1, 6, 60);
        assert_eq!(seen.mark(), Some(mark(1, 7, 70)));
        seen.head(mark(2, 3, 30));
        assert_eq!(seen.mark(), Some(mark(2, 3, 30)));
        seen.event(1, 7, 70);
        assert_eq!(seen.mark(), Some(mark(2, 3, 30)), "an event of before");
    }
}
