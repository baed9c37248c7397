//! Encodes and decodes messages: a clear header, then protobuf. Pure.
//!
//! Input from the bus is hostile. Its length is checked before anything is allocated for it, and numbers,
//! lines and ends are checked against each other.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use prost::Message as _;

use super::gateway_id::GatewayId;
use super::messages::{Envelope, Frame};
use crate::model::proto::exchange as proto;

mod frame;
mod kind;

/// Version of the format. Raised when a reader of the version before cannot ignore a change.
const VERSION: u8 = 1;

/// Identifies the key that seals the body. 0: the body is not sealed.
const NO_KEY: u8 = 0;

/// Version (1), key (1), sender (16) and counter (8).
const HEADER_BYTES: usize = 26;

/// Maximum size of a frame: the lines of a chunk (16,000 bytes), of each of 512 lines its length (3), time (10)
/// and stream (1), and 1,200 bytes for the rest: instance (253), positions, totals.
pub const FRAME_MAX_BYTES: usize = 16_000 + 512 * 14 + 1_200;

/// Maximum size of the frames in one answer. An answer is read at once, so a larger one would delay others on
/// the same connection; a smaller one would need more turns to repair a long hole.
pub const FETCHED_MAX_BYTES: usize = 256 * 1024;

/// Maximum frames in one answer: as many entries as are in the part of the size above, if they are short.
pub const FETCHED_MAX_FRAMES: usize = 512;

/// Maximum size of a message, with its header: an answer with frames.
pub const MESSAGE_MAX_BYTES: usize = HEADER_BYTES + FETCHED_MAX_BYTES + FRAME_MAX_BYTES;

/// Maximum size of a message that has no list of frames.
const OTHER_MAX_BYTES: usize = HEADER_BYTES + FRAME_MAX_BYTES + 16;

/// First byte of a body that is an answer with frames: the tag of its field.
const FETCHED_TAG: u8 = 10 << 3 | 2;

/// Why a message cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// It is longer than any valid message.
    #[error("longer than any message")]
    TooLong,
    /// It ends within its header.
    #[error("shorter than a header")]
    TooShort,
    /// It has a version that this gateway does not know.
    #[error("unknown version {0}")]
    Version(u8),
    /// It is sealed with a key that this gateway does not have.
    #[error("unknown key {0}")]
    Key(u8),
    /// Its body is no protobuf message.
    #[error("malformed protobuf")]
    Protobuf,
    /// A field is missing, or contradicts others.
    #[error("invalid {0}")]
    Field(&'static str),
}

/// Encodes a message.
pub fn encode(envelope: &Envelope) -> Bytes {
    let body = proto::Body { kind: Some(kind::to_proto(&envelope.message)) };
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body.encoded_len());
    out.put_slice(&[VERSION, NO_KEY]);
    out.put_slice(&envelope.sender.0);
    out.put_u64(envelope.counter);
    body.encode_raw(&mut out);
    out.freeze()
}

/// Decodes a message. Lines share the memory of `input`.
pub fn decode(mut input: Bytes) -> Result<Envelope, DecodeError> {
    if input.len() < HEADER_BYTES {
        return Err(DecodeError::TooShort);
    }
    let is_fetched = input.get(HEADER_BYTES) == Some(&FETCHED_TAG);
    if input.len() > if is_fetched { MESSAGE_MAX_BYTES } else { OTHER_MAX_BYTES } {
        return Err(DecodeError::TooLong);
    }
    let (version, key) = (input.get_u8(), input.get_u8());
    if version != VERSION {
        return Err(DecodeError::Version(version));
    }
    if key != NO_KEY {
        return Err(DecodeError::Key(key));
    }
    let mut sender = GatewayId([0; 16]);
    input.copy_to_slice(&mut sender.0);
    let counter = input.get_u64();
    let body = proto::Body::decode(input).map_err(|_| DecodeError::Protobuf)?;
    let message = kind::from_proto(body.kind.ok_or(DecodeError::Field("kind"))?)?;
    Ok(Envelope { sender, counter, message })
}

/// Returns the frames at the beginning of `frames` that fit into one answer: at least one.
pub fn fitting(frames: impl Iterator<Item = Frame>) -> Vec<Frame> {
    let mut bytes = 0;
    let fits = |frame: &Frame| {
        let before = bytes;
        bytes += frame::to_proto(frame).encoded_len() + prost::length_delimiter_len(FRAME_MAX_BYTES);
        before == 0 || bytes <= FETCHED_MAX_BYTES
    };
    frames.take(FETCHED_MAX_FRAMES).take_while(fits).collect()
}

/// Returns a field that must be present.
fn required<T>(field: Option<T>, name: &'static str) -> Result<T, DecodeError> {
    field.ok_or(DecodeError::Field(name))
}

/// Returns a number that is below 2^60: gateways count on from it, and the sum must not overflow.
fn countable(number: u64, name: &'static str) -> Result<u64, DecodeError> {
    if number < 1 << 60 { Ok(number) } else { Err(DecodeError::Field(name)) }
}

/// Takes a message with its length before it from the beginning of `input`.
fn take_delimited(input: &mut Bytes) -> Result<Bytes, DecodeError> {
    let length = prost::decode_length_delimiter(&mut *input).map_err(|_| DecodeError::Protobuf)?;
    if length > FRAME_MAX_BYTES || length > input.len() {
        return Err(DecodeError::Field("frames"));
    }
    Ok(input.split_to(length))
}

#[cfg(test)]
mod tests;
