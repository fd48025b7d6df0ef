use std::fs;

use test_kit::pki::{TestCa, Validity};

use super::*;

struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let file = self.dir.path().join(name);
        fs::write(&file, text).unwrap();
        file
    }

    fn server(&self, cert: &str, key: &str) -> TlsServerConfig {
        TlsServerConfig {
            cert_file: self.put("cert.pem", cert),
            key_file: self.put("key.pem", key),
            client_ca_file: None,
            client_auth: ClientAuth::Required,
            handshake_timeout: Duration::from_secs(5),
        }
    }
}

fn faults(part: &impl Validate) -> String {
    let mut faults = Faults::default();
    faults.part("tls", part);
    faults.to_string()
}

#[test]
fn what_is_wrong_with_a_certificate_is_told_with_its_field_and_fix() {
    let files = Files::new();
    let ca = TestCa::new("one").unwrap();
    let good = ca.issue(&["a.test"]).unwrap();
    let other = ca.issue(&["b.test"]).unwrap();
    let expired = ca.issue_for(&["a.test"], Validity::Expired).unwrap();
    let future = ca.issue_for(&["a.test"], Validity::Future).unwrap();
    assert_eq!(faults(&files.server(&good.cert, &good.key)), "");
    for (cert, key, field, text) in [
        (&*good.cert, &*other.key, "tls.key_file", "belong"),
        (
            &expired.cert,
            &expired.key,
            "tls.cert_file",
            "expired at 2001-01-01",
        ),
        (
            &future.cert,
            &future.key,
            "tls.cert_file",
            "not valid before 3000",
        ),
        (
            &good.key,
            &good.key,
            "tls.cert_file",
            "no certificates in PEM",
        ),
        ("", &good.key, "tls.cert_file", "no certificates in PEM"),
        (
            &good.cert,
            "secret-text",
            "tls.key_file",
            "no private key in PEM",
        ),
        (
            &good.cert,
            &good.cert,
            "tls.key_file",
            "no private key in PEM",
        ),
        (
            &good.cert,
            &good.key[..80],
            "tls.key_file",
            "no private key in PEM",
        ),
    ] {
        let told = faults(&files.server(cert, key));
        assert!(told.starts_with(field), "{told}");
        assert!(told.contains(text), "{text} is missing in {told}");
        assert!(told.contains("fix: "), "{told}");
        assert!(!told.contains("secret-text"), "{told}");
        assert!(!told.contains(&good.key[30..60]), "{told}");
    }
}

#[test]
fn every_file_that_is_missing_is_told_at_once() {
    let files = Files::new();
    let mut config = files.server("", "");
    config.cert_file = "/nowhere/cert.pem".into();
    config.key_file = "/nowhere/key.pem".into();
    config.client_ca_file = Some("/nowhere/ca.pem".into());
    let told = faults(&config);
    for field in ["tls.cert_file", "tls.key_file", "tls.client_ca_file"] {
        assert!(told.contains(field), "{field} is missing in {told}");
    }
    assert!(told.contains("/nowhere/key.pem can't be read"), "{told}");
}

#[test]
fn keys_that_mean_nothing_together_are_refused() {
    let files = Files::new();
    let ca = TestCa::new("one").unwrap();
    let own = ca.issue(&["a.test"]).unwrap();
    let mut server = files.server(&own.cert, &own.key);
    server.client_auth = ClientAuth::Optional;
    assert!(faults(&server).starts_with("tls.client_auth "));
    server.client_auth = ClientAuth::Required;
    server.handshake_timeout = Duration::from_millis(1);
    assert!(faults(&server).starts_with("tls.handshake_timeout "));

    let ca_file = Some(files.put("ca.pem", &ca.pem()));
    let client = TlsClientConfig {
        ca_file,
        ..TlsClientConfig::default()
    };
    assert_eq!(faults(&client), "");
    for (client, field) in [
        (
            TlsClientConfig {
                cert_file: Some(server.cert_file.clone()),
                ..client.clone()
            },
            "tls.cert_file ",
        ),
        (
            TlsClientConfig {
                key_file: Some(server.key_file.clone()),
                ..client.clone()
            },
            "tls.key_file ",
        ),
        (
            TlsClientConfig {
                server_name: Some("https://a.test".to_owned()),
                ..client.clone()
            },
            "tls.server_name ",
        ),
    ] {
        let told = faults(&client);
        assert!(told.starts_with(field), "{told}");
    }
}

#[test]
fn the_first_of_a_chain_to_expire_is_what_counts() {
    let files = Files::new();
    let ca = TestCa::new("one").unwrap();
    let own = ca.issue(&["a.test"]).unwrap();
    let config = files.server(&own.cert, &own.key);
    let server = TlsServer::load("tls", &config, Protocol::Http).unwrap();
    let year_3000 = 32_503_680_000;
    assert_eq!(server.expires(), year_3000);
}
