//! Passworks: every known quirk, on the documented callbacks.

use pass_domain::delivery::UndecodableReason::*;
use pass_domain::fact::{TimeBasis, WalletKind};
use pass_domain::kind::Kind;
use serde_json::{Value, json};

use crate::support::*;

const V: &str = "passworks";
const NEW: &str = "installed_rev2016-08";
const OLD: &str = "installed_rev2016-01";

fn new(edit: impl FnOnce(&mut Value)) -> String {
    edited(V, NEW, edit)
}

fn id_of(body: &str) -> pass_domain::ids::EventId {
    facts(decode(V, body)).facts[0].id
}

/// Quirks 1, 2 and 3.
#[test]
fn both_revisions_decode_without_a_version_to_go_by() {
    let old = facts(decode(V, sample(V, OLD)));
    assert_eq!(old.notes, ["ACTION_AT", "TRAILING_SPACE_KEY"]);
    assert_eq!(old.facts[0].occur_time, at("2015-07-08T09:13:14Z"));
    assert_eq!(old.snapshot.unwrap().voided, Some(false));
    assert_eq!(old.facts[0].installation, None);

    let new = facts(decode(V, sample(V, NEW)));
    assert_eq!(new.notes, Vec::<String>::new());
    let fact = &new.facts[0];
    assert_eq!(
        (fact.kind, fact.time_basis),
        (Kind::Installed, TimeBasis::VendorEvent)
    );
    assert_eq!(fact.pass.as_str(), "d91aef7c-a166-4694-bb91-569714f9c33e");
    assert_eq!(
        fact.installation.as_ref().unwrap().id.as_str(),
        "00f537be-f153-46ad-a980-bbddcb9002c3"
    );
    assert_eq!(fact.wallet.as_ref().unwrap().kind, WalletKind::Apple);
    assert_eq!(fact.refs.campaign, "cbc3016c-4c55-4564-81e9-a21664817be2");
    assert_eq!(new.personal.ip_addresses["ip"], "192.168.1.206");
}

/// Quirk 1.
#[test]
fn voided_is_never_false_only_because_its_key_is_odd() {
    let voided = |edit: fn(&mut Value)| {
        let decoded = facts(decode(
            V,
            new(|v| {
                remove(v, "/voided");
                edit(v);
            }),
        ));
        (decoded.snapshot.unwrap().voided, decoded.notes)
    };
    assert_eq!(voided(|_| ()), (None, vec![]));
    assert_eq!(
        voided(|v| v["voided "] = json!(true)),
        (Some(true), vec!["TRAILING_SPACE_KEY".to_owned()])
    );
    let both = voided(|v| {
        v["voided"] = json!(true);
        v["voided "] = json!(false);
    });
    assert_eq!(both.0, Some(true), "the right spelling wins");
    assert_eq!(voided(|v| v["voided"] = Value::Null).0, None);
}

/// Quirk 2.
#[test]
fn event_at_wins_over_action_at_and_one_of_them_is_needed() {
    let body = new(|v| v["action_at"] = json!("2011-01-01T00:00:00Z"));
    assert_eq!(id_of(&body), id_of(sample(V, NEW)));
    let other_name = new(|v| {
        v["action_at"] = v["event_at"].take();
    });
    assert_eq!(
        id_of(&other_name),
        id_of(sample(V, NEW)),
        "the name of the key is not part of the identity"
    );
    assert_quarantined(V, new(|v| remove(v, "/event_at")), FieldMissing, "event_at");
    assert_quarantined(
        V,
        new(|v| v["event_at"] = json!("yesterday")),
        FieldInvalid,
        "event_at",
    );
    assert_quarantined(
        V,
        new(|v| v["event_at"] = json!("294277-01-01T00:00:00Z")),
        FieldInvalid,
        "event_at",
    );
    assert_quarantined(
        V,
        new(|v| v["event_at"] = json!(1470828606)),
        FieldInvalid,
        "event_at",
    );
}

/// Quirk 4.
#[test]
fn a_pass_id_that_differs_inside_event_extra_is_flagged_and_the_outer_one_counts() {
    let decoded = facts(decode(
        V,
        new(|v| v["event_extra"]["pass_id"] = json!("another")),
    ));
    assert_eq!(decoded.notes, ["PASS_ID_MISMATCH"]);
    assert_eq!(
        decoded.facts[0].pass.as_str(),
        "d91aef7c-a166-4694-bb91-569714f9c33e"
    );
}

/// Quirk 5.
#[test]
fn event_extra_may_be_absent_empty_null_or_an_empty_list() {
    let absent = id_of(&new(|v| remove(v, "/event_extra")));
    for extra in [
        json!({}),
        Value::Null,
        json!([]),
        json!({"ip": "192.0.2.7"}),
        json!({"registration_id": null}),
    ] {
        assert_eq!(
            id_of(&new(|v| v["event_extra"] = extra.clone())),
            absent,
            "{extra}"
        );
    }
    assert_quarantined(
        V,
        new(|v| v["event_extra"] = json!("x")),
        FieldInvalid,
        "event_extra",
    );
    assert_quarantined(
        V,
        new(|v| v["event_extra"]["registration_id"] = json!(7)),
        FieldInvalid,
        "registration_id",
    );
}

/// Quirk 5.
#[test]
fn wallets_are_recognised_by_the_words_of_the_callback_and_of_the_api() {
    for (wallet_type, app, kind) in [
        (json!("apple_wallet"), json!("passbook"), WalletKind::Apple),
        (Value::Null, json!("passbook"), WalletKind::Apple),
        (
            json!("new_wallet"),
            json!("google_wallet"),
            WalletKind::Google,
        ),
        (
            json!("wallet_passes"),
            Value::Null,
            WalletKind::WalletPasses,
        ),
        (json!("passworks_wallet"), Value::Null, WalletKind::Vendor),
        (json!("pass2u"), Value::Null, WalletKind::Pass2u),
        (json!("passwallet"), Value::Null, WalletKind::PassWallet),
        (json!("something"), json!("else"), WalletKind::Unknown),
    ] {
        let decoded = facts(decode(
            V,
            new(|v| {
                v["event_extra"]["wallet_type"] = wallet_type.clone();
                v["event_extra"]["device_app_vendor"] = app.clone();
            }),
        ));
        let wallet = decoded.facts[0].wallet.clone().unwrap();
        assert_eq!(wallet.kind, kind, "{wallet_type} {app}");
        let native = wallet_type.as_str().or(app.as_str()).unwrap();
        assert_eq!(wallet.native, native);
    }
}

/// Quirk 6.
#[test]
fn redemptions_are_told_apart_by_count_and_time_and_the_count_may_go_down() {
    let redeemed = |count: i64, at: &str| {
        edited(V, "redeemed", |v| {
            v["redeemed_count"] = json!(count);
            v["redeemed_at"] = json!(at);
        })
    };
    let first = redeemed(2, "2016-08-12T17:45:30Z");
    let decoded = facts(decode(V, &first));
    assert_eq!(decoded.facts[0].redemption.as_ref().unwrap().count, Some(2));
    assert_eq!(decoded.snapshot.unwrap().redeemed_count, Some(2));
    let ids = [
        id_of(&first),
        id_of(&redeemed(3, "2016-08-12T17:45:30Z")),
        id_of(&redeemed(1, "2016-08-12T17:45:30Z")),
        id_of(&redeemed(2, "2016-08-12T17:45:31Z")),
    ];
    assert_eq!(
        ids.iter().collect::<std::collections::BTreeSet<_>>().len(),
        ids.len()
    );
    let count = facts(decode(V, redeemed(0, "2016-08-12T17:45:30Z")))
        .snapshot
        .unwrap()
        .redeemed_count;
    assert_eq!(count, Some(0));
    assert_quarantined(
        V,
        edited(V, "redeemed", |v| v["redeemed_count"] = json!(1e300)),
        FieldInvalid,
        "redeemed_count",
    );
    assert_quarantined(
        V,
        first.replace(":2,", ":9223372036854775808,"),
        FieldInvalid,
        "redeemed_count",
    );
}

/// Quirk 7.
#[test]
fn a_voided_pass_may_still_be_fetched_and_uninstalled() {
    for name in ["fetched", "uninstalled"] {
        let decoded = facts(decode(V, edited(V, name, |v| v["voided"] = json!(true))));
        assert_eq!(decoded.snapshot.unwrap().voided, Some(true));
        assert_eq!(decoded.facts.len(), 1);
    }
}

/// Quirk 8.
#[test]
fn null_and_missing_are_the_same() {
    let null = new(|v| {
        for name in [
            "last_fetched_at",
            "redeemed_at",
            "metadata",
            "updated_at",
            "context",
            "serial_number",
        ] {
            v[name] = Value::Null;
        }
    });
    let missing = new(|v| {
        for name in [
            "last_fetched_at",
            "redeemed_at",
            "metadata",
            "updated_at",
            "context",
            "serial_number",
        ] {
            remove(v, &format!("/{name}"));
        }
    });
    assert_eq!(decode(V, null), decode(V, missing));
    assert_eq!(
        facts(decode(V, sample(V, NEW))).facts[0]
            .attributes
            .get("last_fetched_at"),
        None
    );
}

/// Quirk 9.
#[test]
fn two_devices_in_one_second_are_two_events() {
    let other = new(|v| {
        v["event_extra"]["registration_id"] = json!("11111111-0000-4000-8000-000000000000")
    });
    assert_ne!(id_of(&other), id_of(sample(V, NEW)));
}

#[test]
fn the_same_fact_in_other_framing_has_the_same_id() {
    let reordered: Value = serde_json::from_str(sample(V, NEW)).unwrap();
    let pretty = serde_json::to_string_pretty(&reordered).unwrap();
    let escaped = sample(V, NEW)
        .replace("\"installed\"", "\"inst\\u0061lled\"")
        .replace("apple_wallet", "apple\\u005fwallet");
    let moved = new(|v| {
        v["event_extra"]["ip"] = json!("198.51.100.1");
        v["metadata"] = json!({"first_name": "Sample"});
        v["updated_at"] = json!("2020-01-01T00:00:00Z");
        v["event_at"] = json!("2016-08-10T12:30:06+01:00");
    });
    for body in [&pretty, &escaped, &moved] {
        assert_eq!(id_of(body), id_of(sample(V, NEW)), "{body}");
    }
}

#[test]
fn what_an_event_is_about_decides_its_id() {
    let ids = [
        id_of(sample(V, NEW)),
        id_of(&new(|v| v["event"] = json!("uninstalled"))),
        id_of(&new(|v| v["pass_id"] = json!("other"))),
        id_of(&new(|v| v["event_at"] = json!("2016-08-10T11:30:07Z"))),
        id_of(&new(|v| v["event_extra"]["device_os"] = json!("android"))),
    ];
    assert_eq!(
        ids.iter().collect::<std::collections::BTreeSet<_>>().len(),
        ids.len()
    );
}

#[test]
fn events_that_are_not_known_go_to_quarantine() {
    for event in ["updated", "voided", "INSTALLED", "installed ", ""] {
        assert_quarantined(V, new(|v| v["event"] = json!(event)), KindUnknown, "event");
    }
    assert_quarantined(
        V,
        new(|v| v["context"] = json!("campaign")),
        KindUnknown,
        "context",
    );
    assert_quarantined(V, new(|v| remove(v, "/event")), FieldMissing, "event");
}

/// Quirk 43.
#[test]
fn identity_keys_that_are_there_twice_go_to_quarantine() {
    let body = sample(V, NEW);
    for (from, to, field) in [
        ("\"event\":", "\"event\": \"created\", \"event\":", "event"),
        ("\"voided\":", "\"pass_id\": \"x\", \"voided\":", "pass_id"),
        (
            "\"event_at\":",
            "\"event_at\": null, \"event_at\":",
            "event_at",
        ),
        (
            "\"event_at\":",
            "\"event\\u005fat\": \"2016-08-10T11:30:06Z\", \"event_at\":",
            "event_at",
        ),
        (
            "\"redeemed_count\":",
            "\"redeemed_count\": 3, \"redeemed_count\":",
            "redeemed_count",
        ),
        ("\"voided\":", "\"voided\": true, \"voided\":", "voided"),
        (
            "\"voided\":",
            "\"voided \": true, \"voided \": false, \"voided\":",
            "voided",
        ),
        (
            "\"device_os\":",
            "\"registration_id\": \"x\", \"device_os\":",
            "event_extra",
        ),
        ("\"ip\":", "\"ip\": \"192.0.2.9\", \"ip\":", "event_extra"),
    ] {
        assert_quarantined(V, body.replacen(from, to, 1), FieldDuplicate, field);
    }
}

#[test]
fn ids_with_characters_no_id_has_go_to_quarantine() {
    for bad in ["a b", "a\0", "é", "a\nb", &"x".repeat(257)] {
        assert_quarantined(
            V,
            new(|v| v["pass_id"] = json!(bad)),
            FieldInvalid,
            "pass_id",
        );
        assert_quarantined(
            V,
            new(|v| v["event_extra"]["registration_id"] = json!(bad)),
            FieldInvalid,
            "registration_id",
        );
    }
    assert_quarantined(
        V,
        new(|v| v["pass_id"] = json!("")),
        FieldMissing,
        "pass_id",
    );
}

#[test]
fn texts_are_made_storable_and_free_metadata_is_personal() {
    let decoded = facts(decode(
        V,
        new(|v| {
            v["serial_number"] = json!("s".repeat(5_000));
            v["metadata"] = json!({"name": "Sample\u{0}Holder", "nested": {"a": 1}});
            v["event_extra"]["color"] = json!("blue");
        }),
    ));
    assert_eq!(decoded.facts[0].refs.serial_number.len(), 1_024);
    assert_eq!(
        decoded.personal.attributes["metadata.name"],
        "Sample\u{fffd}Holder"
    );
    assert_eq!(decoded.personal.attributes["metadata.nested"], "{\"a\":1}");
    assert_eq!(decoded.personal.attributes["event_extra.color"], "blue");
    assert_eq!(decoded.notes, ["TEXT_CUT", "NUL_REPLACED"]);
}

#[test]
fn bodies_that_are_not_json_or_too_deep_go_to_quarantine() {
    assert_quarantined(V, "", NotJson, "the body");
    assert_quarantined(V, "event=installed&pass_id=1", NotJson, "the body");
    assert_quarantined(V, b"\xff\xfe", NotJson, "UTF-8");
    assert_quarantined(V, "[]", FieldInvalid, "the body");
    let deep = new(|v| {
        v["metadata"] =
            serde_json::from_str(&format!("{}1{}", "[".repeat(32), "]".repeat(32))).unwrap()
    });
    assert_quarantined(V, deep, TooDeep, "32");
}
