//! `DeliveryService`.

use std::sync::Arc;
use std::time::Duration;

use pass_domain::ids::DeliveryId;
use pass_proto::convert::parse_delivery_name;
use pass_proto::status::{Fault, Reason};
use pass_proto::v1;
use pass_proto::v1::delivery_service_server::DeliveryService;
use pass_store::{DeliveryRecord, QuarantineState, Replayed, Scope};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::call::{self, Bad};
use crate::access::Caller;
use crate::fault;
use crate::ingest::gateways::Gateways;
use crate::ingest::redecoded;
use crate::query::Reader;
use crate::query::deliveries::{self, DeliveryRows};
use crate::query::mask::{Mask, MessageTypes};
use crate::query::page::Binding;
use crate::query::walk::{Bounds, walk};
use crate::writer::Writer;

const SERVICE: &str = "passline.v1.DeliveryService";
const DELIVERY: &str = ".passline.v1.Delivery";
/// Longest reason of a discard, in bytes.
const REASON_BYTES_MAX: usize = 512;
/// Longest request id, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Shows deliveries, and deals with those in quarantine.
pub(crate) struct DeliveryApi {
    pub(crate) reader: Reader,
    pub(crate) writer: Writer,
    pub(crate) gateways: Arc<Gateways>,
    pub(crate) types: Arc<MessageTypes>,
    pub(crate) deadline: Duration,
    pub(crate) redecode_timeout: Duration,
}

impl DeliveryApi {
    async fn answer<T>(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<Response<T>, Status> {
        call::unary(SERVICE, method, metadata, self.deadline, work).await
    }

    async fn find(
        &self,
        scope: &Scope,
        id: DeliveryId,
        with_body: bool,
    ) -> Result<DeliveryRecord, Fault> {
        self.reader
            .store
            .delivery_find(scope, id, with_body)
            .await
            .map_err(|error| fault::of_store(&error))?
            .ok_or_else(|| not_found(id))
    }

    async fn get(
        &self,
        request: v1::GetDeliveryRequest,
        scope: &Scope,
    ) -> Result<v1::GetDeliveryResponse, Fault> {
        let mut bad = Bad::default();
        let id = name(&mut bad, &request.name);
        let with_body = match v1::DeliveryView::try_from(request.view) {
            Ok(v1::DeliveryView::Unspecified | v1::DeliveryView::Basic) => false,
            Ok(v1::DeliveryView::Full) => true,
            Err(_) => {
                bad.field("view", "must be BASIC or FULL");
                false
            }
        };
        let mask = bad.mask(request.read_mask.as_ref(), DELIVERY, &self.types);
        bad.finish()?;
        let record = self.find(scope, known(id)?, with_body).await?;
        Ok(v1::GetDeliveryResponse {
            delivery: Some(deliveries::encode(&record, scope.personal, &mask)),
        })
    }

    async fn list(
        &self,
        mut request: v1::ListDeliveriesRequest,
        scope: &Scope,
    ) -> Result<v1::ListDeliveriesResponse, Fault> {
        let token = std::mem::take(&mut request.page_token);
        let binding = Binding::of("ListDeliveries", &request);
        let mut bad = Bad::default();
        let size = bad.page_size(request.page_size);
        let filter = bad.filter(&request.filter, &deliveries::SCHEMA);
        let mask = bad.mask(request.read_mask.as_ref(), DELIVERY, &self.types);
        bad.finish()?;
        let epoch = self.reader.tail.head().epoch;
        let from = binding
            .place(epoch, &token)
            .map_err(|fault| fault.in_field("page_token"))?;
        let rows = DeliveryRows {
            store: self.reader.store.as_ref(),
            scope: scope.clone(),
            quarantine_open: deliveries::demands_open_quarantine(&filter),
            filter,
            mask,
        };
        let bounds = Bounds {
            rows: size,
            examined: self.reader.config.rows_examined_max,
            bytes: self.reader.answer_bytes_max / 4 * 3,
        };
        let (deliveries, next) = walk(&rows, from, bounds).await?;
        Ok(v1::ListDeliveriesResponse {
            deliveries,
            next_page_token: next.map_or_else(String::new, |from| binding.token(epoch, from)),
        })
    }

    async fn replay(
        &self,
        request: v1::ReplayDeliveryRequest,
        caller: &Caller,
    ) -> Result<v1::ReplayDeliveryResponse, Fault> {
        let scope = caller.scope();
        let mut bad = Bad::default();
        let id = name(&mut bad, &request.name);
        request_id(&mut bad, &request.request_id);
        bad.finish()?;
        // The gateway needs the body, whether or not the caller may see it.
        let with_body = scope.clone().with_personal(true);
        let record = self.find(&with_body, known(id)?, true).await?;
        let answer = |record: &DeliveryRecord| v1::ReplayDeliveryResponse {
            delivery: Some(basic(record, scope.personal)),
        };
        match record.quarantine.as_ref().map(|stay| stay.state) {
            None => return Err(not_quarantined(&request.name)),
            Some(QuarantineState::Replayed) => return Ok(answer(&record)),
            Some(QuarantineState::Open | QuarantineState::Discarded) => {}
        }
        let stored = &record.delivery;
        let wire = self
            .gateways
            .redecode(stored, self.redecode_timeout)
            .await?;
        let again = Box::new(redecoded(stored, wire));
        tracing::info!(delivery.id = %stored.id, request.id = request.request_id, principal = caller.name(), "replaying a delivery");
        let replayed = self
            .writer
            .replay(again)
            .await
            .map_err(|_| fault::draining())?
            .map_err(|error| fault::of_store(&error))?;
        match replayed {
            Replayed::Done(record, _) => Ok(answer(&record)),
            Replayed::NotQuarantined => Err(not_quarantined(&request.name)),
            Replayed::NotFound => Err(not_found(stored.id)),
            Replayed::Conflict => Err(Fault::new(
                Reason::ReplayConflict,
                format!(
                    "{} has events already, and decoding it again gives others; nothing was changed",
                    request.name
                ),
            )),
        }
    }

    async fn discard(
        &self,
        request: v1::DiscardDeliveryRequest,
        caller: &Caller,
    ) -> Result<v1::DiscardDeliveryResponse, Fault> {
        let scope = caller.scope();
        let mut bad = Bad::default();
        let id = name(&mut bad, &request.name);
        request_id(&mut bad, &request.request_id);
        let bytes = request.reason.len();
        if bytes == 0 || bytes > REASON_BYTES_MAX {
            bad.field(
                "reason",
                format!("has {bytes} bytes; 1 to {REASON_BYTES_MAX} are allowed"),
            );
        } else if request.reason.contains('\0') {
            bad.field("reason", "has a NUL character");
        }
        bad.finish()?;
        let id = known(id)?;
        // What the caller may not see is not there.
        self.find(scope, id, false).await?;
        tracing::info!(delivery.id = %id, request.id = request.request_id, principal = caller.name(), "discarding a delivery");
        let record = self
            .writer
            .discard(id, request.reason)
            .await
            .map_err(|_| fault::draining())?
            .map_err(|error| fault::of_store(&error))?
            .ok_or_else(|| not_quarantined(&request.name))?;
        Ok(v1::DiscardDeliveryResponse {
            delivery: Some(basic(&record, scope.personal)),
        })
    }
}

/// A delivery in view BASIC.
fn basic(record: &DeliveryRecord, personal: bool) -> v1::Delivery {
    v1::Delivery {
        body: bytes::Bytes::new(),
        ..deliveries::encode(record, personal, &Mask::default())
    }
}

fn name(bad: &mut Bad, name: &str) -> Option<DeliveryId> {
    bad.take(
        "name",
        parse_delivery_name(name).map_err(|error| error.to_string()),
    )
}

fn known(id: Option<DeliveryId>) -> Result<DeliveryId, Fault> {
    id.ok_or_else(|| Fault::field("name", "is not a delivery's name"))
}

fn request_id(bad: &mut Bad, text: &str) {
    if text.len() > REQUEST_ID_BYTES_MAX {
        bad.field(
            "request_id",
            format!(
                "has {} bytes; at most {REQUEST_ID_BYTES_MAX} are allowed",
                text.len()
            ),
        );
    }
}

fn not_found(id: DeliveryId) -> Fault {
    Fault::not_found(format!("deliveries/{id}"))
}

fn not_quarantined(name: &str) -> Fault {
    Fault::new(
        Reason::NotQuarantined,
        format!("{name} is not in quarantine"),
    )
}

#[tonic::async_trait]
impl DeliveryService for DeliveryApi {
    async fn get_delivery(
        &self,
        request: Request<v1::GetDeliveryRequest>,
    ) -> Result<Response<v1::GetDeliveryResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.get(request, caller.scope());
        self.answer("GetDelivery", &metadata, work).await
    }

    async fn list_deliveries(
        &self,
        request: Request<v1::ListDeliveriesRequest>,
    ) -> Result<Response<v1::ListDeliveriesResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.list(request, caller.scope());
        self.answer("ListDeliveries", &metadata, work).await
    }

    async fn replay_delivery(
        &self,
        request: Request<v1::ReplayDeliveryRequest>,
    ) -> Result<Response<v1::ReplayDeliveryResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.replay(request, &caller);
        self.answer("ReplayDelivery", &metadata, work).await
    }

    async fn discard_delivery(
        &self,
        request: Request<v1::DiscardDeliveryRequest>,
    ) -> Result<Response<v1::DiscardDeliveryResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.discard(request, &caller);
        self.answer("DiscardDelivery", &metadata, work).await
    }
}
