//! One node of a cluster: the [`kube`](super::kube) platform, but logs of pods on this node are read from its
//! `/var/log/pods`, without load on the API server and the kubelet.
//!
//! Positions depend on the lines alone, so cursors are valid for both sources. The files include rotated
//! ones, which the API does not serve.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::{BoxStream, Stream};
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::coordination::RestartLocks;
use super::cri::path::PodDir;
use super::kube::{KubePlatform, Located};
use super::log_files::{self, FollowMode, LogFiles, NeededStart};
use super::{Error, NativeEvents, Placement, Platform, RestartRequest, Tail, TailItem, TailRequest};
use crate::model::id::{Instance, LeaseId};
use crate::model::line::{GapCause, SourceGap};
use crate::model::position::Position;
use crate::model::view::LeaseView;
use crate::sys::dir_watch::Notifier;

/// How long to wait for further output after the end of a run. Runtimes should write everything before they
/// report the end; this is for those that do not.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// Longest wait for the removal of a log whose pod was removed before its kubelet reported the end: deleted
/// by force, a pod prints until its container has ended. The grace period is 30 s by default. Then a gap says
/// that the container may have printed more.
const UNREPORTED_END_MAX: Duration = Duration::from_secs(35);

/// The platform of a gateway that runs on a node of the cluster.
#[derive(Debug)]
pub struct NodePlatform {
    kube: Arc<KubePlatform>,
    notifier: Notifier,
    /// The node's name.
    node: String,
    /// The kubelet's directory of pod logs.
    logs: PathBuf,
}

/// The items of a log that is followed until its run ends.
struct UntilEnd {
    items: BoxStream<'static, Result<TailItem, Error>>,
    /// After the last item.
    at: Position,
    /// Whether the end of the run was not known for too long. `None` once that was reported.
    gave_up: Option<Arc<AtomicBool>>,
    _owned: AbortOnDropHandle<()>,
}

// === impl NodePlatform ===

impl NodePlatform {
    /// Creates the platform for the node with this name and pod log directory.
    pub fn new(kube: Arc<KubePlatform>, notifier: Notifier, node: String, logs: PathBuf) -> Self {
        Self { kube, notifier, node, logs }
    }

    async fn open(&self, request: TailRequest) -> Result<Tail, Error> {
        let located = self.kube.locate(&request)?;
        if located.node.as_deref() != Some(self.node.as_str()) {
            return self.kube.tail(request).await;
        }
        open_files(&self.notifier, &self.logs, located, request).await
    }
}

// === impl UntilEnd ===

impl UntilEnd {
    fn into_stream(self) -> impl Stream<Item = Result<TailItem, Error>> {
        futures_util::stream::unfold(self, |mut log| async {
            let item = match log.items.next().await {
                Some(item) => item,
                None => Ok(log.last_gap()?),
            };
            match &item {
                Ok(TailItem::Lines(batch)) => log.at = batch.lines.last().map_or(log.at, |line| line.after),
                Ok(TailItem::Gap(gap)) => log.at = gap.after,
                _ => {}
            }
            Some((item, log))
        })
    }

    /// Returns a gap if the container may print on after the last item.
    fn last_gap(&mut self) -> Option<TailItem> {
        let gave_up = self.gave_up.take()?.load(Ordering::Relaxed);
        let gap = SourceGap { cause: GapCause::Limit, lines: 0, bytes: 0, exact: false, after: self.at };
        gave_up.then_some(TailItem::Gap(gap))
    }
}

impl Platform for NodePlatform {
    fn name(&self) -> &'static str {
        "node"
    }

    fn is_reachable(&self) -> bool {
        self.kube.is_reachable()
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        self.kube.watch(lease)
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(self.open(request))
    }

    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        self.kube.restart(request)
    }

    fn events(&self, lease: &LeaseId) -> Option<BoxStream<'static, NativeEvents>> {
        self.kube.events(lease)
    }

    fn placement(&self, lease: &LeaseId, instance: &Instance) -> Option<Placement> {
        let placement = self.kube.placement(lease, instance)?;
        Some(Placement { is_here: placement.node == self.node, ..placement })
    }

    fn restart_locks(&self) -> Option<Arc<dyn RestartLocks>> {
        self.kube.restart_locks()
    }
}

/// Opens the log of a run on this node.
pub(super) async fn open_files(
    notifier: &Notifier,
    logs: &Path,
    located: Located,
    request: TailRequest,
) -> Result<Tail, Error> {
    let Located { namespace, pod, started, mut run, .. } = located;
    let (uid, container, run_number) = request.instance.parts();
    let dir = PodDir { namespace: &namespace, pod: &pod, uid }.container(logs, container);
    let needed_start = request.is_next_run.then_some(NeededStart { started, kept_files: 0 });
    let files = LogFiles { dir, run_number, needed_start };
    if run.has_ended() || !request.follow {
        // The unfinished last line of an ended run is complete.
        let end = CancellationToken::new();
        end.cancel();
        let follow = if run.has_ended() { FollowMode::UntilEnd(end) } else { FollowMode::No };
        return log_files::open(notifier, files, request.from, follow).await;
    }
    let end = CancellationToken::new();
    let (on_end, gave_up) = (end.clone(), Arc::<AtomicBool>::default());
    let gives_up = Arc::clone(&gave_up);
    let (on_removal, log) = (notifier.clone(), files.clone());
    #[expect(clippy::disallowed_methods, reason = "owned: aborted when the stream is dropped")]
    let watch_end = AbortOnDropHandle::new(tokio::spawn(async move {
        run.ended().await;
        if run.is_end_unreported() {
            let removed = log_files::removed(&on_removal, &log);
            let waited = tokio::time::timeout(UNREPORTED_END_MAX, removed).await;
            gives_up.store(waited.is_err(), Ordering::Relaxed);
        }
        tokio::time::sleep(OUTPUT_GRACE).await;
        on_end.cancel();
    }));
    let mut tail = log_files::open(notifier, files, request.from, FollowMode::UntilEnd(end)).await?;
    let items = UntilEnd { items: tail.items, at: tail.start, gave_up: Some(gave_up), _owned: watch_end };
    tail.items = items.into_stream().boxed();
    Ok(tail)
}
