//! The service as a whole: what is built from a configuration, and what runs until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pass_spool::{JetStreamOpenError, OpenError, Spool, SpoolHealth, SpoolId, SpoolStatus};
use service_kit::admin::{Check, Readiness, State, Version};
use service_kit::clock::Clock;
use service_kit::config::{self, Faults, Origin};
use service_kit::grpc::{self, Credentials};
use service_kit::listener::HttpListener;
use service_kit::metrics::Metrics;
use service_kit::reload::{Reload as _, ReloadStatus, Reloads};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry;
use service_kit::tls::{self, Protocol, TlsClient, TlsServer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend;
use crate::books::Books;
use crate::config::{AckMode, Config, SERVICE_NAME, SpoolBackend};
use crate::forward::{ForwardStatus, Forwarder};
use crate::http::{self, Edge};
use crate::metrics::{self, AckDuration};
use crate::policy::{Live, Policy};
use crate::record::record_bytes_max;
use crate::reload::PolicyReload;
use crate::sources::Sources;
use crate::waiters::Waiters;

/// Which service this is, and which version.
pub(crate) const VERSION: Version = Version {
    service: SERVICE_NAME,
    version: env!("CARGO_PKG_VERSION"),
};
/// How often the spool's health is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_millis(100);
/// After a storage error, time for the 503 of requests in flight. With the interval above it keeps the end
/// within a second.
const LAST_ANSWERS: Duration = Duration::from_millis(400);
/// After a storage error, time for the spool to let go of its directory.
const POISONED_CLOSE_MAX: Duration = Duration::from_millis(200);

/// What the gateway needs from outside.
#[derive(Clone)]
pub struct Dependencies {
    /// The wall clock: receive times, delivery ids, ages of stored records.
    pub clock: Arc<dyn Clock>,
    /// The environment that secrets may be taken from.
    pub env: Vec<(String, String)>,
    /// The directory under which an embedded spool lies unless its own is configured. With a spool on JetStream
    /// nothing is written there.
    pub data_dir: PathBuf,
    /// Where the configuration came from and is read from again when it changes; absent: only the sources' secrets are.
    pub config_from: Option<config::Sources>,
}

/// Why a gateway could not be built. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The sources' configuration is wrong.
    #[error("sources can't be used:\n{0}")]
    Sources(Faults),
    /// The spool can't be opened; the error says what to do.
    #[error("spool can't be opened")]
    Spool(#[from] OpenError),
    /// The spool on JetStream can't be opened; the error says what to do.
    #[error("spool.jetstream can't be opened")]
    JetStream(#[from] JetStreamOpenError),
    /// A secret of the spool can't be read.
    #[error("spool can't be opened:\n{0}")]
    Login(Faults),
    /// An address can't be bound.
    #[error("{key} can't be bound to {addr}; choose another address or stop what uses it")]
    Bind {
        /// The key that names the address.
        key: &'static str,
        /// The address.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A certificate, key or token can't be used.
    #[error("{0}")]
    Tls(Faults),
    /// pass-state's endpoint is not one.
    #[error("pass_state.endpoint")]
    Endpoint(#[from] grpc::EndpointError),
}

/// Why a gateway stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A storage error; only a new process can tell what is on the disk.
    #[error("spool failed and needs a restart of the process: {0}")]
    SpoolPoisoned(Arc<str>),
    /// A task panicked: our bug.
    #[error("the forwarding task ended unexpectedly")]
    Forwarder,
}

/// A gateway whose sockets are bound and whose spool is open; [`Gateway::run`] makes it work.
pub struct Gateway {
    config: Config,
    clock: Arc<dyn Clock>,
    live: Arc<Live>,
    waiters: Arc<Waiters>,
    spool: Arc<dyn Spool>,
    http: HttpListener,
    admin: HttpListener,
    forward: watch::Sender<ForwardStatus>,
    observer: Arc<Observer>,
    channel: grpc::Channel,
    reloads: Reloads,
    metrics: Metrics,
}

impl Gateway {
    /// Checks the sources, opens the spool (recovering it if need be), and binds both listeners. Callers
    /// queue from then on.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn build(config: Config, dependencies: Dependencies) -> Result<Self, BuildError> {
        let Dependencies {
            clock,
            env,
            data_dir,
            config_from,
        } = dependencies;
        let policy = Policy::build(
            &config.sources,
            &config.ack,
            &config.http,
            &env,
            &Origin::Default,
            None,
        )
        .map_err(BuildError::Sources)?;
        let books = Arc::new(Books::new());
        let live = Live::new(policy, Arc::clone(&books));
        let live = Arc::new(live.expect("a configuration has fewer sources than there are pages"));
        let mut reloads = Reloads::new(&config.reload);
        let http_tls = tls::server("http.tls", config.http.tls.as_ref(), Protocol::Http);
        let http_tls = http_tls.map_err(BuildError::Tls)?;
        let admin_tls = tls::server("admin.tls", config.admin.tls.as_ref(), Protocol::Http);
        let admin_tls = admin_tls.map_err(BuildError::Tls)?;
        let mut certificates = Vec::new();
        for (name, key, tls) in [
            ("http", "http.tls", &http_tls),
            ("admin", "admin.tls", &admin_tls),
        ] {
            if let Some(tls) = tls {
                reloads.register(key, tls.clone());
                certificates.push((name, tls.clone()));
            }
        }
        let credentials =
            Credentials::load("pass_state", &config.pass_state, &env).map_err(BuildError::Tls)?;
        let client_tls = credentials.tls();
        if let Some(tls) = client_tls.clone() {
            reloads.register("pass_state.tls", tls);
        }
        if let Some(token) = credentials.token()
            && !token.files().is_empty()
        {
            reloads.register("pass_state.token", token);
        }
        let channel = grpc::channel(&config.pass_state, &credentials)?;
        let metrics = Metrics::new(&config.telemetry, VERSION);
        for tls in metrics.tls_clients() {
            reloads.register("telemetry.tls", tls);
        }
        let sync_observer = metrics::sync_observer(&metrics);
        let spool = backend::open(&config, &env, &data_dir, &clock, sync_observer).await?;
        let http = bind(
            "http.listen",
            config.http.listen,
            config.http.limits.clone(),
        )
        .await?
        .with_tls(http_tls);
        let admin = bind(
            "admin.listen",
            config.admin.listen,
            service_kit::admin::limits(),
        )
        .await?
        .with_tls(admin_tls);
        let waits = live
            .policy()
            .iter()
            .any(|entry| entry.ack == AckMode::Applied);
        let waiters = Arc::new(Waiters::new(config.ack.waiters_max, waits));
        reloads.register(
            "configuration",
            PolicyReload::new(
                &config,
                config_from,
                env,
                Arc::clone(&live),
                Arc::clone(&waiters),
            ),
        );
        let forward = watch::Sender::new(ForwardStatus::default());
        let observer = Arc::new(Observer {
            live: Arc::clone(&live),
            books,
            spool: Arc::clone(&spool),
            spool_backend: config.spool.backend,
            forward: forward.subscribe(),
            reload: reloads.status(),
            certificates,
            client_tls,
        });
        Ok(Self {
            config,
            clock,
            live,
            waiters,
            spool,
            http,
            admin,
            forward,
            observer,
            channel,
            reloads,
            metrics,
        })
    }

    /// The bound address of callbacks.
    #[must_use]
    pub fn http_addr(&self) -> SocketAddr {
        self.http.local_addr()
    }

    /// The bound address of health and status.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// A view of the gateway that stays valid while it runs and after.
    #[must_use]
    pub fn observer(&self) -> Arc<Observer> {
        Arc::clone(&self.observer)
    }

    /// Serves until `shutdown` stops: then finishes the requests in flight, waits a little for
    /// acknowledgements, and closes the spool. When it returns none of its tasks is left. It never moves
    /// `shutdown` itself; whoever owns the process decides what an error means for the rest.
    ///
    /// # Errors
    /// If the spool failed (within a second of it) or a task panicked: the process should exit non-zero.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let Self {
            config,
            clock,
            live,
            waiters,
            spool,
            http,
            admin,
            forward,
            observer,
            channel,
            reloads,
            metrics,
        } = self;
        warn(&live.policy());
        if config.pass_state.token.is_some() && config.pass_state.sends_in_the_clear() {
            tracing::warn!(
                "pass_state.token goes to other machines without TLS: write https:// in pass_state.endpoint"
            );
        }
        if config.http.tls.is_none() && !http.local_addr().ip().is_loopback() {
            tracing::warn!(http = %http.local_addr(), "callbacks are taken in without TLS: something in front must end it");
        }
        if config.admin.tls.is_none() && !admin.local_addr().ip().is_loopback() {
            tracing::warn!(admin = %admin.local_addr(), "the admin listener is open to other machines without TLS: let only probes and scrapers reach it, or set [admin.tls]");
        }
        let sampling = telemetry::sampling();
        let readiness = Readiness::new(shutdown.clone());
        let spool_check = readiness.register("spool");
        let forward_check = readiness.register("forward");
        let body_bytes_max = config.http.body_bytes_max.as_usize();
        let forwarder = Forwarder {
            shared: config.spool_is_shared(),
            gateway_id: config.gateway_id,
            body_bytes_max,
            record_bytes_max: record_bytes_max(body_bytes_max),
            config: config.forward,
            channel,
            spool: Arc::clone(&spool),
            live: Arc::clone(&live),
            books: Arc::clone(&observer.books),
            waiters: Arc::clone(&waiters),
            status: forward,
            traced: sampling.is_on(),
        };
        let edge = Edge::new(
            &config.http,
            live,
            Arc::clone(&spool),
            Arc::clone(&clock),
            Arc::clone(&observer.books),
            waiters,
            observer.watch_forward(),
            sampling,
            AckDuration::new(&metrics),
        );
        metrics.observe_readiness(&readiness);
        metrics.observe_reloads(reloads.status());
        metrics::observe(&metrics, &observer, edge.in_flight(), clock);
        tracing::info!(http = %http.local_addr(), admin = %admin.local_addr(), spool.id = %spool.id(), spool.backend = config.spool.backend.name(), "webhook-gateway serves");

        let stop = CancellationToken::new();
        let mut forwarding = tokio::spawn(forwarder.run(forward_check, stop.clone()));
        let stop_push = CancellationToken::new();
        let pushing = tokio::spawn(metrics.clone().push(stop_push.clone()));
        let serving = async {
            tokio::join!(
                reloads.run(shutdown.clone()),
                http.serve(http::router(Arc::new(edge)), shutdown.clone()),
                admin.serve(
                    http::admin::router(readiness, &metrics, observer),
                    shutdown.clone()
                ),
            );
        };
        let failed = tokio::select! {
            () = serving => None,
            reason = follow_health(&*spool, &spool_check) => Some(RunError::SpoolPoisoned(reason)),
            _ = &mut forwarding => Some(RunError::Forwarder),
        };
        // Requests are over, so nothing new comes into the spool; now the task behind them may end.
        match failed {
            None => {
                stop.cancel();
                let ended = forwarding.await;
                spool.close().await;
                // Last of all, so that they tell how it ended.
                stop_push.cancel();
                let _ = pushing.await;
                ended.map_err(|_| RunError::Forwarder)
            }
            Some(error) => {
                forwarding.abort();
                pushing.abort();
                let _ = tokio::time::timeout(POISONED_CLOSE_MAX, spool.close()).await;
                Err(error)
            }
        }
    }
}

async fn bind(
    key: &'static str,
    addr: SocketAddr,
    limits: service_kit::listener::HttpLimits,
) -> Result<HttpListener, BuildError> {
    HttpListener::bind(addr, limits)
        .await
        .map_err(|source| BuildError::Bind { key, addr, source })
}

fn warn(sources: &Sources) {
    for warning in sources.iter().flat_map(|entry| entry.source.warnings()) {
        tracing::warn!("{warning}");
    }
    if sources.iter().next().is_none() {
        tracing::warn!("no sources are configured; every callback is answered 404");
    }
}

/// Keeps the readiness check in step with the spool's health, and returns the reason once it is poisoned and
/// the last answers had their time.
async fn follow_health(spool: &dyn Spool, check: &Check) -> Arc<str> {
    let mut unproven_told = None;
    loop {
        let SpoolStatus {
            health,
            unproven,
            trouble,
            ..
        } = spool.status();
        let state = match (health, &unproven) {
            (SpoolHealth::Ok | SpoolHealth::Slow, None) => match trouble {
                Some(reason) => State::Warned(format!("nothing may be forwarded: {reason}")),
                None => State::Ok,
            },
            (SpoolHealth::Ok | SpoolHealth::Slow, Some(reason)) => {
                State::Warned(format!("durability is not proven: {reason}"))
            }
            (SpoolHealth::Stuck, _) => State::NotReady("the disk does not answer".to_owned()),
            (SpoolHealth::Full, _) => State::NotReady("the spool is full".to_owned()),
            (SpoolHealth::Unavailable(reason), _) => {
                State::NotReady(format!("the spool is unavailable: {reason}"))
            }
            (SpoolHealth::Poisoned(reason), _) => {
                tracing::error!(reason = %reason, "the spool failed; this process answers 503 and ends");
                check.not_ready("the spool failed");
                tokio::time::sleep(LAST_ANSWERS).await;
                return reason;
            }
        };
        check.set(state);
        if unproven != unproven_told {
            match &unproven {
                Some(reason) => {
                    tracing::warn!(reason = %reason, "the spool's durability is not proven, as allow_unsynced permits; what was answered 200 may be lost");
                }
                None => tracing::info!("the spool's durability is proven now"),
            }
            unproven_told = unproven;
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}

/// A view of a running gateway, for metrics, the operator and tests.
pub struct Observer {
    live: Arc<Live>,
    books: Arc<Books>,
    spool: Arc<dyn Spool>,
    spool_backend: SpoolBackend,
    forward: watch::Receiver<ForwardStatus>,
    reload: Arc<ReloadStatus>,
    certificates: Vec<(&'static str, TlsServer)>,
    client_tls: Option<TlsClient>,
}

impl Observer {
    /// What decides about callbacks now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        self.live.policy()
    }

    /// The counters of requests and deliveries.
    #[must_use]
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// The spool's figures at this moment.
    #[must_use]
    pub fn spool(&self) -> SpoolStatus {
        self.spool.status()
    }

    /// What keeps the spool.
    #[must_use]
    pub fn spool_backend(&self) -> SpoolBackend {
        self.spool_backend
    }

    /// The spool's id.
    #[must_use]
    pub fn spool_id(&self) -> SpoolId {
        self.spool.id()
    }

    /// The forwarder's state at this moment.
    #[must_use]
    pub fn forward(&self) -> ForwardStatus {
        self.forward.borrow().clone()
    }

    /// When the certificates expire, in Unix seconds: those of the listeners with TLS, each by its name, and
    /// `pass_state`, our own as a client, if we have one.
    pub fn certificates(&self) -> impl Iterator<Item = (&'static str, i64)> {
        let own = self.client_tls.as_ref().and_then(TlsClient::expires);
        self.certificates
            .iter()
            .map(|(listener, tls)| (*listener, tls.expires()))
            .chain(own.map(|expires| ("pass_state", expires)))
    }

    /// The listeners with TLS, each by its name.
    #[must_use]
    pub fn tls_listeners(&self) -> &[(&'static str, TlsServer)] {
        &self.certificates
    }

    /// What came of taking in changed files.
    #[must_use]
    pub fn reload(&self) -> &ReloadStatus {
        &self.reload
    }

    /// The forwarder's state, to wait for changes of.
    #[must_use]
    pub fn watch_forward(&self) -> watch::Receiver<ForwardStatus> {
        self.forward.clone()
    }
}

#[cfg(test)]
mod tests;
