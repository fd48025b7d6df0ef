//! Channels over several servers that come, drain, die and return.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration as StdDuration, Instant};

use service_kit::config::Duration;
use service_kit::grpc::{Channel, ChannelConfig, Credentials, SystemResolver, channel};
use tokio::net::TcpListener;
use tonic::Code;

use super::soon;

mod goodbye;
mod names;
mod replica;

use replica::{Replica, call, call_in_vain, open};

/// Long enough that it never comes during a test.
const NEVER: Duration = Duration::from_secs(60);
/// Far below `PATIENCE` and the time to connect: an answer, or an error at once.
const QUICK: StdDuration = StdDuration::from_secs(3);

fn config() -> ChannelConfig {
    ChannelConfig {
        resolve_interval: Duration::from_millis(20),
        health_interval: Duration::from_millis(20),
        health_timeout: Duration::from_millis(500),
        ..ChannelConfig::default()
    }
}

fn over(replicas: &[Replica], config: ChannelConfig) -> Channel {
    channel(
        &ChannelConfig {
            endpoint: replicas.iter().map(Replica::uri).collect(),
            ..config
        },
        &Credentials::default(),
    )
    .unwrap()
}

async fn start<const N: usize>() -> [Replica; N] {
    let mut all = Vec::new();
    for _ in 0..N {
        all.push(Replica::start().await);
    }
    all.try_into().unwrap()
}

/// Calls until the answer is as wished.
async fn until(channel: &Channel, what: &str, wished: impl Fn(&Result<String, Code>) -> bool) {
    let deadline = Instant::now() + super::PATIENCE;
    loop {
        let answer = soon("answer", call(channel)).await;
        if wished(&answer) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: last was {answer:?}");
        tokio::time::sleep(StdDuration::from_millis(5)).await;
    }
}

/// Calls `count` times and counts who answered.
async fn tally(channel: &Channel, count: usize) -> HashMap<Result<String, Code>, usize> {
    let mut answers = HashMap::new();
    for _ in 0..count {
        let began = Instant::now();
        *answers
            .entry(soon("answer", call(channel)).await)
            .or_default() += 1;
        assert!(began.elapsed() < QUICK, "a call waited");
    }
    answers
}

#[tokio::test]
async fn first_streams_of_many_channels_reach_every_replica() {
    let replicas = start::<4>().await;
    let mut counts: HashMap<String, usize> = HashMap::new();
    let mut streams = Vec::new();
    // A fair choice leaves one of four out once in 10^9 runs.
    for _ in 0..80 {
        let channel = over(&replicas, config());
        let stream = soon("stream", open(&channel)).await.unwrap();
        *counts.entry(stream.from.clone()).or_default() += 1;
        streams.push((channel, stream));
    }
    assert_eq!(counts.len(), 4, "{counts:?}");
}

#[tokio::test]
async fn streams_of_one_channel_go_to_who_has_the_fewest() {
    let replicas = start::<4>().await;
    let channel = over(&replicas, config());
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(soon("stream", open(&channel)).await.unwrap());
    }
    for replica in &replicas {
        let count = streams
            .iter()
            .filter(|one| one.from == replica.name())
            .count();
        assert_eq!(count, 10);
    }
    // Ended streams no longer count.
    streams.retain(|one| one.from == replicas[0].name());
    for _ in 0..30 {
        let stream = soon("stream", open(&channel)).await.unwrap();
        assert_ne!(stream.from, replicas[0].name());
        streams.push(stream);
    }
}

#[tokio::test]
async fn a_call_on_a_dead_replica_fails_at_once_and_the_next_goes_elsewhere() {
    for _ in 0..8 {
        let [mut dies, lives] = start().await;
        // No regular question comes in time: the failed call alone must tell.
        let channel = over(
            &[dies.also(), lives.also()],
            ChannelConfig {
                health_interval: NEVER,
                ..config()
            },
        );
        tally(&channel, 4).await;
        dies.kill().await;
        let answers = tally(&channel, 50).await;
        let fine = answers.get(&Ok(lives.name())).copied().unwrap_or_default();
        assert!(fine >= 49, "{answers:?}");
    }
}

/// The calls meet the good-bye, the closed connection and the closed port before any question for health does.
#[tokio::test]
async fn a_server_that_ends_in_order_fails_no_call() {
    let mut both: [Replica; 2] = start().await;
    let channel = over(&both, config());
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (channel, stopped) = (channel.clone(), stopped.clone());
            tokio::spawn(async move {
                let mut calls = 0;
                while !*stopped.borrow() {
                    soon("answer", call(&channel)).await.unwrap();
                    calls += 1;
                }
                calls
            })
        })
        .collect();
    for round in 0..10 {
        let at = round % 2;
        soon("end", both[at].end()).await;
        both[at].revive().await;
        // The next one ends only when this one takes calls again.
        let back = both[at].name();
        until(&channel, "return", |answer| *answer == Ok(back.clone())).await;
    }
    stop.send(true).unwrap();
    for caller in callers {
        assert!(caller.await.unwrap() > 10);
    }
}

/// The server has its message by then, and says that it did not look at it.
#[tokio::test]
async fn a_call_that_the_servers_good_bye_leaves_out_is_made_again() {
    let leaves = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [takes] = start().await;
    // So the other one is asked first.
    takes.serving(false).await;
    let endpoint = [
        format!("http://{}", leaves.local_addr().unwrap()),
        takes.uri(),
    ];
    let channel = channel(
        &ChannelConfig {
            endpoint: endpoint.into_iter().collect(),
            health_interval: NEVER,
            health_timeout: Duration::from_secs(5),
            ..config()
        },
        &Credentials::default(),
    )
    .unwrap();
    let leaving = tokio::spawn(goodbye::leave_out_one_call(leaves));
    let answer = soon("answer", call(&channel)).await;
    assert_eq!(answer, Ok(takes.name()));
    assert!(soon("good-bye", leaving).await.unwrap() > 0, "no message");
}

#[tokio::test]
async fn a_call_that_a_server_may_have_acted_on_is_not_made_again() {
    let both: [Replica; 2] = start().await;
    let channel = over(&both, config());
    soon("failure", call_in_vain(&channel)).await;
    let times: usize = both
        .iter()
        .map(|one| one.failed.load(Ordering::SeqCst))
        .sum();
    assert_eq!(times, 1);
}

#[tokio::test]
async fn a_broken_stream_sends_the_next_one_elsewhere() {
    let [first, second] = start().await;
    let mut both = [first, second];
    let channel = over(
        &both,
        ChannelConfig {
            health_interval: NEVER,
            ..config()
        },
    );
    let mut stream = soon("stream", open(&channel)).await.unwrap();
    let at = usize::from(stream.from != both[0].name());
    both[at].kill().await;
    soon("end", stream.ended()).await.unwrap_err();
    for _ in 0..20 {
        let next = soon("stream", open(&channel)).await.unwrap();
        assert_eq!(next.from, both[1 - at].name());
    }
}

#[tokio::test]
async fn a_draining_replica_keeps_its_streams_and_gets_no_new_calls() {
    let [drains, stays] = start().await;
    let channel = over(&[drains.also(), stays.also()], config());
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(soon("stream", open(&channel)).await.unwrap());
    }
    drains.serving(false).await;
    // With the streams even, chance would share the calls.
    let all_stay = HashMap::from([(Ok(stays.name()), 40)]);
    soon("drain", async {
        while tally(&channel, 40).await != all_stay {}
    })
    .await;
    assert_eq!(tally(&channel, 40).await, all_stay);
    for stream in &mut streams {
        assert!(stream.is_open().await);
    }
    drains.serving(true).await;
    until(&channel, "return", |answer| *answer == Ok(drains.name())).await;
}

#[tokio::test]
async fn calls_go_on_when_nobody_says_that_it_serves() {
    let [first, second] = start().await;
    first.serving(false).await;
    second.serving(false).await;
    let channel = over(&[first.also(), second.also()], config());
    let answers = tally(&channel, 40).await;
    assert_eq!(answers.len(), 2, "{answers:?}");
    assert!(answers.keys().all(Result::is_ok), "{answers:?}");
}

#[tokio::test]
async fn with_all_replicas_dead_calls_fail_at_once_and_recover_with_the_first() {
    let [mut first, mut second] = start().await;
    let channel = over(&[first.also(), second.also()], config());
    tally(&channel, 4).await;
    first.kill().await;
    second.kill().await;
    tally(&channel, 4).await;
    let answers = tally(&channel, 20).await;
    assert_eq!(answers, HashMap::from([(Err(Code::Unavailable), 20)]));
    second.revive().await;
    until(&channel, "recovery", Result::is_ok).await;
    // No old error is left over.
    let answers = tally(&channel, 40).await;
    assert_eq!(answers, HashMap::from([(Ok(second.name()), 40)]));
    first.revive().await;
    until(&channel, "return", |answer| *answer == Ok(first.name())).await;
}

#[tokio::test]
async fn a_server_that_never_answers_holds_up_nobody() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [serves] = start().await;
    let endpoint = [
        format!("http://{}", silent.local_addr().unwrap()),
        serves.uri(),
    ];
    let channel = channel(
        &ChannelConfig {
            endpoint: endpoint.into_iter().collect(),
            ..config()
        },
        &Credentials::default(),
    )
    .unwrap();
    let answers = tally(&channel, 40).await;
    assert_eq!(answers, HashMap::from([(Ok(serves.name()), 40)]));
}

#[tokio::test]
async fn a_server_without_a_health_service_counts_as_serving() {
    let without = Replica::start_without_health().await;
    let [drains] = start().await;
    drains.serving(false).await;
    let channel = over(&[without.also(), drains.also()], config());
    let answers = tally(&channel, 40).await;
    assert_eq!(answers, HashMap::from([(Ok(without.name()), 40)]));
}

#[tokio::test]
async fn a_single_address_is_asked_nothing_and_connects_at_the_first_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let only = channel(
        &ChannelConfig {
            endpoint: format!("http://{}", listener.local_addr().unwrap()).into(),
            ..config()
        },
        &Credentials::default(),
    )
    .unwrap();
    // Ten times the interval of questions.
    let came = tokio::time::timeout(StdDuration::from_millis(200), listener.accept()).await;
    assert!(came.is_err(), "somebody connected");
    tokio::spawn(async move { call(&only).await });
    soon("connection", listener.accept()).await.unwrap();
}

#[tokio::test]
async fn a_name_of_the_system_is_found() {
    let [serves] = start().await;
    let port = serves.address().port();
    let named = Channel::with_resolver(
        &ChannelConfig {
            endpoint: format!("http://localhost:{port}").into(),
            ..config()
        },
        &Credentials::default(),
        Arc::new(SystemResolver),
    )
    .unwrap();
    let answers = tally(&named, 4).await;
    assert_eq!(answers, HashMap::from([(Ok(serves.name()), 4)]));
    let stream = soon("stream", open(&named)).await.unwrap();
    assert_eq!(stream.authority, format!("localhost:{port}"));
}
