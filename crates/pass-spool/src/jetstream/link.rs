//! The way to the servers: connecting, and making or checking the stream that is the spool.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{
    ContextBuilder, CreateKeyValueError, CreateStreamErrorKind, GetStreamError, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, PersistenceMode, RetentionPolicy, StorageType,
};
use async_nats::jetstream::{Context, kv, stream};
use async_nats::{AuthError, Client, ClientError, ConnectErrorKind, ConnectOptions, Event};
use tokio::sync::watch;
use tokio::time::Instant;

use super::login;
use super::options::{HEADER_BYTES, JetStreamOpenError, JetStreamOptions};
use super::shared::{Gate, Standing};
use crate::SpoolId;

/// How long one question to JetStream may take.
pub(super) const API_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long the server knows a record's id. Longer than an append asks again.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(60);
/// The least of it that will do.
const DUPLICATE_WINDOW_MIN: Duration = Duration::from_secs(20);
/// Where the stream's metadata says which spool it is.
const ID_KEY: &str = "passline.spool_id";
/// Pause between attempts to connect, at the longest.
const RECONNECT_MAX: Duration = Duration::from_secs(1);

/// Bytes of records that may wait in the client for a server that does not read.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Messages that may wait there, however large.
const QUEUE_LENGTH_MIN: usize = 8;
/// Messages that may wait there, however small.
const QUEUE_LENGTH_MAX: usize = 256;

/// A stream handle; it remembers nothing of the stream but its name.
pub(super) type Handle = stream::Stream<()>;

/// Everything needed to talk to the servers.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) stream: Handle,
    pub(super) turn: kv::Store,
}

/// Connects, makes what is missing and checks what is there.
pub(super) async fn open(
    options: &JetStreamOptions,
) -> Result<(Link, SpoolId, Info, watch::Sender<Standing>), JetStreamOpenError> {
    let deadline = Instant::now() + options.connect_timeout;
    let standing = watch::Sender::new(Standing {
        connected: false,
        epoch: 0,
        gate: Gate::Checking,
    });
    let client = connect(options, &standing, deadline).await?;
    let context = ContextBuilder::new()
        .timeout(API_TIMEOUT)
        .build(client.clone());
    payload_check(options, client.max_payload()).map_err(|detail| JetStreamOpenError::Server {
        action: "store records".into(),
        detail,
    })?;
    loop {
        let error = match prepare(options, &context).await {
            Ok((stream, id, info, turn)) => {
                let link = Link {
                    client,
                    context,
                    stream,
                    turn,
                };
                return Ok((link, id, info, standing));
            }
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Passing(error)) => error,
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Checks that the server takes the largest record; the text names both settings.
pub(super) fn payload_check(options: &JetStreamOptions, max_payload: usize) -> Result<(), String> {
    let needed = options.record_bytes_max + HEADER_BYTES;
    if max_payload < needed {
        return Err(format!(
            "the server's max_payload is {max_payload} but record_bytes_max of {} needs {needed}; raise max_payload in the \
             server's configuration or lower record_bytes_max",
            options.record_bytes_max
        ));
    }
    Ok(())
}

async fn connect(
    options: &JetStreamOptions,
    standing: &watch::Sender<Standing>,
    deadline: Instant,
) -> Result<Client, JetStreamOpenError> {
    let refused = |detail: String| JetStreamOpenError::Unreachable {
        servers: options.servers_text(),
        waited: options.connect_timeout,
        detail,
    };
    loop {
        let connecting = connect_options(options, standing)?.connect(&options.servers);
        let detail = match tokio::time::timeout_at(deadline, connecting).await {
            Ok(Ok(client)) => {
                let mut standing = standing.subscribe();
                let noted = standing.wait_for(|standing| standing.connected);
                if tokio::time::timeout_at(deadline, noted).await.is_ok() {
                    return Ok(client);
                }
                return Err(refused("the connection ended at once".into()));
            }
            Ok(Err(error)) => with_sources(&error),
            Err(_) => return Err(refused("no answer".into())),
        };
        if Instant::now() + RECONNECT_MAX >= deadline {
            return Err(refused(detail));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn connect_options(
    options: &JetStreamOptions,
    standing: &watch::Sender<Standing>,
) -> Result<ConnectOptions, JetStreamOpenError> {
    let standing = standing.clone();
    let refused = Arc::new(AtomicBool::new(false));
    let connect = match options.credentials.clone() {
        Some(login) => {
            // Told at once, not by the server.
            login::answer(&login, b"").map_err(|what| JetStreamOpenError::Options { what })?;
            let told = Arc::clone(&refused);
            ConnectOptions::with_auth_callback(move |nonce| {
                let answer = login::answer(&login, &nonce).map_err(|what| {
                    if !told.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            what,
                            "no login for the NATS server; it is read anew for each attempt"
                        );
                    }
                    AuthError::new(what)
                });
                std::future::ready(answer)
            })
        }
        None => ConnectOptions::new(),
    };
    let connect = connect
        .name(&options.gateway_name)
        .connection_timeout(Duration::from_secs(3))
        .request_timeout(Some(API_TIMEOUT))
        .ping_interval(Duration::from_secs(5))
        .client_capacity(queue_length(options))
        .reconnect_delay_callback(|attempts| {
            RECONNECT_MAX.min(Duration::from_millis(20 << attempts.clamp(1, 6)))
        })
        .require_tls(options.tls_required)
        .event_callback(move |event| {
            note(&standing, &refused, &event);
            std::future::ready(())
        });
    let connect = match &options.tls_ca {
        Some(file) => connect.add_root_certificates(file.clone()),
        None => connect,
    };
    Ok(match options.tls_identity.clone() {
        Some((cert, key)) => connect.add_client_certificate(cert, key),
        None => connect,
    })
}

/// How many messages may wait in the client to be sent. It counts them, so that many large ones are too many bytes.
pub(super) fn queue_length(options: &JetStreamOptions) -> usize {
    (QUEUE_BYTES_MAX / (options.record_bytes_max + HEADER_BYTES))
        .clamp(QUEUE_LENGTH_MIN, QUEUE_LENGTH_MAX)
}

/// `refused` remembers that it was told that the servers don't let us in.
fn note(standing: &watch::Sender<Standing>, refused: &AtomicBool, event: &Event) {
    match event {
        Event::Connected => {
            refused.store(false, Ordering::Relaxed);
            standing.send_modify(|standing| {
                standing.connected = true;
                standing.epoch += 1;
                if !matches!(standing.gate, Gate::Poisoned(_)) {
                    standing.gate = Gate::Checking;
                }
            });
        }
        Event::Disconnected | Event::Closed => {
            tracing::warn!("the connection to the NATS server ended");
            standing.send_modify(|standing| standing.connected = false);
        }
        Event::LameDuckMode | Event::Draining => {}
        Event::SlowConsumer(_) | Event::ServerError(_) | Event::ClientError(_) => {
            // During an outage there is one for each attempt; its beginning has been told.
            if standing.borrow().connected {
                tracing::warn!(event = %event, "the connection to the NATS server has trouble");
            } else if is_refusal(event) && !refused.swap(true, Ordering::Relaxed) {
                tracing::warn!(event = %event, "the NATS server does not let this gateway in; the login is read anew for each attempt");
            } else {
                tracing::debug!(event = %event, "no NATS server yet");
            }
        }
    }
}

/// True if the login is wrong, or can't be read.
fn is_refusal(event: &Event) -> bool {
    let Event::ClientError(ClientError::Other(text)) = event else {
        return false;
    };
    [
        ConnectErrorKind::Authentication,
        ConnectErrorKind::AuthorizationViolation,
    ]
    .iter()
    .any(|kind| *text == kind.to_string())
}

/// Whether trying again can help.
enum Trouble {
    Passing(JetStreamOpenError),
    Final(JetStreamOpenError),
}

async fn prepare(
    options: &JetStreamOptions,
    context: &Context,
) -> Result<(Handle, SpoolId, Info, kv::Store), Trouble> {
    let info = match found(options, context).await? {
        Some(info) => info,
        None => {
            make(options, context).await?;
            // What is there counts, not what was sent: another gateway may have been faster.
            found(options, context).await?.ok_or_else(|| {
                passing(
                    options,
                    "create",
                    "it is not there after it was made".into(),
                )
            })?
        }
    };
    let wrong = |detail: String| {
        Trouble::Final(JetStreamOpenError::Stream {
            stream: options.stream.clone(),
            detail,
        })
    };
    config_check(options, &info.config).map_err(wrong)?;
    let Some(id) = spool_id(&info.config) else {
        return Err(wrong(format!(
            "its metadata has no {ID_KEY}, so it was not made by Passline; choose another spool stream name"
        )));
    };
    let mut info = info;
    if info.config.max_bytes >= 0 && (info.config.max_bytes as u64) < options.bytes_max {
        let mut config = info.config.clone();
        config.max_bytes = options.bytes_max as i64;
        info = context
            .update_stream(config)
            .await
            .map_err(|error| passing(options, "raise max_bytes of", with_sources(&error)))?;
    }
    let handle = context
        .get_stream_no_info(&options.stream)
        .await
        .map_err(|error| passing(options, "use", with_sources(&error)))?;
    let turn = bucket(options, context).await?;
    Ok((handle, id, info, turn))
}

fn passing(options: &JetStreamOptions, action: &str, detail: String) -> Trouble {
    Trouble::Passing(JetStreamOpenError::Server {
        action: format!("{action} stream {}", options.stream),
        detail,
    })
}

async fn found(options: &JetStreamOptions, context: &Context) -> Result<Option<Info>, Trouble> {
    match context.get_stream(&options.stream).await {
        Ok(stream) => Ok(Some(stream.cached_info().clone())),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(passing(options, "look for", with_sources(&error))),
    }
}

async fn make(options: &JetStreamOptions, context: &Context) -> Result<(), Trouble> {
    let id = random_id().map_err(|error| Trouble::Final(error.into()))?;
    let config = Config {
        name: options.stream.clone(),
        description: Some("Passline: deliveries on their way to the log".into()),
        subjects: vec![options.subject()],
        max_bytes: options.bytes_max as i64,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        discard: DiscardPolicy::New,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: options.replicas,
        duplicate_window: DUPLICATE_WINDOW,
        deny_delete: true,
        allow_direct: true,
        metadata: HashMap::from([(ID_KEY.to_owned(), id.to_string())]),
        ..Config::default()
    };
    match context.create_stream(config).await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            CreateStreamErrorKind::JetStream(told)
                if told.error_code() == ErrorCode::STREAM_NAME_EXIST =>
            {
                Ok(())
            }
            _ => Err(passing(options, "create", with_sources(&error))),
        },
    }
}

/// Makes the bucket of the turn anew if it is gone; says whether it was.
pub(super) async fn bucket_mend(
    options: &JetStreamOptions,
    context: &Context,
) -> Result<bool, String> {
    let stream = format!("KV_{}", options.bucket());
    match context.get_stream(stream).await {
        Ok(_) => return Ok(false),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(with_sources(&error)),
    }
    match bucket_make(options, context).await {
        Ok(_) => Ok(true),
        Err(error) => Err(with_sources(&error)),
    }
}

fn is_not_found(error: &GetStreamError) -> bool {
    matches!(error.kind(), GetStreamErrorKind::JetStream(told) if told.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

async fn bucket(options: &JetStreamOptions, context: &Context) -> Result<kv::Store, Trouble> {
    let name = options.bucket();
    if let Ok(store) = context.get_key_value(&name).await {
        return Ok(store);
    }
    bucket_make(options, context).await.map_err(|error| {
        Trouble::Passing(JetStreamOpenError::Server {
            action: format!("create key-value bucket {name}"),
            detail: with_sources(&error),
        })
    })
}

async fn bucket_make(
    options: &JetStreamOptions,
    context: &Context,
) -> Result<kv::Store, CreateKeyValueError> {
    let config = kv::Config {
        bucket: options.bucket(),
        description: "Passline: which gateway forwards".into(),
        history: 1,
        storage: StorageType::File,
        num_replicas: options.replicas,
        ..kv::Config::default()
    };
    context.create_key_value(config).await
}

/// The spool's id in the stream's metadata.
pub(super) fn spool_id(config: &Config) -> Option<SpoolId> {
    config.metadata.get(ID_KEY)?.parse().ok()
}

/// Checks that a stream keeps what a spool promises; the text names the setting and the command.
pub(super) fn config_check(options: &JetStreamOptions, config: &Config) -> Result<(), String> {
    let edit = |setting: &str, flag: &str| {
        Err(format!(
            "{setting}; run nats stream edit {} {flag}",
            config.name
        ))
    };
    let remade = |setting: &str| {
        Err(format!(
            "{setting}, which can't be changed; choose another spool stream name"
        ))
    };
    if config.storage != StorageType::File {
        return remade("storage is memory, so a restart of the server loses records");
    }
    if config.retention != RetentionPolicy::Limits {
        return remade("retention is not limits, so records vanish once they are acknowledged");
    }
    if config.mirror.is_some() || config.sources.is_some() {
        return remade("it mirrors or collects other streams");
    }
    if config.persist_mode == Some(PersistenceMode::Async) {
        return remade("persist_mode is async, so records are acknowledged before they are stored");
    }
    if config.sealed || config.no_ack {
        return remade("it is sealed or does not acknowledge");
    }
    if config.discard != DiscardPolicy::New {
        return edit(
            "discard is old, so a full stream drops unsettled records",
            "--discard=new",
        );
    }
    if !config.max_age.is_zero() {
        return edit(
            "max_age is set, so unsettled records are dropped by age",
            "--max-age=0",
        );
    }
    if config.max_messages > 0 || config.max_messages_per_subject > 0 {
        return edit(
            "max_msgs or max_msgs_per_subject is set, but only max_bytes bounds a spool",
            "--max-msgs=-1 --max-msgs-per-subject=-1",
        );
    }
    if config.max_bytes <= 0 {
        return edit(
            "max_bytes is not set",
            &format!("--max-bytes={}", options.bytes_max),
        );
    }
    let needed = options.record_bytes_max + HEADER_BYTES;
    if config.max_message_size > 0 && (config.max_message_size as usize) < needed {
        return edit(
            &format!(
                "max_msg_size is {} but record_bytes_max needs {needed}",
                config.max_message_size
            ),
            "--max-msg-size=-1",
        );
    }
    if config.num_replicas < options.replicas {
        return edit(
            &format!(
                "it has {} replicas but replicas is {}",
                config.num_replicas, options.replicas
            ),
            &format!("--replicas={}", options.replicas),
        );
    }
    if config.duplicate_window < DUPLICATE_WINDOW_MIN {
        return edit(
            "its duplicate window is under 20 s, so a record asked for again could be stored twice",
            "--dupe-window=1m",
        );
    }
    if !config.allow_direct {
        return edit("it does not allow direct gets", "--allow-direct");
    }
    if config.allow_rollup {
        return edit("allow_rollup lets anyone drop records", "--no-allow-rollup");
    }
    if config.subject_transform.is_some() || config.subjects != [options.subject()] {
        return edit(
            "its subjects are not the spool's alone",
            &format!("--subjects={}", options.subject()),
        );
    }
    Ok(())
}

/// An error with its causes on one line.
pub(super) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

/// Sixteen random bytes.
pub(super) fn random_id() -> std::io::Result<SpoolId> {
    use std::io::Read as _;
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(SpoolId::from_bytes(bytes))
}
