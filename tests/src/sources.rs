//! The sources that system tests configure, and the same sources as a library, so that a test knows what a
//! body is to be decoded to.

use std::collections::HashMap;

use anyhow::{Context as _, anyhow};
use pass_domain::Timestamp;
use pass_domain::delivery::Decoded;
use pass_domain::ids::SourceUid;
use pass_sources::{Source, SourceConfig, method_from_http};

use crate::callback::Callback;

/// API keys of the sources whose traffic is made up. Markers of the search for secrets in logs, too.
pub const PASSWORKS_KEY: &str = "marker-key-passworks-8f2b61";
/// See [`PASSWORKS_KEY`].
pub const PASSKIT_KEY: &str = "marker-key-passkit-771c05";
/// See [`PASSWORKS_KEY`].
pub const STANDARD_KEY: &str = "marker-key-standard-e90d44";
/// Secret of the source `passkit-signed`, which signs as PassKit does.
pub const PASSKIT_SECRET: &str =
    "bWFya2VyLXNlY3JldC1wYXNza2l0LTAxMjM0NTY3ODlhYmNkZWYwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OQ==";
/// Secret of the source `envelope`.
pub const ENVELOPE_SECRET: &str = "marker-secret-envelope-3c9f20aa17";
/// Secret of the source `hooks`, of Standard Webhooks.
pub const HOOKS_SECRET: &str = "whsec_bWFya2VyLXNlY3JldC1ob29rcy0wMTIzNDU2Nzg5";

/// The `[[sources]]` of every system test, for the gateway's configuration file.
pub fn sources_toml() -> String {
    format!(
        r#"
[[sources]]
name = "passworks"
vendor = "passworks"
organization = "acme"
auth = {{ scheme = "api_key", secrets = [{{ id = "a", value = "{PASSWORKS_KEY}" }}] }}

[[sources]]
name = "passkit"
vendor = "passkit"
auth = {{ scheme = "api_key", header = "x-api-key", secrets = [{{ id = "a", value = "{PASSKIT_KEY}" }}] }}

[[sources]]
name = "standard"
vendor = "standard"
auth = {{ scheme = "api_key", secrets = [{{ id = "a", value = "{STANDARD_KEY}" }}] }}

[[sources]]
name = "passkit-signed"
vendor = "passkit"
auth = {{ scheme = "hmac", secrets = [{{ id = "a", value = "{PASSKIT_SECRET}" }}] }}

[[sources]]
name = "envelope"
vendor = "signed_envelope"
auth = {{ scheme = "signed_envelope", secrets = [{{ id = "a", value = "{ENVELOPE_SECRET}" }}] }}
envelope = {{ kinds = {{ "event.pass.installed" = "INSTALLED", "event.pass.uninstalled" = "UNINSTALLED" }} }}

[[sources]]
name = "hooks"
vendor = "standard"
auth = {{ scheme = "standard_webhooks", secrets = [{{ id = "a", value = "{HOOKS_SECRET}" }}] }}
"#
    )
}

/// The header that carries the API key of a source that has one.
pub fn key_header(source: &str) -> (String, String) {
    let (name, value) = match source {
        "passworks" => ("authorization", PASSWORKS_KEY),
        "passkit" => ("x-api-key", PASSKIT_KEY),
        _ => ("authorization", STANDARD_KEY),
    };
    (name.to_owned(), value.to_owned())
}

/// The configuration of one source of [`sources_toml`].
///
/// # Errors
/// If there is none of that name.
pub fn source_config(name: &str) -> anyhow::Result<SourceConfig> {
    let file: File = toml::from_str(&sources_toml()).context("sources_toml is not TOML")?;
    let mut sources = file.sources.into_iter();
    sources
        .find(|source| source.name == name)
        .with_context(|| format!("no source {name}"))
}

/// Decodes callbacks as the gateway does, in the test's own process.
#[derive(Debug)]
pub struct Decoder {
    sources: HashMap<String, Source>,
}

/// The one table that is read here.
#[derive(serde::Deserialize)]
struct File {
    sources: Vec<SourceConfig>,
}

impl Decoder {
    /// Builds the sources of [`sources_toml`].
    ///
    /// # Errors
    /// If they are not fit to be built.
    pub fn new() -> anyhow::Result<Self> {
        let file: File = toml::from_str(&sources_toml()).context("sources_toml is not TOML")?;
        let mut sources = HashMap::new();
        for config in file.sources {
            let resolve = &mut |reference: &pass_sources::SecretRef| {
                reference
                    .value
                    .as_ref()
                    .map(|value| value.as_bytes().to_vec())
                    .ok_or_else(|| "no value".to_owned())
            };
            let source = Source::build(&config, resolve)
                .map_err(|faults| anyhow!("source {}: {faults:?}", config.name))?;
            sources.insert(config.name, source);
        }
        Ok(Self { sources })
    }

    /// The source of a name.
    ///
    /// # Panics
    /// If there is none of that name in [`sources_toml`].
    pub fn source(&self, name: &str) -> &Source {
        self.sources
            .get(name)
            .expect("callbacks name configured sources")
    }

    /// The uid of a source.
    pub fn uid(&self, name: &str) -> &SourceUid {
        self.source(name).uid()
    }

    /// What the adapter makes of a callback received at `receive_time`.
    pub fn decode(&self, callback: &Callback, receive_time: Timestamp) -> Decoded {
        let method =
            method_from_http(&callback.method).expect("callbacks use methods that vendors use");
        let stored: Vec<_> = callback
            .headers
            .iter()
            .filter(|(name, _)| name == "content-type" || name == "webhook-id")
            .cloned()
            .collect();
        self.source(callback.source).decode_stored(
            method,
            &callback.path(),
            &stored,
            &callback.body,
            receive_time,
        )
    }
}
