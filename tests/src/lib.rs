//! The harness of the system tests: both services as a user would run them, senders that remember every
//! answer, and a judge that compares what was promised with what is recorded.
//!
//! It knows the services by their binaries, their configuration files, HTTP and gRPC, and nothing of their
//! insides; only the adapters and the fold are used as libraries, as the model to compare with. The binaries
//! are built from the services' own `main.rs` with the planted defects compiled in, which are off unless a
//! test's configuration names them.
//!
//! Start reading at [`fleet`] (what a test starts), then [`oracle`] (what it is judged by).

pub mod callback;
pub mod chaos;
pub mod client;
pub mod collector;
pub mod dice;
pub mod fleet;
pub mod follower;
pub mod history;
pub mod markers;
pub mod oracle;
pub mod rolling;
pub mod service;
pub mod slow;
pub mod sources;
pub mod stand;
pub mod syscalls;
pub mod tls;
pub mod torture;
