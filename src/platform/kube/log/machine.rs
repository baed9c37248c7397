//! The state machine that reads the log of one run through the Kubernetes API: takes an [`Event`], returns
//! the next [`Action`]. Sans-I/O.
//!
//! The API returns the newest log file, whole or its last lines, and can follow it.
//! - A position is searched in the whole file, because positions count from its first line
//!   ([`crate::model::position`]). If the caller knows how many lines follow it, it is searched in the last
//!   lines first, and is trusted there if the first of them is older. `sinceTime` cannot resume a read: it
//!   has whole seconds, and it filters each line by its time, so it would hide all lines after a clock was
//!   set back.
//! - A follow starts with the last lines, of which the remembered ones are skipped ([`super::overlap`]). If
//!   the resume point is not among them, the whole file is searched. If it is not there either, it was
//!   rotated away: the machine reports a gap and delivers all lines that it does not remember.
//! - A kubelet that missed two rotations leaves a file out and sends the newest one from its beginning again.
//!   Remembered lines are dropped. An older line that is not remembered is searched in the file
//!   ([`Novelty::Suspect`]).
//! - A resume point that is not in the file may belong to a run that has ended: kubelets serve the next run
//!   as soon as it starts, and report it to the API server later. The machine then searches the previous run.
//! - A response without a remembered line may belong to a later run for the same reason, so the kubelet is
//!   asked which run it serves ([`LogQuery::checks_run`]). If it is a later one, the machine waits until the
//!   API server knows it.
//! - A kubelet without free inotify instances cannot follow. The machine then polls the last lines.
//! - The end of a response does not mean the end of the run. The caller knows whether the run has ended; if
//!   so, the machine reads the rest of the log.

mod ending;
mod reading;

use std::collections::HashSet;
use std::time::Duration;

use self::reading::PartialLine;
use super::LogQuery;
use super::lines::Lines;
#[cfg(doc)]
use super::overlap::Novelty;
use super::overlap::{
    LineHash, Mark, OverlapFinder, REORDER_MAX_NANOS, WINDOW_LINES, WINDOW_MAX_LINES, Window,
};
use super::tail_buffer::TailBuffer;
use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::batcher::{LineBatcher, StartFilter, unknown_gap};
use crate::platform::{Error, LinesAfter, ReadFrom, TailItem};

/// First pause before a log is opened again. It doubles with each failure in a row, up to [`PAUSE_MAX`].
const PAUSE_FIRST: Duration = Duration::from_millis(200);

/// Longest pause before a log is opened again that fails although its kubelet is reached.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Pause after a request that reached neither API server nor kubelet. The
/// [open limiter](crate::platform::kube::open_limiter) decides when to try them again.
const PAUSE_UNREACHABLE: Duration = Duration::from_millis(500);

/// Pauses of [`PAUSE_MAX`] to wait for the API server to report the later run that the kubelet serves: two
/// minutes. Kubelets that were down, or could not report, took up to 50 s. After that the machine no longer
/// trusts the times that it compares.
const LATER_RUN_PAUSES: u32 = 24;

/// The same where the kubelet only may serve a later run: a kubelet without trouble reports within a few
/// seconds.
const UNCLEAR_RUN_PAUSES: u32 = 3;

/// Pause of a read that does not follow, in which the API server may learn of a later run.
const PAUSE_BRIEF: Duration = Duration::from_millis(500);

/// Number of those pauses: a caller waits for two seconds at most.
const BRIEF_PAUSES: u32 = 4;

/// Pause between two polls of a log that the kubelet cannot follow: it looks live to a person, and each poll
/// is three requests.
pub(super) const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Number of polls, half a minute, after which following is tried again.
const POLLS_PER_TRIAL: u32 = 15;

/// Nanoseconds after the start of a container in which its log was not rotated yet: kubelets check sizes
/// every few seconds, and report the start in whole seconds.
const UNROTATED: i64 = 2_000_000_000;

/// Log time before a position that is requested with the lines after it: that of [`REORDER_MAX_NANOS`], and
/// of the lines that come until the response begins.
const SEARCH_MARGIN_NANOS: u64 = 3_000_000_000;

/// Failures in a row to read the rest of a run that has ended, after which its log counts as removed. An
/// evicted pod stays in the cluster without its log. With the pauses above they take five minutes, in which a
/// node that restarts is back.
const REST_FAILURES_MAX: u32 = 60;

/// The same if all lines were read to a clean end, and the kubelet says that the container is gone.
const REMOVED_FAILURES_MAX: u32 = 4;

/// Failures in a row to follow a log again, after which the end of its last response no longer counts as the
/// end of the log. With the pauses above they take six seconds. The API server usually knows of the end of a
/// container sooner.
const CLEAN_END_FAILURES: u32 = 5;

/// Most lines that [`Stage::SkipKnown`] skips, also if it is interrupted again and again: 4 MiB of marks.
const KNOWN_MAX_LINES: usize = 262_144;

/// Longest text of a kubelet that is logged, in characters.
const MESSAGE_MAX_CHARS: usize = 256;

/// Something that happened outside of the machine.
#[derive(Debug)]
pub(super) enum Event<'a> {
    /// The response begins. `ended` if the run had ended before the request was sent.
    Opened { ended: bool },
    /// Bytes of the response.
    Data(&'a [u8]),
    /// Nothing came for a moment while [`Machine::holds_unfinished`] was true.
    Unfinished,
    /// The response is complete. `ended` if the run has ended by now.
    Complete { ended: bool },
    /// The response broke off, or the request failed.
    Broken(String),
    /// The API server or the kubelet cannot be reached. The open limiter delays the next request.
    Unreachable(String),
    /// The log does not exist, or no longer. This does not change.
    Gone(String),
    /// Nothing came for the time that [`IdleVerdict::Unplaced`] or [`IdleVerdict::Trial`] stands for.
    Idle,
    /// The kubelet serves a later run than the API server knows, or may do so if `unclear`. Nothing was
    /// opened.
    LaterRun { why: String, unclear: bool },
    /// The last lines of the file, which were requested beside a silent stream.
    Probed(&'a [u8]),
    /// The run has ended beside a silent response that did not complete.
    RunEnded,
    /// A pause is over, or the run changed. `ended` if the run has ended.
    Resumed { ended: bool },
}

/// The next thing to do.
#[derive(Debug)]
pub(super) enum Action {
    /// Continue with the response.
    Read,
    /// Drop the response and send this request.
    Open(LogQuery),
    /// The log cannot be read: drop the response and wait about this long, or until the run changes. Then
    /// send [`Event::Resumed`].
    Pause(Duration),
    /// The same for [`POLL_INTERVAL`], before the next poll of a log that the kubelet cannot follow.
    AwaitPoll,
    /// Stop: the log is complete.
    Finish,
    /// Stop: the log cannot be read.
    Fail(Error),
}

/// The meaning of a silent response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IdleVerdict {
    /// The response is slow.
    Slow,
    /// Nothing is written, or the stream is dead: [`LogQuery::PROBE`] tells which.
    Quiet,
    /// The response does not have the resume point: [`Event::Idle`].
    Unplaced,
    /// The kubelet, which could not follow logs before, follows this one: [`Event::Idle`].
    Trial,
}

/// A read of one log.
#[derive(Debug, Default)]
pub(super) struct Machine {
    from: ReadFrom,
    follow: bool,
    /// When the container was started.
    started: LogTime,
    /// See [`TailRequest::oldest_read`](crate::platform::TailRequest::oldest_read).
    oldest_read: Option<LogTime>,
    stage: Stage,
    response: ResponseState,
    /// The newest lines that were read.
    window: Window,
    /// The known lines of a [`Stage::SkipKnown`] that was interrupted: the rest of its file may have more of
    /// them. Empty once a file was read to its end.
    known: HashSet<Mark>,
    batcher: LineBatcher,
    partial: PartialLine,
    /// For [`ReadFrom::Last`]: the position before these lines, and the lines until they are taken.
    last: Option<(Position, Vec<TailItem>)>,
    /// The position to resume at, until the first line has shown whether it can be trusted.
    unverified_resume: Option<Position>,
    /// Failures in a row: since a line was delivered, or a probe showed that a silent log is quiet.
    failures: u32,
    /// The same, of a run that has ended.
    rest_failures: u32,
    searched: Searched,
    /// The amount delivered when a follow was last complete: whole lines, and bytes of the next one. If
    /// nothing more was delivered since, the log may have ended there. `None` if something speaks against
    /// that.
    clean_end: Option<(u64, u64)>,
    /// Whether a follow ended before its first line. Lines may have been rotated away since.
    ended_before_first_line: bool,
    /// Pauses left to wait for the API server to report a later run. At 0 the kubelet is no longer asked
    /// which run it serves.
    run_pauses: u32,
    /// Set while the kubelet cannot follow the log.
    polling: Option<Polling>,
}

/// Whether the whole file was searched for the resume point.
#[derive(Clone, Copy, Debug, Default)]
struct Searched {
    /// Since a line was delivered.
    file: bool,
    /// Since the run is known to have ended. Earlier responses may have been those of the next run.
    rest: bool,
}

#[derive(Debug, Default)]
struct ResponseState {
    /// Whether the run had ended before the request. Then the response has all lines that there are.
    run_ended: bool,
    /// Whether the response may have been complete long before it was read to its end.
    is_late: bool,
    lines: Lines,
    /// Hash of the current line.
    line: LineHash,
    /// Whether earlier pieces of the current line came.
    is_within_line: bool,
    /// The text that the kubelet sent instead of lines, if nothing came after it.
    message: Option<String>,
}

/// Reads of a log that the kubelet cannot follow.
#[derive(Clone, Copy, Debug)]
struct Polling {
    /// Polls before following is tried again. At 0 it is tried.
    polls_left: u32,
    /// Whether [`TailItem::FollowUnavailable`] was delivered.
    reported: bool,
}

/// The purpose of the current request, what it waits for, and the stages that follow.
///
/// A read starts in `FindStart`, `ReadLast` or `CountLines`. Once its start is found it delivers lines and
/// alternates between `Live` and the stages that search for the resume point after an interruption.
/// `ReadRest` is the last one before `Done`.
///
/// For a read without follow, the next stage is `Done` where `Live` is named. An interrupted stage starts
/// again unless its text says otherwise. A read without follow, or one whose start is not known yet, fails
/// instead.
#[derive(Debug, Default)]
enum Stage {
    /// Finds the start of the read in the whole file, and delivers from there.
    ///
    /// Waits for the end of the response. Then: `Live`; `CountLines` if the counted lines were rotated away.
    /// If interrupted after a line: `FindResumePoint`. With `last`, only that number of last lines is
    /// requested; if the start is not among them: `FindStart` in the whole file.
    FindStart { filter: StartFilter, last: Option<u64> },
    /// Holds the last lines, for [`ReadFrom::Last`](crate::platform::ReadFrom::Last).
    ///
    /// Waits for the end of the response. Then: delivers the lines and goes to `Live` if they are the whole
    /// file; `ProbeNewer` if their positions are certain unless the clock was set back; otherwise
    /// `CountLines`, also if they are too large to be held.
    ReadLast(TailBuffer),
    /// Asks whether lines newer than the last ones exist. If so the clock was set back, and positions count
    /// from an earlier line.
    ///
    /// Waits for the end of the response. Then: `CountLines` if `newer`; otherwise delivers the last lines
    /// and goes to `Live`.
    ProbeNewer { last: TailBuffer, newer: bool },
    /// Counts the lines of the whole file, for [`ReadFrom::Last`](crate::platform::ReadFrom::Last).
    ///
    /// Waits for the end of the response. Then: `FindStart` at the first wanted line; `Live` if none is
    /// wanted.
    CountLines,
    /// Follows the last lines, or polls them while the kubelet cannot follow.
    ///
    /// Waits for new lines. After the end of the response, or an interruption: `Live` again after a pause.
    /// Resume point not found: `FindResumePoint`. Run ended: `ReadRest`.
    Live {
        search: Search,
        /// Whether the previous line had been read before.
        repeats: bool,
    },
    /// Reads the last lines of a run that has ended.
    ///
    /// Waits for the end of the response. Then: `Done`; `FindResumePoint` if the resume point was not found.
    ReadRest { search: Search, suspect: Option<Suspect> },
    /// Searches the whole file for the resume point, and delivers the lines after it.
    ///
    /// Waits for the end of the response. Then, if found: `Live`, `ReadRest` or `Done`. If not:
    /// `SearchPreviousRun` if the run may have ended unseen; otherwise `SkipKnown`.
    FindResumePoint { search: Search, suspect: Option<Suspect> },
    /// Searches the whole file of the previous run for the resume point.
    ///
    /// Waits for the resume point. Then: `ReadRest`, within this response. If it is not found, or the
    /// response is interrupted: `SkipKnown`.
    SearchPreviousRun { search: Search, suspect: Option<Suspect> },
    /// The kubelet serves a later run than the API server knows.
    ///
    /// Waits until the API server knows it. Run ended: `ReadRest`. After each pause: `SkipKnown`, whose
    /// request checks the run.
    AwaitStatus,
    /// Delivers all lines of the file but the `known` ones, because the resume point was rotated away.
    ///
    /// Waits for the end of the response. Then: `Live`, `ReadRest` or `Done`. A later run is served:
    /// `AwaitStatus`. If interrupted after a line, delivered or known: `FindResumePoint`, which skips the
    /// `known` ones too. If the run has ended since the file was searched: `FindResumePoint`, within this
    /// response.
    SkipKnown { known: HashSet<Mark>, gap: RotationGap },
    /// The read has ended. Nothing follows.
    #[default]
    Done,
}

/// The search of a stage for the resume point in its response.
#[derive(Debug)]
enum Search {
    /// The response was not opened.
    NotBegun,
    Searching(OverlapFinder),
    /// All further lines of the response are new. Also if no line is remembered.
    Found,
}

/// Reporting of the gap for a resume point that was rotated away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RotationGap {
    /// The file has not been opened. The gap is reported then, unless a line was delivered in part.
    Unopened,
    /// A line was delivered in part, and may be the first unknown line of the file. Then the gap precedes its
    /// rest; otherwise that line is ended, and the gap follows it.
    Due,
    /// It was reported.
    Reported,
}

/// A line that a stream sent after newer ones. The file tells whether lines are missing before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Suspect {
    time: LogTime,
    /// Hash of its bytes; `None` if it had not ended.
    hash: Option<u64>,
}

// === impl Machine ===

impl Machine {
    /// Creates a read. Its first action is to open [`Machine::query`]. `started` is when the container was
    /// started.
    pub(super) fn new(from: ReadFrom, follow: bool, started: LogTime) -> Self {
        let seek = |filter| Stage::FindStart { filter, last: None };
        let (stage, unverified_resume) = match from {
            ReadFrom::Start => (seek(StartFilter::All), None),
            ReadFrom::Since(since) => (seek(StartFilter::Since(since)), None),
            ReadFrom::After(position) => (seek(StartFilter::After(position)), Some(position)),
            ReadFrom::Last(lines) => {
                (TailBuffer::new(lines).map_or(Stage::CountLines, Stage::ReadLast), None)
            }
        };
        let run_pauses = if follow { LATER_RUN_PAUSES } else { BRIEF_PAUSES };
        let mut machine =
            Self { from, follow, started, stage, unverified_resume, run_pauses, ..Self::default() };
        machine.begin_file();
        machine
    }

    /// Searches the start of a [`ReadFrom::After`] in the last lines first: these follow it.
    pub(super) fn with_lines_after(mut self, after: LinesAfter) -> Self {
        // Before the first line, the position's time is not that of a line.
        if let Stage::FindStart { filter: StartFilter::After(position), last } = &mut self.stage
            && position.time > LogTime::MIN
        {
            // Estimated from the lines that follow.
            let nanos = after.until.as_nanos().saturating_sub(position.time.as_nanos());
            let span = u64::try_from(nanos).unwrap_or_default().max(1);
            let margin = after.count.saturating_mul(SEARCH_MARGIN_NANOS) / span;
            let margin = margin.clamp(WINDOW_LINES as u64, WINDOW_MAX_LINES as u64);
            *last = Some(after.count.saturating_add(margin));
        }
        self
    }

    /// Sets [`TailRequest::oldest_read`](crate::platform::TailRequest::oldest_read).
    pub(super) fn with_oldest_read(self, oldest_read: Option<LogTime>) -> Self {
        Self { oldest_read, ..self }
    }

    /// Returns the request that the current stage needs.
    pub(super) fn query(&self) -> LogQuery {
        let whole = LogQuery { checks_run: self.run_pauses > 0, ..LogQuery::WHOLE };
        match &self.stage {
            Stage::FindStart { last: Some(lines), .. } => {
                LogQuery { checks_run: whole.checks_run, ..LogQuery::last(*lines) }
            }
            Stage::ReadLast(last) => {
                LogQuery { checks_run: whole.checks_run, ..LogQuery::last(last.request_lines()) }
            }
            Stage::ProbeNewer { .. } => {
                LogQuery::exists_since(self.batcher.at().time.parts().0.saturating_add(1))
            }
            // Nothing is remembered, so nothing of the file was read.
            Stage::Live { .. } if self.window.is_empty() => LogQuery { follow: self.follows(), ..whole },
            Stage::ReadRest { .. } if self.window.is_empty() => whole,
            Stage::Live { .. } if !self.follows() => LogQuery::last(self.window.poll_lines()),
            Stage::Live { .. } => LogQuery { follow: true, ..LogQuery::last(self.window.overlap_lines()) },
            Stage::ReadRest { .. } => LogQuery::last(self.window.overlap_lines()),
            Stage::SearchPreviousRun { .. } => LogQuery::PREVIOUS,
            Stage::FindResumePoint { .. } | Stage::Done => LogQuery::WHOLE,
            Stage::FindStart { .. } | Stage::CountLines | Stage::AwaitStatus | Stage::SkipKnown { .. } => {
                whole
            }
        }
    }

    /// Returns the position before the first line that will be delivered, once it is known.
    pub(super) fn start(&self) -> Option<Position> {
        match &self.stage {
            Stage::ReadLast(_) | Stage::ProbeNewer { .. } | Stage::CountLines => None,
            _ => self.last.as_ref().map(|(start, _)| *start).or(self.batcher.start()),
        }
    }

    /// Takes the items that can be delivered.
    pub(super) fn take(&mut self) -> Vec<TailItem> {
        if self.start().is_none() {
            return Vec::new();
        }
        if let Some(first) = self.batcher.first()
            && self.unverified_resume.take().is_some_and(|after| self.may_be_other_position(after, first))
        {
            self.batcher.gap_first(unknown_gap(GapCause::Rotated));
        }
        let mut items = self.last.as_mut().map(|(_, items)| std::mem::take(items)).unwrap_or_default();
        items.extend(self.batcher.take_items(true));
        if let Some(polling) = &mut self.polling
            && !std::mem::replace(&mut polling.reported, true)
        {
            items.push(TailItem::FollowUnavailable);
        }
        items
    }

    /// Interprets silence in the current response.
    pub(super) fn idle_verdict(&self) -> IdleVerdict {
        match &self.stage {
            Stage::Live { .. } if !self.follows() => IdleVerdict::Slow,
            Stage::Live { search: Search::Searching(_), .. } => IdleVerdict::Unplaced,
            Stage::Live { .. } if self.polling.is_some() => IdleVerdict::Trial,
            Stage::Live { .. } => IdleVerdict::Quiet,
            _ => IdleVerdict::Slow,
        }
    }

    /// Takes an event and returns the next action.
    pub(super) fn on(&mut self, event: Event<'_>) -> Action {
        match event {
            Event::Opened { ended } => self.opened(ended),
            Event::Data(data) => self.data(data),
            Event::Unfinished => self.unfinished(),
            Event::Complete { ended } => self.on_complete(ended),
            Event::Broken(why) => self.broken(why),
            Event::Unreachable(why) => self.unreachable(why),
            Event::Gone(why) => self.gone(why),
            Event::Idle if self.polling.is_some() && self.stage.is_live() => {
                // The kubelet follows the log again.
                self.polling = None;
                Action::Read
            }
            Event::Idle => self.recover(None),
            Event::LaterRun { why, unclear } => self.later_run(&why, unclear),
            Event::Probed(data) => self.probed(data),
            Event::RunEnded => {
                self.clean_end = None;
                self.go_to(Stage::READ_REST)
            }
            Event::Resumed { ended } => match &self.stage {
                Stage::Live { .. } | Stage::AwaitStatus if ended => self.go_to(Stage::READ_REST),
                Stage::AwaitStatus => self.read_whole_file(),
                _ => Action::Open(self.query()),
            },
        }
    }

    /// Notes that the caller has not read for long: the log may have grown since a response was complete.
    pub(super) fn delayed(&mut self) {
        self.clean_end = None;
        self.response.is_late = true;
    }

    /// Returns whether the log is followed, not polled.
    fn follows(&self) -> bool {
        self.polling.is_none_or(|polling| polling.polls_left == 0)
    }

    /// Leaves the current response and requests the one that `stage` needs.
    fn go_to(&mut self, stage: Stage) -> Action {
        self.leave_response();
        self.stage = stage;
        Action::Open(self.query())
    }

    /// Searches the whole file, because the resume point is not in the current response. The first search
    /// since a line was delivered starts at once, whatever failed before: a log that rotates every few
    /// seconds will do so again. Further ones pause first.
    fn recover(&mut self, suspect: Option<Suspect>) -> Action {
        let open = self.go_to(Stage::FindResumePoint { search: Search::NotBegun, suspect });
        if std::mem::replace(&mut self.searched.file, true) { self.pause() } else { open }
    }

    /// Begins a response. Any stage may begin again here.
    fn opened(&mut self, ended: bool) -> Action {
        let query = self.query();
        if query.checks_run {
            self.run_pauses = if self.follow { LATER_RUN_PAUSES } else { BRIEF_PAUSES };
        }
        let requested = query.tail_lines.unwrap_or(u64::MAX);
        self.response = ResponseState { run_ended: ended, ..ResponseState::default() };
        self.partial.begin_response(self.batcher.at().offset);
        // It was searched before the end of the run was known, perhaps in the log of the next run.
        if ended && !self.searched.rest && self.stage.is_unopened_skip() && !self.window.is_empty() {
            self.stage = Stage::FindResumePoint { search: Search::NotBegun, suspect: None };
        }
        self.searched.rest |= ended && matches!(self.stage, Stage::FindResumePoint { .. });
        if let Some(search) = self.stage.search_mut() {
            *search = self.window.finder(requested).map_or(Search::Found, Search::Searching);
        }
        match &mut self.stage {
            Stage::Live { repeats, .. } => *repeats = false,
            Stage::ReadLast(last) => {
                last.clear();
                self.begin_file();
            }
            Stage::FindStart { .. } | Stage::CountLines => self.begin_file(),
            Stage::SkipKnown { gap, .. } => {
                // Its lines will be remembered in the order of this file.
                self.window = Window::default();
                if *gap == RotationGap::Unopened {
                    *gap = RotationGap::Due;
                    if !self.partial.is_skipping() {
                        self.report_loss();
                    }
                }
            }
            _ => {}
        }
        Action::Read
    }

    /// Counts positions from the file's first line.
    fn begin_file(&mut self) {
        let filter = match self.stage {
            Stage::FindStart { filter, .. } => filter,
            Stage::CountLines => StartFilter::Nothing,
            _ => StartFilter::All,
        };
        self.partial = PartialLine::default();
        self.window = Window::default();
        self.batcher = LineBatcher::new(Position::START, 0, filter);
    }

    /// Continues after the whole file was read, and the start of the read was not in it.
    fn not_found(&mut self, filter: StartFilter, ended: bool) -> Action {
        if let StartFilter::Lines(_) = filter {
            // It was rotated since its lines were counted.
            return self.go_to(Stage::CountLines);
        }
        self.batcher.begin_here();
        if let ReadFrom::After(_) = self.from {
            // The position lies after the end, or its line is gone and the clock was set back since.
            self.batcher.gap(unknown_gap(GapCause::Source));
        }
        self.at_end(ended)
    }

    /// Searches the whole file if the start of the read is not certain in the last lines; `complete`: all of
    /// them have come.
    ///
    /// Positions are counted from the first of them. A position counts the lines since the first one of its
    /// time, so no earlier line may have that time: the first one must be older, by more than lines are
    /// reordered. If the clock was set back, a line of the same nanosecond is most unlikely.
    fn leave_last_lines(&mut self, complete: bool) -> Option<Action> {
        let Stage::FindStart { filter: StartFilter::After(position), last: last @ Some(_) } = &mut self.stage
        else {
            return None;
        };
        let is_certain = match self.batcher.start() {
            Some(_) => {
                let first = self.batcher.first().map(|first| first.saturating_add_nanos(REORDER_MAX_NANOS));
                !self.batcher.resume_missed() && first.is_some_and(|first| first < position.time)
            }
            None if complete => false,
            None => return None,
        };
        if is_certain {
            *last = None;
            return None;
        }
        let stage = Stage::FindStart { filter: StartFilter::After(*position), last: None };
        let open = self.go_to(stage);
        // Nothing of this response counts.
        self.begin_file();
        Some(open)
    }

    /// Delivers the last lines, whose positions are known.
    fn begin_at_last(&mut self, last: TailBuffer, ended: bool) -> Action {
        self.batcher = LineBatcher::new(self.batcher.at(), self.batcher.lines(), StartFilter::All);
        self.last = Some(last.finish());
        self.at_end(ended)
    }

    /// Returns whether a log whose first line has this time was not rotated yet: no older line was read, and
    /// the container has just been started.
    fn is_unrotated(&self, first: LogTime) -> bool {
        first < self.started.saturating_add_nanos(UNROTATED)
            && self.oldest_read.is_none_or(|oldest| oldest >= first)
    }

    /// Returns whether the position to resume at may be another one: the file's first line has its time, and
    /// a file that is gone may have had more lines of that time.
    fn may_be_other_position(&self, after: Position, first: LogTime) -> bool {
        !self.is_unrotated(first)
            && !self.batcher.resume_missed()
            && (after.time == LogTime::MIN || first == after.time)
    }
}

// === impl Stage ===

impl Stage {
    const LIVE: Self = Self::Live { search: Search::NotBegun, repeats: false };

    const READ_REST: Self = Self::ReadRest { search: Search::NotBegun, suspect: None };

    /// Returns the search for the resume point, if the stage has one.
    fn search_mut(&mut self) -> Option<&mut Search> {
        match self {
            Self::Live { search, .. }
            | Self::ReadRest { search, .. }
            | Self::FindResumePoint { search, .. }
            | Self::SearchPreviousRun { search, .. } => Some(search),
            _ => None,
        }
    }

    /// Returns the line that made the machine search for the resume point.
    fn suspect(&self) -> Option<Suspect> {
        match self {
            Self::ReadRest { suspect, .. }
            | Self::FindResumePoint { suspect, .. }
            | Self::SearchPreviousRun { suspect, .. } => *suspect,
            _ => None,
        }
    }

    /// Returns whether the stage follows or polls the log, and is past the resume point.
    fn is_live(&self) -> bool {
        matches!(self, Self::Live { search: Search::Found, .. })
    }

    /// Returns whether the stage will report that the resume point was rotated away.
    fn is_unopened_skip(&self) -> bool {
        matches!(self, Self::SkipKnown { gap: RotationGap::Unopened, .. })
    }
}

// === impl Suspect ===

impl Suspect {
    /// Returns whether it is this line. `mark` is `None` if the line has not ended.
    fn is(self, time: LogTime, mark: Option<Mark>) -> bool {
        let same_bytes = self.hash.zip(mark).is_none_or(|(hash, mark)| hash == mark.hash);
        self.time == time && same_bytes
    }
}

#[cfg(test)]
mod tests;
