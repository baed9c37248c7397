//! Request ids: a caller's own name for a call.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// An id that identifies repetitions of the same call. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

/// The error of an invalid request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {} visible ASCII characters", RequestId::MAX_BYTES)]
pub struct NoRequestId;

// === impl RequestId ===

impl RequestId {
    /// Maximum length: room for a UUID and a prefix.
    pub(crate) const MAX_BYTES: usize = 128;

    /// Returns a new, globally unique id.
    pub(crate) fn unique() -> Self {
        Self(uuid::Uuid::new_v4().to_string().into())
    }
}

impl FromStr for RequestId {
    type Err = NoRequestId;

    fn from_str(text: &str) -> Result<Self, NoRequestId> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if fits && visible { Ok(Self(text.into())) } else { Err(NoRequestId) }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
