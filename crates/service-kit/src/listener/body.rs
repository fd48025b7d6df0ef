//! Reading a request's body within bounds of size and time.

use std::time::Duration as StdDuration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use crate::config::{ByteSize, Duration, Faults, Validate};

/// Time limits of a body.
///
/// At `t` after the start, at least `bytes_per_sec_min × (t − rate_grace)`
/// bytes must have come, and all of them by `total`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BodyTimeouts {
    /// Time for the whole body, up to 5 min. Default 10 s.
    pub total: Duration,
    /// Time before the rate counts, up to 1 min. Default 2 s.
    pub rate_grace: Duration,
    /// Least bytes per second, 1 B to 1 MiB. Default 1 KiB.
    pub bytes_per_sec_min: ByteSize,
}

impl Default for BodyTimeouts {
    fn default() -> Self {
        Self {
            total: Duration::from_secs(10),
            rate_grace: Duration::from_secs(2),
            bytes_per_sec_min: ByteSize::from_kib(1),
        }
    }
}

impl Validate for BodyTimeouts {
    fn validate(&self, faults: &mut Faults) {
        let least = Duration::from_millis(1);
        faults.in_range("total", self.total, least..=Duration::from_mins(5));
        faults.in_range(
            "rate_grace",
            self.rate_grace,
            least..=Duration::from_mins(1),
        );
        faults.in_range(
            "bytes_per_sec_min",
            self.bytes_per_sec_min,
            ByteSize::from_bytes(1)..=ByteSize::from_mib(1),
        );
    }
}

impl BodyTimeouts {
    /// Returns how long after the start more bytes must have come, with
    /// `received` of them there.
    fn allowance(&self, received: usize) -> StdDuration {
        let rate = self.bytes_per_sec_min.bytes().max(1) as f64;
        // A body is at most a few MiB, so the quotient is small and finite.
        let bought = StdDuration::from_secs_f64(received as f64 / rate);
        self.total.get().min(self.rate_grace.get() + bought)
    }
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// It has more bytes than allowed.
    #[error("body has more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit_bytes: usize,
    },
    /// It came too slowly.
    #[error("body came too slowly: {received_bytes} bytes in {elapsed_ms} ms")]
    TooSlow {
        /// Bytes that had come, in bytes.
        received_bytes: usize,
        /// Time since reading began, in milliseconds.
        elapsed_ms: u64,
    },
    /// The connection or its framing broke.
    #[error("body broke off after {received_bytes} bytes")]
    Broken {
        /// Bytes that had come, in bytes.
        received_bytes: usize,
        /// What the transport said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Reads a body whole, enforcing its limits while it streams.
///
/// A declared length over `limit_bytes` is refused before a byte is read. A
/// body that has arrived with its head costs neither a copy nor a timer.
/// Trailers are dropped.
///
/// # Errors
/// See [`BodyError`]; what was read is dropped.
pub async fn read_body<B>(
    body: B,
    limit_bytes: usize,
    timeouts: BodyTimeouts,
) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let declared = body.size_hint();
    if declared.lower() > limit_bytes as u64 {
        return Err(BodyError::TooLarge { limit_bytes });
    }
    let mut body = std::pin::pin!(body);
    let start = Instant::now();
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    let mut received_bytes = 0_usize;
    loop {
        let until = start + timeouts.allowance(received_bytes);
        let Ok(next) = timeout_at(until, body.frame()).await else {
            return Err(BodyError::TooSlow {
                received_bytes,
                elapsed_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            });
        };
        let data = match next {
            None => break,
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => data,
                Err(_trailers) => continue,
            },
            Some(Err(error)) => {
                return Err(BodyError::Broken {
                    received_bytes,
                    source: error.into(),
                });
            }
        };
        if data.len() > limit_bytes - received_bytes {
            return Err(BodyError::TooLarge { limit_bytes });
        }
        received_bytes += data.len();
        if let Some(rest) = &mut rest {
            rest.extend_from_slice(&data);
        } else if first.is_empty() {
            first = data;
        } else {
            // The declared length is known to be within the limit, but not to
            // be true: reserve at most 64 KiB on a caller's word.
            let reserve = usize::try_from(declared.lower())
                .unwrap_or(limit_bytes)
                .min(64 << 10)
                .max(first.len() + data.len());
            let mut joined = BytesMut::with_capacity(reserve);
            joined.extend_from_slice(&first);
            joined.extend_from_slice(&data);
            rest = Some(joined);
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;

    use super::*;

    type Chunk = Result<Frame<Bytes>, std::io::Error>;

    fn chunk(text: &'static str) -> Chunk {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    fn brisk() -> BodyTimeouts {
        BodyTimeouts {
            total: Duration::from_millis(400),
            rate_grace: Duration::from_millis(50),
            bytes_per_sec_min: ByteSize::from_bytes(100),
        }
    }

    #[tokio::test]
    async fn a_body_of_exactly_the_limit_is_read_and_one_byte_more_is_not() {
        let body = Full::new(Bytes::from_static(b"12345"));
        assert_eq!(read_body(body.clone(), 5, brisk()).await.unwrap(), "12345");
        assert!(matches!(
            read_body(body, 4, brisk()).await,
            Err(BodyError::TooLarge { limit_bytes: 4 })
        ));
    }

    #[tokio::test]
    async fn the_limit_holds_without_a_declared_length() {
        let body = || StreamBody::new(stream::iter([chunk("abc"), chunk("def"), chunk("g")]));
        assert_eq!(read_body(body(), 7, brisk()).await.unwrap(), "abcdefg");
        assert!(matches!(
            read_body(body(), 6, brisk()).await,
            Err(BodyError::TooLarge { .. })
        ));
    }

    #[tokio::test]
    async fn a_body_that_stalls_is_too_slow() {
        let body = StreamBody::new(stream::iter([chunk("abc")]).chain(stream::pending()));
        assert!(matches!(
            read_body(body, 100, brisk()).await,
            Err(BodyError::TooSlow {
                received_bytes: 3,
                ..
            })
        ));
    }

    #[tokio::test]
    async fn bytes_buy_time_only_up_to_the_total() {
        assert_eq!(brisk().allowance(0).as_millis(), 50);
        assert_eq!(brisk().allowance(10).as_millis(), 150);
        assert_eq!(brisk().allowance(1_000_000).as_millis(), 400);
    }

    #[tokio::test]
    async fn a_broken_body_says_how_far_it_came() {
        let body = StreamBody::new(stream::iter([
            chunk("abc"),
            Err(std::io::ErrorKind::ConnectionReset.into()),
        ]));
        assert!(matches!(
            read_body(body, 100, brisk()).await,
            Err(BodyError::Broken {
                received_bytes: 3,
                ..
            })
        ));
    }
}
