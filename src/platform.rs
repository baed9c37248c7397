//! Platforms: where services run and where their log lines come from.
//!
//! [`Platform::watch`] returns what runs under a lease, [`Platform::tail`] returns log lines, and
//! [`Platform::restart`] replaces a run by the next one. Dropping a returned watch or tail ends the work for
//! it.

mod batcher;
pub mod coordination;
pub mod cri;
pub mod kube;
pub mod local;
pub mod log_files;
pub mod node;
pub mod node_source;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use self::coordination::RestartLocks;
use crate::model::event::LeaseEvent;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::line::{LineBatch, SourceGap};
use crate::model::metrics::SourceError;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::LeaseView;

/// An environment that runs the services of leases. One instance serves all leases.
pub trait Platform: fmt::Debug + Send + Sync + 'static {
    /// Returns its name for log messages.
    fn name(&self) -> &'static str;

    /// Returns whether its views are current: it can be reached.
    fn is_reachable(&self) -> bool {
        true
    }

    /// Watches what runs under `lease`.
    ///
    /// The receiver holds the newest snapshot, which is complete. A subscriber may skip older ones. The last
    /// view of a lease that ends is marked as ended; a closed channel means the same.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the lease does not exist here.
    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>>;

    /// Opens the log of one instance.
    ///
    /// # Errors
    /// [`Error::NotFound`] if the log does not exist or was removed.
    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>>;

    /// Replaces a run by the next one: gracefully, by force after a grace period of the platform, and without
    /// back-off.
    ///
    /// Resolves when the restart has begun; the view shows its outcome. Idempotent per instance, so a call
    /// that was dropped, or whose result was lost, may be repeated.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the replica has a newer run than the caller knew of; nothing was done.
    /// [`Error::NotFound`] if the lease or replica does not exist. [`Error::ReadOnly`] if the platform restarts
    /// nothing.
    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>>;

    /// Stops the services, if they run as processes of this gateway; services in a cluster continue. Resolves
    /// when that is done. May be called again with a shorter grace period. Cancel safe: services stop
    /// nevertheless.
    fn stop(&self, _grace: Duration) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }

    /// Watches the events that the platform itself has of a lease, until the stream is dropped. `None` if the
    /// platform has no events. An endless stream; if it ends, the events are unavailable.
    fn events(&self, _lease: &LeaseId) -> Option<BoxStream<'static, NativeEvents>> {
        None
    }

    /// Returns where a run is, if it runs on a node of a cluster.
    fn placement(&self, _lease: &LeaseId, _instance: &Instance) -> Option<Placement> {
        None
    }

    /// Returns the locks that gateways serving the same leases take before a restart. `None` if there can be
    /// no other gateway.
    fn restart_locks(&self) -> Option<Arc<dyn RestartLocks>> {
        None
    }
}

/// Where a run is in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Namespace of its pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the pod's node.
    pub node: String,
    /// Whether this gateway is on that node, and reads its files.
    pub is_here: bool,
}

/// News about the events that a platform has of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NativeEvents {
    /// Existing events: first all of them, or the newest; later those that the stream has missed.
    Listed(Vec<LeaseEvent>),
    /// An event is new, or has happened again.
    Changed(Box<LeaseEvent>),
    /// The events cannot be read at present. A list follows when they can.
    Unavailable,
}

/// A run to replace by the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RestartRequest {
    /// The lease that the replica belongs to.
    pub lease: LeaseId,
    /// The replica whose run is replaced.
    pub replica: Replica,
    /// The newest run of the replica that the caller knows of; `None` if there was none. If it has ended, the
    /// restart removes what delays the next one (a back-off, an image that cannot be pulled).
    pub instance: Option<Instance>,
}

/// A log to read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TailRequest {
    /// The lease that the replica belongs to.
    pub lease: LeaseId,
    /// The replica that the run belongs to.
    pub replica: Replica,
    /// The run whose log is read.
    pub instance: Instance,
    /// Where reading starts.
    pub from: ReadFrom,
    /// With [`ReadFrom::After`]: the lines that follow the position, if they are known. A source that would
    /// have to search a whole log for the position may then search its last lines first.
    pub lines_after: Option<LinesAfter>,
    /// Time of the oldest line of the run that was read before, if one was. A log that begins later was
    /// rotated.
    pub oldest_read: Option<LogTime>,
    /// With [`ReadFrom::Start`]: whether the caller continues after an earlier run of the replica. If the
    /// source can tell that the first lines may have been rotated away, a gap comes first.
    pub is_next_run: bool,
    /// Whether to wait for further lines. If so, the stream ends with the run, after its last line. If not,
    /// it ends at the present end of the log.
    pub follow: bool,
}

/// Lines that follow a position, as far as they are known: there may be more by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinesAfter {
    /// Their number.
    pub count: u64,
    /// Time of the newest one.
    pub until: LogTime,
}

/// Where to start reading a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ReadFrom {
    /// At the oldest readable line.
    #[default]
    Start,
    /// At the last N complete lines of the merged output; an unfinished line follows them. `Last(0)` starts
    /// at the end.
    Last(u64),
    /// At the first line that is not older. A gap directly before it, whose lines may not be older either,
    /// comes first.
    Since(LogTime),
    /// Exactly after this position. If lines after it are gone, a [`TailItem::Gap`] comes first.
    After(Position),
}

/// An open read of a log. Dropping it ends the read.
pub struct Tail {
    /// The position before the first item. It gives cursors a position before the first line has arrived.
    pub start: Position,
    /// Whether `start` lies within an unfinished line: of standard output or an unknown stream, and of
    /// standard error.
    pub unfinished: [bool; 2],
    /// Lines and gaps with growing positions and no repeats. An error ends the stream; if it is retryable, a
    /// new tail [`ReadFrom::After`] the last position continues without loss.
    pub items: BoxStream<'static, Result<TailItem, Error>>,
}

/// An item read from a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TailItem {
    /// Available lines: at most [`READ_MAX_BYTES`](crate::model::limits::READ_MAX_BYTES) plus one further
    /// line or piece.
    Lines(LineBatch),
    /// Lines are missing here.
    Gap(SourceGap),
    /// The log cannot be followed at present and is polled every few seconds instead. Lines arrive later;
    /// none is missing here.
    FollowUnavailable,
    /// The log cannot be read since this time. The tail tries again by itself, so no line is missing here.
    Interrupted(LogTime),
    /// The log is read again.
    Resumed,
}

/// The error of a platform operation.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lease or log does not exist.
    #[error("not found: {0}")]
    NotFound(String),
    /// The object of the request has changed.
    #[error("conflict: {0}")]
    Conflict(String),
    /// A temporary failure; a retry may succeed.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// Invalid data was read.
    #[error("broken: {0}")]
    Broken(String),
    /// The platform reads services that another gateway runs.
    #[error("read-only: another gateway runs the services")]
    ReadOnly,
    /// An error of the operating system.
    #[error("{context}")]
    Io {
        /// The operation, with paths: for the log, not for callers.
        context: String,
        /// The operating system's error.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// Returns the views after the present one. A slow consumer receives only the newest.
pub(crate) fn changes(mut view: watch::Receiver<Arc<LeaseView>>) -> BoxStream<'static, Arc<LeaseView>> {
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
    pub(crate) fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { context: context.into(), source: Arc::new(source) }
    }

    /// Returns its label in metrics.
    pub(crate) const fn kind(&self) -> SourceError {
        match self {
            Self::NotFound(_) => SourceError::NotFound,
            Self::Conflict(_) => SourceError::Conflict,
            Self::Unavailable(_) => SourceError::Unavailable,
            Self::Broken(_) => SourceError::Broken,
            Self::ReadOnly => SourceError::ReadOnly,
            Self::Io { .. } => SourceError::Io,
        }
    }

    /// Whether a retry may succeed.
    pub(crate) fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Io { .. })
    }
}
