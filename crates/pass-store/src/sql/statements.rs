//! The statements of the write path and of the hot reads, spelled once per store.

use std::collections::HashMap;

use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement};

use super::rows::text as value;
use super::texts::{Lookup, array, spelled};

/// The head's columns, in the order in which `append::head_row_from` reads them.
pub(crate) const HEAD_COLUMNS: &str = "epoch, position, digest, record_micros, last_pass_number, last_delivery_number, \
     deliveries, applied, duplicate, control, quarantined, facts, events, duplicate_facts, quarantined_facts, \
     differing_duplicates, quarantine_open";

/// How many those are. On PostgreSQL the id of an event that was seen comes after them.
pub(crate) const HEAD_COLUMNS_COUNT: usize = 17;

/// What an event is read from; `personal` is the seventh column.
const EVENT_COLUMNS: &str = "e.position, e.event_id, e.record_micros, e.body, e.delivery_number";

/// What a pass is read from.
const PASS_COLUMNS: &str = "number, source, vendor_pass_id, vendor, organization, last_position, last_digest, digest, body";

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
    passes_by_name: ByName,
    pub(crate) histories: Lookup,
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
        let postgres = backend == DbBackend::Postgres;
        // Personal blobs are looked up only where they may be shown. PostgreSQL would consider reading the
        // whole table for a join; a subquery per row leaves it no choice.
        let events = |with_personal: bool, rest: &str| {
            let (column, join) = match (with_personal, postgres) {
                (true, true) => (
                    "(SELECT p.personal FROM delivery_personal p WHERE p.number = e.delivery_number)",
                    "",
                ),
                (true, false) => (
                    "p.personal",
                    "LEFT JOIN delivery_personal p ON p.number = e.delivery_number",
                ),
                (false, true) => ("NULL::bytea", ""),
                (false, false) => ("NULL", ""),
            };
            spell(&format!(
                "SELECT {EVENT_COLUMNS}, {column} FROM event e {join} {rest}"
            ))
        };
        // On PostgreSQL an equality would let the planner walk the log by position and skip other passes'
        // events, however many they are; in this order only the index of passes and positions can serve.
        let of_pass = |compare: &str, order: &str| {
            let rest = if postgres {
                let pass = "(SELECT number FROM pass WHERE source = $1 AND vendor_pass_id = $2)";
                let bound = if order.is_empty() { "<=" } else { ">=" };
                format!(
                    "WHERE (e.pass_number, e.position) {compare} ({pass}, $3) AND e.pass_number {bound} {pass} \
                     ORDER BY e.pass_number{order}, e.position{order} LIMIT $4"
                )
            } else {
                format!(
                    "WHERE e.pass_number = (SELECT number FROM pass WHERE source = ? AND vendor_pass_id = ?) \
                     AND e.position {compare} ? ORDER BY e.position{order} LIMIT ?"
                )
            };
            events(true, &rest)
        };
        let passes_last_event = if postgres {
            "SELECT e.position, p.* \
             FROM (SELECT position, pass_number FROM event WHERE position < ? ORDER BY position DESC LIMIT ?) e \
             LEFT JOIN LATERAL (SELECT number, source, vendor_pass_id, vendor, organization, last_position, \
             last_digest, digest, body FROM pass WHERE number = e.pass_number AND last_position = e.position \
             LIMIT 1) p ON true \
             ORDER BY e.position DESC"
        } else {
            "SELECT e.position, p.number, p.source, p.vendor_pass_id, p.vendor, p.organization, p.last_position, \
             p.last_digest, p.digest, p.body \
             FROM (SELECT position, pass_number FROM event WHERE position < ? ORDER BY position DESC LIMIT ?) e \
             LEFT JOIN pass p ON p.number = e.pass_number AND p.last_position = e.position \
             ORDER BY e.position DESC"
        };
        Self {
            head_lock: spell(&format!(
                "UPDATE log_head SET id = id WHERE id = 1 RETURNING {HEAD_COLUMNS}"
            )),
            head_read: spell(&format!(
                "SELECT {HEAD_COLUMNS}{} FROM log_head WHERE id = 1",
                if postgres {
                    ", (SELECT event_id FROM event WHERE position = ?)"
                } else {
                    ""
                }
            )),
            head_write: spell(
                "UPDATE log_head SET epoch = ?, position = ?, digest = ?, record_micros = ?, last_pass_number = ?, \
                 last_delivery_number = ?, deliveries = ?, applied = ?, duplicate = ?, control = ?, quarantined = ?, \
                 facts = ?, events = ?, duplicate_facts = ?, quarantined_facts = ?, differing_duplicates = ?, \
                 quarantine_open = ? WHERE id = 1",
            ),
            spool_progress: spell(
                "UPDATE spool SET committed_sequence = ?, delivery_sequence = ?, delivery_id = ?, \
                 epoch = CASE WHEN refill_sequence <= ? THEN ? ELSE epoch END WHERE spool_id = ?",
            ),
            spools: Lookup::new(
                backend,
                "SELECT spool_id, generation, committed_sequence FROM spool WHERE spool_id",
            ),
            deliveries_known: Lookup::new(
                backend,
                "SELECT delivery_id FROM delivery WHERE delivery_id",
            ),
            facts_known: Lookup::new(
                backend,
                "SELECT event_id, content_digest FROM event WHERE event_id",
            ),
            passes_by_name: ByName::new(backend),
            histories: Lookup::new(
                backend,
                "SELECT pass_number, position, event_id, record_micros, body FROM event WHERE pass_number",
            ),
            events_after: events(false, "WHERE e.position > ? ORDER BY e.position LIMIT ?"),
            events_after_personal: events(true, "WHERE e.position > ? ORDER BY e.position LIMIT ?"),
            events_before: events(
                true,
                "WHERE e.position < ? ORDER BY e.position DESC LIMIT ?",
            ),
            events_of_pass_after: of_pass(">", ""),
            events_of_pass_before: of_pass("<", " DESC"),
            event_by_id: events(true, "WHERE e.event_id = ?"),
            event_time: spell("SELECT record_micros FROM event WHERE position = ?"),
            event_id_at: spell("SELECT event_id FROM event WHERE position = ?"),
            passes_last_event: spell(passes_last_event),
        }
    }

    /// The passes of that source and vendor's id: the columns of [`PASS_COLUMNS`], in no particular order.
    pub(crate) async fn passes_by_name(
        &self,
        connection: &impl ConnectionTrait,
        names: impl IntoIterator<Item = (&str, &str)>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        self.passes_by_name.query(connection, names).await
    }

    /// All texts that read or lock by keys.
    #[cfg(test)]
    pub(crate) fn lookup_texts(&self) -> Vec<String> {
        let lookups = [
            &self.spools,
            &self.deliveries_known,
            &self.facts_known,
            &self.histories,
        ];
        let mut texts: Vec<String> = lookups
            .iter()
            .flat_map(|lookup| lookup.texts().iter().cloned())
            .collect();
        match &self.passes_by_name {
            ByName::OneSource(lookup) => texts.extend(lookup.texts().iter().cloned()),
            ByName::Pairs(text) => texts.push(text.clone()),
        }
        texts
    }
}

/// Finds passes by source and vendor's id.
#[derive(Debug)]
enum ByName {
    /// SQLite: source by source.
    OneSource(Lookup),
    /// PostgreSQL: all at once, each by the index.
    Pairs(String),
}

impl ByName {
    fn new(backend: DbBackend) -> Self {
        if backend == DbBackend::Postgres {
            Self::Pairs(spelled(
                backend,
                &format!(
                    "SELECT p.* FROM UNNEST(?::text[], ?::text[]) AS name (source, vendor_pass_id) \
                     CROSS JOIN LATERAL (SELECT {PASS_COLUMNS} FROM pass WHERE pass.source = name.source \
                     AND pass.vendor_pass_id = name.vendor_pass_id LIMIT 1) p"
                ),
            ))
        } else {
            Self::OneSource(Lookup::new(
                backend,
                &format!("SELECT {PASS_COLUMNS} FROM pass WHERE source = ? AND vendor_pass_id"),
            ))
        }
    }

    async fn query(
        &self,
        connection: &impl ConnectionTrait,
        names: impl IntoIterator<Item = (&str, &str)>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        match self {
            ByName::OneSource(lookup) => {
                let mut by_source: HashMap<&str, Vec<_>> = HashMap::new();
                for (source, pass) in names {
                    by_source.entry(source).or_default().push(value(pass));
                }
                let mut rows = Vec::new();
                for (source, passes) in by_source {
                    rows.extend(lookup.query(connection, &[value(source)], passes).await?);
                }
                Ok(rows)
            }
            ByName::Pairs(text) => {
                let (sources, passes): (Vec<_>, Vec<_>) = names
                    .into_iter()
                    .map(|(source, pass)| (value(source), value(pass)))
                    .unzip();
                if passes.is_empty() {
                    return Ok(Vec::new());
                }
                let values = [sources, passes].map(|names| array(ArrayType::String, names));
                let statement = Statement::from_sql_and_values(DbBackend::Postgres, text, values);
                connection.query_all_raw(statement).await
            }
        }
    }
}
