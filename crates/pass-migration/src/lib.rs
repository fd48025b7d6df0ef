//! The schema of the store's database, as migrations for sea-orm's migrator, and nothing else.
//!
//! Migrations expand first and contract in a later release: code of one release older or newer runs
//! against the schema in between. So code takes a schema with migrations that are later than all of its own
//! for one that holds everything it needs. A migration that takes something away says in its name which one
//! code must know to do without it: `m20270101_000001_needs_20260901_000001_drop_old_column` turns away code
//! that lacks `m20260901_000001`, and only that. A released migration is never edited. This crate knows
//! nothing of what the tables mean; `pass-store` does. Start reading at [`Migrator`]; a store calls [`up`] or
//! [`pending`].

use std::collections::HashSet;

use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, EntityTrait};
use sea_orm_migration::{
    DbErr, IntoSchemaManagerConnection, MigrationTrait, MigratorTrait, SchemaManager,
    seaql_migrations,
};

mod m20260101_000001_create_log;
mod m20260201_000001_spool_epoch;
mod m20260201_000003_spool_delivery;
mod m20260301_000001_pass_organization;

/// All migrations, in order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20260101_000001_create_log::Migration),
            Box::new(m20260201_000001_spool_epoch::Migration),
            Box::new(m20260201_000003_spool_delivery::Migration),
            Box::new(m20260301_000001_pass_organization::Migration),
        ]
    }

    /// Those that were applied and are known; a later one is no fault unless it needs more than is known.
    async fn get_migration_models<C: ConnectionTrait>(
        connection: &C,
    ) -> Result<Vec<seaql_migrations::Model>, DbErr> {
        Self::install(connection).await?;
        known(applied(connection).await?)
    }
}

/// Brings a database's schema up to date; does nothing if it is. Processes that start at the same time must
/// hold a lock around it: PostgreSQL's advisory locks, or SQLite's `BEGIN IMMEDIATE`, in the transaction that
/// they hand over.
///
/// # Errors
/// [`DbErr::Custom`] if this release does not fit the schema: a newer one took something away that this one
/// needs, or another history of migrations made it. Otherwise what the database says.
pub async fn up<'c>(connection: impl IntoSchemaManagerConnection<'c>) -> Result<(), DbErr> {
    Migrator::up(connection, None).await
}

/// How many migrations a database lacks. Changes nothing.
///
/// # Errors
/// As [`up`].
pub async fn pending(connection: &DatabaseConnection) -> Result<usize, DbErr> {
    let all = names();
    let table = "seaql_migrations";
    if !SchemaManager::new(connection).has_table(table).await? {
        return Ok(all.len());
    }
    Ok(all.len() - known(applied(connection).await?)?.len())
}

async fn applied(connection: &impl ConnectionTrait) -> Result<Vec<seaql_migrations::Model>, DbErr> {
    seaql_migrations::Entity::find().all(connection).await
}

fn names() -> Vec<String> {
    let name = |migration: Box<dyn MigrationTrait>| migration.name().to_owned();
    Migrator::migrations().into_iter().map(name).collect()
}

/// Those of the applied migrations that are known.
fn known(applied: Vec<seaql_migrations::Model>) -> Result<Vec<seaql_migrations::Model>, DbErr> {
    let names: HashSet<String> = names().into_iter().collect();
    let last = names.iter().max().cloned().unwrap_or_default();
    let (known, unknown): (Vec<_>, Vec<_>) = applied
        .into_iter()
        .partition(|applied| names.contains(&applied.version));
    let strange = |applied: &&seaql_migrations::Model| !may_follow(&last, &applied.version);
    match unknown.iter().find(strange) {
        Some(strange) => Err(DbErr::Custom(format!(
            "migration {} was applied, which this release does not know and cannot do without",
            strange.version
        ))),
        None => Ok(known),
    }
}

/// Length of what orders migrations in their names, without the `m`.
const NUMBER_LENGTH: usize = "20260101_000001".len();

/// True if code whose last migration is `last` may use a schema with another one, which it does not know.
fn may_follow(last: &str, other: &str) -> bool {
    if other <= last {
        return false;
    }
    match other.split_once("_needs_") {
        None => true,
        Some((_, needed)) => needed
            .get(..NUMBER_LENGTH)
            .is_some_and(|needed| last >= format!("m{needed}").as_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: &str = "m20260301_000001_pass_organization";

    fn model(version: &str) -> seaql_migrations::Model {
        seaql_migrations::Model {
            version: version.to_owned(),
            applied_at: 0,
        }
    }

    #[test]
    fn migrations_are_in_the_order_of_their_names() {
        assert!(names().is_sorted());
        assert_eq!(names().last().map(String::as_str), Some(LAST));
    }

    #[test]
    fn a_later_migration_is_no_fault_unless_it_needs_one_that_is_not_known() {
        for fine in [
            "m20260301_000002_add_column",
            "m20270101_000001_needs_20260301_000001_drop_column",
            "m20270101_000001_needs_20260201_000001_drop_column",
        ] {
            assert!(may_follow(LAST, fine), "{fine}");
            let applied = names().into_iter().chain([fine.to_owned()]);
            let applied = applied.map(|name| model(&name));
            let known = known(applied.collect()).expect("it fits");
            assert_eq!(known.len(), names().len(), "{fine}");
        }
        for strange in [
            "m20270101_000001_needs_20260301_000002_drop_column",
            "m20270101_000001_needs_nonsense",
            "m20260201_000002_of_another_history",
        ] {
            assert!(!may_follow(LAST, strange), "{strange}");
            let error = known(vec![model(strange)]).expect_err(strange);
            assert!(error.to_string().contains(strange), "{error}");
        }
    }
}
