//! The suite on PostgreSQL, and what only a server can do.

mod faults;
mod history;
mod plans;
#[cfg(feature = "planted-bugs")]
mod planted;

mod start;
mod tls;

use std::sync::{Arc, Weak};

use pass_domain::delivery::{Delivery, Outcome};
use pass_domain::kind::Kind;
use test_kit::TestPostgres;
use tokio::sync::Mutex;

use super::PostgresOptions;
use crate::contract::{AppendPart, Error, PartOutcome, PassStore};
use crate::sql::SqlStore;
use crate::suite::hello;
use crate::suite::make::{Says, at, delivery, short};

/// A server for all tests of one process, which ends with the last of them.
static SERVER: Mutex<Weak<TestPostgres>> = Mutex::const_new(Weak::new());

async fn server() -> Arc<TestPostgres> {
    let mut shared = SERVER.lock().await;
    if let Some(server) = shared.upgrade() {
        return server;
    }
    let server = Arc::new(TestPostgres::start().await.expect("a server"));
    *shared = Arc::downgrade(&server);
    server
}

async fn open(url: &str) -> Arc<SqlStore> {
    let store = SqlStore::open_postgres(PostgresOptions::new(url)).await;
    Arc::new(store.expect("opened"))
}

async fn postgres() -> (Arc<dyn PassStore>, Arc<TestPostgres>) {
    let server = server().await;
    let url = server.database().await.expect("a database");
    (open(&url).await, server)
}

crate::store_suite!(postgres);

fn updated(number: u64) -> Delivery {
    let seconds = i64::try_from(number).expect("small");
    delivery(
        "acme",
        number,
        &Says::Facts(vec![short(1, Kind::Updated, seconds)], None),
    )
}

/// Appends the delivery with that sequence and number to spool 1, as a gateway does that was connected anew.
async fn send(store: &dyn PassStore, sequence: u64) -> Result<Outcome, Error> {
    let generation = store.spool_open(&hello(1)).await?.generation;
    let part = AppendPart {
        spool: hello(1).spool,
        generation,
        deliveries: vec![(sequence, Arc::new(updated(sequence)))],
    };
    let appended = store.append(&[part], at(0)).await?;
    match &appended.parts[0] {
        PartOutcome::Committed { outcomes, .. } => Ok(outcomes[0].1),
        other => panic!("sequence {sequence}: {other:?}"),
    }
}
