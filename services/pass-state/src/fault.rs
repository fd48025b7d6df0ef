//! The store's errors as faults for callers: one mapping, and the one place that logs them.

use pass_proto::status::{Fault, Reason};
use pass_store as store;

/// Logs a store's error with its chain and says what the caller may know of it: never SQL, paths or rows.
pub(crate) fn of_store(error: &store::Error) -> Fault {
    match error {
        store::Error::Unavailable(_) => {
            tracing::warn!(error = %error, "the store cannot be used at the moment");
            store_unavailable()
        }
        store::Error::OutcomeUnknown(_) => {
            tracing::warn!(error = %error, "a transaction's outcome is unknown");
            store_unavailable()
        }
        store::Error::Untrusted => Fault::new(
            Reason::PermissionDenied,
            "the database holds less of this spool than the spool was told. If the database was put back, a gateway \
             whose principal has sources = [\"*\"] must connect first, since the log then gets a new epoch, or this \
             one's principal must have that for one connection. The spool keeps what it holds until then",
        ),
        store::Error::Refused(_)
        | store::Error::Corrupt(_)
        | store::Error::Unfit(_)
        | store::Error::NotMigrated { .. } => {
            tracing::error!(error = %error, "the store failed for good");
            internal()
        }
    }
}

/// The store cannot be used at the moment.
pub(crate) fn store_unavailable() -> Fault {
    Fault::new(
        Reason::StoreUnavailable,
        "the store cannot be used at the moment; try again",
    )
}

/// A fault of ours.
pub(crate) fn internal() -> Fault {
    Fault::new(
        Reason::Internal,
        "the store failed for good; the service's log has the cause",
    )
}

/// The service is shutting down.
pub(crate) fn draining() -> Fault {
    Fault::new(
        Reason::ServerDraining,
        "the service is shutting down; connect again",
    )
}
