//! Every storage call fails in turn; cancelled callers; slow disks.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::{Bench, append, assert_holds, files, lease_numbers, record, wait_for};
use crate::suite::fresh_id;
use crate::{
    AppendError, DiskOp, EmbeddedSpool, FaultHook, LeaseError, Sequence, Spool, SpoolHealth,
};

const ERRNOS: [Errno; 5] = [
    Errno::IO,
    Errno::NOSPC,
    Errno::DQUOT,
    Errno::ROFS,
    Errno::FBIG,
];

/// Fails matching calls while switched on, and counts what comes after the first failure.
#[derive(Default)]
struct Switch {
    on: AtomicBool,
    failed: AtomicU64,
    after: Mutex<BTreeMap<String, u64>>,
}

impl Switch {
    fn hook(
        self: &Arc<Self>,
        errno: Errno,
        hits: impl Fn(DiskOp, &Path) -> bool + Send + Sync + 'static,
    ) -> Arc<FaultHook> {
        let switch = self.clone();
        Arc::new(move |op, path: &Path| {
            let name = path
                .file_name()
                .map_or(String::new(), |name| name.to_string_lossy().into_owned());
            if switch.failed.load(Ordering::SeqCst) > 0 {
                *switch
                    .after
                    .lock()
                    .expect("lock")
                    .entry(format!("{op:?} {name}"))
                    .or_default() += 1;
            }
            if switch.on.load(Ordering::SeqCst) && hits(op, path) {
                switch.failed.fetch_add(1, Ordering::SeqCst);
                return Err(io::Error::from(errno));
            }
            Ok(())
        })
    }
}

fn is_live(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
}

#[tokio::test]
async fn any_error_on_a_live_segment_poisons_and_nothing_touches_it_again() {
    for errno in ERRNOS {
        for op in [DiskOp::Write, DiskOp::Sync] {
            let bench = Bench::new();
            let switch = Arc::new(Switch::default());
            let hook = switch.hook(errno, move |call, path| call == op && is_live(path));
            let spool = EmbeddedSpool::open(bench.options().with_fault_hook(hook)).expect("opens");
            let spool = Arc::new(spool);
            append(&spool, 1..=3).await;
            switch.on.store(true, Ordering::SeqCst);
            let mut waiting = tokio::task::JoinSet::new();
            for number in 0..10 {
                let spool = spool.clone();
                waiting.spawn(async move { spool.append(fresh_id(), record(number)).await });
            }
            while let Some(answer) = waiting.join_next().await {
                let answer = answer.expect("no panic");
                assert!(
                    matches!(answer, Err(AppendError::Poisoned(_))),
                    "{op:?} {errno:?}: {answer:?}"
                );
            }
            switch.on.store(false, Ordering::SeqCst);
            assert!(matches!(
                spool.append(fresh_id(), record(4)).await,
                Err(AppendError::Poisoned(_))
            ));
            assert!(matches!(spool.status().health, SpoolHealth::Poisoned(_)));
            assert_eq!(spool.status().last_durable, Sequence(3));
            // What is durable can still be drained; then the end is told.
            assert_eq!(lease_numbers(&spool, 3).await, [1, 2, 3]);
            assert!(matches!(
                spool.lease(1, 1).await,
                Err(LeaseError::Poisoned(_))
            ));
            spool.close().await;
            assert_eq!(switch.failed.load(Ordering::SeqCst), 1, "tried again");
            let after = switch.after.lock().expect("lock").clone();
            // The keeper may be just finishing the next segment; the failed one is the first.
            let touched = |call: &String| {
                call.ends_with("segment-000000000001.log") && !call.starts_with("Read")
            };
            assert!(!after.keys().any(touched), "{op:?} {errno:?}: {after:?}");
            let id = spool.id();
            drop(spool);
            // A failed sync may leave the group in the file: kept or not, but never half.
            let last = EmbeddedSpool::open(bench.options())
                .expect("opens")
                .status()
                .last_durable
                .0;
            assert!(last == 3 || op == DiskOp::Sync, "{last}");
            if last == 3 {
                assert_holds(bench.options(), id, 3).await;
            }
        }
    }
}

#[tokio::test]
async fn lack_of_room_for_a_new_segment_is_back_pressure_and_passes() {
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        for op in [
            DiskOp::Create,
            DiskOp::Reserve,
            DiskOp::Write,
            DiskOp::Sync,
            DiskOp::Rename,
            DiskOp::SyncDir,
        ] {
            let bench = Bench::with_segments(2048, 400);
            let switch = Arc::new(Switch::default());
            let hook = switch.hook(errno, move |call, path| {
                call == op && (!is_live(path) || op == DiskOp::Rename)
            });
            let spool = EmbeddedSpool::open(bench.options().with_fault_hook(hook)).expect("opens");
            append(&spool, 1..=1).await;
            switch.on.store(true, Ordering::SeqCst);
            let mut last = 1;
            let refused = loop {
                match spool.append(fresh_id(), record(last + 1)).await {
                    Ok(sequence) => last = sequence.0,
                    Err(error) => break error,
                }
            };
            assert_eq!(refused, AppendError::Full, "{op:?} {errno:?}");
            assert_eq!(spool.status().health, SpoolHealth::Full);
            assert_eq!(
                lease_numbers(&spool, last).await.len() as u64,
                last,
                "draining goes on"
            );
            switch.on.store(false, Ordering::SeqCst);
            let began = Instant::now();
            wait_for("room", || spool.status().health == SpoolHealth::Ok).await;
            assert!(
                began.elapsed() < Duration::from_secs(2),
                "resumed after {:?}",
                began.elapsed()
            );
            append(&spool, last + 1..=last + 40).await;
            let id = spool.id();
            spool.close().await;
            drop(spool);
            assert_eq!(
                files(&bench.dir(), ".tmp"),
                Vec::<std::path::PathBuf>::new()
            );
            assert_holds(bench.options(), id, last + 40).await;
        }
    }
}

#[tokio::test]
async fn other_errors_while_preparing_a_segment_poison() {
    for errno in [Errno::IO, Errno::ROFS, Errno::FBIG] {
        for op in [
            DiskOp::Create,
            DiskOp::Write,
            DiskOp::Sync,
            DiskOp::Rename,
            DiskOp::SyncDir,
        ] {
            let bench = Bench::with_segments(2048, 400);
            let switch = Arc::new(Switch::default());
            let hook = switch.hook(errno, move |call, path| {
                call == op && (!is_live(path) || op == DiskOp::Rename)
            });
            let spool = EmbeddedSpool::open(bench.options().with_fault_hook(hook)).expect("opens");
            append(&spool, 1..=1).await;
            switch.on.store(true, Ordering::SeqCst);
            let mut last = 1;
            let refused = loop {
                match spool.append(fresh_id(), record(last + 1)).await {
                    Ok(sequence) => last = sequence.0,
                    Err(error) => break error,
                }
            };
            assert!(
                matches!(refused, AppendError::Poisoned(_)),
                "{op:?} {errno:?}: {refused:?}"
            );
            let id = spool.id();
            spool.close().await;
            drop(spool);
            assert_holds(bench.options(), id, last).await;
        }
    }
}

/// From the n-th storage call on nothing succeeds any more, as if the process had been killed there, for every n;
/// also while opening again, so that recovery itself dies at each of its steps.
#[tokio::test]
async fn dying_at_any_storage_call_loses_nothing_that_was_answered() {
    let dying = |allowed: u64| -> (Arc<AtomicU64>, Arc<FaultHook>) {
        let left = Arc::new(AtomicU64::new(allowed));
        let counter = left.clone();
        let hook = move |_: DiskOp, _: &Path| {
            let took = counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
            took.map(drop).map_err(|_| io::Error::from(Errno::IO))
        };
        (left, Arc::new(hook))
    };
    let mut deaths_open = 0;
    let mut deaths_run = 0;
    for allowed in 0..140 {
        let bench = Bench::with_segments(1024, 400);
        let mut answered = 0;
        for life in 0..3 {
            let (_, hook) = dying(allowed);
            match EmbeddedSpool::open(bench.options().with_fault_hook(hook)) {
                Err(_) => deaths_open += 1,
                Ok(spool) => {
                    // A failed append may have been stored; its number is then in the file, so go on from there.
                    let mut last = spool.status().last_durable.0;
                    assert!(
                        last >= answered,
                        "life {life} with {allowed} calls lost records"
                    );
                    while last < answered + 8 {
                        match spool.append(fresh_id(), record(last + 1)).await {
                            Ok(sequence) => {
                                assert_eq!(sequence.0, last + 1);
                                last = sequence.0;
                            }
                            Err(_) => {
                                deaths_run += 1;
                                break;
                            }
                        }
                    }
                    answered = last;
                    let _ = spool.settle(Sequence(last / 2)).await;
                }
            }
        }
        let spool = EmbeddedSpool::open(bench.options())
            .unwrap_or_else(|error| panic!("{allowed} calls: {error}"));
        let last = spool.status().last_durable.0;
        assert!(
            last >= answered,
            "{allowed} calls: {answered} answered, {last} found"
        );
        spool.rewind(Sequence(0)).await.expect("rewind succeeds");
        if last > 0 {
            assert_eq!(
                lease_numbers(&spool, last).await,
                (1..=last).collect::<Vec<_>>()
            );
        }
        spool.close().await;
    }
    assert!(
        deaths_open > 20 && deaths_run > 20,
        "the test killed too little: {deaths_open} {deaths_run}"
    );
}

/// The planted defect does what it is for: the answer is there while the sync is not.
#[cfg(feature = "planted-bugs")]
#[tokio::test]
async fn the_planted_defect_answers_before_the_sync() {
    let bench = Bench::new();
    let switch = Arc::new(Switch::default());
    let hook = switch.hook(Errno::IO, |call, path| {
        call == DiskOp::Sync && is_live(path)
    });
    let mut options = bench.options().with_fault_hook(hook);
    options.planted_answer_before_sync = true;
    let spool = EmbeddedSpool::open(options).expect("opens");
    switch.on.store(true, Ordering::SeqCst);
    assert_eq!(
        spool.append(fresh_id(), record(1)).await,
        Ok(Sequence(1)),
        "answered although the sync fails"
    );
    wait_for("the failed sync", || {
        spool.status().health != SpoolHealth::Ok
    })
    .await;
    assert_eq!(spool.status().last_durable, Sequence(0));
    spool.close().await;
}

#[tokio::test]
async fn an_answer_never_comes_before_its_sync() {
    let bench = Bench::new();
    let gate = Arc::new(AtomicBool::new(false));
    let in_sync = Arc::new(AtomicBool::new(false));
    let hook: Arc<FaultHook> = Arc::new({
        let (gate, in_sync) = (gate.clone(), in_sync.clone());
        move |op, path: &Path| {
            while op == DiskOp::Sync && is_live(path) && gate.load(Ordering::SeqCst) {
                in_sync.store(true, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        }
    });
    let spool =
        Arc::new(EmbeddedSpool::open(bench.options().with_fault_hook(hook)).expect("opens"));
    append(&spool, 1..=1).await;
    gate.store(true, Ordering::SeqCst);
    let waiting = tokio::spawn({
        let spool = spool.clone();
        async move { spool.append(fresh_id(), record(2)).await }
    });
    wait_for("the sync", || in_sync.load(Ordering::SeqCst)).await;
    assert!(!waiting.is_finished());
    assert_eq!(spool.status().last_durable, Sequence(1));
    assert_eq!(
        lease_numbers(&spool, 1).await,
        [1],
        "only what is durable is leased"
    );
    gate.store(false, Ordering::SeqCst);
    assert_eq!(waiting.await.expect("no panic"), Ok(Sequence(2)));
    spool.close().await;
}

/// The disk hangs for 11 s. Health follows, waiters get their answer at 8 s, and everybody who queued shares one sync.
#[tokio::test]
async fn a_stuck_disk_shows_in_health_and_answers_waiters_in_time() {
    let bench = Bench::new();
    let hold = Arc::new(AtomicBool::new(false));
    let syncs = Arc::new(AtomicU64::new(0));
    let hook: Arc<FaultHook> = Arc::new({
        let (hold, syncs) = (hold.clone(), syncs.clone());
        move |op, path: &Path| {
            if op == DiskOp::Sync && is_live(path) {
                syncs.fetch_add(1, Ordering::SeqCst);
                if hold.swap(false, Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_secs(11));
                }
            }
            Ok(())
        }
    });
    let spool =
        Arc::new(EmbeddedSpool::open(bench.options().with_fault_hook(hook)).expect("opens"));
    append(&spool, 1..=1).await;
    hold.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let mut waiting = tokio::task::JoinSet::new();
    for number in 2..30 {
        let spool = spool.clone();
        waiting.spawn(async move { spool.append(fresh_id(), record(number)).await });
    }
    wait_for("slow", || spool.status().health == SpoolHealth::Slow).await;
    wait_for("stuck", || spool.status().health == SpoolHealth::Stuck).await;
    assert!(began.elapsed() > Duration::from_secs(5));
    while let Some(answer) = waiting.join_next().await {
        assert_eq!(answer.expect("no panic"), Err(AppendError::Stuck));
    }
    assert!(
        (8..11).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        spool.append(fresh_id(), record(99)).await,
        Err(AppendError::Stuck),
        "refused at once while it lasts"
    );
    wait_for("the disk", || spool.status().last_durable == Sequence(29)).await;
    assert!(
        syncs.load(Ordering::SeqCst) <= 3,
        "those who queued did not share a sync"
    );
    assert_eq!(spool.append(fresh_id(), record(30)).await, Ok(Sequence(30)));
    assert_eq!(spool.status().health, SpoolHealth::Ok);
    spool.close().await;
}

/// Unlink comes only after the mark that explains it is durable.
#[tokio::test]
async fn the_settled_mark_is_durable_before_a_segment_goes() {
    let bench = Bench::with_segments(1024, 400);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let hook: Arc<FaultHook> = Arc::new({
        let calls = calls.clone();
        move |op, path: &Path| {
            let name = path
                .file_name()
                .map_or(String::new(), |name| name.to_string_lossy().into_owned());
            calls.lock().expect("lock").push((op, name));
            Ok(())
        }
    });
    let spool = EmbeddedSpool::open(bench.options().with_fault_hook(hook)).expect("opens");
    append(&spool, 1..=30).await;
    lease_numbers(&spool, 30).await;
    bench.clock.advance(Duration::from_secs(48 * 3600));
    calls.lock().expect("lock").clear();
    spool.settle(Sequence(30)).await.expect("settle succeeds");
    wait_for("retention", || spool.status().oldest_kept > Sequence(20)).await;
    spool.close().await;
    let calls = calls.lock().expect("lock");
    let unlink = calls
        .iter()
        .position(|(op, name)| *op == DiskOp::Unlink && name.ends_with(".log"))
        .expect("unlink");
    let before: Vec<_> = calls[..unlink]
        .iter()
        .map(|(op, name)| (*op, name.as_str()))
        .collect();
    let mark = [
        (DiskOp::Write, "settled.tmp"),
        (DiskOp::Sync, "settled.tmp"),
        (DiskOp::Rename, "settled"),
        (DiskOp::SyncDir, "spool"),
    ];
    assert!(before.windows(4).any(|calls| calls == mark), "{before:?}");
}

/// A new segment and its directory entry are synced before its first record is written.
#[tokio::test]
async fn a_segment_is_complete_and_linked_before_its_first_record() {
    let bench = Bench::with_segments(1024, 400);
    let calls = Arc::new(Mutex::new(Vec::new()));
    let hook: Arc<FaultHook> = Arc::new({
        let calls = calls.clone();
        move |op, path: &Path| {
            let name = path
                .file_name()
                .map_or(String::new(), |name| name.to_string_lossy().into_owned());
            calls.lock().expect("lock").push((op, name));
            Ok(())
        }
    });
    let spool = EmbeddedSpool::open(bench.options().with_fault_hook(hook)).expect("opens");
    append(&spool, 1..=12).await;
    spool.close().await;
    let calls = calls.lock().expect("lock").clone();
    let place =
        |op: DiskOp, name: &str| calls.iter().position(|call| *call == (op, name.to_owned()));
    let mut checked = 0;
    for number in 1..20 {
        let name = format!("segment-{number:012}.log");
        let Some(first_record) = place(DiskOp::Write, &name) else {
            continue;
        };
        let created = place(DiskOp::Create, &format!("{name}.tmp")).expect("created");
        let synced = place(DiskOp::Sync, &format!("{name}.tmp")).expect("synced");
        let renamed = place(DiskOp::Rename, &name).expect("renamed");
        let linked = calls[renamed..]
            .iter()
            .position(|(op, _)| *op == DiskOp::SyncDir)
            .expect("linked")
            + renamed;
        assert!(
            created < synced && synced < renamed && renamed < linked && linked < first_record,
            "{calls:?}"
        );
        checked += 1;
    }
    assert!(checked >= 3, "too few segments: {checked}");
}
