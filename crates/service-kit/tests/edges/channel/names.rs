//! Channels whose endpoints are names, looked up by a resolver of the test.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration as StdDuration;

use futures_util::future::{self, BoxFuture, FutureExt as _};
use service_kit::config::Duration;
use service_kit::grpc::{Channel, ChannelConfig, Credentials, Resolve};
use tonic::Code;

use super::replica::{Replica, call, open};
use super::{config, soon, start, tally, until};

/// What the stub says about every name.
#[derive(Clone)]
enum Says {
    Addresses(Vec<SocketAddr>),
    Nothing,
    Unheard,
}

/// A resolver whose answers the test sets.
struct Stub {
    says: Mutex<Says>,
    lookups: AtomicUsize,
}

impl Stub {
    fn new(says: Says) -> Arc<Self> {
        Arc::new(Self {
            says: Mutex::new(says),
            lookups: AtomicUsize::new(0),
        })
    }

    /// Changes the answer and waits until it was given once more than once.
    async fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
        let begin = self.lookups.load(Ordering::Relaxed);
        soon("lookups", async {
            while self.lookups.load(Ordering::Relaxed) < begin + 2 {
                tokio::time::sleep(StdDuration::from_millis(5)).await;
            }
        })
        .await;
    }
}

impl Resolve for Stub {
    fn resolve(&self, host: &str, _: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        assert_eq!(host, "replicas.test");
        self.lookups.fetch_add(1, Ordering::Relaxed);
        match self.says.lock().unwrap().clone() {
            Says::Addresses(addresses) => future::ready(Ok(addresses)).boxed(),
            Says::Nothing => future::ready(Err(io::Error::from(io::ErrorKind::NotFound))).boxed(),
            Says::Unheard => future::pending().boxed(),
        }
    }
}

fn addresses(replicas: &[&Replica]) -> Says {
    Says::Addresses(replicas.iter().map(|one| one.address()).collect())
}

fn named(stub: &Arc<Stub>, config: ChannelConfig) -> Channel {
    Channel::with_resolver(
        &ChannelConfig {
            endpoint: "http://replicas.test:50051".into(),
            ..config
        },
        &Credentials::default(),
        Arc::clone(stub) as _,
    )
    .unwrap()
}

#[tokio::test]
async fn calls_follow_the_addresses_of_the_name_and_streams_stay() {
    let [first, second, third] = start().await;
    let stub = Stub::new(addresses(&[&first, &second]));
    let channel = named(&stub, config());
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(soon("stream", open(&channel)).await.unwrap());
    }
    assert!(streams.iter().any(|stream| stream.from == first.name()));

    stub.say(addresses(&[&second, &third])).await;
    until(&channel, "newcomer", |answer| *answer == Ok(third.name())).await;
    let answers = tally(&channel, 40).await;
    assert!(!answers.contains_key(&Ok(first.name())), "{answers:?}");
    for stream in &mut streams {
        assert!(stream.is_open().await, "a stream broke");
        assert_eq!(stream.authority, "replicas.test:50051");
    }
}

#[tokio::test]
async fn failing_lookups_keep_what_is_known() {
    let [first, second] = start().await;
    let stub = Stub::new(addresses(&[&first, &second]));
    let channel = named(&stub, config());
    tally(&channel, 1).await;
    for says in [Says::Nothing, Says::Addresses(Vec::new())] {
        stub.say(says).await;
        let answers = tally(&channel, 40).await;
        assert_eq!(answers.len(), 2, "{answers:?}");
        assert!(answers.keys().all(Result::is_ok), "{answers:?}");
    }
}

#[tokio::test]
async fn calls_fail_at_once_while_the_name_is_unknown_and_work_later() {
    let [serves] = start().await;
    let stub = Stub::new(Says::Nothing);
    let channel = named(&stub, config());
    let answers = tally(&channel, 10).await;
    assert_eq!(answers, HashMap::from([(Err(Code::Unavailable), 10)]));
    stub.say(addresses(&[&serves])).await;
    until(&channel, "answer", Result::is_ok).await;
}

#[tokio::test]
async fn a_lookup_without_an_answer_holds_calls_up_only_for_the_time_to_connect() {
    let [serves] = start().await;
    let stub = Stub::new(Says::Unheard);
    let channel = named(
        &stub,
        ChannelConfig {
            connect_timeout: Duration::from_millis(100),
            ..config()
        },
    );
    let answers = tally(&channel, 10).await;
    assert_eq!(answers, HashMap::from([(Err(Code::Unavailable), 10)]));
    stub.say(addresses(&[&serves])).await;
    until(&channel, "answer", Result::is_ok).await;
    // Nor does it hold up the questions for health.
    *stub.says.lock().unwrap() = Says::Unheard;
    tally(&channel, 4).await;
}

#[tokio::test]
async fn the_task_ends_with_the_last_clone_of_the_channel() {
    let [serves] = start().await;
    let stub = Stub::new(addresses(&[&serves]));
    let channel = named(&stub, config());
    let clone = channel.clone();
    drop(channel);
    call(&clone).await.unwrap();
    stub.say(addresses(&[&serves])).await;
    let mut stream = soon("stream", open(&clone)).await.unwrap();
    drop(clone);
    soon("end of the task", async {
        while Arc::strong_count(&stub) > 1 {
            tokio::time::sleep(StdDuration::from_millis(5)).await;
        }
    })
    .await;
    assert!(stream.is_open().await, "the stream ended with the channel");
}
