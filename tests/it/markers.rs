//! No secret and nothing personal in logs, metrics, traces and errors: every such value is a marker, both services run at
//! their most verbose, callers do everything right and everything wrong, and then all that was shown is searched.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use pass_domain::Timestamp;
use pass_proto::v1;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::{
    delivery_service_client::DeliveryServiceClient, pass_service_client::PassServiceClient,
    subscription_service_client::SubscriptionServiceClient,
};
use serde_json::{Value, json};
use service_kit::clock::{Clock as _, SystemClock};
use system_tests::client::{Caller, Receipt};
use system_tests::collector::Collector;
use system_tests::markers::{Marker, Shown};
use system_tests::sources::{
    ENVELOPE_SECRET, HOOKS_SECRET, PASSKIT_KEY, PASSKIT_SECRET, PASSWORKS_KEY, STANDARD_KEY,
    key_header, source_config,
};
use system_tests::stand::{Options, Stand};
use test_kit::pki::replace;
use test_kit::wait_for;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::programs;

/// Far above what any step takes.
const LIMIT: Duration = Duration::from_secs(40);
/// Every line that our own code can write.
const LOG_EVERYTHING: &str = "info,webhook_gateway=trace,pass_state=trace,pass_store=trace,pass_spool=trace,pass_sources=trace,\
     pass_proto=trace,pass_domain=trace,service_kit=trace,gateway_under_test=trace,pass_state_under_test=trace";

const URL_SECRET: &str = "url-secret-4b1d97c2e85f0a36";
const OTLP_SECRET: &str = "otlp-header-secret-90e1b7";
/// What stands inline in configurations with faults.
const INLINE_SECRET: &str = "inline-secret-27d0c4a9be";

const WRONG_KEY: &str = "wrong-api-key-51fe08a2";
const WRONG_SIGNATURE: &str = "wrong-signature-6ac1d4b7";
const WRONG_IN_URL: &str = "wrong-secret-in-url-e2f87d";
const WRONG_TOKEN: &str = "plt_wrong-grpc-token-0d93c1b75e";

const NAME: &str = "Quintessa Markerbeck";
const EMAIL: &str = "quintessa.markerbeck@personal.example";
const IP: &str = "198.51.100.213";
const USER_AGENT_HEADER: &str = "PersonalHeaderAgent/7.31";
const USER_AGENT_FIELD: &str = "PersonalFieldAgent/8.42";
const CITY: &str = "Markerville-upon-Test";
const LATITUDE: &str = "38.7223417";
const FREE: &str = "free-personal-value-5d1c";
const SCANNER: &str = "scanner-of-anna-2b77";
const RAW_BODY: &str = "raw-body-value-9e4a";
/// These are kept nowhere.
const CLIENT_IP: &str = "203.0.113.177";
const QUERY: &str = "personal-query-value-61d0";
const COOKIE: &str = "personal-cookie-value-c8a3";
const UNTAKEN_BODY: &str = "untaken-body-value-77f0";

/// What callers name in requests of their own. They may be told it back; nobody else may see it.
const OWN_INPUT: &str = "own-input-of-a-caller-3f6e";

/// A token and the hash that stands for it in the principals file.
struct Token {
    token: String,
    hash: String,
}

impl Token {
    /// By the command that operators use.
    async fn new() -> Self {
        let mut command = tokio::process::Command::new(programs().state);
        let output = command.arg("token").output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (token, line) = text.trim_end().split_once('\n').unwrap();
        let hash = line.strip_prefix("token_sha256 = ").unwrap();
        Self {
            token: token.to_owned(),
            hash: hash.trim_matches(['[', ']', '"']).to_owned(),
        }
    }
}

struct Tokens {
    gateway: Token,
    /// May do everything, but see nothing personal.
    plain: Token,
    /// May see it.
    personal: Token,
}

impl Tokens {
    fn principals(&self) -> String {
        let principal = |name: &str, token: &Token, scopes: &str| {
            format!(
                "[[principals]]\nname = {name:?}\ntoken_sha256 = [{:?}]\nscopes = [{scopes}]\nsources = [\"*\"]\n\
                 organizations = []\n\n",
                token.hash
            )
        };
        principal("gateway", &self.gateway, r#""ingest""#)
            + &principal("plain", &self.plain, r#""read", "consume", "admin""#)
            + &principal(
                "personal",
                &self.personal,
                r#""read", "read:personal", "consume""#,
            )
    }
}

fn credentials(tokens: &Tokens) -> Vec<Marker> {
    [
        ("the API key of passworks", PASSWORKS_KEY),
        ("the API key of passkit", PASSKIT_KEY),
        ("the API key of standard", STANDARD_KEY),
        ("the HMAC secret", PASSKIT_SECRET),
        ("the HMAC key", "marker-secret-passkit-0123456789abcdef"),
        ("the envelope secret", ENVELOPE_SECRET),
        ("the hooks secret", HOOKS_SECRET),
        ("the hooks key", "marker-secret-hooks-0123456789"),
        ("the URL secret", URL_SECRET),
        ("the OTLP header", OTLP_SECRET),
        ("an inline secret", INLINE_SECRET),
        ("the gateway's token", &tokens.gateway.token),
        ("the plain reader's token", &tokens.plain.token),
        ("the personal reader's token", &tokens.personal.token),
        ("a wrong API key", WRONG_KEY),
        ("a wrong signature", WRONG_SIGNATURE),
        ("a wrong secret in a URL", WRONG_IN_URL),
        ("a wrong token", WRONG_TOKEN),
    ]
    .map(|(what, text)| Marker::new(what, text))
    .to_vec()
}

/// What the reader of personal data is told.
fn personal_kept() -> Vec<Marker> {
    [
        ("a name", NAME),
        ("an e-mail address", EMAIL),
        ("an IP address", IP),
        ("the header user-agent", USER_AGENT_HEADER),
        ("a user agent in a body", USER_AGENT_FIELD),
        ("a city", CITY),
        ("a position", LATITUDE),
        ("a free attribute", FREE),
        ("a scanner", SCANNER),
        ("a raw body", RAW_BODY),
    ]
    .map(|(what, text)| Marker::new(what, text))
    .to_vec()
}

fn personal_dropped() -> Vec<Marker> {
    [
        ("a client's IP address", CLIENT_IP),
        ("a query", QUERY),
        ("a cookie", COOKIE),
        ("the body of a refused request", UNTAKEN_BODY),
    ]
    .map(|(what, text)| Marker::new(what, text))
    .to_vec()
}

fn passworks() -> Value {
    json!({
        "event": "installed", "context": "pass", "pass_id": "pw-1", "voided": false, "serial_number": "s-1",
        "redeemed_count": 0, "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "event_at": "2026-01-01T00:00:00Z", "metadata": { "holder": NAME, "free": FREE },
        "event_extra": {
            "pass_id": "pw-1", "registration_id": "reg-1", "device_os": "ios", "device_app_vendor": "passbook",
            "wallet_type": "apple_wallet", "ip": IP, "user_agent": USER_AGENT_FIELD, "email": EMAIL, "name": NAME,
            "latitude": LATITUDE, "city": CITY,
        },
        "never_heard_of": RAW_BODY,
    })
}

fn passkit() -> Value {
    json!({
        "event": "PASS_EVENT_RECORD_CREATED",
        "pass": {
            "id": "pk1", "classId": "c1", "protocol": 100,
            "personDetails": { "displayName": NAME, "emailAddress": EMAIL },
            "metadata": {
                "utm": { "source": FREE }, "issueIpAddress": IP, "installIpAddress": IP,
                "installUserAgent": USER_AGENT_FIELD, "renderLocation": { "city": CITY, "lat": LATITUDE },
                "issueAt": { "seconds": 1_767_225_600, "nanos": 0 },
            },
            "recordData": {
                "members.member.points": "1", "person.displayName": NAME, "person.emailAddress": EMAIL,
                "person.mobileNumber": FREE,
            },
            "neverHeardOf": RAW_BODY,
        },
    })
}

fn envelope() -> Value {
    json!({
        "details": {
            "messageType": "event.pass.installed.v1", "passId": "env-1", "installationId": "inst-1",
            "holder": NAME, "email": EMAIL, "ip": IP, "agent": USER_AGENT_FIELD, "city": CITY, "free": FREE,
        },
        "messageId": "9b72ff0b-bfd4-4be1-8e22-d21731af064e", "timestamp": "2026-02-12T10:59:00.272Z",
        "user": { "id": RAW_BODY },
    })
}

fn standard(pass: &str) -> Value {
    json!({
        "kind": "REDEEMED", "pass": pass, "occur_time": "2026-03-01T12:30:05Z",
        "redemption": { "count": 1, "time": "2026-03-01T12:30:05Z", "scanner": SCANNER },
        "personal": {
            "display_name": NAME, "email_address": EMAIL, "city": CITY, "latitude": LATITUDE, "ip": IP,
            "agent": USER_AGENT_FIELD, "free": FREE,
        },
        "never_heard_of": RAW_BODY,
    })
}

/// A sender of callbacks; what it is answered is shown.
struct Sender {
    caller: Caller,
    receipts: Vec<Receipt>,
}

impl Sender {
    /// Sends and expects a status.
    async fn send(
        &mut self,
        shown: &mut Shown,
        expected: u16,
        path: &str,
        headers: &[(String, String)],
        body: impl Into<Bytes>,
    ) {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("content-type", "application/json")
            .header("user-agent", USER_AGENT_HEADER)
            .header("x-forwarded-for", CLIENT_IP)
            .header("cookie", COOKIE)
            .header("referer", format!("https://example.org/{COOKIE}"));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = self.caller.send(request, body.into()).await.unwrap();
        let text = String::from_utf8_lossy(&answer.body);
        shown.add(
            format!("the answer to {path}"),
            format!("{:?} {text}", answer.headers),
        );
        assert_eq!(answer.status.as_u16(), expected, "{path}: {text}");
        if expected == 200 {
            self.receipts
                .push(serde_json::from_slice(&answer.body).unwrap());
        }
    }

    /// Sends to a source, signed as its vendor does at some time.
    async fn signed(
        &mut self,
        shown: &mut Shown,
        expected: u16,
        source: &str,
        body: &[u8],
        time: Timestamp,
    ) {
        let secret = match source {
            "passworks" => PASSWORKS_KEY,
            "passkit" => PASSKIT_KEY,
            "standard" => STANDARD_KEY,
            "passkit-signed" => PASSKIT_SECRET,
            "envelope" => ENVELOPE_SECRET,
            _ => HOOKS_SECRET,
        };
        let config = source_config(source).unwrap();
        let id = format!("msg-{}", self.receipts.len());
        let signed = pass_sources::sign(&config, secret.as_bytes(), body, &id, time).unwrap();
        let path = format!("/webhooks/{source}?holder={QUERY}");
        self.send(shown, expected, &path, &signed.headers, signed.body)
            .await;
    }
}

/// Everything that is right.
async fn send_good(sender: &mut Sender, shown: &mut Shown) {
    let now = SystemClock.now();
    for (source, body) in [
        ("passworks", passworks()),
        ("passkit", passkit()),
        ("passkit-signed", passkit()),
        ("envelope", envelope()),
        ("standard", standard("st-1")),
        ("hooks", standard("hk-1")),
    ] {
        let body = body.to_string();
        // The second one is a duplicate.
        for _ in 0..2 {
            sender
                .signed(shown, 200, source, body.as_bytes(), now)
                .await;
        }
    }
    let path = format!("/webhooks/url/{URL_SECRET}?holder={QUERY}");
    let body = standard("url-1").to_string();
    sender.send(shown, 200, &path, &[], body).await;
}

/// What is authentic and can't be understood.
async fn send_undecodable(sender: &mut Sender, shown: &mut Shown) {
    let now = SystemClock.now();
    let mut deep = "[".repeat(300);
    deep.push_str(RAW_BODY);
    for body in [
        format!("not json: {NAME} {EMAIL} {RAW_BODY}"),
        format!("\"{EMAIL}\""),
        format!("{{\"kind\": \"{EMAIL}\", \"pass\": \"st-1\"}}"),
        format!("{{\"kind\": \"CREATED\", \"pass\": \"{NAME}\"}}"),
        format!("{{\"kind\": \"CREATED\", \"pass\": \"st-1\", \"occur_time\": \"{EMAIL}\"}}"),
        format!("{{\"kind\": \"CREATED\", \"pass\": \"st-1\", \"redemption\": \"{SCANNER}\"}}"),
        format!("{{\"kind\": \"CREATED\", \"kind\": \"{EMAIL}\", \"pass\": \"st-1\"}}"),
        format!(
            "{{\"kind\": \"CREATED\", \"pass\": \"st-1\", \"personal\": {{\"{EMAIL}\": 1, \"{EMAIL}\": 2}}}}"
        ),
        deep,
    ] {
        sender
            .signed(shown, 200, "standard", body.as_bytes(), now)
            .await;
    }
    let mut bodies = vec![
        (
            "passworks",
            json!({ "event": "installed", "pass_id": NAME }),
        ),
        (
            "passkit",
            json!({ "event": EMAIL, "pass": { "personDetails": EMAIL } }),
        ),
        (
            "passkit-signed",
            json!({ "pass": { "personDetails": { "emailAddress": EMAIL } } }),
        ),
        (
            "envelope",
            json!({ "details": { "messageType": EMAIL, "passId": NAME } }),
        ),
        ("hooks", json!({ "kind": "CREATED", "pass": [EMAIL] })),
    ];
    let mut odd = passworks();
    odd["event_at"] = EMAIL.into();
    odd["event_extra"]["registration_id"] = NAME.into();
    bodies.push(("passworks", odd));
    for (source, body) in bodies {
        let body = body.to_string();
        sender
            .signed(shown, 200, source, body.as_bytes(), now)
            .await;
    }
}

/// What is refused.
async fn send_bad(sender: &mut Sender, shown: &mut Shown) {
    let header = |name: &str, value: &str| [(name.to_owned(), value.to_owned())];
    let body = standard(UNTAKEN_BODY).to_string();
    for (path, headers) in [
        ("/webhooks/passworks", header("authorization", WRONG_KEY)),
        ("/webhooks/passkit", header("x-api-key", WRONG_KEY)),
        (
            "/webhooks/standard",
            header("authorization", &format!("Bearer {WRONG_KEY}")),
        ),
        (
            "/webhooks/passkit-signed",
            header("x-passkit-signature", WRONG_SIGNATURE),
        ),
        (
            "/webhooks/url/wrong-secret-in-url-e2f87d",
            header("x-none", ""),
        ),
        (
            "/webhooks/hooks",
            header("webhook-signature", WRONG_SIGNATURE),
        ),
    ] {
        sender.send(shown, 401, path, &headers, body.clone()).await;
    }
    let forged = json!({ "signedContent": UNTAKEN_BODY, "signature": WRONG_SIGNATURE, "payload": UNTAKEN_BODY });
    sender
        .send(shown, 401, "/webhooks/envelope", &[], forged.to_string())
        .await;
    let stale = Timestamp::from_second(1_767_225_600).unwrap();
    sender
        .signed(shown, 401, "hooks", body.as_bytes(), stale)
        .await;
    let key = [key_header("standard")];
    for path in [
        format!("/webhooks/{OWN_INPUT}"),
        format!("/webhooks/standard/{WRONG_IN_URL}/{OWN_INPUT}?{QUERY}"),
        format!("/{OWN_INPUT}?{QUERY}"),
    ] {
        sender.send(shown, 404, &path, &key, body.clone()).await;
    }
}

/// Sends what no client library sends: what is no HTTP, and the beginning of a body that is too large.
async fn send_broken(address: SocketAddr, shown: &mut Shown) {
    let too_large = format!(
        "POST /webhooks/standard HTTP/1.1\r\nhost: a\r\nauthorization: {STANDARD_KEY}\r\n\
         content-type: application/json\r\ncontent-length: 70000\r\n\r\n{{\"personal\": \"{UNTAKEN_BODY}\"",
    );
    let no_header = format!(
        "POST /webhooks/standard HTTP/1.1\r\nhost: a\r\nauthorization {STANDARD_KEY}\r\n\r\n"
    );
    let no_head = format!("{UNTAKEN_BODY} /{UNTAKEN_BODY}\r\n\r\n");
    let no_length = format!(
        "POST /webhooks/url/{URL_SECRET} HTTP/1.1\r\nhost: a\r\ncontent-length: {UNTAKEN_BODY}\r\n\r\n"
    );
    for (status, sent) in [
        (" 413 ", too_large),
        (" 400 ", no_header),
        (" 400 ", no_head),
        (" 400 ", no_length),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(sent.as_bytes()).await.unwrap();
        let mut answer = vec![0; 16 << 10];
        let read = tokio::time::timeout(LIMIT, socket.read(&mut answer)).await;
        let read = read.expect("an answer").unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.contains(status), "{answer}");
        shown.add("an answer to no HTTP", answer);
    }
}

/// A caller of pass-state; what it is answered is shown.
struct Grpc<'a> {
    channel: Channel,
    credential: Option<&'a str>,
    shown: &'a mut Shown,
}

impl Grpc<'_> {
    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(credential) = self.credential {
            metadata.insert("authorization", credential.parse().unwrap());
        }
        metadata.insert("x-of-the-caller", OWN_INPUT.parse().unwrap());
        request
    }

    /// Shows an answer in every form a client may see it in.
    fn show<T: Debug + prost::Message>(&mut self, call: &str, answer: Result<Response<T>, Status>) {
        let text = match answer {
            Ok(answer) => {
                let bytes = answer.get_ref().encode_to_vec();
                format!("{answer:?} {}", String::from_utf8_lossy(&bytes))
            }
            Err(status) => {
                let details = String::from_utf8_lossy(status.details()).into_owned();
                format!("{status:?} {details}")
            }
        };
        self.shown.add(format!("{call}'s answer"), text);
    }

    async fn subscribe(&mut self, start: Start, filter: &str) {
        let request = self.request(v1::SubscribeRequest {
            start: Some(start),
            filter: filter.to_owned(),
            stop_at_head: true,
            ..v1::SubscribeRequest::default()
        });
        let mut client = SubscriptionServiceClient::new(self.channel.clone());
        match client.subscribe(request).await {
            Ok(answer) => {
                let mut frames = answer.into_inner();
                loop {
                    match frames.message().await {
                        Ok(Some(frame)) => self.show("Subscribe", Ok(Response::new(frame))),
                        Ok(None) => break,
                        Err(status) => {
                            self.show::<v1::SubscribeResponse>("Subscribe", Err(status));
                            break;
                        }
                    }
                }
            }
            Err(status) => self.show::<v1::SubscribeResponse>("Subscribe", Err(status)),
        }
    }

    /// Reads everything in every way.
    async fn read(&mut self, receipts: &[Receipt]) {
        let mut passes = PassServiceClient::new(self.channel.clone());
        let mut deliveries = DeliveryServiceClient::new(self.channel.clone());
        let answer = passes
            .get_log_info(self.request(v1::GetLogInfoRequest {}))
            .await;
        self.show("GetLogInfo", answer);
        let request = self.request(v1::ListPassesRequest {
            parent: "sources/-".to_owned(),
            ..Default::default()
        });
        let answer = passes.list_passes(request).await;
        let names: Vec<String> = match &answer {
            Ok(answer) => (answer.get_ref().passes.iter().map(|pass| pass.name.clone())).collect(),
            Err(_) => vec!["sources/standard/passes/st-1".to_owned()],
        };
        self.show("ListPasses", answer);
        for name in &names {
            let request = self.request(v1::GetPassRequest {
                name: name.clone(),
                ..Default::default()
            });
            let answer = passes.get_pass(request).await;
            self.show("GetPass", answer);
        }
        let request = self.request(v1::BatchGetPassesRequest {
            names,
            ..Default::default()
        });
        let answer = passes.batch_get_passes(request).await;
        self.show("BatchGetPasses", answer);
        let request = self.request(v1::LookupPassesRequest {
            parent: "sources/-".to_owned(),
            key: Some(v1::lookup_passes_request::Key::SerialNumber(
                "s-1".to_owned(),
            )),
            ..Default::default()
        });
        let answer = passes.lookup_passes(request).await;
        self.show("LookupPasses", answer);
        let request = self.request(v1::ListEventsRequest {
            parent: "sources/-/passes/-".to_owned(),
            ..Default::default()
        });
        let answer = passes.list_events(request).await;
        let names: Vec<String> = match &answer {
            Ok(answer) => (answer
                .get_ref()
                .events
                .iter()
                .map(|event| event.name.clone()))
            .collect(),
            Err(_) => Vec::new(),
        };
        self.show("ListEvents", answer);
        for name in names {
            let request = self.request(v1::GetEventRequest {
                name,
                ..Default::default()
            });
            let answer = passes.get_event(request).await;
            self.show("GetEvent", answer);
        }
        let request = self.request(v1::ListDeliveriesRequest::default());
        let answer = deliveries.list_deliveries(request).await;
        self.show("ListDeliveries", answer);
        for receipt in receipts {
            let request = self.request(v1::GetDeliveryRequest {
                name: format!("deliveries/{}", receipt.delivery),
                view: v1::DeliveryView::Full.into(),
                read_mask: None,
            });
            let answer = deliveries.get_delivery(request).await;
            self.show("GetDelivery", answer);
        }
        self.subscribe(Start::FromBeginning(true), "").await;
    }

    /// Asks for what there is not, in words of its own.
    async fn ask_badly(&mut self) {
        let mut passes = PassServiceClient::new(self.channel.clone());
        let mut deliveries = DeliveryServiceClient::new(self.channel.clone());
        for (parent, filter, page_token, order_by, min_cursor) in [
            (OWN_INPUT, "", "", "", ""),
            ("sources/-", OWN_INPUT, "", "", ""),
            (
                "sources/-",
                "serial_number = \"own-input-of-a-caller-3f6e\"",
                "",
                "",
                "",
            ),
            ("sources/-", "", OWN_INPUT, "", ""),
            ("sources/-", "", "", OWN_INPUT, ""),
            ("sources/-", "", "", "", OWN_INPUT),
        ] {
            let request = self.request(v1::ListPassesRequest {
                parent: parent.to_owned(),
                filter: filter.to_owned(),
                page_token: page_token.to_owned(),
                order_by: order_by.to_owned(),
                min_cursor: min_cursor.to_owned(),
                ..Default::default()
            });
            let answer = passes.list_passes(request).await;
            self.show("ListPasses", answer);
        }
        for name in [
            OWN_INPUT.to_owned(),
            format!("sources/standard/passes/{OWN_INPUT}"),
            format!("sources/standard/passes/st-1/events/{OWN_INPUT}"),
        ] {
            let request = self.request(v1::GetPassRequest {
                name: name.clone(),
                ..Default::default()
            });
            let answer = passes.get_pass(request).await;
            self.show("GetPass", answer);
            let request = self.request(v1::GetEventRequest {
                name,
                ..Default::default()
            });
            let answer = passes.get_event(request).await;
            self.show("GetEvent", answer);
        }
        let name = format!("deliveries/{OWN_INPUT}");
        let request = self.request(v1::GetDeliveryRequest {
            name: name.clone(),
            read_mask: Some(prost_types::FieldMask {
                paths: vec![OWN_INPUT.to_owned()],
            }),
            ..Default::default()
        });
        let answer = deliveries.get_delivery(request).await;
        self.show("GetDelivery", answer);
        let request = self.request(v1::DiscardDeliveryRequest {
            name,
            reason: OWN_INPUT.to_owned(),
            request_id: OWN_INPUT.to_owned(),
        });
        let answer = deliveries.discard_delivery(request).await;
        self.show("DiscardDelivery", answer);
        let cursor = Start::AfterCursor(OWN_INPUT.to_owned());
        self.subscribe(cursor, "").await;
        self.subscribe(Start::FromBeginning(true), OWN_INPUT).await;
    }

    /// Replays one delivery in quarantine and discards another.
    async fn judge(&mut self, receipts: &[Receipt]) {
        let mut quarantined = receipts
            .iter()
            .filter(|receipt| receipt.status == "quarantined")
            .map(|receipt| format!("deliveries/{}", receipt.delivery));
        let mut deliveries = DeliveryServiceClient::new(self.channel.clone());
        let request = self.request(v1::ReplayDeliveryRequest {
            name: quarantined.next().unwrap(),
            request_id: String::new(),
        });
        let answer = deliveries.replay_delivery(request).await;
        self.show("ReplayDelivery", answer);
        let request = self.request(v1::DiscardDeliveryRequest {
            name: quarantined.next().unwrap(),
            reason: OWN_INPUT.to_owned(),
            request_id: String::new(),
        });
        let answer = deliveries.discard_delivery(request).await;
        assert!(answer.is_ok(), "{answer:?}");
        self.show("DiscardDelivery", answer);
    }
}

/// Shows what the admin listeners tell.
async fn ask_admins(stand: &Stand, shown: &mut Shown) {
    for member in [&stand.gateways[0], &stand.states[0]] {
        for path in [
            "/livez",
            "/readyz",
            "/status",
            "/metrics",
            "/version",
            "/own-input-of-a-caller-3f6e",
        ] {
            let (status, text) = member.service().admin(path).await.unwrap();
            if path == "/metrics" {
                assert!(status == 200 && text.contains("passline_"), "{text}");
            }
            shown.add(format!("{path} of {}", member.name()), text);
        }
        let request = Request::builder().method(Method::PUT).uri("/log-filter");
        let filter = Bytes::from(format!("{OWN_INPUT}=[[nonsense"));
        let admin = member.backend().admin;
        // The caller of this one may be told its own words.
        let answer = Caller::new(admin).send(request, filter).await.unwrap();
        assert!(answer.status.is_client_error(), "{}", answer.status);
    }
}

/// Has both services look at changes that they can't take, and waits for the words of each.
async fn reload_broken(stand: &Stand, principals: &Path, tokens: &Tokens) {
    let errors = || stand.logs().unwrap().matches("ERROR").count();
    let refused = async |before: usize| {
        wait_for("the change to be refused", LIMIT, async || {
            if errors() > before {
                Ok(())
            } else {
                Err(errors())
            }
        })
        .await
        .unwrap();
    };
    let before = errors();
    let good = tokens.principals();
    let inline = good.replace(&tokens.plain.hash, &tokens.plain.token);
    replace(principals, &inline).unwrap();
    stand.state().hang_up().unwrap();
    refused(before).await;
    replace(principals, &good).unwrap();
    let before = errors();
    let (good, broken) = (
        format!("[{{ id = \"a\", value = {STANDARD_KEY:?} }}]"),
        format!("[{STANDARD_KEY:?}]"),
    );
    stand.edit_gateway_config(&good, &broken).unwrap();
    stand.gateway().hang_up().unwrap();
    refused(before).await;
}

/// Shows what both programs say of files with faults that stand near secrets.
async fn check_broken_files(dir: &Path, token: &str, shown: &mut Shown) {
    let source =
        |auth: &str| format!("[[sources]]\nname = \"a\"\nvendor = \"standard\"\nauth = {auth}\n");
    let s = INLINE_SECRET;
    let gateway = [
        source(&format!("{s:?}")),
        source(&format!(
            "{{ scheme = {s:?}, secrets = [{{ value = {s:?} }}] }}"
        )),
        source(&format!("{{ scheme = \"api_key\", secrets = {s:?} }}")),
        source(&format!("{{ scheme = \"api_key\", secrets = [{s:?}] }}")),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s:?}, valve = {s:?} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s:?}, env = {s:?} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s:?} ] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = {s} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"api_key\", secrets = [{{ value = \"{s} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"hmac\", encoding = {s:?}, secrets = [{{ value = {s:?} }}] }}"
        )),
        source(&format!(
            "{{ scheme = \"standard_webhooks\", secrets = [{{ value = {s:?} }}] }}"
        )),
        format!("[pass_state]\ntoken = {s:?}\n"),
        format!("[pass_state]\ntoken = {{ value = {s:?} }}\n"),
        format!("[pass_state]\nendpoint = \"http://user:{s}@127.0.0.1:1/{s}\"\n"),
        format!("[telemetry]\notlp_endpoint = \"ftp://user:{s}@127.0.0.1:1\"\n"),
        format!(
            "[spool]\nbackend = \"jetstream\"\n[spool.jetstream]\nservers = [\"nats://user:{s}@127.0.0.1:4222\"]\n\
             password = {s:?}\n"
        ),
        format!(
            "[spool]\nbackend = \"jetstream\"\n[spool.jetstream]\ntoken = {{ value = {s:?}, env = 1 }}\n"
        ),
    ];
    let token_of = |text: &str| {
        format!(
            "[[principals]]\nname = \"a\"\n{text}\nscopes = [\"read\"]\nsources = [\"*\"]\norganizations = []\n"
        )
    };
    let principals = [
        token_of(&format!("token_sha256 = [{token:?}]")),
        token_of(&format!("token_sha256 = {token:?}")),
        token_of(&format!("token_sha256 = [{token}]")),
        token_of(&format!("token = {token:?}")),
        token_of(&format!(
            "client_names = [{token:?}]\ntoken_sha256 = [{token:?}]"
        )),
        token_of(&format!("token_sha256 = [\"{token}]")),
    ];
    let state = [
        format!("[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {s:?}\n"),
        format!(
            "[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {{ value = \"nonsense://a:{s}@b/c\" }}\n"
        ),
        format!(
            "[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {{ value = {s:?}, env = \"A\" }}\n"
        ),
        format!("[store]\nbackend = \"postgres\"\n[store.postgres]\nurl = {{ value = \"{s} }}\n"),
    ];
    let mut files: Vec<(_, String)> = gateway.map(|text| (programs().gateway, text)).to_vec();
    files.extend(state.map(|text| (programs().state, text)));
    for (index, text) in principals.iter().enumerate() {
        let file = dir.join(format!("principals-{index}.toml"));
        std::fs::write(&file, text).unwrap();
        files.push((
            programs().state,
            format!("[auth]\nprincipals_file = {file:?}\n"),
        ));
    }
    for (index, (program, text)) in files.iter().enumerate() {
        let file = dir.join(format!("broken-{index}.toml"));
        std::fs::write(&file, text).unwrap();
        for command in ["check-config", "serve"] {
            let mut process = tokio::process::Command::new(program);
            process
                .arg(command)
                .arg("--config")
                .arg(&file)
                .arg("--data-dir")
                .arg(dir.join("none"))
                .kill_on_drop(true);
            // Principals are read by serve only.
            let serves = command == "serve";
            if serves && index < files.len() - principals.len() {
                continue;
            }
            let output = tokio::time::timeout(LIMIT, process.output()).await;
            let output = output
                .expect("a file with faults ends the program")
                .unwrap();
            assert!(!serves || !output.status.success(), "{text}");
            for bytes in [&output.stdout, &output.stderr] {
                shown.add(
                    format!("{command} of broken-{index}.toml"),
                    String::from_utf8_lossy(bytes),
                );
            }
        }
    }
}

fn telemetry(collector: &Collector) -> String {
    format!(
        "[telemetry]\nlog_filter = \"{LOG_EVERYTHING}\"\notlp_endpoint = \"{}\"\nsample_ratio = 1.0\n\
         metrics_interval = \"1s\"\n",
        collector.endpoint()
    )
}

/// Waits until a collector has what it is to be searched for.
async fn exported(collector: &Collector) {
    wait_for("spans and metrics of both services", LIMIT, async || {
        let (spans, metrics) = (collector.spans(), collector.metrics());
        let both = ["webhook-gateway", "pass-state"]
            .into_iter()
            .all(|service| {
                spans.iter().any(|span| span.service == service)
                    && metrics.iter().any(|(of, _)| of == service)
            });
        if both {
            Ok(())
        } else {
            Err(format!("{spans:?} {metrics:?}"))
        }
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_and_nothing_personal_is_in_logs_metrics_traces_or_errors() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens {
        gateway: Token::new().await,
        plain: Token::new().await,
        personal: Token::new().await,
    };
    let (principals, token_file) = (dir.path().join("principals.toml"), dir.path().join("token"));
    replace(&principals, &tokens.principals()).unwrap();
    replace(&token_file, &tokens.gateway.token).unwrap();
    let collector = Collector::start().await.unwrap();
    let options = Options {
        channel_keys: format!("token = {{ file = {token_file:?} }}\n"),
        gateway_tables: format!(
            "{}\n[[sources]]\nname = \"url\"\nvendor = \"standard\"\n\
             auth = {{ scheme = \"url_secret\", secrets = [{{ id = \"a\", value = {URL_SECRET:?} }}] }}\n",
            telemetry(&collector)
        ),
        state_tables: format!(
            "{}service_name = \"pass-state\"\n[auth]\nprincipals_file = {principals:?}\n",
            telemetry(&collector)
        ),
        ..Options::default()
    };
    let mut stand = Stand::new(&programs(), &options).unwrap();
    let body_limit = "body_bytes_max = \"64KiB\"";
    let proxies = format!("{body_limit}\ntrusted_proxies = [\"127.0.0.0/8\"]");
    stand.edit_gateway_config(body_limit, &proxies).unwrap();
    let headers = format!("authorization=Bearer%20{OTLP_SECRET}");
    stand.gateways[0].set_environment("OTEL_EXPORTER_OTLP_HEADERS", &headers);
    stand.states[0].set_environment("OTEL_EXPORTER_OTLP_HEADERS", &headers);
    stand.start_state().await.unwrap();
    stand.start_gateway().await.unwrap();

    // What anybody may see, and what callers are told that may not see personal data.
    let (mut watched, mut told) = (Shown::default(), Shown::default());
    let mut sender = Sender {
        caller: Caller::new(stand.http()),
        receipts: Vec::new(),
    };
    send_good(&mut sender, &mut told).await;
    send_undecodable(&mut sender, &mut told).await;
    send_bad(&mut sender, &mut told).await;
    send_broken(stand.http(), &mut told).await;
    let receipts = sender.receipts;
    let quarantined = |receipt: &&Receipt| receipt.status == "quarantined";
    assert!(
        receipts.iter().filter(quarantined).count() >= 12,
        "{receipts:?}"
    );

    let channel = Endpoint::from_shared(format!("http://{}", stand.grpc()))
        .unwrap()
        .connect_lazy();
    let bearer = |token: &str| format!("Bearer {token}");
    let plain = bearer(&tokens.plain.token);
    wait_for("all deliveries to be recorded", LIMIT, async || {
        let mut shown = Shown::default();
        let grpc = Grpc {
            channel: channel.clone(),
            credential: Some(&plain),
            shown: &mut shown,
        };
        let request = grpc.request(v1::GetLogInfoRequest {});
        let mut passes = PassServiceClient::new(channel.clone());
        let answer = passes.get_log_info(request).await;
        let recorded = answer.unwrap().into_inner().books.unwrap().deliveries;
        if usize::try_from(recorded).unwrap() >= receipts.len() {
            Ok(())
        } else {
            Err(recorded)
        }
    })
    .await
    .unwrap();
    let mut personal_told = Shown::default();
    Grpc {
        channel: channel.clone(),
        credential: Some(&bearer(&tokens.personal.token)),
        shown: &mut personal_told,
    }
    .read(&receipts)
    .await;
    for credential in [
        Some(plain.clone()),
        Some(bearer(&tokens.gateway.token)),
        Some(bearer(WRONG_TOKEN)),
        Some(format!("Basic {WRONG_TOKEN}")),
        Some(WRONG_TOKEN.to_owned()),
        None,
    ] {
        let mut grpc = Grpc {
            channel: channel.clone(),
            credential: credential.as_deref(),
            shown: &mut told,
        };
        if credential.as_ref() == Some(&plain) {
            grpc.read(&receipts).await;
            grpc.ask_badly().await;
            grpc.judge(&receipts).await;
        } else {
            // All are refused alike, and slowed down for it.
            grpc.read(&receipts[..1]).await;
        }
    }
    ask_admins(&stand, &mut watched).await;
    reload_broken(&stand, &principals, &tokens).await;
    exported(&collector).await;

    let mut kept = Shown::default();
    let data = [&stand.gateways[0], &stand.states[0]].map(|member| member.data_dir().to_owned());
    for dir in &data {
        kept.add_files(dir).unwrap();
    }
    stand.take_gateway().end().await.unwrap();
    stand.take_state().end().await.unwrap();
    for dir in &data {
        kept.add_files(dir).unwrap();
    }
    check_broken_files(dir.path(), &tokens.plain.token, &mut told).await;
    watched.add("the logs", stand.logs().unwrap());
    watched.add("what the collector got", collector.text());

    // That there was something to be found.
    let (credentials, personal) = (credentials(&tokens), personal_kept());
    for marker in &personal {
        assert!(
            personal_told.has(marker),
            "nobody is told {}",
            marker.what()
        );
        assert!(kept.has(marker), "{} is not kept", marker.what());
    }
    let header = ("authorization".to_owned(), format!("Bearer {OTLP_SECRET}"));
    assert!(collector.headers().contains(&header));
    let lines = stand.logs().unwrap().lines().count();
    assert!(lines > 30, "{lines} lines are too few to prove anything");
    assert!(told.len() > 10_000, "{} bytes are too few", told.len());

    let mut findings = personal_told.findings(&credentials);
    findings.extend(kept.findings(&credentials));
    let mut markers = [credentials, personal, personal_dropped()].concat();
    findings.extend(told.findings(&markers));
    markers.push(Marker::new("a caller's own input", OWN_INPUT));
    findings.extend(watched.findings(&markers));
    findings.extend(kept.findings(&personal_dropped()));
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
