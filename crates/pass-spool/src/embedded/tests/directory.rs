//! Ownership, permissions, identity and settings.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Bench, append, assert_holds, files};
use crate::{EmbeddedSpool, OpenError, Sequence, Spool, SpoolId};

#[tokio::test]
async fn a_second_opener_is_told_which_directory_is_in_use() {
    let bench = Bench::new();
    let spool = bench.open();
    let error = EmbeddedSpool::open(bench.options()).expect_err("locked");
    assert!(
        matches!(&error, OpenError::Locked { dir } if *dir == bench.dir()),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains(&bench.dir().display().to_string())
    );
    spool.close().await;
    EmbeddedSpool::open(bench.options())
        .expect("close releases the lock")
        .close()
        .await;
}

#[tokio::test]
async fn dropping_without_close_stores_what_was_accepted_and_releases_the_lock() {
    let bench = Bench::new();
    let spool = bench.open();
    append(&spool, 1..=5).await;
    let id = spool.id();
    drop(spool);
    assert_holds(bench.options(), id, 5).await;
}

#[test]
fn files_are_private_and_an_exposed_directory_is_refused() {
    let bench = Bench::new();
    drop(bench.open());
    let mode =
        |path: &std::path::Path| fs::metadata(path).expect("file").permissions().mode() & 0o7777;
    assert_eq!(mode(&bench.dir()), 0o700);
    for path in files(&bench.dir(), "") {
        assert_eq!(mode(&path), 0o600, "{}", path.display());
    }
    fs::set_permissions(bench.dir(), fs::Permissions::from_mode(0o750)).expect("chmod");
    let error = EmbeddedSpool::open(bench.options()).expect_err("exposed");
    assert!(error.to_string().contains("chmod 0700"), "{error}");
}

#[tokio::test]
async fn ancestors_are_created_and_the_id_stays() {
    let bench = Bench::new();
    let options = bench.options_at(&bench.temp.path().join("a/b/c"));
    let first = EmbeddedSpool::open(options.clone()).expect("opens");
    let id = first.id();
    first.close().await;
    let second = EmbeddedSpool::open(options).expect("opens");
    assert_eq!(second.id(), id);
    assert_eq!(id.to_string().parse(), Ok(id));
    assert_ne!(id, bench.open().id());
    assert!("00".parse::<SpoolId>().is_err() && "zz".repeat(16).parse::<SpoolId>().is_err());
}

#[tokio::test]
async fn a_lost_or_damaged_id_is_refused_and_a_damaged_settled_mark_only_repeats_records() {
    let bench = Bench::new();
    let spool = bench.open();
    append(&spool, 1..=3).await;
    spool.settle(Sequence(2)).await.expect("settle succeeds");
    let id = spool.id();
    spool.close().await;
    drop(spool);

    let settled = bench.dir().join("settled");
    let mut bytes = fs::read(&settled).expect("settled mark");
    bytes[33] ^= 4;
    fs::write(&settled, bytes).expect("settled mark");
    let spool = bench.open();
    assert_eq!(spool.status().settled, Sequence(0));
    spool.close().await;
    drop(spool);
    assert_holds(bench.options(), id, 3).await;

    let id_file = bench.dir().join("spool.id");
    let bytes = fs::read(&id_file).expect("id");
    fs::write(&id_file, &bytes[..63]).expect("id");
    assert!(matches!(
        EmbeddedSpool::open(bench.options()),
        Err(OpenError::Identity { .. })
    ));
    fs::remove_file(&id_file).expect("removed");
    assert!(matches!(
        EmbeddedSpool::open(bench.options()),
        Err(OpenError::Identity { .. })
    ));
    fs::write(&id_file, &bytes).expect("id");
    assert_holds(bench.options(), id, 3).await;
}

#[test]
fn settings_that_do_not_fit_are_refused_by_name() {
    let bench = Bench::new();
    let refused = |name: &str, change: fn(&mut crate::EmbeddedOptions)| {
        let mut options = bench.options();
        change(&mut options);
        let error = EmbeddedSpool::open(options).expect_err(name);
        assert!(
            matches!(&error, OpenError::Options { what } if what.starts_with(name)),
            "{error}"
        );
    };
    refused("segment_bytes", |options| options.segment_bytes = 1001);
    refused("segment_bytes", |options| options.segment_bytes = 2 << 30);
    refused("segment_bytes", |options| {
        options.record_bytes_max = 1 << 20
    });
    refused("record_bytes_max", |options| options.record_bytes_max = 0);
    refused("bytes_max", |options| {
        options.bytes_max = 3 * options.segment_bytes
    });
    refused("retain_bytes", |options| {
        options.retain_bytes = Some(options.bytes_max)
    });
    refused("append_queue_max", |options| options.append_queue_max = 0);
    assert!(
        crate::EmbeddedOptions::new("unused").check().is_ok(),
        "the defaults fit"
    );
    assert!(!bench.dir().exists(), "refused settings touch nothing");
}

#[tokio::test]
async fn restarts_without_appends_do_not_grow_the_directory() {
    let bench = Bench::new();
    let spool = bench.open();
    append(&spool, 1..=20).await;
    let id = spool.id();
    spool.close().await;
    drop(spool);
    let mut sizes = Vec::new();
    for _ in 0..4 {
        assert_holds(bench.options(), id, 20).await;
        sizes.push(
            files(&bench.dir(), "")
                .iter()
                .map(|path| fs::metadata(path).expect("file").len())
                .sum::<u64>(),
        );
    }
    assert!(sizes.iter().all(|size| *size == sizes[0]), "{sizes:?}");
}
