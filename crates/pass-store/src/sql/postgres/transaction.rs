//! The writer: one connection, lent to one transaction at a time.
//!
//! A transaction takes the connection out of its place and puts it back when the server has answered COMMIT
//! or ROLLBACK. Whatever else happens (an error, a time-out, a future that is dropped between sending and
//! receiving) the connection is closed, which rolls back, and the next transaction makes a new one. So no
//! connection is ever used about which this side and the server may disagree. In particular a COMMIT is never
//! sent after a statement has failed: PostgreSQL would answer it with a ROLLBACK that the driver takes for
//! success.

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnection, PgQueryResult, PgRow};
use sea_orm::sqlx::{self, Row};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, Statement};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

use super::connect::{Connector, DURABLE_COLUMNS, not_durable};
use super::error::is_lost_connection;
use super::seen::{Mark, Seen};
use super::statement::{self, ANSWER_GRACE, Bound, bound, timed_out};
use crate::contract::Error;
use crate::plan::HeadRow;
use crate::sql::append::head_row_from;
use crate::sql::rows::Failure;
use crate::sql::spools::random;
use crate::sql::statements::{HEAD_COLUMNS, HEAD_COLUMNS_COUNT};
use pass_domain::cursor::Cursor;
use pass_domain::ids::EventId;

/// Where the connection waits between transactions.
type Place = Option<PgConnection>;

/// Begins writing transactions.
#[derive(Debug)]
pub(in crate::sql) struct Writer {
    connector: Connector,
    place: Arc<Mutex<Place>>,
    seen: Arc<Seen>,
    begin_text: [String; 2],
    acquire_timeout: Duration,
    lock_answer_timeout: Duration,
    answer_timeout: Duration,
    commit_timeout: Duration,
    #[cfg(feature = "planted-bugs")]
    pub(in crate::sql) planted: super::planted::Planted,
}

/// A writing transaction that holds the log's head. Dropped, its connection is closed.
#[derive(Debug)]
pub(in crate::sql) struct Transaction {
    place: OwnedMutexGuard<Place>,
    /// `None` while a statement runs and after one failed.
    connection: Mutex<Option<PgConnection>>,
    locked: Mark,
    left_epoch: bool,
    answer_timeout: Duration,
    commit_timeout: Duration,
}

impl Writer {
    pub(super) fn new(connector: Connector, first: PgConnection, seen: Arc<Seen>) -> Self {
        let options = connector.options();
        let wait = options.statement_timeout.max(options.lock_timeout);
        Self {
            place: Arc::new(Mutex::new(Some(first))),
            seen,
            begin_text: begin_text(&connector),
            acquire_timeout: options.acquire_timeout,
            lock_answer_timeout: options.lock_timeout + ANSWER_GRACE,
            answer_timeout: wait + ANSWER_GRACE,
            commit_timeout: options.commit_timeout,
            #[cfg(feature = "planted-bugs")]
            planted: super::planted::Planted::of(&connector),
            connector,
        }
    }

    /// Begins a transaction with the lock on the log's head, in one round trip, and looks whether the log holds
    /// what was seen of it. If not, the database went back in time, and the log gets a new epoch first. The
    /// settings on which durability rests are looked at each time: a server can be told others at any moment.
    pub(in crate::sql) async fn begin(&self) -> Result<(Transaction, HeadRow), Failure> {
        let waiting = Arc::clone(&self.place).lock_owned();
        let Ok(mut place) = timeout(self.acquire_timeout, waiting).await else {
            let text = "other transactions held the writer for too long";
            return Err(Error::Unavailable(text.to_owned()).into());
        };
        let mut left_epoch = false;
        loop {
            let (connection, fresh) = match place.take() {
                Some(connection) => (connection, false),
                None => (self.connector.connect().await?, true),
            };
            let mut transaction = Transaction {
                place,
                connection: Mutex::new(Some(connection)),
                locked: Mark {
                    epoch: 0,
                    position: 0,
                    digest: 0,
                },
                left_epoch,
                // Waiting for the lock is most of what can take long here.
                answer_timeout: self.lock_answer_timeout,
                commit_timeout: self.commit_timeout,
            };
            let seen = self.seen.mark();
            let sought = seen.map_or(0, |seen| seen.position);
            let text = format!("{}{sought}{}", self.begin_text[0], self.begin_text[1]);
            let rows = match transaction.text(text).await {
                Ok(rows) => rows,
                // It was lost while nobody used it: nothing was begun.
                Err(error) if !fresh && is_lost_connection(&error) => {
                    place = transaction.place;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let row = rows
                .into_iter()
                .next()
                .ok_or_else(|| Error::Corrupt("log_head has no row".to_owned()))?;
            transaction.answer_timeout = self.answer_timeout;
            if let Some(text) = not_durable(&row, HEAD_COLUMNS_COUNT + 1)? {
                transaction.rollback().await;
                return Err(Error::Unavailable(text).into());
            }
            let there = found_digest(&row, HEAD_COLUMNS_COUNT)?;
            let head = head_row_from(&QueryResult::from(row))?;
            transaction.locked = Mark::from(&head);
            #[cfg(feature = "planted-bugs")]
            if self.planted.sequence_positions {
                return Ok((transaction, head));
            }
            if !seen.is_some_and(|seen| seen.is_gone(transaction.locked, there)) {
                return Ok((transaction, head));
            }
            place = transaction.change_epoch(&head, sought).await?;
            left_epoch = true;
        }
    }

    /// Closes the connection, once no transaction has it.
    pub(super) async fn close(&self) {
        let connection = self.place.lock().await.take();
        if let Some(connection) = connection
            && let Err(error) = sqlx::Connection::close(connection).await
        {
            tracing::debug!(error = %error, "the writer's connection did not close well");
        }
    }
}

/// Everything that a writing transaction needs is set in it, so that it holds through a proxy too, and the
/// lock is the first statement with a snapshot: whatever comes after it sees what was committed before.
/// Sequential scans and just-in-time compilation are off since every statement here has its index, and
/// statistics of a log that grew since they were made must not talk the planner out of it. `COMMIT` in capitals
/// stands in no other text than that of the commit, for tests that cut connections there.
fn begin_text(connector: &Connector) -> [String; 2] {
    let options = connector.options();
    let lock = "FOR UPDATE";
    #[cfg(feature = "planted-bugs")]
    let lock = if options.planted_sequence_positions {
        ""
    } else {
        lock
    };
    let before = format!(
        "BEGIN ISOLATION LEVEL read committed READ WRITE; \
         SET LOCAL statement_timeout = {}; \
         SET LOCAL lock_timeout = {}; \
         SET LOCAL idle_in_transaction_session_timeout = {}; \
         SET LOCAL enable_seqscan = {}; \
         SET LOCAL jit = off; \
         SELECT {}, (SELECT event_id FROM event WHERE position = ",
        millis(options.statement_timeout),
        millis(options.lock_timeout),
        millis(options.idle_in_transaction_timeout),
        connector.sequential_scans(),
        HEAD_COLUMNS,
    );
    let after = format!("), {DURABLE_COLUMNS} FROM log_head WHERE id = 1 {lock}");
    [before, after]
}

/// A time-out in the server's unit. 0 would be none at all.
pub(super) fn millis(timeout: Duration) -> i64 {
    i64::from(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)).max(1)
}

impl Transaction {
    /// The end of the log when it was locked.
    pub(in crate::sql) fn locked(&self) -> Mark {
        self.locked
    }

    /// Whether the log got a new epoch when the transaction began.
    pub(in crate::sql) fn left_epoch(&self) -> bool {
        self.left_epoch
    }

    /// Gives the log a new epoch, and the connection's place back.
    async fn change_epoch(
        self,
        head: &HeadRow,
        seen_position: u64,
    ) -> Result<OwnedMutexGuard<Place>, Failure> {
        let mut epoch = random();
        while epoch == head.epoch {
            epoch = random();
        }
        let query = sqlx::query("UPDATE log_head SET epoch = $1 WHERE id = 1");
        self.execute(query.bind(epoch.cast_signed())).await?;
        tracing::error!(
            seen_position,
            found_position = head.position,
            old_epoch = head.epoch,
            new_epoch = epoch,
            "the database went back in time: the log has a new epoch, and the spools refill it"
        );
        self.commit().await
    }

    async fn taken(&self) -> Result<PgConnection, DbErr> {
        self.connection.lock().await.take().ok_or_else(|| {
            DbErr::Conn(sea_orm::RuntimeErr::Internal(
                "an earlier statement of the transaction failed".to_owned(),
            ))
        })
    }

    async fn rows(&self, query: Bound) -> Result<Vec<PgRow>, DbErr> {
        let mut connection = self.taken().await?;
        let answer = timeout(self.answer_timeout, statement::rows(&mut connection, query));
        let rows = answer.await.unwrap_or_else(|_| Err(timed_out("a query")))?;
        *self.connection.lock().await = Some(connection);
        Ok(rows)
    }

    /// Runs a statement.
    pub(super) async fn execute(&self, query: Bound) -> Result<PgQueryResult, DbErr> {
        let mut connection = self.taken().await?;
        let answer = timeout(
            self.answer_timeout,
            statement::execute(&mut connection, query),
        );
        let done = answer
            .await
            .unwrap_or_else(|_| Err(timed_out("a statement")))?;
        *self.connection.lock().await = Some(connection);
        Ok(done)
    }

    pub(super) async fn text(&self, text: String) -> Result<Vec<PgRow>, DbErr> {
        let mut connection = self.taken().await?;
        let answer = timeout(self.answer_timeout, statement::text(&mut connection, text));
        let rows = answer
            .await
            .unwrap_or_else(|_| Err(timed_out("a statement")))?;
        *self.connection.lock().await = Some(connection);
        Ok(rows)
    }

    /// Commits; gives the connection's place back. Anything but success leaves the outcome unknown, unless a
    /// statement had failed before.
    ///
    /// It may have to wait for a synchronous standby. The server's statement time-out does not cut that short
    /// (which would not undo the commit but report success): since PostgreSQL 11 it is disarmed before the
    /// commit itself. So the time-out for it is kept here. Somebody who cancels it by hand while it waits
    /// (`pg_cancel_backend`) makes PostgreSQL report success although no standby has it: don't.
    pub(in crate::sql) async fn commit(mut self) -> Result<OwnedMutexGuard<Place>, Failure> {
        let mut connection = self.taken().await?;
        let text = "COMMIT".to_owned();
        let answer = timeout(self.commit_timeout, statement::text(&mut connection, text));
        match answer.await {
            Ok(Ok(_)) => {
                *self.place = Some(connection);
                Ok(self.place)
            }
            Ok(Err(error)) => Err(Error::OutcomeUnknown(error.to_string()).into()),
            Err(_) => {
                let text = format!(
                    "the commit was not answered within {:?}",
                    self.commit_timeout
                );
                Err(Error::OutcomeUnknown(text).into())
            }
        }
    }

    /// Rolls back. If the server does not answer, closing the connection does it.
    pub(in crate::sql) async fn rollback(mut self) {
        let Ok(mut connection) = self.taken().await else {
            return;
        };
        let answer = timeout(
            self.answer_timeout,
            statement::text(&mut connection, "ROLLBACK".to_owned()),
        );
        match answer.await {
            Ok(Ok(_)) => *self.place = Some(connection),
            Ok(Err(error)) => {
                tracing::debug!(error = %error, "a rollback failed; its connection is closed");
            }
            Err(_) => tracing::debug!("a rollback was not answered; its connection is closed"),
        }
    }
}

/// The digest of the event whose id is in a row's column; `None` if there is none.
pub(super) fn found_digest(row: &PgRow, column: usize) -> Result<Option<u64>, Failure> {
    let id: Option<Vec<u8>> = row.try_get(column).map_err(statement::failed)?;
    id.as_deref().map(digest_of).transpose()
}

/// The digest of the event with an id as it is stored.
pub(super) fn digest_of(id: &[u8]) -> Result<u64, Failure> {
    let id = EventId::from_bytes(crate::stored::id_bytes(id, "event_id")?);
    Ok(Cursor::digest_of(&id))
}

#[async_trait::async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        Ok(self.execute(bound(statement)?).await?.into())
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.text(sql.to_owned()).await?;
        Ok(PgQueryResult::default().into())
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let rows = self.rows(bound(statement)?).await?;
        Ok(rows.into_iter().next().map(QueryResult::from))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let rows = self.rows(bound(statement)?).await?;
        Ok(rows.into_iter().map(QueryResult::from).collect())
    }
}
