//! Opening the store, waiting for it if it is away, and starting what stands on it.
//!
//! | opening says | SQLite | PostgreSQL |
//! |---|---|---|
//! | the schema lags and may not be changed | waits until somebody has migrated it | the same |
//! | for the moment not, or this role may not | fails: another process holds the file | waits |
//! | unfit, damaged | fails | fails |
//!
//! Waiting means: not ready, with the reason, and trying again every second. Migrating can take long; meanwhile the
//! service is not ready and says so.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pass_store::{self as store, PassStore, PostgresOptions, SqlStore, SqliteOptions};
use service_kit::clock::Clock;
use service_kit::shutdown::Shutdown;
use tokio::sync::watch;
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::RunError;
use crate::config::{Backend, Config, Migrations, StoreConfig};
use crate::health::StoreHealth;
use crate::metrics::Measures;
use crate::tail::Tail;
use crate::writer::{Writer, writer};

/// Time between two attempts to open the store.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Time for closing the store. What is not closed by then the end of the process closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Opens the configured store; may be tried again.
#[derive(Clone)]
pub(crate) struct Opener {
    config: StoreConfig,
    path: PathBuf,
}

/// An open store, and how it tells that it is beyond help.
pub(super) struct Opened {
    pub(super) store: Arc<dyn PassStore>,
    pub(super) fatal: watch::Receiver<Option<String>>,
}

impl Opener {
    pub(crate) fn new(config: &StoreConfig, data_dir: &Path) -> Self {
        Self {
            config: config.clone(),
            path: config.path(data_dir),
        }
    }

    /// Where the store is, in words without secrets.
    pub(crate) fn place(&self) -> String {
        match self.config.backend {
            Backend::Sqlite => format!("at {}", self.path.display()),
            Backend::Postgres => "that store.postgres.url names".to_owned(),
        }
    }

    /// The SQLite file, if that is the backend.
    pub(crate) fn file(&self) -> Option<&Path> {
        (self.config.backend == Backend::Sqlite).then_some(self.path.as_path())
    }

    /// Opens the store; changes its schema as configured, and says so while it does.
    async fn open(&self, health: &StoreHealth) -> Result<SqlStore, store::Error> {
        let (migrating, mut told) = watch::channel(0);
        let opening = self.open_and_tell(self.config.migrations, Some(migrating));
        let telling = async {
            while told.changed().await.is_ok() {
                let migrations = *told.borrow_and_update();
                tracing::info!(migrations, "migrating the database's schema");
                health.waiting(&format!(
                    "migrating the database's schema: {migrations} migrations to go"
                ));
            }
            std::future::pending().await
        };
        tokio::select! {
            opened = opening => opened,
            never = telling => never,
        }
    }

    /// Opens the store; changes its schema if told so.
    pub(crate) async fn open_with(&self, migrations: Migrations) -> Result<SqlStore, store::Error> {
        self.open_and_tell(migrations, None).await
    }

    async fn open_and_tell(
        &self,
        migrations: Migrations,
        migrating: Option<watch::Sender<usize>>,
    ) -> Result<SqlStore, store::Error> {
        let migrate = migrations == Migrations::Auto;
        match self.config.backend {
            Backend::Sqlite => {
                let options = SqliteOptions {
                    migrate,
                    migrating,
                    ..SqliteOptions::new(&self.path)
                };
                SqlStore::open(options).await
            }
            Backend::Postgres => {
                let options = PostgresOptions {
                    migrate,
                    migrating,
                    ..self.postgres()?
                };
                SqlStore::open_postgres(options).await
            }
        }
    }

    fn postgres(&self) -> Result<PostgresOptions, store::Error> {
        let config = &self.config.postgres;
        let url = config.url_text().ok_or_else(|| {
            store::Error::Unfit("store.postgres.url is missing, or is no text: set it".to_owned())
        })?;
        Ok(PostgresOptions {
            readers_max: config.readers_max,
            connect_timeout: config.connect_timeout.get(),
            acquire_timeout: config.acquire_timeout.get(),
            statement_timeout: config.statement_timeout.get(),
            read_timeout: config.read_timeout.get(),
            lock_timeout: config.lock_timeout.get(),
            idle_in_transaction_timeout: config.idle_in_transaction_timeout.get(),
            commit_timeout: config.commit_timeout.get(),
            notifications: config.notifications,
            #[cfg(feature = "planted-bugs")]
            planted_sequence_positions: config.planted_sequence_positions,
            #[cfg(feature = "planted-bugs")]
            transaction_delay_max: config.planted_transaction_delay_max.get(),
            ..PostgresOptions::new(url)
        })
    }

    /// True if opening may succeed later without this process being started anew.
    fn may_come(&self, error: &store::Error) -> bool {
        match error {
            store::Error::NotMigrated { .. } => true,
            store::Error::Unavailable(_) | store::Error::OutcomeUnknown(_) => {
                self.config.backend == Backend::Postgres
            }
            store::Error::Refused(_)
            | store::Error::Untrusted
            | store::Error::Corrupt(_)
            | store::Error::Unfit(_) => false,
        }
    }
}

impl From<SqlStore> for Opened {
    fn from(store: SqlStore) -> Self {
        let fatal = store.fatal();
        Self {
            store: Arc::new(store),
            fatal,
        }
    }
}

/// Where the store comes from when the service runs.
pub(super) enum Source {
    /// It is open.
    Open(Opened),
    /// It has yet to be opened.
    Closed(Box<Opener>),
}

/// What runs on an open store.
pub(super) struct Engine {
    pub(super) store: Arc<dyn PassStore>,
    pub(super) tail: Arc<Tail>,
    pub(super) writer: Writer,
    fatal: watch::Receiver<Option<String>>,
    /// `None` once it was asked how it ended.
    writing: Option<JoinHandle<()>>,
    tailing: Option<JoinHandle<()>>,
    stop_writer: CancellationToken,
    stop_tail: CancellationToken,
}

/// Opens the store and starts what stands on it, waiting for the store if need be. `None` if told to stop
/// meanwhile.
///
/// # Errors
/// If the store turns out to be unfit.
pub(super) async fn start(
    source: Source,
    config: &Config,
    health: &Arc<StoreHealth>,
    clock: &Arc<dyn Clock>,
    shutdown: &Shutdown,
    measures: &Arc<Measures>,
) -> Result<Option<Engine>, RunError> {
    let opened = match source {
        Source::Open(opened) => opened,
        Source::Closed(opener) => tokio::select! {
            opened = open(&opener, health) => opened?,
            () = shutdown.stopping() => return Ok(None),
        },
    };
    let starting = follow(&opened.store, config, health);
    let tail = tokio::select! {
        tail = starting => tail,
        () = shutdown.stopping() => {
            close(&*opened.store).await;
            return Ok(None);
        }
    };
    let (writer, task) = writer(
        Arc::clone(&opened.store),
        Arc::clone(&tail),
        Arc::clone(health),
        Arc::clone(measures),
        Arc::clone(clock),
        config.writer.clone(),
    );
    let (stop_writer, stop_tail) = (CancellationToken::new(), CancellationToken::new());
    let writing = tokio::spawn(task.run(stop_writer.clone()));
    let tailing = tokio::spawn(Arc::clone(&tail).run(writer.clone(), stop_tail.clone()));
    Ok(Some(Engine {
        store: opened.store,
        tail,
        writer,
        fatal: opened.fatal,
        writing: Some(writing),
        tailing: Some(tailing),
        stop_writer,
        stop_tail,
    }))
}

/// Tries until the store opens. A reason is logged when it is a new one.
async fn open(opener: &Opener, health: &StoreHealth) -> Result<Opened, RunError> {
    let mut told = String::new();
    loop {
        let why = match opener.open(health).await {
            Ok(store) => {
                if !told.is_empty() {
                    tracing::info!("the store is open");
                }
                return Ok(store.into());
            }
            Err(error) if opener.may_come(&error) => error.to_string(),
            Err(source) => {
                let place = opener.place();
                return Err(RunError::Store { place, source });
            }
        };
        health.away(&why);
        if why != told {
            tracing::warn!(
                error = why,
                "the store cannot be opened yet; trying again every second"
            );
            told = why;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Closes a store, in time also if its database does not answer.
pub(super) async fn close(store: &dyn PassStore) {
    if tokio::time::timeout(CLOSE_TIMEOUT, store.close())
        .await
        .is_err()
    {
        tracing::warn!("the store's connections did not close in time; the process ends without");
    }
}

/// Starts at the log's end; tries again while the store is away.
async fn follow(
    store: &Arc<dyn PassStore>,
    config: &Config,
    health: &Arc<StoreHealth>,
) -> Arc<Tail> {
    loop {
        let started = Tail::new(
            Arc::clone(store),
            Arc::clone(health),
            config.subscriptions.clone(),
        );
        match started.await {
            Ok(tail) => return tail,
            Err(error) => {
                tracing::warn!(error = %error, "the log's end cannot be looked up; trying again");
                health.away("reading failed");
            }
        }
        tokio::time::sleep(config.subscriptions.poll_interval_idle.get()).await;
    }
}

impl Engine {
    /// Waits until a part of it has ended by itself, which none should, and says why.
    pub(super) async fn broken(&mut self) -> RunError {
        tokio::select! {
            reason = beyond_help(&mut self.fatal) => {
                tracing::error!(reason, "the store must not be used any more; the service ends");
                RunError::StoreFatal(reason)
            }
            _ = ended(&mut self.writing) => RunError::Task("writer"),
            _ = ended(&mut self.tailing) => RunError::Task("tail"),
        }
    }

    /// Ends the writer and the tail, once nobody hands them work any more.
    pub(super) async fn finish(&mut self) -> Result<(), RunError> {
        self.stop_writer.cancel();
        self.stop_tail.cancel();
        let mut result = Ok(());
        for (name, task) in [("writer", &mut self.writing), ("tail", &mut self.tailing)] {
            if task.is_some() {
                let ended = ended(task).await;
                result = result.and(ended.map_err(|_| RunError::Task(name)));
            }
        }
        result
    }

    /// Cuts both.
    pub(super) fn abort(&self) {
        for task in [&self.writing, &self.tailing].into_iter().flatten() {
            task.abort();
        }
    }
}

/// Waits for a task, once; for ever if it was asked before. Cancel safe.
async fn ended(task: &mut Option<JoinHandle<()>>) -> Result<(), JoinError> {
    match task {
        Some(handle) => {
            let ended = handle.await;
            *task = None;
            ended
        }
        None => std::future::pending().await,
    }
}

/// Waits until the store is beyond help, and says why.
async fn beyond_help(fatal: &mut watch::Receiver<Option<String>>) -> String {
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
