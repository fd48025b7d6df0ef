//! The process of a server that a test started.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait_for;

const LOG_LINES_SHOWN: usize = 40;
/// How long a dropped server may take to end before it is killed.
const DROP_PATIENCE: Duration = Duration::from_secs(8);
const DROP_POLL: Duration = Duration::from_millis(2);

/// A child process with a log file. Dropping it ends it, and shows the log if the test is failing.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
    end_signal: Signal,
}

impl Process {
    /// Starts `command` with both outputs appended to the file `log`; `end_signal` is what ends it when it is
    /// dropped.
    pub(crate) fn start(
        command: &mut Command,
        log: PathBuf,
        end_signal: Signal,
    ) -> anyhow::Result<Self> {
        let output: File = OpenOptions::new().create(true).append(true).open(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{command:?} cannot be started"))?;
        Ok(Self {
            child,
            log,
            end_signal,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, unless the process has ended and been seen to.
    pub(crate) fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        if self.ended()?.is_none() {
            kill_process(Pid::from_child(&self.child), signal)
                .with_context(|| format!("process {} cannot be sent {signal:?}", self.pid()))?;
        }
        Ok(())
    }

    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for the end of the process.
    pub(crate) async fn wait_for_end(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let pid = self.pid();
        let ended = wait_for(
            &format!("the end of process {pid}"),
            limit,
            async || match self.ended() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("it runs".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            },
        )
        .await;
        ended.with_context(|| self.log_tail())
    }

    /// Waits until `probe` gives a value, but no longer than the process lives.
    pub(crate) async fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let outcome = wait_for(what, limit, async || match self.ended() {
            Ok(None) => probe().await.map(Ok),
            Ok(Some(status)) => Ok(Err(status)),
            Err(error) => Err(format!("{error:#}")),
        })
        .await
        .with_context(|| self.log_tail())?;
        match outcome {
            Ok(value) => Ok(value),
            Err(status) => bail!(
                "the server ended with {status} before {what}; {}",
                self.log_tail()
            ),
        }
    }

    /// Kills the process and its children at one stroke, and waits until none of them runs.
    pub(crate) async fn kill_with_children(&mut self, limit: Duration) -> anyhow::Result<()> {
        let pid = self.pid();
        // Stopped, it makes no more children while they are counted.
        self.signal(Signal::STOP)?;
        self.wait_until(
            "a stop before the kill",
            limit,
            async || match state_and_parent(pid) {
                Some(('T', _)) => Ok(()),
                other => Err(format!("its state and parent are {other:?}")),
            },
        )
        .await?;
        let children = children_of(pid)?;
        self.signal(Signal::KILL)?;
        for child in &children {
            let target = Pid::from_raw(child.cast_signed()).expect("no child has the pid 0");
            match kill_process(target, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).context(format!("child {child} of process {pid}")),
            }
        }
        self.wait_for_end(limit).await?;
        wait_for(
            "the end of a killed server's children",
            limit,
            async || match children.iter().find(|child| runs(**child)) {
                Some(child) => Err(format!("process {child} runs")),
                None => Ok(()),
            },
        )
        .await
    }

    /// The last lines of the log, under a heading.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        format!("the log {} ends:\n{shown}", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        let deadline = Instant::now() + DROP_PATIENCE;
        let mut asked = self.signal(self.end_signal).is_ok();
        while matches!(self.ended(), Ok(None)) {
            if asked && Instant::now() < deadline {
                std::thread::sleep(DROP_POLL);
                continue;
            }
            asked = false;
            if self.child.kill().and_then(|()| self.child.wait()).is_err() {
                return;
            }
        }
    }
}

/// Whether a process exists and is more than an entry that nobody has fetched the end of.
pub(crate) fn runs(pid: u32) -> bool {
    state_and_parent(pid).is_some_and(|(state, _)| state != 'Z' && state != 'X')
}

/// The one-letter state of a process and the pid of its parent.
fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    // The name in brackets before them may hold anything.
    let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
    Some((rest.next()?.chars().next()?, rest.next()?.parse().ok()?))
}

fn children_of(parent: u32) -> anyhow::Result<Vec<u32>> {
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        if state_and_parent(pid).is_some_and(|(_, its_parent)| its_parent == parent) {
            children.push(pid);
        }
    }
    Ok(children)
}
