//! The ring: what an actor has sent lately, for everyone who follows it.
//!
//! A broadcast channel bounded in bytes. The writer never waits; it overwrites the oldest. Each reader has a place of its own
//! in it and is told from cumulative counters exactly what it lost, should its place be overwritten before it got there. A new
//! reader may begin anywhere in what is held, to the line.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use metrics::Counter;
use slab::Slab;
use tokio::time::Instant;

use self::entry::{BEFORE_RING, OpenLines};
use self::progress::FollowerProgress;
use self::state::State;
use super::ambiguity::AmbiguousRange;
use super::chunk::Chunk;
use super::frame::{self, Gap, Representation};
use crate::model::id::{Instance, Replica};
use crate::model::metrics::Metrics;
use crate::model::position::Position;

mod entry;
mod progress;
mod reader;
mod state;

pub use self::entry::{Contiguity, Entry, EntryKind, Totals};
pub use self::progress::{Backlog, FollowerLag};
pub use self::reader::{Entries, JoinOutcome, ReadOutcome, RingReader};

/// The ring of one replica.
pub struct Ring {
    replica: Replica,
    max_bytes: usize,
    /// Counts messages encoded.
    encoded: Counter,
    state: Mutex<State>,
    /// Where those who follow live stand. Locked before the state, if both are, and never by who takes or puts in.
    standings: Mutex<Slab<Arc<FollowerProgress>>>,
}

// === impl Ring ===

impl Ring {
    /// An empty ring that holds at most `max_bytes` (and always the newest entry), counted by `metrics`.
    pub fn new(replica: Replica, max_bytes: usize, metrics: &Metrics) -> Self {
        Self {
            replica,
            max_bytes,
            encoded: metrics.frames_encoded.clone(),
            state: Mutex::new(State::new(metrics.ring_bytes.clone())),
            standings: Mutex::default(),
        }
    }

    /// Says where the log stands that will be read, before its first line.
    pub fn begin(&self, instance: &Instance, position: Position) {
        let mut state = self.lock();
        state.open = OpenLines::default();
        state.vague = AmbiguousRange::default();
        state.set_head(instance, position, Contiguity::Whole);
        self.evict_and_notify(state);
    }

    /// Says which lines had begun before and have not ended, of standard output and of standard error; directly behind [`Ring::begin`].
    pub fn has_unfinished(&self, lines: [bool; 2]) {
        self.lock().open = lines.map(|line| line.then_some(BEFORE_RING));
    }

    /// Says that a run starts, whose log will be read from its first line.
    pub fn start(&self, instance: &Instance, event: &frame::Event) {
        let message = frame::event(&self.replica, event);
        let at = (Position::START, Position::START);
        let mut state = self.lock();
        state.open = OpenLines::default();
        state.vague = AmbiguousRange::default();
        state.push(Some(instance.clone()), EntryKind::Event, at, message, Instant::now());
        state.set_head(instance, Position::START, Contiguity::Whole);
        self.evict_and_notify(state);
    }

    /// Puts lines in.
    pub fn push_lines(&self, instance: &Instance, chunks: &mut Vec<Chunk>, read_at: Instant) {
        let made = chunks.drain(..).map(|mut chunk| {
            let frame = frame::lines(&self.replica, instance, &chunk, Representation::Plain);
            self.encoded.increment(1);
            // The frame's own bytes, so that the log bytes are held once.
            chunk.data = frame.logs;
            (chunk, frame.message)
        });
        let made: Vec<_> = made.collect();
        let mut state = self.lock();
        for (chunk, message) in made {
            let adjacent = state.tip.as_ref().map_or(Contiguity::Whole, |tip| tip.adjacent);
            let (start, end) = (chunk.start, chunk.end);
            if let Some(line) = chunk.marks.first() {
                state.vague.line(start, line.time);
            }
            let kind = EntryKind::Lines(chunk, adjacent);
            state.push(Some(instance.clone()), kind, (start, end), message, read_at);
            state.set_head(instance, end, Contiguity::Whole);
        }
        self.evict_and_notify(state);
    }

    /// Puts a turn in the replica's life in.
    pub fn push_event(&self, instance: Option<&Instance>, event: &frame::Event) {
        let message = frame::event(&self.replica, event);
        let mut state = self.lock();
        let at = state.tip.as_ref().map_or(Position::START, |tip| tip.position);
        state.push(instance.cloned(), EntryKind::Event, (at, at), message, Instant::now());
        self.evict_and_notify(state);
    }

    /// Puts in that the source has lost lines behind the newest one; `end` is the position behind the loss.
    pub fn push_gap(&self, instance: &Instance, gap: Gap, end: Position) {
        let message = frame::gap(&self.replica, Some((instance, end)), &gap);
        let mut state = self.lock();
        if !gap.exact {
            state.vague.gap();
        }
        let start = state.tip.as_ref().map_or(Position::START, |tip| tip.position);
        state.push(Some(instance.clone()), EntryKind::Gap(gap), (start, end), message, Instant::now());
        state.set_head(instance, end, Contiguity::Gap);
        self.evict_and_notify(state);
    }

    /// Closes the ring. Readers drain the remaining entries, then get [`ReadOutcome::Closed`]. `gone` if that is because the replica is gone
    /// and its log was read to its end.
    pub fn close(&self, gone: bool) {
        let mut state = self.lock();
        (state.closed, state.gone) = (true, gone);
        self.evict_and_notify(state);
    }

    /// The run of the newest line.
    pub fn head_instance(&self) -> Option<Instance> {
        self.lock().tip.as_ref().map(|tip| tip.instance.clone())
    }

    /// A reader of what is yet to come.
    pub fn reader(self: &Arc<Self>) -> RingReader {
        let mut state = self.lock();
        let place = state.waiting.insert(None);
        RingReader::new(Arc::clone(self), place, state.next(), state.totals)
    }

    /// Drops what is too much, and wakes whoever waits: outside the lock, since they come for it at once.
    fn evict_and_notify(&self, mut state: MutexGuard<'_, State>) {
        state.moves += 1;
        state.trim(self.max_bytes);
        let woken: Vec<Waker> = state.waiting.iter_mut().filter_map(|(_, waiting)| waiting.take()).collect();
        drop(state);
        for waker in woken {
            waker.wake();
        }
    }

    /// A representation of an entry was made by a reader: it counts as long as the entry is held.
    fn count_later(&self, entry: &Entry, bytes: usize) {
        let mut state = self.lock();
        if entry.sequence >= state.first {
            entry.counted_later.store(bytes, Ordering::Relaxed);
            state.made_later += bytes;
            state.trim(self.max_bytes);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Ring")
            .field("replica", &self.replica)
            .field("totals", &state.totals)
            .finish_non_exhaustive()
    }
}
