//! The enums, one by one, both ways. Matches name every arm, so that a new word cannot be forgotten.

use pass_domain::delivery::{AuthScheme, Method, Outcome, UndecodableReason};
use pass_domain::fact::{Assertion, IdentityBasis, InstallationScope, TimeBasis, WalletKind};

use crate::v1;

macro_rules! words {
    ($(#[$doc:meta])* $to:ident, $from:ident, $domain:ty, $wire:ty, { $($d:pat => $w:path,)* }, { $($w2:pat => $d2:expr,)* }) => {
        $(#[$doc])*
        #[must_use]
        pub fn $to(word: $domain) -> i32 {
            let word: $wire = match word { $($d => $w,)* };
            word as i32
        }

        /// The way back; `None` for unspecified and unknown numbers.
        #[must_use]
        pub fn $from(number: i32) -> Option<$domain> {
            match <$wire>::try_from(number).ok()? { $($w2 => $d2,)* }
        }
    };
}

words!(
    /// A scheme's number on the wire.
    auth_scheme_to_wire, auth_scheme_from_wire, AuthScheme, v1::AuthScheme,
    {
        AuthScheme::ApiKey => v1::AuthScheme::ApiKey,
        AuthScheme::Hmac => v1::AuthScheme::Hmac,
        AuthScheme::StandardWebhooks => v1::AuthScheme::StandardWebhooks,
        AuthScheme::SignedEnvelope => v1::AuthScheme::SignedEnvelope,
        AuthScheme::UrlSecret => v1::AuthScheme::UrlSecret,
        AuthScheme::None => v1::AuthScheme::None,
    },
    {
        v1::AuthScheme::Unspecified => None,
        v1::AuthScheme::ApiKey => Some(AuthScheme::ApiKey),
        v1::AuthScheme::Hmac => Some(AuthScheme::Hmac),
        v1::AuthScheme::StandardWebhooks => Some(AuthScheme::StandardWebhooks),
        v1::AuthScheme::SignedEnvelope => Some(AuthScheme::SignedEnvelope),
        v1::AuthScheme::UrlSecret => Some(AuthScheme::UrlSecret),
        v1::AuthScheme::None => Some(AuthScheme::None),
    }
);

words!(
    /// An outcome's number on the wire.
    outcome_to_wire, outcome_from_wire, Outcome, v1::DeliveryOutcome,
    {
        Outcome::Applied => v1::DeliveryOutcome::Applied,
        Outcome::Duplicate => v1::DeliveryOutcome::Duplicate,
        Outcome::Quarantined => v1::DeliveryOutcome::Quarantined,
        Outcome::Control => v1::DeliveryOutcome::Control,
    },
    {
        v1::DeliveryOutcome::Unspecified => None,
        v1::DeliveryOutcome::Applied => Some(Outcome::Applied),
        v1::DeliveryOutcome::Duplicate => Some(Outcome::Duplicate),
        v1::DeliveryOutcome::Quarantined => Some(Outcome::Quarantined),
        v1::DeliveryOutcome::Control => Some(Outcome::Control),
    }
);

words!(
    /// A reason's number on the wire.
    reason_to_wire, reason_from_wire, UndecodableReason, v1::UndecodableReason,
    {
        UndecodableReason::NotJson => v1::UndecodableReason::NotJson,
        UndecodableReason::TooDeep => v1::UndecodableReason::TooDeep,
        UndecodableReason::FieldMissing => v1::UndecodableReason::FieldMissing,
        UndecodableReason::FieldInvalid => v1::UndecodableReason::FieldInvalid,
        UndecodableReason::FieldDuplicate => v1::UndecodableReason::FieldDuplicate,
        UndecodableReason::KindUnknown => v1::UndecodableReason::KindUnknown,
        UndecodableReason::ContentMismatch => v1::UndecodableReason::ContentMismatch,
        UndecodableReason::StoreRefused => v1::UndecodableReason::StoreRefused,
    },
    {
        v1::UndecodableReason::Unspecified => None,
        v1::UndecodableReason::NotJson => Some(UndecodableReason::NotJson),
        v1::UndecodableReason::TooDeep => Some(UndecodableReason::TooDeep),
        v1::UndecodableReason::FieldMissing => Some(UndecodableReason::FieldMissing),
        v1::UndecodableReason::FieldInvalid => Some(UndecodableReason::FieldInvalid),
        v1::UndecodableReason::FieldDuplicate => Some(UndecodableReason::FieldDuplicate),
        v1::UndecodableReason::KindUnknown => Some(UndecodableReason::KindUnknown),
        v1::UndecodableReason::ContentMismatch => Some(UndecodableReason::ContentMismatch),
        v1::UndecodableReason::StoreRefused => Some(UndecodableReason::StoreRefused),
    }
);

words!(
    /// An assertion's number on the wire.
    assertion_to_wire, assertion_from_wire, Assertion, v1::EventAssertion,
    {
        Assertion::Reported => v1::EventAssertion::Reported,
        Assertion::Derived => v1::EventAssertion::Derived,
    },
    {
        v1::EventAssertion::Unspecified => None,
        v1::EventAssertion::Reported => Some(Assertion::Reported),
        v1::EventAssertion::Derived => Some(Assertion::Derived),
    }
);

words!(
    /// A time basis' number on the wire.
    time_basis_to_wire, time_basis_from_wire, TimeBasis, v1::OccurTimeBasis,
    {
        TimeBasis::VendorEvent => v1::OccurTimeBasis::VendorEvent,
        TimeBasis::VendorState => v1::OccurTimeBasis::VendorState,
        TimeBasis::Received => v1::OccurTimeBasis::Received,
    },
    {
        v1::OccurTimeBasis::Unspecified => None,
        v1::OccurTimeBasis::VendorEvent => Some(TimeBasis::VendorEvent),
        v1::OccurTimeBasis::VendorState => Some(TimeBasis::VendorState),
        v1::OccurTimeBasis::Received => Some(TimeBasis::Received),
    }
);

words!(
    /// An identity basis' number on the wire.
    identity_basis_to_wire, identity_basis_from_wire, IdentityBasis, v1::IdentityBasis,
    {
        IdentityBasis::VendorId => v1::IdentityBasis::VendorId,
        IdentityBasis::TransitionTime => v1::IdentityBasis::TransitionTime,
        IdentityBasis::EventFields => v1::IdentityBasis::EventFields,
        IdentityBasis::Content => v1::IdentityBasis::Content,
        IdentityBasis::Heuristic => v1::IdentityBasis::Heuristic,
    },
    {
        v1::IdentityBasis::Unspecified => None,
        v1::IdentityBasis::VendorId => Some(IdentityBasis::VendorId),
        v1::IdentityBasis::TransitionTime => Some(IdentityBasis::TransitionTime),
        v1::IdentityBasis::EventFields => Some(IdentityBasis::EventFields),
        v1::IdentityBasis::Content => Some(IdentityBasis::Content),
        v1::IdentityBasis::Heuristic => Some(IdentityBasis::Heuristic),
    }
);

words!(
    /// A scope's number on the wire.
    scope_to_wire, scope_from_wire, InstallationScope, v1::InstallationScope,
    {
        InstallationScope::Registration => v1::InstallationScope::Registration,
        InstallationScope::Device => v1::InstallationScope::Device,
        InstallationScope::Account => v1::InstallationScope::Account,
    },
    {
        v1::InstallationScope::Unspecified => None,
        v1::InstallationScope::Registration => Some(InstallationScope::Registration),
        v1::InstallationScope::Device => Some(InstallationScope::Device),
        v1::InstallationScope::Account => Some(InstallationScope::Account),
    }
);

words!(
    /// A wallet's number on the wire.
    wallet_to_wire, wallet_from_wire, WalletKind, v1::WalletKind,
    {
        WalletKind::Apple => v1::WalletKind::Apple,
        WalletKind::Google => v1::WalletKind::Google,
        WalletKind::Samsung => v1::WalletKind::Samsung,
        WalletKind::Huawei => v1::WalletKind::Huawei,
        WalletKind::WalletPasses => v1::WalletKind::WalletPasses,
        WalletKind::Pass2u => v1::WalletKind::Pass2u,
        WalletKind::PassWallet => v1::WalletKind::PassWallet,
        WalletKind::Vendor => v1::WalletKind::Vendor,
        WalletKind::AndroidOther => v1::WalletKind::AndroidOther,
        WalletKind::Unknown => v1::WalletKind::Unknown,
    },
    {
        v1::WalletKind::Unspecified => None,
        v1::WalletKind::Apple => Some(WalletKind::Apple),
        v1::WalletKind::Google => Some(WalletKind::Google),
        v1::WalletKind::Samsung => Some(WalletKind::Samsung),
        v1::WalletKind::Huawei => Some(WalletKind::Huawei),
        v1::WalletKind::WalletPasses => Some(WalletKind::WalletPasses),
        v1::WalletKind::Pass2u => Some(WalletKind::Pass2u),
        v1::WalletKind::PassWallet => Some(WalletKind::PassWallet),
        v1::WalletKind::Vendor => Some(WalletKind::Vendor),
        v1::WalletKind::AndroidOther => Some(WalletKind::AndroidOther),
        v1::WalletKind::Unknown => Some(WalletKind::Unknown),
    }
);

/// The method with that name.
pub(super) fn method_from_wire(name: &str) -> Option<Method> {
    [Method::Post, Method::Put, Method::Delete]
        .into_iter()
        .find(|method| method.name() == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pass_domain::fold::State;
    use pass_domain::kind::Kind;

    #[test]
    fn kinds_and_states_have_the_same_numbers_and_names_on_the_wire() {
        for kind in Kind::ALL {
            let wire = v1::EventKind::try_from(kind.number()).expect("known");
            assert_eq!(wire.as_str_name(), format!("EVENT_KIND_{}", kind.name()));
        }
        assert!(
            v1::EventKind::try_from(Kind::ALL.len() as i32 + 1).is_err(),
            "a kind of the wire is not in the domain"
        );
        for state in State::ALL {
            let wire = v1::PassState::try_from(state.number()).expect("known");
            assert_eq!(wire.as_str_name(), format!("PASS_STATE_{}", state.name()));
        }
        for reason in UndecodableReason::ALL {
            let wire = v1::UndecodableReason::try_from(reason_to_wire(reason)).expect("known");
            assert_eq!(
                wire.as_str_name(),
                format!("UNDECODABLE_REASON_{}", reason.name())
            );
            assert_eq!(reason_from_wire(wire as i32), Some(reason));
        }
        for outcome in Outcome::ALL {
            let wire = v1::DeliveryOutcome::try_from(outcome_to_wire(outcome)).expect("known");
            assert_eq!(
                wire.as_str_name(),
                format!("DELIVERY_OUTCOME_{}", outcome.name())
            );
            assert_eq!(outcome_from_wire(wire as i32), Some(outcome));
        }
    }

    #[test]
    fn unspecified_is_no_word() {
        assert_eq!(auth_scheme_from_wire(0), None);
        assert_eq!(wallet_from_wire(0), None);
        assert_eq!(outcome_from_wire(99), None);
    }
}
