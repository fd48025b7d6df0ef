//! Servers that speak TLS only and verify their clients.

use std::path::Path;

use test_kit::pki::{TestCa, replace};

use super::*;

/// Puts a certificate for the server and one for the gateway, and their authority, into a directory.
fn issue(dir: &Path, ca: &TestCa) {
    for (name, host) in [("server", "127.0.0.1"), ("gateway", "gateway.test")] {
        let certificate = ca.issue(&[host]).expect("certificate");
        certificate.write(dir, name).expect("files");
    }
    replace(&dir.join("ca.crt"), &ca.pem()).expect("file");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_verifies_clients_gets_records_also_after_every_certificate_changed() {
    let dir = tempfile::tempdir().expect("directory");
    issue(dir.path(), &TestCa::new("first").expect("authority"));
    let file = |name: &str| dir.path().join(name);
    let more = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}\n",
        file("server.crt"),
        file("server.key"),
        file("ca.crt")
    );
    let mut bench = Bench::with(NatsSettings {
        more,
        ..NatsSettings::default()
    })
    .await;
    bench.options.servers = vec![format!("tls://{}", bench.nats.address())];
    bench.options.tls_required = true;
    bench.options.tls_ca = Some(file("ca.crt"));
    bench.options.connect_timeout = Duration::from_secs(2);
    let refused = JetStreamSpool::open(bench.options.clone()).await;
    assert!(refused.is_err(), "no certificate was shown");
    bench.options.tls_identity = Some((file("gateway.crt"), file("gateway.key")));
    bench.options.connect_timeout = Duration::from_secs(10);
    let spool = bench.open_in_turn().await;
    append(&spool, 1..=2).await;

    issue(dir.path(), &TestCa::new("second").expect("authority"));
    bench.nats.restart().await.expect("restart");
    wait_for("appends", DEADLINE, async || {
        spool.append(fresh_id(), record(3)).await.map(|_| ())
    })
    .await
    .expect("the gateway is back with its new certificate");
    spool.close().await;
}
