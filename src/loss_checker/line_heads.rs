//! Starts of log lines, joined from their pieces.

use memchr::memchr;

use crate::model::proto::lease::{LinePart, line_part};

/// Joins the pieces of one replica's lines, of which only the start matters.
#[derive(Debug)]
pub(crate) struct LineHeads {
    /// Bytes kept of a line that comes in pieces.
    limit: usize,
    /// Unfinished lines of an unknown stream, of standard output and of standard error.
    lines: [Option<PartialLine>; 3],
}

#[derive(Debug, Default)]
struct PartialLine {
    /// Start of the line.
    head: Vec<u8>,
    /// Whether its first pieces are missing. Then it is not passed on.
    is_lost: bool,
}

// === impl LineHeads ===

impl LineHeads {
    /// Creates an empty joiner that keeps `limit` bytes of a line.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, lines: Default::default() }
    }

    /// Takes log bytes and passes each line that is now complete to `take`: at least its first `limit` bytes,
    /// without the newline.
    pub(crate) fn push(&mut self, part: Option<LinePart>, data: &[u8], take: &mut impl FnMut(&[u8])) {
        match part {
            Some(part) => self.push_piece(part, data, take),
            None => self.push_lines(data, take),
        }
    }

    /// Ends all unfinished lines: the last lines of a run may have no newline.
    pub(crate) fn finish(&mut self, take: &mut impl FnMut(&[u8])) {
        for line in std::mem::take(&mut self.lines).into_iter().flatten() {
            line.finish(take);
        }
    }

    /// Drops all unfinished lines. A line of which a gap took a piece counts as lost.
    pub(crate) fn clear(&mut self) {
        self.lines = Default::default();
    }

    /// Takes whole lines. Older gateways may end them with a piece.
    fn push_lines(&mut self, data: &[u8], take: &mut impl FnMut(&[u8])) {
        let mut rest = data;
        while let Some(end) = memchr(b'\n', rest) {
            let piece = &rest[..end];
            if let Some(mut line) = self.lines[0].take() {
                line.extend(piece, self.limit);
                line.finish(take);
            } else {
                take(piece);
            }
            rest = &rest[end + 1..];
        }
        if !rest.is_empty() {
            self.lines[0].get_or_insert_default().extend(rest, self.limit);
        }
    }

    fn push_piece(&mut self, part: LinePart, data: &[u8], take: &mut impl FnMut(&[u8])) {
        let slot = match part.stream() {
            line_part::Stream::Unspecified => 0,
            line_part::Stream::Stdout => 1,
            line_part::Stream::Stderr => 2,
        };
        let mut line = match self.lines[slot].take() {
            Some(line) if part.continues => line,
            line => {
                // The previous line ended without a newline.
                if let Some(line) = line {
                    line.finish(take);
                }
                PartialLine { head: Vec::new(), is_lost: part.continues }
            }
        };
        line.extend(data.strip_suffix(b"\n").unwrap_or(data), self.limit);
        if part.more {
            self.lines[slot] = Some(line);
        } else {
            line.finish(take);
        }
    }
}

// === impl PartialLine ===

impl PartialLine {
    /// Appends as much of `piece` as fits.
    fn extend(&mut self, piece: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.head.len());
        self.head.extend_from_slice(piece.get(..room).unwrap_or(piece));
    }

    fn finish(self, take: &mut impl FnMut(&[u8])) {
        if !self.is_lost {
            take(&self.head);
        }
    }
}
