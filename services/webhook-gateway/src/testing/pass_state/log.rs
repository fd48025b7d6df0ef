//! A pass-state that plays its part by itself: commits what comes in sequence, and fences older streams of the spool.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt as _;
use pass_domain::delivery::Outcome;
use pass_domain::ids::DeliveryId;
use pass_proto::status::Fault;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as Theirs;
use pass_proto::v1::ingest_response::Message as Ours;
use tokio::task::JoinHandle;

use super::{PassState, Stream, ready};

/// What was committed: sequences and delivery ids, in order.
#[derive(Debug, Default)]
pub(crate) struct Log {
    /// The id of the delivery with each sequence.
    pub(crate) ids: Vec<Vec<u8>>,
    /// Which gateway had the last stream, and how many there were.
    pub(crate) gateway: String,
    pub(crate) streams: usize,
    /// What must not happen, if it did.
    pub(crate) faults: Vec<String>,
}

impl Log {
    /// How often each delivery is in it.
    pub(crate) fn counts(&self) -> BTreeMap<&[u8], usize> {
        let mut counts = BTreeMap::new();
        for id in &self.ids {
            *counts.entry(&**id).or_default() += 1;
        }
        counts
    }

    fn commit(&mut self, batch: &v1::IngestBatch) -> Vec<u64> {
        let mut sequences = Vec::new();
        for delivery in &batch.deliveries {
            let committed = self.ids.len() as u64;
            if delivery.sequence > committed + 1 {
                let fault = format!("{} came after {committed}", delivery.sequence);
                self.faults.push(fault);
            } else if delivery.sequence == committed + 1 {
                self.ids.push(delivery.id.to_vec());
            }
            sequences.push(delivery.sequence);
        }
        sequences
    }
}

/// The log with the server behind it.
pub(crate) struct Recorder {
    pub(crate) addr: SocketAddr,
    pub(crate) log: Arc<Mutex<Log>>,
    running: JoinHandle<()>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Recorder {
    pub(crate) async fn start() -> Self {
        let mut peer = PassState::start().await;
        let addr = peer.addr;
        let log = Arc::new(Mutex::new(Log::default()));
        let shared = Arc::clone(&log);
        let running = tokio::spawn(async move {
            let mut current: Option<Stream> = None;
            loop {
                tokio::select! {
                    opened = peer.streams.recv() => {
                        let Some(mut opened) = opened else { return };
                        if let Some(older) = current.take() {
                            let fenced = Fault::new(v1::ErrorReason::SpoolFenced, "newer stream");
                            tokio::spawn(older.fail(fenced.into()));
                        }
                        let gateway = opened.hello().await.gateway_id;
                        let ready = {
                            let mut log = shared.lock().unwrap();
                            log.gateway = gateway;
                            log.streams += 1;
                            let id = log.ids.last().map(|id| DeliveryId::from_bytes(id.as_slice().try_into().unwrap()));
                            v1::IngestReady {
                                committed_delivery_id: id.map(|id| id.to_string()).unwrap_or_default(),
                                ..ready(log.ids.len() as u64)
                            }
                        };
                        // The gateway may have ended meanwhile.
                        current = opened.try_send(Ours::Ready(ready)).await.then_some(opened);
                    }
                    batch = next(&mut current) => match batch {
                        Some((stream, batch)) => {
                            let sequences = shared.lock().unwrap().commit(&batch);
                            // The gateway may be gone; what is committed stays so.
                            let _ = stream.try_commit(batch.batch_number, sequences, Outcome::Applied).await;
                        }
                        None => current = None,
                    }
                }
            }
        });
        Self { addr, log, running }
    }
}

/// The next batch of the open stream; nothing once it has ended.
async fn next(current: &mut Option<Stream>) -> Option<(&Stream, v1::IngestBatch)> {
    let Some(stream) = current else {
        return std::future::pending().await;
    };
    match stream.inbox.next().await?.ok()?.message? {
        Theirs::Batch(batch) => Some((stream, batch)),
        _ => None,
    }
}
