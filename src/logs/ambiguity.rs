//! Tracks positions that are ambiguous after a gap of unknown size. Pure.
//!
//! A position counts the lines of its time. After lost lines, a reader that lost them counts too few, and a
//! reader that did not may be within the gap. So positions of two readers of one log cannot be compared,
//! until the times of later lines make the order clear again.

use crate::model::position::Position;
use crate::model::time::LogTime;

/// The time up to which positions are ambiguous. `None`: there was no such gap; [`LogTime::MAX`]: no line
/// came after the gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AmbiguousRange(Option<LogTime>);

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

    pub(crate) fn contains(self, at: Position) -> bool {
        self.0.is_some_and(|until| at.time <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
