//! How long a gateway that has the turn tries to get a stream before it leaves a shared spool to others.
//!
//! The first time it is short, since another gateway may well reach pass-state. After that it is longer than a hello may
//! take: where nobody is quicker, a slow pass-state must get its time.

use std::time::Duration;

use tokio::time::Instant;

/// The first time, and each time after a stream was open.
const FIRST: Duration = Duration::from_secs(5);

/// Measures the time without a stream.
#[derive(Debug)]
pub(super) struct Patience {
    shared: bool,
    again: Duration,
    limit: Duration,
    /// Since when there is no stream; nothing before it is asked for.
    since: Option<Instant>,
}

impl Patience {
    pub(super) fn new(shared: bool, hello_max: Duration) -> Self {
        Self {
            shared,
            again: FIRST.saturating_add(hello_max),
            limit: FIRST,
            since: None,
        }
    }

    /// The time that is left, counted from the first call; endless on a spool that nobody shares.
    pub(super) fn left(&mut self) -> Duration {
        if !self.shared {
            return Duration::MAX;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        self.limit.saturating_sub(since.elapsed())
    }

    /// Says that the turn is new.
    pub(super) fn begins(&mut self) {
        self.since = None;
    }

    /// Says that a stream was open until now.
    pub(super) fn succeeded(&mut self) {
        self.since = None;
        self.limit = FIRST;
    }

    /// Says that the turn was passed on.
    pub(super) fn failed(&mut self) {
        self.since = None;
        self.limit = self.again;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELLO_MAX: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn patience_is_short_at_first_and_then_leaves_room_for_a_hello() {
        let mut patience = Patience::new(true, HELLO_MAX);
        assert_eq!(patience.left(), FIRST);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(patience.left(), Duration::from_secs(2));
        patience.begins();
        assert_eq!(patience.left(), FIRST);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(patience.left().is_zero());
        patience.failed();
        assert!(patience.left() > HELLO_MAX);
        patience.succeeded();
        assert_eq!(patience.left(), FIRST);
    }

    #[test]
    fn who_shares_with_nobody_has_all_the_time() {
        assert_eq!(Patience::new(false, HELLO_MAX).left(), Duration::MAX);
    }
}
