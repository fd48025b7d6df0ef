//! Moves the write-ahead log into the file, on a connection and a task of its own.
//!
//! A passive checkpoint waits for nobody and holds nobody up; under steady writing it may never reach the
//! end of the log, which then grows. Past a bound the log is emptied the hard way: writers wait while the
//! rest is copied (little, since a passive one went before) and the log starts over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Bytes of a page; the log's frames are about as long.
const PAGE_BYTES: u64 = 4_096;

#[derive(Debug)]
struct Pace {
    written_bytes: AtomicU64,
    checkpoint_bytes: u64,
    due: Notify,
}

/// The task, which ends with its handle.
#[derive(Debug)]
pub(in crate::sql) struct Checkpointer {
    pace: Arc<Pace>,
    connection: DatabaseConnection,
    task: JoinHandle<()>,
}

impl Checkpointer {
    pub(super) fn start(
        connection: DatabaseConnection,
        checkpoint_bytes: u64,
        wal_bytes_max: u64,
    ) -> Self {
        let pace = Arc::new(Pace {
            written_bytes: AtomicU64::new(0),
            checkpoint_bytes,
            due: Notify::new(),
        });
        let task = tokio::spawn(run(connection.clone(), Arc::clone(&pace), wal_bytes_max));
        Self {
            pace,
            connection,
            task,
        }
    }

    /// Takes note of a commit; wakes the task if enough was written since the last checkpoint.
    pub(in crate::sql) fn written(&self, bytes: u64) {
        let before = self.pace.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes >= self.pace.checkpoint_bytes {
            self.pace.due.notify_one();
        }
    }

    /// The connection that is not on the path of any call.
    pub(super) fn connection(&self) -> &DatabaseConnection {
        &self.connection
    }

    /// Ends the task and closes its connection.
    pub(in crate::sql) async fn close(&self) {
        self.task.abort();
        if let Err(error) = self.connection.close_by_ref().await {
            tracing::warn!(error = %error, "the checkpoint connection did not close");
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(connection: DatabaseConnection, pace: Arc<Pace>, wal_bytes_max: u64) {
    loop {
        pace.due.notified().await;
        pace.written_bytes.store(0, Ordering::Relaxed);
        let wal_bytes = match checkpoint(&connection, "PASSIVE").await {
            Ok(wal_bytes) => wal_bytes,
            Err(error) => {
                // Writing goes on and will say so itself if the file is bad.
                tracing::warn!(error = %error, "a checkpoint failed; the write-ahead log grows until one succeeds");
                continue;
            }
        };
        if wal_bytes > wal_bytes_max
            && let Err(error) = checkpoint(&connection, "TRUNCATE").await
        {
            tracing::warn!(error = %error, wal_bytes, "the write-ahead log could not be emptied");
        }
    }
}

/// Runs a checkpoint; returns how long the log is.
async fn checkpoint(connection: &DatabaseConnection, mode: &str) -> Result<u64, DbErr> {
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let row = connection
        .query_one_raw(Statement::from_string(DbBackend::Sqlite, sql))
        .await?;
    let frames: i64 = row.map_or(Ok(0), |row| row.try_get_by_index(1))?;
    Ok(u64::try_from(frames).unwrap_or(0) * PAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::{SqliteOptions, open};

    #[tokio::test]
    async fn a_log_over_its_bound_is_emptied_off_the_write_path() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("log.db");
        let (connections, _readers) = open(&SqliteOptions {
            checkpoint_bytes: 1,
            wal_bytes_max: 1,
            ..SqliteOptions::new(&path)
        })
        .await
        .expect("opened");
        let wal = directory.path().join("log.db-wal");
        assert!(
            wal.metadata().expect("a log").len() > 0,
            "migrations are still in the log"
        );
        connections.checkpointer.written(1);
        let deadline = Instant::now() + Duration::from_secs(10);
        while wal.metadata().expect("a log").len() > 0 {
            assert!(
                Instant::now() < deadline,
                "the log still has {} bytes",
                wal.metadata().expect("a log").len()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        connections.checkpointer.close().await;
    }
}
