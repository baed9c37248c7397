//! One node of a cluster: what runs is told by [`kube`](super::kube), and so are lines of pods elsewhere; those of pods on this node are
//! read from its `/var/log/pods`, without any load on the API server or the kubelet.
//!
//! Positions follow from the lines alone, so that a cursor of one reader is one of the other. Files hold more than the API serves:
//! rotated ones too.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_util::StreamExt as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::coordination::LeaseLocks;
use super::cri::path::PodDir;
use super::kube::{KubePlatform, Located};
use super::tail::{self, FollowMode, LogFiles};
use super::{Error, Platform, RestartRequest, Tail, TailRequest};
use crate::model::id::LeaseId;
use crate::model::view::LeaseView;
use crate::sys::notify::Notifier;

/// How long after a run is known to have ended its file is waited on: runtimes write what is left before they say so, and this is for
/// those that do not.
const WRITTEN_AFTER: Duration = Duration::from_millis(500);

/// See above.
#[derive(Debug)]
pub struct NodePlatform {
    kube: Arc<KubePlatform>,
    notifier: Notifier,
    /// The node's name.
    node: String,
    /// Where its kubelet has the logs of its pods.
    logs: PathBuf,
}

// === impl NodePlatform ===

impl NodePlatform {
    /// On the node of this name, whose pods' logs are below `logs`.
    pub fn new(kube: Arc<KubePlatform>, notifier: Notifier, node: String, logs: PathBuf) -> Self {
        Self { kube, notifier, node, logs }
    }

    async fn open(&self, request: TailRequest) -> Result<Tail, Error> {
        let Located { namespace, pod, node, mut run, .. } = self.kube.locate(&request)?;
        if node.as_deref() != Some(self.node.as_str()) {
            return self.kube.tail(request).await;
        }
        let (uid, container, restarts) = request.instance.parts();
        let dir = PodDir { namespace: &namespace, pod: &pod, uid }.container(&self.logs, container);
        let files = LogFiles { dir, restarts };
        if run.has_ended() || !request.follow {
            // Of a run that has ended the unfinished last line is to be had as well.
            let end = CancellationToken::new();
            end.cancel();
            let follow = if run.has_ended() { FollowMode::UntilEnd(end) } else { FollowMode::No };
            return tail::open(&self.notifier, files, request.from, follow).await;
        }
        let end = CancellationToken::new();
        let ends = end.clone();
        #[expect(clippy::disallowed_methods, reason = "owned: the stream aborts it")]
        let watching = AbortOnDropHandle::new(tokio::spawn(async move {
            run.ended().await;
            tokio::time::sleep(WRITTEN_AFTER).await;
            ends.cancel();
        }));
        let Tail { start, unfinished, items } =
            tail::open(&self.notifier, files, request.from, FollowMode::UntilEnd(end)).await?;
        let items = items.map(move |item| {
            let _owned = &watching;
            item
        });
        Ok(Tail { start, unfinished, items: items.boxed() })
    }
}

impl Platform for NodePlatform {
    fn name(&self) -> &'static str {
        "node"
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

    fn lease_locks(&self) -> Option<Arc<dyn LeaseLocks>> {
        self.kube.lease_locks()
    }
}
