//! The generated protocol, and the descriptor set for reflection.

use super::id::LeaseId;
use super::time::LogTime;

pub use akash::market::v1 as market;
pub use akash::provider::lease::v1 as lease;

/// Nested as the packages are, since generated code names its neighbours so.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::disallowed_methods,
    reason = "generated code"
)]
mod akash {
    pub mod market {
        pub mod v1 {
            tonic::include_proto!("akash.market.v1");
        }
    }
    pub mod provider {
        pub mod lease {
            pub mod v1 {
                tonic::include_proto!("akash.provider.lease.v1");
            }
        }
    }
}

/// The descriptors of the whole protocol, encoded, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// A lease as messages name it.
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

/// An instant as messages have it.
impl From<LogTime> for prost_types::Timestamp {
    fn from(time: LogTime) -> Self {
        let (seconds, nanos) = time.parts();
        Self { seconds, nanos }
    }
}
