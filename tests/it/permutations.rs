//! Guarantees 3 and 4: what is known of a pass depends on the set of its deliveries alone. Deliveries go
//! through the adapters in every order and number; the pure fold takes most of the cases, the store on SQLite
//! some hundreds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pass_domain::Timestamp;
use pass_domain::delivery::{AuthScheme, AuthVerdict, Decoded, Delivery, Method, TraceContext};
use pass_domain::event::Position;
use pass_domain::fact::Fact;
use pass_domain::fold::{Fold, PassState};
use pass_domain::ids::{DeliveryId, EventId, PassKey};
use pass_store::{
    AppendPart, EventParent, PartOutcome, PassOrder, PassStore, Scope, SpoolHello, SpoolId,
    SqlStore, SqliteOptions,
};
use system_tests::callback::{BASE_SECOND, Callback, life};
use system_tests::dice::Dice;
use system_tests::sources::Decoder;

/// A pass as the store keeps it: facts once by id, folded in place where that is allowed, else anew.
#[derive(Default)]
struct Kept {
    facts: BTreeMap<EventId, Fact>,
    state: PassState,
    refolds: usize,
}

impl Kept {
    fn take(&mut self, decoded: &Decoded) {
        let Decoded::Facts(decoded) = decoded else {
            panic!("lives are decodable: {decoded:?}")
        };
        for fact in &decoded.facts {
            if self.facts.contains_key(&fact.id) {
                continue;
            }
            self.facts.insert(fact.id, fact.clone());
            if self.state.fold.is_late(fact) {
                self.refolds += 1;
                self.state.fold = Fold::from_facts(self.facts.values());
            } else {
                self.state.fold.apply(fact);
            }
        }
        if let Some(snapshot) = &decoded.snapshot {
            self.state.merge_snapshot(snapshot);
        }
    }
}

/// A random order with random repetitions, every one of `length` at least once.
fn some_order(dice: &mut Dice, length: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    for _ in 0..dice.index(length + 1) {
        order.push(dice.index(length));
    }
    dice.shuffle(&mut order);
    order
}

fn received(seconds: usize) -> Timestamp {
    let seconds = i64::try_from(seconds).expect("small");
    Timestamp::from_second(BASE_SECOND + 1_000_000 + seconds).expect("near the base")
}

/// 2,500 lives in 5 orders each: 12,500 cases.
#[test]
fn the_state_of_a_pass_depends_on_the_set_of_its_deliveries_alone() {
    const SEED: u64 = 1;
    let decoder = Decoder::new().unwrap();
    let mut dice = Dice::new(SEED);
    let (mut cases, mut refolds) = (0, 0);
    for index in 0..2500 {
        let callbacks = life(&mut dice, &index.to_string());
        let mut in_order = Kept::default();
        for (at, callback) in callbacks.iter().enumerate() {
            in_order.take(&decoder.decode(callback, received(at)));
        }
        assert_eq!(
            in_order.state.fold,
            Fold::from_facts(in_order.facts.values()),
            "seed {SEED}, life {index}"
        );
        for case in 0..5 {
            let order = some_order(&mut dice, callbacks.len());
            let mut kept = Kept::default();
            for (at, which) in order.iter().enumerate() {
                // Another arrival is another receive time, too, and must not show either.
                kept.take(&decoder.decode(&callbacks[*which], received(at * 7 + case)));
            }
            let told = || {
                let bodies: Vec<_> = callbacks
                    .iter()
                    .map(|c| String::from_utf8_lossy(&c.body))
                    .collect();
                format!("seed {SEED}, life {index}, order {order:?} of {bodies:#?}")
            };
            assert!(
                kept.facts.keys().eq(in_order.facts.keys()),
                "other facts: {}",
                told()
            );
            assert_eq!(kept.state, in_order.state, "another state: {}", told());
            assert_eq!(
                kept.state.fold,
                Fold::from_facts(kept.facts.values()),
                "refold differs: {}",
                told()
            );
            cases += 1;
            refolds += kept.refolds;
        }
    }
    assert!(
        cases >= 10_000 && refolds > cases / 2,
        "{cases} cases, {refolds} refolds: too tame to prove anything"
    );
}

/// Numbers the deliveries of one run; the id is of no meaning here but must be new.
struct Numbering(u64);

impl Numbering {
    fn delivery(&mut self, decoder: &Decoder, callback: &Callback) -> (u64, Arc<Delivery>) {
        self.0 += 1;
        let receive_time = received(usize::try_from(self.0).expect("small"));
        let mut id = [0x70; 16];
        id[8..].copy_from_slice(&self.0.to_be_bytes());
        let delivery = Delivery {
            id: DeliveryId::from_bytes(id),
            source: decoder.uid(callback.source).clone(),
            vendor: decoder.source(callback.source).vendor().to_owned(),
            organization: String::new(),
            receive_time,
            method: Method::Post,
            path: callback.path(),
            headers: Vec::new(),
            body: callback.body.to_vec(),
            auth: AuthVerdict {
                scheme: AuthScheme::ApiKey,
                key_id: "a".to_owned(),
                detail: String::new(),
            },
            adapter_version: "test/1".to_owned(),
            trace: TraceContext::default(),
            decoded: decoder.decode(callback, receive_time),
        };
        (self.0, Arc::new(delivery))
    }
}

/// What a store ends up with, apart from the order of its log.
#[derive(Debug, PartialEq)]
struct Known {
    states: BTreeMap<String, PassState>,
    events: BTreeSet<EventId>,
}

/// Sends deliveries into a new store in batches of random size and reads back what it knows.
async fn known_after(dice: &mut Dice, decoder: &Decoder, callbacks: &[Arc<Callback>]) -> Known {
    let dir = tempfile::tempdir().unwrap();
    let store = SqlStore::open(SqliteOptions::new(dir.path().join("log.db")))
        .await
        .unwrap();
    let spool = SpoolId([7; 16]);
    let hello = SpoolHello {
        spool,
        gateway: "test".to_owned(),
        settled_sequence: 0,
        oldest_sequence: 0,
        may_change_epoch: true,
    };
    let opened = store.spool_open(&hello).await.unwrap();
    let mut numbering = Numbering(0);
    let mut rest = callbacks;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at((1 + dice.index(60)).min(rest.len()));
        rest = later;
        let part = AppendPart {
            spool,
            generation: opened.generation,
            deliveries: batch
                .iter()
                .map(|callback| numbering.delivery(decoder, callback))
                .collect(),
        };
        let now = received(usize::try_from(numbering.0).expect("small"));
        let appended = store.append(&[part], now).await.unwrap();
        assert!(
            matches!(appended.parts[..], [PartOutcome::Committed { .. }]),
            "{:?}",
            appended.parts
        );
    }
    let books = store.log_info().await.unwrap().books;
    assert!(books.balance(), "{books:?}");
    assert_eq!(books.deliveries, callbacks.len() as u64);
    assert_eq!(books.quarantined, 0, "{books:?}");

    let scope = Scope::everything();
    let mut known = Known {
        states: BTreeMap::new(),
        events: BTreeSet::new(),
    };
    let mut facts: BTreeMap<PassKey, Vec<Fact>> = BTreeMap::new();
    let mut after = Position(0);
    loop {
        let page = store.events_after(&scope, after, 1000).await.unwrap();
        for event in &page.rows {
            assert!(
                known.events.insert(event.fact.id),
                "event {} is there twice",
                event.fact.id
            );
            facts
                .entry(event.pass_key())
                .or_default()
                .push(event.fact.clone());
        }
        match page.next {
            Some(next) => after = Position(next),
            None => break,
        }
    }
    let mut from = 0;
    loop {
        let page = store
            .passes_list(&scope, None, PassOrder::FirstSeen, from, 1000)
            .await
            .unwrap();
        for pass in page.rows {
            let recorded = facts.remove(&pass.key).unwrap_or_default();
            assert_eq!(
                pass.state.fold,
                Fold::from_facts(&recorded),
                "refold of {} differs",
                pass.key
            );
            let by_pass = store
                .events_list(&scope, &EventParent::Pass(pass.key.clone()), false, 0, 1000)
                .await
                .unwrap();
            assert_eq!(
                by_pass.rows.len(),
                recorded.len(),
                "history of {}",
                pass.key
            );
            known.states.insert(pass.key.to_string(), pass.state);
        }
        match page.next {
            Some(next) => from = next,
            None => break,
        }
    }
    assert!(
        facts.is_empty(),
        "events of passes that are not listed: {:?}",
        facts.keys()
    );
    store.close().await;
    known
}

/// 200 lives, mixed with each other in 3 orders: 600 cases.
#[tokio::test]
async fn the_store_knows_the_same_after_any_order_and_repetition() {
    const SEED: u64 = 2;
    let decoder = Decoder::new().unwrap();
    let mut dice = Dice::new(SEED);
    let callbacks: Vec<_> = (0..200)
        .flat_map(|index| life(&mut dice, &index.to_string()))
        .collect();
    let in_order = known_after(&mut dice, &decoder, &callbacks).await;
    assert_eq!(in_order.states.len(), 200);
    for case in 0..3 {
        let order = some_order(&mut dice, callbacks.len());
        let mixed: Vec<_> = order
            .iter()
            .map(|which| Arc::clone(&callbacks[*which]))
            .collect();
        let known = known_after(&mut dice, &decoder, &mixed).await;
        for (name, state) in &in_order.states {
            assert_eq!(
                known.states.get(name),
                Some(state),
                "seed {SEED}, order {case}: {name}"
            );
        }
        assert!(
            known == in_order,
            "seed {SEED}, order {case}: other passes or events"
        );
    }
}
