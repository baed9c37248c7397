//! Reads a log in order, from file to file, and makes lines of its records.
//!
//! At the end of a file the next one is looked for and opened at once, so that it cannot be lost from then
//! on. Then the old file is read to its end again, which finds everything written before the new file was
//! created. A runtime writes to a renamed file until it has opened the new one, so a follower leaves a file
//! only when the next has content.
//!
//! Lines depend on the records alone, not on when or in which portions they are read. Output is passed on in
//! the order of the records, each at once: a complete line never waits for an incomplete one of the other
//! stream, and any prefix of the log gives a prefix of the output. A line that its runtime recorded in
//! several pieces may have output of the other stream between them; each piece has its stream and whether it
//! begins a line. At a gap, and at the end of the run, all lines end.

use std::io;

use crate::model::limits::READ_MAX_BYTES;
use crate::model::line::{GapCause, OutputStream, SourceGap};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::Error;
use crate::platform::batcher::{LineBatcher, Piece, StartFilter, unknown_gap};
use crate::platform::cri::{Parser, Record};

use super::file_order::{Next, RotationPlace};
use super::file_reader::{FileReadOutcome, FileReader, RawRecord};
use super::listing::{Entry, LogFiles, OpenFile, not_found};

/// Most steps of one [`LogReader::read`], however little they read: many files may be empty.
const STEPS_MAX: usize = 16;

/// Reads the log of one run.
#[derive(Debug)]
pub(super) struct LogReader {
    log: LogFiles,
    /// `None` until there is a file.
    current: Option<CurrentFile>,
    next: Option<NextFile>,
    decoder: Decoder,
}

/// How far a log is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadLimit {
    /// To its present end; the run continues.
    Growing,
    /// To its present end, once.
    Now,
    /// To the end of the run, where every line ends.
    End,
}

/// The file being read.
#[derive(Debug)]
struct CurrentFile {
    reader: FileReader,
    position: RotationPlace,
    /// Whether the next file had been removed at the last attempt to open it.
    is_next_removed: bool,
}

/// The next file, already open.
#[derive(Debug)]
struct NextFile {
    file: OpenFile,
    position: RotationPlace,
    /// Whether files before it may have been removed.
    follows_gap: bool,
}

/// Makes lines of records.
#[derive(Debug)]
struct Decoder {
    parser: Parser,
    assembler: Assembler,
    batcher: LineBatcher,
    /// Set within a record that comes in parts.
    in_parts: Option<RecordInParts>,
}

/// The beginning of a record that comes in parts.
#[derive(Clone, Copy, Debug)]
enum RecordInParts {
    Output {
        time: LogTime,
        stream: OutputStream,
        partial: bool,
    },
    /// Not a record. Counts its bytes.
    Garbage(u64),
}

/// Tracks the unfinished line of each stream, by the time of its first piece. Holds no output.
#[derive(Clone, Copy, Debug, Default)]
struct Assembler([Option<LogTime>; 2]);

/// A place to return to: the start of a line of the merged output. Keeps its file open.
#[derive(Clone, Debug)]
pub(super) struct Checkpoint {
    file: OpenFile,
    position: RotationPlace,
    offset: u64,
    assembler: Assembler,
    /// The position of the merged output.
    pub(super) at: Position,
    /// Complete lines before it.
    pub(super) lines: u64,
}

pub(super) enum Step {
    /// Number of bytes read; zero if it changed files.
    Progress(usize),
    /// Nothing to read for now.
    Idle,
}

// === impl LogReader ===

impl LogReader {
    /// Starts at the file at `index` of a listing. With an empty listing, waits for the first file. Returns
    /// `None` if the file is gone.
    pub(super) fn at_file(
        log: &LogFiles,
        list: &[Entry],
        index: usize,
        filter: StartFilter,
    ) -> Result<Option<Self>, Error> {
        let mut reader = Self::new(log, LineBatcher::new(Position::START, 0, filter), Assembler::default());
        if !list.is_empty() {
            reader.current = CurrentFile::open(log, list, index)?;
            if reader.current.is_none() {
                return Ok(None);
            }
        }
        Ok(Some(reader))
    }

    /// Starts at a checkpoint of another reader of the same log.
    pub(super) fn at_checkpoint(log: &LogFiles, checkpoint: Checkpoint, filter: StartFilter) -> Self {
        let Checkpoint { file, position, offset, assembler, at, lines } = checkpoint;
        let mut reader = Self::new(log, LineBatcher::new(at, lines, filter), assembler);
        reader.current = Some(CurrentFile::new(file, offset, position));
        reader
    }

    fn new(log: &LogFiles, batcher: LineBatcher, assembler: Assembler) -> Self {
        let decoder = Decoder { parser: Parser::default(), assembler, batcher, in_parts: None };
        Self { log: log.clone(), current: None, next: None, decoder }
    }

    /// Returns the present place, if a line of the merged output begins there.
    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        let Decoder { batcher, assembler, .. } = &self.decoder;
        let current = self.current.as_ref().filter(|_| batcher.at().at_line_start())?;
        Some(Checkpoint {
            file: current.reader.file().clone(),
            position: current.position.clone(),
            offset: current.reader.record_start()?,
            assembler: *assembler,
            at: batcher.at(),
            lines: batcher.lines(),
        })
    }

    pub(super) fn batcher(&mut self) -> &mut LineBatcher {
        &mut self.decoder.batcher
    }

    /// Reads up to [`READ_MAX_BYTES`]. Returns whether it reached the end.
    pub(super) fn read(&mut self, limit: ReadLimit) -> Result<bool, Error> {
        let is_ending = limit != ReadLimit::Growing;
        let mut left = READ_MAX_BYTES;
        for _ in 0..STEPS_MAX {
            match self.step(is_ending, left)? {
                Step::Progress(read) => left = left.saturating_sub(read),
                // A runtime creates the file before the run, so it was removed.
                Step::Idle if self.current.is_none() && limit == ReadLimit::End => return Err(not_found()),
                Step::Idle => {
                    if is_ending {
                        self.report_removed_files();
                    }
                    if limit == ReadLimit::End {
                        self.finish();
                    }
                    if let Some(current) = &mut self.current {
                        current.reader.shrink();
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

    /// Returns whether a line of standard output and one of standard error are unfinished.
    pub(super) fn unfinished(&self) -> [bool; 2] {
        self.decoder.assembler.0.map(|begun| begun.is_some())
    }

    /// Ends all lines: everything was read, and the run has ended.
    fn finish(&mut self) {
        self.finish_file();
        self.decoder.assembler.finish(&mut self.decoder.batcher);
    }

    /// Returns the inode of the current file.
    #[cfg(test)]
    pub(super) fn inode(&self) -> Option<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Some(self.current.as_ref()?.reader.file().file.metadata().ok()?.ino())
    }

    /// Reads up to `max` bytes, or opens the next file.
    pub(super) fn step(&mut self, is_ending: bool, max: usize) -> Result<Step, Error> {
        // Checked before the old file is read, so that the read finds everything written to it before.
        let may_leave = match &self.next {
            Some(next) => is_ending || next.is_begun(&self.log)?,
            None => false,
        };
        let Some(current) = &mut self.current else {
            return self.open_first();
        };
        let read = current.reader.read(max);
        match read.map_err(|error| self.log.io_error("failed to read a log in", error))? {
            FileReadOutcome::Bytes(read) => {
                let decoder = &mut self.decoder;
                decoder.batcher.reserve_for(read);
                current.reader.take_records(|record| decoder.record(record));
                Ok(Step::Progress(read))
            }
            FileReadOutcome::End if may_leave => {
                self.switch_to_next();
                Ok(Step::Progress(0))
            }
            FileReadOutcome::End if self.next.is_some() => Ok(Step::Idle),
            FileReadOutcome::End => self.open_next(),
            FileReadOutcome::Truncated => {
                tracing::warn!(dir = %self.log.dir.display(), "log was truncated while it was read");
                self.decoder.gap(unknown_gap(GapCause::Source));
                Ok(Step::Progress(0))
            }
            FileReadOutcome::Corrupt(error) => {
                tracing::warn!(dir = %self.log.dir.display(), %error, "failed to decompress rest of log");
                self.finish_file();
                self.decoder.gap(unknown_gap(GapCause::Source));
                Ok(Step::Progress(0))
            }
        }
    }

    fn switch_to_next(&mut self) {
        let Some(NextFile { file, position, follows_gap }) = self.next.take() else {
            return;
        };
        self.finish_file();
        if follows_gap {
            self.decoder.gap(unknown_gap(GapCause::Rotated));
        }
        self.current = Some(CurrentFile::new(file, 0, position));
    }

    /// Adds a gap if later files were removed. Used when no later file will come that could reveal it.
    fn report_removed_files(&mut self) {
        if self.current.as_mut().is_some_and(|current| std::mem::take(&mut current.is_next_removed)) {
            self.finish();
            self.decoder.batcher.gap_at_end(unknown_gap(GapCause::Rotated));
        }
    }

    /// Takes the bytes after the last newline of a complete file.
    fn finish_file(&mut self) {
        if let Some(current) = &mut self.current {
            let decoder = &mut self.decoder;
            current.reader.take_incomplete(|record| decoder.incomplete_record(record));
        }
    }

    fn open_first(&mut self) -> Result<Step, Error> {
        let log = &self.log;
        self.current = log.find(|list| {
            let file = CurrentFile::open(log, list, 0)?;
            Ok((list.is_empty() || file.is_some()).then_some(file))
        })?;
        Ok(if self.current.is_some() { Step::Progress(0) } else { Step::Idle })
    }

    /// Looks for the next file and opens it.
    pub(super) fn open_next(&mut self) -> Result<Step, Error> {
        let (Some(current), log) = (&mut self.current, &self.log) else {
            return Ok(Step::Idle);
        };
        if current.position.is_active() && log.active()? == Some(current.reader.file().id) {
            return Ok(Step::Idle);
        }
        self.next = log.find(|list| {
            let next = current.position.next(log, current.reader.file(), list);
            current.is_next_removed = next == Next::Removed;
            let (entry, follows_gap) = match next {
                // If a file follows later, it reveals the gap before it.
                Next::NotYet | Next::Removed => return Ok(Some(None)),
                Next::Following(entry) => (entry, false),
                Next::AfterRemoved(entry) => (entry, true),
            };
            let index = list.iter().position(|other| other == entry).unwrap_or_default();
            let next = RotationPlace::of(log, list, index).zip(log.open(entry)?);
            Ok(next.map(|(position, file)| Some(NextFile { file, position, follows_gap })))
        })?;
        Ok(if self.next.is_some() { Step::Progress(0) } else { Step::Idle })
    }
}

// === impl CurrentFile ===

impl CurrentFile {
    /// Opens the file at `index` of a listing. Returns `None` if it is gone.
    fn open(log: &LogFiles, list: &[Entry], index: usize) -> Result<Option<Self>, Error> {
        let Some(position) = RotationPlace::of(log, list, index) else {
            return Ok(None);
        };
        Ok(log.open(&list[index])?.map(|file| Self::new(file, 0, position)))
    }

    fn new(file: OpenFile, offset: u64, position: RotationPlace) -> Self {
        Self { reader: FileReader::new(file, offset), position, is_next_removed: false }
    }
}

// === impl NextFile ===

impl NextFile {
    /// Whether the writer has started to use this file.
    fn is_begun(&self, log: &LogFiles) -> Result<bool, Error> {
        let failed = |error: io::Error| log.io_error("failed to read the size of the newest log in", error);
        Ok(self.file.size().map_err(failed)? > 0 || log.active()? != Some(self.file.id))
    }
}

// === impl Decoder ===

impl Decoder {
    #[inline]
    fn record(&mut self, record: RawRecord<'_>) {
        match record {
            RawRecord::Whole(bytes) => match self.parser.parse(bytes) {
                Some(record) => self.assembler.push(&record, &mut self.batcher),
                None => self.garbage(bytes.len() as u64 + 1),
            },
            RawRecord::Part(part) => self.in_parts = Some(self.part(part)),
            RawRecord::LastPart(part) => match self.in_parts.take() {
                Some(RecordInParts::Output { time, stream, partial }) => {
                    self.output(time, stream, partial, part);
                }
                Some(RecordInParts::Garbage(bytes)) => self.garbage(bytes + part.len() as u64 + 1),
                None => self.garbage(part.len() as u64 + 1),
            },
        }
    }

    fn part(&mut self, part: &[u8]) -> RecordInParts {
        match self.in_parts {
            Some(RecordInParts::Garbage(bytes)) => RecordInParts::Garbage(bytes + part.len() as u64),
            Some(output @ RecordInParts::Output { time, stream, .. }) => {
                self.output(time, stream, true, part);
                output
            }
            None => match self.parser.parse(part) {
                Some(Record { time, stream, partial, lost: None, content }) => {
                    self.output(time, stream, true, content);
                    RecordInParts::Output { time, stream, partial }
                }
                // A notice of dropped output is never this long.
                _ => RecordInParts::Garbage(part.len() as u64),
            },
        }
    }

    fn output(&mut self, time: LogTime, stream: OutputStream, partial: bool, content: &[u8]) {
        self.assembler.push(&Record { time, stream, partial, lost: None, content }, &mut self.batcher);
    }

    /// Takes a record that was not written completely. Its line ends with it, and a gap stands for the rest.
    fn incomplete_record(&mut self, record: RawRecord<'_>) {
        let garbage = match record {
            RawRecord::Whole(bytes) => match self.parser.parse(bytes) {
                Some(record) if record.lost.is_none() && !record.content.is_empty() => {
                    self.assembler.push(&Record { partial: true, ..record }, &mut self.batcher);
                    0
                }
                _ => bytes.len() as u64,
            },
            RawRecord::Part(part) | RawRecord::LastPart(part) => match self.part(part) {
                RecordInParts::Output { .. } => 0,
                RecordInParts::Garbage(bytes) => bytes,
            },
        };
        self.garbage(garbage);
    }

    fn garbage(&mut self, bytes: u64) {
        self.gap(SourceGap { lines: 1, bytes, ..unknown_gap(GapCause::Source) });
    }

    fn gap(&mut self, gap: SourceGap) {
        self.in_parts = None;
        // The gap may include the rest of unfinished lines.
        self.assembler.finish(&mut self.batcher);
        self.batcher.gap(gap);
    }
}

// === impl Assembler ===

impl Assembler {
    /// Passes a record on as a line or a piece of one.
    #[inline]
    fn push(&mut self, record: &Record<'_>, out: &mut LineBatcher) {
        if let Some(lost) = record.lost {
            self.finish(out);
            out.dropped_output(lost, record.time);
            return;
        }
        if record.partial && record.content.is_empty() {
            return;
        }
        let begun = &mut self.0[record.stream as usize];
        let (time, continues) = (begun.unwrap_or(record.time), begun.is_some());
        *begun = record.partial.then_some(time);
        let piece = Piece { time, continues, stream: Some(record.stream) };
        out.record(record.content, record.partial, record.time, piece);
    }

    /// Ends all lines.
    fn finish(&mut self, out: &mut LineBatcher) {
        *self = Self::default();
        out.end_line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::{TailItem, cri};

    /// A line as `stream text`, with `+` before the text if earlier pieces exist and after it if the line
    /// continues; or a gap.
    #[derive(Debug, PartialEq)]
    enum Out {
        Line(String, i64, Position),
        Gap(SourceGap),
    }

    /// Assembles records, given as `seconds stream tags content`.
    fn run(records: &[&str], finish: bool) -> Vec<Out> {
        let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::All);
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        for record in records {
            let (second, rest) = record.split_once(' ').unwrap();
            let record = format!("1970-01-01T00:00:0{second}Z {rest}");
            assembler.push(&cri::parse(record.as_bytes()).unwrap(), &mut batcher);
        }
        if finish {
            assembler.finish(&mut batcher);
        }
        for item in batcher.take_items(true) {
            match item {
                TailItem::Gap(gap) => out.push(Out::Gap(gap)),
                TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {}
                TailItem::Lines(batch) => {
                    for (index, line) in batch.lines.iter().enumerate() {
                        let stream = line.stream.unwrap().name();
                        let text = std::str::from_utf8(batch.bytes(index)).unwrap();
                        let (before, after) =
                            (["", "+"][usize::from(line.continues)], ["+", ""][usize::from(line.ends)]);
                        let text = format!("{stream} {before}{text}{after}");
                        out.push(Out::Line(text, line.time.as_nanos() / 1_000_000_000, line.after));
                    }
                }
            }
        }
        out
    }

    fn at(second: i64, ordinal: u64, offset: u64) -> Position {
        Position { time: LogTime::from_nanos(second * 1_000_000_000), ordinal, offset }
    }

    fn line(text: &str, second: i64, after: Position) -> Out {
        Out::Line(text.to_owned(), second, after)
    }

    #[test]
    fn finished_line_never_waits_for_the_other_stream() {
        let records =
            ["1 stdout P a", "2 stderr P b", "3 stderr F c", "4 stdout F d", "5 stdout F ", "6 stderr F e"];
        let in_file_order = [
            line("stdout a+", 1, Position { offset: 1, ..Position::START }),
            line("stderr bc\n", 2, at(1, 1, 0)),
            line("stdout +d\n", 1, at(4, 1, 0)),
            line("stdout \n", 5, at(5, 1, 0)),
            line("stderr e\n", 6, at(6, 1, 0)),
        ];
        assert_eq!(run(&records, false), in_file_order);
    }

    #[test]
    fn positions_are_those_of_the_merged_output() {
        // As kubectl prints it: "ab\n" with the time 1, then "c\n" with the time 3.
        let records = ["1 stdout P a", "2 stderr F b", "3 stdout F c"];
        let out = run(&records, false);
        assert_eq!(out[1], line("stderr b\n", 2, at(1, 1, 0)));
        assert_eq!(out[2], line("stdout +c\n", 1, at(3, 1, 0)));
    }

    #[test]
    fn unfinished_line_ends_with_the_run() {
        let records = ["1 stderr P a", "2 stdout P ", "3 stdout P b", "4 stdout F c", "5 stdout P d"];
        let mut expected = vec![
            line("stderr a+", 1, Position { offset: 1, ..Position::START }),
            line("stdout bc\n", 3, at(1, 1, 0)),
            line("stdout d+", 5, at(1, 1, 1)),
        ];
        assert_eq!(run(&records, false), expected);
        expected[2] = line("stdout d", 5, at(5, 1, 0));
        assert_eq!(run(&records, true), expected);
        assert_eq!(run(&["1 stdout P "], true), []);
    }

    #[test]
    fn lost_output_is_a_gap_and_ends_lines() {
        // After the line of second 1 and the record itself.
        let after = at(1, 1, 0).after_line(LogTime::from_nanos(2_000_000_000));
        let gap = SourceGap { cause: GapCause::Source, lines: 12, bytes: 3456, exact: true, after };
        assert_eq!(
            run(&["1 stdout P a", "2 stderr F:lost=12/3456 notice", "3 stdout F b"], false),
            [line("stdout a", 1, at(1, 1, 0)), Out::Gap(gap), line("stdout b\n", 3, at(3, 1, 0))]
        );
    }
}
