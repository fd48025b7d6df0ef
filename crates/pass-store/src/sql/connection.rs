//! What statements run on, whichever the database.

use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr, ExecResult,
    QueryResult, Statement,
};

use super::postgres;
use crate::contract::Connections;

/// A writing transaction. Dropped, it is rolled back.
#[derive(Debug)]
pub(super) enum Transaction {
    Sqlite(DatabaseTransaction),
    Postgres(Box<postgres::Transaction>),
}

/// Connections that cannot write.
#[derive(Debug)]
pub(super) enum Readers {
    Sqlite(DatabaseConnection),
    Postgres(postgres::Readers),
}

impl Readers {
    /// How many connections there are, lent and not.
    pub(super) fn connections(&self) -> Connections {
        let (open, idle, max) = match self {
            Readers::Sqlite(connection) => {
                let pool = connection.get_sqlite_connection_pool();
                let max = pool.options().get_max_connections();
                (pool.size(), pool.num_idle(), max)
            }
            Readers::Postgres(readers) => readers.counts(),
        };
        // Read one after the other, so that they may not fit for a moment.
        let idle = u32::try_from(idle).unwrap_or(u32::MAX).min(open);
        Connections {
            idle,
            used: open - idle,
            max,
        }
    }
}

impl Transaction {
    /// Whether the log got a new epoch when it began, since the database had gone back in time.
    pub(super) fn left_epoch(&self) -> bool {
        match self {
            Transaction::Sqlite(_) => false,
            Transaction::Postgres(transaction) => transaction.left_epoch(),
        }
    }

    /// Ends it without a trace.
    pub(super) async fn rollback(self) -> Result<(), DbErr> {
        match self {
            Transaction::Sqlite(transaction) => transaction.rollback().await,
            Transaction::Postgres(transaction) => {
                transaction.rollback().await;
                Ok(())
            }
        }
    }
}

macro_rules! forward {
    ($kind:ident) => {
        #[async_trait::async_trait]
        impl ConnectionTrait for $kind {
            fn get_database_backend(&self) -> DbBackend {
                match self {
                    $kind::Sqlite(inner) => inner.get_database_backend(),
                    $kind::Postgres(inner) => inner.get_database_backend(),
                }
            }

            async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
                match self {
                    $kind::Sqlite(inner) => inner.execute_raw(statement).await,
                    $kind::Postgres(inner) => inner.execute_raw(statement).await,
                }
            }

            async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
                match self {
                    $kind::Sqlite(inner) => inner.execute_unprepared(sql).await,
                    $kind::Postgres(inner) => inner.execute_unprepared(sql).await,
                }
            }

            async fn query_one_raw(
                &self,
                statement: Statement,
            ) -> Result<Option<QueryResult>, DbErr> {
                match self {
                    $kind::Sqlite(inner) => inner.query_one_raw(statement).await,
                    $kind::Postgres(inner) => inner.query_one_raw(statement).await,
                }
            }

            async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
                match self {
                    $kind::Sqlite(inner) => inner.query_all_raw(statement).await,
                    $kind::Postgres(inner) => inner.query_all_raw(statement).await,
                }
            }
        }
    };
}

forward!(Transaction);
forward!(Readers);
