//! Durable ingest with a JetStream spool next to the embedded one, with pass-state stopped. All on one machine: what
//! it shows is the price of an answer that another server has to sync for, not that of a network.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use test_kit::{NatsSettings, TestNats};

use crate::Plan;
use crate::corpus::Corpus;
use crate::ingest::{Candidate, REQUESTS_PER_SECOND};
use crate::load::Connection;
use crate::process::{child_with, family_cpu, free_port};
use crate::reference::PATH;
use crate::services::Binaries;
use crate::stats::{median, spread};

const START_LIMIT: Duration = Duration::from_secs(20);

/// What keeps the deliveries.
#[derive(Clone, Copy)]
enum Spool {
    Embedded,
    /// The server syncs before it answers.
    JetStreamSynced,
    /// The server answers, and syncs every two minutes. For comparison: a loss of power loses what was answered 200.
    JetStreamUnsynced,
}

const SPOOLS: [(Spool, &str); 3] = [
    (Spool::Embedded, "embedded spool"),
    (Spool::JetStreamSynced, "JetStream, sync_interval always"),
    (
        Spool::JetStreamUnsynced,
        "JetStream, default sync, not durable",
    ),
];

pub(crate) async fn run(plan: &Plan, binaries: &Binaries) -> Result<()> {
    let corpus = Corpus::new()?;
    let requests = Rc::new(corpus.requests(PATH, 0, (plan.seconds + 1) * REQUESTS_PER_SECOND));
    println!(
        "{}; one server, file storage, 1 replica, a message and an acknowledgement each; bodies of {} bytes; {} rounds of {} s, alternating; CPU of the gateway and the NATS server",
        version()?,
        corpus.body(0).len(),
        plan.rounds,
        plan.seconds
    );
    println!(
        "| spool | conns | req/s: median (lowest to highest) | of embedded | CPU s / 1,000 | p50 ms | p99 ms |"
    );
    println!("|---|---|---|---|---|---|---|");
    for connections in [64, 256] {
        let mut candidates: [Candidate; 3] = Default::default();
        for _ in 0..plan.rounds {
            for ((spool, name), candidate) in SPOOLS.iter().zip(&mut candidates) {
                turn(plan, binaries, *spool, connections, &requests, candidate)
                    .await
                    .context(*name)?;
            }
        }
        let embedded = median(&candidates[0].rates);
        for ((_, name), candidate) in SPOOLS.iter().zip(&candidates) {
            println!(
                "| {name} | {connections} | {} | {:.2} | {:.3} | {:.1} | {:.1} |",
                spread(&candidate.rates),
                median(&candidate.rates) / embedded,
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
    spool: Spool,
    connections: usize,
    requests: &Rc<Vec<Vec<u8>>>,
    candidate: &mut Candidate,
) -> Result<()> {
    // The same disk for all of them.
    let data = crate::disk::directory_beside_servers()?;
    let nobody: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    let nats = match spool {
        Spool::Embedded => None,
        Spool::JetStreamSynced | Spool::JetStreamUnsynced => {
            let settings = NatsSettings {
                sync_always: matches!(spool, Spool::JetStreamSynced),
                ..NatsSettings::default()
            };
            Some(TestNats::start(settings).await?)
        }
    };
    let tables = nats.as_ref().map_or_else(String::new, |nats| {
        // The largest stream that the server has room for beside the turn's bucket.
        format!(
            "[spool]\nbackend = \"jetstream\"\n[spool.jetstream]\nservers = [\"{}\"]\nmonitoring_urls = [\"{}\"]\nreplicas = 1\nbytes_max = \"960MiB\"\nallow_unsynced = {}\n",
            nats.url(),
            nats.monitoring_url(),
            matches!(spool, Spool::JetStreamUnsynced)
        )
    });
    let (server, address) = binaries.gateway_with(data.path(), nobody, &tables)?;
    let pid = nats.as_ref().map(nats_pid).transpose()?;
    let cpu = || -> Result<Duration> {
        let spool = pid.map_or(Ok(Duration::ZERO), family_cpu)?;
        Ok(server.cpu()? + spool)
    };
    wait_for_200(address, &requests[0])
        .await
        .with_context(|| server.log())?;
    candidate
        .measure(plan, address, connections, requests, cpu)
        .await
        .with_context(|| server.log())
}

/// Waits until the gateway has made sure that its spool is durable, and takes deliveries.
async fn wait_for_200(address: SocketAddr, request: &[u8]) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    let mut connection = Connection::open(address).await?;
    loop {
        let status = connection.ask(request).await?;
        if status == 200 {
            return Ok(());
        }
        ensure!(
            status == 503 && Instant::now() < deadline,
            "the gateway answers {status} after {START_LIMIT:?}"
        );
        // Its next look at the servers.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn nats_pid(nats: &TestNats) -> Result<u32> {
    let home = nats
        .store_dir()
        .parent()
        .context("the server's store lies in no directory")?
        .display()
        .to_string();
    child_with(&home)
}

/// What `nats-server --version` says.
fn version() -> Result<String> {
    let output = std::process::Command::new(test_kit::tool("PASSLINE_NATS_SERVER")?)
        .arg("--version")
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
