//! How fast a store applies and reads events, next to raw statements on the same rows.
//!
//! `cargo run --release -p pass-store --features testing --example apply [deliveries] [batch] [postgres]`
//!
//! With `postgres` it starts a server of its own (`PASSLINE_POSTGRES_BIN` names its programs' directory) and the
//! raw reference is one UNNEST insert per table; otherwise it is SQLite, and prepared statements.

mod postgres;
mod sqlite;

use std::sync::Arc;
use std::time::{Duration, Instant};

use pass_domain::delivery::{Decoded, Delivery};
use pass_domain::event::Position;
use pass_domain::identity::{Part, event_id};
use pass_domain::ids::VendorId;
use pass_domain::kind::Kind;
use pass_store::suite::make::{Says, at, delivery, short};
use pass_store::{
    AppendPart, PassStore, PostgresOptions, Scope, SpoolHello, SpoolId, SqlStore, SqliteOptions,
};
use test_kit::TestPostgres;

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

/// Appends everything, then reads it; gives both rates.
async fn ours(store: &SqlStore, all: &[Arc<Delivery>], batch: u64) -> (f64, f64) {
    let hello = SpoolHello {
        spool: SpoolId([1; 16]),
        gateway: "bench".to_owned(),
        settled_sequence: 0,
        oldest_sequence: 0,
        may_change_epoch: true,
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
    let append = rate(
        &format!("append by {batch}"),
        all.len() as u64,
        started.elapsed(),
    );
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
    (append, rate("events_after by 500", read, started.elapsed()))
}

fn ratios((append, read): (f64, f64), (raw_append, raw_read): (f64, f64)) {
    println!(
        "ratio: append {:.2}, events_after {:.2}",
        append / raw_append,
        read / raw_read
    );
}

async fn on_sqlite(all: &[Arc<Delivery>], batch: u64) {
    let deliveries = all.len() as u64;
    let directory = tempfile::tempdir().expect("a directory");
    for round in 0..3 {
        let path = directory.path().join(format!("ours-{round}.db"));
        let store = SqlStore::open(SqliteOptions::new(&path))
            .await
            .expect("opened");
        let rates = ours(&store, all, batch).await;
        store.close().await;
        let raw_path = directory.path().join(format!("raw-{round}.db"));
        SqlStore::open(SqliteOptions::new(&raw_path))
            .await
            .expect("opened")
            .close()
            .await;
        let took = sqlite::insert(&path, &raw_path, deliveries, batch).await;
        let what = format!("raw prepared inserts by {batch}, four tables");
        let raw = rate(&what, deliveries, took);
        let (rows, took) = sqlite::select(&path, 500).await;
        let raw_read = rate("raw prepared select by 500", rows, took);
        ratios(rates, (raw, raw_read));
    }
}

async fn on_postgres(all: &[Arc<Delivery>], batch: u64) {
    let deliveries = all.len() as u64;
    let settings = [("shared_buffers", "256MB"), ("max_wal_size", "4GB")];
    let server = TestPostgres::start_with(&settings).await.expect("a server");
    for _ in 0..3 {
        let url = server.database().await.expect("a database");
        let raw_url = server.database().await.expect("a database");
        let store = SqlStore::open_postgres(PostgresOptions::new(&url)).await;
        let store = store.expect("opened");
        let rates = ours(&store, all, batch).await;
        store.close().await;
        let raw = SqlStore::open_postgres(PostgresOptions::new(&raw_url)).await;
        raw.expect("opened").close().await;
        let took = postgres::insert(&url, &raw_url, deliveries, batch).await;
        let what = format!("raw UNNEST inserts by {batch}, four tables");
        let raw = rate(&what, deliveries, took);
        let (rows, took) = postgres::select(&url, 500).await;
        let raw_read = rate("raw prepared select by 500", rows, took);
        ratios(rates, (raw, raw_read));
    }
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut numbers = arguments.iter().filter_map(|text| text.parse::<u64>().ok());
    let deliveries = numbers.next().unwrap_or(20_000);
    let batch = numbers.next().unwrap_or(500);
    let all: Vec<Arc<Delivery>> = (0..deliveries)
        .map(|number| Arc::new(made(number)))
        .collect();
    if arguments.iter().any(|argument| argument == "postgres") {
        on_postgres(&all, batch).await;
    } else {
        on_sqlite(&all, batch).await;
    }
}
