//! The operator's view: `/status`, beside health and version.

use std::sync::Arc;

use axum::Router;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header;
use serde_json::{Map, Value, json};
use service_kit::admin::Readiness;
use service_kit::metrics::Metrics;
use service_kit::telemetry;

use crate::books::Tally;
use crate::gateway::{Observer, VERSION};

/// Makes the admin routes.
pub(crate) fn router(readiness: Readiness, metrics: &Metrics, observer: Arc<Observer>) -> Router {
    let router = service_kit::admin::router(readiness, VERSION)
        .merge(metrics.routes())
        .merge(telemetry::log_filter_routes());
    router.route(
        "/status",
        get(async move || -> Response {
            let headers = [
                (header::CONTENT_TYPE, "application/json"),
                (header::CACHE_CONTROL, "no-store"),
            ];
            (headers, status(&observer).to_string()).into_response()
        }),
    )
}

/// Everything the gateway counts and knows about itself, without secrets or personal data.
fn status(observer: &Observer) -> Value {
    let spool = observer.spool();
    let forward = observer.forward();
    let sources: Vec<Value> = observer
        .books()
        .snapshot()
        .iter()
        .map(|page| {
            let tallies: Map<String, Value> = Tally::ALL
                .into_iter()
                .filter(|tally| page.get(*tally) > 0)
                .map(|tally| (tally.name().to_owned(), page.get(tally).into()))
                .collect();
            json!({ "source": page.source, "accepted": page.accepted(), "facts": page.facts, "requests": tallies })
        })
        .collect();
    json!({
        "spool": {
            "backend": observer.spool_backend().name(),
            "id": observer.spool_id().to_string(),
            "health": format!("{:?}", spool.health),
            "unproven": spool.unproven.as_deref(),
            "trouble": spool.trouble.as_deref(),
            "last_durable": spool.last_durable.0,
            "settled": spool.settled.0,
            "oldest_kept": spool.oldest_kept.0,
            "unsettled_records": spool.unsettled_records,
            "unsettled_bytes": spool.unsettled_bytes,
            "disk_bytes": spool.disk_bytes,
            "disk_bytes_max": spool.disk_bytes_max,
            "oldest_unsettled_age_ms": spool.oldest_unsettled_age.map(|age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
            "sync_last_us": u64::try_from(spool.sync_last.as_micros()).unwrap_or(u64::MAX),
        },
        "forward": {
            "connected": forward.connected,
            "waiting_for_turn": forward.waiting_for_turn,
            "streams": forward.streams,
            "epoch": forward.epoch,
            "committed_sequence": forward.committed_sequence,
            "in_flight_deliveries": forward.in_flight_deliveries,
            "in_flight_bytes": forward.in_flight_bytes,
            "blocked": forward.blocked,
            "spool_restored": forward.spool_restored,
            "last_error": forward.last_error,
            "missing": forward.missing.map(|range| [*range.start(), *range.end()]),
        },
        "sources": sources,
    })
}
