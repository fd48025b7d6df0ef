//! The names that filters use for enums: those of the protos, without the prefix.

use pass_domain::fold::State;
use pass_domain::kind::Kind;

/// Names and numbers of an enum, as a filter's schema wants them.
pub(super) type Words = &'static [(&'static str, i32)];

const KIND_TABLE: [(&str, i32); Kind::ALL.len()] = {
    let mut table = [("", 0); Kind::ALL.len()];
    let mut at = 0;
    while at < table.len() {
        table[at] = (Kind::ALL[at].name(), Kind::ALL[at].number());
        at += 1;
    }
    table
};

const STATE_TABLE: [(&str, i32); State::ALL.len()] = {
    let mut table = [("", 0); State::ALL.len()];
    let mut at = 0;
    while at < table.len() {
        table[at] = (State::ALL[at].name(), State::ALL[at].number());
        at += 1;
    }
    table
};

pub(super) const KINDS: Words = &KIND_TABLE;
pub(super) const STATES: Words = &STATE_TABLE;
pub(super) const ASSERTIONS: Words = &[("REPORTED", 1), ("DERIVED", 2)];
pub(super) const IDENTITY_BASES: Words = &[
    ("VENDOR_ID", 1),
    ("TRANSITION_TIME", 2),
    ("EVENT_FIELDS", 3),
    ("CONTENT", 4),
    ("HEURISTIC", 5),
];
pub(super) const WALLETS: Words = &[
    ("APPLE", 1),
    ("GOOGLE", 2),
    ("SAMSUNG", 3),
    ("HUAWEI", 4),
    ("WALLET_PASSES", 5),
    ("PASS2U", 6),
    ("PASS_WALLET", 7),
    ("VENDOR", 8),
    ("ANDROID_OTHER", 9),
    ("UNKNOWN", 10),
];
pub(super) const OUTCOMES: Words = &[
    ("APPLIED", 1),
    ("DUPLICATE", 2),
    ("QUARANTINED", 3),
    ("CONTROL", 4),
];
pub(super) const QUARANTINES: Words = &[("OPEN", 1), ("REPLAYED", 2), ("DISCARDED", 3)];
pub(super) const REASONS: Words = &[
    ("NOT_JSON", 1),
    ("TOO_DEEP", 2),
    ("FIELD_MISSING", 3),
    ("FIELD_INVALID", 4),
    ("FIELD_DUPLICATE", 5),
    ("KIND_UNKNOWN", 6),
    ("CONTENT_MISMATCH", 7),
    ("STORE_REFUSED", 8),
];
pub(super) const AUTH_SCHEMES: Words = &[
    ("API_KEY", 1),
    ("HMAC", 2),
    ("STANDARD_WEBHOOKS", 3),
    ("SIGNED_ENVELOPE", 4),
    ("URL_SECRET", 5),
    ("NONE", 6),
];

/// The name of a number.
pub(super) fn name(words: Words, number: i32) -> &'static str {
    words
        .iter()
        .find(|(_, known)| *known == number)
        .map_or("", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_words_are_those_of_the_protos() {
        let set = FileDescriptorSet::decode(pass_proto::DESCRIPTORS).unwrap();
        let enums = || set.file.iter().flat_map(|file| &file.enum_type);
        for (name, prefix, words) in [
            ("EventKind", "EVENT_KIND_", KINDS),
            ("PassState", "PASS_STATE_", STATES),
            ("EventAssertion", "EVENT_ASSERTION_", ASSERTIONS),
            ("IdentityBasis", "IDENTITY_BASIS_", IDENTITY_BASES),
            ("WalletKind", "WALLET_KIND_", WALLETS),
            ("DeliveryOutcome", "DELIVERY_OUTCOME_", OUTCOMES),
            ("QuarantineState", "QUARANTINE_STATE_", QUARANTINES),
            ("UndecodableReason", "UNDECODABLE_REASON_", REASONS),
            ("AuthScheme", "AUTH_SCHEME_", AUTH_SCHEMES),
        ] {
            let found = enums().find(|one| one.name() == name).unwrap();
            let wire: Vec<(&str, i32)> = found
                .value
                .iter()
                .filter(|value| value.number() != 0)
                .map(|value| (value.name().strip_prefix(prefix).unwrap(), value.number()))
                .collect();
            assert_eq!(words, wire, "{name}");
        }
    }
}
