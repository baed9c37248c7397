//! The ring: what an actor has sent lately, for everyone who follows it.
//!
//! A broadcast channel bounded in bytes. The writer never waits; it overwrites the oldest. Each reader has a place of its own
//! in it and is told from cumulative counters exactly what it lost, should its place be overwritten before it got there. A new
//! reader may begin anywhere in what is held, to the line.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use bytes::Bytes;
use metrics::{Counter, Gauge};
use slab::Slab;
use tokio::time::Instant;

use super::chunk::Chunk;
use super::frame::{self, Gap, Representation};
use super::vague::Vague;
use crate::model::id::{Instance, Replica};
use crate::model::metrics::Metrics;
use crate::model::position::Position;
use crate::model::time::LogTime;
pub use reader::{Entries, Join, Reader, Taken};
use standing::Standing;
pub use standing::{Amount, Behind};

/// What an entry costs beside its bytes: the entry itself and its place in the ring, rounded up.
const ENTRY_OVERHEAD_BYTES: usize = 256;

mod reader;
mod standing;

/// The ring of one replica.
pub struct Ring {
    replica: Replica,
    max_bytes: usize,
    /// Counts messages encoded.
    encoded: Counter,
    state: Mutex<State>,
    /// Where those who follow live stand. Locked before the state, if both are, and never by who takes or puts in.
    standings: Mutex<Slab<Arc<Standing>>>,
}

/// Something that was sent.
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// The run it belongs to, if there was one.
    pub instance: Option<Instance>,
    /// The position before it.
    pub start: Position,
    /// The position behind it.
    pub end: Position,
    /// When its oldest line was read.
    pub read_at: Instant,
    /// Everything that lies before it.
    before: Totals,
    /// As it was when this was put in.
    vague: Vague,
    sequence: u64,
    message: Bytes,
    stamped: OnceLock<Bytes>,
    /// Bytes of `stamped` that the ring has counted. Written under its lock.
    counted_later: AtomicUsize,
}

/// What an entry holds.
#[derive(Debug)]
pub enum Kind {
    /// Lines, and whether lines are missing directly before them.
    Lines(Chunk, Adjacent),
    /// A turn in the replica's life.
    Event,
    /// Lines that the source has lost.
    Gap(Gap),
}

/// Whether the source has lost lines directly before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjacent {
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
    cost: u64,
}

struct State {
    entries: VecDeque<Arc<Entry>>,
    /// Sequence number of the oldest entry held.
    first: u64,
    totals: Totals,
    /// Where the newest line ends; `None` until the log was opened.
    tip: Option<Tip>,
    /// Of the tip's run.
    vague: Vague,
    waiting: Slab<Option<Waker>>,
    /// How often anything changed.
    moves: u64,
    closed: bool,
    /// Bytes of representations made after their entries were put in, of entries that are held.
    made_later: usize,
    gauge: Gauge,
    gauged: usize,
}

#[derive(Clone, Debug)]
struct Tip {
    instance: Instance,
    position: Position,
    adjacent: Adjacent,
    /// Sequence number behind the newest line or gap of that run, or behind the news of its start; and everything up to there.
    behind: (u64, Totals),
}

// === impl Entry ===

impl Entry {
    /// The message for this representation; made on first use.
    pub fn message(&self, ring: &Ring, as_what: Representation) -> Bytes {
        match (&self.kind, as_what) {
            (Kind::Lines(chunk, _), Representation::Stamped) => self
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
    fn message_max_bytes(&self, as_what: Representation) -> usize {
        match (&self.kind, as_what) {
            (Kind::Lines(chunk, _), Representation::Stamped) => {
                self.message.len() + frame::stamps_max_bytes(chunk)
            }
            _ => self.message.len(),
        }
    }

    /// How many lines end in it, and how many log bytes it holds.
    pub fn size(&self) -> (u64, u64) {
        match &self.kind {
            Kind::Lines(chunk, _) => (chunk.lines(), chunk.data.len() as u64),
            Kind::Event | Kind::Gap(_) => (0, 0),
        }
    }

    /// The time of its first line, if it holds lines.
    pub fn first_time(&self) -> Option<LogTime> {
        match &self.kind {
            Kind::Lines(chunk, _) => chunk.marks.first().map(|mark| mark.time),
            Kind::Event | Kind::Gap(_) => None,
        }
    }

    /// Whether a follower may go on with it after a lag: it holds no rest of a line.
    fn starts_line(&self) -> bool {
        self.start.at_line_start()
    }

    fn cost(&self) -> u64 {
        let marks = match &self.kind {
            Kind::Lines(chunk, _) => std::mem::size_of_val(&*chunk.marks),
            Kind::Event | Kind::Gap(_) => 0,
        };
        (self.message.len() + marks + ENTRY_OVERHEAD_BYTES) as u64
    }

    fn after(&self) -> Totals {
        let (lines, bytes) = self.size();
        let mut after = self.before;
        after.lines += lines;
        after.bytes += bytes;
        after.cost += self.cost();
        if let Kind::Gap(gap) = &self.kind {
            after.lines += gap.lines;
            after.bytes += gap.bytes;
            after.inexact_gaps += u64::from(!gap.exact);
        }
        after
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("end", &self.end).field("size", &self.size()).finish_non_exhaustive()
    }
}

// === impl Ring ===

impl Ring {
    /// An empty ring that holds at most `max_bytes` (and always the newest entry), counted by `metrics`.
    pub fn new(replica: Replica, max_bytes: usize, metrics: &Metrics) -> Self {
        let state = State {
            entries: VecDeque::new(),
            first: 0,
            totals: Totals::default(),
            tip: None,
            vague: Vague::default(),
            waiting: Slab::new(),
            moves: 0,
            closed: false,
            made_later: 0,
            gauge: metrics.ring_bytes.clone(),
            gauged: 0,
        };
        Self {
            replica,
            max_bytes,
            encoded: metrics.frames_encoded.clone(),
            state: Mutex::new(state),
            standings: Mutex::default(),
        }
    }

    /// Says where the log stands that will be read, before its first line.
    pub fn begin(&self, instance: &Instance, position: Position) {
        let mut state = self.lock();
        state.vague = Vague::default();
        state.tip_at(instance, position, Adjacent::Whole);
        self.settle(state);
    }

    /// Says that a run starts, whose log will be read from its first line.
    pub fn start(&self, instance: &Instance, event: &frame::Event) {
        let message = frame::event(&self.replica, event);
        let at = (Position::START, Position::START);
        let mut state = self.lock();
        state.vague = Vague::default();
        state.push(Some(instance.clone()), Kind::Event, at, message, Instant::now());
        state.tip_at(instance, Position::START, Adjacent::Whole);
        self.settle(state);
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
            let adjacent = state.tip.as_ref().map_or(Adjacent::Whole, |tip| tip.adjacent);
            let (start, end) = (chunk.start, chunk.end);
            if let Some(line) = chunk.marks.first() {
                state.vague.line(start, line.time);
            }
            let kind = Kind::Lines(chunk, adjacent);
            state.push(Some(instance.clone()), kind, (start, end), message, read_at);
            state.tip_at(instance, end, Adjacent::Whole);
        }
        self.settle(state);
    }

    /// Puts a turn in the replica's life in.
    pub fn push_event(&self, instance: Option<&Instance>, event: &frame::Event) {
        let message = frame::event(&self.replica, event);
        let mut state = self.lock();
        let at = state.tip.as_ref().map_or(Position::START, |tip| tip.position);
        state.push(instance.cloned(), Kind::Event, (at, at), message, Instant::now());
        self.settle(state);
    }

    /// Puts in that the source has lost lines behind the newest one; `end` is the position behind the loss.
    pub fn push_gap(&self, instance: &Instance, gap: Gap, end: Position) {
        let message = frame::gap(&self.replica, Some((instance, end)), &gap);
        let mut state = self.lock();
        if !gap.exact {
            state.vague.gap();
        }
        let start = state.tip.as_ref().map_or(Position::START, |tip| tip.position);
        state.push(Some(instance.clone()), Kind::Gap(gap), (start, end), message, Instant::now());
        state.tip_at(instance, end, Adjacent::Gap);
        self.settle(state);
    }

    /// No more will come. Readers take what is left and are then told.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.settle(state);
    }

    /// The run of the newest line.
    pub fn tip_instance(&self) -> Option<Instance> {
        self.lock().tip.as_ref().map(|tip| tip.instance.clone())
    }

    /// A reader of what is yet to come.
    pub fn reader(self: &Arc<Self>) -> Reader {
        let mut state = self.lock();
        let place = state.waiting.insert(None);
        Reader::new(Arc::clone(self), place, state.next(), state.totals)
    }

    /// Drops what is too much, and wakes whoever waits: outside the lock, since they come for it at once.
    fn settle(&self, mut state: MutexGuard<'_, State>) {
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

impl Drop for Ring {
    fn drop(&mut self) {
        let state = self.lock();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        state.gauge.decrement(state.gauged as f64);
    }
}

// === impl State ===

impl State {
    fn next(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn push(
        &mut self,
        instance: Option<Instance>,
        kind: Kind,
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
            sequence: self.next(),
            message,
            stamped: OnceLock::new(),
            counted_later: AtomicUsize::new(0),
        };
        self.totals = entry.after();
        self.entries.push_back(Arc::new(entry));
    }

    /// The newest line ends at `position`, and everything pushed so far lies before what comes of that run.
    fn tip_at(&mut self, instance: &Instance, position: Position, adjacent: Adjacent) {
        let behind = (self.next(), self.totals);
        self.tip = Some(Tip { instance: instance.clone(), position, adjacent, behind });
    }

    /// What the entries from the oldest on cost.
    fn held(&self) -> u64 {
        self.entries.front().map_or(0, |oldest| self.totals.cost - oldest.before.cost)
    }

    /// Drops the oldest entries until the rest fits.
    fn trim(&mut self, max_bytes: usize) {
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

    fn get(&self, sequence: u64) -> Option<&Arc<Entry>> {
        let index = usize::try_from(sequence.checked_sub(self.first)?).ok()?;
        self.entries.get(index)
    }
}
