//! Rows on their way into tables: one statement per table, whose parameters are columns.
//!
//! However many rows a transaction has, each table takes one round trip and each text is prepared once. The
//! arrays are filled column by column as the plan makes rows, and go to the driver as they are. Passes come
//! last and are made while the server works on the rest.

use std::pin::pin;
use std::task::Poll;

use sea_orm::DbErr;
use sea_orm::sqlx;

use super::Transaction;
use super::statement::Bound;
use crate::contract::QuarantineState;
use crate::plan::{DeliveryRow, EventRow, Made, PassRow};
use crate::stored::Numbered;
use pass_domain::ids::DeliveryId;

const DELIVERY: &str = "INSERT INTO delivery (number, delivery_id, source, record_micros, outcome, body) \
     SELECT number, delivery_id, source, $1, outcome, body \
     FROM UNNEST($2::bigint[], $3::bytea[], $4::text[], $5::bigint[], $6::bytea[]) \
     AS new (number, delivery_id, source, outcome, body)";
const PERSONAL: &str = "INSERT INTO delivery_personal (number, personal, raw_body) \
     SELECT * FROM UNNEST($1::bigint[], $2::bytea[], $3::bytea[])";
const QUARANTINE: &str = "INSERT INTO quarantine (number, state, reason, detail, update_micros, discard_reason) \
     SELECT number, $1, reason, detail, $2, ''::bytea \
     FROM UNNEST($3::bigint[], $4::bigint[], $5::bytea[]) AS new (number, reason, detail)";
const EVENT: &str = "INSERT INTO event (position, event_id, pass_number, delivery_number, record_micros, content_digest, body) \
     SELECT position, event_id, pass_number, delivery_number, $1, content_digest, body \
     FROM UNNEST($2::bigint[], $3::bytea[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bytea[]) \
     AS new (position, event_id, pass_number, delivery_number, content_digest, body)";
const PASS: &str = "INSERT INTO pass (number, source, vendor_pass_id, vendor, organization, serial_number, external_id, \
     last_position, last_digest, digest, body) \
     SELECT * FROM UNNEST($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::bytea[], \
     $8::bigint[], $9::bigint[], $10::bigint[], $11::bytea[]) \
     ON CONFLICT (number) DO UPDATE SET vendor = excluded.vendor, organization = excluded.organization, \
     serial_number = excluded.serial_number, external_id = excluded.external_id, \
     last_position = excluded.last_position, last_digest = excluded.last_digest, \
     digest = excluded.digest, body = excluded.body";

#[derive(Debug, Default)]
struct Deliveries<'a> {
    numbers: Vec<i64>,
    ids: Vec<[u8; 16]>,
    sources: Vec<&'a str>,
    outcomes: Vec<i64>,
    bodies: Vec<Vec<u8>>,
    personals: Vec<Vec<u8>>,
    raw_bodies: Vec<&'a [u8]>,
}

#[derive(Debug, Default)]
struct Stays {
    numbers: Vec<i64>,
    reasons: Vec<i64>,
    details: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Events {
    positions: Vec<i64>,
    ids: Vec<[u8; 16]>,
    passes: Vec<i64>,
    deliveries: Vec<i64>,
    digests: Vec<i64>,
    bodies: Vec<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Passes {
    numbers: Vec<i64>,
    sources: Vec<String>,
    vendor_pass_ids: Vec<String>,
    vendors: Vec<String>,
    organizations: Vec<String>,
    serial_numbers: Vec<Option<Vec<u8>>>,
    external_ids: Vec<Option<Vec<u8>>>,
    last_positions: Vec<i64>,
    last_digests: Vec<i64>,
    digests: Vec<i64>,
    bodies: Vec<Vec<u8>>,
}

/// Writes all rows that `more` makes, which is called until it has none: deliveries and events first, then
/// passes.
pub(in crate::sql) async fn write<'a>(
    transaction: &Transaction,
    record_micros: i64,
    mut more: impl FnMut() -> Option<Made<'a>>,
) -> Result<(), DbErr> {
    let (mut deliveries, mut stays) = (Deliveries::default(), Stays::default());
    let (mut events, mut passes) = (Events::default(), Passes::default());
    let mut has_more = true;
    while has_more {
        match more() {
            None => has_more = false,
            Some(Made::Rows(rows)) => {
                for row in rows.deliveries {
                    delivery(&mut deliveries, &mut stays, row);
                }
                for row in rows.events {
                    event(&mut events, row);
                }
            }
            Some(Made::Passes(rows)) => {
                rows.into_iter().for_each(|row| pass(&mut passes, row));
                break;
            }
        }
    }
    let mut more_passes = || {
        if let Some(Made::Passes(rows)) = has_more.then(&mut more).flatten() {
            rows.into_iter().for_each(|row| pass(&mut passes, row));
        } else {
            has_more = false;
        }
        has_more
    };
    if !deliveries.numbers.is_empty() {
        let query = sqlx::query(PERSONAL)
            .bind(&deliveries.numbers)
            .bind(deliveries.personals)
            .bind(deliveries.raw_bodies);
        alongside(transaction.execute(query), &mut more_passes).await?;
        let query = sqlx::query(DELIVERY)
            .bind(record_micros)
            .bind(deliveries.numbers)
            .bind(deliveries.ids)
            .bind(deliveries.sources)
            .bind(deliveries.outcomes)
            .bind(deliveries.bodies);
        alongside(transaction.execute(query), &mut more_passes).await?;
    }
    if !stays.numbers.is_empty() {
        let query = sqlx::query(QUARANTINE)
            .bind(i64::from(QuarantineState::Open.number()))
            .bind(record_micros)
            .bind(stays.numbers)
            .bind(stays.reasons)
            .bind(stays.details);
        alongside(transaction.execute(query), &mut more_passes).await?;
    }
    if !events.positions.is_empty() {
        let query = sqlx::query(EVENT)
            .bind(record_micros)
            .bind(events.positions)
            .bind(events.ids)
            .bind(events.passes)
            .bind(events.deliveries)
            .bind(events.digests)
            .bind(events.bodies);
        alongside(transaction.execute(query), &mut more_passes).await?;
    }
    while more_passes() {}
    if !passes.numbers.is_empty() {
        transaction.execute(pass_query(passes)).await?;
    }
    Ok(())
}

/// Runs a statement, and works in small steps while the server does; until there is no more to do.
async fn alongside<T>(statement: impl Future<Output = T>, mut work: impl FnMut() -> bool) -> T {
    let mut statement = pin!(statement);
    let mut has_more = true;
    std::future::poll_fn(|context| {
        loop {
            if let Poll::Ready(done) = statement.as_mut().poll(context) {
                return Poll::Ready(done);
            }
            if !has_more {
                return Poll::Pending;
            }
            has_more = work();
        }
    })
    .await
}

fn pass_query(passes: Passes) -> Bound {
    sqlx::query(PASS)
        .bind(passes.numbers)
        .bind(passes.sources)
        .bind(passes.vendor_pass_ids)
        .bind(passes.vendors)
        .bind(passes.organizations)
        .bind(passes.serial_numbers)
        .bind(passes.external_ids)
        .bind(passes.last_positions)
        .bind(passes.last_digests)
        .bind(passes.digests)
        .bind(passes.bodies)
}

fn delivery<'a>(deliveries: &mut Deliveries<'a>, stays: &mut Stays, row: DeliveryRow<'a>) {
    let number = row.number.cast_signed();
    deliveries.numbers.push(number);
    deliveries.ids.push(*row.delivery_id.as_bytes());
    deliveries.sources.push(row.source.as_str());
    deliveries.outcomes.push(i64::from(row.outcome.number()));
    deliveries.bodies.push(row.body);
    deliveries.personals.push(row.personal);
    deliveries.raw_bodies.push(row.raw_body);
    if let Some((reason, detail)) = row.quarantine {
        stays.numbers.push(number);
        stays.reasons.push(i64::from(reason.number()));
        stays.details.push(detail.into_bytes());
    }
}

fn event(events: &mut Events, row: EventRow) {
    events.positions.push(row.position.cast_signed());
    events.ids.push(*row.event_id.as_bytes());
    events.passes.push(row.pass_number.cast_signed());
    events.deliveries.push(row.delivery_number.cast_signed());
    events.digests.push(row.content_digest.cast_signed());
    events.bodies.push(row.body);
}

fn pass(passes: &mut Passes, row: PassRow) {
    let text = |text: String| (!text.is_empty()).then(|| text.into_bytes());
    passes.numbers.push(row.number.cast_signed());
    passes.sources.push(row.source);
    passes.vendor_pass_ids.push(row.vendor_pass_id);
    passes.vendors.push(row.vendor);
    passes.organizations.push(row.organization);
    passes.serial_numbers.push(text(row.serial_number));
    passes.external_ids.push(text(row.external_id));
    passes.last_positions.push(row.last_position.cast_signed());
    passes.last_digests.push(row.last_digest.cast_signed());
    passes.digests.push(row.digest.cast_signed());
    passes.bodies.push(row.body);
}

/// Moves the spools' committed sequences on, to the deliveries that have them.
pub(in crate::sql) async fn spools_progress(
    transaction: &Transaction,
    epoch: u64,
    spools: Vec<([u8; 16], u64, DeliveryId)>,
) -> Result<(), DbErr> {
    let ids: Vec<_> = spools.iter().map(|(id, ..)| *id).collect();
    let sequences: Vec<_> = spools.iter().map(|(_, at, _)| at.cast_signed()).collect();
    let deliveries: Vec<_> = spools.iter().map(|(.., id)| *id.as_bytes()).collect();
    let query = sqlx::query(
        "UPDATE spool SET committed_sequence = new.sequence, delivery_sequence = new.sequence, \
         delivery_id = new.delivery, epoch = CASE WHEN refill_sequence <= new.sequence THEN $1 ELSE epoch END \
         FROM UNNEST($2::bytea[], $3::bigint[], $4::bytea[]) AS new (id, sequence, delivery) \
         WHERE spool.spool_id = new.id",
    );
    let query = query.bind(epoch.cast_signed()).bind(ids);
    transaction
        .execute(query.bind(sequences).bind(deliveries))
        .await?;
    Ok(())
}
