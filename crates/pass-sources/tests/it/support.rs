//! Short ways to a source, a delivery and its facts.

use http::{HeaderMap, HeaderName, HeaderValue, Method as HttpMethod};
use pass_domain::Timestamp;
use pass_domain::delivery::{Decoded, DecodedFacts, Method, Undecodable, UndecodableReason};
use pass_domain::fact::Fact;
use pass_domain::kind::Kind;
use pass_domain::time::from_parts;
use pass_sources::samples::{self, ENVELOPE_KINDS};
use pass_sources::{
    AuthConfig, ConfigFault, EnvelopeConfig, Refusal, Request, SecretConfig, SecretRef, Source,
    SourceConfig, Verified,
};
use serde_json::Value;

/// 64 hexadecimal digits: long enough for every scheme.
pub(crate) const SECRET: &str = "6a1f0c2b7e9d4385a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718";

/// The time at which everything is received: 2026-06-01T00:00:00Z.
pub(crate) fn received() -> Timestamp {
    from_parts(1_780_272_000, 0).unwrap()
}

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

pub(crate) fn resolve(from: &SecretRef) -> Result<Vec<u8>, String> {
    from.value
        .clone()
        .map(String::into_bytes)
        .ok_or_else(|| "can't be read here".to_owned())
}

pub(crate) fn secret(value: &str) -> SecretConfig {
    SecretConfig {
        value: Some(value.to_owned()),
        ..SecretConfig::default()
    }
}

pub(crate) fn auth(scheme: &str) -> AuthConfig {
    let value = if scheme == "standard_webhooks" {
        "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
    } else {
        SECRET
    };
    let secrets = if scheme == "none" {
        Vec::new()
    } else {
        vec![secret(value)]
    };
    AuthConfig {
        scheme: scheme.to_owned(),
        secrets,
        ..AuthConfig::default()
    }
}

pub(crate) fn config(vendor: &str, auth: AuthConfig) -> SourceConfig {
    let envelope = (vendor == "signed_envelope").then(|| EnvelopeConfig {
        kinds: ENVELOPE_KINDS
            .iter()
            .map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned()))
            .collect(),
        control: vec!["event.webhook.tested".to_owned()],
        ..EnvelopeConfig::default()
    });
    SourceConfig {
        name: "acme".to_owned(),
        vendor: vendor.to_owned(),
        auth,
        envelope,
        ..SourceConfig::default()
    }
}

pub(crate) fn try_build(config: &SourceConfig) -> Result<Source, Vec<ConfigFault>> {
    Source::build(config, &mut resolve)
}

pub(crate) fn build(config: &SourceConfig) -> Source {
    try_build(config).unwrap_or_else(|faults| panic!("{faults:?}"))
}

/// A source of a vendor with a scheme that needs nothing but a URL.
pub(crate) fn source(vendor: &str) -> Source {
    build(&config(vendor, auth("url_secret")))
}

pub(crate) fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(
            HeaderName::try_from(*name).unwrap(),
            HeaderValue::from_bytes(value.as_bytes()).unwrap(),
        );
    }
    map
}

pub(crate) fn request<'a>(
    headers: &'a HeaderMap,
    url_secret: Option<&'a str>,
    body: &'a [u8],
) -> Request<'a> {
    Request {
        method: &HttpMethod::POST,
        path_and_query: "/webhooks/acme",
        url_secret,
        headers,
        body,
        peer: Some("192.0.2.1".parse().unwrap()),
        receive_time: received(),
    }
}

pub(crate) fn verify<'a>(
    source: &Source,
    headers: &'a HeaderMap,
    url_secret: Option<&'a str>,
    body: &'a [u8],
) -> Result<Verified<'a>, Refusal> {
    source.verify(request(headers, url_secret, body))
}

/// Verifies with the URL secret and decodes.
pub(crate) fn decode_as(vendor: &str, method: &HttpMethod, body: &[u8]) -> Decoded {
    let source = source(vendor);
    let none = HeaderMap::new();
    let request = Request {
        method,
        ..request(&none, Some(SECRET), body)
    };
    let verified = source.verify(request).unwrap();
    let decoded = source.decode(&verified);
    let stored = source.decode_stored(
        verified.method(),
        "/webhooks/acme/[REDACTED]",
        &[],
        body,
        received(),
    );
    assert_eq!(decoded, stored, "a replay decodes to the same");
    decoded
}

pub(crate) fn decode(vendor: &str, body: impl AsRef<[u8]>) -> Decoded {
    decode_as(vendor, &HttpMethod::POST, body.as_ref())
}

pub(crate) fn facts(decoded: Decoded) -> DecodedFacts {
    match decoded {
        Decoded::Facts(facts) => *facts,
        other => panic!("expected facts, got {other:?}"),
    }
}

pub(crate) fn undecodable(decoded: Decoded) -> Undecodable {
    match decoded {
        Decoded::Undecodable(undecodable) => undecodable,
        other => panic!("expected quarantine, got {other:?}"),
    }
}

/// Asserts that a body goes to quarantine for a reason whose text names a field.
#[track_caller]
pub(crate) fn assert_quarantined(
    vendor: &str,
    body: impl AsRef<[u8]>,
    reason: UndecodableReason,
    field: &str,
) {
    let found = undecodable(decode(vendor, body));
    assert_eq!(found.reason, reason, "{}", found.detail);
    assert!(found.detail.contains(field), "{}", found.detail);
    assert!(found.detail.len() <= 512);
}

pub(crate) fn sample(vendor: &str, name: &str) -> &'static str {
    samples::find(vendor, name)
        .unwrap_or_else(|| panic!("no sample {vendor}/{name}"))
        .body
}

/// A sample with changes.
pub(crate) fn edited(vendor: &str, name: &str, edit: impl FnOnce(&mut Value)) -> String {
    let mut value: Value = serde_json::from_str(sample(vendor, name)).unwrap();
    edit(&mut value);
    value.to_string()
}

pub(crate) fn remove(value: &mut Value, pointer: &str) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    value
        .pointer_mut(parent)
        .unwrap()
        .as_object_mut()
        .unwrap()
        .remove(name)
        .unwrap();
}

pub(crate) fn of_kind(facts: &DecodedFacts, kind: Kind) -> Vec<&Fact> {
    facts
        .facts
        .iter()
        .filter(|fact| fact.kind == kind)
        .collect()
}

/// The one fact of a kind.
#[track_caller]
pub(crate) fn only(facts: &DecodedFacts, kind: Kind) -> &Fact {
    let found = of_kind(facts, kind);
    assert_eq!(found.len(), 1, "{kind:?} in {facts:#?}");
    found[0]
}

pub(crate) fn http_method(method: Method) -> HttpMethod {
    HttpMethod::from_bytes(method.name().as_bytes()).unwrap()
}
