//! A reader of a ring: reads entries in order, detects lag, and joins at a position.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::entry::{Contiguity, Entry, EntryKind, OpenLines, Totals, stream_index};
use super::lag::FollowerProgress;
use super::{Head, LogPlace, Ring, State};
use crate::logs::chunk::Chunk;
use crate::logs::representation::Representation;
use crate::model::id::Instance;
use crate::model::line::{LineBatch, OutputStream};
use crate::model::position::{AmbiguousRange, Position};
use crate::model::time::LogTime;
use crate::platform::LinesAfter;
use crate::stream::StreamControl;

/// Number of inexact gaps that no ring has: the totals are not exact.
const INEXACT: u64 = u64::MAX;

/// Reads one ring, at its own pace.
#[derive(Debug)]
pub struct RingReader {
    ring: Arc<Ring>,
    /// Key of its waker in the ring.
    waiter: usize,
    /// Sequence number of the next entry.
    next: u64,
    /// Totals before that entry. Their difference to the ring's totals is the loss, should the entry be
    /// evicted.
    seen: Totals,
    /// For each stream, the unfinished line that was counted as lost, by the sequence number of its first
    /// piece. Its later pieces are delivered, but do not count again.
    partly_lost: OpenLines,
    /// Positions that were ambiguous after the last entry.
    ambiguous: AmbiguousRange,
    /// The place where it was created. `None`: no log had been opened then.
    began_at: Option<LogPlace>,
    /// The ring's version at the last join or wait.
    seen_version: u64,
    /// Its progress for lag reports, with its key, once it follows live.
    progress: Option<(usize, Arc<FollowerProgress>)>,
}

/// Most entries per read, under one lock: as many as one replica may send before the next one's entries.
const READ_MAX_ENTRIES: usize = 4;

/// The next entries, in order; the last ones may be `None`.
pub type Entries = [Option<Arc<Entry>>; READ_MAX_ENTRIES];

/// The result of a read.
#[derive(Debug)]
pub enum ReadOutcome {
    /// The next entries.
    Entries {
        /// At least one.
        entries: Entries,
        /// There may be more, or the ring is closed. Otherwise the reader's waker is registered already.
        more: bool,
    },
    /// The next entry was evicted. The reader stays where it is until it skips or joins.
    Lagged,
    /// The actor has ended, and all entries were read.
    Closed,
}

/// The loss of a reader that has skipped evicted entries.
#[derive(Debug)]
pub(crate) struct Loss {
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    /// Whether both are exact.
    pub(crate) exact: bool,
    /// The entry that follows.
    pub(crate) next: Arc<Entry>,
}

/// Where a backfill may join the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinLimit {
    /// Not in its oldest part, where the reader would lag at once.
    Usual,
    /// Only near its head: the follower lagged soon after it had joined.
    NearHead,
    /// At any entry that is held.
    None,
}

/// Whether a backfill can continue in the ring from its position, or what it must do instead.
#[derive(Debug)]
pub(crate) enum JoinOutcome {
    /// The reader has joined. These parts of an entry, which lie after the position, come before the next
    /// entry.
    Joined(Vec<Chunk>),
    /// Not possible at this position: read on in the log.
    ReadLog,
    /// As [`JoinOutcome::ReadLog`], but the ring has no line after the position: reading may wait until the
    /// ring has changed.
    AtHead,
    /// The position is after the head: wait until the ring has changed.
    AheadOfRing,
}

// === impl RingReader ===

impl RingReader {
    /// Creates a reader of the entries after those in `state`.
    pub(super) fn new(ring: Arc<Ring>, state: &mut State) -> Self {
        Self {
            ring,
            waiter: state.waiters.insert(None),
            next: state.next(),
            seen: state.totals,
            partly_lost: [None; 2],
            ambiguous: state.ambiguous,
            began_at: state.head.as_ref().map(|head| LogPlace {
                next: state.next(),
                instance: head.instance.clone(),
                position: head.position,
            }),
            seen_version: 0,
            progress: None,
        }
    }

    /// Registers the reader for lag reports, as a follower for `stream`.
    pub(crate) fn report_progress(&mut self, stream: Arc<StreamControl>) {
        self.unregister();
        self.progress = Some(self.ring.register(stream, self.next, self.seen));
    }

    fn unregister(&mut self) {
        if let Some((key, _)) = self.progress.take() {
            self.ring.unregister(key);
        }
    }

    fn store_progress(&self) {
        if let Some((_, progress)) = &self.progress {
            progress.store(self.next, self.seen);
        }
    }

    pub(crate) fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }

    /// Returns the position of the next entry, if the log was opened. `None` as well if the reader lags and
    /// its position is no longer known.
    pub(crate) fn position(&self) -> Option<(Instance, Position)> {
        let state = self.ring.state.lock();
        let Some(ahead) = self.next.checked_sub(state.first) else {
            let began_at = self.began_at.as_ref().filter(|place| place.next == self.next);
            // Before the log was opened there were only events.
            let place = began_at.or(state.first_log.as_ref().filter(|place| self.next <= place.next))?;
            return Some((place.instance.clone(), place.position));
        };
        let mut next = state.entries.iter().skip(usize::try_from(ahead).ok()?);
        let next = next.find_map(|entry| Some((entry.instance.clone()?, entry.start)));
        next.or_else(|| state.head.as_ref().map(|head| (head.instance.clone(), head.position)))
    }

    /// Whether an event after the newest line comes before this reader, so that it will not receive that
    /// event.
    pub(crate) fn has_missed_event(&self) -> bool {
        self.ring.state.lock().head.as_ref().is_some_and(|head| head.next.0 < self.next)
    }

    /// Whether the actor has ended.
    pub(crate) fn is_closed(&self) -> bool {
        self.ring.state.lock().closed
    }

    /// Whether the actor has ended because the replica is gone and its log was read to its end.
    pub(crate) fn is_gone(&self) -> bool {
        self.ring.state.lock().gone
    }

    /// Reads the next entries: the first one whatever its size, later ones while the messages before them
    /// take less than `room` bytes.
    pub fn poll_read(
        &mut self,
        room: usize,
        representation: Representation,
        cx: &mut Context<'_>,
    ) -> Poll<ReadOutcome> {
        let mut state = self.ring.state.lock();
        if self.next < state.first {
            return Poll::Ready(ReadOutcome::Lagged);
        }
        let mut entries = Entries::default();
        let mut bytes = 0;
        for slot in &mut entries {
            let Some(entry) = state.get(self.next).filter(|_| bytes < room || bytes == 0) else {
                break;
            };
            bytes += entry.message_max_bytes(&self.ring, representation);
            match &entry.kind {
                EntryKind::Lines(chunk, _) if chunk.continues && !chunk.is_unfinished() => {
                    self.partly_lost[stream_index(chunk)] = None;
                }
                EntryKind::Lines(..) | EntryKind::Event(_) => {}
                EntryKind::Gap(_) => self.partly_lost = [None; 2],
            }
            self.next += 1;
            (self.seen, self.ambiguous) = (entry.totals_after(), entry.ambiguous);
            *slot = Some(Arc::clone(entry));
        }
        // A closed ring counts as more: the next read then reports the end, for which no waker is called.
        let more = state.closed || self.next < state.next();
        // A message is never empty, so `bytes == 0` means that there is no entry.
        if !more {
            // Under the same lock, so that the caller need not poll again to wait.
            let pending: Poll<ReadOutcome> = register_waker(&mut state, self.waiter, cx);
            if bytes == 0 {
                return pending;
            }
        } else if bytes == 0 {
            return Poll::Ready(ReadOutcome::Closed);
        }
        drop(state);
        self.store_progress();
        Poll::Ready(ReadOutcome::Entries { entries, more })
    }

    /// Skips to the oldest entry that starts a line, after evicted ones. Returns what is lost.
    pub(crate) fn skip(&mut self) -> Option<Loss> {
        let state = self.ring.state.lock();
        // A ring keeps its newest entry, so one that has evicted entries is not empty.
        let (index, next) = skip_target(&state)?;
        // After an inexact gap of a refill, the totals would count lines again that were lost in that gap.
        let counts_from = if self.seen.inexact_gaps == INEXACT { next.totals_before } else { self.seen };
        let loss = Loss {
            lines: lost_lines(&next, counts_from, &mut self.partly_lost),
            bytes: next.totals_before.bytes.saturating_sub(counts_from.bytes),
            exact: next.totals_before.inexact_gaps == self.seen.inexact_gaps,
            next,
        };
        self.next = state.first + index as u64;
        (self.seen, self.ambiguous) = (loss.next.totals_before, loss.next.ambiguous);
        drop(state);
        self.store_progress();
        Some(loss)
    }

    /// Begins a refill: the lines that this reader lagged behind are read from the log. Returns `false` if
    /// that is not possible, since the log may count `position` differently.
    pub(crate) fn begin_refill(&mut self, position: Position) -> bool {
        if self.ambiguous.contains(position) {
            return false;
        }
        if let Some((_, progress)) = &self.progress {
            progress.begin_refill();
        }
        true
    }

    /// Records lines that the follower got from the log instead of the ring.
    pub(crate) fn record_refilled(&mut self, batch: &LineBatch) {
        for line in batch.lines.iter().filter(|line| line.ends) {
            self.seen.lines = self.seen.lines.saturating_add(1);
            if line.continues {
                self.partly_lost[usize::from(line.stream == Some(OutputStream::Stderr))] = None;
            }
        }
        self.seen.bytes = self.seen.bytes.saturating_add(batch.data.len() as u64);
        self.store_progress();
    }

    /// Records a gap that the follower got from the log instead of the ring; with `exact` false, it may be
    /// larger.
    pub(crate) fn record_refilled_gap(&mut self, lines: u64, bytes: u64, exact: bool) {
        self.seen.lines = self.seen.lines.saturating_add(lines);
        self.seen.bytes = self.seen.bytes.saturating_add(bytes);
        if exact {
            // As in the ring, it ends all lines.
            self.partly_lost = [None; 2];
        } else {
            self.seen.inexact_gaps = INEXACT;
        }
        self.store_progress();
    }

    /// Returns the lines between the follower and the head.
    pub(crate) fn lines_behind(&self) -> Option<LinesAfter> {
        let state = self.ring.state.lock();
        let count = state.totals.lines.saturating_sub(self.seen.lines);
        Some(LinesAfter { count, until: state.head.as_ref()?.position.time })
    }

    /// Whether the newest entry was read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.next == self.ring.state.lock().next()
    }

    /// Returns how many lines are still to come until the head, if that is known.
    pub(crate) fn lines_left(&self) -> Option<u64> {
        let state = self.ring.state.lock();
        let is_exact = self.seen.inexact_gaps == state.totals.inexact_gaps;
        is_exact.then(|| state.totals.lines.saturating_sub(self.seen.lines))
    }

    /// Whether the ring holds lines of `instance` after `at`, and these begin no later than the log's next
    /// line, which has `time`; `None`: there is none. `is_exact`: ring and log count `at` equally.
    pub(crate) fn holds_older(
        &self,
        instance: &Instance,
        at: Position,
        is_exact: bool,
        time: Option<LogTime>,
    ) -> bool {
        let state = self.ring.state.lock();
        // Where the reader would skip to.
        let Some((_, oldest)) = skip_target(&state).filter(|_| self.next < state.first) else {
            return false;
        };
        let is_later = if is_exact {
            at <= oldest.start
        } else {
            oldest.oldest_time().is_some_and(|oldest| at.time < oldest)
        };
        oldest.instance.as_ref() == Some(instance)
            && is_later
            && time.is_none_or(|time| time >= oldest.start.time)
    }

    /// Marks the ring's changes so far as seen, for [`RingReader::changed`].
    pub(crate) fn mark_seen(&mut self) {
        self.seen_version = self.ring.state.lock().version;
    }

    /// Waits until the ring has changed since the last join or wait; does not wait if it is closed. Cancel
    /// safe.
    pub(crate) async fn changed(&mut self) {
        poll_fn(|cx| {
            let mut state = self.ring.state.lock();
            if self.seen_version != state.version || state.closed {
                self.seen_version = state.version;
                return Poll::Ready(());
            }
            register_waker(&mut state, self.waiter, cx)
        })
        .await;
    }

    /// Whether the ring has lines of `instance` after `at` that are older than `since`.
    pub(crate) fn has_older_lines(&self, instance: &Instance, at: Position, since: LogTime) -> bool {
        let state = self.ring.state.lock();
        let newest_first = state.entries.iter().rev();
        let mut after_position =
            newest_first.take_while(|entry| entry.instance.as_ref() == Some(instance) && entry.end > at);
        after_position.any(|entry| entry.oldest_time().is_some_and(|oldest| oldest < since))
    }

    /// Returns whether the ring has no line that is later than the one before `at`.
    pub(crate) fn is_at_head(&self, instance: &Instance, at: Position) -> bool {
        let state = self.ring.state.lock();
        state.head.as_ref().is_some_and(|head| head.instance == *instance && at.time >= head.position.time)
    }

    /// Tries to join the ring exactly after position `at` of `instance`.
    ///
    /// Does not join next to a gap of the source: the gap has no position of its own, so it could be reported
    /// twice or not at all. Nor where positions are ambiguous after a gap of unknown size: the backfill may
    /// have read lines within the gap, and would not report the rest of it. Nor where the two count
    /// positions from different lines: `first_read` is the time of the first line that the backfill has found
    /// at the start of the run, if it has read that.
    pub(crate) fn join(
        &mut self,
        instance: &Instance,
        at: Position,
        limit: JoinLimit,
        first_read: Option<LogTime>,
    ) -> JoinOutcome {
        let ring = Arc::clone(&self.ring);
        let state = ring.state.lock();
        self.seen_version = state.version;
        // A backfill reads an earlier run to its end, and joins in the head's run.
        let Some(head) = state.head.as_ref().filter(|head| head.instance == *instance) else {
            return JoinOutcome::ReadLog;
        };
        if at >= head.position && state.ambiguous.contains(head.position) {
            return JoinOutcome::AtHead;
        }
        if state.counts_from_other_line(instance, at, first_read) {
            let is_at_head = at.time >= head.position.time;
            return if is_at_head { JoinOutcome::AtHead } else { JoinOutcome::ReadLog };
        }
        if at > head.position {
            return JoinOutcome::AheadOfRing;
        }
        if at == head.position {
            if head.contiguity == Contiguity::AfterGap {
                return JoinOutcome::AtHead;
            }
            self.continue_at_head(&state, head);
            return JoinOutcome::Joined(Vec::new());
        }
        // Entries of the head's run are the newest, and their ends ascend.
        let index = state
            .entries
            .partition_point(|entry| entry.instance.as_ref() != Some(instance) || entry.end <= at);
        let Some(entry) = state.entries.get(index) else {
            return JoinOutcome::ReadLog;
        };
        let EntryKind::Lines(chunk, contiguity) = &entry.kind else {
            return JoinOutcome::ReadLog;
        };
        let is_next_to_gap = at == chunk.start && *contiguity == Contiguity::AfterGap;
        // The backfill has read a line that the actor has not, because it was rotated away in between. Lines
        // after it may be missing as well.
        let is_unknown_line = !chunk.contains(at);
        if at < chunk.start
            || is_next_to_gap
            || entry.ambiguous.contains(at)
            || is_unknown_line
            || !Self::may_join(&state, entry, limit)
        {
            return JoinOutcome::ReadLog;
        }
        let sequence = state.first + index as u64;
        if at == chunk.start {
            self.continue_at((sequence, entry.totals_before), entry.open, entry.ambiguous);
            return JoinOutcome::Joined(Vec::new());
        }
        self.continue_at((sequence + 1, entry.totals_after()), entry.open_after(), entry.ambiguous);
        JoinOutcome::Joined(parts_after(chunk, at))
    }

    /// Tries to join after `instance`, whose log was read to its end at position `at`.
    pub(crate) fn join_end(&mut self, instance: &Instance, at: Position) -> JoinOutcome {
        let ring = Arc::clone(&self.ring);
        let state = ring.state.lock();
        self.seen_version = state.version;
        match &state.head {
            // If the actor has read the log to its end as well, both are at the same place, even if one of
            // them has lost lines and counts fewer.
            Some(head) if head.instance == *instance && (at <= head.position || head.is_complete) => {
                self.continue_at_head(&state, head);
                JoinOutcome::Joined(Vec::new())
            }
            Some(head) if head.instance == *instance => JoinOutcome::AheadOfRing,
            _ => JoinOutcome::ReadLog,
        }
    }

    /// Tries to join before the last `lines` lines of the log. Possible if the ring holds them all, of one
    /// run and without a gap. Returns their run, and the wanted lines of an entry that also has older ones.
    pub(crate) fn join_last(&mut self, lines: u64) -> Option<(Instance, Vec<Chunk>)> {
        let ring = Arc::clone(&self.ring);
        let state = ring.state.lock();
        self.seen_version = state.version;
        let head = state.head.as_ref()?;
        let mut wanted = lines;
        for (index, entry) in state.entries.iter().enumerate().rev() {
            let EntryKind::Lines(chunk, contiguity) = &entry.kind else {
                return None;
            };
            if entry.instance.as_ref() != Some(&head.instance)
                || *contiguity == Contiguity::AfterGap
                || chunk.is_piece()
            {
                return None;
            }
            let count = chunk.lines();
            if count < wanted {
                wanted -= count;
                continue;
            }
            if !Self::may_join(&state, entry, JoinLimit::Usual) {
                return None;
            }
            let part = chunk.without_lines(usize::try_from(count - wanted).ok()?)?;
            let sequence = state.first + index as u64;
            let instance = head.instance.clone();
            if count == wanted {
                self.continue_at((sequence, entry.totals_before), entry.open, entry.ambiguous);
                return Some((instance, Vec::new()));
            }
            self.continue_at((sequence + 1, entry.totals_after()), entry.open_after(), entry.ambiguous);
            return Some((instance, vec![part]));
        }
        None
    }

    /// Whether `limit` allows a reader to start at `entry`.
    fn may_join(state: &State, entry: &Entry, limit: JoinLimit) -> bool {
        let Some((numerator, denominator)) = limit.share() else { return true };
        let ahead = state.totals.cost - entry.totals_before.cost + state.lazy_bytes as u64;
        ahead <= (state.capacity / denominator * numerator) as u64
    }

    /// Continues after the newest line, at the first event after it that is held. Those before it have no
    /// lines, so a reader must not lag because of them: it would join here again and again.
    fn continue_at_head(&mut self, state: &State, head: &Head) {
        let (next, seen) = head.next;
        self.continue_at((next.max(state.first), seen), state.open, state.ambiguous);
    }

    /// Continues at the entry with this number, before which lie these totals. A line that was lost in part
    /// stays counted while it is open.
    fn continue_at(&mut self, (next, seen): (u64, Totals), open: OpenLines, ambiguous: AmbiguousRange) {
        (self.next, self.seen, self.ambiguous) = (next, seen, ambiguous);
        for (lost, open) in self.partly_lost.iter_mut().zip(open) {
            *lost = lost.filter(|lost| Some(*lost) == open);
        }
    }
}

// === impl JoinLimit ===

impl JoinLimit {
    /// Returns the share of the ring that may lie ahead of the reader.
    const fn share(self) -> Option<(usize, usize)> {
        match self {
            Self::Usual => Some((3, 4)),
            Self::NearHead => Some((1, 8)),
            Self::None => None,
        }
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        self.unregister();
        self.ring.state.lock().waiters.remove(self.waiter);
    }
}

pub(super) fn register_waker<T>(state: &mut State, waiter: usize, cx: &mut Context<'_>) -> Poll<T> {
    match &mut state.waiters[waiter] {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        waker => *waker = Some(cx.waker().clone()),
    }
    Poll::Pending
}

/// Returns the parts of `chunk` after `at`: the remainder of a line, if `at` is within one, and the lines
/// after it.
fn parts_after(chunk: &Chunk, mut at: Position) -> Vec<Chunk> {
    let mut parts = Vec::new();
    while let Some(part) = chunk.after(at) {
        at = part.end;
        parts.push(part);
    }
    parts
}

/// Counts the lines that a reader loses between `seen` and `next`: those that ended in between, and those
/// that began before `next` and continue after it, since a follower cannot know whether it received all of
/// their pieces. `partly_lost` has the lines that were counted before they ended, so that none counts twice.
fn lost_lines(next: &Entry, seen: Totals, partly_lost: &mut OpenLines) -> u64 {
    let mut lines = next.totals_before.lines.saturating_sub(seen.lines);
    for (lost, open) in partly_lost.iter_mut().zip(next.open) {
        if lost.is_some() && *lost != open {
            // Counted before, and has ended in between.
            lines = lines.saturating_sub(1);
            *lost = None;
        }
        if lost.is_none() && open.is_some() {
            lines += 1;
            *lost = open;
        }
    }
    lines
}

/// Returns the entry to which a lagging reader skips: the first that starts a line, since a line with a lost
/// piece counts as lost. If none does, as with a progress bar, the oldest.
fn skip_target(state: &State) -> Option<(usize, Arc<Entry>)> {
    let index = state.entries.iter().position(|entry| entry.starts_line()).unwrap_or_default();
    Some((index, Arc::clone(state.entries.get(index)?)))
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;

    use super::*;
    use crate::logs::chunk::LineEnd;
    use crate::logs::entry_name::NameStyle;
    use crate::logs::memory_budget::MemoryBudget;
    use crate::logs::message::{Event, Gap};
    use crate::model::id::Replica;
    use crate::model::line::{GapCause, Line};
    use crate::model::metrics::Metrics;

    #[test]
    fn backfill_at_run_end_joins_ring_that_lost_lines() {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let metrics = Metrics::register(&NoopRecorder);
        let ring = Ring::new(replica, NameStyle::Replica, 1 << 20, &metrics, &MemoryBudget::default());
        let run = Instance::new("uid", "web", 0).unwrap();
        let time = LogTime::from_nanos(5);
        let after = |lines: u64| Position { time, ordinal: lines, offset: 0 };
        let chunk = |start: Position, text: &'static [u8]| Chunk {
            data: text.into(),
            line_ends: Box::new([LineEnd { end: u32::try_from(text.len()).unwrap(), time, stream: None }]),
            continues: false,
            start,
            end: start.after_line(time),
        };
        ring.begin_log(&run, Position::START);
        let now = tokio::time::Instant::now();
        ring.push_lines(&run, &mut vec![chunk(Position::START, b"first\n")], now);
        // Two lines of the same time are lost before the last one.
        let gap =
            Gap { cause: GapCause::Rotated, lines: 0, bytes: 0, exact: false, from: Some(time), to: None };
        ring.push_gap(&run, gap, after(1));
        ring.push_lines(&run, &mut vec![chunk(after(1), b"last\n")], now);
        // A backfill has read all four.
        let mut reader = ring.reader();
        assert!(matches!(reader.join_end(&run, after(4)), JoinOutcome::AheadOfRing), "more lines may follow");
        ring.push_event(Some(&run), Event::follow_unavailable());
        assert!(matches!(reader.join_end(&run, after(4)), JoinOutcome::AheadOfRing), "the log is still read");
        ring.push_event(Some(&run), Event::gone());
        assert!(matches!(reader.join_end(&run, after(4)), JoinOutcome::Joined(_)));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(ReadOutcome::Entries { entries, .. }) =
            reader.poll_read(usize::MAX, Representation::Plain, &mut cx)
        else {
            panic!("no event after the last line");
        };
        let kinds: Vec<_> = entries.iter().flatten().map(|entry| &entry.kind).collect();
        assert!(matches!(kinds[..], [EntryKind::Event(_), EntryKind::Event(_)]), "{kinds:?}");
    }

    fn small_ring() -> (Arc<Ring>, Instance) {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let metrics = Metrics::register(&NoopRecorder);
        let ring = Ring::new(replica, NameStyle::Replica, 4_096, &metrics, &MemoryBudget::default());
        let run = Instance::new("uid", "web", 0).unwrap();
        ring.begin_log(&run, Position::START);
        (ring, run)
    }

    /// Pushes a line or a piece of one at `at`, and evicts all other entries.
    fn push_only(ring: &Ring, run: &Instance, at: &mut Position, text: &'static [u8]) -> Chunk {
        let time = LogTime::from_nanos(5);
        let end = if text.ends_with(b"\n") { at.after_line(time) } else { at.after_bytes(text.len()) };
        let chunk = Chunk {
            data: text.into(),
            line_ends: Box::new([LineEnd { end: u32::try_from(text.len()).unwrap(), time, stream: None }]),
            continues: !at.at_line_start(),
            start: *at,
            end,
        };
        *at = end;
        ring.push_lines(run, &mut vec![chunk.clone()], tokio::time::Instant::now());
        ring.state.lock().evict(0);
        chunk
    }

    fn poll(reader: &mut RingReader) -> Poll<ReadOutcome> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        reader.poll_read(usize::MAX, Representation::Plain, &mut cx)
    }

    #[test]
    fn reader_at_head_does_not_lag_because_of_events() {
        let (ring, run) = small_ring();
        let mut at = Position::START;
        push_only(&ring, &run, &mut at, b"line\n");
        for number in 0..20 {
            ring.push_event(Some(&run), Event::waiting(format!("Reason{number}"), String::new()));
        }
        let mut reader = ring.reader();
        for at_end in [false, true] {
            let outcome = if at_end {
                reader.join_end(&run, at)
            } else {
                reader.join(&run, at, JoinLimit::Usual, None)
            };
            assert!(matches!(outcome, JoinOutcome::Joined(_)));
            assert!(matches!(poll(&mut reader), Poll::Ready(ReadOutcome::Entries { .. })), "{at_end}");
        }
    }

    #[test]
    fn line_lost_in_part_counts_once_after_refill() {
        for joins in [false, true] {
            let (ring, run) = small_ring();
            let (mut reader, mut at) = (ring.reader(), Position::START);
            push_only(&ring, &run, &mut at, b"one ");
            let piece = push_only(&ring, &run, &mut at, b"line ");
            assert!(matches!(poll(&mut reader), Poll::Ready(ReadOutcome::Lagged)));
            assert_eq!(reader.skip().map(|loss| (loss.lines, loss.bytes)), Some((1, 4)));
            push_only(&ring, &run, &mut at, b"in pieces\n");
            assert!(matches!(poll(&mut reader), Poll::Ready(ReadOutcome::Lagged)));
            // A refill delivers the rest of it.
            if joins {
                let next = at;
                push_only(&ring, &run, &mut at, b"second\n");
                let outcome = reader.join(&run, next, JoinLimit::None, None);
                assert!(matches!(outcome, JoinOutcome::Joined(parts) if parts.is_empty()));
            } else {
                let rest =
                    Line { ends: true, continues: true, ..Line::whole(14, piece.line_ends[0].time, at) };
                let data = bytes::Bytes::from_static(b"line in pieces\n");
                reader.record_refilled(&LineBatch { data, lines: vec![rest] });
                push_only(&ring, &run, &mut at, b"second\n");
            }
            push_only(&ring, &run, &mut at, b"third\n");
            push_only(&ring, &run, &mut at, b"fourth\n");
            let loss = reader.skip().map(|loss| (loss.lines, loss.bytes, loss.exact));
            assert_eq!(loss, Some((2, 13, true)), "{joins}");
        }
    }

    #[test]
    fn lines_left_are_unknown_before_inexact_gap() {
        let (ring, run) = small_ring();
        let (mut reader, mut at) = (ring.reader(), Position::START);
        assert!(reader.is_at_end());
        push_only(&ring, &run, &mut at, b"one\n");
        push_only(&ring, &run, &mut at, b"two\n");
        assert_eq!((reader.is_at_end(), reader.lines_left()), (false, Some(2)));
        let gap = Gap { cause: GapCause::Rotated, lines: 0, bytes: 0, exact: false, from: None, to: None };
        ring.push_gap(&run, gap, at);
        assert_eq!(reader.lines_left(), None);
        reader.skip();
        assert!(matches!(poll(&mut reader), Poll::Ready(ReadOutcome::Entries { .. })));
        push_only(&ring, &run, &mut at, b"three\n");
        assert_eq!((reader.is_at_end(), reader.lines_left()), (false, Some(1)));
        // The log had a gap that the ring does not have.
        reader.record_refilled_gap(0, 0, false);
        assert_eq!(reader.lines_left(), None);
    }

    #[test]
    fn loss_after_inexact_gap_of_refill_counts_no_line_twice() {
        let (ring, run) = small_ring();
        let (mut reader, mut at) = (ring.reader(), Position::START);
        for line in [b"one\n", b"two\n", b"six\n"] {
            push_only(&ring, &run, &mut at, line);
        }
        // The log has none of them any more: the gap stands for them.
        reader.record_refilled_gap(0, 0, false);
        let next = push_only(&ring, &run, &mut at, b"ten\n");
        let data = bytes::Bytes::from_static(b"ten\n");
        let lines = vec![Line::whole(4, next.line_ends[0].time, at)];
        reader.record_refilled(&LineBatch { data, lines });
        push_only(&ring, &run, &mut at, b"end\n");
        push_only(&ring, &run, &mut at, b"new\n");
        let loss = reader.skip().map(|loss| (loss.lines, loss.bytes, loss.exact));
        assert_eq!(loss, Some((0, 0, false)), "lower bounds");
    }

    #[test]
    fn reader_created_after_gap_is_not_refilled() {
        let (ring, run) = small_ring();
        let mut at = Position::START;
        push_only(&ring, &run, &mut at, b"line\n");
        assert!(ring.reader().begin_refill(at));
        let gap = Gap { cause: GapCause::Rotated, lines: 0, bytes: 0, exact: false, from: None, to: None };
        ring.push_gap(&run, gap, at);
        assert!(!ring.reader().begin_refill(at));
    }

    /// Two reads of a run's start, between which a file was rotated away, within lines of one nanosecond.
    #[test]
    fn position_counted_from_another_line_does_not_join() {
        let nanos = LogTime::from_nanos;
        let (at_tie, early) = (Position { time: nanos(5), ordinal: 1, offset: 0 }, nanos(3));
        for (first_read, joins) in [(None, true), (Some(nanos(5)), true), (Some(early), false)] {
            let (ring, run) = small_ring();
            ring.expect_first_line(&run, None);
            let (mut reader, mut at) = (ring.reader(), Position::START);
            push_only(&ring, &run, &mut at, b"first\n");
            push_only(&ring, &run, &mut at, b"second\n");
            let outcome = reader.join(&run, at_tie, JoinLimit::None, first_read);
            assert_eq!(matches!(outcome, JoinOutcome::Joined(_)), joins, "{first_read:?}: {outcome:?}");
            // The times of both are equal.
            let outcome = reader.join(&run, at, JoinLimit::None, first_read);
            assert_eq!(matches!(outcome, JoinOutcome::AtHead), !joins, "{first_read:?}: {outcome:?}");
        }
    }

    #[test]
    fn position_of_unknown_line_does_not_join() {
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let metrics = Metrics::register(&NoopRecorder);
        let ring = Ring::new(replica, NameStyle::Replica, 1 << 20, &metrics, &MemoryBudget::default());
        let run = Instance::new("uid", "web", 0).unwrap();
        let time = LogTime::from_nanos;
        let at = |nanos, offset| Position { time: time(nanos), ordinal: 1, offset };
        ring.begin_log(&run, Position::START);
        // The actor started after a rotation: its first line is not the first of the run.
        let chunk = Chunk {
            data: (&b"nine\nten\n"[..]).into(),
            line_ends: [(5, 9), (9, 10)]
                .map(|(end, nanos)| LineEnd { end, time: time(nanos), stream: None })
                .into(),
            continues: false,
            start: Position::START,
            end: at(10, 0),
        };
        ring.push_lines(&run, &mut vec![chunk], tokio::time::Instant::now());
        let mut reader = ring.reader();
        for unknown in [at(5, 0), at(5, 2), Position { ordinal: 2, ..at(9, 0) }] {
            assert!(
                matches!(reader.join(&run, unknown, JoinLimit::Usual, None), JoinOutcome::ReadLog),
                "{unknown:?}"
            );
        }
        for (known, expected) in [
            (Position::START, &[][..]),
            (Position { offset: 2, ..Position::START }, &["ne\n", "ten\n"]),
            (at(9, 0), &["ten\n"]),
            (at(9, 1), &["en\n"]),
        ] {
            let JoinOutcome::Joined(parts) = reader.join(&run, known, JoinLimit::Usual, None) else {
                panic!("{known:?}")
            };
            let texts: Vec<_> = parts.iter().map(|chunk| std::str::from_utf8(&chunk.data).unwrap()).collect();
            assert_eq!(texts, expected, "{known:?}");
        }
    }
}
