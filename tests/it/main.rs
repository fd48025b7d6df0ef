//! The system tests: one binary, a module per subject. See the harness, `system_tests`, for how they work.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is a test, but clippy only knows the functions marked as one"
)]

mod access;
mod crash;
mod drain;
mod end_to_end;
mod failover;
mod hostile;
mod judging;
mod markers;
mod metrics;
mod order;
mod otlp;
mod outage;
mod permutations;
mod quarantine;
mod readers;
mod reload;
mod replicas;
mod restore;
mod shared;
mod tls;
mod token;
mod trace;

use std::path::PathBuf;

use system_tests::stand::Programs;

/// The services' programs as cargo built them for this run.
fn programs() -> Programs {
    Programs {
        gateway: PathBuf::from(env!("CARGO_BIN_EXE_gateway-under-test")),
        state: PathBuf::from(env!("CARGO_BIN_EXE_pass-state-under-test")),
    }
}
