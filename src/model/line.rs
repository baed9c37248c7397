//! Lines as a platform delivers them.

use bytes::Bytes;
use memchr::memchr;

use super::label::label;
use super::position::Position;
use super::time::LogTime;

/// The output that a container wrote a line to. Its number is an index into arrays with both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Consecutive lines of one instance, laid out back to back.
///
/// Most are whole. A line comes in pieces, without loss, if it is longer than
/// `LINE_HELD_MAX_BYTES`, if its end was not written soon enough, or if
/// the runtime recorded output of the other stream in the middle of it. Lines of the other stream may lie
/// between its pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineBatch {
    /// The original bytes of the lines, each with its newline, neither re-encoded nor trimmed. The last line
    /// has no newline if the container did not write one.
    pub data: Bytes,
    /// The pieces of `data`, in order.
    pub lines: Vec<Line>,
}

/// One line of a batch, or one piece of a line.
///
/// Positions count lines of the *merged* output: both streams in the order of the records, with a line ending
/// at each newline, as kubectl prints them. A whole line of one stream may therefore begin in the middle of a
/// merged line, after a piece of the other stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its end in the batch's data. It begins at the end of the previous one.
    pub end: usize,
    /// Its time, as the platform recorded it: for a line in pieces, the time of the first piece.
    pub time: LogTime,
    /// The position after it.
    pub after: Position,
    /// Whether it ends a line. Otherwise the line continues in a later piece of the same stream.
    pub ends: bool,
    /// Whether it continues a line that began in an earlier piece.
    pub continues: bool,
    /// The output that it was written to, if known.
    pub stream: Option<OutputStream>,
}

/// Lines that the source can no longer deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceGap {
    /// Why they are missing.
    pub cause: GapCause,
    /// The number of lines, or a lower bound.
    pub lines: u64,
    /// The number of bytes, including newlines, or a lower bound.
    pub bytes: u64,
    /// Whether both numbers are exact.
    pub exact: bool,
    /// The position after the gap. It differs from the position before it only if the log itself records the
    /// loss: a resumed stream then knows whether the gap was already reported.
    pub after: Position,
}

label! {
    /// Why lines are missing.
    pub enum GapCause as "cause" {
        /// The follower fell behind the ring.
        Lag = "lag",
        /// Rotation, or the retention time of ended logs, removed them before they were read.
        Rotated = "rotated",
        /// The source lost them: a full disk, a truncated file.
        Source = "source",
        /// A limit of the gateway cut them.
        Limit = "limit",
    }
}

// === impl Line ===

impl Line {
    /// Returns a whole line.
    pub const fn whole(end: usize, time: LogTime, after: Position) -> Self {
        Self { end, time, after, ends: true, continues: false, stream: None }
    }
}

// === impl LineBatch ===

impl LineBatch {
    /// Returns the bytes of the piece at `index`.
    ///
    /// # Panics
    /// If there is no such piece, as with slices.
    pub fn bytes(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.lines[index - 1].end };
        &self.data[start..self.lines[index].end]
    }

    /// Returns whether it has no lines.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Splits the time at the start of `line`, as text and as a value, from the text after it.
pub(crate) fn split_time(line: &[u8]) -> Option<(&str, LogTime, &[u8])> {
    let space = memchr(b' ', line)?;
    let text = std::str::from_utf8(&line[..space]).ok()?;
    let time = text.parse::<jiff::Timestamp>().ok()?;
    let time = LogTime::from_nanos(i64::try_from(time.as_nanosecond()).ok()?);
    Some((text, time, &line[space + 1..]))
}
