//! Reads of one log from different starts return suffixes of the whole, also with losses, garbage and
//! unfinished lines.

use proptest::prelude::*;

use super::*;
use crate::platform::cri::DroppedOutput;

/// Each case reads its log some hundred times.
const CASES: u32 = 64;

/// A part of a log.
#[derive(Clone, Debug)]
enum Part {
    Record {
        stderr: bool,
        partial: bool,
        /// Advance of the clock, in nanoseconds.
        tick: i64,
        len: usize,
    },
    /// An overlong line without its end.
    Long {
        stderr: bool,
    },
    Lost(u64),
    Garbage(usize),
    Rotation,
}

/// A line or gap that was read.
#[derive(Clone, Debug, PartialEq)]
enum Item {
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

/// Writes a log. Returns its number of files and its last time.
fn write(dir: &tempfile::TempDir, parts: &[Part]) -> (usize, i64) {
    let mut writer = Writer::new(dir.path());
    let (mut now, mut files, mut empty) = (1_000, 1, true);
    for part in parts {
        let mut out = Vec::new();
        let mut record = |now, stderr, partial, lost, content: &[u8]| {
            let stream = if stderr { OutputStream::Stderr } else { OutputStream::Stdout };
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

/// Reads a log of an ended run. Returns the start position and all items.
fn read(dir: &tempfile::TempDir, from: ReadFrom) -> (Position, Vec<Item>) {
    let mut seek = Seek::new(&log(dir), from, ReadLimit::End).unwrap();
    let (mut reader, start) = loop {
        match seek.step().unwrap() {
            SeekOutcome::Seeking(unfinished) => seek = unfinished,
            SeekOutcome::Found(reader, start) => break (reader, start),
        }
    };
    let mut items: Vec<Item> = Vec::new();
    let mut at_end = false;
    while !at_end {
        at_end = reader.read(ReadLimit::End).unwrap();
        for item in reader.batcher().take_items(at_end) {
            match item {
                TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
                    panic!("a file can be followed")
                }
                TailItem::Gap(gap) => items.push(Item::Gap(gap)),
                TailItem::Lines(batch) => {
                    let lines = batch.lines.iter().enumerate();
                    for (index, line) in lines {
                        add(&mut items, batch.bytes(index), *line);
                    }
                }
            }
        }
    }
    (start, items)
}

/// Adds a line, joined with its earlier pieces: where lines are cut depends on the read.
fn add(items: &mut Vec<Item>, bytes: &[u8], line: Line) {
    match items.last_mut() {
        Some(Item::Line(all, last)) if !last.ends && line.continues && last.stream == line.stream => {
            all.extend_from_slice(bytes);
            (last.after, last.ends) = (line.after, line.ends);
        }
        _ => items.push(Item::Line(bytes.to_vec(), Line { end: 0, ..line })),
    }
}

impl Item {
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

/// Whether `items` is a suffix of `all`. Its first gap may be the rest of one that began in an earlier file.
fn is_suffix(all: &[Item], items: &[Item]) -> bool {
    let Some(first) = all.len().checked_sub(items.len()) else { return false };
    match (&all[first..], items) {
        ([Item::Gap(whole), rest @ ..], [Item::Gap(part), items @ ..]) => {
            let (lines, bytes) = (part.lines.min(whole.lines), part.bytes.min(whole.bytes));
            SourceGap { lines, bytes, ..*whole } == *part && rest == items
        }
        (rest, items) => rest == items,
    }
}

/// Checks that a read after a position returns the rest of the whole. In a rotated log a gap may come first.
fn check_after(dir: &tempfile::TempDir, files: usize, at: Position, expected: &[Item]) {
    let (start, mut items) = read(dir, ReadFrom::After(at));
    assert_eq!(start, at);
    if files > 1 && matches!(items.first(), Some(Item::Gap(gap)) if gap.cause == GapCause::Rotated) {
        items.remove(0);
    }
    assert_eq!(items, expected, "{at:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(CASES))]

    #[test]
    fn every_read_is_suffix_of_whole(parts in prop::collection::vec(part(), 0..40)) {
        let dir = tempfile::tempdir().unwrap();
        let (files, now) = write(&dir, &parts);
        let (start, all) = read(&dir, ReadFrom::Start);
        prop_assert_eq!(start, Position::START);
        let mut before = start;
        for (index, item) in all.iter().enumerate() {
            let (at, rest) = (item.after(), &all[index + 1..]);
            prop_assert!(at >= before, "{:?} after {:?}", at, before);
            // Other gaps have no own position.
            if at > before {
                check_after(&dir, files, at, rest);
            }
            if let Item::Line(bytes, line) = item && bytes.len() > 2 {
                let mut rest = rest.to_vec();
                rest.insert(0, Item::Line(bytes[2..].to_vec(), Line { continues: true, ..*line }));
                check_after(&dir, files, before.after_bytes(2), &rest);
            }
            before = at;
        }
        let ends = |items: &[Item]| items.iter().filter_map(Item::line).filter(|line| line.ends).count();
        for count in [1, 2, 5, 1_000] {
            let (_, items) = read(&dir, ReadFrom::Last(count as u64));
            prop_assert_eq!(ends(&items), count.min(ends(&all)));
            prop_assert!(is_suffix(&all, &items), "the last {}: {:?} of {:?}", count, items, all);
        }
        if parts.iter().any(|part| matches!(part, Part::Record { tick: ..0, .. })) {
            return Ok(());
        }
        for ago in -1..4 {
            let since = LogTime::from_nanos(now - ago);
            let (_, items) = read(&dir, ReadFrom::Since(since));
            let lines = |from: &[Item]| from.iter().filter_map(Item::line).copied().collect::<Vec<_>>();
            let first = all.iter().position(|item| item.line().is_some_and(|line| line.time >= since));
            prop_assert_eq!(lines(&items), lines(&all[first.unwrap_or(all.len())..]), "since {:?}", since);
        }
    }
}
