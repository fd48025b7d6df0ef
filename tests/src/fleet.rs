//! Any number of gateways and replicas of pass-state as child processes, with ports, files and senders of
//! their own.
//!
//! The servers that they share, PostgreSQL and NATS, are the test's: a fleet only knows where they are, so
//! that a test can kill them, or put a proxy before them.

mod config;
mod member;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pass_proto::v1;
use pass_spool::{EmbeddedOptions, EmbeddedSpool, Spool as _};
use service_kit::tls::Connector;
use tempfile::TempDir;
use test_kit::{Backend, TestNats, TestPostgres, wait_for};
use tokio::time::Instant;

use crate::callback::Callback;
use crate::client::{self, ClientLog, Senders};
use crate::follower::{Follower, Habits};
use crate::history::{History, Reader};
use crate::oracle::{self, Verdict};
use crate::service::Strace;
use crate::sources::Decoder;
use crate::tls::Pki;
use config::{RECORD_BYTES, SEGMENT_BYTES, SPOOL_BYTES, gateway_config, state_config};
pub use member::Member;
use member::Ports;

/// The programs under test.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `webhook-gateway`.
    pub gateway: PathBuf,
    /// `pass-state`.
    pub state: PathBuf,
}

/// What differs from one test to another. All services of a kind have the same.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Both services' `drain_delay`. Default 50 ms.
    pub drain_delay: Option<Duration>,
    /// Keys of the gateway's `[spool]`, or of its `[spool.jetstream]`.
    pub spool_keys: String,
    /// Keys of the gateway's `[http.limits]`.
    pub http_limit_keys: String,
    /// Keys of the gateway's `[pass_state]`.
    pub channel_keys: String,
    /// Whole tables of the gateway's file.
    pub gateway_tables: String,
    /// Whole tables of pass-state's file.
    pub state_tables: String,
    /// Keys of pass-state's `[store.postgres]`.
    pub store_keys: String,
    /// Keys of pass-state's `[writer]`.
    pub writer_keys: String,
    /// Runs the gateway under strace.
    pub gateway_strace: Option<Strace>,
    /// Runs pass-state under strace.
    pub state_strace: Option<Strace>,
    /// TLS to the gateways and mutual TLS to pass-state, with these certificates. Their files change on demand, so the
    /// services look at them every second.
    pub tls: Option<Arc<Pki>>,
}

/// Where pass-state records.
#[derive(Clone, Debug, Default)]
pub enum Database {
    /// A file, which all replicas open.
    #[default]
    Sqlite,
    /// A database of a server that the test runs.
    Postgres {
        /// Its URL.
        url: String,
    },
}

impl Database {
    /// An empty database of a server.
    ///
    /// # Errors
    /// If it can't be made.
    pub async fn on(postgres: &TestPostgres) -> anyhow::Result<Self> {
        let url = postgres.database().await?;
        Ok(Self::Postgres { url })
    }
}

/// Where gateways keep what was not forwarded yet.
#[derive(Clone, Debug, Default)]
pub enum SpoolKind {
    /// A directory for each.
    #[default]
    Embedded,
    /// One stream for all, on servers that the test runs.
    JetStream {
        /// URLs of the servers.
        servers: Vec<String>,
        /// Where they tell how they are configured.
        monitoring_urls: Vec<String>,
    },
}

impl SpoolKind {
    /// One stream on a lone server.
    pub fn on(nats: &TestNats) -> Self {
        Self::JetStream {
            servers: vec![nats.url()],
            monitoring_urls: vec![nats.monitoring_url()],
        }
    }
}

/// What a fleet consists of.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// How many gateways.
    pub gateways: usize,
    /// How many replicas of pass-state.
    pub states: usize,
    /// Where pass-state records.
    pub database: Database,
    /// Where gateways keep what was not forwarded yet.
    pub spool: SpoolKind,
    /// What the services are configured with besides.
    pub options: Options,
}

impl Layout {
    /// One gateway and one pass-state on their own disks.
    pub fn pair() -> Self {
        Self {
            gateways: 1,
            states: 1,
            ..Self::default()
        }
    }
}

/// The services of one test. What runs is killed, and what was written removed, when it is dropped.
#[derive(Debug)]
pub struct Fleet {
    // The services go before the directory that they write to.
    /// The gateways.
    pub gateways: Vec<Member>,
    /// The replicas of pass-state.
    pub states: Vec<Member>,
    shared_spool: bool,
    tls: Option<Arc<Pki>>,
    dir: TempDir,
    decoder: Decoder,
    /// The log's epoch as it was seen first.
    epoch: Mutex<Option<String>>,
    /// All attempts made through [`Fleet::load`] and [`Fleet::senders`].
    pub log: Arc<ClientLog>,
}

impl Fleet {
    /// Writes the configurations and starts nothing.
    ///
    /// # Errors
    /// If files can't be written or no ports are free.
    pub fn new(programs: &Programs, layout: &Layout) -> anyhow::Result<Self> {
        let dir =
            TempDir::with_prefix("passline-test-").context("cannot make a temporary directory")?;
        let options = &layout.options;
        let mut states = Vec::new();
        for index in 0..layout.states {
            let ports = Ports::take()?;
            let text = state_config(&ports, layout);
            states.push(Member::new(
                format!("pass-state-{index}"),
                &programs.state,
                dir.path(),
                // Replicas on SQLite share the file in it; on PostgreSQL they leave it alone.
                dir.path().join("pass-state"),
                ports,
                &text,
                options.state_strace.clone(),
            )?);
        }
        let addresses: Vec<SocketAddr> = states.iter().map(Member::address).collect();
        let mut gateways = Vec::new();
        for index in 0..layout.gateways {
            let ports = Ports::take()?;
            let text = gateway_config(index, &ports, &addresses, layout);
            let name = format!("webhook-gateway-{index}");
            gateways.push(Member::new(
                name.clone(),
                &programs.gateway,
                dir.path(),
                dir.path().join(name),
                ports,
                &text,
                options.gateway_strace.clone(),
            )?);
        }
        Ok(Self {
            gateways,
            states,
            shared_spool: matches!(layout.spool, SpoolKind::JetStream { .. }),
            tls: options.tls.clone(),
            dir,
            decoder: Decoder::new()?,
            epoch: Mutex::default(),
            log: Arc::default(),
        })
    }

    /// Writes the configurations, starts all services and waits until they are ready.
    ///
    /// # Errors
    /// If any of that fails.
    pub async fn started(programs: &Programs, layout: &Layout) -> anyhow::Result<Self> {
        let mut fleet = Self::new(programs, layout)?;
        for state in &mut fleet.states {
            state.launch().await?;
        }
        for gateway in &mut fleet.gateways {
            gateway.launch().await?;
        }
        fleet.all_ready().await?;
        Ok(fleet)
    }

    /// Waits until every service that runs is ready.
    ///
    /// # Errors
    /// If one is not after 30 s, or has ended.
    pub async fn all_ready(&mut self) -> anyhow::Result<()> {
        for member in self.states.iter_mut().chain(&mut self.gateways) {
            if let Some(service) = member.running_mut() {
                service.ready().await?;
            }
        }
        Ok(())
    }

    /// Where callbacks are sent: all gateways, as a balancer knows them.
    pub fn http_addresses(&self) -> Vec<SocketAddr> {
        self.gateways.iter().map(Member::address).collect()
    }

    /// Where the replicas of pass-state answer gRPC.
    pub fn grpc_addresses(&self) -> Vec<SocketAddr> {
        self.states.iter().map(Member::address).collect()
    }

    /// The gateways, for a balancer.
    pub fn gateway_backends(&self) -> Vec<Backend> {
        self.gateways.iter().map(Member::backend).collect()
    }

    /// The replicas of pass-state, for a balancer.
    pub fn state_backends(&self) -> Vec<Backend> {
        self.states.iter().map(Member::backend).collect()
    }

    /// Clients of one replica. With TLS they show the certificate `reader`.
    ///
    /// # Panics
    /// If that can't be read.
    pub fn reader_of(&self, state: usize) -> Reader {
        let connector = match &self.tls {
            Some(pki) => pki.connector(Some("reader")).expect("its files are there"),
            None => Connector::plaintext(),
        };
        Reader::over(self.states[state].address(), connector)
    }

    /// Clients of the first replica that runs.
    ///
    /// # Panics
    /// If none was made.
    pub fn reader(&self) -> Reader {
        self.reader_of(self.first_state())
    }

    /// Reads everything from one replica, anew if that fails: where connections only live for a second, one may end in
    /// the middle.
    async fn history_of(&self, state: usize, limit: Duration) -> anyhow::Result<History> {
        wait_for("everything to be read", limit, async || {
            let read = self.reader_of(state).history().await;
            read.map_err(|error| format!("{error:#}"))
        })
        .await
    }

    /// A subscriber that goes from replica to replica.
    pub fn follower(&self) -> Follower {
        Follower::start(&self.grpc_addresses(), Habits::default())
    }

    /// Decodes as the gateways are configured to.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Starts `connections` senders of endless traffic over all gateways.
    pub fn senders(&self, seed: u64, tag: &str, connections: usize) -> Senders {
        let tls = self.tls.as_ref();
        Senders::start(
            &self.http_addresses(),
            tls,
            seed,
            tag,
            connections,
            &self.log,
        )
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
            &self.http_addresses(),
            self.tls.as_ref(),
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

    /// What the gateways that run know of their spools.
    ///
    /// # Errors
    /// If one does not answer.
    pub async fn spools(&self) -> anyhow::Result<Vec<SpoolSeen>> {
        let mut spools = Vec::new();
        for gateway in self.gateways.iter().filter(|gateway| gateway.runs()) {
            spools.push(status_of(gateway).await?.spool);
        }
        Ok(spools)
    }

    /// The gateway that forwards what several share, as far as one does at this moment.
    ///
    /// # Errors
    /// If one does not answer.
    pub async fn forwarder(&self) -> anyhow::Result<Option<usize>> {
        for (index, gateway) in self.gateways.iter().enumerate() {
            if gateway.runs() && status_of(gateway).await?.forward.connected {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// Waits until every replica that runs has all that the spools hold, whether its senders know of it or
    /// not. Spools of gateways that do not run are not looked at, unless they are shared.
    ///
    /// # Errors
    /// If they have not after `limit`.
    pub async fn drained(&self, limit: Duration) -> anyhow::Result<()> {
        let words = |error: anyhow::Error| format!("{error:#}");
        let mut since = None;
        wait_for("the spools to be forwarded", limit, async || {
            let spools = self.spools().await.map_err(words)?;
            for state in self.running_states() {
                let info = self.reader_of(state).info().await.map_err(words)?;
                let behind = spools.iter().find(|spool| !spool.is_forwarded(&info));
                if let Some(spool) = behind {
                    since = None;
                    let name = self.states[state].name();
                    return Err(format!(
                        "{name} has {:?} of {spool:?}",
                        committed(&info, spool)
                    ));
                }
            }
            // What a gateway knows of a shared spool may be a second old.
            let first = *since.get_or_insert_with(Instant::now);
            if self.shared_spool && first.elapsed() < SHARED_STATUS_AGE_MAX {
                return Err("forwarded, as far as the gateways know".to_owned());
            }
            Ok(())
        })
        .await
    }

    /// Waits until the services work again while callbacks keep coming, and returns how long that took from
    /// now: all that run are ready, every replica among them has what the spools held then, and a callback was
    /// stored.
    ///
    /// # Errors
    /// If they do not after `limit`, or a service has ended by itself.
    pub async fn recovered(&mut self, limit: Duration) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let stored = self.log.stored_count();
        self.all_ready().await?;
        let spools = self.spools().await?;
        let words = |error: anyhow::Error| format!("{error:#}");
        wait_for("recovery", limit, async || {
            for state in self.running_states() {
                let info = self.reader_of(state).info().await.map_err(words)?;
                for spool in &spools {
                    let recorded = committed(&info, spool);
                    if recorded.unwrap_or_default() < spool.last_durable {
                        let name = self.states[state].name();
                        return Err(format!("{name} has {recorded:?} of {spool:?}"));
                    }
                }
            }
            match self.log.stored_count() {
                more if more > stored => Ok(()),
                _ => Err("no callback was stored".to_owned()),
            }
        })
        .await?;
        Ok(began.elapsed())
    }

    /// The first replica that runs.
    fn first_state(&self) -> usize {
        self.running_states().next().unwrap_or(0)
    }

    /// The replicas that run, by number.
    fn running_states(&self) -> impl Iterator<Item = usize> {
        (0..self.states.len()).filter(|index| self.states[*index].runs())
    }

    /// Waits until the spools are forwarded, then reads everything that is recorded, from every replica, and
    /// judges. Nothing may be sent meanwhile.
    ///
    /// # Errors
    /// If what is recorded can't be read.
    pub async fn verdict(&self, limit: Duration) -> anyhow::Result<Verdict> {
        let drained = self.drained(limit).await;
        let history = self.history_of(self.first_state(), limit).await?;
        let mut verdict = oracle::judge(&self.decoder, &self.log.attempts(), &history);
        for state in self.running_states().skip(1) {
            let other = self.history_of(state, limit).await?;
            if let Some(what) = history.difference(&other) {
                verdict.broken.push(format!(
                    "{} shows other {what} than the first replica",
                    self.states[state].name()
                ));
            }
        }
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

    /// Notes the log's epoch: from here on [`Fleet::verdict`] finds it broken if that changes, as it must only
    /// when a test puts a database back, which calls this again.
    ///
    /// # Errors
    /// If pass-state does not answer.
    pub async fn note_epoch(&self) -> anyhow::Result<String> {
        let epoch = self.reader().info().await?.epoch;
        *self.epoch.lock().unwrap_or_else(PoisonError::into_inner) = Some(epoch.clone());
        Ok(epoch)
    }

    /// Ends all services in order, then checks that no spool holds anything which pass-state lacks and that
    /// no log has an ERROR.
    ///
    /// # Errors
    /// Says what is left, or which end was not a success.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.finish_with_errors(&[]).await
    }

    /// As [`Fleet::finish`], where the test has caused errors: each text must be in one line of level ERROR,
    /// and each such line must have one of the texts or `CONNECTION_DIED`, or `EPOCH_KEPT` where the epoch changed.
    ///
    /// # Errors
    /// As [`Fleet::finish`]; also if an announced error did not show.
    pub async fn finish_with_errors(mut self, announced: &[&str]) -> anyhow::Result<()> {
        let info = self.reader().info().await?;
        for member in self.gateways.iter_mut().chain(&mut self.states) {
            if member.runs() {
                member.take().end().await?;
            }
        }
        if !self.shared_spool {
            for gateway in &self.gateways {
                spool_is_recorded(&spool_dir(gateway), &info).await?;
            }
        }
        let logs = self.logs()?;
        let errors: Vec<&str> = logs.lines().filter(|line| line.contains("ERROR")).collect();
        let epoch_changed = errors.iter().any(|line| line.contains("new epoch"));
        let unannounced: Vec<&str> = errors
            .iter()
            .copied()
            .filter(|line| !announced.iter().any(|text| line.contains(text)))
            .filter(|line| !line.contains(CONNECTION_DIED))
            .filter(|line| !(epoch_changed && line.contains(EPOCH_KEPT)))
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

/// What the driver's pool says at level ERROR of a connection that could not be made ready, and makes another: it died
/// meanwhile, or leads to a standby or to another history. Any test that ends or moves a PostgreSQL may meet the
/// moment.
const CONNECTION_DIED: &str = "sqlx_core::pool::inner: error returned from after_connect";

/// What a replica says that missed its place in the log while the database was still moving, before it tries again.
const EPOCH_KEPT: &str = "the log's epoch cannot be changed";

/// How old a gateway's figures of a shared spool may be: it looks each second.
const SHARED_STATUS_AGE_MAX: Duration = Duration::from_millis(1_200);

/// A gateway's spool directory, if its spool is embedded.
pub fn spool_dir(gateway: &Member) -> PathBuf {
    gateway.data_dir().join("gateway/spool")
}

/// What is read here of a gateway's `/status`.
#[derive(serde::Deserialize)]
struct GatewayStatus {
    spool: SpoolSeen,
    forward: ForwardSeen,
}

/// What is read of its forwarding.
#[derive(serde::Deserialize)]
struct ForwardSeen {
    connected: bool,
}

async fn status_of(gateway: &Member) -> anyhow::Result<GatewayStatus> {
    let (_, told) = gateway.service().admin("/status").await?;
    serde_json::from_str(&told).with_context(|| format!("{} says {told}", gateway.name()))
}

/// A spool as its gateway sees it.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct SpoolSeen {
    /// Its id.
    pub id: String,
    /// Sequence of its last record.
    pub last_durable: u64,
    /// Records that pass-state has not acknowledged.
    pub unsettled_records: u64,
}

impl SpoolSeen {
    /// True if a replica that told `info` has all of it, and its gateway knows.
    pub fn is_forwarded(&self, info: &v1::GetLogInfoResponse) -> bool {
        self.last_durable == 0
            || (self.unsettled_records == 0 && committed(info, self) == Some(self.last_durable))
    }
}

/// The last sequence of a spool that is recorded.
pub fn committed(info: &v1::GetLogInfoResponse, spool: &SpoolSeen) -> Option<u64> {
    info.spools
        .iter()
        .find(|told| told.spool_id == spool.id)
        .and_then(|told| u64::try_from(told.committed_sequence).ok())
}

/// Checks that a spool which nobody has open holds nothing that is not recorded.
async fn spool_is_recorded(directory: &Path, info: &v1::GetLogInfoResponse) -> anyhow::Result<()> {
    let mut options = EmbeddedOptions::new(directory.to_owned());
    options.segment_bytes = SEGMENT_BYTES;
    options.bytes_max = SPOOL_BYTES;
    options.record_bytes_max = RECORD_BYTES;
    let spool = EmbeddedSpool::open(options)
        .context("the spool cannot be opened after the gateway's end")?;
    let status = spool.status();
    let seen = SpoolSeen {
        id: spool.id().to_string(),
        last_durable: status.last_durable.0,
        unsettled_records: 0,
    };
    spool.close().await;
    ensure!(
        seen.is_forwarded(info),
        "the last record of the spool is {}, pass-state has {:?}",
        seen.last_durable,
        committed(info, &seen)
    );
    Ok(())
}
