//! A gateway reduced to its ingest stream: sends what it is given as fast as it is acknowledged.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pass_domain::delivery::Delivery;
use pass_proto::convert::delivery_to_wire;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as ToStore;
use pass_proto::v1::ingest_response::Message as ToGateway;
use pass_proto::v1::ingest_service_client::IngestServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

/// Deliveries in one message.
pub(crate) const BATCH: usize = 256;
/// Messages that are not acknowledged, at most: as much as pass-state's window allows, by number or by size.
pub(crate) const IN_FLIGHT_MAX: usize = 8;

const START_LIMIT: Duration = Duration::from_secs(30);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// An ingest stream that pass-state is ready for, and what to send on it.
pub(crate) struct Feeder {
    to_store: mpsc::Sender<v1::IngestRequest>,
    from_store: Streaming<v1::IngestResponse>,
    batches: Vec<v1::IngestBatch>,
}

/// Makes messages of deliveries, the spool's first.
pub(crate) fn batches<'a>(deliveries: impl Iterator<Item = &'a Delivery>) -> Vec<v1::IngestBatch> {
    let mut batches: Vec<v1::IngestBatch> = Vec::new();
    for (sequence, delivery) in (1..).zip(deliveries) {
        let mut delivery = delivery_to_wire(delivery);
        delivery.sequence = sequence;
        match batches.last_mut() {
            Some(batch) if batch.deliveries.len() < BATCH => batch.deliveries.push(delivery),
            last => {
                let batch_number = last.map_or(0, |batch| batch.batch_number) + 1;
                batches.push(v1::IngestBatch {
                    batch_number,
                    deliveries: vec![delivery],
                });
            }
        }
    }
    batches
}

impl Feeder {
    /// Opens the stream of a new spool, as soon as pass-state takes one.
    pub(crate) async fn open(
        address: SocketAddr,
        spool: u64,
        batches: Vec<v1::IngestBatch>,
    ) -> Result<Self> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            match Self::try_open(address, spool).await {
                Ok((to_store, from_store)) => {
                    return Ok(Self {
                        to_store,
                        from_store,
                        batches,
                    });
                }
                Err(error) if Instant::now() > deadline => return Err(error),
                // It starts; there is nothing to wait for but time.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    async fn try_open(
        address: SocketAddr,
        spool: u64,
    ) -> Result<(
        mpsc::Sender<v1::IngestRequest>,
        Streaming<v1::IngestResponse>,
    )> {
        let mut client = IngestServiceClient::connect(format!("http://{address}")).await?;
        let (to_store, requests) = mpsc::channel(IN_FLIGHT_MAX);
        let hello = v1::IngestHello {
            protocol_version: 1,
            gateway_id: format!("feeder-{spool}"),
            spool_id: format!("{spool:032x}"),
            settled_sequence: 0,
            oldest_sequence: 1,
            sources: vec!["bench".into()],
            body_bytes_max: 64 << 10,
        };
        to_store.send(message(ToStore::Hello(hello))).await?;
        let mut from_store = client
            .ingest(ReceiverStream::new(requests))
            .await?
            .into_inner();
        match next(&mut from_store).await? {
            ToGateway::Ready(ready) if ready.committed_sequence == 0 => Ok((to_store, from_store)),
            other => bail!("pass-state is not ready for a new spool: {other:?}"),
        }
    }

    /// Sends everything, and returns once it is all committed.
    pub(crate) async fn feed(self) -> Result<()> {
        let Self {
            to_store,
            mut from_store,
            batches,
        } = self;
        let deliveries = batches
            .iter()
            .map(|batch| batch.deliveries.len())
            .sum::<usize>() as u64;
        let (mut sent, mut committed, mut sequence) = (0, 0, 0);
        let mut batches = batches.into_iter();
        while sequence < deliveries {
            while sent - committed < IN_FLIGHT_MAX as u64 {
                let Some(batch) = batches.next() else { break };
                sent = batch.batch_number;
                to_store.send(message(ToStore::Batch(batch))).await?;
            }
            match next(&mut from_store).await? {
                ToGateway::Committed(answer) => {
                    committed = answer.batch_number;
                    sequence = answer.committed_sequence;
                    for outcome in &answer.outcomes {
                        ensure!(
                            outcome.outcome() == v1::DeliveryOutcome::Applied,
                            "{outcome:?}"
                        );
                    }
                }
                other => bail!("an unexpected answer: {other:?}"),
            }
        }
        Ok(())
    }
}

fn message(message: ToStore) -> v1::IngestRequest {
    v1::IngestRequest {
        message: Some(message),
    }
}

async fn next(from_store: &mut Streaming<v1::IngestResponse>) -> Result<ToGateway> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, from_store.message())
        .await
        .context("no answer on the ingest stream")??;
    answer
        .and_then(|answer| answer.message)
        .context("the ingest stream ended")
}
