//! The id of a gateway on the bus.

use std::fmt;

use data_encoding::HEXLOWER;
use rand::RngExt as _;

/// Identifies a running gateway. Random, and new at each start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GatewayId(pub [u8; 16]);

// === impl GatewayId ===

impl GatewayId {
    /// Returns the id of a gateway that starts now.
    pub fn random() -> Self {
        Self(rand::rng().random())
    }
}

impl fmt::Display for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for GatewayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
