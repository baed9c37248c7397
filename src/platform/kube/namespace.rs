//! Everything known of one namespace, and the numbering of its pods.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::objects::{
    Departure, HostFacts, LeaseFacts, LeasedFacts, PodFacts, ServiceEndpoints, WorkloadFacts,
};
use super::replica_index::{self, Numbered};
use crate::model::id::ServiceName;
use crate::model::limits::RUNS_MAX;
use crate::model::metrics::labels::Watched;

/// The kinds of objects that every cluster has, and that decide what runs. The others (host names, leased
/// addresses) are the provider's own.
pub(super) const BUILT_IN: [Watched; 5] =
    [Watched::Namespaces, Watched::Pods, Watched::Deployments, Watched::StatefulSets, Watched::Services];

/// Longest time for which the view hides a living pod whose index is not written on it yet. Gateways that see
/// different changes first may compute different indices, and only the written one counts. A write takes
/// milliseconds; the wait is shorter than the one of a follower for the pod of its cursor.
pub(super) const INDEX_WAIT: Duration = Duration::from_secs(5);

/// The stored part of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fact {
    Lease(LeaseFacts),
    Pod(Box<PodFacts>),
    Workload(WorkloadFacts),
    Endpoints(ServiceEndpoints),
    Host(HostFacts),
    Leased(LeasedFacts),
}

/// A pod whose replica index is not written on it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PendingIndexWrite {
    pub(super) namespace: String,
    pub(super) pod: String,
    /// A precondition of the write.
    pub(super) uid: String,
    /// The version that was seen: a precondition of the write.
    pub(super) version: String,
    pub(super) index: u32,
}

/// Everything known of one namespace.
#[derive(Debug, Default)]
pub(super) struct NamespaceState {
    /// By kind and name; a pod by its uid.
    pub(super) facts: BTreeMap<(Watched, String), Fact>,
    /// The indices of pods that Kubernetes does not number, by uid.
    indices: BTreeMap<String, u32>,
    /// The indices at which the view shows pods, by uid.
    shown: BTreeMap<String, u32>,
    /// Until when the view hides a pod, by uid: its index is not written on it yet.
    hidden: BTreeMap<String, Instant>,
    /// The order in which the logs of one replica's pods are read, by uid. Pods that do not live come first.
    ranks: BTreeMap<String, usize>,
    /// Pods that are gone, how they went, and until when the view has them.
    pub(super) gone: Vec<(PodFacts, Departure, Instant)>,
}

// === impl NamespaceState ===

/// Declares methods that return the facts of one variant.
macro_rules! facts_of {
    ($($name:ident: $variant:ident($facts:ty),)+) => {$(
        pub(super) fn $name(&self) -> impl Iterator<Item = &$facts> {
            self.facts.values().filter_map(|fact| match fact {
                Fact::$variant(facts) => Some(facts),
                _ => None,
            })
        }
    )+};
}

impl NamespaceState {
    facts_of! {
        leases: Lease(LeaseFacts),
        workloads: Workload(WorkloadFacts),
        endpoints: Endpoints(ServiceEndpoints),
        hosts: Host(HostFacts),
        leased: Leased(LeasedFacts),
    }

    pub(super) fn lease(&self) -> Option<&LeaseFacts> {
        self.leases().next()
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &PodFacts> {
        self.facts.values().filter_map(|fact| if let Fact::Pod(pod) = fact { Some(&**pod) } else { None })
    }

    /// Returns the replica index of a pod.
    pub(super) fn index(&self, pod: &PodFacts) -> Option<u32> {
        pod.ordinal.or_else(|| self.indices.get(&pod.uid).copied())
    }

    /// Returns the place of a pod in the order in which the logs of its replica are read.
    pub(super) fn rank(&self, pod: &PodFacts) -> usize {
        self.ranks.get(&pod.uid).copied().unwrap_or(usize::MAX)
    }

    /// Whether the view hides a pod, because gateways may not agree on its index yet.
    pub(super) fn is_hidden(&self, pod: &PodFacts) -> bool {
        self.hidden.contains_key(&pod.uid)
    }

    /// Whether the view hides any pod.
    pub(super) fn hides_pods(&self) -> bool {
        !self.hidden.is_empty()
    }

    /// Returns whether the time is over for which a pod is hidden.
    pub(super) fn has_overdue(&self, now: Instant) -> bool {
        self.hidden.values().any(|until| *until <= now)
    }

    /// Numbers the pods that Kubernetes does not number, and ranks all pods. `writes_indices`: a computed
    /// index will be written on its pod.
    pub(super) fn number(&mut self, writes_indices: bool, now: Instant) {
        let mut pods_max: BTreeMap<&ServiceName, u32> = BTreeMap::new();
        for workload in self.workloads() {
            let pods = pods_max.entry(&workload.service).or_default();
            *pods = (*pods).max(workload.count.saturating_add(workload.surge));
        }
        let indices = &self.indices;
        let gone = self.gone.iter().map(|(pod, ..)| (pod, false, false));
        let all = self.pods().map(|pod| (pod, pod.lives, pod.deleted.is_some())).chain(gone);
        let numbered = all.map(|(pod, lives, is_dying)| Numbered {
            service: &pod.service,
            pods_max: pods_max.get(&pod.service).copied().unwrap_or_default(),
            created: pod.created,
            name: &pod.name,
            uid: &pod.uid,
            lives,
            is_dying,
            has_run: pod.has_run(),
            ordinal: pod.ordinal,
            claim: pod.written.or_else(|| indices.get(&pod.uid).copied()),
        });
        let given = replica_index::assign(numbered);
        self.indices = given.into_iter().map(|(uid, index)| (uid.to_owned(), index)).collect();
        self.ranks = self.ranked();
        self.hide(writes_indices, now);
    }

    /// Hides living pods whose index is not written yet, for at most [`INDEX_WAIT`]. A pod that was shown
    /// stays visible while it keeps its index.
    fn hide(&mut self, writes_indices: bool, now: Instant) {
        let (mut shown, mut hidden) = (BTreeMap::new(), BTreeMap::new());
        for pod in self.pods() {
            let Some(index) = self.index(pod) else { continue };
            let until = self.hidden.get(&pod.uid).copied().unwrap_or(now + INDEX_WAIT);
            let must_wait = writes_indices
                && pod.lives
                && self.has_unwritten_index(pod)
                && self.shown.get(&pod.uid) != Some(&index)
                && until > now;
            if must_wait {
                hidden.insert(pod.uid.clone(), until);
            } else {
                shown.insert(pod.uid.clone(), index);
            }
        }
        (self.shown, self.hidden) = (shown, hidden);
    }

    /// Whether the index of a pod was computed, and is not, or not yet, the one that is written on it.
    fn has_unwritten_index(&self, pod: &PodFacts) -> bool {
        pod.ordinal.is_none() && self.index(pod).is_some_and(|index| pod.written != Some(index))
    }

    /// Ranks the pods. A pod that ceases to live follows those that ceased before and precedes those that
    /// live. Pods seen for the first time follow in the order of (deletion, creation, name).
    ///
    /// Ranks are remembered, because readers continue with the run after the one that they have read. Age is
    /// not enough: an older pod may have waited for the index of a younger one.
    fn ranked(&self) -> BTreeMap<String, usize> {
        let gone = self.gone.iter().map(|(pod, ..)| (pod, false));
        let mut pods: Vec<_> = self.pods().map(|pod| (pod, pod.lives)).chain(gone).collect();
        pods.sort_by_key(|(pod, lives)| (*lives, self.rank(pod), pod.deleted, pod.created, &pod.name));
        pods.iter().enumerate().map(|(rank, (pod, _))| (pod.uid.clone(), rank)).collect()
    }

    /// Removes expired pods, and returns whether there were any. A pod whose log still waits for that of
    /// another pod is kept: its reader finds that the log is gone, and reports the loss.
    pub(super) fn remove_expired(&mut self, now: Instant) -> bool {
        if self.gone.iter().all(|(.., until)| now < *until) {
            return false;
        }
        let mut gone = std::mem::take(&mut self.gone);
        gone.sort_by_key(|(pod, ..)| self.rank(pod));
        let place = |pod: &PodFacts| Some(((pod.service.clone(), self.index(pod)?), self.rank(pod)));
        // The replicas' first pods that may be read.
        let mut first: BTreeMap<(ServiceName, u32), usize> = BTreeMap::new();
        for (replica, rank) in self.pods().filter_map(place) {
            let first = first.entry(replica).or_insert(rank);
            *first = rank.min(*first);
        }
        let count = gone.len();
        gone.retain(|(pod, _, until)| {
            let Some((replica, rank)) = place(pod) else { return now < *until };
            let waits = first.get(&replica).is_some_and(|first| *first < rank) && count <= RUNS_MAX;
            let is_kept = waits || now < *until;
            if is_kept {
                let first = first.entry(replica).or_insert(rank);
                *first = rank.min(*first);
            }
            is_kept
        });
        self.gone = gone;
        self.gone.len() < count
    }

    /// Returns the pods whose index is not written on them yet. Also those that are being deleted: their logs
    /// are read, by gateways that start now, too.
    pub(super) fn unwritten(&self, namespace: &str) -> Vec<PendingIndexWrite> {
        let pods = self.pods().filter(|pod| pod.lives || pod.deleted.is_some());
        let unwritten = pods.filter(|pod| self.has_unwritten_index(pod)).filter_map(|pod| {
            Some(PendingIndexWrite {
                namespace: namespace.to_owned(),
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                version: pod.version.clone(),
                index: self.index(pod)?,
            })
        });
        unwritten.collect()
    }
}
