//! Which runs of a replica its actor has read, and which are still to be read.
//!
//! A view names runs for a limited time only. A log that is slow to end may outlast the next run and its pod,
//! so the record remembers what views have named since.

use crate::model::id::Instance;
use crate::model::limits::RUNS_MAX;
use crate::model::view::{ReplicaView, Run};

/// The runs of one replica, as its actor reads them one after the other.
#[derive(Debug, Default)]
pub(super) struct RunRecord {
    /// For each container, the newest run that the actor reads, has read or ignores because it was there at
    /// the start. Neither that run nor an earlier one is to be read. At most as many as the view names.
    seen: Vec<Instance>,
    /// Runs that are to be read after the current one. At most [`RUNS_MAX`]. The view may not name them any
    /// more.
    unread: Vec<Instance>,
    /// Whether the pod of the current run is gone and may have had later runs, which no view has named.
    later_unknown: bool,
}

// === impl RunRecord ===

impl RunRecord {
    /// Creates the record of an actor that starts. It reads no run of `view` but the newest one.
    pub(super) fn new(view: &ReplicaView) -> Self {
        let seen = view.runs.iter().map(|run| run.instance.clone()).collect();
        Self { seen, ..Self::default() }
    }

    /// Remembers the runs that a view names. `current` is the run that the actor reads or has read last.
    pub(super) fn note(&mut self, view: &ReplicaView, current: Option<&Instance>) {
        if let Some(run) = current.and_then(|current| view.run(current)) {
            self.later_unknown = run.later_unknown;
        }
        for Run { instance, .. } in &view.runs {
            let is_new = !self.was_seen(instance) && !self.unread.contains(instance);
            if is_new && self.unread.len() < RUNS_MAX {
                self.unread.push(instance.clone());
            }
        }
    }

    /// Returns the run of `view` that is to be read next.
    pub(super) fn next<'a>(&self, view: &'a ReplicaView) -> Option<&'a Run> {
        view.runs.iter().find(|run| !self.was_seen(&run.instance))
    }

    /// Whether the replica may have had runs after `current` that cannot be read, because the view has never
    /// named them or does not any more. `next` is the run that is read next, if there is one.
    pub(super) fn may_skip(&self, view: &ReplicaView, current: &Instance, next: Option<&Instance>) -> bool {
        let has_later = self.later_unknown && next.is_none_or(|next| !current.is_same_pod(next));
        let is_lost = |run: &Instance| view.run(run).is_none() && !self.was_seen(run);
        has_later || next.is_some_and(|next| current.skips_to(next)) || self.unread.iter().any(is_lost)
    }

    /// Records that the actor reads `run` from now on. Forgets what the view no longer names.
    pub(super) fn begin(&mut self, view: &ReplicaView, run: &Run) {
        let instance = &run.instance;
        self.seen.retain(|seen| {
            !is_same_container(seen, instance)
                && view.runs.iter().any(|run| is_same_container(seen, &run.instance))
        });
        self.seen.push(instance.clone());
        self.unread.retain(|unread| view.run(unread).is_some());
        self.unread.retain(|unread| !covers(instance, unread));
        self.later_unknown = run.later_unknown;
    }

    /// Whether this run, or a later one of its container, was seen. A view may name an earlier run again
    /// after it did not.
    fn was_seen(&self, run: &Instance) -> bool {
        self.seen.iter().any(|seen| covers(seen, run))
    }
}

/// Whether `run` is `seen` or an earlier run of its container.
fn covers(seen: &Instance, run: &Instance) -> bool {
    is_same_container(seen, run) && seen.run_number() >= run.run_number()
}

fn is_same_container(one: &Instance, other: &Instance) -> bool {
    let (one, other) = (one.parts(), other.parts());
    (one.0, one.1) == (other.0, other.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::time::LogTime;

    fn run(pod: &str, number: u32) -> Run {
        let instance = Instance::new(pod, "web", number).unwrap();
        let started = LogTime::MIN;
        Run { instance, started, end: None, log_is_gone: false, later_unknown: false }
    }

    fn view(runs: impl IntoIterator<Item = Run>) -> ReplicaView {
        ReplicaView { runs: runs.into_iter().collect(), ..ReplicaView::default() }
    }

    /// A record of an actor that reads `a/0`, after it has seen these views.
    fn record(views: &[ReplicaView]) -> RunRecord {
        let mut record = RunRecord::new(&view([run("a", 0)]));
        for view in views {
            record.note(view, Some(&run("a", 0).instance));
        }
        record
    }

    fn may_skip(record: &RunRecord, now: &ReplicaView) -> bool {
        let next = record.next(now).map(|next| &next.instance);
        record.may_skip(now, &run("a", 0).instance, next)
    }

    #[test]
    fn next_run_and_next_pod_skip_nothing() {
        for now in [view([run("a", 0), run("a", 1)]), view([run("a", 0), run("b", 0)]), view([run("b", 0)])] {
            assert!(!may_skip(&record(std::slice::from_ref(&now)), &now), "{now:?}");
        }
    }

    #[test]
    fn numbers_of_runs_show_skipped_ones() {
        for now in [view([run("a", 2)]), view([run("b", 1)])] {
            assert!(may_skip(&record(std::slice::from_ref(&now)), &now), "{now:?}");
        }
    }

    /// The log of `a/0` is slow to end: `a/1` and its pod are gone by then.
    #[test]
    fn run_that_was_named_and_is_gone_is_skipped() {
        let named = [view([run("a", 0), run("a", 1), run("b", 0)]), view([run("b", 0)])];
        assert!(may_skip(&record(&named), &named[1]));
        // Also if the replica is removed, so that no run follows.
        assert!(may_skip(&record(&named), &view([])));
        // A run of another pod as well.
        let named = [view([run("a", 0), run("b", 0)]), view([run("c", 0)])];
        assert!(may_skip(&record(&named), &named[1]));
    }

    #[test]
    fn pod_that_went_unseen_may_have_had_later_runs() {
        let gone = Run { later_unknown: true, ..run("a", 0) };
        let named = [view([gone]), view([run("b", 0)])];
        assert!(may_skip(&record(&named), &named[1]));
        assert!(may_skip(&record(&named), &view([])));
    }

    #[test]
    fn skipped_runs_are_reported_once() {
        let now = view([run("b", 0), run("c", 0)]);
        let mut record = record(&[view([run("a", 1), run("b", 0)]), now.clone()]);
        assert!(may_skip(&record, &now));
        let next = run("b", 0);
        record.begin(&now, &next);
        record.note(&now, Some(&next.instance));
        let last = run("c", 0).instance;
        assert!(!record.may_skip(&now, &next.instance, Some(&last)));
        assert_eq!(record.next(&now).map(|run| run.instance.clone()), Some(last));
    }

    #[test]
    fn memory_is_bounded() {
        let many = (0..1_000).map(|number| run(&format!("pod-{number}"), 0));
        let record = record(&[view(many)]);
        assert_eq!(record.unread.len(), RUNS_MAX);
    }
}
