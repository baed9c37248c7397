//! What runs under a lease, as one whole snapshot; and which of it a caller wants.

use std::collections::{BTreeMap, BTreeSet};

use super::id::{Instance, Replica, ServiceName};
use super::time::LogTime;

/// Everything that runs under one lease, at one moment.
///
/// Snapshots are level-triggered: a reader that missed some sees the newest and has missed nothing that still matters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseView {
    /// The services, by name.
    pub services: BTreeMap<ServiceName, ServiceView>,
    /// Whether the lease has ended: nothing in it will ever run again.
    pub ended: bool,
    /// When this was last known to be so, while the platform cannot be asked; `None` if it is so now.
    pub stale_since: Option<LogTime>,
}

/// One service of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// How many replicas there ought to be.
    pub count: u32,
    /// The slots, by index. After a scale-down there may be holes.
    pub replicas: BTreeMap<u32, ReplicaView>,
    /// What a workload's controller counts, where there is one. `None`: nobody counts but [`ServiceView::counts`] itself.
    pub workload: Option<ReplicaCounts>,
    /// Where it can be reached.
    pub endpoints: Endpoints,
}

/// How many replicas of a service there are, by what can be said of them: the numbers in the status of a Kubernetes workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaCounts {
    /// Which version of what there ought to be the other numbers are about.
    pub observed_generation: i64,
    /// Those that there are, running or about to.
    pub total: u32,
    /// Those of the newest version.
    pub updated: u32,
    /// Those that are ready.
    pub ready: u32,
    /// Those that have been ready for long enough. A `StatefulSet`'s too: its `availableReplicas`.
    pub available: u32,
}

/// Where a service can be reached. Platforms keep each list in an order of its own that does not change by itself, so that views
/// compare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Host names that lead to it.
    pub uris: Vec<String>,
    /// Ports that are forwarded to it.
    pub ports: Vec<ForwardedPort>,
    /// Addresses that are leased for it.
    pub ips: Vec<LeasedIp>,
}

/// A port of the provider that leads to a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardedPort {
    /// The provider's public host name.
    pub host: String,
    /// The service's port.
    pub port: u16,
    /// The provider's.
    pub external_port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// What it is called: by the Akash provider, as the service is.
    pub name: String,
}

/// An address of its own that leads to a port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedIp {
    /// The address.
    pub ip: String,
    /// The service's port.
    pub port: u16,
    /// The port at that address.
    pub external_port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

/// One slot of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaView {
    /// The runs whose log can still be read, and those whose log was removed a moment ago, oldest first. The last is the present one,
    /// if one runs.
    pub runs: Vec<Run>,
    /// What the slot is doing.
    pub state: ReplicaState,
    /// Whether the present run counts as ready.
    pub ready: bool,
    /// How often the container was restarted in this slot.
    pub restarts: u32,
    /// How the last run ended whose log can no longer be read, if that is known.
    pub forgotten: Option<RunEnd>,
}

/// One run of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its name.
    pub instance: Instance,
    /// When it was started.
    pub started: LogTime,
    /// How it ended; `None` while it runs.
    pub end: Option<RunEnd>,
    /// Whether its log was removed: a new read of it cannot begin. A read that began before may still go on, and needs to know how the
    /// run ended.
    pub log_is_gone: bool,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunEnd {
    /// When.
    pub time: LogTime,
    /// Its exit code, if it exited.
    pub exit_code: Option<i32>,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// One word for it, as Kubernetes uses them: `Completed`, `Error`, `OOMKilled`, `GatewayStopped`, `Restarted`.
    pub reason: String,
}

/// What a slot is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ReplicaState {
    /// An instance runs.
    Running,
    /// None runs; one is expected.
    Waiting {
        /// One word for it, as Kubernetes uses them: `ContainerCreating`, `CrashLoopBackOff`.
        reason: String,
        /// More, for a person.
        message: String,
    },
    /// None runs, and none will.
    Terminated,
    /// The platform cannot tell just now.
    #[default]
    Unknown,
}

/// Which services and replicas a caller wants: a join of clauses, or everything if there is none; of that, what they may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    clauses: BTreeMap<ServiceName, Option<BTreeSet<u32>>>,
    /// `None`: all.
    within: Option<BTreeSet<ServiceName>>,
}

/// A service or replica that a filter names and the lease does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// There is no such service.
    Service(ServiceName),
    /// The service has no such replica.
    Replica(Replica),
}

// === impl LeaseView ===

impl LeaseView {
    /// The slot of `replica`.
    pub fn replica(&self, replica: &Replica) -> Option<&ReplicaView> {
        self.services.get(&replica.service)?.replicas.get(&replica.index)
    }

    /// Every slot that `filter` wants, in order of service and index.
    pub fn select<'a>(&'a self, filter: &'a Filter) -> impl Iterator<Item = (Replica, &'a ReplicaView)> {
        self.services.iter().flat_map(move |(service, view)| {
            view.replicas.iter().filter_map(move |(index, slot)| {
                let replica = Replica { service: service.clone(), index: *index };
                filter.wants(&replica).then_some((replica, slot))
            })
        })
    }
}

// === impl ServiceView ===

impl ServiceView {
    /// How many replicas there are: as the workload's controller counts them, or else as the slots are. One that runs and is ready
    /// counts as available at once then, and all are of the one version that there ever was.
    pub fn counts(&self) -> ReplicaCounts {
        if let Some(counted) = self.workload {
            return counted;
        }
        let count = |wanted: fn(&ReplicaView) -> bool| {
            let slots = self.replicas.values().filter(|slot| wanted(slot)).count();
            u32::try_from(slots).unwrap_or(u32::MAX)
        };
        let total = count(|slot| slot.state != ReplicaState::Terminated);
        let ready = count(|slot| slot.ready);
        ReplicaCounts { observed_generation: 1, total, updated: total, ready, available: ready }
    }
}

// === impl ReplicaView ===

impl ReplicaView {
    /// The newest run.
    pub fn newest(&self) -> Option<&Run> {
        self.runs.last()
    }

    /// The runs whose log can still be read, oldest first.
    pub fn readable(&self) -> impl DoubleEndedIterator<Item = &Run> {
        self.runs.iter().filter(|run| !run.log_is_gone)
    }

    /// The run that goes on now.
    pub fn present(&self) -> Option<&Run> {
        self.newest().filter(|run| run.end.is_none())
    }

    /// How the last run that has ended ended, even if its log can no longer be read.
    pub fn last_end(&self) -> Option<&RunEnd> {
        self.runs.iter().rev().find_map(|run| run.end.as_ref()).or(self.forgotten.as_ref())
    }

    /// Takes the runs out that `gone` says so of, oldest first, and up to the first that stays; remembers how the last of them
    /// ended.
    pub fn forget(&mut self, gone: impl Fn(&Run) -> bool) {
        let stays = self.runs.iter().position(|run| !gone(run)).unwrap_or(self.runs.len());
        for run in self.runs.drain(..stays) {
            self.forgotten = run.end.or(self.forgotten.take());
        }
    }

    /// The run of this name.
    pub fn run(&self, instance: &Instance) -> Option<&Run> {
        self.runs.iter().find(|run| run.instance == *instance)
    }

    /// The oldest run behind `instance`; the oldest of all if that one is no longer readable.
    pub fn run_behind(&self, instance: &Instance) -> Option<&Run> {
        match self.runs.iter().position(|run| run.instance == *instance) {
            Some(at) => self.runs.get(at + 1),
            None => self.runs.first(),
        }
    }
}

// === impl Filter ===

impl Filter {
    /// Everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Adds `service`: the replicas named, or all of it if none is.
    pub fn add(&mut self, service: ServiceName, replicas: &[u32]) {
        let clause = self.clauses.entry(service).or_insert_with(|| Some(BTreeSet::new()));
        match clause {
            Some(wanted) if !replicas.is_empty() => wanted.extend(replicas),
            _ => *clause = None,
        }
    }

    /// Leaves only what is of these services. None of them need exist: they are not asked for, they are allowed.
    pub fn restrict(&mut self, services: BTreeSet<ServiceName>) {
        self.within = Some(match self.within.take() {
            None => services,
            Some(within) => within.intersection(&services).cloned().collect(),
        });
    }

    /// The services that it names, in order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.clauses.keys()
    }

    /// Whether it wants this replica.
    pub fn wants(&self, replica: &Replica) -> bool {
        self.wants_service(&replica.service)
            && match self.clauses.get(&replica.service) {
                None | Some(None) => true,
                Some(Some(wanted)) => wanted.contains(&replica.index),
            }
    }

    /// Whether it wants anything of this service.
    pub fn wants_service(&self, service: &ServiceName) -> bool {
        let is_allowed = self.within.as_ref().is_none_or(|within| within.contains(service));
        is_allowed && (self.clauses.is_empty() || self.clauses.contains_key(service))
    }

    /// In words: the same for equal filters, whoever spells them, and for no others.
    pub fn spelled(&self) -> String {
        let mut words = String::new();
        for (service, clause) in &self.clauses {
            words.extend([service.as_str(), ":"]);
            for index in clause.iter().flatten() {
                words.extend([index.to_string().as_str(), ","]);
            }
        }
        for (number, service) in self.within.iter().flatten().enumerate() {
            words.extend([if number == 0 { "|" } else { "," }, service.as_str()]);
        }
        // Nothing is allowed, which is not the same as everything.
        if self.within.as_ref().is_some_and(BTreeSet::is_empty) {
            words.push('|');
        }
        words
    }

    /// The first thing it names that `view` does not have.
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
        let services = services.iter().map(|(name, slots)| {
            let replicas = slots.iter().map(|index| (*index, ReplicaView::default())).collect();
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
    fn filters_choose() {
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
        assert!(some.wants_service(&web) && some.wants_service(&api));
        some.add("web".parse().unwrap(), &[1]);
        assert!(some.wants_service(&web) && !some.wants_service(&api));
    }

    #[test]
    fn a_restriction_leaves_what_it_allows_and_asks_for_nothing() {
        let view = view(&[("api", &[0]), ("web", &[0, 1])]);
        let names = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
        let chosen =
            |filter: &Filter| view.select(filter).map(|(replica, _)| replica.to_string()).collect::<Vec<_>>();
        let mut filter = Filter::everything();
        filter.restrict(names(&["web", "db"]));
        assert_eq!(chosen(&filter), ["web/0", "web/1"]);
        assert!(!filter.wants_service(&"api".parse().unwrap()));
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
    fn what_is_not_there_is_named() {
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
    fn what_nobody_else_counts_is_counted_from_the_slots() {
        let slot = |state, ready| ReplicaView { state, ready, ..ReplicaView::default() };
        let waiting = ReplicaState::Waiting { reason: "CrashLoopBackOff".into(), message: String::new() };
        let replicas = [
            slot(ReplicaState::Running, true),
            slot(ReplicaState::Running, false),
            slot(waiting, false),
            slot(ReplicaState::Terminated, false),
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
    fn an_end_is_remembered_longer_than_its_log() {
        let run = |number: u32, code: Option<i32>| Run {
            log_is_gone: false,
            instance: Instance::new("uid", "web", number).unwrap(),
            started: LogTime::from_nanos(number.into()),
            end: code.map(|code| RunEnd {
                time: LogTime::from_nanos(number.into()),
                exit_code: Some(code),
                signal: None,
                reason: "Error".into(),
            }),
        };
        let code = |slot: &ReplicaView| slot.last_end().and_then(|end| end.exit_code);
        let mut slot = ReplicaView::default();
        assert_eq!((code(&slot), slot.present()), (None, None));
        slot.runs = vec![run(0, Some(10)), run(1, Some(11)), run(2, None)];
        assert_eq!((code(&slot), slot.present()), (Some(11), slot.runs.last()));
        slot.forget(|run| run.instance.parts().2 < 2);
        assert_eq!((code(&slot), slot.runs.len()), (Some(11), 1));
        slot.runs[0].end = run(2, Some(12)).end;
        assert_eq!((code(&slot), slot.present()), (Some(12), None));
    }
}
