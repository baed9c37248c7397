//! The pods of one node, without anything else of the cluster: for a gateway that publishes their logs and
//! has no followers.
//!
//! Replicas are not numbered here: a request to publish names the pod of its replica. A view has only that
//! replica.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::log::RunWatch;
use super::objects::{Departure, PodFacts};
use super::watch_backoff::WatchBackoff;
use super::{ClusterAccess, Located, client, names, permissions, start, view};
use crate::model::id::{LeaseId, Replica};
use crate::model::label::LabelValue as _;
use crate::model::metrics::Metrics;
use crate::model::metrics::labels::Watched;
use crate::model::time::LogTime;
use crate::model::view::LeaseView;
use crate::platform::{Error, TailRequest};

/// Longest delay after a watch failed.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// Objects in one page of a list: more than a node runs by default (110).
const PAGE_OBJECTS: u32 = 250;

/// Maximum replicas with a view: several times the pods of a node, since a rollout may have a view for each
/// of two pods.
const VIEWS_MAX: usize = 1_024;

/// Maximum pods in the view of one replica: the newest one, and those whose logs are read to their end.
const PODS_PER_VIEW_MAX: usize = 3;

/// The pods of leases on one node. Dropping it ends the watch.
pub struct NodePods {
    state: Arc<Mutex<State>>,
    works: Arc<AtomicBool>,
    _watch: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    /// By namespace and name.
    pods: BTreeMap<(String, String), PodFacts>,
    views: HashMap<(LeaseId, Replica), Served>,
}

/// The view of one replica.
struct Served {
    namespace: String,
    /// Oldest first, with how each went.
    pods: Vec<(PodFacts, Option<Departure>)>,
    view: watch::Sender<Arc<LeaseView>>,
}

// === impl NodePods ===

impl NodePods {
    /// Connects, checks the permissions, and waits until the pods have been listed. Retries and logs while
    /// the API server cannot be reached.
    ///
    /// # Errors
    /// If the configuration is unusable, or permissions are missing.
    pub async fn start(cluster: &ClusterAccess, node: &str, metrics: &Metrics) -> Result<Self, Error> {
        let (client, server) = client::connect(cluster, client::tcp(), |_| {}).await?;
        start::retry(&server, || permissions::check_node(&client)).await?;
        let (state, works) = (Arc::<Mutex<State>>::default(), Arc::<AtomicBool>::default());
        let (listed, mut is_listed) = watch::channel(false);
        let watch =
            run(client, node.to_owned(), Arc::clone(&state), Arc::clone(&works), listed, metrics.clone());
        #[expect(clippy::disallowed_methods, reason = "owned: aborted when the pods are dropped")]
        let watch = AbortOnDropHandle::new(tokio::spawn(watch));
        let ended = is_listed.wait_for(|listed| *listed).await.is_err();
        if ended {
            return Err(Error::Broken("the watch of pods ended".to_owned()));
        }
        Ok(Self { state, works, _watch: watch })
    }

    /// Returns whether the watch works.
    pub(in crate::platform) fn is_reachable(&self) -> bool {
        self.works.load(Ordering::Relaxed)
    }

    /// Returns the view of a replica whose pod has this name; `None` if the node does not run it.
    pub(in crate::platform) fn watch(
        &self,
        lease: &LeaseId,
        replica: &Replica,
        pod: &str,
    ) -> Option<watch::Receiver<Arc<LeaseView>>> {
        let mut state = self.state.lock();
        let State { pods, views } = &mut *state;
        let namespace = lease.namespace();
        let pod = pods.get(&(namespace.clone(), pod.to_owned()))?;
        if pod.service != replica.service {
            return None;
        }
        views.retain(|_, served| !served.view.is_closed());
        let key = (lease.clone(), replica.clone());
        if views.len() >= VIEWS_MAX && !views.contains_key(&key) {
            return None;
        }
        let served = views.entry(key).or_insert_with(|| Served {
            namespace,
            pods: Vec::new(),
            view: watch::Sender::default(),
        });
        if served.pods.iter().all(|(known, _)| known.uid != pod.uid) {
            let excess = (served.pods.len() + 1).saturating_sub(PODS_PER_VIEW_MAX);
            served.pods.drain(..excess);
            served.pods.push((pod.clone(), None));
            served.publish(replica);
        }
        Some(served.view.subscribe())
    }

    /// Locates the requested run.
    ///
    /// # Errors
    /// [`Error::NotFound`] if its log cannot be read.
    pub(in crate::platform) fn locate(&self, request: &TailRequest) -> Result<Located, Error> {
        let TailRequest { lease, replica, instance, .. } = request;
        let state = self.state.lock();
        let located = state.views.get(&(lease.clone(), replica.clone())).and_then(|served| {
            let (pod, _) = served.pods.iter().find(|(pod, _)| pod.uid == instance.parts().0)?;
            let view = served.view.subscribe();
            let started = view.borrow().replica(replica)?.run(instance)?.started;
            let run = RunWatch { view, replica: replica.clone(), instance: instance.clone() };
            let (namespace, name) = (served.namespace.clone(), pod.name.clone());
            Some(Located { namespace, pod: name, node: pod.node.clone(), started, run })
        });
        located.ok_or_else(|| Error::NotFound(format!("log of {replica}, run {instance}")))
    }
}

impl fmt::Debug for NodePods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodePods").finish_non_exhaustive()
    }
}

// === impl State ===

impl State {
    fn put(&mut self, namespace: String, pod: PodFacts) {
        self.update(&namespace, |known| (known.uid == pod.uid).then(|| (pod.clone(), None)));
        self.pods.insert((namespace, pod.name.clone()), pod);
    }

    /// Removes a pod. `last` is its last state, if the watch has told that.
    fn remove(&mut self, namespace: &str, name: &str, uid: &str, last: Option<&PodFacts>) {
        let key = (namespace.to_owned(), name.to_owned());
        if self.pods.get(&key).is_some_and(|pod| pod.uid == uid) {
            self.pods.remove(&key);
        }
        let departure = Departure { at: LogTime::now(), is_seen: last.is_some() };
        self.update(namespace, |known| {
            (known.uid == uid).then(|| (last.unwrap_or(known).clone(), Some(departure)))
        });
    }

    /// Replaces all pods. Those of views that are not among them are gone.
    fn replace(&mut self, pods: Vec<(String, PodFacts)>) {
        let before = std::mem::take(&mut self.pods);
        for (namespace, pod) in pods {
            self.put(namespace, pod);
        }
        for ((namespace, name), pod) in before {
            let now = self.pods.get(&(namespace.clone(), name.clone()));
            if now.is_none_or(|now| now.uid != pod.uid) {
                self.remove(&namespace, &name, &pod.uid, None);
            }
        }
    }

    /// Changes the pods for which `change` returns something, in all views of the namespace.
    fn update(
        &mut self,
        namespace: &str,
        change: impl Fn(&PodFacts) -> Option<(PodFacts, Option<Departure>)>,
    ) {
        self.views.retain(|_, served| !served.view.is_closed());
        for ((_, replica), served) in
            self.views.iter_mut().filter(|(_, served)| served.namespace == namespace)
        {
            let mut has_changed = false;
            for known in served.pods.iter_mut().filter(|(_, gone)| gone.is_none()) {
                if let Some(changed) = change(&known.0) {
                    (*known, has_changed) = (changed, true);
                }
            }
            if has_changed {
                served.publish(replica);
            }
        }
    }
}

// === impl Served ===

impl Served {
    fn publish(&self, replica: &Replica) {
        self.view.send_replace(Arc::new(view::of_pods(replica, &self.pods)));
    }
}

/// Watches the pods of leases on a node until it is aborted. The field selector keeps all others away.
async fn run(
    client: Client,
    node: String,
    state: Arc<Mutex<State>>,
    works: Arc<AtomicBool>,
    listed: watch::Sender<bool>,
    metrics: Metrics,
) {
    let kind = Watched::Pods;
    let config = watcher::Config::default()
        .labels(names::AKASH)
        .fields(&format!("spec.nodeName={node}"))
        .page_size(PAGE_OBJECTS);
    let mut backoff = WatchBackoff::new(DELAY_MAX);
    let mut events = pin!(watcher(Api::<Pod>::all(client), config));
    let mut pods = Vec::new();
    let read = |pod: &Pod| Some((pod.namespace()?, PodFacts::read(pod)?));
    while let Some(event) = events.next().await {
        if let Ok(Event::InitDone | Event::Apply(_) | Event::Delete(_)) = &event {
            works.store(true, Ordering::Relaxed);
            if backoff.reset() {
                tracing::info!(kind = kind.label(), "watch works again");
            }
        }
        match event {
            Ok(Event::Init) => pods.clear(),
            Ok(Event::InitApply(pod)) => pods.extend(read(&pod)),
            Ok(Event::InitDone) => {
                state.lock().replace(std::mem::take(&mut pods));
                metrics.watch_lists.of(kind).increment(1);
                listed.send_replace(true);
            }
            Ok(Event::Apply(pod)) => {
                if let Some((namespace, pod)) = read(&pod) {
                    state.lock().put(namespace, pod);
                }
            }
            Ok(Event::Delete(pod)) => {
                let uid = pod.uid().unwrap_or_default();
                let last = PodFacts::read(&pod);
                let namespace = pod.namespace().unwrap_or_default();
                state.lock().remove(&namespace, &pod.name_any(), &uid, last.as_ref());
            }
            Err(error) => {
                works.store(false, Ordering::Relaxed);
                metrics.watch_failures.of(kind).increment(1);
                let (failures, delay) = backoff.next();
                // Logs the first failure of a series, and then ever fewer.
                if failures.is_power_of_two() {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(kind = kind.label(), failures, error, "watch failed, retrying");
                }
                tokio::time::sleep(delay).await;
            }
        }
    }
}
