//! What a ring holds now, where its newest line ends, and what it costs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Waker;

use bytes::Bytes;
use metrics::Gauge;
use slab::Slab;
use tokio::time::Instant;

use super::entry::{Contiguity, Entry, EntryKind, OpenLines, Totals};
use crate::logs::ambiguity::AmbiguousRange;
use crate::model::id::Instance;
use crate::model::position::Position;

/// What a ring's lock guards.
pub(super) struct State {
    pub(super) entries: VecDeque<Arc<Entry>>,
    /// Sequence number of the oldest entry held.
    pub(super) first: u64,
    pub(super) totals: Totals,
    /// Lines that have not ended.
    pub(super) open: OpenLines,
    /// Where the newest line ends; `None` until the log was opened.
    pub(super) tip: Option<Head>,
    /// Of the tip's run.
    pub(super) vague: AmbiguousRange,
    /// A place for each reader, and its waker while it waits.
    pub(super) waiting: Slab<Option<Waker>>,
    /// How often anything changed.
    pub(super) moves: u64,
    pub(super) closed: bool,
    /// Whether it was closed because the replica was gone and its log was read to its end.
    pub(super) gone: bool,
    /// Bytes of representations made after their entries were put in, of entries that are held.
    pub(super) made_later: usize,
    /// What is held, in bytes, of all rings; and what of it is this one's.
    gauge: Gauge,
    gauged: usize,
}

/// Where the newest line ends.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) instance: Instance,
    pub(super) position: Position,
    pub(super) adjacent: Contiguity,
    /// Sequence number behind the newest line or gap of that run, or behind the news of its start; and everything up to there.
    pub(super) behind: (u64, Totals),
}

// === impl State ===

impl State {
    /// Nothing held, and no log opened.
    pub(super) fn new(gauge: Gauge) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            totals: Totals::default(),
            open: OpenLines::default(),
            tip: None,
            vague: AmbiguousRange::default(),
            waiting: Slab::new(),
            moves: 0,
            closed: false,
            gone: false,
            made_later: 0,
            gauge,
            gauged: 0,
        }
    }

    /// Sequence number of the next entry that will be put in.
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Puts an entry in, behind all others. It stays until [`State::trim`].
    pub(super) fn push(
        &mut self,
        instance: Option<Instance>,
        kind: EntryKind,
        (start, end): (Position, Position),
        message: Bytes,
        read_at: Instant,
    ) {
        let entry = Entry {
            kind,
            instance,
            start,
            end,
            read_at,
            before: self.totals,
            vague: self.vague,
            open: self.open,
            sequence: self.next(),
            message,
            stamped: OnceLock::new(),
            counted_later: AtomicUsize::new(0),
        };
        self.totals = entry.after();
        self.open = entry.open_after();
        self.entries.push_back(Arc::new(entry));
    }

    /// The newest line ends at `position`, and everything pushed so far lies before what comes of that run.
    pub(super) fn set_head(&mut self, instance: &Instance, position: Position, adjacent: Contiguity) {
        let behind = (self.next(), self.totals);
        self.tip = Some(Head { instance: instance.clone(), position, adjacent, behind });
    }

    /// What the entries from the oldest on cost.
    fn held(&self) -> u64 {
        self.entries.front().map_or(0, |oldest| self.totals.cost - oldest.before.cost)
    }

    /// Drops the oldest entries until the rest fits.
    pub(super) fn trim(&mut self, max_bytes: usize) {
        while self.entries.len() > 1 && self.held() + self.made_later as u64 > max_bytes as u64 {
            if let Some(dropped) = self.entries.pop_front() {
                self.first += 1;
                self.made_later -= dropped.counted_later.load(Ordering::Relaxed);
            }
        }
        let held = usize::try_from(self.held()).unwrap_or(usize::MAX) + self.made_later;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.gauge.increment(held as f64 - self.gauged as f64);
        self.gauged = held;
    }

    /// The entry with this sequence number, if it is held.
    pub(super) fn get(&self, sequence: u64) -> Option<&Arc<Entry>> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.entries.get(index)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.gauge.decrement(self.gauged as f64);
    }
}
