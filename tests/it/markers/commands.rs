//! The command for people, `passline`: what it tells those who type it, and what its services log meanwhile.

use std::path::Path;
use std::process::{Output, Stdio};

use tokio::process::Command;

use super::*;

fn passline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_passline-under-test"));
    command.args(arguments);
    command
}

async fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(LIMIT, output).await;
    output.expect("the command ends").unwrap()
}

/// Runs a command as text and as JSON, and shows both its output and its errors.
async fn show(arguments: &[&[&str]], code: i32, out: &mut Shown, err: &mut Shown) {
    let arguments = arguments.concat();
    for json in [&[][..], &["--json"]] {
        let output = run(passline(&arguments).args(json)).await;
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| text(&bytes));
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {stdout}{stderr}"
        );
        assert_eq!(stderr.is_empty(), code == 0, "{arguments:?}: {stderr}");
        out.add(format!("the output of passline {}", arguments[0]), stdout);
        err.add(format!("the errors of passline {}", arguments[0]), stderr);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Shows what the command tells who sends and reads with it, rightly and wrongly.
pub(super) async fn run_commands(
    stand: &Stand,
    dir: &Path,
    tokens: &Tokens,
    receipt: &Receipt,
    told: &mut Shown,
    personal_told: &mut Shown,
) {
    let file = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut errors = Shown::default();
    let err = &mut errors;

    let url = format!("http://{}", stand.http());
    let body = file("body.json", &callbacks::standard("typed").to_string());
    let key = format!("@{}", file("key", STANDARD_KEY));
    // No header can hold it.
    let unfit = format!("{WRONG_KEY}\u{1}x");
    let to = ["--vendor", "standard", "--url", &url];
    let to_nobody = ["--vendor", "standard", "--url", "http://127.0.0.1:1"];
    let by_key = ["--source", "standard", "--scheme", "api_key", "--secret"];
    let by_url = ["--source", "url", "--scheme", "url_secret", "--secret"];
    for (to, by, secret, code) in [
        (to, by_key, key.as_str(), 0),
        (to, by_url, URL_SECRET, 0),
        (to, by_key, WRONG_KEY, 1),
        (to, by_url, WRONG_IN_URL, 1),
        (to, by_key, &unfit, 64),
        (to_nobody, by_key, STANDARD_KEY, 1),
        (to_nobody, by_url, URL_SECRET, 1),
    ] {
        let send = [&["send", "--file", &body][..], &to, &by, &[secret]];
        show(&send, code, told, err).await;
    }

    let server = ["--server", &format!("http://{}", stand.grpc())];
    let delivery = ["--delivery", &receipt.delivery];
    for (token, code) in [
        (&tokens.plain.token[..], 0),
        (&tokens.personal.token, 0),
        (&tokens.gateway.token, 1),
        (WRONG_TOKEN, 1),
        (&format!("{WRONG_TOKEN}\u{1}x"), 64),
    ] {
        let token_file = file("token-typed", token);
        let reader = [&server[..], &["--token-file", &token_file]].concat();
        let out = match token == tokens.personal.token {
            true => &mut *personal_told,
            false => &mut *told,
        };
        let smoke = [&["smoke"][..], &to, &by_key, &[&key], &reader];
        show(&smoke, code, out, err).await;
        let pass = ["get", "sources/standard/passes/st-1"];
        show(&[&pass, &reader], code, out, err).await;
        show(&[&["get"], &delivery, &reader], code, out, err).await;
        let tail = ["tail", "--from-beginning", "--stop-at-head"];
        show(&[&tail, &reader], code, out, err).await;
    }

    let s = INLINE_SECRET;
    for wrong in [
        format!(
            "[[gateway.sources]]\nname = \"a\"\nvendor = \"standard\"\nauth = {{ scheme = \"api_key\", secrets = [{s:?}] }}\n"
        ),
        format!("[gateway.pass_state]\ntoken = {s:?}\n"),
        format!(
            "[pass_state.store]\nbackend = \"postgres\"\n[pass_state.store.postgres]\nurl = {{ value = \"{s} }}\n"
        ),
        format!("[{s}]\n{s} = 1\n"),
    ] {
        let config = file("up.toml", &wrong);
        show(&[&["check-config", &config]], 64, told, err).await;
    }
    told.append(errors);
}

/// The keys that a demo made for its sources.
fn keys(dir: &Path) -> Vec<Marker> {
    let file = std::fs::read_to_string(dir.join("sources.toml")).unwrap();
    let file: toml::Value = toml::from_str(&file).unwrap();
    let sources = file["gateway"]["sources"].as_array().unwrap().iter();
    sources
        .map(|source| source["auth"]["secrets"][0]["value"].as_str().unwrap())
        .map(|key| Marker::new("a key", key.trim_start_matches("whsec_")))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_shows_no_key_and_logs_nothing_personal() {
    let dir = tempfile::tempdir().unwrap();
    // What the samples hold.
    let personal = [
        Marker::new("an IP address", "192.168.1.206"),
        Marker::new("a name", "Sample Holder"),
        Marker::new("an e-mail address", "holder@example.com"),
    ];
    let mut findings = Vec::new();
    for form in ["text", "json"] {
        let kept = dir.path().join(form);
        let mut command = passline(&["demo", "--exit", "--data-dir", kept.to_str().unwrap()]);
        if form == "json" {
            command.arg("--json");
        }
        for part in ["GATEWAY__HTTP", "GATEWAY__ADMIN"] {
            command.env(format!("{part}__LISTEN"), "127.0.0.1:0");
        }
        for part in ["PASS_STATE__GRPC", "PASS_STATE__ADMIN"] {
            command.env(format!("{part}__LISTEN"), "127.0.0.1:0");
        }
        let output = run(command.env("GATEWAY__TELEMETRY__LOG_FILTER", LOG_EVERYTHING)).await;
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| text(&bytes));
        assert!(output.status.success(), "{stdout}{stderr}");
        assert!(stderr.contains("spool is open"), "no logs: {stderr}");
        if form == "json" {
            // That there was something to be found.
            for marker in &personal {
                assert!(marker.is_in(&stdout), "{} is told to nobody", marker.what());
            }
        }
        let keys = keys(&kept);
        assert_eq!(keys.len(), 4);
        let (mut shown, mut logs) = (Shown::default(), Shown::default());
        shown.add(format!("the demo's output as {form}"), stdout);
        logs.add(format!("the demo's logs as {form}"), stderr);
        findings.extend(shown.findings(&keys));
        findings.extend(logs.findings(&[&keys[..], &personal].concat()));
    }
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}
