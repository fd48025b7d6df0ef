//! The fold: what a set of facts adds up to.
//!
//! Facts are folded in **fact order**: (occur time, basis rank, kind rank, id). A fact that sorts last is
//! applied in place; one that sorts earlier is late, and its pass is folded anew from all its facts. So the
//! result depends only on the set of facts. Snapshots merge apart from facts, as a last-writer-wins
//! register by (vendor update time, content digest), which is commutative by itself.
//!
//! | fact | effect on the pass |
//! |---|---|
//! | INSTALLED with an installation id | opens that installation; if it is open already, nothing |
//! | INSTALLED without an id | opens the one anonymous installation; if it is open already, nothing |
//! | UNINSTALLED with an id | closes that installation |
//! | UNINSTALLED without an id | closes the only open installation; with several open, the one opened first, and sets `installations_uncertain` |
//! | VOIDED, EXPIRED, REINSTATED | the last of these in fact order counts, unless a later snapshot says otherwise |
//! | DELETED | final |
//! | CREATED, DOWNLOADED | seen once is enough |
//! | REDEEMED | counted; never changes installation |
//! | all others | first and last time and count only |
//!
//! Invariants: at most [`INSTALLATIONS_MAX`] installations are kept; at most one per key.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::fact::{
    Fact, IdentityBasis, InstallationScope, Redemption, Refs, Snapshot, TimeBasis, Wallet,
};
use crate::ids::{EventId, VendorId};
use crate::kind::Kind;
use crate::limits::INSTALLATIONS_MAX;

/// Two transitions of one installation by different clocks that are this close may be in either order.
const AMBIGUOUS_SECONDS: i64 = 300;

/// The life-cycle state of a pass. The highest that applies is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum State {
    /// Only facts that say nothing about the life cycle.
    #[default]
    Unknown = 1,
    /// The vendor made it.
    Created = 2,
    /// It was delivered to a device.
    Downloaded = 3,
    /// It was in a wallet and is in none now.
    Uninstalled = 4,
    /// It is in at least one wallet.
    Installed = 5,
    /// It ran out.
    Expired = 6,
    /// It was made invalid.
    Voided = 7,
    /// The vendor's record is gone.
    Deleted = 8,
}

impl State {
    /// Every state, from the lowest.
    pub const ALL: [State; 8] = [
        State::Unknown,
        State::Created,
        State::Downloaded,
        State::Uninstalled,
        State::Installed,
        State::Expired,
        State::Voided,
        State::Deleted,
    ];

    /// The name as filters and the API spell it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            State::Unknown => "UNKNOWN",
            State::Created => "CREATED",
            State::Downloaded => "DOWNLOADED",
            State::Uninstalled => "UNINSTALLED",
            State::Installed => "INSTALLED",
            State::Expired => "EXPIRED",
            State::Voided => "VOIDED",
            State::Deleted => "DELETED",
        }
    }

    /// The state's number, which is also its number in the API and in stored passes.
    #[must_use]
    pub const fn number(self) -> i32 {
        self as u8 as i32
    }

    /// The state with that number.
    #[must_use]
    pub fn from_number(number: i32) -> Option<State> {
        State::ALL
            .into_iter()
            .find(|state| state.number() == number)
    }
}

/// Which installation: by the vendor's id, or the one presence of which the vendor gives no id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum InstallationKey {
    /// The vendor gives no installation ids for this pass.
    Anonymous,
    /// The vendor's id.
    Identified(VendorId),
}

impl InstallationKey {
    /// The vendor's id; empty for the anonymous installation.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            InstallationKey::Anonymous => "",
            InstallationKey::Identified(id) => id.as_str(),
        }
    }
}

/// One presence of a pass in a wallet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// Which one.
    pub key: InstallationKey,
    /// What its id identifies; `None` for the anonymous one.
    pub scope: Option<InstallationScope>,
    /// The wallet, as last told.
    pub wallet: Option<Wallet>,
    /// Whether it is there now.
    pub open: bool,
    /// When it was last opened; `None` if only its removal is known.
    pub open_time: Option<Timestamp>,
    /// When it was last closed.
    pub close_time: Option<Timestamp>,
    /// Time of its last transition.
    pub transition_time: Timestamp,
    /// By whose clock that was.
    pub transition_basis: TimeBasis,
}

/// First and last time of a kind, and how many facts of it there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindTimes {
    /// Earliest occur time.
    pub first_time: Timestamp,
    /// Latest occur time.
    pub last_time: Timestamp,
    /// Number of facts, at least 1.
    pub count: u64,
}

/// A fact's place in fact order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FactKey {
    /// When it happened.
    pub occur_time: Timestamp,
    /// [`TimeBasis::rank`].
    pub basis_rank: u8,
    /// [`Kind::rank`].
    pub kind_rank: u8,
    /// The fact's id.
    pub id: EventId,
}

impl FactKey {
    /// The place of a fact.
    #[must_use]
    pub fn of(fact: &Fact) -> Self {
        Self {
            occur_time: fact.occur_time,
            basis_rank: fact.time_basis.rank(),
            kind_rank: fact.kind.rank(),
            id: fact.id,
        }
    }
}

/// What the facts about one pass add up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    /// Place of the last fact folded; `None` before the first.
    pub last: Option<FactKey>,
    /// First and last time per kind.
    pub kinds: BTreeMap<Kind, KindTimes>,
    /// Installations in the order in which they were first seen (in fact order).
    pub installations: Vec<Installation>,
    /// True once any installation or removal was told.
    pub had_installation: bool,
    /// The last of VOIDED, EXPIRED and REINSTATED, and when.
    pub validity: Option<(Kind, Timestamp)>,
    /// What the last redemption said.
    pub last_redemption: Option<Redemption>,
    /// References, as last told.
    pub refs: Refs,
    /// True if an uninstall without an id had to choose among several open installations.
    pub installations_uncertain: bool,
    /// True if two transitions of one installation are too close, by different clocks, to be ordered.
    pub order_ambiguous: bool,
}

impl Fold {
    /// Folds a set of facts, given in any order.
    #[must_use]
    pub fn from_facts<'a>(facts: impl IntoIterator<Item = &'a Fact>) -> Self {
        let mut facts: Vec<&Fact> = facts.into_iter().collect();
        facts.sort_by_key(|fact| FactKey::of(fact));
        let mut fold = Self::default();
        for fact in facts {
            fold.apply(fact);
        }
        fold
    }

    /// True if the fact sorts before one already folded, so that the pass must be folded anew.
    #[must_use]
    pub fn is_late(&self, fact: &Fact) -> bool {
        self.last.is_some_and(|last| FactKey::of(fact) < last)
    }

    /// Number of facts folded.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.kinds.values().map(|times| times.count).sum()
    }

    /// The keys of the open installations.
    pub fn open_installations(&self) -> impl Iterator<Item = &InstallationKey> {
        self.installations.iter().filter(|i| i.open).map(|i| &i.key)
    }

    /// Applies a fact that sorts after all folded ones.
    ///
    /// # Panics
    /// If the fact is late: folding it in place would make the result depend on arrival order.
    pub fn apply(&mut self, fact: &Fact) {
        assert!(
            !self.is_late(fact),
            "a late fact must be folded by Fold::from_facts"
        );
        self.last = Some(FactKey::of(fact));
        self.kinds
            .entry(fact.kind)
            .and_modify(|times| {
                times.first_time = times.first_time.min(fact.occur_time);
                times.last_time = times.last_time.max(fact.occur_time);
                times.count += 1;
            })
            .or_insert(KindTimes {
                first_time: fact.occur_time,
                last_time: fact.occur_time,
                count: 1,
            });
        if surroundings_are_told(fact) {
            self.refs.merge_from(&fact.refs);
        }
        match fact.kind {
            Kind::Installed => self.install(fact),
            Kind::Uninstalled => self.uninstall(fact),
            Kind::Voided | Kind::Expired | Kind::Reinstated => {
                self.validity = Some((fact.kind, fact.occur_time))
            }
            Kind::Redeemed => {
                self.last_redemption = Some(fact.redemption.clone().unwrap_or_default())
            }
            Kind::Created
            | Kind::Viewed
            | Kind::Downloaded
            | Kind::RegistrationRefreshed
            | Kind::Fetched
            | Kind::Updated
            | Kind::Scanned
            | Kind::Personalized
            | Kind::Deleted
            | Kind::Erased
            | Kind::Other => {}
        }
    }

    fn install(&mut self, fact: &Fact) {
        self.had_installation = true;
        let at = self.installation_for(fact);
        let installation = &mut self.installations[at];
        if !installation.open {
            installation.open = true;
            installation.open_time = Some(fact.occur_time);
        }
        if fact.wallet.is_some() && surroundings_are_told(fact) {
            installation.wallet.clone_from(&fact.wallet);
        }
        self.transition(at, fact);
    }

    fn uninstall(&mut self, fact: &Fact) {
        self.had_installation = true;
        let at = if fact.installation.is_some() {
            self.installation_for(fact)
        } else {
            let mut open = (0..self.installations.len()).filter(|&at| self.installations[at].open);
            match (open.next(), open.next()) {
                (Some(only), None) => only,
                (Some(first), Some(_)) => {
                    self.installations_uncertain = true;
                    let opened = |at: usize| (self.installations[at].open_time, at);
                    (first..self.installations.len())
                        .filter(|&at| self.installations[at].open)
                        .min_by_key(|&at| opened(at))
                        .unwrap_or(first)
                }
                (None, _) => self.installation_for(fact),
            }
        };
        self.installations[at].open = false;
        self.installations[at].close_time = Some(fact.occur_time);
        self.transition(at, fact);
    }

    /// Notes a transition's time and clock, and whether its order against the one before is certain.
    fn transition(&mut self, at: usize, fact: &Fact) {
        let installation = &mut self.installations[at];
        let apart = fact
            .occur_time
            .as_second()
            .saturating_sub(installation.transition_time.as_second());
        if installation.transition_basis != fact.time_basis && apart.abs() <= AMBIGUOUS_SECONDS {
            self.order_ambiguous = true;
        }
        installation.transition_time = fact.occur_time;
        installation.transition_basis = fact.time_basis;
    }

    /// The place of the fact's installation, made if it is new.
    fn installation_for(&mut self, fact: &Fact) -> usize {
        let key = fact
            .installation
            .as_ref()
            .map_or(InstallationKey::Anonymous, |reference| {
                InstallationKey::Identified(reference.id.clone())
            });
        if let Some(at) = self.installations.iter().position(|i| i.key == key) {
            return at;
        }
        if self.installations.len() >= INSTALLATIONS_MAX {
            // Which one is forgotten is decided by fact order alone, so any arrival order forgets the same.
            let forget = self.installations.iter().position(|i| !i.open).unwrap_or(0);
            self.installations.remove(forget);
            self.installations_uncertain = true;
        }
        self.installations.push(Installation {
            key,
            scope: fact.installation.as_ref().map(|reference| reference.scope),
            wallet: fact.wallet.clone().filter(|_| surroundings_are_told(fact)),
            open: false,
            open_time: None,
            close_time: None,
            transition_time: fact.occur_time,
            transition_basis: fact.time_basis,
        });
        self.installations.len() - 1
    }
}

/// Whether a fact's wallet and references belong to the fact itself. A transition time is repeated in every
/// later payload, whose other content has moved on by then: which of them told it first is chance, so what
/// surrounds it must not reach the fold. The snapshot, which knows which payload is the newest, has it.
fn surroundings_are_told(fact: &Fact) -> bool {
    fact.identity_basis != IdentityBasis::TransitionTime
}

/// What is known of a pass: the fold of its facts and the vendor's last snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassState {
    /// The fold of its facts.
    pub fold: Fold,
    /// The vendor's last snapshot.
    pub snapshot: Option<Snapshot>,
}

impl PassState {
    /// Merges a snapshot; returns whether it is the newer one. Commutative and idempotent.
    pub fn merge_snapshot(&mut self, snapshot: &Snapshot) -> bool {
        let newer = self.snapshot.as_ref().is_none_or(|mine| {
            (mine.update_time, mine.content_digest)
                < (snapshot.update_time, snapshot.content_digest)
        });
        if newer {
            self.snapshot = Some(snapshot.clone());
        }
        newer
    }

    /// Whether the pass is void or expired, and which.
    fn invalidity(&self) -> Option<State> {
        let (by_fact, fact_time) = match self.fold.validity {
            Some((Kind::Voided, time)) => (Some(State::Voided), Some(time)),
            Some((Kind::Expired, time)) => (Some(State::Expired), Some(time)),
            Some((_, time)) => (None, Some(time)),
            None => (None, None),
        };
        let Some((voided, time)) = self
            .snapshot
            .as_ref()
            .and_then(|s| Some((s.voided?, s.update_time)))
        else {
            return by_fact;
        };
        if fact_time.is_some_and(|fact_time| time <= fact_time) {
            return by_fact;
        }
        match (voided, by_fact) {
            (true, Some(state)) => Some(state),
            (true, None) => Some(State::Voided),
            (false, _) => None,
        }
    }

    /// True if the pass is void (not merely expired).
    #[must_use]
    pub fn voided(&self) -> bool {
        self.invalidity() == Some(State::Voided)
    }

    /// The life-cycle state.
    #[must_use]
    pub fn state(&self) -> State {
        let seen = |kind| self.fold.kinds.contains_key(&kind);
        if seen(Kind::Deleted) {
            State::Deleted
        } else if let Some(state) = self.invalidity() {
            state
        } else if self.fold.open_installations().next().is_some() {
            State::Installed
        } else if self.fold.had_installation {
            State::Uninstalled
        } else if seen(Kind::Downloaded) {
            State::Downloaded
        } else if seen(Kind::Created) {
            State::Created
        } else {
            State::Unknown
        }
    }

    /// The vendor's references: those of the facts, overridden by the snapshot's.
    #[must_use]
    pub fn refs(&self) -> Refs {
        let mut refs = self.fold.refs.clone();
        if let Some(snapshot) = &self.snapshot {
            refs.merge_from(&snapshot.refs);
        }
        refs
    }

    /// How often the pass was redeemed: the vendor's count if it gives one (it may go down), else the number of facts.
    #[must_use]
    pub fn redeemed_count(&self) -> i64 {
        let facts = self
            .fold
            .kinds
            .get(&Kind::Redeemed)
            .map_or(0, |times| times.count);
        self.snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.redeemed_count)
            .unwrap_or_else(|| i64::try_from(facts).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests;
