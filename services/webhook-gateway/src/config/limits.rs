//! How much may come in a time, and what failing credentials cost.

use serde::Deserialize;
use service_kit::config::{Duration, Faults, Validate};

/// Most deliveries a second that a rate can be set to.
pub(super) const PER_SEC_MAX: u32 = 1_000_000;
/// Most deliveries at once that a rate can be set to.
pub(super) const BURST_MAX: u32 = 10_000_000;

/// How many deliveries may come in a time; over it 429 with `Retry-After`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Rates {
    /// Authentic deliveries of one source per second, 1 to 1,000,000, unless its `rate_per_sec` says otherwise. Default
    /// 100,000: more than one gateway takes, so that a vendor's rush is refused only where someone decided so.
    pub source_per_sec: u32,
    /// How many of them may come at once, 1 to 10,000,000, unless the source's `rate_burst` says otherwise. Default
    /// 100,000.
    pub source_burst: u32,
    /// Requests of one client address per second, up to 1,000,000. Default 0, no limit: vendors send from few addresses
    /// and share them.
    pub client_per_sec: u32,
    /// How many of them may come at once, 1 to 10,000,000. Default 100.
    pub client_burst: u32,
    /// Client addresses that are remembered at once, 1 to 1,000,000; an IPv6 network of 64 bits counts as one. Default
    /// 65,536. Further ones have no limit of their own until others are forgotten.
    pub clients_max: usize,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            source_per_sec: 100_000,
            source_burst: 100_000,
            client_per_sec: 0,
            client_burst: 100,
            clients_max: 65_536,
        }
    }
}

impl Validate for Rates {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range("source_per_sec", self.source_per_sec, 1..=PER_SEC_MAX);
        faults.in_range("source_burst", self.source_burst, 1..=BURST_MAX);
        faults.in_range("client_per_sec", self.client_per_sec, 0..=PER_SEC_MAX);
        faults.in_range("client_burst", self.client_burst, 1..=BURST_MAX);
        faults.in_range("clients_max", self.clients_max, 1..=1_000_000);
    }
}

/// What failing credentials cost whoever sends them. Deliveries with a valid one are never held up by it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct FailedAuth {
    /// Failures of one client address per second that are answered at once, up to 1,000,000. Default 1; 0: all of them.
    pub client_per_sec: u32,
    /// How many of them may come at once, 1 to 10,000,000. Default 10.
    pub client_burst: u32,
    /// Failures of one source per second that are answered at once, up to 1,000,000. Default 10; 0: all of them.
    pub source_per_sec: u32,
    /// How many of them may come at once, 1 to 10,000,000. Default 100.
    pub source_burst: u32,
    /// How long the answer to further ones is held back, 1 ms to 10 s. Default 1 s.
    pub delay: Duration,
    /// Answers that may be held back at once, up to 65,536. Default 256; over it failures are told 429 at once.
    pub delayed_max: usize,
}

impl Default for FailedAuth {
    fn default() -> Self {
        Self {
            client_per_sec: 1,
            client_burst: 10,
            source_per_sec: 10,
            source_burst: 100,
            delay: Duration::from_secs(1),
            delayed_max: 256,
        }
    }
}

impl Validate for FailedAuth {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range("client_per_sec", self.client_per_sec, 0..=PER_SEC_MAX);
        faults.in_range("client_burst", self.client_burst, 1..=BURST_MAX);
        faults.in_range("source_per_sec", self.source_per_sec, 0..=PER_SEC_MAX);
        faults.in_range("source_burst", self.source_burst, 1..=BURST_MAX);
        faults.in_range(
            "delay",
            self.delay,
            Duration::from_millis(1)..=Duration::from_secs(10),
        );
        faults.in_range("delayed_max", self.delayed_max, 0..=65_536);
    }
}
