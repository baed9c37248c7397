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
}

/// One service of a lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// How many replicas there ought to be.
    pub count: u32,
    /// The slots, by index. After a scale-down there may be holes.
    pub replicas: BTreeMap<u32, ReplicaView>,
}

/// One slot of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaView {
    /// The runs whose log can still be read, oldest first. The last is the present one, if one runs.
    pub runs: Vec<Run>,
    /// What the slot is doing.
    pub state: ReplicaState,
    /// Whether the present run counts as ready.
    pub ready: bool,
    /// How often the container was restarted in this slot.
    pub restarts: u32,
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
    /// One word for it, as Kubernetes uses them: `Completed`, `Error`, `OOMKilled`, `GatewayStopped`.
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

/// Which services and replicas a caller wants: a join of clauses, or everything if there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    clauses: BTreeMap<ServiceName, Option<BTreeSet<u32>>>,
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

// === impl ReplicaView ===

impl ReplicaView {
    /// The newest run.
    pub fn newest(&self) -> Option<&Run> {
        self.runs.last()
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

    /// Whether it wants this replica.
    pub fn wants(&self, replica: &Replica) -> bool {
        match self.clauses.get(&replica.service) {
            None => self.clauses.is_empty(),
            Some(None) => true,
            Some(Some(wanted)) => wanted.contains(&replica.index),
        }
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
            (name.parse().unwrap(), ServiceView { count: 1, replicas })
        });
        LeaseView { services: services.collect(), ended: false }
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
}
