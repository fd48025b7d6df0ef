//! Servers that several services share, with faults of their own. `chaos postgres` and `chaos jetstream` do the
//! same for as long as one likes.

use std::process::Command;
use std::time::Duration;

use system_tests::chaos::{jetstream, postgres};

use crate::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_restarted_and_cut_off_in_commits_loses_and_repeats_nothing() {
    let plan = postgres::Plan {
        rounds: 6,
        seed: 61,
    };
    let report = postgres::run(&programs(), &plan, &mut |_| {})
        .await
        .unwrap();
    report.verdict.assert_clean();
    assert_eq!(report.rounds, 6);
    assert!(report.cuts >= 30 && report.ambiguous >= 20, "{report:?}");
    assert!(report.recovered_max < Duration::from_secs(10), "{report:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_on_a_stream_lose_nothing_with_their_disks_nor_the_server_with_its_process() {
    let plan = jetstream::Plan {
        rounds: 6,
        seed: 62,
    };
    let report = jetstream::run(&programs(), &plan, &mut |_| {})
        .await
        .unwrap();
    report.verdict.assert_clean();
    assert_eq!(report.rounds, 6);
    assert!(report.recovered_max < Duration::from_secs(10), "{report:?}");
}

#[test]
fn the_chaos_program_ends_with_64_where_its_arguments_make_no_sense() {
    let code = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_chaos"))
            .args(arguments)
            .output()
            .unwrap();
        output.status.code()
    };
    for wrong in [
        &["--rounds", "0"][..],
        &["torture", "--planted", "something"],
        &["postgres", "--events", "5"],
        &["no-such-thing"],
    ] {
        assert_eq!(code(wrong), Some(64), "{wrong:?}");
    }
    for what in ["kill", "torture", "postgres", "jetstream"] {
        assert_eq!(code(&[what, "--help"]), Some(0));
    }
}
