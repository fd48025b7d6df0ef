//! Authentication: who sent these bytes.
//!
//! Rules that hold for every scheme: the check is on the raw bytes, before anything else reads them; all
//! live secrets are tried against all presented signatures, without an early exit, in constant time; a
//! credential header that is there twice, or over 4 KiB, is refused; the sender learns one text whatever
//! the cause. An address allow-list, where there is one, comes first.

mod api_key;
mod envelope;
mod hmac;
mod mac;
mod secrets;
mod standard_webhooks;

use http::{HeaderMap, HeaderValue};
use ipnet::IpNet;
use pass_domain::delivery::{AuthScheme, AuthVerdict};

use crate::config::{Faults, SecretRef, SourceConfig};
use crate::envelope_config::EnvelopeConfig;
use crate::source::Request;

pub(crate) use mac::{encode_hex, key_candidates};
pub(crate) use standard_webhooks::{
    ID_HEADERS, TIMESTAMP_HEADERS, secret_bytes as standard_secret_bytes, signed_content,
};

/// Longest credential header, in bytes.
const HEADER_BYTES_MAX: usize = 4_096;

/// The header PassKit's signature is said to be in.
const PASSKIT_SIGNATURE_HEADER: &str = "x-passkit-signature";

/// Why a delivery was refused. For counters only; the sender is never told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefusalCause {
    /// There is no credential.
    MissingCredential,
    /// There is a credential, and it is not right.
    WrongCredential,
    /// The credential is right but its time is too far from the receive time.
    StaleTimestamp,
    /// The sender's address is in none of the source's networks.
    AddressNotAllowed,
    /// What should be a credential can't be read as one.
    MalformedCredential,
}

impl RefusalCause {
    /// Every cause.
    pub const ALL: [RefusalCause; 5] = [
        RefusalCause::MissingCredential,
        RefusalCause::WrongCredential,
        RefusalCause::StaleTimestamp,
        RefusalCause::AddressNotAllowed,
        RefusalCause::MalformedCredential,
    ];

    /// The name as metrics spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RefusalCause::MissingCredential => "missing_credential",
            RefusalCause::WrongCredential => "wrong_credential",
            RefusalCause::StaleTimestamp => "stale_timestamp",
            RefusalCause::AddressNotAllowed => "address_not_allowed",
            RefusalCause::MalformedCredential => "malformed_credential",
        }
    }
}

/// A delivery was refused. The text is the same for every cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the delivery is not authenticated")]
pub struct Refusal {
    /// Why, for counters.
    pub cause: RefusalCause,
}

/// What a scheme found out.
#[derive(Debug)]
pub(crate) struct Accepted<'a> {
    pub(crate) verdict: AuthVerdict,
    /// The delivery's id, where the scheme signs one.
    pub(crate) message_id: Option<&'a str>,
}

impl Accepted<'_> {
    fn new(scheme: AuthScheme, key_id: &str, detail: &str) -> Self {
        Self {
            verdict: AuthVerdict {
                scheme,
                key_id: key_id.to_owned(),
                detail: detail.to_owned(),
            },
            message_id: None,
        }
    }
}

/// A scheme with its secrets, ready to check.
#[derive(Debug)]
pub(crate) enum Scheme {
    ApiKey(api_key::ApiKey),
    Hmac(hmac::HmacHeader),
    StandardWebhooks(standard_webhooks::StandardWebhooks),
    SignedEnvelope(envelope::SignedBody),
    UrlSecret(api_key::UrlSecret),
    None,
}

impl Scheme {
    /// Builds a source's scheme. `None` if its name is unknown; other faults are only added to the list.
    pub(crate) fn build(
        config: &SourceConfig,
        envelope: &EnvelopeConfig,
        resolve: &mut dyn FnMut(&SecretRef) -> Result<Vec<u8>, String>,
        faults: &mut Faults,
    ) -> Option<Self> {
        let auth = &config.auth;
        let Some(scheme) = scheme_from_name(&auth.scheme) else {
            let rule = "use api_key, hmac, standard_webhooks, signed_envelope, url_secret or, to accept callbacks without a credential, none";
            let what = if auth.scheme.is_empty() {
                "is missing"
            } else {
                "is not a known scheme"
            };
            faults.add("auth.scheme", format!("{what}; {rule}"));
            if !auth.secrets.is_empty() {
                secrets::resolve_all(&auth.secrets, resolve, faults);
            }
            return None;
        };
        if scheme == AuthScheme::None {
            check_none(config, faults);
            return Some(Scheme::None);
        }
        let secrets = secrets::resolve_all(&auth.secrets, resolve, faults);
        Some(match scheme {
            AuthScheme::ApiKey => Scheme::ApiKey(api_key::ApiKey::build(
                auth,
                api_key_header(config),
                secrets,
                faults,
            )),
            AuthScheme::Hmac => Scheme::Hmac(hmac::HmacHeader::build(
                auth,
                hmac_header(config),
                secrets,
                faults,
            )),
            AuthScheme::StandardWebhooks => Scheme::StandardWebhooks(
                standard_webhooks::StandardWebhooks::build(auth, secrets, faults),
            ),
            AuthScheme::SignedEnvelope => {
                if config.vendor != "signed_envelope" {
                    faults.add("auth.scheme", "signed_envelope needs vendor = \"signed_envelope\"; other vendors don't sign inside the body");
                }
                Scheme::SignedEnvelope(envelope::SignedBody::build(auth, envelope, secrets, faults))
            }
            AuthScheme::UrlSecret => Scheme::UrlSecret(api_key::UrlSecret::build(secrets, faults)),
            AuthScheme::None => Scheme::None,
        })
    }

    /// The header that carries the credential, if it is one that the configuration names.
    pub(crate) fn header(&self) -> Option<&str> {
        match self {
            Scheme::ApiKey(scheme) => Some(scheme.header()),
            Scheme::Hmac(scheme) => Some(scheme.header()),
            Scheme::StandardWebhooks(_)
            | Scheme::SignedEnvelope(_)
            | Scheme::UrlSecret(_)
            | Scheme::None => None,
        }
    }

    /// Checks a request's credential.
    pub(crate) fn verify<'a>(&self, request: &Request<'a>) -> Result<Accepted<'a>, RefusalCause> {
        match self {
            Scheme::ApiKey(scheme) => scheme.verify(request.headers),
            Scheme::Hmac(scheme) => scheme.verify(request.headers, request.body),
            Scheme::StandardWebhooks(scheme) => scheme.verify(request),
            Scheme::SignedEnvelope(scheme) => scheme.verify(request.body),
            Scheme::UrlSecret(scheme) => scheme.verify(request.url_secret),
            Scheme::None => Ok(Accepted::new(AuthScheme::None, "", "")),
        }
    }
}

/// The scheme with that name.
pub(crate) fn scheme_from_name(name: &str) -> Option<AuthScheme> {
    [
        AuthScheme::ApiKey,
        AuthScheme::Hmac,
        AuthScheme::StandardWebhooks,
        AuthScheme::SignedEnvelope,
        AuthScheme::UrlSecret,
        AuthScheme::None,
    ]
    .into_iter()
    .find(|scheme| scheme.name() == name)
}

/// The header an `hmac` signature is in.
pub(crate) fn hmac_header(config: &SourceConfig) -> Option<&str> {
    let fallback = (config.vendor == "passkit").then_some(PASSKIT_SIGNATURE_HEADER);
    config.auth.header.as_deref().or(fallback)
}

/// The header an `api_key` is in.
pub(crate) fn api_key_header(config: &SourceConfig) -> &str {
    config.auth.header.as_deref().unwrap_or("authorization")
}

fn check_none(config: &SourceConfig, faults: &mut Faults) {
    if !config.auth.secrets.is_empty() {
        faults.add(
            "auth.secrets",
            "are not used by scheme = \"none\"; remove them or choose a scheme that checks them",
        );
    }
    if config.allow_from.is_empty() {
        faults.add(
            "allow_from",
            "must name the sender's networks when scheme = \"none\"",
        );
    } else if config.allow_from.iter().any(is_everyone) && !config.auth.accept_unauthenticated {
        let fix = "holds a network of every address; narrow it, or set auth.accept_unauthenticated = true to let anyone forge events";
        faults.add("allow_from", fix);
    }
}

fn is_everyone(network: &IpNet) -> bool {
    network.prefix_len() == 0
}

/// The one value of a header.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a HeaderValue>, RefusalCause> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() || first.is_some_and(|value| value.len() > HEADER_BYTES_MAX) {
        return Err(RefusalCause::MalformedCredential);
    }
    Ok(first)
}

/// Checks a header's name in the configuration.
fn header_name(name: &str, faults: &mut Faults) -> String {
    match http::HeaderName::try_from(name) {
        Ok(name) => name.as_str().to_owned(),
        Err(_) => {
            faults.add("auth.header", "is not a header name");
            String::new()
        }
    }
}
