//! What the store refuses to record as facts, whichever database is behind it.
//!
//! Gateways keep these bounds; a delivery that breaks one comes from a broken or foreign peer. It goes to
//! quarantine, so that nothing is lost and the stream goes on.

use pass_domain::delivery::DecodedFacts;
use pass_domain::fact::{Fact, Refs};
use pass_domain::limits::{
    ATTRIBUTE_NAME_BYTES_MAX, ATTRIBUTES_MAX, FACTS_PER_DELIVERY_MAX, NOTES_MAX, TEXT_BYTES_MAX,
};

/// Why the facts are refused, if they are; never repeats content.
pub(super) fn refusal(facts: &DecodedFacts) -> Option<String> {
    if facts.facts.len() > FACTS_PER_DELIVERY_MAX {
        return Some(format!(
            "facts: {} of them; at most {FACTS_PER_DELIVERY_MAX} are taken",
            facts.facts.len()
        ));
    }
    if facts.notes.len() > NOTES_MAX {
        return Some(format!(
            "notes: {} of them; at most {NOTES_MAX} are taken",
            facts.notes.len()
        ));
    }
    let field = facts
        .facts
        .iter()
        .find_map(refused_field)
        .or_else(|| {
            facts
                .snapshot
                .as_ref()
                .and_then(|snapshot| refused_ref(&snapshot.refs))
        })
        .or_else(|| {
            facts
                .notes
                .iter()
                .any(|note| note.len() > TEXT_BYTES_MAX)
                .then_some("notes")
        })?;
    Some(format!(
        "{field}: too long or too many; cut it in the adapter"
    ))
}

fn refused_field(fact: &Fact) -> Option<&'static str> {
    if fact.vendor_kind.len() > TEXT_BYTES_MAX {
        return Some("vendor_kind");
    }
    if let Some(wallet) = &fact.wallet
        && [&wallet.native, &wallet.device_os, &wallet.device_app]
            .into_iter()
            .any(|text| text.len() > TEXT_BYTES_MAX)
    {
        return Some("wallet");
    }
    if fact
        .redemption
        .as_ref()
        .is_some_and(|redemption| redemption.scanner.len() > TEXT_BYTES_MAX)
    {
        return Some("redemption.scanner");
    }
    if fact.attributes.len() > ATTRIBUTES_MAX
        || fact.attributes.iter().any(|(name, value)| {
            name.len() > ATTRIBUTE_NAME_BYTES_MAX || value.len() > TEXT_BYTES_MAX
        })
    {
        return Some("attributes");
    }
    refused_ref(&fact.refs)
}

fn refused_ref(refs: &Refs) -> Option<&'static str> {
    [
        ("refs.campaign", &refs.campaign),
        ("refs.distribution", &refs.distribution),
        ("refs.class", &refs.class),
        ("refs.serial_number", &refs.serial_number),
        ("refs.external_id", &refs.external_id),
    ]
    .into_iter()
    .find_map(|(field, text)| (text.len() > TEXT_BYTES_MAX).then_some(field))
}
