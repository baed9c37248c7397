//! Where a reader stands in the log of one instance.
//!
//! A timestamp is not a cursor: lines tie, and runtimes stamp stdout and stderr by the wall clock, which may go back. So a
//! position counts: the greatest time at or before it, how many lines lie at or before it from the first line of that
//! time on, and how many bytes of the next line. Where times only grow this is exactly "the time of the last line, and how
//! many lines of that very time there are up to it"; where they do not, it is still without ambiguity, and positions
//! always grow along the log.

use std::fmt;

use super::id::{Instance, Replica};
use super::time::LogTime;

/// A position in the log of one instance; ordered as the log is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Position {
    /// The greatest time of any line at or before the position; [`LogTime::MIN`] before the first line.
    pub time: LogTime,
    /// How many lines lie between the first line with that time and the position, both included.
    pub ordinal: u64,
    /// Bytes of the next line that lie before the position. Not zero only within a line that is sent in pieces.
    pub offset: u64,
}

/// A position in the log of one replica: of which instance, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The replica.
    pub replica: Replica,
    /// The run of its container.
    pub instance: Instance,
    /// Where in that run's log.
    pub position: Position,
}

// === impl Position ===

impl Position {
    /// Before the first line.
    pub const START: Self = Self { time: LogTime::MIN, ordinal: 0, offset: 0 };

    /// The position behind the next whole line, which bears `time`.
    #[must_use]
    pub fn after_line(self, time: LogTime) -> Self {
        if time > self.time {
            Self { time, ordinal: 1, offset: 0 }
        } else {
            Self { time: self.time, ordinal: self.ordinal + 1, offset: 0 }
        }
    }

    /// The position `bytes` further into the next line.
    #[must_use]
    pub fn after_bytes(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes as u64, ..self }
    }

    /// Whether the position lies between two lines, not within one.
    pub fn at_line_start(self) -> bool {
        self.offset == 0
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}+{}", self.time, self.ordinal, self.offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_grow_along_the_log_whatever_the_times() {
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
    fn ties_are_counted() {
        let tie = LogTime::from_nanos(5);
        let at = Position::START.after_line(tie).after_line(tie).after_line(LogTime::from_nanos(4));
        assert_eq!(at, Position { time: tie, ordinal: 3, offset: 0 });
    }
}
