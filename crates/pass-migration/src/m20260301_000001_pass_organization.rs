//! Finds passes by another name within an organization, however many passes of others share the name.

use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

/// Adds the indexes.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m20260301_000001_pass_organization"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        // Compared byte by byte, so that an upgrade of the system's collations cannot damage the index.
        let organization = if connection.get_database_backend() == DbBackend::Postgres {
            "organization COLLATE \"C\""
        } else {
            "organization"
        };
        // Rows without an organization, which may be all, are not in them.
        for (name, column) in [
            ("pass_by_organization_serial", "serial_number"),
            ("pass_by_organization_external", "external_id"),
        ] {
            let index = format!(
                "CREATE INDEX {name} ON pass ({column}, {organization}, source, number) \
                 WHERE {column} IS NOT NULL AND organization <> ''"
            );
            connection.execute_unprepared(&index).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
