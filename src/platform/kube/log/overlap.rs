//! The newest lines of a log, remembered by time and hash, and the search for them in another response. Pure.
//!
//! The API cannot resume at a position: `sinceTime` has whole seconds, filters every line (so a clock set
//! back would hide all later lines), and times tie. So the last lines are requested, and those that were read
//! before are recognised.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hasher as _};

use crate::model::time::LogTime;

/// Fewest lines that are remembered, and requested when a log is opened again: several times the output of a
/// service of 5,000 lines/s while a connection is made. 16 bytes each.
pub(super) const WINDOW_LINES: usize = 2_048;

/// Most lines that are remembered and requested: 1 MiB of marks. Only a log of 16,000 lines/s or more needs
/// them.
pub(super) const WINDOW_MAX_LINES: usize = 65_536;

/// Log time that the window of a busy log covers: longer than a busy API server takes to open a log.
const WINDOW_SPAN_NANOS: i64 = 4_000_000_000;

/// Fewest lines that a poll requests. Low, because one node may have many logs that cannot be followed.
const POLL_LINES: u64 = 256;

/// Longest step back between two lines that is not a change of the clock: runtimes stamp stdout and stderr in
/// separate tasks, and on a busy node one of them may run late.
pub(super) const REORDER_MAX_NANOS: i64 = 1_000_000_000;

/// Lines in a row that identify the resume point anywhere in a response. A shorter sequence is accepted only
/// at the start of the response.
const SEQUENCE_LINES: usize = 32;

/// One line: its time, and a hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mark {
    pub(super) time: LogTime,
    /// Includes the newline.
    pub(super) hash: u64,
}

/// Hash of a line that may come in pieces.
#[derive(Debug, Default)]
pub(super) struct LineHash(DefaultHasher);

/// The newest lines that were read, oldest first: at least [`WINDOW_LINES`], and more of a busy log.
#[derive(Debug, Default)]
pub(super) struct Window {
    marks: VecDeque<Mark>,
    /// The greatest time among them.
    max: LogTime,
    /// Lines after the last one with that time.
    since_max: usize,
    /// Lines after the last one that is older than an earlier line by more than [`REORDER_MAX_NANOS`].
    /// Without such a line, at least the number of marks.
    since_drop: usize,
}

/// A line of a stream, compared with the lines that were read before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Novelty {
    /// It was not read before.
    New,
    /// It was read before.
    Repeated,
    /// It is older than lines that were read, and is not remembered. Either the clock was set back, or the
    /// stream has returned to the beginning of a file: only the file itself can tell.
    Suspect,
}

/// The search for the resume point: the end of the newest remembered line.
#[derive(Debug)]
pub(super) struct OverlapFinder {
    known: Vec<Mark>,
    /// Indices in `known` at which the response may have begun.
    candidates: Vec<usize>,
    /// Lines before the one that `candidates` are about: 0, or 1 if the first one was the rest of a line.
    base: usize,
    /// Number of lines, counted from the first, that may be older than all remembered ones.
    reach: u64,
    lines: usize,
    recent: VecDeque<Mark>,
}

/// State of a search after a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overlap {
    /// The resume point may follow.
    Pending,
    /// This line is the newest remembered one. All further lines are new.
    Complete,
    /// This line was not read before, so a response of last lines does not have the resume point.
    Absent,
}

// === impl LineHash ===

impl LineHash {
    /// Takes further bytes of the line.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// Returns the hash of the bytes so far.
    pub(super) fn value(&self) -> u64 {
        self.0.finish()
    }

    /// Returns the hash of the line, and begins the next one.
    pub(super) fn finish(&mut self) -> u64 {
        std::mem::take(&mut self.0).finish()
    }
}

// === impl Window ===

impl Window {
    /// Remembers a line. Amortised constant time.
    pub(super) fn push(&mut self, mark: Mark) {
        self.marks.push_back(mark);
        (self.since_max, self.since_drop) = (self.since_max + 1, self.since_drop.saturating_add(1));
        if mark.time >= self.max || self.marks.len() == 1 {
            (self.max, self.since_max) = (mark.time, 0);
        } else if nanos_between(mark.time, self.max) > REORDER_MAX_NANOS {
            self.since_drop = 0;
        }
        while self.is_too_long(mark.time) {
            self.marks.pop_front();
        }
        if self.since_max >= self.marks.len() {
            self.rescan();
        }
    }

    pub(super) fn last(&self) -> Option<Mark> {
        self.marks.back().copied()
    }

    /// Compares a line of a stream with those before it. `hash` is `None` for a line that has not ended.
    /// `repeats` if the previous line was a repeated one.
    pub(super) fn compare(&self, time: LogTime, hash: Option<u64>, repeats: bool) -> Novelty {
        let (Some(first), Some(last)) = (self.marks.front(), self.marks.back()) else { return Novelty::New };
        let (is_ordered, is_older) = (self.is_ordered(), time < last.time);
        // After a clock was set back, a stream that returns to the beginning of a file may jump forward in
        // time.
        let jumps = !is_ordered && time <= self.max && nanos_between(last.time, time) > REORDER_MAX_NANOS;
        if !is_older && !jumps && !repeats {
            return Novelty::New;
        }
        let is_known = match hash {
            Some(hash) => self.contains(Mark { time, hash }),
            None => self.marks.iter().any(|mark| mark.time == time),
        };
        let is_new = if is_ordered {
            // The window has all lines between its first and its last time.
            !is_older || time >= first.time
        } else {
            !jumps && nanos_between(time, last.time) <= REORDER_MAX_NANOS
        };
        match (is_known, is_new) {
            (true, _) if hash.is_some() => Novelty::Repeated,
            (false, true) => Novelty::New,
            (true, _) | (false, false) => Novelty::Suspect,
        }
    }

    /// Returns the number of last lines to request, so that the newest remembered one is among them although
    /// the log grows meanwhile.
    pub(super) fn overlap_lines(&self) -> u64 {
        let lines = self.marks.len();
        if lines < WINDOW_LINES {
            return WINDOW_LINES as u64;
        }
        let in_time = self.lines_in(WINDOW_SPAN_NANOS.unsigned_abs());
        in_time.clamp(lines as u64, (WINDOW_MAX_LINES as u64).max(lines as u64))
    }

    /// Returns the same for a log that is polled every few seconds.
    pub(super) fn poll_lines(&self) -> u64 {
        self.lines_in(2 * WINDOW_SPAN_NANOS.unsigned_abs()).clamp(POLL_LINES, self.overlap_lines())
    }

    /// Returns the number of lines that the log gains in this time, estimated from the remembered ones.
    fn lines_in(&self, nanos: u64) -> u64 {
        let (Some(first), Some(last)) = (self.marks.front(), self.marks.back()) else { return 0 };
        // Unknown after a clock was set back.
        let span = u64::try_from(nanos_between(first.time, last.time)).unwrap_or(u64::MAX).max(1);
        (self.marks.len() as u64).saturating_mul(nanos) / span
    }

    pub(super) fn marks(&self) -> HashSet<Mark> {
        self.marks.iter().copied().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Creates a search for the resume point in a response that begins with the last `requested` lines;
    /// `u64::MAX` = in the whole file, which may have it anywhere. `None` if no line is remembered: then all
    /// lines are new.
    pub(super) fn finder(&self, requested: u64) -> Option<OverlapFinder> {
        let known: Vec<Mark> = self.marks.iter().copied().collect();
        // A window that is not full has all lines that were read: the response cannot begin before it.
        let is_full = known.len() >= WINDOW_LINES && requested > known.len() as u64;
        let reach = if is_full || requested == u64::MAX { requested } else { 0 };
        (!known.is_empty()).then(|| OverlapFinder {
            known,
            candidates: Vec::new(),
            base: 0,
            reach,
            lines: 0,
            recent: VecDeque::new(),
        })
    }

    /// Returns whether no line is older than an earlier one by more than [`REORDER_MAX_NANOS`].
    fn is_ordered(&self) -> bool {
        self.since_drop >= self.marks.len()
    }

    fn contains(&self, mark: Mark) -> bool {
        let is_ordered = self.is_ordered();
        let from_newest = self.marks.iter().rev();
        // In an ordered window all lines before an older one are older too, so a reordered line is compared
        // with the newest ones only.
        let mut near = from_newest
            .take_while(|known| !is_ordered || nanos_between(known.time, mark.time) <= REORDER_MAX_NANOS);
        near.any(|known| *known == mark)
    }

    fn is_too_long(&self, newest: LogTime) -> bool {
        let lines = self.marks.len();
        let is_old = |first: &Mark| nanos_between(first.time, newest).saturating_abs() > WINDOW_SPAN_NANOS;
        lines > WINDOW_LINES && (lines > WINDOW_MAX_LINES || self.marks.front().is_some_and(is_old))
    }

    /// Finds the greatest time again, after the line that had it was dropped.
    fn rescan(&mut self) {
        (self.max, self.since_max, self.since_drop) = (LogTime::MIN, 0, self.marks.len());
        for (after, mark) in (0..self.marks.len()).rev().zip(&self.marks) {
            if mark.time >= self.max {
                (self.max, self.since_max) = (mark.time, after);
            } else if nanos_between(mark.time, self.max) > REORDER_MAX_NANOS {
                self.since_drop = after;
            }
        }
    }
}

fn nanos_between(from: LogTime, to: LogTime) -> i64 {
    to.as_nanos().saturating_sub(from.as_nanos())
}

// === impl OverlapFinder ===

impl OverlapFinder {
    /// Takes the next line of the response.
    pub(super) fn observe(&mut self, mark: Mark) -> Overlap {
        let index = self.lines;
        self.lines += 1;
        if index == self.base {
            let begins = |at: &usize| self.known[*at] == mark;
            self.candidates = (0..self.known.len()).filter(begins).collect();
            if self.candidates.is_empty() && index == 0 {
                // A response of last lines may begin within one.
                self.base = 1;
            }
        } else {
            let offset = index - self.base;
            let known = &self.known;
            self.candidates.retain(|at| known.get(at + offset) == Some(&mark));
        }
        if self.recent.len() == SEQUENCE_LINES {
            self.recent.pop_front();
        }
        self.recent.push_back(mark);
        if self.is_last(index) {
            Overlap::Complete
        } else if self.candidates.is_empty() && index > 0 && self.lines as u64 >= self.reach {
            Overlap::Absent
        } else {
            Overlap::Pending
        }
    }

    fn is_last(&self, index: usize) -> bool {
        // The candidate with the longest overlap, while it matches.
        let by_beginning =
            self.candidates.first().is_some_and(|at| at + index - self.base + 1 == self.known.len());
        let newest = &self.known[self.known.len().saturating_sub(SEQUENCE_LINES)..];
        by_beginning
            || self.lines > newest.len()
                && self.recent.iter().rev().take(newest.len()).eq(newest.iter().rev())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mark(time: i64, hash: u64) -> Mark {
        Mark { time: LogTime::from_nanos(time), hash }
    }

    fn window(marks: &[Mark]) -> Window {
        let mut window = Window::default();
        for mark in marks {
            window.push(*mark);
        }
        window
    }

    /// The index in `response` of the newest remembered line, if it is found.
    fn find(window: &Window, response: &[Mark]) -> Option<usize> {
        let mut finder = window.finder(WINDOW_LINES as u64).unwrap();
        response.iter().position(|mark| finder.observe(*mark) == Overlap::Complete)
    }

    #[test]
    fn resume_point_is_found_in_last_lines_and_whole_file() {
        let log: Vec<Mark> = (0..100).map(|n| mark(n / 3, u64::try_from(n).unwrap())).collect();
        let known = window(&log[..80]);
        assert_eq!(find(&known, &log[70..]), Some(9));
        assert_eq!(find(&known, &log[79..]), Some(0));
        assert_eq!(find(&known, &log), Some(79));
        assert_eq!(find(&window(&log[40..80]), &log), Some(79));
        assert_eq!(find(&known, &log[80..]), None);
        // A response may begin within a line.
        let mut cut = log[70..].to_vec();
        cut[0] = mark(23, 999);
        assert_eq!(find(&known, &cut), Some(9));
    }

    #[test]
    fn response_without_overlap_is_absent_at_second_line() {
        let log: Vec<Mark> = (0..100).map(|n| mark(n, u64::try_from(n).unwrap())).collect();
        let mut finder = window(&log[..50]).finder(WINDOW_LINES as u64).unwrap();
        assert_eq!(finder.observe(log[60]), Overlap::Pending);
        assert_eq!(finder.observe(log[61]), Overlap::Absent);
    }

    #[test]
    fn equal_lines_of_equal_time_differ_by_position() {
        let twice = [mark(1, 1), mark(2, 2), mark(2, 2)];
        assert_eq!(find(&window(&twice), &[mark(2, 2), mark(2, 2), mark(3, 3)]), Some(1));
        assert_eq!(find(&window(&twice), &[mark(1, 1), mark(2, 2), mark(2, 2), mark(2, 2)]), Some(2));
    }

    #[test]
    fn line_in_pieces_has_the_hash_of_the_whole() {
        let mut hash = LineHash::default();
        hash.push(b"a line of some length\n");
        let whole = hash.finish();
        for cut in 0..20 {
            hash.push(&b"a line of some length\n"[..cut]);
            hash.push(&b"a line of some length\n"[cut..]);
            assert_eq!(hash.finish(), whole);
        }
    }

    proptest! {
        /// Any part of a log is remembered, and a response begins anywhere in it.
        #[test]
        fn random_overlap_gives_exact_resume_point(
            steps in proptest::collection::vec(-2_i64..4, 2..200),
            read in any::<proptest::sample::Index>(),
            begin in any::<proptest::sample::Index>(),
        ) {
            let mut time = 1_000;
            let log: Vec<Mark> = steps.iter().zip(0_u64..).map(|(step, hash)| {
                time += step;
                mark(time, hash)
            }).collect();
            let read = read.index(log.len()) + 1;
            let begin = begin.index(read);
            prop_assert_eq!(find(&window(&log[..read]), &log[begin..]), Some(read - 1 - begin));
        }
    }
}
