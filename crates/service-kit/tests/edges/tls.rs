//! TLS on both edges: who gets in, what is refused, and what changes at a reload.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration as StdDuration, Instant};

use axum::Router;
use axum::extract::{Extension, Request};
use axum::routing::{get, post};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use service_kit::config::Duration;
use service_kit::grpc::{
    Channel, ChannelConfig, Credentials, GrpcLimits, GrpcListener, Peer, TokenSource, channel,
    server,
};
use service_kit::listener::{HttpLimits, HttpListener};
use service_kit::reload::Reload as _;
use service_kit::shutdown::Shutdown;
use service_kit::tls::{ClientAuth, Protocol, TlsClientConfig, TlsServer, TlsServerConfig};
use test_kit::pki::{TestCa, TestCertificate, replace};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::Routes;
use tonic::{Code, Status};

use super::soon;

/// An authority and a directory of files made by it.
struct Pki {
    dir: tempfile::TempDir,
    ca: TestCa,
    ca_file: PathBuf,
}

impl Pki {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = TestCa::new("first").unwrap();
        let ca_file = dir.path().join("ca.crt");
        replace(&ca_file, &ca.pem()).unwrap();
        Self { dir, ca, ca_file }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn server(&self) -> TlsServerConfig {
        let own = self.ca.issue(&["127.0.0.1", "server.test"]).unwrap();
        let (cert_file, key_file) = own.write(self.path(), "server").unwrap();
        TlsServerConfig {
            cert_file,
            key_file,
            client_ca_file: None,
            client_auth: ClientAuth::Required,
            handshake_timeout: Duration::from_secs(5),
        }
    }

    fn mutual(&self) -> TlsServerConfig {
        TlsServerConfig {
            client_ca_file: Some(self.ca_file.clone()),
            ..self.server()
        }
    }

    fn client(&self) -> TlsClientConfig {
        TlsClientConfig {
            ca_file: Some(self.ca_file.clone()),
            ..TlsClientConfig::default()
        }
    }

    fn client_with(&self, own: &TestCertificate) -> TlsClientConfig {
        let (cert, key) = own.write(self.path(), "client").unwrap();
        TlsClientConfig {
            cert_file: Some(cert),
            key_file: Some(key),
            ..self.client()
        }
    }
}

/// A gRPC server whose one call, `/kit/Who`, answers by a header who asks.
struct Edge {
    addr: SocketAddr,
    tls: TlsServer,
    /// The `authorization` headers that came.
    tokens: Arc<Mutex<Vec<String>>>,
}

async fn who(peer: Peer) -> axum::response::Response {
    let names = match peer.names.is_authenticated() {
        true => peer.names.iter().collect::<Vec<_>>().join(" "),
        false => "nobody".to_owned(),
    };
    let mut status = Status::already_exists(names).into_http::<axum::body::Body>();
    *status.status_mut() = axum::http::StatusCode::OK;
    status
}

async fn start(config: &TlsServerConfig) -> Edge {
    let tls = TlsServer::load("grpc.tls", config, Protocol::Grpc).unwrap();
    let limits = GrpcLimits::default();
    let listener = GrpcListener::bind(([127, 0, 0, 1], 0).into(), limits.clone())
        .await
        .unwrap()
        .with_tls(Some(tls.clone()));
    let addr = listener.local_addr();
    let tokens: Arc<Mutex<Vec<String>>> = Arc::default();
    let note = Arc::clone(&tokens);
    let asked = async move |Extension(peer): Extension<Peer>, request: Request| {
        let token = request.headers().get("authorization");
        let token = token.map_or("none", |token| token.to_str().unwrap());
        note.lock().unwrap().push(token.to_owned());
        who(peer).await
    };
    let routes = Routes::from(Router::new().route("/kit/Who", post(asked)));
    let router = server(&limits).add_routes(routes);
    tokio::spawn(async move { listener.serve(router, Shutdown::new()).await });
    Edge { addr, tls, tokens }
}

impl Edge {
    fn config(&self, tls: TlsClientConfig) -> ChannelConfig {
        ChannelConfig {
            endpoint: format!("https://{}", self.addr).into(),
            tls: Some(tls),
            ..ChannelConfig::default()
        }
    }

    fn channel(&self, tls: TlsClientConfig) -> Channel {
        let config = self.config(tls);
        let credentials = Credentials::load("pass_state", &config, &[]).unwrap();
        channel(&config, &credentials).unwrap()
    }
}

/// Who the server says that we are, or that it can't be reached.
async fn ask(channel: &Channel) -> Result<String, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let answer = soon(
        "answer",
        client.unary::<(), (), _>(
            tonic::Request::new(()),
            PathAndQuery::from_static("/kit/Who"),
            tonic_prost::ProstCodec::default(),
        ),
    )
    .await
    .unwrap_err();
    match answer.code() {
        Code::AlreadyExists => Ok(answer.message().to_owned()),
        _ => Err(answer),
    }
}

async fn refused(channel: &Channel) {
    let status = ask(channel).await.unwrap_err();
    // Only what came about on this side has a source. The code is UNAVAILABLE or, where
    // the server refuses a client that thinks it is through (TLS 1.3), UNKNOWN.
    assert!(std::error::Error::source(&status).is_some(), "{status:?}");
}

#[tokio::test]
async fn a_call_carries_the_names_of_the_clients_certificate() {
    let pki = Pki::new();
    let edge = start(&pki.mutual()).await;
    let own = pki
        .ca
        .issue(&["Gateway.test", "spiffe://test/gateway", "10.0.0.1"])
        .unwrap();
    let channel = edge.channel(pki.client_with(&own));
    assert_eq!(
        ask(&channel).await.unwrap(),
        "gateway.test spiffe://test/gateway"
    );
}

#[tokio::test]
async fn a_client_without_a_certificate_or_with_one_of_another_authority_is_refused() {
    let pki = Pki::new();
    let edge = start(&pki.mutual()).await;
    refused(&edge.channel(pki.client())).await;
    let stranger = TestCa::new("first").unwrap().issue(&["a.test"]).unwrap();
    refused(&edge.channel(pki.client_with(&stranger))).await;
    assert!(edge.tokens.lock().unwrap().is_empty(), "a call got through");
}

#[tokio::test]
async fn an_optional_certificate_may_be_missing_but_not_wrong() {
    let pki = Pki::new();
    let edge = start(&TlsServerConfig {
        client_auth: ClientAuth::Optional,
        ..pki.mutual()
    })
    .await;
    assert_eq!(ask(&edge.channel(pki.client())).await.unwrap(), "nobody");
    let stranger = TestCa::new("first").unwrap().issue(&["a.test"]).unwrap();
    refused(&edge.channel(pki.client_with(&stranger))).await;
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_refused() {
    let pki = Pki::new();
    let edge = start(&pki.server()).await;
    assert!(ask(&edge.channel(pki.client())).await.is_ok());
    let other = pki.path().join("other.crt");
    replace(&other, &TestCa::new("first").unwrap().pem()).unwrap();
    refused(&edge.channel(TlsClientConfig {
        ca_file: Some(other),
        ..pki.client()
    }))
    .await;
    for (name, good) in [("server.test", true), ("else.test", false)] {
        let channel = edge.channel(TlsClientConfig {
            server_name: Some(name.to_owned()),
            ..pki.client()
        });
        match good {
            true => assert!(ask(&channel).await.is_ok()),
            false => refused(&channel).await,
        }
    }
}

#[tokio::test]
async fn new_handshakes_use_new_certificates_and_standing_connections_go_on() {
    let pki = Pki::new();
    let mut edge = start(&pki.mutual()).await;
    let own = pki.ca.issue(&["old.test"]).unwrap();
    let standing = edge.channel(pki.client_with(&own));
    assert_eq!(ask(&standing).await.unwrap(), "old.test");

    // All at once: server certificate, client authority.
    let next = TestCa::new("second").unwrap();
    let renewed = next.issue(&["127.0.0.1"]).unwrap();
    renewed.write(pki.path(), "server").unwrap();
    replace(&pki.ca_file, &next.pem()).unwrap();
    edge.tls.try_apply().unwrap();

    assert_eq!(ask(&standing).await.unwrap(), "old.test");
    let before = edge.channel(pki.client_with(&own));
    refused(&before).await;
    let own = next.issue(&["new.test"]).unwrap();
    let after = edge.channel(pki.client_with(&own));
    assert_eq!(ask(&after).await.unwrap(), "new.test");
}

#[tokio::test]
async fn a_client_takes_its_new_certificate_and_authority_at_the_next_connection() {
    let pki = Pki::new();
    let edge = start(&pki.mutual()).await;
    let stranger = TestCa::new("second").unwrap();
    let config = edge.config(pki.client_with(&stranger.issue(&["a.test"]).unwrap()));
    let credentials = Credentials::load("pass_state", &config, &[]).unwrap();
    let channel = channel(&config, &credentials).unwrap();
    refused(&channel).await;
    pki.ca
        .issue(&["b.test"])
        .unwrap()
        .write(pki.path(), "client")
        .unwrap();
    refused(&channel).await;
    credentials.tls().unwrap().try_apply().unwrap();
    assert_eq!(ask(&channel).await.unwrap(), "b.test");
}

#[tokio::test]
async fn a_broken_certificate_is_refused_and_the_old_one_keeps_serving() {
    let pki = Pki::new();
    let mut edge = start(&pki.server()).await;
    let expires = edge.tls.expires();
    // A new certificate that is good, with the key of another one.
    let (cert, key) = (
        pki.ca.issue(&["127.0.0.1"]).unwrap(),
        pki.ca.issue(&["127.0.0.1"]).unwrap(),
    );
    let mixed = TestCertificate {
        cert: cert.cert,
        key: key.key,
    };
    mixed.write(pki.path(), "server").unwrap();
    let refusal = edge.tls.try_apply().unwrap_err().to_string();
    assert!(refusal.starts_with("grpc.tls.key_file"), "{refusal}");
    assert_eq!(edge.tls.expires(), expires);
    assert!(ask(&edge.channel(pki.client())).await.is_ok());
}

#[tokio::test]
async fn silent_handshakes_are_cut_and_hold_up_nobody() {
    let pki = Pki::new();
    let edge = start(&TlsServerConfig {
        handshake_timeout: Duration::from_secs(3),
        ..pki.server()
    })
    .await;
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(edge.addr).await.unwrap());
    }
    // Half a record of a handshake, and something that is none.
    silent[0].write_all(&[22, 3, 1, 2, 0, 1]).await.unwrap();
    let channel = edge.channel(pki.client());
    assert!(ask(&channel).await.is_ok());
    assert_eq!(
        edge.tls.handshakes_failed(),
        0,
        "an honest client waited for the silent ones"
    );
    for stream in &mut silent {
        let mut bytes = Vec::new();
        let _ = soon("close", stream.read_to_end(&mut bytes)).await;
    }
    assert!(
        begun.elapsed() >= StdDuration::from_millis(2_900),
        "not by time"
    );
    assert!(ask(&channel).await.is_ok());
    soon("count", async {
        while edge.tls.handshakes_failed() < 64 {
            tokio::time::sleep(StdDuration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(edge.tls.handshakes_failed(), 64);
}

#[tokio::test]
async fn every_call_carries_the_token_and_a_reload_changes_it() {
    let pki = Pki::new();
    let edge = start(&pki.server()).await;
    let file = pki.path().join("token");
    replace(&file, "plt_first\n").unwrap();
    let config = ChannelConfig {
        token: Some(TokenSource::File(file.clone())),
        ..edge.config(pki.client())
    };
    let credentials = Credentials::load("pass_state", &config, &[]).unwrap();
    let mut token = credentials.token().unwrap();
    assert!(!format!("{credentials:?}").contains("plt_"));
    assert_eq!(token.files(), std::slice::from_ref(&file));
    assert!(!credentials.tls().unwrap().files().contains(&file));
    let channel = channel(&config, &credentials).unwrap();
    ask(&channel).await.unwrap();
    for (text, good) in [("two words", false), ("", false), ("plt_second", true)] {
        replace(&file, text).unwrap();
        let applied = token.try_apply();
        assert_eq!(applied.is_ok(), good, "{text:?}");
        if let Err(refusal) = applied {
            let refusal = refusal.to_string();
            assert!(refusal.starts_with("pass_state.token "), "{refusal}");
            assert!(!refusal.contains("words"), "{refusal}");
        }
        ask(&channel).await.unwrap();
    }
    assert_eq!(
        *edge.tokens.lock().unwrap(),
        [
            "Bearer plt_first",
            "Bearer plt_first",
            "Bearer plt_first",
            "Bearer plt_second"
        ]
    );
}

#[tokio::test]
async fn a_token_may_come_from_the_environment() {
    let config = ChannelConfig {
        token: Some(TokenSource::Env("TOKEN".to_owned())),
        ..ChannelConfig::default()
    };
    let env = [("TOKEN".to_owned(), "plt_x".to_owned())];
    assert!(Credentials::load("pass_state", &config, &env).is_ok());
    let faults = Credentials::load("pass_state", &config, &[]).unwrap_err();
    assert!(faults.to_string().contains("TOKEN is not set"), "{faults}");
}

/// A client of exactly one version of TLS and these protocols.
fn raw(pki: &Pki, version: &'static SupportedProtocolVersion, alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&pki.ca_file).unwrap())
        .unwrap();
    let own = pki.ca.issue(&["raw.test"]).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(own.cert.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn get_hello(addr: SocketAddr, connector: &TlsConnector) -> io::Result<String> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TcpStream::connect(addr).await?;
    let mut stream = connector.connect(name, stream).await?;
    stream
        .write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn http_speaks_tls_1_2_and_1_3_and_only_http_1() {
    let pki = Pki::new();
    let tls = TlsServer::load("http.tls", &pki.mutual(), Protocol::Http).unwrap();
    let listener = HttpListener::bind(([127, 0, 0, 1], 0).into(), HttpLimits::default())
        .await
        .unwrap()
        .with_tls(Some(tls));
    let addr = listener.local_addr();
    let router = Router::new().route("/hello", get(async || "hello"));
    tokio::spawn(listener.serve(router, Shutdown::new()));
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for alpn in [&["http/1.1", "h2"][..], &[]] {
            let answer = get_hello(addr, &raw(&pki, version, alpn)).await.unwrap();
            assert!(answer.ends_with("hello"), "{answer}");
        }
        assert!(get_hello(addr, &raw(&pki, version, &["h2"])).await.is_err());
    }
    // Plaintext gets no answer.
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain
        .write_all(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    let mut bytes = Vec::new();
    let _ = soon("close", plain.read_to_end(&mut bytes)).await;
    assert!(!String::from_utf8_lossy(&bytes).contains("hello"));
}
