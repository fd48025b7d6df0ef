//! Breaks things under load for as long as asked, and judges what is left.
//!
//! ```text
//! tests/run chaos --rounds 100 --seed 7
//! tests/run chaos torture --planted sequence-positions
//! ```
//!
//! It starts and kills only its own children, on leased loopback ports, in temporary directories. It ends
//! with 0 if every judgement was clean, or with `--planted`, if the defect was caught; else with 1; with 64 if
//! its arguments make no sense.

mod jetstream;
mod kill;
mod postgres;
mod torture;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand};
use system_tests::fleet::Programs;
use system_tests::oracle::Verdict;

/// Breaks things under load, and checks that nothing that was answered 200 is lost, recorded twice or made up.
#[derive(Parser)]
#[command(name = "chaos", args_conflicts_with_subcommands = true)]
struct Chaos {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    kill: kill::Arguments,
}

#[derive(Subcommand)]
enum What {
    /// Kills the gateway and pass-state at random moments. What is done without a subcommand.
    Kill(kill::Arguments),
    /// Replicas on one PostgreSQL write at once and are killed; subscribers must see one log without a gap.
    Torture(torture::Arguments),
    /// PostgreSQL is killed, restarted, and cut off in the middle of commits.
    Postgres(postgres::Arguments),
    /// Gateways on a JetStream stream lose process and disk, the NATS server its process.
    Jetstream(jetstream::Arguments),
}

/// What every run takes.
#[derive(Args, Clone)]
struct Common {
    /// Repeats the choices of an earlier run. Chosen by the clock and printed unless given.
    #[arg(long, default_value_t = seed_of_the_clock(), hide_default_value = true)]
    seed: u64,
    /// The directory with the programs under test. Built beside this program unless given.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Gives up after so many seconds; 0 means a time that fits what is to be done.
    #[arg(long, default_value_t = 0)]
    seconds_max: u64,
}

impl Common {
    fn programs(&self) -> anyhow::Result<Programs> {
        match &self.programs {
            Some(directory) => programs_in(directory),
            None => build(),
        }
    }

    /// The time that a run may take, if `usual` fits it.
    fn limit(&self, usual: Duration) -> Duration {
        match self.seconds_max {
            0 => usual,
            seconds => Duration::from_secs(seconds),
        }
    }

    /// Bounds a run, and tells how to repeat one that failed.
    async fn bounded<T>(
        &self,
        limit: Duration,
        run: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let again = || format!("repeat it with --seed {}", self.seed);
        tokio::time::timeout(limit, run)
            .await
            .with_context(|| format!("not done within {limit:?}; {}", again()))?
            .with_context(again)
    }

    /// Tells how a run without planted defects ended; true if it is clean.
    fn tell(&self, verdict: &Verdict) -> bool {
        print!("{verdict}");
        if verdict.is_clean() {
            println!("clean: nothing lost, nothing twice, nothing made up, books balance");
        } else {
            println!("BROKEN; repeat it with --seed {}", self.seed);
        }
        verdict.is_clean()
    }
}

/// How many faults a run has.
#[derive(Args, Clone)]
struct Rounds {
    /// Faults, each kind in turn; each takes one to three seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
}

impl Rounds {
    /// What so many rounds may take.
    fn limit(&self) -> Duration {
        Duration::from_secs(u64::from(self.rounds) * 20 + 120)
    }
}

/// Exit code for arguments that make no sense, as the services have it.
const USAGE: u8 = 64;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = match Chaos::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            error.print()?;
            return Ok(if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            });
        }
    };
    let as_it_must_be = match arguments.what.unwrap_or(What::Kill(arguments.kill)) {
        What::Kill(arguments) => kill::run(arguments).await?,
        What::Torture(arguments) => torture::run(arguments).await?,
        What::Postgres(arguments) => postgres::run(arguments).await?,
        What::Jetstream(arguments) => jetstream::run(arguments).await?,
    };
    Ok(if as_it_must_be {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a seed only has to differ from run to run, and is printed"
)]
fn seed_of_the_clock() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since.as_secs() ^ u64::from(since.subsec_nanos())
}

fn programs_in(directory: &Path) -> anyhow::Result<Programs> {
    let programs = Programs {
        gateway: directory.join("gateway-under-test"),
        state: directory.join("pass-state-under-test"),
    };
    for program in [&programs.gateway, &programs.state] {
        ensure!(
            program.is_file(),
            "{} is missing; leave --programs out to have it built",
            program.display()
        );
    }
    Ok(programs)
}

/// Has cargo build the programs into this program's own directory, with its profile. `cargo run` builds only
/// the program that it runs.
fn build() -> anyhow::Result<Programs> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let directory = own.parent().context("this program is in no directory")?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--package", "system-tests"]);
    cargo.args([
        "--bin",
        "gateway-under-test",
        "--bin",
        "pass-state-under-test",
    ]);
    if directory.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .context("cannot run cargo; name the programs' directory by --programs")?;
    ensure!(
        status.success(),
        "cargo could not build the programs under test"
    );
    programs_in(directory)
}
