//! Locks among gateways: one per lease. Only the holder may restart replicas of the lease.
//!
//! The lock carries a *payload* that the next holder reads. Safety rests on the payload and not on clocks:
//! only the holder writes it, by compare-and-swap against the version that it last read or wrote. A holder
//! that records a restart before it orders it can therefore rely on the next holder to know of it.

use std::fmt;

use futures_core::future::BoxFuture;

use super::Error;
use crate::model::id::LeaseId;

/// Longest payload: half of the size limit that Kubernetes sets on the annotations of one object.
pub(crate) const PAYLOAD_MAX_BYTES: usize = 128 * 1024;

/// The locks of all leases of one platform.
pub trait RestartLocks: fmt::Debug + Send + Sync + 'static {
    /// Reads the payload of `lease`'s lock, held or not. Empty if there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it cannot be read now.
    fn payload(&self, lease: &LeaseId) -> BoxFuture<'static, Result<String, Error>>;

    /// Returns a candidate for `lease`'s lock, without any request. At most one candidate per lease and
    /// gateway may exist. If it is dropped while it holds the lock, the lock expires some time later.
    fn candidate(&self, lease: &LeaseId) -> Box<dyn LockCandidate>;
}

/// A candidate for the lock of one lease, and its holder once acquired. All futures are cancel safe.
pub trait LockCandidate: Send {
    /// Acquires the lock if it is free, or returns its holder. From the second call on, waits for a short
    /// time first.
    ///
    /// # Errors
    /// The lock's state is unknown. Retryable errors may pass.
    fn acquire_or_observe(&mut self) -> BoxFuture<'_, Result<LockState, Error>>;

    /// Writes the payload and renews the lock. On success the next holder reads this payload.
    ///
    /// # Errors
    /// The lock is lost. The payload may or may not have been written.
    fn write_payload(&mut self, payload: String) -> BoxFuture<'_, Result<(), Error>>;

    /// Renews the lock until that fails. Returns why the lock is lost.
    fn renew_until_lost(&mut self) -> BoxFuture<'_, Error>;

    /// Writes the payload and releases the lock. An empty payload may be deleted.
    ///
    /// # Errors
    /// The lock may not be released; it expires then.
    fn release(&mut self, payload: String) -> BoxFuture<'_, Result<(), Error>>;
}

/// State of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockState {
    /// This candidate holds the lock. Contains the previous holder's payload.
    Held(String),
    /// Another gateway holds the lock.
    HeldByOther {
        /// Name of the holder, for the log.
        holder: String,
        /// The payload as last written.
        payload: String,
    },
}
