//! The tables as sea-orm sees them, for reads that are not hot. The schema is in `pass-migration`.

pub(super) mod delivery;
pub(super) mod pass;
pub(super) mod quarantine;
pub(super) mod spool;
