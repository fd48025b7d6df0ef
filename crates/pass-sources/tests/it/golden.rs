//! What every sample decodes to, as text that is reviewed. After an intended change copy the file that the
//! failure names over the golden one. Ids must never change without a new identity version.

use std::fmt::Write as _;

use pass_domain::delivery::DecodedFacts;
use pass_sources::samples;

use crate::support::*;

fn describe(decoded: &DecodedFacts) -> String {
    let mut text = String::new();
    for fact in &decoded.facts {
        let _ = writeln!(
            text,
            "  {} {:?} at {} ({:?})\n    id {} by {:?}, content {:016x}\n    pass {} as {:?}",
            fact.kind.name(),
            fact.assertion,
            fact.occur_time,
            fact.time_basis,
            fact.id,
            fact.identity_basis,
            fact.content_digest,
            fact.pass,
            fact.vendor_kind,
        );
        if let Some(installation) = &fact.installation {
            let _ = writeln!(
                text,
                "    installation {} ({:?})",
                installation.id, installation.scope
            );
        }
        if let Some(wallet) = &fact.wallet {
            let _ = writeln!(
                text,
                "    wallet {:?} native {:?} os {:?} app {:?}",
                wallet.kind, wallet.native, wallet.device_os, wallet.device_app
            );
        }
        if let Some(redemption) = &fact.redemption {
            let _ = writeln!(
                text,
                "    redemption count {:?} at {:?} by {:?}",
                redemption.count,
                redemption.time.map(|t| t.to_string()),
                redemption.scanner
            );
        }
        let refs = &fact.refs;
        let _ = writeln!(
            text,
            "    refs {:?} {:?} {:?} {:?} {:?}",
            refs.campaign, refs.distribution, refs.class, refs.serial_number, refs.external_id
        );
        for (name, value) in &fact.attributes {
            let _ = writeln!(text, "    {name} = {value:?}");
        }
    }
    if let Some(snapshot) = &decoded.snapshot {
        let _ = writeln!(
            text,
            "  snapshot of {} at {}, created {:?}, voided {:?}, redeemed {:?}, content {:016x}",
            snapshot.pass,
            snapshot.update_time,
            snapshot.create_time.map(|t| t.to_string()),
            snapshot.voided,
            snapshot.redeemed_count,
            snapshot.content_digest,
        );
        if let Some(status) = &snapshot.vendor_status {
            let _ = writeln!(
                text,
                "    status {:?} {} {:?}",
                status.number, status.name, status.attained
            );
        }
    }
    let personal = &decoded.personal;
    if !personal.is_empty() {
        let _ = writeln!(
            text,
            "  personal {:?} {:?}",
            personal.display_name, personal.email_address
        );
        for map in [
            &personal.ip_addresses,
            &personal.user_agents,
            &personal.position,
            &personal.attributes,
        ] {
            for (name, value) in map {
                let _ = writeln!(text, "    {name} = {value:?}");
            }
        }
    }
    let _ = writeln!(text, "  notes {:?}", decoded.notes);
    text
}

fn check(vendor: &str, golden: &str) {
    let mut text = String::new();
    for sample in samples::of_vendor(vendor) {
        let body = if vendor == "signed_envelope" {
            pass_sources::sign_envelope(sample.body, SECRET.as_bytes())
        } else {
            sample.body.as_bytes().to_vec()
        };
        let decoded = facts(decode_as(vendor, &http_method(sample.method), &body));
        let _ = writeln!(
            text,
            "{} {}\n{}",
            sample.method.name(),
            sample.name,
            describe(&decoded)
        );
    }
    if text != golden {
        let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{vendor}.txt"));
        std::fs::write(&path, &text).unwrap();
        panic!(
            "the facts of {vendor}'s samples differ from tests/golden/{vendor}.txt; they are now in {}",
            path.display()
        );
    }
}

#[test]
fn passworks_samples_decode_to_their_golden_facts() {
    check("passworks", include_str!("../golden/passworks.txt"));
}

#[test]
fn passkit_samples_decode_to_their_golden_facts() {
    check("passkit", include_str!("../golden/passkit.txt"));
}

#[test]
fn signed_envelope_samples_decode_to_their_golden_facts() {
    check(
        "signed_envelope",
        include_str!("../golden/signed_envelope.txt"),
    );
}

#[test]
fn standard_samples_decode_to_their_golden_facts() {
    check("standard", include_str!("../golden/standard.txt"));
}

#[test]
fn samples_are_found_by_name_and_every_vendor_has_some() {
    for sample in samples::SAMPLES {
        assert_eq!(
            samples::find(sample.vendor, sample.name).unwrap().body,
            sample.body
        );
        assert!(source(sample.vendor).methods().contains(&sample.method));
    }
    for vendor in ["passworks", "passkit", "signed_envelope", "standard"] {
        assert!(samples::of_vendor(vendor).count() >= 2, "{vendor}");
    }
}
