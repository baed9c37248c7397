//! Positions in the log of one instance.
//!
//! A timestamp cannot be a cursor: several lines may have the same time, and runtimes use the wall clock,
//! which may go back. A position therefore has three numbers: the greatest time so far, the number of lines
//! since the first line with that time, and the number of bytes of the next line. If times never decrease, it
//! is the time of the last line and the number of lines with exactly that time. If they do, a position is
//! still unique, and positions always grow along the log.

use std::fmt;

use super::id::{Instance, Replica};
use super::time::LogTime;

/// A position in the log of one instance; ordered as the log is.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The greatest time of any line at or before the position; [`LogTime::MIN`] before the first line.
    pub time: LogTime,
    /// The number of lines from the first line with that time up to the position, both included.
    pub ordinal: u64,
    /// The bytes of the next line that lie before the position. Not zero only within a line that is sent in
    /// pieces.
    pub offset: u64,
}

/// A place in the log of one replica, which is known from the context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The run of the replica's container.
    pub instance: Instance,
    /// The position in that run's log.
    pub position: Position,
}

/// A position in the log of one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The replica whose log this is.
    pub replica: Replica,
    /// The run of the replica's container.
    pub instance: Instance,
    /// The position in that run's log.
    pub position: Position,
}

/// The positions that are ambiguous after a gap of unknown size: those up to this time. `None`: there was no
/// such gap; [`LogTime::MAX`]: no line came after the gap.
///
/// A position counts the lines of its time. After lost lines, a reader that lost them counts too few, and a
/// reader that did not may be within the gap. So positions of two readers of one log cannot be compared,
/// until the times of later lines make the order clear again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AmbiguousRange(Option<LogTime>);

// === impl Position ===

impl Position {
    /// The position before the first line.
    pub const START: Self = Self { time: LogTime::MIN, ordinal: 0, offset: 0 };

    /// Returns the position after the next whole line, which has this time.
    #[must_use]
    pub fn after_line(self, time: LogTime) -> Self {
        if time > self.time {
            Self { time, ordinal: 1, offset: 0 }
        } else {
            Self { time: self.time, ordinal: self.ordinal + 1, offset: 0 }
        }
    }

    /// Returns the position `bytes` further into the next line.
    #[must_use]
    pub fn after_bytes(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes as u64, ..self }
    }

    /// Returns whether the position lies between two lines.
    pub(crate) fn at_line_start(self) -> bool {
        self.offset == 0
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}+{}", self.time, self.ordinal, self.offset)
    }
}

// === impl AmbiguousRange ===

impl AmbiguousRange {
    /// Records that an unknown number of lines is missing after the newest one.
    pub(crate) fn record_gap(&mut self) {
        self.0 = Some(LogTime::MAX);
    }

    /// Records the next line, which follows `before`.
    pub(crate) fn record_line(&mut self, before: Position, time: LogTime) {
        if self.0 == Some(LogTime::MAX) {
            // The lost lines may include lines of this time, or of the time before it if the clock was set
            // back.
            self.0 = Some(before.time.max(time));
        }
    }

    /// Whether there was no such gap: all positions are counted from the same line.
    pub(crate) fn is_none(self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn contains(self, at: Position) -> bool {
        self.0.is_some_and(|until| at.time <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_grow_even_if_times_decrease() {
        let mut at = Position::START;
        for nanos in [5, 5, 7, 6, 7, 3, 9] {
            let pieces = at.after_bytes(4).after_bytes(3);
            let next = at.after_line(LogTime::from_nanos(nanos));
            assert!(at < pieces && pieces < next, "{at:?} {pieces:?} {next:?}");
            assert!(next.at_line_start() && !pieces.at_line_start());
            at = next;
        }
        assert_eq!(at, Position { time: LogTime::from_nanos(9), ordinal: 1, offset: 0 });
    }

    #[test]
    fn lines_with_equal_time_are_counted() {
        let tie = LogTime::from_nanos(5);
        let at = Position::START.after_line(tie).after_line(tie).after_line(LogTime::from_nanos(4));
        assert_eq!(at, Position { time: tie, ordinal: 3, offset: 0 });
    }

    #[test]
    fn positions_are_clear_after_time_of_first_line() {
        let at = |nanos| Position { time: LogTime::from_nanos(nanos), ordinal: 1, offset: 0 };
        let mut range = AmbiguousRange::default();
        range.record_line(at(1), LogTime::from_nanos(2));
        assert!(!range.contains(at(2)) && !range.contains(Position::START));
        range.record_gap();
        assert!(range.contains(at(9)));
        range.record_line(at(2), LogTime::from_nanos(5));
        assert!(range.contains(at(4)) && range.contains(at(5)) && !range.contains(at(6)));
        range.record_line(at(5), LogTime::from_nanos(7));
        assert!(!range.contains(at(6)));
        // With a clock that was set back, after the time before.
        range.record_gap();
        range.record_line(at(7), LogTime::from_nanos(3));
        assert!(range.contains(at(7)) && !range.contains(at(8)));
    }
}
