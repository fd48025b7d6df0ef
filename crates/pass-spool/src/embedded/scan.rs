//! Reading frames in order with every check, for recovery and for leases.

use std::fs::File;
use std::io;

use super::disk::read_up_to;
use super::format::{FRAME_HEADER_BYTES, FrameFault, FrameHeader, SEGMENT_HEADER_BYTES, Tail};

/// What stands at an offset of a segment.
#[derive(Debug)]
pub(super) enum Found {
    /// An intact frame; its padded body is in the buffer.
    Frame(FrameHeader),
    /// Zeros, or the end of the file.
    Blank,
    Damaged(&'static str),
}

/// Reads the frame at `offset` into `body` and checks it by itself.
pub(super) fn frame_read(
    file: &File,
    number: u64,
    offset: u64,
    seed: u32,
    body: &mut Vec<u8>,
) -> io::Result<Found> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    let filled = read_up_to(file, &mut bytes, offset)?;
    let header = match FrameHeader::decode(&bytes[..filled], seed) {
        Ok(header) => header,
        Err(FrameFault::Blank) => return Ok(Found::Blank),
        Err(FrameFault::Damaged(_)) if bytes[..filled].iter().all(|byte| *byte == 0) => {
            return Ok(Found::Blank);
        }
        Err(FrameFault::Damaged(detail)) => return Ok(Found::Damaged(detail)),
    };
    if header.segment != number {
        return Ok(Found::Damaged("frame belongs to another segment"));
    }
    if header.first.checked_add(u64::from(header.count)).is_none() {
        return Ok(Found::Damaged("frame counts beyond the last sequence"));
    }
    // Checked before the buffer grows: a body can't be longer than its file.
    let file_bytes = file.metadata()?.len();
    if offset.saturating_add(header.frame_bytes()) > file_bytes {
        return Ok(Found::Damaged("frame reaches beyond its file"));
    }
    body.clear();
    body.resize((header.frame_bytes() as usize) - FRAME_HEADER_BYTES, 0);
    let filled = read_up_to(file, body, offset + FRAME_HEADER_BYTES as u64)?;
    body.truncate(filled);
    match header.body_check(body) {
        Ok(()) => Ok(Found::Frame(header)),
        Err(detail) => Ok(Found::Damaged(detail)),
    }
}

/// Checks that a frame goes on where the log ended.
pub(super) fn follows(header: &FrameHeader, tail: Tail) -> Result<(), &'static str> {
    if header.previous != tail.link {
        Err("frame does not continue the one before it")
    } else if header.first != tail.next {
        Err("frame's first sequence is not the next one")
    } else {
        Ok(())
    }
}

/// Looks behind damage for the next frame header that is intact and of this segment.
///
/// The headers' checksum starts from the spool's random id, so no record's content can pass for one.
pub(super) fn intact_header_after(
    file: &File,
    number: u64,
    offset: u64,
    seed: u32,
) -> io::Result<Option<(u64, FrameHeader)>> {
    const WINDOW_BYTES: usize = 1 << 20;
    let mut window = vec![0; WINDOW_BYTES + FRAME_HEADER_BYTES];
    let mut base = offset.next_multiple_of(8).max(SEGMENT_HEADER_BYTES as u64);
    loop {
        let filled = read_up_to(file, &mut window, base)?;
        if filled < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        for at in (0..=(filled - FRAME_HEADER_BYTES).min(WINDOW_BYTES - 8)).step_by(8) {
            if let Ok(header) = FrameHeader::decode(&window[at..at + FRAME_HEADER_BYTES], seed)
                && header.segment == number
            {
                return Ok(Some((base + at as u64, header)));
            }
        }
        base += WINDOW_BYTES as u64;
    }
}

/// Returns the range from `offset` to the last byte that is not zero, or `None` if all are.
pub(super) fn content_after(file: &File, offset: u64) -> io::Result<Option<u64>> {
    let mut window = vec![0; 1 << 20];
    let mut base = offset;
    let mut end = None;
    loop {
        let filled = read_up_to(file, &mut window, base)?;
        if filled == 0 {
            return Ok(end);
        }
        if let Some(at) = window[..filled].iter().rposition(|byte| *byte != 0) {
            end = Some(base + at as u64 + 1);
        }
        base += filled as u64;
    }
}
