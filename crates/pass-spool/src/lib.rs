//! A durable queue between answering a webhook and the state service's commit.
//!
//! [`Spool`] is the contract: append, lease, settle, rewind. [`EmbeddedSpool`] keeps it in a local directory,
//! [`JetStreamSpool`] on NATS servers, shared by several gateways. What an append has answered survives a kill and a
//! power cut, and comes out of a lease in the same order, once per rewind.
//!
//! The crate knows nothing of vendors, passes, HTTP or gRPC: records are opaque bytes, and whether one was committed
//! downstream is what [`Spool::settle`] and [`Spool::rewind`] say.
//!
//! Start reading at [`Spool`]; then the module documentation of `embedded`, and of `embedded/format` for the bytes
//! on disk, or of `jetstream`. With the feature `testing`, `suite` is the contract as tests, for any implementation.

mod contract;
mod embedded;
mod jetstream;
#[cfg(any(test, feature = "testing"))]
pub mod suite;

pub use contract::{
    AppendError, LeaseError, Leased, RecordId, RewindError, RewindOutcome, Sequence, SettleError,
    Spool, SpoolHealth, SpoolId, SpoolIdInvalid, SpoolStatus,
};
pub use embedded::{
    APPEND_QUEUE_CEILING, APPEND_WAIT_MAX, DiskOp, EmbeddedOptions, EmbeddedSpool, FaultHook,
    LEASE_BYTES_CEILING, LEASE_RECORDS_CEILING, OpenError, Quarantined, SEGMENT_BYTES_CEILING,
    SyncObserver, WallClock, quarantine_damage,
};
pub use jetstream::{
    APPEND_IN_FLIGHT_CEILING, JetStreamOpenError, JetStreamOptions, JetStreamSpool,
    NatsCredentials, NatsLogin, RECORD_BYTES_CEILING, WINDOW_RECORDS_CEILING,
};
