//! What is trusted. A source of trust is asked by owner and serial number, as Akash's chain is.

use std::fmt;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::cert::Serial;
use crate::model::id::Owner;

/// A source of trust. One instance serves all calls.
pub trait Trust: fmt::Debug + Send + Sync + 'static {
    /// The certificate that is trusted under this owner and serial number, if one is.
    ///
    /// Only asked for certificates of good form. Nothing is lost if the future is dropped.
    ///
    /// # Errors
    /// [`Unavailable`] if that cannot be said just now. A source that is in doubt says so; it does not guess.
    fn certificate<'a>(
        &'a self,
        owner: &'a Owner,
        serial: &'a Serial,
    ) -> BoxFuture<'a, Result<Verdict, Unavailable>>;
}

/// A source's answer.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// This one is.
    Trusted(Trusted),
    /// None is.
    Unknown,
}

/// A certificate that is trusted, and the news should that change. Cloning is cheap.
#[derive(Clone)]
pub struct Trusted {
    der: Arc<[u8]>,
    withdrawn: CancellationToken,
}

/// The source cannot say at present; the same question may be answered later. Why is for the log, and the source has written
/// it there: once for an outage, not for each call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the trust source is unavailable")]
pub struct Unavailable;

// === impl Trusted ===

impl Trusted {
    /// Trust in the certificate of these bytes, from now until it is withdrawn.
    pub fn new(der: Arc<[u8]>) -> Self {
        Self { der, withdrawn: CancellationToken::new() }
    }

    /// All bytes of the certificate. Only one that equals it is trusted.
    pub fn der(&self) -> &Arc<[u8]> {
        &self.der
    }

    /// Cancelled when the trust is withdrawn, and for good.
    pub fn withdrawn(&self) -> &CancellationToken {
        &self.withdrawn
    }

    /// Ends the trust, for every clone.
    pub fn withdraw(&self) {
        self.withdrawn.cancel();
    }
}

/// Without the bytes.
impl fmt::Debug for Trusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trusted").field("withdrawn", &self.withdrawn.is_cancelled()).finish_non_exhaustive()
    }
}
