//! The command as it is typed: real processes, real ports, real directories.

#![expect(clippy::unwrap_used, reason = "the helpers are test code too")]

mod process;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use process::{Finished, Running, passline};
use serde_json::Value;
use test_kit::pki::TestCa;

/// The command with every port chosen by the kernel: tests run side by side.
fn on_free_ports(arguments: &[&str]) -> Command {
    let mut command = passline(arguments);
    for part in [
        "GATEWAY__HTTP",
        "GATEWAY__ADMIN",
        "PASS_STATE__GRPC",
        "PASS_STATE__ADMIN",
    ] {
        command.env(format!("{part}__LISTEN"), "127.0.0.1:0");
    }
    command
}

/// Runs `passline up` on free ports with the sample sources.
fn up(data_dir: &Path) -> (Running, Value) {
    up_with(data_dir, "127.0.0.1:0")
}

fn up_with(data_dir: &Path, grpc: &str) -> (Running, Value) {
    let mut command = on_free_ports(&["--json", "up", "--data-dir"]);
    command.arg(data_dir).env("PASS_STATE__GRPC__LISTEN", grpc);
    let mut running = Running::start(command);
    let up = running.next_object()["up"].clone();
    (running, up)
}

fn text<'a>(object: &'a Value, member: &str) -> &'a str {
    object[member]
        .as_str()
        .unwrap_or_else(|| panic!("no {member} in {object}"))
}

/// Sends a sample to running services; the delivery's id.
fn send(up: &Value, data_dir: &Path, source: &str, sample: &str) -> String {
    let url = text(up, "callbacks")
        .trim_end_matches("/webhooks/")
        .to_owned();
    let mut command = passline(&[
        "send", "--json", "--source", source, "--sample", sample, "--url", &url,
    ]);
    command.arg("--data-dir").arg(data_dir);
    let sent = Finished::of(command);
    assert_eq!(sent.code, 0, "{sent:?}");
    let object = &sent.objects()[0];
    assert_eq!(object["http_status"], 200);
    text(&object["answer"], "delivery").to_owned()
}

#[test]
fn the_demo_shows_every_step_and_leaves_nothing_behind() {
    let temporary = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let mut command = on_free_ports(&["demo", "--exit"]);
    command
        .env("TMPDIR", temporary.path())
        .env("GATEWAY__HTTP__LISTEN", &taken);
    let demo = Finished::of(command);
    assert_eq!(demo.code, 0, "{demo:?}");
    let moved = format!("{taken} is taken; using a free port instead");
    for expected in [
        moved.as_str(),
        "POS  RECORDED",
        "DOWNLOADED",
        "late",
        "UNINSTALLED",
        "b6179ee0-",
        "OCCURRED (UTC)",
        "the books balance",
        "19 deliveries sent, all answered 200; 16 events, as expected",
    ] {
        assert!(
            demo.stdout.contains(expected),
            "{expected} is missing: {demo:?}"
        );
    }
    assert!(!demo.stdout.contains('\u{1b}'), "no colours in a pipe");
    assert_eq!(
        fs::read_dir(temporary.path()).unwrap().count(),
        0,
        "the temporary directory is gone"
    );
}

#[test]
fn the_demo_as_json_is_one_object_a_line_and_can_keep_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("kept");
    let mut command = on_free_ports(&["--json", "demo", "--exit", "--data-dir"]);
    command.arg(&kept);
    let demo = Finished::of(command);
    assert_eq!(demo.code, 0, "{demo:?}");
    let objects = demo.objects();
    let last = &objects.last().unwrap()["demo"];
    assert_eq!(last["faults"], serde_json::json!([]));
    let count = |member: &str| {
        objects
            .iter()
            .filter(|object| !object[member].is_null())
            .count() as u64
    };
    assert_eq!(last["deliveries"].as_u64(), Some(count("delivery")));
    assert_eq!(last["events"].as_u64(), Some(count("event")));
    assert!(kept.join("sources.toml").exists());

    let mut command = passline(&["demo", "--exit", "--data-dir"]);
    command.arg(&kept);
    let again = Finished::of(command);
    assert_eq!(again.code, 64, "{again:?}");
    assert!(again.stderr.contains("is not empty"), "{again:?}");
}

#[test]
fn a_delivery_that_was_sent_can_be_got_and_tailed() {
    let dir = tempfile::tempdir().unwrap();
    let (running, up) = up(dir.path());
    let server = text(&up, "pass_state").to_owned();
    let delivery = send(&up, dir.path(), "passworks", "created");

    let tail = passline(&["tail", "--json", "--from-beginning", "--server", &server]);
    let mut tail = Running::start(tail);
    let line = tail.next_object_with("event");
    assert_eq!(line["event"]["kind"], "EVENT_KIND_CREATED");
    assert_eq!(line["event"]["delivery"], format!("deliveries/{delivery}"));
    assert_eq!(
        line["event"]["vendor_kind"], "created",
        "names are those of the protos"
    );
    let ended = tail.stop();
    assert_eq!(ended.code, 0, "{ended:?}");
    let cursor = text(ended.objects().last().unwrap(), "cursor").to_owned();
    assert_eq!(cursor, text(&line, "cursor"));

    send(&up, dir.path(), "passworks", "installed_rev2016-08");
    let tail = passline(&[
        "tail",
        "--json",
        "--after",
        &cursor,
        "--filter",
        "kind = INSTALLED",
        "--server",
        &server,
    ]);
    let mut tail = Running::start(tail);
    let line = tail.next_object_with("event");
    assert_eq!(line["event"]["kind"], "EVENT_KIND_INSTALLED");
    assert_eq!(tail.stop().code, 0);

    let pass = text(&line["event"], "pass").to_owned();
    let got = Finished::of(passline(&["get", "--json", &pass, "--server", &server]));
    assert_eq!(got.code, 0, "{got:?}");
    let objects = got.objects();
    assert_eq!(objects[0]["pass"]["state"], "PASS_STATE_INSTALLED");
    assert_eq!(objects.len(), 3, "the pass and two events: {got:?}");
    let got = Finished::of(passline(&["get", &pass, "--server", &server]));
    assert!(got.stdout.contains("CREATED → INSTALLED"), "{got:?}");
    let got = Finished::of(passline(&[
        "get",
        "--delivery",
        &delivery,
        "--server",
        &server,
    ]));
    assert!(
        got.stdout.contains("APPLIED") && got.stdout.contains("\"event\": \"created\""),
        "{got:?}"
    );
    let exported = Finished::of(passline(&[
        "tail",
        "--from-beginning",
        "--stop-at-head",
        "--server",
        &server,
    ]));
    assert_eq!(exported.code, 0, "{exported:?}");
    assert!(exported.stdout.contains(" tail --after "), "{exported:?}");

    let ended = running.stop();
    assert_eq!(ended.code, 0, "SIGTERM ends it in order: {ended:?}");
    let key = text(&up["sources"][0], "sample_key");
    assert!(!ended.stderr.contains(key), "keys are not logged");
}

#[test]
fn a_smoke_test_goes_the_whole_way_and_fails_where_it_breaks() {
    let dir = tempfile::tempdir().unwrap();
    let (running, up) = up(dir.path());
    let server = text(&up, "pass_state").to_owned();
    let url = text(&up, "callbacks").trim_end_matches("/webhooks/");
    let smoke = |source: &str, url: &str, server: &str| {
        let mut command = passline(&["smoke", "--json", "--wait", "20", "--source", source]);
        command.args(["--url", url, "--server", server, "--data-dir"]);
        command.arg(dir.path());
        Finished::of(command)
    };
    for source in ["passworks", "passkit", "envelope", "standard"] {
        let done = smoke(source, url, &server);
        assert_eq!(done.code, 0, "{done:?}");
        let objects = done.objects();
        let id = text(&objects[0]["answer"], "delivery");
        assert_eq!(objects[1]["delivery"]["name"], format!("deliveries/{id}"));
        let events = objects[1]["delivery"]["events"].as_array().unwrap();
        let pass = text(&objects[1]["pass"], "name");
        assert!(events[0].as_str().unwrap().starts_with(pass), "{done:?}");
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let mut command = passline(&["smoke", "--source", "x", "--vendor", "standard"]);
    command.args([
        "--secret",
        "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
        "--url",
        url,
        "--server",
        &server,
    ]);
    let unknown = Finished::of(command);
    assert_eq!(unknown.code, 1, "{unknown:?}");
    assert!(unknown.stderr.contains("404"), "{unknown:?}");
    let away = smoke("passworks", &closed, &server);
    assert_eq!(away.code, 1, "{away:?}");
    assert_eq!(running.stop().code, 0);
}

#[test]
fn a_smoke_test_trusts_the_gateways_authority_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (TestCa::new("ours").unwrap(), TestCa::new("other").unwrap());
    let (cert, key) = ours
        .issue(&["127.0.0.1"])
        .unwrap()
        .write(dir.path(), "gateway")
        .unwrap();
    let data_dir = dir.path().join("data");
    let mut command = on_free_ports(&["--json", "up", "--data-dir"]);
    command
        .arg(&data_dir)
        .env("GATEWAY__HTTP__TLS__CERT_FILE", cert)
        .env("GATEWAY__HTTP__TLS__KEY_FILE", key);
    let mut running = Running::start(command);
    let up = running.next_object()["up"].clone();
    let callbacks = text(&up, "callbacks").trim_end_matches("/webhooks/");
    let address = callbacks.strip_prefix("https://").unwrap();
    for (authority, code) in [(&ours, 0), (&other, 1)] {
        let ca_file = dir.path().join("ca.crt");
        fs::write(&ca_file, authority.pem()).unwrap();
        let mut command = passline(&["smoke", "--wait", "20", "--source", "passworks"]);
        command
            .args(["--url", &format!("https://{address}"), "--url-ca-file"])
            .arg(&ca_file)
            .args(["--server", text(&up, "pass_state"), "--data-dir"])
            .arg(&data_dir);
        let done = Finished::of(command);
        assert_eq!(done.code, code, "{done:?}");
        assert_eq!(done.stderr.contains("certificate"), code == 1, "{done:?}");
    }
    let mut command = passline(&["send", "--source", "passworks"]);
    command
        .args(["--url", &format!("http://{address}"), "--url-ca-file"])
        .arg(dir.path().join("ca.crt"))
        .arg("--data-dir")
        .arg(&data_dir);
    let plain = Finished::of(command);
    assert_eq!(plain.code, 64, "{plain:?}");
    assert!(plain.stderr.contains("--url-ca-file"), "{plain:?}");
    assert_eq!(running.stop().code, 0);
}

#[test]
fn refusals_are_told_with_their_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (running, up) = up(dir.path());
    let server = text(&up, "pass_state").to_owned();
    let url = text(&up, "callbacks")
        .trim_end_matches("/webhooks/")
        .to_owned();
    let mut command = passline(&[
        "send",
        "--source",
        "passworks",
        "--secret",
        "0123456789abcdef0123",
        "--url",
        &url,
    ]);
    command.arg("--data-dir").arg(dir.path());
    let refused = Finished::of(command);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stdout.starts_with("401 "), "{refused:?}");
    let missing = Finished::of(passline(&[
        "get",
        "sources/passworks/passes/none",
        "--server",
        &server,
    ]));
    assert_eq!(missing.code, 1, "{missing:?}");
    assert!(missing.stderr.contains("NOT_FOUND"), "{missing:?}");
    let garbage = Finished::of(passline(&[
        "tail", "--after", "garbage", "--server", &server,
    ]));
    assert_eq!(garbage.code, 1, "{garbage:?}");
    assert!(garbage.stderr.contains("CURSOR_INVALID"), "{garbage:?}");
    let filter = Finished::of(passline(&[
        "tail", "--filter", "kind ==", "--server", &server,
    ]));
    assert!(
        filter.code == 1 && filter.stderr.contains("FILTER_INVALID"),
        "{filter:?}"
    );
    assert_eq!(running.stop().code, 0);
}

#[test]
fn a_tail_goes_on_after_a_restart_without_gap_or_repetition() {
    let dir = tempfile::tempdir().unwrap();
    let (running, first) = up(dir.path());
    let server = text(&first, "pass_state").to_owned();
    send(&first, dir.path(), "passworks", "created");
    let mut tail = Running::start(passline(&[
        "tail",
        "--json",
        "--from-beginning",
        "--server",
        &server,
    ]));
    assert_eq!(
        tail.next_object_with("event")["event"]["kind"],
        "EVENT_KIND_CREATED"
    );
    assert_eq!(running.stop().code, 0);

    let (running, second) = up_with(dir.path(), server.trim_start_matches("http://"));
    assert_eq!(
        first["sources"], second["sources"],
        "a restart has the same keys"
    );
    send(&second, dir.path(), "passworks", "downloaded");
    assert_eq!(
        tail.next_object_with("event")["event"]["kind"],
        "EVENT_KIND_DOWNLOADED"
    );
    let ended = tail.stop();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(
        ended.stderr.contains("going on after the last cursor"),
        "{ended:?}"
    );
    assert_eq!(running.stop().code, 0);
}

#[test]
fn one_directory_and_one_port_belong_to_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let (running, up) = up(dir.path());
    let mut command = on_free_ports(&["up", "--data-dir"]);
    command.arg(dir.path());
    let second = Finished::of(command);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(
        second.stderr.contains("in use by another passline"),
        "{second:?}"
    );

    let taken = text(&up, "callbacks")
        .trim_start_matches("http://")
        .trim_end_matches("/webhooks/")
        .to_owned();
    let other = tempfile::tempdir().unwrap();
    let mut command = on_free_ports(&["up", "--data-dir"]);
    command
        .arg(other.path())
        .env("GATEWAY__HTTP__LISTEN", &taken);
    let blocked = Finished::of(command);
    assert_eq!(blocked.code, 1, "{blocked:?}");
    assert!(
        blocked.stderr.contains("gateway.http.listen") && blocked.stderr.contains(&taken),
        "{blocked:?}"
    );

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let mut command = on_free_ports(&["up", "--data-dir"]);
    command
        .arg(other.path())
        .env("PASS_STATE__GRPC__LISTEN", &taken);
    let blocked = Finished::of(command);
    assert_eq!(blocked.code, 1, "{blocked:?}");
    assert!(
        blocked.stderr.contains("pass_state.grpc.listen") && blocked.stderr.contains(&taken),
        "{blocked:?}"
    );
    assert_eq!(running.stop().code, 0);
}

#[test]
fn one_file_configures_both_services() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("passline.toml");
    let config = r#"
[gateway]
http.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
[[gateway.sources]]
name = "acme"
vendor = "passworks"
auth = { scheme = "api_key", secrets = [{ id = "k", env = "ACME_KEY" }] }
[pass_state]
grpc.listen = "127.0.0.1:0"
admin.listen = "127.0.0.1:0"
"#;
    fs::write(&file, config).unwrap();
    let key = "a-key-of-twenty-bytes";
    let data_dir = dir.path().join("data");
    let mut command = passline(&["--json", "up", "--json-logs", "--config"]);
    command
        .arg(&file)
        .arg("--data-dir")
        .arg(&data_dir)
        .env("ACME_KEY", key);
    let mut running = Running::start(command);
    let up = running.next_object()["up"].clone();
    assert_eq!(
        up["sources"],
        serde_json::json!([]),
        "keys of a configuration are not shown"
    );
    let url = text(&up, "callbacks")
        .trim_end_matches("/webhooks/")
        .to_owned();
    let secret = dir.path().join("secret");
    fs::write(&secret, format!("{key}\n")).unwrap();
    let secret = format!("@{}", secret.display());
    let sent = Finished::of(passline(&[
        "send",
        "--source",
        "acme",
        "--vendor",
        "passworks",
        "--secret",
        &secret,
        "--url",
        &url,
    ]));
    assert_eq!(sent.code, 0, "{sent:?}");
    assert!(sent.stdout.starts_with("200 stored del_"), "{sent:?}");
    let ended = running.stop();
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.lines().count() > 0);
    for line in ended.stderr.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        assert!(!line.contains(key), "{line}");
    }
}

#[test]
fn check_config_tells_every_fault_and_exits_64() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.toml");
    fs::write(
        &file,
        "[gateway.http]\nlisten = 1\n[pass_state.grpc]\nlisten = \"x\"\n[extra]\n",
    )
    .unwrap();
    let broken = Finished::of(passline(&["check-config", file.to_str().unwrap()]));
    assert_eq!(broken.code, 64, "{broken:?}");
    for fault in ["gateway.http.listen", "pass_state.grpc.listen", "extra"] {
        assert!(broken.stdout.contains(fault), "{broken:?}");
    }
    let missing = Finished::of(passline(&["check-config", "no-such-file.toml"]));
    assert_eq!(missing.code, 64, "{missing:?}");
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/passline.example.toml");
    let mut command = passline(&["check-config", example]);
    command.env("PASSWORKS_API_KEY", "0123456789abcdef0123");
    let good = Finished::of(command);
    assert_eq!(good.code, 0, "{good:?}");
}

#[test]
fn wrong_usage_exits_64_and_help_exits_0() {
    assert_eq!(Finished::of(passline(&["melt"])).code, 64);
    assert_eq!(
        Finished::of(passline(&["tail", "--server", "ftp://x"])).code,
        64
    );
    assert_eq!(
        Finished::of(passline(&["send", "--source", "x", "--url", "nowhere"])).code,
        64
    );
    let help = Finished::of(passline(&["--help"]));
    assert!(
        help.code == 0 && help.stdout.contains("passline demo"),
        "{help:?}"
    );
    let listed = Finished::of(passline(&["send", "--list"]));
    assert!(
        listed.code == 0 && listed.stdout.contains("record_created"),
        "{listed:?}"
    );
    // Port 1 is never ours.
    let nobody = Finished::of(passline(&["tail", "--server", "http://127.0.0.1:1"]));
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(nobody.stderr.contains("passline up"), "{nobody:?}");
}

#[test]
fn get_and_tail_reach_a_pass_state_that_wants_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let ca = test_kit::pki::TestCa::new("ca").unwrap();
    for (name, host) in [("server", "127.0.0.1"), ("me", "me.test")] {
        ca.issue(&[host]).unwrap().write(dir.path(), name).unwrap();
    }
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(file("ca"), ca.pem()).unwrap();
    fs::write(file("token"), "plt_of_mine\n").unwrap();
    let data = dir.path().join("data");
    let mut command = on_free_ports(&["--json", "up", "--data-dir"]);
    command
        .arg(&data)
        .env("PASS_STATE__GRPC__TLS__CERT_FILE", file("server.crt"))
        .env("PASS_STATE__GRPC__TLS__KEY_FILE", file("server.key"))
        .env("PASS_STATE__GRPC__TLS__CLIENT_CA_FILE", file("ca"))
        .env("GATEWAY__PASS_STATE__ENDPOINT", "https://127.0.0.1:1")
        .env("GATEWAY__PASS_STATE__TLS__CA_FILE", file("ca"))
        .env("GATEWAY__PASS_STATE__TLS__CERT_FILE", file("me.crt"))
        .env("GATEWAY__PASS_STATE__TLS__KEY_FILE", file("me.key"));
    let mut running = Running::start(command);
    let up = running.next_object()["up"].clone();
    let delivery = send(&up, &data, "passworks", "created");
    let server = text(&up, "pass_state").to_owned();
    assert!(server.starts_with("https://"), "{server}");
    let plain = server.replace("https://", "http://");
    let (ca, cert, key, token) = (file("ca"), file("me.crt"), file("me.key"), file("token"));
    let access = [
        "--server",
        &server,
        "--ca-file",
        &ca,
        "--cert-file",
        &cert,
        "--key-file",
        &key,
        "--token-file",
        &token,
    ];

    let mut tail = vec!["tail", "--json", "--from-beginning"];
    tail.extend(access);
    let mut tail = Running::start(passline(&tail));
    let line = tail.next_object_with("event");
    assert_eq!(line["event"]["delivery"], format!("deliveries/{delivery}"));
    assert_eq!(tail.stop().code, 0);
    let mut get = vec!["get", "--delivery", &delivery];
    get.extend(access);
    let got = Finished::of(passline(&get));
    assert_eq!(got.code, 0, "{got:?}");

    let refused = Finished::of(passline(&[
        "get",
        "--delivery",
        &delivery,
        "--server",
        &server,
        "--ca-file",
        &ca,
    ]));
    assert_eq!(refused.code, 1, "{refused:?}");
    for (arguments, option) in [
        (["--server", &plain, "--ca-file", &ca], "--server: "),
        (["--server", &server, "--ca-file", &key], "--ca-file: "),
        (
            ["--server", &server, "--token-file", "/absent"],
            "--token-file: ",
        ),
    ] {
        let mut get = vec!["get", "--delivery", &delivery];
        get.extend(arguments);
        let wrong = Finished::of(passline(&get));
        assert_eq!(wrong.code, 64, "{wrong:?}");
        assert!(wrong.stderr.contains(option), "{wrong:?}");
    }
    assert_eq!(running.stop().code, 0);
}
