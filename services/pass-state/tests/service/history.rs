//! A database that is put back in time under a running service, and then grows other events.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pass_domain::Timestamp;
use pass_domain::delivery::Delivery;
use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::subscribe_response::Frame;
use pass_store::{AppendPart, PassStore, SpoolHello, SpoolId, SqlStore, SqliteOptions};
use service_kit::config::Duration as Span;
use tokio::sync::Semaphore;
use tonic::Code;
use tonic_types::StatusExt as _;

use crate::faulty::Faulty;
use crate::harness::*;
use crate::make::*;

/// Writes to a store as another process would.
async fn write_elsewhere(store: &SqlStore, spool: u8, deliveries: Vec<Delivery>, now: Timestamp) {
    let hello = SpoolHello {
        spool: SpoolId([spool; 16]),
        gateway: "elsewhere".into(),
        settled_sequence: 0,
        oldest_sequence: 0,
        may_change_epoch: true,
    };
    let opened = store.spool_open(&hello).await.unwrap();
    let first = opened.committed_sequence + 1;
    let part = AppendPart {
        spool: hello.spool,
        generation: opened.generation,
        deliveries: (first..)
            .zip(deliveries.into_iter().map(Arc::new))
            .collect(),
    };
    store.append(&[part], now).await.unwrap();
}

/// A service whose database has pass-0 to pass-9, of which a standby has pass-0 to pass-4; and the standby.
async fn with_a_standby_that_lags(
    change: impl FnOnce(&mut pass_state::Config),
) -> (Server, Arc<Faulty>, Arc<SqlStore>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let copy = dir.path().join("standby.db");
    let server = Server::over(Some(store.clone()), dir, change).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..5)).await;
    store.inner().backup(&copy).await.unwrap();
    gateway.deliver(installs(5..10)).await;
    let standby = SqlStore::open(SqliteOptions::new(copy)).await.unwrap();
    (server, store, Arc::new(standby))
}

fn passes_of(frames: &[Frame]) -> Vec<String> {
    let events = frames.iter().filter_map(|frame| match frame {
        Frame::Events(frame) => Some(&frame.events),
        _ => None,
    });
    events
        .flatten()
        .map(|event| event.pass.rsplit_once('/').unwrap().1.to_owned())
        .collect()
}

#[tokio::test]
async fn after_a_failover_that_lost_events_a_live_stream_ends_and_never_tells_of_other_ones() {
    // Fewer events than were known, just as many, and more: each would look like a continuation to somebody.
    for others in [1, 5, 20] {
        let (server, store, standby) = with_a_standby_that_lags(|_| {}).await;
        let mut live = server.subscribe(from_beginning()).await.unwrap();
        let known = live.passes(10).await;
        let old = live.cursor.clone();
        write_elsewhere(&standby, 7, installs(100..100 + others), at(3_000)).await;
        store.fail_over(standby.clone());
        let (frames, status) = live.rest().await;
        assert_eq!(passes_of(&frames), Vec::<String>::new(), "{others}");
        let status = status.unwrap();
        assert_eq!(reason(&status), Reason::CursorEpochMismatch, "{others}");
        let log = server.log().await;
        assert_eq!(metadata(&status, "epoch"), log.epoch);
        assert_eq!(metadata(&status, "head_cursor"), log.head_cursor);

        // What clients had is of the history that is gone; a new stream tells the present one.
        let refused = server.subscribe(after(&old)).await.err().unwrap();
        assert_eq!(reason(&refused), Reason::CursorEpochMismatch);
        let mut anew = server.subscribe(from_beginning()).await.unwrap();
        let present = anew.passes(5 + usize::try_from(others).unwrap()).await;
        assert_eq!(present[..5], known[..5]);
        assert_eq!(present[5], "pass-100");
        assert_eq!(store.rotations.load(Ordering::SeqCst), 1);
        server.stop().await;
    }
}

#[tokio::test]
async fn a_stream_that_catches_up_across_such_a_failover_tells_one_history_only() {
    let (server, store, standby) = with_a_standby_that_lags(|config| {
        // Nothing but the pages themselves can tell.
        config.subscriptions.poll_interval = Span::from_secs(10);
        config.subscriptions.poll_interval_idle = Span::from_secs(10);
        config.subscriptions.page_events = 16;
        config.subscriptions.ring_events_max = 64;
    })
    .await;
    let mut gateway = Gateway::connect(&server, 2).await;
    gateway.deliver(installs(10..300)).await;
    write_elsewhere(&standby, 7, installs(1_000..1_400), at(3_000)).await;
    let epoch = server.log().await.epoch;
    store.page_gate.forget_permits(Semaphore::MAX_PERMITS);
    store.page_gate.add_permits(2);
    let mut slow = server.subscribe(from_beginning()).await.unwrap();
    let told = slow.passes(32).await;
    assert_eq!(told[31], "pass-31");
    store.fail_over(standby);
    store.page_gate.add_permits(10_000);
    let (frames, status) = slow.rest().await;
    for pass in passes_of(&frames) {
        let number: u64 = pass.strip_prefix("pass-").unwrap().parse().unwrap();
        assert!(number < 1_000, "{pass} is of another history");
    }
    assert_eq!(reason(&status.unwrap()), Reason::CursorEpochMismatch);
    assert_ne!(server.log().await.epoch, epoch);
    server.stop().await;
}

#[tokio::test]
async fn a_new_stream_waits_until_the_log_has_the_epoch_of_its_present_history() {
    let (server, store, standby) = with_a_standby_that_lags(|config| {
        config.subscriptions.poll_interval = Span::from_secs(10);
        config.subscriptions.poll_interval_idle = Span::from_secs(10);
    })
    .await;
    let known = server.log().await;
    write_elsewhere(&standby, 7, installs(100..120), at(3_000)).await;
    store.fail_over(standby);
    // Who resumes is the first to see it.
    let began = std::time::Instant::now();
    let status = server.subscribe(after(&known.head_cursor)).await.err();
    let status = status.unwrap();
    assert!(
        [Reason::StoreUnavailable, Reason::CursorEpochMismatch].contains(&reason(&status)),
        "{status:?}"
    );
    eventually("the new epoch", || async {
        server.log().await.epoch != known.epoch
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5), "by the timer");
    let mut anew = server.subscribe(from_beginning()).await.unwrap();
    assert_eq!(anew.passes(25).await[24], "pass-119");
    server.stop().await;
}

#[tokio::test]
async fn commits_of_our_own_on_another_history_are_no_continuation_of_the_live_stream() {
    let (server, store, standby) = with_a_standby_that_lags(|config| {
        config.subscriptions.poll_interval = Span::from_secs(10);
        config.subscriptions.poll_interval_idle = Span::from_secs(10);
    })
    .await;
    let mut live = server.subscribe(from_beginning()).await.unwrap();
    live.passes(10).await;
    write_elsewhere(&standby, 7, installs(100..120), at(3_000)).await;
    store.fail_over(standby);
    let mut gateway = Gateway::connect(&server, 9).await;
    gateway.deliver(installs(200..201)).await;
    let (frames, status) = live.rest().await;
    assert_eq!(passes_of(&frames), Vec::<String>::new());
    assert_eq!(reason(&status.unwrap()), Reason::CursorEpochMismatch);
    assert_eq!(store.rotations.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_replica_that_finds_out_second_leaves_the_new_epoch_as_it_is() {
    let (first, store, standby) = with_a_standby_that_lags(|_| {}).await;
    let dir = tempfile::tempdir().unwrap();
    let same = Faulty::new(&dir).await;
    same.fail_over(store.inner());
    let second = Server::over(Some(same.clone()), dir, |config| {
        // It learns of nothing but by its stream's page.
        config.subscriptions.poll_interval = Span::from_secs(10);
        config.subscriptions.poll_interval_idle = Span::from_secs(10);
    })
    .await;
    let before = second.log().await;
    assert_eq!(before.head_cursor, first.log().await.head_cursor);
    let wish = v1::SubscribeRequest {
        batch_size: 8,
        ..from_beginning()
    };
    let mut reader = first.subscribe(wish).await.unwrap();
    reader.passes(8).await;
    same.page_gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut live = second.subscribe(after(&reader.cursor)).await.unwrap();
    live.started().await;

    write_elsewhere(&standby, 7, installs(100..120), at(3_000)).await;
    store.fail_over(standby.clone());
    same.fail_over(standby);
    eventually("a new epoch", || async {
        first.log().await.epoch != before.epoch
    })
    .await;
    same.page_gate.add_permits(1_000);
    let (frames, status) = live.rest().await;
    assert_eq!(passes_of(&frames), Vec::<String>::new());
    let status = status.unwrap();
    assert_eq!(reason(&status), Reason::CursorEpochMismatch);
    let new = first.log().await;
    assert_eq!(metadata(&status, "epoch"), new.epoch);
    assert_eq!(second.log().await.epoch, new.epoch);
    assert_eq!(store.rotations.load(Ordering::SeqCst), 1);
    assert_eq!(same.rotations.load(Ordering::SeqCst), 0);
    second.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_store_that_comes_back_as_it_was_keeps_its_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..3)).await;
    let mut live = server.subscribe(from_beginning()).await.unwrap();
    live.passes(3).await;
    store.blind.store(true, Ordering::SeqCst);
    eventually("the failure to be seen", || async {
        server.get("/readyz").await.starts_with("HTTP/1.1 503")
    })
    .await;
    write_elsewhere(&store.inner(), 7, installs(3..6), at(3_000)).await;
    store.blind.store(false, Ordering::SeqCst);
    assert_eq!(live.passes(3).await, ["pass-3", "pass-4", "pass-5"]);
    assert_eq!(store.rotations.load(Ordering::SeqCst), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_hint_of_the_store_is_followed_at_once_and_its_loss_costs_only_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |config| {
        config.subscriptions.poll_interval = Span::from_secs(3);
        config.subscriptions.poll_interval_idle = Span::from_secs(3);
    })
    .await;
    let mut live = server.subscribe(from_end()).await.unwrap();
    let caught_up = |frame: &Frame| matches!(frame, Frame::CaughtUp(_));
    live.until("CaughtUp", caught_up).await;
    write_elsewhere(&store.inner(), 7, installs(0..2), at(3_000)).await;
    let began = std::time::Instant::now();
    store.hints.send_modify(|hint| *hint += 1);
    assert_eq!(live.passes(2).await, ["pass-0", "pass-1"]);
    assert!(began.elapsed() < Duration::from_secs(2), "by the timer");
    // No hint this time.
    write_elsewhere(&store.inner(), 7, installs(2..3), at(3_000)).await;
    assert_eq!(live.passes(1).await, ["pass-2"]);
    server.stop().await;
}

#[tokio::test]
async fn a_read_that_waits_for_a_place_finds_what_another_process_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |config| {
        config.subscriptions.poll_interval = Span::from_secs(10);
        config.subscriptions.poll_interval_idle = Span::from_secs(10);
    })
    .await;
    write_elsewhere(&store.inner(), 7, installs(0..2), at(3_000)).await;
    let place = store.inner().head().await.unwrap().cursor();
    let request = v1::GetPassRequest {
        name: "sources/acme/passes/pass-1".into(),
        min_cursor: place.to_string(),
        ..v1::GetPassRequest::default()
    };
    let began = std::time::Instant::now();
    let pass = server.passes().get_pass(request).await.unwrap();
    assert!(pass.into_inner().pass.is_some());
    assert!(began.elapsed() < Duration::from_secs(1));
    server.stop().await;
}

/// Says hello of spool 1, with what it has and what it was acknowledged.
async fn with_settled(server: &Server, settled_sequence: u64) -> Gateway {
    let hello = v1::IngestHello {
        settled_sequence,
        oldest_sequence: 1,
        ..hello(1)
    };
    Gateway::with(&server.channel, hello).await
}

#[tokio::test]
async fn an_idle_gateway_is_told_to_say_hello_again_once_the_log_has_a_new_epoch() {
    let (server, store, standby) = with_a_standby_that_lags(|_| {}).await;
    let mut idle = with_settled(&server, 10).await;
    let before = server.log().await.epoch;
    assert_eq!(idle.ready.epoch, before);
    store.fail_over(standby);
    let status = idle.end().await;
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(reason(&status), Reason::StreamRotated);
    assert!(status.get_details_retry_info().is_some());

    let mut refilling = with_settled(&server, 10).await;
    let now = server.log().await.epoch;
    assert_ne!(now, before);
    assert_eq!(refilling.ready.epoch, now);
    assert_eq!(refilling.ready.committed_sequence, 5);
    assert_eq!(refilling.deliver(installs(5..8)).await, ["APPLIED"; 3]);
    // A refill that goes on in another stream is of the same loss.
    let mut refilling = with_settled(&server, 10).await;
    assert_eq!(refilling.deliver(installs(8..10)).await, ["APPLIED"; 2]);
    assert_eq!(server.log().await.epoch, now);
    assert_eq!(store.rotations.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test]
async fn what_was_taken_before_an_epoch_ends_is_acknowledged_before_its_streams_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    store.gate.forget_permits(Semaphore::MAX_PERMITS);
    gateway.send(installs(0..3)).await;
    eventually("the append", || async {
        store.appends.load(Ordering::SeqCst) == 1
    })
    .await;
    let rotated = store.inner().epoch_rotate().await.unwrap();
    eventually("the new epoch to be seen", || async {
        let mut passes = server.passes();
        let asking = passes.get_log_info(v1::GetLogInfoRequest {});
        let log = asking.await.unwrap().into_inner();
        log.head_cursor == rotated.cursor().to_string()
    })
    .await;
    store.gate.add_permits(100);
    let committed = gateway.committed().await.unwrap();
    assert_eq!(committed.committed_sequence, 3);
    assert_eq!(reason(&gateway.end().await), Reason::StreamRotated);
    server.stop().await;
}

#[tokio::test]
async fn a_gateway_hears_which_delivery_is_the_committed_one() {
    let (server, store, standby) = with_a_standby_that_lags(|_| {}).await;
    let id_of = |number| installs(number..number + 1)[0].id.to_string();
    let fresh = Gateway::connect(&server, 9).await;
    assert_eq!(fresh.ready.committed_delivery_id, "");
    let mut gateway = with_settled(&server, 10).await;
    assert_eq!(gateway.ready.committed_delivery_id, id_of(9));
    store.fail_over(standby);
    gateway.end().await;
    let gateway = with_settled(&server, 10).await;
    assert_eq!(gateway.ready.committed_delivery_id, id_of(4));
    server.stop().await;
}
