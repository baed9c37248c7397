//! Kubernetes, as Akash providers use it: leases are namespaces, services are deployments and stateful sets,
//! replicas are pods.
//!
//! One set of watches over the whole cluster feeds the lease views (`watches`, `store`, `view`).
//! `replica_index` decides which pod is which replica. Lines come through the API (`log`): live lines once
//! per replica, and each backfill by its own request, except that equal reads without follow share one. A
//! restart deletes a pod. `docs/KUBERNETES.md` lists the pitfalls and how each is handled.

mod api;
mod client;
mod coordination;
mod events;
mod freshness;
mod log;
mod names;
mod namespace;
mod node_pods;
mod objects;
mod open_limiter;
mod permissions;
mod replica_index;
mod singleflight;
mod start;
mod store;
mod view;
mod watch_backoff;
mod watches;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use http::Uri;
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::Connection;
use kube::Client;
use rand::RngExt as _;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::{BoxError, Service};

pub use self::client::{CheckScope, check};
pub use self::coordination::KubeRestartLocks;
use self::events::EventWatches;
use self::freshness::Freshness;
use self::log::{PodLog, RunWatch};
use self::namespace::{BUILT_IN, PendingIndexWrite};
pub use self::node_pods::NodePods;
use self::open_limiter::OpenLimiter;
use self::singleflight::SharedReads;
use self::store::Store;
use self::watches::Watch;
use super::coordination::RestartLocks;
use super::{Error, NativeEvents, Placement, Platform, RestartRequest, Tail, TailRequest};
use crate::model::id::{Address, Instance, LeaseId};
use crate::model::label::LabelValue as _;
use crate::model::metrics::Metrics;
use crate::model::metrics::labels::Watched;
use crate::model::time::LogTime;
use crate::model::view::LeaseView;

/// Length of the queue of pods whose index is to be written.
const PENDING_WRITES_MAX: usize = 256;

/// Interval at which failed writes of indices are retried.
const REWRITE_INTERVAL: Duration = Duration::from_secs(60);

/// Interval of checks for pods that were hidden for long enough.
const SHOW_INTERVAL: Duration = Duration::from_secs(1);

/// Interval at which expired pods and unused views are removed.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(5);

/// Interval of checks for expired lock payloads.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Settings of the Kubernetes platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeConfig {
    /// The cluster.
    pub cluster: ClusterAccess,
    /// The provider whose leases are served.
    pub provider: Address,
    /// The provider's public host name, at which node ports are reached.
    pub hostname: String,
}

/// How to reach a cluster, and the namespaces in which permissions are needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterAccess {
    /// The kubeconfig; `None` = the service account of the pod that this program runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig; `None` = its current one.
    pub context: Option<String>,
    /// Namespace of the provider's own resources, such as host names.
    pub manifest_namespace: String,
    /// Namespace of the restart locks; `None` = that of the service account or of the kubeconfig's context.
    pub coordination_namespace: Option<String>,
}

/// The leases of a provider's cluster. Dropping it ends the watches.
pub struct KubePlatform {
    client: Client,
    provider: Address,
    store: Store,
    limiter: OpenLimiter,
    reads: SharedReads,
    locks: KubeRestartLocks,
    events: EventWatches,
    _tasks: JoinSet<()>,
}

/// The location of a run.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) namespace: String,
    pub(super) pod: String,
    pub(super) node: Option<String>,
    pub(super) started: LogTime,
    pub(super) run: RunWatch,
}

// === impl KubePlatform ===

impl KubePlatform {
    /// Connects, checks the permissions, and waits until all kinds have been listed. Retries and logs while
    /// the API server cannot be reached.
    ///
    /// # Errors
    /// If the configuration is unusable, or permissions are missing: the error names all of them.
    pub async fn start(config: &KubeConfig, metrics: &Metrics) -> Result<Arc<Self>, Error> {
        Self::start_over(client::tcp(), config, metrics).await
    }

    /// The same, over connections of `connector` instead of TCP.
    ///
    /// # Errors
    /// Those of [`KubePlatform::start`].
    pub async fn start_over<C>(
        connector: C,
        config: &KubeConfig,
        metrics: &Metrics,
    ) -> Result<Arc<Self>, Error>
    where
        C: Service<Uri, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static,
        C::Response: Read + Write + Connection + Send + Unpin + 'static,
    {
        let freshness = Freshness::default();
        let opened_watches = freshness.clone();
        let on_opened = move |plural: &str| {
            if let Some(kind) = Watched::ALL.iter().find(|kind| kind.label() == plural) {
                opened_watches.opened(*kind);
            }
        };
        let KubeConfig { cluster, provider, hostname } = config;
        let (client, server) = client::connect(cluster, connector, on_opened).await?;
        let own = cluster.coordination_namespace.as_deref().unwrap_or(client.default_namespace()).to_owned();
        start::retry(&server, || permissions::check(&client, &cluster.manifest_namespace, &own)).await?;
        // Retried until the API server responds, so that these kinds are served from the start.
        let find = || start::response("list the kinds of the cluster", start::installed(&client));
        let installed = start::retry(&server, find).await?;
        let store = Store::new(hostname.clone());
        let locks = KubeRestartLocks::new(client.clone(), own);
        let (unwritten, to_write) = mpsc::channel(PENDING_WRITES_MAX);
        let (listed, mut kinds) = watch::channel(BTreeSet::new());
        let watch = Watch {
            store: store.clone(),
            unwritten: unwritten.clone(),
            listed,
            freshness: freshness.clone(),
            metrics: metrics.clone(),
        };
        let mut tasks = JoinSet::new();
        for watch in watch.built_in(&client) {
            tasks.spawn(watch);
        }
        for (kind, watch) in watch.provider_kinds(&client, &cluster.manifest_namespace) {
            tasks.spawn(start::once_installed(client.clone(), kind, installed.contains(&kind), watch));
        }
        tasks.spawn(write_indices(client.clone(), store.clone(), to_write));
        tasks.spawn(show_overdue(store.clone()));
        tasks.spawn(rewrite(store.clone(), unwritten));
        tasks.spawn(freshness.mark(store.clone(), metrics.views_stale.clone()));
        tasks.spawn(remove_expired(store.clone()));
        tasks.spawn(sweep(locks.clone()));
        // Kinds that are installed later are not waited for.
        let needed = BUILT_IN.into_iter().chain(installed).collect();
        start::listed(&mut kinds, &needed).await?;
        Ok(Arc::new(Self {
            events: EventWatches::new(client.clone(), store.clone(), metrics.clone()),
            client,
            provider: provider.clone(),
            store,
            limiter: OpenLimiter::new(),
            reads: SharedReads::default(),
            locks,
            _tasks: tasks,
        }))
    }

    fn watch_lease(&self, lease: &LeaseId) -> Result<watch::Receiver<Arc<LeaseView>>, Error> {
        let is_served = *lease.provider() == self.provider;
        if let Some(view) = is_served.then(|| self.store.watch(lease)).flatten() {
            return Ok(view);
        }
        if is_served && self.store.stale_since().is_some() {
            // It may exist by now.
            return Err(Error::Unavailable(format!(
                "lease {lease} is not known, and the watches of the cluster fail"
            )));
        }
        Err(Error::NotFound(format!("lease {lease}")))
    }

    /// Locates the requested run.
    ///
    /// # Errors
    /// [`Error::NotFound`] if its log cannot be read.
    pub(super) fn locate(&self, request: &TailRequest) -> Result<Located, Error> {
        let TailRequest { lease, replica, instance, .. } = request;
        let missing = || Error::NotFound(format!("log of {replica}, run {instance}"));
        let view = self.watch_lease(lease)?;
        let started =
            view.borrow().replica(replica).and_then(|replica| replica.run(instance)).map(|run| run.started);
        let started = started.ok_or_else(missing)?;
        let namespace = lease.namespace();
        let pod = self.store.pod(&namespace, instance.parts().0).ok_or_else(missing)?;
        let run = RunWatch { view, replica: replica.clone(), instance: instance.clone() };
        Ok(Located { namespace, pod: pod.name, node: pod.node, started, run })
    }

    fn open(&self, request: &TailRequest) -> BoxFuture<'static, Result<Tail, Error>> {
        let Located { namespace, started, run, .. } = match self.locate(request) {
            Ok(located) => located,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let log = PodLog {
            client: self.client.clone(),
            store: self.store.clone(),
            limiter: self.limiter.clone(),
            namespace,
            instance: request.instance.clone(),
        };
        let request = request.clone();
        Box::pin(async move { log::open(log, run, &request, started).await })
    }

    async fn delete(&self, request: RestartRequest) -> Result<(), Error> {
        let RestartRequest { lease, replica, instance } = request;
        let view = self.watch_lease(&lease)?;
        let newest = view
            .borrow()
            .replica(&replica)
            .map(|found| found.newest().map(|run| run.instance.clone()))
            .ok_or_else(|| Error::NotFound(format!("replica {replica}")))?;
        if newest != instance {
            return Err(Error::Conflict(format!("{replica} runs as another instance")));
        }
        let namespace = lease.namespace();
        let asked = instance.as_ref().map(|instance| instance.parts().0);
        let pod = match self.store.occupant(&namespace, &replica) {
            Some(pod) if asked == Some(pod.uid.as_str()) && pod.lives => pod,
            // Another pod is stuck and prevents the next run.
            Some(pod) if asked != Some(pod.uid.as_str()) && pod.lives && pod.is_stuck() => pod,
            // The next run is about to begin.
            _ => return Ok(()),
        };
        let deleted = api::delete(&self.client, &namespace, &pod.name, &pod.uid).await;
        deleted.map_err(|why| Error::Unavailable(format!("failed to delete a pod: {why}")))
    }
}

impl Platform for KubePlatform {
    fn name(&self) -> &'static str {
        "kube"
    }

    fn is_reachable(&self) -> bool {
        self.store.stale_since().is_none()
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(std::future::ready(self.watch_lease(lease)))
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(async move {
            if request.follow {
                return self.open(&request).await;
            }
            self.reads.tail(&request, || self.open(&request)).await
        })
    }

    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.delete(request))
    }

    fn events(&self, lease: &LeaseId) -> Option<BoxStream<'static, NativeEvents>> {
        Some(self.events.watch(lease.namespace()))
    }

    fn placement(&self, lease: &LeaseId, instance: &Instance) -> Option<Placement> {
        let namespace = lease.namespace();
        let pod = self.store.pod(&namespace, instance.parts().0)?;
        Some(Placement { namespace, pod: pod.name, node: pod.node?, is_here: false })
    }

    fn restart_locks(&self) -> Option<Arc<dyn RestartLocks>> {
        Some(Arc::new(self.locks.clone()))
    }
}

impl fmt::Debug for KubePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubePlatform").field("provider", &self.provider).finish_non_exhaustive()
    }
}

/// Writes replica indices one by one, as far as that is permitted.
async fn write_indices(client: Client, store: Store, mut pods: mpsc::Receiver<PendingIndexWrite>) {
    // An API server that has just started denies everything for a moment, so writes are tried again.
    let (mut denied_until, mut is_logged) = (Instant::now(), false);
    while let Some(pod) = pods.recv().await {
        if Instant::now() < denied_until {
            continue;
        }
        let is_permitted = api::write_index(&client, &pod).await;
        store.set_writes_indices(is_permitted);
        if is_permitted {
            continue;
        }
        denied_until = Instant::now() + REWRITE_INTERVAL / 2;
        if !std::mem::replace(&mut is_logged, true) {
            tracing::warn!(
                "no permission to write replica indices on pods (patch pods), only computing them"
            );
        }
    }
}

/// Queues pods again whose index could not be written.
async fn rewrite(store: Store, unwritten: mpsc::Sender<PendingIndexWrite>) {
    loop {
        tokio::time::sleep(REWRITE_INTERVAL).await;
        for pod in store.unwritten() {
            if unwritten.try_send(pod).is_err() {
                break;
            }
        }
    }
}

async fn show_overdue(store: Store) {
    loop {
        tokio::time::sleep(SHOW_INTERVAL).await;
        store.show_overdue();
    }
}

async fn remove_expired(store: Store) {
    loop {
        tokio::time::sleep(EXPIRE_INTERVAL).await;
        store.remove_expired();
    }
}

async fn sweep(locks: KubeRestartLocks) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        locks.sweep().await;
    }
}

/// Returns a duration between half of `pause` and one and a half, so that callers that wait for the same
/// event do not act in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}
