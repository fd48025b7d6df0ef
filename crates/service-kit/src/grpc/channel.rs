//! A client's channel to one server or to all replicas of it.
//!
//! Each address has a plain tonic channel of its own, and each call goes to one
//! of the best of them: serving before not serving before unreachable, then
//! the fewest calls open from here, then chance. One background task looks
//! host names up again and asks each address for its health; a call or stream
//! that breaks puts its address last at once and has it asked again at once. A
//! call that no server can have acted on, because its connection just closed,
//! was closing (GOAWAY) or could not be made, is made again, where it can be at
//! another address: six attempts, within `connect_timeout` (`channel/lent.rs`).
//! Any other failure is the caller's, who alone knows whether repeating it is safe.
//! An address that is gone keeps the streams that it carries and gets no new
//! calls. The task ends when the last clone of the channel is dropped.
//!
//! With exactly one IP address as the endpoint there is nothing to choose and
//! nothing to look up: no task, no questions, the plain lazy channel.
//!
//! # Why not tonic's own balanced channel
//!
//! In tonic 0.14 (`Channel::balance_channel`, tower's `Balance`):
//! - a call waits for ever while the set is empty, as before the first lookup;
//! - an address that refuses connections counts as ready (grpc/grpc-rust 2839):
//!   with one of two servers dead, 37 of 100 calls failed; and one that came
//!   back may still answer with its old error (1147);
//! - a call goes only to connections that are ready, and connections are begun
//!   when a call comes, so the first call goes to whoever connects first;
//! - every load is 0, so open streams do not count;
//! - it takes changes in only while a call is dispatched. A gateway makes one
//!   call in half an hour.
//!
//! Here every call has a place to go or an error, and the questions for health
//! go over the same connection as the calls, so they test what the calls need.

use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::{Request, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::StdError;
use tonic::transport::Endpoint;
use tower::Service;

use crate::config::{Duration, Faults, Validate};
use crate::tls::TlsClientConfig;

mod credentials;
mod endpoint;
mod lent;
mod replica;
mod upkeep;

pub use credentials::{Credentials, Token, TokenSource};
pub use endpoint::{EndpointError, Endpoints};
pub use upkeep::{Resolve, SystemResolver};

use replica::{FailedCall, Replica, View};

/// How often a call is tried while no server takes it, as long as `connect_timeout` has not passed.
const ATTEMPTS_MAX: usize = 6;

/// A client's side of gRPC connections. Every key has a default and a ceiling.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChannelConfig {
    /// Where the server is, as `http://host:port`, or `https://host:port` for
    /// TLS, or a list of 1 to 64 such, all with the same scheme, in an environment variable separated by commas. A host name stands for all
    /// its addresses, up to 256 in all; calls are spread over those that serve.
    /// Default `http://127.0.0.1:50051`.
    pub endpoint: Endpoints,
    /// TLS to endpoints with `https`; absent: the system's authorities, and no
    /// certificate of our own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsClientConfig>,
    /// The token that every call carries (`authorization: Bearer …`); absent: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenSource>,
    /// Time for one attempt to connect, TLS included, and for one lookup of a host
    /// name, up to 60 s. Default 5 s.
    pub connect_timeout: Duration,
    /// How often a connection is pinged, 1 s to 10 min. Default 20 s.
    pub keepalive_interval: Duration,
    /// Time for the answer to a ping, up to 1 min. Default 10 s.
    pub keepalive_timeout: Duration,
    /// How often host names are looked up again, 10 ms to 10 min. Default 5 s.
    pub resolve_interval: Duration,
    /// How often each address is asked for its health, 10 ms to 1 min. Default
    /// 2 s. Nobody is asked where the endpoint is a single IP address.
    pub health_interval: Duration,
    /// Time for the answer about health, connecting included, up to 1 min.
    /// Default 1 s; over it the address counts as unreachable.
    pub health_timeout: Duration,
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            endpoint: "http://127.0.0.1:50051".into(),
            tls: None,
            token: None,
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            resolve_interval: Duration::from_secs(5),
            health_interval: Duration::from_secs(2),
            health_timeout: Duration::from_secs(1),
        }
    }
}

impl Validate for ChannelConfig {
    fn validate(&self, faults: &mut Faults) {
        let least = Duration::from_millis(1);
        let pause_min = Duration::from_millis(10);
        self.endpoint.validate(faults);
        if let Some(tls) = &self.tls {
            faults.part("tls", tls);
            if !self.endpoint.is_tls() {
                faults.invalid(
                    "tls",
                    "is configured but not used: the endpoint is plaintext",
                    "endpoints with https://",
                    "write https:// in endpoint, or remove the table",
                );
            }
        }
        faults.in_range(
            "connect_timeout",
            self.connect_timeout,
            least..=Duration::from_secs(60),
        );
        faults.in_range(
            "keepalive_interval",
            self.keepalive_interval,
            Duration::from_secs(1)..=Duration::from_mins(10),
        );
        faults.in_range(
            "keepalive_timeout",
            self.keepalive_timeout,
            least..=Duration::from_mins(1),
        );
        faults.in_range(
            "resolve_interval",
            self.resolve_interval,
            pause_min..=Duration::from_mins(10),
        );
        faults.in_range(
            "health_interval",
            self.health_interval,
            pause_min..=Duration::from_mins(1),
        );
        faults.in_range(
            "health_timeout",
            self.health_timeout,
            least..=Duration::from_mins(1),
        );
    }
}

impl ChannelConfig {
    /// Says whether calls leave this machine without TLS. A host name counts as
    /// another machine, but for `localhost`.
    pub fn sends_in_the_clear(&self) -> bool {
        self.endpoint.in_the_clear()
    }

    /// The settings of every connection.
    fn connection(&self, endpoint: Endpoint) -> Endpoint {
        endpoint
            .connect_timeout(self.connect_timeout.get())
            .http2_keep_alive_interval(self.keepalive_interval.get())
            .keep_alive_timeout(self.keepalive_timeout.get())
            .keep_alive_while_idle(true)
    }
}

/// Makes a channel that connects when first used and again after a failure;
/// [`Channel::with_resolver`] with the lookup of the operating system.
///
/// # Errors
/// Fails if an endpoint can't be used, or there is none or too many.
pub fn channel(
    config: &ChannelConfig,
    credentials: &Credentials,
) -> Result<Channel, EndpointError> {
    Channel::with_resolver(config, credentials, Arc::new(SystemResolver))
}

/// A channel over one or several addresses, for the generated clients; cheap to
/// clone.
///
/// A call fails rather than waits when nobody can take it; a server that ends in
/// order fails none. Only the first calls
/// of a channel wait until every address was looked up and asked for its health
/// once, so that they spread evenly: at most `connect_timeout +
/// health_timeout`, usually one round trip.
///
/// Connections are pinged also when idle, so a dead peer is noticed within
/// `keepalive_interval + keepalive_timeout` even by a stream without traffic.
/// There is no timeout for calls: each call sets its own.
#[derive(Clone, Debug)]
pub struct Channel {
    view: watch::Receiver<View>,
    /// How long a call may go from one address to another.
    patience: std::time::Duration,
}

impl Channel {
    /// Makes a channel that looks host names up by `resolver`. Must be called
    /// within a tokio runtime; the background task ends when the last clone of
    /// the channel is dropped. `credentials` are those that were loaded from
    /// `config`.
    ///
    /// # Errors
    /// Fails if an endpoint can't be used, or there is none or too many.
    pub fn with_resolver(
        config: &ChannelConfig,
        credentials: &Credentials,
        resolver: Arc<dyn Resolve>,
    ) -> Result<Self, EndpointError> {
        let targets = config.endpoint.targets(credentials)?;
        let patience = config.connect_timeout.get();
        if let [target] = targets.as_slice()
            && let Some(address) = target.address()
        {
            let replica = Replica::new(address, target, config, Arc::new(Notify::new()));
            let (_, view) = watch::channel(View::only(replica));
            return Ok(Self { view, patience });
        }
        let (sender, view) = watch::channel(View::default());
        tokio::spawn(upkeep::run(sender, targets, config.clone(), resolver));
        Ok(Self { view, patience })
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<'static, Result<Response<Body>, StdError>>;

    /// Always ready: who takes the call is known only when it is made.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut view = self.view.clone();
        let patience = self.patience;
        Box::pin(async move {
            let mut request = request;
            let began = Instant::now();
            let mut tried = Vec::new();
            loop {
                // An error means that the task is gone, which only a panic explains.
                let chosen = match view.wait_for(|view| view.settled).await {
                    Ok(view) => view.choose(&tried),
                    Err(_) => None,
                };
                let Some(replica) = chosen else { break };
                tried.push(replica.address());
                match replica.call(request).await {
                    Ok(answer) => return Ok(answer),
                    Err(FailedCall {
                        untaken: Some(same),
                        error,
                    }) if tried.len() < ATTEMPTS_MAX && began.elapsed() < patience => {
                        tracing::debug!(%error, "nobody took a call; making it again");
                        request = same;
                    }
                    Err(FailedCall { error, .. }) => return Err(error),
                }
            }
            Err(Status::unavailable("no address of the server is known").into())
        })
    }
}
