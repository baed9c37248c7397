//! What the bytes of a response are: lines that are delivered, lines that were read before, words of a kubelet's.

use super::{Machine, RotationGap, SAID_MAX_CHARS, Stage, Suspect};
use crate::model::line::GapCause;
use crate::model::time::LogTime;
use crate::platform::batcher::unknown_gap;
use crate::platform::kube::log::lines::{Found, Lines, Rest};
use crate::platform::kube::log::overlap::{LineHash, Mark, Novelty, OverlapPlace};
use crate::platform::kube::log::step::Action;

impl Machine {
    pub(super) fn data(&mut self, data: &[u8]) -> Action {
        if let Stage::ProbeNewer { newer, .. } = &mut self.stage {
            // A time, and not what a kubelet says.
            *newer |= data.first().is_some_and(u8::is_ascii_digit);
            return Action::Read;
        }
        let mut lines = std::mem::take(&mut self.lines);
        let mut misplaced = false;
        lines.push(data, &mut |found| match found {
            _ if misplaced => {}
            Found::Piece { time, bytes, ends } => misplaced = !self.piece(time, bytes, ends),
            Found::Foreign(text) => self.said = Some(readable(text)),
        });
        self.lines = lines;
        if misplaced {
            self.clean_end = None;
            return self.recover();
        }
        if let Stage::Last(last) = &mut self.stage
            && !last.take(self.emitter.take(true))
        {
            return self.go_to(Stage::Count);
        }
        Action::Read
    }

    /// Whether an unfinished line waits that can be delivered as a piece.
    pub(in crate::platform::kube::log) fn holds_unfinished(&self) -> bool {
        matches!(self.stage, Stage::Live(None)) && self.lines.holds_unfinished()
    }

    /// Delivers the unfinished line as far as it came. One older than the last line may be a repeat, which only its end can tell.
    pub(super) fn unfinished(&mut self) -> Action {
        if self.holds_unfinished() && !self.repeats {
            let mut lines = std::mem::take(&mut self.lines);
            let last = self.window.last().map(|last| last.time);
            lines.take_unfinished(last, &mut |found| {
                if let Found::Piece { time, bytes, .. } = found {
                    self.piece(time, bytes, false);
                }
            });
            self.lines = lines;
        }
        Action::Read
    }

    /// Takes a piece of a line; `false` if the place cannot be in this response.
    pub(super) fn piece(&mut self, time: LogTime, bytes: &[u8], ends: bool) -> bool {
        if self.said.take().is_some() && self.start().is_some() {
            // A text amid lines: whatever it stands for, lines may be missing here.
            self.emitter.gap(unknown_gap(GapCause::Source));
        }
        self.hash.push(bytes);
        let mark = ends.then(|| Mark { time, hash: self.hash.finish() });
        let searches_all = matches!(self.stage, Stage::Recover(_));
        let is_live = matches!(self.stage, Stage::Live(_));
        let is_stream = matches!(self.stage, Stage::Live(_)) && self.follows();
        match &mut self.stage {
            Stage::Live(place) | Stage::Drain(place) | Stage::Recover(place) => {
                if let Some(aligner) = place {
                    let Some(mark) = mark else { return true };
                    return match aligner.take(mark) {
                        OverlapPlace::Before => true,
                        OverlapPlace::Last => {
                            *place = None;
                            if is_live {
                                // It is followed again, and may end in another way.
                                self.clean_end = None;
                            }
                            true
                        }
                        OverlapPlace::Elsewhere => searches_all,
                    };
                }
                let is_at_line = self.is_at_line();
                if is_stream && is_at_line {
                    // A response that ends is one file, and has no line twice.
                    let hash = mark.map(|mark| mark.hash);
                    let novelty = self.window.compare(time, hash, self.repeats);
                    let repeated = std::mem::replace(&mut self.repeats, novelty == Novelty::Repeated);
                    match novelty {
                        Novelty::New => {}
                        Novelty::Repeated => {
                            if !repeated {
                                // The stream has lost its place, and perhaps lines: one gap for all lines that it repeats.
                                self.emitter.gap(unknown_gap(GapCause::Rotated));
                            }
                            return true;
                        }
                        Novelty::Suspect => {
                            self.suspect = Some(Suspect { time, hash });
                            return false;
                        }
                    }
                } else if let Some(suspect) = self.suspect.take()
                    && !suspect.is(time, mark)
                {
                    // The file has another line here than the stream had.
                    self.lost();
                }
            }
            Stage::PreviousRun(place) => {
                let Some(mark) = mark else { return true };
                if place.take(mark) == OverlapPlace::Last {
                    // It is the run that is read: what follows is the rest of it.
                    self.ended = true;
                    self.stage = Stage::Drain(None);
                }
                return true;
            }
            Stage::SkipKnown { known, .. } => {
                if let Some(mark) = mark.filter(|mark| known.contains(mark)) {
                    self.window.push(mark);
                    return true;
                }
            }
            _ => {}
        }
        self.deliver(time, bytes, ends);
        if let Some(mark) = mark {
            self.window.push(mark);
        }
        true
    }

    /// Whether the next byte of the response is the first of a line.
    fn is_at_line(&self) -> bool {
        self.skip == 0 && self.emitter.at().offset == 0
    }

    fn deliver(&mut self, time: LogTime, mut bytes: &[u8], ends: bool) {
        (self.failures, self.searched) = (0, false);
        let is_first = self.emitter.lines() == 0 && self.is_fresh(time);
        if std::mem::take(&mut self.unproven) && !is_first {
            self.lost();
        }
        if self.skip > 0 {
            let len = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skipped.push(&bytes[..len]);
            self.skip -= len as u64;
            let is_another = if self.skip > 0 { ends } else { self.skipped.value() != self.partial.value() };
            if self.cut.as_ref().is_some_and(|(cut, _)| *cut != time || is_another) {
                // Another line stands where the rest of that one ought to.
                self.lost();
            } else {
                bytes = &bytes[len..];
                if self.skip == 0 {
                    self.found_partial_line();
                }
                if bytes.is_empty() && !ends {
                    return;
                }
            }
        }
        self.cut = None;
        self.emit(bytes, time, ends);
    }

    fn emit(&mut self, bytes: &[u8], time: LogTime, ends: bool) {
        if ends {
            self.partial = LineHash::default();
        } else {
            self.partial.push(bytes);
        }
        self.emitter.piece(bytes, time, ends);
    }

    /// The line that was delivered in part is in the response: a line has its time and its beginning. If no known line precedes it
    /// there, it may be another line with the same time and beginning, so a gap precedes its rest.
    fn found_partial_line(&mut self) {
        let is_proven = match &mut self.stage {
            Stage::SkipKnown { gap, .. } => std::mem::replace(gap, RotationGap::Reported) != RotationGap::Due,
            _ => !self.window.is_empty() || self.emitter.lines() == 0,
        };
        if !is_proven {
            self.emitter.gap(unknown_gap(GapCause::Rotated));
        }
    }

    /// Leaves the response at hand. A line that has not ended is no line: it will be read again. Returns whether there was one.
    pub(super) fn leave_response(&mut self) -> bool {
        if matches!(self.stage, Stage::Live(_)) && self.window.is_empty() {
            self.unproven = self.emitter.at().offset == 0;
        }
        let rest = self.lines.take_rest();
        let is_unfinished = matches!(rest, Rest::Line(..));
        match rest {
            Rest::Foreign(text) => self.said = Some(readable(&text)),
            Rest::Line(time, rest) if self.emitter.at().offset > 0 && self.skip == 0 => {
                self.cut = Some((time, rest));
            }
            Rest::Line(..) | Rest::Nothing => {}
        }
        is_unfinished
    }

    /// Reports that lines are missing here. A line that was delivered in part ends with its last known bytes.
    pub(super) fn lost(&mut self) {
        if let Some((time, rest)) = self.cut.take() {
            self.emit(&rest, time, true);
            // The next line is another one, of which nothing was delivered.
            self.skip = 0;
        }
        if let Stage::SkipKnown { gap, .. } = &mut self.stage {
            *gap = RotationGap::Reported;
        }
        self.emitter.gap(unknown_gap(GapCause::Rotated));
    }

    /// Compares the end of the file with what was read: whether the silence is one of the log's.
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
            // It has been open all the while: what failed before is over.
            self.failures = 0;
            return Action::Read;
        }
        self.clean_end = None;
        self.go_to(Stage::Live(None))
    }
}

// === impl Suspect ===

impl Suspect {
    /// Whether it is this line, of which `mark` is known once it has ended.
    fn is(self, time: LogTime, mark: Option<Mark>) -> bool {
        let same_bytes = self.hash.zip(mark).is_none_or(|(hash, mark)| hash == mark.hash);
        self.time == time && same_bytes
    }
}

/// For the log: what can be printed of a kubelet's words.
pub(super) fn readable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(SAID_MAX_CHARS).collect()
}
