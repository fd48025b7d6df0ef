//! Kills the services under load for as long as asked, and judges what is left.
//!
//! ```text
//! tests/run chaos --rounds 100 --seed 7
//! ```
//!
//! It starts and kills only its own children, on leased loopback ports, in a temporary directory. It ends
//! with 0 if every judgement was clean, or with `--planted`, if the defect was caught; else with 1.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use clap::{Parser, ValueEnum};
use system_tests::chaos::{Plan, Round, Victims, run};
use system_tests::service::Strace;
use system_tests::stand::{Options, Programs};
use test_kit::tool;

/// Kills the gateway and pass-state at random moments under load, and checks that nothing that was answered
/// 200 is lost, recorded twice or made up.
#[derive(Parser)]
struct Arguments {
    /// Kills to do; each takes one to two seconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
    /// Repeats the choices of an earlier run. Chosen by the clock and printed unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// Plants a defect, which then has to be caught.
    #[arg(long)]
    planted: Option<Planted>,
    /// Draws commits and spool writes out by holding up each write, so that kills hit them; always so for the
    /// service with a planted defect. Needs strace.
    #[arg(long)]
    slow_writes: bool,
    /// The directory with the programs under test. Built beside this program unless given.
    #[arg(long)]
    programs: Option<PathBuf>,
    /// Gives up after so many seconds; 0 means ten seconds for each round.
    #[arg(long, default_value_t = 0)]
    seconds_max: u64,
}

/// How long `--slow-writes` holds up each write.
const SLOW_WRITE: Duration = Duration::from_millis(2);

/// The defects that a kill brings to light.
#[derive(Clone, Copy, ValueEnum)]
enum Planted {
    /// pass-state acknowledges before it commits.
    AckBeforeCommit,
    /// The gateway answers 200 before it writes and syncs.
    AnswerBeforeSync,
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    let programs = match &arguments.programs {
        Some(directory) => programs_in(directory)?,
        None => build()?,
    };
    let seed = arguments.seed.unwrap_or_else(seed_of_the_clock);
    let mut options = Options::default();
    let slow = || {
        anyhow::Ok(Some(Strace::slowing_writes(
            tool("PASSLINE_STRACE")?,
            SLOW_WRITE,
        )))
    };
    if arguments.slow_writes {
        options.gateway_strace = slow()?;
        options.state_strace = slow()?;
    }
    let victims = match arguments.planted {
        Some(Planted::AckBeforeCommit) => {
            options.writer_keys = "planted_ack_before_commit = true".to_owned();
            options.state_strace = slow()?;
            Victims::State
        }
        Some(Planted::AnswerBeforeSync) => {
            options.spool_keys = "planted_answer_before_sync = true".to_owned();
            options.gateway_strace = slow()?;
            Victims::Gateway
        }
        None => Victims::Both,
    };
    let plan = Plan {
        rounds: arguments.rounds as usize,
        seed,
        options,
        stop_when_broken: true,
        judge_each_round: arguments.planted.is_some(),
        victims,
    };
    let limit = match arguments.seconds_max {
        0 => Duration::from_secs(u64::from(arguments.rounds) * 10 + 60),
        seconds => Duration::from_secs(seconds),
    };
    println!(
        "chaos --rounds {} --seed {seed}, at most {} s",
        arguments.rounds,
        limit.as_secs()
    );
    println!("round  killed            after ms  ready in ms    answered 200   attempts");
    let began = Instant::now();
    let mut watch = |round: &Round| {
        println!(
            "{:>5}  {:<16}  {:>8}  {:>11}  {:>14}  {:>9}",
            round.number,
            round.victim,
            round.after.as_millis(),
            round.ready_after.as_millis(),
            round.stored,
            round.attempts
        );
    };
    let report = tokio::time::timeout(limit, run(&programs, &plan, &mut watch))
        .await
        .with_context(|| format!("not done within {limit:?}; repeat it with --seed {seed}"))?
        .with_context(|| format!("repeat it with --seed {seed}"))?;
    println!(
        "\n{} kills in {} s; slowest start: webhook-gateway {} ms, pass-state {} ms",
        report.rounds,
        began.elapsed().as_secs(),
        report.gateway_ready_max.as_millis(),
        report.state_ready_max.as_millis()
    );
    print!("{}", report.verdict);
    let caught = !report.verdict.is_clean();
    println!(
        "{}",
        match (caught, arguments.planted.is_some()) {
            (false, false) =>
                "clean: nothing lost, nothing twice, nothing made up, books balance".to_owned(),
            (true, true) => format!(
                "caught: the planted defect was found after {} kills",
                report.rounds
            ),
            (true, false) => format!("BROKEN; repeat it with --seed {seed}"),
            (false, true) => "NOT CAUGHT: the planted defect went unnoticed".to_owned(),
        }
    );
    Ok(if caught == arguments.planted.is_some() {
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
