//! Taking a changed configuration in while callbacks come.
//!
//! Sources with their secrets, `ack`, rates and proxies change at once and together: a [`Policy`] is built whole from the
//! new configuration, and only one without a single fault is put in force. Requests in flight end under the old one.
//! Everything else needs a restart; which keys those are that were changed is told. Certificates, keys and tokens are not
//! looked at: they have reloads of their own, and a broken one must not keep a secret that was revoked in force.

use std::path::PathBuf;
use std::sync::Arc;

use pass_sources::SourceConfig;
use service_kit::config::{self, Origin};
use service_kit::reload::{Refusal, Reload};

use crate::config::{Ack, AckMode, Config, Http};
use crate::policy::{Live, Policy};
use crate::waiters::Waiters;

/// Keeps the policy in force in step with the configuration.
pub(crate) struct PolicyReload {
    /// Where the configuration comes from; without it only the secrets of the first one are read again.
    from: Option<config::Sources>,
    env: Vec<(String, String)>,
    /// What the process was started with.
    started: Config,
    /// Whether other gateways share the spool that is open.
    spool_is_shared: bool,
    /// The sources in force, whose files are watched.
    sources: Vec<SourceConfig>,
    /// The keys that were last said to need a restart.
    told: Vec<&'static str>,
    live: Arc<Live>,
    waiters: Arc<Waiters>,
}

impl PolicyReload {
    pub(crate) fn new(
        config: &Config,
        from: Option<config::Sources>,
        env: Vec<(String, String)>,
        live: Arc<Live>,
        waiters: Arc<Waiters>,
    ) -> Self {
        // Whoever started the gateway may have changed what was loaded, such as the port of a pass-state in the same
        // process. What counts is what was written.
        let written = from.as_ref().and_then(|from| Config::load_live(from).ok());
        Self {
            spool_is_shared: config.spool_is_shared(),
            started: written.unwrap_or_else(|| config.clone()),
            sources: config.sources.clone(),
            told: Vec::new(),
            from,
            env,
            live,
            waiters,
        }
    }

    fn load(&self) -> Result<Config, Refusal> {
        Ok(match &self.from {
            Some(from) => Config::load_live(from)?,
            None => self.started.clone(),
        })
    }

    fn tell(&mut self, config: &Config) {
        let keys = restart_keys(&self.started, config);
        if keys != self.told && !keys.is_empty() {
            tracing::warn!(
                keys = keys.join(", "),
                "keys were changed that take effect only when the gateway is started again"
            );
        }
        self.told = keys;
    }
}

impl Reload for PolicyReload {
    fn files(&self) -> Vec<PathBuf> {
        let file = self.from.as_ref().and_then(|from| from.file.clone());
        let secrets = self.sources.iter().flat_map(|source| &source.auth.secrets);
        file.into_iter()
            .chain(secrets.filter_map(|secret| secret.file.clone()))
            .collect()
    }

    fn try_apply(&mut self) -> Result<(), Refusal> {
        let config = self.load()?;
        let origin = self.from.as_ref().and_then(|from| from.file.clone());
        let origin = origin.map_or(Origin::Default, Origin::File);
        let before = self.live.policy();
        let policy = Policy::build(
            &config.sources,
            &config.ack,
            &config.http,
            &self.env,
            &origin,
            Some(&before),
        )?;
        if policy.iter().any(|entry| entry.ack == AckMode::Applied) {
            if self.spool_is_shared {
                return Err(
                    "ack: \"applied\" needs a spool of this gateway alone, and the one that is open is shared until the \
                     gateway is started again with the new spool.backend"
                        .into(),
                );
            }
            self.waiters.use_from_now();
        }
        for warning in policy.iter().flat_map(|entry| entry.source.warnings()) {
            if !before
                .iter()
                .any(|entry| entry.source.warnings().contains(warning))
            {
                tracing::warn!("{warning}");
            }
        }
        self.live.replace(policy)?;
        self.tell(&config);
        self.sources = config.sources;
        Ok(())
    }
}

/// The keys that differ and are not taken in while the process runs.
fn restart_keys(old: &Config, new: &Config) -> Vec<&'static str> {
    // Named one by one, so that whoever adds a key has to decide.
    let Config {
        gateway_id,
        drain_delay,
        http:
            Http {
                listen,
                tls,
                body_bytes_max,
                requests_in_flight_max,
                bytes_in_flight_max,
                limits,
                trusted_proxies: _,
                forwarded_header: _,
                rates: _,
                failed_auth: _,
            },
        admin,
        pass_state,
        forward,
        spool,
        ack:
            Ack {
                waiters_max,
                mode: _,
                timeout: _,
                sources: _,
            },
        reload,
        telemetry,
        sources: _,
    } = old;
    let http = &new.http;
    [
        ("gateway_id", *gateway_id != new.gateway_id),
        ("drain_delay", *drain_delay != new.drain_delay),
        ("http.listen", *listen != http.listen),
        ("http.tls", *tls != http.tls),
        (
            "http.body_bytes_max",
            *body_bytes_max != http.body_bytes_max,
        ),
        (
            "http.requests_in_flight_max",
            *requests_in_flight_max != http.requests_in_flight_max,
        ),
        (
            "http.bytes_in_flight_max",
            *bytes_in_flight_max != http.bytes_in_flight_max,
        ),
        ("http.limits", *limits != http.limits),
        ("admin", *admin != new.admin),
        ("pass_state", *pass_state != new.pass_state),
        ("forward", *forward != new.forward),
        ("spool", *spool != new.spool),
        ("ack.waiters_max", *waiters_max != new.ack.waiters_max),
        ("reload", *reload != new.reload),
        ("telemetry", *telemetry != new.telemetry),
    ]
    .into_iter()
    .filter_map(|(key, differs)| differs.then_some(key))
    .collect()
}

#[cfg(test)]
mod tests;
