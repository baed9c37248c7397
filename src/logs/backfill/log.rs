//! Reading the log of one run: until it ends, or until the ring can be joined.

use std::ops::Range;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;

use super::{Backfill, Failures, Ready, Stage, moved};
use crate::logs::ambiguity::AmbiguousRange;
use crate::logs::chunk::Chunker;
use crate::logs::ring::JoinOutcome;
use crate::model::id::Instance;
use crate::model::line::{GapCause, Line, LineBatch};
use crate::model::position::Position;
use crate::platform::{self, ReadFrom, TailItem};

/// Who has read as far as the ring reaches or farther, and can go on neither there nor in the log, is asked so often whether somebody
/// else is in need of its permit. Most often it can go on within milliseconds.
const AT_REST: Duration = Duration::from_secs(5);

/// The log of one run, open.
pub(super) struct Log {
    instance: Instance,
    chunker: Chunker,
    items: BoxStream<'static, Result<TailItem, platform::Error>>,
    /// Whether the first item must be read before anything else: it may tell of a gap.
    is_fresh: bool,
    /// Whether a line of it was read.
    has_lines: bool,
    vague: AmbiguousRange,
}

/// Whether the ring was joined.
pub(super) enum Joined {
    /// This is what to do now.
    Stage(Stage),
    /// Not before it has moved.
    Wait,
    /// Not here, though there is nothing in it behind this position.
    Level,
    /// No.
    No,
    /// No, and it will not move any more, or there is none.
    Alone,
    /// Not before the log's first item was read.
    First,
}

/// What woke a wait.
enum Woken {
    /// There was nothing to wait for.
    Joined(Stage),
    Item(Option<Result<TailItem, platform::Error>>),
    Moved,
    /// Nothing did, for [`AT_REST`].
    Rest,
}

// === impl Reading ===

impl Backfill {
    /// Opens the log of a run.
    pub(super) async fn open(&mut self, instance: Instance, from: ReadFrom) -> Stage {
        let place = match from {
            // The ring may hold lines that are too old to be wanted.
            ReadFrom::After(position) if self.since.is_none() => Some((&instance, position)),
            _ => None,
        };
        if let Err(stage) = self.permitted(place).await {
            return stage;
        }
        match self.tail(instance.clone(), from, self.live.is_some()).await {
            Ok(tail) => {
                self.at = Some((instance.clone(), tail.start));
                let chunker = Chunker::new(tail.start);
                // Lines behind the position asked for are gone if it does not begin there.
                let is_fresh = matches!(from, ReadFrom::After(position) if position != tail.start);
                let (has_lines, vague) = (false, AmbiguousRange::default());
                Stage::Read(Log { instance, chunker, items: tail.items, is_fresh, has_lines, vague })
            }
            Err(error) => self.failed(instance, from, &error).await,
        }
    }

    /// Reads what comes next in it, unless it is time to go on elsewhere.
    pub(super) async fn read(&mut self, mut log: Log) -> Stage {
        let joined = if std::mem::take(&mut log.is_fresh) {
            Joined::First
        } else {
            self.try_join(&log.instance, log.chunker.position(), log.vague)
        };
        match self.wait(&mut log, joined).await {
            Woken::Joined(stage) => stage,
            Woken::Rest if self.permits.are_used_up(self.scope.lease.owner()) => {
                Stage::Aside(log.instance, log.chunker.position())
            }
            Woken::Moved | Woken::Rest | Woken::Item(Some(Ok(TailItem::FollowUnavailable))) => {
                Stage::Read(log)
            }
            Woken::Item(Some(Ok(TailItem::Lines(batch)))) => {
                self.failures = Failures::default();
                self.permits.throttle(self.scope.lease.owner(), batch.data.len()).await;
                self.lines(&mut log, batch);
                Stage::Read(log)
            }
            Woken::Item(Some(Ok(TailItem::Gap(gap)))) => {
                log.chunker.skip_to(gap.after);
                // Behind one that comes first, lines are counted from a place that is known.
                if log.has_lines && !gap.exact {
                    log.vague.gap();
                }
                self.at = Some((log.instance.clone(), gap.after));
                self.gap(gap);
                Stage::Read(log)
            }
            Woken::Item(Some(Err(error))) => {
                let from = ReadFrom::After(log.chunker.position());
                self.failed(log.instance, from, &error).await
            }
            Woken::Item(None) => Stage::RunEnded(log.instance),
        }
    }

    /// Waits for what comes next: of the log, or in the ring.
    async fn wait(&mut self, log: &mut Log, joined: Joined) -> Woken {
        let is_ahead = matches!(joined, Joined::Wait);
        let rests = matches!(joined, Joined::Wait | Joined::Level);
        match joined {
            Joined::Stage(stage) => return Woken::Joined(stage),
            Joined::Wait | Joined::Level | Joined::No => {}
            Joined::Alone | Joined::First => return Woken::Item(log.items.next().await),
        }
        let Some(live) = &mut self.live else {
            return Woken::Item(log.items.next().await);
        };
        tokio::select! {
            biased;
            // Were it to read on while it is ahead, it would stay ahead of the ring, which is paced, for ever.
            item = log.items.next(), if !is_ahead => Woken::Item(item),
            () = moved(live) => Woken::Moved,
            () = tokio::time::sleep(AT_REST), if rests => Woken::Rest,
        }
    }

    /// Waits for the ring to move, and lets others read meanwhile: on a quiet log that may be long. What it moves by is read in the
    /// log, if it cannot be joined there: behind the same position, as a follower would who was cut off here.
    pub(super) async fn aside(&mut self, instance: Instance, position: Position) -> Stage {
        self.permit = None;
        loop {
            if let Some(live) = &mut self.live {
                moved(live).await;
            }
            match self.try_join(&instance, position, AmbiguousRange::default()) {
                Joined::Stage(stage) => return stage,
                Joined::Wait => {}
                Joined::Level | Joined::No | Joined::Alone | Joined::First => {
                    return Stage::Open(instance, ReadFrom::After(position));
                }
            }
        }
    }

    /// Goes on in the ring, if that is possible at this position.
    pub(super) fn try_join(
        &mut self,
        instance: &Instance,
        position: Position,
        vague: AmbiguousRange,
    ) -> Joined {
        let Some(live) = self.live.as_mut() else {
            return Joined::Alone;
        };
        // The ring may hold lines that are too old to be wanted.
        let must_read = vague.covers(position)
            || self.since.is_some_and(|since| live.reader.holds_older(instance, position, since));
        match live.reader.join(instance, position) {
            JoinOutcome::Joined(rests) if !must_read => {
                self.ready.extend(rests.into_iter().map(|chunk| Ready::Chunk(instance.clone(), chunk)));
                Joined::Stage(Stage::Join)
            }
            // It still holds what it held; but nobody else will tell the rest.
            _ if live.reader.is_closed() && (self.scope.is_gone() || live.reader.is_gone()) => Joined::Alone,
            _ if live.reader.is_closed() => Joined::Stage(Stage::Orphaned),
            JoinOutcome::AheadOfRing if !must_read => Joined::Wait,
            JoinOutcome::AtHead if !must_read => Joined::Level,
            JoinOutcome::Joined(_)
            | JoinOutcome::ReadLog
            | JoinOutcome::AtHead
            | JoinOutcome::AheadOfRing => Joined::No,
        }
    }

    fn lines(&mut self, log: &mut Log, batch: LineBatch) {
        self.end_history(&log.instance, log.chunker.position());
        if let Some(line) = batch.lines.first() {
            log.vague.line(log.chunker.position(), line.time);
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
                        log.chunker.push(&part(&batch, start..last.end, lines), &mut chunks);
                        self.last_time = Some(last.time);
                    }
                    start = last.end;
                }
            }
        }
        chunks.extend(log.chunker.flush());
        self.ready.extend(chunks.into_iter().map(|chunk| Ready::Chunk(log.instance.clone(), chunk)));
        self.at = Some((log.instance.clone(), log.chunker.position()));
    }

    /// Stops leaving out older lines, if the log was read as far as it went when its live part was opened.
    fn end_history(&mut self, instance: &Instance, position: Position) {
        let Some(live) = self.live.as_ref().filter(|_| self.since.is_some()) else { return };
        if self.live_from.is_none() {
            self.live_from = live.reader.head();
        }
        if self.live_from.as_ref().is_some_and(|(run, from)| run == instance && *from <= position) {
            self.since = None;
        }
    }

    async fn failed(&mut self, instance: Instance, from: ReadFrom, error: &platform::Error) -> Stage {
        if self.may_try_again(&instance, error).await {
            return Stage::Open(instance, from);
        }
        if self.live.is_none() && error.is_retryable() && !self.is_removed(&instance).await {
            return Stage::Unreadable;
        }
        let cause = if error.is_retryable() { GapCause::Source } else { GapCause::Rotated };
        self.unknown_gap(cause);
        Stage::RunEnded(instance)
    }
}

/// Neighbouring `lines` of a batch, whose bytes are `bytes` of it.
fn part(batch: &LineBatch, bytes: Range<usize>, lines: &[Line]) -> LineBatch {
    let lines = lines.iter().map(|line| Line { end: line.end - bytes.start, ..*line }).collect();
    LineBatch { data: batch.data.slice(bytes), lines }
}
