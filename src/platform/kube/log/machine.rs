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
//! - A kubelet that is two rotations behind leaves a file out and sends the beginning of the newest one again. Lines that are remembered
//!   are dropped; a line that is older than all of those is looked for in the file ([`Novelty::Suspect`]).
//! - A place that is found nowhere may also be one of a run that has ended meanwhile: kubelets serve the next one's log as soon as it
//!   begins, and tell the API server later. Then it is looked for in the run that the kubelet has before the present one.
//! - A response in which no line is known may be another run's for the same reason, so the kubelet is asked whether it is
//!   ([`LogQuery::checks_run`]). If it is, the API server's word is waited for.
//! - A kubelet without inotify instances cannot follow: then the last lines are asked for again and again.
//! - A response that ends says nothing about the run. Whether that has ended is known from elsewhere; then what is left is read.

mod ending;
mod opening;
mod reading;

use std::collections::HashSet;
use std::time::Duration;

use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::batcher::{LineBatcher, StartFilter, unknown_gap};
use crate::platform::{ReadFrom, TailItem};

use super::lines::Lines;
#[cfg(doc)]
use super::overlap::Novelty;
use super::overlap::{LineHash, Mark, OverlapFinder, Window};
use super::step::{Action, Event, IdleVerdict, LogQuery};
use super::tail_buffer::TailBuffer;

/// First pause before a log is opened again; doubled with each failure in a row, up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(200);

/// Longest pause before a log is opened again that fails by itself, its kubelet being there.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pause before a log is asked for again that nobody was reached for: for how long it is in vain is for
/// [`openings`](crate::platform::kube::openings) to say.
const PAUSE_AWAY: Duration = Duration::from_millis(500);

/// Delays of [`PAUSE_MAX`] to wait for the API server's word, while the kubelet serves a later run than that knows of: two minutes, and
/// kubelets that were away, or could not tell, took up to 50 s for it. Then the times are not believed any longer.
const BEHIND_PAUSES: u32 = 24;

/// The same, where the kubelet only may serve a later run: kubelets that nothing hinders take a few seconds to tell.
const UNCLEAR_PAUSES: u32 = 3;

/// Pause of a read that does not follow, in which the API server may learn of a later run.
const PAUSE_BRIEF: Duration = Duration::from_millis(500);

/// How many of those there are: a caller waits for two seconds at most.
const BRIEF_PAUSES: u32 = 4;

/// Pause between two reads of a log that the kubelet cannot follow: what a person takes for live, and each read is three requests.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// After so many reads of a log that could not be followed it is tried again: half a minute.
const POLLS_PER_TRIAL: u32 = 15;

/// So soon after the start of a container (nanoseconds) its log was not rotated yet: kubelets look at sizes every some seconds, and
/// the start is told in whole ones.
const UNROTATED: i64 = 2_000_000_000;

/// Longest text of a kubelet's that is put into the log, in characters.
const SAID_MAX_CHARS: usize = 256;

/// A read of one log.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, and none rules out another")]
pub(super) struct Machine {
    from: ReadFrom,
    follow: bool,
    /// When the container was started.
    started: LogTime,
    stage: Stage,
    /// What is left out of a file that is read from its first line on.
    filter: StartFilter,
    lines: Lines,
    hash: LineHash,
    window: Window,
    emitter: LineBatcher,
    /// The last lines that were asked for, and the position before them.
    first: Option<(Position, Vec<TailItem>)>,
    /// Whether it was judged if the place is the right one.
    judged: bool,
    /// Bytes of the line at hand that were handed out before.
    skip: u64,
    /// Hash of the bytes that were left out of the line at hand.
    skipped: LineHash,
    /// Hash of the bytes that were handed out of a line that has not ended.
    partial: LineHash,
    /// The last bytes known of a line that was handed out in part when the response ended.
    cut: Option<(LogTime, Vec<u8>)>,
    /// Whether the run had ended before the response was asked for: then it holds all there is.
    ended: bool,
    /// What the kubelet said instead of lines, if that was the last thing that came.
    said: Option<String>,
    /// Failures of this log in a row: since a line was delivered, or a silence was found to be one of the log's.
    failures: u32,
    /// Whether the place was looked for in the whole file since a line was delivered.
    searched: bool,
    /// What had been delivered when the log was last followed to a complete response: whole lines, and bytes of the next one. If
    /// nothing more was delivered since, the log may have ended there. `None` if there is a reason to doubt that.
    clean_end: Option<(u64, u64)>,
    /// Whether the line before was one that had been read already.
    repeats: bool,
    /// Whether a response was left before a line of the log was known: then it may have been rotated unseen.
    unproven: bool,
    /// The line for which the place is looked for in the whole file, though it was not lost as far as is known.
    suspect: Option<Suspect>,
    /// Delays for which the API server's word will be waited for; at 0 the kubelet is not asked any longer which run it serves.
    patience: u32,
    /// While the kubelet cannot follow the log: reads before that is tried again. At 0 it is tried.
    polls: Option<u32>,
    /// Whether to report that the log cannot be followed.
    reports_polling: bool,
}

/// A line that a stream sent after newer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    time: LogTime,
    /// `None` if it had not ended.
    hash: Option<u64>,
}

/// The gap for a place that was rotated away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RotationGap {
    /// The file has not been opened. The gap is reported then, unless a line was delivered in part.
    Unopened,
    /// A line was delivered in part, and may be the first unknown line of the file. Then the gap precedes its rest; otherwise that
    /// line is ended, and the gap follows it.
    Due,
    /// It was reported.
    Reported,
}

/// What the response at hand is for.
#[derive(Debug)]
enum Stage {
    /// The whole file, read from its first line on: finds the place to begin, and begins.
    Seek,
    /// The last lines, for [`ReadFrom::TailBuffer`].
    Last(TailBuffer),
    /// Whether there are lines newer than the last ones: then the clock went back, and positions count from further up.
    ProbeNewer { last: TailBuffer, newer: bool },
    /// The whole file, for [`ReadFrom::TailBuffer`]: counts lines.
    Count,
    /// The last lines, and what comes. `None` once the place was found.
    Live(Option<OverlapFinder>),
    /// The last lines of a run that has ended.
    Drain(Option<OverlapFinder>),
    /// The whole file: looks for the place.
    Recover(Option<OverlapFinder>),
    /// The whole file of the run before the present one: looks for the place.
    PreviousRun(OverlapFinder),
    /// The kubelet serves a later run, and the API server does not know: waits for its word, and then asks as for [`Stage::Rest`].
    AwaitingStatus,
    /// The whole file, after the place was rotated away: everything but the lines in `known`.
    SkipKnown { known: HashSet<Mark>, gap: RotationGap },
    /// It is over.
    Done,
}

// === impl Machine ===

impl Machine {
    /// A read that has not begun: [`Machine::ask`] first. `started` is when the container was.
    pub(super) fn new(from: ReadFrom, follow: bool, started: LogTime) -> Self {
        let (stage, filter) = match from {
            ReadFrom::Start => (Stage::Seek, StartFilter::All),
            ReadFrom::Since(since) => (Stage::Seek, StartFilter::Since(since)),
            ReadFrom::After(position) => (Stage::Seek, StartFilter::After(position)),
            ReadFrom::Last(lines) => {
                (TailBuffer::new(lines).map_or(Stage::Count, Stage::Last), StartFilter::All)
            }
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
            emitter: LineBatcher::new(Position::START, 0, filter),
            first: None,
            judged: false,
            skip: 0,
            skipped: LineHash::default(),
            partial: LineHash::default(),
            cut: None,
            ended: false,
            said: None,
            failures: 0,
            searched: false,
            clean_end: None,
            repeats: false,
            unproven: false,
            suspect: None,
            patience: if follow { BEHIND_PAUSES } else { BRIEF_PAUSES },
            polls: None,
            reports_polling: false,
        }
    }

    /// What the present stage asks.
    pub(super) fn ask(&self) -> LogQuery {
        let checks_run = self.patience > 0;
        match &self.stage {
            Stage::Last(last) => LogQuery { checks_run, ..LogQuery::last(last.asked()) },
            Stage::ProbeNewer { .. } => LogQuery::glance(self.emitter.at().time.parts().0.saturating_add(1)),
            // Nothing is there to be recognised, so nothing of the file was read.
            Stage::Live(_) if self.window.is_empty() => {
                LogQuery { follow: self.follows(), checks_run, ..LogQuery::WHOLE }
            }
            Stage::Drain(_) if self.window.is_empty() => LogQuery { checks_run, ..LogQuery::WHOLE },
            Stage::Live(_) if !self.follows() => LogQuery::last(self.window.poll_lines()),
            Stage::Live(_) => LogQuery { follow: true, ..LogQuery::last(self.window.overlap_lines()) },
            Stage::Drain(_) => LogQuery::last(self.window.overlap_lines()),
            Stage::PreviousRun(_) => LogQuery::BEFORE,
            Stage::Recover(_) | Stage::Done => LogQuery::WHOLE,
            Stage::Seek | Stage::Count | Stage::AwaitingStatus | Stage::SkipKnown { .. } => {
                LogQuery { checks_run, ..LogQuery::WHOLE }
            }
        }
    }

    /// Whether the log is to be followed, and not read again and again.
    fn follows(&self) -> bool {
        self.polls.is_none_or(|polls| polls == 0)
    }

    /// The position before the first line that will be delivered, once it is known.
    pub(super) fn start(&self) -> Option<Position> {
        match &self.stage {
            Stage::Last(_) | Stage::ProbeNewer { .. } | Stage::Count => None,
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
        if std::mem::take(&mut self.reports_polling) {
            items.push(TailItem::FollowUnavailable);
        }
        items
    }

    /// What silence means now.
    pub(super) fn silence(&self) -> IdleVerdict {
        match &self.stage {
            Stage::Live(_) if !self.follows() => IdleVerdict::Slow,
            Stage::Live(None) if self.polls.is_some() => IdleVerdict::Trial,
            Stage::Live(None) => IdleVerdict::Quiet,
            Stage::Live(Some(_)) => IdleVerdict::Unplaced,
            _ => IdleVerdict::Slow,
        }
    }

    /// Takes an event; tells what is to be done.
    pub(super) fn on(&mut self, event: Event<'_>) -> Action {
        match event {
            Event::Opened { ended } => self.opened(ended),
            Event::Data(data) => self.data(data),
            Event::Unfinished => self.unfinished(),
            Event::Complete { ended } => self.complete(ended),
            Event::Broken(why) => self.broken(why),
            Event::Away(why) => self.away(why),
            Event::Gone(why) => self.gone(why),
            Event::Silent if self.polls.is_some() && matches!(self.stage, Stage::Live(None)) => {
                self.followed_again()
            }
            Event::Silent => self.recover(),
            Event::Behind { why, unclear } => self.behind(&why, unclear),
            Event::Probed(data) => self.probed(data),
            Event::Left => {
                self.clean_end = None;
                self.go_to(Stage::Drain(None))
            }
            Event::Woken { ended } => match &self.stage {
                Stage::Live(_) | Stage::AwaitingStatus if ended => self.go_to(Stage::Drain(None)),
                Stage::AwaitingStatus => self.rotated(),
                _ => Action::Ask(self.ask()),
            },
        }
    }

    /// Leaves the response at hand and asks for what `stage` needs.
    fn go_to(&mut self, stage: Stage) -> Action {
        self.leave_response();
        self.stage = stage;
        Action::Ask(self.ask())
    }

    /// The place is not in the response at hand: looks for it in the whole file. At once the first time, whatever failed before, since
    /// a log that rotates every few seconds does so again; and then with pauses, until there is a line to be delivered.
    fn recover(&mut self) -> Action {
        let ask = self.go_to(Stage::Recover(None));
        if std::mem::replace(&mut self.searched, true) { self.pause() } else { ask }
    }
}

#[cfg(test)]
mod tests;
