//! The state behind a ring's lock: its entries, their total size, and the head.

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

pub(super) struct State {
    pub(super) entries: VecDeque<Arc<Entry>>,
    /// Sequence number of the oldest entry held.
    pub(super) first: u64,
    /// Sums over all entries pushed so far, evicted ones included.
    pub(super) totals: Totals,
    /// Lines that have not ended.
    pub(super) open: OpenLines,
    /// `None` until a log was opened.
    pub(super) head: Option<Head>,
    /// Positions of the head's run that cannot be compared.
    pub(super) ambiguous: AmbiguousRange,
    /// One slot per reader, with its waker while it waits.
    pub(super) waiters: Slab<Option<Waker>>,
    /// Incremented by each change.
    pub(super) version: u64,
    pub(super) closed: bool,
    /// Closed because the replica is gone and its log was read to its end.
    pub(super) gone: bool,
    /// Bytes of the representations that readers have made of held entries.
    pub(super) lazy_bytes: usize,
    /// Bytes held by all rings.
    gauge: Gauge,
    /// This ring's part of the gauge.
    gauged: usize,
}

/// The newest position of the ring.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) instance: Instance,
    pub(super) position: Position,
    pub(super) contiguity: Contiguity,
    /// Sequence number after the newest line, gap or start event of the run, and the totals up to there.
    /// Later events have no position of their own.
    pub(super) next: (u64, Totals),
}

// === impl State ===

impl State {
    pub(super) fn new(gauge: Gauge) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            totals: Totals::default(),
            open: OpenLines::default(),
            head: None,
            ambiguous: AmbiguousRange::default(),
            waiters: Slab::new(),
            version: 0,
            closed: false,
            gone: false,
            lazy_bytes: 0,
            gauge,
            gauged: 0,
        }
    }

    /// Sequence number of the next entry.
    pub(super) fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Appends an entry. Does not evict.
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
            totals_before: self.totals,
            ambiguous: self.ambiguous,
            open: self.open,
            sequence: self.next(),
            message,
            timestamped: OnceLock::new(),
            lazy_bytes: AtomicUsize::new(0),
        };
        self.totals = entry.totals_after();
        self.open = entry.open_after();
        self.entries.push_back(Arc::new(entry));
    }

    /// Sets the head. It comes after all entries pushed so far.
    pub(super) fn set_head(&mut self, instance: &Instance, position: Position, contiguity: Contiguity) {
        let next = (self.next(), self.totals);
        self.head = Some(Head { instance: instance.clone(), position, contiguity, next });
    }

    pub(super) fn head_position(&self) -> Position {
        self.head.as_ref().map_or(Position::START, |head| head.position)
    }

    /// Forgets unfinished lines and ambiguous positions: another log begins.
    pub(super) fn forget_lines(&mut self) {
        self.open = OpenLines::default();
        self.ambiguous = AmbiguousRange::default();
    }

    /// Cost of the held entries, without their lazy representations.
    fn cost(&self) -> u64 {
        self.entries.front().map_or(0, |oldest| self.totals.cost - oldest.totals_before.cost)
    }

    /// Evicts the oldest entries until the others fit into `max_bytes`. Keeps the newest entry.
    pub(super) fn evict(&mut self, max_bytes: usize) {
        while self.entries.len() > 1 && self.cost() + self.lazy_bytes as u64 > max_bytes as u64 {
            if let Some(evicted) = self.entries.pop_front() {
                self.first += 1;
                self.lazy_bytes -= evicted.lazy_bytes.load(Ordering::Relaxed);
            }
        }
        let held = usize::try_from(self.cost()).unwrap_or(usize::MAX) + self.lazy_bytes;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.gauge.increment(held as f64 - self.gauged as f64);
        self.gauged = held;
    }

    /// Returns the entry with this sequence number, if it is held.
    pub(super) fn get(&self, sequence: u64) -> Option<&Arc<Entry>> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.entries.get(index)
    }

    /// Sequence number of the first held entry that was read after `instant`; of the oldest one for `None`.
    pub(super) fn first_read_after(&self, instant: Option<Instant>) -> u64 {
        let older = instant.map_or(0, |at| self.entries.partition_point(|entry| entry.read_at <= at));
        self.first + older as u64
    }
}

impl Drop for State {
    fn drop(&mut self) {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.gauge.decrement(self.gauged as f64);
    }
}
