//! Pods: what is kept of them.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::container::{ContainerFacts, State};
use super::{annotation, clip, label, time};
use crate::model::id::ServiceName;
use crate::model::time::LogTime;
use crate::platform::kube::names;

/// Why a container waits that is about to begin.
const STARTING: [&str; 3] = ["ContainerCreating", "PodInitializing", "Waiting"];

/// A pod of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::platform::kube) struct PodFacts {
    /// What it was when it was made; never another's.
    pub(in crate::platform::kube) uid: String,
    /// Its name, which the next pod of a stateful set has too.
    pub(in crate::platform::kube) name: String,
    /// The version of it that was seen.
    pub(in crate::platform::kube) version: String,
    /// The service that it is a replica of, which is also its main container's name.
    pub(in crate::platform::kube) service: ServiceName,
    /// Where it runs, once that is known.
    pub(in crate::platform::kube) node: Option<String>,
    /// Its ordinal in a stateful set.
    pub(in crate::platform::kube) ordinal: Option<u32>,
    /// The index that is written on it.
    pub(in crate::platform::kube) written: Option<u32>,
    /// When it was made.
    pub(in crate::platform::kube) created: LogTime,
    /// Whether it lives: it is not being deleted, has not failed and has not succeeded.
    pub(in crate::platform::kube) lives: bool,
    /// Whether it counts as ready.
    pub(in crate::platform::kube) ready: bool,
    /// How its container is doing, once a kubelet has said so.
    pub(in crate::platform::kube) container: Option<ContainerFacts>,
    /// Why it does not run, if it is not the container that tells: one word, and more.
    pub(in crate::platform::kube) pending: Option<(String, String)>,
}

// === impl PodFacts ===

impl PodFacts {
    /// What is kept of a pod; `None` if it is no pod of a lease's service.
    pub(in crate::platform::kube) fn read(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let service: ServiceName = label(meta, names::SERVICE)?.parse().ok()?;
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        let main = containers.iter().find(|container| container.name == service.as_str());
        let ready = is_true(pod, "Ready");
        Some(Self {
            uid: meta.uid.clone()?,
            name: meta.name.clone()?,
            version: meta.resource_version.clone().unwrap_or_default(),
            node: spec.and_then(|spec| spec.node_name.clone()),
            ordinal: owner.and_then(|owner| ordinal(meta, owner)),
            written: annotation(meta, names::INDEX).and_then(|text| text.parse().ok()),
            created: meta.creation_timestamp.as_ref().map_or(LogTime::MIN, time),
            lives: meta.deletion_timestamp.is_none() && !matches!(phase, "Failed" | "Succeeded"),
            ready: ready && meta.deletion_timestamp.is_none(),
            container: main.map(ContainerFacts::read),
            pending: pending(pod),
            service,
        })
    }

    /// Whether its container has run.
    pub(in crate::platform::kube) fn has_run(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.newest.is_some())
    }

    /// Whether it does not run, and not because it is about to.
    pub(in crate::platform::kube) fn is_stuck(&self) -> bool {
        let reason = match (&self.pending, self.container.as_ref().map(|container| &container.state)) {
            (Some((reason, _)), _) | (None, Some(State::Waiting(reason, _))) => reason,
            (None, Some(State::Running | State::Ended) | None) => return false,
        };
        !STARTING.contains(&reason.as_str())
    }
}

/// The number that a stateful set gave a pod: what stands behind the set's name.
fn ordinal(meta: &ObjectMeta, owner: &OwnerReference) -> Option<u32> {
    if owner.kind != "StatefulSet" {
        return None;
    }
    meta.name.as_deref()?.strip_prefix(owner.name.as_str())?.strip_prefix('-')?.parse().ok()
}

fn is_true(pod: &Pod, condition: &str) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|found| found.type_ == condition && found.status == "True")
}

/// Why a pod does not run, as far as its containers do not tell: it is not placed, or an init container is not done.
fn pending(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    if let Some(reason) = status.reason.clone() {
        return Some((reason, clip(status.message.clone().unwrap_or_default())));
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unplaced = conditions.iter().find(|found| found.type_ == "PodScheduled" && found.status == "False");
    if let Some(unplaced) = unplaced {
        let reason = unplaced.reason.clone().unwrap_or_else(|| "Unschedulable".to_owned());
        return Some((reason, clip(unplaced.message.clone().unwrap_or_default())));
    }
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let waiting = init.iter().find_map(|container| container.state.as_ref()?.waiting.as_ref())?;
    let reason = waiting.reason.clone().filter(|reason| reason != "PodInitializing")?;
    Some((format!("Init:{reason}"), clip(waiting.message.clone().unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gateways of other versions write this annotation.
    #[test]
    fn recorded_pod_has_its_replica_index() {
        const RECORDED: &str = include_str!("../../../../tests/surface/fixtures/kubernetes-pod.json");
        let pod: Pod = serde_json::from_str(RECORDED).unwrap();
        let facts = PodFacts::read(&pod).unwrap();
        assert_eq!((facts.service.as_str(), facts.written, facts.uid.as_str()), ("web", Some(2), "uid"));
    }
}
