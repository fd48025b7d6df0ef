//! What failing credentials cost: time, not places.
//!
//! A few failures are answered at once: people make mistakes. Further ones, of one address or of one source, get their
//! 401 only after `delay`, which holds up whoever guesses and nobody else: a request that waits has given back its
//! place and its body. At most `delayed_max` wait; over it they are told 429 at once.

use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{Bucket, Clients, Rate};
use crate::config::FailedAuth;

/// The failures of all sources.
#[derive(Debug)]
pub(crate) struct Failures {
    config: FailedAuth,
    clients: Option<Clients>,
    places: Semaphore,
}

impl Failures {
    pub(crate) fn new(config: &FailedAuth, clients_max: usize) -> Self {
        let rate = Rate::new(config.client_per_sec, config.client_burst);
        Self {
            clients: rate.map(|rate| Clients::new(rate, clients_max)),
            places: Semaphore::new(config.delayed_max),
            config: config.clone(),
        }
    }

    /// Says whether it is as configured, so that it can stay.
    pub(crate) fn is_of(&self, config: &FailedAuth, clients_max: usize) -> bool {
        let rate = Rate::new(config.client_per_sec, config.client_burst);
        let same_clients = match (&self.clients, rate) {
            (Some(clients), Some(rate)) => clients.is_of(rate, clients_max),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        self.config == *config && same_clients
    }

    /// Counts a failure of an address and of a source, and waits where there were too many. Cancel safe.
    ///
    /// # Errors
    /// After what time to come back, if too many wait already.
    pub(crate) async fn count(
        &self,
        address: IpAddr,
        source: Option<&Bucket>,
    ) -> Result<(), Duration> {
        // Both are charged, whatever the other one says.
        let client = self
            .clients
            .as_ref()
            .map_or(Ok(()), |known| known.take(address));
        let source = source.map_or(Ok(()), Bucket::take);
        if client.and(source).is_ok() {
            return Ok(());
        }
        let delay = self.config.delay.get();
        let Ok(_place) = self.places.try_acquire() else {
            return Err(delay);
        };
        tokio::time::sleep(delay).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use service_kit::config::Duration as Configured;
    use tokio::time::Instant;

    use super::*;

    const DELAY: Duration = Duration::from_millis(200);

    fn config() -> FailedAuth {
        FailedAuth {
            client_per_sec: 1,
            client_burst: 2,
            source_per_sec: 1,
            source_burst: 3,
            delay: Configured::from_millis(200),
            delayed_max: 1,
        }
    }

    fn host(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[tokio::test(start_paused = true)]
    async fn failures_over_an_addresss_budget_wait_and_those_of_others_do_not() {
        let failures = Failures::new(&config(), 10);
        for _ in 0..2 {
            assert_eq!(failures.count(host(1), None).now_or_never(), Some(Ok(())));
        }
        let began = Instant::now();
        let mut late = Box::pin(failures.count(host(1), None));
        assert_eq!(late.as_mut().now_or_never(), None);
        assert_eq!(failures.count(host(2), None).now_or_never(), Some(Ok(())));
        assert_eq!(late.await, Ok(()));
        assert!(began.elapsed() >= DELAY);
    }

    #[tokio::test]
    async fn failures_over_a_sources_budget_wait_whoever_sends_them() {
        let failures = Failures::new(&config(), 10);
        let source = Bucket::new(Rate::new(1, 3).unwrap());
        for last in 1..=3 {
            let counted = failures.count(host(last), Some(&source)).now_or_never();
            assert_eq!(counted, Some(Ok(())));
        }
        let began = Instant::now();
        assert_eq!(failures.count(host(4), Some(&source)).await, Ok(()));
        assert!(began.elapsed() >= DELAY);
    }

    #[tokio::test]
    async fn over_the_number_that_may_wait_nobody_does_and_one_who_leaves_makes_room() {
        let failures = Failures::new(&config(), 10);
        for _ in 0..2 {
            failures.count(host(1), None).await.unwrap();
        }
        let mut waits = Box::pin(failures.count(host(1), None));
        assert_eq!(waits.as_mut().now_or_never(), None);
        assert_eq!(
            failures.count(host(1), None).now_or_never(),
            Some(Err(DELAY))
        );
        drop(waits);
        assert_eq!(failures.count(host(1), None).now_or_never(), None);
    }

    #[tokio::test]
    async fn without_a_rate_an_address_is_never_held_up() {
        let config = FailedAuth {
            client_per_sec: 0,
            ..config()
        };
        let failures = Failures::new(&config, 10);
        for _ in 0..100 {
            assert_eq!(failures.count(host(1), None).now_or_never(), Some(Ok(())));
        }
    }
}
