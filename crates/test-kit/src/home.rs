//! A directory for a server of a test, that goes with the server whatever happens to the test.

use std::io::{PipeWriter, Write as _, pipe};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context as _;

/// What the watchdog does: it reads pids until its input ends, ends the process it read last, and removes
/// the directory. `$1` is the signal, `$2` the directory. A server that had no chance to tidy up leaves a
/// piece of System V shared memory behind, whose id is in the seventh line of PostgreSQL's pid file.
const WATCHDOG: &str = r#"
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
    kill -s "$1" "$pid"
    looks=0
    while [ $looks -lt 100 ] && [ -n "$(tr -d '\0' </proc/$pid/cmdline)" ]; do
        sleep 0.05
        looks=$((looks + 1))
    done
    kill -s KILL "$pid"
fi
memory=$(sed -n 7p "$2/data/postmaster.pid")
if [ -n "$memory" ]; then ipcrm --shmem-id "${memory##* }"; fi
rm -rf -- "$2" || { sleep 0.5; rm -rf -- "$2"; }
"#;

/// A temporary directory and the server that lives in it. Both end when this value is dropped, and also when
/// the process that holds it is killed.
///
/// That is the work of a watchdog, a shell that waits for the end of a pipe from us. It has a process group of
/// its own, because the test runner kills the group of a test.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    watchdog: Child,
    pids: Option<PipeWriter>,
}

impl Home {
    /// Makes a directory whose name begins with `prefix`. Other users may enter it. `end_signal` is the name
    /// of what ends a server that is left behind.
    pub(crate) fn new(prefix: &str, end_signal: &str) -> anyhow::Result<Self> {
        let open = std::fs::Permissions::from_mode(0o755);
        let directory = tempfile::Builder::new()
            .prefix(prefix)
            .permissions(open)
            .tempdir()
            .context("a temporary directory cannot be made")?;
        let (reader, pids) = pipe()?;
        let watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog", end_signal])
            .arg(directory.path())
            .current_dir("/")
            .process_group(0)
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("sh cannot be started")?;
        Ok(Self {
            path: directory.keep(),
            watchdog,
            pids: Some(pids),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Names the process that has to end with us, in place of the one before; `None` once it has ended.
    pub(crate) fn guard(&mut self, pid: Option<u32>) -> anyhow::Result<()> {
        let line = pid.map_or_else(|| "\n".to_owned(), |pid| format!("{pid}\n"));
        self.pids
            .as_mut()
            .expect("the pipe is closed only by drop")
            .write_all(line.as_bytes())
            .context("the watchdog of a test server is gone")
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        drop(self.pids.take());
        // Its work is bounded, and the caller counts on the directory being gone.
        if let Err(error) = self.watchdog.wait() {
            eprintln!(
                "the watchdog of {} cannot be awaited: {error}",
                self.path.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    #[test]
    fn the_watchdog_ends_the_last_process_that_it_was_told_of_and_removes_the_files() {
        let mut home = Home::new("passline-home-", "TERM").unwrap();
        let sleeper = || {
            Command::new("sleep")
                .arg("60")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        };
        let (mut spared, mut ended) = (sleeper(), sleeper());
        home.guard(Some(spared.id())).unwrap();
        home.guard(None).unwrap();
        home.guard(Some(ended.id())).unwrap();
        let path = home.path().to_owned();
        std::fs::write(path.join("file"), "data").unwrap();

        drop(home);
        assert!(!path.exists());
        assert_eq!(
            ended.try_wait().unwrap().and_then(|status| status.signal()),
            Some(15)
        );
        assert_eq!(spared.try_wait().unwrap(), None);
        spared.kill().unwrap();
        spared.wait().unwrap();
    }
}
