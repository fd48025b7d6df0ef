//! The server's side of a stream: a short queue of frames, and the status that ends it.
//!
//! The queue is the only buffer between a stream's task and the transport, so its length bounds what a slow
//! peer costs. The final status travels beside the queue: a full one cannot hold it up, and the peer gets it
//! after the frames that were queued before.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_stream::Stream;
use tonic::Status;

/// The peer went away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// Where a stream's task puts its frames.
pub(crate) struct FrameSender<T> {
    queue: mpsc::Sender<T>,
    end: Arc<Mutex<Option<Status>>>,
}

/// What the transport polls.
pub(crate) struct FrameStream<T> {
    queue: mpsc::Receiver<T>,
    end: Arc<Mutex<Option<Status>>>,
}

/// Makes both ends; at most `frames_max` frames wait.
pub(crate) fn channel<T>(frames_max: usize) -> (FrameSender<T>, FrameStream<T>) {
    let (sender, receiver) = mpsc::channel(frames_max);
    let end = Arc::new(Mutex::new(None));
    let sender = FrameSender {
        queue: sender,
        end: Arc::clone(&end),
    };
    let stream = FrameStream {
        queue: receiver,
        end,
    };
    (sender, stream)
}

impl<T> FrameSender<T> {
    /// Waits for room; cancel safe, since the frame is only given up with the place.
    pub(crate) async fn room(&self) -> Result<mpsc::Permit<'_, T>, Gone> {
        self.queue.reserve().await.map_err(|_| Gone)
    }

    /// Queues a frame, waiting for room.
    pub(crate) async fn send(&self, frame: T) -> Result<(), Gone> {
        self.room().await?.send(frame);
        Ok(())
    }

    /// Waits until the peer is gone. Cancel safe.
    pub(crate) async fn gone(&self) {
        self.queue.closed().await;
    }

    /// Ends the stream after the queued frames: with OK, or with a status.
    pub(crate) fn end(self, status: Option<Status>) {
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl<T> Stream for FrameStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.queue.poll_recv(cx).map(|frame| {
            let last = || {
                let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
                end.take().map(Err)
            };
            frame.map(Ok).or_else(last)
        })
    }
}
