//! An event as one row of a table.

use pass_proto::v1::{EventAssertion, EventEffect, PassEvent, PassState};

use super::paint;
use super::words;

/// The heading of [`event_row`]'s columns.
pub(crate) fn event_header() -> String {
    let line = format!(
        "{:>5}  {:<12}  {:<12}  {:<14}  {:<14}  {:<27}  {}",
        "POS", "RECORDED", "SOURCE", "PASS", "KIND", "STATE", "NOTES"
    );
    format!("{}\n", paint::heading(&line))
}

/// One event: position, record time, source, pass, kind, state before and after, notes.
pub(crate) fn event_row(event: &PassEvent) -> String {
    let effect = event.effect.clone().unwrap_or_default();
    let place = words::position(&event.cursor).map_or_else(|| "-".to_owned(), |at| at.to_string());
    let row = format!(
        "{:>5}  {:<12}  {:<12}  {:<14}  {:<14}  {}",
        place,
        words::time_of_day(event.record_time.as_ref()),
        words::shortened(&words::plain(&event.source), 12),
        words::shortened(&words::pass_id(&event.pass), 14),
        words::kind(event.kind),
        ending(&effect, &notes(event, &effect)),
    );
    format!("{row}\n")
}

fn ending(effect: &EventEffect, notes: &str) -> String {
    if notes.is_empty() {
        return transition(effect, 0);
    }
    format!("{}  {notes}", transition(effect, 27))
}

/// The state before and after, padded to `width`; what changed nothing is dim.
pub(super) fn transition(effect: &EventEffect, width: usize) -> String {
    let after = words::state(effect.state_after);
    if effect.state_before == effect.state_after {
        return paint::aside(&words::padded(&format!("= {after}"), width));
    }
    let text = format!("{} → {after}", words::state(effect.state_before));
    let text = words::padded(&text, width);
    if effect.state_after == PassState::Installed as i32 {
        paint::good(&text)
    } else {
        text
    }
}

/// What else is remarkable about an event, separated by commas.
pub(super) fn notes(event: &PassEvent, effect: &EventEffect) -> String {
    let mut notes = Vec::new();
    if effect.late {
        notes.push(paint::notable("late"));
    }
    if event.time_suspect {
        notes.push(paint::notable("time suspect"));
    }
    if event.assertion == EventAssertion::Derived as i32 {
        notes.push("derived".to_owned());
    }
    if !effect.opened_installations.is_empty() {
        notes.push(format!("+{} installed", effect.opened_installations.len()));
    }
    if !effect.closed_installations.is_empty() {
        notes.push(format!("-{} installed", effect.closed_installations.len()));
    }
    notes.extend(event.notes.iter().map(|note| words::plain(note)));
    notes.join(", ")
}
