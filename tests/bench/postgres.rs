//! The apply rate of pass-state's store on PostgreSQL, next to a raw insert of the same rows into the same
//! tables: by one client, with one prepared `INSERT … SELECT * FROM UNNEST(…)` a table and batch.
//!
//! Both go to one server, in databases of their own, one after the other, each after a checkpoint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pass_store::{PassStore, PostgresOptions, SqlStore};
use sea_orm::sqlx::postgres::{PgConnection, PgRow};
use sea_orm::sqlx::{AssertSqlSafe, Connection, Row, query};
use test_kit::TestPostgres;

use crate::Plan;
use crate::apply::{BATCH, DELIVERIES, TABLES, append_all};
use crate::corpus::Corpus;
use crate::process::{family_cpu, own_cpu};
use crate::stats::{median, ratio, spread};

/// What the server gets besides test-kit's settings (fsync, full_page_writes and synchronous_commit are on): a
/// cache, and room enough that no checkpoint falls into one turn and not into the other.
pub(crate) const SETTINGS: [(&str, &str); 2] =
    [("shared_buffers", "256MB"), ("max_wal_size", "4GB")];

/// What one candidate's turns gave.
#[derive(Default)]
struct Candidate {
    rates: Vec<f64>,
    client_cpu: Vec<f64>,
    server_cpu: Vec<f64>,
}

pub(crate) async fn run(plan: &Plan) -> Result<()> {
    let corpus = Corpus::new()?;
    let deliveries = crate::corpus::deliveries(&corpus, 0, DELIVERIES)?;
    let server = TestPostgres::start_with(&SETTINGS).await?;
    println!("{}", about(&server).await?);
    let (mut ours, mut raw) = (Candidate::default(), Candidate::default());
    let mut events = 0;
    for _ in 0..plan.rounds {
        let url = server.database().await?;
        let store = SqlStore::open_postgres(PostgresOptions::new(&url)).await?;
        let turn = Turn::begin(&server).await?;
        let taken;
        (taken, events) = append_all(&store, &deliveries).await?;
        turn.end(taken, &mut ours)?;
        store.close().await;

        let mut source = PgConnection::connect(&url).await?;
        let mut tables = Vec::new();
        for name in TABLES {
            tables.push(Table::read(&mut source, name).await?);
        }
        source.close().await?;
        let target = server.database().await?;
        SqlStore::open_postgres(PostgresOptions::new(&target))
            .await?
            .close()
            .await;
        let mut connection = PgConnection::connect(&target).await?;
        let turn = Turn::begin(&server).await?;
        let taken = insert_all(&mut connection, &tables).await?;
        turn.end(taken, &mut raw)?;
        connection.close().await?;
        for url in [url, target] {
            remove(&server, &url).await?;
        }
    }
    println!(
        "{DELIVERIES} PassKit deliveries ({events} events, a new pass each), {BATCH} a transaction; CPU s / 1,000 of the client + the server:"
    );
    ours.print("pass-store append, deliveries/s  ");
    raw.print("raw UNNEST insert, the same rows ");
    println!(
        "  ratio {}; of CPU {}",
        ratio(&ours.rates, &raw.rates),
        ratio(&ours.cpu(), &raw.cpu())
    );
    Ok(())
}

/// Version and settings of a server, in one line.
pub(crate) async fn about(server: &TestPostgres) -> Result<String> {
    let settings = "SELECT string_agg(name || ' ' || current_setting(name), ', ' ORDER BY name) FROM pg_settings \
        WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit', 'wal_sync_method', 'shared_buffers', \
        'max_wal_size', 'server_version')";
    let settings = server.sql(&server.url("postgres"), settings).await?;
    Ok(format!("PostgreSQL: {settings}"))
}

/// Removes a database that is no longer needed, so that the disk does not fill.
pub(crate) async fn remove(server: &TestPostgres, url: &str) -> Result<()> {
    let name = url.rsplit('/').next().context("a URL names a database")?;
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    server.sql(&server.url("postgres"), &drop).await?;
    Ok(())
}

/// User and system time of a server so far: of all its processes.
pub(crate) fn server_cpu(server: &TestPostgres) -> Result<Duration> {
    let file = std::fs::read_to_string(server.data_dir().join("postmaster.pid"))?;
    let pid = file.lines().next().context("the pid file is empty")?;
    family_cpu(pid.trim().parse()?)
}

/// The time that client and server have used when a turn begins.
struct Turn<'a> {
    server: &'a TestPostgres,
    client_cpu: Duration,
    server_cpu: Duration,
}

impl<'a> Turn<'a> {
    /// Begins on a server that owes the disk nothing.
    async fn begin(server: &'a TestPostgres) -> Result<Self> {
        server.sql(&server.url("postgres"), "CHECKPOINT").await?;
        Ok(Self {
            server,
            client_cpu: own_cpu()?,
            server_cpu: server_cpu(server)?,
        })
    }

    fn end(self, taken: Duration, candidate: &mut Candidate) -> Result<()> {
        let per_1000 = |used: Duration| used.as_secs_f64() * 1_000.0 / DELIVERIES as f64;
        candidate
            .rates
            .push(DELIVERIES as f64 / taken.as_secs_f64());
        candidate
            .client_cpu
            .push(per_1000(own_cpu()?.saturating_sub(self.client_cpu)));
        candidate.server_cpu.push(per_1000(
            server_cpu(self.server)?.saturating_sub(self.server_cpu),
        ));
        Ok(())
    }
}

impl Candidate {
    /// Client and server together, by round.
    fn cpu(&self) -> Vec<f64> {
        let both = self.client_cpu.iter().zip(&self.server_cpu);
        both.map(|(client, server)| client + server).collect()
    }

    fn print(&self, name: &str) {
        println!(
            "  {name}  {}   CPU {:.3} + {:.3}",
            spread(&self.rates),
            median(&self.client_cpu),
            median(&self.server_cpu)
        );
    }
}

/// All values of one column.
enum Column {
    Numbers(Vec<Option<i64>>),
    Bytes(Vec<Option<Vec<u8>>>),
    Texts(Vec<Option<String>>),
}

impl Column {
    fn new(sql_type: &str, rows: &[PgRow], at: usize) -> Result<Self> {
        Ok(match sql_type {
            "bigint" => Self::Numbers(values(rows, |row| row.try_get(at))?),
            "bytea" => Self::Bytes(values(rows, |row| row.try_get(at))?),
            "text" => Self::Texts(values(rows, |row| row.try_get(at))?),
            other => bail!("columns of type {other} are not copied yet"),
        })
    }
}

fn values<T>(
    rows: &[PgRow],
    value: impl Fn(&PgRow) -> Result<T, sea_orm::sqlx::Error>,
) -> Result<Vec<T>> {
    Ok(rows.iter().map(value).collect::<Result<_, _>>()?)
}

/// A table's rows, and how to insert some of them.
struct Table {
    insert: Arc<str>,
    rows: usize,
    columns: Vec<Column>,
}

impl Table {
    /// Reads the rows in the order of their first column.
    async fn read(connection: &mut PgConnection, name: &str) -> Result<Self> {
        let declared = "SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute \
            WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum";
        let declared: Vec<(String, String)> = query(declared)
            .bind(name)
            .fetch_all(&mut *connection)
            .await?
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<_>>()?;
        let (mut names, mut holes) = (Vec::new(), Vec::new());
        for (column, sql_type) in &declared {
            names.push(format!("\"{column}\""));
            holes.push(format!("${}::{sql_type}[]", names.len()));
        }
        let (names, holes) = (names.join(", "), holes.join(", "));
        let select = format!("SELECT {names} FROM {name} ORDER BY 1");
        let rows = query(AssertSqlSafe(select)).fetch_all(connection).await?;
        ensure!(!rows.is_empty(), "table {name} is empty");
        let columns = declared
            .iter()
            .enumerate()
            .map(|(at, (_, sql_type))| Column::new(sql_type, &rows, at))
            .collect::<Result<_>>()?;
        Ok(Self {
            insert: format!("INSERT INTO {name} ({names}) SELECT * FROM UNNEST({holes})").into(),
            rows: rows.len(),
            columns,
        })
    }
}

/// Inserts the rows into empty tables, as many transactions as the store made.
async fn insert_all(connection: &mut PgConnection, tables: &[Table]) -> Result<Duration> {
    let batches = DELIVERIES / BATCH;
    let start = Instant::now();
    for batch in 0..batches {
        let mut transaction = connection.begin().await?;
        for table in tables {
            let rows = table.rows * batch / batches..table.rows * (batch + 1) / batches;
            let mut insert = query(AssertSqlSafe(Arc::clone(&table.insert)));
            for column in &table.columns {
                insert = match column {
                    Column::Numbers(values) => insert.bind(&values[rows.clone()]),
                    Column::Bytes(values) => insert.bind(&values[rows.clone()]),
                    Column::Texts(values) => insert.bind(&values[rows.clone()]),
                };
            }
            let inserted = insert.execute(&mut *transaction).await?.rows_affected();
            ensure!(inserted == rows.len() as u64, "{inserted} rows inserted");
        }
        transaction.commit().await?;
    }
    Ok(start.elapsed())
}
