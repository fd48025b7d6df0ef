//! What Passline is measured against: the least that could do a part of the job.
//!
//! - `full`: axum, HMAC-SHA256 over the body, serde_json into a typed struct, answers 200, stores nothing;
//! - `append`: the same, and a group-committed append (one `write` and one `fdatasync` for all that wait);
//! - `sqlite`: the same, and one SQLite INSERT (WAL, FULL) per request by sea-orm with a pool of one, as a
//!   receiver is usually written;
//! - `sqlite-raw`: the same by one cached prepared statement, the least that it can cost.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::put;
use sea_orm::sqlx::sqlite::{SqliteJournalMode, SqliteSynchronous};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, Value,
};
use serde::Deserialize;
use tokio::sync::{mpsc, oneshot};

use crate::corpus::sign;

const TABLE: &str = "CREATE TABLE delivery (id INTEGER PRIMARY KEY, body BLOB NOT NULL)";
const INSERT: &str = "INSERT INTO delivery (body) VALUES (?)";

/// The path that every reference answers on.
pub(crate) const PATH: &str = "/webhooks/bench";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "parsed as any receiver would, to be measured")]
struct Callback {
    event: String,
    pass: Pass,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "parsed as any receiver would, to be measured")]
struct Pass {
    id: String,
    class_id: String,
    protocol: i64,
    person_details: HashMap<String, String>,
    metadata: Metadata,
    record_data: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "parsed as any receiver would, to be measured")]
struct Metadata {
    status: Option<i64>,
    lifecycle_events: Option<Vec<i64>>,
    issue_at: Option<Time>,
    first_installed_at: Option<Time>,
    last_installed_at: Option<Time>,
    issue_ip_address: Option<String>,
    install_user_agent: Option<String>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "parsed as any receiver would, to be measured")]
struct Time {
    seconds: Option<i64>,
    nanos: Option<i64>,
}

type Waiting = (Bytes, oneshot::Sender<bool>);

/// Where a reference puts what it received.
#[derive(Clone)]
enum Sink {
    Nothing,
    Append(mpsc::Sender<Waiting>),
    Sqlite(DatabaseConnection),
    SqliteRaw(Arc<Mutex<rusqlite::Connection>>),
}

/// Serves a reference until it is killed: `serve full|append|sqlite PORT DIRECTORY`.
pub(crate) fn serve(args: &[String]) -> Result<()> {
    let [kind, port, directory] = args else {
        bail!("serve needs a kind, a port and a directory")
    };
    let directory = PathBuf::from(directory);
    let sink = match kind.as_str() {
        "full" => Sink::Nothing,
        "append" => Sink::Append(start_append(&directory)?),
        "sqlite" => Sink::Nothing,
        "sqlite-raw" => {
            let connection = rusqlite::Connection::open(directory.join("reference.db"))?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "full")?;
            connection.execute(
                "CREATE TABLE delivery (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
                [],
            )?;
            Sink::SqliteRaw(Arc::new(Mutex::new(connection)))
        }
        other => bail!("unknown reference {other}"),
    };
    let port: u16 = port.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let sink = match kind.as_str() {
            "sqlite" => Sink::Sqlite(open_sqlite(&directory).await?),
            _ => sink,
        };
        let app = Router::new().route(PATH, put(receive)).with_state(sink);
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
        axum::serve(listener, app).await.context("serve")
    })
}

async fn open_sqlite(directory: &std::path::Path) -> Result<DatabaseConnection> {
    let file = directory.join("reference.db");
    let mut options = ConnectOptions::new(format!("sqlite://{}?mode=rwc", file.display()));
    options.max_connections(1).sqlx_logging(false);
    options.map_sqlx_sqlite_opts(|options| {
        options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
    });
    let connection = Database::connect(options).await?;
    connection.execute_unprepared(TABLE).await?;
    Ok(connection)
}

async fn receive(State(sink): State<Sink>, headers: HeaderMap, body: Bytes) -> StatusCode {
    let authentic = headers
        .get("x-passkit-signature")
        .is_some_and(|given| given.as_bytes() == sign(&body).as_bytes());
    if !authentic {
        return StatusCode::UNAUTHORIZED;
    }
    if serde_json::from_slice::<Callback>(&body).is_err() {
        return StatusCode::BAD_REQUEST;
    }
    let stored = match sink {
        Sink::Nothing => true,
        Sink::Append(sender) => {
            let (answer, answered) = oneshot::channel();
            sender.send((body, answer)).await.is_ok() && answered.await.unwrap_or(false)
        }
        Sink::Sqlite(connection) => {
            let values = [Value::from(body.to_vec())];
            let insert = Statement::from_sql_and_values(DbBackend::Sqlite, INSERT, values);
            connection.execute_raw(insert).await.is_ok()
        }
        Sink::SqliteRaw(connection) => tokio::task::spawn_blocking(move || {
            let connection = connection.lock().expect("no holder panics");
            let mut statement = connection.prepare_cached(INSERT)?;
            statement.execute([&body[..]])
        })
        .await
        .is_ok_and(|inserted| inserted.is_ok()),
    };
    if stored {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Starts the thread that appends and syncs.
fn start_append(directory: &std::path::Path) -> Result<mpsc::Sender<Waiting>> {
    let mut file = OpenOptions::new()
        .create_new(true)
        .append(true)
        .open(directory.join("append.log"))?;
    let (sender, mut receiver) = mpsc::channel::<Waiting>(4096);
    std::thread::spawn(move || {
        let mut buffer = Vec::new();
        let mut answers = Vec::new();
        while let Some(first) = receiver.blocking_recv() {
            buffer.clear();
            let mut take = |(body, answer): Waiting| {
                buffer.extend_from_slice(
                    &u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes(),
                );
                buffer.extend_from_slice(&body);
                answers.push(answer);
            };
            take(first);
            while let Ok(more) = receiver.try_recv() {
                take(more);
            }
            let stored = file
                .write_all(&buffer)
                .and_then(|()| file.sync_data())
                .is_ok();
            for answer in answers.drain(..) {
                // A sender that went away needs no answer.
                let _ = answer.send(stored);
            }
        }
    });
    Ok(sender)
}
