//! Signed envelopes.

use pass_domain::Timestamp;
use pass_domain::delivery::UndecodableReason::*;
use pass_domain::delivery::{AuthScheme, Decoded};
use pass_domain::fact::{IdentityBasis, TimeBasis};
use pass_domain::kind::Kind;
use pass_sources::{
    EnvelopeConfig, RefusalCause, SecretEncoding, SignatureEncoding, Source, sign, sign_envelope,
};
use serde_json::{Value, json};

use crate::support::*;

const V: &str = "signed_envelope";

fn signed_source() -> Source {
    build(&config(V, auth(V)))
}

fn envelope(payload: &str) -> Vec<u8> {
    sign_envelope(payload, SECRET.as_bytes())
}

fn cause(body: &[u8]) -> RefusalCause {
    verify(&signed_source(), &headers(&[]), None, body)
        .expect_err("must be refused")
        .cause
}

fn decode_signed(body: &[u8]) -> Decoded {
    let source = signed_source();
    let none = headers(&[]);
    let verified = verify(&source, &none, None, body).unwrap();
    assert_eq!(verified.verdict().scheme, AuthScheme::SignedEnvelope);
    source.decode(&verified)
}

fn quarantined(body: &[u8]) -> (pass_domain::delivery::UndecodableReason, String) {
    let found = undecodable(decode_signed(body));
    (found.reason, found.detail)
}

#[test]
fn the_signed_text_becomes_a_fact() {
    let decoded = facts(decode_signed(&envelope(sample(V, "pass_uninstalled"))));
    let fact = only(&decoded, Kind::Uninstalled);
    assert_eq!(fact.identity_basis, IdentityBasis::VendorId);
    assert_eq!(
        (
            fact.pass.as_str(),
            fact.installation.as_ref().unwrap().id.as_str()
        ),
        ("loyalty-42", "reg-7")
    );
    assert_eq!(
        (fact.occur_time, fact.time_basis),
        (at("2020-02-13T08:00:00Z"), TimeBasis::VendorEvent)
    );
    assert_eq!(fact.vendor_kind, "event.pass.uninstalled.v2");
    assert_eq!(fact.attributes["message_version"], "2");
    assert_eq!(
        decoded.personal.attributes["accountReference"],
        "ACCOUNT_ID"
    );
}

#[test]
fn a_message_is_known_by_its_id_and_pass_whatever_its_version() {
    let id = |body: &str| facts(decode_signed(&envelope(body))).facts[0].id;
    let body = sample(V, "pass_installed");
    assert_eq!(
        id(body),
        id(&edited(
            V,
            "pass_installed",
            |v| v["details"]["messageType"] = json!("event.pass.installed.v7")
        ))
    );
    assert_ne!(
        id(body),
        id(&edited(V, "pass_installed", |v| v["messageId"] = json!("other")))
    );
    assert_ne!(
        id(body),
        id(&edited(V, "pass_installed", |v| v["details"]["passId"] =
            json!("other")))
    );
}

#[test]
fn the_signature_is_over_the_decoded_text() {
    let payload = edited(V, "pass_installed", |v| {
        v["note"] = json!("é \u{1f600} / \"quoted\" <&>")
    });
    let body = String::from_utf8(envelope(&payload)).unwrap();
    let escaped = body
        .replace('é', "\\u00e9")
        .replace('\u{1f600}', "\\ud83d\\ude00")
        .replace('/', "\\/")
        .replace('&', "\\u0026");
    assert_ne!(body, escaped);
    assert_eq!(
        decode_signed(body.as_bytes()),
        decode_signed(escaped.as_bytes())
    );
}

/// Quirk 40.
#[test]
fn a_readable_copy_that_says_something_else_goes_to_quarantine() {
    let payload: Value = serde_json::from_str(sample(V, "pass_installed")).unwrap();
    let with_copy = |copy: Value| {
        let mut body: Value = serde_json::from_slice(&envelope(&payload.to_string())).unwrap();
        body["payload"] = copy;
        body.to_string().into_bytes()
    };
    assert_eq!(
        facts(decode_signed(&with_copy(payload.clone()))).facts[0].kind,
        Kind::Installed
    );
    assert_eq!(facts(decode_signed(&with_copy(Value::Null))).facts.len(), 1);
    let mut forged = payload.clone();
    forged["details"]["passId"] = json!("victim");
    let (reason, detail) = quarantined(&with_copy(forged));
    assert_eq!(reason, ContentMismatch);
    assert!(
        detail.contains("payload") && !detail.contains("victim"),
        "{detail}"
    );
    let mut fewer = payload.clone();
    fewer.as_object_mut().unwrap().remove("user");
    assert_eq!(quarantined(&with_copy(fewer)).0, ContentMismatch);
}

#[test]
fn a_copy_may_be_written_differently() {
    let payload = r#"{"details":{"messageType":"event.pass.installed.v1","passId":"p","n":1.0},"messageId":"m","timestamp":"2020-02-12T10:59:00Z"}"#;
    let body = String::from_utf8(envelope(payload)).unwrap();
    let copy = r#"{ "messageId" : "\u006d", "timestamp":"2020-02-12T10:59:00Z", "details":{"n":1,"passId":"p","messageType":"event.pass.installed.v1"} }"#;
    let body = format!("{{\"payload\":{copy},{}", &body[1..]);
    assert_eq!(facts(decode_signed(body.as_bytes())).facts.len(), 1);
}

#[test]
fn types_that_are_not_in_the_table_go_to_quarantine_and_handshakes_are_control() {
    let unknown = edited(V, "pass_installed", |v| {
        v["details"]["messageType"] = json!("event.accountAmountTotalFees.updated.v1")
    });
    assert_eq!(
        quarantined(&envelope(&unknown)),
        (
            KindUnknown,
            "/details/messageType names something this adapter does not know".to_owned()
        )
    );
    let test = r#"{"details":{"messageType":"event.webhook.tested.v1"}}"#;
    assert_eq!(
        decode_signed(&envelope(test)),
        Decoded::Control {
            vendor_kind: "event.webhook.tested.v1".to_owned()
        }
    );
}

#[test]
fn what_is_missing_or_wrong_in_the_signed_text_goes_to_quarantine() {
    let edit = |edit: fn(&mut Value)| quarantined(&envelope(&edited(V, "pass_installed", edit)));
    assert_eq!(
        edit(|v| remove(v, "/messageId")),
        (FieldMissing, "/messageId is missing".to_owned())
    );
    assert_eq!(
        edit(|v| remove(v, "/details/passId")),
        (FieldMissing, "/details/passId is missing".to_owned())
    );
    assert_eq!(edit(|v| remove(v, "/details/messageType")).0, FieldMissing);
    assert_eq!(edit(|v| v["timestamp"] = json!("soon")).0, FieldInvalid);
    assert_eq!(
        edit(|v| v["details"]["passId"] = json!({"a": 1})).0,
        FieldInvalid
    );
    assert_eq!(edit(|v| v["messageId"] = json!("a b")).0, FieldInvalid);
    assert_eq!(quarantined(&envelope("not json")).0, NotJson);
    assert_eq!(quarantined(&envelope("")).0, NotJson);
    assert_eq!(quarantined(&envelope(&"[".repeat(40))).0, TooDeep);
    let twice =
        sample(V, "pass_installed").replacen("\"passId\":", "\"passId\": \"x\", \"passId\":", 1);
    assert_eq!(quarantined(&envelope(&twice)).0, FieldDuplicate);
    let big = edited(V, "pass_installed", |v| {
        v["details"]["passId"] = json!(9_007_199_254_740_993_u64)
    });
    assert_eq!(
        facts(decode_signed(&envelope(&big))).facts[0].pass.as_str(),
        "9007199254740993"
    );
    let untimed = edited(V, "pass_installed", |v| remove(v, "/timestamp"));
    assert_eq!(
        facts(decode_signed(&envelope(&untimed))).facts[0].time_basis,
        TimeBasis::Received
    );
}

#[test]
fn a_signature_that_cannot_be_read_or_is_wrong_is_refused() {
    let good = String::from_utf8(envelope(sample(V, "pass_installed"))).unwrap();
    assert!(verify(&signed_source(), &headers(&[]), None, good.as_bytes()).is_ok());
    assert_eq!(
        cause(good.replace("loyalty-42", "loyalty-43").as_bytes()),
        RefusalCause::WrongCredential
    );
    assert_eq!(
        cause(&sign_envelope(
            sample(V, "pass_installed"),
            b"another secret that is long"
        )),
        RefusalCause::WrongCredential
    );
    for body in [
        &b""[..],
        b"not json",
        b"[]",
        b"{}",
        b"{\"payloadAsString\":\"x\"}",
        b"{\"signature\":\"x\"}",
        b"\xff",
        b"{\"payloadAsString\":{},\"signature\":\"x\"}",
        b"{\"payloadAsString\":\"x\",\"signature\":7}",
        b"{\"payloadAsString\":\"x\",\"signature\":\"SIGNATURE\"}",
        format!("{}{}", "[".repeat(50), "]".repeat(50)).as_bytes(),
        good.replacen('{', "{\"signature\":\"x\",", 1).as_bytes(),
        good.replacen('{', "{\"payloadAsString\":\"{}\",", 1)
            .as_bytes(),
    ] {
        let cause = cause(body);
        assert!(
            matches!(
                cause,
                RefusalCause::MalformedCredential | RefusalCause::MissingCredential
            ),
            "{cause:?}"
        );
    }
}

#[test]
fn signatures_may_be_base64_and_the_key_may_be_decoded() {
    for (encoding, secret_encoding, detail) in [
        (
            SignatureEncoding::Base64,
            SecretEncoding::Any,
            "base64,ascii",
        ),
        (
            SignatureEncoding::Hex,
            SecretEncoding::Base64,
            "hex,decoded",
        ),
        (SignatureEncoding::Any, SecretEncoding::Ascii, "hex,ascii"),
    ] {
        let mut config = config(V, auth(V));
        (config.auth.encoding, config.auth.secret_encoding) = (encoding, secret_encoding);
        let body = sample(V, "pass_installed").as_bytes();
        let signed = sign(&config, SECRET.as_bytes(), body, "", Timestamp::UNIX_EPOCH).unwrap();
        let none = headers(&[]);
        assert_eq!(
            verify(&build(&config), &none, None, &signed.body)
                .unwrap()
                .verdict()
                .detail,
            detail
        );
    }
}

/// Quirk 41.
#[test]
fn a_public_key_is_refused_as_a_secret() {
    let spki = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE/1+3HBVSbdv+j7NaArdgMyoSAM43yRydzqdg1TxodSzA96Dj4Mc1EiKroxxunavVIvdxGnJeFViTzFvzFRxyCw==";
    for key in [
        spki,
        &format!("-----BEGIN PUBLIC KEY-----\n{spki}\n-----END PUBLIC KEY-----\n"),
        "whpk_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
    ] {
        let mut config = config(V, auth(V));
        config.auth.secrets = vec![secret(key)];
        let faults = try_build(&config).expect_err("must be refused");
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].path, "auth.secrets[0].value");
        assert!(
            faults[0].message.contains("public key") && faults[0].message.contains("forge"),
            "{}",
            faults[0].message
        );
    }
}

#[test]
fn without_the_signature_scheme_the_copy_may_stand_for_the_text() {
    let receeve = r#"{"payload":{"details":{"messageType":"event.pass.installed.v1","passId":"p"},"messageId":"9b72ff0b","timestamp":"2020-02-12T10:59:00.272Z"},"signature":"SIGNATURE"}"#;
    let decoded = facts(decode(V, receeve));
    assert_eq!(decoded.notes, ["PAYLOAD_COPY_USED"]);
    assert_eq!(decoded.facts[0].pass.as_str(), "p");
    assert_eq!(cause(receeve.as_bytes()), RefusalCause::MissingCredential);
}

/// The one documented receeve body: not about a pass, and without the signed text.
#[test]
fn a_real_message_about_something_else_goes_to_quarantine() {
    let receeve = r#"{"payload":{"details":{"messageType":"event.accountAmountTotalFees.updated.v1","accountReference":"ACCOUNT_ID","amount":1000,"totalFees":10000,"totalAmount":11000},"messageId":"9b72ff0b-bfd4-4be1-8e22-d21731af064e","timestamp":"2020-02-12T10:59:00.272Z","user":{"id":"USER_ID","poolId":"POOL_ID","originator":"ClientAPI"}},"signature":"SIGNATURE"}"#;
    assert_quarantined(V, receeve, KindUnknown, "/details/messageType");
}

#[test]
fn another_layout_is_a_matter_of_configuration() {
    let mut config = config(V, auth(V));
    config.envelope = Some(EnvelopeConfig {
        signed_field: "body".into(),
        signature_field: "mac".into(),
        copy_field: "view".into(),
        message_id: "/id".into(),
        message_type: "/type".into(),
        time: "/at".into(),
        pass: "/card/no~1id".into(),
        installation: "/card/device".into(),
        serial_number: Some("/card/serial".into()),
        kinds: [("gone".to_owned(), "UNINSTALLED".to_owned())].into(),
        ..EnvelopeConfig::default()
    });
    let payload = r#"{"id":"1","type":"gone","at":"2020-02-12T10:59:00Z","card":{"no/id":"c-1","device":"d","serial":"s","color":"red"}}"#;
    let signed = sign(
        &config,
        SECRET.as_bytes(),
        payload.as_bytes(),
        "",
        Timestamp::UNIX_EPOCH,
    )
    .unwrap();
    let source = build(&config);
    let none = headers(&[]);
    let decoded = facts(source.decode(&verify(&source, &none, None, &signed.body).unwrap()));
    let fact = only(&decoded, Kind::Uninstalled);
    assert_eq!(
        (fact.pass.as_str(), &*fact.refs.serial_number),
        ("c-1", "s")
    );
    assert_eq!(decoded.personal.attributes.len(), 1);
    assert_eq!(decoded.personal.attributes["color"], "red");
}

#[test]
fn a_layout_with_faults_is_refused_with_all_of_them() {
    let mut config = config(V, auth(V));
    config.envelope = Some(EnvelopeConfig {
        copy_field: "signature".into(),
        pass: "passId".into(),
        kinds: [
            ("a".to_owned(), "GONE".to_owned()),
            ("b.v1".to_owned(), "INSTALLED".to_owned()),
        ]
        .into(),
        ..EnvelopeConfig::default()
    });
    let paths: Vec<String> = try_build(&config)
        .expect_err("faults")
        .into_iter()
        .map(|fault| fault.path)
        .collect();
    assert_eq!(
        paths,
        [
            "envelope.copy_field",
            "envelope.kinds.\"a\"",
            "envelope.kinds.\"b.v1\"",
            "envelope.pass"
        ]
    );
}
