//! Leases read from the files, frame by frame, with every check; memory holds one frame whatever the backlog.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::directory::segment_path;
use super::disk::Disk;
use super::format::{FrameKind, SEGMENT_HEADER_BYTES, Tail, frame_seed};
use super::scan::{Found, follows, frame_read};
use super::shared::Shared;
use crate::{LeaseError, Leased, Sequence};

/// A place in the log, kept between leases so that reading goes on without seeking.
#[derive(Debug)]
struct Place {
    number: u64,
    file: File,
    path: PathBuf,
    offset: u64,
    /// What the next frame must continue; unknown right after a seek.
    tail: Option<Tail>,
    /// What is left of the present frame.
    body: Bytes,
    /// The sequence at the head of `body`, or of the next frame if `body` is used up.
    next: u64,
}

#[derive(Debug)]
pub(super) struct Reader {
    disk: Disk,
    place: Option<Place>,
}

impl Reader {
    pub(super) fn new(disk: Disk) -> Self {
        Self { disk, place: None }
    }

    /// Reads records from `after + 1` up to `durable`, and returns the position behind them.
    ///
    /// The result is empty only if nothing but quarantined gaps lay there.
    pub(super) fn read(
        &mut self,
        shared: &Shared,
        after: u64,
        durable: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Leased>, u64), LeaseError> {
        let result = self.read_on(shared, after, durable, records_max, bytes_max);
        if result.is_err() {
            self.place = None;
        }
        result
    }

    fn read_on(
        &mut self,
        shared: &Shared,
        after: u64,
        durable: u64,
        records_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<Leased>, u64), LeaseError> {
        let wanted = after + 1;
        if self.place.as_ref().is_none_or(|place| place.next != wanted) {
            self.place = None;
            self.place = Some(self.seek(shared, wanted)?);
        }
        let mut place = self.place.take().expect("set just above");
        let mut leased = Vec::new();
        let mut bytes = 0;
        // A seek into a quarantined gap ends behind it.
        let mut position = place.next - 1;
        while position < durable && leased.len() < records_max {
            if place.body.is_empty() {
                place = match self.frame_next(shared, place) {
                    Ok(place) => place,
                    // What was read is good; the next lease meets the trouble first thing.
                    Err(_) if !leased.is_empty() => return Ok((leased, position)),
                    Err(error) => return Err(error),
                };
                position = place.next - 1;
                continue;
            }
            let record_bytes = (&place.body[..]).get_u32_le() as usize;
            if !leased.is_empty() && bytes + record_bytes > bytes_max {
                break;
            }
            place.body.advance(4);
            leased.push(Leased {
                sequence: Sequence(place.next),
                record: place.body.split_to(record_bytes),
            });
            bytes += record_bytes;
            position = place.next;
            place.next += 1;
        }
        self.place = Some(place);
        Ok((leased, position))
    }

    /// Finds the record `wanted`, reading its segment from the start.
    fn seek(&mut self, shared: &Shared, wanted: u64) -> Result<Place, LeaseError> {
        let number = segment_of(shared, wanted)?;
        let mut place = self.open(shared, number, None, wanted)?;
        loop {
            place.next = place.tail.map_or(0, |tail| tail.next);
            place = self.frame_load(shared, place)?;
            let after_frame = place.tail.expect("a frame was loaded").next;
            if wanted < after_frame {
                break;
            }
        }
        while place.next < wanted && !place.body.is_empty() {
            let record_bytes = place.body.get_u32_le() as usize;
            place.body.advance(record_bytes);
            place.next += 1;
        }
        place.next = place.next.max(wanted);
        Ok(place)
    }

    /// Goes on to the next frame, in this segment or the next.
    fn frame_next(&mut self, shared: &Shared, place: Place) -> Result<Place, LeaseError> {
        let number = segment_of(shared, place.next)?;
        let place = if number == place.number {
            place
        } else {
            self.open(shared, number, place.tail, place.next)?
        };
        self.frame_load(shared, place)
    }

    fn open(
        &self,
        shared: &Shared,
        number: u64,
        tail: Option<Tail>,
        next: u64,
    ) -> Result<Place, LeaseError> {
        let path = segment_path(&shared.dir, number);
        match self.disk.open_read(&path) {
            Ok(file) => {
                let offset = SEGMENT_HEADER_BYTES as u64;
                Ok(Place {
                    number,
                    file,
                    path,
                    offset,
                    tail,
                    body: Bytes::new(),
                    next,
                })
            }
            Err(source) => Err(LeaseError::Read {
                file: path,
                source: Arc::new(source),
            }),
        }
    }

    /// Loads the frame at the place. A gap leaves the body empty and moves past its sequences.
    fn frame_load(&self, shared: &Shared, mut place: Place) -> Result<Place, LeaseError> {
        let mut body = Vec::new();
        let found = frame_read(
            &place.file,
            place.number,
            place.offset,
            frame_seed(shared.id),
            &mut body,
        )
        .map_err(|source| LeaseError::Read {
            file: place.path.clone(),
            source: Arc::new(source),
        })?;
        let header = match found {
            Found::Frame(header) => {
                match place.tail.map_or(Ok(()), |tail| follows(&header, tail)) {
                    Ok(()) => Ok(header),
                    Err(detail) => Err(detail),
                }
            }
            Found::Blank => Err("zeros where a frame was"),
            Found::Damaged(detail) => Err(detail),
        }
        .map_err(|detail| LeaseError::Damaged {
            file: place.path.clone(),
            offset: place.offset,
            detail,
        })?;
        let tail = header.tail(place.offset);
        place.offset = tail.link.end;
        place.tail = Some(tail);
        match header.kind {
            FrameKind::Records => {
                body.truncate(header.body_bytes as usize);
                place.body = Bytes::from(body);
                place.next = header.first;
            }
            FrameKind::Gap => {
                tracing::warn!(
                    spool.id = %shared.id,
                    first = header.first,
                    count = header.count,
                    "passing a quarantined range"
                );
                place.body = Bytes::new();
                place.next = tail.next;
            }
        }
        Ok(place)
    }
}

fn segment_of(shared: &Shared, sequence: u64) -> Result<u64, LeaseError> {
    let state = shared.state();
    let index = state
        .segments
        .partition_point(|segment| segment.first <= sequence);
    match index
        .checked_sub(1)
        .and_then(|index| state.segments.get(index))
    {
        Some(segment) => Ok(segment.number),
        None => {
            let oldest_kept = state.oldest_kept(shared.durable());
            Err(LeaseError::Dropped {
                first: sequence,
                oldest_kept,
            })
        }
    }
}
