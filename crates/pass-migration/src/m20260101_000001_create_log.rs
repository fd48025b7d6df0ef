//! The log: its head, spools, deliveries, quarantine, passes and events.

use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

/// Makes the tables.
pub(crate) struct Migration;

impl MigrationName for Migration {
    fn name(&self) -> &'static str {
        "m20260101_000001_create_log"
    }
}

/// One statement each. Types are spelled for SQLite; [`statement_for`] turns them into PostgreSQL's. A `NAME`
/// is a text that PostgreSQL, too, compares byte by byte: quicker, and an upgrade of the system's collations
/// cannot damage the index.
///
/// Primary keys are numbers that the store takes from `log_head`, so rows are always appended at the end
/// of their table. Vendors' texts that are looked up are kept as bytes: any text is allowed, none is
/// collated.
const STATEMENTS: &[&str] = &[
    // One row. Locked first by every writing transaction.
    "CREATE TABLE log_head (
        id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
        epoch INTEGER NOT NULL,
        position INTEGER NOT NULL,
        digest INTEGER NOT NULL,
        record_micros INTEGER NOT NULL,
        last_pass_number INTEGER NOT NULL,
        last_delivery_number INTEGER NOT NULL,
        deliveries INTEGER NOT NULL,
        applied INTEGER NOT NULL,
        duplicate INTEGER NOT NULL,
        control INTEGER NOT NULL,
        quarantined INTEGER NOT NULL,
        facts INTEGER NOT NULL,
        events INTEGER NOT NULL,
        duplicate_facts INTEGER NOT NULL,
        quarantined_facts INTEGER NOT NULL,
        differing_duplicates INTEGER NOT NULL,
        quarantine_open INTEGER NOT NULL
    )",
    "CREATE TABLE spool (
        spool_id BLOB NOT NULL PRIMARY KEY,
        gateway TEXT NOT NULL,
        generation INTEGER NOT NULL,
        committed_sequence INTEGER NOT NULL,
        missing TEXT NOT NULL
    )",
    "CREATE TABLE delivery (
        number INTEGER NOT NULL PRIMARY KEY,
        delivery_id BLOB NOT NULL,
        source TEXT NOT NULL,
        record_micros INTEGER NOT NULL,
        outcome INTEGER NOT NULL,
        body BLOB NOT NULL
    )",
    "CREATE UNIQUE INDEX delivery_by_id ON delivery (delivery_id)",
    // Everything personal, apart from the rest, so that erasing it rewrites nothing else.
    "CREATE TABLE delivery_personal (
        number INTEGER NOT NULL PRIMARY KEY,
        personal BLOB NOT NULL,
        raw_body BLOB NOT NULL
    )",
    "CREATE TABLE quarantine (
        number INTEGER NOT NULL PRIMARY KEY,
        state INTEGER NOT NULL,
        reason INTEGER NOT NULL,
        detail BLOB NOT NULL,
        update_micros INTEGER NOT NULL,
        discard_reason BLOB NOT NULL
    )",
    "CREATE INDEX quarantine_open ON quarantine (number) WHERE state = 1",
    "CREATE TABLE pass (
        number INTEGER NOT NULL PRIMARY KEY,
        source NAME NOT NULL,
        vendor_pass_id NAME NOT NULL,
        vendor TEXT NOT NULL,
        organization TEXT NOT NULL,
        serial_number BLOB,
        external_id BLOB,
        last_position INTEGER NOT NULL,
        last_digest INTEGER NOT NULL,
        digest INTEGER NOT NULL,
        body BLOB NOT NULL
    )",
    "CREATE UNIQUE INDEX pass_by_name ON pass (source, vendor_pass_id)",
    // In the order in which they are listed, source by source: a name that very many passes of another source
    // have costs nothing.
    "CREATE INDEX pass_by_serial ON pass (serial_number, source, number) WHERE serial_number IS NOT NULL",
    "CREATE INDEX pass_by_external ON pass (external_id, source, number) WHERE external_id IS NOT NULL",
    "CREATE TABLE event (
        position INTEGER NOT NULL PRIMARY KEY,
        event_id BLOB NOT NULL,
        pass_number INTEGER NOT NULL,
        delivery_number INTEGER NOT NULL,
        record_micros INTEGER NOT NULL,
        content_digest INTEGER NOT NULL,
        body BLOB NOT NULL
    )",
    "CREATE UNIQUE INDEX event_by_id ON event (event_id)",
    "CREATE INDEX event_by_pass ON event (pass_number, position)",
];

/// What PostgreSQL's tables need to stay quick, one statement each. Blobs keep their default storage: most rows
/// are below the 2 kB at which the server would look at them, and bodies above it are JSON that is worth
/// compressing.
const POSTGRES_STATEMENTS: &[&str] = &[
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
];

/// Spells a statement for a database. SQLite tables are strict: a value of another type is refused.
fn statement_for(backend: DbBackend, statement: &str) -> String {
    if backend == DbBackend::Sqlite {
        let strict = if statement.starts_with("CREATE TABLE") {
            " STRICT"
        } else {
            ""
        };
        format!("{}{strict}", statement.replace(" NAME", " TEXT"))
    } else {
        statement
            .replace(" NAME", " TEXT COLLATE \"C\"")
            .replace(" INTEGER", " BIGINT")
            .replace(" BLOB", " BYTEA")
    }
}

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let backend = connection.get_database_backend();
        for statement in STATEMENTS {
            connection
                .execute_unprepared(&statement_for(backend, statement))
                .await?;
        }
        if backend == DbBackend::Postgres {
            for statement in POSTGRES_STATEMENTS {
                connection.execute_unprepared(statement).await?;
            }
        }
        Ok(())
    }

    // All or nothing, on SQLite too.
    fn use_transaction(&self) -> Option<bool> {
        Some(true)
    }
}
