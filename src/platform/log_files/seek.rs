//! Finds the place in a log that a [`ReadFrom`] names.
//!
//! Positions are counted from the beginning of a log, so in general everything before a place has to be read.
//! But a position does not depend on lines older than its time: a reader that starts at some file counts
//! correctly as soon as a line is newer than all lines before that file. So a search starts at the beginning
//! of a file some way before the requested place, and restarts at the oldest file if the times turn out not
//! to allow that. Assumption: no record of an older file is newer than that file's first record by more than
//! the margin makes up for. If the pieces of a line are further apart than the margin, its rest is taken for
//! the beginning of a line; positions are still correct.

use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::batcher::{StartFilter, unknown_gap};
use crate::platform::{Error, ReadFrom};

use super::listing::{Entry, LogFiles, not_found};
use super::log_reader::{Checkpoint, LogReader, ReadLimit};

/// Least distance between the start of a search and the requested place, in bytes of files: a tenth of a
/// kubelet's usual file size, and enough for all but extreme clock steps and line lengths.
const MARGIN_BYTES: u64 = 1024 * 1024;

/// Nanoseconds after the start of a run in which its log is not rotated yet. A service that prints its first
/// line later may get a superfluous gap.
const UNROTATED: i64 = 2_000_000_000;

/// Most checkpoints kept while lines are counted. At the limit every other one is removed.
const CHECKPOINTS_MAX: usize = 1_024;

/// A search. Stepped, so that no step blocks for long.
#[derive(Debug)]
pub(super) struct Seek {
    log: LogFiles,
    from: ReadFrom,
    limit: ReadLimit,
    reader: LogReader,
    /// Whether the search started at the oldest file.
    is_from_oldest: bool,
    /// Rotated files that are left. Others may have been removed before them.
    rotated_files: usize,
    /// The newest known time before the start of the search. `None` if a file's time is unknown.
    newest_before: Option<LogTime>,
    checkpoints: Checkpoints,
}

/// Checkpoints made while lines are counted.
#[derive(Debug)]
struct Checkpoints {
    kept: Vec<Checkpoint>,
    /// Steps from one checkpoint to the next.
    stride: usize,
    steps: usize,
}

/// Outcome of a step.
#[derive(Debug)]
pub(super) enum SeekOutcome {
    Seeking(Seek),
    /// The reader, and the position before the first line it will return.
    Found(LogReader, Position),
}

// === impl Seek ===

impl Seek {
    pub(super) fn new(log: &LogFiles, from: ReadFrom, limit: ReadLimit) -> Result<Self, Error> {
        Self::start(log, from, limit, false)
    }

    fn start(log: &LogFiles, from: ReadFrom, limit: ReadLimit, at_oldest: bool) -> Result<Self, Error> {
        let filter = match from {
            ReadFrom::Start => StartFilter::All,
            ReadFrom::Last(_) => StartFilter::Nothing,
            ReadFrom::Since(since) => StartFilter::Since(since),
            ReadFrom::After(position) => StartFilter::After(position),
        };
        log.find(|list| {
            if limit != ReadLimit::Growing && list.is_empty() {
                return Err(not_found());
            }
            let index = if at_oldest { 0 } else { first_file(log, list, from) };
            let Some(reader) = LogReader::at_file(log, list, index, filter)? else {
                return Ok(None);
            };
            let firsts: Option<Vec<LogTime>> =
                list.iter().take(index + 1).map(|entry| log.first_time(entry)).collect();
            Ok(Some(Self {
                newest_before: firsts.and_then(|firsts| firsts.into_iter().max()),
                log: log.clone(),
                from,
                limit,
                reader,
                is_from_oldest: index == 0,
                rotated_files: list.iter().filter(|entry| entry.name.rotated.is_some()).count(),
                checkpoints: Checkpoints { kept: Vec::new(), stride: 1, steps: 0 },
            }))
        })
    }

    pub(super) fn step(mut self) -> Result<SeekOutcome, Error> {
        if let ReadFrom::Last(lines) = self.from {
            return self.count(lines);
        }
        let at_end = self.reader.batcher().start().is_none() && self.reader.read(self.limit)?;
        match self.reader.batcher().start() {
            Some(start) => self.found(start),
            None if at_end => self.not_found(),
            None => Ok(SeekOutcome::Seeking(self)),
        }
    }

    fn found(mut self, start: Position) -> Result<SeekOutcome, Error> {
        let resume_missed = self.reader.batcher().resume_missed();
        if self.from == ReadFrom::Start && self.misses_first_line() {
            self.reader.batcher().gap_first(unknown_gap(GapCause::Rotated));
        }
        if !self.is_from_oldest && (resume_missed || !self.is_counted(start)) {
            return self.restart();
        }
        if let ReadFrom::After(after) = self.from {
            // The lines of the oldest time may have begun in a file that was removed.
            let is_unsure = after.time == LogTime::MIN || self.reader.batcher().first() == Some(after.time);
            if is_unsure && !resume_missed && self.is_from_oldest && self.rotated_files > 0 {
                self.reader.batcher().gap_first(unknown_gap(GapCause::Rotated));
            }
        }
        Ok(SeekOutcome::Found(self.reader, start))
    }

    /// Whether the reader needs the run's first line, and it may have been removed: see [`NeededStart`].
    fn misses_first_line(&self) -> bool {
        self.log.needed_start.is_some_and(|needed| {
            let unrotated_until = needed.started.saturating_add_nanos(UNROTATED);
            self.rotated_files > 0
                && self.rotated_files + 1 >= needed.kept_files
                && self.newest_before.is_none_or(|first| first > unrotated_until)
        })
    }

    /// Everything was read without reaching the requested place.
    fn not_found(mut self) -> Result<SeekOutcome, Error> {
        let at = self.reader.batcher().at();
        if !self.is_from_oldest && (matches!(self.from, ReadFrom::After(_)) || !self.is_counted(at)) {
            return self.restart();
        }
        if let ReadFrom::After(_) = self.from {
            // The position is after the end, so it belongs to other files.
            self.reader.batcher().gap_first(unknown_gap(GapCause::Source));
        }
        // Only an instant may still be reached, by a later line.
        if !matches!(self.from, ReadFrom::Since(_)) {
            self.reader.batcher().begin_here();
        }
        Ok(SeekOutcome::Found(self.reader, at))
    }

    /// Reads to the end with checkpoints, then returns to one before the last `lines` lines.
    fn count(mut self, lines: u64) -> Result<SeekOutcome, Error> {
        self.checkpoints.add(&self.reader);
        if !self.reader.read(self.limit)? {
            return Ok(SeekOutcome::Seeking(self));
        }
        let (at, counted) = (self.reader.batcher().at(), self.reader.batcher().lines());
        if lines == 0 {
            if !self.is_from_oldest && !self.is_counted(at) {
                return self.restart();
            }
            self.reader.batcher().begin_here();
            return Ok(SeekOutcome::Found(self.reader, at));
        }
        let first = counted.saturating_sub(lines);
        let Some(checkpoint) = self.checkpoints.take_before(first) else {
            // There is no file yet.
            self.from = ReadFrom::Start;
            return self.restart();
        };
        if !self.is_from_oldest && (counted < lines || !self.is_counted(checkpoint.at)) {
            return self.restart();
        }
        let skipped = first - checkpoint.lines;
        self.reader = LogReader::at_checkpoint(&self.log, checkpoint, StartFilter::Lines(skipped));
        // Positions after the checkpoint are correct, so no restart can be needed any more.
        self.is_from_oldest = true;
        self.from = ReadFrom::Start;
        Ok(SeekOutcome::Seeking(self))
    }

    /// Restarts at the oldest file.
    fn restart(self) -> Result<SeekOutcome, Error> {
        Self::start(&self.log, self.from, self.limit, true).map(SeekOutcome::Seeking)
    }

    /// Whether a position is counted correctly although earlier files were not read.
    fn is_counted(&self, position: Position) -> bool {
        self.newest_before.is_some_and(|time| position.time > time)
    }
}

/// Returns the index of the file to start at, far enough before the requested place.
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

// === impl Checkpoints ===

impl Checkpoints {
    /// Adds the present place, if the stride is reached.
    fn add(&mut self, reader: &LogReader) {
        if self.steps.is_multiple_of(self.stride) {
            self.kept.extend(reader.checkpoint());
        }
        self.steps += 1;
        if self.kept.len() >= CHECKPOINTS_MAX {
            self.kept = std::mem::take(&mut self.kept).into_iter().step_by(2).collect();
            self.stride *= 2;
        }
    }

    /// Takes the last checkpoint with at most `lines` lines before it.
    fn take_before(&mut self, lines: u64) -> Option<Checkpoint> {
        let after = self.kept.partition_point(|checkpoint| checkpoint.lines <= lines);
        self.kept.truncate(after);
        self.kept.pop()
    }
}
