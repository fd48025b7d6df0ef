//! One service of a fleet: how it is started, where it answers, and the process while it runs.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use test_kit::{Backend, PortLease};

use crate::service::{Recipe, Service, Strace};

/// Longest run of a command beside the service.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A service with ports and files of its own, which keeps both over its restarts.
#[derive(Debug)]
pub struct Member {
    running: Option<Service>,
    recipe: Recipe,
    starts: usize,
    ports: Ports,
    config: PathBuf,
    data_dir: PathBuf,
}

/// Where a service listens.
#[derive(Debug)]
pub(super) struct Ports {
    pub(super) public: PortLease,
    pub(super) admin: PortLease,
}

impl Ports {
    pub(super) fn take() -> anyhow::Result<Self> {
        Ok(Self {
            public: PortLease::take()?,
            admin: PortLease::take()?,
        })
    }
}

impl Member {
    /// Writes its configuration and starts nothing.
    pub(super) fn new(
        name: String,
        program: &Path,
        dir: &Path,
        data_dir: PathBuf,
        ports: Ports,
        config_text: &str,
        strace: Option<Strace>,
    ) -> anyhow::Result<Self> {
        let config = dir.join(format!("{name}.toml"));
        fs::write(&config, config_text)
            .with_context(|| format!("cannot write {}", config.display()))?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let recipe = Recipe {
            name,
            program: program.to_owned(),
            arguments: vec![
                "serve".to_owned(),
                "--config".to_owned(),
                text(&config),
                "--data-dir".to_owned(),
                text(&data_dir),
            ],
            environment: Vec::new(),
            admin: ports.admin.address(),
            logs: dir.to_owned(),
            strace,
        };
        Ok(Self {
            running: None,
            recipe,
            starts: 0,
            ports,
            config,
            data_dir,
        })
    }

    /// What it is called in errors and in the names of its files.
    pub fn name(&self) -> &str {
        &self.recipe.name
    }

    /// Where it takes callbacks or answers gRPC.
    pub fn address(&self) -> SocketAddr {
        self.ports.public.address()
    }

    /// It behind a balancer.
    pub fn backend(&self) -> Backend {
        Backend {
            address: self.ports.public.address(),
            admin: self.ports.admin.address(),
        }
    }

    /// The directory that it keeps its data in.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Runs another command of its program, such as `epoch rotate`, with the same configuration and data, and
    /// returns what it printed.
    ///
    /// # Errors
    /// If it can't be started, or does not succeed within 60 s; its words are in the error.
    pub async fn command(&self, command: &[&str]) -> anyhow::Result<String> {
        let serve = 1;
        let mut process = tokio::process::Command::new(&self.recipe.program);
        process
            .args(command)
            .args(&self.recipe.arguments[serve..])
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(COMMAND_LIMIT, process.output())
            .await
            .with_context(|| format!("{command:?} did not end within {COMMAND_LIMIT:?}"))??;
        ensure!(
            output.status.success(),
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.launch().await?.ready().await
    }

    /// Starts it without waiting for it.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn launch(&mut self) -> anyhow::Result<&mut Service> {
        self.starts += 1;
        Ok(self
            .running
            .insert(Service::start(&self.recipe, self.starts).await?))
    }

    /// Takes the running process, to end or kill it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn take(&mut self) -> Service {
        self.running
            .take()
            .unwrap_or_else(|| panic!("{} runs", self.recipe.name))
    }

    /// The running process.
    ///
    /// # Panics
    /// If it does not run.
    pub fn service(&self) -> &Service {
        self.running
            .as_ref()
            .unwrap_or_else(|| panic!("{} runs", self.recipe.name))
    }

    /// The running process, if there is one.
    pub(super) fn running_mut(&mut self) -> Option<&mut Service> {
        self.running.as_mut()
    }

    /// True while it runs, as far as was not noticed otherwise.
    pub fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// How it is started from here on.
    pub fn set_strace(&mut self, strace: Option<Strace>) {
        self.recipe.strace = strace;
    }

    /// Gives it a variable of the environment from its next start on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.recipe
            .environment
            .push((name.to_owned(), value.to_owned()));
    }

    /// Changes its configuration file, for its next start.
    ///
    /// # Errors
    /// If the file can't be read or written, or has nothing to be changed.
    pub fn edit_config(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let text = fs::read_to_string(&self.config)?;
        ensure!(
            text.contains(from),
            "{} has no {from:?}",
            self.config.display()
        );
        Ok(fs::write(&self.config, text.replace(from, to))?)
    }
}
