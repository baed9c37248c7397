//! From file to file: reads a log in order, however it is rotated meanwhile.
//!
//! The next file is looked for at the end of one, and opened at once, so that from then on it cannot be lost. Then the old one is
//! read to its end again: what was written to it before the new one was begun is there now. A runtime goes on writing to a renamed
//! file until it has opened the new one, so a reader that follows leaves a file only when there is something in the next.

use std::io;

use crate::model::limits::READ_MAX_BYTES;
use crate::model::line::{GapCause, SourceGap};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::cri::{Parser, Record, Stream};
use crate::platform::{Error, TailItem};

use super::assemble::Assembler;
use super::file_order::{FilePosition, Next};
use super::file_reader::{FileReader, Fill, Found};
use super::files::{Entry, LogFiles, Opened};
use crate::platform::batcher::{LineBatcher, StartFilter, unknown_gap};

/// How often a file that was listed may be gone before it is opened, in a row. Each time takes a rotation at the same moment.
const LOOKS_MAX: usize = 64;

/// Steps in one go, at most, whatever they yield: many files may be empty.
const STEPS_MAX: usize = 16;

/// A log being read.
#[derive(Debug)]
pub(super) struct LogReader {
    log: LogFiles,
    /// `None` as long as there is no file.
    here: Option<CurrentFile>,
    next: Option<NextFile>,
    lines: Lines,
}

/// How far a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadLimit {
    /// As far as it goes; more is to come.
    Growing,
    /// As far as it goes now.
    Now,
    /// To the end of the run, with which every line ends.
    End,
}

/// The file being read.
#[derive(Debug)]
struct CurrentFile {
    segment: FileReader,
    place: FilePosition,
    /// Whether what followed was gone at the last look.
    is_cut_off: bool,
}

/// The next file, open already.
#[derive(Debug)]
struct NextFile {
    opened: Opened,
    place: FilePosition,
    /// Whether there may have been others before it.
    hole: bool,
}

/// Records → what is delivered.
#[derive(Debug)]
struct Lines {
    parser: Parser,
    assembler: Assembler,
    emitter: LineBatcher,
    /// The record that comes in parts, if one does.
    long: Option<LongRecord>,
}

/// A record of which parts were taken.
#[derive(Clone, Copy, Debug)]
enum LongRecord {
    /// What stands at its beginning.
    Output { time: LogTime, stream: Stream, partial: bool },
    /// It is none; so many bytes so far.
    Garbage(u64),
}

/// A place to come back to: where a line of the merged output begins. Keeps its file open.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    opened: Opened,
    place: FilePosition,
    offset: u64,
    /// The unfinished lines of either stream.
    assembler: Assembler,
    /// The position there.
    pub(super) at: Position,
    /// Whole lines up to there.
    pub(super) lines: u64,
}

/// What a step did.
pub(super) enum Step {
    /// It read so many bytes, or changed files.
    Forward(usize),
    /// There is nothing to read for now.
    Idle,
}

// === impl LogReader ===

impl LogReader {
    /// Before the file at `index` of a listing, whatever lies before it; in an empty listing before the first file to come.
    /// `None` if that file is not there any more.
    pub(super) fn begin(
        log: &LogFiles,
        list: &[Entry],
        index: usize,
        filter: StartFilter,
    ) -> Result<Option<Self>, Error> {
        let mut here = None;
        if let Some(place) = FilePosition::of(log, list, index) {
            let Some(opened) = log.open(&list[index])? else {
                return Ok(None);
            };
            let segment = FileReader::new(opened, 0);
            here = Some(CurrentFile { segment, place, is_cut_off: false });
        }
        Ok(Some(Self {
            log: log.clone(),
            here,
            next: None,
            lines: Lines::new(Assembler::default(), LineBatcher::new(Position::START, 0, filter)),
        }))
    }

    /// Goes on at a checkpoint of another walk through the same log.
    pub(super) fn resume(log: &LogFiles, checkpoint: Checkpoint, filter: StartFilter) -> Self {
        let Checkpoint { opened, place, offset, assembler, at, lines } = checkpoint;
        let segment = FileReader::new(opened, offset);
        Self {
            log: log.clone(),
            here: Some(CurrentFile { segment, place, is_cut_off: false }),
            next: None,
            lines: Lines::new(assembler, LineBatcher::new(at, lines, filter)),
        }
    }

    /// The present place, if it is one to come back to.
    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        let here = self.here.as_ref().filter(|_| self.lines.emitter.at().at_line_start())?;
        Some(Checkpoint {
            opened: here.segment.opened().clone(),
            place: here.place.clone(),
            offset: here.segment.record_start()?,
            assembler: self.lines.assembler,
            at: self.lines.emitter.at(),
            lines: self.lines.emitter.lines(),
        })
    }

    /// What the lines went into.
    pub(super) fn emitter(&mut self) -> &mut LineBatcher {
        &mut self.lines.emitter
    }

    /// Reads up to [`READ_MAX_BYTES`]. Returns whether it came to the end of what there is.
    pub(super) fn pull(&mut self, until: ReadLimit) -> Result<bool, Error> {
        let ending = until != ReadLimit::Growing;
        let mut left = READ_MAX_BYTES;
        for _ in 0..STEPS_MAX {
            match self.step(ending, left)? {
                Step::Forward(read) => left = left.saturating_sub(read),
                Step::Idle => {
                    if ending {
                        self.tell_what_is_gone();
                    }
                    if until == ReadLimit::End {
                        self.finish();
                    }
                    return Ok(true);
                }
            }
            if left == 0 {
                break;
            }
        }
        Ok(false)
    }

    /// Returns what is to be delivered. At a `rest` nothing is held back.
    pub(super) fn take(&mut self, rest: bool) -> Vec<TailItem> {
        self.release_at(rest);
        self.lines.emitter.take(rest)
    }

    /// Returns the same without an unfinished line at its end, which may soon be finished.
    pub(super) fn take_finished(&mut self, rest: bool) -> Vec<TailItem> {
        self.release_at(rest);
        self.lines.emitter.take_finished(rest)
    }

    /// Whether the last [`Self::take_finished`] has held something back.
    pub(super) fn holds_unfinished(&self) -> bool {
        self.lines.emitter.holds_unfinished()
    }

    /// Whether a line of standard output and one of standard error have begun and not ended.
    pub(super) fn unfinished(&self) -> [bool; 2] {
        self.lines.assembler.unfinished()
    }

    fn release_at(&mut self, rest: bool) {
        if let Some(here) = self.here.as_mut().filter(|_| rest) {
            here.segment.release();
        }
    }

    /// All was read, and nothing is to come: ends what is unfinished.
    fn finish(&mut self) {
        self.close_segment();
        self.lines.assembler.finish(&mut self.lines.emitter);
    }

    /// Which file is being read.
    #[cfg(test)]
    pub(super) fn inode(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Some(self.here.as_ref()?.segment.opened().file.metadata().ok()?.ino())
    }

    /// Reads up to `max` bytes, or looks for the next file.
    pub(super) fn step(&mut self, ending: bool, max: usize) -> Result<Step, Error> {
        // Asked before the old file is read, so that the read finds all that was written to it before.
        let leaves = match &self.next {
            Some(next) => ending || next.is_begun(&self.log)?,
            None => false,
        };
        let Some(here) = &mut self.here else {
            return self.look_for_first();
        };
        match here.segment.fill(max).map_err(|error| self.log.failed("reading a log in", error))? {
            Fill::Bytes(read) => {
                self.lines.emitter.expect(read);
                let lines = &mut self.lines;
                here.segment.drain(|found| lines.take(found));
                Ok(Step::Forward(read))
            }
            Fill::End if leaves => {
                self.advance();
                Ok(Step::Forward(0))
            }
            Fill::End if self.next.is_some() => Ok(Step::Idle),
            Fill::End => self.look_ahead(),
            Fill::Truncated => {
                tracing::warn!(dir = %self.log.dir.display(), "a log was truncated while it was read");
                self.lines.gap(unknown_gap(GapCause::Source));
                Ok(Step::Forward(0))
            }
            Fill::Corrupt(error) => {
                tracing::warn!(dir = %self.log.dir.display(), %error, "a compressed log cannot be read to its end");
                self.close_segment();
                self.lines.gap(unknown_gap(GapCause::Source));
                Ok(Step::Forward(0))
            }
        }
    }

    /// Goes on with the next file.
    fn advance(&mut self) {
        let Some(NextFile { opened, place, hole }) = self.next.take() else {
            return;
        };
        self.close_segment();
        if hole {
            self.lines.gap(unknown_gap(GapCause::Rotated));
        }
        let segment = FileReader::new(opened, 0);
        self.here = Some(CurrentFile { segment, place, is_cut_off: false });
    }

    /// Nothing is to come that could tell of it.
    fn tell_what_is_gone(&mut self) {
        if self.here.as_mut().is_some_and(|here| std::mem::take(&mut here.is_cut_off)) {
            self.finish();
            self.lines.emitter.gap_at_end(unknown_gap(GapCause::Rotated));
        }
    }

    /// Takes what follows the last newline of a file that is complete.
    fn close_segment(&mut self) {
        if let Some(here) = &mut self.here {
            let lines = &mut self.lines;
            here.segment.rest(|found| lines.take_torn(found));
        }
    }

    fn look_for_first(&mut self) -> Result<Step, Error> {
        for _ in 0..LOOKS_MAX {
            let list = self.log.list()?;
            let Some(place) = FilePosition::of(&self.log, &list, 0) else {
                return Ok(Step::Idle);
            };
            if let Some(opened) = self.log.open(&list[0])? {
                let segment = FileReader::new(opened, 0);
                self.here = Some(CurrentFile { segment, place, is_cut_off: false });
                return Ok(Step::Forward(0));
            }
        }
        Err(self.log.elusive())
    }

    /// Looks for the next file, and opens it.
    pub(super) fn look_ahead(&mut self) -> Result<Step, Error> {
        let Some(here) = &mut self.here else {
            return Ok(Step::Idle);
        };
        if here.place.is_active() && self.log.active()? == Some(here.segment.opened().id) {
            return Ok(Step::Idle);
        }
        for _ in 0..LOOKS_MAX {
            let list = self.log.list()?;
            let next = here.place.next(&self.log, here.segment.opened(), &list);
            here.is_cut_off = next == Next::Gone;
            let (entry, hole) = match next {
                // Should something come yet, that tells of the hole before it.
                Next::Nothing | Next::Gone => return Ok(Step::Idle),
                Next::Following(entry) => (entry, false),
                Next::AfterHole(entry) => (entry, true),
            };
            let index = list.iter().position(|other| other == entry).unwrap_or_default();
            if let (Some(place), Some(opened)) =
                (FilePosition::of(&self.log, &list, index), self.log.open(entry)?)
            {
                self.next = Some(NextFile { opened, place, hole });
                return Ok(Step::Forward(0));
            }
        }
        Err(self.log.elusive())
    }
}

// === impl Ahead ===

impl NextFile {
    /// Whether the one who writes has come to this file.
    fn is_begun(&self, log: &LogFiles) -> Result<bool, Error> {
        let failed = |error: io::Error| log.failed("looking at the newest log in", error);
        Ok(self.opened.size().map_err(failed)? > 0 || log.active()? != Some(self.opened.id))
    }
}

// === impl Lines ===

impl Lines {
    fn new(assembler: Assembler, emitter: LineBatcher) -> Self {
        Self { parser: Parser::default(), assembler, emitter, long: None }
    }

    #[inline]
    fn take(&mut self, found: Found<'_>) {
        match found {
            Found::Record(record) => match self.parser.parse(record) {
                Some(record) => self.assembler.push(&record, &mut self.emitter),
                None => self.garbage(record.len() as u64 + 1),
            },
            Found::Part(part) => self.long = Some(self.take_part(part)),
            Found::LastPart(part) => match self.long.take() {
                Some(LongRecord::Output { time, stream, partial }) => {
                    self.output(time, stream, partial, part);
                }
                Some(LongRecord::Garbage(bytes)) => self.garbage(bytes + part.len() as u64 + 1),
                None => self.garbage(part.len() as u64 + 1),
            },
        }
    }

    fn take_part(&mut self, part: &[u8]) -> LongRecord {
        match self.long {
            Some(LongRecord::Garbage(bytes)) => LongRecord::Garbage(bytes + part.len() as u64),
            Some(output @ LongRecord::Output { time, stream, .. }) => {
                self.output(time, stream, true, part);
                output
            }
            None => match self.parser.parse(part) {
                Some(Record { time, stream, partial, lost: None, content }) => {
                    self.output(time, stream, true, content);
                    LongRecord::Output { time, stream, partial }
                }
                // A notice of a loss is never so long.
                _ => LongRecord::Garbage(part.len() as u64),
            },
        }
    }

    fn output(&mut self, time: LogTime, stream: Stream, partial: bool, content: &[u8]) {
        self.assembler.push(&Record { time, stream, partial, lost: None, content }, &mut self.emitter);
    }

    /// Takes a record that was not written whole: its line ends where it does, and has lost the rest.
    fn take_torn(&mut self, found: Found<'_>) {
        let garbage = match found {
            Found::Record(bytes) => match self.parser.parse(bytes) {
                Some(record) if record.lost.is_none() && !record.content.is_empty() => {
                    self.assembler.push(&Record { partial: true, ..record }, &mut self.emitter);
                    0
                }
                _ => bytes.len() as u64,
            },
            Found::Part(part) | Found::LastPart(part) => match self.take_part(part) {
                LongRecord::Output { .. } => 0,
                LongRecord::Garbage(bytes) => bytes,
            },
        };
        self.garbage(garbage);
    }

    fn garbage(&mut self, bytes: u64) {
        self.gap(SourceGap { lines: 1, bytes, ..unknown_gap(GapCause::Source) });
    }

    fn gap(&mut self, gap: SourceGap) {
        self.long = None;
        self.assembler.gap(gap, &mut self.emitter);
    }
}
