//! Authentication: right, wrong and hostile credentials.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue};
use pass_domain::delivery::AuthScheme;
use pass_domain::time::from_parts;
use pass_sources::RefusalCause::*;
use pass_sources::{RefusalCause, Request, SecretEncoding, Source, sign};

use crate::support::*;

/// The vector that the standard's libraries are tested with.
const VECTOR_BODY: &str = r#"{"email":"test@example.com","username":"test_user"}"#;
const VECTOR_ID: &str = "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk";
const VECTOR_TIMESTAMP: &str = "1649367553";
const VECTOR_SIGNATURE: &str = "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=";
const VECTOR_SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

fn webhooks() -> Source {
    build(&config("standard", auth("standard_webhooks")))
}

fn vector(id: &str, timestamp: &str, signature: &str) -> HeaderMap {
    headers(&[
        ("webhook-id", id),
        ("webhook-timestamp", timestamp),
        ("webhook-signature", signature),
    ])
}

fn check_at(
    source: &Source,
    headers: &HeaderMap,
    body: &str,
    seconds: i64,
) -> Result<String, RefusalCause> {
    let request = Request {
        receive_time: from_parts(seconds, 0).unwrap(),
        ..request(headers, None, body.as_bytes())
    };
    source
        .verify(request)
        .map(|verified| verified.verdict().key_id.clone())
        .map_err(|refusal| refusal.cause)
}

fn check(headers: &HeaderMap) -> Result<String, RefusalCause> {
    check_at(&webhooks(), headers, VECTOR_BODY, 1_649_367_553)
}

#[test]
fn the_official_vector_verifies_and_nothing_near_it_does() {
    let good = vector(VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_SIGNATURE);
    assert_eq!(check(&good), Ok("key-1".to_owned()));
    assert_eq!(
        check_at(
            &webhooks(),
            &good,
            &VECTOR_BODY.replace(':', ": "),
            1_649_367_553
        ),
        Err(WrongCredential)
    );
    assert_eq!(
        check(&vector("msg_other", VECTOR_TIMESTAMP, VECTOR_SIGNATURE)),
        Err(WrongCredential)
    );
    assert_eq!(
        check(&vector(VECTOR_ID, "1649367554", VECTOR_SIGNATURE)),
        Err(WrongCredential)
    );
    assert_eq!(
        check(&vector(VECTOR_ID, "01649367553", VECTOR_SIGNATURE)),
        Err(WrongCredential)
    );
}

#[test]
fn the_older_header_names_are_understood_and_families_are_not_mixed() {
    let svix = headers(&[
        ("svix-id", VECTOR_ID),
        ("svix-timestamp", VECTOR_TIMESTAMP),
        ("svix-signature", VECTOR_SIGNATURE),
    ]);
    assert_eq!(check(&svix), Ok("key-1".to_owned()));
    let mixed = headers(&[
        ("webhook-id", VECTOR_ID),
        ("svix-timestamp", VECTOR_TIMESTAMP),
        ("svix-signature", VECTOR_SIGNATURE),
    ]);
    assert_eq!(check(&mixed), Err(MissingCredential));
    let mut both = vector(VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_SIGNATURE);
    both.insert("svix-id", HeaderValue::from_static("forged"));
    assert_eq!(check(&both), Ok("key-1".to_owned()));
    let source = webhooks();
    let request = Request {
        receive_time: from_parts(1_649_367_553, 0).unwrap(),
        ..request(&both, None, VECTOR_BODY.as_bytes())
    };
    assert_eq!(
        source.verify(request).unwrap().message_id(),
        Some(VECTOR_ID)
    );
    let stored: Vec<String> = source
        .stored_headers(&both)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(
        stored,
        ["webhook-id", "webhook-timestamp"],
        "neither signature nor the unsigned id"
    );
}

#[test]
fn a_time_may_be_five_minutes_off_either_way() {
    let good = vector(VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_SIGNATURE);
    for (off, expected) in [
        (-301, Err(StaleTimestamp)),
        (-300, Ok(())),
        (300, Ok(())),
        (301, Err(StaleTimestamp)),
    ] {
        assert_eq!(
            check_at(&webhooks(), &good, VECTOR_BODY, 1_649_367_553 + off).map(drop),
            expected,
            "{off}"
        );
    }
    let mut strict = config("standard", auth("standard_webhooks"));
    strict.auth.tolerance_seconds = 1;
    assert_eq!(
        check_at(&build(&strict), &good, VECTOR_BODY, 1_649_367_555),
        Err(StaleTimestamp)
    );
}

/// F24.
#[test]
fn hostile_headers_are_refused_without_a_panic() {
    for timestamp in [
        "-9223372036854775808",
        "9223372036854775807",
        "18446744073709551616",
        "+1649367553",
        " 1649367553",
        "1649367553 ",
        "1649367553.0",
        "1e9",
        "1_649_367_553",
        "0x6250",
        "NaN",
        "",
        "1649367553,1649367553",
        "9999999999999",
        "16493\t67553",
    ] {
        let found = check(&vector(VECTOR_ID, timestamp, VECTOR_SIGNATURE)).expect_err(timestamp);
        assert_eq!(found, MalformedCredential, "{timestamp:?}");
    }
    // In range but signed by nobody: wrong, not stale.
    assert_eq!(
        check(&vector(VECTOR_ID, "999999999999", VECTOR_SIGNATURE)),
        Err(WrongCredential)
    );
    for id in ["", "a.b", "a b", "é", &"x".repeat(257)] {
        assert_eq!(
            check(&vector(id, VECTOR_TIMESTAMP, VECTOR_SIGNATURE)),
            Err(MalformedCredential),
            "{id:?}"
        );
    }
    let wrong = "v1,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (signature, expected) in [
        ("", WrongCredential),
        ("v1", WrongCredential),
        ("v1,", WrongCredential),
        (wrong, WrongCredential),
        (
            "v1a,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            WrongCredential,
        ),
        (
            "V1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            WrongCredential,
        ),
        (
            "tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw=",
            WrongCredential,
        ),
        (
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw",
            WrongCredential,
        ),
        (
            "v1,tZ1I4_hDygAJgO5TYxiSd6Sd0kDW6hPenDe-bTa3Kkw=",
            WrongCredential,
        ),
        (
            "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkx=",
            WrongCredential,
        ),
        (&[wrong; 1_000].join(" "), MalformedCredential),
        (&[""; 9].join(" "), MalformedCredential),
        (
            &format!("{} {VECTOR_SIGNATURE}", [wrong; 8].join(" ")),
            MalformedCredential,
        ),
        (&"x".repeat(4_097), MalformedCredential),
        ("é", MalformedCredential),
    ] {
        assert_eq!(
            check(&vector(VECTOR_ID, VECTOR_TIMESTAMP, signature)),
            Err(expected),
            "{signature:.60}"
        );
    }
    let good_last = format!("v1a,xyz {wrong} {VECTOR_SIGNATURE}");
    assert!(check(&vector(VECTOR_ID, VECTOR_TIMESTAMP, &good_last)).is_ok());
}

#[test]
fn headers_that_are_there_twice_or_missing_are_refused() {
    for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
        let mut twice = vector(VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_SIGNATURE);
        let value = twice[name].clone();
        twice.append(http::HeaderName::from_static(name), value);
        assert_eq!(check(&twice), Err(MalformedCredential), "{name}");
        let mut missing = vector(VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_SIGNATURE);
        missing.remove(name);
        assert_eq!(check(&missing), Err(MissingCredential), "{name}");
    }
}

/// Rotation: old, new, both.
#[test]
fn each_live_secret_is_accepted_and_named() {
    let mut both = config("standard", auth("standard_webhooks"));
    let other = format!("whsec_{}", STANDARD.encode([9_u8; 32]));
    both.auth.secrets = vec![secret(&other), secret(VECTOR_SECRET)];
    both.auth.secrets[0].id = "new".into();
    both.auth.secrets[1].id = "old".into();
    let source = build(&both);
    assert_eq!(
        check_at(
            &source,
            &vector(VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_SIGNATURE),
            VECTOR_BODY,
            1_649_367_553
        ),
        Ok("old".to_owned())
    );
    let signed = sign(
        &both,
        other.as_bytes(),
        VECTOR_BODY.as_bytes(),
        VECTOR_ID,
        from_parts(1_649_367_553, 0).unwrap(),
    )
    .unwrap();
    let (_, new_signature) = &signed.headers[2];
    assert_eq!(
        check_at(
            &source,
            &vector(VECTOR_ID, VECTOR_TIMESTAMP, new_signature),
            VECTOR_BODY,
            1_649_367_553
        ),
        Ok("new".to_owned())
    );
    let list = format!("{new_signature} {VECTOR_SIGNATURE}");
    assert!(
        check_at(
            &source,
            &vector(VECTOR_ID, VECTOR_TIMESTAMP, &list),
            VECTOR_BODY,
            1_649_367_553
        )
        .is_ok()
    );
}

#[test]
fn an_api_key_is_compared_whole() {
    let source = build(&config("passworks", auth("api_key")));
    let with = |value: &str| {
        verify(&source, &headers(&[("authorization", value)]), None, b"")
            .map(|v| v.verdict().clone())
            .map_err(|r| r.cause)
    };
    let verdict = with(SECRET).unwrap();
    assert_eq!(
        (verdict.scheme, &*verdict.key_id, &*verdict.detail),
        (AuthScheme::ApiKey, "key-1", "")
    );
    for wrong in [
        &SECRET[1..],
        &format!("{SECRET}0"),
        &SECRET.to_uppercase(),
        "x",
        &format!("Bearer {SECRET}"),
        &format!(" {SECRET}"),
    ] {
        assert_eq!(with(wrong), Err(WrongCredential), "{wrong}");
    }
    assert_eq!(with(""), Err(MissingCredential));
    assert_eq!(with(&"x".repeat(4_097)), Err(MalformedCredential));
    let twice = headers(&[("authorization", SECRET), ("authorization", SECRET)]);
    assert_eq!(
        verify(&source, &twice, None, b"").unwrap_err().cause,
        MalformedCredential
    );
    assert_eq!(
        verify(&source, &headers(&[]), None, b"").unwrap_err().cause,
        MissingCredential
    );
}

#[test]
fn a_configured_word_may_stand_before_an_api_key() {
    let mut word = config("passworks", auth("api_key"));
    word.auth.scheme_word = Some("Token".into());
    word.auth.header = Some("X-Api-Key".into());
    let source = build(&word);
    let with = |value: &str| {
        verify(&source, &headers(&[("x-api-key", value)]), None, b"")
            .map(|v| v.verdict().detail.clone())
            .map_err(|r| r.cause)
    };
    assert_eq!(with(SECRET), Ok("bare".to_owned()));
    assert_eq!(
        with(&format!("token {SECRET}")),
        Ok("scheme_word".to_owned())
    );
    assert_eq!(with(&format!("Token  {SECRET}")), Err(WrongCredential));
    assert_eq!(with(&format!("Token{SECRET}")), Err(WrongCredential));
}

#[test]
fn passkits_signature_is_found_in_any_of_its_likely_forms() {
    let body = sample("passkit", "installed").as_bytes();
    let text_secret = STANDARD.encode([7_u8; 64]);
    let mut passkit = config("passkit", auth("hmac"));
    passkit.auth.secrets = vec![secret(&text_secret)];
    let source = build(&passkit);
    for (encoding, key, prefix, detail) in [
        (
            pass_sources::SignatureEncoding::Hex,
            SecretEncoding::Ascii,
            "",
            "hex,ascii",
        ),
        (
            pass_sources::SignatureEncoding::Hex,
            SecretEncoding::Base64,
            "sha256=",
            "hex,decoded",
        ),
        (
            pass_sources::SignatureEncoding::Base64,
            SecretEncoding::Ascii,
            "sha256=",
            "base64,ascii",
        ),
        (
            pass_sources::SignatureEncoding::Base64,
            SecretEncoding::Base64,
            "",
            "base64,decoded",
        ),
    ] {
        let mut sender = passkit.clone();
        (
            sender.auth.encoding,
            sender.auth.secret_encoding,
            sender.auth.prefix,
        ) = (encoding, key, Some(prefix.into()));
        let signed = sign(&sender, text_secret.as_bytes(), body, "", received()).unwrap();
        assert_eq!(signed.headers[0].0, "x-passkit-signature");
        let map = headers(&[("x-passkit-signature", &signed.headers[0].1)]);
        assert_eq!(
            verify(&source, &map, None, body).unwrap().verdict().detail,
            detail
        );
        assert_eq!(
            verify(&source, &map, None, &body[1..]).unwrap_err().cause,
            WrongCredential
        );
        let value = &signed.headers[0].1;
        let twice = headers(&[
            ("x-passkit-signature", value),
            ("x-passkit-signature", value),
        ]);
        assert_eq!(
            verify(&source, &twice, None, body).unwrap_err().cause,
            MalformedCredential
        );
    }
    for bad in ["zz", "sha256=", "sha1=00", &"0".repeat(63), &"é".repeat(32)] {
        let found = verify(
            &source,
            &headers(&[("x-passkit-signature", bad)]),
            None,
            body,
        )
        .unwrap_err()
        .cause;
        assert!(
            matches!(found, MalformedCredential | MissingCredential),
            "{bad}"
        );
    }
}

#[test]
fn a_secret_in_the_url_is_compared_whole() {
    let source = source("passkit");
    assert!(source.expects_url_secret());
    let none = headers(&[]);
    assert_eq!(
        verify(&source, &none, Some(SECRET), b"")
            .unwrap()
            .verdict()
            .scheme,
        AuthScheme::UrlSecret
    );
    assert_eq!(
        verify(&source, &none, Some("x"), b"").unwrap_err().cause,
        WrongCredential
    );
    assert_eq!(
        verify(&source, &none, Some(""), b"").unwrap_err().cause,
        MissingCredential
    );
    assert_eq!(
        verify(&source, &none, None, b"").unwrap_err().cause,
        MissingCredential
    );
}

#[test]
fn addresses_outside_the_allow_list_are_refused_before_anything_else() {
    let mut limited = config("passkit", auth("none"));
    limited.allow_from = vec![
        "192.0.2.0/24".parse().unwrap(),
        "2001:db8::/32".parse().unwrap(),
    ];
    let source = build(&limited);
    let none = headers(&[]);
    let from = |peer: &str| {
        let request = Request {
            peer: Some(peer.parse::<IpAddr>().unwrap()),
            ..request(&none, None, b"{}")
        };
        source
            .verify(request)
            .map(|verified| verified.verdict().scheme)
            .map_err(|refusal| refusal.cause)
    };
    assert_eq!(from("192.0.2.9"), Ok(AuthScheme::None));
    assert_eq!(from("::ffff:192.0.2.9"), Ok(AuthScheme::None));
    assert_eq!(from("2001:db8::1"), Ok(AuthScheme::None));
    assert_eq!(from("192.0.3.1"), Err(AddressNotAllowed));
    assert_eq!(from("::1"), Err(AddressNotAllowed));
    limited.auth = auth("api_key");
    let keyed = build(&limited);
    let map = headers(&[("authorization", SECRET)]);
    let request = Request {
        peer: Some("198.51.100.1".parse().unwrap()),
        ..request(&map, None, b"{}")
    };
    assert_eq!(keyed.verify(request).unwrap_err().cause, AddressNotAllowed);
}

#[test]
fn a_sender_of_unknown_address_is_on_no_list_not_even_on_that_of_all() {
    let mut limited = config("passkit", auth("api_key"));
    limited.allow_from = vec!["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
    let map = headers(&[("authorization", SECRET)]);
    let request = Request {
        peer: None,
        ..request(&map, None, b"{}")
    };
    let refusal = build(&limited).verify(request).unwrap_err();
    assert_eq!(refusal.cause, AddressNotAllowed);
}

#[test]
fn a_sender_reads_the_same_text_for_every_cause() {
    let texts: std::collections::BTreeSet<String> = RefusalCause::ALL
        .iter()
        .map(|cause| pass_sources::Refusal { cause: *cause }.to_string())
        .collect();
    assert_eq!(texts.len(), 1);
}

#[test]
fn what_sign_makes_is_accepted_for_every_scheme() {
    for (vendor, scheme) in [
        ("passworks", "api_key"),
        ("passkit", "hmac"),
        ("standard", "standard_webhooks"),
        ("signed_envelope", "signed_envelope"),
        ("passkit", "url_secret"),
        ("standard", "none"),
    ] {
        let mut config = config(vendor, auth(scheme));
        if scheme == "none" {
            config.allow_from = vec!["192.0.2.0/24".parse().unwrap()];
        }
        if scheme == "url_secret" {
            config.auth.secrets[0].value = Some("needs+escaping=in:a&path".into());
        }
        let secret = config
            .auth
            .secrets
            .first()
            .and_then(|secret| secret.value.clone())
            .unwrap_or_default();
        for sample in pass_sources::samples::of_vendor(vendor) {
            let signed = sign(
                &config,
                secret.as_bytes(),
                sample.body.as_bytes(),
                "msg_1",
                received(),
            )
            .unwrap();
            assert!(!format!("{signed:?}").contains(&secret) || secret.is_empty());
            let pairs: Vec<(&str, &str)> = signed
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            let map = headers(&pairs);
            let url_secret = signed.url_secret.as_ref().map(|_| secret.as_str());
            let source = build(&config);
            let verified = verify(&source, &map, url_secret, &signed.body)
                .unwrap_or_else(|r| panic!("{scheme}: {:?}", r.cause));
            assert_eq!(verified.verdict().scheme.name(), scheme);
            facts(source.decode(&verified));
        }
    }
    let signed = sign(
        &config("passkit", auth("url_secret")),
        b"a+b=c:d&e/f?",
        b"",
        "",
        received(),
    )
    .unwrap();
    assert_eq!(signed.url_secret.unwrap(), "a%2Bb%3Dc%3Ad%26e%2Ff%3F");
}
