//! Reading the log of one run: until it ends, or until the ring can be joined.

use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;

use super::{Failures, Reading, Ready, Stage, moved};
use crate::logs::chunk::Chunker;
use crate::logs::ring::Join;
use crate::logs::vague::Vague;
use crate::model::id::Instance;
use crate::model::line::{GapCause, Line, LineBatch};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::platform::{self, From, TailItem};

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
    vague: Vague,
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

impl Reading {
    /// Opens the log of a run.
    pub(super) async fn open(&mut self, instance: Instance, from: From) -> Stage {
        let place = match from {
            // The ring knows nothing of lines that are too old to be wanted.
            From::After(position) if self.since.is_none() => Some((&instance, position)),
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
                let is_fresh = matches!(from, From::After(position) if position != tail.start);
                let (has_lines, vague) = (false, Vague::default());
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
            Woken::Moved | Woken::Rest => Stage::Read(log),
            Woken::Item(Some(Ok(TailItem::Lines(batch)))) => {
                self.failures = Failures::default();
                self.permits.pace(self.scope.lease.owner(), batch.data.len()).await;
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
                let from = From::After(log.chunker.position());
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
            match self.try_join(&instance, position, Vague::default()) {
                Joined::Stage(stage) => return stage,
                Joined::Wait => {}
                Joined::Level | Joined::No | Joined::Alone | Joined::First => {
                    return Stage::Open(instance, From::After(position));
                }
            }
        }
    }

    /// Goes on in the ring, if that is possible at this position.
    pub(super) fn try_join(&mut self, instance: &Instance, position: Position, vague: Vague) -> Joined {
        let Some(live) = self.live.as_mut() else {
            return Joined::Alone;
        };
        // The ring knows nothing of lines that are too old to be wanted.
        let must_read =
            vague.covers(position) || self.since.is_some() && live.reader.holds_behind(instance, position);
        match live.reader.join(instance, position) {
            Join::Here(rests) if !must_read => {
                self.ready.extend(rests.into_iter().map(|chunk| Ready::Chunk(instance.clone(), chunk)));
                Joined::Stage(Stage::Join)
            }
            // It still holds what it held; but nobody else will tell the rest.
            _ if live.reader.is_closed() && self.scope.is_gone() => Joined::Alone,
            _ if live.reader.is_closed() => Joined::Stage(Stage::Orphaned),
            Join::Ahead if !must_read => Joined::Wait,
            Join::Level if !must_read => Joined::Level,
            Join::Here(_) | Join::ReadOn | Join::Level | Join::Ahead => Joined::No,
        }
    }

    fn lines(&mut self, log: &mut Log, batch: LineBatch) {
        let batch = match self.since.map(|since| not_older(&batch, since)) {
            None => batch,
            Some(Some((newer, start))) => {
                self.since = None;
                log.chunker = Chunker::new(start.unwrap_or_else(|| log.chunker.position()));
                newer
            }
            Some(None) => {
                if let Some(line) = batch.lines.last() {
                    log.chunker = Chunker::new(line.after);
                }
                return;
            }
        };
        if let Some(line) = batch.lines.first() {
            log.vague.line(log.chunker.position(), line.time);
            log.has_lines = true;
        }
        let mut chunks = Vec::new();
        log.chunker.push(&batch, &mut chunks);
        chunks.extend(log.chunker.flush());
        self.ready.extend(chunks.into_iter().map(|chunk| Ready::Chunk(log.instance.clone(), chunk)));
        self.at = Some((log.instance.clone(), log.chunker.position()));
        self.last_time = batch.lines.last().map(|line| line.time).or(self.last_time);
    }

    async fn failed(&mut self, instance: Instance, from: From, error: &platform::Error) -> Stage {
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

/// The batch from its first line on that is not older than `since`, and the position before that line if some were left out.
fn not_older(batch: &LineBatch, since: LogTime) -> Option<(LineBatch, Option<Position>)> {
    let first = batch.lines.iter().position(|line| line.time >= since)?;
    let Some(before) = first.checked_sub(1).map(|index| batch.lines[index]) else {
        return Some((batch.clone(), None));
    };
    let lines = batch.lines[first..].iter().map(|line| Line { end: line.end - before.end, ..*line });
    Some((LineBatch { data: batch.data.slice(before.end..), lines: lines.collect() }, Some(before.after)))
}
