use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use super::*;

/// Longest wait for something that should happen at once or at the next look.
const PATIENCE: StdDuration = StdDuration::from_secs(20);

/// Takes any file that holds a number.
struct Number {
    file: PathBuf,
    applied: Arc<Mutex<Vec<u32>>>,
}

impl Reload for Number {
    fn files(&self) -> Vec<PathBuf> {
        vec![self.file.clone()]
    }

    fn try_apply(&mut self) -> Result<(), Refusal> {
        let number = fs::read_to_string(&self.file)?.trim().parse()?;
        if number == 13 {
            panic!("unlucky");
        }
        self.applied.lock().unwrap().push(number);
        Ok(())
    }
}

struct Bench {
    applied: Arc<Mutex<Vec<u32>>>,
    status: Arc<ReloadStatus>,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<()>,
}

impl Bench {
    fn start(file: &Path, interval: StdDuration) -> Self {
        let applied = Arc::new(Mutex::new(Vec::new()));
        let mut reloads = Reloads::new(&ReloadConfig::default());
        reloads.interval = interval;
        reloads.register(
            "number",
            Number {
                file: file.to_owned(),
                applied: Arc::clone(&applied),
            },
        );
        let shutdown = Shutdown::new();
        Self {
            applied,
            status: reloads.status(),
            task: tokio::spawn(reloads.run(shutdown.clone())),
            shutdown,
        }
    }

    /// Waits until exactly these were applied; equal neighbours count once.
    async fn applied(&self, wanted: &[u32]) {
        let begun = Instant::now();
        loop {
            let mut now = self.applied.lock().unwrap().clone();
            now.dedup();
            if now == wanted {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "{now:?} instead of {wanted:?}");
            sleep(StdDuration::from_millis(5)).await;
        }
    }

    async fn refused(&self, count: u64) {
        let begun = Instant::now();
        while self.status.refused() < count || !self.status.failed_now() {
            assert!(begun.elapsed() < PATIENCE, "{:?}", self.status);
            sleep(StdDuration::from_millis(5)).await;
        }
    }
}

const OFTEN: StdDuration = StdDuration::from_millis(20);
const NEVER: StdDuration = StdDuration::from_secs(3600);

#[tokio::test]
async fn a_changed_file_is_taken_in_and_the_end_ends_the_task() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("number");
    fs::write(&file, "1").unwrap();
    let bench = Bench::start(&file, OFTEN);
    bench.applied(&[1]).await;
    assert_eq!(bench.status.ok(), 0, "the start is no change");
    fs::write(&file, "2").unwrap();
    bench.applied(&[1, 2]).await;
    assert_eq!(bench.status.ok(), 1);
    assert!(!bench.status.failed_now());
    bench.shutdown.advance(crate::shutdown::Phase::Stopping);
    tokio::time::timeout(PATIENCE, bench.task)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test]
async fn a_symlink_that_is_swapped_for_a_directory_of_the_same_names_is_a_change() {
    // The layout of a volume of Kubernetes: number -> ..data/number, ..data -> ..1
    let dir = tempfile::tempdir().unwrap();
    for version in ["1", "2"] {
        let of = dir.path().join(format!("..{version}"));
        fs::create_dir(&of).unwrap();
        fs::write(of.join("number"), version).unwrap();
    }
    symlink("..1", dir.path().join("..data")).unwrap();
    symlink("..data/number", dir.path().join("number")).unwrap();
    let bench = Bench::start(&dir.path().join("number"), OFTEN);
    bench.applied(&[1]).await;
    symlink("..2", dir.path().join("..data_tmp")).unwrap();
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
    bench.applied(&[1, 2]).await;
}

#[tokio::test]
async fn a_broken_state_is_refused_once_and_mended_by_the_next_change() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("number");
    fs::write(&file, "1").unwrap();
    let bench = Bench::start(&file, OFTEN);
    bench.applied(&[1]).await;
    fs::write(&file, "no number").unwrap();
    bench.refused(1).await;
    // Tried again at every look, and still one refusal.
    sleep(OFTEN * 10).await;
    assert_eq!(bench.status.refused(), 1);
    fs::remove_file(&file).unwrap();
    bench.refused(2).await;
    fs::write(&file, "13").unwrap();
    bench.refused(3).await;
    fs::write(&file, "2").unwrap();
    bench.applied(&[1, 2]).await;
    assert!(!bench.status.failed_now());
    assert_eq!((bench.status.ok(), bench.status.refused()), (1, 3));
}

/// Another half may be on its way.
#[tokio::test]
async fn what_changes_once_the_files_have_settled_waits_for_the_next_look() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("number");
    fs::write(&file, "1").unwrap();
    let applied: Arc<Mutex<Vec<u32>>> = Arc::default();
    let mut reloads = Reloads::new(&ReloadConfig::default());
    let number = Number {
        file: file.clone(),
        applied: Arc::clone(&applied),
    };
    reloads.register("number", number);
    let reloads = reloads.look(Occasion::Start, None);
    let (reloads, settled) = reloads.settled().await;
    fs::write(&file, "2").unwrap();
    let reloads = reloads.look(Occasion::Interval, Some(settled));
    assert_eq!(*applied.lock().unwrap(), [1]);
    let (reloads, settled) = reloads.settled().await;
    reloads.look(Occasion::Interval, Some(settled));
    assert_eq!(*applied.lock().unwrap(), [1, 2]);
}

#[tokio::test]
async fn a_hangup_looks_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("number");
    fs::write(&file, "1").unwrap();
    let bench = Bench::start(&file, NEVER);
    bench.applied(&[1]).await;
    fs::write(&file, "2").unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::HUP).unwrap();
    bench.applied(&[1, 2]).await;
}

#[test]
fn the_interval_has_a_floor_and_a_ceiling() {
    for (interval, fits) in [
        (Duration::from_secs(1), true),
        (Duration::from_mins(10), true),
        (Duration::from_millis(999), false),
        (Duration::from_mins(11), false),
    ] {
        let mut faults = Faults::default();
        ReloadConfig { interval }.validate(&mut faults);
        assert_eq!(faults.is_empty(), fits, "{interval}");
    }
}
