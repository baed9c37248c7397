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
use tokio::time::Instant;

use self::log::Log;
use super::actor::{ActorContext, Subscription};
use super::backfill_limits::{BackfillLimiter, BackfillPermit};
use super::chunk::Chunk;
use super::frame::{self, Event, Gap, Representation};
use super::message::Message;
use super::request::ReadRange;
use super::ring::JoinOutcome;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::line::{GapCause, SourceGap};
use crate::model::metrics::ReadKind;
use crate::model::position::Position;
use crate::model::quota::Exceeded;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView};
use crate::platform::{self, ReadFrom, TailRequest};
use crate::stream::StreamControl;

mod begin;
mod log;
mod runs;

/// First pause before a log that could not be read is tried again; doubled with each failure, up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);

/// Longest pause before a log is tried again. Only a follower fails often enough to wait so long.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// A read without follow reports a log as unreadable after this time. A restarted kubelet or container runtime is back sooner, and
/// a caller that waits for an answer still waits.
const UNREADABLE_AFTER: Duration = Duration::from_secs(5);

/// A follower's read gives up a log so long after its replica has gone: as long as the actor does.
const GONE_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// One follower's own read of one replica.
pub struct Backfill {
    scope: BackfillParams,
    permits: BackfillLimiter,
    permit: Option<BackfillPermit>,
    /// Into which it is read.
    stream: Arc<StreamControl>,
    live: Option<Subscription>,
    stage: Stage,
    /// What is ready to go out.
    ready: VecDeque<Ready>,
    /// The position behind everything that was sent or is ready.
    at: Option<(Instance, Position)>,
    /// Time of the newest line sent or ready.
    last_time: Option<LogTime>,
    failures: Failures,
    /// Set until history ends: older lines are left out wherever they lie, since a clock may have been set back.
    since: Option<LogTime>,
    /// Where history ends if the log is followed, once the ring tells: behind it lines are live, and not left out for their time.
    live_from: Option<(Instance, Position)>,
}

/// Failures in a row of the log that is read.
#[derive(Clone, Copy, Debug, Default)]
struct Failures {
    count: u32,
    /// When the first of them was.
    since: Option<Instant>,
    /// When the first of them was after which the replica was found to have gone.
    gone_since: Option<Instant>,
}

/// What to read.
#[derive(Clone, Debug)]
pub struct BackfillParams {
    /// The world to read from.
    pub world: ActorContext,
    /// The lease.
    pub lease: LeaseId,
    /// The replica.
    pub replica: Replica,
    /// What runs.
    pub view: watch::Receiver<Arc<LeaseView>>,
    /// How much.
    pub extent: ReadRange,
    /// Or behind which position.
    pub resume: Option<(Instance, Position)>,
    /// How lines look.
    pub representation: Representation,
    /// Whether the replica appeared while the follower was there: its first run is news.
    pub newcomer: bool,
}

/// What comes out of it.
#[derive(Debug)]
pub enum BackfillEvent {
    /// A message to send.
    Send(Message),
    /// The rest is in the ring, from where the reader stands.
    Join(Box<Subscription>),
    /// The actor ended before it was met: ask for another and go on behind what was sent.
    Orphaned,
    /// It may not be read: a quota is used up, and nothing was sent.
    Refused(Box<Exceeded>),
    /// The log cannot be read at the moment, and the caller does not stay for it. It may be asked for again.
    Unreadable,
    /// Everything that was asked for was sent.
    End,
}

enum Ready {
    Chunk(Instance, Chunk),
    Message(Message),
}

enum Stage {
    Begin,
    Open(Instance, ReadFrom),
    Read(Log),
    /// This run's log was read up to here, which is as far as the ring reaches; it is not open any more.
    Aside(Instance, Position),
    /// This run's log was read to its end.
    RunEnded(Instance),
    Join,
    Orphaned,
    Refused(Box<Exceeded>),
    Unreadable,
    End,
}

// === impl Scope ===

impl BackfillParams {
    /// Whether the replica is no longer part of the lease, or the lease has ended: what is not there yet will not come.
    pub(super) fn is_gone(&self) -> bool {
        let view = self.view.borrow();
        let gone = view.ended || view.replica(&self.replica).is_none();
        drop(view);
        gone || self.view.has_changed().is_err()
    }
}

// === impl Reading ===

impl Backfill {
    /// A read into `stream` that has not begun. Without `live` it ends where the log ends.
    pub fn new(
        scope: BackfillParams,
        permits: BackfillLimiter,
        stream: Arc<StreamControl>,
        live: Option<Subscription>,
    ) -> Self {
        Self {
            at: scope.resume.clone(),
            scope,
            permits,
            permit: None,
            stream,
            live,
            stage: Stage::Begin,
            ready: VecDeque::new(),
            last_time: None,
            failures: Failures::default(),
            since: None,
            live_from: None,
        }
    }

    /// As a stream; it ends after any step but [`BackfillEvent::Send`].
    pub fn into_stream(self) -> BoxStream<'static, BackfillEvent> {
        let steps = futures_util::stream::unfold(Some(self), |reading| async {
            let mut reading = reading?;
            let step = reading.step().await;
            let more = matches!(step, BackfillEvent::Send(_));
            Some((step, more.then_some(reading)))
        });
        steps.boxed()
    }

    async fn step(&mut self) -> BackfillEvent {
        loop {
            if let Some(ready) = self.ready.pop_front() {
                self.stream.mark_admitted();
                return BackfillEvent::Send(self.message(ready));
            }
            match std::mem::replace(&mut self.stage, Stage::End) {
                Stage::Begin => self.stage = self.begin().await,
                Stage::Open(instance, from) => self.stage = self.open(instance, from).await,
                Stage::Read(log) => self.stage = self.read(log).await,
                Stage::Aside(instance, position) => self.stage = self.aside(instance, position).await,
                Stage::RunEnded(instance) => self.stage = self.go_on(instance).await,
                Stage::Join => {
                    return self
                        .live
                        .take()
                        .map_or(BackfillEvent::End, |live| BackfillEvent::Join(Box::new(live)));
                }
                Stage::Orphaned => return BackfillEvent::Orphaned,
                Stage::Refused(exceeded) => return BackfillEvent::Refused(exceeded),
                Stage::Unreadable => return BackfillEvent::Unreadable,
                Stage::End => return BackfillEvent::End,
            }
        }
    }

    fn slot(&self) -> ReplicaView {
        self.scope.view.borrow().replica(&self.scope.replica).cloned().unwrap_or_default()
    }

    /// The slot with the runs only whose log can be opened.
    fn readable_slot(&self) -> ReplicaView {
        let mut slot = self.slot();
        slot.runs.retain(|run| !run.log_is_gone);
        slot
    }

    /// Records that the log of `instance` could not be read. Returns whether to try again, after a pause.
    ///
    /// A follower waits for the newest run's log as long as the replica is there, since the actor does, too. An older run's log
    /// does not hold up the newer lines for longer than [`UNREADABLE_AFTER`].
    async fn may_try_again(&mut self, instance: &Instance, error: &platform::Error) -> bool {
        self.scope.world.count_error(error);
        let (now, failures) = (Instant::now(), &mut self.failures);
        failures.count = failures.count.saturating_add(1);
        if failures.count.is_power_of_two() {
            let (lease, replica, failures) = (&self.scope.lease, &self.scope.replica, failures.count);
            tracing::warn!(%lease, %replica, failures, error = error as &dyn std::error::Error, "failed to read history");
        }
        let tried_for = now - *failures.since.get_or_insert(now);
        let is_newest = self.slot().newest().is_none_or(|newest| newest.instance == *instance);
        let is_over = if self.live.is_none() || !is_newest {
            tried_for >= UNREADABLE_AFTER
        } else if self.scope.is_gone() {
            now - *self.failures.gone_since.get_or_insert(now) >= GONE_PATIENCE
        } else {
            false
        };
        if is_over || !error.is_retryable() {
            return false;
        }
        // Others may read meanwhile.
        self.permit = None;
        tokio::time::sleep(self.failures.pause()).await;
        true
    }

    /// Whether the newest run of the pod of `instance` can be read while `instance` cannot: then its node answers, and the log of
    /// `instance` was removed.
    async fn is_removed(&mut self, instance: &Instance) -> bool {
        let newest = self.slot().newest().map(|run| run.instance.clone());
        let later = newest.filter(|newest| newest != instance && newest.parts().0 == instance.parts().0);
        match later {
            Some(later) => self.tail(later, ReadFrom::Last(1), false).await.is_ok(),
            None => false,
        }
    }

    /// Reports why nothing runs, if nothing was sent that a caller could tell that from.
    fn tell_waiting(&mut self) {
        let is_silent = self.last_time.is_none() && self.scope.resume.is_none();
        if is_silent && let ReplicaState::Waiting { reason, message } = self.slot().state {
            self.tell(&Event::waiting(reason, message));
        }
    }

    /// Waits for its permit, if it has none; or until the ring can be joined behind `place` after all. Otherwise answers what is to
    /// be done instead of reading.
    async fn permitted(&mut self, place: Option<(&Instance, Position)>) -> Result<(), Stage> {
        let Self { scope, permits, permit, stream, live, .. } = self;
        if permit.is_some() {
            return Ok(());
        }
        // A replica that it has stayed for is no reason to refuse a stream, and one that is gone could not be come back for.
        let is_let_in = || stream.is_admitted() || scope.newcomer || scope.is_gone();
        tokio::select! {
            biased;
            acquired = permits.acquire(scope.lease.owner(), is_let_in) => match acquired {
                Ok(acquired) => *permit = Some(acquired),
                Err(exceeded) => return Err(Stage::Refused(Box::new(exceeded))),
            },
            (instance, rests) = joined(live, place) => {
                self.ready.extend(rests.into_iter().map(|chunk| Ready::Chunk(instance.clone(), chunk)));
                return Err(Stage::Join);
            }
        }
        stream.mark_admitted();
        Ok(())
    }

    async fn tail(
        &mut self,
        instance: Instance,
        from: ReadFrom,
        follow: bool,
    ) -> Result<platform::Tail, platform::Error> {
        let BackfillParams { world, lease, replica, .. } = &self.scope;
        world.metrics.source_opens.of(ReadKind::History).increment(1);
        let request = TailRequest { lease: lease.clone(), replica: replica.clone(), instance, from, follow };
        world.platform.tail(request).await
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

// === impl Failures ===

impl Failures {
    fn pause(&self) -> Duration {
        let doubled = 2_u32.saturating_pow(self.count.saturating_sub(1));
        RETRY_FIRST.saturating_mul(doubled).min(RETRY_MAX)
    }
}

impl std::fmt::Debug for Backfill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reading")
            .field("replica", &self.scope.replica)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// Waits until the ring can be joined behind `place`; for ever, if there is none. It may only just have begun.
async fn joined<'a>(
    live: &mut Option<Subscription>,
    place: Option<(&'a Instance, Position)>,
) -> (&'a Instance, Vec<Chunk>) {
    if let (Some(live), Some((instance, position))) = (live, place) {
        while !live.reader.is_closed() {
            if let JoinOutcome::Joined(rests) = live.reader.join(instance, position) {
                return (instance, rests);
            }
            moved(live).await;
        }
    }
    std::future::pending().await
}

async fn moved(live: &mut Subscription) {
    std::future::poll_fn(|cx| live.reader.poll_moved(cx)).await;
}
