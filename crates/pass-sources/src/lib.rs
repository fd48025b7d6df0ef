//! Where callbacks come from: authentication schemes, and one file per vendor.
//!
//! Bytes go in; a verified delivery, its facts and its snapshot come out. The crate is pure: it knows
//! nothing of sockets, clocks, spools, stores or gRPC, reads no file and no environment (the caller
//! resolves secrets), and the receive time is an argument. The same bytes, received at the same time,
//! always decode to the same facts.
//!
//! The only way to a [`Verified`] delivery is [`Source::verify`], and [`Source::decode`] takes nothing
//! else; only a delivery that was verified before it was stored may go through [`Source::decode_stored`].
//!
//! Start reading at [`Source`], then the vendors' files (`passworks.rs`, `passkit.rs`,
//! `signed_envelope.rs`, and [`standard`], whose JSON format is ours), then `auth.rs`.

mod auth;
mod clean;
mod config;
mod envelope_config;
mod json;
mod passkit;
mod passworks;
mod raw;
pub mod samples;
mod sign;
mod signed_envelope;
mod source;
pub mod standard;

pub use auth::{Refusal, RefusalCause};
pub use config::{
    AuthConfig, ConfigFault, SecretConfig, SecretEncoding, SecretRef, SignatureEncoding,
    SourceConfig, UndecodablePolicy,
};
pub use envelope_config::EnvelopeConfig;
pub use sign::{SignError, Signed, sign, sign_envelope};
pub use source::{Request, Source, Verified, method_from_http};
