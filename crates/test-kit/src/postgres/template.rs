//! The cluster that all others are copies of. It is made once for each PostgreSQL, set of options and user, and
//! kept among the build's files.

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::geteuid;

use super::{ROLE, SERVER_USER, program, server_command, succeed};
use crate::home::Home;

/// English order of text, so that a query that counts on the order of bytes is found out.
const INITDB: &[&str] = &[
    "--auth=trust",
    "--encoding=UTF8",
    "--locale=C.UTF-8",
    "--locale-provider=icu",
    "--icu-locale=en-US",
    "--no-sync",
];
const INITDB_LIMIT: Duration = Duration::from_secs(120);
const COPY_LIMIT: Duration = Duration::from_secs(60);

/// Makes `data` a fresh cluster.
pub(super) async fn copy_to(home: &Home, data: &Path) -> anyhow::Result<()> {
    let template = ready(home).await?;
    copy(&template, data).await
}

/// Makes an empty directory that the server may fill.
pub(super) fn make_data_dir(path: &Path) -> anyhow::Result<()> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("{} cannot be made", path.display()))?;
    if geteuid().is_root() {
        let (user, group) = server_ids()?;
        chown(path, Some(user), Some(group))
            .with_context(|| format!("{} cannot be given away", path.display()))?;
    }
    Ok(())
}

/// The path of the template, which is made if it is not there.
async fn ready(home: &Home) -> anyhow::Result<PathBuf> {
    let initdb = program("initdb")?;
    let found = std::fs::metadata(&initdb)?;
    let mut key = DefaultHasher::new();
    (
        &initdb,
        found.mtime(),
        found.len(),
        INITDB,
        ROLE,
        geteuid().as_raw(),
    )
        .hash(&mut key);

    let cache = cache_dir()?;
    std::fs::create_dir_all(&cache)
        .with_context(|| format!("{} cannot be made", cache.display()))?;
    let template = cache.join(format!("postgres-{:016x}", key.finish()));
    if template.is_dir() {
        return Ok(template);
    }
    // Whoever comes second waits for the first one's work. The lock ends with the file.
    let lock = File::create(cache.join("postgres.lock"))?;
    let _locked = tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await??;
    if template.is_dir() {
        return Ok(template);
    }
    // Made where the server's user may write, which the build's directory need not allow.
    let made = home.path().join("template");
    make_data_dir(&made)?;
    let mut command = server_command("initdb")?;
    command
        .args(INITDB)
        .args(["--username", ROLE, "--pgdata"])
        .arg(&made)
        .current_dir(home.path());
    succeed(command, INITDB_LIMIT).await?;
    // A copy that was cut short never has the name that is looked for.
    let unfinished = template.with_extension("unfinished");
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished)?;
    }
    copy(&made, &unfinished).await?;
    std::fs::rename(&unfinished, &template)?;
    std::fs::remove_dir_all(&made)?;
    Ok(template)
}

/// Copies a cluster with its owner and modes.
async fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("cp");
    command
        .args(["--archive", "--reflink=auto", "--"])
        .arg(from)
        .arg(to);
    succeed(command, COPY_LIMIT).await
}

/// A directory of the build that the running program belongs to. Cargo locks the directory of each profile by a file;
/// its mark of the whole build directory is missing where something else made that before.
fn cache_dir() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("the path of the running program")?;
    let target = program
        .ancestors()
        .find(|path| path.join(".cargo-lock").is_file())
        .with_context(|| format!("{} is in no target directory of cargo's", program.display()))?;
    Ok(target.join("test-kit"))
}

/// The user and group ids of the server's user.
fn server_ids() -> anyhow::Result<(u32, u32)> {
    std::fs::read_to_string("/etc/passwd")?
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let named = fields.next() == Some(SERVER_USER);
            let ids = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            named.then_some(ids)
        })
        .with_context(|| {
            format!(
                "there is no user {SERVER_USER}: run `tests/run tools`, which installs PostgreSQL"
            )
        })
}
