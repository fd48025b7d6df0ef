//! Keeps the log: deliveries, events, passes and the progress of spools, in one database.
//!
//! [`contract`] says what a store does, without saying how; read it first. [`sql`] does it with sea-orm on
//! SQLite and PostgreSQL, `plan` (pure) decides what is written, `stored` how it is spelled in blobs. This
//! crate knows nothing of gRPC, HTTP or vendors, and reads no clock. `EXPLAIN.md` shows how PostgreSQL answers
//! each call.

pub mod contract;
mod plan;
pub mod sql;
mod stored;
#[cfg(any(test, feature = "testing"))]
pub mod suite;

pub use contract::*;
pub use sql::{PostgresOptions, SqlStore, SqliteOptions};
