//! What a gateway gives to the actor of a replica: the lines and gaps of one run, in order, whoever read
//! them. Pure.

use super::messages::Totals;
use super::rank::Rank;
use crate::model::id::Instance;
use crate::model::line::{LineBatch, SourceGap};
use crate::model::position::{AmbiguousRange, Place, Position};
use crate::platform::{ReadFrom, TailItem};

/// The delivery of one run.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) instance: Instance,
    /// Where the actor wanted to start.
    pub(super) from: ReadFrom,
    /// After everything that was delivered; `None` until a source of lines has said where the log ends.
    pub(super) at: Option<Position>,
    /// The publisher's sums at `at`, if they are known. They advance with each delivered line, because all
    /// readers find the same lines between two positions.
    pub(super) account: Option<(Rank, Totals)>,
    /// The publisher whose frames have shown this run.
    pub(super) seen_from: Option<Rank>,
    /// Positions that cannot be compared with those of another reader.
    ambiguous: AmbiguousRange,
    /// No line has ended since the newest gap.
    after_gap: bool,
    /// Entries of the actor's ring that are gaps after the newest line.
    trailing_gaps: u32,
    reported: Reported,
}

/// Gaps that were delivered at the present position since the newest line.
///
/// A gap has no position of its own, so another reader of the same place reports it again. Its part that was
/// reported before is not reported twice.
#[derive(Clone, Copy, Debug, Default)]
struct Reported {
    here: Loss,
    /// The part of `here` that the present reader may report again.
    may_repeat: Loss,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Loss {
    lines: u64,
    bytes: u64,
    /// Gaps of unknown size.
    inexact: u64,
}

// === impl Delivery ===

impl Delivery {
    pub(super) fn new(instance: Instance, from: ReadFrom) -> Self {
        let at = match from {
            ReadFrom::Start => Some(Position::START),
            ReadFrom::After(at) => Some(at),
            ReadFrom::Last(_) | ReadFrom::Since(_) => None,
        };
        Self {
            instance,
            from,
            at,
            account: None,
            seen_from: None,
            ambiguous: AmbiguousRange::default(),
            after_gap: false,
            trailing_gaps: 0,
            reported: Reported::default(),
        }
    }

    /// Returns the place after everything that was delivered.
    pub(super) fn place(&self) -> Option<Place> {
        Some(Place { instance: self.instance.clone(), position: self.at? })
    }

    /// Returns the number of gaps after the newest line, as the actor's ring has them.
    pub(super) fn trailing_gaps(&self) -> u32 {
        self.trailing_gaps
    }

    /// Returns where a new reader of the log starts.
    pub(super) fn next_from(&self) -> ReadFrom {
        match (self.at, self.from) {
            // Not after a position: then the source could not report lines that were rotated away.
            (Some(Position::START), ReadFrom::Start) | (None, _) => self.from,
            (Some(at), _) => ReadFrom::After(at),
        }
    }

    /// Whether another reader can continue at its position. Not directly after a gap, since the other reader
    /// may have the lines that were reported as lost, nor within the first line after it, since that position
    /// counts from the gap.
    pub(super) fn is_comparable(&self) -> bool {
        !self.after_gap && self.at.is_some_and(|at| !self.ambiguous.contains(at))
    }

    /// Starts at a position that a publisher has named.
    pub(super) fn start_at(&mut self, at: Position, is_ambiguous: bool) {
        self.at = Some(at);
        if is_ambiguous {
            self.ambiguous.record_gap();
        }
    }

    /// Another reader continues: it may report the gaps at this position again.
    pub(super) fn switch_reader(&mut self) {
        self.reported.may_repeat = self.reported.here;
    }

    /// Continues after lines that a publisher counts but nobody has any more.
    pub(super) fn skip_to(&mut self, at: Position, account: (Rank, Totals)) {
        (self.at, self.account, self.after_gap) = (Some(at), Some(account), false);
    }

    /// Returns the next lines for the actor.
    pub(super) fn lines(&mut self, batch: LineBatch) -> Option<TailItem> {
        let (first, last) = (batch.lines.first()?.time, batch.lines.last()?.after);
        self.ambiguous.record_line(self.at.unwrap_or(Position::START), first);
        self.reported = Reported::default();
        self.trailing_gaps = 0;
        if let Some((_, totals)) = &mut self.account {
            let ended = batch.lines.iter().filter(|line| line.ends).count() as u64;
            *totals = totals.with_lines(ended, batch.data.len() as u64);
        }
        self.after_gap &= last.offset > 0;
        self.at = Some(last);
        Some(TailItem::Lines(batch))
    }

    /// Returns the part of a gap that was not reported before.
    pub(super) fn gap(&mut self, mut gap: SourceGap) -> Option<TailItem> {
        let at = self.at.unwrap_or(Position::START);
        if gap.after > at {
            // The log itself records it, so it has a position and is not reported again.
            self.reported = Reported::default();
        } else {
            gap.after = at;
        }
        // The actor does not report an unknown loss twice in one place.
        let is_new = gap.exact || self.reported.here.inexact == 0;
        let again = self.reported.may_repeat.take(&gap);
        (gap.lines, gap.bytes) = (gap.lines - again.lines, gap.bytes - again.bytes);
        let is_repeated = gap.lines == 0 && gap.bytes == 0 && (gap.exact || again.inexact > 0);
        if is_repeated && again != Loss::default() {
            return None;
        }
        if gap.after == at {
            self.reported.here.add(&gap);
        }
        self.trailing_gaps += u32::from(is_new);
        if gap.exact {
            self.account = self.account.map(|(rank, totals)| (rank, totals.with_gap(&gap)));
        } else {
            self.ambiguous.record_gap();
            self.account = None;
        }
        (self.at, self.after_gap) = (Some(gap.after), gap.after == at);
        Some(TailItem::Gap(gap))
    }
}

// === impl Loss ===

impl Loss {
    fn add(&mut self, gap: &SourceGap) {
        self.lines = self.lines.saturating_add(gap.lines);
        self.bytes = self.bytes.saturating_add(gap.bytes);
        self.inexact += u64::from(!gap.exact);
    }

    /// Takes the part that `gap` has in common with it.
    fn take(&mut self, gap: &SourceGap) -> Self {
        let taken = Self {
            lines: self.lines.min(gap.lines),
            bytes: self.bytes.min(gap.bytes),
            inexact: self.inexact.min(u64::from(!gap.exact)),
        };
        self.lines -= taken.lines;
        self.bytes -= taken.bytes;
        self.inexact -= taken.inexact;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::line::{GapCause, Line};
    use crate::model::time::LogTime;

    fn at(nanos: i64) -> Position {
        Position { time: LogTime::from_nanos(nanos), ordinal: 1, offset: 0 }
    }

    fn gap(lines: u64, exact: bool, after: Position) -> SourceGap {
        SourceGap { cause: GapCause::Rotated, lines, bytes: lines * 10, exact, after }
    }

    fn delivery() -> Delivery {
        Delivery::new(Instance::new("uid", "web", 0).unwrap(), ReadFrom::After(at(5)))
    }

    fn lines_of(item: Option<TailItem>) -> Option<u64> {
        match item? {
            TailItem::Gap(gap) => Some(gap.lines),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn gap_of_next_reader_is_reported_in_part() {
        let mut one = delivery();
        assert_eq!(lines_of(one.gap(gap(3, true, at(5)))), Some(3));
        // The same reader: another gap.
        assert_eq!(lines_of(one.gap(gap(3, true, at(5)))), Some(3));
        one.switch_reader();
        assert_eq!(lines_of(one.gap(gap(4, true, at(5)))), None);
        assert_eq!(lines_of(one.gap(gap(4, true, at(5)))), Some(2));
        one.switch_reader();
        let line = Line::whole(1, LogTime::from_nanos(6), at(6));
        one.lines(LineBatch { data: "\n".into(), lines: vec![line] });
        assert_eq!(lines_of(one.gap(gap(8, true, at(6)))), Some(8));
    }

    #[test]
    fn gap_with_position_is_not_reported_again() {
        let mut one = delivery();
        assert_eq!(lines_of(one.gap(gap(3, true, at(6)))), Some(3));
        one.switch_reader();
        assert_eq!(lines_of(one.gap(gap(3, true, at(6)))), Some(3));
    }

    #[test]
    fn inexact_gap_makes_positions_incomparable() {
        let mut one = delivery();
        one.account = Some((Rank::default(), Totals::default()));
        assert!(one.is_comparable());
        assert_eq!(lines_of(one.gap(gap(0, false, at(5)))), Some(0));
        assert!(!one.is_comparable() && one.account.is_none());
        one.switch_reader();
        assert_eq!(lines_of(one.gap(gap(0, false, at(5)))), None);
        for (nanos, comparable) in [(7, false), (8, true)] {
            let line = Line::whole(1, LogTime::from_nanos(nanos), at(nanos));
            one.lines(LineBatch { data: "\n".into(), lines: vec![line] });
            assert_eq!(one.is_comparable(), comparable, "{nanos}");
        }
    }
}
