//! The wire: generated messages and services, and the only places where wire types and domain types meet.
//!
//! [`convert`] turns one into the other and checks what comes in; [`status`] turns errors into gRPC
//! statuses with machine-readable reasons; [`access`] says which scope each method requires. This crate knows nothing of stores, spools or vendors.
//! Start reading at [`convert`].

pub mod access;
pub mod convert;
pub mod status;

/// Generated from `proto/passline/v1`.
#[expect(
    clippy::large_enum_variant,
    clippy::doc_markdown,
    reason = "generated code; its documentation is in the protos"
)]
pub mod v1 {
    tonic::include_proto!("passline.v1");
}

/// The compiled protos, for reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/passline.bin"));
