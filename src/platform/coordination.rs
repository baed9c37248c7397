//! LeaseLocks: which of several gateways may take replicas of a lease down.
//!
//! Who has the turn of a lease may write a *note* about it, which whoever has it next reads. That is what safety rests on, and no
//! clock: a note is written by nobody but the holder, and only over the one that the holder has read or written last. So who
//! writes down what is about to be taken down, before that is done, can count on the next holder to know of it.

use std::fmt;

use futures_core::future::BoxFuture;

use super::Error;
use crate::model::id::LeaseId;

/// Most bytes of a note: half of what Kubernetes takes as annotations of one object.
pub const NOTE_MAX_BYTES: usize = 128 * 1024;

/// Where the gateways of one platform agree on turns.
pub trait LeaseLocks: fmt::Debug + Send + Sync + 'static {
    /// The note about `lease`, whoever has the turn; empty if there is none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if it cannot be asked for now.
    fn payload(&self, lease: &LeaseId) -> BoxFuture<'static, Result<String, Error>>;

    /// Somebody who wants the turn of `lease`. Nothing is asked for yet. No more than one of them may be alive per lease and
    /// gateway. One that is dropped while it has the turn is taken for dead some time later, by the others.
    fn candidate(&self, lease: &LeaseId) -> Box<dyn LeaseLock>;
}

/// The wish for the turn of one lease, and the turn once it has come. Any of its futures may be dropped: nothing is lost but time.
pub trait LeaseLock: Send {
    /// Takes the turn if nobody has it, or tells who has. From the second time on it waits a little first.
    ///
    /// # Errors
    /// Nobody knows whose turn it is; if the error is retryable, that may be found out later.
    fn acquire_or_observe(&mut self) -> BoxFuture<'_, Result<LockState, Error>>;

    /// Writes the note, and holds on to the turn for another term. It is read by whoever has the turn next, if this resolves well.
    ///
    /// # Errors
    /// The turn is lost; the note may have been written or not.
    fn write_payload(&mut self, note: String) -> BoxFuture<'_, Result<(), Error>>;

    /// Holds on to the turn for as long as that works, and then says why it no longer does: the turn is lost.
    fn renew_until_lost(&mut self) -> BoxFuture<'_, Error>;

    /// Writes the note (an empty one need not be kept), and gives the turn back.
    ///
    /// # Errors
    /// The turn is given back or not; if not, it is over some time later.
    fn release(&mut self, note: String) -> BoxFuture<'_, Result<(), Error>>;
}

/// Whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockState {
    /// It is the turn of who looked; with the note of who had it before.
    Held(String),
    /// It is another's.
    Others {
        /// Their name, for the log.
        holder: String,
        /// What they have written last.
        note: String,
    },
}
