//! Behind a gap of unknown size positions are vague for a while. Pure.
//!
//! A position counts lines of its time, and whoever has lost lines counts too few; and who has not may stand amid those that were
//! lost. So nobody goes on from one reading of a log to another there, until times tell again which line is which.

use crate::model::position::Position;
use crate::model::time::LogTime;

/// Up to which time positions are vague, if there was such a gap. The last instant there is = no line has come since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AmbiguousRange(Option<LogTime>);

// === impl AmbiguousRange ===

impl AmbiguousRange {
    /// Lines are missing here, and nobody knows how many.
    pub fn gap(&mut self) {
        self.0 = Some(LogTime::MAX);
    }

    /// A line of this time comes next, behind `before`.
    pub fn line(&mut self, before: Position, time: LogTime) {
        if self.0 == Some(LogTime::MAX) {
            // Of its time there may be some among those that were lost; if it is older, of the time before.
            self.0 = Some(before.time.max(time));
        }
    }

    /// Whether a position behind the gap is vague.
    pub fn covers(self, at: Position) -> bool {
        self.0.is_some_and(|until| at.time <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_tell_again_behind_the_time_of_the_first_line() {
        let at = |nanos| Position { time: LogTime::from_nanos(nanos), ordinal: 1, offset: 0 };
        let mut vague = AmbiguousRange::default();
        vague.line(at(1), LogTime::from_nanos(2));
        assert!(!vague.covers(at(2)) && !vague.covers(Position::START));
        vague.gap();
        assert!(vague.covers(at(9)));
        vague.line(at(2), LogTime::from_nanos(5));
        assert!(vague.covers(at(4)) && vague.covers(at(5)) && !vague.covers(at(6)));
        vague.line(at(5), LogTime::from_nanos(7));
        assert!(!vague.covers(at(6)));
        // If the clock was set back, behind the time before.
        vague.gap();
        vague.line(at(7), LogTime::from_nanos(3));
        assert!(vague.covers(at(7)) && !vague.covers(at(8)));
    }
}
