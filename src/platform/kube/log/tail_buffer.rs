//! The last lines of a log, held until it is known where they begin. Pure.

use std::collections::VecDeque;

use super::overlap::WINDOW_LINES;
use crate::model::line::{Line, LineBatch};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::TailItem;

/// Most lines that are held. Who wants more has them counted in the file first, and then read.
const LAST_MAX_LINES: u64 = 10_000;

/// Most bytes that are held, likewise.
const LAST_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Some last lines.
#[derive(Debug)]
pub(super) struct TailBuffer {
    wanted: u64,
    held: VecDeque<LineBatch>,
    /// Whole lines among those held.
    lines: u64,
    bytes: usize,
    /// Whole lines that came.
    seen: u64,
    /// The position before the first one held.
    before: Position,
}

// === impl Last ===

impl TailBuffer {
    /// For the last `wanted` lines; `None` if those are too many to be held.
    pub(super) fn new(wanted: u64) -> Option<Self> {
        let (held, before) = (VecDeque::new(), Position::START);
        (wanted <= LAST_MAX_LINES).then_some(Self { wanted, held, lines: 0, bytes: 0, seen: 0, before })
    }

    /// Forgets what came.
    pub(super) fn begin_anew(&mut self) {
        let (held, before) = (VecDeque::new(), Position::START);
        *self = Self { wanted: self.wanted, held, lines: 0, bytes: 0, seen: 0, before };
    }

    /// How many to ask for: some more, so that positions are counted from a line before those that are wanted.
    pub(super) fn asked(&self) -> u64 {
        self.wanted + WINDOW_LINES as u64
    }

    /// Takes further lines; `false` if they are too large to be held.
    pub(super) fn take(&mut self, items: Vec<TailItem>) -> bool {
        for item in items {
            let TailItem::Lines(batch) = item else { continue };
            let ended = ended(&batch);
            self.seen += ended;
            self.lines += ended;
            self.bytes += batch.data.len();
            self.held.push_back(batch);
        }
        while let Some(first) = self.held.front()
            && self.lines - ended(first) >= self.wanted
        {
            self.drop_first();
        }
        self.bytes <= LAST_MAX_BYTES
    }

    /// Whether all lines of the file came, going by their number.
    pub(super) fn is_whole(&self) -> bool {
        self.seen < self.asked()
    }

    /// Whether the position before them was counted from a line on that is newer than the first one that came, which has the time
    /// `first`. `at` is the position behind all of them.
    pub(super) fn is_sure(&self, first: Option<LogTime>, at: Position) -> bool {
        first.is_none_or(|first| self.start(at).time > first)
    }

    /// The position before the first line that is wanted.
    fn start(&self, at: Position) -> Position {
        match self.held.front() {
            Some(first) if self.wanted > 0 => match passed(first, self.lines.saturating_sub(self.wanted)) {
                0 => self.before,
                count => first.lines[count - 1].after,
            },
            _ => at,
        }
    }

    /// The lines, and the position before the first of them, given the one behind the last.
    pub(super) fn finish(mut self, at: Position) -> (Position, Vec<TailItem>) {
        let start = self.start(at);
        if self.wanted == 0 {
            self.held.clear();
        }
        let surplus = self.lines.saturating_sub(self.wanted);
        if let Some(first) = self.held.front_mut() {
            *first = without(first, passed(first, surplus));
        }
        let held = self.held.into_iter().filter(|batch| !batch.is_empty());
        (start, held.map(TailItem::Lines).collect())
    }

    fn drop_first(&mut self) {
        if let Some(first) = self.held.pop_front() {
            self.lines -= ended(&first);
            self.bytes -= first.data.len();
            self.before = first.lines.last().map_or(self.before, |line| line.after);
        }
    }
}

/// How many lines end in a batch.
fn ended(batch: &LineBatch) -> u64 {
    batch.lines.iter().filter(|line| line.ends).count() as u64
}

/// How many pieces the first `surplus` lines of a batch have.
fn passed(batch: &LineBatch, surplus: u64) -> usize {
    let mut left = surplus;
    let passed = batch.lines.iter().take_while(|line| {
        let passes = left > 0;
        left -= u64::from(passes && line.ends);
        passes
    });
    passed.count()
}

/// A batch without its first `count` pieces.
fn without(batch: &LineBatch, count: usize) -> LineBatch {
    let cut = count.checked_sub(1).map_or(0, |last| batch.lines[last].end);
    let lines = batch.lines[count..].iter().map(|line| Line { end: line.end - cut, ..*line });
    LineBatch { data: batch.data.slice(cut..), lines: lines.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::batcher::{LineBatcher, StartFilter};

    /// The last lines of a log with these times, read in portions: where they begin, and their texts.
    fn last(wanted: u64, times: &[i64], portion: usize) -> (Position, Vec<String>) {
        let mut emitter = LineBatcher::new(Position::START, 0, StartFilter::All);
        let mut last = TailBuffer::new(wanted).unwrap();
        for (index, time) in times.iter().enumerate() {
            emitter.piece(format!("{index}\n").as_bytes(), LogTime::from_nanos(*time), true);
            if index % portion == 0 {
                assert!(last.take(emitter.take(true)));
            }
        }
        assert!(last.take(emitter.take(true)));
        let (start, items) = last.finish(emitter.at());
        let texts = items.into_iter().flat_map(|item| {
            let TailItem::Lines(batch) = item else { panic!() };
            (0..batch.lines.len())
                .map(|index| String::from_utf8(batch.bytes(index).trim_ascii_end().to_vec()).unwrap())
                .collect::<Vec<_>>()
        });
        (start, texts.collect())
    }

    #[test]
    fn the_last_lines_and_where_they_begin() {
        let times = [1, 1, 2, 2, 2, 3];
        for portion in 1..8 {
            let at = |nanos, ordinal| Position { time: LogTime::from_nanos(nanos), ordinal, offset: 0 };
            assert_eq!(last(0, &times, portion), (at(3, 1), vec![]));
            assert_eq!(last(2, &times, portion), (at(2, 2), vec!["4".into(), "5".into()]));
            assert_eq!(last(3, &times, portion).0, at(2, 1));
            assert_eq!(last(6, &times, portion).0, Position::START);
            assert_eq!(last(9, &times, portion).1.len(), 6);
        }
        assert!(TailBuffer::new(LAST_MAX_LINES + 1).is_none());
    }

    #[test]
    fn what_is_too_large_is_not_held() {
        let mut last = TailBuffer::new(100).unwrap();
        let mut emitter = LineBatcher::new(Position::START, 0, StartFilter::All);
        let mut fits = true;
        for _ in 0..30 {
            emitter.piece(&vec![b'x'; 200_000], LogTime::from_nanos(1), true);
            fits = last.take(emitter.take(true));
        }
        assert!(!fits);
    }
}
