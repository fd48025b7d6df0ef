//! The machine and its disk, so that figures can be read.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::Result;

use crate::stats::quantile_ms;

/// Processors, kernel and versions, in one line.
pub(crate) fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "# Passline bench: {cores} cores, Linux {}, SQLite {}",
        kernel.trim(),
        rusqlite::version()
    )
}

/// Appends 4 KiB and syncs, 300 times: `p50 0.20 ms, p99 1.10 ms`.
pub(crate) fn fdatasync_probe() -> Result<String> {
    let (p50, p99) = fdatasync_quantiles()?;
    Ok(format!("p50 {p50:.2} ms, p99 {p99:.2} ms"))
}

/// A directory that is removed in the end, where test-kit's servers have theirs: `/tmp`, as a rule.
pub(crate) fn directory_beside_servers() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir()?)
}

/// The same as numbers of milliseconds.
pub(crate) fn fdatasync_quantiles() -> Result<(f64, f64)> {
    let mut file = tempfile::tempfile_in(root()?)?;
    file.write_all(&vec![0_u8; 300 * 4096])?;
    file.sync_all()?;
    let mut micros = Vec::with_capacity(300);
    for turn in 0..300_u64 {
        let start = Instant::now();
        file.write_all_at(&[turn as u8; 4096], turn * 4096)?;
        file.sync_data()?;
        micros.push(u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
    Ok((
        quantile_ms(&mut micros, 0.5),
        quantile_ms(&mut micros, 0.99),
    ))
}

/// Where everything is written: on the disk of the build, which is ignored by git.
fn root() -> Result<std::path::PathBuf> {
    let root = std::env::current_exe()?.with_file_name("bench-data");
    std::fs::create_dir_all(&root)?;
    Ok(root)
}

/// A directory that is removed in the end.
pub(crate) fn directory() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in(root()?)?)
}
