//! Reads of the log.

use std::sync::Arc;

use pass_domain::Timestamp;
use pass_domain::cursor::Cursor;
use pass_domain::event::{Event, Position};
use pass_domain::fact::Personal;
use pass_domain::ids::EventId;
use pass_domain::time::to_micros;
use sea_orm::sea_query::Value;
use sea_orm::{ConnectionTrait, QueryResult, Statement};

use super::append::{head_of, head_row_from};
use super::rows::{Failure, bytes, get, get_id, get_number, number, text, time};
use super::statements::HEAD_COLUMNS_COUNT;
use super::{Database, SqlStore, limit};
use crate::contract::{Error, EventParent, Head, Page, Scope};
use crate::plan::HeadRow;
use crate::stored;

/// Reads events from rows of `statements::EVENT_COLUMNS`. Events of one delivery, which are neighbours,
/// share their personal data.
#[derive(Default)]
struct Reader {
    personal: Option<(u64, Option<Arc<Personal>>)>,
}

impl Reader {
    fn event(&mut self, row: &QueryResult, with_personal: bool) -> Result<Event, Failure> {
        let position = Position(get_number(row, 0)?);
        let id = EventId::from_bytes(get_id(row, 1, "event_id")?);
        let body: Vec<u8> = get(row, 3)?;
        let mut event = stored::event_from(position, id, time(get(row, 2)?)?, &body)?;
        if with_personal {
            let delivery = get_number(row, 4)?;
            if self.personal.as_ref().is_none_or(|(of, _)| *of != delivery) {
                // The row is gone if the holder was erased.
                let blob: Option<Vec<u8>> = get(row, 5)?;
                let personal =
                    stored::personal_from(blob.as_deref().unwrap_or_default())?.map(Arc::new);
                self.personal = Some((delivery, personal));
            }
            event.personal = self
                .personal
                .as_ref()
                .and_then(|(_, personal)| personal.clone());
        }
        Ok(event)
    }
}

impl SqlStore {
    async fn read_all(
        &self,
        statement: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<QueryResult>, Failure> {
        let statement = Statement::from_sql_and_values(self.backend(), statement, values);
        Ok(self.readers().query_all_raw(statement).await?)
    }

    async fn read_one(
        &self,
        statement: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Option<QueryResult>, Failure> {
        let statement = Statement::from_sql_and_values(self.backend(), statement, values);
        Ok(self.readers().query_one_raw(statement).await?)
    }

    /// The head's row, of a log that holds what was seen before.
    pub(super) async fn head_row(&self) -> Result<HeadRow, Failure> {
        let seen = match &self.database {
            Database::Sqlite(_) => None,
            Database::Postgres(server) => Some((server, server.seen.mark())),
        };
        let sought = seen.map(|(_, mark)| number(mark.map_or(0, |mark| mark.position)));
        let row = self.read_one(&self.statements.head_read, sought).await?;
        let row = row.ok_or_else(|| Error::Corrupt("log_head has no row".to_owned()))?;
        let head = head_row_from(&row)?;
        if let Some((server, mark)) = seen {
            let there: Option<Vec<u8>> = get(&row, HEAD_COLUMNS_COUNT)?;
            server.saw(mark, &head, there.as_deref()).await?;
        }
        Ok(head)
    }

    /// See [`crate::PassStore::head`].
    pub(super) async fn head_inner(&self) -> Result<Head, Failure> {
        head_of(&self.head_row().await?)
    }

    /// See [`crate::PassStore::digest_at`].
    pub(super) async fn digest_at_inner(&self, position: Position) -> Result<Option<u64>, Failure> {
        if position.0 == 0 {
            return Ok(Some(0));
        }
        if position.0 > i64::MAX as u64 {
            return Ok(None);
        }
        let row = self
            .read_one(&self.statements.event_id_at, [number(position.0)])
            .await?;
        let id = row.map(|row| get_id(&row, 0, "event_id")).transpose()?;
        Ok(id.map(|id| Cursor::digest_of(&EventId::from_bytes(id))))
    }

    /// See [`crate::PassStore::position_before_time`]. Record times never go back, so halving finds the
    /// place in about as many look-ups as the position has bits, without an index of its own.
    pub(super) async fn position_before_time_inner(
        &self,
        record_time: Timestamp,
    ) -> Result<Position, Failure> {
        // Record times are whole microseconds: one at or after the time is at or after its ceiling.
        let below = to_micros(record_time);
        let sought = below + i64::from(record_time.as_nanosecond().rem_euclid(1_000) != 0);
        let (mut before, mut last) = (0, self.head_inner().await?.position.0);
        while before < last {
            let middle = before + (last - before).div_ceil(2);
            let row = self
                .read_one(&self.statements.event_time, [number(middle)])
                .await?;
            let micros: i64 = match row {
                Some(row) => get(&row, 0)?,
                None => {
                    let text = format!("no event at position {middle}");
                    return Err(Error::Corrupt(text).into());
                }
            };
            if micros < sought {
                before = middle;
            } else {
                last = middle - 1;
            }
        }
        Ok(Position(before))
    }

    /// See [`crate::PassStore::events_after`].
    pub(super) async fn events_after_inner(
        &self,
        scope: &Scope,
        after: Position,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Failure> {
        let statements = &self.statements;
        let statement = if scope.personal {
            &statements.events_after_personal
        } else {
            &statements.events_after
        };
        let before = self.seen();
        let rows = self
            .read_all(statement, [from(after.0), limit(rows_max)])
            .await?;
        let next = rows.last().map(|row| get_number(row, 0)).transpose()?;
        if let Some(last) = rows.last() {
            self.event_seen(before, get_number(last, 0)?, get_id(last, 1, "event_id")?);
        }
        Ok(Page {
            rows: events(scope, &rows, |_| true)?,
            next,
        })
    }

    /// See [`crate::PassStore::event_find`].
    pub(super) async fn event_find_inner(
        &self,
        scope: &Scope,
        id: EventId,
    ) -> Result<Option<Arc<Event>>, Failure> {
        let row = self
            .read_one(
                &self.statements.event_by_id,
                [bytes(id.as_bytes().as_slice())],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let event = Reader::default().event(&row, scope.personal)?;
        let allowed = scope.allows(&event.source, &event.organization);
        Ok(allowed.then(|| Arc::new(event)))
    }

    /// See [`crate::PassStore::events_list`].
    pub(super) async fn events_list_inner(
        &self,
        scope: &Scope,
        parent: &EventParent,
        descending: bool,
        place: u64,
        rows_max: u32,
    ) -> Result<Page<Arc<Event>>, Failure> {
        let place = if descending {
            from_end(place)
        } else {
            from(place)
        };
        let statements = &self.statements;
        let rows = match parent {
            EventParent::Pass(key) => {
                // Whether the next page exists must not tell that the pass does.
                let visible = scope.allows_source(&key.source)
                    || (self
                        .passes_find_inner(scope, std::slice::from_ref(key))
                        .await?)
                        .iter()
                        .any(Option::is_some);
                if !visible {
                    return Ok(Page {
                        rows: Vec::new(),
                        next: None,
                    });
                }
                let statement = if descending {
                    &statements.events_of_pass_before
                } else {
                    &statements.events_of_pass_after
                };
                let values = [
                    text(key.source.as_str()),
                    text(key.pass.as_str()),
                    place,
                    limit(rows_max),
                ];
                self.read_all(statement, values).await?
            }
            EventParent::Source(_) | EventParent::All => {
                let statement = if descending {
                    &statements.events_before
                } else {
                    &statements.events_after_personal
                };
                self.read_all(statement, [place, limit(rows_max)]).await?
            }
        };
        let next = super::next(&rows, rows_max, |row| get_number(row, 0))?;
        let rows = events(scope, &rows, |event| match parent {
            EventParent::Source(source) => event.source == *source,
            EventParent::Pass(_) | EventParent::All => true,
        })?;
        Ok(Page { rows, next })
    }
}

fn events(
    scope: &Scope,
    rows: &[QueryResult],
    wanted: impl Fn(&Event) -> bool,
) -> Result<Vec<Arc<Event>>, Failure> {
    let mut reader = Reader::default();
    let mut events = Vec::with_capacity(rows.len());
    for row in rows {
        let event = reader.event(row, scope.personal)?;
        if scope.allows(&event.source, &event.organization) && wanted(&event) {
            events.push(Arc::new(event));
        }
    }
    Ok(events)
}

/// A place to go on after; anything too high is past the end.
pub(super) fn from(place: u64) -> Value {
    number(place.min(i64::MAX as u64))
}

/// A place to go on before; 0 is the end.
pub(super) fn from_end(place: u64) -> Value {
    from(if place == 0 { u64::MAX } else { place })
}
