//! One rate for everything that comes to it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};

use super::Rate;

type Limiter<C> =
    governor::RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// A rate that can be looked at before something is taken from it.
#[derive(Debug)]
pub(crate) struct Bucket<C: Clock = DefaultClock> {
    rate: Rate,
    limiter: Limiter<C>,
    clock: C,
    start: C::Instant,
    /// Nanoseconds after `start` before which nothing can be taken. Set by the take that found it empty, and exact:
    /// what is refused takes nothing.
    empty_until: AtomicU64,
}

impl Bucket {
    pub(crate) fn new(rate: Rate) -> Self {
        Self::with_clock(rate, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Bucket<C> {
    fn with_clock(rate: Rate, clock: C) -> Self {
        Self {
            rate,
            limiter: Limiter::direct_with_clock(rate.quota(), clock.clone()),
            start: clock.now(),
            clock,
            empty_until: AtomicU64::new(0),
        }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Says whether it is known to be empty, and for how long; takes nothing.
    pub(crate) fn look(&self) -> Result<(), Duration> {
        let until = self.empty_until.load(Ordering::Relaxed);
        if until == 0 {
            return Ok(());
        }
        let now = self.clock.now().duration_since(self.start).as_u64();
        match until.saturating_sub(now) {
            0 => Ok(()),
            left => Err(Duration::from_nanos(left)),
        }
    }

    /// Takes one; else the time until there is one.
    pub(crate) fn take(&self) -> Result<(), Duration> {
        self.limiter.check().map_err(|refused| {
            let now = self.clock.now();
            let wait = refused.wait_time_from(now);
            let until = now.duration_since(self.start).as_u64()
                + u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX >> 1);
            self.empty_until.fetch_max(until, Ordering::Relaxed);
            wait
        })
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    #[test]
    fn it_gives_its_burst_at_once_and_then_its_rate_and_says_when() {
        let clock = FakeRelativeClock::default();
        let bucket = Bucket::with_clock(Rate::new(2, 3).unwrap(), clock.clone());
        for _ in 0..3 {
            assert_eq!((bucket.look(), bucket.take()), (Ok(()), Ok(())));
        }
        assert_eq!(bucket.look(), Ok(()), "nobody has found it empty yet");
        let half = Duration::from_millis(500);
        assert_eq!(bucket.take(), Err(half));
        assert_eq!(bucket.look(), Err(half));
        clock.advance(Duration::from_millis(200));
        assert_eq!(bucket.look(), Err(Duration::from_millis(300)));
        clock.advance(Duration::from_millis(300));
        assert_eq!((bucket.look(), bucket.take()), (Ok(()), Ok(())));
        assert_eq!(bucket.take(), Err(half));
    }

    #[test]
    fn looking_takes_nothing() {
        let bucket = Bucket::with_clock(Rate::new(1, 1).unwrap(), FakeRelativeClock::default());
        for _ in 0..10 {
            assert_eq!(bucket.look(), Ok(()));
        }
        assert_eq!(bucket.take(), Ok(()));
    }
}
