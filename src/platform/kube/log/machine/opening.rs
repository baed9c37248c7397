//! Where a read begins: every stage when its response does, and delivery when the place is found.

use super::{BEHIND_PAUSES, BRIEF_PAUSES, Machine, RotationGap, Stage, UNROTATED};
use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::ReadFrom;
use crate::platform::batcher::{LineBatcher, StartFilter, unknown_gap};
use crate::platform::kube::log::overlap::{LineHash, Window};
use crate::platform::kube::log::step::Action;
use crate::platform::kube::log::tail_buffer::TailBuffer;

impl Machine {
    /// Every stage may begin here again.
    pub(super) fn opened(&mut self, ended: bool) -> Action {
        self.ended = ended;
        let ask = self.ask();
        if ask.checks_run {
            self.patience = if self.follow { BEHIND_PAUSES } else { BRIEF_PAUSES };
        }
        let asked = ask.tail_lines.unwrap_or(u64::MAX);
        self.said = None;
        self.hash = LineHash::default();
        self.skip = self.emitter.at().offset;
        self.skipped = LineHash::default();
        self.repeats = false;
        match &mut self.stage {
            Stage::Live(place) | Stage::Drain(place) | Stage::Recover(place) => {
                *place = (!self.window.is_empty()).then(|| self.window.aligner(asked));
            }
            Stage::PreviousRun(place) => *place = self.window.aligner(asked),
            Stage::Last(last) => {
                last.begin_anew();
                self.count_anew();
            }
            Stage::Seek => self.count_anew(),
            Stage::Count => {
                self.count_anew();
                self.emitter = LineBatcher::new(Position::START, 0, StartFilter::Nothing);
            }
            Stage::SkipKnown { gap, .. } => {
                // The lines that it remembers will stand in the order of this file.
                self.window = Window::default();
                if *gap == RotationGap::Unopened {
                    *gap = RotationGap::Due;
                    if self.skip == 0 {
                        self.lost();
                    }
                }
            }
            Stage::ProbeNewer { .. } | Stage::AwaitingStatus | Stage::Done => {}
        }
        Action::Read
    }

    /// Counts from the file's first line.
    fn count_anew(&mut self) {
        self.skip = 0;
        self.partial = LineHash::default();
        self.window = Window::default();
        self.emitter = LineBatcher::new(Position::START, 0, self.filter);
    }

    /// The whole file was read, and the place to begin at was not in it.
    pub(super) fn not_found(&mut self, ended: bool) -> Action {
        if let StartFilter::Lines(_) = self.filter {
            // It was rotated since its lines were counted.
            self.filter = StartFilter::All;
            return self.go_to(Stage::Count);
        }
        self.emitter.begin_here();
        if let ReadFrom::After(_) = self.from {
            // The position lies behind the end, or its line is gone and the clock was set back since.
            self.emitter.gap(unknown_gap(GapCause::Source));
        }
        self.at_end(ended)
    }

    /// The last lines were found: delivery begins with them.
    pub(super) fn begin_at_last(&mut self, last: TailBuffer, ended: bool) -> Action {
        let at = self.emitter.at();
        self.emitter = LineBatcher::new(at, self.emitter.lines(), StartFilter::All);
        self.first = Some(last.finish(at));
        self.at_end(ended)
    }

    /// Whether a log whose first line has this time was not rotated yet.
    pub(super) fn is_fresh(&self, first: LogTime) -> bool {
        first < self.started.saturating_add_nanos(UNROTATED)
    }

    /// Whether the place may be another one: the first line has the time of the position, and before it there may have been more
    /// of that time, in a file that is gone.
    pub(super) fn is_unsure(&self) -> bool {
        let ReadFrom::After(after) = self.from else { return false };
        let Some(first) = self.emitter.first() else { return false };
        !self.is_fresh(first)
            && !self.emitter.is_inexact()
            && (after.time == LogTime::MIN || first == after.time)
    }
}
