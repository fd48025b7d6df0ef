//! Connections to pass-state, for the commands that read.

use std::time::Duration;

use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::{ListEventsRequest, PassEvent};
use service_kit::config::{Faults, Validate as _};
use service_kit::grpc::{Channel, ChannelConfig, Credentials, TokenSource, channel};
use service_kit::tls::TlsClientConfig;

use crate::Failure;
use crate::args::ServerArgs;

/// Time for one answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message that is taken: a page of 500 events with all their attributes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Events per page.
const PAGE_EVENTS: i32 = 500;
/// Most events of one pass that are read for a timeline.
pub(crate) const TIMELINE_EVENTS_MAX: usize = 10_000;

/// Makes a channel to a server on this machine, without TLS.
pub(crate) fn connect_locally(url: &str) -> Result<Channel, Failure> {
    let config = ChannelConfig {
        endpoint: url.into(),
        ..ChannelConfig::default()
    };
    channel(&config, &Credentials::default()).map_err(|error| Failure::Usage(error.to_string()))
}

/// Makes a channel to the server, or the several, that the arguments name; it connects at the first call.
pub(crate) fn connect(server: &ServerArgs) -> Result<Channel, Failure> {
    let tls = TlsClientConfig {
        ca_file: server.ca_file.clone(),
        cert_file: server.cert_file.clone(),
        key_file: server.key_file.clone(),
        server_name: server.server_name.clone(),
    };
    let config = ChannelConfig {
        endpoint: server.url.as_str().into(),
        tls: (tls != TlsClientConfig::default()).then_some(tls),
        token: server.token_file.clone().map(TokenSource::File),
        ..ChannelConfig::default()
    };
    let mut faults = Faults::default();
    config.validate(&mut faults);
    if !faults.is_empty() {
        return Err(wrong(&faults));
    }
    let credentials = Credentials::load("server", &config, &[]).map_err(|faults| wrong(&faults))?;
    channel(&config, &credentials).map_err(|error| Failure::Usage(error.to_string()))
}

/// Faults of a configuration as those of the options that stand for its keys.
fn wrong(faults: &Faults) -> Failure {
    let lines: Vec<String> = faults
        .iter()
        .map(|fault| {
            let option = match fault.path.rsplit('.').next().unwrap_or_default() {
                "ca_file" => "--ca-file",
                "cert_file" => "--cert-file",
                "key_file" => "--key-file",
                "server_name" => "--server-name",
                "token" => "--token-file",
                _ => "--server",
            };
            let fix = fault.fix.as_deref().unwrap_or("correct it");
            format!("{option}: {}; {fix}", fault.problem)
        })
        .collect();
    Failure::Usage(lines.join("\n"))
}

/// A client of the pass service.
pub(crate) fn passes(channel: Channel) -> PassServiceClient<Channel> {
    PassServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Wraps a message with the deadline of every unary call.
pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(CALL_TIMEOUT);
    request
}

/// Reads the whole history of `parent`, at most [`TIMELINE_EVENTS_MAX`] events;
/// says whether there are more.
pub(crate) async fn events(
    client: &mut PassServiceClient<Channel>,
    parent: &str,
) -> Result<(Vec<PassEvent>, bool), tonic::Status> {
    let mut events = Vec::new();
    let mut page_token = String::new();
    loop {
        let page = client
            .list_events(request(ListEventsRequest {
                parent: parent.to_owned(),
                page_size: PAGE_EVENTS,
                page_token,
                ..ListEventsRequest::default()
            }))
            .await?
            .into_inner();
        events.extend(page.events);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok((events, false));
        }
        if events.len() >= TIMELINE_EVENTS_MAX {
            return Ok((events, true));
        }
    }
}
