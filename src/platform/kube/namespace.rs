//! Everything known of one namespace, and the numbering of its pods.

use std::collections::BTreeMap;

use tokio::time::Instant;

use super::objects::{HostFacts, LeaseFacts, LeasedFacts, PodFacts, ServiceEndpoints, WorkloadFacts};
use super::replica_index::{self, Numbered};
use crate::model::id::ServiceName;
use crate::model::limits::RUNS_MAX;
use crate::model::metrics::labels::Watched;
use crate::model::time::LogTime;

/// The kinds of objects that every cluster has, and that decide what runs. The others (host names, leased
/// addresses) are the provider's own.
pub(super) const BUILT_IN: [Watched; 5] =
    [Watched::Namespaces, Watched::Pods, Watched::Deployments, Watched::StatefulSets, Watched::Services];

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
    /// The order in which the logs of one replica's pods are read, by uid. Pods that do not live come first.
    ranks: BTreeMap<String, usize>,
    /// Pods that are gone, when they went, and until when the view has them.
    pub(super) gone: Vec<(PodFacts, LogTime, Instant)>,
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

    /// Numbers the pods that Kubernetes does not number, and ranks all pods.
    pub(super) fn number(&mut self) {
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

    /// Returns the pods whose index is not written on them yet.
    pub(super) fn unwritten(&self, namespace: &str) -> Vec<PendingIndexWrite> {
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
