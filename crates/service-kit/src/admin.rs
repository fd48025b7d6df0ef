//! Health for whoever runs the process: alive, ready, which version.
//!
//! [`router`] goes on a listener of its own, on loopback unless configured
//! otherwise; a service merges its further routes into it.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State as Shared;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde::Serialize;
use tokio::sync::watch;

use crate::config::Duration;
use crate::listener::HttpLimits;
use crate::shutdown::Shutdown;

mod local;

pub use local::{ask, healthcheck, log_filter};

/// Longest reason that is kept, in bytes.
const REASON_BYTES_MAX: usize = 256;

/// Returns the limits of an admin listener: few connections, short lives.
pub fn limits() -> HttpLimits {
    HttpLimits {
        connections_max: 64,
        connection_age_max: Duration::from_mins(1),
        connection_grace: Duration::from_secs(10),
        drain_timeout: Duration::from_secs(2),
        ..HttpLimits::default()
    }
}

/// Whether a part of the service can do its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It can.
    Ok,
    /// It can, but not as well as it should, and why; shown to operators like
    /// the reason below. Counts as ready.
    Warned(String),
    /// It can't, and why; shown to operators, so no secrets or personal data.
    /// Cut at 256 bytes.
    NotReady(String),
}

impl State {
    fn is_ready(&self) -> bool {
        match self {
            State::Ok | State::Warned(_) => true,
            State::NotReady(_) => false,
        }
    }
}

/// The registry of checks of one service.
///
/// The service is ready if every registered check is and draining has not
/// begun. A service with no checks is ready.
#[derive(Clone, Debug)]
pub struct Readiness {
    checks: Arc<watch::Sender<BTreeMap<&'static str, State>>>,
    shutdown: Shutdown,
}

impl Readiness {
    /// Creates an empty registry that turns not ready when `shutdown` drains.
    pub fn new(shutdown: Shutdown) -> Self {
        Self {
            checks: Arc::new(watch::Sender::new(BTreeMap::new())),
            shutdown,
        }
    }

    /// Adds a check, not ready ("starting") until it is set. A name registered
    /// again starts over.
    pub fn register(&self, name: &'static str) -> Check {
        let check = Check {
            name,
            checks: Arc::clone(&self.checks),
        };
        check.set(State::NotReady("starting".to_owned()));
        check
    }

    /// Says whether new work should be sent here.
    pub fn is_ready(&self) -> bool {
        !self.shutdown.is_draining() && all_ok(&self.checks.borrow())
    }

    /// Returns each check and whether it is ready.
    pub fn checks(&self) -> Vec<(&'static str, bool)> {
        self.checks
            .borrow()
            .iter()
            .map(|(name, state)| (*name, state.is_ready()))
            .collect()
    }

    /// Says whether draining has begun.
    pub fn is_draining(&self) -> bool {
        self.shutdown.is_draining()
    }

    /// Waits until ready. Never returns once draining has begun. Cancel safe.
    pub async fn ready(&self) {
        self.until(true).await;
    }

    /// Waits until not ready. Cancel safe.
    pub async fn not_ready(&self) {
        self.until(false).await;
    }

    async fn until(&self, wanted: bool) {
        let mut watcher = self.checks.subscribe();
        let by_checks = async {
            // The sender lives as long as `self`.
            let _ = watcher.wait_for(|checks| all_ok(checks) == wanted).await;
        };
        if wanted {
            by_checks.await;
            if self.shutdown.is_draining() {
                std::future::pending().await
            }
        } else {
            tokio::select! {
                () = by_checks => {}
                () = self.shutdown.draining() => {}
            }
        }
    }

    fn report(&self) -> Report {
        let mut checks: Vec<Line> = self
            .checks
            .borrow()
            .iter()
            .map(|(name, state)| Line {
                name,
                ready: state.is_ready(),
                reason: match state {
                    State::Ok | State::Warned(_) => None,
                    State::NotReady(reason) => Some(reason.clone()),
                },
                warning: match state {
                    State::Ok | State::NotReady(_) => None,
                    State::Warned(warning) => Some(warning.clone()),
                },
            })
            .collect();
        let draining = self.shutdown.is_draining();
        if draining {
            checks.push(Line {
                name: "shutdown",
                ready: false,
                reason: Some("draining".to_owned()),
                warning: None,
            });
        }
        Report {
            ready: checks.iter().all(|check| check.ready),
            checks,
        }
    }
}

fn all_ok(checks: &BTreeMap<&'static str, State>) -> bool {
    checks.values().all(State::is_ready)
}

/// One named check; whoever owns the part sets it. Clones set the same check.
#[derive(Clone, Debug)]
pub struct Check {
    name: &'static str,
    checks: Arc<watch::Sender<BTreeMap<&'static str, State>>>,
}

impl Check {
    /// Sets the state; setting the same again wakes nobody.
    pub fn set(&self, state: State) {
        let cut = |mut text: String| {
            text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
            text
        };
        let state = match state {
            State::Ok => State::Ok,
            State::Warned(warning) => State::Warned(cut(warning)),
            State::NotReady(reason) => State::NotReady(cut(reason)),
        };
        let ready = state.is_ready();
        let changed = self.checks.send_if_modified(|checks| {
            if checks.get(self.name) == Some(&state) {
                return false;
            }
            checks.insert(self.name, state);
            true
        });
        if changed {
            tracing::info!(check = self.name, ready, "readiness check changed");
        }
    }

    /// Sets the state to ready.
    pub fn ok(&self) {
        self.set(State::Ok);
    }

    /// Sets the state to not ready.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(State::NotReady(reason.into()));
    }
}

#[derive(Serialize)]
struct Report {
    ready: bool,
    checks: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: &'static str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    warning: Option<String>,
}

/// What `/version` answers.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Version {
    /// The service's name.
    pub service: &'static str,
    /// Its version: pass `env!("CARGO_PKG_VERSION")`.
    pub version: &'static str,
}

/// Makes the admin routes.
///
/// - `GET /livez`: 200 `ok` as long as the process answers at all.
/// - `GET /readyz`: 200, or 503 if a check is not ready or draining has begun;
///   both with JSON `{"ready", "checks": [{"name", "ready", "reason", "warning"}]}`.
/// - `GET /version`: JSON.
pub fn router(readiness: Readiness, version: Version) -> Router {
    Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(readyz))
        .route(
            "/version",
            get(async move || json(StatusCode::OK, &version)),
        )
        .with_state(readiness)
}

async fn readyz(Shared(readiness): Shared<Readiness>) -> Response {
    let report = readiness.report();
    let status = if report.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    json(status, &report)
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let text = serde_json::to_string(value).expect("plain structs of text and flags serialize");
    (
        status,
        [
            (header::CONTENT_TYPE, "application/json"),
            (header::CACHE_CONTROL, "no-store"),
        ],
        text,
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;
    use crate::shutdown::Phase;

    async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readyz_lists_checks_and_turns_off_when_draining() {
        let shutdown = Shutdown::new();
        let readiness = Readiness::new(shutdown.clone());
        let version = Version {
            service: "kit",
            version: "1.2.3",
        };
        let router = router(readiness.clone(), version);
        let spool = readiness.register("spool");
        let peer = readiness.register("peer");
        peer.ok();

        let (status, text) = ask(&router, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            text,
            r#"{"ready":false,"checks":[{"name":"peer","ready":true},{"name":"spool","ready":false,"reason":"starting"}]}"#
        );
        spool.ok();
        readiness.ready().await;
        assert_eq!(ask(&router, "/readyz").await.0, StatusCode::OK);
        spool.not_ready("é".repeat(200));
        assert!(ask(&router, "/readyz").await.1.contains(&"é".repeat(128)));
        spool.set(State::Warned("unproven".to_owned()));
        let (status, text) = ask(&router, "/readyz").await;
        assert_eq!(status, StatusCode::OK);
        assert!(
            text.contains(r#"{"name":"spool","ready":true,"warning":"unproven"}"#),
            "{text}"
        );
        spool.ok();

        shutdown.advance(Phase::Draining);
        let (status, text) = ask(&router, "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("draining"));
        readiness.not_ready().await;
        assert_eq!(
            ask(&router, "/livez").await,
            (StatusCode::OK, "ok".to_owned())
        );
        assert_eq!(
            ask(&router, "/version").await.1,
            r#"{"service":"kit","version":"1.2.3"}"#
        );
    }
}
