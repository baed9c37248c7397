//! What is in a ring: entries, each with the sums of everything before it.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::time::Instant;

use super::Ring;
use crate::logs::ambiguity::AmbiguousRange;
use crate::logs::chunk::Chunk;
use crate::logs::frame::{self, Gap, Representation};
use crate::model::id::Instance;
use crate::model::line::Stream;
use crate::model::position::Position;
use crate::model::time::LogTime;

/// What an entry costs beside its bytes: the entry itself and its place in the ring, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 288;

/// Something that was sent.
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// The run it belongs to, if there was one.
    pub instance: Option<Instance>,
    /// The position before it.
    pub start: Position,
    /// The position behind it.
    pub end: Position,
    /// When its oldest line was read.
    pub read_at: Instant,
    /// Everything that lies before it.
    pub(super) before: Totals,
    /// As it was when this was put in.
    pub(super) vague: AmbiguousRange,
    /// Lines of either stream that had begun before it and not ended.
    pub(super) open: OpenLines,
    pub(super) sequence: u64,
    pub(super) message: Bytes,
    pub(super) stamped: OnceLock<Bytes>,
    /// Bytes of `stamped` that the ring has counted. Written under its lock.
    pub(super) counted_later: AtomicUsize,
}

/// What an entry holds.
#[derive(Debug)]
pub enum EntryKind {
    /// Lines, and whether lines are missing directly before them.
    Lines(Chunk, Contiguity),
    /// A turn in the replica's life.
    Event,
    /// Lines that the source has lost.
    Gap(Gap),
}

/// The unfinished line of each stream, by the sequence number of its first piece. A stream that is not known counts as standard output,
/// since then there is no other.
pub(super) type OpenLines = [Option<u64>; 2];

/// Stands for the first piece of a line that had begun before the ring did.
pub(super) const BEFORE_RING: u64 = u64::MAX;

/// Whether the source has lost lines directly before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contiguity {
    /// No.
    Whole,
    /// Yes.
    Gap,
}

/// Sums over everything that ever went through the ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Lines that ended, delivered or reported as lost by the source.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many gaps whose size is not exactly known.
    pub inexact_gaps: u64,
    /// What the entries cost, in bytes.
    pub(super) cost: u64,
}

// === impl Entry ===

impl Entry {
    /// The message for this representation; made on first use.
    pub fn message(&self, ring: &Ring, as_what: Representation) -> Bytes {
        match (&self.kind, as_what) {
            (EntryKind::Lines(chunk, _), Representation::Timestamped) => self
                .stamped
                .get_or_init(|| {
                    let Some(instance) = &self.instance else {
                        return self.message.clone();
                    };
                    ring.encoded.increment(1);
                    let made = frame::lines(&ring.replica, instance, chunk, as_what).message;
                    ring.count_later(self, made.len());
                    made
                })
                .clone(),
            _ => self.message.clone(),
        }
    }

    /// What [`Entry::message`] is not longer than, in bytes; found without making it.
    pub(super) fn message_max_bytes(&self, as_what: Representation) -> usize {
        match (&self.kind, as_what) {
            (EntryKind::Lines(chunk, _), Representation::Timestamped) => {
                self.message.len() + frame::stamps_max_bytes(chunk)
            }
            _ => self.message.len(),
        }
    }

    /// How many lines end in it, and how many log bytes it holds.
    pub fn size(&self) -> (u64, u64) {
        match &self.kind {
            EntryKind::Lines(chunk, _) => (chunk.lines(), chunk.data.len() as u64),
            EntryKind::Event | EntryKind::Gap(_) => (0, 0),
        }
    }

    /// The time of its first line, if it holds lines.
    pub fn first_time(&self) -> Option<LogTime> {
        match &self.kind {
            EntryKind::Lines(chunk, _) => chunk.marks.first().map(|mark| mark.time),
            EntryKind::Event | EntryKind::Gap(_) => None,
        }
    }

    /// The time of its oldest line, if it holds lines.
    pub(super) fn oldest_time(&self) -> Option<LogTime> {
        match &self.kind {
            EntryKind::Lines(chunk, _) => chunk.marks.iter().map(|mark| mark.time).min(),
            EntryKind::Event | EntryKind::Gap(_) => None,
        }
    }

    /// Whether it holds no rest of a line.
    pub(super) fn starts_line(&self) -> bool {
        !matches!(&self.kind, EntryKind::Lines(chunk, _) if chunk.continues)
    }

    /// The lines that are unfinished behind it.
    pub(super) fn open_after(&self) -> OpenLines {
        let mut open = self.open;
        match &self.kind {
            EntryKind::Lines(chunk, _) if chunk.continues || chunk.goes_on() => {
                let line = &mut open[slot(chunk)];
                let first = line.filter(|_| chunk.continues).unwrap_or(self.sequence);
                *line = chunk.goes_on().then_some(first);
            }
            EntryKind::Lines(..) | EntryKind::Event => {}
            // All lines end at a gap.
            EntryKind::Gap(_) => open = OpenLines::default(),
        }
        open
    }

    fn cost(&self) -> u64 {
        let marks = match &self.kind {
            EntryKind::Lines(chunk, _) => std::mem::size_of_val(&*chunk.marks),
            EntryKind::Event | EntryKind::Gap(_) => 0,
        };
        (self.message.len() + marks + ENTRY_OVERHEAD_BYTES) as u64
    }

    /// Everything up to behind it.
    pub(super) fn after(&self) -> Totals {
        let (lines, bytes) = self.size();
        let mut after = self.before;
        after.lines += lines;
        after.bytes += bytes;
        after.cost += self.cost();
        if let EntryKind::Gap(gap) = &self.kind {
            after.lines += gap.lines;
            after.bytes += gap.bytes;
            after.inexact_gaps += u64::from(!gap.exact);
        }
        after
    }
}

/// Where [`OpenLines`] has the line of `chunk`.
pub(super) fn slot(chunk: &Chunk) -> usize {
    usize::from(chunk.stream() == Some(Stream::Stderr))
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("end", &self.end).field("size", &self.size()).finish_non_exhaustive()
    }
}
