//! What every Passline process needs around its actual work: reading
//! configuration, logs and traces, listeners with limits, health and an orderly
//! end.
//!
//! The crate deliberately knows nothing of passes, vendors, spools or stores.
//! It has no globals of its own except the one tracing subscriber that
//! [`telemetry::init`] installs; everything else arrives as an argument.
//!
//! Start reading at [`shutdown`], because it says who waits for whom; then
//! [`listener`] and [`grpc`] (the two edges), [`config`] and [`admin`].

pub mod admin;
pub mod clock;
pub mod config;
pub mod grpc;
pub mod listener;
pub mod shutdown;
pub mod telemetry;

mod accept;

/// Exit code of a process that was started wrongly: bad arguments or a
/// configuration with faults (`EX_USAGE` of `sysexits.h`).
pub const EXIT_USAGE: u8 = 64;
