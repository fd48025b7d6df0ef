//! The bytes on disk, format version 1. Pure: encodes and checks, knows no files.
//!
//! All numbers are little-endian. A directory holds
//!
//! | file | content |
//! |---|---|
//! | `lock` | empty; flocked by the owner |
//! | `spool.id` | id file, below |
//! | `settled` | watermark file, below; a hint, the other side's own mark is the truth |
//! | `segment-<12 digits>.log` | segment: header, frames, zeros up to its length |
//! | `*.tmp` | unfinished; removed at open |
//! | `*.torn` | copy of a tail cut at recovery; for people, never read |
//! | `*.damaged` | original of a segment repaired by quarantine; for people, never read |
//!
//! Segment header, 64 bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic `PLSPOOL\n` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 6 | zero |
//! | 16 | 16 | spool id |
//! | 32 | 8 | segment number, from 1, never reused |
//! | 40 | 20 | zero |
//! | 60 | 4 | CRC32C of bytes 0 to 59 |
//!
//! The id file has the same layout with magic `PLSPLID\n` and number 0; the watermark file has magic `PLSPLWM\n` and
//! the settled sequence as its number.
//!
//! Frame, one per group of records, 72 bytes of header and then the body, always at a multiple of 8:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic `PLFR` |
//! | 4 | 2 | format version, 1 |
//! | 6 | 2 | kind: 1 records, 2 gap left by quarantine |
//! | 8 | 8 | segment number |
//! | 16 | 8 | first sequence |
//! | 24 | 4 | count of sequences, from 1 (a gap may hold 0) |
//! | 28 | 4 | body bytes, without padding |
//! | 32 | 8 | append time, milliseconds since 1970 |
//! | 40 | 8 | previous frame: segment number (0 before the first) |
//! | 48 | 8 | previous frame: offset of its end |
//! | 56 | 4 | previous frame: body CRC |
//! | 60 | 4 | body CRC: CRC32C of padded body, continued from the previous body CRC |
//! | 64 | 4 | zero |
//! | 68 | 4 | CRC32C of bytes 0 to 67, continued from the CRC32C of the spool id |
//!
//! The body is, per record, its length in 4 bytes and its bytes; then zeros up to a multiple of 8. A gap's body is
//! meaningless and its body CRC is whatever the next frame expects.
//!
//! The previous-frame fields chain the log across segments. They also cut it: a frame that names an offset before
//! the end of an older segment replaces everything behind that offset. Recovery uses this to move the last frame into
//! a new segment without changing the old one first.

use std::time::{Duration, SystemTime};

use crate::SpoolId;

pub(crate) const FORMAT_VERSION: u16 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const FRAME_HEADER_BYTES: usize = 72;
/// Bytes that each record takes beside its own.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 4;

const FRAME_MAGIC: [u8; 4] = *b"PLFR";

/// Which of the three 64-byte headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderKind {
    Segment,
    Id,
    Watermark,
}

impl HeaderKind {
    fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Segment => b"PLSPOOL\n",
            Self::Id => b"PLSPLID\n",
            Self::Watermark => b"PLSPLWM\n",
        }
    }
}

/// Why a 64-byte header can't be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    Damaged,
    /// Intact, but of a format this release does not know.
    Version(u16),
}

pub(crate) fn header_encode(
    kind: HeaderKind,
    id: SpoolId,
    number: u64,
) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    bytes[0..8].copy_from_slice(kind.magic());
    bytes[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(id.as_bytes());
    bytes[32..40].copy_from_slice(&number.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes
}

pub(crate) fn header_decode(kind: HeaderKind, bytes: &[u8]) -> Result<(SpoolId, u64), HeaderFault> {
    if bytes.len() != SEGMENT_HEADER_BYTES
        || u32_at(bytes, 60) != crc32c::crc32c(&bytes[..60])
        || &bytes[0..8] != kind.magic()
    {
        return Err(HeaderFault::Damaged);
    }
    let version = u16_at(bytes, 8);
    if version != FORMAT_VERSION {
        return Err(HeaderFault::Version(version));
    }
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[16..32]);
    Ok((SpoolId::from_bytes(id), u64_at(bytes, 32)))
}

/// Returns what the frame headers' CRCs of one spool start from, so that no payload can pass for a frame.
pub(crate) fn frame_seed(id: SpoolId) -> u32 {
    crc32c::crc32c(id.as_bytes())
}

/// Where a frame ends, and its checksum: what the next one must name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Link {
    pub(crate) segment: u64,
    pub(crate) end: u64,
    pub(crate) crc: u32,
}

/// The end of the log: the link and the sequence that the next frame must carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) link: Link,
    pub(crate) next: u64,
}

impl Tail {
    /// The tail of a log without frames.
    pub(crate) const EMPTY: Self = Self {
        link: Link {
            segment: 0,
            end: 0,
            crc: 0,
        },
        next: 1,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameKind {
    Records,
    Gap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) kind: FrameKind,
    pub(crate) segment: u64,
    pub(crate) first: u64,
    pub(crate) count: u32,
    pub(crate) body_bytes: u32,
    pub(crate) time_ms: u64,
    pub(crate) previous: Link,
    pub(crate) body_crc: u32,
}

/// Why bytes are not a usable frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameFault {
    /// All zero: nothing was written here.
    Blank,
    Damaged(&'static str),
}

impl FrameHeader {
    pub(crate) fn encode(&self, seed: u32) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let kind: u16 = match self.kind {
            FrameKind::Records => 1,
            FrameKind::Gap => 2,
        };
        bytes[0..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[6..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.segment.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.count.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.time_ms.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.previous.segment.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.previous.end.to_le_bytes());
        bytes[56..60].copy_from_slice(&self.previous.crc.to_le_bytes());
        bytes[60..64].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(seed, &bytes[..68]);
        bytes[68..72].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], seed: u32) -> Result<Self, FrameFault> {
        if bytes.len() != FRAME_HEADER_BYTES {
            return Err(FrameFault::Damaged("frame header is cut short"));
        }
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(FrameFault::Blank);
        }
        if bytes[0..4] != FRAME_MAGIC {
            return Err(FrameFault::Damaged("no frame begins here"));
        }
        if u32_at(bytes, 68) != crc32c::crc32c_append(seed, &bytes[..68]) {
            return Err(FrameFault::Damaged("frame header fails its checksum"));
        }
        if u16_at(bytes, 4) != FORMAT_VERSION {
            return Err(FrameFault::Damaged(
                "frame is of a format version this release does not know",
            ));
        }
        let kind = match u16_at(bytes, 6) {
            1 => FrameKind::Records,
            2 => FrameKind::Gap,
            _ => {
                return Err(FrameFault::Damaged(
                    "frame is of a kind this release does not know",
                ));
            }
        };
        Ok(Self {
            kind,
            segment: u64_at(bytes, 8),
            first: u64_at(bytes, 16),
            count: u32_at(bytes, 24),
            body_bytes: u32_at(bytes, 28),
            time_ms: u64_at(bytes, 32),
            previous: Link {
                segment: u64_at(bytes, 40),
                end: u64_at(bytes, 48),
                crc: u32_at(bytes, 56),
            },
            body_crc: u32_at(bytes, 60),
        })
    }

    /// Bytes of header, body and padding.
    pub(crate) fn frame_bytes(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.body_bytes).next_multiple_of(8)
    }

    /// The tail after this frame, which begins at `offset`.
    pub(crate) fn tail(&self, offset: u64) -> Tail {
        Tail {
            link: Link {
                segment: self.segment,
                end: offset + self.frame_bytes(),
                crc: self.body_crc,
            },
            next: self.first.saturating_add(u64::from(self.count)),
        }
    }

    /// Checks the padded body against the header, and that it divides into exactly `count` records.
    pub(crate) fn body_check(&self, padded: &[u8]) -> Result<(), &'static str> {
        if self.kind == FrameKind::Gap {
            return Ok(());
        }
        if crc32c::crc32c_append(self.previous.crc, padded) != self.body_crc {
            return Err("frame body fails its checksum");
        }
        let mut rest = padded
            .get(..self.body_bytes as usize)
            .ok_or("frame body is cut short")?;
        for _ in 0..self.count {
            let (bytes, after) = record_split(rest).ok_or("record exceeds its frame")?;
            let _ = bytes;
            rest = after;
        }
        if rest.is_empty() {
            Ok(())
        } else {
            Err("frame holds more than its records")
        }
    }
}

/// Splits the first record off a body.
pub(crate) fn record_split(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = body.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

/// Writes one frame of records into `buffer`, replacing what it held, and returns its header.
pub(crate) fn frame_encode<'a>(
    buffer: &mut Vec<u8>,
    seed: u32,
    segment: u64,
    tail: Tail,
    time_ms: u64,
    records: impl Iterator<Item = &'a [u8]>,
) -> FrameHeader {
    buffer.clear();
    buffer.resize(FRAME_HEADER_BYTES, 0);
    let mut count = 0;
    for record in records {
        let length = u32::try_from(record.len()).expect("record_bytes_max is below 4 GiB");
        buffer.extend_from_slice(&length.to_le_bytes());
        buffer.extend_from_slice(record);
        count += 1;
    }
    let body_bytes = buffer.len() - FRAME_HEADER_BYTES;
    buffer.resize(FRAME_HEADER_BYTES + body_bytes.next_multiple_of(8), 0);
    let header = FrameHeader {
        kind: FrameKind::Records,
        segment,
        first: tail.next,
        count,
        body_bytes: u32::try_from(body_bytes).expect("groups are far below 4 GiB"),
        time_ms,
        previous: tail.link,
        body_crc: crc32c::crc32c_append(tail.link.crc, &buffer[FRAME_HEADER_BYTES..]),
    };
    buffer[..FRAME_HEADER_BYTES].copy_from_slice(&header.encode(seed));
    header
}

/// Bytes of a frame whose records and their overhead take `body_bytes`.
pub(crate) fn frame_bytes_for(body_bytes: usize) -> u64 {
    (FRAME_HEADER_BYTES + body_bytes.next_multiple_of(8)) as u64
}

pub(crate) fn millis_of(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
}

pub(crate) fn age_of(time_ms: u64, now: SystemTime) -> Duration {
    Duration::from_millis(millis_of(now).saturating_sub(time_ms))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
