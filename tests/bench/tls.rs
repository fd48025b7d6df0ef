//! What TLS costs: the way from POST to committed event with TLS on the gateway's listener and mutual TLS on the
//! hop, next to the same without.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pass_proto::v1::pass_service_client::PassServiceClient;
use service_kit::tls::{Connector, Stream};
use system_tests::tls::Pki;
use test_kit::pki::TestCa;
use tonic::transport::Endpoint;

use crate::Plan;
use crate::corpus::Corpus;
use crate::ingest::Candidate;
use crate::load::{Connection, closed_loop_over};
use crate::reference::PATH;
use crate::services::Binaries;
use crate::stats::{median, quantile_ms, spread};
use crate::sustained::applied;

const CONNECTIONS: usize = 64;
/// More requests than are answered in one second.
const REQUESTS_PER_SECOND: u64 = 60_000;
/// Requests before a turn is measured.
const WARM_UP: u64 = 20_000;

pub(crate) async fn run(plan: &Plan, binaries: &Binaries) -> Result<()> {
    let corpus = Corpus::new()?;
    let warm_up = Rc::new(corpus.requests(PATH, 0, WARM_UP));
    let requests = plan.seconds * REQUESTS_PER_SECOND;
    let requests = Rc::new(corpus.requests(PATH, WARM_UP, requests));
    let pki = Pki::new(&TestCa::new("bench")?)?;
    let (mut plain, mut tls) = (Candidate::default(), Candidate::default());
    for _ in 0..plan.rounds {
        for (pki, candidate) in [(None, &mut plain), (Some(&pki), &mut tls)] {
            let turn = turn(plan, binaries, pki, &warm_up, &requests, candidate);
            Box::pin(turn).await?;
        }
    }
    println!(
        "both services and the load on these cores, {CONNECTIONS} connections that stay; {} rounds of {} s, alternating;\n\
         processor time of both services until everything is committed",
        plan.rounds, plan.seconds
    );
    println!("| | req/s: median (lowest to highest) | CPU s / 1,000 | p50 ms | p99 ms |");
    println!("|---|---|---|---|---|");
    for (name, candidate) in [
        ("plaintext", &plain),
        ("TLS to the gateway, mutual TLS on the hop", &tls),
    ] {
        println!(
            "| {name} | {} | {:.3} | {:.1} | {:.1} |",
            spread(&candidate.rates),
            median(&candidate.cpu_seconds_per_1000),
            median(&candidate.p50),
            median(&candidate.p99),
        );
    }
    println!(
        "ratio of TLS to plaintext: req/s {:.2}, CPU s / 1,000 {:.2}",
        median(&tls.rates) / median(&plain.rates),
        median(&tls.cpu_seconds_per_1000) / median(&plain.cpu_seconds_per_1000)
    );
    Ok(())
}

async fn turn(
    plan: &Plan,
    binaries: &Binaries,
    pki: Option<&Pki>,
    warm_up: &Rc<Vec<Vec<u8>>>,
    requests: &Rc<Vec<Vec<u8>>>,
    candidate: &mut Candidate,
) -> Result<()> {
    let data = crate::disk::directory()?;
    let tables = |of: fn(&Pki) -> String| pki.map(of).unwrap_or_default();
    let (state, grpc) = binaries.pass_state_with(data.path(), &tables(Pki::state_tables))?;
    let scheme = if pki.is_some() { "https" } else { "http" };
    let endpoint = format!("{scheme}://{grpc}");
    let (gateway, address) =
        binaries.gateway_to(data.path(), &endpoint, &tables(Pki::gateway_tables))?;
    let connector = match pki {
        Some(pki) => pki.connector(Some("reader"))?,
        None => Connector::plaintext(),
    };
    // Until both have bound their ports.
    Connection::open(address).await?;
    Connection::open(grpc).await?;
    let channel = Endpoint::from_shared(endpoint)?.connect_with_connector_lazy(connector);
    let mut client = PassServiceClient::new(channel);

    let warm = closed_loop_over(
        connections(address, pki).await?,
        Duration::from_secs(1),
        warm_up,
    )
    .await?;
    ensure!(
        warm.failed == 0,
        "{} requests failed: {}",
        warm.failed,
        gateway.log()
    );
    applied(&mut client, warm.ok).await?;
    let cpu = || -> Result<Duration> { Ok(gateway.cpu()? + state.cpu()?) };
    let opened = connections(address, pki).await?;
    let before = cpu()?;
    let mut run = closed_loop_over(opened, Duration::from_secs(plan.seconds), requests).await?;
    ensure!(
        run.failed == 0,
        "{} requests failed: {}",
        run.failed,
        gateway.log()
    );
    applied(&mut client, warm.ok + run.ok).await?;
    let used = cpu()?.saturating_sub(before);
    candidate.rates.push(run.rate());
    candidate
        .cpu_seconds_per_1000
        .push(used.as_secs_f64() * 1_000.0 / run.ok as f64);
    candidate.p50.push(quantile_ms(&mut run.micros, 0.5));
    candidate.p99.push(quantile_ms(&mut run.micros, 0.99));
    Ok(())
}

async fn connections(address: SocketAddr, pki: Option<&Pki>) -> Result<Vec<Connection>> {
    let mut opened = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        opened.push(match pki {
            None => Connection::open(address).await?,
            Some(pki) => {
                let stream = pki.https(address).await.context("handshake")?;
                Connection::over(Stream::Tls(Box::new(stream.into())))
            }
        });
    }
    Ok(opened)
}
