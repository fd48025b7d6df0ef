//! Tells other processes of commits, and hears of theirs, on one connection that does nothing else.
//!
//! A notification inside the transaction would make all commits of the server wait for each other, so it is
//! a statement of its own, after the commit and off its path; commits that come while it runs share the next
//! one. Hints may be lost at any time (a connection that breaks, a full queue, a process that dies between
//! commit and hint): readers ask now and then anyway.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgListener, PgPoolOptions};
use sea_orm::sqlx::{self, Executor, Row};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::connect::Connector;

/// The channel.
const CHANNEL: &str = "passline_head";
/// After this long without a word the connection is tried.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// A statement that is not answered within this means that the connection is gone.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The first and the longest pause between attempts to connect.
const PAUSE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(2)];

/// The task, which ends with its handle.
#[derive(Debug)]
pub(in crate::sql) struct Wakeups {
    due: Arc<Notify>,
    hints: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Wakeups {
    pub(super) fn start(connector: Connector) -> Self {
        let due = Arc::new(Notify::new());
        let hints = watch::Sender::new(0);
        let task = tokio::spawn(run(connector, Arc::clone(&due), hints.clone()));
        Self { due, hints, task }
    }

    /// Tells the others, soon.
    pub(in crate::sql) fn committed(&self) {
        self.due.notify_one();
    }

    /// Changes when another process may have committed.
    pub(in crate::sql) fn hints(&self) -> watch::Receiver<u64> {
        self.hints.subscribe()
    }

    pub(super) fn close(&self) {
        self.task.abort();
    }
}

impl Drop for Wakeups {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(connector: Connector, due: Arc<Notify>, hints: watch::Sender<u64>) {
    let mut pause = PAUSE[0];
    loop {
        let lost = match timeout(connector.options().connect_timeout, listen(&connector)).await {
            Ok(Ok((mut listener, own_process))) => {
                pause = PAUSE[0];
                // Others may have committed while nobody listened.
                hints.send_modify(|hints| *hints += 1);
                serve(&mut listener, own_process, &due, &hints).await.err()
            }
            Ok(Err(error)) => Some(error),
            Err(_) => Some(sqlx::Error::PoolTimedOut),
        };
        if let Some(error) = lost {
            tracing::info!(error = %error, "wake-ups by other processes are off until the next attempt; polling goes on");
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE[1]);
    }
}

/// Listens; says which process of the server it listens with.
async fn listen(connector: &Connector) -> Result<(PgListener, u32), sqlx::Error> {
    // The driver's listener wants a pool.
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_lazy_with(connector.driver_options().clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.eager_reconnect(false);
    // Nothing is written, so no notification has to wait for a disk or a standby.
    let session = sqlx::raw_sql("SET synchronous_commit = off; SELECT pg_backend_pid()");
    let row = session.fetch_one(&mut listener).await?;
    let own_process = row.try_get::<i32, _>(0)?.cast_unsigned();
    listener.listen(CHANNEL).await?;
    Ok((listener, own_process))
}

/// Until the connection is lost.
async fn serve(
    listener: &mut PgListener,
    own_process: u32,
    due: &Notify,
    hints: &watch::Sender<u64>,
) -> Result<(), sqlx::Error> {
    loop {
        tokio::select! {
            heard = listener.try_recv() => match heard? {
                Some(heard) if heard.process_id() == own_process => {}
                Some(_) => hints.send_modify(|hints| *hints += 1),
                None => return Ok(()),
            },
            () = due.notified() => say(listener, "NOTIFY passline_head").await?,
            () = sleep(SILENCE_MAX) => say(listener, "SELECT 1").await?,
        }
    }
}

async fn say(listener: &mut PgListener, statement: &'static str) -> Result<(), sqlx::Error> {
    match timeout(ANSWER_TIMEOUT, listener.execute(statement)).await {
        Ok(said) => said.map(|_| ()),
        Err(_) => Err(sqlx::Error::PoolTimedOut),
    }
}
