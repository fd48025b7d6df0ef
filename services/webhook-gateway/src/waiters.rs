//! Requests that wait for pass-state's verdict on their delivery (`ack = "applied"`).
//!
//! A request learns its sequence only when the spool has answered, and by then the delivery may already be
//! committed; so the last outcomes are remembered for a while. Bounds: `waiters_max` requests and
//! [`OUTCOMES_MAX`] outcomes. Whoever can't wait (too many, pass-state away, too late) is told `None` at
//! once, which is answered `stored`: the delivery is durable.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pass_domain::delivery::Outcome;
use tokio::sync::oneshot;

/// Most outcomes that are remembered for requests that have yet to come.
const OUTCOMES_MAX: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Waiters {
    waiters_max: usize,
    /// False if no source ever waited; then nothing is remembered.
    in_use: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    connected: bool,
    /// Everything up to here is committed.
    through: u64,
    /// Sequences rise.
    outcomes: VecDeque<(u64, Outcome)>,
    waiting: BTreeMap<u64, oneshot::Sender<Outcome>>,
}

impl Waiters {
    pub(crate) fn new(waiters_max: usize, in_use: bool) -> Self {
        Self {
            waiters_max,
            in_use: AtomicBool::new(in_use),
            inner: Mutex::default(),
        }
    }

    /// Tells that a source waits from now on.
    pub(crate) fn use_from_now(&self) {
        self.in_use.store(true, Ordering::Relaxed);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing below can panic half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the outcome of a durable delivery; `None` if it can't be had, or not in time. Cancel safe.
    pub(crate) async fn outcome(&self, sequence: u64, timeout: Duration) -> Option<Outcome> {
        let verdict = {
            let mut inner = self.inner();
            if sequence <= inner.through {
                let place = inner
                    .outcomes
                    .binary_search_by_key(&sequence, |(known, _)| *known)
                    .ok()?;
                return Some(inner.outcomes[place].1);
            }
            if !inner.connected || inner.waiting.len() >= self.waiters_max {
                return None;
            }
            let (sender, receiver) = oneshot::channel();
            inner.waiting.insert(sequence, sender);
            receiver
        };
        let _place = Place {
            waiters: self,
            sequence,
        };
        tokio::time::timeout(timeout, verdict).await.ok()?.ok()
    }

    /// Tells that everything up to `through` is committed, and the outcomes that came with it.
    pub(crate) fn committed(&self, through: u64, outcomes: impl Iterator<Item = (u64, Outcome)>) {
        if !self.in_use.load(Ordering::Relaxed) {
            return;
        }
        let mut inner = self.inner();
        for (sequence, outcome) in outcomes {
            if let Some(waiter) = inner.waiting.remove(&sequence) {
                // A request that has gone takes its place away itself.
                let _ = waiter.send(outcome);
            }
            if inner
                .outcomes
                .back()
                .is_none_or(|(last, _)| *last < sequence)
            {
                inner.outcomes.push_back((sequence, outcome));
            }
        }
        let excess = inner.outcomes.len().saturating_sub(OUTCOMES_MAX);
        inner.outcomes.drain(..excess);
        inner.through = inner.through.max(through);
        // Committed without a word about it, as after a lost acknowledgement: dropping the sender answers.
        let later = inner.waiting.split_off(&(through.saturating_add(1)));
        inner.waiting = later;
    }

    /// Tells whether pass-state is there, and, if it is, how far it is. When it is away nobody waits.
    pub(crate) fn connected(&self, committed: Option<u64>) {
        let mut inner = self.inner();
        inner.connected = committed.is_some();
        match committed {
            None => inner.waiting.clear(),
            // It may have been put back in time, and then says what became of later ones once more.
            Some(committed) if committed < inner.through => {
                inner.through = committed;
                inner
                    .outcomes
                    .retain(|(sequence, _)| *sequence <= committed);
            }
            Some(committed) => {
                inner.through = committed;
                let later = inner.waiting.split_off(&(committed.saturating_add(1)));
                inner.waiting = later;
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.inner().waiting.len()
    }
}

/// Takes a request's place away when it stops waiting, whatever the reason.
struct Place<'a> {
    waiters: &'a Waiters,
    sequence: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.waiters.inner().waiting.remove(&self.sequence);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt as _;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn an_outcome_that_came_first_is_remembered() {
        let waiters = Waiters::new(1, true);
        waiters.connected(Some(0));
        waiters.committed(
            2,
            [(1, Outcome::Applied), (2, Outcome::Duplicate)].into_iter(),
        );
        assert_eq!(waiters.outcome(2, LONG).await, Some(Outcome::Duplicate));
        assert_eq!(waiters.outcome(1, LONG).await, Some(Outcome::Applied));
    }

    #[tokio::test]
    async fn over_the_cap_or_without_pass_state_nobody_waits() {
        let waiters = Waiters::new(1, true);
        assert_eq!(waiters.outcome(1, LONG).await, None);
        waiters.connected(Some(0));
        let mut first = pin!(waiters.outcome(1, LONG));
        assert!(first.as_mut().now_or_never().is_none());
        assert_eq!(waiters.outcome(2, LONG).await, None);
        waiters.connected(None);
        assert_eq!(first.await, None);
        assert_eq!(waiters.waiting(), 0);
    }

    #[tokio::test]
    async fn a_request_that_gives_up_frees_its_place() {
        let waiters = Waiters::new(1, true);
        waiters.connected(Some(0));
        {
            let mut gone = pin!(waiters.outcome(1, LONG));
            assert!(gone.as_mut().now_or_never().is_none());
            assert_eq!(waiters.waiting(), 1);
        }
        assert_eq!(waiters.waiting(), 0);
        assert_eq!(waiters.outcome(1, Duration::from_millis(1)).await, None);
        assert_eq!(waiters.waiting(), 0);
    }

    #[tokio::test]
    async fn a_commit_without_its_outcome_ends_the_wait() {
        let waiters = Waiters::new(4, true);
        waiters.connected(Some(0));
        let mut first = pin!(waiters.outcome(1, LONG));
        let mut second = pin!(waiters.outcome(2, LONG));
        assert!(
            first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none()
        );
        waiters.committed(1, std::iter::empty());
        assert_eq!(first.await, None);
        assert!(second.as_mut().now_or_never().is_none());
        waiters.connected(Some(2));
        assert_eq!(second.await, None);
    }

    #[tokio::test]
    async fn remembered_outcomes_are_bounded_and_forgotten_when_pass_state_goes_back() {
        let waiters = Waiters::new(4, true);
        waiters.connected(Some(0));
        let last = OUTCOMES_MAX as u64 + 10;
        waiters.committed(
            last,
            (1..=last).map(|sequence| (sequence, Outcome::Applied)),
        );
        assert_eq!(waiters.inner().outcomes.len(), OUTCOMES_MAX);
        assert_eq!(waiters.outcome(10, LONG).await, None);
        waiters.connected(Some(20));
        let mut again = pin!(waiters.outcome(21, LONG));
        assert!(again.as_mut().now_or_never().is_none());
        waiters.committed(21, [(21, Outcome::Duplicate)].into_iter());
        assert_eq!(again.await, Some(Outcome::Duplicate));
    }
}
