//! Which log lines are written, changeable while the process runs.
//!
//! `PUT /log-filter` on the admin listener takes a filter, from this machine only: an admin listener that is open to
//! scrapers is not open to everybody who can turn logs off. A browser's request, which has an `Origin`, is refused too, so
//! that no page that somebody looks at on this machine can do it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{StatusCode, header};
use tracing_subscriber::{EnvFilter, reload};

use crate::listener::{BodyError, BodyTimeouts, PeerAddr, read_body};

/// Longest filter, in bytes.
const FILTER_BYTES_MAX: usize = 1024;
/// Targets that would drown the rest, and what is left of them where the filter doesn't name them: each attempt of
/// the NATS client during an outage; PostgreSQL's "already exists, skipping" at each start; OpenTelemetry's own words,
/// which repeat for each export while a collector is away.
const QUIET: [(&str, &str); 3] = [
    ("async_nats", "error"),
    ("sqlx::postgres::notice", "warn"),
    ("opentelemetry", "off"),
];
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Says why a text is no filter, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogFilterError {
    /// It has too many bytes.
    #[error("has {0} bytes; at most {FILTER_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// A part is neither a level nor a target with its level.
    #[error(
        "`{0}` is no level; write off, error, warn, info, debug or trace, then `target=level` for exceptions"
    )]
    NoLevel(String),
    /// It can't be read.
    #[error(
        "not a filter; write a level, then `target=level` for exceptions, as `info,hyper=warn`"
    )]
    Unreadable,
}

/// Reads a filter and adds the targets that are quiet unless named.
pub(super) fn parse(text: &str) -> Result<EnvFilter, LogFilterError> {
    if text.len() > FILTER_BYTES_MAX {
        return Err(LogFilterError::TooLong(text.len()));
    }
    // A word alone would be taken for a target, and a mistyped level would silence everything else. Who names spans and
    // their fields in brackets knows how.
    let plain = !text.contains('[');
    for part in text.split(',').filter(|_| plain) {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        if !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level)) {
            return Err(LogFilterError::NoLevel(part.to_owned()));
        }
    }
    let mut all = text.to_owned();
    for (target, level) in QUIET {
        if !text.contains(target) {
            all.push_str(&format!(",{target}={level}"));
        }
    }
    EnvFilter::try_new(all).map_err(|_| LogFilterError::Unreadable)
}

/// A handle to the process's log filter; clones change the same one.
#[derive(Clone)]
pub struct LogFilter {
    inner: Arc<Inner>,
}

struct Inner {
    text: Mutex<String>,
    put: Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>,
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.text()).finish()
    }
}

impl LogFilter {
    pub(super) fn new<S: 'static>(text: &str, handle: reload::Handle<EnvFilter, S>) -> Self {
        Self {
            inner: Arc::new(Inner {
                text: Mutex::new(text.to_owned()),
                put: Box::new(move |filter| handle.reload(filter)),
            }),
        }
    }

    /// Returns the filter in force, as it was given.
    pub fn text(&self) -> String {
        self.lock().clone()
    }

    /// Puts a filter in force, for the whole process. The same one again changes nothing.
    ///
    /// # Errors
    /// If the text is no filter; then the old one stays.
    pub fn set(&self, text: &str) -> Result<(), LogFilterError> {
        let filter = parse(text)?;
        let mut now = self.lock();
        if *now == text {
            return Ok(());
        }
        // Before it changes, since what comes may not log this line.
        tracing::info!(log_filter = text, "log filter changes");
        // Fails only if the subscriber is gone, and then nobody logs.
        let _ = (self.inner.put)(filter);
        text.clone_into(&mut now);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.inner
            .text
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the routes of the log filter, to be merged into an admin listener's.
///
/// - `GET /log-filter`: the filter in force, as text.
/// - `PUT /log-filter`, the filter as body: 204; 400 with what to write instead; 413 over 1 KiB; 403 unless it comes from this
///   machine and not from a browser.
///
/// Where [`init`](super::init) was not called both are 404.
pub fn log_filter_routes() -> Router {
    Router::new().route(
        "/log-filter",
        get(async || match super::log_filter() {
            Some(filter) => text(StatusCode::OK, &filter.text()),
            None => StatusCode::NOT_FOUND.into_response(),
        })
        .put(put),
    )
}

async fn put(request: Request) -> Response {
    let here = request
        .extensions()
        .get::<PeerAddr>()
        .is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
    if !here || request.headers().contains_key(header::ORIGIN) {
        return text(
            StatusCode::FORBIDDEN,
            "the log filter is changed from the machine itself only: use the subcommand `log-filter` there",
        );
    }
    let Some(filter) = super::log_filter() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let body = read_body(
        request.into_body(),
        FILTER_BYTES_MAX,
        BodyTimeouts::default(),
    );
    let bytes = match body.await {
        Ok(bytes) => bytes,
        Err(BodyError::TooLarge { .. }) => {
            return text(
                StatusCode::PAYLOAD_TOO_LARGE,
                &format!("a filter has at most {FILTER_BYTES_MAX} bytes"),
            );
        }
        Err(error @ (BodyError::TooSlow { .. } | BodyError::Broken { .. })) => {
            return text(StatusCode::BAD_REQUEST, &error.to_string());
        }
    };
    let set = match std::str::from_utf8(&bytes) {
        Ok(wanted) => filter.set(wanted.trim()),
        Err(_) => Err(LogFilterError::Unreadable),
    };
    match set {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => text(StatusCode::BAD_REQUEST, &error.to_string()),
    }
}

fn text(status: StatusCode, text: &str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, Body::from(format!("{text}\n"))).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::{Layer as _, filter::LevelFilter};

    use super::super::{Installed, Sampling};
    use super::*;

    /// A subscriber of which the filter can be changed.
    fn subscriber(start: &str) -> impl tracing::Subscriber + Send + Sync + use<> {
        let (filter, handle) = reload::Layer::new(parse(start).unwrap());
        let installed = Installed {
            log_filter: LogFilter::new(start, handle),
            sampling: Sampling::OFF,
            tls: None,
        };
        tracing_subscriber::registry()
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::sink)
                    .with_filter(filter),
            )
            .with(installed.with_filter(LevelFilter::OFF))
    }

    async fn ask(method: &str, peer: &str, origin: bool, body: &str) -> (StatusCode, String) {
        let mut request = http::Request::builder()
            .method(method)
            .uri("/log-filter")
            .extension(PeerAddr(peer.parse().unwrap()));
        if origin {
            request = request.header(header::ORIGIN, "http://127.0.0.1:8081");
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = log_filter_routes().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_filter_changes_by_a_put_from_this_machine_only() {
        const HERE: &str = "127.0.0.1:5000";
        let _guard = tracing::subscriber::set_default(subscriber("info"));
        assert!(!tracing::enabled!(target: "pass_state", tracing::Level::DEBUG));
        assert_eq!(
            ask("GET", "10.0.0.1:1", false, "").await,
            (StatusCode::OK, "info\n".to_owned())
        );
        for (peer, origin) in [("10.0.0.1:1", false), (HERE, true)] {
            let (status, said) = ask("PUT", peer, origin, "debug").await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{peer}");
            assert!(said.contains("log-filter"), "{said}");
        }
        let (status, said) = ask("PUT", HERE, false, "debgu").await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(
            said.contains("`debgu` is no level; write off, error"),
            "{said}"
        );
        let (status, said) = ask("PUT", HERE, false, &"info,".repeat(205)).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert!(said.contains("at most 1024 bytes"), "{said}");
        assert_eq!(ask("GET", HERE, false, "").await.1, "info\n");

        let wanted = "info,pass_state=debug";
        let put = ask("PUT", "[::ffff:127.0.0.1]:1", false, &format!("{wanted}\n")).await;
        assert_eq!(put, (StatusCode::NO_CONTENT, String::new()));
        assert!(tracing::enabled!(target: "pass_state", tracing::Level::DEBUG));
        assert!(!tracing::enabled!(target: "other", tracing::Level::DEBUG));
        assert_eq!(ask("GET", HERE, false, "").await.1, format!("{wanted}\n"));
    }

    #[test]
    fn noisy_targets_are_quiet_unless_named() {
        let enabled = |filter: &str| {
            tracing::subscriber::with_default(subscriber(filter), || {
                [
                    tracing::enabled!(target: "sqlx::postgres::notice", tracing::Level::INFO),
                    tracing::enabled!(target: "async_nats::connector", tracing::Level::WARN),
                    tracing::enabled!(target: "opentelemetry_sdk", tracing::Level::ERROR),
                    tracing::enabled!(target: "sqlx::query", tracing::Level::WARN),
                ]
            })
        };
        assert_eq!(enabled("info"), [false, false, false, true]);
        let named = "info,sqlx::postgres::notice=info,async_nats=warn,opentelemetry=error";
        assert_eq!(enabled(named), [true; 4]);
    }

    #[test]
    fn what_is_no_filter_is_refused_with_what_to_write() {
        for good in [
            "info",
            "WARN,hyper=off",
            "info,pass_state[{id=7}]=trace",
            "warn,a::b=debug",
        ] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "a=b=c",
            "info,",
            "hyper",
            "info,hyper=loud",
            &"x".repeat(1025),
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
