//! Readings of one log that begin at different places are parts of the whole one, also where lines were lost, are no records, or do
//! not end.

use proptest::prelude::*;

use super::*;
use crate::platform::cri::DroppedOutput;

/// Each reads its log some hundred times.
const CASES: u32 = 64;

/// What a file is made of.
#[derive(Clone, Debug)]
enum Part {
    Record {
        stderr: bool,
        partial: bool,
        /// The clock's advance.
        tick: i64,
        len: usize,
    },
    /// A line over the limit, without its end.
    Long {
        stderr: bool,
    },
    Lost(u64),
    Garbage(usize),
    Rotation,
}

/// What a reading delivers.
#[derive(Clone, Debug, PartialEq)]
enum Heard {
    Line(Vec<u8>, Line),
    Gap(SourceGap),
}

fn part() -> impl Strategy<Value = Part> {
    let tick = prop_oneof![30 => 0..3_i64, 1 => Just(-2)];
    prop_oneof![
        12 => (any::<bool>(), prop::bool::weighted(0.4), tick, 0..30_usize)
            .prop_map(|(stderr, partial, tick, len)| Part::Record { stderr, partial, tick, len }),
        1 => any::<bool>().prop_map(|stderr| Part::Long { stderr }),
        2 => (0..5_u64).prop_map(Part::Lost),
        2 => (0..20_usize).prop_map(Part::Garbage),
        2 => Just(Part::Rotation),
    ]
}

/// Writes a log; tells how many files it has, and the last time in it.
fn write(dir: &tempfile::TempDir, parts: &[Part]) -> (usize, i64) {
    let mut writer = Writer::new(dir.path());
    let (mut now, mut files, mut empty) = (1_000, 1, true);
    for part in parts {
        let mut out = Vec::new();
        let mut record = |now, stderr, partial, lost, content: &[u8]| {
            let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
            cri::write(&mut out, &Record { time: LogTime::from_nanos(now), stream, partial, lost, content });
        };
        match *part {
            Part::Record { stderr, partial, tick, len } => {
                now += tick;
                record(now, stderr, partial, None, &vec![b'x'; len]);
            }
            Part::Long { stderr } => {
                for _ in 0..3 {
                    record(now, stderr, true, None, &vec![b'l'; LINE_HELD_MAX_BYTES / 2]);
                }
            }
            Part::Lost(lines) => {
                record(
                    now,
                    true,
                    false,
                    Some(DroppedOutput { lines, bytes: 3 * lines, exact: true }),
                    b"lost",
                );
            }
            Part::Garbage(len) => {
                out = vec![b'g'; len];
                out.push(b'\n');
            }
            Part::Rotation if !empty => {
                writer.rotate();
                files += 1;
                empty = true;
            }
            Part::Rotation => {}
        }
        empty &= out.is_empty();
        writer.raw(out);
    }
    (files, now)
}

/// All that a reading of a run that has ended delivers, and where it begins.
fn read(dir: &tempfile::TempDir, from: ReadFrom) -> (Position, Vec<Heard>) {
    let mut seek = Seek::new(log(dir), from, ReadLimit::End).unwrap();
    let (mut walk, start) = loop {
        match seek.step().unwrap() {
            SeekOutcome::Seeking(further) => seek = further,
            SeekOutcome::Found(walk, start) => break (walk, start),
        }
    };
    let mut heard: Vec<Heard> = Vec::new();
    let mut is_over = false;
    while !is_over {
        is_over = walk.pull(ReadLimit::End).unwrap();
        for item in walk.take(is_over) {
            match item {
                TailItem::FollowUnavailable => panic!("a file can be followed"),
                TailItem::Gap(gap) => heard.push(Heard::Gap(gap)),
                TailItem::Lines(batch) => {
                    let lines = batch.lines.iter().enumerate();
                    for (index, line) in lines {
                        add(&mut heard, batch.bytes(index), *line);
                    }
                }
            }
        }
    }
    (start, heard)
}

/// Where lines are cut, and where they lie in a batch, is the reading's own affair.
fn add(heard: &mut Vec<Heard>, bytes: &[u8], line: Line) {
    match heard.last_mut() {
        Some(Heard::Line(all, last)) if !last.ends && line.continues && last.stream == line.stream => {
            all.extend_from_slice(bytes);
            (last.after, last.ends) = (line.after, line.ends);
        }
        _ => heard.push(Heard::Line(bytes.to_vec(), Line { end: 0, ..line })),
    }
}

impl Heard {
    fn after(&self) -> Position {
        match self {
            Self::Line(_, line) => line.after,
            Self::Gap(gap) => gap.after,
        }
    }

    fn line(&self) -> Option<&Line> {
        match self {
            Self::Line(_, line) => Some(line),
            Self::Gap(_) => None,
        }
    }
}

/// Whether it is what the whole ends with. A gap that it begins with may be the rest of one that began in an earlier file.
fn is_end_of(all: &[Heard], heard: &[Heard]) -> bool {
    let Some(first) = all.len().checked_sub(heard.len()) else { return false };
    match (&all[first..], heard) {
        ([Heard::Gap(whole), rest @ ..], [Heard::Gap(part), heard @ ..]) => {
            let (lines, bytes) = (part.lines.min(whole.lines), part.bytes.min(whole.bytes));
            SourceGap { lines, bytes, ..*whole } == *part && rest == heard
        }
        (rest, heard) => rest == heard,
    }
}

/// Behind a position the same comes as in the whole reading. In a log that has been rotated it may be that the first line is gone.
fn check_after(dir: &tempfile::TempDir, files: usize, at: Position, expected: &[Heard]) {
    let (start, mut heard) = read(dir, ReadFrom::After(at));
    assert_eq!(start, at);
    if files > 1 && matches!(heard.first(), Some(Heard::Gap(gap)) if gap.cause == GapCause::Rotated) {
        heard.remove(0);
    }
    assert_eq!(heard, expected, "{at:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn every_reading_is_a_part_of_the_whole(parts in prop::collection::vec(part(), 0..40)) {
        let dir = tempfile::tempdir().unwrap();
        let (files, now) = write(&dir, &parts);
        let (start, all) = read(&dir, ReadFrom::Start);
        prop_assert_eq!(start, Position::START);
        let mut before = start;
        for (index, heard) in all.iter().enumerate() {
            let (at, rest) = (heard.after(), &all[index + 1..]);
            prop_assert!(at >= before, "{:?} behind {:?}", at, before);
            // Other gaps have no position of their own.
            if at > before {
                check_after(&dir, files, at, rest);
            }
            if let Heard::Line(bytes, line) = heard && bytes.len() > 2 {
                let mut rest = rest.to_vec();
                rest.insert(0, Heard::Line(bytes[2..].to_vec(), Line { continues: true, ..*line }));
                check_after(&dir, files, before.after_bytes(2), &rest);
            }
            before = at;
        }
        let ends = |heard: &[Heard]| heard.iter().filter_map(Heard::line).filter(|line| line.ends).count();
        for count in [1, 2, 5, 1_000] {
            let (_, heard) = read(&dir, ReadFrom::Last(count as u64));
            prop_assert_eq!(ends(&heard), count.min(ends(&all)));
            prop_assert!(is_end_of(&all, &heard), "the last {}: {:?} of {:?}", count, heard, all);
        }
        if parts.iter().any(|part| matches!(part, Part::Record { tick: ..0, .. })) {
            return Ok(());
        }
        for ago in -1..4 {
            let since = LogTime::from_nanos(now - ago);
            let (_, heard) = read(&dir, ReadFrom::Since(since));
            let lines = |from: &[Heard]| from.iter().filter_map(Heard::line).copied().collect::<Vec<_>>();
            let first = all.iter().position(|heard| heard.line().is_some_and(|line| line.time >= since));
            prop_assert_eq!(lines(&heard), lines(&all[first.unwrap_or(all.len())..]), "since {:?}", since);
        }
    }
}
