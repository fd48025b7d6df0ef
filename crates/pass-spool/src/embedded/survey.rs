//! Finds out what a directory's segments hold, without changing anything.
//!
//! The log is followed backward by the first frames' links, because a newer segment decides how much of an older one
//! counts, and then read forward. Segments that are wholly settled are not read through at open, only linked; a lease
//! that goes back to them checks them then.
//!
//! Damage or torn tail? A group is written only after the one before it was synced. So if anything intact follows,
//! what precedes it was durable and is damaged now; if nothing follows, it is a write that power or process did not
//! live to finish, and nobody was told that it was stored.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::directory::segment_path;
use super::disk::{Disk, read_up_to};
use super::format::{
    FRAME_HEADER_BYTES, FrameHeader, HeaderFault, HeaderKind, Link, SEGMENT_HEADER_BYTES, Tail,
    frame_seed, header_decode,
};
use super::options::OpenError;
use super::scan::{Found, content_after, follows, frame_read, intact_header_after};
use super::shared::{Marks, Segment};
use crate::SpoolId;

const FRAMES_BEGIN: u64 = SEGMENT_HEADER_BYTES as u64;

/// What the segments hold.
#[derive(Debug)]
pub(super) struct Survey {
    /// The segments that count, oldest first.
    pub(super) segments: Vec<Segment>,
    pub(super) marks: Marks,
    /// The end of the log.
    pub(super) tail: Tail,
    pub(super) last_frame: Option<LastFrame>,
    /// Content behind the end of the log that nobody was answered for.
    pub(super) torn: Vec<Torn>,
    /// Segments without anything that counts.
    pub(super) unused: Vec<u64>,
}

/// The newest frame, which alone may not be durable.
#[derive(Debug)]
pub(super) struct LastFrame {
    pub(super) header: FrameHeader,
    pub(super) offset: u64,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) end: u64,
}

/// Stored records that fail their checks.
#[derive(Debug)]
pub(super) struct Damage {
    pub(super) file: PathBuf,
    pub(super) offset: u64,
    pub(super) detail: &'static str,
    /// The log up to the damage.
    pub(super) tail: Tail,
    pub(super) repair: Option<Repair>,
}

/// Where a gap must stand so that the log reads on behind the damage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Repair {
    pub(super) number: u64,
    pub(super) offset: u64,
    pub(super) end: u64,
    /// The first intact sequence behind.
    pub(super) next: u64,
    /// The checksum that the frame behind expects.
    pub(super) crc: u32,
}

#[derive(Debug)]
pub(super) enum Trouble {
    Open(OpenError),
    Damage(Box<Damage>),
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        Self::Open(error)
    }
}

impl From<Trouble> for OpenError {
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::Open(error) => error,
            Trouble::Damage(damage) => Self::Damaged {
                file: damage.file,
                offset: damage.offset,
                sequence: damage.tail.next,
                detail: damage.detail,
            },
        }
    }
}

/// A segment file and how it begins.
#[derive(Debug)]
struct Sheet {
    number: u64,
    path: PathBuf,
    file: File,
    file_bytes: u64,
    header_intact: bool,
    first: Option<FrameHeader>,
    /// Whether any intact frame header is in it.
    counts: bool,
}

/// A link of the chain; `sheet` is none for a file that should be there.
#[derive(Debug)]
struct Element {
    number: u64,
    sheet: Option<Sheet>,
}

/// Reads the segments. Those with nothing behind `verify_after` are not read through.
pub(super) fn survey(
    dir: &Path,
    disk: &Disk,
    id: SpoolId,
    numbers: &[u64],
    settled: Option<u64>,
    verify_after: u64,
) -> Result<Survey, Trouble> {
    let surveyor = Surveyor {
        dir,
        seed: frame_seed(id),
        settled,
    };
    let mut sheets = Vec::new();
    for number in numbers {
        sheets.push(surveyor.sheet(disk, id, *number)?);
    }
    let mut found = Survey {
        segments: Vec::new(),
        marks: Marks::default(),
        tail: Tail::EMPTY,
        last_frame: None,
        torn: Vec::new(),
        unused: Vec::new(),
    };
    // Above the newest intact frame there is nothing that counts: prepared segments, or a torn first frame.
    while let Some(sheet) = sheets.pop_if(|sheet| !sheet.counts) {
        if let Some(end) =
            content_after(&sheet.file, FRAMES_BEGIN).map_err(OpenError::io("read", &sheet.path))?
        {
            found.torn.push(Torn {
                number: sheet.number,
                offset: FRAMES_BEGIN,
                end,
            });
        }
        found.unused.push(sheet.number);
    }
    let chain = surveyor.chain(sheets, &mut found.unused);
    surveyor.follow(&chain, verify_after, &mut found)?;

    let last = found.tail.next - 1;
    if let Some(settled) = settled
        && settled > last
    {
        let number = numbers.last().map_or(1, |number| number + 1);
        let (file, offset) = match chain.last() {
            Some(element) => (segment_path(dir, element.number), found.tail.link.end),
            None => (segment_path(dir, 1), 0),
        };
        let end = FRAMES_BEGIN + FRAME_HEADER_BYTES as u64;
        let repair = Repair {
            number,
            offset: FRAMES_BEGIN,
            end,
            next: settled + 1,
            crc: found.tail.link.crc,
        };
        return Err(Trouble::Damage(Box::new(Damage {
            file,
            offset,
            detail: "the log ends before the settled mark",
            tail: found.tail,
            repair: Some(repair),
        })));
    }
    Ok(found)
}

struct Surveyor<'a> {
    dir: &'a Path,
    seed: u32,
    settled: Option<u64>,
}

impl Surveyor<'_> {
    fn sheet(&self, disk: &Disk, id: SpoolId, number: u64) -> Result<Sheet, OpenError> {
        let path = segment_path(self.dir, number);
        let read = || OpenError::io("read", &path);
        let file = disk
            .open_read(&path)
            .map_err(OpenError::io("open", &path))?;
        // A page that failed to be written back may sit in the cache as if it were on disk.
        disk.cache_drop(&file).map_err(read())?;
        let file_bytes = file.metadata().map_err(read())?.len();
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        let filled = read_up_to(&file, &mut bytes, 0).map_err(read())?;
        let header_intact = match header_decode(HeaderKind::Segment, &bytes[..filled]) {
            Ok((owner, named)) if owner == id && named == number => true,
            Ok(_) => {
                return Err(OpenError::Identity {
                    file: path,
                    detail: "segment belongs elsewhere",
                });
            }
            Err(HeaderFault::Version(version)) => {
                return Err(OpenError::Version {
                    file: path,
                    version,
                });
            }
            Err(HeaderFault::Damaged) => false,
        };
        let mut body = Vec::new();
        let first =
            match frame_read(&file, number, FRAMES_BEGIN, self.seed, &mut body).map_err(read())? {
                Found::Frame(header) => Some(header),
                Found::Blank | Found::Damaged(_) => None,
            };
        let counts = first.is_some()
            || !header_intact
            || intact_header_after(&file, number, FRAMES_BEGIN + 8, self.seed)
                .map_err(read())?
                .is_some();
        Ok(Sheet {
            number,
            path,
            file,
            file_bytes,
            header_intact,
            first,
            counts,
        })
    }

    /// Orders what counts, oldest first. Segments that newer ones have replaced go to `unused`.
    fn chain(&self, mut sheets: Vec<Sheet>, unused: &mut Vec<u64>) -> Vec<Element> {
        let mut chain: Vec<Element> = Vec::new();
        let Some(mut newest) = sheets.pop() else {
            return chain;
        };
        loop {
            let first = newest.first;
            chain.push(Element {
                number: newest.number,
                sheet: Some(newest),
            });
            let Some(link) = first.map(|first| first.previous) else {
                // It can't say what it continues, so take the nearest older one.
                match sheets.pop() {
                    Some(sheet) => newest = sheet,
                    None => break,
                }
                continue;
            };
            while let Some(replaced) = sheets.pop_if(|sheet| sheet.number > link.segment) {
                unused.push(replaced.number);
            }
            let linked_is_here = sheets
                .last()
                .is_some_and(|sheet| sheet.number == link.segment);
            let records_begin_here =
                first.is_some_and(|first| first.first <= self.settled.map_or(u64::MAX, |s| s + 1));
            let missing =
                link.segment != 0 && !linked_is_here && (!sheets.is_empty() || !records_begin_here);
            if missing {
                chain.push(Element {
                    number: link.segment,
                    sheet: None,
                });
            }
            match sheets.pop() {
                Some(sheet) => newest = sheet,
                None => break,
            }
        }
        chain.reverse();
        chain
    }

    fn follow(
        &self,
        chain: &[Element],
        verify_after: u64,
        found: &mut Survey,
    ) -> Result<(), Trouble> {
        let unknown_start = self.settled.map_or(1, |settled| settled + 1);
        found.tail = match chain.first() {
            None => return Ok(()),
            Some(Element {
                sheet: Some(Sheet {
                    first: Some(first), ..
                }),
                ..
            }) => Tail {
                link: first.previous,
                next: first.first,
            },
            Some(_) => Tail {
                link: Link::default(),
                next: unknown_start,
            },
        };
        for (index, element) in chain.iter().enumerate() {
            let newer = chain
                .get(index + 1)
                .map(|newer| newer.sheet.as_ref().and_then(|sheet| sheet.first));
            let bound = newer.flatten();
            let Some(sheet) = &element.sheet else {
                let path = segment_path(self.dir, element.number);
                let repair = bound.map(|bound| repair_up_to(element.number, FRAMES_BEGIN, &bound));
                return Err(damage(&path, 0, "segment is missing", found.tail, repair));
            };
            if !sheet.header_intact {
                let begin = found.tail.link;
                let repair = Repair {
                    number: sheet.number,
                    offset: FRAMES_BEGIN,
                    end: FRAMES_BEGIN,
                    next: found.tail.next,
                    crc: begin.crc,
                };
                return Err(damage(
                    &sheet.path,
                    0,
                    "segment header is damaged",
                    found.tail,
                    Some(repair),
                ));
            }
            let first = found.tail.next;
            let newest_ms = match bound {
                Some(bound)
                    if bound.first <= verify_after.saturating_add(1) && sheet.first.is_some() =>
                {
                    let time_ms = sheet.first.map_or(bound.time_ms, |first| first.time_ms);
                    found.marks.push(
                        first,
                        time_ms,
                        bound.previous.end.saturating_sub(FRAMES_BEGIN),
                    );
                    found.tail = Tail {
                        link: bound.previous,
                        next: bound.first,
                    };
                    bound.time_ms
                }
                _ => self.read_through(sheet, bound, newer.is_none(), found)?,
            };
            found.segments.push(Segment {
                number: sheet.number,
                first,
                last: found.tail.next - 1,
                file_bytes: sheet.file_bytes,
                newest_ms,
            });
        }
        Ok(())
    }

    /// Checks every frame of a segment up to where `bound`, the newer segment's first frame, says that it ends.
    fn read_through(
        &self,
        sheet: &Sheet,
        bound: Option<FrameHeader>,
        is_newest: bool,
        found: &mut Survey,
    ) -> Result<u64, Trouble> {
        let read = || OpenError::io("read", &sheet.path);
        let mut offset = FRAMES_BEGIN;
        let mut newest_ms = 0;
        let mut body = Vec::new();
        loop {
            if let Some(bound) = bound
                && offset == bound.previous.end
            {
                return match follows(&bound, found.tail) {
                    Ok(()) => Ok(newest_ms),
                    Err(detail) => Err(damage(&sheet.path, offset, detail, found.tail, None)),
                };
            }
            let here = frame_read(&sheet.file, sheet.number, offset, self.seed, &mut body)
                .map_err(read())?;
            let detail = match here {
                Found::Frame(header) => match follows(&header, found.tail) {
                    Ok(()) => {
                        found
                            .marks
                            .push(header.first, header.time_ms, header.frame_bytes());
                        found.tail = header.tail(offset);
                        newest_ms = header.time_ms;
                        if is_newest {
                            found.last_frame = Some(LastFrame {
                                header,
                                offset,
                                body: std::mem::take(&mut body),
                            });
                        }
                        offset = found.tail.link.end;
                        continue;
                    }
                    Err(detail) => detail,
                },
                Found::Blank => "zeros where a frame was",
                Found::Damaged(detail) => detail,
            };
            // Nothing usable here. Does the log go on behind?
            if let Some((at, header)) =
                intact_header_after(&sheet.file, sheet.number, offset + 8, self.seed)
                    .map_err(read())?
                && bound.is_none_or(|bound| at < bound.previous.end)
            {
                let repair = Repair {
                    number: sheet.number,
                    offset,
                    end: at,
                    next: header.first,
                    crc: header.previous.crc,
                };
                return Err(damage(
                    &sheet.path,
                    offset,
                    detail,
                    found.tail,
                    Some(repair),
                ));
            }
            if let Some(bound) = bound {
                let repair = repair_up_to(sheet.number, offset, &bound);
                return Err(damage(
                    &sheet.path,
                    offset,
                    detail,
                    found.tail,
                    Some(repair),
                ));
            }
            if is_newest && let Some(end) = content_after(&sheet.file, offset).map_err(read())? {
                found.torn.push(Torn {
                    number: sheet.number,
                    offset,
                    end,
                });
            }
            return Ok(newest_ms);
        }
    }
}

fn repair_up_to(number: u64, offset: u64, bound: &FrameHeader) -> Repair {
    Repair {
        number,
        offset,
        end: bound.previous.end,
        next: bound.first,
        crc: bound.previous.crc,
    }
}

/// Keeps a repair only if a gap fits there and the log goes forward.
fn damage(
    file: &Path,
    offset: u64,
    detail: &'static str,
    tail: Tail,
    repair: Option<Repair>,
) -> Trouble {
    let repair = repair.filter(|repair| {
        let bytes = repair.end.saturating_sub(repair.offset);
        repair.next >= tail.next
            && (bytes == 0 || bytes >= FRAME_HEADER_BYTES as u64)
            && repair.end >= repair.offset
    });
    Trouble::Damage(Box::new(Damage {
        file: file.to_path_buf(),
        offset,
        detail,
        tail,
        repair,
    }))
}
