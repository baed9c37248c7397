//! What was read last, remembered by time and hash; and finding that place again in another response. Pure.
//!
//! The API cannot be asked to go on at a place: `sinceTime` has whole seconds, filters every line (so a clock that is set back would
//! silence whatever comes), and times tie. The last lines are asked for instead, and those that were read before are recognised.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hasher as _};

use crate::model::time::LogTime;

/// Lines that are remembered, and as many are asked for when a log is opened again: what a loud service (5,000 lines/s) prints while
/// a connection is made, several times over. 16 bytes each.
pub(super) const WINDOW_LINES: usize = 2_048;

/// So many lines in a row are a place, wherever they stand. Fewer are only at the beginning of a response.
const RUN_LINES: usize = 32;

/// One line: its time, and a hash of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mark {
    /// When it was written.
    pub(super) time: LogTime,
    /// Of its bytes, newline included.
    pub(super) hash: u64,
}

/// Hashes a line that may come in pieces.
#[derive(Debug, Default)]
pub(super) struct LineHash(DefaultHasher);

/// The last lines of a log that were read, oldest first.
#[derive(Debug, Default)]
pub(super) struct Window(VecDeque<Mark>);

/// Looks for the place behind the newest line of a window.
#[derive(Debug)]
pub(super) struct Aligner {
    known: Vec<Mark>,
    /// Where in `known` the response may have begun.
    candidates: Vec<usize>,
    /// Lines before the one that `candidates` are about: 0, or 1 if the first was the rest of a line.
    base: usize,
    lines: usize,
    recent: VecDeque<Mark>,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It may be one that was read before.
    Before,
    /// It is the last one that was read before: what follows is new.
    Last,
    /// In a response of last lines: it is none that was read before, so the place is not in this response.
    Elsewhere,
}

// === impl LineHash ===

impl LineHash {
    /// Takes further bytes of the line.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    /// The hash of the line; begins the next one.
    pub(super) fn finish(&mut self) -> u64 {
        std::mem::take(&mut self.0).finish()
    }
}

// === impl Window ===

impl Window {
    /// Remembers a line.
    pub(super) fn push(&mut self, mark: Mark) {
        if self.0.len() == WINDOW_LINES {
            self.0.pop_front();
        }
        self.0.push_back(mark);
    }

    /// The newest line.
    pub(super) fn last(&self) -> Option<Mark> {
        self.0.back().copied()
    }

    /// Whether a line is remembered.
    pub(super) fn contains(&self, mark: Mark) -> bool {
        self.0.contains(&mark)
    }

    /// All that are remembered.
    pub(super) fn all(&self) -> HashSet<Mark> {
        self.0.iter().copied().collect()
    }

    /// Whether none is.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A search for the place behind the newest line. Not to be made of an empty window: every line is behind it.
    pub(super) fn aligner(&self) -> Aligner {
        let known: Vec<Mark> = self.0.iter().copied().collect();
        Aligner { known, candidates: Vec::new(), base: 0, lines: 0, recent: VecDeque::new() }
    }
}

// === impl Aligner ===

impl Aligner {
    /// Takes the next line of the response.
    pub(super) fn take(&mut self, mark: Mark) -> Place {
        let index = self.lines;
        self.lines += 1;
        if index == self.base {
            let begins = |at: &usize| self.known[*at] == mark;
            self.candidates = (0..self.known.len()).filter(begins).collect();
            if self.candidates.is_empty() && index == 0 {
                // A response of so many last lines may begin within one.
                self.base = 1;
            }
        } else {
            let offset = index - self.base;
            let known = &self.known;
            self.candidates.retain(|at| known.get(at + offset) == Some(&mark));
        }
        if self.recent.len() == RUN_LINES {
            self.recent.pop_front();
        }
        self.recent.push_back(mark);
        if self.is_last(index) {
            Place::Last
        } else if self.candidates.is_empty() && index > 0 {
            Place::Elsewhere
        } else {
            Place::Before
        }
    }

    fn is_last(&self, index: usize) -> bool {
        // The candidate that overlaps most, as long as it holds.
        let by_beginning =
            self.candidates.first().is_some_and(|at| at + index - self.base + 1 == self.known.len());
        let run = &self.known[self.known.len().saturating_sub(RUN_LINES)..];
        by_beginning
            || self.lines > run.len() && self.recent.iter().rev().take(run.len()).eq(run.iter().rev())
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

    /// Which line of `response` is the last known one; `None` if it is not found.
    fn find(window: &Window, response: &[Mark]) -> Option<usize> {
        let mut aligner = window.aligner();
        response.iter().position(|mark| aligner.take(*mark) == Place::Last)
    }

    #[test]
    fn the_place_is_found_in_last_lines_and_in_a_whole_file() {
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
    fn what_was_never_read_is_noticed_at_once() {
        let log: Vec<Mark> = (0..100).map(|n| mark(n, u64::try_from(n).unwrap())).collect();
        let mut aligner = window(&log[..50]).aligner();
        assert_eq!(aligner.take(log[60]), Place::Before);
        assert_eq!(aligner.take(log[61]), Place::Elsewhere);
    }

    #[test]
    fn equal_lines_of_equal_time_are_told_apart_by_where_they_stand() {
        let twice = [mark(1, 1), mark(2, 2), mark(2, 2)];
        assert_eq!(find(&window(&twice), &[mark(2, 2), mark(2, 2), mark(3, 3)]), Some(1));
        assert_eq!(find(&window(&twice), &[mark(1, 1), mark(2, 2), mark(2, 2), mark(2, 2)]), Some(2));
    }

    #[test]
    fn a_hash_does_not_depend_on_the_pieces() {
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
        /// Whatever part of a log was read before, and wherever a response begins in it: the place is the right one.
        #[test]
        fn the_place_is_right(
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
