//! Takes over what another embedded spool holds: `webhook-gateway spool import`.
//!
//! This is how nothing is lost of a spool that was put back to an earlier moment, that was found on the disk of a dead
//! machine, or whose gateway moves to JetStream. Everything that the other spool still keeps goes to the configured one
//! under new sequences, whether pass-state has it or not: what it has it knows by the delivery's id. So repeating an
//! import is harmless, and one that broke off is simply repeated.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use pass_spool::{
    AppendError, EmbeddedOptions, EmbeddedSpool, LeaseError, Leased, OpenError, RecordId,
    RewindError, Sequence, Spool, SpoolId,
};
use tokio::task::unconstrained;

use crate::backend;
use crate::config::{Config, SpoolBackend};
use crate::gateway::{BuildError, Dependencies};
use crate::record;

/// The file that every embedded spool has.
const ID_FILE: &str = "spool.id";
/// Records read at once.
const LEASE_RECORDS: usize = 1_024;
/// Bytes read at once, unless a single record has more.
const LEASE_BYTES: usize = 8 << 20;
/// Appends that wait for the disk or the server together.
const APPENDS_AT_ONCE: usize = 256;
/// Longest wait for one read; also how the end of a spool shows whose last records are in quarantine.
const LEASE_WAIT_MAX: Duration = Duration::from_secs(30);

/// What an import did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Records that are durable in the configured spool now.
    pub records: u64,
    /// Those of them that this release can't read; forwarding will stop at the first until a release that can.
    pub unreadable: u64,
    /// The other spool's sequences that it did not keep any more: pass-state has acknowledged them long ago.
    pub dropped: Option<RangeInclusive<u64>>,
    /// Records missing among those that it should still keep: an operator moved damage aside.
    pub missing: u64,
    /// The configured spool.
    pub spool: SpoolId,
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} deliveries imported into spool {}",
            self.records, self.spool
        )?;
        if let Some(dropped) = &self.dropped {
            let (first, last) = (dropped.start(), dropped.end());
            write!(
                f,
                "\nsequences {first} to {last} were not kept any more, since pass-state had acknowledged them"
            )?;
        }
        if self.missing > 0 {
            write!(
                f,
                "\n{} sequences were missing, as damage was moved aside",
                self.missing
            )?;
        }
        if self.unreadable > 0 {
            write!(
                f,
                "\n{} of them can't be read by this release; forwarding stops at the first until one that can",
                self.unreadable
            )?;
        }
        Ok(())
    }
}

/// Why an import was refused or broke off. What it had imported before is durable; repeating it is harmless.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// There is no spool in the directory.
    #[error("{} is no spool, it has no file {ID_FILE}; name the directory that was moved aside", dir.display())]
    NoSpool {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory is that of the configured spool.
    #[error("{} is the configured spool itself; move it aside, then import it from there", dir.display())]
    Same {
        /// The directory.
        dir: PathBuf,
    },
    /// The other spool can't be opened; the error says what to do.
    #[error("the spool to import can't be opened")]
    Open(#[from] OpenError),
    /// The configured spool can't be opened; the error says what to do.
    #[error("the configured spool can't be used; stop the gateway first if the spool is embedded")]
    Target(#[from] BuildError),
    /// The other spool can't be read from its start.
    #[error("the spool to import can't be read")]
    Rewind(#[from] RewindError),
    /// A record of the other spool can't be read.
    #[error(
        "sequence {sequence} of the spool to import can't be read; everything before it is imported"
    )]
    Read {
        /// The first record that was not read.
        sequence: u64,
        /// What the spool said.
        source: LeaseError,
    },
    /// The other spool did not give its last records.
    #[error(
        "sequences {first} to {last} of the spool to import were not given within {LEASE_WAIT_MAX:?}: damage there was \
         moved aside, or the disk does not answer; everything before them is imported"
    )]
    Withheld {
        /// The first of them.
        first: u64,
        /// The last of them.
        last: u64,
    },
    /// The configured spool did not take a record.
    #[error(
        "sequence {sequence} of the spool to import was not taken; repeat the import once that is mended"
    )]
    Append {
        /// The first record that was not taken for certain.
        sequence: u64,
        /// What the configured spool said.
        source: AppendError,
    },
}

impl ImportError {
    /// True if the command was called wrongly, and nothing was touched.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, ImportError::NoSpool { .. } | ImportError::Same { .. })
    }
}

/// Appends everything that the embedded spool in `dir` keeps to the configured spool, and returns once it is durable
/// there. Needs an embedded spool for itself alone, so its gateway has to be stopped; a spool on JetStream may be in use.
/// The other spool stays as it is, but for the repair that any opening makes; it must not be in use either.
///
/// # Errors
/// See [`ImportError`].
pub async fn spool_import(
    config: &Config,
    dependencies: Dependencies,
    dir: &Path,
) -> Result<Imported, ImportError> {
    if !dir.join(ID_FILE).is_file() {
        return Err(ImportError::NoSpool { dir: dir.into() });
    }
    let Dependencies {
        clock,
        env,
        data_dir,
        config_from: _,
    } = dependencies;
    if config.spool.backend == SpoolBackend::Embedded && is_same(dir, &config.spool_dir(&data_dir))
    {
        return Err(ImportError::Same { dir: dir.into() });
    }
    let options = other_options(dir);
    let opening = tokio::task::spawn_blocking(move || EmbeddedSpool::open(options));
    let other = opening.await.expect("opening the spool does not panic")?;
    let imported = match backend::open(config, &env, &data_dir, &clock, Arc::new(|_| {})).await {
        Ok(spool) => {
            let imported = copy(&other, &*spool).await;
            spool.close().await;
            imported
        }
        Err(error) => Err(error.into()),
    };
    other.close().await;
    imported
}

fn is_same(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        // What does not exist is no other's.
        _ => false,
    }
}

/// Settings to read a spool with, whatever it was written with: opening prepares a segment, which may be small, and
/// nothing is removed for its age.
fn other_options(dir: &Path) -> EmbeddedOptions {
    let mut options = EmbeddedOptions::new(dir);
    options.record_bytes_max = 1 << 10;
    options.segment_bytes = 64 << 10;
    options.retain_age = Duration::MAX;
    options
}

async fn copy(from: &dyn Spool, to: &dyn Spool) -> Result<Imported, ImportError> {
    let last = from.status().last_durable.0;
    let dropped = from.rewind(Sequence(0)).await?.missing;
    let first = dropped.as_ref().map_or(1, |dropped| dropped.end() + 1);
    let mut imported = Imported {
        records: 0,
        unreadable: 0,
        dropped,
        missing: 0,
        spool: to.id(),
    };
    let mut next = first;
    while next <= last {
        let lease = from.lease(LEASE_RECORDS, LEASE_BYTES);
        let leased = match tokio::time::timeout(LEASE_WAIT_MAX, lease).await {
            Ok(leased) => leased.map_err(|source| ImportError::Read {
                sequence: next,
                source,
            })?,
            Err(_) => return Err(ImportError::Withheld { first: next, last }),
        };
        // Unconstrained, since a task's budget would let later ones go first.
        let appends = leased
            .into_iter()
            .map(|leased| unconstrained(append(from.id(), leased, to)));
        let mut appends = stream::iter(appends).buffered(APPENDS_AT_ONCE);
        while let Some(appended) = appends.next().await {
            let (sequence, readable) = appended?;
            imported.records += 1;
            imported.unreadable += u64::from(!readable);
            next = sequence + 1;
        }
    }
    imported.missing = (last + 1 - first).saturating_sub(imported.records);
    Ok(imported)
}

/// Appends one record; gives its sequence in the other spool and whether it can be read.
async fn append(from: SpoolId, leased: Leased, to: &dyn Spool) -> Result<(u64, bool), ImportError> {
    let sequence = leased.sequence.0;
    let delivery = record::decode(leased.record.clone()).ok();
    let readable = delivery.is_some();
    let id = delivery
        .and_then(|delivery| delivery.id.try_into().ok())
        .unwrap_or_else(|| id_of_place(from, sequence));
    match to.append(RecordId(id), leased.record).await {
        Ok(_) => Ok((sequence, readable)),
        Err(source) => Err(ImportError::Append { sequence, source }),
    }
}

/// An id for a record that shows none: as random as the id of its spool, and the same when the import is repeated.
fn id_of_place(spool: SpoolId, sequence: u64) -> [u8; 16] {
    let id = u128::from_be_bytes(*spool.as_bytes()) ^ u128::from(sequence);
    id.to_be_bytes()
}

#[cfg(test)]
mod tests;
