//! Connections that cannot write, lent to one statement at a time.
//!
//! Each statement is a transaction of its own. A connection on which something went wrong is closed, so the
//! next statement does not meet what is left of it. A new connection is used only once it is sure that it
//! leads to the log that was read before: see [`seen`](super::seen).

use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::postgres::{PgConnection, PgPool, PgPoolOptions, PgQueryResult, Postgres};
use sea_orm::sqlx::{self, Connection, Row};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, Statement};
use tokio::time::timeout;

use super::connect::{Connector, IDLE_UNTRIED_MAX, STANDBY};
use super::error::is_lost_connection;
use super::seen::{Mark, Seen};
use super::statement::{self, ANSWER_GRACE, Bound, bound, failed, timed_out};
use super::transaction::{Writer, found_digest, millis};

/// Connections that cannot write.
#[derive(Debug)]
pub(in crate::sql) struct Readers {
    pool: PgPool,
    answer_timeout: Duration,
}

impl Readers {
    /// Makes connections as they are needed.
    pub(super) fn new(connector: &Connector, writer: &Arc<Writer>, seen: &Arc<Seen>) -> Self {
        let options = connector.options();
        let session = session_text(connector);
        let (writer, seen) = (Arc::clone(writer), Arc::clone(seen));
        let pool = PgPoolOptions::new()
            .max_connections(options.readers_max.clamp(1, 64))
            .acquire_timeout(options.acquire_timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .before_acquire(|connection, about| {
                Box::pin(async move {
                    if about.idle_for > IDLE_UNTRIED_MAX {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            .after_connect(move |connection, _| {
                let (session, writer) = (session.clone(), Arc::clone(&writer));
                let seen = Arc::clone(&seen);
                Box::pin(async move { prepare(connection, session, &writer, &seen).await })
            })
            .connect_lazy_with(connector.driver_options().clone());
        Self {
            pool,
            answer_timeout: options.read_timeout + ANSWER_GRACE,
        }
    }

    /// Runs a statement; again on another connection if one turns out to be gone, as all do after a restart
    /// of the server. Nothing is written here, so that is harmless.
    async fn rows(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut tries_left = self.pool.options().get_max_connections();
        loop {
            match self.rows_once(bound(statement.clone())?).await {
                Err(error) if is_lost_connection(&error) && tries_left > 0 => tries_left -= 1,
                answer => return answer,
            }
        }
    }

    async fn rows_once(&self, query: Bound) -> Result<Vec<QueryResult>, DbErr> {
        let mut connection = self.acquire().await?;
        let answer = timeout(
            self.answer_timeout,
            statement::rows(&mut connection.inner, query),
        );
        let rows = answer.await.unwrap_or_else(|_| Err(timed_out("a query")))?;
        connection.whole = true;
        Ok(rows.into_iter().map(QueryResult::from).collect())
    }

    async fn acquire(&self) -> Result<Lent, DbErr> {
        let inner = self.pool.acquire().await.map_err(failed)?;
        Ok(Lent {
            inner,
            whole: false,
        })
    }

    /// How many connections are open, how many of them wait to be used, and how many there may be.
    pub(in crate::sql) fn counts(&self) -> (u32, usize, u32) {
        let max = self.pool.options().get_max_connections();
        (self.pool.size(), self.pool.num_idle(), max)
    }

    /// How many connections wait to be used.
    #[cfg(test)]
    pub(super) fn idle(&self) -> usize {
        self.pool.num_idle()
    }

    /// Closes all connections.
    pub(in crate::sql) async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection that is closed unless a statement on it was answered well.
struct Lent {
    inner: PoolConnection<Postgres>,
    whole: bool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.whole {
            self.inner.close_on_drop();
        }
    }
}

fn session_text(connector: &Connector) -> String {
    let options = connector.options();
    format!(
        "SET default_transaction_read_only = on; SET statement_timeout = {}; SET lock_timeout = {}; \
         SET enable_seqscan = {}; SET jit = off; SELECT pg_is_in_recovery()::text",
        millis(options.read_timeout),
        millis(options.lock_timeout),
        connector.sequential_scans(),
    )
}

/// Makes a new connection ready; fails if it leads to a standby, which may lack what was acknowledged, or not to
/// the log that was read before.
async fn prepare(
    connection: &mut PgConnection,
    session: String,
    writer: &Writer,
    seen: &Seen,
) -> Result<(), sqlx::Error> {
    let row = sqlx::raw_sql(sqlx::AssertSqlSafe(session))
        .fetch_one(&mut *connection)
        .await?;
    if row.try_get::<String, _>(0)? == "true" {
        return Err(sqlx::Error::Protocol(STANDBY.to_owned()));
    }
    if !went_back(connection, seen).await? {
        return Ok(());
    }
    // The writer does what has to be done about it; once the epoch is another one, reading may go on.
    match writer.begin().await {
        Ok((transaction, _)) => transaction.rollback().await,
        Err(failure) => {
            tracing::debug!(error = ?failure, "the epoch could not be changed yet");
        }
    }
    if went_back(connection, seen).await? {
        let text = "the database went back in time and the log has no new epoch yet";
        return Err(sqlx::Error::Protocol(text.to_owned()));
    }
    Ok(())
}

async fn went_back(connection: &mut PgConnection, seen: &Seen) -> Result<bool, sqlx::Error> {
    let Some(seen) = seen.mark() else {
        return Ok(false);
    };
    let query = sqlx::query(
        "SELECT (SELECT event_id FROM event WHERE position = $1), epoch, position, digest FROM log_head WHERE id = 1",
    );
    let row = query
        .bind(seen.position.cast_signed())
        .fetch_optional(connection)
        .await?;
    let Some(row) = row else { return Ok(false) };
    let found = Mark {
        epoch: row.try_get::<i64, _>(1)?.cast_unsigned(),
        position: row.try_get::<i64, _>(2)?.cast_unsigned(),
        digest: row.try_get::<i64, _>(3)?.cast_unsigned(),
    };
    let there = found_digest(&row, 0)
        .map_err(|_| sqlx::Error::Protocol("event.event_id is damaged".to_owned()))?;
    Ok(seen.is_gone(found, there))
}

#[async_trait::async_trait]
impl ConnectionTrait for Readers {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.rows(statement).await?;
        Ok(PgQueryResult::default().into())
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.execute_raw(Statement::from_string(DbBackend::Postgres, sql))
            .await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.rows(statement).await?.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.rows(statement).await
    }
}
