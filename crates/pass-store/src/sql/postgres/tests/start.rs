//! Opening: what a server must be, TLS, and the schema.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use pass_domain::delivery::Outcome;
use sea_orm::ConnectionTrait;
use test_kit::{ChaosProxy, TestPostgres, wait_for};

use super::super::PostgresOptions;
use super::super::connect::Connector;
use super::super::migrate::migrate;
use super::{open, send, server};
use crate::contract::{Error, PassStore};
use crate::sql::SqlStore;

async fn refused(url: &str) -> Error {
    let opened = SqlStore::open_postgres(PostgresOptions::new(url)).await;
    opened.expect_err("refused")
}

#[tokio::test]
async fn settings_that_lose_commits_are_refused_with_the_fix() {
    for setting in ["fsync", "full_page_writes"] {
        let server = TestPostgres::start_with(&[(setting, "off")])
            .await
            .expect("a server");
        let url = server.database().await.expect("a database");
        let error = refused(&url).await;
        assert!(
            matches!(&error, Error::Unfit(text) if text.contains(&format!("{setting} is off"))),
            "{error}"
        );
        let tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
        assert_eq!(
            server.sql(&url, tables).await.expect("read"),
            "0",
            "it was left alone"
        );
    }
    let server = server().await;
    let url = server.database().await.expect("a database");
    let store = open(&url).await;
    let text = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET synchronous_commit = off', current_database()); END $$";
    server.sql(&url, text).await.expect("set");
    let error = refused(&url).await;
    assert!(
        matches!(&error, Error::Unfit(text) if text.contains("set synchronous_commit = on")),
        "{error}"
    );
    // A store that is open finds out with its next connection, and waits for somebody to mend it.
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    server.sql(&url, cut).await.expect("cut");
    let error = send(&*store, 1).await.expect_err("unfit");
    assert!(
        matches!(&error, Error::Unavailable(text) if text.contains("set synchronous_commit = on")),
        "{error}"
    );
    store.close().await;
}

#[tokio::test]
async fn a_standby_another_encoding_and_no_server_are_refused() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    open(&url).await.close().await;
    let standby = server.standby().await.expect("a standby");
    let database = url.rsplit('/').next().expect("a name");
    let error = refused(&standby.url(database)).await;
    assert!(
        matches!(&error, Error::Unavailable(text) if text.contains("connected to a standby")),
        "{error}"
    );
    drop(standby);
    let make =
        "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    server
        .sql(&server.url("postgres"), make)
        .await
        .expect("made");
    let error = refused(&server.url("latin")).await;
    assert!(
        matches!(&error, Error::Unfit(text) if text.contains("ENCODING 'UTF8'")),
        "{error}"
    );
    let error = refused(&server.url("nowhere")).await;
    assert!(
        matches!(&error, Error::Unfit(text) if text.contains("make the database")),
        "{error}"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().to_str().expect("a path");
    for away in [
        "postgres://passline@127.0.0.1:1/none".to_owned(),
        // The socket is made by the server, which is not up yet.
        format!("postgres://passline@localhost/none?host={socket}"),
        format!("postgres://passline@localhost/none?host={socket}&sslrootcert=/nowhere"),
    ] {
        let error = refused(&away).await;
        assert!(matches!(error, Error::Unavailable(_)), "{away}: {error}");
    }
}

// Somebody works on the database by hand, or another replica's transaction waits for a standby: opening ends
// in time, and does not wait at all for what it has no need of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opening_waits_for_nobody_longer_than_it_is_told() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let store = open(&url).await;
    let (transaction, _) = store.begin().await.expect("begun");
    let change = "UPDATE log_head SET applied = applied WHERE id = 1";
    transaction
        .execute_unprepared(change)
        .await
        .expect("changed");
    let options = PostgresOptions {
        lock_timeout: Duration::from_millis(200),
        ..PostgresOptions::new(&url)
    };
    let other = SqlStore::open_postgres(options.clone()).await;
    other.expect("the head is there").close().await;
    let lock = "LOCK TABLE seaql_migrations IN ACCESS EXCLUSIVE MODE";
    transaction.execute_unprepared(lock).await.expect("locked");
    let opening = SqlStore::open_postgres(options.clone());
    let opening = tokio::time::timeout(Duration::from_secs(10), opening);
    let error = opening.await.expect("in time").expect_err("it is locked");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");

    // The server falls silent while it is waited for.
    let proxy = ChaosProxy::start(server.address()).await.expect("a proxy");
    let address = server.address().to_string();
    let options = PostgresOptions {
        url: url.replace(&address, &proxy.address().to_string()),
        statement_timeout: Duration::from_secs(2),
        ..PostgresOptions::new(&url)
    };
    let connector = Connector::new(options).expect("a URL");
    let migrating = tokio::spawn(async move { migrate(&connector).await });
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let wait = Duration::from_secs(10);
    wait_for("the lock", wait, async || {
        match server.sql(&url, waiting).await {
            Ok(count) if count == "1" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
    .expect("it waits");
    proxy.pause(true);
    let migrated = tokio::time::timeout(wait, migrating)
        .await
        .expect("in time");
    let error = migrated.expect("ran").expect_err("silence");
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    transaction.rollback().await.expect("rolled back");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_replicas_that_start_at_once_make_one_schema() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let starts: Vec<_> = (0..8)
        .map(|_| tokio::spawn(SqlStore::open_postgres(PostgresOptions::new(&url))))
        .collect();
    let mut epochs = Vec::new();
    for start in starts {
        let store = start.await.expect("ran").expect("opened");
        epochs.push(store.head().await.expect("read").epoch);
        store.close().await;
    }
    assert_eq!(epochs.len(), 8);
    assert!(epochs.iter().all(|epoch| *epoch == epochs[0]), "{epochs:?}");
    let rows = "SELECT (SELECT count(*) FROM log_head), (SELECT count(*) = count(DISTINCT version) FROM seaql_migrations)";
    assert_eq!(server.sql(&url, rows).await.expect("read"), "1|t");
}

#[tokio::test]
async fn an_older_schema_waits_and_a_newer_one_is_used_unless_it_takes_away() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let off = || {
        SqlStore::open_postgres(PostgresOptions {
            migrate: false,
            ..PostgresOptions::new(&url)
        })
    };
    let error = off().await.expect_err("there is no schema");
    assert!(
        matches!(error, Error::NotMigrated { lacking: 4 }),
        "{error}"
    );
    open(&url).await.close().await;
    let store = off().await.expect("opened");
    assert_eq!(send(&store, 1).await.expect("sent"), Outcome::Applied);
    store.close().await;
    let newer = "INSERT INTO seaql_migrations VALUES ('m29990101_000001_from_the_future', 1)";
    server.sql(&url, newer).await.expect("inserted");
    for opened in [
        off().await,
        SqlStore::open_postgres(PostgresOptions::new(&url)).await,
    ] {
        let store = opened.expect("opened: it only adds");
        let sequence = store.head().await.expect("read").position.0 + 1;
        assert_eq!(
            send(&store, sequence).await.expect("sent"),
            Outcome::Applied
        );
        store.close().await;
    }
    let contracts =
        "INSERT INTO seaql_migrations VALUES ('m29990101_000002_needs_29990101_000001_drop', 1)";
    server.sql(&url, contracts).await.expect("inserted");
    for error in [off().await.err(), Some(refused(&url).await)] {
        let error = error.expect("it lacks what was dropped");
        assert!(
            matches!(&error, Error::Unfit(text) if text.contains("or a newer one")),
            "{error}"
        );
    }
}

async fn open_as(url: &str, role: &str, migrate: bool) -> Result<SqlStore, Error> {
    let (_, address) = url.split_once('@').expect("a user");
    let role = role.replace(' ', "%20");
    let options = PostgresOptions {
        migrate,
        ..PostgresOptions::new(format!("postgres://{role}@{address}"))
    };
    SqlStore::open_postgres(options).await
}

/// One role owns the tables, another one uses them: what it lacks is told with the statement that gives it.
#[tokio::test]
async fn a_role_without_rights_waits_and_is_told_what_to_grant() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let sql = async |text: &str| server.sql(&url, text).await.expect("run");
    // Roles are the server's, which other tests share.
    let database = url.rsplit('/').next().expect("a name");
    let (owner, app) = (format!("{database}_owner"), format!("{database} app"));
    sql(&format!(
        "CREATE ROLE \"{owner}\" LOGIN; CREATE ROLE \"{app}\" LOGIN; GRANT CREATE ON SCHEMA public TO \"{owner}\""
    ))
    .await;
    let as_role = async |role: &str, migrate| open_as(&url, role, migrate).await;
    let waits = |opened: Result<SqlStore, Error>| match opened.expect_err("it lacks rights") {
        Error::Unavailable(text) => text,
        error => panic!("{error}"),
    };
    let cannot = waits(as_role(&app, true).await);
    assert!(
        cannot.contains("42501") && cannot.contains("pass-state migrate"),
        "{cannot}"
    );
    as_role(&owner, true).await.expect("migrated").close().await;
    let tables = sql(
        "SELECT string_agg(tablename, ' ' ORDER BY tablename) FROM pg_tables WHERE schemaname = 'public'",
    );
    let expected =
        "delivery delivery_personal event log_head pass quarantine seaql_migrations spool";
    assert_eq!(tables.await, expected, "what NOT_GRANTED looks at");

    let grant =
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO \"{app}\"");
    for migrate in [true, false] {
        let told = waits(as_role(&app, migrate).await);
        assert!(
            told.contains("8 tables") && told.ends_with(&grant),
            "{told}"
        );
    }
    sql(&format!("GRANT SELECT ON seaql_migrations TO \"{app}\"")).await;
    let told = waits(as_role(&app, false).await);
    assert!(
        told.contains("7 tables") && told.ends_with(&grant),
        "{told}"
    );
    sql("REVOKE USAGE ON SCHEMA public FROM PUBLIC").await;
    let told = waits(as_role(&app, false).await);
    let usage = format!("GRANT USAGE ON SCHEMA public TO \"{app}\"; {grant}");
    assert!(told.ends_with(&usage), "{told}");
    sql(&usage).await;
    let store = as_role(&app, false).await.expect("opened");
    assert_eq!(send(&store, 1).await.expect("sent"), Outcome::Applied);
    store.close().await;

    // The same, in advance.
    let url = server.database().await.expect("a database");
    let sql = async |text: &str| server.sql(&url, text).await.expect("run");
    sql(&format!(
        "GRANT CREATE ON SCHEMA public TO \"{owner}\"; ALTER DEFAULT PRIVILEGES FOR ROLE \"{owner}\" IN SCHEMA public \
         GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO \"{app}\""
    ))
    .await;
    let as_role = async |role: &str, migrate| open_as(&url, role, migrate).await;
    as_role(&owner, true).await.expect("migrated").close().await;
    let store = as_role(&app, false).await.expect("opened");
    assert_eq!(send(&store, 1).await.expect("sent"), Outcome::Applied);
    store.close().await;
}

#[tokio::test]
async fn readers_cannot_write_and_a_server_has_tools_of_its_own_for_backups() {
    let server = server().await;
    let url = server.database().await.expect("a database");
    let store = open(&url).await;
    let error = store
        .readers()
        .execute_unprepared("UPDATE log_head SET position = 5")
        .await
        .expect_err("it only reads");
    assert!(
        matches!(store.classify(&error), Error::Unavailable(_)),
        "{error}"
    );
    let error = store
        .backup(Path::new("/nowhere"))
        .await
        .expect_err("not here");
    assert!(
        matches!(&error, Error::Unfit(text) if text.contains("pg_dump")),
        "{error}"
    );
    store.close().await;
    let closed = send(&*store, 1).await;
    assert!(
        matches!(closed, Ok(_) | Err(Error::Unavailable(_))),
        "{closed:?}"
    );
}

/// Makes an authority, and a certificate of its for `localhost`.
fn certificate(directory: &Path, authority: &str, name: &str) {
    let run = |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(directory)
            .output()
            .expect("openssl is installed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
    };
    let key = format!("{authority}.key");
    let file = format!("{authority}.crt");
    run(&[
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &format!("/CN={authority}"),
        "-keyout",
        &key,
        "-out",
        &file,
    ]);
    let alternative = format!("subjectAltName=DNS:{name}");
    run(&[
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-subj",
        &format!("/CN={name}"),
        "-addext",
        &alternative,
        "-keyout",
        "server.key",
        "-out",
        "server.csr",
    ]);
    run(&[
        "x509",
        "-req",
        "-in",
        "server.csr",
        "-CA",
        &file,
        "-CAkey",
        &key,
        "-CAcreateserial",
        "-days",
        "2",
        "-copy_extensions",
        "copy",
        "-out",
        "server.crt",
    ]);
}

#[tokio::test]
async fn a_certificate_is_checked_as_far_as_the_url_says() {
    let directory = tempfile::tempdir().expect("a directory");
    certificate(directory.path(), "stranger", "localhost");
    certificate(directory.path(), "authority", "localhost");
    let mut server = TestPostgres::start().await.expect("a server");
    let url = server.database().await.expect("a database");
    let plain = refused(&format!("{url}?sslmode=require")).await;
    assert!(matches!(plain, Error::Unfit(_)), "{plain}");
    for file in ["server.key", "server.crt"] {
        let to = server.data_dir().join(file);
        std::fs::copy(directory.path().join(file), &to).expect("copied");
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let owner = server.data_dir().metadata().expect("there");
        std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).expect("given");
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).expect("set");
    }
    server
        .sql(&url, "ALTER SYSTEM SET ssl = on")
        .await
        .expect("set");
    server.restart().await.expect("started anew");
    let named = url.replace("127.0.0.1", "localhost");
    let root = |name: &str| {
        directory
            .path()
            .join(format!("{name}.crt"))
            .display()
            .to_string()
    };
    let good = format!(
        "{named}?sslmode=verify-full&sslrootcert={}",
        root("authority")
    );
    let store: Arc<SqlStore> = open(&good).await;
    assert_eq!(send(&*store, 1).await.expect("sent"), Outcome::Applied);
    store.head().await.expect("read");
    let encrypted = "SELECT count(*) > 1 AND bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE application_name = 'passline'";
    assert_eq!(server.sql(&url, encrypted).await.expect("read"), "t");
    store.close().await;
    let bad = [
        format!(
            "{named}?sslmode=verify-full&sslrootcert={}",
            root("stranger")
        ),
        format!("{named}?sslmode=verify-ca&sslrootcert={}", root("stranger")),
        // The certificate is not for the address.
        format!(
            "{url}?sslmode=verify-full&sslrootcert={}",
            root("authority")
        ),
        format!(
            "{named}?sslmode=verify-full&sslrootcert={}",
            root("missing")
        ),
    ];
    for url in bad {
        let error = refused(&url).await;
        assert!(matches!(error, Error::Unfit(_)), "{url}: {error}");
    }
}
