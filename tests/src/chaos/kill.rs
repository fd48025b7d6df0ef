//! Kills services under load: a random one gets SIGKILL at a random moment, is started again, and must be ready
//! in time.

use std::time::Duration;

use tokio::time::Instant;

use super::{ROUNDS_PER_STRETCH, Trial};
use crate::fleet::{Layout, Programs};
use crate::oracle::Verdict;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Kills.
    pub rounds: usize,
    /// Repeats the choices: traffic, victims and pauses (not the machine's timing).
    pub seed: u64,
    /// The services.
    pub layout: Layout,
    /// Ends at the first judgement that finds something.
    pub stop_when_broken: bool,
    /// Judges after each round instead of after several; for planted defects.
    pub judge_each_round: bool,
    /// Who may be killed.
    pub victims: Victims,
}

/// Who may be killed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Victims {
    /// Any service, at random.
    #[default]
    Both,
    /// Only gateways.
    Gateway,
    /// Only pass-state.
    State,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rounds: 100,
            seed: 1,
            layout: Layout::pair(),
            stop_when_broken: false,
            judge_each_round: false,
            victims: Victims::Both,
        }
    }
}

/// One round, for whoever watches.
#[derive(Clone, Debug)]
pub struct Round {
    /// From 1.
    pub number: usize,
    /// Who was killed.
    pub victim: String,
    /// How long after the round's traffic began.
    pub after: Duration,
    /// How long until it was ready again.
    pub ready_after: Duration,
    /// Attempts answered 200 so far.
    pub stored: usize,
    /// Attempts made so far.
    pub attempts: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Kills done.
    pub rounds: usize,
    /// The last judgement.
    pub verdict: Verdict,
    /// Slowest start of a gateway after a kill.
    pub gateway_ready_max: Duration,
    /// Slowest start of a pass-state after a kill.
    pub state_ready_max: Duration,
}

/// Carries out a plan; `watch` is called after each round.
///
/// # Errors
/// If a service does not start, ends by itself, or traffic is not stored in time. What the judge finds is no
/// error but in the report.
pub async fn run(
    programs: &Programs,
    plan: &Plan,
    watch: &mut dyn FnMut(&Round),
) -> anyhow::Result<Report> {
    let mut trial = Trial::start(programs, &plan.layout, plan.seed).await?;
    let mut report = Report::default();
    let stretch_rounds = if plan.judge_each_round {
        1
    } else {
        ROUNDS_PER_STRETCH
    };
    while report.rounds < plan.rounds {
        let rounds = stretch_rounds.min(plan.rounds - report.rounds);
        let senders = trial.traffic();
        for _ in 0..rounds {
            let after = trial.let_flow().await;
            let gateway_dies = match plan.victims {
                Victims::Both => trial.dice.once_in(2),
                Victims::Gateway => true,
                Victims::State => false,
            };
            let (members, ready_max) = if gateway_dies {
                (&mut trial.fleet.gateways, &mut report.gateway_ready_max)
            } else {
                (&mut trial.fleet.states, &mut report.state_ready_max)
            };
            let index = trial.dice.index(members.len());
            let victim = &mut members[index];
            victim.take().kill().await?;
            let began = Instant::now();
            victim.start().await?;
            let ready_after = began.elapsed();
            *ready_max = (*ready_max).max(ready_after);
            report.rounds += 1;
            watch(&Round {
                number: report.rounds,
                victim: victim.name().to_owned(),
                after,
                ready_after,
                stored: trial.fleet.log.stored_count(),
                attempts: trial.fleet.log.attempts().len(),
            });
        }
        if !trial.judge(senders).await? && plan.stop_when_broken {
            break;
        }
    }
    report.verdict = trial.finish().await?;
    Ok(report)
}
