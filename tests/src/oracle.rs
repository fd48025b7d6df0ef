//! The judge: compares what senders were promised with what is recorded.
//!
//! From the senders' log alone it knows, by decoding each body itself, which facts must be events, which may
//! be, and which cannot; from those it folds each pass as a model of its own. Against that it holds the whole
//! history, read by every public way. It assumes quiescence: senders are silent and the spool is forwarded.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use pass_domain::Timestamp;
use pass_domain::cursor::Cursor;
use pass_domain::delivery::Decoded;
use pass_domain::fact::Fact;
use pass_domain::fold::{Fold, PassState};
use pass_domain::ids::{EventId, PassKey};
use pass_proto::v1;

use crate::client::{Attempt, Outcome};
use crate::history::History;
use crate::sources::Decoder;

/// Most findings of one kind that are spelled out.
const SHOWN_MAX: usize = 10;

/// What the judge found. Clean if nothing.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Promised but not recorded.
    pub lost: Vec<String>,
    /// Recorded more than once.
    pub duplicated: Vec<String>,
    /// Recorded but never sent.
    pub phantom: Vec<String>,
    /// Anything else that breaks a guarantee: order, books, states.
    pub broken: Vec<String>,
    /// Events in the log.
    pub events: usize,
    /// Deliveries recorded.
    pub deliveries: usize,
    /// Attempts that were answered with 200.
    pub stored: usize,
    /// Attempts whose fate the sender does not know.
    pub indeterminate: usize,
    /// Passes compared with the model's.
    pub passes_compared: usize,
}

impl Verdict {
    /// True if no guarantee was found broken.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.duplicated.is_empty()
            && self.phantom.is_empty()
            && self.broken.is_empty()
    }

    /// Panics with everything found unless clean.
    ///
    /// # Panics
    /// If any guarantee was found broken.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(self.is_clean(), "{self}");
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} answered 200, {} indeterminate; {} deliveries, {} events, {} passes compared",
            self.stored, self.indeterminate, self.deliveries, self.events, self.passes_compared
        )?;
        for (title, findings) in [
            ("lost", &self.lost),
            ("recorded twice", &self.duplicated),
            ("never sent", &self.phantom),
            ("broken", &self.broken),
        ] {
            for finding in findings.iter().take(SHOWN_MAX) {
                writeln!(f, "  {title}: {finding}")?;
            }
            if findings.len() > SHOWN_MAX {
                writeln!(f, "  {title}: and {} more", findings.len() - SHOWN_MAX)?;
            }
        }
        Ok(())
    }
}

/// Holds `history` against what was sent.
pub fn judge(decoder: &Decoder, attempts: &[Attempt], history: &History) -> Verdict {
    let expected = Expected::of(decoder, attempts);
    let mut verdict = Verdict {
        events: history.subscribed.len(),
        deliveries: history.deliveries.len(),
        stored: expected.stored.len(),
        indeterminate: expected.indeterminate,
        ..Verdict::default()
    };
    judge_events(&expected, history, &mut verdict);
    judge_deliveries(&expected, history, &mut verdict);
    judge_order(history, &mut verdict);
    judge_books(history, &mut verdict);
    judge_passes(&expected, history, &mut verdict);
    verdict
}

/// What the senders' log implies.
struct Expected {
    /// Delivery ids of 200s.
    stored: Vec<String>,
    /// Event ids that must be there.
    owed: BTreeSet<String>,
    /// Event ids that may be there.
    possible: HashSet<String>,
    indeterminate: usize,
    /// True if every callback was stored at least once, so that the states are known.
    complete: bool,
    facts: HashMap<PassKey, BTreeMap<EventId, Fact>>,
    states: HashMap<PassKey, PassState>,
}

impl Expected {
    fn of(decoder: &Decoder, attempts: &[Attempt]) -> Self {
        let mut expected = Self {
            stored: Vec::new(),
            owed: BTreeSet::new(),
            possible: HashSet::new(),
            indeterminate: 0,
            complete: true,
            facts: HashMap::new(),
            states: HashMap::new(),
        };
        let mut stored = HashSet::new();
        let mut unstored = Vec::new();
        for attempt in attempts {
            let decoded = decoder.decode(&attempt.callback, Timestamp::UNIX_EPOCH);
            let facts = match &decoded {
                Decoded::Facts(facts) => facts.facts.as_slice(),
                Decoded::Control { .. } | Decoded::Undecodable(_) => &[],
            };
            let ids = facts.iter().map(|fact| fact.id.to_string());
            let sent = (attempt.callback.source, attempt.callback.body.clone());
            match &attempt.outcome {
                Outcome::Stored(receipt) => {
                    expected.stored.push(receipt.delivery.clone());
                    expected.owed.extend(ids.clone());
                    expected.possible.extend(ids);
                    stored.insert(sent);
                    expected.learn(decoder, attempt, &decoded);
                }
                Outcome::Indeterminate(_) => {
                    expected.indeterminate += 1;
                    expected.possible.extend(ids);
                    unstored.push(sent);
                }
                Outcome::Refused(_) => {}
            }
        }
        expected.complete = unstored.iter().all(|sent| stored.contains(sent));
        for (key, facts) in &expected.facts {
            let state = expected.states.entry(key.clone()).or_default();
            state.fold = Fold::from_facts(facts.values());
        }
        expected
    }

    fn learn(&mut self, decoder: &Decoder, attempt: &Attempt, decoded: &Decoded) {
        let Decoded::Facts(decoded) = decoded else {
            return;
        };
        let key = |pass: &pass_domain::ids::VendorId| PassKey {
            source: decoder.uid(attempt.callback.source).clone(),
            pass: pass.clone(),
        };
        for fact in &decoded.facts {
            self.facts
                .entry(key(&fact.pass))
                .or_default()
                .entry(fact.id)
                .or_insert_with(|| fact.clone());
        }
        if let Some(snapshot) = &decoded.snapshot {
            self.states
                .entry(key(&snapshot.pass))
                .or_default()
                .merge_snapshot(snapshot);
        }
    }
}

fn judge_events(expected: &Expected, history: &History, verdict: &mut Verdict) {
    let mut seen = HashSet::new();
    for event in &history.subscribed {
        if !seen.insert(event.id.as_str()) {
            verdict.duplicated.push(format!("event {}", event.name));
        }
        if !expected.possible.contains(&event.id) {
            verdict.phantom.push(format!("event {}", event.name));
        }
    }
    for id in &expected.owed {
        if !seen.contains(id.as_str()) {
            verdict.lost.push(format!("event {id}"));
        }
    }
    if history.listed != history.subscribed {
        verdict.broken.push(format!(
            "ListEvents gives {} events, Subscribe {}; the first that differs is number {:?}",
            history.listed.len(),
            history.subscribed.len(),
            history
                .listed
                .iter()
                .zip(&history.subscribed)
                .position(|(a, b)| a != b)
        ));
    }
}

fn judge_deliveries(expected: &Expected, history: &History, verdict: &mut Verdict) {
    let mut recorded = HashSet::new();
    for delivery in &history.deliveries {
        let id = delivery
            .name
            .strip_prefix("deliveries/")
            .unwrap_or(&delivery.name);
        if !recorded.insert(id) {
            verdict.duplicated.push(format!("delivery {id}"));
        }
    }
    let promised: HashSet<&str> = expected.stored.iter().map(String::as_str).collect();
    if promised.len() != expected.stored.len() {
        verdict
            .broken
            .push("two callbacks got the same delivery id".to_owned());
    }
    for id in &promised {
        if !recorded.contains(id) {
            verdict.lost.push(format!("delivery {id:?}"));
        }
    }
    let unpromised = recorded.iter().filter(|id| !promised.contains(*id)).count();
    if unpromised > expected.indeterminate {
        verdict.phantom.push(format!(
            "{unpromised} deliveries were promised to nobody, and only {} attempts are indeterminate",
            expected.indeterminate
        ));
    }
}

fn judge_order(history: &History, verdict: &mut Verdict) {
    let mut last_record_time = (i64::MIN, 0);
    for (index, event) in history.subscribed.iter().enumerate() {
        let wanted = index as u64 + 1;
        match event.cursor.parse::<Cursor>() {
            Ok(cursor) if cursor.position.0 == wanted => {
                if format!("{:016x}", cursor.epoch) != history.info.epoch
                    && cursor.epoch.to_string() != history.info.epoch
                {
                    verdict
                        .broken
                        .push(format!("event {wanted} has a cursor of another epoch"));
                }
            }
            Ok(cursor) => verdict.broken.push(format!(
                "event number {wanted} is at position {}",
                cursor.position
            )),
            Err(error) => verdict
                .broken
                .push(format!("event number {wanted}: {error}")),
        }
        let time = event
            .record_time
            .map_or((0, 0), |time| (time.seconds, time.nanos));
        if time < last_record_time {
            verdict
                .broken
                .push(format!("record time goes back at event {wanted}"));
        }
        last_record_time = time;
    }
}

/// Guarantee 10: the books balance, and agree with what can be counted.
fn judge_books(history: &History, verdict: &mut Verdict) {
    let books = history.info.books.unwrap_or_default();
    let outcome = |wanted: v1::DeliveryOutcome| -> i64 {
        let count = history
            .deliveries
            .iter()
            .filter(|delivery| delivery.outcome() == wanted)
            .count();
        i64::try_from(count).unwrap_or(i64::MAX)
    };
    let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
    let duplicates: i64 = history
        .deliveries
        .iter()
        .map(|delivery| i64::from(delivery.duplicate_facts))
        .sum();
    for (what, left, right) in [
        (
            "deliveries in the books and in the list",
            books.deliveries,
            count(history.deliveries.len()),
        ),
        (
            "events in the books and in the log",
            books.events,
            count(history.subscribed.len()),
        ),
        (
            "head position and events",
            history.info.head_position,
            count(history.subscribed.len()),
        ),
        (
            "deliveries and the sum of their outcomes",
            books.deliveries,
            books.applied + books.duplicate + books.control + books.quarantined,
        ),
        (
            "facts and the sum of what became of them",
            books.facts,
            books.events + books.duplicate_facts + books.quarantined_facts,
        ),
        (
            "applied in the books and in the list",
            books.applied,
            outcome(v1::DeliveryOutcome::Applied),
        ),
        (
            "duplicate in the books and in the list",
            books.duplicate,
            outcome(v1::DeliveryOutcome::Duplicate),
        ),
        (
            "quarantined in the books and in the list",
            books.quarantined,
            outcome(v1::DeliveryOutcome::Quarantined),
        ),
        (
            "duplicate facts in the books and in the list",
            books.duplicate_facts,
            duplicates,
        ),
    ] {
        if left != right {
            verdict
                .broken
                .push(format!("{what} differ: {left} and {right}"));
        }
    }
    let committed: i64 = history
        .info
        .spools
        .iter()
        .map(|spool| spool.committed_sequence)
        .sum();
    if committed != books.deliveries {
        verdict.broken.push(format!(
            "spools say {committed} committed sequences, the books {} deliveries",
            books.deliveries
        ));
    }
    for spool in &history.info.spools {
        if !spool.missing_sequences.is_empty() {
            verdict
                .lost
                .push(format!("sequences {} of a spool", spool.missing_sequences));
        }
    }
}

/// Guarantee 4: what is shown of a pass is the fold of the set of facts, whatever the way they came.
fn judge_passes(expected: &Expected, history: &History, verdict: &mut Verdict) {
    if !expected.complete {
        return;
    }
    let mut shown: HashMap<&str, &v1::Pass> = HashMap::new();
    for pass in &history.passes {
        if shown.insert(&pass.name, pass).is_some() {
            verdict.duplicated.push(format!("pass {}", pass.name));
        }
    }
    for (key, model) in &expected.states {
        let Some(pass) = shown.remove(key.to_string().as_str()) else {
            verdict.lost.push(format!("pass {key}"));
            continue;
        };
        verdict.passes_compared += 1;
        let state = format!("PASS_STATE_{}", model.state().name());
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        for (what, model, shown) in [
            ("state", state, pass.state().as_str_name().to_owned()),
            (
                "voided",
                model.voided().to_string(),
                pass.voided.to_string(),
            ),
            (
                "open installations",
                count(model.fold.open_installations().count()).to_string(),
                pass.installed_count.to_string(),
            ),
            (
                "redeemed count",
                model.redeemed_count().to_string(),
                pass.redeemed_count.to_string(),
            ),
            (
                "revision",
                model.fold.event_count().to_string(),
                pass.revision.to_string(),
            ),
            (
                "ambiguity",
                model.fold.order_ambiguous.to_string(),
                pass.order_ambiguous.to_string(),
            ),
        ] {
            if model != shown {
                verdict
                    .broken
                    .push(format!("{what} of {key} is {shown}, by its facts {model}"));
            }
        }
    }
    for name in shown.keys() {
        verdict.phantom.push(format!("pass {name}"));
    }
}
