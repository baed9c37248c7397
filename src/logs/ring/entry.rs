//! Entries of a ring, each with the sums over all entries before it, and with the positions that were
//! ambiguous there. Pure, but for the account of lazy representations.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::time::Instant;

use super::Ring;
use crate::logs::chunk::Chunk;
use crate::logs::message::{self, Gap, Representation};
use crate::model::id::Instance;
use crate::model::line::OutputStream;
use crate::model::position::Position;
use crate::model::time::LogTime;

/// Memory of an entry besides its bytes: the entry itself and its slot in the ring, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 288;

/// One encoded message of a ring.
pub struct Entry {
    pub(crate) kind: EntryKind,
    /// The run that it belongs to, if there was one.
    pub(crate) instance: Option<Instance>,
    pub(crate) start: Position,
    pub(crate) end: Position,
    /// When its oldest line was read.
    pub(crate) read_at: Instant,
    /// Sums over all entries before it.
    pub(super) totals_before: Totals,
    /// Ambiguous positions when it was pushed.
    pub(super) ambiguous: AmbiguousRange,
    /// Lines that began before it and had not ended.
    pub(super) open: OpenLines,
    pub(super) sequence: u64,
    pub(super) message: Bytes,
    /// The timestamped representation, made by the first reader that needs it.
    pub(super) timestamped: OnceLock<Bytes>,
    /// Size of `timestamped` in the ring's account. Written under the ring's lock.
    pub(super) lazy_bytes: AtomicUsize,
}

#[derive(Debug)]
pub(crate) enum EntryKind {
    Lines(Chunk, Contiguity),
    /// A change in the replica's life cycle.
    Event,
    /// Lines that the source has lost.
    Gap(Gap),
}

/// The unfinished line of standard output and of standard error, each by the sequence number of its first
/// piece. A line of an unknown stream counts as standard output, since then the log does not distinguish
/// streams.
pub(super) type OpenLines = [Option<u64>; 2];

/// In [`OpenLines`]: the line began before the ring's first entry.
pub(super) const BEFORE_RING: u64 = u64::MAX;

/// How lines relate to the lines before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contiguity {
    /// No line is missing between them.
    Contiguous,
    /// The source has lost lines directly before.
    AfterGap,
}

/// Sums over all entries that were ever pushed to a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Lines that have ended, delivered or lost by the source.
    pub(super) lines: u64,
    /// Bytes of these lines.
    pub(super) bytes: u64,
    /// Gaps whose size is a lower bound.
    pub(super) inexact_gaps: u64,
    /// Cost of the entries in bytes of memory.
    pub(super) cost: u64,
}

/// The positions that are ambiguous after a gap of unknown size: those up to this time. `None`: there was no
/// such gap; [`LogTime::MAX`]: no line came after the gap.
///
/// A position counts the lines of its time. After lost lines, a reader that lost them counts too few, and a
/// reader that did not may be within the gap. So positions of two readers of one log cannot be compared,
/// until the times of later lines make the order clear again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AmbiguousRange(Option<LogTime>);

// === impl Entry ===

impl Entry {
    /// Returns the message in this representation; encodes it on first use. Locks the ring to account for its
    /// size.
    pub(crate) fn message(&self, ring: &Ring, representation: Representation) -> Bytes {
        match (&self.kind, representation) {
            (EntryKind::Lines(chunk, _), Representation::Timestamped) => self
                .timestamped
                .get_or_init(|| {
                    let Some(instance) = &self.instance else {
                        return self.message.clone();
                    };
                    ring.encoded.increment(1);
                    let message =
                        message::encode_lines(&ring.replica, instance, chunk, representation).message;
                    ring.count_lazy_bytes(self, message.len());
                    message
                })
                .clone(),
            _ => self.message.clone(),
        }
    }

    /// Returns an upper bound on the length of [`Entry::message`], without encoding it.
    pub(super) fn message_max_bytes(&self, representation: Representation) -> usize {
        match (&self.kind, representation) {
            (EntryKind::Lines(chunk, _), Representation::Timestamped) => {
                self.message.len() + message::timestamps_max_bytes(chunk)
            }
            _ => self.message.len(),
        }
    }

    /// Returns how many lines end in it, and how many log bytes it has.
    pub fn size(&self) -> (u64, u64) {
        self.chunk().map_or((0, 0), |chunk| (chunk.lines(), chunk.data.len() as u64))
    }

    pub(crate) fn first_time(&self) -> Option<LogTime> {
        self.chunk()?.line_ends.first().map(|line| line.time)
    }

    /// Time of its oldest line; not always the first one, since clocks are set back.
    pub(super) fn oldest_time(&self) -> Option<LogTime> {
        self.chunk()?.line_ends.iter().map(|line| line.time).min()
    }

    /// Whether it does not continue a line.
    pub(super) fn starts_line(&self) -> bool {
        self.chunk().is_none_or(|chunk| !chunk.continues)
    }

    /// Lines that are unfinished after it.
    pub(super) fn open_after(&self) -> OpenLines {
        let mut open = self.open;
        match &self.kind {
            EntryKind::Lines(chunk, _) if chunk.continues || chunk.is_unfinished() => {
                let line = &mut open[stream_index(chunk)];
                let first = line.filter(|_| chunk.continues).unwrap_or(self.sequence);
                *line = chunk.is_unfinished().then_some(first);
            }
            EntryKind::Lines(..) | EntryKind::Event => {}
            // A gap ends all lines.
            EntryKind::Gap(_) => open = OpenLines::default(),
        }
        open
    }

    /// Sums over all entries up to and including it.
    pub(super) fn totals_after(&self) -> Totals {
        let (lines, bytes) = self.size();
        let mut totals = self.totals_before;
        totals.lines += lines;
        totals.bytes += bytes;
        totals.cost += self.cost();
        if let EntryKind::Gap(gap) = &self.kind {
            totals.lines += gap.lines;
            totals.bytes += gap.bytes;
            totals.inexact_gaps += u64::from(!gap.exact);
        }
        totals
    }

    fn cost(&self) -> u64 {
        let line_ends = self.chunk().map_or(0, |chunk| size_of_val(&*chunk.line_ends));
        (self.message.len() + line_ends + ENTRY_OVERHEAD_BYTES) as u64
    }

    fn chunk(&self) -> Option<&Chunk> {
        match &self.kind {
            EntryKind::Lines(chunk, _) => Some(chunk),
            EntryKind::Event | EntryKind::Gap(_) => None,
        }
    }
}

/// Without the lines: they belong to a tenant.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("end", &self.end).field("size", &self.size()).finish_non_exhaustive()
    }
}

// === impl AmbiguousRange ===

impl AmbiguousRange {
    /// Records that an unknown number of lines is missing after the newest one.
    pub(crate) fn record_gap(&mut self) {
        self.0 = Some(LogTime::MAX);
    }

    /// Records the next line, which follows `before`.
    pub(crate) fn record_line(&mut self, before: Position, time: LogTime) {
        if self.0 == Some(LogTime::MAX) {
            // The lost lines may include lines of this time, or of the time before it if the clock was set
            // back.
            self.0 = Some(before.time.max(time));
        }
    }

    pub(crate) fn contains(self, at: Position) -> bool {
        self.0.is_some_and(|until| at.time <= until)
    }
}

/// Index of the chunk's stream in [`OpenLines`].
pub(super) fn stream_index(chunk: &Chunk) -> usize {
    usize::from(chunk.stream() == Some(OutputStream::Stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_clear_after_time_of_first_line() {
        let at = |nanos| Position { time: LogTime::from_nanos(nanos), ordinal: 1, offset: 0 };
        let mut range = AmbiguousRange::default();
        range.record_line(at(1), LogTime::from_nanos(2));
        assert!(!range.contains(at(2)) && !range.contains(Position::START));
        range.record_gap();
        assert!(range.contains(at(9)));
        range.record_line(at(2), LogTime::from_nanos(5));
        assert!(range.contains(at(4)) && range.contains(at(5)) && !range.contains(at(6)));
        range.record_line(at(5), LogTime::from_nanos(7));
        assert!(!range.contains(at(6)));
        // With a clock that was set back, after the time before.
        range.record_gap();
        range.record_line(at(7), LogTime::from_nanos(3));
        assert!(range.contains(at(7)) && !range.contains(at(8)));
    }
}
