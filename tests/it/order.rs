//! Guarantee 1 by the order of system calls: nothing is answered 200 before it is on disk. pass-state is not
//! needed, and not there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use system_tests::callback::Callback;
use system_tests::client::Outcome;
use system_tests::service::Strace;
use system_tests::stand::{Options, Stand};
use system_tests::syscalls::{Answered, parse, violations};
use test_kit::tool;

use crate::programs;

/// Enough for several segments.
const DELIVERIES: usize = 60;
const BODY_BYTES: usize = 40 << 10;

fn marker(index: usize) -> String {
    format!("marker-{index:04}-end")
}

/// A callback with a marker, blown up by spaces behind the JSON.
fn callback(index: usize) -> Arc<Callback> {
    let mut body = format!(r#"{{"kind":"CREATED","pass":"{}"}}"#, marker(index));
    body.extend(std::iter::repeat_n(' ', BODY_BYTES - body.len()));
    Callback::raw("standard", Bytes::from(body))
}

/// Sends deliveries to a gateway under strace and returns what its system calls violate.
async fn violations_with(options: Options) -> Vec<String> {
    let options = Options {
        gateway_strace: Some(Strace::watching(tool("PASSLINE_STRACE").unwrap())),
        ..options
    };
    let mut stand = Stand::new(&programs(), &options).unwrap();
    stand.start_gateway().await.unwrap();
    stand
        .load(
            (0..DELIVERIES).map(callback).collect(),
            8,
            Duration::from_secs(60),
        )
        .await
        .unwrap();
    let gateway = stand.take_gateway();
    let trace = gateway.trace().expect("started with strace").to_owned();
    gateway.end().await.unwrap();

    let answered: Vec<_> = stand
        .log
        .attempts()
        .into_iter()
        .filter_map(|attempt| {
            let Outcome::Stored(receipt) = attempt.outcome else {
                return None;
            };
            let body = String::from_utf8_lossy(&attempt.callback.body).into_owned();
            let index = body.find("marker-").expect("every body has a marker");
            Some(Answered {
                marker: body[index..index + marker(0).len()].to_owned(),
                delivery: receipt.delivery,
            })
        })
        .collect();
    assert_eq!(answered.len(), DELIVERIES);
    let calls = parse(&std::fs::read_to_string(trace).unwrap());
    let segments = calls
        .iter()
        .filter(|call| {
            call.made
                .as_deref()
                .is_some_and(|path| path.ends_with(".log"))
        })
        .count();
    assert!(
        segments >= 2,
        "{segments} segments made: rolling over was not exercised"
    );
    violations(&calls, &answered)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_200_comes_after_its_record_and_its_segment_are_on_disk() {
    let found = violations_with(Options::default()).await;
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_answers_before_the_sync_is_caught() {
    let found = violations_with(Options {
        spool_keys: "planted_answer_before_sync = true".to_owned(),
        ..Options::default()
    })
    .await;
    assert!(!found.is_empty(), "the planted defect went unnoticed");
    assert!(
        found
            .iter()
            .all(|text| text.contains("before the sync") || text.contains("no sync")),
        "{}",
        found.join("\n")
    );
}
