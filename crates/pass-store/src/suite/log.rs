//! Cases about what is recorded.

use std::collections::BTreeSet;
use std::sync::Arc;

use pass_domain::cursor::Cursor;
use pass_domain::delivery::{Decoded, Delivery, Outcome, UndecodableReason};
use pass_domain::event::{Effect, Event, Position};
use pass_domain::fold::{InstallationKey, State};
use pass_domain::ids::{EventId, PassKey, VendorId};
use pass_domain::kind::Kind;
use pass_domain::limits::{FACTS_PER_DELIVERY_MAX, TEXT_BYTES_MAX};
use pass_domain::time::{SECONDS_MAX, SECONDS_MIN, from_parts};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use super::make::{self, Says, at, delivery, pass, short, source, stories};
use super::{Feed, outcomes, whole_log};
use crate::contract::{PassStore, QuarantineState, Scope};

fn one(number: u64, facts: &[make::Short]) -> Delivery {
    delivery("acme", number, &Says::Facts(facts.to_vec(), None))
}

/// A fact becomes one event, whether it is sent again in the same batch, another batch, another delivery or
/// by another spool.
pub async fn exactly_once_whatever_is_sent_again(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    let install = short(1, Kind::Installed, 1);
    let outcomes_first = feed
        .append([one(1, &[install]), one(2, &[install]), one(1, &[install])])
        .await;
    assert_eq!(
        outcomes_first,
        [Outcome::Applied, Outcome::Duplicate, Outcome::Duplicate]
    );
    assert_eq!(
        feed.append([one(1, &[install]), one(3, &[install])]).await,
        [Outcome::Duplicate; 2]
    );
    let mut other = Feed::open(&store, 2).await;
    let two = [install, short(1, Kind::Updated, 2)];
    assert_eq!(
        other.append([one(2, &[install]), one(4, &two)]).await,
        [Outcome::Duplicate, Outcome::Applied]
    );
    let log = whole_log(&*store).await;
    assert_eq!(
        log.iter().map(|event| event.fact.kind).collect::<Vec<_>>(),
        [Kind::Installed, Kind::Updated]
    );
    let books = store.log_info().await.expect("read").books;
    assert_eq!(
        (
            books.deliveries,
            books.facts,
            books.events,
            books.duplicate_facts
        ),
        (4, 5, 2, 3)
    );
}

/// Every field comes back, and head, digest and pass agree.
pub async fn an_event_is_read_as_it_was_told(store: Arc<dyn PassStore>) {
    let says = Says::Facts(
        vec![
            make::Short {
                installation: Some(2),
                ..short(1, Kind::Installed, 5)
            },
            short(1, Kind::Redeemed, 9),
        ],
        Some((1, 9, true)),
    );
    let told = delivery("acme", 1, &says);
    let mut feed = Feed::open(&store, 1).await;
    let part = feed.part([told.clone()]);
    let appended = store
        .append(&[part], at(2_000_000))
        .await
        .expect("appended");
    assert_eq!(outcomes(&appended, 0), [Outcome::Applied]);
    let Decoded::Facts(facts) = &told.decoded else {
        unreachable!("made of facts")
    };
    let key = InstallationKey::Identified(VendorId::new("device-2").expect("valid"));
    let effect = |state_before, state_after, opened| Effect {
        state_before,
        state_after,
        opened,
        closed: Vec::new(),
        late: false,
        changed: true,
    };
    // The snapshot says void; it is part of the first fact's effect.
    let effects = [
        effect(State::Unknown, State::Voided, vec![key]),
        effect(State::Voided, State::Voided, Vec::new()),
    ];
    let log = whole_log(&*store).await;
    assert_eq!(log.len(), 2);
    for ((place, event), effect) in log.iter().enumerate().zip(effects) {
        let expected = Event {
            position: Position(place as u64 + 1),
            fact: facts.facts[place].clone(),
            source: told.source.clone(),
            vendor: told.vendor.clone(),
            organization: told.organization.clone(),
            delivery: told.id,
            receive_time: told.receive_time,
            record_time: at(2_000_000),
            auth: told.auth.clone(),
            adapter_version: told.adapter_version.clone(),
            trace: told.trace.clone(),
            notes: facts.notes.clone(),
            effect,
            time_suspect: false,
            personal: Some(Arc::new(facts.personal.clone())),
        };
        assert_eq!(**event, expected);
        let found = store
            .event_find(&Scope::everything(), event.fact.id)
            .await
            .expect("read")
            .expect("found");
        assert_eq!(*found, expected);
        let digest = store.digest_at(event.position).await.expect("read");
        assert_eq!(digest, Some(Cursor::digest_of(&event.fact.id)));
    }
    let head = store.head().await.expect("read");
    assert_eq!(head, appended.head);
    assert_eq!(
        (head.position, head.digest),
        (Position(2), Cursor::digest_of(&log[1].fact.id))
    );
    let found = store
        .passes_find(&Scope::everything(), &[pass("acme", 1)])
        .await
        .expect("read");
    let record = found[0].as_ref().expect("found");
    assert_eq!(
        (record.number, record.last_position, record.last_digest),
        (1, head.position, head.digest)
    );
    assert_eq!(
        (record.vendor.as_str(), record.organization.as_str()),
        ("passkit", "acme")
    );
    assert_eq!(record.state.state(), State::Voided);
    let found = store
        .delivery_find(&Scope::everything(), told.id, true)
        .await
        .expect("read")
        .expect("found");
    assert_eq!(
        found.events,
        log.iter()
            .map(|event| (pass("acme", 1), event.fact.id))
            .collect::<Vec<_>>()
    );
    assert_eq!(
        (found.number, found.outcome, found.record_time),
        (1, Outcome::Applied, at(2_000_000))
    );
    assert_eq!(found.body_bytes, told.body.len() as u64);
    let mut expected = told.clone();
    if let Decoded::Facts(facts) = &mut expected.decoded {
        facts.facts.clear();
        facts.snapshot = None;
    }
    assert_eq!(*found.delivery, expected);
}

/// Random stories, each under a source of its own: whatever the order, repetition and batches, the passes
/// are those of the model and each fact is one event.
pub async fn passes_depend_on_the_set_of_deliveries_alone(store: Arc<dyn PassStore>) {
    let mut runner = TestRunner::deterministic();
    let mut feed = Feed::open(&store, 1).await;
    let mut events = 0;
    for case in 0..300_u64 {
        let story = stories().new_tree(&mut runner).expect("a story").current();
        let name = format!("case-{case}");
        for batch in story.batches(&name, case * 1_000) {
            feed.append(batch.iter().map(|delivery| Delivery::clone(delivery)))
                .await;
        }
        let expected = story.passes(&name);
        let keys: Vec<PassKey> = (0..3).map(|number| pass(&name, number)).collect();
        let found = store
            .passes_find(&Scope::everything(), &keys)
            .await
            .expect("read");
        for (key, record) in keys.iter().zip(found) {
            // A delivery without facts or snapshot makes no pass, as in the model.
            assert_eq!(
                record.map(|record| record.state).as_ref(),
                expected.get(key),
                "{key} in {story:?}"
            );
        }
        events += story.events(&name).len() as u64;
    }
    let info = store.log_info().await.expect("read");
    assert!(info.books.balance());
    assert_eq!((info.head.position.0, info.books.events), (events, events));
    let ids: BTreeSet<EventId> = whole_log(&*store)
        .await
        .iter()
        .map(|event| event.fact.id)
        .collect();
    assert_eq!(ids.len() as u64, events);
}

/// A fact from before those recorded is marked late, and the pass is what it would have been in order.
pub async fn late_facts_fold_a_recorded_pass_anew(store: Arc<dyn PassStore>) {
    let device = |installation, kind, seconds| make::Short {
        installation: Some(installation),
        ..short(1, kind, seconds)
    };
    let mut feed = Feed::open(&store, 1).await;
    feed.append([one(1, &[device(1, Kind::Uninstalled, 30)])])
        .await;
    feed.append([
        one(2, &[device(1, Kind::Installed, 10)]),
        one(3, &[device(2, Kind::Installed, 20)]),
    ])
    .await;
    let log = whole_log(&*store).await;
    assert!(
        log[1].effect.late && !log[1].effect.changed,
        "{:?}",
        log[1].effect
    );
    assert!(
        log[2].effect.late && log[2].effect.changed,
        "{:?}",
        log[2].effect
    );
    assert_eq!(
        (log[2].effect.state_before, log[2].effect.state_after),
        (State::Uninstalled, State::Installed)
    );
    let found = store
        .passes_find(&Scope::everything(), &[pass("acme", 1)])
        .await
        .expect("read");
    let state = &found[0].as_ref().expect("found").state;
    assert_eq!(state.fold.open_installations().count(), 1);
    assert_eq!(state.fold.installations[0].open_time, Some(at(10)));
}

/// A second sighting with other content adds no event, and does not go unnoticed.
pub async fn differing_duplicates_are_counted_and_shown(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    // One fact is remembered with its pass, the other one is looked up.
    let facts = [short(1, Kind::Installed, 1), short(1, Kind::Redeemed, 2)];
    feed.append([one(1, &facts)]).await;
    let mut other = one(2, &facts);
    if let Decoded::Facts(told) = &mut other.decoded {
        told.facts
            .iter_mut()
            .for_each(|fact| fact.content_digest ^= 1);
    }
    let id = other.id;
    assert_eq!(
        feed.append([other, one(3, &facts)]).await,
        [Outcome::Duplicate; 2]
    );
    let books = store.log_info().await.expect("read").books;
    assert_eq!(
        (
            books.events,
            books.duplicate_facts,
            books.differing_duplicates
        ),
        (2, 4, 2)
    );
    let record = store
        .delivery_find(&Scope::everything(), id, false)
        .await
        .expect("read")
        .expect("found");
    assert_eq!(
        (record.duplicate_facts, record.differing_duplicates),
        (2, 2)
    );
    assert_eq!(
        record.events.len(),
        2,
        "a duplicate delivery names the events it would have made"
    );
}

/// Each kind of outcome is counted once.
pub async fn the_books_balance(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    let says = [
        Says::Facts(vec![short(1, Kind::Installed, 1)], None),
        Says::Facts(vec![short(1, Kind::Installed, 1)], Some((1, 5, true))),
        Says::Facts(Vec::new(), Some((2, 5, false))),
        Says::Control,
        Says::Nonsense,
    ];
    let deliveries: Vec<Delivery> = (1..)
        .zip(&says)
        .map(|(number, says)| delivery("acme", number, says))
        .collect();
    let outcomes = feed.append(deliveries).await;
    use Outcome::{Applied, Control, Duplicate, Quarantined};
    assert_eq!(
        outcomes,
        [Applied, Duplicate, Duplicate, Control, Quarantined]
    );
    let info = store.log_info().await.expect("read");
    let books = info.books;
    assert!(books.balance());
    assert_eq!(
        (
            books.deliveries,
            books.applied,
            books.duplicate,
            books.control,
            books.quarantined
        ),
        (5, 1, 2, 1, 1)
    );
    assert_eq!(
        (
            books.facts,
            books.events,
            books.duplicate_facts,
            books.quarantine_open
        ),
        (2, 1, 1, 1)
    );
    assert_eq!(
        (
            info.spools.len(),
            info.spools[0].committed_sequence,
            info.oldest
        ),
        (1, 5, Position(0))
    );
    // A snapshot counts even if the delivery tells nothing new, and without any fact.
    let keys = [pass("acme", 1), pass("acme", 2)];
    let found = store
        .passes_find(&Scope::everything(), &keys)
        .await
        .expect("read");
    assert!(found[0].as_ref().expect("found").state.voided());
    assert_eq!(found[1].as_ref().expect("found").last_position, Position(0));
}

/// NUL, quotes, absurd times and every length up to the limits come back as they were.
pub async fn odd_but_legal_data_are_kept(store: Arc<dyn PassStore>) {
    let odd = "\0'\"\\;--\u{202e}é\u{1F512}";
    let mut told = one(
        1,
        &[
            short(1, Kind::Other, 1),
            short(1, Kind::Updated, 2),
            short(1, Kind::Viewed, 3),
        ],
    );
    told.organization = "o'r\0g".to_owned();
    told.path = odd.to_owned();
    told.body = (0..=255).collect();
    if let Decoded::Facts(facts) = &mut told.decoded {
        facts
            .personal
            .attributes
            .insert(odd.to_owned(), odd.to_owned());
        for fact in &mut facts.facts {
            fact.vendor_kind = odd.to_owned();
            fact.refs.serial_number = odd.to_owned();
            fact.attributes.insert(odd.to_owned(), odd.to_owned());
            fact.content_digest = u64::MAX;
        }
        facts.facts[0].occur_time = from_parts(SECONDS_MIN, 0).expect("in range");
        facts.facts[1].occur_time = from_parts(SECONDS_MAX - 1, 999_999_999).expect("in range");
        facts.facts[2].pass = VendorId::new(&"'".repeat(256)).expect("valid");
        facts.facts[2].refs.external_id = "x".repeat(TEXT_BYTES_MAX);
    }
    let mut feed = Feed::open(&store, 1).await;
    assert_eq!(feed.append([told.clone()]).await, [Outcome::Applied]);
    let Decoded::Facts(facts) = &told.decoded else {
        unreachable!("made of facts")
    };
    let mut log = whole_log(&*store).await;
    assert_eq!(
        log.iter()
            .map(|event| event.time_suspect)
            .collect::<Vec<_>>(),
        [true, false, true]
    );
    log.sort_by_key(|event| facts.facts.iter().position(|fact| fact.id == event.fact.id));
    for (event, fact) in log.iter().zip(&facts.facts) {
        assert_eq!(event.fact, *fact);
        assert_eq!(event.personal.as_deref(), Some(&facts.personal));
    }
    let found = store
        .delivery_find(&Scope::everything(), told.id, true)
        .await
        .expect("read")
        .expect("found");
    assert_eq!(
        (&found.delivery.body, &found.delivery.path),
        (&told.body, &told.path)
    );
    let key = crate::contract::LookupKey::SerialNumber(odd.to_owned());
    let found = store
        .passes_lookup(&Scope::everything(), None, &key, 10)
        .await
        .expect("read");
    assert_eq!(found.len(), 2);
    assert!(log.iter().all(|event| event.organization == "o'r\0g"));
    assert!(found.iter().all(|pass| pass.organization == "o'rg"));
}

/// A delivery that no gateway would send is kept and does not stop the stream.
pub async fn what_breaks_a_limit_goes_to_quarantine(store: Arc<dyn PassStore>) {
    let many: Vec<make::Short> = (0..=FACTS_PER_DELIVERY_MAX)
        .map(|seconds| short(1, Kind::Updated, i64::try_from(seconds).expect("small")))
        .collect();
    let mut long = one(2, &[short(1, Kind::Updated, 1)]);
    if let Decoded::Facts(facts) = &mut long.decoded {
        facts.facts[0].refs.serial_number = "x".repeat(TEXT_BYTES_MAX + 1);
    }
    let mut feed = Feed::open(&store, 1).await;
    let outcomes = feed.append([one(1, &many), long, one(3, &many[..1])]).await;
    assert_eq!(
        outcomes,
        [Outcome::Quarantined, Outcome::Quarantined, Outcome::Applied]
    );
    let books = store.log_info().await.expect("read").books;
    assert!(books.balance());
    assert_eq!(
        (books.quarantined_facts, books.events, books.quarantine_open),
        (many.len() as u64 + 1, 1, 2)
    );
    let open = store
        .deliveries_list(&Scope::everything(), true, 0, 10)
        .await
        .expect("read");
    let stay = open.rows[0].quarantine.as_ref().expect("in quarantine");
    assert_eq!(
        (stay.state, stay.reason),
        (QuarantineState::Open, UndecodableReason::StoreRefused)
    );
    assert!(
        stay.detail.contains("refs.serial_number") && !stay.detail.contains("xxx"),
        "{}",
        stay.detail
    );
}

/// The record time is the later of now and the one before, and times find their positions.
pub async fn record_times_never_go_back(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    for (number, now) in (1_u32..).zip([100, 300, 200, 300, 500]) {
        let facts = [
            short(1, Kind::Updated, i64::from(number) * 2),
            short(1, Kind::Updated, i64::from(number) * 2 + 1),
        ];
        feed.append_at([one(number.into(), &facts)], at(now)).await;
    }
    let log = whole_log(&*store).await;
    let times: Vec<_> = log.iter().map(|event| event.record_time).collect();
    assert_eq!(
        times,
        [100, 100, 300, 300, 300, 300, 300, 300, 500, 500].map(at)
    );
    assert_eq!(store.head().await.expect("read").record_time, at(500));
    for (time, position) in [
        (0, 0),
        (100, 0),
        (101, 2),
        (300, 2),
        (301, 8),
        (500, 8),
        (501, 10),
        (9_999, 10),
    ] {
        let found = store.position_before_time(at(time)).await.expect("read");
        assert_eq!(found, Position(position), "before {time}");
    }
    let just_after = from_parts(at(300).as_second(), 1).expect("in range");
    assert_eq!(
        store.position_before_time(just_after).await.expect("read"),
        Position(8)
    );
}

/// While batches are written, every reader sees the log end only between batches, and never a gap.
pub async fn readers_see_whole_batches_in_order(store: Arc<dyn PassStore>) {
    const BATCH: u64 = 10;
    const BATCHES: u64 = 40;
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let (mut last, mut reads) = (0, 0_u64);
                while last < BATCH * BATCHES {
                    reads += 1;
                    let page = store
                        .events_after(&Scope::everything(), Position(last), 1_000)
                        .await
                        .expect("read");
                    for (event, expected) in page.rows.iter().zip(last + 1..) {
                        assert_eq!(event.position.0, expected, "a gap");
                    }
                    last += page.rows.len() as u64;
                    assert_eq!(last % BATCH, 0, "a batch was seen in part");
                    let head = store.head().await.expect("read").position.0;
                    assert!(
                        head >= last && head.is_multiple_of(BATCH),
                        "head {head} after {last}"
                    );
                }
                reads
            })
        })
        .collect();
    let mut feed = Feed::open(&store, 1).await;
    for batch in 0..BATCHES {
        let numbers = batch * BATCH..(batch + 1) * BATCH;
        feed.append(numbers.map(|number| {
            one(
                number,
                &[short(
                    1,
                    Kind::Updated,
                    i64::try_from(number).expect("small"),
                )],
            )
        }))
        .await;
    }
    for reader in readers {
        assert!(reader.await.expect("the reader's assertions hold") > 0);
    }
}

/// Spools that append at the same time share one gapless log.
pub async fn writers_at_once_make_one_log(store: Arc<dyn PassStore>) {
    let writers: Vec<_> = (1..=4_u8)
        .map(|id| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut feed = Feed::open(&store, id).await;
                for number in 0..20_u64 {
                    // Each tells one fact of its own and one that all tell.
                    let seconds = i64::try_from(number).expect("small");
                    let facts = [
                        short(id, Kind::Updated, seconds),
                        short(9, Kind::Updated, seconds),
                    ];
                    feed.append([one(u64::from(id) * 1_000 + number, &facts)])
                        .await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.expect("written");
    }
    assert_eq!(whole_log(&*store).await.len(), 100);
    let books = store.log_info().await.expect("read").books;
    assert!(books.balance());
    assert_eq!(
        (books.deliveries, books.events, books.duplicate_facts),
        (80, 100, 60)
    );
}

/// A batch large enough for statements of every size, over many passes and two sources.
pub async fn large_batches_use_every_statement(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    let mut deliveries = Vec::new();
    for number in 0..683_u64 {
        let name = if number % 2 == 0 { "acme" } else { "zeta" };
        let which = u8::try_from(number % 251).expect("small");
        let says = Says::Facts(
            vec![short(
                which,
                Kind::Updated,
                i64::try_from(number).expect("small"),
            )],
            None,
        );
        deliveries.push(delivery(name, number, &says));
    }
    let again = deliveries.clone();
    assert_eq!(feed.append(deliveries).await, [Outcome::Applied; 683]);
    assert_eq!(feed.append(again).await, [Outcome::Duplicate; 683]);
    assert_eq!(whole_log(&*store).await.len(), 683);
    let keys: Vec<PassKey> = (0..251)
        .flat_map(|number| [pass("acme", number), pass("zeta", number)])
        .collect();
    let found = store
        .passes_find(&Scope::everything(), &keys)
        .await
        .expect("read");
    assert_eq!(
        found
            .iter()
            .flatten()
            .map(|record| record.state.fold.event_count())
            .sum::<u64>(),
        683
    );
    for (key, record) in keys.iter().zip(&found) {
        assert!(
            record.as_ref().is_none_or(|record| record.key == *key),
            "answers are in the order of the keys"
        );
    }
    assert_eq!(source("acme"), keys[0].source);
}
