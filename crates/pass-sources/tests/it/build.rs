//! Building sources from configuration, and what a source keeps and hides.

use pass_sources::{SecretConfig, SourceConfig, UndecodablePolicy};

use crate::support::*;

fn faults(config: &SourceConfig) -> Vec<String> {
    try_build(config)
        .err()
        .unwrap_or_default()
        .into_iter()
        .map(|fault| fault.path)
        .collect()
}

#[test]
fn a_table_with_the_least_has_sensible_defaults() {
    let config: SourceConfig = serde_json::from_value(serde_json::json!({
        "name": "acme", "vendor": "passworks", "auth": {"scheme": "api_key", "secrets": [{"value": SECRET}]}
    }))
    .unwrap();
    let source = build(&config);
    assert_eq!(
        (
            source.uid().as_str(),
            source.name(),
            source.vendor(),
            source.organization()
        ),
        ("acme", "acme", "passworks", "")
    );
    assert_eq!(
        (source.adapter_version(), source.undecodable()),
        ("passworks/1", UndecodablePolicy::Quarantine)
    );
    assert_eq!(source.methods().len(), 1);
    assert!(source.warnings().is_empty());
    assert!(!source.expects_url_secret());
}

#[test]
fn a_renamed_source_keeps_its_ids() {
    let mut renamed = config("passworks", auth("url_secret"));
    renamed.name = "new-name".into();
    renamed.uid = Some("acme".into());
    let source = build(&renamed);
    let none = headers(&[]);
    let body = sample("passworks", "created").as_bytes();
    let decoded = source.decode(&verify(&source, &none, Some(SECRET), body).unwrap());
    assert_eq!(decoded, decode("passworks", body));
    renamed.uid = None;
    let moved = build(&renamed);
    assert_ne!(
        moved.decode(&verify(&moved, &none, Some(SECRET), body).unwrap()),
        decoded
    );
}

#[test]
fn all_faults_are_told_at_once() {
    let mut bad = config("passkey", auth("api_key"));
    bad.name = "Acme".into();
    bad.uid = Some("1".into());
    bad.organization = "a\nb".into();
    bad.auth.header = Some("bad header".into());
    bad.auth.scheme_word = Some("two words".into());
    bad.auth.secrets = vec![
        secret("short"),
        SecretConfig {
            env: Some("E".into()),
            ..secret("x")
        },
        SecretConfig {
            file: Some("f".into()),
            ..SecretConfig::default()
        },
        SecretConfig {
            id: "key-1".into(),
            ..secret(SECRET)
        },
        secret(SECRET),
    ];
    assert_eq!(
        faults(&bad),
        [
            "name",
            "uid",
            "organization",
            "auth.secrets",
            "auth.secrets[1]",
            "auth.secrets[2].file",
            "auth.secrets[3].id",
            "auth.scheme_word",
            "auth.header",
            "auth.secrets[0].value",
            "vendor",
        ]
    );
    assert_eq!(
        faults(&SourceConfig::default()),
        ["name", "auth.scheme", "vendor"]
    );
}

#[test]
fn authentication_is_mandatory_and_none_has_to_be_spelled_out_with_networks() {
    let mut config = config("passkit", auth("none"));
    assert_eq!(faults(&config), ["allow_from"]);
    config.allow_from = vec!["192.0.2.0/24".parse().unwrap()];
    let source = build(&config);
    assert!(
        source.warnings()[0].contains("acme")
            && source.warnings()[0].contains("without any credential")
    );
    config.allow_from.push("::/0".parse().unwrap());
    assert_eq!(faults(&config), ["allow_from"]);
    config.auth.accept_unauthenticated = true;
    assert_eq!(faults(&config), Vec::<String>::new());
    config.auth.secrets = vec![secret(SECRET)];
    assert_eq!(faults(&config), ["auth.secrets"]);
    config.auth.scheme = "oauth".into();
    config.auth.secrets.push(SecretConfig::default());
    assert_eq!(
        faults(&config),
        ["auth.scheme", "auth.secrets[1]"],
        "secrets are looked at whatever the scheme"
    );
    config.auth.secrets.pop();
    config.auth.scheme = String::new();
    assert_eq!(faults(&config), ["auth.scheme"]);
}

#[test]
fn secrets_have_a_least_and_a_most_length() {
    let with = |vendor: &str, scheme: &str, value: &str| {
        let mut config = config(vendor, auth(scheme));
        config.auth.secrets = vec![secret(value)];
        faults(&config).len()
    };
    for (vendor, scheme, value, expected) in [
        ("passworks", "api_key", &*"k".repeat(15), 1),
        ("passworks", "api_key", &"k".repeat(16), 0),
        ("passkit", "url_secret", &"k".repeat(15), 1),
        ("passkit", "url_secret", "with/slash-and-more", 1),
        ("passkit", "hmac", &"k".repeat(23), 1),
        ("passkit", "hmac", &"k".repeat(24), 0),
        ("passkit", "hmac", &"k".repeat(129), 1),
        ("standard", "standard_webhooks", "whsec_AAAA", 1),
        ("standard", "standard_webhooks", "whsec_not base64", 1),
        (
            "standard",
            "standard_webhooks",
            "C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
            0,
        ),
        ("passworks", "api_key", "", 1),
        ("passworks", "api_key", "-----BEGIN CERTIFICATE-----", 1),
    ] {
        assert_eq!(with(vendor, scheme, value), expected, "{scheme} {value}");
    }
    let mut hmac = config("passworks", auth("hmac"));
    assert_eq!(
        faults(&hmac),
        ["auth.header"],
        "only PassKit's header is known"
    );
    hmac.auth.header = Some("x-signature".into());
    assert_eq!(faults(&hmac), Vec::<String>::new());
    let mut tolerance = config("standard", auth("standard_webhooks"));
    for (seconds, expected) in [(0, 1), (3_601, 1), (3_600, 0)] {
        tolerance.auth.tolerance_seconds = seconds;
        assert_eq!(faults(&tolerance).len(), expected);
    }
    assert_eq!(
        faults(&config("passkit", auth("signed_envelope"))),
        ["auth.scheme"]
    );
}

#[test]
fn nothing_shows_a_secret() {
    for (vendor, scheme) in [
        ("passworks", "api_key"),
        ("passkit", "hmac"),
        ("standard", "standard_webhooks"),
        ("signed_envelope", "signed_envelope"),
        ("passkit", "url_secret"),
    ] {
        let config = config(vendor, auth(scheme));
        let value = config.auth.secrets[0].value.clone().unwrap();
        for text in [
            format!("{config:?}"),
            format!("{:?}", build(&config)),
            format!("{:?}", config.auth.secrets[0].reference()),
        ] {
            assert!(
                !text.contains(&value) && text.contains("[REDACTED]"),
                "{text}"
            );
        }
    }
    let mut bad = config("passworks", auth("api_key"));
    bad.auth.secrets = vec![
        secret("canary"),
        secret("canary with spaces"),
        secret("-----BEGIN canary"),
    ];
    let text = format!("{:?}", try_build(&bad).unwrap_err());
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn stored_paths_hold_neither_the_url_secret_nor_query_values() {
    let source = source("passkit");
    for (path, expected) in [
        ("/webhooks/acme", "/webhooks/acme"),
        ("/webhooks/acme/", "/webhooks/acme/"),
        ("/webhooks/acme/canary", "/webhooks/acme/[REDACTED]"),
        ("/webhooks/acme/canary/canary", "/webhooks/acme/[REDACTED]"),
        (
            "/webhooks/acme?token=canary&b=canary%3D&canary",
            "/webhooks/acme?token=[REDACTED]&b=[REDACTED]&[REDACTED]",
        ),
        (
            "/webhooks/acme/canary?a=b=canary&",
            "/webhooks/acme/[REDACTED]?a=[REDACTED]&",
        ),
        ("/webhooks/acme?", "/webhooks/acme?"),
        ("", ""),
    ] {
        assert_eq!(source.redact_path(path), expected);
    }
    assert!(source.redact_path(&format!("/{}", "é".repeat(3_000))).len() <= 2_048);
}

#[test]
fn stored_headers_are_an_allow_list_without_credentials() {
    let map = headers(&[
        ("authorization", "canary"),
        ("x-passkit-signature", "canary"),
        ("cookie", "canary"),
        ("x-api-key", "canary"),
        ("content-type", "application/json"),
        ("user-agent", &"u".repeat(5_000)),
    ]);
    let stored = source("passkit").stored_headers(&map);
    assert_eq!(
        stored[0],
        ("content-type".to_owned(), "application/json".to_owned())
    );
    assert_eq!(
        (stored[1].0.as_str(), stored[1].1.len(), stored.len()),
        ("user-agent", 1_024, 2)
    );
    let mut odd = config("passworks", auth("api_key"));
    odd.auth.header = Some("User-Agent".into());
    assert_eq!(
        build(&odd).stored_headers(&map).len(),
        1,
        "a credential's header is not stored whatever its name"
    );
}
