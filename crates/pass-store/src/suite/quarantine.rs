//! Cases about quarantine, replay and discard.

use std::sync::Arc;

use pass_domain::delivery::{Decoded, Delivery, Outcome, UndecodableReason};
use pass_domain::event::Position;
use pass_domain::fold::State;
use pass_domain::ids::DeliveryId;
use pass_domain::kind::Kind;

use super::make::{Says, Short, at, delivery, delivery_id, pass, short};
use super::{Feed, whole_log};
use crate::contract::{DeliveryRecord, Error, Head, PassStore, QuarantineState, Replayed, Scope};

fn facts(number: u64, facts: &[Short]) -> Delivery {
    delivery("acme", number, &Says::Facts(facts.to_vec(), None))
}

fn nonsense(number: u64) -> Delivery {
    delivery("acme", number, &Says::Nonsense)
}

async fn replay(store: &dyn PassStore, delivery: &Delivery) -> (DeliveryRecord, Head) {
    match store
        .delivery_replay(delivery, at(3_000_000))
        .await
        .expect("replayed")
    {
        Replayed::Done(record, head) => (*record, head),
        other => panic!("not done: {other:?}"),
    }
}

async fn found(store: &dyn PassStore, id: DeliveryId) -> DeliveryRecord {
    store
        .delivery_find(&Scope::everything(), id, true)
        .await
        .expect("read")
        .expect("found")
}

fn state(record: &DeliveryRecord) -> QuarantineState {
    record.quarantine.as_ref().expect("was in quarantine").state
}

/// Facts of a replay enter the log at its end, as of the delivery's receive time; again changes nothing; other
/// facts are a conflict.
pub async fn a_replayed_delivery_is_applied_once_as_of_its_receive_time(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    let known = short(1, Kind::Uninstalled, 20);
    assert_eq!(
        feed.append([nonsense(1), facts(2, &[known])]).await,
        [Outcome::Quarantined, Outcome::Applied]
    );
    let kept = found(&*store, delivery_id(1)).await;
    assert_eq!(
        (kept.outcome, state(&kept), kept.events.len()),
        (Outcome::Quarantined, QuarantineState::Open, 0)
    );
    assert_eq!(kept.delivery.body, nonsense(1).body);
    assert!(
        matches!(&kept.delivery.decoded, Decoded::Undecodable(why) if why.reason == UndecodableReason::NotJson)
    );

    let mut again = facts(1, &[short(1, Kind::Installed, 10), known]);
    again.adapter_version = "passkit/2".to_owned();
    // What the gateway says of the receipt is not believed a second time.
    again.receive_time = at(9_000_000);
    again.body = b"other".to_vec();
    let (record, head) = replay(&*store, &again).await;
    assert_eq!(
        (record.outcome, state(&record), record.duplicate_facts),
        (Outcome::Applied, QuarantineState::Replayed, 1)
    );
    assert_eq!(
        (record.number, record.events.len(), head.position),
        (1, 2, Position(2))
    );
    let log = whole_log(&*store).await;
    let event = &log[1];
    assert_eq!(
        (event.receive_time, event.record_time),
        (nonsense(1).receive_time, at(3_000_000))
    );
    assert_eq!(
        (event.adapter_version.as_str(), event.delivery),
        ("passkit/2", delivery_id(1))
    );
    assert!(event.effect.late && event.personal.is_some(), "{event:?}");
    let passes = store
        .passes_find(&Scope::everything(), &[pass("acme", 1)])
        .await
        .expect("read");
    assert_eq!(
        passes[0].as_ref().expect("found").state.state(),
        State::Uninstalled
    );
    let kept = found(&*store, delivery_id(1)).await;
    assert_eq!(
        (&kept.delivery.body, kept.body_bytes),
        (&nonsense(1).body, nonsense(1).body.len() as u64)
    );
    let books = store.log_info().await.expect("read").books;
    assert!(books.balance());
    assert_eq!(
        (
            books.deliveries,
            books.applied,
            books.quarantined,
            books.quarantine_open
        ),
        (2, 2, 0, 0)
    );

    let (second, second_head) = replay(&*store, &again).await;
    assert_eq!((second, second_head), (record.clone(), head));
    let other = facts(1, &[short(1, Kind::Installed, 11)]);
    let conflict = store
        .delivery_replay(&other, at(0))
        .await
        .expect("answered");
    assert!(matches!(conflict, Replayed::Conflict), "{conflict:?}");
    let not = store
        .delivery_replay(&facts(2, &[known]), at(0))
        .await
        .expect("answered");
    assert!(matches!(not, Replayed::NotQuarantined), "{not:?}");
    let none = store
        .delivery_replay(&facts(7, &[known]), at(0))
        .await
        .expect("answered");
    assert!(matches!(none, Replayed::NotFound), "{none:?}");
    let mut foreign = nonsense(3);
    feed.append([foreign.clone()]).await;
    foreign.source = super::make::source("zeta");
    let refused = store.delivery_replay(&foreign, at(0)).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
    assert_eq!(
        store.head().await.expect("read").position,
        Position(2),
        "none of these changed anything"
    );
}

/// The reason is brought up to date; the delivery waits on. All outcomes are possible in the end.
pub async fn a_delivery_still_undecodable_stays_open(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    feed.append([nonsense(1), nonsense(2)]).await;
    let mut again = nonsense(1);
    if let Decoded::Undecodable(why) = &mut again.decoded {
        why.reason = UndecodableReason::KindUnknown;
        why.detail = "event: unknown kind".to_owned();
    }
    let (record, _) = replay(&*store, &again).await;
    let stay = record.quarantine.as_ref().expect("in quarantine");
    assert_eq!(
        (stay.state, stay.reason, record.outcome),
        (
            QuarantineState::Open,
            UndecodableReason::KindUnknown,
            Outcome::Quarantined
        )
    );
    assert_eq!(
        (stay.detail.as_str(), stay.update_time),
        ("event: unknown kind", at(3_000_000))
    );
    let books = store.log_info().await.expect("read").books;
    assert_eq!(
        (books.quarantined, books.quarantine_open, books.balance()),
        (2, 2, true)
    );
    // Refused by the store, then understood as a handshake.
    let many: Vec<Short> = (0..40)
        .map(|seconds| short(1, Kind::Updated, seconds))
        .collect();
    let (record, _) = replay(&*store, &facts(1, &many)).await;
    assert_eq!(
        record.quarantine.expect("in quarantine").reason,
        UndecodableReason::StoreRefused
    );
    assert_eq!(
        store
            .log_info()
            .await
            .expect("read")
            .books
            .quarantined_facts,
        40
    );
    let (record, _) = replay(&*store, &delivery("acme", 1, &Says::Control)).await;
    assert_eq!(
        (record.outcome, state(&record)),
        (Outcome::Control, QuarantineState::Replayed)
    );
    let books = store.log_info().await.expect("read").books;
    assert!(books.balance());
    assert_eq!(
        (
            books.control,
            books.quarantined,
            books.facts,
            books.quarantined_facts
        ),
        (1, 1, 0, 0)
    );
}

/// A discard keeps the bytes and the operator's words; doing it again changes nothing; a replay undoes it.
pub async fn a_discard_is_final_until_replayed(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    let fact = short(1, Kind::Updated, 1);
    feed.append([nonsense(1), nonsense(2), facts(3, &[fact])])
        .await;
    let discard = |number, words: &'static str| {
        let store = Arc::clone(&store);
        async move {
            store
                .delivery_discard(delivery_id(number), words, at(4_000_000))
                .await
                .expect("answered")
        }
    };
    let first = discard(1, "spam").await.expect("found");
    assert_eq!(
        (state(&first), first.outcome),
        (QuarantineState::Discarded, Outcome::Quarantined)
    );
    assert_eq!(
        first.quarantine.as_ref().expect("was").discard_reason,
        "spam"
    );
    assert_eq!(discard(1, "other words").await.expect("found"), first);
    assert_eq!(discard(3, "never there").await, None);
    assert_eq!(discard(9, "no such").await, None);
    let books = store.log_info().await.expect("read").books;
    assert_eq!(
        (books.quarantined, books.quarantine_open, books.balance()),
        (2, 1, true)
    );
    assert_eq!(
        found(&*store, delivery_id(1)).await.delivery.body,
        nonsense(1).body
    );

    let (record, _) = replay(&*store, &nonsense(1)).await;
    assert_eq!(state(&record), QuarantineState::Open);
    assert_eq!(
        store.log_info().await.expect("read").books.quarantine_open,
        2
    );
    discard(1, "spam").await;
    let (record, _) = replay(&*store, &facts(1, &[fact])).await;
    assert_eq!(
        (state(&record), record.outcome),
        (QuarantineState::Replayed, Outcome::Duplicate)
    );
    assert_eq!(
        state(&discard(1, "too late").await.expect("found")),
        QuarantineState::Replayed
    );
    let long = "é".repeat(2_000);
    let record = store
        .delivery_discard(delivery_id(2), &long, at(0))
        .await
        .expect("answered")
        .expect("found");
    assert_eq!(
        record.quarantine.expect("was").discard_reason,
        "é".repeat(512)
    );
    let books = store.log_info().await.expect("read").books;
    assert_eq!(
        (
            books.quarantined,
            books.duplicate,
            books.quarantine_open,
            books.balance()
        ),
        (1, 1, 0, true)
    );
}

/// Pages go back from the newest; the open ones can be listed alone.
pub async fn deliveries_are_listed_newest_first(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    let deliveries = (1..=20_u64).map(|number| {
        if number % 3 == 0 {
            nonsense(number)
        } else {
            facts(number, &[short(1, Kind::Updated, 1)])
        }
    });
    feed.append(deliveries).await;
    store
        .delivery_discard(delivery_id(9), "spam", at(0))
        .await
        .expect("discarded");
    for (open, expected) in [
        (false, (1..=20).rev().collect::<Vec<u64>>()),
        (true, vec![18, 15, 12, 6, 3]),
    ] {
        let (mut numbers, mut from) = (Vec::new(), 0);
        loop {
            let page = store
                .deliveries_list(&Scope::everything(), open, from, 3)
                .await
                .expect("read");
            assert!(page.rows.len() <= 3);
            assert!(
                page.rows
                    .iter()
                    .all(|record| record.delivery.body.is_empty()),
                "no bodies in lists"
            );
            assert!(
                page.rows
                    .iter()
                    .all(|record| record.quarantine.is_some() == (record.number % 3 == 0))
            );
            numbers.extend(page.rows.iter().map(|record| record.number));
            match page.next {
                Some(next) => from = next,
                None => break,
            }
        }
        assert_eq!(numbers, expected);
    }
}

/// Nothing in quarantine, nothing open in it any more, and pages that come out even.
pub async fn open_quarantine_is_listed_however_much_of_it_there_is(store: Arc<dyn PassStore>) {
    let pages = async || {
        let (mut pages, mut from) = (Vec::new(), 0);
        loop {
            let page = store
                .deliveries_list(&Scope::everything(), true, from, 3)
                .await
                .expect("read");
            pages.push(page.rows.len());
            match page.next {
                Some(next) => from = next,
                None => return pages,
            }
        }
    };
    assert_eq!(pages().await, [0], "an empty log");
    let mut feed = Feed::open(&store, 1).await;
    feed.append([facts(1, &[short(1, Kind::Updated, 1)])]).await;
    assert_eq!(pages().await, [0], "nothing was ever open");
    feed.append((2..=7).map(nonsense)).await;
    assert_eq!(pages().await, [3, 3, 0]);
    for number in 2..=7 {
        store
            .delivery_discard(delivery_id(number), "spam", at(0))
            .await
            .expect("discarded");
    }
    assert_eq!(pages().await, [0], "nothing is open any more");
}
