//! What is known of the cluster: one store, fed by the watches, from which the view of each lease is made that somebody looks at.
//!
//! Level-triggered throughout: a list replaces all that was known of its kind, so that no deletion is missed; a view is made anew
//! from what is known, and sent if it is another one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::akash::{HostFacts, LeasedFacts};
use super::objects::{LeaseFacts, PodFacts, ServiceEndpoints, WorkloadFacts};
use super::replica_index::{self, Numbered};
use super::view::{self, Provider};
use crate::model::id::{LeaseId, Replica, ServiceName};
use crate::model::time::LogTime;
use crate::model::view::LeaseView;

/// How long the end of a pod is told after it is gone, so that nobody misses it who reads its log to the end.
const GONE_KEPT: Duration = Duration::from_secs(10);

/// A kind of object that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ObjectKind {
    Lease,
    Pod,
    Deployment,
    StatefulSet,
    Service,
    Host,
    Leased,
}

/// What is kept of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Lease(LeaseFacts),
    Pod(Box<PodFacts>),
    Workload(WorkloadFacts),
    Reach(ServiceEndpoints),
    Host(HostFacts),
    Leased(LeasedFacts),
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    /// The namespace of the lease that it belongs to.
    pub(super) namespace: String,
    /// Its kind.
    pub(super) kind: ObjectKind,
    /// Its name; its uid if it is a pod.
    pub(super) name: String,
}

/// A change.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// It is so now.
    Set(Key, Fact),
    /// It is not any more, or is nothing of interest any more.
    Unset(Key),
    /// These are all of the kind.
    Replace(ObjectKind, Vec<(Key, Fact)>),
}

/// A pod whose index is not written on it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PendingIndexWrite {
    /// Where it is.
    pub(super) namespace: String,
    /// Its name.
    pub(super) pod: String,
    /// Its uid: a precondition.
    pub(super) uid: String,
    /// The version that was seen: a precondition.
    pub(super) version: String,
    /// The index.
    pub(super) index: u32,
}

/// See above. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Store(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    provider: Provider,
    namespaces: HashMap<String, NamespaceState>,
    views: HashMap<String, watch::Sender<Arc<LeaseView>>>,
}

/// Everything of one namespace.
#[derive(Debug, Default)]
pub(super) struct NamespaceState {
    facts: BTreeMap<(ObjectKind, String), Fact>,
    /// The indices of pods that Kubernetes does not number, by uid.
    indices: BTreeMap<String, u32>,
    /// Pods that are gone, and until when they are told of.
    gone: Vec<(PodFacts, LogTime, Instant)>,
}

// === impl Store ===

impl Store {
    /// An empty one.
    pub(super) fn new(provider: Provider) -> Self {
        let inner = Inner { provider, namespaces: HashMap::new(), views: HashMap::new() };
        Self(Arc::new(Mutex::new(inner)))
    }

    /// Takes a change; tells which pods' indices are to be written on them.
    pub(super) fn apply(&self, change: Change) -> Vec<PendingIndexWrite> {
        let mut inner = self.lock();
        let touched = match change {
            Change::Set(key, fact) => {
                let mut touched = inner.leave(&key);
                touched.insert(key.namespace.clone());
                inner.set(key, fact);
                touched
            }
            Change::Unset(key) => {
                let mut touched = inner.leave(&key);
                inner.unset(&key);
                touched.insert(key.namespace);
                touched
            }
            Change::Replace(kind, all) => inner.replace(kind, all),
        };
        touched.iter().flat_map(|namespace| inner.refresh(namespace)).collect()
    }

    /// What runs under `lease`; `None` if there is no such lease here.
    pub(super) fn watch(&self, lease: &LeaseId) -> Option<watch::Receiver<Arc<LeaseView>>> {
        let mut inner = self.lock();
        let namespace = lease.namespace();
        let contents = inner.namespaces.get(&namespace)?;
        if contents.lease().is_none_or(|facts| facts.lease != *lease) {
            return None;
        }
        if let Some(view) = inner.views.get(&namespace) {
            return Some(view.subscribe());
        }
        let view = watch::Sender::new(Arc::new(view::build(contents, &inner.provider)));
        let receiver = view.subscribe();
        inner.views.insert(namespace, view);
        Some(receiver)
    }

    /// The pod with this uid.
    pub(super) fn pod(&self, namespace: &str, uid: &str) -> Option<PodFacts> {
        let inner = self.lock();
        match inner.namespaces.get(namespace)?.facts.get(&(ObjectKind::Pod, uid.to_owned()))? {
            Fact::Pod(pod) => Some(PodFacts::clone(pod)),
            _ => None,
        }
    }

    /// The pod in a slot: the newest that lives, or else the newest.
    pub(super) fn occupant(&self, namespace: &str, replica: &Replica) -> Option<PodFacts> {
        let inner = self.lock();
        let contents = inner.namespaces.get(namespace)?;
        let in_slot =
            |pod: &&PodFacts| pod.service == replica.service && contents.index(pod) == Some(replica.index);
        contents.pods().filter(in_slot).max_by_key(|pod| (pod.lives, pod.created, &pod.name)).cloned()
    }

    /// Marks all views as last known to be so at `since`, or as current.
    pub(super) fn set_stale(&self, since: Option<LogTime>) {
        let mut inner = self.lock();
        inner.provider.stale_since = since;
        let looked_at: Vec<String> = inner.views.keys().cloned().collect();
        for namespace in looked_at {
            inner.refresh(&namespace);
        }
    }

    /// Since when views are stale, if they are.
    pub(super) fn stale_since(&self) -> Option<LogTime> {
        self.lock().provider.stale_since
    }

    /// Forgets what was kept for a while only, and views that nobody looks at. To be called now and then.
    pub(super) fn forget(&self) {
        let mut inner = self.lock();
        inner.views.retain(|_, view| view.receiver_count() > 0);
        let now = Instant::now();
        let mut stale = Vec::new();
        for (namespace, contents) in &mut inner.namespaces {
            let before = contents.gone.len();
            contents.gone.retain(|(.., until)| *until > now);
            if contents.gone.len() < before {
                stale.push(namespace.clone());
            }
        }
        for namespace in stale {
            inner.refresh(&namespace);
        }
    }

    /// The pods whose indices are not written on them yet, of all leases.
    pub(super) fn unwritten(&self) -> Vec<PendingIndexWrite> {
        let inner = self.lock();
        inner.namespaces.iter().flat_map(|(namespace, contents)| contents.unwritten(namespace)).collect()
    }

    /// How many leases, and pods, there are.
    #[cfg(test)]
    pub(super) fn sizes(&self) -> (usize, usize, usize) {
        let inner = self.lock();
        let pods = inner.namespaces.values().map(|contents| contents.pods().count()).sum();
        (inner.namespaces.len(), pods, inner.views.len())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that is done under the lock leaves it half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl Inner {
    fn set(&mut self, key: Key, fact: Fact) {
        let contents = self.namespaces.entry(key.namespace).or_default();
        contents.facts.insert((key.kind, key.name), fact);
    }

    fn unset(&mut self, key: &Key) {
        let Some(contents) = self.namespaces.get_mut(&key.namespace) else { return };
        if let Some(Fact::Pod(pod)) = contents.facts.remove(&(key.kind, key.name.clone())) {
            contents.gone.push((*pod, LogTime::now(), Instant::now() + GONE_KEPT));
        }
    }

    /// Takes one of the provider's own objects from the leases that it is not of any more, and tells whose they are. Such an object
    /// names its lease within, and may come to name another: a host name that was moved.
    fn leave(&mut self, key: &Key) -> BTreeSet<String> {
        if !matches!(key.kind, ObjectKind::Host | ObjectKind::Leased) {
            return BTreeSet::new();
        }
        let which = (key.kind, key.name.clone());
        let others = self.namespaces.iter_mut().filter(|(namespace, _)| **namespace != key.namespace);
        others
            .filter_map(|(namespace, contents)| contents.facts.remove(&which).map(|_| namespace.clone()))
            .collect()
    }

    /// Returns the namespaces in which something may have changed.
    fn replace(&mut self, kind: ObjectKind, all: Vec<(Key, Fact)>) -> BTreeSet<String> {
        let listed: BTreeSet<Key> = all.iter().map(|(key, _)| key.clone()).collect();
        let known = self.namespaces.iter().flat_map(|(namespace, contents)| {
            let of_kind = contents.facts.keys().filter(|(known, _)| *known == kind);
            of_kind.map(|(_, name)| Key { namespace: namespace.clone(), kind, name: name.clone() })
        });
        let vanished: Vec<Key> = known.filter(|key| !listed.contains(key)).collect();
        let mut touched: BTreeSet<String> = vanished.iter().map(|key| key.namespace.clone()).collect();
        if kind == ObjectKind::Leased && !std::mem::replace(&mut self.provider.tells_leased, true) {
            // From now on the provider's word counts, of every lease.
            touched.extend(self.namespaces.keys().cloned());
        }
        for key in &vanished {
            self.unset(key);
        }
        for (key, fact) in all {
            touched.insert(key.namespace.clone());
            self.set(key, fact);
        }
        touched
    }

    /// Numbers the pods of a namespace, and makes its view anew if somebody looks at it.
    fn refresh(&mut self, namespace: &str) -> Vec<PendingIndexWrite> {
        let Some(contents) = self.namespaces.get_mut(namespace) else { return Vec::new() };
        contents.number();
        if let Some(view) = self.views.get(namespace) {
            let now = view::build(contents, &self.provider);
            view.send_if_modified(|known| {
                let is_other = **known != now;
                if is_other {
                    *known = Arc::new(now);
                }
                is_other
            });
        }
        if contents.facts.is_empty() && contents.gone.is_empty() {
            self.namespaces.remove(namespace);
            return Vec::new();
        }
        contents.unwritten(namespace)
    }
}

// === impl NamespaceState ===

impl NamespaceState {
    /// The lease that the namespace is of.
    pub(super) fn lease(&self) -> Option<&LeaseFacts> {
        self.facts.values().find_map(|fact| if let Fact::Lease(lease) = fact { Some(lease) } else { None })
    }

    /// The pods that there are.
    pub(super) fn pods(&self) -> impl Iterator<Item = &PodFacts> {
        self.facts.values().filter_map(|fact| if let Fact::Pod(pod) = fact { Some(&**pod) } else { None })
    }

    /// The pods that there were until a moment ago, and when they went.
    pub(super) fn gone(&self) -> impl Iterator<Item = (&PodFacts, LogTime)> {
        self.gone.iter().map(|(pod, at, _)| (pod, *at))
    }

    /// The workloads.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &WorkloadFacts> {
        self.facts
            .values()
            .filter_map(|fact| if let Fact::Workload(found) = fact { Some(found) } else { None })
    }

    /// Ports and addresses.
    pub(super) fn reach(&self) -> impl Iterator<Item = &ServiceEndpoints> {
        self.facts.values().filter_map(|fact| if let Fact::Reach(found) = fact { Some(found) } else { None })
    }

    /// Host names.
    pub(super) fn hosts(&self) -> impl Iterator<Item = &HostFacts> {
        self.facts.values().filter_map(|fact| if let Fact::Host(found) = fact { Some(found) } else { None })
    }

    /// Ports of leased addresses.
    pub(super) fn leased(&self) -> impl Iterator<Item = &LeasedFacts> {
        self.facts.values().filter_map(|fact| if let Fact::Leased(found) = fact { Some(found) } else { None })
    }

    /// The index of a pod.
    pub(super) fn index(&self, pod: &PodFacts) -> Option<u32> {
        pod.ordinal.or_else(|| self.indices.get(&pod.uid).copied())
    }

    fn number(&mut self) {
        let mut room: BTreeMap<&ServiceName, u32> = BTreeMap::new();
        for workload in self.workloads() {
            let pods = room.entry(&workload.service).or_default();
            *pods = (*pods).max(workload.count.saturating_add(workload.surge));
        }
        let indices = &self.indices;
        let gone = self.gone.iter().map(|(pod, ..)| (pod, false));
        let all = self.pods().map(|pod| (pod, pod.lives)).chain(gone);
        let numbered = all.map(|(pod, lives)| Numbered {
            service: &pod.service,
            room: room.get(&pod.service).copied().unwrap_or_default(),
            created: pod.created,
            name: &pod.name,
            uid: &pod.uid,
            lives,
            has_run: pod.has_run(),
            ordinal: pod.ordinal,
            claim: pod.written.or_else(|| indices.get(&pod.uid).copied()),
        });
        let given = replica_index::assign(numbered);
        self.indices = given.into_iter().map(|(uid, index)| (uid.to_owned(), index)).collect();
    }

    fn unwritten(&self, namespace: &str) -> Vec<PendingIndexWrite> {
        let pods = self.pods().filter(|pod| pod.lives && pod.ordinal.is_none());
        let unwritten = pods.filter_map(|pod| {
            let index = self.index(pod)?;
            (pod.written != Some(index)).then(|| PendingIndexWrite {
                namespace: namespace.to_owned(),
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                version: pod.version.clone(),
                index,
            })
        });
        unwritten.collect()
    }
}

#[cfg(test)]
mod tests;
