//! Access control: a world of two organizations, principals of every kind, and calls of any method by its bytes.
//!
//! `matrix` is generated from the descriptor: each method, called with each set of scopes that lacks the one it
//! requires and with each credential that is none; `organizations` compares what a limited principal gets with
//! what an all-seeing one does; `streams` is about what stays open; `certificates` about names instead of tokens.

mod certificates;
mod matrix;
mod organizations;
mod requests;
mod streams;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes};
use pass_domain::delivery::{Decoded, Delivery};
use pass_domain::fact::Redemption;
use pass_domain::kind::Kind;
use pass_proto::access::{SCOPES, Scope, scope_name};
use pass_proto::v1;
use pass_state::{AuthFailures, Config, new_token};
use prost::Message as _;
use service_kit::config::Duration as Span;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::harness::*;
use crate::make::*;

/// What stands for personal data, in every place that may hold some.
const PERSONAL: [&str; 10] = [
    "personal-name",
    "personal-mail",
    "personal-ip",
    "personal-agent",
    "personal-position",
    "personal-attribute",
    "personal-body",
    "personal-header",
    "personal-query",
    "personal-scanner",
];

/// The two organizations: name, source, and the first number of its deliveries.
const NORTH: (&str, &str, u64) = ("north", "acme", 100);
const SOUTH: (&str, &str, u64) = ("south", "zeta", 200);

/// A principal as a test writes it.
#[derive(Clone)]
struct Who {
    token: String,
    text: String,
}

impl Who {
    fn new(name: &str, scopes: &[Scope], sources: &[&str], organizations: &[&str]) -> Self {
        let (token, hash) = new_token().unwrap();
        let credentials = format!("token_sha256 = [\"{hash}\"]");
        let text = principal(name, &credentials, scopes, sources, organizations);
        Self { token, text }
    }

    /// May do and see everything.
    fn all(name: &str) -> Self {
        Self::new(name, &SCOPES, &["*"], &[])
    }

    fn bearer(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

fn principal(
    name: &str,
    credentials: &str,
    scopes: &[Scope],
    sources: &[&str],
    organizations: &[&str],
) -> String {
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope_name(*scope)).collect();
    format!(
        "[[principals]]\nname = \"{name}\"\n{credentials}\nscopes = {scopes:?}\n\
         sources = {sources:?}\norganizations = {organizations:?}\n"
    )
}

fn write(file: &Path, principals: &[&Who]) {
    let mut text = String::new();
    for who in principals {
        let _ = writeln!(text, "{}", who.text);
    }
    test_kit::pki::replace(file, &text).unwrap();
}

/// A service that asks who calls, with what both organizations told.
struct World {
    server: Server,
    principals: PathBuf,
    _dir: tempfile::TempDir,
    /// Names of the recorded events, by the pass's name.
    events: BTreeMap<String, String>,
}

impl World {
    async fn start(principals: &[&Who]) -> Self {
        Self::with(principals, |_| {}).await
    }

    async fn with(principals: &[&Who], change: impl FnOnce(&mut Config)) -> Self {
        let writer = Who::all("the-writer");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("principals.toml");
        let all: Vec<&Who> = principals.iter().copied().chain([&writer]).collect();
        write(&file, &all);
        let server = Server::with(|config| {
            config.auth.principals_file = Some(file.clone());
            config.reload.interval = Span::from_secs(1);
            config.grpc.limits.streams_max = 4_096;
            config.grpc.limits.concurrency_max = 4_096;
            // Hundreds of calls on one connection are refused before their messages come.
            config.grpc.limits.error_resets_max = 4_096;
            change(config);
        })
        .await;
        let mut gateway = Gateway::by(&server.channel, &writer.bearer(), hello(1)).await;
        for of in [NORTH, SOUTH] {
            gateway.deliver(deliveries(of)).await;
        }
        drop(gateway);
        let listed = v1::ListEventsRequest {
            parent: "sources/-/passes/-".into(),
            ..v1::ListEventsRequest::default()
        };
        let path = "/passline.v1.PassService/ListEvents";
        let answer = call(
            &server.channel,
            path,
            &writer.bearer(),
            vec![message(&listed)],
        )
        .await;
        let listed = v1::ListEventsResponse::decode(answer.messages[0].clone()).unwrap();
        let events = (listed.events.into_iter())
            .map(|event| (event.pass, event.name))
            .collect();
        Self {
            server,
            principals: file,
            _dir: dir,
            events,
        }
    }

    async fn call(&self, path: &str, credential: &str, messages: Vec<Bytes>) -> Answer {
        call(&self.server.channel, path, credential, messages).await
    }

    /// Everything that a call might have changed, as an all-seeing principal sees it.
    async fn state(&self, all_seeing: &Who) -> Vec<Answer> {
        let mut state = Vec::new();
        for (path, request) in [
            ("PassService/GetLogInfo", Bytes::new()),
            (
                "DeliveryService/ListDeliveries",
                message(&v1::ListDeliveriesRequest::default()),
            ),
        ] {
            let path = format!("/passline.v1.{path}");
            state.push(self.call(&path, &all_seeing.bearer(), vec![request]).await);
        }
        state
    }

    fn failures(&self) -> Arc<AuthFailures> {
        Arc::clone(&self.server.failures)
    }

    async fn stop(self) {
        self.server.stop().await;
    }
}

/// A state without the spools, which remember that a gateway said hello.
fn without_spools(state: &[Answer]) -> Vec<String> {
    let log = v1::GetLogInfoResponse::decode(state[0].messages[0].clone()).unwrap();
    let log = v1::GetLogInfoResponse {
        spools: Vec::new(),
        ..log
    };
    vec![format!("{log:?}"), format!("{:?}", state[1].messages)]
}

/// An installed pass, a redeemed one and two deliveries in quarantine, with something personal wherever it can be.
fn deliveries((organization, source, first): (&str, &str, u64)) -> Vec<Delivery> {
    let pass = |number: u64| format!("pass-{organization}-{number}");
    let mut made = vec![
        of_source(source, first, &pass(1), Kind::Installed, 1),
        of_source(source, first + 1, &pass(2), Kind::Redeemed, 2),
        undecodable(first + 2),
        undecodable(first + 3),
    ];
    for delivery in &mut made {
        delivery.source = pass_domain::ids::SourceUid::new(source).unwrap();
        delivery.organization = organization.to_owned();
        delivery.path = format!("/webhooks/{source}?q=personal-query");
        delivery
            .headers
            .push(("user-agent".into(), "personal-header".into()));
        delivery.body = format!("{organization} personal-body").into_bytes();
        let Decoded::Facts(facts) = &mut delivery.decoded else {
            continue;
        };
        let one = |value: &str| BTreeMap::from([("key".to_owned(), value.to_owned())]);
        facts.personal.display_name = "personal-name".into();
        facts.personal.email_address = "personal-mail".into();
        facts.personal.ip_addresses = one("personal-ip");
        facts.personal.user_agents = one("personal-agent");
        facts.personal.position = one("personal-position");
        facts.personal.attributes = one("personal-attribute");
        let fact = &mut facts.facts[0];
        fact.refs.external_id = "shared".into();
        fact.attributes = BTreeMap::from([("tier".to_owned(), format!("tier-{organization}"))]);
        if fact.kind == Kind::Redeemed {
            fact.redemption = Some(Redemption {
                count: Some(1),
                time: None,
                scanner: "personal-scanner".into(),
            });
        }
    }
    made
}

fn message(request: &impl prost::Message) -> Bytes {
    request.encode_to_vec().into()
}

/// Messages as their bytes.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

/// What came of a call: the messages as bytes, and the status that ended it (OK, too).
#[derive(Clone, Debug)]
struct Answer {
    messages: Vec<Bytes>,
    status: Status,
}

impl Answer {
    /// Everything that was told, for looking for what should not be.
    fn told(&self) -> String {
        let mut bytes: Vec<u8> = self.messages.concat();
        bytes.extend_from_slice(self.status.message().as_bytes());
        bytes.extend_from_slice(self.status.details());
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The status without its transport: code, text and details.
    fn ended(&self) -> (tonic::Code, String, String) {
        let details = String::from_utf8_lossy(self.status.details()).into_owned();
        (
            self.status.code(),
            self.status.message().to_owned(),
            details,
        )
    }
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        self.messages == other.messages && self.ended() == other.ended()
    }
}

/// Calls any method, whatever it streams, with an `authorization` header unless it is empty.
async fn call(channel: &Channel, path: &str, credential: &str, messages: Vec<Bytes>) -> Answer {
    let mut client = tonic::client::Grpc::new(channel.clone());
    let mut request = Request::new(tokio_stream::iter(messages));
    if !credential.is_empty() {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", credential.parse().unwrap());
    }
    let mut answer = Answer {
        messages: Vec::new(),
        status: Status::ok(""),
    };
    soon(path, client.ready()).await.unwrap();
    let calling = client.streaming(request, path.parse().unwrap(), Raw);
    let mut stream = match soon(path, calling).await {
        Ok(response) => response.into_inner(),
        Err(status) => {
            answer.status = status;
            return answer;
        }
    };
    loop {
        match soon(path, stream.message()).await {
            Ok(Some(message)) => answer.messages.push(message),
            Ok(None) => return answer,
            Err(status) => {
                answer.status = status;
                return answer;
            }
        }
    }
}

/// Runs calls side by side; their answers in order.
async fn together<T: Send + 'static>(
    calls: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let tasks: Vec<_> = calls.into_iter().map(tokio::spawn).collect();
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}
