//! The ordering torture: several replicas write to one PostgreSQL at once, are killed and started again, and
//! subscribers that change replicas all the time must see one and the same log without a gap.
//!
//! No gateway stands in the way: Feeders speak its protocol and are faster. Their spools tell of the same
//! passes, now and then of the same facts, so that replicas contend for rows, too.

mod feeder;
mod script;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use test_kit::TestPostgres;
use tokio::time::Instant;

use crate::dice::Dice;
use crate::fleet::{Database, Fleet, Layout, Options, Programs};
use crate::follower::{Agreement, Follower, Habits};
use feeder::Feeder;
use script::Script;

/// A subscriber leaves its stream after one in so many frames.
const LEAVES_ONCE_IN: u64 = 40;
/// How often it is looked for violations.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Longest time until subscribers have seen the last event.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Events in the log at the end, at least.
    pub events: usize,
    /// Repeats the choices (not the machine's timing).
    pub seed: u64,
    /// Replicas of pass-state, each with a feeder.
    pub replicas: usize,
    /// Subscribers.
    pub subscribers: usize,
    /// Whether replicas are killed.
    pub kills: bool,
    /// The longest random delay inside each transaction.
    pub delay_max: Duration,
    /// Plants the defect that positions are taken from a sequence, without a lock that is held until commit.
    pub planted_sequence_positions: bool,
    /// Longest time that feeding may take.
    pub limit: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            events: 200_000,
            seed: 1,
            replicas: 4,
            subscribers: 8,
            kills: true,
            delay_max: Duration::from_millis(8),
            planted_sequence_positions: false,
            limit: Duration::from_secs(600),
        }
    }
}

/// A kill, for whoever watches.
#[derive(Clone, Debug)]
pub struct Kill {
    /// From 1.
    pub number: usize,
    /// The replica, from 0.
    pub victim: usize,
    /// How long it was away before it was started again.
    pub away: Duration,
    /// How long until it was ready again.
    pub ready_after: Duration,
    /// The position that the first subscriber has seen.
    pub position: u64,
    /// Deliveries acknowledged so far.
    pub acknowledged: u64,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Events in the log that every subscriber saw.
    pub events: usize,
    /// Deliveries fed.
    pub deliveries: u64,
    /// Kills done.
    pub kills: usize,
    /// Streams that the subscribers opened.
    pub subscriptions: usize,
    /// Streams that the feeders opened.
    pub ingest_streams: usize,
    /// Ingest streams that a newer one ended, so that the feeder noticed.
    pub fenced: usize,
    /// How long feeding took.
    pub fed_in: Duration,
    /// What a subscriber saw that must not be, and how long after feeding began.
    pub violation: Option<(String, Duration)>,
    /// Anything else that was wrong.
    pub broken: Vec<String>,
}

impl Report {
    /// True if nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.violation.is_none() && self.broken.is_empty()
    }
}

/// Carries out a plan; `watch` is called after each kill.
///
/// # Errors
/// If a server or a service does not start, or if feeding takes too long. What is found is no error but in the
/// report.
pub async fn run(
    programs: &Programs,
    plan: &Plan,
    watch: &mut dyn FnMut(&Kill),
) -> anyhow::Result<Report> {
    let script = Arc::new(Script::new(plan.seed, plan.replicas, plan.events));
    let postgres = TestPostgres::start().await?;
    let layout = layout(plan, Database::on(&postgres).await?);
    let mut torture = Torture::start(programs, plan, &layout, script).await?;
    torture.feed(plan, watch).await?;
    if torture.report.violation.is_none() {
        torture.settle().await?;
    }
    let Torture { fleet, report, .. } = torture;
    if report.is_clean() {
        fleet.finish().await?;
    }
    Ok(report)
}

fn layout(plan: &Plan, database: Database) -> Layout {
    let mut store_keys = format!(
        "planted_transaction_delay_max = \"{}ms\"\n",
        plan.delay_max.as_millis()
    );
    if plan.planted_sequence_positions {
        store_keys.push_str("planted_sequence_positions = true\n");
    }
    Layout {
        gateways: 0,
        states: plan.replicas,
        database,
        options: Options {
            // Small transactions, so that there are many.
            writer_keys: "batch_deliveries_max = 16".to_owned(),
            store_keys,
            ..Options::default()
        },
        ..Layout::default()
    }
}

struct Torture {
    feeders: Vec<Feeder>,
    subscribers: Vec<Follower>,
    agreement: Arc<Agreement>,
    fleet: Fleet,
    script: Arc<Script>,
    began: Instant,
    report: Report,
}

impl Torture {
    async fn start(
        programs: &Programs,
        plan: &Plan,
        layout: &Layout,
        script: Arc<Script>,
    ) -> anyhow::Result<Self> {
        let fleet = Fleet::started(programs, layout).await?;
        let agreement = Arc::new(Agreement::default());
        let subscribers = (0..plan.subscribers)
            .map(|number| {
                let habits = Habits {
                    seed: plan.seed ^ ((number as u64 + 1) << 40),
                    leaves_once_in: LEAVES_ONCE_IN,
                    agreement: Some(Arc::clone(&agreement)),
                };
                Follower::start(&fleet.grpc_addresses(), habits)
            })
            .collect();
        let feeders = (0..plan.replicas)
            .map(|spool| Feeder::start(&script, spool, fleet.grpc_addresses()))
            .collect();
        Ok(Self {
            feeders,
            subscribers,
            agreement,
            fleet,
            script,
            began: Instant::now(),
            report: Report::default(),
        })
    }

    /// Kills replicas until everything is acknowledged, or a subscriber sees what must not be.
    async fn feed(&mut self, plan: &Plan, watch: &mut dyn FnMut(&Kill)) -> anyhow::Result<()> {
        let mut dice = Dice::new(plan.seed);
        while !self.is_over() {
            ensure!(
                self.began.elapsed() < plan.limit,
                "not fed within {:?}: {:?}",
                plan.limit,
                self.feeders
                    .iter()
                    .map(Feeder::progress)
                    .collect::<Vec<_>>()
            );
            if !plan.kills {
                tokio::time::sleep(LOOK_INTERVAL).await;
                continue;
            }
            let until = Instant::now() + Duration::from_millis(100 + dice.below(900));
            while !self.is_over() && Instant::now() < until {
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
            if self.is_over() {
                break;
            }
            let victim = dice.index(self.fleet.states.len());
            let away = Duration::from_millis(dice.below(400));
            self.fleet.states[victim].take().kill().await?;
            // The random time away is the point of this sleep.
            tokio::time::sleep(away).await;
            let began = Instant::now();
            self.fleet.states[victim].start().await?;
            self.report.kills += 1;
            watch(&Kill {
                number: self.report.kills,
                victim,
                away,
                ready_after: began.elapsed(),
                position: self.subscribers[0].progress().position,
                acknowledged: self.acknowledged(),
            });
        }
        self.report.fed_in = self.began.elapsed();
        self.report.deliveries = self.acknowledged();
        for fed in self.feeders.iter().map(Feeder::progress) {
            self.report.ingest_streams += fed.streams;
            self.report.fenced += fed.fenced;
            self.report.broken.extend(fed.broken);
        }
        self.count_seen();
        Ok(())
    }

    fn count_seen(&mut self) {
        self.report.events = self.agreement.ids().len();
        let subscribers = self.subscribers.iter();
        self.report.subscriptions = subscribers.map(|one| one.progress().streams).sum();
    }

    fn acknowledged(&self) -> u64 {
        self.feeders
            .iter()
            .map(|feeder| feeder.progress().acknowledged)
            .sum()
    }

    /// True if everything is acknowledged, or a subscriber has seen what must not be, which is noted.
    fn is_over(&mut self) -> bool {
        self.look();
        self.report.violation.is_some() || self.feeders.iter().all(Feeder::is_done)
    }

    fn look(&mut self) {
        if self.report.violation.is_some() {
            return;
        }
        let after = self.began.elapsed();
        let broken = self
            .subscribers
            .iter()
            .enumerate()
            .find_map(|(number, one)| {
                let why = one.progress().broken?;
                Some(format!("subscriber {number}: {why}"))
            });
        self.report.violation = broken.map(|why| (why, after));
    }

    /// Waits until every subscriber has seen the last event, and holds what is recorded against the script.
    async fn settle(&mut self) -> anyhow::Result<()> {
        let wanted = self.script.events.len();
        let head = i64::try_from(wanted).context("a torture is short")?;
        for (number, subscriber) in self.subscribers.iter_mut().enumerate() {
            if let Err(why) = subscriber.caught_up(head, CATCH_UP_LIMIT).await {
                self.report
                    .broken
                    .push(format!("subscriber {number}: {why:#}"));
            }
        }
        self.look();
        let seen = self.agreement.ids();
        self.count_seen();
        let seen: BTreeSet<&str> = seen.iter().map(AsRef::as_ref).collect();
        let expected: BTreeSet<String> =
            self.script.events.iter().map(ToString::to_string).collect();
        let lost = expected.iter().find(|id| !seen.contains(id.as_str()));
        let phantom = seen.iter().find(|id| !expected.contains(**id));
        let broken = &mut self.report.broken;
        if let Some(id) = lost {
            broken.push(format!(
                "event {id} is lost; {} of {wanted} were seen",
                seen.len()
            ));
        }
        if let Some(id) = phantom {
            broken.push(format!("event {id} is of no delivery"));
        }
        self.judge_books(head).await?;
        self.judge_passes().await
    }

    async fn judge_books(&mut self, head: i64) -> anyhow::Result<()> {
        let deliveries = i64::try_from(self.script.deliveries()).context("a torture is short")?;
        for state in 0..self.fleet.states.len() {
            let info = self.fleet.reader_of(state).info().await?;
            let books = info.books.unwrap_or_default();
            let committed: i64 = info
                .spools
                .iter()
                .map(|spool| spool.committed_sequence)
                .sum();
            for (what, is, wanted) in [
                ("the head", info.head_position, head),
                ("events", books.events, head),
                ("deliveries", books.deliveries, deliveries),
                ("committed sequences", committed, deliveries),
                (
                    "applied and duplicate",
                    books.applied + books.duplicate,
                    deliveries,
                ),
                ("facts", books.facts, books.events + books.duplicate_facts),
            ] {
                if is != wanted {
                    self.report.broken.push(format!(
                        "replica {state} has {is} for {what} instead of {wanted}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// A lost update would show in a pass: replicas fold the same ones at once.
    async fn judge_passes(&mut self) -> anyhow::Result<()> {
        let passes = self.fleet.reader().all_passes().await?;
        if passes.len() != self.script.revisions.len() {
            self.report.broken.push(format!(
                "{} passes instead of {}",
                passes.len(),
                self.script.revisions.len()
            ));
        }
        for pass in passes {
            let Some((_, id)) = pass.name.rsplit_once('/') else {
                bail!("a pass is called {}", pass.name);
            };
            let wanted = self.script.revisions.get(id);
            if wanted != Some(&pass.revision) {
                self.report.broken.push(format!(
                    "{} has {} events instead of {wanted:?}",
                    pass.name, pass.revision
                ));
            }
        }
        Ok(())
    }
}
