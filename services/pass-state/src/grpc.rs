//! The gRPC services: each decodes a request, calls, and encodes the answer. Rules live elsewhere.

pub(crate) mod call;
pub(crate) mod delivery;
pub(crate) mod ingest;
pub(crate) mod pass;
pub(crate) mod subscription;
