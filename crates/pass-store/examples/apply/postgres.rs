//! The raw reference on PostgreSQL: one `INSERT … SELECT FROM UNNEST` per table and batch.

use std::time::{Duration, Instant};

use sea_orm::sqlx::{self, Connection, PgConnection, Row};

/// A table's name, the type of each column, and what follows its rows.
const TABLES: [(&str, &str, &str); 4] = [
    ("delivery", "ibtiib", ""),
    ("delivery_personal", "ibb", ""),
    ("event", "ibiiiib", ""),
    (
        "pass",
        "ittttbbiiib",
        " ON CONFLICT (number) DO UPDATE SET last_position = excluded.last_position, body = excluded.body",
    ),
];

enum Column {
    Numbers(Vec<i64>),
    Texts(Vec<String>),
    Bytes(Vec<Option<Vec<u8>>>),
}

async fn columns(from: &mut PgConnection, table: &str, kinds: &str) -> Vec<Column> {
    let order = if table == "event" {
        "position"
    } else {
        "number"
    };
    let sql = format!("SELECT * FROM {table} ORDER BY {order}");
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
        .fetch_all(from)
        .await
        .expect("read");
    kinds
        .bytes()
        .enumerate()
        .map(|(at, kind)| match kind {
            b'i' => Column::Numbers(rows.iter().map(|row| row.get(at)).collect()),
            b't' => Column::Texts(rows.iter().map(|row| row.get(at)).collect()),
            _ => Column::Bytes(rows.iter().map(|row| row.get(at)).collect()),
        })
        .collect()
}

impl Column {
    fn part(&self, first: u64, last: u64) -> Self {
        fn of<T: Clone>(all: &[T], first: u64, last: u64) -> Vec<T> {
            (first..last)
                .map(|row| all[usize::try_from(row).expect("small") % all.len()].clone())
                .collect()
        }
        match self {
            Column::Numbers(all) => Column::Numbers(of(all, first, last)),
            Column::Texts(all) => Column::Texts(of(all, first, last)),
            Column::Bytes(all) => Column::Bytes(of(all, first, last)),
        }
    }
}

/// Inserts the same rows, batch by batch; passes are upserted once per event. Making the arrays is not
/// counted.
pub(crate) async fn insert(from: &str, to: &str, deliveries: u64, batch: u64) -> Duration {
    let mut source = PgConnection::connect(from).await.expect("connected");
    let mut target = PgConnection::connect(to).await.expect("connected");
    let mut tables = Vec::new();
    for (table, kinds, tail) in TABLES {
        let holes: Vec<String> = kinds
            .bytes()
            .enumerate()
            .map(|(at, kind)| {
                let kind = match kind {
                    b'i' => "bigint",
                    b't' => "text",
                    _ => "bytea",
                };
                format!("${}::{kind}[]", at + 1)
            })
            .collect();
        let sql = format!(
            "INSERT INTO {table} SELECT * FROM UNNEST({}){tail}",
            holes.join(", ")
        );
        tables.push((sql, columns(&mut source, table, kinds).await));
    }
    let mut took = Duration::ZERO;
    for first in (0..deliveries).step_by(usize::try_from(batch).expect("small")) {
        let last = (first + batch).min(deliveries);
        let batch: Vec<Vec<Column>> = tables
            .iter()
            .map(|(_, columns)| columns.iter().map(|all| all.part(first, last)).collect())
            .collect();
        let started = Instant::now();
        let mut transaction = target.begin().await.expect("begun");
        for ((sql, _), columns) in tables.iter().zip(batch) {
            let query = sqlx::query(sqlx::AssertSqlSafe(sql.as_str()));
            let query = columns
                .into_iter()
                .fold(query, |query, column| match column {
                    Column::Numbers(values) => query.bind(values),
                    Column::Texts(values) => query.bind(values),
                    Column::Bytes(values) => query.bind(values),
                });
            query.execute(&mut *transaction).await.expect("inserted");
        }
        transaction.commit().await.expect("committed");
        took += started.elapsed();
    }
    source.close().await.expect("closed");
    target.close().await.expect("closed");
    took
}

/// Reads the same columns in pages with one prepared statement.
pub(crate) async fn select(from: &str, page: i64) -> (u64, Duration) {
    let mut connection = PgConnection::connect(from).await.expect("connected");
    let sql = "SELECT e.position, e.event_id, e.record_micros, e.body, e.delivery_number, p.personal FROM event e \
               LEFT JOIN delivery_personal p ON p.number = e.delivery_number WHERE e.position > $1 ORDER BY e.position LIMIT $2";
    let (mut after, mut rows) = (0_i64, 0_u64);
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
    }
    let took = started.elapsed();
    connection.close().await.expect("closed");
    (rows, took)
}
