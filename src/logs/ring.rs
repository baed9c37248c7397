//! The ring: recent entries of one replica, shared by all of its followers.
//!
//! A broadcast channel bounded in bytes. The writer never waits: it evicts the oldest entries. Each reader
//! has its own sequence number. When that entry was evicted, the reader skips to one that is held, and the
//! difference of cumulative counters is its exact loss. A new reader may start at any line that is held.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;

use metrics::Counter;
use parking_lot::{Mutex, MutexGuard};
use slab::Slab;
use tokio::time::Instant;

use self::entry::{BEFORE_RING, Contiguity};
use self::progress::FollowerProgress;
use self::state::State;
use super::chunk::Chunk;
use super::frame::{self, Gap, Representation};
use crate::model::id::{Instance, Replica};
use crate::model::metrics::Metrics;
use crate::model::position::Position;

mod entry;
mod progress;
mod reader;
mod state;

pub use self::entry::Entry;
pub(crate) use self::entry::EntryKind;
pub use self::progress::Backlog;
pub(crate) use self::progress::FollowerLag;
pub(crate) use self::reader::JoinOutcome;
pub use self::reader::{Entries, ReadOutcome, RingReader};

/// The ring of one replica. The actor writes to it; each follower has a [`RingReader`].
pub struct Ring {
    replica: Replica,
    max_bytes: usize,
    /// Counts encoded messages.
    encoded: Counter,
    /// Progress of live followers, for lag reports. Lock order: before `state`. Never locked while pushing or
    /// reading, so that a report over many followers does not delay them.
    followers: Mutex<Slab<Arc<FollowerProgress>>>,
    /// Locked by each push and read; nothing is encoded or woken meanwhile.
    state: Mutex<State>,
}

// === impl Ring ===

impl Ring {
    /// Creates an empty ring that holds at most `max_bytes`, or one entry if that is larger.
    pub fn new(replica: Replica, max_bytes: usize, metrics: &Metrics) -> Self {
        Self {
            replica,
            max_bytes,
            encoded: metrics.frames_encoded.clone(),
            followers: Mutex::default(),
            state: Mutex::new(State::new(metrics.ring_bytes.clone())),
        }
    }

    /// Sets the position at which the log of `instance` is read from, before its first line.
    pub fn begin_log(&self, instance: &Instance, position: Position) {
        let mut state = self.state.lock();
        state.forget_lines();
        state.set_head(instance, position, Contiguity::Contiguous);
        self.evict_and_notify(state);
    }

    /// Sets which lines of standard output and standard error have begun before the log's start and not
    /// ended. Called directly after [`Ring::begin_log`].
    pub(crate) fn set_unfinished(&self, streams: [bool; 2]) {
        self.state.lock().open = streams.map(|is_open| is_open.then_some(BEFORE_RING));
    }

    /// Pushes the event that a run has started. Its log is read from the first line.
    pub(crate) fn begin_run(&self, instance: &Instance, event: &frame::Event) {
        let message = frame::event(&self.replica, event);
        let span = (Position::START, Position::START);
        let mut state = self.state.lock();
        state.forget_lines();
        state.push(Some(instance.clone()), EntryKind::Event, span, message, Instant::now());
        state.set_head(instance, Position::START, Contiguity::Contiguous);
        self.evict_and_notify(state);
    }

    /// Encodes chunks and pushes them, in order. Drains `chunks`.
    pub fn push_lines(&self, instance: &Instance, chunks: &mut Vec<Chunk>, read_at: Instant) {
        let encoded = chunks.drain(..).map(|mut chunk| {
            let frame = frame::lines(&self.replica, instance, &chunk, Representation::Plain);
            self.encoded.increment(1);
            // Points into the message, so that the log bytes are in memory once.
            chunk.data = frame.logs;
            (chunk, frame.message)
        });
        // Encoded before locking: readers wait for the lock.
        let encoded: Vec<_> = encoded.collect();
        let mut state = self.state.lock();
        for (chunk, message) in encoded {
            let contiguity = state.head.as_ref().map_or(Contiguity::Contiguous, |head| head.contiguity);
            let (start, end) = (chunk.start, chunk.end);
            if let Some(line) = chunk.line_ends.first() {
                state.ambiguous.record_line(start, line.time);
            }
            let kind = EntryKind::Lines(chunk, contiguity);
            state.push(Some(instance.clone()), kind, (start, end), message, read_at);
            state.set_head(instance, end, Contiguity::Contiguous);
        }
        self.evict_and_notify(state);
    }

    /// Pushes an event of the replica, at the head.
    pub(crate) fn push_event(&self, instance: Option<&Instance>, event: &frame::Event) {
        let message = frame::event(&self.replica, event);
        let mut state = self.state.lock();
        let at = state.head_position();
        state.push(instance.cloned(), EntryKind::Event, (at, at), message, Instant::now());
        self.evict_and_notify(state);
    }

    /// Pushes a gap of the source, from the head to `end`.
    pub(crate) fn push_gap(&self, instance: &Instance, gap: Gap, end: Position) {
        let message = frame::gap(&self.replica, Some((instance, end)), &gap);
        let mut state = self.state.lock();
        if !gap.exact {
            state.ambiguous.record_gap();
        }
        let start = state.head_position();
        state.push(Some(instance.clone()), EntryKind::Gap(gap), (start, end), message, Instant::now());
        state.set_head(instance, end, Contiguity::AfterGap);
        self.evict_and_notify(state);
    }

    /// Closes the ring. Readers drain the remaining entries, then get [`ReadOutcome::Closed`]. `gone` states
    /// that the replica is gone and its log was read to its end.
    pub(crate) fn close(&self, gone: bool) {
        let mut state = self.state.lock();
        (state.closed, state.gone) = (true, gone);
        self.evict_and_notify(state);
    }

    /// Returns the run of the newest line, if a log was opened.
    pub(crate) fn head_instance(&self) -> Option<Instance> {
        self.state.lock().head.as_ref().map(|head| head.instance.clone())
    }

    /// Creates a reader of the entries that are pushed from now on.
    pub fn reader(self: &Arc<Self>) -> RingReader {
        let mut state = self.state.lock();
        let waiter = state.waiters.insert(None);
        RingReader::new(Arc::clone(self), waiter, state.next(), state.totals)
    }

    /// Evicts entries over the limit, then wakes all waiters. Wakes after unlocking because waiters take the
    /// lock immediately.
    fn evict_and_notify(&self, mut state: MutexGuard<'_, State>) {
        state.version += 1;
        state.evict(self.max_bytes);
        let wakers: Vec<Waker> = state.waiters.iter_mut().filter_map(|(_, waiter)| waiter.take()).collect();
        drop(state);
        for waker in wakers {
            waker.wake();
        }
    }

    /// Adds a representation that a reader has made to the ring's size, unless its entry was evicted
    /// meanwhile.
    fn count_lazy_bytes(&self, entry: &Entry, bytes: usize) {
        let mut state = self.state.lock();
        if entry.sequence >= state.first {
            entry.lazy_bytes.store(bytes, Ordering::Relaxed);
            state.lazy_bytes += bytes;
            state.evict(self.max_bytes);
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Ring")
            .field("replica", &self.replica)
            .field("totals", &state.totals)
            .finish_non_exhaustive()
    }
}
