//! Clients of services that are replaced one after the other, and who forgive nothing that a client would see: senders
//! at a fixed pace, subscribers with filters, and a reader.
//!
//! What a sender repeats by itself is only what every HTTP client does: a request for which the kept connection was
//! closed before any of it went out. A subscriber connects again after the end of a stream, from its cursor; the reader
//! repeats nothing beyond what the channel does.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_proto::status::reason_of;
use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use pass_proto::v1::{self, ErrorReason};
use service_kit::grpc::{Channel, ChannelConfig, Credentials, channel};
use test_kit::wait_for;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::callback::traffic;
use crate::client::{Caller, ClientLog, Outcome};
use crate::dice::Dice;

/// Pause of one sender between two callbacks: far below every drain's delay.
const PACE: Duration = Duration::from_millis(30);
/// Pause of the reader between two calls.
const READ_PACE: Duration = Duration::from_millis(5);
/// Longest wait for one call, and for a frame; bookmarks come each second.
const CALL_LIMIT: Duration = Duration::from_secs(10);
/// Pause of a subscriber before it connects again.
const AGAIN_PAUSE: Duration = Duration::from_millis(10);

/// An attempt that did not end with 200.
#[derive(Clone, Debug)]
pub struct Miss {
    /// When it ended.
    pub at: Instant,
    /// What came of it.
    pub outcome: Outcome,
}

/// Senders at a fixed pace, each callback once.
#[derive(Debug)]
pub struct Pace {
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
    misses: Arc<Mutex<Vec<Miss>>>,
}

impl Pace {
    /// Starts senders that keep their connections, and others that make one for each callback. They begin at different
    /// ones of `addresses`.
    pub fn start(
        addresses: &[SocketAddr],
        seed: u64,
        kept: usize,
        fresh: usize,
        log: &Arc<ClientLog>,
    ) -> Self {
        let stop = CancellationToken::new();
        let misses = Arc::default();
        let tasks = (0..kept + fresh)
            .map(|number| {
                let sender = Sender {
                    caller: Caller::balanced(addresses, number),
                    fresh: number >= kept,
                    dice: Dice::new(seed ^ ((number as u64 + 1) << 32)),
                    tag: format!("rolling-{seed}-{number}"),
                    log: Arc::clone(log),
                    misses: Arc::clone(&misses),
                };
                tokio::spawn(sender.run(stop.clone()))
            })
            .collect();
        Self {
            stop,
            tasks,
            misses,
        }
    }

    /// What was not answered 200 so far.
    pub fn misses(&self) -> Vec<Miss> {
        lock(&self.misses).clone()
    }

    /// Ends the senders after the callbacks that they are at, and returns what was not answered 200.
    ///
    /// # Panics
    /// If a sender did.
    pub async fn finish(mut self) -> Vec<Miss> {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            task.await.expect("senders do not panic");
        }
        self.misses()
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Sender {
    caller: Caller,
    fresh: bool,
    dice: Dice,
    tag: String,
    log: Arc<ClientLog>,
    misses: Arc<Mutex<Vec<Miss>>>,
}

impl Sender {
    async fn run(mut self, stop: CancellationToken) {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for chunk in 0_u64.. {
            for callback in traffic(&mut self.dice, &format!("{}-{chunk}", self.tag), 10) {
                tokio::select! {
                    _ = pace.tick() => {}
                    () = stop.cancelled() => return,
                }
                let outcome = self.caller.deliver(&callback, &self.log).await;
                if self.fresh {
                    self.caller.close();
                }
                if !matches!(outcome, Outcome::Stored(_)) {
                    let at = Instant::now();
                    lock(&self.misses).push(Miss { at, outcome });
                }
            }
        }
    }
}

/// A channel as every client of ours has it.
///
/// # Panics
/// If there is no address.
pub fn channel_to(addresses: &[SocketAddr]) -> Channel {
    let endpoint = addresses.iter().map(|address| format!("http://{address}"));
    let config = ChannelConfig {
        endpoint: endpoint.collect(),
        ..ChannelConfig::default()
    };
    channel(&config, &Credentials::default()).expect("addresses are endpoints")
}

/// What a subscriber has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Positions and ids of its events, in the order in which they came.
    pub events: Vec<(u64, String)>,
    /// Place up to which the log was told.
    pub place: u64,
    /// Streams that ended with a Closing frame that said so, and its status.
    pub farewells: usize,
    /// What no subscriber should see: a stream that broke off, a cursor that is refused.
    pub faults: Vec<String>,
}

/// A subscriber, with a filter or without.
#[derive(Debug)]
pub struct Watcher {
    name: String,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Watcher {
    /// Subscribes from the beginning of the log, and goes on until it is dropped.
    pub fn start(name: &str, channel: Channel, filter: &str) -> Self {
        let seen = Arc::default();
        let client = SubscriptionServiceClient::new(channel);
        let task = tokio::spawn(watch(client, filter.to_owned(), Arc::clone(&seen)));
        Self {
            name: name.to_owned(),
            seen,
            task,
        }
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }

    /// Waits until it was told of everything up to `head`, then holds what it saw against the events that it should
    /// have seen.
    ///
    /// # Errors
    /// Says what is missing, repeated or out of order, or which fault it met.
    pub async fn judge(
        &self,
        head: u64,
        wanted: &[(u64, String)],
        limit: Duration,
    ) -> anyhow::Result<()> {
        let name = &self.name;
        wait_for(&format!("{name} to reach {head}"), limit, async || {
            let place = lock(&self.seen).place;
            if place >= head { Ok(()) } else { Err(place) }
        })
        .await?;
        let seen = self.seen();
        anyhow::ensure!(seen.faults.is_empty(), "{name}: {:#?}", seen.faults);
        let differs = (0..seen.events.len().max(wanted.len()))
            .find(|at| seen.events.get(*at) != wanted.get(*at));
        if let Some(at) = differs {
            anyhow::bail!(
                "{name} saw {} events of {}; number {at} is {:?} and should be {:?}",
                seen.events.len(),
                wanted.len(),
                seen.events.get(at),
                wanted.get(at)
            );
        }
        Ok(())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn watch(client: SubscriptionServiceClient<Channel>, filter: String, seen: Arc<Mutex<Seen>>) {
    let mut cursor = None;
    loop {
        let end = stream(client.clone(), &filter, &mut cursor, &seen).await;
        match end {
            Ended::Farewell => lock(&seen).farewells += 1,
            Ended::Draining => {}
            Ended::Fault(what) => lock(&seen).faults.push(what),
        }
        // Not to hammer whoever refuses.
        tokio::time::sleep(AGAIN_PAUSE).await;
    }
}

/// How a stream ended.
enum Ended {
    /// With a Closing frame and the status that belongs to it.
    Farewell,
    /// It was not opened, because the server was about to end.
    Draining,
    Fault(String),
}

async fn stream(
    mut client: SubscriptionServiceClient<Channel>,
    filter: &str,
    cursor: &mut Option<String>,
    seen: &Mutex<Seen>,
) -> Ended {
    let request = v1::SubscribeRequest {
        start: Some(match &cursor {
            Some(cursor) => Start::AfterCursor(cursor.clone()),
            None => Start::FromBeginning(true),
        }),
        filter: filter.to_owned(),
        bookmark_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..v1::SubscribeRequest::default()
    };
    let mut frames = match soon(client.subscribe(request)).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if reason_of(&status) == Some(ErrorReason::ServerDraining) => {
            return Ended::Draining;
        }
        Err(status) => return Ended::Fault(format!("subscribing failed: {status}")),
    };
    let mut closing = false;
    loop {
        let frame = match soon(frames.message()).await {
            Ok(Some(frame)) => frame.frame,
            Ok(None) => return Ended::Fault("the stream ended with OK".to_owned()),
            Err(status) => {
                let draining = reason_of(&status) == Some(ErrorReason::ServerDraining);
                return match closing && draining {
                    true => Ended::Farewell,
                    false => Ended::Fault(format!("after closing ({closing}): {status:?}")),
                };
            }
        };
        let place = match frame {
            Some(Frame::Events(batch)) => {
                let events = batch.events.into_iter();
                lock(seen)
                    .events
                    .extend(events.map(|event| (position(&event.cursor), event.id)));
                batch.cursor
            }
            Some(Frame::Bookmark(frame)) => frame.cursor,
            Some(Frame::CaughtUp(frame)) => frame.cursor,
            Some(Frame::FellBehind(frame)) => frame.cursor,
            Some(Frame::Closing(frame)) => {
                closing = true;
                frame.cursor
            }
            Some(Frame::Started(_)) | None => continue,
        };
        lock(seen).place = position(&place);
        *cursor = Some(place);
    }
}

/// The place that a cursor names; 0, which is no event's, if it is none.
pub fn position(cursor: &str) -> u64 {
    cursor
        .parse::<Cursor>()
        .map_or(0, |cursor| cursor.position.0)
}

/// What the readers of [`Poller`] were answered, and how often.
pub type Answers = BTreeMap<String, usize>;

/// Someone who asks for one thing again and again and takes no error.
#[derive(Debug)]
pub struct Poller {
    answers: Arc<Mutex<Answers>>,
    task: JoinHandle<()>,
}

impl Poller {
    /// Asks until it is dropped.
    pub fn start(channel: Channel) -> Self {
        let answers = Arc::default();
        let task = tokio::spawn(poll(PassServiceClient::new(channel), Arc::clone(&answers)));
        Self { answers, task }
    }

    /// How often each answer came: `ok`, or an error's text.
    pub fn answers(&self) -> Answers {
        lock(&self.answers).clone()
    }
}

impl Drop for Poller {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn poll(mut client: PassServiceClient<Channel>, answers: Arc<Mutex<Answers>>) {
    loop {
        let answer = match soon(client.get_log_info(v1::GetLogInfoRequest {})).await {
            Ok(_) => "ok".to_owned(),
            Err(status) => format!("{status:?}"),
        };
        *lock(&answers).entry(answer).or_default() += 1;
        tokio::time::sleep(READ_PACE).await;
    }
}

/// Bounds the wait for a call or a frame.
async fn soon<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(CALL_LIMIT, call)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded("nothing came")))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
