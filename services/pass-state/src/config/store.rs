//! The database: which one, where, and how long anything with it may take.

use std::path::{Path, PathBuf};

use pass_store::PostgresOptions;
use serde::{Deserialize, Serialize};
use service_kit::config::{Duration, Faults, SecretSource, Validate};

/// Which database keeps the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// A file on this machine.
    #[default]
    Sqlite,
    /// A server, which several replicas may share.
    Postgres,
}

/// Whether the service changes the schema by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Migrations {
    /// At the start, under a lock.
    #[default]
    Auto,
    /// Never; the service is not ready until `pass-state migrate` was run.
    Off,
}

/// The database. No `PartialEq`: it may hold a secret.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreConfig {
    /// `sqlite` or `postgres`. Default `sqlite`.
    pub backend: Backend,
    /// The SQLite file, on a local file system. Default `pass-state/passline.db` under the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// `auto` or `off`. Default `auto`.
    pub migrations: Migrations,
    /// What only PostgreSQL needs.
    pub postgres: PostgresConfig,
}

impl StoreConfig {
    /// Whether the database is another machine's server that need not prove who it is.
    pub(crate) fn trusts_any_server(&self) -> bool {
        let url = self.postgres.url_text().unwrap_or_default();
        self.backend == Backend::Postgres && PostgresOptions::new(url).trusts_any_server()
    }

    /// The SQLite file: the configured one, or the default one under `data_dir`.
    #[must_use]
    pub fn path(&self, data_dir: &Path) -> PathBuf {
        self.path
            .clone()
            .unwrap_or_else(|| data_dir.join("pass-state").join("passline.db"))
    }
}

impl Validate for StoreConfig {
    fn validate(&self, faults: &mut Faults) {
        let url = self.postgres.url.as_ref();
        match self.backend {
            Backend::Sqlite if url.is_some() => faults.invalid(
                "postgres.url",
                "is set, but the backend is sqlite, which does not use it",
                "nothing while store.backend is sqlite",
                "set store.backend = \"postgres\", or remove store.postgres.url",
            ),
            Backend::Postgres if url.is_none() => faults.invalid(
                "postgres.url",
                "is missing, but the backend is postgres",
                URL_FORM,
                "set store.postgres.url = { file = \"…\" } or { env = \"…\" }, or store.backend = \"sqlite\"",
            ),
            Backend::Sqlite | Backend::Postgres => {}
        }
        if self.backend == Backend::Postgres && self.path.is_some() {
            faults.invalid(
                "path",
                "names an SQLite file, but the backend is postgres",
                "nothing while store.backend is postgres",
                "remove store.path, or set store.backend = \"sqlite\"",
            );
        }
        faults.part("postgres", &self.postgres);
    }
}

/// What the URL of a database looks like.
const URL_FORM: &str = "postgres://user:password@host:port/database";

/// A PostgreSQL database, version 15 or later.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database?sslmode=verify-full`: a secret. Required with backend
    /// `postgres`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<SecretSource>,
    /// Connections for reading, 1 to 64. Default 8. Writing and wake-ups take a few more.
    pub readers_max: u32,
    /// Time for a new connection, 100 ms to 60 s. Default 5 s.
    pub connect_timeout: Duration,
    /// How long a call waits for a free connection, 100 ms to 60 s. Default 10 s.
    pub acquire_timeout: Duration,
    /// Time for a statement that writes, 1 s to 10 min. Default 30 s.
    pub statement_timeout: Duration,
    /// Time for a read, 1 s to 10 min. Default 5 s. A server that falls silent is noticed two seconds after it.
    pub read_timeout: Duration,
    /// How long a statement waits for a lock, such as for another replica's turn to write, 100 ms to 5 min.
    /// Default 5 s. A server that falls silent is noticed by the writer two seconds after it, unless it was in
    /// the middle of a transaction.
    pub lock_timeout: Duration,
    /// Time after which the server ends a transaction of a client that fell silent, 1 s to 10 min. Default
    /// 10 s.
    pub idle_in_transaction_timeout: Duration,
    /// Time for a commit, waiting for synchronous standbys included, 1 s to 10 min. Default 30 s. After it
    /// the outcome counts as unknown, and the deliveries are sent again.
    pub commit_timeout: Duration,
    /// Whether commits wake other replicas by NOTIFY. Default true; false behind a proxy that pools
    /// transactions. Without it other replicas' commits are seen by polling.
    pub notifications: bool,
    /// Plants a bug: positions from a sequence, without the lock that makes them commit order.
    #[cfg(feature = "planted-bugs")]
    pub planted_sequence_positions: bool,
    /// For the torture of the order: transactions wait up to this long before they commit.
    #[cfg(feature = "planted-bugs")]
    pub planted_transaction_delay_max: Duration,
}

impl Default for PostgresConfig {
    fn default() -> Self {
        Self {
            url: None,
            readers_max: 8,
            connect_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
            commit_timeout: Duration::from_secs(30),
            notifications: true,
            #[cfg(feature = "planted-bugs")]
            planted_sequence_positions: false,
            #[cfg(feature = "planted-bugs")]
            planted_transaction_delay_max: Duration::default(),
        }
    }
}

impl PostgresConfig {
    /// The URL's text; `None` if there is none or it is no text. A secret.
    pub(crate) fn url_text(&self) -> Option<&str> {
        std::str::from_utf8(self.url.as_ref()?.expose()).ok()
    }
}

impl Validate for PostgresConfig {
    fn validate(&self, faults: &mut Faults) {
        let is_url = |text: &str| {
            let rest = text
                .strip_prefix("postgres://")
                .or_else(|| text.strip_prefix("postgresql://"));
            rest.is_some_and(|rest| {
                !rest.is_empty() && !rest.contains(|c: char| c.is_whitespace() || c.is_control())
            })
        };
        if self.url.is_some() && !self.url_text().is_some_and(is_url) {
            faults.invalid(
                "url",
                "the secret is not the URL of a PostgreSQL database",
                URL_FORM,
                "write the whole URL into the file or the variable, with special characters percent-encoded",
            );
        }
        faults.in_range("readers_max", self.readers_max, 1..=64);
        let (tenth, second) = (Duration::from_millis(100), Duration::from_secs(1));
        let minute = Duration::from_mins(1);
        for (key, value, range) in [
            ("connect_timeout", self.connect_timeout, tenth..=minute),
            ("acquire_timeout", self.acquire_timeout, tenth..=minute),
            (
                "statement_timeout",
                self.statement_timeout,
                second..=Duration::from_mins(10),
            ),
            (
                "read_timeout",
                self.read_timeout,
                second..=Duration::from_mins(10),
            ),
            (
                "lock_timeout",
                self.lock_timeout,
                tenth..=Duration::from_mins(5),
            ),
            (
                "idle_in_transaction_timeout",
                self.idle_in_transaction_timeout,
                second..=Duration::from_mins(10),
            ),
            (
                "commit_timeout",
                self.commit_timeout,
                second..=Duration::from_mins(10),
            ),
        ] {
            faults.in_range(key, value, range);
        }
        #[cfg(feature = "planted-bugs")]
        faults.in_range(
            "planted_transaction_delay_max",
            self.planted_transaction_delay_max,
            Duration::default()..=Duration::from_secs(10),
        );
    }
}
