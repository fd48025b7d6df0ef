//! A server that speaks TLS only and verifies its clients.

use std::path::Path;
use std::time::Duration;

use test_kit::pki::{TestCa, replace};
use test_kit::{TestPostgres, wait_for};

use super::{open, send};
use crate::sql::SqlStore;
use crate::sql::postgres::PostgresOptions;

/// Gives the server and its client certificates by this authority, and has the server take them in. From then on the
/// database can be reached only over TLS and with a certificate.
async fn issue(server: &TestPostgres, database: &str, dir: &Path, ca: &TestCa) {
    let own = ca.issue(&["127.0.0.1"]).expect("certificate");
    let client = ca.issue(&["pass-state.test"]).expect("certificate");
    client.write(dir, "client").expect("files");
    replace(&dir.join("ca.crt"), &ca.pem()).expect("file");
    let data = server.data_dir();
    let file = |name: &str| data.join(name).display().to_string();
    let access = format!(
        "hostssl {database} all 127.0.0.1/32 trust clientcert=verify-ca\nhost postgres all 127.0.0.1/32 trust\n"
    );
    // The server writes its files itself, since they must be its own.
    let mut sql = String::new();
    for (name, text) in [
        ("tls.crt", own.cert),
        ("tls.key", own.key),
        ("ca.crt", ca.pem()),
        ("pg_hba.conf", access),
    ] {
        let path = file(name);
        sql.push_str(&format!(
            "SELECT lo_from_bytea(7001, convert_to('{text}', 'UTF8'));\n\
             SELECT lo_export(7001, '{path}');\nSELECT lo_unlink(7001);\n"
        ));
    }
    sql.push_str(&format!(
        "COPY (SELECT 1) TO PROGRAM 'cat > /dev/null; chmod 600 {}';\n",
        file("tls.key")
    ));
    for (name, value) in [
        ("ssl_cert_file", "tls.crt"),
        ("ssl_key_file", "tls.key"),
        ("ssl_ca_file", "ca.crt"),
        ("ssl", "on"),
    ] {
        sql.push_str(&format!("ALTER SYSTEM SET {name} = '{value}';\n"));
    }
    sql.push_str("SELECT pg_reload_conf();\n");
    let done = server.sql(&server.url("postgres"), &sql).await;
    done.expect("the server takes its files in");
}

/// Waits until a new client gets in: the server's main process needs a moment to read its files.
async fn reached(url: &str) {
    wait_for("TLS", Duration::from_secs(20), async || {
        let opened = SqlStore::open_postgres(PostgresOptions::new(url)).await;
        opened.map(|_| ()).map_err(|error| error.to_string())
    })
    .await
    .expect("a client with its certificate gets in");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_the_connection_are_read_again_for_each_new_one() {
    let server = TestPostgres::start().await.expect("a server");
    let url = server.database().await.expect("a database");
    let database = url.rsplit('/').next().expect("its name");
    let dir = tempfile::tempdir().expect("directory");
    let first = TestCa::new("first").expect("authority");
    issue(&server, database, dir.path(), &first).await;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let secure = format!(
        "{url}?sslmode=verify-full&sslrootcert={}&sslcert={}&sslkey={}",
        file("ca.crt"),
        file("client.crt"),
        file("client.key")
    );
    reached(&secure).await;
    let plain = SqlStore::open_postgres(PostgresOptions::new(url.as_str())).await;
    assert!(plain.is_err(), "it is reached without TLS");
    let store = open(&secure).await;
    send(&*store, 1).await.expect("recorded");

    let second = TestCa::new("second").expect("authority");
    issue(&server, database, dir.path(), &second).await;
    reached(&secure).await;
    // Everybody has to connect anew.
    let cut = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = '{database}'"
    );
    wait_for("new connections", Duration::from_secs(20), async || {
        let cut = server.sql(&server.url("postgres"), &cut).await;
        cut.map_err(|error| error.to_string())?;
        match send(&*store, 2).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
    .expect("the store is back with its new certificate");
}
