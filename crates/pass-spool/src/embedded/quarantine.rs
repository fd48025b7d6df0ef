//! What an operator may do about damage: move it aside and have the log say how many sequences it held.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::directory::{Directory, segment_path};
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HeaderKind, SEGMENT_HEADER_BYTES, frame_seed,
    header_encode, millis_of,
};
use super::options::{EmbeddedOptions, OpenError};
use super::recover::range_copy;
use super::survey::{Damage, Repair, Trouble, survey};
use crate::SpoolId;

/// Repairs in one call; a directory with more damage than this needs other help.
const REPAIRS_MAX: usize = 1000;

/// Damage that was moved aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// The repaired segment.
    pub file: PathBuf,
    /// Where the damage began.
    pub offset: u64,
    /// The original, damage and all; `None` if there was no file. Holds records: keep it as private as the spool.
    pub kept_as: Option<PathBuf>,
    /// The sequences that were lost; `None` if the damage held no records.
    pub sequences: Option<RangeInclusive<u64>>,
}

/// Moves every damaged range of a closed spool aside, so that it opens again, and reports what was lost.
///
/// Reads all segments through, settled ones included. The lost sequences are recorded as a gap: they are never
/// given out again, and leases pass over them. Returns an empty list if there is no damage. Running it again after a
/// crash in the middle finishes the work.
///
/// # Errors
///
/// Fails if the spool is in use, if a storage call fails, or with [`OpenError::Damaged`] if the damage leaves nothing
/// to go on from.
pub fn quarantine_damage(options: &EmbeddedOptions) -> Result<Vec<Quarantined>, OpenError> {
    options.check()?;
    let disk = &options.disk;
    let directory = Directory::acquire(&options.dir, disk)?;
    let mut report = Vec::new();
    loop {
        let numbers = directory.segments(disk)?;
        let id = directory.id(disk, !numbers.is_empty())?;
        let mark = directory.watermark(disk, id)?;
        let damage = match survey(&directory.path, disk, id, &numbers, mark, 0) {
            Ok(_) => return Ok(report),
            Err(Trouble::Damage(damage)) => damage,
            Err(Trouble::Open(error)) => return Err(error),
        };
        match damage.repair {
            Some(repair) if report.len() < REPAIRS_MAX => {
                let file = segment_path(&directory.path, repair.number);
                let done = repair_write(&directory.path, options, id, &damage, repair, &file);
                report.push(done.map_err(OpenError::io("repair", file))?);
            }
            _ => return Err(Trouble::Damage(damage).into()),
        }
    }
}

/// Writes the segment anew with a gap for the damage, and keeps the original under another name.
fn repair_write(
    dir: &Path,
    options: &EmbeddedOptions,
    id: SpoolId,
    damage: &Damage,
    repair: Repair,
    path: &Path,
) -> io::Result<Quarantined> {
    let disk = &options.disk;
    let original = match disk.open_read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    let kept_as = dir.join(format!(
        "segment-{:012}-{}.damaged",
        repair.number, damage.offset
    ));
    if original.is_some() {
        match fs::hard_link(path, &kept_as) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => other?,
        }
        disk.sync_dir(dir)?;
    }

    let unfinished = path.with_added_extension("tmp");
    disk.unlink(&unfinished)?;
    let file = disk.create_new(&unfinished)?;
    disk.write_at(
        &file,
        &unfinished,
        &header_encode(HeaderKind::Segment, id, repair.number),
        0,
    )?;
    let mut length = repair.end;
    if let Some(original) = &original {
        let original_bytes = original.metadata()?.len();
        length = length.max(original_bytes);
        let before = SEGMENT_HEADER_BYTES as u64..repair.offset;
        let after = repair.end..original_bytes;
        range_copy(
            disk,
            original,
            before.clone(),
            &file,
            &unfinished,
            before.start,
        )?;
        range_copy(
            disk,
            original,
            after.clone(),
            &file,
            &unfinished,
            after.start,
        )?;
    }
    file.set_len(length)?;
    if repair.end > repair.offset {
        let lost = repair.next - damage.tail.next;
        let gap = FrameHeader {
            kind: FrameKind::Gap,
            segment: repair.number,
            first: damage.tail.next,
            count: u32::try_from(lost)
                .map_err(|_| io::Error::other("more than 2^32 sequences are lost"))?,
            body_bytes: u32::try_from(repair.end - repair.offset - FRAME_HEADER_BYTES as u64)
                .map_err(|_| io::Error::other("segment is larger than 4 GiB"))?,
            time_ms: millis_of((options.clock)()),
            previous: damage.tail.link,
            body_crc: repair.crc,
        };
        disk.write_at(
            &file,
            &unfinished,
            &gap.encode(frame_seed(id)),
            repair.offset,
        )?;
    }
    disk.sync_all(&file, &unfinished)?;
    disk.rename(&unfinished, path)?;
    disk.sync_dir(dir)?;
    let lost = damage.tail.next..repair.next;
    let report = Quarantined {
        file: path.to_path_buf(),
        offset: damage.offset,
        kept_as: original.map(|_| kept_as),
        sequences: (!lost.is_empty()).then(|| lost.start..=lost.end - 1),
    };
    tracing::warn!(
        spool.id = %id,
        file = %path.display(),
        offset = report.offset,
        sequences_lost = lost.end - lost.start,
        "moved damage aside"
    );
    Ok(report)
}
