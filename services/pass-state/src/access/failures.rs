//! Calls that are refused: counted, slowed, and told to the log at most once a second.
//!
//! Only failures are limited here, never a call with a valid credential: callers may share an address, and a proxy's
//! connection (which hundreds of refusals in a burst end, by `grpc.limits.error_resets_max`). An address may fail a few times at once and then once a second; past that its answers come late.
//! A late answer holds one of its connection's places, so each address has only a few of them at a time; and the
//! addresses that are remembered are bounded. Past either bound answers come at once, since what is refused costs
//! little and a token of 256 bits is not guessed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use service_kit::seldom::Seldom;
use tokio::time::Instant;

/// Failures that an address may have at once before it is slowed.
const BURST: u32 = 10;
/// Time after which one of them is forgiven.
const FORGIVEN_AFTER: Duration = Duration::from_secs(1);
/// How late a late answer is.
const LATENESS: Duration = Duration::from_secs(1);
/// Answers of one address that may be late at a time.
const LATE_MAX: usize = 8;
/// At most this part of the calls that a connection may have at a time may be late answers.
const LATE_PART: usize = 8;
/// Addresses that are remembered.
const ADDRESSES_MAX: usize = 4_096;

/// Why a call is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// No credential was presented.
    Missing,
    /// What was presented is no bearer token, or are several.
    Malformed,
    /// Nobody has this token.
    Token,
    /// The client certificate's names are nobody's, or those of several.
    Certificate,
    /// The caller is known, and lacks the scope.
    Scope,
}

impl Cause {
    /// Every cause.
    pub(crate) const ALL: [Cause; 5] = [
        Cause::Missing,
        Cause::Malformed,
        Cause::Token,
        Cause::Certificate,
        Cause::Scope,
    ];

    /// The name in metrics and logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Cause::Missing => "missing",
            Cause::Malformed => "malformed",
            Cause::Token => "token",
            Cause::Certificate => "certificate",
            Cause::Scope => "scope",
        }
    }
}

/// Calls that were refused for who makes them; counted, for metrics.
pub struct AuthFailures {
    counts: [AtomicU64; Cause::ALL.len()],
    addresses: Mutex<Addresses>,
    late: Arc<Mutex<HashMap<IpAddr, usize>>>,
    late_max: usize,
    lines: Seldom,
    scope_lines: Seldom,
}

impl std::fmt::Debug for AuthFailures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.counts()).finish()
    }
}

/// An answer that is to be late.
pub(super) struct Late {
    late: Arc<Mutex<HashMap<IpAddr, usize>>>,
    network: IpAddr,
}

impl Drop for Late {
    fn drop(&mut self) {
        let mut late = lock(&self.late);
        if let Some(count) = late.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                late.remove(&self.network);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Late {
    pub(super) async fn wait(self) {
        tokio::time::sleep(LATENESS).await;
    }
}

impl AuthFailures {
    /// For connections that may have so many calls at a time.
    pub(super) fn new(concurrency_max: usize) -> Self {
        Self {
            counts: Default::default(),
            addresses: Mutex::default(),
            late: Arc::default(),
            late_max: LATE_MAX.min(concurrency_max / LATE_PART),
            lines: Seldom::default(),
            scope_lines: Seldom::default(),
        }
    }

    /// How many calls were refused since the start, by the name of the cause.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        (Cause::ALL.iter().zip(&self.counts))
            .map(|(cause, count)| (cause.name(), count.load(Ordering::Relaxed)))
    }

    fn count(&self, cause: Cause) {
        self.counts[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Takes note of a call whose caller lacks the scope that the method requires.
    pub(super) fn scope_missing(&self, caller: &str, scope: &str, method: &str, now: Instant) {
        self.count(Cause::Scope);
        if let Some(left_out) = self.scope_lines.due(now) {
            tracing::warn!(
                principal = caller,
                scope,
                method,
                refused = left_out + 1,
                "calls without the scope that they require were refused; this is the last of them"
            );
        }
    }

    /// Takes note of a call without a valid credential, and says whether its answer is to be late.
    pub(super) fn unauthenticated(
        &self,
        cause: Cause,
        address: IpAddr,
        now: Instant,
    ) -> Option<Late> {
        self.count(cause);
        if let Some(left_out) = self.lines.due(now) {
            tracing::warn!(
                cause = cause.name(),
                peer = %address,
                refused = left_out + 1,
                "calls without a valid credential were refused; this is the last of them"
            );
        }
        let network = network(address);
        if !lock(&self.addresses).failed(network, now) {
            return None;
        }
        let mut late = lock(&self.late);
        let count = late.get(&network).copied().unwrap_or_default();
        if count >= self.late_max {
            return None;
        }
        late.insert(network, count + 1);
        drop(late);
        let late = Arc::clone(&self.late);
        Some(Late { late, network })
    }
}

/// Who is behind an address: a host, or with IPv6 the network that one customer gets.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) >> 64 << 64).into()),
        address => address,
    }
}

/// The failures of addresses that are not forgiven yet.
#[derive(Default)]
struct Addresses {
    /// When the last of its failures is forgiven.
    forgiven: HashMap<IpAddr, Instant>,
}

impl Addresses {
    /// Takes note of a failure; true if the address has too many. None is, while no more can be remembered.
    fn failed(&mut self, address: IpAddr, now: Instant) -> bool {
        if !self.forgiven.contains_key(&address) && self.forgiven.len() >= ADDRESSES_MAX {
            self.forgiven.retain(|_, forgiven| *forgiven > now);
            if self.forgiven.len() >= ADDRESSES_MAX {
                return false;
            }
        }
        let forgiven = self.forgiven.entry(address).or_insert(now);
        let from = (*forgiven).max(now);
        let over = from + FORGIVEN_AFTER > now + FORGIVEN_AFTER * BURST;
        if !over {
            *forgiven = from + FORGIVEN_AFTER;
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[test]
    fn an_address_that_keeps_failing_is_answered_late_and_forgiven_in_time() {
        let failures = AuthFailures::new(64);
        let began = Instant::now();
        let late = |address, now| {
            failures
                .unauthenticated(Cause::Token, address, now)
                .is_some()
        };
        assert!(!(0..BURST).any(|_| late(PEER, began)));
        assert!(late(PEER, began) && late(PEER, began));
        assert!(!late(v4(7), began), "another address is another matter");
        let later = began + FORGIVEN_AFTER * 2;
        let answers = [late(PEER, later), late(PEER, later), late(PEER, later)];
        assert_eq!(answers, [false, false, true]);
    }

    #[test]
    fn late_answers_and_remembered_addresses_are_bounded() {
        let failures = AuthFailures::new(64);
        let began = Instant::now();
        let late = |address, now| failures.unauthenticated(Cause::Missing, address, now);
        let waiting = |address| -> Vec<Late> {
            let calls = 0..BURST as usize + 2 * LATE_MAX;
            calls.filter_map(|_| late(address, began)).collect()
        };
        let [one, other] = [waiting(PEER), waiting(v4(u32::MAX))];
        assert_eq!((one.len(), other.len()), (LATE_MAX, LATE_MAX));
        drop(one);
        assert!(late(PEER, began).is_some() && late(v4(u32::MAX), began).is_none());
        drop(other);
        assert!(lock(&failures.late).is_empty());
        for number in 1..2 * ADDRESSES_MAX as u32 {
            late(v4(number), began);
        }
        let remembered = || failures.addresses.lock().unwrap().forgiven.len();
        assert_eq!(remembered(), ADDRESSES_MAX);
        let unknown = v4(u32::MAX - 1);
        assert!((0..=BURST).all(|_| late(unknown, began).is_none()));
        let later = began + FORGIVEN_AFTER * (BURST + 1);
        assert!(late(unknown, later).is_none());
        assert_eq!(remembered(), 1, "those that are forgiven are forgotten");
    }

    #[test]
    fn late_answers_leave_most_places_of_a_connection_free() {
        for (concurrency_max, late_max) in [(1, 0), (8, 1), (64, 8), (4_096, 8)] {
            let failures = AuthFailures::new(concurrency_max);
            assert_eq!(failures.late_max, late_max, "{concurrency_max}");
            let address = IpAddr::from([192, 0, 2, 9]);
            let late: Vec<_> = (0..100)
                .filter_map(|_| failures.unauthenticated(Cause::Token, address, Instant::now()))
                .collect();
            assert_eq!(late.len(), late_max, "{concurrency_max}");
            drop(late);
            assert!(lock(&failures.late).is_empty(), "{concurrency_max}");
        }
    }

    #[test]
    fn each_cause_is_counted_by_its_name() {
        let failures = AuthFailures::new(64);
        let now = Instant::now();
        failures.unauthenticated(Cause::Token, PEER, now);
        failures.unauthenticated(Cause::Token, PEER, now);
        failures.scope_missing("one", "ingest", "/a/B", now);
        let counts: Vec<_> = failures.counts().collect();
        let expected = [
            ("missing", 0),
            ("malformed", 0),
            ("token", 2),
            ("certificate", 0),
            ("scope", 1),
        ];
        assert_eq!(counts, expected);
    }

    #[test]
    fn an_ipv6_customer_is_one_address() {
        let v6 = |text: &str| IpAddr::V6(text.parse::<Ipv6Addr>().unwrap());
        assert_eq!(network(v6("2001:db8::1")), network(v6("2001:db8::2:3:4:5")));
        assert_ne!(network(v6("2001:db8::1")), network(v6("2001:db8:0:1::1")));
        assert_eq!(network(v6("::ffff:192.0.2.1")), PEER);
    }
}
