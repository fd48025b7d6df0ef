//! What the planner makes of every call, on a log of a realistic size.

use std::sync::Arc;

use test_kit::TestPostgres;

use super::super::PostgresOptions;
use crate::contract::PassStore;
use crate::sql::SqlStore;
use crate::suite::plans::{self, PAGE, SETTINGS};

const EVENTS: u64 = 100_000;
const PASSES: u64 = 20_000;

/// After five uses the server may plan a prepared statement without looking at its parameters.
const ROUNDS: usize = 8;

// With all its choices left to it, the planner takes the index that each statement was written for, and no
// page examines more than a few rows for each that it may give. Then again as in production.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_reads_a_table_whole_or_examines_more_than_its_page() {
    let server = TestPostgres::start_with(&SETTINGS).await.expect("a server");
    let url = server.database().await.expect("a database");
    let log = server.data_dir().with_file_name("server.log");
    let log = || String::from_utf8_lossy(&std::fs::read(&log).expect("a log")).into_owned();
    for unguarded in [true, false] {
        let options = PostgresOptions {
            unguarded,
            notifications: false,
            readers_max: 1,
            ..PostgresOptions::new(&url)
        };
        let store = SqlStore::open_postgres(options).await.expect("opened");
        let store: Arc<dyn PassStore> = Arc::new(store);
        if unguarded {
            plans::seed(&store).await;
            for step in plans::fill(EVENTS, PASSES) {
                server.sql(&url, &step).await.expect("filled");
            }
        }
        let mut called = Vec::new();
        for _ in 0..ROUNDS {
            called.extend(plans::calls(&*store, EVENTS, PASSES, log).await);
        }
        assert!(called.len() > 20 * ROUNDS);
        for called in &called {
            assert!(
                !called.plans.is_empty(),
                "{}: no plan was logged",
                called.call
            );
            for plan in &called.plans {
                assert!(
                    !plan.reads_a_table_whole(),
                    "{}: {}",
                    called.call,
                    plan.text
                );
                assert!(
                    plan.examined() <= 4 * u64::from(PAGE),
                    "{}: {} rows: {}",
                    called.call,
                    plan.examined(),
                    plan.text
                );
            }
        }
        store.close().await;
    }
}
