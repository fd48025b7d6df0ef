//! A spool that several gateways share: whose turn it is, and what a server's outage does.

use test_kit::wait_for;

use super::*;
use crate::testing::shared::{SharedSpool, Turn};

impl Rig {
    async fn shared(turn: Turn) -> (Self, Arc<SharedSpool>) {
        // Pauses that long would be seen.
        let config = Forward {
            blocked_retry: Millis::from_secs(600),
            drain_timeout: Millis::from_secs(60),
            ..quick()
        };
        Self::shared_with(turn, config).await
    }

    async fn shared_with(turn: Turn, config: Forward) -> (Self, Arc<SharedSpool>) {
        let dir = tempfile::tempdir().unwrap();
        let spool = SharedSpool::new(testing::open_spool(dir.path()), turn);
        let rig = Self::of(dir, Arc::clone(&spool) as _, config, false, true).await;
        (rig, spool)
    }
}

#[tokio::test]
async fn a_gateway_waits_for_its_turn_ready_and_without_a_stream() {
    let (mut rig, spool) = Rig::shared(Turn::Theirs).await;
    rig.append(2).await;
    rig.wait("the wait for the turn", |status| status.waiting_for_turn)
        .await;
    assert!(rig.readiness.is_ready());
    assert!(rig.peer.nobody_within(A_WHILE).await);
    spool.turn_to(Turn::Ours);
    let mut stream = rig.peer.ready(0).await;
    let (sequences, number) = stream.sequences(2).await;
    assert_eq!(sequences, [1, 2]);
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(2).await;
    assert!(!rig.status.borrow().waiting_for_turn);
    rig.stop().await;
}

#[tokio::test]
async fn a_stop_interrupts_the_wait_for_the_turn() {
    let (rig, _spool) = Rig::shared(Turn::Theirs).await;
    rig.wait("the wait for the turn", |status| status.waiting_for_turn)
        .await;
    let status = rig.status.clone();
    rig.stop().await;
    assert!(!status.borrow().waiting_for_turn);
}

/// The successor goes on after what is committed, whatever was in flight here.
#[tokio::test]
async fn a_lost_turn_ends_the_stream_without_an_error_and_the_next_one_goes_on() {
    let (mut rig, spool) = Rig::shared(Turn::Ours).await;
    rig.append(3).await;
    let mut stream = rig.peer.ready(0).await;
    assert_eq!(stream.sequences(3).await.0, [1, 2, 3]);
    spool.turn_to(Turn::Theirs);
    assert!(
        stream.ended().await,
        "it does not wait for the acknowledgement"
    );
    let status = rig
        .wait("the wait for the turn", |status| status.waiting_for_turn)
        .await;
    assert_eq!((status.last_error, status.blocked), (None, None));
    assert_eq!((status.connected, status.in_flight_deliveries), (false, 0));
    assert!(rig.readiness.is_ready());
    // The other one got two of them committed before it ended.
    spool.turn_to(Turn::Ours);
    let mut stream = rig.peer.ready(2).await;
    let (sequences, number) = stream.sequences(1).await;
    assert_eq!(sequences, [3]);
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(3).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_tried_again_until_it_is_back() {
    let (mut rig, spool) = Rig::shared(Turn::Ours).await;
    rig.append(1).await;
    let mut stream = rig.peer.ready(0).await;
    assert_eq!(stream.sequences(1).await.0, [1]);
    spool.turn_to(Turn::Away);
    // The acknowledgement comes all the same, but can't be settled.
    stream.commit(1, [1], Outcome::Applied).await;
    assert!(stream.ended().await);
    let status = rig
        .wait("the outage", |status| status.last_error.is_some())
        .await;
    let error = status.last_error.unwrap();
    assert!(error.contains("no server answers"), "{error}");
    assert_eq!(status.blocked, None);
    assert!(
        rig.readiness.is_ready(),
        "whether callbacks can be taken is the spool's check to say"
    );
    assert!(rig.peer.nobody_within(A_WHILE).await);
    spool.turn_to(Turn::Ours);
    let _stream = rig.peer.ready(1).await;
    let status = rig.wait("the stream", |status| status.connected).await;
    assert_eq!(status.last_error, None);
    assert_eq!(rig.spool.status().settled, Sequence(1));
    rig.stop().await;
}

#[tokio::test]
async fn what_stands_in_this_gateways_way_is_forgotten_while_another_forwards() {
    let (mut rig, spool) = Rig::shared_with(Turn::Ours, quick()).await;
    rig.append(1).await;
    let refused = Fault::field("hello.body_bytes_max", "is 2 MiB; at most 1 MiB is taken");
    rig.peer.stream().await.fail(refused.into()).await;
    rig.wait("the refusal", |status| status.blocked.is_some())
        .await;
    assert!(!rig.readiness.is_ready());
    spool.turn_to(Turn::Theirs);
    let status = rig
        .wait("the wait for the turn", |status| status.waiting_for_turn)
        .await;
    assert_eq!(status.blocked, None);
    assert!(rig.readiness.is_ready());
    rig.stop().await;
}

#[tokio::test]
async fn a_fenced_gateway_that_has_the_turn_goes_on_without_a_long_pause() {
    let (mut rig, _spool) = Rig::shared(Turn::Ours).await;
    let stream = rig.peer.ready(0).await;
    stream
        .fail(Fault::new(v1::ErrorReason::SpoolFenced, "newer stream").into())
        .await;
    let _stream = rig.peer.ready(0).await;
    rig.wait("the stream", |status| status.streams == 2).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_gateway_that_is_blocked_passes_its_turn_and_one_that_waits_keeps_the_reason_if_it_is_the_spool()
 {
    let (mut rig, spool) = Rig::shared_with(Turn::Ours, quick()).await;
    rig.append(1).await;
    let refused = Fault::field("hello.body_bytes_max", "is 2 MiB; at most 1 MiB is taken");
    rig.peer.stream().await.fail(refused.into()).await;
    rig.wait("the refusal", |status| status.blocked.is_some())
        .await;
    let _stream = rig.peer.ready(7).await;
    let status = rig.wait("the alarm", |status| status.spool_restored).await;
    let text = status.blocked.unwrap();
    assert!(text.contains("--metadata=passline.spool_id="), "{text}");
    wait_for("both passes", SOON, async || match spool.passes() {
        2 => Ok(()),
        passes => Err(passes),
    })
    .await
    .unwrap();
    spool.turn_to(Turn::Theirs);
    let status = rig
        .wait("the wait for the turn", |status| status.waiting_for_turn)
        .await;
    assert!(status.spool_restored && status.blocked.is_some());
    assert!(!rig.readiness.is_ready());

    // The one that has the turn gets something committed, so the spool is the right one again.
    spool.settle(Sequence(1)).await.unwrap();
    let status = rig
        .wait("callbacks taken again", |status| !status.spool_restored)
        .await;
    assert_eq!((status.blocked, status.waiting_for_turn), (None, true));
    assert!(rig.readiness.is_ready());
    rig.stop().await;
}

#[tokio::test]
async fn a_gateway_alone_with_its_spool_or_with_a_stream_every_few_seconds_passes_nothing() {
    let (mut rig, spool) = Rig::shared(Turn::Ours).await;
    for _ in 0..3 {
        let stream = rig.peer.ready(0).await;
        stream.fail(Status::unavailable("store is away")).await;
    }
    let _stream = rig.peer.ready(0).await;
    rig.wait("the last stream", |status| status.streams == 4)
        .await;
    assert_eq!(spool.passes(), 0);
    rig.stop().await;
}

/// Takes the five seconds that it takes.
#[tokio::test]
async fn a_gateway_that_gets_no_ready_passes_its_turn_after_five_seconds_also_while_a_hello_hangs()
{
    let began = tokio::time::Instant::now();
    let (mut rig, spool) = Rig::shared_with(Turn::Ours, quick()).await;
    let failing = rig.peer.stream().await;
    failing.fail(Status::unavailable("store is away")).await;
    // The next one is left without an answer; the hello's own limit is 10 s.
    let _hanging = rig.peer.stream().await;
    wait_for("the pass", SOON, async || match spool.passes() {
        1 => Ok(()),
        passes => Err(passes),
    })
    .await
    .unwrap();
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(5) && took < Duration::from_secs(8),
        "{took:?}"
    );
    assert_eq!(rig.status.borrow().blocked, None);
    assert!(rig.readiness.is_ready(), "callbacks can be taken");
    let _stream = rig.peer.ready(0).await;
    rig.wait("the stream", |status| status.connected).await;
    rig.stop().await;
}

/// Takes the five seconds that it takes.
#[tokio::test]
async fn a_gateway_that_may_not_send_what_comes_passes_its_turn() {
    let (mut rig, spool) = Rig::shared_with(Turn::Ours, quick()).await;
    rig.append(1).await;
    let mut refusals = 0;
    while spool.passes() == 0 {
        let stream = rig.peer.stream().await;
        refusals += usize::from(
            stream
                .refuse_batch(Status::permission_denied("source"))
                .await,
        );
    }
    assert!(refusals > 2, "{refusals}");
    rig.stop().await;
}

#[tokio::test]
async fn a_refusal_that_comes_again_and_again_is_told_once_until_something_is_committed() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        })
        .finish();
    let _default = tracing::subscriber::set_default(subscriber);
    let mut rig = Rig::new().await;
    rig.append(1).await;
    let denied = || Status::permission_denied("may not send deliveries of source `plain`");
    for _ in 0..5 {
        assert!(rig.peer.stream().await.refuse_batch(denied()).await);
    }
    let mut stream = rig.peer.ready(0).await;
    let lines = |part: &str| log.text().matches(part).count();
    assert_eq!(lines("may not send"), 1, "{}", log.text());
    assert_eq!(
        lines("forwarding to pass-state committed"),
        1,
        "{}",
        log.text()
    );
    let (sequences, number) = stream.sequences(1).await;
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(1).await;
    stream.fail(denied()).await;
    let _stream = rig.peer.ready(1).await;
    rig.wait("the stream", |status| status.connected).await;
    assert_eq!(lines("may not send"), 2, "{}", log.text());
    assert_eq!(
        lines("forwarding to pass-state committed"),
        2,
        "{}",
        log.text()
    );
    rig.stop().await;
}

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_stop_leaves_what_is_not_acknowledged_to_the_others() {
    let (mut rig, spool) = Rig::shared(Turn::Ours).await;
    rig.append(1).await;
    let mut stream = rig.peer.ready(0).await;
    stream.batch().await;
    // Ends within the test's patience, which is far less than the drain's.
    rig.stop().await;
    assert!(stream.ended().await);
    assert_eq!(spool.status().settled, Sequence(0));
}
