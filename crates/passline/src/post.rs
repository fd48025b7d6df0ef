//! One HTTP request to the gateway, as a vendor would send it.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use service_kit::tls::{TlsClient, TlsClientConfig};

use crate::Failure;

/// Time for a whole exchange: longer than the gateway waits for pass-state.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Sends to one gateway.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    base: String,
    transport: Transport,
}

#[derive(Clone, Debug)]
enum Transport {
    /// Kept-alive connections.
    Plain(Box<Client<HttpConnector, Full<Bytes>>>),
    /// A connection for each request.
    Tls {
        tls: TlsClient,
        host: String,
        port: u16,
    },
}

/// What the gateway answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: StatusCode,
    /// The answer's JSON, or its text where it is none.
    pub(crate) body: Value,
}

impl Answer {
    /// Says whether the delivery was accepted: vendors look for exactly this.
    pub(crate) fn is_accepted(&self) -> bool {
        self.status == StatusCode::OK
    }

    /// A text member of the answer, or the empty text.
    pub(crate) fn text(&self, member: &str) -> &str {
        self.body
            .get(member)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }
}

impl Sender {
    /// Takes the gateway's address as `http://host:port` or `https://host:port`; for the latter the
    /// authorities of `ca_file` count, or the system's.
    pub(crate) fn new(base: &str, ca_file: Option<&Path>) -> Result<Self, Failure> {
        let no_gateway = || {
            Failure::Usage(format!(
                "`{base}` is no gateway; write http://host:port or https://host:port"
            ))
        };
        let uri: Uri = base.parse().map_err(|_| no_gateway())?;
        let host = uri.host().filter(|host| !host.is_empty());
        let transport = match (uri.scheme_str(), host) {
            (Some("http"), Some(_)) if ca_file.is_some() => {
                return Err(Failure::Usage(format!(
                    "`{base}` is reached without TLS, but a CA was given; write https://, or leave --url-ca-file out"
                )));
            }
            (Some("http"), Some(_)) => {
                Transport::Plain(Box::new(Client::builder(TokioExecutor::new()).build_http()))
            }
            (Some("https"), Some(host)) => {
                let config = TlsClientConfig {
                    ca_file: ca_file.map(Path::to_owned),
                    ..TlsClientConfig::default()
                };
                let tls = TlsClient::load("url", &config)
                    .map_err(|faults| Failure::Usage(faults.to_string()))?;
                Transport::Tls {
                    tls,
                    host: host.to_owned(),
                    port: uri.port_u16().unwrap_or(443),
                }
            }
            _ => return Err(no_gateway()),
        };
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            transport,
        })
    }

    /// Sends a callback to the source called `source`.
    pub(crate) async fn send(
        &self,
        source: &str,
        method: Method,
        signed: &pass_sources::Signed,
    ) -> Result<Answer, Failure> {
        let mut uri = format!("{}/webhooks/{source}", self.base);
        if let Some(secret) = &signed.url_secret {
            uri.push('/');
            uri.push_str(secret);
        }
        let mut request = Request::builder()
            .method(method)
            .uri(uri)
            .header(http::header::CONTENT_TYPE, "application/json")
            .header(
                http::header::USER_AGENT,
                concat!("passline/", env!("CARGO_PKG_VERSION")),
            );
        for (name, value) in &signed.headers {
            let unfit =
                |_| Failure::Usage(format!("the secret can't be sent in the header {name}"));
            let name = HeaderName::try_from(name).map_err(|error| unfit(error.to_string()))?;
            let mut value =
                HeaderValue::try_from(value).map_err(|error| unfit(error.to_string()))?;
            value.set_sensitive(true);
            request = request.header(name, value);
        }
        let request = request
            .body(Full::new(Bytes::from(signed.body.clone())))
            .map_err(|_| Failure::Usage(format!("`{source}` can't be part of a URL")))?;
        match tokio::time::timeout(EXCHANGE_TIMEOUT, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Failure::Failed(format!(
                "{} did not answer within 15 s",
                self.base
            ))),
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
        let response = match &self.transport {
            Transport::Plain(client) => client.request(request).await.map_err(|error| {
                if error.is_connect() {
                    let base = &self.base;
                    Failure::Failed(format!(
                        "nobody answers at {base}: start one with `passline up`, or name another with --url"
                    ))
                } else {
                    Failure::Failed(format!("{}: {error}", self.base))
                }
            })?,
            Transport::Tls { tls, host, port } => {
                let failed = |error: &dyn std::error::Error| {
                    Failure::Failed(format!("{}: {error}", self.base))
                };
                let stream = tls
                    .connect_http(host, *port)
                    .await
                    .map_err(|error| failed(&error))?;
                let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
                    .await
                    .map_err(|error| failed(&error))?;
                // Ends with the answer, or with the runtime.
                tokio::spawn(connection);
                sender
                    .send_request(with_host(request))
                    .await
                    .map_err(|error| failed(&error))?
            }
        };
        let status = response.status();
        let bytes = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| {
                Failure::Failed(format!("{}: the answer broke off: {error}", self.base))
            })?
            .to_bytes();
        let body = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        Ok(Answer { status, body })
    }
}

/// A request as it is written on a connection: the path alone, and the host as a header.
fn with_host(mut request: Request<Full<Bytes>>) -> Request<Full<Bytes>> {
    let uri = request.uri();
    let host = uri
        .authority()
        .and_then(|authority| HeaderValue::try_from(authority.as_str()).ok());
    let path = uri
        .path_and_query()
        .and_then(|path| Uri::try_from(path.as_str()).ok());
    if let (Some(host), Some(path)) = (host, path) {
        request.headers_mut().insert(http::header::HOST, host);
        *request.uri_mut() = path;
    }
    request
}
