//! A pass and its timeline.

use std::fmt::Write as _;

use pass_proto::v1::{Installation, Pass, PassEvent, PassRefs, PassState, Wallet};

use super::event::{notes, transition};
use super::{paint, words};

/// A pass: what is known of it now.
pub(crate) fn pass(pass: &Pass) -> String {
    let mut text = format!("{}\n", paint::heading(&words::plain(&pass.name)));
    let mut line = |label: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {label:<14} {value}");
        }
    };
    let mut state = words::state(pass.state);
    if pass.voided && pass.state != PassState::Voided as i32 {
        state.push_str(", void");
    }
    if pass.order_ambiguous {
        state.push_str(" (order of some events is a guess)");
    }
    line("state", state);
    line("vendor", of_organization(pass));
    line("installations", installed(pass));
    for installation in &pass.installations {
        line("", self::installation(installation));
    }
    if pass.redeemed_count != 0 {
        line("redeemed", pass.redeemed_count.to_string());
    }
    if let Some(status) = &pass.vendor_status {
        let mut shown = words::plain(&status.name);
        if !status.attained.is_empty() {
            let _ = write!(
                shown,
                " (ever: {})",
                words::plain(&status.attained.join(", "))
            );
        }
        line("vendor says", shown);
    }
    if let Some(refs) = &pass.refs {
        line("refs", self::refs(refs));
    }
    let kinds: Vec<String> = pass
        .kinds
        .iter()
        .map(|summary| format!("{} {}", summary.count, words::kind(summary.kind)))
        .collect();
    line("events", kinds.join(", "));
    line("revision", pass.revision.to_string());
    line("cursor", words::plain(&pass.cursor));
    text
}

/// A pass's events by the time they happened, earliest first, each with what
/// recording it changed.
pub(crate) fn timeline(events: &[PassEvent]) -> String {
    let mut sorted: Vec<&PassEvent> = events.iter().collect();
    sorted.sort_by_key(|event| {
        let time = event.occur_time.unwrap_or_default();
        (time.seconds, time.nanos, words::position(&event.cursor))
    });
    let head = format!(
        "{:<19}  {:<14}  {:<27}  {:>5}  {}",
        "OCCURRED (UTC)", "KIND", "STATE WHEN RECORDED", "POS", "NOTES"
    );
    let mut text = format!("{}\n", paint::heading(&head));
    for event in sorted {
        let effect = event.effect.clone().unwrap_or_default();
        let mut notes = notes(event, &effect);
        let wallet = event.wallet.as_ref().map(self::wallet).unwrap_or_default();
        if !wallet.is_empty() {
            let comma = if notes.is_empty() { "" } else { ", " };
            let _ = write!(notes, "{comma}{wallet}");
        }
        let row = format!(
            "{:<19}  {:<14}  {}  {:>5}  {}",
            words::moment(event.occur_time.as_ref()),
            words::kind(event.kind),
            transition(&effect, 27),
            words::position(&event.cursor).map_or_else(|| "-".to_owned(), |at| at.to_string()),
            notes,
        );
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

fn of_organization(pass: &Pass) -> String {
    let vendor = words::plain(&pass.vendor);
    if pass.organization.is_empty() {
        vendor
    } else {
        format!(
            "{vendor}, organization {}",
            words::plain(&pass.organization)
        )
    }
}

fn installed(pass: &Pass) -> String {
    if pass.installations.is_empty() {
        return String::new();
    }
    let unsure = if pass.installations_uncertain {
        " (which of them is a guess)"
    } else {
        ""
    };
    format!(
        "{} open of {} seen{unsure}",
        pass.installed_count,
        pass.installations.len()
    )
}

fn installation(installation: &Installation) -> String {
    let id = if installation.id.is_empty() {
        "(the vendor gives no id)".to_owned()
    } else {
        words::plain(&installation.id)
    };
    let (word, time) = if installation.open {
        ("open since", installation.open_time.as_ref())
    } else {
        ("closed", installation.close_time.as_ref())
    };
    let wallet = installation.wallet.as_ref().map(wallet).unwrap_or_default();
    format!("{id} {word} {} {wallet}", words::moment(time))
        .trim_end()
        .to_owned()
}

fn wallet(wallet: &Wallet) -> String {
    words::wallet_kind(wallet.kind)
}

fn refs(refs: &PassRefs) -> String {
    let named = [
        ("campaign", &refs.campaign),
        ("distribution", &refs.distribution),
        ("class", &refs.class),
        ("serial number", &refs.serial_number),
        ("external id", &refs.external_id),
    ];
    let given: Vec<String> = named
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| format!("{name} {}", words::plain(value)))
        .collect();
    given.join(", ")
}
