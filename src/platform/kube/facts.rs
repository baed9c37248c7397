//! Kubernetes objects, and what is kept of them: a watch over a whole cluster must cost little memory.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateTerminated, ContainerStatus, Namespace, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::names;
use crate::model::id::{LeaseId, ServiceName};
use crate::model::time::LogTime;
use crate::model::view::{Counts, ForwardedPort, LeasedIp, RunEnd};

/// Longest message of a kubelet or scheduler that is kept, in bytes.
const MESSAGE_MAX_BYTES: usize = 1_024;

/// Why a container waits that is about to begin.
const STARTING: [&str; 3] = ["ContainerCreating", "PodInitializing", "Waiting"];

/// A pod of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodFacts {
    /// What it was when it was made; never another's.
    pub(super) uid: String,
    /// Its name, which the next pod of a stateful set has too.
    pub(super) name: String,
    /// The version of it that was seen.
    pub(super) version: String,
    /// The service that it is a replica of, which is also its main container's name.
    pub(super) service: ServiceName,
    /// Where it runs, once that is known.
    pub(super) node: Option<String>,
    /// Uid of the replica set that it belongs to; empty without one.
    pub(super) set: Box<str>,
    /// Its ordinal in a stateful set.
    pub(super) ordinal: Option<u32>,
    /// The index that is written on it.
    pub(super) written: Option<u32>,
    /// When it was made.
    pub(super) created: LogTime,
    /// Whether it lives: it is not being deleted, has not failed and has not succeeded.
    pub(super) lives: bool,
    /// Whether it counts as ready.
    pub(super) ready: bool,
    /// How its container is doing, once a kubelet has said so.
    pub(super) container: Option<ContainerFacts>,
    /// Why it does not run, if it is not the container that tells: one word, and more.
    pub(super) pending: Option<(String, String)>,
}

/// The main container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContainerFacts {
    /// Number of the newest run that there was.
    pub(super) restarts: u32,
    /// What it is doing.
    pub(super) state: State,
    /// The newest run, if there was one: when it began and how it ended.
    pub(super) newest: Option<RunFacts>,
    /// The run before, if the kubelet tells of it.
    pub(super) before: Option<RunFacts>,
}

/// What a container is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It runs.
    Running,
    /// It does not, and why.
    Waiting(String, String),
    /// It has ended.
    Ended,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunFacts {
    /// When it began.
    pub(super) started: LogTime,
    /// How it ended; `None` while it runs.
    pub(super) end: Option<RunEnd>,
}

/// A deployment or stateful set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkloadFacts {
    /// The service that it runs.
    pub(super) service: ServiceName,
    /// How many replicas there ought to be.
    pub(super) count: u32,
    /// What its controller counts.
    pub(super) counts: Counts,
    /// Whether its pods are numbered by Kubernetes.
    pub(super) is_ordinal: bool,
}

/// Ports and addresses of a service. Each of the two lists is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ReachFacts {
    /// Name of the lease's service; `None` if it cannot be told.
    pub(super) service: Option<ServiceName>,
    /// Node ports; the host is for the view to say.
    pub(super) ports: Vec<ForwardedPort>,
    /// Leased addresses.
    pub(super) ips: Vec<LeasedIp>,
}

/// A namespace of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeaseFacts {
    /// The lease that its labels name.
    pub(super) lease: LeaseId,
    /// Whether it is being deleted.
    pub(super) ends: bool,
}

// === impl PodFacts ===

impl PodFacts {
    /// What is kept of a pod; `None` if it is no pod of a lease's service.
    pub(super) fn read(pod: &Pod) -> Option<Self> {
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
            set: owner
                .filter(|owner| owner.kind == "ReplicaSet")
                .map(|owner| owner.uid.as_str().into())
                .unwrap_or_default(),
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
}

impl PodFacts {
    /// Whether it does not run, and not because it is about to.
    pub(super) fn is_stuck(&self) -> bool {
        let reason = match (&self.pending, self.container.as_ref().map(|container| &container.state)) {
            (Some((reason, _)), _) | (None, Some(State::Waiting(reason, _))) => reason,
            (None, Some(State::Running | State::Ended) | None) => return false,
        };
        !STARTING.contains(&reason.as_str())
    }
}

// === impl ContainerFacts ===

impl ContainerFacts {
    fn read(status: &ContainerStatus) -> Self {
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
        // The run that the kubelet calls the last one is the newest that there was. Its number is the count of restarts, unless the
        // next one has been made and is about to begin.
        let next_is_made = last.is_some_and(|last| {
            let made = status.container_id.as_deref().filter(|id| !id.is_empty());
            made.is_some() && made != last.container_id.as_deref()
        });
        let restarts = if next_is_made { restarts.saturating_sub(1) } else { restarts };
        Self { restarts, state, newest: last.map(RunFacts::ended), before: None }
    }
}

// === impl RunFacts ===

impl RunFacts {
    fn ended(state: &ContainerStateTerminated) -> Self {
        let code = state.exit_code;
        // A runtime gives 128 and the signal's number as the exit code.
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

// === impl WorkloadFacts ===

impl WorkloadFacts {
    /// What is kept of a deployment; `None` if it is not one of a lease.
    pub(super) fn of_deployment(deployment: &Deployment) -> Option<Self> {
        let status = deployment.status.as_ref();
        let number = |pick: fn(&k8s_openapi::api::apps::v1::DeploymentStatus) -> Option<i32>| {
            unsigned(status.and_then(pick))
        };
        Some(Self {
            service: label(&deployment.metadata, names::SERVICE)?.parse().ok()?,
            count: deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.replicas)
                .map_or(1, |count| unsigned(Some(count))),
            counts: Counts {
                observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
                total: number(|status| status.replicas),
                updated: number(|status| status.updated_replicas),
                ready: number(|status| status.ready_replicas),
                available: number(|status| status.available_replicas),
            },
            is_ordinal: false,
        })
    }

    /// What is kept of a stateful set; `None` if it is not one of a lease.
    pub(super) fn of_stateful_set(set: &StatefulSet) -> Option<Self> {
        let status = set.status.as_ref();
        Some(Self {
            service: label(&set.metadata, names::SERVICE)?.parse().ok()?,
            count: set.spec.as_ref().and_then(|spec| spec.replicas).map_or(1, |count| unsigned(Some(count))),
            counts: Counts {
                observed_generation: status.and_then(|status| status.observed_generation).unwrap_or_default(),
                total: unsigned(status.map(|status| status.replicas)),
                updated: unsigned(status.and_then(|status| status.updated_replicas)),
                ready: unsigned(status.and_then(|status| status.ready_replicas)),
                // Not `currentReplicas`, which counts pods of the current revision, ready or not.
                available: unsigned(status.and_then(|status| status.available_replicas)),
            },
            is_ordinal: true,
        })
    }
}

// === impl ReachFacts ===

impl ReachFacts {
    /// What is kept of a service; `None` if nothing of it can be reached from outside.
    pub(super) fn read(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let named = label(&service.metadata, names::SERVICE)
            .or_else(|| spec.selector.as_ref()?.get(names::SERVICE).map(String::as_str));
        let name: ServiceName = named?.parse().ok()?;
        let is_leased = label(&service.metadata, names::TARGET) == Some(names::LEASED_IP_TARGET);
        let ports = spec.ports.as_deref().unwrap_or_default();
        let protocol = |of: Option<&String>| of.cloned().unwrap_or_else(|| "TCP".to_owned());
        let mut facts = Self { service: Some(name.clone()), ..Self::default() };
        match spec.type_.as_deref() {
            Some("NodePort") => facts.ports.extend(ports.iter().filter_map(|port| {
                Some(ForwardedPort {
                    host: String::new(),
                    port: target(port.target_port.as_ref(), port.port)?,
                    external_port: port_number(port.node_port?)?,
                    protocol: protocol(port.protocol.as_ref()),
                    name: name.to_string(),
                })
            })),
            Some("LoadBalancer") if is_leased => {
                let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
                let ingress = balancer.and_then(|balancer| balancer.ingress.as_deref()).unwrap_or_default();
                for ip in ingress.iter().filter_map(|ingress| ingress.ip.as_ref()) {
                    facts.ips.extend(ports.iter().filter_map(|port| {
                        Some(LeasedIp {
                            ip: ip.clone(),
                            port: target(port.target_port.as_ref(), port.port)?,
                            external_port: port_number(port.port)?,
                            protocol: protocol(port.protocol.as_ref()),
                        })
                    }));
                }
            }
            _ => return None,
        }
        facts.ports.sort_by(|a, b| {
            (a.port, a.external_port, &a.protocol).cmp(&(b.port, b.external_port, &b.protocol))
        });
        facts.ips.sort_by(|a, b| {
            (&a.ip, a.external_port, &a.protocol).cmp(&(&b.ip, b.external_port, &b.protocol))
        });
        Some(facts)
    }
}

// === impl LeaseFacts ===

impl LeaseFacts {
    /// The lease of a namespace, by its labels and by its name; `None` if it is none, or the two do not agree.
    pub(super) fn read(namespace: &Namespace) -> Option<Self> {
        let meta = &namespace.metadata;
        let parts: Option<Vec<&str>> = names::LEASE_PARTS.iter().map(|part| label(meta, part)).collect();
        let lease: LeaseId = parts?.join("/").parse().ok()?;
        (meta.name.as_deref() == Some(lease.namespace().as_str()))
            .then(|| Self { lease, ends: meta.deletion_timestamp.is_some() })
    }
}

/// A message, not longer than what is kept of it.
fn clip(mut message: String) -> String {
    if message.len() > MESSAGE_MAX_BYTES {
        let end =
            (0..=MESSAGE_MAX_BYTES).rev().find(|end| message.is_char_boundary(*end)).unwrap_or_default();
        message.truncate(end);
    }
    message
}

/// Whether a terminated container had begun: a kubelet also says so of one that it knows nothing of.
fn ran(state: &ContainerStateTerminated) -> bool {
    state.container_id.as_deref().is_some_and(|id| !id.is_empty())
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    entry(meta.labels.as_ref(), name)
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    entry(meta.annotations.as_ref(), name)
}

fn entry<'a>(map: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    map?.get(name).map(String::as_str)
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

fn time(time: &Time) -> LogTime {
    let nanos = time.0.as_nanosecond();
    i64::try_from(nanos).map_or(LogTime::MIN, LogTime::from_nanos)
}

fn unsigned(number: Option<i32>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok()
}

/// The container's port: the target's number, or the service's own where the target is the same or has a name.
fn target(target: Option<&IntOrString>, port: i32) -> Option<u16> {
    match target {
        Some(IntOrString::Int(target)) if *target != 0 => port_number(*target),
        _ => port_number(port),
    }
}
