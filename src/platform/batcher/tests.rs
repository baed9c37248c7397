//! Lines of which some are not wanted.

use super::*;

/// Lines of five bytes with these times; the texts and positions that come out, and the gaps among them.
fn run(filter: StartFilter, times: &[i64]) -> (Vec<(String, Position)>, usize, LineBatcher) {
    let mut emitter = LineBatcher::new(Position::START, 0, filter);
    for (index, time) in times.iter().enumerate() {
        emitter.line(format!("{index:04}").as_bytes(), LogTime::from_nanos(*time));
    }
    let mut out = Vec::new();
    let mut gaps = 0;
    for item in emitter.take(true) {
        match item {
            TailItem::Lines(batch) => out.extend((0..batch.lines.len()).map(|index| {
                let text = String::from_utf8(batch.bytes(index).to_vec()).unwrap();
                (text, batch.lines[index].after)
            })),
            TailItem::FollowUnavailable => panic!("of no emitter"),
            TailItem::Gap(gap) => {
                // A gap lies before what comes next, not behind it.
                assert_eq!(Some(gap.after), emitter.start());
                gaps += 1;
            }
        }
    }
    (out, gaps, emitter)
}

const TIMES: [i64; 9] = [5, 5, 6, 4, 6, 6, 7, 7, 9];

#[test]
fn after_any_position_come_the_same_lines_with_the_same_positions() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    for (index, (_, at)) in all.iter().enumerate() {
        let (rest, gaps, emitter) = run(StartFilter::After(*at), &TIMES);
        assert_eq!((rest.as_slice(), gaps), (&all[index + 1..], 0));
        assert_eq!((emitter.start(), emitter.is_inexact()), (Some(*at), false));
        let (counted, _, emitter) = run(StartFilter::Lines(index as u64 + 1), &TIMES);
        assert_eq!((counted.as_slice(), emitter.start()), (&all[index + 1..], Some(*at)));
    }
}

#[test]
fn within_a_line_its_rest_comes() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    let (rest, _, emitter) = run(StartFilter::After(all[2].1.after_bytes(3)), &TIMES);
    assert_eq!(emitter.start(), Some(all[2].1.after_bytes(3)));
    assert_eq!(rest[0], ("3\n".to_owned(), all[3].1));
}

#[test]
fn a_position_within_a_line_that_is_shorter_or_not_there_is_a_gap() {
    let at = |nanos| LogTime::from_nanos(nanos);
    let base = Position::START.after_line(at(1));
    for (offset, is_lost) in [(5, false), (usize::MAX, false), (1, true), (usize::MAX, true)] {
        let from = base.after_bytes(offset);
        let mut emitter = LineBatcher::new(Position::START, 0, StartFilter::After(from));
        emitter.line(b"0000", at(1));
        let lost = DroppedOutput { lines: 1, bytes: 5, exact: true };
        if is_lost {
            emitter.lost(lost, at(2));
        } else {
            emitter.line(b"1111", at(2));
        }
        emitter.line(b"2222", at(3));
        assert_eq!(emitter.start(), Some(from));
        let after = base.after_line(at(2));
        let [TailItem::Gap(gap), TailItem::Lines(batch)] = &emitter.take(true)[..] else {
            panic!("{offset}")
        };
        let unknown = SourceGap { after, ..unknown_gap(GapCause::Rotated) };
        let exact = SourceGap { lines: 1, bytes: 5, exact: true, after, ..unknown_gap(GapCause::Source) };
        assert_eq!(*gap, if is_lost { exact } else { unknown });
        assert_eq!((&batch.data[..], batch.lines[0].after), (&b"2222\n"[..], after.after_line(at(3))));
    }
}

#[test]
fn a_position_that_is_not_there_is_a_gap() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    let at = Position { time: LogTime::from_nanos(5), ordinal: 3, offset: 0 };
    let (rest, gaps, emitter) = run(StartFilter::After(at), &TIMES);
    assert_eq!((rest.as_slice(), gaps), (&all[2..], 1));
    assert!(emitter.is_inexact());
    let (rest, gaps, emitter) =
        run(StartFilter::After(Position { time: LogTime::from_nanos(10), ..at }), &TIMES);
    assert_eq!((rest.len(), gaps, emitter.start()), (0, 0, None));
}

#[test]
fn since_is_the_first_line_not_older() {
    let (all, _, _) = run(StartFilter::All, &TIMES);
    for (since, index) in [(0, 0), (5, 0), (6, 2), (7, 6), (8, 8)] {
        let (rest, gaps, _) = run(StartFilter::Since(LogTime::from_nanos(since)), &TIMES);
        assert_eq!((rest.as_slice(), gaps), (&all[index..], 0), "{since}");
    }
}

#[test]
fn what_is_missing_since_then_is_told() {
    let lost = SourceGap { lines: 3, bytes: 40, exact: true, ..unknown_gap(GapCause::Source) };
    let garbage = SourceGap { lines: 1, bytes: 7, ..unknown_gap(GapCause::Source) };
    for (since, expected) in [
        (4, vec![lost, garbage]),
        (5, vec![lost, garbage]),
        (6, vec![lost, garbage]),
        // Whatever was lost was lost before the sixth.
        (7, vec![garbage]),
        (8, vec![garbage]),
        (9, vec![]),
    ] {
        let mut emitter =
            LineBatcher::new(Position::START, 0, StartFilter::Since(LogTime::from_nanos(since)));
        emitter.line(b"a", LogTime::from_nanos(4));
        emitter.lost(DroppedOutput { lines: 3, bytes: 40, exact: true }, LogTime::from_nanos(6));
        emitter.gap(garbage);
        assert!(since <= 6 || emitter.take(true).is_empty());
        emitter.line(b"b", LogTime::from_nanos(8));
        emitter.line(b"c", LogTime::from_nanos(9));
        let gaps: Vec<_> = emitter
            .take(true)
            .into_iter()
            .filter_map(|item| match item {
                TailItem::Gap(gap) => Some(SourceGap { after: Position::START, ..gap }),
                TailItem::Lines(_) | TailItem::FollowUnavailable => None,
            })
            .collect();
        assert_eq!(gaps, expected, "since {since}");
    }
}

#[test]
fn a_line_over_the_limit_comes_in_pieces_within_it() {
    let mut emitter = LineBatcher::new(Position::START, 0, StartFilter::All);
    emitter.line(&vec![b'x'; 2 * LINE_HELD_MAX_BYTES], LogTime::from_nanos(1));
    let mut ends = Vec::new();
    for item in emitter.take(true) {
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
fn adjacent_gaps_of_a_kind_are_one() {
    let mut emitter = LineBatcher::new(Position::START, 0, StartFilter::All);
    let garbage = SourceGap { lines: 1, bytes: 7, ..unknown_gap(GapCause::Source) };
    emitter.gap(garbage);
    assert_eq!(emitter.take(false), []);
    emitter.gap(garbage);
    emitter.gap(unknown_gap(GapCause::Rotated));
    let both = SourceGap { lines: 2, bytes: 14, ..garbage };
    assert_eq!(emitter.take(true), [TailItem::Gap(both), TailItem::Gap(unknown_gap(GapCause::Rotated))]);
}
