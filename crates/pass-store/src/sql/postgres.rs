//! What only PostgreSQL needs: connecting, the writer's lock, array parameters, wake-ups, and what its errors
//! mean.
//!
//! Any number of processes write to one database. Each has one writer connection ([`transaction`]), some
//! that only read ([`readers`]), and one for wake-ups ([`wakeups`]). What orders the writers is the lock on
//! `log_head`, which every writing transaction takes first.

mod connect;
mod error;
mod migrate;
mod outbox;
#[cfg(feature = "planted-bugs")]
mod planted;
mod readers;
mod seen;
mod statement;
#[cfg(test)]
mod tests;
mod transaction;
mod wakeups;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::sync::watch;

use self::connect::Connector;
pub(super) use self::error::meaning;
pub(super) use self::outbox::{spools_progress, write};
pub(super) use self::readers::Readers;
pub(super) use self::seen::{Mark, Seen};
use self::transaction::digest_of;
pub(super) use self::transaction::{Transaction, Writer};
pub(super) use self::wakeups::Wakeups;
use crate::contract::Error;
use crate::plan::HeadRow;
use crate::sql::rows::Failure;

/// What a store on PostgreSQL has besides its readers.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) writer: Arc<Writer>,
    pub(super) seen: Arc<Seen>,
    pub(super) wakeups: Option<Wakeups>,
}

/// Connects, checks that nothing about the server breaks a guarantee, and brings the schema up to date.
pub(super) async fn open(options: PostgresOptions) -> Result<(Server, Readers), Error> {
    let connector = Connector::new(options)?;
    // The first look is at the server; a schema on one that is unfit is left alone.
    let first = connector.connect_first().await?;
    migrate::migrate(&connector).await?;
    #[cfg(feature = "planted-bugs")]
    planted::prepare(&connector).await?;
    let seen = Arc::new(Seen::default());
    let writer = Arc::new(Writer::new(connector.clone(), first, Arc::clone(&seen)));
    let readers = Readers::new(&connector, &writer, &seen);
    let wakeups = connector
        .options()
        .notifications
        .then(|| Wakeups::start(connector));
    let server = Server {
        writer,
        seen,
        wakeups,
    };
    Ok((server, readers))
}

impl Server {
    /// Takes note of the log's end as read, beside the id of the event at the place that had been seen; fails
    /// if the log does not hold that place any more.
    pub(super) async fn saw(
        &self,
        seen: Option<Mark>,
        head: &HeadRow,
        there: Option<&[u8]>,
    ) -> Result<(), Failure> {
        let found = Mark::from(head);
        let there = there.map(digest_of).transpose()?;
        if !seen.is_some_and(|seen| seen.is_gone(found, there)) {
            self.seen.head(found);
            return Ok(());
        }
        // The writer makes sure, and does what has to be done about it.
        let (transaction, _) = self.writer.begin().await?;
        transaction.rollback().await;
        let text = "the database went back in time and the log gets a new epoch";
        Err(Error::Unavailable(text.to_owned()).into())
    }

    /// Ends what runs and closes all connections but the readers'.
    pub(super) async fn close(&self) {
        if let Some(wakeups) = &self.wakeups {
            wakeups.close();
        }
        self.writer.close().await;
    }
}

/// How to open a store on PostgreSQL 15 or later.
#[derive(Clone)]
pub struct PostgresOptions {
    /// Where the database is, `postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=…`.
    /// A secret: it is shown nowhere.
    pub url: String,
    /// Whether to bring the schema up to date; otherwise an older one is
    /// [`Error::NotMigrated`](crate::Error::NotMigrated).
    pub migrate: bool,
    /// Gets the number of migrations to apply once that begins, which can take long.
    pub migrating: Option<watch::Sender<usize>>,
    /// Most reader connections, 1 to 64. Besides there are one that writes, one for wake-ups, and while opening
    /// one for migrations.
    pub readers_max: u32,
    /// How long opening waits for the server.
    pub connect_timeout: Duration,
    /// How long a call waits for a free connection, including the time to make one.
    pub acquire_timeout: Duration,
    /// The longest that a statement of a writing transaction may run, at least 1 ms.
    pub statement_timeout: Duration,
    /// The longest that a read may take, at least 1 ms. With two seconds on top it is also how long a server that
    /// fell silent is waited for.
    pub read_timeout: Duration,
    /// The longest that a statement waits for another transaction's lock, at least 1 ms. With two seconds on top
    /// it is also how long the answer to the beginning of a transaction is waited for.
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
    /// Leaves the planner all its choices, so that a test sees which it would make.
    #[cfg(test)]
    pub(crate) unguarded: bool,
    /// A fault on purpose: positions come from a sequence and the head is not locked first.
    #[cfg(feature = "planted-bugs")]
    pub planted_sequence_positions: bool,
    /// Every append sleeps for a random time below this between taking positions and the commit.
    #[cfg(feature = "planted-bugs")]
    pub transaction_delay_max: Duration,
}

impl PostgresOptions {
    /// True if the server is on another machine and its certificate is not verified, or not even asked for: what the
    /// driver does unless the URL says otherwise. False for a URL that cannot be read.
    #[must_use]
    pub fn trusts_any_server(&self) -> bool {
        let Ok(options) = self.url.parse::<PgConnectOptions>() else {
            return false;
        };
        let host = options.get_host();
        let is_here = options.get_socket().is_some()
            || host.starts_with('/')
            || host == "localhost"
            || host.parse::<IpAddr>().is_ok_and(|host| host.is_loopback());
        let is_verified = matches!(
            options.get_ssl_mode(),
            PgSslMode::VerifyCa | PgSslMode::VerifyFull
        );
        !is_here && !is_verified
    }

    /// The defaults for a database.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            migrate: true,
            migrating: None,
            readers_max: 8,
            connect_timeout: Duration::from_secs(5),
            acquire_timeout: Duration::from_secs(10),
            statement_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(5),
            lock_timeout: Duration::from_secs(5),
            idle_in_transaction_timeout: Duration::from_secs(10),
            commit_timeout: Duration::from_secs(30),
            notifications: true,
            #[cfg(test)]
            unguarded: false,
            #[cfg(feature = "planted-bugs")]
            planted_sequence_positions: false,
            #[cfg(feature = "planted-bugs")]
            transaction_delay_max: Duration::ZERO,
        }
    }
}

impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            url: _,
            migrate,
            migrating: _,
            readers_max,
            connect_timeout,
            acquire_timeout,
            statement_timeout,
            read_timeout,
            lock_timeout,
            idle_in_transaction_timeout,
            commit_timeout,
            notifications,
            ..
        } = self;
        f.debug_struct("PostgresOptions")
            .field("url", &"[REDACTED]")
            .field("migrate", migrate)
            .field("readers_max", readers_max)
            .field("connect_timeout", connect_timeout)
            .field("acquire_timeout", acquire_timeout)
            .field("statement_timeout", statement_timeout)
            .field("read_timeout", read_timeout)
            .field("lock_timeout", lock_timeout)
            .field("idle_in_transaction_timeout", idle_in_transaction_timeout)
            .field("commit_timeout", commit_timeout)
            .field("notifications", notifications)
            .finish()
    }
}
