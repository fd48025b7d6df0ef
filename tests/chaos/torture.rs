//! `chaos torture`: the order of the log with several replicas.

use std::time::Duration;

use clap::{Args, ValueEnum};
use system_tests::torture::{Kill, Plan};

use crate::Common;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Events in the log at the end, at least.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    events: u32,
    /// Plants a defect, which then has to be caught within 10 s.
    #[arg(long)]
    planted: Option<Planted>,
    #[command(flatten)]
    common: Common,
}

/// The defects that break the order.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Planted {
    /// Positions come from a sequence, without a lock that is held until the commit.
    SequencePositions,
}

/// Within what time a planted defect has to be caught.
const CAUGHT_LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let common = &arguments.common;
    let programs = common.programs()?;
    let planted = arguments.planted == Some(Planted::SequencePositions);
    // A thousand events take a second on a slow machine.
    let limit = common.limit(Duration::from_secs(u64::from(arguments.events) / 500 + 120));
    let plan = Plan {
        events: arguments.events as usize,
        seed: common.seed,
        // A kill would only be in the way of what the defect does by itself.
        kills: !planted,
        planted_sequence_positions: planted,
        limit,
        ..Plan::default()
    };
    println!(
        "chaos torture --events {} --seed {}: {} replicas, {} subscribers, at most {} s",
        plan.events,
        plan.seed,
        plan.replicas,
        plan.subscribers,
        limit.as_secs()
    );
    println!(" kill  replica  away ms  ready in ms  position seen  acknowledged");
    let mut watch = |kill: &Kill| {
        println!(
            "{:>5}  {:>7}  {:>7}  {:>11}  {:>13}  {:>12}",
            kill.number,
            kill.victim,
            kill.away.as_millis(),
            kill.ready_after.as_millis(),
            kill.position,
            kill.acknowledged
        );
    };
    let running = system_tests::torture::run(&programs, &plan, &mut watch);
    let report = common.bounded(limit * 2, running).await?;
    println!(
        "\n{} deliveries in {:.1} s over {} streams, of which {} were fenced; {} kills",
        report.deliveries,
        report.fed_in.as_secs_f64(),
        report.ingest_streams,
        report.fenced,
        report.kills
    );
    println!(
        "{} subscribers saw {} events in {} streams",
        plan.subscribers, report.events, report.subscriptions
    );
    for broken in &report.broken {
        println!("  broken: {broken}");
    }
    if let Some((what, after)) = &report.violation {
        println!("  out of order after {:.1} s: {what}", after.as_secs_f64());
    }
    let caught = report
        .violation
        .as_ref()
        .is_some_and(|(_, after)| *after <= CAUGHT_LIMIT);
    println!(
        "{}",
        match (planted, caught, report.is_clean()) {
            (true, true, _) => "caught: a subscriber saw the planted defect".to_owned(),
            (true, false, _) =>
                format!("NOT CAUGHT within {CAUGHT_LIMIT:?}: the planted defect went unnoticed"),
            (false, _, true) => format!(
                "clean: all saw 1 to {} in order, without gap or repetition",
                report.events
            ),
            (false, _, false) => format!("BROKEN; repeat it with --seed {}", plan.seed),
        }
    );
    Ok(if planted { caught } else { report.is_clean() })
}
