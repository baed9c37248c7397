//! Reading one run's log through the API, as a stepped state machine: what is to be asked next, what an answer means. Pure: it knows
//! no connection and no clock.
//!
//! There are two kinds of responses: those that end (the file as it is, whole or its last lines), and one that follows.
//! - A place is looked for in the whole file, from its first line on, so that positions are those that the content gives
//!   ([`crate::model::position`]). `sinceTime` is never used to go on: it has whole seconds, and filters each line, so that a clock
//!   that is set back would silence whatever comes.
//! - The log is followed from its last lines on, of which those that were read before are recognised and left out
//!   ([`super::window`]). If the place is not among them, the whole file is read again; if it is not there either, it was rotated
//!   away: a gap, and then everything but what is remembered.
//! - A response that ends says nothing about the run. Whether that has ended is known from elsewhere; then what is left is read.

use std::collections::HashSet;
use std::time::Duration;

use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::emit::{Emitter, Filter, unknown_gap};
use crate::platform::{Error, From, TailItem};

use super::last::Last;
use super::lines::{Found, Lines, Rest};
use super::step::{Ask, Do, Event, Silence};
use super::window::{Aligner, LineHash, Mark, Place, Window};

/// First pause before a log is opened again; doubled with each failure in a row, up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(200);

/// Longest pause before a log is opened again.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// So soon after the start of a container (nanoseconds) its log was not rotated yet: kubelets look at sizes every some seconds, and
/// the start is told in whole ones.
const UNROTATED: i64 = 2_000_000_000;

/// Longest text of a kubelet's that is put into the log, in characters.
const SAID_MAX_CHARS: usize = 256;

/// A read of one log.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and none rules out another")]
pub(super) struct Machine {
    from: From,
    follow: bool,
    /// When the container was started.
    started: LogTime,
    stage: Stage,
    /// What is left out of a file that is read from its first line on.
    filter: Filter,
    lines: Lines,
    hash: LineHash,
    window: Window,
    emitter: Emitter,
    /// The last lines that were asked for, and the position before them.
    first: Option<(Position, Vec<TailItem>)>,
    /// Whether it was judged if the place is the right one.
    judged: bool,
    /// Bytes of the line at hand that were handed out before.
    skip: u64,
    /// The last bytes known of a line that was handed out in part when the response ended.
    cut: Option<(LogTime, Vec<u8>)>,
    /// Whether the run had ended before the response was asked for: then it holds all there is.
    ended: bool,
    /// What the kubelet said instead of lines, if that was the last thing that came.
    said: Option<String>,
    failures: u32,
    /// Whether the log was followed without a fault to a complete response.
    followed: bool,
    /// Whether the line before was one that had been read already.
    repeats: bool,
    /// Whether a response was left before a line of the log was known: then it may have been rotated unseen.
    unproven: bool,
}

/// What the response at hand is for.
#[derive(Debug)]
enum Stage {
    /// The whole file, read from its first line on: finds the place to begin, and begins.
    Seek,
    /// The last lines, for [`From::Last`].
    Last(Last),
    /// Whether there are lines newer than the last ones: then the clock went back, and positions count from further up.
    Glance { last: Last, newer: bool },
    /// The whole file, for [`From::Last`]: counts lines.
    Count,
    /// The last lines, and what comes. `None` once the place was found.
    Live(Option<Aligner>),
    /// The last lines of a run that has ended.
    Drain(Option<Aligner>),
    /// The whole file: looks for the place.
    Recover(Option<Aligner>),
    /// The whole file, after the place was rotated away: everything but these.
    Rest(HashSet<Mark>),
    /// It is over.
    Done,
}

// === impl Machine ===

impl Machine {
    /// A read that has not begun: [`Machine::ask`] first. `started` is when the container was.
    pub(super) fn new(from: From, follow: bool, started: LogTime) -> Self {
        let (stage, filter) = match from {
            From::Start => (Stage::Seek, Filter::All),
            From::Since(since) => (Stage::Seek, Filter::Since(since)),
            From::After(position) => (Stage::Seek, Filter::After(position)),
            From::Last(lines) => (Last::new(lines).map_or(Stage::Count, Stage::Last), Filter::All),
        };
        Self {
            from,
            follow,
            started,
            stage,
            filter,
            lines: Lines::default(),
            hash: LineHash::default(),
            window: Window::default(),
            emitter: Emitter::new(Position::START, 0, filter),
            first: None,
            judged: false,
            skip: 0,
            cut: None,
            ended: false,
            said: None,
            failures: 0,
            followed: false,
            repeats: false,
            unproven: false,
        }
    }

    /// What the present stage asks.
    pub(super) fn ask(&self) -> Ask {
        match &self.stage {
            Stage::Last(last) => Ask::last(last.asked()),
            Stage::Glance { .. } => Ask::glance(self.emitter.at().time.parts().0.saturating_add(1)),
            Stage::Live(_) => Ask::FOLLOW,
            Stage::Drain(_) => Ask { follow: false, ..Ask::FOLLOW },
            Stage::Seek | Stage::Count | Stage::Recover(_) | Stage::Rest(_) | Stage::Done => Ask::WHOLE,
        }
    }

    /// The position before the first line that will be delivered, once it is known.
    pub(super) fn start(&self) -> Option<Position> {
        match &self.stage {
            Stage::Last(_) | Stage::Glance { .. } | Stage::Count => None,
            _ => self.first.as_ref().map(|(start, _)| *start).or(self.emitter.start()),
        }
    }

    /// What is to be delivered.
    pub(super) fn take(&mut self) -> Vec<TailItem> {
        if self.start().is_none() {
            return Vec::new();
        }
        if !self.judged && self.emitter.first().is_some() {
            self.judged = true;
            if self.is_unsure() {
                self.emitter.gap_first(unknown_gap(GapCause::Rotated));
            }
        }
        let mut items = self.first.as_mut().map(|(_, items)| std::mem::take(items)).unwrap_or_default();
        items.extend(self.emitter.take(true));
        items
    }

    /// What silence means now.
    pub(super) fn silence(&self) -> Silence {
        match &self.stage {
            Stage::Live(None) => Silence::Quiet,
            Stage::Live(Some(_)) => Silence::Unplaced,
            _ => Silence::Slow,
        }
    }

    /// Takes an event; tells what is to be done.
    pub(super) fn on(&mut self, event: Event<'_>) -> Do {
        match event {
            Event::Opened { ended } => self.opened(ended),
            Event::Data(data) => self.data(data),
            Event::Complete { ended } => self.complete(ended),
            Event::Broken(why) => self.broken(why),
            Event::Gone(why) => self.gone(why),
            Event::Silent => self.recover(),
            Event::Probed(data) => self.probed(data),
            Event::Woken { ended } => match &self.stage {
                Stage::Live(_) if ended => self.go_to(Stage::Drain(None)),
                _ => Do::Ask(self.ask()),
            },
        }
    }

    /// Leaves the response at hand and asks for what `stage` needs.
    fn go_to(&mut self, stage: Stage) -> Do {
        self.leave_response();
        self.stage = stage;
        Do::Ask(self.ask())
    }

    /// The place is not in the response at hand: looks for it in the whole file. At once the first time, and then with pauses.
    fn recover(&mut self) -> Do {
        let again = self.failures > 0;
        let ask = self.go_to(Stage::Recover(None));
        self.failures = self.failures.max(1);
        if again { self.pause() } else { ask }
    }

    /// Every stage may begin here again.
    fn opened(&mut self, ended: bool) -> Do {
        self.ended = ended;
        self.said = None;
        self.hash = LineHash::default();
        self.skip = self.emitter.at().offset;
        match &mut self.stage {
            Stage::Live(place) | Stage::Drain(place) | Stage::Recover(place) => {
                *place = (!self.window.is_empty()).then(|| self.window.aligner());
            }
            Stage::Last(last) => {
                last.begin_anew();
                self.count_anew();
            }
            Stage::Seek => self.count_anew(),
            Stage::Count => {
                self.count_anew();
                self.emitter = Emitter::new(Position::START, 0, Filter::Nothing);
            }
            // The lines that it remembers will stand in the order of this file.
            Stage::Rest(_) => self.window = Window::default(),
            Stage::Glance { .. } | Stage::Done => {}
        }
        Do::Read
    }

    /// Counts from the file's first line.
    fn count_anew(&mut self) {
        self.skip = 0;
        self.window = Window::default();
        self.emitter = Emitter::new(Position::START, 0, self.filter);
    }

    fn data(&mut self, data: &[u8]) -> Do {
        if let Stage::Glance { newer, .. } = &mut self.stage {
            // A time, and not what a kubelet says.
            *newer |= data.first().is_some_and(u8::is_ascii_digit);
            return Do::Read;
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
            return self.recover();
        }
        if let Stage::Last(last) = &mut self.stage
            && !last.take(self.emitter.take(true))
        {
            return self.go_to(Stage::Count);
        }
        Do::Read
    }

    /// Takes a piece of a line; `false` if the place cannot be in this response.
    fn piece(&mut self, time: LogTime, bytes: &[u8], ends: bool) -> bool {
        if self.said.take().is_some() && self.start().is_some() {
            // A text amid lines: whatever it stands for, lines may be missing here.
            self.emitter.gap(unknown_gap(GapCause::Source));
        }
        self.hash.push(bytes);
        let mark = ends.then(|| Mark { time, hash: self.hash.finish() });
        let searches_all = matches!(self.stage, Stage::Recover(_));
        match &mut self.stage {
            Stage::Live(place) | Stage::Drain(place) | Stage::Recover(place) => {
                if let Some(aligner) = place {
                    let Some(mark) = mark else { return true };
                    return match aligner.take(mark) {
                        Place::Before => true,
                        Place::Last => {
                            *place = None;
                            true
                        }
                        Place::Elsewhere => searches_all,
                    };
                }
                let last = self.window.last().map(|last| last.time);
                let is_older = last.is_some_and(|last| time < last || time == last && self.repeats);
                self.repeats =
                    is_older && mark.is_some_and(|mark| self.window.contains(mark)) && self.is_at_line();
                if self.repeats {
                    // The same line again: the stream has lost its place, and perhaps lines.
                    self.emitter.gap(unknown_gap(GapCause::Source));
                    return true;
                }
            }
            Stage::Rest(known) => {
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

    fn is_at_line(&self) -> bool {
        self.skip == 0 && self.emitter.at().offset == 0
    }

    fn deliver(&mut self, time: LogTime, mut bytes: &[u8], ends: bool) {
        self.failures = 0;
        if std::mem::take(&mut self.unproven) && !self.is_fresh(time) {
            self.lost();
        }
        if self.skip > 0 && self.cut.as_ref().is_some_and(|(cut, _)| *cut != time) {
            // Another line stands where the rest of that one ought to.
            self.lost();
            self.skip = 0;
        }
        if self.skip > 0 {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            bytes = &bytes[skipped..];
            self.skip = if ends { 0 } else { self.skip - skipped as u64 };
            if bytes.is_empty() && !ends {
                return;
            }
        }
        self.cut = None;
        self.emitter.piece(bytes, time, ends);
    }

    /// A line that has not ended is no line: it will be read again.
    fn leave_response(&mut self) {
        match self.lines.take_rest() {
            Rest::Foreign(text) => self.said = Some(readable(&text)),
            Rest::Line(time, rest) if self.emitter.at().offset > 0 && self.skip == 0 => {
                self.cut = Some((time, rest));
            }
            Rest::Line(..) | Rest::Nothing => {}
        }
    }

    fn complete(&mut self, ended: bool) -> Do {
        let is_glance = matches!(self.stage, Stage::Glance { .. });
        if self.ended && !is_glance {
            // Of a run that has ended it is the last line.
            match self.lines.take_rest() {
                Rest::Line(time, rest) => {
                    if !self.piece(time, &rest, true) {
                        return self.recover();
                    }
                }
                Rest::Foreign(text) => self.said = Some(readable(&text)),
                Rest::Nothing => {}
            }
        } else {
            self.leave_response();
        }
        if let Some(text) = self.said.take() {
            return self.broken(format!("the kubelet says: {text}"));
        }
        self.completed(ended)
    }

    fn completed(&mut self, ended: bool) -> Do {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Seek if self.emitter.start().is_none() => self.not_found(ended),
            Stage::Last(mut last) => {
                last.take(self.emitter.take(true));
                if last.is_whole() {
                    self.begin_at_last(last, ended)
                } else if last.is_sure(self.emitter.first(), self.emitter.at()) {
                    self.go_to(Stage::Glance { last, newer: false })
                } else {
                    self.go_to(Stage::Count)
                }
            }
            Stage::Glance { newer: true, .. } => self.go_to(Stage::Count),
            Stage::Glance { last, .. } => self.begin_at_last(last, ended),
            Stage::Count => {
                // What has come meanwhile comes after those that were counted.
                let wanted = if let From::Last(lines) = self.from { lines } else { 0 };
                self.filter = Filter::Lines(self.emitter.lines().saturating_sub(wanted));
                self.go_to(Stage::Seek)
            }
            Stage::Live(place) => {
                self.followed = place.is_none();
                if ended {
                    return self.go_to(Stage::Drain(None));
                }
                self.stage = Stage::Live(None);
                self.pause()
            }
            Stage::Drain(Some(_)) => self.recover(),
            Stage::Recover(Some(_)) => {
                self.lost();
                let known = self.window.all();
                self.go_to(Stage::Rest(known))
            }
            Stage::Seek | Stage::Drain(None) | Stage::Recover(None) | Stage::Rest(_) => self.at_end(ended),
            Stage::Done => Do::Finish,
        }
    }

    /// The whole file was read, and the place to begin at was not in it.
    fn not_found(&mut self, ended: bool) -> Do {
        if let Filter::Lines(_) = self.filter {
            // It was rotated since its lines were counted.
            self.filter = Filter::All;
            return self.go_to(Stage::Count);
        }
        self.emitter.begin_here();
        if let From::After(_) = self.from {
            // The position lies behind the end, or its line is gone and the clock was set back since.
            self.emitter.gap(unknown_gap(GapCause::Source));
        }
        self.at_end(ended)
    }

    /// The last lines were found: delivery begins with them.
    fn begin_at_last(&mut self, last: Last, ended: bool) -> Do {
        let at = self.emitter.at();
        self.emitter = Emitter::new(at, self.emitter.lines(), Filter::All);
        self.first = Some(last.finish(at));
        self.at_end(ended)
    }

    /// Everything that the file held is handed out.
    fn at_end(&mut self, ended: bool) -> Do {
        if self.ended || !self.follow {
            self.stage = Stage::Done;
            return Do::Finish;
        }
        self.go_to(if ended { Stage::Drain(None) } else { Stage::Live(None) })
    }

    /// Lines are missing here.
    fn lost(&mut self) {
        if let Some((time, rest)) = self.cut.take() {
            self.emitter.piece(&rest, time, true);
        }
        self.emitter.gap(unknown_gap(GapCause::Rotated));
    }

    fn broken(&mut self, why: String) -> Do {
        self.leave_response();
        self.said = None;
        self.followed = false;
        if !self.follow || self.start().is_none() {
            return Do::Fail(Error::Unavailable(why));
        }
        tracing::debug!(why, failures = self.failures, "a log response broke off");
        if matches!(self.stage, Stage::Seek | Stage::Rest(_)) {
            // What was read is read: on from there.
            let is_unread = self.window.is_empty() && self.emitter.at().offset == 0;
            self.stage = if is_unread { Stage::Seek } else { Stage::Recover(None) };
        }
        self.pause()
    }

    /// Waits, and then asks again.
    fn pause(&mut self) -> Do {
        if matches!(self.stage, Stage::Live(_)) && self.window.is_empty() {
            self.unproven = self.emitter.at().offset == 0;
            self.stage = Stage::Recover(None);
        }
        let pause = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(self.failures)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        Do::Pause(pause)
    }

    /// Of a run that was followed to its end the log may be removed at once.
    fn gone(&mut self, why: String) -> Do {
        if self.start().is_none() {
            return Do::Fail(Error::NotFound(why));
        }
        if !(self.followed && matches!(self.stage, Stage::Drain(_))) {
            self.lost();
        }
        self.stage = Stage::Done;
        Do::Finish
    }

    /// Compares the end of the file with what was read: whether the silence is one of the log's.
    fn probed(&mut self, data: &[u8]) -> Do {
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
        if last.is_none() || last == self.window.last() {
            return Do::Read;
        }
        self.go_to(Stage::Live(None))
    }

    /// Whether a log whose first line has this time was not rotated yet.
    fn is_fresh(&self, first: LogTime) -> bool {
        first < self.started.saturating_add_nanos(UNROTATED)
    }

    /// Whether the place may be another one: the first line has the time of the position, and before it there may have been more
    /// of that time, in a file that is gone.
    fn is_unsure(&self) -> bool {
        let From::After(after) = self.from else { return false };
        let Some(first) = self.emitter.first() else { return false };
        !self.is_fresh(first)
            && !self.emitter.is_inexact()
            && (after.time == LogTime::MIN || first == after.time)
    }
}

/// For the log: what can be printed of a kubelet's words.
fn readable(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).take(SAID_MAX_CHARS).collect()
}

#[cfg(test)]
mod tests;
