//! Looks at the server once a second, and at once after each new connection: the figures, whether the stream is still
//! the spool it was, and whether the servers can be believed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Info;

use super::link::{Link, config_check, payload_check, spool_id, with_sources};
use super::options::{HEADER_BYTES, JetStreamOptions};
use super::proof::{self, Holder, Proven};
use super::shared::{Gate, Shared, Standing};

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// A server that does not answer questions for this long is not believed to take records.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// After this long the proof is renewed, over the same connection too: another member of the cluster may have come
/// back with other settings.
const PROOF_AGE_MAX: Duration = Duration::from_secs(3);
/// After this long a proof that failed is tried again.
const PROOF_RETRY: Duration = Duration::from_secs(2);

/// A stream that still ends before what is known to be stored after this long has lost it.
pub(super) const BEHIND_MAX: Duration = Duration::from_secs(5);

/// What was last said about durability, and of whom.
struct Proof {
    epoch: u64,
    holders: Vec<Holder>,
    at: Instant,
    result: Result<(), Arc<str>>,
}

pub(super) struct Overseer {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    pub(super) options: Arc<JetStreamOptions>,
    proof: Option<Proof>,
    proven: Proven,
    heard: Instant,
    /// Since when the stream ends before what is known to be stored.
    behind_since: Option<Instant>,
}

impl Overseer {
    pub(super) fn new(shared: Arc<Shared>, link: Link, options: Arc<JetStreamOptions>) -> Self {
        Self {
            shared,
            link,
            options,
            proof: None,
            proven: Proven::new(),
            heard: Instant::now(),
            behind_since: None,
        }
    }

    /// Looks again and again, for ever or until the spool is poisoned.
    pub(super) async fn run(mut self) {
        let mut standing = self.shared.standing.subscribe();
        loop {
            let now = standing.borrow().clone();
            if matches!(now.gate, Gate::Poisoned(_)) {
                return;
            }
            if now.connected {
                self.look().await;
            }
            let fresh = |standing: &Standing| standing.connected && standing.gate == Gate::Checking;
            tokio::time::sleep(RETRY_INTERVAL).await;
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL - RETRY_INTERVAL) => {}
                _ = standing.wait_for(fresh) => {}
            }
        }
    }

    /// Looks once and opens or shuts the gate.
    pub(super) async fn look(&mut self) {
        let epoch = self.shared.standing.borrow().epoch;
        let known = self.shared.figures().last;
        let info = match self.link.stream.get_info().await {
            Ok(info) => info,
            Err(error) => {
                if self.heard.elapsed() > SILENCE_MAX {
                    let reason = format!(
                        "NATS does not answer about stream {}: {}; if the stream is gone, restore it, or restart to make a new one",
                        self.options.stream,
                        with_sources(&error)
                    );
                    self.shared.gate_set(epoch, Gate::Unfit(reason.into()));
                }
                return;
            }
        };
        self.heard = Instant::now();
        let gate = match self.judge(&info, known) {
            Gate::Fit => {
                self.note(&info);
                self.oldest_note().await;
                self.believe(epoch, &info).await
            }
            gate => gate,
        };
        self.shared.gate_set(epoch, gate);
    }

    /// Whether this is still the stream that was opened, as it must be.
    fn judge(&mut self, info: &Info, known: u64) -> Gate {
        let stream = &self.options.stream;
        let last = info.state.last_sequence;
        if spool_id(&info.config) != Some(self.shared.id) {
            return Gate::Poisoned(
                format!("stream {stream} was made anew, so it is another spool").into(),
            );
        }
        if last < known {
            let reason = format!(
                "stream {stream} ends at {last} but ended at {known}: it was restored, or the servers lost records that they had \
                 acknowledged"
            );
            // A new leader of a cluster may know the end a moment later.
            let since = *self.behind_since.get_or_insert_with(Instant::now);
            return if since.elapsed() < BEHIND_MAX {
                Gate::Unfit(reason.into())
            } else {
                Gate::Poisoned(reason.into())
            };
        }
        self.behind_since = None;
        let fits = config_check(&self.options, &info.config)
            .map_err(|detail| format!("stream {stream}: {detail}"))
            .and_then(|()| payload_check(&self.options, self.link.client.max_payload()));
        match fits {
            Ok(()) => Gate::Fit,
            Err(reason) => Gate::Unfit(reason.into()),
        }
    }

    fn note(&self, info: &Info) {
        let mut figures = self.shared.figures();
        figures.note(info);
        let free = figures.bytes_max.saturating_sub(figures.bytes);
        if figures
            .refused_bytes
            .is_some_and(|bytes| bytes + (HEADER_BYTES as u64) < free)
        {
            figures.refused_bytes = None;
        }
    }

    /// Finds out since when the oldest unsettled record has been waiting.
    async fn oldest_note(&self) {
        let wanted = {
            let figures = self.shared.figures();
            let wanted = figures.settled + 1;
            let known = figures
                .oldest_unsettled
                .is_some_and(|(sequence, _)| sequence == wanted);
            (wanted <= figures.last && !known).then_some(wanted)
        };
        let Some(wanted) = wanted else { return };
        // An age that can't be told now is told a second later.
        if let Ok(message) = self
            .link
            .stream
            .direct_get_next_for_subject(self.options.subject(), Some(wanted))
            .await
        {
            self.shared.figures().oldest_unsettled = Some((wanted, message.time.into()));
        }
    }

    /// Whether the servers sync before they answer, asked anew when there is reason to.
    async fn believe(&mut self, epoch: u64, info: &Info) -> Gate {
        let holders = proof::holders(info, &self.link.client.server_info().server_name);
        let current = self.proof.as_ref().is_some_and(|proof| {
            let age_max = if proof.result.is_ok() {
                PROOF_AGE_MAX
            } else {
                PROOF_RETRY
            };
            proof.epoch == epoch && proof.holders == holders && proof.at.elapsed() < age_max
        });
        if !current {
            let result = proof::prove(&self.options, &holders, &mut self.proven)
                .await
                .map_err(Arc::from);
            self.proof = Some(Proof {
                epoch,
                holders,
                at: Instant::now(),
                result,
            });
        }
        let unproven = self
            .proof
            .as_ref()
            .and_then(|proof| proof.result.clone().err());
        let Some(reason) = unproven else {
            self.shared.figures().unproven = None;
            return Gate::Fit;
        };
        if !self.options.allow_unsynced {
            return Gate::Unfit(reason);
        }
        let before = self.shared.figures().unproven.replace(reason.clone());
        if before.as_ref() != Some(&reason) {
            tracing::warn!(reason = %reason, "taking deliveries without proof that they survive a power cut, as allow_unsynced says");
        }
        Gate::Fit
    }
}
