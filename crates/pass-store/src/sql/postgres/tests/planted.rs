//! The planted fault is found.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pass_domain::event::Position;
use pass_domain::kind::Kind;

use super::super::PostgresOptions;
use super::server;
use crate::contract::{PassStore, Scope};
use crate::sql::SqlStore;
use crate::suite::Feed;
use crate::suite::make::{Says, at, delivery, short};

/// Four replicas append, and one follows by position. Returns the positions that came too late to be seen.
async fn missed(sequence_positions: bool) -> BTreeSet<u64> {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let open = || async {
        let options = PostgresOptions {
            planted_sequence_positions: sequence_positions,
            transaction_delay_max: Duration::from_millis(5),
            ..PostgresOptions::new(&url)
        };
        Arc::new(SqlStore::open_postgres(options).await.expect("opened")) as Arc<dyn PassStore>
    };
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut writers = Vec::new();
    for spool in 1..=4_u8 {
        let store = open().await;
        writers.push(tokio::spawn(async move {
            let mut feed = Feed::open(&store, spool).await;
            let mut number = 0;
            while Instant::now() < deadline {
                // Facts of a source of its own: replicas meet at the head only.
                let seconds = i64::try_from(number).expect("small");
                let says = Says::Facts(vec![short(1, Kind::Updated, seconds)], None);
                let source = format!("source-{spool}");
                let id = u64::from(spool) * 100_000 + number;
                let part = feed.part([delivery(&source, id, &says)]);
                number += 1;
                while let Err(error) = store.append(std::slice::from_ref(&part), at(0)).await {
                    assert!(error.is_transient(), "{error}");
                }
            }
            store.close().await;
        }));
    }
    let reader = open().await;
    let mut seen = BTreeSet::new();
    let mut after = Position(0);
    loop {
        let ended = Instant::now() > deadline + Duration::from_secs(1);
        let page = reader
            .events_after(&Scope::everything(), after, 1_000)
            .await
            .expect("read");
        seen.extend(page.rows.iter().map(|event| event.position.0));
        match page.next {
            Some(next) => after = Position(next),
            None if ended => break,
            None => {}
        }
    }
    for writer in writers {
        writer.await.expect("written");
    }
    let mut there = BTreeSet::new();
    let mut after = Position(0);
    while let Some(next) = {
        let page = reader
            .events_after(&Scope::everything(), after, 1_000)
            .await
            .expect("read");
        there.extend(page.rows.iter().map(|event| event.position.0));
        page.next
    } {
        after = Position(next);
    }
    assert!(there.len() > 100, "{} events", there.len());
    reader.close().await;
    there.difference(&seen).copied().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_from_a_sequence_are_missed_by_readers_and_those_under_the_lock_are_not() {
    assert!(!missed(true).await.is_empty(), "the fault is not there");
    assert_eq!(missed(false).await, BTreeSet::new());
}
