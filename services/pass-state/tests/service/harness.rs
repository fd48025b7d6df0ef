//! A running service, and clients that expect answers within a deadline.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pass_domain::delivery::Delivery;
use pass_proto::convert::delivery_to_wire;
use pass_proto::status::{Reason, reason_of};
use pass_proto::v1;
use pass_proto::v1::delivery_service_client::DeliveryServiceClient;
use pass_proto::v1::ingest_request::Message as ToStore;
use pass_proto::v1::ingest_response::Message as ToGateway;
use pass_proto::v1::ingest_service_client::IngestServiceClient;
use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use pass_state::{AuthFailures, Config, Dependencies, PassState, RunError};
use pass_store::PassStore;
use service_kit::clock::ManualClock;
use service_kit::config::Duration as Span;
use service_kit::shutdown::{Phase, Shutdown};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_types::StatusExt as _;

use crate::make::at;

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}"))
}

/// Lines of the log, as text.
#[derive(Clone, Default)]
pub(crate) struct Logged(Arc<Mutex<Vec<u8>>>);

impl Logged {
    /// Collects what this thread logs from now on. A test's runtime has one thread unless it says otherwise, so
    /// that is the whole service.
    pub(crate) fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let logged = Self::default();
        let to = logged.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || to.clone())
            .finish();
        (logged, tracing::subscriber::set_default(subscriber))
    }

    /// The lines that hold a text.
    pub(crate) fn with(&self, text: &str) -> Vec<String> {
        let bytes = self.0.lock().unwrap();
        let log = String::from_utf8_lossy(&bytes);
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }
}

impl std::io::Write for Logged {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Tries until the answer is yes.
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) health: Option<SocketAddr>,
    pub(crate) shutdown: Shutdown,
    pub(crate) clock: ManualClock,
    pub(crate) channel: Channel,
    pub(crate) failures: Arc<AuthFailures>,
    running: JoinHandle<Result<(), RunError>>,
    dir: tempfile::TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        Self::over(None, tempfile::tempdir().unwrap(), change).await
    }

    pub(crate) async fn over(
        store: Option<Arc<dyn PassStore>>,
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::default();
        config.grpc.listen = ([127, 0, 0, 1], 0).into();
        config.admin.listen = ([127, 0, 0, 1], 0).into();
        config.subscriptions.poll_interval = Span::from_millis(20);
        config.subscriptions.poll_interval_idle = Span::from_millis(50);
        change(&mut config);
        let clock = ManualClock::new(at(2_000));
        let dependencies = Dependencies {
            store,
            clock: Arc::new(clock.clone()),
            data_dir: dir.path().to_owned(),
        };
        let service = PassState::build(config, dependencies).await.unwrap();
        let (addr, admin) = (service.grpc_addr(), service.admin_addr());
        let health = service.health_addr();
        let failures = service.auth_failures();
        let shutdown = Shutdown::new();
        let running = tokio::spawn(service.run(shutdown.clone()));
        let channel = connect(addr).await;
        Self {
            addr,
            admin,
            health,
            shutdown,
            clock,
            channel,
            failures,
            running,
            dir,
        }
    }

    pub(crate) fn passes(&self) -> PassServiceClient<Channel> {
        PassServiceClient::new(self.channel.clone())
    }

    pub(crate) fn deliveries(&self) -> DeliveryServiceClient<Channel> {
        DeliveryServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn log(&self) -> v1::GetLogInfoResponse {
        let request = v1::GetLogInfoRequest {};
        let mut passes = self.passes();
        let asking = passes.get_log_info(request);
        soon("GetLogInfo", asking).await.unwrap().into_inner()
    }

    pub(crate) async fn subscribe(
        &self,
        request: v1::SubscribeRequest,
    ) -> Result<Subscriber, Status> {
        self.subscribe_as("", request).await
    }

    /// Subscribes with an `authorization` header, unless it is empty.
    pub(crate) async fn subscribe_as(
        &self,
        credential: &str,
        request: v1::SubscribeRequest,
    ) -> Result<Subscriber, Status> {
        let mut client = SubscriptionServiceClient::new(self.channel.clone());
        let request = authorized(request, credential);
        let stream = soon("Subscribe", client.subscribe(request)).await?;
        Ok(Subscriber::of(stream.into_inner()))
    }

    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(crate) async fn get(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon("admin answer", stream.read_to_string(&mut answer))
            .await
            .unwrap();
        answer
    }

    /// Waits until the service has ended by itself.
    pub(crate) async fn ended(self) -> Result<(), RunError> {
        soon("the service's end", self.running).await.unwrap()
    }

    /// Stops the service, checks that it ends in order, and gives the data directory back.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        self.shutdown.advance(Phase::Stopping);
        drop(self.channel);
        soon("the service's end", self.running)
            .await
            .unwrap()
            .unwrap();
        self.dir
    }
}

pub(crate) async fn connect(addr: SocketAddr) -> Channel {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
    soon("connection", endpoint.connect()).await.unwrap()
}

/// A gateway that a test scripts.
pub(crate) struct Gateway {
    to_store: mpsc::Sender<v1::IngestRequest>,
    from_store: Streaming<v1::IngestResponse>,
    pub(crate) ready: v1::IngestReady,
    pub(crate) batch: u64,
    pub(crate) sequence: u64,
}

pub(crate) fn hello(spool: u8) -> v1::IngestHello {
    v1::IngestHello {
        protocol_version: 1,
        gateway_id: "gateway-under-test".into(),
        spool_id: format!("{spool:02x}").repeat(16),
        settled_sequence: 0,
        oldest_sequence: 0,
        sources: vec!["acme".into()],
        body_bytes_max: 256 << 10,
    }
}

/// A request with an `authorization` header, unless it is empty.
fn authorized<T>(message: T, credential: &str) -> Request<T> {
    let mut request = Request::new(message);
    if !credential.is_empty() {
        let metadata = request.metadata_mut();
        metadata.insert("authorization", credential.parse().unwrap());
    }
    request
}

/// Opens a stream without saying anything.
pub(crate) async fn ingest(
    channel: &Channel,
) -> (
    mpsc::Sender<v1::IngestRequest>,
    Streaming<v1::IngestResponse>,
) {
    ingest_as(channel, "").await
}

/// Opens a stream with an `authorization` header, unless it is empty.
pub(crate) async fn ingest_as(
    channel: &Channel,
    credential: &str,
) -> (
    mpsc::Sender<v1::IngestRequest>,
    Streaming<v1::IngestResponse>,
) {
    let (to_store, requests) = mpsc::channel(64);
    let mut client = IngestServiceClient::new(channel.clone());
    let requests = authorized(ReceiverStream::new(requests), credential);
    let stream = soon("Ingest", client.ingest(requests)).await;
    (to_store, stream.unwrap().into_inner())
}

pub(crate) fn request(message: ToStore) -> v1::IngestRequest {
    v1::IngestRequest {
        message: Some(message),
    }
}

/// Sends a first message and returns what comes of it.
pub(crate) async fn refused(channel: &Channel, first: ToStore) -> Status {
    let (to_store, mut from_store) = ingest(channel).await;
    to_store.send(request(first)).await.unwrap();
    soon("refusal", from_store.message()).await.unwrap_err()
}

/// Connects a gateway unless the store is away.
pub(crate) async fn try_connect(server: &Server, spool: u8) -> Option<Gateway> {
    let (to_store, requests) = mpsc::channel(64);
    let mut client = IngestServiceClient::new(server.channel.clone());
    let hello = request(ToStore::Hello(hello(spool)));
    to_store.send(hello).await.unwrap();
    let opening = client.ingest(ReceiverStream::new(requests));
    let mut from_store = soon("Ingest", opening).await.ok()?.into_inner();
    let first = soon("Ready", from_store.message()).await.ok()??;
    let Some(ToGateway::Ready(ready)) = first.message else {
        panic!("{first:?}");
    };
    let sequence = ready.committed_sequence;
    Some(Gateway {
        to_store,
        from_store,
        ready,
        batch: 0,
        sequence,
    })
}

impl Gateway {
    pub(crate) async fn connect(server: &Server, spool: u8) -> Self {
        Self::with(&server.channel, hello(spool)).await
    }

    pub(crate) async fn with(channel: &Channel, hello: v1::IngestHello) -> Self {
        Self::by(channel, "", hello).await
    }

    /// Connects with an `authorization` header, unless it is empty.
    pub(crate) async fn by(channel: &Channel, credential: &str, hello: v1::IngestHello) -> Self {
        let (to_store, mut from_store) = ingest_as(channel, credential).await;
        to_store.send(request(ToStore::Hello(hello))).await.unwrap();
        let first = soon("Ready", from_store.message()).await.unwrap().unwrap();
        let Some(ToGateway::Ready(ready)) = first.message else {
            panic!("{first:?}");
        };
        let sequence = ready.committed_sequence;
        Self {
            to_store,
            from_store,
            ready,
            batch: 0,
            sequence,
        }
    }

    pub(crate) async fn say(&mut self, message: ToStore) {
        let _ = self.to_store.send(request(message)).await;
    }

    /// Sends a message of a kind that this release does not know.
    pub(crate) async fn say_something_newer(&mut self) {
        let _ = self
            .to_store
            .send(v1::IngestRequest { message: None })
            .await;
    }

    /// Sends a batch without waiting.
    pub(crate) async fn send(&mut self, deliveries: Vec<Delivery>) {
        self.batch += 1;
        let deliveries = deliveries
            .iter()
            .map(|delivery| {
                self.sequence += 1;
                v1::IngestDelivery {
                    sequence: self.sequence,
                    ..delivery_to_wire(delivery)
                }
            })
            .collect();
        self.say(ToStore::Batch(v1::IngestBatch {
            batch_number: self.batch,
            deliveries,
        }))
        .await;
    }

    pub(crate) async fn answer(&mut self) -> Result<Option<ToGateway>, Status> {
        let message = soon("an answer to the gateway", self.from_store.message()).await?;
        Ok(message.and_then(|message| message.message))
    }

    pub(crate) async fn committed(&mut self) -> Result<v1::IngestCommitted, Status> {
        match self.answer().await? {
            Some(ToGateway::Committed(committed)) => Ok(committed),
            other => panic!("{other:?}"),
        }
    }

    /// The status that ends the stream, passing over acknowledgements.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match self.answer().await {
                Err(status) => return status,
                Ok(None) => panic!("the stream ended with OK"),
                Ok(Some(_)) => {}
            }
        }
    }

    /// Closes the gateway's side.
    pub(crate) fn close(&mut self) {
        self.to_store = mpsc::channel(1).0;
    }

    /// Sends a batch and returns its outcomes' names once it is acknowledged.
    pub(crate) async fn deliver(&mut self, deliveries: Vec<Delivery>) -> Vec<&'static str> {
        self.send(deliveries).await;
        let committed = self.committed().await.unwrap();
        assert_eq!(committed.batch_number, self.batch);
        assert_eq!(committed.committed_sequence, self.sequence);
        outcomes(&committed)
    }
}

pub(crate) fn outcomes(committed: &v1::IngestCommitted) -> Vec<&'static str> {
    committed
        .outcomes
        .iter()
        .map(|outcome| {
            outcome
                .outcome()
                .as_str_name()
                .trim_start_matches("DELIVERY_OUTCOME_")
        })
        .collect()
}

/// A subscriber that a test reads frame by frame.
pub(crate) struct Subscriber {
    stream: Streaming<v1::SubscribeResponse>,
    /// Of the last frame.
    pub(crate) cursor: String,
}

pub(crate) fn from_beginning() -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        start: Some(Start::FromBeginning(true)),
        ..v1::SubscribeRequest::default()
    }
}

pub(crate) fn from_end() -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        start: Some(Start::FromEnd(true)),
        ..v1::SubscribeRequest::default()
    }
}

pub(crate) fn after(cursor: &str) -> v1::SubscribeRequest {
    v1::SubscribeRequest {
        start: Some(Start::AfterCursor(cursor.into())),
        ..v1::SubscribeRequest::default()
    }
}

impl Subscriber {
    pub(crate) fn of(stream: Streaming<v1::SubscribeResponse>) -> Self {
        Self {
            stream,
            cursor: String::new(),
        }
    }

    /// The next frame; `None` if the stream ended with OK.
    pub(crate) async fn frame(&mut self) -> Result<Option<Frame>, Status> {
        let Some(message) = soon("a frame", self.stream.message()).await? else {
            return Ok(None);
        };
        let frame = message.frame.unwrap();
        self.cursor = match &frame {
            Frame::Started(frame) => &frame.start_cursor,
            Frame::Events(frame) => &frame.cursor,
            Frame::Bookmark(frame) => &frame.cursor,
            Frame::CaughtUp(frame) => &frame.cursor,
            Frame::FellBehind(frame) => &frame.cursor,
            Frame::Closing(frame) => &frame.cursor,
        }
        .clone();
        Ok(Some(frame))
    }

    pub(crate) async fn started(&mut self) -> v1::SubscriptionStarted {
        match self.frame().await {
            Ok(Some(Frame::Started(started))) => started,
            other => panic!("{other:?}"),
        }
    }

    /// Vendor ids of the passes of the next events, at least `count`; other frames are passed over.
    pub(crate) async fn passes(&mut self, count: usize) -> Vec<String> {
        let events = self.events(count).await;
        events
            .iter()
            .map(|event| event.pass.rsplit_once('/').unwrap().1.to_owned())
            .collect()
    }

    pub(crate) async fn events(&mut self, count: usize) -> Vec<v1::PassEvent> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.frame().await {
                Ok(Some(Frame::Events(frame))) => {
                    assert!(!frame.events.is_empty());
                    events.extend(frame.events);
                }
                Ok(Some(Frame::Closing(_)) | None) | Err(_) => panic!("ended after {events:?}"),
                Ok(Some(_)) => {}
            }
        }
        events
    }

    /// Reads frames until one is wanted.
    pub(crate) async fn until(&mut self, what: &str, wanted: impl Fn(&Frame) -> bool) -> Frame {
        soon(what, async {
            loop {
                match self.frame().await {
                    Ok(Some(frame)) if wanted(&frame) => return frame,
                    Ok(Some(_)) => {}
                    other => panic!("{what}: {other:?}"),
                }
            }
        })
        .await
    }

    /// All frames up to the status that ends the stream; `None` is OK.
    pub(crate) async fn rest(&mut self) -> (Vec<Frame>, Option<Status>) {
        let mut frames = Vec::new();
        let reading = async {
            loop {
                match self.frame().await {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => return None,
                    Err(status) => return Some(status),
                }
            }
        };
        let status = soon("the stream's end", reading).await;
        (frames, status)
    }
}

pub(crate) fn reason(status: &Status) -> Reason {
    reason_of(status).unwrap_or_else(|| panic!("no reason in {status:?}"))
}

/// A value of the ErrorInfo's metadata.
pub(crate) fn metadata(status: &Status, key: &str) -> String {
    let info = status.get_details_error_info().unwrap();
    info.metadata
        .get(key)
        .unwrap_or_else(|| panic!("no {key} in {status:?}"))
        .clone()
}

/// The fields that a BadRequest names, sorted.
pub(crate) fn bad_fields(status: &Status) -> Vec<String> {
    let mut fields: Vec<String> = status
        .get_details_bad_request()
        .unwrap_or_else(|| panic!("no BadRequest in {status:?}"))
        .field_violations
        .into_iter()
        .map(|violation| violation.field)
        .collect();
    fields.sort();
    fields
}
