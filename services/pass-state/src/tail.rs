//! The log's end: who waits for it, and the newest events, read once for all live subscribers.
//!
//! Truth is the store's head. The writer tells of its own commits at once; a poll (every 250 ms while the
//! log moves, every second while it rests) sees those of other replicas. One feeder reads what is new into a
//! bounded ring; subscribers read the ring without asking the store, and those that fall out of it read
//! pages from the store until they are within it again (see [`subscription`]).
//!
//! Invariants: the ring holds consecutive positions of one epoch; the head only moves forward within an
//! epoch; nothing here waits for a subscriber.

use std::sync::{Arc, PoisonError, RwLock};

use pass_domain::event::{Event, Position};
use pass_store::{self as store, Head, PassStore, Scope};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
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
    places: Arc<Semaphore>,
}

/// What a poll found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Polled {
    /// Nothing to worry about.
    Fine,
    /// The log is shorter than it was, in the same epoch: the database was put back in time.
    WentBack,
    /// The store could not be asked.
    Failed,
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
        health.has_read();
        let ring = Ring::new(
            config.ring_events_max,
            config.ring_bytes_max.as_usize(),
            head.epoch,
            head.position,
        );
        Ok(Arc::new(Self {
            store,
            health,
            head: watch::Sender::new(head),
            ring: RwLock::new(ring),
            fed: watch::Sender::new(()),
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

    /// A commit of this process moved the log's end.
    pub(crate) fn committed(&self, head: Head) {
        self.head.send_if_modified(|known| {
            let ahead = head.epoch != known.epoch || head.position > known.position;
            if ahead {
                *known = head;
            }
            ahead
        });
    }

    /// Looks up the log's end, unless a commit of this process comes in between.
    pub(crate) async fn poll(&self) -> Polled {
        let known = self.head();
        match self.store.head().await {
            Ok(found) => {
                self.health.has_read();
                if found.epoch == known.epoch && found.position < known.position {
                    return Polled::WentBack;
                }
                self.head.send_if_modified(|now| {
                    let moved = *now == known && found != known;
                    if moved {
                        *now = found;
                    }
                    moved
                });
                Polled::Fine
            }
            Err(error) => {
                tracing::warn!(error = %error, "the log's end cannot be looked up");
                self.health.failed("reading failed");
                Polled::Failed
            }
        }
    }

    /// The log's end, asked of the store.
    pub(crate) async fn head_now(&self) -> Result<Head, store::Error> {
        let known = self.head();
        let found = self.store.head().await?;
        self.head.send_if_modified(|now| {
            let ahead =
                *now == known && (found.epoch != known.epoch || found.position > known.position);
            if ahead {
                *now = found;
            }
            ahead
        });
        Ok(found)
    }

    /// Polls and feeds the ring until `stop`.
    pub(crate) async fn run(self: Arc<Self>, writer: Writer, stop: CancellationToken) {
        let mut head = self.watch_head();
        let mut idle = false;
        loop {
            let interval = if idle {
                self.config.poll_interval_idle.get()
            } else {
                self.config.poll_interval.get()
            };
            tokio::select! {
                () = stop.cancelled() => return,
                changed = head.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    idle = false;
                }
                () = tokio::time::sleep(interval) => {
                    idle = true;
                    if self.poll().await == Polled::WentBack {
                        tracing::error!("the database went back in time while it was in use; the log gets a new epoch");
                        // A failure is logged by the writer's caller below and tried again at the next poll.
                        if let Ok(Err(error)) = writer.rotate_epoch().await {
                            tracing::error!(error = %error, "the log's epoch cannot be changed");
                        }
                    }
                }
            }
            self.feed().await;
        }
    }

    /// Reads what is new into the ring. Without subscribers the ring is moved to the end instead.
    async fn feed(&self) {
        loop {
            let head = self.head();
            let (epoch, end) = {
                let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
                (ring.epoch(), ring.end())
            };
            let behind = head.position.0.saturating_sub(end.0);
            if epoch == head.epoch && behind == 0 {
                return;
            }
            let unwatched = self.places.available_permits() == self.config.subscribers_max;
            if epoch != head.epoch || unwatched || behind > self.config.ring_events_max as u64 {
                self.change(|ring| ring.restart(head.epoch, head.position));
                return;
            }
            let rows_max = self.config.page_events;
            match self
                .store
                .events_after(&Scope::everything(), end, rows_max)
                .await
            {
                // The head is there, so its rows are; if not, the next poll tells why.
                Ok(page) if page.rows.is_empty() => return,
                Ok(page) => {
                    self.change(|ring| page.rows.into_iter().for_each(|event| ring.push(event)));
                }
                Err(error) => {
                    tracing::warn!(error = %error, "new events cannot be read for live subscribers");
                    self.health.failed("reading failed");
                    return;
                }
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Ring)) {
        change(&mut self.ring.write().unwrap_or_else(PoisonError::into_inner));
        self.fed.send_replace(());
    }

    /// Up to `events_max` events after a place, about [`PAGE_BYTES`] of them, if the ring has them.
    pub(crate) fn read(&self, epoch: u64, after: Position, events_max: usize) -> RingRead {
        self.ring
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .read(epoch, after, events_max, PAGE_BYTES)
    }

    /// Follows the ring.
    pub(crate) fn watch_ring(&self) -> watch::Receiver<()> {
        self.fed.subscribe()
    }
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
