use std::path::Path;

use super::*;
use crate::books::{Books, Tally};
use crate::config::ENV_PREFIX;

const OLD: &str = "0123456789abcdef-old";
const NEW: &str = "0123456789abcdef-new";

struct Rig {
    dir: tempfile::TempDir,
    live: Arc<Live>,
    books: Arc<Books>,
    reload: PolicyReload,
}

impl Rig {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), OLD).unwrap();
        write(dir.path(), text);
        let from = config::Sources {
            file: Some(dir.path().join("gateway.toml")),
            env_prefix: ENV_PREFIX,
            env: Vec::new(),
            section: None,
        };
        let config = Config::load(&from).unwrap_or_else(|faults| panic!("{faults}"));
        let policy = Policy::build(
            &config.sources,
            &config.ack,
            &config.http,
            &[],
            &Origin::Default,
            None,
        );
        let books = Arc::new(Books::new());
        let live = Arc::new(Live::new(policy.unwrap(), Arc::clone(&books)).unwrap());
        let waiters = Arc::new(Waiters::new(1, false));
        let reload = PolicyReload::new(&config, Some(from), Vec::new(), Arc::clone(&live), waiters);
        Self {
            dir,
            live,
            books,
            reload,
        }
    }

    fn write(&self, text: &str) {
        write(self.dir.path(), text);
    }

    fn names(&self) -> Vec<String> {
        let policy = self.live.policy();
        let names = policy.iter().map(|entry| entry.source.name().to_owned());
        names.collect()
    }

    /// Whether a source takes a key.
    fn takes(&self, source: &str, key: &str) -> bool {
        let policy = self.live.policy();
        let (_, entry) = policy.by_name(source).unwrap();
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", key.parse().unwrap());
        let request = pass_sources::Request {
            method: &http::Method::POST,
            path_and_query: "/",
            url_secret: None,
            headers: &headers,
            body: b"{}",
            peer: Some([127, 0, 0, 1].into()),
            receive_time: jiff::Timestamp::UNIX_EPOCH,
        };
        entry.source.verify(request).is_ok()
    }
}

/// Writes a configuration; KEY stands for the secret's file.
fn write(dir: &Path, text: &str) {
    let key = dir.join("key");
    let text = text.replace("KEY", key.to_str().unwrap());
    std::fs::write(dir.join("gateway.toml"), text).unwrap();
}

fn source(name: &str) -> String {
    format!(
        "[[sources]]\nname = \"{name}\"\nvendor = \"standard\"\n[sources.auth]\nscheme = \"api_key\"\nsecrets = [{{ file = \"KEY\" }}]\n"
    )
}

#[test]
fn a_secret_that_is_replaced_alone_is_taken_in() {
    let mut rig = Rig::new(&source("acme"));
    let files = rig.reload.files();
    assert!(files.contains(&rig.dir.path().join("key")), "{files:?}");
    assert!(
        files.contains(&rig.dir.path().join("gateway.toml")),
        "{files:?}"
    );
    assert!(rig.takes("acme", OLD) && !rig.takes("acme", NEW));
    std::fs::write(rig.dir.path().join("key"), NEW).unwrap();
    rig.reload.try_apply().unwrap();
    assert!(!rig.takes("acme", OLD) && rig.takes("acme", NEW));
}

#[test]
fn sources_come_and_go_and_keep_their_books() {
    let mut rig = Rig::new(&source("first"));
    let page = |rig: &Rig, name: &str| rig.live.policy().by_name(name).map(|(page, _)| page);
    let first = page(&rig, "first").unwrap();
    rig.books.add(Some(first), Tally::Stored);
    let age = |rig: &Rig, name: &str| rig.live.policy().by_name(name).unwrap().1.age();
    std::thread::sleep(std::time::Duration::from_millis(20));
    rig.write(&format!("{}{}", source("first"), source("second")));
    rig.reload.try_apply().unwrap();
    let second = age(&rig, "second");
    assert!(
        age(&rig, "first") >= second + std::time::Duration::from_millis(20),
        "the one that came later is younger, the other one is as old as before"
    );
    rig.write(&source("second"));
    rig.reload.try_apply().unwrap();
    assert_eq!(rig.names(), ["second"]);
    assert_eq!(page(&rig, "first"), None);
    rig.write(&format!("{}{}", source("second"), source("first")));
    rig.reload.try_apply().unwrap();
    assert_eq!(page(&rig, "first"), Some(first));
    assert_eq!(rig.books.snapshot()[first].get(Tally::Stored), 1);
}

#[test]
fn a_configuration_with_faults_changes_nothing_and_tells_all_of_them() {
    let mut rig = Rig::new(&source("acme"));
    rig.write(&format!(
        "wat = 1\n[http.rates]\nsource_per_sec = 0\n{}rate_burst = 0\n{}",
        source("other").replace("[sources.auth]", "uid = \"UPPER\"\n[sources.auth]"),
        source("acme")
    ));
    let refusal = rig.reload.try_apply().unwrap_err().to_string();
    for part in ["wat", "http.rates.source_per_sec"] {
        assert!(refusal.contains(part), "{part} is missing in {refusal}");
    }
    assert_eq!(rig.names(), ["acme"]);
    // Neither does one whose secret is missing.
    rig.write(&source("acme").replace("KEY", "/nonexistent/key"));
    let refusal = rig.reload.try_apply().unwrap_err().to_string();
    assert!(refusal.contains("/nonexistent/key"), "{refusal}");
    assert!(rig.takes("acme", OLD));
    rig.write(&source("mended"));
    rig.reload.try_apply().unwrap();
    assert_eq!(rig.names(), ["mended"]);
}

#[test]
fn a_broken_certificate_does_not_keep_a_revoked_secret_in_force() {
    let mut rig = Rig::new(&source("acme"));
    let broken = rig.dir.path().join("broken.pem");
    std::fs::write(&broken, "no certificate").unwrap();
    let tls = |table: &str| {
        let file = broken.display();
        format!("[{table}]\ncert_file = \"{file}\"\nkey_file = \"{file}\"\n")
    };
    let client = format!(
        "[pass_state]\nendpoint = \"https://pass-state.example:50051\"\ntoken = {{ file = \"/nonexistent\" }}\n{}",
        tls("pass_state.tls")
    );
    let nats = format!(
        "[spool]\nbackend = \"jetstream\"\n{}monitoring_urls = [\"http://nats.example:8222\"]\n",
        tls("spool.jetstream")
    );
    let tables = tls("http.tls") + &tls("admin.tls") + &client + &nats;
    rig.write(&format!("{tables}{}", source("acme")));
    std::fs::write(rig.dir.path().join("key"), NEW).unwrap();
    rig.reload.try_apply().unwrap();
    assert!(!rig.takes("acme", OLD) && rig.takes("acme", NEW));
    assert_eq!(
        rig.reload.told,
        ["http.tls", "admin", "pass_state", "spool"]
    );
}

#[test]
fn on_a_shared_spool_no_source_begins_to_wait_for_pass_state_before_a_restart() {
    let mut rig = Rig::new(&source("acme"));
    rig.reload.spool_is_shared = true;
    rig.write(&format!("[ack]\nmode = \"applied\"\n{}", source("acme")));
    let refusal = rig.reload.try_apply().unwrap_err().to_string();
    assert!(
        refusal.contains("ack") && refusal.contains("started again"),
        "{refusal}"
    );
    let policy = rig.live.policy();
    assert_eq!(policy.by_name("acme").unwrap().1.ack, AckMode::Durable);
}

#[test]
fn what_was_used_up_stays_used_up_unless_the_rate_changes() {
    let rates = "[http.rates]\nsource_per_sec = 1\nsource_burst = 1\n[http.failed_auth]\nsource_per_sec = 1\nsource_burst = 1\n";
    let mut rig = Rig::new(&format!("{rates}{}", source("acme")));
    let take = |rig: &Rig| {
        let policy = rig.live.policy();
        let (_, entry) = policy.by_name("acme").unwrap();
        let failures = entry.failures.as_ref().unwrap();
        (entry.rate.take().is_ok(), failures.take().is_ok())
    };
    assert_eq!(take(&rig), (true, true));
    rig.write(&format!("{rates}{}", source("acme") + &source("more")));
    rig.reload.try_apply().unwrap();
    assert_eq!(take(&rig), (false, false));
    let more = rates.replace("source_burst = 1", "source_burst = 2");
    rig.write(&format!("{more}{}", source("acme")));
    rig.reload.try_apply().unwrap();
    assert_eq!(take(&rig), (true, true));
}

#[test]
fn a_source_that_begins_to_wait_for_pass_state_has_its_outcomes_remembered() {
    let mut rig = Rig::new(&source("acme"));
    rig.write(&format!(
        "[ack.sources]\nacme = \"applied\"\n[ack]\ntimeout = \"1s\"\n{}",
        source("acme")
    ));
    rig.reload.try_apply().unwrap();
    let policy = rig.live.policy();
    assert_eq!(policy.by_name("acme").unwrap().1.ack, AckMode::Applied);
    assert_eq!(policy.ack_timeout, std::time::Duration::from_secs(1));
    let outcomes = [(1, pass_domain::delivery::Outcome::Applied)];
    rig.reload.waiters.connected(Some(0));
    rig.reload.waiters.committed(1, outcomes.into_iter());
    let outcome = rig.reload.waiters.outcome(1, std::time::Duration::ZERO);
    assert!(
        futures_util::FutureExt::now_or_never(outcome)
            .flatten()
            .is_some()
    );
}

#[test]
fn keys_that_need_a_restart_are_named_and_live_ones_are_not() {
    let load = |text: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("gateway.toml");
        std::fs::write(&file, text).unwrap();
        let from = config::Sources {
            file: Some(file),
            env_prefix: ENV_PREFIX,
            env: Vec::new(),
            section: None,
        };
        Config::load(&from).unwrap_or_else(|faults| panic!("{faults}"))
    };
    let started = Config::default();
    let live = load(
        "[http]\ntrusted_proxies = [\"10.0.0.0/8\"]\nforwarded_header = \"forwarded\"\n[http.rates]\nclient_per_sec = 5\n\
         [http.failed_auth]\ndelay = \"2s\"\n[ack]\nmode = \"applied\"\ntimeout = \"1s\"\n",
    );
    assert_eq!(restart_keys(&started, &live), Vec::<&str>::new());
    let fixed = load(
        "drain_delay = \"2s\"\n[http]\nlisten = \"127.0.0.1:9\"\n[http.limits]\nheader_count_max = 32\n[ack]\nwaiters_max = 2\n\
         [telemetry]\nlog_format = \"json\"\n",
    );
    assert_eq!(
        restart_keys(&started, &fixed),
        [
            "drain_delay",
            "http.listen",
            "http.limits",
            "ack.waiters_max",
            "telemetry"
        ]
    );
}
