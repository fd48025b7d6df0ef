//! `SubscriptionService`.

use std::sync::Arc;
use std::time::Duration;

use pass_proto::convert::time_from_wire;
use pass_proto::status::Fault;
use pass_proto::v1;
use pass_proto::v1::subscribe_request::Start as WireStart;
use pass_proto::v1::subscription_service_server::SubscriptionService;
use tonic::{Request, Response, Status};

use super::call::{self, Bad};
use crate::access::Caller;
use crate::frames::{self, FrameStream};
use crate::query::events;
use crate::query::mask::MessageTypes;
use crate::tail::subscription::{FRAMES_MAX, Start, Subscriptions, Wish};
use crate::tasks::Tasks;

/// Events per frame where the client does not say, and the most.
const BATCH_DEFAULT: usize = 256;
const BATCH_MAX: usize = 1_000;
/// Bookmark interval where the client does not say, and its bounds.
const BOOKMARK_DEFAULT: Duration = Duration::from_secs(15);
const BOOKMARK_MIN: Duration = Duration::from_secs(1);
const BOOKMARK_MAX: Duration = Duration::from_secs(60);

/// Streams the log.
pub(crate) struct SubscriptionApi {
    pub(crate) subscriptions: Subscriptions,
    pub(crate) types: Arc<MessageTypes>,
    pub(crate) tasks: Tasks,
    pub(crate) deadline: Duration,
    pub(crate) stream_age_max: Duration,
}

#[tonic::async_trait]
impl SubscriptionService for SubscriptionApi {
    type SubscribeStream = FrameStream<v1::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<v1::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let caller = call::caller(request.extensions())?;
        let metadata = request.metadata().clone();
        let wish = decode(request.into_inner(), caller, &self.types);
        let opening = async { self.subscriptions.open(wish?).await };
        let opened = call::unary(
            "passline.v1.SubscriptionService",
            "Subscribe",
            &metadata,
            self.deadline,
            opening,
        )
        .await?;
        let (sender, stream) = frames::channel(FRAMES_MAX);
        let age = call::jittered(self.stream_age_max);
        let running = opened.into_inner().run(sender, age);
        self.tasks.spawn(Box::pin(running));
        Ok(Response::new(stream))
    }
}

fn decode(
    request: v1::SubscribeRequest,
    caller: Caller,
    types: &MessageTypes,
) -> Result<Wish, Fault> {
    let mut bad = Bad::default();
    let start = match &request.start {
        None => {
            bad.field(
                "start",
                "is missing; set one of from_beginning, from_end, after_cursor, from_time",
            );
            None
        }
        Some(WireStart::FromBeginning(true)) => Some(Start::Beginning),
        Some(WireStart::FromEnd(true)) => Some(Start::End),
        Some(WireStart::FromBeginning(false)) => {
            bad.field("from_beginning", "must be true if it is set");
            None
        }
        Some(WireStart::FromEnd(false)) => {
            bad.field("from_end", "must be true if it is set");
            None
        }
        Some(WireStart::AfterCursor(text)) => {
            if text.is_empty() {
                bad.field("after_cursor", "is empty; to start anew use from_beginning");
            }
            bad.cursor("after_cursor", text).map(Start::After)
        }
        Some(WireStart::FromTime(time)) => {
            let time = time_from_wire(time).ok_or("is outside years 0001 to 9999".to_owned());
            bad.take("from_time", time).map(Start::Time)
        }
    };
    let filter = bad.filter(&request.filter, &events::SCHEMA);
    let mask = bad.mask(request.read_mask.as_ref(), ".passline.v1.PassEvent", types);
    let batch_events = match usize::try_from(request.batch_size) {
        Ok(0) => BATCH_DEFAULT,
        Ok(size) => size.min(BATCH_MAX),
        Err(_) => {
            bad.field("batch_size", "is negative; 0 means the default");
            BATCH_DEFAULT
        }
    };
    let bookmark_interval = bad
        .take("bookmark_interval", bookmark(request.bookmark_interval))
        .unwrap_or(BOOKMARK_DEFAULT);
    bad.finish()?;
    Ok(Wish {
        start: start.ok_or_else(|| Fault::field("start", "is missing"))?,
        filter,
        mask,
        caller,
        batch_events,
        bookmark_interval,
        stop_at_head: request.stop_at_head,
    })
}

fn bookmark(wire: Option<prost_types::Duration>) -> Result<Duration, String> {
    let Some(wire) = wire else {
        return Ok(BOOKMARK_DEFAULT);
    };
    if (wire.seconds, wire.nanos) == (0, 0) {
        return Ok(BOOKMARK_DEFAULT);
    }
    Duration::try_from(wire)
        .ok()
        .filter(|wish| (BOOKMARK_MIN..=BOOKMARK_MAX).contains(wish))
        .ok_or_else(|| "must be 1 s to 60 s; 0 means 15 s".to_owned())
}
