//! A spool that acts as if other gateways shared it, and as if a server kept it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use pass_spool::{
    AppendError, LeaseError, Leased, RecordId, RewindError, RewindOutcome, Sequence, SettleError,
    Spool, SpoolHealth, SpoolId, SpoolStatus,
};
use tokio::sync::watch;

/// What is up with the spool, seen from this gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// This gateway forwards.
    Ours,
    /// Another one does.
    Theirs,
    /// The server is away.
    Away,
}

/// A spool with somebody else's hand on it.
pub(crate) struct SharedSpool {
    spool: Arc<dyn Spool>,
    turn: watch::Sender<Turn>,
    passes: AtomicUsize,
}

const REASON: &str = "no server answers";

impl SharedSpool {
    pub(crate) fn new(spool: Arc<dyn Spool>, turn: Turn) -> Arc<Self> {
        Arc::new(Self {
            spool,
            turn: watch::Sender::new(turn),
            passes: AtomicUsize::new(0),
        })
    }

    pub(crate) fn turn_to(&self, turn: Turn) {
        self.turn.send_replace(turn);
    }

    /// How often this gateway gave its turn back.
    pub(crate) fn passes(&self) -> usize {
        self.passes.load(Ordering::Relaxed)
    }

    fn is_away(&self) -> bool {
        *self.turn.borrow() == Turn::Away
    }

    async fn until(&self, condition: impl FnMut(&Turn) -> bool) -> Turn {
        let mut watched = self.turn.subscribe();
        *watched.wait_for(condition).await.unwrap()
    }
}

#[async_trait]
impl Spool for SharedSpool {
    fn id(&self) -> SpoolId {
        self.spool.id()
    }

    async fn append(&self, id: RecordId, record: Bytes) -> Result<Sequence, AppendError> {
        if self.is_away() {
            return Err(AppendError::Unavailable(REASON.into()));
        }
        self.spool.append(id, record).await
    }

    async fn turn(&self) -> Result<(), LeaseError> {
        match self.until(|turn| *turn != Turn::Theirs).await {
            Turn::Away => Err(LeaseError::Unavailable(REASON.into())),
            Turn::Ours | Turn::Theirs => Ok(()),
        }
    }

    /// Nobody else wants it, so it is soon here again.
    async fn pass_turn(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    async fn lease(&self, records: usize, bytes: usize) -> Result<Vec<Leased>, LeaseError> {
        tokio::select! {
            biased;
            turn = self.until(|turn| *turn != Turn::Ours) => Err(match turn {
                Turn::Away => LeaseError::Unavailable(REASON.into()),
                Turn::Ours | Turn::Theirs => LeaseError::TurnLost,
            }),
            leased = self.spool.lease(records, bytes) => leased,
        }
    }

    async fn settle(&self, through: Sequence) -> Result<(), SettleError> {
        if self.is_away() {
            return Err(SettleError::Unavailable(REASON.into()));
        }
        self.spool.settle(through).await
    }

    async fn rewind(&self, after: Sequence) -> Result<RewindOutcome, RewindError> {
        if self.is_away() {
            return Err(RewindError::Unavailable(REASON.into()));
        }
        self.spool.rewind(after).await
    }

    fn status(&self) -> SpoolStatus {
        let mut status = self.spool.status();
        if self.is_away() {
            status.health = SpoolHealth::Unavailable(REASON.into());
        }
        status
    }

    async fn close(&self) {
        self.spool.close().await;
    }
}
