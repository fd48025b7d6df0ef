//! Standard Webhooks 1.0, symmetric signatures (`v1`).
//!
//! Written here because the official crate overflows on a hostile timestamp and takes a signed one. What
//! is checked, in this order: each header once and at most 4 KiB; the id (1 to 256 visible ASCII
//! characters, no dot); the timestamp (1 to 12 digits, nothing else); at most 8 signatures, of which only
//! `v1,` ones count; HMAC-SHA256 over `id.timestamp.body`; then the timestamp's distance from the receive
//! time. The id and timestamp are believed only after the signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use pass_domain::delivery::AuthScheme;
use pass_domain::time::to_parts;

use super::mac::{KEY_BYTES_MIN, MacKeys, Presented, read_base64};
use super::secrets::Secret;
use super::{Accepted, RefusalCause, single};
use crate::config::{AuthConfig, Faults};
use crate::source::Request;

/// The id header's names: the standard's, then that of older senders.
pub(crate) const ID_HEADERS: [&str; 2] = ["webhook-id", "svix-id"];
/// The timestamp header's names, in the same order.
pub(crate) const TIMESTAMP_HEADERS: [&str; 2] = ["webhook-timestamp", "svix-timestamp"];
/// The signature header's names, in the same order.
const SIGNATURE_HEADERS: [&str; 2] = ["webhook-signature", "svix-signature"];

/// Most signatures in one header.
const SIGNATURES_MAX: usize = 8;
/// Longest id, in bytes.
const ID_BYTES_MAX: usize = 256;
/// Longest key the standard allows, in bytes.
const KEY_BYTES_MAX: usize = 64;
/// Furthest tolerance that may be configured, in seconds.
const TOLERANCE_SECONDS_MAX: u64 = 3_600;

/// The keys and the tolerance of a Standard Webhooks source.
#[derive(Debug)]
pub(crate) struct StandardWebhooks {
    keys: MacKeys,
    tolerance_seconds: u64,
}

impl StandardWebhooks {
    pub(crate) fn build(auth: &AuthConfig, secrets: Vec<Secret>, faults: &mut Faults) -> Self {
        if !(1..=TOLERANCE_SECONDS_MAX).contains(&auth.tolerance_seconds) {
            faults.add(
                "auth.tolerance_seconds",
                format!("must be 1 to {TOLERANCE_SECONDS_MAX}"),
            );
        }
        let mut keys = Vec::new();
        for secret in secrets {
            match secret_bytes(&secret.text) {
                Some(bytes) => keys.push((secret.id, bytes)),
                None => {
                    let rule = format!(
                        "must be whsec_ and base64 of {KEY_BYTES_MIN} to {KEY_BYTES_MAX} bytes"
                    );
                    faults.add(secret.path, rule);
                }
            }
        }
        Self {
            keys: MacKeys::from_decoded(keys),
            tolerance_seconds: auth.tolerance_seconds,
        }
    }

    pub(crate) fn verify<'a>(&self, request: &Request<'a>) -> Result<Accepted<'a>, RefusalCause> {
        let headers = request.headers;
        // Senders in transition send both families; the standard's own counts then.
        let family = usize::from(
            !headers.contains_key(ID_HEADERS[0]) && headers.contains_key(ID_HEADERS[1]),
        );
        let text = |name: &str| {
            let value = single(headers, name)?.ok_or(RefusalCause::MissingCredential)?;
            value
                .to_str()
                .map_err(|_| RefusalCause::MalformedCredential)
        };
        let id = text(ID_HEADERS[family])?;
        let timestamp = text(TIMESTAMP_HEADERS[family])?;
        let signatures = text(SIGNATURE_HEADERS[family])?;
        if !is_id(id) {
            return Err(RefusalCause::MalformedCredential);
        }
        let sent_seconds = read_timestamp(timestamp).ok_or(RefusalCause::MalformedCredential)?;
        let presented = read_signatures(signatures)?;
        let found = self
            .keys
            .verify(
                &[
                    id.as_bytes(),
                    b".",
                    timestamp.as_bytes(),
                    b".",
                    request.body,
                ],
                &presented,
            )
            .ok_or(RefusalCause::WrongCredential)?;
        let (received_seconds, _) = to_parts(request.receive_time);
        if received_seconds.abs_diff(sent_seconds) > self.tolerance_seconds {
            return Err(RefusalCause::StaleTimestamp);
        }
        let mut accepted = Accepted::new(AuthScheme::StandardWebhooks, found.key_id, "v1");
        accepted.message_id = Some(id);
        Ok(accepted)
    }
}

/// The key in a secret's text, with or without `whsec_`.
pub(crate) fn secret_bytes(text: &str) -> Option<Vec<u8>> {
    let bytes = STANDARD
        .decode(text.strip_prefix("whsec_").unwrap_or(text))
        .ok()?;
    (KEY_BYTES_MIN..=KEY_BYTES_MAX)
        .contains(&bytes.len())
        .then_some(bytes)
}

/// What is signed.
pub(crate) fn signed_content(id: &str, timestamp: &str, body: &[u8]) -> Vec<u8> {
    [id.as_bytes(), b".", timestamp.as_bytes(), b".", body].concat()
}

fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic() && b != b'.')
}

/// Reads 1 to 12 digits: no sign, no space, no overflow.
fn read_timestamp(text: &str) -> Option<i64> {
    if !(1..=12).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// Reads the list of signatures. Ones of other versions, and ones that can't be read, match nothing.
fn read_signatures(text: &str) -> Result<Vec<Presented>, RefusalCause> {
    let mut presented = Vec::new();
    for (index, item) in text.split(' ').enumerate() {
        if index >= SIGNATURES_MAX {
            return Err(RefusalCause::MalformedCredential);
        }
        presented.extend(
            item.strip_prefix("v1,")
                .and_then(|signature| read_base64(signature.as_bytes())),
        );
    }
    Ok(presented)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_one_to_twelve_digits() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1649367553", Some(1_649_367_553)),
            ("999999999999", Some(999_999_999_999)),
        ] {
            assert_eq!(read_timestamp(text), expected);
        }
        for bad in [
            "",
            "+1",
            "-1",
            " 1",
            "1 ",
            "1e9",
            "1.0",
            "1000000000000",
            "-9223372036854775808",
            "٣",
            "0x1",
        ] {
            assert_eq!(read_timestamp(bad), None, "{bad}");
        }
    }

    #[test]
    fn signature_lists_are_short_and_only_v1_counts() {
        let good = format!("v1,{}", STANDARD.encode([1_u8; 32]));
        assert_eq!(read_signatures(&good).expect("read").len(), 1);
        assert_eq!(
            read_signatures(&format!("v1a,x v2,y {good} v1, {good}x"))
                .expect("read")
                .len(),
            1
        );
        assert_eq!(read_signatures("").expect("read").len(), 0);
        assert!(read_signatures(&[good.as_str(); 8].join(" ")).is_ok());
        assert_eq!(
            read_signatures(&[good.as_str(); 9].join(" ")),
            Err(RefusalCause::MalformedCredential)
        );
    }
}
