//! What is in flight on one stream, and how much more may be. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use pass_proto::v1;
use tokio::time::Instant;
use tracing::Span;

/// Ceilings of what a peer may ask for: they bound this process's memory.
const DELIVERIES_CEILING: usize = 65_536;
const BYTES_CEILING: usize = 64 << 20;

/// Room in a message for what surrounds deliveries, and for each delivery's sequence and framing, in bytes.
const MESSAGE_OVERHEAD_BYTES: usize = 256;
const DELIVERY_OVERHEAD_BYTES: usize = 32;

/// The limits that pass-state set for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) deliveries: usize,
    pub(super) bytes: usize,
    pub(super) batch_deliveries: usize,
    pub(super) message_bytes: usize,
}

impl Limits {
    /// Reads them from a Ready; `None` if one of them is not positive.
    pub(super) fn of(ready: &v1::IngestReady) -> Option<Self> {
        let positive = |number: i64| usize::try_from(number).ok().filter(|number| *number > 0);
        Some(Self {
            deliveries: positive(ready.window_deliveries.into())?.min(DELIVERIES_CEILING),
            bytes: positive(ready.window_bytes)?.min(BYTES_CEILING),
            batch_deliveries: positive(ready.batch_deliveries_max.into())?.min(DELIVERIES_CEILING),
            message_bytes: positive(ready.message_bytes_max)?.min(BYTES_CEILING),
        })
    }
}

/// One delivery in flight.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) sequence: u64,
    /// Which source's books it is in.
    pub(super) source: Option<usize>,
    /// Ends when the delivery is acknowledged or the stream ends.
    pub(super) _span: Option<Span>,
}

#[derive(Debug)]
struct Batch {
    number: u64,
    bytes: usize,
    deliveries: Vec<Sent>,
}

impl Batch {
    fn last(&self) -> u64 {
        self.deliveries
            .last()
            .map_or(0, |delivery| delivery.sequence)
    }
}

/// An acknowledgement that does not fit what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AckError {
    #[error("pass-state acknowledged batch {number}, but {sent} was the last one sent")]
    BatchNotSent { number: u64, sent: u64 },
    #[error(
        "pass-state committed sequence {committed} with batch {number}, which has to be {least} to {most}"
    )]
    SequenceMismatch {
        committed: u64,
        number: u64,
        least: u64,
        most: u64,
    },
}

#[derive(Debug)]
pub(super) struct Window {
    limits: Limits,
    /// The largest record of this spool: what the next one may take.
    record_bytes_max: usize,
    batches: VecDeque<Batch>,
    batches_sent: u64,
    deliveries: usize,
    bytes: usize,
    /// When a delivery was last acknowledged, or sent into an empty window.
    progress: Instant,
}

impl Window {
    pub(super) fn new(limits: Limits, record_bytes_max: usize) -> Self {
        Self {
            limits,
            record_bytes_max,
            batches: VecDeque::new(),
            batches_sent: 0,
            deliveries: 0,
            bytes: 0,
            progress: Instant::now(),
        }
    }

    pub(super) fn deliveries(&self) -> usize {
        self.deliveries
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// How many records and bytes the next batch may have; `None` while the window has no room for the
    /// largest record. A lease gives one record whatever its size, so that much must be free; into an empty
    /// window one may always go.
    pub(super) fn room(&self) -> Option<(usize, usize)> {
        let records = self
            .limits
            .deliveries
            .saturating_sub(self.deliveries)
            .min(self.limits.batch_deliveries);
        let bytes = self.limits.bytes.saturating_sub(self.bytes);
        if records == 0 || (bytes < self.record_bytes_max && !self.is_empty()) {
            return None;
        }
        let message = self
            .limits
            .message_bytes
            .saturating_sub(MESSAGE_OVERHEAD_BYTES + records * DELIVERY_OVERHEAD_BYTES);
        Some((records, bytes.min(message).max(1)))
    }

    /// Takes a batch in and gives it its number.
    pub(super) fn send(&mut self, deliveries: Vec<Sent>, bytes: usize) -> u64 {
        debug_assert!(!deliveries.is_empty(), "a lease gives at least one record");
        if self.is_empty() {
            self.progress = Instant::now();
        }
        self.batches_sent += 1;
        self.deliveries += deliveries.len();
        self.bytes += bytes;
        self.batches.push_back(Batch {
            number: self.batches_sent,
            bytes,
            deliveries,
        });
        self.batches_sent
    }

    /// Takes out what is acknowledged: all batches up to `number`. `committed` may reach into the batch after
    /// it, whose rest is then still awaited. Repeating an acknowledgement gives nothing.
    pub(super) fn acknowledge(
        &mut self,
        number: u64,
        committed: u64,
    ) -> Result<Vec<Sent>, AckError> {
        if number > self.batches_sent {
            return Err(AckError::BatchNotSent {
                number,
                sent: self.batches_sent,
            });
        }
        let count = self.batches.partition_point(|batch| batch.number <= number);
        let Some(batch) = count
            .checked_sub(1)
            .and_then(|index| self.batches.get(index))
        else {
            return Ok(Vec::new());
        };
        let (least, most) = (batch.last(), self.batches.back().map_or(0, Batch::last));
        if committed < least || committed > most {
            return Err(AckError::SequenceMismatch {
                committed,
                number,
                least,
                most,
            });
        }
        self.progress = Instant::now();
        let mut acknowledged = Vec::new();
        for batch in self.batches.drain(..count) {
            self.deliveries -= batch.deliveries.len();
            self.bytes -= batch.bytes;
            acknowledged.extend(batch.deliveries);
        }
        Ok(acknowledged)
    }

    /// When to give the stream up for want of progress; `None` while nothing is in flight.
    pub(super) fn deadline(&self, ack_timeout: Duration) -> Option<Instant> {
        (!self.is_empty()).then(|| self.progress + ack_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        deliveries: 10,
        bytes: 10_000,
        batch_deliveries: 4,
        message_bytes: 5_000,
    };

    fn sent(sequences: std::ops::RangeInclusive<u64>) -> Vec<Sent> {
        sequences
            .map(|sequence| Sent {
                sequence,
                source: None,
                _span: None,
            })
            .collect()
    }

    #[test]
    fn room_shrinks_with_what_is_in_flight_and_grows_with_acknowledgements() {
        let mut window = Window::new(LIMITS, 1_000);
        assert_eq!(window.room(), Some((4, 5_000 - 256 - 4 * 32)));
        assert_eq!(window.send(sent(1..=4), 4_000), 1);
        assert_eq!(window.send(sent(5..=8), 4_000), 2);
        assert_eq!(window.room(), Some((2, 2_000)));
        assert_eq!(window.send(sent(9..=9), 1_500), 3);
        assert_eq!(
            window.room(),
            None,
            "500 bytes are no room for a record of 1000"
        );
        let acknowledged = window.acknowledge(2, 8).unwrap();
        assert_eq!(
            acknowledged
                .iter()
                .map(|sent| sent.sequence)
                .collect::<Vec<_>>(),
            (1..=8).collect::<Vec<_>>()
        );
        assert_eq!((window.deliveries(), window.bytes()), (1, 1_500));
        assert!(window.room().is_some());
    }

    #[test]
    fn a_record_larger_than_the_window_goes_alone() {
        let mut window = Window::new(
            Limits {
                bytes: 100,
                ..LIMITS
            },
            1_000,
        );
        assert_eq!(window.room(), Some((4, 100)));
        window.send(sent(1..=1), 1_000);
        assert_eq!(window.room(), None);
        window.acknowledge(1, 1).unwrap();
        assert!(window.room().is_some());
    }

    #[test]
    fn acknowledgements_that_do_not_fit_are_errors_and_change_nothing() {
        let mut window = Window::new(LIMITS, 1_000);
        window.send(sent(1..=2), 10);
        assert_eq!(
            window.acknowledge(2, 2).unwrap_err(),
            AckError::BatchNotSent { number: 2, sent: 1 }
        );
        for committed in [1, 3] {
            assert_eq!(
                window.acknowledge(1, committed).unwrap_err(),
                AckError::SequenceMismatch {
                    committed,
                    number: 1,
                    least: 2,
                    most: 2
                }
            );
        }
        assert_eq!(window.deliveries(), 2);
        assert_eq!(window.acknowledge(1, 2).unwrap().len(), 2);
        assert_eq!(window.acknowledge(1, 2).unwrap().len(), 0);
    }

    #[test]
    fn a_commit_may_reach_into_a_batch_that_is_not_acknowledged_yet() {
        let mut window = Window::new(LIMITS, 1_000);
        window.send(sent(1..=2), 10);
        window.send(sent(3..=4), 10);
        assert_eq!(window.acknowledge(1, 3).unwrap().len(), 2);
        assert_eq!(window.acknowledge(2, 4).unwrap().len(), 2);
        assert!(window.is_empty());
    }

    #[test]
    fn the_deadline_counts_only_while_something_is_in_flight() {
        let mut window = Window::new(LIMITS, 1_000);
        let timeout = Duration::from_secs(30);
        assert_eq!(window.deadline(timeout), None);
        let before = Instant::now();
        window.send(sent(1..=1), 10);
        assert!(window.deadline(timeout).unwrap() >= before + timeout);
        window.acknowledge(1, 1).unwrap();
        assert_eq!(window.deadline(timeout), None);
    }

    #[test]
    fn limits_that_are_not_positive_are_refused_and_huge_ones_cut() {
        let mut ready = v1::IngestReady {
            window_deliveries: i32::MAX,
            window_bytes: i64::MAX,
            batch_deliveries_max: 1,
            message_bytes_max: 1,
            ..Default::default()
        };
        let limits = Limits::of(&ready).unwrap();
        assert_eq!(
            (limits.deliveries, limits.bytes),
            (DELIVERIES_CEILING, BYTES_CEILING)
        );
        ready.window_bytes = 0;
        assert_eq!(Limits::of(&ready), None);
        ready.window_bytes = -1;
        assert_eq!(Limits::of(&ready), None);
    }
}
