//! How fast a store applies and reads events, next to raw prepared statements on the same rows.
//!
//! `cargo run --release -p pass-store --features testing --example apply [deliveries] [batch]`

use std::sync::Arc;
use std::time::{Duration, Instant};

use pass_domain::delivery::{Decoded, Delivery};
use pass_domain::event::Position;
use pass_domain::identity::{Part, event_id};
use pass_domain::ids::VendorId;
use pass_domain::kind::Kind;
use pass_store::suite::make::{Says, at, delivery, short};
use pass_store::{AppendPart, PassStore, Scope, SpoolHello, SpoolId, SqlStore, SqliteOptions};
use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sea_orm::sqlx::{self, ConnectOptions, Connection, Row, SqliteConnection};

/// Events of the same pass come this many deliveries apart.
const PASSES: u64 = 5_000;

fn made(number: u64) -> Delivery {
    let seconds = i64::try_from(number).expect("small");
    let mut made = delivery(
        "acme",
        number,
        &Says::Facts(vec![short(1, Kind::Updated, seconds)], None),
    );
    made.body.resize(1_178, b' ');
    if let Decoded::Facts(facts) = &mut made.decoded {
        let fact = &mut facts.facts[0];
        fact.pass =
            VendorId::new(&format!("5u5EO18473CDVG0V{:06}", number % PASSES)).expect("valid");
        fact.refs.serial_number = format!("serial-{}", number % PASSES);
        let parts = [Part::Text(fact.pass.as_str()), Part::Time(fact.occur_time)];
        fact.id = event_id(&made.source, "UPDATED", &parts, Some(fact.occur_time));
    }
    made
}

fn rate(what: &str, rows: u64, took: Duration) -> f64 {
    let rate = rows as f64 / took.as_secs_f64();
    println!("{what:<60} {rate:>10.0} rows/s");
    rate
}

/// The tables of a file, as rows of values in their columns' order.
const TABLES: [(&str, &str); 4] = [
    ("delivery", "ibtiib"),
    ("delivery_personal", "ibb"),
    ("event", "ibiiiib"),
    ("pass", "ittttbbiiib"),
];

enum Cell {
    Number(i64),
    Text(String),
    Bytes(Option<Vec<u8>>),
}

fn cells(row: &SqliteRow, columns: &str) -> Vec<Cell> {
    columns
        .bytes()
        .enumerate()
        .map(|(place, kind)| match kind {
            b't' => Cell::Text(row.get(place)),
            b'b' => Cell::Bytes(row.get(place)),
            _ => Cell::Number(row.get(place)),
        })
        .collect()
}

async fn raw_connection(path: &std::path::Path) -> SqliteConnection {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .pragma("wal_autocheckpoint", "16000")
        .pragma("cache_size", "-65536")
        .row_buffer_size(1_024)
        .disable_statement_logging()
        .connect()
        .await
        .expect("connected")
}

/// Inserts the same rows, batch by batch, one prepared statement per row and table; passes are upserted once
/// per event.
async fn raw_insert(
    from: &std::path::Path,
    to: &std::path::Path,
    deliveries: u64,
    batch: u64,
) -> Duration {
    let mut source = raw_connection(from).await;
    let mut tables = Vec::new();
    for (table, columns) in TABLES {
        let order = if table == "event" {
            "position"
        } else {
            "number"
        };
        let sql = format!("SELECT * FROM {table} ORDER BY {order}");
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .fetch_all(&mut source)
            .await
            .expect("read");
        tables.push(
            rows.iter()
                .map(|row| cells(row, columns))
                .collect::<Vec<_>>(),
        );
    }
    source.close().await.expect("closed");
    let mut target = raw_connection(to).await;
    let started = Instant::now();
    for first in (0..deliveries).step_by(usize::try_from(batch).expect("small")) {
        let mut transaction = target.begin_with("BEGIN IMMEDIATE").await.expect("begun");
        for ((table, columns), rows) in TABLES.iter().zip(&tables) {
            let holes = vec!["?"; columns.len()].join(",");
            let upsert = if *table == "pass" {
                " ON CONFLICT (number) DO UPDATE SET last_position = excluded.last_position, body = excluded.body"
            } else {
                ""
            };
            let sql = format!("INSERT INTO {table} VALUES ({holes}){upsert}");
            for number in first..(first + batch).min(deliveries) {
                let row = &rows[usize::try_from(number).expect("small") % rows.len()];
                let mut query = sqlx::query(sqlx::AssertSqlSafe(sql.as_str()));
                for cell in row {
                    query = match cell {
                        Cell::Number(number) => query.bind(number),
                        Cell::Text(text) => query.bind(text),
                        Cell::Bytes(bytes) => query.bind(bytes.as_deref()),
                    };
                }
                query.execute(&mut *transaction).await.expect("inserted");
            }
        }
        transaction.commit().await.expect("committed");
    }
    let took = started.elapsed();
    target.close().await.expect("closed");
    took
}

/// Reads the same columns in pages with one prepared statement.
async fn raw_select(path: &std::path::Path, page: i64) -> (u64, Duration) {
    let mut connection = raw_connection(path).await;
    let sql = "SELECT e.position, e.event_id, e.record_micros, e.body, e.delivery_number, p.personal FROM event e \
               LEFT JOIN delivery_personal p ON p.number = e.delivery_number WHERE e.position > ? ORDER BY e.position LIMIT ?";
    let (mut after, mut rows, mut bytes) = (0_i64, 0_u64, 0_usize);
    let started = Instant::now();
    loop {
        let found = sqlx::query(sql)
            .bind(after)
            .bind(page)
            .fetch_all(&mut connection)
            .await
            .expect("read");
        let Some(last) = found.last() else { break };
        after = last.get(0);
        rows += found.len() as u64;
        bytes += found
            .iter()
            .map(|row| row.get::<Vec<u8>, _>(3).len() + row.get::<Vec<u8>, _>(5).len())
            .sum::<usize>();
    }
    let took = started.elapsed();
    assert!(bytes > 0);
    connection.close().await.expect("closed");
    (rows, took)
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args()
        .skip(1)
        .map(|argument| argument.parse::<u64>().expect("a number"));
    let deliveries = arguments.next().unwrap_or(20_000);
    let batch = arguments.next().unwrap_or(500);
    let all: Vec<Arc<Delivery>> = (0..deliveries)
        .map(|number| Arc::new(made(number)))
        .collect();
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..3 {
        let path = directory.path().join(format!("ours-{round}.db"));
        let store = SqlStore::open(SqliteOptions::new(&path))
            .await
            .expect("opened");
        let hello = SpoolHello {
            spool: SpoolId([1; 16]),
            gateway: "bench".to_owned(),
            settled_sequence: 0,
            oldest_sequence: 0,
        };
        let generation = store.spool_open(&hello).await.expect("opened").generation;
        let started = Instant::now();
        for (place, chunk) in all
            .chunks(usize::try_from(batch).expect("small"))
            .enumerate()
        {
            let first = place as u64 * batch + 1;
            let part = AppendPart {
                spool: hello.spool,
                generation,
                deliveries: (first..).zip(chunk.iter().cloned()).collect(),
            };
            store
                .append(&[part], at(1_000_000))
                .await
                .expect("appended");
        }
        let ours = rate(&format!("append by {batch}"), deliveries, started.elapsed());
        let started = Instant::now();
        let (mut after, mut read) = (Position(0), 0);
        loop {
            let page = store
                .events_after(&Scope::everything(), after, 500)
                .await
                .expect("read");
            let Some(next) = page.next else { break };
            after = Position(next);
            read += page.rows.len() as u64;
        }
        let ours_read = rate("events_after by 500", read, started.elapsed());
        store.close().await;

        let raw_path = directory.path().join(format!("raw-{round}.db"));
        SqlStore::open(SqliteOptions::new(&raw_path))
            .await
            .expect("opened")
            .close()
            .await;
        let took = raw_insert(&path, &raw_path, deliveries, batch).await;
        let raw = rate(
            &format!("raw prepared inserts by {batch}, four tables"),
            deliveries,
            took,
        );
        let (rows, took) = raw_select(&path, 500).await;
        let raw_read = rate("raw prepared select by 500", rows, took);
        println!(
            "ratio: append {:.2}, events_after {:.2}",
            ours / raw,
            ours_read / raw_read
        );
    }
}
