//! A random writer and a random reader against a list of records.
//!
//! The reader is stepped without a runtime, a few bytes at a time, so that every interleaving can happen and a failure is found
//! again from its seed.

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
use crate::platform::cri::{self, Record, Stream, path};

/// A line of the merged output as it should come out.
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

/// A piece of a line as it should come out: as much of it as comes without output of the other stream in between.
#[derive(Clone, PartialEq)]
struct Part {
    bytes: Vec<u8>,
    /// The position behind it.
    after: Position,
    time: LogTime,
    stream: Option<Stream>,
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

/// Adds a piece to the one before it, if no output of the other stream lies between.
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
    /// A record: which stream, partial, the clock's advance, and a length: 0 = empty, else numbered and padded.
    Write {
        stderr: bool,
        partial: bool,
        tick: i64,
        len: usize,
    },
    /// A line over the limit, with a line of the other stream within it.
    WriteLong {
        stderr: bool,
    },
    /// The next record is written only as far as this many bytes before the reader has a look.
    WriteHalf {
        bytes: usize,
    },
    Rotate,
    /// Compresses the oldest log that is not.
    Compress,
    /// Removes the oldest.
    Remove,
    /// The reader reads on: so many steps of so many bytes.
    Read {
        steps: usize,
        bytes: usize,
    },
    /// The reader reads all there is.
    Drain,
    /// The reader is dropped, and another goes on behind its last position.
    Reopen,
    /// The log is cut to nothing, and the reader sees it.
    Truncate,
    /// Another reader reads the last lines, or those since some time ago, or all.
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

/// The writer, its directory, and what a reader should make of it.
struct World {
    _dir: tempfile::TempDir,
    log: LogFiles,
    now: i64,
    number: u64,
    produced: Vec<Produced>,
    /// All pieces, one for each record that is not empty.
    parts: Vec<Part>,
    /// The merged line that has begun, and its time.
    held: Option<(Produced, LogTime)>,
    /// Times of begun lines, by stream.
    begun: [Option<LogTime>; 2],
    /// Bytes of records that are not yet in the file.
    unwritten: Vec<u8>,
    /// Oldest first, the one being written last.
    files: Vec<Kept>,
    rotations: i64,
    /// Whether old files are removed. Then times do not go back over a rotation: a time that occurs again behind the file that
    /// is gone would be taken for the one that was in it.
    removes: bool,
    /// The newest time in a rotated file.
    rotated_at: i64,
    /// Whether a line was unfinished at the last rotation.
    held_over: bool,
    /// Whether files were removed or cut: then positions may be counted differently by others.
    disturbed: bool,
}

/// A file that is there.
struct Kept {
    path: PathBuf,
    /// Whether it ends within a line.
    torn: bool,
    /// Its inodes: before and after compression.
    inodes: Vec<u64>,
}

impl World {
    fn new(removes: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = LogFiles { dir: dir.path().to_owned(), restarts: 0 };
        let mut world = Self {
            _dir: dir,
            log,
            now: 1_000,
            number: 0,
            produced: Vec::new(),
            parts: Vec::new(),
            held: None,
            begun: [None, None],
            unwritten: Vec::new(),
            files: Vec::new(),
            rotations: 0,
            removes,
            rotated_at: 0,
            held_over: false,
            disturbed: false,
        };
        world.create();
        world
    }

    fn active(&self) -> PathBuf {
        self.log.dir.join("0.log")
    }

    fn create(&mut self) {
        let file = File::create_new(self.active()).unwrap();
        self.files.push(Kept {
            path: self.active(),
            torn: false,
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
        let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
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
        let (line, line_time) = self.held.get_or_insert((Produced { bytes: Vec::new() }, time));
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
            self.produced.extend(self.held.take().map(|(line, _)| line));
        }
    }

    /// Lines without end end.
    fn end_lines(&mut self) {
        self.begun = [None, None];
        if let (Some((line, time)), Some(last)) = (self.held.take(), self.parts.last_mut()) {
            self.produced.push(line);
            (last.after, last.ends) = (last.after.after_line(time), true);
        }
    }

    /// The position behind everything.
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
        self.held_over = self.held.is_some();
        let suffix = path::rotation_suffix(LogTime::from_nanos(self.rotations));
        self.rotated_at = self.now;
        let kept = self.files.last_mut().unwrap();
        kept.torn = self.held_over;
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

/// What a reader said.
#[derive(Clone, Debug)]
enum Heard {
    /// A line, and the position behind it.
    Line(Produced, Position),
    /// A line, or the rest of one of which pieces came before a gap.
    Rest(Produced),
    Gap,
}

/// Joins pieces.
#[derive(Default)]
struct Ear {
    heard: Vec<Heard>,
    parts: Vec<Part>,
    line: Vec<u8>,
    /// Whether pieces were heard before a gap, and nothing since.
    torn: bool,
    /// The position to go on from; none before anything was heard.
    last: Option<Position>,
}

impl Ear {
    fn hear(&mut self, items: Vec<TailItem>) {
        for item in items {
            let TailItem::Lines(batch) = item else {
                // A line of which pieces were heard has lost the rest, unless the gap was one that may be none.
                self.torn |= !self.line.is_empty();
                self.line.clear();
                self.heard.push(Heard::Gap);
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
                    let heard = Produced { bytes: std::mem::take(&mut self.line) };
                    self.heard.push(if std::mem::take(&mut self.torn) {
                        Heard::Rest(heard)
                    } else {
                        Heard::Line(heard, line.after)
                    });
                }
            }
        }
    }

    fn lines(&self) -> Vec<(Produced, Position)> {
        let line = |heard: &Heard| match heard {
            Heard::Line(line, at) => Some((line.clone(), *at)),
            Heard::Rest(_) | Heard::Gap => None,
        };
        self.heard.iter().filter_map(line).collect()
    }

    fn gaps(&self) -> usize {
        self.heard.iter().filter(|heard| matches!(heard, Heard::Gap)).count()
    }
}

fn seek(log: &LogFiles, from: ReadFrom) -> (LogReader, Position) {
    let mut seek = Seek::new(log.clone(), from, ReadLimit::Growing).unwrap();
    loop {
        match seek.step().unwrap() {
            SeekOutcome::Seeking(further) => seek = further,
            SeekOutcome::Found(walk, start) => return (walk, start),
        }
    }
}

fn drain(walk: &mut LogReader, ear: &mut Ear, until: ReadLimit) {
    while !walk.pull(until).unwrap() {
        ear.hear(walk.take(false));
    }
    ear.hear(walk.take(true));
}

/// The follower under test.
struct Follower {
    walk: LogReader,
    start: Position,
    ear: Ear,
    /// How many gaps there may be at most.
    gaps_allowed: usize,
}

impl Follower {
    /// Which of the files is being read.
    fn index(&self, world: &World) -> usize {
        // A stale inode of an older file may be in use again by a newer one.
        let inode = self.walk.inode();
        world
            .files
            .iter()
            .rposition(|kept| inode.is_none_or(|inode| kept.inodes.contains(&inode)))
            .unwrap_or(0)
    }

    fn read(&mut self, steps: usize, bytes: usize) {
        for _ in 0..steps {
            if matches!(self.walk.step(false, bytes).unwrap(), Step::Idle) {
                break;
            }
        }
        self.ear.hear(self.walk.take(false));
    }

    fn reopen(&mut self, world: &World) {
        let at = self.ear.last.unwrap_or(self.start);
        let (mut oldest, _) = seek(&world.log, ReadFrom::Start);
        let mut first = Ear::default();
        drain(&mut oldest, &mut first, ReadLimit::Growing);
        let tied = first.lines().first().is_some_and(|(_, end)| end.time == at.time);
        if world.files.len() > 1 && (tied || at.time == LogTime::MIN) {
            self.gaps_allowed += 1;
        }
        // Its line is gone, with the file that was removed or cut.
        let base = Position { offset: 0, ..at };
        let there = base == Position::START || first.lines().iter().any(|(_, end)| *end == base);
        self.gaps_allowed += usize::from(world.disturbed && !there);
        // Where times tie, another line may stand at its place, and end before its offset.
        self.gaps_allowed += usize::from(world.disturbed && tied && at.offset > 0);
        let (walk, start) = seek(&world.log, ReadFrom::After(at));
        self.walk = walk;
        // If the place is found nowhere, the reading goes on at the end, which may lie within a line.
        self.ear.torn |= start != at && start.offset > 0;
        if !world.disturbed {
            assert_eq!(start, at);
        }
    }
}

/// Delivered and gaps are what was produced, in order, without repeats.
fn check_oracle(produced: &[Produced], ear: &Ear) {
    let mut at: Vec<usize> = vec![0];
    for (index, heard) in ear.heard.iter().enumerate() {
        at = match heard {
            Heard::Gap => (at[0]..=produced.len()).collect(),
            Heard::Line(line, _) => {
                at.retain(|at| produced.get(*at) == Some(line));
                at.iter().map(|at| at + 1).collect()
            }
            Heard::Rest(line) => {
                at.retain(|at| produced.get(*at).is_some_and(|whole| whole.bytes.ends_with(&line.bytes)));
                at.iter().map(|at| at + 1).collect()
            }
        };
        assert!(!at.is_empty(), "at {index}: {heard:?}\nheard {:#?}\nproduced {produced:#?}", ear.heard);
    }
    let end = produced.len();
    assert!(at.contains(&end), "ends at {at:?} of {end}: heard {:#?}\nproduced {produced:#?}", ear.heard);
}

/// A reading from there on delivers the pieces from the one at `first` on.
fn check_reading(world: &World, from: ReadFrom, first: usize) {
    let (mut walk, start) = seek(&world.log, from);
    let mut ear = Ear::default();
    drain(&mut walk, &mut ear, ReadLimit::Growing);
    let mut expected = Vec::new();
    for part in &world.parts[first..] {
        join(&mut expected, part.clone());
    }
    assert_eq!(ear.parts, expected, "{from:?}");
    if first < world.parts.len() || !matches!(from, ReadFrom::Since(_)) {
        let before = first.checked_sub(1).map_or(Position::START, |index| world.parts[index].after);
        assert_eq!(start, before, "{from:?}");
    }
}

fn act(world: &mut World, follower: &mut Follower, action: Action) {
    if !matches!(action, Action::Read { .. } | Action::Drain | Action::WriteHalf { .. }) {
        world.flush();
    }
    match action {
        Action::Write { stderr, partial, tick, len } => {
            let tick = if world.removes { tick.max(world.rotated_at - world.now) } else { tick };
            world.now += tick;
            let content = world.content(len);
            world.record(stderr, partial, &content);
            world.now -= tick.min(0);
            world.flush();
        }
        Action::WriteLong { stderr } => {
            world.write_long(stderr);
            world.flush();
        }
        Action::WriteHalf { bytes } => {
            world.flush();
            let content = world.content(20);
            world.record(false, false, &content);
            let rest = world.unwritten.split_off(bytes.min(world.unwritten.len()));
            world.flush();
            world.unwritten = rest;
        }
        // Nobody rotates an empty file, and one could not be told from another.
        Action::Rotate if fs::metadata(world.active()).unwrap().len() == 0 => {}
        Action::Rotate => world.rotate(),
        Action::Compress => world.compress(),
        // Of a torn line the rest would be told as a line of its own, perhaps again.
        Action::Remove if world.removes && world.files.len() > 2 && !world.files[0].torn => {
            if follower.index(world) == 0 {
                follower.gaps_allowed += 1;
            }
            let kept = world.files.remove(0);
            fs::remove_file(kept.path).unwrap();
            world.disturbed = true;
        }
        Action::Remove => {}
        Action::Read { steps, bytes } => follower.read(steps, bytes),
        Action::Drain => drain(&mut follower.walk, &mut follower.ear, ReadLimit::Growing),
        Action::Reopen => follower.reopen(world),
        // A line of which only the end is cut off would be told again by its beginning.
        Action::Truncate if world.held_over => {}
        Action::Truncate => {
            drain(&mut follower.walk, &mut follower.ear, ReadLimit::Growing);
            let file = OpenOptions::new().write(true).open(world.active()).unwrap();
            if file.metadata().unwrap().len() > 0 {
                file.set_len(0).unwrap();
                drain(&mut follower.walk, &mut follower.ear, ReadLimit::Growing);
                world.end_lines();
                world.now += 10;
                world.disturbed = true;
                follower.gaps_allowed += 1;
            }
        }
        action if !world.disturbed => check_another(world, &action),
        _ => {}
    }
}

/// Another reader begins at some place, and reads what it should.
fn check_another(world: &World, action: &Action) {
    let (from, first) = match *action {
        Action::Last(0) => (ReadFrom::Last(0), world.parts.len()),
        Action::Last(lines) => {
            let before = world.produced.len().saturating_sub(usize::try_from(lines).unwrap());
            let mut ends = 0;
            let passed = world.parts.iter().take_while(|part| {
                let passes = ends < before;
                ends += usize::from(part.ends);
                passes
            });
            (ReadFrom::Last(lines), passed.count())
        }
        Action::Since(ago) => {
            let since = LogTime::from_nanos(world.now - ago);
            let first = world.parts.iter().position(|part| part.time >= since);
            (ReadFrom::Since(since), first.unwrap_or(world.parts.len()))
        }
        Action::AfterAny(index) if !world.parts.is_empty() => {
            let index = index.index(world.parts.len());
            (ReadFrom::After(world.parts[index].after), index + 1)
        }
        _ => (ReadFrom::Start, 0),
    };
    check_reading(world, from, first);
}

proptest! {
    #[test]
    fn tail_model(removes: bool, actions in prop::collection::vec(action(), 0..120)) {
        let mut world = World::new(removes);
        let (walk, start) = seek(&world.log, ReadFrom::Start);
        let mut follower = Follower { walk, start, ear: Ear::default(), gaps_allowed: 0 };
        for action in actions {
            act(&mut world, &mut follower, action);
        }
        world.flush();
        world.end_lines();
        drain(&mut follower.walk, &mut follower.ear, ReadLimit::End);
        check_oracle(&world.produced, &follower.ear);
        prop_assert!(follower.ear.gaps() <= follower.gaps_allowed, "{} > {}", follower.ear.gaps(), follower.gaps_allowed);
        if !world.disturbed {
            let mut expected = Vec::new();
            for part in world.parts {
                join(&mut expected, part);
            }
            if follower.ear.gaps() == 0 {
                prop_assert_eq!(follower.ear.parts, expected);
            }
        }
    }
}

#[test]
fn gap_causes_are_told_apart() {
    let mut world = World::new(true);
    let (mut walk, _) = seek(&world.log, ReadFrom::Start);
    for _ in 0..4 {
        world.now += 1;
        world.record(false, false, b"line");
        world.flush();
        world.rotate();
    }
    for _ in 0..3 {
        walk.step(false, 10).unwrap();
    }
    for kept in world.files.drain(..2) {
        fs::remove_file(kept.path).unwrap();
    }
    let mut gaps = Vec::new();
    while !walk.pull(ReadLimit::Growing).unwrap() {}
    for item in walk.take(true) {
        if let TailItem::Gap(gap) = item {
            gaps.push((gap.cause, gap.exact));
        }
    }
    assert_eq!(gaps, [(GapCause::Rotated, false)]);
}

/// What the follower heard since it was last asked, as text.
fn heard(walk: &mut LogReader) -> Vec<String> {
    let mut ear = Ear::default();
    drain(walk, &mut ear, ReadLimit::Growing);
    assert_eq!(ear.gaps(), 0);
    ear.lines().into_iter().map(|(line, _)| String::from_utf8(line.bytes).unwrap()).collect()
}

#[test]
fn what_is_written_between_the_end_and_the_look_for_the_next_file_is_read() {
    let mut world = World::new(true);
    let (mut walk, _) = seek(&world.log, ReadFrom::Start);
    assert_eq!(heard(&mut walk), [""; 0]);
    world.record(false, false, b"old");
    world.flush();
    world.rotate();
    world.record(false, false, b"new");
    world.flush();
    // The reader had read to the end before all this.
    walk.look_ahead().unwrap();
    assert_eq!(heard(&mut walk), ["old\n", "new\n"]);
}

#[test]
fn a_renamed_file_is_followed_until_the_next_is_begun() {
    let mut world = World::new(true);
    let (mut walk, _) = seek(&world.log, ReadFrom::Start);
    world.record(false, false, b"first");
    world.flush();
    world.rotate();
    assert_eq!(heard(&mut walk), ["first\n"]);
    for n in 0..3 {
        let content = n.to_string();
        world.record(false, false, content.as_bytes());
        let late = std::mem::take(&mut world.unwritten);
        OpenOptions::new().append(true).open(&world.files[0].path).unwrap().write_all(&late).unwrap();
        assert_eq!(heard(&mut walk), [format!("{n}\n")]);
    }
    world.record(false, false, b"next");
    world.flush();
    assert_eq!(heard(&mut walk), ["next\n"]);
}
