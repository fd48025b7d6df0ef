//! Keeps with each spool the log's epoch in which it was last heard of: so a database that went back in time
//! gets one new epoch, and not one for each spool that notices.

use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

/// Adds the column.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m20260201_000001_spool_epoch"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let kind = if connection.get_database_backend() == DbBackend::Postgres {
            "BIGINT"
        } else {
            "INTEGER"
        };
        let add = format!("ALTER TABLE spool ADD COLUMN epoch {kind} NOT NULL DEFAULT 0");
        connection.execute_unprepared(&add).await?;
        let fill =
            "UPDATE spool SET epoch = COALESCE((SELECT epoch FROM log_head WHERE id = 1), 0)";
        connection.execute_unprepared(fill).await?;
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
