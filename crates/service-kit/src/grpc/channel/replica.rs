//! One address of a server, and the choice between several.

use std::cmp::Reverse;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::transport::{Channel as Connection, Endpoint};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tower::{Service as _, ServiceExt as _};

use super::Credentials;
use super::endpoint::Target;
use super::lent::lend;
use crate::config::Duration;
use crate::grpc::ChannelConfig;

/// Attempts of one question for health: a connection whose server said good-bye
/// fails the one call that meets the notice.
const ATTEMPTS: usize = 2;

/// What is known of an address; the greatest is the first choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// It did not answer, or a call just broke.
    Unreachable,
    /// It answers that it does not serve: it starts, drains or lacks something.
    NotServing,
    /// It was not asked yet.
    Unknown,
    /// It serves, or has no opinion on its health.
    Serving,
}

/// The addresses at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    pub(super) replicas: Vec<Arc<Replica>>,
    /// Whether everyone was looked up and asked once.
    pub(super) settled: bool,
}

impl View {
    /// The view where there is nothing to choose.
    pub(super) fn only(replica: Arc<Replica>) -> Self {
        Self {
            replicas: vec![replica],
            settled: true,
        }
    }

    /// Picks who takes the next call, where it can be one that has not failed to take it (`tried`); `None` if nobody is
    /// known.
    pub(super) fn choose(&self, tried: &[SocketAddr]) -> Option<Arc<Replica>> {
        if let [only] = self.replicas.as_slice() {
            return Some(Arc::clone(only));
        }
        let rank = |one: &Replica| {
            let tried = tried.iter().filter(|tried| **tried == one.address).count();
            (Reverse(tried), one.rank())
        };
        let ranked: Vec<_> = self.replicas.iter().map(|one| (rank(one), one)).collect();
        let best = ranked.iter().map(|(rank, _)| *rank).max()?;
        let mut equals = ranked.iter().filter(|(rank, _)| *rank == best);
        let count = u64::try_from(equals.clone().count()).ok()?;
        let pick = RandomState::new().hash_one(0_u8) % count;
        let (_, chosen) = equals.nth(usize::try_from(pick).ok()?)?;
        Some(Arc::clone(chosen))
    }
}

/// One address with its connection.
pub(super) struct Replica {
    address: SocketAddr,
    connection: Connection,
    credentials: Credentials,
    health_timeout: Duration,
    standing: Mutex<Standing>,
    /// Calls whose answer has not ended.
    open: AtomicUsize,
    /// Asks for everyone's health at once.
    doubt: Arc<Notify>,
}

impl Replica {
    /// Makes a replica that connects when first used. Requests carry the
    /// authority of `target`, not the address.
    pub(super) fn new(
        address: SocketAddr,
        target: &Target,
        config: &ChannelConfig,
        doubt: Arc<Notify>,
    ) -> Arc<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .expect("an address and a port make an authority")
            .origin(target.endpoint.uri().clone());
        Arc::new(Self {
            address,
            connection: config
                .connection(endpoint)
                .connect_with_connector_lazy(target.connector.clone()),
            credentials: target.credentials.clone(),
            health_timeout: config.health_timeout,
            standing: Mutex::new(Standing::Unknown),
            open: AtomicUsize::new(0),
            doubt,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    fn rank(&self) -> (Standing, Reverse<usize>) {
        (self.standing(), Reverse(self.open.load(Ordering::Relaxed)))
    }

    fn standing(&self) -> Standing {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what was learnt and logs it if it is news.
    fn learn(&self, now: Standing, reason: &str) {
        let before = {
            let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *standing, now)
        };
        let address = self.address;
        match (before, now) {
            (before, now) if before == now => {}
            (Standing::Serving, _) => {
                tracing::warn!(%address, "server gets no new calls while others serve: {reason}");
            }
            (_, Standing::Serving) => tracing::info!(%address, "server gets calls: {reason}"),
            _ => tracing::info!(%address, "server does not serve: {reason}"),
        }
    }

    /// Puts it last until it was asked, which happens at once.
    fn suspect(&self, reason: &str) {
        self.learn(Standing::Unreachable, reason);
        self.doubt.notify_one();
    }

    /// Makes one call here; the answer's body watches over its own end.
    pub(super) async fn call(
        self: Arc<Self>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, FailedCall> {
        self.credentials.authorize(request.headers_mut());
        let mut connection = self.connection.clone();
        let open = OpenCall::new(self);
        let (head, lent, back) = lend(request);
        let answer = match connection.ready().await {
            Ok(ready) => {
                ready
                    .call(Request::from_parts(head.clone(), Body::new(lent)))
                    .await
            }
            Err(error) => {
                drop(lent);
                Err(error)
            }
        };
        match answer {
            Ok(answer) => Ok(answer.map(|inner| Body::new(Watched { inner, open }))),
            Err(error) => {
                open.0.suspect("a call failed before its answer");
                let untaken = back.take(&error);
                Err(FailedCall {
                    error: error.into(),
                    untaken: untaken.map(|body| Request::from_parts(head, body)),
                })
            }
        }
    }

    /// Asks for its health and notes the answer; takes `health_timeout` at most.
    pub(super) async fn ask(&self) {
        let asking = async {
            let mut client = HealthClient::new(self.connection.clone());
            let mut verdict = (Standing::Unreachable, "it can't be reached");
            for _ in 0..ATTEMPTS {
                let mut question = tonic::Request::new(HealthCheckRequest::default());
                self.credentials.authorize(question.metadata_mut().as_mut());
                let answer = client.check(question).await;
                verdict = judge(answer.map(|answer| answer.into_inner().status()));
                if verdict.0 != Standing::Unreachable {
                    break;
                }
            }
            verdict
        };
        let (standing, reason) = timeout(self.health_timeout.get(), asking)
            .await
            .unwrap_or((Standing::Unreachable, "no answer about its health in time"));
        self.learn(standing, reason);
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("address", &self.address)
            .field("standing", &self.standing())
            .finish_non_exhaustive()
    }
}

/// Reads an answer about health. A server that answers anything but "no" counts
/// as serving: it may have no health service, or shed the question under load,
/// and then to send its share to the others would only push them over too.
fn judge(answer: Result<ServingStatus, Status>) -> (Standing, &'static str) {
    match answer {
        Ok(ServingStatus::Serving) => (Standing::Serving, "it says that it serves"),
        Ok(_) => (Standing::NotServing, "it says that it does not serve"),
        // Only what came about on this side has a source.
        Err(status) if std::error::Error::source(&status).is_some() => {
            (Standing::Unreachable, "it can't be reached")
        }
        Err(status) => match status.code() {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => {
                (Standing::NotServing, "it can't answer about its health")
            }
            _ => (Standing::Serving, "it answers, but not about its health"),
        },
    }
}

/// A call that got no answer.
pub(super) struct FailedCall {
    pub(super) error: StdError,
    /// The request as it was, if the server can't have acted on it.
    pub(super) untaken: Option<Request<Body>>,
}

/// Counts a call as open until it is dropped.
struct OpenCall(Arc<Replica>);

impl OpenCall {
    fn new(replica: Arc<Replica>) -> Self {
        replica.open.fetch_add(1, Ordering::Relaxed);
        Self(replica)
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer, which tells when it breaks off.
struct Watched {
    inner: Body,
    open: OpenCall,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        if let Some(Err(_)) = &frame {
            self.open.0.suspect("an answer broke off");
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
