//! HMAC-SHA256 with several live keys, and the strict spellings of a signature.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::secrets::Secret;
use crate::config::{Faults, SecretEncoding, SignatureEncoding};

/// Shortest key, in bytes.
pub(crate) const KEY_BYTES_MIN: usize = 24;
/// Longest key, in bytes: the text of a 64-byte secret in base64 fits.
const KEY_BYTES_MAX: usize = 128;

/// A signature as presented, with the name of the spelling it was read in.
pub(crate) type Presented = ([u8; 32], &'static str);

/// One key with its state after the first block.
struct Key {
    id: String,
    form: &'static str,
    mac: Hmac<Sha256>,
}

/// The keys that are live now.
pub(crate) struct MacKeys(Vec<Key>);

impl fmt::Debug for MacKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|key| (&key.id, key.form, "[REDACTED]")))
            .finish()
    }
}

/// Which key and spelling matched.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Match<'a> {
    pub(crate) key_id: &'a str,
    pub(crate) form: &'static str,
    pub(crate) spelling: &'static str,
}

impl MacKeys {
    /// Makes keys from secrets whose text is the key, or base64 of it.
    pub(crate) fn build(secrets: &[Secret], encoding: SecretEncoding, faults: &mut Faults) -> Self {
        let mut keys = Vec::new();
        for secret in secrets {
            let candidates = key_candidates(&secret.text, encoding);
            if candidates.is_empty() {
                let base64 = if encoding == SecretEncoding::Base64 {
                    "base64 of "
                } else {
                    ""
                };
                faults.add(
                    secret.path.as_str(),
                    format!("must be {base64}{KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes"),
                );
            }
            keys.extend(
                candidates
                    .into_iter()
                    .map(|(form, bytes)| Key::new(&secret.id, form, &bytes)),
            );
        }
        Self(keys)
    }

    /// Makes keys from bytes that were decoded and checked already.
    pub(crate) fn from_decoded(keys: Vec<(String, Vec<u8>)>) -> Self {
        Self(
            keys.iter()
                .map(|(id, bytes)| Key::new(id, "decoded", bytes))
                .collect(),
        )
    }

    /// Finds a key and a signature that fit. Every key is tried on every signature, whatever was found.
    pub(crate) fn verify(&self, parts: &[&[u8]], presented: &[Presented]) -> Option<Match<'_>> {
        let mut found = None;
        for key in &self.0 {
            let mut mac = key.mac.clone();
            for part in parts {
                mac.update(part);
            }
            let expected = mac.finalize().into_bytes();
            for (signature, spelling) in presented {
                let equal = bool::from(expected.as_slice().ct_eq(signature));
                if equal && found.is_none() {
                    found = Some(Match {
                        key_id: &key.id,
                        form: key.form,
                        spelling,
                    });
                }
            }
        }
        found
    }
}

impl Key {
    fn new(id: &str, form: &'static str, bytes: &[u8]) -> Self {
        let mac = Hmac::<Sha256>::new_from_slice(bytes).expect("HMAC takes a key of any length");
        Self {
            id: id.to_owned(),
            form,
            mac,
        }
    }
}

/// The keys a secret's text may stand for, by name of the form. Too short and too long ones are left out.
pub(crate) fn key_candidates(text: &str, encoding: SecretEncoding) -> Vec<(&'static str, Vec<u8>)> {
    let mut candidates = Vec::new();
    if encoding != SecretEncoding::Base64 {
        candidates.push(("ascii", text.as_bytes().to_vec()));
    }
    if encoding != SecretEncoding::Ascii
        && let Ok(bytes) = STANDARD.decode(text)
    {
        candidates.push(("decoded", bytes));
    }
    candidates.retain(|(_, bytes)| (KEY_BYTES_MIN..=KEY_BYTES_MAX).contains(&bytes.len()));
    candidates
}

/// Reads a signature in the allowed spellings; `None` if it is in none of them.
pub(crate) fn read_signature(text: &[u8], encoding: SignatureEncoding) -> Option<Presented> {
    match encoding {
        SignatureEncoding::Hex => read_hex(text),
        SignatureEncoding::Base64 => read_base64(text),
        SignatureEncoding::Any => read_hex(text).or_else(|| read_base64(text)),
    }
}

/// Reads 64 hexadecimal digits.
fn read_hex(text: &[u8]) -> Option<Presented> {
    let mut bytes = [0_u8; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some((bytes, "hex"))
}

/// Reads padded standard base64 of 32 bytes.
pub(crate) fn read_base64(text: &[u8]) -> Option<Presented> {
    if text.len() != 44 {
        return None;
    }
    let bytes = STANDARD.decode(text).ok()?;
    Some((bytes.try_into().ok()?, "base64"))
}

/// Writes bytes as lower-case hexadecimal digits.
pub(crate) fn encode_hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test case 6 (its key is longer than a block).
    #[test]
    fn the_rfc_4231_vector_verifies() {
        let keys = MacKeys::from_decoded(vec![
            ("other".into(), vec![1; 32]),
            ("rfc".into(), vec![0xaa; 131]),
        ]);
        let data = b"Test Using Larger Than Block-Size Key - Hash Key First";
        let signature =
            read_hex(b"60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54")
                .expect("hex");
        let found = keys
            .verify(&[&data[..10], &data[10..]], &[([0; 32], "hex"), signature])
            .expect("verifies");
        assert_eq!((found.key_id, found.spelling), ("rfc", "hex"));
        assert_eq!(keys.verify(&[&data[1..]], &[signature]), None);
    }

    #[test]
    fn signatures_are_read_strictly() {
        let bytes = [0xfb_u8; 32];
        let (hex, base64) = (encode_hex(&bytes), STANDARD.encode(bytes));
        let any = |text: &str| read_signature(text.as_bytes(), SignatureEncoding::Any);
        assert_eq!(any(&hex), Some((bytes, "hex")));
        assert_eq!(any(&hex.to_uppercase()), Some((bytes, "hex")));
        assert_eq!(any(&base64), Some((bytes, "base64")));
        let loose_bits = format!("{}t=", &base64[..42]);
        for bad in [
            "",
            "=",
            &hex[1..],
            &format!("{hex}0"),
            &format!("+{}", &hex[1..]),
            &base64[..43],
            &base64.replace('+', "-"),
            &format!(" {}", &base64[1..]),
            &loose_bits,
        ] {
            assert_eq!(any(bad), None, "{bad}");
        }
        assert_eq!(
            read_signature(hex.as_bytes(), SignatureEncoding::Base64),
            None
        );
        assert_eq!(
            read_signature(base64.as_bytes(), SignatureEncoding::Hex),
            None
        );
    }

    #[test]
    fn a_secret_stands_for_its_text_and_for_what_it_decodes_to() {
        let text = STANDARD.encode([7_u8; 64]);
        let forms = |encoding| {
            key_candidates(&text, encoding)
                .into_iter()
                .map(|(form, bytes)| (form, bytes.len()))
                .collect::<Vec<_>>()
        };
        assert_eq!(forms(SecretEncoding::Any), [("ascii", 88), ("decoded", 64)]);
        assert_eq!(forms(SecretEncoding::Ascii), [("ascii", 88)]);
        assert_eq!(forms(SecretEncoding::Base64), [("decoded", 64)]);
        assert!(key_candidates("short", SecretEncoding::Any).is_empty());
        assert_eq!(
            key_candidates(&"a".repeat(24), SecretEncoding::Any).len(),
            1,
            "18 decoded bytes are too few"
        );
    }
}
