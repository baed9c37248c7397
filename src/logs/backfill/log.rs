//! Reads the log of one run, until it ends or the ring can be joined.

use std::ops::Range;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use futures_util::stream::Fuse;
use tokio::time::Instant;

use super::{
    AfterFailure, Backfill, BackfillEvent, BackfillParams, Failures, LOOKAHEAD, QUIET_LOG_PAUSE, Stage,
};
use crate::logs::actor::Subscription;
use crate::logs::chunk::Chunker;
use crate::logs::heartbeat::{Phase, SourceCell};
use crate::logs::ring::{JoinLimit, JoinOutcome};
use crate::model::id::Instance;
use crate::model::line::{GapCause, Line, LineBatch, SourceGap};
use crate::model::position::{AmbiguousRange, Position};
use crate::model::time::LogTime;
use crate::platform::{self, ReadFrom, TailItem};

/// A backfill that has read up to the head, but cannot join there, checks this often whether others need its
/// permit. Most join within milliseconds.
const PERMIT_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// A log that lets its reader wait this long was read up to its newest line: sources send what there is
/// without a pause.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// The open log of one run.
pub(super) struct Log {
    instance: Instance,
    chunker: Chunker,
    items: Fuse<BoxStream<'static, Result<TailItem, platform::Error>>>,
    /// The next item, if it was read before it is wanted.
    peeked: Option<Result<TailItem, platform::Error>>,
    /// The position to resume at, until the log's first line or gap was read.
    resumed_at: Option<Position>,
    /// With a refill that reads a run from its first line: the time of that line.
    first_time: Option<LogTime>,
    /// The next item must be read before joining: it may be a gap. Set for the first one, and after a line
    /// that ended without a newline.
    must_read: bool,
    /// Whether the ring has changed since the log's last item. If the log stays quiet then, its connection
    /// may be dead, and the ring may have a line that the log has not returned.
    ring_has_changed: bool,
    /// Since when its next item is waited for.
    waiting_since: Option<Instant>,
    /// Sum of the waits of [`IDLE_WAIT`] and more.
    idle: Duration,
}

/// The result of an attempt to join the ring at the log's position.
pub(super) enum JoinAttempt {
    /// Continue with this stage, not with the log.
    Next(Stage),
    /// The position is after the head: wait until the ring changes, and do not read on.
    AheadOfRing,
    /// Not possible here, but the ring has no line after the position.
    AtHead,
    /// Not possible here: read on.
    ReadLog,
    /// Not possible, whatever the ring does: there is none, it is closed for good, or the log's first item
    /// must be read before.
    IgnoreRing,
}

/// The event that ended a wait.
enum WaitEvent {
    Next(Stage),
    Item(Option<Result<TailItem, platform::Error>>),
    RingChanged,
    /// Nothing has happened for [`PERMIT_CHECK_INTERVAL`].
    Quiet,
}

// === impl Backfill ===

impl Backfill {
    pub(super) async fn open(&mut self, instance: Instance, from: ReadFrom) -> Stage {
        let position = match from {
            // With `since`, the ring may hold lines that are too old, so the log must be read.
            ReadFrom::After(position) if self.since.is_none() && !self.ambiguous.contains(position) => {
                Some((&instance, position))
            }
            _ => None,
        };
        if let Err(stage) = self.acquire_permit(position).await {
            return stage;
        }
        let refilled = self.live.as_ref().filter(|_| self.refill.is_some());
        let is_start = matches!(from, ReadFrom::Start | ReadFrom::After(Position::START));
        if is_start {
            self.ambiguous = AmbiguousRange::default();
        }
        let first_time =
            refilled.filter(|_| is_start).and_then(|live| live.reader.ring().first_time(&instance));
        let (from, resumed_at) = match from {
            // The first line shows whether lines are missing before it. The source could only guess.
            _ if first_time.is_some() => (ReadFrom::Start, Some(Position::START)),
            ReadFrom::After(position) => (from, Some(position)),
            _ => (from, None),
        };
        match self.tail(instance.clone(), from, self.live.is_some()).await {
            Ok(tail) => {
                if let Some(source) = &self.params.source {
                    source.resume();
                }
                self.position = Some((instance.clone(), tail.start));
                Stage::Read(Box::new(Log {
                    instance,
                    chunker: Chunker::new(tail.start),
                    items: tail.items.fuse(),
                    peeked: None,
                    resumed_at,
                    first_time,
                    // If the log does not start at the requested position, lines after that position are
                    // lost.
                    must_read: resumed_at.is_some_and(|position| position != tail.start),
                    ring_has_changed: false,
                    waiting_since: None,
                    idle: Duration::ZERO,
                }))
            }
            Err(error) => self.failed(instance, from, &error).await,
        }
    }

    /// Joins the ring if possible, otherwise reads the next item of the log.
    pub(super) async fn read(&mut self, mut log: Box<Log>) -> Stage {
        let attempt = if log.must_read {
            JoinAttempt::IgnoreRing
        } else {
            self.try_join(&log.instance, log.chunker.position())
        };
        let event = self.wait(&mut log, attempt).await;
        log.must_read = false;
        let position = log.resumed_at.unwrap_or(log.chunker.position());
        if let WaitEvent::Item(Some(Ok(TailItem::Lines(_) | TailItem::Gap(_)))) = event {
            log.resumed_at = None;
        }
        match event {
            WaitEvent::RingChanged => log.ring_has_changed = true,
            WaitEvent::Item(_) => log.ring_has_changed = false,
            WaitEvent::Next(_) | WaitEvent::Quiet => {}
        }
        let is_cut = match &event {
            WaitEvent::Item(Some(Ok(TailItem::Lines(batch)))) => log.misses_first_line(batch),
            _ => false,
        };
        match event {
            WaitEvent::Next(stage) => stage,
            WaitEvent::Quiet if self.limiter.is_exhausted(self.params.lease.owner()) => {
                if !self.is_followed_by_ring(&log.instance) {
                    return Stage::AwaitLines(log.instance, position);
                }
                if log.ring_has_changed {
                    self.permit = None;
                    return Stage::Open(log.instance, ReadFrom::After(position));
                }
                Stage::AwaitRing(log.instance, log.chunker.position())
            }
            WaitEvent::RingChanged
            | WaitEvent::Quiet
            | WaitEvent::Item(Some(Ok(
                TailItem::FollowUnavailable | TailItem::Interrupted(_) | TailItem::Resumed,
            ))) => Stage::Read(log),
            WaitEvent::Item(Some(Ok(TailItem::Lines(batch)))) if is_cut => {
                // The first lines of the run were rotated away.
                log.peeked = Some(Ok(TailItem::Lines(batch)));
                let gap = SourceGap {
                    cause: GapCause::Rotated,
                    lines: 0,
                    bytes: 0,
                    exact: false,
                    after: log.chunker.position(),
                };
                self.read_gap(log, position, gap).await
            }
            WaitEvent::Item(Some(Ok(TailItem::Lines(batch)))) => {
                self.failures = Failures::default();
                self.limiter.throttle(self.params.lease.owner(), batch.data.len()).await;
                self.record_refilled(&batch);
                // The ring may have the whole line.
                let is_last_whole =
                    batch.lines.last().is_none_or(|line| !line.ends) || batch.data.ends_with(b"\n");
                log.must_read = !is_last_whole;
                self.queue_lines(&mut log, batch);
                let position = log.chunker.position();
                if !self.ambiguous.contains(position) && self.must_give_turn() {
                    return Stage::Open(log.instance, ReadFrom::After(position));
                }
                // Lines that are printed now and then are waited for without a permit.
                if log.idle >= PERMIT_CHECK_INTERVAL
                    && !self.is_followed_by_ring(&log.instance)
                    && self.limiter.is_exhausted(self.params.lease.owner())
                {
                    return Stage::AwaitLines(log.instance, position);
                }
                Stage::Read(log)
            }
            WaitEvent::Item(Some(Ok(TailItem::Gap(gap)))) => self.read_gap(log, position, gap).await,
            WaitEvent::Item(Some(Err(error))) => {
                self.failed(log.instance, ReadFrom::After(position), &error).await
            }
            WaitEvent::Item(None) => Stage::RunEnded(log.instance),
        }
    }

    /// Handles a gap that the log has at `position`.
    async fn read_gap(&mut self, mut log: Box<Log>, position: Position, gap: SourceGap) -> Stage {
        if let Some(stage) = self.avoid_gap(&mut log, position, &gap).await {
            return stage;
        }
        log.chunker.skip_to(gap.after);
        log.first_time = None;
        // The ring may have lines from before the gap, or count lines of its time differently.
        if !gap.exact {
            self.ambiguous.record_gap();
        }
        self.position = Some((log.instance.clone(), gap.after));
        // A log that was opened again directly after a gap reports it again.
        let is_reported = self.inexact_gap.is_some() && self.inexact_gap == self.position;
        self.inexact_gap = self.position.clone().filter(|_| !gap.exact);
        if gap.exact || !is_reported {
            self.queue_gap(&gap);
        }
        Stage::Read(log)
    }

    /// Waits for the next item of the log, or a change of the ring.
    async fn wait(&mut self, log: &mut Log, attempt: JoinAttempt) -> WaitEvent {
        let is_ahead = matches!(attempt, JoinAttempt::AheadOfRing);
        let may_be_long = matches!(attempt, JoinAttempt::AheadOfRing | JoinAttempt::AtHead);
        let is_elsewhere =
            matches!(attempt, JoinAttempt::ReadLog) && !self.is_followed_by_ring(&log.instance);
        let source = self.params.source.as_deref();
        if let Some(source) = source {
            // It may have to read on at the head, too.
            let head = self.live.as_ref().and_then(|live| live.reader.ring().head());
            let is_at_head =
                head.is_some_and(|(run, at)| run == log.instance && at <= log.chunker.position());
            let lines_left = self.lines_left();
            source.set_phase(if is_at_head { Phase::AtHead } else { Phase::Backfill { lines_left } });
        }
        let live = match attempt {
            JoinAttempt::Next(stage) => return WaitEvent::Next(stage),
            JoinAttempt::AheadOfRing | JoinAttempt::AtHead | JoinAttempt::ReadLog => self.live.as_mut(),
            JoinAttempt::IgnoreRing => None,
        };
        let Some(live) = live else {
            return WaitEvent::Item(log.next(source).await);
        };
        let now = Instant::now();
        // A ring that reads another log may change all the time.
        let since = if is_elsewhere { *log.waiting_since.get_or_insert(now) } else { now };
        let event = tokio::select! {
            biased;
            // Not while it is ahead: the ring is paced, and a backfill that reads on would stay ahead
            // forever.
            item = log.next(source), if !is_ahead => WaitEvent::Item(item),
            () = live.reader.changed() => WaitEvent::RingChanged,
            () = tokio::time::sleep_until(since + PERMIT_CHECK_INTERVAL), if may_be_long || is_elsewhere => {
                WaitEvent::Quiet
            }
        };
        if !matches!(event, WaitEvent::RingChanged) {
            log.record_wait();
        }
        event
    }

    /// Whether the ring's newest lines are those of this run. If not, it has no lines after a position of it.
    fn is_followed_by_ring(&self, instance: &Instance) -> bool {
        let head = self.live.as_ref().and_then(|live| live.reader.ring().head());
        head.is_some_and(|(run, _)| run == *instance)
    }

    /// Waits for the ring without a permit: on a quiet log that may take long. If it cannot join at the new
    /// lines, it reads them from the log, after the same position, like a follower that resumes there.
    pub(super) async fn await_ring(&mut self, instance: Instance, position: Position) -> Stage {
        self.permit = None;
        loop {
            if let Some(live) = &mut self.live {
                live.reader.changed().await;
            }
            match self.try_join(&instance, position) {
                JoinAttempt::Next(stage) => return stage,
                JoinAttempt::AheadOfRing => {}
                JoinAttempt::AtHead | JoinAttempt::ReadLog | JoinAttempt::IgnoreRing => {
                    return Stage::Open(instance, ReadFrom::After(position));
                }
            }
        }
    }

    /// Waits without a permit for more lines of a log that the ring does not follow. Returns as soon as the
    /// run has ended: the log may be removed soon.
    pub(super) async fn await_lines(&mut self, instance: Instance, position: Position) -> Stage {
        self.permit = None;
        let pause = tokio::time::sleep(QUIET_LOG_PAUSE);
        tokio::pin!(pause);
        loop {
            match self.try_join(&instance, position) {
                JoinAttempt::Next(stage) => return stage,
                JoinAttempt::AheadOfRing | JoinAttempt::AtHead => {
                    return Stage::AwaitRing(instance, position);
                }
                JoinAttempt::ReadLog if self.is_followed_by_ring(&instance) => {
                    return Stage::Open(instance, ReadFrom::After(position));
                }
                JoinAttempt::ReadLog | JoinAttempt::IgnoreRing => {}
            }
            let BackfillParams { view, replica, .. } = &mut self.params;
            let has_ended = view.wait_for(|view| {
                let run = view.replica(replica).and_then(|replica| replica.run(&instance));
                run.is_none_or(|run| run.end.is_some())
            });
            let is_over = tokio::select! {
                _ = has_ended => true,
                () = &mut pause => true,
                () = ring_changed(&mut self.live) => false,
            };
            if is_over {
                return Stage::Open(instance, ReadFrom::After(position));
            }
        }
    }

    pub(super) fn try_join(&mut self, instance: &Instance, position: Position) -> JoinAttempt {
        let (limit, first_read) = (self.join_limit(), self.first_read(instance));
        let Some(live) = self.live.as_mut() else {
            return JoinAttempt::IgnoreRing;
        };
        // With `since`, the ring may hold lines that are too old.
        let must_read = self.ambiguous.contains(position)
            || self.since.is_some_and(|since| live.reader.has_older_lines(instance, position, since));
        let outcome = if must_read {
            live.reader.mark_seen();
            let is_at_head = live.reader.is_at_head(instance, position);
            if is_at_head { JoinOutcome::AtHead } else { JoinOutcome::ReadLog }
        } else {
            live.reader.join(instance, position, limit, first_read)
        };
        match outcome {
            JoinOutcome::Joined(parts) => {
                self.queue_chunks(instance, parts);
                JoinAttempt::Next(Stage::Done)
            }
            // Entries remain, but no new actor will send the lines after them.
            _ if live.reader.is_closed() && (self.params.is_gone() || live.reader.is_gone()) => {
                JoinAttempt::IgnoreRing
            }
            _ if live.reader.is_closed() => JoinAttempt::Next(Stage::End(BackfillEvent::ActorEnded)),
            JoinOutcome::AheadOfRing => JoinAttempt::AheadOfRing,
            JoinOutcome::AtHead => JoinAttempt::AtHead,
            JoinOutcome::ReadLog => JoinAttempt::ReadLog,
        }
    }

    /// Queues the lines of a batch that are not older than `since`.
    fn queue_lines(&mut self, log: &mut Log, batch: LineBatch) {
        self.update_since(&log.instance, log.chunker.position());
        // A gap that comes now is another one, even at the same position.
        self.inexact_gap = None;
        if let Some(line) = batch.lines.first() {
            self.ambiguous.record_line(log.chunker.position(), line.time);
            if log.chunker.position() == Position::START {
                self.first_read = Some((log.instance.clone(), line.time));
            }
        }
        let mut chunks = Vec::new();
        match self.since {
            None => {
                log.chunker.push(&batch, &mut chunks);
                self.last_time = batch.lines.last().map(|line| line.time).or(self.last_time);
            }
            Some(since) => {
                let mut start = 0;
                for lines in batch.lines.chunk_by(|one, next| (one.time < since) == (next.time < since)) {
                    let Some(last) = lines.last() else { continue };
                    if last.time < since {
                        chunks.extend(log.chunker.flush());
                        log.chunker.skip_to(last.after);
                    } else {
                        log.chunker.push(&sub_batch(&batch, start..last.end, lines), &mut chunks);
                        self.last_time = Some(last.time);
                    }
                    start = last.end;
                }
            }
        }
        chunks.extend(log.chunker.flush());
        self.queue_chunks(&log.instance, chunks);
        self.position = Some((log.instance.clone(), log.chunker.position()));
    }

    /// Stops omitting older lines at the first live line: once the log was read up to the head that the ring
    /// had at first.
    fn update_since(&mut self, instance: &Instance, position: Position) {
        let Some(live) = self.live.as_ref().filter(|_| self.since.is_some()) else { return };
        if self.live_from.is_none() {
            self.live_from = live.reader.ring().head();
        }
        if self.live_from.as_ref().is_some_and(|(run, from)| run == instance && *from <= position) {
            self.since = None;
        }
    }

    async fn failed(&mut self, instance: Instance, from: ReadFrom, error: &platform::Error) -> Stage {
        match self.after_failure(&instance, error).await {
            AfterFailure::Retry => return Stage::Open(instance, from),
            AfterFailure::GiveUp => return Stage::End(BackfillEvent::Unreadable),
            AfterFailure::Skip => {}
        }
        // The gap that was just sent has no position that the ring could be compared with.
        if self.inexact_gap.is_some() && self.inexact_gap == self.position {
            return Stage::RunEnded(instance);
        }
        let cause = if error.is_retryable() { GapCause::Source } else { GapCause::Rotated };
        let position = match from {
            ReadFrom::After(position) => Some(position),
            ReadFrom::Start => Some(Position::START),
            ReadFrom::Last(_) | ReadFrom::Since(_) => None,
        };
        if let Some(position) = position
            && let Some(skip) = self.skip_in_ring(&instance, position, None, cause)
        {
            return skip;
        }
        self.queue_unknown_gap(cause);
        Stage::RunEnded(instance)
    }
}

// === impl Backfill: refills ===

impl Backfill {
    /// Counts lines of the log that the follower did not get from the ring.
    fn record_refilled(&mut self, batch: &LineBatch) {
        let Some(live) = self.live.as_mut().filter(|_| self.refill.is_some()) else { return };
        let lines = batch.lines.iter().filter(|line| line.ends).count() as u64;
        let bytes = batch.data.len() as u64;
        self.params.context.metrics.refilled_lines.increment(lines);
        self.params.context.metrics.refilled_bytes.increment(bytes);
        live.reader.record_refilled(batch);
    }

    /// Handles a gap that the log reports at `position`. Returns the next stage of a refill that the ring has
    /// older lines for than the log. Otherwise the gap must be sent.
    async fn avoid_gap(&mut self, log: &mut Log, position: Position, gap: &SourceGap) -> Option<Stage> {
        let first_read = self.first_read(&log.instance);
        let live = self.live.as_mut().filter(|_| self.refill.is_some())?;
        if gap.exact {
            // The log itself records it, so the ring has it as well.
            live.reader.record_refilled_gap(gap.lines, gap.bytes, true);
            return None;
        }
        if !self.ambiguous.contains(position)
            && let JoinOutcome::Joined(parts) =
                live.reader.join(&log.instance, position, JoinLimit::None, first_read)
        {
            self.queue_chunks(&log.instance, parts);
            return Some(Stage::Done);
        }
        let time = log.next_time(self.params.source.as_deref()).await;
        let skip = self.skip_in_ring(&log.instance, position, time, gap.cause);
        if skip.is_none()
            && let Some(live) = &mut self.live
        {
            live.reader.record_refilled_gap(gap.lines, gap.bytes, false);
        }
        skip
    }

    /// Returns the stage that continues a refill in the ring, after lines that the log has lost since
    /// `position`. `None` if the ring does not have the lines after them: the log's next line, at `time`, is
    /// older.
    pub(super) fn skip_in_ring(
        &mut self,
        instance: &Instance,
        position: Position,
        time: Option<LogTime>,
        cause: GapCause,
    ) -> Option<Stage> {
        let is_exact = self.ambiguous.is_none();
        let is_older = |live: &Subscription| live.reader.holds_older(instance, position, is_exact, time);
        let live = self.live.take_if(|live| self.refill.is_some() && is_older(live))?;
        Some(Stage::End(BackfillEvent::Skip(Box::new(live), cause)))
    }
}

// === impl Log ===

impl Log {
    /// Records the end of a wait for an item.
    fn record_wait(&mut self) {
        let waited = self.waiting_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        if waited >= IDLE_WAIT {
            self.idle += waited;
        }
    }

    /// Returns the next item. Takes those that report interruptions, and stores them. Cancel safe.
    async fn next(&mut self, source: Option<&SourceCell>) -> Option<Result<TailItem, platform::Error>> {
        if let Some(item) = self.peeked.take() {
            return Some(item);
        }
        loop {
            let item = self.items.next().await;
            match (&item, source) {
                (Some(Ok(TailItem::Interrupted(since))), Some(source)) => source.interrupt(*since),
                (Some(Ok(TailItem::Resumed)), Some(source)) => source.resume(),
                (Some(Ok(TailItem::Interrupted(_) | TailItem::Resumed)), None) => {}
                _ => return item,
            }
        }
    }

    /// Whether a run's first lines are missing before this batch. Asked for the first batch only.
    fn misses_first_line(&mut self, batch: &LineBatch) -> bool {
        let (first, next) = (self.first_time.take(), batch.lines.first());
        first.zip(next).is_some_and(|(first, next)| next.time != first)
    }

    /// Returns the time of the next line, if it comes soon.
    async fn next_time(&mut self, source: Option<&SourceCell>) -> Option<LogTime> {
        let item = tokio::time::timeout(LOOKAHEAD, self.next(source)).await.ok()??;
        let time = match &item {
            Ok(TailItem::Lines(batch)) => batch.lines.first().map(|line| line.time),
            _ => None,
        };
        self.peeked = Some(item);
        time
    }
}

/// Waits for a change of the ring; forever without one, or if it is closed.
async fn ring_changed(live: &mut Option<Subscription>) {
    match live {
        Some(live) if !live.reader.is_closed() => live.reader.changed().await,
        _ => std::future::pending().await,
    }
}

/// Returns consecutive `lines` of a batch, whose data is at `bytes`.
fn sub_batch(batch: &LineBatch, bytes: Range<usize>, lines: &[Line]) -> LineBatch {
    let lines = lines.iter().map(|line| Line { end: line.end - bytes.start, ..*line }).collect();
    LineBatch { data: batch.data.slice(bytes), lines }
}
