//! Certificates of a fleet, and what a test's own clients need to speak with it.
//!
//! One directory holds them all, one file the authorities that everybody trusts; so a test rotates them as an
//! operator does, by replacing files.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use service_kit::tls::{Connector, TlsClient, TlsClientConfig};
use tempfile::TempDir;
use test_kit::pki::{TestCa, replace};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Certificates by the names of their files, and the names in them.
const CERTIFICATES: [(&str, &[&str]); 4] = [
    ("http", &["127.0.0.1"]),
    ("state", &["127.0.0.1"]),
    ("gateway", &["gateway.test", "spiffe://test/gateway"]),
    ("reader", &["reader.test"]),
];

/// The certificates of a fleet.
#[derive(Debug)]
pub struct Pki {
    dir: TempDir,
}

impl Pki {
    /// Makes everybody's certificate by this authority, which everybody trusts.
    ///
    /// # Errors
    /// If files can't be written.
    pub fn new(ca: &TestCa) -> anyhow::Result<Self> {
        let pki = Self {
            dir: TempDir::with_prefix("passline-pki-")?,
        };
        pki.trust(&[ca])?;
        pki.issue(ca)?;
        Ok(pki)
    }

    /// From here on everybody trusts these.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn trust(&self, authorities: &[&TestCa]) -> anyhow::Result<()> {
        let all: String = authorities.iter().map(|ca| ca.pem()).collect();
        replace(&self.file("ca.crt"), &all)
    }

    /// Replaces everybody's certificate and key.
    ///
    /// # Errors
    /// If a file can't be written.
    pub fn issue(&self, ca: &TestCa) -> anyhow::Result<()> {
        CERTIFICATES
            .iter()
            .try_for_each(|(name, _)| self.issue_one(name, ca))
    }

    /// Replaces one certificate and its key.
    ///
    /// # Errors
    /// If there is no such name, or a file can't be written.
    pub fn issue_one(&self, name: &str, ca: &TestCa) -> anyhow::Result<()> {
        let (_, names) = CERTIFICATES
            .iter()
            .find(|(known, _)| *known == name)
            .with_context(|| format!("no certificate is called {name}"))?;
        ca.issue(names)?.write(self.dir.path(), name)?;
        Ok(())
    }

    /// A file by its name.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The keys of a listener that shows this certificate.
    pub fn listener(&self, name: &str) -> String {
        format!(
            "cert_file = {:?}\nkey_file = {:?}\n",
            self.file(&format!("{name}.crt")),
            self.file(&format!("{name}.key"))
        )
    }

    /// The key of a listener that lets in only who has a certificate.
    pub fn mutual(&self) -> String {
        format!("client_ca_file = {:?}\n", self.file("ca.crt"))
    }

    /// The gateway's tables.
    pub fn gateway_tables(&self) -> String {
        format!(
            "[http.tls]\n{}\n[pass_state.tls]\nca_file = {:?}\n{}\n[reload]\ninterval = \"1s\"\n",
            self.listener("http"),
            self.file("ca.crt"),
            self.listener("gateway")
        )
    }

    /// pass-state's tables.
    pub fn state_tables(&self) -> String {
        format!(
            "[grpc.tls]\n{}{}\n[reload]\ninterval = \"1s\"\n",
            self.listener("state"),
            self.mutual()
        )
    }

    /// Connects tonic's channels to pass-state, with the certificate of this name if any, as it is now.
    ///
    /// # Errors
    /// If the files can't be read.
    pub fn connector(&self, name: Option<&str>) -> anyhow::Result<Connector> {
        let file = |ending: &str| name.map(|name| self.file(&format!("{name}.{ending}")));
        let config = TlsClientConfig {
            ca_file: Some(self.file("ca.crt")),
            cert_file: file("crt"),
            key_file: file("key"),
            server_name: None,
        };
        TlsClient::load("reader", &config)?
            .connector("127.0.0.1")
            .context("an address is a name")
    }

    /// Connects to a gateway as a vendor does: trusts who is trusted now, and shows nothing.
    ///
    /// # Errors
    /// If the connection or the handshake fails.
    pub async fn https(&self, address: SocketAddr) -> anyhow::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(address.ip());
        Ok(vendor(&self.file("ca.crt"))?.connect(name, stream).await?)
    }
}

/// A client of HTTP/1.1 over TLS that trusts the authorities of a file.
fn vendor(ca_file: &Path) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_file_iter(ca_file)? {
        roots.add(authority?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}
