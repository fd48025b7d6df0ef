//! The keys of `[spool]`: which backend they belong to, and what they allow.

use pass_spool::NatsCredentials;

use super::*;
use crate::backend;
use crate::testing::SECRET;

const JETSTREAM: &str = "[spool]\nbackend = \"jetstream\"\n[spool.jetstream]\n";

fn jetstream(keys: &str) -> Result<Config, Faults> {
    load_text(&format!("{JETSTREAM}{keys}"), &[("NATS_SECRET", SECRET)])
}

/// The faults' text, which must not repeat a secret.
fn refused(text: &str) -> String {
    let faults = load_text(text, &[("NATS_SECRET", SECRET)])
        .unwrap_err()
        .to_string();
    assert!(!faults.contains("canary"), "{faults}");
    faults
}

#[test]
fn a_shared_spool_needs_nothing_but_its_backend() {
    let config = jetstream("").unwrap();
    assert!(config.spool_is_shared());
    assert_eq!(config.spool.jetstream, JetStream::default());
    assert!(!Config::default().spool_is_shared());
}

#[test]
fn every_way_to_log_in_of_the_example_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("nats.creds");
    std::fs::write(&file, "creds\n").unwrap();
    let ca = test_kit::pki::TestCa::new("ca").unwrap();
    ca.issue(&["a.test"])
        .unwrap()
        .write(dir.path(), "nats")
        .unwrap();
    test_kit::pki::replace(&dir.path().join("nats-ca.pem"), &ca.pem()).unwrap();
    let lines: Vec<&str> = EXAMPLE
        .lines()
        .filter_map(|line| line.strip_prefix("#- "))
        .collect();
    let named = |key: &str| {
        let line = lines
            .iter()
            .find(|line| line.starts_with(&format!("{key} = ")));
        line.unwrap_or_else(|| panic!("{key} is not in the example"))
            .replace("/etc/passline/", &format!("{}/", dir.path().display()))
    };
    let env: Vec<(String, String)> = ["PASSWORD", "TOKEN", "SEED"]
        .map(|name| (format!("PASSLINE_NATS_{name}"), format!("{SECRET}-{name}")))
        .into();
    let pairs: Vec<(&str, &str)> = env
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let secret = |name: &str| format!("{SECRET}-{name}");
    for (keys, expected) in [
        (
            vec!["user", "password"],
            NatsCredentials::UserPassword {
                user: "passline".to_owned(),
                password: secret("PASSWORD"),
            },
        ),
        (vec!["token"], NatsCredentials::Token(secret("TOKEN"))),
        (
            vec!["credentials_file"],
            NatsCredentials::Creds("creds".to_owned()),
        ),
        (vec!["nkey"], NatsCredentials::NkeySeed(secret("SEED"))),
        (vec!["ca_file", "retain_bytes"], NatsCredentials::None),
        (vec!["cert_file", "key_file"], NatsCredentials::None),
    ] {
        let text: String = keys.iter().map(|key| named(key) + "\n").collect();
        let config = load_text(&format!("{JETSTREAM}{text}"), &pairs)
            .unwrap_or_else(|faults| panic!("{faults}"));
        assert!(!format!("{config:?}").contains("canary"));
        let login = backend::login(&config.spool.jetstream, &env, &Origin::Default).unwrap();
        assert!(login == expected, "{text}");
    }
    assert_eq!(lines.len(), 9, "every optional key is tried above");
}

#[test]
fn what_can_not_be_read_or_is_ambiguous_about_the_login_is_named() {
    for (keys, expected) in [
        ("user = \"u\"", "spool.jetstream.user"),
        (
            "password = { value = \"canary\" }",
            "spool.jetstream.password",
        ),
        (
            "token = { value = \"canary\" }\nnkey = { value = \"canary\" }",
            "is one of several ways to log in: token, nkey",
        ),
        ("token = {}", "spool.jetstream.token"),
        (
            "token = { value = \"canary\", file = \"/x\" }",
            "spool.jetstream.token",
        ),
        ("token = { env = \"ABSENT\" }", "ABSENT is not set"),
        (
            "credentials_file = \"/absent.creds\"",
            "/absent.creds can't be read",
        ),
        (
            "servers = [\"nats://u:canary@host\"]",
            "has a credential in it",
        ),
        (
            "token = { env = \"NATS_SECRET\" }\nuser = \"u\"",
            "spool.jetstream.user",
        ),
    ] {
        let faults = refused(&format!("{JETSTREAM}{keys}\n"));
        assert!(faults.contains(expected), "{keys}:\n{faults}");
    }
}

#[test]
fn values_of_a_shared_spool_have_bounds() {
    for (keys, key) in [
        ("servers = []", "servers"),
        ("servers = [\"localhost\"]", "servers[0]"),
        ("servers = [\"nats://a\", \"http://b\"]", "servers[1]"),
        ("monitoring_urls = [\"https://a\"]", "monitoring_urls[0]"),
        ("stream = \"a.b\"", "stream"),
        ("stream = \"\"", "stream"),
        ("replicas = 0", "replicas"),
        ("replicas = 4", "replicas"),
        ("window_records = 0", "window_records"),
        ("append_in_flight_max = 70000", "append_in_flight_max"),
        ("connect_timeout = \"20m\"", "connect_timeout"),
    ] {
        let faults = refused(&format!("{JETSTREAM}{keys}\n"));
        let start = format!("spool.jetstream.{key} (file ");
        assert!(faults.starts_with(&start), "{keys}:\n{faults}");
    }
}

/// Any gateway of the group may forward what this one answered for.
#[test]
fn applied_is_refused_with_a_shared_spool_and_the_reason_is_told() {
    let text = format!(
        "[ack]\nmode = \"applied\"\n[ack.sources]\na = \"applied\"\nb = \"durable\"\n{JETSTREAM}{}{}",
        source("a"),
        source("b")
    );
    let faults = refused(&text);
    for part in [
        "ack.mode (file ",
        "ack.sources.a (file ",
        "any gateway may forward the delivery",
        "set it to \"durable\", or spool.backend to \"embedded\"",
    ] {
        assert!(faults.contains(part), "{part} is missing in:\n{faults}");
    }
    assert!(!faults.contains("ack.sources.b"), "{faults}");
}

fn source(name: &str) -> String {
    format!(
        "[[sources]]\nname = \"{name}\"\nvendor = \"standard\"\n[sources.auth]\nscheme = \"api_key\"\n\
         secrets = [{{ id = \"k\", value = \"{SECRET}\" }}]\n"
    )
}

#[test]
fn keys_of_the_backend_that_is_not_used_are_refused() {
    for (key, value) in [
        ("dir", "\"/var/lib\""),
        ("segment_bytes", "\"1MiB\""),
        ("bytes_max", "\"1GiB\""),
        ("retain_age", "\"1h\""),
        ("retain_bytes", "\"1MiB\""),
        ("append_queue_max", "7"),
    ] {
        let faults = refused(&format!(
            "[spool]\nbackend = \"jetstream\"\n{key} = {value}\n"
        ));
        assert!(
            faults.starts_with(&format!("spool.{key} (file ")) && faults.contains("embedded"),
            "{faults}"
        );
    }
    let faults = refused("[spool.jetstream]\nstream = \"OTHER\"\n");
    assert!(
        faults.contains("set spool.backend to \"jetstream\""),
        "{faults}"
    );
}

#[test]
fn the_environment_can_choose_and_set_up_a_shared_spool() {
    let env = [
        ("GATEWAY__SPOOL__BACKEND", "jetstream"),
        (
            "GATEWAY__SPOOL__JETSTREAM__SERVERS",
            "[\"nats://a:1\", \"nats://b:2\"]",
        ),
        (
            "GATEWAY__SPOOL__JETSTREAM__TOKEN",
            "{ env = \"NATS_SECRET\" }",
        ),
        ("NATS_SECRET", SECRET),
    ];
    let config = load_text("", &env).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.spool.jetstream.servers, ["nats://a:1", "nats://b:2"]);
    assert_eq!(
        config.spool.jetstream.token.unwrap().env.as_deref(),
        Some("NATS_SECRET")
    );
}
