//! Catch-up: Subscribe from the beginning, next to a raw prepared SELECT with prost encoding over the same
//! database. The client counts frames without decoding them, so that the server is what is measured.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::{Buf, BufMut};
use pass_proto::v1;
use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use prost::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::Plan;
use crate::process::Server;
use crate::stats::{median, spread};

const BATCH: i32 = 1_000;

pub(crate) async fn run(plan: &Plan, data: &Path, grpc: SocketAddr, state: Server) -> Result<()> {
    let channel = Channel::from_shared(format!("http://{grpc}"))?
        .connect()
        .await?;
    let info = PassServiceClient::new(channel.clone())
        .get_log_info(v1::GetLogInfoRequest {})
        .await?
        .into_inner();
    let events = u64::try_from(info.head_position)?;
    let template = first_event(channel.clone()).await?;
    let database = data.join("pass-state").join("passline.db");
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let start = Instant::now();
        let bytes = subscribe_all(channel.clone()).await?;
        ours.push(events as f64 / start.elapsed().as_secs_f64());
        ensure!(bytes > 0, "nothing came");
        let start = Instant::now();
        let read = select_all(&database, &template)?;
        ensure!(
            read == events,
            "the raw SELECT saw {read} of {events} events"
        );
        raw.push(events as f64 / start.elapsed().as_secs_f64());
    }
    drop(state);
    println!("catch-up over {events} events:");
    println!(
        "  Subscribe events/s                          {}",
        spread(&ours)
    );
    println!(
        "  raw prepared SELECT + prost encoding, /s    {}",
        spread(&raw)
    );
    println!("  ratio {:.2}", median(&ours) / median(&raw));
    Ok(())
}

fn request() -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        start: Some(Start::FromBeginning(true)),
        batch_size: BATCH,
        stop_at_head: true,
        ..v1::SubscribeRequest::default()
    }
}

async fn first_event(channel: Channel) -> Result<v1::PassEvent> {
    let mut frames = SubscriptionServiceClient::new(channel)
        .subscribe(request())
        .await?
        .into_inner();
    while let Some(frame) = frames.message().await? {
        if let Some(Frame::Events(mut events)) = frame.frame {
            return Ok(events.events.swap_remove(0));
        }
    }
    anyhow::bail!("the log is empty")
}

/// Reads the whole stream and returns its bytes.
async fn subscribe_all(channel: Channel) -> Result<usize> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = http::uri::PathAndQuery::from_static("/passline.v1.SubscriptionService/Subscribe");
    let mut frames = client
        .server_streaming(Request::new(request()), path, Counting)
        .await?
        .into_inner();
    let mut bytes = 0;
    while let Some(frame) = frames.message().await? {
        bytes += frame;
    }
    Ok(bytes)
}

/// What the least code would do: rows in order, a page a statement, a message built and encoded for each row.
/// The message is a copy of the first event with the row's id: to decode the row is left out.
fn select_all(database: &Path, template: &v1::PassEvent) -> Result<u64> {
    let connection = rusqlite::Connection::open_with_flags(
        database,
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?;
    connection.busy_timeout(Duration::from_secs(5))?;
    let mut select = connection.prepare(
        "SELECT e.position, e.event_id, e.body, p.personal FROM event e \
         LEFT JOIN delivery_personal p ON p.number = e.delivery_number \
         WHERE e.position > ? ORDER BY e.position LIMIT ?",
    )?;
    let (mut last, mut read, mut row_bytes) = (0_i64, 0_u64, 0_usize);
    loop {
        let mut frame = v1::SubscriptionEvents::default();
        let mut rows = select.query((last, BATCH))?;
        while let Some(row) = rows.next()? {
            last = row.get(0)?;
            let id: Vec<u8> = row.get(1)?;
            let body: Vec<u8> = row.get(2)?;
            let personal: Option<Vec<u8>> = row.get(3)?;
            row_bytes += body.len() + personal.map_or(0, |personal| personal.len());
            let mut event = template.clone();
            event.id = id.iter().map(|byte| format!("{byte:02x}")).collect();
            frame.events.push(event);
        }
        if frame.events.is_empty() {
            ensure!(row_bytes > 0, "the rows are empty");
            return Ok(read);
        }
        read += frame.events.len() as u64;
        ensure!(!frame.encode_to_vec().is_empty(), "nothing was encoded");
    }
}

/// A codec that encodes requests and only counts the bytes of answers.
#[derive(Clone, Copy, Default)]
struct Counting;

impl Codec for Counting {
    type Encode = v1::SubscribeRequest;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Counting {
    type Item = v1::SubscribeRequest;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item.encode_to_vec());
        Ok(())
    }
}

impl Decoder for Counting {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let bytes = buffer.remaining();
        buffer.advance(bytes);
        Ok(Some(bytes))
    }
}
