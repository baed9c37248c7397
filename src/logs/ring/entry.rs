//! Entries of a ring, each with the sums over all entries before it, and with the positions that were
//! ambiguous there. Pure, but for the account of lazy representations.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::time::Instant;

use super::Ring;
use crate::logs::chunk::Chunk;
use crate::logs::message::{Event, Gap};
use crate::logs::representation::Representation;
use crate::model::id::Instance;
use crate::model::line::OutputStream;
use crate::model::position::{AmbiguousRange, Position};
use crate::model::time::LogTime;

/// Memory of an entry besides its bytes: the entry itself and its slot in the ring, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 384;

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
    /// The source has lost lines directly before it, or before the line that it continues.
    pub(super) after_gap: bool,
    /// Other gateways that follow the replica report the same by themselves.
    pub(super) is_local: bool,
    pub(super) message: Bytes,
    /// Other representations of lines, made by the first reader that needs one. Boxed, since most entries
    /// have none.
    pub(super) lazy: OnceLock<Box<LazyForms>>,
    /// Size of `lazy` in the ring's account. Written under the ring's lock.
    pub(super) lazy_bytes: AtomicUsize,
}

/// Representations of lines other than the plain one, each made by the first reader that needs it.
#[derive(Debug, Default)]
pub(super) struct LazyForms {
    timestamped: OnceLock<Bytes>,
    websocket: OnceLock<Bytes>,
    published: OnceLock<Bytes>,
    entries: OnceLock<Bytes>,
}

#[derive(Debug)]
pub(crate) enum EntryKind {
    Lines(Chunk, Contiguity),
    /// A change in the replica's life cycle.
    Event(Box<Event>),
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

// === impl Entry ===

impl Entry {
    /// Returns the message in this representation. Lines are encoded on first use, which locks the ring to
    /// account for their size; gaps and events of protocols other than gRPC for each follower: they are rare,
    /// and followers may have other notices. `within_line`: the message before it ended within a line.
    pub(crate) fn message(&self, ring: &Ring, representation: Representation, within_line: bool) -> Bytes {
        match (&self.kind, representation) {
            (_, Representation::Plain) => self.message.clone(),
            (EntryKind::Lines(chunk, _), _) => self.lazy_message(ring, representation, chunk),
            (_, Representation::Timestamped) => self.message.clone(),
            (EntryKind::Gap(gap), _) => {
                let at = self.instance.as_ref().map(|instance| (instance, self.end));
                ring.encoder(representation).gap(at, gap, within_line)
            }
            (EntryKind::Event(event), _) => {
                ring.encoder(representation).event(self.instance.as_ref(), event, within_line)
            }
        }
    }

    fn lazy_message(&self, ring: &Ring, representation: Representation, chunk: &Chunk) -> Bytes {
        let mut made_bytes = 0;
        let forms = self.lazy.get_or_init(|| {
            made_bytes += size_of::<LazyForms>();
            Box::default()
        });
        let (Some(form), Some(instance)) = (forms.get(representation), &self.instance) else {
            return self.message.clone();
        };
        let message = form.get_or_init(|| {
            ring.encoded.increment(1);
            let message = ring.encoder(representation).lines(instance, chunk);
            let message = ring.memory.hold(message, made_bytes);
            made_bytes += message.len();
            message
        });
        if made_bytes > 0 {
            ring.count_lazy_bytes(self, made_bytes);
        }
        message.clone()
    }

    /// Returns an upper bound on the length of [`Entry::message`], without encoding it.
    pub(super) fn message_max_bytes(&self, ring: &Ring, representation: Representation) -> usize {
        let plain = self.message.len();
        match (&self.kind, representation) {
            (_, Representation::Plain) => plain,
            (EntryKind::Lines(chunk, _), _) => {
                let made = self.lazy.get().and_then(|forms| forms.get(representation)?.get());
                made.map_or_else(
                    || ring.encoder(representation).lines_max_bytes(self.instance.as_ref(), chunk, plain),
                    Bytes::len,
                )
            }
            _ => ring.encoder(representation).notice_max_bytes(plain),
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
            EntryKind::Lines(..) | EntryKind::Event(_) => {}
            // A gap ends all lines.
            EntryKind::Gap(_) => open = OpenLines::default(),
        }
        open
    }

    /// Sums over all entries up to and including it.
    pub(super) fn totals_after(&self) -> Totals {
        let (lines, bytes) = self.size();
        let mut totals = self.totals_before;
        totals.lines = totals.lines.saturating_add(lines);
        totals.bytes = totals.bytes.saturating_add(bytes);
        totals.cost += self.cost();
        if let EntryKind::Gap(gap) = &self.kind {
            // Another gateway may have counted them.
            totals.lines = totals.lines.saturating_add(gap.lines);
            totals.bytes = totals.bytes.saturating_add(gap.bytes);
            totals.inexact_gaps += u64::from(!gap.exact);
        }
        totals
    }

    pub(super) fn cost(&self) -> u64 {
        (self.message.len() + self.kind.overhead_bytes(self.message.len())) as u64
    }

    fn chunk(&self) -> Option<&Chunk> {
        match &self.kind {
            EntryKind::Lines(chunk, _) => Some(chunk),
            EntryKind::Event(_) | EntryKind::Gap(_) => None,
        }
    }
}

// === impl EntryKind ===

impl EntryKind {
    /// Returns the memory of an entry besides its message, which has `message_bytes`.
    pub(super) fn overhead_bytes(&self, message_bytes: usize) -> usize {
        match self {
            Self::Lines(chunk, _) => lines_overhead_bytes(chunk),
            // Its texts are not longer than the message.
            Self::Event(_) => ENTRY_OVERHEAD_BYTES + size_of::<Event>() + message_bytes,
            Self::Gap(_) => ENTRY_OVERHEAD_BYTES,
        }
    }
}

/// Returns the memory of an entry of lines besides its message.
pub(super) fn lines_overhead_bytes(chunk: &Chunk) -> usize {
    ENTRY_OVERHEAD_BYTES + size_of_val(&*chunk.line_ends)
}

// === impl LazyForms ===

impl LazyForms {
    /// Returns the place of a representation; `None` for the plain one.
    fn get(&self, representation: Representation) -> Option<&OnceLock<Bytes>> {
        match representation {
            Representation::Plain => None,
            Representation::Timestamped => Some(&self.timestamped),
            Representation::WebSocket(_) => Some(&self.websocket),
            Representation::Published(_) => Some(&self.published),
            Representation::Entries => Some(&self.entries),
        }
    }
}

/// Without the lines: they belong to a tenant.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("end", &self.end).field("size", &self.size()).finish_non_exhaustive()
    }
}

/// Index of the chunk's stream in [`OpenLines`].
pub(super) fn stream_index(chunk: &Chunk) -> usize {
    usize::from(chunk.stream() == Some(OutputStream::Stderr))
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::logs::entry_name::NameStyle;
    use crate::logs::memory_budget::MemoryBudget;
    use crate::logs::notice::Notices;
    use crate::model::id::Replica;
    use crate::model::metrics::Metrics;

    #[test]
    fn forms_are_encoded_once_and_counted() {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let metrics = Metrics::register(&NoopRecorder);
        let memory = MemoryBudget::default();
        let ring = Ring::new(replica, NameStyle::Replica, 1 << 20, &metrics, &memory);
        let (run, time) = (Instance::new("uid", "web", 0).unwrap(), LogTime::from_nanos(5));
        ring.begin_log(&run, Position::START);
        let chunk = Chunk {
            data: (&b"line\n"[..]).into(),
            line_ends: Box::new([LineEnd { end: 5, time, stream: None }]),
            continues: false,
            start: Position::START,
            end: Position::START.after_line(time),
        };
        ring.push_lines(&run, &mut vec![chunk], Instant::now());
        let entry = ring.state.lock().entries[0].clone();
        let forms = [
            Representation::Timestamped,
            Representation::WebSocket(Notices::All),
            Representation::Published(Notices::None),
            Representation::Entries,
        ];
        let mut expected = size_of::<LazyForms>();
        for form in forms {
            let bound = entry.message_max_bytes(&ring, form);
            let message = entry.message(&ring, form, false);
            assert!(message.len() <= bound);
            assert_eq!(entry.message_max_bytes(&ring, form), message.len());
            expected += message.len();
            assert_eq!(entry.message(&ring, form, true).as_ptr(), message.as_ptr(), "shared");
            assert_eq!(ring.state.lock().lazy_bytes, expected);
        }
        // Followers with other notices share the lines.
        let other = entry.message(&ring, Representation::WebSocket(Notices::None), false);
        assert_eq!(other.as_ptr(), entry.message(&ring, forms[1], false).as_ptr());
        ring.state.lock().evict(0);
        ring.push_event(None, Event::gone());
        ring.state.lock().evict(0);
        assert_eq!(ring.state.lock().lazy_bytes, 0);
    }

    #[test]
    fn sums_of_large_gaps_do_not_overflow() {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let metrics = Metrics::register(&NoopRecorder);
        let ring = Ring::new(replica, NameStyle::Replica, 1 << 20, &metrics, &MemoryBudget::default());
        let run = Instance::new("uid", "web", 0).unwrap();
        ring.begin_log(&run, Position::START);
        let cause = crate::model::line::GapCause::Rotated;
        let gap = Gap { cause, lines: u64::MAX, bytes: u64::MAX - 1, exact: true, from: None, to: None };
        ring.push_gap(&run, gap, Position::START);
        ring.push_gap(&run, gap, Position::START);
        let totals = ring.state.lock().totals;
        assert_eq!((totals.lines, totals.bytes), (u64::MAX, u64::MAX));
    }

    #[test]
    fn overhead_covers_entry_and_its_slot() {
        // Two counters of the `Arc`, and two pointers since a full deque doubles.
        assert!(
            size_of::<Entry>() + 4 * size_of::<usize>() <= ENTRY_OVERHEAD_BYTES,
            "{}",
            size_of::<Entry>()
        );
    }
}
