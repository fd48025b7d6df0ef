//! The letters of the language: words, quoted text, white space, times.

use super::error::{FilterError, repeated};

/// Walks over a filter's text. The position is always between characters.
pub(super) struct Scanner<'t> {
    pub(super) text: &'t str,
    pub(super) position: usize,
}

impl<'t> Scanner<'t> {
    pub(super) fn rest(&self) -> &'t str {
        &self.text[self.position..]
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    pub(super) fn eat(&mut self, expected: &str) -> bool {
        let found = self.rest().starts_with(expected);
        if found {
            self.position += expected.len();
        }
        found
    }

    pub(super) fn skip_space(&mut self) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start_matches(is_space).len();
    }

    /// Returns the word here without moving; empty if there is none.
    pub(super) fn word_ahead(&self, belongs: fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        &rest[..rest
            .find(|character| !belongs(character))
            .unwrap_or(rest.len())]
    }

    pub(super) fn word(&mut self, belongs: fn(char) -> bool) -> &'t str {
        let word = self.word_ahead(belongs);
        self.position += word.len();
        word
    }

    pub(super) fn fault(&self, offset: usize, message: impl Into<String>) -> FilterError {
        FilterError::at(self.text, offset, message)
    }

    /// Reads quoted text, with the quote at the position.
    pub(super) fn quoted(&mut self) -> Result<String, FilterError> {
        let start = self.position;
        let mut characters = self.rest().char_indices();
        let quote = characters.next().map(|(_, quote)| quote);
        let mut text = String::new();
        while let Some((index, character)) = characters.next() {
            if Some(character) == quote {
                self.position = start + index + 1;
                return Ok(text);
            }
            if character != '\\' {
                text.push(character);
                continue;
            }
            let escape = start + index;
            let Some((_, escaped)) = characters.next() else {
                break;
            };
            text.push(match escaped {
                '"' | '\'' | '\\' => escaped,
                'n' => '\n',
                't' => '\t',
                'u' => {
                    let code = hexadecimal(characters.as_str().get(..4));
                    characters.nth(3);
                    code.and_then(char::from_u32).ok_or_else(|| {
                        self.fault(
                            escape,
                            "\\u needs the four hexadecimal digits of a character; write \
                             characters above U+FFFF as they are",
                        )
                    })?
                }
                _ => {
                    let message = format!(
                        "unknown escape {}; known escapes: \\\" \\' \\\\ \\n \\t \\uXXXX",
                        repeated(&format!("\\{escaped}")),
                    );
                    return Err(self.fault(escape, message));
                }
            });
        }
        Err(self.fault(start, "this quote is never closed"))
    }
}

/// Accepts the characters of a field's name or an unquoted map key.
pub(super) fn is_name(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '_' | '-')
}

/// Accepts the characters of an unquoted value.
pub(super) fn is_value(character: char) -> bool {
    is_name(character) || character == '.'
}

pub(super) fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t' | '\r' | '\n')
}

/// Tells whether the text has the shape of an RFC 3339 time; its numbers may
/// still be out of range. (The parser behind it takes more than RFC 3339.)
pub(super) fn is_rfc3339_shaped(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let fits = |text: &str, shape: &str| {
        text.len() == shape.len()
            && text
                .bytes()
                .zip(shape.bytes())
                .all(|(byte, shape)| match shape {
                    b'0' => byte.is_ascii_digit(),
                    b'T' => matches!(byte, b'T' | b't'),
                    b'+' => matches!(byte, b'+' | b'-'),
                    exact => byte == exact,
                })
    };
    let Some((seconds, rest)) = text.split_at_checked("0000-00-00T00:00:00".len()) else {
        return false;
    };
    let offset_at = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (fraction, offset) = rest.split_at(offset_at);
    fits(seconds, "0000-00-00T00:00:00")
        && (fraction.is_empty() || fraction.strip_prefix('.').is_some_and(is_number))
        && (matches!(offset, "Z" | "z") || fits(offset, "+00:00"))
}

fn hexadecimal(digits: Option<&str>) -> Option<u32> {
    let digits = digits?;
    // `from_str_radix` would take a sign.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}
