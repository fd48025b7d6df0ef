//! Single values as text: enum words, times, ids, and text of others made safe.

use pass_domain::cursor::Cursor;
use pass_proto::{convert, v1};
use prost_types::Timestamp;

/// Replaces what is not printable, so that text of others stays on its line and
/// can't control a terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || is_bidi_control(c) {
                '\u{fffd}'
            } else {
                c
            }
        })
        .collect()
}

/// Characters that reorder the text around them.
fn is_bidi_control(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Pads to `width` characters; longer text stays as it is.
pub(crate) fn padded(text: &str, width: usize) -> String {
    format!("{text:<width$}")
}

/// Shortens to `width` characters, keeping both ends.
pub(crate) fn shortened(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let tail = (width.saturating_sub(1)) / 3;
    let head = width.saturating_sub(1 + tail);
    let start: String = text.chars().take(head).collect();
    let end: String = text.chars().skip(count - tail).collect();
    format!("{start}…{end}")
}

/// The `{pass}` of a pass's resource name.
pub(crate) fn pass_id(name: &str) -> String {
    plain(name.split('/').nth(3).unwrap_or(name))
}

fn word(name: Option<&'static str>, prefix: &str, number: i32) -> String {
    name.map_or_else(
        || number.to_string(),
        |name| name.strip_prefix(prefix).unwrap_or(name).to_owned(),
    )
}

macro_rules! words {
    ($($function:ident($enum:ident, $prefix:literal);)+) => {$(
        #[doc = concat!("The word of a `", stringify!($enum), "`, or its number if it is newer than this program.")]
        pub(crate) fn $function(number: i32) -> String {
            let name = v1::$enum::try_from(number).ok().map(|value| value.as_str_name());
            word(name, $prefix, number)
        }
    )+};
}

words! {
    kind(EventKind, "EVENT_KIND_");
    state(PassState, "PASS_STATE_");
    wallet_kind(WalletKind, "WALLET_KIND_");
    auth_scheme(AuthScheme, "AUTH_SCHEME_");
    outcome(DeliveryOutcome, "DELIVERY_OUTCOME_");
    quarantine_state(QuarantineState, "QUARANTINE_STATE_");
    undecodable_reason(UndecodableReason, "UNDECODABLE_REASON_");
}

/// The log position that a cursor stands for; `None` if it is of a form that
/// this program does not know. For people only: to resume, pass the cursor.
pub(crate) fn position(cursor: &str) -> Option<u64> {
    cursor
        .parse::<Cursor>()
        .ok()
        .map(|cursor| cursor.position.0)
}

/// Date and time in UTC to the second, or `-`.
pub(crate) fn moment(time: Option<&Timestamp>) -> String {
    match time.and_then(convert::time_from_wire) {
        Some(time) => time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
        None => "-".to_owned(),
    }
}

/// Time of day in UTC to the millisecond, or `-`.
pub(crate) fn time_of_day(time: Option<&Timestamp>) -> String {
    match time.and_then(convert::time_from_wire) {
        Some(time) => time.strftime("%H:%M:%S%.3f").to_string(),
        None => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_others_cannot_control_the_terminal() {
        assert_eq!(plain("a\u{1b}]0;x\u{7}\nb\u{202e}c"), "a�]0;x��b�c");
        assert_eq!(plain("Zürich 東京"), "Zürich 東京");
    }

    #[test]
    fn long_ids_keep_both_ends() {
        assert_eq!(shortened("b50a5348-6d2f-4e5a-9c1f", 12), "b50a5348…c1f");
        assert_eq!(shortened("short", 12), "short");
        assert_eq!(shortened("ééééééééééééé", 12).chars().count(), 12);
        assert_eq!(shortened("abc", 1), "…");
    }

    #[test]
    fn words_of_a_newer_server_are_shown_as_numbers() {
        assert_eq!(
            kind(v1::EventKind::RegistrationRefreshed as i32),
            "REGISTRATION_REFRESHED"
        );
        assert_eq!(kind(77), "77");
    }
}
