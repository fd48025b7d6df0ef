//! `chaos jetstream`: gateways and a NATS server that die.

use std::time::Duration;

use clap::Args;
use system_tests::chaos::jetstream::{Plan, Round};

use crate::{Common, Rounds};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    rounds: Rounds,
    #[command(flatten)]
    common: Common,
}

/// Within what time everything must work again.
const RECOVERED_LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let common = &arguments.common;
    let programs = common.programs()?;
    let limit = common.limit(arguments.rounds.limit());
    let plan = Plan {
        rounds: arguments.rounds.rounds as usize,
        seed: common.seed,
    };
    println!(
        "chaos jetstream --rounds {} --seed {}: 2 gateways, 1 stream, at most {} s",
        plan.rounds,
        plan.seed,
        limit.as_secs()
    );
    println!("round  lost                  works again in ms  answered 200   attempts");
    let mut watch = |round: &Round| {
        println!(
            "{:>5}  {:<20}  {:>17}  {:>12}  {:>9}",
            round.number,
            round.fault,
            round.recovered_after.as_millis(),
            round.stored,
            round.attempts
        );
    };
    let running = system_tests::chaos::jetstream::run(&programs, &plan, &mut watch);
    let report = common.bounded(limit, running).await?;
    println!(
        "\n{} faults; slowest recovery {} ms of at most {}",
        report.rounds,
        report.recovered_max.as_millis(),
        RECOVERED_LIMIT.as_millis()
    );
    Ok(common.tell(&report.verdict) && report.recovered_max <= RECOVERED_LIMIT)
}
