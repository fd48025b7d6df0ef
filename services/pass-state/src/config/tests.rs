use std::collections::BTreeSet;
use std::path::Path;

use service_kit::config::load;

use super::*;

const EXAMPLE: &str = include_str!("../../pass-state.example.toml");

fn keys(value: &toml::Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => table
            .iter()
            .for_each(|(key, value)| keys(value, &format!("{path}.{key}"), found)),
        _ => {
            found.insert(path.to_owned());
        }
    }
}

#[test]
fn the_example_shows_every_key_with_its_default() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), EXAMPLE).unwrap();
    let sources = Sources {
        file: Some(file.path().to_owned()),
        env_prefix: ENV_PREFIX,
        ..Sources::default()
    };
    let loaded: Config = load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
    let tree = |config: &Config| toml::Value::try_from(config).unwrap();
    assert_eq!(tree(&loaded), tree(&Config::default()));

    let (mut shown, mut known) = (BTreeSet::new(), BTreeSet::new());
    keys(&toml::from_str(EXAMPLE).unwrap(), "", &mut shown);
    keys(&tree(&Config::default()), "", &mut known);
    known.retain(|key| !key.contains("planted_"));
    assert_eq!(shown, known);
    for absent in [
        "# path =",
        "# url =",
        "# otlp_endpoint =",
        "# principals_file =",
    ] {
        assert!(EXAMPLE.contains(absent), "{absent} has no default value");
    }
}

/// The keys of TLS have no defaults, since they name files.
#[test]
fn the_keys_of_tls_in_the_example_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let ca = test_kit::pki::TestCa::new("ca").unwrap();
    let own = ca.issue(&["a.test"]).unwrap();
    for name in ["grpc", "admin", "pass-state"] {
        own.write(dir.path(), name).unwrap();
    }
    for name in ["clients-ca.crt", "collector-ca.crt"] {
        test_kit::pki::replace(&dir.path().join(name), &ca.pem()).unwrap();
    }
    let file = dir.path().join("pass-state.toml");
    let text = EXAMPLE
        .replace("#+ ", "")
        .replace("/etc/passline/tls", dir.path().to_str().unwrap());
    std::fs::write(&file, text).unwrap();
    let sources = Sources {
        file: Some(file),
        env_prefix: ENV_PREFIX,
        ..Sources::default()
    };
    let config: Config = load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(
        config.grpc.tls.unwrap().client_auth,
        config.admin.tls.unwrap().client_auth
    );
    assert_eq!(config.grpc.health_listen.unwrap().port(), 50052);
    std::fs::remove_file(dir.path().join("grpc.key")).unwrap();
    let faults = load::<Config>(&sources).unwrap_err().to_string();
    assert!(faults.starts_with("grpc.tls.key_file (file "), "{faults}");
}

#[test]
fn a_telemetry_table_without_a_name_keeps_the_services_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[telemetry]\nlog_format = \"json\"\n").unwrap();
    let sources = Sources {
        file: Some(file.path().to_owned()),
        env_prefix: ENV_PREFIX,
        ..Sources::default()
    };
    let config: Config = load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.telemetry.service_name, SERVICE_NAME);
}

#[test]
fn all_faults_are_told_at_once() {
    let sources = Sources {
        env_prefix: ENV_PREFIX,
        env: [
            ("PASS_STATE__WRITER__QUEUE_MAX", "0"),
            ("PASS_STATE__SUBSCRIPTIONS__STALL_TIMEOUT", "1ms"),
            ("PASS_STATE__STORE__MIGRATIONS", "never"),
            ("PASS_STATE__GRPC__LISTEM", "127.0.0.1:1"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec(),
        ..Sources::default()
    };
    let faults = load::<Config>(&sources).unwrap_err().to_string();
    for part in ["queue_max", "stall_timeout", "migrations", "listem"] {
        assert!(faults.contains(part), "{part} in:\n{faults}");
    }
}

/// What loading these variables finds wrong, one fault a line.
fn faults_of(env: &[(&str, &str)]) -> String {
    let sources = Sources {
        env_prefix: ENV_PREFIX,
        env: env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Sources::default()
    };
    match load::<Config>(&sources) {
        Ok(_) => String::new(),
        Err(faults) => faults.to_string(),
    }
}

const BACKEND: (&str, &str) = ("PASS_STATE__STORE__BACKEND", "postgres");
const URL: (&str, &str) = ("PASS_STATE__STORE__POSTGRES__URL", "{ env = \"DB_URL\" }");

#[test]
fn the_url_of_the_database_comes_from_a_secret() {
    for url in ["postgres://u:p@db:5432/log", "postgresql:///log"] {
        assert_eq!(faults_of(&[BACKEND, URL, ("DB_URL", url)]), "");
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "postgres://u:hidden@db/log\n").unwrap();
    let from_file = format!("{{ file = {:?} }}", file.path());
    let env = [
        (BACKEND.0.to_owned(), BACKEND.1.to_owned()),
        (URL.0.to_owned(), from_file),
    ];
    let sources = Sources {
        env_prefix: ENV_PREFIX,
        env: env.to_vec(),
        ..Sources::default()
    };
    let config: Config = load(&sources).unwrap_or_else(|faults| panic!("{faults}"));
    let url = config.store.postgres.url_text();
    assert_eq!(url, Some("postgres://u:hidden@db/log"));
    let shown = format!("{config:?}{}", toml::to_string(&config).unwrap());
    assert!(!shown.contains("hidden"), "{shown}");
}

#[test]
fn a_database_that_fits_no_backend_is_told_with_its_fix_and_never_its_url() {
    let missing = faults_of(&[BACKEND]);
    assert!(missing.starts_with("store.postgres.url "), "{missing}");
    assert!(missing.contains("{ file = "), "{missing}");
    for url in [
        "mysql://u:hidden@db/log",
        "hidden",
        "postgres://",
        "postgres://u:hidden@db/a b",
    ] {
        let bad = faults_of(&[BACKEND, URL, ("DB_URL", url)]);
        assert!(bad.starts_with("store.postgres.url "), "{url}: {bad}");
        assert!(!bad.contains("hidden"), "{bad}");
    }
    let unused = faults_of(&[URL, ("DB_URL", "postgres://u:hidden@db/log")]);
    assert!(unused.contains("store.backend = \"postgres\""), "{unused}");
    let both = faults_of(&[
        BACKEND,
        URL,
        ("DB_URL", "postgres://db/log"),
        ("PASS_STATE__STORE__PATH", "/var/lib/log.db"),
    ]);
    assert!(both.starts_with("store.path "), "{both}");
    let bounds = faults_of(&[
        ("PASS_STATE__STORE__POSTGRES__READERS_MAX", "0"),
        ("PASS_STATE__STORE__POSTGRES__COMMIT_TIMEOUT", "1ms"),
    ]);
    assert!(bounds.contains("store.postgres.readers_max"), "{bounds}");
    assert!(bounds.contains("store.postgres.commit_timeout"), "{bounds}");
}

#[test]
fn the_database_lies_under_the_data_directory_unless_configured() {
    let mut store = StoreConfig::default();
    assert_eq!(
        store.path(Path::new("/data")),
        Path::new("/data/pass-state/passline.db")
    );
    store.path = Some("/else/where.db".into());
    assert_eq!(store.path(Path::new("/data")), Path::new("/else/where.db"));
}
