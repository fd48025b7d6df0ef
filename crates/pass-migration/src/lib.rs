//! The schema of the store's database, as migrations for sea-orm's migrator, and nothing else.
//!
//! Migrations expand first and contract in a later release: code of one release older or newer runs
//! against the schema in between. A released migration is never edited. This crate knows nothing of what
//! the tables mean; `pass-store` does. Start reading at [`Migrator`].

use sea_orm_migration::{MigrationTrait, MigratorTrait};

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
