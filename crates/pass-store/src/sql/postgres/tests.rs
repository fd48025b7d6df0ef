//! The suite on PostgreSQL, and what only a server can do.

use std::sync::{Arc, Weak};

use test_kit::TestPostgres;
use tokio::sync::Mutex;

use super::PostgresOptions;
use crate::contract::PassStore;
use crate::sql::SqlStore;

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
