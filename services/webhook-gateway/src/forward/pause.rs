//! Pauses between streams: exponential with full jitter.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// The next pause is drawn evenly from nothing to a ceiling that doubles with each failure.
#[derive(Debug)]
pub(super) struct Pause {
    min: Duration,
    max: Duration,
    ceiling: Duration,
}

impl Pause {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self {
            min,
            max,
            ceiling: min,
        }
    }

    pub(super) fn reset(&mut self) {
        self.ceiling = self.min;
    }

    pub(super) fn next(&mut self) -> Duration {
        let ceiling = self.ceiling;
        self.ceiling = ceiling.saturating_mul(2).min(self.max);
        ceiling.mul_f64(random())
    }
}

/// Draws evenly from half of `full` to `full`.
pub(super) fn half_to_full(full: Duration) -> Duration {
    full.mul_f64(0.5 + random() / 2.0)
}

/// An even number from 0 to 1. Each hasher state has fresh keys, which is all the chance a pause needs.
fn random() -> f64 {
    let bits = RandomState::new().hash_one(0_u8) >> 11;
    bits as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_below_a_ceiling_that_doubles_up_to_the_maximum() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(5));
        let mut pause = Pause::new(min, max);
        let mut ceiling = min;
        for _ in 0..20 {
            assert_eq!(pause.ceiling, ceiling);
            assert!(pause.next() <= ceiling);
            ceiling = (ceiling * 2).min(max);
        }
        pause.reset();
        assert_eq!(pause.ceiling, min);
    }

    #[test]
    fn pauses_are_spread_over_their_range() {
        let full = Duration::from_secs(1);
        let mut low = 0;
        for _ in 0..1_000 {
            let pause = half_to_full(full);
            assert!(pause >= full / 2 && pause <= full);
            low += usize::from(pause < full.mul_f64(0.75));
        }
        assert!(
            (300..700).contains(&low),
            "{low} of 1000 lie in the lower half"
        );
    }
}
