//! Child processes: started, measured by /proc, and ended by id.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

/// A child that is killed when it is dropped.
pub(crate) struct Server {
    child: Child,
    log: std::path::PathBuf,
}

impl Server {
    /// Starts a command, its output going to a file.
    pub(crate) fn start(mut command: Command, path: &std::path::Path) -> Result<Self> {
        let log = std::fs::File::create(path)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self {
            child,
            log: path.to_path_buf(),
        })
    }

    /// What the process has printed.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// User and system time that the process has used so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        Ok(Times::of(self.child.id())?.own)
    }
}

/// What /proc says of a process.
struct Times {
    parent: u32,
    /// User and system time.
    own: Duration,
    /// That of its children which have ended and been waited for.
    of_ended_children: Duration,
}

impl Times {
    fn of(pid: u32) -> Result<Self> {
        let stat = std::fs::read(format!("/proc/{pid}/stat"))?;
        let stat = String::from_utf8_lossy(&stat);
        let after_name = stat.rsplit_once(')').context("no name in /proc stat")?.1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        // Linux reports these in units of 1/100 s on every platform that Rust supports.
        let time = |first: usize| -> Result<Duration> {
            let ticks: u64 = fields[first].parse::<u64>()? + fields[first + 1].parse::<u64>()?;
            Ok(Duration::from_millis(ticks * 10))
        };
        Ok(Self {
            parent: fields[1].parse()?,
            own: time(11)?,
            of_ended_children: time(13)?,
        })
    }
}

/// User and system time of this process.
pub(crate) fn own_cpu() -> Result<Duration> {
    Ok(Times::of(std::process::id())?.own)
}

/// User and system time of a process and of all its children, also those that have ended.
pub(crate) fn family_cpu(pid: u32) -> Result<Duration> {
    let head = Times::of(pid)?;
    let children = processes()?
        .filter_map(|child| Times::of(child).ok())
        .filter(|times| times.parent == pid);
    Ok(
        children.fold(head.own + head.of_ended_children, |sum, times| {
            sum + times.own + times.of_ended_children
        }),
    )
}

/// Our child whose command line has this text in it.
pub(crate) fn child_with(text: &str) -> Result<u32> {
    let own = std::process::id();
    processes()?
        .find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(text)
                && Times::of(*pid).is_ok_and(|times| times.parent == own)
        })
        .with_context(|| format!("no child process has {text} in its command line"))
}

/// The ids of all processes.
fn processes() -> Result<impl Iterator<Item = u32>> {
    Ok(std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok()))
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended by itself; both calls then fail, which is fine.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}
