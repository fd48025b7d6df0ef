//! A scrape of both services after the main job holds what the table of `deploy/README.md` says, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::Duration;

use pass_proto::v1;
use pass_proto::v1::subscribe_request::Start;
use system_tests::callback::{Callback, standard};
use system_tests::client::{Caller, Outcome};
use system_tests::fleet::{Database, Fleet, Layout};
use system_tests::stand::{Options, Stand};
use test_kit::{TestPostgres, tool, wait_for};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use crate::end_to_end::documented;
use crate::programs;

const TABLE: &str = include_str!("../../deploy/README.md");
/// What the meaning of a metric says that is not there in every deployment.
const SOMETIMES: &str = "only where";

/// A metric's type and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    kind: String,
    labels: BTreeSet<String>,
}

/// One row of the table.
struct Documented {
    shape: Shape,
    /// Whether every deployment has it.
    always: bool,
}

/// The rows below a heading of the table, by name.
fn documented_metrics(headings: &[&str]) -> BTreeMap<String, Documented> {
    let mut metrics = BTreeMap::new();
    let mut wanted = false;
    for line in TABLE.lines() {
        if let Some(heading) = line.strip_prefix("### ") {
            wanted = headings.contains(&heading);
        } else if line.starts_with("## ") {
            wanted = false;
        }
        let Some(row) = line.strip_prefix("| `").filter(|_| wanted) else {
            continue;
        };
        let cells: Vec<&str> = row
            .trim_end_matches('|')
            .split('|')
            .map(str::trim)
            .collect();
        let [name, kind, labels, meaning] = cells[..] else {
            panic!("not a row of four cells: {line}");
        };
        // A label stands outside of parentheses, which hold its values.
        let mut names = BTreeSet::new();
        let mut depth = 0;
        for (at, piece) in labels.split('`').enumerate() {
            if at % 2 == 1 {
                if depth == 0 {
                    names.insert(piece.to_owned());
                }
            } else {
                depth += piece.matches('(').count();
                depth -= piece.matches(')').count();
            }
        }
        let shape = Shape {
            kind: kind.to_owned(),
            labels: names,
        };
        let always = !meaning.contains(SOMETIMES);
        let name = name.trim_end_matches('`').to_owned();
        assert!(
            metrics.insert(name, Documented { shape, always }).is_none(),
            "twice in the table: {line}"
        );
    }
    metrics
}

/// What a scrape shows, by name; histograms by the name that their type line has.
fn shown_metrics(text: &str) -> BTreeMap<String, Shape> {
    let mut metrics: BTreeMap<String, Shape> = BTreeMap::new();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (of, kind) = typed.split_once(' ').unwrap();
            of.clone_into(&mut name);
            let shape = Shape {
                kind: kind.to_owned(),
                labels: BTreeSet::new(),
            };
            metrics.insert(name.clone(), shape);
        } else if !line.starts_with('#') {
            let (sample, _) = line.rsplit_once(' ').unwrap();
            let labels = sample.split_once('{').map_or("", |(_, labels)| labels);
            let metric = metrics.get_mut(&name).unwrap();
            for (label, _) in labels
                .split("\",")
                .filter_map(|label| label.split_once('='))
            {
                if !(label == "le" && metric.kind == "histogram") {
                    metric.labels.insert(label.to_owned());
                }
            }
        }
    }
    metrics
}

/// Compares a scrape with the table.
fn assert_as_documented(service: &str, text: &str) {
    let table = documented_metrics(&["Both services", service]);
    let shown = shown_metrics(text);
    assert!(table.len() > 20, "the table was not read");
    for (name, shape) in &shown {
        let Some(row) = table.get(name) else {
            panic!("{service} shows {name}, which the table does not have");
        };
        assert_eq!(shape.kind, row.shape.kind, "the type of {name}");
        let (patterns, named): (Vec<&String>, Vec<&String>) = row
            .shape
            .labels
            .iter()
            .partition(|label| label.ends_with('*'));
        for label in &shape.labels {
            let by_pattern = patterns
                .iter()
                .any(|pattern| label.starts_with(pattern.trim_end_matches('*')));
            assert!(
                by_pattern || named.contains(&label),
                "{name} has a label {label}, which the table does not have"
            );
        }
        for label in named {
            assert!(
                shape.labels.contains(label),
                "{name} lacks the label {label}"
            );
        }
    }
    let absent: Vec<&String> = table
        .iter()
        .filter(|(name, row)| row.always && !shown.contains_key(*name))
        .map(|(name, _)| name)
        .collect();
    assert!(absent.is_empty(), "{service} lacks {absent:?}:\n{text}");
}

async fn scrape(service: &system_tests::service::Service) -> String {
    let (status, text) = service.admin("/metrics").await.unwrap();
    assert_eq!(status, 200, "{text}");
    text
}

/// The value of one sample.
fn value(text: &str, sample: &str) -> Result<f64, String> {
    text.lines()
        .find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
        .ok_or_else(|| format!("no {sample} in\n{text}"))
}

/// Has Prometheus' own tool look at names, types, units and help.
async fn assert_promtool_is_content(text: &str) {
    let mut child = Command::new(tool("PASSLINE_PROMTOOL").unwrap())
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(text.as_bytes()).await.unwrap();
    drop(input);
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output())
        .await
        .expect("promtool ends")
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_main_job_both_services_show_what_the_table_says_and_nothing_else() {
    let stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    let mut caller = Caller::new(stand.http());
    let mut callbacks = documented();
    // Authentic, and of no kind that anybody knows.
    let unknown = serde_json::json!({ "kind": "TELEPORTED", "pass": "unknown" });
    callbacks.push(Callback::json("standard", &unknown));
    for callback in &callbacks {
        let outcome = caller.deliver(callback, &stand.log).await;
        assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
    }
    let mut refused: Callback = (*callbacks[0]).clone();
    refused.headers.retain(|(name, _)| name == "content-type");
    let refused = caller.post(&refused).await.unwrap();
    assert_eq!(refused.status.as_u16(), 401);

    let reader = stand.reader();
    reader
        .wait_for_deliveries(callbacks.len(), Duration::from_secs(30))
        .await
        .unwrap();
    // A subscriber that stays, and follows.
    let mut live = reader.subscribe(Start::FromBeginning(true)).await.unwrap();
    let caught_up = async {
        loop {
            let frame = live.message().await.unwrap().unwrap().frame;
            if let Some(v1::subscribe_response::Frame::CaughtUp(_)) = frame {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), caught_up)
        .await
        .expect("the subscriber catches up");

    let settled = format!("passline_spool_settled_sequence {}", callbacks.len());
    wait_for(
        "the spool to be settled",
        Duration::from_secs(20),
        async || {
            let text = scrape(stand.gateway()).await;
            if text.contains(&settled) {
                Ok(())
            } else {
                Err(text)
            }
        },
    )
    .await
    .unwrap();
    let gateway = scrape(stand.gateway()).await;
    assert_as_documented("webhook-gateway", &gateway);
    // The books are read before a look, at most once a second and not waited for long: this one look must hold them.
    let books = stand.reader().info().await.unwrap().books.unwrap();
    let state = wait_for(
        "a scrape with the books of now",
        Duration::from_secs(30),
        async || {
            let text = scrape(stand.state()).await;
            let events = value(&text, "passline_log_head_position")?;
            let quarantined = value(&text, "passline_quarantine_open_deliveries")?;
            if (events, quarantined) == (books.events as f64, 1.0) {
                Ok(text)
            } else {
                Err(text)
            }
        },
    )
    .await
    .unwrap();
    assert_as_documented("pass-state", &state);

    let stored = |source: &str| {
        let sample = format!(
            "passline_deliveries_total{{outcome=\"accepted\",reason=\"stored\",source=\"{source}\"}}"
        );
        value(&gateway, &sample).unwrap()
    };
    for source in ["passworks", "passkit-signed", "envelope", "hooks"] {
        let sent = callbacks
            .iter()
            .filter(|callback| callback.source == source);
        assert_eq!(stored(source), sent.count() as f64, "{source}");
    }
    assert_eq!(stored("standard"), 0.0, "shown before the first one");
    let sample = "passline_books_facts{outcome=\"event\"}";
    assert_eq!(value(&state, sample), Ok(books.events as f64));
    assert_eq!(
        value(&state, "passline_log_head_position"),
        Ok(books.events as f64)
    );
    assert_eq!(
        value(&state, "passline_subscribers{state=\"live\"}"),
        Ok(1.0)
    );
    assert_eq!(value(&state, "passline_subscriber_lag_events_max"), Ok(0.0));
    assert_eq!(
        value(&state, "passline_subscription_events_total"),
        Ok(books.events as f64)
    );
    for text in [&gateway, &state] {
        assert_promtool_is_content(text).await;
    }
    drop(live);
    stand.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_writes_nothing_shows_the_same_books() {
    let postgres = TestPostgres::start().await.unwrap();
    let layout = Layout {
        gateways: 1,
        states: 2,
        database: Database::on(&postgres).await.unwrap(),
        ..Layout::default()
    };
    let fleet = Fleet::started(&programs(), &layout).await.unwrap();
    let callbacks: Vec<_> = (0..5)
        .map(|at| standard("CREATED", &format!("pass-{at}"), at, None))
        .collect();
    fleet
        .load(callbacks, 1, Duration::from_secs(30))
        .await
        .unwrap();
    wait_for(
        "both replicas to show the books",
        Duration::from_secs(30),
        async || {
            let mut writers = 0;
            for state in &fleet.states {
                let text = scrape(state.service()).await;
                for sample in [
                    "passline_books_facts{outcome=\"event\"}",
                    "passline_log_head_position",
                ] {
                    if value(&text, sample)? != 5.0 {
                        return Err(format!("{sample} in\n{text}"));
                    }
                }
                writers += usize::from(text.contains("passline_events_recorded_total{"));
            }
            assert_eq!(writers, 1, "one stream goes to one replica");
            Ok(())
        },
    )
    .await
    .unwrap();
    fleet.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_filter_of_a_running_service_is_changed_by_its_subcommand() {
    let stand = Stand::started(&programs(), &Options::default())
        .await
        .unwrap();
    for member in [&stand.gateways[0], &stand.states[0]] {
        let (status, now) = member.service().admin("/log-filter").await.unwrap();
        assert_eq!((status, now.as_str()), (200, "info\n"));
        member
            .command(&["log-filter", "info,hyper=debug"])
            .await
            .unwrap();
        let (_, now) = member.service().admin("/log-filter").await.unwrap();
        assert_eq!(now, "info,hyper=debug\n");
        let refused = member.command(&["log-filter", "loud"]).await.unwrap_err();
        assert!(
            format!("{refused:#}").contains("`loud` is no level; write off"),
            "{refused:#}"
        );
        let (_, now) = member.service().admin("/log-filter").await.unwrap();
        assert_eq!(now, "info,hyper=debug\n", "what is refused changes nothing");
    }
    stand.finish().await.unwrap();
}
