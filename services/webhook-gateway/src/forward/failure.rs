//! The ways a stream can end, and what helps against each.

use std::time::Duration;

use pass_domain::ids::DeliveryId;
use pass_proto::status::reason_of;
use pass_proto::v1;
use pass_spool::{LeaseError, SettleError};
use tonic::{Code, Status};

use super::Remedy;
use super::window::AckError;
use crate::record::RecordError;

/// The protocol version this gateway speaks. A peer one older or newer works.
pub(super) const PROTOCOL_VERSION: i32 = 1;
/// Most texts of one error that are kept, in bytes.
const ERROR_BYTES_MAX: usize = 512;

/// What ended a stream that was not to end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("pass-state says {:?}: {}{}", .0.code(), cut(.0.message()), cause(.0))]
    Status(Box<Status>),
    #[error("pass-state rotated the stream or is stopping")]
    Rotated,
    #[error("the sources changed; pass-state is told by a new stream")]
    SourcesChanged,
    #[error("a newer stream of this spool took over")]
    Fenced,
    #[error("pass-state refuses what this gateway is configured to send: {}; make the two fit", cut(.0))]
    Refused(String),
    #[error(
        "pass-state speaks protocol {theirs}, this gateway {PROTOCOL_VERSION}; upgrade the older one"
    )]
    ProtocolMismatch { theirs: String },
    #[error("pass-state ended the stream")]
    Closed,
    #[error("pass-state did not answer the hello within {0:?}")]
    HelloTimeout(Duration),
    #[error("pass-state acknowledged nothing for {0:?}")]
    NoProgress(Duration),
    #[error("pass-state sent {0}")]
    Unexpected(&'static str),
    #[error(transparent)]
    Ack(#[from] AckError),
    #[error(
        "pass-state has committed sequence {committed} of this spool, which ends at {last}: {}",
        rescue(*shared)
    )]
    SpoolBehind {
        committed: u64,
        last: u64,
        shared: bool,
    },
    #[error(
        "pass-state has recorded {theirs} as sequence {sequence} of this spool, which has {ours} there: {}",
        rescue(*shared)
    )]
    SpoolRestored {
        sequence: u64,
        theirs: DeliveryId,
        ours: DeliveryId,
        shared: bool,
    },
    /// The spool's next record is not the next sequence: an operator has moved damage aside. The next hello
    /// says from where the spool goes on.
    #[error("sequences {first} to {last} are no longer in the spool")]
    Hole { first: u64, last: u64 },
    #[error("record {sequence} of the spool can't be read: {error}")]
    Record { sequence: u64, error: RecordError },
    #[error("spool: {0}")]
    Lease(#[from] LeaseError),
    #[error("spool: {0}")]
    Settle(#[from] SettleError),
    #[error("spool is closed")]
    SpoolClosed,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        match reason_of(&status) {
            Some(v1::ErrorReason::SpoolFenced) => Self::Fenced,
            Some(v1::ErrorReason::StreamRotated | v1::ErrorReason::ServerDraining) => Self::Rotated,
            Some(v1::ErrorReason::FieldInvalid) => Self::Refused(status.message().to_owned()),
            Some(v1::ErrorReason::ProtocolMismatch) => Self::ProtocolMismatch {
                theirs: "another version".to_owned(),
            },
            // Named by the code alone where a proxy dropped the details.
            None if status.code() == Code::Aborted => Self::Fenced,
            Some(_) | None => Self::Status(Box::new(status)),
        }
    }
}

impl Failure {
    /// The first sequence after the hole that ended the stream, else 0.
    pub(super) fn hole_end(&self) -> u64 {
        if let Failure::Hole { last, .. } = self {
            last.saturating_add(1)
        } else {
            0
        }
    }

    /// True if streams end like this every now and then.
    pub(super) fn is_ordinary(&self) -> bool {
        matches!(self, Failure::Rotated | Failure::SourcesChanged)
    }

    /// True if pass-state does not let this gateway do what it does, as where a delivery is of a source that its
    /// principal may not send.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Failure::Status(status) if status.code() == Code::PermissionDenied)
    }

    /// True if something in the spool can't be read.
    pub(super) fn is_of_the_spool(&self) -> bool {
        matches!(
            self,
            Failure::Record { .. } | Failure::Lease(LeaseError::Damaged { .. })
        )
    }

    /// True if the spool was put back to an earlier moment, so that it gives numbers to deliveries under which
    /// pass-state has others.
    pub(super) fn is_of_a_restored_spool(&self) -> bool {
        matches!(
            self,
            Failure::SpoolBehind { .. } | Failure::SpoolRestored { .. }
        )
    }

    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Failure::Status(_)
            | Failure::Rotated
            | Failure::SourcesChanged
            | Failure::Closed
            | Failure::HelloTimeout(_)
            | Failure::NoProgress(_)
            | Failure::Unexpected(_)
            | Failure::Ack(_)
            | Failure::Settle(
                SettleError::Ahead { .. } | SettleError::Unavailable(_) | SettleError::Closed,
            )
            | Failure::SpoolClosed
            | Failure::Hole { .. }
            | Failure::Lease(
                LeaseError::Dropped { .. }
                | LeaseError::Read { .. }
                | LeaseError::Poisoned(_)
                | LeaseError::Unavailable(_)
                | LeaseError::Closed,
            ) => Remedy::Retry,
            Failure::Lease(LeaseError::TurnLost) | Failure::Settle(SettleError::TurnLost) => {
                Remedy::Turn
            }
            Failure::Fenced => Remedy::Fenced,
            Failure::ProtocolMismatch { .. }
            | Failure::Refused(_)
            | Failure::SpoolBehind { .. }
            | Failure::SpoolRestored { .. }
            | Failure::Record { .. }
            | Failure::Lease(LeaseError::Damaged { .. }) => Remedy::Blocked,
        }
    }
}

/// What has to be done with a spool that was put back to an earlier moment, so that nothing of it is lost.
fn rescue(shared: bool) -> &'static str {
    if shared {
        "the stream was put back to an earlier moment, and callbacks are refused; give it another id (nats stream edit \
         STREAM --metadata=passline.spool_id=…, 32 new hexadecimal digits) and restart all gateways: what it holds is \
         sent again, and what is recorded already is not recorded twice"
    } else {
        "the spool was put back to an earlier moment, and callbacks are refused; stop the gateway, move the spool's \
         directory aside, run `webhook-gateway spool import` with its new place, --config and --data-dir, and start the \
         gateway: what is recorded already is not recorded twice"
    }
}

/// What is behind a status that came about on this side, such as the certificate that was refused.
fn cause(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(String::new, |cause| {
        format!(" ({})", cut(&cause.to_string()))
    })
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(ERROR_BYTES_MAX)]
}
