//! What can be typed. The doc comments here are the help texts.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand};

/// Wallet-pass webhooks as one durable, ordered, queryable stream of events.
///
/// Try `passline demo` first: it starts everything in a temporary directory,
/// sends vendors' documented callbacks and shows what becomes of them.
#[derive(Debug, Parser)]
#[command(
    name = "passline",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 failure, 64 wrong usage or configuration."
)]
pub struct Cli {
    /// Print one JSON object per line instead of text.
    ///
    /// Fields have the names of the proto files (snake_case), enums are written by name, times as RFC
    /// 3339; absent and zero fields are left out.
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the webhook gateway and pass-state in one process.
    ///
    /// Without a configuration this makes four sample sources with generated keys, kept in
    /// DIR/sources.toml so that a restart has the same ones. Ends on SIGINT or SIGTERM once everything
    /// accepted is safe; a second signal skips the waiting.
    Up(UpArgs),
    /// Start everything in a temporary directory, send documented callbacks, show what becomes of them.
    Demo(DemoArgs),
    /// Send a sample or a file to a source, authenticated as its vendor would.
    Send(SendArgs),
    /// Send a sample and wait until pass-state shows the delivery and its pass: does all of it work?
    ///
    /// The event stays in the log, so name a source that is there for tests.
    Smoke(SmokeArgs),
    /// Show a pass with its timeline, or a delivery.
    Get(GetArgs),
    /// Follow the log, and go on after an interruption where it stopped.
    Tail(TailArgs),
    /// Check a configuration file and list everything that is wrong with it.
    CheckConfig(CheckConfigArgs),
}

/// Arguments of `up`.
#[derive(Debug, Args)]
pub struct UpArgs {
    /// A TOML file with the tables `[gateway]` and `[pass_state]`.
    ///
    /// Environment variables win over it: GATEWAY__HTTP__LISTEN, PASS_STATE__GRPC__LISTEN, and so on.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where spool, database and sample keys are kept.
    #[arg(long, value_name = "DIR", default_value = "passline-data")]
    pub data_dir: PathBuf,
    /// Write logs as JSON, for machines that collect them.
    #[arg(long)]
    pub json_logs: bool,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// End after the show: with 0 if everything was as it should be, else with 1.
    #[arg(long)]
    pub exit: bool,
    /// Keep the data in this new or empty directory instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// Arguments of `send`.
#[derive(Debug, Args)]
pub struct SendArgs {
    /// The source's name, the last part of its URL.
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    pub source: Option<String>,
    /// Send this documented callback; see --list. Default: the vendor's first.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["file", "body"])]
    pub sample: Option<String>,
    /// Send this file's bytes as they are.
    #[arg(long, value_name = "PATH", conflicts_with = "body")]
    pub file: Option<PathBuf>,
    /// `-` sends standard input.
    #[arg(value_name = "-", value_parser = ["-"])]
    pub body: Option<String>,
    /// Where it is sent, and as whom.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// The HTTP method instead of the sample's (POST for files).
    #[arg(long)]
    pub method: Option<String>,
    /// List the samples, all or those of --source's vendor, and send nothing.
    #[arg(long)]
    pub list: bool,
}

/// The gateway that a callback is sent to, and the source in whose name.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// The gateway, with https:// for TLS.
    #[arg(
        id = "gateway_url",
        long = "url",
        value_name = "URL",
        default_value = "http://127.0.0.1:8080"
    )]
    pub url: String,
    /// Authorities to trust for the gateway instead of the system's, a PEM file.
    #[arg(long, value_name = "FILE")]
    pub url_ca_file: Option<PathBuf>,
    /// Where `passline up` keeps the sample sources' keys (sources.toml).
    #[arg(long, value_name = "DIR", default_value = "passline-data")]
    pub data_dir: PathBuf,
    /// The source's secret instead of the one in the data directory.
    ///
    /// For a source that is not in DIR/sources.toml, give --vendor and, if it is not the vendor's usual
    /// one, --scheme too. Other users of this machine can see arguments; `@PATH` reads it from a file.
    #[arg(long, value_name = "SECRET")]
    pub secret: Option<String>,
    /// The vendor of a source that is not in DIR/sources.toml: passworks, passkit, signed_envelope, standard.
    #[arg(long, requires = "secret")]
    pub vendor: Option<String>,
    /// How the source is authenticated: api_key, hmac, signed_envelope, standard_webhooks, url_secret.
    #[arg(long, requires = "secret")]
    pub scheme: Option<String>,
}

/// Arguments of `smoke`.
#[derive(Debug, Args)]
pub struct SmokeArgs {
    /// The source's name, the last part of its URL.
    #[arg(long, value_name = "NAME")]
    pub source: String,
    /// Send this documented callback; see `send --list`. Default: the vendor's first.
    #[arg(long, value_name = "NAME")]
    pub sample: Option<String>,
    /// Where it is sent, and as whom.
    #[command(flatten)]
    pub gateway: GatewayArgs,
    /// Seconds to wait for pass-state to show it, 1 to 3600.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub wait: u64,
    /// How pass-state is reached.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).args(["pass", "delivery"]))]
pub struct GetArgs {
    /// The pass: sources/{source}/passes/{pass}.
    #[arg(value_name = "PASS_NAME")]
    pub pass: Option<String>,
    /// Show this delivery with its body: del_… or deliveries/del_….
    #[arg(long, value_name = "DELIVERY")]
    pub delivery: Option<String>,
    /// How pass-state is reached.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// Arguments of `tail`.
#[derive(Debug, Args)]
pub struct TailArgs {
    /// Go on after this cursor.
    #[arg(long, value_name = "CURSOR", conflicts_with = "from_beginning")]
    pub after: Option<String>,
    /// Start at the oldest event that is kept. Without this or --after: only what is new.
    #[arg(long)]
    pub from_beginning: bool,
    /// Only these events, such as 'kind = INSTALLED AND effect.changed = true'.
    #[arg(long, value_name = "EXPR", default_value = "")]
    pub filter: String,
    /// End at the log's present end instead of waiting for more.
    #[arg(long)]
    pub stop_at_head: bool,
    /// How pass-state is reached.
    #[command(flatten)]
    pub server: ServerArgs,
}

/// How pass-state is reached.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// Where pass-state is, with https:// for TLS; several replicas separated by commas.
    #[arg(
        long = "server",
        value_name = "URL",
        default_value = "http://127.0.0.1:50051"
    )]
    pub url: String,
    /// Authorities to trust instead of the system's, a PEM file.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The certificate to show, a PEM file.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub cert_file: Option<PathBuf>,
    /// Its private key, a PEM file.
    #[arg(long, value_name = "FILE", requires = "cert_file")]
    pub key_file: Option<PathBuf>,
    /// The name that the server's certificate must have, instead of the URL's host.
    #[arg(long, value_name = "NAME")]
    pub server_name: Option<String>,
    /// A file that holds the token to show.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// Arguments of `check-config`.
#[derive(Debug, Args)]
pub struct CheckConfigArgs {
    /// The file that `up --config` is to be given.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let Command::Up(up) = parse("passline up").unwrap().command else {
            panic!("not up");
        };
        assert_eq!(up.data_dir, PathBuf::from("passline-data"));
        let Command::Tail(tail) = parse("passline tail --json").unwrap().command else {
            panic!("not tail");
        };
        assert_eq!(tail.server.url, "http://127.0.0.1:50051");
        assert!(!tail.from_beginning && tail.after.is_none() && tail.filter.is_empty());
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "passline",
            "passline tail --after x --from-beginning",
            "passline get",
            "passline get sources/a/passes/b --delivery del_1",
            "passline send",
            "passline send --source a --sample b --file c",
            "passline send --source a --file c -",
            "passline send --source a body",
            "passline send --source a --vendor passkit",
            "passline smoke",
            "passline smoke --source a --wait 0",
            "passline get --delivery del_1 --cert-file c",
            "passline tail --key-file k",
            "passline check-config",
            "passline demo --for-ever",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        for line in [
            "passline demo --exit",
            "passline send --list",
            "passline send --source a -",
            "passline get --delivery del_1",
            "passline tail --server https://h:1 --ca-file a --cert-file c --key-file k --token-file t",
            "passline --json get sources/a/passes/b --server http://h:1",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
    }
}
