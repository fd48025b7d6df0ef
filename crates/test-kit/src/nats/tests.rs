use async_nats::jetstream::{self, stream};

use super::*;
use crate::process::runs;

const SOON: Duration = Duration::from_secs(30);

async fn context(server: &TestNats) -> jetstream::Context {
    jetstream::new(async_nats::connect(server.url()).await.unwrap())
}

fn notes(replicas: usize) -> stream::Config {
    stream::Config {
        name: "notes".to_owned(),
        subjects: vec!["notes".to_owned()],
        num_replicas: replicas,
        ..stream::Config::default()
    }
}

async fn publish(context: &jetstream::Context, text: &'static str) {
    context
        .publish("notes", text.into())
        .await
        .unwrap()
        .await
        .unwrap();
}

async fn stored(context: &jetstream::Context) -> u64 {
    context
        .get_stream("notes")
        .await
        .unwrap()
        .get_info()
        .await
        .unwrap()
        .state
        .messages
}

#[tokio::test]
async fn stops_and_kills_keep_the_ports_and_the_messages() {
    let mut server = TestNats::start(NatsSettings::default()).await.unwrap();
    let (url, monitoring) = (server.url(), server.monitoring_url());
    let first = context(&server).await;
    first.create_stream(notes(1)).await.unwrap();
    publish(&first, "one").await;

    server.restart().await.unwrap();
    publish(&context(&server).await, "two").await;
    let pid = server.process.as_ref().unwrap().pid();
    server.kill().await.unwrap();
    assert!(!runs(pid));
    assert!(async_nats::connect(server.url()).await.is_err());

    server.restart().await.unwrap();
    assert_eq!((server.url(), server.monitoring_url()), (url, monitoring));
    assert_eq!(stored(&context(&server).await).await, 2);
    assert!(server.store_dir().join("jetstream").is_dir());
}

#[tokio::test]
async fn settings_reach_the_server() {
    let settings = NatsSettings {
        sync_always: false,
        max_payload_bytes: 4096,
        credentials: Some(("passline".to_owned(), "secret".to_owned())),
        more: "max_connections: 7\n".to_owned(),
    };
    let server = TestNats::start(settings).await.unwrap();
    assert!(async_nats::connect(server.url()).await.is_err());
    let client = async_nats::ConnectOptions::with_user_and_password(
        "passline".to_owned(),
        "secret".to_owned(),
    )
    .connect(server.url())
    .await
    .unwrap();
    assert_eq!(client.server_info().max_payload, 4096);
}

#[tokio::test]
async fn a_server_that_cannot_start_shows_its_log() {
    let settings = NatsSettings {
        more: "max_connections: many\n".to_owned(),
        ..NatsSettings::default()
    };
    let error = TestNats::start(settings).await.unwrap_err();
    assert!(format!("{error:#}").contains("nats.conf:6"), "{error:#}");
}

#[tokio::test]
async fn a_dropped_server_leaves_no_process_and_no_file() {
    let server = TestNats::start(NatsSettings::default()).await.unwrap();
    let (pid, store) = (server.process.as_ref().unwrap().pid(), server.store_dir());
    drop(server);
    assert!(!runs(pid));
    assert!(!store.parent().unwrap().exists());
}

#[tokio::test]
async fn a_cluster_of_three_goes_on_without_one_and_takes_it_back() {
    let mut servers = TestNats::cluster(3, NatsSettings::default()).await.unwrap();
    let client = context(&servers[0]).await;
    client.create_stream(notes(3)).await.unwrap();
    publish(&client, "one").await;

    servers[2].kill().await.unwrap();
    wait_for("a publish with two of three", SOON, async || {
        let sent = client
            .publish("notes", "two".into())
            .await
            .map_err(|error| error.to_string())?;
        sent.await.map(drop).map_err(|error| error.to_string())
    })
    .await
    .unwrap();

    servers[2].restart().await.unwrap();
    wait_for("the third's health", SOON, async || {
        servers[2].healthy("/healthz").await
    })
    .await
    .unwrap();
    let after = context(&servers[2]).await;
    assert!(stored(&after).await >= 2);
}
