//! What to write: deliveries and the rows they touch go in, rows to write come out. No IO, no clock.
//!
//! A store asks in this order, all inside one transaction that holds the log's head:
//!
//! 1. [`select`] decides by sequence and generation which deliveries are to be looked at.
//! 2. [`Planner::passes_wanted`] and [`Planner::facts_wanted`] say what to load.
//! 3. [`Planner::resolve`] tells new facts from known ones; [`Planner::histories_wanted`] names the passes
//!    whose recorded facts are needed, since a late fact makes them fold anew.
//! 4. [`Planner::apply`] folds and makes rows, which [`Planner::rows_take`] gives at any time, then
//!    [`Planner::passes_take`] the passes; [`Planner::finish`] gives the new head.
//!
//! Invariants, checked in [`Planner::finish`]: positions are consecutive; the books balance. Facts of one
//! delivery get positions in fact order. A pass is folded anew at most once per late fact, in memory.
//!
//! How the books balance: a delivery is counted once, when it is first recorded, under its outcome. When
//! a replay changes the outcome, the delivery moves from `quarantined` to the new outcome; facts that the
//! store had refused move from `quarantined_facts` to events and duplicates in the same way. Deliveries
//! known already are not counted at all.

mod limits;
mod rows;
mod select;
mod slot;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use pass_domain::cursor::Cursor;
use pass_domain::delivery::{Decoded, DecodedFacts, Delivery, Outcome, UndecodableReason};
use pass_domain::event::Effect;
use pass_domain::fact::{Fact, IdentityBasis, Snapshot};
use pass_domain::fold::{FactKey, Fold, InstallationKey, PassState};
use pass_domain::ids::{DeliveryId, EventId, SourceUid, VendorId};
use pass_domain::kind::Kind;
use pass_domain::time::is_suspect;

use crate::contract::Books;
use crate::stored::{self, DeliveryRest};

pub(crate) use rows::{DeliveryRow, EventRow, HeadRow, Made, PassLoaded, PassRow, Rows};
pub(crate) use select::{SpoolPlace, select};
use slot::{Slot, number_if_new, pass_row};

/// How many transition facts a pass row remembers. A vendor repeats them in every payload; more than it
/// sends at once need not be remembered.
const RECENT_MAX: usize = 8;

/// What loaded rows cannot be. Nothing may be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// The books of the head do not balance.
    #[error("log_head: the books do not balance: {0:?}")]
    Books(Books),
    /// A pass counts other facts than are recorded of it.
    #[error("pass {number}: the fold counts {folded} facts, the log has {recorded}")]
    History {
        /// The pass.
        number: u64,
        /// As its row says.
        folded: u64,
        /// As there are events.
        recorded: u64,
    },
}

/// A delivery, its facts told apart.
#[derive(Debug)]
pub(crate) struct Resolved<'a> {
    delivery: &'a Delivery,
    class: Class<'a>,
}

impl<'a> Resolved<'a> {
    /// Source and kind of each event that recording it makes.
    pub(crate) fn new_events(&self) -> impl Iterator<Item = (&'a SourceUid, Kind)> {
        let new: &[(usize, &Fact)] = match &self.class {
            Class::Facts(facts) => &facts.new,
            Class::Known | Class::Control | Class::Undecodable { .. } => &[],
        };
        let source = &self.delivery.source;
        new.iter().map(move |(_, fact)| (source, fact.kind))
    }

    /// True if the delivery is recorded already, so that nothing is to be written for it.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self.class, Class::Known)
    }
}

#[derive(Debug)]
enum Class<'a> {
    Known,
    Control,
    Undecodable {
        reason: UndecodableReason,
        detail: String,
        refused_facts: u32,
    },
    Facts(Box<ResolvedFacts<'a>>),
}

#[derive(Debug)]
struct ResolvedFacts<'a> {
    facts: &'a DecodedFacts,
    /// New ones and their slots, in fact order.
    new: Vec<(usize, &'a Fact)>,
    snapshot: Option<(usize, &'a Snapshot)>,
    duplicates: u32,
    differing: u32,
}

/// Plans one transaction.
#[derive(Debug)]
pub(crate) struct Planner<'a> {
    head: HeadRow,
    first_position: u64,
    known_deliveries: HashSet<DeliveryId>,
    /// Recorded facts that were looked up, and those of this transaction, with their content digests.
    known_facts: HashMap<EventId, u64>,
    slots: Vec<Slot<'a>>,
    slot_of: HashMap<(&'a str, &'a str), usize>,
    rows: Rows<'a>,
    events_taken: u64,
    slots_taken: usize,
}

impl<'a> Planner<'a> {
    /// Starts from the head as locked. The record time is `now_micros`, or the head's if that is later.
    pub(crate) fn new(mut head: HeadRow, now_micros: i64) -> Self {
        head.record_micros = head.record_micros.max(now_micros);
        Self {
            first_position: head.position,
            head,
            known_deliveries: HashSet::new(),
            known_facts: HashMap::new(),
            slots: Vec::new(),
            slot_of: HashMap::new(),
            rows: Rows::default(),
            events_taken: 0,
            slots_taken: 0,
        }
    }

    /// When the rows are recorded.
    pub(crate) fn record_micros(&self) -> i64 {
        self.head.record_micros
    }

    /// The books, for what a replay moves within them.
    pub(crate) fn books_mut(&mut self) -> &mut Books {
        &mut self.head.books
    }

    /// Takes note of deliveries that are recorded already.
    pub(crate) fn deliveries_loaded(&mut self, known: impl IntoIterator<Item = DeliveryId>) {
        self.known_deliveries.extend(known);
    }

    /// The passes that the deliveries are about, each once: source and vendor's id.
    pub(crate) fn passes_wanted(
        &mut self,
        deliveries: impl IntoIterator<Item = &'a Delivery>,
    ) -> Vec<(&'a str, &'a str)> {
        let mut wanted = Vec::new();
        for delivery in deliveries {
            let Decoded::Facts(facts) = &delivery.decoded else {
                continue;
            };
            let passes = facts
                .facts
                .iter()
                .map(|fact| &fact.pass)
                .chain(facts.snapshot.as_ref().map(|s| &s.pass));
            for pass in passes {
                let name = (delivery.source.as_str(), pass.as_str());
                let slots = &mut self.slots;
                self.slot_of.entry(name).or_insert_with(|| {
                    slots.push(Slot {
                        source: &delivery.source,
                        pass,
                        number: 0,
                        state: PassState::default(),
                        recent: Vec::new(),
                        last_position: 0,
                        last_digest: 0,
                        history: Some(Vec::new()),
                        changed_by: None,
                    });
                    wanted.push(name);
                    slots.len() - 1
                });
            }
        }
        wanted
    }

    /// Takes a pass that was wanted and is recorded.
    pub(crate) fn pass_loaded(&mut self, loaded: PassLoaded) {
        let Some(&at) = self
            .slot_of
            .get(&(loaded.source.as_str(), loaded.vendor_pass_id.as_str()))
        else {
            return;
        };
        let slot = &mut self.slots[at];
        slot.number = loaded.number;
        slot.history = (loaded.state.fold.last.is_none()).then(Vec::new);
        slot.state = loaded.state;
        slot.recent = loaded.recent;
        slot.last_position = loaded.last_position;
        slot.last_digest = loaded.last_digest;
    }

    /// The facts that have to be looked up: those that the pass rows do not remember.
    pub(crate) fn facts_wanted(
        &self,
        deliveries: impl IntoIterator<Item = &'a Delivery>,
    ) -> Vec<EventId> {
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for delivery in deliveries {
            if self.known_deliveries.contains(&delivery.id) {
                continue;
            }
            let Decoded::Facts(facts) = &delivery.decoded else {
                continue;
            };
            for fact in &facts.facts {
                let slot =
                    &self.slots[self.slot_of[&(delivery.source.as_str(), fact.pass.as_str())]];
                if !slot.recent.iter().any(|(id, _)| *id == fact.id) && seen.insert(fact.id) {
                    wanted.push(fact.id);
                }
            }
        }
        wanted
    }

    /// Takes facts that are recorded, with their content digests.
    pub(crate) fn facts_loaded(&mut self, known: impl IntoIterator<Item = (EventId, u64)>) {
        self.known_facts.extend(known);
    }

    /// Tells a delivery's new facts from known ones, and takes note of the new ones.
    pub(crate) fn resolve(&mut self, delivery: &'a Delivery) -> Resolved<'a> {
        if !self.known_deliveries.insert(delivery.id) {
            return Resolved {
                delivery,
                class: Class::Known,
            };
        }
        self.resolve_decoded(delivery)
    }

    /// As [`Planner::resolve`], for a delivery that is recorded already and decoded again.
    pub(crate) fn resolve_decoded(&mut self, delivery: &'a Delivery) -> Resolved<'a> {
        let class = match &delivery.decoded {
            Decoded::Control { .. } => Class::Control,
            Decoded::Undecodable(why) => Class::Undecodable {
                reason: why.reason,
                detail: why.detail.clone(),
                refused_facts: 0,
            },
            Decoded::Facts(facts) => match limits::refusal(facts) {
                Some(detail) => Class::Undecodable {
                    reason: UndecodableReason::StoreRefused,
                    detail,
                    refused_facts: u32::try_from(facts.facts.len()).unwrap_or(u32::MAX),
                },
                None => Class::Facts(Box::new(self.resolve_facts(delivery, facts))),
            },
        };
        Resolved { delivery, class }
    }

    fn resolve_facts(
        &mut self,
        delivery: &'a Delivery,
        facts: &'a DecodedFacts,
    ) -> ResolvedFacts<'a> {
        let source = delivery.source.as_str();
        let mut resolved = ResolvedFacts {
            facts,
            new: Vec::new(),
            snapshot: None,
            duplicates: 0,
            differing: 0,
        };
        for fact in &facts.facts {
            let at = self.slot_of[&(source, fact.pass.as_str())];
            let remembered = self.slots[at]
                .recent
                .iter()
                .find(|(id, _)| *id == fact.id)
                .map(|(_, digest)| *digest);
            let known = remembered.or_else(|| self.known_facts.get(&fact.id).copied());
            match known {
                None => {
                    self.known_facts.insert(fact.id, fact.content_digest);
                    resolved.new.push((at, fact));
                }
                Some(digest) => {
                    resolved.duplicates += 1;
                    resolved.differing += u32::from(digest != fact.content_digest);
                }
            }
        }
        resolved
            .new
            .sort_by_cached_key(|(_, fact)| FactKey::of(fact));
        resolved.snapshot = facts
            .snapshot
            .as_ref()
            .map(|snapshot| (self.slot_of[&(source, snapshot.pass.as_str())], snapshot));
        resolved
    }

    /// The numbers of the passes of which all recorded facts are needed.
    pub(crate) fn histories_wanted(&self, resolved: &[Resolved<'a>]) -> Vec<u64> {
        let mut last: HashMap<usize, FactKey> = HashMap::new();
        let mut wanted = Vec::new();
        for resolved in resolved {
            let Class::Facts(facts) = &resolved.class else {
                continue;
            };
            for (at, fact) in &facts.new {
                let slot = &self.slots[*at];
                if slot.history.is_some() || wanted.contains(&slot.number) {
                    continue;
                }
                let key = FactKey::of(fact);
                let before = last.get(at).copied().or(slot.state.fold.last);
                if before.is_some_and(|before| key < before) {
                    wanted.push(slot.number);
                } else {
                    last.insert(*at, key);
                }
            }
        }
        wanted
    }

    /// Numbers what is to come from other starts than the head's: the last position, pass and delivery before.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn planted_start(&mut self, [position, pass, delivery]: [u64; 3]) {
        self.first_position = position;
        self.head.position = position;
        self.head.last_pass_number = pass;
        self.head.last_delivery_number = delivery;
    }

    /// How many events and passes these deliveries make; of passes, at most.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn planted_counts(&self, resolved: &[Resolved<'a>]) -> [u64; 2] {
        let events = |resolved: &Resolved<'a>| match &resolved.class {
            Class::Facts(facts) => facts.new.len() as u64,
            Class::Known | Class::Control | Class::Undecodable { .. } => 0,
        };
        [resolved.iter().map(events).sum(), self.slots.len() as u64]
    }

    /// Takes all recorded facts of a pass, in any order.
    pub(crate) fn history_loaded(
        &mut self,
        number: u64,
        facts: Vec<Fact>,
    ) -> Result<(), PlanError> {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.number == number) else {
            return Ok(());
        };
        let (folded, recorded) = (slot.state.fold.event_count(), facts.len() as u64);
        if folded != recorded {
            return Err(PlanError::History {
                number,
                folded,
                recorded,
            });
        }
        slot.history = Some(facts.into_iter().map(Cow::Owned).collect());
        Ok(())
    }

    /// Records a delivery under the next number, and counts it.
    pub(crate) fn apply(&mut self, resolved: &Resolved<'a>) -> Outcome {
        if resolved.is_known() {
            return Outcome::Duplicate;
        }
        self.head.last_delivery_number += 1;
        let body_bytes = resolved.delivery.body.len() as u64;
        let outcome = self.apply_as(resolved, self.head.last_delivery_number, body_bytes);
        let books = &mut self.head.books;
        books.deliveries += 1;
        *outcome_counter(books, outcome) += 1;
        books.quarantine_open += u64::from(outcome == Outcome::Quarantined);
        outcome
    }

    /// Makes the rows of a delivery with that number and counts its facts, but not the delivery.
    pub(crate) fn apply_as(
        &mut self,
        resolved: &Resolved<'a>,
        number: u64,
        body_bytes: u64,
    ) -> Outcome {
        let delivery = resolved.delivery;
        let mut rest: DeliveryRest<&VendorId> = DeliveryRest {
            events: Vec::new(),
            duplicate_facts: 0,
            differing_duplicates: 0,
            refused_facts: 0,
            body_bytes,
        };
        let mut personal = Vec::new();
        let mut quarantine = None;
        let outcome = match &resolved.class {
            Class::Known => Outcome::Duplicate,
            Class::Control => Outcome::Control,
            Class::Undecodable {
                reason,
                detail,
                refused_facts,
            } => {
                rest.refused_facts = *refused_facts;
                quarantine = Some((*reason, detail.clone()));
                Outcome::Quarantined
            }
            Class::Facts(facts) => {
                rest.events = facts
                    .facts
                    .facts
                    .iter()
                    .map(|fact| (&fact.pass, fact.id))
                    .collect();
                rest.duplicate_facts = facts.duplicates;
                rest.differing_duplicates = facts.differing;
                personal = stored::personal_blob(&facts.facts.personal);
                self.apply_facts(delivery, facts, number);
                if facts.new.is_empty() {
                    Outcome::Duplicate
                } else {
                    Outcome::Applied
                }
            }
        };
        let books = &mut self.head.books;
        books.quarantined_facts += u64::from(rest.refused_facts);
        books.facts += u64::from(rest.refused_facts);
        self.rows.deliveries.push(DeliveryRow {
            number,
            delivery_id: delivery.id,
            source: &delivery.source,
            outcome,
            body: stored::delivery_blob(delivery, &rest),
            personal,
            raw_body: &delivery.body,
            quarantine,
        });
        outcome
    }

    fn apply_facts(
        &mut self,
        delivery: &'a Delivery,
        facts: &ResolvedFacts<'a>,
        delivery_number: u64,
    ) {
        let books = &mut self.head.books;
        books.facts += facts.facts.facts.len() as u64;
        books.events += facts.new.len() as u64;
        books.duplicate_facts += u64::from(facts.duplicates);
        books.differing_duplicates += u64::from(facts.differing);
        let mut snapshot = facts.snapshot;
        for (at, fact) in &facts.new {
            // The snapshot is part of what the first new fact of its pass does.
            let merged = snapshot
                .take_if(|(of, _)| of == at)
                .map(|(_, snapshot)| snapshot);
            self.apply_fact(
                delivery,
                &facts.facts.notes,
                *at,
                fact,
                merged,
                delivery_number,
            );
        }
        if let Some((at, snapshot)) = snapshot {
            let slot = &mut self.slots[at];
            if slot.state.merge_snapshot(snapshot) {
                slot.changed_by = Some(delivery);
                self.head.last_pass_number += number_if_new(slot, self.head.last_pass_number);
            }
        }
        self.remember(facts);
    }

    fn apply_fact(
        &mut self,
        delivery: &'a Delivery,
        notes: &[String],
        at: usize,
        fact: &'a Fact,
        snapshot: Option<&Snapshot>,
        delivery_number: u64,
    ) {
        let slot = &mut self.slots[at];
        let state_before = slot.state.state();
        let late = slot.state.fold.is_late(fact);
        let moves = late || matches!(fact.kind, Kind::Installed | Kind::Uninstalled);
        let open_before: Vec<InstallationKey> = if moves {
            slot.state.fold.open_installations().cloned().collect()
        } else {
            Vec::new()
        };
        if let Some(history) = &mut slot.history {
            history.push(Cow::Borrowed(fact));
        }
        if late {
            let history = slot
                .history
                .as_ref()
                .expect("histories_wanted named every pass with a late fact");
            slot.state.fold = Fold::from_facts(history.iter().map(AsRef::as_ref));
        } else {
            slot.state.fold.apply(fact);
        }
        if let Some(snapshot) = snapshot {
            slot.state.merge_snapshot(snapshot);
        }
        let mut effect = Effect {
            state_before,
            state_after: slot.state.state(),
            late,
            ..Effect::default()
        };
        if moves {
            let fold = &slot.state.fold;
            effect.opened = fold
                .open_installations()
                .filter(|key| !open_before.contains(key))
                .cloned()
                .collect();
            effect.closed = open_before
                .into_iter()
                .filter(|key| !fold.open_installations().any(|open| open == key))
                .collect();
        }
        effect.changed = effect.state_before != effect.state_after
            || !effect.opened.is_empty()
            || !effect.closed.is_empty()
            || fact.kind == Kind::Redeemed;

        self.head.position += 1;
        self.head.digest = Cursor::digest_of(&fact.id);
        self.head.last_pass_number += number_if_new(slot, self.head.last_pass_number);
        slot.last_position = self.head.position;
        slot.last_digest = self.head.digest;
        slot.changed_by = Some(delivery);
        let suspect = is_suspect(fact.occur_time, delivery.receive_time);
        self.rows.events.push(EventRow {
            position: self.head.position,
            event_id: fact.id,
            pass_number: slot.number,
            delivery_number,
            content_digest: fact.content_digest,
            body: stored::event_blob(fact, delivery, notes, &effect, suspect),
        });
    }

    /// Keeps the delivery's transition facts with their passes: the vendor will repeat them.
    fn remember(&mut self, facts: &ResolvedFacts<'a>) {
        let mut done = usize::MAX;
        for (at, _) in &facts.new {
            if std::mem::replace(&mut done, *at) == *at {
                continue;
            }
            let slot = &mut self.slots[*at];
            let told = facts.facts.facts.iter().filter(|fact| {
                fact.identity_basis == IdentityBasis::TransitionTime && fact.pass == *slot.pass
            });
            let mut recent: Vec<(EventId, u64)> = Vec::with_capacity(RECENT_MAX);
            for fact in told {
                let remembered = slot
                    .recent
                    .iter()
                    .find(|(id, _)| *id == fact.id)
                    .map(|(_, digest)| *digest);
                let digest = remembered.or_else(|| self.known_facts.get(&fact.id).copied());
                if recent.iter().all(|(id, _)| *id != fact.id) {
                    recent.push((fact.id, digest.unwrap_or(fact.content_digest)));
                }
            }
            if recent.is_empty() {
                continue;
            }
            for old in &slot.recent {
                if recent.iter().all(|(id, _)| *id != old.0) {
                    recent.push(*old);
                }
            }
            recent.truncate(RECENT_MAX);
            slot.recent = recent;
        }
    }

    /// The rows of the deliveries applied since the last call.
    pub(crate) fn rows_take(&mut self) -> Rows<'a> {
        self.events_taken += self.rows.events.len() as u64;
        std::mem::take(&mut self.rows)
    }

    /// The next passes that changed, once every delivery is applied; `None` when there are no more.
    pub(crate) fn passes_take(&mut self, slots_max: usize) -> Option<Vec<PassRow>> {
        let slots = &self.slots[self.slots_taken..];
        let slots = &slots[..slots.len().min(slots_max)];
        self.slots_taken += slots.len();
        (!slots.is_empty()).then(|| slots.iter().filter_map(pass_row).collect())
    }

    /// The new head, once all rows are taken.
    pub(crate) fn finish(self) -> Result<HeadRow, PlanError> {
        if !self.head.books.balance() {
            return Err(PlanError::Books(self.head.books));
        }
        assert_eq!(
            (self.head.position - self.first_position, self.slots.len()),
            (self.events_taken, self.slots_taken),
            "positions are handed out one per event, and every row is taken"
        );
        Ok(self.head)
    }
}

/// The counter of deliveries with an outcome.
pub(crate) fn outcome_counter(books: &mut Books, outcome: Outcome) -> &mut u64 {
    match outcome {
        Outcome::Applied => &mut books.applied,
        Outcome::Duplicate => &mut books.duplicate,
        Outcome::Quarantined => &mut books.quarantined,
        Outcome::Control => &mut books.control,
    }
}
