//! 99 fast subscribers alone, next to 99 fast ones and one that never reads, over SQLite: events delivered per
//! second when there is as much as comes, and the time from POST to event at a rate that leaves the machine room.
//!
//! The load, both services and all subscribers share the cores. The services and the fast subscribers stay the same;
//! the stalled one comes and goes, so that each turn with it stands right beside one without.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::LocalSet;

use crate::Plan;
use crate::corpus::Corpus;
use crate::load::{Connection, closed_loop, open_loop};
use crate::process::Server;
use crate::reference::PATH;
use crate::services::Binaries;
use crate::stats::{median, quantile_ms, ratio, spread};
use crate::subscriber::{Fast, Seen, Stalled};
use crate::sustained::wait_until_applied;

const FAST: usize = 99;
/// Connections that POST as fast as they are answered.
const CONNECTIONS: usize = 16;
/// Deliveries of the throughput part of a turn. Their events are few enough that pass-state has them all in memory for
/// live subscribers, so that nobody is measured who reads the store, and many times what a stalled subscriber takes
/// before it holds the server up: its window of 64 KiB and two frames of 128 KiB.
const WAVE: u64 = 1_500;
/// Share of the throughput at which latency is measured, for a second.
const LATENCY_LOAD: f64 = 0.25;
/// Turns that only warm up. The last one says which rate leaves room.
const WARM_UP: usize = 2;
const ARRIVAL_LIMIT: Duration = Duration::from_secs(60);

/// What the turns without or with a stalled subscriber gave.
#[derive(Default)]
struct Candidate {
    /// Events per second, all fast subscribers together.
    rates: Vec<f64>,
    /// pass-state's CPU seconds per 1,000 events delivered.
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
    fell_behind: u64,
}

pub(crate) async fn run(plan: &Plan, binaries: &Binaries) -> Result<()> {
    let corpus = Corpus::new()?;
    let data = crate::disk::directory()?;
    let (state, grpc) = binaries.pass_state(data.path())?;
    let (gateway, address) = binaries.gateway(data.path(), grpc)?;
    Connection::open(address).await?;
    Connection::open(grpc).await?;
    let turns = plan.rounds * usize::try_from(plan.seconds)?;
    let local = LocalSet::new();
    let measured = local.run_until(async {
        let mut stand = Stand::new(&corpus, &state, grpc, address).await?;
        let mut rate = 1.0;
        for _ in 0..WARM_UP {
            let not_counted = &mut Candidate::default();
            let taken = stand.turn(rate, false, not_counted).await?;
            rate = (WAVE as f64 / taken.as_secs_f64() * LATENCY_LOAD).max(1.0);
        }
        let (mut alone, mut with_stalled) = (Candidate::default(), Candidate::default());
        for turn in 0..turns {
            // Whoever is first in one pair of turns is second in the next.
            for stalled in [turn % 2 == 1, turn % 2 == 0] {
                let candidate = if stalled {
                    &mut with_stalled
                } else {
                    &mut alone
                };
                stand.turn(rate, stalled, candidate).await?;
            }
        }
        anyhow::Ok((rate, alone, with_stalled))
    });
    let (rate, alone, with_stalled) = measured
        .await
        .with_context(|| format!("{}\n{}", state.log(), gateway.log()))?;
    println!(
        "SQLite; throughput: waves of {WAVE} deliveries by {CONNECTIONS} connections, closed loop, each until every fast subscriber has every event; latency: POST to event in open loop at {rate:.0} deliveries/s for 1 s, all events of all fast subscribers; {turns} pairs of turns"
    );
    println!(
        "| subscribers | events delivered/s: median (lowest to highest) | pass-state CPU s / 1,000 | p50 ms | p99 ms | fell behind |"
    );
    println!("|---|---|---|---|---|---|");
    let names = ["99 fast", "99 fast, 1 stalled"];
    for (name, candidate) in names.iter().zip([&alone, &with_stalled]) {
        println!(
            "| {name} | {} | {:.4} | {:.2} | {:.2} | {} |",
            spread(&candidate.rates),
            median(&candidate.cpu),
            median(&candidate.p50),
            median(&candidate.p99),
            candidate.fell_behind
        );
    }
    println!("  with a stalled one, of the turn without beside it:");
    println!(
        "    throughput {}, CPU {}",
        ratio(&with_stalled.rates, &alone.rates),
        ratio(&with_stalled.cpu, &alone.cpu)
    );
    println!(
        "    p50 {}, p99 {}",
        ratio(&with_stalled.p50, &alone.p50),
        ratio(&with_stalled.p99, &alone.p99)
    );
    Ok(())
}

/// The services, and the subscribers that stay.
struct Stand<'a> {
    corpus: &'a Corpus,
    state: &'a Server,
    grpc: SocketAddr,
    address: SocketAddr,
    seen: Rc<Seen>,
    fast: Vec<Fast>,
    /// Deliveries sent so far.
    sent: u64,
    /// The events of those.
    events: u64,
}

impl<'a> Stand<'a> {
    async fn new(
        corpus: &'a Corpus,
        state: &'a Server,
        grpc: SocketAddr,
        address: SocketAddr,
    ) -> Result<Self> {
        let seen = Rc::new(Seen::default());
        let mut fast = Vec::with_capacity(FAST);
        for _ in 0..FAST {
            fast.push(Fast::start(grpc, &seen).await?);
        }
        Ok(Self {
            corpus,
            state,
            grpc,
            address,
            seen,
            fast,
            sent: 0,
            events: 0,
        })
    }

    /// Measures both figures, with or without one that does not read. Returns how long the wave took.
    async fn turn(
        &mut self,
        rate: f64,
        stalled: bool,
        candidate: &mut Candidate,
    ) -> Result<Duration> {
        let fell_behind = self.seen.fell_behind.get();
        let stalled = match stalled {
            true => Some(Stalled::start(self.grpc).await?),
            false => None,
        };

        // Throughput first: its events are what the stalled one's window is filled with.
        let (before, events) = (self.state.cpu()?, self.events);
        let requests = Rc::new(self.corpus.requests(PATH, self.sent, WAVE));
        let start = Instant::now();
        let run = closed_loop(self.address, CONNECTIONS, ARRIVAL_LIMIT, &requests).await?;
        ensure!(
            run.failed == 0 && run.ok == WAVE,
            "{} of {WAVE} requests were answered 200",
            run.ok
        );
        self.wait_for_events(WAVE).await?;
        let taken = self.seen.last.get().context("no event came")? - start;
        let used = self.state.cpu()?.saturating_sub(before);
        let delivered = ((self.events - events) * FAST as u64) as f64;
        candidate.rates.push(delivered / taken.as_secs_f64());
        candidate.cpu.push(used.as_secs_f64() * 1_000.0 / delivered);

        let count = rate.ceil() as u64;
        let requests = self.corpus.requests(PATH, self.sent, count);
        self.seen.first.set(self.sent);
        let note = Rc::clone(&self.seen);
        let run = open_loop(self.address, rate, requests, move |_, when| {
            note.due.borrow_mut().push(when);
        })
        .await?;
        ensure!(run.failed == 0, "{} requests failed", run.failed);
        self.wait_for_events(count).await?;
        self.seen.due.borrow_mut().clear();
        let mut micros = self.seen.micros.take();
        candidate.p50.push(quantile_ms(&mut micros, 0.5));
        candidate.p99.push(quantile_ms(&mut micros, 0.99));
        candidate.fell_behind += self.seen.fell_behind.get() - fell_behind;
        if let Some(stalled) = stalled {
            stalled.check().await.context("the stalled subscriber")?;
        }
        Ok(taken)
    }

    /// Waits until so many more deliveries are applied, and every fast subscriber has all their events. One that has
    /// more got some twice.
    async fn wait_for_events(&mut self, deliveries: u64) -> Result<()> {
        self.sent += deliveries;
        self.events = u64::try_from(wait_until_applied(self.grpc, self.sent).await?)?;
        let deadline = Instant::now() + ARRIVAL_LIMIT;
        for subscriber in &mut self.fast {
            while subscriber.events.get() < self.events {
                subscriber.check().await?;
                ensure!(
                    Instant::now() < deadline,
                    "a subscriber has {} of {} events",
                    subscriber.events.get(),
                    self.events
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ensure!(
                subscriber.events.get() == self.events,
                "a subscriber got {} events of {}",
                subscriber.events.get(),
                self.events
            );
        }
        Ok(())
    }
}
