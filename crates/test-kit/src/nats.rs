//! NATS servers of a test's own.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::home::Home;
use crate::process::Process;
use crate::{PortLease, tool, wait_for};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const FILE_STORE_BYTES_MAX: u64 = 1 << 30;
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// How a [`TestNats`] is set up.
#[derive(Debug, Clone)]
pub struct NatsSettings {
    /// Whether what is published is on disk before it is acknowledged. Otherwise the server syncs every two
    /// minutes, as it does when nobody tells it.
    pub sync_always: bool,
    /// The largest message, headers included, in bytes.
    pub max_payload_bytes: u32,
    /// The user and password that clients must give; none by default. Neither may hold quotes or backslashes.
    pub credentials: Option<(String, String)>,
    /// Further lines for the server's configuration file.
    pub more: String,
}

impl Default for NatsSettings {
    fn default() -> Self {
        Self {
            sync_always: true,
            max_payload_bytes: 1 << 20,
            credentials: None,
            more: String::new(),
        }
    }
}

/// A NATS server with JetStream and a store of its own, on loopback ports that stay the same over restarts.
///
/// Its store holds 1 GiB at most. Dropping the value ends the server and removes its files; so does the death
/// of the process that holds it. A failing test shows the end of the server's log.
#[derive(Debug)]
pub struct TestNats {
    // Fields are dropped in this order: the server before its files.
    process: Option<Process>,
    home: Home,
    clients: PortLease,
    monitoring: PortLease,
    /// Held by every member of a cluster for routes from the others.
    routes: Option<PortLease>,
}

impl TestNats {
    /// Starts a server.
    ///
    /// # Errors
    /// If the server is not installed, or is not healthy within 60 s; the text holds its log.
    pub async fn start(settings: NatsSettings) -> anyhow::Result<Self> {
        let mut server = Self::unstarted(None)?;
        server.configure(&settings, &[])?;
        server.launch().await?;
        Ok(server)
    }

    /// Starts the members of a cluster, which is whole and has a leader when this returns.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub async fn cluster(members: usize, settings: NatsSettings) -> anyhow::Result<Vec<Self>> {
        let mut servers = (0..members)
            .map(|_| Self::unstarted(Some(PortLease::take()?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let routes: Vec<_> = servers
            .iter()
            .filter_map(|server| Some(server.routes.as_ref()?.address()))
            .collect();
        for server in &mut servers {
            server.configure(&settings, &routes)?;
            server.launch().await?;
        }
        for server in &servers {
            wait_for("a cluster with a leader", START_LIMIT, async || {
                server.healthy("/healthz").await
            })
            .await
            .with_context(|| {
                server
                    .process
                    .as_ref()
                    .map(Process::log_tail)
                    .unwrap_or_default()
            })?;
        }
        Ok(servers)
    }

    fn unstarted(routes: Option<PortLease>) -> anyhow::Result<Self> {
        Ok(Self {
            process: None,
            home: Home::new("passline-nats-", "KILL")?,
            clients: PortLease::take()?,
            monitoring: PortLease::take()?,
            routes,
        })
    }

    /// Where the server listens for clients, or did.
    pub fn address(&self) -> SocketAddr {
        self.clients.address()
    }

    /// The URL for clients, without credentials.
    pub fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// The URL of the server's HTTP monitoring, without a path.
    pub fn monitoring_url(&self) -> String {
        format!("http://{}", self.monitoring.address())
    }

    /// Where JetStream keeps its files.
    pub fn store_dir(&self) -> PathBuf {
        self.home.path().join("store")
    }

    /// Kills the server, and returns when it no longer runs. Does nothing if it does not run.
    ///
    /// # Errors
    /// If the process does not end.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.end(Signal::KILL).await
    }

    /// Stops the server in order. Does nothing if it does not run.
    ///
    /// # Errors
    /// If the server does not end within 30 s.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        self.end(Signal::TERM).await
    }

    /// Starts the server again with the same ports, store and settings, after stopping it if it runs. A member
    /// of a cluster may still look for its leader when this returns.
    ///
    /// # Errors
    /// If the server does not stop, or is not healthy within 60 s.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.stop().await?;
        self.launch().await
    }

    /// As [`restart`](Self::restart), with other settings; not for a member of a cluster.
    ///
    /// # Errors
    /// If the server does not stop, or is not healthy within 60 s.
    pub async fn restart_with(&mut self, settings: &NatsSettings) -> anyhow::Result<()> {
        self.stop().await?;
        self.configure(settings, &[])?;
        self.launch().await
    }

    async fn end(&mut self, signal: Signal) -> anyhow::Result<()> {
        if let Some(process) = &mut self.process {
            process.signal(signal)?;
            process.wait_for_end(STOP_LIMIT).await?;
            self.process = None;
            self.home.guard(None)?;
        }
        Ok(())
    }

    fn configuration_file(&self) -> PathBuf {
        self.home.path().join("nats.conf")
    }

    fn configure(&self, settings: &NatsSettings, routes: &[SocketAddr]) -> anyhow::Result<()> {
        let sync = if settings.sync_always {
            "always"
        } else {
            "\"2m\""
        };
        let mut text = format!(
            "server_name: \"test_{port}\"\n\
             listen: \"{clients}\"\n\
             http: \"{monitoring}\"\n\
             max_payload: {max_payload}\n\
             jetstream {{ store_dir: \"{store}\", sync_interval: {sync}, max_file_store: {FILE_STORE_BYTES_MAX} }}\n",
            port = self.address().port(),
            clients = self.address(),
            monitoring = self.monitoring.address(),
            max_payload = settings.max_payload_bytes,
            store = self.store_dir().display(),
        );
        if let Some((user, password)) = &settings.credentials {
            writeln!(
                text,
                "authorization {{ user: \"{user}\", password: \"{password}\" }}"
            )?;
        }
        if let Some(own) = &self.routes {
            let others: Vec<_> = routes
                .iter()
                .map(|route| format!("\"nats-route://{route}\""))
                .collect();
            let (listen, routes) = (own.address(), others.join(", "));
            writeln!(
                text,
                "cluster {{ name: \"test\", listen: \"{listen}\", routes: [{routes}] }}"
            )?;
        }
        text.push_str(&settings.more);
        std::fs::write(self.configuration_file(), text).context("nats.conf")
    }

    async fn launch(&mut self) -> anyhow::Result<()> {
        let mut command = Command::new(tool("PASSLINE_NATS_SERVER")?);
        command
            .arg("--config")
            .arg(self.configuration_file())
            .current_dir(self.home.path());
        let log = self.home.path().join("server.log");
        let mut process = Process::start(&mut command, log, Signal::KILL)?;
        self.home.guard(Some(process.pid()))?;
        // A member alone is never wholly healthy: it has no leader.
        let path = if self.routes.is_some() {
            "/healthz?js-enabled-only=true"
        } else {
            "/healthz"
        };
        process
            .wait_until("the health of NATS", START_LIMIT, async || {
                self.healthy(path).await
            })
            .await?;
        self.process = Some(process);
        Ok(())
    }

    /// Asks the monitoring port for its health, in the one way that needs no HTTP client.
    async fn healthy(&self, path: &str) -> Result<(), String> {
        let answer = async {
            let mut stream = TcpStream::connect(self.monitoring.address()).await?;
            stream
                .write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())
                .await?;
            let mut answer = String::new();
            stream
                .take(ANSWER_BYTES_MAX)
                .read_to_string(&mut answer)
                .await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = answer.await.map_err(|error| error.to_string())?;
        let status = answer.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) == Some("200") {
            Ok(())
        } else {
            Err(answer)
        }
    }
}

#[cfg(test)]
mod tests;
