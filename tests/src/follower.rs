//! A subscriber that follows the log through every restart of pass-state, from its last cursor each time: the
//! one who notices a gap, a repetition or an event that appears below a place already read.

use std::net::SocketAddr;
use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_proto::status::reason_of;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::{self, ErrorReason};
use test_kit::wait_for;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::history::Reader;

/// How far a follower is.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Position of the last event.
    position: u64,
    /// What was wrong first, if anything.
    broken: Option<String>,
    /// Streams opened.
    streams: usize,
}

/// A subscriber in a task of its own.
#[derive(Debug)]
pub struct Follower {
    progress: watch::Receiver<Progress>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Begins at the beginning of the log and goes on until stopped.
    pub fn start(address: SocketAddr) -> Self {
        let (sender, progress) = watch::channel(Progress::default());
        let task = tokio::spawn(follow(Reader::new(address), sender));
        Self { progress, task }
    }

    /// Waits until the event at `head` was seen; every one before it has been, too, once and in order.
    ///
    /// # Errors
    /// Says what was wrong, or how far it got within `limit`.
    pub async fn caught_up(&mut self, head: i64, limit: Duration) -> anyhow::Result<()> {
        let head = u64::try_from(head)?;
        let mut last = Ok(());
        wait_for("the subscriber to see the head", limit, async || {
            let seen = self.progress.borrow().clone();
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

async fn follow(reader: Reader, progress: watch::Sender<Progress>) {
    let mut cursor: Option<String> = None;
    while progress.borrow().broken.is_none() {
        progress.send_modify(|seen| seen.streams += 1);
        let request = v1::SubscribeRequest {
            start: Some(
                cursor
                    .clone()
                    .map_or(Start::FromBeginning(true), Start::AfterCursor),
            ),
            ..v1::SubscribeRequest::default()
        };
        let end = match reader.subscriptions.clone().subscribe(request).await {
            Ok(frames) => read(frames.into_inner(), &mut cursor, &progress).await,
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
            progress.send_modify(|seen| {
                seen.broken = Some(format!("its last cursor is refused: {end}"))
            });
        }
        // pass-state is away; there is nothing to wait for but time.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Reads a stream to its end and returns why it ended.
async fn read(
    mut frames: tonic::Streaming<v1::SubscribeResponse>,
    cursor: &mut Option<String>,
    progress: &watch::Sender<Progress>,
) -> tonic::Status {
    loop {
        let frame = match frames.message().await {
            Ok(Some(frame)) => frame.frame,
            Ok(None) => return tonic::Status::unavailable("the stream ended"),
            Err(status) => return status,
        };
        match frame {
            Some(Frame::Events(batch)) => {
                for event in &batch.events {
                    let wanted = progress.borrow().position + 1;
                    let got = event
                        .cursor
                        .parse::<Cursor>()
                        .map(|cursor| cursor.position.0);
                    progress.send_modify(|seen| {
                        seen.position = wanted;
                        if got != Ok(wanted) {
                            seen.broken
                                .get_or_insert(format!("after {} came {got:?}", wanted - 1));
                        }
                    });
                }
                *cursor = Some(batch.cursor);
            }
            Some(Frame::Bookmark(frame)) => *cursor = Some(frame.cursor),
            Some(Frame::CaughtUp(frame)) => *cursor = Some(frame.cursor),
            Some(Frame::FellBehind(frame)) => *cursor = Some(frame.cursor),
            Some(Frame::Closing(frame)) => *cursor = Some(frame.cursor),
            Some(Frame::Started(_)) | None => {}
        }
    }
}
