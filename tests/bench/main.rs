//! The benchmark: `tests/run bench [SECTION…] [--rounds N] [--seconds N]`.
//!
//! Every section alternates Passline with a bare reference in one run on one machine and prints medians
//! and ratios; absolute figures hold only for the run that printed them. Sections: `ingest`, `apply`,
//! `sustained` (with `latency` and `catch-up`, which use what it stored). Bounded: about eight minutes in
//! all with the defaults. Everything is on loopback and in a temporary directory that is removed.

mod apply;
mod catch_up;
mod corpus;
mod disk;
mod ingest;
mod load;
mod process;
mod reference;
mod services;
mod stats;
mod sustained;

use anyhow::{Context, Result, bail};

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
                "ingest" | "apply" | "sustained" => plan.sections.push(arg),
                other => bail!(
                    "unknown argument {other:?}; sections are ingest, apply, sustained; options --rounds N, --seconds N"
                ),
            }
        }
        if plan.sections.is_empty() {
            plan.sections = ["ingest", "apply", "sustained"].map(String::from).to_vec();
        }
        Ok(plan)
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    if args.peek().map(String::as_str) == Some("serve") {
        let args: Vec<String> = args.skip(1).collect();
        return reference::serve(&args);
    }
    let plan = Plan::from_args(args)?;
    let binaries =
        services::Binaries::build(plan.sections.iter().any(|section| section == "sustained"))?;
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
            _ => runtime.block_on(sustained::run(&plan, &binaries))?,
        }
    }
    Ok(())
}
