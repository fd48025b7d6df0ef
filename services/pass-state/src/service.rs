//! The service as a whole: what is built from a configuration, and what runs until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pass_store::{self as store, PassStore};
use service_kit::admin::{self, Readiness, Version};
use service_kit::clock::Clock;
use service_kit::config::{self, Faults};
use service_kit::grpc::{self, GrpcLimits, GrpcListener};
use service_kit::listener::HttpListener;
use service_kit::metrics::rpc::RpcLayer;
use service_kit::metrics::{KeyValue, Metrics};
use service_kit::reload::{ConfigWatch, Reloads};
use service_kit::shutdown::{Phase, Shutdown};
use service_kit::telemetry;
use service_kit::tls::{self, Protocol, TlsServer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::access::layer::AccessLayer;
use crate::access::{Access, AuthFailures, PrincipalsReload};
use crate::config::{Config, SERVICE_NAME};
use crate::health::StoreHealth;
use crate::metrics::{self, Measures};
use crate::tasks::Tasks;

mod probes;
mod routes;
pub(crate) mod start;

use probes::Probes;
use routes::{Gate, SERVICES};
use start::{Engine, Opened, Opener, Source};

/// Which service this is, and which version.
const VERSION: Version = Version {
    service: SERVICE_NAME,
    version: env!("CARGO_PKG_VERSION"),
};
/// How much longer the transport waits than a call's own deadline, which answers better.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);
/// How long callers queue while the store is being opened; then, or once it is found to be away, they are told to come
/// again.
const QUEUE_TIME: Duration = Duration::from_secs(5);
/// Time for what was accepted to be recorded once no call is served any more: the writer's queue, and transactions that
/// a database does not answer. What is cut was not acknowledged, and comes again.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may be there before a call on it is authorized.
const UNAUTHORIZED_MAX: Duration = Duration::from_secs(30);
/// How much longer a connection may live than a stream on it, so that the stream can say that it ends.
const STREAM_SLACK: Duration = Duration::from_secs(5);

/// What pass-state needs from outside.
#[derive(Clone)]
pub struct Dependencies {
    /// The store; `None` opens the configured one. Its `close` is called at the end either way.
    pub store: Option<Arc<dyn PassStore>>,
    /// The wall clock: record times, bookmarks.
    pub clock: Arc<dyn Clock>,
    /// The directory under which an SQLite database lies unless its own path is configured.
    pub data_dir: PathBuf,
}

/// Why a pass-state could not be built. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A certificate or key can't be used.
    #[error("{0}")]
    Tls(Faults),
    /// The principals file can't be used.
    #[error("auth.principals_file can't be used")]
    Principals(#[source] Faults),
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
}

/// Why a pass-state stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store can't be opened, and waiting would not help; the error says what to do.
    #[error("the store {place} can't be opened")]
    Store {
        /// The database, without secrets.
        place: String,
        /// Why.
        source: store::Error,
    },
    /// The database must not be used any more by this process; only a new one can tell what is on the disk.
    #[error("store failed and needs a restart of the process: {0}")]
    StoreFatal(String),
    /// The gRPC listener failed.
    #[error("grpc listener failed")]
    Listener(#[from] tonic::transport::Error),
    /// A task panicked: our bug.
    #[error("task {0} ended unexpectedly")]
    Task(&'static str),
}

/// A pass-state that is bound; callers already queue.
pub struct PassState {
    config: Config,
    clock: Arc<dyn Clock>,
    source: Source,
    grpc: GrpcListener,
    admin: HttpListener,
    probes: Option<Probes>,
    access: Arc<Access>,
    reloads: Reloads,
    certificates: Vec<(&'static str, TlsServer)>,
    metrics: Metrics,
}

impl std::fmt::Debug for PassState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PassState")
            .field("grpc", &self.grpc_addr())
            .field("admin", &self.admin_addr())
            .finish_non_exhaustive()
    }
}

impl PassState {
    /// Binds the listeners (port 0 takes a free one). The store is opened by [`PassState::run`].
    ///
    /// # Errors
    /// If an address is taken, or a file that is named can't be used.
    pub async fn build(config: Config, dependencies: Dependencies) -> Result<Self, BuildError> {
        let access = Access::new(&config).map_err(BuildError::Principals)?;
        let mut reloads = Reloads::new(&config.reload);
        let metrics = Metrics::new(&config.telemetry, VERSION);
        if let Some(path) = config.auth.principals_file.clone() {
            let access = Arc::clone(&access);
            reloads.register("principals", PrincipalsReload { path, access });
        }
        let exposures = config.grpc_exposures();
        if !exposures.is_empty() {
            tracing::warn!(
                listen = %config.grpc.listen,
                insecure = exposures.join(", "),
                "gRPC is open to other machines, as grpc.insecure says"
            );
        }
        if config.admin.is_exposed() {
            tracing::warn!(
                listen = %config.admin.listen,
                "the admin listener is open to other machines without TLS: let only probes and scrapers reach it, or set [admin.tls]"
            );
        }
        if config.store.trusts_any_server() {
            tracing::warn!(
                "whoever is between this machine and the database can read and change everything: add \
                 sslmode=verify-full and sslrootcert=… to the URL in store.postgres.url"
            );
        }
        for tls in metrics.tls_clients() {
            reloads.register("telemetry.tls", tls);
        }
        let grpc_tls = tls::server("grpc.tls", config.grpc.tls.as_ref(), Protocol::Grpc);
        let grpc_tls = grpc_tls.map_err(BuildError::Tls)?;
        let admin_tls = tls::server("admin.tls", config.admin.tls.as_ref(), Protocol::Http);
        let admin_tls = admin_tls.map_err(BuildError::Tls)?;
        let mut certificates = Vec::new();
        for (name, key, tls) in [
            ("grpc", "grpc.tls", &grpc_tls),
            ("admin", "admin.tls", &admin_tls),
        ] {
            if let Some(tls) = tls {
                reloads.register(key, tls.clone());
                certificates.push((name, tls.clone()));
            }
        }
        let bound = |key, addr| move |source| BuildError::Bind { key, addr, source };
        let addr = config.grpc.listen;
        let grpc = GrpcListener::bind(addr, connection_limits(&config))
            .await
            .map_err(bound("grpc.listen", addr))?
            .with_tls(grpc_tls)
            .close_unauthorized_after(UNAUTHORIZED_MAX);
        let addr = config.admin.listen;
        let admin = HttpListener::bind(addr, admin::limits())
            .await
            .map_err(bound("admin.listen", addr))?
            .with_tls(admin_tls);
        let probes = match config.grpc.health_listen {
            Some(addr) => {
                let probes = Probes::bind(addr).await;
                Some(probes.map_err(bound("grpc.health_listen", addr))?)
            }
            None => None,
        };
        let source = match dependencies.store {
            Some(store) => Source::Open(Opened {
                store,
                // A store that was passed in has nobody to tell that it is beyond help.
                fatal: watch::channel(None).1,
            }),
            None => {
                let opener = Opener::new(&config.store, &dependencies.data_dir);
                Source::Closed(Box::new(opener))
            }
        };
        Ok(Self {
            config,
            clock: dependencies.clock,
            source,
            grpc,
            admin,
            probes,
            access,
            reloads,
            certificates,
            metrics,
        })
    }

    /// Watches the configuration that it was made from, if that is a file: a change that is broken is refused
    /// and told, of a good one a WARN names the keys, which wait for the next start.
    #[must_use]
    pub fn watching(mut self, from: &config::Sources) -> Self {
        if let Some(watch) = ConfigWatch::<Config>::new(from) {
            self.reloads.register("config", watch);
        }
        self
    }

    /// Where gRPC is served.
    #[must_use]
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.local_addr()
    }

    /// Where health and version are served.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.local_addr()
    }

    /// Where health alone is served, if anywhere.
    #[must_use]
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.probes.as_ref().map(Probes::local_addr)
    }

    /// The TLS of the listeners that have it, by name; clones tell at any time when the certificates expire.
    #[must_use]
    pub fn certificates(&self) -> &[(&'static str, TlsServer)] {
        &self.certificates
    }

    /// Calls that were refused for who makes them, counted; stays valid after the end.
    #[must_use]
    pub fn auth_failures(&self) -> Arc<AuthFailures> {
        self.access.failures()
    }

    /// Opens the store and serves until `shutdown` stops, then finishes what was accepted. Returns when no task of it
    /// runs any more and the store is closed.
    ///
    /// The admin listener and `health_listen` are served from the first moment, also while the schema is migrated. A
    /// PostgreSQL that is away, and a schema that somebody has yet to migrate, are waited for. Calls are served once
    /// the store is open; if that takes long, they are UNAVAILABLE until then. At the end the listeners go first:
    /// streams see the stop, finish and end; then the streams' tasks, then the writer behind them, then the tail, then
    /// the store. These have a time of their own, for a database that does not answer. An abort skips the waiting.
    ///
    /// # Errors
    /// If the store is unfit or, with SQLite, busy; if the store or a listener fails for good.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let metrics = self.metrics;
        let measures = Measures::new(&metrics);
        let readiness = Readiness::new(shutdown.clone());
        let health = Arc::new(StoreHealth::new(readiness.register("store")));
        let streams = Tasks::new();
        let mut reporter = HealthReporter::new();
        let gate = Gate::default();
        let limits = &self.config.grpc.limits;
        let server = grpc::server(limits)
            .timeout(limits.request_timeout.get() + DEADLINE_SLACK)
            .layer(RpcLayer::new(&metrics, routes::methods(&self.config)))
            .layer(AccessLayer(Arc::clone(&self.access)))
            .add_routes(routes::always(&self.config, &reporter, gate.clone()));
        let mut serving = Box::pin(self.grpc.serve(server, shutdown.clone()));
        metrics.observe_readiness(&readiness);
        metrics::observe(&metrics, &measures);
        metrics.observe_reloads(self.reloads.status());
        let failures = self.access.failures();
        metrics.counters(
            "passline.auth.failures",
            "{call}",
            "Calls without a valid identity, or without the scope.",
            move |seen| {
                for (reason, count) in failures.counts() {
                    seen.observe(count, &[KeyValue::new("reason", reason)]);
                }
            },
        );
        let certificates = self.certificates;
        tls::observe_handshakes(&metrics, certificates.clone());
        metrics.observe_certificates(move || {
            let expiry = |(listener, tls): &(&'static str, TlsServer)| (*listener, tls.expires());
            certificates.iter().map(expiry).collect::<Vec<_>>()
        });
        let admin = admin::router(readiness.clone(), VERSION)
            .merge(metrics.routes())
            .merge(telemetry::log_filter_routes());
        let administering = tokio::spawn(self.admin.serve(admin, shutdown.clone()));
        let reloading = tokio::spawn(self.reloads.run(shutdown.clone()));
        let probing = self.probes.map(|probes| probes.start(readiness.clone()));
        let stop_push = CancellationToken::new();
        let pushing = tokio::spawn(metrics.clone().push(stop_push.clone()));

        let mut queueing = true;
        let mut queued = Box::pin(tokio::time::sleep(QUEUE_TIME));
        let starting = start::start(
            self.source,
            &self.config,
            &health,
            &self.clock,
            &shutdown,
            &measures,
        );
        let mut starting = Some(Box::pin(starting));
        let mut engine: Option<Engine> = None;
        let mut result = Ok(());
        {
            let following = grpc::follow_readiness(reporter.clone(), readiness, &SERVICES);
            let mut following = Box::pin(following);
            let mut clearing = false;
            loop {
                tokio::select! {
                    () = &mut queued, if queueing => queueing = false,
                    () = health.found_away(), if queueing => queueing = false,
                    served = &mut serving, if !queueing => {
                        result = result.and(served.map_err(RunError::from));
                        break;
                    }
                    () = &mut following, if !clearing => {}
                    () = shutdown.stopping(), if !clearing => {
                        clearing = true;
                        queueing = false;
                        // Ends the streams of those who watch the health.
                        for service in SERVICES.iter().chain([&""]) {
                            reporter.clear_service_status(service).await;
                        }
                    }
                    started = started(&mut starting) => match started {
                        Ok(Some(started)) => {
                            let clock = &self.clock;
                            metrics::observe_store(&metrics, &measures, &started.store, &started.tail, &started.writer);
                            gate.open(routes::calls(&self.config, &started, clock, &shutdown, &streams, &measures));
                            engine = Some(started);
                            queueing = false;
                            health.has_read();
                            tracing::info!("pass-state serves");
                        }
                        Ok(None) => {}
                        Err(error) => {
                            result = Err(error);
                            shutdown.advance(Phase::Stopping);
                        }
                    },
                    error = broken(&mut engine), if result.is_ok() => {
                        result = Err(error);
                        shutdown.advance(Phase::Stopping);
                    }
                }
            }
        }
        shutdown.advance(Phase::Stopping);
        if starting.is_some() {
            // It sees the stop and ends; what it may have started by then is ended below.
            match started(&mut starting).await {
                Ok(late) => engine = late,
                Err(error) => result = result.and(Err(error)),
            }
        }
        if let Some(engine) = &mut engine {
            let finishing = tokio::time::timeout(FINISH_TIMEOUT, async {
                streams.ended().await;
                engine.finish().await
            });
            let finished = tokio::select! {
                finished = finishing => finished.ok(),
                () = shutdown.aborting() => None,
            };
            match finished {
                Some(finished) => result = result.and(finished),
                None => {
                    tracing::warn!("cut what was not finished; it was not acknowledged");
                    engine.abort();
                }
            }
        }
        let ended = administering.await;
        result = result.and(ended.map_err(|_| RunError::Task("admin")));
        let ended = reloading.await;
        result = result.and(ended.map_err(|_| RunError::Task("reload")));
        // Last, so that they tell how it ended, but while the books can be read.
        stop_push.cancel();
        let _ = pushing.await;
        if let Some(engine) = engine {
            start::close(&*engine.store).await;
        }
        if let Some(probing) = probing {
            probing.end().await;
        }
        tracing::info!("pass-state has ended");
        result
    }
}

/// The limits of connections. One at its age is asked to go and gets no new streams; it is cut only when
/// every stream on it has had the time to reach its own age, so that each ends with its place.
fn connection_limits(config: &Config) -> GrpcLimits {
    let limits = &config.grpc.limits;
    let stream_ages = [
        config.subscriptions.stream_age_max.get(),
        config.ingest.stream_age_max.get(),
    ];
    let grace = stream_ages
        .map(|age| age + STREAM_SLACK)
        .into_iter()
        .fold(limits.connection_grace.get(), Duration::max);
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    GrpcLimits {
        connection_grace: service_kit::config::Duration::from_millis(grace_ms),
        ..limits.clone()
    }
}

/// Waits for the start, once; for ever if there is none to wait for. Cancel safe.
async fn started<F>(starting: &mut Option<F>) -> F::Output
where
    F: Future + Unpin,
{
    match starting {
        Some(future) => {
            let output = future.await;
            *starting = None;
            output
        }
        None => std::future::pending().await,
    }
}

/// Waits until what runs on the store has broken, if anything runs.
async fn broken(engine: &mut Option<Engine>) -> RunError {
    match engine {
        Some(engine) => engine.broken().await,
        None => std::future::pending().await,
    }
}
