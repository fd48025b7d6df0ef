//! What the sources make of real and of hostile callbacks.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is test code; the lint sees only functions marked as tests"
)]

mod auth;
mod build;
mod envelope;
mod golden;
mod hostile;
mod order;
mod passkit;
mod passworks;
mod standard;
mod support;
