//! JSON bodies as typed, borrowing structs.
//!
//! The adapters' structs are made by [`object!`] instead of serde's derive, for two reasons: a known key
//! that is there twice is remembered by name (serde_json's own value type silently keeps the last one, so
//! two readers of one body could disagree about which pass it is about), and null is the same as absent.
//! Unknown members are skipped. An error never repeats the sender's values.

use std::borrow::Cow;
use std::fmt;

use pass_domain::delivery::Undecodable;
use pass_domain::limits::JSON_DEPTH_MAX;
use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::clean::{cut, invalid, not_json, too_deep};

/// Most members kept of a free map, and most elements of a list; the rest is skipped.
const MEMBERS_MAX: usize = 256;

/// Makes a struct whose fields are read from the named keys of a JSON object. Every field is optional;
/// `duplicate` names the first known key that was there twice, `unknown` tells of other keys.
macro_rules! object {
    ($(#[$meta:meta])* $vis:vis struct $name:ident<$lt:lifetime> { $($field:ident : $ty:ty = $key:literal),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name<$lt> {
            $($vis $field: Option<$ty>,)*
            $vis duplicate: Option<&'static str>,
            $vis unknown: bool,
        }

        impl<'de: $lt, $lt> serde::Deserialize<'de> for $name<$lt> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct ObjectVisitor<$lt>(std::marker::PhantomData<&$lt ()>);

                impl<'de: $lt, $lt> serde::de::Visitor<'de> for ObjectVisitor<$lt> {
                    type Value = $name<$lt>;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a JSON object")
                    }

                    fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                        let mut duplicate = None;
                        let mut unknown = false;
                        $(let mut $field: Option<Option<$ty>> = None;)*
                        while let Some(key) = map.next_key::<$crate::json::Text<'de>>()? {
                            match &*key.0 {
                                $($key => {
                                    if $field.replace(map.next_value()?).is_some() {
                                        duplicate.get_or_insert($key);
                                    }
                                })*
                                _ => {
                                    unknown = true;
                                    map.next_value::<serde::de::IgnoredAny>()?;
                                }
                            }
                        }
                        Ok($name { $($field: $field.flatten(),)* duplicate, unknown })
                    }
                }

                deserializer.deserialize_map(ObjectVisitor(std::marker::PhantomData))
            }
        }
    };
}
pub(crate) use object;

/// A string, borrowed where it has no escapes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Text<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Cow<'de, str>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Cow::Borrowed(text))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Cow::Owned(text.to_owned()))
            }
        }

        deserializer.deserialize_str(TextVisitor).map(Text)
    }
}

/// Any value as text: a string's content, else the JSON as written. Null is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loose<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Loose<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&'de RawValue>::deserialize(deserializer)?.get();
        match json.as_bytes() {
            [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => {
                Ok(Loose(Cow::Borrowed(&json[1..json.len() - 1])))
            }
            [b'"', ..] => serde_json::from_str(json)
                .map(|text: String| Loose(Cow::Owned(text)))
                .map_err(de::Error::custom),
            b"null" => Ok(Loose::default()),
            _ => Ok(Loose(Cow::Borrowed(json))),
        }
    }
}

/// A free map, in the sender's order, at most [`MEMBERS_MAX`]. What is no object counts as empty (some
/// languages write an empty map as `[]`).
#[derive(Clone, Debug, Default)]
pub(crate) struct Members<'a>(pub(crate) Vec<(Cow<'a, str>, Loose<'a>)>);

impl Members<'_> {
    /// The last value of a name, if it is not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| &*value.0)
            .filter(|text| !text.is_empty())
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;

        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if members.len() < MEMBERS_MAX {
                        members.push((key.0, map.next_value()?));
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Members(members))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Members::default())
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Members::default())
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Members::default())
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Members::default())
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Members::default())
            }

            fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
                Ok(Members::default())
            }
        }

        deserializer.deserialize_any(MembersVisitor)
    }
}

/// A list, of which at most [`MEMBERS_MAX`] elements are kept.
#[derive(Clone, Debug)]
pub(crate) struct List<T>(pub(crate) Vec<T>);

impl<T> Default for List<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ListVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
            type Value = Vec<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while list.len() < MEMBERS_MAX {
                    match seq.next_element()? {
                        Some(element) => list.push(element),
                        None => return Ok(list),
                    }
                }
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(list)
            }
        }

        deserializer
            .deserialize_seq(ListVisitor(std::marker::PhantomData))
            .map(List)
    }
}

/// Checks that a body is UTF-8 and not nested too deep, before anything recursive looks at it.
pub(crate) fn readable(body: &[u8]) -> Result<&str, Undecodable> {
    if body.is_empty() {
        return Err(not_json("the body is empty"));
    }
    if deeper_than(body, JSON_DEPTH_MAX) {
        return Err(too_deep());
    }
    std::str::from_utf8(body).map_err(|_| not_json("the body is not UTF-8"))
}

/// Reads a whole body as one value.
pub(crate) fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Undecodable> {
    serde_json::from_str(text).map_err(|error| explain::<T>(text, &error))
}

/// True if brackets outside strings nest deeper than `depth_max`. Does not care whether the text is JSON.
fn deeper_than(body: &[u8], depth_max: usize) -> bool {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut escaped = false;
    for &byte in body {
        if in_string {
            if escaped {
                escaped = false;
            } else if byte == b'\\' {
                escaped = true;
            } else if byte == b'"' {
                in_string = false;
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                if depth > depth_max {
                    return true;
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Says what is wrong, by reading once more with a record of the path. Only failures pay for that.
fn explain<'a, T: Deserialize<'a>>(text: &'a str, error: &serde_json::Error) -> Undecodable {
    match error.classify() {
        Category::Data => {
            let mut deserializer = serde_json::Deserializer::from_str(text);
            let path = match serde_path_to_error::deserialize::<_, T>(&mut deserializer) {
                Ok(_) => ".".to_owned(),
                Err(error) => error.path().to_string(),
            };
            // A path can hold keys of the sender's making.
            let plain = path
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._[]-".contains(&b));
            let field = if path == "." || !plain {
                "the body"
            } else {
                cut(&path, 128)
            };
            invalid(field, "has the wrong JSON type or a number out of range")
        }
        Category::Syntax | Category::Eof | Category::Io => not_json(&format!(
            "the body is not JSON: it breaks at line {} column {}",
            error.line(),
            error.column()
        )),
    }
}

#[cfg(test)]
mod tests {
    use pass_domain::delivery::UndecodableReason;

    use super::*;

    object! {
        struct Sample<'a> {
            name: Text<'a> = "name",
            count: i64 = "count",
            free: Members<'a> = "free",
        }
    }

    fn sample(text: &str) -> Result<Sample<'_>, Undecodable> {
        parse(readable(text.as_bytes())?)
    }

    #[test]
    fn null_and_absent_are_the_same_and_strings_are_borrowed() {
        let read = sample(r#"{"name":"plain","count":null,"other":[1,{}]}"#).expect("valid");
        assert!(matches!(read.name, Some(Text(Cow::Borrowed("plain")))));
        assert_eq!(
            (read.count, read.duplicate, read.unknown),
            (None, None, true)
        );
    }

    #[test]
    fn a_known_key_that_is_there_twice_is_remembered_even_if_it_is_null_or_escaped() {
        for text in [
            r#"{"count":1,"count":2}"#,
            r#"{"count":null,"count":2}"#,
            r#"{"count":1,"co\u0075nt":1}"#,
        ] {
            assert_eq!(
                sample(text).expect("readable").duplicate,
                Some("count"),
                "{text}"
            );
        }
    }

    #[test]
    fn faults_name_the_field_and_never_the_value() {
        for (text, reason, field) in [
            (
                r#"{"count":"canary"}"#,
                UndecodableReason::FieldInvalid,
                "count",
            ),
            (
                r#"{"count":9223372036854775808}"#,
                UndecodableReason::FieldInvalid,
                "count",
            ),
            (r#"{"count":1.5}"#, UndecodableReason::FieldInvalid, "count"),
            (r#"["canary"]"#, UndecodableReason::FieldInvalid, "the body"),
            (r#"{"name":"canary"#, UndecodableReason::NotJson, "the body"),
            ("", UndecodableReason::NotJson, "the body"),
            ("canary", UndecodableReason::NotJson, "the body"),
            (r#"{"name":"a"} x"#, UndecodableReason::NotJson, "the body"),
        ] {
            let error = sample(text).expect_err(text);
            assert_eq!(error.reason, reason, "{text}");
            assert!(error.detail.starts_with(field), "{text}: {}", error.detail);
            assert!(!error.detail.contains("canary"), "{}", error.detail);
        }
    }

    #[test]
    fn free_maps_take_any_value_as_text_and_count_as_empty_when_they_are_no_object() {
        let read =
            sample(r#"{"free":{"a":"x","b":1.50,"c":true,"d":null,"e":{"f":[1]},"g":"\u0026"}}"#)
                .expect("valid");
        let free = read.free.expect("given");
        let texts: Vec<&str> = free.0.iter().map(|(_, value)| &*value.0).collect();
        assert_eq!(texts, ["x", "1.50", "true", "", r#"{"f":[1]}"#, "&"]);
        for odd in ["[]", "[1,2]", "\"\"", "1", "-1", "1.5", "true", "null"] {
            let text = format!(r#"{{"free":{odd}}}"#);
            assert!(
                sample(&text)
                    .expect("tolerated")
                    .free
                    .is_none_or(|free| free.0.is_empty()),
                "{odd}"
            );
        }
    }

    #[test]
    fn depth_is_counted_outside_strings_only() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(!deeper_than(nested(32).as_bytes(), 32));
        assert!(deeper_than(nested(33).as_bytes(), 32));
        assert!(!deeper_than(
            format!(r#"{{"a":"\"{}"}}"#, "[".repeat(99)).as_bytes(),
            32
        ));
        assert_eq!(
            readable(nested(100_000).as_bytes())
                .expect_err("deep")
                .reason,
            UndecodableReason::TooDeep
        );
    }
}
