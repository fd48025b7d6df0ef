//! The bytes on disk do not change without a new version.

use std::fs;
use std::path::PathBuf;

use super::{Bench, append, assert_holds, dir_copy, files};
use crate::embedded::format::{HeaderKind, header_encode};
use crate::{EmbeddedSpool, OpenError, Sequence, Spool, SpoolId};

const ID: SpoolId = SpoolId::from_bytes(*b"golden spool v1.");

fn golden() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1"))
}

/// Writes the spool whose bytes are the golden ones: two segments, a settled mark, no chance of any kind.
async fn written(bench: &Bench) -> PathBuf {
    let dir = bench.temp.path().join("written");
    let id_only = bench.temp.path().join("id only");
    fs::create_dir(&id_only).expect("directory");
    fs::write(
        id_only.join("spool.id"),
        header_encode(HeaderKind::Id, ID, 0),
    )
    .expect("id");
    dir_copy(&id_only, &dir);
    let spool = EmbeddedSpool::open(bench.options_at(&dir)).expect("opens");
    append(&spool, 1..=7).await;
    spool.settle(Sequence(2)).await.expect("settle succeeds");
    spool.close().await;
    fs::remove_file(dir.join("lock")).expect("lock");
    dir
}

fn bench() -> Bench {
    Bench::with_segments(1024, 400)
}

/// Run with `GOLDEN_WRITE=1` to write the files of a new version.
#[expect(
    clippy::disallowed_methods,
    reason = "a switch for whoever runs this test by hand"
)]
fn golden_write_wanted() -> bool {
    std::env::var_os("GOLDEN_WRITE").is_some()
}

#[tokio::test]
async fn the_same_input_gives_the_golden_bytes() {
    let bench = bench();
    let written = written(&bench).await;
    if golden_write_wanted() {
        let _ = fs::remove_dir_all(golden());
        fs::create_dir_all(golden()).expect("directory");
        for path in files(&written, "") {
            fs::copy(&path, golden().join(path.file_name().expect("name"))).expect("copy");
        }
    }
    let names = |dir| {
        files(dir, "")
            .iter()
            .map(|path| path.file_name().map(ToOwned::to_owned))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&written), names(&golden()));
    for path in files(&golden(), "") {
        let name = path.file_name().expect("name");
        let same =
            fs::read(&path).expect("golden") == fs::read(written.join(name)).expect("written");
        assert!(
            same,
            "{} differs: a changed format needs a new version",
            path.display()
        );
    }
}

#[tokio::test]
async fn the_golden_spool_reads_as_it_was_written() {
    let bench = bench();
    let copy = bench.temp.path().join("copy");
    dir_copy(&golden(), &copy);
    let spool = EmbeddedSpool::open(bench.options_at(&copy)).expect("opens");
    assert_eq!(spool.status().settled, Sequence(2));
    spool.close().await;
    drop(spool);
    assert_holds(bench.options_at(&copy), ID, 7).await;
}

#[tokio::test]
async fn a_newer_version_is_named_and_left_alone() {
    let bench = bench();
    let copy = bench.temp.path().join("copy");
    dir_copy(&golden(), &copy);
    let segment = files(&copy, ".log")[0].clone();
    let mut bytes = fs::read(&segment).expect("segment");
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]).to_le_bytes();
    bytes[60..64].copy_from_slice(&crc);
    fs::write(&segment, &bytes).expect("segment");
    match EmbeddedSpool::open(bench.options_at(&copy)) {
        Err(OpenError::Version { file, version: 2 }) => assert_eq!(file, segment),
        other => panic!("opened a newer version: {other:?}"),
    }
    assert_eq!(fs::read(&segment).expect("segment"), bytes);
}
