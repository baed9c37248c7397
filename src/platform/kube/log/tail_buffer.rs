//! The last lines of a log, held until their positions are known. Pure.

use std::collections::VecDeque;

use bytes::Bytes;

use super::overlap::WINDOW_LINES;
use crate::model::limits::READ_MAX_BYTES;
use crate::model::line::{Line, LineBatch};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::TailItem;

/// Most lines that are held. A read of more lines counts them in the file first.
const LAST_MAX_LINES: u64 = 10_000;

/// Most bytes that are held. Larger reads count first, too.
const LAST_MAX_BYTES: usize = 4 * 1024 * 1024;

/// The last lines of a response.
#[derive(Debug, Default)]
pub(super) struct TailBuffer {
    wanted: u64,
    /// The pieces of the newest lines.
    held: VecDeque<(Line, Bytes)>,
    /// Whole lines among those held.
    lines: u64,
    bytes: usize,
    /// Whole lines that were taken.
    seen: u64,
    /// The position before the first piece held.
    before: Position,
}

// === impl TailBuffer ===

impl TailBuffer {
    /// Creates a buffer for the last `wanted` lines; `None` if those are too many.
    pub(super) fn new(wanted: u64) -> Option<Self> {
        (wanted <= LAST_MAX_LINES).then(|| Self { wanted, ..Self::default() })
    }

    pub(super) fn clear(&mut self) {
        *self = Self { wanted: self.wanted, ..Self::default() };
    }

    /// Returns the number of lines to request: more than wanted, so that positions are counted from an
    /// earlier line.
    pub(super) fn request_lines(&self) -> u64 {
        self.wanted + WINDOW_LINES as u64
    }

    /// Adds further lines. Returns `false` if they are too large to be held.
    pub(super) fn hold(&mut self, items: Vec<TailItem>) -> bool {
        for item in items {
            let TailItem::Lines(LineBatch { mut data, lines }) = item else { continue };
            let mut begin = 0;
            for line in lines {
                self.seen += u64::from(line.ends);
                self.lines += u64::from(line.ends);
                self.bytes += line.end - begin;
                self.held.push_back((line, data.split_to(line.end - begin)));
                begin = line.end;
            }
        }
        while self.lines > self.wanted || self.wanted == 0 {
            let Some((first, bytes)) = self.held.pop_front() else { break };
            self.lines -= u64::from(first.ends);
            self.bytes -= bytes.len();
            self.before = first.after;
        }
        self.bytes <= LAST_MAX_BYTES
    }

    /// Returns whether these are all lines of the file: fewer came than were requested.
    pub(super) fn is_whole(&self) -> bool {
        self.seen < self.request_lines()
    }

    /// Returns whether the position before the wanted lines is certain: its time is newer than `first`, the
    /// time of the first line that came.
    pub(super) fn has_certain_start(&self, first: Option<LogTime>) -> bool {
        first.is_none_or(|first| self.before.time > first)
    }

    /// Returns the wanted lines and the position before them.
    pub(super) fn finish(self) -> (Position, Vec<TailItem>) {
        let (mut items, mut data, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        let pieces = self.held.len();
        for (index, (line, bytes)) in self.held.into_iter().enumerate() {
            data.extend_from_slice(&bytes);
            lines.push(Line { end: data.len(), ..line });
            if data.len() >= READ_MAX_BYTES || index + 1 == pieces {
                let (data, lines) = (std::mem::take(&mut data).into(), std::mem::take(&mut lines));
                items.push(TailItem::Lines(LineBatch { data, lines }));
            }
        }
        (self.before, items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::memory_budget::READ_RESERVED_BYTES;
    use crate::platform::batcher::{LineBatcher, StartFilter};

    #[test]
    fn buffer_fits_the_memory_that_a_read_reserves() {
        // A full deque has up to twice as many places.
        let places = 2 * usize::try_from(LAST_MAX_LINES).unwrap() * size_of::<(Line, Bytes)>();
        assert!(LAST_MAX_BYTES + places + READ_MAX_BYTES <= READ_RESERVED_BYTES, "{places}");
    }

    /// The last lines of a log with these times, read in portions: their start and their texts.
    fn last(wanted: u64, times: &[i64], portion: usize) -> (Position, Vec<String>) {
        let mut batcher = LineBatcher::new(Position::START, 0, StartFilter::All);
        let mut last = TailBuffer::new(wanted).unwrap();
        for (index, time) in times.iter().enumerate() {
            batcher.piece(format!("{index}\n").as_bytes(), LogTime::from_nanos(*time), true);
            if index % portion == 0 {
                assert!(last.hold(batcher.take_items(true)));
            }
        }
        assert!(last.hold(batcher.take_items(true)));
        let (start, items) = last.finish();
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
            fits = last.hold(batcher.take_items(true));
        }
        assert!(!fits);
    }
}
