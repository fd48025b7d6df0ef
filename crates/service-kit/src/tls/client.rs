//! The side that connects.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::StdError;
use tower::Service;

use super::{Stream, TlsClientConfig, material};
use crate::config::Faults;
use crate::reload::{Refusal, Reload};

/// Time between two probes of an idle TCP connection.
const TCP_KEEPALIVE: std::time::Duration = std::time::Duration::from_secs(60);

/// TLS to a server. Clones share the state, and with it what is reloaded.
#[derive(Clone)]
pub struct TlsClient {
    /// Where its keys stand in the configuration.
    key: Arc<str>,
    config: Arc<TlsClientConfig>,
    state: Arc<RwLock<State>>,
}

/// What handshakes begin with.
#[derive(Clone)]
pub(super) struct State {
    rustls: Arc<ClientConfig>,
    /// Of our own certificate, if there is one.
    expires: Option<i64>,
}

impl State {
    /// Reads everything; `None` after a fault.
    pub(super) fn read(config: &TlsClientConfig, faults: &mut Faults) -> Option<Self> {
        let provider = material::provider();
        let roots = match &config.ca_file {
            Some(file) => material::roots("ca_file", file, faults),
            None => system_roots(faults),
        };
        let identity = match (&config.cert_file, &config.key_file) {
            (Some(cert), Some(key)) => Some(material::identity(cert, key, &provider, faults)?),
            (None, None) => None,
            (cert, _) => {
                let (set, missing) = match cert {
                    Some(_) => ("cert_file", "key_file"),
                    None => ("key_file", "cert_file"),
                };
                faults.invalid(
                    set,
                    format!("is set without {missing}"),
                    "both of cert_file and key_file, or neither",
                    format!("set {missing} as well"),
                );
                return None;
            }
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_root_certificates(roots?);
        let expires = identity.as_ref().map(|identity| identity.expires);
        let mut rustls = match identity {
            Some(identity) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)))
            }
            None => builder.with_no_client_auth(),
        };
        rustls.alpn_protocols = vec![b"h2".to_vec()];
        Some(Self {
            rustls: Arc::new(rustls),
            expires,
        })
    }
}

fn system_roots(faults: &mut Faults) -> Option<RootCertStore> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(found.certs);
    if good == 0 {
        faults.invalid(
            "ca_file",
            "is not set, and this system has no certificate authorities",
            "a PEM file of authorities",
            "set ca_file, or install the system's certificates",
        );
        return None;
    }
    Some(roots)
}

/// A name as certificates have it: of a host, or an IP address.
pub(crate) fn server_name(host: &str) -> Option<ServerName<'static>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(bare.to_owned()).ok()
}

impl TlsClient {
    /// Reads the files; faults stand under `key`.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn load(key: &str, config: &TlsClientConfig) -> Result<Self, Faults> {
        let state = read(key, config)?;
        Ok(Self {
            key: key.into(),
            config: Arc::new(config.clone()),
            state: Arc::new(RwLock::new(state)),
        })
    }

    /// Returns when the first certificate of our own chain expires, in Unix seconds; `None` if there is none.
    pub fn expires(&self) -> Option<i64> {
        self.state().expires
    }

    /// Makes a connector whose servers must prove to be `host`, or the configured
    /// `server_name`. `None` if neither is a name that a certificate can have.
    pub fn connector(&self, host: &str) -> Option<Connector> {
        let host = self.config.server_name.as_deref().unwrap_or(host);
        Some(Connector {
            tcp: tcp(),
            tls: Some((self.clone(), server_name(host)?)),
        })
    }

    /// Opens a connection for HTTP/1.1 to `host`, which must prove to be that, or the configured
    /// `server_name`. The caller bounds the time.
    ///
    /// # Errors
    /// Nobody listens there, the name is none that a certificate can have, or the handshake fails.
    pub async fn connect_http(
        &self,
        host: &str,
        port: u16,
    ) -> io::Result<impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static> {
        let name = server_name(self.config.server_name.as_deref().unwrap_or(host))
            .ok_or_else(|| io::Error::other(format!("{host} is no name of a server")))?;
        let mut rustls = ClientConfig::clone(&self.rustls());
        rustls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((bare, port)).await?;
        let stream = TlsConnector::from(Arc::new(rustls))
            .connect(name, stream)
            .await?;
        Ok(TokioIo::new(stream))
    }

    fn rustls(&self) -> Arc<ClientConfig> {
        self.state().rustls
    }

    fn state(&self) -> State {
        self.state
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

fn read(key: &str, config: &TlsClientConfig) -> Result<State, Faults> {
    let mut faults = Faults::default();
    let mut state = None;
    faults.within(key, |faults| state = State::read(config, faults));
    state.ok_or(faults)
}

impl Reload for TlsClient {
    fn files(&self) -> Vec<PathBuf> {
        super::files([
            self.config.ca_file.as_ref(),
            self.config.cert_file.as_ref(),
            self.config.key_file.as_ref(),
        ])
    }

    fn try_apply(&mut self) -> Result<(), Refusal> {
        let new = read(&self.key, &self.config)?;
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient")
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

/// Connects tonic's channels, with or without TLS; for
/// `Endpoint::connect_with_connector_lazy`. With TLS the scheme of the URI does
/// not matter, and each connection begins with the newest certificates.
///
/// Both the connection and the handshake fall under the endpoint's
/// `connect_timeout`.
#[derive(Clone, Debug)]
pub struct Connector {
    tcp: HttpConnector,
    tls: Option<(TlsClient, ServerName<'static>)>,
}

impl Connector {
    /// Makes a connector without TLS.
    pub fn plaintext() -> Self {
        Self {
            tcp: tcp(),
            tls: None,
        }
    }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    tcp
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = StdError;
    type Future = BoxFuture<'static, Result<TokioIo<Stream>, StdError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.tcp.call(uri);
        let tls = self
            .tls
            .as_ref()
            .map(|(tls, name)| (TlsConnector::from(tls.rustls()), name.clone()));
        Box::pin(async move {
            let stream = connecting.await?.into_inner();
            let stream = match tls {
                None => Stream::Plain(stream),
                Some((tls, name)) => Stream::Tls(Box::new(tls.connect(name, stream).await?.into())),
            };
            Ok(TokioIo::new(stream))
        })
    }
}
