//! Durable ingest with pass-state stopped: the gateway next to `full` and `full + append`.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Plan;
use crate::corpus::Corpus;
use crate::load::{Connection, closed_loop};
use crate::process::free_port;
use crate::reference::PATH;
use crate::services::Binaries;
use crate::stats::{median, quantile_ms, spread};

/// More requests than any candidate answers in one turn.
pub(crate) const REQUESTS_PER_SECOND: u64 = 70_000;

/// What one candidate's turns gave, at one number of connections.
#[derive(Default)]
pub(crate) struct Candidate {
    pub(crate) rates: Vec<f64>,
    pub(crate) cpu_seconds_per_1000: Vec<f64>,
    pub(crate) p50: Vec<f64>,
    pub(crate) p99: Vec<f64>,
}

impl Candidate {
    /// Warms the server up, and measures it under closed-loop load. `cpu` tells the time its processes used.
    pub(crate) async fn measure(
        &mut self,
        plan: &Plan,
        address: SocketAddr,
        connections: usize,
        requests: &Rc<Vec<Vec<u8>>>,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<()> {
        closed_loop(address, connections, Duration::from_millis(500), requests).await?;
        let before = cpu()?;
        let time = Duration::from_secs(plan.seconds);
        let mut run = closed_loop(address, connections, time, requests).await?;
        let used = cpu()?.saturating_sub(before);
        ensure!(run.failed == 0, "{} requests failed", run.failed);
        self.rates.push(run.rate());
        self.cpu_seconds_per_1000
            .push(used.as_secs_f64() * 1_000.0 / run.ok as f64);
        self.p50.push(quantile_ms(&mut run.micros, 0.5));
        self.p99.push(quantile_ms(&mut run.micros, 0.99));
        Ok(())
    }
}

pub(crate) async fn run(plan: &Plan, binaries: &Binaries) -> Result<()> {
    let corpus = Corpus::new()?;
    let requests = Rc::new(corpus.requests(PATH, 0, (plan.seconds + 1) * REQUESTS_PER_SECOND));
    println!(
        "bodies of {} bytes, each its own pass; {} rounds of {} s, alternating",
        corpus.body(0).len(),
        plan.rounds,
        plan.seconds
    );
    println!(
        "| candidate | conns | req/s: median (lowest to highest) | of full | of full + append | CPU s / 1,000 | p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for connections in [64, 256] {
        let names = ["full", "full + append", "webhook-gateway"];
        let mut candidates: [Candidate; 3] = Default::default();
        for _ in 0..plan.rounds {
            for (name, candidate) in names.iter().zip(&mut candidates) {
                turn(plan, binaries, name, connections, &requests, candidate).await?;
            }
        }
        let [full, append, _] = [0, 1, 2].map(|at: usize| median(&candidates[at].rates));
        for (name, candidate) in names.iter().zip(&candidates) {
            let rate = median(&candidate.rates);
            println!(
                "| {name} | {connections} | {} | {:.2} | {:.2} | {:.3} | {:.1} | {:.1} |",
                spread(&candidate.rates),
                rate / full,
                rate / append,
                median(&candidate.cpu_seconds_per_1000),
                median(&candidate.p50),
                median(&candidate.p99),
            );
        }
    }
    Ok(())
}

async fn turn(
    plan: &Plan,
    binaries: &Binaries,
    name: &str,
    connections: usize,
    requests: &Rc<Vec<Vec<u8>>>,
    candidate: &mut Candidate,
) -> Result<()> {
    let data = crate::disk::directory()?;
    let (server, address) = match name {
        "full" => Binaries::reference("full", data.path())?,
        "full + append" => Binaries::reference("append", data.path())?,
        _ => binaries.gateway(data.path(), ([127, 0, 0, 1], free_port()?).into())?,
    };
    let mut first = Connection::open(address)
        .await
        .with_context(|| format!("{name} did not start: {}", server.log()))?;
    ensure!(
        first.ask(&requests[0]).await? == 200,
        "{name} does not answer 200; see its log"
    );
    candidate
        .measure(plan, address, connections, requests, || server.cpu())
        .await
        .context(name.to_owned())
}
