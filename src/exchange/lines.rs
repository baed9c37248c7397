//! Lines of a frame, and the part of them after a position.

use bytes::Bytes;

use crate::model::limits::{CHUNK_MAX_BYTES, CHUNK_MAX_LINES};
use crate::model::line::{Line, LineBatch};
use crate::model::position::Position;
use crate::model::time::LogTime;

/// Most lines or bytes that a position may count. No log comes near; sums of positions cannot overflow.
const COUNT_MAX: u64 = 1 << 60;

/// Maximum lines or bytes of one gap that another gateway has counted: more than a node can store. Sums of
/// gaps do not overflow.
pub(super) const LOST_MAX: u64 = 1 << 48;

/// Whole lines, or one piece of a line, with their positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lines {
    start: Position,
    batch: LineBatch,
    /// Whether the source has lost lines directly before them, or before the line that they continue.
    pub after_gap: bool,
    /// Whether their positions cannot be compared with those of another reader: they follow a gap of unknown
    /// size.
    pub ambiguous: bool,
}

/// The part of some lines after a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The position lies before them: other lines are missing in between.
    Hole,
    /// All of them, or those after the position.
    Rest(LineBatch),
    /// They lie before the position.
    Nothing,
    /// The position lies between them, but not at the start of a line or within one: whoever counted it read
    /// a different log.
    Unknown,
}

// === impl Lines ===

impl Lines {
    /// Creates lines that begin at `start`. `None` if the positions, ends or sizes contradict each other:
    /// they must be whole lines, or a single piece of a line; at most `CHUNK_MAX_LINES` and
    /// `CHUNK_MAX_BYTES`.
    pub fn new(start: Position, batch: LineBatch) -> Option<Self> {
        let first = *batch.lines.first()?;
        let fits = batch.lines.len() <= CHUNK_MAX_LINES && batch.data.len() <= CHUNK_MAX_BYTES;
        let last_end = batch.lines.last().map(|line| line.end);
        if !fits || !is_countable(start) || last_end != Some(batch.data.len()) {
            return None;
        }
        let is_valid = if is_piece(start, &first) {
            let grows = is_countable(first.after) && start < first.after;
            let counts = first.ends || first.after == start.after_bytes(first.end);
            batch.lines.len() == 1 && grows && counts && first.ends == first.after.at_line_start()
        } else {
            let mut before = (start, 0);
            batch.lines.iter().all(|line| {
                let after = before.0.after_line(line.time);
                let is_whole = line.ends && !line.continues && line.end > before.1 && line.after == after;
                before = (after, line.end);
                is_whole && line.time > LogTime::MIN
            })
        };
        is_valid.then_some(Self { start, batch, after_gap: false, ambiguous: false })
    }

    /// Returns the position before them.
    pub fn start(&self) -> Position {
        self.start
    }

    /// Returns the position after them.
    pub fn end(&self) -> Position {
        self.batch.lines.last().map_or(self.start, |line| line.after)
    }

    /// Returns the lines.
    pub fn batch(&self) -> &LineBatch {
        &self.batch
    }

    /// Returns how many lines end in them.
    pub fn count(&self) -> u64 {
        self.batch.lines.iter().filter(|line| line.ends).count() as u64
    }

    /// Returns their length in bytes.
    pub fn bytes(&self) -> u64 {
        self.batch.data.len() as u64
    }

    /// Returns an estimate of their memory in bytes.
    pub(super) fn cost(&self) -> usize {
        self.batch.data.len() + size_of_val(&*self.batch.lines)
    }

    /// Copies the bytes, so that lines that are kept do not keep a larger buffer alive.
    pub fn detach(&mut self) {
        self.batch.data = Bytes::copy_from_slice(&self.batch.data);
    }

    /// Returns the part after `at`.
    pub fn part_after(&self, at: Position) -> Part {
        if at < self.start {
            return Part::Hole;
        }
        if at >= self.end() {
            return Part::Nothing;
        }
        let mut before = (self.start, 0);
        for (index, line) in self.batch.lines.iter().enumerate() {
            let is_within = (at.time, at.ordinal) == (before.0.time, before.0.ordinal);
            if is_within && at.offset >= before.0.offset {
                if self.after_gap && index == 0 && at != self.start {
                    // Within a line that was lost here: the first line is another one.
                    return Part::Unknown;
                }
                let skipped = usize::try_from(at.offset - before.0.offset).unwrap_or(usize::MAX);
                let length = line.end - before.1;
                return if skipped <= length {
                    Part::Rest(self.rest(index, before.1 + skipped, skipped > 0))
                } else {
                    Part::Unknown
                };
            }
            before = (line.after, line.end);
        }
        Part::Unknown
    }

    /// Returns the lines from the one at `index` on, without the first `cut` bytes.
    fn rest(&self, index: usize, cut: usize, continues: bool) -> LineBatch {
        let lines = self.batch.lines.iter().skip(index);
        let mut lines: Vec<Line> = lines.map(|line| Line { end: line.end - cut, ..*line }).collect();
        if let Some(first) = lines.first_mut() {
            first.continues |= continues;
        }
        LineBatch { data: self.batch.data.slice(cut..), lines }
    }
}

/// Whether a position can be counted on from.
pub(super) fn is_countable(at: Position) -> bool {
    at.ordinal <= COUNT_MAX && at.offset <= COUNT_MAX && (at.time > LogTime::MIN || at.ordinal == 0)
}

/// Whether positions within the line, which begins at `start`, count bytes.
fn is_piece(start: Position, line: &Line) -> bool {
    !start.at_line_start() || !line.ends || line.continues
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(nanos: i64, ordinal: u64, offset: u64) -> Position {
        Position { time: LogTime::from_nanos(nanos), ordinal, offset }
    }

    fn whole(start: Position, lines: &[(&str, i64)]) -> LineBatch {
        let mut batch = LineBatch::default();
        let (mut data, mut position) = (Vec::new(), start);
        for (text, nanos) in lines {
            data.extend_from_slice(text.as_bytes());
            position = position.after_line(LogTime::from_nanos(*nanos));
            batch.lines.push(Line::whole(data.len(), LogTime::from_nanos(*nanos), position));
        }
        batch.data = data.into();
        batch
    }

    fn piece(text: &str, after: Position) -> LineBatch {
        let ends = after.at_line_start();
        let line = Line { ends, ..Line::whole(text.len(), LogTime::from_nanos(1), after) };
        LineBatch { data: Bytes::copy_from_slice(text.as_bytes()), lines: vec![line] }
    }

    #[test]
    fn part_after_position_is_exact() {
        let lines =
            Lines::new(at(1, 2, 0), whole(at(1, 2, 0), &[("ab\n", 1), ("cd\n", 1), ("e\n", 2)])).unwrap();
        let rest = |position| match lines.part_after(position) {
            Part::Rest(batch) => (batch.data, batch.lines.len(), batch.lines[0].continues),
            other => panic!("{position:?}: {other:?}"),
        };
        assert_eq!(rest(at(1, 2, 0)), (Bytes::from("ab\ncd\ne\n"), 3, false));
        assert_eq!(rest(at(1, 2, 1)), (Bytes::from("b\ncd\ne\n"), 3, true));
        assert_eq!(rest(at(1, 4, 0)), (Bytes::from("e\n"), 1, false));
        assert_eq!(lines.part_after(at(1, 1, 0)), Part::Hole);
        assert_eq!(lines.part_after(at(2, 1, 0)), Part::Nothing);
        // A line that this reader has not seen, and an offset after the end of a line.
        assert_eq!(lines.part_after(at(1, 5, 0)), Part::Unknown);
        assert_eq!(lines.part_after(at(1, 3, 9)), Part::Unknown);
    }

    #[test]
    fn part_of_piece_is_cut_by_bytes() {
        let middle = Lines::new(at(1, 2, 3), piece("defg", at(1, 2, 7))).unwrap();
        assert_eq!((middle.count(), middle.end()), (0, at(1, 2, 7)));
        let Part::Rest(rest) = middle.part_after(at(1, 2, 5)) else { panic!() };
        assert_eq!((&rest.data[..], rest.lines[0].continues, rest.lines[0].ends), (&b"fg"[..], true, false));
        let last = Lines::new(at(1, 2, 3), piece("defg\n", at(1, 3, 0))).unwrap();
        let Part::Rest(rest) = last.part_after(at(1, 2, 8)) else { panic!() };
        // Its bytes were all read, but not its end.
        assert_eq!((rest.data.len(), rest.lines[0].ends, last.count()), (0, true, 1));
        assert_eq!(last.part_after(at(1, 3, 0)), Part::Nothing);
    }

    #[test]
    fn contradicting_lines_are_rejected() {
        let start = at(1, 1, 0);
        let good = whole(start, &[("ab\n", 1), ("cd\n", 2)]);
        assert!(Lines::new(start, good.clone()).is_some());
        let with = |change: fn(&mut LineBatch)| {
            let mut batch = good.clone();
            change(&mut batch);
            Lines::new(start, batch)
        };
        assert_eq!(with(|batch| batch.lines.clear()), None);
        assert_eq!(with(|batch| batch.data = Bytes::from_static(b"abcdefg")), None);
        assert_eq!(with(|batch| batch.lines[0].end = 6), None);
        assert_eq!(with(|batch| batch.lines[0].ends = false), None);
        assert_eq!(with(|batch| batch.lines[1].after = at(2, 2, 0)), None);
        assert_eq!(Lines::new(at(1, 2, 0), good.clone()), None);
        assert_eq!(Lines::new(at(1, u64::MAX, 0), good), None);
        assert_eq!(Lines::new(start, piece("ab", at(1, 1, 3))), None);
        assert_eq!(Lines::new(at(1, 1, 3), piece("ab\n", at(1, 1, 0))), None);
        assert_eq!(Lines::new(start, piece(&"x".repeat(CHUNK_MAX_BYTES + 1), at(1, 1, 16_001))), None);
    }

    proptest! {
        #[test]
        fn parts_after_each_end_are_the_rest(times in prop::collection::vec(0..4_i64, 1..40), pick in any::<prop::sample::Index>()) {
            let texts: Vec<_> = times.iter().map(|nanos| ("line\n", *nanos)).collect();
            let start = at(1, 3, 0);
            let lines = Lines::new(start, whole(start, &texts)).unwrap();
            let index = pick.index(times.len());
            let after = lines.batch().lines[index].after;
            match lines.part_after(after) {
                Part::Nothing => prop_assert_eq!(index, times.len() - 1),
                Part::Rest(rest) => prop_assert_eq!(rest.lines.len(), times.len() - 1 - index),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }
}
