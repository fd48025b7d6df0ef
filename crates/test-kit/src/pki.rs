//! Certificate authorities and certificates for tests of TLS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};

/// An authority that exists for one test; its certificates are good for both sides of a connection.
pub struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct TestCertificate {
    /// The certificate.
    pub cert: String,
    /// Its private key, PKCS #8.
    pub key: String,
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Current,
    /// It was, until 2001.
    Expired,
    /// It will be, from 3000.
    Future,
}

impl TestCa {
    /// Makes an authority with a name of its own.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        Ok(Self { issuer })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    /// Makes a certificate for these host names, IP addresses and URIs.
    ///
    /// # Errors
    /// If a name is none.
    pub fn issue(&self, names: &[&str]) -> anyhow::Result<TestCertificate> {
        self.issue_for(names, Validity::Current)
    }

    /// Makes a certificate that is valid at some time.
    ///
    /// # Errors
    /// If a name is none.
    pub fn issue_for(&self, names: &[&str], validity: Validity) -> anyhow::Result<TestCertificate> {
        let (uris, names): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| name.contains("://"));
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names)?;
        for uri in uris {
            let uri = Ia5String::try_from(uri).context("a URI is ASCII")?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = match validity {
            Validity::Current => (date_time_ymd(2000, 1, 1), date_time_ymd(3000, 1, 1)),
            Validity::Expired => (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1)),
            Validity::Future => (date_time_ymd(3000, 1, 1), date_time_ymd(3001, 1, 1)),
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(TestCertificate {
            cert: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl TestCertificate {
    /// Writes `NAME.crt` and `NAME.key` into a directory, over what is there; returns their paths.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn write(&self, dir: &Path, name: &str) -> anyhow::Result<(PathBuf, PathBuf)> {
        let (cert, key) = (
            dir.join(format!("{name}.crt")),
            dir.join(format!("{name}.key")),
        );
        replace(&cert, &self.cert)?;
        replace(&key, &self.key)?;
        Ok((cert, key))
    }
}

/// Replaces a file in one step, as anybody should who replaces what is being read.
///
/// # Errors
/// If it can't be written.
pub fn replace(file: &Path, text: &str) -> anyhow::Result<()> {
    let new = file.with_extension("new");
    fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, file).with_context(|| format!("replacing {}", file.display()))
}
