//! Principals known by the names in their client certificates, and the tools that people use.

use std::path::Path;

use bytes::Bytes;
use pass_proto::access::{SCOPES, Scope, required_scopes};
use pass_proto::status::Reason;
use service_kit::config::Duration as Span;
use service_kit::tls::{ClientAuth, TlsClient, TlsClientConfig, TlsServerConfig};
use test_kit::pki::{TestCa, replace};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::requests::requests;
use super::{Who, World, call, principal, together};
use crate::harness::*;

/// Makes the files of a TLS server that asks for certificates without insisting.
fn server_tls(ca: &TestCa, dir: &Path) -> TlsServerConfig {
    let (cert_file, key_file) = ca
        .issue(&["127.0.0.1"])
        .unwrap()
        .write(dir, "server")
        .unwrap();
    let ca_file = dir.join("ca.crt");
    replace(&ca_file, &ca.pem()).unwrap();
    TlsServerConfig {
        cert_file,
        key_file,
        client_ca_file: Some(ca_file),
        client_auth: ClientAuth::Optional,
        handshake_timeout: Span::from_secs(5),
    }
}

/// A channel that shows a certificate for these names, or none.
fn channel(ca: &TestCa, dir: &Path, addr: std::net::SocketAddr, names: &[&str]) -> Channel {
    let mut config = TlsClientConfig {
        ca_file: Some(dir.join("ca.crt")),
        ..TlsClientConfig::default()
    };
    if !names.is_empty() {
        let (cert, key) = ca.issue(names).unwrap().write(dir, "client").unwrap();
        (config.cert_file, config.key_file) = (Some(cert), Some(key));
    }
    let client = TlsClient::load("tls", &config).unwrap();
    let connector = client.connector("127.0.0.1").unwrap();
    Endpoint::from_shared(format!("https://{addr}"))
        .unwrap()
        .connect_with_connector_lazy(connector)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_method_does_anything_for_a_certificate_of_another_name() {
    let dir = tempfile::tempdir().unwrap();
    let ca = TestCa::new("clients").unwrap();
    let all_seeing = Who::all("all-seeing");
    let names = "client_names = [\"reader.test\", \"spiffe://test/reader\"]";
    let reader = Who {
        token: String::new(),
        text: principal("reader", names, &[Scope::Read], &["*"], &[]),
    };
    let other = Who {
        token: String::new(),
        text: principal(
            "other",
            "client_names = [\"other.test\"]",
            &SCOPES,
            &["*"],
            &[],
        ),
    };
    // Filled in plaintext, then served by TLS from the same database.
    let world = World::start(&[&all_seeing, &reader, &other]).await;
    let events = world.events.clone();
    let (principals, before) = (world.principals.clone(), world.state(&all_seeing).await);
    let database = world.server.stop().await;
    let server = Server::over(None, database, |config| {
        config.auth.principals_file = Some(principals);
        config.grpc.tls = Some(server_tls(&ca, dir.path()));
        config.grpc.limits.streams_max = 4_096;
        config.grpc.limits.concurrency_max = 4_096;
    })
    .await;
    let addr = server.addr;
    let open = |names: &[&str]| channel(&ca, dir.path(), addr, names);
    let info = "/passline.v1.PassService/GetLogInfo";
    let ask = || vec![Bytes::new()];

    for names in [
        &["reader.test"][..],
        &["spiffe://test/reader"],
        &["READER.test", "x.test"],
    ] {
        let answer = call(&open(names), info, "", ask()).await;
        assert_eq!(answer.status.code(), Code::Ok, "{names:?}");
    }
    let readers = open(&["reader.test"]);
    let subscribe = "/passline.v1.SubscriptionService/Subscribe";
    let answer = call(&readers, subscribe, "", ask()).await;
    assert_eq!(reason(&answer.status), Reason::PermissionDenied);
    let answer = call(&readers, info, "Bearer plt_wrong", ask()).await;
    assert_eq!(
        reason(&answer.status),
        Reason::Unauthenticated,
        "what is presented decides"
    );
    let answer = call(&open(&[]), info, &all_seeing.bearer(), ask()).await;
    assert_eq!(
        answer.status.code(),
        Code::Ok,
        "a token needs no certificate"
    );

    let world = World {
        server,
        principals: world.principals,
        _dir: world._dir,
        events,
    };
    let wrong = [
        &[][..],
        &["stranger.test"],
        &["sub.reader.test"],
        &["reader.test.example"],
        &["spiffe://test/reader/x"],
        &["reader.test", "other.test"],
    ];
    let mut calls = Vec::new();
    for names in wrong {
        let channel = open(names);
        for path in required_scopes(pass_proto::DESCRIPTORS)
            .unwrap()
            .into_keys()
        {
            let first = requests(&world, &path).unwrap().swap_remove(0);
            let channel = channel.clone();
            calls.push(async move { call(&channel, &path, "", first.messages).await });
        }
    }
    for answer in together(calls).await {
        assert_eq!(answer.messages.len(), 0);
        assert_eq!(reason(&answer.status), Reason::Unauthenticated);
    }
    let seen = open(&[]);
    let mut after = Vec::new();
    for (path, request) in [
        (info, Bytes::new()),
        ("/passline.v1.DeliveryService/ListDeliveries", Bytes::new()),
    ] {
        after.push(call(&seen, path, &all_seeing.bearer(), vec![request]).await);
    }
    assert_eq!(after, before);
    world
        .server
        .shutdown
        .advance(service_kit::shutdown::Phase::Stopping);
    soon("the end", world.server.ended()).await.unwrap();
}

#[tokio::test]
async fn a_bare_grpcurl_gets_in_with_a_token_and_nowhere_without() {
    let reader = Who::new("reader", &[Scope::Read], &[], &["north"]);
    let world = World::start(&[&reader]).await;
    let addr = world.server.addr.to_string();
    let header = format!("authorization: {}", reader.bearer());
    let run = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(test_kit::tool("PASSLINE_GRPCURL").unwrap());
        command.arg("-plaintext").args(arguments).kill_on_drop(true);
        let output = soon("grpcurl", command.output()).await.unwrap();
        let both = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(both).unwrap())
    };
    let call = "passline.v1.PassService/ListPasses";
    let data = "{\"parent\": \"sources/-\"}";
    let (ok, told) = run(&["-H", &header, "-d", data, &addr, call]).await;
    assert!(
        ok && told.contains("pass-north-1") && !told.contains("south"),
        "{told}"
    );
    for arguments in [
        &["-d", data, addr.as_str(), call][..],
        &[
            "-H",
            "authorization: Bearer plt_wrong",
            "-d",
            data,
            &addr,
            call,
        ],
        &[&addr, "list"],
    ] {
        let (ok, told) = run(arguments).await;
        assert!(
            !ok && told.contains("valid credential is required"),
            "{told}"
        );
        assert!(!told.contains("north"), "{told}");
    }
    let subscribe = "passline.v1.SubscriptionService/Subscribe";
    let (ok, told) = run(&[
        "-H",
        &header,
        "-d",
        "{\"from_end\": true}",
        &addr,
        subscribe,
    ])
    .await;
    assert!(!ok && told.contains("consume"), "{told}");
    let (ok, told) = run(&["-H", &header, &addr, "list"]).await;
    assert!(ok && told.contains("passline.v1.PassService"), "{told}");
    world.stop().await;
}
