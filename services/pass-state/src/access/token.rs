//! Tokens: made here, stored as digests, compared without telling how close a guess was.
//!
//! A token has 256 random bits. So plain SHA-256 is the right digest for storing: what makes password hashes
//! slow protects secrets that can be guessed, and these cannot; a slow one would only give every caller a
//! lever against the server.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};

/// What a token begins with, so that scanners for leaked secrets find it.
const PREFIX: &str = "plt_";
/// Longest token that is looked at, in bytes. Ours have 47; others may bring their own.
const TOKEN_BYTES_MAX: usize = 256;

/// SHA-256 of a token.
pub(super) type TokenDigest = [u8; 32];

/// A new token, and its digest in hexadecimal digits.
///
/// # Errors
/// If the system gives no random bytes.
pub fn generate() -> io::Result<(String, String)> {
    let mut random = [0_u8; 32];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    let digest = hex(&digest(token.as_bytes()));
    Ok((token, digest))
}

pub(super) fn digest(token: &[u8]) -> TokenDigest {
    Sha256::digest(token).into()
}

/// The token of an `authorization` header's value; `None` if it holds none.
pub(super) fn presented(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    let fits = !token.is_empty()
        && token.len() <= TOKEN_BYTES_MAX
        && token.iter().all(u8::is_ascii_graphic);
    (scheme.eq_ignore_ascii_case(b"Bearer ") && fits).then_some(token)
}

/// Reads 64 hexadecimal digits.
pub(super) fn digest_from_hex(text: &str) -> Option<TokenDigest> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = u8::try_from(digit(0)? << 4 | digit(1)?).ok()?;
    }
    Some(digest)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_token_has_its_form_and_is_another_one_each_time() {
        let (token, hash) = generate().unwrap();
        assert_eq!(token.len(), 47);
        assert!(token.starts_with("plt_"));
        assert_eq!(digest_from_hex(&hash), Some(digest(token.as_bytes())));
        assert_ne!(generate().unwrap().0, token);
    }

    // By coreutils' sha256sum.
    #[test]
    fn the_digest_is_plain_sha_256() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&digest(b"abc")), known);
        assert_eq!(digest_from_hex(&known.to_uppercase()), Some(digest(b"abc")));
    }

    #[test]
    fn only_a_bearer_token_is_one() {
        assert_eq!(presented(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(presented(b"bearer abc"), Some(&b"abc"[..]));
        for other in [
            &b""[..],
            b"Bearer",
            b"Bearer ",
            b"Bearer a b",
            b"Bearer  a",
            b"Basic YTpi",
            b"abc",
            "Bearer é".as_bytes(),
            format!("Bearer {}", "a".repeat(257)).as_bytes(),
        ] {
            assert_eq!(presented(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
