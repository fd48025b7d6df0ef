use super::*;
use crate::{TestPostgres, wait_for};

const SOON: Duration = Duration::from_secs(20);
/// Long enough for bytes to arrive that should not; no test waits this long for something that happens.
const QUIET: Duration = Duration::from_millis(100);

/// A proxy before a listener.
async fn stand() -> (ChaosProxy, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let proxy = ChaosProxy::start(listener.local_addr().unwrap())
        .await
        .unwrap();
    (proxy, listener)
}

/// Both ends of a connection through the proxy.
async fn connect(proxy: &ChaosProxy, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let client = TcpStream::connect(proxy.address()).await.unwrap();
    let (server, _) = soon(listener.accept()).await.unwrap();
    (client, server)
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .expect("nothing happened")
}

async fn expect_bytes(stream: &mut TcpStream, bytes: &[u8]) {
    let mut read = vec![0; bytes.len()];
    soon(stream.read_exact(&mut read)).await.unwrap();
    assert_eq!(read, bytes);
}

async fn expect_reset(stream: &mut TcpStream) {
    let error = soon(stream.read(&mut [0; 64])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

async fn expect_quiet(stream: &mut TcpStream) {
    let read = tokio::time::timeout(QUIET, stream.read(&mut [0; 64])).await;
    assert!(read.is_err(), "{read:?}");
}

#[tokio::test]
async fn bytes_pass_both_ways_and_a_half_close_leaves_the_other_half() {
    let (proxy, listener) = stand().await;
    let (mut client, mut server) = connect(&proxy, &listener).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut asked = Vec::new();
    soon(server.read_to_end(&mut asked)).await.unwrap();
    assert_eq!(asked, b"question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    soon(client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer, b"answer");
    wait_for("the end of the connection", SOON, async || {
        match proxy.connections() {
            0 => Ok(()),
            other => Err(other),
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_cut_resets_both_sides_of_every_connection_but_later_ones() {
    let (proxy, listener) = stand().await;
    let mut pairs = [
        connect(&proxy, &listener).await,
        connect(&proxy, &listener).await,
    ];
    assert_eq!(proxy.connections(), 2);
    soon(proxy.cut_all()).await;
    assert_eq!(proxy.connections(), 0);
    for (client, server) in &mut pairs {
        expect_reset(client).await;
        expect_reset(server).await;
    }
    let (mut client, mut server) = connect(&proxy, &listener).await;
    client.write_all(b"again").await.unwrap();
    expect_bytes(&mut server, b"again").await;
}

#[tokio::test]
async fn a_refusing_proxy_resets_new_connections_and_keeps_old_ones() {
    let (proxy, listener) = stand().await;
    let (mut client, mut server) = connect(&proxy, &listener).await;
    proxy.refuse(true);
    let mut refused = TcpStream::connect(proxy.address()).await.unwrap();
    expect_reset(&mut refused).await;
    client.write_all(b"still here").await.unwrap();
    expect_bytes(&mut server, b"still here").await;
    proxy.refuse(false);
    connect(&proxy, &listener).await;
}

#[tokio::test]
async fn a_pause_holds_bytes_back_and_loses_none() {
    let (proxy, listener) = stand().await;
    let (mut client, mut server) = connect(&proxy, &listener).await;
    proxy.pause(true);
    client.write_all(b"up").await.unwrap();
    server.write_all(b"down").await.unwrap();
    expect_quiet(&mut server).await;
    expect_quiet(&mut client).await;
    proxy.pause(false);
    expect_bytes(&mut server, b"up").await;
    expect_bytes(&mut client, b"down").await;
}

#[tokio::test]
async fn a_paused_connection_can_be_cut() {
    let (proxy, listener) = stand().await;
    let (mut client, mut server) = connect(&proxy, &listener).await;
    proxy.pause(true);
    client.write_all(b"lost").await.unwrap();
    soon(proxy.cut_all()).await;
    expect_reset(&mut server).await;
    expect_reset(&mut client).await;
}

#[tokio::test]
async fn new_connections_go_to_a_new_upstream() {
    let (proxy, old) = stand().await;
    let (mut client, mut server) = connect(&proxy, &old).await;
    let new = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    proxy.set_upstream(new.local_addr().unwrap());
    let (mut moved, mut at_new) = connect(&proxy, &new).await;
    moved.write_all(b"new").await.unwrap();
    expect_bytes(&mut at_new, b"new").await;
    client.write_all(b"old").await.unwrap();
    expect_bytes(&mut server, b"old").await;
}

#[tokio::test]
async fn a_client_without_a_server_is_reset() {
    let (proxy, listener) = stand().await;
    drop(listener);
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    expect_reset(&mut client).await;
}

#[tokio::test]
async fn a_needle_in_pieces_is_found_as_often_as_asked() {
    let (proxy, listener) = stand().await;
    proxy.cut_when_client_sends(b"COMMIT", 1, Cut::BeforeSending);
    for round in 0..2 {
        let (mut client, mut server) = connect(&proxy, &listener).await;
        client.write_all(b"COMMCOM").await.unwrap();
        expect_bytes(&mut server, b"COMMCOM").await;
        client.write_all(b"MIT").await.unwrap();
        if round == 0 {
            expect_reset(&mut server).await;
            expect_reset(&mut client).await;
        } else {
            expect_bytes(&mut server, b"MIT").await;
        }
        assert_eq!(proxy.cuts(), 1);
    }
}

#[tokio::test]
async fn a_swallowed_answer_reaches_nobody_and_what_was_said_before_it_does() {
    let (proxy, listener) = stand().await;
    proxy.cut_when_client_sends(b"COMMIT", 1, Cut::SwallowAnswer);
    let (mut client, mut server) = connect(&proxy, &listener).await;
    server.write_all(b"hello").await.unwrap();
    expect_bytes(&mut client, b"hello").await;
    client.write_all(b"COMMIT").await.unwrap();
    expect_bytes(&mut server, b"COMMIT").await;
    expect_quiet(&mut client).await;
    assert_eq!(proxy.cuts(), 0);
    server.write_all(b"done").await.unwrap();
    expect_reset(&mut client).await;
    expect_reset(&mut server).await;
    assert_eq!(proxy.cuts(), 1);
}

/// What a transaction through the proxy leaves, and whether its client was told that it failed.
async fn transaction(cut: Cut) -> (String, bool) {
    let server = TestPostgres::start().await.unwrap();
    let url = server.database().await.unwrap();
    server
        .sql(&url, "CREATE TABLE notes (id bigint)")
        .await
        .unwrap();
    let proxy = ChaosProxy::start(server.address()).await.unwrap();
    proxy.cut_when_client_sends(b"COMMIT", 1, cut);
    let through = url.replace(&server.address().to_string(), &proxy.address().to_string());
    let outcome = server
        .sql(&through, "BEGIN; INSERT INTO notes VALUES (1); COMMIT;")
        .await;
    assert_eq!(proxy.cuts(), 1, "{outcome:?}");
    (
        server
            .sql(&url, "SELECT count(*) FROM notes")
            .await
            .unwrap(),
        outcome.is_err(),
    )
}

#[tokio::test]
async fn a_commit_whose_answer_is_swallowed_is_made_though_the_client_sees_an_error() {
    assert_eq!(
        transaction(Cut::SwallowAnswer).await,
        ("1".to_owned(), true)
    );
}

#[tokio::test]
async fn a_commit_that_is_cut_before_it_is_sent_is_not_made() {
    assert_eq!(
        transaction(Cut::BeforeSending).await,
        ("0".to_owned(), true)
    );
}

#[tokio::test]
async fn a_commit_that_is_cut_once_it_is_sent_is_an_error_for_the_client() {
    let (rows, failed) = transaction(Cut::AfterSending).await;
    assert!(
        failed && (rows == "0" || rows == "1"),
        "{rows} rows, failed: {failed}"
    );
}
