//! What Prometheus expects to know of every process. Read from the kernel when somebody looks.
//!
//! Names are those that Prometheus' client libraries agree on, since dashboards and rules of others are made for them.
//! OpenTelemetry's (`process.cpu.time`, `process.memory.usage`, `process.unix.file_descriptor.count`) are still in
//! development.

use std::fs;
use std::time::SystemTime;

use rustix::time::{ClockId, clock_gettime};

use super::Metrics;
use crate::clock::{Clock as _, SystemClock};

/// Shows processor time, memory, open files and the start.
pub(super) fn observe(metrics: &Metrics) {
    metrics.float_counter(
        "process.cpu",
        "s",
        "Processor time of the process, user and system.",
        cpu_seconds,
    );
    metrics.gauges(
        "process.resident_memory",
        "By",
        "Memory of the process that is resident.",
        |seen| {
            if let Some(bytes) = resident_bytes() {
                seen.observe(bytes as f64, &[]);
            }
        },
    );
    metrics.gauges(
        "process.open_fds",
        "{file}",
        "Open file descriptors.",
        |seen| {
            if let Some(count) = open_files() {
                seen.observe(count as f64, &[]);
            }
        },
    );
    let start = start_seconds();
    metrics.gauge(
        "process.start_time",
        "s",
        "When the process started, Unix time.",
        move || start,
    );
}

fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn resident_bytes() -> Option<u64> {
    let pages: u64 = fs::read_to_string("/proc/self/statm")
        .ok()?
        .split(' ')
        .nth(1)?
        .parse()
        .ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

fn open_files() -> Option<usize> {
    // One of them is the directory that is being read.
    Some(
        fs::read_dir("/proc/self/fd")
            .ok()?
            .count()
            .saturating_sub(1),
    )
}

/// When the process started: the wall clock's time less the process's age, or now if that is not known.
fn start_seconds() -> f64 {
    let now = SystemTime::from(SystemClock.now())
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    now - age_seconds().unwrap_or_default()
}

fn age_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The command's name in parentheses may hold spaces; the start is the 20th field after it, in ticks since the boot.
    let ticks: f64 = stat
        .rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(19)?
        .parse()
        .ok()?;
    let since_boot = clock_gettime(ClockId::Boottime);
    let now = since_boot.tv_sec as f64 + since_boot.tv_nsec as f64 / 1e9;
    Some((now - ticks / rustix::param::clock_ticks_per_second() as f64).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells_about_this_process() {
        let before = open_files().unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        assert_eq!(open_files().unwrap(), before + 1);
        drop(file);
        assert!(resident_bytes().unwrap() > 100 << 10);
        assert!(cpu_seconds() > 0.0);
        let age = age_seconds().unwrap();
        assert!((0.0..3600.0).contains(&age), "{age}");
    }
}
