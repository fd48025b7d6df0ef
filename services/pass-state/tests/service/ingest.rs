//! What a gateway meets.

use std::sync::atomic::Ordering;
use std::time::Duration;

use pass_domain::kind::Kind;
use pass_proto::convert::delivery_to_wire;
use pass_proto::status::Reason;
use pass_proto::v1;
use pass_proto::v1::ingest_request::Message as ToStore;
use service_kit::config::{ByteSize, Duration as Span};
use service_kit::shutdown::Phase;
use tokio::sync::Semaphore;

use crate::faulty::Faulty;
use crate::harness::*;
use crate::make::*;

#[tokio::test]
async fn deliveries_are_committed_then_acknowledged_with_their_outcomes() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    assert_eq!(gateway.ready.committed_sequence, 0);
    assert_eq!(gateway.ready.window_deliveries, 4_096);
    assert_eq!(gateway.ready.window_bytes, 8 << 20);
    assert_eq!(gateway.ready.batch_deliveries_max, 1_024);
    let first = delivery(1, "a", Kind::Installed, 0);
    let told_again = delivery(2, "a", Kind::Installed, 0);
    let batch = vec![first, told_again, undecodable(3), control(4)];
    assert_eq!(
        gateway.deliver(batch).await,
        ["APPLIED", "DUPLICATE", "QUARANTINED", "CONTROL"]
    );
    let log = server.log().await;
    assert_eq!(log.head_position, 1);
    let books = log.books.unwrap();
    assert_eq!(
        (books.deliveries, books.applied, books.duplicate),
        (4, 1, 1)
    );
    assert_eq!((books.control, books.quarantine_open), (1, 1));
    assert_eq!(log.spools[0].committed_sequence, 4);
    assert_eq!(log.spools[0].gateway_id, "gateway-under-test");
    assert_eq!(log.epoch, gateway.ready.epoch);
    server.stop().await;
}

#[tokio::test]
async fn a_gateway_that_comes_again_goes_on_after_the_last_commit() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.deliver(installs(0..3)).await;
    drop(gateway);
    let dir = server.stop().await;

    let server = Server::over(None, dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    assert_eq!(gateway.ready.committed_sequence, 3);
    // What was committed may be sent again.
    gateway.sequence = 1;
    assert_eq!(
        gateway.deliver(installs(1..4)).await,
        ["DUPLICATE", "DUPLICATE", "APPLIED"]
    );
    assert_eq!(server.log().await.head_position, 4);
    server.stop().await;
}

#[tokio::test]
async fn the_gateways_end_of_the_stream_is_answered_with_ok_after_the_last_acknowledgement() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.send(installs(0..2)).await;
    gateway.close();
    assert_eq!(gateway.committed().await.unwrap().committed_sequence, 2);
    assert!(gateway.answer().await.unwrap().is_none());
    server.stop().await;
}

#[tokio::test]
async fn a_hello_that_cannot_work_is_refused_at_once_with_every_fault() {
    let server = Server::start().await;
    let channel = &server.channel;
    let other = v1::IngestHello {
        protocol_version: 2,
        ..hello(1)
    };
    let status = refused(channel, ToStore::Hello(other)).await;
    assert_eq!(reason(&status), Reason::ProtocolMismatch);
    assert_eq!(metadata(&status, "supported"), "1");

    let bad = v1::IngestHello {
        gateway_id: "x".repeat(129),
        spool_id: "nonsense".into(),
        sources: vec!["acme".into(), "Not A Source".into()],
        body_bytes_max: 64 << 20,
        ..hello(1)
    };
    let status = refused(channel, ToStore::Hello(bad)).await;
    assert_eq!(reason(&status), Reason::FieldInvalid);
    assert_eq!(
        bad_fields(&status),
        [
            "hello.body_bytes_max",
            "hello.gateway_id",
            "hello.sources[1]",
            "hello.spool_id"
        ]
    );

    let status = refused(channel, ToStore::Batch(v1::IngestBatch::default())).await;
    assert_eq!(reason(&status), Reason::SequenceInvalid);
    assert_eq!(metadata(&status, "expected"), "hello");
    server.stop().await;
}

#[tokio::test]
async fn a_gateway_that_says_nothing_is_not_kept() {
    let server = Server::with(|config| config.ingest.hello_timeout = Span::from_millis(100)).await;
    let (_to_store, mut from_store) = ingest(&server.channel).await;
    let status = soon("refusal", from_store.message()).await.unwrap_err();
    assert_eq!(reason(&status), Reason::DeadlineExceeded);
    server.stop().await;
}

#[tokio::test]
async fn messages_out_of_turn_end_the_stream_and_change_nothing() {
    let server = Server::start().await;
    // (what is sent after hello, what was expected)
    let batch = |batch_number, sequences: &[u64]| {
        let deliveries = sequences.iter().map(|&sequence| v1::IngestDelivery {
            sequence,
            ..delivery_to_wire(&delivery(sequence, "a", Kind::Installed, 0))
        });
        ToStore::Batch(v1::IngestBatch {
            batch_number,
            deliveries: deliveries.collect(),
        })
    };
    for (message, expected) in [
        (batch(2, &[1]), "1"),
        (batch(1, &[1, 3]), "2"),
        (batch(1, &[0]), "1"),
        (batch(1, &[5]), "1"),
        (ToStore::Hello(hello(1)), "batch"),
    ] {
        let mut gateway = Gateway::connect(&server, 1).await;
        gateway.say(message).await;
        let status = gateway.end().await;
        assert_eq!(reason(&status), Reason::SequenceInvalid);
        assert_eq!(metadata(&status, "expected"), expected);
    }
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.say(batch(1, &[])).await;
    assert_eq!(bad_fields(&gateway.end().await), ["batch.deliveries"]);
    assert_eq!(server.log().await.head_position, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_newer_stream_of_the_spool_ends_the_older_at_once() {
    let server = Server::start().await;
    let mut older = Gateway::connect(&server, 1).await;
    older.deliver(installs(0..1)).await;
    let mut newer = Gateway::connect(&server, 1).await;
    assert_eq!(reason(&older.end().await), Reason::SpoolFenced);
    assert_eq!(newer.deliver(installs(1..2)).await, ["APPLIED"]);
    // Another spool is another matter.
    let mut other = Gateway::connect(&server, 2).await;
    assert_eq!(other.deliver(installs(2..3)).await, ["APPLIED"]);
    assert_eq!(newer.deliver(installs(3..4)).await, ["APPLIED"]);
    server.stop().await;
}

#[tokio::test]
async fn a_stream_fenced_by_another_process_learns_it_with_its_next_batch() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    let elsewhere = pass_store::SpoolHello {
        spool: pass_store::SpoolId([1; 16]),
        gateway: "elsewhere".into(),
        settled_sequence: 0,
        oldest_sequence: 0,
        may_change_epoch: true,
    };
    pass_store::PassStore::spool_open(&*store, &elsewhere)
        .await
        .unwrap();
    gateway.send(installs(0..1)).await;
    assert_eq!(reason(&gateway.end().await), Reason::SpoolFenced);
    assert_eq!(server.log().await.head_position, 0);
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_for_the_moment_is_not_acknowledged_and_comes_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    for fault in [&store.unavailable, &store.unknown] {
        let mut gateway = Gateway::connect(&server, 1).await;
        fault.store(1, Ordering::SeqCst);
        gateway.send(installs(0..5)).await;
        let status = gateway.answer().await.unwrap_err();
        assert_eq!(reason(&status), Reason::StoreUnavailable);
        assert!(tonic_types::StatusExt::get_details_retry_info(&status).is_some());
        assert!(!status.message().contains("on cue"), "{status:?}");
    }
    // The unknown one was done; sending it again adds nothing.
    let mut gateway = Gateway::connect(&server, 1).await;
    assert_eq!(gateway.ready.committed_sequence, 5);
    gateway.sequence = 0;
    assert_eq!(gateway.deliver(installs(0..5)).await, ["DUPLICATE"; 5]);
    assert_eq!(server.log().await.head_position, 5);
    server.stop().await;
}

#[tokio::test]
async fn a_delivery_that_the_store_refuses_for_ever_blocks_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    store
        .refused
        .lock()
        .unwrap()
        .extend([id(13), id(14), id(30)]);
    let mut gateway = Gateway::connect(&server, 1).await;
    let outcomes = gateway.deliver(installs(0..40)).await;
    let poisoned: Vec<usize> = (0..40).filter(|&n| outcomes[n] != "APPLIED").collect();
    assert_eq!(poisoned, [13, 14, 30]);
    assert_eq!(outcomes[13], "QUARANTINED");
    assert_eq!(gateway.deliver(installs(40..41)).await, ["APPLIED"]);

    let request = v1::GetDeliveryRequest {
        name: format!("deliveries/{}", id(13)),
        view: v1::DeliveryView::Full as i32,
        read_mask: None,
    };
    let found = server.deliveries().get_delivery(request).await.unwrap();
    let found = found.into_inner().delivery.unwrap();
    let stay = found.quarantine.unwrap();
    assert_eq!(stay.reason(), v1::UndecodableReason::StoreRefused);
    assert_eq!(&found.body[..], b"{\"n\":13}", "its bytes are kept");
    assert_eq!(server.log().await.head_position, 38);
    server.stop().await;
}

#[tokio::test]
async fn a_delivery_that_is_refused_even_without_facts_is_taken_for_a_passing_fault() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    store.cursed.lock().unwrap().insert(id(2));
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.send(installs(0..4)).await;
    assert_eq!(reason(&gateway.end().await), Reason::StoreUnavailable);
    store.cursed.lock().unwrap().clear();
    let mut gateway = Gateway::connect(&server, 1).await;
    assert_eq!(
        gateway.ready.committed_sequence, 2,
        "those before it are in"
    );
    assert_eq!(gateway.deliver(installs(2..4)).await, ["APPLIED"; 2]);
    server.stop().await;
}

#[tokio::test]
async fn a_database_that_somebody_has_to_mend_condemns_no_delivery() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    // As many as it would take to halve the batch down to single deliveries.
    store.unfit.store(3, Ordering::SeqCst);
    gateway.send(installs(0..4)).await;
    assert_eq!(reason(&gateway.end().await), Reason::StoreUnavailable);
    assert_eq!(store.appends.load(Ordering::SeqCst), 1, "tried once");
    store.unfit.store(0, Ordering::SeqCst);
    let mut gateway = Gateway::connect(&server, 1).await;
    assert_eq!(gateway.ready.committed_sequence, 0);
    assert_eq!(gateway.deliver(installs(0..4)).await, ["APPLIED"; 4]);
    assert_eq!(server.log().await.books.unwrap().quarantined, 0);
    server.stop().await;
}

#[tokio::test]
async fn what_waits_is_committed_together_and_the_window_bounds_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |config| {
        config.ingest.window_deliveries = 40;
    })
    .await;
    store.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut gateway = Gateway::connect(&server, 1).await;
    let mut other = Gateway::connect(&server, 2).await;
    assert_eq!(gateway.ready.window_deliveries, 40);
    for batch in 0..20 {
        gateway.send(installs(batch * 10..batch * 10 + 10)).await;
    }
    other.send(installs(500..501)).await;
    eventually("the first append", || async {
        store.appends.load(Ordering::SeqCst) == 1
    })
    .await;
    // Of 200 deliveries sent the window lets 40 in: the first append has 10, the rest waits for the second.
    tokio::time::sleep(Duration::from_millis(100)).await;
    store.gate.add_permits(2);
    let mut sequence = 0;
    while sequence < 40 {
        sequence = gateway.committed().await.unwrap().committed_sequence;
    }
    assert_eq!(sequence, 40, "the window was passed");
    assert_eq!(other.committed().await.unwrap().committed_sequence, 1);
    store.gate.add_permits(1_000);
    while sequence < 200 {
        sequence = gateway.committed().await.unwrap().committed_sequence;
    }
    let appends = store.appends.load(Ordering::SeqCst);
    assert!(appends <= 21, "{appends} transactions for 21 batches");
    server.stop().await;
}

#[tokio::test]
async fn acknowledgements_are_cumulative_and_tell_every_outcome_once_in_order() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    for batch in 0..30 {
        gateway.send(installs(batch * 7..batch * 7 + 7)).await;
    }
    let (mut batch, mut told) = (0, Vec::new());
    while batch < 30 {
        let committed = gateway.committed().await.unwrap();
        assert!(committed.batch_number > batch);
        batch = committed.batch_number;
        told.extend(committed.outcomes.iter().map(|outcome| outcome.sequence));
        assert_eq!(told.len() as u64, batch * 7);
        assert!(committed.committed_sequence >= batch * 7);
    }
    assert!(told.into_iter().eq(1..=210));
    server.stop().await;
}

#[tokio::test]
async fn words_of_a_newer_gateway_go_to_quarantine_and_its_messages_are_passed_over() {
    let server = Server::start().await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.say_something_newer().await;
    let mut newer = delivery_to_wire(&delivery(1, "a", Kind::Installed, 0));
    newer.sequence = 1;
    if let Some(v1::ingest_delivery::Decoded::Facts(facts)) = &mut newer.decoded {
        facts.facts[0].kind = 99;
    }
    let mut nameless = delivery_to_wire(&delivery(2, "b", Kind::Installed, 0));
    nameless.sequence = 2;
    nameless.id.clear();
    nameless.receive_time = None;
    gateway
        .say(ToStore::Batch(v1::IngestBatch {
            batch_number: 1,
            deliveries: vec![newer, nameless],
        }))
        .await;
    let committed = gateway.committed().await.unwrap();
    assert_eq!(outcomes(&committed), ["QUARANTINED", "QUARANTINED"]);
    server.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_with_a_text_that_says_so() {
    let server = Server::with(|config| config.ingest.body_bytes_max = ByteSize::from_kib(1)).await;
    let small = v1::IngestHello {
        body_bytes_max: 1024,
        ..hello(1)
    };
    let status = refused(&server.channel, ToStore::Hello(hello(1))).await;
    assert_eq!(bad_fields(&status), ["hello.body_bytes_max"]);
    let mut gateway = Gateway::with(&server.channel, small).await;
    assert_eq!(gateway.ready.message_bytes_max, 2 * 1024 + (64 << 10));
    let mut large = delivery(1, "a", Kind::Installed, 0);
    large.body = vec![b'x'; 80 << 10];
    gateway.send(vec![large]).await;
    let status = gateway.end().await;
    assert_eq!(reason(&status), Reason::FieldInvalid);
    assert!(status.message().contains("too large"), "{status:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_stream_at_its_age_is_asked_to_come_again_after_its_acknowledgements() {
    let server = Server::with(|config| config.ingest.stream_age_max = Span::from_secs(1)).await;
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.send(installs(0..3)).await;
    assert_eq!(gateway.committed().await.unwrap().committed_sequence, 3);
    let status = gateway.end().await;
    assert_eq!(reason(&status), Reason::StreamRotated);
    let gateway = Gateway::connect(&server, 1).await;
    assert_eq!(gateway.ready.committed_sequence, 3);
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_service_acknowledges_what_it_took_and_says_why_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |_| {}).await;
    store.gate.forget_permits(Semaphore::MAX_PERMITS);
    let mut gateway = Gateway::connect(&server, 1).await;
    gateway.send(installs(0..3)).await;
    eventually("the append", || async {
        store.appends.load(Ordering::SeqCst) == 1
    })
    .await;
    server.shutdown.advance(Phase::Stopping);
    store.gate.add_permits(10);
    assert_eq!(gateway.committed().await.unwrap().committed_sequence, 3);
    assert_eq!(reason(&gateway.end().await), Reason::ServerDraining);
    server.stop().await;
}

#[tokio::test]
async fn too_many_gateways_are_told_so() {
    let server = Server::with(|config| config.ingest.streams_max = 1).await;
    let _gateway = Gateway::connect(&server, 1).await;
    let mut client = v1::ingest_service_client::IngestServiceClient::new(server.channel.clone());
    let requests = tokio_stream::iter([request(ToStore::Hello(hello(2)))]);
    let status = soon("refusal", client.ingest(requests)).await.unwrap_err();
    assert_eq!(reason(&status), Reason::Overloaded);
    server.stop().await;
}

#[cfg(feature = "planted-bugs")]
#[tokio::test]
async fn the_planted_bug_acknowledges_what_is_not_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Faulty::new(&dir).await;
    let server = Server::over(Some(store.clone()), dir, |config| {
        config.writer.planted_ack_before_commit = true;
    })
    .await;
    store.unavailable.store(1, Ordering::SeqCst);
    let mut gateway = Gateway::connect(&server, 1).await;
    assert_eq!(gateway.deliver(installs(0..1)).await, ["APPLIED"]);
    assert_eq!(server.log().await.head_position, 0);
    server.stop().await;
}

#[tokio::test]
async fn what_neither_side_holds_any_more_is_told_with_its_exact_range() {
    let server = Server::start().await;
    let gateway = Gateway::with(
        &server.channel,
        v1::IngestHello {
            settled_sequence: 9,
            oldest_sequence: 6,
            ..hello(1)
        },
    )
    .await;
    let ready = &gateway.ready;
    assert_eq!(
        (ready.missing_first_sequence, ready.missing_last_sequence),
        (1, 5)
    );
    assert_eq!(ready.committed_sequence, 5);
    let log = server.log().await;
    assert!(log.spools[0].missing_sequences.contains("1-5"), "{log:?}");
    server.stop().await;
}
