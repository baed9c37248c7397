//! Reads the log of one run, until it ends or the ring can be joined.

use std::ops::Range;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;

use super::{AfterFailure, Backfill, BackfillEvent, Failures, Stage};
use crate::logs::chunk::Chunker;
use crate::logs::ring::{AmbiguousRange, JoinOutcome};
use crate::model::id::Instance;
use crate::model::line::{GapCause, Line, LineBatch};
use crate::model::position::Position;
use crate::platform::{self, ReadFrom, TailItem};

/// A backfill that has read up to the head, but cannot join there, checks this often whether others need its
/// permit. Most join within milliseconds.
const PERMIT_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The open log of one run.
pub(super) struct Log {
    instance: Instance,
    chunker: Chunker,
    items: BoxStream<'static, Result<TailItem, platform::Error>>,
    /// The first item must be read before joining: it may be a gap.
    is_fresh: bool,
    /// A line of it was read.
    has_lines: bool,
    ambiguous: AmbiguousRange,
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
            ReadFrom::After(position) if self.since.is_none() => Some((&instance, position)),
            _ => None,
        };
        if let Err(stage) = self.acquire_permit(position).await {
            return stage;
        }
        match self.tail(instance.clone(), from, self.live.is_some()).await {
            Ok(tail) => {
                self.position = Some((instance.clone(), tail.start));
                Stage::Read(Log {
                    instance,
                    chunker: Chunker::new(tail.start),
                    items: tail.items,
                    // If the log does not start at the requested position, lines after that position are
                    // lost.
                    is_fresh: matches!(from, ReadFrom::After(position) if position != tail.start),
                    has_lines: false,
                    ambiguous: AmbiguousRange::default(),
                })
            }
            Err(error) => self.failed(instance, from, &error).await,
        }
    }

    /// Joins the ring if possible, otherwise reads the next item of the log.
    pub(super) async fn read(&mut self, mut log: Log) -> Stage {
        let attempt = if std::mem::take(&mut log.is_fresh) {
            JoinAttempt::IgnoreRing
        } else {
            self.try_join(&log.instance, log.chunker.position(), log.ambiguous)
        };
        match self.wait(&mut log, attempt).await {
            WaitEvent::Next(stage) => stage,
            WaitEvent::Quiet if self.limiter.is_exhausted(self.params.lease.owner()) => {
                Stage::AwaitRing(log.instance, log.chunker.position())
            }
            WaitEvent::RingChanged
            | WaitEvent::Quiet
            | WaitEvent::Item(Some(Ok(TailItem::FollowUnavailable))) => Stage::Read(log),
            WaitEvent::Item(Some(Ok(TailItem::Lines(batch)))) => {
                self.failures = Failures::default();
                self.limiter.throttle(self.params.lease.owner(), batch.data.len()).await;
                self.queue_lines(&mut log, batch);
                Stage::Read(log)
            }
            WaitEvent::Item(Some(Ok(TailItem::Gap(gap)))) => {
                log.chunker.skip_to(gap.after);
                // After a gap at the start, lines are counted from a known position.
                if log.has_lines && !gap.exact {
                    log.ambiguous.record_gap();
                }
                self.position = Some((log.instance.clone(), gap.after));
                self.queue_gap(&gap);
                Stage::Read(log)
            }
            WaitEvent::Item(Some(Err(error))) => {
                let from = ReadFrom::After(log.chunker.position());
                self.failed(log.instance, from, &error).await
            }
            WaitEvent::Item(None) => Stage::RunEnded(log.instance),
        }
    }

    /// Waits for the next item of the log, or a change of the ring.
    async fn wait(&mut self, log: &mut Log, attempt: JoinAttempt) -> WaitEvent {
        let is_ahead = matches!(attempt, JoinAttempt::AheadOfRing);
        let may_be_long = matches!(attempt, JoinAttempt::AheadOfRing | JoinAttempt::AtHead);
        let live = match attempt {
            JoinAttempt::Next(stage) => return WaitEvent::Next(stage),
            JoinAttempt::AheadOfRing | JoinAttempt::AtHead | JoinAttempt::ReadLog => self.live.as_mut(),
            JoinAttempt::IgnoreRing => None,
        };
        let Some(live) = live else {
            return WaitEvent::Item(log.items.next().await);
        };
        tokio::select! {
            biased;
            // Not while it is ahead: the ring is paced, and a backfill that reads on would stay ahead
            // forever.
            item = log.items.next(), if !is_ahead => WaitEvent::Item(item),
            () = live.reader.changed() => WaitEvent::RingChanged,
            () = tokio::time::sleep(PERMIT_CHECK_INTERVAL), if may_be_long => WaitEvent::Quiet,
        }
    }

    /// Waits for the ring without a permit: on a quiet log that may take long. If it cannot join at the new
    /// lines, it reads them from the log, after the same position, like a follower that resumes there.
    pub(super) async fn await_ring(&mut self, instance: Instance, position: Position) -> Stage {
        self.permit = None;
        loop {
            if let Some(live) = &mut self.live {
                live.reader.changed().await;
            }
            match self.try_join(&instance, position, AmbiguousRange::default()) {
                JoinAttempt::Next(stage) => return stage,
                JoinAttempt::AheadOfRing => {}
                JoinAttempt::AtHead | JoinAttempt::ReadLog | JoinAttempt::IgnoreRing => {
                    return Stage::Open(instance, ReadFrom::After(position));
                }
            }
        }
    }

    pub(super) fn try_join(
        &mut self,
        instance: &Instance,
        position: Position,
        ambiguous: AmbiguousRange,
    ) -> JoinAttempt {
        let Some(live) = self.live.as_mut() else {
            return JoinAttempt::IgnoreRing;
        };
        // With `since`, the ring may hold lines that are too old.
        let must_read = ambiguous.contains(position)
            || self.since.is_some_and(|since| live.reader.has_older_lines(instance, position, since));
        match live.reader.join(instance, position) {
            JoinOutcome::Joined(parts) if !must_read => {
                self.queue_chunks(instance, parts);
                JoinAttempt::Next(Stage::Done)
            }
            // Entries remain, but no new actor will send the lines after them.
            _ if live.reader.is_closed() && (self.params.is_gone() || live.reader.is_gone()) => {
                JoinAttempt::IgnoreRing
            }
            _ if live.reader.is_closed() => JoinAttempt::Next(Stage::End(BackfillEvent::ActorEnded)),
            JoinOutcome::AheadOfRing if !must_read => JoinAttempt::AheadOfRing,
            JoinOutcome::AtHead if !must_read => JoinAttempt::AtHead,
            _ => JoinAttempt::ReadLog,
        }
    }

    /// Queues the lines of a batch that are not older than `since`.
    fn queue_lines(&mut self, log: &mut Log, batch: LineBatch) {
        self.update_since(&log.instance, log.chunker.position());
        if let Some(line) = batch.lines.first() {
            log.ambiguous.record_line(log.chunker.position(), line.time);
            log.has_lines = true;
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
        let cause = if error.is_retryable() { GapCause::Source } else { GapCause::Rotated };
        self.queue_unknown_gap(cause);
        Stage::RunEnded(instance)
    }
}

/// Returns consecutive `lines` of a batch, whose data is at `bytes`.
fn sub_batch(batch: &LineBatch, bytes: Range<usize>, lines: &[Line]) -> LineBatch {
    let lines = lines.iter().map(|line| Line { end: line.end - bytes.start, ..*line }).collect();
    LineBatch { data: batch.data.slice(bytes), lines }
}
