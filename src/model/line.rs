//! Lines as a platform delivers them.

use bytes::Bytes;

use super::metrics::declare::label;
use super::position::Position;
use super::time::LogTime;

/// The output that a container wrote a line to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Lines of one instance, in order, laid out back to back.
///
/// Most are whole. A line comes in pieces, none of them lost, if it is longer than
/// [`LINE_HELD_MAX_BYTES`](super::limits::LINE_HELD_MAX_BYTES), if its end was not written soon enough, or if the runtime recorded
/// output of the other stream in the middle of it. Lines of the other stream may lie between its pieces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineBatch {
    /// The lines' own bytes, each with its newline: neither re-encoded nor trimmed. A last line that the container did not
    /// end has none.
    pub data: Bytes,
    /// The pieces of `data`, in order.
    pub lines: Vec<Line>,
}

/// One line of a batch, or one piece of a line.
///
/// Positions count lines of the *merged* output: both streams in the order of the records, a line ending at each newline, as
/// kubectl prints them. So a whole line may begin in the middle of a merged one, behind a piece of the other stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it ends in the batch's data; it begins where the one before ends.
    pub end: usize,
    /// When it was written, as the platform recorded it: for a line in pieces, the time of its first piece.
    pub time: LogTime,
    /// The position behind it.
    pub after: Position,
    /// Whether this is the end of a line. Otherwise the line goes on in a later piece of the same stream.
    pub ends: bool,
    /// Whether it goes on with a line of which earlier pieces lie before it.
    pub continues: bool,
    /// The output it was written to, if that is known.
    pub stream: Option<Stream>,
}

/// Lines that the source cannot give any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceGap {
    /// Why.
    pub cause: GapCause,
    /// How many lines, or a lower bound.
    pub lines: u64,
    /// How many bytes, newlines included, or a lower bound.
    pub bytes: u64,
    /// Whether both are exact.
    pub exact: bool,
    /// The position behind it. Beyond the one before it only if the log itself has a record of the loss; then a resume knows
    /// whether it was told.
    pub after: Position,
}

label! {
    /// Why lines are missing. Also the metric label.
    pub enum GapCause as "cause" {
        /// The follower fell behind the ring.
        Lag = "lag",
        /// Rotation, or the end of the time that ended logs are kept, removed them before they were read.
        Rotated = "rotated",
        /// The source lost them: a full disk, a truncated file.
        Source = "source",
        /// A limit of the gateway cut them.
        Limit = "limit",
    }
}

// === impl Line ===

impl Line {
    /// A whole line.
    pub const fn whole(end: usize, time: LogTime, after: Position) -> Self {
        Self { end, time, after, ends: true, continues: false, stream: None }
    }
}

// === impl LineBatch ===

impl LineBatch {
    /// The bytes of the piece at `index`.
    ///
    /// # Panics
    /// If there is no such piece, as with slices.
    pub fn bytes(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.lines[index - 1].end };
        &self.data[start..self.lines[index].end]
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}
