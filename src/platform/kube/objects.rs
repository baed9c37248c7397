//! The stored parts of Kubernetes objects. They are small, because the watches cover the whole cluster.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, StatefulSet};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Namespace, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::DynamicObject;
use serde_json::Value;

use super::names;
use crate::model::id::{LeaseId, ServiceName};
use crate::model::text::truncate;
use crate::model::time::LogTime;
use crate::model::view::{ForwardedPort, LeasedIp, ReplicaCounts, RunEnd};

/// Longest stored message of a kubelet or scheduler.
const MESSAGE_MAX_BYTES: usize = 1_024;

/// Waiting reasons of a container that is about to begin.
const STARTING: [&str; 3] = ["ContainerCreating", "PodInitializing", "Waiting"];

/// Default of a Deployment's `maxSurge`, in percent of its replicas.
const SURGE_PERCENT: u32 = 25;

/// The namespace of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeaseFacts {
    pub(super) lease: LeaseId,
    /// Whether it is being deleted.
    pub(super) ends: bool,
}

/// A pod of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) uid: String,
    /// Its name, which its successor in a stateful set has too.
    pub(super) name: String,
    /// The version that was seen.
    pub(super) version: String,
    /// Its service, which is also the name of its main container.
    pub(super) service: ServiceName,
    /// Its node, once it is scheduled.
    pub(super) node: Option<String>,
    /// Its ordinal in a stateful set.
    pub(super) ordinal: Option<u32>,
    /// The replica index that is written on it.
    pub(super) written: Option<u32>,
    pub(super) created: LogTime,
    /// When its deletion was requested.
    pub(super) deleted: Option<LogTime>,
    /// Whether it lives: it is not being deleted, has not failed and has not succeeded.
    pub(super) lives: bool,
    pub(super) ready: bool,
    /// Its main container, once a kubelet has reported it.
    pub(super) container: Option<ContainerFacts>,
    /// Why it does not run, if its container does not have the reason: a word and a message.
    pub(super) pending: Option<(String, String)>,
}

/// How a pod went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Departure {
    pub(super) at: LogTime,
    /// Whether a watch has told its last state. Otherwise a list lacked the pod.
    pub(super) is_seen: bool,
}

/// The main container of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ContainerFacts {
    /// Number of the newest run, which is the count of restarts.
    pub(super) run_number: u32,
    pub(super) state: State,
    /// The newest run, if it has run.
    pub(super) newest: Option<RunFacts>,
    /// The previous run, if the kubelet reports it.
    pub(super) before: Option<RunFacts>,
}

/// State of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// It does not run: reason and message.
    Waiting(String, String),
    Ended,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RunFacts {
    pub(super) started: LogTime,
    /// `None` while it runs.
    pub(super) end: Option<RunEnd>,
}

/// A deployment or stateful set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkloadFacts {
    pub(super) service: ServiceName,
    /// Wanted number of replicas.
    pub(super) count: u32,
    /// Additional pods that a rollout may have.
    pub(super) surge: u32,
    /// Counts of its controller.
    pub(super) counts: ReplicaCounts,
    /// Whether Kubernetes numbers its pods.
    pub(super) is_ordinal: bool,
}

/// Ports and addresses of a service. Each of the two lists is sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServiceEndpoints {
    pub(super) service: ServiceName,
    /// Node ports, without their host.
    pub(super) ports: Vec<ForwardedPort>,
    pub(super) ips: Vec<LeasedIp>,
}

/// A host name that leads to a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct HostFacts {
    /// The namespace of the lease.
    pub(super) namespace: String,
    pub(super) service: ServiceName,
    pub(super) host: String,
}

/// A port of a leased address. The load balancer has the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeasedFacts {
    /// The namespace of the lease.
    pub(super) namespace: String,
    pub(super) service: ServiceName,
    pub(super) port: u16,
    /// The port at the address.
    pub(super) external_port: u16,
    /// `TCP` or `UDP`.
    pub(super) protocol: String,
}

// === impl LeaseFacts ===

impl LeaseFacts {
    /// Reads a namespace; `None` if it belongs to no lease, or if its labels and its name disagree.
    pub(super) fn read(namespace: &Namespace) -> Option<Self> {
        let meta = &namespace.metadata;
        let parts: Option<Vec<&str>> = names::LEASE_PARTS.iter().map(|part| label(meta, part)).collect();
        let lease: LeaseId = parts?.join("/").parse().ok()?;
        (meta.name.as_ref() == Some(&lease.namespace()))
            .then(|| Self { lease, ends: meta.deletion_timestamp.is_some() })
    }
}

// === impl PodFacts ===

impl PodFacts {
    /// Reads a pod; `None` if it belongs to no service of a lease.
    pub(super) fn read(pod: &Pod) -> Option<Self> {
        let meta = &pod.metadata;
        let status = pod.status.as_ref();
        let service: ServiceName = label(meta, names::SERVICE)?.parse().ok()?;
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let owner = meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let conditions = status.and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let ready = conditions.iter().any(|found| found.type_ == "Ready" && found.status == "True");
        Some(Self {
            uid: meta.uid.clone()?,
            name: meta.name.clone()?,
            version: meta.resource_version.clone().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            ordinal: owner.and_then(|owner| ordinal(meta, owner)),
            written: meta.annotations.as_ref().and_then(|all| all.get(names::INDEX)?.parse().ok()),
            created: meta.creation_timestamp.as_ref().map_or(LogTime::MIN, time),
            deleted: deletion_requested(meta),
            lives: meta.deletion_timestamp.is_none() && !matches!(phase, "Failed" | "Succeeded"),
            ready: ready && meta.deletion_timestamp.is_none(),
            container: container_status(pod, service.as_str()).map(ContainerFacts::read),
            pending: pending(pod),
            service,
        })
    }

    pub(super) fn has_run(&self) -> bool {
        self.container.as_ref().is_some_and(|container| container.newest.is_some())
    }

    /// Returns whether it does not run and is not about to.
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
    /// Returns whether the newest run has ended and the next one is expected.
    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting(..))
    }

    pub(super) fn read(status: &ContainerStatus) -> Self {
        let run_number = u32::try_from(status.restart_count).unwrap_or_default();
        let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        let now = status.state.clone().unwrap_or_default();
        if let Some(running) = &now.running {
            let started = running.started_at.as_ref().map_or(LogTime::MIN, time);
            let newest = Some(RunFacts { started, end: None });
            return Self { run_number, state: State::Running, newest, before: last.map(RunFacts::ended) };
        }
        if let Some(terminated) = now.terminated.as_ref().filter(|ended| ran(ended)) {
            let newest = Some(RunFacts::ended(terminated));
            return Self { run_number, state: State::Ended, newest, before: last.map(RunFacts::ended) };
        }
        let waiting = now.waiting.unwrap_or_default();
        let reason = waiting.reason.unwrap_or_else(|| "Waiting".to_owned());
        let state = State::Waiting(reason, clip(waiting.message.as_ref()));
        // The kubelet's last run is the newest one. Its number is the count of restarts, unless the next
        // container was created and is about to begin.
        let next_is_created = last.is_some_and(|last| {
            let created = status.container_id.as_deref().filter(|id| !id.is_empty());
            created.is_some() && created != last.container_id.as_deref()
        });
        let run_number = if next_is_created { run_number.saturating_sub(1) } else { run_number };
        Self { run_number, state, newest: last.map(RunFacts::ended), before: None }
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

/// Returns the status of a pod's container.
pub(super) fn container_status<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.iter().find(|status| status.name == name)
}

/// Returns whether a terminated container had begun. Kubelets also report containers as terminated that they
/// do not know.
fn ran(state: &ContainerStateTerminated) -> bool {
    state.container_id.as_deref().is_some_and(|id| !id.is_empty())
}

/// Returns the ordinal of a pod in a stateful set: the number after the set's name.
fn ordinal(meta: &ObjectMeta, owner: &OwnerReference) -> Option<u32> {
    if owner.kind != "StatefulSet" {
        return None;
    }
    meta.name.as_deref()?.strip_prefix(owner.name.as_str())?.strip_prefix('-')?.parse().ok()
}

/// Returns when the deletion of an object was requested. Its deletion timestamp is the end of the grace
/// period.
fn deletion_requested(meta: &ObjectMeta) -> Option<LogTime> {
    let grace = meta.deletion_grace_period_seconds.unwrap_or_default();
    let until = meta.deletion_timestamp.as_ref().map(time)?;
    Some(until.saturating_add_nanos(grace.saturating_mul(-1_000_000_000)))
}

/// Returns why a pod does not run, if its main container does not have the reason: it is not scheduled, or an
/// init container has not finished.
fn pending(pod: &Pod) -> Option<(String, String)> {
    let status = pod.status.as_ref()?;
    if let Some(reason) = status.reason.clone() {
        return Some((reason, clip(status.message.as_ref())));
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let unplaced = conditions.iter().find(|found| found.type_ == "PodScheduled" && found.status == "False");
    if let Some(unplaced) = unplaced {
        let reason = unplaced.reason.clone().unwrap_or_else(|| "Unschedulable".to_owned());
        return Some((reason, clip(unplaced.message.as_ref())));
    }
    let init = status.init_container_statuses.as_deref().unwrap_or_default();
    let waiting = init.iter().find_map(|container| container.state.as_ref()?.waiting.as_ref())?;
    let reason = waiting.reason.clone().filter(|reason| reason != "PodInitializing")?;
    Some((format!("Init:{reason}"), clip(waiting.message.as_ref())))
}

// === impl WorkloadFacts ===

impl WorkloadFacts {
    /// Reads a deployment; `None` if it belongs to no lease.
    pub(super) fn of_deployment(deployment: &Deployment) -> Option<Self> {
        let spec = deployment.spec.as_ref();
        let status = deployment.status.clone().unwrap_or_default();
        let count = spec.and_then(|spec| spec.replicas).map_or(1, |count| unsigned(Some(count)));
        Some(Self {
            service: label(&deployment.metadata, names::SERVICE)?.parse().ok()?,
            count,
            surge: spec.map_or(0, |spec| surge(spec, count)),
            counts: ReplicaCounts {
                observed_generation: status.observed_generation.unwrap_or_default(),
                total: unsigned(status.replicas),
                updated: unsigned(status.updated_replicas),
                ready: unsigned(status.ready_replicas),
                available: unsigned(status.available_replicas),
            },
            is_ordinal: false,
        })
    }

    /// Reads a stateful set; `None` if it belongs to no lease.
    pub(super) fn of_stateful_set(set: &StatefulSet) -> Option<Self> {
        let status = set.status.clone().unwrap_or_default();
        Some(Self {
            service: label(&set.metadata, names::SERVICE)?.parse().ok()?,
            count: set.spec.as_ref().and_then(|spec| spec.replicas).map_or(1, |count| unsigned(Some(count))),
            surge: 0,
            counts: ReplicaCounts {
                observed_generation: status.observed_generation.unwrap_or_default(),
                total: unsigned(Some(status.replicas)),
                updated: unsigned(status.updated_replicas),
                ready: unsigned(status.ready_replicas),
                // Not `currentReplicas`, which counts pods of the current revision, whether ready or not.
                available: unsigned(status.available_replicas),
            },
            is_ordinal: true,
        })
    }
}

/// Returns how many pods beyond `count` a rollout of this deployment may create before it deletes one.
fn surge(spec: &DeploymentSpec, count: u32) -> u32 {
    let strategy = spec.strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
        return 0;
    }
    let surge = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.max_surge.as_ref());
    // Kubernetes rounds a percentage up.
    let share = |percent: u32| count.saturating_mul(percent).div_ceil(100);
    match surge {
        Some(IntOrString::Int(pods)) => unsigned(Some(*pods)),
        Some(IntOrString::String(text)) => share(text.trim_end_matches('%').parse().unwrap_or(SURGE_PERCENT)),
        None => share(SURGE_PERCENT),
    }
}

fn unsigned(number: Option<i32>) -> u32 {
    number.and_then(|number| u32::try_from(number).ok()).unwrap_or_default()
}

// === impl ServiceEndpoints ===

impl ServiceEndpoints {
    /// Reads a service; `None` if it cannot be reached from outside the cluster.
    pub(super) fn read(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let named = label(&service.metadata, names::SERVICE)
            .or_else(|| spec.selector.as_ref()?.get(names::SERVICE).map(String::as_str));
        let name: ServiceName = named?.parse().ok()?;
        let is_leased = label(&service.metadata, names::TARGET) == Some(names::LEASED_IP_TARGET);
        let ports = spec.ports.as_deref().unwrap_or_default();
        let protocol = |of: Option<&String>| of.cloned().unwrap_or_else(|| "TCP".to_owned());
        let mut facts = Self { service: name.clone(), ports: Vec::new(), ips: Vec::new() };
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
        facts.ports.sort_by_cached_key(|port| (port.port, port.external_port, port.protocol.clone()));
        facts.ips.sort_by_cached_key(|ip| (ip.ip.clone(), ip.external_port, ip.protocol.clone()));
        Some(facts)
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok()
}

/// Returns the container's port: the target's number, or the service's own if the target is unset or a name.
fn target(target: Option<&IntOrString>, port: i32) -> Option<u16> {
    match target {
        Some(IntOrString::Int(target)) if *target != 0 => port_number(*target),
        _ => port_number(port),
    }
}

// === impl HostFacts ===

impl HostFacts {
    /// Reads a `ProviderHost`; `None` if it belongs to no lease.
    pub(super) fn read(object: &DynamicObject) -> Option<Self> {
        let spec = object.data.get("spec")?;
        let host = text(spec, "hostname").or_else(|| object.metadata.name.clone())?;
        let namespace = lease(spec)?.namespace();
        Some(Self { namespace, service: text(spec, "service_name")?.parse().ok()?, host })
    }
}

// === impl LeasedFacts ===

impl LeasedFacts {
    /// Reads a `ProviderLeasedIP`; `None` if it belongs to no lease.
    pub(super) fn read(object: &DynamicObject) -> Option<Self> {
        let spec = object.data.get("spec")?;
        Some(Self {
            namespace: lease(spec.get("lease_id")?)?.namespace(),
            service: text(spec, "service_name")?.parse().ok()?,
            port: number(spec, "port")?.try_into().ok()?,
            external_port: number(spec, "external_port")?.try_into().ok()?,
            protocol: text(spec, "protocol")?.to_ascii_uppercase(),
        })
    }
}

fn lease(fields: &Value) -> Option<LeaseId> {
    let short = |field: &str| u32::try_from(number(fields, field)?).ok();
    let (owner, provider) = (text(fields, "owner")?, text(fields, "provider")?);
    LeaseId::new(&owner, number(fields, "dseq")?, short("gseq")?, short("oseq")?, &provider).ok()
}

/// Reads a number. The same field is a number in one resource and text in another.
fn number(fields: &Value, field: &str) -> Option<u64> {
    match fields.get(field)? {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64(),
    }
}

fn text(fields: &Value, field: &str) -> Option<String> {
    fields.get(field)?.as_str().map(str::to_owned)
}

/// Returns a message, truncated to [`MESSAGE_MAX_BYTES`].
fn clip(message: Option<&String>) -> String {
    truncate(message.map_or("", String::as_str), MESSAGE_MAX_BYTES).to_owned()
}

fn label<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(name).map(String::as_str)
}

pub(super) fn time(time: &Time) -> LogTime {
    let nanos = time.0.as_nanosecond();
    i64::try_from(nanos).map_or(LogTime::MIN, LogTime::from_nanos)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Gateways of other versions write this annotation.
    #[test]
    fn recorded_pod_has_its_replica_index() {
        const RECORDED: &str = include_str!("../../../tests/surface/fixtures/kubernetes-pod.json");
        let pod: Pod = serde_json::from_str(RECORDED).unwrap();
        let facts = PodFacts::read(&pod).unwrap();
        assert_eq!((facts.service.as_str(), facts.written, facts.uid.as_str()), ("web", Some(2), "uid"));
    }

    fn surge_of(strategy: &Value, count: u32) -> u32 {
        let spec = json!({ "replicas": count, "selector": {}, "template": {}, "strategy": strategy });
        surge(&serde_json::from_value(spec).unwrap(), count)
    }

    #[test]
    fn surge_is_a_number_or_a_rounded_up_percentage() {
        let rolling =
            |surge: Value| json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge } });
        assert_eq!(surge_of(&rolling(json!(0)), 3), 0);
        assert_eq!(surge_of(&rolling(json!(2)), 3), 2);
        assert_eq!(surge_of(&rolling(json!("34%")), 3), 2);
        assert_eq!(surge_of(&json!({}), 3), 1);
        assert_eq!(surge_of(&json!({ "type": "Recreate" }), 3), 0);
    }
}
