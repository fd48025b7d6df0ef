//! Who is on the other side, by the certificate that was verified.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

/// Most names of one certificate that are kept.
const NAMES_MAX: usize = 256;

/// The names of a client's verified certificate: the DNS names (in lower case)
/// and URIs of its subject alternative names. Empty without TLS, or where the
/// client showed no certificate. The subject's common name is no identity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerNames {
    certificate: bool,
    names: Arc<[String]>,
}

impl PeerNames {
    /// Reads the names of the client's own certificate, the first of what it showed. Only
    /// for certificates that the handshake has verified.
    pub(super) fn of(shown: Option<&[CertificateDer<'_>]>) -> Self {
        let Some([own, ..]) = shown else {
            return Self::default();
        };
        let names = match webpki::EndEntityCert::try_from(own) {
            Ok(own) => own
                .valid_dns_names()
                .map(str::to_ascii_lowercase)
                .chain(own.valid_uri_names().map(str::to_owned))
                .take(NAMES_MAX)
                .collect(),
            // It was verified by the same parser.
            Err(_) => Arc::default(),
        };
        Self {
            certificate: true,
            names,
        }
    }

    /// Says whether a certificate was shown and verified; it may have no names.
    pub fn is_authenticated(&self) -> bool {
        self.certificate
    }

    /// Lists the names.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Says whether `name` is one of them, letter by letter: write DNS names in
    /// lower case. A wildcard is a name like any other.
    pub fn contains(&self, name: &str) -> bool {
        self.iter().any(|one| one == name)
    }
}

impl<S: Into<String>> FromIterator<S> for PeerNames {
    /// The names of a certificate that a test makes up.
    fn from_iter<I: IntoIterator<Item = S>>(names: I) -> Self {
        Self {
            certificate: true,
            names: names.into_iter().map(Into::into).collect(),
        }
    }
}
