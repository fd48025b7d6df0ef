//! Sources and secrets change while the services run and callbacks come in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use system_tests::callback::{Callback, standard};
use system_tests::client::{Caller, ClientLog, Outcome};
use system_tests::sources::STANDARD_KEY;
use system_tests::stand::{Options, Stand};
use test_kit::wait_for;

use crate::programs;

/// The key that comes after [`STANDARD_KEY`].
const NEXT_KEY: &str = "marker-key-standard-next-51c7ab";
/// How many send at once.
const SENDERS: usize = 3;
/// Longest wait for a change to be in force.
const LIMIT: Duration = Duration::from_secs(20);

/// A callback of the source `standard` with any key.
fn with_key(key: &str, at: i64) -> Arc<Callback> {
    let callback = standard("FETCHED", "rotated", at, None);
    Arc::new(Callback {
        headers: vec![
            ("content-type".to_owned(), "application/json".to_owned()),
            ("authorization".to_owned(), key.to_owned()),
        ],
        ..Callback::clone(&callback)
    })
}

/// What the source's secrets are in the configuration.
fn secrets(keys: &[&str]) -> String {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| format!("{{ value = \"{key}\" }}"))
        .collect();
    format!("secrets = [{}]", keys.join(", "))
}

/// Changes the file, says so, and waits until a callback with `key` gets `status`.
async fn change(stand: &Stand, from: &str, to: &str, key: &str, status: u16) {
    stand.edit_gateway_config(from, to).unwrap();
    stand.gateway().hang_up().unwrap();
    answered(stand, key, status).await;
}

async fn answered(stand: &Stand, key: &str, status: u16) {
    // Undecodable, so that no event of it is missing in what the senders know.
    let probe = Callback {
        body: bytes::Bytes::from_static(b"probe"),
        ..Callback::clone(&with_key(key, 0))
    };
    let probe = Arc::new(probe);
    let what = format!("an answer of {status}");
    wait_for(&what, LIMIT, async || {
        let outcome = Caller::new(stand.http()).deliver(&probe, &stand.log).await;
        let told = match &outcome {
            Outcome::Stored(_) => 200,
            Outcome::Refused(why) if why.starts_with("401 ") => 401,
            Outcome::Refused(_) | Outcome::Indeterminate(_) => 500,
        };
        if told == status {
            Ok(())
        } else {
            Err(format!("{outcome:?}"))
        }
    })
    .await
    .unwrap();
}

/// Sends one callback after the other, each with a key that is right at that time: the old one before `next` is set,
/// the next one after, both in turn while it says so.
struct Rotating {
    phase: AtomicUsize,
    stop: AtomicBool,
    /// How many were answered 200 in each phase, by sender.
    stored: [[AtomicUsize; SENDERS]; 3],
}

async fn send(
    rotating: Arc<Rotating>,
    address: std::net::SocketAddr,
    log: Arc<ClientLog>,
    lane: usize,
) {
    let mut caller = Caller::new(address);
    for number in 0.. {
        if rotating.stop.load(Ordering::SeqCst) {
            return;
        }
        let phase = rotating.phase.load(Ordering::SeqCst);
        let key = match phase {
            0 => STANDARD_KEY,
            1 if number % 2 == 0 => STANDARD_KEY,
            _ => NEXT_KEY,
        };
        let outcome = caller
            .deliver(
                &with_key(key, i64::try_from(lane).unwrap() * 1_000_000 + number),
                &log,
            )
            .await;
        assert!(
            matches!(outcome, Outcome::Stored(_)),
            "phase {phase}: {outcome:?}"
        );
        rotating.stored[phase][lane].fetch_add(1, Ordering::SeqCst);
    }
}

impl Rotating {
    /// Waits until every sender got so many more answers in a phase.
    async fn more(&self, phase: usize, count: usize) {
        let seen = || {
            self.stored[phase]
                .each_ref()
                .map(|lane| lane.load(Ordering::SeqCst))
        };
        let before = seen();
        wait_for("callbacks under load", LIMIT, async || {
            let now = seen();
            if now
                .iter()
                .zip(&before)
                .all(|(now, before)| now - before >= count)
            {
                Ok(())
            } else {
                Err(format!("{before:?} to {now:?}"))
            }
        })
        .await
        .unwrap();
    }
}

/// Old, both, new: as the documentation says a secret is rotated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_rotated_under_load_without_one_wrong_401() {
    let options = Options {
        gateway_tables: "[reload]\ninterval = \"10m\"\n".to_owned(),
        ..Options::default()
    };
    let stand = Stand::started(&programs(), &options).await.unwrap();
    let rotating = Arc::new(Rotating {
        phase: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        stored: Default::default(),
    });
    let senders: Vec<_> = (0..SENDERS)
        .map(|lane| {
            let (rotating, log) = (Arc::clone(&rotating), Arc::clone(&stand.log));
            tokio::spawn(send(rotating, stand.http(), log, lane))
        })
        .collect();
    rotating.more(0, 20).await;

    let only_old = format!("secrets = [{{ id = \"a\", value = \"{STANDARD_KEY}\" }}]");
    let both = secrets(&[STANDARD_KEY, NEXT_KEY]);
    change(&stand, &only_old, &both, NEXT_KEY, 200).await;
    rotating.phase.store(1, Ordering::SeqCst);
    rotating.more(1, 20).await;
    rotating.phase.store(2, Ordering::SeqCst);
    // From here on nobody sends the old one any more.
    rotating.more(2, 1).await;
    change(&stand, &both, &secrets(&[NEXT_KEY]), STANDARD_KEY, 401).await;
    rotating.more(2, 20).await;

    // What can't be used changes nothing, and all of its faults are told at once.
    stand
        .edit_gateway_config("interval = \"10m\"", "interval = \"1ms\"\nwat = 1")
        .unwrap();
    stand.gateway().hang_up().unwrap();
    wait_for("the refusal", LIMIT, async || {
        let logs = stand.logs().map_err(|error| error.to_string())?;
        let line = logs
            .lines()
            .find(|line| line.contains("a new state was refused"));
        match line {
            Some(line) if line.contains("reload.interval") && line.contains("wat") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .unwrap();
    rotating.more(2, 20).await;
    // What needs a restart is named, and the rest of the change is in force.
    stand
        .edit_gateway_config("interval = \"1ms\"\nwat = 1", "interval = \"9m\"")
        .unwrap();
    let next = secrets(&[NEXT_KEY]);
    change(
        &stand,
        &next,
        &secrets(&[NEXT_KEY, STANDARD_KEY]),
        STANDARD_KEY,
        200,
    )
    .await;
    // It is said after the change is in force.
    let logs = wait_for("the warning", LIMIT, async || {
        let logs = stand.logs().map_err(|error| error.to_string())?;
        let warned = logs
            .lines()
            .any(|line| line.contains("take effect only when") && line.contains("reload"));
        if warned { Ok(logs) } else { Err(logs) }
    })
    .await
    .unwrap();
    for key in [NEXT_KEY, STANDARD_KEY] {
        assert!(!logs.contains(key), "a key is in the logs");
    }

    rotating.stop.store(true, Ordering::SeqCst);
    for sender in senders {
        sender.await.unwrap();
    }
    let verdict = stand.verdict(Duration::from_secs(30)).await.unwrap();
    verdict.assert_clean();
    stand
        .finish_with_errors(&["a new state was refused"])
        .await
        .unwrap();
}

/// As Kubernetes replaces a mounted secret: a symbolic link to a directory is swapped for another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_file_behind_a_swapped_link_is_taken_in_by_itself() {
    let options = Options {
        gateway_tables: "[reload]\ninterval = \"1s\"\n".to_owned(),
        ..Options::default()
    };
    let mut stand = Stand::new(&programs(), &options).unwrap();
    let mount = stand.dir().join("mount");
    for (name, key) in [("old", STANDARD_KEY), ("next", NEXT_KEY)] {
        std::fs::create_dir_all(mount.join(name)).unwrap();
        std::fs::write(mount.join(name).join("key"), format!("{key}\n")).unwrap();
    }
    std::os::unix::fs::symlink("old", mount.join("..data")).unwrap();
    std::os::unix::fs::symlink("..data/key", mount.join("key")).unwrap();
    let file = mount.join("key");
    stand
        .edit_gateway_config(
            &format!("secrets = [{{ id = \"a\", value = \"{STANDARD_KEY}\" }}]"),
            &format!("secrets = [{{ file = {:?} }}]", file.to_str().unwrap()),
        )
        .unwrap();
    stand.start_state().await.unwrap();
    stand.start_gateway().await.unwrap();
    answered(&stand, STANDARD_KEY, 200).await;
    std::os::unix::fs::symlink("next", mount.join("..data_tmp")).unwrap();
    std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    answered(&stand, NEXT_KEY, 200).await;
    answered(&stand, STANDARD_KEY, 401).await;
    stand.drained(Duration::from_secs(30)).await.unwrap();
    stand.finish().await.unwrap();
}
