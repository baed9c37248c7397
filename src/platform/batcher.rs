//! Lines → what a tail hands out: counts positions, leaves out what lies before the place where the reading begins, and lays
//! lines into batches. Pure.
//!
//! Every line passes through here from the scan's first one on, delivered or not: so positions do not depend on where the
//! delivery begins.

#[cfg(test)]
mod tests;

use bytes::Bytes;

use crate::model::limits::{LINE_HELD_MAX_BYTES, READ_MAX_BYTES};
use crate::model::line::{GapCause, Line, LineBatch, SourceGap, Stream};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::TailItem;
use crate::platform::cri::DroppedOutput;

/// Where the delivery begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::platform) enum StartFilter {
    /// Everything is delivered.
    All,
    /// Nothing is.
    Nothing,
    /// All but the next so many lines.
    Lines(u64),
    /// From the first line on that is not older.
    Since(LogTime),
    /// From behind this position on.
    After(Position),
    /// All but the first so many bytes of the next line.
    Bytes(u64),
}

/// How a record's content relates to its line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::platform) struct Piece {
    /// The line's time: that of its first piece.
    pub(in crate::platform) time: LogTime,
    /// Whether earlier pieces of the line lie before it.
    pub(in crate::platform) continues: bool,
    /// The output it was written to, if that is known.
    pub(in crate::platform) stream: Option<Stream>,
}

/// The merged line that has not ended.
#[derive(Clone, Copy, Debug)]
struct OpenLine {
    /// Time of its first record, by which positions count it.
    time: LogTime,
    /// Its last piece.
    last: Piece,
}

/// Collects what is delivered.
#[derive(Debug)]
pub(in crate::platform) struct LineBatcher {
    /// The position behind the last line or piece, delivered or not.
    at: Position,
    /// Set while `at` lies within a line.
    open: Option<OpenLine>,
    /// Whole lines so far, delivered or not.
    lines: u64,
    /// The time of the first line.
    first: Option<LogTime>,
    filter: StartFilter,
    /// The position where the delivery begins, once that is known.
    start: Option<Position>,
    /// Whether the delivery begins at a place that may lie behind missing lines.
    inexact: bool,
    items: Vec<TailItem>,
    data: Vec<u8>,
    batch: Vec<Line>,
    /// A gap that may still grow.
    gap: Option<SourceGap>,
    /// While everything was too old: what is missing behind the last line, and may not be.
    doubt: Option<SourceGap>,
    /// How many bytes of log the next batch is made of.
    expected_bytes: usize,
}

/// A gap of which nothing is known; where it lies is for the emitter to say.
pub(in crate::platform) const fn unknown_gap(cause: GapCause) -> SourceGap {
    SourceGap { cause, lines: 0, bytes: 0, exact: false, after: Position::START }
}

// === impl LineBatcher ===

impl LineBatcher {
    /// Goes on behind `lines` lines, at the position `at`.
    pub(in crate::platform) fn new(at: Position, lines: u64, filter: StartFilter) -> Self {
        let mut emitter = Self {
            at,
            open: None,
            lines,
            first: None,
            filter,
            start: None,
            inexact: false,
            items: Vec::new(),
            data: Vec::new(),
            batch: Vec::new(),
            gap: None,
            doubt: None,
            expected_bytes: 0,
        };
        match filter {
            StartFilter::All | StartFilter::Lines(0) => emitter.begin(at),
            StartFilter::After(to) => emitter.meet(to),
            _ => {}
        }
        emitter
    }

    /// The position behind the last line or piece, delivered or not.
    pub(in crate::platform) fn at(&self) -> Position {
        self.at
    }

    /// Whole lines so far, delivered or not.
    pub(in crate::platform) fn lines(&self) -> u64 {
        self.lines
    }

    /// The time of the first line that was seen.
    pub(in crate::platform) fn first(&self) -> Option<LogTime> {
        self.first
    }

    /// The position where the delivery begins, once that is known.
    pub(in crate::platform) fn start(&self) -> Option<Position> {
        self.start
    }

    /// Whether the position to go on behind was not found, and the delivery begins behind where it would lie.
    pub(in crate::platform) fn is_inexact(&self) -> bool {
        self.inexact
    }

    /// Delivers everything from here on.
    pub(in crate::platform) fn begin_here(&mut self) {
        self.begin(self.at);
    }

    /// Puts a gap before everything.
    pub(in crate::platform) fn gap_first(&mut self, gap: SourceGap) {
        let gap = SourceGap { after: self.start.unwrap_or(self.at), ..gap };
        self.items.insert(0, TailItem::Gap(gap));
    }

    /// What comes next is made of `bytes` of log.
    pub(in crate::platform) fn expect(&mut self, bytes: usize) {
        self.expected_bytes = bytes;
    }

    /// Takes a whole line, without its newline.
    #[cfg(test)]
    pub(in crate::platform) fn line(&mut self, content: &[u8], time: LogTime) {
        self.record(content, false, time, Piece { time, continues: false, stream: None });
    }

    /// Takes the content of a record that was written at `time`: a line without its newline, or a `partial` one.
    #[inline]
    pub(in crate::platform) fn record(&mut self, content: &[u8], partial: bool, time: LogTime, piece: Piece) {
        self.emit(content, !partial, time, !partial, piece);
    }

    /// Takes a piece of a line of merged output, its newline included if it has one. `ends` with the last one.
    pub(in crate::platform) fn piece(&mut self, bytes: &[u8], time: LogTime, ends: bool) {
        let continues = !self.at.at_line_start();
        self.emit(bytes, false, time, ends, Piece { time, continues, stream: None });
    }

    /// Ends the line that has not ended, if there is one, where it is.
    pub(in crate::platform) fn end_line(&mut self) {
        if let Some(OpenLine { time, last }) = self.open {
            self.emit_one(&[], false, time, true, Piece { continues: true, ..last });
        }
    }

    /// The log has a record that lines are missing here. It takes a position as a line does, so that whoever goes on behind it is
    /// not told again.
    pub(in crate::platform) fn lost(&mut self, lost: DroppedOutput, time: LogTime) {
        self.open = None;
        let before = self.at;
        self.at = before.after_line(time);
        let filter = self.filter;
        match filter {
            StartFilter::After(to) => {
                if self.at < to || self.is_base_of(to) {
                    self.meet(to);
                    return;
                }
                self.inexact = true;
                self.begin(before);
                self.gap_at(before, unknown_gap(GapCause::Rotated));
            }
            StartFilter::Since(since) if !self.begin_since(since, time, before) => return,
            // There is no line here that it could lie in.
            StartFilter::Bytes(_) => self.filter = StartFilter::All,
            _ => {}
        }
        let DroppedOutput { lines, bytes, exact } = lost;
        self.gap(SourceGap { lines, bytes, exact, ..unknown_gap(GapCause::Source) });
    }

    /// Lines are missing here.
    pub(in crate::platform) fn gap(&mut self, gap: SourceGap) {
        self.gap_at(self.at, gap);
    }

    /// Lines are missing here, and none is to come. Those may have been new enough, though none before was.
    pub(in crate::platform) fn gap_at_end(&mut self, gap: SourceGap) {
        if let StartFilter::Since(_) = self.filter {
            let doubt = self.doubt.take();
            self.begin_here();
            if let Some(gap) = doubt {
                self.gap(gap);
            }
        }
        self.gap(gap);
    }

    fn gap_at(&mut self, after: Position, gap: SourceGap) {
        match self.filter {
            StartFilter::All => {}
            StartFilter::Since(_) => {
                let before = self.doubt.unwrap_or(SourceGap { exact: true, ..unknown_gap(gap.cause) });
                self.doubt = Some(SourceGap {
                    lines: before.lines.saturating_add(gap.lines),
                    bytes: before.bytes.saturating_add(gap.bytes),
                    exact: before.exact && gap.exact,
                    ..gap
                });
                return;
            }
            _ => return,
        }
        let gap = SourceGap { after, ..gap };
        self.cut_batch();
        match &mut self.gap {
            Some(last) if last.cause == gap.cause && last.exact == gap.exact => {
                last.lines = last.lines.saturating_add(gap.lines);
                last.bytes = last.bytes.saturating_add(gap.bytes);
                last.after = gap.after;
            }
            _ => {
                self.cut_gap();
                self.gap = Some(gap);
            }
        }
    }

    /// Returns what is to be delivered, but for an unfinished line at its end that is not too long to be held back.
    pub(in crate::platform) fn take_finished(&mut self, rest: bool) -> Vec<TailItem> {
        let held = match self.batch.last() {
            Some(line) if !line.ends => self.batch.pop(),
            _ => None,
        };
        let bytes = held.map(|_| self.data.split_off(self.batch.last().map_or(0, |line| line.end)));
        // A gap lies before it.
        let items = self.take(rest && held.is_none());
        if let (Some(held), Some(bytes)) = (held, bytes) {
            self.batch.push(Line { end: bytes.len(), ..held });
            self.data = bytes;
        }
        items
    }

    /// Whether an unfinished line is held back.
    pub(in crate::platform) fn holds_unfinished(&self) -> bool {
        !self.batch.is_empty()
    }

    /// What there is to deliver. At a `rest` nothing is held back; otherwise a gap that may still grow is.
    pub(in crate::platform) fn take(&mut self, rest: bool) -> Vec<TailItem> {
        self.cut_batch();
        if rest {
            self.cut_gap();
        }
        std::mem::take(&mut self.items)
    }

    #[inline]
    fn emit(&mut self, mut content: &[u8], newline: bool, time: LogTime, ends: bool, mut piece: Piece) {
        while content.len() + usize::from(newline) > LINE_HELD_MAX_BYTES {
            let (head, rest) = content.split_at(LINE_HELD_MAX_BYTES);
            self.emit_one(head, false, time, false, piece);
            piece.continues = true;
            content = rest;
        }
        self.emit_one(content, newline, time, ends, piece);
    }

    fn emit_one(&mut self, content: &[u8], newline: bool, time: LogTime, ends: bool, mut piece: Piece) {
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
            match self.admit(before, len, piece.time, ends) {
                Some(skipped) => from = skipped,
                None => return,
            }
        }
        piece.continues |= from > 0;
        self.cut_gap();
        if self.join_last(content, newline, ends, piece) {
            return;
        }
        if self.data.len() >= READ_MAX_BYTES {
            self.cut_batch();
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

    /// Adds a piece to the one before it in the same batch, if that belongs to the same line and both together are short enough.
    fn join_last(&mut self, content: &[u8], newline: bool, ends: bool, piece: Piece) -> bool {
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

    /// Whether a piece between `before` and here is delivered, and but for how many bytes.
    fn admit(&mut self, before: Position, len: usize, time: LogTime, ends: bool) -> Option<usize> {
        match self.filter {
            StartFilter::All => Some(0),
            StartFilter::Nothing => None,
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
            StartFilter::After(to) => {
                if self.at < to || self.is_base_of(to) {
                    self.meet(to);
                    return None;
                }
                self.inexact = true;
                self.begin(before);
                self.gap_at(before, unknown_gap(GapCause::Rotated));
                Some(0)
            }
            StartFilter::Bytes(skipped) => {
                let skip = usize::try_from(skipped.saturating_sub(before.offset)).unwrap_or(usize::MAX);
                if ends || skip < len {
                    self.filter = StartFilter::All;
                }
                if ends && skip >= len && skip > 0 {
                    // It is not the line that the position was in.
                    self.gap_at(self.at, unknown_gap(GapCause::Rotated));
                }
                (skip < len || skip == 0).then_some(skip)
            }
        }
    }

    /// Begins the delivery if `to` lies here, or within the next line.
    fn meet(&mut self, to: Position) {
        if self.is_base_of(to) {
            self.begin(to);
            if to.offset > 0 {
                self.filter = StartFilter::Bytes(to.offset);
            }
        }
    }

    fn is_base_of(&self, to: Position) -> bool {
        self.at == Position { offset: 0, ..to }
    }

    /// Begins the delivery `before` what bears `time`, if that is not too old; tells whether it is not. What is missing directly
    /// before it may not be either.
    fn begin_since(&mut self, since: LogTime, time: LogTime, before: Position) -> bool {
        let doubt = self.doubt.take();
        if time < since {
            return false;
        }
        self.begin(before);
        if let Some(gap) = doubt {
            self.gap_at(before, gap);
        }
        true
    }

    fn begin(&mut self, start: Position) {
        self.filter = StartFilter::All;
        self.start = Some(start);
    }

    fn cut_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        // Whoever keeps the batch shall keep no more than its bytes.
        let data = Bytes::from(std::mem::take(&mut self.data).into_boxed_slice());
        let lines = std::mem::take(&mut self.batch);
        self.items.push(TailItem::Lines(LineBatch { data, lines }));
    }

    fn cut_gap(&mut self) {
        if let Some(gap) = self.gap.take() {
            self.items.push(TailItem::Gap(gap));
        }
    }
}
