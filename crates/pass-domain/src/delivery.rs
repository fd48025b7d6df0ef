//! Deliveries: one HTTP callback, and what an adapter made of it.

use jiff::Timestamp;

use crate::fact::{Fact, Personal, Snapshot};
use crate::ids::{DeliveryId, SourceUid};

/// How a delivery's sender was authenticated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthScheme {
    /// The vendor's API key in the `Authorization` header.
    ApiKey,
    /// HMAC-SHA256 over the body in a configured header.
    Hmac,
    /// Standard Webhooks `v1`.
    StandardWebhooks,
    /// HMAC-SHA256 signature field inside the body.
    SignedEnvelope,
    /// A secret in the URL.
    UrlSecret,
    /// No credential; only an address allow-list. Has to be asked for in so many words.
    None,
}

impl AuthScheme {
    /// The name as configuration and the API spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            AuthScheme::ApiKey => "api_key",
            AuthScheme::Hmac => "hmac",
            AuthScheme::StandardWebhooks => "standard_webhooks",
            AuthScheme::SignedEnvelope => "signed_envelope",
            AuthScheme::UrlSecret => "url_secret",
            AuthScheme::None => "none",
        }
    }
}

/// The authentication verdict that stays with a delivery and its events. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AuthVerdict {
    /// The scheme.
    pub scheme: AuthScheme,
    /// Which of the source's live secrets matched; empty for [`AuthScheme::None`].
    pub key_id: String,
    /// Which form matched where a scheme has several (such as `hex,ascii`); empty otherwise.
    pub detail: String,
}

/// A W3C trace context, stored with the delivery so that one trace survives a restart between the hops.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The `traceparent` header's value; empty if the delivery is not traced.
    pub traceparent: String,
    /// The `tracestate` header's value; often empty.
    pub tracestate: String,
}

/// The HTTP method of a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
    /// `DELETE`.
    Delete,
}

impl Method {
    /// The method as HTTP spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
        }
    }
}

/// Why an authentic delivery could not be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UndecodableReason {
    /// The body is not JSON.
    NotJson,
    /// The JSON is nested too deep.
    TooDeep,
    /// A required field is missing.
    FieldMissing,
    /// A field has a value it cannot have.
    FieldInvalid,
    /// A field that is part of an event's identity is there twice.
    FieldDuplicate,
    /// The adapter does not know this kind of event.
    KindUnknown,
    /// The signed text and the readable copy disagree.
    ContentMismatch,
    /// The store refused the facts for ever (not for the moment).
    StoreRefused,
}

impl UndecodableReason {
    /// Every reason.
    pub const ALL: [UndecodableReason; 8] = [
        UndecodableReason::NotJson,
        UndecodableReason::TooDeep,
        UndecodableReason::FieldMissing,
        UndecodableReason::FieldInvalid,
        UndecodableReason::FieldDuplicate,
        UndecodableReason::KindUnknown,
        UndecodableReason::ContentMismatch,
        UndecodableReason::StoreRefused,
    ];

    /// The name as the API and answers spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            UndecodableReason::NotJson => "NOT_JSON",
            UndecodableReason::TooDeep => "TOO_DEEP",
            UndecodableReason::FieldMissing => "FIELD_MISSING",
            UndecodableReason::FieldInvalid => "FIELD_INVALID",
            UndecodableReason::FieldDuplicate => "FIELD_DUPLICATE",
            UndecodableReason::KindUnknown => "KIND_UNKNOWN",
            UndecodableReason::ContentMismatch => "CONTENT_MISMATCH",
            UndecodableReason::StoreRefused => "STORE_REFUSED",
        }
    }
}

/// Why a delivery is in quarantine: the reason and a text that names the field and the fix, without
/// repeating content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Undecodable {
    /// The reason.
    pub reason: UndecodableReason,
    /// What is wrong, in words; at most 512 bytes, never the sender's values.
    pub detail: String,
}

/// What an adapter made of a verified delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// Facts about one pass (or none that are new), and what the pass is.
    Facts(Box<DecodedFacts>),
    /// A vendor's handshake or test: stored, no facts.
    Control {
        /// The vendor's word for it.
        vendor_kind: String,
    },
    /// Authentic, but not understood: goes to quarantine with its bytes.
    Undecodable(Undecodable),
}

/// The facts of a delivery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DecodedFacts {
    /// What happened, at most [`crate::limits::FACTS_PER_DELIVERY_MAX`].
    pub facts: Vec<Fact>,
    /// What the pass is, if the vendor says.
    pub snapshot: Option<Snapshot>,
    /// Personal data, shared by all the delivery's facts.
    pub personal: Personal,
    /// Quirks met while decoding, such as `TRAILING_SPACE_KEY`.
    pub notes: Vec<String>,
}

/// One HTTP callback as received, with the bytes as they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The delivery's id.
    pub id: DeliveryId,
    /// The source's uid.
    pub source: SourceUid,
    /// The vendor's name, as configured (`passworks`, `passkit`, …).
    pub vendor: String,
    /// The organization the source belongs to; empty if none is configured.
    pub organization: String,
    /// When the gateway received it.
    pub receive_time: Timestamp,
    /// The HTTP method.
    pub method: Method,
    /// Path and query, secrets redacted.
    pub path: String,
    /// The allow-listed headers, names in lower case. Credentials are never among them.
    pub headers: Vec<(String, String)>,
    /// The body, verbatim.
    pub body: Vec<u8>,
    /// How the sender was authenticated.
    pub auth: AuthVerdict,
    /// Which version of the adapter decoded it, such as `passkit/1`.
    pub adapter_version: String,
    /// The trace it belongs to.
    pub trace: TraceContext,
    /// What the adapter made of it.
    pub decoded: Decoded,
}

/// What became of a delivery in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// At least one of its facts became an event.
    Applied,
    /// All its facts were known already.
    Duplicate,
    /// It could not be decoded or applied; kept with its bytes and the reason.
    Quarantined,
    /// A vendor's handshake or test.
    Control,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Outcome; 4] = [
        Outcome::Applied,
        Outcome::Duplicate,
        Outcome::Quarantined,
        Outcome::Control,
    ];

    /// The name as filters, answers and the API spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Outcome::Applied => "APPLIED",
            Outcome::Duplicate => "DUPLICATE",
            Outcome::Quarantined => "QUARANTINED",
            Outcome::Control => "CONTROL",
        }
    }
}
