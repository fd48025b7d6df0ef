//! What PostgreSQL's SQLSTATEs mean. The only place that looks at them; nothing looks at messages.
//!
//! | class | what | meaning |
//! |---|---|---|
//! | 08, 57P0x, no SQLSTATE at all | the connection was lost, the server stops, starts or crashed | `Unavailable` |
//! | 40, 55, 57014 | serialization, deadlock, a lock or statement time-out, cancelled | `Unavailable` |
//! | 53, 58 | out of connections, memory or disk; an IO error of the server | `Unavailable`: back-pressure |
//! | 25 | a read-only transaction (a standby, a server put into read-only mode), a transaction that failed before | `Unavailable` |
//! | 26, 0A | a prepared statement that is gone, or whose columns a migration changed; the connection is not used again | `Unavailable` |
//! | 21, 22, 23, 44, 54 | the data: values, keys, limits such as that of an index row | `Refused` |
//! | 42, 3F | the set-up: a table, column or privilege is missing | `Unfit`; a privilege is waited for while opening |
//! | 28, 3D, a certificate, a URL | signing in, no such database | `Unavailable`; `Unfit` while opening |
//! | XX001, XX002 | damaged table or index | `Unavailable`, logged as an error. Not fatal for this process: what is damaged is on the server, and starting anew here would mend nothing |
//! | anything else | | `Unavailable` |
//!
//! All of these are certainly not done, since they are looked at before COMMIT only: a COMMIT that is not
//! answered with success is [`Error::OutcomeUnknown`], whatever it is answered with.

use std::ops::Deref;

use sea_orm::sqlx;
use sea_orm::{DbErr, RuntimeErr};

use crate::contract::Error;

/// The driver's error inside sea-orm's.
fn driver_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(inner))
        | DbErr::Exec(RuntimeErr::SqlxError(inner))
        | DbErr::Query(RuntimeErr::SqlxError(inner)) => Some(inner.deref()),
        _ => None,
    }
}

/// What a failed call means, if it was not a commit.
pub(in crate::sql) fn meaning(error: &DbErr) -> Error {
    let Some(inner) = driver_error(error) else {
        return match error {
            DbErr::ConnectionAcquire(_) | DbErr::Conn(_) => Error::Unavailable(error.to_string()),
            _ => Error::Corrupt(error.to_string()),
        };
    };
    match inner {
        sqlx::Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            if matches!(&*code, "XX001" | "XX002") {
                tracing::error!(sqlstate = %code, error = %database, "the server says that its data are damaged");
            }
            by_code(&code)(format!("{} (SQLSTATE {code})", database.message()))
        }
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::ColumnIndexOutOfBounds { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::TypeNotFound { .. }
        | sqlx::Error::RowNotFound => Error::Corrupt(inner.to_string()),
        sqlx::Error::Encode(_) => Error::Refused(inner.to_string()),
        _ => Error::Unavailable(inner.to_string()),
    }
}

/// What is known of the server before the first connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// The driver reads files (keys, certificates) to connect. Otherwise a file that is missing is the server's
    /// own socket, which comes with the server.
    pub(super) reads_files: bool,
}

/// What a failure to connect means while opening: what somebody has to change is unfit.
pub(super) fn meaning_of_opening(error: &DbErr, place: Place) -> Error {
    let fix = match driver_error(error) {
        Some(sqlx::Error::Database(database)) => match database.code().as_deref() {
            Some(code) if code.starts_with("28") => "check the user and password",
            Some(code) if code.starts_with("3D") => "make the database, or correct its name",
            _ => return meaning(error),
        },
        Some(sqlx::Error::Tls(_)) => "check sslmode and sslrootcert, and the server's certificate",
        Some(sqlx::Error::Configuration(_)) => "correct the URL",
        Some(sqlx::Error::Io(io)) if place.reads_files => match io.kind() {
            std::io::ErrorKind::InvalidData
            | std::io::ErrorKind::NotFound
            | std::io::ErrorKind::PermissionDenied => {
                "check sslmode and sslrootcert, and the server's certificate"
            }
            _ => return meaning(error),
        },
        _ => return meaning(error),
    };
    Error::Unfit(format!("{}; {fix}", meaning(error)))
}

/// True if the role lacks a privilege.
pub(super) fn lacks_privilege(error: &DbErr) -> bool {
    match driver_error(error) {
        Some(sqlx::Error::Database(database)) => database.code().as_deref() == Some("42501"),
        _ => false,
    }
}

/// True if the connection was lost before it had been used, so that a new one may do better.
pub(super) fn is_lost_connection(error: &DbErr) -> bool {
    match driver_error(error) {
        Some(sqlx::Error::Database(database)) => {
            let code = database.code().unwrap_or_default();
            code.starts_with("08") || code.starts_with("57P")
        }
        Some(sqlx::Error::Io(io)) => io.kind() != std::io::ErrorKind::TimedOut,
        Some(sqlx::Error::Protocol(_)) => true,
        _ => false,
    }
}

fn by_code(code: &str) -> fn(String) -> Error {
    match code.get(..2).unwrap_or_default() {
        "21" | "22" | "23" | "44" | "54" => Error::Refused,
        "42" | "3F" => Error::Unfit,
        _ => Error::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_waiting_from_refusing_from_mending() {
        let kind = |code| by_code(code)(String::new());
        let transient = [
            "08006", "25006", "25P02", "26000", "0A000", "40001", "40P01", "53100", "53300",
            "55P03", "57014", "57P01", "57P02", "57P03", "58030", "XX001", "XX002", "",
        ];
        for code in transient {
            assert!(matches!(kind(code), Error::Unavailable(_)), "{code}");
        }
        for code in ["22021", "22P02", "23505", "23502", "54000"] {
            assert!(matches!(kind(code), Error::Refused(_)), "{code}");
        }
        for code in ["42P01", "42703", "42501", "3F000"] {
            assert!(matches!(kind(code), Error::Unfit(_)), "{code}");
        }
    }
}
