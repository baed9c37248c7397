//! Which run an actor reads: the newest at first, then each one that follows it, and the news of their turns.

use tokio::time::Instant;

use super::Actor;
use super::source::Source;
use crate::logs::chunk::Chunker;
use crate::logs::frame::Event;
use crate::model::id::Instance;
use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::{ReplicaState, ReplicaView, Run};
use crate::platform::ReadFrom;

/// The run whose log is, or was last, read.
pub(super) struct CurrentRun {
    pub(super) instance: Instance,
    pub(super) chunker: Chunker,
    /// When the oldest line that waits in the chunker was read.
    pub(super) read_at: Instant,
    /// Time of the newest line.
    pub(super) last_time: Option<LogTime>,
    /// Whether it had ended before anybody followed: no news, then.
    pub(super) end_is_old: bool,
    /// Whether it was told that its log cannot be read.
    pub(super) gap_was_told: bool,
}

// === impl Actor ===

impl Actor {
    /// Opens the newest run's log at its end: what is older is for those to read who ask for it.
    pub(super) fn begin(&mut self) {
        let slot = self.slot().unwrap_or_default();
        self.passed = slot.runs.iter().map(|run| run.instance.clone()).collect();
        match slot.readable().next_back() {
            Some(run) => {
                self.run = Some(CurrentRun { end_is_old: run.end.is_some(), ..CurrentRun::new(run) });
                self.open(ReadFrom::Last(0));
            }
            None => self.idle(),
        }
    }

    /// The present run's log was read to its end.
    pub(super) fn log_ended(&mut self) {
        self.flush();
        self.source = Source::Ended;
        self.view_changed();
    }

    /// Goes on to the next run once the present one's log has ended and the view says how.
    pub(super) fn view_changed(&mut self) {
        match self.source {
            Source::Idle => self.next_run(),
            Source::Ended => {
                let slot = self.slot().unwrap_or_default();
                let Some(run) = &self.run else { return };
                match slot.run(&run.instance).map(Event::ended) {
                    // The log has ended, but the view does not know yet.
                    Some(None) if !self.is_over() => return,
                    Some(Some(event)) if !run.end_is_old => self.ring.push_event(Some(&run.instance), &event),
                    _ => {}
                }
                self.source = Source::Idle;
                self.next_run();
            }
            Source::Opening(_) | Source::Reading(_) | Source::Retry(_) => {}
        }
    }

    fn next_run(&mut self) {
        let Some(slot) = self.slot() else { return };
        match slot.runs.iter().find(|run| !self.has_passed(&run.instance)) {
            Some(run) => {
                self.pass(&slot, &run.instance);
                let skips = self.run.as_ref().is_some_and(|last| last.instance.skips_to(&run.instance));
                self.start(run);
                if skips {
                    // Those between came and went unseen.
                    self.unknown_gap(GapCause::Rotated);
                }
            }
            None => self.idle(),
        }
    }

    /// Whether a run, or a later one of its container, was read or was there before. An earlier run may be named again after it was not.
    fn has_passed(&self, run: &Instance) -> bool {
        let (uid, container, number) = run.parts();
        self.passed.iter().any(|passed| {
            let of = passed.parts();
            (of.0, of.1) == (uid, container) && of.2 >= number
        })
    }

    /// Has a run, and those before it of its container, never be read again as long as the slot names its container.
    fn pass(&mut self, slot: &ReplicaView, run: &Instance) {
        let container = |instance: &Instance| (instance.parts().0.to_owned(), instance.parts().1.to_owned());
        let of = container(run);
        self.passed.retain(|passed| {
            let passed = container(passed);
            passed != of && slot.runs.iter().any(|run| container(&run.instance) == passed)
        });
        self.passed.push(run.clone());
    }

    fn start(&mut self, run: &Run) {
        self.waiting_for = None;
        self.run = Some(CurrentRun::new(run));
        self.ring.start(&run.instance, &Event::started(run));
        self.open(ReadFrom::Start);
    }

    /// Tells once why nothing runs.
    fn idle(&mut self) {
        self.source = Source::Idle;
        let Some(ReplicaView { state: ReplicaState::Waiting { reason, message }, .. }) = self.slot() else {
            return;
        };
        if self.waiting_for.as_ref() == Some(&reason) {
            return;
        }
        self.waiting_for = Some(reason.clone());
        self.ring.push_event(self.run.as_ref().map(|run| &run.instance), &Event::waiting(reason, message));
    }

    /// Whether its lease has ended or the replica is no longer part of it: what is printed yet are its last lines.
    pub(super) fn is_over(&self) -> bool {
        let view = self.view.borrow();
        view.ended || view.replica(&self.replica).is_none() || self.view_is_closed
    }

    /// Whether the replica is no longer part of the lease and its log was read to its end; says so.
    pub(super) fn is_gone(&mut self) -> bool {
        let gone = matches!(self.source, Source::Idle) && self.is_over();
        if gone {
            self.ring.push_event(self.run.as_ref().map(|run| &run.instance), &Event::gone());
        }
        gone
    }
}

// === impl CurrentRun ===

impl CurrentRun {
    fn new(run: &Run) -> Self {
        Self {
            instance: run.instance.clone(),
            chunker: Chunker::new(Position::START),
            read_at: Instant::now(),
            last_time: None,
            end_is_old: false,
            gap_was_told: false,
        }
    }
}
