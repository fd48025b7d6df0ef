//! The tasks of open streams, counted, so that the end of the service can wait for them.

use std::future::Future;

use tokio::sync::watch;

/// Counts tasks; clones share the count.
#[derive(Clone)]
pub(crate) struct Tasks {
    running: watch::Sender<usize>,
}

/// Takes a task out of the count, also when it panics.
struct Running(watch::Sender<usize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|running| *running -= 1);
    }
}

impl Tasks {
    /// Counts from none.
    pub(crate) fn new() -> Self {
        Self {
            running: watch::Sender::new(0),
        }
    }

    /// Spawns a task.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.running.send_modify(|running| *running += 1);
        let running = Running(self.running.clone());
        tokio::spawn(async move {
            task.await;
            drop(running);
        });
    }

    /// Waits until none is running.
    pub(crate) async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self
            .running
            .subscribe()
            .wait_for(|running| *running == 0)
            .await;
    }
}
