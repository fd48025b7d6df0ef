//! One rate per client address, in bounded memory.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock, Reference as _};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::StateStore;
use governor::state::keyed::ShrinkableKeyedStateStore;

use super::Rate;

/// How often addresses whose bucket is full again are forgotten.
const SWEEP: Duration = Duration::from_secs(60);
/// The same while the table is full.
const SWEEP_FULL: Duration = Duration::from_secs(1);

type Limiter<C> = governor::RateLimiter<Key, Table, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// Whom a limit is about: an IPv4 address, or the /64 that an IPv6 host can choose its addresses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key(IpAddr);

impl Key {
    fn of(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            v4 @ IpAddr::V4(_) => v4,
            IpAddr::V6(v6) => {
                let network = u128::from(v6) & !u128::from(u64::MAX);
                IpAddr::V6(Ipv6Addr::from(network))
            }
        })
    }
}

/// A rate for each client address.
#[derive(Debug)]
pub(crate) struct Clients<C: Clock = DefaultClock> {
    rate: Rate,
    clients_max: usize,
    limiter: Limiter<C>,
    clock: C,
    start: C::Instant,
    /// When the table was last swept, in nanoseconds after `start`.
    swept: AtomicU64,
}

impl Clients {
    pub(crate) fn new(rate: Rate, clients_max: usize) -> Self {
        Self::with_clock(rate, clients_max, DefaultClock::default())
    }
}

impl<C: Clock + Clone> Clients<C> {
    fn with_clock(rate: Rate, clients_max: usize, clock: C) -> Self {
        Self {
            rate,
            clients_max,
            limiter: Limiter::new(rate.quota(), Table::new(clients_max), clock.clone()),
            start: clock.now(),
            clock,
            swept: AtomicU64::new(0),
        }
    }

    /// Says whether it limits in just this way, so that it can stay.
    pub(crate) fn is_of(&self, rate: Rate, clients_max: usize) -> bool {
        self.rate == rate && self.clients_max == clients_max
    }

    /// Takes one from an address; else the time until there is one.
    pub(crate) fn take(&self, address: IpAddr) -> Result<(), Duration> {
        self.sweep();
        self.limiter
            .check_key(&Key::of(address))
            .map_err(|refused| refused.wait_time_from(self.clock.now()))
    }

    /// Forgets addresses that have all of their burst again, now and then.
    fn sweep(&self) {
        let now = self.clock.now().duration_since(self.start).as_u64();
        let swept = self.swept.load(Ordering::Relaxed);
        let age = Duration::from_nanos(now.saturating_sub(swept));
        if age < SWEEP_FULL || (age < SWEEP && self.limiter.len() < self.clients_max) {
            return;
        }
        // Of several threads that come here at once, one sweeps.
        if self
            .swept
            .compare_exchange(swept, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
    }
}

/// What the limiter remembers of each address.
#[derive(Debug)]
struct Table {
    states: Mutex<HashMap<Key, Nanos>>,
    keys_max: usize,
}

impl Table {
    fn new(keys_max: usize) -> Self {
        Self {
            states: Mutex::default(),
            keys_max,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Nanos>> {
        // Nothing below panics half-way through a change.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for Table {
    type Key = Key;

    fn measure_and_replace<T, F, E>(&self, key: &Key, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let mut states = self.lock();
        if let Some(state) = states.get_mut(key) {
            let (outcome, next) = f(Some(*state))?;
            *state = next;
            return Ok(outcome);
        }
        let (outcome, next) = f(None)?;
        if states.len() < self.keys_max {
            states.insert(*key, next);
        }
        Ok(outcome)
    }
}

impl ShrinkableKeyedStateStore<Key> for Table {
    fn retain_recent(&self, drop_below: Nanos) {
        self.lock().retain(|_, state| *state > drop_below);
    }

    fn shrink_to_fit(&self) {
        let mut states = self.lock();
        if states.len() < states.capacity() / 4 {
            states.shrink_to_fit();
        }
    }

    fn len(&self) -> usize {
        self.lock().len()
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    fn clients(clients_max: usize) -> (Clients<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        // A limiter's time before its burst has come back once is not told from no time at all.
        clock.advance(Duration::from_secs(1_000));
        let clients = Clients::with_clock(Rate::new(1, 2).unwrap(), clients_max, clock.clone());
        (clients, clock)
    }

    fn v4(last: u32) -> IpAddr {
        IpAddr::V4((0x0a00_0000 + last).into())
    }

    #[test]
    fn each_address_has_a_rate_of_its_own() {
        let (clients, clock) = clients(10);
        assert_eq!((clients.take(v4(1)), clients.take(v4(1))), (Ok(()), Ok(())));
        assert_eq!(clients.take(v4(1)), Err(Duration::from_secs(1)));
        assert_eq!(clients.take(v4(2)), Ok(()));
        clock.advance(Duration::from_secs(1));
        assert_eq!(clients.take(v4(1)), Ok(()));
        assert!(clients.take(v4(1)).is_err());
    }

    #[test]
    fn the_addresses_of_one_ipv6_network_count_as_one_and_so_do_both_forms_of_ipv4() {
        let (clients, _) = clients(10);
        for host in ["2001:db8:0:1::1", "2001:db8:0:1:ffff::2"] {
            assert_eq!(clients.take(host.parse().unwrap()), Ok(()));
        }
        assert!(clients.take("2001:db8:0:1::3".parse().unwrap()).is_err());
        assert_eq!(clients.take("2001:db8:0:2::1".parse().unwrap()), Ok(()));
        assert_eq!(clients.take("10.0.0.9".parse().unwrap()), Ok(()));
        assert_eq!(clients.take("::ffff:10.0.0.9".parse().unwrap()), Ok(()));
        assert!(clients.take("10.0.0.9".parse().unwrap()).is_err());
    }

    #[test]
    fn the_table_is_bounded_and_forgets_whom_it_need_not_know() {
        let (clients, clock) = clients(100);
        for number in 0..10_000 {
            assert_eq!(clients.take(v4(number)), Ok(()));
        }
        assert_eq!(clients.limiter.len(), 100);
        // Those that are known are limited all the same.
        assert_eq!(clients.take(v4(1)), Ok(()));
        assert!(clients.take(v4(1)).is_err());
        clock.advance(Duration::from_secs(3));
        assert_eq!(clients.take(v4(20_000)), Ok(()));
        assert_eq!(clients.limiter.len(), 1, "all others had time to recover");
    }

    #[test]
    fn whoever_is_being_limited_is_not_forgotten() {
        let (clients, clock) = clients(2);
        let taken = [
            clients.take(v4(1)),
            clients.take(v4(1)),
            clients.take(v4(2)),
        ];
        assert_eq!(taken, [Ok(()); 3]);
        // The second one has recovered by now, the first one has not.
        clock.advance(Duration::from_millis(1_500));
        assert_eq!(clients.take(v4(3)), Ok(()));
        assert_eq!(clients.take(v4(1)), Ok(()));
        assert!(clients.take(v4(1)).is_err());
    }
}
