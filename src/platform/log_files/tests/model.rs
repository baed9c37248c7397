//! A random writer and a random reader, checked against a list of records.
//!
//! The reader is stepped without a runtime, a few bytes at a time, so that every interleaving can occur and a
//! failure is reproduced from its seed.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;

use super::super::log_reader::{LogReader, ReadLimit, Step};
use super::super::seek::{Seek, SeekOutcome};
use super::*;
use crate::model::limits::LINE_HELD_MAX_BYTES;
use crate::model::line::GapCause;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::cri::{self, Record, path};

/// An expected line of the merged output.
#[derive(Clone, PartialEq)]
struct Produced {
    bytes: Vec<u8>,
}

impl std::fmt::Debug for Produced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(20)]);
        write!(f, "{text:?} {} bytes", self.bytes.len())
    }
}

/// An expected piece of a line: as much of it as has no output of the other stream in between.
#[derive(Clone, PartialEq)]
struct Part {
    bytes: Vec<u8>,
    /// The position after it.
    after: Position,
    time: LogTime,
    stream: Option<OutputStream>,
    continues: bool,
    ends: bool,
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(20)]);
        let Self { after, time, stream, continues, ends, .. } = self;
        write!(f, "{text:?} {after:?} {time:?} {stream:?} {continues} {ends}")
    }
}

/// Adds a piece, joined with the previous one if no output of the other stream is between them.
fn join(parts: &mut Vec<Part>, part: Part) {
    match parts.last_mut() {
        Some(last) if !last.ends && part.continues && last.stream == part.stream => {
            last.bytes.extend_from_slice(&part.bytes);
            (last.after, last.ends) = (part.after, part.ends);
        }
        _ => parts.push(part),
    }
}

#[derive(Clone, Debug)]
enum Action {
    /// Writes a record. `tick` advances the clock; a `len` of 0 is an empty record, others are numbered and
    /// padded.
    Write {
        stderr: bool,
        partial: bool,
        tick: i64,
        len: usize,
    },
    /// Writes an overlong line, with a line of the other stream within it.
    WriteLong {
        stderr: bool,
    },
    /// Writes only this many bytes of the next record before the next read.
    WriteHalf {
        bytes: usize,
    },
    Rotate,
    /// Compresses the oldest uncompressed log.
    Compress,
    /// Removes the oldest log.
    Remove,
    /// Steps the reader.
    Read {
        steps: usize,
        bytes: usize,
    },
    /// Reads to the end.
    Drain,
    /// Drops the reader and resumes after its last position.
    Reopen,
    /// Empties the log; the reader notices.
    Truncate,
    /// Another reader reads the last lines, those since some time ago, all, or those after a position.
    Last(u64),
    Since(i64),
    Start,
    AfterAny(prop::sample::Index),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        20 => (any::<bool>(), prop::bool::weighted(0.3), prop_oneof![4 => Just(0), 4 => 1..3_i64, 1 => Just(-1)], prop_oneof![Just(0), 1..40_usize])
            .prop_map(|(stderr, partial, tick, len)| Action::Write { stderr, partial, tick, len }),
        1 => any::<bool>().prop_map(|stderr| Action::WriteLong { stderr }),
        3 => (1..40_usize).prop_map(|bytes| Action::WriteHalf { bytes }),
        6 => Just(Action::Rotate),
        3 => Just(Action::Compress),
        2 => Just(Action::Remove),
        8 => (1..4_usize, 1..200_usize).prop_map(|(steps, bytes)| Action::Read { steps, bytes }),
        2 => Just(Action::Drain),
        3 => Just(Action::Reopen),
        1 => Just(Action::Truncate),
        1 => (0..6_u64).prop_map(Action::Last),
        1 => (-2..6_i64).prop_map(Action::Since),
        1 => Just(Action::Start),
        2 => any::<prop::sample::Index>().prop_map(Action::AfterAny),
    ]
}

/// The writer, its directory, and the expected output.
struct Model {
    _dir: tempfile::TempDir,
    log: LogFiles,
    now: i64,
    number: u64,
    produced: Vec<Produced>,
    /// All pieces, one per record that is not empty.
    parts: Vec<Part>,
    /// The unfinished merged line, and its time.
    open: Option<(Produced, LogTime)>,
    /// Times of unfinished lines, by stream.
    begun: [Option<LogTime>; 2],
    /// Bytes of records that are not in the file yet.
    unwritten: Vec<u8>,
    /// Oldest first, the active one last.
    files: Vec<Kept>,
    rotations: i64,
    /// Whether old files are removed. Then times do not go back over a rotation: a time that occurs again
    /// after a removed file would be mistaken for the one within it.
    removes: bool,
    /// The newest time in a rotated file.
    rotated_at: i64,
    /// Whether a line was unfinished at the last rotation.
    split_by_rotation: bool,
    /// Whether files were removed or emptied. Then other readers may count positions differently.
    is_damaged: bool,
}

/// A file of the log.
struct Kept {
    path: PathBuf,
    /// Whether it ends within a line.
    ends_in_line: bool,
    /// Its inodes before and after compression.
    inodes: Vec<u64>,
}

impl Model {
    fn new(removes: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFiles { dir: dir.path().to_owned(), run_number: 0, needed_start: None };
        let mut model = Self {
            _dir: dir,
            log,
            now: 1_000,
            number: 0,
            produced: Vec::new(),
            parts: Vec::new(),
            open: None,
            begun: [None, None],
            unwritten: Vec::new(),
            files: Vec::new(),
            rotations: 0,
            removes,
            rotated_at: 0,
            split_by_rotation: false,
            is_damaged: false,
        };
        model.create();
        model
    }

    fn active(&self) -> PathBuf {
        self.log.dir.join("0.log")
    }

    fn create(&mut self) {
        let file = File::create_new(self.active()).unwrap();
        self.files.push(Kept {
            path: self.active(),
            ends_in_line: false,
            inodes: vec![file.metadata().unwrap().ino()],
        });
    }

    fn append(&self, bytes: &[u8]) {
        OpenOptions::new().append(true).open(self.active()).unwrap().write_all(bytes).unwrap();
    }

    fn flush(&mut self) {
        let unwritten = std::mem::take(&mut self.unwritten);
        self.append(&unwritten);
    }

    fn record(&mut self, stderr: bool, partial: bool, content: &[u8]) {
        let time = LogTime::from_nanos(self.now);
        let stream = if stderr { OutputStream::Stderr } else { OutputStream::Stdout };
        cri::write(&mut self.unwritten, &Record { time, stream, partial, lost: None, content });
        if partial && content.is_empty() {
            return;
        }
        let mut bytes = content.to_vec();
        if !partial {
            bytes.push(b'\n');
        }
        let before = self.at();
        let begun = &mut self.begun[usize::from(stderr)];
        let (begun_at, continues) = (begun.unwrap_or(time), begun.is_some());
        *begun = partial.then_some(begun_at);
        let (line, line_time) = self.open.get_or_insert((Produced { bytes: Vec::new() }, time));
        line.bytes.extend_from_slice(&bytes);
        let after = if partial { before.after_bytes(bytes.len()) } else { before.after_line(*line_time) };
        self.parts.push(Part {
            bytes,
            after,
            time: begun_at,
            stream: Some(stream),
            continues,
            ends: !partial,
        });
        if !partial {
            self.produced.extend(self.open.take().map(|(line, _)| line));
        }
    }

    /// Ends all unfinished lines.
    fn end_lines(&mut self) {
        self.begun = [None, None];
        if let (Some((line, time)), Some(last)) = (self.open.take(), self.parts.last_mut()) {
            self.produced.push(line);
            (last.after, last.ends) = (last.after.after_line(time), true);
        }
    }

    /// The position after everything.
    fn at(&self) -> Position {
        self.parts.last().map_or(Position::START, |part| part.after)
    }

    fn content(&mut self, len: usize) -> Vec<u8> {
        self.number += 1;
        let number = format!("{}.", self.number);
        if len == 0 { Vec::new() } else { format!("{number:x<len$}").into_bytes() }
    }

    fn write_long(&mut self, stderr: bool) {
        self.now += 1;
        let piece = vec![b'l'; LINE_HELD_MAX_BYTES / 2];
        let (early, late) = (self.content(9), self.content(9));
        self.record(stderr, true, &piece);
        self.now += 1;
        self.record(!stderr, false, &early);
        self.record(stderr, true, &piece);
        self.record(stderr, true, &self.number.to_string().into_bytes());
        self.record(!stderr, false, &late);
        self.record(stderr, false, b"end");
    }

    fn rotate(&mut self) {
        self.rotations += 1;
        self.split_by_rotation = self.open.is_some();
        let suffix = path::rotation_suffix(LogTime::from_nanos(self.rotations));
        self.rotated_at = self.now;
        let kept = self.files.last_mut().unwrap();
        kept.ends_in_line = self.split_by_rotation;
        let rotated = self.log.dir.join(format!("0.log.{suffix}"));
        fs::rename(&kept.path, &rotated).unwrap();
        kept.path = rotated;
        self.create();
    }

    fn compress(&mut self) {
        let rotated = self.files.len() - 1;
        let Some(kept) = self.files[..rotated].iter_mut().find(|kept| kept.path.extension().unwrap() != "gz")
        else {
            return;
        };
        let tmp = PathBuf::from(format!("{}.tmp", kept.path.display()));
        let mut gz = GzEncoder::new(File::create(&tmp).unwrap(), Compression::fast());
        gz.write_all(&fs::read(&kept.path).unwrap()).unwrap();
        kept.inodes.push(gz.finish().unwrap().metadata().unwrap().ino());
        let path = PathBuf::from(format!("{}.gz", kept.path.display()));
        fs::rename(tmp, &path).unwrap();
        fs::remove_file(&kept.path).unwrap();
        kept.path = path;
    }
}

/// A line or gap that a reader returned.
#[derive(Clone, Debug)]
enum Received {
    /// A line, and the position after it.
    Line(Produced, Position),
    /// A line, or the rest of one whose first pieces came before a gap.
    Rest(Produced),
    Gap,
}

/// Collects items and joins pieces.
#[derive(Default)]
struct Collector {
    received: Vec<Received>,
    parts: Vec<Part>,
    line: Vec<u8>,
    /// Whether pieces came before a gap, and nothing since.
    is_rest: bool,
    /// The position to resume from; `None` before anything was received.
    last: Option<Position>,
}

impl Collector {
    fn add(&mut self, items: Vec<TailItem>) {
        for item in items {
            let TailItem::Lines(batch) = item else {
                // A line whose first pieces were received has lost its rest, unless the gap is superfluous.
                self.is_rest |= !self.line.is_empty();
                self.line.clear();
                self.received.push(Received::Gap);
                continue;
            };
            for (index, line) in batch.lines.iter().enumerate() {
                assert!(!batch.bytes(index).is_empty() || line.ends && line.continues);
                self.line.extend_from_slice(batch.bytes(index));
                self.last = Some(line.after);
                let Line { time, after, ends, continues, stream, .. } = *line;
                let bytes = batch.bytes(index).to_vec();
                join(&mut self.parts, Part { bytes, after, time, stream, continues, ends });
                if line.ends {
                    let line = Produced { bytes: std::mem::take(&mut self.line) };
                    self.received.push(if std::mem::take(&mut self.is_rest) {
                        Received::Rest(line)
                    } else {
                        Received::Line(line, after)
                    });
                }
            }
        }
    }

    fn lines(&self) -> Vec<(Produced, Position)> {
        let line = |received: &Received| match received {
            Received::Line(line, at) => Some((line.clone(), *at)),
            Received::Rest(_) | Received::Gap => None,
        };
        self.received.iter().filter_map(line).collect()
    }

    fn gaps(&self) -> usize {
        self.received.iter().filter(|received| matches!(received, Received::Gap)).count()
    }
}

fn seek(log: &LogFiles, from: ReadFrom) -> (LogReader, Position) {
    let mut seek = Seek::new(log, from, ReadLimit::Growing).unwrap();
    loop {
        match seek.step().unwrap() {
            SeekOutcome::Seeking(unfinished) => seek = unfinished,
            SeekOutcome::Found(reader, start) => return (reader, start),
        }
    }
}

fn drain(reader: &mut LogReader, output: &mut Collector, until: ReadLimit) {
    while !reader.read(until).unwrap() {
        output.add(reader.batcher().take_items(false));
    }
    output.add(reader.batcher().take_items(true));
}

/// The follower under test.
struct Follower {
    reader: LogReader,
    start: Position,
    output: Collector,
    /// Most gaps that may be returned.
    gaps_allowed: usize,
}

impl Follower {
    /// Returns the index of the file being read.
    fn index(&self, model: &Model) -> usize {
        // The inode of a removed file may be in use again for a newer one.
        let inode = self.reader.inode();
        model
            .files
            .iter()
            .rposition(|kept| inode.is_none_or(|inode| kept.inodes.contains(&inode)))
            .unwrap_or(0)
    }

    fn read(&mut self, steps: usize, bytes: usize) {
        for _ in 0..steps {
            if matches!(self.reader.step(false, bytes).unwrap(), Step::Idle) {
                break;
            }
        }
        self.output.add(self.reader.batcher().take_items(false));
    }

    fn reopen(&mut self, model: &Model) {
        let at = self.output.last.unwrap_or(self.start);
        let (mut oldest, _) = seek(&model.log, ReadFrom::Start);
        let mut first = Collector::default();
        drain(&mut oldest, &mut first, ReadLimit::Growing);
        let tied = first.lines().first().is_some_and(|(_, end)| end.time == at.time);
        if model.files.len() > 1 && (tied || at.time == LogTime::MIN) {
            self.gaps_allowed += 1;
        }
        // Its line is gone, with the file that was removed or emptied.
        let base = Position { offset: 0, ..at };
        let there = base == Position::START || first.lines().iter().any(|(_, end)| *end == base);
        self.gaps_allowed += usize::from(model.is_damaged && !there);
        // With equal times, another line may have its position, and end before its offset.
        self.gaps_allowed += usize::from(model.is_damaged && tied && at.offset > 0);
        let (reader, start) = seek(&model.log, ReadFrom::After(at));
        self.reader = reader;
        // If the position is not found, reading continues at the end, which may be within a line.
        self.output.is_rest |= start != at && start.offset > 0;
        if !model.is_damaged {
            assert_eq!(start, at);
        }
    }
}

/// Checks that lines and gaps account for all lines produced, in order, without repeats.
fn check_complete(produced: &[Produced], output: &Collector) {
    let mut at: Vec<usize> = vec![0];
    for (index, received) in output.received.iter().enumerate() {
        at = match received {
            Received::Gap => (at[0]..=produced.len()).collect(),
            Received::Line(line, _) => {
                at.retain(|at| produced.get(*at) == Some(line));
                at.iter().map(|at| at + 1).collect()
            }
            Received::Rest(line) => {
                at.retain(|at| produced.get(*at).is_some_and(|whole| whole.bytes.ends_with(&line.bytes)));
                at.iter().map(|at| at + 1).collect()
            }
        };
        assert!(
            !at.is_empty(),
            "at {index}: {received:?}\nreceived {:#?}\nproduced {produced:#?}",
            output.received
        );
    }
    let end = produced.len();
    assert!(
        at.contains(&end),
        "ends at {at:?} of {end}: received {:#?}\nproduced {produced:#?}",
        output.received
    );
}

/// Checks that a read returns the pieces from `first`.
fn check_reading(model: &Model, from: ReadFrom, first: usize) {
    let (mut reader, start) = seek(&model.log, from);
    let mut output = Collector::default();
    drain(&mut reader, &mut output, ReadLimit::Growing);
    let mut expected = Vec::new();
    for part in &model.parts[first..] {
        join(&mut expected, part.clone());
    }
    assert_eq!(output.parts, expected, "{from:?}");
    if first < model.parts.len() || !matches!(from, ReadFrom::Since(_)) {
        let before = first.checked_sub(1).map_or(Position::START, |index| model.parts[index].after);
        assert_eq!(start, before, "{from:?}");
    }
}

fn act(model: &mut Model, follower: &mut Follower, action: Action) {
    if !matches!(action, Action::Read { .. } | Action::Drain | Action::WriteHalf { .. }) {
        model.flush();
    }
    match action {
        Action::Write { stderr, partial, tick, len } => {
            let tick = if model.removes { tick.max(model.rotated_at - model.now) } else { tick };
            model.now += tick;
            let content = model.content(len);
            model.record(stderr, partial, &content);
            model.now -= tick.min(0);
            model.flush();
        }
        Action::WriteLong { stderr } => {
            model.write_long(stderr);
            model.flush();
        }
        Action::WriteHalf { bytes } => {
            model.flush();
            let content = model.content(20);
            model.record(false, false, &content);
            let rest = model.unwritten.split_off(bytes.min(model.unwritten.len()));
            model.flush();
            model.unwritten = rest;
        }
        // Empty files are not rotated, and could not be distinguished.
        Action::Rotate if fs::metadata(model.active()).unwrap().len() == 0 => {}
        Action::Rotate => model.rotate(),
        Action::Compress => model.compress(),
        // The rest of a split line would be returned as a line, perhaps twice.
        Action::Remove if model.removes && model.files.len() > 2 && !model.files[0].ends_in_line => {
            if follower.index(model) == 0 {
                follower.gaps_allowed += 1;
            }
            let kept = model.files.remove(0);
            fs::remove_file(kept.path).unwrap();
            model.is_damaged = true;
        }
        Action::Remove => {}
        Action::Read { steps, bytes } => follower.read(steps, bytes),
        Action::Drain => drain(&mut follower.reader, &mut follower.output, ReadLimit::Growing),
        Action::Reopen => follower.reopen(model),
        // If only the end of a line is cut off, its beginning would be returned again.
        Action::Truncate if model.split_by_rotation => {}
        Action::Truncate => {
            drain(&mut follower.reader, &mut follower.output, ReadLimit::Growing);
            let file = OpenOptions::new().write(true).open(model.active()).unwrap();
            if file.metadata().unwrap().len() > 0 {
                file.set_len(0).unwrap();
                drain(&mut follower.reader, &mut follower.output, ReadLimit::Growing);
                model.end_lines();
                model.now += 10;
                model.is_damaged = true;
                follower.gaps_allowed += 1;
            }
        }
        action if !model.is_damaged => check_other_reader(model, &action),
        _ => {}
    }
}

/// Checks that another reader returns the expected lines.
fn check_other_reader(model: &Model, action: &Action) {
    let (from, first) = match *action {
        Action::Last(0) => (ReadFrom::Last(0), model.parts.len()),
        Action::Last(lines) => {
            let before = model.produced.len().saturating_sub(usize::try_from(lines).unwrap());
            let mut ends = 0;
            let skipped = model.parts.iter().take_while(|part| {
                let is_skipped = ends < before;
                ends += usize::from(part.ends);
                is_skipped
            });
            (ReadFrom::Last(lines), skipped.count())
        }
        Action::Since(ago) => {
            let since = LogTime::from_nanos(model.now - ago);
            let first = model.parts.iter().position(|part| part.time >= since);
            (ReadFrom::Since(since), first.unwrap_or(model.parts.len()))
        }
        Action::AfterAny(index) if !model.parts.is_empty() => {
            let index = index.index(model.parts.len());
            (ReadFrom::After(model.parts[index].after), index + 1)
        }
        _ => (ReadFrom::Start, 0),
    };
    check_reading(model, from, first);
}

proptest! {
    #[test]
    fn tail_model(removes: bool, actions in prop::collection::vec(action(), 0..120)) {
        let mut model = Model::new(removes);
        let (reader, start) = seek(&model.log, ReadFrom::Start);
        let mut follower = Follower { reader, start, output: Collector::default(), gaps_allowed: 0 };
        for action in actions {
            act(&mut model, &mut follower, action);
        }
        model.flush();
        model.end_lines();
        drain(&mut follower.reader, &mut follower.output, ReadLimit::End);
        check_complete(&model.produced, &follower.output);
        prop_assert!(follower.output.gaps() <= follower.gaps_allowed, "{} > {}", follower.output.gaps(), follower.gaps_allowed);
        if !model.is_damaged {
            let mut expected = Vec::new();
            for part in model.parts {
                join(&mut expected, part);
            }
            if follower.output.gaps() == 0 {
                prop_assert_eq!(follower.output.parts, expected);
            }
        }
    }
}

#[test]
fn gap_causes_are_distinguished() {
    let mut model = Model::new(true);
    let (mut reader, _) = seek(&model.log, ReadFrom::Start);
    for _ in 0..4 {
        model.now += 1;
        model.record(false, false, b"line");
        model.flush();
        model.rotate();
    }
    for _ in 0..3 {
        reader.step(false, 10).unwrap();
    }
    for kept in model.files.drain(..2) {
        fs::remove_file(kept.path).unwrap();
    }
    let mut gaps = Vec::new();
    while !reader.read(ReadLimit::Growing).unwrap() {}
    for item in reader.batcher().take_items(true) {
        if let TailItem::Gap(gap) = item {
            gaps.push((gap.cause, gap.exact));
        }
    }
    assert_eq!(gaps, [(GapCause::Rotated, false)]);
}

/// Returns the lines the follower received since the last call.
fn new_lines(reader: &mut LogReader) -> Vec<String> {
    let mut output = Collector::default();
    drain(reader, &mut output, ReadLimit::Growing);
    assert_eq!(output.gaps(), 0);
    output.lines().into_iter().map(|(line, _)| String::from_utf8(line.bytes).unwrap()).collect()
}

#[test]
fn late_output_to_rotated_file_is_read() {
    let mut model = Model::new(true);
    let (mut reader, _) = seek(&model.log, ReadFrom::Start);
    assert_eq!(new_lines(&mut reader), [""; 0]);
    model.record(false, false, b"old");
    model.flush();
    model.rotate();
    model.record(false, false, b"new");
    model.flush();
    // The reader had reached the end before the writes.
    reader.open_next().unwrap();
    assert_eq!(new_lines(&mut reader), ["old\n", "new\n"]);
}

#[test]
fn renamed_file_is_followed_until_next_is_begun() {
    let mut model = Model::new(true);
    let (mut reader, _) = seek(&model.log, ReadFrom::Start);
    model.record(false, false, b"first");
    model.flush();
    model.rotate();
    assert_eq!(new_lines(&mut reader), ["first\n"]);
    for n in 0..3 {
        let content = n.to_string();
        model.record(false, false, content.as_bytes());
        let late = std::mem::take(&mut model.unwritten);
        OpenOptions::new().append(true).open(&model.files[0].path).unwrap().write_all(&late).unwrap();
        assert_eq!(new_lines(&mut reader), [format!("{n}\n")]);
    }
    model.record(false, false, b"next");
    model.flush();
    assert_eq!(new_lines(&mut reader), ["next\n"]);
}
