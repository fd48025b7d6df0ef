//! Writes messages in protobuf's encoding from borrowed parts.
//!
//! The derived messages own their parts, so that encoding one means cloning an event first; that was a
//! fifth of the time of an append. Reading stays derived, and a test holds every blob written here against
//! what the derived message writes.

use std::collections::BTreeMap;

use pass_domain::Timestamp;
use pass_domain::time::to_parts;
use prost::encoding::{WireType, encode_key, encode_varint};

/// Room for most blobs.
const BLOB_BYTES: usize = 512;

/// A message being written, fields in the order of their tags. As the derived messages do, it leaves out
/// empty and zero values unless a method says otherwise.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty message.
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::with_capacity(BLOB_BYTES),
        }
    }

    /// An empty message after a version byte.
    pub(super) fn versioned(version: u8) -> Self {
        let mut writer = Self::new();
        writer.bytes.push(version);
        writer
    }

    /// What was written.
    pub(super) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// A text or bytes.
    pub(super) fn bytes(&mut self, tag: u32, bytes: impl AsRef<[u8]>) {
        if !bytes.as_ref().is_empty() {
            self.present(tag, bytes);
        }
    }

    /// A text or bytes that may be empty: an optional one that is there.
    pub(super) fn present(&mut self, tag: u32, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        encode_key(tag, WireType::LengthDelimited, &mut self.bytes);
        encode_varint(bytes.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(bytes);
    }

    /// Texts.
    pub(super) fn each(&mut self, tag: u32, texts: impl IntoIterator<Item = impl AsRef<[u8]>>) {
        for text in texts {
            self.present(tag, text);
        }
    }

    /// A number without a sign, or a flag.
    pub(super) fn unsigned(&mut self, tag: u32, value: impl Into<u64>) {
        let value = value.into();
        if value != 0 {
            encode_key(tag, WireType::Varint, &mut self.bytes);
            encode_varint(value, &mut self.bytes);
        }
    }

    /// A number that is hardly ever negative (`int32`).
    pub(super) fn int(&mut self, tag: u32, value: i32) {
        self.unsigned(tag, i64::from(value).cast_unsigned());
    }

    /// An optional `int32` or flag that is there.
    pub(super) fn present_int(&mut self, tag: u32, value: i32) {
        encode_key(tag, WireType::Varint, &mut self.bytes);
        encode_varint(i64::from(value).cast_unsigned(), &mut self.bytes);
    }

    /// An optional `sint64` that is there.
    pub(super) fn present_signed(&mut self, tag: u32, value: i64) {
        encode_key(tag, WireType::Varint, &mut self.bytes);
        encode_varint(
            ((value << 1) ^ (value >> 63)).cast_unsigned(),
            &mut self.bytes,
        );
    }

    /// Sixty-four bits.
    pub(super) fn fixed(&mut self, tag: u32, value: u64) {
        if value != 0 {
            encode_key(tag, WireType::SixtyFourBit, &mut self.bytes);
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// A message, even if it is empty.
    pub(super) fn message(&mut self, tag: u32, write: impl FnOnce(&mut Self)) {
        encode_key(tag, WireType::LengthDelimited, &mut self.bytes);
        let at = self.bytes.len();
        self.bytes.push(0);
        write(self);
        let length = self.bytes.len() - at - 1;
        match u8::try_from(length) {
            Ok(short) if short < 0x80 => self.bytes[at] = short,
            _ => {
                let mut long = Vec::with_capacity(5);
                encode_varint(length as u64, &mut long);
                self.bytes.splice(at..=at, long);
            }
        }
    }

    /// Texts by name.
    pub(super) fn map(&mut self, tag: u32, entries: &BTreeMap<String, String>) {
        for (name, value) in entries {
            self.message(tag, |entry| {
                entry.bytes(1, name);
                entry.bytes(2, value);
            });
        }
    }

    /// An instant.
    pub(super) fn time(&mut self, tag: u32, time: Timestamp) {
        let (seconds, nanos) = to_parts(time);
        self.message(tag, |message| {
            if seconds != 0 {
                message.present_signed(1, seconds);
            }
            message.int(2, nanos);
        });
    }

    /// An instant, if there is one.
    pub(super) fn time_optional(&mut self, tag: u32, time: Option<Timestamp>) {
        if let Some(time) = time {
            self.time(tag, time);
        }
    }
}
