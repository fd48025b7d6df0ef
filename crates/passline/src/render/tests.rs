use pass_domain::cursor::Cursor;
use pass_domain::event::Position;
use pass_proto::v1::{self, EventKind, PassState};
use prost_types::Timestamp;

use super::*;

fn stripped(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

/// Compares without colours; `expected` begins with a line break.
fn check(shown: &str, expected: &str) {
    assert_eq!(format!("\n{}", stripped(shown)), expected);
}

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds,
        nanos: 250_000_000,
    })
}

fn event(
    position: u64,
    occurred: i64,
    kind: EventKind,
    before: PassState,
    after: PassState,
) -> v1::PassEvent {
    let cursor = Cursor {
        epoch: 1,
        position: Position(position),
        digest: 2,
    };
    v1::PassEvent {
        pass: "sources/passworks/passes/b50a5348-6d2f-4e5a-9c1f".into(),
        source: "passworks".into(),
        kind: kind as i32,
        assertion: v1::EventAssertion::Reported as i32,
        occur_time: at(occurred),
        record_time: at(1_700_000_000),
        cursor: cursor.to_string(),
        effect: Some(v1::EventEffect {
            changed: before != after,
            state_before: before as i32,
            state_after: after as i32,
            ..v1::EventEffect::default()
        }),
        ..v1::PassEvent::default()
    }
}

#[test]
fn a_row_shows_place_pass_transition_and_notes() {
    let mut installed = event(
        7,
        0,
        EventKind::Installed,
        PassState::Created,
        PassState::Installed,
    );
    installed
        .effect
        .as_mut()
        .unwrap()
        .opened_installations
        .push("reg".into());
    installed.notes.push("TRAILING_SPACE_KEY".into());
    let mut late = event(
        8,
        0,
        EventKind::Downloaded,
        PassState::Installed,
        PassState::Installed,
    );
    late.effect.as_mut().unwrap().late = true;
    late.assertion = v1::EventAssertion::Derived as i32;
    let text = format!(
        "{}{}{}",
        event_header(),
        event_row(&installed),
        event_row(&late)
    );
    check(
        &text,
        "
  POS  RECORDED      SOURCE        PASS            KIND            STATE                        NOTES
    7  22:13:20.250  passworks     b50a5348-…9c1f  INSTALLED       CREATED → INSTALLED          +1 installed, TRAILING_SPACE_KEY
    8  22:13:20.250  passworks     b50a5348-…9c1f  DOWNLOADED      = INSTALLED                  late, derived
"
    );
}

#[test]
fn an_event_of_a_newer_or_emptier_server_still_has_a_row() {
    let bare = v1::PassEvent {
        kind: 99,
        cursor: "v2:zzz".into(),
        ..v1::PassEvent::default()
    };
    assert_eq!(
        stripped(&event_row(&bare)),
        "    -  -                                           99              = UNSPECIFIED\n"
    );
}

#[test]
fn a_timeline_is_in_order_of_occurrence_not_of_arrival() {
    let installed = event(
        1,
        200,
        EventKind::Installed,
        PassState::Unknown,
        PassState::Installed,
    );
    let mut created = event(
        2,
        100,
        EventKind::Created,
        PassState::Installed,
        PassState::Installed,
    );
    created.effect.as_mut().unwrap().late = true;
    check(
        &timeline(&[installed, created]),
        "
OCCURRED (UTC)       KIND            STATE WHEN RECORDED            POS  NOTES
1970-01-01 00:01:40  CREATED         = INSTALLED                      2  late
1970-01-01 00:03:20  INSTALLED       UNKNOWN → INSTALLED              1
",
    );
}

#[test]
fn a_pass_shows_its_installations_and_what_the_vendor_says() {
    let shown = pass(&v1::Pass {
        name: "sources/passkit/passes/p1".into(),
        vendor: "passkit".into(),
        organization: "acme".into(),
        state: PassState::Uninstalled as i32,
        installations: vec![v1::Installation {
            wallet: Some(v1::Wallet {
                kind: v1::WalletKind::Apple as i32,
                ..v1::Wallet::default()
            }),
            close_time: at(100),
            ..v1::Installation::default()
        }],
        kinds: vec![v1::KindSummary {
            kind: EventKind::Installed as i32,
            count: 2,
            ..v1::KindSummary::default()
        }],
        vendor_status: Some(v1::VendorStatus {
            name: "PASS_UNINSTALLED".into(),
            attained: vec!["RENDERED".into()],
            ..v1::VendorStatus::default()
        }),
        refs: Some(v1::PassRefs {
            class: "c\u{1b}[2J".into(),
            ..v1::PassRefs::default()
        }),
        revision: 2,
        cursor: "abc".into(),
        ..v1::Pass::default()
    });
    check(
        &shown,
        "
sources/passkit/passes/p1
  state          UNINSTALLED
  vendor         passkit, organization acme
  installations  0 open of 1 seen
                 (the vendor gives no id) closed 1970-01-01 00:01:40 APPLE
  vendor says    PASS_UNINSTALLED (ever: RENDERED)
  refs           class c�[2J
  events         2 INSTALLED
  revision       2
  cursor         abc
",
    );
}

#[test]
fn a_delivery_shows_why_it_is_in_quarantine() {
    let shown = delivery(&v1::Delivery {
        name: "deliveries/del_1".into(),
        source: "passworks".into(),
        vendor: "passworks".into(),
        method: "POST".into(),
        path: "/webhooks/passworks".into(),
        outcome: v1::DeliveryOutcome::Quarantined as i32,
        auth: Some(v1::AuthVerdict {
            scheme: v1::AuthScheme::ApiKey as i32,
            key_id: "key-1".into(),
            ..v1::AuthVerdict::default()
        }),
        quarantine: Some(v1::Quarantine {
            state: v1::QuarantineState::Open as i32,
            reason: v1::UndecodableReason::KindUnknown as i32,
            detail: "event is not known".into(),
            ..v1::Quarantine::default()
        }),
        body: "{\"event\":\"melted\"}".into(),
        body_bytes: 18,
        ..v1::Delivery::default()
    });
    check(
        &shown,
        "
deliveries/del_1
  outcome        QUARANTINED
  quarantine     OPEN: KIND_UNKNOWN: event is not known
  source         passworks
  vendor         passworks
  received       -
  recorded       -
  request        POST /webhooks/passworks
  authenticated  API_KEY key-1
  body           18 bytes
    {\"event\":\"melted\"}
",
    );
}

#[test]
fn books_that_do_not_balance_say_by_how_much() {
    let mut kept = v1::LogBooks {
        deliveries: 4,
        applied: 2,
        duplicate: 1,
        quarantined: 1,
        facts: 3,
        events: 2,
        duplicate_facts: 1,
        ..v1::LogBooks::default()
    };
    check(
        &books(&kept),
        "
  4 deliveries = 2 applied + 1 duplicate + 0 control + 1 quarantined
  3 facts = 2 events + 1 known already + 0 quarantined
  the books balance
",
    );
    kept.events = 1;
    assert!(
        imbalance(&kept)
            .unwrap()
            .contains("3 facts were decoded, 2 are")
    );
    kept.deliveries = 5;
    assert!(
        imbalance(&kept)
            .unwrap()
            .contains("5 deliveries came in, 4 are")
    );
}
