//! `chaos postgres`: a database that has a hard time.

use std::time::Duration;

use clap::Args;
use system_tests::chaos::postgres::{Plan, Round};

use crate::{Common, Rounds};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    rounds: Rounds,
    #[command(flatten)]
    common: Common,
}

/// Within what time services must work again.
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
        "chaos postgres --rounds {} --seed {}: 2 gateways, 2 replicas, at most {} s",
        plan.rounds,
        plan.seed,
        limit.as_secs()
    );
    println!("round  fault                 worked again in ms  commits cut  answered 200");
    let mut watch = |round: &Round| {
        println!(
            "{:>5}  {:<20}  {:>18}  {:>11}  {:>12}",
            round.number,
            round.fault,
            round.recovered_after.as_millis(),
            round.cuts,
            round.stored
        );
    };
    let running = system_tests::chaos::postgres::run(&programs, &plan, &mut watch);
    let report = common.bounded(limit, running).await?;
    println!(
        "\n{} faults, {} commits cut, {} of deliveries; slowest recovery {} ms of at most {}",
        report.rounds,
        report.cuts,
        report.ambiguous,
        report.recovered_max.as_millis(),
        RECOVERED_LIMIT.as_millis()
    );
    Ok(common.tell(&report.verdict) && report.recovered_max <= RECOVERED_LIMIT)
}
