//! What the test suites of several crates share: waiting for a condition, ports that stay ours, real servers
//! that a test may stop and kill ([`TestPostgres`], [`TestNats`]), a network that fails on request
//! ([`ChaosProxy`]) or follows readiness ([`Balancer`]), certificates ([`pki`]), and the outside programs that tests use.
//!
//! It knows nothing of passes, spools or services, and is a dependency of tests only. Start reading at
//! [`wait_for`].

mod balancer;
mod home;
mod nats;
pub mod pki;
mod ports;
mod postgres;
mod process;
mod proxy;
mod wait;

use std::path::PathBuf;

use anyhow::{Context as _, ensure};

pub use balancer::{Backend, Balanced, Balancer};
pub use nats::{NatsSettings, TestNats};
pub use ports::PortLease;
pub use postgres::TestPostgres;
pub use proxy::{ChaosProxy, Cut};
pub use wait::{POLL_INTERVAL, wait_for};

/// Finds an outside program by the environment variable that `tests/run` sets, such as `PASSLINE_STRACE`.
///
/// # Errors
/// If the variable is not set or names no file; the text says how to get the program.
#[expect(
    clippy::disallowed_methods,
    reason = "the test command hands over its tools by environment; there is no configuration to read them from"
)]
pub fn tool(variable: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from).with_context(|| {
        format!("{variable} is not set: run `tests/run`, or `tests/run tools` and set it to the installed program")
    })?;
    ensure!(
        path.is_file(),
        "{variable} names {}, which is no file: run `tests/run tools`",
        path.display()
    );
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_an_error_that_says_how_to_get_it() {
        let error = tool("PASSLINE_NO_SUCH_TOOL").unwrap_err().to_string();
        assert!(
            error.contains("PASSLINE_NO_SUCH_TOOL") && error.contains("tests/run tools"),
            "{error}"
        );
    }
}
