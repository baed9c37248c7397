//! Lines → what a tail hands out: counts positions, leaves out what lies before the place where the reading begins, and lays
//! lines into batches. Pure.
//!
//! Every line passes through here from the scan's first one on, delivered or not: so positions do not depend on where the
//! delivery begins.

use bytes::Bytes;

use crate::model::limits::{LINE_HELD_MAX_BYTES, READ_MAX_BYTES};
use crate::model::line::{GapCause, Line, LineBatch, SourceGap};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::TailItem;
use crate::platform::cri::Lost;

/// Where the delivery begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::platform) enum Filter {
    /// Everything is delivered.
    All,
    /// Nothing is.
    Nothing,
    /// All but the next so many lines.
    Lines(u64),
    /// From the first line on that is not older.
    Since(LogTime),
    /// From behind this position on.
    After(Position),
    /// All but the first so many bytes of the next line.
    Bytes(u64),
}

/// Collects what is delivered.
#[derive(Debug)]
pub(in crate::platform) struct Emitter {
    /// The position behind the last line or piece, delivered or not.
    at: Position,
    /// Whole lines so far, delivered or not.
    lines: u64,
    /// The time of the first line.
    first: Option<LogTime>,
    filter: Filter,
    /// The position where the delivery begins, once that is known.
    start: Option<Position>,
    /// Whether the delivery begins at a place that may lie behind missing lines.
    inexact: bool,
    items: Vec<TailItem>,
    data: Vec<u8>,
    batch: Vec<Line>,
    /// A gap that may still grow.
    gap: Option<SourceGap>,
    /// How many bytes of log the next batch is made of.
    expected_bytes: usize,
}

/// A gap of which nothing is known; where it lies is for the emitter to say.
pub(in crate::platform) const fn unknown_gap(cause: GapCause) -> SourceGap {
    SourceGap { cause, lines: 0, bytes: 0, exact: false, after: Position::START }
}

// === impl Emitter ===

impl Emitter {
    /// Goes on behind `lines` lines, at the position `at`.
    pub(in crate::platform) fn new(at: Position, lines: u64, filter: Filter) -> Self {
        let mut emitter = Self {
            at,
            lines,
            first: None,
            filter,
            start: None,
            inexact: false,
            items: Vec::new(),
            data: Vec::new(),
            batch: Vec::new(),
            gap: None,
            expected_bytes: 0,
        };
        match filter {
            Filter::All | Filter::Lines(0) => emitter.begin(at),
            Filter::After(to) => emitter.meet(to),
            _ => {}
        }
        emitter
    }

    /// The position behind the last line or piece, delivered or not.
    pub(in crate::platform) fn at(&self) -> Position {
        self.at
    }

    /// Whole lines so far, delivered or not.
    pub(in crate::platform) fn lines(&self) -> u64 {
        self.lines
    }

    /// The time of the first line that was seen.
    pub(in crate::platform) fn first(&self) -> Option<LogTime> {
        self.first
    }

    /// The position where the delivery begins, once that is known.
    pub(in crate::platform) fn start(&self) -> Option<Position> {
        self.start
    }

    /// Whether the position to go on behind was not found, and the delivery begins behind where it would lie.
    pub(in crate::platform) fn is_inexact(&self) -> bool {
        self.inexact
    }

    /// Delivers everything from here on.
    pub(in crate::platform) fn begin_here(&mut self) {
        self.begin(self.at);
    }

    /// Puts a gap before everything.
    pub(in crate::platform) fn gap_first(&mut self, gap: SourceGap) {
        let gap = SourceGap { after: self.start.unwrap_or(self.at), ..gap };
        self.items.insert(0, TailItem::Gap(gap));
    }

    /// What comes next is made of `bytes` of log.
    pub(in crate::platform) fn expect(&mut self, bytes: usize) {
        self.expected_bytes = bytes;
    }

    /// A whole line, without its newline.
    #[inline]
    pub(in crate::platform) fn line(&mut self, content: &[u8], time: LogTime) {
        self.emit(content, true, time, true);
    }

    /// A piece of a line, its newline included if it has one. `ends` with the last one.
    pub(in crate::platform) fn piece(&mut self, piece: &[u8], time: LogTime, ends: bool) {
        self.emit(piece, false, time, ends);
    }

    /// The log has a record that lines are missing here. It takes a position as a line does, so that whoever goes on behind it is
    /// not told again.
    pub(in crate::platform) fn lost(&mut self, lost: Lost, time: LogTime) {
        let before = self.at;
        self.at = before.after_line(time);
        if let Filter::After(to) = self.filter {
            if self.at < to || self.is_base_of(to) {
                self.meet(to);
                return;
            }
            self.inexact = true;
            self.begin(before);
            self.gap_at(before, unknown_gap(GapCause::Rotated));
        }
        let Lost { lines, bytes } = lost;
        self.gap(SourceGap { lines, bytes, exact: true, ..unknown_gap(GapCause::Source) });
    }

    /// Lines are missing here.
    pub(in crate::platform) fn gap(&mut self, gap: SourceGap) {
        self.gap_at(self.at, gap);
    }

    fn gap_at(&mut self, after: Position, gap: SourceGap) {
        if self.filter != Filter::All {
            return;
        }
        let gap = SourceGap { after, ..gap };
        self.cut_batch();
        match &mut self.gap {
            Some(last) if last.cause == gap.cause && last.exact == gap.exact => {
                last.lines = last.lines.saturating_add(gap.lines);
                last.bytes = last.bytes.saturating_add(gap.bytes);
                last.after = gap.after;
            }
            _ => {
                self.cut_gap();
                self.gap = Some(gap);
            }
        }
    }

    /// What there is to deliver. At a `rest` nothing is held back; otherwise a gap that may still grow is.
    pub(in crate::platform) fn take(&mut self, rest: bool) -> Vec<TailItem> {
        self.cut_batch();
        if rest {
            self.cut_gap();
        }
        std::mem::take(&mut self.items)
    }

    fn emit(&mut self, mut content: &[u8], newline: bool, time: LogTime, ends: bool) {
        while content.len() + usize::from(newline) > LINE_HELD_MAX_BYTES {
            let (head, rest) = content.split_at(LINE_HELD_MAX_BYTES);
            self.emit_one(head, false, time, false);
            content = rest;
        }
        self.emit_one(content, newline, time, ends);
    }

    fn emit_one(&mut self, content: &[u8], newline: bool, time: LogTime, ends: bool) {
        let len = content.len() + usize::from(newline);
        let before = self.at;
        self.at = if ends {
            self.lines += 1;
            before.after_line(time)
        } else {
            before.after_bytes(len)
        };
        self.first.get_or_insert(time);
        let mut from = 0;
        if self.filter != Filter::All {
            match self.admit(before, len, time, ends) {
                Some(skipped) => from = skipped,
                None => return,
            }
        }
        self.cut_gap();
        if self.data.len() >= READ_MAX_BYTES {
            self.cut_batch();
        }
        if self.data.capacity() == 0 {
            self.data.reserve(self.expected_bytes.max(len));
        }
        self.data.extend_from_slice(content.get(from..).unwrap_or_default());
        if newline {
            self.data.push(b'\n');
        }
        self.batch.push(Line { end: self.data.len(), time, after: self.at, ends });
    }

    /// Whether a piece between `before` and here is delivered, and but for how many bytes.
    fn admit(&mut self, before: Position, len: usize, time: LogTime, ends: bool) -> Option<usize> {
        match self.filter {
            Filter::All => Some(0),
            Filter::Nothing => None,
            Filter::Lines(left) => {
                if ends {
                    self.filter = Filter::Lines(left - 1);
                    if left == 1 {
                        self.begin(self.at);
                    }
                }
                None
            }
            Filter::Since(since) => {
                (time >= since).then(|| self.begin(before))?;
                Some(0)
            }
            Filter::After(to) => {
                if self.at < to || self.is_base_of(to) {
                    self.meet(to);
                    return None;
                }
                self.inexact = true;
                self.begin(before);
                self.gap_at(before, unknown_gap(GapCause::Rotated));
                Some(0)
            }
            Filter::Bytes(skipped) => {
                let skip = usize::try_from(skipped.saturating_sub(before.offset)).unwrap_or(usize::MAX);
                if ends || skip < len {
                    self.filter = Filter::All;
                }
                (skip < len).then_some(skip)
            }
        }
    }

    /// Begins the delivery if `to` lies here, or within the next line.
    fn meet(&mut self, to: Position) {
        if self.is_base_of(to) {
            self.begin(to);
            if to.offset > 0 {
                self.filter = Filter::Bytes(to.offset);
            }
        }
    }

    fn is_base_of(&self, to: Position) -> bool {
        self.at == Position { offset: 0, ..to }
    }

    fn begin(&mut self, start: Position) {
        self.filter = Filter::All;
        self.start = Some(start);
    }

    fn cut_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        // Whoever keeps the batch shall keep no more than its bytes.
        let data = Bytes::from(std::mem::take(&mut self.data).into_boxed_slice());
        let lines = std::mem::take(&mut self.batch);
        self.items.push(TailItem::Lines(LineBatch { data, lines }));
    }

    fn cut_gap(&mut self) {
        if let Some(gap) = self.gap.take() {
            self.items.push(TailItem::Gap(gap));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of five bytes with these times; the texts and positions that come out, and the gaps among them.
    fn run(filter: Filter, times: &[i64]) -> (Vec<(String, Position)>, usize, Emitter) {
        let mut emitter = Emitter::new(Position::START, 0, filter);
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
        let (all, _, _) = run(Filter::All, &TIMES);
        for (index, (_, at)) in all.iter().enumerate() {
            let (rest, gaps, emitter) = run(Filter::After(*at), &TIMES);
            assert_eq!((rest.as_slice(), gaps), (&all[index + 1..], 0));
            assert_eq!((emitter.start(), emitter.is_inexact()), (Some(*at), false));
            let (counted, _, emitter) = run(Filter::Lines(index as u64 + 1), &TIMES);
            assert_eq!((counted.as_slice(), emitter.start()), (&all[index + 1..], Some(*at)));
        }
    }

    #[test]
    fn within_a_line_its_rest_comes() {
        let (all, _, _) = run(Filter::All, &TIMES);
        let (rest, _, emitter) = run(Filter::After(all[2].1.after_bytes(3)), &TIMES);
        assert_eq!(emitter.start(), Some(all[2].1.after_bytes(3)));
        assert_eq!(rest[0], ("3\n".to_owned(), all[3].1));
        // The line is shorter than it was: nothing of it is left.
        let (rest, _, _) = run(Filter::After(all[2].1.after_bytes(5)), &TIMES);
        assert_eq!(rest, all[4..]);
    }

    #[test]
    fn a_position_that_is_not_there_is_a_gap() {
        let (all, _, _) = run(Filter::All, &TIMES);
        let at = Position { time: LogTime::from_nanos(5), ordinal: 3, offset: 0 };
        let (rest, gaps, emitter) = run(Filter::After(at), &TIMES);
        assert_eq!((rest.as_slice(), gaps), (&all[2..], 1));
        assert!(emitter.is_inexact());
        let (rest, gaps, emitter) =
            run(Filter::After(Position { time: LogTime::from_nanos(10), ..at }), &TIMES);
        assert_eq!((rest.len(), gaps, emitter.start()), (0, 0, None));
    }

    #[test]
    fn since_is_the_first_line_not_older() {
        let (all, _, _) = run(Filter::All, &TIMES);
        for (since, index) in [(0, 0), (5, 0), (6, 2), (7, 6), (8, 8)] {
            let (rest, gaps, _) = run(Filter::Since(LogTime::from_nanos(since)), &TIMES);
            assert_eq!((rest.as_slice(), gaps), (&all[index..], 0), "{since}");
        }
    }

    #[test]
    fn a_line_over_the_limit_comes_in_pieces_within_it() {
        let mut emitter = Emitter::new(Position::START, 0, Filter::All);
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
        let mut emitter = Emitter::new(Position::START, 0, Filter::All);
        let garbage = SourceGap { lines: 1, bytes: 7, ..unknown_gap(GapCause::Source) };
        emitter.gap(garbage);
        assert_eq!(emitter.take(false), []);
        emitter.gap(garbage);
        emitter.gap(unknown_gap(GapCause::Rotated));
        let both = SourceGap { lines: 2, bytes: 14, ..garbage };
        assert_eq!(emitter.take(true), [TailItem::Gap(both), TailItem::Gap(unknown_gap(GapCause::Rotated))]);
    }
}
