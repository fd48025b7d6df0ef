//! Brings the schema up to date, once, however many processes start at the same time.

use sea_orm::sqlx::postgres::PgPoolOptions;
use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, DbErr, IsolationLevel, Statement,
    TransactionTrait,
};

use super::connect::Connector;
use super::error::{meaning, meaning_of_opening};
use super::statement::failed;
use super::transaction::millis;
use crate::contract::Error;
use crate::sql::rows::bits;
use crate::sql::spools::random;
use sea_orm::DbBackend;

/// The advisory lock that migrations hold: `passline` in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"passline");

/// The lock is released with the transaction that holds it, whatever becomes of this process. Whoever gets
/// it next finds nothing left to do.
pub(super) async fn migrate(connector: &Connector) -> Result<(), Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(connector.options().connect_timeout)
        .connect_with(connector.driver_options().clone())
        .await
        .map_err(|error| meaning_of_opening(&failed(error)))?;
    let connection = DatabaseConnection::from(pool);
    let done = bring_up(&connection, connector).await;
    if let Err(error) = connection.close().await {
        tracing::debug!(error = %error, "the connection of the migrations did not close well");
    }
    done
}

async fn bring_up(connection: &DatabaseConnection, connector: &Connector) -> Result<(), Error> {
    let lacking = pass_migration::pending(connection).await.map_err(unfit)?;
    if lacking > 0 && !connector.options().migrate {
        return Err(Error::NotMigrated { lacking });
    }
    let explain = |error: DbErr| meaning(&error);
    let transaction = connection
        .begin_with_config(
            Some(IsolationLevel::ReadCommitted),
            Some(AccessMode::ReadWrite),
        )
        .await
        .map_err(explain)?;
    if lacking > 0 {
        let text = format!(
            "SET LOCAL lock_timeout = {}; SELECT pg_advisory_xact_lock({LOCK})",
            millis(connector.options().lock_timeout)
        );
        transaction
            .execute_unprepared(&text)
            .await
            .map_err(explain)?;
        pass_migration::up(&transaction).await.map_err(unfit)?;
    }
    let head = Statement::from_sql_and_values(
        DbBackend::Postgres,
        "INSERT INTO log_head VALUES (1, $1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (id) DO NOTHING",
        [bits(random())],
    );
    transaction.execute_raw(head).await.map_err(explain)?;
    transaction.commit().await.map_err(explain)
}

fn unfit(error: DbErr) -> Error {
    match &error {
        DbErr::Custom(text) | DbErr::Migration(text) => Error::Unfit(format!(
            "the schema: {text}; run the release that made it, or a newer one"
        )),
        _ => meaning(&error),
    }
}
