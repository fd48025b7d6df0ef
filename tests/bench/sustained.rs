//! Both services and the load on the same cores: the sustained rate, the latency from POST to Subscribe at
//! half of it, and the catch-up rate over what was stored.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pass_proto::v1;
use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use tokio::task::LocalSet;
use tonic::transport::Channel;

use crate::Plan;
use crate::catch_up;
use crate::corpus::Corpus;
use crate::disk::fdatasync_quantiles;
use crate::load::{Connection, closed_loop, open_loop};
use crate::reference::PATH;
use crate::services::Binaries;
use crate::stats::{median, quantile_ms, spread};

const CONNECTIONS: usize = 64;
/// More requests than any candidate answers in one second.
const REQUESTS_PER_SECOND: u64 = 60_000;

pub(crate) async fn run(plan: &Plan, binaries: &Binaries) -> Result<()> {
    let corpus = Corpus::new()?;
    let requests = Rc::new(corpus.requests(PATH, 0, plan.seconds * REQUESTS_PER_SECOND));
    let (mut ours, mut by_orm, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    let mut kept = None;
    for round in 0..plan.rounds {
        for (kind, rates) in [("sqlite", &mut by_orm), ("sqlite-raw", &mut raw)] {
            rates.push(one_insert(plan, kind, &requests).await?);
        }
        // The last round's services end before the next ones start.
        drop(kept.take());
        let data = crate::disk::directory()?;
        let (state, grpc) = binaries.pass_state(data.path())?;
        let (gateway, address) = binaries.gateway(data.path(), grpc)?;
        Connection::open(address).await?;
        Connection::open(grpc).await?;
        let start = Instant::now();
        let run = closed_loop(
            address,
            CONNECTIONS,
            Duration::from_secs(plan.seconds),
            &requests,
        )
        .await?;
        ensure!(
            run.failed == 0,
            "the gateway failed {} requests",
            run.failed
        );
        let events = wait_until_applied(grpc, run.ok).await?;
        let whole = start.elapsed();
        ours.push(run.ok as f64 / whole.as_secs_f64());
        println!(
            "round {}: {} deliveries accepted in {:.1} s, all applied ({events} events) after {:.1} s",
            round + 1,
            run.ok,
            run.elapsed.as_secs_f64(),
            whole.as_secs_f64()
        );
        kept = Some((data, state, gateway, grpc, address, run.ok));
    }
    let rate = median(&ours);
    println!(
        "sustained, POST to committed event, both services and the load on these cores, {CONNECTIONS} connections:"
    );
    println!(
        "  Passline deliveries/s                            {}",
        spread(&ours)
    );
    println!(
        "  axum + one SQLite INSERT per request, sea-orm    {}",
        spread(&by_orm)
    );
    println!(
        "  axum + one SQLite INSERT per request, prepared   {}",
        spread(&raw)
    );
    println!(
        "  ratio {:.2}, and to the prepared one {:.2}",
        rate / median(&by_orm),
        rate / median(&raw)
    );

    let (data, state, gateway, grpc, address, sent) = kept.context("no round was run")?;
    latency(plan, &corpus, grpc, address, sent, rate / 2.0).await?;
    catch_up::run(plan, data.path(), grpc, state).await?;
    drop(gateway);
    Ok(())
}

/// Requests per second of a reference that stores each one by itself.
async fn one_insert(plan: &Plan, kind: &str, requests: &Rc<Vec<Vec<u8>>>) -> Result<f64> {
    let data = crate::disk::directory()?;
    let (_server, address) = Binaries::reference(kind, data.path())?;
    let time = Duration::from_secs(plan.seconds);
    let run = closed_loop(address, CONNECTIONS, time, requests).await?;
    ensure!(run.failed == 0, "{kind} failed {} requests", run.failed);
    Ok(run.rate())
}

/// Waits until as many deliveries are recorded; returns the number of events.
pub(crate) async fn wait_until_applied(grpc: SocketAddr, deliveries: u64) -> Result<i64> {
    let mut client = PassServiceClient::connect(format!("http://{grpc}")).await?;
    applied(&mut client, deliveries).await
}

/// The same by a client that stands.
pub(crate) async fn applied(
    client: &mut PassServiceClient<Channel>,
    deliveries: u64,
) -> Result<i64> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let info = client
            .get_log_info(v1::GetLogInfoRequest {})
            .await?
            .into_inner();
        let books = info.books.context("no books")?;
        if books.deliveries >= i64::try_from(deliveries)? {
            return Ok(books.events);
        }
        ensure!(
            Instant::now() < deadline,
            "{} of {deliveries} deliveries were applied in 120 s",
            books.deliveries
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// POST to Subscribe in open loop: each delivery is due at its time, whatever the answers.
async fn latency(
    plan: &Plan,
    corpus: &Corpus,
    grpc: SocketAddr,
    address: SocketAddr,
    sent: u64,
    rate: f64,
) -> Result<()> {
    let (disk_p50, disk_p99) = fdatasync_quantiles()?;
    let first = sent + 1_000_000;
    let count = (rate * plan.seconds as f64) as u64;
    let requests = corpus.requests(PATH, first, count);
    let mut client = SubscriptionServiceClient::connect(format!("http://{grpc}")).await?;
    let request = v1::SubscribeRequest {
        start: Some(Start::FromEnd(true)),
        filter: "kind = INSTALLED".into(),
        bookmark_interval: Some(prost_types::Duration {
            seconds: 1,
            nanos: 0,
        }),
        ..v1::SubscribeRequest::default()
    };
    let mut frames = client.subscribe(request).await?.into_inner();
    ensure!(
        matches!(
            frames.message().await?.and_then(|f| f.frame),
            Some(Frame::Started(_))
        ),
        "no Started frame"
    );
    // The connection is warmed up, so that the first deliveries are like all others.
    Connection::open(address).await?;
    let due: Rc<RefCell<HashMap<String, Instant>>> = Rc::default();
    // How many events to wait for: known once every request is answered.
    let accepted: Rc<Cell<u64>> = Rc::new(Cell::new(u64::MAX));
    let local = LocalSet::new();
    let reader = {
        let (due, accepted) = (Rc::clone(&due), Rc::clone(&accepted));
        local.spawn_local(async move {
            let mut micros = Vec::new();
            while (micros.len() as u64) < accepted.get() {
                let frame =
                    tokio::time::timeout(Duration::from_secs(30), frames.message()).await??;
                let Some(Frame::Events(events)) = frame.context("the stream ended")?.frame else {
                    continue;
                };
                for event in events.events {
                    let id = event.pass.rsplit('/').next().unwrap_or_default();
                    let when = due
                        .borrow_mut()
                        .remove(id)
                        .context("an event of a delivery that was not sent")?;
                    micros.push(u32::try_from(when.elapsed().as_micros()).unwrap_or(u32::MAX));
                }
            }
            anyhow::Ok(micros)
        })
    };
    let both = local.run_until(async {
        let note = Rc::clone(&due);
        let run = open_loop(address, rate, requests, move |at, when| {
            note.borrow_mut()
                .insert(Corpus::pass_id(first + at as u64), when);
        })
        .await?;
        accepted.set(run.ok);
        anyhow::Ok((run, reader.await?))
    });
    let limit = Duration::from_secs(plan.seconds + 30);
    let (mut run, micros) = tokio::time::timeout(limit, both)
        .await
        .with_context(|| format!("{} events did not come in {limit:?}", due.borrow().len()))??;
    let mut micros = micros?;
    println!(
        "POST to Subscribe, open loop at {rate:.0} deliveries/s for {} s ({} accepted, {} not, {} of those answered 503):",
        plan.seconds, run.ok, run.failed, run.busy
    );
    println!(
        "  to the event on the stream  p50 {:.2} ms, p99 {:.2} ms",
        quantile_ms(&mut micros, 0.5),
        quantile_ms(&mut micros, 0.99)
    );
    println!(
        "  to the answer 200           p50 {:.2} ms, p99 {:.2} ms",
        quantile_ms(&mut run.micros, 0.5),
        quantile_ms(&mut run.micros, 0.99)
    );
    println!("  fdatasync just before       p50 {disk_p50:.2} ms, p99 {disk_p99:.2} ms");
    Ok(())
}
