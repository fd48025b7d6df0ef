//! One gateway's stream: hello, batches in, acknowledgements out.
//!
//! A session reads batches as long as its window has room, converts them and hands them to the writer; the
//! answers come back in order and are told to the gateway cumulatively. So what one gateway can have in our
//! memory is its window, and a slow database slows the gateway down by not reading from it.
//!
//! | the session ends | with |
//! |---|---|
//! | the gateway closed its side | OK, after the last acknowledgement |
//! | the store failed for the moment | UNAVAILABLE, STORE_UNAVAILABLE |
//! | a newer stream of the spool | ABORTED, SPOOL_FENCED |
//! | a message out of turn, or a gap | FAILED_PRECONDITION, SEQUENCE_INVALID |
//! | a source or organization that the caller is not to send | PERMISSION_DENIED |
//! | a database that was put back, told of by a caller that may not change the epoch | PERMISSION_DENIED |
//! | its age, a new epoch of the log, a changed principal, or the service's end | UNAVAILABLE, after acknowledging what was taken |

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::stream::{FuturesOrdered, StreamExt as _};
use pass_domain::delivery::{Delivery, Outcome};
use pass_domain::ids::DeliveryId;
use pass_proto::convert::{Fallback, delivery_from_wire, delivery_to_wire, outcome_to_wire};
use pass_proto::status::{Fault, Reason};
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as Request;
use pass_proto::v1::ingest_response::Message as Response;
use pass_store::{PartOutcome, SpoolId};
use prost::Message as _;
use service_kit::clock::Clock;
use service_kit::shutdown::Shutdown;
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;
use tokio_stream::Stream;
use tonic::{Code, Status};

use crate::access::Caller;
use crate::config::{IngestConfig, WriterConfig};
use crate::fault;
use crate::frames::{FrameSender, Gone};
use crate::metrics::Measures;
use crate::tail::Tail;
use crate::tail::subscription::epoch_text;
use crate::writer::{Ended, Part, Unapplied, Writer};

pub(crate) mod gateways;
mod hello;

use gateways::{Gateways, Redecode, Registered};
use hello::{Hello, not_allowed};

/// The protocol version spoken here.
const PROTOCOL_VERSION: i32 = 1;
/// Messages that may wait for the gateway to read them.
pub(crate) const FRAMES_MAX: usize = 64;
/// Most redecode requests that wait for one gateway's answer.
const REDECODES_MAX: usize = 64;

/// What sessions stand on.
#[derive(Clone)]
pub(crate) struct Ingest {
    pub(crate) writer: Writer,
    pub(crate) tail: Arc<Tail>,
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) shutdown: Shutdown,
    pub(crate) measures: Arc<Measures>,
    pub(crate) config: IngestConfig,
    pub(crate) writer_config: WriterConfig,
}

/// How a session ends.
enum End {
    /// The gateway closed its side and everything is acknowledged, or it is gone.
    Ok,
    /// With a fault.
    Fault(Fault),
    /// With the transport's own status.
    Status(Status),
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        End::Ok
    }
}

impl From<Ended> for End {
    fn from(_: Ended) -> Self {
        End::Fault(fault::draining())
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        End::Fault(fault)
    }
}

impl Ingest {
    /// Serves one stream of a caller to its end. `age` is how long it may live.
    pub(crate) async fn serve<S>(
        self,
        caller: Caller,
        inbound: S,
        frames: FrameSender<v1::IngestResponse>,
        age: Duration,
    ) where
        S: Stream<Item = Result<v1::IngestRequest, Status>> + Unpin,
    {
        let end = match self.session(&caller, inbound, &frames, age).await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        let status = match end {
            End::Ok => None,
            End::Fault(fault) => Some(fault.into()),
            End::Status(status) => Some(status),
        };
        if let Some(status) = &status {
            let text = Status::message(status);
            tracing::info!(reason = text, "ingest stream ends");
        }
        frames.end(status);
    }

    async fn session<S>(
        &self,
        caller: &Caller,
        mut inbound: S,
        frames: &FrameSender<v1::IngestResponse>,
        age: Duration,
    ) -> Result<std::convert::Infallible, End>
    where
        S: Stream<Item = Result<v1::IngestRequest, Status>> + Unpin,
    {
        let hello = self.hello(caller, &mut inbound, frames).await?;
        let _counted = self.measures.ingest_stream();
        tracing::Span::current().record("gateway.id", hello.spool.gateway.as_str());
        let spool = hello.spool.spool;
        let opened = self
            .writer
            .open(hello.spool)
            .await?
            .map_err(|error| fault::of_store(&error))?;
        if let Some((first, last)) = opened.missing {
            tracing::error!(
                spool.id = %spool,
                first_sequence = first,
                last_sequence = last,
                "deliveries are missing: the database lost them and the spool no longer holds them"
            );
        }
        let registered = self
            .gateways
            .register(spool, opened.generation, hello.sources);
        let ready = v1::IngestReady {
            protocol_version: PROTOCOL_VERSION,
            committed_sequence: opened.committed_sequence,
            window_deliveries: i32::try_from(self.config.window_deliveries).unwrap_or(i32::MAX),
            window_bytes: i64::try_from(self.config.window_bytes.bytes()).unwrap_or(i64::MAX),
            batch_deliveries_max: i32::try_from(self.writer_config.batch_deliveries_max)
                .unwrap_or(i32::MAX),
            message_bytes_max: i64::try_from(self.config.message_bytes_max()).unwrap_or(i64::MAX),
            epoch: epoch_text(opened.epoch),
            missing_first_sequence: opened.missing.map_or(0, |(first, _)| first),
            missing_last_sequence: opened.missing.map_or(0, |(_, last)| last),
            committed_delivery_id: opened
                .committed_delivery
                .map_or_else(String::new, |id| id.to_string()),
        };
        frames.send(response(Response::Ready(ready))).await?;
        tracing::info!(
            spool.id = %spool,
            generation = opened.generation,
            committed_sequence = opened.committed_sequence,
            principal = caller.name(),
            "gateway connected"
        );
        let mut session = Session {
            on: self,
            caller,
            frames,
            spool,
            generation: opened.generation,
            epoch: opened.epoch,
            registered,
            batch_number: 0,
            sequence: None,
            deliveries: 0,
            bytes: 0,
            redecodes: HashMap::new(),
            redecode_number: 0,
        };
        session.run(inbound, age).await
    }

    async fn hello<S>(
        &self,
        caller: &Caller,
        inbound: &mut S,
        frames: &FrameSender<v1::IngestResponse>,
    ) -> Result<Hello, End>
    where
        S: Stream<Item = Result<v1::IngestRequest, Status>> + Unpin,
    {
        let late = || {
            Fault::new(
                Reason::DeadlineExceeded,
                "hello did not come in time; send it first",
            )
        };
        let first = tokio::select! {
            first = tokio::time::timeout(self.config.hello_timeout.get(), inbound.next()) => {
                first.map_err(|_| late())?
            }
            () = frames.gone() => return Err(End::Ok),
            () = self.shutdown.stopping() => return Err(fault::draining().into()),
        };
        let Some(request) = first.transpose().map_err(refused)? else {
            return Err(End::Ok);
        };
        match request.message {
            Some(Request::Hello(hello)) => Ok(hello::check(hello, &self.config, caller.scope())?),
            Some(Request::Batch(_) | Request::Redecoded(_)) | None => {
                Err(out_of_turn("the first message must be hello", "hello").into())
            }
        }
    }
}

/// An open stream.
struct Session<'a> {
    on: &'a Ingest,
    caller: &'a Caller,
    frames: &'a FrameSender<v1::IngestResponse>,
    spool: SpoolId,
    generation: u64,
    /// The log's epoch when the stream was opened.
    epoch: u64,
    registered: Registered,
    /// Number of the last batch.
    batch_number: u64,
    /// The last sequence taken.
    sequence: Option<u64>,
    /// Deliveries taken and not acknowledged.
    deliveries: usize,
    /// Their bytes.
    bytes: usize,
    redecodes: HashMap<u64, oneshot::Sender<v1::IngestDelivery>>,
    redecode_number: u64,
}

/// A batch that the writer has answered.
struct Answered {
    batch_number: u64,
    deliveries: usize,
    bytes: usize,
    outcome: Result<PartOutcome, Unapplied>,
}

impl Session<'_> {
    async fn run<S>(
        &mut self,
        mut inbound: S,
        age: Duration,
    ) -> Result<std::convert::Infallible, End>
    where
        S: Stream<Item = Result<v1::IngestRequest, Status>> + Unpin,
    {
        let window_bytes = self.on.config.window_bytes.as_usize();
        let window_deliveries = self.on.config.window_deliveries as usize;
        let mut pending = FuturesOrdered::new();
        let mut last: Option<End> = None;
        let fence = self.registered.fence();
        let mut fenced = pin!(fence.cancelled());
        let mut changed = pin!(self.caller.changed().cancelled());
        let mut stopping = pin!(self.on.shutdown.stopping());
        let mut aged = pin!(tokio::time::sleep(age));
        let (mut head, epoch) = (self.on.tail.watch_head(), self.epoch);
        let mut left = pin!(async move { head.wait_for(|head| head.epoch != epoch).await.is_ok() });
        loop {
            let reading =
                last.is_none() && self.deliveries < window_deliveries && self.bytes < window_bytes;
            tokio::select! {
                biased;
                Some(answered) = pending.next(), if !pending.is_empty() => {
                    let mut ready: Vec<Answered> = vec![answered];
                    while let Some(Some(more)) = pending.next().now_or_never() {
                        ready.push(more);
                    }
                    self.acknowledge(ready).await?;
                }
                () = &mut fenced => return Err(superseded().into()),
                () = self.frames.gone() => return Err(End::Ok),
                () = &mut changed, if last.is_none() => {
                    let rotated = Fault::new(
                        Reason::StreamRotated,
                        "what the caller may do was changed; connect again",
                    );
                    last = Some(rotated.into());
                }
                () = &mut stopping, if last.is_none() => last = Some(fault::draining().into()),
                () = &mut aged, if last.is_none() => {
                    let rotated = Fault::new(
                        Reason::StreamRotated,
                        "the stream reached its maximum age; connect again",
                    );
                    last = Some(rotated.into());
                }
                // The database may have less of the spool than it was told; what it has, the next hello hears.
                true = &mut left, if last.is_none() => {
                    let rotated = Fault::new(
                        Reason::StreamRotated,
                        "the log has a new epoch; connect again",
                    );
                    last = Some(rotated.into());
                }
                Some(redecode) = self.registered.redecodes.recv(), if last.is_none() => {
                    self.redecode(redecode).await?;
                }
                request = inbound.next(), if reading => match request {
                    None => last = Some(End::Ok),
                    Some(Err(status)) => return Err(refused(status)),
                    Some(Ok(request)) => match request.message {
                        Some(Request::Batch(batch)) => {
                            let part = self.part(batch)?;
                            let (batch_number, deliveries, bytes) =
                                (self.batch_number, part.deliveries.len(), part.bytes);
                            self.deliveries += deliveries;
                            self.bytes += bytes;
                            let answer = self.on.writer.append(part).await?;
                            pending.push_back(answer.map(move |answer| Answered {
                                batch_number,
                                deliveries,
                                bytes,
                                outcome: answer.unwrap_or(Err(Unapplied)),
                            }));
                        }
                        Some(Request::Redecoded(redecoded)) => self.redecoded(redecoded),
                        Some(Request::Hello(_)) => {
                            return Err(out_of_turn("hello comes only once", "batch").into());
                        }
                        // A newer gateway's message that this release does not know.
                        None => {}
                    },
                },
            }
            if pending.is_empty()
                && let Some(end) = last.take()
            {
                return Err(end);
            }
        }
    }

    /// Checks a batch and turns it into a part for the writer.
    fn part(&mut self, batch: v1::IngestBatch) -> Result<Part, Fault> {
        let expected = self.batch_number + 1;
        if batch.batch_number != expected {
            return Err(out_of_turn(
                &format!("batch {} came out of turn", batch.batch_number),
                &expected.to_string(),
            ));
        }
        let count_max = self.on.writer_config.batch_deliveries_max;
        if batch.deliveries.is_empty() || batch.deliveries.len() > count_max {
            return Err(Fault::field(
                "batch.deliveries",
                format!(
                    "has {} deliveries; 1 to {count_max} are allowed",
                    batch.deliveries.len()
                ),
            ));
        }
        self.batch_number = expected;
        let now = self.on.clock.now();
        let mut bytes = 0;
        let mut deliveries = Vec::with_capacity(batch.deliveries.len());
        for wire in batch.deliveries {
            let sequence = wire.sequence;
            let in_turn = match self.sequence {
                None => sequence > 0,
                Some(last) => sequence == last.saturating_add(1),
            };
            if !in_turn || i64::try_from(sequence).is_err() {
                let expected = self.sequence.map_or(1, |last| last.saturating_add(1));
                return Err(out_of_turn(
                    &format!("delivery {sequence} came out of turn"),
                    &expected.to_string(),
                ));
            }
            self.sequence = Some(sequence);
            bytes += wire.encoded_len();
            let fallback = Fallback {
                id: fallback_id(self.spool, sequence),
                receive_time: now,
            };
            let delivery = delivery_from_wire(wire, fallback);
            if !(self.caller.scope()).allows_sending(&delivery.source, &delivery.organization) {
                return Err(not_allowed(&delivery.source, &delivery.organization));
            }
            deliveries.push((sequence, Arc::new(delivery)));
        }
        Ok(Part {
            spool: self.spool,
            generation: self.generation,
            deliveries,
            bytes,
        })
    }

    /// Tells the gateway what was committed.
    async fn acknowledge(&mut self, ready: Vec<Answered>) -> Result<(), End> {
        let mut committed: Option<v1::IngestCommitted> = None;
        let mut end = None;
        for answered in ready {
            self.deliveries -= answered.deliveries;
            self.bytes -= answered.bytes;
            match answered.outcome {
                Ok(PartOutcome::Committed {
                    committed_sequence,
                    outcomes,
                }) => {
                    let wire = committed.get_or_insert_default();
                    wire.batch_number = answered.batch_number;
                    wire.committed_sequence = committed_sequence;
                    let outcomes =
                        outcomes
                            .into_iter()
                            .map(|(sequence, outcome): (u64, Outcome)| v1::IngestOutcome {
                                sequence,
                                outcome: outcome_to_wire(outcome),
                            });
                    wire.outcomes.extend(outcomes);
                }
                Ok(PartOutcome::Fenced) => end = Some(superseded()),
                Ok(PartOutcome::Gap { expected_sequence }) => {
                    end = Some(out_of_turn(
                        "deliveries are missing before this batch",
                        &expected_sequence.to_string(),
                    ));
                }
                Err(Unapplied) => end = Some(fault::store_unavailable()),
            }
            if end.is_some() {
                break;
            }
        }
        if let Some(committed) = committed {
            self.frames
                .send(response(Response::Committed(committed)))
                .await?;
        }
        end.map_or(Ok(()), |fault| Err(fault.into()))
    }

    async fn redecode(&mut self, redecode: Redecode) -> Result<(), End> {
        self.redecodes.retain(|_, reply| !reply.is_closed());
        if self.redecodes.len() >= REDECODES_MAX {
            // Dropping the reply tells who asked that no answer will come.
            return Ok(());
        }
        self.redecode_number += 1;
        self.redecodes.insert(self.redecode_number, redecode.reply);
        let request = v1::IngestRedecode {
            redecode_number: self.redecode_number,
            delivery: Some(redecode.delivery),
        };
        self.frames
            .send(response(Response::Redecode(request)))
            .await?;
        Ok(())
    }

    fn redecoded(&mut self, redecoded: v1::IngestRedecoded) {
        if let Some(reply) = self.redecodes.remove(&redecoded.redecode_number) {
            // Who asked may have given up.
            let _ = reply.send(redecoded.delivery.unwrap_or_default());
        }
    }
}

fn response(message: Response) -> v1::IngestResponse {
    v1::IngestResponse {
        message: Some(message),
    }
}

fn superseded() -> Fault {
    Fault::new(
        Reason::SpoolFenced,
        "a newer stream of this spool took over; do not send on this one any more",
    )
}

fn out_of_turn(text: &str, expected: &str) -> Fault {
    Fault::new(
        Reason::SequenceInvalid,
        format!("{text}; expected {expected}"),
    )
    .with("expected", expected)
}

/// The end after a message that the transport could not deliver.
fn refused(status: Status) -> End {
    match status.code() {
        Code::OutOfRange => Fault::field("message", status.message().to_owned()).into(),
        Code::Cancelled | Code::Unknown => End::Ok,
        _ => End::Status(status),
    }
}

/// The id of a delivery that came without one: always the same for the same place in the same spool, so that
/// sending it again adds nothing. Formed as a UUIDv8.
fn fallback_id(spool: SpoolId, sequence: u64) -> DeliveryId {
    let mut hash = Sha256::new();
    hash.update(b"passline delivery without id");
    hash.update(spool.0);
    hash.update(sequence.to_be_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    bytes[6] = (bytes[6] & 0x0f) | 0x80;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    DeliveryId::from_bytes(bytes)
}

/// A stored delivery with what a gateway now makes of it. Everything but the decoding stays as it was
/// recorded: a gateway decodes again, it does not rewrite.
pub(crate) fn redecoded(stored: &Delivery, answer: v1::IngestDelivery) -> Delivery {
    let fallback = Fallback {
        id: stored.id,
        receive_time: stored.receive_time,
    };
    let wire = v1::IngestDelivery {
        decoded: answer.decoded,
        adapter_version: answer.adapter_version,
        ..delivery_to_wire(stored)
    };
    delivery_from_wire(wire, fallback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_without_an_id_gets_the_same_one_each_time() {
        let one = fallback_id(SpoolId([1; 16]), 7);
        assert_eq!(one, fallback_id(SpoolId([1; 16]), 7));
        assert_ne!(one, fallback_id(SpoolId([1; 16]), 8));
        assert_ne!(one, fallback_id(SpoolId([2; 16]), 7));
        assert_eq!(one.as_bytes()[6] >> 4, 8);
    }
}
