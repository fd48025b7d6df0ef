//! Why a text is no filter, said so that its author can mend it.

/// The number of alternatives that a message lists.
const LISTED_MAX: usize = 16;

/// The number of characters of the caller's text that a message repeats, and
/// that the search for a similar name looks at.
const REPEATED_CHARS_MAX: usize = 48;

/// Tells where and why a text is no filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at column {column}: {message}")]
pub struct FilterError {
    /// The place in the text, in bytes from its start; the length of the text
    /// if something is missing at its end.
    pub offset: usize,
    /// The same place in characters, counted from 1, for people.
    pub column: usize,
    /// What is wrong and how to mend it: a lower-case fragment of bounded
    /// length.
    pub message: String,
}

impl FilterError {
    /// Makes an error about the byte at `offset`, which is moved back to the
    /// start of its character.
    pub(super) fn at(text: &str, offset: usize, message: impl Into<String>) -> Self {
        let offset = text.floor_char_boundary(offset);
        let column = text[..offset].chars().count() + 1;
        Self {
            offset,
            column,
            message: message.into(),
        }
    }
}

/// Repeats the caller's text in a message: quoted, escaped and shortened.
pub(super) fn repeated(text: &str) -> String {
    let start: String = text.chars().take(REPEATED_CHARS_MAX).collect();
    let more = if start.len() < text.len() { "…" } else { "" };
    format!("\"{}{more}\"", start.escape_debug())
}

/// Lists alternatives to a word, the most similar first.
pub(super) fn nearest_listed<'a>(
    word: &str,
    alternatives: impl Iterator<Item = &'a str>,
) -> String {
    let word: String = word
        .chars()
        .take(REPEATED_CHARS_MAX)
        .collect::<String>()
        .to_lowercase();
    let mut alternatives: Vec<&str> = alternatives.collect();
    alternatives
        .sort_by_cached_key(|alternative| dissimilarity(&word, &alternative.to_lowercase()));
    let more = alternatives.len().saturating_sub(LISTED_MAX);
    alternatives.truncate(LISTED_MAX);
    let mut listed = alternatives.join(", ");
    if more > 0 {
        listed.push_str(&format!(" and {more} more"));
    }
    listed
}

/// Measures how far two names are apart: 0 for equal ones, 1 if one is the
/// last part of the other (`KIND_INSTALLED`, `changed`), else one more than
/// the number of characters to insert, remove or replace.
fn dissimilarity(one: &str, other: &str) -> usize {
    let is_last_part = |part: &str, whole: &str| {
        whole
            .strip_suffix(part)
            .is_some_and(|head| head.ends_with(['_', '.']))
    };
    if one == other {
        return 0;
    }
    if is_last_part(one, other) || is_last_part(other, one) {
        return 1;
    }
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (above, from) in one.chars().enumerate() {
        let mut diagonal = above;
        row[0] = above + 1;
        for (left, to) in other.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[left + 1];
            row[left + 1] = replaced.min(diagonal + 1).min(row[left] + 1);
        }
    }
    row[other.len()] + 1
}
