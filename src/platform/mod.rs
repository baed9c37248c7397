//! Where services run and where their lines come from.
//!
//! A platform has three verbs: [`Platform::watch`] tells what runs, [`Platform::tail`] delivers lines, [`Platform::restart`] ends a
//! run so that the next one begins. Dropping what the first two return stops the work behind it.

mod batcher;
pub mod coordination;
pub mod cri;
pub mod kube;
pub mod local;
pub mod node;
pub mod tail;

use std::fmt;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use self::coordination::LeaseLocks;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::line::{LineBatch, SourceGap};
use crate::model::metrics::SourceError;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::LeaseView;

/// A place where the services of leases run. One instance serves all leases.
pub trait Platform: fmt::Debug + Send + Sync + 'static {
    /// One word for it, for the log.
    fn name(&self) -> &'static str;

    /// What runs under `lease`, now and from now on.
    ///
    /// The receiver holds a whole snapshot at any time, so nobody can miss a change. A lease that ends says so in its last
    /// view; a closed channel means the same.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no such lease here.
    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>>;

    /// Reads the log of one instance. See [`TailRequest`] and [`Tail`].
    ///
    /// # Errors
    /// [`Error::NotFound`] if the log of that instance is not (or no longer) readable.
    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>>;

    /// Has a run make way for the next one: politely, and after a grace of the platform's own by force; and without the wait that
    /// comes after a crash. See [`RestartRequest`].
    ///
    /// Resolves as soon as that is under way; what comes of it is in the view. Asking again for the same instance changes
    /// nothing, so a call that was dropped, or whose answer was lost, may be repeated.
    ///
    /// # Errors
    /// [`Error::Conflict`] if another run has begun in that slot than the caller knew of: nothing was done. [`Error::NotFound`] if
    /// there is no such lease or slot.
    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>>;

    /// Where gateways that serve the same leases agree on who restarts replicas of which; `None` if there is no other gateway.
    fn lease_locks(&self) -> Option<Arc<dyn LeaseLocks>> {
        None
    }
}

/// Which run is to make way for the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartRequest {
    /// The lease.
    pub lease: LeaseId,
    /// The slot.
    pub replica: Replica,
    /// The newest run of the slot that the caller knows of, going on or ended; `None` if the slot has had none. If it has ended,
    /// it is what keeps the next one from beginning (a back-off, an image that cannot be had) that makes way.
    pub instance: Option<Instance>,
}

/// Which log to read, from where, and whether to stay.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TailRequest {
    /// The lease.
    pub lease: LeaseId,
    /// The slot.
    pub replica: Replica,
    /// The run whose log it is.
    pub instance: Instance,
    /// Where to begin.
    pub from: ReadFrom,
    /// Whether to wait for further lines. If so the stream ends when the run has ended and all its lines were delivered; if
    /// not, it ends where the log ends when it gets there.
    pub follow: bool,
}

/// Where in a log to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReadFrom {
    /// At the oldest line that can be read.
    Start,
    /// At the last so many finished lines of the merged output, and an unfinished one behind them; 0 = behind everything.
    Last(u64),
    /// At the first line that is not older than this. What is missing directly before it, and may not be older, is told first.
    Since(LogTime),
    /// Exactly behind this position. Should lines behind it be gone, a [`TailItem::Gap`] comes first.
    After(Position),
}

/// An open log.
pub struct Tail {
    /// The position before the first line that will be delivered: with it, lines and cursors fit together even before the
    /// first line has come.
    pub start: Position,
    /// Whether a line of standard output (or of a stream that is not known) and one of standard error have begun before and not ended.
    /// Known of a tail that begins at the end of a log.
    pub unfinished: [bool; 2],
    /// What is in it. Positions grow; nothing is repeated; what is missing is an item of its own. An error ends the stream;
    /// if it is retryable, a new tail [`ReadFrom::After`] the last position goes on without loss.
    pub items: BoxStream<'static, Result<TailItem, Error>>,
}

/// Something read from a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TailItem {
    /// Lines, as many as were ready (at most [`READ_MAX_BYTES`](crate::model::limits::READ_MAX_BYTES) and one line).
    Lines(LineBatch),
    /// Lines that are missing at this place.
    Gap(SourceGap),
    /// The log cannot be followed at present. It is read every few seconds instead: lines come later, and none is missing here.
    FollowUnavailable,
}

/// Why a platform could not do as it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such lease, or no such log.
    #[error("not found: {0}")]
    NotFound(String),
    /// What was asked for is about something that has changed since.
    #[error("conflict: {0}")]
    Conflict(String),
    /// It did not work this time; it may the next.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Something is wrong with what was read.
    #[error("broken: {0}")]
    Broken(String),
    /// The operating system refused.
    #[error("{context}")]
    Io {
        /// What was tried, with paths: for the log, not for callers.
        context: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// Each view after the present one, as long as there are any. Whoever asks late is told the newest, and nothing of those before.
pub fn changes(mut view: watch::Receiver<Arc<LeaseView>>) -> BoxStream<'static, Arc<LeaseView>> {
    view.mark_unchanged();
    let views = futures_util::stream::unfold(view, |mut view| async {
        view.changed().await.ok()?;
        let newest = Arc::clone(&view.borrow_and_update());
        Some((newest, view))
    });
    views.boxed()
}

// === impl Tail ===

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("start", &self.start).finish_non_exhaustive()
    }
}

// === impl Error ===

impl Error {
    /// An input or output error, with what was tried.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { context: context.into(), source }
    }

    /// What it is counted as.
    pub const fn kind(&self) -> SourceError {
        match self {
            Self::NotFound(_) => SourceError::NotFound,
            Self::Conflict(_) => SourceError::Conflict,
            Self::Unavailable(_) => SourceError::Unavailable,
            Self::Broken(_) => SourceError::Broken,
            Self::Io { .. } => SourceError::Io,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Io { .. })
    }
}
