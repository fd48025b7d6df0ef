//! Keeps with each spool which delivery was committed last, and how far it has to refill a database that was
//! put back in time.

use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

/// Adds the columns.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m20260201_000003_spool_delivery"
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let [number, blob] = if connection.get_database_backend() == DbBackend::Postgres {
            ["BIGINT", "BYTEA NOT NULL DEFAULT ''"]
        } else {
            ["INTEGER", "BLOB NOT NULL DEFAULT x''"]
        };
        // The delivery has its sequence beside it: an older release moves the spool on without it.
        for column in [
            format!("delivery_sequence {number} NOT NULL DEFAULT 0"),
            format!("delivery_id {blob}"),
            format!("refill_sequence {number} NOT NULL DEFAULT 0"),
        ] {
            let add = format!("ALTER TABLE spool ADD COLUMN {column}");
            connection.execute_unprepared(&add).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
