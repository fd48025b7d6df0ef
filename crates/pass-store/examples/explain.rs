//! The plan of every call on a large log, as a table for `EXPLAIN.md`; with `full`, the plans themselves.
//!
//! `PASSLINE_POSTGRES_BIN=/usr/lib/postgresql/15/bin \
//!  cargo run -p pass-store --features testing --example explain [events] [passes] [full]`

use std::sync::Arc;

use pass_store::suite::plans::{self, SETTINGS};
use pass_store::{PassStore, PostgresOptions, SqlStore};
use test_kit::TestPostgres;

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: u64| {
        arguments
            .get(at)
            .map_or(default, |text| text.parse().expect("a number"))
    };
    let (events, passes) = (number(0, 3_000_000), number(1, 300_000));
    let full = arguments.iter().any(|argument| argument == "full");
    let server = TestPostgres::start_with(&SETTINGS).await.expect("a server");
    let url = server.database().await.expect("a database");
    let options = PostgresOptions {
        readers_max: 1,
        notifications: false,
        ..PostgresOptions::new(&url)
    };
    let store = SqlStore::open_postgres(options).await.expect("opened");
    let store: Arc<dyn PassStore> = Arc::new(store);
    plans::seed(&store).await;
    for step in plans::fill(events, passes) {
        server.sql(&url, &step).await.expect("filled");
    }
    let path = server.data_dir().with_file_name("server.log");
    let log = || String::from_utf8_lossy(&std::fs::read(&path).expect("a log")).into_owned();
    // Twice: the first time warms the caches up.
    plans::calls(&*store, events, passes, log).await;
    let called = plans::calls(&*store, events, passes, log).await;
    let version = server.sql(&url, "SHOW server_version").await.expect("read");
    println!(
        "PostgreSQL {version}, {events} events, {passes} passes, pages of {} rows\n",
        plans::PAGE
    );
    println!("| call | statements | scans | rows examined | pages | ms |");
    println!("|---|---|---|---|---|---|");
    for called in called {
        let examined: u64 = called.plans.iter().map(plans::Plan::examined).sum();
        let pages: u64 = called.plans.iter().map(|plan| plan.buffers).sum();
        let millis: f64 = called.plans.iter().map(|plan| plan.millis).sum();
        println!(
            "| {} | {} | {} | {examined} | {pages} | {millis:.2} |",
            called.call,
            called.plans.len(),
            called.summary(),
        );
        for plan in called.plans.iter().filter(|_| full) {
            println!("\n```\n{}```\n", plan.text);
        }
    }
    store.close().await;
}
