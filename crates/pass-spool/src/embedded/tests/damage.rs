//! What a crash, a power cut or rot leaves behind: torn tails are cut once, damage is never passed over in silence.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::{Bench, append, assert_holds, dir_copy, files, lease_numbers, record};
use crate::embedded::format::{FRAME_HEADER_BYTES, FrameHeader, SEGMENT_HEADER_BYTES, frame_seed};
use crate::suite::fresh_id;
use crate::{EmbeddedSpool, OpenError, Sequence, Spool, SpoolId, quarantine_damage};

/// The frames of a segment file, as ranges of bytes.
fn frames(path: &Path, id: SpoolId) -> Vec<(FrameHeader, Range<usize>)> {
    let bytes = fs::read(path).expect("segment");
    let mut found = Vec::new();
    let mut at = SEGMENT_HEADER_BYTES;
    while let Some(header) = bytes.get(at..at + FRAME_HEADER_BYTES)
        && let Ok(header) = FrameHeader::decode(header, frame_seed(id))
    {
        let end = at + header.frame_bytes() as usize;
        found.push((header, at..end));
        at = end;
    }
    found
}

/// A directory as left by a kill: `last` records of one group each in one segment, nothing settled.
async fn killed_with(bench: &Bench, last: u64) -> (PathBuf, SpoolId) {
    let spool = bench.open();
    append(&spool, 1..=last).await;
    let copy = bench.copy("killed");
    let id = spool.id();
    spool.close().await;
    (copy, id)
}

fn segment_with_records(dir: &Path, id: SpoolId) -> PathBuf {
    files(dir, ".log")
        .into_iter()
        .find(|path| !frames(path, id).is_empty())
        .expect("a segment with frames")
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("file");
    change(&mut bytes);
    fs::write(path, bytes).expect("file");
}

#[tokio::test]
async fn a_tail_cut_at_any_byte_loses_only_the_unfinished_group_and_is_cut_once() {
    let bench = Bench::with_segments(2048, 600);
    let (killed, id) = killed_with(&bench, 4).await;
    let segment = segment_with_records(&killed, id);
    let name = segment.file_name().expect("name").to_owned();
    let last = frames(&segment, id).last().expect("a frame").1.clone();
    let case = bench.temp.path().join("case");
    for cut in last.clone() {
        for zeros in [false, true] {
            dir_copy(&killed, &case);
            // Either the file ends there, or what was not written back reads as zeros.
            change(&case.join(&name), |bytes| {
                if zeros {
                    bytes[cut..].fill(0)
                } else {
                    bytes.truncate(cut)
                }
            });
            // The last bytes of padding are zeros anyway, so such a cut loses nothing.
            let whole = zeros
                && fs::read(&segment).expect("file")[cut..last.end]
                    .iter()
                    .all(|byte| *byte == 0);
            assert_holds(bench.options_at(&case), id, if whole { 4 } else { 3 }).await;
            let torn = files(&case, ".torn");
            assert_eq!(
                torn.len(),
                usize::from(cut > last.start && !whole),
                "cut at {cut}"
            );
            assert_holds(bench.options_at(&case), id, if whole { 4 } else { 3 }).await;
            assert_eq!(files(&case, ".torn"), torn, "cut twice");
        }
    }
}

#[tokio::test]
async fn the_kept_copy_of_a_torn_tail_has_its_bytes() {
    let bench = Bench::with_segments(2048, 600);
    let (killed, id) = killed_with(&bench, 3).await;
    let segment = segment_with_records(&killed, id);
    let last = frames(&segment, id).last().expect("a frame").1.clone();
    change(&segment, |bytes| bytes[last.end - 8] ^= 0xff);
    let original = fs::read(&segment).expect("file");
    assert_holds(bench.options_at(&killed), id, 2).await;
    let torn = files(&killed, ".torn");
    let kept = fs::read(&torn[0]).expect("torn copy");
    assert!(!kept.is_empty() && original[last.start..].starts_with(&kept));
}

/// Flips bits of every byte in use in the first of several segments, and of a sample in the others.
#[tokio::test]
async fn every_flipped_bit_is_detected() {
    let bench = Bench::with_segments(1024, 400);
    let (killed, id) = killed_with(&bench, 12).await;
    let case = bench.temp.path().join("case");
    let mut segments = 0;
    for segment in files(&killed, ".log") {
        let frames = frames(&segment, id);
        let Some((newest, newest_range)) = frames.last().cloned() else {
            continue;
        };
        let name = segment.file_name().expect("name").to_owned();
        let flips = if segments == 0 { 1 } else { 13 };
        segments += 1;
        for byte in (0..newest_range.end).step_by(flips) {
            for bit in [0, 7] {
                let place = format!("byte {byte} bit {bit} of {name:?}");
                dir_copy(&killed, &case);
                change(&case.join(&name), |bytes| bytes[byte] ^= 1 << bit);
                let in_last_group = newest.first == 12 && newest_range.contains(&byte);
                match EmbeddedSpool::open(bench.options_at(&case)) {
                    // The newest group can't be told from one that was never finished.
                    Ok(spool) if in_last_group => {
                        assert_eq!(spool.status().last_durable, Sequence(11), "{place}");
                        spool.close().await;
                    }
                    Ok(spool) => panic!("{place} went unnoticed: {:?}", spool.status()),
                    Err(OpenError::Damaged { file, sequence, .. }) => {
                        assert!(!in_last_group, "{place}");
                        assert_eq!(file, case.join(&name), "{place}");
                        let hit = frames.iter().find(|(_, range)| range.contains(&byte));
                        let (hit, _) = hit.unwrap_or(&frames[0]);
                        assert_eq!(sequence, hit.first, "{place}");
                    }
                    Err(error) => panic!("{place}: {error}"),
                }
                if !in_last_group && byte % 4 == 0 {
                    // And quarantine takes out what was hit and nothing else.
                    let lost =
                        quarantine_damage(&bench.options_at(&case)).expect("quarantine succeeds");
                    let hit = frames.iter().find(|(_, range)| range.contains(&byte));
                    let expected = hit.map(|(header, _)| header.first..=header.first);
                    assert_eq!(lost.len(), 1, "{place}");
                    assert_eq!(lost[0].sequences, expected, "{place}");
                }
            }
        }
    }
    assert!(segments >= 3, "too few segments: {segments}");
}

#[tokio::test]
async fn damage_names_file_and_offset_and_quarantine_reports_the_lost_sequences() {
    let bench = Bench::new();
    let (killed, id) = killed_with(&bench, 9).await;
    let segment = segment_with_records(&killed, id);
    let (header, range) = frames(&segment, id)[4].clone();
    change(&segment, |bytes| bytes[range.clone()].fill(0xaa));

    let error =
        EmbeddedSpool::open(bench.options_at(&killed)).expect_err("damage stops the opening");
    let text = error.to_string();
    assert!(
        text.contains(&format!("offset {}", range.start)) && text.contains("quarantine_damage"),
        "{text}"
    );
    assert!(
        matches!(error, OpenError::Damaged { sequence: 5, .. }),
        "{text}"
    );

    let report = quarantine_damage(&bench.options_at(&killed)).expect("quarantine succeeds");
    assert_eq!(report.len(), 1);
    assert_eq!(
        (report[0].offset, report[0].sequences.clone()),
        (range.start as u64, Some(5..=5))
    );
    let kept = fs::read(report[0].kept_as.as_ref().expect("kept")).expect("kept copy");
    assert!(kept[range.clone()].iter().all(|byte| *byte == 0xaa));
    assert_eq!(header.first, 5);
    assert_eq!(
        quarantine_damage(&bench.options_at(&killed)).expect("nothing left"),
        []
    );

    let spool = EmbeddedSpool::open(bench.options_at(&killed)).expect("opens again");
    assert_eq!(lease_numbers(&spool, 9).await, [1, 2, 3, 4, 6, 7, 8, 9]);
    append(&spool, 10..=10).await;
    spool.rewind(Sequence(4)).await.expect("rewind succeeds");
    assert_eq!(lease_numbers(&spool, 10).await, [6, 7, 8, 9, 10]);
    spool.close().await;
}

#[tokio::test]
async fn a_missing_segment_is_damage_and_can_be_quarantined() {
    let bench = Bench::with_segments(1024, 400);
    let spool = bench.open();
    append(&spool, 1..=30).await;
    let id = spool.id();
    let killed = bench.copy("killed");
    spool.close().await;
    let segments = files(&killed, ".log");
    let victim = &segments[2];
    let lost = frames(victim, id);
    let (first, last) = (lost[0].0.first, lost.last().expect("a frame").0.first);
    fs::remove_file(victim).expect("removed");

    match EmbeddedSpool::open(bench.options_at(&killed)) {
        Err(OpenError::Damaged { file, sequence, .. }) => {
            assert_eq!((&file, sequence), (victim, first))
        }
        other => panic!("opened with a segment missing: {other:?}"),
    }
    let report = quarantine_damage(&bench.options_at(&killed)).expect("quarantine succeeds");
    assert_eq!(report[0].sequences, Some(first..=last));
    let spool = EmbeddedSpool::open(bench.options_at(&killed)).expect("opens again");
    let expected: Vec<_> = (1..=30)
        .filter(|number| !(first..=last).contains(number))
        .collect();
    assert_eq!(lease_numbers(&spool, 30).await, expected);
    spool.close().await;
}

#[tokio::test]
async fn a_log_that_ends_before_the_settled_mark_is_damage_and_never_reuses_sequences() {
    let bench = Bench::new();
    let spool = bench.open();
    append(&spool, 1..=5).await;
    spool.settle(Sequence(5)).await.expect("settle succeeds");
    spool.close().await;
    for segment in files(&bench.dir(), ".log") {
        fs::remove_file(segment).expect("removed");
    }
    let error = EmbeddedSpool::open(bench.options()).expect_err("all records are gone");
    assert!(
        matches!(error, OpenError::Damaged { sequence: 1, .. }),
        "{error}"
    );
    let report = quarantine_damage(&bench.options()).expect("quarantine succeeds");
    assert_eq!(report[0].sequences, Some(1..=5));
    let spool = bench.open();
    spool.rewind(Sequence(0)).await.expect("rewind succeeds");
    let waited = tokio::time::timeout(Duration::from_millis(50), spool.lease(1, 1)).await;
    assert!(
        waited.is_err(),
        "a gap at the end holds nothing to lease: {waited:?}"
    );
    assert_eq!(spool.append(fresh_id(), record(6)).await, Ok(Sequence(6)));
    assert_eq!(lease_numbers(&spool, 6).await, [6]);
    spool.close().await;
}

#[tokio::test]
async fn damage_in_a_settled_segment_is_found_by_the_lease_that_goes_back_to_it() {
    let bench = Bench::with_segments(1024, 400);
    let spool = bench.open();
    append(&spool, 1..=30).await;
    spool.settle(Sequence(30)).await.expect("settle succeeds");
    let id = spool.id();
    spool.close().await;
    let segment = files(&bench.dir(), ".log")[1].clone();
    let (header, range) = frames(&segment, id)[1].clone();
    change(&segment, |bytes| bytes[range.start + 80] ^= 1);

    let spool = bench.open();
    spool.rewind(Sequence(0)).await.expect("rewind succeeds");
    assert_eq!(
        lease_numbers(&spool, header.first - 1).await.last(),
        Some(&(header.first - 1))
    );
    let error = spool.lease(100, 1 << 20).await.expect_err("damaged");
    assert!(
        error
            .to_string()
            .contains(&format!("offset {}", range.start)),
        "{error}"
    );
    spool.close().await;
    drop(spool);
    let report = quarantine_damage(&bench.options()).expect("quarantine succeeds");
    assert_eq!(report[0].sequences, Some(header.first..=header.first));
}

#[tokio::test]
async fn a_record_that_looks_like_a_frame_is_only_a_record() {
    let bench = Bench::new();
    let (killed, id) = killed_with(&bench, 3).await;
    // The bytes of a real frame of another spool, padded so that it lies at a multiple of 8.
    let segment = segment_with_records(&killed, id);
    let range = frames(&segment, id)[1].1.clone();
    let mut hostile = vec![0; 4];
    hostile.extend_from_slice(&fs::read(&segment).expect("file")[range]);

    let other = bench.temp.path().join("other");
    let spool = EmbeddedSpool::open(bench.options_at(&other)).expect("opens");
    spool
        .append(fresh_id(), record(1))
        .await
        .expect("append succeeds");
    spool
        .append(fresh_id(), hostile.into())
        .await
        .expect("append succeeds");
    let id = spool.id();
    let case = bench.temp.path().join("case");
    dir_copy(&other, &case);
    spool.close().await;
    let segment = segment_with_records(&case, id);
    let last = frames(&segment, id).last().expect("a frame").1.clone();
    change(&segment, |bytes| bytes[last.start..last.start + 80].fill(0));
    assert_holds(bench.options_at(&case), id, 1).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A torn last group: any of its 512-byte sectors missing, in any combination, and the file cut anywhere.
    #[test]
    fn unwritten_sectors_of_the_last_group_never_hurt_the_groups_before(
        lost in prop::collection::vec(any::<bool>(), 16),
        groups in 1_u64..6,
        size in 1_usize..6000,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let bench = Bench::with_segments(32 << 10, 8000);
            let spool = bench.open();
            append(&spool, 1..=groups).await;
            spool.append(fresh_id(), vec![0x5a; size].into()).await.expect("append succeeds");
            let id = spool.id();
            let killed = bench.copy("killed");
            spool.close().await;
            let segment = segment_with_records(&killed, id);
            let last = frames(&segment, id).last().expect("a frame").1.clone();
            let mut changed = false;
            change(&segment, |bytes| {
                for (sector, _) in lost.iter().enumerate().filter(|(_, lost)| **lost) {
                    let begin = (last.start / 512 + sector) * 512;
                    let range = begin.max(last.start)..(begin + 512).clamp(last.start, last.end);
                    if !range.is_empty() {
                        changed |= bytes[range.clone()].iter().any(|byte| *byte != 0);
                        bytes[range].fill(0);
                    }
                }
            });
            for _ in 0..2 {
                let spool = EmbeddedSpool::open(bench.options_at(&killed)).expect("a torn tail is no damage");
                let last = groups + u64::from(!changed);
                assert_eq!(spool.status().last_durable, Sequence(last));
                assert_eq!(lease_numbers_upto(&spool, groups).await, (1..=groups).collect::<Vec<_>>());
                spool.close().await;
            }
        });
    }
}

async fn lease_numbers_upto(spool: &EmbeddedSpool, upto: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while (numbers.len() as u64) < upto {
        let leased = spool.lease(1, 1).await.expect("lease succeeds").remove(0);
        assert_eq!(leased.record, record(leased.sequence.0));
        numbers.push(leased.sequence.0);
    }
    numbers
}
