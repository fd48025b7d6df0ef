//! The raw reference on SQLite: prepared statements, one per row and table.

use std::time::{Duration, Instant};

use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous,
};
use sea_orm::sqlx::{self, ConnectOptions, Connection, Row, SqliteConnection};

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
pub(crate) async fn insert(
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
pub(crate) async fn select(path: &std::path::Path, page: i64) -> (u64, Duration) {
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
