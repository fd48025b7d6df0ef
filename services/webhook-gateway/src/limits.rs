//! Limits against abuse: how many deliveries come in a time, from whom, and what failing credentials cost.
//!
//! | limit | of | over it |
//! |---|---|---|
//! | [`Bucket`] | authentic deliveries of one source | 429, before the body where that is known |
//! | [`Clients`] | requests of one client address, whatever their path | 429 before anything else |
//! | [`Failures`] | failing credentials of one client address, and of one source | 401 after a delay, 429 where too many wait |
//!
//! Nobody without a credential can use up what a vendor may send: a source's rate counts authentic deliveries only,
//! and failures are held against failures only. Who the client is says [`Proxies`].
//!
//! Memory is bounded: one bucket per source, and a table of at most `clients_max` addresses. An address that finds the
//! table full has no limit of its own until others are forgotten; those of its source hold all the same.

mod bucket;
mod clients;
mod failures;
mod proxies;

use std::num::NonZeroU32;

use governor::Quota;

pub(crate) use bucket::Bucket;
pub(crate) use clients::Clients;
pub(crate) use failures::Failures;
pub(crate) use proxies::{Client, Proxies};

/// So many a second on average, and so many at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    per_sec: NonZeroU32,
    burst: NonZeroU32,
}

impl Rate {
    /// The least there is.
    pub(crate) const LEAST: Self = Self {
        per_sec: NonZeroU32::MIN,
        burst: NonZeroU32::MIN,
    };

    /// `None` if either is zero: no limit.
    pub(crate) fn new(per_sec: u32, burst: u32) -> Option<Self> {
        Some(Self {
            per_sec: NonZeroU32::new(per_sec)?,
            burst: NonZeroU32::new(burst)?,
        })
    }

    fn quota(self) -> Quota {
        Quota::per_second(self.per_sec).allow_burst(self.burst)
    }
}
