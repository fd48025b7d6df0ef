//! Cases about spools and the epoch.

use std::sync::Arc;
use std::task::Poll;

use pass_domain::delivery::Outcome;
use pass_domain::event::Position;
use pass_domain::kind::Kind;

use super::make::{Says, at, delivery, short};
use super::{Feed, hello, outcomes, whole_log};
use crate::contract::{AppendPart, Error, PartOutcome, PassStore, SpoolHello};

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

/// However many spools notice that the database went back, the epoch changes once; a rotation in between
/// does not hide a later loss.
pub async fn spools_that_notice_together_change_the_epoch_once(store: Arc<dyn PassStore>) {
    for id in 1..=3_u8 {
        Feed::open(&store, id)
            .await
            .append([updated(u64::from(id))])
            .await;
    }
    let went_back = |id| SpoolHello {
        settled_sequence: 9,
        oldest_sequence: 1,
        ..hello(id)
    };
    let rotated = store.epoch_rotate().await.expect("rotated");
    let mut changes = 0;
    for id in [1, 2, 3, 2, 1] {
        let opened = store.spool_open(&went_back(id)).await.expect("opened");
        assert_eq!((opened.committed_sequence, opened.missing), (1, None));
        changes += u32::from(opened.epoch_changed);
    }
    assert_eq!(changes, 1);
    assert_ne!(store.head().await.expect("read").epoch, rotated.epoch);
    // Once a spool has refilled, its word counts again.
    let mut feed = Feed::open(&store, 2).await;
    feed.append((4..=11).map(updated)).await;
    let settled = SpoolHello {
        settled_sequence: 20,
        oldest_sequence: 1,
        ..hello(2)
    };
    assert!(
        store
            .spool_open(&settled)
            .await
            .expect("opened")
            .epoch_changed
    );
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
