//! Our own format.

use pass_domain::delivery::Decoded;
use pass_domain::delivery::UndecodableReason::*;
use pass_domain::fact::{IdentityBasis, InstallationScope, TimeBasis, WalletKind};
use pass_domain::kind::Kind;
use pass_sources::sign;
use serde_json::{Value, json};

use crate::support::*;

const V: &str = "standard";

fn event(edit: impl FnOnce(&mut Value)) -> String {
    edited(V, "installed", edit)
}

#[test]
fn the_documented_example_is_the_sample_and_decodes_in_full() {
    let documented: String = include_str!("../../src/standard.rs")
        .split("```")
        .nth(1)
        .unwrap()
        .lines()
        .skip(1)
        .map(|line| line.trim_start_matches("//!"))
        .collect();
    let documented: Value = serde_json::from_str(&documented).unwrap();
    assert_eq!(
        documented,
        serde_json::from_str::<Value>(sample(V, "installed")).unwrap()
    );

    let decoded = facts(decode(V, documented.to_string()));
    let fact = only(&decoded, Kind::Installed);
    assert_eq!(
        (fact.pass.as_str(), &*fact.vendor_kind),
        ("loyalty-42", "card.added")
    );
    assert_eq!(
        (fact.occur_time, fact.time_basis),
        (at("2026-03-01T12:30:05.250Z"), TimeBasis::VendorEvent)
    );
    assert_eq!(
        fact.installation.as_ref().unwrap().scope,
        InstallationScope::Registration
    );
    assert_eq!(fact.wallet.as_ref().unwrap().kind, WalletKind::Apple);
    assert_eq!(
        (&*fact.refs.campaign, &*fact.refs.external_id),
        ("spring", "member-42")
    );
    assert_eq!(fact.attributes["channel"], "web");
    let snapshot = decoded.snapshot.unwrap();
    assert_eq!(
        (snapshot.voided, snapshot.redeemed_count),
        (Some(false), Some(0))
    );
    assert_eq!(decoded.personal.display_name, "Sample Holder");
    assert_eq!(decoded.personal.attributes["city"], "Lisbon");
    assert_eq!(decoded.notes, Vec::<String>::new());
}

#[test]
fn a_batch_tells_several_facts_of_one_pass() {
    let decoded = facts(decode(V, sample(V, "batch")));
    let kinds: Vec<Kind> = decoded.facts.iter().map(|fact| fact.kind).collect();
    assert_eq!(kinds, [Kind::Redeemed, Kind::Uninstalled]);
    assert_eq!(
        decoded.facts[0].redemption.as_ref().unwrap().scanner,
        "till-9"
    );
    assert_eq!(decoded.snapshot.unwrap().redeemed_count, Some(1));
    let two_passes = edited(V, "batch", |v| v["events"][1]["pass"] = json!("other"));
    assert_quarantined(V, two_passes, FieldInvalid, "events");
    for count in [0, 33] {
        let body =
            json!({"events": vec![json!({"kind": "FETCHED", "pass": "p"}); count]}).to_string();
        assert_quarantined(V, body, FieldInvalid, "1 to 32");
    }
    assert_quarantined(
        V,
        r#"{"events":[{"kind":"FETCHED","pass":"p"}],"kind":"FETCHED"}"#,
        FieldInvalid,
        "events",
    );
}

#[test]
fn a_batch_of_the_same_event_twice_tells_it_once() {
    let one = json!({"kind": "FETCHED", "pass": "p", "occur_time": "2026-01-01T00:00:00Z"});
    let decoded = facts(decode(V, json!({"events": [one, one]}).to_string()));
    assert_eq!(
        (decoded.facts.len(), &*decoded.notes),
        (1, &["EVENT_REPEATED".to_owned()][..])
    );
    let clash = json!({"events": [{"id": "1", "kind": "FETCHED", "pass": "p"}, {"id": "1", "kind": "DELETED", "pass": "p"}]});
    assert_quarantined(V, clash.to_string(), FieldDuplicate, "id");
}

#[test]
fn an_event_is_known_by_its_id_else_by_the_delivery_else_by_its_content() {
    let mut config = config(V, auth("standard_webhooks"));
    config.auth.secrets[0].id = "k".into();
    let source = build(&config);
    let deliver = |id: &str, body: &str| {
        let signed = sign(
            &config,
            b"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            body.as_bytes(),
            id,
            received(),
        )
        .unwrap();
        let pairs: Vec<(&str, &str)> = signed
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let headers = headers(&pairs);
        let verified = verify(&source, &headers, None, body.as_bytes()).unwrap();
        assert_eq!(verified.message_id(), Some(id));
        let decoded = source.decode(&verified);
        let stored = source.stored_headers(&headers);
        assert_eq!(
            source.decode_stored(verified.method(), "", &stored, body.as_bytes(), received()),
            decoded
        );
        facts(decoded)
    };
    let nameless = r#"{"kind":"FETCHED","pass":"p"}"#;
    let first = deliver("msg_1", nameless);
    assert_eq!(first.facts[0].identity_basis, IdentityBasis::VendorId);
    assert_eq!(deliver("msg_1", nameless).facts[0].id, first.facts[0].id);
    assert_ne!(deliver("msg_2", nameless).facts[0].id, first.facts[0].id);
    let batch = deliver(
        "msg_1",
        r#"{"events":[{"kind":"FETCHED","pass":"p"},{"kind":"FETCHED","pass":"p"}]}"#,
    );
    assert_eq!(
        batch.facts.len(),
        2,
        "a place in the batch is a part of the identity"
    );

    let named = r#"{"id":"e","kind":"FETCHED","pass":"p"}"#;
    let id = deliver("msg_1", named).facts[0].id;
    assert_eq!(deliver("msg_2", named).facts[0].id, id);
    assert_eq!(facts(decode(V, named)).facts[0].id, id);
    assert_eq!(
        facts(decode(V, format!("{{\"events\":[{named}]}}"))).facts[0].id,
        id,
        "grouping does not matter"
    );

    let content = facts(decode(V, nameless));
    assert_eq!(content.facts[0].identity_basis, IdentityBasis::Content);
    let same = r#"{ "pass":"p", "personal":{"display_name":"x"}, "kind":"FETCHED", "refs":null }"#;
    assert_eq!(facts(decode(V, same)).facts[0].id, content.facts[0].id);
    let other = r#"{"kind":"FETCHED","pass":"p","attributes":{"n":1}}"#;
    assert_ne!(facts(decode(V, other)).facts[0].id, content.facts[0].id);
}

#[test]
fn an_id_header_that_nobody_signed_is_neither_stored_nor_believed() {
    let source = source(V);
    let headers = headers(&[
        ("webhook-id", "forged"),
        ("webhook-timestamp", "1"),
        ("content-type", "application/json"),
    ]);
    assert_eq!(
        source.stored_headers(&headers),
        [("content-type".to_owned(), "application/json".to_owned())]
    );
    let verified = verify(&source, &headers, Some(SECRET), b"{}").unwrap();
    assert_eq!(verified.message_id(), None);
}

#[test]
fn every_kind_but_erased_can_be_told() {
    for kind in Kind::ALL {
        let body = json!({"kind": kind.name(), "pass": "p", "vendor_kind": "word"}).to_string();
        if kind == Kind::Erased {
            assert_quarantined(V, body, KindUnknown, "kind");
        } else {
            assert_eq!(facts(decode(V, body)).facts[0].kind, kind);
        }
    }
    assert_quarantined(
        V,
        r#"{"kind":"OTHER","pass":"p"}"#,
        FieldMissing,
        "vendor_kind",
    );
    assert_quarantined(V, r#"{"kind":"installed","pass":"p"}"#, KindUnknown, "kind");
    assert_eq!(
        decode(V, r#"{"kind":"CONTROL"}"#),
        Decoded::Control {
            vendor_kind: "CONTROL".to_owned()
        }
    );
}

#[test]
fn what_is_missing_or_wrong_goes_to_quarantine() {
    assert_quarantined(V, event(|v| remove(v, "/kind")), FieldMissing, "kind");
    assert_quarantined(V, event(|v| remove(v, "/pass")), FieldMissing, "pass");
    assert_quarantined(
        V,
        event(|v| v["occur_time"] = json!("2026-03-01T12:30:05")),
        FieldInvalid,
        "occur_time",
    );
    assert_quarantined(
        V,
        event(|v| v["installation"] = json!({"scope": "DEVICE"})),
        FieldMissing,
        "installation.id",
    );
    assert_quarantined(
        V,
        event(|v| v["installation"]["scope"] = json!("PHONE")),
        FieldInvalid,
        "installation.scope",
    );
    assert_quarantined(
        V,
        event(|v| v["redemption"] = json!({"count": 1})),
        FieldInvalid,
        "redemption",
    );
    assert_quarantined(
        V,
        event(|v| v["snapshot"]["voided"] = json!("no")),
        FieldInvalid,
        "snapshot.voided",
    );
    assert_quarantined(V, event(|v| v["id"] = json!("a b")), FieldInvalid, "id");
    assert_quarantined(
        V,
        sample(V, "installed").replacen("\"pass\":", "\"pass\":\"x\",\"pass\":", 1),
        FieldDuplicate,
        "pass",
    );
    assert_quarantined(
        V,
        r#"{"kind":"FETCHED","pass":"p","refs":{"class":"a","class":"b"}}"#,
        FieldDuplicate,
        "refs.class",
    );
    assert_quarantined(V, r#"{"events":[],"events":[]}"#, FieldDuplicate, "events");
    let unknown = facts(decode(V, r#"{"kind":"FETCHED","pass":"p","colour":1}"#));
    assert_eq!(unknown.notes, ["UNKNOWN_MEMBER"]);
}
