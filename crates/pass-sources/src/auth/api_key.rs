//! Keys that are sent as they are: in a header, or in the URL.

use std::fmt;

use http::HeaderMap;
use pass_domain::delivery::AuthScheme;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::secrets::Secret;
use super::{Accepted, RefusalCause, header_name, single};
use crate::config::{AuthConfig, Faults};

/// Shortest key, in bytes.
const KEY_BYTES_MIN: usize = 16;

/// SHA-256 digests of the live keys. Digests are compared, so that neither length nor content of a key
/// shows in the time it takes.
struct Digests(Vec<(String, [u8; 32])>);

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|(id, _)| (id, "[REDACTED]")))
            .finish()
    }
}

impl Digests {
    fn build(secrets: &[Secret], faults: &mut Faults) -> Self {
        for secret in secrets {
            if secret.text.len() < KEY_BYTES_MIN {
                faults.add(
                    secret.path.as_str(),
                    format!(
                        "is shorter than {KEY_BYTES_MIN} bytes; ask the vendor for a longer key"
                    ),
                );
            }
        }
        Self(
            secrets
                .iter()
                .map(|secret| (secret.id.clone(), Sha256::digest(&secret.text).into()))
                .collect(),
        )
    }

    fn find(&self, presented: &[u8]) -> Option<&str> {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        let mut found = None;
        for (id, digest) in &self.0 {
            if bool::from(digest.ct_eq(&presented)) && found.is_none() {
                found = Some(id.as_str());
            }
        }
        found
    }
}

/// An API key in a header, with or without a word before it.
#[derive(Debug)]
pub(crate) struct ApiKey {
    header: String,
    scheme_word: Option<String>,
    keys: Digests,
}

impl ApiKey {
    pub(crate) fn build(
        auth: &AuthConfig,
        header: &str,
        secrets: Vec<Secret>,
        faults: &mut Faults,
    ) -> Self {
        if auth
            .scheme_word
            .as_ref()
            .is_some_and(|word| word.is_empty() || !word.bytes().all(|b| b.is_ascii_graphic()))
        {
            faults.add(
                "auth.scheme_word",
                "must be one word of visible ASCII, such as \"Bearer\"",
            );
        }
        Self {
            header: header_name(header, faults),
            scheme_word: auth.scheme_word.clone(),
            keys: Digests::build(&secrets, faults),
        }
    }

    pub(crate) fn header(&self) -> &str {
        &self.header
    }

    pub(crate) fn verify<'a>(&self, headers: &'a HeaderMap) -> Result<Accepted<'a>, RefusalCause> {
        let value = single(headers, &self.header)?
            .ok_or(RefusalCause::MissingCredential)?
            .as_bytes();
        if value.is_empty() {
            return Err(RefusalCause::MissingCredential);
        }
        let (key, detail) = match &self.scheme_word {
            None => (value, ""),
            Some(word) => match without_word(value, word) {
                Some(key) => (key, "scheme_word"),
                None => (value, "bare"),
            },
        };
        let id = self.keys.find(key).ok_or(RefusalCause::WrongCredential)?;
        Ok(Accepted::new(AuthScheme::ApiKey, id, detail))
    }
}

/// What follows the word and one space; the word's case does not matter.
fn without_word<'a>(value: &'a [u8], word: &str) -> Option<&'a [u8]> {
    let (start, rest) = value.split_at_checked(word.len())?;
    if !start.eq_ignore_ascii_case(word.as_bytes()) {
        return None;
    }
    rest.strip_prefix(b" ")
}

/// A secret in the URL's path.
#[derive(Debug)]
pub(crate) struct UrlSecret {
    keys: Digests,
}

impl UrlSecret {
    pub(crate) fn build(secrets: Vec<Secret>, faults: &mut Faults) -> Self {
        for secret in &secrets {
            if secret.text.contains(['/', '?', '#', '%']) {
                faults.add(
                    secret.path.as_str(),
                    "has a character that does not survive in a URL path; avoid / ? # %",
                );
            }
        }
        Self {
            keys: Digests::build(&secrets, faults),
        }
    }

    pub(crate) fn verify<'a>(&self, presented: Option<&str>) -> Result<Accepted<'a>, RefusalCause> {
        let presented = presented
            .filter(|text| !text.is_empty())
            .ok_or(RefusalCause::MissingCredential)?;
        let id = self
            .keys
            .find(presented.as_bytes())
            .ok_or(RefusalCause::WrongCredential)?;
        Ok(Accepted::new(AuthScheme::UrlSecret, id, ""))
    }
}
