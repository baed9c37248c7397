//! The generated code of the protocol, and the descriptor set for reflection.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::id::LeaseId;
use super::time::LogTime;

pub(crate) use self::generated::exchange_api::leasemux::exchange::v1 as exchange;
pub use self::generated::lease_api::akash::market::v1 as market;
pub use self::generated::lease_api::akash::provider::lease::v1 as lease;
pub use self::generated::node_api::akash::cert::v1 as cert;
pub use self::generated::node_api::cosmos::auth::v1beta1 as auth;

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::disallowed_methods,
    reason = "generated code"
)]
mod generated {
    pub mod lease_api {
        include!(concat!(env!("OUT_DIR"), "/lease_api.rs"));
    }
    pub mod node_api {
        include!(concat!(env!("OUT_DIR"), "/node_api.rs"));
    }
    pub mod exchange_api {
        include!(concat!(env!("OUT_DIR"), "/exchange_api.rs"));
    }
}

/// The descriptors of the whole protocol, encoded, for gRPC reflection.
pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Bytes of the prefix of a gRPC message: the compression flag (1) and the length (4).
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
pub(crate) const PREFIX_BYTES: usize = 5;

/// Returns `message` as gRPC sends it: with its prefix, uncompressed.
pub fn framed(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
    out.put_u8(0);
    // No message of this program comes near 4 GiB.
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut out);
    out.freeze()
}

/// Takes the first message from the beginning of a stream of messages, without its prefix; `None` if it is
/// not complete.
pub(crate) fn unframed(stream: &mut BytesMut) -> Option<BytesMut> {
    let length = stream.get(1..PREFIX_BYTES)?.try_into().map(u32::from_be_bytes).ok()?;
    let end = PREFIX_BYTES + usize::try_from(length).ok()?;
    if stream.len() < end {
        return None;
    }
    stream.advance(PREFIX_BYTES);
    Some(stream.split_to(end - PREFIX_BYTES))
}

impl From<&LeaseId> for market::LeaseId {
    fn from(lease: &LeaseId) -> Self {
        Self {
            owner: lease.owner().to_string(),
            dseq: lease.dseq(),
            gseq: lease.gseq(),
            oseq: lease.oseq(),
            provider: lease.provider().to_string(),
            bseq: 0,
        }
    }
}

impl LogTime {
    /// Returns the time that `stamp` denotes, if it is in range.
    pub(crate) fn from_proto(stamp: &prost_types::Timestamp) -> Option<Self> {
        Self::from_parts(stamp.seconds, stamp.nanos)
    }
}

impl From<LogTime> for prost_types::Timestamp {
    fn from(time: LogTime) -> Self {
        let (seconds, nanos) = time.parts();
        Self { seconds, nanos }
    }
}
