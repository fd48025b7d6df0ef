//! Brings the schema up to date, once, however many processes start at the same time.

use std::time::Duration;

use sea_orm::sqlx::postgres::PgPoolOptions;
use sea_orm::{
    AccessMode, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, IsolationLevel, Statement,
    TransactionTrait,
};
use tokio::time::timeout;

use super::PostgresOptions;
use super::connect::Connector;
use super::error::{lacks_privilege, meaning};
use super::statement::{ANSWER_GRACE, failed, timed_out};
use super::transaction::millis;
use crate::contract::Error;
use crate::sql::rows::bits;
use crate::sql::spools::random;

/// The advisory lock that migrations hold: `passline` in ASCII.
const LOCK: i64 = i64::from_be_bytes(*b"passline");

/// How long changing the schema may take. On a large table that is long.
const MIGRATING_MAX: Duration = Duration::from_hours(1);
/// How long the connection of the migrations may take to close.
const CLOSING_MAX: Duration = Duration::from_secs(1);

/// The lock is released with the transaction that holds it, whatever becomes of this process. Whoever gets
/// it next finds nothing left to do.
pub(super) async fn migrate(connector: &Connector) -> Result<(), Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(connector.options().connect_timeout)
        .connect_with(connector.driver_options().clone())
        .await
        .map_err(|error| connector.meaning_of_opening(&failed(error)))?;
    let connection = DatabaseConnection::from(pool);
    let done = bring_up(&connection, connector).await;
    match timeout(CLOSING_MAX, connection.close()).await {
        Ok(Ok(())) => {}
        closed => {
            tracing::debug!(
                ?closed,
                "the connection of the migrations did not close well"
            );
        }
    }
    done
}

/// In steps that each end in time, also if the server falls silent or somebody holds a lock.
async fn bring_up(connection: &DatabaseConnection, connector: &Connector) -> Result<(), Error> {
    let options = connector.options();
    let step_max = options.statement_timeout + ANSWER_GRACE;
    let lacking = in_time(step_max, look(connection, options)).await?;
    if lacking > 0 {
        if !options.migrate {
            return Err(Error::NotMigrated { lacking });
        }
        if let Some(migrating) = &options.migrating {
            migrating.send_replace(lacking);
        }
        in_time(MIGRATING_MAX + ANSWER_GRACE, change(connection)).await?;
    }
    in_time(step_max, make_head(connection)).await
}

async fn in_time<T>(
    limit: Duration,
    step: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = || Err(meaning(&timed_out("bringing the schema up to date")));
    timeout(limit, step).await.unwrap_or_else(|_| late())
}

/// How many migrations are lacking.
async fn look(connection: &DatabaseConnection, options: &PostgresOptions) -> Result<usize, Error> {
    let text = format!(
        "SET statement_timeout = {}; SET lock_timeout = {}",
        millis(options.statement_timeout),
        millis(options.lock_timeout)
    );
    let set = connection.execute_unprepared(&text).await;
    set.map_err(|error| meaning(&error))?;
    assert_granted(connection).await?;
    pass_migration::pending(connection).await.map_err(unfit)
}

/// Whom to ask for what, if the tables are there and this role may not use them: another role made them. A row of
/// the role, the schema, how many tables it lacks, and what gives them to it. PostgreSQL passes over a schema that a
/// role may not look into, and a table it has no rights on is not in the information schema, so both are looked up in
/// the catalog.
const NOT_GRANTED: &str = "\
    SELECT format('%I', current_user), format('%I', schema), lacking::text, \
        CASE WHEN usable THEN '' ELSE format('GRANT USAGE ON SCHEMA %I TO %I; ', schema, current_user) END || \
        format('GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %I TO %I', schema, current_user) \
    FROM (SELECT n.nspname AS schema, has_schema_privilege(n.oid, 'USAGE') AS usable, place, ( \
            SELECT count(*) FROM pg_class t WHERE t.relnamespace = n.oid AND t.relkind IN ('r', 'p') AND ( \
                t.relname IN ('seaql_migrations', 'log_head', 'spool', 'delivery', 'delivery_personal', 'quarantine', \
                    'pass', 'event') AND NOT has_table_privilege(t.oid, 'SELECT') \
                OR t.relname IN ('log_head', 'spool', 'delivery', 'delivery_personal', 'quarantine', 'pass', 'event') \
                    AND NOT has_table_privilege(t.oid, 'INSERT') \
                OR t.relname IN ('log_head', 'spool', 'delivery', 'delivery_personal', 'quarantine', 'pass') \
                    AND NOT has_table_privilege(t.oid, 'UPDATE')) \
        ) AS lacking \
        FROM unnest(string_to_array(current_setting('search_path'), ',')) WITH ORDINALITY AS path(name, place) \
        JOIN pg_namespace n ON n.nspname = replace(btrim(name, ' \"'), '$user', current_user) \
            AND n.nspname = coalesce(current_schema(), n.nspname) \
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = 'seaql_migrations' \
        ORDER BY place LIMIT 1) AS found \
    WHERE lacking > 0 OR NOT usable";

/// Somebody may grant what is lacking while this process waits, so that is [`Error::Unavailable`].
async fn assert_granted(connection: &DatabaseConnection) -> Result<(), Error> {
    let explain = |error: DbErr| meaning(&error);
    let asked = Statement::from_string(DbBackend::Postgres, NOT_GRANTED);
    let Some(row) = connection.query_one_raw(asked).await.map_err(explain)? else {
        return Ok(());
    };
    let text = |at| row.try_get_by_index::<String>(at).map_err(explain);
    let (role, schema, lacking, grant) = (text(0)?, text(1)?, text(2)?, text(3)?);
    Err(Error::Unavailable(format!(
        "role {role} lacks privileges on {lacking} tables in schema {schema}; let their owner run: {grant}"
    )))
}

async fn change(connection: &DatabaseConnection) -> Result<(), Error> {
    let explain = |error: DbErr| meaning(&error);
    let transaction = connection
        .begin_with_config(
            Some(IsolationLevel::ReadCommitted),
            Some(AccessMode::ReadWrite),
        )
        .await
        .map_err(explain)?;
    // What a migration waits for keeps everybody else waiting behind it, so that keeps its time-out.
    let text = format!(
        "SET LOCAL statement_timeout = {}; SELECT pg_advisory_xact_lock({LOCK})",
        millis(MIGRATING_MAX)
    );
    let locked = transaction.execute_unprepared(&text).await;
    locked.map_err(explain)?;
    pass_migration::up(&transaction).await.map_err(|error| {
        if lacks_privilege(&error) {
            let said = meaning(&error);
            return Error::Unavailable(format!(
                "{said}; have a role that may run `pass-state migrate`, or let this one change the schema"
            ));
        }
        unfit(error)
    })?;
    transaction.commit().await.map_err(explain)
}

/// Makes the head's row if it is not there. Looks first: inserting beside a row that somebody is changing would
/// wait for them.
async fn make_head(connection: &DatabaseConnection) -> Result<(), Error> {
    let explain = |error: DbErr| meaning(&error);
    let there = "SELECT 1 FROM log_head WHERE id = 1";
    let there = Statement::from_string(DbBackend::Postgres, there);
    let found = connection.query_one_raw(there).await.map_err(explain)?;
    if found.is_some() {
        return Ok(());
    }
    let head = Statement::from_sql_and_values(
        DbBackend::Postgres,
        "INSERT INTO log_head VALUES (1, $1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0) ON CONFLICT (id) DO NOTHING",
        [bits(random())],
    );
    connection.execute_raw(head).await.map_err(explain)?;
    Ok(())
}

fn unfit(error: DbErr) -> Error {
    match &error {
        DbErr::Custom(text) | DbErr::Migration(text) => Error::Unfit(format!(
            "the schema: {text}; run the release that made it, or a newer one"
        )),
        _ => meaning(&error),
    }
}
