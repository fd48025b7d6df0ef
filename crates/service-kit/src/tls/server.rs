//! The side that listens.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;

use super::failures::Failures;
use super::{ClientAuth, PeerNames, Stream, TlsServerConfig, material};
use crate::config::Faults;
use crate::reload::{Refusal, Reload};

/// What is spoken over TLS; offered by ALPN, so that a client that wants
/// something else is told in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2.
    Grpc,
}

/// TLS of a listener. Clones share the state, and with it what is reloaded.
#[derive(Clone)]
pub struct TlsServer {
    /// Where its keys stand in the configuration.
    key: Arc<str>,
    config: Arc<TlsServerConfig>,
    protocol: Protocol,
    state: Arc<RwLock<State>>,
    failures: Arc<Failures>,
}

/// What handshakes begin with.
#[derive(Clone)]
pub(super) struct State {
    rustls: Arc<ServerConfig>,
    expires: i64,
}

impl State {
    /// Reads everything; `None` after a fault.
    pub(super) fn read(
        config: &TlsServerConfig,
        protocol: Protocol,
        faults: &mut Faults,
    ) -> Option<Self> {
        let provider = material::provider();
        let identity = material::identity(&config.cert_file, &config.key_file, &provider, faults);
        let roots = config
            .client_ca_file
            .as_ref()
            .map(|file| material::roots("client_ca_file", file, faults));
        let roots = match roots {
            Some(roots) => Some(roots?),
            None => None,
        };
        let identity = identity?;
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3");
        let authenticated = roots.is_some();
        let builder = match roots {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                let verifier = match config.client_auth {
                    ClientAuth::Required => verifier,
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier
                    .build()
                    .expect("there is at least one authority, and no revocation list");
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut rustls = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)));
        rustls.alpn_protocols = vec![match protocol {
            Protocol::Http => b"http/1.1".to_vec(),
            Protocol::Grpc => b"h2".to_vec(),
        }];
        if authenticated {
            // A resumed session would skip looking at the client's certificate, also
            // after that has expired.
            rustls.session_storage = Arc::new(NoServerSessionStorage {});
            rustls.send_tls13_tickets = 0;
        }
        Some(Self {
            rustls: Arc::new(rustls),
            expires: identity.expires,
        })
    }
}

impl TlsServer {
    /// Reads the files; faults stand under `key`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(key: &str, config: &TlsServerConfig, protocol: Protocol) -> Result<Self, Faults> {
        let state = read(key, config, protocol)?;
        Ok(Self {
            key: key.into(),
            config: Arc::new(config.clone()),
            protocol,
            state: Arc::new(RwLock::new(state)),
            failures: Arc::default(),
        })
    }

    /// Returns when the first certificate of the chain expires, in Unix seconds.
    pub fn expires(&self) -> i64 {
        self.state().expires
    }

    /// Returns how many handshakes failed since the start.
    pub fn handshakes_failed(&self) -> u64 {
        self.failures.count()
    }

    /// Shakes hands. `None`, counted and logged, if the client shows no or a wrong certificate, speaks no TLS,
    /// goes away, or takes longer than `handshake_timeout`. Cancel safe in that nothing but the connection is lost.
    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
    ) -> Option<(Stream, PeerNames)> {
        let shaken = self.shake_hands(stream).await;
        shaken
            .inspect_err(|error| self.failures.add(&self.key, peer, error, Instant::now()))
            .ok()
    }

    async fn shake_hands(&self, stream: TcpStream) -> io::Result<(Stream, PeerNames)> {
        let acceptor = TlsAcceptor::from(self.state().rustls);
        let shaking = acceptor.accept(stream);
        let stream = timeout(self.config.handshake_timeout.get(), shaking)
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        let names = PeerNames::of(stream.get_ref().1.peer_certificates());
        Ok((Stream::Tls(Box::new(stream.into())), names))
    }

    fn state(&self) -> State {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn read(key: &str, config: &TlsServerConfig, protocol: Protocol) -> Result<State, Faults> {
    let mut faults = Faults::default();
    let mut state = None;
    faults.within(key, |faults| state = State::read(config, protocol, faults));
    state.ok_or(faults)
}

impl Reload for TlsServer {
    fn files(&self) -> Vec<PathBuf> {
        super::files([
            Some(&self.config.cert_file),
            Some(&self.config.key_file),
            self.config.client_ca_file.as_ref(),
        ])
    }

    fn try_apply(&mut self) -> Result<(), Refusal> {
        let new = read(&self.key, &self.config, self.protocol)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer")
            .field("key", &self.key)
            .field("protocol", &self.protocol)
            .finish_non_exhaustive()
    }
}
