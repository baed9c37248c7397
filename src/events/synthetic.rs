//! Events from changes of a lease view: starts, ends, failures and removals of replicas.

use crate::model::event::{LeaseEvent, Object, REPORTER, Severity};
use crate::model::id::{LeaseId, Replica};
use crate::model::replica_text;
use crate::model::time::LogTime;
use crate::model::view::{Filter, LeaseView, ReplicaState, ReplicaView, Run, RunEnd};

/// The reason of a run that the kernel ended, as Kubernetes writes it.
const OOM_KILLED: &str = "OOMKilled";

/// The reason of an event about any other end.
const ENDED: &str = "Ended";

/// Reasons of requested or regular ends.
const INTENDED_ENDS: [&str; 3] = ["Completed", "Restarted", "GatewayStopped"];

/// Reasons of waiting that are part of every start.
const NORMAL_WAITS: [&str; 3] = ["", "ContainerCreating", "PodInitializing"];

/// Returns the events between two views, oldest first. Without an old view: those of all runs that the new
/// view has.
///
/// `now` is the time of changes that the view has no time for. Views may be skipped: a run that began and
/// ended in between has its events if the new view still lists it.
pub(super) fn changes(
    lease: &LeaseId,
    old: Option<&LeaseView>,
    new: &LeaseView,
    now: LogTime,
) -> Vec<LeaseEvent> {
    let namespace = lease.namespace();
    let everything = Filter::everything();
    let mut events = Vec::new();
    for (replica, after) in new.select(&everything) {
        let before = old.and_then(|old| old.replica(&replica));
        let mut add = |run: Option<&Run>, change: Change| {
            events.push(change.into_event(&replica, &namespace, pod_name(&replica, run)));
        };
        runs_changed(replica.index, before, after, &mut add);
        if let Some(change) = wait_changed(replica.index, before, after, now) {
            add(after.newest(), change);
        }
    }
    for (replica, before) in old.iter().flat_map(|old| old.select(&everything)) {
        if new.replica(&replica).is_none() {
            let change = Change {
                severity: Severity::Normal,
                reason: "Gone".to_owned(),
                note: replica_text::gone(replica.index),
                time: now,
            };
            events.push(change.into_event(&replica, &namespace, pod_name(&replica, before.newest())));
        }
    }
    // Stable: the start of a run stays before its end.
    events.sort_by_key(|event| event.event_time);
    events
}

/// Whether it is about the end of a run. Kubernetes reports the other changes as events, but neither ends nor
/// OOM kills.
pub(super) fn is_end(event: &LeaseEvent) -> bool {
    [ENDED, OOM_KILLED].contains(&event.reason.as_str())
}

/// Returns the name of the pod of a run; without one, the service and index of the replica.
fn pod_name(replica: &Replica, run: Option<&Run>) -> String {
    match run.and_then(|run| run.instance.pod_name()) {
        Some(pod) => pod.to_owned(),
        None => format!("{}-{}", replica.service, replica.index),
    }
}

/// One change of a replica.
struct Change {
    severity: Severity,
    reason: String,
    note: String,
    time: LogTime,
}

// === impl Change ===

impl Change {
    fn started(index: u32, run: &Run) -> Self {
        Self {
            severity: Severity::Normal,
            reason: "Started".to_owned(),
            note: replica_text::started(index),
            time: run.started,
        }
    }

    fn ended(index: u32, end: &RunEnd) -> Self {
        let is_oom = end.reason == OOM_KILLED;
        let failed = is_oom || end.exit_code.is_some_and(|code| code != 0) || end.signal.is_some();
        let is_intended = INTENDED_ENDS.contains(&end.reason.as_str());
        let reason = if is_oom { OOM_KILLED } else { ENDED };
        // These words add nothing to the exit code, or to the reason of the event.
        let detail = if is_oom || matches!(&*end.reason, "Error" | "Completed") { "" } else { &end.reason };
        Self {
            severity: if failed && !is_intended { Severity::Warning } else { Severity::Normal },
            reason: reason.to_owned(),
            note: replica_text::ended(index, end.exit_code, end.signal, detail),
            time: end.time,
        }
    }

    fn into_event(self, replica: &Replica, namespace: &str, pod: String) -> LeaseEvent {
        let object = Object { kind: "Pod".to_owned(), namespace: namespace.to_owned(), name: pod };
        LeaseEvent {
            service: Some(replica.service.clone()),
            replica: Some(replica.index),
            event_time: Some(self.time),
            ..LeaseEvent::new(self.severity, &self.reason, &self.note, object).reported_by(REPORTER, "")
        }
    }
}

/// Reports starts and ends of runs that `before` does not have.
fn runs_changed(
    index: u32,
    before: Option<&ReplicaView>,
    after: &ReplicaView,
    add: &mut impl FnMut(Option<&Run>, Change),
) {
    let known = |run: &Run| before.and_then(|before| before.run(&run.instance));
    // The end of a run that left the list, unless it was known.
    if let (Some(before), Some(end)) = (before, &after.forgotten)
        && before.forgotten.as_ref() != Some(end)
        && before.runs.iter().all(|run| run.end.as_ref() != Some(end))
    {
        let run = before.runs.iter().rev().find(|run| after.run(&run.instance).is_none());
        add(run, Change::ended(index, end));
    }
    for run in &after.runs {
        if known(run).is_none() {
            add(Some(run), Change::started(index, run));
        }
        if let Some(end) = &run.end
            && known(run).is_none_or(|known| known.end.is_none())
        {
            add(Some(run), Change::ended(index, end));
        }
    }
}

/// Reports a new reason of waiting. The details, such as a back-off that grows, are not a change.
fn wait_changed(
    index: u32,
    before: Option<&ReplicaView>,
    after: &ReplicaView,
    now: LogTime,
) -> Option<Change> {
    let reason_of = |view: &ReplicaView| match &view.state {
        ReplicaState::Waiting { reason, .. } => Some(reason.clone()),
        ReplicaState::Running | ReplicaState::Terminated | ReplicaState::Unknown => None,
    };
    let ReplicaState::Waiting { reason, message } = &after.state else {
        return None;
    };
    // Until Kubernetes starts the next run or has a reason to wait, a view has the reason of the last end.
    let is_end = after.last_end().is_some_and(|end| end.reason == *reason);
    if is_end || before.and_then(reason_of).as_ref() == Some(reason) {
        return None;
    }
    let is_normal = NORMAL_WAITS.contains(&reason.as_str());
    Some(Change {
        severity: if is_normal { Severity::Normal } else { Severity::Warning },
        reason: if reason.is_empty() { "Waiting".to_owned() } else { reason.clone() },
        note: replica_text::waiting(index, "", message),
        time: now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Instance;
    use crate::model::view::ServiceView;

    const LEASE: &str = "akash1angnwmnsv5vkp4jpgkdcunar8efpvennxwwcev/7/1/1/\
                         akash1nxq8gmsw2vlz3m68qvyvcf3kh6q269ajvqw6y0";

    fn run(number: u32, end: Option<RunEnd>) -> Run {
        let instance =
            Instance::new("uid", "web", number).unwrap().with_pod_name(&format!("web-of-{number}"));
        Run {
            instance,
            started: LogTime::from_nanos(i64::from(number) * 10),
            end,
            log_is_gone: false,
            later_unknown: false,
        }
    }

    fn ended(nanos: i64, code: i32, reason: &str) -> RunEnd {
        RunEnd {
            time: LogTime::from_nanos(nanos),
            exit_code: Some(code),
            signal: None,
            reason: reason.to_owned(),
        }
    }

    fn slot(runs: &[Run]) -> ReplicaView {
        ReplicaView { runs: runs.to_vec(), state: ReplicaState::Running, ..ReplicaView::default() }
    }

    fn waiting(reason: &str, message: &str) -> ReplicaView {
        let state = ReplicaState::Waiting { reason: reason.to_owned(), message: message.to_owned() };
        ReplicaView { state, ..ReplicaView::default() }
    }

    fn view(slots: Vec<ReplicaView>) -> LeaseView {
        let web = ServiceView { count: 1, replicas: (0..).zip(slots).collect(), ..ServiceView::default() };
        LeaseView { services: [("web".parse().unwrap(), web)].into(), ..LeaseView::default() }
    }

    fn events(old: Option<&LeaseView>, new: &LeaseView) -> Vec<LeaseEvent> {
        changes(&LEASE.parse().unwrap(), old, new, LogTime::from_nanos(99))
    }

    /// Returns severity, reason, note and pod of each event.
    fn seen(old: Option<&LeaseView>, new: &LeaseView) -> Vec<String> {
        let line = |event: LeaseEvent| {
            format!("{:?} {}: {} [{}]", event.severity, event.reason, event.note, event.object.name)
        };
        events(old, new).into_iter().map(line).collect()
    }

    #[test]
    fn first_view_tells_the_runs_that_it_has() {
        let first = view(vec![slot(&[run(0, Some(ended(5, 137, "OOMKilled"))), run(1, None)])]);
        let expected = [
            "Normal Started: replica 0 started [web-of-0]",
            "Warning OOMKilled: replica 0 ended with exit code 137 [web-of-0]",
            "Normal Started: replica 0 started [web-of-1]",
        ];
        assert_eq!(seen(None, &first), expected);
        assert_eq!(seen(Some(&first), &first), Vec::<String>::new());
        let all = events(None, &first);
        assert_eq!((all[1].replica, all[1].event_time), (Some(0), Some(LogTime::from_nanos(5))));
        assert_eq!(all[1].reporting_controller, "leasemux");
        assert_eq!(all[1].object.namespace.len(), 45);
    }

    #[test]
    fn restart_is_an_end_and_a_start() {
        let old = view(vec![slot(&[run(0, None)])]);
        let new = view(vec![slot(&[run(0, Some(ended(5, 0, "Completed"))), run(1, None)])]);
        let expected = [
            "Normal Ended: replica 0 ended with exit code 0 [web-of-0]",
            "Normal Started: replica 0 started [web-of-1]",
        ];
        assert_eq!(seen(Some(&old), &new), expected);
        let requested = view(vec![slot(&[run(0, Some(ended(5, 143, "Restarted")))])]);
        let expected = ["Normal Ended: replica 0 ended with exit code 143 (Restarted) [web-of-0]"];
        assert_eq!(seen(Some(&old), &requested), expected);
        let failed = view(vec![slot(&[run(0, Some(ended(5, 1, "Error")))])]);
        let expected = ["Warning Ended: replica 0 ended with exit code 1 [web-of-0]"];
        assert_eq!(seen(Some(&old), &failed), expected);
    }

    #[test]
    fn end_of_a_removed_run_is_reported_once() {
        let old = view(vec![slot(&[run(0, None)])]);
        let mut after = slot(&[run(1, None)]);
        after.forgotten = Some(ended(5, 1, "Error"));
        let new = view(vec![after.clone()]);
        let expected = [
            "Warning Ended: replica 0 ended with exit code 1 [web-of-0]",
            "Normal Started: replica 0 started [web-of-1]",
        ];
        assert_eq!(seen(Some(&old), &new), expected);
        assert_eq!(seen(Some(&new), &new), Vec::<String>::new());
        let with_end = view(vec![slot(&[run(0, Some(ended(5, 1, "Error"))), run(1, None)])]);
        assert_eq!(seen(Some(&with_end), &new), Vec::<String>::new());
    }

    #[test]
    fn new_reason_of_waiting_is_an_event() {
        let old = view(vec![waiting("ContainerCreating", "")]);
        let new = view(vec![waiting("ImagePullBackOff", "no such image")]);
        assert_eq!(seen(None, &old), ["Normal ContainerCreating: replica 0 is waiting [web-0]"]);
        let expected = ["Warning ImagePullBackOff: replica 0 is waiting: no such image [web-0]"];
        assert_eq!(seen(Some(&old), &new), expected);
        let later = view(vec![waiting("ImagePullBackOff", "no such image, back-off 20s")]);
        assert_eq!(seen(Some(&new), &later), Vec::<String>::new());
    }

    #[test]
    fn wait_for_the_next_run_is_no_event() {
        let old = view(vec![slot(&[run(0, None)])]);
        let mut after = slot(&[run(0, Some(ended(5, 137, "OOMKilled")))]);
        after.state = waiting("OOMKilled", "").state;
        let new = view(vec![after]);
        let expected = ["Warning OOMKilled: replica 0 ended with exit code 137 [web-of-0]"];
        assert_eq!(seen(Some(&old), &new), expected);
    }

    #[test]
    fn removed_replica_is_gone() {
        let old = view(vec![slot(&[run(0, None)]), slot(&[run(3, None)])]);
        let new = view(vec![slot(&[run(0, None)])]);
        let expected = ["Normal Gone: replica 1 is no longer part of the lease [web-of-3]"];
        assert_eq!(seen(Some(&old), &new), expected);
    }
}
