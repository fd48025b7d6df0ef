//! The planner against a model, with tables in memory.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use pass_domain::Timestamp;
use pass_domain::delivery::{Delivery, Outcome};
use pass_domain::event::{Event, Position};
use pass_domain::fold::State;
use pass_domain::ids::{DeliveryId, EventId, PassKey, SourceUid};
use pass_domain::kind::Kind;
use proptest::prelude::*;

use super::*;
use crate::contract::{AppendPart, PartOutcome, SpoolId};
use crate::suite::make::{self, Says, short};

/// Tables as a store has them.
#[derive(Default)]
struct Tables {
    head: HeadRow,
    deliveries: BTreeSet<DeliveryId>,
    passes: BTreeMap<u64, PassRow>,
    events: Vec<(EventId, u64, u64, Vec<u8>)>,
}

impl Tables {
    fn append(&mut self, deliveries: &[Arc<Delivery>]) -> Vec<Outcome> {
        let deliveries: Vec<&Delivery> = deliveries.iter().map(AsRef::as_ref).collect();
        let mut planner = Planner::new(self.head.clone(), 0);
        let ids = deliveries
            .iter()
            .map(|delivery| delivery.id)
            .filter(|id| self.deliveries.contains(id));
        planner.deliveries_loaded(ids.collect::<Vec<_>>());
        for (source, pass) in planner.passes_wanted(deliveries.iter().copied()) {
            let found = self
                .passes
                .values()
                .find(|row| row.source == source && row.vendor_pass_id == pass);
            let Some(row) = found else { continue };
            let (state, recent) = stored::pass_from(&row.body).expect("readable");
            planner.pass_loaded(PassLoaded {
                number: row.number,
                source: row.source.clone(),
                vendor_pass_id: row.vendor_pass_id.clone(),
                state,
                recent,
                last_position: row.last_position,
                last_digest: row.last_digest,
            });
        }
        let wanted = planner.facts_wanted(deliveries.iter().copied());
        let known = self
            .events
            .iter()
            .filter(|(id, ..)| wanted.contains(id))
            .map(|(id, _, digest, _)| (*id, *digest));
        planner.facts_loaded(known.collect::<Vec<_>>());
        let resolved: Vec<_> = deliveries
            .iter()
            .map(|delivery| planner.resolve(delivery))
            .collect();
        for number in planner.histories_wanted(&resolved) {
            let facts = self
                .log()
                .into_iter()
                .filter(|event| self.pass_of(event.position) == number);
            planner
                .history_loaded(number, facts.map(|event| event.fact).collect())
                .expect("complete");
        }
        let outcomes = resolved
            .iter()
            .map(|resolved| planner.apply(resolved))
            .collect();
        let rows = planner.rows_take();
        let mut passes = Vec::new();
        while let Some(more) = planner.passes_take(3) {
            passes.extend(more);
        }
        let head = planner.finish().expect("balanced");
        self.head = head;
        self.deliveries
            .extend(rows.deliveries.iter().map(|row| row.delivery_id));
        for event in rows.events {
            assert_eq!(
                event.position,
                self.events.len() as u64 + 1,
                "positions have no gap"
            );
            self.events.push((
                event.event_id,
                event.pass_number,
                event.content_digest,
                event.body,
            ));
        }
        self.passes
            .extend(passes.into_iter().map(|row| (row.number, row)));
        outcomes
    }

    fn log(&self) -> Vec<Event> {
        let event = |(at, (id, _, _, body)): (usize, &(EventId, u64, u64, Vec<u8>))| {
            stored::event_from(Position(at as u64 + 1), *id, Timestamp::UNIX_EPOCH, body)
                .expect("readable")
        };
        self.events.iter().enumerate().map(event).collect()
    }

    fn pass_of(&self, position: Position) -> u64 {
        self.events[usize::try_from(position.0 - 1).expect("small")].1
    }

    fn states(&self) -> BTreeMap<PassKey, PassState> {
        let pass = |row: &PassRow| {
            let key = PassKey {
                source: SourceUid::new(&row.source).expect("valid"),
                pass: pass_domain::ids::VendorId::new(&row.vendor_pass_id).expect("valid"),
            };
            (key, stored::pass_from(&row.body).expect("readable").0)
        };
        self.passes.values().map(pass).collect()
    }
}

fn told(story: &make::Story) -> Tables {
    let mut tables = Tables::default();
    for batch in story.batches("acme", 0) {
        tables.append(&batch);
    }
    tables
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_500, failure_persistence: None, ..ProptestConfig::default() })]

    // Whatever the order, the repetition and the batches: the passes are those of the model, each fact is
    // one event, and effects lead from each state to the next.
    #[test]
    fn passes_depend_on_the_set_of_deliveries_alone(story in make::stories()) {
        let tables = told(&story);
        prop_assert_eq!(tables.states(), story.passes("acme"));
        let ids: BTreeSet<EventId> = tables.events.iter().map(|(id, ..)| *id).collect();
        prop_assert_eq!(ids.len(), tables.events.len());
        prop_assert_eq!(ids, story.events("acme"));
        prop_assert_eq!(tables.head.books.deliveries, story.says.len() as u64);
        prop_assert!(tables.head.books.balance());
        prop_assert_eq!(tables.head.books.events, tables.events.len() as u64);
        let mut open: HashMap<u64, BTreeSet<pass_domain::fold::InstallationKey>> = HashMap::new();
        for event in tables.log() {
            let open = open.entry(tables.pass_of(event.position)).or_default();
            for key in &event.effect.closed {
                prop_assert!(open.remove(key), "closed what was not open: {:?}", event);
            }
            for key in &event.effect.opened {
                prop_assert!(open.insert(key.clone()), "opened what was open: {:?}", event);
            }
        }
        for row in tables.passes.values() {
            let state = stored::pass_from(&row.body).expect("readable").0;
            let mine: BTreeSet<_> = state.fold.open_installations().cloned().collect();
            prop_assert_eq!(open.remove(&row.number).unwrap_or_default(), mine);
        }
    }

    // One delivery at a time or all at once: the same log, effects included.
    #[test]
    fn batches_change_nothing(story in make::stories()) {
        let whole = make::Story { batches: vec![1_000], ..story.clone() };
        let single = make::Story { batches: vec![1], ..story };
        let (whole, single) = (told(&whole), told(&single));
        prop_assert_eq!(whole.log(), single.log());
        prop_assert_eq!(whole.states(), single.states());
        prop_assert_eq!(whole.head, single.head);
    }
}

#[test]
fn an_install_that_comes_late_reopens_nothing() {
    let mut tables = Tables::default();
    let say = |number, facts: &[make::Short]| {
        Arc::new(make::delivery(
            "acme",
            number,
            &Says::Facts(facts.to_vec(), None),
        ))
    };
    tables.append(&[
        say(1, &[short(1, Kind::Installed, 10)]),
        say(2, &[short(1, Kind::Uninstalled, 20)]),
    ]);
    assert_eq!(
        tables.append(&[say(3, &[short(1, Kind::Installed, 5)])]),
        [Outcome::Applied]
    );
    let log = tables.log();
    assert_eq!(log[1].effect.state_after, State::Uninstalled);
    assert!(
        log[2].effect.late && !log[2].effect.changed,
        "{:?}",
        log[2].effect
    );
    assert!(log[0].effect.changed && log[0].effect.opened.len() == 1);
}

#[test]
fn transition_facts_of_a_payload_are_remembered_with_the_pass() {
    let facts: Vec<make::Short> = (0..6).map(|at| short(1, Kind::Installed, at)).collect();
    let mut tables = Tables::default();
    tables.append(&[Arc::new(make::delivery(
        "acme",
        1,
        &Says::Facts(facts.clone(), None),
    ))]);
    let again = make::delivery("acme", 2, &Says::Facts(facts, None));
    let row = tables.passes.values().next().expect("a pass");
    let mut planner = Planner::new(tables.head.clone(), 0);
    planner.passes_wanted([&again]);
    let (state, recent) = stored::pass_from(&row.body).expect("readable");
    planner.pass_loaded(PassLoaded {
        number: row.number,
        source: row.source.clone(),
        vendor_pass_id: row.vendor_pass_id.clone(),
        state,
        recent,
        last_position: row.last_position,
        last_digest: row.last_digest,
    });
    assert_eq!(
        planner.facts_wanted([&again]),
        [],
        "none of them is looked up"
    );
    let resolved = planner.resolve(&again);
    assert_eq!(planner.apply(&resolved), Outcome::Duplicate);
}

#[test]
fn a_pass_that_counts_other_facts_than_the_log_stops_the_plan() {
    let late = make::delivery(
        "acme",
        2,
        &Says::Facts(vec![short(1, Kind::Updated, 1)], None),
    );
    let mut tables = Tables::default();
    tables.append(&[Arc::new(make::delivery(
        "acme",
        1,
        &Says::Facts(vec![short(1, Kind::Updated, 5)], None),
    ))]);
    let row = tables.passes.values().next().expect("a pass");
    let (state, recent) = stored::pass_from(&row.body).expect("readable");
    let mut planner = Planner::new(tables.head.clone(), 0);
    planner.passes_wanted([&late]);
    planner.pass_loaded(PassLoaded {
        number: 1,
        source: row.source.clone(),
        vendor_pass_id: row.vendor_pass_id.clone(),
        state,
        recent,
        last_position: 1,
        last_digest: 0,
    });
    let resolved = [planner.resolve(&late)];
    assert_eq!(planner.histories_wanted(&resolved), [1]);
    assert_eq!(
        planner.history_loaded(1, Vec::new()),
        Err(PlanError::History {
            number: 1,
            folded: 1,
            recorded: 0
        })
    );
}

#[test]
fn parts_are_taken_left_out_or_fenced_one_by_one() {
    let spool = |id| SpoolId([id; 16]);
    let delivery = Arc::new(make::delivery("acme", 1, &Says::Control));
    let part = |id, generation, sequences: &[u64]| AppendPart {
        spool: spool(id),
        generation,
        deliveries: sequences
            .iter()
            .map(|sequence| (*sequence, Arc::clone(&delivery)))
            .collect(),
    };
    let parts = [
        part(1, 1, &[4, 5, 6, 7]),
        part(1, 1, &[8]),
        part(1, 1, &[10]),
        part(2, 1, &[1]),
        part(3, 1, &[1]),
        part(1, 1, &[9, 11]),
        part(1, 1, &[]),
        part(4, 7, &[u64::MAX]),
    ];
    let place = |generation, committed_sequence| SpoolPlace {
        generation,
        committed_sequence,
        moved_by: None,
    };
    let mut places = HashMap::from([
        (spool(1), place(1, 5)),
        (spool(2), place(2, 0)),
        (spool(4), place(7, 0)),
    ]);
    let selected = select(&parts, &mut places);
    let committed = |committed_sequence, sequences: &[u64]| PartOutcome::Committed {
        committed_sequence,
        outcomes: sequences
            .iter()
            .map(|sequence| (*sequence, Outcome::Duplicate))
            .collect(),
    };
    assert_eq!(
        selected.parts,
        [
            committed(7, &[4, 5, 6, 7]),
            committed(8, &[8]),
            PartOutcome::Gap {
                expected_sequence: 9
            },
            PartOutcome::Fenced,
            PartOutcome::Fenced,
            PartOutcome::Gap {
                expected_sequence: 10
            },
            committed(8, &[]),
            PartOutcome::Gap {
                expected_sequence: 1
            },
        ]
    );
    let fresh: Vec<(usize, usize)> = selected
        .fresh
        .iter()
        .map(|fresh| (fresh.part, fresh.at))
        .collect();
    assert_eq!(fresh, [(0, 2), (0, 3), (1, 0)]);
    let moved: Vec<_> = [1, 2, 4]
        .map(|id| {
            (
                places[&spool(id)].committed_sequence,
                places[&spool(id)].moved_by,
            )
        })
        .into();
    assert_eq!(moved, [(8, Some(delivery.id)), (0, None), (0, None)]);
}
