//! A service as a child process: started, waited for, killed or asked to end, by its process id and nothing
//! else.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use test_kit::wait_for;
use tokio::process::{Child, Command};

use crate::client::Caller;
use bytes::Bytes;

/// Longest wait for a service to be ready. A debug build on a busy machine migrates a database in it.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for a service to end after SIGTERM: its own drain times and a margin.
const END_LIMIT: Duration = Duration::from_secs(30);

/// How to start a service.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// What it is called in errors and in the names of its log files.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its environment, on top of the test's own.
    pub environment: Vec<(String, String)>,
    /// Where its health is asked for.
    pub admin: SocketAddr,
    /// Where its log files go.
    pub logs: PathBuf,
    /// Runs it under strace, which writes beside the logs.
    pub strace: Option<Strace>,
}

/// A way to run a service under strace.
#[derive(Clone, Debug)]
pub struct Strace {
    /// The strace program.
    pub program: PathBuf,
    /// Its arguments; where to write and what to run are added.
    pub arguments: Vec<String>,
}

impl Strace {
    /// Has all calls written down that [`crate::syscalls`] looks at, with their data.
    pub fn watching(program: PathBuf) -> Self {
        let traced = format!("trace={}", crate::syscalls::TRACED);
        let arguments = ["-f", "-y", "-s", "400000", "-e", &traced];
        Self {
            program,
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }

    /// Has each thread's `nth` call of fdatasync fail with EIO without being made, as a disk does that is gone.
    pub fn failing_sync(program: PathBuf, nth: usize) -> Self {
        let injected = format!("inject=fdatasync:error=EIO:when={nth}");
        let arguments = ["-f", "-e", "trace=fdatasync", "-e", &injected];
        Self {
            program,
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }

    /// Kills the process when a thread of it is about to make its `nth` call of a kind.
    pub fn killing_at(program: PathBuf, call: &str, nth: usize) -> Self {
        let traced = format!("trace={call}");
        let injected = format!("inject={call}:signal=SIGKILL:when={nth}");
        let arguments = ["-f", "-e", &traced, "-e", &injected];
        Self {
            program,
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }

    /// Holds up every positioned write by so much, as a disk does that is nearly used up.
    pub fn slowing_writes(program: PathBuf, delay: Duration) -> Self {
        let injected = format!("inject=pwrite64:delay_enter={}", delay.as_micros());
        let arguments = ["-f", "-e", "trace=pwrite64", "-e", &injected];
        Self {
            program,
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }
}

/// A running service. Killed when dropped.
#[derive(Debug)]
pub struct Service {
    name: String,
    /// The service, or the strace above it.
    child: Child,
    /// The service's own process.
    pid: Pid,
    admin: SocketAddr,
    log: PathBuf,
    trace: Option<PathBuf>,
}

impl Service {
    /// Starts a service, without waiting for more than its process. `run` keeps the log files of several
    /// starts apart.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn start(recipe: &Recipe, run: usize) -> anyhow::Result<Self> {
        let log = recipe.logs.join(format!("{}-{run}.log", recipe.name));
        let file =
            File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let trace = recipe
            .strace
            .as_ref()
            .map(|_| recipe.logs.join(format!("{}-{run}.strace", recipe.name)));
        let mut command = match (&recipe.strace, &trace) {
            (Some(strace), Some(trace)) => {
                let mut command = Command::new(&strace.program);
                command
                    .args(&strace.arguments)
                    .arg("-o")
                    .arg(trace)
                    .arg(&recipe.program);
                command
            }
            _ => Command::new(&recipe.program),
        };
        let child = command
            .args(&recipe.arguments)
            .envs(recipe.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", recipe.program.display()))?;
        let own = child.id().context("it ended at once")?;
        let mut service = Self {
            name: recipe.name.clone(),
            child,
            pid: pid_of(own)?,
            admin: recipe.admin,
            log,
            trace,
        };
        if service.trace.is_some() {
            service.pid = wait_for(
                "strace to start its program",
                Duration::from_secs(10),
                async || only_child(own),
            )
            .await?;
        }
        Ok(service)
    }

    /// Waits until the service says that it is ready.
    ///
    /// # Errors
    /// If it ends, or is not ready after 30 s; its log's end is in the error.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let admin = self.admin;
        let what = format!("{} to be ready", self.name);
        let child = &mut self.child;
        let mut ended = None;
        let waited = wait_for(&what, READY_LIMIT, async || {
            if let Some(status) = child.try_wait().map_err(|error| error.to_string())? {
                ended = Some(status);
                return Ok(());
            }
            match get(admin, "/readyz").await {
                Ok((200, _)) => Ok(()),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await;
        match (waited, ended) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(status)) => {
                bail!("{} ended with {status}:\n{}", self.name, self.log_end())
            }
            (Err(error), _) => Err(error.context(self.log_end())),
        }
    }

    /// Kills the service with SIGKILL and waits for its end.
    ///
    /// # Errors
    /// If that fails; a service that has ended by itself is such a failure, too.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!(
                "{} had ended by itself with {status}:\n{}",
                self.name,
                self.log_end()
            );
        }
        kill_process(self.pid, Signal::KILL)?;
        self.child.wait().await?;
        Ok(())
    }

    /// Sends SIGTERM and waits for the end, which must be a success.
    ///
    /// # Errors
    /// If it does not end within 30 s, or not with 0.
    pub async fn end(self) -> anyhow::Result<()> {
        let log = self.log.clone();
        let name = self.name.clone();
        let status = self.end_with_status().await?;
        ensure!(
            status.success(),
            "{name} ended with {status}:\n{}",
            log_end(&log)
        );
        Ok(())
    }

    /// Waits until the service ends by itself; its status and the end of its log.
    ///
    /// # Errors
    /// If it does not end within 30 s.
    pub async fn ended(mut self) -> anyhow::Result<(ExitStatus, String)> {
        let status = tokio::time::timeout(END_LIMIT, self.child.wait())
            .await
            .with_context(|| {
                format!(
                    "{} does not end by itself within {END_LIMIT:?}:\n{}",
                    self.name,
                    self.log_end()
                )
            })?
            .context("cannot wait for the process")?;
        Ok((status, self.log_end()))
    }

    /// Waits until the service ends by itself, at most for `limit`, then kills it; true if it ended by itself.
    ///
    /// # Errors
    /// If it can't be waited for or killed.
    pub async fn ended_or_killed(mut self, limit: Duration) -> anyhow::Result<bool> {
        if let Ok(ended) = tokio::time::timeout(limit, self.child.wait()).await {
            ended?;
            return Ok(true);
        }
        // It may have ended in this very moment; that is no error.
        let _ = kill_process(self.pid, Signal::KILL);
        self.child.wait().await?;
        Ok(false)
    }

    /// Sends a signal and waits for nothing.
    ///
    /// # Errors
    /// If it can't be sent.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// Sends SIGTERM and waits for the end, whatever it is.
    ///
    /// # Errors
    /// If it does not end within 30 s.
    pub async fn end_with_status(mut self) -> anyhow::Result<ExitStatus> {
        kill_process(self.pid, Signal::TERM)?;
        tokio::time::timeout(END_LIMIT, self.child.wait())
            .await
            .with_context(|| {
                format!(
                    "{} does not end within {END_LIMIT:?} of SIGTERM:\n{}",
                    self.name,
                    self.log_end()
                )
            })?
            .context("cannot wait for the process")
    }

    /// Sends SIGHUP: look at changed files at once.
    ///
    /// # Errors
    /// If it has ended.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, Signal::HUP)?)
    }

    /// Asks the admin listener; status and body.
    ///
    /// # Errors
    /// If there is no answer.
    pub async fn admin(&self, path: &str) -> anyhow::Result<(u16, String)> {
        get(self.admin, path).await
    }

    /// The trace of system calls, for a service started with strace.
    pub fn trace(&self) -> Option<&Path> {
        self.trace.as_deref()
    }

    /// The end of the log, for errors.
    pub fn log_end(&self) -> String {
        log_end(&self.log)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Killing strace alone would leave the service running. An error means that it has ended.
        if let Ok(None) = self.child.try_wait() {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

fn pid_of(number: u32) -> anyhow::Result<Pid> {
    i32::try_from(number)
        .ok()
        .and_then(Pid::from_raw)
        .context("not a process id")
}

/// The child of a process, once it is the program that was meant and not still strace itself.
fn only_child(parent: u32) -> Result<Pid, String> {
    let children = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
        .map_err(|error| error.to_string())?;
    let child: u32 = children
        .trim()
        .parse()
        .map_err(|_| format!("children are {children:?}"))?;
    let program = |pid: u32| {
        std::fs::read_link(format!("/proc/{pid}/exe")).map_err(|error| error.to_string())
    };
    if program(child)? == program(parent)? {
        return Err("it is still strace".to_owned());
    }
    pid_of(child).map_err(|error| error.to_string())
}

fn log_end(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!(
        "last lines of {}:\n{}",
        log.display(),
        lines[lines.len().saturating_sub(20)..].join("\n")
    )
}

/// One GET.
async fn get(address: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let request = http::Request::builder().method("GET").uri(path);
    match Caller::new(address).send(request, Bytes::new()).await {
        Ok(answer) => Ok((
            answer.status.as_u16(),
            String::from_utf8_lossy(&answer.body).into_owned(),
        )),
        Err(why) => bail!("{path} of {address}: {why:?}"),
    }
}
