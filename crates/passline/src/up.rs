//! `passline up`: both services until a signal, with everything to paste.

use std::fmt::Write as _;
use std::path::Path;

use pass_sources::SourceConfig;
use service_kit::config::process_env;
use service_kit::telemetry::{self, LogFormat, TelemetryConfig};

use crate::args::UpArgs;
use crate::config::{self, Both};
use crate::render::paint;
use crate::services::{Addresses, DataDir, Services, signals};
use crate::{Failure, Out, sample_sources};

/// A callback to paste; Passworks' own form with the least it needs.
const PASTED_BODY: &str = r#"{"event":"created","context":"pass","pass_id":"my-first-pass","event_at":"2026-01-02T03:04:05Z"}"#;
/// Where pass-state listens unless told otherwise; `passline tail` knows.
pub(crate) const SERVER_DEFAULT: &str = "http://127.0.0.1:50051";
/// Where the gateway listens unless told otherwise; `passline send` knows.
const URL_DEFAULT: &str = "http://127.0.0.1:8080";
/// The data directory unless told otherwise.
const DATA_DIR_DEFAULT: &str = "passline-data";

/// Runs the command. As JSON: one line once everything is up, `{"up": …}`.
pub(crate) async fn run(args: UpArgs, out: &mut Out) -> Result<(), Failure> {
    let mut interrupts = signals()?;
    let env = process_env();
    let directory = DataDir::take(&args.data_dir)?;
    let (both, sources) = match &args.config {
        Some(file) => (usable(config::load(file, true, &env))?, Vec::new()),
        None => with_samples(&directory, &env)?,
    };
    let mut logs = both.gateway.telemetry.clone();
    if args.json_logs {
        logs.log_format = LogFormat::Json;
    }
    let telemetry = start_telemetry(logs);
    let mut services = Services::start(both, directory, env).await?;
    let up = Up {
        addresses: services.addresses,
        data_dir: &args.data_dir,
        sources: &sources,
        program: program(),
    };
    out.object(&up.as_json())?;
    out.text(&up.as_text())?;
    let result = tokio::select! {
        failure = services.ended() => Err(failure),
        () = interrupts.recv() => services.stop(&mut interrupts).await,
    };
    telemetry.shutdown().await;
    result
}

/// Starts logs and traces for both services: the process is called `passline`,
/// and each service names itself on its spans.
pub(crate) fn start_telemetry(config: TelemetryConfig) -> telemetry::TelemetryGuard {
    telemetry::init(&TelemetryConfig {
        service_name: "passline".to_owned(),
        ..config
    })
}

/// The configuration with sample sources, which are made if need be.
pub(crate) fn with_samples(
    directory: &DataDir,
    env: &[(String, String)],
) -> Result<(Both, Vec<SourceConfig>), Failure> {
    let data_dir = directory.path();
    let file = sample_sources::ensure(data_dir).map_err(|error| {
        Failure::Failed(format!("data directory {}: {error}", data_dir.display()))
    })?;
    let both = usable(config::load(&file, false, env))?;
    Ok((both, sample_sources::load(data_dir)?.unwrap_or_default()))
}

fn usable(loaded: Result<Both, Vec<String>>) -> Result<Both, Failure> {
    loaded.map_err(|faults| {
        Failure::Usage(format!(
            "the configuration has faults:\n{}",
            faults.join("\n")
        ))
    })
}

/// What there is to say about running services.
pub(crate) struct Up<'a> {
    pub(crate) addresses: Addresses,
    pub(crate) data_dir: &'a Path,
    pub(crate) sources: &'a [SourceConfig],
    /// How this program was called, so that commands work when pasted.
    pub(crate) program: String,
}

impl Up<'_> {
    fn as_json(&self) -> serde_json::Value {
        let sources: Vec<_> = self
            .sources
            .iter()
            .map(|source| {
                serde_json::json!({
                    "name": source.name,
                    "vendor": source.vendor,
                    "scheme": source.auth.scheme,
                    "sample_key": sample_sources::key(source),
                })
            })
            .collect();
        let Addresses {
            callbacks,
            gateway_admin,
            grpc,
            pass_state_admin,
        } = self.addresses;
        serde_json::json!({ "up": {
            "callbacks": format!("{callbacks}/webhooks/"),
            "gateway_admin": gateway_admin.to_string(),
            "pass_state": grpc.to_string(),
            "pass_state_admin": pass_state_admin.to_string(),
            "data_dir": self.data_dir,
            "sources": sources,
        }})
    }

    fn as_text(&self) -> String {
        let Addresses {
            callbacks,
            gateway_admin,
            grpc,
            pass_state_admin,
        } = self.addresses;
        let mut text = format!(
            "{}\n\n",
            paint::heading("passline is up; end it with Ctrl-C")
        );
        let _ = writeln!(text, "  callbacks   {callbacks}/webhooks/{{source}}");
        let _ = writeln!(
            text,
            "  pass-state  {} (gRPC{})",
            grpc.at,
            if grpc.tls { " with TLS" } else { "" }
        );
        let _ = writeln!(
            text,
            "  health      {gateway_admin}/readyz and {pass_state_admin}/readyz"
        );
        let _ = writeln!(text, "  data        {}\n", self.data_dir.display());
        if !self.sources.is_empty() {
            let head =
                "Sample sources, with generated keys that are good for trying things out only";
            let _ = writeln!(text, "{}", paint::heading(head));
            for source in self.sources {
                let key = sample_sources::key(source);
                let _ = writeln!(
                    text,
                    "  {:<10}  {:<17}  {key}",
                    source.name, source.auth.scheme
                );
            }
            text.push('\n');
        }
        text.push_str(&self.to_try());
        text
    }

    /// Commands that work when pasted.
    pub(crate) fn to_try(&self) -> String {
        let Addresses {
            callbacks, grpc, ..
        } = self.addresses;
        let option = |name: &str, value: &str, default: &str| {
            if value == default {
                String::new()
            } else {
                format!(" --{name} {}", shell_quoted(value))
            }
        };
        let server = option("server", &grpc.to_string(), SERVER_DEFAULT);
        let url = option("url", &callbacks.to_string(), URL_DEFAULT);
        let data_dir = option(
            "data-dir",
            &self.data_dir.to_string_lossy(),
            DATA_DIR_DEFAULT,
        );
        let program = &self.program;
        let mut text = format!("{}\n", paint::heading("To try"));
        let mut line = |command: String| {
            let _ = writeln!(text, "  {}", paint::typed(&command));
        };
        if let Some(source) = self
            .sources
            .iter()
            .find(|source| source.auth.scheme == "api_key")
        {
            line(format!(
                "curl -H 'Authorization: {}' -H 'Content-Type: application/json' -d '{PASTED_BODY}' \
                 {callbacks}/webhooks/{}",
                sample_sources::key(source),
                source.name
            ));
            line(format!("{program} send --source passkit{url}{data_dir}"));
        }
        line(format!(
            "grpcurl{} -d '{{\"from_beginning\": true}}' {} passline.v1.SubscriptionService/Subscribe",
            if grpc.tls { "" } else { " -plaintext" },
            grpc.at
        ));
        line(format!("{program} tail --from-beginning{server}"));
        text
    }
}

/// How this program was called, as a shell takes it.
pub(crate) fn program() -> String {
    shell_quoted(
        &std::env::args()
            .next()
            .unwrap_or_else(|| "passline".to_owned()),
    )
}

/// A word as a shell takes it literally.
pub(crate) fn shell_quoted(word: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%[]".contains(c);
    if !word.is_empty() && word.chars().all(is_safe) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::Address;
    use pass_sources::{Request, Source};

    fn shown(ports: [u16; 4], data_dir: &str) -> String {
        shown_with(ports, data_dir, false)
    }

    fn shown_with(ports: [u16; 4], data_dir: &str, tls: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        sample_sources::ensure(dir.path()).unwrap();
        let sources = sample_sources::load(dir.path()).unwrap().unwrap();
        let at = |port: u16| Address {
            at: ([127, 0, 0, 1], port).into(),
            tls,
        };
        let up = Up {
            addresses: Addresses {
                callbacks: at(ports[0]),
                gateway_admin: at(ports[1]),
                grpc: at(ports[2]),
                pass_state_admin: at(ports[3]),
            },
            data_dir: Path::new(data_dir),
            sources: &sources,
            program: "passline".to_owned(),
        };
        anstream::adapter::strip_str(&up.as_text()).to_string()
    }

    #[test]
    fn commands_to_paste_name_only_what_differs_from_the_defaults() {
        let usual = shown([8080, 8081, 50051, 8082], "passline-data");
        assert!(
            usual.contains("\n  passline tail --from-beginning\n"),
            "{usual}"
        );
        assert!(
            usual.contains("\n  passline send --source passkit\n"),
            "{usual}"
        );
        let other = shown([18080, 8081, 150, 8082], "/tmp/my data");
        assert!(
            other.contains("tail --from-beginning --server http://127.0.0.1:150\n"),
            "{other}"
        );
        assert!(
            other.contains(
                "send --source passkit --url http://127.0.0.1:18080 --data-dir '/tmp/my data'\n"
            ),
            "{other}"
        );
    }

    #[test]
    fn listeners_with_tls_are_shown_as_such() {
        let text = shown_with([8080, 8081, 50051, 8082], "passline-data", true);
        assert!(
            !text.contains("http://") && !text.contains("-plaintext"),
            "{text}"
        );
        for part in [
            "https://127.0.0.1:8080/webhooks/",
            "https://127.0.0.1:8081/readyz",
            "https://127.0.0.1:8082/readyz",
            "--server https://127.0.0.1:50051",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }

    #[test]
    fn the_callback_to_paste_is_authentic_and_tells_one_event() {
        let text = shown([8080, 8081, 50051, 8082], "d");
        let line = text.lines().find(|line| line.contains("curl ")).unwrap();
        let quoted: Vec<&str> = line.split('\'').skip(1).step_by(2).collect();
        let [authorization, _, body] = quoted.as_slice() else {
            panic!("{line}")
        };
        let key = authorization.strip_prefix("Authorization: ").unwrap();
        let source = SourceConfig {
            name: "passworks".into(),
            vendor: "passworks".into(),
            auth: pass_sources::AuthConfig {
                scheme: "api_key".into(),
                ..Default::default()
            },
            ..SourceConfig::default()
        };
        let with_secret = SourceConfig {
            auth: pass_sources::AuthConfig {
                secrets: vec![pass_sources::SecretConfig {
                    value: Some(key.into()),
                    ..Default::default()
                }],
                ..source.auth.clone()
            },
            ..source
        };
        let source = Source::build(&with_secret, &mut |secret| {
            Ok(secret.value.clone().unwrap().into_bytes())
        })
        .unwrap();
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", key.parse().unwrap());
        let verified = source
            .verify(Request {
                method: &http::Method::POST,
                path_and_query: "/webhooks/passworks",
                url_secret: None,
                headers: &headers,
                body: body.as_bytes(),
                peer: Some([127, 0, 0, 1].into()),
                receive_time: jiff::Timestamp::from_second(1_800_000_000).unwrap(),
            })
            .unwrap();
        let decoded = format!("{:?}", source.decode(&verified));
        assert!(decoded.contains("Created"), "{decoded}");
    }

    #[test]
    fn words_for_a_shell_are_quoted_where_needed() {
        assert_eq!(shell_quoted("/tmp/a-b_c.d"), "/tmp/a-b_c.d");
        assert_eq!(shell_quoted("it's; rm"), r"'it'\''s; rm'");
        assert_eq!(shell_quoted(""), "''");
    }
}
