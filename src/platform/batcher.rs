//! Makes the items of a tail from lines: counts positions, skips lines before the start of the read, and
//! forms batches. Pure.
//!
//! Every line passes through here from the start of the scan, delivered or not, so positions do not depend on
//! where delivery starts.

#[cfg(test)]
mod tests;

use std::fmt;

use bytes::Bytes;

use crate::model::limits::{LINE_HELD_MAX_BYTES, READ_MAX_BYTES};
use crate::model::line::{GapCause, Line, LineBatch, OutputStream, SourceGap};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::TailItem;
use crate::platform::cri::DroppedOutput;

/// The first line that is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum StartFilter {
    #[default]
    All,
    Nothing,
    /// After this many more lines.
    Lines(u64),
    /// At the first line that is not older.
    Since(LogTime),
    After(Position),
    /// At this offset within the next line.
    Bytes(u64),
}

/// How the content of a record relates to its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The line's time: that of its first piece.
    pub(super) time: LogTime,
    /// Whether earlier pieces of the line exist.
    pub(super) continues: bool,
    /// The stream it was written to, if known.
    pub(super) stream: Option<OutputStream>,
}

/// The unfinished merged line.
#[derive(Clone, Copy, Debug)]
struct OpenLine {
    /// Time of its first record, which its position has.
    time: LogTime,
    last: Piece,
}

/// Collects lines and gaps into items.
#[derive(Default)]
pub(super) struct LineBatcher {
    /// The position after the last line or piece, delivered or not.
    at: Position,
    /// Set while `at` is within a line.
    open: Option<OpenLine>,
    /// Complete lines so far, delivered or not.
    lines: u64,
    /// The time of the first line.
    first: Option<LogTime>,
    filter: StartFilter,
    /// Where delivery starts, once known.
    start: Option<Position>,
    /// Whether lines may be missing before `start`.
    resume_missed: bool,
    items: Vec<TailItem>,
    data: Vec<u8>,
    batch: Vec<Line>,
    /// A gap that may still grow.
    gap: Option<SourceGap>,
    /// Gaps after the last line, which was not delivered. With [`StartFilter::Since`] they may be new enough.
    /// With [`StartFilter::Nothing`] a reader of the lines before them stops there, and would not report
    /// them.
    pending_gap: Option<SourceGap>,
    /// Size of the next batch, in bytes of log.
    expected_bytes: usize,
}

/// A gap of unknown size. The batcher sets its position.
pub(super) const fn unknown_gap(cause: GapCause) -> SourceGap {
    SourceGap { cause, lines: 0, bytes: 0, exact: false, after: Position::START }
}

/// Returns one gap for two, with the cause and position of the second.
fn join_gaps(first: SourceGap, second: SourceGap) -> SourceGap {
    SourceGap {
        lines: first.lines.saturating_add(second.lines),
        bytes: first.bytes.saturating_add(second.bytes),
        exact: first.exact && second.exact,
        ..second
    }
}

// === impl LineBatcher ===

impl LineBatcher {
    /// Continues at the position `at`, after `lines` lines.
    pub(super) fn new(at: Position, lines: u64, filter: StartFilter) -> Self {
        let mut batcher = Self { at, lines, filter, ..Self::default() };
        match filter {
            StartFilter::All | StartFilter::Lines(0) => batcher.begin(at),
            StartFilter::After(to) => batcher.begin_if_reached(to),
            _ => {}
        }
        batcher
    }

    /// Returns the position after the last line or piece, delivered or not.
    pub(super) fn at(&self) -> Position {
        self.at
    }

    /// Returns the number of complete lines so far, delivered or not.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    /// Returns the time of the first line, delivered or not.
    pub(super) fn first(&self) -> Option<LogTime> {
        self.first
    }

    /// Returns the position where delivery starts, once known.
    pub(super) fn start(&self) -> Option<Position> {
        self.start
    }

    /// Whether the position of [`StartFilter::After`] was not found, and delivery starts after the place
    /// where it would be.
    pub(super) fn resume_missed(&self) -> bool {
        self.resume_missed
    }

    /// Delivers everything from here on, and gaps that have no line after them.
    pub(super) fn begin_here(&mut self) {
        self.begin(self.at);
        if let Some(gap) = self.pending_gap.take() {
            self.gap(gap);
        }
    }

    /// Adds a gap before all other items.
    pub(super) fn gap_first(&mut self, gap: SourceGap) {
        let gap = SourceGap { after: self.start.unwrap_or(self.at), ..gap };
        self.items.insert(0, TailItem::Gap(gap));
    }

    /// Announces that the next records have `bytes` bytes, so that buffers are allocated once.
    pub(super) fn reserve_for(&mut self, bytes: usize) {
        self.expected_bytes = bytes;
    }

    /// Adds the content of a record written at `time`: the end of a line, without its newline, or a `partial`
    /// line.
    #[inline]
    pub(super) fn record(&mut self, content: &[u8], partial: bool, time: LogTime, piece: Piece) {
        self.push(content, !partial, time, !partial, piece);
    }

    /// Adds a piece of a line of merged output, including its newline if it has one. The last one `ends` the
    /// line.
    pub(super) fn piece(&mut self, bytes: &[u8], time: LogTime, ends: bool) {
        let continues = !self.at.at_line_start();
        self.push(bytes, false, time, ends, Piece { time, continues, stream: None });
    }

    /// Ends an unfinished line.
    pub(super) fn end_line(&mut self) {
        if let Some(OpenLine { time, last }) = self.open {
            self.push_piece(&[], false, time, true, Piece { continues: true, ..last });
        }
    }

    /// Adds a gap that the log itself records. It takes a position, like a line, so a read after that
    /// position does not return it again.
    pub(super) fn dropped_output(&mut self, dropped: DroppedOutput, time: LogTime) {
        self.open = None;
        let before = self.at;
        self.at = before.after_line(time);
        let filter = self.filter;
        match filter {
            StartFilter::After(to) if !self.begin_after(to, before) => return,
            StartFilter::Since(since) if !self.begin_since(since, time, before) => return,
            StartFilter::Nothing => {
                self.pending_gap = None;
                return;
            }
            // This is no line that could contain the offset.
            StartFilter::Bytes(_) => self.filter = StartFilter::All,
            _ => {}
        }
        let DroppedOutput { lines, bytes, exact } = dropped;
        self.gap(SourceGap { lines, bytes, exact, ..unknown_gap(GapCause::Source) });
    }

    /// Adds a gap at the present position.
    pub(super) fn gap(&mut self, gap: SourceGap) {
        self.gap_at(self.at, gap);
    }

    /// Adds a gap at the end of the log. With [`StartFilter::Since`] the missing lines may have been new
    /// enough, though no line before them was.
    pub(super) fn gap_at_end(&mut self, gap: SourceGap) {
        if let StartFilter::Since(_) = self.filter {
            self.begin_here();
        }
        self.gap(gap);
    }

    fn gap_at(&mut self, after: Position, gap: SourceGap) {
        match self.filter {
            StartFilter::All => {}
            StartFilter::Since(_) | StartFilter::Nothing => {
                self.pending_gap = Some(self.pending_gap.map_or(gap, |before| join_gaps(before, gap)));
                return;
            }
            _ => return,
        }
        let gap = SourceGap { after, ..gap };
        self.flush_batch();
        match &mut self.gap {
            Some(last) if last.cause == gap.cause && last.exact == gap.exact => {
                *last = join_gaps(*last, gap);
            }
            _ => {
                self.flush_gap();
                self.gap = Some(gap);
            }
        }
    }

    /// Takes the items, except an unfinished line at their end that is short enough to be held back.
    pub(super) fn take_finished(&mut self, at_end: bool) -> Vec<TailItem> {
        let held = match self.batch.last() {
            Some(line) if !line.ends => self.batch.pop(),
            _ => None,
        };
        let bytes = held.map(|_| self.data.split_off(self.batch.last().map_or(0, |line| line.end)));
        // A gap would be before the held line, so it may still grow.
        let items = self.take_items(at_end && held.is_none());
        if let (Some(held), Some(bytes)) = (held, bytes) {
            self.batch.push(Line { end: bytes.len(), ..held });
            self.data = bytes;
        }
        items
    }

    /// Whether an unfinished line is held back.
    pub(super) fn holds_unfinished(&self) -> bool {
        !self.batch.is_empty()
    }

    /// Takes the items. A gap that may still grow is held back, unless `at_end`.
    pub(super) fn take_items(&mut self, at_end: bool) -> Vec<TailItem> {
        self.flush_batch();
        if at_end {
            self.flush_gap();
        }
        std::mem::take(&mut self.items)
    }

    #[inline]
    fn push(&mut self, mut content: &[u8], newline: bool, time: LogTime, ends: bool, mut piece: Piece) {
        while content.len() + usize::from(newline) > LINE_HELD_MAX_BYTES {
            let (head, rest) = content.split_at(LINE_HELD_MAX_BYTES);
            self.push_piece(head, false, time, false, piece);
            piece.continues = true;
            content = rest;
        }
        self.push_piece(content, newline, time, ends, piece);
    }

    fn push_piece(&mut self, content: &[u8], newline: bool, time: LogTime, ends: bool, mut piece: Piece) {
        let len = content.len() + usize::from(newline);
        let before = self.at;
        let time = self.open.map_or(time, |open| open.time);
        (self.at, self.open) = if ends {
            self.lines += 1;
            (before.after_line(time), None)
        } else {
            (before.after_bytes(len), Some(OpenLine { time, last: piece }))
        };
        self.first.get_or_insert(time);
        let mut from = 0;
        if self.filter != StartFilter::All {
            match self.filter_piece(before, len, piece.time, ends) {
                Some(skipped) => from = skipped,
                None => return,
            }
        }
        piece.continues |= from > 0;
        self.flush_gap();
        if self.extend_last(content, newline, ends, piece) {
            return;
        }
        if self.data.len() >= READ_MAX_BYTES {
            self.flush_batch();
        }
        if self.data.capacity() == 0 {
            self.data.reserve(self.expected_bytes.max(len));
        }
        self.data.extend_from_slice(content.get(from..).unwrap_or_default());
        if newline {
            self.data.push(b'\n');
        }
        let Piece { time, continues, stream } = piece;
        self.batch.push(Line { end: self.data.len(), time, after: self.at, ends, continues, stream });
    }

    /// Joins a piece to the last one of the batch, if both belong to one line and are short enough together.
    fn extend_last(&mut self, content: &[u8], newline: bool, ends: bool, piece: Piece) -> bool {
        let before = self.batch.len().checked_sub(2).map_or(0, |index| self.batch[index].end);
        let Some(last) = self.batch.last_mut().filter(|last| !last.ends && piece.continues) else {
            return false;
        };
        let len = last.end - before + content.len() + usize::from(newline);
        if last.stream != piece.stream || len > LINE_HELD_MAX_BYTES {
            return false;
        }
        self.data.extend_from_slice(content);
        if newline {
            self.data.push(b'\n');
        }
        (last.end, last.after, last.ends) = (self.data.len(), self.at, ends);
        true
    }

    /// Returns how many bytes of a piece to skip, or `None` if it is not delivered. The piece is between
    /// `before` and `at`.
    fn filter_piece(&mut self, before: Position, len: usize, time: LogTime, ends: bool) -> Option<usize> {
        match self.filter {
            StartFilter::All => Some(0),
            StartFilter::Nothing => {
                self.pending_gap = None;
                None
            }
            StartFilter::Lines(left) => {
                if ends {
                    self.filter = StartFilter::Lines(left - 1);
                    if left == 1 {
                        self.begin(self.at);
                    }
                }
                None
            }
            StartFilter::Since(since) => self.begin_since(since, time, before).then_some(0),
            StartFilter::After(to) => self.begin_after(to, before).then_some(0),
            StartFilter::Bytes(skipped) => {
                let skip = usize::try_from(skipped.saturating_sub(before.offset)).unwrap_or(usize::MAX);
                if ends || skip < len {
                    self.filter = StartFilter::All;
                }
                if ends && skip >= len && skip > 0 {
                    // The line is shorter than the offset, so it is another one.
                    self.gap_at(self.at, unknown_gap(GapCause::Rotated));
                }
                (skip < len || skip == 0).then_some(skip)
            }
        }
    }

    /// Starts delivery if `to` is here or within the next line.
    fn begin_if_reached(&mut self, to: Position) {
        if self.is_line_of(to) {
            self.begin(to);
            if to.offset > 0 {
                self.filter = StartFilter::Bytes(to.offset);
            }
        }
    }

    /// Whether the line that `to` is in begins here.
    fn is_line_of(&self, to: Position) -> bool {
        self.at == Position { offset: 0, ..to }
    }

    /// Starts delivery with the last item, which begins at `before`, if it is after `to`: that was not found.
    /// Returns whether it did.
    fn begin_after(&mut self, to: Position, before: Position) -> bool {
        // The first piece of a line decides: later ones must not come without it.
        let line = Position { offset: 0, ..before };
        let end = self.open.map_or(self.at, |open| line.after_line(open.time));
        if end <= (Position { offset: 0, ..to }) {
            self.begin_if_reached(to);
            return false;
        }
        self.resume_missed = true;
        self.begin(before);
        self.gap_at(before, unknown_gap(GapCause::Rotated));
        true
    }

    /// Starts delivery at `before`, with the pending gap, if `time` is not too old. Returns whether it did.
    fn begin_since(&mut self, since: LogTime, time: LogTime, before: Position) -> bool {
        let pending = self.pending_gap.take();
        if time < since {
            return false;
        }
        self.begin(before);
        if let Some(gap) = pending {
            self.gap_at(before, gap);
        }
        true
    }

    fn begin(&mut self, start: Position) {
        self.filter = StartFilter::All;
        self.start = Some(start);
    }

    fn flush_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        // Boxed, so that a batch that is kept holds no spare capacity.
        let data = Bytes::from(std::mem::take(&mut self.data).into_boxed_slice());
        let lines = std::mem::take(&mut self.batch);
        self.items.push(TailItem::Lines(LineBatch { data, lines }));
    }

    fn flush_gap(&mut self) {
        if let Some(gap) = self.gap.take() {
            self.items.push(TailItem::Gap(gap));
        }
    }
}

/// Without the log's content.
impl fmt::Debug for LineBatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineBatcher")
            .field("at", &self.at)
            .field("lines", &self.lines)
            .field("filter", &self.filter)
            .field("start", &self.start)
            .field("batched_bytes", &self.data.len())
            .finish_non_exhaustive()
    }
}
