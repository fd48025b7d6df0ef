//! What an operator does to a store beside the running service: migrate, rotate the epoch, copy.

use std::path::{Path, PathBuf};

use pass_store::{self as store, Head, PassStore as _, SqlStore};

use crate::config::{Config, Migrations};
use crate::service::PassState;
use crate::service::start::Opener;

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum MaintenanceError {
    /// The store can't be opened or changed; the error says what to do.
    #[error("the store {place} can't be used")]
    Store {
        /// The database, without secrets.
        place: String,
        /// Why.
        source: store::Error,
    },
    /// There is no database yet.
    #[error("there is no database at {path}; check store.path and --data-dir")]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Copies are for SQLite.
    #[error(
        "backup copies SQLite files only; for PostgreSQL use pg_dump, or pg_basebackup with archived WAL"
    )]
    NotSqlite,
}

impl PassState {
    /// Brings the database's schema up to date, and ends.
    ///
    /// # Errors
    /// If the store can't be opened.
    pub async fn migrate(config: &Config, data_dir: &Path) -> Result<(), MaintenanceError> {
        let opener = Opener::new(&config.store, data_dir);
        let opened = opener.open_with(Migrations::Auto).await;
        opened
            .map_err(|error| broken(&opener, error))?
            .close()
            .await;
        Ok(())
    }

    /// Gives the log a new epoch, and ends: every cursor from before is refused from then on. For after the
    /// database was put back in time, if no gateway's spool has told the service so. Safe while the service
    /// runs; its subscribers are told at once.
    ///
    /// # Errors
    /// If the store can't be opened or changed, or is not there.
    pub async fn epoch_rotate(config: &Config, data_dir: &Path) -> Result<Head, MaintenanceError> {
        let opener = Opener::new(&config.store, data_dir);
        let store = existing(&opener, config.store.migrations).await?;
        let head = store.epoch_rotate().await;
        store.close().await;
        head.map_err(|error| broken(&opener, error))
    }

    /// Copies an SQLite database into a new file, as it is at one moment, and ends. Safe while the service
    /// runs. Changes no schema.
    ///
    /// # Errors
    /// If the backend is PostgreSQL, the store can't be opened or is not there, or the file can't be written
    /// or is there already.
    pub async fn backup(
        config: &Config,
        data_dir: &Path,
        to: &Path,
    ) -> Result<(), MaintenanceError> {
        let opener = Opener::new(&config.store, data_dir);
        if opener.file().is_none() {
            return Err(MaintenanceError::NotSqlite);
        }
        let store = existing(&opener, Migrations::Off).await?;
        let copied = store.backup(to).await;
        store.close().await;
        copied.map_err(|error| broken(&opener, error))
    }
}

fn broken(opener: &Opener, source: store::Error) -> MaintenanceError {
    let place = opener.place();
    MaintenanceError::Store { place, source }
}

/// Opens a store that must be there: SQLite would make a new one at a mistyped path.
async fn existing(opener: &Opener, migrations: Migrations) -> Result<SqlStore, MaintenanceError> {
    if let Some(path) = opener.file().filter(|path| !path.is_file()) {
        let path = path.to_owned();
        return Err(MaintenanceError::Missing { path });
    }
    let opened = opener.open_with(migrations).await;
    opened.map_err(|error| broken(opener, error))
}
