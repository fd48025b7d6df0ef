//! A process's own listener, asked by another run of the same program.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Stream, TlsServerConfig, material};
use crate::config::Faults;

/// Connects to a listener of this configuration on this machine, such as to ask
/// for its health.
///
/// Which certificate the listener shows doesn't matter: it is ours, made for the
/// names that others use, and may just be replaced. So nothing may be sent that a
/// stranger on this port must not see. Where the listener wants a certificate,
/// its own one is shown; it is let in if its authority is in `client_ca_file`.
pub(crate) async fn connect(
    addr: SocketAddr,
    config: Option<&TlsServerConfig>,
) -> io::Result<Stream> {
    let stream = TcpStream::connect(addr).await?;
    let Some(config) = config else {
        return Ok(Stream::Plain(stream));
    };
    let connector = TlsConnector::from(client(config).map_err(io::Error::other)?);
    let stream = connector.connect(addr.ip().into(), stream).await?;
    Ok(Stream::Tls(Box::new(stream.into())))
}

fn client(config: &TlsServerConfig) -> Result<Arc<ClientConfig>, Faults> {
    let provider = material::provider();
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(Arc::clone(&provider))));
    let mut faults = Faults::default();
    let client = if config.client_ca_file.is_some() {
        let (cert, key) = (&config.cert_file, &config.key_file);
        let identity = material::identity(cert, key, &provider, &mut faults).ok_or(faults)?;
        builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.key)))
    } else {
        builder.with_no_client_auth()
    };
    Ok(Arc::new(client))
}

/// Takes any certificate, as long as the server has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
