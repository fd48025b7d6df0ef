//! The service's configuration: defaults in code, then a TOML file, then `PASS_STATE__GRPC__LISTEN=…`.
//!
//! `pass-state.example.toml` shows every key; a test keeps it equal to the defaults here.

use std::net::SocketAddr;

use serde::{Deserialize, Deserializer, Serialize};
use service_kit::config::{ByteSize, Duration, Faults, Sources, Validate, load_table};
use service_kit::grpc::GrpcLimits;
use service_kit::reload::ReloadConfig;
use service_kit::telemetry::TelemetryConfig;
use service_kit::tls::TlsServerConfig;

mod auth;
mod store;

pub use auth::{AuthConfig, Openness};
pub use store::{Backend, Migrations, PostgresConfig, StoreConfig};

/// Prefix of the environment variables that set keys.
pub const ENV_PREFIX: &str = "PASS_STATE";
/// The service's name in logs, traces and `/version`.
pub const SERVICE_NAME: &str = "pass-state";

/// Configuration of one pass-state. No `PartialEq`: it may hold a secret.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Time between readiness off and refusing new connections at the end, up to 60 s. Default 1 s.
    pub drain_delay: Duration,
    /// Where gateways and clients connect.
    pub grpc: GrpcConfig,
    /// Who may call.
    pub auth: AuthConfig,
    /// Health and version over HTTP.
    pub admin: AdminConfig,
    /// The database.
    pub store: StoreConfig,
    /// Streams from gateways.
    pub ingest: IngestConfig,
    /// The one writer.
    pub writer: WriterConfig,
    /// Streams to clients.
    pub subscriptions: SubscriptionConfig,
    /// Unary reads.
    pub reads: ReadConfig,
    /// How changed files are taken in.
    pub reload: ReloadConfig,
    /// Logs and traces.
    #[serde(deserialize_with = "telemetry")]
    pub telemetry: TelemetryConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            drain_delay: Duration::from_secs(1),
            grpc: GrpcConfig::default(),
            auth: AuthConfig::default(),
            admin: AdminConfig::default(),
            store: StoreConfig::default(),
            ingest: IngestConfig::default(),
            writer: WriterConfig::default(),
            subscriptions: SubscriptionConfig::default(),
            reads: ReadConfig::default(),
            reload: ReloadConfig::default(),
            telemetry: TelemetryConfig::of(SERVICE_NAME),
        }
    }
}

fn telemetry<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TelemetryConfig, D::Error> {
    TelemetryConfig::read_of(SERVICE_NAME, deserializer)
}

/// Where gateways and clients connect.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GrpcConfig {
    /// Address and port. Default 127.0.0.1:50051. Where other machines can reach it, TLS and authentication are
    /// required.
    pub listen: SocketAddr,
    /// TLS; absent: plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsServerConfig>,
    /// Where health alone is served, in plaintext: for probes that know no TLS. It knows the services `liveness`
    /// (serving as long as the process works) and `readiness`, also as the empty name. Default nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health_listen: Option<SocketAddr>,
    /// Allows other machines in without TLS or without authentication; then the log and GetLogInfo say so.
    /// Default false.
    pub insecure: bool,
    /// Whether clients may ask for the protos (reflection v1 and v1alpha). Default true.
    pub reflection: bool,
    /// Encoded bytes of one answer, 1 MiB to 64 MiB. Default 4 MiB, the most that clients take by default.
    pub answer_bytes_max: ByteSize,
    /// Limits of connections and calls.
    pub limits: GrpcLimits,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 50051).into(),
            tls: None,
            health_listen: None,
            insecure: false,
            reflection: true,
            answer_bytes_max: ByteSize::from_mib(4),
            limits: GrpcLimits::default(),
        }
    }
}

impl Validate for GrpcConfig {
    fn validate(&self, faults: &mut Faults) {
        if let Some(tls) = &self.tls {
            faults.part("tls", tls);
        }
        faults.in_range(
            "answer_bytes_max",
            self.answer_bytes_max,
            ByteSize::from_mib(1)..=ByteSize::from_mib(64),
        );
        faults.part("limits", &self.limits);
    }
}

/// Health and version over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdminConfig {
    /// Address and port. Default 127.0.0.1:8082.
    pub listen: SocketAddr,
    /// TLS; absent: plaintext.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsServerConfig>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8082).into(),
            tls: None,
        }
    }
}

impl AdminConfig {
    /// Loads this table alone, to ask a running service. The rest of the file, and the files that it names, are for a
    /// next start and may not be fit for one.
    ///
    /// # Errors
    /// Every fault found in the table, or the one of a file that is no TOML.
    pub fn load(from: &Sources) -> Result<Self, Faults> {
        load_table(from, "admin", "PASS_STATE__ADMIN")
    }

    /// Whether other machines can reach it without TLS. That is allowed, since probes and scrapers have neither
    /// certificates nor tokens, and it is told.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.tls.is_none() && !self.listen.ip().is_loopback()
    }
}

impl Validate for AdminConfig {
    fn validate(&self, faults: &mut Faults) {
        if let Some(tls) = &self.tls {
            faults.part("tls", tls);
        }
    }
}

/// Streams from gateways.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngestConfig {
    /// Largest body that a gateway may be configured to accept, 1 KiB to 8 MiB. Default 1 MiB. One message
    /// may have twice that and 64 KiB more.
    pub body_bytes_max: ByteSize,
    /// Deliveries of one stream that may be unacknowledged, 1 to 65,536. Default 4,096.
    pub window_deliveries: u32,
    /// Bytes of deliveries of one stream that may be unacknowledged, 1 MiB to 256 MiB. Default 8 MiB.
    pub window_bytes: ByteSize,
    /// Streams open at once, 1 to 1,024. Default 64: with the window it bounds their memory.
    pub streams_max: usize,
    /// Age at which a stream is asked to reconnect, 1 s to 24 h, less up to a tenth. Default 30 min.
    pub stream_age_max: Duration,
    /// Time for a gateway's first message, 100 ms to 60 s. Default 10 s.
    pub hello_timeout: Duration,
    /// Time for a gateway to decode a delivery again, 10 ms to 60 s. Default 3 s: shorter than a call's.
    pub redecode_timeout: Duration,
}

impl Default for IngestConfig {
    fn default() -> Self {
        Self {
            body_bytes_max: ByteSize::from_mib(1),
            window_deliveries: 4_096,
            window_bytes: ByteSize::from_mib(8),
            streams_max: 64,
            stream_age_max: Duration::from_mins(30),
            hello_timeout: Duration::from_secs(10),
            redecode_timeout: Duration::from_secs(3),
        }
    }
}

impl IngestConfig {
    /// Most encoded bytes of one message on the stream.
    #[must_use]
    pub fn message_bytes_max(&self) -> usize {
        message_bytes(self.body_bytes_max.as_usize())
    }
}

/// Encoded bytes that a message must be allowed to have, so that a delivery with such a body always fits.
#[must_use]
pub fn message_bytes(body_bytes: usize) -> usize {
    body_bytes.saturating_mul(2).saturating_add(64 << 10)
}

impl Validate for IngestConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range(
            "body_bytes_max",
            self.body_bytes_max,
            ByteSize::from_kib(1)..=ByteSize::from_mib(8),
        );
        faults.in_range("window_deliveries", self.window_deliveries, 1..=65_536);
        faults.in_range(
            "window_bytes",
            self.window_bytes,
            ByteSize::from_mib(1)..=ByteSize::from_mib(256),
        );
        faults.in_range("streams_max", self.streams_max, 1..=1024);
        faults.in_range(
            "stream_age_max",
            self.stream_age_max,
            Duration::from_secs(1)..=Duration::from_hours(24),
        );
        faults.in_range(
            "hello_timeout",
            self.hello_timeout,
            Duration::from_millis(100)..=Duration::from_secs(60),
        );
        faults.in_range(
            "redecode_timeout",
            self.redecode_timeout,
            Duration::from_millis(10)..=Duration::from_secs(60),
        );
    }
}

/// The one writer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct WriterConfig {
    /// Deliveries in one transaction, 1 to 16,384. Default 1,024. Also the most in one batch of a gateway.
    pub batch_deliveries_max: usize,
    /// Bytes of deliveries in one transaction, 64 KiB to 64 MiB. Default 4 MiB.
    pub batch_bytes_max: ByteSize,
    /// Batches of gateways that wait for the writer, 1 to 4,096. Default 256; past it streams wait.
    pub queue_max: usize,
    /// Plants a bug: acknowledges before the commit.
    #[cfg(feature = "planted-bugs")]
    pub planted_ack_before_commit: bool,
}

impl Default for WriterConfig {
    fn default() -> Self {
        Self {
            batch_deliveries_max: 1_024,
            batch_bytes_max: ByteSize::from_mib(4),
            queue_max: 256,
            #[cfg(feature = "planted-bugs")]
            planted_ack_before_commit: false,
        }
    }
}

impl Validate for WriterConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range(
            "batch_deliveries_max",
            self.batch_deliveries_max,
            1..=16_384,
        );
        faults.in_range(
            "batch_bytes_max",
            self.batch_bytes_max,
            ByteSize::from_kib(64)..=ByteSize::from_mib(64),
        );
        faults.in_range("queue_max", self.queue_max, 1..=4096);
    }
}

/// Streams to clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SubscriptionConfig {
    /// Subscribers at once, 1 to 65,536. Default 1,000.
    pub subscribers_max: usize,
    /// Newest events kept in memory for all live subscribers, 64 to 1,048,576. Default 16,384.
    pub ring_events_max: usize,
    /// Bytes of those events, 1 MiB to 1 GiB. Default 16 MiB.
    pub ring_bytes_max: ByteSize,
    /// Encoded bytes of one frame, 4 KiB to 1 MiB. Default 128 KiB. Two frames may wait for a client.
    pub frame_bytes_max: ByteSize,
    /// Most events that are read at a time while a subscriber catches up, 16 to 8,192. Default 1,024; fewer
    /// where events are large.
    pub page_events: u32,
    /// Events that may be passed over while catching up before a bookmark tells of it, 1,000 to 1,000,000.
    /// Default 10,000.
    pub bookmark_events: u64,
    /// Time without progress after which a subscriber is cut, 100 ms to 10 min. Default 30 s.
    pub stall_timeout: Duration,
    /// Age at which a stream is asked to reconnect, 1 s to 24 h, less up to a tenth. Default 30 min.
    pub stream_age_max: Duration,
    /// How often the log's end is looked up while it moves, 10 ms to 10 s. Default 250 ms. Commits of this
    /// process are seen at once; this is for those of others.
    pub poll_interval: Duration,
    /// The same while it rests, 10 ms to 60 s. Default 1 s.
    pub poll_interval_idle: Duration,
}

impl Default for SubscriptionConfig {
    fn default() -> Self {
        Self {
            subscribers_max: 1_000,
            ring_events_max: 16_384,
            ring_bytes_max: ByteSize::from_mib(16),
            frame_bytes_max: ByteSize::from_kib(128),
            page_events: 1_024,
            bookmark_events: 10_000,
            stall_timeout: Duration::from_secs(30),
            stream_age_max: Duration::from_mins(30),
            poll_interval: Duration::from_millis(250),
            poll_interval_idle: Duration::from_secs(1),
        }
    }
}

impl Validate for SubscriptionConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range("subscribers_max", self.subscribers_max, 1..=65_536);
        faults.in_range("ring_events_max", self.ring_events_max, 64..=1_048_576);
        faults.in_range(
            "ring_bytes_max",
            self.ring_bytes_max,
            ByteSize::from_mib(1)..=ByteSize::from_gib(1),
        );
        faults.in_range(
            "frame_bytes_max",
            self.frame_bytes_max,
            ByteSize::from_kib(4)..=ByteSize::from_mib(1),
        );
        faults.in_range("page_events", self.page_events, 16..=8_192);
        faults.in_range("bookmark_events", self.bookmark_events, 1_000..=1_000_000);
        faults.in_range(
            "stall_timeout",
            self.stall_timeout,
            Duration::from_millis(100)..=Duration::from_mins(10),
        );
        faults.in_range(
            "stream_age_max",
            self.stream_age_max,
            Duration::from_secs(1)..=Duration::from_hours(24),
        );
        faults.in_range(
            "poll_interval",
            self.poll_interval,
            Duration::from_millis(10)..=Duration::from_secs(10),
        );
        faults.in_range(
            "poll_interval_idle",
            self.poll_interval_idle,
            Duration::from_millis(10)..=Duration::from_secs(60),
        );
    }
}

/// Unary reads. Their deadline is `grpc.limits.request_timeout`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadConfig {
    /// Rows that one list call may examine, 500 to 100,000. Default 5,000; a page gets short at it.
    pub rows_examined_max: u32,
    /// How long a read waits for its `min_cursor`, up to 10 s. Default 2 s.
    pub min_cursor_wait: Duration,
}

impl Default for ReadConfig {
    fn default() -> Self {
        Self {
            rows_examined_max: 5_000,
            min_cursor_wait: Duration::from_secs(2),
        }
    }
}

impl Validate for ReadConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range("rows_examined_max", self.rows_examined_max, 500..=100_000);
        faults.in_range(
            "min_cursor_wait",
            self.min_cursor_wait,
            Duration::from_millis(0)..=Duration::from_secs(10),
        );
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range(
            "drain_delay",
            self.drain_delay,
            Duration::default()..=Duration::from_secs(60),
        );
        faults.part("grpc", &self.grpc);
        faults.part("admin", &self.admin);
        faults.part("auth", &self.auth);
        self.validate_exposure(faults);
        faults.part("store", &self.store);
        faults.part("ingest", &self.ingest);
        let deadline = self.grpc.limits.request_timeout;
        if self.ingest.redecode_timeout >= deadline {
            faults.invalid(
                "ingest.redecode_timeout",
                format!(
                    "{} is not shorter than the {deadline} of a call",
                    self.ingest.redecode_timeout
                ),
                "less than grpc.limits.request_timeout",
                "lower it, or raise grpc.limits.request_timeout",
            );
        }
        faults.part("writer", &self.writer);
        faults.part("subscriptions", &self.subscriptions);
        faults.part("reads", &self.reads);
        faults.part("reload", &self.reload);
        faults.part("telemetry", &self.telemetry);
    }
}

/// What may be left open of gRPC, and the key that closes it.
const EXPOSURES: [(&str, &str, &str); 2] = [
    ("PLAINTEXT", "without TLS", "[grpc.tls]"),
    (
        "UNAUTHENTICATED",
        "without authentication",
        "auth.principals_file",
    ),
];

impl Config {
    /// What is left open to other machines, by the words of GetLogInfo; nothing on loopback.
    #[must_use]
    pub fn exposures(&self) -> Vec<&'static str> {
        let mut open = self.grpc_exposures();
        if self.admin.is_exposed() {
            open.push("ADMIN_PLAINTEXT");
        }
        open
    }

    /// What is left open of gRPC, which has to be spelled out.
    pub(crate) fn grpc_exposures(&self) -> Vec<&'static str> {
        let closed = [self.grpc.tls.is_some(), self.auth.principals_file.is_some()];
        let reachable = !self.grpc.listen.ip().is_loopback();
        (EXPOSURES.iter().zip(closed))
            .filter(|(_, closed)| reachable && !closed)
            .map(|((word, ..), _)| *word)
            .collect()
    }

    fn validate_exposure(&self, faults: &mut Faults) {
        let open = self.grpc_exposures();
        if open.is_empty() || self.grpc.insecure {
            return;
        }
        let open = EXPOSURES.iter().filter(|(word, ..)| open.contains(word));
        let (what, keys): (Vec<&str>, Vec<&str>) = open.map(|(_, what, key)| (*what, *key)).unzip();
        faults.invalid(
            "grpc.listen",
            format!(
                "other machines can reach {} {}",
                self.grpc.listen,
                what.join(" and ")
            ),
            "a loopback address, or TLS and authentication",
            format!(
                "set {}, or spell out grpc.insecure = true",
                keys.join(" and ")
            ),
        );
    }
}

#[cfg(test)]
mod tests;
