//! The gateway's configuration. `webhook-gateway.example.toml` shows every key; a test keeps the two equal.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use http::HeaderName;
use ipnet::IpNet;
use pass_sources::SourceConfig;
use serde::{Deserialize, Deserializer};
use service_kit::config::{self, ByteSize, Duration, Faults, Origin, Validate};
use service_kit::grpc::{ChannelConfig, Credentials};
use service_kit::listener::HttpLimits;
use service_kit::reload::ReloadConfig;
use service_kit::telemetry::TelemetryConfig;
use service_kit::tls::TlsServerConfig;

use crate::backend;
use crate::limits::Proxies;
use crate::sources::Sources;

mod limits;
mod spool;

pub use limits::{FailedAuth, Rates};
pub use spool::{JetStream, Spool, SpoolBackend, SpoolSecret};

/// The service's name in traces and logs.
pub const SERVICE_NAME: &str = "webhook-gateway";
/// The prefix of environment variables that override keys: `GATEWAY__HTTP__LISTEN`.
pub const ENV_PREFIX: &str = "GATEWAY";
/// Most sources of one gateway; pass-state takes no longer list.
pub const SOURCES_MAX: usize = 1_000;
/// Most networks of trusted proxies.
const TRUSTED_PROXIES_MAX: usize = 256;

/// Everything that can be set.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct Config {
    /// The gateway's id in pass-state's logs, 1 to 128 bytes. Default `webhook-gateway`.
    pub gateway_id: String,
    /// Time between readiness off and refusing new connections at the end, up to 60 s. Default 1 s.
    pub drain_delay: Duration,
    /// Where callbacks come in, and their limits.
    pub http: Http,
    /// Where health and status are shown.
    pub admin: Admin,
    /// How pass-state is reached.
    pub pass_state: ChannelConfig,
    /// How the spool is forwarded to pass-state.
    pub forward: Forward,
    /// Where accepted deliveries are kept until pass-state has them.
    pub spool: Spool,
    /// What an answer of 200 waits for.
    pub ack: Ack,
    /// How changed files are taken in.
    pub reload: ReloadConfig,
    /// Logs and traces.
    #[serde(deserialize_with = "telemetry")]
    pub telemetry: TelemetryConfig,
    /// The connections to vendors, at most 1,000.
    pub sources: Vec<SourceConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            gateway_id: SERVICE_NAME.to_owned(),
            drain_delay: Duration::from_secs(1),
            http: Http::default(),
            admin: Admin::default(),
            pass_state: ChannelConfig::default(),
            forward: Forward::default(),
            spool: Spool::default(),
            ack: Ack::default(),
            reload: ReloadConfig::default(),
            telemetry: TelemetryConfig::of(SERVICE_NAME),
            sources: Vec::new(),
        }
    }
}

impl Config {
    /// Loads, checks, and resolves every secret once, so that a configuration that loads can be served.
    ///
    /// # Errors
    /// Every fault found: of keys, types and values, or else of the sources, or else of the spool's secrets.
    pub fn load(from: &config::Sources) -> Result<Self, Faults> {
        let config: Self = config::load(&keys_only(from))?;
        let origin = from.file.clone().map_or(Origin::Default, Origin::File);
        Credentials::load("pass_state", &config.pass_state, &from.env)
            .map_err(|faults| faults.with_origin(&origin))?;
        Sources::build(
            &config.sources,
            &config.ack,
            &config.http,
            &from.env,
            &origin,
        )?;
        if config.spool.backend == SpoolBackend::Jetstream {
            backend::login(&config.spool.jetstream, &from.env, &origin)?;
        }
        Ok(config)
    }

    /// Loads and checks what can be taken in while the gateway runs, and the rest without the files that it names.
    ///
    /// # Errors
    /// Every fault found of keys, types and values. Those of the sources show when they are built.
    pub(crate) fn load_live(from: &config::Sources) -> Result<Self, Faults> {
        config::load(&keys_only(from)).map(|Live(config)| config)
    }

    /// The spool's directory: the configured one, or `gateway/spool` under `data_dir`.
    #[must_use]
    pub fn spool_dir(&self, data_dir: &Path) -> PathBuf {
        self.spool
            .dir
            .clone()
            .unwrap_or_else(|| data_dir.join("gateway").join("spool"))
    }

    /// Whether other gateways share the spool with this one.
    pub(crate) fn spool_is_shared(&self) -> bool {
        match self.spool.backend {
            SpoolBackend::Embedded => false,
            SpoolBackend::Jetstream => true,
        }
    }

    fn validate_spool_sizes(&self, faults: &mut Faults) {
        let (key, unfit) = match self.spool.backend {
            SpoolBackend::Embedded => {
                let options = backend::embedded_options(self, PathBuf::new());
                (
                    "spool",
                    options.check().err().map(|error| error.to_string()),
                )
            }
            SpoolBackend::Jetstream => {
                let options = backend::jetstream_options(self);
                let unfit = options.check().err().map(|error| error.to_string());
                ("spool.jetstream", unfit)
            }
        };
        if let Some(what) = unfit {
            faults.invalid(
                key,
                what,
                "values that fit each other",
                "change the key that is named",
            );
        }
    }

    /// On a shared spool pass-state's answer to a delivery may come to another gateway than the one whose sender
    /// waits for it.
    fn validate_ack_fits_spool(&self, faults: &mut Faults) {
        if !self.spool_is_shared() {
            return;
        }
        let named = self
            .ack
            .sources
            .iter()
            .map(|(name, mode)| (format!("ack.sources.{name}"), *mode));
        let modes = std::iter::once(("ack.mode".to_owned(), self.ack.mode)).chain(named);
        for (key, mode) in modes {
            match mode {
                AckMode::Durable => {}
                AckMode::Applied => faults.invalid(
                    &key,
                    "needs a spool of this gateway alone: with spool.backend = \"jetstream\" any gateway may forward the \
                     delivery, and pass-state's answer then comes to that one",
                    "\"durable\"",
                    "set it to \"durable\", or spool.backend to \"embedded\"",
                ),
            }
        }
    }
}

/// What the loader needs to know: secrets are resolved elsewhere, so of the environment only what overrides keys.
fn keys_only(from: &config::Sources) -> config::Sources {
    let overrides = format!("{}__", from.env_prefix);
    let mut from = from.clone();
    from.env.retain(|(name, _)| name.starts_with(&overrides));
    from
}

/// A configuration of which no certificate and no key is read.
#[derive(Deserialize)]
#[serde(transparent)]
struct Live(Config);

impl Validate for Live {
    fn validate(&self, faults: &mut Faults) {
        let mut config = self.0.clone();
        config.http.tls = None;
        config.admin.tls = None;
        config.pass_state.tls = None;
        config.telemetry.tls = None;
        let nats = &mut config.spool.jetstream;
        (nats.ca_file, nats.cert_file, nats.key_file) = (None, None, None);
        config.validate(faults);
    }
}

impl Validate for Config {
    fn validate(&self, faults: &mut Faults) {
        if self.gateway_id.is_empty()
            || self.gateway_id.len() > 128
            || self.gateway_id.contains(char::is_control)
        {
            faults.invalid(
                "gateway_id",
                "is no id",
                "1 to 128 bytes without control characters",
                "give the gateway a short name",
            );
        }
        faults.in_range(
            "drain_delay",
            self.drain_delay,
            Duration::default()..=Duration::from_secs(60),
        );
        faults.part("http", &self.http);
        faults.part("admin", &self.admin);
        faults.part("pass_state", &self.pass_state);
        faults.part("forward", &self.forward);
        faults.part("ack", &self.ack);
        faults.part("reload", &self.reload);
        faults.part("telemetry", &self.telemetry);
        faults.part("spool", &self.spool);
        self.validate_spool_sizes(faults);
        self.validate_ack_fits_spool(faults);
        if self.sources.len() > SOURCES_MAX {
            faults.invalid(
                "sources",
                format!("{} sources", self.sources.len()),
                format!("at most {SOURCES_MAX}"),
                "run a second gateway",
            );
        }
        let rate = |faults: &mut Faults, index: usize, key: &str, value: Option<u32>, most: u32| {
            if let Some(value) = value {
                faults.in_range(&format!("sources[{index}].{key}"), value, 1..=most);
            }
        };
        for (index, source) in self.sources.iter().enumerate() {
            rate(
                faults,
                index,
                "rate_per_sec",
                source.rate_per_sec,
                limits::PER_SEC_MAX,
            );
            rate(
                faults,
                index,
                "rate_burst",
                source.rate_burst,
                limits::BURST_MAX,
            );
        }
        let (mut names, mut uids) = (HashSet::new(), HashSet::new());
        for (index, source) in self.sources.iter().enumerate() {
            if !names.insert(source.name.as_str()) {
                faults.invalid(
                    &format!("sources[{index}].name"),
                    "is used twice",
                    "one source per name",
                    "rename one of them",
                );
            }
            if !uids.insert(source.uid.as_deref().unwrap_or(&source.name)) {
                faults.invalid(
                    &format!("sources[{index}].uid"),
                    "is used twice",
                    "one source per uid",
                    "a new source needs a uid of its own",
                );
            }
        }
        for name in self.ack.sources.keys() {
            if !names.contains(name.as_str()) {
                faults.invalid(
                    &format!("ack.sources.{name}"),
                    "names no source",
                    "the names of [[sources]]",
                    "correct the name or remove the key",
                );
            }
        }
    }
}

/// The listener of callbacks.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Address and port. Default 127.0.0.1:8080.
    pub listen: SocketAddr,
    /// TLS; absent: plaintext, which beyond loopback needs something in front that ends TLS.
    pub tls: Option<TlsServerConfig>,
    /// The largest body, 1 KiB to 1 MiB. Default 256 KiB; over it 413.
    pub body_bytes_max: ByteSize,
    /// Requests being handled at once, 1 to 65,536. Default 1,024; over it 503.
    pub requests_in_flight_max: usize,
    /// Bytes of bodies being handled at once, `body_bytes_max` to 4 GiB. Default 64 MiB; over it 503.
    pub bytes_in_flight_max: ByteSize,
    /// Limits of connections, heads and the pace of bodies.
    pub limits: HttpLimits,
    /// Networks of proxies that are believed about whom they speak for, at most 256. Default none: the client is whoever
    /// opened the connection.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which they say so. Default `x-forwarded-for`; `forwarded` is read by RFC 7239, any other as a list of
    /// addresses.
    pub forwarded_header: String,
    /// How many deliveries may come in a time.
    pub rates: Rates,
    /// What failing credentials cost.
    pub failed_auth: FailedAuth,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            tls: None,
            body_bytes_max: ByteSize::from_kib(256),
            requests_in_flight_max: 1024,
            bytes_in_flight_max: ByteSize::from_mib(64),
            limits: HttpLimits::default(),
            trusted_proxies: Vec::new(),
            forwarded_header: "x-forwarded-for".to_owned(),
            rates: Rates::default(),
            failed_auth: FailedAuth::default(),
        }
    }
}

impl Http {
    /// The proxies that are believed.
    pub(crate) fn proxies(&self) -> Proxies {
        let header = HeaderName::try_from(&self.forwarded_header);
        // Checked when it was loaded; an empty list trusts nobody, whatever the header.
        let header = header.unwrap_or(http::header::FORWARDED);
        Proxies::new(&self.trusted_proxies, header)
    }
}

impl Validate for Http {
    fn validate(&self, faults: &mut Faults) {
        if let Some(tls) = &self.tls {
            faults.part("tls", tls);
        }
        faults.in_range(
            "body_bytes_max",
            self.body_bytes_max,
            ByteSize::from_kib(1)..=ByteSize::from_mib(1),
        );
        faults.in_range(
            "requests_in_flight_max",
            self.requests_in_flight_max,
            1..=65_536,
        );
        faults.in_range(
            "bytes_in_flight_max",
            self.bytes_in_flight_max,
            self.body_bytes_max..=ByteSize::from_gib(4),
        );
        faults.part("limits", &self.limits);
        faults.part("rates", &self.rates);
        faults.part("failed_auth", &self.failed_auth);
        if self.trusted_proxies.len() > TRUSTED_PROXIES_MAX {
            faults.invalid(
                "trusted_proxies",
                format!("{} networks", self.trusted_proxies.len()),
                format!("at most {TRUSTED_PROXIES_MAX}"),
                "name larger networks",
            );
        }
        if self
            .trusted_proxies
            .iter()
            .any(|network| network.prefix_len() == 0)
        {
            faults.invalid(
                "trusted_proxies",
                "holds a network of every address, so that every client may say who it is",
                "the networks of your proxies",
                "narrow it",
            );
        }
        if HeaderName::try_from(&self.forwarded_header).is_err() {
            faults.invalid(
                "forwarded_header",
                "is not a header name",
                "x-forwarded-for, forwarded, or the name that your proxy uses",
                "correct it or remove it",
            );
        }
    }
}

/// The listener of health and status.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Admin {
    /// Address and port. Default 127.0.0.1:8081; keep it away from vendors.
    pub listen: SocketAddr,
    /// TLS; absent: plaintext.
    pub tls: Option<TlsServerConfig>,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8081).into(),
            tls: None,
        }
    }
}

impl Admin {
    /// Loads this table alone, to ask a running service. The rest of the file, and the files that it names, are for a
    /// next start and may not be fit for one.
    ///
    /// # Errors
    /// Every fault found in the table, or the one of a file that is no TOML.
    pub fn load(from: &config::Sources) -> Result<Self, Faults> {
        config::load_table(from, "admin", "GATEWAY__ADMIN")
    }
}

impl Validate for Admin {
    fn validate(&self, faults: &mut Faults) {
        if let Some(tls) = &self.tls {
            faults.part("tls", tls);
        }
    }
}

/// How the spool is forwarded.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Forward {
    /// Time for pass-state to answer the hello, 10 ms to 60 s. Default 10 s.
    pub hello_timeout: Duration,
    /// Time without a newly acknowledged delivery, with some in flight, after which the stream is opened
    /// anew, 10 ms to 10 min. Default 30 s.
    pub ack_timeout: Duration,
    /// Ceiling of the first pause before a new stream, 1 ms to 60 s. Default 50 ms. A pause is drawn evenly
    /// from nothing to its ceiling, which doubles with each failure.
    pub retry_min: Duration,
    /// Ceiling of all such pauses, `retry_min` to 10 min. Default 5 s.
    pub retry_max: Duration,
    /// Pause after another gateway took the spool over, or where a person has to act, 10 ms to 1 h.
    /// Default 30 s.
    pub blocked_retry: Duration,
    /// Time for acknowledgements at the end, up to 60 s. Default 2 s; what is missing then is sent again
    /// after the next start.
    pub drain_timeout: Duration,
}

impl Default for Forward {
    fn default() -> Self {
        Self {
            hello_timeout: Duration::from_secs(10),
            ack_timeout: Duration::from_secs(30),
            retry_min: Duration::from_millis(50),
            retry_max: Duration::from_secs(5),
            blocked_retry: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(2),
        }
    }
}

impl Validate for Forward {
    fn validate(&self, faults: &mut Faults) {
        let least = Duration::from_millis(10);
        faults.in_range(
            "hello_timeout",
            self.hello_timeout,
            least..=Duration::from_secs(60),
        );
        faults.in_range(
            "ack_timeout",
            self.ack_timeout,
            least..=Duration::from_mins(10),
        );
        faults.in_range(
            "retry_min",
            self.retry_min,
            Duration::from_millis(1)..=Duration::from_secs(60),
        );
        faults.in_range(
            "retry_max",
            self.retry_max,
            self.retry_min..=Duration::from_mins(10),
        );
        faults.in_range(
            "blocked_retry",
            self.blocked_retry,
            least..=Duration::from_hours(1),
        );
        faults.in_range(
            "drain_timeout",
            self.drain_timeout,
            Duration::default()..=Duration::from_secs(60),
        );
    }
}

/// What an answer of 200 waits for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Ack {
    /// For all sources that are not named below. Default `durable`.
    pub mode: AckMode,
    /// How long `applied` waits for pass-state before it answers `stored`, 1 ms to 8 s. Default 2 s.
    pub timeout: Duration,
    /// Answers that may wait for pass-state at once, 1 to 65,536; further ones answer `stored` at once.
    /// Default 1,024.
    pub waiters_max: usize,
    /// Other modes by source name. Default none.
    pub sources: BTreeMap<String, AckMode>,
}

impl Default for Ack {
    fn default() -> Self {
        Self {
            mode: AckMode::Durable,
            timeout: Duration::from_secs(2),
            waiters_max: 1024,
            sources: BTreeMap::new(),
        }
    }
}

impl Ack {
    pub(crate) fn mode_of(&self, source: &str) -> AckMode {
        self.sources.get(source).copied().unwrap_or(self.mode)
    }
}

impl Validate for Ack {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range(
            "timeout",
            self.timeout,
            Duration::from_millis(1)..=Duration::from_secs(8),
        );
        faults.in_range("waiters_max", self.waiters_max, 1..=65_536);
    }
}

/// When a delivery is answered 200.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AckMode {
    /// Once it is on disk: `stored`.
    #[default]
    Durable,
    /// Once pass-state has committed it: `applied` or `duplicate`. Falls back to `stored`, since it is on
    /// disk before.
    Applied,
}

fn telemetry<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TelemetryConfig, D::Error> {
    TelemetryConfig::read_of(SERVICE_NAME, deserializer)
}

#[cfg(test)]
mod tests;
