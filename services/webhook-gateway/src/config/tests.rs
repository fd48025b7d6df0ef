use super::*;

mod spool;

const EXAMPLE: &str = include_str!("../../webhook-gateway.example.toml");

fn load_text(text: &str, env: &[(&str, &str)]) -> Result<Config, Faults> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gateway.toml");
    std::fs::write(&file, text).unwrap();
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Config::load(&config::Sources {
        file: Some(file),
        env_prefix: ENV_PREFIX,
        env,
        section: None,
    })
}

fn assert_same(one: &Config, other: &Config) {
    assert_eq!(one.gateway_id, other.gateway_id);
    assert_eq!(one.drain_delay, other.drain_delay);
    assert_eq!(one.http, other.http);
    assert_eq!(one.admin, other.admin);
    assert_eq!(one.pass_state, other.pass_state);
    assert_eq!(one.forward, other.forward);
    assert_eq!(one.spool, other.spool);
    assert_eq!(one.ack, other.ack);
    assert_eq!(one.reload, other.reload);
    assert_eq!(one.telemetry, other.telemetry);
}

#[test]
fn the_example_shows_the_defaults() {
    let example = load_text(EXAMPLE, &[]).unwrap();
    assert_same(&example, &Config::default());
    assert!(example.sources.is_empty());
}

/// Takes every key out of the example in turn: what is left must still be the default, and the key must
/// be one that is known, so the example can neither miss the code nor run ahead of it.
#[test]
fn every_key_of_the_example_can_be_left_out() {
    let keys = EXAMPLE
        .lines()
        .filter(|line| line.contains(" = ") && !line.starts_with('#'))
        .count();
    for skip in 0..keys {
        let mut seen = 0;
        let text: Vec<&str> = EXAMPLE
            .lines()
            .filter(|line| {
                let is_key = line.contains(" = ") && !line.starts_with('#');
                seen += usize::from(is_key);
                !(is_key && seen == skip + 1)
            })
            .collect();
        assert_same(
            &load_text(&text.join("\n"), &[]).unwrap(),
            &Config::default(),
        );
    }
}

#[test]
fn the_optional_keys_of_the_example_are_known() {
    let text: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("#: ") {
            Some(source) => format!("{source}\n"),
            None if line == "#:" => "\n".to_owned(),
            None => match line.strip_prefix("# ") {
                Some(key)
                    if key
                        .split_once(" = ")
                        .is_some_and(|(name, _)| !name.contains(' ')) =>
                {
                    format!("{key}\n")
                }
                _ => format!("{line}\n"),
            },
        })
        .collect();
    let secret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    let env = [
        ("ACME_PASSKIT_SECRET", secret),
        ("ACME_PASSWORKS_KEY", secret),
    ];
    let config = load_text(&text, &env).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.sources.len(), 2);
    assert_eq!(config.ack.mode_of("acme-passkit"), AckMode::Applied);
    assert_eq!(config.ack.mode_of("acme-passworks"), AckMode::Durable);
    assert_eq!(config.spool.retain_bytes, Some(ByteSize::from_mib(2560)));
    assert_eq!(
        config.telemetry.otlp_endpoint.as_deref(),
        Some("http://127.0.0.1:4317")
    );
}

/// The keys of TLS and of the token have no defaults, since they name files.
#[test]
fn the_keys_of_tls_in_the_example_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let ca = test_kit::pki::TestCa::new("ca").unwrap();
    let own = ca.issue(&["a.test"]).unwrap();
    let text = EXAMPLE
        .replace("#+ ", "")
        .replace("\"http://127.0.0.1:50051\"", "\"https://a.test:50051\"")
        .replace("/etc/passline/tls", dir.path().to_str().unwrap())
        .replace("/run/secrets/passline", dir.path().to_str().unwrap());
    for name in ["http", "admin", "gateway"] {
        own.write(dir.path(), name).unwrap();
    }
    for (name, text) in [
        ("clients-ca.crt", &*ca.pem()),
        ("pass-state-ca.crt", &*ca.pem()),
        ("collector-ca.crt", &*ca.pem()),
        ("pass-state-token", "plt_x\n"),
    ] {
        test_kit::pki::replace(&dir.path().join(name), text).unwrap();
    }
    let config = load_text(&text, &[]).unwrap_or_else(|faults| panic!("{faults}"));
    let tls = config.http.tls.unwrap();
    assert_eq!(config.admin.tls.unwrap().client_auth, tls.client_auth);
    assert_eq!(tls.handshake_timeout, Duration::from_secs(5));
    assert!(config.pass_state.tls.is_some() && config.pass_state.token.is_some());

    std::fs::remove_file(dir.path().join("pass-state-token")).unwrap();
    std::fs::remove_file(dir.path().join("gateway.key")).unwrap();
    let faults = load_text(&text, &[]).unwrap_err().to_string();
    assert!(
        faults.contains("pass_state.tls.key_file (file "),
        "{faults}"
    );
    own.write(dir.path(), "gateway").unwrap();
    let faults = load_text(&text, &[]).unwrap_err().to_string();
    assert!(faults.starts_with("pass_state.token (file "), "{faults}");
    let unused = EXAMPLE.replace(
        "[forward]",
        &format!(
            "[pass_state.tls]\nca_file = {:?}\n[forward]",
            dir.path().join("clients-ca.crt")
        ),
    );
    let faults = load_text(&unused, &[]).unwrap_err().to_string();
    assert!(faults.starts_with("pass_state.tls "), "{faults}");
}

#[test]
fn all_faults_are_told_at_once() {
    let text = "gateway_id = \"\"\nwat = 1\n[http]\nbody_bytes_max = \"2MiB\"\n[spool]\nsegment_bytes = \"1KiB\"\n\
                [ack]\nmode = \"never\"\n[ack.sources]\nabsent = \"applied\"\n";
    let faults = load_text(text, &[]).unwrap_err().to_string();
    for part in [
        "gateway_id",
        "wat",
        "http.body_bytes_max",
        "spool",
        "ack.mode",
        "ack.sources.absent",
    ] {
        assert!(faults.contains(part), "{part} is missing in:\n{faults}");
    }
}

#[test]
fn sources_that_share_a_name_or_uid_are_refused() {
    let source = "[[sources]]\nname = \"a\"\nvendor = \"standard\"\n[sources.auth]\nscheme = \"api_key\"\n\
                  secrets = [{ id = \"k\", value = \"0123456789abcdef\" }]\n";
    let faults = load_text(&format!("{source}{source}"), &[])
        .unwrap_err()
        .to_string();
    assert!(
        faults.contains("sources[1].name") && faults.contains("sources[1].uid"),
        "{faults}"
    );
}

#[test]
fn a_fault_of_a_source_names_its_key_and_not_its_secret() {
    let text = "[[sources]]\nname = \"a\"\nvendor = \"standard\"\n[sources.auth]\nscheme = \"api_key\"\n\
                secrets = [{ id = \"k\", value = \"canary\" }]\n";
    let faults = load_text(text, &[]).unwrap_err().to_string();
    assert!(faults.contains("sources[0].auth.secrets[0]"), "{faults}");
    assert!(!faults.contains("canary"), "{faults}");
}

#[test]
fn a_telemetry_table_without_a_name_keeps_the_services_name() {
    let config = load_text("[telemetry]\nlog_format = \"json\"\n", &[]).unwrap();
    assert_eq!(config.telemetry.service_name, SERVICE_NAME);
}

#[test]
fn the_spool_lies_under_the_data_directory_unless_configured() {
    let mut config = Config::default();
    assert_eq!(
        config.spool_dir(Path::new("/data")),
        Path::new("/data/gateway/spool")
    );
    config.spool.dir = Some("/elsewhere".into());
    assert_eq!(
        config.spool_dir(Path::new("/data")),
        Path::new("/elsewhere")
    );
}

#[test]
fn a_secret_may_be_named_by_its_variable_alone() {
    let text = "[[sources]]\nname = \"a\"\nvendor = \"standard\"\n[sources.auth]\nscheme = \"api_key\"\n\
                secrets = [{ env = \"KEY\" }]\n";
    load_text(text, &[("KEY", "0123456789abcdef")]).unwrap_or_else(|faults| panic!("{faults}"));
    let faults = load_text(text, &[]).unwrap_err().to_string();
    assert!(
        faults.contains("KEY is not set") && faults.contains("gateway.toml"),
        "{faults}"
    );
}

#[test]
fn the_environment_overrides_the_file() {
    let env = [
        ("GATEWAY__HTTP__LISTEN", "127.0.0.1:9"),
        ("GATEWAY__ACK__MODE", "applied"),
    ];
    let config = load_text("[http]\nlisten = \"127.0.0.1:1\"\n", &env).unwrap();
    assert_eq!(
        (config.http.listen.port(), config.ack.mode),
        (9, AckMode::Applied)
    );
}
