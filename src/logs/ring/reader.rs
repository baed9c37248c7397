//! A reader's place in a ring: taking entries one by one, being told of lag, and coming in anywhere.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::entry::{OpenLines, slot};
use super::progress::FollowerProgress;
use super::{Contiguity, Entry, EntryKind, Ring, State, Totals};
use crate::logs::chunk::Chunk;
use crate::logs::frame::Representation;
use crate::model::id::Instance;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::stream::StreamControl;

/// A new reader comes in only where at most this share of the ring lies ahead of it, so that it is not overtaken at once.
const JOIN_SHARE: (usize, usize) = (3, 4);

/// A reader's place in a ring. Dropping it frees the place.
pub struct RingReader {
    ring: Arc<Ring>,
    /// Where its waker is kept.
    place: usize,
    /// Sequence number of the entry to take next.
    next: u64,
    /// Everything up to there.
    seen: Totals,
    /// For each stream the line that was counted as lost and has not ended, by the sequence number of its first piece. Its rest is
    /// delivered, and does not count again.
    torn: OpenLines,
    /// How often the ring had moved at the last look.
    moves: u64,
    /// Where others see that it stands, once it follows live.
    standing: Option<(usize, Arc<FollowerProgress>)>,
}

/// Entries that a reader takes at a time, under one lock.
const READ_MAX_ENTRIES: usize = 4;

/// The next entries, in order; the last ones may be absent.
pub type Entries = [Option<Arc<Entry>>; READ_MAX_ENTRIES];

/// What a reader got.
#[derive(Debug)]
pub enum ReadOutcome {
    /// The next entries.
    Entries {
        /// At least one.
        entries: Entries,
        /// Whether there may be more. Otherwise the reader waits already, as if it had been asked once more.
        more: bool,
    },
    /// It fell behind, and lost what lies before `next`, which it now stands before.
    Lagged {
        /// Lines lost.
        lines: u64,
        /// Bytes lost.
        bytes: u64,
        /// Whether both are exact.
        exact: bool,
        /// The entry that comes next.
        next: Arc<Entry>,
    },
    /// The actor has ended, and everything it sent was taken.
    Closed,
}

/// Whether, and how, someone who reads the log by himself can go on in the ring.
#[derive(Debug)]
pub enum JoinOutcome {
    /// He can. First come these rests of an entry that his position lies in.
    Joined(Vec<Chunk>),
    /// Not from this position: he must read on by himself.
    ReadLog,
    /// Neither, though nothing in the ring lies behind his position: he must read on, and may wait with that until the ring has moved.
    AtHead,
    /// His position lies ahead of the ring: he must wait until the ring has moved.
    AheadOfRing,
}

// === impl Reader ===

impl RingReader {
    pub(super) fn new(ring: Arc<Ring>, place: usize, next: u64, seen: Totals) -> Self {
        Self { ring, place, next, seen, torn: [None; 2], moves: 0, standing: None }
    }

    /// From now on others may see how far it is behind, and that it does so for `stream`.
    pub fn follow_for(&mut self, stream: Arc<StreamControl>) {
        self.unfollow();
        self.standing = Some(self.ring.register(stream, self.next, self.seen));
    }

    fn unfollow(&mut self) {
        if let Some((place, _)) = self.standing.take() {
            self.ring.unregister(place);
        }
    }

    /// It has moved.
    fn moved(&self) {
        if let Some((_, standing)) = &self.standing {
            standing.write(self.next, self.seen);
        }
    }

    /// The ring it reads.
    pub fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// The position that it stands at, if the log was opened.
    pub fn position(&self) -> Option<(Instance, Position)> {
        let state = self.ring.lock();
        // One that has fallen behind stands where it will land.
        let from = match self.next.checked_sub(state.first) {
            Some(ahead) => usize::try_from(ahead).ok()?,
            None => landing(&state)?.0,
        };
        let mut next = state.entries.iter().skip(from);
        let next = next.find_map(|entry| Some((entry.instance.clone()?, entry.start)));
        next.or_else(|| state.tip.as_ref().map(|tip| (tip.instance.clone(), tip.position)))
    }

    /// Whether there was news behind the newest line already before this place: its reader will not hear of it.
    pub fn is_behind_news(&self) -> bool {
        self.ring.lock().tip.as_ref().is_some_and(|tip| tip.behind.0 < self.next)
    }

    /// Whether the actor has ended.
    pub fn is_closed(&self) -> bool {
        self.ring.lock().closed
    }

    /// Whether the actor has ended because the replica was gone and its log was read to its end.
    pub fn is_gone(&self) -> bool {
        self.ring.lock().gone
    }

    /// Takes the next entries: one, and those behind it as long as what comes before each fits into `room` bytes as messages.
    pub fn poll_read(
        &mut self,
        room: usize,
        as_what: Representation,
        cx: &mut Context<'_>,
    ) -> Poll<ReadOutcome> {
        let mut state = self.ring.lock();
        if self.next < state.first {
            return match landing(&state) {
                Some((index, next)) => {
                    let lagged = ReadOutcome::Lagged {
                        lines: lost_lines(&next, self.seen, &mut self.torn),
                        bytes: next.before.bytes - self.seen.bytes,
                        exact: next.before.inexact_gaps == self.seen.inexact_gaps,
                        next: Arc::clone(&next),
                    };
                    self.next = state.first + index as u64;
                    self.seen = next.before;
                    drop(state);
                    self.moved();
                    Poll::Ready(lagged)
                }
                None if state.closed => Poll::Ready(ReadOutcome::Closed),
                None => wait(&mut state, self.place, cx),
            };
        }
        let mut entries = Entries::default();
        let mut bytes = 0;
        for place in &mut entries {
            let Some(entry) = state.get(self.next).filter(|_| bytes < room || bytes == 0) else {
                break;
            };
            bytes += entry.message_max_bytes(as_what);
            match &entry.kind {
                EntryKind::Lines(chunk, _) if chunk.continues && !chunk.goes_on() => {
                    self.torn[slot(chunk)] = None
                }
                EntryKind::Lines(..) | EntryKind::Event => {}
                EntryKind::Gap(_) => self.torn = [None; 2],
            }
            self.next += 1;
            self.seen = entry.after();
            *place = Some(Arc::clone(entry));
        }
        let more = state.closed || self.next < state.next();
        if !more {
            let waiting: Poll<ReadOutcome> = wait(&mut state, self.place, cx);
            if bytes == 0 {
                return waiting;
            }
        } else if bytes == 0 {
            return Poll::Ready(ReadOutcome::Closed);
        }
        drop(state);
        self.moved();
        Poll::Ready(ReadOutcome::Entries { entries, more })
    }

    /// Waits until the ring has moved since the last [`Reader::join`] or the last wait. Ready at once if it is closed.
    pub fn poll_moved(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.ring.lock();
        if self.moves != state.moves || state.closed {
            self.moves = state.moves;
            return Poll::Ready(());
        }
        wait(&mut state, self.place, cx)
    }

    /// Whether it holds lines of `instance` behind `at` that are older than `since`.
    pub fn holds_older(&self, instance: &Instance, at: Position, since: LogTime) -> bool {
        let state = self.ring.lock();
        let behind = state.entries.iter().rev();
        let mut behind =
            behind.take_while(|entry| entry.instance.as_ref() == Some(instance) && entry.end > at);
        behind.any(|entry| entry.oldest_time().is_some_and(|oldest| oldest < since))
    }

    /// The run that the ring follows, and the position as far as it holds its log.
    pub fn head(&self) -> Option<(Instance, Position)> {
        let state = self.ring.lock();
        state.tip.as_ref().map(|tip| (tip.instance.clone(), tip.position))
    }

    /// Tries to go on in the ring, exactly behind `at` of `instance`.
    ///
    /// Rejection next to a gap of the source: it has no position of its own, so it could be told twice or not at all. Rejection as well
    /// behind one of unknown size, until positions are comparable again: he may have read on within it, and was not told of the rest.
    pub fn join(&mut self, instance: &Instance, at: Position) -> JoinOutcome {
        let state = self.ring.lock();
        self.moves = state.moves;
        // An earlier run is read to its end by whoever has begun it.
        let Some(tip) = state.tip.as_ref().filter(|tip| tip.instance == *instance) else {
            return JoinOutcome::ReadLog;
        };
        if at >= tip.position && state.vague.covers(tip.position) {
            return JoinOutcome::AtHead;
        }
        if at > tip.position {
            return JoinOutcome::AheadOfRing;
        }
        if at == tip.position {
            if tip.adjacent == Contiguity::Gap {
                return JoinOutcome::AtHead;
            }
            (self.next, self.seen) = tip.behind;
            return JoinOutcome::Joined(Vec::new());
        }
        // Entries of the newest run stand last, and their ends grow.
        let index = state
            .entries
            .partition_point(|entry| entry.instance.as_ref() != Some(instance) || entry.end <= at);
        let Some(entry) = state.entries.get(index) else {
            return JoinOutcome::ReadLog;
        };
        let EntryKind::Lines(chunk, adjacent) = &entry.kind else {
            return JoinOutcome::ReadLog;
        };
        let blurred = at == chunk.start && *adjacent == Contiguity::Gap;
        let blurred = blurred || entry.vague.covers(at);
        // A line that the follower has read, and the ring's reader has not, was rotated away between: so may lines after it.
        let is_foreign = !chunk.holds(at);
        if at < chunk.start || blurred || is_foreign || self.is_too_near_the_end(&state, entry) {
            return JoinOutcome::ReadLog;
        }
        let sequence = state.first + index as u64;
        if at == chunk.start {
            (self.next, self.seen) = (sequence, entry.before);
            return JoinOutcome::Joined(Vec::new());
        }
        (self.next, self.seen) = (sequence + 1, entry.after());
        JoinOutcome::Joined(rests_behind(chunk, at))
    }

    /// Goes on in the ring behind all of `instance`, which was read to its end, as far as `at`.
    pub fn join_end(&mut self, instance: &Instance, at: Position) -> JoinOutcome {
        let state = self.ring.lock();
        self.moves = state.moves;
        match &state.tip {
            // News behind the newest line come once the log was read to its end here too. Then both stand there, also if one of them
            // has lost lines and counts fewer.
            Some(tip) if tip.instance == *instance && (at <= tip.position || state.next() > tip.behind.0) => {
                (self.next, self.seen) = tip.behind;
                JoinOutcome::Joined(Vec::new())
            }
            Some(tip) if tip.instance == *instance => JoinOutcome::AheadOfRing,
            _ => JoinOutcome::ReadLog,
        }
    }

    /// Tries to go on in the ring with the last `lines` lines of the log: if all of them are held, and no gap and no other run
    /// lies between them. Answers their run, and the lines wanted of the entry that the first of them lies in, if not all are.
    pub fn join_last(&mut self, lines: u64) -> Option<(Instance, Vec<Chunk>)> {
        let state = self.ring.lock();
        self.moves = state.moves;
        let tip = state.tip.as_ref()?;
        let mut wanted = lines;
        for (index, entry) in state.entries.iter().enumerate().rev() {
            let EntryKind::Lines(chunk, adjacent) = &entry.kind else {
                return None;
            };
            if entry.instance.as_ref() != Some(&tip.instance)
                || *adjacent == Contiguity::Gap
                || chunk.is_piece()
            {
                return None;
            }
            let here = chunk.lines();
            if here < wanted {
                wanted -= here;
                continue;
            }
            if self.is_too_near_the_end(&state, entry) {
                return None;
            }
            let rest = chunk.without_lines(usize::try_from(here - wanted).ok()?)?;
            let sequence = state.first + index as u64;
            let instance = tip.instance.clone();
            if here == wanted {
                (self.next, self.seen) = (sequence, entry.before);
                return Some((instance, Vec::new()));
            }
            (self.next, self.seen) = (sequence + 1, entry.after());
            return Some((instance, vec![rest]));
        }
        None
    }

    /// Whether who begins at `entry` would soon be overtaken.
    fn is_too_near_the_end(&self, state: &State, entry: &Entry) -> bool {
        let (share, of) = JOIN_SHARE;
        let ahead = state.totals.cost - entry.before.cost + state.made_later as u64;
        ahead > (self.ring.max_bytes / of * share) as u64
    }
}

impl fmt::Debug for RingReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("next", &self.next).field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        self.unfollow();
        self.ring.lock().waiting.remove(self.place);
    }
}

fn wait<T>(state: &mut State, place: usize, cx: &mut Context<'_>) -> Poll<T> {
    match &mut state.waiting[place] {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        waiting => *waiting = Some(cx.waker().clone()),
    }
    Poll::Pending
}

/// What of `chunk` lies behind `at`: at most the rest of a line, and the lines that follow it.
fn rests_behind(chunk: &Chunk, at: Position) -> Vec<Chunk> {
    let mut rests = Vec::new();
    let mut at = at;
    while let Some(rest) = chunk.behind(at) {
        at = rest.end;
        rests.push(rest);
    }
    rests
}

/// Counts the lines that a reader loses that has `seen` so much and goes on with `next`: those that ended between, and those that
/// have begun before `next` and go on behind it, since a follower cannot know whether all their pieces came. None counts twice:
/// `torn` has those that were counted and had not ended.
fn lost_lines(next: &Entry, seen: Totals, torn: &mut OpenLines) -> u64 {
    let mut lines = next.before.lines - seen.lines;
    for (torn, open) in torn.iter_mut().zip(next.open) {
        if torn.is_some() && *torn != open {
            // It ended between.
            lines = lines.saturating_sub(1);
            *torn = None;
        }
        if torn.is_none() && open.is_some() {
            lines += 1;
            *torn = open;
        }
    }
    lines
}

/// Where to go on after a lag: at the start of a line, since one of which a piece is lost counts as lost. If no line begins in what is
/// held, as with a progress bar, at the oldest entry.
fn landing(state: &State) -> Option<(usize, Arc<Entry>)> {
    let index = state.entries.iter().position(|entry| entry.starts_line()).unwrap_or_default();
    Some((index, Arc::clone(state.entries.get(index)?)))
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::logs::frame::{Event, Gap};
    use crate::model::id::Replica;
    use crate::model::line::GapCause;
    use crate::model::metrics::Metrics;

    #[test]
    fn who_has_read_a_run_to_its_end_meets_a_ring_that_lost_some_of_it() {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let ring = Arc::new(Ring::new(replica, 1 << 20, &Metrics::register(&NoopRecorder)));
        let run = Instance::new("uid", "web", 0).unwrap();
        let time = LogTime::from_nanos(5);
        let after = |lines: u64| Position { time, ordinal: lines, offset: 0 };
        let chunk = |start: Position, text: &'static [u8]| Chunk {
            data: text.into(),
            marks: Box::new([LineEnd { end: u32::try_from(text.len()).unwrap(), time, stream: None }]),
            continues: false,
            start,
            end: start.after_line(time),
        };
        ring.begin(&run, Position::START);
        let now = tokio::time::Instant::now();
        ring.push_lines(&run, &mut vec![chunk(Position::START, b"first\n")], now);
        // Two lines of the same time are lost, and then comes the last one.
        let gap =
            Gap { cause: GapCause::Rotated, lines: 0, bytes: 0, exact: false, from: Some(time), to: None };
        ring.push_gap(&run, gap, after(1));
        ring.push_lines(&run, &mut vec![chunk(after(1), b"last\n")], now);
        // Somebody else has read all four.
        let mut reader = ring.reader();
        assert!(matches!(reader.join_end(&run, after(4)), JoinOutcome::AheadOfRing), "more may come");
        ring.push_event(Some(&run), &Event::gone());
        assert!(matches!(reader.join_end(&run, after(4)), JoinOutcome::Joined(_)));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(ReadOutcome::Entries { entries, .. }) =
            reader.poll_read(usize::MAX, Representation::Plain, &mut cx)
        else {
            panic!("the news behind the last line");
        };
        let kinds: Vec<_> = entries.iter().flatten().map(|entry| &entry.kind).collect();
        assert!(matches!(kinds[..], [EntryKind::Event]), "{kinds:?}");
    }

    #[test]
    fn position_of_a_line_that_the_ring_lacks_does_not_join() {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let ring = Arc::new(Ring::new(replica, 1 << 20, &Metrics::register(&NoopRecorder)));
        let run = Instance::new("uid", "web", 0).unwrap();
        let time = LogTime::from_nanos;
        let at = |nanos, offset| Position { time: time(nanos), ordinal: 1, offset };
        ring.begin(&run, Position::START);
        // The ring's reader began after a rotation: its first line is not the first one of the run.
        let chunk = Chunk {
            data: (&b"nine\nten\n"[..]).into(),
            marks: [(5, 9), (9, 10)]
                .map(|(end, nanos)| LineEnd { end, time: time(nanos), stream: None })
                .into(),
            continues: false,
            start: Position::START,
            end: at(10, 0),
        };
        ring.push_lines(&run, &mut vec![chunk], tokio::time::Instant::now());
        let mut reader = ring.reader();
        for foreign in [at(5, 0), at(5, 2), Position { ordinal: 2, ..at(9, 0) }] {
            assert!(matches!(reader.join(&run, foreign), JoinOutcome::ReadLog), "{foreign:?}");
        }
        for (known, rest) in [
            (Position::START, &[][..]),
            (Position { offset: 2, ..Position::START }, &["ne\n", "ten\n"]),
            (at(9, 0), &["ten\n"]),
            (at(9, 1), &["en\n"]),
        ] {
            let JoinOutcome::Joined(rests) = reader.join(&run, known) else { panic!("{known:?}") };
            let texts: Vec<_> = rests.iter().map(|chunk| std::str::from_utf8(&chunk.data).unwrap()).collect();
            assert_eq!(texts, rest, "{known:?}");
        }
    }
}
