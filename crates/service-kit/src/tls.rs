//! TLS for listeners and for connections to servers, by rustls.
//!
//! | | configured by | in use | taken in again |
//! |---|---|---|---|
//! | listeners | [`TlsServerConfig`] | [`TlsServer`] | by its [`Reload`](crate::reload::Reload), for handshakes from then on |
//! | connections | [`TlsClientConfig`] | [`TlsClient`], [`Connector`] | likewise |
//!
//! TLS 1.2 and 1.3 with the *ring* provider, passed in everywhere, so nothing
//! depends on a default of the process. Connections that stand keep what they
//! were made with; the ages in [`crate::listener`] and [`crate::grpc`] end them.
//!
//! Files are checked before they are used: missing or unreadable, no PEM, a key
//! that belongs to another certificate, a certificate that has expired or is not
//! valid yet. The texts name the file and the remedy and never what is in a key.
//! "Now" is the host's clock, which is also what rustls verifies peers by.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::{Duration, Faults, Validate};
use crate::metrics::{KeyValue, Metrics};

mod client;
mod failures;
pub(crate) mod local;
mod material;
mod peer;
mod server;
mod stream;

pub use client::{Connector, TlsClient};
pub use peer::PeerNames;
pub use server::{Protocol, TlsServer};
pub use stream::Stream;

pub(crate) use client::server_name;

/// TLS of a listener; without the table the listener is plaintext.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TlsServerConfig {
    /// The certificate and its chain, PEM.
    pub cert_file: PathBuf,
    /// The certificate's private key, PEM: PKCS #8, PKCS #1 or SEC 1.
    pub key_file: PathBuf,
    /// Authorities whose clients are let in, PEM; absent: clients are not asked
    /// for a certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client may come without a certificate; one that it shows is
    /// verified either way. Default `required`; means nothing without
    /// `client_ca_file`.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// Time for a handshake, 100 ms to 60 s. Default 5 s.
    #[serde(default = "handshake_timeout_default")]
    pub handshake_timeout: Duration,
}

fn handshake_timeout_default() -> Duration {
    Duration::from_secs(5)
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// A handshake without one fails.
    #[default]
    Required,
    /// They may; what they show must be good.
    Optional,
}

impl Validate for TlsServerConfig {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range(
            "handshake_timeout",
            self.handshake_timeout,
            Duration::from_millis(100)..=Duration::from_secs(60),
        );
        if self.client_auth == ClientAuth::Optional && self.client_ca_file.is_none() {
            faults.invalid(
                "client_auth",
                "is set without client_ca_file, so no client is asked for a certificate",
                "client_auth together with client_ca_file",
                "set client_ca_file, or remove client_auth",
            );
        }
        server::State::read(self, Protocol::Http, faults);
    }
}

/// TLS to a server that is named by `https://`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TlsClientConfig {
    /// Authorities to trust instead of the system's, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// Our own certificate and its chain, PEM, with `key_file`; absent: none is
    /// shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its private key, PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have, instead of the
    /// endpoint's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

impl Validate for TlsClientConfig {
    fn validate(&self, faults: &mut Faults) {
        client::State::read(self, faults);
        if let Some(name) = &self.server_name
            && server_name(name).is_none()
        {
            faults.invalid(
                "server_name",
                "is no name that a certificate can have",
                "a host name or an IP address",
                "write the name without scheme and port",
            );
        }
    }
}

/// Loads a listener's TLS, if it is configured; faults stand under `key`.
///
/// # Errors
/// Everything that is wrong with the files.
pub fn server(
    key: &str,
    config: Option<&TlsServerConfig>,
    protocol: Protocol,
) -> Result<Option<TlsServer>, Faults> {
    config
        .map(|config| TlsServer::load(key, config, protocol))
        .transpose()
}

/// Shows how many handshakes failed at the listeners of a service that have TLS, each by its name.
pub fn observe_handshakes(metrics: &Metrics, listeners: Vec<(&'static str, TlsServer)>) {
    metrics.counters(
        "passline.tls.handshakes_failed",
        "{handshake}",
        "Connections that ended before their TLS handshake did.",
        move |seen| {
            for (listener, tls) in &listeners {
                let label = KeyValue::new("listener", *listener);
                seen.observe(tls.handshakes_failed(), &[label]);
            }
        },
    );
}

/// What both sides register for reloading.
fn files<'a>(files: impl IntoIterator<Item = Option<&'a PathBuf>>) -> Vec<PathBuf> {
    files.into_iter().flatten().cloned().collect()
}

#[cfg(test)]
mod tests;
