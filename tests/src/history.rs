//! What pass-state tells about everything it has recorded, read through its public API: the other half of
//! what the oracle compares.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pass_proto::status::reason_of;
use pass_proto::v1;
use pass_proto::v1::delivery_service_client::DeliveryServiceClient;
use pass_proto::v1::pass_service_client::PassServiceClient;
use pass_proto::v1::subscribe_request::Start;
use pass_proto::v1::subscribe_response::Frame;
use pass_proto::v1::subscription_service_client::SubscriptionServiceClient;
use service_kit::tls::Connector;
use test_kit::wait_for;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

/// Longest wait for one call.
const CALL_LIMIT: Duration = Duration::from_secs(20);

/// Everything pass-state has, by each way of reading it.
#[derive(Clone, Debug)]
pub struct History {
    /// The log by Subscribe from the beginning to its end.
    pub subscribed: Vec<v1::PassEvent>,
    /// The log by ListEvents over all passes.
    pub listed: Vec<v1::PassEvent>,
    /// All deliveries by ListDeliveries, newest first.
    pub deliveries: Vec<v1::Delivery>,
    /// All passes by ListPasses.
    pub passes: Vec<v1::Pass>,
    /// The epoch, the books, the spools.
    pub info: v1::GetLogInfoResponse,
}

impl History {
    /// Names the first part in which another replica shows something else.
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        let (ours, theirs) = (&self.info, &other.info);
        [
            ("events by Subscribe", self.subscribed == other.subscribed),
            ("events by ListEvents", self.listed == other.listed),
            ("deliveries", self.deliveries == other.deliveries),
            ("passes", self.passes == other.passes),
            ("epoch", ours.epoch == theirs.epoch),
            ("head", ours.head_cursor == theirs.head_cursor),
            ("books", ours.books == theirs.books),
            ("spools", ours.spools == theirs.spools),
        ]
        .into_iter()
        .find_map(|(what, same)| (!same).then_some(what))
    }
}

/// The clients of one pass-state.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Reads of passes and events.
    pub passes: PassServiceClient<Channel>,
    /// Reads of deliveries.
    pub deliveries: DeliveryServiceClient<Channel>,
    /// The log as a stream.
    pub subscriptions: SubscriptionServiceClient<Channel>,
}

impl Reader {
    /// Makes clients that connect when first used.
    pub fn new(address: SocketAddr) -> Self {
        Self::over(address, Connector::plaintext())
    }

    /// Makes clients that connect when first used, in some way.
    pub fn over(address: SocketAddr, connector: Connector) -> Self {
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .expect("an address is an authority")
            .connect_timeout(Duration::from_secs(5))
            .connect_with_connector_lazy(connector);
        Self {
            passes: PassServiceClient::new(channel.clone()),
            deliveries: DeliveryServiceClient::new(channel.clone()),
            subscriptions: SubscriptionServiceClient::new(channel),
        }
    }

    /// Asks about the log.
    ///
    /// # Errors
    /// If pass-state does not answer.
    pub async fn info(&self) -> anyhow::Result<v1::GetLogInfoResponse> {
        let mut passes = self.passes.clone();
        let asked = passes.get_log_info(v1::GetLogInfoRequest {});
        let answered = tokio::time::timeout(CALL_LIMIT, asked)
            .await
            .context("GetLogInfo hangs")??;
        Ok(answered.into_inner())
    }

    /// One pass.
    ///
    /// # Errors
    /// If pass-state has none of that name, or does not answer.
    pub async fn pass(&self, name: &str) -> anyhow::Result<v1::Pass> {
        let request = v1::GetPassRequest {
            name: name.to_owned(),
            ..v1::GetPassRequest::default()
        };
        let answered = self.passes.clone().get_pass(request).await?.into_inner();
        answered.pass.context("GetPass answered without a pass")
    }

    /// Waits until `deliveries` have been recorded since the log began.
    ///
    /// # Errors
    /// If they have not after `limit`.
    pub async fn wait_for_deliveries(
        &self,
        deliveries: usize,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let what = format!("{deliveries} recorded deliveries");
        wait_for(&what, limit, async || {
            let info = self.info().await.map_err(|error| format!("{error:#}"))?;
            let recorded = info.books.unwrap_or_default().deliveries;
            if usize::try_from(recorded).is_ok_and(|recorded| recorded >= deliveries) {
                Ok(())
            } else {
                Err(format!("{recorded} recorded"))
            }
        })
        .await
    }

    /// A subscription that goes on, its first frame unread.
    ///
    /// # Errors
    /// If pass-state refuses it.
    pub async fn subscribe(
        &self,
        start: Start,
    ) -> anyhow::Result<Streaming<v1::SubscribeResponse>> {
        let request = v1::SubscribeRequest {
            start: Some(start),
            ..v1::SubscribeRequest::default()
        };
        let answered = self.subscriptions.clone().subscribe(request).await?;
        Ok(answered.into_inner())
    }

    /// The log after `start` up to its end as it is now.
    ///
    /// # Errors
    /// If the stream fails, or ends without saying that the end was reached.
    pub async fn subscribe_to_head(&self, start: Start) -> anyhow::Result<Vec<v1::PassEvent>> {
        let request = v1::SubscribeRequest {
            start: Some(start),
            stop_at_head: true,
            batch_size: 1000,
            ..v1::SubscribeRequest::default()
        };
        let mut frames = self
            .subscriptions
            .clone()
            .subscribe(request)
            .await?
            .into_inner();
        let mut events = Vec::new();
        let mut closing = None;
        while let Some(frame) = tokio::time::timeout(CALL_LIMIT, frames.message())
            .await
            .context("Subscribe hangs")??
        {
            match frame.frame.context("an empty frame")? {
                Frame::Events(batch) => events.extend(batch.events),
                Frame::Closing(frame) => closing = Some(frame.reason()),
                Frame::Started(_)
                | Frame::Bookmark(_)
                | Frame::CaughtUp(_)
                | Frame::FellBehind(_) => {}
            }
        }
        ensure!(
            closing == Some(v1::ClosingReason::HeadReached),
            "the stream ended with {closing:?} instead of the log's end"
        );
        Ok(events)
    }

    /// Why a subscription after a cursor is refused; `None` if it is not.
    ///
    /// # Errors
    /// If it fails for a reason that is none of pass-state's.
    pub async fn refusal(&self, cursor: &str) -> anyhow::Result<Option<v1::ErrorReason>> {
        let request = v1::SubscribeRequest {
            start: Some(Start::AfterCursor(cursor.to_owned())),
            stop_at_head: true,
            ..v1::SubscribeRequest::default()
        };
        let subscribing = async {
            let answered = self.subscriptions.clone().subscribe(request).await;
            answered?.into_inner().message().await
        };
        match tokio::time::timeout(CALL_LIMIT, subscribing)
            .await
            .context("Subscribe hangs")?
        {
            Ok(_) => Ok(None),
            Err(status) => match reason_of(&status) {
                Some(reason) => Ok(Some(reason)),
                None => Err(status.into()),
            },
        }
    }

    /// All passes, by ListPasses.
    ///
    /// # Errors
    /// If a call fails.
    pub async fn all_passes(&self) -> anyhow::Result<Vec<v1::Pass>> {
        let mut passes = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListPassesRequest {
                parent: "sources/-".to_owned(),
                page_size: 500,
                page_token,
                ..v1::ListPassesRequest::default()
            };
            let page = self.passes.clone().list_passes(request).await?.into_inner();
            passes.extend(page.passes);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(passes);
            }
        }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// If any call fails.
    pub async fn history(&self) -> anyhow::Result<History> {
        let subscribed = self.subscribe_to_head(Start::FromBeginning(true)).await?;
        let mut listed = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListEventsRequest {
                parent: "sources/-/passes/-".to_owned(),
                page_size: 500,
                page_token,
                ..v1::ListEventsRequest::default()
            };
            let page = self.passes.clone().list_events(request).await?.into_inner();
            listed.extend(page.events);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let mut deliveries = Vec::new();
        loop {
            let request = v1::ListDeliveriesRequest {
                page_size: 500,
                page_token,
                ..v1::ListDeliveriesRequest::default()
            };
            let page = self
                .deliveries
                .clone()
                .list_deliveries(request)
                .await?
                .into_inner();
            deliveries.extend(page.deliveries);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let passes = self.all_passes().await?;
        let info = self.info().await?;
        Ok(History {
            subscribed,
            listed,
            deliveries,
            passes,
            info,
        })
    }
}
