//! Services that are replaced one after the other, as Kubernetes does it, and what their clients notice: nothing.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use pass_proto::v1;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use rustix::process::Signal;
use system_tests::callback::standard;
use system_tests::client::{Caller, Outcome};
use system_tests::fleet::{Database, Fleet, Layout, Member, Options, SpoolKind};
use system_tests::rolling::{Pace, Poller, Watcher, channel_to, position};
use system_tests::service::Service;
use test_kit::{Balancer, NatsSettings, TestNats, TestPostgres, wait_for};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::programs;

const LIMIT: Duration = Duration::from_secs(30);
/// The services' default, five times the interval at which the balancer looks.
const DRAIN_DELAY: Duration = Duration::from_secs(1);
/// What a process may take from SIGTERM to its end.
const GRACE: Duration = Duration::from_secs(10);
/// Callbacks that come in between two steps.
const BETWEEN: usize = 60;

/// Sends SIGTERM and expects a good end in time.
async fn end_in_time(service: Service) {
    let began = Instant::now();
    service.end().await.unwrap();
    let took = began.elapsed();
    assert!(took < GRACE, "it took {took:?} to end");
}

/// Ends a service and starts another process in its place.
async fn replace(member: &mut Member, number: usize, balancer: &Balancer) {
    end_in_time(member.take()).await;
    member.start().await.unwrap();
    balancer.sees_ready(number, LIMIT).await.unwrap();
}

/// Ends the first two of three at once.
async fn replace_two(members: &mut [Member], balancer: &Balancer) {
    let (first, second) = (members[0].take(), members[1].take());
    tokio::join!(end_in_time(first), end_in_time(second));
    for number in [0, 1] {
        members[number].start().await.unwrap();
        balancer.sees_ready(number, LIMIT).await.unwrap();
    }
}

async fn balanced(backends: Vec<test_kit::Backend>) -> Balancer {
    let balancer = Balancer::start(&backends).await.unwrap();
    for number in 0..backends.len() {
        balancer.sees_ready(number, LIMIT).await.unwrap();
    }
    balancer
}

async fn more_callbacks(fleet: &Fleet) {
    let enough = fleet.log.stored_count() + BETWEEN;
    fleet.wait_for_stored(enough, LIMIT).await.unwrap();
}

/// Three gateways and three replicas, each replaced alone and two at once, under load through balancers.
async fn roll_everything(spool: SpoolKind, seed: u64) {
    let postgres = TestPostgres::start().await.unwrap();
    let layout = Layout {
        gateways: 3,
        states: 3,
        database: Database::on(&postgres).await.unwrap(),
        spool,
        options: Options {
            drain_delay: Some(DRAIN_DELAY),
            ..Options::default()
        },
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    fleet.note_epoch().await.unwrap();
    let callbacks = balanced(fleet.gateway_backends()).await;
    let reads = balanced(fleet.state_backends()).await;

    let list = channel_to(&fleet.grpc_addresses());
    let behind = || channel_to(&[reads.address()]);
    let watchers = [
        (Watcher::start("all, by the list", list.clone(), ""), None),
        (Watcher::start("all, balanced", behind(), ""), None),
        (
            Watcher::start("installed, by the list", list.clone(), "kind = INSTALLED"),
            Some(v1::EventKind::Installed),
        ),
        (
            Watcher::start("redeemed, balanced", behind(), "kind = REDEEMED"),
            Some(v1::EventKind::Redeemed),
        ),
    ];
    let pollers = [Poller::start(list), Poller::start(behind())];
    let pace = Pace::start(&[callbacks.address()], seed, 4, 2, &fleet.log);

    for number in 0..3 {
        more_callbacks(&fleet).await;
        replace(&mut fleet.gateways[number], number, &callbacks).await;
    }
    for number in 0..3 {
        more_callbacks(&fleet).await;
        replace(&mut fleet.states[number], number, &reads).await;
    }
    more_callbacks(&fleet).await;
    tokio::join!(
        replace_two(&mut fleet.gateways, &callbacks),
        replace_two(&mut fleet.states, &reads)
    );
    more_callbacks(&fleet).await;

    let misses = pace.finish().await;
    assert!(misses.is_empty(), "not answered 200: {misses:#?}");
    for poller in &pollers {
        let answers = poller.answers();
        assert!(
            answers.len() == 1 && answers.get("ok") > Some(&100),
            "{answers:#?}"
        );
    }
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    let history = fleet.reader().history().await.unwrap();
    let head = u64::try_from(history.info.head_position).unwrap();
    let mut farewells = 0;
    for (watcher, kind) in &watchers {
        let wanted: Vec<_> = history
            .subscribed
            .iter()
            .filter(|event| kind.is_none_or(|kind| event.kind() == kind))
            .map(|event| (position(&event.cursor), event.id.clone()))
            .collect();
        assert!(!wanted.is_empty(), "{kind:?} never happened");
        watcher.judge(head, &wanted, LIMIT).await.unwrap();
        farewells += watcher.seen().farewells;
    }
    // Each stream was at a replica that ended, and most were more than once.
    assert!(farewells >= watchers.len(), "{farewells}");
    for balancer in [&callbacks, &reads] {
        let balanced = balancer.balanced();
        assert_eq!(balanced.refused, 0, "{balanced:?}");
        assert!(
            balanced.connections.iter().all(|count| *count > 0),
            "{balanced:?}"
        );
    }
    fleet.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_with_spools_and_replicas_are_replaced_under_load_and_nobody_notices() {
    roll_everything(SpoolKind::Embedded, 91).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_on_a_stream_and_replicas_are_replaced_under_load_and_nobody_notices() {
    let nats = TestNats::start(NatsSettings::default()).await.unwrap();
    roll_everything(SpoolKind::on(&nats), 92).await;
}

/// With nobody else to go to, the drain's delay is still a time in which everything is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_gateway_takes_everything_until_its_drain_is_over_and_loses_none_of_it() {
    let layout = Layout {
        options: Options {
            drain_delay: Some(DRAIN_DELAY),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    let pace = Pace::start(&fleet.http_addresses(), 93, 4, 2, &fleet.log);
    more_callbacks(&fleet).await;
    let asked = Instant::now();
    end_in_time(fleet.gateways[0].take()).await;
    wait_for("a refusal", LIMIT, async || match pace.misses().len() {
        0 => Err("everything was taken"),
        _ => Ok(()),
    })
    .await
    .unwrap();
    let misses = pace.finish().await;
    for miss in &misses {
        let after = miss.at.duration_since(asked);
        assert!(after >= DRAIN_DELAY, "{after:?} after SIGTERM: {miss:?}");
        let refused = match &miss.outcome {
            // Nobody listens any more.
            Outcome::Refused(_) => true,
            // A connection that was made in the moment in which the socket closed. What HTTP says is 503.
            Outcome::Indeterminate(why) => !why.contains("HTTP") || why.contains("503"),
            Outcome::Stored(_) => false,
        };
        assert!(refused, "{miss:?}");
    }
    // Forwarding ended with the process; what it had accepted was sent before.
    let recorded = fleet
        .reader()
        .info()
        .await
        .unwrap()
        .books
        .unwrap()
        .deliveries;
    let stored = fleet.log.stored_count();
    assert!(
        usize::try_from(recorded).unwrap() >= stored,
        "{recorded} of {stored}"
    );
    fleet.gateways[0].start().await.unwrap();
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    fleet.finish().await.unwrap();
}

/// The defaults bound the end whatever clients do: here one never ends its callback, one looks at nothing that comes,
/// and several are just there. What comes fits into HTTP/2's windows, so the second holds up nothing: a stream that is
/// really stuck is cut at the end of the drain's time, too near to the bound to be told from it on a busy machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_services_end_within_ten_seconds_however_their_clients_behave() {
    let layout = Layout {
        options: Options {
            drain_delay: Some(DRAIN_DELAY),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    let (http, grpc) = (fleet.http_addresses()[0], fleet.grpc_addresses()[0]);
    let pace = Pace::start(&[http], 94, 4, 2, &fleet.log);
    more_callbacks(&fleet).await;
    // Subscribed, and nothing of it looked at.
    let mut client = SubscriptionServiceClient::new(channel_to(&[grpc]));
    let request = v1::SubscribeRequest {
        start: Some(v1::subscribe_request::Start::FromBeginning(true)),
        ..v1::SubscribeRequest::default()
    };
    let unread = client.subscribe(request).await.unwrap();
    let poller = Poller::start(channel_to(&[grpc]));
    let mut half = TcpStream::connect(http).await.unwrap();
    half.write_all(b"POST /webhooks/standard HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        .await
        .unwrap();
    let silent = [
        TcpStream::connect(http).await.unwrap(),
        TcpStream::connect(grpc).await.unwrap(),
    ];
    more_callbacks(&fleet).await;
    let (gateway, state) = (fleet.gateways[0].take(), fleet.states[0].take());
    tokio::join!(end_in_time(gateway), end_in_time(state));
    drop((unread, poller, half, silent));
    pace.finish().await;

    fleet.states[0].start().await.unwrap();
    fleet.gateways[0].start().await.unwrap();
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    fleet.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_both_services_at_once() {
    let layout = Layout {
        options: Options {
            drain_delay: Some(Duration::from_secs(60)),
            ..Options::default()
        },
        ..Layout::pair()
    };
    let mut fleet = Fleet::started(&programs(), &layout).await.unwrap();
    let callback = standard("CREATED", "twice", 0, None);
    fleet
        .load(vec![Arc::clone(&callback)], 1, LIMIT)
        .await
        .unwrap();
    for state in [false, true] {
        let member = match state {
            false => &mut fleet.gateways[0],
            true => &mut fleet.states[0],
        };
        member.service().signal(Signal::TERM).unwrap();
        wait_for("readiness off", LIMIT, async || {
            match member.service().admin("/readyz").await {
                Ok((503, _)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await
        .unwrap();
        if !state {
            let path = Request::builder().method("GET").uri("/webhooks/standard");
            let mut caller = Caller::new(member.address());
            let answer = caller.send(path, bytes::Bytes::new()).await.unwrap();
            assert_eq!(answer.status, 405, "it still answers");
        }
        let began = Instant::now();
        member.take().end().await.unwrap();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
    for member in [&mut fleet.states[0], &mut fleet.gateways[0]] {
        member.edit_config("60000ms", "50ms").unwrap();
        member.start().await.unwrap();
    }
    fleet.verdict(LIMIT).await.unwrap().assert_clean();
    fleet.finish().await.unwrap();
}
