//! The webhook gateway: takes vendors' callbacks, makes them durable, answers, and forwards them.
//!
//! A callback is authenticated on its raw bytes, decoded, appended to the spool and synced, and only then
//! answered 200. A task of its own forwards the spool to pass-state over one long-lived stream. While
//! pass-state is away the gateway keeps answering; the spool absorbs.
//!
//! The gateway deliberately knows nothing of the log, of databases, of the state of passes, or of whether a
//! fact was seen before: all that is pass-state's. It keeps nothing but the spool, and with a spool on JetStream,
//! which several gateways share, nothing at all.
//!
//! Start reading at [`Gateway`], then `http/receive.rs` (the path of one callback) and `forward.rs` (the way
//! to pass-state).

mod backend;
pub mod books;
pub mod config;
mod forward;
mod gateway;
mod http;
mod import;
mod limits;
mod metrics;
mod policy;
pub mod record;
mod reload;
mod sources;
#[cfg(test)]
mod testing;
mod waiters;

pub use crate::config::Config;
pub use crate::forward::ForwardStatus;
pub use crate::gateway::{BuildError, Dependencies, Gateway, Observer, RunError};
pub use crate::http::problem::Problem;
pub use crate::import::{ImportError, Imported, spool_import};
