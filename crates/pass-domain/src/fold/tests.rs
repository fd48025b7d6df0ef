use proptest::prelude::*;

use super::*;
use crate::fact::{Assertion, IdentityBasis, InstallationRef, VendorStatus};
use crate::time::from_parts;

fn at(seconds: i64) -> Timestamp {
    from_parts(1_600_000_000 + seconds, 0).expect("in range")
}

fn fact(kind: Kind, seconds: i64, installation: Option<&str>) -> Fact {
    let mut id = [0_u8; 16];
    id[0] = kind as u8;
    id[1..9].copy_from_slice(&seconds.to_be_bytes());
    id[9] = installation.map_or(0, |text| text.as_bytes()[0]);
    Fact {
        id: EventId::from_bytes(id),
        identity_version: 1,
        identity_basis: IdentityBasis::EventFields,
        pass: VendorId::new("p").expect("valid"),
        kind,
        vendor_kind: String::new(),
        assertion: Assertion::Reported,
        occur_time: at(seconds),
        time_basis: TimeBasis::VendorEvent,
        installation: installation.map(|id| InstallationRef {
            id: VendorId::new(id).expect("valid"),
            scope: InstallationScope::Registration,
        }),
        wallet: None,
        refs: Refs::default(),
        redemption: None,
        attributes: BTreeMap::new(),
        content_digest: 0,
    }
}

fn snapshot(seconds: i64, voided: Option<bool>) -> Snapshot {
    Snapshot {
        pass: VendorId::new("p").expect("valid"),
        update_time: at(seconds),
        content_digest: u64::from(voided == Some(true)),
        voided,
        redeemed_count: None,
        vendor_status: Some(VendorStatus::default()),
        create_time: None,
        refs: Refs::default(),
    }
}

/// Folds the facts given in any order and checks state and number of open installations.
#[track_caller]
fn check(facts: &[(Kind, i64, Option<&str>)], state: State, open: usize) -> PassState {
    let facts: Vec<Fact> = facts
        .iter()
        .map(|&(kind, seconds, id)| fact(kind, seconds, id))
        .collect();
    let pass = PassState {
        fold: Fold::from_facts(&facts),
        snapshot: None,
    };
    assert_eq!(pass.state(), state);
    assert_eq!(pass.fold.open_installations().count(), open);
    pass
}

#[test]
fn the_state_table_holds() {
    use Kind::*;
    check(&[], State::Unknown, 0);
    check(&[(Fetched, 1, None)], State::Unknown, 0);
    check(&[(Created, 1, None)], State::Created, 0);
    check(
        &[(Created, 1, None), (Downloaded, 2, None)],
        State::Downloaded,
        0,
    );
    check(
        &[(Created, 1, None), (Installed, 2, None)],
        State::Installed,
        1,
    );
    check(
        &[(Installed, 2, None), (Uninstalled, 3, None)],
        State::Uninstalled,
        0,
    );
    check(&[(Uninstalled, 3, None)], State::Uninstalled, 0);
    check(&[(Installed, 2, None), (Voided, 3, None)], State::Voided, 1);
    check(
        &[(Installed, 2, None), (Expired, 3, None)],
        State::Expired,
        1,
    );
    check(
        &[
            (Installed, 2, None),
            (Voided, 3, None),
            (Reinstated, 4, None),
        ],
        State::Installed,
        1,
    );
    check(
        &[(Installed, 2, None), (Deleted, 1, None)],
        State::Deleted,
        1,
    );
    check(
        &[
            (Deleted, 1, None),
            (Reinstated, 4, None),
            (Created, 9, None),
        ],
        State::Deleted,
        0,
    );
}

#[test]
fn uninstall_at_the_same_instant_follows_install() {
    check(
        &[
            (Kind::Uninstalled, 5, Some("a")),
            (Kind::Installed, 5, Some("a")),
        ],
        State::Uninstalled,
        0,
    );
}

#[test]
fn late_install_does_not_reopen_its_installation() {
    check(
        &[
            (Kind::Uninstalled, 5, Some("a")),
            (Kind::Installed, 4, Some("a")),
        ],
        State::Uninstalled,
        0,
    );
    check(
        &[(Kind::Uninstalled, 5, None), (Kind::Installed, 4, None)],
        State::Uninstalled,
        0,
    );
}

#[test]
fn uninstall_with_an_id_closes_only_that_installation() {
    let pass = check(
        &[
            (Kind::Installed, 1, Some("a")),
            (Kind::Installed, 2, Some("b")),
            (Kind::Uninstalled, 3, Some("a")),
        ],
        State::Installed,
        1,
    );
    assert_eq!(
        pass.fold
            .open_installations()
            .next()
            .expect("open")
            .as_str(),
        "b"
    );
    assert!(!pass.fold.installations_uncertain);
}

#[test]
fn uninstall_without_an_id_closes_the_only_open_one() {
    let pass = check(
        &[
            (Kind::Installed, 1, Some("a")),
            (Kind::Uninstalled, 3, None),
        ],
        State::Uninstalled,
        0,
    );
    assert!(!pass.fold.installations_uncertain);
}

#[test]
fn uninstall_without_an_id_among_several_closes_the_oldest_and_says_so() {
    let pass = check(
        &[
            (Kind::Installed, 1, Some("a")),
            (Kind::Installed, 2, Some("b")),
            (Kind::Uninstalled, 3, Some("a")),
            (Kind::Installed, 4, Some("a")),
            (Kind::Uninstalled, 5, None),
        ],
        State::Installed,
        1,
    );
    assert_eq!(
        pass.fold
            .open_installations()
            .next()
            .expect("open")
            .as_str(),
        "a",
        "b was opened first"
    );
    assert!(pass.fold.installations_uncertain);
}

#[test]
fn a_token_refresh_that_looks_like_an_install_opens_nothing_new() {
    let pass = check(
        &[(Kind::Installed, 1, None), (Kind::Installed, 9, None)],
        State::Installed,
        1,
    );
    assert_eq!(pass.fold.installations[0].open_time, Some(at(1)));
}

#[test]
fn fetch_update_and_redeem_never_change_installation() {
    use Kind::*;
    for kind in [
        Fetched,
        Updated,
        Redeemed,
        Scanned,
        Viewed,
        Personalized,
        RegistrationRefreshed,
        Other,
    ] {
        check(
            &[
                (Installed, 1, None),
                (Uninstalled, 2, None),
                (kind, 3, None),
            ],
            State::Uninstalled,
            0,
        );
        check(
            &[(Installed, 1, None), (kind, 3, None)],
            State::Installed,
            1,
        );
    }
}

#[test]
fn transitions_close_together_by_different_clocks_are_ambiguous() {
    let pair = |seconds, basis| {
        let mut second = fact(Kind::Uninstalled, seconds, Some("a"));
        second.time_basis = basis;
        Fold::from_facts(&[fact(Kind::Installed, 0, Some("a")), second]).order_ambiguous
    };
    assert!(pair(300, TimeBasis::Received));
    assert!(!pair(301, TimeBasis::Received));
    assert!(!pair(300, TimeBasis::VendorEvent));
}

#[test]
fn a_later_snapshot_overrules_voiding_and_an_earlier_one_does_not() {
    let mut pass = check(
        &[(Kind::Created, 1, None), (Kind::Voided, 5, None)],
        State::Voided,
        0,
    );
    pass.merge_snapshot(&snapshot(4, Some(false)));
    assert_eq!(pass.state(), State::Voided);
    pass.merge_snapshot(&snapshot(6, Some(false)));
    assert_eq!(pass.state(), State::Created);
    pass.merge_snapshot(&snapshot(7, Some(true)));
    assert_eq!(pass.state(), State::Voided);
    assert!(
        !pass.merge_snapshot(&snapshot(6, Some(false))),
        "an older snapshot changes nothing"
    );
    assert_eq!(pass.state(), State::Voided);
}

#[test]
fn installations_are_bounded_and_the_oldest_closed_one_is_forgotten() {
    let mut facts = Vec::new();
    for number in 0..INSTALLATIONS_MAX + 3 {
        let mut install = fact(
            Kind::Installed,
            i64::try_from(number).expect("small"),
            Some("x"),
        );
        install.installation.as_mut().expect("set").id =
            VendorId::new(&format!("i{number}")).expect("valid");
        facts.push(install);
    }
    let fold = Fold::from_facts(&facts);
    assert_eq!(fold.installations.len(), INSTALLATIONS_MAX);
    assert!(fold.installations_uncertain);
}

#[test]
fn what_surrounds_a_repeated_transition_time_does_not_reach_the_fold() {
    let told = |basis| {
        let mut fact = fact(Kind::Installed, 1, None);
        fact.identity_basis = basis;
        fact.refs.external_id = "e".into();
        fact.wallet = Some(Wallet {
            kind: crate::fact::WalletKind::Apple,
            native: String::new(),
            device_os: String::new(),
            device_app: String::new(),
        });
        Fold::from_facts([&fact])
    };
    let from_state = told(IdentityBasis::TransitionTime);
    assert_eq!(from_state.refs, Refs::default());
    assert_eq!(from_state.installations[0].wallet, None);
    let from_event = told(IdentityBasis::EventFields);
    assert_eq!(from_event.refs.external_id, "e");
    assert!(from_event.installations[0].wallet.is_some());
}

fn any_fact() -> impl Strategy<Value = Fact> {
    let kinds = proptest::sample::select(Kind::ALL.to_vec());
    let ids = proptest::sample::select(vec![None, Some("a"), Some("b"), Some("c")]);
    (kinds, -400_i64..400, ids, 0_u8..3).prop_map(|(kind, seconds, id, basis)| {
        let mut fact = fact(kind, seconds, id);
        fact.time_basis = [
            TimeBasis::VendorEvent,
            TimeBasis::VendorState,
            TimeBasis::Received,
        ][usize::from(basis)];
        let mut bytes = *fact.id.as_bytes();
        bytes[10] = basis;
        fact.id = EventId::from_bytes(bytes);
        fact
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn arrival_order_and_repetition_do_not_matter(
        facts in proptest::collection::vec(any_fact(), 0..24),
        arrival in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let mut set: BTreeMap<EventId, Fact> = BTreeMap::new();
        for fact in &facts {
            set.insert(fact.id, fact.clone());
        }
        let whole = Fold::from_facts(set.values());
        // Arrive as told by the indexes, then whatever is missing; known ids are dropped, late ones refold.
        let distinct: Vec<&Fact> = set.values().collect();
        let mut seen: BTreeMap<EventId, Fact> = BTreeMap::new();
        let mut fold = Fold::default();
        let order = arrival.iter().filter(|_| !distinct.is_empty()).map(|index| *index.get(&distinct)).chain(distinct.iter().copied());
        for fact in order {
            if seen.insert(fact.id, fact.clone()).is_some() {
                continue;
            }
            if fold.is_late(fact) {
                fold = Fold::from_facts(seen.values());
            } else {
                fold.apply(fact);
            }
        }
        prop_assert_eq!(fold, whole);
    }

    #[test]
    fn snapshots_merge_in_any_order(times in proptest::collection::vec((0_i64..6, any::<Option<bool>>()), 0..8)) {
        let mut forward = PassState::default();
        let mut backward = PassState::default();
        for (seconds, voided) in &times {
            forward.merge_snapshot(&snapshot(*seconds, *voided));
        }
        for (seconds, voided) in times.iter().rev() {
            backward.merge_snapshot(&snapshot(*seconds, *voided));
        }
        // A digest identifies content: equal (time, digest) with other content cannot happen outside this test.
        let key = |pass: &PassState| pass.snapshot.as_ref().map(|s| (s.update_time, s.content_digest));
        prop_assert_eq!(key(&forward), key(&backward));
    }
}
