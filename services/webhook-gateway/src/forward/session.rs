//! One stream to pass-state: hello, ready, batches out, acknowledgements in.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use jiff::Timestamp;
use opentelemetry::trace::TraceContextExt as _;
use pass_domain::delivery::Outcome;
use pass_domain::ids::DeliveryId;
use pass_proto::convert::{Fallback, delivery_from_wire, delivery_to_wire, outcome_from_wire};
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as Ours;
use pass_proto::v1::ingest_response::Message as Theirs;
use pass_proto::v1::ingest_service_client::IngestServiceClient;
use pass_spool::{LeaseError, Leased, RewindError, Sequence, Spool};
use service_kit::admin::Check;
use service_kit::telemetry;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use super::Forwarder;
use super::failure::{Failure, PROTOCOL_VERSION};
use super::window::{Limits, Sent, Window};
use crate::config::SERVICE_NAME;
use crate::policy::Changes;
use crate::record;

/// Batches that are encoded ahead of the connection.
const OUTBOX_MESSAGES: usize = 4;
/// Re-decode requests that may wait for their turn.
const REDECODES_MAX: usize = 64;
/// Largest message from pass-state, in bytes: a delivery to decode again, or the outcomes of a window.
const RESPONSE_BYTES_MAX: usize = 8 << 20;

/// How a stream ended.
pub(super) enum End {
    /// As asked.
    Stopped,
    /// Otherwise.
    Failed(Failure),
}

/// One stream's life.
pub(super) struct Session<'a> {
    forwarder: &'a Forwarder,
    check: &'a Check,
    /// The last stream ended at something in the spool that can't be read; until that has been passed, an
    /// open stream is no sign that it can.
    blocked_by_spool: bool,
    /// The first sequence after a hole at which the last stream stopped; 0 if it did not.
    hole_end: u64,
    /// What the hello said is the oldest sequence; pass-state knows of every hole before it.
    oldest_told: u64,
    /// The uids that the hello names.
    sources_told: Vec<String>,
    /// Changes since they were read.
    changes: Changes,
    /// The sequence that comes next.
    expected: u64,
    progressed: bool,
    /// What ends the stream once everything in flight is acknowledged: deliveries before the damage are not
    /// held up by it.
    held: Option<Failure>,
    /// How long pass-state may take to answer the hello.
    hello_max: Duration,
    /// Whether the stream before this one opened in vain, so that this one's opening is no news.
    in_vain: bool,
    opened: bool,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        forwarder: &'a Forwarder,
        check: &'a Check,
        blocked_by_spool: bool,
        hole_end: u64,
        hello_max: Duration,
        in_vain: bool,
    ) -> Self {
        Self {
            forwarder,
            check,
            blocked_by_spool,
            hole_end,
            oldest_told: 0,
            changes: forwarder.live.changes(),
            sources_told: forwarder.live.policy().uids(),
            expected: 1,
            progressed: false,
            held: None,
            hello_max,
            in_vain,
            opened: false,
        }
    }

    /// True if the stream moved anything, so that its failure is no reason for a longer pause.
    pub(super) fn progressed(&self) -> bool {
        self.progressed
    }

    /// True if pass-state and the spool agreed where to go on.
    pub(super) fn opened(&self) -> bool {
        self.opened
    }

    /// Opens the stream and forwards until it ends or `stop` and everything in flight is acknowledged.
    pub(super) async fn run(&mut self, stop: &CancellationToken) -> End {
        let opened = tokio::select! {
            opened = self.open() => opened,
            () = stop.cancelled() => return End::Stopped,
        };
        let stream = match opened {
            Ok(stream) => stream,
            Err(failure) => return End::Failed(failure),
        };
        match self.forward(stream, stop).await {
            Ok(()) => End::Stopped,
            Err(failure) => End::Failed(failure),
        }
    }

    async fn open(&mut self) -> Result<Stream, Failure> {
        let forwarder = self.forwarder;
        let limit = self.hello_max;
        let (outbox, messages) = mpsc::channel(OUTBOX_MESSAGES);
        let hello = self.hello();
        self.oldest_told = hello.oldest_sequence;
        let hello = v1::IngestRequest {
            message: Some(Ours::Hello(hello)),
        };
        outbox
            .try_send(hello)
            .expect("the outbox is new and has room");
        let mut client = IngestServiceClient::new(forwarder.channel.clone())
            .max_decoding_message_size(RESPONSE_BYTES_MAX);
        let (inbox, ready) = timeout(limit, async {
            let mut inbox = client
                .ingest(ReceiverStream::new(messages))
                .await?
                .into_inner();
            match inbox.next().await {
                Some(Ok(v1::IngestResponse {
                    message: Some(Theirs::Ready(ready)),
                })) => Ok((inbox, ready)),
                Some(Ok(_)) => Err(Failure::Unexpected("something else than a ready first")),
                Some(Err(status)) => Err(status.into()),
                None => Err(Failure::Closed),
            }
        })
        .await
        .map_err(|_| Failure::HelloTimeout(limit))??;
        if ready.protocol_version.abs_diff(PROTOCOL_VERSION) > 1 {
            return Err(Failure::ProtocolMismatch {
                theirs: ready.protocol_version.to_string(),
            });
        }
        let limits = Limits::of(&ready).ok_or(Failure::Unexpected(
            "a ready with a limit that is not positive",
        ))?;
        if ready.missing_first_sequence > 0 {
            self.alarm(ready.missing_first_sequence..=ready.missing_last_sequence);
        }
        self.go_on_after(ready.committed_sequence, &ready.committed_delivery_id)
            .await?;
        self.opened = true;
        self.expected = ready.committed_sequence.saturating_add(1);
        if !self.blocked_by_spool {
            self.unblock();
        }
        forwarder.waiters.connected(Some(ready.committed_sequence));
        forwarder.status.send_modify(|status| {
            status.connected = true;
            status.spool_restored = false;
            status.streams += 1;
            status.epoch.clone_from(&ready.epoch);
            status.window = (limits.deliveries, limits.bytes);
            status.committed_sequence = ready.committed_sequence;
            status.last_error = None;
        });
        if !self.in_vain {
            tracing::info!(
                committed_sequence = ready.committed_sequence,
                epoch = ready.epoch,
                "forwarding to pass-state"
            );
        }
        Ok(Stream {
            outbox,
            inbox,
            window: Window::new(limits, forwarder.record_bytes_max),
        })
    }

    fn hello(&self) -> v1::IngestHello {
        let forwarder = self.forwarder;
        let spool = forwarder.spool.status();
        v1::IngestHello {
            protocol_version: PROTOCOL_VERSION,
            gateway_id: forwarder.gateway_id.clone(),
            spool_id: forwarder.spool.id().to_string(),
            settled_sequence: spool.settled.0,
            oldest_sequence: if spool.oldest_kept > spool.last_durable {
                0
            } else {
                spool.oldest_kept.0.max(self.hole_end)
            },
            sources: self.sources_told.clone(),
            body_bytes_max: i64::try_from(forwarder.body_bytes_max).unwrap_or(i64::MAX),
        }
    }

    /// Puts the spool where pass-state is, unless it is not the spool that pass-state knows.
    async fn go_on_after(&self, committed: u64, delivery_id: &str) -> Result<(), Failure> {
        if let Some(missing) = self.rewind(committed).await? {
            self.alarm(missing);
        }
        // Before anything is settled: what pass-state does not have must be kept.
        self.compare(committed, delivery_id).await?;
        // What it committed before an acknowledgement was lost.
        self.forwarder.spool.settle(Sequence(committed)).await?;
        Ok(())
    }

    /// Makes the spool go on after a sequence; tells which ones before it are gone.
    async fn rewind(&self, after: u64) -> Result<Option<RangeInclusive<u64>>, Failure> {
        let spool = &self.forwarder.spool;
        match spool.rewind(Sequence(after)).await {
            Ok(outcome) => Ok(outcome.missing),
            Err(RewindError::Ahead { last }) => Err(Failure::SpoolBehind {
                committed: after,
                last,
                shared: self.forwarder.shared,
            }),
            Err(RewindError::Unavailable(reason)) => Err(LeaseError::Unavailable(reason).into()),
            Err(RewindError::TurnLost) => Err(LeaseError::TurnLost.into()),
            Err(RewindError::Closed) => Err(Failure::SpoolClosed),
        }
    }

    /// Compares what the spool has at the last committed sequence with what pass-state has recorded as that, where
    /// both still know. A spool that was put back and has grown past that sequence since has another delivery there.
    /// Leaves the spool behind that sequence.
    async fn compare(&self, committed: u64, delivery_id: &str) -> Result<(), Failure> {
        let spool = &self.forwarder.spool;
        let Ok(theirs) = delivery_id.parse::<DeliveryId>() else {
            return Ok(());
        };
        if committed == 0 || spool.status().oldest_kept.0 > committed {
            return Ok(());
        }
        if self.rewind(committed - 1).await?.is_none() {
            let limit = self.forwarder.config.hello_timeout.get();
            match timeout(limit, spool.lease(1, 0)).await {
                Ok(Ok(leased)) => {
                    if let [only] = leased.as_slice()
                        && only.sequence.0 == committed
                    {
                        return match delivery_id_of(&only.record) {
                            Some(ours) if ours != theirs => Err(Failure::SpoolRestored {
                                sequence: committed,
                                theirs,
                                ours,
                                shared: self.forwarder.shared,
                            }),
                            Some(_) | None => Ok(()),
                        };
                    }
                }
                // The record is gone or damaged, but pass-state has it: nothing to be held up by.
                Ok(Err(LeaseError::Damaged { .. } | LeaseError::Dropped { .. })) => {}
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    let reason = format!("record {committed} was not given within {limit:?}");
                    return Err(LeaseError::Unavailable(reason.into()).into());
                }
            }
        }
        self.rewind(committed).await.map(drop)
    }

    /// Says which deliveries can never reach the log.
    fn alarm(&self, missing: RangeInclusive<u64>) {
        tracing::error!(
            first = missing.start(),
            last = missing.end(),
            "pass-state lacks deliveries that the spool no longer keeps; restore the database to a later moment or accept their loss"
        );
        self.forwarder
            .status
            .send_modify(|status| status.missing = Some(missing));
    }

    async fn forward(&mut self, stream: Stream, stop: &CancellationToken) -> Result<(), Failure> {
        let Stream {
            outbox,
            mut inbox,
            mut window,
        } = stream;
        let ack_timeout = self.forwarder.config.ack_timeout.get();
        let mut redecoded: VecDeque<v1::IngestRedecoded> = VecDeque::new();
        let mut last_call: Option<Instant> = None;
        let mut changes = self.changes.clone();
        loop {
            if window.is_empty() {
                if let Some(failure) = self.held.take() {
                    return Err(failure);
                }
                if last_call.is_some() && self.has_sent_everything() {
                    return Ok(());
                }
            }
            // What was accepted last is sent, too, as far as there is time.
            let in_time =
                last_call.is_none_or(|end| Instant::now() < end && !self.has_sent_everything());
            let room = if in_time && self.held.is_none() {
                window.room()
            } else {
                None
            };
            let (records_max, bytes_max) = room.unwrap_or_default();
            let deadline = window.deadline(ack_timeout);
            tokio::select! {
                message = inbox.next() => match message {
                    Some(Ok(response)) => self.take(response, &mut window, &mut redecoded).await?,
                    Some(Err(status)) => return Err(status.into()),
                    None => return Err(Failure::Closed),
                },
                batch = next_batch(&outbox, &*self.forwarder.spool, records_max, bytes_max), if room.is_some() => {
                    let (place, records) = batch?;
                    match records {
                        Ok(records) => {
                            if let Some(batch) = self.batch(records, &mut window) {
                                place.send(batch);
                                self.show(&window);
                            }
                        }
                        // Whoever has the turn now goes on after what is committed, so nothing waits for that here.
                        Err(error @ LeaseError::TurnLost) => return Err(error.into()),
                        Err(error) => self.held = Some(error.into()),
                    }
                }
                place = outbox.reserve(), if !redecoded.is_empty() => {
                    let place = place.map_err(|_| Failure::Closed)?;
                    if let Some(answer) = redecoded.pop_front() {
                        place.send(v1::IngestRequest { message: Some(Ours::Redecoded(answer)) });
                    }
                }
                () = changes.other_than(&self.sources_told), if last_call.is_none() && self.held.is_none() => {
                    self.held = Some(Failure::SourcesChanged);
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    return Err(Failure::NoProgress(ack_timeout));
                }
                () = stop.cancelled(), if last_call.is_none() => {
                    last_call = Some(Instant::now() + self.forwarder.drain_timeout());
                }
                () = sleep_until(last_call.unwrap_or_else(Instant::now)), if last_call.is_some() => {
                    tracing::info!(deliveries = window.deliveries(), "stopping before pass-state acknowledged everything; the next stream of this spool sends the rest again");
                    return Ok(());
                }
            }
        }
    }

    /// Says whether nothing is left in the spool that was not sent on this stream. Only asked at the end, when nothing
    /// more comes in.
    fn has_sent_everything(&self) -> bool {
        self.forwarder.spool.status().last_durable.0 < self.expected
    }

    /// Makes a batch of leased records. One that can't be read ends the batch before it, and the stream once
    /// what was sent before is acknowledged.
    fn batch(&mut self, records: Vec<Leased>, window: &mut Window) -> Option<v1::IngestRequest> {
        let forwarder = self.forwarder;
        let mut deliveries = Vec::with_capacity(records.len());
        let mut sent = Vec::with_capacity(records.len());
        let sources = forwarder.live.policy();
        let mut bytes = 0;
        for Leased {
            sequence: Sequence(sequence),
            record,
        } in records
        {
            if sequence > self.expected && sequence > self.oldest_told {
                self.held = Some(self.hole(sequence));
                break;
            }
            self.expected = sequence.saturating_add(1);
            let record_bytes = record.len();
            let mut delivery = match record::decode(record) {
                Ok(delivery) => delivery,
                Err(error) => {
                    self.held = Some(Failure::Record { sequence, error });
                    break;
                }
            };
            bytes += record_bytes;
            delivery.sequence = sequence;
            let source = sources.by_uid(&delivery.source).map(|(page, _)| page);
            let span = if forwarder.traced {
                continue_trace(&mut delivery)
            } else {
                None
            };
            sent.push(Sent {
                sequence,
                source,
                _span: span,
            });
            deliveries.push(delivery);
        }
        if deliveries.is_empty() {
            return None;
        }
        self.unblock();
        let batch_number = window.send(sent, bytes);
        Some(v1::IngestRequest {
            message: Some(Ours::Batch(v1::IngestBatch {
                batch_number,
                deliveries,
            })),
        })
    }

    fn hole(&self, sequence: u64) -> Failure {
        let (first, last) = (self.expected, sequence - 1);
        tracing::error!(
            first,
            last,
            "deliveries are missing in the spool; pass-state is told, compare with the vendors"
        );
        self.forwarder
            .status
            .send_modify(|status| status.missing = Some(first..=last));
        Failure::Hole { first, last }
    }

    /// Tells that nothing stands in the way any more.
    fn unblock(&self) {
        if self.forwarder.status.borrow().blocked.is_some() {
            self.forwarder
                .status
                .send_modify(|status| status.blocked = None);
        }
        self.check.ok();
    }

    async fn take(
        &mut self,
        response: v1::IngestResponse,
        window: &mut Window,
        redecoded: &mut VecDeque<v1::IngestRedecoded>,
    ) -> Result<(), Failure> {
        match response.message {
            Some(Theirs::Committed(committed)) => self.committed(committed, window).await,
            Some(Theirs::Redecode(request)) => {
                if redecoded.len() >= REDECODES_MAX {
                    tracing::warn!(
                        redecode_number = request.redecode_number,
                        "too many deliveries to decode again at once; this one is left out"
                    );
                } else if let Some(answer) = self.redecode(request) {
                    redecoded.push_back(answer);
                }
                Ok(())
            }
            Some(Theirs::Ready(_)) => Err(Failure::Unexpected("a second ready")),
            // A kind of message that a newer release has and this one can do without.
            None => Ok(()),
        }
    }

    async fn committed(
        &mut self,
        committed: v1::IngestCommitted,
        window: &mut Window,
    ) -> Result<(), Failure> {
        let through = committed.committed_sequence;
        let acknowledged = window.acknowledge(committed.batch_number, through)?;
        if acknowledged.is_empty() {
            return Ok(());
        }
        self.progressed = true;
        let forwarder = self.forwarder;
        let outcomes: Vec<(u64, Outcome)> = committed
            .outcomes
            .iter()
            .filter_map(|told| Some((told.sequence, outcome_from_wire(told.outcome)?)))
            .collect();
        let mut told = outcomes.iter().peekable();
        for delivery in &acknowledged {
            while told
                .next_if(|(sequence, _)| *sequence < delivery.sequence)
                .is_some()
            {}
            if let Some((_, outcome)) = told.next_if(|(sequence, _)| *sequence == delivery.sequence)
            {
                forwarder
                    .books
                    .add(delivery.source, crate::books::Tally::Committed(*outcome));
            }
        }
        forwarder.waiters.committed(through, outcomes.into_iter());
        forwarder.spool.settle(Sequence(through)).await?;
        forwarder
            .status
            .send_modify(|status| status.committed_sequence = through);
        self.show(window);
        Ok(())
    }

    /// Decodes a stored delivery with the source's current configuration; `None` if there is no such source.
    fn redecode(&self, request: v1::IngestRedecode) -> Option<v1::IngestRedecoded> {
        let wire = request.delivery?;
        let body: Bytes = wire.body.clone();
        let policy = self.forwarder.live.policy();
        let Some((_, entry)) = policy.by_uid(&wire.source) else {
            tracing::warn!(
                source.uid = wire.source,
                "asked to decode a delivery of a source that is not configured"
            );
            return None;
        };
        let fallback = Fallback {
            id: DeliveryId::from_bytes([0; 16]),
            receive_time: Timestamp::UNIX_EPOCH,
        };
        let mut delivery = delivery_from_wire(wire, fallback);
        delivery.decoded = entry.source.decode_stored(
            delivery.method,
            &delivery.path,
            &delivery.headers,
            &delivery.body,
            delivery.receive_time,
        );
        entry
            .source
            .adapter_version()
            .clone_into(&mut delivery.adapter_version);
        delivery.body = Vec::new();
        let mut answer = delivery_to_wire(&delivery);
        answer.body = body;
        Some(v1::IngestRedecoded {
            redecode_number: request.redecode_number,
            delivery: Some(answer),
        })
    }

    fn show(&self, window: &Window) {
        self.forwarder.status.send_modify(|status| {
            status.in_flight_deliveries = window.deliveries();
            status.in_flight_bytes = window.bytes();
        });
    }
}

/// An open stream.
struct Stream {
    outbox: mpsc::Sender<v1::IngestRequest>,
    inbox: Streaming<v1::IngestResponse>,
    window: Window,
}

/// Waits for a place in the outbox, then for records. In this order nothing is leased that can't be sent, and
/// dropping the future loses nothing.
async fn next_batch<'a>(
    outbox: &'a mpsc::Sender<v1::IngestRequest>,
    spool: &dyn Spool,
    records_max: usize,
    bytes_max: usize,
) -> Result<
    (
        mpsc::Permit<'a, v1::IngestRequest>,
        Result<Vec<Leased>, LeaseError>,
    ),
    Failure,
> {
    let place = outbox.reserve().await.map_err(|_| Failure::Closed)?;
    let records = spool.lease(records_max, bytes_max).await;
    Ok((place, records))
}

/// The id of a stored delivery; absent if the record can't be read.
fn delivery_id_of(record: &Bytes) -> Option<DeliveryId> {
    let delivery = record::decode(record.clone()).ok()?;
    Some(DeliveryId::from_bytes(delivery.id.try_into().ok()?))
}

/// Starts the span of a sampled delivery's hop and hands it on as the parent of what pass-state does.
fn continue_trace(delivery: &mut v1::IngestDelivery) -> Option<tracing::Span> {
    let trace = delivery.trace.as_mut()?;
    if trace.traceparent.is_empty() {
        return None;
    }
    let parent = telemetry::extract(&trace.traceparent, Some(&trace.tracestate));
    if !parent.span().span_context().is_sampled() {
        return None;
    }
    let span = tracing::info_span!(
        "forward",
        otel.kind = "producer",
        service.name = SERVICE_NAME,
        source.name = delivery.source,
        delivery.sequence = delivery.sequence,
    );
    telemetry::set_parent(&span, parent);
    if let Some(traceparent) = telemetry::current_traceparent(&span) {
        trace.traceparent = traceparent;
    }
    Some(span)
}
