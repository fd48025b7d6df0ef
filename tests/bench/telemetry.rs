//! What metrics and traces cost: durable ingest with pass-state stopped, with them and without, alternating.
//!
//! With them means: metrics kept, scraped and pushed once a second (fifteen to thirty times as often as usual), and one
//! trace in a hundred exported to a collector in this process, whose own time is not counted.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use system_tests::client::Caller;
use system_tests::collector::Collector;

use crate::Plan;
use crate::corpus::Corpus;
use crate::ingest::{Candidate, REQUESTS_PER_SECOND};
use crate::load::Connection;
use crate::process::free_port;
use crate::reference::PATH;
use crate::services::Binaries;
use crate::stats::{median, ratio, spread};

/// Connections of the load.
const CONNECTIONS: usize = 64;
const SCRAPE_INTERVAL: Duration = Duration::from_secs(1);
/// Of one, this many at most.
const TARGET: f64 = 1.05;

/// Names, and what stands in the gateway's `[telemetry]`.
const OFF: &str = "off";
const METRICS: &str = "metrics";
const BOTH: &str = "metrics, traces at 1 %";

pub(crate) async fn run(plan: &Plan, binaries: &Binaries) -> Result<()> {
    let corpus = Corpus::new()?;
    let requests = Rc::new(corpus.requests(PATH, 0, (plan.seconds + 1) * REQUESTS_PER_SECOND));
    println!(
        "{CONNECTIONS} connections, pass-state stopped; {} rounds of {} s, alternating",
        plan.rounds, plan.seconds
    );
    let names = [OFF, METRICS, BOTH];
    let mut candidates: [Candidate; 3] = Default::default();
    let mut spans = 0;
    for round in 0..plan.rounds {
        // Every other round backwards, so that whatever drifts weighs on all alike.
        let mut order = [0, 1, 2];
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            spans += turn(plan, binaries, names[at], &requests, &mut candidates[at]).await?;
        }
    }
    println!(
        "| telemetry | req/s: median (lowest to highest) | CPU s / 1,000 | of off (lowest to highest) | p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|");
    let off = &candidates[0].cpu_seconds_per_1000;
    for (name, candidate) in names.iter().zip(&candidates) {
        println!(
            "| {name} | {} | {:.4} | {} | {:.1} | {:.1} |",
            spread(&candidate.rates),
            median(&candidate.cpu_seconds_per_1000),
            ratio(&candidate.cpu_seconds_per_1000, off),
            median(&candidate.p50),
            median(&candidate.p99),
        );
    }
    let cost = median(&candidates[2].cpu_seconds_per_1000) / median(off);
    println!("{spans} spans exported; metrics and traces cost {cost:.3} of off, target {TARGET}");
    Ok(())
}

/// One candidate's turn; returns how many spans were exported in it.
async fn turn(
    plan: &Plan,
    binaries: &Binaries,
    name: &str,
    requests: &Rc<Vec<Vec<u8>>>,
    candidate: &mut Candidate,
) -> Result<u64> {
    let data = crate::disk::directory()?;
    let collector = Collector::sink().await?;
    let keys = match name {
        OFF => "metrics = false\n".to_owned(),
        METRICS => String::new(),
        _ => format!(
            "otlp_endpoint = \"{}\"\nsample_ratio = 0.01\nmetrics_interval = \"1s\"\n",
            collector.endpoint()
        ),
    };
    let nobody = ([127, 0, 0, 1], free_port()?).into();
    let (server, address, admin) = binaries.gateway_with_admin(data.path(), nobody, &keys)?;
    let mut first = Connection::open(address)
        .await
        .with_context(|| format!("{name} did not start: {}", server.log()))?;
    ensure!(
        first.ask(&requests[0]).await? == 200,
        "{name} does not answer 200; see its log"
    );
    let measuring = candidate.measure(plan, address, CONNECTIONS, requests, || server.cpu());
    let scraping = async {
        if name == OFF {
            std::future::pending().await
        } else {
            scrape(admin).await
        }
    };
    tokio::select! {
        measured = measuring => measured.with_context(|| name.to_owned())?,
        failed = scraping => failed.with_context(|| format!("scraping, with {name}"))?,
    }
    let (spans, exports) = collector.counts();
    ensure!(
        (name == BOTH) == (exports > 0),
        "{name}: {exports} exports came"
    );
    Ok(spans)
}

/// Scrapes until it fails.
async fn scrape(admin: SocketAddr) -> Result<()> {
    let mut caller = Caller::new(admin);
    loop {
        tokio::time::sleep(SCRAPE_INTERVAL).await;
        let request = http::Request::get("/metrics");
        let answer = caller.send(request, bytes::Bytes::new()).await;
        let answer = answer.map_err(|why| anyhow::anyhow!("{why:?}"))?;
        ensure!(answer.status == 200, "{}", answer.status);
    }
}
