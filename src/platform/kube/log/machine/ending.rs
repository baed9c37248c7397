//! Decides after a response: the log is finished, the next stage begins, or the log is requested again.

use std::collections::HashSet;

use super::reading::{Misplaced, printable};
use super::{
    Action, CLEAN_END_FAILURES, KNOWN_MAX_LINES, Machine, PAUSE_BRIEF, PAUSE_FIRST, PAUSE_MAX,
    PAUSE_UNREACHABLE, POLLS_PER_TRIAL, Polling, REMOVED_FAILURES_MAX, REST_FAILURES_MAX, RotationGap,
    Search, Stage, UNCLEAR_RUN_PAUSES,
};
use crate::platform::batcher::{LineBatcher, StartFilter};
use crate::platform::kube::log::lines::Rest;
use crate::platform::{Error, ReadFrom};

/// Part of a kubelet's message at the end of a follow whose container was removed before the kubelet saw it
/// end.
const CONTAINER_REMOVED: &str = "code = NotFound";

/// Part of a kubelet's message in place of the log of a container that the runtime does not know.
const CONTAINER_GONE: &str = "unable to retrieve container logs";

/// Messages of kubelets that cannot watch a log file, because the node's inotify instances or watches are
/// used up.
const CANNOT_WATCH: [&str; 2] = ["failed to create fsnotify watcher", "failed to watch directory"];

impl Machine {
    pub(super) fn on_complete(&mut self, ended: bool) -> Action {
        let mut is_unfinished = false;
        if self.response.run_ended && !matches!(self.stage, Stage::ProbeNewer { .. }) {
            // The last line of a run that has ended needs no newline.
            match self.response.lines.take_rest() {
                Rest::Line(time, rest) => {
                    if let Err(Misplaced { suspect }) = self.piece(time, &rest, true) {
                        self.clean_end = None;
                        return self.recover(suspect);
                    }
                }
                Rest::Foreign(text) => self.response.message = Some(printable(&text)),
                Rest::Nothing => {}
            }
        } else {
            // A read that does not follow ends here. And an unfinished line may be the one that was delivered
            // in part.
            let takes_unfinished = match self.stage {
                Stage::FindStart { .. } | Stage::ReadLast(_) => !self.follow,
                Stage::SkipKnown { gap, .. } => gap == RotationGap::Due,
                _ => false,
            };
            if takes_unfinished {
                self.take_unfinished(None);
            }
            is_unfinished = self.leave_response();
        }
        if let Some(text) = self.response.message.take() {
            // The container exists and has no log. Kubelets remove the log of a deleted pod before the pod is
            // gone; also during a follow, which has read the log to its end then.
            let is_past_overlap = self.stage.is_live() && !self.window.is_empty();
            if is_past_overlap && !is_unfinished && text.contains(CONTAINER_REMOVED) {
                self.clean_end = Some(self.delivered());
            }
            return self.broken(format!("the kubelet says: {text}"));
        }
        let next = self.next_stage(ended);
        if is_unfinished {
            self.clean_end = None;
        }
        next
    }

    fn next_stage(&mut self, ended: bool) -> Action {
        if let Some(action) = self.leave_last_lines(true) {
            return action;
        }
        match std::mem::take(&mut self.stage) {
            Stage::FindStart { filter, .. } if self.batcher.start().is_none() => {
                self.not_found(filter, ended)
            }
            Stage::ReadLast(mut last) => {
                last.hold(self.batcher.take_items(true));
                if last.is_whole() {
                    self.begin_at_last(last, ended)
                } else if last.has_certain_start(self.batcher.first()) {
                    self.go_to(Stage::ProbeNewer { last, newer: false })
                } else {
                    self.go_to(Stage::CountLines)
                }
            }
            Stage::ProbeNewer { newer: true, .. } => self.go_to(Stage::CountLines),
            Stage::ProbeNewer { last, .. } => self.begin_at_last(last, ended),
            Stage::CountLines => {
                // Lines that came meanwhile follow the counted ones.
                let lines = self.batcher.lines();
                match self.from {
                    ReadFrom::Last(wanted) if wanted > 0 => {
                        let filter = StartFilter::Lines(lines.saturating_sub(wanted));
                        self.go_to(Stage::FindStart { filter, last: None })
                    }
                    // No line is wanted (`Last(0)`): start here. A second read of the file would only let a
                    // busy log grow.
                    _ => {
                        self.batcher = LineBatcher::new(self.batcher.at(), lines, StartFilter::All);
                        self.at_end(ended)
                    }
                }
            }
            Stage::Live { search, .. } => {
                let is_found = matches!(search, Search::Found);
                if is_found {
                    // A log that is polled, or was read late, may have grown since.
                    let is_end = self.follows() && !self.response.is_late;
                    self.clean_end = is_end.then(|| self.delivered());
                }
                if ended {
                    return self.go_to(Stage::READ_REST);
                }
                self.stage = Stage::LIVE;
                if self.follows() {
                    return self.pause();
                }
                if !is_found {
                    return self.recover(None);
                }
                self.failures = 0;
                if let Some(polling) = &mut self.polling {
                    polling.polls_left = polling.polls_left.saturating_sub(1);
                }
                Action::AwaitPoll
            }
            Stage::ReadRest { search: Search::Searching(_), suspect } => self.recover(suspect),
            Stage::FindResumePoint { search: Search::Searching(_), suspect } => {
                let may_have_ended = self.follow && !self.response.run_ended && !ended;
                if may_have_ended {
                    self.go_to(Stage::SearchPreviousRun { search: Search::NotBegun, suspect })
                } else {
                    self.read_whole_file()
                }
            }
            Stage::SearchPreviousRun { .. } => self.read_whole_file(),
            Stage::ReadRest { suspect, .. } | Stage::FindResumePoint { suspect, .. } => {
                if suspect.is_some() {
                    // The stream had a line after the last remembered one that the file does not have there.
                    self.report_loss();
                }
                self.at_end(ended)
            }
            Stage::SkipKnown { gap, .. } => {
                if gap == RotationGap::Due {
                    self.report_loss();
                }
                self.at_end(ended)
            }
            Stage::FindStart { .. } | Stage::AwaitStatus => self.at_end(ended),
            Stage::Done => Action::Finish,
        }
    }

    /// Handles that the kubelet serves a later run than the API server knows. Waits for the API server, as
    /// long as the compared times can be trusted.
    pub(super) fn later_run(&mut self, why: &str, unclear: bool) -> Action {
        tracing::debug!(
            why,
            pauses_left = self.run_pauses,
            "kubelet serves a later run than the API server knows"
        );
        if unclear {
            self.run_pauses = self.run_pauses.min(UNCLEAR_RUN_PAUSES);
        }
        self.run_pauses = self.run_pauses.saturating_sub(1);
        if let Stage::SkipKnown { gap: RotationGap::Unopened, .. } = self.stage {
            self.stage = Stage::AwaitStatus;
            // The whole file was that of another run.
            self.searched.file = false;
        }
        Action::Pause(if self.follow { PAUSE_MAX } else { PAUSE_BRIEF })
    }

    /// Reads the whole file, because no file has the resume point any more.
    pub(super) fn read_whole_file(&mut self) -> Action {
        let mut known = self.window.marks();
        if known.len() + self.known.len() <= KNOWN_MAX_LINES {
            known.extend(&self.known);
        }
        self.go_to(Stage::SkipKnown { known, gap: RotationGap::Unopened })
    }

    /// Continues after all of the file was read.
    pub(super) fn at_end(&mut self, ended: bool) -> Action {
        self.known = HashSet::new();
        if self.response.run_ended || !self.follow {
            self.stage = Stage::Done;
            return Action::Finish;
        }
        self.go_to(if ended { Stage::READ_REST } else { Stage::LIVE })
    }

    pub(super) fn broken(&mut self, why: String) -> Action {
        if let Stage::SearchPreviousRun { .. } = self.stage {
            // The kubelet has not noticed yet that it no longer has that run.
            return self.read_whole_file();
        }
        let cannot_follow = matches!(self.stage, Stage::Live { .. })
            && self.follows()
            && CANNOT_WATCH.iter().any(|text| why.contains(text));
        if let Err(error) = self.interrupted(&why) {
            return Action::Fail(error);
        }
        if cannot_follow {
            tracing::debug!(why, "kubelet cannot follow the log");
            self.polling = Some(Polling { polls_left: POLLS_PER_TRIAL, reported: false });
            return Action::AwaitPoll;
        }
        if self.is_rest_removed(&why) {
            return self.gone(why);
        }
        self.pause()
    }

    /// Counts a failure to read the rest of a run that has ended. Returns whether its log was removed.
    fn is_rest_removed(&mut self, why: &str) -> bool {
        if !matches!(self.stage, Stage::ReadRest { .. }) {
            return false;
        }
        self.rest_failures = self.rest_failures.saturating_add(1);
        let was_read = self.clean_end == Some(self.delivered()) && why.contains(CONTAINER_GONE);
        if !was_read && self.rest_failures >= REST_FAILURES_MAX {
            // It may be refused, not removed, and have grown since the last response was complete.
            self.clean_end = None;
        }
        self.rest_failures >= if was_read { REMOVED_FAILURES_MAX } else { REST_FAILURES_MAX }
    }

    /// Waits for an unreachable upstream, which does not count as a failure of this log. But what looked like
    /// the end of the log may have been that of its kubelet.
    pub(super) fn unreachable(&mut self, why: String) -> Action {
        self.clean_end = None;
        self.interrupted(&why).map_or_else(Action::Fail, |()| Action::Pause(PAUSE_UNREACHABLE))
    }

    /// Prepares to resume the read after an interruption.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the read does not follow or has not begun: then the caller is told.
    fn interrupted(&mut self, why: &str) -> Result<(), Error> {
        let is_past_overlap = matches!(
            self.stage,
            Stage::Live { search: Search::Found, .. } | Stage::ReadRest { search: Search::Found, .. }
        );
        if self.leave_response() && is_past_overlap {
            // The beginning of a new line.
            self.clean_end = None;
        }
        self.response.message = None;
        if !self.follow || self.start().is_none() {
            return Err(Error::Unavailable(why.to_owned()));
        }
        tracing::debug!(why, failures = self.failures, "log response interrupted");
        let is_unread = self.window.is_empty() && self.batcher.at().at_line_start();
        let delivers = matches!(
            self.stage,
            Stage::FindStart { .. } | Stage::SkipKnown { gap: RotationGap::Reported, .. }
        );
        if delivers && !is_unread {
            let resume = Stage::FindResumePoint { search: Search::NotBegun, suspect: None };
            if let Stage::SkipKnown { known, .. } = std::mem::replace(&mut self.stage, resume) {
                self.known = known;
            }
        }
        Ok(())
    }

    /// Waits before the next attempt.
    pub(super) fn pause(&mut self) -> Action {
        if matches!(self.stage, Stage::Live { .. }) && self.failures >= CLEAN_END_FAILURES {
            self.clean_end = None;
        }
        let pause = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        Action::Pause(pause)
    }

    /// Returns the amount delivered so far: whole lines, and bytes of the next one.
    fn delivered(&self) -> (u64, u64) {
        (self.batcher.lines(), self.batcher.at().offset)
    }

    /// Ends the read, because the log does not exist. The log of a run that was followed to its end may be
    /// removed at once: then nothing is lost.
    pub(super) fn gone(&mut self, why: String) -> Action {
        if self.start().is_none() {
            return Action::Fail(Error::NotFound(why));
        }
        if let Stage::SearchPreviousRun { .. } = self.stage {
            return self.read_whole_file();
        }
        if self.clean_end != Some(self.delivered()) {
            self.report_loss();
        }
        self.stage = Stage::Done;
        Action::Finish
    }
}
