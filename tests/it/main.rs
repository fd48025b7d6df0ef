//! The system tests: one binary, a module per subject. See the harness, `system_tests`, for how they work.

mod order;
mod permutations;

use std::path::PathBuf;

use system_tests::stand::Programs;

/// The services' programs as cargo built them for this run.
fn programs() -> Programs {
    Programs {
        gateway: PathBuf::from(env!("CARGO_BIN_EXE_gateway-under-test")),
        state: PathBuf::from(env!("CARGO_BIN_EXE_gateway-under-test")),
    }
}
