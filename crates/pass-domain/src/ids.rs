//! Identifiers. Each is made only by a constructor that checks it.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use uuid::Uuid;

use crate::limits::{ID_BYTES_MAX, SOURCE_BYTES_MAX};

/// Why a text is not the identifier it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("{what} is empty")]
    Empty {
        /// What was being read.
        what: &'static str,
    },
    /// The text is too long.
    #[error("{what} has {bytes} bytes; at most {bytes_max} are allowed")]
    TooLong {
        /// What was being read.
        what: &'static str,
        /// How long it is.
        bytes: usize,
        /// How long it may be.
        bytes_max: usize,
    },
    /// The text has a character that is not allowed.
    #[error("{what} has a character that is not allowed; {allowed}")]
    Character {
        /// What was being read.
        what: &'static str,
        /// What is allowed.
        allowed: &'static str,
    },
    /// The text does not have the form.
    #[error("{what} must look like {form}")]
    Form {
        /// What was being read.
        what: &'static str,
        /// The form.
        form: &'static str,
    },
}

/// A source's immutable uid: lower-case letters, digits and hyphens, starting with a letter, at most 63.
/// It defaults to the source's name and is what every id and resource name is built from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceUid(Box<str>);

impl SourceUid {
    /// Checks a uid.
    ///
    /// # Errors
    /// If it is empty, too long or has another character than `a-z`, `0-9`, `-`, or does not start with a letter.
    pub fn new(text: &str) -> Result<Self, IdError> {
        let what = "source";
        if text.is_empty() {
            return Err(IdError::Empty { what });
        }
        if text.len() > SOURCE_BYTES_MAX {
            return Err(IdError::TooLong {
                what,
                bytes: text.len(),
                bytes_max: SOURCE_BYTES_MAX,
            });
        }
        let first = text.as_bytes()[0];
        if !first.is_ascii_lowercase()
            || !text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(IdError::Character {
                what,
                allowed: "use a-z, 0-9 and '-', and start with a letter",
            });
        }
        Ok(Self(text.into()))
    }

    /// The uid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A vendor's own id of something (a pass, an installation): 1 to 256 bytes of visible ASCII.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VendorId(Box<str>);

impl VendorId {
    /// Checks a vendor's id.
    ///
    /// # Errors
    /// If it is empty, over 256 bytes, or has anything but visible ASCII (no spaces, no NUL).
    pub fn new(text: &str) -> Result<Self, IdError> {
        let what = "vendor id";
        if text.is_empty() {
            return Err(IdError::Empty { what });
        }
        if text.len() > ID_BYTES_MAX {
            return Err(IdError::TooLong {
                what,
                bytes: text.len(),
                bytes_max: ID_BYTES_MAX,
            });
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(IdError::Character {
                what,
                allowed: "only visible ASCII is allowed",
            });
        }
        Ok(Self(text.into()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VendorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Characters of a vendor id that are escaped in a resource name (AIP-122 allows unreserved ones as they are).
const SEGMENT: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'!')
    .add(b'"')
    .add(b'#')
    .add(b'$')
    .add(b'%')
    .add(b'&')
    .add(b'\'')
    .add(b'(')
    .add(b')')
    .add(b'*')
    .add(b'+')
    .add(b',')
    .add(b'/')
    .add(b':')
    .add(b';')
    .add(b'<')
    .add(b'=')
    .add(b'>')
    .add(b'?')
    .add(b'@')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Which pass: the source and the vendor's id of it. Its resource name is `sources/{source}/passes/{pass}`
/// with the vendor's id percent-encoded.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PassKey {
    /// The source that tells about the pass.
    pub source: SourceUid,
    /// The vendor's id of the pass.
    pub pass: VendorId,
}

impl fmt::Display for PassKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "sources/{}/passes/{}",
            self.source,
            utf8_percent_encode(self.pass.as_str(), SEGMENT)
        )
    }
}

impl FromStr for PassKey {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let form = IdError::Form {
            what: "pass name",
            form: "sources/{source}/passes/{pass}",
        };
        let rest = text.strip_prefix("sources/").ok_or_else(|| form.clone())?;
        let (source, pass) = rest.split_once("/passes/").ok_or_else(|| form.clone())?;
        if pass.contains('/') {
            return Err(form);
        }
        let pass = percent_decode_str(pass).decode_utf8().map_err(|_| form)?;
        Ok(Self {
            source: SourceUid::new(source)?,
            pass: VendorId::new(&pass)?,
        })
    }
}

/// Reads `prefix` followed by 32 lower-case hexadecimal digits.
fn parse_prefixed(
    text: &str,
    prefix: &'static str,
    what: &'static str,
    form: &'static str,
) -> Result<Uuid, IdError> {
    let digits = text
        .strip_prefix(prefix)
        .ok_or(IdError::Form { what, form })?;
    if digits.len() != 32
        || !digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return Err(IdError::Form { what, form });
    }
    Uuid::parse_str(digits).map_err(|_| IdError::Form { what, form })
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $what:literal, $form:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes the 16 bytes of an id that was checked before (from a store or a peer).
            #[must_use]
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// The id's 16 bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0.as_simple())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                parse_prefixed(text, $prefix, $what, $form).map(Self)
            }
        }
    };
}

uuid_id!(
    /// One HTTP callback as received: a UUIDv7, printed `del_` and 32 hexadecimal digits.
    DeliveryId, "del_", "delivery id", "del_ and 32 lower-case hexadecimal digits"
);
uuid_id!(
    /// One fact: a UUIDv8 derived from the fact itself (see [`crate::identity`]), printed `evt_` and 32 hexadecimal digits.
    EventId, "evt_", "event id", "evt_ and 32 lower-case hexadecimal digits"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_names_round_trip_whatever_the_vendor_put_in_its_id() {
        for id in [
            "5u5EO18473CDVG0Vw0VgPV",
            "a/b",
            "a%2Fb",
            "x:y?z=#1",
            "~.-_",
            "..",
            "{}\"\\^`|<>",
        ] {
            let key = PassKey {
                source: SourceUid::new("acme").expect("valid"),
                pass: VendorId::new(id).expect("valid"),
            };
            let name = key.to_string();
            assert_eq!(name.matches('/').count(), 3, "{name}");
            assert_eq!(name.parse::<PassKey>().expect("round trip"), key);
        }
    }

    #[test]
    fn ids_outside_their_alphabet_are_refused() {
        for bad in ["", "a b", "a\0b", "é", "\n", &"x".repeat(257)] {
            assert!(VendorId::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "Acme", "1a", "a_b", "a/b", &"x".repeat(64)] {
            assert!(SourceUid::new(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "",
            "sources/a",
            "sources/a/passes/",
            "sources/a/passes/b/c",
            "sources//passes/b",
            "passes/b",
            "sources/a/passes/%FF",
        ] {
            assert!(bad.parse::<PassKey>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn prefixed_ids_round_trip_and_refuse_each_others_prefix() {
        let id = EventId::from_bytes([0xab; 16]);
        let text = id.to_string();
        assert_eq!(text, format!("evt_{}", "ab".repeat(16)));
        assert_eq!(text.parse::<EventId>(), Ok(id));
        assert!(text.parse::<DeliveryId>().is_err());
        assert!(text.to_uppercase().parse::<EventId>().is_err());
    }
}
