//! Subscribers that look only at what they measure: which pass each event is about. So a hundred of them fit beside
//! the services on the same cores.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use pass_proto::v1;
use pass_proto::v1::subscribe_request::Start;
use prost::Message;
use tokio::task::JoinHandle;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Endpoint;
use tonic::{Request, Status, Streaming};

/// Digits at the end of the name of a pass of ours; see [`Corpus::pass_id`](crate::corpus::Corpus::pass_id).
const PASS_DIGITS: usize = 21;

/// `SubscribeResponse`, as far as it is looked at.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Frame {
    #[prost(message, optional, tag = "1")]
    started: Option<Started>,
    #[prost(message, optional, tag = "2")]
    events: Option<Events>,
    #[prost(message, optional, tag = "5")]
    fell_behind: Option<Started>,
    #[prost(message, optional, tag = "6")]
    closing: Option<Started>,
}

/// That a frame is of this sort is all that is looked at.
#[derive(Clone, PartialEq, Message)]
struct Started {}

#[derive(Clone, PartialEq, Message)]
struct Events {
    #[prost(message, repeated, tag = "1")]
    events: Vec<Event>,
}

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// `sources/{source}/passes/{pass}`, taken from the frame without a copy.
    #[prost(bytes = "bytes", tag = "3")]
    pass: Bytes,
}

/// What all subscribers of a turn saw.
#[derive(Default)]
pub(crate) struct Seen {
    /// When each delivery was due, from the number `first` on.
    pub(crate) due: RefCell<Vec<Instant>>,
    /// Number of the first delivery whose events are timed.
    pub(crate) first: Cell<u64>,
    /// From a delivery's due time to each of its events, in microseconds.
    pub(crate) micros: RefCell<Vec<u32>>,
    /// When the last event came.
    pub(crate) last: Cell<Option<Instant>>,
    /// How often one fell behind the live events and had to be sent them from the store.
    pub(crate) fell_behind: Cell<u64>,
}

/// A stream that is read as fast as it comes.
pub(crate) struct Fast {
    /// Events so far.
    pub(crate) events: Rc<Cell<u64>>,
    task: JoinHandle<Result<()>>,
}

impl Fast {
    /// Subscribes at the log's end, on a connection of its own. Needs a `LocalSet`.
    pub(crate) async fn start(address: SocketAddr, seen: &Rc<Seen>) -> Result<Self> {
        let frames = subscribe(Endpoint::from_shared(format!("http://{address}"))?).await?;
        let events = Rc::new(Cell::new(0));
        let task = tokio::task::spawn_local(read(frames, Rc::clone(&events), Rc::clone(seen)));
        Ok(Self { events, task })
    }

    /// Whether it still reads; otherwise what ended it.
    pub(crate) async fn check(&mut self) -> Result<()> {
        if self.task.is_finished() {
            (&mut self.task).await.context("a subscriber panicked")??;
            bail!("a subscriber's stream ended");
        }
        Ok(())
    }
}

impl Drop for Fast {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(mut frames: Streaming<Frame>, count: Rc<Cell<u64>>, seen: Rc<Seen>) -> Result<()> {
    while let Some(frame) = frames.message().await? {
        if frame.fell_behind.is_some() {
            seen.fell_behind.set(seen.fell_behind.get() + 1);
        }
        let Some(Events { events }) = frame.events else {
            continue;
        };
        let now = Instant::now();
        seen.last.set(Some(now));
        count.set(count.get() + events.len() as u64);
        let (first, due) = (seen.first.get(), seen.due.borrow());
        let mut micros = seen.micros.borrow_mut();
        for event in events {
            let index = number(&event.pass)?.wrapping_sub(first);
            let when = usize::try_from(index).ok().and_then(|index| due.get(index));
            if let Some(when) = when {
                let taken = now.saturating_duration_since(*when).as_micros();
                micros.push(u32::try_from(taken).unwrap_or(u32::MAX));
            }
        }
    }
    Ok(())
}

/// The number of a bench pass, from its name.
fn number(pass: &[u8]) -> Result<u64> {
    let name = std::str::from_utf8(pass)?;
    let digits = name
        .len()
        .checked_sub(PASS_DIGITS)
        .and_then(|at| name.get(at..))
        .context("a pass with a short name")?;
    Ok(digits.parse()?)
}

/// A stream that is opened and then never read. Its window is 64 KiB.
pub(crate) struct Stalled {
    frames: Streaming<Frame>,
}

impl Stalled {
    /// Subscribes at the log's end.
    pub(crate) async fn start(address: SocketAddr) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .initial_stream_window_size(65_535)
            .initial_connection_window_size(65_535);
        let frames = subscribe(endpoint).await?;
        Ok(Self { frames })
    }

    /// Makes sure that the server has kept it until now, though it read nothing.
    pub(crate) async fn check(mut self) -> Result<()> {
        loop {
            let frame = self.frames.message().await.context("it was cut")?;
            let frame = frame.context("its stream was ended")?;
            if frame.closing.is_some() {
                bail!("its stream was closed");
            }
            if frame.events.is_some() {
                return Ok(());
            }
        }
    }
}

async fn subscribe(endpoint: Endpoint) -> Result<Streaming<Frame>> {
    let mut client = tonic::client::Grpc::new(endpoint.connect().await?);
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/passline.v1.SubscriptionService/Subscribe");
    let request = v1::SubscribeRequest {
        start: Some(Start::FromEnd(true)),
        ..v1::SubscribeRequest::default()
    };
    let mut frames = client
        .server_streaming(Request::new(request), path, Thin)
        .await?
        .into_inner();
    // Started, then CaughtUp: from here on everything is live.
    let first = frames.message().await?.context("no first frame")?;
    if first.started.is_none() {
        bail!("the first frame is not Started");
    }
    Ok(frames)
}

/// Encodes requests, and decodes [`Frame`]s.
#[derive(Clone, Copy, Default)]
struct Thin;

impl Codec for Thin {
    type Encode = v1::SubscribeRequest;
    type Decode = Frame;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Thin {
    type Item = v1::SubscribeRequest;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for Thin {
    type Item = Frame;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Frame>, Status> {
        Frame::decode(buffer)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
