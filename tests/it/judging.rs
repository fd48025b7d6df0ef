//! The judge must be able to convict: a clean history, tampered with in each way, is found broken in that way.

use std::time::Duration;

use system_tests::callback::traffic;
use system_tests::client::{Attempt, Outcome};
use system_tests::dice::Dice;
use system_tests::history::History;
use system_tests::oracle::{Verdict, judge};
use system_tests::stand::{Options, Stand};

use crate::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_tampering_is_found() {
    let stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    let callbacks = traffic(&mut Dice::new(31), "judged", 30);
    stand
        .load(callbacks, 4, Duration::from_secs(30))
        .await
        .unwrap();
    let verdict = stand.verdict(Duration::from_secs(30)).await.unwrap();
    verdict.assert_clean();
    assert!(
        verdict.passes_compared == 30 && verdict.events > 60,
        "{verdict}"
    );
    let history = stand.reader().history().await.unwrap();
    let attempts = stand.log.attempts();

    let with = |tamper: &dyn Fn(&mut History, &mut Vec<Attempt>)| -> Verdict {
        let (mut history, mut attempts) = (history.clone(), attempts.clone());
        tamper(&mut history, &mut attempts);
        judge(stand.decoder(), &attempts, &history)
    };
    assert!(with(&|_, _| {}).is_clean());
    let drop_event = |history: &mut History| {
        history.subscribed.remove(7);
        history.listed.remove(7);
    };
    assert!(!with(&|history, _| drop_event(history)).lost.is_empty());
    assert!(!with(&|history, _| drop_event(history)).broken.is_empty());
    assert!(
        !with(&|history, _| history.subscribed.push(history.subscribed[3].clone()))
            .duplicated
            .is_empty()
    );
    assert!(
        !with(&|history, _| history.subscribed.swap(4, 5))
            .broken
            .is_empty()
    );
    assert!(
        !with(&|history, _| drop(history.listed.pop()))
            .broken
            .is_empty()
    );
    assert!(
        !with(&|history, _| drop(history.deliveries.pop()))
            .lost
            .is_empty()
    );
    assert!(
        !with(&|history, _| history.deliveries.push(history.deliveries[0].clone()))
            .duplicated
            .is_empty()
    );
    assert!(
        !with(&|history, _| drop(history.passes.pop()))
            .lost
            .is_empty()
    );
    assert!(
        !with(&|history, _| history.passes[0].revision += 1)
            .broken
            .is_empty()
    );
    assert!(
        !with(&|history, _| history.passes[0].installed_count += 1)
            .broken
            .is_empty()
    );
    assert!(
        !with(&|history, _| history.info.head_position += 1)
            .broken
            .is_empty()
    );
    let books = |history: &mut History| history.info.books.as_mut().unwrap().duplicate_facts += 1;
    assert!(!with(&|history, _| books(history)).broken.is_empty());
    assert!(
        !with(&|history, _| history.info.spools[0].committed_sequence -= 1)
            .broken
            .is_empty()
    );
    assert!(
        !with(&|history, _| history.info.spools[0].missing_sequences = "3-5".to_owned())
            .lost
            .is_empty()
    );
    // Nobody sent it: what the sender noted as sent is taken back.
    assert!(
        !with(&|_, attempts| attempts.truncate(attempts.len() / 2))
            .phantom
            .is_empty()
    );
    // A refusal is a promise that nothing was kept; an open question is none.
    let last_becomes = |attempts: &mut Vec<Attempt>, outcome: Outcome| {
        for attempt in attempts.iter_mut() {
            attempt.outcome = outcome.clone();
        }
    };
    assert!(
        !with(&|_, attempts| last_becomes(attempts, Outcome::Refused(String::new())))
            .phantom
            .is_empty()
    );
    assert!(
        with(&|_, attempts| last_becomes(attempts, Outcome::Indeterminate(String::new())))
            .is_clean()
    );
    // A replica that shows something else than another is told from one that shows the same.
    let other = |tamper: &dyn Fn(&mut History)| {
        let mut other = history.clone();
        tamper(&mut other);
        history.difference(&other)
    };
    assert_eq!(other(&|_| {}), None);
    assert!(other(&drop_event).is_some());
    assert!(other(&|history| drop(history.deliveries.pop())).is_some());
    assert!(other(&|history| history.passes[0].revision += 1).is_some());
    assert!(other(&books).is_some());
    assert!(other(&|history| history.info.epoch.clear()).is_some());
    assert!(other(&|history| history.info.head_cursor.clear()).is_some());
    assert!(other(&|history| history.info.spools.clear()).is_some());
    stand.finish().await.unwrap();
}
