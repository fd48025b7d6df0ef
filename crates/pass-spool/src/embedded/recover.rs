//! Opening: makes what the last life left behind trustworthy, whatever it died of.
//!
//! Only the newest frame can be written but not synced. It is copied into a new segment, which is synced and whose
//! directory entry is synced before anything of it may be leased or answered; the copy's link takes the place of the
//! old frame and of any torn bytes behind it. So each step leaves a directory that the next open reads the same way:
//!
//! 1. a torn tail is copied to a `.torn` file, for people;
//! 2. the new segment appears, complete and synced, by one rename;
//! 3. what it replaced is removed or cut.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::Path;

use super::directory::{Directory, segment_path};
use super::disk::{Disk, is_lack_of_room, read_up_to};
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, FrameKind, HeaderKind, SEGMENT_HEADER_BYTES, Tail, frame_seed,
    header_encode,
};
use super::keeper::segment_create;
use super::options::OpenError;
use super::shared::{Segment, State};
use super::survey::{LastFrame, Survey, Torn, survey};
use crate::SpoolId;

/// A log that is durable to its last record.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) state: State,
    pub(super) tail: Tail,
    /// The number of the next segment.
    pub(super) next_number: u64,
}

pub(super) fn recover(
    directory: &Directory,
    disk: &Disk,
    numbers: &[u64],
    id: SpoolId,
) -> Result<Recovered, OpenError> {
    let dir = directory.path.as_path();
    let mark = directory.watermark(disk, id)?;
    let found = survey(dir, disk, id, numbers, mark, mark.unwrap_or(0))?;
    let mut next_number = numbers.last().map_or(1, |number| number + 1);

    let torn_bytes: u64 = found.torn.iter().map(|torn| torn.end - torn.offset).sum();
    for torn in &found.torn {
        torn_keep(dir, disk, *torn)?;
    }
    if torn_bytes > 0 {
        tracing::warn!(spool.id = %id, torn_bytes, "cut an unfinished write off the end of the spool");
    }

    let Survey {
        segments,
        marks,
        mut tail,
        last_frame,
        unused,
        ..
    } = found;
    let mut segments = VecDeque::from(segments);
    let mut gone = unused;
    if let Some(last) = last_frame {
        let number = next_number;
        next_number += 1;
        let (header, file_bytes) = last_frame_copy(dir, disk, id, number, &last)?;
        let replaced = segments
            .back_mut()
            .expect("the last frame is in the newest segment");
        if last.header.first == replaced.first {
            gone.push(replaced.number);
            segments.pop_back();
        } else {
            let path = segment_path(dir, replaced.number);
            disk.truncate(&path, last.offset)
                .map_err(OpenError::io("cut", &path))?;
            replaced.last = last.header.first - 1;
            replaced.file_bytes = last.offset;
        }
        segments.push_back(Segment {
            number,
            first: header.first,
            last: tail.next - 1,
            file_bytes,
            newest_ms: header.time_ms,
        });
        tail = header.tail(SEGMENT_HEADER_BYTES as u64);
    }
    for number in gone {
        let path = segment_path(dir, number);
        disk.unlink(&path).map_err(OpenError::io("remove", &path))?;
    }
    // Without a mark, only what retention has dropped is known to be settled.
    let settled = mark.unwrap_or_else(|| segments.front().map_or(0, |segment| segment.first - 1));
    let state = State {
        disk_bytes: segments.iter().map(|segment| segment.file_bytes).sum(),
        segments,
        marks,
        settled,
        leased: settled,
        settled_stored: mark.unwrap_or(0),
        peer_heard: false,
    };
    Ok(Recovered {
        state,
        tail,
        next_number,
    })
}

/// Secures the last frame in a segment of its own, no larger than it needs, so that it fits a nearly full disk.
fn last_frame_copy(
    dir: &Path,
    disk: &Disk,
    id: SpoolId,
    number: u64,
    last: &LastFrame,
) -> Result<(FrameHeader, u64), OpenError> {
    let is_gap = last.header.kind == FrameKind::Gap;
    let body_bytes = if is_gap { 0 } else { last.header.body_bytes };
    let header = FrameHeader {
        segment: number,
        body_bytes,
        ..last.header
    };
    let mut content = header_encode(HeaderKind::Segment, id, number).to_vec();
    content.extend_from_slice(&header.encode(frame_seed(id)));
    content.extend_from_slice(&last.body[..(header.frame_bytes() as usize) - FRAME_HEADER_BYTES]);
    let path = segment_path(dir, number);
    let file_bytes = content.len() as u64;
    segment_create(disk, dir, &path, &content, file_bytes)
        .map_err(OpenError::io("create", &path))?;
    Ok((header, file_bytes))
}

/// Keeps a copy of a torn tail. Nobody was told that it was stored, so a lack of room does not stop the opening.
fn torn_keep(dir: &Path, disk: &Disk, torn: Torn) -> Result<(), OpenError> {
    let path = dir.join(format!("segment-{:012}-{}.torn", torn.number, torn.offset));
    let source = segment_path(dir, torn.number);
    let keep = || -> io::Result<()> {
        let unfinished = path.with_added_extension("tmp");
        disk.unlink(&unfinished)?;
        let file = disk.create_new(&unfinished)?;
        range_copy(
            disk,
            &disk.open_read(&source)?,
            torn.offset..torn.end,
            &file,
            &unfinished,
            0,
        )?;
        disk.sync_all(&file, &unfinished)?;
        disk.rename(&unfinished, &path)?;
        disk.sync_dir(dir)
    };
    match keep() {
        Err(error) if is_lack_of_room(&error) => {
            tracing::warn!(file = %path.display(), %error, "no room to keep a copy of the torn tail");
            Ok(())
        }
        other => other.map_err(OpenError::io("create", &path)),
    }
}

/// Copies a range of one file to an offset of another, in bounded pieces.
pub(super) fn range_copy(
    disk: &Disk,
    from: &File,
    range: std::ops::Range<u64>,
    to: &File,
    to_path: &Path,
    to_offset: u64,
) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    while range.start + done < range.end {
        let want = usize::try_from(range.end - range.start - done)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let filled = read_up_to(from, &mut buffer[..want], range.start + done)?;
        if filled == 0 {
            break;
        }
        disk.write_at(to, to_path, &buffer[..filled], to_offset + done)?;
        done += filled as u64;
    }
    Ok(())
}
