//! Everything known of the cluster: fed by the watches, and the source of the lease views that are in use.
//!
//! Level-triggered: a list replaces everything known of its kind, so no deletion is missed. A view is rebuilt
//! from the known objects and sent if it differs.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::namespace::{Fact, NamespaceState, PendingIndexWrite};
use super::objects::{Departure, PodFacts};
use super::view::{self, Provider};
use crate::model::id::{LeaseId, Replica, ServiceName};
use crate::model::metrics::labels::Watched;
use crate::model::time::LogTime;
use crate::model::view::LeaseView;

/// How long a view still shows a deleted pod, so that readers of its log see the end.
const GONE_KEPT: Duration = Duration::from_secs(10);

/// The identity of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The namespace of its lease.
    pub(super) namespace: String,
    pub(super) kind: Watched,
    /// Its name; its uid if it is a pod.
    pub(super) name: String,
}

/// A change of the cluster.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// An object was created or updated. `None`: it belongs to no lease any more.
    Object(Key, Option<Fact>),
    /// An object was deleted, and was this at last.
    Deleted(Key, Option<Fact>),
    /// All objects of a kind.
    Replace(Watched, Vec<(Key, Fact)>),
}

/// The known objects and the views of them. Cheap to clone. Each method takes the lock once, so that readers
/// never see a change half applied.
#[derive(Clone, Debug)]
pub(super) struct Store(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    provider: Provider,
    namespaces: HashMap<String, NamespaceState>,
    /// The views in use.
    views: HashMap<String, watch::Sender<Arc<LeaseView>>>,
    /// Whether computed indices are written on pods, as far as is known: it may not be permitted.
    writes_indices: bool,
}

// === impl Store ===

impl Store {
    /// Creates an empty store for a provider whose node ports are reached at `hostname`.
    pub(super) fn new(hostname: String) -> Self {
        let provider = Provider { hostname, ..Provider::default() };
        let inner =
            Inner { provider, namespaces: HashMap::new(), views: HashMap::new(), writes_indices: true };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Applies a change. Returns the pods whose index is to be written.
    pub(super) fn apply(&self, change: Change) -> Vec<PendingIndexWrite> {
        let mut inner = self.0.lock();
        let touched = match change {
            Change::Object(key, fact) => {
                let mut touched = inner.remove_from_others(&key);
                touched.insert(key.namespace.clone());
                match fact {
                    Some(fact) => inner.set(key, fact),
                    None => inner.unset(key, true),
                }
                touched
            }
            Change::Deleted(key, last) => {
                let mut touched = inner.remove_from_others(&key);
                touched.insert(key.namespace.clone());
                if let Some(last) = last {
                    inner.set(key.clone(), last);
                }
                inner.unset(key, true);
                touched
            }
            Change::Replace(kind, all) => inner.replace(kind, all),
        };
        touched.iter().flat_map(|namespace| inner.refresh(namespace)).collect()
    }

    /// Watches the view of `lease`; `None` if the cluster has no such lease.
    pub(super) fn watch(&self, lease: &LeaseId) -> Option<watch::Receiver<Arc<LeaseView>>> {
        let Inner { provider, namespaces, views, .. } = &mut *self.0.lock();
        let namespace = lease.namespace();
        let state = namespaces.get(&namespace)?;
        state.lease().filter(|facts| facts.lease == *lease)?;
        let build = || watch::Sender::new(Arc::new(view::build(state, provider)));
        Some(views.entry(namespace).or_insert_with(build).subscribe())
    }

    /// Returns the pod with this uid.
    pub(super) fn pod(&self, namespace: &str, uid: &str) -> Option<PodFacts> {
        let inner = self.0.lock();
        match inner.namespaces.get(namespace)?.facts.get(&(Watched::Pods, uid.to_owned()))? {
            Fact::Pod(pod) => Some(PodFacts::clone(pod)),
            _ => None,
        }
    }

    /// Returns the replica of the pod with this uid.
    pub(super) fn replica_of(&self, namespace: &str, uid: &str) -> Option<Replica> {
        let inner = self.0.lock();
        let state = inner.namespaces.get(namespace)?;
        let mut pods = state.pods().chain(state.gone.iter().map(|(pod, ..)| pod));
        let pod = pods.find(|pod| pod.uid == uid)?;
        Some(Replica { service: pod.service.clone(), index: state.index(pod)? })
    }

    /// Returns the services of a lease.
    pub(super) fn services(&self, namespace: &str) -> BTreeSet<ServiceName> {
        let inner = self.0.lock();
        let state = inner.namespaces.get(namespace);
        state.iter().flat_map(|state| state.workloads()).map(|workload| workload.service.clone()).collect()
    }

    /// Returns the pod of a replica: the living one, otherwise the last one that lived.
    pub(super) fn occupant(&self, namespace: &str, replica: &Replica) -> Option<PodFacts> {
        let inner = self.0.lock();
        let state = inner.namespaces.get(namespace)?;
        let pods = state.pods().filter(|pod| pod.service == replica.service);
        let pods = pods.filter(|pod| state.index(pod) == Some(replica.index));
        pods.max_by_key(|pod| state.rank(pod)).cloned()
    }

    /// Marks all views as out of date since `since`, or as current.
    pub(super) fn set_stale(&self, since: Option<LogTime>) {
        let mut inner = self.0.lock();
        inner.provider.stale_since = since;
        let in_use: Vec<String> = inner.views.keys().cloned().collect();
        for namespace in in_use {
            inner.refresh(&namespace);
        }
    }

    /// Returns since when views are out of date, if they are.
    pub(super) fn stale_since(&self) -> Option<LogTime> {
        self.0.lock().provider.stale_since
    }

    /// Removes expired pods, and views without a receiver. To be called periodically.
    pub(super) fn remove_expired(&self) {
        let mut inner = self.0.lock();
        inner.views.retain(|_, view| view.receiver_count() > 0);
        let now = Instant::now();
        let changed = inner
            .namespaces
            .iter_mut()
            .filter_map(|(namespace, state)| state.remove_expired(now).then(|| namespace.clone()));
        for namespace in changed.collect::<Vec<_>>() {
            inner.refresh(&namespace);
        }
    }

    /// Sets whether computed indices are written on pods. If not, no pod is hidden until that is done.
    pub(super) fn set_writes_indices(&self, writes: bool) {
        let mut inner = self.0.lock();
        if std::mem::replace(&mut inner.writes_indices, writes) != writes {
            inner.refresh_where(NamespaceState::hides_pods);
        }
    }

    /// Shows pods that were hidden for long enough. To be called periodically.
    pub(super) fn show_overdue(&self) {
        let now = Instant::now();
        self.0.lock().refresh_where(|state| state.has_overdue(now));
    }

    /// Returns the pods of all leases whose index is not written on them yet.
    pub(super) fn unwritten(&self) -> Vec<PendingIndexWrite> {
        let inner = self.0.lock();
        inner.namespaces.iter().flat_map(|(namespace, state)| state.unwritten(namespace)).collect()
    }

    /// Returns the number of namespaces, pods and views.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        let inner = self.0.lock();
        let pods = inner.namespaces.values().map(|state| state.pods().count()).sum();
        (inner.namespaces.len(), pods, inner.views.len())
    }
}

// === impl Inner ===

impl Inner {
    fn set(&mut self, key: Key, fact: Fact) {
        let state = self.namespaces.entry(key.namespace).or_default();
        state.facts.insert((key.kind, key.name), fact);
    }

    /// Removes an object. `is_seen`: a watch has told its last state.
    fn unset(&mut self, key: Key, is_seen: bool) {
        let Some(state) = self.namespaces.get_mut(&key.namespace) else { return };
        if let Some(Fact::Pod(pod)) = state.facts.remove(&(key.kind, key.name)) {
            let departure = Departure { at: LogTime::now(), is_seen };
            state.gone.push((*pod, departure, Instant::now() + GONE_KEPT));
        }
    }

    /// Removes one of the provider's own objects from other leases, and returns their namespaces. Such an
    /// object names its lease in its content, which may change: a host name that was moved.
    fn remove_from_others(&mut self, key: &Key) -> BTreeSet<String> {
        if !matches!(key.kind, Watched::Hosts | Watched::LeasedIps) {
            return BTreeSet::new();
        }
        let which = (key.kind, key.name.clone());
        let others = self.namespaces.iter_mut().filter(|(namespace, _)| **namespace != key.namespace);
        others
            .filter_map(|(namespace, state)| state.facts.remove(&which).map(|_| namespace.clone()))
            .collect()
    }

    /// Replaces all objects of a kind. Returns the namespaces that may have changed.
    fn replace(&mut self, kind: Watched, all: Vec<(Key, Fact)>) -> BTreeSet<String> {
        let listed: BTreeSet<Key> = all.iter().map(|(key, _)| key.clone()).collect();
        let known = self.namespaces.iter().flat_map(|(namespace, state)| {
            let of_kind = state.facts.keys().filter(|(known, _)| *known == kind);
            of_kind.map(|(_, name)| Key { namespace: namespace.clone(), kind, name: name.clone() })
        });
        let vanished: Vec<Key> = known.filter(|key| !listed.contains(key)).collect();
        let mut touched: BTreeSet<String> = vanished.iter().map(|key| key.namespace.clone()).collect();
        if kind == Watched::LeasedIps && !std::mem::replace(&mut self.provider.lists_leased_ips, true) {
            // From now on the provider decides which addresses are leased.
            touched.extend(self.namespaces.keys().cloned());
        }
        for key in vanished {
            self.unset(key, false);
        }
        for (key, fact) in all {
            touched.insert(key.namespace.clone());
            self.set(key, fact);
        }
        touched
    }

    /// Refreshes the namespaces for which this holds.
    fn refresh_where(&mut self, holds: impl Fn(&NamespaceState) -> bool) {
        let of = self.namespaces.iter().filter(|(_, state)| holds(state));
        for namespace in of.map(|(namespace, _)| namespace.clone()).collect::<Vec<_>>() {
            self.refresh(&namespace);
        }
    }

    /// Numbers the pods of a namespace and updates its view, if that is in use. Returns the pods whose index
    /// is to be written.
    fn refresh(&mut self, namespace: &str) -> Vec<PendingIndexWrite> {
        let Some(state) = self.namespaces.get_mut(namespace) else { return Vec::new() };
        state.number(self.writes_indices, Instant::now());
        if let Some(view) = self.views.get(namespace) {
            let now = view::build(state, &self.provider);
            if **view.borrow() != now {
                view.send_replace(Arc::new(now));
            }
        }
        if state.facts.is_empty() && state.gone.is_empty() {
            self.namespaces.remove(namespace);
            return Vec::new();
        }
        state.unwritten(namespace)
    }
}

#[cfg(test)]
mod tests;
