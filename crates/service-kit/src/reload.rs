//! Taking in changed files while the process runs: certificates, keys, secrets,
//! lists of principals, the configuration itself.
//!
//! A part that can be made anew implements [`Reload`]; a service collects its
//! parts in one [`Reloads`], whose task looks at their files every
//! `reload.interval` and at SIGHUP.
//!
//! - **By content.** What counts is the digest of what the paths lead to, not
//!   names, times or inodes. So it makes no difference how a file is replaced:
//!   written in place, renamed over, or behind the symbolic link that Kubernetes
//!   swaps for a whole volume.
//! - **Polling, not inotify.** A watch on a path ends with the inode that it was
//!   set on, sees nothing on network and some overlay file systems, and needs
//!   the same look at the content afterwards. Reading a few kilobytes every ten
//!   seconds costs nothing and can't be missed.
//! - **Settled.** A change is taken in once two looks, `SETTLE` apart, saw the
//!   same: whoever replaces a certificate and its key does it in two steps.
//! - **As a whole or not at all.** A part that refuses what it finds stays as it
//!   was; an ERROR says why, once per reason, and it is tried again at every look
//!   (a certificate that is not valid yet becomes so without another change).
//!   Parts don't wait for each other: a broken certificate must not hold up a
//!   token that is being revoked.
//! - **Once at the start** every part is applied, since its files may have
//!   changed between their first reading and the first look.

use std::error::Error;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration as StdDuration;

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;

use crate::config::{Duration, Faults, Validate};
use crate::shutdown::Shutdown;

mod config_watch;
mod digest;

pub use config_watch::ConfigWatch;

use digest::Digest;

/// Time that files must stay as they are before they are taken in.
const SETTLE: StdDuration = StdDuration::from_millis(500);
/// Looks that wait for files to settle; after that they are taken as they are.
const SETTLE_LOOKS_MAX: usize = 10;

/// How often watched files are looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReloadConfig {
    /// Time between two looks, 1 s to 10 min. Default 10 s. SIGHUP looks at once.
    pub interval: Duration,
}

impl Default for ReloadConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
        }
    }
}

impl Validate for ReloadConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range(
            "interval",
            self.interval,
            Duration::from_secs(1)..=Duration::from_mins(10),
        );
    }
}

/// Why a new state was refused; logged with its sources, so without secrets.
/// [`Faults`], texts and any other error convert by `?`.
pub type Refusal = Box<dyn Error + Send + Sync>;

/// A part that can be made anew from files while it works.
pub trait Reload: Send + 'static {
    /// The files that its state comes from; asked before every look. One that is
    /// missing is watched too.
    fn files(&self) -> Vec<PathBuf>;

    /// Reads the files, checks everything, and only then puts the new state in
    /// force. Called on a thread that may block; also with files that did not
    /// change (at the start, at SIGHUP, after a refusal), which must be harmless.
    ///
    /// # Errors
    /// Why the new state can't be used; then the old one is in force unchanged.
    fn try_apply(&mut self) -> Result<(), Refusal>;
}

/// What came of reloading so far, for metrics and `/status`; shared by `Arc`.
#[derive(Debug, Default)]
pub struct ReloadStatus {
    applied: AtomicU64,
    refused: AtomicU64,
    failing: AtomicU64,
}

impl ReloadStatus {
    /// New states put in force since the start, counted per part.
    pub fn ok(&self) -> u64 {
        self.applied.load(Ordering::Relaxed)
    }

    /// New states refused since the start, counted per part and reason.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Says whether some part now works with an older state than its files hold.
    pub fn failed_now(&self) -> bool {
        self.failing.load(Ordering::Relaxed) > 0
    }
}

/// Everything of one service that can be made anew.
#[derive(Debug)]
pub struct Reloads {
    interval: StdDuration,
    parts: Vec<Part>,
    status: Arc<ReloadStatus>,
    hangup: Option<Signal>,
}

struct Part {
    name: &'static str,
    reload: Box<dyn Reload>,
    /// What the files held when they were last taken in or refused.
    seen: Digest,
    /// Why they were refused, if they were.
    refusal: Option<String>,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Part")
            .field("name", &self.name)
            .field("refusal", &self.refusal)
            .finish_non_exhaustive()
    }
}

/// Why the files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    Start,
    Interval,
    Hangup,
}

impl Reloads {
    /// Makes an empty collection. From here on SIGHUP no longer kills. Must be
    /// called within a tokio runtime.
    pub fn new(config: &ReloadConfig) -> Self {
        let hangup = signal(SignalKind::hangup())
            .inspect_err(|error| {
                tracing::warn!(error = %error, "SIGHUP can't be taken; files are looked at by interval only");
            })
            .ok();
        Self {
            interval: config.interval.get(),
            parts: Vec::new(),
            status: Arc::default(),
            hangup,
        }
    }

    /// Adds a part; `name` stands in logs.
    pub fn register(&mut self, name: &'static str, reload: impl Reload) {
        self.parts.push(Part {
            name,
            reload: Box::new(reload),
            seen: Digest::default(),
            refusal: None,
        });
    }

    /// Returns what came of reloading; stays valid after the end.
    pub fn status(&self) -> Arc<ReloadStatus> {
        Arc::clone(&self.status)
    }

    /// Takes in what changes until `shutdown` stops. A look that has begun is not
    /// waited for.
    pub async fn run(mut self, shutdown: Shutdown) {
        let interval = self.interval;
        let mut hangup = self.hangup.take();
        let mut occasion = Occasion::Start;
        let work = async {
            loop {
                let mut settled = None;
                if occasion == Occasion::Interval {
                    let digests;
                    (self, digests) = self.settled().await;
                    settled = Some(digests);
                }
                self = on_blocking_thread(move || self.look(occasion, settled)).await;
                occasion = tokio::select! {
                    () = sleep(interval) => Occasion::Interval,
                    () = received(&mut hangup) => Occasion::Hangup,
                };
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.stopping() => {}
        }
    }

    /// Waits until no file changes any more, if any did; what the files of each part held then.
    async fn settled(mut self) -> (Self, Vec<Digest>) {
        let mut before: Vec<Digest> = self.parts.iter().map(|part| part.seen).collect();
        for _ in 0..SETTLE_LOOKS_MAX {
            let now: Vec<Digest>;
            (self, now) = on_blocking_thread(move || {
                let now = self.parts.iter().map(Part::digest).collect();
                (self, now)
            })
            .await;
            if now == before {
                break;
            }
            before = now;
            sleep(SETTLE).await;
        }
        (self, before)
    }

    /// Takes in what changed. Where the files have `settled`, what changed since is for the next look: it may be a
    /// half of something.
    fn look(mut self, occasion: Occasion, settled: Option<Vec<Digest>>) -> Self {
        let now = |part: &Part| part.digest();
        let digests = settled.unwrap_or_else(|| self.parts.iter().map(now).collect());
        for (part, digest) in self.parts.iter_mut().zip(digests) {
            part.look(occasion, digest, &self.status);
        }
        let failing = self.parts.iter().filter(|part| part.refusal.is_some());
        let failing = u64::try_from(failing.count()).unwrap_or(u64::MAX);
        self.status.failing.store(failing, Ordering::Relaxed);
        self
    }
}

impl Part {
    fn digest(&self) -> Digest {
        Digest::of(&self.reload.files())
    }

    /// `digest` was taken before: what changes from there on is seen next time.
    fn look(&mut self, occasion: Occasion, digest: Digest, status: &ReloadStatus) {
        let changed = digest != self.seen;
        let asked = match occasion {
            Occasion::Start | Occasion::Hangup => true,
            Occasion::Interval => false,
        };
        if !changed && !asked && self.refusal.is_none() {
            return;
        }
        self.seen = digest;
        let part = self.name;
        let applied = catch_unwind(AssertUnwindSafe(|| self.reload.try_apply()))
            .unwrap_or_else(|_| Err("it panicked: a bug".into()));
        match applied {
            Ok(()) => {
                // Which files these are may have changed with it.
                let recovered = self.refusal.take().is_some();
                if occasion != Occasion::Start {
                    status.applied.fetch_add(1, Ordering::Relaxed);
                    tracing::info!(part, recovered, "reloaded");
                }
            }
            Err(refusal) => {
                let reason = chain(&*refusal);
                if self.refusal.as_ref() == Some(&reason) && !asked {
                    return;
                }
                status.refused.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    part,
                    reason,
                    "a new state was refused; the old one stays in force"
                );
                self.refusal = Some(reason);
            }
        }
    }
}

/// An error with its sources, in one line per fault.
fn chain(error: &(dyn Error + Send + Sync)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let _ = write!(text, ": {source}");
        next = source.source();
    }
    text
}

async fn received(hangup: &mut Option<Signal>) {
    let came = match hangup {
        Some(hangup) => hangup.recv().await,
        None => None,
    };
    if came.is_none() {
        std::future::pending().await
    }
}

/// Runs `work` where it may wait for the disk.
async fn on_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // Panics of parts are caught; the runtime is going down.
        Err(_) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
