//! Killed servers, cut connections, lost answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use test_kit::{ChaosProxy, Cut};

use super::*;
use crate::{AppendError, LeaseError, RecordId, SpoolHealth};

/// A bench whose spools reach the server through a proxy.
async fn proxied() -> (Bench, ChaosProxy) {
    let mut bench = Bench::start().await;
    let proxy = ChaosProxy::start(bench.nats.address())
        .await
        .expect("proxy starts");
    bench.options.servers = vec![format!("nats://{}", proxy.address())];
    (bench, proxy)
}

/// Appends from many tasks until told to stop; returns what was acknowledged.
fn load(
    spool: &Arc<JetStreamSpool>,
    stop: &Arc<AtomicBool>,
) -> tokio::task::JoinSet<BTreeMap<u64, Bytes>> {
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..16 {
        let (spool, stop) = (spool.clone(), stop.clone());
        tasks.spawn(async move {
            let mut acknowledged = BTreeMap::new();
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let record = Bytes::from(format!("{task} {number}"));
                match spool.append(fresh_id(), record.clone()).await {
                    Ok(sequence) => assert_eq!(acknowledged.insert(sequence.0, record), None),
                    // Pauses, as the vendor that got a 503 would.
                    Err(AppendError::Unavailable(_)) => {
                        tokio::time::sleep(Duration::from_millis(20)).await
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            acknowledged
        });
    }
    tasks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_a_killed_server_once_and_in_order() {
    let mut bench = Bench::start().await;
    let spool = Arc::new(bench.open_in_turn().await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = load(&spool, &stop);
    for _ in 0..3 {
        let before = spool.status().last_durable.0;
        progress(&spool, before + 200).await;
        bench.nats.kill().await.expect("server dies");
        bench.nats.restart().await.expect("server starts");
    }
    let before = spool.status().last_durable.0;
    progress(&spool, before + 200).await;
    stop.store(true, Ordering::Relaxed);
    let mut acknowledged = BTreeMap::new();
    while let Some(task) = tasks.join_next().await {
        acknowledged.extend(task.expect("no panic"));
    }
    assert!(
        acknowledged.len() >= 800,
        "{} acknowledged",
        acknowledged.len()
    );

    in_turn(&spool).await;
    spool.rewind(Sequence(0)).await.expect("rewind succeeds");
    let last = spool.status().last_durable.0;
    let mut stored = BTreeMap::new();
    while (stored.len() as u64) < last {
        for leased in spool.lease(1000, 1 << 20).await.expect("lease succeeds") {
            assert_eq!(leased.sequence.0, stored.len() as u64 + 1);
            stored.insert(leased.sequence.0, leased.record);
        }
    }
    for (sequence, record) in &acknowledged {
        assert_eq!(stored.get(sequence), Some(record));
    }
    let distinct: std::collections::BTreeSet<_> = stored.values().collect();
    assert_eq!(distinct.len(), stored.len(), "a record is stored twice");
    spool.close().await;
}

async fn progress(spool: &JetStreamSpool, upto: u64) {
    wait_for("appends", DEADLINE, async || match spool.status() {
        status if status.last_durable.0 >= upto => Ok(()),
        status => Err(format!("{status:?}")),
    })
    .await
    .expect("appends go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_make_no_gap_and_no_repetition_in_what_is_leased() {
    const RECORDS: u64 = 3_000;
    let (bench, proxy) = proxied().await;
    let reader = bench.open_in_turn().await;
    let mut direct = bench.options.clone();
    direct.servers = vec![bench.nats.url()];
    let writer = Arc::new(JetStreamSpool::open(direct).await.expect("spool opens"));
    let writing = tokio::spawn({
        let writer = writer.clone();
        async move { append(&writer, 1..=RECORDS).await }
    });
    let mut cuts = 0;
    let mut next = 1;
    while next <= RECORDS {
        let lease = tokio::time::timeout(DEADLINE, reader.lease(20, 1 << 20));
        for leased in lease.await.expect("lease in time").expect("lease succeeds") {
            assert_eq!((leased.sequence.0, leased.record), (next, record(next)));
            next += 1;
        }
        if next / 300 > cuts {
            cuts += 1;
            proxy.cut_all().await;
        }
        reader
            .settle(Sequence(next - 10.min(next)))
            .await
            .expect("settle succeeds");
    }
    assert!(cuts >= 9, "{cuts} cuts");
    writing.await.expect("writer succeeds");
    reader.close().await;
    writer.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn record_whose_acknowledgement_is_lost_is_stored_once() {
    let (bench, proxy) = proxied().await;
    let spool = bench.open_in_turn().await;
    for number in 1..=10_u64 {
        let id = fresh_id();
        let cut = if number.is_multiple_of(2) {
            Cut::SwallowAnswer
        } else {
            Cut::AfterSending
        };
        proxy.cut_when_client_sends(id.to_string().as_bytes(), 1, cut);
        assert_eq!(spool.append(id, record(number)).await, Ok(Sequence(number)));
        assert_eq!(proxy.cuts() as u64, number);
    }
    assert_eq!(
        lease_numbers(&spool, 10).await,
        (1..=10).collect::<Vec<_>>()
    );
    let info = spool.link.stream.get_info().await.expect("info");
    assert_eq!(info.state.last_sequence, 10);
    spool.close().await;
}

#[tokio::test]
async fn same_id_again_is_answered_with_the_first_sequence() {
    let bench = Bench::start().await;
    let spool = bench.open().await;
    let id = RecordId([7; 16]);
    assert_eq!(spool.append(id, record(1)).await, Ok(Sequence(1)));
    assert_eq!(spool.append(fresh_id(), record(2)).await, Ok(Sequence(2)));
    assert_eq!(spool.append(id, record(1)).await, Ok(Sequence(1)));
    assert_eq!(spool.status().last_durable, Sequence(2));
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_fail_soon_while_the_server_is_away_and_succeed_when_it_is_back() {
    let mut bench = Bench::start().await;
    let spool = Arc::new(bench.open_in_turn().await);
    append(&spool, 1..=3).await;
    bench.nats.kill().await.expect("server dies");
    let began = Instant::now();
    let mut refused = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let spool = spool.clone();
        refused.spawn(async move { spool.append(fresh_id(), record(0)).await });
    }
    while let Some(answer) = refused.join_next().await {
        assert!(matches!(
            answer.expect("no panic"),
            Err(AppendError::Unavailable(_))
        ));
    }
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "took {:?}",
        began.elapsed()
    );
    assert!(matches!(spool.status().health, SpoolHealth::Unavailable(_)));

    assert_eq!(
        spool.appender.answers.waiting(),
        0,
        "answers are still waited for"
    );
    bench.nats.restart().await.expect("server starts");
    wait_health(&spool, &SpoolHealth::Ok).await;
    // What was refused may be stored all the same, if it was on its way.
    let sequence = spool
        .append(fresh_id(), record(4))
        .await
        .expect("append succeeds");
    in_turn(&spool).await;
    let mut leased = Vec::new();
    while leased.len() < sequence.0 as usize {
        leased.extend(spool.lease(1000, 1 << 20).await.expect("lease succeeds"));
    }
    let ends =
        [&leased[0], &leased[2], &leased[leased.len() - 1]].map(|leased| leased.record.clone());
    assert_eq!(ends, [record(1), record(3), record(4)]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn append_without_any_answer_ends_after_eight_seconds_and_shows_as_stuck() {
    let (bench, proxy) = proxied().await;
    let spool = Arc::new(bench.open().await);
    append(&spool, 1..=1).await;
    proxy.pause(true);
    let began = Instant::now();
    let waiting = tokio::spawn({
        let spool = spool.clone();
        async move { spool.append(fresh_id(), record(2)).await }
    });
    wait_for(
        "a spool that is not ready",
        Duration::from_secs(7),
        async || match spool.status().health {
            SpoolHealth::Stuck | SpoolHealth::Unavailable(_) => Ok(()),
            health => Err(format!("{health:?}")),
        },
    )
    .await
    .expect("health tells");
    assert!(matches!(
        waiting.await.expect("no panic"),
        Err(AppendError::Unavailable(_))
    ));
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "took {:?}",
        began.elapsed()
    );
    proxy.pause(false);
    wait_health(&spool, &SpoolHealth::Ok).await;
    // Whether the second was stored is unknown; the third comes after it in any case.
    let third = spool
        .append(fresh_id(), record(3))
        .await
        .expect("append succeeds");
    assert!(third == Sequence(2) || third == Sequence(3));
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redelivered_records_are_not_leased_twice() {
    let bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=5).await;
    lease_numbers(&spool, 5).await;
    let redeliver = spool.acks.first().expect("an acknowledgement is due");
    spool
        .link
        .client
        .publish(redeliver, "-NAK".into())
        .await
        .expect("publish");
    spool.link.client.flush().await.expect("flush");
    let consumer = consumer(&spool).await;
    // Someone has to ask for records, so that the server has whom to give one again.
    let mut leasing = Box::pin(spool.lease(1000, usize::MAX));
    let redelivered = wait_for("a redelivery", DEADLINE, async || {
        match spool.link.stream.consumer_info(&consumer).await {
            Ok(info) if info.delivered.consumer_sequence > 5 => Ok(()),
            info => Err(format!("{info:?}")),
        }
    });
    tokio::select! {
        redelivered = redelivered => redelivered.expect("a record is given again"),
        leased = &mut leasing => panic!("{leased:?} although all is leased"),
    }
    drop(leasing);
    append(&spool, 6..=8).await;
    assert_eq!(lease_numbers(&spool, 8).await, [6, 7, 8]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_settled_record_that_is_given_again_is_acknowledged_again() {
    let bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=5).await;
    lease_numbers(&spool, 5).await;
    let redeliver = spool.acks.first().expect("an acknowledgement is due");
    // As if it had been lost on its way.
    spool.acks.settled(5).expect("an acknowledgement is due");
    spool.settle(Sequence(5)).await.expect("settle succeeds");
    let consumer = consumer(&spool).await;
    let info = spool.link.stream.consumer_info(&consumer).await;
    assert_eq!(info.expect("info").num_ack_pending, 5);
    let negative = spool.link.client.publish(redeliver, "-NAK".into());
    negative.await.expect("publish");
    let mut leasing = Box::pin(spool.lease(1000, usize::MAX));
    let acknowledged = wait_for("an acknowledgement", DEADLINE, async || {
        match spool.link.stream.consumer_info(&consumer).await {
            Ok(info) if info.ack_floor.stream_sequence > 0 => Ok(()),
            info => Err(format!("{info:?}")),
        }
    });
    tokio::select! {
        acknowledged = acknowledged => acknowledged.expect("it is acknowledged"),
        leased = &mut leasing => panic!("{leased:?} although all is leased"),
    }
    drop(leasing);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_that_the_stream_does_not_have_is_not_believed() {
    let bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=3).await;
    assert_eq!(lease_numbers(&spool, 3).await, [1, 2, 3]);
    spool.reader.lock().await.mislead(0);
    append(&spool, 4..=4).await;
    let refused = tokio::time::timeout(DEADLINE, spool.lease(1000, usize::MAX)).await;
    assert!(
        matches!(&refused, Ok(Err(LeaseError::Unavailable(reason))) if reason.contains("record 4 where 1")),
        "{refused:?}"
    );
    assert_eq!(lease_numbers(&spool, 4).await, [1, 2, 3, 4]);
    spool.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_consumer_is_made_anew_where_it_was() {
    let bench = Bench::start().await;
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=5).await;
    let given = spool
        .lease(2, usize::MAX)
        .await
        .expect("lease succeeds")
        .len() as u64;
    spool
        .link
        .stream
        .delete_consumer(&consumer(&spool).await)
        .await
        .expect("deleted");
    append(&spool, 6..=8).await;
    assert_eq!(
        lease_numbers(&spool, 8).await,
        (given + 1..=8).collect::<Vec<_>>()
    );
    spool.close().await;
}
