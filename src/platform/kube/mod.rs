//! Kubernetes, as Akash providers use it: leases are namespaces, services are deployments and stateful sets, replicas are pods.
//!
//! What runs is told by one set of watches over the whole cluster (`watches`, `store`, `view`); which pod is which replica by
//! `slots`; lines come through the API, each replica's once (`log`); a restart deletes a pod. `docs/KUBERNETES.md` has the
//! pitfalls of each, and what holds them.

mod akash;
mod api;
mod client;
mod config;
mod coordination;
mod crds;
mod freshness;
mod log;
mod names;
mod objects;
mod open_limiter;
mod permissions;
mod replica_index;
mod singleflight;
mod start;
mod store;
mod view;
mod watches;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_core::future::BoxFuture;
use kube::Client;
use rand::RngExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::api::{Deleted, PodLog};
use self::client::Connection;
pub use self::client::check;
pub use self::config::{KubeConfig, KubeSource};
pub use self::coordination::KubeLeaseLocks;
use self::freshness::Freshness;
use self::log::RunWatch;
use self::open_limiter::OpenLimiter;
use self::singleflight::SharedReads;
use self::start::StartWait;
use self::store::{ObjectKind, PendingIndexWrite, Store};
use self::view::Provider;
use self::watches::Watch;
use super::coordination::LeaseLocks;
use super::{Error, Platform, RestartRequest, Tail, TailRequest};
use crate::model::id::{Address, LeaseId};
use crate::model::metrics::Metrics;
use crate::model::time::LogTime;
use crate::model::view::LeaseView;

/// Pods whose index waits to be written.
const UNWRITTEN_PODS: usize = 256;

/// How often it is looked whether there are pods whose index could not be written when it was given.
const REWRITE_EVERY: Duration = Duration::from_secs(60);

/// How often what is kept for a while only is looked through.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// How often it is looked whether notes about restarts are to be deleted, an hour after they were written.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// Kinds that are watched in every cluster.
const KINDS: [ObjectKind; 5] = [
    ObjectKind::Lease,
    ObjectKind::Pod,
    ObjectKind::Deployment,
    ObjectKind::StatefulSet,
    ObjectKind::Service,
];

/// The leases of a provider's cluster. Dropping it ends the watches.
pub struct KubePlatform {
    client: Client,
    provider: Address,
    store: Store,
    openings: OpenLimiter,
    reads: SharedReads,
    turns: KubeLeaseLocks,
    _tasks: Vec<AbortOnDropHandle<()>>,
}

/// Where a run is.
#[derive(Debug)]
pub(super) struct Located {
    /// The namespace of its lease.
    pub(super) namespace: String,
    /// The name of its pod.
    pub(super) pod: String,
    /// The node that it runs on.
    pub(super) node: Option<String>,
    /// When it began.
    pub(super) started: LogTime,
    /// Tells when it ends.
    pub(super) run: RunWatch,
}

// === impl KubePlatform ===

impl KubePlatform {
    /// Connects, asks for the permissions, and resolves when everything there is has been listed once. While the API server cannot
    /// be reached it waits, and the log says so.
    ///
    /// # Errors
    /// If the configuration cannot be used, or permissions are missing: all of them are named.
    pub async fn start(config: &KubeConfig, metrics: &Metrics) -> Result<Arc<Self>, Error> {
        let freshness = Freshness::default();
        let opened = freshness.clone();
        let opened =
            move |plural: &str| watches::kind_of(plural).into_iter().for_each(|kind| opened.opened(kind));
        let Connection { client, server } = client::connect(&config.source, opened).await?;
        let own = config.coordination_namespace.clone();
        let own = own.unwrap_or_else(|| client.default_namespace().to_owned());
        let mut wait = StartWait::new(&server);
        loop {
            match permissions::check(&client, &config.manifest_namespace, &own).await {
                Ok(()) => break,
                Err(error) if error.is_retryable() => wait.after(&error.to_string()).await,
                Err(error) => return Err(error),
            }
        }
        let known = crds::known(&client, &server).await;
        let store = Store::new(Provider::new(config.hostname.clone()));
        let turns = KubeLeaseLocks::new(client.clone(), own);
        let (unwritten, to_write) = mpsc::channel(UNWRITTEN_PODS);
        let (listed, mut kinds) = watch::channel(BTreeSet::new());
        let watch = Watch {
            store: store.clone(),
            unwritten: unwritten.clone(),
            listed,
            freshness: freshness.clone(),
            metrics: metrics.clone(),
        };
        let manifests = || config.manifest_namespace.clone();
        let hosts = watch.clone().hosts(client.clone(), manifests());
        let leased = watch.clone().leased(client.clone(), manifests());
        let tasks = vec![
            owned(watch.clone().leases(client.clone())),
            owned(watch.clone().pods(client.clone())),
            owned(watch.clone().deployments(client.clone())),
            owned(watch.clone().stateful_sets(client.clone())),
            owned(watch.services(client.clone())),
            owned(known.once_there(names::HOSTS, &client, hosts)),
            owned(known.once_there(names::LEASED, &client, leased)),
            owned(write_indices(client.clone(), to_write)),
            owned(rewrite(store.clone(), unwritten)),
            owned(freshness.mark(store.clone(), metrics.views_stale.clone())),
            owned(forget(store.clone())),
            owned(sweep(turns.clone())),
        ];
        // What is installed later is waited for by nobody.
        let needed = KINDS.into_iter().chain(known.all()).collect();
        start::listed(&mut kinds, &needed).await?;
        Ok(Arc::new(Self {
            client,
            provider: config.provider.clone(),
            store,
            openings: OpenLimiter::new(),
            reads: SharedReads::default(),
            turns,
            _tasks: tasks,
        }))
    }

    fn watch_lease(&self, lease: &LeaseId) -> Result<watch::Receiver<Arc<LeaseView>>, Error> {
        let is_served = *lease.provider() == self.provider;
        if let Some(view) = is_served.then(|| self.store.watch(lease)).flatten() {
            return Ok(view);
        }
        if is_served && self.store.stale_since().is_some() {
            // It may be there by now.
            return Err(Error::Unavailable(format!(
                "lease {lease} is not known, and the watches of the cluster fail"
            )));
        }
        Err(Error::NotFound(format!("lease {lease}")))
    }

    /// Where the run is whose log is asked for.
    ///
    /// # Errors
    /// [`Error::NotFound`] if it is not among those whose log can be read.
    pub(super) fn locate(&self, request: &TailRequest) -> Result<Located, Error> {
        let TailRequest { lease, replica, instance, .. } = request;
        let missing = || Error::NotFound(format!("log of {replica}, run {instance}"));
        let view = self.watch_lease(lease)?;
        let started = {
            let view = view.borrow();
            view.replica(replica).and_then(|slot| slot.run(instance)).map(|run| run.started)
        };
        let started = started.ok_or_else(missing)?;
        let namespace = lease.namespace();
        let pod = self.store.pod(&namespace, instance.parts().0).ok_or_else(missing)?;
        let run = RunWatch { view, replica: replica.clone(), instance: instance.clone() };
        Ok(Located { namespace, pod: pod.name, node: pod.node, started, run })
    }

    async fn open(&self, request: TailRequest) -> Result<Tail, Error> {
        if request.follow {
            return self.open_alone(&request).await;
        }
        self.reads.tail(&request, || self.open_alone(&request)).await
    }

    fn open_alone(&self, request: &TailRequest) -> BoxFuture<'static, Result<Tail, Error>> {
        let Located { namespace, started, run, .. } = match self.locate(request) {
            Ok(located) => located,
            Err(error) => return Box::pin(std::future::ready(Err(error))),
        };
        let api = PodLog {
            client: self.client.clone(),
            store: self.store.clone(),
            openings: self.openings.clone(),
            namespace,
            instance: request.instance.clone(),
        };
        Box::pin(log::open(api, run, request.from, request.follow, started))
    }

    async fn delete(&self, request: RestartRequest) -> Result<(), Error> {
        let RestartRequest { lease, replica, instance } = request;
        let view = self.watch_lease(&lease)?;
        let newest = {
            let view = view.borrow();
            let slot = view.replica(&replica).ok_or_else(|| Error::NotFound(format!("replica {replica}")))?;
            slot.newest().map(|run| run.instance.clone())
        };
        if newest != instance {
            return Err(Error::Conflict(format!("{replica} runs as another instance")));
        }
        let namespace = lease.namespace();
        let asked = instance.as_ref().map(|instance| instance.parts().0);
        let pod = match self.store.occupant(&namespace, &replica) {
            Some(pod) if asked == Some(pod.uid.as_str()) && pod.lives => pod,
            // Another pod that is stuck is what keeps the next run from beginning.
            Some(pod) if asked != Some(pod.uid.as_str()) && pod.lives && pod.is_stuck() => pod,
            // The next one is about to begin.
            _ => return Ok(()),
        };
        match api::delete(&self.client, &namespace, &pod.name, &pod.uid).await {
            Ok(Deleted::Going | Deleted::Gone) => Ok(()),
            Err(why) => Err(Error::Unavailable(format!("deleting a pod: {why}"))),
        }
    }
}

impl Platform for KubePlatform {
    fn name(&self) -> &'static str {
        "kube"
    }

    fn watch(&self, lease: &LeaseId) -> BoxFuture<'_, Result<watch::Receiver<Arc<LeaseView>>, Error>> {
        Box::pin(std::future::ready(self.watch_lease(lease)))
    }

    fn tail(&self, request: TailRequest) -> BoxFuture<'_, Result<Tail, Error>> {
        Box::pin(self.open(request))
    }

    fn restart(&self, request: RestartRequest) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.delete(request))
    }

    fn lease_locks(&self) -> Option<Arc<dyn LeaseLocks>> {
        Some(Arc::new(self.turns.clone()))
    }
}

impl fmt::Debug for KubePlatform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubePlatform").field("provider", &self.provider).finish_non_exhaustive()
    }
}

#[expect(clippy::disallowed_methods, reason = "owned: the handle aborts it")]
fn owned(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

/// Writes indices one after the other, as far as that is permitted.
async fn write_indices(client: Client, mut pods: mpsc::Receiver<PendingIndexWrite>) {
    // An API server that has just been started permits nothing for a moment, so it is asked again.
    let (mut denied_until, mut is_told) = (Instant::now(), false);
    while let Some(pod) = pods.recv().await {
        if Instant::now() < denied_until || api::write_index(&client, &pod).await {
            continue;
        }
        denied_until = Instant::now() + REWRITE_EVERY / 2;
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!("replica indices cannot be written on pods (patch pods): they are computed only");
        }
    }
}

/// Has those written again that could not be.
async fn rewrite(store: Store, unwritten: mpsc::Sender<PendingIndexWrite>) {
    loop {
        tokio::time::sleep(REWRITE_EVERY).await;
        for pod in store.unwritten() {
            if unwritten.try_send(pod).is_err() {
                break;
            }
        }
    }
}

async fn forget(store: Store) {
    loop {
        tokio::time::sleep(FORGET_EVERY).await;
        store.forget();
    }
}

async fn sweep(turns: KubeLeaseLocks) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        turns.sweep().await;
    }
}

/// Returns a duration between half of `pause` and one and a half, so that callers that wait for the same event do not act in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}
