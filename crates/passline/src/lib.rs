//! The command for people, `passline`: run everything, show it off, send
//! callbacks, read passes, follow the log.
//!
//! The crate holds no rules of its own: it starts the two services as they are,
//! talks to them over loopback HTTP and gRPC like any client, and turns what it
//! hears into text. It deliberately knows nothing of spools, stores or how a
//! callback is decoded.
//!
//! Start reading at [`args`] (what can be typed), then `services.rs` (both
//! services in one process), `up.rs` and `demo.rs`; `render.rs` holds the pure
//! functions that make text of messages.

pub mod args;
mod client;
mod config;
mod demo;
mod failure;
mod get;
mod json;
mod output;
mod post;
mod render;
mod sample_sources;
mod send;
mod services;
mod smoke;
mod tail;
mod up;

pub use failure::Failure;
pub use output::Out;

use args::{Cli, Command};

/// Runs a command to its end.
///
/// # Errors
/// Fails with the exit code and the text for the person who typed it.
pub async fn run(cli: Cli, out: &mut Out) -> Result<(), Failure> {
    match cli.command {
        Command::Up(args) => up::run(args, out).await,
        Command::Demo(args) => Box::pin(demo::run(args, out)).await,
        Command::Send(args) => send::run(args, out).await,
        Command::Smoke(args) => smoke::run(args, out).await,
        Command::Get(args) => get::run(args, out).await,
        Command::Tail(args) => tail::run(args, out).await,
        Command::CheckConfig(args) => config::check(&args, out),
    }
}
