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
use crate::token::Token;

mod broken_files;
mod callbacks;
mod calls;
mod commands;
mod servers;

use broken_files::check_broken_files;
use callbacks::{Sender, send_bad, send_broken, send_good, send_undecodable};
use calls::Grpc;
use commands::run_commands;

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

/// The name of a source, which all that watches the services may show, and does: so it is sure to be searched.
const SEEN: &str = "passkit-signed";

/// What callers name in requests of their own. They may be told it back; nobody else may see it.
const OWN_INPUT: &str = "own-input-of-a-caller-3f6e";

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

/// Shows what the admin listeners tell.
async fn ask_admins(stand: &Stand, shown: &mut Shown) {
    for member in [&stand.gateways[0], &stand.states[0]] {
        for path in [
            "/livez",
            "/readyz",
            "/status",
            "/metrics",
            "/version",
            &format!("/{OWN_INPUT}"),
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
            "{}\n[auth]\nprincipals_file = {principals:?}\n",
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
    run_commands(
        &stand,
        dir.path(),
        &tokens,
        &receipts[0],
        &mut told,
        &mut personal_told,
    )
    .await;
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
    watched.add("the spans that the collector got", collector.spans_text());
    watched.add(
        "the metrics that the collector got",
        collector.metrics_text(),
    );

    // That there was something to be found.
    let (credentials, personal) = (credentials(&tokens), personal_kept());
    for marker in &personal {
        for (shown, doubt) in [
            (&personal_told, "is told to nobody"),
            (&kept, "is not kept"),
        ] {
            assert!(
                !shown.places(marker).is_empty(),
                "{} {doubt}",
                marker.what()
            );
        }
    }
    let seen = Marker::new("a source", SEEN);
    let places = watched.places(&seen);
    for place in [
        "/metrics of webhook-gateway-0",
        "the logs",
        "the spans that the collector got",
        "the metrics that the collector got",
    ] {
        assert!(
            places.contains(&place),
            "{place} is not searched: {places:?}"
        );
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
