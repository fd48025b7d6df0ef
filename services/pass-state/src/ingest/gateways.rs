//! Who is connected: to find a gateway that can decode a source, and to end a stream that was superseded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pass_domain::delivery::Delivery;
use pass_domain::ids::SourceUid;
use pass_proto::convert::delivery_to_wire;
use pass_proto::status::{Fault, Reason};
use pass_proto::v1;
use pass_store::SpoolId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Redecode requests that may wait for one session.
const QUEUE_MAX: usize = 16;

/// A stored delivery to be decoded again.
pub(crate) struct Redecode {
    /// The delivery.
    pub(crate) delivery: v1::IngestDelivery,
    /// Where the answer goes.
    pub(crate) reply: oneshot::Sender<v1::IngestDelivery>,
}

struct Connected {
    /// Which session it is. Generations do not tell: a database that was put back gives them out again.
    session: u64,
    generation: u64,
    /// Those that it may send, and so may be shown.
    sources: Vec<SourceUid>,
    redecodes: mpsc::Sender<Redecode>,
    fence: CancellationToken,
}

/// The connected gateways, one per spool.
#[derive(Default)]
pub(crate) struct Gateways {
    connected: Mutex<HashMap<SpoolId, Connected>>,
    sessions: AtomicU64,
}

/// A session's place in the registry; it leaves when this is dropped.
pub(crate) struct Registered {
    gateways: Arc<Gateways>,
    spool: SpoolId,
    session: u64,
    fence: CancellationToken,
    /// What the session is asked to have decoded.
    pub(crate) redecodes: mpsc::Receiver<Redecode>,
}

impl Registered {
    /// Cancelled when a newer session of the spool took over.
    pub(crate) fn fence(&self) -> CancellationToken {
        self.fence.clone()
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut connected = self.gateways.lock();
        if connected
            .get(&self.spool)
            .is_some_and(|known| known.session == self.session)
        {
            connected.remove(&self.spool);
        }
    }
}

impl Gateways {
    /// Registers a session; an older one of the same spool is fenced. If a newer one is there already, this
    /// one is fenced from the start.
    pub(crate) fn register(
        self: &Arc<Self>,
        spool: SpoolId,
        generation: u64,
        sources: Vec<SourceUid>,
    ) -> Registered {
        let (sender, redecodes) = mpsc::channel(QUEUE_MAX);
        let fence = CancellationToken::new();
        let session = self.sessions.fetch_add(1, Ordering::Relaxed);
        let mut connected = self.lock();
        if connected
            .get(&spool)
            .is_some_and(|known| known.generation > generation)
        {
            fence.cancel();
        } else {
            let newest = Connected {
                session,
                generation,
                sources,
                redecodes: sender,
                fence: fence.clone(),
            };
            if let Some(older) = connected.insert(spool, newest) {
                older.fence.cancel();
            }
        }
        Registered {
            gateways: Arc::clone(self),
            spool,
            session,
            fence,
            redecodes,
        }
    }

    /// Has a stored delivery decoded again by a gateway that serves its source.
    ///
    /// # Errors
    /// NO_GATEWAY if none is connected to this replica, or it does not answer within `wait`.
    pub(crate) async fn redecode(
        &self,
        stored: &Delivery,
        wait: Duration,
    ) -> Result<v1::IngestDelivery, Fault> {
        let source = &stored.source;
        let gateway = self
            .lock()
            .values()
            .find(|gateway| gateway.sources.contains(source))
            .map(|gateway| gateway.redecodes.clone());
        let Some(gateway) = gateway else {
            return Err(Fault::new(
                Reason::NoGateway,
                format!(
                    "no gateway that serves source {source} is connected to this replica; try again, which may reach another one"
                ),
            ));
        };
        let (reply, answer) = oneshot::channel();
        let delivery = delivery_to_wire(stored);
        let silent = || {
            Fault::new(
                Reason::NoGateway,
                format!("the gateway that serves source {source} did not answer; try again"),
            )
        };
        let asking = async {
            gateway.send(Redecode { delivery, reply }).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(wait, asking)
            .await
            .ok()
            .flatten()
            .ok_or_else(silent)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpoolId, Connected>> {
        self.connected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // After a restore that took the store's generations back with it.
    #[test]
    fn a_session_that_ends_leaves_a_later_one_of_the_same_generation_alone() {
        let gateways = Arc::new(Gateways::default());
        let spool = SpoolId([1; 16]);
        let older = gateways.register(spool, 5, Vec::new());
        let newer = gateways.register(spool, 5, Vec::new());
        assert!(older.fence().is_cancelled() && !newer.fence().is_cancelled());
        drop(older);
        assert!(gateways.lock().contains_key(&spool));
        drop(newer);
        assert!(gateways.lock().is_empty());
    }
}
