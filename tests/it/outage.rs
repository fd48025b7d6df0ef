//! The gateway without pass-state, and pass-state with an older database.

use std::fs;
use std::path::Path;
use std::time::Duration;

use pass_proto::status::reason_of;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::{self, ErrorReason};
use system_tests::callback::traffic;
use system_tests::dice::Dice;
use system_tests::stand::{Options, Stand};
use test_kit::wait_for;

use crate::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_answers_200_while_pass_state_is_away_and_everything_arrives_later() {
    let mut stand = Stand::new(&programs(), &Options::default()).unwrap();
    stand.start_gateway().await.unwrap();
    let mut dice = Dice::new(11);
    stand
        .load(traffic(&mut dice, "away", 25), 4, Duration::from_secs(30))
        .await
        .unwrap();
    let attempts = stand.log.attempts();
    assert_eq!(
        stand.log.stored_count(),
        attempts.len(),
        "every first attempt is answered 200"
    );

    stand.start_state().await.unwrap();
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();

    // And once more from a stream that was open.
    stand.take_state().end().await.unwrap();
    stand
        .load(traffic(&mut dice, "again", 25), 4, Duration::from_secs(30))
        .await
        .unwrap();
    assert_eq!(
        stand.log.stored_count(),
        stand.log.attempts().len(),
        "every first attempt is answered 200"
    );
    stand.start_state().await.unwrap();
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    stand.finish().await.unwrap();
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_put_back_to_an_earlier_copy_is_refilled_and_old_cursors_are_refused() {
    let mut stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    let mut dice = Dice::new(12);
    stand
        .load(traffic(&mut dice, "kept", 20), 4, Duration::from_secs(30))
        .await
        .unwrap();
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    let cursor_kept = stand.reader().info().await.unwrap().head_cursor;

    stand.take_state().end().await.unwrap();
    let backup = stand.dir().join("backup");
    copy_directory(&stand.database_dir(), &backup);
    stand.start_state().await.unwrap();
    stand
        .load(traffic(&mut dice, "lost", 20), 4, Duration::from_secs(30))
        .await
        .unwrap();
    stand
        .verdict(Duration::from_secs(30))
        .await
        .unwrap()
        .assert_clean();
    let before = stand.reader().info().await.unwrap();

    stand.take_state().end().await.unwrap();
    fs::remove_dir_all(stand.database_dir()).unwrap();
    fs::rename(&backup, stand.database_dir()).unwrap();
    stand.start_state().await.unwrap();
    let epoch = wait_for(
        "another epoch",
        Duration::from_secs(20),
        async || match stand.note_epoch().await {
            Ok(epoch) if epoch != before.epoch => Ok(epoch),
            Ok(epoch) => Err(format!("still {epoch}")),
            Err(error) => Err(format!("{error:#}")),
        },
    )
    .await
    .unwrap();
    let verdict = stand.verdict(Duration::from_secs(30)).await.unwrap();
    verdict.assert_clean();
    let after = stand.reader().info().await.unwrap();
    assert_eq!(
        (after.head_position, after.epoch),
        (before.head_position, epoch)
    );

    for cursor in [cursor_kept, before.head_cursor] {
        let request = v1::SubscribeRequest {
            start: Some(Start::AfterCursor(cursor)),
            ..v1::SubscribeRequest::default()
        };
        let refused = match stand.reader().subscriptions.subscribe(request).await {
            Err(status) => status,
            Ok(frames) => frames.into_inner().message().await.unwrap_err(),
        };
        assert_eq!(
            reason_of(&refused),
            Some(ErrorReason::CursorEpochMismatch),
            "{refused:?}"
        );
    }
    stand
        .finish_with_errors(&["the database went back in time"])
        .await
        .unwrap();
}
