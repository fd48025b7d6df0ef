//! Whether the servers sync before they answer.
//!
//! A client's connection does not show it, so it is asked of the servers' monitoring (`/varz`), for every server that
//! holds a copy of the stream, matched by server name.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Info;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::options::JetStreamOptions;

/// How long one server's monitoring may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// A server that the stream's leader has not heard of for this long is away.
const AWAY_AFTER: Duration = Duration::from_secs(10);
/// For how long a server is believed that was proven and does not answer.
const PROVEN_FOR: Duration = Duration::from_secs(60);
/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;

#[derive(Deserialize)]
struct Varz {
    #[serde(default)]
    server_name: String,
    jetstream: Option<JetStream>,
}

#[derive(Deserialize)]
struct JetStream {
    config: Option<JetStreamConfig>,
}

#[derive(Deserialize)]
struct JetStreamConfig {
    #[serde(default)]
    sync_always: bool,
}

/// A server that holds a copy of the stream.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder {
    pub(super) name: String,
    /// The others don't hear of it, so it acknowledges nothing.
    pub(super) away: bool,
}

/// The servers that hold the stream.
pub(super) fn holders(info: &Info, connected_to: &str) -> Vec<Holder> {
    let here = |name: &str| Holder {
        name: name.to_owned(),
        away: false,
    };
    let cluster = info.cluster.as_ref();
    let Some(leader) = cluster
        .and_then(|cluster| cluster.leader.as_deref())
        .filter(|name| !name.is_empty())
    else {
        return vec![here(connected_to)];
    };
    let mut holders = vec![here(leader)];
    holders.extend(
        cluster
            .iter()
            .flat_map(|cluster| &cluster.replicas)
            .map(|peer| Holder {
                name: peer.name.clone(),
                away: peer.offline || peer.active > AWAY_AFTER,
            }),
    );
    holders.sort();
    holders
}

/// When which server was last proven to sync.
pub(super) type Proven = HashMap<String, Instant>;

/// Proves that the servers sync before they acknowledge; the error names the setting and the fix.
///
/// All must be proven, but for those whose monitoring does not answer and that are away, or were proven less than a
/// minute ago: a server that dies must not stop the others. More than half must be proven in any case.
pub(super) async fn prove(
    options: &JetStreamOptions,
    holders: &[Holder],
    proven: &mut Proven,
) -> Result<(), String> {
    const OR: &str =
        "or accept the loss of acknowledged deliveries at a power cut with allow_unsynced";
    if holders.len() < options.replicas {
        return Err(format!(
            "stream {} is on {} servers but replicas is {}; bring the others back, {OR}",
            options.stream,
            holders.len(),
            options.replicas
        ));
    }
    if options.monitoring_urls.is_empty() {
        return Err(format!(
            "it is not proven that NATS syncs before it acknowledges: set monitoring_urls to the servers' monitoring \
             addresses (http_port in their configuration), {OR}"
        ));
    }
    let answers = join_all(options.monitoring_urls.iter().map(|url| varz(url))).await;
    let mut synced = HashMap::new();
    let mut troubles = String::new();
    for answer in answers {
        match answer {
            Ok(varz) => {
                let config = varz.jetstream.and_then(|jetstream| jetstream.config);
                let always = config.is_some_and(|config| config.sync_always);
                // Two servers may have one name by mistake: then both must sync.
                *synced.entry(varz.server_name).or_insert(true) &= always;
            }
            Err(trouble) => troubles = format!("{troubles} ({trouble})"),
        }
    }
    proven.retain(|name, at| at.elapsed() < PROVEN_FOR && synced.get(name) != Some(&false));
    let mut sure = 0;
    for Holder { name, away } in holders {
        match synced.get(name) {
            Some(true) => {
                proven.insert(name.clone(), Instant::now());
                sure += 1;
            }
            Some(false) => {
                return Err(format!(
                    "NATS server {name} acknowledges before it syncs: set sync_interval: always in the jetstream section \
                     of its configuration, {OR}"
                ));
            }
            None if proven.contains_key(name) => sure += 1,
            None if *away => {}
            None => return Err(unheard(name, &troubles, OR)),
        }
    }
    match holders
        .iter()
        .find(|holder| !proven.contains_key(&holder.name))
    {
        Some(missing) if 2 * sure <= holders.len() => Err(unheard(&missing.name, &troubles, OR)),
        _ => Ok(()),
    }
}

fn unheard(name: &str, troubles: &str, or: &str) -> String {
    format!(
        "no address of monitoring_urls speaks for NATS server {name}, so it is not proven that it syncs before it \
         acknowledges{troubles}: add or correct its address, {or}"
    )
}

async fn varz(base: &str) -> Result<Varz, String> {
    let trouble = |detail: String| format!("{base}: {detail}");
    let asking = async {
        let uri = format!("{}/varz", base.trim_end_matches('/'))
            .parse()
            .map_err(|error| trouble(format!("{error}")))?;
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let answer = client
            .get(uri)
            .await
            .map_err(|error| trouble(super::link::with_sources(&error)))?;
        if !answer.status().is_success() {
            return Err(trouble(format!("status {}", answer.status())));
        }
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| trouble(error.to_string()))?
            .to_bytes();
        serde_json::from_slice(&body).map_err(|error| trouble(error.to_string()))
    };
    tokio::time::timeout(ANSWER_MAX, asking)
        .await
        .unwrap_or_else(|_| Err(trouble("no answer within 2 s".into())))
}
