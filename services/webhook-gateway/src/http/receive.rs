//! The path of one callback: limits, raw bytes, credential, decoding, spool, answer.
//!
//! The order is the guarantee. Nothing is parsed before the credential was checked on the raw bytes, and no
//! 2xx leaves before the spool's sync covers the record. A sender that goes away drops this future at any
//! await; that is harmless: before the append nothing is stored and the sender was told nothing, after it
//! the delivery is stored and forwarded like any other.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Response, header};
use jiff::Timestamp;
use pass_domain::delivery::{Decoded, Delivery, Method, Outcome, TraceContext, UndecodableReason};
use pass_domain::ids::{DeliveryId, EventId};
use pass_domain::time;
use pass_proto::convert::{delivery_into_wire, reason_to_wire};
use pass_proto::v1;
use pass_sources::{RefusalCause, UndecodablePolicy, Verified, method_from_http};
use pass_spool::{AppendError, RecordId};
use service_kit::listener::{BodyError, PeerAddr, read_body};
use service_kit::telemetry;
use tracing::Span;
use uuid::{NoContext, Uuid};

use super::problem::Problem;
use super::router::Edge;
use crate::books::{Books, Tally};
use crate::config::AckMode;
use crate::limits::Client;
use crate::policy::Policy;
use crate::record;
use crate::sources::Entry;

/// Answers a request to a path under which nothing can be. It is counted against the same rates as one to a source that
/// does not exist.
pub(super) fn nothing_here(edge: &Edge, parts: &Parts) -> Response<Body> {
    let policy = edge.live.policy();
    let client = client(&policy, parts);
    no_source(edge, &policy, policy.take_client(client))
}

/// Handles one callback. `span` is the request's span if there are traces.
pub(super) async fn receive(edge: &Edge, request: Request, span: Option<&Span>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let policy = edge.live.policy();
    let client = client(&policy, &parts);
    let target = Target::of(parts.uri.path());
    let found = target
        .as_ref()
        .and_then(|target| policy.by_name(target.source));
    let limited = policy.take_client(client);
    let (Some(target), Some((index, entry))) = (&target, found) else {
        return no_source(edge, &policy, limited);
    };
    if let Some(span) = span {
        span.record("source.name", entry.source.name());
    }
    let mut ending = Ending {
        books: &edge.books,
        source: index,
        tally: None,
    };
    if let Err(after) = limited {
        ending.tally = Some(Tally::ClientLimited);
        return Problem::RateLimited { after }.response();
    }
    let call = Call {
        edge,
        policy: &policy,
        client,
        index,
        entry,
        parts: &parts,
        secret: target.secret,
        span,
    };
    match call.accept(body, &mut ending).await {
        Ok(response) => response,
        Err(Refused::Credential(cause)) => {
            edge.books.log_refusal(index, cause);
            ending.tally = Some(Tally::Refused(cause));
            let failures = entry.failures.as_deref();
            match policy.failures.count(client.counted_as(), failures).await {
                Ok(()) => Problem::Unauthorized.response(),
                Err(after) => Problem::TooManyFailures { after }.response(),
            }
        }
        Err(Refused::Because(tally, problem)) => {
            ending.tally = Some(tally);
            problem.response()
        }
    }
}

fn client(policy: &Policy, parts: &Parts) -> Client {
    match parts.extensions.get::<PeerAddr>() {
        Some(peer) => policy.client(peer.0.ip(), &parts.headers),
        // The listener always sets it.
        None => Client::Unknown {
            proxy: Ipv4Addr::UNSPECIFIED.into(),
        },
    }
}

/// Answers a request that belongs to no source. `limited` says whether its client is over its rate.
fn no_source(edge: &Edge, policy: &Policy, limited: Result<(), Duration>) -> Response<Body> {
    let (tally, problem) = match (limited, policy.unknown.take()) {
        (Err(after), _) => (Tally::ClientLimited, Problem::RateLimited { after }),
        (Ok(()), Err(after)) => (Tally::Limited, Problem::RateLimited { after }),
        (Ok(()), Ok(())) => (Tally::NotFound, Problem::NotFound),
    };
    edge.books.add(None, tally);
    problem.response()
}

/// Which source a path means, and the secret in it.
struct Target<'a> {
    source: &'a str,
    secret: Option<&'a str>,
}

impl<'a> Target<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/webhooks/")?;
        Some(match rest.split_once('/') {
            Some((source, secret)) => Self {
                source,
                secret: Some(secret),
            },
            None => Self {
                source: rest,
                secret: None,
            },
        })
    }
}

/// Why a callback got no 200.
enum Refused {
    Credential(RefusalCause),
    Because(Tally, Problem),
}

impl Refused {
    fn because<T>(tally: Tally, problem: Problem) -> Result<T, Self> {
        Err(Self::Because(tally, problem))
    }
}

/// Sees to it that each request is counted once, also if its future is dropped or panics.
struct Ending<'a> {
    books: &'a Books,
    source: usize,
    tally: Option<Tally>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let unfinished = if std::thread::panicking() {
            Tally::Internal
        } else {
            Tally::Abandoned
        };
        self.books
            .add(Some(self.source), self.tally.unwrap_or(unfinished));
    }
}

/// One callback to a source that exists.
struct Call<'a> {
    edge: &'a Edge,
    policy: &'a Policy,
    client: Client,
    index: usize,
    entry: &'a Entry,
    parts: &'a Parts,
    secret: Option<&'a str>,
    span: Option<&'a Span>,
}

impl Call<'_> {
    /// Takes the delivery in. It is counted once it is durable, so also if nobody waits for what pass-state makes of it.
    async fn accept(&self, body: Body, ending: &mut Ending<'_>) -> Result<Response<Body>, Refused> {
        let edge = self.edge;
        let method = self.check_head()?;
        let bytes_declared = declared(&body, edge.body_bytes_max)?;
        let Some(_place) = edge.in_flight.enter(bytes_declared) else {
            return Refused::because(Tally::Busy, Problem::Busy);
        };
        let body = match read_body(body, edge.body_bytes_max, edge.body_timeouts).await {
            Ok(body) => body,
            Err(BodyError::TooLarge { .. }) => {
                return Refused::because(Tally::TooLarge, Problem::TooLarge);
            }
            Err(BodyError::TooSlow { .. }) => {
                return Refused::because(Tally::TooSlow, Problem::TooSlow);
            }
            Err(BodyError::Broken { .. }) => {
                return Refused::because(Tally::Abandoned, Problem::BodyBroken);
            }
        };
        let began = edge.ack_duration.as_ref().map(|_| Instant::now());
        let receive_time = edge.clock.now();
        let delivery = self.decode(method, &body, receive_time)?;
        let (told, record) = self.record(delivery, body);
        if let Some(span) = self.span {
            span.record("delivery.id", tracing::field::display(&told.id));
        }
        if edge.forward.borrow().spool_restored {
            return Refused::because(Tally::Restored, Problem::SpoolRestored);
        }
        let sequence = match edge
            .spool
            .append(RecordId(*told.id.as_bytes()), record)
            .await
        {
            Ok(sequence) => sequence,
            Err(AppendError::Full) => return Refused::because(Tally::Full, Problem::SpoolFull),
            Err(AppendError::Stuck | AppendError::Poisoned(_)) => {
                return Refused::because(Tally::Storage, Problem::Storage);
            }
            Err(AppendError::Unavailable(_)) => {
                return Refused::because(Tally::Unavailable, Problem::SpoolUnavailable);
            }
            Err(AppendError::Closed) => {
                return Refused::because(Tally::Stopping, Problem::Stopping);
            }
            Err(error @ AppendError::TooLarge { .. }) => {
                tracing::error!(delivery.id = %told.id, error = %error, "a record is larger than the spool was configured for");
                return Refused::because(Tally::Internal, Problem::Internal);
            }
        };
        ending.tally = Some(told.tally);
        edge.books.delivered(self.index, receive_time);
        if told.tally == Tally::Stored {
            edge.books.add_facts(self.index, told.events.len());
        }
        let outcome = match self.entry.ack {
            AckMode::Durable => None,
            AckMode::Applied => {
                let timeout = self.policy.ack_timeout;
                edge.waiters.outcome(sequence.0, timeout).await
            }
        };
        let response = accepted(&told, outcome);
        if let (Some(ack_duration), Some(began)) = (&edge.ack_duration, began) {
            ack_duration.record(self.entry.ack, began.elapsed());
        }
        Ok(response)
    }

    /// Everything that can be refused without the body.
    fn check_head(&self) -> Result<Method, Refused> {
        if self.secret.is_some() && !self.entry.source.expects_url_secret() {
            return Refused::because(Tally::NotFound, Problem::NotFound);
        }
        let method = method_from_http(&self.parts.method)
            .filter(|method| self.entry.source.methods().contains(method));
        let Some(method) = method else {
            return Refused::because(
                Tally::Method,
                Problem::MethodNotAllowed {
                    allow: self.entry.allow.clone(),
                },
            );
        };
        if let Err(after) = self.entry.rate.look() {
            return Refused::because(Tally::Limited, Problem::RateLimited { after });
        }
        if !is_plain(&self.parts.headers) {
            return Refused::because(Tally::MediaType, Problem::ContentEncoding);
        }
        if !is_json(&self.parts.headers) {
            return Refused::because(Tally::MediaType, Problem::MediaType);
        }
        Ok(method)
    }

    /// Checks the credential and decodes. The delivery's body is left empty; the bytes go to the record as
    /// they are.
    fn decode(
        &self,
        method: Method,
        body: &[u8],
        receive_time: Timestamp,
    ) -> Result<Delivery, Refused> {
        let source = &self.entry.source;
        let url_secret = self
            .secret
            .map(|secret| percent_encoding::percent_decode_str(secret).decode_utf8())
            .transpose()
            .map_err(|_| Refused::Credential(RefusalCause::MalformedCredential))?;
        let path_and_query = self
            .parts
            .uri
            .path_and_query()
            .map_or("/", |text| text.as_str());
        let request = pass_sources::Request {
            method: &self.parts.method,
            path_and_query,
            url_secret: url_secret.as_deref(),
            headers: &self.parts.headers,
            body,
            peer: self.client.allowed_as(),
            receive_time,
        };
        let verified: Verified<'_> = source
            .verify(request)
            .map_err(|refusal| Refused::Credential(refusal.cause))?;
        // Only now: whoever has no credential must not use the source's rate up.
        if let Err(after) = self.entry.rate.take() {
            return Refused::because(Tally::Limited, Problem::RateLimited { after });
        }
        let decoded = source.decode(&verified);
        if let (Decoded::Undecodable(undecodable), UndecodablePolicy::Reject) =
            (&decoded, source.undecodable())
        {
            let problem = match undecodable.reason {
                UndecodableReason::NotJson => Problem::NotJson,
                reason => Problem::Undecodable(reason),
            };
            return Refused::because(Tally::Rejected, problem);
        }
        Ok(Delivery {
            id: delivery_id(receive_time),
            source: source.uid().clone(),
            vendor: source.vendor().to_owned(),
            organization: source.organization().to_owned(),
            receive_time,
            method,
            path: source.redact_path(path_and_query),
            headers: source.stored_headers(&self.parts.headers),
            body: Vec::new(),
            auth: verified.verdict().clone(),
            adapter_version: source.adapter_version().to_owned(),
            trace: self.trace(),
            decoded,
        })
    }

    /// What the spool stores of a delivery, and what its sender is told.
    fn record(&self, delivery: Delivery, body: Bytes) -> (Told, Bytes) {
        let mut told = Told::of(&delivery);
        let mut wire = delivery_into_wire(delivery);
        wire.body = body;
        let record = record::encode(&wire);
        if record.len() <= self.edge.record_bytes_max {
            return (told, record);
        }
        // Facts repeat parts of the body, in theory without end. The bytes are what must not be lost.
        let reason = UndecodableReason::FieldInvalid;
        told.become_undecodable(reason);
        wire.decoded = Some(v1::ingest_delivery::Decoded::Undecodable(
            v1::UndecodableDelivery {
                reason: reason_to_wire(reason),
                detail: "the facts of this delivery take more room than one message may have"
                    .to_owned(),
            },
        ));
        let record = record::encode(&wire);
        (told, record)
    }

    /// The trace that the delivery belongs to: this request's span, else the sender's.
    fn trace(&self) -> TraceContext {
        let headers = &self.parts.headers;
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let traceparent = match self.span {
            Some(span) => telemetry::current_traceparent(span),
            // The sender's context is handed on, if it is one, but not its wish that we export spans.
            None => text("traceparent").and_then(|parent| {
                let mut parent = telemetry::inject(&telemetry::extract(parent, None))?;
                parent.replace_range(parent.len() - 2.., "00");
                Some(parent)
            }),
        };
        match traceparent {
            Some(traceparent) => {
                let tracestate = text("tracestate")
                    .filter(|state| state.len() <= 512 && text("traceparent").is_some());
                TraceContext {
                    traceparent,
                    tracestate: tracestate.unwrap_or_default().to_owned(),
                }
            }
            None => TraceContext::default(),
        }
    }
}

/// The bytes that a body may take: its declared length, or the limit where there is none.
fn declared(body: &Body, bytes_max: usize) -> Result<usize, Refused> {
    let hint = http_body_hint(body);
    match hint.map(usize::try_from) {
        None => Ok(bytes_max),
        Some(Ok(bytes)) if bytes <= bytes_max => Ok(bytes),
        Some(_) => Refused::because(Tally::TooLarge, Problem::TooLarge),
    }
}

fn http_body_hint(body: &Body) -> Option<u64> {
    use axum::body::HttpBody as _;
    body.size_hint().exact()
}

/// True unless the body is compressed.
fn is_plain(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// True for `application/json`, any `+json`, and no word about it.
fn is_json(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (first, second) = (values.next(), values.next());
    let Some(value) = first else { return true };
    let Ok(text) = value.to_str() else {
        return false;
    };
    let essence = text.split(';').next().unwrap_or_default().trim().as_bytes();
    let ends_in_json = essence.len() > 5
        && essence.contains(&b'/')
        && essence[essence.len() - 5..].eq_ignore_ascii_case(b"+json");
    second.is_none() && (essence.eq_ignore_ascii_case(b"application/json") || ends_in_json)
}

fn delivery_id(receive_time: Timestamp) -> DeliveryId {
    let (seconds, nanos) = time::to_parts(receive_time);
    let seconds = u64::try_from(seconds).unwrap_or_default();
    let stamp = uuid::Timestamp::from_unix(NoContext, seconds, nanos.unsigned_abs());
    DeliveryId::from_bytes(Uuid::new_v7(stamp).into_bytes())
}

/// What is left of a delivery for its answer, once it has gone to the spool.
struct Told {
    id: DeliveryId,
    tally: Tally,
    events: Vec<EventId>,
    reason: Option<UndecodableReason>,
}

impl Told {
    fn of(delivery: &Delivery) -> Self {
        let (tally, events, reason) = match &delivery.decoded {
            Decoded::Facts(facts) => {
                let events = facts.facts.iter().map(|fact| fact.id).collect();
                (Tally::Stored, events, None)
            }
            Decoded::Control { .. } => (Tally::Control, Vec::new(), None),
            Decoded::Undecodable(undecodable) => {
                (Tally::Quarantined, Vec::new(), Some(undecodable.reason))
            }
        };
        Self {
            id: delivery.id,
            tally,
            events,
            reason,
        }
    }

    fn become_undecodable(&mut self, reason: UndecodableReason) {
        self.tally = Tally::Quarantined;
        self.events.clear();
        self.reason = Some(reason);
    }
}

/// The answer to a durable delivery: its id, what became of it, and the ids of its facts' events.
fn accepted(told: &Told, outcome: Option<Outcome>) -> Response<Body> {
    let (status, reason) = match (outcome, told.reason) {
        (_, Some(reason)) => ("quarantined", Some(reason)),
        (Some(Outcome::Quarantined), None) => {
            ("quarantined", Some(UndecodableReason::StoreRefused))
        }
        (Some(Outcome::Applied | Outcome::Control), None) => ("applied", None),
        (Some(Outcome::Duplicate), None) => ("duplicate", None),
        (None, None) => ("stored", None),
    };
    // Ids and words of ours: nothing in it needs escaping.
    let mut body = String::with_capacity(96 + 39 * told.events.len());
    let written = (|| {
        write!(
            body,
            r#"{{"delivery":"{}","status":"{status}","events":["#,
            told.id
        )?;
        for (index, event) in told.events.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(body, r#"{comma}"{event}""#)?;
        }
        body.push(']');
        if let Some(reason) = reason {
            write!(body, r#","reason":"{}""#, reason.name())?;
        }
        body.push('}');
        Ok::<_, std::fmt::Error>(())
    })();
    written.expect("writing to a string cannot fail");
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}
