use std::io::Write as _;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct Whole {
    http: Http,
    sources: Vec<Source>,
    token: Option<SecretSource>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(default)]
struct Http {
    listen: std::net::SocketAddr,
    body_bytes_max: ByteSize,
    handler_timeout: Duration,
    workers: u16,
    ratio: f64,
    verbose: bool,
    names: Vec<String>,
    label: String,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: ([127, 0, 0, 1], 8080).into(),
            body_bytes_max: ByteSize::from_kib(256),
            handler_timeout: Duration::from_secs(8),
            workers: 2,
            ratio: 1.0,
            verbose: false,
            names: Vec::new(),
            label: String::new(),
        }
    }
}

#[derive(Debug, Deserialize, Serialize)]
struct Source {
    name: String,
    vendor: String,
    #[serde(default)]
    keys: Vec<SecretSource>,
}

impl Validate for Whole {
    fn validate(&self, faults: &mut Faults) {
        faults.part("http", &self.http);
    }
}

impl Validate for Http {
    fn validate(&self, faults: &mut Faults) {
        faults.in_range(
            "body_bytes_max",
            self.body_bytes_max,
            ByteSize::from_bytes(1)..=ByteSize::from_mib(1),
        );
        faults.in_range("workers", self.workers, 1..=64);
    }
}

fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Whole, Faults> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    load(&Sources {
        file: Some(file.path().to_owned()),
        env_prefix: "GATEWAY",
        env: env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        section: None,
    })
}

fn paths(faults: &Faults) -> Vec<&str> {
    let mut paths: Vec<&str> = faults.iter().map(|fault| fault.path.as_str()).collect();
    paths.sort_unstable();
    paths
}

#[test]
fn nothing_given_means_defaults() {
    let config: Whole = load(&Sources::default()).unwrap();
    assert_eq!(config.http.body_bytes_max, ByteSize::from_kib(256));
}

#[test]
fn environment_wins_over_file_and_file_over_default() {
    let config = load_text(
        "[http]\nworkers = 3\nhandler_timeout = \"1s\"\n",
        &[
            ("GATEWAY__HTTP__WORKERS", "5"),
            ("OTHER__HTTP__WORKERS", "9"),
        ],
    )
    .unwrap();
    assert_eq!(config.http.workers, 5);
    assert_eq!(config.http.handler_timeout, Duration::from_secs(1));
    assert_eq!(config.http.body_bytes_max, ByteSize::from_kib(256));
}

#[test]
fn environment_values_become_what_the_target_wants() {
    let config = load_text(
        "",
        &[
            ("GATEWAY__HTTP__WORKERS", "7"),
            ("GATEWAY__HTTP__RATIO", "0.5"),
            ("GATEWAY__HTTP__VERBOSE", "true"),
            ("GATEWAY__HTTP__NAMES", "[\"a\", \"b\"]"),
            // A string target keeps what looks like a number.
            ("GATEWAY__HTTP__LABEL", "0123"),
            ("GATEWAY__HTTP__BODY_BYTES_MAX", "512KiB"),
            ("GATEWAY__TOKEN", "{ env = \"TOKEN_HERE\" }"),
            ("TOKEN_HERE", "s3cret"),
        ],
    )
    .unwrap();
    assert_eq!(config.http.workers, 7);
    assert!((config.http.ratio - 0.5).abs() < f64::EPSILON);
    assert!(config.http.verbose);
    assert_eq!(config.http.names, ["a", "b"]);
    assert_eq!(config.http.label, "0123");
    assert_eq!(config.http.body_bytes_max, ByteSize::from_kib(512));
    assert_eq!(config.token.unwrap().expose(), b"s3cret");
}

#[test]
fn all_faults_are_reported_at_once_with_place_and_fix() {
    let faults = load_text(
        r#"
            surprise = 1
            [http]
            lisen = "127.0.0.1:1"
            body_bytes_max = "2MiB"
            handler_timeout = 5
            verbose = "yes"
            [[sources]]
            name = "one"
            [[sources]]
            name = 2
            vendor = "passkit"
            [[sources]]
            name = "three"
            vendor = 3
            kind = "x"
        "#,
        &[("GATEWAY__HTTP__WORKERS", "seventy")],
    )
    .unwrap_err();
    assert_eq!(
        paths(&faults),
        [
            "http.body_bytes_max",
            "http.handler_timeout",
            "http.lisen",
            "http.verbose",
            "http.workers",
            "sources[0].vendor",
            "sources[1].name",
            "sources[2].kind",
            "sources[2].vendor",
            "surprise",
        ],
        "{faults}"
    );
    let text = faults.to_string();
    assert_eq!(text.lines().count(), faults.len());
    let line = |path: &str| {
        text.lines()
            .find(|line| line.starts_with(path))
            .unwrap_or_else(|| panic!("no line for {path} in:\n{text}"))
            .to_owned()
    };
    assert!(
        line("http.lisen").contains("did you mean `listen`?"),
        "{text}"
    );
    assert!(
        line("http.workers").contains("environment GATEWAY__HTTP__WORKERS"),
        "{text}"
    );
    assert!(line("http.body_bytes_max").contains("1B to 1MiB"), "{text}");
    assert!(line("http.handler_timeout").contains("\"250ms\""), "{text}");
    assert!(
        line("sources[2].kind").contains("allowed: name, vendor, keys"),
        "{text}"
    );
    assert!(line("sources[0].vendor").contains("missing"), "{text}");
}

#[test]
fn each_fault_names_who_set_the_value() {
    let faults = load_text(
        "[http]\nworkers = 99\nratio = true\n",
        &[
            ("GATEWAY__HTPP__LISTEN", "x"),
            ("GATEWAY__HTTP__BODY_BYTES_MAX", "1GiB"),
            ("GATEWAY__HTTP__LABEL__X", "1"),
            ("GATEWAY__HTTP__", "1"),
        ],
    )
    .unwrap_err();
    let origin = |path: &str| {
        let fault = faults.iter().find(|fault| fault.path == path);
        fault
            .unwrap_or_else(|| panic!("no fault of {path} in {faults}"))
            .origin
            .clone()
    };
    let env = |name: &str| Origin::Env(name.to_owned());
    assert_eq!(origin("htpp"), env("GATEWAY__HTPP__LISTEN"));
    assert_eq!(
        origin("http.body_bytes_max"),
        env("GATEWAY__HTTP__BODY_BYTES_MAX")
    );
    assert_eq!(origin("http.label"), env("GATEWAY__HTTP__LABEL__X"));
    assert_eq!(origin("http."), env("GATEWAY__HTTP__"));
    assert!(matches!(origin("http.workers"), Origin::File(_)));
    assert!(matches!(origin("http.ratio"), Origin::File(_)));
    assert_eq!(faults.len(), 6, "{faults}");
}

#[test]
fn structs_that_deny_unknown_keys_themselves_report_all_too() {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Strict {
        port: u16,
    }
    impl Validate for Strict {
        fn validate(&self, _faults: &mut Faults) {}
    }
    let variables = ["STRICT__PROT", "STRICT__OTHER"].map(|name| (name.to_owned(), "1".to_owned()));
    let faults = load::<Strict>(&Sources {
        env_prefix: "STRICT",
        env: variables.into(),
        ..Sources::default()
    })
    .unwrap_err();
    assert_eq!(paths(&faults), ["other", "prot"]);
    assert!(faults.to_string().contains("`port`"), "{faults}");
}

#[test]
fn a_string_in_the_wrong_place_is_not_repeated() {
    let faults =
        load_text("token = \"hunter2\"\n[http]\nworkers = \"hunter3\"\n", &[]).unwrap_err();
    assert_eq!(paths(&faults), ["http.workers", "token"]);
    assert!(!faults.to_string().contains("hunter"), "{faults}");
    for text in ["[token]\nvalue = \"hunter2", "[token]\nvalue = hunter2"] {
        let faults = load_text(text, &[]).unwrap_err();
        assert!(faults.to_string().contains("line 2"), "{faults}");
        assert!(!faults.to_string().contains("hunter"), "{faults}");
    }
    assert_eq!(
        redact("unknown variant `hun`, expected `ter2`, expected `file` or `env`"),
        "unknown value, expected `file` or `env`"
    );
}

#[test]
fn a_section_takes_only_its_own_table() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"[gateway.http]\nworkers = 9\n[pass_state]\nanything = 1\n")
        .unwrap();
    let sources = Sources {
        file: Some(file.path().to_owned()),
        env_prefix: "GATEWAY",
        section: Some("gateway"),
        ..Sources::default()
    };
    assert_eq!(load::<Whole>(&sources).unwrap().http.workers, 9);
    let faults = load::<Whole>(&Sources {
        section: None,
        ..sources
    })
    .unwrap_err();
    assert_eq!(paths(&faults), ["gateway", "pass_state"]);
}

#[test]
fn a_file_that_is_not_there_is_a_fault() {
    let faults = load::<Whole>(&Sources {
        file: Some("/nonexistent/x.toml".into()),
        ..Sources::default()
    })
    .unwrap_err();
    assert_eq!(faults.len(), 1);
    assert!(faults.to_string().contains("/nonexistent/x.toml"));
}

#[test]
fn secrets_come_from_value_file_or_environment() {
    let mut secret = tempfile::NamedTempFile::new().unwrap();
    secret.write_all(b"from file\n").unwrap();
    let text = format!(
        "[[sources]]\nname = \"a\"\nvendor = \"b\"\nkeys = [{{ value = \"from value\" }}, {{ file = {:?} }}, {{ env = \"KEY\" }}]",
        secret.path()
    );
    let config = load_text(&text, &[("KEY", "from env")]).unwrap();
    let keys: Vec<&[u8]> = config.sources[0]
        .keys
        .iter()
        .map(SecretSource::expose)
        .collect();
    assert_eq!(keys, [&b"from value"[..], b"from file", b"from env"]);
    let printed = format!("{config:?} {}", toml::to_string(&config).unwrap());
    assert!(!printed.contains("from value"), "{printed}");
    assert!(!printed.contains("from file"), "{printed}");
    assert!(!printed.contains("from env"), "{printed}");
    assert!(printed.contains("[REDACTED]"));
    assert_eq!(config.sources[0].keys[0].secret().to_string(), "[REDACTED]");
}

#[test]
fn faults_of_secrets_name_the_secret_and_the_cause() {
    let faults = load_text(
        r#"
            [[sources]]
            name = "a"
            vendor = "b"
            keys = [
              { env = "NOT_SET" }, { file = "/nonexistent/key" },
              { value = "x", env = "KEY" }, {}, { value = "" }, { vaule = "x" },
            ]
        "#,
        &[("KEY", "from env")],
    )
    .unwrap_err();
    assert_eq!(
        paths(&faults),
        (0..6)
            .map(|index| format!("sources[0].keys[{index}]"))
            .collect::<Vec<_>>(),
        "{faults}"
    );
    let text = faults.to_string();
    for needle in [
        "NOT_SET",
        "/nonexistent/key",
        "exactly one of",
        "0 bytes",
        "vaule",
    ] {
        assert!(text.contains(needle), "{needle} in {text}");
    }
}

#[test]
fn what_is_printed_loads_again() {
    let config = Whole::default();
    let text = toml::to_string(&config).unwrap();
    let again = load_text(&text, &[]).unwrap();
    assert_eq!(toml::to_string(&again).unwrap(), text);
}
