//! Whatever comes in: no panic, within bounds, the same answer each time.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use pass_domain::delivery::{Decoded, Method as DomainMethod};
use pass_domain::limits::*;
use pass_sources::samples::SAMPLES;
use pass_sources::{Source, sign_envelope};
use proptest::prelude::*;

use crate::support::*;

const VENDORS: [&str; 4] = ["passworks", "passkit", "signed_envelope", "standard"];

/// Decodes twice and checks every bound.
fn decode_bounded(source: &Source, method: DomainMethod, body: &[u8]) -> Result<(), TestCaseError> {
    let decode = || source.decode_stored(method, "", &[], body, received());
    let decoded = decode();
    prop_assert_eq!(&decoded, &decode());
    match decoded {
        Decoded::Facts(decoded) => {
            prop_assert!(decoded.facts.len() <= FACTS_PER_DELIVERY_MAX);
            prop_assert!(!decoded.facts.is_empty());
            prop_assert!(decoded.notes.len() <= NOTES_MAX);
            let personal = &decoded.personal;
            let mut texts = vec![&personal.display_name, &personal.email_address];
            let mut maps = vec![
                &personal.ip_addresses,
                &personal.user_agents,
                &personal.position,
                &personal.attributes,
            ];
            for fact in &decoded.facts {
                prop_assert_eq!(&fact.pass, &decoded.facts[0].pass);
                texts.extend([
                    &fact.vendor_kind,
                    &fact.refs.campaign,
                    &fact.refs.distribution,
                    &fact.refs.class,
                ]);
                texts.extend([&fact.refs.serial_number, &fact.refs.external_id]);
                texts.extend(
                    fact.wallet
                        .iter()
                        .flat_map(|wallet| [&wallet.native, &wallet.device_os, &wallet.device_app]),
                );
                texts.extend(fact.redemption.iter().map(|redemption| &redemption.scanner));
                maps.push(&fact.attributes);
            }
            if let Some(status) = decoded
                .snapshot
                .as_ref()
                .and_then(|snapshot| snapshot.vendor_status.as_ref())
            {
                texts.push(&status.name);
                texts.extend(&status.attained);
            }
            for map in maps {
                prop_assert!(map.len() <= ATTRIBUTES_MAX);
                prop_assert!(
                    map.keys()
                        .all(|name| name.len() <= ATTRIBUTE_NAME_BYTES_MAX && !name.contains('\0'))
                );
                texts.extend(map.values());
            }
            for text in texts {
                prop_assert!(
                    text.len() <= TEXT_BYTES_MAX && !text.contains('\0'),
                    "{} bytes",
                    text.len()
                );
            }
            let ids: std::collections::BTreeSet<_> =
                decoded.facts.iter().map(|fact| fact.id).collect();
            prop_assert_eq!(ids.len(), decoded.facts.len());
        }
        Decoded::Undecodable(undecodable) => prop_assert!(undecodable.detail.len() <= 512),
        Decoded::Control { vendor_kind } => prop_assert!(vendor_kind.len() <= TEXT_BYTES_MAX),
    }
    Ok(())
}

/// A change to a body: bytes overwritten, cut out, doubled or put in.
fn mutation() -> impl Strategy<Value = (usize, usize, Vec<u8>)> {
    let snippets = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..6),
        prop::sample::select(vec![
            &b"\\u0000"[..],
            b"\"",
            b"{",
            b"}",
            b"[",
            b"null",
            b"-9223372036854775809",
            b"1e999",
            b"\\ud800",
            b"\\ud83d\\ude00",
            b"{}",
            b"0001-01-01T00:00:00Z",
            b"9999-12-31T23:59:59Z",
            b",",
            b"\"id\":\"x\",",
            b"\xc3\xa9",
            b"\xff",
        ])
        .prop_map(<[u8]>::to_vec),
        (0_usize..6_000).prop_map(|count| vec![b'x'; count]),
    ];
    (
        any::<prop::sample::Index>().prop_map(|index| index.index(4_000)),
        0..40_usize,
        snippets,
    )
}

fn mutated(body: &[u8], changes: &[(usize, usize, Vec<u8>)]) -> Vec<u8> {
    let mut body = body.to_vec();
    for (at, cut, put) in changes {
        let at = at % (body.len() + 1);
        let end = (at + cut).min(body.len());
        body.splice(at..end, put.iter().copied());
    }
    body
}

/// Replaces one JSON value of a body by another, so that the result is still JSON.
fn with_value(body: &str, at: usize, value: &str) -> Vec<u8> {
    let starts: Vec<usize> = body.match_indices(": ").map(|(at, _)| at + 2).collect();
    let start = starts[at % starts.len()];
    let length = body[start..].find([',', '\n']).unwrap_or(0);
    format!("{}{value}{}", &body[..start], &body[start + length..]).into_bytes()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn arbitrary_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..600), secret in ".{0,40}") {
        for vendor in VENDORS {
            decode_bounded(&source(vendor), DomainMethod::Post, &body)?;
        }
        let source = build(&config("signed_envelope", auth("signed_envelope")));
        let none = headers(&[]);
        prop_assert!(verify(&source, &none, Some(&secret), &body).is_err());
    }

    #[test]
    fn mutated_callbacks_never_panic(
        which in 0..SAMPLES.len(),
        changes in proptest::collection::vec(mutation(), 1..5),
        method in prop::sample::select(vec![DomainMethod::Post, DomainMethod::Put, DomainMethod::Delete]),
    ) {
        let sample = &SAMPLES[which];
        let body = mutated(sample.body.as_bytes(), &changes);
        decode_bounded(&source(sample.vendor), method, &body)?;
        if sample.vendor == "signed_envelope" {
            let envelope = sign_envelope(&String::from_utf8_lossy(&body), SECRET.as_bytes());
            decode_bounded(&source(sample.vendor), method, &envelope)?;
        }
    }

    #[test]
    fn callbacks_with_another_value_anywhere_never_panic(
        which in 0..SAMPLES.len(),
        at in any::<usize>(),
        value in prop::sample::select(vec![
            "null", "true", "0", "-1", "1.5", "1e400", "18446744073709551616", "\"\"", "\"\\u0000\"", "\"x\"", "[]", "{}", "[{}]",
            "{\"seconds\":-9223372036854775808,\"nanos\":-2147483648}", "\"0000-00-00T00:00:00Z\"", "\"\\ud800\"", "[1,2,\"x\",null]",
        ]),
    ) {
        let sample = &SAMPLES[which];
        let body = with_value(sample.body, at, value);
        decode_bounded(&source(sample.vendor), sample.method, &body)?;
    }

    #[test]
    fn arbitrary_credentials_never_panic_and_are_refused(
        values in proptest::collection::vec((0..7_usize, proptest::collection::vec(prop_oneof![Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8], 0..80)), 0..8),
        body in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let names = ["authorization", "x-passkit-signature", "webhook-id", "webhook-timestamp", "webhook-signature", "svix-id", "svix-signature"];
        let mut map = HeaderMap::new();
        for (name, value) in &values {
            map.append(HeaderName::from_static(names[*name]), HeaderValue::from_bytes(value).unwrap());
        }
        for (vendor, scheme) in [("passworks", "api_key"), ("passkit", "hmac"), ("standard", "standard_webhooks"), ("passkit", "url_secret")] {
            let source = build(&config(vendor, auth(scheme)));
            prop_assert!(verify(&source, &map, None, &body).is_err());
            let stored = source.stored_headers(&map);
            prop_assert!(stored.len() <= HEADERS_MAX && stored.iter().all(|(_, value)| value.len() <= TEXT_BYTES_MAX));
        }
    }

    #[test]
    fn redacting_a_path_never_panics(path in "\\PC{0,300}") {
        let redacted = source("passkit").redact_path(&path);
        prop_assert!(redacted.len() <= PATH_BYTES_MAX);
    }
}

#[test]
fn large_lists_and_maps_are_read_without_being_kept() {
    let source = source("passkit");
    let many = vec!["7"; 100_000].join(",");
    let map: Vec<String> = (0..10_000).map(|i| format!("\"k{i}\":\"v\"")).collect();
    let body = format!(
        r#"{{"event":"PASS_EVENT_RECORD_UPDATED","pass":{{"id":"p","metadata":{{"lifecycleEvents":[{many}],"utm":{{{}}}}}}}}}"#,
        map.join(",")
    );
    let decoded =
        facts(source.decode_stored(DomainMethod::Put, "", &[], body.as_bytes(), received()));
    assert!(decoded.personal.attributes.len() <= ATTRIBUTES_MAX);
    assert_eq!(decoded.notes, ["ATTRIBUTE_DROPPED"]);
    assert!(
        facts(decode_as("passkit", &Method::PUT, body.as_bytes()))
            .facts
            .len()
            == 1
    );
}
