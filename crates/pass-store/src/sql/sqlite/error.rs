//! What SQLite's result codes mean. The only place that looks at them; nothing looks at messages.

use std::ops::Deref;

use sea_orm::sqlx;
use sea_orm::{DbErr, RuntimeErr};

use crate::contract::Error;
use crate::sql::rows::Meaning;

/// What a failed call means, if it was not a commit.
pub(in crate::sql) fn meaning(error: &DbErr) -> Meaning {
    let text = error.to_string();
    let meaning = |error: fn(String) -> Error, fatal: bool| Meaning {
        error: error(text.clone()),
        fatal,
    };
    let Some(inner) = driver(error) else {
        return match error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => meaning(Error::Unavailable, false),
            _ => meaning(Error::Corrupt, false),
        };
    };
    match inner {
        sqlx::Error::Database(database) => {
            let (error, fatal) = by_code(primary_code(&**database));
            meaning(error, fatal)
        }
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::TypeNotFound { .. }
        | sqlx::Error::RowNotFound => meaning(Error::Corrupt, false),
        _ => meaning(Error::Unavailable, false),
    }
}

/// True if another connection holds a lock, so that trying again may help.
pub(super) fn is_busy(error: &DbErr) -> bool {
    match driver(error) {
        Some(sqlx::Error::Database(database)) => primary_code(&**database) == 5,
        Some(_) | None => false,
    }
}

fn driver(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(inner))
        | DbErr::Exec(RuntimeErr::SqlxError(inner))
        | DbErr::Query(RuntimeErr::SqlxError(inner)) => Some(inner.deref()),
        _ => None,
    }
}

/// Extended codes carry the primary one in their low byte.
fn primary_code(error: &dyn sqlx::error::DatabaseError) -> u32 {
    let code = error.code().and_then(|code| code.parse::<u32>().ok());
    code.unwrap_or(1) & 0xff
}

/// By primary result code, see <https://www.sqlite.org/rescode.html>.
fn by_code(code: u32) -> (fn(String) -> Error, bool) {
    match code {
        // IOERR, CORRUPT, NOTADB: as after a failed sync, only a new process reads what is really there.
        10 | 11 | 26 => (Error::Unavailable, true),
        // TOOBIG, CONSTRAINT, MISMATCH: the data.
        18..=20 => (Error::Refused, false),
        // ERROR (such as a table that is not there), PERM, READONLY, CANTOPEN, SCHEMA, NOLFS, AUTH: the set-up.
        1 | 3 | 8 | 14 | 17 | 22 | 23 => (Error::Unfit, false),
        // ABORT, BUSY, LOCKED, NOMEM, INTERRUPT, FULL (back-pressure) and whatever else may pass.
        _ => (Error::Unavailable, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_waiting_from_refusing_from_stopping() {
        let kind = |code| {
            let (error, fatal) = by_code(code);
            (error(String::new()), fatal)
        };
        for code in [5, 6, 7, 13] {
            assert!(
                matches!(kind(code), (Error::Unavailable(_), false)),
                "{code}"
            );
        }
        for code in [10, 11, 26] {
            assert!(
                matches!(kind(code), (Error::Unavailable(_), true)),
                "{code}"
            );
        }
        assert!(matches!(kind(19), (Error::Refused(_), false)));
        assert!(matches!(kind(14), (Error::Unfit(_), false)));
    }
}
