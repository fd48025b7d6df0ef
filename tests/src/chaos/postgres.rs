//! PostgreSQL killed, restarted and cut off under load, and above all cut off in the middle of commits, so that
//! nobody knows whether they happened.

use std::fmt;
use std::time::Duration;

use test_kit::{ChaosProxy, Cut, TestPostgres, wait_for};

use super::{RECOVERY_LIMIT, ROUNDS_PER_STRETCH, Trial};
use crate::fleet::{Database, Fleet, Layout, Programs};
use crate::oracle::Verdict;

/// What the services send to commit. Nothing else they send holds these bytes.
const COMMIT: &[u8] = b"COMMIT";
/// Commits that one round cuts.
const CUTS_PER_ROUND: usize = 10;
/// Longest wait for a commit to cut, and for deliveries to be recorded again.
const CUTS_LIMIT: Duration = Duration::from_secs(30);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Faults; each kind in turn.
    pub rounds: usize,
    /// Repeats the choices: traffic and pauses (not the machine's timing).
    pub seed: u64,
}

/// What is done to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Connections are cut when a commit was sent, before its answer comes.
    CommitsCut,
    /// Connections are cut when a commit was answered, without the answer.
    AnswersCut,
    /// The server gets SIGKILL, and is started again after up to a second.
    Killed,
    /// The server is restarted in order.
    Restarted,
    /// All connections are cut at once.
    AllCut,
}

/// The order of faults; ambiguous commits come in every second round.
const FAULTS: [Fault; 6] = [
    Fault::AnswersCut,
    Fault::Killed,
    Fault::CommitsCut,
    Fault::Restarted,
    Fault::AnswersCut,
    Fault::AllCut,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::CommitsCut => "cut after COMMIT",
            Self::AnswersCut => "cut answer to COMMIT",
            Self::Killed => "kill -9",
            Self::Restarted => "restart",
            Self::AllCut => "cut everything",
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
    /// How long after the server was back, or the last cut, the services worked again.
    pub recovered_after: Duration,
    /// Commits cut so far.
    pub cuts: usize,
    /// Attempts answered 200 so far.
    pub stored: usize,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Faults done.
    pub rounds: usize,
    /// Commits cut.
    pub cuts: usize,
    /// Transactions with deliveries of which a service said that it does not know whether they happened.
    pub ambiguous: usize,
    /// Longest time until the services worked again.
    pub recovered_max: Duration,
    /// The last judgement.
    pub verdict: Verdict,
}

/// Runs two gateways and two replicas on a PostgreSQL that has a hard time; `watch` is called after each round.
///
/// # Errors
/// If a server or a service does not start, a service ends by itself, or does not work again within a minute.
/// What the judge finds is no error but in the report.
pub async fn run(
    programs: &Programs,
    plan: &Plan,
    watch: &mut dyn FnMut(&Round),
) -> anyhow::Result<Report> {
    let mut postgres = TestPostgres::start().await?;
    let proxy = ChaosProxy::start(postgres.address()).await?;
    let url = postgres.database().await?;
    let layout = Layout {
        gateways: 2,
        states: 2,
        database: Database::Postgres {
            url: url.replace(
                &postgres.address().to_string(),
                &proxy.address().to_string(),
            ),
        },
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
            match fault {
                Fault::CommitsCut => cut_commits(&proxy, Cut::AfterSending, &trial.fleet).await?,
                Fault::AnswersCut => cut_commits(&proxy, Cut::SwallowAnswer, &trial.fleet).await?,
                Fault::Killed => {
                    postgres.kill().await?;
                    // How long it is away is the point of this sleep.
                    tokio::time::sleep(Duration::from_millis(trial.dice.below(1_000))).await;
                    postgres.restart().await?;
                }
                Fault::Restarted => postgres.restart().await?,
                Fault::AllCut => proxy.cut_all().await,
            }
            let recovered_after = trial.fleet.recovered(RECOVERY_LIMIT).await?;
            report.recovered_max = report.recovered_max.max(recovered_after);
            report.rounds += 1;
            report.cuts = proxy.cuts();
            report.ambiguous = unknown_commits(&trial.fleet)?;
            watch(&Round {
                number: report.rounds,
                fault,
                recovered_after,
                cuts: report.cuts,
                stored: trial.fleet.log.stored_count(),
            });
        }
        if !trial.judge(senders).await? {
            break;
        }
    }
    report.verdict = trial.finish().await?;
    Ok(report)
}

/// Cuts some commits one by one, each after deliveries were recorded again: right after a cut it would be the
/// opening of a stream that commits.
async fn cut_commits(proxy: &ChaosProxy, cut: Cut, fleet: &Fleet) -> anyhow::Result<()> {
    let reader = fleet.reader();
    let recorded = async || {
        let info = reader.info().await.map_err(|error| format!("{error:#}"))?;
        Ok::<_, String>(info.books.unwrap_or_default().deliveries)
    };
    for _ in 0..CUTS_PER_ROUND {
        let cuts = proxy.cuts();
        proxy.cut_when_client_sends(COMMIT, 1, cut);
        wait_for("a commit to be cut", CUTS_LIMIT, async || {
            match proxy.cuts() {
                more if more > cuts => Ok(()),
                _ => Err("none was"),
            }
        })
        .await?;
        let before = wait_for("an answer", CUTS_LIMIT, &recorded).await?;
        wait_for("further deliveries", CUTS_LIMIT, async || {
            match recorded().await? {
                more if more > before => Ok(()),
                same => Err(format!("{same} are recorded")),
            }
        })
        .await?;
    }
    Ok(())
}

/// What a service says of a commit of which it does not know whether it happened.
const UNKNOWN: &str = "unknown whether the transaction was committed";

/// How many commits the services themselves found ambiguous.
fn unknown_commits(fleet: &Fleet) -> anyhow::Result<usize> {
    let logs = fleet.logs()?;
    Ok(logs.lines().filter(|line| line.contains(UNKNOWN)).count())
}
