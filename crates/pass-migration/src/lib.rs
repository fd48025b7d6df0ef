//! The schema of the store's database, as migrations for sea-orm's migrator, and nothing else.
//!
//! Migrations expand first and contract in a later release: code of one release older or newer runs
//! against the schema in between. A released migration is never edited. This crate knows nothing of what
//! the tables mean; `pass-store` does. Start reading at [`Migrator`]; a store calls [`up`] or [`pending`].

use sea_orm_migration::sea_orm::DatabaseConnection;
use sea_orm_migration::{DbErr, IntoSchemaManagerConnection, MigrationTrait, MigratorTrait};

mod m20260101_000001_create_log;
mod m20260201_000001_spool_epoch;
mod m20260201_000002_postgres_tables;
mod m20260201_000003_spool_delivery;

/// All migrations, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20260101_000001_create_log::Migration),
            Box::new(m20260201_000001_spool_epoch::Migration),
            Box::new(m20260201_000002_postgres_tables::Migration),
            Box::new(m20260201_000003_spool_delivery::Migration),
        ]
    }
}

/// Brings a database's schema up to date; does nothing if it is. Processes that start at the same time must
/// hold a lock around it, such as PostgreSQL's advisory locks in the transaction that they hand over.
///
/// # Errors
/// [`DbErr::Custom`] if a newer release made the schema; otherwise what the database says.
pub async fn up<'c>(connection: impl IntoSchemaManagerConnection<'c>) -> Result<(), DbErr> {
    Migrator::up(connection, None).await
}

/// How many migrations a database lacks. Changes nothing.
///
/// # Errors
/// As [`up`].
pub async fn pending(connection: &DatabaseConnection) -> Result<usize, DbErr> {
    Ok(Migrator::get_pending_migrations_read_only(connection)
        .await?
        .len())
}
