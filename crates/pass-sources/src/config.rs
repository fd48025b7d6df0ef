//! A source as its operator writes it. Plain data: [`crate::Source::build`] checks it.

use std::fmt;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;

use crate::envelope_config::EnvelopeConfig;

/// One `[[sources]]` table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct SourceConfig {
    /// The name in the URL `/webhooks/{name}`: `a-z`, `0-9`, `-`, at most 63, starting with a letter.
    pub name: String,
    /// The immutable uid that every id is built from. Defaults to the name; set it to the old name when
    /// a source is renamed.
    pub uid: Option<String>,
    /// The adapter: `passworks`, `passkit`, `signed_envelope` or `standard`.
    pub vendor: String,
    /// The organization the source belongs to; at most 256 bytes, may be empty.
    pub organization: String,
    /// How the sender proves who it is.
    pub auth: AuthConfig,
    /// The networks that callbacks may come from; empty means any.
    pub allow_from: Vec<IpNet>,
    /// What becomes of authentic deliveries that can't be decoded.
    pub undecodable: UndecodablePolicy,
    /// Authentic deliveries that are taken per second; absent: what the gateway allows all sources.
    pub rate_per_sec: Option<u32>,
    /// How many of them may come at once; absent: what the gateway allows all sources.
    pub rate_burst: Option<u32>,
    /// The layout of `signed_envelope` callbacks; the default is receeve's.
    pub envelope: Option<EnvelopeConfig>,
}

/// What becomes of an authentic delivery that can't be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UndecodablePolicy {
    /// It is stored, acknowledged, and can be replayed after a fix.
    #[default]
    Quarantine,
    /// It is refused and not stored, for vendors whose retries are worth having.
    Reject,
}

/// How a source's sender proves who it is.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct AuthConfig {
    /// `api_key`, `hmac`, `standard_webhooks`, `signed_envelope`, `url_secret` or, spelled out, `none`.
    pub scheme: String,
    /// The secrets that are live now, at most 4; several during a rotation.
    pub secrets: Vec<SecretConfig>,
    /// The header that carries the credential. Defaults to `authorization` for `api_key` and to
    /// `x-passkit-signature` for PassKit's `hmac`.
    pub header: Option<String>,
    /// How a signature is written (`hmac`, `signed_envelope`).
    pub encoding: SignatureEncoding,
    /// What may stand before the signature, such as `sha256=` (`hmac`).
    pub prefix: Option<String>,
    /// How a secret becomes key bytes (`hmac`, `signed_envelope`).
    pub secret_encoding: SecretEncoding,
    /// A word that may stand before an API key, such as `Bearer`.
    pub scheme_word: Option<String>,
    /// How far a signed timestamp may be from the receive time, either way; 1 to 3600 seconds.
    pub tolerance_seconds: u64,
    /// Has to be true where `scheme = "none"` is combined with a network of every address.
    pub accept_unauthenticated: bool,
}

impl Default for AuthConfig {
    fn default() -> Self {
        Self {
            scheme: String::new(),
            secrets: Vec::new(),
            header: None,
            encoding: SignatureEncoding::default(),
            prefix: None,
            secret_encoding: SecretEncoding::default(),
            scheme_word: None,
            tolerance_seconds: 300,
            accept_unauthenticated: false,
        }
    }
}

/// How a signature is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignatureEncoding {
    /// 64 hexadecimal digits.
    Hex,
    /// Padded standard base64.
    Base64,
    /// Either; the verdict says which.
    #[default]
    Any,
}

/// How a secret's text becomes key bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretEncoding {
    /// The text itself is the key.
    Ascii,
    /// The text is base64 of the key.
    Base64,
    /// Either is tried; the verdict says which matched.
    #[default]
    Any,
}

/// One live secret: an id that may be shown, and exactly one place to take the secret from.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct SecretConfig {
    /// What verdicts and logs call it; 1 to 63 bytes of visible ASCII. Defaults to `key-1`, `key-2`, ….
    pub id: String,
    /// The secret itself.
    pub value: Option<String>,
    /// A file that holds it.
    pub file: Option<PathBuf>,
    /// An environment variable that holds it.
    pub env: Option<String>,
}

impl SecretConfig {
    /// The place the secret is to be taken from.
    #[must_use]
    pub fn reference(&self) -> SecretRef {
        SecretRef {
            value: self.value.clone(),
            file: self.file.clone(),
            env: self.env.clone(),
        }
    }
}

impl fmt::Debug for SecretConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretConfig")
            .field("id", &self.id)
            .field("from", &self.reference())
            .finish()
    }
}

/// Where a secret is to be taken from; exactly one is set when the resolver is asked.
#[derive(Clone, Default)]
pub struct SecretRef {
    /// The secret itself.
    pub value: Option<String>,
    /// A file that holds it.
    pub file: Option<PathBuf>,
    /// An environment variable that holds it.
    pub env: Option<String>,
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretRef")
            .field("value", &self.value.as_ref().map(|_| "[REDACTED]"))
            .field("file", &self.file)
            .field("env", &self.env)
            .finish()
    }
}

/// Something wrong with a source's configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct ConfigFault {
    /// The key, relative to the source's table, such as `auth.secrets[0].value`.
    pub path: String,
    /// What is wrong and how to put it right. Never holds a secret.
    pub message: String,
}

/// Collects faults, so that all are told at once.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<ConfigFault>);

impl Faults {
    pub(crate) fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(ConfigFault {
            path: path.into(),
            message: message.into(),
        });
    }
}
