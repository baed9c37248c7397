//! The pods of one node, for a gateway that publishes their logs to other gateways and serves no tenants.
//!
//! It reads the same files as the [`node`](super::node) platform, but watches the node's pods and nothing
//! else.

use std::path::PathBuf;
use std::sync::Arc;

use futures_core::future::BoxFuture;
use tokio::sync::watch;

use super::kube::NodePods;
use super::node::open_files;
use super::{Error, Platform, RestartRequest, Tail, TailRequest};
use crate::model::id::{LeaseId, Replica};
use crate::model::view::LeaseView;
use crate::sys::dir_watch::Notifier;

/// The platform of a gateway that publishes the logs of its node's pods.
#[derive(Debug)]
pub struct NodeSource {
    pods: NodePods,
    notifier: Notifier,
    /// The kubelet's directory of pod logs.
    logs: PathBuf,
}

// === impl NodeSource ===

impl NodeSource {
    /// Creates the platform for pods whose logs are in this directory.
    pub fn new(pods: NodePods, notifier: Notifier, logs: PathBuf) -> Self {
        Self { pods, notifier, logs }
    }

    /// Returns the view of a replica whose pod has this name; `None` if the node does not run it.
    pub fn watch_pod(
        &self,
        lease: &LeaseId,
        replica: &Replica,
        pod: &str,
    ) -> Option<watch::Receiver<Arc<LeaseView>>> {
        self.pods.watch(lease, replica, pod)
    }
}

impl Platform for NodeSource {
    fn name(&self) -> &'static str {
        "node"
    }

    fn is_reachable(&self) -> bool {
        self.pods.is_reachable()
    }

    /// Leases are not served here.
    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(std::future::ready(Err(Error::NotFound(format!("lease {lease}")))))
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(async move {
            let located = self.pods.locate(&request)?;
            open_files(&self.notifier, &self.logs, located, request).await
        })
    }

    fn restart(&self, _: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Err(Error::ReadOnly)))
    }
}
