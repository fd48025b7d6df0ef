//! One pass-state process next to four, on one PostgreSQL. The same four ingest streams feed them; a transaction
//! of any replica waits for the lock of the log's row, so that more replicas bring no more commits, and are not
//! to bring fewer.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pass_proto::v1;
use pass_proto::v1::pass_service_client::PassServiceClient;
use test_kit::TestPostgres;

use crate::Plan;
use crate::corpus::Corpus;
use crate::feeder::{self, Feeder};
use crate::postgres::{SETTINGS, about, remove, server_cpu};
use crate::process::Server;
use crate::services::Binaries;
use crate::stats::{median, ratio, spread};

const FEEDERS: usize = 4;
/// Deliveries of one feeder in one turn.
const DELIVERIES: usize = 10_000;

/// What the turns with one number of replicas gave.
struct Candidate {
    replicas: usize,
    rates: Vec<f64>,
    state_cpu: Vec<f64>,
    server_cpu: Vec<f64>,
}

pub(crate) async fn run(plan: &Plan, binaries: &Binaries) -> Result<()> {
    let corpus = Corpus::new()?;
    let server = TestPostgres::start_with(&SETTINGS).await?;
    println!("{}", about(&server).await?);
    let mut spools = Vec::new();
    for feeder in 0..FEEDERS {
        let from = (feeder * DELIVERIES) as u64;
        let deliveries = crate::corpus::deliveries(&corpus, from, DELIVERIES)?;
        spools.push(feeder::batches(deliveries.iter().map(AsRef::as_ref)));
    }
    let mut candidates = [1, FEEDERS].map(|replicas| Candidate {
        replicas,
        rates: Vec::new(),
        state_cpu: Vec::new(),
        server_cpu: Vec::new(),
    });
    for _ in 0..plan.rounds {
        for candidate in &mut candidates {
            candidate.turn(binaries, &server, &spools).await?;
        }
    }
    println!(
        "{FEEDERS} ingest streams of {DELIVERIES} PassKit deliveries each, {} a message and {} messages in flight, from the first message to the last commit; CPU s / 1,000 of pass-state + PostgreSQL:",
        feeder::BATCH,
        feeder::IN_FLIGHT_MAX
    );
    for candidate in &candidates {
        println!(
            "  {} pass-state, deliveries/s  {}   CPU {:.3} + {:.3}",
            candidate.replicas,
            spread(&candidate.rates),
            median(&candidate.state_cpu),
            median(&candidate.server_cpu)
        );
    }
    let [one, four] = &candidates;
    println!("  ratio {}", ratio(&four.rates, &one.rates));
    Ok(())
}

impl Candidate {
    async fn turn(
        &mut self,
        binaries: &Binaries,
        server: &TestPostgres,
        spools: &[Vec<v1::IngestBatch>],
    ) -> Result<()> {
        let url = server.database().await?;
        let tables = format!(
            "[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {{ value = \"{url}\" }}\n"
        );
        let mut replicas = Vec::new();
        for _ in 0..self.replicas {
            let data = crate::disk::directory()?;
            let (state, address) = binaries.pass_state_with(data.path(), &tables)?;
            replicas.push((data, state, address));
        }
        let mut feeders = Vec::new();
        for (at, batches) in spools.iter().enumerate() {
            let (_, state, address) = &replicas[at % self.replicas];
            let feeder = Feeder::open(*address, at as u64 + 1, batches.clone()).await;
            feeders.push(feeder.with_context(|| state.log())?);
        }
        server.sql(&server.url("postgres"), "CHECKPOINT").await?;
        let used = || -> Result<(Duration, Duration)> {
            let states: Result<Vec<_>> = replicas.iter().map(|(_, state, _)| state.cpu()).collect();
            Ok((states?.iter().sum(), server_cpu(server)?))
        };
        let before = used()?;
        let start = Instant::now();
        let feeding: Vec<_> = feeders
            .into_iter()
            .map(|feeder| tokio::spawn(feeder.feed()))
            .collect();
        for fed in feeding {
            fed.await
                .context("a feeder panicked")?
                .with_context(|| logs(replicas.iter().map(|(_, state, _)| state)))?;
        }
        let taken = start.elapsed();
        let after = used()?;
        let total = (FEEDERS * DELIVERIES) as f64;
        let per_1000 =
            |before, after: Duration| after.saturating_sub(before).as_secs_f64() * 1_000.0 / total;
        self.rates.push(total / taken.as_secs_f64());
        self.state_cpu.push(per_1000(before.0, after.0));
        self.server_cpu.push(per_1000(before.1, after.1));

        // Everything counted is in the log, whichever replica is asked.
        for (_, _, address) in &replicas {
            let info = PassServiceClient::connect(format!("http://{address}"))
                .await?
                .get_log_info(v1::GetLogInfoRequest {})
                .await?
                .into_inner();
            let books = info.books.context("no books")?;
            ensure!(
                books.applied as f64 == total,
                "{} of {total} deliveries are in the log",
                books.applied
            );
        }
        drop(replicas);
        remove(server, &url).await
    }
}

fn logs<'a>(states: impl Iterator<Item = &'a Server>) -> String {
    states.map(Server::log).collect::<Vec<_>>().join("\n")
}
