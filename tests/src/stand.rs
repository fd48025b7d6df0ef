//! Both services as child processes, with ports, files and senders of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pass_spool::{EmbeddedOptions, EmbeddedSpool, Spool as _};
use tempfile::TempDir;
use test_kit::{PortLease, wait_for};
use tokio::time::Instant;

use crate::callback::Callback;
use crate::client::{self, ClientLog};
use crate::history::Reader;
use crate::oracle::{self, Verdict};
use crate::service::{Recipe, Service, Strace};
use crate::sources::{Decoder, sources_toml};

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `webhook-gateway`.
    pub gateway: PathBuf,
    /// `pass-state`.
    pub state: PathBuf,
}

/// What differs from one test to another.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keys of the gateway's `[spool]`.
    pub spool_keys: String,
    /// Keys of the gateway's `[http.limits]`.
    pub http_limit_keys: String,
    /// Whole tables of the gateway's file.
    pub gateway_tables: String,
    /// Whole tables of pass-state's file.
    pub state_tables: String,
    /// Keys of pass-state's `[writer]`.
    pub writer_keys: String,
    /// Runs the gateway under strace.
    pub gateway_strace: Option<Strace>,
    /// Runs pass-state under strace.
    pub state_strace: Option<Strace>,
}

/// Both services of one test. What runs is killed, and what was written removed, when it is dropped.
#[derive(Debug)]
pub struct Stand {
    // The services go before the directory that they write to.
    gateway: Option<Service>,
    state: Option<Service>,
    gateway_recipe: Recipe,
    state_recipe: Recipe,
    starts: usize,
    ports: Ports,
    dir: TempDir,
    decoder: Decoder,
    /// The log's epoch as it was seen first.
    epoch: Mutex<Option<String>>,
    /// All attempts made through [`Stand::load`].
    pub log: Arc<ClientLog>,
}

#[derive(Debug)]
struct Ports {
    http: PortLease,
    gateway_admin: PortLease,
    grpc: PortLease,
    state_admin: PortLease,
}

impl Stand {
    /// Writes the configuration and starts nothing.
    ///
    /// # Errors
    /// If files can't be written or no ports are free.
    pub fn new(programs: &Programs, options: &Options) -> anyhow::Result<Self> {
        let dir =
            TempDir::with_prefix("passline-test-").context("cannot make a temporary directory")?;
        let ports = Ports {
            http: PortLease::take()?,
            gateway_admin: PortLease::take()?,
            grpc: PortLease::take()?,
            state_admin: PortLease::take()?,
        };
        let recipe = |name,
                      program: &PathBuf,
                      admin: &PortLease,
                      config: String,
                      strace|
         -> anyhow::Result<Recipe> {
            let file = dir.path().join(format!("{name}.toml"));
            fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
            let text = |path: &Path| path.to_string_lossy().into_owned();
            Ok(Recipe {
                name,
                program: program.clone(),
                arguments: vec![
                    "serve".to_owned(),
                    "--config".to_owned(),
                    text(&file),
                    "--data-dir".to_owned(),
                    text(&dir.path().join("data")),
                ],
                admin: admin.address(),
                logs: dir.path().to_owned(),
                strace,
            })
        };
        let gateway_recipe = recipe(
            "webhook-gateway",
            &programs.gateway,
            &ports.gateway_admin,
            gateway_config(&ports, options),
            options.gateway_strace.clone(),
        )?;
        let state_recipe = recipe(
            "pass-state",
            &programs.state,
            &ports.state_admin,
            state_config(&ports, options),
            options.state_strace.clone(),
        )?;
        Ok(Self {
            gateway: None,
            state: None,
            gateway_recipe,
            state_recipe,
            starts: 0,
            ports,
            dir,
            decoder: Decoder::new()?,
            epoch: Mutex::default(),
            log: Arc::default(),
        })
    }

    /// Writes the configuration, starts both services and waits until they are ready.
    ///
    /// # Errors
    /// If any of that fails.
    pub async fn started(programs: &Programs, options: &Options) -> anyhow::Result<Self> {
        let mut stand = Self::new(programs, options)?;
        stand.start_state().await?;
        stand.start_gateway().await?;
        Ok(stand)
    }

    /// Starts the gateway and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start_gateway(&mut self) -> anyhow::Result<()> {
        self.launch_gateway().await?.ready().await
    }

    /// Starts pass-state and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub async fn start_state(&mut self) -> anyhow::Result<()> {
        self.launch_state().await?.ready().await
    }

    /// Starts the gateway without waiting for it.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn launch_gateway(&mut self) -> anyhow::Result<&mut Service> {
        self.starts += 1;
        Ok(self
            .gateway
            .insert(Service::start(&self.gateway_recipe, self.starts).await?))
    }

    /// Starts pass-state without waiting for it.
    ///
    /// # Errors
    /// If it can't be started.
    pub async fn launch_state(&mut self) -> anyhow::Result<&mut Service> {
        self.starts += 1;
        Ok(self
            .state
            .insert(Service::start(&self.state_recipe, self.starts).await?))
    }

    /// Takes the running gateway, to end or kill it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn take_gateway(&mut self) -> Service {
        self.gateway.take().expect("the gateway runs")
    }

    /// Takes the running pass-state, to end or kill it.
    ///
    /// # Panics
    /// If it does not run.
    pub fn take_state(&mut self) -> Service {
        self.state.take().expect("pass-state runs")
    }

    /// The running gateway.
    ///
    /// # Panics
    /// If it does not run.
    pub fn gateway(&self) -> &Service {
        self.gateway.as_ref().expect("the gateway runs")
    }

    /// The running pass-state.
    ///
    /// # Panics
    /// If it does not run.
    pub fn state(&self) -> &Service {
        self.state.as_ref().expect("pass-state runs")
    }

    /// How the gateway is started from here on.
    pub fn set_gateway_strace(&mut self, strace: Option<Strace>) {
        self.gateway_recipe.strace = strace;
    }

    /// Changes the gateway's configuration file, for its next start.
    ///
    /// # Errors
    /// If the file can't be read or written, or has nothing to be changed.
    pub fn edit_gateway_config(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let file = self.dir().join("webhook-gateway.toml");
        let text = fs::read_to_string(&file)?;
        ensure!(text.contains(from), "{} has no {from:?}", file.display());
        Ok(fs::write(&file, text.replace(from, to))?)
    }

    /// Where callbacks are sent.
    pub fn http(&self) -> std::net::SocketAddr {
        self.ports.http.address()
    }

    /// Where pass-state answers gRPC.
    pub fn grpc(&self) -> std::net::SocketAddr {
        self.ports.grpc.address()
    }

    /// Clients of pass-state.
    pub fn reader(&self) -> Reader {
        Reader::new(self.grpc())
    }

    /// Decodes as the gateway is configured to.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The gateway's spool directory.
    pub fn spool_dir(&self) -> PathBuf {
        self.dir().join("data/gateway/spool")
    }

    /// The directory of pass-state's database.
    pub fn database_dir(&self) -> PathBuf {
        self.dir().join("data/pass-state")
    }

    /// Sends callbacks over some connections until each is stored.
    ///
    /// # Errors
    /// If any is not stored within `limit`.
    pub async fn load(
        &self,
        callbacks: Vec<Arc<Callback>>,
        connections: usize,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let unsent = client::load(
            self.http(),
            callbacks,
            connections,
            &self.log,
            Instant::now() + limit,
        )
        .await;
        ensure!(
            unsent == 0,
            "{unsent} callbacks were not stored within {limit:?}"
        );
        Ok(())
    }

    /// Waits until `count` attempts were answered 200.
    ///
    /// # Errors
    /// If they were not after `limit`.
    pub async fn wait_for_stored(&self, count: usize, limit: Duration) -> anyhow::Result<()> {
        wait_for(
            &format!("{count} answers of 200"),
            limit,
            async || match self.log.stored_count() {
                enough if enough >= count => Ok(()),
                stored => Err(stored),
            },
        )
        .await
    }

    /// Waits until pass-state has all that the spool holds, whether its senders know of it or not.
    ///
    /// # Errors
    /// If it has not after `limit`.
    pub async fn drained(&self, limit: Duration) -> anyhow::Result<()> {
        let reader = self.reader();
        let words = |error: anyhow::Error| format!("{error:#}");
        wait_for("the spool to be forwarded", limit, async || {
            let (_, told) = self.gateway().admin("/status").await.map_err(words)?;
            let status: GatewayStatus =
                serde_json::from_str(&told).map_err(|error| format!("{error}: {told}"))?;
            let info = reader.info().await.map_err(words)?;
            let recorded = info
                .spools
                .iter()
                .find(|spool| spool.spool_id == status.spool.id)
                .and_then(|spool| u64::try_from(spool.committed_sequence).ok());
            let all = status.spool.last_durable;
            if all == 0 || (status.spool.unsettled_records == 0 && recorded == Some(all)) {
                Ok(())
            } else {
                Err(format!("pass-state has {recorded:?} of {told}"))
            }
        })
        .await
    }

    /// Waits until the spool is forwarded, then reads everything that is recorded and judges. Nothing may be
    /// sent meanwhile.
    ///
    /// # Errors
    /// If what is recorded can't be read.
    pub async fn verdict(&self, limit: Duration) -> anyhow::Result<Verdict> {
        let drained = self.drained(limit).await;
        let history = self.reader().history().await?;
        let mut verdict = oracle::judge(&self.decoder, &self.log.attempts(), &history);
        let mut epoch = self.epoch.lock().unwrap_or_else(PoisonError::into_inner);
        if *epoch.get_or_insert_with(|| history.info.epoch.clone()) != history.info.epoch {
            // pass-state changes it when it has less than it once acknowledged.
            verdict.broken.push(
                "the log's epoch changed though no database was put back: what was acknowledged was not committed"
                    .to_owned(),
            );
        }
        // Where draining fails for a loss, the judge has said it better.
        if let (Err(error), true) = (drained, verdict.is_clean()) {
            verdict.broken.push(format!("{error:#}"));
        }
        Ok(verdict)
    }

    /// Notes the log's epoch: from here on [`Stand::verdict`] finds it broken if that changes, as it must only
    /// when a test puts a database back, which calls this again.
    ///
    /// # Errors
    /// If pass-state does not answer.
    pub async fn note_epoch(&self) -> anyhow::Result<String> {
        let epoch = self.reader().info().await?.epoch;
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch.clone());
        Ok(epoch)
    }

    /// Ends both services in order, then checks that the spool holds nothing which pass-state lacks and that
    /// no log has an ERROR.
    ///
    /// # Errors
    /// Says what is left, or which end was not a success.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.finish_with_errors(&[]).await
    }

    /// As [`Stand::finish`], where the test has caused errors: each text must be in one line of level ERROR,
    /// and each such line must have one of the texts.
    ///
    /// # Errors
    /// As [`Stand::finish`]; also if an announced error did not show.
    pub async fn finish_with_errors(mut self, announced: &[&str]) -> anyhow::Result<()> {
        let spools = self.reader().info().await?.spools;
        self.take_gateway().end().await?;
        self.take_state().end().await?;
        let mut options = EmbeddedOptions::new(self.spool_dir());
        options.segment_bytes = SEGMENT_BYTES;
        options.bytes_max = SPOOL_BYTES;
        options.record_bytes_max = RECORD_BYTES;
        let spool = EmbeddedSpool::open(options)
            .context("the spool cannot be opened after the gateway's end")?;
        let status = spool.status();
        let committed = spools
            .iter()
            .find(|info| info.spool_id == spool.id().to_string())
            .map(|info| info.committed_sequence);
        spool.close().await;
        ensure!(
            committed.and_then(|committed| u64::try_from(committed).ok())
                == Some(status.last_durable.0),
            "the spool's last record is {}, pass-state has {committed:?}",
            status.last_durable
        );
        let logs = self.logs()?;
        let errors: Vec<&str> = logs.lines().filter(|line| line.contains("ERROR")).collect();
        let unannounced: Vec<&str> = errors
            .iter()
            .copied()
            .filter(|line| !announced.iter().any(|text| line.contains(text)))
            .collect();
        ensure!(
            unannounced.is_empty(),
            "errors in the logs:\n{}",
            unannounced.join("\n")
        );
        for text in announced {
            ensure!(
                errors.iter().any(|line| line.contains(text)),
                "no ERROR in the logs says {text:?}"
            );
        }
        Ok(())
    }

    /// The text of all log files.
    ///
    /// # Errors
    /// If one can't be read.
    pub fn logs(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        for entry in fs::read_dir(self.dir())? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                text.push_str(&fs::read_to_string(path)?);
            }
        }
        Ok(text)
    }
}

/// What is read here of the gateway's `/status`.
#[derive(serde::Deserialize)]
struct GatewayStatus {
    spool: SpoolStatus,
}

/// The spool's part of it.
#[derive(serde::Deserialize)]
struct SpoolStatus {
    id: String,
    last_durable: u64,
    unsettled_records: u64,
}

/// Small segments, so that a test goes through several.
const SEGMENT_BYTES: u64 = 1 << 20;
const SPOOL_BYTES: u64 = 256 << 20;
/// Largest record that [`Stand::finish`] must be able to read: less than a segment.
const RECORD_BYTES: usize = 512 << 10;

fn gateway_config(ports: &Ports, options: &Options) -> String {
    format!(
        r#"
drain_delay = "50ms"

[http]
listen = "{}"
body_bytes_max = "64KiB"

[http.limits]
{}

[admin]
listen = "{}"

[pass_state]
endpoint = "http://{}"

[forward]
retry_max = "200ms"

[spool]
segment_bytes = {SEGMENT_BYTES}
bytes_max = {SPOOL_BYTES}
{}
{}
{}
"#,
        ports.http.address(),
        options.http_limit_keys,
        ports.gateway_admin.address(),
        ports.grpc.address(),
        options.spool_keys,
        options.gateway_tables,
        sources_toml(),
    )
}

fn state_config(ports: &Ports, options: &Options) -> String {
    format!(
        r#"
drain_delay = "50ms"

[grpc]
listen = "{}"

[admin]
listen = "{}"

[writer]
{}
{}
"#,
        ports.grpc.address(),
        ports.state_admin.address(),
        options.writer_keys,
        options.state_tables,
    )
}
