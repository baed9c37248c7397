//! Groups lines into chunks, each of which becomes one message. Pure.
//!
//! A chunk has either whole lines or one piece of a line. A line comes in pieces if it is longer than a
//! chunk, if it is not finished in time, or if output of the other stream interrupts it. A whole line after a
//! piece of the other stream is a chunk of its own too, since positions count lines of the merged output, and
//! it is within such a line.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::model::limits::{CHUNK_MAX_BYTES, CHUNK_MAX_LINES};
use crate::model::line::{Line, LineBatch, OutputStream};
use crate::model::position::Position;
use crate::model::time::LogTime;

/// Lines of one instance; at most `CHUNK_MAX_BYTES` and `CHUNK_MAX_LINES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes of the lines, back to back.
    pub data: Bytes,
    /// One per line; a single one for a piece of a line.
    pub(crate) line_ends: Box<[LineEnd]>,
    /// Whether it continues a line that earlier pieces began.
    pub continues: bool,
    /// Position before it.
    pub start: Position,
    /// Position after it.
    pub end: Position,
}

/// End of a line in a chunk, with the line's attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LineEnd {
    /// Offset in the chunk's data of the byte after the line: at most [`CHUNK_MAX_BYTES`].
    pub end: u32,
    /// Time of the line.
    pub time: LogTime,
    /// Output stream of the line, if known.
    pub stream: Option<OutputStream>,
}

/// Groups lines into chunks; keeps every byte, in order. A chunk within one batch shares the batch's memory.
/// Only lines that wait from one batch to the next are copied.
#[derive(Debug)]
pub struct Chunker {
    /// Bytes of pending lines from earlier batches.
    data: BytesMut,
    line_ends: Vec<LineEnd>,
    start: Position,
    end: Position,
}

// === impl Chunk ===

impl Chunk {
    /// Whether it is a single line or piece that must not be grouped with others, since positions within it
    /// count bytes.
    pub(crate) fn is_piece(&self) -> bool {
        !self.start.at_line_start() || !self.end.at_line_start() || self.continues
    }

    /// Whether a later chunk continues its line.
    pub(crate) fn is_unfinished(&self) -> bool {
        !self.end.at_line_start()
    }

    /// Output stream of its first line, if known.
    pub fn stream(&self) -> Option<OutputStream> {
        self.line_ends.first()?.stream
    }

    /// Returns how many lines end in it.
    pub fn lines(&self) -> u64 {
        if self.end.at_line_start() { self.line_ends.len() as u64 } else { 0 }
    }

    /// Returns bytes and time of each line (or piece), in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], LogTime)> {
        let mut start = 0;
        self.line_ends.iter().map(move |line| {
            let end = line.end as usize;
            let bytes = &self.data[start..end];
            start = end;
            (bytes, line.time)
        })
    }

    /// Whether `at` is the start of one of its lines, or within one. A position between its start and its end
    /// that is neither belongs to a line that the reader of this chunk has not seen.
    pub fn contains(&self, at: Position) -> bool {
        let base = Position { offset: 0, ..at };
        let mut line_start = Position { offset: 0, ..self.start };
        if base == line_start {
            return true;
        }
        self.line_ends.iter().take(self.line_ends.len().saturating_sub(1)).any(|line| {
            line_start = line_start.after_line(line.time);
            base == line_start
        })
    }

    /// Returns the part of the chunk after `at`; `None` if there is none. Within a line, returns the
    /// remainder of that line only: the caller asks again, from its end. A position before the chunk returns
    /// all of it.
    pub fn after(&self, at: Position) -> Option<Self> {
        if at <= self.start {
            return Some(self.clone());
        }
        if at >= self.end {
            return None;
        }
        if self.is_piece() {
            return Some(self.piece_after(at));
        }
        let (mut position, mut line_start) = (self.start, 0);
        for (index, line) in self.line_ends.iter().enumerate() {
            if position >= at {
                return Some(self.lines_from(index, position));
            }
            let after = position.after_line(line.time);
            if at < after {
                // The line is whole in this chunk, but another reader sent it in pieces.
                let line_end = line.end as usize;
                let sent = usize::try_from(at.offset).unwrap_or(usize::MAX).min(line_end - line_start);
                let data = self.data.slice(line_start + sent..line_end);
                let line_ends = Box::new([LineEnd { end: u32::try_from(data.len()).ok()?, ..*line }]);
                return Some(Self { data, line_ends, continues: true, start: at, end: after });
            }
            position = after;
            line_start = line.end as usize;
        }
        None
    }

    /// Returns the chunk without its first `count` lines; `None` if it has no other lines.
    pub(crate) fn without_lines(&self, count: usize) -> Option<Self> {
        let skipped = self.line_ends.get(..count).filter(|skipped| skipped.len() < self.line_ends.len())?;
        let start = skipped.iter().fold(self.start, |at, line| at.after_line(line.time));
        Some(self.lines_from(count, start))
    }

    /// Returns the lines from the one at `index` on, which starts at position `start`.
    fn lines_from(&self, index: usize, start: Position) -> Self {
        let cut = index.checked_sub(1).map_or(0, |last_skipped| self.line_ends[last_skipped].end);
        let line_ends = self.line_ends[index..].iter().map(|line| LineEnd { end: line.end - cut, ..*line });
        Self {
            data: self.data.slice(cut as usize..),
            line_ends: line_ends.collect(),
            continues: self.continues && index == 0,
            start,
            end: self.end,
        }
    }

    fn piece_after(&self, at: Position) -> Self {
        let sent = at.offset.saturating_sub(self.start.offset);
        let cut = usize::try_from(sent).unwrap_or(usize::MAX).min(self.data.len());
        let data = self.data.slice(cut..);
        #[expect(clippy::cast_possible_truncation, reason = "a chunk is far below 4 GiB")]
        let line_ends =
            self.line_ends.iter().map(|line| LineEnd { end: data.len() as u32, ..*line }).collect();
        Self { data, line_ends, continues: self.continues || cut > 0, start: at, end: self.end }
    }
}

// === impl Chunker ===

impl Chunker {
    /// Creates a chunker for lines after `start`.
    pub fn new(start: Position) -> Self {
        Self { data: BytesMut::new(), line_ends: Vec::new(), start, end: start }
    }

    /// Returns the position after the newest line.
    pub fn position(&self) -> Position {
        self.end
    }

    /// Whether no line is pending.
    pub fn is_empty(&self) -> bool {
        self.line_ends.is_empty()
    }

    /// Continues at `position`, after a gap. No line may be pending.
    pub(crate) fn skip_to(&mut self, position: Position) {
        debug_assert!(self.is_empty());
        (self.start, self.end) = (position, position);
    }

    /// Adds a batch. Appends full chunks and pieces of lines to `out`; other lines stay pending until more
    /// lines or [`Chunker::flush`].
    pub fn push(&mut self, batch: &LineBatch, out: &mut Vec<Chunk>) {
        // Bytes of the pending lines from this batch.
        let mut pending = 0..0;
        for line in &batch.lines {
            let bytes = pending.end..line.end;
            let is_whole = self.end.at_line_start() && line.ends && !line.continues;
            if is_whole && bytes.len() <= CHUNK_MAX_BYTES {
                if self.pending_bytes() + bytes.len() > CHUNK_MAX_BYTES
                    || self.line_ends.len() == CHUNK_MAX_LINES
                {
                    out.extend(self.flush_with(&batch.data, pending.clone()));
                    pending.start = pending.end;
                }
                self.push_line_end(bytes.len(), line, line.after);
            } else {
                out.extend(self.flush_with(&batch.data, pending));
                self.push_pieces(&batch.data, bytes, line, out);
                pending = line.end..line.end;
            }
            pending.end = line.end;
        }
        self.data.extend_from_slice(&batch.data[pending]);
    }

    /// Returns the pending lines as a chunk.
    pub fn flush(&mut self) -> Option<Chunk> {
        self.flush_with(&Bytes::new(), 0..0)
    }

    /// Like [`Chunker::flush`], with pending lines in range `pending` of a batch that is not copied yet.
    fn flush_with(&mut self, batch: &Bytes, pending: Range<usize>) -> Option<Chunk> {
        if self.line_ends.is_empty() {
            return None;
        }
        let data = if self.data.is_empty() {
            batch.slice(pending)
        } else {
            self.data.extend_from_slice(&batch[pending]);
            self.data.split().freeze()
        };
        let line_ends = self.line_ends.as_slice().into();
        let chunk = Chunk { data, line_ends, continues: false, start: self.start, end: self.end };
        self.line_ends.clear();
        self.start = self.end;
        Some(chunk)
    }

    fn push_pieces(&mut self, batch: &Bytes, bytes: Range<usize>, line: &Line, out: &mut Vec<Chunk>) {
        let mut remainder = bytes;
        let mut continues = line.continues;
        loop {
            let piece =
                remainder.start..remainder.start + text_end(&batch[remainder.clone()], CHUNK_MAX_BYTES);
            remainder.start = piece.end;
            let is_end = line.ends && remainder.is_empty();
            let after = if is_end { line.after } else { self.end.after_bytes(piece.len()) };
            self.push_line_end(piece.len(), line, after);
            out.extend(self.flush_with(batch, piece).map(|chunk| Chunk { continues, ..chunk }));
            continues = true;
            if remainder.is_empty() {
                return;
            }
        }
    }

    fn pending_bytes(&self) -> usize {
        self.line_ends.last().map_or(0, |line| line.end as usize)
    }

    fn push_line_end(&mut self, bytes: usize, line: &Line, after: Position) {
        #[expect(clippy::cast_possible_truncation, reason = "a chunk is far below 4 GiB")]
        let end = (self.pending_bytes() + bytes) as u32;
        self.line_ends.push(LineEnd { end, time: line.time, stream: line.stream });
        self.end = after;
    }
}

/// Returns the end of the longest text at the start of `line` that has at most `max_bytes`, which are more
/// than three, and that ends between characters.
pub(super) fn text_end(line: &[u8], max_bytes: usize) -> usize {
    if line.len() <= max_bytes {
        return line.len();
    }
    // A character has at most three continuation bytes; more of them are not UTF-8.
    let is_start = |end: &usize| line[*end] & 0xc0 != 0x80;
    (max_bytes - 3..=max_bytes).rev().find(is_start).unwrap_or(max_bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::line::Line;

    /// Makes lines of (length with newline, time); `per_batch` lines per batch, in pieces of `piece` bytes.
    fn batches(lines: &[(usize, i64)], per_batch: usize, piece: usize) -> (Vec<LineBatch>, Vec<u8>) {
        let mut out = vec![(Vec::new(), Vec::new())];
        let mut all = Vec::new();
        let mut at = Position::START;
        for (number, (length, nanos)) in lines.iter().enumerate() {
            let time = LogTime::from_nanos(*nanos);
            let fill = b'a' + u8::try_from(number % 26).unwrap();
            let mut text = vec![fill; length - 1];
            text.push(b'\n');
            all.extend_from_slice(&text);
            let pieces = text.chunks(piece).collect::<Vec<_>>();
            for (index, bytes) in pieces.iter().enumerate() {
                let ends = index + 1 == pieces.len();
                at = if ends { at.after_line(time) } else { at.after_bytes(bytes.len()) };
                if out.last().unwrap().1.len() == per_batch {
                    out.push((Vec::new(), Vec::new()));
                }
                let (data, lines) = out.last_mut().unwrap();
                data.extend_from_slice(bytes);
                let continues = index > 0;
                lines.push(Line { ends, continues, ..Line::whole(data.len(), time, at) });
            }
        }
        (out.into_iter().map(|(data, lines)| LineBatch { data: data.into(), lines }).collect(), all)
    }

    fn chunks(batches: &[LineBatch], flush_each: bool) -> Vec<Chunk> {
        let mut chunker = Chunker::new(Position::START);
        let mut out = Vec::new();
        for batch in batches {
            chunker.push(batch, &mut out);
            if flush_each {
                out.extend(chunker.flush());
            }
        }
        out.extend(chunker.flush());
        assert!(chunker.is_empty());
        out
    }

    fn positions(chunks: &[Chunk]) -> Vec<Position> {
        let mut all = vec![Position::START];
        for chunk in chunks {
            if chunk.is_piece() {
                all.push(chunk.end);
            } else {
                let mut at = chunk.start;
                all.extend(chunk.line_ends.iter().map(|line| {
                    at = at.after_line(line.time);
                    at
                }));
            }
        }
        all
    }

    fn lengths() -> impl Strategy<Value = Vec<(usize, i64)>> {
        let length = prop_oneof![
            8 => 1..200_usize,
            1 => CHUNK_MAX_BYTES - 2..CHUNK_MAX_BYTES + 3,
            1 => 1..5 * CHUNK_MAX_BYTES,
        ];
        prop::collection::vec((length, 0..6_i64), 1..60)
    }

    proptest! {
        #[test]
        fn chunker_keeps_every_byte(lines in lengths(), per_batch in 1..20_usize, flush in any::<bool>()) {
            let (batches, all) = batches(&lines, per_batch, 3 * CHUNK_MAX_BYTES);
            let chunks = chunks(&batches, flush);
            let mut joined = Vec::new();
            let mut at = Position::START;
            for chunk in &chunks {
                prop_assert!(chunk.data.len() <= CHUNK_MAX_BYTES && !chunk.data.is_empty());
                prop_assert!(chunk.line_ends.len() <= CHUNK_MAX_LINES);
                prop_assert_eq!(chunk.start, at);
                prop_assert!(chunk.end > chunk.start);
                prop_assert_eq!(chunk.line_ends.last().unwrap().end as usize, chunk.data.len());
                prop_assert!(!chunk.is_piece() || chunk.line_ends.len() == 1);
                joined.extend_from_slice(&chunk.data);
                at = chunk.end;
            }
            prop_assert_eq!(joined, all);
            prop_assert_eq!(chunks.iter().map(Chunk::lines).sum::<u64>(), lines.len() as u64);
        }

        #[test]
        fn part_after_any_position_is_exact(lines in lengths(), piece in 1..40_000_usize, pick in any::<prop::sample::Index>()) {
            // Positions of one reader, chunks of another: they cut long lines at different places.
            let (batches_of_one, all) = batches(&lines, 7, piece.max(500));
            let (batches_of_other, _) = batches(&lines, 3, usize::MAX);
            let at = *pick.get(&positions(&chunks(&batches_of_one, true)));
            let mut skipped = Vec::new();
            let mut parts = Vec::new();
            for chunk in chunks(&batches_of_other, false) {
                let mut next = at;
                let mut kept = 0;
                while let Some(part) = chunk.after(next) {
                    kept += part.data.len();
                    parts.extend_from_slice(&part.data);
                    next = part.end;
                }
                skipped.extend_from_slice(&chunk.data[..chunk.data.len() - kept]);
            }
            prop_assert_eq!([skipped.clone(), parts].concat(), all);
            // Exactly the bytes before the position were skipped.
            let whole: usize = {
                let mut position = Position::START;
                let mut bytes = 0;
                for (length, nanos) in &lines {
                    let after = position.after_line(LogTime::from_nanos(*nanos));
                    if after > at {
                        break;
                    }
                    bytes += length;
                    position = after;
                }
                bytes
            };
            prop_assert_eq!(skipped.len(), whole + usize::try_from(at.offset).unwrap());
        }
    }

    #[test]
    fn long_line_is_cut_between_characters() {
        // The limit is within the second character, the third and so on.
        for before in 1..6 {
            let text =
                format!("{}{}\n", "y".repeat(CHUNK_MAX_BYTES - before), "日本\u{10ffff}".repeat(4_000));
            let mut chunker = Chunker::new(Position::START);
            let mut pieces = Vec::new();
            let after = Position::START.after_line(LogTime::from_nanos(1));
            let line = Line::whole(text.len(), LogTime::from_nanos(1), after);
            chunker.push(&LineBatch { data: text.clone().into(), lines: vec![line] }, &mut pieces);
            let mut joined = String::new();
            for piece in &pieces {
                let part = std::str::from_utf8(&piece.data).unwrap();
                assert!(
                    part.len() > CHUNK_MAX_BYTES - 4 && part.len() <= CHUNK_MAX_BYTES
                        || !piece.is_unfinished()
                );
                assert_eq!(piece.start.offset, joined.len() as u64);
                joined.push_str(part);
            }
            assert_eq!((joined, chunker.position()), (text, after));
        }
        // No character begins near the limit.
        assert_eq!(text_end(&[0x80; CHUNK_MAX_BYTES + 1], CHUNK_MAX_BYTES), CHUNK_MAX_BYTES);
    }

    #[test]
    fn without_lines_drops_first_lines() {
        let (batches, _) = batches(&[(3, 1), (4, 1), (5, 2)], 9, 100);
        let chunk = chunks(&batches, false).remove(0);
        let rest = chunk.without_lines(1).unwrap();
        assert_eq!(&rest.data[..], b"bbb\ncccc\n");
        assert_eq!(rest.start, Position::START.after_line(LogTime::from_nanos(1)));
        assert_eq!(chunk.without_lines(0), Some(chunk.clone()));
        assert_eq!(chunk.without_lines(3), None);
    }
}
