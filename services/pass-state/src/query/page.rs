//! Page tokens: opaque, versioned, and bound to the request that they continue.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pass_proto::status::{Fault, Reason};
use prost::Message;
use sha2::{Digest as _, Sha256};

/// Version byte of the form below.
const VERSION: u8 = 1;
/// Version, epoch, place, digest of the request.
const BYTES: usize = 1 + 8 + 8 + 8;
/// Rows per page where the client does not say.
const SIZE_DEFAULT: usize = 50;
/// Most rows per page.
const SIZE_MAX: usize = 500;

/// Rows per page for a request's `page_size`; `None` if it is negative.
pub(crate) fn size(page_size: i32) -> Option<usize> {
    match usize::try_from(page_size).ok()? {
        0 => Some(SIZE_DEFAULT),
        size => Some(size.min(SIZE_MAX)),
    }
}

/// The request that a token belongs to: the call and all its fields but the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Binding([u8; 8]);

impl Binding {
    /// Of a request whose `page_token` was taken out.
    pub(crate) fn of(call: &str, request: &impl Message) -> Self {
        let mut hash = Sha256::new();
        hash.update((call.len() as u64).to_be_bytes());
        hash.update(call);
        hash.update(request.encode_to_vec());
        let mut digest = [0; 8];
        digest.copy_from_slice(&hash.finalize()[..8]);
        Self(digest)
    }

    /// The token of the page that starts at a place, in the log of an epoch.
    pub(crate) fn token(self, epoch: u64, from: u64) -> String {
        let mut bytes = [0; BYTES];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&epoch.to_be_bytes());
        bytes[9..17].copy_from_slice(&from.to_be_bytes());
        bytes[17..].copy_from_slice(&self.0);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The place at which a token goes on; 0 for an empty one.
    ///
    /// # Errors
    /// PAGE_TOKEN_MISMATCH if it is not a token, or of another request or another history.
    pub(crate) fn place(self, epoch: u64, token: &str) -> Result<u64, Fault> {
        if token.is_empty() {
            return Ok(0);
        }
        let refuse = |text| Err(Fault::new(Reason::PageTokenMismatch, text));
        let bytes: Option<[u8; BYTES]> = (token.len() <= 64)
            .then(|| URL_SAFE_NO_PAD.decode(token).ok()?.try_into().ok())
            .flatten();
        let Some(bytes) = bytes.filter(|bytes| bytes[0] == VERSION) else {
            return refuse("page_token is not one that this service gave; start the list again");
        };
        let number = |at: usize| {
            let mut part = [0; 8];
            part.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(part)
        };
        if bytes[17..] != self.0 {
            return refuse(
                "page_token belongs to a request with other fields; repeat them, or start the list again",
            );
        }
        if number(1) != epoch {
            return refuse("page_token is of another history of the log; start the list again");
        }
        Ok(number(9).min(i64::MAX as u64))
    }
}

#[cfg(test)]
mod tests {
    use pass_proto::v1::ListPassesRequest;

    use super::*;

    fn request() -> ListPassesRequest {
        ListPassesRequest {
            parent: "sources/-".into(),
            ..ListPassesRequest::default()
        }
    }

    #[test]
    fn the_token_form_is_frozen() {
        let binding = Binding::of("ListPasses", &request());
        let token = binding.token(7, 42);
        assert_eq!(token, "AQAAAAAAAAAHAAAAAAAAACrkwSvrzCnhkw");
        assert_eq!(binding.place(7, &token), Ok(42));
        assert_eq!(binding.place(7, ""), Ok(0));
    }

    #[test]
    fn tokens_of_other_requests_and_garbage_are_refused() {
        let binding = Binding::of("ListPasses", &request());
        let token = binding.token(7, 42);
        let filtered = ListPassesRequest {
            filter: "voided = true".into(),
            ..request()
        };
        let refused = [
            Binding::of("ListPasses", &filtered).place(7, &token),
            Binding::of("ListEvents", &request()).place(7, &token),
            binding.place(8, &token),
            binding.place(7, "x"),
            binding.place(7, "!!"),
            binding.place(7, &token[1..]),
            binding.place(7, &format!("{token}A")),
            binding.place(7, &"A".repeat(10_000)),
        ];
        for (at, refused) in refused.into_iter().enumerate() {
            assert_eq!(
                refused.unwrap_err().reason(),
                Reason::PageTokenMismatch,
                "{at}"
            );
        }
    }

    #[test]
    fn page_sizes_have_a_default_and_a_ceiling() {
        assert_eq!(size(0), Some(50));
        assert_eq!(size(7), Some(7));
        assert_eq!(size(501), Some(500));
        assert_eq!(size(-1), None);
    }
}
