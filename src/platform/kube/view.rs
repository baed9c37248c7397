//! Builds the view of a lease from the known objects of its namespace. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::namespace::NamespaceState;
use super::objects::{ContainerFacts, Departure, LeasedFacts, PodFacts, RunFacts, State};
use super::replica_index;
use crate::model::id::{Instance, Replica, ServiceName};
use crate::model::limits::RUNS_MAX;
use crate::model::time::LogTime;
use crate::model::view::{
    Endpoints, ForwardedPort, LeaseView, LeasedIp, ReplicaState, ReplicaView, Run, RunEnd, ServiceView,
};

/// Waiting reason of a replica without a pod.
const NO_POD: &str = "Pending";

/// Waiting reason of a replica whose pod is being deleted.
const TERMINATING: &str = "Terminating";

/// End reason of a run whose pod went before its kubelet reported the end.
const DELETED: &str = "Deleted";

/// The pods of one replica in the order of their ranks, and how each went if it is gone.
type Members<'a> = Vec<(&'a PodFacts, Option<Departure>)>;

/// Properties of the provider that apply to all leases.
#[derive(Debug, Default)]
pub(super) struct Provider {
    /// Public host name of node ports.
    pub(super) hostname: String,
    /// Whether the provider's own list of leased addresses is known. Until then the addresses of load
    /// balancers count.
    pub(super) lists_leased_ips: bool,
    /// Since when the cluster's watches fail.
    pub(super) stale_since: Option<LogTime>,
}

/// Builds the view of the lease.
pub(super) fn build(state: &NamespaceState, provider: &Provider) -> LeaseView {
    let mut services: BTreeMap<ServiceName, ServiceView> = BTreeMap::new();
    let mut numbered = BTreeSet::new();
    for workload in state.workloads() {
        let service = services.entry(workload.service.clone()).or_default();
        service.count = workload.count;
        service.workload = Some(workload.counts);
        if workload.is_ordinal {
            numbered.insert(&workload.service);
        }
    }
    let mut pods = pods_by_replica(state);
    for name in pods.keys() {
        services.entry((*name).clone()).or_default();
    }
    for (name, service) in &mut services {
        let mut members = pods.remove(name).unwrap_or_default();
        let lives = |members: &Members<'_>| members.iter().any(|(pod, gone)| pod.lives && gone.is_none());
        let held: BTreeSet<u32> =
            members.iter().filter(|(_, members)| lives(members)).map(|(index, _)| *index).collect();
        let wanted = if numbered.contains(name) {
            held.iter().copied().chain(0..service.count).collect()
        } else {
            replica_index::of_service(&held, service.count)
        };
        // A pod that is being deleted stays a replica, because its last lines can be read.
        members.retain(|index, members| {
            wanted.contains(index) || members.iter().any(|(_, gone)| gone.is_none())
        });
        for index in wanted {
            members.entry(index).or_default();
        }
        service.replicas = members.into_iter().map(|(index, members)| (index, replica(&members))).collect();
        service.endpoints = endpoints(state, name, provider);
    }
    let ended = state.lease().is_none_or(|lease| lease.ends);
    LeaseView { services, ended, stale_since: provider.stale_since }
}

/// Builds a view that has only this replica, whose pods these are, oldest first, with how each went.
/// Without a pod that is there, the view is that of a lease that has ended: no pod will take its place
/// here.
pub(super) fn of_pods(replica: &Replica, pods: &[(PodFacts, Option<Departure>)]) -> LeaseView {
    let members: Members<'_> = pods.iter().map(|(pod, gone)| (pod, *gone)).collect();
    let ended = members.iter().all(|(_, gone)| gone.is_some());
    let mut view = LeaseView { ended, ..LeaseView::default() };
    let service = view.services.entry(replica.service.clone()).or_default();
    service.replicas.insert(replica.index, self::replica(&members));
    view
}

/// Returns the pods of each service by replica index.
fn pods_by_replica(state: &NamespaceState) -> BTreeMap<&ServiceName, BTreeMap<u32, Members<'_>>> {
    let gone = state.gone.iter().map(|(pod, departure, _)| (pod, Some(*departure)));
    let mut pods: Vec<_> = state.pods().map(|pod| (pod, None)).chain(gone).collect();
    // The log of a pod that does not live is read before that of the pod that took its index.
    pods.sort_by_key(|(pod, _)| state.rank(pod));
    let mut services: BTreeMap<_, BTreeMap<u32, Members<'_>>> = BTreeMap::new();
    for (pod, gone) in pods {
        if let Some(index) = state.index(pod).filter(|_| !state.is_hidden(pod)) {
            services.entry(&pod.service).or_default().entry(index).or_default().push((pod, gone));
        }
    }
    services
}

/// Builds the view of a replica from its pods.
fn replica(members: &Members<'_>) -> ReplicaView {
    let mut runs: Vec<Run> = members.iter().flat_map(|(pod, gone)| runs(pod, *gone)).collect();
    runs.drain(..runs.len().saturating_sub(RUNS_MAX));
    let waiting = |reason: &str, message: &str| ReplicaState::Waiting {
        reason: reason.to_owned(),
        message: message.to_owned(),
    };
    let there = || members.iter().rev().filter(|(_, gone)| gone.is_none()).map(|(pod, _)| *pod);
    let Some(pod) = there().find(|pod| pod.lives).or_else(|| there().next()) else {
        return ReplicaView { runs, state: waiting(NO_POD, ""), ..ReplicaView::default() };
    };
    let container = pod.container.as_ref();
    let state = match (container.map(|container| &container.state), &pod.pending) {
        (Some(State::Running), _) => ReplicaState::Running,
        (_, Some((reason, message))) => waiting(reason, message),
        _ if !pod.lives => waiting(TERMINATING, ""),
        (Some(State::Waiting(reason, message)), None) => waiting(reason, message),
        (Some(State::Ended), None) => {
            let end = container.and_then(|container| container.newest.as_ref()?.end.as_ref());
            waiting(end.map_or(NO_POD, |end| &end.reason), "")
        }
        (None, None) => waiting(NO_POD, ""),
    };
    let restarts = container.map_or(0, |container| container.run_number);
    ReplicaView { runs, state, ready: pod.ready && pod.lives, restarts, forgotten: None }
}

/// Returns the runs of a pod, oldest first.
fn runs(pod: &PodFacts, gone: Option<Departure>) -> Vec<Run> {
    let Some(ContainerFacts { run_number, newest, before, .. }) = &pod.container else { return Vec::new() };
    let log_is_gone = gone.is_some();
    let run = |number: u32, run: &RunFacts| {
        let instance = Instance::new(&pod.uid, pod.service.as_str(), number).ok()?.with_pod_name(&pod.name);
        // A kubelet restarts the containers of a pod that lives, and reports each end before the pod goes.
        let is_last = !pod.lives && run.end.is_some();
        let later_unknown = gone.is_some_and(|gone| !gone.is_seen) && !is_last;
        Some(Run { instance, started: run.started, end: run.end.clone(), log_is_gone, later_unknown })
    };
    let before =
        before.as_ref().zip(run_number.checked_sub(1)).and_then(|(facts, number)| run(number, facts));
    let mut newest = newest.as_ref().and_then(|facts| run(*run_number, facts));
    if let (Some(gone), Some(run)) = (gone, &mut newest) {
        let end = RunEnd { time: gone.at, exit_code: None, signal: None, reason: DELETED.to_owned() };
        run.end.get_or_insert(end);
    }
    // A pod that is gone keeps its newest run for a while, for running reads of its log.
    before.filter(|_| gone.is_none()).into_iter().chain(newest).collect()
}

/// Returns the endpoints of a service.
fn endpoints(state: &NamespaceState, service: &ServiceName, provider: &Provider) -> Endpoints {
    let mut uris: Vec<String> =
        state.hosts().filter(|host| host.service == *service).map(|host| host.host.clone()).collect();
    uris.sort();
    uris.dedup();
    let found = || state.endpoints().filter(|found| found.service == *service);
    let on_host = |port: &ForwardedPort| ForwardedPort { host: provider.hostname.clone(), ..port.clone() };
    // A load balancer exists until the provider's operator notices that the lease has ended.
    let leased = |ip: &LeasedIp| {
        if !provider.lists_leased_ips {
            return Some(ip.clone());
        }
        let is_it = |leased: &&LeasedFacts| {
            leased.service == *service
                && leased.external_port == ip.external_port
                && leased.protocol == ip.protocol
        };
        state.leased().find(is_it).map(|leased| LeasedIp { port: leased.port, ..ip.clone() })
    };
    Endpoints {
        uris,
        ports: found().flat_map(|found| found.ports.iter().map(on_host)).collect(),
        ips: found().flat_map(|found| found.ips.iter().filter_map(leased)).collect(),
    }
}
