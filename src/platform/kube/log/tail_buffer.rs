//! The last lines of a log, held until their positions are known. Pure.

use std::collections::VecDeque;

use super::overlap::WINDOW_LINES;
use crate::model::line::{Line, LineBatch};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::TailItem;

/// Most lines that are held. A read of more lines counts them in the file first.
const LAST_MAX_LINES: u64 = 10_000;

/// Most bytes that are held. Larger reads count first, too.
const LAST_MAX_BYTES: usize = 4 * 1024 * 1024;

/// The last lines of a response.
#[derive(Debug)]
pub(super) struct TailBuffer {
    wanted: u64,
    held: VecDeque<LineBatch>,
    /// Whole lines among those held.
    lines: u64,
    bytes: usize,
    /// Whole lines that were taken.
    seen: u64,
    /// The position before the first line held.
    before: Position,
}

// === impl TailBuffer ===

impl TailBuffer {
    /// Creates a buffer for the last `wanted` lines; `None` if those are too many.
    pub(super) fn new(wanted: u64) -> Option<Self> {
        let (held, before) = (VecDeque::new(), Position::START);
        (wanted <= LAST_MAX_LINES).then_some(Self { wanted, held, lines: 0, bytes: 0, seen: 0, before })
    }

    pub(super) fn clear(&mut self) {
        let (held, before) = (VecDeque::new(), Position::START);
        *self = Self { wanted: self.wanted, held, lines: 0, bytes: 0, seen: 0, before };
    }

    /// Lines to request: more than wanted, so that positions are counted from an earlier line.
    pub(super) fn request_lines(&self) -> u64 {
        self.wanted + WINDOW_LINES as u64
    }

    /// Takes further lines. Returns `false` if they are too large to be held.
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

    /// Whether these are all lines of the file: fewer came than were requested.
    pub(super) fn is_whole(&self) -> bool {
        self.seen < self.request_lines()
    }

    /// Whether the position before the wanted lines is certain: its time is newer than `first`, the time of
    /// the first line that came. `at` is the position after all lines.
    pub(super) fn has_certain_start(&self, first: Option<LogTime>, at: Position) -> bool {
        first.is_none_or(|first| self.start(at).time > first)
    }

    /// The position before the first wanted line.
    fn start(&self, at: Position) -> Position {
        match self.held.front() {
            Some(first) if self.wanted > 0 => match passed(first, self.lines.saturating_sub(self.wanted)) {
                0 => self.before,
                count => first.lines[count - 1].after,
            },
            _ => at,
        }
    }

    /// Returns the wanted lines and the position before them. `at` is the position after them.
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

/// The number of lines that end in a batch.
fn ended(batch: &LineBatch) -> u64 {
    batch.lines.iter().filter(|line| line.ends).count() as u64
}

/// The number of pieces of the first `surplus` lines of a batch.
fn passed(batch: &LineBatch, surplus: u64) -> usize {
    let mut left = surplus;
    let passed = batch.lines.iter().take_while(|line| {
        let passes = left > 0;
        left -= u64::from(passes && line.ends);
        passes
    });
    passed.count()
}

/// Returns a batch without its first `count` pieces.
fn without(batch: &LineBatch, count: usize) -> LineBatch {
    let cut = count.checked_sub(1).map_or(0, |last| batch.lines[last].end);
    let lines = batch.lines[count..].iter().map(|line| Line { end: line.end - cut, ..*line });
    LineBatch { data: batch.data.slice(cut..), lines: lines.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::batcher::{LineBatcher, StartFilter};

    /// The last lines of a log with these times, read in portions: their start and their texts.
    fn last(wanted: u64, times: &[i64], portion: usize) -> (Position, Vec<String>) {
        let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::All);
        let mut last = TailBuffer::new(wanted).unwrap();
        for (index, time) in times.iter().enumerate() {
            batcher.piece(format!("{index}\n").as_bytes(), LogTime::from_nanos(*time), true);
            if index % portion == 0 {
                assert!(last.take(batcher.take(true)));
            }
        }
        assert!(last.take(batcher.take(true)));
        let (start, items) = last.finish(batcher.at());
        let texts = items.into_iter().flat_map(|item| {
            let TailItem::Lines(batch) = item else { panic!() };
            (0..batch.lines.len())
                .map(|index| String::from_utf8(batch.bytes(index).trim_ascii_end().to_vec()).unwrap())
                .collect::<Vec<_>>()
        });
        (start, texts.collect())
    }

    #[test]
    fn last_lines_have_exact_start_in_any_portions() {
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
    fn lines_over_byte_limit_are_refused() {
        let mut last = TailBuffer::new(100).unwrap();
        let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::All);
        let mut fits = true;
        for _ in 0..30 {
            batcher.piece(&vec![b'x'; 200_000], LogTime::from_nanos(1), true);
            fits = last.take(batcher.take(true));
        }
        assert!(!fits);
    }
}
