//! Dropping settled records that are too old or too many.
//!
//! The stream itself drops nothing by age: it can't know what is settled. The process that has the turn does, once a
//! minute and more often while room is short, and only after the other side has said in this term where it stands.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::link::{Link, with_sources};
use super::options::JetStreamOptions;
use super::shared::{Gate, Shared};

/// How often settled records are looked through.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);
/// How often while the stream is more than half full.
const SHORT_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct Retention {
    pub(super) shared: Arc<Shared>,
    pub(super) link: Link,
    pub(super) options: Arc<JetStreamOptions>,
}

impl Retention {
    pub(super) async fn run(self) {
        let mut swept = Instant::now();
        loop {
            tokio::time::sleep(SHORT_INTERVAL).await;
            let short = {
                let figures = self.shared.figures();
                figures.refused_bytes.is_some() || figures.bytes > figures.bytes_max / 2
            };
            if !short && swept.elapsed() < SWEEP_INTERVAL {
                continue;
            }
            swept = Instant::now();
            if let Err(reason) = self.sweep().await {
                tracing::warn!(
                    reason,
                    "cannot drop old records of the NATS spool; trying again"
                );
            }
        }
    }

    /// Drops what may be dropped now; returns the last sequence dropped, 0 if none.
    pub(super) async fn sweep(&self) -> Result<u64, String> {
        let Some(term) = self.shared.term() else {
            return Ok(0);
        };
        if self.shared.standing.borrow().gate != Gate::Fit || !self.shared.figures().peer_heard {
            return Ok(0);
        }
        let info = self
            .link
            .stream
            .get_info()
            .await
            .map_err(|error| with_sources(&error))?;
        let settled = self.shared.figures().settled;
        let first = info.state.first_sequence.max(1);
        if first > settled {
            return Ok(0);
        }
        let average = info.state.bytes.div_ceil(info.state.messages.max(1)).max(1);
        let settled_bytes = (settled - first + 1).saturating_mul(average);
        let too_many = settled_bytes
            .saturating_sub(self.options.retain_bytes())
            .div_ceil(average);
        let cutoff = self
            .shared
            .now()
            .checked_sub(self.options.retain_age)
            .unwrap_or(SystemTime::UNIX_EPOCH);
        let by_age = if SystemTime::from(info.state.first_timestamp) <= cutoff {
            self.last_before(cutoff, first, settled).await?
        } else {
            0
        };
        let through = by_age.max(first - 1 + too_many);
        // Nothing may have changed its mind about what is settled while times were looked up.
        let still = self
            .shared
            .term()
            .is_some_and(|now| now.number == term.number);
        let through = through.min(self.shared.figures().settled);
        if !still || through < first {
            return Ok(0);
        }
        self.link
            .stream
            .purge()
            .sequence(through + 1)
            .await
            .map_err(|error| with_sources(&error))?;
        tracing::debug!(first, through, "dropped settled records of the NATS spool");
        if let Ok(info) = self.link.stream.get_info().await {
            self.shared.figures().note(&info);
        }
        Ok(through)
    }

    /// The last sequence from `first` to `last` that was stored at or before `cutoff`, by halving; `first - 1` if none.
    async fn last_before(&self, cutoff: SystemTime, first: u64, last: u64) -> Result<u64, String> {
        let (mut below, mut above) = (first - 1, last + 1);
        while below + 1 < above {
            let middle = below + (above - below) / 2;
            let message = self
                .link
                .stream
                .direct_get_next_for_subject(self.options.subject(), Some(middle))
                .await
                .map_err(|error| with_sources(&error))?;
            if SystemTime::from(message.time) <= cutoff {
                below = middle;
            } else {
                above = middle;
            }
        }
        Ok(below)
    }
}
