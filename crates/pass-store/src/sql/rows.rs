//! Values in and out of rows.

use pass_domain::Timestamp;
use pass_domain::ids::SourceUid;
use pass_domain::time::from_micros;
use sea_orm::sea_query::Value;
use sea_orm::{DbErr, QueryResult, TryGetable};

use crate::contract::Error;
use crate::plan::PlanError;
use crate::stored::StoredError;

/// Anything that can go wrong inside a call, before the driver has said what it means.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The database said so.
    Database(DbErr),
    /// Already in the contract's words.
    Store(Error),
}

/// An error of the database in the contract's words.
#[derive(Debug)]
pub(crate) struct Meaning {
    pub(crate) error: Error,
    /// True if the process must not go on with this database: what it holds in memory and what is on disk may
    /// differ from now on.
    pub(crate) fatal: bool,
}

impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        Failure::Database(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Store(error)
    }
}

impl From<StoredError> for Failure {
    fn from(error: StoredError) -> Self {
        Failure::Store(Error::Corrupt(error.to_string()))
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        Failure::Store(Error::Corrupt(error.to_string()))
    }
}

/// A number that is never negative.
pub(crate) fn number(value: u64) -> Value {
    Value::BigInt(Some(
        i64::try_from(value).expect("counters and positions stay below 2^63"),
    ))
}

/// A signed number.
pub(crate) fn signed(value: i64) -> Value {
    Value::BigInt(Some(value))
}

/// Sixty-four bits without order, such as a digest.
pub(crate) fn bits(value: u64) -> Value {
    Value::BigInt(Some(value.cast_signed()))
}

/// Bytes.
pub(crate) fn bytes(value: impl Into<Vec<u8>>) -> Value {
    Value::Bytes(Some(value.into()))
}

/// A text as bytes; `NULL` if it is empty.
pub(crate) fn bytes_or_null(value: String) -> Value {
    Value::Bytes((!value.is_empty()).then(|| value.into_bytes()))
}

/// A text.
pub(crate) fn text(value: impl Into<String>) -> Value {
    Value::String(Some(value.into()))
}

/// Reads a column.
pub(crate) fn get<T: TryGetable>(row: &QueryResult, at: usize) -> Result<T, Failure> {
    row.try_get_by_index(at).map_err(Failure::Database)
}

/// Reads a number that is never negative.
pub(crate) fn get_number(row: &QueryResult, at: usize) -> Result<u64, Failure> {
    unsigned(get::<i64>(row, at)?)
}

/// Reads sixty-four bits without order.
pub(crate) fn get_bits(row: &QueryResult, at: usize) -> Result<u64, Failure> {
    Ok(get::<i64>(row, at)?.cast_unsigned())
}

/// Reads 16 bytes.
pub(crate) fn get_id(
    row: &QueryResult,
    at: usize,
    field: &'static str,
) -> Result<[u8; 16], Failure> {
    Ok(crate::stored::id_bytes(&get::<Vec<u8>>(row, at)?, field)?)
}

/// A number that is never negative.
pub(crate) fn unsigned(value: i64) -> Result<u64, Failure> {
    u64::try_from(value).map_err(|_| Error::Corrupt("a number is negative".to_owned()).into())
}

/// A time from its column.
pub(crate) fn time(micros: i64) -> Result<Timestamp, Failure> {
    from_micros(micros).ok_or_else(|| Error::Corrupt("a time is out of range".to_owned()).into())
}

/// A source from its column.
pub(crate) fn source(text: &str) -> Result<SourceUid, Failure> {
    Ok(SourceUid::new(text).map_err(StoredError::Id)?)
}
