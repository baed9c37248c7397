//! The actor of one replica: tails its log once and publishes chunks to all followers through a [`Ring`].
//!
//! It starts with the first follower and stops some idle time after the last one has left. It reads one run
//! at a time: when a run's log ends, it reports how the run ended and opens the next run that the lease view
//! names.
//!
//! The task awaits nothing outside of its `select!`, so a source that hangs cannot delay a subscriber. It
//! owns everything it uses. Dropping it closes the ring, whatever the reason; followers that remain then
//! notice.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::chunk::{Chunk, Chunker};
use super::entry_name::NameStyle;
use super::heartbeat::{Phase, SourceCell, SourceStatus};
use super::live::{AttachedActor, Live, LiveTails, Users};
use super::memory_budget::MemoryBudget;
use super::message::{Event, Gap};
use super::ring::{Ring, RingReader};
use super::run_record::RunRecord;
use crate::model::id::{Instance, LeaseId, Replica};
use crate::model::limits::{Limits, MAILBOX_MESSAGES};
use crate::model::line::{GapCause, LineBatch, SourceGap};
use crate::model::metrics::{ActorEnd, GaugeGuard, Metrics, PlatformName};
use crate::model::position::Position;
use crate::model::time::LogTime;
use crate::model::view::{LeaseView, ReplicaState, ReplicaView, Run};
use crate::platform::{self, Platform, ReadFrom, Tail, TailItem, TailRequest};
use crate::sys::sync::{AtomicUsize, Notify};

/// Longest delay before a log is opened again: short enough for a follower not to give up.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(5);

/// Delays between attempts to open a log that failed.
const RETRY_DELAYS: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(100))
    .with_max_delay(RETRY_DELAY_MAX)
    .without_max_times();

/// Attempts in a row to read the last lines of a replica or lease that is gone, or of a run that a later one
/// follows, before the rest counts as lost. With the delays above they take about five minutes, in which a
/// node that restarts is back.
const FINAL_ATTEMPTS_MAX: u32 = 60;

/// Longest wait for the view to state that a run has ended whose log was read to its end. A watch over a
/// half-open connection is replaced after five minutes. If the run still counts as running, it is, and its
/// log is opened again.
const END_WAIT: Duration = Duration::from_secs(6 * 60);

/// The dependencies of actors and of backfills.
#[derive(Clone, Debug)]
pub struct ActorContext {
    /// The source of views and logs.
    pub platform: Arc<dyn Platform>,
    /// Bounds and intervals.
    pub limits: Arc<Limits>,
    /// The gateway's metrics.
    pub metrics: Metrics,
    /// Names of replicas in protocols that have one name per line.
    pub names: NameStyle,
    /// Memory for rings, send buffers and reads of older lines.
    pub memory: MemoryBudget,
}

/// Talks to a running actor. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    mailbox: mpsc::Sender<Subscribe>,
    ring: Weak<Ring>,
}

/// The only message to an actor: where it sends the subscription.
type Subscribe = oneshot::Sender<Subscription>;

/// A follower's subscription. The actor runs at least as long as it exists.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) reader: RingReader,
    actor: Arc<ActorState>,
    _gauge: GaugeGuard,
}

/// State that an actor shares with its followers.
#[derive(Debug)]
pub(super) struct ActorState {
    followers: FollowerCount,
    source: SourceCell,
}

#[derive(Debug, Default)]
struct FollowerCount {
    count: AtomicUsize,
    /// Notified when a follower has left.
    left: Notify,
}

struct Actor {
    context: ActorContext,
    lease: LeaseId,
    replica: Replica,
    view: watch::Receiver<Arc<LeaseView>>,
    view_closed: bool,
    mailbox: mpsc::Receiver<Subscribe>,
    shared: Arc<ActorState>,
    ring: Arc<Ring>,
    run: Option<CurrentRun>,
    record: RunRecord,
    source: Source,
    live: Box<dyn LiveTails>,
    /// The phase that followers know.
    phase: Phase,
    /// Chunks on their way to the ring. A field only to reuse its memory.
    chunks: Vec<Chunk>,
    /// When the chunker must be flushed; `None` if it is empty.
    flush_at: Option<Instant>,
    /// Until then only full chunks are sent; the other lines wait for `flush_at`.
    paced_until: Instant,
    /// Delays of the failures in a row; `None` after a success.
    retries: Option<ExponentialBackoff>,
    /// Failures in a row since the lease ended or the replica was removed.
    final_attempts: u32,
    /// Why the actor ends, for the metric: [`ActorEnd::Aborted`] until the loop decides.
    end: ActorEnd,
    /// Reason of the last waiting event, so that each reason is reported once.
    reported_waiting: Option<String>,
    /// Whether a follower has subscribed since the last `FollowUnavailable` event.
    has_new_followers: bool,
}

/// The run whose log is read, or was read last.
struct CurrentRun {
    instance: Instance,
    chunker: Chunker,
    /// When the oldest line in the chunker was read.
    read_at: Instant,
    last_time: Option<LogTime>,
    /// The run had ended before the actor started, so that its end is not reported.
    ended_before_start: bool,
    /// A gap was reported because the log cannot be read, and no line came since.
    gap_reported: bool,
    /// Position after the last gap, if its size is unknown.
    inexact_gap: Option<Position>,
    /// When its log ended, the view no longer named the run, so that its end is not known.
    has_vanished: bool,
}

/// State of the log that the actor reads.
enum Source {
    /// No log is open. Waits for the view to name a new run.
    Idle,
    /// Becomes `Reading`, or `Retry` if it fails.
    Opening(BoxFuture<'static, Result<Tail, platform::Error>>),
    /// Becomes `Ended` at the end of the log, or `Retry` if it fails.
    Reading(BoxStream<'static, Result<TailItem, platform::Error>>),
    /// Reading failed. Opened again at this time, after the newest line.
    Retry(Instant),
    /// The log was read to its end. Waits for the view to state how the run ended; becomes `Idle`. If it does
    /// not until this time, the log is opened again, after the newest line.
    Ended(Instant),
}

enum SourceEvent {
    RetryDue,
    Opened(Result<Tail, platform::Error>),
    Item(Option<Result<TailItem, platform::Error>>),
}

enum ActorEvent {
    End(ActorEnd),
    Subscribe(Subscribe),
    /// The view has changed; `false` if it was closed.
    View(bool),
    FlushDue,
    Source(SourceEvent),
    FollowerLeft,
}

/// Creates an actor. Returns its handle and the future that runs it.
pub(crate) fn new(
    context: ActorContext,
    live: &dyn Live,
    lease: LeaseId,
    replica: Replica,
    view: watch::Receiver<Arc<LeaseView>>,
    cancel: CancellationToken,
) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let (sender, mailbox) = mpsc::channel(MAILBOX_MESSAGES);
    context.metrics.actor_starts.increment(1);
    let ActorContext { limits, metrics, names, memory, .. } = &context;
    let ring = Ring::new(replica.clone(), *names, limits.ring_max_bytes, metrics, memory);
    let handle = Handle { mailbox: sender, ring: Arc::downgrade(&ring) };
    let shared =
        Arc::new(ActorState { followers: FollowerCount::default(), source: SourceCell::new(Phase::Idle) });
    let attached = AttachedActor {
        lease: lease.clone(),
        replica: replica.clone(),
        ring: Arc::clone(&ring),
        users: Arc::clone(&shared) as Arc<dyn Users>,
    };
    let mut actor = Actor {
        live: live.attach(attached),
        context,
        lease,
        replica,
        view,
        view_closed: false,
        mailbox,
        shared,
        ring,
        run: None,
        record: RunRecord::default(),
        source: Source::Idle,
        phase: Phase::Idle,
        chunks: Vec::new(),
        flush_at: None,
        paced_until: Instant::now(),
        retries: None,
        final_attempts: 0,
        end: ActorEnd::Aborted,
        reported_waiting: None,
        has_new_followers: true,
    };
    (handle, async move { actor.run(cancel).await })
}

// === impl ActorContext ===

impl ActorContext {
    pub(crate) fn count_error(&self, error: &platform::Error) {
        let platform = PlatformName::of(self.platform.name());
        self.metrics.source_errors.of((error.kind(), platform)).increment(1);
    }
}

// === impl Handle ===

impl Handle {
    /// Subscribes to the actor; `None` if it has ended meanwhile. Waits while its mailbox is full.
    pub(crate) async fn subscribe(&self) -> Option<Subscription> {
        let (reply, subscription) = oneshot::channel();
        self.mailbox.send(reply).await.ok()?;
        subscription.await.ok()
    }

    /// Returns the actor's ring, unless it was dropped.
    pub(crate) fn ring(&self) -> Option<Arc<Ring>> {
        self.ring.upgrade()
    }

    pub(crate) fn is_same_actor(&self, other: &Self) -> bool {
        self.mailbox.same_channel(&other.mailbox)
    }
}

// === impl Actor: the loop ===

impl Actor {
    async fn run(&mut self, cancel: CancellationToken) {
        let _alive = GaugeGuard::new(&self.context.metrics.actors);
        tracing::debug!(lease = %self.lease, replica = %self.replica, "actor started");
        self.open_newest_run();
        let idle_timer = tokio::time::sleep(self.context.limits.actor_idle);
        let flush_timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(idle_timer, flush_timer);
        loop {
            if let Some(at) = self.flush_at
                && flush_timer.deadline() != at
            {
                flush_timer.as_mut().reset(at);
            }
            let flush_is_due = self.flush_at.is_some();
            let is_unfollowed = self.shared.followers.is_zero();
            self.store_phase();
            let event = tokio::select! {
                biased;
                // Shutdown is first: nothing else may delay it.
                () = cancel.cancelled() => ActorEvent::End(ActorEnd::Stopped),
                // Before the source: a busy log must not delay a new follower.
                Some(reply) = self.mailbox.recv() => ActorEvent::Subscribe(reply),
                // Before the source as well: a view changes seldom, and a busy log must not hide that it did.
                changed = self.view.changed(), if !self.view_closed => ActorEvent::View(changed.is_ok()),
                // Before the source: a busy log must not hold back lines for longer than the pace interval.
                () = &mut flush_timer, if flush_is_due => ActorEvent::FlushDue,
                source = self.source.next() => ActorEvent::Source(source),
                // Before the idle timer, which it resets.
                () = self.shared.followers.left.notified() => ActorEvent::FollowerLeft,
                // Last: any other event is a reason to stay.
                () = &mut idle_timer, if is_unfollowed => ActorEvent::End(ActorEnd::Idle),
            };
            match event {
                ActorEvent::End(end) => {
                    self.end = end;
                    break;
                }
                ActorEvent::Subscribe(reply) => self.subscribe(reply),
                ActorEvent::View(is_open) => {
                    // A closed view means that the lease has ended. Its logs are still read to their end.
                    self.view_closed = !is_open;
                    self.view_changed();
                }
                ActorEvent::FlushDue => self.flush(),
                ActorEvent::Source(event) => self.handle_source(event),
                ActorEvent::FollowerLeft => {
                    idle_timer.as_mut().reset(Instant::now() + self.context.limits.actor_idle);
                }
            }
            if self.has_finished() {
                self.report_unread_runs();
                self.push_event(Event::gone());
                self.end = ActorEnd::Gone;
                break;
            }
        }
        // Pending subscriptions get no reply; their callers then ask the registry for a new actor.
        self.mailbox.close();
        self.flush();
        tracing::debug!(lease = %self.lease, replica = %self.replica, end = ?self.end, "actor ended");
    }

    fn subscribe(&mut self, reply: Subscribe) {
        self.shared.followers.add();
        self.has_new_followers = true;
        // If the caller is gone, the subscription is dropped here and no longer counts.
        let _ = reply.send(Subscription {
            reader: self.ring.reader(),
            actor: Arc::clone(&self.shared),
            _gauge: GaugeGuard::new(&self.context.metrics.followers),
        });
    }

    /// Stores what it does, if that has changed.
    fn store_phase(&mut self) {
        let phase = match self.source {
            Source::Idle | Source::Ended(_) => Phase::Idle,
            Source::Opening(_) | Source::Reading(_) | Source::Retry(_) => Phase::Live,
        };
        if phase != std::mem::replace(&mut self.phase, phase) {
            self.shared.source.set_phase(phase);
        }
    }

    /// Reports runs of the replica that is gone which nobody can read any more.
    fn report_unread_runs(&mut self) {
        let view = self.replica_view().unwrap_or_default();
        if self.may_skip_runs(&view, None)
            && let Some(gap) = self.unknown_gap(GapCause::Rotated)
        {
            self.push_gap_with(gap, Ring::push_skipped_runs);
        }
    }

    /// Whether the replica is gone and its last log was read to its end.
    fn has_finished(&self) -> bool {
        matches!(self.source, Source::Idle) && self.is_removed()
    }

    /// Whether the lease has ended or no longer has the replica: only its last lines are still to come.
    fn is_removed(&self) -> bool {
        let view = self.view.borrow();
        view.ended || view.replica(&self.replica).is_none() || self.view_closed
    }

    /// Whether the run that is read has ended, and the view names one that is to be read after it.
    fn has_later_run(&self) -> bool {
        let view = self.replica_view().unwrap_or_default();
        let has_ended = |run: &CurrentRun| view.run(&run.instance).is_none_or(|run| run.end.is_some());
        self.run.as_ref().is_some_and(has_ended) && self.record.next(&view).is_some()
    }

    fn replica_view(&self) -> Option<ReplicaView> {
        self.view.borrow().replica(&self.replica).cloned()
    }
}

// === impl Actor: lines to chunks, chunks to the ring ===

impl Actor {
    fn open(&mut self, from: ReadFrom) {
        let Some(run) = &self.run else { return };
        let request = TailRequest {
            lease: self.lease.clone(),
            replica: self.replica.clone(),
            instance: run.instance.clone(),
            from,
            lines_after: None,
            oldest_read: self.ring.oldest_read(&run.instance),
            is_next_run: from == ReadFrom::Start,
            follow: true,
        };
        self.shared.source.interrupt(LogTime::now());
        self.source = Source::Opening(self.live.open(request));
    }

    fn handle_source(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::RetryDue => match &self.run {
                Some(run) if self.ring_has_run() => self.open(ReadFrom::After(run.chunker.position())),
                // The first attempt of `open_newest_run` failed, so no position is known yet.
                _ => self.open(ReadFrom::Last(0)),
            },
            SourceEvent::Opened(Ok(tail)) => {
                if !self.ring_has_run()
                    && let Some(run) = &mut self.run
                {
                    run.chunker = Chunker::new(tail.start);
                    self.ring.begin_log(&run.instance, tail.start);
                    self.ring.set_unfinished(tail.unfinished);
                }
                self.shared.source.resume();
                self.source = Source::Reading(tail.items);
            }
            SourceEvent::Item(Some(Ok(TailItem::Lines(batch)))) => {
                self.retries = None;
                self.final_attempts = 0;
                self.push_lines(&batch);
            }
            SourceEvent::Item(Some(Ok(TailItem::Gap(gap)))) => self.push_gap(gap),
            SourceEvent::Item(Some(Ok(TailItem::FollowUnavailable))) => self.report_follow_unavailable(),
            SourceEvent::Item(Some(Ok(TailItem::Interrupted(since)))) => self.shared.source.interrupt(since),
            SourceEvent::Item(Some(Ok(TailItem::Resumed))) => self.shared.source.resume(),
            SourceEvent::Opened(Err(error)) | SourceEvent::Item(Some(Err(error))) => self.failed(&error),
            SourceEvent::Item(None) => self.log_ended(),
        }
    }

    /// Whether the ring's head is in the current run, so that its position is known.
    fn ring_has_run(&self) -> bool {
        let head = self.ring.head();
        self.run.as_ref().is_some_and(|run| head.is_some_and(|(head, _)| head == run.instance))
    }

    fn push_lines(&mut self, batch: &LineBatch) {
        let Some(run) = &mut self.run else { return };
        let now = Instant::now();
        let metrics = &self.context.metrics;
        metrics.lines_in.increment(batch.lines.iter().filter(|line| line.ends).count() as u64);
        metrics.bytes_in.increment(batch.data.len() as u64);
        // A gap that comes now is another one, even at the same position.
        run.inexact_gap = None;
        if run.chunker.is_empty() {
            run.read_at = now;
        }
        if let Some(line) = batch.lines.last() {
            run.last_time = Some(line.time);
        }
        run.gap_reported = false;
        run.chunker.push(batch, &mut self.chunks);
        if now >= self.paced_until {
            self.flush();
            return;
        }
        if !self.chunks.is_empty() {
            self.ring.push_lines(&run.instance, &mut self.chunks, run.read_at);
            run.read_at = now;
        }
        self.flush_at = (!run.chunker.is_empty()).then_some(self.paced_until);
    }

    /// Sends all lines of the chunker. Lines that arrive within the next pace interval wait for its end.
    fn flush(&mut self) {
        self.flush_at = None;
        let Some(run) = &mut self.run else { return };
        self.chunks.extend(run.chunker.flush());
        if self.chunks.is_empty() {
            return;
        }
        self.ring.push_lines(&run.instance, &mut self.chunks, run.read_at);
        self.paced_until = Instant::now() + self.context.limits.pace;
    }

    fn push_gap(&mut self, gap: SourceGap) {
        self.push_gap_with(gap, Ring::push_gap);
    }

    fn push_gap_with(&mut self, gap: SourceGap, push: fn(&Ring, &Instance, Gap, Position)) {
        self.flush();
        let Some(run) = &mut self.run else { return };
        // A log that was opened again directly after a gap reports it again.
        let inexact = (!gap.exact).then_some(gap.after);
        let last = std::mem::replace(&mut run.inexact_gap, inexact);
        if inexact.is_some() && inexact == last {
            return;
        }
        run.chunker.skip_to(gap.after);
        push(&self.ring, &run.instance, Gap::of_source(&gap, run.last_time), gap.after);
    }

    /// Returns a gap that states that an unknown number of lines may be missing after the newest one.
    fn unknown_gap(&self, cause: GapCause) -> Option<SourceGap> {
        let after = self.run.as_ref()?.chunker.position();
        Some(SourceGap { cause, lines: 0, bytes: 0, exact: false, after })
    }

    /// Pushes an event of the current run, or of the replica if there is none.
    fn push_event(&self, event: Event) {
        self.ring.push_event(self.run.as_ref().map(|run| &run.instance), event);
    }

    /// Pushes a `FollowUnavailable` event, unless all followers have received one.
    fn report_follow_unavailable(&mut self) {
        if std::mem::take(&mut self.has_new_followers) {
            self.flush();
            self.push_event(Event::follow_unavailable());
        }
    }

    fn failed(&mut self, error: &platform::Error) {
        self.flush();
        self.shared.source.interrupt(LogTime::now());
        self.context.count_error(error);
        let is_last = self.is_removed() || self.has_later_run();
        self.final_attempts = if is_last { self.final_attempts.saturating_add(1) } else { 0 };
        let (lease, replica) = (&self.lease, &self.replica);
        if error.is_retryable() && self.final_attempts < FINAL_ATTEMPTS_MAX {
            let retries = self.retries.get_or_insert_with(|| RETRY_DELAYS.build());
            let delay = retries.next().unwrap_or(RETRY_DELAY_MAX);
            let delay_ms = delay.as_millis();
            tracing::warn!(%lease, %replica, error = error as &dyn std::error::Error, delay_ms, "failed to read log, retrying");
            self.source = Source::Retry(Instant::now() + delay);
            return;
        }
        tracing::warn!(%lease, %replica, error = error as &dyn std::error::Error, "failed to read log");
        self.unreadable();
    }

    /// Reports once that lines may be missing. Keeps trying while the run is alive: its log may have been
    /// removed or replaced.
    fn unreadable(&mut self) {
        let view = self.replica_view().unwrap_or_default();
        let ring_has_run = self.ring_has_run();
        let Some(run) = &mut self.run else { return };
        let is_running = self.final_attempts < FINAL_ATTEMPTS_MAX
            && view.run(&run.instance).is_some_and(|run| run.end.is_none());
        if !ring_has_run {
            self.ring.begin_log(&run.instance, Position::START);
        }
        if !std::mem::replace(&mut run.gap_reported, true)
            && let Some(gap) = self.unknown_gap(GapCause::Source)
        {
            self.push_gap(gap);
        }
        if is_running {
            self.source = Source::Retry(Instant::now() + RETRY_DELAY_MAX);
        } else {
            self.log_ended();
        }
    }
}

// === impl Actor: from run to run ===

impl Actor {
    /// Opens the newest run's log at its end. Followers that want older lines read them by a backfill.
    fn open_newest_run(&mut self) {
        let view = self.replica_view().unwrap_or_default();
        self.record = RunRecord::new(&view);
        match view.readable().next_back() {
            Some(run) => {
                self.run = Some(CurrentRun { ended_before_start: run.end.is_some(), ..CurrentRun::new(run) });
                self.open(ReadFrom::Last(0));
            }
            None => self.become_idle(),
        }
    }

    fn log_ended(&mut self) {
        self.flush();
        self.shared.source.resume();
        self.source = Source::Ended(Instant::now() + END_WAIT);
        self.view_changed();
    }

    /// Continues with the next run, once the current log has ended and the view states how its run ended.
    fn view_changed(&mut self) {
        self.note_runs();
        match self.source {
            Source::Idle => self.open_next_run(),
            Source::Ended(_) => {
                let view = self.replica_view().unwrap_or_default();
                let is_removed = self.is_removed();
                let Some(run) = &mut self.run else { return };
                let named = view.run(&run.instance);
                run.has_vanished = named.is_none();
                match named.map(Event::ended) {
                    // The log has ended, but the view does not show that yet.
                    Some(None) if !is_removed => return,
                    Some(Some(event)) if !run.ended_before_start => {
                        self.push_event(event);
                    }
                    _ => {}
                }
                self.source = Source::Idle;
                self.open_next_run();
            }
            Source::Opening(_) | Source::Reading(_) | Source::Retry(_) => {}
        }
    }

    /// Remembers the runs that the view names, which it may not name for long.
    fn note_runs(&mut self) {
        let Some(view) = self.replica_view() else { return };
        self.record.note(&view, self.run.as_ref().map(|run| &run.instance));
    }

    /// Whether the replica may have had runs after the current one that cannot be read.
    fn may_skip_runs(&self, view: &ReplicaView, next: Option<&Instance>) -> bool {
        self.run.as_ref().is_some_and(|last| self.record.may_skip(view, &last.instance, next))
    }

    fn open_next_run(&mut self) {
        let Some(view) = self.replica_view() else { return };
        if self.is_named_again(&view) {
            self.reopen();
            return;
        }
        let Some(run) = self.record.next(&view) else {
            self.become_idle();
            return;
        };
        let skips_runs = self.may_skip_runs(&view, Some(&run.instance));
        self.record.begin(&view, run);
        let last = self.run.as_ref().map(|last| last.instance.clone());
        self.reported_waiting = None;
        self.run = Some(CurrentRun::new(run));
        self.ring.begin_run(&run.instance, Event::started(run));
        if skips_runs && let Some(gap) = self.unknown_gap(GapCause::Rotated) {
            // The runs in between, if any, started and ended between two views, or while a log was read.
            self.push_gap_with(gap, Ring::push_skipped_runs);
        }
        self.ring.expect_first_line(&run.instance, last.as_ref().filter(|_| !skips_runs));
        self.open(ReadFrom::Start);
    }

    /// Whether the view names the last run again, after it did not: its pod may have had another index for a
    /// moment. Its log was read to an end that was none.
    fn is_named_again(&self, view: &ReplicaView) -> bool {
        let run = self.run.as_ref().filter(|run| run.has_vanished);
        run.and_then(|run| view.run(&run.instance)).is_some_and(|run| !run.log_is_gone)
    }

    /// Opens the log of the last run again, after its newest line.
    fn reopen(&mut self) {
        let Some(run) = &mut self.run else { return };
        run.has_vanished = false;
        let from = ReadFrom::After(run.chunker.position());
        self.open(from);
    }

    /// Waits for a new run, and reports once why none is running.
    fn become_idle(&mut self) {
        self.source = Source::Idle;
        let Some(ReplicaView { state: ReplicaState::Waiting { reason, message }, .. }) = self.replica_view()
        else {
            return;
        };
        if self.reported_waiting.as_ref() == Some(&reason) {
            return;
        }
        self.reported_waiting = Some(reason.clone());
        self.push_event(Event::waiting(reason, message));
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.context.metrics.actor_ends.of(self.end).increment(1);
        self.ring.close(self.end == ActorEnd::Gone);
    }
}

// === impl CurrentRun ===

impl CurrentRun {
    fn new(run: &Run) -> Self {
        Self {
            instance: run.instance.clone(),
            chunker: Chunker::new(Position::START),
            read_at: Instant::now(),
            last_time: None,
            ended_before_start: false,
            gap_reported: false,
            inexact_gap: None,
            has_vanished: false,
        }
    }
}

// === impl Source ===

impl Source {
    /// Waits for the next event. Cancel safe.
    async fn next(&mut self) -> SourceEvent {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Opening(opening) => SourceEvent::Opened(opening.await),
            Self::Reading(items) => SourceEvent::Item(items.next().await),
            Self::Retry(at) | Self::Ended(at) => {
                tokio::time::sleep_until(*at).await;
                SourceEvent::RetryDue
            }
        }
    }
}

// === impl ActorState ===

impl ActorState {
    /// Returns the state of the log that the actor reads.
    pub(super) fn source(&self) -> SourceStatus {
        self.source.get()
    }
}

/// What needs the actor although it is no follower counts as one.
impl Users for ActorState {
    fn add(&self) {
        self.followers.add();
        // An idle actor may be about to end: it checks the count again.
        self.followers.left.notify_one();
    }

    fn remove(&self) {
        self.followers.remove();
    }
}

// === impl Subscription ===

impl Subscription {
    pub(super) fn actor(&self) -> &Arc<ActorState> {
        &self.actor
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.actor.followers.remove();
    }
}

// === impl FollowerCount ===

impl FollowerCount {
    fn is_zero(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    fn add(&self) {
        self.count.fetch_add(1, Ordering::AcqRel);
    }

    fn remove(&self) {
        // Before the notification: the actor then checks the count, and does not check it again.
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.left.notify_one();
    }
}

#[cfg(test)]
#[cfg(feature = "loom")]
mod models {
    use loom::future::block_on;

    use super::*;
    use crate::sys::sync::{explore, spawn};

    #[test]
    fn actor_notices_that_last_follower_has_left() {
        explore(Some(5), || {
            let followers = Arc::new(FollowerCount::default());
            let leaving = [(); 2].map(|()| {
                followers.add();
                let followers = Arc::clone(&followers);
                spawn(move || followers.remove())
            });
            // As in the loop of the actor: it checks the count before it waits.
            while !followers.is_zero() {
                block_on(followers.left.notified());
            }
            for follower in leaving {
                follower.join().unwrap();
            }
        });
    }
}
