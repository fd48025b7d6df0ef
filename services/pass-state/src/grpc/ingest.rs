//! `IngestService`.

use std::sync::Arc;

use pass_proto::status::{Fault, Reason};
use pass_proto::v1;
use pass_proto::v1::ingest_service_server::IngestService;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::call;
use crate::frames::{self, FrameStream};
use crate::ingest::{FRAMES_MAX, Ingest};
use crate::tasks::Tasks;

/// Takes deliveries from gateways.
pub(crate) struct IngestApi {
    pub(crate) ingest: Ingest,
    pub(crate) tasks: Tasks,
    pub(crate) places: Arc<Semaphore>,
}

#[tonic::async_trait]
impl IngestService for IngestApi {
    type IngestStream = FrameStream<v1::IngestResponse>;

    async fn ingest(
        &self,
        request: Request<Streaming<v1::IngestRequest>>,
    ) -> Result<Response<Self::IngestStream>, Status> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Fault::new(
                Reason::Overloaded,
                "too many gateways are connected; see ingest.streams_max",
            )
        })?;
        let caller = call::caller(request.extensions())?;
        let (sender, stream) = frames::channel(FRAMES_MAX);
        let age = call::jittered(self.ingest.config.stream_age_max.get());
        let serving = self
            .ingest
            .clone()
            .serve(caller, request.into_inner(), sender, age);
        let span = tracing::info_span!(parent: None, "ingest", gateway.id = tracing::field::Empty);
        self.tasks.spawn(
            async move {
                Box::pin(serving).await;
                drop(place);
            }
            .instrument(span),
        );
        Ok(Response::new(stream))
    }
}
