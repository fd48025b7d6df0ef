//! Keeps the log: deliveries, events, passes and the progress of spools, in one database.
//!
//! [`contract`] says what a store does, without saying how; read it first. [`sql`] does it with sea-orm on
//! SQLite. This crate knows nothing of gRPC, HTTP or vendors, and reads no clock.

pub mod contract;

pub use contract::*;
