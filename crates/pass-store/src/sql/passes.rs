//! Reads of passes.

use std::collections::HashMap;

use pass_domain::event::Position;
use pass_domain::ids::{PassKey, SourceUid, VendorId};
use sea_orm::sea_query::{Expr, SimpleExpr};
use sea_orm::{
    ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, QueryFilter, QueryOrder, QueryResult,
    QuerySelect, Statement,
};

use super::entity::pass;
use super::events::from_end;
use super::rows::{Failure, get, get_bits, get_number, source, unsigned};
use super::{SqlStore, bounded, limit, next};
use crate::contract::{LookupKey, Page, PassOrder, PassRecord, Scope};
use crate::stored::{self, StoredError};

/// Reads a pass from the columns of `statements::passes_by_name`, the first of them at `at`.
fn record_from(row: &QueryResult, at: usize) -> Result<PassRecord, Failure> {
    let (state, _) = stored::pass_from(&get::<Vec<u8>>(row, at + 8)?)?;
    Ok(PassRecord {
        number: get_number(row, at)?,
        key: key_from(&get::<String>(row, at + 1)?, &get::<String>(row, at + 2)?)?,
        vendor: get(row, at + 3)?,
        organization: get(row, at + 4)?,
        state,
        digest: get_bits(row, at + 7)?,
        last_position: Position(get_number(row, at + 5)?),
        last_digest: get_bits(row, at + 6)?,
    })
}

fn record_of(model: pass::Model) -> Result<PassRecord, Failure> {
    let (state, _) = stored::pass_from(&model.body)?;
    Ok(PassRecord {
        number: unsigned(model.number)?,
        key: key_from(&model.source, &model.vendor_pass_id)?,
        vendor: model.vendor,
        organization: model.organization,
        state,
        digest: model.digest.cast_unsigned(),
        last_position: Position(unsigned(model.last_position)?),
        last_digest: model.last_digest.cast_unsigned(),
    })
}

fn key_from(source_uid: &str, pass: &str) -> Result<PassKey, Failure> {
    Ok(PassKey {
        source: source(source_uid)?,
        pass: VendorId::new(pass).map_err(StoredError::Id)?,
    })
}

impl SqlStore {
    /// See [`crate::PassStore::passes_find`].
    pub(super) async fn passes_find_inner(
        &self,
        scope: &Scope,
        keys: &[PassKey],
    ) -> Result<Vec<Option<PassRecord>>, Failure> {
        let names = keys
            .iter()
            .filter(|key| scope.may_allow(&key.source))
            .map(|key| (key.source.as_str(), key.pass.as_str()));
        let mut found = HashMap::new();
        for row in self
            .statements
            .passes_by_name(self.readers(), names)
            .await?
        {
            let record = record_from(&row, 0)?;
            if visible(scope, &record) {
                found.insert(record.key.clone(), record);
            }
        }
        Ok(keys.iter().map(|key| found.get(key).cloned()).collect())
    }

    /// See [`crate::PassStore::passes_list`]. By last event it walks the log backwards and shows each pass
    /// where its last event stands, so passes without an event are not in that order.
    pub(super) async fn passes_list_inner(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        order: PassOrder,
        place: u64,
        rows_max: u32,
    ) -> Result<Page<PassRecord>, Failure> {
        let wanted = |record: &PassRecord| {
            visible(scope, record) && source.is_none_or(|source| record.key.source == *source)
        };
        match order {
            PassOrder::FirstSeen => {
                let after = i64::try_from(place).unwrap_or(i64::MAX);
                let models = pass::Entity::find()
                    .filter(pass::Column::Number.gt(after))
                    .order_by_asc(pass::Column::Number)
                    .limit(bounded(rows_max))
                    .all(self.readers())
                    .await?;
                let next = next(&models, rows_max, |model| unsigned(model.number))?;
                let records = models
                    .into_iter()
                    .map(record_of)
                    .collect::<Result<Vec<_>, _>>()?;
                Ok(Page {
                    rows: records.into_iter().filter(wanted).collect(),
                    next,
                })
            }
            PassOrder::LastEventDescending => {
                let values = [from_end(place), limit(rows_max)];
                let statement = Statement::from_sql_and_values(
                    self.backend(),
                    &self.statements.passes_last_event,
                    values,
                );
                let rows = self.readers().query_all_raw(statement).await?;
                let next = next(&rows, rows_max, |row| get_number(row, 0))?;
                let mut records = Vec::new();
                for row in &rows {
                    if get::<Option<i64>>(row, 1)?.is_some() {
                        records.push(record_from(row, 1)?);
                    }
                }
                records.retain(wanted);
                Ok(Page {
                    rows: records,
                    next,
                })
            }
        }
    }

    /// See [`crate::PassStore::passes_lookup`]. Source by source and organization by organization, each in the
    /// order of an index, so that each examines no more rows than it gives. The first rows of one organization may
    /// come after those of the next, so that in a scope with organizations each is asked for a page; no more than
    /// two pages are held.
    pub(super) async fn passes_lookup_inner(
        &self,
        scope: &Scope,
        source: Option<&SourceUid>,
        key: &LookupKey,
        rows_max: u32,
    ) -> Result<Vec<PassRecord>, Failure> {
        let (column, name) = match key {
            LookupKey::SerialNumber(name) => (pass::Column::SerialNumber, name),
            LookupKey::ExternalId(name) => (pass::Column::ExternalId, name),
        };
        let named = || {
            pass::Entity::find()
                .filter(column.eq(name.as_bytes().to_vec()))
                .order_by_asc(pass::Column::Source)
                .order_by_asc(pass::Column::Number)
        };
        let of_source =
            |source: &SourceUid| named().filter(pass::Column::Source.eq(source.as_str()));
        let organizations = scope.organizations().iter();
        let queries: Vec<_> = match (source, scope.sources()) {
            (None, None) => vec![named()],
            (Some(source), _) if scope.allows_source(source) => vec![of_source(source)],
            (Some(source), _) => organizations
                .map(|organization| of_source(source).filter(self.of_organization(organization)))
                .collect(),
            (None, Some(sources)) => (sources.iter().map(of_source))
                .chain(organizations.map(|one| named().filter(self.of_organization(one))))
                .collect(),
        };
        let records_max = usize::try_from(bounded(rows_max)).unwrap_or(usize::MAX);
        let in_order = scope.organizations().is_empty();
        let mut records = Vec::new();
        for query in queries {
            if in_order && records.len() >= records_max {
                break;
            }
            let models = query.limit(bounded(rows_max)).all(self.readers()).await?;
            for model in models {
                records.push(record_of(model)?);
            }
            // Each query gives its first rows, so the first of all so far are among them.
            records.sort_unstable_by(|one: &PassRecord, other| {
                (&one.key.source, one.number).cmp(&(&other.key.source, other.number))
            });
            records.dedup_by_key(|record| record.number);
            records.truncate(records_max);
        }
        Ok(records)
    }

    /// The condition of the indexes of other names by organization, in their words.
    fn of_organization(&self, organization: &str) -> SimpleExpr {
        if self.backend() == DbBackend::Postgres {
            Expr::cust_with_values(
                "organization <> '' AND organization COLLATE \"C\" = $1",
                [organization],
            )
        } else {
            Expr::cust_with_values("organization <> '' AND organization = ?", [organization])
        }
    }
}

fn visible(scope: &Scope, record: &PassRecord) -> bool {
    scope.allows(&record.key.source, &record.organization)
}
