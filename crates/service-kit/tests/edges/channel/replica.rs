//! A server that says who it is, and that can drain, die and return.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration as StdDuration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request as HttpRequest;
use axum::response::Response;
use axum::routing::post;
use bytes::Bytes;
use service_kit::grpc::{Channel, GrpcLimits, GrpcListener, server};
use service_kit::shutdown::{Phase, Shutdown};
use tokio::task::JoinHandle;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::service::Routes;
use tonic::{Code, Request, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

#[derive(Debug)]
pub(super) struct Replica {
    addr: SocketAddr,
    reporter: HealthReporter,
    shutdown: Shutdown,
    serving: Option<JoinHandle<()>>,
    /// Calls that it failed after it had their message.
    pub(super) failed: Arc<AtomicUsize>,
}

/// A stream that never sends anything.
pub(super) struct Stream {
    pub(super) from: String,
    /// What the request carried as its authority.
    pub(super) authority: String,
    messages: Streaming<()>,
}

impl Replica {
    pub(super) async fn start() -> Self {
        Self::run(([127, 0, 0, 1], 0).into(), true).await
    }

    pub(super) async fn start_without_health() -> Self {
        Self::run(([127, 0, 0, 1], 0).into(), false).await
    }

    async fn run(addr: SocketAddr, with_health: bool) -> Self {
        let limits = GrpcLimits::default();
        let listener = GrpcListener::bind(addr, limits.clone()).await.unwrap();
        let addr = listener.local_addr();
        let (reporter, health) = tonic_health::server::health_reporter();
        let failed = Arc::new(AtomicUsize::new(0));
        let fails = Arc::clone(&failed);
        let mut routes = Routes::from(
            Router::new()
                .route("/kit/Who", post(async move || who(addr)))
                .route(
                    "/kit/Fail",
                    post(async move |request| fail(&fails, request).await),
                )
                .route("/kit/Stay", post(async move |request| stay(addr, &request))),
        );
        if with_health {
            routes = routes.add_service(health);
        }
        let router = server(&limits).add_routes(routes);
        let shutdown = Shutdown::new();
        let serving = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { listener.serve(router, shutdown).await.unwrap() }
        });
        Self {
            addr,
            reporter,
            shutdown,
            serving: Some(serving),
            failed,
        }
    }

    /// The same server, for a list that is only read.
    pub(super) fn also(&self) -> Self {
        Self {
            addr: self.addr,
            reporter: self.reporter.clone(),
            shutdown: self.shutdown.clone(),
            serving: None,
            failed: Arc::clone(&self.failed),
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn name(&self) -> String {
        self.addr.to_string()
    }

    pub(super) fn uri(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(super) async fn serving(&self, serving: bool) {
        let status = match serving {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        self.reporter.set_service_status("", status).await;
    }

    /// Cuts every connection and frees the port.
    pub(super) async fn kill(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        let _ = serving.await;
    }

    /// Has it end in order.
    pub(super) async fn end(&mut self) {
        self.shutdown.advance(Phase::Stopping);
        self.serving.take().unwrap().await.unwrap();
    }

    /// Starts it anew at the same address.
    pub(super) async fn revive(&mut self) {
        *self = Self::run(self.addr, true).await;
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// An answer without a message needs no proto: the name is the error's text.
fn who(addr: SocketAddr) -> Response {
    Status::already_exists(addr.to_string()).into_http()
}

/// Takes the message and breaks the call off.
async fn fail(count: &AtomicUsize, request: HttpRequest) -> Response {
    axum::body::to_bytes(request.into_body(), 1024)
        .await
        .unwrap();
    count.fetch_add(1, Ordering::SeqCst);
    panic!("on purpose")
}

fn stay(addr: SocketAddr, request: &HttpRequest) -> Response {
    let silence = futures_util::stream::pending::<Result<Bytes, Infallible>>();
    Response::builder()
        .header("content-type", "application/grpc")
        .header("x-from", addr.to_string())
        .header("x-authority", request.uri().authority().unwrap().as_str())
        .body(Body::from_stream(silence))
        .unwrap()
}

/// Asks whoever takes the call for its name.
pub(super) async fn call(channel: &Channel) -> Result<String, Code> {
    unary(channel, "/kit/Who").await
}

/// Makes a call that breaks off after its message has arrived.
pub(super) async fn call_in_vain(channel: &Channel) -> Code {
    unary(channel, "/kit/Fail").await.unwrap_err()
}

async fn unary(channel: &Channel, path: &'static str) -> Result<String, Code> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let answer = client
        .unary::<(), (), _>(
            Request::new(()),
            PathAndQuery::from_static(path),
            tonic_prost::ProstCodec::default(),
        )
        .await;
    match answer {
        Ok(_) => panic!("the call has no message"),
        Err(status) if status.code() == Code::AlreadyExists => Ok(status.message().to_owned()),
        Err(status) => Err(status.code()),
    }
}

/// Opens a stream at whoever takes it.
pub(super) async fn open(channel: &Channel) -> Result<Stream, Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let answer = client
        .server_streaming::<(), (), _>(
            Request::new(()),
            PathAndQuery::from_static("/kit/Stay"),
            tonic_prost::ProstCodec::default(),
        )
        .await?;
    let text = |key| {
        answer
            .metadata()
            .get(key)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    Ok(Stream {
        from: text("x-from"),
        authority: text("x-authority"),
        messages: answer.into_inner(),
    })
}

impl Stream {
    pub(super) async fn ended(&mut self) -> Result<Option<()>, Status> {
        self.messages.message().await
    }

    /// Whether it goes on for a while yet.
    pub(super) async fn is_open(&mut self) -> bool {
        let wait = StdDuration::from_millis(50);
        tokio::time::timeout(wait, self.ended()).await.is_err()
    }
}
