//! Values that must not show, in every form that a text is likely to be written in, and the search for them.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// Characters around a finding that are shown with it.
const CONTEXT: usize = 120;

/// A unique value that must not show.
#[derive(Clone, Debug)]
pub struct Marker {
    what: &'static str,
    forms: Vec<String>,
}

impl Marker {
    /// A value, and what it is. Plain ASCII without quotes, and long enough not to occur by chance.
    ///
    /// # Panics
    /// If it is not.
    pub fn new(what: &'static str, text: &str) -> Self {
        assert!(
            text.len() >= 10
                && text
                    .bytes()
                    .all(|byte| matches!(byte, b' '..=b'~') && byte != b'"'),
            "{what} is no fit marker"
        );
        let bytes = text.as_bytes();
        let all = |write: fn(&u8) -> String| bytes.iter().map(write).collect::<Vec<_>>();
        let mut forms = vec![
            text.to_owned(),
            all(|byte| match byte {
                b'-' | b'.' | b'_' | b'~' => char::from(*byte).to_string(),
                _ if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
                _ => format!("%{byte:02X}"),
            })
            .concat(),
            all(|byte| format!("{byte:02x}")).concat(),
            all(|byte| format!("{byte:02X}")).concat(),
            // As `Debug` writes bytes.
            all(u8::to_string).join(", "),
        ];
        // In base64 it looks different by where it begins; what is before and after it is cut off.
        for before in 0..3_usize {
            let padded = [&b"xx"[..before], bytes].concat();
            let encoded = STANDARD_NO_PAD.encode(&padded);
            let whole = &encoded[(before * 8).div_ceil(6)..padded.len() * 8 / 6];
            forms.push(whole.replace('+', "-").replace('/', "_"));
            forms.push(whole.to_owned());
        }
        forms.sort();
        forms.dedup();
        Self { what, forms }
    }

    /// What it is.
    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Where it begins in a text, in any form.
    fn find(&self, text: &str) -> Option<usize> {
        self.forms.iter().find_map(|form| text.find(form))
    }

    /// True if it is in a text in any form.
    pub fn is_in(&self, text: &str) -> bool {
        self.find(text).is_some()
    }
}

/// Texts that were shown, and where.
#[derive(Debug, Default)]
pub struct Shown(Vec<(String, String)>);

impl Shown {
    /// Adds a text.
    pub fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    /// Adds all that was shown elsewhere.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Adds every file below a directory, whatever it holds.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn add_files(&mut self, dir: &Path) -> std::io::Result<()> {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.is_dir() {
                self.add_files(&path)?;
            } else {
                let bytes = fs::read(&path)?;
                self.add(path.display().to_string(), String::from_utf8_lossy(&bytes));
            }
        }
        Ok(())
    }

    /// Bytes of all texts.
    pub fn len(&self) -> usize {
        self.0.iter().map(|(_, text)| text.len()).sum()
    }

    /// True if nothing was shown.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The places of all texts that a marker is in.
    pub fn places(&self, marker: &Marker) -> Vec<&str> {
        let texts = self.0.iter().filter(|(_, text)| marker.is_in(text));
        texts.map(|(place, _)| place.as_str()).collect()
    }

    /// Each marker that shows in a text, with what is around it.
    pub fn findings(&self, markers: &[Marker]) -> Vec<String> {
        let mut findings = Vec::new();
        for (place, text) in &self.0 {
            for marker in markers {
                if let Some(at) = marker.find(text) {
                    let around: String = text[..at]
                        .chars()
                        .rev()
                        .take(CONTEXT)
                        .collect::<Vec<_>>()
                        .into_iter()
                        .rev()
                        .chain(text[at..].chars().take(CONTEXT))
                        .collect();
                    findings.push(format!("{} in {place}: {around:?}", marker.what));
                }
            }
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD, URL_SAFE};

    use super::*;

    #[test]
    fn a_marker_is_found_in_every_form_and_place() {
        let text = "Anna Marker?>@example.org/1";
        let marker = Marker::new("name", text);
        for before in ["", "a", "ab", "abc"] {
            let inside = format!("{before}{text}{before}");
            let hex: String = inside.bytes().map(|byte| format!("{byte:02x}")).collect();
            for form in [
                inside.clone(),
                hex.to_uppercase(),
                hex,
                format!("{:?}", inside.as_bytes()),
                STANDARD.encode(&inside),
                URL_SAFE.encode(&inside),
                format!("{before}Anna%20Marker%3F%3E%40example.org%2F1"),
            ] {
                assert!(marker.is_in(&form), "{form}");
            }
        }
        assert!(!marker.is_in("Anna Marked?>@example.org/1"));
        let mut shown = Shown::default();
        shown.add("here", format!("ä{text}ö"));
        assert_eq!(shown.findings(&[marker]).len(), 1);
    }
}
