//! Whether a replica that was restarted has come back.

use std::time::Duration;

use crate::model::id::{Instance, Replica};
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, Run};

/// A new run that has been up and ready for so long is believed to stay: what cannot work usually ends within it. (Without a
/// readiness probe, as Akash sets none, "ready" says no more than that the process has started.)
pub const STABLE_FOR: Duration = Duration::from_secs(5);

/// A replica that has not come back by then has failed: `progressDeadlineSeconds` of a Kubernetes Deployment.
pub const PROGRESS_DEADLINE: Duration = Duration::from_secs(600);

/// For so long a view may still show what kept the old run from running; after that it is what keeps the new one.
const SETTLE: Duration = Duration::from_secs(10);

/// What a pod that cannot be placed waits for may be what the old one still holds: longer than Kubernetes' usual grace of 30 s.
const UNPLACED_FOR: Duration = Duration::from_secs(60);

/// What a replica waits for that does not come by waiting. The words are Kubernetes'.
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

/// Judges one replica, view by view.
#[derive(Clone, Debug)]
pub struct Probation {
    replica: Replica,
    /// The newest run when the restart was ordered.
    old: Option<Instance>,
    /// The run that is up and ready, and since when it was seen so without a break.
    up: Option<(Instance, Duration)>,
}

/// What can be said of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Assessment {
    /// Nothing yet; something may be once the view changes, or at this time even if it does not.
    Open(Duration),
    /// It runs as a new instance that has stayed up.
    Active,
    /// It does not, and will not by itself; why, for the caller.
    Failed(String),
}

// === impl Trial ===

impl Probation {
    /// Of `replica`, whose newest run was `old` when the restart was ordered.
    pub fn new(replica: Replica, old: Option<Instance>) -> Self {
        Self { replica, old, up: None }
    }

    /// Looks at `view` at `now`, a time since the restart was ordered. Views may be left out and times may be late; nothing that
    /// was up in between and is up no more is taken for having stayed up.
    pub fn look(&mut self, view: &LeaseView, now: Duration) -> Assessment {
        if view.ended {
            return Assessment::Failed("the lease has ended".to_owned());
        }
        let Some(slot) = view.replica(&self.replica) else {
            return Assessment::Failed("the replica is no longer part of the lease".to_owned());
        };
        if let Some(why) = self.ended_again(slot) {
            return Assessment::Failed(why);
        }
        let ready = self.newest(slot).filter(|_| slot.ready && slot.state == ReplicaState::Running);
        let Some(run) = ready else {
            self.up = None;
            if let Some(why) = self.hopeless(slot, now) {
                return Assessment::Failed(why);
            }
            let later = [SETTLE, UNPLACED_FOR, PROGRESS_DEADLINE].into_iter().find(|later| *later > now);
            return Assessment::Open(later.unwrap_or(now));
        };
        let since = match &self.up {
            Some((instance, since)) if *instance == run.instance => *since,
            _ => now,
        };
        self.up = Some((run.instance.clone(), since));
        let stable_at = since.saturating_add(STABLE_FOR);
        if now >= stable_at { Assessment::Active } else { Assessment::Open(stable_at) }
    }

    /// The newest run, if it is a new one.
    fn newest<'a>(&self, slot: &'a ReplicaView) -> Option<&'a Run> {
        slot.newest().filter(|run| Some(&run.instance) != self.old.as_ref())
    }

    /// How a new run ended, if one has.
    fn ended_again(&self, slot: &ReplicaView) -> Option<String> {
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

    /// What keeps a new run from beginning, or from being ready, if that does not pass by itself.
    fn hopeless(&self, slot: &ReplicaView, now: Duration) -> Option<String> {
        let is_of_the_new_run = self.newest(slot).is_some() || now >= SETTLE;
        let stuck = match &slot.state {
            ReplicaState::Waiting { reason, message } => {
                let unplaced = reason == "Unschedulable" && now >= UNPLACED_FOR;
                let hopeless = is_of_the_new_run && TERMINAL_WAITING_REASONS.contains(&reason.as_str());
                (unplaced || hopeless).then(|| told(reason, message))
            }
            ReplicaState::Terminated => {
                is_of_the_new_run.then(|| "nothing runs any more, and nothing will".to_owned())
            }
            ReplicaState::Running | ReplicaState::Unknown => None,
        };
        stuck.or_else(|| {
            (now >= PROGRESS_DEADLINE)
                .then(|| format!("it is not up {} s after the restart", PROGRESS_DEADLINE.as_secs()))
        })
    }
}

fn told(reason: &str, message: &str) -> String {
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

    fn trial() -> Probation {
        Probation::new(replica(), Some(run(0, None).instance))
    }

    fn failed(judgement: Assessment) -> String {
        match judgement {
            Assessment::Failed(why) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_new_run_must_stay_up() {
        let mut trial = trial();
        let old = view(vec![run(0, None)], ReplicaState::Running);
        assert_eq!(trial.look(&old, seconds(0)), Assessment::Open(SETTLE));
        assert_eq!(
            trial.look(&old, seconds(200)),
            Assessment::Open(PROGRESS_DEADLINE),
            "however long the old one takes to end"
        );
        let between = view(vec![run(0, Some(143))], waiting("ContainerCreating"));
        assert_eq!(trial.look(&between, seconds(201)), Assessment::Open(PROGRESS_DEADLINE));
        let new = view(vec![run(0, Some(143)), run(1, None)], ReplicaState::Running);
        assert_eq!(trial.look(&new, seconds(202)), Assessment::Open(seconds(202) + STABLE_FOR));
        assert_eq!(trial.look(&new, seconds(204)), Assessment::Open(seconds(202) + STABLE_FOR));
        assert_eq!(trial.look(&new, seconds(202) + STABLE_FOR), Assessment::Active);
    }

    #[test]
    fn what_was_not_ready_in_between_begins_anew() {
        let mut trial = trial();
        let ready = view(vec![run(1, None)], ReplicaState::Running);
        let mut unready = ready.clone();
        for service in unready.services.values_mut() {
            service.replicas.get_mut(&0).unwrap().ready = false;
        }
        assert_eq!(trial.look(&ready, seconds(0)), Assessment::Open(STABLE_FOR));
        assert_eq!(trial.look(&unready, seconds(4)), Assessment::Open(SETTLE));
        assert_eq!(trial.look(&ready, seconds(6)), Assessment::Open(seconds(6) + STABLE_FOR));
        assert_eq!(
            trial.look(&unready, PROGRESS_DEADLINE),
            Assessment::Failed("it is not up 600 s after the restart".into())
        );
    }

    #[test]
    fn a_crash_is_seen_even_if_the_view_of_it_was_not() {
        let up = view(vec![run(0, Some(143)), run(1, Some(3)), run(2, None)], ReplicaState::Running);
        assert_eq!(failed(trial().look(&up, seconds(1))), "the new run exited with code 3 (Error)");
        let gone = view(vec![run(1, Some(3))], waiting("CrashLoopBackOff"));
        assert_eq!(failed(trial().look(&gone, seconds(1))), "the new run exited with code 3 (Error)");
        // What had ended before is no news.
        let mut second = Probation::new(replica(), Some(run(1, None).instance));
        assert_eq!(second.look(&up, seconds(1)), Assessment::Open(seconds(1) + STABLE_FOR));
    }

    #[test]
    fn what_keeps_it_from_running_counts_once_it_is_the_new_runs() {
        let before = view(vec![run(0, Some(1))], waiting("CrashLoopBackOff"));
        assert_eq!(trial().look(&before, seconds(9)), Assessment::Open(SETTLE));
        assert_eq!(failed(trial().look(&before, SETTLE)), "CrashLoopBackOff: because");
        let pulls = view(vec![], waiting("ImagePullBackOff"));
        assert_eq!(failed(trial().look(&pulls, SETTLE)), "ImagePullBackOff: because");
        let unplaced = view(vec![], waiting("Unschedulable"));
        assert_eq!(trial().look(&unplaced, seconds(59)), Assessment::Open(UNPLACED_FOR));
        assert_eq!(failed(trial().look(&unplaced, UNPLACED_FOR)), "Unschedulable: because");
        let slow = view(vec![], waiting("ContainerCreating"));
        assert_eq!(trial().look(&slow, seconds(599)), Assessment::Open(PROGRESS_DEADLINE));
        assert_eq!(failed(trial().look(&slow, PROGRESS_DEADLINE)), "it is not up 600 s after the restart");
        let over = view(vec![run(0, Some(0))], ReplicaState::Terminated);
        assert_eq!(failed(trial().look(&over, SETTLE)), "nothing runs any more, and nothing will");
    }

    #[test]
    fn what_is_gone_has_failed() {
        let ended = LeaseView { ended: true, ..LeaseView::default() };
        assert_eq!(failed(trial().look(&ended, seconds(0))), "the lease has ended");
        let gone = LeaseView::default();
        assert_eq!(failed(trial().look(&gone, seconds(0))), "the replica is no longer part of the lease");
    }
}
