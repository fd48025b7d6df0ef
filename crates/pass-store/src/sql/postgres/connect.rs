//! Connections, and what a server must be before one is used.

use std::str::FromStr;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sea_orm::sqlx::{ConnectOptions, Row};
use tokio::time::timeout;

use super::PostgresOptions;
use super::error::{meaning, meaning_of_opening};
use super::statement::{self, failed, timed_out};
use crate::contract::Error;

/// The oldest major version that is tested.
const VERSION_MIN: i32 = 15;

/// Settings without which an acknowledged commit can be lost.
const DURABLE: [&str; 3] = ["fsync", "full_page_writes", "synchronous_commit"];

/// Makes connections that may write.
#[derive(Clone)]
pub(super) struct Connector {
    options: PostgresOptions,
    connect: PgConnectOptions,
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
            .map_err(|error| meaning_of_opening(&failed(error)))?
            .disable_statement_logging();
        let connect = match connect.get_application_name() {
            Some(_) => connect,
            None => connect.application_name("passline"),
        };
        Ok(Self { options, connect })
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

    /// A connection to a server that is fit, and is no standby.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        self.connect_as(meaning).await
    }

    /// As [`Connector::connect`]; what somebody has to change is [`Error::Unfit`].
    pub(super) async fn connect_first(&self) -> Result<PgConnection, Error> {
        self.connect_as(meaning_of_opening).await
    }

    async fn connect_as(
        &self,
        explain: fn(&sea_orm::DbErr) -> Error,
    ) -> Result<PgConnection, Error> {
        let made = async {
            let mut connection = self.connect.connect().await.map_err(failed)?;
            let rows = statement::text(&mut connection, FITNESS.to_owned()).await?;
            Ok::<_, sea_orm::DbErr>((connection, rows))
        };
        let made = timeout(self.options.connect_timeout, made).await;
        let (connection, rows) = made
            .unwrap_or_else(|_| Err(timed_out("connecting")))
            .map_err(|error| explain(&error))?;
        assert_fit(rows.first())?;
        Ok(connection)
    }
}

/// One row of texts, in the order of [`Fitness`].
const FITNESS: &str = "SELECT pg_is_in_recovery()::text, current_setting('server_version_num'), \
     current_setting('server_encoding'), current_setting('fsync'), current_setting('full_page_writes'), \
     current_setting('synchronous_commit')";

fn assert_fit(row: Option<&PgRow>) -> Result<(), Error> {
    let text = |at: usize| -> Result<String, Error> {
        let row = row.ok_or_else(|| Error::Corrupt("the settings have no row".to_owned()))?;
        row.try_get(at).map_err(|error| meaning(&failed(error)))
    };
    fit(&Fitness {
        in_recovery: text(0)? == "true",
        version: text(1)?.parse::<i32>().unwrap_or(0) / 10_000,
        encoding: text(2)?,
        durable: [text(3)?, text(4)?, text(5)?],
    })
}

/// What a server says of itself.
#[derive(Clone, Debug)]
struct Fitness {
    in_recovery: bool,
    version: i32,
    encoding: String,
    durable: [String; DURABLE.len()],
}

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
    for (setting, value) in DURABLE.into_iter().zip(&server.durable) {
        if value == "off" {
            return Err(Error::Unfit(format!(
                "{setting} is off: acknowledged commits would be lost in a crash; \
                 set {setting} = on for the server, and for this database and user"
            )));
        }
    }
    if server.in_recovery {
        return Err(Error::Unavailable(
            "connected to a standby; waiting for it to be promoted, or for the address to lead to the primary"
                .to_owned(),
        ));
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
            durable: ["on", "on", "remote_apply"].map(str::to_owned),
        };
        assert!(fit(&good).is_ok());
        for (at, setting) in DURABLE.into_iter().enumerate() {
            let mut bad = good.clone();
            "off".clone_into(&mut bad.durable[at]);
            let error = fit(&bad).expect_err("off");
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
}
