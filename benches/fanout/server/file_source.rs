//! A platform whose only log is in files, which several gateways can read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_core::future::BoxFuture;
use leasemux::model::id::{Instance, LeaseId, Owner};
use leasemux::model::time::LogTime;
use leasemux::model::view::{LeaseView, ReplicaState, ReplicaView, Run, ServiceView};
use leasemux::platform::log_files::{self, FollowMode, LogFiles};
use leasemux::platform::{Error, Platform, RestartRequest, Tail, TailRequest};
use leasemux::sys::dir_watch::Notifier;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{SERVICE, source};
use crate::Result;

/// One replica whose log is in files, as on a node.
pub(crate) struct FileSource {
    lease: LeaseId,
    view: watch::Sender<Arc<LeaseView>>,
    notifier: Notifier,
    dir: PathBuf,
}

// === impl FileSource ===

impl FileSource {
    /// Creates the lease of `owner`, with the log files in `dir`.
    pub(crate) fn new(owner: &Owner, dir: &Path) -> Result<Self> {
        let lease = source::lease(owner)?;
        let run = Run {
            instance: Instance::new("bench", SERVICE, 0)?,
            started: LogTime::now(),
            end: None,
            log_is_gone: false,
            later_unknown: false,
        };
        let replica = ReplicaView {
            runs: vec![run],
            state: ReplicaState::Running,
            ready: true,
            ..ReplicaView::default()
        };
        let service = ServiceView { count: 1, replicas: [(0, replica)].into(), ..ServiceView::default() };
        let view = LeaseView { services: [(SERVICE.parse()?, service)].into(), ..LeaseView::default() };
        let view = watch::Sender::new(Arc::new(view));
        Ok(Self { lease, view, notifier: Notifier::start(), dir: dir.to_owned() })
    }

    pub(crate) fn lease(&self) -> &LeaseId {
        &self.lease
    }
}

impl fmt::Debug for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileSource").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Platform for FileSource {
    fn name(&self) -> &'static str {
        "files"
    }

    fn watch(
        &self,
        lease: &LeaseId,
    ) -> BoxFuture<'_, std::result::Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        let found = (*lease == self.lease).then(|| self.view.subscribe());
        Box::pin(std::future::ready(found.ok_or_else(|| Error::NotFound(lease.to_string()))))
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, std::result::Result<Tail, Error>> {
        let follow =
            if request.follow { FollowMode::UntilEnd(CancellationToken::new()) } else { FollowMode::No };
        let files = LogFiles { dir: self.dir.clone(), run_number: 0, needed_start: None };
        Box::pin(async move { log_files::open(&self.notifier, files, request.from, follow).await })
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, std::result::Result<(), Error>> {
        Box::pin(std::future::ready(Err(Error::Broken("the service cannot be restarted".to_owned()))))
    }
}
