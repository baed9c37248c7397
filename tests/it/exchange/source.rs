//! A replica's log: runs, rotation, lines lost by the runtime, lines that are written in parts.

use std::time::Duration;

use bytes::Bytes;
use leasemux::exchange::participant::TailEvent;
use leasemux::model::id::Instance;
use leasemux::model::line::{GapCause, Line, LineBatch, SourceGap};
use leasemux::model::position::Position;
use leasemux::model::time::LogTime;
use leasemux::platform::{ReadFrom, TailItem};
use rand::RngExt as _;
use rand::rngs::StdRng;

/// Bytes of each line that the runtime lost.
const LOST_BYTES: u64 = 10;

/// Bytes of a line up to its number and a space.
const HEAD_BYTES: usize = 7;

/// The log of one replica.
pub(crate) struct Source {
    pub(crate) runs: Vec<Run>,
}

/// One run and its log.
pub(crate) struct Run {
    pub(crate) instance: Instance,
    pub(crate) slots: Vec<Slot>,
    pub(crate) ended: bool,
    /// Slots before this one can no longer be read.
    pub(crate) rotated: usize,
    /// Whether readers can tell how much was rotated away.
    pub(crate) exact: bool,
    /// Number of the newest line.
    number: u64,
}

/// A line, or lines that the runtime lost at one place.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) text: Bytes,
    /// Bytes that were written so far.
    pub(crate) written: usize,
    /// Lines lost here; then there is no text.
    pub(crate) lost: u64,
    pub(crate) time: LogTime,
    pub(crate) start: Position,
}

/// An open read of one run.
pub(crate) struct Reader {
    pub(crate) run: usize,
    slot: usize,
    offset: usize,
    at: Position,
    opened: bool,
    /// No line was read since the newest gap.
    after_gap: bool,
}

// === impl Source ===

impl Source {
    pub(crate) fn new() -> Self {
        Self { runs: vec![Run::new(0, 0)] }
    }

    pub(crate) fn current(&mut self) -> &mut Run {
        self.runs.last_mut().unwrap()
    }

    /// Ends the run and begins the next one, in the same pod or a new one.
    pub(crate) fn next_run(&mut self, new_pod: bool) {
        let (uid, _, number) = self.current().instance.parts();
        let pod: u32 = uid.parse().unwrap();
        let next = if new_pod { Run::new(pod + 1, 0) } else { Run::new(pod, number + 1) };
        self.current().finish_line();
        self.current().ended = true;
        self.runs.push(next);
    }

    /// Returns the number of a run's pod.
    pub(crate) fn pod(&self, run: usize) -> usize {
        self.runs[run].instance.parts().0.parse().unwrap()
    }

    pub(crate) fn index(&self, instance: &Instance) -> usize {
        self.runs.iter().position(|run| run.instance == *instance).unwrap()
    }
}

// === impl Run ===

impl Run {
    fn new(pod: u32, number: u32) -> Self {
        let instance = Instance::new(&pod.to_string(), "web", number).unwrap();
        Self { instance, slots: Vec::new(), ended: false, rotated: 0, exact: true, number: 0 }
    }

    /// Prints a line, or the next part of one.
    pub(crate) fn print(&mut self, now: Duration, random: &mut StdRng) {
        if self.slots.last().is_some_and(|slot| slot.written < slot.text.len()) {
            return self.finish_line();
        }
        self.number += 1;
        let length =
            if random.random_ratio(1, 10) { random.random_range(40..200) } else { random.random_range(0..9) };
        let text: Bytes = format!("{:06} {}\n", self.number, "x".repeat(length)).into();
        let written =
            if random.random_ratio(1, 8) { random.random_range(HEAD_BYTES..text.len()) } else { text.len() };
        self.push(Slot { text, written, lost: 0, time: self.time(now, random), start: Position::START });
    }

    pub(crate) fn finish_line(&mut self) {
        if let Some(slot) = self.slots.last_mut() {
            slot.written = slot.text.len();
        }
    }

    /// The runtime loses lines, and records that.
    pub(crate) fn lose(&mut self, now: Duration, random: &mut StdRng) {
        self.finish_line();
        let lost = random.random_range(1..5);
        self.number += lost;
        let time = self.time(now, random);
        self.push(Slot { text: Bytes::new(), written: 0, lost, time, start: Position::START });
    }

    /// Removes the oldest part of the log.
    pub(crate) fn rotate(&mut self, exact: bool, random: &mut StdRng) {
        let keep = if random.random_ratio(1, 4) { 1 } else { random.random_range(1..30) };
        let mut end = self.slots.len().saturating_sub(keep);
        // Only where times grow: readers that lost lines then count the next ones as others do.
        while end > self.rotated && !self.grows_at(end) {
            end -= 1;
        }
        if end > self.rotated {
            (self.rotated, self.exact) = (end, exact);
        }
    }

    fn grows_at(&self, index: usize) -> bool {
        let slot = &self.slots[index];
        slot.time > slot.start.time && slot.lost == 0
    }

    fn time(&self, now: Duration, random: &mut StdRng) -> LogTime {
        let nanos = i64::try_from(now.as_nanos()).unwrap() + 1;
        let last = self
            .slots
            .last()
            .map_or(nanos, |slot| slot.time.parts().0 * 1_000_000_000 + i64::from(slot.time.parts().1));
        LogTime::from_nanos(match random.random_range(0..10) {
            // Equal times, and a clock that was set back.
            0..3 => last,
            3 => (last - 5_000_000).max(1),
            _ => nanos,
        })
    }

    fn push(&mut self, slot: Slot) {
        let start = self.slots.last().map_or(Position::START, Slot::end);
        self.slots.push(Slot { start, ..slot });
    }

    /// Returns the size of the part from a slot and offset to another slot.
    fn size(&self, slot: usize, offset: usize, end: usize) -> (u64, u64) {
        let all = self.slots.get(slot..end).unwrap_or_default().iter();
        let (lines, bytes) =
            all.fold((0, 0), |(lines, bytes), slot| (lines + slot.lines(), bytes + slot.bytes()));
        (lines, bytes - offset as u64)
    }

    /// Returns the newest line number.
    pub(crate) fn newest(&self) -> u64 {
        self.number
    }
}

// === impl Slot ===

impl Slot {
    pub(crate) fn lines(&self) -> u64 {
        if self.lost > 0 { self.lost } else { 1 }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lost * LOST_BYTES + self.text.len() as u64
    }

    /// Whether a line of this slot can have the time of `line`.
    pub(crate) fn start_matches(&self, line: &Line) -> bool {
        self.lost == 0 && self.time == line.time
    }

    fn end(&self) -> Position {
        self.start.after_line(self.time)
    }

    fn is_whole(&self) -> bool {
        self.written == self.text.len()
    }
}

// === impl Reader ===

impl Reader {
    pub(crate) fn open(source: &Source, instance: &Instance, from: ReadFrom) -> Self {
        let run = source.index(instance);
        let log = &source.runs[run];
        let (slot, offset, at) = match from {
            ReadFrom::Start => (0, 0, Position::START),
            ReadFrom::After(at) => {
                let index = log.slots.iter().position(|slot| slot.end() > at);
                let index = index.unwrap_or(log.slots.len());
                let is_within = log
                    .slots
                    .get(index)
                    .is_some_and(|slot| (slot.start.time, slot.start.ordinal) == (at.time, at.ordinal));
                (index, if is_within { usize::try_from(at.offset).unwrap() } else { 0 }, at)
            }
            _ => {
                let open = log.slots.last().filter(|slot| !slot.is_whole());
                match open {
                    Some(slot) => (log.slots.len() - 1, slot.written, slot.start.after_bytes(slot.written)),
                    None => (log.slots.len(), 0, log.slots.last().map_or(Position::START, Slot::end)),
                }
            }
        };
        Self { run, slot, offset, at, opened: false, after_gap: false }
    }

    /// Returns the next event, if there is one now.
    pub(crate) fn next(&mut self, source: &Source, random: &mut StdRng) -> Option<TailEvent> {
        if !std::mem::replace(&mut self.opened, true) {
            return Some(TailEvent::Opened { start: self.at, unfinished: [self.offset > 0, false] });
        }
        let run = &source.runs[self.run];
        if self.slot < run.rotated {
            let (lines, bytes) = run.size(self.slot, self.offset, run.rotated);
            (self.slot, self.offset, self.after_gap) = (run.rotated, 0, true);
            let (lines, bytes) = if run.exact { (lines, bytes) } else { (0, 0) };
            let gap = SourceGap { cause: GapCause::Rotated, lines, bytes, exact: run.exact, after: self.at };
            return Some(TailEvent::Item(TailItem::Gap(gap)));
        }
        let Some(slot) = run.slots.get(self.slot) else {
            return run.ended.then_some(TailEvent::Ended);
        };
        if slot.lost > 0 {
            self.at = self.at.after_line(slot.time);
            self.slot += 1;
            let bytes = slot.lost * LOST_BYTES;
            let gap =
                SourceGap { cause: GapCause::Source, lines: slot.lost, bytes, exact: true, after: self.at };
            return Some(TailEvent::Item(TailItem::Gap(gap)));
        }
        // Positions within the first line after a gap count from the gap: no reader could continue there.
        if self.after_gap && !slot.is_whole() {
            return None;
        }
        let is_alone = self.at.offset > 0 || !slot.is_whole() || slot.text.len() > 40;
        let batch = if is_alone { self.piece(slot, random) } else { self.whole(run, random) }?;
        Some(TailEvent::Item(TailItem::Lines(batch)))
    }

    /// Reads a part of a line: each reader cuts it elsewhere.
    fn piece(&mut self, slot: &Slot, random: &mut StdRng) -> Option<LineBatch> {
        let available = slot.written - self.offset;
        let rest = slot.text.len() - self.offset;
        if available == 0 && rest > 0 {
            return None;
        }
        // The first piece has the number, by which a line is recognised after a gap of unknown size.
        let least = if self.offset == 0 { HEAD_BYTES } else { 1 }.min(available);
        let length = if random.random() { available } else { random.random_range(least..=available) };
        let length = if std::mem::take(&mut self.after_gap) { rest } else { length };
        let ends = length == rest;
        let continues = self.offset > 0;
        let data = slot.text.slice(self.offset..self.offset + length);
        self.at = if ends { self.at.after_line(slot.time) } else { self.at.after_bytes(length) };
        (self.slot, self.offset) = if ends { (self.slot + 1, 0) } else { (self.slot, self.offset + length) };
        let line = Line { ends, continues, ..Line::whole(length, slot.time, self.at) };
        Some(LineBatch { data, lines: vec![line] })
    }

    /// Reads short whole lines.
    fn whole(&mut self, run: &Run, random: &mut StdRng) -> Option<LineBatch> {
        let most = random.random_range(1..6);
        let (mut data, mut lines) = (Vec::new(), Vec::new());
        while let Some(slot) = run.slots.get(self.slot) {
            if lines.len() == most || slot.lost > 0 || !slot.is_whole() || slot.text.len() > 40 {
                break;
            }
            data.extend_from_slice(&slot.text);
            self.at = self.at.after_line(slot.time);
            lines.push(Line::whole(data.len(), slot.time, self.at));
            self.slot += 1;
        }
        self.after_gap = false;
        (!lines.is_empty()).then(|| LineBatch { data: data.into(), lines })
    }
}
