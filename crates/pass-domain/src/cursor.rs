//! Cursors: an event's place in the log, as clients hold it.
//!
//! A cursor names the log's epoch, a position and the event that stood there. All three must match on
//! resume, so a cursor from before a restore is recognised instead of silently skipping events.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::event::Position;
use crate::ids::EventId;

/// First byte of every cursor of this form.
const VERSION: u8 = 1;
/// Encoded length in bytes: version, epoch, position, digest, check.
const BYTES: usize = 1 + 8 + 8 + 8 + 1;

/// A place in the log. Opaque to clients; ordered only within one epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The log's epoch: a random number that changes when history may have changed.
    pub epoch: u64,
    /// The position; 0 is before the first event.
    pub position: Position,
    /// Eight bytes of the id of the event at the position; 0 at position 0.
    pub digest: u64,
}

/// A text that is not a cursor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: pass one unchanged as it came from an event, a bookmark or GetLogInfo")]
pub struct CursorError;

impl Cursor {
    /// The cursor of an event.
    #[must_use]
    pub fn of(epoch: u64, position: Position, event: &EventId) -> Self {
        Self {
            epoch,
            position,
            digest: Self::digest_of(event),
        }
    }

    /// The cursor before the first event.
    #[must_use]
    pub fn beginning(epoch: u64) -> Self {
        Self {
            epoch,
            position: Position(0),
            digest: 0,
        }
    }

    /// The eight bytes of an event id that a cursor carries.
    #[must_use]
    pub fn digest_of(event: &EventId) -> u64 {
        let mut bytes = [0_u8; 8];
        bytes.copy_from_slice(&event.as_bytes()[8..]);
        u64::from_be_bytes(bytes)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = [0_u8; BYTES];
        bytes[0] = VERSION;
        bytes[1..9].copy_from_slice(&self.epoch.to_be_bytes());
        bytes[9..17].copy_from_slice(&self.position.0.to_be_bytes());
        bytes[17..25].copy_from_slice(&self.digest.to_be_bytes());
        bytes[25] = check(&bytes[..25]);
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Cursor {
    type Err = CursorError;

    fn from_str(text: &str) -> Result<Self, CursorError> {
        if text.len() > 64 {
            return Err(CursorError);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError)?;
        let bytes: [u8; BYTES] = bytes.try_into().map_err(|_| CursorError)?;
        if bytes[0] != VERSION || bytes[25] != check(&bytes[..25]) {
            return Err(CursorError);
        }
        let number = |range: std::ops::Range<usize>| {
            let mut part = [0_u8; 8];
            part.copy_from_slice(&bytes[range]);
            u64::from_be_bytes(part)
        };
        let cursor = Self {
            epoch: number(1..9),
            position: Position(number(9..17)),
            digest: number(17..25),
        };
        if cursor.position.0 > i64::MAX as u64 {
            return Err(CursorError);
        }
        Ok(cursor)
    }
}

/// A one-byte sum that catches cut and mistyped cursors before they are taken for another place.
fn check(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0x5a, |sum: u8, byte| sum.rotate_left(3) ^ byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_frozen() {
        let cursor = Cursor {
            epoch: 0x0102_0304_0506_0708,
            position: Position(42),
            digest: 0xdead_beef_0000_0001,
        };
        assert_eq!(cursor.to_string(), "AQECAwQFBgcIAAAAAAAAACrerb7vAAAAAWY");
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn every_changed_character_is_noticed_or_names_another_place() {
        let text = Cursor {
            epoch: 7,
            position: Position(9),
            digest: 11,
        }
        .to_string();
        for at in 0..text.len() {
            let mut other = text.clone().into_bytes();
            other[at] = if other[at] == b'A' { b'B' } else { b'A' };
            let other = String::from_utf8(other).expect("ascii");
            if let Ok(cursor) = other.parse::<Cursor>() {
                assert_ne!(cursor.to_string(), text);
            }
        }
    }

    #[test]
    fn garbage_is_refused() {
        for bad in [
            "",
            "x",
            "AAAA",
            "!!!!",
            &"A".repeat(34),
            &"A".repeat(1_000),
            "AQ==",
        ] {
            assert_eq!(bad.parse::<Cursor>(), Err(CursorError), "{bad:?}");
        }
    }
}
