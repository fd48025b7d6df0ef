//! PassKit: every known quirk, on the documented callbacks.

use http::Method;
use pass_domain::delivery::UndecodableReason::*;
use pass_domain::delivery::{Decoded, DecodedFacts};
use pass_domain::fact::{Assertion, IdentityBasis, TimeBasis, WalletKind};
use pass_domain::kind::Kind;
use serde_json::{Value, json};

use crate::support::*;

const V: &str = "passkit";
pub(crate) const UNINSTALL: &str = "uninstalled_as_record_updated";

pub(crate) fn with(name: &str, edit: impl FnOnce(&mut Value)) -> DecodedFacts {
    facts(decode(V, edited(V, name, edit)))
}

pub(crate) fn plain(name: &str) -> DecodedFacts {
    facts(decode(V, sample(V, name)))
}

pub(crate) fn metadata(v: &mut Value) -> &mut Value {
    &mut v["pass"]["metadata"]
}

pub(crate) fn seconds(seconds: i64) -> Value {
    json!({"seconds": seconds})
}

/// Quirk 10.
#[test]
fn a_removal_is_one_fact_whether_it_is_named_or_shows_in_an_update() {
    let as_update = plain(UNINSTALL);
    let named = plain("uninstalled");
    let (derived, reported) = (
        only(&as_update, Kind::Uninstalled),
        only(&named, Kind::Uninstalled),
    );
    assert_eq!(derived.id, reported.id);
    assert_eq!(
        (derived.assertion, reported.assertion),
        (Assertion::Derived, Assertion::Reported)
    );
    assert_eq!(
        (&*derived.vendor_kind, &*reported.vendor_kind),
        ("firstUninstalledAt", "PASS_EVENT_UNINSTALLED")
    );
    assert_eq!(derived.content_digest, reported.content_digest);
    assert_eq!(derived.occur_time, at("2020-12-22T14:01:19.083822Z"));
    assert_eq!(
        derived.time_basis, reported.time_basis,
        "both must fold to the same place"
    );
    assert_eq!(
        only(&as_update, Kind::Updated).identity_basis,
        IdentityBasis::Content
    );
}

/// Quirk 11.
#[test]
fn an_update_of_a_pass_removed_long_ago_removes_nothing() {
    let removed = plain(UNINSTALL);
    let later = with(UNINSTALL, |v| {
        v["pass"]["recordData"]["members.member.points"] = json!("200.000000")
    });
    let new: Vec<Kind> = later
        .facts
        .iter()
        .filter(|fact| !removed.facts.iter().any(|earlier| earlier.id == fact.id))
        .map(|fact| fact.kind)
        .collect();
    assert_eq!(new, [Kind::Updated]);
}

/// Quirk 12.
#[test]
fn a_status_that_is_absent_is_issued() {
    let status = plain("record_created")
        .snapshot
        .unwrap()
        .vendor_status
        .unwrap();
    assert_eq!(
        (status.number, &*status.name, status.attained.len()),
        (Some(0), "PASS_ISSUED", 0)
    );
}

/// Quirk 14.
#[test]
fn the_wallet_is_told_only_if_there_was_only_one() {
    let apple = plain(UNINSTALL);
    for kind in [Kind::Installed, Kind::Uninstalled] {
        assert_eq!(
            only(&apple, kind).wallet.as_ref().unwrap().kind,
            WalletKind::Apple
        );
    }
    assert_eq!(only(&apple, Kind::Created).wallet, None);
    let both = with(UNINSTALL, |v| {
        metadata(v)["lifecycleEvents"] = json!([1, 2, 4, 1024])
    });
    assert!(both.facts.iter().all(|fact| fact.wallet.is_none()));
    let google = with(UNINSTALL, |v| {
        metadata(v)["lifecycleEvents"] = json!([4, 2048])
    });
    assert_eq!(
        only(&google, Kind::Uninstalled)
            .wallet
            .as_ref()
            .unwrap()
            .kind,
        WalletKind::Google
    );
}

/// Quirk 16.
#[test]
fn metadata_is_read_in_both_spellings_but_not_in_both_at_once() {
    let other = with("installed", |v| {
        let moved = metadata(v).take();
        v["pass"]["metaData"] = moved;
        remove(v, "/pass/metadata");
    });
    assert_eq!(other.notes, ["METADATA_CASE"]);
    assert_eq!(
        DecodedFacts {
            notes: vec![],
            ..other
        },
        plain("installed")
    );
    let both = edited(V, "installed", |v| {
        v["pass"]["metaData"] = v["pass"]["metadata"].clone()
    });
    assert_quarantined(V, both, FieldDuplicate, "pass.metadata");
}

/// Quirk 17.
#[test]
fn times_are_objects_with_members_missing_or_texts_and_keep_nine_digits() {
    for (value, expected) in [
        (
            json!({"seconds": 1_608_644_748, "nanos": 43_410_001}),
            "2020-12-22T13:45:48.043410001Z",
        ),
        (json!({"seconds": 1_608_644_748}), "2020-12-22T13:45:48Z"),
        (json!({"nanos": 5}), "1970-01-01T00:00:00.000000005Z"),
        (
            json!({"seconds": -1, "nanos": 1}),
            "1969-12-31T23:59:59.000000001Z",
        ),
        (
            json!("2020-12-22T13:45:48.043410001Z"),
            "2020-12-22T13:45:48.043410001Z",
        ),
        (json!("2020-12-22T14:45:48+01:00"), "2020-12-22T13:45:48Z"),
    ] {
        let decoded = with("installed", |v| {
            metadata(v)["firstInstalledAt"] = value.clone();
            metadata(v)["lastInstalledAt"] = value.clone();
        });
        assert_eq!(
            only(&decoded, Kind::Installed).occur_time,
            at(expected),
            "{value}"
        );
    }
    for bad in [
        json!({"seconds": i64::MAX}),
        json!({"seconds": 1, "nanos": -1}),
        json!({"seconds": 1, "nanos": 1_000_000_000}),
        json!("yesterday"),
        json!("294277-01-01T00:00:00Z"),
        json!(1_608_644_748),
        json!({"seconds": "1"}),
        json!({"seconds": 1.5}),
        json!([]),
    ] {
        let body = edited(V, "installed", |v| {
            metadata(v)["lastInstalledAt"] = bad.clone()
        });
        assert_quarantined(V, body, FieldInvalid, "pass.metadata.lastInstalledAt");
    }
}

#[test]
fn the_zero_time_and_an_empty_time_are_no_times() {
    for (zero, notes) in [
        (json!("0001-01-01T00:00:00Z"), 0),
        (json!({"seconds": -62_135_596_800_i64}), 0),
        (Value::Null, 0),
        (json!({}), 1),
    ] {
        let decoded = with("installed", |v| {
            metadata(v)["invalidatedAt"] = zero.clone();
            metadata(v)["lastUninstalledAt"] = zero.clone();
        });
        assert_eq!(
            decoded.facts.len(),
            plain("installed").facts.len(),
            "{zero}"
        );
        assert_eq!(decoded.notes.len(), notes, "{zero}");
    }
}

/// Quirk 18.
#[test]
fn put_and_delete_carry_bodies() {
    let source = source(V);
    assert_eq!(
        source
            .methods()
            .iter()
            .map(|m| m.name())
            .collect::<Vec<_>>(),
        ["POST", "PUT", "DELETE"]
    );
    let body = sample(V, "record_deleted");
    let deleted = facts(decode_as(V, &Method::DELETE, body.as_bytes()));
    assert_eq!(
        only(&deleted, Kind::Deleted).identity_basis,
        IdentityBasis::EventFields
    );
    let by_post = facts(decode(V, body));
    assert_eq!(
        only(&by_post, Kind::Deleted).id,
        only(&deleted, Kind::Deleted).id
    );
    let nameless = edited(V, "record_deleted", |v| remove(v, "/event"));
    let by_method = facts(decode_as(V, &Method::DELETE, nameless.as_bytes()));
    assert_eq!(by_method.notes, ["EVENT_FROM_METHOD"]);
    assert_eq!(
        only(&by_method, Kind::Deleted).id,
        only(&deleted, Kind::Deleted).id
    );
    let odd = facts(decode_as(
        V,
        &Method::DELETE,
        sample(V, "installed").as_bytes(),
    ));
    assert_eq!(odd.notes, ["METHOD_MISMATCH"]);
    assert!(
        of_kind(&odd, Kind::Deleted).is_empty(),
        "the name wins over the method"
    );
    assert_quarantined(V, nameless, FieldMissing, "event");
}

/// Quirk 19.
#[test]
fn escapes_are_read_and_the_class_is_the_project() {
    let body = sample(V, "installed").replace("Points & Tier", "Points \\u0026 Tier");
    assert_ne!(body, sample(V, "installed"));
    assert_eq!(decode(V, &body), decode(V, sample(V, "installed")));
    let decoded = facts(decode(V, &body));
    let fact = only(&decoded, Kind::Installed);
    assert_eq!(fact.refs.class, "24hmYozRggBJTtPt0Y2e3X");
    assert_eq!(fact.refs.external_id, "ABC123");
    assert_eq!(
        fact.attributes["members.program.name"],
        "CodeREADR Points & Tier Demo"
    );
    assert_eq!(fact.attributes["members.member.points"], "10.000000");
    assert_eq!(fact.attributes["protocol"], "MEMBERSHIP");
}

/// Quirk 20.
#[test]
fn numbers_that_are_not_known_survive() {
    let decoded = with("installed", |v| {
        metadata(v)["status"] = json!(9);
        metadata(v)["lifecycleEvents"] = json!([2, 33_554_432, 16_777_216]);
        metadata(v)["installDeviceAttributes"] = json!([1, 8192]);
        v["pass"]["protocol"] = json!(1007);
    });
    let status = decoded.snapshot.clone().unwrap().vendor_status.unwrap();
    assert_eq!((status.number, &*status.name), (Some(9), "9"));
    assert_eq!(
        status.attained,
        [
            "INSTALLED_APPLE",
            "LIFECYCLE_33554432",
            "PASS_EMAIL_COMPLAINED"
        ]
    );
    let fact = only(&decoded, Kind::Installed);
    assert_eq!(fact.attributes["protocol"], "PROTOCOL_1007");
    assert_eq!(
        fact.attributes["installDeviceAttributes"],
        "Ios,DEVICE_8192"
    );
    let named = with("installed", |v| {
        metadata(v)["status"] = json!("PASS_INSTALLED");
        metadata(v)["lifecycleEvents"] = json!(["RENDERED", "INSTALLED_APPLE"]);
        v["pass"]["protocol"] = json!("MEMBERSHIP");
    });
    assert_eq!(
        named.snapshot,
        plain("installed").snapshot,
        "names mean the same as numbers"
    );
}

#[test]
fn one_transition_with_two_equal_times_is_one_fact() {
    let decoded = plain("installed");
    let kinds: Vec<Kind> = decoded.facts.iter().map(|fact| fact.kind).collect();
    assert_eq!(kinds, [Kind::Created, Kind::Installed]);
}

#[test]
fn a_lost_callback_is_made_good_by_the_next() {
    let update = plain("record_updated");
    assert_eq!(
        only(&update, Kind::Created).id,
        only(&plain("record_created"), Kind::Created).id
    );
    assert_eq!(
        only(&update, Kind::Installed).id,
        only(&plain("installed"), Kind::Installed).id
    );
    assert_eq!(only(&update, Kind::Installed).assertion, Assertion::Derived);
}

#[test]
fn an_update_is_known_by_its_time_or_else_by_what_the_pass_says() {
    let timed = |points: &str| {
        with("record_updated", |v| {
            metadata(v)["lastUpdatedAt"] = seconds(1_608_645_000);
            v["pass"]["recordData"]["members.member.points"] = json!(points);
        })
    };
    let (one, other) = (timed("1"), timed("2"));
    assert_eq!(only(&one, Kind::Updated).id, only(&other, Kind::Updated).id);
    assert_eq!(only(&one, Kind::Updated).time_basis, TimeBasis::VendorState);
    assert_eq!(
        one.snapshot.unwrap().update_time,
        at("2020-12-22T13:50:00Z")
    );

    let untimed = |points: &str| {
        with("record_updated", |v| {
            v["pass"]["recordData"]["members.member.points"] = json!(points)
        })
    };
    let id = only(&untimed("1"), Kind::Updated).id;
    assert_eq!(
        only(&untimed("1"), Kind::Updated).time_basis,
        TimeBasis::Received
    );
    assert_ne!(only(&untimed("2"), Kind::Updated).id, id);
    let pretty: Value = serde_json::from_str(&edited(V, "record_updated", |v| {
        v["pass"]["recordData"]["members.member.points"] = json!("1")
    }))
    .unwrap();
    let pretty = facts(decode(V, serde_json::to_string_pretty(&pretty).unwrap()));
    assert_eq!(only(&pretty, Kind::Updated).id, id);
}

#[test]
fn a_named_transition_without_its_time_is_known_by_content_and_keeps_the_receive_time() {
    for (name, event, kind, times) in [
        (
            "installed",
            "PASS_EVENT_INSTALLED",
            Kind::Installed,
            &["firstInstalledAt", "lastInstalledAt"][..],
        ),
        (
            "invalidated",
            "PASS_EVENT_INVALIDATED",
            Kind::Voided,
            &["invalidatedAt"],
        ),
        (
            "record_created",
            "PASS_EVENT_RECORD_CREATED",
            Kind::Created,
            &["issueAt"],
        ),
    ] {
        let decoded = with(name, |v| {
            times
                .iter()
                .for_each(|time| remove(v, &format!("/pass/metadata/{time}")))
        });
        let fact = only(&decoded, kind);
        assert_eq!(
            (fact.identity_basis, fact.time_basis),
            (IdentityBasis::Content, TimeBasis::Received)
        );
        assert_eq!((fact.occur_time, &*fact.vendor_kind), (received(), event));
        assert_eq!(decoded.notes, ["TRANSITION_TIME_MISSING"]);
    }
}

#[test]
fn protocol_events_are_read_if_they_look_like_the_others() {
    for (event, kind) in [
        ("COUPON_EVENT_REDEEMED", Kind::Redeemed),
        ("COUPON_EVENT_CREATED", Kind::Created),
        ("COUPON_EVENT_UPDATED", Kind::Updated),
        ("COUPON_EVENT_DELETED", Kind::Deleted),
        ("MEMBER_EVENT_ENROLLED", Kind::Created),
        ("MEMBER_EVENT_UPDATED", Kind::Updated),
    ] {
        let decoded = with("record_created", |v| v["event"] = json!(event));
        let fact = only(&decoded, kind);
        assert_eq!(
            (&*fact.vendor_kind, fact.redemption.is_some()),
            (event, kind == Kind::Redeemed)
        );
        assert_quarantined(
            V,
            format!(r#"{{"event":"{event}","member":{{}}}}"#),
            FieldMissing,
            "pass",
        );
    }
    assert_quarantined(V, r#"{"id":"x","points":1}"#, FieldMissing, "event");
    assert_quarantined(
        V,
        edited(V, "installed", |v| v["event"] = json!("PASS_EVENT_NEW")),
        KindUnknown,
        "event",
    );
}

#[test]
fn what_is_about_the_holder_is_kept_apart() {
    let decoded = plain("installed");
    let personal = &decoded.personal;
    assert_eq!(
        (&*personal.display_name, &*personal.email_address),
        ("Sample Holder", "holder@example.com")
    );
    assert_eq!(personal.ip_addresses["installIpAddress"], "203.0.113.7");
    assert!(personal.user_agents["installUserAgent"].starts_with("PassKitCore"));
    assert_eq!(
        (&*personal.position["city"], &*personal.position["latitude"]),
        ("Islington", "51.536")
    );
    let facts = format!("{:?} {:?}", decoded.facts, decoded.snapshot);
    for canary in [
        "Sample Holder",
        "holder@example.com",
        "203.0.113.7",
        "Islington",
        "Mozilla",
    ] {
        assert!(!facts.contains(canary), "{canary}");
    }
    let free = with("installed", |v| {
        v["pass"]["recordData"]["meta.shoeSize"] = json!(43);
        v["pass"]["recordData"]["person.mobileNumber"] = json!("+351");
        metadata(v)["utm"] = json!({"source": "mail"});
    });
    let kept: Vec<&str> = free
        .personal
        .attributes
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(kept, ["meta.shoeSize", "person.mobileNumber", "utm.source"]);
}

/// Quirk 43.
#[test]
fn identity_keys_that_are_there_twice_go_to_quarantine() {
    let body = sample(V, UNINSTALL);
    for (from, to, field) in [
        (
            "\"event\":",
            "\"event\": \"PASS_EVENT_INSTALLED\", \"event\":",
            "event",
        ),
        ("\"pass\":", "\"pass\": {}, \"pass\":", "pass"),
        ("\"id\":", "\"id\": \"x\", \"id\":", "pass.id"),
        (
            "\"metadata\":",
            "\"metadata\": {}, \"metadata\":",
            "pass.metadata",
        ),
        (
            "\"metadata\":",
            "\"metaData\": {}, \"metadata\":",
            "pass.metadata",
        ),
        (
            "\"lastUninstalledAt\":",
            "\"lastUninstalledAt\": null, \"lastUninstalledAt\":",
            "lastUninstalledAt",
        ),
        (
            "\"seconds\": 1608644518",
            "\"seconds\": 1, \"seconds\": 1608644518",
            "issueAt",
        ),
        (
            "\"universal.status\":",
            "\"universal.status\": \"x\", \"universal.status\":",
            "pass",
        ),
    ] {
        assert!(body.contains(from), "{from}");
        assert_quarantined(V, body.replacen(from, to, 1), FieldDuplicate, field);
    }
}

#[test]
fn ids_with_characters_no_id_has_go_to_quarantine() {
    for bad in ["a b", "a\0b", "ü", &"x".repeat(257)] {
        assert_quarantined(
            V,
            edited(V, "installed", |v| v["pass"]["id"] = json!(bad)),
            FieldInvalid,
            "pass.id",
        );
    }
    assert_quarantined(
        V,
        edited(V, "installed", |v| remove(v, "/pass/id")),
        FieldMissing,
        "pass.id",
    );
}

#[test]
fn only_names_that_are_known_are_shown_to_everyone() {
    let decoded = with("installed", |v| {
        let record = &mut v["pass"]["recordData"];
        record["members.member.dateOfBirth"] = json!("1970-01-01");
        record["members.tier.id.x"] = json!("x");
        record["universal.note"] = json!("calls at night");
        metadata(v)["altId"] = json!("holder@example.com");
    });
    let shown = &only(&decoded, Kind::Installed).attributes;
    assert_eq!(shown["members.tier.id"], "bronze");
    for name in [
        "members.member.dateOfBirth",
        "members.tier.id.x",
        "universal.note",
        "altId",
    ] {
        assert!(!shown.contains_key(name), "{name}");
        assert!(decoded.personal.attributes.contains_key(name), "{name}");
    }
}

#[test]
fn odd_types_of_what_does_not_matter_do_no_harm() {
    let decoded = with("installed", |v| {
        v["pass"]["personDetails"] = json!([]);
        v["pass"]["recordData"]["members.member.points"] = json!(10.5);
        metadata(v)["utm"] = json!("");
        metadata(v)["renderLocation"] = json!("London");
        metadata(v)["altId"] = json!(7);
        v["pass"]["newMember"] = json!({"a": [1]});
    });
    assert_eq!(decoded.notes, ["UNKNOWN_MEMBER"]);
    assert_eq!(
        only(&decoded, Kind::Installed).attributes["members.member.points"],
        "10.5"
    );
}

#[test]
fn a_body_is_never_taken_for_a_handshake() {
    assert!(!matches!(decode(V, "{}"), Decoded::Control { .. }));
    assert_quarantined(V, "{}", FieldMissing, "event");
}
