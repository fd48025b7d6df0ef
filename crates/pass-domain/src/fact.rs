//! Facts and snapshots: what one delivery says.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::ids::{EventId, VendorId};
use crate::kind::Kind;

/// Whether the vendor named the event or it was concluded from the state the vendor showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Assertion {
    /// The callback names this event.
    Reported,
    /// Concluded from a transition time in the callback's snapshot.
    Derived,
}

/// What a fact's id rests on, from the strongest to the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdentityBasis {
    /// The vendor's own event or message id.
    VendorId,
    /// A transition time that the vendor repeats in every later payload.
    TransitionTime,
    /// Fields of the event (pass, time, registration, …).
    EventFields,
    /// A digest of the content: two equal contents are one fact.
    Content,
    /// A guess; may join or split real events.
    Heuristic,
}

/// Whose clock a fact's time comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TimeBasis {
    /// The vendor said when the event happened.
    VendorEvent,
    /// A transition time inside the vendor's state.
    VendorState,
    /// The vendor gave no time: when the gateway received the delivery.
    Received,
}

impl TimeBasis {
    /// The basis' place among facts of the same instant: a vendor's own event time first.
    #[must_use]
    pub fn rank(self) -> u8 {
        match self {
            TimeBasis::VendorEvent => 0,
            TimeBasis::VendorState => 1,
            TimeBasis::Received => 2,
        }
    }
}

/// A family of wallets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WalletKind {
    /// Apple Wallet (also written `passbook`).
    Apple,
    /// Google Wallet.
    Google,
    /// Samsung Wallet.
    Samsung,
    /// Huawei Wallet.
    Huawei,
    /// WalletPasses.
    WalletPasses,
    /// Pass2U.
    Pass2u,
    /// PassWallet.
    PassWallet,
    /// The vendor's own wallet app.
    Vendor,
    /// Another Android wallet, not named by the vendor.
    AndroidOther,
    /// A wallet whose vendor name is not known here; see the native name.
    Unknown,
}

/// The wallet as far as the vendor tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wallet {
    /// The family.
    pub kind: WalletKind,
    /// The vendor's word, verbatim; empty if it gave none.
    pub native: String,
    /// The device's operating system in the vendor's word; empty if unknown.
    pub device_os: String,
    /// The wallet app in the vendor's word; empty if unknown.
    pub device_app: String,
}

/// What an installation id identifies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InstallationScope {
    /// A registration of the pass (one wallet on one device).
    Registration,
    /// A device.
    Device,
    /// A wallet account.
    Account,
}

/// Which presence of the pass in a wallet a fact is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstallationRef {
    /// The vendor's id.
    pub id: VendorId,
    /// What the id identifies.
    pub scope: InstallationScope,
}

/// The vendor's other names for the pass and its containers. Empty means not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Refs {
    /// Campaign or program.
    pub campaign: String,
    /// Distribution (a batch or channel of a campaign).
    pub distribution: String,
    /// Class, template or project.
    pub class: String,
    /// The pass's serial number.
    pub serial_number: String,
    /// The issuer's own id of the pass or its holder.
    pub external_id: String,
}

impl Refs {
    /// Fills each reference that is empty here from `other`, and replaces those that `other` gives.
    pub fn merge_from(&mut self, other: &Refs) {
        for (mine, theirs) in [
            (&mut self.campaign, &other.campaign),
            (&mut self.distribution, &other.distribution),
            (&mut self.class, &other.class),
            (&mut self.serial_number, &other.serial_number),
            (&mut self.external_id, &other.external_id),
        ] {
            if !theirs.is_empty() {
                mine.clone_from(theirs);
            }
        }
    }
}

/// What a redemption says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Redemption {
    /// The vendor's running count after it, if given. May go down (a vendor can reset it).
    pub count: Option<i64>,
    /// The vendor's time of redemption, if given.
    pub time: Option<Timestamp>,
    /// Who or what scanned the pass; empty if unknown.
    pub scanner: String,
}

/// Personal data in a delivery. Kept in rows of its own, so that erasing it rewrites no event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Personal {
    /// The holder's name; empty if not given.
    pub display_name: String,
    /// The holder's e-mail address; empty if not given.
    pub email_address: String,
    /// IP addresses by the vendor's field name.
    pub ip_addresses: BTreeMap<String, String>,
    /// User agents by the vendor's field name.
    pub user_agents: BTreeMap<String, String>,
    /// The holder's position, country, city, latitude, longitude, …, by the vendor's field name.
    pub position: BTreeMap<String, String>,
    /// Free attributes whose content is not known here, by the vendor's field name.
    pub attributes: BTreeMap<String, String>,
}

impl Personal {
    /// True if there is nothing personal in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.display_name.is_empty()
            && self.email_address.is_empty()
            && self.ip_addresses.is_empty()
            && self.user_agents.is_empty()
            && self.position.is_empty()
            && self.attributes.is_empty()
    }
}

/// What a delivery says happened to one pass at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// The fact's id, derived from the fact itself (see [`crate::identity`]).
    pub id: EventId,
    /// The version of the identity rule that made the id.
    pub identity_version: u32,
    /// What the id rests on.
    pub identity_basis: IdentityBasis,
    /// The vendor's id of the pass.
    pub pass: VendorId,
    /// What happened.
    pub kind: Kind,
    /// The vendor's own word for it, verbatim.
    pub vendor_kind: String,
    /// Whether the vendor named it.
    pub assertion: Assertion,
    /// When it happened.
    pub occur_time: Timestamp,
    /// By whose clock.
    pub time_basis: TimeBasis,
    /// Which presence in a wallet, if the vendor tells.
    pub installation: Option<InstallationRef>,
    /// Which wallet, if the vendor tells.
    pub wallet: Option<Wallet>,
    /// The vendor's other names for the pass.
    pub refs: Refs,
    /// What a redemption says; only on [`Kind::Redeemed`].
    pub redemption: Option<Redemption>,
    /// Vendor attributes that are not personal, by name.
    pub attributes: BTreeMap<String, String>,
    /// A digest of what the fact says besides its identity. A second sighting with another digest is
    /// counted as a differing duplicate.
    pub content_digest: u64,
}

/// A vendor's own status of a pass, shown beside ours and never mixed in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VendorStatus {
    /// The vendor's number, if it sends numbers.
    pub number: Option<i64>,
    /// The vendor's name for it, or the number as text where the name is not known.
    pub name: String,
    /// Life-cycle flags the vendor says the pass has ever attained, by name, sorted.
    pub attained: Vec<String>,
}

/// What a delivery says the pass *is*. Merged as a last-writer-wins register by
/// (`update_time`, `content_digest`), so the order of arrival cannot matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The vendor's id of the pass.
    pub pass: VendorId,
    /// The vendor's time of the state: its update time, else the event's time.
    pub update_time: Timestamp,
    /// A digest of the state, for ties.
    pub content_digest: u64,
    /// Whether the vendor says the pass is void, if it says.
    pub voided: Option<bool>,
    /// How often the vendor says it was redeemed, if it says.
    pub redeemed_count: Option<i64>,
    /// The vendor's status, if it has one.
    pub vendor_status: Option<VendorStatus>,
    /// When the vendor made the pass, if it says.
    pub create_time: Option<Timestamp>,
    /// The vendor's other names for the pass.
    pub refs: Refs,
}
