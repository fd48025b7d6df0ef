//! What PostgreSQL's tables need to stay quick. Changes nothing on SQLite.

use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

/// Sets storage parameters, collations and an index's order.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m20260201_000002_postgres_tables"
    }
}

/// One statement each. Blobs keep their default storage: most rows are below the 2 kB at which the server
/// would look at them, and bodies above it are JSON that is worth compressing.
const STATEMENTS: &[&str] = &[
    // One row that every batch writes anew: room for many versions on its page, cleared as they are met, and
    // vacuumed early so that its index does not fill up with old ones.
    "ALTER TABLE log_head SET (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, \
     autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0)",
    "ALTER TABLE spool SET (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, \
     autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0)",
    // Written anew with each event of the pass, its indexed columns rarely: room for the next version on the
    // same page spares the indexes.
    "ALTER TABLE pass SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, \
     autovacuum_analyze_scale_factor = 0.02)",
    // Only ever added to: statistics and visibility early, in small steps.
    "ALTER TABLE event SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
    "ALTER TABLE delivery SET (autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02)",
    "ALTER TABLE delivery_personal SET (autovacuum_vacuum_insert_scale_factor = 0.02, \
     autovacuum_analyze_scale_factor = 0.02)",
    // Names are compared byte by byte, as SQLite does: quicker, and an upgrade of the system's collations
    // cannot damage the index.
    "ALTER TABLE pass ALTER COLUMN source TYPE TEXT COLLATE \"C\", ALTER COLUMN vendor_pass_id TYPE TEXT COLLATE \"C\"",
    // In the order in which they are listed, so that the planner has no reason to walk the table in that order.
    "CREATE INDEX pass_by_serial ON pass (serial_number, number) WHERE serial_number IS NOT NULL",
    "CREATE INDEX pass_by_external ON pass (external_id, number) WHERE external_id IS NOT NULL",
    "DROP INDEX pass_by_serial_number",
    "DROP INDEX pass_by_external_id",
];

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        if connection.get_database_backend() != DbBackend::Postgres {
            return Ok(());
        }
        for statement in STATEMENTS {
            connection.execute_unprepared(statement).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
