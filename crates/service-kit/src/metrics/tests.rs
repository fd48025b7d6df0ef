use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::admin;
use crate::shutdown::{Phase, Shutdown};

const VERSION: Version = Version {
    service: "kit",
    version: "1.2.3",
};

fn metrics() -> Metrics {
    Metrics::new(&TelemetryConfig::default(), VERSION)
}

#[tokio::test]
async fn instruments_become_prometheus_names_with_units_and_types() {
    let metrics = metrics();
    metrics.counters("kit.requests", "{request}", "Requests.", |seen| {
        seen.observe(7, &[KeyValue::new("source", "a\"b")]);
    });
    metrics.gauge("kit.spool", "By", "Bytes.", || 12.0);
    let took = metrics.histogram("kit.ack.duration", "s", "Time.", &[0.1, 1.0]);
    took.record(0.05, &[]);
    took.record(5.0, &[]);
    let text = metrics.text().await.unwrap();
    for line in [
        "# TYPE kit_requests_total counter",
        "kit_requests_total{source=\"a\\\"b\"} 7",
        "kit_spool_bytes 12",
        "kit_ack_duration_seconds_bucket{le=\"0.1\"} 1",
        "kit_ack_duration_seconds_bucket{le=\"+Inf\"} 2",
        "kit_ack_duration_seconds_count 2",
        "passline_build_info{version=\"1.2.3\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
    }
    assert!(!text.contains("otel_scope"), "{text}");
    for name in [
        "process_cpu_seconds_total",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    ] {
        let line = text
            .lines()
            .find(|line| line.starts_with(&format!("{name} ")))
            .unwrap_or_else(|| panic!("{name} in\n{text}"));
        let value: f64 = line[name.len() + 1..].parse().unwrap();
        assert!(value > 0.0, "{line}");
    }
    let info = text
        .lines()
        .find(|line| line.starts_with("target_info{"))
        .unwrap();
    assert!(
        info.contains("service_version=\"1.2.3\"") && info.contains("service_instance_id="),
        "{info}"
    );
}

#[tokio::test]
async fn two_services_of_one_process_show_their_own() {
    let (one, other) = (metrics(), metrics());
    one.gauge("kit.one", "", "Mine.", || 1.0);
    other.gauge("kit.other", "", "Mine.", || 2.0);
    let text = one.text().await.unwrap();
    assert!(
        text.contains("kit_one 1") && !text.contains("kit_other"),
        "{text}"
    );
    let text = other.text().await.unwrap();
    assert!(
        text.contains("kit_other 2") && !text.contains("kit_one"),
        "{text}"
    );
}

#[tokio::test]
async fn readiness_is_shown_check_by_check() {
    let metrics = metrics();
    let shutdown = Shutdown::new();
    let readiness = Readiness::new(shutdown.clone());
    metrics.observe_readiness(&readiness);
    readiness.register("spool").ok();
    readiness
        .register("forward")
        .set(admin::State::NotReady("no".to_owned()));
    let text = metrics.text().await.unwrap();
    assert!(text.contains("passline_ready{check=\"spool\"} 1"), "{text}");
    assert!(
        text.contains("passline_ready{check=\"forward\"} 0"),
        "{text}"
    );
    assert!(text.contains("passline_draining 0"), "{text}");
    shutdown.advance(Phase::Draining);
    assert!(
        metrics
            .text()
            .await
            .unwrap()
            .contains("passline_draining 1")
    );
}

#[tokio::test]
async fn what_is_asked_before_a_look_is_asked_once_a_second_and_not_waited_for_long() {
    let metrics = metrics();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    metrics.refresh_by(move || {
        let before = count.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            if before > 0 {
                std::future::pending::<()>().await;
            }
        })
    });
    metrics.refresh().await;
    metrics.refresh().await;
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // What was asked must have become old.
    tokio::time::sleep(REFRESH_INTERVAL).await;
    let began = Instant::now();
    metrics.refresh().await;
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(began.elapsed() < Duration::from_secs(10));
    metrics.refresh().await;
    assert_eq!(asked.load(Ordering::Relaxed), 2, "one at a time");
}

#[tokio::test]
async fn what_is_asked_and_takes_longer_than_a_look_is_there_for_a_later_one() {
    let metrics = metrics();
    let (answer, answered) = tokio::sync::watch::channel(false);
    let known = Arc::new(AtomicU64::new(0));
    let told = Arc::clone(&known);
    metrics.refresh_by(move || {
        let (mut answered, told) = (answered.clone(), Arc::clone(&told));
        Box::pin(async move {
            answered.wait_for(|answered| *answered).await.unwrap();
            told.fetch_add(1, Ordering::Relaxed);
        })
    });
    // This look goes without it.
    metrics.refresh().await;
    assert_eq!(known.load(Ordering::Relaxed), 0);
    answer.send_replace(true);
    // Nobody asks again.
    test_kit::wait_for("the answer", Duration::from_secs(30), async || match known
        .load(Ordering::Relaxed)
    {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_instrument_has_as_many_label_sets_as_it_asked_for() {
    const MOST: u64 = 5_000;
    let metrics = metrics();
    metrics.label_sets_max("kit.many", usize::try_from(MOST).unwrap());
    for name in ["kit.many", "kit.usual"] {
        metrics.counters(name, "", "Many.", |seen| {
            for at in 0..MOST {
                seen.observe(at, &[KeyValue::new("at", at.to_string())]);
            }
        });
    }
    let text = metrics.text().await.unwrap();
    let shown = |name| text.lines().filter(|line| line.starts_with(name)).count();
    assert_eq!(shown("kit_many_total{at="), 5_000);
    assert_eq!(shown("kit_many_total{otel"), 0);
    assert_eq!(shown("kit_usual_total{otel_metric_overflow"), 1);
}

#[tokio::test]
async fn metrics_that_are_off_cost_and_show_nothing() {
    let config = TelemetryConfig {
        metrics: false,
        ..TelemetryConfig::default()
    };
    let metrics = Metrics::new(&config, VERSION);
    assert!(!metrics.is_on());
    metrics
        .histogram("kit.took", "s", "Time.", &[1.0])
        .record(1.0, &[]);
    assert_eq!(metrics.text().await, None);
}

#[tokio::test]
async fn a_collector_that_is_away_does_not_hold_up_the_end() {
    let config = TelemetryConfig {
        otlp_endpoint: Some("http://127.0.0.1:1".to_owned()),
        ..TelemetryConfig::default()
    };
    let stop = CancellationToken::new();
    stop.cancel();
    let began = Instant::now();
    Metrics::new(&config, VERSION).push(stop).await;
    assert!(began.elapsed() <= LAST_PUSH_TIMEOUT + Duration::from_secs(1));
}
