//! Pods, their main containers, and the runs of these.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::{annotation, clip, label, time};
use crate::model::id::ServiceName;
use crate::model::time::LogTime;
use crate::model::view::RunEnd;
use crate::platform::kube::names;

/// Waiting reasons of a container that is about to begin.
const STARTING: [&str; 3] = ["ContainerCreating", "PodInitializing", "Waiting"];

/// A pod of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodFacts {
    pub(crate) uid: String,
    /// Its name, which its successor in a stateful set has too.
    pub(crate) name: String,
    /// The version that was seen.
    pub(crate) version: String,
    /// Its service, which is also the name of its main container.
    pub(crate) service: ServiceName,
    /// Its node, once it is scheduled.
    pub(crate) node: Option<String>,
    /// Its ordinal in a stateful set.
    pub(crate) ordinal: Option<u32>,
    /// The replica index that is written on it.
    pub(crate) written: Option<u32>,
    pub(crate) created: LogTime,
    /// Whether it lives: it is not being deleted, has not failed and has not succeeded.
    pub(crate) lives: bool,
    pub(crate) ready: bool,
    /// Its main container, once a kubelet has reported it.
    pub(crate) container: Option<ContainerFacts>,
    /// Why it does not run, if its container does not have the reason: a word and a message.
    pub(crate) pending: Option<(String, String)>,
}

/// The main container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ContainerFacts {
    /// Number of the newest run.
    pub(crate) restarts: u32,
    pub(crate) state: State,
    /// The newest run, if it has run.
    pub(crate) newest: Option<RunFacts>,
    /// The previous run, if the kubelet reports it.
    pub(crate) before: Option<RunFacts>,
}

/// State of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    /// It does not run: reason and message.
    Waiting(String, String),
    Ended,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunFacts {
    pub(crate) started: LogTime,
    /// `None` while it runs.
    pub(crate) end: Option<RunEnd>,
}

// === impl PodFacts ===

impl PodFacts {
    /// Reads a pod; `None` if it belongs to no service of a lease.
    pub(crate) fn read(pod: &Pod) -> Option<Self> {
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

    pub(crate) fn has_run(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.newest.is_some())
    }

    /// Whether it does not run and is not about to.
    pub(crate) fn is_stuck(&self) -> bool {
        let reason = match (&self.pending, self.container.as_ref().map(|container| &container.state)) {
            (Some((reason, _)), _) | (None, Some(State::Waiting(reason, _))) => reason,
            (None, Some(State::Running | State::Ended) | None) => return false,
        };
        !STARTING.contains(&reason.as_str())
    }
}

// === impl ContainerFacts ===

impl ContainerFacts {
    /// Whether the newest run has ended and the next one is expected.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(..))
    }

    pub(super) fn read(status: &ContainerStatus) -> Self {
        let restarts = u32::try_from(status.restart_count).unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let none = ContainerState::default();
        let now = status.state.as_ref().unwrap_or(&none);
        if let Some(running) = &now.running {
            let started = running.started_at.as_ref().map_or(LogTime::MIN, time);
            let newest = Some(RunFacts { started, end: None });
            return Self { restarts, state: State::Running, newest, before: last.map(RunFacts::ended) };
        }
        if let Some(terminated) = now.terminated.as_ref().filter(|ended| ran(ended)) {
            let newest = Some(RunFacts::ended(terminated));
            return Self { restarts, state: State::Ended, newest, before: last.map(RunFacts::ended) };
        }
        let waiting = now.waiting.as_ref();
        let reason = waiting.and_then(|waiting| waiting.reason.clone());
        let message = waiting.and_then(|waiting| waiting.message.clone());
        let state =
            State::Waiting(reason.unwrap_or_else(|| "Waiting".to_owned()), clip(message.unwrap_or_default()));
        // The kubelet's last run is the newest one. Its number is the count of restarts, unless the next
        // container was created and is about to begin.
        let next_is_created = last.is_some_and(|last| {
            let created = status.container_id.as_deref().filter(|id| !id.is_empty());
            created.is_some() && created != last.container_id.as_deref()
        });
        let restarts = if next_is_created { restarts.saturating_sub(1) } else { restarts };
        Self { restarts, state, newest: last.map(RunFacts::ended), before: None }
    }
}

// === impl RunFacts ===

impl RunFacts {
    fn ended(state: &ContainerStateTerminated) -> Self {
        let code = state.exit_code;
        // Runtimes return 128 plus the number of the signal.
        let signal =
            state.signal.filter(|signal| *signal != 0).or((129..=192).contains(&code).then(|| code - 128));
        let end = RunEnd {
            time: state.finished_at.as_ref().map_or(LogTime::MIN, time),
            exit_code: Some(code),
            signal,
            reason: state.reason.clone().unwrap_or_else(|| "Error".to_owned()),
        };
        Self { started: state.started_at.as_ref().map_or(LogTime::MIN, time), end: Some(end) }
    }
}

/// Whether a terminated container had begun. Kubelets also report containers as terminated that they do not
/// know.
fn ran(state: &ContainerStateTerminated) -> bool {
    state.container_id.as_deref().is_some_and(|id| !id.is_empty())
}

/// The ordinal of a pod in a stateful set: the number after the set's name.
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

/// Why a pod does not run, if its main container does not have the reason: it is not scheduled, or an init
/// container has not finished.
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
