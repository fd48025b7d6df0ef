//! One configuration file for both services, `[gateway]` and `[pass_state]`,
//! and `passline check-config`.

use std::path::{Path, PathBuf};

use service_kit::config::{self, Faults, Sources};

use crate::args::CheckConfigArgs;
use crate::{Failure, Out};

/// The table of the gateway's configuration.
const GATEWAY: &str = "gateway";
/// The table of pass-state's configuration.
const PASS_STATE: &str = "pass_state";

/// Both services' configurations.
pub(crate) struct Both {
    pub(crate) gateway: webhook_gateway::Config,
    /// Where the gateway's comes from, to be read again when it changes.
    pub(crate) gateway_from: Sources,
    pub(crate) pass_state: pass_state::Config,
}

/// Loads both from `file`, with `env` laid over; with `sources` the gateway is
/// read from there, and pass-state has its defaults.
pub(crate) fn load(
    file: &Path,
    has_pass_state: bool,
    env: &[(String, String)],
) -> Result<Both, Vec<String>> {
    let from = |section, env_prefix, file: Option<PathBuf>| Sources {
        file,
        env_prefix,
        env: env.to_vec(),
        section: Some(section),
    };
    let mut faults = Vec::new();
    let gateway_from = from(
        GATEWAY,
        webhook_gateway::config::ENV_PREFIX,
        Some(file.to_owned()),
    );
    let gateway = webhook_gateway::Config::load(&gateway_from);
    let pass_state: Result<pass_state::Config, Faults> = config::load(&from(
        PASS_STATE,
        pass_state::config::ENV_PREFIX,
        has_pass_state.then(|| file.to_owned()),
    ));
    match (gateway, pass_state) {
        (Ok(gateway), Ok(pass_state)) => {
            unknown_tables(file, &mut faults);
            if faults.is_empty() {
                Ok(Both {
                    gateway,
                    gateway_from,
                    pass_state,
                })
            } else {
                Err(faults)
            }
        }
        (gateway, pass_state) => {
            collect(GATEWAY, gateway.err(), &mut faults);
            collect(PASS_STATE, pass_state.err(), &mut faults);
            unknown_tables(file, &mut faults);
            Err(faults)
        }
    }
}

/// Adds faults with their table in front; one of the file as a whole only once.
fn collect(table: &str, found: Option<Faults>, faults: &mut Vec<String>) {
    for fault in found.iter().flat_map(Faults::iter) {
        let text = if fault.path.is_empty() {
            fault.to_string()
        } else {
            format!("{table}.{fault}")
        };
        if !faults.contains(&text) {
            faults.push(text);
        }
    }
}

/// Each service ignores tables that are not its own; together they know all.
fn unknown_tables(file: &Path, faults: &mut Vec<String>) {
    // A file that can't be read or parsed is the services' fault to tell.
    let Ok(text) = std::fs::read_to_string(file) else {
        return;
    };
    let Ok(document) = text.parse::<toml::Table>() else {
        return;
    };
    if !document.is_empty() && !document.contains_key(GATEWAY) && !document.contains_key(PASS_STATE)
    {
        faults.push(format!(
            "(file {}): has neither [gateway] nor [pass_state]; fix: put each service's keys under its table, \
             or check a file of one service with `webhook-gateway check-config` or `pass-state check-config`",
            file.display()
        ));
        return;
    }
    for key in document
        .keys()
        .filter(|key| *key != GATEWAY && *key != PASS_STATE)
    {
        faults.push(format!(
            "{} (file {}): unknown table; allowed: gateway, pass_state; fix: correct or remove it",
            crate::render::words::plain(key),
            file.display()
        ));
    }
}

/// Runs `check-config`. As JSON: one line per fault, `{"fault": …}`.
pub(crate) fn check(args: &CheckConfigArgs, out: &mut Out) -> Result<(), Failure> {
    match load(&args.file, true, &config::process_env()) {
        Ok(both) => {
            let sources = both.gateway.sources.len();
            out.text(&format!(
                "{}: no faults, {sources} sources\n",
                args.file.display()
            ))?;
            out.object(&serde_json::json!({ "faults": 0, "sources": sources }))?;
            Ok(())
        }
        Err(faults) => {
            for fault in &faults {
                out.text(&format!("{fault}\n"))?;
                out.object(&serde_json::json!({ "fault": fault }))?;
            }
            Err(Failure::Usage(format!(
                "{}: {} faults",
                args.file.display(),
                faults.len()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passline.toml");
        std::fs::write(&path, text).unwrap();
        load(&path, true, &[]).err().unwrap_or_default()
    }

    #[test]
    fn faults_of_both_services_are_told_at_once_with_their_tables() {
        let found = faults(
            "[gatway]\n[gateway.http]\nlisten = \"nowhere\"\nlimit = 3\n[pass_state.grpc]\nlisten = 7\n",
        );
        let starts = |start: &str| found.iter().any(|fault| fault.starts_with(start));
        assert!(starts("gateway.http.listen "), "{found:?}");
        assert!(starts("gateway.http.limit "), "{found:?}");
        assert!(starts("pass_state.grpc.listen "), "{found:?}");
        assert!(starts("gatway "), "{found:?}");
        assert_eq!(found.len(), 4, "{found:?}");
    }

    #[test]
    fn a_file_that_is_no_toml_is_one_fault() {
        assert_eq!(faults("[gateway\n").len(), 1);
    }

    #[test]
    fn a_file_of_one_service_is_sent_to_its_own_checker() {
        let found = faults("[http]\nlisten = \"127.0.0.1:8080\"\n");
        assert!(
            found
                .iter()
                .any(|fault| fault.contains("webhook-gateway check-config")),
            "{found:?}"
        );
    }

    #[test]
    fn the_example_file_has_no_faults() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("passline.example.toml");
        let env = [(
            "PASSWORKS_API_KEY".to_owned(),
            "0123456789abcdef0123".to_owned(),
        )];
        let both = load(&path, true, &env).unwrap_or_else(|faults| panic!("{faults:#?}"));
        assert_eq!(both.gateway.sources.len(), 1);
    }

    /// `up` takes them as well; whether the servers are there is seen when it starts.
    #[test]
    fn a_file_may_name_servers_for_both_services() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passline.toml");
        let text = "[gateway.spool]\nbackend = \"jetstream\"\n[gateway.spool.jetstream]\nservers = [\"nats://a:4222\"]\n\
                    token = { env = \"NATS_TOKEN\" }\n[pass_state.store]\nbackend = \"postgres\"\n\
                    [pass_state.store.postgres]\nurl = { env = \"DATABASE_URL\" }\n";
        std::fs::write(&path, text).unwrap();
        let env = [
            ("NATS_TOKEN", "canary"),
            ("DATABASE_URL", "postgres://canary@db/passline"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let both = load(&path, true, &env).unwrap_or_else(|faults| panic!("{faults:#?}"));
        assert_eq!(both.gateway.spool.jetstream.servers, ["nats://a:4222"]);

        let applied = format!("{text}[gateway.ack]\nmode = \"applied\"\n");
        std::fs::write(&path, applied).unwrap();
        let found = load(&path, true, &env).err().unwrap();
        assert!(
            found.len() == 1 && found[0].starts_with("gateway.ack.mode "),
            "{found:?}"
        );
        let found = load(&path, true, &[]).err().unwrap().join("\n");
        assert!(found.contains("DATABASE_URL"), "{found}");
        assert!(!found.contains("canary"), "{found}");
    }

    #[test]
    fn the_services_own_examples_fit_under_their_tables() {
        let services = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../services");
        let read = |path: &str| {
            std::fs::read_to_string(services.join(path))
                .unwrap()
                .parse::<toml::Table>()
                .unwrap()
        };
        let mut document = toml::Table::new();
        document.insert(
            GATEWAY.into(),
            read("webhook-gateway/webhook-gateway.example.toml").into(),
        );
        document.insert(
            PASS_STATE.into(),
            read("pass-state/pass-state.example.toml").into(),
        );
        assert_eq!(faults(&document.to_string()), Vec::<String>::new());
    }
}
