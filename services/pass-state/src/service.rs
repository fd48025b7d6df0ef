//! The service as a whole: what is built from a configuration, and what runs until it is told to stop.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pass_proto::v1::delivery_service_server::DeliveryServiceServer;
use pass_proto::v1::ingest_service_server::IngestServiceServer;
use pass_proto::v1::pass_service_server::PassServiceServer;
use pass_proto::v1::subscription_service_server::SubscriptionServiceServer;
use pass_store::sql::{SqlStore, SqliteOptions};
use pass_store::{self as store, PassStore};
use service_kit::admin::{self, Readiness};
use service_kit::clock::Clock;
use service_kit::grpc::{self, GrpcListener};
use service_kit::listener::HttpListener;
use service_kit::shutdown::{Phase, Shutdown};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService as _;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;

use crate::config::{Config, Migrations, SERVICE_NAME};
use crate::grpc::delivery::DeliveryApi;
use crate::grpc::ingest::IngestApi;
use crate::grpc::pass::PassApi;
use crate::grpc::subscription::SubscriptionApi;
use crate::health::StoreHealth;
use crate::ingest::Ingest;
use crate::ingest::gateways::Gateways;
use crate::query::Reader;
use crate::query::mask::MessageTypes;
use crate::tail::Tail;
use crate::tail::subscription::Subscriptions;
use crate::tasks::Tasks;
use crate::writer::{Writer, writer};

/// Most bytes of a request other than an ingest message.
const REQUEST_BYTES_MAX: usize = 1 << 20;
/// How much longer the transport waits than a call's own deadline, which answers better.
const DEADLINE_SLACK: Duration = Duration::from_secs(1);

/// What pass-state needs from outside.
#[derive(Clone)]
pub struct Dependencies {
    /// The store; `None` opens the configured one. Its `close` is called at the end either way.
    pub store: Option<Arc<dyn PassStore>>,
    /// The wall clock: record times, bookmarks.
    pub clock: Arc<dyn Clock>,
    /// The directory under which the database lies unless its own path is configured.
    pub data_dir: PathBuf,
}

/// Why a pass-state could not be built. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store can't be opened; the error says what to do.
    #[error("store at {path} can't be opened")]
    Store {
        /// The database's file.
        path: PathBuf,
        /// Why.
        source: store::Error,
    },
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

/// A pass-state that is bound and has its store open; callers already queue.
pub struct PassState {
    config: Config,
    clock: Arc<dyn Clock>,
    store: Arc<dyn PassStore>,
    fatal: watch::Receiver<Option<String>>,
    grpc: GrpcListener,
    admin: HttpListener,
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
    /// Binds the listeners (port 0 takes a free one) and opens the store.
    ///
    /// # Errors
    /// If an address is taken, or the store is unfit or busy.
    pub async fn build(config: Config, dependencies: Dependencies) -> Result<Self, BuildError> {
        let addr = config.grpc.listen;
        let grpc = GrpcListener::bind(addr, config.grpc.limits.clone())
            .await
            .map_err(|source| BuildError::Bind {
                key: "grpc.listen",
                addr,
                source,
            })?;
        let addr = config.admin.listen;
        let admin = HttpListener::bind(addr, admin::limits())
            .await
            .map_err(|source| BuildError::Bind {
                key: "admin.listen",
                addr,
                source,
            })?;
        let (store, fatal) = match dependencies.store {
            // A store that was passed in has nobody to tell that it is beyond help.
            Some(store) => (store, watch::channel(None).1),
            None => {
                let store = open(&config, &dependencies.data_dir).await?;
                let fatal = store.fatal();
                (Arc::new(store) as Arc<dyn PassStore>, fatal)
            }
        };
        Ok(Self {
            config,
            clock: dependencies.clock,
            store,
            fatal,
            grpc,
            admin,
        })
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

    /// Brings the database's schema up to date, and ends.
    ///
    /// # Errors
    /// If the store can't be opened.
    pub async fn migrate(config: &Config, data_dir: &Path) -> Result<(), BuildError> {
        let mut config = config.clone();
        config.store.migrations = Migrations::Auto;
        open(&config, data_dir).await?.close().await;
        Ok(())
    }

    /// Serves until `shutdown` stops, then finishes what was accepted. Returns when no task of it runs any
    /// more and the store is closed.
    ///
    /// An abort skips the waiting. The listeners go first: streams see the stop, finish and end; then the streams' tasks, then the
    /// writer behind them, then the tail, then the store.
    ///
    /// # Errors
    /// If the store or a listener fails for good.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), RunError> {
        let readiness = Readiness::new(shutdown.clone());
        let health = Arc::new(StoreHealth::new(readiness.register("store")));
        let tail = tail(&self.store, &health, &self.config, &shutdown).await;
        let Some(tail) = tail else {
            self.store.close().await;
            return Ok(());
        };
        let (writer, task) = writer(
            Arc::clone(&self.store),
            Arc::clone(&tail),
            Arc::clone(&health),
            Arc::clone(&self.clock),
            self.config.writer.clone(),
        );
        let (stop_writer, stop_tail) = (CancellationToken::new(), CancellationToken::new());
        let mut writing = tokio::spawn(task.run(stop_writer.clone()));
        let mut tailing = tokio::spawn(Arc::clone(&tail).run(writer.clone(), stop_tail.clone()));

        let streams = Tasks::new();
        let mut reporter = HealthReporter::new();
        let routes = self.routes(&shutdown, &tail, &writer, &streams, &reporter);
        let limits = &self.config.grpc.limits;
        let server = grpc::server(limits)
            .timeout(limits.request_timeout.get() + DEADLINE_SLACK)
            .add_routes(routes);
        let serving = Box::pin(self.grpc.serve(server, shutdown.clone()));
        let version = admin::Version {
            service: SERVICE_NAME,
            version: env!("CARGO_PKG_VERSION"),
        };
        let admin = admin::router(readiness.clone(), version);
        let administering = tokio::spawn(self.admin.serve(admin, shutdown.clone()));
        tracing::info!("pass-state serves");

        let mut fatal = self.fatal;
        let mut result = Ok(());
        {
            let mut serving = serving;
            let following = grpc::follow_readiness(reporter.clone(), readiness, &SERVICES);
            let mut following = Box::pin(following);
            let mut clearing = false;
            loop {
                tokio::select! {
                    served = &mut serving => {
                        result = result.and(served.map_err(RunError::from));
                        break;
                    }
                    () = &mut following, if !clearing => {}
                    () = shutdown.stopping(), if !clearing => {
                        clearing = true;
                        // Ends the streams of those who watch the health.
                        for service in SERVICES.iter().chain([&""]) {
                            reporter.clear_service_status(service).await;
                        }
                    }
                    reason = broken(&mut fatal), if result.is_ok() => {
                        tracing::error!(reason, "the store must not be used any more; the service ends");
                        result = Err(RunError::StoreFatal(reason));
                        shutdown.advance(Phase::Stopping);
                    }
                    _ = &mut writing, if result.is_ok() => {
                        result = Err(RunError::Task("writer"));
                        shutdown.advance(Phase::Stopping);
                    }
                    _ = &mut tailing, if result.is_ok() => {
                        result = Err(RunError::Task("tail"));
                        shutdown.advance(Phase::Stopping);
                    }
                }
            }
        }
        shutdown.advance(Phase::Stopping);
        let finishing = async {
            streams.ended().await;
            stop_writer.cancel();
            stop_tail.cancel();
            for (name, task) in [("writer", &mut writing), ("tail", &mut tailing)] {
                // One that ended by itself was asked above.
                if result.is_ok() || !task.is_finished() {
                    let ended = task.await;
                    result = std::mem::replace(&mut result, Ok(()))
                        .and(ended.map_err(|_| RunError::Task(name)));
                }
            }
        };
        let cut = tokio::select! {
            () = finishing => false,
            () = shutdown.aborting() => true,
        };
        if cut {
            tracing::warn!("cut what was not finished; it was not acknowledged");
            writing.abort();
            tailing.abort();
        }
        let ended = administering.await;
        result = result.and(ended.map_err(|_| RunError::Task("admin")));
        self.store.close().await;
        tracing::info!("pass-state has ended");
        result
    }

    fn routes(
        &self,
        shutdown: &Shutdown,
        tail: &Arc<Tail>,
        writer: &Writer,
        streams: &Tasks,
        reporter: &HealthReporter,
    ) -> Routes {
        let config = &self.config;
        let types = MessageTypes::new(pass_proto::DESCRIPTORS);
        let gateways = Arc::new(Gateways::default());
        let deadline = config.grpc.limits.request_timeout.get();
        let answer_bytes_max = config.grpc.answer_bytes_max.as_usize();
        let reader = Reader {
            store: Arc::clone(&self.store),
            tail: Arc::clone(tail),
            config: config.reads.clone(),
            answer_bytes_max,
        };
        let ingest = IngestApi {
            ingest: Ingest {
                writer: writer.clone(),
                tail: Arc::clone(tail),
                gateways: Arc::clone(&gateways),
                clock: Arc::clone(&self.clock),
                shutdown: shutdown.clone(),
                config: config.ingest.clone(),
                writer_config: config.writer.clone(),
            },
            tasks: streams.clone(),
            places: Arc::new(Semaphore::new(config.ingest.streams_max)),
        };
        let subscription = SubscriptionApi {
            subscriptions: Subscriptions {
                store: Arc::clone(&self.store),
                tail: Arc::clone(tail),
                clock: Arc::clone(&self.clock),
                shutdown: shutdown.clone(),
            },
            types: Arc::clone(&types),
            tasks: streams.clone(),
            deadline,
            stream_age_max: config.subscriptions.stream_age_max.get(),
        };
        let pass = PassApi {
            reader: reader.clone(),
            types: Arc::clone(&types),
            deadline,
        };
        let delivery = DeliveryApi {
            reader,
            writer: writer.clone(),
            gateways,
            types,
            deadline,
            redecode_timeout: config.ingest.redecode_timeout.get(),
        };
        let health = tonic_health::server::HealthService::from_health_reporter(reporter.clone());
        let mut routes = Routes::builder();
        routes
            .add_service(
                IngestServiceServer::new(ingest)
                    .max_decoding_message_size(config.ingest.message_bytes_max())
                    .max_encoding_message_size(config.ingest.message_bytes_max()),
            )
            .add_service(
                SubscriptionServiceServer::new(subscription)
                    .max_decoding_message_size(REQUEST_BYTES_MAX)
                    .max_encoding_message_size(answer_bytes_max),
            )
            .add_service(
                PassServiceServer::new(pass)
                    .max_decoding_message_size(REQUEST_BYTES_MAX)
                    .max_encoding_message_size(answer_bytes_max),
            )
            .add_service(
                // One delivery with its body must fit whatever the limit for lists is.
                DeliveryServiceServer::new(delivery)
                    .max_decoding_message_size(REQUEST_BYTES_MAX)
                    .max_encoding_message_size(
                        answer_bytes_max.max(config.ingest.message_bytes_max()),
                    ),
            )
            .add_service(tonic_health::pb::health_server::HealthServer::new(health));
        if config.grpc.reflection {
            let builder = || {
                tonic_reflection::server::Builder::configure()
                    .register_encoded_file_descriptor_set(pass_proto::DESCRIPTORS)
                    .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                    // So that grpcurl shows an error's details in words.
                    .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            };
            let compiled_in = "the descriptor sets are compiled in";
            routes
                .add_service(builder().build_v1().expect(compiled_in))
                .add_service(builder().build_v1alpha().expect(compiled_in));
        }
        routes.routes()
    }
}

/// The services whose health is told.
const SERVICES: [&str; 4] = [
    IngestServiceServer::<IngestApi>::NAME,
    SubscriptionServiceServer::<SubscriptionApi>::NAME,
    PassServiceServer::<PassApi>::NAME,
    DeliveryServiceServer::<DeliveryApi>::NAME,
];

async fn open(config: &Config, data_dir: &Path) -> Result<SqlStore, BuildError> {
    let path = config.store.path(data_dir);
    let options = SqliteOptions {
        migrate: config.store.migrations == Migrations::Auto,
        ..SqliteOptions::new(&path)
    };
    SqlStore::open(options)
        .await
        .map_err(|source| BuildError::Store { path, source })
}

/// Waits until the store is beyond help, and says why.
async fn broken(fatal: &mut watch::Receiver<Option<String>>) -> String {
    let reason = fatal
        .wait_for(Option::is_some)
        .await
        .ok()
        .map(|reason| reason.clone());
    match reason {
        Some(reason) => reason.unwrap_or_default(),
        // The store was given from outside and tells nothing.
        None => std::future::pending().await,
    }
}

/// Starts at the log's end; tries again while the store is away. `None` if told to stop meanwhile.
async fn tail(
    store: &Arc<dyn PassStore>,
    health: &Arc<StoreHealth>,
    config: &Config,
    shutdown: &Shutdown,
) -> Option<Arc<Tail>> {
    loop {
        let started = Tail::new(
            Arc::clone(store),
            Arc::clone(health),
            config.subscriptions.clone(),
        );
        match started.await {
            Ok(tail) => return Some(tail),
            Err(error) => {
                tracing::warn!(error = %error, "the log's end cannot be looked up; trying again");
                health.failed("reading failed");
            }
        }
        tokio::select! {
            () = shutdown.stopping() => return None,
            () = tokio::time::sleep(config.subscriptions.poll_interval_idle.get()) => {}
        }
    }
}
