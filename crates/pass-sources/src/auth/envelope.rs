//! An HMAC-SHA256 signature inside the body, over the exact text of another member.
//!
//! Only the signed string is authenticated. The keys are shared secrets: a public key is refused when the
//! source is built, since an HMAC keyed with something public can be made by anybody.

use pass_domain::delivery::AuthScheme;

use super::mac::{MacKeys, read_signature};
use super::secrets::Secret;
use super::{Accepted, RefusalCause};
use crate::config::{AuthConfig, Faults, SignatureEncoding};
use crate::envelope_config::EnvelopeConfig;
use crate::json::readable;
use crate::raw;

/// Where the signature and the signed string are, and the keys that may have signed.
#[derive(Debug)]
pub(crate) struct SignedBody {
    signed_field: String,
    signature_field: String,
    encoding: SignatureEncoding,
    keys: MacKeys,
}

impl SignedBody {
    pub(crate) fn build(
        auth: &AuthConfig,
        envelope: &EnvelopeConfig,
        secrets: Vec<Secret>,
        faults: &mut Faults,
    ) -> Self {
        Self {
            signed_field: envelope.signed_field.clone(),
            signature_field: envelope.signature_field.clone(),
            encoding: auth.encoding,
            keys: MacKeys::build(&secrets, auth.secret_encoding, faults),
        }
    }

    pub(crate) fn verify<'a>(&self, body: &[u8]) -> Result<Accepted<'a>, RefusalCause> {
        let malformed = |_| RefusalCause::MalformedCredential;
        let text = readable(body).map_err(|_| RefusalCause::MalformedCredential)?;
        let members = raw::members(raw::checked(text).map_err(malformed)?).map_err(malformed)?;
        let string = |name: &str| {
            let mut values = members
                .iter()
                .filter(|(key, _)| key == name)
                .map(|(_, value)| *value);
            let value = values.next().ok_or(RefusalCause::MissingCredential)?;
            if values.next().is_some() {
                return Err(RefusalCause::MalformedCredential);
            }
            raw::string(value).map_err(malformed)
        };
        let signature = string(&self.signature_field)?;
        let signed = string(&self.signed_field)?;
        let presented = read_signature(signature.as_bytes(), self.encoding)
            .ok_or(RefusalCause::MalformedCredential)?;
        let found = self
            .keys
            .verify(&[signed.as_bytes()], &[presented])
            .ok_or(RefusalCause::WrongCredential)?;
        Ok(Accepted::new(
            AuthScheme::SignedEnvelope,
            found.key_id,
            &format!("{},{}", found.spelling, found.form),
        ))
    }
}
