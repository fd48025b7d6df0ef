//! The sender's side of every scheme, for samples and tests: makes what [`crate::Source::verify`] accepts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use pass_domain::Timestamp;
use pass_domain::delivery::AuthScheme;
use pass_domain::time::to_parts;
use sha2::Sha256;

use crate::auth::{
    api_key_header, encode_hex, hmac_header, key_candidates, scheme_from_name, signed_content,
    standard_secret_bytes,
};
use crate::config::{SecretEncoding, SignatureEncoding, SourceConfig};
use crate::envelope_config::EnvelopeConfig;

/// What to send. `Debug` shows no credential.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    /// Headers to add, credentials among them.
    pub headers: Vec<(String, String)>,
    /// The body; for signed envelopes the envelope, else as given.
    pub body: Vec<u8>,
    /// What to append to `/webhooks/{source}/`, percent-encoded, for `url_secret`.
    pub url_secret: Option<String>,
}

impl std::fmt::Debug for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Signed")
            .field("headers", &names)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Why a delivery could not be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The configuration's scheme is not known.
    #[error("auth.scheme is not a known scheme")]
    SchemeUnknown,
    /// The configuration does not name the header.
    #[error("auth.header is missing")]
    HeaderMissing,
    /// The secret does not fit the scheme.
    #[error("the secret does not fit the scheme; it must be what the source was built with")]
    SecretInvalid,
    /// The body is not text, and an envelope holds text.
    #[error("the body is not UTF-8, so it can't be put into an envelope")]
    BodyInvalid,
}

/// Authenticates a body as the sender of a source would. `id` and `time` count for Standard Webhooks only.
///
/// # Errors
/// If the configuration or the secret would not have made a source.
pub fn sign(
    config: &SourceConfig,
    secret: &[u8],
    body: &[u8],
    id: &str,
    time: Timestamp,
) -> Result<Signed, SignError> {
    let auth = &config.auth;
    let scheme = scheme_from_name(&auth.scheme).ok_or(SignError::SchemeUnknown)?;
    let secret = std::str::from_utf8(secret)
        .map_err(|_| SignError::SecretInvalid)?
        .trim_end_matches(['\r', '\n']);
    let mut signed = Signed {
        headers: Vec::new(),
        body: body.to_vec(),
        url_secret: None,
    };
    match scheme {
        AuthScheme::None => {}
        AuthScheme::ApiKey => {
            let value = match &auth.scheme_word {
                Some(word) => format!("{word} {secret}"),
                None => secret.to_owned(),
            };
            signed
                .headers
                .push((api_key_header(config).to_owned(), value));
        }
        AuthScheme::Hmac => {
            let header = hmac_header(config).ok_or(SignError::HeaderMissing)?;
            let value = signature(secret, auth.secret_encoding, auth.encoding, body)?;
            let prefix = auth.prefix.as_deref().unwrap_or_default();
            signed
                .headers
                .push((header.to_owned(), format!("{prefix}{value}")));
        }
        AuthScheme::StandardWebhooks => {
            let key = standard_secret_bytes(secret).ok_or(SignError::SecretInvalid)?;
            let timestamp = to_parts(time).0.to_string();
            let value = STANDARD.encode(mac(&key, &signed_content(id, &timestamp, body)));
            signed
                .headers
                .push(("webhook-id".to_owned(), id.to_owned()));
            signed
                .headers
                .push(("webhook-timestamp".to_owned(), timestamp));
            signed
                .headers
                .push(("webhook-signature".to_owned(), format!("v1,{value}")));
        }
        AuthScheme::SignedEnvelope => {
            let text = std::str::from_utf8(body).map_err(|_| SignError::BodyInvalid)?;
            let layout = config.envelope.clone().unwrap_or_default();
            let value = signature(secret, auth.secret_encoding, auth.encoding, body)?;
            signed.body = envelope(&layout, text, &value);
        }
        AuthScheme::UrlSecret => signed.url_secret = Some(percent_encode(secret)),
    }
    Ok(signed)
}

/// Puts a payload into an envelope of the default layout, signed with the secret's text as the key.
#[must_use]
pub fn sign_envelope(payload_json: &str, secret: &[u8]) -> Vec<u8> {
    envelope(
        &EnvelopeConfig::default(),
        payload_json,
        &encode_hex(&mac(secret, payload_json.as_bytes())),
    )
}

fn envelope(layout: &EnvelopeConfig, payload: &str, signature: &str) -> Vec<u8> {
    let mut object = serde_json::Map::new();
    object.insert(layout.signed_field.clone(), payload.into());
    object.insert(layout.signature_field.clone(), signature.into());
    serde_json::Value::Object(object).to_string().into_bytes()
}

fn signature(
    secret: &str,
    secret_encoding: SecretEncoding,
    encoding: SignatureEncoding,
    body: &[u8],
) -> Result<String, SignError> {
    let candidates = key_candidates(secret, secret_encoding);
    let (_, key) = candidates.first().ok_or(SignError::SecretInvalid)?;
    let code = mac(key, body);
    Ok(match encoding {
        SignatureEncoding::Base64 => STANDARD.encode(code),
        SignatureEncoding::Hex | SignatureEncoding::Any => encode_hex(&code),
    })
}

fn mac(key: &[u8], content: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(content);
    mac.finalize().into_bytes().into()
}

/// Escapes what is not unreserved in a URL.
fn percent_encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}
