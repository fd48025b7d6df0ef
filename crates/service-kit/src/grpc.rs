//! The gRPC edge: a tonic server with limits, health that follows readiness,
//! and a channel over all replicas of a server ([`Channel`]).
//!
//! Three things of the server are not plain tonic settings:
//!
//! - **Connections** are accepted by [`GrpcListener`], which caps their number,
//!   closes one that has not sent the HTTP/2 preface in time (tonic would hold
//!   it for ever) or has had no call authorized in time
//!   ([`GrpcListener::close_unauthorized_after`]), and can cut all of them when a
//!   drain takes too long.
//! - **Age**: [`server`] gives tonic only `connection_age_max`, at which it sends
//!   GOAWAY; the cut after `connection_grace` happens in our socket. With both
//!   settings tonic 0.14 skips the GOAWAY and only cuts.
//! - **Concurrency per connection** counts calls until the *head* of their
//!   answer, not until the end of a stream, because tower's limit releases its
//!   place when the handler's future completes. So long-lived streams do not
//!   eat it up, as long as a streaming handler returns its stream at once and
//!   works inside it. Open streams are bounded by `streams_max`. Over the
//!   limit a call gets RESOURCE_EXHAUSTED at once.
//!
//! `request_timeout` likewise bounds a handler until the head of its answer
//! (a shorter deadline of the client wins); streams need watchdogs of their
//! own.

use serde::{Deserialize, Serialize};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::admin::Readiness;
use crate::config::{ByteSize, Duration, Faults, Validate};

mod channel;
mod listener;

pub use channel::{
    Channel, ChannelConfig, Credentials, EndpointError, Endpoints, Resolve, SystemResolver, Token,
    TokenSource, channel,
};
pub use listener::{Connection, GrpcListener, Peer};

/// Limits of a gRPC server. Every key has a default and a ceiling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrpcLimits {
    /// Connections open at once, 1 to 65,536. Default 1,024. Over it, callers
    /// wait in the kernel's backlog.
    pub connections_max: usize,
    /// Streams open at once per connection, 1 to 4,096. Default 128.
    pub streams_max: u32,
    /// Calls per connection whose answer has not begun, 1 to 4,096. Default 64;
    /// over it RESOURCE_EXHAUSTED.
    pub concurrency_max: usize,
    /// Time until an answer begins, up to 5 min. Default 5 s.
    pub request_timeout: Duration,
    /// Time for the HTTP/2 preface of a new connection, up to 60 s. Default 5 s.
    pub preface_timeout: Duration,
    /// How often a connection is pinged, 1 s to 10 min. Default 20 s.
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping, up to 1 min. Default 10 s.
    pub keepalive_timeout: Duration,
    /// Age at which a connection gets GOAWAY, up to 24 h. Default 30 min.
    pub connection_age_max: Duration,
    /// Time after `connection_age_max` until it is cut, up to 10 min, if its
    /// streams take no longer: pass-state gives them the time to reach their own
    /// age. Default 60 s.
    pub connection_grace: Duration,
    /// Size of a request's headers, 4 KiB to 256 KiB. Default 16 KiB.
    pub header_bytes_max: ByteSize,
    /// Streams a client reset before they were accepted, until GOAWAY, 1 to
    /// 1,024. Default 20.
    pub pending_resets_max: usize,
    /// Streams this side reset for errors in a connection's life, until it ends the
    /// connection, 1 to 4,096. Default 128. A frame for a call that was answered
    /// more than a moment before counts, too; so hundreds of refused calls
    /// in a burst cost a connection, which the client then opens anew.
    pub error_resets_max: usize,
    /// Time for calls in flight once stopping has begun, up to 5 min.
    /// Default 8 s. It is one part of the time that a process takes to end.
    pub drain_timeout: Duration,
}

impl Default for GrpcLimits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            streams_max: 128,
            concurrency_max: 64,
            request_timeout: Duration::from_secs(5),
            preface_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            connection_age_max: Duration::from_mins(30),
            connection_grace: Duration::from_secs(60),
            header_bytes_max: ByteSize::from_kib(16),
            pending_resets_max: 20,
            error_resets_max: 128,
            drain_timeout: Duration::from_secs(8),
        }
    }
}

impl Validate for GrpcLimits {
    fn validate(&self, faults: &mut Faults) {
        let least = Duration::from_millis(1);
        faults.in_range("connections_max", self.connections_max, 1..=65_536);
        faults.in_range("streams_max", self.streams_max, 1..=4096);
        faults.in_range("concurrency_max", self.concurrency_max, 1..=4096);
        faults.in_range(
            "request_timeout",
            self.request_timeout,
            least..=Duration::from_mins(5),
        );
        faults.in_range(
            "preface_timeout",
            self.preface_timeout,
            least..=Duration::from_secs(60),
        );
        faults.in_range(
            "keepalive_interval",
            self.keepalive_interval,
            Duration::from_secs(1)..=Duration::from_mins(10),
        );
        faults.in_range(
            "keepalive_timeout",
            self.keepalive_timeout,
            least..=Duration::from_mins(1),
        );
        faults.in_range(
            "connection_age_max",
            self.connection_age_max,
            least..=Duration::from_hours(24),
        );
        faults.in_range(
            "connection_grace",
            self.connection_grace,
            least..=Duration::from_mins(10),
        );
        faults.in_range(
            "header_bytes_max",
            self.header_bytes_max,
            ByteSize::from_kib(4)..=ByteSize::from_kib(256),
        );
        faults.in_range("pending_resets_max", self.pending_resets_max, 1..=1024);
        faults.in_range("error_resets_max", self.error_resets_max, 1..=4096);
        faults.in_range(
            "drain_timeout",
            self.drain_timeout,
            least..=Duration::from_mins(5),
        );
    }
}

/// Makes a tonic server with `limits`; serve it by [`GrpcListener::serve`],
/// which enforces those that tonic can't.
pub fn server(limits: &GrpcLimits) -> Server {
    Server::builder()
        .max_concurrent_streams(limits.streams_max)
        .concurrency_limit_per_connection(limits.concurrency_max)
        .load_shed(true)
        .timeout(limits.request_timeout.get())
        .http2_keepalive_interval(Some(limits.keepalive_interval.get()))
        .http2_keepalive_timeout(Some(limits.keepalive_timeout.get()))
        .max_connection_age(limits.connection_age_max.get())
        .http2_max_header_list_size(
            u32::try_from(limits.header_bytes_max.bytes()).unwrap_or(u32::MAX),
        )
        .http2_max_pending_accept_reset_streams(Some(limits.pending_resets_max))
        .http2_max_local_error_reset_streams(Some(limits.error_resets_max))
}

/// Keeps the health service in step with readiness, for the server as a whole
/// (the empty name) and for `services`. Runs for ever; the caller drops it.
pub async fn follow_readiness(
    reporter: HealthReporter,
    readiness: Readiness,
    services: &[&'static str],
) {
    loop {
        set_all(&reporter, services, ServingStatus::NotServing).await;
        readiness.ready().await;
        set_all(&reporter, services, ServingStatus::Serving).await;
        readiness.not_ready().await;
    }
}

async fn set_all(reporter: &HealthReporter, services: &[&'static str], status: ServingStatus) {
    for service in services.iter().chain([&""]) {
        reporter.set_service_status(*service, status).await;
    }
}
