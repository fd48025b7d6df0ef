//! What every Passline process needs around its actual work: reading
//! configuration, logs and traces, listeners with limits, health and an orderly
//! end.
//!
//! The crate deliberately knows nothing of passes, vendors, spools or stores.
//! It has no globals of its own except the one tracing subscriber that
//! [`telemetry::init`] installs and the process's memory allocator; everything
//! else arrives as an argument.
//!
//! Start reading at [`shutdown`], because it says who waits for whom; then
//! [`listener`] and [`grpc`] (the two edges), [`config`], [`reload`] and [`admin`].

pub mod admin;
pub mod clock;
pub mod config;
pub mod grpc;
pub mod listener;
pub mod metrics;
pub mod reload;
pub mod seldom;
pub mod shutdown;
pub mod telemetry;
pub mod tls;

mod accept;
mod linger;

/// The allocator of every Passline process. Requests are allocated on one thread
/// and freed on another all the time, which glibc's allocator does badly: a
/// fifth of the gateway's processor time went into it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of a process that was started wrongly: bad arguments or a
/// configuration with faults (`EX_USAGE` of `sysexits.h`).
pub const EXIT_USAGE: u8 = 64;
