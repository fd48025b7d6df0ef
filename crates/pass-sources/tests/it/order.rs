//! What deliveries add up to, folded as a store folds them: in any order, repeated, with some lost.

use pass_domain::delivery::DecodedFacts;
use pass_domain::fact::{Assertion, Fact};
use pass_domain::fold::{Fold, PassState, State};
use pass_domain::kind::Kind;
use proptest::prelude::*;
use serde_json::json;

use crate::passkit::{UNINSTALL, metadata, plain, seconds, with};
use crate::support::*;

/// The state after deliveries in this order, the way a store builds it: known ids add nothing.
fn state(deliveries: &[DecodedFacts]) -> PassState {
    let mut known: Vec<Fact> = Vec::new();
    let mut pass = PassState::default();
    for delivery in deliveries {
        for fact in &delivery.facts {
            if !known.iter().any(|earlier| earlier.id == fact.id) {
                known.push(fact.clone());
            }
        }
        if let Some(snapshot) = &delivery.snapshot {
            pass.merge_snapshot(snapshot);
        }
    }
    pass.fold = Fold::from_facts(&known);
    pass
}

/// Quirk 13.
#[test]
fn a_pass_that_was_removed_and_installed_again_is_installed() {
    let again = with("installed", |v| {
        *metadata(v) = json!({
            "status": 1, "lifecycleEvents": [1, 2, 1024],
            "issueAt": seconds(1_608_644_518), "firstInstalledAt": seconds(1_608_644_748),
            "firstUninstalledAt": seconds(1_608_645_679), "lastUninstalledAt": seconds(1_608_645_679),
            "lastInstalledAt": seconds(1_608_700_000)
        });
    });
    assert_eq!(of_kind(&again, Kind::Installed).len(), 2);
    let attained = again
        .snapshot
        .clone()
        .unwrap()
        .vendor_status
        .unwrap()
        .attained;
    assert_eq!(
        attained,
        ["INSTALLED_APPLE", "RENDERED", "UNINSTALLED_APPLE"]
    );
    assert_eq!(state(&[again]).state(), State::Installed);
}

/// Quirk 15.
#[test]
fn a_token_refresh_moves_the_last_install_and_installs_nothing() {
    let installed = plain("installed");
    let refreshed = with("installed", |v| {
        metadata(v)["lastInstalledAt"] = seconds(1_608_900_000)
    });
    let installs = of_kind(&refreshed, Kind::Installed);
    assert_eq!(installs.len(), 2);
    assert_eq!(installs[0].id, only(&installed, Kind::Installed).id);
    assert_eq!(
        (installs[0].assertion, installs[1].assertion),
        (Assertion::Derived, Assertion::Reported)
    );
    let folded = state(&[installed.clone(), refreshed]);
    assert_eq!(folded.fold.open_installations().count(), 1);
    assert_eq!(
        folded.fold.installations[0].open_time,
        state(&[installed]).fold.installations[0].open_time
    );
}

/// Quirk 21.
#[test]
fn a_deleted_record_is_not_a_removal_from_a_wallet() {
    let deleted = with("record_deleted", |v| {
        for name in ["firstUninstalledAt", "lastUninstalledAt"] {
            remove(v, &format!("/pass/metadata/{name}"));
        }
    });
    assert!(of_kind(&deleted, Kind::Uninstalled).is_empty());
    let folded = state(&[deleted]);
    assert_eq!(folded.fold.open_installations().count(), 1);
    assert_eq!(folded.state(), State::Deleted);
}

#[test]
fn an_invalidated_pass_is_voided_at_its_time() {
    let voided = plain("invalidated");
    let fact = only(&voided, Kind::Voided);
    assert_eq!(
        (fact.assertion, fact.occur_time),
        (Assertion::Reported, at("2020-12-22T15:13:20.005Z"))
    );
    assert_eq!(state(&[voided]).state(), State::Voided);
}

/// A PassKit pass that is installed, refreshed, removed, installed again and invalidated.
fn passkit_life() -> Vec<DecodedFacts> {
    let mut life: Vec<DecodedFacts> = [
        "record_created",
        "installed",
        "record_updated",
        UNINSTALL,
        "uninstalled",
        "invalidated",
    ]
    .iter()
    .map(|name| plain(name))
    .collect();
    life.push(with("installed", |v| {
        metadata(v)["lastInstalledAt"] = seconds(1_608_645_000)
    }));
    life.push(with(UNINSTALL, |v| {
        v["event"] = json!("PASS_EVENT_INSTALLED");
        metadata(v)["status"] = json!(1);
        metadata(v)["lastInstalledAt"] = seconds(1_608_646_000);
    }));
    life
}

/// A Passworks pass on two devices, one of which loses it.
fn passworks_life() -> Vec<DecodedFacts> {
    let names = [
        "created",
        "downloaded",
        "installed_rev2016-08",
        "fetched",
        "redeemed",
        "uninstalled",
    ];
    let mut life: Vec<DecodedFacts> = names
        .iter()
        .map(|name| facts(decode("passworks", sample("passworks", name))))
        .collect();
    life.push(facts(decode(
        "passworks",
        edited("passworks", "installed_rev2016-08", |v| {
            v["event_extra"]["registration_id"] = json!("second");
            v["event_at"] = json!("2016-08-13T00:00:00Z");
        }),
    )));
    life.push(facts(decode(
        "passworks",
        edited("passworks", "redeemed", |v| {
            v["voided"] = json!(false);
            v["redeemed_count"] = json!(0);
            v["event_at"] = json!("2016-08-15T00:00:00Z");
            v["updated_at"] = json!("2016-08-15T00:00:00Z");
        }),
    )));
    life
}

/// Delivers in an order given by indices, with repetitions; what that leaves out comes last.
fn reordered(life: &[DecodedFacts], order: &[usize]) -> Vec<DecodedFacts> {
    let rest = (0..life.len()).filter(|at| !order.contains(at));
    order
        .iter()
        .copied()
        .chain(rest)
        .map(|at| life[at].clone())
        .collect()
}

#[test]
fn a_passworks_pass_is_installed_while_one_device_has_it() {
    let folded = state(&passworks_life());
    assert_eq!(folded.state(), State::Installed);
    let open: Vec<&str> = folded
        .fold
        .open_installations()
        .map(|key| key.as_str())
        .collect();
    assert_eq!(open, ["second"]);
    assert_eq!(
        (folded.voided(), folded.redeemed_count()),
        (false, 0),
        "the vendor took the redemption back"
    );
}

proptest! {
    /// Guarantee 4, through the adapters: any order and repetition of deliveries gives one state.
    #[test]
    fn the_state_depends_on_the_set_of_deliveries_only(order in proptest::collection::vec(0..8_usize, 0..24)) {
        for life in [passkit_life(), passworks_life()] {
            prop_assert_eq!(life.len(), 8);
            prop_assert_eq!(state(&life), state(&reordered(&life, &order)));
        }
    }
}
