//! One HTTP request to the gateway, as a vendor would send it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::Failure;

/// Time for a whole exchange: longer than the gateway waits for pass-state.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// Largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Sends to one gateway over kept-alive connections.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
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
    /// Takes the gateway's address as `http://host:port`.
    pub(crate) fn new(base: &str) -> Result<Self, Failure> {
        let uri: Option<Uri> = base.parse().ok();
        if uri.is_none_or(|uri| {
            uri.scheme_str() != Some("http") || uri.host().is_none_or(str::is_empty)
        }) {
            return Err(Failure::Usage(format!(
                "`{base}` is no gateway; write http://host:port"
            )));
        }
        Ok(Self {
            base: base.trim_end_matches('/').to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
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
        let response = self.client.request(request).await.map_err(|error| {
            if error.is_connect() {
                let base = &self.base;
                Failure::Failed(format!(
                    "nobody answers at {base}: start one with `passline up`, or name another with --url"
                ))
            } else {
                Failure::Failed(format!("{}: {error}", self.base))
            }
        })?;
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
