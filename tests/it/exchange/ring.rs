//! A small ring, with the rules of `logs::ring` for its readers and joins.

use std::collections::VecDeque;

use leasemux::exchange::codec::fitting;
use leasemux::exchange::lines::{Lines, Part};
use leasemux::exchange::messages::{Content, Fetch, FetchFrom, Fetched, Frame, Oldest, RingEnd, Totals};
use leasemux::exchange::participant::RingEvent;
use leasemux::exchange::rank::Rank;
use leasemux::model::id::Instance;
use leasemux::model::line::{LineBatch, SourceGap};
use leasemux::model::position::{Place, Position};
use leasemux::model::time::LogTime;

/// The ring of one actor.
#[derive(Default)]
pub(crate) struct Ring {
    entries: VecDeque<Entry>,
    end: RingEnd,
    /// Positions up to this time are ambiguous.
    ambiguous_until: Option<LogTime>,
    max_entries: usize,
}

struct Entry {
    number: u64,
    totals: Totals,
    content: Content,
}

// === impl Ring ===

impl Ring {
    pub(crate) fn new(max_entries: usize) -> Self {
        Self { max_entries, ..Self::default() }
    }

    pub(crate) fn end(&self) -> RingEnd {
        let mut end = self.end.clone();
        let position = end.place.as_ref().map(|place| place.position);
        end.ambiguous = position.is_some_and(|at| self.is_ambiguous(at));
        end
    }

    pub(crate) fn begin_log(&mut self, instance: &Instance, position: Position, unfinished: [bool; 2]) {
        self.ambiguous_until = None;
        self.set_head(instance, position, false);
        self.end.unfinished = unfinished;
    }

    pub(crate) fn begin_run(&mut self, instance: &Instance) -> RingEvent {
        self.ambiguous_until = None;
        self.set_head(instance, Position::START, false);
        self.push(Content::Event)
    }

    /// Pushes lines as chunks: whole lines together, each piece alone.
    pub(crate) fn push_lines(&mut self, instance: &Instance, batch: &LineBatch) -> Vec<RingEvent> {
        let mut events = Vec::new();
        let start = self.position();
        let is_alone = |line: &leasemux::model::line::Line| !line.ends || line.continues;
        let mut first = 0;
        let mut before = start;
        for index in 0..batch.lines.len() {
            let line = &batch.lines[index];
            let alone = is_alone(line) || before.offset > 0;
            let next_is_alone = batch.lines.get(index + 1).is_none_or(is_alone);
            if alone || next_is_alone {
                let cut = if first == 0 { 0 } else { batch.lines[first - 1].end };
                let lines = batch.lines[first..=index].iter();
                let lines = lines.map(|line| leasemux::model::line::Line { end: line.end - cut, ..*line });
                let part = LineBatch { data: batch.data.slice(cut..line.end), lines: lines.collect() };
                events.push(self.push_chunk(instance, part));
                first = index + 1;
            }
            before = line.after;
        }
        events
    }

    fn push_chunk(&mut self, instance: &Instance, batch: LineBatch) -> RingEvent {
        let start = self.position();
        let first = batch.lines[0].time;
        if self.ambiguous_until == Some(LogTime::MAX) {
            self.ambiguous_until = Some(start.time.max(first));
        }
        let mut lines =
            Lines::new(start, batch).unwrap_or_else(|| panic!("lines that do not follow {start:?}"));
        lines.after_gap = self.end.after_gap;
        lines.ambiguous = self.is_ambiguous(start);
        let after_gap = lines.after_gap && lines.end().offset > 0;
        self.set_head(instance, lines.end(), after_gap);
        self.end.unfinished = [lines.end().offset > 0, false];
        self.push(Content::Lines { instance: instance.clone(), lines })
    }

    pub(crate) fn push_gap(&mut self, instance: &Instance, gap: SourceGap) -> RingEvent {
        if !gap.exact {
            self.ambiguous_until = Some(LogTime::MAX);
        }
        let start = self.position();
        self.set_head(instance, gap.after, true);
        self.end.unfinished = [false; 2];
        self.push(Content::Gap { instance: instance.clone(), start, gap })
    }

    fn position(&self) -> Position {
        self.end.place.as_ref().map_or(Position::START, |place| place.position)
    }

    fn is_ambiguous(&self, at: Position) -> bool {
        self.ambiguous_until.is_some_and(|until| at.time <= until)
    }

    fn set_head(&mut self, instance: &Instance, position: Position, after_gap: bool) {
        self.end.place = Some(Place { instance: instance.clone(), position });
        self.end.after_gap = after_gap;
    }

    fn push(&mut self, content: Content) -> RingEvent {
        let totals = self.end.totals;
        let entry = Entry { number: self.end.number, totals, content: content.clone() };
        self.end.totals = entry.frame(Rank::default()).totals_after();
        self.end.number += 1;
        self.entries.push_back(entry);
        if self.entries.len() > self.max_entries {
            self.entries.pop_front();
        }
        RingEvent::Entry { totals, content, end: self.end() }
    }

    /// Answers a fetch.
    pub(crate) fn serve(&self, fetch: &Fetch) -> Fetched {
        let rank = fetch.rank;
        let index = match &fetch.from {
            FetchFrom::Number(number) => self.entries.iter().position(|entry| entry.number == *number),
            FetchFrom::After(place) => self.join(place),
        };
        let Some(index) = index else { return Fetched::NotHeld { rank, oldest: self.oldest() } };
        let until = fetch.until.unwrap_or(u64::MAX);
        let all = self.entries.iter().skip(index).enumerate();
        let wanted = all.take_while(|(index, entry)| *index == 0 || entry.number < until);
        Fetched::Frames { rank, frames: fitting(wanted.map(|(_, entry)| entry.frame(rank))) }
    }

    /// Returns the index of the entry at which a reader may join.
    fn join(&self, place: &Place) -> Option<usize> {
        let head = self.end.place.as_ref().filter(|head| head.instance == place.instance)?;
        let at = place.position;
        if at >= head.position || self.is_ambiguous(at) {
            return None;
        }
        let index = self.entries.iter().position(|entry| match &entry.content {
            Content::Lines { instance, lines } => *instance == place.instance && lines.end() > at,
            Content::Gap { instance, gap, .. } => *instance == place.instance && gap.after > at,
            Content::Event => false,
        })?;
        match &self.entries[index].content {
            Content::Lines { lines, .. } if matches!(lines.part_after(at), Part::Rest(_)) => {
                (!lines.after_gap || at != lines.start()).then_some(index)
            }
            _ => None,
        }
    }

    fn oldest(&self) -> Option<Oldest> {
        self.entries.iter().find_map(|entry| match &entry.content {
            Content::Lines { instance, lines } if lines.start().offset == 0 => Some(Oldest {
                number: entry.number,
                totals: entry.totals,
                place: Place { instance: instance.clone(), position: lines.start() },
            }),
            _ => None,
        })
    }
}

// === impl Entry ===

impl Entry {
    fn frame(&self, rank: Rank) -> Frame {
        Frame { rank, number: self.number, totals: self.totals, content: self.content.clone() }
    }
}
