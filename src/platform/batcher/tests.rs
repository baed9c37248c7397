//! Delivery from various starts.

use super::*;

impl LineBatcher {
    /// Adds a complete line, given without its newline.
    fn line(&mut self, content: &[u8], time: LogTime) {
        self.record(content, false, time, Piece { time, continues: false, stream: None });
    }
}

/// Feeds lines of five bytes with these times. Returns the delivered texts with positions, and the number of
/// gaps.
fn run(filter: StartFilter, times: &[i64]) -> (Vec<(String, Position)>, usize, LineBatcher) {
    let mut batcher = LineBatcher::new(Position::START, 0, filter);
    for (index, time) in times.iter().enumerate() {
        batcher.line(format!("{index:04}").as_bytes(), LogTime::from_nanos(*time));
    }
    let mut out = Vec::new();
    let mut gaps = 0;
    for item in batcher.take_items(true) {
        match item {
            TailItem::Lines(batch) => out.extend((0..batch.lines.len()).map(|index| {
                let text = String::from_utf8(batch.bytes(index).to_vec()).unwrap();
                (text, batch.lines[index].after)
            })),
            TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed => {
                panic!("made by no batcher")
            }
            TailItem::Gap(gap) => {
                // A gap precedes the next line.
                assert_eq!(Some(gap.after), batcher.start());
                gaps += 1;
            }
        }
    }
    (out, gaps, batcher)
}

const TIMES: [i64; 9] = [5, 5, 6, 4, 6, 6, 7, 7, 9];

#[test]
fn read_after_any_position_returns_same_rest() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    for (index, (_, at)) in all.iter().enumerate() {
        let (rest, gaps, batcher) = run(StartFilter::After(*at), &TIMES);
        assert_eq!((rest.as_slice(), gaps), (&all[index + 1..], 0));
        assert_eq!((batcher.start(), batcher.resume_missed()), (Some(*at), false));
        let (counted, _, batcher) = run(StartFilter::Lines(index as u64 + 1), &TIMES);
        assert_eq!((counted.as_slice(), batcher.start()), (&all[index + 1..], Some(*at)));
    }
}

#[test]
fn read_from_within_line_returns_its_rest() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    let (rest, _, batcher) = run(StartFilter::After(all[2].1.after_bytes(3)), &TIMES);
    assert_eq!(batcher.start(), Some(all[2].1.after_bytes(3)));
    assert_eq!(rest[0], ("3\n".to_owned(), all[3].1));
}

#[test]
fn offset_beyond_shorter_or_lost_line_is_gap() {
    let at = |nanos| LogTime::from_nanos(nanos);
    let base = Position::START.after_line(at(1));
    for (offset, is_lost) in [(5, false), (usize::MAX, false), (1, true), (usize::MAX, true)] {
        let from = base.after_bytes(offset);
        let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::After(from));
        batcher.line(b"0000", at(1));
        let lost = DroppedOutput { lines: 1, bytes: 5, exact: true };
        if is_lost {
            batcher.dropped_output(lost, at(2));
        } else {
            batcher.line(b"1111", at(2));
        }
        batcher.line(b"2222", at(3));
        assert_eq!(batcher.start(), Some(from));
        let after = base.after_line(at(2));
        let [TailItem::Gap(gap), TailItem::Lines(batch)] = &batcher.take_items(true)[..] else {
            panic!("{offset}")
        };
        let unknown = SourceGap { after, ..unknown_gap(GapCause::Rotated) };
        let exact = SourceGap { lines: 1, bytes: 5, exact: true, after, ..unknown_gap(GapCause::Source) };
        assert_eq!(*gap, if is_lost { exact } else { unknown });
        assert_eq!((&batch.data[..], batch.lines[0].after), (&b"2222\n"[..], after.after_line(at(3))));
    }
}

#[test]
fn missing_position_is_gap() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    let at = Position { time: LogTime::from_nanos(5), ordinal: 3, offset: 0 };
    let (rest, gaps, batcher) = run(StartFilter::After(at), &TIMES);
    assert_eq!((rest.as_slice(), gaps), (&all[2..], 1));
    assert!(batcher.resume_missed());
    let (rest, gaps, batcher) =
        run(StartFilter::After(Position { time: LogTime::from_nanos(10), ..at }), &TIMES);
    assert_eq!((rest.len(), gaps, batcher.start()), (0, 0, None));
}

#[test]
fn first_line_after_missing_position_is_whole() {
    let at = |nanos| LogTime::from_nanos(nanos);
    let missing = Position { time: at(5), ordinal: 1, offset: 0 };
    for missing in [missing, missing.after_bytes(1)] {
        let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::After(missing));
        batcher.piece(b"old ", at(4), false);
        batcher.piece(b"line\n", at(4), true);
        let before = batcher.at();
        batcher.piece(b"new ", at(6), false);
        batcher.piece(b"line\n", at(6), true);
        assert_eq!(batcher.start(), Some(before));
        let [TailItem::Gap(_), TailItem::Lines(batch)] = &batcher.take_items(true)[..] else { panic!() };
        assert_eq!(&batch.data[..], b"new line\n");
    }
}

#[test]
fn start_at_end_has_gaps_after_the_last_line() {
    let garbage = SourceGap { lines: 1, bytes: 7, ..unknown_gap(GapCause::Source) };
    let lost = DroppedOutput { lines: 3, bytes: 40, exact: true };
    for (then_lost, then_line) in [(false, false), (true, false), (false, true)] {
        let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::Nothing);
        batcher.gap(garbage);
        batcher.line(b"a", LogTime::from_nanos(4));
        batcher.gap(garbage);
        if then_lost {
            batcher.dropped_output(lost, LogTime::from_nanos(5));
        }
        if then_line {
            batcher.line(b"b", LogTime::from_nanos(5));
        }
        batcher.begin_here();
        let after = batcher.at();
        let expected = [TailItem::Gap(SourceGap { after, ..garbage })];
        assert_eq!(batcher.take_items(true), if then_lost || then_line { &[][..] } else { &expected });
    }
}

#[test]
fn since_starts_at_first_line_not_older() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    for (since, index) in [(0, 0), (5, 0), (6, 2), (7, 6), (8, 8)] {
        let (rest, gaps, _) = run(StartFilter::Since(LogTime::from_nanos(since)), &TIMES);
        assert_eq!((rest.as_slice(), gaps), (&all[index..], 0), "{since}");
    }
}

#[test]
fn gaps_since_requested_time_are_returned() {
    let lost = SourceGap { lines: 3, bytes: 40, exact: true, ..unknown_gap(GapCause::Source) };
    let garbage = SourceGap { lines: 1, bytes: 7, ..unknown_gap(GapCause::Source) };
    for (since, expected) in [
        (4, vec![lost, garbage]),
        (5, vec![lost, garbage]),
        (6, vec![lost, garbage]),
        // The loss was recorded at 6.
        (7, vec![garbage]),
        (8, vec![garbage]),
        (9, vec![]),
    ] {
        let mut batcher =
            LineBatcher::new(Position::START, 0, StartFilter::Since(LogTime::from_nanos(since)));
        batcher.line(b"a", LogTime::from_nanos(4));
        batcher.dropped_output(DroppedOutput { lines: 3, bytes: 40, exact: true }, LogTime::from_nanos(6));
        batcher.gap(garbage);
        assert!(since <= 6 || batcher.take_items(true).is_empty());
        batcher.line(b"b", LogTime::from_nanos(8));
        batcher.line(b"c", LogTime::from_nanos(9));
        let gaps: Vec<_> = batcher
            .take_items(true)
            .into_iter()
            .filter_map(|item| match item {
                TailItem::Gap(gap) => Some(SourceGap { after: Position::START, ..gap }),
                TailItem::Lines(_)
                | TailItem::FollowUnavailable
                | TailItem::Interrupted(_)
                | TailItem::Resumed => None,
            })
            .collect();
        assert_eq!(gaps, expected, "since {since}");
    }
}

#[test]
fn overlong_line_comes_in_bounded_pieces() {
    let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::All);
    batcher.line(&vec![b'x'; 2 * LINE_HELD_MAX_BYTES], LogTime::from_nanos(1));
    let mut ends = Vec::new();
    for item in batcher.take_items(true) {
        let TailItem::Lines(batch) = item else { panic!("{item:?}") };
        assert!(batch.data.len() <= READ_MAX_BYTES + LINE_HELD_MAX_BYTES);
        for (index, line) in batch.lines.iter().enumerate() {
            ends.push((batch.bytes(index).len(), line.ends, line.after.offset));
        }
    }
    let max = LINE_HELD_MAX_BYTES;
    assert_eq!(ends, [(max, false, max as u64), (max, false, 2 * max as u64), (1, true, 0)]);
}

#[test]
fn adjacent_gaps_of_one_kind_are_merged() {
    let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::All);
    let garbage = SourceGap { lines: 1, bytes: 7, ..unknown_gap(GapCause::Source) };
    batcher.gap(garbage);
    assert_eq!(batcher.take_items(false), []);
    batcher.gap(garbage);
    batcher.gap(unknown_gap(GapCause::Rotated));
    let both = SourceGap { lines: 2, bytes: 14, ..garbage };
    assert_eq!(
        batcher.take_items(true),
        [TailItem::Gap(both), TailItem::Gap(unknown_gap(GapCause::Rotated))]
    );
}
