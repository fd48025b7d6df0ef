//! The log's end: who waits for it, and the newest events, read once for all live subscribers.
//!
//! Truth is the store's head. The writer tells of its own commits at once; other replicas' are seen by hints
//! of the store, which may get lost, and by a poll (every 250 ms while the log moves, every second while it
//! rests), which does not. One feeder reads what is new into a bounded ring; subscribers read the ring
//! without asking the store, and those that fall out of it read pages from the store until they are within it
//! again (see [`subscription`]).
//!
//! A database can be put back in time under a running service (restored, failed over to a standby that missed
//! the last commits) and then grow past where it was, with other events. So nothing read from the store is
//! taken for a continuation unless the place it continues is still there: every step asks for that place
//! *after* or in the same statement as what follows it. A place that is gone is reported; the writer makes
//! sure, and gives the log a new epoch unless another replica did.
//!
//! Invariants: the ring holds consecutive positions of one history; the head only moves forward within an
//! epoch, and from poll to poll only to one whose log holds the head before; nothing here waits for a
//! subscriber.

use std::sync::{Arc, PoisonError, RwLock};

use pass_domain::cursor::Cursor;
use pass_domain::event::{Event, Position};
use pass_store::{self as store, Head, PassStore, Scope};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::config::SubscriptionConfig;
use crate::health::StoreHealth;
use crate::writer::Writer;

mod ring;
pub(crate) mod subscription;

use ring::Ring;
pub(crate) use ring::RingRead;

/// About how many bytes of events one page has. A subscriber holds one while it waits for room for a frame,
/// and while it catches up the next one.
const PAGE_BYTES: usize = 256 << 10;

/// The log's end and the newest events.
pub(crate) struct Tail {
    store: Arc<dyn PassStore>,
    health: Arc<StoreHealth>,
    config: SubscriptionConfig,
    head: watch::Sender<Head>,
    ring: RwLock<Ring>,
    /// Tells that the ring changed.
    fed: watch::Sender<()>,
    /// A place that somebody missed in the store.
    missed: watch::Sender<Option<Cursor>>,
    places: Arc<Semaphore>,
}

impl Tail {
    /// Starts at the log's end as it is.
    ///
    /// # Errors
    /// If the store cannot be asked.
    pub(crate) async fn new(
        store: Arc<dyn PassStore>,
        health: Arc<StoreHealth>,
        config: SubscriptionConfig,
    ) -> Result<Arc<Self>, store::Error> {
        let head = store.head().await?;
        let ring = Ring::new(
            config.ring_events_max,
            config.ring_bytes_max.as_usize(),
            head.cursor(),
        );
        Ok(Arc::new(Self {
            store,
            health,
            head: watch::Sender::new(head),
            ring: RwLock::new(ring),
            fed: watch::Sender::new(()),
            missed: watch::Sender::new(None),
            places: Arc::new(Semaphore::new(config.subscribers_max)),
            config,
        }))
    }

    /// The log's end as last seen.
    pub(crate) fn head(&self) -> Head {
        *self.head.borrow()
    }

    /// Follows the log's end.
    pub(crate) fn watch_head(&self) -> watch::Receiver<Head> {
        self.head.subscribe()
    }

    /// Takes a subscriber's place; `None` if there is none left.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// A commit of this process moved the log's end. Which of two epochs is the later one only the store knows.
    pub(crate) async fn committed(&self, head: Head) {
        let mut other_epoch = false;
        self.head.send_if_modified(|known| {
            other_epoch = head.epoch != known.epoch;
            let ahead = !other_epoch && head.position > known.position;
            if ahead {
                *known = head;
            }
            ahead
        });
        if other_epoch {
            self.poll().await;
        }
    }

    /// Reports a place of the log that is not in the store any more. It is looked into at once.
    pub(crate) fn miss(&self, place: Cursor) {
        self.missed.send_replace(Some(place));
    }

    /// Asks the store for the log's end. If the end known so far is no place in it, that is returned beside
    /// it and nothing is learned.
    async fn look(&self) -> Result<(Head, Option<Cursor>), store::Error> {
        let known = self.head();
        let found = self.store.head().await?;
        if found.epoch == known.epoch && !holds(&*self.store, &found, known.cursor()).await? {
            return Ok((found, Some(known.cursor())));
        }
        self.head.send_if_modified(|now| {
            // A commit of this process may have come in between; it is at least as new.
            let moved = if found.epoch == now.epoch {
                found.position > now.position
            } else {
                *now == known
            };
            if moved {
                *now = found;
            }
            moved
        });
        Ok((found, None))
    }

    /// Looks up the log's end. Returns the end known so far if the store does not have it any more.
    pub(crate) async fn poll(&self) -> Option<Cursor> {
        match self.look().await {
            Ok((_, missed)) => {
                self.health.has_read();
                missed
            }
            Err(error) => {
                tracing::warn!(error = %error, "the log's end cannot be looked up");
                self.health.failed("reading failed");
                None
            }
        }
    }

    /// The log's end, asked of the store.
    ///
    /// # Errors
    /// What the store says; also while the store has another history than what was seen of it, until the log
    /// got its new epoch.
    pub(crate) async fn head_now(&self) -> Result<Head, store::Error> {
        match self.look().await? {
            (found, None) => Ok(found),
            (_, Some(place)) => {
                self.miss(place);
                Err(store::Error::Unavailable(
                    "it was put back in time and gets a new epoch".to_owned(),
                ))
            }
        }
    }

    /// Polls and feeds the ring until `stop`.
    pub(crate) async fn run(self: Arc<Self>, writer: Writer, stop: CancellationToken) {
        let mut head = self.watch_head();
        let mut missed = self.missed.subscribe();
        let mut hints = self.store.hints();
        let mut idle = false;
        let mut polled = Instant::now();
        loop {
            let interval = if idle {
                self.config.poll_interval_idle.get()
            } else {
                self.config.poll_interval.get()
            };
            let mut gone = None;
            let mut poll = false;
            tokio::select! {
                () = stop.cancelled() => return,
                changed = head.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    idle = false;
                }
                () = hint(&mut hints) => poll = true,
                _ = missed.changed() => {
                    gone = *missed.borrow_and_update();
                    poll = true;
                }
                () = sleep_until(polled + interval) => {
                    idle = true;
                    poll = true;
                }
            }
            if poll {
                gone = self.poll().await.or(gone);
                polled = Instant::now();
            }
            let gone = match gone {
                Some(place) => Some(place),
                None => self.feed().await,
            };
            if let Some(place) = gone {
                // If it fails, the next poll misses the place again.
                if let Ok(Err(error)) = writer.leave_epoch_without(place).await {
                    tracing::error!(error = %error, "the log's epoch cannot be changed");
                }
                self.feed().await;
            }
        }
    }

    /// Reads what is new into the ring. Without subscribers the ring is moved to the end instead. Returns the
    /// ring's end if the store does not have it any more.
    async fn feed(&self) -> Option<Cursor> {
        loop {
            let head = self.head();
            let end = (self.ring.read())
                .unwrap_or_else(PoisonError::into_inner)
                .end();
            let behind = head.position.0.saturating_sub(end.position.0);
            if end.epoch == head.epoch && behind == 0 {
                return None;
            }
            let unwatched = self.places.available_permits() == self.config.subscribers_max;
            if end.epoch != head.epoch || unwatched || behind > self.config.ring_events_max as u64 {
                self.change(|ring| ring.restart(head.cursor()));
                return None;
            }
            // The page begins with the event at the ring's end, which shows that it continues the ring.
            let overlap = u32::from(end.position.0 > 0);
            let from = Position(end.position.0 - u64::from(overlap));
            let rows_max = self.config.page_events + overlap;
            match self
                .store
                .events_after(&Scope::everything(), from, rows_max)
                .await
            {
                Ok(page) => {
                    let mut rows = page.rows.into_iter();
                    if overlap == 1 {
                        let first = rows.next();
                        let place = first
                            .map(|event| Cursor::of(end.epoch, event.position, &event.fact.id));
                        if place != Some(end) {
                            return Some(end);
                        }
                    }
                    if rows.len() == 0 {
                        // The head is there, so its rows are; if not, the next poll tells why.
                        return None;
                    }
                    self.change(|ring| rows.for_each(|event| ring.push(event)));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "new events cannot be read for live subscribers");
                    self.health.failed("reading failed");
                    return None;
                }
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Ring)) {
        change(&mut self.ring.write().unwrap_or_else(PoisonError::into_inner));
        self.fed.send_replace(());
    }

    /// Up to `events_max` events after a place, about [`PAGE_BYTES`] of them, if the ring has them.
    pub(crate) fn read(&self, after: Cursor, events_max: usize) -> RingRead {
        self.ring
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .read(after, events_max, PAGE_BYTES)
    }

    /// Follows the ring.
    pub(crate) fn watch_ring(&self) -> watch::Receiver<()> {
        self.fed.subscribe()
    }
}

/// True if a place is in the log that `head` was just found to be the end of. Within an epoch it always is,
/// unless the database was put back in time. `head` must have been asked for after the place was known.
async fn holds(store: &dyn PassStore, head: &Head, place: Cursor) -> Result<bool, store::Error> {
    match place.position.cmp(&head.position) {
        std::cmp::Ordering::Greater => Ok(false),
        std::cmp::Ordering::Equal => Ok(place.digest == head.digest),
        // Asked after the head, so that no other history can come in between.
        std::cmp::Ordering::Less => {
            Ok(store.digest_at(place.position).await? == Some(place.digest))
        }
    }
}

/// Waits for the store's next hint; for ever if it gives none (any more). Cancel safe.
async fn hint(hints: &mut Option<watch::Receiver<u64>>) {
    if let Some(receiver) = hints
        && receiver.changed().await.is_ok()
    {
        return;
    }
    *hints = None;
    std::future::pending().await
}

/// About how many bytes an event takes in memory.
fn event_bytes(event: &Event) -> usize {
    let fact = &event.fact;
    let texts = fact.vendor_kind.len()
        + fact.refs.campaign.len()
        + fact.refs.distribution.len()
        + fact.refs.class.len()
        + fact.refs.serial_number.len()
        + fact.refs.external_id.len()
        + fact.pass.as_str().len()
        + event.trace.traceparent.len()
        + event.trace.tracestate.len();
    let map = |map: &std::collections::BTreeMap<String, String>| -> usize {
        map.iter()
            .map(|(name, value)| 64 + name.len() + value.len())
            .sum()
    };
    let personal = event.personal.as_ref().map_or(0, |personal| {
        personal.display_name.len()
            + personal.email_address.len()
            + map(&personal.ip_addresses)
            + map(&personal.user_agents)
            + map(&personal.position)
            + map(&personal.attributes)
    });
    size_of::<Event>() + 256 + texts + map(&fact.attributes) + personal
}

#[cfg(test)]
mod tests {
    use pass_store::{SqlStore, SqliteOptions};
    use service_kit::admin::Readiness;
    use service_kit::shutdown::Shutdown;

    use super::*;

    #[tokio::test]
    async fn a_commit_that_is_told_late_takes_the_log_to_no_older_epoch() {
        let dir = tempfile::tempdir().unwrap();
        let options = SqliteOptions::new(dir.path().join("log.db"));
        let store: Arc<dyn PassStore> = Arc::new(SqlStore::open(options).await.unwrap());
        let check = Readiness::new(Shutdown::new()).register("store");
        let health = Arc::new(StoreHealth::new(check));
        let config = SubscriptionConfig::default();
        let tail = Tail::new(Arc::clone(&store), health, config).await.unwrap();
        let late = Head {
            position: Position(9),
            ..tail.head()
        };
        let rotated = store.epoch_rotate().await.unwrap();
        tail.poll().await;
        assert_eq!(tail.head(), rotated);
        let mut watched = tail.watch_head();
        watched.mark_unchanged();
        tail.committed(late).await;
        assert_eq!(tail.head(), rotated);
        assert!(!watched.has_changed().unwrap(), "nobody saw the older one");
        // A later one is found in the store, whoever tells of it.
        let again = store.epoch_rotate().await.unwrap();
        tail.committed(again).await;
        assert_eq!(tail.head(), again);
        store.close().await;
    }
}
