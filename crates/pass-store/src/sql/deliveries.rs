//! Reads of deliveries and of quarantine.

use std::sync::Arc;

use pass_domain::delivery::{Decoded, Delivery, Outcome, Undecodable, UndecodableReason};
use pass_domain::ids::DeliveryId;
use sea_orm::sea_query::{ArrayType, Expr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, QueryFilter, QueryOrder, QuerySelect,
    Statement,
};

use super::entity::{delivery, quarantine};
use super::rows::{Failure, get, number, signed, source, time, unsigned};
use super::texts::{array, spelled};
use super::{SqlStore, bounded, next};
use crate::contract::{DeliveryRecord, Error, Page, QuarantineRecord, QuarantineState, Scope};
use crate::stored::{self, DeliveryRest, Numbered, StoredError, id_bytes};

/// A delivery as its rows have it.
pub(super) struct Found {
    pub(super) record: DeliveryRecord,
    pub(super) rest: DeliveryRest,
}

/// A word from its column.
fn word<N: Numbered>(number: i64, field: &'static str) -> Result<N, Failure> {
    let word = i32::try_from(number).ok().and_then(N::from_number);
    Ok(word.ok_or(StoredError::Field(field))?)
}

fn words(bytes: Vec<u8>) -> Result<String, Failure> {
    String::from_utf8(bytes)
        .map_err(|_| Error::Corrupt("a quarantine row's text is not UTF-8".to_owned()).into())
}

fn quarantine_of(model: quarantine::Model) -> Result<QuarantineRecord, Failure> {
    Ok(QuarantineRecord {
        state: word::<QuarantineState>(model.state, "quarantine.state")?,
        reason: word::<UndecodableReason>(model.reason, "quarantine.reason")?,
        detail: words(model.detail)?,
        update_time: time(model.update_micros)?,
        discard_reason: words(model.discard_reason)?,
    })
}

fn found_of(delivery: delivery::Model, stay: Option<quarantine::Model>) -> Result<Found, Failure> {
    let quarantine = stay.map(quarantine_of).transpose()?;
    let outcome: Outcome = word(delivery.outcome, "delivery.outcome")?;
    let undecodable = match (&quarantine, outcome) {
        (Some(stay), Outcome::Quarantined) => Some(Decoded::Undecodable(Undecodable {
            reason: stay.reason,
            detail: stay.detail.clone(),
        })),
        _ => None,
    };
    let id = DeliveryId::from_bytes(id_bytes(&delivery.delivery_id, "delivery_id")?);
    let (told, rest) =
        stored::delivery_from(id, source(&delivery.source)?, undecodable, &delivery.body)?;
    let record = DeliveryRecord {
        number: unsigned(delivery.number)?,
        events: stored::events_of(&told.source, &rest),
        delivery: Arc::new(told),
        body_bytes: rest.body_bytes,
        record_time: time(delivery.record_micros)?,
        outcome,
        duplicate_facts: rest.duplicate_facts,
        differing_duplicates: rest.differing_duplicates,
        quarantine,
    };
    Ok(Found { record, rest })
}

fn visible(scope: &Scope, delivery: &Delivery) -> bool {
    scope.allows(&delivery.source, &delivery.organization)
}

impl SqlStore {
    /// A delivery with its stay in quarantine, without anything personal.
    pub(super) async fn delivery_get(
        &self,
        connection: &impl ConnectionTrait,
        id: DeliveryId,
    ) -> Result<Option<Found>, Failure> {
        let found = delivery::Entity::find()
            .filter(delivery::Column::DeliveryId.eq(id.as_bytes().to_vec()))
            .one(connection)
            .await?;
        let Some(found) = found else { return Ok(None) };
        let stay = quarantine::Entity::find_by_id(found.number)
            .one(connection)
            .await?;
        found_of(found, stay).map(Some)
    }

    /// See [`crate::PassStore::delivery_find`].
    pub(super) async fn delivery_find_inner(
        &self,
        scope: &Scope,
        id: DeliveryId,
        with_body: bool,
    ) -> Result<Option<DeliveryRecord>, Failure> {
        let found = self.delivery_get(self.readers(), id).await?;
        let Some(Found { mut record, .. }) =
            found.filter(|found| visible(scope, &found.record.delivery))
        else {
            return Ok(None);
        };
        if scope.personal {
            let sql = spelled(
                self.backend(),
                "SELECT personal, raw_body FROM delivery_personal WHERE number = ?",
            );
            let statement =
                Statement::from_sql_and_values(self.backend(), sql, [number(record.number)]);
            if let Some(row) = self.readers().query_one_raw(statement).await? {
                let told = Arc::make_mut(&mut record.delivery);
                if let Decoded::Facts(facts) = &mut told.decoded {
                    facts.personal =
                        stored::personal_from(&get::<Vec<u8>>(&row, 0)?)?.unwrap_or_default();
                }
                if with_body {
                    told.body = get(&row, 1)?;
                }
            }
        }
        Ok(Some(record))
    }

    /// See [`crate::PassStore::deliveries_list`]. Nothing personal is in it; ask for one delivery to see it.
    pub(super) async fn deliveries_list_inner(
        &self,
        scope: &Scope,
        quarantine_open: bool,
        place: u64,
        rows_max: u32,
    ) -> Result<Page<DeliveryRecord>, Failure> {
        let before = if place == 0 {
            i64::MAX
        } else {
            i64::try_from(place).unwrap_or(i64::MAX)
        };
        let (deliveries, stays) = if quarantine_open {
            // The state is spelled out, not bound, so that the partial index is used.
            let stays = quarantine::Entity::find()
                .filter(Expr::cust("state = 1"))
                .filter(quarantine::Column::Number.lt(before))
                .order_by_desc(quarantine::Column::Number)
                .limit(bounded(rows_max))
                .all(self.readers())
                .await?;
            if stays.is_empty() {
                return Ok(Page {
                    rows: Vec::new(),
                    next: None,
                });
            }
            let numbers = stays.iter().map(|stay| stay.number);
            let wanted = if self.backend() == DbBackend::Postgres {
                let numbers = array(ArrayType::BigInt, numbers.map(signed).collect());
                Expr::cust_with_values("number = ANY($1)", [numbers])
            } else {
                delivery::Column::Number.is_in(numbers)
            };
            let deliveries = delivery::Entity::find()
                .filter(wanted)
                .order_by_desc(delivery::Column::Number)
                .all(self.readers())
                .await?;
            (deliveries, stays)
        } else {
            let deliveries = delivery::Entity::find()
                .filter(delivery::Column::Number.lt(before))
                .order_by_desc(delivery::Column::Number)
                .limit(bounded(rows_max))
                .all(self.readers())
                .await?;
            let numbers = deliveries.iter().map(|delivery| delivery.number);
            let stays = match (numbers.clone().min(), numbers.max()) {
                (Some(first), Some(last)) => {
                    quarantine::Entity::find()
                        .filter(quarantine::Column::Number.between(first, last))
                        .all(self.readers())
                        .await?
                }
                _ => Vec::new(),
            };
            (deliveries, stays)
        };
        let next = next(&deliveries, rows_max, |delivery| unsigned(delivery.number))?;
        let mut stays: std::collections::HashMap<i64, quarantine::Model> =
            stays.into_iter().map(|stay| (stay.number, stay)).collect();
        let mut rows = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            let stay = stays.remove(&delivery.number);
            let record = found_of(delivery, stay)?.record;
            if visible(scope, &record.delivery) {
                rows.push(record);
            }
        }
        Ok(Page { rows, next })
    }
}
