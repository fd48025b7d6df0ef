//! sea-orm's statements on a connection of the driver. Values are moved, not copied.

use std::time::Duration;

use sea_orm::sea_query::{ArrayType, Value};
use sea_orm::sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow, Postgres};
use sea_orm::sqlx::query::Query;
use sea_orm::sqlx::{self, AssertSqlSafe};
use sea_orm::{DbErr, RuntimeErr, Statement};

/// How much longer than the server's time-outs this side waits for an answer: past it the network is gone.
pub(super) const ANSWER_GRACE: Duration = Duration::from_secs(2);

/// A statement with its values.
pub(super) type Bound = Query<'static, Postgres, PgArguments>;

/// An error of the driver, as sea-orm would say it.
pub(super) fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// What a statement is answered with if the server says nothing for too long.
pub(super) fn timed_out(what: &str) -> DbErr {
    let error = std::io::Error::new(
        std::io::ErrorKind::TimedOut,
        format!("{what} was not answered in time"),
    );
    failed(sqlx::Error::Io(error))
}

/// Binds a statement's values.
pub(super) fn bound(statement: Statement) -> Result<Bound, DbErr> {
    let mut query = sqlx::query(AssertSqlSafe(statement.sql));
    for value in statement.values.into_iter().flat_map(|values| values.0) {
        query = bind(query, value)?;
    }
    Ok(query)
}

fn bind(query: Bound, value: Value) -> Result<Bound, DbErr> {
    Ok(match value {
        Value::BigInt(value) => query.bind(value),
        Value::BigUnsigned(value) => query.bind(value.map(u64::cast_signed)),
        Value::String(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
        Value::Array(kind, Some(values)) => bind_array(query, &kind, *values)?,
        other => return Err(unbindable(&other)),
    })
}

/// Binds an array, which may be empty, of values that are not null.
fn bind_array(query: Bound, kind: &ArrayType, values: Vec<Value>) -> Result<Bound, DbErr> {
    Ok(match kind {
        ArrayType::BigInt => query.bind(all(values, |value| match value {
            Value::BigInt(Some(value)) => Ok(value),
            other => Err(other),
        })?),
        ArrayType::String => query.bind(all(values, |value| match value {
            Value::String(Some(value)) => Ok(value),
            other => Err(other),
        })?),
        ArrayType::Bytes => query.bind(all(values, |value| match value {
            Value::Bytes(Some(value)) => Ok(value),
            other => Err(other),
        })?),
        other => return Err(DbErr::Type(format!("an array of {other:?}"))),
    })
}

/// All values, each taken out of what it came in.
fn all<T>(values: Vec<Value>, one: impl Fn(Value) -> Result<T, Value>) -> Result<Vec<T>, DbErr> {
    let one = |value| one(value).map_err(|other| unbindable(&other));
    values.into_iter().map(one).collect()
}

fn unbindable(value: &Value) -> DbErr {
    DbErr::Type(format!(
        "values of this kind are not used here: {:?}",
        std::mem::discriminant(value)
    ))
}

/// Runs a query and gives its rows.
pub(super) async fn rows(connection: &mut PgConnection, query: Bound) -> Result<Vec<PgRow>, DbErr> {
    query.fetch_all(connection).await.map_err(failed)
}

/// Runs a statement and says how many rows it touched.
pub(super) async fn execute(
    connection: &mut PgConnection,
    query: Bound,
) -> Result<PgQueryResult, DbErr> {
    query.execute(connection).await.map_err(failed)
}

/// Runs statements that are sent as one text, in one round trip; gives the rows of them all.
pub(super) async fn text(connection: &mut PgConnection, text: String) -> Result<Vec<PgRow>, DbErr> {
    let query = sqlx::raw_sql(AssertSqlSafe(text));
    query.fetch_all(connection).await.map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_are_bound_by_their_kind_and_may_be_empty() {
        for (kind, value) in [
            (ArrayType::BigInt, Value::BigInt(Some(1))),
            (ArrayType::String, Value::String(Some("a".to_owned()))),
            (ArrayType::Bytes, Value::Bytes(Some(vec![1]))),
        ] {
            for values in [Vec::new(), vec![value.clone()]] {
                let array = Value::Array(kind.clone(), Some(Box::new(values)));
                assert!(bind(sqlx::query("SELECT $1"), array).is_ok(), "{kind:?}");
            }
            let null = Value::Array(kind.clone(), Some(Box::new(vec![Value::Bool(None)])));
            assert!(bind(sqlx::query("SELECT $1"), null).is_err(), "{kind:?}");
        }
    }
}
