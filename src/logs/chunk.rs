//! Lines joined to chunks: what leaves together, in one message.
//!
//! A chunk holds either whole lines, or one piece of a line: of one too long for a chunk, of one that is not finished, or of one with
//! output of the other stream in the middle of it. A whole line behind a piece of the other stream is a chunk of its own as well, since
//! it lies within a line of the merged output by which positions count.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::model::limits::{CHUNK_MAX_BYTES, CHUNK_MAX_LINES};
use crate::model::line::{Line, LineBatch, Stream};
use crate::model::position::Position;
use crate::model::time::LogTime;

/// Some lines of one instance that leave together; at most [`CHUNK_MAX_BYTES`] and [`CHUNK_MAX_LINES`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The lines' bytes, back to back.
    pub data: Bytes,
    /// Each line in it; a single one if it is a piece of a line.
    pub marks: Box<[LineEnd]>,
    /// Whether it goes on with a line of which earlier pieces lie before it.
    pub continues: bool,
    /// The position before it.
    pub start: Position,
    /// The position behind it.
    pub end: Position,
}

/// Where a line ends in a chunk, and when it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineEnd {
    /// Offset in the chunk's data of the byte behind the line: at most [`CHUNK_MAX_BYTES`].
    pub end: u32,
    /// The line's time.
    pub time: LogTime,
    /// The output it was written to, if that is known.
    pub stream: Option<Stream>,
}

/// Joins lines to chunks. Bytes in = bytes out, in order. A chunk that lies within one batch shares its bytes; only what waits
/// from one batch to the next is copied.
#[derive(Debug)]
pub struct Chunker {
    /// What waits, of earlier batches.
    data: BytesMut,
    /// The lines that wait.
    marks: Vec<LineEnd>,
    start: Position,
    end: Position,
}

// === impl Chunk ===

impl Chunk {
    /// Whether it holds one line or piece that must not be joined with others, since positions within it are bytes and not lines.
    pub fn is_piece(&self) -> bool {
        !self.start.at_line_start() || !self.end.at_line_start() || self.continues
    }

    /// Whether its line goes on in a later chunk.
    pub fn goes_on(&self) -> bool {
        !self.end.at_line_start()
    }

    /// The output that its first line was written to, if that is known.
    pub fn stream(&self) -> Option<Stream> {
        self.marks.first()?.stream
    }

    /// How many lines end in it.
    pub fn lines(&self) -> u64 {
        if self.end.at_line_start() { self.marks.len() as u64 } else { 0 }
    }

    /// Each line's (or piece's) bytes and time, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], LogTime)> {
        let mut start = 0;
        self.marks.iter().map(move |mark| {
            let end = mark.end as usize;
            let bytes = &self.data[start..end];
            start = end;
            (bytes, mark.time)
        })
    }

    /// Whether `at` lies at the start of one of its lines, or within one. A position between its start and its end that does neither is
    /// that of a line which is not in this log as its reader sees it.
    pub fn holds(&self, at: Position) -> bool {
        let base = Position { offset: 0, ..at };
        let mut line_start = Position { offset: 0, ..self.start };
        if base == line_start {
            return true;
        }
        self.marks.iter().take(self.marks.len().saturating_sub(1)).any(|mark| {
            line_start = line_start.after_line(mark.time);
            base == line_start
        })
    }

    /// The chunk without what lies before `at`; `None` if nothing is left. A position before the chunk cuts nothing.
    pub fn behind(&self, at: Position) -> Option<Self> {
        if at <= self.start {
            return Some(self.clone());
        }
        if at >= self.end {
            return None;
        }
        if self.is_piece() {
            return Some(self.piece_behind(at));
        }
        let mut position = self.start;
        for (index, mark) in self.marks.iter().enumerate() {
            let cut = if index == 0 { 0 } else { self.marks[index - 1].end };
            let after = position.after_line(mark.time);
            if position >= at {
                return Some(self.lines_behind(index, cut, position));
            }
            if at < after {
                // Within this line: a whole line here, which was sent in pieces elsewhere.
                let sent = usize::try_from(at.offset).unwrap_or(usize::MAX).min((mark.end - cut) as usize);
                return self.rest_of_line(index, cut as usize + sent, at);
            }
            position = after;
        }
        None
    }

    /// The chunk without its first `count` lines; `None` if nothing is left.
    pub fn without_lines(&self, count: usize) -> Option<Self> {
        if count == 0 {
            return Some(self.clone());
        }
        if count >= self.marks.len() {
            return None;
        }
        let start = self.marks[..count].iter().fold(self.start, |at, mark| at.after_line(mark.time));
        Some(self.lines_behind(count, self.marks[count - 1].end, start))
    }

    fn lines_behind(&self, index: usize, cut: u32, start: Position) -> Self {
        let marks = self.marks[index..].iter().map(|mark| LineEnd { end: mark.end - cut, ..*mark });
        Self {
            data: self.data.slice(cut as usize..),
            marks: marks.collect(),
            continues: false,
            start,
            end: self.end,
        }
    }

    /// The rest of the line at `index`, from `cut` on; what follows it is left to the caller, who asks again.
    fn rest_of_line(&self, index: usize, cut: usize, start: Position) -> Option<Self> {
        let mark = self.marks[index];
        let end = mark.end as usize;
        let line_start = if index == 0 { 0 } else { self.marks[index - 1].end as usize };
        debug_assert!(cut >= line_start && cut <= end);
        let before = self.marks[..index].iter().fold(self.start, |at, mark| at.after_line(mark.time));
        let length = u32::try_from(end - cut).ok()?;
        Some(Self {
            data: self.data.slice(cut..end),
            marks: Box::new([LineEnd { end: length, ..mark }]),
            continues: true,
            start,
            end: before.after_line(mark.time),
        })
    }

    fn piece_behind(&self, at: Position) -> Self {
        let sent = at.offset.saturating_sub(self.start.offset);
        let cut = usize::try_from(sent).unwrap_or(usize::MAX).min(self.data.len());
        let data = self.data.slice(cut..);
        #[expect(clippy::cast_possible_truncation, reason = "a chunk is far below 4 GiB")]
        let marks = self.marks.iter().map(|mark| LineEnd { end: data.len() as u32, ..*mark }).collect();
        Self { data, marks, continues: self.continues || cut > 0, start: at, end: self.end }
    }
}

// === impl Chunker ===

impl Chunker {
    /// A chunker for lines behind `start`.
    pub fn new(start: Position) -> Self {
        Self { data: BytesMut::new(), marks: Vec::new(), start, end: start }
    }

    /// The position behind everything taken in.
    pub fn position(&self) -> Position {
        self.end
    }

    /// Whether nothing waits to leave.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Goes on at `position`, behind something that is not for chunks. Nothing may wait.
    pub fn skip_to(&mut self, position: Position) {
        debug_assert!(self.is_empty());
        (self.start, self.end) = (position, position);
    }

    /// Takes a batch in; hands pieces of lines and chunks that are full to `out`. What is left waits for more, or for
    /// [`Chunker::flush`].
    pub fn push(&mut self, batch: &LineBatch, out: &mut Vec<Chunk>) {
        // What waits of this batch.
        let mut waits = 0..0;
        for line in &batch.lines {
            let bytes = waits.end..line.end;
            let is_whole = self.end.at_line_start() && line.ends && !line.continues;
            if is_whole && bytes.len() <= CHUNK_MAX_BYTES {
                if self.waiting() + bytes.len() > CHUNK_MAX_BYTES || self.marks.len() == CHUNK_MAX_LINES {
                    out.extend(self.flush_with(&batch.data, waits.clone()));
                    waits.start = waits.end;
                }
                self.mark(bytes.len(), line, line.after);
            } else {
                out.extend(self.flush_with(&batch.data, waits));
                self.push_pieces(&batch.data, bytes, line, out);
                waits = line.end..line.end;
            }
            waits.end = line.end;
        }
        self.data.extend_from_slice(&batch.data[waits]);
    }

    /// What waits, as a chunk.
    pub fn flush(&mut self) -> Option<Chunk> {
        self.flush_with(&Bytes::new(), 0..0)
    }

    /// The same with what waits of a batch that is not taken in yet.
    fn flush_with(&mut self, batch: &Bytes, waits: Range<usize>) -> Option<Chunk> {
        if self.marks.is_empty() {
            return None;
        }
        let data = if self.data.is_empty() {
            batch.slice(waits)
        } else {
            self.data.extend_from_slice(&batch[waits]);
            self.data.split().freeze()
        };
        let marks = self.marks.as_slice().into();
        let chunk = Chunk { data, marks, continues: false, start: self.start, end: self.end };
        self.marks.clear();
        self.start = self.end;
        Some(chunk)
    }

    fn push_pieces(&mut self, batch: &Bytes, bytes: Range<usize>, line: &Line, out: &mut Vec<Chunk>) {
        let mut rest = bytes;
        let mut continues = line.continues;
        loop {
            let piece = rest.start..rest.end.min(rest.start + CHUNK_MAX_BYTES);
            rest.start = piece.end;
            let is_end = line.ends && rest.is_empty();
            let after = if is_end { line.after } else { self.end.after_bytes(piece.len()) };
            self.mark(piece.len(), line, after);
            out.extend(self.flush_with(batch, piece).map(|chunk| Chunk { continues, ..chunk }));
            continues = true;
            if rest.is_empty() {
                return;
            }
        }
    }

    /// How many bytes wait.
    fn waiting(&self) -> usize {
        self.marks.last().map_or(0, |mark| mark.end as usize)
    }

    fn mark(&mut self, bytes: usize, line: &Line, after: Position) {
        #[expect(clippy::cast_possible_truncation, reason = "a chunk is far below 4 GiB")]
        let end = (self.waiting() + bytes) as u32;
        self.marks.push(LineEnd { end, time: line.time, stream: line.stream });
        self.end = after;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::line::Line;

    /// Lines as (length with newline, time), cut into batches of `per_batch`, long ones into pieces of `piece`.
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
                all.extend(chunk.marks.iter().map(|mark| {
                    at = at.after_line(mark.time);
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
        fn bytes_in_are_bytes_out(lines in lengths(), per_batch in 1..20_usize, flush in any::<bool>()) {
            let (batches, all) = batches(&lines, per_batch, 3 * CHUNK_MAX_BYTES);
            let chunks = chunks(&batches, flush);
            let mut joined = Vec::new();
            let mut at = Position::START;
            for chunk in &chunks {
                prop_assert!(chunk.data.len() <= CHUNK_MAX_BYTES && !chunk.data.is_empty());
                prop_assert!(chunk.marks.len() <= CHUNK_MAX_LINES);
                prop_assert_eq!(chunk.start, at);
                prop_assert!(chunk.end > chunk.start);
                prop_assert_eq!(chunk.marks.last().unwrap().end as usize, chunk.data.len());
                prop_assert!(!chunk.is_piece() || chunk.marks.len() == 1);
                joined.extend_from_slice(&chunk.data);
                at = chunk.end;
            }
            prop_assert_eq!(joined, all);
            prop_assert_eq!(chunks.iter().map(Chunk::lines).sum::<u64>(), lines.len() as u64);
        }

        #[test]
        fn any_position_cuts_exactly(lines in lengths(), piece in 1..40_000_usize, pick in any::<prop::sample::Index>()) {
            // Positions of one reader, chunks of another one: they cut long lines at other places.
            let (batches_of_one, all) = batches(&lines, 7, piece.max(500));
            let (batches_of_other, _) = batches(&lines, 3, usize::MAX);
            let at = *pick.get(&positions(&chunks(&batches_of_one, true)));
            let mut skipped = Vec::new();
            let mut rest = Vec::new();
            for chunk in chunks(&batches_of_other, false) {
                let mut next = at;
                let mut kept = 0;
                while let Some(behind) = chunk.behind(next) {
                    kept += behind.data.len();
                    rest.extend_from_slice(&behind.data);
                    next = behind.end;
                }
                skipped.extend_from_slice(&chunk.data[..chunk.data.len() - kept]);
            }
            prop_assert_eq!([skipped.clone(), rest].concat(), all);
            // Exactly what lies before the position was skipped.
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
    fn lines_are_left_out_from_the_front() {
        let (batches, _) = batches(&[(3, 1), (4, 1), (5, 2)], 9, 100);
        let chunk = chunks(&batches, false).remove(0);
        let rest = chunk.without_lines(1).unwrap();
        assert_eq!(&rest.data[..], b"bbb\ncccc\n");
        assert_eq!(rest.start, Position::START.after_line(LogTime::from_nanos(1)));
        assert_eq!(chunk.without_lines(0), Some(chunk.clone()));
        assert_eq!(chunk.without_lines(3), None);
    }
}
