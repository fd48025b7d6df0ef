//! Texts from outside are bounded and made storable here; what was changed is noted.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pass_domain::Timestamp;
use pass_domain::delivery::{Undecodable, UndecodableReason};
use pass_domain::ids::{IdError, VendorId};
use pass_domain::limits::{ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTES_MAX, NOTES_MAX, TEXT_BYTES_MAX};
use pass_domain::time::parse_rfc3339;

/// Quirks met while decoding: each code once, at most [`NOTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<String>);

impl Notes {
    pub(crate) fn add(&mut self, code: &str) {
        if self.0.len() < NOTES_MAX && !self.0.iter().any(|note| note == code) {
            self.0.push(code.to_owned());
        }
    }

    pub(crate) fn into_vec(self) -> Vec<String> {
        self.0
    }

    /// Makes an ordinary text storable: NUL (which no database text takes) becomes U+FFFD, and what is
    /// over the limit is cut on a character boundary.
    pub(crate) fn text(&mut self, text: &str) -> String {
        let mut kept = text;
        if kept.len() > TEXT_BYTES_MAX {
            kept = cut(kept, TEXT_BYTES_MAX);
            self.add("TEXT_CUT");
        }
        if kept.contains('\0') {
            self.add("NUL_REPLACED");
            // The replacement is longer than NUL, so the limit has to be applied again.
            return cut(&kept.replace('\0', "\u{fffd}"), TEXT_BYTES_MAX).to_owned();
        }
        kept.to_owned()
    }

    /// [`Notes::text`] of a text that may be missing; empty if it is.
    pub(crate) fn optional(&mut self, text: Option<&str>) -> String {
        text.map_or_else(String::new, |text| self.text(text))
    }

    /// Puts an attribute into a map, within the limits on names and number.
    pub(crate) fn attribute(
        &mut self,
        map: &mut BTreeMap<String, String>,
        name: &str,
        value: &str,
    ) {
        if name.is_empty() || name.len() > ATTRIBUTE_NAME_BYTES_MAX || map.len() >= ATTRIBUTES_MAX {
            self.add("ATTRIBUTE_DROPPED");
            return;
        }
        let name = if name.contains('\0') {
            self.add("NUL_REPLACED");
            cut(&name.replace('\0', "\u{fffd}"), ATTRIBUTE_NAME_BYTES_MAX).to_owned()
        } else {
            name.to_owned()
        };
        let value = self.text(value);
        map.insert(name, value);
    }
}

/// The longest start of `text` that has at most `bytes_max` bytes and ends between characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let end = (0..=bytes_max)
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    &text[..end]
}

fn undecodable(reason: UndecodableReason, detail: String) -> Undecodable {
    Undecodable {
        reason,
        detail: cut(&detail, 512).to_owned(),
    }
}

/// A required field is not there.
pub(crate) fn missing(field: &str) -> Undecodable {
    undecodable(
        UndecodableReason::FieldMissing,
        format!("{field} is missing"),
    )
}

/// A field has a value it cannot have; `rule` says what it should be.
pub(crate) fn invalid(field: &str, rule: &str) -> Undecodable {
    undecodable(UndecodableReason::FieldInvalid, format!("{field} {rule}"))
}

/// A field that decides which fact this is, is there twice.
pub(crate) fn duplicate(field: &str) -> Undecodable {
    undecodable(
        UndecodableReason::FieldDuplicate,
        format!("{field} is there more than once"),
    )
}

/// The adapter does not know what the field names.
pub(crate) fn kind_unknown(field: &str) -> Undecodable {
    undecodable(
        UndecodableReason::KindUnknown,
        format!("{field} names something this adapter does not know"),
    )
}

/// The body is not JSON.
pub(crate) fn not_json(what: &str) -> Undecodable {
    undecodable(UndecodableReason::NotJson, what.to_owned())
}

/// The body is nested too deep.
pub(crate) fn too_deep() -> Undecodable {
    let max = pass_domain::limits::JSON_DEPTH_MAX;
    undecodable(
        UndecodableReason::TooDeep,
        format!("the body is nested more than {max} levels deep"),
    )
}

/// The signed text and the readable copy differ.
pub(crate) fn mismatch(copy: &str, signed: &str) -> Undecodable {
    undecodable(
        UndecodableReason::ContentMismatch,
        format!("{copy} does not say the same as {signed}, which is signed"),
    )
}

/// Reads a required id.
pub(crate) fn id(field: &str, text: Option<&str>) -> Result<VendorId, Undecodable> {
    id_optional(field, text)?.ok_or_else(|| missing(field))
}

/// Reads an id that may be missing, null or empty.
pub(crate) fn id_optional(
    field: &str,
    text: Option<&str>,
) -> Result<Option<VendorId>, Undecodable> {
    match text.map(VendorId::new) {
        None | Some(Err(IdError::Empty { .. })) => Ok(None),
        Some(Ok(id)) => Ok(Some(id)),
        Some(Err(IdError::TooLong { bytes_max, .. })) => Err(invalid(
            field,
            &format!("is longer than the {bytes_max} bytes an id may have"),
        )),
        Some(Err(_)) => Err(invalid(
            field,
            "has a character that an id cannot have; only visible ASCII is allowed",
        )),
    }
}

/// Reads an RFC 3339 time that may be missing.
pub(crate) fn time(
    field: &str,
    text: Option<&Cow<'_, str>>,
) -> Result<Option<Timestamp>, Undecodable> {
    text.map(|text| {
        parse_rfc3339(text).ok_or_else(|| {
            invalid(
                field,
                "is not an RFC 3339 time with offset in the years 1 to 9999",
            )
        })
    })
    .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters_and_lose_their_nuls() {
        let mut notes = Notes::default();
        let long = "é".repeat(TEXT_BYTES_MAX);
        let kept = notes.text(&format!("x{long}"));
        assert_eq!(kept.len(), TEXT_BYTES_MAX - 1);
        assert_eq!(notes.text("a\0b"), "a\u{fffd}b");
        assert!(notes.text(&"\0".repeat(TEXT_BYTES_MAX)).len() <= TEXT_BYTES_MAX);
        assert_eq!(notes.into_vec(), ["TEXT_CUT", "NUL_REPLACED"]);
    }

    #[test]
    fn attributes_are_bounded_in_name_and_number() {
        let (mut notes, mut map) = (Notes::default(), BTreeMap::new());
        notes.attribute(&mut map, &"n".repeat(ATTRIBUTE_NAME_BYTES_MAX + 1), "v");
        assert!(map.is_empty());
        for i in 0..ATTRIBUTES_MAX + 5 {
            notes.attribute(&mut map, &format!("n{i}"), "v");
        }
        assert_eq!(map.len(), ATTRIBUTES_MAX);
        assert_eq!(notes.into_vec(), ["ATTRIBUTE_DROPPED"]);
    }
}
