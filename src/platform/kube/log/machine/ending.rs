//! What the end of a response means: that the log is over, that it goes on elsewhere, or nothing, so that it is asked for again.

use super::reading::readable;
use super::{
    Machine, PAUSE_AWAY, PAUSE_BRIEF, PAUSE_FIRST, PAUSE_MAX, POLL_EVERY, POLLS_PER_TRIAL, RotationGap,
    Stage, UNCLEAR_PAUSES,
};
use crate::platform::batcher::{LineBatcher, StartFilter};
use crate::platform::kube::log::lines::{Found, Rest};
use crate::platform::kube::log::step::Action;
use crate::platform::{Error, ReadFrom};

/// Part of what a kubelet says at the end of a followed log if the container was removed before the kubelet saw that it had ended.
const CONTAINER_REMOVED: &str = "code = NotFound";

/// What kubelets say that cannot watch a log file: the node's inotify instances, or its watches, are used up.
const CANNOT_WATCH: [&str; 2] = ["failed to create fsnotify watcher", "failed to watch directory"];

impl Machine {
    pub(super) fn complete(&mut self, ended: bool) -> Action {
        let mut is_unfinished = false;
        let is_glance = matches!(self.stage, Stage::ProbeNewer { .. });
        if self.ended && !is_glance {
            // Of a run that has ended it is the last line.
            match self.lines.take_rest() {
                Rest::Line(time, rest) => {
                    if !self.piece(time, &rest, true) {
                        self.clean_end = None;
                        return self.recover();
                    }
                }
                Rest::Foreign(text) => self.said = Some(readable(&text)),
                Rest::Nothing => {}
            }
        } else {
            let is_last_look = !self.follow && matches!(self.stage, Stage::Seek | Stage::Last(_));
            if is_last_look || matches!(self.stage, Stage::SkipKnown { gap: RotationGap::Due, .. }) {
                // As far as it came: nobody waits for the rest, or it tells whether it is the line that was handed out in part.
                let mut lines = std::mem::take(&mut self.lines);
                lines.take_unfinished(None, &mut |found| {
                    if let Found::Piece { time, bytes, .. } = found {
                        self.piece(time, bytes, false);
                    }
                });
                self.lines = lines;
            }
            is_unfinished = self.leave_response();
        }
        if let Some(text) = self.said.take() {
            // It is there, and has no log. Of a pod that is deleted it removes the log before the pod has gone; also while the log is
            // followed, which had been read to its end then.
            let is_placed = matches!(self.stage, Stage::Live(None)) && !self.window.is_empty();
            if is_placed && !is_unfinished && text.contains(CONTAINER_REMOVED) {
                self.clean_end = Some(self.delivered());
            }
            return self.broken(format!("the kubelet says: {text}"));
        }
        let next = self.completed(ended);
        if is_unfinished {
            self.clean_end = None;
        }
        next
    }

    fn completed(&mut self, ended: bool) -> Action {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Seek if self.emitter.start().is_none() => self.not_found(ended),
            Stage::Last(mut last) => {
                last.take(self.emitter.take(true));
                if last.is_whole() {
                    self.begin_at_last(last, ended)
                } else if last.is_sure(self.emitter.first(), self.emitter.at()) {
                    self.go_to(Stage::ProbeNewer { last, newer: false })
                } else {
                    self.go_to(Stage::Count)
                }
            }
            Stage::ProbeNewer { newer: true, .. } => self.go_to(Stage::Count),
            Stage::ProbeNewer { last, .. } => self.begin_at_last(last, ended),
            Stage::Count => {
                // What has come meanwhile comes after those that were counted.
                let wanted = if let ReadFrom::Last(lines) = self.from { lines } else { 0 };
                if wanted == 0 {
                    // A loud log goes on while it is read, so each read that is saved is a step towards following it.
                    self.emitter =
                        LineBatcher::new(self.emitter.at(), self.emitter.lines(), StartFilter::All);
                    return self.at_end(ended);
                }
                self.filter = StartFilter::Lines(self.emitter.lines().saturating_sub(wanted));
                self.go_to(Stage::Seek)
            }
            Stage::Live(place) => {
                if place.is_none() {
                    // A log that is polled may have grown since.
                    self.clean_end = self.follows().then(|| self.delivered());
                }
                if ended {
                    return self.go_to(Stage::Drain(None));
                }
                self.stage = Stage::Live(None);
                if self.follows() {
                    return self.pause();
                }
                if place.is_some() {
                    return self.recover();
                }
                self.polled()
            }
            Stage::Drain(Some(_)) => self.recover(),
            Stage::Recover(Some(_)) if self.follow && !self.ended && !ended => {
                self.go_to(Stage::PreviousRun(self.window.aligner(u64::MAX)))
            }
            Stage::Recover(Some(_)) | Stage::PreviousRun(_) => self.rotated(),
            Stage::Seek | Stage::Drain(None) | Stage::Recover(None) | Stage::AwaitingStatus => {
                self.at_end(ended)
            }
            Stage::SkipKnown { gap, .. } => {
                if gap == RotationGap::Due {
                    self.lost();
                }
                self.at_end(ended)
            }
            Stage::Done => Action::Finish,
        }
    }

    /// The kubelet serves a later run than the API server knows of. Waits for its word, and not longer than times can be believed.
    pub(super) fn behind(&mut self, why: &str, unclear: bool) -> Action {
        tracing::debug!(why, patience = self.patience, "the API server does not know of the newest run yet");
        if unclear {
            self.patience = self.patience.min(UNCLEAR_PAUSES);
        }
        self.patience = self.patience.saturating_sub(1);
        if let Stage::SkipKnown { gap: RotationGap::Unopened, .. } = self.stage {
            self.stage = Stage::AwaitingStatus;
            // The whole file is another one then.
            self.searched = false;
        }
        Action::Pause(if self.follow { PAUSE_MAX } else { PAUSE_BRIEF })
    }

    /// The place is in no file any more: reads what there is.
    pub(super) fn rotated(&mut self) -> Action {
        self.suspect = None;
        let known = self.window.all();
        self.go_to(Stage::SkipKnown { known, gap: RotationGap::Unopened })
    }

    /// The kubelet cannot follow the log: it is read again and again.
    fn unfollowable(&mut self, why: String) -> Action {
        tracing::debug!(why, "a kubelet cannot follow a log");
        self.reports_polling = true;
        self.polls = Some(POLLS_PER_TRIAL);
        Action::Pause(POLL_EVERY)
    }

    /// The last lines were read, and will be again.
    fn polled(&mut self) -> Action {
        self.failures = 0;
        self.polls = self.polls.map(|polls| polls.saturating_sub(1));
        Action::Pause(POLL_EVERY)
    }

    /// Nothing was said against following the log.
    pub(super) fn followed_again(&mut self) -> Action {
        self.polls = None;
        Action::Read
    }

    /// Everything that the file held is handed out.
    pub(super) fn at_end(&mut self, ended: bool) -> Action {
        if self.suspect.take().is_some() {
            // The stream had a line after the last known one that the file does not have there.
            self.lost();
        }
        if self.ended || !self.follow {
            self.stage = Stage::Done;
            return Action::Finish;
        }
        self.go_to(if ended { Stage::Drain(None) } else { Stage::Live(None) })
    }

    pub(super) fn broken(&mut self, why: String) -> Action {
        if let Stage::PreviousRun(_) = self.stage {
            // There is no such run any more, only the kubelet has not noticed yet.
            return self.rotated();
        }
        let cannot_follow = matches!(self.stage, Stage::Live(_))
            && self.follows()
            && CANNOT_WATCH.iter().any(|text| why.contains(text));
        if cannot_follow {
            return self.interrupted(why.clone()).unwrap_or_else(|| self.unfollowable(why));
        }
        self.interrupted(why).unwrap_or_else(|| self.pause())
    }

    /// That nobody is reached is no failure of this log's: it is not held against it once somebody is. But what looked like the end of
    /// the log may have been that of its kubelet.
    pub(super) fn away(&mut self, why: String) -> Action {
        self.clean_end = None;
        self.interrupted(why).unwrap_or(Action::Pause(PAUSE_AWAY))
    }

    /// Has the log read on where it was interrupted; tells what else is to be done if it is over with that.
    fn interrupted(&mut self, why: String) -> Option<Action> {
        if self.leave_response() && matches!(self.stage, Stage::Live(None) | Stage::Drain(None)) {
            // The beginning of a new line.
            self.clean_end = None;
        }
        self.said = None;
        if !self.follow || self.start().is_none() {
            return Some(Action::Fail(Error::Unavailable(why)));
        }
        tracing::debug!(why, failures = self.failures, "a log response broke off");
        if matches!(self.stage, Stage::Seek | Stage::SkipKnown { gap: RotationGap::Reported, .. }) {
            // What was read is read: on from there.
            let is_unread = self.window.is_empty() && self.emitter.at().offset == 0;
            if !is_unread {
                self.stage = Stage::Recover(None);
            }
        }
        None
    }

    /// Waits, and then asks again.
    pub(super) fn pause(&mut self) -> Action {
        let pause = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        Action::Pause(pause)
    }

    /// What has been delivered: whole lines, and bytes of the next one.
    fn delivered(&self) -> (u64, u64) {
        (self.emitter.lines(), self.emitter.at().offset)
    }

    /// Of a run that was followed to its end the log may be removed at once.
    pub(super) fn gone(&mut self, why: String) -> Action {
        if self.start().is_none() {
            return Action::Fail(Error::NotFound(why));
        }
        if let Stage::PreviousRun(_) = self.stage {
            return self.rotated();
        }
        if self.clean_end != Some(self.delivered()) {
            self.lost();
        }
        self.stage = Stage::Done;
        Action::Finish
    }
}
