//! The words for what can happen to a pass.

/// What happened to a pass. A vendor's word that maps to none of these is [`Kind::Other`] if the adapter
/// knows it, and goes to quarantine if it does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// The vendor made the pass.
    Created = 1,
    /// Somebody looked at the pass or its landing page.
    Viewed = 2,
    /// The pass file was delivered to a device, not yet into a wallet.
    Downloaded = 3,
    /// The pass was put into a wallet.
    Installed = 4,
    /// A device that already had the pass registered again (for example with a new push token).
    RegistrationRefreshed = 5,
    /// A device fetched the current version of the pass.
    Fetched = 6,
    /// The vendor changed the pass's content.
    Updated = 7,
    /// The pass was redeemed.
    Redeemed = 8,
    /// The pass was scanned without being redeemed.
    Scanned = 9,
    /// The holder gave personal details for the pass.
    Personalized = 10,
    /// The pass is no longer in a wallet, or can no longer be updated there (vendors cannot tell these apart).
    Uninstalled = 11,
    /// The pass was made invalid.
    Voided = 12,
    /// A voided or expired pass was made valid again.
    Reinstated = 13,
    /// The pass ran out.
    Expired = 14,
    /// The vendor's record of the pass is gone; a wallet may still show a copy.
    Deleted = 15,
    /// The holder's personal data was erased from Passline.
    Erased = 16,
    /// Something the adapter knows but for which there is no word here; see the event's vendor kind.
    Other = 17,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Kind; 17] = [
        Kind::Created,
        Kind::Viewed,
        Kind::Downloaded,
        Kind::Installed,
        Kind::RegistrationRefreshed,
        Kind::Fetched,
        Kind::Updated,
        Kind::Redeemed,
        Kind::Scanned,
        Kind::Personalized,
        Kind::Uninstalled,
        Kind::Voided,
        Kind::Reinstated,
        Kind::Expired,
        Kind::Deleted,
        Kind::Erased,
        Kind::Other,
    ];

    /// The name as filters and the API spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Created => "CREATED",
            Kind::Viewed => "VIEWED",
            Kind::Downloaded => "DOWNLOADED",
            Kind::Installed => "INSTALLED",
            Kind::RegistrationRefreshed => "REGISTRATION_REFRESHED",
            Kind::Fetched => "FETCHED",
            Kind::Updated => "UPDATED",
            Kind::Redeemed => "REDEEMED",
            Kind::Scanned => "SCANNED",
            Kind::Personalized => "PERSONALIZED",
            Kind::Uninstalled => "UNINSTALLED",
            Kind::Voided => "VOIDED",
            Kind::Reinstated => "REINSTATED",
            Kind::Expired => "EXPIRED",
            Kind::Deleted => "DELETED",
            Kind::Erased => "ERASED",
            Kind::Other => "OTHER",
        }
    }

    /// The kind's number, which is also its number in the API and in stored events.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as u8 as i32
    }

    /// The kind with that number.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.number() == number)
    }

    /// The kind with that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The kind's place among facts of the same instant: what must have come first sorts first, so an
    /// uninstall follows an install and a reinstatement follows the voiding.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            Kind::Created => 0,
            Kind::Viewed => 1,
            Kind::Personalized => 2,
            Kind::Downloaded => 3,
            Kind::Installed => 4,
            Kind::RegistrationRefreshed => 5,
            Kind::Fetched => 6,
            Kind::Updated => 7,
            Kind::Scanned => 8,
            Kind::Redeemed => 9,
            Kind::Other => 10,
            Kind::Uninstalled => 11,
            Kind::Expired => 12,
            Kind::Voided => 13,
            Kind::Reinstated => 14,
            Kind::Deleted => 15,
            Kind::Erased => 16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_find_their_kind_again() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
            assert_eq!(Kind::from_name(kind.name()), Some(kind));
        }
        assert_eq!(Kind::from_number(0), None);
        assert_eq!(Kind::from_name("UNSPECIFIED"), None);
    }

    #[test]
    fn ranks_are_distinct() {
        let mut ranks: Vec<u8> = Kind::ALL.into_iter().map(Kind::rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        assert_eq!(ranks.len(), Kind::ALL.len());
    }
}
