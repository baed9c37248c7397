//! Where to begin: [`ReadFrom`] → a place in the log.
//!
//! Positions are counted from the beginning of a log, so whoever begins in the middle has to count what lies before. Reading all of
//! it is what it takes in general. But a position forgets all that is older than its time: a reading that begins at some file
//! counts right as soon as a line is newer than all before that file. So a reading begins some way before what is asked for,
//! at a file's beginning, and begins again at the oldest file if it turns out that the times do not bear that out. What this
//! trusts: the times of the older files' first records are not exceeded, later in those files, by more than the margin can make up
//! for. If the pieces of a line lie further apart than the margin, its rest is taken for the beginning of a line; positions are right.

use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::{Error, ReadFrom};

use super::files::{Entry, LogFiles, missing};
use super::log_reader::{Checkpoint, LogReader, ReadLimit};
use crate::platform::batcher::{StartFilter, unknown_gap};

/// How far before what is asked for a reading begins at least, in bytes of files: a tenth of a file of a kubelet's usual size, and
/// more than any but the strangest clocks and lines need.
const MARGIN_BYTES: u64 = 1024 * 1024;

/// Most places remembered while lines are counted; then every other one is forgotten.
const CHECKPOINTS_MAX: usize = 1_024;

/// How often a file that was listed may be gone before it is opened, in a row.
const LOOKS_MAX: usize = 64;

/// Looks for a place to begin. Stepped, so that no step takes long.
#[derive(Debug)]
pub(super) struct Seek {
    log: LogFiles,
    from: ReadFrom,
    until: ReadLimit,
    walk: LogReader,
    /// Whether the reading began at the oldest file.
    whole: bool,
    /// Whether there were several files.
    several: bool,
    /// The newest time known of what lies before; `None` if something is not known.
    floor: Option<LogTime>,
    counted: Counted,
}

/// Places passed while lines are counted.
#[derive(Debug)]
struct Counted {
    checkpoints: Vec<Checkpoint>,
    /// Every so many steps one is remembered.
    stride: usize,
    steps: usize,
}

/// What a step led to.
#[derive(Debug)]
pub(super) enum SeekOutcome {
    /// Not there yet.
    Seeking(Seek),
    /// There: the position before the first line that will come.
    Found(LogReader, Position),
}

// === impl Seek ===

impl Seek {
    /// Begins to look in the files of `log`.
    pub(super) fn new(log: LogFiles, from: ReadFrom, until: ReadLimit) -> Result<Self, Error> {
        Self::attempt(log, from, until, false)
    }

    fn attempt(log: LogFiles, from: ReadFrom, until: ReadLimit, whole: bool) -> Result<Self, Error> {
        let filter = match from {
            ReadFrom::Start => StartFilter::All,
            ReadFrom::Last(_) => StartFilter::Nothing,
            ReadFrom::Since(since) => StartFilter::Since(since),
            ReadFrom::After(position) => StartFilter::After(position),
        };
        for _ in 0..LOOKS_MAX {
            let list = log.list()?;
            if until != ReadLimit::Growing && list.is_empty() {
                return Err(missing());
            }
            let index = if whole { 0 } else { first_file(&log, &list, from) };
            if let Some(walk) = LogReader::begin(&log, &list, index, filter)? {
                let firsts: Option<Vec<LogTime>> =
                    list.iter().take(index + 1).map(|entry| log.first_time(entry)).collect();
                return Ok(Self {
                    floor: firsts.and_then(|firsts| firsts.into_iter().max()),
                    log,
                    from,
                    until,
                    walk,
                    whole: index == 0,
                    several: list.len() > 1,
                    counted: Counted::new(),
                });
            }
        }
        Err(log.elusive())
    }

    /// Reads on.
    pub(super) fn step(mut self) -> Result<SeekOutcome, Error> {
        if let ReadFrom::Last(lines) = self.from {
            return self.count(lines);
        }
        if let Some(start) = self.walk.emitter().start() {
            return self.found(start);
        }
        let idle = self.walk.pull(self.until)?;
        match (self.walk.emitter().start(), idle) {
            (Some(start), _) => self.found(start),
            (None, false) => Ok(SeekOutcome::Seeking(self)),
            (None, true) => self.not_found(),
        }
    }

    /// The delivery begins at `start`.
    fn found(mut self, start: Position) -> Result<SeekOutcome, Error> {
        let inexact = self.walk.emitter().is_inexact();
        if !self.whole && (inexact || !self.is_above_floor(start)) {
            return self.again();
        }
        if let ReadFrom::After(after) = self.from {
            // The count of the oldest lines may have begun in a file that is gone.
            let unsure = after.time == LogTime::MIN || self.walk.emitter().first() == Some(after.time);
            if unsure && !inexact && self.whole && self.several {
                self.walk.emitter().gap_first(unknown_gap(GapCause::Rotated));
            }
        }
        Ok(SeekOutcome::Found(self.walk, start))
    }

    /// All was read, and what is asked for was not there.
    fn not_found(mut self) -> Result<SeekOutcome, Error> {
        let at = self.walk.emitter().at();
        if !self.whole && (matches!(self.from, ReadFrom::After(_)) || !self.is_above_floor(at)) {
            return self.again();
        }
        if let ReadFrom::After(_) = self.from {
            // The position lies behind the end: these are not the files that it is from.
            self.walk.emitter().gap_first(unknown_gap(GapCause::Source));
        }
        // An instant to begin at may yet come; nothing else will.
        if !matches!(self.from, ReadFrom::Since(_)) {
            self.walk.emitter().begin_here();
        }
        Ok(SeekOutcome::Found(self.walk, at))
    }

    /// Reads to the end, remembering places, and then goes back to one before the last `lines` lines.
    fn count(mut self, lines: u64) -> Result<SeekOutcome, Error> {
        self.counted.pass(&self.walk);
        if !self.walk.pull(self.until)? {
            return Ok(SeekOutcome::Seeking(self));
        }
        let (at, counted) = (self.walk.emitter().at(), self.walk.emitter().lines());
        if lines == 0 {
            if !self.whole && !self.is_above_floor(at) {
                return self.again();
            }
            self.walk.emitter().begin_here();
            return Ok(SeekOutcome::Found(self.walk, at));
        }
        let first = counted.saturating_sub(lines);
        let Some(checkpoint) = self.counted.before(first) else {
            // There is no file yet.
            self.from = ReadFrom::Start;
            return self.again();
        };
        if !self.whole && (counted < lines || !self.is_above_floor(checkpoint.at)) {
            return self.again();
        }
        let passed = first - checkpoint.lines;
        self.walk = LogReader::resume(&self.log, checkpoint, StartFilter::Lines(passed));
        // From here on it is a search for a place that is known to be right.
        self.whole = true;
        self.from = ReadFrom::Start;
        Ok(SeekOutcome::Seeking(self))
    }

    /// Begins again at the oldest file.
    fn again(self) -> Result<SeekOutcome, Error> {
        Self::attempt(self.log, self.from, self.until, true).map(SeekOutcome::Seeking)
    }

    fn is_above_floor(&self, position: Position) -> bool {
        self.floor.is_some_and(|floor| position.time > floor)
    }
}

/// The file to begin with, so that there is enough before what is asked for.
fn first_file(log: &LogFiles, list: &[Entry], from: ReadFrom) -> usize {
    let newest = list.len().saturating_sub(1);
    let older = |time| list.iter().rposition(|entry| log.first_time(entry).is_some_and(|first| first < time));
    let target = match from {
        ReadFrom::Start => return 0,
        ReadFrom::Last(_) => newest,
        ReadFrom::Since(since) => older(since).unwrap_or_default(),
        ReadFrom::After(position) => older(position.time).unwrap_or_default(),
    };
    let mut margin = 0;
    for (index, entry) in list.iter().enumerate().take(target).rev() {
        margin += entry.size;
        if margin >= MARGIN_BYTES {
            return index;
        }
    }
    0
}

// === impl Counted ===

impl Counted {
    fn new() -> Self {
        Self { checkpoints: Vec::new(), stride: 1, steps: 0 }
    }

    /// Remembers the present place, if it is its turn.
    fn pass(&mut self, walk: &LogReader) {
        if self.steps.is_multiple_of(self.stride) {
            self.checkpoints.extend(walk.checkpoint());
        }
        self.steps += 1;
        if self.checkpoints.len() >= CHECKPOINTS_MAX {
            let mut index = 0;
            self.checkpoints.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.stride *= 2;
        }
    }

    /// The last place with at most `lines` lines before it.
    fn before(&mut self, lines: u64) -> Option<Checkpoint> {
        let after = self.checkpoints.partition_point(|checkpoint| checkpoint.lines <= lines);
        self.checkpoints.truncate(after);
        self.checkpoints.pop()
    }
}
