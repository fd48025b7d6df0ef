//! Settings and open errors of the JetStream spool.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::embedded::{SyncObserver, WallClock, system_time};

/// The largest permitted record, 32 MiB: half of what a NATS server can be configured to take.
pub const RECORD_BYTES_CEILING: usize = 32 << 20;
/// The largest permitted `window_records`.
pub const WINDOW_RECORDS_CEILING: usize = 65_536;
/// The largest permitted `append_in_flight_max`.
pub const APPEND_IN_FLIGHT_CEILING: usize = 65_536;
/// The most servers and monitoring addresses.
const ADDRESSES_MAX: usize = 16;
/// The most replicas that a NATS stream can have.
const REPLICAS_MAX: usize = 5;
/// Room for the headers of a record on its way to the server, in bytes.
pub(super) const HEADER_BYTES: usize = 1024;

/// How the spool proves itself to the NATS servers. `Debug` shows no secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum NatsCredentials {
    /// Not at all.
    #[default]
    None,
    /// With a user's name and password.
    UserPassword {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// With a token.
    Token(String),
    /// With the contents of a credentials file (JWT and seed).
    Creds(String),
    /// With the seed of an NKey.
    NkeySeed(String),
}

impl fmt::Debug for NatsCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::UserPassword { .. } => "UserPassword([REDACTED])",
            Self::Token(_) => "Token([REDACTED])",
            Self::Creds(_) => "Creds([REDACTED])",
            Self::NkeySeed(_) => "NkeySeed([REDACTED])",
        })
    }
}

/// Gives the credentials, and is asked for each new connection, so that a secret that was replaced is the next one's.
/// `Debug` shows none.
#[derive(Clone)]
pub struct NatsLogin(Arc<dyn Fn() -> Result<NatsCredentials, String> + Send + Sync>);

impl NatsLogin {
    /// Makes one that reads the credentials; an error says what can't be read, without a secret.
    pub fn new(read: impl Fn() -> Result<NatsCredentials, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    pub(super) fn read(&self) -> Result<NatsCredentials, String> {
        (self.0)()
    }
}

impl From<NatsCredentials> for NatsLogin {
    fn from(credentials: NatsCredentials) -> Self {
        Self::new(move || Ok(credentials.clone()))
    }
}

impl fmt::Debug for NatsLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[REDACTED]")
    }
}

/// Settings of a [`JetStreamSpool`](crate::JetStreamSpool). Start from [`JetStreamOptions::new`].
#[derive(Clone)]
pub struct JetStreamOptions {
    /// Addresses of NATS servers, `nats://host:port` or `tls://host:port`; 1 to 16.
    pub servers: Vec<String>,
    /// The stream that is the spool, one per deployment. Letters, digits, `-` and `_`, at most 64. Default `PASSLINE`.
    pub stream: String,
    /// How to prove oneself. Default not at all.
    pub credentials: Option<NatsLogin>,
    /// A PEM file of certificate authorities to trust instead of the system's. Default none. This file and the next are
    /// read for each new connection.
    pub tls_ca: Option<PathBuf>,
    /// The PEM files of a certificate to show, and of its key. Default none.
    pub tls_identity: Option<(PathBuf, PathBuf)>,
    /// Refuses connections without TLS. Default false.
    pub tls_required: bool,
    /// Copies of each record, at least: 1 to 5, odd. Default 1.
    pub replicas: usize,
    /// Ceiling of the stream's size in bytes. Default 10 GiB. Is applied to an existing stream if it is larger.
    pub bytes_max: u64,
    /// The largest record. Default 2 MiB, at most 32 MiB; the servers' `max_payload` must be 1 KiB more.
    pub record_bytes_max: usize,
    /// Settled records older than this are removed. Default 24 h.
    pub retain_age: Duration,
    /// Settled records beyond this are removed, oldest first. Default `None`, a quarter of `bytes_max`; at most half.
    pub retain_bytes: Option<u64>,
    /// Records that may be leased or on their way here, and not settled. Default 8,192, at most 65,536.
    pub window_records: usize,
    /// Bytes of records that may wait here to be leased. Default 8 MiB; at least a record of `record_bytes_max` with
    /// 1 KiB of headers.
    pub window_bytes: usize,
    /// Appends that wait for the server at once; more wait outside. Default 1,024, at most 65,536.
    pub append_in_flight_max: usize,
    /// Takes records although it isn't proven that the servers sync before they answer. Default false.
    pub allow_unsynced: bool,
    /// Addresses of the servers' monitoring, `http://host:port`, at most 16: where durability is proven. Default none.
    pub monitoring_urls: Vec<String>,
    /// How long [`open`](crate::JetStreamSpool::open) tries to reach the servers. Default 10 s.
    pub connect_timeout: Duration,
    /// This process's name, shown in the turn and on the servers. At most 256 bytes. Default `passline`.
    pub gateway_name: String,
    /// The wall clock. Default the system's.
    pub clock: WallClock,
    /// Is told how long each record's publish and acknowledgement took. Default nobody.
    pub sync_observer: SyncObserver,
}

impl JetStreamOptions {
    /// Makes the default settings for some servers.
    pub fn new(servers: Vec<String>) -> Self {
        Self {
            servers,
            stream: "PASSLINE".into(),
            credentials: None,
            tls_ca: None,
            tls_identity: None,
            tls_required: false,
            replicas: 1,
            bytes_max: 10 << 30,
            record_bytes_max: 2 << 20,
            retain_age: Duration::from_secs(24 * 60 * 60),
            retain_bytes: None,
            window_records: 8192,
            window_bytes: 8 << 20,
            append_in_flight_max: 1024,
            allow_unsynced: false,
            monitoring_urls: Vec::new(),
            connect_timeout: Duration::from_secs(10),
            gateway_name: "passline".into(),
            clock: Arc::new(system_time),
            sync_observer: Arc::new(|_| {}),
        }
    }

    /// Says whether the login may go over a network without TLS.
    pub fn login_in_the_clear(&self) -> bool {
        let clear = |server: &String| {
            let server = server.parse::<async_nats::ServerAddr>();
            server.is_ok_and(|server| {
                let host = server.host();
                let here = host == "localhost"
                    || host
                        .parse()
                        .is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
                !here && !server.tls_required()
            })
        };
        self.credentials.is_some() && !self.tls_required && self.servers.iter().any(clear)
    }

    /// Bytes of settled records kept.
    pub fn retain_bytes(&self) -> u64 {
        self.retain_bytes.unwrap_or(self.bytes_max / 4)
    }

    /// The subject that records are published to.
    pub(super) fn subject(&self) -> String {
        format!("{}.deliveries", self.stream)
    }

    /// The key-value bucket of the turn.
    pub(super) fn bucket(&self) -> String {
        format!("{}-turn", self.stream)
    }

    /// The servers as one text, for errors.
    pub(super) fn servers_text(&self) -> String {
        self.servers.join(", ")
    }

    /// Checks the settings against each other; the text names the first that doesn't fit, and what would.
    ///
    /// # Errors
    ///
    /// [`JetStreamOpenError::Options`].
    pub fn check(&self) -> Result<(), JetStreamOpenError> {
        let invalid = |what: String| Err(JetStreamOpenError::Options { what });
        if self.servers.is_empty() || self.servers.len() > ADDRESSES_MAX {
            return invalid(format!(
                "servers must name 1 to {ADDRESSES_MAX} NATS servers"
            ));
        }
        for server in &self.servers {
            if server.parse::<async_nats::ServerAddr>().is_err() {
                return invalid(format!(
                    "servers has {server:?}, which is not like nats://host:4222"
                ));
            }
        }
        let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.stream.is_empty() || self.stream.len() > 64 || !self.stream.bytes().all(named) {
            return invalid("stream must be 1 to 64 letters, digits, '-' and '_'".into());
        }
        if self.replicas == 0 || self.replicas > REPLICAS_MAX || self.replicas.is_multiple_of(2) {
            return invalid(format!(
                "replicas is {} but must be 1, 3 or 5",
                self.replicas
            ));
        }
        if self.record_bytes_max == 0 || self.record_bytes_max > RECORD_BYTES_CEILING {
            return invalid(format!(
                "record_bytes_max must be 1 to {RECORD_BYTES_CEILING}"
            ));
        }
        let message_bytes = self.record_bytes_max + HEADER_BYTES;
        if self.bytes_max < 4 * message_bytes as u64 || self.bytes_max > i64::MAX as u64 {
            return invalid(format!(
                "bytes_max is {} but must hold 4 records of record_bytes_max {} with {HEADER_BYTES} bytes of headers each",
                self.bytes_max, self.record_bytes_max
            ));
        }
        if self.retain_bytes() > self.bytes_max / 2 {
            return invalid(format!(
                "retain_bytes is {} but must be at most half of bytes_max {}",
                self.retain_bytes(),
                self.bytes_max
            ));
        }
        if self.window_records == 0 || self.window_records > WINDOW_RECORDS_CEILING {
            return invalid(format!(
                "window_records must be 1 to {WINDOW_RECORDS_CEILING}"
            ));
        }
        if self.window_bytes < message_bytes || self.window_bytes > 1 << 30 {
            return invalid(format!(
                "window_bytes is {} but must be {message_bytes} to {}",
                self.window_bytes,
                1 << 30
            ));
        }
        if self.append_in_flight_max == 0 || self.append_in_flight_max > APPEND_IN_FLIGHT_CEILING {
            return invalid(format!(
                "append_in_flight_max must be 1 to {APPEND_IN_FLIGHT_CEILING}"
            ));
        }
        if self.monitoring_urls.len() > ADDRESSES_MAX {
            return invalid(format!("monitoring_urls must be at most {ADDRESSES_MAX}"));
        }
        for url in &self.monitoring_urls {
            let parsed = url.parse::<hyper::Uri>();
            if !parsed.is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some()) {
                return invalid(format!(
                    "monitoring_urls has {url:?}, which is not like http://host:8222"
                ));
            }
        }
        if self.gateway_name.is_empty() || self.gateway_name.len() > 256 {
            return invalid("gateway_name must be 1 to 256 bytes".into());
        }
        if self.connect_timeout.is_zero() || self.connect_timeout > Duration::from_secs(600) {
            return invalid("connect_timeout must be more than 0 s and at most 600 s".into());
        }
        Ok(())
    }
}

impl fmt::Debug for JetStreamOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamOptions")
            .field("servers", &self.servers)
            .field("stream", &self.stream)
            .field("credentials", &self.credentials)
            .field("replicas", &self.replicas)
            .field("bytes_max", &self.bytes_max)
            .field("record_bytes_max", &self.record_bytes_max)
            .field("allow_unsynced", &self.allow_unsynced)
            .field("monitoring_urls", &self.monitoring_urls)
            .finish_non_exhaustive()
    }
}

/// Why a JetStream spool could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum JetStreamOpenError {
    /// Settings that don't fit each other.
    #[error("{what}")]
    Options {
        /// Names the setting and the bound.
        what: String,
    },
    /// No server could be reached in time, or none let us in.
    #[error(
        "cannot reach NATS at {servers} within {waited:?}: {detail}; start the servers, or correct servers and credentials"
    )]
    Unreachable {
        /// The configured servers.
        servers: String,
        /// How long it was tried.
        waited: Duration,
        /// What came back last.
        detail: String,
    },
    /// The server refuses what a spool needs.
    #[error("cannot {action} at NATS: {detail}")]
    Server {
        /// What was tried.
        action: String,
        /// What the server said, and what helps where that is known.
        detail: String,
    },
    /// The stream exists but would not keep what the spool promises, or is none of ours.
    #[error("stream {stream}: {detail}")]
    Stream {
        /// The stream.
        stream: String,
        /// Names the setting and the command that mends it.
        detail: String,
    },
    /// No random bytes for an identity.
    #[error("cannot read /dev/urandom")]
    Random(#[from] std::io::Error),
}
