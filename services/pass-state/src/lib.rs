//! pass-state: keeps the one log of wallet-pass events, and answers from it.
//!
//! Gateways send deliveries over [`Ingest`](pass_proto::v1::ingest_service_server) streams. One writer task
//! commits everything that waits in one transaction and acknowledges after it; live subscribers wake, and
//! reads see it. Every gRPC call's specification is its comment in `proto/passline/v1`.
//!
//! The service deliberately knows nothing of vendors (facts come decoded), of HTTP callbacks, and of how the
//! store keeps its rows. Nothing but the store survives a restart.
//!
//! Several replicas may share one PostgreSQL: each has a writer, the store orders their commits, and each sees
//! the others' by hints and by polling.
//!
//! Who may call, and what each caller may see, is decided in one place before any of it (`access.rs`).
//!
//! Start reading at [`PassState`], which builds the parts and says who waits for whom; then `service/start.rs`
//! (opening the store, and waiting for it), `writer.rs` (the one writer), `ingest.rs` (a gateway's stream), `tail.rs` and `tail/subscription.rs` (live fan-out), and
//! `query.rs` (reads). `grpc/` decodes and encodes, and has no rules.

mod access;
pub mod config;
mod fault;
mod frames;
mod grpc;
mod health;
mod ingest;
mod maintenance;
mod metrics;
mod query;
mod service;
mod tail;
mod tasks;
mod writer;

pub use crate::access::AuthFailures;
pub use crate::access::token::generate as new_token;
pub use crate::config::Config;
pub use crate::maintenance::MaintenanceError;
pub use crate::service::{BuildError, Dependencies, PassState, RunError};
