//! Health for probes that know no TLS, on a listener of its own.
//!
//! Two questions are told apart, because the answers to "no" are different: a process that does not live is
//! started anew, one that is not ready is left alone until it is.

use std::io;
use std::net::SocketAddr;

use service_kit::admin::Readiness;
use service_kit::config::Duration;
use service_kit::grpc::{self, GrpcLimits, GrpcListener};
use service_kit::shutdown::{Phase, Shutdown};
use tokio::task::JoinHandle;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// Serving as long as the process works.
const LIVENESS: &str = "liveness";
/// Serving while new work should be sent here; so is the empty name.
const READINESS: &str = "readiness";

/// The listener, bound.
pub(super) struct Probes {
    listener: GrpcListener,
    limits: GrpcLimits,
}

/// The listener at work.
pub(super) struct Probing {
    reporter: HealthReporter,
    shutdown: Shutdown,
    serving: JoinHandle<()>,
    following: JoinHandle<()>,
}

impl Probes {
    pub(super) async fn bind(addr: SocketAddr) -> io::Result<Self> {
        let limits = GrpcLimits {
            connections_max: 64,
            streams_max: 16,
            // Probes connect anew each time; who is not one of them holds a place for no longer than this.
            connection_age_max: Duration::from_secs(10),
            connection_grace: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(1),
            ..GrpcLimits::default()
        };
        let listener = GrpcListener::bind(addr, limits.clone()).await?;
        Ok(Self { listener, limits })
    }

    pub(super) fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves until [`Probing::end`], so that the process lives for its probes while it finishes its work.
    pub(super) fn start(self, readiness: Readiness) -> Probing {
        let (reporter, health) = tonic_health::server::health_reporter();
        let shutdown = Shutdown::new();
        let server = grpc::server(&self.limits).add_service(health);
        let listening = self.listener.serve(server, shutdown.clone());
        let serving = tokio::spawn(async move {
            if let Err(error) = listening.await {
                tracing::error!(error = %error, "the listener of grpc.health_listen failed");
            }
        });
        let following = tokio::spawn({
            let reporter = reporter.clone();
            async move {
                reporter
                    .set_service_status(LIVENESS, ServingStatus::Serving)
                    .await;
                grpc::follow_readiness(reporter, readiness, &[READINESS]).await;
            }
        });
        Probing {
            reporter,
            shutdown,
            serving,
            following,
        }
    }
}

impl Probing {
    /// Ends the listener and the streams of those who watch.
    pub(super) async fn end(mut self) {
        self.following.abort();
        for service in [LIVENESS, READINESS, ""] {
            self.reporter.clear_service_status(service).await;
        }
        self.shutdown.advance(Phase::Stopping);
        // How it ended was logged.
        let _ = self.serving.await;
    }
}
