//! From the spool to pass-state: one long-lived stream, opened anew whenever it ends.
//!
//! `session` is one stream's life; `window` counts what is in flight on it; `pause` says how long to wait
//! before the next one. What this module relies on: the spool gives records again after a rewind, and
//! pass-state takes the same delivery any number of times. So every doubt ends the stream, and the next one
//! starts after what pass-state says it has committed.
//!
//! A spool may be shared by several gateways, of which one forwards at a time: before each stream the forwarder waits
//! for its turn. Gateways that wait are ready; they take callbacks like the one that forwards. One that has the turn and
//! is blocked, or for a while does not reach pass-state or may send nothing (see `patience`), passes the turn on: what
//! stands in its way may stand in no one else's.
//!
//! Four kinds of ends:
//! - ordinary ones (the connection broke, the store is away, the stream was rotated, no progress): reconnect
//!   after a short random pause;
//! - the turn went to another gateway: wait for the next one;
//! - fenced: a newer stream of this spool exists. On a shared spool it is that of the gateway that has the turn now, so
//!   the next turn decides. Else it is a stream of our own that the server still held, or that of a copied spool
//!   directory: wait longer, log;
//! - blocked: nothing but a person can help (see `Failure::remedy`). The gateway turns not ready, keeps accepting
//!   what comes, and keeps trying slowly. Only where the spool was put back to an earlier moment, callbacks are
//!   refused: it gives them numbers under which pass-state has other deliveries.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use pass_spool::Spool;
use service_kit::admin::Check;
use service_kit::grpc::Channel;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::books::Books;
use crate::config::Forward;
use crate::policy::Live;
use crate::waiters::Waiters;

mod failure;
mod patience;
mod pause;
mod session;
mod window;

use failure::Failure;
use patience::Patience;
use pause::Pause;
use session::{End, Session};

/// How long taking a turn that nobody else has may last; only after that it is told that this gateway waits.
const TURN_USUAL: Duration = Duration::from_millis(500);
/// The same after this gateway passed the turn on: nobody else may have wanted it.
const TURN_USUAL_PASSED: Duration = Duration::from_secs(5);
/// How often a gateway that waits and refuses callbacks looks whether another one's deliveries are committed.
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// After as long as this, with the wait for the turn, a stream's end is told also if the one before ended just so.
const TOLD_FOR: Duration = Duration::from_secs(60);

/// What helps after a stream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// Reconnect soon.
    Retry,
    /// Wait for the next turn.
    Turn,
    /// Reconnect later.
    Fenced,
    /// Reconnect later and be not ready.
    Blocked,
}

/// What the log need not repeat.
#[derive(Debug, Default)]
struct Told {
    /// Why forwarding was interrupted, as it was last told.
    text: Option<String>,
    /// Whether the last stream opened, and failed before anything was committed.
    in_vain: bool,
}

/// The forwarder's state, for the operator, metrics and tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardStatus {
    /// True between pass-state's Ready and the stream's end.
    pub connected: bool,
    /// True while this gateway waits for its turn to forward a shared spool: another one has it, or the server that
    /// knows can't be reached.
    pub waiting_for_turn: bool,
    /// Streams that got a Ready.
    pub streams: u64,
    /// The log's epoch as pass-state last told it; empty before.
    pub epoch: String,
    /// The last sequence that pass-state said it has committed.
    pub committed_sequence: u64,
    /// Deliveries sent and not acknowledged.
    pub in_flight_deliveries: usize,
    /// Bytes of those.
    pub in_flight_bytes: usize,
    /// Deliveries and bytes that may be in flight, as pass-state said when the last stream was opened; 0 before.
    pub window: (usize, usize),
    /// Why forwarding needs a person; absent if it does not.
    pub blocked: Option<String>,
    /// True while callbacks are refused: pass-state has shown that the spool was put back to an earlier moment. From
    /// then until a stream is open again, another gateway's deliveries are seen to be committed, or the process ends.
    pub spool_restored: bool,
    /// How the last stream ended, if not in order.
    pub last_error: Option<String>,
    /// The last range of sequences that pass-state lacks and the spool no longer has. Stays until the process
    /// ends.
    pub missing: Option<RangeInclusive<u64>>,
}

/// The task that forwards.
pub(crate) struct Forwarder {
    pub(crate) gateway_id: String,
    /// Whether other gateways take over when this one stops forwarding.
    pub(crate) shared: bool,
    pub(crate) body_bytes_max: usize,
    pub(crate) record_bytes_max: usize,
    pub(crate) config: Forward,
    pub(crate) channel: Channel,
    pub(crate) spool: Arc<dyn Spool>,
    pub(crate) live: Arc<Live>,
    pub(crate) books: Arc<Books>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) status: watch::Sender<ForwardStatus>,
    /// Whether spans go anywhere.
    pub(crate) traced: bool,
}

impl Forwarder {
    /// Forwards until `stop`; then waits a little for acknowledgements, unless others go on at once, and ends.
    pub(crate) async fn run(self, check: Check, stop: CancellationToken) {
        check.ok();
        let mut pause = Pause::new(self.config.retry_min.get(), self.config.retry_max.get());
        let hello_max = self.config.hello_timeout.get();
        let mut patience = Patience::new(self.shared, hello_max);
        let (mut blocked_by_spool, mut hole_end) = (false, 0);
        let mut turn_usual = TURN_USUAL;
        let mut told = Told::default();
        loop {
            let began = Instant::now();
            let (end, opened, progressed) = match self.turn(turn_usual, &check, &stop).await {
                Ok(waited) => {
                    turn_usual = TURN_USUAL;
                    if waited {
                        blocked_by_spool = false;
                        patience.begins();
                    }
                    let hello_max = hello_max.min(patience.left());
                    let mut session = Session::new(
                        &self,
                        &check,
                        blocked_by_spool,
                        hole_end,
                        hello_max,
                        told.in_vain,
                    );
                    let end = session.run(&stop).await;
                    (end, session.opened(), session.progressed())
                }
                Err(end) => (end, false, false),
            };
            self.waiters.connected(None);
            self.status.send_modify(|status| {
                status.connected = false;
                status.in_flight_deliveries = 0;
                status.in_flight_bytes = 0;
            });
            let failure = match end {
                End::Stopped => return,
                End::Failed(failure) => failure,
            };
            // A stream that opens and takes nothing from this gateway is none: another one may be permitted more.
            if opened && (progressed || !failure.is_denied()) {
                patience.succeeded();
            }
            hole_end = failure.hole_end();
            blocked_by_spool = failure.is_of_the_spool() || (blocked_by_spool && !progressed);
            if progressed || began.elapsed() >= TOLD_FOR {
                told = Told::default();
            }
            let mut wait = self.judge(&failure, &check, &mut pause, progressed, &mut told);
            told.in_vain = opened && !progressed && !failure.is_ordinary();
            let blocked = failure.remedy() == Remedy::Blocked;
            if blocked {
                self.spool.pass_turn().await;
                patience.failed();
                turn_usual = TURN_USUAL_PASSED;
            } else {
                wait = wait.min(patience.left());
            }
            tracing::debug!(
                wait_ms = wait.as_millis(),
                lived_ms = began.elapsed().as_millis(),
                "opening the stream to pass-state anew"
            );
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => return,
            }
            if !blocked && patience.left().is_zero() {
                self.spool.pass_turn().await;
                patience.failed();
                turn_usual = TURN_USUAL_PASSED;
            }
        }
    }

    /// Waits for the turn to forward, and says whether another gateway had it until now. That it waits is told after
    /// `usual`.
    async fn turn(
        &self,
        usual: Duration,
        check: &Check,
        stop: &CancellationToken,
    ) -> Result<bool, End> {
        let turn = async {
            let mut turn = self.spool.turn();
            if let Ok(taken) = timeout(usual, &mut turn).await {
                return taken.map(|()| false);
            }
            tracing::info!("waiting for the turn to forward this spool");
            self.status.send_modify(|status| {
                status.waiting_for_turn = true;
                // What stood in this one's way is now for the other one to say, but not what is wrong with the spool.
                if !status.spool_restored {
                    check.ok();
                    status.blocked = None;
                }
                status.last_error = None;
            });
            let mut settled = self.spool.status().settled;
            loop {
                if let Ok(taken) = timeout(MARK_INTERVAL, &mut turn).await {
                    return taken.map(|()| true);
                }
                let before = std::mem::replace(&mut settled, self.spool.status().settled);
                if settled > before && self.status.borrow().spool_restored {
                    self.spool_is_right(check);
                }
            }
        };
        let taken = tokio::select! {
            taken = turn => taken.map_err(|error| End::Failed(Failure::Lease(error))),
            () = stop.cancelled() => Err(End::Stopped),
        };
        if let Ok(true) = taken {
            tracing::info!("it is this gateway's turn to forward the spool");
        }
        self.status
            .send_if_modified(|status| std::mem::take(&mut status.waiting_for_turn));
        taken
    }

    /// Takes callbacks again: another gateway settles records, so pass-state takes this spool for the one it knows.
    fn spool_is_right(&self, check: &Check) {
        tracing::info!("another gateway forwards this spool; taking callbacks again");
        self.status.send_modify(|status| {
            status.spool_restored = false;
            status.blocked = None;
            check.ok();
        });
    }

    /// How long the end waits for acknowledgements.
    fn drain_timeout(&self) -> Duration {
        if self.shared {
            Duration::ZERO
        } else {
            self.config.drain_timeout.get()
        }
    }

    /// Logs how a stream ended and says how long to wait for the next one.
    fn judge(
        &self,
        failure: &Failure,
        check: &Check,
        pause: &mut Pause,
        progressed: bool,
        told: &mut Told,
    ) -> Duration {
        let text = failure.to_string();
        let (blocked, wait) = match failure.remedy() {
            Remedy::Retry => {
                if progressed {
                    pause.reset();
                }
                // The same again and again is one line until something was committed; what changes is a line each.
                if failure.is_ordinary() {
                    tracing::info!("{text}");
                } else if told.text.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "forwarding to pass-state was interrupted; deliveries stay in the spool");
                    told.text = Some(text.clone());
                }
                (None, pause.next())
            }
            Remedy::Turn => {
                tracing::info!("{text}");
                return pause::half_to_full(self.config.retry_min.get());
            }
            // Whose turn it is decides the spool: it is another gateway's, or the newer stream will soon be over.
            Remedy::Fenced if self.shared => {
                tracing::info!("{text}");
                (None, pause.next())
            }
            Remedy::Fenced => {
                tracing::warn!(error = %text, "a newer stream of this spool took over; trying again later");
                (None, pause::half_to_full(self.config.blocked_retry.get()))
            }
            Remedy::Blocked => {
                tracing::error!(error = %text, "deliveries can't be forwarded until someone acts; they stay in the spool");
                check.not_ready(text.clone());
                (
                    Some(text.clone()),
                    pause::half_to_full(self.config.blocked_retry.get()),
                )
            }
        };
        self.status.send_modify(|status| {
            // A block stays until a stream is open again: an outage in between says nothing about it.
            if blocked.is_some() {
                status.blocked = blocked;
            }
            status.spool_restored |= failure.is_of_a_restored_spool();
            status.last_error = Some(text);
        });
        wait
    }
}

#[cfg(test)]
mod tests;
