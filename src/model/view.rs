//! Lease views: snapshots of what runs under a lease; and filters that select replicas from them.

use std::collections::{BTreeMap, BTreeSet};

use super::id::{Instance, Replica, ServiceName};
use super::time::LogTime;

/// A snapshot of everything that runs under one lease.
///
/// Snapshots are level-triggered: a subscriber that skips some still gets the newest, which is complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseView {
    /// The services, by name.
    pub services: BTreeMap<ServiceName, ServiceView>,
    /// Whether the lease has ended, so that nothing in it will run again.
    pub ended: bool,
    /// While the platform is unreachable: when this snapshot was last known to be current.
    pub stale_since: Option<LogTime>,
}

/// One service of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// The intended number of replicas.
    pub count: u32,
    /// The replicas, by index. A scale-down may leave holes.
    pub replicas: BTreeMap<u32, ReplicaView>,
    /// The counts of the workload's controller. Without one, [`ServiceView::counts`] derives them from the
    /// replicas.
    pub workload: Option<ReplicaCounts>,
    /// Addresses at which it is reachable from outside.
    pub endpoints: Endpoints,
}

/// Numbers of replicas of a service, as in the status of a Kubernetes workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaCounts {
    /// The generation of the specification that the other numbers refer to.
    pub observed_generation: i64,
    /// Replicas that run or will run.
    pub total: u32,
    /// Replicas of the newest version.
    pub(crate) updated: u32,
    /// Replicas that are ready at present.
    pub ready: u32,
    /// Replicas that have been ready for the required time (`availableReplicas`).
    pub available: u32,
}

/// The public endpoints of a service. Each platform keeps the lists in a stable order, so that views can be
/// compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Host names that lead to the service.
    pub uris: Vec<String>,
    /// Ports of the provider that lead to the service.
    pub ports: Vec<ForwardedPort>,
    /// Ports of leased IP addresses that lead to the service.
    pub ips: Vec<LeasedIp>,
}

/// A port of the provider that is forwarded to a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedPort {
    /// The provider's public host name.
    pub host: String,
    /// Port on which the service listens.
    pub port: u16,
    /// Port of the provider to connect to.
    pub external_port: u16,
    /// `TCP` or `UDP`, as Kubernetes writes it.
    pub protocol: String,
    /// Its name. Akash providers use the name of the service.
    pub name: String,
}

/// A port of a leased IP address that is forwarded to a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedIp {
    /// The leased address, as text.
    pub ip: String,
    /// Port on which the service listens.
    pub port: u16,
    /// Port of the address to connect to.
    pub external_port: u16,
    /// `TCP` or `UDP`, as Kubernetes writes it.
    pub protocol: String,
}

/// One replica of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaView {
    /// The runs whose log is readable, and those whose log was removed recently, oldest first. The last one
    /// is the current run, unless it has ended.
    pub runs: Vec<Run>,
    /// Whether an instance runs, and if not, why.
    pub state: ReplicaState,
    /// Whether the current run is ready.
    pub ready: bool,
    /// The number of restarts of the container.
    pub restarts: u32,
    /// The end of the last run that is no longer in `runs`, if known.
    pub forgotten: Option<RunEnd>,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Identifier, which no other run has.
    pub instance: Instance,
    /// When the container was started.
    pub started: LogTime,
    /// Its end; `None` while it runs.
    pub end: Option<RunEnd>,
    /// Whether its log was removed, so that no new read can begin. Earlier reads may continue, and need to
    /// know how the run ended.
    pub log_is_gone: bool,
    /// Whether its pod is gone and may have had later runs, which no view has named.
    pub later_unknown: bool,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// When the process ended.
    pub time: LogTime,
    /// The exit code, if the process exited.
    pub exit_code: Option<i32>,
    /// The signal that ended the process, if any.
    pub signal: Option<i32>,
    /// The reason, as a word like in Kubernetes: `Completed`, `Error`, `OOMKilled`, `GatewayStopped`,
    /// `Restarted`.
    pub reason: String,
}

/// The state of a replica.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReplicaState {
    /// An instance runs, ready or not.
    Running,
    /// No instance runs, and one is expected.
    Waiting {
        /// The reason, as a word like in Kubernetes: `ContainerCreating`, `CrashLoopBackOff`.
        reason: String,
        /// Details of the reason, for people.
        message: String,
    },
    /// No instance runs or will run.
    Terminated,
    /// The platform does not know at present.
    #[default]
    Unknown,
}

/// The services and replicas that a caller selects: the union of its clauses, or everything without a clause;
/// restricted to the services that the caller may see.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    clauses: BTreeMap<ServiceName, Option<BTreeSet<u32>>>,
    /// The permitted services; `None` = all.
    within: Option<BTreeSet<ServiceName>>,
}

/// A service or replica that a filter names and the lease lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The lease has no such service.
    Service(ServiceName),
    /// The service has no such replica.
    Replica(Replica),
}

// === impl LeaseView ===

impl LeaseView {
    /// Returns the view of `replica`.
    pub fn replica(&self, replica: &Replica) -> Option<&ReplicaView> {
        self.services.get(&replica.service)?.replicas.get(&replica.index)
    }

    /// Returns the replicas that `filter` selects, by service and index.
    pub fn select<'a>(&'a self, filter: &'a Filter) -> impl Iterator<Item = (Replica, &'a ReplicaView)> {
        self.services.iter().flat_map(move |(service, view)| {
            view.replicas.iter().filter_map(move |(index, view)| {
                let replica = Replica { service: service.clone(), index: *index };
                filter.selects(&replica).then_some((replica, view))
            })
        })
    }
}

// === impl ServiceView ===

impl ServiceView {
    /// Returns the counts of the workload's controller, or counts the replicas. In the latter case a ready
    /// replica is available at once, and all replicas have the same version.
    pub fn counts(&self) -> ReplicaCounts {
        if let Some(counted) = self.workload {
            return counted;
        }
        let count = |wanted: fn(&ReplicaView) -> bool| {
            let count = self.replicas.values().filter(|view| wanted(view)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        let total = count(|view| view.state != ReplicaState::Terminated);
        let ready = count(|view| view.ready);
        ReplicaCounts { observed_generation: 1, total, updated: total, ready, available: ready }
    }
}

// === impl ReplicaView ===

impl ReplicaView {
    /// Returns the newest run.
    pub fn newest(&self) -> Option<&Run> {
        self.runs.last()
    }

    /// Returns the runs whose log is readable, oldest first.
    pub fn readable(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.runs.iter().filter(|run| !run.log_is_gone)
    }

    /// Returns the current run.
    pub fn current_run(&self) -> Option<&Run> {
        self.newest().filter(|run| run.end.is_none())
    }

    /// Returns the end of the last run that has ended, even if its log was removed.
    pub fn last_end(&self) -> Option<&RunEnd> {
        self.runs.iter().rev().find_map(|run| run.end.as_ref()).or(self.forgotten.as_ref())
    }

    /// Removes the oldest runs up to the first one for which `gone` is false. Remembers the end of the last
    /// removed run.
    pub(crate) fn forget(&mut self, gone: impl Fn(&Run) -> bool) {
        let kept = self.runs.iter().position(|run| !gone(run)).unwrap_or(self.runs.len());
        for run in self.runs.drain(..kept) {
            self.forgotten = run.end.or(self.forgotten.take());
        }
    }

    /// Returns the run with this identifier.
    pub fn run(&self, instance: &Instance) -> Option<&Run> {
        self.runs.iter().find(|run| run.instance == *instance)
    }

    /// Returns the run after `instance`. If `instance` is not in the list, that is the next one of its
    /// container, or otherwise the oldest run.
    pub(crate) fn run_after(&self, instance: &Instance) -> Option<&Run> {
        if let Some(at) = self.runs.iter().position(|run| run.instance == *instance) {
            return self.runs.get(at + 1);
        }
        // A pod that is being replaced may still be in the list before it.
        let is_later = |run: &&Run| run.instance.is_later_than(instance);
        self.runs.iter().find(is_later).or(self.runs.first())
    }
}

// === impl Filter ===

impl Filter {
    /// Returns a filter that selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Selects the replicas with these indices of `service`, or all if there are none.
    pub fn add(&mut self, service: ServiceName, replicas: &[u32]) {
        let clause = self.clauses.entry(service).or_insert_with(|| Some(BTreeSet::new()));
        match clause {
            Some(wanted) if !replicas.is_empty() => wanted.extend(replicas),
            _ => *clause = None,
        }
    }

    /// Restricts the filter to these services. They need not exist: they are permitted, not selected.
    pub(crate) fn restrict(&mut self, services: BTreeSet<ServiceName>) {
        self.within = Some(match self.within.take() {
            None => services,
            Some(within) => within.intersection(&services).cloned().collect(),
        });
    }

    /// Returns the services that the filter names, in order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.clauses.keys()
    }

    /// Returns the service that the filter names, if it names exactly one.
    pub(crate) fn only_service(&self) -> Option<&ServiceName> {
        let mut services = self.services();
        services.next().filter(|_| services.next().is_none())
    }

    /// Returns whether the filter selects this replica.
    pub fn selects(&self, replica: &Replica) -> bool {
        self.selects_service(&replica.service)
            && match self.clauses.get(&replica.service) {
                None | Some(None) => true,
                Some(Some(wanted)) => wanted.contains(&replica.index),
            }
    }

    /// Returns whether the filter selects any replica of this service.
    pub(crate) fn selects_service(&self, service: &ServiceName) -> bool {
        let is_allowed = self.within.as_ref().is_none_or(|within| within.contains(service));
        is_allowed && (self.clauses.is_empty() || self.clauses.contains_key(service))
    }

    /// Returns a canonical text: equal filters, and only those, have the same text.
    pub(crate) fn canonical_text(&self) -> String {
        let mut text = String::new();
        for (service, clause) in &self.clauses {
            text.extend([service.as_str(), ":"]);
            for index in clause.iter().flatten() {
                text.extend([index.to_string().as_str(), ","]);
            }
        }
        for (number, service) in self.within.iter().flatten().enumerate() {
            text.extend([if number == 0 { "|" } else { "," }, service.as_str()]);
        }
        // An empty restriction permits nothing; no restriction permits everything.
        if self.within.as_ref().is_some_and(BTreeSet::is_empty) {
            text.push('|');
        }
        text
    }

    /// Returns the first service or replica that the filter names and `view` lacks.
    pub fn missing(&self, view: &LeaseView) -> Option<Missing> {
        for (service, clause) in &self.clauses {
            let Some(found) = view.services.get(service) else {
                return Some(Missing::Service(service.clone()));
            };
            for index in clause.iter().flatten() {
                if !found.replicas.contains_key(index) {
                    return Some(Missing::Replica(Replica { service: service.clone(), index: *index }));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(services: &[(&str, &[u32])]) -> LeaseView {
        let services = services.iter().map(|(name, indices)| {
            let replicas = indices.iter().map(|index| (*index, ReplicaView::default())).collect();
            (name.parse().unwrap(), ServiceView { count: 1, replicas, ..ServiceView::default() })
        });
        LeaseView { services: services.collect(), ..LeaseView::default() }
    }

    fn chosen(view: &LeaseView, clauses: &[(&str, &[u32])]) -> Vec<String> {
        let mut filter = Filter::everything();
        for (service, replicas) in clauses {
            filter.add(service.parse().unwrap(), replicas);
        }
        view.select(&filter).map(|(replica, _)| replica.to_string()).collect()
    }

    #[test]
    fn run_after_a_forgotten_one_is_of_its_container() {
        let instance = |uid: &str, number| Instance::new(uid, "web", number).unwrap();
        let run = |instance| Run {
            instance,
            started: LogTime::MIN,
            end: None,
            log_is_gone: false,
            later_unknown: false,
        };
        let runs = [instance("old", 3), instance("new", 1), instance("new", 2)].map(run);
        let view = ReplicaView { runs: runs.to_vec(), ..ReplicaView::default() };
        let next = |uid, number| view.run_after(&instance(uid, number)).map(|run| run.instance.clone());
        assert_eq!(next("old", 3), Some(instance("new", 1)));
        assert_eq!(next("new", 0), Some(instance("new", 1)));
        assert_eq!(next("new", 2), None);
        assert_eq!(next("gone", 0), Some(instance("old", 3)));
    }

    #[test]
    fn filter_selects_union_of_clauses() {
        let view = view(&[("api", &[0, 2]), ("web", &[0, 1])]);
        assert_eq!(chosen(&view, &[]), ["api/0", "api/2", "web/0", "web/1"]);
        assert_eq!(chosen(&view, &[("web", &[])]), ["web/0", "web/1"]);
        assert_eq!(chosen(&view, &[("web", &[1]), ("api", &[0])]), ["api/0", "web/1"]);
        assert_eq!(chosen(&view, &[("web", &[1]), ("web", &[])]), ["web/0", "web/1"]);
        assert_eq!(chosen(&view, &[("web", &[]), ("web", &[1])]), ["web/0", "web/1"]);
        assert_eq!(chosen(&view, &[("web", &[1]), ("web", &[0])]), ["web/0", "web/1"]);
        assert_eq!(chosen(&view, &[("db", &[])]), Vec::<String>::new());
        let mut some = Filter::everything();
        let [web, api] = ["web", "api"].map(|name| name.parse().unwrap());
        assert!(some.selects_service(&web) && some.selects_service(&api));
        some.add("web".parse().unwrap(), &[1]);
        assert!(some.selects_service(&web) && !some.selects_service(&api));
    }

    #[test]
    fn restriction_permits_but_selects_nothing() {
        let view = view(&[("api", &[0]), ("web", &[0, 1])]);
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let chosen =
            |filter: &Filter| view.select(filter).map(|(replica, _)| replica.to_string()).collect::<Vec<_>>();
        let mut filter = Filter::everything();
        filter.restrict(names(&["web", "db"]));
        assert_eq!(chosen(&filter), ["web/0", "web/1"]);
        assert!(!filter.selects_service(&"api".parse().unwrap()));
        assert_eq!(filter.missing(&view), None);
        filter.restrict(names(&["db", "api"]));
        assert_eq!(chosen(&filter), Vec::<String>::new());
        let mut filter = Filter::everything();
        filter.add("web".parse().unwrap(), &[1]);
        filter.restrict(names(&["web"]));
        assert_eq!(chosen(&filter), ["web/1"]);
        assert_eq!(filter.services().map(ToString::to_string).collect::<Vec<_>>(), ["web"]);
    }

    #[test]
    fn missing_names_first_absent_item() {
        let view = view(&[("api", &[0, 2])]);
        let missing = |service: &str, replicas: &[u32]| {
            let mut filter = Filter::everything();
            filter.add(service.parse().unwrap(), replicas);
            filter.missing(&view)
        };
        assert_eq!(missing("api", &[]), None);
        assert_eq!(missing("api", &[0, 2]), None);
        assert_eq!(missing("db", &[]), Some(Missing::Service("db".parse().unwrap())));
        let hole = Replica { service: "api".parse().unwrap(), index: 1 };
        assert_eq!(missing("api", &[0, 1]), Some(Missing::Replica(hole)));
    }

    #[test]
    fn counts_without_controller_come_from_replicas() {
        let replica = |state, ready| ReplicaView { state, ready, ..ReplicaView::default() };
        let waiting = ReplicaState::Waiting { reason: "CrashLoopBackOff".into(), message: String::new() };
        let replicas = [
            replica(ReplicaState::Running, true),
            replica(ReplicaState::Running, false),
            replica(waiting, false),
            replica(ReplicaState::Terminated, false),
        ];
        let replicas = (0..).zip(replicas).collect();
        let mut service = ServiceView { count: 4, replicas, ..ServiceView::default() };
        let counted = ReplicaCounts { observed_generation: 1, total: 3, updated: 3, ready: 1, available: 1 };
        assert_eq!(service.counts(), counted);
        let by_controller =
            ReplicaCounts { observed_generation: 7, total: 4, updated: 2, ready: 3, available: 2 };
        service.workload = Some(by_controller);
        assert_eq!(service.counts(), by_controller);
    }

    #[test]
    fn last_end_outlives_its_run() {
        let run = |number: u32, code: Option<i32>| Run {
            log_is_gone: false,
            later_unknown: false,
            instance: Instance::new("uid", "web", number).unwrap(),
            started: LogTime::from_nanos(number.into()),
            end: code.map(|code| RunEnd {
                time: LogTime::from_nanos(number.into()),
                exit_code: Some(code),
                signal: None,
                reason: "Error".into(),
            }),
        };
        let code = |view: &ReplicaView| view.last_end().and_then(|end| end.exit_code);
        let mut view = ReplicaView::default();
        assert_eq!((code(&view), view.current_run()), (None, None));
        view.runs = vec![run(0, Some(10)), run(1, Some(11)), run(2, None)];
        assert_eq!((code(&view), view.current_run()), (Some(11), view.runs.last()));
        view.forget(|run| run.instance.run_number() < 2);
        assert_eq!((code(&view), view.runs.len()), (Some(11), 1));
        view.runs[0].end = run(2, Some(12)).end;
        assert_eq!((code(&view), view.current_run()), (Some(12), None));
    }
}
