//! Decides which pod is which replica. Pure.
//!
//! A pod of a stateful set has its ordinal. Other pods have no number in Kubernetes, so they are numbered
//! here, per service and across replica sets. A new pod takes the lowest index that no living pod of the
//! service has, in the order of (creation, name), and keeps it while it lives. A pod that is being deleted,
//! has failed or has succeeded frees its index at once. Its log is still read under that index, before the
//! log of the pod that took the index.
//!
//! The index is written on the pod, and the written index counts, so all gateways agree, also after a
//! restart. If two living pods have the same index (an older gateway numbered each replica set separately),
//! the older pod keeps it and the other one takes a free index.
//!
//! A rollout deletes an old pod and creates a new one at about the same time, and the new pod may be seen
//! first. So a pod that has not run yet takes only an index below [`Numbered::pods_max`], and otherwise has
//! none: its log is still empty. A pod that has run always has an index, also if it is first seen to have run
//! while it is being deleted: its log can still be read. It then takes the lowest index that no pod has, so
//! that its log is read at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::id::ServiceName;
use crate::model::time::LogTime;

/// The facts about a pod that decide its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Numbered<'a> {
    pub(super) service: &'a ServiceName,
    /// Most pods of its service at a time: the replicas and the surge of a rollout.
    pub(super) pods_max: u32,
    pub(super) created: LogTime,
    pub(super) name: &'a str,
    pub(super) uid: &'a str,
    pub(super) lives: bool,
    /// Whether it is in the cluster and being deleted.
    pub(super) is_dying: bool,
    /// Whether its container has run.
    pub(super) has_run: bool,
    /// Its ordinal in a stateful set, which is always its index.
    pub(super) ordinal: Option<u32>,
    /// The index that is written on it, or that it has had.
    pub(super) claim: Option<u32>,
}

/// Returns the index of each pod without an ordinal, by uid. A pod that neither lives nor is being deleted
/// and has no claim has no index. Neither has a pod that has not run and is being deleted or finds no free
/// index.
pub(super) fn assign<'a>(pods: impl IntoIterator<Item = Numbered<'a>>) -> BTreeMap<&'a str, u32> {
    let mut pods: Vec<Numbered<'a>> = pods.into_iter().collect();
    pods.sort_by_key(|pod| (pod.service, pod.created, pod.name));
    let mut given = BTreeMap::new();
    for service in pods.chunk_by(|one, other| one.service == other.service) {
        let mut taken: BTreeSet<u32> =
            service.iter().filter(|pod| pod.lives).filter_map(|pod| pod.ordinal).collect();
        let unnumbered = || service.iter().filter(|pod| pod.ordinal.is_none());
        for pod in unnumbered() {
            match pod.claim {
                // Its log is read to its end under that index, even if another pod has taken it.
                Some(claim) if !pod.lives => {
                    given.insert(pod.uid, claim);
                }
                // Of two pods with the same claim, the older one comes first and keeps it.
                Some(claim) if taken.insert(claim) => {
                    given.insert(pod.uid, claim);
                }
                _ => {}
            }
        }
        for pod in unnumbered().filter(|pod| pod.lives) {
            if !given.contains_key(pod.uid)
                && let Some(free) = (0..=u32::MAX).find(|index| !taken.contains(index))
                && (pod.has_run || free < pod.pods_max)
            {
                taken.insert(free);
                given.insert(pod.uid, free);
            }
        }
        for pod in unnumbered().filter(|pod| pod.is_dying && pod.has_run && pod.claim.is_none()) {
            taken.extend(service.iter().filter_map(|other| given.get(other.uid)));
            if let Some(free) = (0..=u32::MAX).find(|index| !taken.contains(index)) {
                given.insert(pod.uid, free);
            }
        }
    }
    given
}

/// Returns the replica indices of a service that should have `count` pods and has pods with the indices
/// `held`: these, and the lowest free ones for the missing pods. After a scale-down no pod is missing.
pub(super) fn of_service(held: &BTreeSet<u32>, count: u32) -> BTreeSet<u32> {
    let missing = (count as usize).saturating_sub(held.len());
    let free = (0..=u32::MAX).filter(|index| !held.contains(index)).take(missing);
    held.iter().copied().chain(free).collect()
}

#[cfg(test)]
mod tests;
