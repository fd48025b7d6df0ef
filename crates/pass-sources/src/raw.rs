//! Looking into JSON that serde_json has already accepted, without building values.
//!
//! Used where the place of a field is configuration (signed envelopes) and where a digest must not depend
//! on how JSON was written: member order, white space, escapes and the spelling of a number (`1`, `1.0`,
//! `10e-1`) do not change [`digest`]. Numbers are compared as decimals of any size, never as floats.
//! Text that is not JSON after all gives [`Fault::Broken`], never a panic.

use std::borrow::Cow;

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Why JSON could not be looked into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An object has a key twice.
    Duplicate,
    /// It is not JSON, or a string is not Unicode.
    Broken,
}

/// Checks that a text is one JSON value, and takes off white space around it.
pub(crate) fn checked(text: &str) -> Result<&str, Fault> {
    serde_json::from_str::<&RawValue>(text)
        .map(RawValue::get)
        .map_err(|_| Fault::Broken)
}

/// A string's content.
pub(crate) fn string(raw: &str) -> Result<Cow<'_, str>, Fault> {
    let inner = raw
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .ok_or(Fault::Broken)?;
    if inner.contains('\\') {
        return serde_json::from_str(raw)
            .map(Cow::Owned)
            .map_err(|_| Fault::Broken);
    }
    Ok(Cow::Borrowed(inner))
}

/// An object's members in the order they are written; none if it is no object.
pub(crate) fn members(raw: &str) -> Result<Vec<(Cow<'_, str>, &str)>, Fault> {
    let mut members = Vec::new();
    if !raw.starts_with('{') {
        return Ok(members);
    }
    let mut rest = raw[1..].trim_start();
    while !rest.starts_with('}') {
        let (key, after) = take(rest)?;
        let after = after
            .trim_start()
            .strip_prefix(':')
            .ok_or(Fault::Broken)?
            .trim_start();
        let (value, after) = take(after)?;
        members.push((string(key)?, value));
        rest = next(after)?;
    }
    Ok(members)
}

/// A list's elements; none if it is no list.
fn elements(raw: &str) -> Result<Vec<&str>, Fault> {
    let mut elements = Vec::new();
    if !raw.starts_with('[') {
        return Ok(elements);
    }
    let mut rest = raw[1..].trim_start();
    while !rest.starts_with(']') {
        let (value, after) = take(rest)?;
        elements.push(value);
        rest = next(after)?;
    }
    Ok(elements)
}

/// Goes past the comma after a value, or stays at the closing bracket.
fn next(after: &str) -> Result<&str, Fault> {
    let after = after.trim_start();
    match after.as_bytes().first() {
        Some(b',') => Ok(after[1..].trim_start()),
        Some(b'}' | b']') => Ok(after),
        _ => Err(Fault::Broken),
    }
}

/// Splits off the value that `text` starts with.
fn take(text: &str) -> Result<(&str, &str), Fault> {
    let bytes = text.as_bytes();
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        match bytes.get(at).ok_or(Fault::Broken)? {
            b'"' => {
                at += 1;
                loop {
                    match bytes.get(at).ok_or(Fault::Broken)? {
                        b'\\' => at += 2,
                        b'"' => break,
                        _ => at += 1,
                    }
                }
                at += 1;
            }
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1).ok_or(Fault::Broken)?;
                at += 1;
            }
            _ if depth > 0 => at += 1,
            _ => {
                while bytes.get(at).is_some_and(|b| !b",]} \t\r\n".contains(b)) {
                    at += 1;
                }
                if at == 0 {
                    return Err(Fault::Broken);
                }
            }
        }
        if depth == 0 {
            return match (text.get(..at), text.get(at..)) {
                (Some(value), Some(rest)) => Ok((value, rest)),
                _ => Err(Fault::Broken),
            };
        }
    }
}

/// Splits an RFC 6901 pointer into its unescaped steps, or `None` if it is not one.
pub(crate) fn pointer_steps(pointer: &str) -> Option<Vec<String>> {
    let steps = pointer.strip_prefix('/')?;
    steps
        .split('/')
        .map(|step| {
            let plain = step.replace("~1", "/").replace("~0", "~");
            (step.matches('~').count() == step.matches("~0").count() + step.matches("~1").count())
                .then_some(plain)
        })
        .collect()
}

/// Finds a value by its steps. Lists are not entered. An ambiguous step is a [`Fault::Duplicate`].
pub(crate) fn find<'a>(raw: &'a str, steps: &[String]) -> Result<Option<&'a str>, Fault> {
    let mut at = raw;
    for step in steps {
        let mut found = None;
        for (key, value) in members(at)? {
            if key == step.as_str() && found.replace(value).is_some() {
                return Err(Fault::Duplicate);
            }
        }
        match found {
            Some(value) => at = value,
            None => return Ok(None),
        }
    }
    Ok((at != "null").then_some(at))
}

/// A digest of what a value says, whatever way it is written.
pub(crate) fn digest(raw: &str) -> Result<[u8; 32], Fault> {
    let mut digest = Sha256::new();
    feed(&mut digest, raw)?;
    Ok(digest.finalize().into())
}

/// The same for an object's members, some of which may have been left out.
pub(crate) fn digest_members(members: Vec<(Cow<'_, str>, &str)>) -> Result<[u8; 32], Fault> {
    let mut digest = Sha256::new();
    feed_members(&mut digest, members)?;
    Ok(digest.finalize().into())
}

fn feed(digest: &mut Sha256, raw: &str) -> Result<(), Fault> {
    match raw.as_bytes().first().ok_or(Fault::Broken)? {
        b'{' => feed_members(digest, members(raw)?)?,
        b'[' => {
            let elements = elements(raw)?;
            put(digest, b'[', &elements.len().to_be_bytes());
            for element in elements {
                feed(digest, element)?;
            }
        }
        b'"' => put(digest, b'"', string(raw)?.as_bytes()),
        b'-' | b'0'..=b'9' => put(digest, b'0', decimal(raw).as_bytes()),
        _ => put(digest, b'l', raw.as_bytes()),
    }
    Ok(())
}

fn feed_members(digest: &mut Sha256, mut members: Vec<(Cow<'_, str>, &str)>) -> Result<(), Fault> {
    members.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    if members.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(Fault::Duplicate);
    }
    put(digest, b'{', &members.len().to_be_bytes());
    for (key, value) in members {
        put(digest, b'k', key.as_bytes());
        feed(digest, value)?;
    }
    Ok(())
}

fn put(digest: &mut Sha256, marker: u8, bytes: &[u8]) {
    digest.update([marker]);
    digest.update(
        u64::try_from(bytes.len())
            .expect("a slice's length fits in 64 bits")
            .to_be_bytes(),
    );
    digest.update(bytes);
}

/// A number as sign, digits without zeros at either end, and power of ten; as written if its exponent
/// does not fit.
fn decimal(raw: &str) -> Cow<'_, str> {
    let (sign, rest) = raw.strip_prefix('-').map_or(("", raw), |rest| ("-", rest));
    let (mantissa, exponent) = rest.split_once(['e', 'E']).unwrap_or((rest, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let Ok(exponent) = exponent.parse::<i64>() else {
        return Cow::Borrowed(raw);
    };
    let significant = digits.trim_end_matches('0');
    let length = |text: &str| i64::try_from(text.len()).unwrap_or(i64::MAX);
    let power = exponent
        .checked_sub(length(fraction))
        .and_then(|power| power.checked_add(length(&digits) - length(significant)));
    let significant = significant.trim_start_matches('0');
    match power {
        _ if significant.is_empty() => Cow::Borrowed("0"),
        Some(power) => Cow::Owned(format!("{sign}{significant}e{power}")),
        None => Cow::Borrowed(raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(text: &str) -> Result<[u8; 32], Fault> {
        digest(checked(text)?)
    }

    #[test]
    fn the_way_json_is_written_does_not_change_its_digest() {
        for (one, other) in [
            (
                r#"{"a":1,"b":[true,null,"x"]}"#,
                " { \"b\" : [ true , null , \"\\u0078\" ] , \"a\" : 1.0 } ",
            ),
            ("100", "1e2"),
            ("0.10", "1E-1"),
            ("-0", "0.0"),
            (
                "123456789012345678901234567890",
                "12345678901234567890123456789.0e1",
            ),
            (r#""\/""#, r#""/""#),
            ("{}", "{ }"),
        ] {
            assert_eq!(
                digest_of(one).expect("valid"),
                digest_of(other).expect("valid"),
                "{one} {other}"
            );
        }
    }

    #[test]
    fn what_json_says_does_change_its_digest() {
        let all = [
            "null",
            "true",
            "false",
            "0",
            "\"0\"",
            "\"\"",
            "[]",
            "{}",
            "[0]",
            "[[]]",
            "[[],[]]",
            r#"{"a":0}"#,
            r#"{"a":[0]}"#,
            r#"{"a":0,"b":0}"#,
            r#"{"b":0}"#,
            r#""null""#,
            "9007199254740993",
            "9007199254740992",
            "-1",
            "1",
            "10",
            "1e1000",
            "1e99999999999999999999",
            r#"["a","b"]"#,
            r#"["ab"]"#,
            r#"[{"a":0},0]"#,
        ];
        let distinct: std::collections::BTreeSet<_> = all
            .iter()
            .map(|text| digest_of(text).expect("valid"))
            .collect();
        assert_eq!(distinct.len(), all.len());
    }

    #[test]
    fn keys_that_are_there_twice_are_a_fault_in_any_spelling() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":1}"#,
            r#"[{"x":{"a":1,"a":2}}]"#,
        ] {
            assert_eq!(digest_of(text), Err(Fault::Duplicate), "{text}");
        }
    }

    #[test]
    fn pointers_find_members_and_refuse_to_choose() {
        let raw = r#"{"a":{"b/c":"x","~":1,"n":null},"d":[{"e":1}],"a2":1}"#;
        let at = |pointer: &str| find(raw, &pointer_steps(pointer).expect("a pointer"));
        assert_eq!(at("/a/b~1c"), Ok(Some("\"x\"")));
        assert_eq!(at("/a/~0"), Ok(Some("1")));
        assert_eq!(at("/a/n"), Ok(None));
        assert_eq!(at("/a/x"), Ok(None));
        assert_eq!(at("/d/0"), Ok(None));
        assert_eq!(at("/a2/x"), Ok(None));
        assert_eq!(
            find(r#"{"a":1,"a":2}"#, &["a".to_owned()]),
            Err(Fault::Duplicate)
        );
        for bad in ["", "a", "/a~2", "/~"] {
            assert_eq!(pointer_steps(bad), None, "{bad}");
        }
    }

    #[test]
    fn text_that_is_not_json_is_a_fault_and_no_panic() {
        for text in [
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "[1",
            "[,",
            "{,}",
            "\"",
            "\"\\",
            "",
            "]",
            "{\"a\" 1}",
            "[1 2]",
            "{é:1}",
        ] {
            let _ = members(text);
            let _ = elements(text);
            let _ = take(text);
            let _ = digest(text);
        }
        assert_eq!(digest_of(r#""\ud800""#), Err(Fault::Broken));
    }
}
