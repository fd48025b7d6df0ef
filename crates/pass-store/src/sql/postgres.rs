//! What only PostgreSQL needs.

use std::time::Duration;

/// How to open a store on PostgreSQL 15 or later.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Where the database is, `postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=…`.
    /// A secret: it is shown nowhere.
    pub url: String,
    /// Whether to bring the schema up to date; otherwise an older one is
    /// [`Error::NotMigrated`](crate::Error::NotMigrated).
    pub migrate: bool,
    /// Most reader connections, 1 to 64. There are up to two writers and one for wake-ups besides.
    pub readers_max: u32,
    /// How long opening waits for the server.
    pub connect_timeout: Duration,
    /// How long a call waits for a free connection, including the time to make one.
    pub acquire_timeout: Duration,
    /// The longest that one statement may run, at least 1 ms.
    pub statement_timeout: Duration,
    /// The longest that a statement waits for another transaction's lock, at least 1 ms.
    pub lock_timeout: Duration,
    /// After this long without a statement the server ends a transaction, at least 1 ms: so a replica that
    /// went away does not hold the others up.
    pub idle_in_transaction_timeout: Duration,
    /// How long a commit may take, for instance while a synchronous standby is away. Past it the outcome is
    /// unknown.
    pub commit_timeout: Duration,
    /// Whether to tell other processes of commits, and to listen to theirs. False where a proxy stands
    /// between that pools transactions.
    pub notifications: bool,
}

impl PostgresOptions {
    /// The defaults for a database.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            migrate: true,
            readers_max: 8,
            connect_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            lock_timeout: Duration::from_secs(10),
            idle_in_transaction_timeout: Duration::from_secs(30),
            commit_timeout: Duration::from_secs(30),
            notifications: true,
        }
    }
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            url: _,
            migrate,
            readers_max,
            connect_timeout,
            acquire_timeout,
            statement_timeout,
            lock_timeout,
            idle_in_transaction_timeout,
            commit_timeout,
            notifications,
        } = self;
        f.debug_struct("PostgresOptions")
            .field("url", &"[REDACTED]")
            .field("migrate", migrate)
            .field("readers_max", readers_max)
            .field("connect_timeout", connect_timeout)
            .field("acquire_timeout", acquire_timeout)
            .field("statement_timeout", statement_timeout)
            .field("lock_timeout", lock_timeout)
            .field("idle_in_transaction_timeout", idle_in_transaction_timeout)
            .field("commit_timeout", commit_timeout)
            .field("notifications", notifications)
            .finish()
    }
}
