//! Sources that change while the stream is open.

use service_kit::config::Origin;

use super::*;
use crate::policy::Policy;

/// Puts a policy of some of the sources in force.
fn configure(rig: &Rig, keep: impl Fn(&str) -> bool) {
    let mut sources = testing::source_configs();
    sources.retain(|source| keep(&source.name));
    let (http, ack) = (testing::http(), testing::ack());
    let policy = Policy::build(&sources, &ack, &http, &[], &Origin::Default, None);
    rig.live.replace(policy.unwrap()).unwrap();
}

#[tokio::test]
async fn pass_state_is_told_of_other_sources_by_a_new_stream_once_all_in_flight_is_acknowledged() {
    let mut rig = Rig::new().await;
    rig.append(2).await;
    let mut stream = rig.peer.ready(0).await;
    let (sequences, number) = stream.sequences(2).await;
    configure(&rig, |name| name != "plain");
    assert!(
        rig.peer.nobody_within(A_WHILE).await,
        "the stream ended with deliveries in flight"
    );
    stream.commit(number, sequences, Outcome::Applied).await;
    let mut stream = rig.peer.stream().await;
    assert_eq!(
        stream.hello().await.sources,
        ["strict", "kit", "url", "applied"]
    );
    stream.send_ready(2).await;
    rig.append(1).await;
    assert_eq!(stream.batch().await.deliveries[0].sequence, 3);
    assert!(rig.status.borrow().blocked.is_none());
    rig.stop().await;
}

#[tokio::test]
async fn a_stream_stays_when_the_sources_are_the_same_as_before() {
    let mut rig = Rig::new().await;
    let mut stream = rig.peer.ready(0).await;
    rig.wait("a stream", |status| status.connected).await;
    configure(&rig, |_| true);
    assert!(rig.peer.nobody_within(A_WHILE).await);
    rig.append(1).await;
    assert_eq!(stream.batch().await.deliveries[0].sequence, 1);
    rig.stop().await;
}
