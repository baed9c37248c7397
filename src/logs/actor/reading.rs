//! What an actor does with what its source answers: lines to chunks, chunks to the ring at their pace, losses and failures told.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Actor;
use super::source::{Source, SourceEvent};
use crate::logs::chunk::Chunker;
use crate::logs::frame::{Event, Gap};
use crate::model::line::{GapCause, LineBatch, SourceGap};
use crate::model::metrics::ReadKind;
use crate::model::position::Position;
use crate::platform::{self, ReadFrom, TailItem, TailRequest};

/// First pause after the source failed; doubled with each failure, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// Longest pause after the source failed: short enough for a follower not to give up.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// How often in a row a log is tried whose lease has ended, or whose replica is gone, before what is left of it is reported as
/// missing: for about five minutes, in which a node has come back if it does.
const LAST_TRIES: u32 = 60;

// === impl Actor ===

impl Actor {
    /// Begins to open the present run's log.
    pub(super) fn open(&mut self, from: ReadFrom) {
        let Some(run) = &self.run else { return };
        let request = TailRequest {
            lease: self.lease.clone(),
            replica: self.replica.clone(),
            instance: run.instance.clone(),
            from,
            follow: true,
        };
        self.world.metrics.source_opens.of(ReadKind::Live).increment(1);
        let platform = Arc::clone(&self.world.platform);
        self.source = Source::Opening(Box::pin(async move { platform.tail(request).await }));
    }

    /// Takes what the source answered.
    pub(super) fn read(&mut self, read: SourceEvent) {
        match read {
            SourceEvent::Again => match &self.run {
                Some(run) if self.is_begun() => self.open(ReadFrom::After(run.chunker.position())),
                _ => self.open(ReadFrom::Last(0)),
            },
            SourceEvent::Opened(Ok(tail)) => {
                if !self.is_begun()
                    && let Some(run) = &mut self.run
                {
                    run.chunker = Chunker::new(tail.start);
                    self.ring.begin(&run.instance, tail.start);
                    self.ring.has_unfinished(tail.unfinished);
                }
                self.source = Source::Reading(tail.items);
            }
            SourceEvent::Item(Some(Ok(TailItem::Lines(batch)))) => {
                (self.failures, self.last_tries) = (0, 0);
                self.lines(&batch);
            }
            SourceEvent::Item(Some(Ok(TailItem::Gap(gap)))) => self.source_gap(gap),
            SourceEvent::Item(Some(Ok(TailItem::FollowUnavailable))) => self.follow_unavailable(),
            SourceEvent::Opened(Err(error)) | SourceEvent::Item(Some(Err(error))) => self.failed(&error),
            SourceEvent::Item(None) => self.log_ended(),
        }
    }

    /// Whether the ring knows where the present run's log stands.
    fn is_begun(&self) -> bool {
        let tip = self.ring.head_instance();
        self.run.as_ref().is_some_and(|run| tip.as_ref() == Some(&run.instance))
    }

    fn lines(&mut self, batch: &LineBatch) {
        let Some(run) = &mut self.run else { return };
        let now = Instant::now();
        let metrics = &self.world.metrics;
        metrics.lines_in.increment(batch.lines.iter().filter(|line| line.ends).count() as u64);
        metrics.bytes_in.increment(batch.data.len() as u64);
        if run.chunker.is_empty() {
            run.read_at = now;
        }
        if let Some(line) = batch.lines.last() {
            run.last_time = Some(line.time);
        }
        run.gap_was_told = false;
        run.chunker.push(batch, &mut self.chunks);
        if now >= self.paced_until {
            self.flush();
            return;
        }
        if !self.chunks.is_empty() {
            self.ring.push_lines(&run.instance, &mut self.chunks, run.read_at);
            run.read_at = now;
        }
        self.due = (!run.chunker.is_empty()).then_some(self.paced_until);
    }

    /// Sends what waits; what comes within the pace from now on waits.
    pub(super) fn flush(&mut self) {
        self.due = None;
        let Some(run) = &mut self.run else { return };
        self.chunks.extend(run.chunker.flush());
        if self.chunks.is_empty() {
            return;
        }
        self.ring.push_lines(&run.instance, &mut self.chunks, run.read_at);
        self.paced_until = Instant::now() + self.world.limits.pace;
    }

    fn source_gap(&mut self, gap: SourceGap) {
        self.flush();
        let Some(run) = &mut self.run else { return };
        let SourceGap { cause, lines, bytes, exact, after } = gap;
        run.chunker.skip_to(after);
        let told = Gap { cause, lines, bytes, exact, from: run.last_time, to: None };
        self.ring.push_gap(&run.instance, told, after);
    }

    /// Reports that the log cannot be followed, unless all followers know.
    fn follow_unavailable(&mut self) {
        if std::mem::take(&mut self.has_new_followers) {
            self.flush();
            let instance = self.run.as_ref().map(|run| &run.instance);
            self.ring.push_event(instance, &Event::follow_unavailable());
        }
    }

    /// Lines may be missing behind the newest one.
    pub(super) fn unknown_gap(&mut self, cause: GapCause) {
        let Some(run) = &self.run else { return };
        let after = run.chunker.position();
        self.source_gap(SourceGap { cause, lines: 0, bytes: 0, exact: false, after });
    }

    fn failed(&mut self, error: &platform::Error) {
        self.flush();
        self.world.count_error(error);
        self.last_tries = if self.is_over() { self.last_tries.saturating_add(1) } else { 0 };
        let (lease, replica) = (&self.lease, &self.replica);
        if error.is_retryable() && self.last_tries < LAST_TRIES {
            let pause = RETRY_MAX.min(RETRY_FIRST * 2_u32.saturating_pow(self.failures));
            self.failures = self.failures.saturating_add(1);
            tracing::warn!(%lease, %replica, error = error as &dyn std::error::Error, ?pause, "source failed, will be opened again");
            self.source = Source::Retry(Instant::now() + pause);
            return;
        }
        tracing::warn!(%lease, %replica, error = error as &dyn std::error::Error, "log is not readable");
        self.unreadable();
    }

    /// Says once that lines may be missing. A run that goes on may yet be readable: its log may have been removed, or replaced.
    fn unreadable(&mut self) {
        let slot = self.slot().unwrap_or_default();
        let is_begun = self.is_begun();
        let Some(run) = &mut self.run else { return };
        let goes_on =
            self.last_tries < LAST_TRIES && slot.run(&run.instance).is_some_and(|run| run.end.is_none());
        if !is_begun {
            self.ring.begin(&run.instance, Position::START);
        }
        if !std::mem::replace(&mut run.gap_was_told, true) {
            self.unknown_gap(GapCause::Source);
        }
        if goes_on {
            self.source = Source::Retry(Instant::now() + RETRY_MAX);
        } else {
            self.log_ended();
        }
    }
}
