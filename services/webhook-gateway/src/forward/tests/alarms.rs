//! Ends that need more than another try: fences, mismatches, damage, loss.

use async_trait::async_trait;
use pass_spool::{
    AppendError, LeaseError, Leased, RecordId, RewindError, RewindOutcome, SettleError, SpoolId,
    SpoolStatus,
};

use super::*;

/// A spool out of which an operator has moved records 3 to 5.
struct Holed(Arc<dyn Spool>);

#[async_trait]
impl Spool for Holed {
    fn id(&self) -> SpoolId {
        self.0.id()
    }
    async fn append(&self, id: RecordId, record: Bytes) -> Result<Sequence, AppendError> {
        self.0.append(id, record).await
    }
    async fn lease(&self, records: usize, bytes: usize) -> Result<Vec<Leased>, LeaseError> {
        loop {
            let mut leased = self.0.lease(records, bytes).await?;
            leased.retain(|leased| !(3..=5).contains(&leased.sequence.0));
            if !leased.is_empty() {
                return Ok(leased);
            }
        }
    }
    async fn settle(&self, through: Sequence) -> Result<(), SettleError> {
        self.0.settle(through).await
    }
    async fn rewind(&self, after: Sequence) -> Result<RewindOutcome, RewindError> {
        self.0.rewind(after).await
    }
    fn status(&self) -> SpoolStatus {
        self.0.status()
    }
    async fn close(&self) {
        self.0.close().await;
    }
}

/// pass-state refuses sequences with a hole, so the gateway has to say where the spool goes on.
#[tokio::test]
async fn a_hole_in_the_spool_is_told_to_pass_state_and_then_passed() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Holed(testing::open_spool(dir.path())));
    let mut rig = Rig::over(dir, spool, quick(), false).await;
    rig.append(7).await;
    let mut stream = rig.peer.ready(0).await;
    let (sequences, number) = stream.sequences(2).await;
    assert_eq!(sequences, [1, 2]);
    assert!(
        stream.silent_for(A_WHILE).await,
        "nothing is sent across the hole"
    );
    stream.commit(number, sequences, Outcome::Applied).await;
    let mut stream = rig.peer.stream().await;
    let hello = stream.hello().await;
    assert_eq!((hello.settled_sequence, hello.oldest_sequence), (2, 6));
    // It notes 3 to 5 as missing and goes on behind them.
    stream.send_ready(5).await;
    let (sequences, number) = stream.sequences(2).await;
    assert_eq!(sequences, [6, 7]);
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(7).await;
    assert_eq!(rig.status.borrow().missing, Some(3..=5));
    assert!(rig.readiness.is_ready());
    rig.stop().await;
}

#[tokio::test]
async fn a_fenced_stream_waits_longer_and_then_tries_again() {
    let mut rig = Rig::with(
        Forward {
            blocked_retry: Millis::from_millis(600),
            ..quick()
        },
        false,
    )
    .await;
    let stream = rig.peer.ready(0).await;
    stream
        .fail(Fault::new(v1::ErrorReason::SpoolFenced, "newer stream").into())
        .await;
    let status = rig
        .wait("the fence", |status| status.last_error.is_some())
        .await;
    assert!(
        status
            .last_error
            .unwrap()
            .contains("newer stream of this spool")
    );
    assert_eq!(status.blocked, None);
    // Half of the pause is the least.
    assert!(rig.peer.nobody_within(Duration::from_millis(200)).await);
    rig.peer.ready(0).await;
    rig.stop().await;
}

#[tokio::test]
async fn peers_that_do_not_fit_make_the_gateway_not_ready_until_they_do() {
    let mut rig = Rig::new().await;
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    assert!(rig.readiness.is_ready());
    stream
        .send(Ours::Ready(v1::IngestReady {
            protocol_version: 3,
            ..ready(0)
        }))
        .await;
    let status = rig
        .wait("the mismatch", |status| status.blocked.is_some())
        .await;
    assert!(status.blocked.unwrap().contains("protocol 3"));
    assert!(!rig.readiness.is_ready());
    rig.peer
        .stream()
        .await
        .fail(Fault::new(v1::ErrorReason::ProtocolMismatch, "too old").into())
        .await;
    assert!(!rig.readiness.is_ready());
    let refused = Fault::field("hello.body_bytes_max", "is 2 MiB; at most 1 MiB is taken");
    rig.peer.stream().await.fail(refused.into()).await;
    rig.wait("the refusal", |status| {
        status
            .blocked
            .as_deref()
            .is_some_and(|text| text.contains("make the two fit"))
    })
    .await;
    assert!(!rig.readiness.is_ready());
    // One release newer works.
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream
        .send(Ours::Ready(v1::IngestReady {
            protocol_version: 2,
            ..ready(0)
        }))
        .await;
    let status = rig.wait("the stream", |status| status.connected).await;
    assert_eq!((status.blocked, status.last_error), (None, None));
    assert!(rig.readiness.is_ready());
    rig.stop().await;
}

#[tokio::test]
async fn what_pass_state_knows_to_be_missing_is_an_alarm_here_too() {
    let mut rig = Rig::new().await;
    rig.append(4).await;
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream
        .send(Ours::Ready(v1::IngestReady {
            missing_first_sequence: 1,
            missing_last_sequence: 2,
            ..ready(2)
        }))
        .await;
    let status = rig.wait("the alarm", |status| status.connected).await;
    assert_eq!(status.missing, Some(1..=2));
    rig.stop().await;
}

#[tokio::test]
async fn a_pass_state_that_is_ahead_of_the_spool_is_an_alarm_and_callbacks_are_refused() {
    let mut rig = Rig::new().await;
    rig.append(2).await;
    let mut stream = rig.peer.ready(99).await;
    let status = rig
        .wait("the alarm", |status| status.blocked.is_some())
        .await;
    let text = status.blocked.unwrap();
    assert!(
        text.contains("committed sequence 99 of this spool, which ends at 2")
            && text.contains("webhook-gateway spool import"),
        "{text}"
    );
    assert!(status.spool_restored);
    assert!(!rig.readiness.is_ready());
    assert!(
        stream.ended().await,
        "nothing is sent that would be taken for known"
    );
    // An outage says nothing about the spool.
    rig.peer
        .stream()
        .await
        .fail(Status::unavailable("store is away"))
        .await;
    let status = rig
        .wait("the outage", |status| {
            status
                .last_error
                .as_deref()
                .is_some_and(|error| error.contains("store is away"))
        })
        .await;
    assert!(status.spool_restored && !rig.readiness.is_ready());
    // That pass-state was put back, too, does.
    let _stream = rig.peer.ready(1).await;
    let status = rig.wait("the stream", |status| status.connected).await;
    assert_eq!((status.spool_restored, status.blocked), (false, None));
    assert!(rig.readiness.is_ready());
    rig.stop().await;
}

/// A ready that says which delivery is the last committed one.
fn ready_at(committed: u64, delivery_id: &str) -> Ours {
    Ours::Ready(v1::IngestReady {
        committed_delivery_id: delivery_id.to_owned(),
        ..ready(committed)
    })
}

fn id_text(number: u8) -> String {
    DeliveryId::from_bytes([number; 16]).to_string()
}

#[tokio::test]
async fn a_spool_that_has_another_delivery_where_pass_state_stands_is_not_settled_nor_forwarded() {
    let mut rig = Rig::new().await;
    // Deliveries 0 to 4 are sequences 1 to 5.
    rig.append(5).await;
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream.send(ready_at(3, &id_text(77))).await;
    let status = rig
        .wait("the alarm", |status| status.blocked.is_some())
        .await;
    let text = status.blocked.unwrap();
    assert!(
        text.contains(&format!("recorded {} as sequence 3", id_text(77)))
            && text.contains(&format!("has {} there", id_text(2)))
            && text.contains("webhook-gateway spool import"),
        "{text}"
    );
    assert!(status.spool_restored && !status.connected);
    assert!(!rig.readiness.is_ready());
    assert!(stream.ended().await);
    assert_eq!(rig.spool.status().settled, Sequence(0), "all of it is kept");
    rig.stop().await;
}

#[tokio::test]
async fn a_spool_that_has_the_same_delivery_goes_on_after_it() {
    let mut rig = Rig::new().await;
    rig.append(5).await;
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream.send(ready_at(3, &id_text(2))).await;
    let (sequences, number) = stream.sequences(2).await;
    assert_eq!(sequences, [4, 5]);
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(5).await;
    // The end of the spool, too.
    drop(stream);
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream.send(ready_at(5, &id_text(4))).await;
    rig.append(1).await;
    assert_eq!(stream.sequences(1).await.0, [6]);
    assert!(!rig.status.borrow().spool_restored);
    rig.stop().await;
}

#[tokio::test]
async fn what_cannot_be_compared_holds_up_nothing() {
    let mut rig = Rig::new().await;
    rig.append(1).await;
    let unreadable = Bytes::from_static(b"\x09from another release");
    rig.spool
        .append(RecordId([0; 16]), unreadable)
        .await
        .unwrap();
    rig.append(1).await;
    let later = "an id of a later release".to_owned();
    for (committed, told) in [(0, id_text(77)), (2, id_text(77)), (2, later)] {
        let mut stream = rig.peer.stream().await;
        stream.hello().await;
        stream.send(ready_at(committed, &told)).await;
        let first = stream.sequences(1).await.0[0];
        assert_eq!(first, committed + 1);
    }
    rig.stop().await;
}

/// Records 3 to 5 were moved out of it.
#[tokio::test]
async fn a_committed_record_that_is_no_longer_there_is_not_compared() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Arc::new(Holed(testing::open_spool(dir.path())));
    let mut rig = Rig::over(dir, spool, quick(), false).await;
    rig.append(7).await;
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream.send(ready_at(5, &id_text(77))).await;
    let (sequences, number) = stream.sequences(2).await;
    assert_eq!(sequences, [6, 7]);
    stream.commit(number, sequences, Outcome::Applied).await;
    rig.committed(7).await;
    rig.stop().await;
}

#[tokio::test]
async fn a_record_that_cannot_be_read_holds_up_what_follows_and_nothing_before_it() {
    let mut rig = Rig::new().await;
    rig.append(2).await;
    rig.spool
        .append(
            RecordId([0; 16]),
            Bytes::from_static(b"\x09from another release"),
        )
        .await
        .unwrap();
    rig.append(1).await;
    let mut stream = rig.peer.ready(0).await;
    let (sequences, number) = stream.sequences(2).await;
    assert_eq!(sequences, [1, 2]);
    assert!(stream.silent_for(A_WHILE).await);
    assert!(rig.readiness.is_ready(), "what was sent comes first");
    stream.commit(number, sequences, Outcome::Applied).await;
    let status = rig
        .wait("the alarm", |status| status.blocked.is_some())
        .await;
    assert!(status.blocked.unwrap().contains("record 3 of the spool"));
    assert_eq!(rig.spool.status().settled, Sequence(2));
    assert!(!rig.readiness.is_ready());
    // An open stream does not mean that the record can be read now.
    let mut stream = rig.peer.ready(2).await;
    assert!(stream.ended().await);
    assert!(!rig.readiness.is_ready());
    rig.stop().await;
}

#[tokio::test]
async fn deliveries_that_can_no_longer_be_given_again_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let options = testing::spool_options(dir.path());
    let spool: Arc<dyn Spool> = Arc::new(EmbeddedSpool::open(options).unwrap());
    let mut rig = Rig::over(dir, spool, quick(), false).await;
    let mut stream = rig.peer.ready(0).await;
    let mut last = 0;
    while rig.spool.status().oldest_kept <= Sequence(1) {
        let body = vec![b'x'; BODY_BYTES_MAX];
        last = rig
            .spool
            .append(
                RecordId([0; 16]),
                record::encode(&delivery_to_wire(&delivery(1, &body))),
            )
            .await
            .unwrap()
            .0;
        let batch = stream.batch().await;
        stream
            .commit(batch.batch_number, [last], Outcome::Applied)
            .await;
        rig.committed(last).await;
        assert!(last < 10_000, "nothing is ever dropped");
    }
    let oldest = rig.spool.status().oldest_kept.0;
    // The database was put back to its beginning.
    drop(stream);
    let mut stream = rig.peer.stream().await;
    let hello = stream.hello().await;
    assert_eq!(hello.settled_sequence, last);
    assert!(hello.oldest_sequence >= oldest);
    stream.send_ready(0).await;
    let status = rig
        .wait("the alarm", |status| status.missing.is_some())
        .await;
    assert_eq!(status.missing, Some(1..=hello.oldest_sequence - 1));
    assert_eq!(
        stream.batch().await.deliveries[0].sequence,
        hello.oldest_sequence,
        "the rest is sent"
    );
    rig.stop.cancel();
    rig.running.abort();
}
