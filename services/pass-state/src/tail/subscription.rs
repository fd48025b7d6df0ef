//! One subscription: catches up from the store, then follows the ring.
//!
//! ```text
//! Started ─► pages from the store ─► CaughtUp ─► the ring ─► …
//!                 ▲                                │ too slow
//!                 └────────── FellBehind ◄─────────┘
//! ```
//!
//! The one buffer is the queue of two frames, each bounded in bytes; waiting for room in it is what a slow
//! client does to its own task and to nothing else. `cursor` is the place up to which events were considered
//! and, where the filter wants them, queued.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use pass_domain::cursor::Cursor;
use pass_domain::event::{Event, Position};
use pass_domain::filter::Filter;
use pass_proto::convert::{event_into_wire, time_to_wire};
use pass_proto::status::{Fault, Reason};
use pass_proto::v1;
use pass_proto::v1::subscribe_response::Frame;
use pass_store::{self as store, Head, PassStore};
use prost::Message as _;
use service_kit::clock::Clock;
use service_kit::shutdown::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{PAGE_BYTES, RingRead, Tail, event_bytes};
use crate::access::Caller;
use crate::fault;
use crate::frames::{FrameSender, Gone};
use crate::metrics::{self, Measures};
use crate::query::events::EventRecord;
use crate::query::mask::Mask;
use crate::query::personal;

/// Frames that may wait for the client.
pub(crate) const FRAMES_MAX: usize = 2;
/// Events in the first page of catching up; the next ones are sized by the bytes of the last.
const FIRST_PAGE_EVENTS: u32 = 64;
/// How long a full queue may hold up the last frame of a stream that ends for another reason.
const LAST_FRAME_WAIT: Duration = Duration::from_millis(500);
/// How long a stream whose place is gone from the store waits for the log's new epoch.
const EPOCH_WAIT: Duration = Duration::from_secs(5);

/// Where a subscription starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// At the first event kept.
    Beginning,
    /// With the next event recorded.
    End,
    /// After a place.
    After(Cursor),
    /// With the first event recorded at or after a time.
    Time(Timestamp),
}

/// What a client wants.
pub(crate) struct Wish {
    /// Where to start.
    pub(crate) start: Start,
    /// Which events.
    pub(crate) filter: Filter,
    /// Which of their fields.
    pub(crate) mask: Mask,
    /// Who asks.
    pub(crate) caller: Caller,
    /// Most events per frame.
    pub(crate) batch_events: usize,
    /// How often to send a bookmark while nothing else is sent.
    pub(crate) bookmark_interval: Duration,
    /// End at the log's end as it is now.
    pub(crate) stop_at_head: bool,
}

/// What subscriptions stand on.
#[derive(Clone)]
pub(crate) struct Subscriptions {
    pub(crate) store: Arc<dyn PassStore>,
    pub(crate) tail: Arc<Tail>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shutdown: Shutdown,
    pub(crate) measures: Arc<Measures>,
}

/// A subscription that was let in and knows where it starts.
pub(crate) struct Subscription {
    on: Subscriptions,
    wish: Wish,
    oldest: Cursor,
    start: Cursor,
    head: Head,
    _place: OwnedSemaphorePermit,
}

impl Subscriptions {
    /// Lets a client in and finds the place where it starts.
    ///
    /// # Errors
    /// TOO_MANY_SUBSCRIBERS, the cursor's reasons, or the store's.
    pub(crate) async fn open(&self, wish: Wish) -> Result<Subscription, Fault> {
        if self.shutdown.is_stopping() {
            return Err(fault::draining());
        }
        let limit = self.tail.config.subscribers_max;
        let place = self.tail.place().ok_or_else(|| {
            Fault::new(
                Reason::TooManySubscribers,
                format!("{limit} subscribers are connected already"),
            )
            .with("limit", limit.to_string())
        })?;
        let broken = |error: store::Error| fault::of_store(&error);
        let head = self.tail.head_now().await.map_err(broken)?;
        let oldest = self.store.log_info().await.map_err(broken)?.oldest;
        let oldest = self.cursor_at(head.epoch, oldest).await?;
        let start = match wish.start {
            Start::Beginning => oldest,
            Start::End => head.cursor(),
            Start::After(cursor) => {
                self.check(cursor, &head, oldest).await?;
                cursor
            }
            Start::Time(time) => {
                let found = self.store.position_before_time(time).await;
                self.cursor_at(head.epoch, found.map_err(broken)?.max(oldest.position))
                    .await?
            }
        };
        Ok(Subscription {
            on: self.clone(),
            wish,
            oldest,
            start,
            head,
            _place: place,
        })
    }

    /// Checks that a cursor is a place in this log.
    async fn check(&self, cursor: Cursor, head: &Head, oldest: Cursor) -> Result<(), Fault> {
        if cursor.epoch != head.epoch {
            return Err(epoch_mismatch(head));
        }
        if cursor.position > head.position {
            return Err(Fault::new(
                Reason::CursorAhead,
                "after_cursor lies beyond the end of the log",
            )
            .with("head_cursor", head.cursor().to_string()));
        }
        if cursor.position < oldest.position {
            return Err(Fault::new(
                Reason::CursorExpired,
                "after_cursor is older than what is kept",
            )
            .with("oldest_cursor", oldest.to_string())
            .with("head_cursor", head.cursor().to_string()));
        }
        if self.cursor_at(head.epoch, cursor.position).await? != cursor {
            return Err(epoch_mismatch(head));
        }
        Ok(())
    }

    async fn cursor_at(&self, epoch: u64, position: Position) -> Result<Cursor, Fault> {
        let digest = self.store.digest_at(position).await;
        let digest = digest
            .map_err(|error| fault::of_store(&error))?
            .ok_or_else(|| {
                tracing::error!(
                    position = position.0,
                    "the log has no event at a place within it"
                );
                fault::internal()
            })?;
        Ok(Cursor {
            epoch,
            position,
            digest,
        })
    }
}

/// The cursor is of another history.
pub(crate) fn epoch_mismatch(head: &Head) -> Fault {
    Fault::new(
        Reason::CursorEpochMismatch,
        "the cursor is of another history of the log than the present one",
    )
    .with("epoch", epoch_text(head.epoch))
    .with("head_cursor", head.cursor().to_string())
}

/// The epoch as clients see it.
pub(crate) fn epoch_text(epoch: u64) -> String {
    format!("{epoch:016x}")
}

/// Why a subscription ends.
enum End {
    /// The client went away.
    Gone,
    /// The client took nothing for too long.
    Stalled,
    /// With a frame that says why, then a status or OK.
    Closing(v1::ClosingReason),
    /// The log got another epoch.
    EpochChanged,
    /// Something failed.
    Failed(Fault),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        End::Gone
    }
}

impl Subscription {
    /// Sends frames until the subscription ends, then ends the stream. `age` is how long it may live.
    pub(crate) async fn run(self, frames: FrameSender<v1::SubscribeResponse>, age: Duration) {
        let mut run = Run {
            ring: self.on.tail.watch_ring(),
            epoch: self.head.epoch,
            cursor: self.start,
            queued: self.start,
            unsaid: 0,
            last_frame: Instant::now(),
            end: Instant::now() + age,
            sending: false,
            live: false,
            caught_up: false,
            page_events: FIRST_PAGE_EVENTS.min(self.on.tail.config.page_events),
            ahead: None,
            frames: &frames,
            counted: self.on.measures.subscriber(self.start.position.0),
            this: &self,
        };
        let end = match run.go().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let status = run.last(end).await;
        frames.end(status.map(Into::into));
    }
}

/// A page on its way from the store.
struct PageRead {
    /// The place it follows.
    after: Position,
    /// The log's end before it was asked for: what the page leaves out up to there is out of scope.
    known: Head,
    read: AbortOnDropHandle<Result<PageAfter, store::Error>>,
}

/// A page, and what the store had afterwards at the place it follows.
struct PageAfter {
    page: store::Page<Arc<Event>>,
    digest: Option<u64>,
}

/// A running subscription.
struct Run<'a> {
    this: &'a Subscription,
    frames: &'a FrameSender<v1::SubscribeResponse>,
    /// Shows where it stands.
    counted: metrics::Subscriber,
    ring: watch::Receiver<()>,
    epoch: u64,
    /// Everything up to here was considered.
    cursor: Cursor,
    /// Everything up to here was told in a queued frame.
    queued: Cursor,
    /// Events considered since the last frame.
    unsaid: u64,
    last_frame: Instant,
    end: Instant,
    /// A frame is on its way to the queue, or did not get there: `cursor` promises more than was queued.
    sending: bool,
    live: bool,
    caught_up: bool,
    /// Events in the next page from the store.
    page_events: u32,
    /// The next page, if it is being read.
    ahead: Option<PageRead>,
}

impl Run<'_> {
    async fn go(&mut self) -> Result<std::convert::Infallible, End> {
        let started = v1::SubscriptionStarted {
            epoch: epoch_text(self.epoch),
            start_cursor: self.cursor.to_string(),
            head_cursor: self.this.head.cursor().to_string(),
            oldest_cursor: self.this.oldest.to_string(),
        };
        self.send(Frame::Started(started)).await?;
        loop {
            self.check()?;
            self.counted.at(self.cursor.position.0, self.live);
            if self.live {
                self.follow().await?;
            } else {
                self.catch_up().await?;
            }
        }
    }

    /// Ends a stream that is due.
    fn check(&self) -> Result<(), End> {
        if self.this.on.shutdown.is_stopping() {
            return Err(End::Closing(v1::ClosingReason::Draining));
        }
        if self.epoch != self.this.on.tail.head().epoch {
            return Err(End::EpochChanged);
        }
        if self.this.wish.stop_at_head && self.cursor.position >= self.this.head.position {
            return Err(End::Closing(v1::ClosingReason::HeadReached));
        }
        if Instant::now() >= self.end || self.this.wish.caller.changed().is_cancelled() {
            return Err(End::Closing(v1::ClosingReason::Rotated));
        }
        Ok(())
    }

    /// Considers one page of the store, or goes live if the ring has what follows.
    async fn catch_up(&mut self) -> Result<(), End> {
        let tail = &self.this.on.tail;
        match tail.read(self.cursor, 0) {
            RingRead::Events(_) => {
                self.live = true;
                self.ahead = None;
                return Ok(());
            }
            RingRead::OtherHistory => return Err(self.other_history().await),
            RingRead::OtherEpoch | RingRead::Behind => {}
        }
        let after = self.cursor.position;
        let read = self.ahead.take().filter(|read| read.after == after);
        let read = read.unwrap_or_else(|| self.read_page(after));
        let known = read.known;
        let PageAfter { page, digest } = read
            .read
            .await
            .map_err(|_| End::Failed(fault::internal()))?
            .map_err(|error| End::Failed(fault::of_store(&error)))?;
        if tail.head().epoch != self.epoch {
            return Err(End::EpochChanged);
        }
        if digest != Some(self.cursor.digest) {
            return Err(self.other_history().await);
        }
        let mut examined = page.next.map_or(known.position, Position);
        if self.this.wish.stop_at_head {
            examined = examined.min(self.this.head.position);
        }
        let bytes: usize = page.rows.iter().map(|event| event_bytes(event)).sum();
        if let Some(fitting) = page
            .rows
            .len()
            .saturating_mul(PAGE_BYTES)
            .checked_div(bytes)
        {
            self.page_events = u32::try_from(fitting)
                .unwrap_or(u32::MAX)
                .clamp(1, tail.config.page_events);
        }
        // The next page is read while this one is sent.
        if let Some(next) = page.next
            && !(self.this.wish.stop_at_head && examined >= self.this.head.position)
        {
            self.ahead = Some(self.read_page(Position(next)));
        }
        self.consider(page.rows).await?;
        if examined > self.cursor.position {
            let digest = self.this.on.store.digest_at(examined).await;
            match digest.map_err(|error| End::Failed(fault::of_store(&error)))? {
                Some(digest) => {
                    self.cursor = Cursor {
                        epoch: self.epoch,
                        position: examined,
                        digest,
                    };
                }
                None => return Err(self.other_history().await),
            }
        }
        if self.unsaid >= tail.config.bookmark_events
            || (self.unsaid > 0 && self.last_frame.elapsed() >= self.this.wish.bookmark_interval)
        {
            self.bookmark().await?;
        }
        Ok(())
    }

    /// Starts reading a page. Dropping what it returns ends the reading.
    fn read_page(&self, after: Position) -> PageRead {
        let store = Arc::clone(&self.this.on.store);
        let scope = self.this.wish.caller.scope().clone();
        let events = self.page_events;
        PageRead {
            after,
            known: self.this.on.tail.head(),
            read: AbortOnDropHandle::new(tokio::spawn(async move {
                let page = store.events_after(&scope, after, events).await?;
                let digest = store.digest_at(after).await?;
                Ok(PageAfter { page, digest })
            })),
        }
    }

    /// The end of a stream whose place is not in the log (any more): the database was put back in time. So
    /// that the client is told the new epoch, this waits for it.
    async fn other_history(&self) -> End {
        let tail = &self.this.on.tail;
        tail.miss(self.cursor);
        let mut head = tail.watch_head();
        let changed = head.wait_for(|head| head.epoch != self.epoch);
        match timeout(EPOCH_WAIT, changed).await {
            Ok(_) => End::EpochChanged,
            Err(_) => End::Failed(fault::store_unavailable()),
        }
    }

    /// Considers what the ring has, or waits for more.
    async fn follow(&mut self) -> Result<(), End> {
        self.ring.mark_unchanged();
        let tail = &self.this.on.tail;
        let events_max = tail.config.page_events as usize;
        match tail.read(self.cursor, events_max) {
            RingRead::OtherEpoch => return Err(End::EpochChanged),
            RingRead::OtherHistory => return Err(self.other_history().await),
            RingRead::Behind => {
                self.live = false;
                self.caught_up = false;
                self.this.on.measures.fell_behind();
                let fell_behind = v1::SubscriptionFellBehind {
                    cursor: self.cursor.to_string(),
                    server_time: Some(self.now()),
                };
                return self.send(Frame::FellBehind(fell_behind)).await;
            }
            RingRead::Events(events) if !events.is_empty() => {
                self.consider(events).await?;
                if self.unsaid >= tail.config.bookmark_events {
                    self.bookmark().await?;
                }
                return Ok(());
            }
            RingRead::Events(_) => {}
        }
        if !self.caught_up && self.cursor.position >= tail.head().position {
            self.caught_up = true;
            let caught_up = v1::SubscriptionCaughtUp {
                cursor: self.cursor.to_string(),
                server_time: Some(self.now()),
            };
            return self.send(Frame::CaughtUp(caught_up)).await;
        }
        let bookmark = self.last_frame + self.this.wish.bookmark_interval;
        tokio::select! {
            _ = self.ring.changed() => Ok(()),
            () = self.frames.gone() => Err(End::Gone),
            () = self.this.on.shutdown.stopping() => Ok(()),
            () = sleep_until(self.end) => Ok(()),
            () = self.this.wish.caller.changed().cancelled() => Ok(()),
            () = sleep_until(bookmark) => self.bookmark().await,
        }
    }

    /// Passes events by the filter and queues those that are wanted, in frames of bounded size.
    async fn consider(&mut self, events: Vec<Arc<Event>>) -> Result<(), End> {
        let wish = &self.this.wish;
        let scope = wish.caller.scope();
        let bytes_max = self.this.on.tail.config.frame_bytes_max.as_usize();
        let mut frame: Vec<v1::PassEvent> = Vec::new();
        let mut bytes = 0;
        for event in events {
            if wish.stop_at_head && event.position > self.this.head.position {
                break;
            }
            let wanted = scope.allows(&event.source, &event.organization)
                && (wish.filter.is_empty() || wish.filter.matches(&EventRecord::new(&event)));
            let place = Cursor::of(self.epoch, event.position, &event.fact.id);
            if wanted {
                // A page from the store is this subscriber's alone; the ring is everybody's.
                let mut wire = event_into_wire(Arc::unwrap_or_clone(event), self.epoch);
                if !scope.personal {
                    personal::strip_event(&mut wire);
                }
                wish.mask.apply(&mut wire);
                let wire_bytes = wire.encoded_len();
                if !frame.is_empty()
                    && (frame.len() >= wish.batch_events || bytes + wire_bytes > bytes_max)
                {
                    self.events(std::mem::take(&mut frame)).await?;
                    bytes = 0;
                }
                bytes += wire_bytes;
                frame.push(wire);
            }
            self.cursor = place;
            self.unsaid += 1;
        }
        if frame.is_empty() {
            Ok(())
        } else {
            self.events(frame).await
        }
    }

    async fn events(&mut self, events: Vec<v1::PassEvent>) -> Result<(), End> {
        let cursor = self.cursor.to_string();
        let count = events.len();
        self.send(Frame::Events(v1::SubscriptionEvents { events, cursor }))
            .await?;
        self.this.on.measures.events_sent(count);
        Ok(())
    }

    async fn bookmark(&mut self) -> Result<(), End> {
        let bookmark = v1::SubscriptionBookmark {
            cursor: self.cursor.to_string(),
            server_time: Some(self.now()),
        };
        self.send(Frame::Bookmark(bookmark)).await
    }

    /// Queues a frame. Gives up when the client takes nothing for too long; when the stream is due anyway,
    /// it is not kept for that long.
    async fn send(&mut self, frame: Frame) -> Result<(), End> {
        self.sending = true;
        let on = &self.this.on;
        let due = async {
            tokio::select! {
                () = on.shutdown.stopping() => {}
                () = sleep_until(self.end) => {}
                () = self.this.wish.caller.changed().cancelled() => {}
            }
            tokio::time::sleep(LAST_FRAME_WAIT).await;
        };
        let room = tokio::select! {
            biased;
            room = self.frames.room() => room?,
            () = tokio::time::sleep(on.tail.config.stall_timeout.get()) => return Err(End::Stalled),
            () = due => {
                self.check()?;
                return Err(End::Stalled);
            }
        };
        room.send(v1::SubscribeResponse { frame: Some(frame) });
        self.sending = false;
        self.queued = self.cursor;
        self.counted.at(self.cursor.position.0, self.live);
        self.unsaid = 0;
        self.last_frame = Instant::now();
        Ok(())
    }

    /// Queues the last frame, if there is to be one, and chooses the status.
    async fn last(&mut self, end: End) -> Option<Fault> {
        match end {
            End::Gone => None,
            End::Failed(fault) => Some(fault),
            End::EpochChanged => Some(epoch_mismatch(&self.this.on.tail.head())),
            End::Stalled => {
                self.this.on.measures.stalled();
                let fault = Fault::new(
                    Reason::SubscriberStalled,
                    "the subscriber took nothing for too long",
                );
                Some(fault.with("cursor", self.queued.to_string()))
            }
            End::Closing(reason) => {
                // Where a frame found no room there is none for this one, and what it would have told is
                // told again.
                if !self.sending
                    && let Ok(Ok(room)) = timeout(LAST_FRAME_WAIT, self.frames.room()).await
                {
                    let closing = v1::SubscriptionClosing {
                        cursor: self.cursor.to_string(),
                        reason: reason as i32,
                    };
                    room.send(v1::SubscribeResponse {
                        frame: Some(Frame::Closing(closing)),
                    });
                    self.queued = self.cursor;
                }
                let cursor = self.queued.to_string();
                match reason {
                    v1::ClosingReason::HeadReached | v1::ClosingReason::Unspecified => None,
                    v1::ClosingReason::Rotated => Some(
                        Fault::new(
                            Reason::StreamRotated,
                            "the stream reached its maximum age, or what the caller may do was changed; go on from the cursor",
                        )
                        .with("cursor", cursor),
                    ),
                    v1::ClosingReason::Draining => Some(fault::draining().with("cursor", cursor)),
                }
            }
        }
    }

    fn now(&self) -> prost_types::Timestamp {
        time_to_wire(self.this.on.clock.now())
    }
}
