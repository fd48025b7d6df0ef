//! The end of a process, in phases, and who waits for whom.
//!
//! ```text
//! Running ──signal──► Draining ──delay──► Stopping ──second signal or deadline──► Aborting
//! ```
//!
//! 1. **Draining**: readiness and health turn off ([`crate::admin::Readiness`]
//!    watches this), while new work is still accepted, so that load balancers
//!    notice before anything is refused.
//! 2. **Stopping**: listeners close their sockets and tell open connections to
//!    finish. Long-lived streams see [`Shutdown::stopping`], send their final
//!    frame and end. Each listener's `serve` returns when its connections are
//!    gone or its own `drain_timeout` cut them.
//! 3. A service's `run` waits for its listeners, *then* for the tasks behind
//!    them (a forwarder, a writer), because those still get work from requests
//!    in flight. It returns when nothing of it runs any more.
//! 4. `main` waits for `run`, then flushes telemetry, then exits.
//!
//! **Aborting** (a second signal) skips the waiting: listeners cut connections
//! at once. What was acknowledged is durable by then, so nothing is lost but
//! answers in flight.
//!
//! Phases only move forward. The handle is a value that is passed along; there
//! is no global flag.

use std::io;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal as unix_signal};
use tokio::sync::watch;

/// A step of the end of a process; ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Normal work.
    Running,
    /// Not ready any more, but new work is still accepted.
    Draining,
    /// No new work; what was accepted is being finished.
    Stopping,
    /// Waiting is over; whatever is left is cut.
    Aborting,
}

/// A clonable handle to the one shutdown of a process (or of a test).
#[derive(Clone, Debug)]
pub struct Shutdown {
    phase: watch::Sender<Phase>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// Creates a handle in [`Phase::Running`].
    pub fn new() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
        }
    }

    /// Returns the current phase.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Moves to `phase` if that is ahead; going back is ignored.
    pub fn advance(&self, phase: Phase) {
        let moved = self.phase.send_if_modified(|current| {
            let ahead = phase > *current;
            if ahead {
                *current = phase;
            }
            ahead
        });
        if moved {
            tracing::info!(shutdown.phase = ?phase, "shutdown moved on");
        }
    }

    /// Says whether draining has begun (true in all later phases too).
    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Says whether stopping has begun (true in all later phases too).
    pub fn is_stopping(&self) -> bool {
        self.phase() >= Phase::Stopping
    }

    /// Waits until draining has begun. Cancel safe.
    pub async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Waits until stopping has begun. Cancel safe.
    pub async fn stopping(&self) {
        self.reached(Phase::Stopping).await;
    }

    /// Waits until the rest is to be cut. Cancel safe.
    pub async fn aborting(&self) {
        self.reached(Phase::Aborting).await;
    }

    async fn reached(&self, phase: Phase) {
        let mut watcher = self.phase.subscribe();
        // The sender lives as long as `self`, so this cannot fail early.
        let _ = watcher.wait_for(|current| *current >= phase).await;
    }

    /// Begins draining and stops `delay` later (at once if someone else
    /// already moved further).
    pub async fn trigger(&self, delay: Duration) {
        self.advance(Phase::Draining);
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.stopping() => {}
        }
        self.advance(Phase::Stopping);
    }

    /// Drives this handle by signals: the first triggers with `delay`, a
    /// second aborts. Runs until aborted; `main` spawns it.
    pub async fn follow(self, mut signals: Signals, delay: Duration) {
        signals.recv().await;
        tokio::select! {
            () = async {
                self.trigger(delay).await;
                self.aborting().await;
            } => {}
            () = signals.recv() => self.advance(Phase::Aborting),
        }
    }
}

/// The signals that end a process: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers; from here on the signals no longer kill.
    ///
    /// # Errors
    /// Fails if the handlers can't be installed.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix_signal(SignalKind::terminate())?,
            interrupt: unix_signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal. Cancel safe.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Waits for one SIGTERM or SIGINT.
///
/// # Errors
/// Fails if the signal handlers can't be installed.
pub async fn signal() -> io::Result<()> {
    Signals::new()?.recv().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phases_only_move_forward() {
        let shutdown = Shutdown::new();
        shutdown.advance(Phase::Stopping);
        shutdown.advance(Phase::Draining);
        assert_eq!(shutdown.phase(), Phase::Stopping);
        assert!(shutdown.is_draining());
        shutdown.draining().await;
        shutdown.stopping().await;
    }

    #[tokio::test]
    async fn trigger_drains_first_and_stops_after_the_delay() {
        let shutdown = Shutdown::new();
        let task = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.trigger(Duration::from_millis(100)).await }
        });
        shutdown.draining().await;
        assert_eq!(shutdown.phase(), Phase::Draining);
        shutdown.stopping().await;
        task.await.expect("trigger does not panic");
    }

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_aborts() {
        let shutdown = Shutdown::new();
        let signals = Signals::new().unwrap();
        let task = tokio::spawn(shutdown.clone().follow(signals, Duration::from_secs(3600)));
        let own = rustix::process::getpid();
        rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
        shutdown.draining().await;
        assert_eq!(shutdown.phase(), Phase::Draining);
        rustix::process::kill_process(own, rustix::process::Signal::INT).unwrap();
        shutdown.aborting().await;
        task.await.expect("following does not panic");
    }

    #[tokio::test]
    async fn an_abort_cuts_the_drain_delay_short() {
        let shutdown = Shutdown::new();
        let task = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.trigger(Duration::from_secs(3600)).await }
        });
        shutdown.draining().await;
        shutdown.advance(Phase::Aborting);
        tokio::time::timeout(Duration::from_secs(5), task)
            .await
            .expect("trigger ends at once")
            .expect("trigger does not panic");
        assert_eq!(shutdown.phase(), Phase::Aborting);
    }
}
