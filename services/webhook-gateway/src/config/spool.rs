//! Where accepted deliveries are kept: the keys of `[spool]`, for both backends.
//!
//! The keys of the embedded spool stand in `[spool]` itself, those of JetStream in `[spool.jetstream]`. Only one of
//! the two works, so keys of the other are faults rather than settings without effect.

use std::fmt;
use std::path::PathBuf;

use pass_sources::SecretRef;
use serde::Deserialize;
use service_kit::config::{ByteSize, Duration, Faults, Validate};
use service_kit::tls::TlsClientConfig;

/// Most servers, and most monitoring addresses, that can be named.
const SERVERS_MAX: usize = 16;
/// Longest address of one, in bytes.
const ADDRESS_BYTES_MAX: usize = 256;

/// Where accepted deliveries are kept until pass-state has them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Spool {
    /// What keeps them. Default `embedded`.
    pub backend: SpoolBackend,
    /// The embedded spool's directory, used by nobody else. Default `gateway/spool` under the data directory.
    pub dir: Option<PathBuf>,
    /// Size of one segment, up to 1 GiB. Default 64 MiB.
    pub segment_bytes: ByteSize,
    /// Size of all segments, at least 4 of them. Default 10 GiB; at it 503.
    pub bytes_max: ByteSize,
    /// How long settled deliveries are kept for a database that was restored. Default 24 h.
    pub retain_age: Duration,
    /// How much of them is kept. Default a quarter of `bytes_max`.
    pub retain_bytes: Option<ByteSize>,
    /// Deliveries that may wait for the disk, 1 to 65,536. Default 1,024.
    pub append_queue_max: usize,
    /// Answers before the sync; a planted defect.
    #[cfg(feature = "planted-bugs")]
    pub planted_answer_before_sync: bool,
    /// The stream that several gateways share.
    pub jetstream: JetStream,
}

impl Default for Spool {
    fn default() -> Self {
        Self {
            backend: SpoolBackend::Embedded,
            dir: None,
            segment_bytes: ByteSize::from_mib(64),
            bytes_max: ByteSize::from_gib(10),
            retain_age: Duration::from_hours(24),
            retain_bytes: None,
            append_queue_max: 1024,
            #[cfg(feature = "planted-bugs")]
            planted_answer_before_sync: false,
            jetstream: JetStream::default(),
        }
    }
}

impl Spool {
    /// The keys of the embedded spool that are set to something else than their default.
    fn embedded_keys_set(&self) -> impl Iterator<Item = &'static str> {
        let default = Self::default();
        [
            ("dir", self.dir != default.dir),
            ("segment_bytes", self.segment_bytes != default.segment_bytes),
            ("bytes_max", self.bytes_max != default.bytes_max),
            ("retain_age", self.retain_age != default.retain_age),
            ("retain_bytes", self.retain_bytes != default.retain_bytes),
            (
                "append_queue_max",
                self.append_queue_max != default.append_queue_max,
            ),
        ]
        .into_iter()
        .filter_map(|(key, set)| set.then_some(key))
    }
}

impl Validate for Spool {
    fn validate(&self, faults: &mut Faults) {
        match self.backend {
            SpoolBackend::Embedded => {
                if self.jetstream != JetStream::default() {
                    faults.invalid(
                        "jetstream",
                        "is configured but not used: spool.backend is \"embedded\"",
                        "keys of [spool.jetstream] with spool.backend = \"jetstream\"",
                        "set spool.backend to \"jetstream\", or remove the table",
                    );
                }
            }
            SpoolBackend::Jetstream => {
                for key in self.embedded_keys_set() {
                    faults.invalid(
                        key,
                        "belongs to the embedded spool, but spool.backend is \"jetstream\"",
                        "keys of [spool.jetstream]",
                        match key {
                            "bytes_max" | "retain_age" | "retain_bytes" => {
                                format!("move it to spool.jetstream.{key}")
                            }
                            _ => "remove it".to_owned(),
                        },
                    );
                }
                faults.part("jetstream", &self.jetstream);
            }
        }
    }
}

/// What keeps accepted deliveries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpoolBackend {
    /// A directory of this machine, for one gateway.
    #[default]
    Embedded,
    /// A stream of NATS JetStream, shared by any number of gateways.
    Jetstream,
}

impl SpoolBackend {
    /// The name as the configuration spells it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedded => "embedded",
            Self::Jetstream => "jetstream",
        }
    }
}

/// The spool that lies on NATS JetStream.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct JetStream {
    /// Servers of one cluster, `nats://host:port` or `tls://host:port`, 1 to 16. Default `nats://127.0.0.1:4222`.
    pub servers: Vec<String>,
    /// The stream's name, 1 to 64 letters, digits, `-` and `_`. Default `PASSLINE`. Made if it does not exist.
    pub stream: String,
    /// The user to log in as, with `password`.
    pub user: Option<String>,
    /// Their password.
    pub password: Option<SpoolSecret>,
    /// A token to log in with.
    pub token: Option<SpoolSecret>,
    /// A `.creds` file to log in with.
    pub credentials_file: Option<PathBuf>,
    /// The seed of an nkey to log in with.
    pub nkey: Option<SpoolSecret>,
    /// Whether connections must be encrypted. Default false.
    pub tls: bool,
    /// Certificate authorities to trust instead of the system's, a PEM file. Like the next two it is read for each new
    /// connection.
    pub ca_file: Option<PathBuf>,
    /// The gateway's own certificate for servers that verify clients, a PEM file.
    pub cert_file: Option<PathBuf>,
    /// Its private key, a PEM file.
    pub key_file: Option<PathBuf>,
    /// Copies of the stream, on as many servers: 1, 3 or 5. Default 3.
    pub replicas: usize,
    /// Size of the stream. Default 10 GiB; at it 503.
    pub bytes_max: ByteSize,
    /// How long settled deliveries are kept for a database that was restored. Default 24 h.
    pub retain_age: Duration,
    /// How much of them is kept, at most half of `bytes_max`. Default a quarter of it.
    pub retain_bytes: Option<ByteSize>,
    /// Deliveries handed out and not yet settled, 1 to 65,536. Default 8,192.
    pub window_records: usize,
    /// Bytes of deliveries that may wait to be forwarded, two bodies and 49 KiB to 1 GiB. Default 8 MiB.
    pub window_bytes: ByteSize,
    /// Deliveries that may wait for the server's word at once, 1 to 65,536. Default 1,024.
    pub append_in_flight_max: usize,
    /// Time for the servers to answer at the start, 100 ms to 10 min. Default 10 s.
    pub connect_timeout: Duration,
    /// Where the servers show whether they sync always, `http://host:port`, at most 16. Default none.
    pub monitoring_urls: Vec<String>,
    /// Whether to answer 200 although it can't be proven that it is on disk. Default false.
    pub allow_unsynced: bool,
}

impl Default for JetStream {
    fn default() -> Self {
        Self {
            servers: vec!["nats://127.0.0.1:4222".to_owned()],
            stream: "PASSLINE".to_owned(),
            user: None,
            password: None,
            token: None,
            credentials_file: None,
            nkey: None,
            tls: false,
            ca_file: None,
            cert_file: None,
            key_file: None,
            replicas: 3,
            bytes_max: ByteSize::from_gib(10),
            retain_age: Duration::from_hours(24),
            retain_bytes: None,
            window_records: 8192,
            window_bytes: ByteSize::from_mib(8),
            append_in_flight_max: 1024,
            connect_timeout: Duration::from_secs(10),
            monitoring_urls: Vec::new(),
            allow_unsynced: false,
        }
    }
}

impl Validate for JetStream {
    fn validate(&self, faults: &mut Faults) {
        addresses(
            faults,
            "servers",
            &self.servers,
            &["nats://", "tls://"],
            "nats://host:port or tls://host:port",
        );
        if self.servers.is_empty() {
            faults.invalid(
                "servers",
                "is empty",
                format!("1 to {SERVERS_MAX} servers"),
                "name the servers of the cluster",
            );
        }
        addresses(
            faults,
            "monitoring_urls",
            &self.monitoring_urls,
            &["http://"],
            "http://host:port",
        );
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !(1..=64).contains(&self.stream.len()) || !self.stream.chars().all(is_name) {
            faults.invalid(
                "stream",
                "is no name of a stream",
                "1 to 64 letters, digits, '-' and '_'",
                "give the stream a plain name",
            );
        }
        self.validate_login(faults);
        let tls = TlsClientConfig {
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
            server_name: None,
        };
        if tls != TlsClientConfig::default() {
            tls.validate(faults);
        }
        if ![1, 3, 5].contains(&self.replicas) {
            faults.invalid(
                "replicas",
                format!("{} is no number of replicas", self.replicas),
                "1, 3 or 5",
                "set replicas to 3, or to 1 for a lone server",
            );
        }
        faults.in_range("window_records", self.window_records, 1..=65_536);
        faults.in_range(
            "append_in_flight_max",
            self.append_in_flight_max,
            1..=65_536,
        );
        faults.in_range(
            "connect_timeout",
            self.connect_timeout,
            Duration::from_millis(100)..=Duration::from_mins(10),
        );
    }
}

impl JetStream {
    fn validate_login(&self, faults: &mut Faults) {
        if self.user.is_some() != self.password.is_some() {
            let (key, other) = if self.user.is_some() {
                ("user", "password")
            } else {
                ("password", "user")
            };
            faults.invalid(
                key,
                format!("is set without {other}"),
                "both of user and password, or neither",
                format!("set spool.jetstream.{other} as well"),
            );
        }
        let ways: Vec<&str> = [
            ("user", self.user.is_some()),
            ("token", self.token.is_some()),
            ("credentials_file", self.credentials_file.is_some()),
            ("nkey", self.nkey.is_some()),
        ]
        .into_iter()
        .filter_map(|(key, set)| set.then_some(key))
        .collect();
        if let [_, second, ..] = ways.as_slice() {
            faults.invalid(
                second,
                format!("is one of several ways to log in: {}", ways.join(", ")),
                "at most one of user, token, credentials_file, nkey",
                "keep the one that the server asks for",
            );
        }
        for (key, secret) in [
            ("password", &self.password),
            ("token", &self.token),
            ("nkey", &self.nkey),
        ] {
            if secret.as_ref().is_some_and(|secret| secret.places() != 1) {
                faults.invalid(
                    key,
                    "has no place or several to take the secret from",
                    "exactly one of { value = … }, { file = … }, { env = … }",
                    "keep one of them",
                );
            }
        }
    }
}

/// Checks a list of addresses. What is in them is never repeated: a credential may have got there.
fn addresses(faults: &mut Faults, key: &str, list: &[String], schemes: &[&str], form: &str) {
    if list.len() > SERVERS_MAX {
        faults.invalid(
            key,
            format!("has {} addresses", list.len()),
            format!("at most {SERVERS_MAX}"),
            "name fewer; clients learn of the others by themselves",
        );
    }
    for (index, address) in list.iter().enumerate() {
        let key = format!("{key}[{index}]");
        let rest = schemes
            .iter()
            .find_map(|scheme| address.strip_prefix(scheme));
        let is_plain = |rest: &str| {
            !rest.is_empty() && !rest.contains(|c: char| c.is_whitespace() || c.is_control())
        };
        match rest {
            Some(rest) if rest.contains('@') => faults.invalid(
                &key,
                "has a credential in it",
                form,
                "move it to user and password, or to token",
            ),
            Some(rest) if is_plain(rest) && address.len() <= ADDRESS_BYTES_MAX => {}
            _ => faults.invalid(
                &key,
                "is no address",
                form,
                format!("write it as {form}, at most {ADDRESS_BYTES_MAX} bytes"),
            ),
        }
    }
}

/// Where a secret of the spool is taken from: `{ value = … }`, `{ file = … }` or `{ env = … }`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SpoolSecret {
    /// The secret itself.
    pub value: Option<String>,
    /// A file that holds it.
    pub file: Option<PathBuf>,
    /// An environment variable that holds it.
    pub env: Option<String>,
}

impl SpoolSecret {
    fn places(&self) -> usize {
        usize::from(self.value.is_some())
            + usize::from(self.file.is_some())
            + usize::from(self.env.is_some())
    }

    /// The place, as secrets of sources name theirs.
    pub(crate) fn reference(&self) -> SecretRef {
        SecretRef {
            value: self.value.clone(),
            file: self.file.clone(),
            env: self.env.clone(),
        }
    }
}

impl fmt::Debug for SpoolSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference().fmt(f)
    }
}
