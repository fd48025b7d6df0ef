//! The apply rate of pass-state's store, next to a raw prepared insert of the same rows into the same
//! tables at the same batch size, with the same pragmas.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pass_domain::delivery::Delivery;
use pass_store::{AppendPart, PartOutcome, PassStore, SpoolHello, SpoolId, SqlStore};
use rusqlite::types::Value;
// For the allocator alone: that of the services.
use service_kit as _;

use crate::Plan;
use crate::corpus::Corpus;
use crate::stats::{median, spread};

/// Deliveries in one transaction.
pub(crate) const BATCH: usize = 500;
/// Deliveries in one turn.
pub(crate) const DELIVERIES: usize = 20_000;
/// The tables that a delivery's rows go into.
pub(crate) const TABLES: [&str; 4] = ["delivery", "delivery_personal", "event", "pass"];

pub(crate) async fn run(plan: &Plan) -> Result<()> {
    let corpus = Corpus::new()?;
    let deliveries = crate::corpus::deliveries(&corpus, 0, DELIVERIES)?;
    let (mut ours, mut raw) = (Vec::new(), Vec::new());
    let mut events = 0;
    for _ in 0..plan.rounds {
        let data = crate::disk::directory()?;
        let path = data.path().join("passline.db");
        let store = crate::corpus::open_store(&path).await?;
        let taken;
        (taken, events) = append_all(&store, &deliveries).await?;
        store.close().await;
        ours.push(DELIVERIES as f64 / taken.as_secs_f64());
        let taken = insert_all(&path, &data.path().join("raw.db"))?;
        raw.push(DELIVERIES as f64 / taken.as_secs_f64());
    }
    println!(
        "{DELIVERIES} PassKit deliveries ({events} events, a new pass each), {BATCH} a transaction, WAL and FULL:"
    );
    println!("  pass-store append, deliveries/s     {}", spread(&ours));
    println!("  raw prepared insert, the same rows  {}", spread(&raw));
    println!("  ratio {:.2}", median(&ours) / median(&raw));
    Ok(())
}

/// Appends them to an empty store, [`BATCH`] a transaction. Returns the time it took, and how many events came of it.
pub(crate) async fn append_all(
    store: &SqlStore,
    deliveries: &[Arc<Delivery>],
) -> Result<(Duration, u64)> {
    let spool = SpoolId([7; 16]);
    let hello = SpoolHello {
        spool,
        gateway: "bench".into(),
        settled_sequence: 0,
        oldest_sequence: 1,
        may_change_epoch: true,
    };
    let opened = store.spool_open(&hello).await?;
    let start = Instant::now();
    let mut sequence = 0;
    for batch in deliveries.chunks(BATCH) {
        let part = AppendPart {
            spool,
            generation: opened.generation,
            deliveries: batch
                .iter()
                .map(|delivery| {
                    sequence += 1;
                    (sequence, Arc::clone(delivery))
                })
                .collect(),
        };
        let appended = store
            .append(&[part], jiff::Timestamp::from_second(1_700_000_000)?)
            .await?;
        ensure!(
            matches!(appended.parts[0], PartOutcome::Committed { .. }),
            "not committed: {:?}",
            appended.parts[0]
        );
    }
    let taken = start.elapsed();
    let events = store.log_info().await?.books.events;
    Ok((taken, events))
}

/// Reads the rows that the store wrote and inserts them into a fresh database with the same schema.
fn insert_all(from: &Path, to: &Path) -> Result<Duration> {
    let source = rusqlite::Connection::open(from)?;
    let target = rusqlite::Connection::open(to)?;
    target.pragma_update(None, "journal_mode", "wal")?;
    target.pragma_update(None, "synchronous", "full")?;
    target.pragma_update(None, "wal_autocheckpoint", 16_000)?;
    target.pragma_update(None, "cache_size", -65_536)?;
    let mut schema = source.prepare(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'",
    )?;
    for sql in schema.query_map([], |row| row.get::<_, String>(0))? {
        target.execute_batch(&sql?)?;
    }
    let mut tables = Vec::new();
    for table in TABLES {
        let mut select = source.prepare(&format!("SELECT * FROM {table} ORDER BY 1"))?;
        let columns = select.column_count();
        let rows: Vec<Vec<Value>> = select
            .query_map([], |row| {
                (0..columns).map(|column| row.get(column)).collect()
            })?
            .collect::<Result<_, _>>()?;
        ensure!(!rows.is_empty(), "table {table} is empty");
        let holes = vec!["?"; columns].join(", ");
        tables.push((format!("INSERT INTO {table} VALUES ({holes})"), rows));
    }
    let batches = DELIVERIES / BATCH;
    let start = Instant::now();
    for batch in 0..batches {
        target.execute_batch("BEGIN IMMEDIATE")?;
        for (sql, rows) in &tables {
            let mut insert = target.prepare_cached(sql)?;
            let (first, last) = (
                rows.len() * batch / batches,
                rows.len() * (batch + 1) / batches,
            );
            for row in &rows[first..last] {
                insert
                    .execute(rusqlite::params_from_iter(row))
                    .context("insert")?;
            }
        }
        target.execute_batch("COMMIT")?;
    }
    Ok(start.elapsed())
}
