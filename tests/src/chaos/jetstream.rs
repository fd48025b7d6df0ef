//! Two gateways on one JetStream stream: either loses its process and its disk under load, and the server its
//! process.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use test_kit::{NatsSettings, TestNats};

use super::{RECOVERY_LIMIT, ROUNDS_PER_STRETCH, Trial};
use crate::fleet::{Layout, Programs, SpoolKind};
use crate::oracle::Verdict;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Faults; each kind in turn.
    pub rounds: usize,
    /// Repeats the choices: traffic, victims and pauses (not the machine's timing).
    pub seed: u64,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The gateway that forwards gets SIGKILL, its data directory is deleted, and it is started again.
    GatewayGone,
    /// The server gets SIGKILL, and is started again after up to a second.
    ServerKilled,
    /// Both at once, with any gateway.
    Both,
}

const FAULTS: [Fault; 3] = [Fault::GatewayGone, Fault::ServerKilled, Fault::Both];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::GatewayGone => "gateway and its disk",
            Self::ServerKilled => "nats-server",
            Self::Both => "both",
        })
    }
}

/// One round, for whoever watches.
#[derive(Clone, Debug)]
pub struct Round {
    /// From 1.
    pub number: usize,
    /// What was done.
    pub fault: Fault,
    /// How long after the server was back, or the gateway's death, everything worked again.
    pub recovered_after: Duration,
    /// Attempts answered 200 so far.
    pub stored: usize,
    /// Attempts made so far.
    pub attempts: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Faults done.
    pub rounds: usize,
    /// Longest time until everything worked again.
    pub recovered_max: Duration,
    /// The last judgement.
    pub verdict: Verdict,
}

/// Runs two gateways on one stream, and a pass-state; `watch` is called after each round.
///
/// # Errors
/// If a server or a service does not start, a service ends by itself, or does not work again within a minute.
/// What the judge finds is no error but in the report.
pub async fn run(
    programs: &Programs,
    plan: &Plan,
    watch: &mut dyn FnMut(&Round),
) -> anyhow::Result<Report> {
    let mut nats = TestNats::start(NatsSettings::default()).await?;
    let layout = Layout {
        gateways: 2,
        states: 1,
        spool: SpoolKind::on(&nats),
        ..Layout::default()
    };
    let mut trial = Trial::start(programs, &layout, plan.seed).await?;
    let mut report = Report::default();
    while report.rounds < plan.rounds {
        let rounds = ROUNDS_PER_STRETCH.min(plan.rounds - report.rounds);
        let senders = trial.traffic();
        for _ in 0..rounds {
            trial.let_flow().await;
            let fault = FAULTS[report.rounds % FAULTS.len()];
            let any = trial.dice.index(trial.fleet.gateways.len());
            let victim = match fault {
                Fault::GatewayGone => trial.fleet.forwarder().await?.unwrap_or(any),
                Fault::ServerKilled | Fault::Both => any,
            };
            if fault != Fault::ServerKilled {
                let gateway = &mut trial.fleet.gateways[victim];
                gateway.take().kill().await?;
                delete(gateway.data_dir())?;
            }
            if fault != Fault::GatewayGone {
                nats.kill().await?;
                // How long it is away is the point of this sleep.
                tokio::time::sleep(Duration::from_millis(trial.dice.below(1_000))).await;
                nats.restart().await?;
            }
            if fault != Fault::ServerKilled {
                trial.fleet.gateways[victim].launch().await?;
            }
            let recovered_after = trial.fleet.recovered(RECOVERY_LIMIT).await?;
            report.recovered_max = report.recovered_max.max(recovered_after);
            report.rounds += 1;
            watch(&Round {
                number: report.rounds,
                fault,
                recovered_after,
                stored: trial.fleet.log.stored_count(),
                attempts: trial.fleet.log.attempts().len(),
            });
        }
        if !trial.judge(senders).await? {
            break;
        }
    }
    report.verdict = trial.finish().await?;
    Ok(report)
}

/// Deletes a directory; one that was never made is as good.
fn delete(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", directory.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
