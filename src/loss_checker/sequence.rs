//! Checks the line numbers of one run.
//!
//! Every skipped number must be covered by a gap. The balance is the number of skipped lines less the
//! reported ones. It must return to zero: at each line, if the lines were written to one pipe.

use std::collections::BTreeMap;

use super::{Fault, Order, Start};

/// A late line of the other pipe must come within this many lines: more short lines than a pipe (64 KiB)
/// holds, because one pipe may be read this far ahead of the other.
const LATE_MAX_LINES: u64 = 4_096;

/// At the end of the check, a line that has been missing for this many lines counts as lost.
const SETTLED_AT_END_LINES: u64 = 256;

/// Line numbers of one run.
#[derive(Debug)]
pub(super) struct Sequence {
    order: Order,
    /// Greatest number received; 0 before the first line, `None` if the first may have any number.
    last: Option<u64>,
    /// First number received with [`Start::Anywhere`]. Late lines before it are ignored.
    first: u64,
    /// Missing numbers below `last` that may still come, as ranges from key to value.
    missing: BTreeMap<u64, u64>,
    /// Missing lines less reported lines, since the numbers last added up.
    balance: i64,
    /// Lines reported since then.
    reported: u64,
    /// Of these, lines that may belong to the previous run.
    earlier: u64,
    /// Whether a report was a lower bound.
    inexact: bool,
    /// Whether this run has lines without a number, which a gap may include.
    unnumbered: bool,
    /// Lines since the numbers last added up.
    since_settled: u64,
}

// === impl Sequence ===

impl Sequence {
    pub(super) fn new(order: Order, start: Start) -> Self {
        Self {
            order,
            last: (start == Start::First).then_some(0),
            first: 0,
            missing: BTreeMap::new(),
            balance: 0,
            reported: 0,
            earlier: 0,
            inexact: false,
            unnumbered: false,
            since_settled: 0,
        }
    }

    /// Records a line without a number.
    pub(super) fn unnumbered(&mut self) {
        self.unnumbered = true;
    }

    /// Records lines reported as lost. `earlier` is set if they may belong to the previous run, in part or
    /// all.
    pub(super) fn gap(&mut self, lines: u64, exact: bool, earlier: bool) {
        self.balance = self.balance.saturating_sub_unsigned(lines);
        self.reported = self.reported.saturating_add(lines);
        self.inexact |= !exact;
        if earlier && self.last == Some(0) {
            self.earlier = self.earlier.saturating_add(lines);
        }
    }

    /// Records the line with number `got`.
    pub(super) fn line(&mut self, got: u64) -> Result<(), Fault> {
        let Some(after) = self.last else {
            (self.last, self.first) = (Some(got), got);
            self.settle();
            return Ok(());
        };
        if got > after {
            self.skip(after, got);
        } else if self.order == Order::TwoPipes && got < self.first {
            return Ok(());
        } else if self.order == Order::Exact || !self.fill(got) {
            return Err(Fault::Repeat { after, got });
        }
        if self.is_settled() {
            self.settle();
            return Ok(());
        }
        self.since_settled += 1;
        let fault = match self.order {
            Order::Exact => Fault::Hole { after, reported: self.reported, got },
            Order::TwoPipes if self.since_settled.max(self.balance.unsigned_abs()) > LATE_MAX_LINES => {
                self.hole()
            }
            Order::TwoPipes => return Ok(()),
        };
        // Each fault is reported once.
        self.settle();
        Err(fault)
    }

    /// Checks the end of the input.
    pub(super) fn stop(&self) -> Result<(), Fault> {
        if self.since_settled > SETTLED_AT_END_LINES { Err(self.hole()) } else { Ok(()) }
    }

    /// Ends the run. Returns the sequence of the next run, and the result of this one.
    pub(super) fn next(&self) -> (Self, Result<(), Fault>) {
        let outcome = if self.balance > 0 && !self.is_settled() { Err(self.hole()) } else { Ok(()) };
        // A report after the last line may cover the end of this run and the start of the next.
        let carried = self.reported.min(self.balance.min(0).unsigned_abs());
        let next = Self {
            balance: self.balance.min(0),
            reported: carried,
            earlier: carried,
            inexact: self.inexact,
            ..Self::new(self.order, Start::First)
        };
        (next, outcome)
    }

    /// Returns a hole within the lines that do not add up.
    fn hole(&self) -> Fault {
        let after = self.missing.keys().next().map_or(0, |first| first - 1);
        Fault::Hole { after, reported: self.reported, got: self.last.unwrap_or_default() }
    }

    fn skip(&mut self, after: u64, got: u64) {
        let hole = got - after - 1;
        self.balance = self.balance.saturating_add_unsigned(hole);
        self.last = Some(got);
        if hole > 0 && self.order == Order::TwoPipes {
            self.missing.insert(after + 1, got - 1);
        }
        // Forgets ranges that are too old to be filled. Twice the limit, because a fault names the first
        // missing number.
        let horizon = got.saturating_sub(2 * LATE_MAX_LINES);
        while let Some(stretch) = self.missing.first_entry().filter(|stretch| *stretch.get() < horizon) {
            stretch.remove();
        }
    }

    /// Removes `got` from the missing numbers. Returns whether it was one.
    fn fill(&mut self, got: u64) -> bool {
        let Some((&from, &to)) = self.missing.range(..=got).next_back().filter(|(_, to)| **to >= got) else {
            return false;
        };
        self.missing.remove(&from);
        if from < got {
            self.missing.insert(from, got - 1);
        }
        if got < to {
            self.missing.insert(got + 1, to);
        }
        self.balance = self.balance.saturating_sub(1);
        true
    }

    fn is_settled(&self) -> bool {
        let earlier = i64::try_from(self.earlier).unwrap_or(i64::MAX);
        let not_too_few = self.unnumbered || self.balance >= -earlier;
        let not_too_many = self.inexact || self.balance <= 0;
        not_too_few && not_too_many
    }

    fn settle(&mut self) {
        (self.balance, self.reported, self.earlier, self.since_settled) = (0, 0, 0, 0);
        self.inexact = false;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(numbers: impl IntoIterator<Item = u64>) -> Result<(), Fault> {
        let mut sequence = Sequence::new(Order::TwoPipes, Start::First);
        for number in numbers {
            sequence.line(number)?;
        }
        sequence.stop()
    }

    #[test]
    fn late_line_of_the_other_pipe_may_come_once() {
        assert_eq!(check([1, 2, 4, 5, 3, 6]), Ok(()));
        assert_eq!(check([4, 1, 2, 3, 5]), Ok(()));
        assert_eq!(check([1, 2, 4, 5, 3, 3]), Err(Fault::Repeat { after: 5, got: 3 }));
        assert_eq!(check([1, 2, 2]), Err(Fault::Repeat { after: 2, got: 2 }));
        // A missing line that may still come at the end, and one that can no longer come.
        assert_eq!(check((1..=100).filter(|n| *n != 90)), Ok(()));
        assert_eq!(
            check((1..=1000).filter(|n| *n != 90)),
            Err(Fault::Hole { after: 89, reported: 0, got: 1000 })
        );
        let late = 90 + LATE_MAX_LINES + 1;
        assert_eq!(
            check((1..=10_000).filter(|n| *n != 90)),
            Err(Fault::Hole { after: 89, reported: 0, got: late })
        );
    }

    #[test]
    fn line_missing_at_the_end_of_a_run_is_lost() {
        let mut sequence = Sequence::new(Order::TwoPipes, Start::First);
        for number in [1, 2, 4] {
            sequence.line(number).unwrap();
        }
        assert_eq!(sequence.next().1, Err(Fault::Hole { after: 2, reported: 0, got: 4 }));
        sequence.line(3).unwrap();
        assert_eq!(sequence.next().1, Ok(()));
    }

    #[test]
    fn late_lines_before_the_first_are_ignored() {
        let mut sequence = Sequence::new(Order::TwoPipes, Start::Anywhere);
        for number in [97, 96, 98, 100, 99] {
            assert_eq!(sequence.line(number), Ok(()), "{number}");
        }
    }

    proptest! {
        /// Lines of two pipes, merged in any order, with parts lost and reported exactly, pass. They fail if
        /// one line less, or one line more, is reported, once enough lines have followed.
        #[test]
        fn loss_is_distinguished_from_lateness(
            pipes in proptest::collection::vec(any::<bool>(), 1..200),
            merge in proptest::collection::vec(any::<bool>(), 400),
            lost in proptest::collection::vec(proptest::bool::weighted(0.2), 400),
            victim in any::<prop::sample::Index>(),
        ) {
            let mut sides: [Vec<u64>; 2] = [Vec::new(), Vec::new()];
            for (number, second) in (1..).zip(&pipes) {
                sides[usize::from(*second)].push(number);
            }
            for side in &mut sides {
                side.reverse();
            }
            let mut merged = Vec::new();
            for side in &merge {
                let side = usize::from(*side);
                let next = sides[side].pop().or_else(|| sides[1 - side].pop());
                merged.extend(next);
            }
            let tail = pipes.len() as u64 + 1..pipes.len() as u64 + 2 * LATE_MAX_LINES;
            merged.extend(tail);
            let run = |skip: Option<usize>, more: u64| {
                let mut sequence = Sequence::new(Order::TwoPipes, Start::First);
                let (mut gap, mut more) = (0, more);
                for (at, number) in merged.iter().enumerate() {
                    if at < pipes.len() && lost[at] {
                        gap += 1;
                        continue;
                    }
                    if gap > 0 || more > 0 {
                        sequence.gap(gap + more, true, false);
                        (gap, more) = (0, 0);
                    }
                    if skip != Some(at) {
                        sequence.line(*number)?;
                    }
                }
                sequence.stop()
            };
            prop_assert_eq!(run(None, 0), Ok(()));
            prop_assert!(run(None, 1).is_err());
            let victim = victim.index(pipes.len());
            if !lost[victim] {
                prop_assert!(run(Some(victim), 0).is_err());
            }
        }
    }
}
