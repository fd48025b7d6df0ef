//! The gateway's books: what became of every request, counted per source and cause.
//!
//! Every request ends in exactly one [`Tally`]. The counters live as long as the process; the durable count
//! of what was accepted, by all gateways that share the spool, is its last sequence. Names are stable, metrics
//! are made of them.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

use jiff::Timestamp;
use pass_domain::delivery::Outcome;
use pass_sources::RefusalCause;

/// Most pages of one process: sources that were configured at some time since it started.
const PAGES_MAX: usize = 10_000;

/// How a request ended, or what pass-state said about a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tally {
    /// 200: decoded and durable.
    Stored,
    /// 200: not decodable, and durable.
    Quarantined,
    /// 200: a handshake or test, and durable.
    Control,
    /// 400 or 422: not decodable, refused by the source's policy.
    Rejected,
    /// 401, or 429 where too many failures came; by cause.
    Refused(RefusalCause),
    /// 404.
    NotFound,
    /// 405.
    Method,
    /// 413.
    TooLarge,
    /// 415.
    MediaType,
    /// 408.
    TooSlow,
    /// The body broke off, or the sender went away before its answer.
    Abandoned,
    /// 429: over the source's rate.
    Limited,
    /// 429: over the rate of the client's address.
    ClientLimited,
    /// 503: too much in flight.
    Busy,
    /// 503: the spool is full.
    Full,
    /// 503: the disk failed or did not answer.
    Storage,
    /// 503: the server that keeps the spool could not be reached or used.
    Unavailable,
    /// 503: the spool was put back to an earlier moment, so what it takes may never reach the log.
    Restored,
    /// 503: stopping.
    Stopping,
    /// 500.
    Internal,
    /// pass-state committed it, by outcome; a delivery that was sent again counts again.
    Committed(Outcome),
}

impl Tally {
    /// Every tally.
    pub const ALL: [Tally; 28] = [
        Tally::Stored,
        Tally::Quarantined,
        Tally::Control,
        Tally::Rejected,
        Tally::Refused(RefusalCause::MissingCredential),
        Tally::Refused(RefusalCause::WrongCredential),
        Tally::Refused(RefusalCause::StaleTimestamp),
        Tally::Refused(RefusalCause::AddressNotAllowed),
        Tally::Refused(RefusalCause::MalformedCredential),
        Tally::NotFound,
        Tally::Method,
        Tally::TooLarge,
        Tally::MediaType,
        Tally::TooSlow,
        Tally::Abandoned,
        Tally::Limited,
        Tally::ClientLimited,
        Tally::Busy,
        Tally::Full,
        Tally::Storage,
        Tally::Unavailable,
        Tally::Restored,
        Tally::Stopping,
        Tally::Internal,
        Tally::Committed(Outcome::Applied),
        Tally::Committed(Outcome::Duplicate),
        Tally::Committed(Outcome::Quarantined),
        Tally::Committed(Outcome::Control),
    ];

    /// The name as metrics spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Tally::Stored => "stored",
            Tally::Quarantined => "quarantined",
            Tally::Control => "control",
            Tally::Rejected => "rejected",
            Tally::Refused(RefusalCause::MissingCredential) => "refused_missing_credential",
            Tally::Refused(RefusalCause::WrongCredential) => "refused_wrong_credential",
            Tally::Refused(RefusalCause::StaleTimestamp) => "refused_stale_timestamp",
            Tally::Refused(RefusalCause::AddressNotAllowed) => "refused_address_not_allowed",
            Tally::Refused(RefusalCause::MalformedCredential) => "refused_malformed_credential",
            Tally::NotFound => "not_found",
            Tally::Method => "method",
            Tally::TooLarge => "too_large",
            Tally::MediaType => "media_type",
            Tally::TooSlow => "too_slow",
            Tally::Abandoned => "abandoned",
            Tally::Limited => "limited",
            Tally::ClientLimited => "client_limited",
            Tally::Busy => "busy",
            Tally::Full => "full",
            Tally::Storage => "storage",
            Tally::Unavailable => "unavailable",
            Tally::Restored => "restored",
            Tally::Stopping => "stopping",
            Tally::Internal => "internal",
            Tally::Committed(Outcome::Applied) => "committed_applied",
            Tally::Committed(Outcome::Duplicate) => "committed_duplicate",
            Tally::Committed(Outcome::Quarantined) => "committed_quarantined",
            Tally::Committed(Outcome::Control) => "committed_control",
        }
    }

    /// What kind of end it is, as metrics spell it; `None` for what pass-state said later.
    #[must_use]
    pub fn outcome(self) -> Option<&'static str> {
        Some(match self {
            Tally::Stored => "accepted",
            Tally::Quarantined => "quarantined",
            Tally::Control => "control",
            Tally::Rejected
            | Tally::NotFound
            | Tally::Method
            | Tally::TooLarge
            | Tally::MediaType
            | Tally::TooSlow
            | Tally::Abandoned => "rejected",
            Tally::Refused(_) => "unauthenticated",
            Tally::Limited | Tally::ClientLimited | Tally::Busy => "limited",
            Tally::Full
            | Tally::Storage
            | Tally::Unavailable
            | Tally::Restored
            | Tally::Stopping => "unavailable",
            Tally::Internal => "failed",
            Tally::Committed(_) => return None,
        })
    }

    fn index(self) -> usize {
        match self {
            Tally::Stored => 0,
            Tally::Quarantined => 1,
            Tally::Control => 2,
            Tally::Rejected => 3,
            Tally::Refused(RefusalCause::MissingCredential) => 4,
            Tally::Refused(RefusalCause::WrongCredential) => 5,
            Tally::Refused(RefusalCause::StaleTimestamp) => 6,
            Tally::Refused(RefusalCause::AddressNotAllowed) => 7,
            Tally::Refused(RefusalCause::MalformedCredential) => 8,
            Tally::NotFound => 9,
            Tally::Method => 10,
            Tally::TooLarge => 11,
            Tally::MediaType => 12,
            Tally::TooSlow => 13,
            Tally::Abandoned => 14,
            Tally::Limited => 15,
            Tally::ClientLimited => 16,
            Tally::Busy => 17,
            Tally::Full => 18,
            Tally::Storage => 19,
            Tally::Unavailable => 20,
            Tally::Restored => 21,
            Tally::Stopping => 22,
            Tally::Internal => 23,
            Tally::Committed(Outcome::Applied) => 24,
            Tally::Committed(Outcome::Duplicate) => 25,
            Tally::Committed(Outcome::Quarantined) => 26,
            Tally::Committed(Outcome::Control) => 27,
        }
    }
}

/// One page per source, and one for requests (and deliveries) of none that is configured. A source's page stays as long
/// as the process, also when the source is no longer configured.
#[derive(Debug)]
pub struct Books {
    /// Pages are only ever added.
    pages: RwLock<Vec<Arc<Page>>>,
    /// What belongs to no source.
    none: Page,
    start: Instant,
}

#[derive(Debug)]
struct Page {
    source: String,
    tallies: [AtomicU64; Tally::ALL.len()],
    facts: AtomicU64,
    /// When the last delivery that was answered 200 was received, in milliseconds of Unix time; 0 if there was none.
    delivered_ms: AtomicI64,
    /// Refusals not logged yet, and when the last log line was written (milliseconds after the start, plus one).
    refusals_unlogged: AtomicU64,
    refusal_logged_ms: AtomicU64,
}

impl Page {
    fn new(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            tallies: std::array::from_fn(|_| AtomicU64::new(0)),
            facts: AtomicU64::new(0),
            delivered_ms: AtomicI64::new(0),
            refusals_unlogged: AtomicU64::new(0),
            refusal_logged_ms: AtomicU64::new(0),
        }
    }
}

impl Books {
    pub(crate) fn new() -> Self {
        Self {
            pages: RwLock::default(),
            none: Page::new(""),
            start: Instant::now(),
        }
    }

    /// Finds the page of a source, or begins it; `None` if there are too many.
    pub(crate) fn enroll(&self, source: &str) -> Option<usize> {
        let mut pages = self.pages.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = pages.iter().position(|page| page.source == source) {
            return Some(known);
        }
        if pages.len() >= PAGES_MAX {
            return None;
        }
        pages.push(Arc::new(Page::new(source)));
        Some(pages.len() - 1)
    }

    fn pages(&self) -> RwLockReadGuard<'_, Vec<Arc<Page>>> {
        // Nothing panics half-way through adding a page.
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn on_page<T>(&self, source: Option<usize>, act: impl FnOnce(&Page) -> T) -> T {
        let pages = self.pages();
        let page = source.and_then(|index| pages.get(index));
        act(page.map_or(&self.none, |page| page))
    }

    pub(crate) fn add(&self, source: Option<usize>, tally: Tally) {
        self.on_page(source, |page| {
            page.tallies[tally.index()].fetch_add(1, Ordering::Relaxed);
        });
    }

    /// Takes note of a delivery that was made durable.
    pub(crate) fn delivered(&self, source: usize, receive_time: Timestamp) {
        self.on_page(Some(source), |page| {
            page.delivered_ms
                .store(receive_time.as_millisecond(), Ordering::Relaxed);
        });
    }

    pub(crate) fn add_facts(&self, source: usize, count: usize) {
        self.on_page(Some(source), |page| {
            page.facts.fetch_add(count as u64, Ordering::Relaxed);
        });
    }

    /// Logs a refused credential: at most one line a second and source, with the number since the last one.
    /// The line repeats nothing the sender sent.
    pub(crate) fn log_refusal(&self, source: usize, cause: RefusalCause) {
        let Some(page) = self.pages().get(source).map(Arc::clone) else {
            return;
        };
        page.refusals_unlogged.fetch_add(1, Ordering::Relaxed);
        let now_ms = u64::try_from(self.start.elapsed().as_millis())
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        let logged_ms = page.refusal_logged_ms.load(Ordering::Relaxed);
        if logged_ms != 0 && now_ms.saturating_sub(logged_ms) < 1_000 {
            return;
        }
        // Of several threads that come here at once, one writes the line.
        if page
            .refusal_logged_ms
            .compare_exchange(logged_ms, now_ms, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
        {
            let count = page.refusals_unlogged.swap(0, Ordering::Relaxed);
            tracing::warn!(
                source.name = page.source,
                cause = cause.name(),
                count,
                "refused deliveries without a valid credential"
            );
        }
    }

    /// Takes a snapshot. Counters are read one by one, so a request that ends meanwhile may be in one and
    /// not yet in another.
    #[must_use]
    pub fn snapshot(&self) -> Vec<BooksPage> {
        self.pages()
            .iter()
            .map(|page| &**page)
            .chain([&self.none])
            .map(|page| BooksPage {
                source: page.source.clone(),
                facts: page.facts.load(Ordering::Relaxed),
                delivered: match page.delivered_ms.load(Ordering::Relaxed) {
                    0 => None,
                    ms => Timestamp::from_millisecond(ms).ok(),
                },
                tallies: std::array::from_fn(|index| page.tallies[index].load(Ordering::Relaxed)),
            })
            .collect()
    }

    /// Sums a tally over all sources.
    #[must_use]
    pub fn total(&self, tally: Tally) -> u64 {
        self.pages()
            .iter()
            .map(|page| &**page)
            .chain([&self.none])
            .map(|page| page.tallies[tally.index()].load(Ordering::Relaxed))
            .sum()
    }
}

/// A moment's figures of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BooksPage {
    /// The source's name; empty for what belongs to none.
    pub source: String,
    /// Facts in deliveries that were answered 200.
    pub facts: u64,
    /// When the last delivery that was answered 200 was received; `None` if there was none since the start.
    pub delivered: Option<Timestamp>,
    tallies: [u64; Tally::ALL.len()],
}

impl BooksPage {
    /// Returns one tally.
    #[must_use]
    pub fn get(&self, tally: Tally) -> u64 {
        self.tallies[tally.index()]
    }

    /// Deliveries answered 200: stored, quarantined and control ones.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.get(Tally::Stored) + self.get(Tally::Quarantined) + self.get(Tally::Control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tally_has_its_own_place_and_name() {
        let mut names = std::collections::BTreeSet::new();
        for (index, tally) in Tally::ALL.into_iter().enumerate() {
            assert_eq!(tally.index(), index, "{}", tally.name());
            names.insert(tally.name());
        }
        assert_eq!(names.len(), Tally::ALL.len());
    }

    #[test]
    fn what_belongs_to_no_source_has_a_page_of_its_own() {
        let books = Books::new();
        books.add(None, Tally::NotFound);
        books.add(Some(7), Tally::Internal);
        let pages = books.snapshot();
        assert_eq!(pages.len(), 1);
        assert_eq!(
            (pages[0].source.as_str(), pages[0].get(Tally::NotFound)),
            ("", 1)
        );
        assert_eq!(books.total(Tally::Internal), 1);
    }

    #[test]
    fn a_source_that_comes_back_goes_on_on_its_page() {
        let books = Books::new();
        let first = books.enroll("acme").unwrap();
        books.add(Some(first), Tally::Stored);
        assert_ne!(books.enroll("other"), Some(first));
        assert_eq!(books.enroll("acme"), Some(first));
        assert_eq!(books.snapshot()[first].get(Tally::Stored), 1);
        for number in 2..PAGES_MAX {
            assert!(books.enroll(&format!("s{number}")).is_some());
        }
        assert_eq!(books.enroll("one-too-many"), None);
        assert_eq!(books.enroll("acme"), Some(first));
    }

    #[test]
    fn refusals_are_logged_once_a_second_with_their_number() {
        let books = Books::new();
        let acme = books.enroll("acme").unwrap();
        for _ in 0..100 {
            books.log_refusal(acme, RefusalCause::WrongCredential);
        }
        // The first was logged alone.
        let unlogged = books.on_page(Some(acme), |page| {
            page.refusals_unlogged.load(Ordering::Relaxed)
        });
        assert_eq!(unlogged, 99);
    }
}
