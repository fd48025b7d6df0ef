//! A subscriber that follows the log through every restart of pass-state, from its last cursor each time and
//! on any replica: the one who notices a gap, a repetition or an event that appears below a place already read.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_proto::status::reason_of;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::{self, ErrorReason};
use prost_types::FieldMask;
use test_kit::wait_for;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

use crate::dice::Dice;
use crate::history::Reader;

/// Longest wait for a replica to open a stream, and, in a stream, for a frame; bookmarks come each second.
const FRAME_LIMIT: Duration = Duration::from_secs(10);

/// What several subscribers saw at each position, to find out whether they all saw the same.
#[derive(Debug, Default)]
pub struct Agreement(Mutex<Vec<Box<str>>>);

impl Agreement {
    /// Holds an event against what was first seen at its position, which is at least 1. Whoever comes first
    /// is right; subscribers are held to their order elsewhere.
    fn check(&self, position: u64, id: &str) -> Result<(), String> {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(position - 1).expect("it is the length of a list");
        match seen.get(index) {
            Some(first) if **first == *id => Ok(()),
            Some(first) => Err(format!(
                "{position} is {id}, and was {first} for another subscriber"
            )),
            None => {
                seen.push(id.into());
                Ok(())
            }
        }
    }

    /// The ids of the events at positions 1, 2, ….
    pub fn ids(&self) -> Vec<Box<str>> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// How a subscriber behaves besides following.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Repeats its choices.
    pub seed: u64,
    /// Leaves a stream after one in so many frames of events, to go on at any replica. 0 is never.
    pub leaves_once_in: u64,
    /// Compares events with other subscribers; only ids and cursors are then asked for.
    pub agreement: Option<Arc<Agreement>>,
}

/// How far a follower is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Position of the last event.
    pub position: u64,
    /// What was wrong first, if anything.
    pub broken: Option<String>,
    /// Streams opened.
    pub streams: usize,
}

/// A subscriber in a task of its own.
#[derive(Debug)]
pub struct Follower {
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins at the beginning of the log and goes on until stopped, at any of the replicas, of which there
    /// must be one.
    pub fn start(replicas: &[SocketAddr], habits: Habits) -> Self {
        let (sender, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(follow(replicas.to_vec(), habits, sender));
        Self { progress, task }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits until the event at `head` was seen; every one before it has been, too, once and in order.
    ///
    /// # Errors
    /// Says what was wrong, or how far it got within `limit`.
    pub async fn caught_up(&mut self, head: i64, limit: Duration) -> anyhow::Result<()> {
        let head = u64::try_from(head)?;
        let mut last = Ok(());
        wait_for("the subscriber to see the head", limit, async || {
            let seen = self.progress();
            match seen.broken {
                Some(why) => {
                    last = Err(anyhow::anyhow!(why));
                    Ok(())
                }
                None if seen.position >= head => Ok(()),
                None => Err(format!(
                    "it is at {} of {head}, in stream {}",
                    seen.position, seen.streams
                )),
            }
        })
        .await?;
        last
    }

    /// Ends it.
    pub fn stop(self) {
        self.task.abort();
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where a follower is and what it has noticed.
struct Place {
    cursor: Option<String>,
    dice: Dice,
    habits: Habits,
    progress: watch::Sender<Progress>,
}

async fn follow(replicas: Vec<SocketAddr>, habits: Habits, progress: watch::Sender<Progress>) {
    let readers: Vec<Reader> = replicas.into_iter().map(Reader::new).collect();
    let mut place = Place {
        cursor: None,
        dice: Dice::new(habits.seed),
        habits,
        progress,
    };
    while place.progress.borrow().broken.is_none() {
        place.progress.send_modify(|seen| seen.streams += 1);
        let reader = &readers[place.dice.index(readers.len())];
        let subscribing = reader.subscriptions.clone();
        let end = match soon(place.subscribe(subscribing)).await {
            Ok(frames) => place.read(frames).await,
            Err(status) => status,
        };
        if matches!(
            reason_of(&end),
            Some(
                ErrorReason::CursorInvalid
                    | ErrorReason::CursorExpired
                    | ErrorReason::CursorAhead
                    | ErrorReason::CursorEpochMismatch
            )
        ) {
            place.found(format!("its last cursor is refused: {end}"));
        }
        // pass-state is away; there is nothing to wait for but time.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Bounds the wait for a call or a frame.
async fn soon<T>(call: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    tokio::time::timeout(FRAME_LIMIT, call)
        .await
        .unwrap_or_else(|_| Err(Status::unavailable("nothing came")))
}

impl Place {
    async fn subscribe(
        &self,
        mut client: v1::subscription_service_client::SubscriptionServiceClient<
            tonic::transport::Channel,
        >,
    ) -> Result<Streaming<v1::SubscribeResponse>, Status> {
        let start = match &self.cursor {
            Some(cursor) => Start::AfterCursor(cursor.clone()),
            None => Start::FromBeginning(true),
        };
        let read_mask = self.habits.agreement.as_ref().map(|_| FieldMask {
            paths: vec!["id".to_owned(), "cursor".to_owned()],
        });
        let request = v1::SubscribeRequest {
            start: Some(start),
            read_mask,
            bookmark_interval: Some(prost_types::Duration {
                seconds: 1,
                nanos: 0,
            }),
            ..v1::SubscribeRequest::default()
        };
        Ok(client.subscribe(request).await?.into_inner())
    }

    /// Reads a stream to its end, or until the subscriber has had enough of it; returns why it ended.
    async fn read(&mut self, mut frames: Streaming<v1::SubscribeResponse>) -> Status {
        loop {
            let frame = match soon(frames.message()).await {
                Ok(Some(frame)) => frame.frame,
                Ok(None) => return Status::unavailable("the stream ended"),
                Err(status) => return status,
            };
            match frame {
                Some(Frame::Events(batch)) => {
                    for event in &batch.events {
                        self.see(event);
                    }
                    self.cursor = Some(batch.cursor);
                    if self.habits.leaves_once_in > 0
                        && self.dice.once_in(self.habits.leaves_once_in)
                    {
                        return Status::cancelled("the subscriber left");
                    }
                }
                Some(Frame::Bookmark(frame)) => self.cursor = Some(frame.cursor),
                Some(Frame::CaughtUp(frame)) => self.cursor = Some(frame.cursor),
                Some(Frame::FellBehind(frame)) => self.cursor = Some(frame.cursor),
                Some(Frame::Closing(frame)) => self.cursor = Some(frame.cursor),
                Some(Frame::Started(_)) | None => {}
            }
        }
    }

    fn see(&mut self, event: &v1::PassEvent) {
        let wanted = self.progress.borrow().position + 1;
        let got = event
            .cursor
            .parse::<Cursor>()
            .map(|cursor| cursor.position.0);
        let agreed = match &self.habits.agreement {
            Some(agreement) if got == Ok(wanted) => agreement.check(wanted, &event.id),
            _ => Ok(()),
        };
        self.progress.send_modify(|seen| seen.position = wanted);
        if got != Ok(wanted) {
            self.found(format!("after {} came {got:?}", wanted - 1));
        }
        if let Err(why) = agreed {
            self.found(why);
        }
    }

    /// Notes what is wrong, if nothing was so far.
    fn found(&self, what: String) {
        self.progress.send_modify(|seen| {
            seen.broken.get_or_insert(what);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscribers_that_saw_different_events_at_a_position_do_not_agree() {
        let agreement = Agreement::default();
        for (position, id) in [(1, "evt_a"), (2, "evt_b"), (1, "evt_a"), (2, "evt_b")] {
            assert_eq!(agreement.check(position, id), Ok(()));
        }
        let why = agreement.check(1, "evt_b").unwrap_err();
        assert!(why.contains("evt_a") && why.contains("evt_b"), "{why}");
        assert_eq!(agreement.ids().len(), 2);
    }
}
