//! Rows on their way into tables: more of them are made while a statement runs.
//!
//! SQLite runs on a thread of its own, so a transaction is quicker if this side goes on planning and
//! encoding meanwhile. [`Outbox::run`] does both in turns. A statement takes as many rows as have come
//! together by the time the one before it is done, so the slower side makes them few and large: handing one
//! over costs a wake-up of each thread.

use std::pin::pin;
use std::task::Poll;

use sea_orm::sea_query::Value;
use sea_orm::{ConnectionTrait, DbErr, Statement};

use crate::contract::QuarantineState;
use crate::plan::{DeliveryRow, EventRow, Made, PassRow, Rows};
use crate::sql::append::outcome_value;
use crate::sql::rows::{bits, bytes, bytes_or_null, number, signed, text};
use crate::sql::texts::Insert;
use crate::stored::Numbered;

/// As long as more rows are to come, a statement has at least so many.
const ROWS_MIN: usize = 64;

/// Rows of one table that wait for their statement.
#[derive(Debug)]
struct Waiting<'s> {
    insert: &'s Insert,
    values: Vec<Value>,
}

impl<'s> Waiting<'s> {
    fn new(insert: &'s Insert) -> Self {
        Self {
            insert,
            values: Vec::new(),
        }
    }

    fn rows(&self) -> usize {
        self.values.len() / self.insert.columns()
    }
}

/// The statements, by table.
#[derive(Debug)]
pub(in crate::sql) struct Inserts([Insert; 5]);

impl Inserts {
    /// Spells them.
    pub(in crate::sql) fn new() -> Self {
        let quarantine = [
            "number",
            "state",
            "reason",
            "detail",
            "update_micros",
            "discard_reason",
        ];
        let event = [
            "position",
            "event_id",
            "pass_number",
            "delivery_number",
            "record_micros",
            "content_digest",
            "body",
        ];
        let pass = [
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
        ];
        let upsert = " ON CONFLICT (number) DO UPDATE SET vendor = excluded.vendor, organization = excluded.organization, \
             serial_number = excluded.serial_number, external_id = excluded.external_id, \
             last_position = excluded.last_position, last_digest = excluded.last_digest, \
             digest = excluded.digest, body = excluded.body";
        let delivery = [
            "number",
            "delivery_id",
            "source",
            "record_micros",
            "outcome",
            "body",
        ];
        let personal = ["number", "personal", "raw_body"];
        Self([
            Insert::new("delivery", &delivery, ""),
            Insert::new("delivery_personal", &personal, ""),
            Insert::new("quarantine", &quarantine, ""),
            Insert::new("event", &event, ""),
            Insert::new("pass", &pass, upsert),
        ])
    }
}

/// Rows that wait, by table.
#[derive(Debug)]
pub(in crate::sql) struct Outbox<'s> {
    tables: [Waiting<'s>; 5],
    record_micros: i64,
    written_bytes: u64,
}

const DELIVERY: usize = 0;
const PERSONAL: usize = 1;
const QUARANTINE: usize = 2;
const EVENT: usize = 3;
const PASS: usize = 4;

impl<'s> Outbox<'s> {
    /// Nothing yet; rows will be recorded at `record_micros`.
    pub(in crate::sql) fn new(inserts: &'s Inserts, record_micros: i64) -> Self {
        Self {
            tables: inserts.0.each_ref().map(Waiting::new),
            record_micros,
            written_bytes: 0,
        }
    }

    /// Writes all rows that `more` makes, which is called until it has none. Returns about how many bytes they
    /// have, for the pace of checkpoints.
    pub(in crate::sql) async fn run<'a>(
        mut self,
        connection: &impl ConnectionTrait,
        mut more: impl FnMut() -> Option<Made<'a>>,
    ) -> Result<u64, DbErr> {
        let mut has_more = true;
        loop {
            let Some(statement) = self.statement(if has_more { ROWS_MIN } else { 1 }) else {
                if !has_more {
                    return Ok(self.written_bytes);
                }
                has_more = self.add(more());
                continue;
            };
            let mut running = pin!(connection.execute_raw(statement));
            std::future::poll_fn(|context| {
                loop {
                    if let Poll::Ready(done) = running.as_mut().poll(context) {
                        return Poll::Ready(done);
                    }
                    if !has_more {
                        return Poll::Pending;
                    }
                    has_more = self.add(more());
                }
            })
            .await?;
        }
    }

    /// A statement for the table with the most rows, if that has enough.
    fn statement(&mut self, rows_min: usize) -> Option<Statement> {
        let table = self.tables.iter_mut().max_by_key(|table| table.rows())?;
        if table.rows() < rows_min {
            return None;
        }
        Some(table.insert.statement(&mut table.values))
    }

    fn row<const COLUMNS: usize>(&mut self, table: usize, row: [Value; COLUMNS]) {
        let table = &mut self.tables[table];
        debug_assert_eq!(COLUMNS, table.insert.columns(), "a value for every column");
        table.values.extend(row);
    }

    /// Adds rows; false if there are no more.
    fn add(&mut self, made: Option<Made<'_>>) -> bool {
        match made {
            None => return false,
            Some(Made::Rows(Rows { deliveries, events })) => {
                for row in deliveries {
                    self.delivery(row);
                }
                for row in events {
                    self.event(row);
                }
            }
            Some(Made::Passes(rows)) => {
                for row in rows {
                    self.pass(row);
                }
            }
        }
        true
    }

    fn delivery(&mut self, row: DeliveryRow<'_>) {
        self.written_bytes += (row.body.len() + row.personal.len() + row.raw_body.len()) as u64;
        self.row(
            DELIVERY,
            [
                number(row.number),
                bytes(row.delivery_id.as_bytes().as_slice()),
                text(row.source.as_str()),
                signed(self.record_micros),
                outcome_value(row.outcome),
                bytes(row.body),
            ],
        );
        self.row(
            PERSONAL,
            [number(row.number), bytes(row.personal), bytes(row.raw_body)],
        );
        if let Some((reason, detail)) = row.quarantine {
            self.row(
                QUARANTINE,
                [
                    number(row.number),
                    signed(i64::from(QuarantineState::Open.number())),
                    signed(i64::from(reason.number())),
                    bytes(detail.into_bytes()),
                    signed(self.record_micros),
                    bytes(Vec::new()),
                ],
            );
        }
    }

    fn event(&mut self, row: EventRow) {
        self.written_bytes += row.body.len() as u64;
        self.row(
            EVENT,
            [
                number(row.position),
                bytes(row.event_id.as_bytes().as_slice()),
                number(row.pass_number),
                number(row.delivery_number),
                signed(self.record_micros),
                bits(row.content_digest),
                bytes(row.body),
            ],
        );
    }

    fn pass(&mut self, row: PassRow) {
        self.written_bytes += row.body.len() as u64;
        self.row(
            PASS,
            [
                number(row.number),
                text(row.source),
                text(row.vendor_pass_id),
                text(row.vendor),
                text(row.organization),
                bytes_or_null(row.serial_number),
                bytes_or_null(row.external_id),
                number(row.last_position),
                bits(row.last_digest),
                bits(row.digest),
                bytes(row.body),
            ],
        );
    }
}
