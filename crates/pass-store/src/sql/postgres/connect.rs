//! Connections, and what a server must be before one is used.

use std::str::FromStr;
use std::time::Duration;

use sea_orm::DbErr;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sea_orm::sqlx::{ConnectOptions, Row};
use tokio::time::timeout;

use super::PostgresOptions;
use super::error::{Place, meaning, meaning_of_opening};
use super::statement::{self, failed, timed_out};
use crate::contract::Error;

/// The oldest major version that is tested.
const VERSION_MIN: i32 = 15;

/// Settings without which an acknowledged commit can be lost.
const DURABLE: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

/// What those are, as columns, in their order. In a transaction the last keeps its value until the end, whatever
/// the server is told meanwhile.
pub(super) const DURABLE_COLUMNS: &str = "current_setting('fsync'), current_setting('full_page_writes'), \
     set_config('synchronous_commit', current_setting('synchronous_commit'), true)";

/// Says why commits could be lost, if they could, with the fix. `first` is the first of [`DURABLE_COLUMNS`].
pub(super) fn not_durable(row: &PgRow, first: usize) -> Result<Option<String>, Error> {
    let mut values = [const { String::new() }; DURABLE.len()];
    for (at, value) in values.iter_mut().enumerate() {
        *value = text(row, first + at)?;
    }
    Ok(loses_commits(&values))
}

fn text(row: &PgRow, at: usize) -> Result<String, Error> {
    row.try_get(at).map_err(|error| meaning(&failed(error)))
}

/// `local` waits for this server's disk, but for no standby: what is acknowledged then is lost when a standby
/// takes over, also a synchronous one.
fn loses_commits(values: &[String; DURABLE.len()]) -> Option<String> {
    let bad = |(setting, value): &(&str, &String)| {
        *value == "off" || (*setting == "synchronous_commit" && *value == "local")
    };
    let (setting, value) = DURABLE.into_iter().zip(values).find(bad)?;
    Some(format!(
        "{setting} is {value}: acknowledged commits would be lost in a crash or a failover; \
         set {setting} = on for the server, and for this database and user"
    ))
}

/// What names a file in a URL. The driver reads it when it connects.
const FILES: [&str; 6] = [
    "sslrootcert=",
    "ssl-root-cert=",
    "ssl-ca=",
    "sslcert=",
    "ssl-cert=",
    "sslkey=",
];

/// Makes connections that may write.
#[derive(Clone)]
pub(super) struct Connector {
    options: PostgresOptions,
    connect: PgConnectOptions,
    place: Place,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The driver's options would show the password.
        self.options.fmt(f)
    }
}

impl Connector {
    pub(super) fn new(options: PostgresOptions) -> Result<Self, Error> {
        let schemes = ["postgres://", "postgresql://"];
        if !schemes.iter().any(|scheme| options.url.starts_with(scheme)) {
            return Err(Error::Unfit(
                "the database's URL does not start with postgres://; correct it".to_owned(),
            ));
        }
        let connect = PgConnectOptions::from_str(&options.url)
            .map_err(|error| meaning_of_opening(&failed(error), Place::default()))?
            .disable_statement_logging();
        let socket = connect.get_socket().is_some() || connect.get_host().starts_with('/');
        let names = |parameter: &&str| options.url.contains(*parameter);
        let place = Place {
            reads_files: !socket && FILES.iter().any(names),
        };
        let connect = match connect.get_application_name() {
            Some(_) => connect,
            None => connect.application_name("passline"),
        };
        Ok(Self {
            options,
            connect,
            place,
        })
    }

    pub(super) fn options(&self) -> &PostgresOptions {
        &self.options
    }

    /// Whether the planner may read a table whole. Every statement has its index; this keeps the planner from
    /// going by statistics that are older than most of a log which grows quickly.
    pub(super) fn sequential_scans(&self) -> &'static str {
        #[cfg(test)]
        if self.options.unguarded {
            return "on";
        }
        "off"
    }

    /// For connections that are made elsewhere.
    pub(super) fn driver_options(&self) -> &PgConnectOptions {
        &self.connect
    }

    /// A connection to a server that is fit, and is no standby. Somebody may mend one that is unfit while this
    /// process waits, so that is [`Error::Unavailable`].
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        let (connection, rows) = self.made().await.map_err(|error| meaning(&error))?;
        match assert_fit(rows.first()) {
            Ok(()) => Ok(connection),
            Err(Error::Unfit(text)) => Err(Error::Unavailable(text)),
            Err(error) => Err(error),
        }
    }

    /// As [`Connector::connect`]; what somebody has to change is [`Error::Unfit`].
    pub(super) async fn connect_first(&self) -> Result<PgConnection, Error> {
        let made = self.made().await;
        let (connection, rows) = made.map_err(|error| self.meaning_of_opening(&error))?;
        assert_fit(rows.first())?;
        Ok(connection)
    }

    /// What a failure to connect means while opening.
    pub(super) fn meaning_of_opening(&self, error: &DbErr) -> Error {
        meaning_of_opening(error, self.place)
    }

    async fn made(&self) -> Result<(PgConnection, Vec<PgRow>), DbErr> {
        let made = async {
            let mut connection = self.connect.connect().await.map_err(failed)?;
            let text = format!("{FITNESS}, {DURABLE_COLUMNS}");
            let rows = statement::text(&mut connection, text).await?;
            Ok((connection, rows))
        };
        let made = timeout(self.options.connect_timeout, made).await;
        made.unwrap_or_else(|_| Err(timed_out("connecting")))
    }
}

/// One row of texts, in the order of [`Fitness`], before [`DURABLE_COLUMNS`].
const FITNESS: &str = "SELECT pg_is_in_recovery()::text, current_setting('server_version_num'), \
     current_setting('server_encoding')";

fn assert_fit(row: Option<&PgRow>) -> Result<(), Error> {
    let row = row.ok_or_else(|| Error::Corrupt("the settings have no row".to_owned()))?;
    fit(&Fitness {
        in_recovery: text(row, 0)? == "true",
        version: text(row, 1)?.parse::<i32>().unwrap_or(0) / 10_000,
        encoding: text(row, 2)?,
        not_durable: not_durable(row, 3)?,
    })
}

/// What a server says of itself.
#[derive(Clone, Debug)]
struct Fitness {
    in_recovery: bool,
    version: i32,
    encoding: String,
    not_durable: Option<String>,
}

/// Why a server that replays another's log is not used, by writers or readers.
pub(super) const STANDBY: &str = "connected to a standby; waiting for it to be promoted, or for the address to lead to the primary";

/// Refuses what would break a guarantee, with the fix.
fn fit(server: &Fitness) -> Result<(), Error> {
    if server.version < VERSION_MIN {
        return Err(Error::Unfit(format!(
            "the server is PostgreSQL {}; use {VERSION_MIN} or later",
            server.version
        )));
    }
    if server.encoding != "UTF8" {
        return Err(Error::Unfit(format!(
            "server_encoding is {}; make the database with ENCODING 'UTF8'",
            server.encoding
        )));
    }
    if let Some(text) = &server.not_durable {
        return Err(Error::Unfit(text.clone()));
    }
    if server.in_recovery {
        return Err(Error::Unavailable(STANDBY.to_owned()));
    }
    Ok(())
}

/// How long after its last use a reader's connection is tried before it is used again.
pub(super) const IDLE_UNTRIED_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_lose_commits_is_unfit_and_a_standby_is_waited_for() {
        let good = Fitness {
            in_recovery: false,
            version: 15,
            encoding: "UTF8".to_owned(),
            not_durable: None,
        };
        assert!(fit(&good).is_ok());
        let values = |last: &str| ["on", "on", last].map(str::to_owned);
        for fine in ["on", "remote_write", "remote_apply"] {
            assert_eq!(loses_commits(&values(fine)), None, "{fine}");
        }
        let off = DURABLE.into_iter().enumerate().map(|(at, setting)| {
            let mut values = values("on");
            "off".clone_into(&mut values[at]);
            (setting, values)
        });
        for (setting, values) in off.chain([("synchronous_commit", values("local"))]) {
            let bad = Fitness {
                not_durable: loses_commits(&values),
                ..good.clone()
            };
            let error = fit(&bad).expect_err("it loses commits");
            assert!(
                matches!(&error, Error::Unfit(text) if text.contains(&format!("set {setting} = on"))),
                "{error}"
            );
        }
        let old = Fitness {
            version: 14,
            ..good.clone()
        };
        assert!(matches!(fit(&old), Err(Error::Unfit(_))));
        let other = Fitness {
            encoding: "LATIN1".to_owned(),
            ..good.clone()
        };
        assert!(matches!(fit(&other), Err(Error::Unfit(_))));
        let standby = Fitness {
            in_recovery: true,
            ..good
        };
        assert!(matches!(fit(&standby), Err(Error::Unavailable(_))));
    }

    #[test]
    fn an_error_about_the_url_does_not_show_it() {
        for url in [
            "postgres://user:s3cret@host:port/db",
            "mysql://user:s3cret@host/db",
            "s3cret",
            "postgres://user:s3cret@host/db?sslmode=perhaps",
        ] {
            let error = Connector::new(PostgresOptions::new(url)).expect_err(url);
            assert!(matches!(error, Error::Unfit(_)), "{error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
        let options = PostgresOptions::new("postgres://user:s3cret@host/db");
        let connector = Connector::new(options.clone()).expect("a URL");
        assert!(!format!("{options:?} {connector:?}").contains("s3cret"));
    }

    #[test]
    fn a_server_elsewhere_that_need_not_prove_itself_is_told_of() {
        let trusts = |rest: &str| {
            let url = format!("postgres://user:s3cret@{rest}");
            PostgresOptions::new(url).trusts_any_server()
        };
        for rest in [
            "db.example/passline",
            "db.example/passline?sslmode=prefer",
            "db.example/passline?sslmode=require",
            "192.0.2.1/passline?sslmode=disable",
        ] {
            assert!(trusts(rest), "{rest}");
        }
        for rest in [
            "db.example/passline?sslmode=verify-full",
            "db.example/passline?sslmode=verify-ca",
            "127.0.0.1:5432/passline",
            "localhost/passline",
            "host:port/db",
            "localhost/passline?host=/run/postgresql",
        ] {
            assert!(!trusts(rest), "{rest}");
        }
    }
}
