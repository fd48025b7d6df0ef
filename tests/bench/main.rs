//! The benchmark: `tests/run bench [SECTION…] [--rounds N] [--seconds N]`.
//!
//! Every section alternates Passline with a bare reference in one run on one machine and prints medians
//! and ratios; absolute figures hold only for the run that printed them. Sections: [`SECTIONS`]; `sustained`
//! has `latency` and `catch-up` with it, which use what it stored. Bounded: about fifteen minutes in all with
//! the defaults. Everything is on loopback and in temporary directories that are removed.

mod apply;
mod catch_up;
mod corpus;
mod disk;
mod fan_out;
mod feeder;
mod ingest;
mod jetstream;
mod load;
mod postgres;
mod process;
mod reference;
mod replicas;
mod services;
mod stats;
mod subscriber;
mod sustained;
mod telemetry;
mod tls;

use anyhow::{Context, Result, bail};

/// What can be asked for, in the order in which it is run.
const SECTIONS: [&str; 9] = [
    "ingest",
    "apply",
    "sustained",
    "postgres",
    "replicas",
    "jetstream",
    "fan-out",
    "tls",
    "telemetry",
];

/// What to run and for how long.
#[derive(Clone, Debug)]
struct Plan {
    sections: Vec<String>,
    /// How often each candidate takes its turn.
    rounds: usize,
    /// How long one turn is measured.
    seconds: u64,
}

impl Plan {
    fn from_args(mut args: impl Iterator<Item = String>) -> Result<Self> {
        let mut plan = Self {
            sections: Vec::new(),
            rounds: 3,
            seconds: 4,
        };
        while let Some(arg) = args.next() {
            let mut number = |name: &str| -> Result<u64> {
                let text = args
                    .next()
                    .with_context(|| format!("{name} needs a number"))?;
                let number: u64 = text
                    .parse()
                    .with_context(|| format!("{name}: {text:?} is not a number"))?;
                if !(1..=60).contains(&number) {
                    bail!("{name} must be 1 to 60");
                }
                Ok(number)
            };
            match arg.as_str() {
                "--rounds" => plan.rounds = usize::try_from(number("--rounds")?)?,
                "--seconds" => plan.seconds = number("--seconds")?,
                section if SECTIONS.contains(&section) => plan.sections.push(arg),
                other => bail!(
                    "unknown argument {other:?}; sections are {}; options --rounds N, --seconds N",
                    SECTIONS.join(", ")
                ),
            }
        }
        if plan.sections.is_empty() {
            plan.sections = SECTIONS.map(String::from).to_vec();
        }
        Ok(plan)
    }

    /// Whether one of these sections is to be run.
    fn has(&self, sections: &[&str]) -> bool {
        self.sections
            .iter()
            .any(|section| sections.contains(&section.as_str()))
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().map(String::as_str) == Some("serve") {
        let args: Vec<String> = args.skip(1).collect();
        return reference::serve(&args);
    }
    let plan = Plan::from_args(args)?;
    let binaries = services::Binaries::build(
        plan.has(&[
            "ingest",
            "sustained",
            "jetstream",
            "fan-out",
            "tls",
            "telemetry",
        ]),
        plan.has(&["sustained", "replicas", "fan-out", "tls"]),
    )?;
    println!("{}", disk::machine());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    for section in &plan.sections {
        let probe = disk::fdatasync_probe()?;
        println!("\n## {section}   (fdatasync of 4 KiB now: {probe})");
        match section.as_str() {
            "ingest" => runtime.block_on(ingest::run(&plan, &binaries))?,
            "apply" => runtime.block_on(apply::run(&plan))?,
            "postgres" => runtime.block_on(postgres::run(&plan))?,
            "replicas" => runtime.block_on(replicas::run(&plan, &binaries))?,
            "jetstream" => runtime.block_on(jetstream::run(&plan, &binaries))?,
            "fan-out" => runtime.block_on(fan_out::run(&plan, &binaries))?,
            "tls" => runtime.block_on(tls::run(&plan, &binaries))?,
            "telemetry" => runtime.block_on(telemetry::run(&plan, &binaries))?,
            _ => runtime.block_on(sustained::run(&plan, &binaries))?,
        }
    }
    Ok(())
}
