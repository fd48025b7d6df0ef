//! SQL texts with many rows or keys, made once, in few sizes, so that each is prepared once per connection.

use sea_orm::sea_query::{ArrayType, Value};
use sea_orm::{ConnectionTrait, DbBackend, DbErr, QueryResult, Statement};

/// How many rows one statement takes: the largest that fits goes first.
const ROWS: [usize; 6] = [256, 128, 64, 16, 4, 1];

/// How many keys one statement takes.
const KEYS: [usize; 5] = [512, 128, 32, 4, 1];

/// Writes the placeholder of a parameter, counted from 1. SQLite gets bare question marks: it looks named
/// and numbered ones up one by one.
fn placeholder(text: &mut String, backend: DbBackend, number: usize) {
    if backend == DbBackend::Postgres {
        text.push('$');
        text.push_str(&number.to_string());
    } else {
        text.push('?');
    }
}

/// Turns the question marks of a text into the placeholders of a database.
pub(crate) fn spelled(backend: DbBackend, text: &str) -> String {
    let mut spelled = String::with_capacity(text.len() + 16);
    let mut number = 0;
    for character in text.chars() {
        if character == '?' {
            number += 1;
            placeholder(&mut spelled, backend, number);
        } else {
            spelled.push(character);
        }
    }
    spelled
}

/// Values of one kind, which may be none, as an array, for PostgreSQL.
pub(crate) fn array(kind: ArrayType, values: Vec<Value>) -> Value {
    Value::Array(kind, Some(Box::new(values)))
}

/// An `INSERT … VALUES` of any number of rows, for SQLite.
#[derive(Debug)]
pub(crate) struct Insert {
    columns: usize,
    texts: [String; ROWS.len()],
}

impl Insert {
    /// `tail` is what follows the rows, such as an `ON CONFLICT` clause.
    pub(crate) fn new(table: &str, columns: &[&str], tail: &str) -> Self {
        let texts = ROWS.map(|rows| {
            let mut text = format!("INSERT INTO {table} ({}) VALUES ", columns.join(", "));
            for row in 0..rows {
                text.push_str(if row == 0 { "(" } else { ",(" });
                for column in 0..columns.len() {
                    text.push_str(if column == 0 { "?" } else { ",?" });
                }
                text.push(')');
            }
            text.push_str(tail);
            text
        });
        Self {
            columns: columns.len(),
            texts,
        }
    }

    /// How many values make a row.
    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// The largest statement for the first of these rows, of which there is at least one; they are taken.
    pub(crate) fn statement(&self, values: &mut Vec<Value>) -> Statement {
        debug_assert_eq!(values.len() % self.columns, 0, "every column of every row");
        let rows = values.len() / self.columns;
        let at = ROWS.iter().position(|size| *size <= rows);
        let at = at.expect("one row is the smallest size");
        let rest = values.split_off(ROWS[at] * self.columns);
        let values = std::mem::replace(values, rest);
        Statement::from_sql_and_values(DbBackend::Sqlite, &self.texts[at], values)
    }
}

/// A `SELECT` of the rows of any number of keys. PostgreSQL takes them as one array. For SQLite there are
/// texts of a few sizes; the last statement's free places repeat its last key.
#[derive(Debug)]
pub(crate) struct Lookup {
    backend: DbBackend,
    texts: Vec<String>,
}

impl Lookup {
    /// `text` has question marks for what stands before the keys, and ends with the column that is one of
    /// them.
    pub(crate) fn new(backend: DbBackend, text: &str) -> Self {
        let texts = if backend == DbBackend::Postgres {
            vec![spelled(backend, &format!("{text} = ANY(?)"))]
        } else {
            let text = |keys: usize| format!("{text} IN (?{})", ",?".repeat(keys - 1));
            KEYS.into_iter().map(text).collect()
        };
        Self { backend, texts }
    }

    /// The texts, from the largest.
    #[cfg(test)]
    pub(crate) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The rows of all keys, in no particular order.
    pub(crate) async fn query(
        &self,
        connection: &impl ConnectionTrait,
        before: &[Value],
        keys: Vec<Value>,
    ) -> Result<Vec<QueryResult>, DbErr> {
        if self.backend == DbBackend::Postgres {
            let Some(kind) = keys.first().map(Value::array_type) else {
                return Ok(Vec::new());
            };
            let mut values = before.to_vec();
            values.push(array(kind, keys));
            let statement = Statement::from_sql_and_values(self.backend, &self.texts[0], values);
            return connection.query_all_raw(statement).await;
        }
        let mut rows = Vec::new();
        let mut keys = keys.into_iter();
        while keys.len() > 0 {
            let taken = keys.len().min(KEYS[0]);
            let at = KEYS.iter().rposition(|size| *size >= taken).unwrap_or(0);
            let size = before.len() + KEYS[at];
            let mut values = Vec::with_capacity(size);
            values.extend_from_slice(before);
            values.extend(keys.by_ref().take(taken));
            if let Some(last) = values.last().cloned() {
                values.resize(size, last);
            }
            rows.extend(
                connection
                    .query_all_raw(Statement::from_sql_and_values(
                        self.backend,
                        &self.texts[at],
                        values,
                    ))
                    .await?,
            );
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_spelled_for_each_database() {
        assert_eq!(
            spelled(DbBackend::Sqlite, "a = ? AND b = ?"),
            "a = ? AND b = ?"
        );
        assert_eq!(
            spelled(DbBackend::Postgres, "a = ? AND b = ?"),
            "a = $1 AND b = $2"
        );
        let insert = Insert::new("t", &["a", "b"], " ON CONFLICT DO NOTHING");
        assert_eq!(
            insert.texts[4],
            "INSERT INTO t (a, b) VALUES (?,?),(?,?),(?,?),(?,?) ON CONFLICT DO NOTHING"
        );
        let text = "SELECT a FROM t WHERE b = ? AND c";
        let lookup = Lookup::new(DbBackend::Sqlite, text);
        assert_eq!(
            lookup.texts[3],
            "SELECT a FROM t WHERE b = ? AND c IN (?,?,?,?)"
        );
        assert_eq!(lookup.texts[4], "SELECT a FROM t WHERE b = ? AND c IN (?)");
        let lookup = Lookup::new(DbBackend::Postgres, text);
        assert_eq!(
            lookup.texts,
            ["SELECT a FROM t WHERE b = $1 AND c = ANY($2)"]
        );
    }
}
