//! What others can cause as often as they like, and is told to the log at most once a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says when it is time for a line.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// Takes note of one; how many were left out before it if it is to be told, else `None`.
    pub fn due(&self, now: Instant) -> Option<u64> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.last.is_some_and(|last| now < last + INTERVAL) {
            inner.left_out += 1;
            return None;
        }
        inner.last = Some(now);
        Some(std::mem::take(&mut inner.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_a_second_is_told_with_how_many_were_left_out() {
        let seldom = Seldom::default();
        let began = Instant::now();
        let told = [0, 0, 999, 1_000, 1_001, 2_000]
            .map(|at| seldom.due(began + Duration::from_millis(at)));
        assert_eq!(told, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
