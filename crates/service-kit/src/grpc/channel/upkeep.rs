//! The background task of a channel: looks names up, asks for health.
//!
//! Two loops run side by side, so that a slow lookup holds up no question. Only
//! the lookups change the set of addresses.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::endpoint::Target;
use super::replica::{Replica, View};
use crate::grpc::ChannelConfig;

/// Most addresses of one channel.
const ADDRESSES_MAX: usize = 256;

/// Looks host names up.
pub trait Resolve: Send + Sync + 'static {
    /// Returns all addresses of `host`, each with `port`, in any order. Dropped
    /// when it takes longer than `connect_timeout`; no address at all counts as
    /// a failure.
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The lookup of the operating system.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move {
            let found = tokio::net::lookup_host((host, port)).await?;
            Ok(found.collect())
        })
    }
}

/// Keeps `view` up to date until nobody looks at it any more.
pub(super) async fn run(
    view: watch::Sender<View>,
    targets: Vec<Target>,
    config: ChannelConfig,
    resolver: Arc<dyn Resolve>,
) {
    let doubt = Arc::new(Notify::new());
    let work = async {
        let mut names = Names {
            known: targets.into_iter().map(Known::new).collect(),
            config: &config,
            resolver: &*resolver,
            doubt: &doubt,
            crowded: false,
        };
        names.look_up(&view).await;
        tokio::join!(
            names.keep_looking_up(&view),
            keep_asking(&view, &config, &doubt)
        )
    };
    tokio::select! {
        () = view.closed() => {}
        never = work => match never.0 {},
    }
}

/// Asks everyone for their health, again and again, and at once when in doubt.
async fn keep_asking(
    view: &watch::Sender<View>,
    config: &ChannelConfig,
    doubt: &Notify,
) -> Infallible {
    loop {
        let replicas = view.borrow().replicas.clone();
        join_all(replicas.iter().map(|replica| replica.ask())).await;
        view.send_if_modified(|view| !std::mem::replace(&mut view.settled, true));
        tokio::select! {
            () = sleep(config.health_interval.get()) => {}
            () = doubt.notified() => {}
        }
    }
}

/// One endpoint and what the last lookup that succeeded said.
struct Known {
    target: Target,
    addresses: Vec<SocketAddr>,
    /// Whether the last lookup failed.
    stale: bool,
}

impl Known {
    fn new(target: Target) -> Self {
        Self {
            addresses: target.address().into_iter().collect(),
            target,
            stale: false,
        }
    }

    /// Looks a name up; keeps what is known if that fails.
    async fn look_up(&mut self, config: &ChannelConfig, resolver: &dyn Resolve) {
        if self.target.address().is_some() {
            return;
        }
        let Target { host, port, .. } = &self.target;
        let looking = timeout(config.connect_timeout.get(), resolver.resolve(host, *port));
        let problem = match looking.await {
            Ok(Ok(addresses)) if !addresses.is_empty() => {
                if self.stale {
                    tracing::info!(%host, "host name is found again");
                }
                self.addresses = addresses;
                self.stale = false;
                return;
            }
            Ok(Ok(_)) => "it has no address".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        if !self.stale {
            let known = self.addresses.len();
            tracing::warn!(%host, known, "host name can't be looked up, keeping what is known: {problem}");
        }
        self.stale = true;
    }
}

/// The loop of lookups.
struct Names<'a> {
    known: Vec<Known>,
    config: &'a ChannelConfig,
    resolver: &'a dyn Resolve,
    doubt: &'a Arc<Notify>,
    /// Whether addresses are left out.
    crowded: bool,
}

impl Names<'_> {
    async fn keep_looking_up(&mut self, view: &watch::Sender<View>) -> Infallible {
        if self.known.iter().all(|one| one.target.address().is_some()) {
            std::future::pending::<()>().await;
        }
        loop {
            sleep(self.config.resolve_interval.get()).await;
            self.look_up(view).await;
        }
    }

    /// Looks every name up and shows the addresses that came of it.
    async fn look_up(&mut self, view: &watch::Sender<View>) {
        let (config, resolver) = (self.config, self.resolver);
        join_all(
            self.known
                .iter_mut()
                .map(|one| one.look_up(config, resolver)),
        )
        .await;

        let mut wanted = BTreeMap::new();
        for one in &self.known {
            for address in &one.addresses {
                wanted.entry(*address).or_insert(&one.target);
            }
        }
        let crowded = wanted.len() > ADDRESSES_MAX;
        if crowded && !self.crowded {
            let count = wanted.len();
            tracing::warn!(
                count,
                "more addresses than {ADDRESSES_MAX}: leaving some out"
            );
        }
        self.crowded = crowded;
        let wanted: BTreeMap<_, _> = wanted.into_iter().take(ADDRESSES_MAX).collect();

        let mut added = false;
        view.send_if_modified(|view| {
            let before = view.replicas.len();
            view.replicas.retain(|replica| {
                let stays = wanted.contains_key(&replica.address());
                if !stays {
                    tracing::info!(address = %replica.address(), "server left the list");
                }
                stays
            });
            let gone = before - view.replicas.len();
            for (address, target) in wanted {
                if !view.replicas.iter().any(|one| one.address() == address) {
                    tracing::debug!(%address, "server joined the list");
                    let doubt = Arc::clone(self.doubt);
                    view.replicas
                        .push(Replica::new(address, target, config, doubt));
                    added = true;
                }
            }
            added || gone > 0
        });
        if added {
            self.doubt.notify_one();
        }
    }
}
