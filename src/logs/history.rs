//! A read of lines that are older than the ring, for one follower, until it meets the ring.
//!
//! It is paced by its client, never dropped for slowness, and bounded by permits. Where the follower stays for what comes, it
//! reads on until its position lies in the ring and goes on there: not a line is missing or repeated at that seam.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::chunk::{Chunk, Chunker};
use super::follow::Extent;
use super::frame::{self, Event, Gap, Representation};
use super::message::Message;
use super::permits::{HistoryPermit, HistoryPermits};
use super::replica::{Subscription, World};
use super::ring::Join;
use super::vague::Vague;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::line::GapCause;
use crate::model::line::{Line, LineBatch, SourceGap};
use crate::model::metrics::Read;
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaView};
use crate::platform::{self, From, TailItem, TailRequest};

mod begin;

/// Pause before a log that could not be read is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// How often in a row a log is tried before what is left of it is reported as missing.
const TRIES: u32 = 10;

/// Who has read as far as the ring reaches, and can go on neither there nor in the log, is asked so often whether somebody else is in
/// need of its permit. Most often it can go on within milliseconds.
const AT_REST: Duration = Duration::from_secs(5);

/// One follower's own read of one replica.
pub struct Reading {
    scope: Scope,
    permits: HistoryPermits,
    permit: Option<HistoryPermit>,
    live: Option<Subscription>,
    stage: Stage,
    /// What is ready to go out.
    ready: VecDeque<Ready>,
    /// The position behind everything that was sent or is ready.
    at: Option<(Instance, Position)>,
    /// Time of the newest line sent or ready.
    last_time: Option<LogTime>,
    failures: u32,
    /// Lines older than this are left out; until the first one that is not.
    since: Option<LogTime>,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The world to read from.
    pub world: World,
    /// The lease.
    pub lease: LeaseId,
    /// The replica.
    pub replica: Replica,
    /// What runs.
    pub view: watch::Receiver<Arc<LeaseView>>,
    /// How much.
    pub extent: Extent,
    /// Or behind which position.
    pub resume: Option<(Instance, Position)>,
    /// How lines look.
    pub representation: Representation,
    /// Whether the replica appeared while the follower was there: its first run is news.
    pub newcomer: bool,
}

/// What comes out of it.
#[derive(Debug)]
pub enum Step {
    /// A message to send.
    Send(Message),
    /// The rest is in the ring, from where the reader stands.
    Join(Box<Subscription>),
    /// The actor ended before it was met: ask for another and go on behind what was sent.
    Orphaned,
    /// Everything that was asked for was sent.
    End,
}

enum Ready {
    Chunk(Instance, Chunk),
    Message(Message),
}

enum Stage {
    Begin,
    Open(Instance, From),
    Read(Log),
    /// This run's log was read up to here, which is as far as the ring reaches; it is not open any more.
    Aside(Instance, Position),
    /// This run's log was read to its end.
    RunEnded(Instance),
    Join,
    Orphaned,
    End,
}

struct Log {
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
enum Joined {
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

// === impl Scope ===

impl Scope {
    /// Whether the replica is no longer part of the lease, or the lease has ended: what is not there yet will not come.
    pub(super) fn is_gone(&self) -> bool {
        let view = self.view.borrow();
        let gone = view.ended || view.replica(&self.replica).is_none();
        drop(view);
        gone || self.view.has_changed().is_err()
    }
}

// === impl Reading ===

impl Reading {
    /// A read that has not begun. Without `live` it ends where the log ends.
    pub fn new(scope: Scope, permits: HistoryPermits, live: Option<Subscription>) -> Self {
        Self {
            at: scope.resume.clone(),
            scope,
            permits,
            permit: None,
            live,
            stage: Stage::Begin,
            ready: VecDeque::new(),
            last_time: None,
            failures: 0,
            since: None,
        }
    }

    /// As a stream; it ends after any step but [`Step::Send`].
    pub fn into_stream(self) -> BoxStream<'static, Step> {
        let steps = futures_util::stream::unfold(Some(self), |reading| async {
            let mut reading = reading?;
            let step = reading.step().await;
            let more = matches!(step, Step::Send(_));
            Some((step, more.then_some(reading)))
        });
        steps.boxed()
    }

    async fn step(&mut self) -> Step {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                return Step::Send(self.message(ready));
            }
            match std::mem::replace(&mut self.stage, Stage::End) {
                Stage::Begin => self.stage = self.begin().await,
                Stage::Open(instance, from) => self.stage = self.open(instance, from).await,
                Stage::Read(log) => self.stage = self.read(log).await,
                Stage::Aside(instance, position) => self.stage = self.aside(instance, position).await,
                Stage::RunEnded(instance) => self.stage = self.go_on(instance).await,
                Stage::Join => {
                    return self.live.take().map_or(Step::End, |live| Step::Join(Box::new(live)));
                }
                Stage::Orphaned => return Step::Orphaned,
                Stage::End => return Step::End,
            }
        }
    }

    fn slot(&self) -> ReplicaView {
        self.scope.view.borrow().replica(&self.scope.replica).cloned().unwrap_or_default()
    }

    /// How many lines a run's log has, as far as `enough`. None, if it cannot be read.
    async fn count(&mut self, instance: &Instance, enough: u64) -> u64 {
        let lines = loop {
            match self.try_count(instance, enough).await {
                Ok(lines) => break lines,
                Err(error) if self.may_try_again(&error).await => {}
                Err(_) => break 0,
            }
        };
        self.failures = 0;
        lines
    }

    async fn try_count(&mut self, instance: &Instance, enough: u64) -> Result<u64, platform::Error> {
        let mut items = self.tail(instance.clone(), From::Last(enough), false).await?.items;
        let mut lines = 0;
        while let Some(item) = items.next().await {
            if let TailItem::Lines(batch) = item? {
                self.permits.pace(self.scope.lease.owner(), batch.data.len()).await;
                lines += batch.lines.iter().filter(|line| line.ends).count() as u64;
            }
        }
        Ok(lines)
    }

    async fn tail(
        &mut self,
        instance: Instance,
        from: From,
        follow: bool,
    ) -> Result<platform::Tail, platform::Error> {
        if self.permit.is_none() {
            // Never closed; and if it were, reading on without a permit would be the lesser evil.
            self.permit = self.permits.acquire(self.scope.lease.owner()).await.ok();
        }
        let Scope { world, lease, replica, .. } = &self.scope;
        world.metrics.source_opens.of(Read::History).increment(1);
        let request = TailRequest { lease: lease.clone(), replica: replica.clone(), instance, from, follow };
        world.platform.tail(request).await
    }

    async fn open(&mut self, instance: Instance, from: From) -> Stage {
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

    async fn read(&mut self, mut log: Log) -> Stage {
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
                self.failures = 0;
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
        let (is_ahead, is_level) = (matches!(joined, Joined::Wait), matches!(joined, Joined::Level));
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
            () = tokio::time::sleep(AT_REST), if is_level => Woken::Rest,
        }
    }

    /// Waits for the ring to move, and lets others read meanwhile: on a quiet log that may be long. What it moves by is read in the
    /// log, if it cannot be joined there: behind the same position, as a follower would who was cut off here.
    async fn aside(&mut self, instance: Instance, position: Position) -> Stage {
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
    fn try_join(&mut self, instance: &Instance, position: Position, vague: Vague) -> Joined {
        let Some(live) = self.live.as_mut() else {
            return Joined::Alone;
        };
        let is_vague = vague.covers(position);
        match live.reader.join(instance, position) {
            Join::Here(rests) if !is_vague => {
                self.ready.extend(rests.into_iter().map(|chunk| Ready::Chunk(instance.clone(), chunk)));
                Joined::Stage(Stage::Join)
            }
            // It still holds what it held; but nobody else will tell the rest.
            _ if live.reader.is_closed() && self.scope.is_gone() => Joined::Alone,
            _ if live.reader.is_closed() => Joined::Stage(Stage::Orphaned),
            Join::Ahead if !is_vague => Joined::Wait,
            Join::Level if !is_vague => Joined::Level,
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
        if self.may_try_again(error).await {
            return Stage::Open(instance, from);
        }
        let cause = if error.is_retryable() { GapCause::Source } else { GapCause::Rotated };
        self.unknown_gap(cause);
        Stage::RunEnded(instance)
    }

    /// Whether it is worth while to try again what has failed so; after a pause.
    async fn may_try_again(&mut self, error: &platform::Error) -> bool {
        let (lease, replica) = (&self.scope.lease, &self.scope.replica);
        self.scope.world.count_error(error);
        tracing::warn!(%lease, %replica, error = error as &dyn std::error::Error, "history read failed");
        self.failures += 1;
        let again = error.is_retryable() && self.failures < TRIES;
        if again {
            tokio::time::sleep(RETRY).await;
        }
        again
    }

    /// What comes behind a run that was read to its end.
    async fn go_on(&mut self, instance: Instance) -> Stage {
        self.failures = 0;
        if let Extent::Previous(_) = self.scope.extent {
            return Stage::End;
        }
        loop {
            if let Some(live) = &mut self.live {
                let at = self.at.as_ref().filter(|(run, _)| *run == instance).map(|(_, position)| *position);
                match live.reader.join_end(&instance, at.unwrap_or(Position::START)) {
                    Join::Here(_) => return Stage::Join,
                    _ if !live.reader.is_closed() || self.scope.is_gone() => {}
                    _ => return Stage::Orphaned,
                }
            }
            let slot = self.slot();
            // The newest run is for the ring to tell of; earlier ones it does not know.
            if let Some(next) = slot.run_behind(&instance) {
                if let Some(event) = slot.run(&instance).and_then(Event::ended) {
                    self.tell(&event);
                }
                self.tell(&Event::started(next));
                if instance.skips_to(&next.instance) {
                    self.at = Some((next.instance.clone(), Position::START));
                    self.unknown_gap(GapCause::Rotated);
                }
                return Stage::Open(next.instance.clone(), From::Start);
            }
            let Some(live) = &mut self.live else { return Stage::End };
            if live.reader.is_closed() {
                return self.over(&slot, &instance);
            }
            // Nothing is read meanwhile, and that may be long.
            self.permit = None;
            tokio::select! {
                () = moved(live) => {}
                changed = self.scope.view.changed() => if changed.is_err() { return Stage::Orphaned },
            }
        }
    }

    /// The replica is gone, and `instance` was the last run of it that can be read. Says what the ring would have said.
    fn over(&mut self, slot: &ReplicaView, instance: &Instance) -> Stage {
        if let Some(event) = slot.run(instance).and_then(Event::ended) {
            self.tell(&event);
        }
        let newest = self.live.as_ref().and_then(|live| live.reader.ring().tip_instance());
        if newest.is_some_and(|newest| newest != *instance) {
            self.unknown_gap(GapCause::Rotated);
        }
        self.tell(&Event::gone());
        Stage::End
    }

    /// Lines may be missing here.
    fn unknown_gap(&mut self, cause: GapCause) {
        let after = self.at.as_ref().map_or(Position::START, |(_, position)| *position);
        self.gap(SourceGap { cause, lines: 0, bytes: 0, exact: false, after });
    }

    fn gap(&mut self, gap: SourceGap) {
        let SourceGap { cause, lines, bytes, exact, .. } = gap;
        let gap = Gap { cause, lines, bytes, exact, from: self.last_time, to: None };
        let at = self.at.clone();
        let place = at.as_ref().map(|(instance, position)| (instance, *position));
        let bytes = frame::gap(&self.scope.replica, place, &gap);
        self.ready.push_back(Ready::Message(Message { at, gap: Some(gap), ..Message::bare(bytes) }));
    }

    fn tell(&mut self, event: &Event) {
        let message = Message::bare(frame::event(&self.scope.replica, event));
        self.ready.push_back(Ready::Message(message));
    }

    fn message(&self, ready: Ready) -> Message {
        match ready {
            Ready::Message(message) => message,
            Ready::Chunk(instance, chunk) => {
                Message::of_chunk(&self.scope.replica, &instance, &chunk, self.scope.representation)
            }
        }
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("replica", &self.scope.replica)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

async fn moved(live: &mut Subscription) {
    std::future::poll_fn(|cx| live.reader.poll_moved(cx)).await;
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
