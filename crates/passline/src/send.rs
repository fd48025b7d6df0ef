//! `passline send`: a callback as its vendor would send it.

use std::fs::File;
use std::io::{self, Read};

use http::Method;
use pass_sources::samples::{self, Sample};
use pass_sources::{AuthConfig, SourceConfig, sign};
use service_kit::clock::{Clock as _, SystemClock};

use crate::args::{GatewayArgs, SendArgs};
use crate::post::{Answer, Sender};
use crate::render::{paint, words};
use crate::{Failure, Out, sample_sources};

/// Largest body that is sent; the gateway's own limit is lower.
const BODY_BYTES_MAX: u64 = 16 << 20;
/// Largest secret that is read from a file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Runs the command. As JSON: `{"http_status": …, "answer": …}`, or one line per
/// sample with `--list`.
pub(crate) async fn run(args: SendArgs, out: &mut Out) -> Result<(), Failure> {
    if args.list {
        let source = match &args.source {
            Some(name) => Some(source(name, &args.gateway)?),
            None => None,
        };
        return list(source.as_ref().map(|source| source.vendor.as_str()), out);
    }
    post(&args, out).await?;
    Ok(())
}

/// Sends what the arguments say, shows the answer, and returns it if it says that the delivery was accepted.
pub(crate) async fn post(args: &SendArgs, out: &mut Out) -> Result<Answer, Failure> {
    let name = args
        .source
        .as_ref()
        .ok_or_else(|| Failure::Usage("name a source with --source".to_owned()))?;
    let source = source(name, &args.gateway)?;
    let content = content(&source, args)?;
    let sender = Sender::new(&args.gateway.url, args.gateway.url_ca_file.as_deref())?;
    let answer = deliver(&sender, &source, &content).await?;
    out.object(&serde_json::json!({
        "http_status": answer.status.as_u16(),
        "answer": answer.body,
    }))?;
    out.text(&format!("{}\n", answer_text(&answer)))?;
    if answer.is_accepted() {
        Ok(answer)
    } else {
        Err(Failure::Failed(format!(
            "the gateway refused the delivery with {}",
            answer.status
        )))
    }
}

/// What to send.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) method: Method,
    pub(crate) body: Vec<u8>,
    /// The message id, for schemes that sign one: the same message sent twice is
    /// one delivery told twice.
    pub(crate) id: String,
}

impl Content {
    /// A sample, with an id of its own.
    pub(crate) fn of_sample(sample: &Sample) -> Self {
        Self {
            method: Method::try_from(sample.method.name()).unwrap_or(Method::POST),
            body: sample.body.as_bytes().to_vec(),
            id: format!("msg_sample_{}", sample.name),
        }
    }
}

/// Signs `content` as the sender of `source` would, and sends it.
pub(crate) async fn deliver(
    sender: &Sender,
    source: &SourceConfig,
    content: &Content,
) -> Result<Answer, Failure> {
    let key = sample_sources::key(source).as_bytes();
    let signed = sign(source, key, &content.body, &content.id, SystemClock.now())
        .map_err(|error| Failure::Usage(format!("source {}: {error}", source.name)))?;
    sender
        .send(&source.name, content.method.clone(), &signed)
        .await
}

/// An answer on one line.
pub(crate) fn answer_text(answer: &Answer) -> String {
    let status = answer.status.as_u16().to_string();
    if !answer.is_accepted() {
        let detail = match answer.text("detail") {
            "" => answer.text("title"),
            detail => detail,
        };
        return format!("{} {}", paint::bad(&status), words::plain(detail));
    }
    let mut text = format!(
        "{} {} {}",
        paint::good(&status),
        words::plain(answer.text("status")),
        words::plain(answer.text("delivery"))
    );
    let reason = answer.text("reason");
    if !reason.is_empty() {
        text.push_str(&format!(" ({})", words::plain(reason)));
    }
    text
}

/// The source's configuration, from the data directory or from the arguments,
/// with the secret to use as its first.
fn source(name: &str, args: &GatewayArgs) -> Result<SourceConfig, Failure> {
    let known = sample_sources::load(&args.data_dir)?
        .unwrap_or_default()
        .into_iter()
        .find(|source| source.name == name);
    let mut source = match (known, &args.vendor) {
        (Some(source), None) => source,
        (known, Some(vendor)) => SourceConfig {
            name: name.to_owned(),
            vendor: vendor.clone(),
            auth: AuthConfig {
                scheme: usual_scheme(vendor)?.to_owned(),
                ..AuthConfig::default()
            },
            envelope: known.and_then(|source| source.envelope),
            ..SourceConfig::default()
        },
        (None, None) => {
            return Err(Failure::Usage(format!(
                "no source `{name}` in {}: name the data directory of `passline up` with --data-dir, \
                 or give --vendor and --secret",
                sample_sources::path(&args.data_dir).display()
            )));
        }
    };
    if let Some(scheme) = &args.scheme {
        source.auth.scheme.clone_from(scheme);
    }
    if let Some(secret) = &args.secret {
        source.auth.secrets = vec![pass_sources::SecretConfig {
            value: Some(secret_of(secret)?),
            ..pass_sources::SecretConfig::default()
        }];
    }
    Ok(source)
}

fn usual_scheme(vendor: &str) -> Result<&'static str, Failure> {
    match vendor {
        "passworks" => Ok("api_key"),
        "passkit" => Ok("hmac"),
        "signed_envelope" => Ok("signed_envelope"),
        "standard" => Ok("standard_webhooks"),
        other => Err(Failure::Usage(format!(
            "no vendor `{other}`: use passworks, passkit, signed_envelope or standard"
        ))),
    }
}

fn secret_of(argument: &str) -> Result<String, Failure> {
    let Some(path) = argument.strip_prefix('@') else {
        return Ok(argument.to_owned());
    };
    let file = File::open(path).map_err(|error| Failure::Failed(format!("{path}: {error}")))?;
    let bytes = read_bounded(file, path, SECRET_BYTES_MAX)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::Failed(format!("{path}: the secret is not UTF-8")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn content(source: &SourceConfig, args: &SendArgs) -> Result<Content, Failure> {
    let mut content = if let Some(path) = &args.file {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
        raw(read_bounded(file, &name, BODY_BYTES_MAX)?)
    } else if args.body.is_some() {
        raw(read_bounded(
            io::stdin().lock(),
            "standard input",
            BODY_BYTES_MAX,
        )?)
    } else {
        Content::of_sample(sample(source, args.sample.as_deref())?)
    };
    if let Some(method) = &args.method {
        content.method = Method::try_from(method.to_ascii_uppercase().as_str())
            .map_err(|_| Failure::Usage(format!("`{}` is no HTTP method", words::plain(method))))?;
    }
    Ok(content)
}

fn raw(body: Vec<u8>) -> Content {
    let now = SystemClock.now().as_nanosecond();
    Content {
        method: Method::POST,
        body,
        id: format!("msg_{now}"),
    }
}

fn sample(source: &SourceConfig, name: Option<&str>) -> Result<&'static Sample, Failure> {
    let found = match name {
        Some(name) => samples::find(&source.vendor, name),
        None => samples::of_vendor(&source.vendor).next(),
    };
    found.ok_or_else(|| {
        let names: Vec<&str> = samples::of_vendor(&source.vendor)
            .map(|sample| sample.name)
            .collect();
        Failure::Usage(format!(
            "no such sample of {}; there are: {}",
            source.vendor,
            names.join(", ")
        ))
    })
}

fn read_bounded(from: impl Read, name: &str, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = from.take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(|error| Failure::Failed(format!("{name}: {error}")))?;
    if bytes.len() as u64 > bytes_max {
        return Err(Failure::Failed(format!(
            "{name}: more than {bytes_max} bytes"
        )));
    }
    Ok(bytes)
}

fn list(vendor: Option<&str>, out: &mut Out) -> Result<(), Failure> {
    for sample in samples::SAMPLES {
        if vendor.is_some_and(|vendor| vendor != sample.vendor) {
            continue;
        }
        out.object(&serde_json::json!({
            "vendor": sample.vendor,
            "sample": sample.name,
            "method": sample.method.name(),
        }))?;
        out.text(&format!(
            "{:<16}  {:<6}  {}\n",
            sample.vendor,
            sample.method.name(),
            sample.name
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn args(line: &str) -> SendArgs {
        let cli = crate::args::Cli::try_parse_from(line.split_whitespace()).unwrap();
        let crate::args::Command::Send(args) = cli.command else {
            panic!("not send")
        };
        args
    }

    #[test]
    fn the_key_comes_from_the_data_directory_unless_one_is_given() {
        let dir = tempfile::tempdir().unwrap();
        sample_sources::ensure(dir.path()).unwrap();
        let in_dir = |line: &str| GatewayArgs {
            data_dir: dir.path().to_owned(),
            ..args(line).gateway
        };
        let kept = source("standard", &in_dir("passline send --source standard")).unwrap();
        assert!(sample_sources::key(&kept).starts_with("whsec_"));
        let given = source(
            "standard",
            &in_dir("passline send --source standard --secret abc"),
        )
        .unwrap();
        assert_eq!(
            (sample_sources::key(&given), given.auth.scheme.as_str()),
            ("abc", "standard_webhooks")
        );
        let own = source(
            "mine",
            &in_dir("passline send --source mine --vendor passkit --secret abc"),
        )
        .unwrap();
        assert_eq!(
            (own.vendor.as_str(), own.auth.scheme.as_str()),
            ("passkit", "hmac")
        );
        let failure = source("mine", &in_dir("passline send --source mine")).unwrap_err();
        assert_eq!(failure.exit_code(), 64);
        let failure = source(
            "x",
            &in_dir("passline send --source x --vendor acme --secret s"),
        )
        .unwrap_err();
        assert!(
            failure.to_string().contains("no vendor `acme`"),
            "{failure}"
        );
    }

    #[test]
    fn a_sample_keeps_its_vendors_method_and_its_message_id() {
        let source = SourceConfig {
            vendor: "passkit".into(),
            ..SourceConfig::default()
        };
        let line = "passline send --source passkit --sample record_deleted";
        let content = content(&source, &args(line)).unwrap();
        assert_eq!(
            (content.method, content.id.as_str()),
            (Method::DELETE, "msg_sample_record_deleted")
        );
        let put = self::content(
            &source,
            &args("passline send --source passkit --sample record_deleted --method put"),
        );
        assert_eq!(put.unwrap().method, Method::PUT);
        let failure = sample(&source, Some("melted")).unwrap_err().to_string();
        assert!(failure.contains("record_created"), "{failure}");
    }

    #[test]
    fn answers_show_what_the_gateway_says() {
        let answer = |status: u16, body: serde_json::Value| Answer {
            status: http::StatusCode::from_u16(status).unwrap(),
            body,
        };
        let shown =
            |answer: &Answer| anstream::adapter::strip_str(&answer_text(answer)).to_string();
        let stored = answer(
            200,
            serde_json::json!({"delivery": "del_1", "status": "stored"}),
        );
        assert_eq!(shown(&stored), "200 stored del_1");
        let kept = answer(
            200,
            serde_json::json!({"delivery": "del_1", "status": "quarantined", "reason": "KIND_UNKNOWN"}),
        );
        assert_eq!(shown(&kept), "200 quarantined del_1 (KIND_UNKNOWN)");
        let refused = answer(
            401,
            serde_json::json!({"title": "unauthorized", "detail": "no valid credential"}),
        );
        assert_eq!(shown(&refused), "401 no valid credential");
    }
}
