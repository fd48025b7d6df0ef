//! Cases about what a scope leaves visible: the same reads by an all-seeing caller, without the rest.

use std::sync::Arc;

use pass_domain::event::{Event, Position};
use pass_domain::ids::{PassKey, SourceUid};
use pass_domain::kind::Kind;

use super::make::{Says, delivery, pass, short, source};
use super::{Feed, whole_log};
use crate::contract::{
    DeliveryRecord, EventParent, LookupKey, Page, PassOrder, PassRecord, PassStore, Scope,
};

const SOURCES: [&str; 4] = ["acme", "mixed", "plain", "zeta"];

/// Sources of one organization each, one whose organization changes, and one without.
fn organization(name: &str, number: u64) -> &'static str {
    match name {
        "acme" => "north",
        "zeta" => "south",
        "mixed" if number.is_multiple_of(3) => "north",
        "mixed" => "south",
        _ => "",
    }
}

/// Passes 0 to 2 of each source, four events each, and deliveries in quarantine.
async fn filled(store: &Arc<dyn PassStore>) {
    let mut feed = Feed::open(store, 1).await;
    for number in 0..64_u64 {
        let name = SOURCES[usize::try_from(number % 4).expect("small")];
        let says = if number >= 48 {
            Says::Nonsense
        } else {
            let of = u8::try_from(number / 4 % 3).expect("small");
            let seconds = i64::try_from(number).expect("small");
            Says::Facts(vec![short(of, Kind::Updated, seconds)], None)
        };
        let mut made = delivery(name, number, &says);
        made.organization = organization(name, number / 4).to_owned();
        feed.append([made]).await;
    }
}

/// Scopes of any few sources and organizations, some of which nobody has.
fn scopes() -> Vec<Scope> {
    let subsets = |names: &'static [&'static str]| {
        (0..1_usize << names.len()).map(move |bits| {
            (names.iter().enumerate())
                .filter(move |(at, _)| bits >> at & 1 == 1)
                .map(|(_, name)| *name)
        })
    };
    let mut scopes = vec![Scope::everything()];
    for sources in subsets(&["acme", "mixed", "other"]) {
        for organizations in subsets(&["north", "south", ""]) {
            let sources = sources.clone().map(source);
            scopes.push(Scope::limited(sources, organizations.map(str::to_owned)));
        }
    }
    scopes
}

/// All rows of a list, page by page.
async fn all<T, F>(mut page: impl FnMut(u64) -> F) -> Vec<T>
where
    F: Future<Output = Result<Page<T>, crate::Error>>,
{
    let (mut rows, mut from) = (Vec::new(), 0);
    for _ in 0..100 {
        let page = page(from).await.expect("read");
        rows.extend(page.rows);
        match page.next {
            Some(next) => from = next,
            None => return rows,
        }
    }
    panic!("the list has no end");
}

fn positions(events: &[Arc<Event>]) -> Vec<u64> {
    events.iter().map(|event| event.position.0).collect()
}

fn keys(passes: &[PassRecord]) -> Vec<PassKey> {
    passes.iter().map(|pass| pass.key.clone()).collect()
}

fn numbers(deliveries: &[DeliveryRecord]) -> Vec<u64> {
    deliveries.iter().map(|one| one.number).collect()
}

/// What an all-seeing caller reads, and what of it `scope` leaves.
struct Model {
    scope: Scope,
    log: Vec<Arc<Event>>,
    passes: Vec<PassRecord>,
    deliveries: Vec<DeliveryRecord>,
}

impl Model {
    fn events(&self, wanted: impl Fn(&Event) -> bool) -> Vec<u64> {
        let visible = (self.log.iter())
            .filter(|event| self.scope.allows(&event.source, &event.organization))
            .filter(|event| wanted(event));
        visible.map(|event| event.position.0).collect()
    }

    fn sees_pass(&self, key: &PassKey) -> bool {
        let found = self.passes.iter().find(|pass| pass.key == *key);
        found.is_some_and(|pass| self.scope.allows(&pass.key.source, &pass.organization))
    }

    fn passes(&self, wanted: impl Fn(&PassRecord) -> bool) -> Vec<PassKey> {
        let visible = (self.passes.iter()).filter(|pass| self.sees_pass(&pass.key));
        visible
            .filter(|pass| wanted(pass))
            .map(|pass| pass.key.clone())
            .collect()
    }
}

/// Whatever is asked in whatever scope, the answer is the all-seeing one without what is out of scope.
pub async fn every_read_gives_what_its_scope_allows_and_nothing_else(store: Arc<dyn PassStore>) {
    filled(&store).await;
    let everything = Scope::everything();
    let all_seeing = Model {
        scope: everything.clone(),
        log: whole_log(&*store).await,
        passes: all(|from| store.passes_list(&everything, None, PassOrder::FirstSeen, from, 100))
            .await,
        deliveries: all(|from| store.deliveries_list(&everything, false, from, 100)).await,
    };
    assert_eq!(
        (
            all_seeing.log.len(),
            all_seeing.passes.len(),
            all_seeing.deliveries.len()
        ),
        (48, 12, 64)
    );
    let mut model = all_seeing;
    for scope in scopes() {
        model.scope = scope.clone();
        check(&store, &model).await;
    }
}

async fn check(store: &Arc<dyn PassStore>, model: &Model) {
    let scope = &model.scope;
    let live = all(|from| store.events_after(scope, Position(from), 7)).await;
    assert_eq!(positions(&live), model.events(|_| true), "{scope:?}");
    for descending in [false, true] {
        let in_order = |mut expected: Vec<u64>| {
            if descending {
                expected.reverse();
            }
            expected
        };
        let list = async |parent: EventParent| {
            let events = all(|from| store.events_list(scope, &parent, descending, from, 5)).await;
            positions(&events)
        };
        assert_eq!(
            list(EventParent::All).await,
            in_order(model.events(|_| true)),
            "{scope:?}"
        );
        for name in SOURCES.map(source) {
            let expected = in_order(model.events(|event| event.source == name));
            assert_eq!(
                list(EventParent::Source(name.clone())).await,
                expected,
                "{scope:?} {name}"
            );
            for number in 0..4 {
                let key = pass(name.as_str(), number);
                let seen = model.sees_pass(&key);
                let expected = model.events(|event| seen && event.pass_key() == key);
                let listed = list(EventParent::Pass(key.clone())).await;
                assert_eq!(listed, in_order(expected), "{scope:?} {key}");
                let found = store.passes_find(scope, std::slice::from_ref(&key)).await;
                assert_eq!(found.expect("read")[0].is_some(), seen, "{scope:?} {key}");
            }
        }
    }
    for event in &model.log {
        let found = store.event_find(scope, event.fact.id).await.expect("read");
        let expected = scope.allows(&event.source, &event.organization);
        assert_eq!(found.is_some(), expected, "{scope:?} {}", event.position);
        assert!(found.is_none_or(|found| scope.personal || found.personal.is_none()));
    }
    for only in SOURCES
        .map(|name| Some(source(name)))
        .into_iter()
        .chain([None])
    {
        let of = |pass: &PassRecord| only.as_ref().is_none_or(|only| pass.key.source == *only);
        check_passes(store, model, only.as_ref(), &of).await;
    }
    for open in [false, true] {
        let listed = all(|from| store.deliveries_list(scope, open, from, 5)).await;
        let expected: Vec<u64> = (model.deliveries.iter())
            .filter(|one| scope.allows(&one.delivery.source, &one.delivery.organization))
            .filter(|one| !open || one.quarantine.is_some())
            .map(|one| one.number)
            .collect();
        assert_eq!(numbers(&listed), expected, "{scope:?} open: {open}");
    }
    for one in &model.deliveries {
        let id = one.delivery.id;
        let found = store.delivery_find(scope, id, true).await.expect("read");
        let expected = scope.allows(&one.delivery.source, &one.delivery.organization);
        assert_eq!(found.is_some(), expected, "{scope:?} {id}");
        assert!(found.is_none_or(|found| scope.personal || found.delivery.body.is_empty()));
    }
}

async fn check_passes(
    store: &Arc<dyn PassStore>,
    model: &Model,
    only: Option<&SourceUid>,
    of: &impl Fn(&PassRecord) -> bool,
) {
    let scope = &model.scope;
    let seen = all(|from| store.passes_list(scope, only, PassOrder::FirstSeen, from, 5)).await;
    assert_eq!(keys(&seen), model.passes(of), "{scope:?} {only:?}");
    let order = PassOrder::LastEventDescending;
    let mut newest = keys(&all(|from| store.passes_list(scope, only, order, from, 5)).await);
    newest.sort_by_key(|key| seen.iter().position(|pass| pass.key == *key));
    assert_eq!(newest, model.passes(of), "{scope:?} {only:?}");
    for (key, has) in [
        (LookupKey::SerialNumber("serial-1".to_owned()), 1..=1),
        (LookupKey::ExternalId("member-0".to_owned()), 0..=1),
    ] {
        let named = |pass: &PassRecord| {
            let number = pass.key.pass.as_str().trim_start_matches("pass-");
            of(pass)
                && number
                    .parse()
                    .is_ok_and(|number: i32| has.contains(&number))
        };
        let mut expected = model.passes(named);
        expected.sort_by_key(|key| key.source.clone());
        for rows_max in [1, 2, 3, 100_u32] {
            let found = store.passes_lookup(scope, only, &key, rows_max).await;
            let first: Vec<PassKey> = (expected.iter()).take(rows_max as usize).cloned().collect();
            let found = keys(&found.expect("read"));
            assert_eq!(found, first, "{scope:?} {only:?} {key:?} by {rows_max}");
        }
    }
}

/// A pass that may not be seen looks like one that is not there, also to who asks for small pages.
pub async fn a_pass_out_of_scope_has_no_next_page(store: Arc<dyn PassStore>) {
    filled(&store).await;
    let scope = Scope::limited([source("plain")], ["south".to_owned()]);
    for (key, rows) in [
        (pass("acme", 0), 0),
        (pass("acme", 99), 0),
        (pass("zeta", 0), 1),
        (pass("plain", 0), 1),
    ] {
        for descending in [false, true] {
            let parent = EventParent::Pass(key.clone());
            let page = store.events_list(&scope, &parent, descending, 0, 1).await;
            let page = page.expect("read");
            assert_eq!(
                (page.rows.len(), page.next.is_some()),
                (rows, rows > 0),
                "{key}"
            );
        }
    }
}
