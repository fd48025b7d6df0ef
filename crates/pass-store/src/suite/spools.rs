//! Cases about spools and the epoch.

use std::sync::Arc;
use std::task::Poll;

use pass_domain::cursor::Cursor;
use pass_domain::delivery::Outcome;
use pass_domain::event::Position;
use pass_domain::kind::Kind;

use super::make::{Says, at, delivery, short};
use super::{Feed, hello, outcomes, whole_log};
use crate::contract::{AppendPart, Error, Head, PartOutcome, PassStore, SpoolHello};

fn updated(number: u64) -> pass_domain::delivery::Delivery {
    let seconds = i64::try_from(number).expect("small");
    delivery(
        "acme",
        number,
        &Says::Facts(vec![short(1, Kind::Updated, seconds)], None),
    )
}

/// Only the latest stream of a spool may append; other parts of the batch go on.
pub async fn a_newer_stream_fences_the_older(store: Arc<dyn PassStore>) {
    let mut old = Feed::open(&store, 1).await;
    assert_eq!(old.append([updated(1)]).await, [Outcome::Applied]);
    let mut new = Feed::open(&store, 1).await;
    assert_eq!((new.generation, new.sequence), (old.generation + 1, 1));
    let mut other = Feed::open(&store, 2).await;
    let parts = [
        old.part([updated(2)]),
        other.part([updated(3)]),
        new.part([updated(4)]),
    ];
    let appended = store.append(&parts, at(0)).await.expect("appended");
    assert_eq!(appended.parts[0], PartOutcome::Fenced);
    assert_eq!(
        (outcomes(&appended, 1), outcomes(&appended, 2)),
        (vec![Outcome::Applied], vec![Outcome::Applied])
    );
    assert_eq!(whole_log(&*store).await.len(), 3);
    // A spool that never said hello has no generation.
    let stranger = AppendPart {
        spool: crate::SpoolId([9; 16]),
        generation: 1,
        deliveries: Vec::new(),
    };
    let appended = store.append(&[stranger], at(0)).await.expect("appended");
    assert_eq!(appended.parts, [PartOutcome::Fenced]);
}

/// What was committed is answered again without being looked at; what does not follow is left out whole.
pub async fn sequences_are_committed_once_and_without_gaps(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    feed.append([updated(1), updated(2)]).await;
    let part = |sequences: &[u64]| AppendPart {
        spool: feed.spool,
        generation: feed.generation,
        deliveries: sequences
            .iter()
            .map(|sequence| (*sequence, Arc::new(updated(*sequence))))
            .collect(),
    };
    let head = store.head().await.expect("read");
    let appended = store
        .append(&[part(&[4, 5]), part(&[3, 5])], at(0))
        .await
        .expect("appended");
    assert_eq!(
        appended.parts[0],
        PartOutcome::Gap {
            expected_sequence: 3
        }
    );
    assert_eq!(
        appended.parts[1],
        PartOutcome::Gap {
            expected_sequence: 4
        }
    );
    assert_eq!(
        store.head().await.expect("read"),
        head,
        "nothing of them was recorded"
    );
    let appended = store
        .append(&[part(&[1, 2, 3]), part(&[4])], at(0))
        .await
        .expect("appended");
    let expected = PartOutcome::Committed {
        committed_sequence: 3,
        outcomes: vec![
            (1, Outcome::Duplicate),
            (2, Outcome::Duplicate),
            (3, Outcome::Applied),
        ],
    };
    assert_eq!(appended.parts[0], expected);
    let expected = PartOutcome::Committed {
        committed_sequence: 4,
        outcomes: vec![(4, Outcome::Applied)],
    };
    assert_eq!(appended.parts[1], expected);
    assert_eq!(
        store
            .spool_open(&hello(1))
            .await
            .expect("opened")
            .committed_sequence,
        4
    );
    assert_eq!(whole_log(&*store).await.len(), 4);
}

/// A gateway that settled more than the database has proves that the database went back: cursors from
/// before must not be taken for places in the new history. What neither side has is remembered.
pub async fn a_database_that_went_back_gets_a_new_epoch(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    feed.append([updated(1), updated(2)]).await;
    let before = store.head().await.expect("read");
    let says = |settled_sequence, oldest_sequence| SpoolHello {
        settled_sequence,
        oldest_sequence,
        ..hello(1)
    };

    let opened = store.spool_open(&says(2, 1)).await.expect("opened");
    assert_eq!(
        (
            opened.committed_sequence,
            opened.epoch_changed,
            opened.missing
        ),
        (2, false, None)
    );
    let opened = store.spool_open(&says(2, 0)).await.expect("opened");
    assert_eq!(
        (
            opened.committed_sequence,
            opened.epoch_changed,
            opened.missing
        ),
        (2, false, None)
    );
    assert_eq!(store.head().await.expect("read"), before);

    // It still holds what the database lost: no sequence is missing.
    let opened = store.spool_open(&says(6, 2)).await.expect("opened");
    assert_eq!(
        (
            opened.committed_sequence,
            opened.epoch_changed,
            opened.missing
        ),
        (2, true, None)
    );
    let after = store.head().await.expect("read");
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(
        (after.position, after.digest),
        (before.position, before.digest)
    );

    // It holds 5 and later only: 3 and 4 are lost, and 5 comes next.
    let opened = store.spool_open(&says(6, 5)).await.expect("opened");
    assert_eq!(
        (
            opened.committed_sequence,
            opened.epoch_changed,
            opened.missing
        ),
        (4, false, Some((3, 4))),
        "it was noticed before"
    );
    assert_eq!(
        store.head().await.expect("read"),
        after,
        "one change is enough"
    );
    let mut feed = Feed {
        generation: opened.generation,
        sequence: 4,
        ..feed
    };
    assert_eq!(
        feed.append([updated(5), updated(6)]).await,
        [Outcome::Applied; 2]
    );
    // It holds nothing: everything it settled is lost.
    let opened = store.spool_open(&says(9, 0)).await.expect("opened");
    assert_eq!(
        (
            opened.committed_sequence,
            opened.epoch_changed,
            opened.missing
        ),
        (9, true, Some((7, 9)))
    );
    let spools = store.log_info().await.expect("read").spools;
    assert_eq!(
        (spools[0].missing.as_str(), spools[0].gateway.as_str()),
        ("3-4, 7-9", "gateway-1")
    );
    assert_eq!(whole_log(&*store).await.len(), 4);
    let absurd = store.spool_open(&says(u64::MAX, u64::MAX)).await;
    assert!(matches!(absurd, Err(Error::Refused(_))), "{absurd:?}");
}

/// However many spools notice that the database went back, the epoch changes once; a rotation before does
/// not hide a later loss.
pub async fn spools_that_notice_together_change_the_epoch_once(store: Arc<dyn PassStore>) {
    let rotated = store.epoch_rotate().await.expect("rotated");
    for id in 1..=3_u8 {
        Feed::open(&store, id)
            .await
            .append([updated(u64::from(id))])
            .await;
    }
    let mut changes = 0;
    for id in [1, 2, 3, 2, 1] {
        let opened = store.spool_open(&settled(id, 9)).await.expect("opened");
        assert_eq!((opened.committed_sequence, opened.missing), (1, None));
        let epoch = store.head().await.expect("read").epoch;
        assert_eq!(opened.epoch, epoch);
        changes += u32::from(opened.epoch_changed);
    }
    assert_eq!(changes, 1);
    assert_ne!(store.head().await.expect("read").epoch, rotated.epoch);
    // Once a spool has refilled, its word counts again.
    let mut feed = Feed::open(&store, 2).await;
    feed.append((4..=11).map(updated)).await;
    let opened = store.spool_open(&settled(2, 20)).await.expect("opened");
    assert!(opened.epoch_changed);
}

/// A spool that is not trusted with the epoch is refused while its word is news, without a trace; whoever is
/// trusted says it first, and then it refills like any other.
pub async fn a_spool_that_is_not_trusted_changes_no_epoch(store: Arc<dyn PassStore>) {
    for id in 1..=2_u8 {
        let mut feed = Feed::open(&store, id).await;
        feed.append([updated(u64::from(id))]).await;
    }
    let untrusted = |id, settled_sequence| SpoolHello {
        may_change_epoch: false,
        ..settled(id, settled_sequence)
    };
    let before = store.log_info().await.expect("read");
    for hello in [untrusted(1, 9), untrusted(7, 9)] {
        let refused = store.spool_open(&hello).await;
        assert!(matches!(refused, Err(Error::Untrusted)), "{refused:?}");
    }
    let after = store.log_info().await.expect("read");
    assert_eq!((after.head, after.spools.len()), (before.head, 2));
    let opened = store.spool_open(&untrusted(1, 1)).await.expect("opened");
    assert_eq!(
        (opened.committed_sequence, opened.epoch_changed),
        (1, false)
    );

    let opened = store.spool_open(&settled(2, 9)).await.expect("opened");
    assert!(opened.epoch_changed);
    let opened = store.spool_open(&untrusted(1, 9)).await.expect("opened");
    assert_eq!(
        (opened.committed_sequence, opened.epoch_changed),
        (1, false)
    );
}

/// An operator who rotates after a restore has done what the spools would have: their word of what the
/// restore lost changes nothing, whenever they say it.
pub async fn a_rotation_answers_for_what_was_lost_before_it(store: Arc<dyn PassStore>) {
    for id in 1..=2_u8 {
        let mut feed = Feed::open(&store, id).await;
        feed.append([updated(u64::from(id))]).await;
    }
    let rotated = store.epoch_rotate().await.expect("rotated");
    for id in [1, 2, 1] {
        let opened = store.spool_open(&settled(id, 9)).await.expect("opened");
        assert_eq!(
            (opened.committed_sequence, opened.epoch_changed),
            (1, false)
        );
    }
    assert_eq!(store.head().await.expect("read"), rotated);
}

/// A stream may break many times before its spool has refilled what was lost: that is one loss. One more
/// acknowledged than it had to refill, and it is another.
pub async fn a_spool_whose_refill_is_interrupted_tells_nothing_new(store: Arc<dyn PassStore>) {
    Feed::open(&store, 1).await.append([updated(1)]).await;
    let opened = store.spool_open(&settled(1, 9)).await.expect("opened");
    assert!(opened.epoch_changed);
    let mut feed = Feed {
        store: Arc::clone(&store),
        spool: hello(1).spool,
        generation: opened.generation,
        sequence: 1,
    };
    for refilled in 2..=5 {
        feed.append([updated(refilled)]).await;
        let again = store.spool_open(&settled(1, 9)).await.expect("opened");
        assert_eq!(
            (again.committed_sequence, again.epoch_changed),
            (refilled, false)
        );
        assert_eq!(again.epoch, opened.epoch);
        feed.generation = again.generation;
    }
    let other = store.spool_open(&settled(1, 10)).await.expect("opened");
    assert_eq!((other.committed_sequence, other.epoch_changed), (5, true));
    // And once it has refilled everything, all it says is news.
    feed.generation = other.generation;
    feed.append((6..=10).map(updated)).await;
    let other = store.spool_open(&settled(1, 11)).await.expect("opened");
    assert!(other.epoch_changed);
}

/// Places of a history that is gone: one past the end, another event at the end or before it.
pub async fn an_epoch_is_left_for_a_place_that_is_gone_and_only_then(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    let empty = store.head().await.expect("read").cursor();
    feed.append([updated(1), updated(2), updated(3)]).await;
    let mut head = store.head().await.expect("read");
    let at = |head: &Head, position, digest| Cursor {
        epoch: head.epoch,
        position: Position(position),
        digest,
    };
    let second = store.digest_at(Position(2)).await.expect("read");
    let second = second.expect("there is one");
    let elsewhere = Cursor {
        epoch: head.epoch ^ 1,
        ..at(&head, 9, 9)
    };
    for there in [empty, at(&head, 2, second), head.cursor(), elsewhere] {
        let left = store.epoch_leave(there).await.expect("looked");
        assert_eq!(left, head, "{there:?} is no reason");
        assert_eq!(store.head().await.expect("read"), head);
    }
    for gone in [(4, second), (3, second), (2, head.digest), (u64::MAX, 0)] {
        let lost = at(&head, gone.0, gone.1);
        let left = store.epoch_leave(lost).await.expect("left");
        assert_ne!(left.epoch, head.epoch, "{gone:?}");
        assert_eq!((left.position, left.digest), (head.position, head.digest));
        assert_eq!(store.head().await.expect("read"), left);
        assert_eq!(
            store.epoch_leave(lost).await.expect("looked"),
            left,
            "who comes second finds it done"
        );
        head = left;
    }
    assert_eq!(feed.append([updated(4)]).await, [Outcome::Applied]);
}

/// Two replicas that miss their place and three spools that miss deliveries, all at once: one change.
pub async fn replicas_and_spools_that_miss_the_same_change_the_epoch_once(
    store: Arc<dyn PassStore>,
) {
    for id in 1..=3_u8 {
        let mut feed = Feed::open(&store, id).await;
        feed.append([updated(u64::from(id))]).await;
    }
    let before = store.head().await.expect("read");
    let lost = Cursor {
        position: Position(7),
        ..before.cursor()
    };
    let hellos = [1, 2, 3].map(|id| settled(id, 3));
    let (a, b, c, d, e) = tokio::join!(
        store.epoch_leave(lost),
        store.spool_open(&hellos[0]),
        store.spool_open(&hellos[1]),
        store.epoch_leave(lost),
        store.spool_open(&hellos[2]),
    );
    let now = store.head().await.expect("read").epoch;
    assert_ne!(now, before.epoch);
    let epochs = [
        a.expect("left").epoch,
        b.expect("opened").epoch,
        c.expect("opened").epoch,
        d.expect("left").epoch,
        e.expect("opened").epoch,
    ];
    assert_eq!(epochs, [now; 5]);
    // Each again, one after the other.
    for hello in &hellos {
        let opened = store.spool_open(hello).await.expect("opened");
        assert_eq!((opened.epoch, opened.epoch_changed), (now, false));
    }
    assert_eq!(store.epoch_leave(lost).await.expect("looked").epoch, now);
}

/// A gateway compares it with what its spool has at that sequence.
pub async fn the_delivery_at_the_committed_sequence_is_known(store: Arc<dyn PassStore>) {
    let known = |settled_sequence, oldest_sequence| {
        let hello = SpoolHello {
            settled_sequence,
            oldest_sequence,
            ..hello(1)
        };
        let store = Arc::clone(&store);
        async move {
            let opened = store.spool_open(&hello).await.expect("opened");
            (opened.committed_sequence, opened.committed_delivery)
        }
    };
    assert_eq!(known(0, 0).await, (0, None));
    let mut feed = Feed::open(&store, 1).await;
    let mut other = Feed::open(&store, 2).await;
    feed.append([updated(1), updated(2)]).await;
    assert_eq!(known(0, 0).await, (2, Some(updated(2).id)));

    // Several parts and spools at once; a part that was committed before moves nothing, though a batch beside
    // it does, and a delivery that is known by its id counts like any other.
    feed = Feed::open(&store, 1).await;
    let mut moves = feed.part([updated(3), updated(1)]);
    let again = AppendPart {
        deliveries: vec![(1, Arc::new(updated(1)))],
        ..moves.clone()
    };
    let parts = [moves.clone(), other.part([updated(9)]), again.clone()];
    store.append(&parts, at(0)).await.expect("appended");
    assert_eq!(known(0, 0).await, (4, Some(updated(1).id)));
    moves.generation = Feed::open(&store, 1).await.generation;
    let again = AppendPart {
        deliveries: vec![(2, Arc::new(updated(8)))],
        ..moves
    };
    let parts = [again, other.part([updated(10)])];
    store.append(&parts, at(0)).await.expect("appended");
    assert_eq!(known(0, 0).await, (4, Some(updated(1).id)));

    // Moved over a range that is lost, the sequence has no delivery; the next one is known again.
    assert_eq!(known(6, 7).await, (6, None));
    feed = Feed::open(&store, 1).await;
    feed.append([updated(7)]).await;
    assert_eq!(known(7, 7).await, (7, Some(updated(7).id)));
}

fn settled(id: u8, settled_sequence: u64) -> SpoolHello {
    SpoolHello {
        settled_sequence,
        oldest_sequence: 1,
        ..hello(id)
    }
}

/// Rotating changes the epoch and nothing else.
pub async fn an_epoch_can_be_rotated(store: Arc<dyn PassStore>) {
    let mut feed = Feed::open(&store, 1).await;
    feed.append([updated(1)]).await;
    let before = store.head().await.expect("read");
    let after = store.epoch_rotate().await.expect("rotated");
    assert_ne!(after.epoch, before.epoch);
    assert_eq!(
        (after.position, after.digest, after.record_time),
        (Position(1), before.digest, before.record_time)
    );
    assert_eq!(store.head().await.expect("read"), after);
    assert_eq!(feed.append([updated(2)]).await, [Outcome::Applied]);
    assert_eq!(store.head().await.expect("read").epoch, after.epoch);
}

/// A caller may go away at any moment: the batch is recorded whole or not at all, the spool's place tells
/// which, and going on from there loses and repeats nothing.
pub async fn a_dropped_append_happened_whole_or_not_at_all(store: Arc<dyn PassStore>) {
    const BATCH: u64 = 20;
    const BATCHES: u64 = 25;
    let (mut done, mut dropped, mut polls_max) = (0, 0, 0);
    while done < BATCHES {
        let opened = store.spool_open(&hello(1)).await.expect("opened");
        assert_eq!(
            opened.committed_sequence % BATCH,
            0,
            "a batch was recorded in part"
        );
        done = opened.committed_sequence / BATCH;
        let first = opened.committed_sequence + 1;
        let part = AppendPart {
            spool: hello(1).spool,
            generation: opened.generation,
            deliveries: (first..first + BATCH)
                .map(|sequence| (sequence, Arc::new(updated(sequence))))
                .collect(),
        };
        // Each try gets a little further, so appends are dropped at every stage until one fits.
        match polled(polls_max, store.append(&[part], at(0))).await {
            Some(appended) => {
                assert_eq!(
                    outcomes(&appended.expect("appended"), 0),
                    [Outcome::Applied; BATCH as usize]
                );
                if done == BATCHES / 2 {
                    polls_max = 0;
                }
            }
            None => {
                dropped += 1;
                polls_max += 1;
            }
        }
    }
    assert!(dropped > 0, "no append was dropped");
    let log = whole_log(&*store).await;
    let books = store.log_info().await.expect("read").books;
    assert_eq!(
        (log.len() as u64, books.duplicate_facts),
        (books.deliveries, 0)
    );
}

/// Polls a future so many times; `None` if it is not done by then and was dropped.
async fn polled<F: Future>(polls_max: u32, future: F) -> Option<F::Output> {
    let mut future = std::pin::pin!(future);
    let mut polls_left = polls_max;
    std::future::poll_fn(|context| {
        if polls_left == 0 {
            return Poll::Ready(None);
        }
        polls_left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
