//! Faults to gRPC statuses: the one place where a status code is chosen.
//!
//! Every status carries a `google.rpc.ErrorInfo` (domain `passline.dev`) with a reason from
//! `error_reason.proto`; bad fields come as `BadRequest`, and what may be retried as `RetryInfo`.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

pub use crate::v1::ErrorReason as Reason;

/// The `domain` of every `ErrorInfo`.
pub const DOMAIN: &str = "passline.dev";

/// How long a client should wait before it repeats a call that failed for the moment.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// Why a call fails. Built by the services, turned into a [`Status`] at the edge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    reason: Reason,
    message: String,
    fields: Vec<(String, String)>,
    metadata: Vec<(&'static str, String)>,
}

impl Fault {
    /// A fault with a text for the caller: lower case, names the field or id, never holds SQL, hosts or secrets.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            fields: Vec::new(),
            metadata: Vec::new(),
        }
    }

    /// A field of the request that has a value it cannot have.
    #[must_use]
    pub fn field(field: impl Into<String>, description: impl Into<String>) -> Self {
        let (field, description) = (field.into(), description.into());
        Self {
            message: format!("{field}: {description}"),
            reason: Reason::FieldInvalid,
            fields: vec![(field, description)],
            metadata: Vec::new(),
        }
    }

    /// Several bad fields at once; `None` if there are none.
    #[must_use]
    pub fn fields(fields: Vec<(String, String)>) -> Option<Self> {
        let message = fields
            .iter()
            .map(|(field, description)| format!("{field}: {description}"))
            .collect::<Vec<_>>()
            .join("; ");
        (!fields.is_empty()).then_some(Self {
            message,
            reason: Reason::FieldInvalid,
            fields,
            metadata: Vec::new(),
        })
    }

    /// Something that is not there, by its resource name.
    #[must_use]
    pub fn not_found(resource: impl Into<String>) -> Self {
        let resource = resource.into();
        Self::new(Reason::NotFound, format!("{resource} was not found")).with("resource", resource)
    }

    /// The credential is missing or not valid: one text, whatever is wrong with it.
    #[must_use]
    pub fn unauthenticated() -> Self {
        Self::new(
            Reason::Unauthenticated,
            "a valid credential is required: a bearer token, or a client certificate",
        )
    }

    /// The caller lacks a scope, by the name that configuration gives it.
    #[must_use]
    pub fn scope_missing(scope: &str) -> Self {
        Self::new(
            Reason::PermissionDenied,
            format!("the caller lacks the scope {scope}"),
        )
        .with("scope", scope)
    }

    /// Names the field that the fault is in, besides a reason of its own.
    #[must_use]
    pub fn in_field(mut self, field: impl Into<String>) -> Self {
        self.fields.push((field.into(), self.message.clone()));
        self
    }

    /// Adds a value for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.metadata.push((key, value.into()));
        self
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// The text for the caller.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// The reason as `ErrorInfo` carries it.
#[must_use]
pub fn reason_name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("ERROR_REASON_")
}

/// The status code of a reason.
#[must_use]
pub fn code(reason: Reason) -> Code {
    match reason {
        Reason::FieldInvalid
        | Reason::FilterInvalid
        | Reason::CursorInvalid
        | Reason::PageTokenMismatch => Code::InvalidArgument,
        Reason::CursorExpired => Code::OutOfRange,
        Reason::CursorAhead
        | Reason::CursorEpochMismatch
        | Reason::ProtocolMismatch
        | Reason::SequenceInvalid
        | Reason::NotQuarantined
        | Reason::ReplayConflict => Code::FailedPrecondition,
        Reason::NotFound => Code::NotFound,
        Reason::EtagMismatch | Reason::SpoolFenced | Reason::SubscriberStalled => Code::Aborted,
        Reason::MinCursorNotReached
        | Reason::StoreUnavailable
        | Reason::ServerDraining
        | Reason::StreamRotated
        | Reason::NoGateway => Code::Unavailable,
        Reason::TooManySubscribers | Reason::Overloaded => Code::ResourceExhausted,
        Reason::DeadlineExceeded => Code::DeadlineExceeded,
        Reason::Unauthenticated => Code::Unauthenticated,
        Reason::PermissionDenied => Code::PermissionDenied,
        Reason::Unspecified | Reason::Internal => Code::Internal,
    }
}

/// Whether the status of a reason tells the client when to try again.
fn retried(reason: Reason) -> bool {
    code(reason) == Code::Unavailable || reason == Reason::Overloaded
}

impl From<Fault> for Status {
    fn from(fault: Fault) -> Self {
        let metadata: HashMap<String, String> = fault
            .metadata
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value))
            .collect();
        let mut details =
            ErrorDetails::with_error_info(reason_name(fault.reason), DOMAIN, metadata);
        for (field, description) in fault.fields {
            details.add_bad_request_violation(field, description);
        }
        if retried(fault.reason) {
            details.set_retry_info(Some(RETRY_AFTER));
        }
        Status::with_error_details(code(fault.reason), fault.message, details)
    }
}

/// The reason that a status of this API carries, for clients.
#[must_use]
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    if info.domain != DOMAIN {
        return None;
    }
    Reason::from_str_name(&format!("ERROR_REASON_{}", info.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_code_and_comes_back() {
        let mut table = String::new();
        for number in 1.. {
            let Ok(reason) = Reason::try_from(number) else {
                break;
            };
            let status = Status::from(Fault::new(reason, "text").with("key", "value"));
            assert_eq!(reason_of(&status), Some(reason));
            assert_eq!(status.get_details_retry_info().is_some(), retried(reason));
            table.push_str(&format!(
                "{} {:?}{}\n",
                reason_name(reason),
                status.code(),
                if retried(reason) { " retry" } else { "" }
            ));
        }
        assert_eq!(table, TABLE);
    }

    #[test]
    fn bad_fields_are_all_named() {
        let fault = Fault::fields(vec![
            ("a".into(), "is empty".into()),
            ("b".into(), "is too long".into()),
        ])
        .expect("two");
        let status = Status::from(fault);
        assert_eq!(status.message(), "a: is empty; b: is too long");
        let violations = status
            .get_details_bad_request()
            .expect("there")
            .field_violations;
        assert_eq!(violations.len(), 2);
        assert_eq!(Fault::fields(Vec::new()), None);
    }

    const TABLE: &str = "\
FIELD_INVALID InvalidArgument
FILTER_INVALID InvalidArgument
CURSOR_INVALID InvalidArgument
CURSOR_EXPIRED OutOfRange
CURSOR_AHEAD FailedPrecondition
CURSOR_EPOCH_MISMATCH FailedPrecondition
PAGE_TOKEN_MISMATCH InvalidArgument
NOT_FOUND NotFound
ETAG_MISMATCH Aborted
MIN_CURSOR_NOT_REACHED Unavailable retry
STORE_UNAVAILABLE Unavailable retry
SERVER_DRAINING Unavailable retry
STREAM_ROTATED Unavailable retry
TOO_MANY_SUBSCRIBERS ResourceExhausted
SUBSCRIBER_STALLED Aborted
SPOOL_FENCED Aborted
PROTOCOL_MISMATCH FailedPrecondition
SEQUENCE_INVALID FailedPrecondition
NO_GATEWAY Unavailable retry
NOT_QUARANTINED FailedPrecondition
REPLAY_CONFLICT FailedPrecondition
DEADLINE_EXCEEDED DeadlineExceeded
INTERNAL Internal
OVERLOADED ResourceExhausted retry
UNAUTHENTICATED Unauthenticated
PERMISSION_DENIED PermissionDenied
";
}
