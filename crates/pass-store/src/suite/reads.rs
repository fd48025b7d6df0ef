//! Cases about reading.

use std::sync::Arc;

use pass_domain::delivery::Decoded;
use pass_domain::event::Position;
use pass_domain::ids::{EventId, PassKey};
use pass_domain::kind::Kind;

use super::make::{Says, delivery, delivery_id, pass, short, source};
use super::{Feed, whole_log};
use crate::contract::{EventParent, LookupKey, PassOrder, PassStore, Scope};

/// Twelve events: of passes 0 to 2, each of source acme and zeta in turn.
async fn filled(store: &Arc<dyn PassStore>) -> Feed {
    let mut feed = Feed::open(store, 1).await;
    for number in 0..12_u8 {
        let name = if number % 2 == 0 { "acme" } else { "zeta" };
        let facts = vec![short(number / 2 % 3, Kind::Updated, number.into())];
        feed.append([delivery(name, number.into(), &Says::Facts(facts, None))])
            .await;
    }
    feed
}

async fn listed(
    store: &dyn PassStore,
    parent: &EventParent,
    descending: bool,
    rows_max: u32,
) -> Vec<u64> {
    let (mut positions, mut from) = (Vec::new(), 0);
    for _ in 0..50 {
        let page = store
            .events_list(&Scope::everything(), parent, descending, from, rows_max)
            .await
            .expect("read");
        assert!(page.rows.len() <= rows_max as usize);
        positions.extend(page.rows.iter().map(|event| event.position.0));
        match page.next {
            Some(next) => from = next,
            None => return positions,
        }
    }
    panic!("the list has no end: {positions:?}");
}

/// Every page size gives the same list, forwards and backwards.
pub async fn events_are_paged_both_ways(store: Arc<dyn PassStore>) {
    filled(&store).await;
    let parents = [
        (EventParent::All, (1..=12).collect::<Vec<u64>>()),
        (
            EventParent::Source(source("zeta")),
            vec![2, 4, 6, 8, 10, 12],
        ),
        (EventParent::Pass(pass("acme", 1)), vec![3, 9]),
        (EventParent::Pass(pass("acme", 9)), vec![]),
    ];
    for (parent, expected) in parents {
        let reversed: Vec<u64> = expected.iter().rev().copied().collect();
        for rows_max in [1, 2, 5, 12, 100] {
            assert_eq!(
                listed(&*store, &parent, false, rows_max).await,
                expected,
                "{parent:?} by {rows_max}"
            );
            assert_eq!(
                listed(&*store, &parent, true, rows_max).await,
                reversed,
                "{parent:?} back by {rows_max}"
            );
        }
    }
    let page = store
        .events_after(&Scope::everything(), Position(5), 3)
        .await
        .expect("read");
    assert_eq!(
        page.rows
            .iter()
            .map(|event| event.position.0)
            .collect::<Vec<_>>(),
        [6, 7, 8]
    );
    assert_eq!(page.next, Some(8));
    for past in [12, 13, u64::MAX] {
        let page = store
            .events_after(&Scope::everything(), Position(past), 3)
            .await
            .expect("read");
        assert_eq!((page.rows.len(), page.next), (0, None), "after {past}");
    }
}

/// A narrow scope sees its sources only, nothing personal, and is told how far was looked.
pub async fn a_scope_hides_other_sources_and_personal_data(store: Arc<dyn PassStore>) {
    filled(&store).await;
    let everything = Scope::everything();
    let scope = Scope::limited([source("zeta")], []);
    let page = store
        .events_after(&scope, Position(0), 3)
        .await
        .expect("read");
    assert_eq!(
        page.rows
            .iter()
            .map(|event| event.position.0)
            .collect::<Vec<_>>(),
        [2]
    );
    assert_eq!(page.next, Some(3), "rows out of scope were examined");
    assert!(page.rows[0].personal.is_none());
    let nobody = Scope::limited([], []).with_personal(true);
    let page = store
        .events_after(&nobody, Position(0), 5)
        .await
        .expect("read");
    assert_eq!((page.rows.len(), page.next), (0, Some(5)));

    let log = whole_log(&*store).await;
    assert!(log.iter().all(|event| event.personal.is_some()));
    assert!(
        store
            .event_find(&scope, log[0].fact.id)
            .await
            .expect("read")
            .is_none()
    );
    let mine = store
        .event_find(&scope, log[1].fact.id)
        .await
        .expect("read")
        .expect("found");
    assert!(mine.personal.is_none());
    let page = store
        .events_list(&scope, &EventParent::Pass(pass("acme", 0)), false, 0, 10)
        .await
        .expect("read");
    assert_eq!((page.rows.len(), page.next), (0, None));
    let page = store
        .events_list(&scope, &EventParent::All, true, 0, 10)
        .await
        .expect("read");
    assert!(
        page.rows
            .iter()
            .all(|event| event.source == source("zeta") && event.personal.is_none())
    );

    let keys = [pass("acme", 0), pass("zeta", 0)];
    let found = store.passes_find(&scope, &keys).await.expect("read");
    assert!(found[0].is_none() && found[1].is_some());
    for order in [PassOrder::FirstSeen, PassOrder::LastEventDescending] {
        let page = store
            .passes_list(&scope, None, order, 0, 100)
            .await
            .expect("read");
        assert_eq!(page.rows.len(), 3);
        let page = store
            .passes_list(&scope, Some(&source("acme")), order, 0, 100)
            .await
            .expect("read");
        assert_eq!(page.rows.len(), 0);
        let page = store
            .passes_list(&everything, Some(&source("acme")), order, 0, 100)
            .await
            .expect("read");
        assert_eq!(page.rows.len(), 3);
    }
    let key = LookupKey::ExternalId("member-0".to_owned());
    assert_eq!(
        store
            .passes_lookup(&scope, None, &key, 10)
            .await
            .expect("read")
            .len(),
        2
    );
    assert_eq!(
        store
            .passes_lookup(&scope, Some(&source("acme")), &key, 10)
            .await
            .expect("read")
            .len(),
        0
    );

    assert!(
        store
            .delivery_find(&scope, delivery_id(0), true)
            .await
            .expect("read")
            .is_none()
    );
    let told = store
        .delivery_find(&scope, delivery_id(1), true)
        .await
        .expect("read")
        .expect("found");
    assert!(
        told.delivery.body.is_empty() && told.body_bytes > 0,
        "raw bodies are personal"
    );
    assert!(matches!(&told.delivery.decoded, Decoded::Facts(facts) if facts.personal.is_empty()));
    let page = store
        .deliveries_list(&scope, false, 0, 4)
        .await
        .expect("read");
    assert_eq!((page.rows.len(), page.next), (2, Some(9)));
}

async fn passes(store: &dyn PassStore, order: PassOrder, rows_max: u32) -> Vec<PassKey> {
    let (mut keys, mut from) = (Vec::new(), 0);
    for _ in 0..50 {
        let page = store
            .passes_list(&Scope::everything(), None, order, from, rows_max)
            .await
            .expect("read");
        keys.extend(page.rows.into_iter().map(|record| record.key));
        match page.next {
            Some(next) => from = next,
            None => return keys,
        }
    }
    panic!("the list has no end: {keys:?}");
}

/// As first seen, or newest event first; an event moves its pass to the front.
pub async fn passes_are_paged_in_both_orders(store: Arc<dyn PassStore>) {
    let mut feed = filled(&store).await;
    let again = delivery(
        "acme",
        99,
        &Says::Facts(vec![short(1, Kind::Updated, 99)], None),
    );
    feed.append([again]).await;
    let seen: Vec<PassKey> = (0..3)
        .flat_map(|number| [pass("acme", number), pass("zeta", number)])
        .collect();
    let newest = [
        ("acme", 1),
        ("zeta", 2),
        ("acme", 2),
        ("zeta", 1),
        ("zeta", 0),
        ("acme", 0),
    ];
    let newest: Vec<PassKey> = newest
        .into_iter()
        .map(|(name, number)| pass(name, number))
        .collect();
    for rows_max in [1, 2, 4, 6, 100] {
        assert_eq!(
            passes(&*store, PassOrder::FirstSeen, rows_max).await,
            seen,
            "by {rows_max}"
        );
        assert_eq!(
            passes(&*store, PassOrder::LastEventDescending, rows_max).await,
            newest,
            "by {rows_max}"
        );
    }
}

/// By serial number and by the issuer's id, oldest first, within a bound.
pub async fn passes_are_looked_up_by_other_names(store: Arc<dyn PassStore>) {
    filled(&store).await;
    let scope = Scope::everything();
    let look = |key: LookupKey, only: Option<&'static str>, rows_max| {
        let (store, scope) = (Arc::clone(&store), scope.clone());
        async move {
            let only = only.map(source);
            let found = store
                .passes_lookup(&scope, only.as_ref(), &key, rows_max)
                .await
                .expect("read");
            found
                .into_iter()
                .map(|record| record.key)
                .collect::<Vec<_>>()
        }
    };
    let serial = |text: &str| LookupKey::SerialNumber(text.to_owned());
    assert_eq!(
        look(serial("serial-1"), None, 10).await,
        [pass("acme", 1), pass("zeta", 1)]
    );
    assert_eq!(
        look(serial("serial-1"), Some("zeta"), 10).await,
        [pass("zeta", 1)]
    );
    assert_eq!(look(serial("serial-1"), None, 1).await, [pass("acme", 1)]);
    assert_eq!(look(serial("member-0"), None, 10).await, []);
    assert_eq!(look(serial(""), None, 10).await, []);
    let member = look(
        LookupKey::ExternalId("member-0".to_owned()),
        Some("acme"),
        10,
    )
    .await;
    assert_eq!(member, [pass("acme", 0), pass("acme", 1)]);
}

/// An empty store and unknown names give nothing, not errors.
pub async fn what_is_not_there_is_absent(store: Arc<dyn PassStore>) {
    let scope = Scope::everything();
    assert_eq!(store.passes_find(&scope, &[]).await.expect("read"), []);
    let nobody = Scope::limited([], []).with_personal(true);
    let serial = LookupKey::SerialNumber("serial-1".to_owned());
    let found = store.passes_lookup(&nobody, None, &serial, 10).await;
    assert_eq!(found.expect("read"), []);
    let head = store.head().await.expect("read");
    assert_eq!((head.position, head.digest), (Position(0), 0));
    let appended = store.append(&[], super::make::at(0)).await;
    assert_eq!(appended.expect("nothing to do").head, head);
    assert_ne!(head.epoch, 0);
    assert_eq!(store.digest_at(Position(0)).await.expect("read"), Some(0));
    assert_eq!(store.digest_at(Position(1)).await.expect("read"), None);
    assert_eq!(
        store.digest_at(Position(u64::MAX)).await.expect("read"),
        None
    );
    assert_eq!(
        store
            .position_before_time(super::make::at(0))
            .await
            .expect("read"),
        Position(0)
    );
    assert!(
        store
            .event_find(&scope, EventId::from_bytes([7; 16]))
            .await
            .expect("read")
            .is_none()
    );
    assert!(
        store
            .delivery_find(&scope, delivery_id(1), true)
            .await
            .expect("read")
            .is_none()
    );
    assert_eq!(
        store
            .passes_find(&scope, &[pass("acme", 1)])
            .await
            .expect("read"),
        [None]
    );
    assert_eq!(store.passes_find(&scope, &[]).await.expect("read"), []);
    let appended = store
        .append(&[], super::make::at(0))
        .await
        .expect("appended");
    assert_eq!((appended.parts.len(), appended.head), (0, head));
    let info = store.log_info().await.expect("read");
    assert!(info.spools.is_empty() && info.books == crate::contract::Books::default());
}
