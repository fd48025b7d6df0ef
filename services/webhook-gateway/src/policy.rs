//! What decides about callbacks and can change while the gateway runs: sources with their secrets, rates, proxies.
//!
//! A [`Policy`] is made whole from one configuration and never changes. [`Live`] holds the one in force; a request takes
//! it once and keeps it to its end, so none is decided half by one and half by another.

use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use pass_sources::SourceConfig;
use service_kit::config::{Faults, Origin};
use tokio::sync::watch;

use crate::books::Books;
use crate::config::{Ack, Http};
use crate::limits::{Bucket, Client, Clients, Failures, Proxies, Rate};
use crate::sources::Sources;

/// One configuration's decisions about callbacks; it derefs to its sources.
#[derive(Debug)]
pub(crate) struct Policy {
    sources: Sources,
    proxies: Proxies,
    /// Absent: addresses have no rate of their own.
    clients: Option<Arc<Clients>>,
    /// All requests to sources that don't exist, and to other paths, share it.
    pub(crate) unknown: Arc<Bucket>,
    pub(crate) failures: Arc<Failures>,
    pub(crate) ack_timeout: Duration,
}

impl Policy {
    /// Builds everything; what `before` has used up stays used up where the rates are the same.
    ///
    /// # Errors
    /// Every fault of the sources.
    pub(crate) fn build(
        sources: &[SourceConfig],
        ack: &Ack,
        http: &Http,
        env: &[(String, String)],
        origin: &Origin,
        before: Option<&Self>,
    ) -> Result<Self, Faults> {
        let mut sources = Sources::build(sources, ack, http, env, origin)?;
        let rates = &http.rates;
        let client_rate = Rate::new(rates.client_per_sec, rates.client_burst);
        let unknown_rate = Rate::new(rates.source_per_sec, rates.source_burst);
        let unknown_rate = unknown_rate.unwrap_or(Rate::LEAST);
        if let Some(before) = before {
            sources.go_on_from(&before.sources);
        }
        let clients = client_rate.map(|rate| {
            before
                .and_then(|before| before.clients.as_ref())
                .filter(|known| known.is_of(rate, rates.clients_max))
                .map_or_else(
                    || Arc::new(Clients::new(rate, rates.clients_max)),
                    Arc::clone,
                )
        });
        let unknown = before
            .map(|before| &before.unknown)
            .filter(|known| known.rate() == unknown_rate)
            .map_or_else(|| Arc::new(Bucket::new(unknown_rate)), Arc::clone);
        let failures = before
            .map(|before| &before.failures)
            .filter(|known| known.is_of(&http.failed_auth, rates.clients_max))
            .map_or_else(
                || Arc::new(Failures::new(&http.failed_auth, rates.clients_max)),
                Arc::clone,
            );
        Ok(Self {
            sources,
            proxies: http.proxies(),
            clients,
            unknown,
            failures,
            ack_timeout: ack.timeout.get(),
        })
    }

    /// Who sent a request that came from `peer`.
    pub(crate) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> Client {
        self.proxies.client(peer, headers)
    }

    /// Takes one from the rate of a client's address; else the time until there is one.
    pub(crate) fn take_client(&self, client: Client) -> Result<(), Duration> {
        match &self.clients {
            Some(clients) => clients.take(client.counted_as()),
            None => Ok(()),
        }
    }

    /// The uids of all sources, as configured.
    pub(crate) fn uids(&self) -> Vec<String> {
        self.iter()
            .map(|entry| entry.source.uid().to_string())
            .collect()
    }
}

impl Deref for Policy {
    type Target = Sources;

    fn deref(&self) -> &Sources {
        &self.sources
    }
}

/// The policy in force.
#[derive(Debug)]
pub(crate) struct Live {
    current: watch::Sender<Arc<Policy>>,
    books: Arc<Books>,
}

impl Live {
    /// Puts the first policy in force.
    ///
    /// # Errors
    /// As [`Live::replace`]; with the first one that can't be.
    pub(crate) fn new(mut policy: Policy, books: Arc<Books>) -> Result<Self, String> {
        policy.sources.enroll(&books).map_err(too_many)?;
        Ok(Self {
            current: watch::Sender::new(Arc::new(policy)),
            books,
        })
    }

    /// The policy in force now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.current.borrow())
    }

    /// Puts another policy in force, for all requests that come from now on.
    ///
    /// # Errors
    /// If more different sources were configured since the start than there are pages for. Then the policy in force stays;
    /// some of the new one's sources may have got their page.
    pub(crate) fn replace(&self, mut policy: Policy) -> Result<(), String> {
        policy.sources.enroll(&self.books).map_err(too_many)?;
        self.current.send_replace(Arc::new(policy));
        Ok(())
    }

    /// A way to learn of changes, from now on.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.current.subscribe())
    }
}

fn too_many(source: String) -> String {
    format!(
        "there are no books left for source {source}: too many different ones were configured since the start; restart"
    )
}

/// A watch over the policy in force.
#[derive(Clone, Debug)]
pub(crate) struct Changes(watch::Receiver<Arc<Policy>>);

impl Changes {
    /// Waits for a policy whose sources have other uids than these. Cancel safe.
    pub(crate) async fn other_than(&mut self, uids: &[String]) {
        loop {
            if self.0.changed().await.is_err() {
                // Nobody is left who could change them.
                std::future::pending::<()>().await;
            }
            if self.0.borrow_and_update().uids() != uids {
                return;
            }
        }
    }
}
