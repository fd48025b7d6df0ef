//! The whole service over real sockets and, unless a fault is the subject, a real database in a temporary
//! directory. Gateways and subscribers are scripted clients.

#![expect(
    clippy::unwrap_used,
    reason = "clippy's exception for tests does not reach their helper functions"
)]

mod access;
mod commands;
mod compression;
mod database;
mod deliveries;
mod faulty;
mod harness;
mod history;
mod ingest;
mod make;
mod operations;
mod reads;
mod replicas;
mod rotation;
mod subscribe;
