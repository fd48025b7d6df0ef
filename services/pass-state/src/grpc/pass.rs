//! `PassService`.

use std::sync::Arc;
use std::time::Duration;

use pass_domain::cursor::Cursor;
use pass_domain::event::Position;
use pass_domain::ids::PassKey;
use pass_proto::convert::{event_to_wire, parse_event_name, time_to_wire};
use pass_proto::status::Fault;
use pass_proto::v1;
use pass_proto::v1::pass_service_server::PassService;
use pass_store::{EventParent, LookupKey, PassOrder, Scope};
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

use super::call::{self, Bad};
use crate::fault;
use crate::query::events::{self, EventRows};
use crate::query::mask::MessageTypes;
use crate::query::page::Binding;
use crate::query::passes::{self, PassRows};
use crate::query::personal;
use crate::query::walk::{Bounds, walk};
use crate::query::{Reader, parse_pass_name, parse_source_parent};
use crate::tail::subscription::epoch_text;

const SERVICE: &str = "passline.v1.PassService";
const PASS: &str = ".passline.v1.Pass";
const EVENT: &str = ".passline.v1.PassEvent";
/// Most names of one BatchGetPasses.
const NAMES_MAX: usize = 100;
/// Most passes that one lookup returns.
const LOOKUP_MAX: u32 = 100;
/// Longest key of a lookup, in bytes.
const KEY_BYTES_MAX: usize = pass_domain::limits::TEXT_BYTES_MAX;

/// Answers questions about passes and their history.
pub(crate) struct PassApi {
    pub(crate) reader: Reader,
    pub(crate) types: Arc<MessageTypes>,
    pub(crate) deadline: Duration,
    /// What is left open to other machines.
    pub(crate) insecure: Vec<String>,
}

impl PassApi {
    async fn answer<T>(
        &self,
        method: &'static str,
        metadata: &MetadataMap,
        work: impl Future<Output = Result<T, Fault>>,
    ) -> Result<Response<T>, Status> {
        call::unary(SERVICE, method, metadata, self.deadline, work).await
    }

    fn bounds(&self, rows: usize) -> Bounds {
        Bounds {
            rows,
            examined: self.reader.config.rows_examined_max,
            // Room for the frame around the rows.
            bytes: self.reader.answer_bytes_max / 4 * 3,
        }
    }

    /// Fails if an answer that cannot be paged is too large.
    fn fits(&self, passes: &[v1::Pass], field: &str) -> Result<(), Fault> {
        let bytes: usize = passes.iter().map(prost::Message::encoded_len).sum();
        let bytes_max = self.reader.answer_bytes_max / 4 * 3;
        if bytes <= bytes_max {
            return Ok(());
        }
        Err(Fault::field(
            field,
            format!(
                "asks for {bytes} bytes; at most {bytes_max} fit in an answer: ask for fewer passes or set read_mask"
            ),
        ))
    }

    async fn passes_find(
        &self,
        scope: &Scope,
        keys: &[PassKey],
    ) -> Result<Vec<Option<pass_store::PassRecord>>, Fault> {
        self.reader
            .store
            .passes_find(scope, keys)
            .await
            .map_err(|error| fault::of_store(&error))
    }

    async fn get_pass(
        &self,
        request: v1::GetPassRequest,
        scope: &Scope,
    ) -> Result<v1::GetPassResponse, Fault> {
        let mut bad = Bad::default();
        let key = bad.take("name", parse_pass_name(&request.name));
        let mask = bad.mask(request.read_mask.as_ref(), PASS, &self.types);
        let min_cursor = bad.cursor("min_cursor", &request.min_cursor);
        bad.finish()?;
        let head = self.reader.reach(min_cursor).await?;
        let keys: Vec<PassKey> = key.into_iter().collect();
        let found = self.passes_find(scope, &keys).await?.pop().flatten();
        let pass = found.ok_or_else(|| Fault::not_found(request.name))?;
        Ok(v1::GetPassResponse {
            pass: Some(passes::encode(&pass, head.epoch, scope.personal, &mask)),
        })
    }

    async fn batch_get_passes(
        &self,
        request: v1::BatchGetPassesRequest,
        scope: &Scope,
    ) -> Result<v1::BatchGetPassesResponse, Fault> {
        let mut bad = Bad::default();
        let count = request.names.len();
        if count == 0 || count > NAMES_MAX {
            bad.field(
                "names",
                format!("has {count} names; 1 to {NAMES_MAX} are allowed"),
            );
        }
        let mut keys = Vec::with_capacity(count.min(NAMES_MAX));
        for (at, name) in request.names.iter().take(NAMES_MAX).enumerate() {
            keys.extend(bad.take(&format!("names[{at}]"), parse_pass_name(name)));
        }
        let mask = bad.mask(request.read_mask.as_ref(), PASS, &self.types);
        let min_cursor = bad.cursor("min_cursor", &request.min_cursor);
        bad.finish()?;
        let head = self.reader.reach(min_cursor).await?;
        let found = self.passes_find(scope, &keys).await?;
        let mut answer = Vec::with_capacity(found.len());
        for (pass, name) in found.iter().zip(&request.names) {
            match pass {
                Some(pass) => answer.push(passes::encode(pass, head.epoch, scope.personal, &mask)),
                None if request.allow_missing => {}
                None => return Err(Fault::not_found(name.clone())),
            }
        }
        self.fits(&answer, "names")?;
        Ok(v1::BatchGetPassesResponse { passes: answer })
    }

    async fn list_passes(
        &self,
        mut request: v1::ListPassesRequest,
        scope: &Scope,
    ) -> Result<v1::ListPassesResponse, Fault> {
        let token = std::mem::take(&mut request.page_token);
        let binding = Binding::of("ListPasses", &request);
        let mut bad = Bad::default();
        let source = bad.take("parent", parse_source_parent(&request.parent));
        let size = bad.page_size(request.page_size);
        let filter = bad.filter(&request.filter, &passes::SCHEMA);
        let order = match request.order_by.as_str() {
            "" | "name" => PassOrder::FirstSeen,
            "last_event desc" => PassOrder::LastEventDescending,
            _ => {
                bad.field("order_by", "must be name or last_event desc");
                PassOrder::FirstSeen
            }
        };
        let mask = bad.mask(request.read_mask.as_ref(), PASS, &self.types);
        let min_cursor = bad.cursor("min_cursor", &request.min_cursor);
        bad.finish()?;
        let head = self.reader.reach(min_cursor).await?;
        let from = token_place(binding, head.epoch, &token)?;
        let rows = PassRows {
            store: self.reader.store.as_ref(),
            scope: scope.clone(),
            source: passes::narrowed(source.flatten(), &filter),
            order,
            filter,
            mask,
            epoch: head.epoch,
        };
        let (passes, next) = walk(&rows, from, self.bounds(size)).await?;
        Ok(v1::ListPassesResponse {
            passes,
            next_page_token: next.map_or_else(String::new, |from| binding.token(head.epoch, from)),
            cursor: head.cursor().to_string(),
        })
    }

    async fn lookup_passes(
        &self,
        request: v1::LookupPassesRequest,
        scope: &Scope,
    ) -> Result<v1::LookupPassesResponse, Fault> {
        let mut bad = Bad::default();
        let source = bad.take("parent", parse_source_parent(&request.parent));
        let key = match request.key {
            Some(v1::lookup_passes_request::Key::SerialNumber(text)) => {
                check_key(&mut bad, "serial_number", &text);
                Some(LookupKey::SerialNumber(text))
            }
            Some(v1::lookup_passes_request::Key::ExternalId(text)) => {
                check_key(&mut bad, "external_id", &text);
                Some(LookupKey::ExternalId(text))
            }
            None => {
                bad.field("key", "is missing; set serial_number or external_id");
                None
            }
        };
        let mask = bad.mask(request.read_mask.as_ref(), PASS, &self.types);
        let min_cursor = bad.cursor("min_cursor", &request.min_cursor);
        bad.finish()?;
        let key = key.ok_or_else(|| Fault::field("key", "is missing"))?;
        let head = self.reader.reach(min_cursor).await?;
        let found = self
            .reader
            .store
            .passes_lookup(scope, source.flatten().as_ref(), &key, LOOKUP_MAX)
            .await
            .map_err(|error| fault::of_store(&error))?;
        let passes: Vec<v1::Pass> = found
            .iter()
            .map(|pass| passes::encode(pass, head.epoch, scope.personal, &mask))
            .collect();
        self.fits(&passes, "key")?;
        Ok(v1::LookupPassesResponse { passes })
    }

    async fn get_event(
        &self,
        request: v1::GetEventRequest,
        scope: &Scope,
    ) -> Result<v1::GetEventResponse, Fault> {
        let mut bad = Bad::default();
        let name = bad.take(
            "name",
            parse_event_name(&request.name).map_err(|error| error.to_string()),
        );
        let mask = bad.mask(request.read_mask.as_ref(), EVENT, &self.types);
        let min_cursor = bad.cursor("min_cursor", &request.min_cursor);
        bad.finish()?;
        let head = self.reader.reach(min_cursor).await?;
        let (pass, id) = name.ok_or_else(|| Fault::field("name", "is not an event's name"))?;
        let event = self
            .reader
            .store
            .event_find(scope, id)
            .await
            .map_err(|error| fault::of_store(&error))?
            .filter(|event| event.pass_key() == pass)
            .ok_or_else(|| Fault::not_found(request.name))?;
        let mut wire = event_to_wire(&event, head.epoch);
        if !scope.personal {
            personal::strip_event(&mut wire);
        }
        mask.apply(&mut wire);
        Ok(v1::GetEventResponse { event: Some(wire) })
    }

    async fn list_events(
        &self,
        mut request: v1::ListEventsRequest,
        scope: &Scope,
    ) -> Result<v1::ListEventsResponse, Fault> {
        let token = std::mem::take(&mut request.page_token);
        let binding = Binding::of("ListEvents", &request);
        let mut bad = Bad::default();
        let parent = bad.take("parent", parse_event_parent(&request.parent));
        let size = bad.page_size(request.page_size);
        let filter = bad.filter(&request.filter, &events::SCHEMA);
        let descending = match request.order_by.as_str() {
            "" | "position" => false,
            "position desc" => true,
            _ => {
                bad.field("order_by", "must be position or position desc");
                false
            }
        };
        let mask = bad.mask(request.read_mask.as_ref(), EVENT, &self.types);
        let min_cursor = bad.cursor("min_cursor", &request.min_cursor);
        bad.finish()?;
        let parent = parent.ok_or_else(|| Fault::field("parent", "is not a parent"))?;
        let head = self.reader.reach(min_cursor).await?;
        let from = token_place(binding, head.epoch, &token)?;
        let rows = EventRows {
            store: self.reader.store.as_ref(),
            scope: scope.clone(),
            parent: events::narrowed(parent, &filter, scope),
            descending,
            filter,
            mask,
            epoch: head.epoch,
        };
        let (events, next) = walk(&rows, from, self.bounds(size)).await?;
        Ok(v1::ListEventsResponse {
            events,
            next_page_token: next.map_or_else(String::new, |from| binding.token(head.epoch, from)),
        })
    }

    async fn get_log_info(&self, scope: &Scope) -> Result<v1::GetLogInfoResponse, Fault> {
        let store = &self.reader.store;
        let broken = |error: pass_store::Error| fault::of_store(&error);
        let info = store.log_info().await.map_err(broken)?;
        let oldest = store.digest_at(info.oldest).await.map_err(broken)?;
        let head = info.head;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        let books = info.books;
        Ok(v1::GetLogInfoResponse {
            epoch: epoch_text(head.epoch),
            oldest_cursor: Cursor {
                epoch: head.epoch,
                position: info.oldest,
                digest: oldest.unwrap_or_default(),
            }
            .to_string(),
            head_cursor: head.cursor().to_string(),
            head_position: number(head.position.0),
            head_record_time: (head.position > Position(0)).then(|| time_to_wire(head.record_time)),
            books: scope.allows_all().then(|| v1::LogBooks {
                deliveries: number(books.deliveries),
                applied: number(books.applied),
                duplicate: number(books.duplicate),
                control: number(books.control),
                quarantined: number(books.quarantined),
                facts: number(books.facts),
                events: number(books.events),
                duplicate_facts: number(books.duplicate_facts),
                quarantined_facts: number(books.quarantined_facts),
                differing_duplicates: number(books.differing_duplicates),
                quarantine_open: number(books.quarantine_open),
            }),
            spools: (info.spools.into_iter())
                // They tell of all sources together.
                .filter(|_| scope.allows_all())
                .map(|spool| v1::SpoolInfo {
                    spool_id: spool.spool.to_string(),
                    gateway_id: spool.gateway,
                    committed_sequence: number(spool.committed_sequence),
                    missing_sequences: spool.missing,
                })
                .collect(),
            database: info.database.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            insecure: self.insecure.clone(),
        })
    }
}

fn token_place(binding: Binding, epoch: u64, token: &str) -> Result<u64, Fault> {
    binding
        .place(epoch, token)
        .map_err(|fault| fault.in_field("page_token"))
}

fn check_key(bad: &mut Bad, field: &str, text: &str) {
    if text.is_empty() || text.len() > KEY_BYTES_MAX {
        let bytes = text.len();
        bad.field(
            field,
            format!("has {bytes} bytes; 1 to {KEY_BYTES_MAX} are allowed"),
        );
    }
}

/// Reads `sources/{source}/passes/{pass}`, either with `-` for all.
fn parse_event_parent(parent: &str) -> Result<EventParent, String> {
    let Some(source) = parent.strip_suffix("/passes/-") else {
        return parse_pass_name(parent).map(EventParent::Pass);
    };
    Ok(parse_source_parent(source)?.map_or(EventParent::All, EventParent::Source))
}

#[tonic::async_trait]
impl PassService for PassApi {
    async fn get_pass(
        &self,
        request: Request<v1::GetPassRequest>,
    ) -> Result<Response<v1::GetPassResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.get_pass(request, caller.scope());
        self.answer("GetPass", &metadata, work).await
    }

    async fn batch_get_passes(
        &self,
        request: Request<v1::BatchGetPassesRequest>,
    ) -> Result<Response<v1::BatchGetPassesResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.batch_get_passes(request, caller.scope());
        self.answer("BatchGetPasses", &metadata, work).await
    }

    async fn list_passes(
        &self,
        request: Request<v1::ListPassesRequest>,
    ) -> Result<Response<v1::ListPassesResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.list_passes(request, caller.scope());
        self.answer("ListPasses", &metadata, work).await
    }

    async fn lookup_passes(
        &self,
        request: Request<v1::LookupPassesRequest>,
    ) -> Result<Response<v1::LookupPassesResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.lookup_passes(request, caller.scope());
        self.answer("LookupPasses", &metadata, work).await
    }

    async fn get_event(
        &self,
        request: Request<v1::GetEventRequest>,
    ) -> Result<Response<v1::GetEventResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.get_event(request, caller.scope());
        self.answer("GetEvent", &metadata, work).await
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        let caller = call::caller(&extensions)?;
        let work = self.list_events(request, caller.scope());
        self.answer("ListEvents", &metadata, work).await
    }

    async fn get_log_info(
        &self,
        request: Request<v1::GetLogInfoRequest>,
    ) -> Result<Response<v1::GetLogInfoResponse>, Status> {
        let caller = call::caller(request.extensions())?;
        self.answer(
            "GetLogInfo",
            request.metadata(),
            self.get_log_info(caller.scope()),
        )
        .await
    }
}
