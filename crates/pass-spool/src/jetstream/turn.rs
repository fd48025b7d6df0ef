//! Whose turn it is to lease, settle and rewind: one key of a key-value bucket.
//!
//! The value names the holder and carries the settled mark, so that only the holder moves it. The holder writes it
//! every 1.5 s, each time on condition that nobody else did in between. Whoever waits takes the turn when the holder
//! has given it back, or when the value has stood still for 5 s of the waiting process's own clock. A holder that could
//! not write for 4 s stops by itself. No clock is compared with another. Who has given it back without an end stays out
//! of the contest for 3 s, which is six looks of everybody else.
//!
//! A write without an answer in time counts once a look shows it, from its own beginning: so a slow server does not
//! end the turn. A bucket that is gone is made anew; its first entry settles nothing, and pass-state says where to go on.
//!
//! A caller gives the turn back by clearing the term; what the keeper still holds then is to be given back.
//!
//! This is liveness only: should two believe to have the turn, pass-state fences one of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::kv::UpdateErrorKind;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::link::{Link, bucket_mend, with_sources};
use super::options::JetStreamOptions;
use super::overseer::BEHIND_MAX;
use super::shared::{Gate, Shared, Term};

/// The one key.
const KEY: &str = "forwarder";
/// How often the holder writes.
const RENEW: Duration = Duration::from_millis(1_500);
/// A holder stops that could not write for this long.
pub(super) const HOLD_MAX: Duration = Duration::from_secs(4);
/// Whoever waits takes over from a holder that has not written for this long. Above `HOLD_MAX`.
const STILL_MAX: Duration = Duration::from_secs(5);
/// How often those who don't hold it look.
const LOOK: Duration = Duration::from_millis(500);
/// Whoever passed the turn on leaves it to others for this long. Far above `LOOK`.
const REST: Duration = Duration::from_secs(3);
/// How soon a step is repeated that failed.
const RETRY: Duration = Duration::from_millis(200);
/// How long one step may wait for the server.
const STEP_MAX: Duration = Duration::from_millis(1_200);
/// How often it is seen to that the bucket is there, while steps fail.
const MEND: Duration = Duration::from_secs(2);
/// Steps that fail for this long make the operator's business of it.
const TROUBLE_MAX: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });
/// How often that is logged while it lasts.
const TROUBLE_TOLD: Duration = Duration::from_secs(60);

/// What the key holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    /// Which spool the settled mark belongs to.
    spool: String,
    /// The holder, one id per opened spool; absent if nobody has the turn.
    holder: Option<String>,
    /// Who that is, for people.
    name: String,
    settled: u64,
}

/// A failed step, for the log.
type Trouble = String;

/// Writes that may have been made, or may yet be.
struct Unsure {
    /// The revision that they replace, so that at most one of them counts.
    over: u64,
    /// When the first of them began.
    began: Instant,
}

/// For how long steps have failed.
struct Failing {
    since: Instant,
    told: Option<Instant>,
}

pub(super) struct TurnKeeper {
    shared: Arc<Shared>,
    link: Link,
    options: Arc<JetStreamOptions>,
    me: String,
    /// The revision that we wrote last, while we have the turn.
    held: Option<u64>,
    unsure: Option<Unsure>,
    /// The revision last seen and since when.
    seen: Option<(u64, Instant)>,
    /// The last successful look.
    looked: Option<Instant>,
    /// When the turn was passed on last.
    passed: Option<Instant>,
    terms: u64,
    failing: Option<Failing>,
    /// The last attempt to have a bucket.
    mended: Option<Instant>,
    /// Since when the stream ends before what is settled.
    behind_since: Option<Instant>,
}

impl TurnKeeper {
    pub(super) fn new(
        shared: Arc<Shared>,
        link: Link,
        options: Arc<JetStreamOptions>,
        me: String,
    ) -> Self {
        Self {
            shared,
            link,
            options,
            me,
            held: None,
            unsure: None,
            seen: None,
            looked: None,
            passed: None,
            terms: 0,
            failing: None,
            mended: None,
            behind_since: None,
        }
    }

    /// Keeps the turn while there is one, looks for it while someone waits, and gives it back at the end.
    pub(super) async fn run(mut self) {
        let mut closed = self.shared.closed.subscribe();
        let shared = self.shared.clone();
        loop {
            let pause = self.step().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shared.turn_wanted.notified() => {}
                _ = closed.wait_for(|closed| *closed) => break,
            }
        }
        self.release().await;
    }

    /// Takes over the settled mark as it was last written. For the time before the first step.
    pub(super) async fn mark_read(&mut self) -> Result<(), Trouble> {
        self.look().await.map(drop)
    }

    async fn step(&mut self) -> Duration {
        if self.held.is_some() && self.shared.term.borrow().is_none() {
            tracing::info!(spool.id = %self.shared.id, "this gateway leaves the NATS spool to others that can forward it");
            self.release().await;
            self.passed = Some(Instant::now());
        }
        let outcome = if self.held.is_some() {
            self.renew().await
        } else {
            self.seek().await
        };
        match outcome {
            Ok(pause) => {
                if self.failing.take().is_some() {
                    self.shared.figures().trouble = None;
                }
                pause
            }
            Err(trouble) => {
                self.fail(&trouble).await;
                if self.held.is_some() && self.shared.term().is_none() {
                    self.lose("it could not be renewed");
                }
                RETRY
            }
        }
    }

    /// Tells of a failed step, and makes the bucket anew if that is the reason.
    async fn fail(&mut self, trouble: &str) {
        if !self.shared.standing.borrow().connected {
            // That is told already, and counts as something else.
            self.shared.figures().trouble = None;
            self.failing = None;
            return;
        }
        if self.failing.is_none() {
            tracing::warn!(
                error = trouble,
                "cannot tell whose turn it is to forward the NATS spool"
            );
        }
        let failing = self.failing.get_or_insert_with(|| Failing {
            since: Instant::now(),
            told: None,
        });
        if failing.since.elapsed() >= TROUBLE_MAX {
            let bucket = self.options.bucket();
            if failing.told.is_none_or(|at| at.elapsed() >= TROUBLE_TOLD) {
                failing.told = Some(Instant::now());
                tracing::error!(
                    error = trouble,
                    bucket,
                    "cannot tell whose turn it is, so that nobody may be forwarding the NATS spool; see to the key-value bucket"
                );
            }
            self.shared.figures().trouble =
                Some(format!("key-value bucket {bucket} can't be used: {trouble}").into());
        }
        if self.mended.is_none_or(|at| at.elapsed() >= MEND) {
            self.mended = Some(Instant::now());
            match bucket_mend(&self.options, &self.link.context).await {
                Ok(true) => tracing::warn!(
                    bucket = self.options.bucket(),
                    "the key-value bucket of the turn was gone and is made anew"
                ),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(error, "cannot see to the key-value bucket of the turn")
                }
            }
        }
    }

    /// Writes that the turn goes on; returns when to do so again.
    async fn renew(&mut self) -> Result<Duration, Trouble> {
        if self.unsure.is_some() {
            let found = self.look().await?;
            if !self.find_own(found.as_ref()) {
                return Ok(LOOK);
            }
        }
        for _ in 0..2 {
            let Some(revision) = self.held else {
                return Ok(LOOK);
            };
            let began = Instant::now();
            let settled = self.shared.figures().settled;
            match self.write(Some(self.me.clone()), settled, revision).await? {
                Some(revision) => {
                    self.held = Some(revision);
                    self.extend(began);
                    return Ok(RENEW);
                }
                None => {
                    let found = self.look().await?;
                    if !self.find_own(found.as_ref()) {
                        return Ok(LOOK);
                    }
                }
            }
        }
        Err("the turn's entry changes all the time".into())
    }

    /// Takes over what an own write did of which no answer came; false if the turn is another's now.
    fn find_own(&mut self, found: Option<&(u64, Entry)>) -> bool {
        match found {
            Some((revision, entry)) if self.is_mine(entry) => {
                self.held = Some(*revision);
                if let Some(began) = self.own_write(*revision) {
                    self.extend(began);
                }
                true
            }
            Some(_) | None => {
                self.lose("another gateway took it");
                false
            }
        }
    }

    /// When the write began that made this revision, at the earliest, if that was not known to be made.
    fn own_write(&mut self, revision: u64) -> Option<Instant> {
        self.unsure
            .take_if(|unsure| revision > unsure.over)
            .map(|unsure| unsure.began)
    }

    fn is_mine(&self, entry: &Entry) -> bool {
        entry.holder.as_deref() == Some(self.me.as_str())
    }

    /// Lets the term last as a write allows that began then.
    fn extend(&self, began: Instant) {
        self.shared.term.send_if_modified(|term| {
            let Some(term) = term else { return false };
            let now = Instant::now();
            let lapsed = now >= term.until;
            term.until = term.until.max(began + HOLD_MAX);
            // Somebody may wait for a turn that had lapsed, nobody for one that goes on.
            lapsed && now < term.until
        });
    }

    /// Takes the turn if someone here waits for it and nobody has it; returns when to look again.
    async fn seek(&mut self) -> Result<Duration, Trouble> {
        let found = self.look().await?;
        if *self.shared.turn_waiters.borrow() == 0
            || self.shared.is_closed()
            || self.passed.is_some_and(|at| at.elapsed() < REST)
            || matches!(self.shared.standing.borrow().gate, Gate::Poisoned(_))
        {
            return Ok(LOOK);
        }
        let mine = found.as_ref().is_some_and(|(_, entry)| self.is_mine(entry));
        let free =
            mine || found.as_ref().is_none_or(|(_, entry)| {
                entry.holder.is_none() || entry.spool != self.shared.id.to_string()
            }) || self
                .seen
                .is_some_and(|(_, since)| since.elapsed() >= STILL_MAX);
        if !free {
            return Ok(LOOK);
        }
        let info = timeout(STEP_MAX, self.link.stream.get_info())
            .await
            .map_err(|_| "no answer about the stream in time".to_owned())?
            .map_err(|error| with_sources(&error))?;
        let last = info.state.last_sequence;
        let settled = match &found {
            // Nobody had it since we did, so what we know is newer than what is written.
            _ if mine => self.shared.figures().settled,
            Some((_, entry)) if entry.spool == self.shared.id.to_string() => entry.settled,
            Some(_) | None => 0,
        };
        if settled > last {
            // A new leader of a cluster may know the end a moment later.
            if self.behind_since.get_or_insert_with(Instant::now).elapsed() < BEHIND_MAX {
                return Err(format!(
                    "the stream ends at {last}, before the settled {settled}"
                ));
            }
            tracing::error!(
                settled,
                last,
                "the stream ends before what was settled: it was restored to an earlier moment or lost records"
            );
        }
        self.behind_since = None;
        let settled = settled.min(last);
        let revision = found.map_or(0, |(revision, _)| revision);
        let own = mine.then(|| self.own_write(revision)).flatten();
        let (revision, began, pause) = match own {
            // To be renewed at once: much of its time has passed.
            Some(began) if began.elapsed() < HOLD_MAX => (revision, began, Duration::ZERO),
            Some(_) | None => {
                let began = Instant::now();
                match self.write(Some(self.me.clone()), settled, revision).await? {
                    Some(revision) => (revision, began, RENEW),
                    // Someone else was faster.
                    None => return Ok(LOOK),
                }
            }
        };
        self.held = Some(revision);
        self.terms += 1;
        {
            let mut figures = self.shared.figures();
            figures.note(&info);
            figures.settled = settled;
            figures.peer_heard = false;
        }
        tracing::info!(spool.id = %self.shared.id, settled, "this gateway forwards the NATS spool now");
        let term = Term {
            number: self.terms,
            until: began + HOLD_MAX,
        };
        self.shared.term.send_replace(Some(term));
        Ok(pause)
    }

    /// Reads the entry and how long it has stood still.
    async fn look(&mut self) -> Result<Option<(u64, Entry)>, Trouble> {
        let found = timeout(STEP_MAX, self.link.turn.entry(KEY))
            .await
            .map_err(|_| "no answer about the turn in time".to_owned())?
            .map_err(|error| with_sources(&error))?;
        let now = Instant::now();
        // Time in which nothing could be seen is no time in which the holder stood still.
        let unbroken = self.looked.is_some_and(|at| now - at < LOOK + STEP_MAX);
        self.looked = Some(now);
        let Some(found) = found else {
            self.seen = None;
            return Ok(None);
        };
        match self.seen {
            Some((revision, _)) if unbroken && revision == found.revision => {}
            Some(_) | None => self.seen = Some((found.revision, now)),
        }
        let entry: Entry = serde_json::from_slice(&found.value)
            .map_err(|error| format!("the turn's entry can't be read: {error}"))?;
        if self.held.is_none() && entry.spool == self.shared.id.to_string() {
            let mut figures = self.shared.figures();
            if !self.is_mine(&entry) {
                figures.settled = entry.settled;
            }
        }
        Ok(Some((found.revision, entry)))
    }

    /// Writes the entry if it still has that revision; `None` if it has not.
    async fn write(
        &mut self,
        holder: Option<String>,
        settled: u64,
        revision: u64,
    ) -> Result<Option<u64>, Trouble> {
        let entry = Entry {
            spool: self.shared.id.to_string(),
            holder,
            name: self.options.gateway_name.clone(),
            settled,
        };
        let value = serde_json::to_vec(&entry).map_err(|error| error.to_string())?;
        let began = Instant::now();
        let writing = async {
            let written = self.link.turn.update(KEY, value.into(), revision).await;
            #[cfg(test)]
            tokio::time::sleep(self.shared.answer_late()).await;
            written
        };
        let trouble = match timeout(STEP_MAX, writing).await {
            Ok(Ok(revision)) => {
                self.unsure = None;
                return Ok(Some(revision));
            }
            // By someone else, or by an earlier write of ours.
            Ok(Err(error)) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                return Ok(None);
            }
            Ok(Err(error)) => with_sources(&error),
            Err(_) => "no answer about the turn in time".into(),
        };
        if self
            .unsure
            .as_ref()
            .is_none_or(|unsure| unsure.over != revision)
        {
            self.unsure = Some(Unsure {
                over: revision,
                began,
            });
        }
        Err(trouble)
    }

    fn lose(&mut self, why: &str) {
        self.held = None;
        self.unsure = None;
        if self.shared.term.send_replace(None).is_some() {
            tracing::warn!(spool.id = %self.shared.id, why, "this gateway's turn to forward the NATS spool ended");
        }
    }

    /// Gives the turn back with the last settled mark, so that another goes on at once.
    async fn release(&mut self) {
        self.shared.term.send_replace(None);
        for _ in 0..3 {
            let Some(revision) = self.held else { return };
            let settled = self.shared.figures().settled;
            match self.write(None, settled, revision).await {
                Ok(Some(_)) => self.held = None,
                Ok(None) => match self.look().await {
                    Ok(Some((revision, entry))) if self.is_mine(&entry) => {
                        self.held = Some(revision);
                    }
                    Ok(_) => self.held = None,
                    Err(_) => {}
                },
                Err(trouble) => {
                    tracing::warn!(error = %trouble, "cannot give back the turn; others take it in 5 s");
                }
            }
        }
        self.held = None;
        self.unsure = None;
    }
}
