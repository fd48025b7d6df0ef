//! The live secrets of a source, as their operator gave them.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::config::{Faults, SecretConfig, SecretRef};

/// Most live secrets of one source.
const SECRETS_MAX: usize = 4;
/// Longest secret as text, in bytes.
const SECRET_BYTES_MAX: usize = 4_096;
/// Longest id of a secret, in bytes.
const SECRET_ID_BYTES_MAX: usize = 63;

/// Object identifiers that say "this is a public key", in DER.
const PUBLIC_KEY_ALGORITHMS: [&[u8]; 4] = [
    &[
        0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01,
    ], // rsaEncryption
    &[0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01], // id-ecPublicKey
    &[0x06, 0x03, 0x2b, 0x65, 0x70],                         // Ed25519
    &[0x06, 0x03, 0x2b, 0x65, 0x71],                         // Ed448
];

/// One secret: visible ASCII. Its `Debug` does not show it.
pub(crate) struct Secret {
    /// What verdicts call it.
    pub(crate) id: String,
    /// Where it stands in the configuration.
    pub(crate) path: String,
    /// The text.
    pub(crate) text: String,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("id", &self.id)
            .field("text", &"[REDACTED]")
            .finish()
    }
}

/// Resolves and checks every secret; what is wrong with one does not hide what is wrong with the next.
pub(crate) fn resolve_all(
    configs: &[SecretConfig],
    resolve: &mut dyn FnMut(&SecretRef) -> Result<Vec<u8>, String>,
    faults: &mut Faults,
) -> Vec<Secret> {
    if configs.is_empty() {
        faults.add(
            "auth.secrets",
            "is empty; give at least one secret with value, file or env",
        );
    }
    if configs.len() > SECRETS_MAX {
        faults.add(
            "auth.secrets",
            format!(
                "has {} secrets; at most {SECRETS_MAX} may be live at once",
                configs.len()
            ),
        );
    }
    let mut secrets: Vec<Secret> = Vec::new();
    for (index, config) in configs.iter().enumerate() {
        let path = format!("auth.secrets[{index}]");
        let id = if config.id.is_empty() {
            format!("key-{}", index + 1)
        } else {
            config.id.clone()
        };
        if id.len() > SECRET_ID_BYTES_MAX || !id.bytes().all(|b| b.is_ascii_graphic()) {
            faults.add(
                format!("{path}.id"),
                format!("must be 1 to {SECRET_ID_BYTES_MAX} visible ASCII characters"),
            );
        }
        if secrets.iter().any(|other| other.id == id) {
            faults.add(
                format!("{path}.id"),
                "is used by another secret of this source; ids must differ",
            );
        }
        let places = [
            ("value", config.value.is_some()),
            ("file", config.file.is_some()),
            ("env", config.env.is_some()),
        ];
        let mut given = places.iter().filter(|(_, given)| *given);
        let (Some((place, _)), None) = (given.next(), given.next()) else {
            faults.add(path, "must have exactly one of value, file and env");
            continue;
        };
        let path = format!("{path}.{place}");
        let bytes = match resolve(&config.reference()) {
            Ok(bytes) => bytes,
            Err(message) => {
                faults.add(path, message);
                continue;
            }
        };
        match check(bytes) {
            Ok(text) => secrets.push(Secret { id, path, text }),
            Err(message) => faults.add(path, message),
        }
    }
    secrets
}

/// Checks what holds for every secret of every scheme.
fn check(bytes: Vec<u8>) -> Result<String, &'static str> {
    let Ok(mut text) = String::from_utf8(bytes) else {
        return Err("is not text; write a binary secret as base64");
    };
    // A file written by an editor or `echo` ends with a line break that is not part of the secret.
    while text.ends_with(['\n', '\r']) {
        text.pop();
    }
    if text.is_empty() {
        return Err("is empty");
    }
    if text.len() > SECRET_BYTES_MAX {
        return Err("is longer than 4096 bytes");
    }
    if is_public_key(&text) {
        return Err(
            "is a public key, a certificate or half of a key pair; whoever holds it could forge events, so ask the vendor for a shared secret or use url_secret",
        );
    }
    if !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("has a space, line break or other character that is not visible ASCII");
    }
    Ok(text)
}

/// True for anything that is published, or half of a key pair: as the key of an HMAC it protects nothing.
fn is_public_key(text: &str) -> bool {
    if text.contains("-----BEGIN") || text.contains("\"kty\"") {
        return true;
    }
    if ["whpk_", "whsk_", "ssh-rsa ", "ssh-ed25519 ", "ecdsa-sha2-"]
        .iter()
        .any(|start| text.starts_with(start))
    {
        return true;
    }
    let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let Ok(der) = STANDARD.decode(&compact) else {
        return false;
    };
    is_sequence(&der)
        && (PUBLIC_KEY_ALGORITHMS
            .iter()
            .any(|oid| der.windows(oid.len()).take(40).any(|w| w == *oid))
            || is_pkcs1(&der))
}

/// True if the bytes are one DER SEQUENCE and nothing more.
fn is_sequence(der: &[u8]) -> bool {
    let length = match der {
        [0x30, length @ 0..=0x7f, ..] => 2 + usize::from(*length),
        [0x30, 0x81, length, ..] => 3 + usize::from(*length),
        [0x30, 0x82, high, low, ..] => 4 + (usize::from(*high) << 8) + usize::from(*low),
        _ => return false,
    };
    length == der.len()
}

/// True for a bare RSA public key: a SEQUENCE that starts with a long INTEGER.
fn is_pkcs1(der: &[u8]) -> bool {
    matches!(
        der,
        [0x30, 0x81, _, 0x02, 0x81, ..] | [0x30, 0x82, _, _, 0x02, 0x82, ..]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_keys_in_any_dress_are_recognised() {
        let spki_ec = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE/1+3HBVSbdv+j7NaArdgMyoSAM43yRydzqdg1TxodSzA96Dj4Mc1EiKroxxunavVIvdxGnJeFViTzFvzFRxyCw==";
        for text in [
            spki_ec,
            "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----",
            "-----BEGIN CERTIFICATE-----",
            "whpk_3dKXDv3wqMGjgmtfPyJGGvGJ7WjnmvVYtPYyRPVF6UM=",
            "ssh-rsa AAAAB3NzaC1yc2E=",
            r#"{"kty":"RSA"}"#,
            "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=",
        ] {
            assert!(is_public_key(text), "{text}");
            assert!(check(text.into()).is_err(), "{text}");
        }
        let rsa = [
            &[0x30, 0x82, 0x01, 0x0a, 0x02, 0x82, 0x01, 0x01][..],
            &[7_u8; 262],
        ]
        .concat();
        assert!(is_public_key(&STANDARD.encode(rsa)));
        assert!(!is_public_key(&STANDARD.encode([0x30_u8; 64])));
        assert!(!is_public_key(
            "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
        ));
    }

    #[test]
    fn a_line_break_at_the_end_is_not_part_of_a_secret() {
        assert_eq!(check(b"abc\r\n".to_vec()), Ok("abc".to_owned()));
        for bad in [
            &b""[..],
            b"\n",
            b"a b",
            b"a\nb",
            b"\xff\xfe",
            &[b'x'; 4_097],
        ] {
            assert!(check(bad.to_vec()).is_err());
        }
    }
}
