//! Decides whether a restarted replica is stable. Pure: the caller passes views and times.

use std::time::Duration;

use crate::model::id::{Instance, Replica};
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, Run};

/// A new run that was ready for this long is stable: a process that cannot work usually ends within it.
/// Akash sets no readiness probe, and without one "ready" only means that the process has started.
pub const STABLE_FOR: Duration = Duration::from_secs(5);

/// A replica that is not ready by then has failed: the default `progressDeadlineSeconds` of a Kubernetes
/// Deployment.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

/// Time after the order in which a waiting reason may still belong to the old run.
const STALE_REASON_FOR: Duration = Duration::from_secs(10);

/// Time for which a pod may be unschedulable, because the old pod still holds its resources: longer than the
/// usual grace period of 30 s.
const UNSCHEDULABLE_FOR: Duration = Duration::from_secs(60);

/// Kubernetes waiting reasons that need a configuration change.
const TERMINAL_WAITING_REASONS: [&str; 8] = [
    "CrashLoopBackOff",
    "CreateContainerConfigError",
    "CreateContainerError",
    "ErrImageNeverPull",
    "ImagePullBackOff",
    "InvalidImageName",
    "RunContainerError",
    "StartError",
];

/// Watches one replica, view by view.
#[derive(Clone, Debug)]
pub struct Probation {
    replica: Replica,
    /// The newest run when the restart was ordered.
    old: Option<Instance>,
    /// The run that is ready, and since when it has been ready without interruption.
    ready: Option<(Instance, Duration)>,
}

/// Result of one look at a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assessment {
    /// Undecided. Assess again when the view changes, or at this time.
    Open(Duration),
    /// A new run is stable.
    Active,
    /// No new run will become stable without a change. The reason is for the caller.
    Failed(String),
}

// === impl Probation ===

impl Probation {
    /// Starts watching `replica`, whose newest run was `old` when the restart was ordered.
    pub fn new(replica: Replica, old: Option<Instance>) -> Self {
        Self { replica, old, ready: None }
    }

    /// Assesses `view` at `now`, the time since the restart was ordered. Views may be skipped and times may
    /// be late: a run that ended in between is not taken for stable.
    pub fn assess(&mut self, view: &LeaseView, now: Duration) -> Assessment {
        if view.ended {
            return Assessment::Failed("the lease has ended".to_owned());
        }
        let Some(slot) = view.replica(&self.replica) else {
            return Assessment::Failed("the replica is no longer part of the lease".to_owned());
        };
        if let Some(reason) = self.new_run_ended(slot) {
            return Assessment::Failed(reason);
        }
        let ready = self.newest(slot).filter(|_| slot.ready && slot.state == ReplicaState::Running);
        let Some(run) = ready else {
            self.ready = None;
            if let Some(reason) = self.terminal_reason(slot, now) {
                return Assessment::Failed(reason);
            }
            let later = [STALE_REASON_FOR, UNSCHEDULABLE_FOR, PROGRESS_DEADLINE]
                .into_iter()
                .find(|later| *later > now);
            return Assessment::Open(later.unwrap_or(now));
        };
        let since = match &self.ready {
            Some((instance, since)) if *instance == run.instance => *since,
            _ => now,
        };
        self.ready = Some((run.instance.clone(), since));
        let stable_at = since.saturating_add(STABLE_FOR);
        if now >= stable_at { Assessment::Active } else { Assessment::Open(stable_at) }
    }

    /// Returns the newest run, if it is not the old one.
    fn newest<'a>(&self, slot: &'a ReplicaView) -> Option<&'a Run> {
        slot.newest().filter(|run| Some(&run.instance) != self.old.as_ref())
    }

    /// Returns how a new run ended, if one has.
    fn new_run_ended(&self, slot: &ReplicaView) -> Option<String> {
        let old = slot.runs.iter().position(|run| Some(&run.instance) == self.old.as_ref());
        let new = slot.runs.get(old.map_or(0, |old| old + 1)..)?;
        let end = new.iter().filter_map(|run| run.end.as_ref()).next_back()?;
        let how = match (end.signal, end.exit_code) {
            (Some(signal), _) => format!("was ended by signal {signal}"),
            (None, Some(code)) => format!("exited with code {code}"),
            (None, None) => "ended".to_owned(),
        };
        Some(format!("the new run {how} ({})", end.reason))
    }

    /// Returns why no new run will start or become ready without a change.
    fn terminal_reason(&self, slot: &ReplicaView, now: Duration) -> Option<String> {
        let is_of_new_run = self.newest(slot).is_some() || now >= STALE_REASON_FOR;
        let stuck = match &slot.state {
            ReplicaState::Waiting { reason, message } => {
                let unschedulable = reason == "Unschedulable" && now >= UNSCHEDULABLE_FOR;
                let terminal = is_of_new_run && TERMINAL_WAITING_REASONS.contains(&reason.as_str());
                (unschedulable || terminal).then(|| with_message(reason, message))
            }
            ReplicaState::Terminated => {
                is_of_new_run.then(|| "the service has ended and does not run again".to_owned())
            }
            ReplicaState::Running | ReplicaState::Unknown => None,
        };
        stuck.or_else(|| {
            (now >= PROGRESS_DEADLINE).then(|| {
                format!("the replica is not ready {} s after the restart", PROGRESS_DEADLINE.as_secs())
            })
        })
    }
}

fn with_message(reason: &str, message: &str) -> String {
    if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::LogTime;
    use crate::model::view::{RunEnd, ServiceView};

    fn replica() -> Replica {
        Replica { service: "web".parse().unwrap(), index: 0 }
    }

    fn run(number: u32, code: Option<i32>) -> Run {
        let end = code.map(|code| RunEnd {
            time: LogTime::MIN,
            exit_code: Some(code),
            signal: None,
            reason: if code == 143 { "Restarted" } else { "Error" }.into(),
        });
        Run {
            instance: Instance::new("uid", "web", number).unwrap(),
            started: LogTime::MIN,
            end,
            log_is_gone: false,
            later_unknown: false,
        }
    }

    fn view(runs: Vec<Run>, state: ReplicaState) -> LeaseView {
        let ready = state == ReplicaState::Running && runs.last().is_some_and(|run| run.end.is_none());
        let slot = ReplicaView { runs, state, ready, ..ReplicaView::default() };
        let service = ServiceView { count: 1, replicas: [(0, slot)].into(), ..ServiceView::default() };
        LeaseView { services: [("web".parse().unwrap(), service)].into(), ..LeaseView::default() }
    }

    fn waiting(reason: &str) -> ReplicaState {
        ReplicaState::Waiting { reason: reason.into(), message: "because".into() }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn probation() -> Probation {
        Probation::new(replica(), Some(run(0, None).instance))
    }

    fn failed(assessment: Assessment) -> String {
        match assessment {
            Assessment::Failed(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn new_run_is_active_once_stable() {
        let mut probation = probation();
        let old = view(vec![run(0, None)], ReplicaState::Running);
        assert_eq!(probation.assess(&old, seconds(0)), Assessment::Open(STALE_REASON_FOR));
        assert_eq!(
            probation.assess(&old, seconds(200)),
            Assessment::Open(PROGRESS_DEADLINE),
            "the old run may end late"
        );
        let between = view(vec![run(0, Some(143))], waiting("ContainerCreating"));
        assert_eq!(probation.assess(&between, seconds(201)), Assessment::Open(PROGRESS_DEADLINE));
        let new = view(vec![run(0, Some(143)), run(1, None)], ReplicaState::Running);
        assert_eq!(probation.assess(&new, seconds(202)), Assessment::Open(seconds(202) + STABLE_FOR));
        assert_eq!(probation.assess(&new, seconds(204)), Assessment::Open(seconds(202) + STABLE_FOR));
        assert_eq!(probation.assess(&new, seconds(202) + STABLE_FOR), Assessment::Active);
    }

    #[test]
    fn unready_run_starts_probation_again() {
        let mut probation = probation();
        let ready = view(vec![run(1, None)], ReplicaState::Running);
        let mut unready = ready.clone();
        for service in unready.services.values_mut() {
            service.replicas.get_mut(&0).unwrap().ready = false;
        }
        assert_eq!(probation.assess(&ready, seconds(0)), Assessment::Open(STABLE_FOR));
        assert_eq!(probation.assess(&unready, seconds(4)), Assessment::Open(STALE_REASON_FOR));
        assert_eq!(probation.assess(&ready, seconds(6)), Assessment::Open(seconds(6) + STABLE_FOR));
        assert_eq!(
            probation.assess(&unready, PROGRESS_DEADLINE),
            Assessment::Failed("the replica is not ready 600 s after the restart".into())
        );
    }

    #[test]
    fn crash_in_a_skipped_view_is_found() {
        let up = view(vec![run(0, Some(143)), run(1, Some(3)), run(2, None)], ReplicaState::Running);
        assert_eq!(failed(probation().assess(&up, seconds(1))), "the new run exited with code 3 (Error)");
        let gone = view(vec![run(1, Some(3))], waiting("CrashLoopBackOff"));
        assert_eq!(failed(probation().assess(&gone, seconds(1))), "the new run exited with code 3 (Error)");
        // A run that had ended before the restart is not a failure.
        let mut second = Probation::new(replica(), Some(run(1, None).instance));
        assert_eq!(second.assess(&up, seconds(1)), Assessment::Open(seconds(1) + STABLE_FOR));
    }

    #[test]
    fn waiting_reason_counts_once_it_is_of_the_new_run() {
        let before = view(vec![run(0, Some(1))], waiting("CrashLoopBackOff"));
        assert_eq!(probation().assess(&before, seconds(9)), Assessment::Open(STALE_REASON_FOR));
        assert_eq!(failed(probation().assess(&before, STALE_REASON_FOR)), "CrashLoopBackOff: because");
        let pulls = view(vec![], waiting("ImagePullBackOff"));
        assert_eq!(failed(probation().assess(&pulls, STALE_REASON_FOR)), "ImagePullBackOff: because");
        let unschedulable = view(vec![], waiting("Unschedulable"));
        assert_eq!(probation().assess(&unschedulable, seconds(59)), Assessment::Open(UNSCHEDULABLE_FOR));
        assert_eq!(failed(probation().assess(&unschedulable, UNSCHEDULABLE_FOR)), "Unschedulable: because");
        let slow = view(vec![], waiting("ContainerCreating"));
        assert_eq!(probation().assess(&slow, seconds(599)), Assessment::Open(PROGRESS_DEADLINE));
        assert_eq!(
            failed(probation().assess(&slow, PROGRESS_DEADLINE)),
            "the replica is not ready 600 s after the restart"
        );
        let over = view(vec![run(0, Some(0))], ReplicaState::Terminated);
        assert_eq!(
            failed(probation().assess(&over, STALE_REASON_FOR)),
            "the service has ended and does not run again"
        );
    }

    #[test]
    fn ended_lease_or_removed_replica_has_failed() {
        let ended = LeaseView { ended: true, ..LeaseView::default() };
        assert_eq!(failed(probation().assess(&ended, seconds(0))), "the lease has ended");
        let gone = LeaseView::default();
        assert_eq!(
            failed(probation().assess(&gone, seconds(0))),
            "the replica is no longer part of the lease"
        );
    }
}
