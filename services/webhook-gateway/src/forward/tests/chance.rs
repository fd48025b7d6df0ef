//! Pass-state decides by chance.

use std::hash::{BuildHasher as _, RandomState};

use super::*;

/// Whatever pass-state does between hello and the end, each stream goes on without a gap after what it said
/// is committed, and in the end everything is. The peer's choices come from a seed that a failure prints.
#[tokio::test]
async fn whatever_the_peer_does_nothing_is_left_out() {
    let seed = RandomState::new().hash_one(0_u8) | 1;
    println!("seed {seed}");
    let mut state = seed;
    let mut below = move |bound: u64| {
        // Xorshift: any spread will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % bound
    };
    const COUNT: u64 = 60;
    let mut rig = Rig::new().await;
    let (mut appended, mut committed) = (0, 0);
    while committed < COUNT {
        let mut stream = rig.peer.stream().await;
        let hello = stream.hello().await;
        assert!(
            hello.settled_sequence <= committed,
            "more is settled than was committed"
        );
        // Sometimes the database is put back, within what the spool keeps.
        if below(8) == 0 {
            committed -= below(5).min(committed);
        }
        let limits = v1::IngestReady {
            window_deliveries: 1 + below(8) as i32,
            batch_deliveries_max: 1 + below(4) as i32,
            ..ready(committed)
        };
        stream.send(Ours::Ready(limits)).await;
        let mut expected = committed + 1;
        for _ in 0..1 + below(12) {
            while appended < COUNT && (appended < expected || below(2) == 0) {
                rig.append(1).await;
                appended += 1;
            }
            if expected > COUNT {
                break;
            }
            let batch = stream.batch().await;
            for delivery in &batch.deliveries {
                assert_eq!(delivery.sequence, expected, "seed {seed}");
                expected += 1;
            }
            match below(4) {
                // Committed, and the acknowledgement is lost with the stream.
                0 => {
                    committed = expected - 1;
                    break;
                }
                // Neither.
                1 => break,
                _ => {
                    stream
                        .commit(batch.batch_number, [expected - 1], Outcome::Applied)
                        .await;
                    committed = expected - 1;
                }
            }
        }
        match below(3) {
            0 => drop(stream),
            1 => stream.fail(Status::unavailable("away")).await,
            _ => stream.fail(Status::internal("bug")).await,
        }
    }
    let mut stream = rig.peer.stream().await;
    stream.hello().await;
    stream.send_ready(committed).await;
    rig.wait("the last stream", |status| status.connected).await;
    assert_eq!(rig.spool.status().settled, Sequence(COUNT), "seed {seed}");
    assert!(stream.silent_for(A_WHILE).await);
    assert_eq!(rig.status.borrow().missing, None);
    rig.stop().await;
}
