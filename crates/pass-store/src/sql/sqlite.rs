//! What only SQLite needs: connecting, pragmas, checkpoints, and what its errors mean.
//!
//! Durability rests on WAL with `synchronous=FULL`, set through connect options since pragmas are per
//! connection, and asserted at start. There is one writer connection, whose transactions start with
//! `BEGIN IMMEDIATE`, and a few readers that cannot write. Checkpoints run on a connection of their own,
//! off the write path (see [`checkpoint`]). Only local file systems: WAL needs shared memory.

mod backup;
mod checkpoint;
mod error;
mod outbox;

use std::fs::{DirBuilder, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sea_orm::sqlx::Connection;
use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait, TryGetable,
};
use tokio::sync::watch;

pub(super) use self::backup::backup;
pub(super) use self::checkpoint::Checkpointer;
pub(super) use self::error::meaning;
pub(super) use self::outbox::{Inserts, Outbox};
use super::rows::{Failure, bits, get};
use super::spools::random;
use crate::contract::Error;

/// The first version without the WAL-reset race, which could lose committed data.
const VERSION_MIN: (u32, u32, u32) = (3, 51, 3);
/// Pause before a connection that found the file locked is tried again.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How to open a store on SQLite.
#[derive(Clone, Debug)]
pub struct SqliteOptions {
    /// The database file, on a local file system. Made with its directory if it is not there.
    pub path: PathBuf,
    /// Whether to bring the schema up to date; otherwise an older one is [`Error::NotMigrated`].
    pub migrate: bool,
    /// Gets the number of migrations to apply once that begins, which can take long.
    pub migrating: Option<watch::Sender<usize>>,
    /// Most reader connections, 1 to 64.
    pub readers_max: u32,
    /// How long a statement waits for another process' lock.
    pub busy_timeout: Duration,
    /// How long a call waits for a free connection.
    pub acquire_timeout: Duration,
    /// A checkpoint runs after about this many bytes were written.
    pub checkpoint_bytes: u64,
    /// Above this, the write-ahead log is emptied even if writers have to wait a moment for it.
    pub wal_bytes_max: u64,
    /// Page cache of the writer, in bytes; each reader has a quarter of it.
    pub cache_bytes: u64,
    /// The file is checked at start unless it is larger than this: the check reads all of it.
    pub check_bytes_max: u64,
}

impl SqliteOptions {
    /// The defaults for a file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            migrate: true,
            migrating: None,
            readers_max: 4,
            busy_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(10),
            checkpoint_bytes: 64 << 20,
            wal_bytes_max: 256 << 20,
            cache_bytes: 64 << 20,
            check_bytes_max: 256 << 20,
        }
    }
}

/// Connections to one file.
#[derive(Debug)]
pub(super) struct Connections {
    pub(super) writer: DatabaseConnection,
    pub(super) checkpointer: Checkpointer,
    pub(super) inserts: Inserts,
}

/// Opens a file, checks that nothing about it breaks a guarantee, and brings its schema up to date. The
/// second connection is the readers'.
pub(super) async fn open(
    options: &SqliteOptions,
) -> Result<(Connections, DatabaseConnection), Error> {
    create(&options.path)?;
    let writer = connect(options, Role::Writer).await.map_err(explain)?;
    assert_fit(&writer, options).await?;
    migrate(&writer, options).await?;
    let readers = connect(options, Role::Reader).await.map_err(explain)?;
    let checkpoints = connect(options, Role::Checkpoints).await.map_err(explain)?;
    let checkpointer =
        Checkpointer::start(checkpoints, options.checkpoint_bytes, options.wal_bytes_max);
    let connections = Connections {
        writer,
        checkpointer,
        inserts: Inserts::new(),
    };
    Ok((connections, readers))
}

/// An error while opening, in the contract's words.
fn explain(error: DbErr) -> Error {
    meaning(&error).error
}

/// Makes the directory (0700) and the file (0600) if they are not there. SQLite gives the files beside it
/// the same mode.
fn create(path: &Path) -> Result<(), Error> {
    let unfit = |what: &str, error: &std::io::Error| {
        Error::Unfit(format!(
            "{what} {}: {error}; make it writable for this user",
            path.display()
        ))
    };
    if let Some(directory) = path
        .parent()
        .filter(|directory| !directory.as_os_str().is_empty())
    {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory);
        made.map_err(|error| unfit("the directory of", &error))?;
    }
    match OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
    {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(unfit("the file", &error)),
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Writer,
    Reader,
    Checkpoints,
}

async fn connect(options: &SqliteOptions, role: Role) -> Result<DatabaseConnection, DbErr> {
    // The path goes through `filename`, so it may hold any character; the URL only names the driver.
    let mut connect = ConnectOptions::new("sqlite::memory:");
    let connections = if role == Role::Reader {
        options.readers_max.clamp(1, 64)
    } else {
        1
    };
    connect
        .max_connections(connections)
        .min_connections(1)
        .acquire_timeout(options.acquire_timeout)
        .idle_timeout(None)
        .max_lifetime(None)
        // A ping per call costs a round trip and tells nothing about a file.
        .test_before_acquire(false)
        .sqlx_logging(false)
        .record_stmt_in_spans(false);
    let busy_timeout = options.busy_timeout;
    let options = options.clone();
    connect.map_sqlx_sqlite_opts(move |_| connect_options(&options, role));
    // After some errors (a commit on a full disk, for one) SQLite has rolled back by itself, so the driver's
    // ROLLBACK fails and it goes on counting a transaction. From then on it would begin savepoints, and a
    // rolled back savepoint leaves a transaction open in which later commits are lost. Such a connection is
    // closed, and the pool opens another.
    connect.map_sqlx_sqlite_pool_opts(|pool| {
        pool.after_release(|connection, _| {
            Box::pin(async move {
                if !connection.is_in_transaction() {
                    return Ok(true);
                }
                // A rollback that is under way is over after the ping.
                connection.ping().await?;
                Ok(!connection.is_in_transaction())
            })
        })
    });
    // Turning a new file to WAL does not wait for another process that does the same: SQLite says BUSY at
    // once, whatever the busy timeout.
    let began = Instant::now();
    loop {
        match Database::connect(connect.clone()).await {
            Err(error) if error::is_busy(&error) && began.elapsed() < busy_timeout => {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
            connected => return connected,
        }
    }
}

fn connect_options(options: &SqliteOptions, role: Role) -> SqliteConnectOptions {
    // Emptying the log holds writers up while it waits for readers: not for long.
    let busy_timeout = if role == Role::Checkpoints {
        Duration::from_millis(200)
    } else {
        options.busy_timeout
    };
    let cache_bytes = if role == Role::Writer {
        options.cache_bytes
    } else {
        options.cache_bytes / 4
    };
    let connect = SqliteConnectOptions::new()
        .filename(&options.path)
        .create_if_missing(false)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(busy_timeout)
        .foreign_keys(false)
        .pragma("wal_autocheckpoint", "0")
        .pragma("temp_store", "MEMORY")
        .pragma(
            "cache_size",
            format!("-{}", (cache_bytes / 1_024).max(1_024)),
        )
        .row_buffer_size(1_024);
    match role {
        Role::Reader => connect.pragma("query_only", "ON"),
        Role::Writer | Role::Checkpoints => connect,
    }
}

async fn pragma<T: TryGetable>(connection: &DatabaseConnection, sql: &str) -> Result<T, Error> {
    let row = connection
        .query_one_raw(Statement::from_string(DbBackend::Sqlite, sql))
        .await
        .map_err(explain)?
        .ok_or_else(|| Error::Unfit(format!("{sql} gives no row")))?;
    get(&row, 0).map_err(|failure| match failure {
        Failure::Database(error) => explain(error),
        Failure::Store(error) => error,
    })
}

async fn assert_fit(connection: &DatabaseConnection, options: &SqliteOptions) -> Result<(), Error> {
    version_fit(&pragma::<String>(connection, "SELECT sqlite_version()").await?)?;
    let journal_mode: String = pragma(connection, "PRAGMA journal_mode").await?;
    if journal_mode != "wal" {
        return Err(Error::Unfit(format!(
            "journal_mode is {journal_mode}, not wal: put {} on a local file system",
            options.path.display()
        )));
    }
    let synchronous: i64 = pragma(connection, "PRAGMA synchronous").await?;
    if synchronous != 2 {
        return Err(Error::Unfit(format!(
            "synchronous is {synchronous}, not 2 (FULL): commits would not survive a power cut"
        )));
    }
    let pages: i64 = pragma(connection, "PRAGMA page_count").await?;
    let page_bytes: i64 = pragma(connection, "PRAGMA page_size").await?;
    let file_bytes = u64::try_from(pages.saturating_mul(page_bytes)).unwrap_or(u64::MAX);
    if file_bytes > options.check_bytes_max {
        tracing::info!(
            file_bytes,
            check_bytes_max = options.check_bytes_max,
            "the database file is too large to be checked at start"
        );
        return Ok(());
    }
    let check: String = pragma(connection, "PRAGMA quick_check(1)").await?;
    if check != "ok" {
        return Err(Error::Unfit(format!(
            "quick_check: {check}; restore the file from a backup"
        )));
    }
    Ok(())
}

fn version_fit(version: &str) -> Result<(), Error> {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut part = || parts.next().unwrap_or(0);
    let (major, minor, patch) = VERSION_MIN;
    if (part(), part(), part()) < VERSION_MIN {
        return Err(Error::Unfit(format!(
            "SQLite is {version}; build with {major}.{minor}.{patch} or later"
        )));
    }
    Ok(())
}

/// In one transaction that is the only one from its start on: of several processes that start on a new file
/// one makes the schema, and the others find it made.
async fn migrate(connection: &DatabaseConnection, options: &SqliteOptions) -> Result<(), Error> {
    let unfit = |error: DbErr| match &error {
        DbErr::Custom(text) | DbErr::Migration(text) => Error::Unfit(format!(
            "the schema: {text}; run the release that made it, or a newer one"
        )),
        _ => explain(error),
    };
    let lacking = pass_migration::pending(connection).await.map_err(unfit)?;
    if lacking > 0 {
        if !options.migrate {
            return Err(Error::NotMigrated { lacking });
        }
        if let Some(migrating) = &options.migrating {
            migrating.send_replace(lacking);
        }
    }
    let options = TransactionOptions {
        sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
        ..TransactionOptions::default()
    };
    let transaction = connection.begin_with_options(options).await;
    let transaction = transaction.map_err(explain)?;
    if lacking > 0 {
        pass_migration::up(&transaction).await.map_err(unfit)?;
    }
    let head = Statement::from_sql_and_values(
        DbBackend::Sqlite,
        "INSERT INTO log_head VALUES (1, ?, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (id) DO NOTHING",
        [bits(random())],
    );
    transaction.execute_raw(head).await.map_err(explain)?;
    transaction.commit().await.map_err(explain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_with_the_wal_reset_race_are_unfit() {
        for fit in ["3.51.3", "3.51.10", "3.52.1", "3.54.1", "4.0.0"] {
            assert!(version_fit(fit).is_ok(), "{fit}");
        }
        for unfit in ["3.51.2", "3.50.9", "3.7.0", "2.99.99", "", "x"] {
            assert!(
                matches!(version_fit(unfit), Err(Error::Unfit(_))),
                "{unfit}"
            );
        }
    }

    #[tokio::test]
    async fn every_connection_syncs_fully_and_leaves_checkpoints_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let options = SqliteOptions::new(directory.path().join("log.db"));
        create(&options.path).expect("created");
        for role in [Role::Writer, Role::Reader, Role::Checkpoints] {
            let connection = connect(&options, role).await.expect("connected");
            let synchronous: i64 = pragma(&connection, "PRAGMA synchronous")
                .await
                .expect("read");
            let journal: String = pragma(&connection, "PRAGMA journal_mode")
                .await
                .expect("read");
            let autocheckpoint: i64 = pragma(&connection, "PRAGMA wal_autocheckpoint")
                .await
                .expect("read");
            let query_only: i64 = pragma(&connection, "PRAGMA query_only")
                .await
                .expect("read");
            assert_eq!(
                (synchronous, journal.as_str(), autocheckpoint),
                (2, "wal", 0),
                "{role:?}"
            );
            assert_eq!(query_only == 1, role == Role::Reader, "{role:?}");
            connection.close().await.expect("closed");
        }
    }
}
