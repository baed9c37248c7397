//! The run that a participant's actor reads: its beginning, its end, and the runs before it.

use std::time::Duration;

use super::{Delivery, Output, Participant, Role, Shown};
use crate::model::id::Instance;
use crate::platform::{ReadFrom, TailItem};

/// Runs that the actor has finished, of which late frames are ignored: more than a crash loop has between two
/// frames.
const FINISHED_RUNS_MAX: usize = 8;

// === impl Participant: the actor's log ===

impl Participant {
    pub(super) fn open(&mut self, instance: Instance, from: ReadFrom, now: Duration) {
        let is_same = |run: &Delivery| run.instance == instance && from == run.next_from();
        if !self.run.as_ref().is_some_and(is_same) {
            self.close_tail();
            self.tail_end = None;
            let mut run = Delivery::new(instance, from);
            run.from = self.asks.start_of(&run.instance, from);
            let is_known = run.at.is_some();
            let old = self.run.replace(run);
            // A run that was read to its end is no longer in `run`.
            let last = old.as_ref().map(|old| &old.instance).or(self.finished.back());
            let is_other_pod = last.is_some_and(|last| !self.reads_pod(last));
            let is_reopened = old.as_ref().is_some_and(|old| self.reads_run(&old.instance));
            if (is_reopened || !is_known)
                && let Role::Member(following) = &mut self.role
            {
                // The next frame is that of another position.
                following.next = None;
            }
            if let (true, Role::Publisher(publishing)) = (is_other_pod, &mut self.role) {
                publishing.ask_node_now(now);
            }
            if let Some(old) = old.filter(|_| !is_reopened) {
                self.remember_finished(old.instance);
            }
        }
        self.shown = Shown::default();
        if let Some(start) = self.run.as_ref().and_then(|run| run.at) {
            self.out.push(Output::Opened { start, unfinished: [false; 2] });
        }
        if self.tail.covering && !self.tail.is_open {
            self.open_tail();
        }
        match &mut self.role {
            Role::Idle if self.config.is_source => self.serve_asks(),
            Role::Idle => self.start(now),
            Role::Member(following) => following.wait_for_run(now),
            _ => {}
        }
    }

    /// The actor's log has ended.
    pub(super) fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            self.tail_end = run.place().map(|place| (place, run.trailing_gaps()));
            self.remember_finished(run.instance);
            self.close_tail();
            self.out.push(Output::Ended);
        }
    }

    fn reads_run(&self, instance: &Instance) -> bool {
        self.run.as_ref().is_some_and(|run| run.instance == *instance)
    }

    /// Whether the actor reads a run of the same pod as `instance`.
    fn reads_pod(&self, instance: &Instance) -> bool {
        self.run.as_ref().is_some_and(|run| run.instance.parts().0 == instance.parts().0)
    }

    fn remember_finished(&mut self, instance: Instance) {
        if self.finished.len() == FINISHED_RUNS_MAX {
            self.finished.pop_front();
        }
        self.finished.push_back(instance);
    }

    /// Whether `instance` is a run before the one that the actor reads.
    pub(super) fn is_earlier(&self, instance: &Instance) -> bool {
        let Some(run) = &self.run else { return self.finished.contains(instance) };
        run.instance != *instance
            && (self.finished.contains(instance) || run.instance.is_later_than(instance))
    }

    pub(super) fn deliver(&mut self, item: Option<TailItem>) {
        self.out.extend(item.map(Output::Deliver));
    }
}
