//! 99 fast subscribers alone, next to 99 fast ones and one that never reads, over SQLite: events delivered per
//! second when there is as much as comes, and the time from POST to event at a rate that leaves the machine room.
//!
//! The load, both services and all subscribers share the cores. Each turn has services of its own.

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
use crate::stats::{median, quantile_ms, spread};
use crate::subscriber::{Fast, Seen, Stalled};
use crate::sustained::wait_until_applied;

const FAST: usize = 99;
/// Connections that POST as fast as they are answered.
const CONNECTIONS: usize = 16;
/// Deliveries of one wave, of which there is one for each second of the plan: as many events as pass-state keeps in
/// memory for live subscribers, so that nobody is measured who falls behind and reads the store.
const WAVE: u64 = 3_000;
/// Share of the throughput at which latency is measured.
const LATENCY_LOAD: f64 = 0.25;
/// A stalled subscriber is cut after 30 s (`stall_timeout`); a turn has to be shorter.
const SECONDS_MAX: u64 = 8;
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
    let seconds = plan.seconds.min(SECONDS_MAX);
    let mut probe = Candidate::default();
    // A first turn, not counted, says which rate leaves room.
    let deliveries = turn(binaries, &corpus, seconds, 1.0, false, &mut probe).await?;
    let rate = (deliveries * LATENCY_LOAD).max(1.0);
    let (mut alone, mut with_stalled) = (Candidate::default(), Candidate::default());
    for round in 0..plan.rounds {
        // Whoever is first in one round is second in the next.
        for stalled in [round % 2 == 1, round % 2 == 0] {
            let candidate = if stalled {
                &mut with_stalled
            } else {
                &mut alone
            };
            turn(binaries, &corpus, seconds, rate, stalled, candidate).await?;
        }
    }
    println!(
        "SQLite; throughput: {seconds} waves of {WAVE} deliveries by {CONNECTIONS} connections, closed loop, each until every fast subscriber has every event; latency: POST to event in open loop at {rate:.0} deliveries/s for {seconds} s, all events of all fast subscribers; {} rounds, alternating",
        plan.rounds
    );
    println!(
        "| subscribers | events delivered/s: median (lowest to highest) | pass-state CPU s / 1,000 | p50 ms | p99 ms: median (lowest to highest) | fell behind |"
    );
    println!("|---|---|---|---|---|---|");
    let names = ["99 fast", "99 fast, 1 stalled"];
    for (name, candidate) in names.iter().zip([&alone, &with_stalled]) {
        let (low, high) = bounds(&candidate.p99);
        println!(
            "| {name} | {} | {:.4} | {:.2} | {:.2} ({low:.2} to {high:.2}) | {} |",
            spread(&candidate.rates),
            median(&candidate.cpu),
            median(&candidate.p50),
            median(&candidate.p99),
            candidate.fell_behind
        );
    }
    println!(
        "  with a stalled one, of without: throughput {:.2}, CPU {:.2}, p50 {:.2}, p99 {:.2}",
        median(&with_stalled.rates) / median(&alone.rates),
        median(&with_stalled.cpu) / median(&alone.cpu),
        median(&with_stalled.p50) / median(&alone.p50),
        median(&with_stalled.p99) / median(&alone.p99),
    );
    Ok(())
}

fn bounds(figures: &[f64]) -> (f64, f64) {
    let low = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let high = figures.iter().copied().fold(0.0, f64::max);
    (low, high)
}

/// Starts services and subscribers, measures both figures, and ends everything. Returns deliveries per second.
async fn turn(
    binaries: &Binaries,
    corpus: &Corpus,
    seconds: u64,
    rate: f64,
    stalled: bool,
    candidate: &mut Candidate,
) -> Result<f64> {
    let data = crate::disk::directory()?;
    let (state, grpc) = binaries.pass_state(data.path())?;
    let (gateway, address) = binaries.gateway(data.path(), grpc)?;
    Connection::open(address).await?;
    Connection::open(grpc).await?;
    let stand = Stand {
        state,
        grpc,
        address,
    };
    let outcome = LocalSet::new()
        .run_until(stand.turn(corpus, seconds, rate, stalled, candidate))
        .await;
    outcome.with_context(|| format!("{}\n{}", stand.state.log(), gateway.log()))
}

struct Stand {
    state: Server,
    grpc: SocketAddr,
    address: SocketAddr,
}

impl Stand {
    async fn turn(
        &self,
        corpus: &Corpus,
        seconds: u64,
        rate: f64,
        stalled: bool,
        candidate: &mut Candidate,
    ) -> Result<f64> {
        let seen = Rc::new(Seen::default());
        // The one that does not read comes first, so that it is before the others in every list.
        let stalled = match stalled {
            true => Some(Stalled::start(self.grpc).await?),
            false => None,
        };
        let mut fast = Vec::with_capacity(FAST);
        for _ in 0..FAST {
            fast.push(Fast::start(self.grpc, &seen).await?);
        }

        // Throughput first: one wave is many times the stalled one's window of 64 KiB and whatever waits for it in
        // the server, two frames of 128 KiB at most.
        let (mut count, mut events, mut taken) = (0, 0, Duration::ZERO);
        let before = self.state.cpu()?;
        for _ in 0..seconds {
            let requests = Rc::new(corpus.requests(PATH, count, WAVE));
            let start = Instant::now();
            let run = closed_loop(self.address, CONNECTIONS, ARRIVAL_LIMIT, &requests).await?;
            ensure!(
                run.failed == 0 && run.ok == WAVE,
                "{} of {WAVE} requests were answered 200",
                run.ok
            );
            count += WAVE;
            events = self.wait_for_events(count, &mut fast).await?;
            taken += seen.last.get().context("no event came")? - start;
        }
        let used = self.state.cpu()?.saturating_sub(before);
        let delivered = (events * FAST as u64) as f64;
        candidate.rates.push(delivered / taken.as_secs_f64());
        candidate.cpu.push(used.as_secs_f64() * 1_000.0 / delivered);

        let timed = (rate * seconds as f64) as u64;
        let requests = corpus.requests(PATH, count, timed);
        seen.first.set(count);
        seen.due.borrow_mut().reserve(requests.len());
        let note = Rc::clone(&seen);
        let run = open_loop(self.address, rate, requests, move |_, when| {
            note.due.borrow_mut().push(when);
        })
        .await?;
        ensure!(run.failed == 0, "{} requests failed", run.failed);
        self.wait_for_events(count + run.ok, &mut fast).await?;
        let mut micros = seen.micros.take();
        candidate.p50.push(quantile_ms(&mut micros, 0.5));
        candidate.p99.push(quantile_ms(&mut micros, 0.99));
        candidate.fell_behind += seen.fell_behind.get();
        if let Some(stalled) = stalled {
            stalled.check().await.context("the stalled subscriber")?;
        }
        Ok(count as f64 / taken.as_secs_f64())
    }

    /// Waits until so many deliveries are applied, and every subscriber has all their events; returns how many those
    /// are. A subscriber that has more got some twice.
    async fn wait_for_events(&self, deliveries: u64, fast: &mut [Fast]) -> Result<u64> {
        let events = u64::try_from(wait_until_applied(self.grpc, deliveries).await?)?;
        let deadline = Instant::now() + ARRIVAL_LIMIT;
        for subscriber in fast {
            while subscriber.events.get() < events {
                subscriber.check().await?;
                ensure!(
                    Instant::now() < deadline,
                    "a subscriber has {} of {events} events",
                    subscriber.events.get()
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            ensure!(
                subscriber.events.get() == events,
                "a subscriber got {} events of {events}",
                subscriber.events.get()
            );
        }
        Ok(events)
    }
}
