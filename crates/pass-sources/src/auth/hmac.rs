//! HMAC-SHA256 over the raw body, in a header.

use http::HeaderMap;
use pass_domain::delivery::AuthScheme;

use super::mac::{MacKeys, read_signature};
use super::secrets::Secret;
use super::{Accepted, RefusalCause, header_name, single};
use crate::config::{AuthConfig, Faults, SignatureEncoding};

/// A signature header and the keys that may have made it.
#[derive(Debug)]
pub(crate) struct HmacHeader {
    header: String,
    prefix: String,
    encoding: SignatureEncoding,
    keys: MacKeys,
}

impl HmacHeader {
    pub(crate) fn build(
        auth: &AuthConfig,
        header: Option<&str>,
        secrets: Vec<Secret>,
        faults: &mut Faults,
    ) -> Self {
        let header = match header {
            Some(name) => header_name(name, faults),
            None => {
                faults.add(
                    "auth.header",
                    "is missing; name the header that carries the signature",
                );
                String::new()
            }
        };
        Self {
            header,
            prefix: auth.prefix.clone().unwrap_or_else(|| "sha256=".to_owned()),
            encoding: auth.encoding,
            keys: MacKeys::build(&secrets, auth.secret_encoding, faults),
        }
    }

    pub(crate) fn header(&self) -> &str {
        &self.header
    }

    pub(crate) fn verify<'a>(
        &self,
        headers: &'a HeaderMap,
        body: &[u8],
    ) -> Result<Accepted<'a>, RefusalCause> {
        let value = single(headers, &self.header)?
            .ok_or(RefusalCause::MissingCredential)?
            .as_bytes();
        let signature = value.strip_prefix(self.prefix.as_bytes()).unwrap_or(value);
        if signature.is_empty() {
            return Err(RefusalCause::MissingCredential);
        }
        let presented =
            read_signature(signature, self.encoding).ok_or(RefusalCause::MalformedCredential)?;
        let found = self
            .keys
            .verify(&[body], &[presented])
            .ok_or(RefusalCause::WrongCredential)?;
        Ok(Accepted::new(
            AuthScheme::Hmac,
            found.key_id,
            &format!("{},{}", found.spelling, found.form),
        ))
    }
}
