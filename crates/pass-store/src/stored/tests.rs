//! Stored forms: round trips, and blobs of released versions in `tests/golden/`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pass_domain::delivery::{Decoded, Delivery};
use pass_domain::fold::{Fold, PassState};
use pass_domain::kind::Kind;
use proptest::prelude::*;

use super::*;
use crate::suite::make::{self, Says, Short, at, short};

fn told() -> Delivery {
    let facts = vec![
        Short {
            installation: Some(3),
            ..short(1, Kind::Installed, 5)
        },
        short(2, Kind::Redeemed, 9),
    ];
    make::delivery("acme", 7, &Says::Facts(facts, Some((1, 9, true))))
}

fn decoded(delivery: &Delivery) -> &DecodedFacts {
    match &delivery.decoded {
        Decoded::Facts(facts) => facts,
        other => panic!("not facts: {other:?}"),
    }
}

fn effect() -> Effect {
    Effect {
        state_before: pass_domain::fold::State::Created,
        state_after: pass_domain::fold::State::Installed,
        opened: vec![
            InstallationKey::Anonymous,
            InstallationKey::Identified(VendorId::new("device-3").unwrap()),
        ],
        closed: vec![InstallationKey::Anonymous],
        late: true,
        changed: true,
    }
}

fn state() -> PassState {
    let delivery = told();
    let facts = decoded(&delivery);
    let mut state = PassState {
        fold: Fold::from_facts(&facts.facts),
        snapshot: None,
    };
    state.merge_snapshot(facts.snapshot.as_ref().unwrap());
    state.fold.validity = Some((Kind::Expired, at(11)));
    state
}

fn rest() -> DeliveryRest {
    let delivery = told();
    let events = decoded(&delivery)
        .facts
        .iter()
        .map(|fact| (fact.pass.clone(), fact.id))
        .collect();
    DeliveryRest {
        events,
        duplicate_facts: 3,
        differing_duplicates: 2,
        refused_facts: 1,
        body_bytes: 999,
    }
}

fn recent() -> Vec<(EventId, u64)> {
    vec![
        (EventId::from_bytes([9; 16]), u64::MAX),
        (EventId::from_bytes([8; 16]), 0),
    ]
}

/// Every form with its blob as written today.
fn blobs() -> [(&'static str, Vec<u8>); 4] {
    let delivery = told();
    let facts = decoded(&delivery);
    [
        (
            "event",
            event_blob(&facts.facts[0], &delivery, &facts.notes, &effect(), true),
        ),
        ("personal", personal_blob(&facts.personal)),
        ("delivery", delivery_blob(&delivery, &rest())),
        ("pass", pass_blob(&state_bytes(&state()), &recent())),
    ]
}

fn golden(name: &str) -> Vec<u8> {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.v1.hex"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

// A released blob must be read as it was meant, for ever. Never change these files; add new ones.
#[test]
fn blobs_of_released_versions_still_read() {
    let delivery = told();
    let facts = decoded(&delivery);
    let id = facts.facts[0].id;
    let event = event_from(Position(4), id, at(100), &golden("event")).unwrap();
    assert_eq!(
        (&event.fact, &event.effect, event.time_suspect),
        (&facts.facts[0], &effect(), true)
    );
    assert_eq!(
        (event.source, event.delivery, event.receive_time),
        (delivery.source.clone(), delivery.id, delivery.receive_time)
    );
    assert_eq!(
        (event.auth, event.trace, event.notes),
        (
            delivery.auth.clone(),
            delivery.trace.clone(),
            facts.notes.clone()
        )
    );
    assert_eq!(
        (event.vendor, event.organization),
        (delivery.vendor.clone(), delivery.organization.clone())
    );
    assert_eq!((event.position, event.record_time), (Position(4), at(100)));
    assert_eq!(
        personal_from(&golden("personal")).unwrap().as_ref(),
        Some(&facts.personal)
    );
    assert_eq!(pass_from(&golden("pass")).unwrap(), (state(), recent()));
    let (read, read_rest) = delivery_from(
        delivery.id,
        delivery.source.clone(),
        None,
        &golden("delivery"),
    )
    .unwrap();
    assert_eq!(read_rest, rest());
    assert_eq!(
        (read.path, read.headers, read.method),
        (
            delivery.path.clone(),
            delivery.headers.clone(),
            delivery.method
        )
    );
}

// Writing still gives the same bytes: digests of states, and so etags, stay.
#[test]
fn blobs_are_written_as_released() {
    for (name, blob) in blobs() {
        let hex: String = blob.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(blob == golden(name), "{name} is now {hex}");
    }
}

#[test]
fn unknown_versions_and_cut_blobs_are_errors() {
    assert_eq!(pass_from(&[]), Err(StoredError::Version(None)));
    assert_eq!(pass_from(&[2, 0]), Err(StoredError::Version(Some(2))));
    for (name, blob) in blobs() {
        let cut = &blob[..blob.len() - 1];
        let fails = match name {
            "event" => event_from(Position(1), EventId::from_bytes([0; 16]), at(0), cut).is_err(),
            "personal" => personal_from(cut).is_err(),
            "delivery" => delivery_from(told().id, told().source, None, cut).is_err(),
            _ => pass_from(cut).is_err(),
        };
        assert!(fails, "{name}");
    }
    assert_eq!(personal_from(&[]), Ok(None));
}

/// Texts of which some need a length of more than one byte.
fn texts() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[a-zé]{1,12}", "[a-z]{100,300}"]
}

fn maps() -> impl Strategy<Value = BTreeMap<String, String>> {
    proptest::collection::btree_map(texts(), texts(), 0..3)
}

fn ids() -> impl Strategy<Value = VendorId> {
    "[a-zA-Z0-9]{1,200}".prop_map(|id| VendorId::new(&id).unwrap())
}

fn times() -> impl Strategy<Value = Timestamp> {
    (-60_000_000_000_i64..200_000_000_000, 0..1_000_000_000)
        .prop_map(|(seconds, nanos)| pass_domain::time::from_parts(seconds, nanos).unwrap())
}

fn refs() -> impl Strategy<Value = Refs> {
    [texts(), texts(), texts(), texts(), texts()].prop_map(
        |[campaign, distribution, class, serial_number, external_id]| Refs {
            campaign,
            distribution,
            class,
            serial_number,
            external_id,
        },
    )
}

prop_compose! {
    fn facts()(
        fact in Just(decoded(&told()).facts[0].clone()),
        pass in ids(),
        vendor_kind in texts(),
        occur_time in times(),
        installation in proptest::option::of(ids()),
        wallet in proptest::option::of([texts(), texts(), texts()]),
        refs in refs(),
        redemption in proptest::option::of((any::<Option<i64>>(), proptest::option::of(times()), texts())),
        attributes in maps(),
        (content_digest, identity_version) in (prop_oneof![Just(0), any::<u64>()], any::<u32>()),
    ) -> Fact {
        Fact {
            pass,
            vendor_kind,
            occur_time,
            installation: installation.map(|id| InstallationRef {
                id,
                scope: pass_domain::fact::InstallationScope::Account,
            }),
            wallet: wallet.map(|[native, device_os, device_app]| Wallet {
                kind: pass_domain::fact::WalletKind::Google,
                native,
                device_os,
                device_app,
            }),
            refs,
            redemption: redemption.map(|(count, time, scanner)| Redemption { count, time, scanner }),
            attributes,
            content_digest,
            identity_version,
            ..fact
        }
    }
}

prop_compose! {
    fn deliveries()(
        [vendor, organization, path, header, value, key_id] in
            [texts(), texts(), texts(), texts(), texts(), texts()],
        [detail, adapter_version, traceparent, note, display_name, control] in
            [texts(), texts(), texts(), texts(), texts(), texts()],
        receive_time in times(),
        facts in proptest::collection::vec(facts(), 0..3),
        [ip_addresses, position] in [maps(), maps()],
        controls in any::<bool>(),
    ) -> Delivery {
        let mut delivery = Delivery {
            vendor,
            organization,
            receive_time,
            path,
            headers: vec![(header, value)],
            adapter_version,
            trace: TraceContext { traceparent, tracestate: String::new() },
            decoded: Decoded::Control { vendor_kind: control },
            ..told()
        };
        delivery.auth.key_id = key_id;
        delivery.auth.detail = detail;
        if !controls {
            delivery.decoded = Decoded::Facts(Box::new(DecodedFacts {
                facts,
                snapshot: None,
                personal: Personal { display_name, ip_addresses, position, ..Personal::default() },
                notes: vec![note],
            }));
        }
        delivery
    }
}

/// True if the derived message reads the blob and writes the same bytes.
fn is_as_derived<M: Message + Default>(blob: &[u8]) -> bool {
    open::<M>(blob).is_ok_and(|message| message.encode_to_vec() == blob[1..])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn states_come_back_whole_and_equal_states_are_equal_bytes(story in make::stories()) {
        for state in story.passes("acme").into_values() {
            let bytes = state_bytes(&state);
            prop_assert_eq!(&messages::PassState::decode(&*bytes).unwrap().encode_to_vec(), &bytes);
            prop_assert!(is_as_derived::<messages::Pass>(&pass_blob(&bytes, &recent())));
            prop_assert_eq!(pass_from(&pass_blob(&bytes, &[])).unwrap(), (state.clone(), vec![]));
            prop_assert_eq!(bytes, state_bytes(&state.clone()));
        }
    }

    // What is written by hand is what the derived messages write, and says what was to be said.
    #[test]
    fn blobs_are_those_of_the_derived_messages(
        delivery in deliveries(),
        counts in any::<[u32; 3]>(),
        body_bytes in any::<u64>(),
        flag in any::<bool>(),
    ) {
        let mut rest = DeliveryRest {
            events: Vec::new(),
            duplicate_facts: counts[0],
            differing_duplicates: counts[1],
            refused_facts: counts[2],
            body_bytes,
        };
        if let Decoded::Facts(facts) = &delivery.decoded {
            for fact in &facts.facts {
                let blob = event_blob(fact, &delivery, &facts.notes, &effect(), flag);
                prop_assert!(is_as_derived::<messages::Event>(&blob));
                let event = event_from(Position(1), fact.id, at(0), &blob).unwrap();
                prop_assert_eq!(&event.fact, fact);
                prop_assert_eq!(&event.auth, &delivery.auth);
                prop_assert_eq!(event.receive_time, delivery.receive_time);
                prop_assert_eq!(event.time_suspect, flag);
                // The second fact of a pass in a row is written without it.
                rest.events.extend([(fact.pass.clone(), fact.id), (fact.pass.clone(), fact.id)]);
            }
            let blob = personal_blob(&facts.personal);
            prop_assert!(blob.is_empty() || is_as_derived::<messages::Personal>(&blob));
            prop_assert_eq!(personal_from(&blob).unwrap().unwrap_or_default(), facts.personal.clone());
        }
        let blob = delivery_blob(&delivery, &rest);
        prop_assert!(is_as_derived::<messages::Delivery>(&blob));
        let (read, read_rest) = delivery_from(delivery.id, delivery.source.clone(), None, &blob).unwrap();
        prop_assert_eq!(read_rest, rest);
        prop_assert_eq!(&read.headers, &delivery.headers);
        if let Decoded::Control { .. } = delivery.decoded {
            prop_assert_eq!(&read.decoded, &delivery.decoded);
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut blob = vec![1];
        blob.extend(bytes);
        let _ = event_from(Position(1), EventId::from_bytes([0; 16]), at(0), &blob);
        let _ = pass_from(&blob);
        let _ = personal_from(&blob);
        let _ = delivery_from(told().id, told().source, None, &blob);
    }
}
