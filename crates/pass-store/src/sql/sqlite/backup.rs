//! A consistent copy of the database while it is in use.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sea_orm::sea_query::Value;
use sea_orm::{ConnectionTrait, DbBackend, Statement};

use super::{Connections, explain};
use crate::contract::Error;

/// Copies everything that is committed into a new file, and makes it durable. It reads in one transaction:
/// writers go on, and the write-ahead log grows meanwhile. Checkpoints wait for it.
pub(in crate::sql) async fn backup(connections: &Connections, to: &Path) -> Result<(), Error> {
    let unfit = |error: std::io::Error| {
        Error::Unfit(format!(
            "backup: {}: {error}; name a new file in a directory that is writable",
            to.display()
        ))
    };
    let Some(name) = to.to_str() else {
        return Err(Error::Unfit(format!(
            "backup: {}: the path is not UTF-8",
            to.display()
        )));
    };
    // SQLite takes an empty file for none, so this makes sure that nothing is overwritten.
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to);
    made.map_err(unfit)?;
    let statement = Statement::from_sql_and_values(
        DbBackend::Sqlite,
        "VACUUM INTO ?",
        [Value::String(Some(name.to_owned()))],
    );
    let connection = connections.checkpointer.connection();
    let copied = match connection.execute_raw(statement).await {
        Ok(_) => durable(to).map_err(unfit),
        Err(error) => Err(explain(error)),
    };
    if copied.is_err()
        && let Err(error) = std::fs::remove_file(to)
    {
        tracing::warn!(file = %to.display(), error = %error, "the rest of a failed backup is still there");
    }
    copied
}

fn durable(file: &Path) -> std::io::Result<()> {
    File::open(file)?.sync_all()?;
    let directory = match file.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
