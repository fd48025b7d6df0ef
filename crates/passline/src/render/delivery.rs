//! A delivery: what came in and what became of it.

use std::fmt::Write as _;

use pass_proto::v1::Delivery;

use super::{paint, words};

/// Most bytes of a body that are shown.
const BODY_BYTES_SHOWN: usize = 16 << 10;

/// A delivery with its quarantine, events and, where it was asked for, its body.
pub(crate) fn delivery(delivery: &Delivery) -> String {
    let mut text = format!("{}\n", paint::heading(&words::plain(&delivery.name)));
    let mut line = |label: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {label:<14} {value}");
        }
    };
    let outcome = words::outcome(delivery.outcome);
    let known = match delivery.duplicate_facts {
        0 => String::new(),
        known => format!(", {known} facts were known already"),
    };
    line("outcome", format!("{outcome}{known}"));
    if let Some(quarantine) = &delivery.quarantine {
        let mut shown = format!(
            "{}: {}: {}",
            words::quarantine_state(quarantine.state),
            words::undecodable_reason(quarantine.reason),
            words::plain(&quarantine.detail)
        );
        if !quarantine.discard_reason.is_empty() {
            let _ = write!(
                shown,
                " (discarded: {})",
                words::plain(&quarantine.discard_reason)
            );
        }
        line("quarantine", paint::notable(&shown));
    }
    line("source", words::plain(&delivery.source));
    line("vendor", words::plain(&delivery.vendor));
    line("received", words::moment(delivery.receive_time.as_ref()));
    line("recorded", words::moment(delivery.record_time.as_ref()));
    line(
        "request",
        words::plain(&format!("{} {}", delivery.method, delivery.path)),
    );
    for header in &delivery.headers {
        line(
            "",
            words::plain(&format!("{}: {}", header.name, header.value)),
        );
    }
    if let Some(auth) = &delivery.auth {
        let shown = format!(
            "{} {} {}",
            words::auth_scheme(auth.scheme),
            auth.key_id,
            auth.detail
        );
        line("authenticated", words::plain(shown.trim_end()));
    }
    line("decoded by", words::plain(&delivery.adapter_version));
    for event in &delivery.events {
        line("event", words::plain(event));
    }
    line("body", format!("{} bytes", delivery.body_bytes));
    if !delivery.body.is_empty() {
        let shown = &delivery.body[..delivery.body.len().min(BODY_BYTES_SHOWN)];
        for line in String::from_utf8_lossy(shown).lines() {
            let _ = writeln!(text, "    {}", words::plain(line));
        }
    }
    text
}
