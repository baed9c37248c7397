//! The ring: recent entries of one replica, shared by all of its followers.
//!
//! A broadcast channel bounded in bytes. The writer never waits: it evicts the oldest entries. Each reader
//! has its own sequence number. When that entry was evicted, the reader skips to one that is held, and the
//! difference of cumulative counters is its exact loss. A new reader may start at any line that is held.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::task::Waker;

use bytes::Bytes;
use metrics::{Counter, Gauge};
use slab::Slab;
use tokio::time::Instant;

use self::entry::{BEFORE_RING, Contiguity, OpenLines, Totals, lines_overhead_bytes};
use self::lag::FollowerProgress;
use super::chunk::Chunk;
use super::encoder::Encoder;
use super::entry_name::NameStyle;
use super::memory_budget::{MemoryBudget, RING_MIN_BYTES, RingMinimum, Shrink};
use super::message::{self, Event, Gap};
use super::representation::Representation;
use crate::model::id::{Instance, Replica};
use crate::model::metrics::Metrics;
use crate::model::position::{AmbiguousRange, Position};
use crate::model::time::LogTime;
use crate::sys::sync::{Mutex, MutexGuard};

mod entry;
mod frames;
mod lag;
#[cfg(test)]
#[cfg(feature = "loom")]
mod models;
mod reader;

pub use self::entry::Entry;
pub(crate) use self::entry::EntryKind;
pub(crate) use self::frames::FrameReader;
pub(crate) use self::lag::LaggingFollower;
pub use self::lag::{Backlog, LagReport};
pub use self::reader::{Entries, ReadOutcome, RingReader};
pub(crate) use self::reader::{JoinLimit, JoinOutcome, Loss};

/// Most runs whose first line is remembered: those that a refill may have to read.
const BEGUN_RUNS_MAX: usize = 4;

/// The ring of one replica. The actor writes to it; each follower has a [`RingReader`].
#[derive(Debug)]
pub struct Ring {
    replica: Replica,
    /// How published entries and websocket frames name the replica.
    names: NameStyle,
    max_bytes: usize,
    /// Counts encoded messages.
    encoded: Counter,
    memory: MemoryBudget,
    /// Progress of live followers, for lag reports. Lock order: before `state`. Never locked while pushing or
    /// reading, so that a report over many followers does not delay them.
    followers: Mutex<Slab<Arc<FollowerProgress>>>,
    /// Locked by each push and read; nothing is encoded or woken meanwhile.
    state: Mutex<State>,
}

/// The entries, their total size and the head.
#[derive(Debug)]
struct State {
    entries: VecDeque<Arc<Entry>>,
    /// Sequence number of the oldest entry held.
    first: u64,
    /// Sums over all entries pushed so far, evicted ones included.
    totals: Totals,
    /// Lines that have not ended.
    open: OpenLines,
    /// `None` until a log was opened.
    head: Option<Head>,
    /// Where the first log is read from. `None` if its run has begun later.
    first_log: Option<LogPlace>,
    /// Positions of the head's run that cannot be compared.
    ambiguous: AmbiguousRange,
    /// The newest runs that were read from their first line.
    begun_runs: VecDeque<BegunRun>,
    /// Time of the oldest line of the head's run that was read.
    oldest_read: Option<LogTime>,
    /// One slot per reader, with its waker while it waits.
    waiters: Slab<Option<Waker>>,
    /// Incremented by each change.
    version: u64,
    closed: bool,
    /// Closed because the replica is gone and its log was read to its end.
    gone: bool,
    /// Bytes of the representations that readers have made of held entries.
    lazy_bytes: usize,
    /// Bytes held by all rings.
    gauge: Gauge,
    /// This ring's part of the gauge.
    gauged: usize,
    /// This ring's minimum in the memory budget.
    minimum: RingMinimum,
    /// The size at which entries are evicted, as far as that is known: at most the maximum, and less after
    /// the ring was shrunk, until it has grown again.
    capacity: usize,
}

/// A run that was read from its first line.
#[derive(Debug)]
struct BegunRun {
    instance: Instance,
    /// The replica's run before it, if the replica had none in between.
    previous: Option<Instance>,
    /// Time of the first line, once it has come.
    first_time: Option<LogTime>,
}

/// A place in a log.
#[derive(Debug)]
struct LogPlace {
    /// Sequence number of the entry after it.
    next: u64,
    instance: Instance,
    position: Position,
}

/// The newest position of the ring.
#[derive(Debug)]
struct Head {
    instance: Instance,
    position: Position,
    contiguity: Contiguity,
    /// The source has lost lines directly before the position, or before the unfinished line that it is in.
    after_gap: bool,
    /// Sequence number after the newest line, gap or start event of the run, and the totals up to there.
    /// Later events have no position of their own.
    next: (u64, Totals),
    /// Whether an event has shown that the log was read to its end.
    is_complete: bool,
}

// === impl Ring ===

impl Ring {
    /// Creates an empty ring that holds at most `max_bytes`, or one entry if that is larger.
    pub fn new(
        replica: Replica,
        names: NameStyle,
        max_bytes: usize,
        metrics: &Metrics,
        memory: &MemoryBudget,
    ) -> Arc<Self> {
        let state = State::new(metrics.ring_bytes.clone(), memory.ring_minimum(max_bytes), max_bytes);
        let ring = Arc::new(Self {
            replica,
            names,
            max_bytes,
            encoded: metrics.frames_encoded.clone(),
            memory: memory.clone(),
            followers: Mutex::default(),
            state: Mutex::new(state),
        });
        let ring_of_budget: Weak<Self> = Arc::downgrade(&ring);
        memory.register(ring_of_budget);
        ring
    }

    /// Sets the position at which the log of `instance` is read from, before its first line.
    pub fn begin_log(&self, instance: &Instance, position: Position) {
        let mut state = self.state.lock();
        if state.first_log.is_none() && state.head.is_none() {
            let next = state.next();
            state.first_log = Some(LogPlace { next, instance: instance.clone(), position });
        }
        state.forget_lines();
        // The position before the first line has no line's time.
        state.oldest_read = Some(position.time).filter(|time| *time > LogTime::MIN);
        state.set_head(instance, position, Contiguity::Contiguous);
        self.evict_and_notify(state);
    }

    /// Sets which lines of standard output and standard error have begun before the log's start and not
    /// ended. Called directly after [`Ring::begin_log`].
    pub(crate) fn set_unfinished(&self, streams: [bool; 2]) {
        let mut state = self.state.lock();
        state.open = streams.map(|is_open| is_open.then_some(BEFORE_RING));
        self.evict_and_notify(state);
    }

    /// Pushes the event that a run has started.
    pub(crate) fn begin_run(&self, instance: &Instance, event: Event) {
        let message = message::encode_event(Some(&self.replica), event.clone());
        let kind = EntryKind::Event(Box::new(event));
        let message = self.hold(message, &kind);
        let span = (Position::START, Position::START);
        let mut state = self.state.lock();
        state.forget_lines();
        state.push(Some(instance.clone()), kind, span, message, Instant::now());
        state.set_head(instance, Position::START, Contiguity::Contiguous);
        self.evict_and_notify(state);
    }

    /// Remembers the time of the next line as that of the first line of the run, unless a gap comes before
    /// it. `previous` is the replica's run before it, if the replica had none in between.
    pub(crate) fn expect_first_line(&self, instance: &Instance, previous: Option<&Instance>) {
        let run = BegunRun { instance: instance.clone(), previous: previous.cloned(), first_time: None };
        let begun_runs = &mut self.state.lock().begun_runs;
        if begun_runs.len() == BEGUN_RUNS_MAX {
            begun_runs.pop_front();
        }
        begun_runs.push_back(run);
    }

    /// Encodes chunks and pushes them, in order. Leaves `chunks` empty.
    pub fn push_lines(&self, instance: &Instance, chunks: &mut Vec<Chunk>, read_at: Instant) {
        let encoded = chunks.drain(..).map(|mut chunk| {
            let encoded = message::encode_lines(&self.replica, instance, &chunk, false);
            self.encoded.increment(1);
            let message = self.memory.hold(encoded.message, lines_overhead_bytes(&chunk));
            // Points into the message, so that the log bytes are in memory once.
            chunk.data = message.slice_ref(&encoded.logs);
            (chunk, message)
        });
        // Encoded before locking: readers wait for the lock.
        let encoded: Vec<_> = encoded.collect();
        let mut state = self.state.lock();
        for (chunk, message) in encoded {
            let contiguity = state.head.as_ref().map_or(Contiguity::Contiguous, |head| head.contiguity);
            let (start, end) = (chunk.start, chunk.end);
            if let Some(line) = chunk.line_ends.first() {
                state.ambiguous.record_line(start, line.time);
                state.oldest_read.get_or_insert(line.time);
                if start == Position::START
                    && let Some(run) = state.begun_runs.back_mut()
                    && run.instance == *instance
                {
                    run.first_time.get_or_insert(line.time);
                }
            }
            let kind = EntryKind::Lines(chunk, contiguity);
            // Positions within a line that follows a gap count from the gap.
            let after_gap = state.is_after_gap() && !end.at_line_start();
            state.push(Some(instance.clone()), kind, (start, end), message, read_at);
            state.set_head(instance, end, Contiguity::Contiguous);
            if let Some(head) = &mut state.head {
                head.after_gap = after_gap;
            }
        }
        self.evict_and_notify(state);
    }

    /// Pushes an event of the replica, at the head.
    pub(crate) fn push_event(&self, instance: Option<&Instance>, event: Event) {
        let message = message::encode_event(Some(&self.replica), event.clone());
        let ends_log = event.follows_log();
        let kind = EntryKind::Event(Box::new(event));
        let message = self.hold(message, &kind);
        let mut state = self.state.lock();
        let at = state.head_position();
        if let Some(head) = &mut state.head {
            head.is_complete |= ends_log;
        }
        state.push(instance.cloned(), kind, (at, at), message, Instant::now());
        self.evict_and_notify(state);
    }

    /// Pushes a gap of the source, from the head to `end`.
    pub(crate) fn push_gap(&self, instance: &Instance, gap: Gap, end: Position) {
        self.push_gap_entry(instance, gap, end, false);
    }

    /// Pushes a gap at the head, in place of runs that the view never named. Each gateway finds it by itself.
    pub(crate) fn push_skipped_runs(&self, instance: &Instance, gap: Gap, at: Position) {
        self.push_gap_entry(instance, gap, at, true);
    }

    fn push_gap_entry(&self, instance: &Instance, gap: Gap, end: Position, is_local: bool) {
        let message = message::encode_gap(&self.replica, Some((instance, end)), &gap);
        let message = self.hold(message, &EntryKind::Gap(gap));
        let mut state = self.state.lock();
        if !gap.exact {
            state.ambiguous.record_gap();
        }
        // The line after the gap is not the first one of the run.
        if state.begun_runs.back().is_some_and(|run| run.instance == *instance && run.first_time.is_none()) {
            state.begun_runs.pop_back();
        }
        let start = state.head_position();
        state.push(Some(instance.clone()), EntryKind::Gap(gap), (start, end), message, Instant::now());
        if let Some(entry) = state.entries.back_mut().and_then(Arc::get_mut) {
            entry.is_local = is_local;
        }
        state.set_head(instance, end, Contiguity::AfterGap);
        self.evict_and_notify(state);
    }

    /// Closes the ring. Readers get the remaining entries, then [`ReadOutcome::Closed`]. `gone` states
    /// that the replica is gone and its log was read to its end.
    pub(crate) fn close(&self, gone: bool) {
        let mut state = self.state.lock();
        (state.closed, state.gone) = (true, gone);
        self.evict_and_notify(state);
    }

    /// Returns the run that the actor reads and the position of the newest line, if a log was opened.
    pub(crate) fn head(&self) -> Option<(Instance, Position)> {
        self.state.lock().head.as_ref().map(|head| (head.instance.clone(), head.position))
    }

    /// Returns the time of the run's first line, if it was read from there.
    pub(crate) fn first_time(&self, instance: &Instance) -> Option<LogTime> {
        let state = self.state.lock();
        state.begun_runs.iter().find(|run| run.instance == *instance)?.first_time
    }

    /// Whether the actor has read `later` directly after `instance`: the replica had no run in between.
    pub(crate) fn is_next_run(&self, instance: &Instance, later: &Instance) -> bool {
        let state = self.state.lock();
        let begun = state.begun_runs.iter().find(|run| run.instance == *later);
        begun.and_then(|run| run.previous.as_ref()).is_some_and(|previous| previous == instance)
    }

    /// Returns the time of the oldest line of the run that was read, if that is known.
    pub(crate) fn oldest_read(&self, instance: &Instance) -> Option<LogTime> {
        let state = self.state.lock();
        if state.head.as_ref().is_some_and(|head| head.instance == *instance) {
            return state.oldest_read;
        }
        drop(state);
        self.first_time(instance)
    }

    /// Creates a reader of the entries that are pushed from now on.
    pub fn reader(self: &Arc<Self>) -> RingReader {
        RingReader::new(Arc::clone(self), &mut self.state.lock())
    }

    /// Evicts entries over the limit, then wakes all waiters. Wakes after unlocking because waiters take the
    /// lock immediately.
    fn evict_and_notify(&self, mut state: MutexGuard<'_, State>) {
        state.version += 1;
        self.evict(&mut state);
        let wakers: Vec<Waker> = state.waiters.iter_mut().filter_map(|(_, waiter)| waiter.take()).collect();
        drop(state);
        for waker in wakers {
            waker.wake();
        }
        self.memory.make_room();
    }

    /// Evicts entries over the limit, which is lower while memory is short.
    fn evict(&self, state: &mut State) {
        if self.memory.is_tight() && self.max_bytes > RING_MIN_BYTES {
            self.memory.count_shrunk(state.evict(RING_MIN_BYTES));
        } else {
            state.evict(self.max_bytes);
        }
    }

    /// Counts the message of an entry in the memory budget.
    fn hold(&self, message: Bytes, kind: &EntryKind) -> Bytes {
        let overhead = kind.overhead_bytes(message.len());
        self.memory.hold(message, overhead)
    }

    /// Encodes for the followers that have this representation.
    pub(super) fn encoder(&self, representation: Representation) -> Encoder<'_> {
        Encoder { replica: &self.replica, names: self.names, representation }
    }

    /// Adds a representation that a reader has made to the ring's size, unless its entry was evicted
    /// meanwhile.
    fn count_lazy_bytes(&self, entry: &Entry, bytes: usize) {
        let mut state = self.state.lock();
        if entry.sequence >= state.first {
            entry.lazy_bytes.fetch_add(bytes, Ordering::Relaxed);
            state.lazy_bytes += bytes;
            self.evict(&mut state);
        }
        drop(state);
        self.memory.make_room();
    }
}

impl Shrink for Ring {
    fn held_bytes(&self) -> usize {
        self.state.lock().held_bytes()
    }

    fn shrink_to(&self, max_bytes: usize) -> usize {
        let evicted = self.state.lock().evict(max_bytes);
        self.memory.count_shrunk(evicted);
        evicted
    }
}

// === impl State ===

impl State {
    /// Whether the ring and a backfill may mean different lines by `at`. `first_read` is the time of the
    /// first line that the backfill has found at the start of the run. If a file was rotated away between
    /// their reads of the start, they count the lines of one time from different ones.
    fn counts_from_other_line(&self, instance: &Instance, at: Position, first_read: Option<LogTime>) -> bool {
        let begun = self.begun_runs.iter().find(|run| run.instance == *instance);
        let first_here = begun.and_then(|run| run.first_time);
        first_read.zip(first_here).is_some_and(|(one, other)| one != other && at.time <= one.max(other))
    }

    fn new(gauge: Gauge, minimum: RingMinimum, max_bytes: usize) -> Self {
        Self {
            entries: VecDeque::new(),
            first: 0,
            totals: Totals::default(),
            open: OpenLines::default(),
            head: None,
            first_log: None,
            ambiguous: AmbiguousRange::default(),
            begun_runs: VecDeque::new(),
            oldest_read: None,
            waiters: Slab::new(),
            version: 0,
            closed: false,
            gone: false,
            lazy_bytes: 0,
            gauge,
            gauged: 0,
            minimum,
            capacity: max_bytes,
        }
    }

    /// Sequence number of the next entry.
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    /// Appends an entry. Does not evict.
    fn push(
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
            after_gap: self.is_after_gap(),
            is_local: false,
            message,
            lazy: OnceLock::new(),
            lazy_bytes: AtomicUsize::new(0),
        };
        self.totals = entry.totals_after();
        self.open = entry.open_after();
        self.entries.push_back(Arc::new(entry));
    }

    /// Sets the head. It comes after all entries pushed so far.
    fn set_head(&mut self, instance: &Instance, position: Position, contiguity: Contiguity) {
        let next = (self.next(), self.totals);
        let after_gap = contiguity == Contiguity::AfterGap;
        let instance = instance.clone();
        self.head = Some(Head { instance, position, contiguity, after_gap, next, is_complete: false });
    }

    fn is_after_gap(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.after_gap)
    }

    fn head_position(&self) -> Position {
        self.head.as_ref().map_or(Position::START, |head| head.position)
    }

    /// Forgets unfinished lines and ambiguous positions: another log begins.
    fn forget_lines(&mut self) {
        self.open = OpenLines::default();
        self.ambiguous = AmbiguousRange::default();
        self.oldest_read = None;
    }

    /// Cost of the held entries, without their lazy representations.
    fn cost(&self) -> u64 {
        self.entries.front().map_or(0, |oldest| self.totals.cost - oldest.totals_before.cost)
    }

    /// Bytes of the held entries, with their lazy representations.
    fn held_bytes(&self) -> usize {
        usize::try_from(self.cost()).unwrap_or(usize::MAX) + self.lazy_bytes
    }

    /// Evicts the oldest entries until the others fit into `max_bytes`. Keeps the newest entry. Returns how
    /// many bytes were evicted.
    fn evict(&mut self, max_bytes: usize) -> usize {
        let before = self.held_bytes();
        while self.entries.len() > 1 && self.held_bytes() > max_bytes {
            if let Some(evicted) = self.entries.pop_front() {
                self.first += 1;
                self.lazy_bytes -= evicted.lazy_bytes.load(Ordering::Relaxed);
            }
        }
        let held = self.held_bytes();
        self.minimum.set_held(held);
        self.capacity = if held < before { max_bytes } else { self.capacity.max(held).min(max_bytes) };
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        self.gauge.increment(held as f64 - self.gauged as f64);
        self.gauged = held;
        before - held
    }

    /// Returns the entry with this sequence number, if it is held.
    fn get(&self, sequence: u64) -> Option<&Arc<Entry>> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.entries.get(index)
    }

    /// Sequence number of the first held entry that was read after `instant`; of the oldest one for `None`.
    fn first_read_after(&self, instant: Option<Instant>) -> u64 {
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

#[cfg(test)]
mod memory_tests;
