//! Frames that a member cannot deliver yet, by number. Pure.

use std::collections::BTreeMap;

use super::messages::{Content, Frame};

/// Maximum memory of the kept frames of one replica: about one read of a busy log, which covers the time of a
/// repair. Older ones are dropped, and fetched when their turn comes.
pub const KEPT_MAX_BYTES: usize = 256 * 1024;

/// Frames of one publisher.
#[derive(Debug, Default)]
pub(super) struct Kept {
    frames: BTreeMap<u64, Frame>,
    bytes: usize,
}

// === impl Kept ===

impl Kept {
    /// Keeps a frame. Drops the oldest ones if they take too much memory.
    pub(super) fn insert(&mut self, mut frame: Frame) {
        if let Content::Lines { lines, .. } = &mut frame.content {
            lines.detach();
        }
        self.bytes += frame.cost();
        if let Some(same) = self.frames.insert(frame.number, frame) {
            self.bytes -= same.cost();
        }
        while self.bytes > KEPT_MAX_BYTES {
            self.pop_first();
        }
    }

    /// Takes the frame with this number, and drops older ones.
    pub(super) fn take(&mut self, number: u64) -> Option<Frame> {
        self.drop_before(number);
        let frame = self.frames.remove(&number)?;
        self.bytes -= frame.cost();
        Some(frame)
    }

    /// Drops frames with a lower number.
    pub(super) fn drop_before(&mut self, number: u64) {
        while self.first().is_some_and(|first| first < number) {
            self.pop_first();
        }
    }

    /// Takes the oldest frame.
    pub(super) fn pop_first(&mut self) -> Option<Frame> {
        let (_, frame) = self.frames.pop_first()?;
        self.bytes -= frame.cost();
        Some(frame)
    }

    /// Returns whether the frame with this number is kept.
    pub(super) fn contains(&self, number: u64) -> bool {
        self.frames.contains_key(&number)
    }

    /// Returns the number of the oldest frame.
    pub(super) fn first(&self) -> Option<u64> {
        self.frames.keys().next().copied()
    }

    /// Returns the frames, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.frames.values()
    }

    /// Returns their memory in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::messages::Totals;
    use crate::exchange::rank::Rank;
    use crate::model::id::Instance;
    use crate::model::line::{GapCause, SourceGap};
    use crate::model::position::Position;

    fn frame(number: u64) -> Frame {
        Frame { rank: Rank::default(), number, totals: Totals::default(), content: Content::Event }
    }

    #[test]
    fn oldest_frames_are_dropped_at_the_limit() {
        let mut kept = Kept::default();
        let fits = (KEPT_MAX_BYTES / frame(0).cost()) as u64;
        for number in (0..fits + 3).rev() {
            kept.insert(frame(number));
            kept.insert(frame(number));
            assert!(kept.bytes() <= KEPT_MAX_BYTES);
        }
        assert_eq!(kept.first(), Some(3));
        assert!(kept.contains(5) && !kept.contains(2));
        assert_eq!(kept.take(5).map(|frame| frame.number), Some(5));
        assert_eq!((kept.first(), kept.take(5)), (Some(6), None));
        kept.drop_before(fits + 2);
        assert_eq!(kept.pop_first().map(|frame| frame.number), Some(fits + 2));
        assert_eq!((kept.bytes(), kept.iter().count()), (0, 0));
    }

    #[test]
    fn names_of_runs_count_as_memory() {
        let instance = Instance::new("uid", &"c".repeat(63), 0).unwrap();
        let gap = SourceGap { cause: GapCause::Lag, lines: 1, bytes: 1, exact: true, after: Position::START };
        let content = Content::Gap { instance, start: Position::START, gap };
        assert_eq!(Frame { content, ..frame(0) }.cost(), frame(0).cost() + 69);
    }
}
