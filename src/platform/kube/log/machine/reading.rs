//! Bytes of a response: lines to deliver, lines that were read before, and messages of the kubelet.

use super::{Action, MESSAGE_MAX_CHARS, Machine, RotationGap, Search, Stage, Suspect};
use crate::model::line::GapCause;
use crate::model::time::LogTime;
use crate::platform::batcher::unknown_gap;
use crate::platform::kube::log::lines::{Found, Lines, Rest};
use crate::platform::kube::log::overlap::{LineHash, Mark, Novelty, Overlap};

/// The current response cannot contain the resume point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Misplaced {
    /// The line that showed it, if the stream had passed the resume point.
    pub(super) suspect: Option<Suspect>,
}

/// A line that was delivered in part. A line of a later response continues it if it has the same time and
/// begins with the delivered bytes.
#[derive(Debug, Default)]
pub(super) struct PartialLine {
    /// Hash of the delivered bytes.
    delivered: LineHash,
    /// Set when its response ends: its time, and the bytes that were read and not delivered.
    cut: Option<(LogTime, Vec<u8>)>,
    /// Delivered bytes that the current response has not repeated yet.
    skip: u64,
    /// Hash of the bytes that the current response has repeated.
    repeated: LineHash,
}

// === impl Machine ===

impl Machine {
    pub(super) fn data(&mut self, data: &[u8]) -> Action {
        if let Stage::ProbeNewer { newer, .. } = &mut self.stage {
            // A time, not a message of the kubelet.
            *newer |= data.first().is_some_and(u8::is_ascii_digit);
            return Action::Read;
        }
        let mut lines = std::mem::take(&mut self.response.lines);
        let mut placed = Ok(());
        lines.push(data, &mut |found| match found {
            _ if placed.is_err() => {}
            Found::Piece { time, bytes, ends } => placed = self.piece(time, bytes, ends),
            Found::Foreign(text) => self.response.message = Some(printable(text)),
        });
        self.response.lines = lines;
        if let Err(Misplaced { suspect }) = placed {
            self.clean_end = None;
            return self.recover(suspect);
        }
        if let Some(action) = self.leave_last_lines(false) {
            return action;
        }
        if let Stage::ReadLast(last) = &mut self.stage
            && !last.hold(self.batcher.take_items(true))
        {
            return self.go_to(Stage::CountLines);
        }
        Action::Read
    }

    /// Returns whether an unfinished line waits that can be delivered as a piece.
    pub(in crate::platform::kube::log) fn holds_unfinished(&self) -> bool {
        self.stage.is_live() && self.response.lines.holds_unfinished()
    }

    /// Delivers the received part of an unfinished line. A line older than the previous one may be a repeat,
    /// which only its end shows.
    pub(super) fn unfinished(&mut self) -> Action {
        if self.holds_unfinished() && !matches!(self.stage, Stage::Live { repeats: true, .. }) {
            self.take_unfinished(self.window.last().map(|last| last.time));
        }
        Action::Read
    }

    /// Delivers the received part of an unfinished line that is not older than `not_before`.
    pub(super) fn take_unfinished(&mut self, not_before: Option<LogTime>) {
        if let Some((time, bytes)) = self.response.lines.take_unfinished(not_before) {
            // If it is misplaced, the end of the line will be so too.
            _ = self.piece(time, &bytes, false);
        }
    }

    /// Takes a piece of a line.
    pub(super) fn piece(&mut self, time: LogTime, bytes: &[u8], ends: bool) -> Result<(), Misplaced> {
        if self.response.message.take().is_some() && self.start().is_some() {
            // A text between lines: lines may be missing in its place.
            self.batcher.gap(unknown_gap(GapCause::Source));
        }
        self.response.line.push(bytes);
        let continues = std::mem::replace(&mut self.response.is_within_line, !ends);
        let mark = ends.then(|| Mark { time, hash: self.response.line.finish() });
        if let Some(Search::Searching(finder)) = self.stage.search_mut() {
            let Some(mark) = mark else { return Ok(()) };
            return match finder.observe(mark) {
                Overlap::Pending => Ok(()),
                Overlap::Complete => {
                    self.overlap_complete();
                    Ok(())
                }
                Overlap::Absent => Err(Misplaced { suspect: self.stage.suspect() }),
            };
        }
        let is_new_in_stream = self.follows() && self.is_at_line();
        match &mut self.stage {
            // Only a follow repeats lines: a response that ends is one file.
            Stage::Live { repeats, .. } if is_new_in_stream => {
                let hash = mark.map(|mark| mark.hash);
                let novelty = self.window.compare(time, hash, *repeats);
                let repeated = std::mem::replace(repeats, novelty == Novelty::Repeated);
                match novelty {
                    Novelty::New => {}
                    Novelty::Repeated => {
                        if !repeated {
                            // The kubelet has lost its place, and perhaps lines: one gap for all lines that
                            // it repeats.
                            self.batcher.gap(unknown_gap(GapCause::Rotated));
                        }
                        return Ok(());
                    }
                    Novelty::Suspect => return Err(Misplaced { suspect: Some(Suspect { time, hash }) }),
                }
            }
            Stage::ReadRest { suspect, .. } | Stage::FindResumePoint { suspect, .. } => {
                let suspect = suspect.take();
                if suspect.is_some_and(|suspect| !suspect.is(time, mark)) {
                    // The file has another line here than the stream had.
                    self.report_loss();
                }
            }
            _ => {}
        }
        let known = if let Stage::SkipKnown { known, .. } = &self.stage { known } else { &self.known };
        // A line that came in pieces was delivered up to here.
        if let Some(mark) = mark.filter(|mark| !continues && known.contains(mark)) {
            self.window.push(mark);
            return Ok(());
        }
        self.deliver(time, bytes, ends);
        if let Some(mark) = mark {
            self.window.push(mark);
        }
        Ok(())
    }

    /// Continues after the last remembered line came: all further ones are new.
    fn overlap_complete(&mut self) {
        if let Some(search) = self.stage.search_mut() {
            *search = Search::Found;
        }
        match self.stage {
            // The log is followed again, and may end in another way.
            Stage::Live { .. } => self.clean_end = None,
            Stage::SearchPreviousRun { suspect, .. } => {
                // This run has ended, and the response has the rest of it.
                self.response.run_ended = true;
                self.stage = Stage::ReadRest { search: Search::Found, suspect };
            }
            _ => {}
        }
    }

    /// Returns whether the next byte of the response is the first of a line.
    fn is_at_line(&self) -> bool {
        !self.partial.is_skipping() && self.batcher.at().at_line_start()
    }

    fn deliver(&mut self, time: LogTime, mut bytes: &[u8], ends: bool) {
        (self.failures, self.rest_failures, self.searched.file) = (0, 0, false);
        let is_first = self.batcher.lines() == 0 && self.is_unrotated(time);
        if std::mem::take(&mut self.ended_before_first_line) && !is_first {
            self.report_loss();
        }
        if self.partial.is_skipping() {
            if let Some(delivered) = self.partial.skip(time, bytes, ends) {
                bytes = &bytes[delivered..];
                if !self.partial.is_skipping() {
                    self.partial_line_continues();
                }
                if bytes.is_empty() && !ends {
                    return;
                }
            } else {
                self.report_loss();
            }
        }
        self.add_to_batch(bytes, time, ends);
    }

    /// Continues the line that was delivered in part with one of the same time and beginning. If no
    /// remembered line precedes it, it may be another line with that time and beginning, so a gap precedes
    /// its rest.
    fn partial_line_continues(&mut self) {
        let is_proven = match &mut self.stage {
            Stage::SkipKnown { gap, .. } => std::mem::replace(gap, RotationGap::Reported) != RotationGap::Due,
            _ => !self.window.is_empty() || self.batcher.lines() == 0,
        };
        if !is_proven {
            self.batcher.gap(unknown_gap(GapCause::Rotated));
        }
    }

    fn add_to_batch(&mut self, bytes: &[u8], time: LogTime, ends: bool) {
        self.partial.note_delivered(bytes, ends);
        self.batcher.piece(bytes, time, ends);
    }

    /// Leaves the current response. An unfinished line will be read again. Returns whether there was one.
    pub(super) fn leave_response(&mut self) -> bool {
        if matches!(self.stage, Stage::Live { .. }) && self.window.is_empty() {
            self.ended_before_first_line = self.batcher.at().at_line_start();
        }
        match self.response.lines.take_rest() {
            Rest::Line(time, rest) => {
                if !self.partial.is_skipping() && !self.batcher.at().at_line_start() {
                    self.partial.cut(time, rest);
                }
                true
            }
            Rest::Foreign(text) => {
                self.response.message = Some(printable(&text));
                false
            }
            Rest::Nothing => false,
        }
    }

    /// Reports that lines are missing here. A line that was delivered in part ends with its last known bytes.
    pub(super) fn report_loss(&mut self) {
        if let Some((time, rest)) = self.partial.give_up() {
            self.add_to_batch(&rest, time, true);
        }
        if let Stage::SkipKnown { gap, .. } = &mut self.stage {
            *gap = RotationGap::Reported;
        }
        self.batcher.gap(unknown_gap(GapCause::Rotated));
    }

    /// Compares the last line of the file with the last one that was read. If they differ, the stream is
    /// dead.
    pub(super) fn probed(&mut self, data: &[u8]) -> Action {
        let mut hash = LineHash::default();
        let mut last = None;
        Lines::default().push(data, &mut |found| {
            if let Found::Piece { time, bytes, ends } = found {
                hash.push(bytes);
                if ends {
                    last = Some(Mark { time, hash: hash.finish() });
                }
            }
        });
        if last.is_none() {
            return Action::Read;
        }
        if last == self.window.last() {
            // The stream was open all the while: earlier failures are over.
            self.failures = 0;
            return Action::Read;
        }
        self.clean_end = None;
        self.go_to(Stage::LIVE)
    }
}

// === impl PartialLine ===

impl PartialLine {
    /// Begins a response that repeats the line, of which `delivered` bytes were delivered.
    pub(super) fn begin_response(&mut self, delivered: u64) {
        (self.skip, self.repeated) = (delivered, LineHash::default());
    }

    /// Returns whether the current response has yet to repeat delivered bytes.
    pub(super) fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// Takes further bytes of a line that may continue this one. Returns how many of them were delivered
    /// before, or `None` if it is another line.
    pub(super) fn skip(&mut self, time: LogTime, bytes: &[u8], ends: bool) -> Option<usize> {
        let len = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        self.repeated.push(&bytes[..len]);
        self.skip -= len as u64;
        let differs = if self.skip > 0 { ends } else { self.repeated.value() != self.delivered.value() };
        if ends {
            self.skip = 0;
        }
        let is_other = self.cut.as_ref().is_some_and(|(cut, _)| *cut != time || differs);
        (!is_other).then_some(len)
    }

    /// Takes delivered bytes. With `ends` the next line begins.
    pub(super) fn note_delivered(&mut self, bytes: &[u8], ends: bool) {
        self.cut = None;
        if ends {
            self.delivered = LineHash::default();
        } else {
            self.delivered.push(bytes);
        }
    }

    /// Ends a response: `rest` was read and not delivered.
    pub(super) fn cut(&mut self, time: LogTime, rest: Vec<u8>) {
        self.cut = Some((time, rest));
    }

    /// Gives the line up, because the next line is another one: returns its time and its last known bytes.
    pub(super) fn give_up(&mut self) -> Option<(LogTime, Vec<u8>)> {
        let cut = self.cut.take()?;
        self.skip = 0;
        Some(cut)
    }
}

/// Returns the printable part of a kubelet's message, for the log.
pub(super) fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(MESSAGE_MAX_CHARS).collect()
}
