//! Connections to pass-state, for the commands that read.

use std::time::Duration;

use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::{ListEventsRequest, PassEvent};
use service_kit::grpc::{Channel, ChannelConfig, Credentials, channel};

use crate::Failure;

/// Time for one answer.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest message that is taken: a page of 500 events with all their attributes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Events per page.
const PAGE_EVENTS: i32 = 500;
/// Most events of one pass that are read for a timeline.
pub(crate) const TIMELINE_EVENTS_MAX: usize = 10_000;

/// Makes a channel to `server`, or to several separated by commas; it connects at the first call.
pub(crate) fn connect(server: &str) -> Result<Channel, Failure> {
    let config = ChannelConfig {
        endpoint: server.into(),
        ..ChannelConfig::default()
    };
    channel(&config, &Credentials::default()).map_err(|error| Failure::Usage(error.to_string()))
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
