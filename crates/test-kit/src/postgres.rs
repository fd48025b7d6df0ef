//! PostgreSQL servers of a test's own.
//!
//! Every cluster is a copy of one made beforehand ([`template`]), because `initdb` costs more than all the rest
//! of a start. Nothing is tuned for speed that a test could notice: commits reach the disk as in production.

mod template;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Signal, geteuid};
use tokio::io::AsyncWriteExt as _;

use crate::home::Home;
use crate::process::Process;
use crate::{PortLease, wait_for};

/// The role that owns everything; it needs no password on loopback.
const ROLE: &str = "passline";
const PROGRAMS_VARIABLE: &str = "PASSLINE_POSTGRES_BIN";
/// PostgreSQL refuses to run as root; Debian's package makes this user.
const SERVER_USER: &str = "postgres";

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const SQL_LIMIT: Duration = Duration::from_secs(60);
const BACKUP_LIMIT: Duration = Duration::from_secs(60);

/// What every server starts with. What a test asks for comes after it and wins.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("max_connections", "100"),
    ("shared_buffers", "32MB"),
    // A file of the data directory, so that a killed server leaves nothing in /dev/shm.
    ("dynamic_shared_memory_type", "mmap"),
    ("fsync", "on"),
    ("full_page_writes", "on"),
    ("synchronous_commit", "on"),
    ("wal_level", "replica"),
    // A standby that was away for a moment finds what it missed.
    ("wal_keep_size", "64MB"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_line_prefix", "%m [%p] %a "),
    ("lc_messages", "C"),
];

/// A PostgreSQL server with a cluster of its own, on a loopback port that stays the same over restarts.
///
/// Text is sorted as English does it, not by bytes: a query that counts on the order of bytes has to say so.
/// The role `passline` may do everything and needs no password. Dropping the value ends the server and removes
/// its files; so does the death of the process that holds it. A failing test shows the end of the server's log.
#[derive(Debug)]
pub struct TestPostgres {
    // Fields are dropped in this order: the server before its files.
    process: Option<Process>,
    home: Home,
    port: PortLease,
    settings: Vec<(String, String)>,
    databases: AtomicU32,
}

impl TestPostgres {
    /// Starts a server.
    ///
    /// # Errors
    /// If PostgreSQL is not installed, or the server does not answer within 60 s; the text holds its log.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(&[]).await
    }

    /// Starts a server with settings on top of the usual ones, as for `postgresql.conf`.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn start_with(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut server = Self::unstarted(settings)?;
        template::copy_to(&server.home, &server.data_dir()).await?;
        server.launch().await?;
        Ok(server)
    }

    fn unstarted(settings: Vec<(String, String)>) -> anyhow::Result<Self> {
        Ok(Self {
            process: None,
            home: Home::new("passline-postgres-", "QUIT")?,
            port: PortLease::take()?,
            settings,
            databases: AtomicU32::new(0),
        })
    }

    /// Where the server listens, or did.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The URL of a database of this server. `postgres` is always there.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{ROLE}@{}/{database}", self.address())
    }

    /// Makes an empty database that no one else uses, and gives its URL.
    ///
    /// # Errors
    /// If the server does not make it.
    pub async fn database(&self) -> anyhow::Result<String> {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql(&self.url("postgres"), &format!("CREATE DATABASE {name}"))
            .await?;
        Ok(self.url(&name))
    }

    /// Runs statements one after the other with psql, and gives their rows: a line each, columns divided by `|`.
    ///
    /// # Errors
    /// If a statement fails, which ends the run, or all of them take longer than 60 s. The text is psql's.
    pub async fn sql(&self, url: &str, text: &str) -> anyhow::Result<String> {
        let mut command = tokio::process::Command::new(program("psql")?);
        command
            .args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet"])
            .args(["--set=ON_ERROR_STOP=1", "--file=-", "--dbname", url])
            .env("PGCONNECT_TIMEOUT", "10")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let run = async {
            let mut child = command.spawn().context("psql cannot be started")?;
            let mut input = child.stdin.take().expect("its input was just made a pipe");
            // A psql that cannot connect reads nothing; what it says is the error then.
            let unread = input.write_all(text.as_bytes()).await.err();
            drop(input);
            let output = child.wait_with_output().await?;
            ensure!(
                output.status.success() && unread.is_none(),
                "psql: {}",
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
            Ok(String::from_utf8(output.stdout)?
                .trim_end_matches('\n')
                .to_owned())
        };
        tokio::time::timeout(SQL_LIMIT, run)
            .await
            .with_context(|| format!("psql did not end within {SQL_LIMIT:?}"))?
    }

    /// Kills the server as a loss of power would, all its processes at once. When this returns, none of them
    /// runs, so nothing can be committed any more. Does nothing if the server does not run.
    ///
    /// # Errors
    /// If a process of the server does not end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process {
            process.kill_with_children(STOP_LIMIT).await?;
            self.process = None;
            self.home.guard(None)?;
        }
        Ok(())
    }

    /// Stops the server in order, without waiting for its clients: open transactions are rolled back. Does
    /// nothing if the server does not run.
    ///
    /// # Errors
    /// If the server does not end within 60 s.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process {
            process.signal(Signal::INT)?;
            process.wait_for_end(STOP_LIMIT).await?;
            self.process = None;
            self.home.guard(None)?;
        }
        Ok(())
    }

    /// Starts the server again with the same port, data and settings, after stopping it if it runs.
    ///
    /// # Errors
    /// If the server does not stop, or does not answer within 60 s.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        self.launch().await
    }

    /// Makes a standby of this server, which streams from it and answers queries when this returns.
    ///
    /// Its settings are those of this server but for `synchronous_standby_names`, which it lacks. To that
    /// setting and in `pg_stat_replication` it is called `standby_PORT`, by its own port.
    ///
    /// # Errors
    /// If the copy cannot be made, or the standby does not stream within 60 s.
    pub async fn standby(&self) -> anyhow::Result<TestPostgres> {
        const SYNC: &str = "synchronous_standby_names";
        let settings = self
            .settings
            .iter()
            .filter(|(name, _)| name != SYNC)
            .cloned()
            .collect();
        let mut standby = Self::unstarted(settings)?;
        let name = format!("standby_{}", standby.address().port());
        standby
            .settings
            .push(("cluster_name".to_owned(), name.clone()));

        let data = standby.data_dir();
        template::make_data_dir(&data)?;
        let mut backup = server_command("pg_basebackup")?;
        backup
            .args([
                "--write-recovery-conf",
                "--checkpoint=fast",
                "--wal-method=stream",
                "--no-sync",
            ])
            .args(["--dbname", &self.url("postgres"), "--pgdata"])
            .arg(&data)
            .current_dir(standby.home.path());
        succeed(backup, BACKUP_LIMIT).await?;
        let changed_by_sql = data.join("postgresql.auto.conf");
        let kept: String = std::fs::read_to_string(&changed_by_sql)?
            .lines()
            .filter(|line| !line.starts_with(SYNC))
            .map(|line| format!("{line}\n"))
            .collect();
        std::fs::write(&changed_by_sql, kept)?;

        standby.launch().await?;
        let query =
            format!("SELECT state FROM pg_stat_replication WHERE application_name = '{name}'");
        wait_for("a standby that streams", START_LIMIT, async || {
            match self.sql(&self.url("postgres"), &query).await {
                Ok(state) if state == "streaming" => Ok(()),
                Ok(state) => Err(format!("its state is {state:?}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await
        .with_context(|| {
            standby
                .process
                .as_ref()
                .map(Process::log_tail)
                .unwrap_or_default()
        })?;
        Ok(standby)
    }

    /// Makes a standby take writes. It does not look whether its primary still does.
    ///
    /// # Errors
    /// If this is no standby, or the change takes longer than 60 s.
    pub async fn promote(&self) -> anyhow::Result<()> {
        let done = self
            .sql(&self.url("postgres"), "SELECT pg_promote(true, 60)")
            .await?;
        ensure!(done == "t", "the standby was not promoted within 60 s");
        Ok(())
    }

    /// The data directory of the cluster.
    pub fn data_dir(&self) -> PathBuf {
        self.home.path().join("data")
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let data = self.data_dir();
        std::fs::write(data.join("postgresql.conf"), self.configuration())
            .context("postgresql.conf")?;
        let mut command = server_command("postgres")?;
        command.arg("-D").arg(&data).current_dir(self.home.path());
        let log = self.home.path().join("server.log");
        let mut process = Process::start(&mut command, log, Signal::QUIT)?;
        self.home.guard(Some(process.pid()))?;
        let (pid, pid_file) = (process.pid().to_string(), data.join("postmaster.pid"));
        process
            .wait_until("PostgreSQL's readiness", START_LIMIT, async || {
                let text = std::fs::read_to_string(&pid_file)
                    .map_err(|error| format!("{}: {error}", pid_file.display()))?;
                let lines: Vec<_> = text.lines().map(str::trim).collect();
                if lines.first() == Some(&pid.as_str()) && lines.get(7) == Some(&"ready") {
                    Ok(())
                } else {
                    Err(format!("its pid file says {lines:?}"))
                }
            })
            .await?;
        self.process = Some(process);
        Ok(())
    }

    fn configuration(&self) -> String {
        let port = self.address().port().to_string();
        let usual = SETTINGS.iter().copied().chain([("port", port.as_str())]);
        let asked = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        usual
            .chain(asked)
            .fold(String::new(), |mut text, (name, value)| {
                writeln!(text, "{name} = '{}'", value.replace('\'', "''"))
                    .expect("writing to a string cannot fail");
                text
            })
    }
}

/// Finds one of PostgreSQL's programs.
#[expect(
    clippy::disallowed_methods,
    reason = "the test command hands over its tools by environment; there is no configuration to read them from"
)]
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let Some(directory) = std::env::var_os(PROGRAMS_VARIABLE) else {
        bail!(
            "{PROGRAMS_VARIABLE} is not set: run `tests/run`, or `tests/run tools` and set it to the directory of \
             PostgreSQL's programs, such as /usr/lib/postgresql/15/bin"
        );
    };
    let path = Path::new(&directory).join(name);
    ensure!(
        path.is_file(),
        "{PROGRAMS_VARIABLE} is {}, which has no program {name}: run `tests/run tools`",
        directory.display()
    );
    Ok(path)
}

/// A program of PostgreSQL's that owns a cluster, run as a user who may.
fn server_command(name: &str) -> anyhow::Result<Command> {
    let program = program(name)?;
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command
            .args([
                "--reuid",
                SERVER_USER,
                "--regid",
                SERVER_USER,
                "--clear-groups",
                "--",
            ])
            .arg(program);
        command
    } else {
        Command::new(program)
    };
    command.env("LC_ALL", "C.UTF-8");
    Ok(command)
}

/// Runs a program to its end, and makes an error of what it says if it fails.
async fn succeed(command: Command, limit: Duration) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .with_context(|| format!("{shown} did not end within {limit:?}"))?
        .with_context(|| format!("{shown} cannot be started"))?;
    ensure!(
        output.status.success(),
        "{shown} ended with {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(())
}

#[cfg(test)]
mod tests;
