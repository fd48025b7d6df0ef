//! The form in which a delivery lies in the spool: one version byte, then a `passline.v1.IngestDelivery`
//! with sequence 0 in protobuf encoding.
//!
//! A spool outlives releases, so a change of this form needs a new version byte, and every version ever
//! released stays readable (see the golden file under `tests/golden/`). Fields that are added to the message
//! need none.

use bytes::{BufMut, Bytes, BytesMut};
use pass_proto::v1;
use prost::Message;

/// The version this release writes.
pub const RECORD_VERSION: u8 = 1;

/// Room for everything in a record but the body and the facts: headers, path, verdict, trace; in bytes.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 48 << 10;

/// Why a record of the spool can't be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is not even a version byte.
    #[error("record is empty")]
    Empty,
    /// Another release wrote it.
    #[error("record has version {version}, this release reads {RECORD_VERSION}; use the release that wrote it")]
    Version {
        /// The record's version.
        version: u8,
    },
    /// The bytes are not the message.
    #[error("record is no delivery")]
    Malformed(#[from] prost::DecodeError),
}

/// The largest record that a delivery with a body of up to `body_bytes_max` may become, in bytes.
///
/// Below pass-state's limit for one message (twice the body and 64 KiB), so that whatever is stored can be
/// forwarded.
#[must_use]
pub fn record_bytes_max(body_bytes_max: usize) -> usize {
    body_bytes_max.saturating_mul(2).saturating_add(RECORD_OVERHEAD_BYTES)
}

/// Writes a record.
#[must_use]
pub fn encode(delivery: &v1::IngestDelivery) -> Bytes {
    let mut record = BytesMut::with_capacity(1 + delivery.encoded_len());
    record.put_u8(RECORD_VERSION);
    delivery.encode(&mut record).expect("the buffer grows as needed");
    record.freeze()
}

/// Reads a record; the body shares the record's buffer.
///
/// # Errors
/// If the record is of another version or not a delivery.
pub fn decode(mut record: Bytes) -> Result<v1::IngestDelivery, RecordError> {
    if record.is_empty() {
        return Err(RecordError::Empty);
    }
    let message = record.split_off(1);
    match record[0] {
        RECORD_VERSION => Ok(v1::IngestDelivery::decode(message)?),
        version => Err(RecordError::Version { version }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_another_version_names_both_versions() {
        let error = decode(Bytes::from_static(&[9, 0])).unwrap_err();
        assert!(error.to_string().contains("version 9, this release reads 1"), "{error}");
        assert!(matches!(decode(Bytes::new()), Err(RecordError::Empty)));
        assert!(matches!(decode(Bytes::from_static(&[1, 0xff])), Err(RecordError::Malformed(_))));
    }

    #[test]
    fn a_record_round_trips_and_shares_its_body() {
        let delivery = v1::IngestDelivery { source: "acme".into(), body: Bytes::from_static(b"{}"), ..Default::default() };
        let record = encode(&delivery);
        let range = record.as_ptr_range();
        let read = decode(record.clone()).unwrap();
        assert_eq!(read, delivery);
        assert!(range.contains(&read.body.as_ptr()));
    }
}
