//! Backfill: reads lines that are older than the ring, for one follower, and then joins the ring.
//!
//! It starts at a cursor, at a number of last lines, at a time or at the oldest line, or joins the ring at
//! once if that has all wanted lines. It then reads run after run. A follower's backfill joins as soon as its
//! position is in the ring: no line is missing or repeated at that point. Without follow, it ends where the
//! log ends.
//!
//! The client sets the pace: a backfill is never dropped for slowness. [`BackfillLimiter`] bounds and
//! throttles all backfills.
//!
//! A *refill* is the backfill of a live follower that lagged. It has the ring's reader at the place where the
//! follower lagged, so it knows how many lines lie ahead of it. Lines that the log has lost it takes from the
//! ring, if they are there.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_core::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;

use self::log::{JoinAttempt, Log};
use super::actor::{ActorContext, Subscription};
use super::backfill_limits::{BackfillLimiter, BackfillPermit};
use super::chunk::Chunk;
use super::heartbeat::{Phase, SourceCell};
use super::message::{Content, Event, Gap};
use super::representation::Representation;
use super::ring::{JoinLimit, JoinOutcome};
use super::{BackfillFilter, LagPolicy, ReadRange};
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::line::{GapCause, SourceGap};
use crate::model::metrics::{ReadKind, RefillStart};
use crate::model::position::{AmbiguousRange, Position};
use crate::model::quota::Exceeded;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView};
use crate::platform::{self, ReadFrom, TailItem, TailRequest};
use crate::stream::StreamControl;

mod log;

/// Longest delay before an unreadable log is tried again. Only a follower's backfill tries for long enough to
/// reach it.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// Delays between attempts to read a log that failed.
const RETRY_DELAYS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(500))
    .with_max_delay(RETRY_DELAY_MAX)
    .without_max_times();

/// Without follow, a log that fails for this long is reported as unreadable. A restarted kubelet or container
/// runtime is back sooner, and a caller that waits for the answer does not give up before.
const UNREADABLE_AFTER: Duration = Duration::from_secs(5);

/// Longest wait of a follower for the run of its cursor, if that is later than all that are known: another
/// gateway, whose watch was faster, has served it. A watch over a half-open connection is replaced after five
/// minutes.
const RUN_WAIT: Duration = Duration::from_secs(6 * 60);

/// The same if the run of its cursor is in a pod that is not known, and no run is known or its position is
/// later than the start of the newest one. The pod may also be one that is gone, whose follower waits in
/// vain. So it is short, but longer than a working watch lags, its first attempts to reconnect included.
const POD_WAIT: Duration = Duration::from_secs(10);

/// A refill lets others use its permit after this time. Longer than most refills take, so that few logs are
/// opened again.
const REFILL_TURN: Duration = Duration::from_secs(10);

/// Longest time that a backfill waits without a permit for more of a quiet log, if others need the permit.
/// Then it looks for new lines. It looks at once when the run ends.
const QUIET_LOG_PAUSE: Duration = Duration::from_secs(5);

/// A refill waits this long for the line after a gap, which tells whether the ring has older lines.
const LOOKAHEAD: Duration = Duration::from_secs(1);

/// A follower's backfill gives up a log this long after its replica was removed: as long as the actor tries.
const REMOVED_RETRY_PERIOD: Duration = Duration::from_secs(5 * 60);

/// Reads one replica for one follower.
pub(crate) struct Backfill {
    params: BackfillParams,
    limiter: BackfillLimiter,
    /// Held while a log is open.
    permit: Option<BackfillPermit>,
    /// Control of the stream that it reads for.
    control: Arc<StreamControl>,
    /// The ring to join; `None` without follow.
    live: Option<Subscription>,
    stage: Stage,
    /// What to send next.
    ready: VecDeque<Content>,
    /// Position after all lines sent and in `ready`.
    position: Option<(Instance, Position)>,
    /// Position after the last gap of a log, if its size is unknown.
    inexact_gap: Option<(Instance, Position)>,
    /// Ambiguous positions of the run that is read.
    ambiguous: AmbiguousRange,
    /// The run that was read from its start last, and the time of the first line that was there.
    first_read: Option<(Instance, LogTime)>,
    /// Time of the newest line sent or in `ready`.
    last_time: Option<LogTime>,
    failures: Failures,
    /// Omit lines older than this, wherever they are in the log, since a clock may have been set back. `None`
    /// from the first live line on.
    since: Option<LogTime>,
    /// The head at which lines become live, once the ring has one.
    live_from: Option<(Instance, Position)>,
    /// Set if it is a refill.
    refill: Option<Refill>,
}

/// The state of a refill.
#[derive(Debug)]
struct Refill {
    join_limit: JoinLimit,
    /// When it got its permit, or last gave others a turn.
    turn_began: Instant,
}

/// Failures in a row of the log that is read.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    /// Time of the first failure.
    since: Option<Instant>,
    /// Time of the first failure after the replica was removed.
    removed_since: Option<Instant>,
    delays: Option<ExponentialBackoff>,
}

#[derive(Clone, Debug)]
pub(crate) struct BackfillParams {
    pub(crate) context: ActorContext,
    pub(crate) lease: LeaseId,
    pub(crate) replica: Replica,
    pub(crate) view: watch::Receiver<Arc<LeaseView>>,
    pub(crate) range: ReadRange,
    /// Continue after this position instead of `range`.
    pub(crate) resume: Option<(Instance, Position)>,
    /// With `resume`: the end of that run was sent.
    pub(crate) run_ended: bool,
    pub(crate) representation: Representation,
    pub(crate) on_lag: LagPolicy,
    /// The replica appeared after the request: its first run is reported as started.
    pub(crate) is_new: bool,
    /// Where the state of the log is stored for heartbeats, if the follower gets them.
    pub(super) source: Option<Arc<SourceCell>>,
}

/// Output of a backfill. All but `Send` are the last one.
#[derive(Debug)]
pub(crate) enum BackfillEvent {
    Send(Content),
    /// The following entries are in the ring, from the reader on.
    Joined(Box<Subscription>),
    /// Output of a refill: the log has lost lines for this cause, and the ring has the oldest ones after
    /// them.
    Skip(Box<Subscription>, GapCause),
    /// The actor ended before the backfill could join: subscribe again and continue after the messages sent.
    ActorEnded,
    /// A quota does not permit the backfill. Nothing was sent.
    Rejected(Box<Exceeded>),
    /// The log cannot be read at the moment, and the caller does not follow. It may ask again.
    Unreadable,
    /// All requested lines were sent.
    Done,
}

/// What follows a failure of a log.
enum AfterFailure {
    Retry,
    /// The log cannot be read at the moment, and the caller need not wait for it.
    GiveUp,
    /// Continue without the log: it was removed, or a follower need not wait for it.
    Skip,
}

/// Any stage may also become `Done` or `End`.
enum Stage {
    /// Finds out where to start; becomes `Open`.
    Begin,
    /// Waits for a permit and opens the log; becomes `Read`. If that fails, `Open` after a delay, or
    /// `RunEnded`.
    Open(Instance, ReadFrom),
    /// Reads the log. Becomes `RunEnded` at its end, `Open` after a failure, or `AwaitRing` or `AwaitLines`
    /// if it must wait and others need its permit.
    Read(Box<Log>),
    /// Has read up to the head, and has closed the log to release its permit. Waits until the ring changes;
    /// becomes `Open` if it cannot join then.
    AwaitRing(Instance, Position),
    /// Has read all lines of a log that the ring does not have, such as that of a pod that terminates, and
    /// has closed the log to release its permit. Waits until the run has ended, or for [`QUIET_LOG_PAUSE`];
    /// becomes `Open`, or `AwaitRing` if the ring reaches this run.
    AwaitLines(Instance, Position),
    /// The run's log was read to its end; becomes `Open` for the next run.
    RunEnded(Instance),
    /// The reader has joined the ring; without follow, all lines were sent.
    Done,
    /// Returns this event, the last one.
    End(BackfillEvent),
}

// === impl BackfillParams ===

impl BackfillParams {
    /// Whether the lease has ended or no longer has the replica: its logs do not grow any more.
    pub(super) fn is_gone(&self) -> bool {
        let view = self.view.borrow();
        let gone = view.ended || view.replica(&self.replica).is_none();
        drop(view);
        gone || self.view.has_changed().is_err()
    }
}

// === impl Backfill ===

impl Backfill {
    /// Creates a backfill. With `live` it joins that ring, without it ends where the log ends.
    pub(crate) fn new(
        params: BackfillParams,
        limiter: BackfillLimiter,
        control: Arc<StreamControl>,
        live: Option<Subscription>,
    ) -> Self {
        Self {
            position: params.resume.clone(),
            params,
            limiter,
            permit: None,
            control,
            live,
            stage: Stage::Begin,
            ready: VecDeque::new(),
            inexact_gap: None,
            ambiguous: AmbiguousRange::default(),
            first_read: None,
            last_time: None,
            failures: Failures::default(),
            since: None,
            live_from: None,
            refill: None,
        }
    }

    /// Creates the refill of a follower that lagged behind the ring of `live`.
    pub(crate) fn refill(
        params: BackfillParams,
        limiter: BackfillLimiter,
        control: Arc<StreamControl>,
        live: Subscription,
        start: RefillStart,
    ) -> Self {
        let join_limit = match start {
            RefillStart::First => JoinLimit::Usual,
            RefillStart::Again => JoinLimit::NearHead,
        };
        params.context.metrics.refills.of(start).increment(1);
        let refill = Some(Refill { join_limit, turn_began: Instant::now() });
        Self { refill, ..Self::new(params, limiter, control, Some(live)) }
    }

    /// Runs the backfill as a stream, which ends after the last event.
    pub(crate) fn into_stream(self) -> BoxStream<'static, BackfillEvent> {
        let events = futures_util::stream::unfold(Some(self), |backfill| async {
            let mut backfill = backfill?;
            let event = backfill.next().await;
            let is_last = !matches!(event, BackfillEvent::Send(_));
            Some((event, (!is_last).then_some(backfill)))
        });
        events.boxed()
    }

    async fn next(&mut self) -> BackfillEvent {
        loop {
            if let Some(content) = self.ready.pop_front() {
                self.control.mark_started();
                return BackfillEvent::Send(content);
            }
            self.store_phase();
            self.stage = match std::mem::replace(&mut self.stage, Stage::Done) {
                Stage::Begin => self.begin().await,
                Stage::Open(instance, from) => self.open(instance, from).await,
                Stage::Read(log) => self.read(log).await,
                Stage::AwaitRing(instance, position) => self.await_ring(instance, position).await,
                Stage::AwaitLines(instance, position) => self.await_lines(instance, position).await,
                Stage::RunEnded(instance) => self.run_ended(instance).await,
                Stage::Done => {
                    let joined = self.live.take().map(|live| BackfillEvent::Joined(Box::new(live)));
                    return joined.unwrap_or(BackfillEvent::Done);
                }
                Stage::End(event) => return event,
            }
        }
    }

    /// Stores what the current stage does.
    fn store_phase(&self) {
        let Some(source) = &self.params.source else { return };
        match &self.stage {
            Stage::Begin | Stage::Open(..) | Stage::AwaitLines(..) => {
                if self.failures.since.is_none() {
                    source.resume();
                }
                source.set_phase(Phase::Backfill { lines_left: self.lines_left() });
            }
            Stage::AwaitRing(..) | Stage::RunEnded(_) => {
                source.resume();
                source.set_phase(Phase::AtHead);
            }
            // A read stores whether it has reached the head.
            Stage::Read(_) | Stage::Done | Stage::End(_) => {}
        }
    }

    /// Returns the lines up to the ring's head, if that is known.
    fn lines_left(&self) -> Option<u64> {
        self.live.as_ref().filter(|_| self.refill.is_some())?.reader.lines_left()
    }

    fn replica_view(&self) -> ReplicaView {
        self.params.view.borrow().replica(&self.params.replica).cloned().unwrap_or_default()
    }

    /// Returns the replica's view without runs whose log is gone.
    fn readable_view(&self) -> ReplicaView {
        let mut view = self.replica_view();
        view.runs.retain(|run| !run.log_is_gone);
        view
    }

    async fn tail(
        &mut self,
        instance: Instance,
        from: ReadFrom,
        follow: bool,
    ) -> Result<platform::Tail, platform::Error> {
        let BackfillParams { context, lease, replica, .. } = &self.params;
        let kind = if self.refill.is_some() { ReadKind::Refill } else { ReadKind::History };
        context.metrics.source_opens.of(kind).increment(1);
        let oldest_read = self.live.as_ref().and_then(|live| live.reader.ring().oldest_read(&instance));
        let live = self.live.as_ref().filter(|_| self.refill.is_some());
        let is_next_run = self.position.as_ref().is_some_and(|(run, _)| *run != instance);
        let request = TailRequest {
            lease: lease.clone(),
            replica: replica.clone(),
            is_next_run,
            instance,
            from,
            lines_after: live.and_then(|live| live.reader.lines_behind()),
            oldest_read,
            follow,
        };
        context.platform.tail(request).await
    }

    /// Returns the time of the first line of a run, if that was read from its start.
    fn first_read(&self, instance: &Instance) -> Option<LogTime> {
        self.first_read.as_ref().filter(|(run, _)| run == instance).map(|(_, time)| *time)
    }

    fn join_limit(&self) -> JoinLimit {
        self.refill.as_ref().map_or(JoinLimit::Usual, |refill| refill.join_limit)
    }

    /// Waits for a permit, or until the ring can be joined at `position`, if one is given. Returns the stage
    /// that follows if the log must not be opened.
    async fn acquire_permit(&mut self, position: Option<(&Instance, Position)>) -> Result<(), Stage> {
        let limit = self.join_limit();
        let first_read = position.and_then(|(instance, _)| self.first_read(instance));
        let Self { params, limiter, permit, control, live, .. } = self;
        if permit.is_some() {
            return Ok(());
        }
        // A new replica must not end a stream that runs already, and a replica that is gone cannot be asked
        // for again.
        let keep_waiting = || control.has_started() || params.is_new || params.is_gone();
        tokio::select! {
            biased;
            acquired = limiter.acquire(params.lease.owner(), keep_waiting) => match acquired {
                Ok(acquired) => *permit = Some(acquired),
                Err(exceeded) => return Err(Stage::End(BackfillEvent::Rejected(Box::new(exceeded)))),
            },
            // The actor may have started just now, and have opened the log in the meantime.
            (instance, parts) = joined(live, position, limit, first_read) => {
                self.queue_chunks(instance, parts);
                return Err(Stage::Done);
            }
        }
        control.mark_started();
        if let Some(refill) = &mut self.refill {
            refill.turn_began = Instant::now();
        }
        Ok(())
    }

    /// Whether a refill must close its log, because it had its turn and others wait for a permit. A follower
    /// that never catches up would keep the permit.
    fn must_give_turn(&mut self) -> bool {
        let Some(refill) = self.refill.as_mut().filter(|refill| refill.turn_began.elapsed() >= REFILL_TURN)
        else {
            return false;
        };
        refill.turn_began = Instant::now();
        self.permit = None;
        // Permits are issued in order of arrival, so it is there at once unless somebody waits.
        // That must not depend on how much else this task has polled.
        let acquired = self.limiter.acquire(self.params.lease.owner(), || true);
        let acquired = tokio::task::unconstrained(acquired).now_or_never();
        self.permit = acquired.and_then(Result::ok);
        self.permit.is_none()
    }

    /// Records a failure of the log of `instance`. Waits if it is worth another attempt.
    ///
    /// A follower waits for the newest run's log as long as the replica exists, as the actor does. The log of
    /// an older run delays the newer lines for at most [`UNREADABLE_AFTER`].
    async fn after_failure(&mut self, instance: &Instance, error: &platform::Error) -> AfterFailure {
        self.params.context.count_error(error);
        if let Some(source) = &self.params.source {
            source.interrupt(LogTime::now());
        }
        let (now, failures) = (Instant::now(), &mut self.failures);
        failures.count = failures.count.saturating_add(1);
        if failures.count.is_power_of_two() {
            let (lease, replica, failures) = (&self.params.lease, &self.params.replica, failures.count);
            tracing::warn!(%lease, %replica, failures, error = error as &dyn std::error::Error, "failed to read log for backfill");
        }
        let failing_for = now - *failures.since.get_or_insert(now);
        let is_newest = self.replica_view().newest().is_none_or(|newest| newest.instance == *instance);
        let gives_up = if self.live.is_none() || !is_newest {
            failing_for >= UNREADABLE_AFTER
        } else if self.params.is_gone() {
            now - *self.failures.removed_since.get_or_insert(now) >= REMOVED_RETRY_PERIOD
        } else {
            false
        };
        if !error.is_retryable() {
            return AfterFailure::Skip;
        }
        if gives_up {
            let is_unreadable = self.live.is_none() && !self.is_log_removed(instance).await;
            return if is_unreadable { AfterFailure::GiveUp } else { AfterFailure::Skip };
        }
        // Others may use the permit during the delay.
        self.permit = None;
        let delays = self.failures.delays.get_or_insert_with(|| RETRY_DELAYS.build());
        tokio::time::sleep(delays.next().unwrap_or(RETRY_DELAY_MAX)).await;
        AfterFailure::Retry
    }

    /// Whether the newest run of the pod of `instance` can be read while `instance` cannot. Then the node
    /// works, and the log of `instance` was removed.
    async fn is_log_removed(&mut self, instance: &Instance) -> bool {
        let newest = self.replica_view().newest().map(|run| run.instance.clone());
        let later = newest.filter(|newest| newest != instance && newest.parts().0 == instance.parts().0);
        match later {
            Some(later) => self.tail(later, ReadFrom::Last(1), false).await.is_ok(),
            None => false,
        }
    }

    /// Queues a gap of unknown size.
    fn queue_unknown_gap(&mut self, cause: GapCause) {
        if let Some(live) = self.live.as_mut().filter(|_| self.refill.is_some()) {
            live.reader.record_refilled_gap(0, 0, false);
        }
        let after = self.position.as_ref().map_or(Position::START, |(_, position)| *position);
        self.queue_gap(&SourceGap { cause, lines: 0, bytes: 0, exact: false, after });
    }

    fn queue_gap(&mut self, gap: &SourceGap) {
        let gap = Gap::of_source(gap, self.last_time);
        self.ready.push_back(Content::Gap(self.position.clone(), gap));
    }

    /// Queues an event of the run of `instance`, if there is one.
    fn queue_event(&mut self, instance: Option<&Instance>, event: Event) {
        self.ready.push_back(Content::Event(instance.cloned(), event));
    }

    fn queue_chunks(&mut self, instance: &Instance, chunks: Vec<Chunk>) {
        self.ready.extend(chunks.into_iter().map(|chunk| Content::Lines(instance.clone(), chunk)));
    }

    /// Queues the reason why no run is running, if nothing was sent that would show it.
    fn queue_waiting_reason(&mut self) {
        let sent_nothing = self.last_time.is_none() && self.params.resume.is_none();
        if sent_nothing && let ReplicaState::Waiting { reason, message } = self.replica_view().state {
            self.queue_event(None, Event::waiting(reason, message));
        }
    }
}

// === impl Backfill: where to start ===

impl Backfill {
    async fn begin(&mut self) -> Stage {
        if let Some((instance, position)) = self.params.resume.clone() {
            if self.params.run_ended {
                return Stage::RunEnded(instance);
            }
            // A refill continues what this gateway has read: its view had the run.
            if self.refill.is_none() {
                self.await_run(&instance, position).await;
            }
            return self.resume(&self.readable_view(), instance, position);
        }
        let view = self.readable_view();
        let filter = self.params.range.filter();
        self.since = filter.since;
        if let ReadRange::Previous(_) = self.params.range {
            let previous = view.runs.len().checked_sub(2).and_then(|index| view.runs.get(index));
            return match previous {
                Some(run) => Stage::Open(run.instance.clone(), read_from(filter.last, filter.since)),
                None => Stage::End(BackfillEvent::Done),
            };
        }
        if self.params.range.follows() && filter.last == Some(0) {
            return self.join_at_head().await;
        }
        if let (Some(lines), None, Some(live)) = (filter.last, filter.since, &mut self.live)
            && let Some((instance, parts)) = live.reader.join_last(lines)
        {
            self.queue_chunks(&instance, parts);
            return Stage::Done;
        }
        if view.runs.is_empty() {
            return self.join_at_head().await;
        }
        if let Err(stage) = self.acquire_permit(None).await {
            return stage;
        }
        let Ok((first, last)) = self.first_run(&view, filter).await else {
            return Stage::End(BackfillEvent::Unreadable);
        };
        let Some(run) = view.runs.get(first) else {
            return self.join_at_head().await;
        };
        if self.params.is_new {
            self.queue_event(Some(&run.instance), Event::started(run));
        }
        Stage::Open(run.instance.clone(), read_from(last, filter.since))
    }

    /// Waits while `instance` is, or may be, later than all runs in the view. Their lines would be repeated.
    async fn await_run(&mut self, instance: &Instance, position: Position) {
        let longest = if self.live.is_some() { RUN_WAIT } else { UNREADABLE_AFTER };
        let BackfillParams { view, replica, .. } = &mut self.params;
        let known = view.wait_for(|view| {
            let newest = view.replica(replica).and_then(ReplicaView::newest);
            newest.is_none_or(|newest| !instance.is_later_than(&newest.instance))
        });
        // If the time is over, the cursor is invalid or the view is stale for long: that is a gap.
        _ = tokio::time::timeout(longest, known).await;
        let known = view.wait_for(|view| {
            let Some(runs) = view.replica(replica).map(|view| &view.runs) else { return true };
            let is_known_pod = runs.iter().any(|run| run.instance.is_same_pod(instance));
            is_known_pod || runs.last().is_some_and(|newest| position.time < newest.started)
        });
        _ = tokio::time::timeout(longest.min(POD_WAIT), known).await;
    }

    fn resume(&mut self, view: &ReplicaView, instance: Instance, position: Position) -> Stage {
        if let JoinAttempt::Next(stage) = self.try_join(&instance, position) {
            return stage;
        }
        if view.run(&instance).is_some() {
            return Stage::Open(instance, ReadFrom::After(position));
        }
        if let Some(skip) = self.skip_in_ring(&instance, position, None, GapCause::Rotated) {
            return skip;
        }
        let Some(run) = view.run_after(&instance) else {
            // The reader of a refill is still where the follower lagged.
            if let Some(live) = self.live.take_if(|_| self.refill.is_some()) {
                return Stage::End(BackfillEvent::Skip(Box::new(live), GapCause::Rotated));
            }
            self.queue_unknown_gap(GapCause::Rotated);
            // The actor may still read this run, before this position.
            return Stage::RunEnded(instance);
        };
        self.queue_unknown_gap(GapCause::Rotated);
        self.queue_event(Some(&run.instance), Event::started(run));
        Stage::Open(run.instance.clone(), ReadFrom::Start)
    }

    /// Joins the ring for lines from now on. First waits until the log's position is known, so that the
    /// follower gets a cursor.
    async fn join_at_head(&mut self) -> Stage {
        if let Some(source) = &self.params.source {
            source.set_phase(Phase::AtHead);
        }
        // The wait may be long.
        self.permit = None;
        let has_runs = !self.readable_view().runs.is_empty();
        let Some(live) = &mut self.live else {
            self.queue_waiting_reason();
            return Stage::Done;
        };
        while has_runs && live.reader.ring().head().is_none() && !live.reader.is_closed() {
            live.reader.changed().await;
        }
        // Otherwise the ring will send the reason.
        let must_report = !has_runs || live.reader.has_missed_event();
        if must_report && let ReplicaState::Waiting { reason, message } = self.replica_view().state {
            self.queue_event(None, Event::waiting(reason, message));
        }
        Stage::Done
    }

    /// Returns the index of the run to start with, and how many of its last lines to read.
    ///
    /// # Errors
    /// If that depends on a log that cannot be read at the moment, and the caller does not follow.
    async fn first_run(
        &mut self,
        view: &ReplicaView,
        filter: BackfillFilter,
    ) -> Result<(usize, Option<u64>), platform::Error> {
        let first_since =
            |since| view.runs.iter().position(|run| run.end.as_ref().is_none_or(|end| end.time >= since));
        let oldest = filter.since.map_or(Some(0), first_since).unwrap_or(view.runs.len() - 1);
        let Some(mut wanted) = filter.last else {
            return Ok((oldest, None));
        };
        // From the newest run to older ones, until they have enough lines. The oldest need not be counted.
        for index in (oldest + 1..view.runs.len()).rev() {
            let count = self.count_lines(&view.runs[index].instance, wanted).await?;
            if count >= wanted {
                return Ok((index, Some(wanted)));
            }
            wanted -= count;
        }
        Ok((oldest, Some(wanted)))
    }

    /// Counts the lines of a run's log, up to `max`. Returns zero if the log was removed, or if it cannot be
    /// read and a follower need not wait for it.
    async fn count_lines(&mut self, instance: &Instance, max: u64) -> Result<u64, platform::Error> {
        let lines = loop {
            match self.try_count_lines(instance, max).await {
                Ok(lines) => break lines,
                Err(error) => match self.after_failure(instance, &error).await {
                    AfterFailure::Retry => {}
                    AfterFailure::GiveUp => return Err(error),
                    AfterFailure::Skip => break 0,
                },
            }
        };
        self.failures = Failures::default();
        Ok(lines)
    }

    async fn try_count_lines(&mut self, instance: &Instance, max: u64) -> Result<u64, platform::Error> {
        if self.permit.is_none() {
            // Released during a delay. The stream has started, so this cannot be rejected.
            let acquired = self.limiter.acquire(self.params.lease.owner(), || true).await;
            self.permit = acquired.ok();
        }
        let mut items = self.tail(instance.clone(), ReadFrom::Last(max), false).await?.items;
        let mut lines = 0;
        while let Some(item) = items.next().await {
            if let TailItem::Lines(batch) = item? {
                self.limiter.throttle(self.params.lease.owner(), batch.data.len()).await;
                lines += batch.lines.iter().filter(|line| line.ends).count() as u64;
            }
        }
        Ok(lines)
    }
}

// === impl Backfill: after a run ===

impl Backfill {
    /// Continues in the ring or with the next run.
    async fn run_ended(&mut self, instance: Instance) -> Stage {
        (self.failures, self.ambiguous) = (Failures::default(), AmbiguousRange::default());
        if let ReadRange::Previous(_) = self.params.range {
            return Stage::End(BackfillEvent::Done);
        }
        loop {
            if let Some(live) = &mut self.live {
                // A log that has lost lines may begin before the position that was asked for.
                let known = [&self.position, &self.params.resume].into_iter().flatten();
                let known = known.filter(|(run, _)| *run == instance).map(|(_, position)| *position);
                let position = known.max().unwrap_or(Position::START);
                match live.reader.join_end(&instance, position) {
                    JoinOutcome::Joined(_) => return Stage::Done,
                    _ if !live.reader.is_closed() || self.params.is_gone() => {}
                    // A new replica has this index now. It gets a backfill of its own.
                    _ if live.reader.is_gone() => return self.finish_gone(&self.replica_view(), &instance),
                    _ => return Stage::End(BackfillEvent::ActorEnded),
                }
            }
            let view = self.replica_view();
            // The ring has the events of the newest run, but not those of earlier ones.
            if let Some(next) = view.run_after(&instance) {
                if let Some(event) = view.run(&instance).and_then(Event::ended) {
                    self.queue_event(Some(&instance), event);
                }
                self.queue_event(Some(&next.instance), Event::started(next));
                if self.may_skip_runs(&view, &instance, &next.instance) {
                    self.position = Some((next.instance.clone(), Position::START));
                    self.queue_unknown_gap(GapCause::Rotated);
                }
                return Stage::Open(next.instance.clone(), ReadFrom::Start);
            }
            let Some(live) = &mut self.live else {
                self.queue_waiting_reason();
                return Stage::Done;
            };
            if live.reader.is_closed() {
                return self.finish_gone(&view, &instance);
            }
            // Others may use the permit during the wait, which may be long.
            self.permit = None;
            tokio::select! {
                () = live.reader.changed() => {}
                changed = self.params.view.changed() => if changed.is_err() {
                    return Stage::End(BackfillEvent::ActorEnded);
                },
            }
        }
    }

    /// Whether the replica may have had runs between `instance` and `next` that the view does not name,
    /// because their pod was removed while this backfill read.
    fn may_skip_runs(&self, view: &ReplicaView, instance: &Instance, next: &Instance) -> bool {
        let later_unknown = || view.run(instance).is_none_or(|run| run.later_unknown);
        let is_next =
            || self.live.as_ref().is_some_and(|live| live.reader.ring().is_next_run(instance, next));
        instance.skips_to(next) || (!next.is_same_pod(instance) && later_unknown() && !is_next())
    }

    /// Ends after the last readable run of a replica that is gone, with the events that the ring would have
    /// sent.
    fn finish_gone(&mut self, view: &ReplicaView, instance: &Instance) -> Stage {
        if let Some(event) = view.run(instance).and_then(Event::ended) {
            self.queue_event(Some(instance), event);
        }
        let newest = self.live.as_ref().and_then(|live| live.reader.ring().head());
        let may_have_later = view.run(instance).is_some_and(|run| run.later_unknown);
        if may_have_later || newest.is_some_and(|(newest, _)| newest != *instance) {
            self.queue_unknown_gap(GapCause::Rotated);
        }
        self.queue_event(Some(instance), Event::gone());
        Stage::End(BackfillEvent::Done)
    }
}

/// Waits until the ring can be joined at `position`, and returns the parts of its entry; never returns
/// without a ring or position.
async fn joined<'a>(
    live: &mut Option<Subscription>,
    position: Option<(&'a Instance, Position)>,
    limit: JoinLimit,
    first_read: Option<LogTime>,
) -> (&'a Instance, Vec<Chunk>) {
    if let (Some(live), Some((instance, position))) = (live, position) {
        while !live.reader.is_closed() {
            if let JoinOutcome::Joined(parts) = live.reader.join(instance, position, limit, first_read) {
                return (instance, parts);
            }
            live.reader.changed().await;
        }
    }
    std::future::pending().await
}

fn read_from(last: Option<u64>, since: Option<LogTime>) -> ReadFrom {
    match (last, since) {
        (Some(lines), _) => ReadFrom::Last(lines),
        (None, Some(since)) => ReadFrom::Since(since),
        (None, None) => ReadFrom::Start,
    }
}
