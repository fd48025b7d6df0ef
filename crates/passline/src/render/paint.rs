//! The few colours that are used, each with a meaning.

fn painted(code: &str, text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

/// Headings.
pub(crate) fn heading(text: &str) -> String {
    painted("1", text)
}

/// What is there for completeness.
pub(crate) fn aside(text: &str) -> String {
    painted("2", text)
}

/// What is as it should be.
pub(crate) fn good(text: &str) -> String {
    painted("32", text)
}

/// What deserves a look.
pub(crate) fn notable(text: &str) -> String {
    painted("33", text)
}

/// What is wrong.
pub(crate) fn bad(text: &str) -> String {
    painted("31", text)
}

/// What can be typed or pasted.
pub(crate) fn typed(text: &str) -> String {
    painted("36", text)
}
