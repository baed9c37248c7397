//! The ring as the publisher of a fleet reads it: entries as frames for other gateways.

use std::sync::Arc;
use std::task::{Context, Poll};

use super::entry::{Entry, EntryKind, Totals};
use super::reader::register_waker;
use super::{Ring, State};
use crate::exchange::codec::{FETCHED_MAX_FRAMES, fitting};
use crate::exchange::lines::{Lines, Part};
use crate::exchange::messages::{self, Content, Fetch, FetchFrom, Fetched, Frame, Oldest, RingEnd};
use crate::exchange::participant::RingEvent;
use crate::exchange::rank::Rank;
use crate::logs::chunk::Chunk;
use crate::logs::message::RunChange;
use crate::model::line::{Line, LineBatch, SourceGap};
use crate::model::position::{Place, Position};

/// Entries of one read: as a follower reads at once. The lock of the ring is held for so many.
const READ_ENTRIES: usize = 16;

/// Reads the entries of one ring for other gateways.
#[derive(Debug)]
pub(crate) struct FrameReader {
    ring: Arc<Ring>,
    /// Key of its waker in the ring.
    waiter: usize,
    /// After the newest entry that was read, or the place of a later change without an entry.
    end: RingEnd,
}

/// One read.
enum Read {
    Entries(Vec<Arc<Entry>>),
    /// The ring ends elsewhere than the newest entry that was read.
    End(RingEnd),
}

// === impl FrameReader ===

impl FrameReader {
    /// Creates a reader of the entries that are pushed from now on.
    pub(crate) fn new(ring: Arc<Ring>) -> Self {
        let mut state = ring.state.lock();
        let (waiter, end) = (state.waiters.insert(None), state.end());
        drop(state);
        Self { ring, waiter, end }
    }

    /// Skips to the end of the ring, and returns it.
    pub(crate) fn skip_to_end(&mut self) -> RingEnd {
        self.end = self.ring.state.lock().end();
        self.end.clone()
    }

    /// Reads the next entries, at least one event. Waits while there is nothing new, also after the ring was
    /// closed. A reader that lags skips to the end: the others fetch what they miss.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Vec<RingEvent>> {
        match std::task::ready!(self.poll_entries(cx)) {
            Read::End(end) => {
                self.end = end.clone();
                Poll::Ready(vec![RingEvent::At(end)])
            }
            Read::Entries(entries) => Poll::Ready(entries.iter().map(|entry| self.event(entry)).collect()),
        }
    }

    fn poll_entries(&self, cx: &mut Context<'_>) -> Poll<Read> {
        let mut state = self.ring.state.lock();
        if self.end.number < state.first {
            return Poll::Ready(Read::End(state.end()));
        }
        let next = self.end.number..self.end.number + READ_ENTRIES as u64;
        let entries: Vec<_> = next.map_while(|number| state.get(number).cloned()).collect();
        if !entries.is_empty() {
            return Poll::Ready(Read::Entries(entries));
        }
        let end = state.end();
        if end == self.end {
            register_waker(&mut state, self.waiter, cx)
        } else {
            Poll::Ready(Read::End(end))
        }
    }

    /// Returns the event of the next entry.
    fn event(&mut self, entry: &Entry) -> RingEvent {
        entry.move_end(&mut self.end);
        match entry.content() {
            Some(content) => {
                let totals = entry.totals_before.into();
                RingEvent::Entry { totals, content, end: self.end.clone() }
            }
            // Its number is skipped, and a fetch of it is refused.
            None => RingEvent::At(self.end.clone()),
        }
    }
}

impl Drop for FrameReader {
    fn drop(&mut self) {
        self.ring.state.lock().waiters.remove(self.waiter);
    }
}

// === impl Ring: fetches ===

impl Ring {
    /// Answers a fetch of another gateway.
    pub(crate) fn serve_fetch(&self, fetch: &Fetch) -> Fetched {
        let rank = fetch.rank;
        let until = fetch.until.unwrap_or(u64::MAX);
        let state = self.state.lock();
        let (first, oldest) = (state.first_fetched(&fetch.from), state.oldest());
        let entries: Vec<Arc<Entry>> = first.map_or_else(Vec::new, |first| {
            // The first one in any case: it is needed.
            let wanted = first..until.max(first + 1);
            let held = wanted.take(FETCHED_MAX_FRAMES).map_while(|number| state.get(number).cloned());
            held.collect()
        });
        drop(state);
        let frames = fitting(entries.iter().map_while(|entry| entry.frame(rank)));
        if frames.is_empty() { Fetched::NotHeld { rank, oldest } } else { Fetched::Frames { rank, frames } }
    }
}

// === impl State ===

impl State {
    /// Returns where the ring ends.
    fn end(&self) -> RingEnd {
        let head = self.head.as_ref();
        RingEnd {
            number: self.next(),
            totals: self.totals.into(),
            place: head.map(|head| Place { instance: head.instance.clone(), position: head.position }),
            after_gap: self.is_after_gap(),
            ambiguous: head.is_some_and(|head| self.ambiguous.contains(head.position)),
            unfinished: self.open.map(|first| first.is_some()),
        }
    }

    /// Returns the number of the first entry that a fetch needs, if it is held.
    fn first_fetched(&self, from: &FetchFrom) -> Option<u64> {
        match from {
            FetchFrom::Number(number) => self.get(*number).map(|entry| entry.sequence),
            FetchFrom::After(place) => self.joined_at(place),
        }
    }

    /// Returns the number of the entry that a reader at `place` reads next: with the same conditions as in
    /// [`RingReader::join`](super::RingReader::join).
    fn joined_at(&self, place: &Place) -> Option<u64> {
        let at = place.position;
        let head = self.head.as_ref().filter(|head| head.instance == place.instance)?;
        if at >= head.position || self.ambiguous.contains(at) {
            return None;
        }
        // Entries of the head's run are the newest, and their ends ascend.
        let index = self
            .entries
            .partition_point(|entry| entry.instance.as_ref() != Some(&place.instance) || entry.end <= at);
        let entry = self.entries.get(index)?;
        let Some(Content::Lines { lines, .. }) = entry.content() else { return None };
        let is_next_to_gap = at == entry.start && entry.after_gap;
        let is_known = matches!(lines.part_after(at), Part::Rest(_));
        (is_known && !is_next_to_gap && !entry.ambiguous.contains(at)).then_some(entry.sequence)
    }

    /// Returns the oldest place at which a line begins.
    fn oldest(&self) -> Option<Oldest> {
        self.entries.iter().find_map(|entry| {
            let is_start = matches!(entry.kind, EntryKind::Lines(..)) && entry.start.at_line_start();
            let instance = entry.instance.clone().filter(|_| is_start && entry.starts_line())?;
            let place = Place { instance, position: entry.start };
            Some(Oldest { number: entry.sequence, totals: entry.totals_before.into(), place })
        })
    }
}

// === impl Entry ===

impl Entry {
    /// Returns it as a frame; `None` if no frame can have it.
    fn frame(&self, rank: Rank) -> Option<Frame> {
        let totals = self.totals_before.into();
        Some(Frame { rank, number: self.sequence, totals, content: self.content()? })
    }

    fn content(&self) -> Option<Content> {
        match (&self.kind, &self.instance) {
            (EntryKind::Lines(chunk, _), Some(instance)) => {
                let mut lines = Lines::new(chunk.start, batch(chunk))?;
                lines.after_gap = self.after_gap;
                lines.ambiguous = self.ambiguous.contains(self.start);
                Some(Content::Lines { instance: instance.clone(), lines })
            }
            (EntryKind::Gap(gap), Some(instance)) if !self.is_local => {
                let (lines, bytes) = (gap.lines, gap.bytes);
                let gap = SourceGap { cause: gap.cause, lines, bytes, exact: gap.exact, after: self.end };
                Some(Content::Gap { instance: instance.clone(), start: self.start, gap })
            }
            (EntryKind::Lines(..), None) => None,
            (EntryKind::Gap(_) | EntryKind::Event(_), _) => Some(Content::Event),
        }
    }

    /// Moves the end of the ring after it.
    fn move_end(&self, end: &mut RingEnd) {
        end.number = self.sequence + 1;
        end.totals = self.totals_after().into();
        end.unfinished = self.open_after().map(|first| first.is_some());
        let position = match &self.kind {
            EntryKind::Lines(..) => {
                end.after_gap = self.after_gap && !self.end.at_line_start();
                self.end
            }
            EntryKind::Gap(_) => {
                end.after_gap = true;
                self.end
            }
            EntryKind::Event(event) => {
                if event.run_change() != Some(RunChange::Started) {
                    // It has no position of its own.
                    return;
                }
                end.after_gap = false;
                Position::START
            }
        };
        end.ambiguous = self.ambiguous.contains(position);
        end.place = self.instance.clone().map(|instance| Place { instance, position });
    }
}

// === impl Totals ===

impl From<Totals> for messages::Totals {
    fn from(Totals { lines, bytes, inexact_gaps, .. }: Totals) -> Self {
        Self { lines, bytes, inexact_gaps }
    }
}

/// Returns a chunk as lines with positions.
fn batch(chunk: &Chunk) -> LineBatch {
    let is_piece = chunk.is_piece();
    let mut after = chunk.start;
    let lines = chunk.line_ends.iter().enumerate().map(|(index, line)| {
        after = if is_piece { chunk.end } else { after.after_line(line.time) };
        let ends = !is_piece || chunk.end.at_line_start();
        let (end, continues) = (line.end as usize, chunk.continues && index == 0);
        Line { end, time: line.time, after, ends, continues, stream: line.stream }
    });
    LineBatch { lines: lines.collect(), data: chunk.data.clone() }
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;
    use tokio::time::Instant;

    use super::*;
    use crate::exchange::gateway_id::GatewayId;
    use crate::exchange::messages::{Envelope, Message};
    use crate::logs::chunk::Chunker;
    use crate::logs::entry_name::NameStyle;
    use crate::logs::memory_budget::MemoryBudget;
    use crate::logs::message::{Event, Gap};
    use crate::model::id::{Instance, Replica};
    use crate::model::line::GapCause;
    use crate::model::metrics::Metrics;
    use crate::model::time::LogTime;

    const RANK: Rank = Rank { term: 3, weight: 7 };

    fn ring() -> Arc<Ring> {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let metrics = Metrics::register(&NoopRecorder);
        Ring::new(replica, NameStyle::Replica, 1 << 20, &metrics, &MemoryBudget::default())
    }

    fn run() -> Instance {
        Instance::new("uid", "web", 0).unwrap()
    }

    /// Pushes lines as an actor does.
    fn push(ring: &Ring, chunker: &mut Chunker, texts: &[&str], at: &mut Position) {
        let (mut data, mut lines) = (Vec::new(), Vec::new());
        for text in texts {
            let (time, ends) = (LogTime::from_nanos(at.time.as_nanos().max(0) + 10), text.ends_with('\n'));
            let continues = !at.at_line_start();
            let time = if continues { at.time } else { time };
            data.extend_from_slice(text.as_bytes());
            *at = if ends { at.after_line(time) } else { at.after_bytes(text.len()) };
            lines.push(Line { ends, continues, ..Line::whole(data.len(), time, *at) });
        }
        let mut chunks = Vec::new();
        chunker.push(&LineBatch { data: data.into(), lines }, &mut chunks);
        chunks.extend(chunker.flush());
        ring.push_lines(&run(), &mut chunks, Instant::now());
    }

    fn read(reader: &mut FrameReader) -> Vec<RingEvent> {
        let mut events = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(some) = reader.poll_read(&mut cx) {
            events.extend(some);
        }
        events
    }

    fn source_gap(exact: bool) -> Gap {
        Gap { cause: GapCause::Rotated, lines: 2, bytes: 9, exact, from: None, to: None }
    }

    #[test]
    fn entries_become_frames_that_survive_the_bus() {
        let ring = ring();
        let mut reader = FrameReader::new(Arc::clone(&ring));
        let (mut chunker, mut at) = (Chunker::new(Position::START), Position::START);
        assert_eq!(reader.skip_to_end(), RingEnd::default());
        ring.begin_log(&run(), Position::START);
        let [RingEvent::At(end)] = &read(&mut reader)[..] else { panic!() };
        assert_eq!((end.number, end.place.as_ref().map(|place| place.position)), (0, Some(Position::START)));
        push(&ring, &mut chunker, &["one\n", "two\n", "begun"], &mut at);
        push(&ring, &mut chunker, &[" ended\n"], &mut at);
        ring.push_event(Some(&run()), Event::follow_unavailable());
        ring.push_gap(&run(), source_gap(false), at);
        chunker.skip_to(at);
        push(&ring, &mut chunker, &["after"], &mut at);
        ring.push_skipped_runs(&run(), source_gap(false), at);
        let events = read(&mut reader);
        let mut numbers = Vec::new();
        for event in &events {
            let RingEvent::Entry { totals, content, end } = event else { panic!("{event:?}") };
            let (rank, number) = (RANK, end.number - 1);
            let frame = Frame { rank, number, totals: *totals, content: content.clone() };
            if content != &Content::Event {
                assert_eq!(frame.totals_after(), end.totals);
            }
            let message = Message::Frame(frame);
            let envelope = Envelope { sender: GatewayId([1; 16]), counter: 1, message };
            let bytes = crate::exchange::codec::encode(&envelope);
            assert_eq!(crate::exchange::codec::decode(bytes).as_ref(), Ok(&envelope));
            numbers.push(number);
        }
        assert_eq!(numbers, (0..numbers.len() as u64).collect::<Vec<_>>());
        let RingEvent::Entry { end, .. } = events.last().unwrap() else { panic!() };
        assert_eq!(end, &ring.state.lock().end(), "counted entry by entry, and as the ring has it");
        let kinds: Vec<_> = events
            .iter()
            .map(|event| match event {
                RingEvent::Entry { content: Content::Lines { lines, .. }, .. } => {
                    if lines.after_gap {
                        "after gap"
                    } else {
                        "lines"
                    }
                }
                RingEvent::Entry { content: Content::Gap { .. }, .. } => "gap",
                _ => "event",
            })
            .collect();
        assert_eq!(kinds, ["lines", "lines", "lines", "event", "gap", "after gap", "event"]);
    }

    #[test]
    fn reader_that_lags_skips_to_the_end() {
        let ring = ring();
        let mut reader = FrameReader::new(Arc::clone(&ring));
        let (mut chunker, mut at) = (Chunker::new(Position::START), Position::START);
        ring.begin_log(&run(), Position::START);
        for _ in 0..3 {
            push(&ring, &mut chunker, &["line\n"], &mut at);
        }
        ring.state.lock().evict(0);
        let [RingEvent::At(end)] = &read(&mut reader)[..] else { panic!() };
        assert_eq!((end.number, end.totals.lines), (3, 3));
        push(&ring, &mut chunker, &["line\n"], &mut at);
        assert!(matches!(&read(&mut reader)[..], [RingEvent::Entry { end, .. }] if end.number == 4));
    }

    #[test]
    fn fetches_are_served_where_a_reader_may_join() {
        let ring = ring();
        let (mut chunker, mut at) = (Chunker::new(Position::START), Position::START);
        ring.begin_log(&run(), Position::START);
        push(&ring, &mut chunker, &["one\n", "two\n"], &mut at);
        let middle = at;
        push(&ring, &mut chunker, &["three\n"], &mut at);
        ring.push_gap(&run(), source_gap(true), at);
        chunker.skip_to(at);
        let after_gap = at;
        push(&ring, &mut chunker, &["four\n"], &mut at);
        let fetch = |from, until| match ring.serve_fetch(&Fetch { rank: RANK, from, until }) {
            Fetched::Frames { rank, frames } => {
                assert_eq!(rank, RANK);
                frames.iter().map(|frame| frame.number).collect()
            }
            Fetched::NotHeld { oldest, .. } => {
                assert_eq!(oldest.map(|oldest| oldest.place.position), Some(Position::START));
                Vec::new()
            }
        };
        let after = |position| FetchFrom::After(Place { instance: run(), position });
        assert_eq!(fetch(FetchFrom::Number(1), None), [1, 2, 3]);
        assert_eq!(fetch(FetchFrom::Number(1), Some(3)), [1, 2]);
        assert_eq!(fetch(FetchFrom::Number(1), Some(0)), [1]);
        assert_eq!(fetch(FetchFrom::Number(4), None), [0; 0]);
        assert_eq!(fetch(after(Position::START), None), [0, 1, 2, 3]);
        assert_eq!(fetch(after(middle), Some(2)), [1]);
        assert_eq!(fetch(after(Position { offset: 2, ..middle }), Some(2)), [1]);
        // Next to the gap, at the head, and at a line that was never read.
        for position in [after_gap, at, Position { ordinal: 9, ..middle }] {
            assert_eq!(fetch(after(position), None), [0; 0], "{position:?}");
        }
        let later = Place { instance: Instance::new("uid", "web", 1).unwrap(), position: Position::START };
        assert_eq!(fetch(FetchFrom::After(later), None), [0; 0]);
    }
}
