//! Certificates and keys from PEM files, with what is wrong about them in words.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use x509_cert::Certificate;
use x509_cert::der::Decode as _;

use crate::clock::{Clock as _, SystemClock};
use crate::config::Faults;

/// Largest file that is read; a bundle of all public authorities has 250 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Seconds that the other side's clock may be ahead of ours.
const SKEW_SECONDS: i64 = 60;

/// A certificate chain with its key, ready to be shown.
pub(super) struct Identity {
    pub(super) key: Arc<CertifiedKey>,
    /// When the first of the chain expires, Unix seconds.
    pub(super) expires: i64,
}

/// The one provider of cryptography.
pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Reads a certificate and its key; `None` after a fault. Faults stand under
/// `cert_file` and `key_file`.
pub(super) fn identity(
    cert_file: &Path,
    key_file: &Path,
    provider: &CryptoProvider,
    faults: &mut Faults,
) -> Option<Identity> {
    let chain = chain("cert_file", cert_file, faults);
    let key = key(key_file, faults);
    let (chain, key) = (chain?, key?);
    let expires = validity(cert_file, &chain, faults)?;
    let shown = key_file.display();
    let Ok(key) = provider.key_provider.load_private_key(key) else {
        faults.invalid(
            "key_file",
            format!("{shown} holds a key of a kind that is not supported"),
            "an RSA key of 2,048 bits or more, ECDSA P-256, P-384 or P-521, or Ed25519",
            "make a key of such a kind, and a certificate for it",
        );
        return None;
    };
    let key = CertifiedKey::new(chain, key);
    match key.keys_match() {
        // Unknown: a kind of key that can't tell its public half.
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {
            Some(Identity {
                key: Arc::new(key),
                expires,
            })
        }
        Err(_) => {
            faults.invalid(
                "key_file",
                format!(
                    "{shown} does not belong to the certificate in {}",
                    cert_file.display()
                ),
                "the private key of the first certificate in cert_file",
                "replace both files together, and put the server's own certificate before its chain",
            );
            None
        }
    }
}

/// Reads authorities; `None` after a fault.
pub(super) fn roots(field: &str, file: &Path, faults: &mut Faults) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in chain(field, file, faults)? {
        if roots.add(certificate).is_err() {
            faults.invalid(
                field,
                format!("{} holds a certificate that is none", file.display()),
                "certificates of authorities, PEM",
                "remove what is damaged",
            );
            return None;
        }
    }
    Some(roots)
}

/// The certificates of a file, at least one.
fn chain(field: &str, file: &Path, faults: &mut Faults) -> Option<Vec<CertificateDer<'static>>> {
    let bytes = read(field, file, faults)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Some(chain),
        Ok(_) | Err(_) => {
            faults.invalid(
                field,
                format!(
                    "{} holds no certificates in PEM, or damaged ones",
                    file.display()
                ),
                "-----BEGIN CERTIFICATE----- blocks",
                "convert the file to PEM, or name another one",
            );
            None
        }
    }
}

/// The private key of a file. Errors of the parser repeat lines, so they are not
/// passed on.
fn key(file: &Path, faults: &mut Faults) -> Option<PrivateKeyDer<'static>> {
    let bytes = read("key_file", file, faults)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes).ok();
    if key.is_none() {
        faults.invalid(
            "key_file",
            format!("{} holds no private key in PEM", file.display()),
            "a -----BEGIN PRIVATE KEY----- block without a passphrase",
            "convert the key to PKCS #8 in PEM, or name another file",
        );
    }
    key
}

fn read(field: &str, file: &Path, faults: &mut Faults) -> Option<Vec<u8>> {
    let reading = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(file)?
            .take(FILE_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let problem = match reading() {
        Ok(bytes) if bytes.len() as u64 <= FILE_BYTES_MAX => return Some(bytes),
        Ok(_) => "is larger than 1 MiB".to_owned(),
        Err(error) => format!("can't be read: {error}"),
    };
    faults.invalid(
        field,
        format!("{} {problem}", file.display()),
        "a readable PEM file",
        "correct the path, or let the service's user read it",
    );
    None
}

/// Checks that all of a chain is valid now; returns when the first expires.
fn validity(file: &Path, chain: &[CertificateDer<'_>], faults: &mut Faults) -> Option<i64> {
    let now = SystemClock.now().as_second();
    let shown = file.display();
    let mut first = i64::MAX;
    for certificate in chain {
        let Ok(certificate) = Certificate::from_der(certificate) else {
            faults.invalid(
                "cert_file",
                format!("{shown} holds a certificate that is none"),
                "X.509 certificates",
                "make the certificate anew",
            );
            return None;
        };
        let validity = certificate.tbs_certificate().validity();
        let seconds = |time: x509_cert::time::Time| {
            i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX)
        };
        let (from, until) = (seconds(validity.not_before), seconds(validity.not_after));
        let problem = if until <= now {
            format!("{shown} has expired at {}", at(until))
        } else if from > now + SKEW_SECONDS {
            format!("{shown} is not valid before {}", at(from))
        } else {
            first = first.min(until);
            continue;
        };
        faults.invalid(
            "cert_file",
            problem,
            "certificates that are valid now",
            "renew the certificate, or correct this host's clock",
        );
        return None;
    }
    Some(first)
}

fn at(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "some time".to_owned(), |at| at.to_string())
}
