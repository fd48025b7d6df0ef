//! The schema of the store's database, as migrations for sea-orm's migrator, and nothing else.
//!
//! Migrations expand first and contract in a later release: code of one release older or newer runs
//! against the schema in between. A released migration is never edited. This crate knows nothing of what
//! the tables mean; `pass-store` does. Start reading at [`Migrator`]; a store calls [`up`] or [`pending`].

use sea_orm_migration::sea_orm::DatabaseConnection;
use sea_orm_migration::{DbErr, MigrationTrait, MigratorTrait};

mod m20260101_000001_create_log;

/// All migrations, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![Box::new(m20260101_000001_create_log::Migration)]
    }
}

/// Brings a database's schema up to date; does nothing if it is.
///
/// # Errors
/// [`DbErr::Custom`] if a newer release made the schema; otherwise what the database says.
pub async fn up(connection: &DatabaseConnection) -> Result<(), DbErr> {
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
