//! From the configuration to an open spool.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use pass_sources::SecretRef;
use pass_spool::{
    EmbeddedOptions, EmbeddedSpool, JetStreamOptions, JetStreamSpool, NatsCredentials, NatsLogin,
    Spool, SyncObserver, WallClock,
};
use service_kit::clock::Clock;
use service_kit::config::{ByteSize, Fault, Faults, Origin};

use crate::config::{Config, JetStream, SpoolBackend};
use crate::gateway::BuildError;
use crate::record::record_bytes_max;
use crate::sources;

/// Opens the configured spool. `sync_observer` is told how long making records durable took.
pub(crate) async fn open(
    config: &Config,
    env: &[(String, String)],
    data_dir: &Path,
    clock: &Arc<dyn Clock>,
    sync_observer: SyncObserver,
) -> Result<Arc<dyn Spool>, BuildError> {
    let clock = Arc::clone(clock);
    let clock: WallClock = Arc::new(move || SystemTime::from(clock.now()));
    match config.spool.backend {
        SpoolBackend::Embedded => {
            let mut options = embedded_options(config, config.spool_dir(data_dir));
            options.clock = clock;
            options.sync_observer = sync_observer;
            let opening = tokio::task::spawn_blocking(move || EmbeddedSpool::open(options));
            let spool = opening.await.expect("opening the spool does not panic")?;
            Ok(Arc::new(spool))
        }
        SpoolBackend::Jetstream => {
            let mut options = jetstream_options(config);
            let read = {
                let (keys, env) = (config.spool.jetstream.clone(), env.to_vec());
                move || login(&keys, &env, &Origin::Default)
            };
            if read().map_err(BuildError::Login)? != NatsCredentials::None {
                options.credentials = Some(NatsLogin::new(move || {
                    read().map_err(|faults| faults.to_string())
                }));
            }
            if options.login_in_the_clear() {
                tracing::warn!(
                    "the login of spool.jetstream may go to other machines without TLS: write tls:// in its servers, or set its tls = true"
                );
            }
            options.clock = clock;
            options.sync_observer = sync_observer;
            // Boxed, since its state is large and few gateways take this way.
            let spool = Box::pin(JetStreamSpool::open(options)).await?;
            Ok(Arc::new(spool))
        }
    }
}

/// Reads the secrets of a spool on JetStream; reports every fault, as coming from `origin`.
pub(crate) fn login(
    keys: &JetStream,
    env: &[(String, String)],
    origin: &Origin,
) -> Result<NatsCredentials, Faults> {
    let mut faults = Faults::default();
    let mut read = |key: &str, place: SecretRef| {
        let secret = sources::resolve(&place, env).and_then(|bytes| {
            String::from_utf8(bytes).map_err(|_| "is not text; correct the secret".to_owned())
        });
        secret.unwrap_or_else(|problem| {
            faults.add(Fault {
                path: format!("spool.jetstream.{key}"),
                origin: origin.clone(),
                problem,
                allowed: None,
                fix: None,
            });
            String::new()
        })
    };
    let login = if let (Some(user), Some(password)) = (&keys.user, &keys.password) {
        NatsCredentials::UserPassword {
            user: user.clone(),
            password: read("password", password.reference()),
        }
    } else if let Some(token) = &keys.token {
        NatsCredentials::Token(read("token", token.reference()))
    } else if let Some(file) = &keys.credentials_file {
        let place = SecretRef {
            file: Some(file.clone()),
            ..SecretRef::default()
        };
        NatsCredentials::Creds(read("credentials_file", place))
    } else if let Some(seed) = &keys.nkey {
        NatsCredentials::NkeySeed(read("nkey", seed.reference()))
    } else {
        NatsCredentials::None
    };
    if faults.is_empty() {
        Ok(login)
    } else {
        Err(faults)
    }
}

/// The settings of an embedded spool in `dir`.
pub(crate) fn embedded_options(config: &Config, dir: PathBuf) -> EmbeddedOptions {
    let keys = &config.spool;
    let mut options = EmbeddedOptions::new(dir);
    options.segment_bytes = keys.segment_bytes.bytes();
    options.bytes_max = keys.bytes_max.bytes();
    options.retain_age = keys.retain_age.get();
    options.retain_bytes = keys.retain_bytes.map(ByteSize::bytes);
    options.append_queue_max = keys.append_queue_max;
    options.record_bytes_max = record_bytes_max(config.http.body_bytes_max.as_usize());
    #[cfg(feature = "planted-bugs")]
    {
        options.planted_answer_before_sync = keys.planted_answer_before_sync;
    }
    options
}

/// The settings of a spool on JetStream, but for its login.
pub(crate) fn jetstream_options(config: &Config) -> JetStreamOptions {
    let keys = &config.spool.jetstream;
    let mut options = JetStreamOptions::new(keys.servers.clone());
    options.stream.clone_from(&keys.stream);
    options.tls_ca.clone_from(&keys.ca_file);
    options.tls_identity = keys.cert_file.clone().zip(keys.key_file.clone());
    options.tls_required = keys.tls;
    options.replicas = keys.replicas;
    options.bytes_max = keys.bytes_max.bytes();
    options.record_bytes_max = record_bytes_max(config.http.body_bytes_max.as_usize());
    options.retain_age = keys.retain_age.get();
    options.retain_bytes = keys.retain_bytes.map(ByteSize::bytes);
    options.window_records = keys.window_records;
    options.window_bytes = keys.window_bytes.as_usize();
    options.append_in_flight_max = keys.append_in_flight_max;
    options.allow_unsynced = keys.allow_unsynced;
    options.monitoring_urls.clone_from(&keys.monitoring_urls);
    options.connect_timeout = keys.connect_timeout.get();
    options.gateway_name.clone_from(&config.gateway_id);
    options
}
