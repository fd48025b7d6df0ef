//! Kills services under load, again and again, and judges at the end of each stretch.
//!
//! A round is: traffic flows, a random one of the two services gets SIGKILL at a random moment, is started
//! again, and must be ready in time. After every few rounds traffic pauses, everything must drain, and the
//! judge reads all of it. Senders repeat what was not answered 200, as vendors do.

use std::time::Duration;

use anyhow::ensure;
use tokio::time::Instant;

use crate::dice::Dice;
use crate::oracle::Verdict;
use crate::stand::{Options, Programs, Stand};

/// Rounds between two judgements.
const ROUNDS_PER_STRETCH: usize = 10;
/// Senders at once.
const CONNECTIONS: usize = 8;
/// Longest time until everything of a stretch is recorded after its last kill.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Kills.
    pub rounds: usize,
    /// Repeats the choices: traffic, victims and pauses (not the machine's timing).
    pub seed: u64,
    /// What the services are configured with.
    pub options: Options,
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
    /// Either service, at random.
    #[default]
    Both,
    /// Only the gateway.
    Gateway,
    /// Only pass-state.
    State,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            rounds: 100,
            seed: 1,
            options: Options::default(),
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
    pub victim: &'static str,
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
#[derive(Clone, Debug)]
pub struct Report {
    /// Kills done.
    pub rounds: usize,
    /// The last judgement.
    pub verdict: Verdict,
    /// Slowest start of the gateway after a kill.
    pub gateway_ready_max: Duration,
    /// Slowest start of pass-state after a kill.
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
    let mut dice = Dice::new(plan.seed);
    let mut stand = Stand::started(programs, &plan.options).await?;
    stand.note_epoch().await?;
    let mut follower = stand.follower();
    let mut report = Report {
        rounds: 0,
        verdict: Verdict::default(),
        gateway_ready_max: Duration::ZERO,
        state_ready_max: Duration::ZERO,
    };
    let stretch_rounds = if plan.judge_each_round {
        1
    } else {
        ROUNDS_PER_STRETCH
    };
    while report.rounds < plan.rounds {
        let rounds = stretch_rounds.min(plan.rounds - report.rounds);
        let tag = format!("r{}", report.rounds);
        let senders = stand.senders(dice.roll(), &tag, CONNECTIONS);
        for _ in 0..rounds {
            let after = Duration::from_millis(20 + dice.below(400));
            // The random moment is the point of this sleep.
            tokio::time::sleep(after).await;
            let gateway_dies = match plan.victims {
                Victims::Both => dice.once_in(2),
                Victims::Gateway => true,
                Victims::State => false,
            };
            let began;
            let victim;
            if gateway_dies {
                stand.take_gateway().kill().await?;
                began = Instant::now();
                stand.start_gateway().await?;
                victim = "webhook-gateway";
                report.gateway_ready_max = report.gateway_ready_max.max(began.elapsed());
            } else {
                stand.take_state().kill().await?;
                began = Instant::now();
                stand.start_state().await?;
                victim = "pass-state";
                report.state_ready_max = report.state_ready_max.max(began.elapsed());
            }
            report.rounds += 1;
            watch(&Round {
                number: report.rounds,
                victim,
                after,
                ready_after: began.elapsed(),
                stored: stand.log.stored_count(),
                attempts: stand.log.attempts().len(),
            });
        }
        ensure!(
            senders.finish().await,
            "some callbacks were not stored in time"
        );
        report.verdict = stand.verdict(DRAIN_LIMIT).await?;
        let head = stand.reader().info().await?.head_position;
        if let Err(why) = follower.caught_up(head, DRAIN_LIMIT).await {
            report
                .verdict
                .broken
                .push(format!("a subscriber that resumes by its cursor: {why:#}"));
        }
        if !report.verdict.is_clean() && plan.stop_when_broken {
            return Ok(report);
        }
    }
    follower.stop();
    if report.verdict.is_clean() {
        stand.finish().await?;
    }
    Ok(report)
}
