//! [`SqlStore`]: the log in a relational database, with sea-orm.
//!
//! Everything here is written for SQLite and PostgreSQL alike; what only one of them needs stands in a
//! module of its name. The write path and the hot reads use statements whose texts are made once
//! (`statements`); other reads use entities. `append` is the heart: it loads what
//! `plan` asks for and writes what that decides.

mod append;
mod connection;
mod deliveries;
mod entity;
mod events;
mod passes;
mod postgres;
mod quarantine;
mod rows;
mod spools;
mod sqlite;
mod statements;
#[cfg(test)]
mod tests;
mod texts;

use std::path::Path;
use std::sync::Arc;

use pass_domain::Timestamp;
use pass_domain::cursor::Cursor;
use pass_domain::delivery::Delivery;
use pass_domain::event::{Event, Position};
use pass_domain::ids::{DeliveryId, EventId, PassKey, SourceUid};
use sea_orm::sea_query::Value;
use sea_orm::{
    ConnectionTrait, DbBackend, DbErr, SqliteTransactionMode, Statement, TransactionOptions,
    TransactionTrait,
};
use tokio::sync::watch;

use self::append::head_row_from;
use self::connection::{Readers, Transaction};
use self::rows::{Failure, Meaning};
use self::statements::Statements;
use crate::contract::{
    AppendPart, Appended, Books, Connections, DeliveryRecord, Error, EventParent, Head, LogInfo,
    LookupKey, Page, PassOrder, PassRecord, PassStore, Replayed, Scope, SpoolHello, SpoolOpened,
};
use crate::plan::HeadRow;

pub use self::postgres::PostgresOptions;
pub use self::sqlite::SqliteOptions;

/// Most rows that one call examines, whatever it asks for.
const ROWS_MAX: u32 = 10_000;

/// A store in a relational database.
///
/// A call that is dropped before it ends is rolled back, or has committed; either way doing it again is
/// harmless.
#[derive(Debug)]
pub struct SqlStore {
    database: Database,
    readers: Readers,
    statements: Statements,
    fatal: watch::Sender<Option<String>>,
}

/// What only one kind of database has.
#[derive(Debug)]
enum Database {
    Sqlite(Box<sqlite::Connections>),
    Postgres(postgres::Server),
}

impl SqlStore {
    /// Opens a store on SQLite. Needs a tokio runtime, on which it runs its checkpoints.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the file, the library or the schema would break a guarantee; it names the fix.
    /// [`Error::Unavailable`] if the file is locked.
    pub async fn open(options: SqliteOptions) -> Result<Self, Error> {
        let (connections, readers) = sqlite::open(&options).await?;
        Ok(Self {
            database: Database::Sqlite(Box::new(connections)),
            readers: Readers::Sqlite(readers),
            statements: Statements::new(DbBackend::Sqlite),
            fatal: watch::Sender::new(None),
        })
    }

    /// Opens a store on PostgreSQL. Needs a tokio runtime, on which it listens to other processes' commits.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the server, its settings or the schema would break a guarantee; it names the fix.
    /// [`Error::NotMigrated`] if the schema is older and may not be migrated. [`Error::Unavailable`] if the
    /// server cannot be reached, or is a standby.
    pub async fn open_postgres(options: PostgresOptions) -> Result<Self, Error> {
        let (server, readers) = postgres::open(options).await?;
        Ok(Self {
            database: Database::Postgres(server),
            readers: Readers::Postgres(readers),
            statements: Statements::new(DbBackend::Postgres),
            fatal: watch::Sender::new(None),
        })
    }

    /// Makes a consistent copy of the database in a new file, while it is in use, and makes it durable.
    ///
    /// # Errors
    /// [`Error::Unfit`] if the file exists or cannot be made, and on PostgreSQL, which has tools of its own
    /// for this; otherwise what the database says. No file is left behind.
    pub async fn backup(&self, to: &Path) -> Result<(), Error> {
        match &self.database {
            Database::Sqlite(connections) => sqlite::backup(connections, to).await,
            Database::Postgres(_) => Err(Error::Unfit(
                "backup: this is PostgreSQL; use pg_basebackup with archived WAL, or pg_dump"
                    .to_owned(),
            )),
        }
    }

    /// Tells when the process must not go on with this database (an IO error, a damaged file), and why. Then
    /// every call that writes fails, and the service should exit, so that a new process reads what is
    /// really there.
    #[must_use]
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.fatal.subscribe()
    }

    fn backend(&self) -> DbBackend {
        self.readers.get_database_backend()
    }

    fn readers(&self) -> &Readers {
        &self.readers
    }

    fn name(&self) -> &'static str {
        match self.database {
            Database::Sqlite(_) => "sqlite",
            Database::Postgres(_) => "postgresql",
        }
    }

    #[cfg(test)]
    fn sqlite_writer(&self) -> &sea_orm::DatabaseConnection {
        match &self.database {
            Database::Sqlite(connections) => &connections.writer,
            Database::Postgres(_) => unreachable!("for tests of SQLite"),
        }
    }

    /// Begins a writing transaction and locks the log's head, so that commit order is position order. There
    /// is one writer connection, so callers queue here.
    async fn begin(&self) -> Result<(Transaction, HeadRow), Failure> {
        if let Some(reason) = &*self.fatal.borrow() {
            return Err(Error::Unavailable(format!("stopped after: {reason}")).into());
        }
        match &self.database {
            Database::Sqlite(connections) => {
                let options = TransactionOptions {
                    sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
                    ..TransactionOptions::default()
                };
                let transaction = connections.writer.begin_with_options(options).await?;
                let lock = Statement::from_string(self.backend(), &self.statements.head_lock);
                let row = transaction
                    .query_one_raw(lock)
                    .await?
                    .ok_or_else(|| Error::Corrupt("log_head has no row".to_owned()))?;
                let head = head_row_from(&row)?;
                Ok((Transaction::Sqlite(transaction), head))
            }
            Database::Postgres(server) => {
                let (transaction, head) = server.writer.begin().await?;
                Ok((Transaction::Postgres(Box::new(transaction)), head))
            }
        }
    }

    /// Commits; `head` is the log's end after it. Whether a commit that fails was done is not known.
    async fn commit(
        &self,
        transaction: Transaction,
        head: &HeadRow,
        written_bytes: u64,
    ) -> Result<(), Failure> {
        match (&self.database, transaction) {
            (Database::Sqlite(connections), Transaction::Sqlite(transaction)) => {
                if let Err(error) = transaction.commit().await {
                    self.classify(&error);
                    return Err(Error::OutcomeUnknown(error.to_string()).into());
                }
                connections.checkpointer.written(written_bytes);
            }
            (Database::Postgres(server), Transaction::Postgres(transaction)) => {
                let before = transaction.locked();
                transaction.commit().await?;
                let after = postgres::Mark::from(head);
                server.seen.head(after);
                if let Some(wakeups) = &server.wakeups
                    && before != after
                {
                    wakeups.committed();
                }
            }
            _ => unreachable!("a transaction is of its store's kind"),
        }
        Ok(())
    }

    /// What was seen of the log, where that is kept.
    fn seen(&self) -> Option<postgres::Mark> {
        match &self.database {
            Database::Sqlite(_) => None,
            Database::Postgres(server) => server.seen.mark(),
        }
    }

    /// Takes note of an event that was read after `before` had been seen.
    fn event_seen(&self, before: Option<postgres::Mark>, position: u64, id: [u8; 16]) {
        if let Database::Postgres(server) = &self.database
            && let Some(before) = before
        {
            let digest = Cursor::digest_of(&EventId::from_bytes(id));
            server.seen.event(before.epoch, position, digest);
        }
    }

    /// What an error of the database means; raises the flag of [`SqlStore::fatal`] if need be.
    fn classify(&self, error: &DbErr) -> Error {
        let meaning = match self.database {
            Database::Sqlite(_) => sqlite::meaning(error),
            Database::Postgres(_) => Meaning {
                error: postgres::meaning(error),
                fatal: false,
            },
        };
        // Two transactions that do not wait for each other may meet in a unique key.
        #[cfg(feature = "planted-bugs")]
        let meaning = match (&self.database, meaning.error) {
            (Database::Postgres(server), Error::Refused(text))
                if server.writer.planted.sequence_positions =>
            {
                Meaning {
                    error: Error::Unavailable(text),
                    fatal: false,
                }
            }
            (_, error) => Meaning { error, ..meaning },
        };
        if meaning.fatal {
            tracing::error!(error = %error, "the database cannot be trusted any more; stop and start anew");
            self.fatal.send_if_modified(|reason| {
                let first = reason.is_none();
                reason.get_or_insert_with(|| error.to_string());
                first
            });
        }
        meaning.error
    }

    fn explained<T>(&self, result: Result<T, Failure>) -> Result<T, Error> {
        result.map_err(|failure| match failure {
            Failure::Database(error) => self.classify(&error),
            Failure::Store(error) => error,
        })
    }
}

/// A row count within bounds.
fn bounded(rows_max: u32) -> u64 {
    u64::from(rows_max.clamp(1, ROWS_MAX))
}

/// A row count within bounds, as a value.
fn limit(rows_max: u32) -> Value {
    rows::number(bounded(rows_max))
}

/// Where the next page starts: at the last row, if the page is full.
fn next<R>(
    rows: &[R],
    rows_max: u32,
    place: impl Fn(&R) -> Result<u64, Failure>,
) -> Result<Option<u64>, Failure> {
    match rows.last() {
        Some(last) if rows.len() as u64 >= bounded(rows_max) => place(last).map(Some),
        _ => Ok(None),
    }
}

#[async_trait::async_trait]
impl PassStore for SqlStore {
    async fn spool_open(&self, hello: &SpoolHello) -> Result<SpoolOpened, Error> {
        self.explained(self.spool_open_inner(hello).await)
    }

    async fn append(&self, parts: &[AppendPart], now: Timestamp) -> Result<Appended, Error> {
        self.explained(self.append_inner(parts, now).await)
    }

    async fn delivery_replay(
        &self,
        delivery: &Delivery,
        now: Timestamp,
    ) -> Result<Replayed, Error> {
        self.explained(self.delivery_replay_inner(delivery, now).await)
    }

    async fn delivery_discard(
        &self,
        id: DeliveryId,
        reason: &str,
        now: Timestamp,
    ) -> Result<Option<DeliveryRecord>, Error> {
        self.explained(self.delivery_discard_inner(id, reason, now).await)
    }

    async fn epoch_rotate(&self) -> Result<Head, Error> {
        self.explained(self.epoch_rotate_inner().await)
    }

    async fn epoch_leave(&self, lost: Cursor) -> Result<Head, Error> {
        self.explained(self.epoch_leave_inner(lost).await)
    }

    async fn head(&self) -> Result<Head, Error> {
        self.explained(self.head_inner().await)
    }

    fn hints(&self) -> Option<watch::Receiver<u64>> {
        match &self.database {
            Database::Sqlite(_) => None,
            Database::Postgres(server) => server.wakeups.as_ref().map(postgres::Wakeups::hints),
        }
    }

    async fn log_info(&self) -> Result<LogInfo, Error> {
        self.explained(self.log_info_inner().await)
    }

    async fn books(&self) -> Result<(Head, Books), Error> {
        self.explained(self.books_inner().await)
    }

    fn connections(&self) -> Connections {
        self.readers.connections()
    }

    async fn digest_at(&self, position: Position) -> Result<Option<u64>, Error> {
        self.explained(self.digest_at_inner(position).await)
    }

    async fn position_before_time(&self, record_time: Timestamp) -> Result<Position, Error> {
        self.explained(self.position_before_time_inner(record_time).await)
    }

    async fn events_after(
        &self,
        scope: &Scope,
        after: Position,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Error> {
        self.explained(self.events_after_inner(scope, after, rows_max).await)
    }

    async fn event_find(&self, scope: &Scope, id: EventId) -> Result<Option<Arc<Event>>, Error> {
        self.explained(self.event_find_inner(scope, id).await)
    }

    async fn events_list(
        &self,
        scope: &Scope,
        parent: &EventParent,
        descending: bool,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Error> {
        self.explained(
            self.events_list_inner(scope, parent, descending, from, rows_max)
                .await,
        )
    }

    async fn passes_find(
        &self,
        scope: &Scope,
        keys: &[PassKey],
    ) -> Result<Vec<Option<PassRecord>>, Error> {
        self.explained(self.passes_find_inner(scope, keys).await)
    }

    async fn passes_list(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        order: PassOrder,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<PassRecord>, Error> {
        self.explained(
            self.passes_list_inner(scope, source, order, from, rows_max)
                .await,
        )
    }

    async fn passes_lookup(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        key: &LookupKey,
        rows_max: u32,
    ) -> Result<Vec<PassRecord>, Error> {
        self.explained(self.passes_lookup_inner(scope, source, key, rows_max).await)
    }

    async fn delivery_find(
        &self,
        scope: &Scope,
        id: DeliveryId,
        with_body: bool,
    ) -> Result<Option<DeliveryRecord>, Error> {
        self.explained(self.delivery_find_inner(scope, id, with_body).await)
    }

    async fn deliveries_list(
        &self,
        scope: &Scope,
        quarantine_open: bool,
        from: u64,
        rows_max: u32,
    ) -> Result<Page<DeliveryRecord>, Error> {
        self.explained(
            self.deliveries_list_inner(scope, quarantine_open, from, rows_max)
                .await,
        )
    }

    async fn close(&self) {
        match (&self.database, &self.readers) {
            (Database::Sqlite(connections), Readers::Sqlite(readers)) => {
                connections.checkpointer.close().await;
                // The writer last: the connection that closes last empties the write-ahead log.
                for connection in [readers, &connections.writer] {
                    if let Err(error) = connection.close_by_ref().await {
                        tracing::warn!(error = %error, "a connection did not close");
                    }
                }
            }
            (Database::Postgres(server), Readers::Postgres(readers)) => {
                readers.close().await;
                server.close().await;
            }
            _ => unreachable!("readers are of their store's kind"),
        }
    }
}
