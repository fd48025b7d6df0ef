//! What all calls share: who asks, until when, and what is wrong with a request.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_domain::filter::{Filter, Schema};
use pass_proto::status::{Fault, Reason};
use prost_types::FieldMask;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Response, Status};
use tracing::Instrument as _;

use crate::access::Caller;
use crate::query::mask::{Mask, MessageTypes};

/// How much earlier than the client's deadline we answer, so that the answer still reaches it: a tenth of
/// it, at most this.
const DEADLINE_MARGIN_MAX: Duration = Duration::from_millis(100);

/// Who makes a request.
///
/// # Errors
/// If the request did not come through the access layer, which is a bug: then nobody may do anything.
pub(crate) fn caller(extensions: &Extensions) -> Result<Caller, Fault> {
    extensions.get::<Caller>().cloned().ok_or_else(|| {
        tracing::error!("a call came past the access layer; it was refused");
        Fault::unauthenticated()
    })
}

/// Runs a unary call within the shorter of the server's deadline and the client's.
pub(crate) async fn unary<T>(
    service: &'static str,
    method: &'static str,
    metadata: &MetadataMap,
    deadline: Duration,
    work: impl Future<Output = Result<T, Fault>>,
) -> Result<Response<T>, Status> {
    let deadline = client_timeout(metadata).map_or(deadline, |client| {
        deadline.min(client.saturating_sub((client / 10).min(DEADLINE_MARGIN_MAX)))
    });
    let span = tracing::info_span!(
        "grpc",
        otel.name = %format_args!("{service}/{method}"),
        otel.kind = "server",
        service.name = "pass-state",
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
    );
    let text = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
    if let Some(traceparent) = text("traceparent") {
        let parent = service_kit::telemetry::extract(traceparent, text("tracestate"));
        service_kit::telemetry::set_parent(&span, parent);
    }
    match tokio::time::timeout(deadline, Box::pin(work.instrument(span))).await {
        Ok(Ok(answer)) => Ok(Response::new(answer)),
        Ok(Err(fault)) => Err(fault.into()),
        Err(_) => Err(Fault::new(
            Reason::DeadlineExceeded,
            "the call could not be answered within its deadline",
        )
        .into()),
    }
}

/// The client's timeout, if it sent one that can be read: up to 8 digits and a unit.
fn client_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// A stream's age: the configured one less up to a tenth, so that streams opened together end apart.
pub(crate) fn jittered(age: Duration) -> Duration {
    // The standard library's hasher keys are random; that is randomness enough here.
    let tenth = age / 10;
    let random = RandomState::new().hash_one(0_u8) % 1_000;
    age - tenth.mul_f64(random as f64 / 1_000.0)
}

/// What is wrong with a request: everything is collected, so that all of it is told at once.
#[derive(Default)]
pub(crate) struct Bad {
    fields: Vec<(String, String)>,
    /// The fault with a reason of its own, if it is the only one.
    special: Option<Fault>,
}

impl Bad {
    /// Notes a bad field.
    pub(crate) fn field(&mut self, field: impl Into<String>, text: impl Into<String>) {
        self.fields.push((field.into(), text.into()));
    }

    /// Notes a bad field that has a reason of its own.
    pub(crate) fn special(&mut self, field: &str, fault: Fault) {
        // Alone, the fault's text names the field itself.
        let text = fault.message();
        let bare = text
            .strip_prefix(field)
            .and_then(|rest| rest.strip_prefix(": "));
        self.field(field, bare.unwrap_or(text));
        self.special = Some(fault.in_field(field));
    }

    /// The value, or a note.
    pub(crate) fn take<T>(&mut self, field: &str, value: Result<T, String>) -> Option<T> {
        value.map_err(|text| self.field(field, text)).ok()
    }

    /// Reads a filter.
    pub(crate) fn filter(&mut self, text: &str, schema: &'static Schema) -> Filter {
        Filter::parse(text, schema).unwrap_or_else(|error| {
            let fault = Fault::new(Reason::FilterInvalid, format!("filter: {error}"));
            self.special("filter", fault.with("column", error.column.to_string()));
            Filter::default()
        })
    }

    /// Reads a read mask.
    pub(crate) fn mask(
        &mut self,
        mask: Option<&FieldMask>,
        message: &str,
        types: &MessageTypes,
    ) -> Mask {
        Mask::parse(mask, message, types).unwrap_or_else(|texts| {
            for text in texts {
                self.field("read_mask", text);
            }
            Mask::default()
        })
    }

    /// Reads a cursor; empty is none.
    pub(crate) fn cursor(&mut self, field: &str, text: &str) -> Option<Cursor> {
        if text.is_empty() {
            return None;
        }
        text.parse()
            .map_err(|error: pass_domain::cursor::CursorError| {
                self.special(
                    field,
                    Fault::new(Reason::CursorInvalid, format!("{field}: {error}")),
                );
            })
            .ok()
    }

    /// Reads a page size.
    pub(crate) fn page_size(&mut self, page_size: i32) -> usize {
        crate::query::page::size(page_size).unwrap_or_else(|| {
            self.field("page_size", "is negative; 0 means the default");
            0
        })
    }

    /// Fails if anything was noted: with the special reason if that is all, else as FIELD_INVALID.
    pub(crate) fn finish(self) -> Result<(), Fault> {
        let only = self.fields.len() == 1;
        match (self.special, Fault::fields(self.fields)) {
            (_, None) => Ok(()),
            (Some(special), Some(_)) if only => Err(special),
            (_, Some(all)) => Err(all),
        }
    }
}
