//! The statements of the write path and of the hot reads, spelled once per store.

use sea_orm::DbBackend;

use super::texts::{Insert, Lookup, spelled};

/// The head's columns, in the order in which `append::head_row_from` reads them.
const HEAD_COLUMNS: &str = "epoch, position, digest, record_micros, last_pass_number, last_delivery_number, \
     deliveries, applied, duplicate, control, quarantined, facts, events, duplicate_facts, quarantined_facts, \
     differing_duplicates, quarantine_open";

/// What an event is read from; `personal` is the seventh column.
const EVENT_COLUMNS: &str = "e.position, e.event_id, e.record_micros, e.body, e.delivery_number";

/// All statements.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) head_lock: String,
    pub(crate) head_read: String,
    pub(crate) head_write: String,
    pub(crate) spool_progress: String,
    pub(crate) spools: Lookup,
    pub(crate) deliveries_known: Lookup,
    pub(crate) facts_known: Lookup,
    pub(crate) passes_by_name: Lookup,
    pub(crate) history: String,
    pub(crate) delivery_insert: Insert,
    pub(crate) personal_insert: Insert,
    pub(crate) quarantine_insert: Insert,
    pub(crate) pass_upsert: Insert,
    pub(crate) event_insert: Insert,
    pub(crate) events_after: String,
    pub(crate) events_after_personal: String,
    pub(crate) events_before: String,
    pub(crate) events_of_pass_after: String,
    pub(crate) events_of_pass_before: String,
    pub(crate) event_by_id: String,
    pub(crate) event_time: String,
    pub(crate) event_id_at: String,
    pub(crate) passes_last_event: String,
}

impl Statements {
    /// Spells them for a database.
    pub(crate) fn new(backend: DbBackend) -> Self {
        let spell = |text: &str| spelled(backend, text);
        // Personal blobs are joined only where they may be shown.
        let events = |with_personal: bool, rest: &str| {
            let (column, join) = if with_personal {
                (
                    "p.personal",
                    "LEFT JOIN delivery_personal p ON p.number = e.delivery_number",
                )
            } else {
                ("NULL", "")
            };
            spell(&format!(
                "SELECT {EVENT_COLUMNS}, {column} FROM event e {join} {rest}"
            ))
        };
        let of_pass =
            "e.pass_number = (SELECT number FROM pass WHERE source = ? AND vendor_pass_id = ?)";
        Self {
            head_lock: spell(&format!(
                "UPDATE log_head SET id = id WHERE id = 1 RETURNING {HEAD_COLUMNS}"
            )),
            head_read: spell(&format!("SELECT {HEAD_COLUMNS} FROM log_head WHERE id = 1")),
            head_write: spell(
                "UPDATE log_head SET epoch = ?, position = ?, digest = ?, record_micros = ?, last_pass_number = ?, \
                 last_delivery_number = ?, deliveries = ?, applied = ?, duplicate = ?, control = ?, quarantined = ?, \
                 facts = ?, events = ?, duplicate_facts = ?, quarantined_facts = ?, differing_duplicates = ?, \
                 quarantine_open = ? WHERE id = 1",
            ),
            spool_progress: spell("UPDATE spool SET committed_sequence = ? WHERE spool_id = ?"),
            spools: Lookup::new(
                backend,
                "SELECT spool_id, generation, committed_sequence FROM spool WHERE spool_id IN (",
            ),
            deliveries_known: Lookup::new(
                backend,
                "SELECT delivery_id FROM delivery WHERE delivery_id IN (",
            ),
            facts_known: Lookup::new(
                backend,
                "SELECT event_id, content_digest FROM event WHERE event_id IN (",
            ),
            passes_by_name: Lookup::new(
                backend,
                "SELECT number, source, vendor_pass_id, vendor, organization, last_position, last_digest, digest, body \
                 FROM pass WHERE source = ? AND vendor_pass_id IN (",
            ),
            history: spell(
                "SELECT position, event_id, record_micros, body FROM event WHERE pass_number = ?",
            ),
            delivery_insert: Insert::new(
                backend,
                "delivery",
                &[
                    "number",
                    "delivery_id",
                    "source",
                    "record_micros",
                    "outcome",
                    "body",
                ],
                "",
            ),
            personal_insert: Insert::new(
                backend,
                "delivery_personal",
                &["number", "personal", "raw_body"],
                "",
            ),
            quarantine_insert: Insert::new(
                backend,
                "quarantine",
                &[
                    "number",
                    "state",
                    "reason",
                    "detail",
                    "update_micros",
                    "discard_reason",
                ],
                "",
            ),
            pass_upsert: Insert::new(
                backend,
                "pass",
                &[
                    "number",
                    "source",
                    "vendor_pass_id",
                    "vendor",
                    "organization",
                    "serial_number",
                    "external_id",
                    "last_position",
                    "last_digest",
                    "digest",
                    "body",
                ],
                " ON CONFLICT (number) DO UPDATE SET vendor = excluded.vendor, organization = excluded.organization, \
                 serial_number = excluded.serial_number, external_id = excluded.external_id, \
                 last_position = excluded.last_position, last_digest = excluded.last_digest, \
                 digest = excluded.digest, body = excluded.body",
            ),
            event_insert: Insert::new(
                backend,
                "event",
                &[
                    "position",
                    "event_id",
                    "pass_number",
                    "delivery_number",
                    "record_micros",
                    "content_digest",
                    "body",
                ],
                "",
            ),
            events_after: events(false, "WHERE e.position > ? ORDER BY e.position LIMIT ?"),
            events_after_personal: events(true, "WHERE e.position > ? ORDER BY e.position LIMIT ?"),
            events_before: events(
                true,
                "WHERE e.position < ? ORDER BY e.position DESC LIMIT ?",
            ),
            events_of_pass_after: events(
                true,
                &format!("WHERE {of_pass} AND e.position > ? ORDER BY e.position LIMIT ?"),
            ),
            events_of_pass_before: events(
                true,
                &format!("WHERE {of_pass} AND e.position < ? ORDER BY e.position DESC LIMIT ?"),
            ),
            event_by_id: events(true, "WHERE e.event_id = ?"),
            event_time: spell("SELECT record_micros FROM event WHERE position = ?"),
            event_id_at: spell("SELECT event_id FROM event WHERE position = ?"),
            passes_last_event: spell(
                "SELECT e.position, p.number, p.source, p.vendor_pass_id, p.vendor, p.organization, p.last_position, \
                 p.last_digest, p.digest, p.body \
                 FROM (SELECT position, pass_number FROM event WHERE position < ? ORDER BY position DESC LIMIT ?) e \
                 LEFT JOIN pass p ON p.number = e.pass_number AND p.last_position = e.position \
                 ORDER BY e.position DESC",
            ),
        }
    }
}
