//! `chaos kill`: kills of the services.

use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use system_tests::chaos::kill::{Plan, Round, Victims};
use system_tests::fleet::{Layout, Options};
use system_tests::service::Strace;
use test_kit::tool;

use crate::Common;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Kills to do; each takes one to two seconds.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rounds: u32,
    /// Plants a defect, which then has to be caught.
    #[arg(long)]
    planted: Option<Planted>,
    /// Draws commits and spool writes out by holding up each write, so that kills hit them; always so for the
    /// service with a planted defect. Needs strace.
    #[arg(long)]
    slow_writes: bool,
    #[command(flatten)]
    common: Common,
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

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let common = &arguments.common;
    let programs = common.programs()?;
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
        seed: common.seed,
        layout: Layout {
            options,
            ..Layout::pair()
        },
        stop_when_broken: true,
        judge_each_round: arguments.planted.is_some(),
        victims,
    };
    let limit = common.limit(Duration::from_secs(u64::from(arguments.rounds) * 10 + 60));
    println!(
        "chaos kill --rounds {} --seed {}, at most {} s",
        arguments.rounds,
        common.seed,
        limit.as_secs()
    );
    println!("round  killed              after ms  ready in ms    answered 200   attempts");
    let began = Instant::now();
    let mut watch = |round: &Round| {
        println!(
            "{:>5}  {:<18}  {:>8}  {:>11}  {:>14}  {:>9}",
            round.number,
            round.victim,
            round.after.as_millis(),
            round.ready_after.as_millis(),
            round.stored,
            round.attempts
        );
    };
    let running = system_tests::chaos::kill::run(&programs, &plan, &mut watch);
    let report = common.bounded(limit, running).await?;
    println!(
        "\n{} kills in {} s; slowest start: webhook-gateway {} ms, pass-state {} ms",
        report.rounds,
        began.elapsed().as_secs(),
        report.gateway_ready_max.as_millis(),
        report.state_ready_max.as_millis()
    );
    if arguments.planted.is_none() {
        return Ok(common.tell(&report.verdict));
    }
    print!("{}", report.verdict);
    let caught = !report.verdict.is_clean();
    if caught {
        println!(
            "caught: the planted defect was found after {} kills",
            report.rounds
        );
    } else {
        println!("NOT CAUGHT: the planted defect went unnoticed");
    }
    Ok(caught)
}
