//! One replica's part of a response stream: backfill, then live entries.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::LagPolicy;
use super::actor::{ActorState, Subscription};
use super::actors::ActorRegistry;
use super::backfill::{Backfill, BackfillEvent, BackfillParams};
use super::backfill_limits::BackfillLimiter;
use super::encoder::{self, Encoder};
use super::heartbeat::{Phase, SourceCell};
use super::message::{Batch, Content, Event, Gap, Message, RunChange};
use super::ring::{Entry, EntryKind, Loss, ReadOutcome};
use crate::model::id::{Instance, Replica};
use crate::model::line::GapCause;
use crate::model::metrics::RefillStart;
use crate::model::position::{Cursor, Position};
use crate::model::quota::Exceeded;
use crate::model::time::LogTime;
use crate::model::view::Run;
use crate::stream::StreamControl;

/// Backfill messages per [`ReplicaStream::poll_send`], so that replicas of one stream alternate. A read of
/// the ring returns as many.
const MESSAGES_PER_POLL: usize = 4;

/// A follower that lags this soon after a refill is slower than its replica, at least for now. Its next
/// refill joins only near the ring's head, so that the follower does not alternate between log and ring.
const RELAPSE_PERIOD: Duration = Duration::from_secs(10);

pub(crate) struct ReplicaStream {
    params: BackfillParams,
    actors: ActorRegistry,
    limiter: BackfillLimiter,
    control: Arc<StreamControl>,
    mode: Mode,
    /// Goes before the messages of `mode`.
    pending: VecDeque<Content>,
    /// The position after the last message sent.
    position: Option<(Instance, Position)>,
    /// The requested position, until a line was sent. No cursor may be before it, and that of a gap not before
    /// `position`: positions in a log that was rotated away count from the first line that is left, and
    /// another gateway may still have those before.
    requested: Option<(Instance, Position)>,
    /// The run that the last message began or ended. `None` if it has a position.
    changed_run: Option<(Instance, RunChange)>,
    /// Whether `mode` is a refill.
    is_refilling: bool,
    /// When the last refill ended.
    refilled_at: Option<Instant>,
    /// Time of the last line sent.
    last_time: Option<LogTime>,
    /// The last message sent ends within a line.
    within_line: bool,
    /// `None` if no heartbeats were asked for.
    heartbeats: Option<Box<Heartbeats>>,
}

/// What a replica's heartbeats need.
struct Heartbeats {
    /// When the last message was sent, or the stream began.
    last_sent: Instant,
    /// State of the log of the backfill.
    backfill: Arc<SourceCell>,
    /// Shared state of the actor, since the first subscription.
    actor: Option<Arc<ActorState>>,
}

/// The result of [`ReplicaStream::poll_send`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SendStep {
    /// There may be more to send.
    More,
    /// The follower lags, and is to be disconnected then.
    Lagged,
    /// A quota does not permit the backfill. The stream was sent nothing yet.
    Rejected(Box<Exceeded>),
    Ended,
}

enum Mode {
    /// Waits for the actor; becomes `Backfill`, or `Ended` if the gateway shuts down.
    Subscribing(BoxFuture<'static, Option<Subscription>>),
    /// Reads older lines. Becomes `Live` at the ring, `Subscribing` if the actor ends before that, or `Ended`
    /// without follow.
    Backfill(BoxStream<'static, BackfillEvent>),
    /// Reads the ring. When it is closed, becomes `Ended` if the replica is gone, else `Subscribing`. Becomes
    /// `Backfill` if the follower lags and wants a refill.
    Live(Subscription),
    Ended(Ending),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// All requested lines were sent.
    Done,
    /// The log cannot be read at the moment.
    Unreadable,
}

// === impl ReplicaStream ===

impl ReplicaStream {
    pub(crate) fn new(
        mut params: BackfillParams,
        actors: ActorRegistry,
        limiter: BackfillLimiter,
        control: Arc<StreamControl>,
        has_heartbeats: bool,
    ) -> Self {
        let heartbeats = has_heartbeats.then(|| {
            let backfill = Arc::new(SourceCell::new(Phase::Backfill { lines_left: None }));
            Box::new(Heartbeats { last_sent: Instant::now(), backfill, actor: None })
        });
        params.source = heartbeats.as_ref().map(|heartbeats| Arc::clone(&heartbeats.backfill));
        let mut stream = Self {
            position: params.resume.clone(),
            requested: params.resume.clone(),
            params,
            actors,
            limiter,
            control,
            mode: Mode::Ended(Ending::Done),
            pending: VecDeque::new(),
            changed_run: None,
            is_refilling: false,
            refilled_at: None,
            last_time: None,
            within_line: false,
            heartbeats,
        };
        if stream.params.range.follows() {
            stream.subscribe();
        } else {
            stream.start_backfill(None);
        }
        stream
    }

    pub(crate) fn replica(&self) -> &Replica {
        &self.params.replica
    }

    /// Returns the cursor after the last message sent.
    pub(crate) fn cursor(&self) -> Option<Cursor> {
        let (instance, position) = self.position.clone()?;
        let position = not_before(self.requested.as_ref(), &instance, position);
        Some(Cursor { replica: self.params.replica.clone(), instance, position })
    }

    /// Whether it reads the ring, and not a log of its own.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.mode, Mode::Live(_))
    }

    /// Whether it waits for the actor, or for a permit or log of its backfill.
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.mode, Mode::Subscribing(_) | Mode::Backfill(_))
    }

    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.mode, Mode::Ended(_)) && self.pending.is_empty()
    }

    /// Whether it has ended because the log cannot be read at the moment.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self.mode, Mode::Ended(Ending::Unreadable))
    }

    /// Records that a message was sent now.
    pub(crate) fn mark_sent(&mut self) {
        if let Some(heartbeats) = &mut self.heartbeats {
            heartbeats.last_sent = Instant::now();
        }
    }

    /// Returns since when nothing was sent, if the stream has heartbeats.
    pub(crate) fn silent_since(&self) -> Option<Instant> {
        self.heartbeats.as_ref().map(|heartbeats| heartbeats.last_sent)
    }

    /// Makes a heartbeat. `None` after the end, and without heartbeats.
    pub(crate) fn heartbeat(&self) -> Option<Bytes> {
        let Heartbeats { backfill, actor, .. } = self.heartbeats.as_deref()?;
        let actor = actor.as_ref().map(|actor| actor.source());
        let status = match &self.mode {
            Mode::Ended(_) => return None,
            Mode::Live(Subscription { reader, .. }) if !reader.is_at_end() => {
                Phase::Backfill { lines_left: reader.lines_left() }.into()
            }
            Mode::Live(subscription) => subscription.actor().source(),
            Mode::Subscribing(_) | Mode::Backfill(_) => match actor {
                Some(actor) if backfill.get().is_at_head() => actor,
                _ => backfill.get(),
            },
        };
        let source = status.describe(&self.params.view.borrow(), &self.params.replica);
        let cursor = self.cursor();
        let BackfillParams { representation, replica, .. } = &self.params;
        Some(encoder::heartbeat(*representation, Some(replica), cursor.as_ref(), source))
    }

    /// Adds the next messages to `batch`: at least one, if there is one, and a few more while the batch has
    /// room. `Pending`: there is nothing more for now, and the waker is registered. Messages may have been
    /// added before, so check the batch.
    pub(crate) fn poll_send(&mut self, batch: &mut Batch, cx: &mut Context<'_>) -> Poll<SendStep> {
        for _ in 0..MESSAGES_PER_POLL {
            if let Some(content) = self.pending.pop_front() {
                if self.pending.is_empty() {
                    // Frees the memory: most streams use it once, and there are many.
                    self.pending = VecDeque::new();
                }
                self.send(content, batch);
            } else {
                match &mut self.mode {
                    Mode::Subscribing(subscribing) => match ready!(subscribing.poll_unpin(cx)) {
                        Some(subscription) => self.start_backfill(Some(subscription)),
                        None => self.mode = Mode::Ended(Ending::Done),
                    },
                    Mode::Backfill(events) => match ready!(events.poll_next_unpin(cx)) {
                        Some(BackfillEvent::Send(content)) => self.send(content, batch),
                        Some(BackfillEvent::Joined(subscription)) => self.go_live(*subscription),
                        Some(BackfillEvent::Skip(subscription, cause)) => {
                            self.go_live(*subscription);
                            self.skip(cause);
                        }
                        Some(BackfillEvent::ActorEnded) => self.resubscribe(),
                        Some(BackfillEvent::Rejected(exceeded)) => {
                            return Poll::Ready(SendStep::Rejected(exceeded));
                        }
                        Some(BackfillEvent::Unreadable) => self.mode = Mode::Ended(Ending::Unreadable),
                        Some(BackfillEvent::Done) | None => self.mode = Mode::Ended(Ending::Done),
                    },
                    Mode::Live(_) => return self.poll_live(batch, cx),
                    Mode::Ended(_) => return Poll::Ready(SendStep::Ended),
                }
            }
            if batch.room() == 0 {
                break;
            }
        }
        Poll::Ready(SendStep::More)
    }

    fn poll_live(&mut self, batch: &mut Batch, cx: &mut Context<'_>) -> Poll<SendStep> {
        let Self {
            mode: Mode::Live(subscription),
            params,
            position,
            requested,
            changed_run,
            last_time,
            within_line,
            ..
        } = self
        else {
            return Poll::Ready(SendStep::More);
        };
        match ready!(subscription.reader.poll_read(batch.room(), params.representation, cx)) {
            ReadOutcome::Entries { entries, more } => {
                for entry in entries.into_iter().flatten() {
                    let ring = subscription.reader.ring();
                    if let EntryKind::Lines(..) = entry.kind {
                        *requested = None;
                    }
                    let end = match (&entry.kind, &entry.instance) {
                        (EntryKind::Gap(_), Some(instance)) => {
                            let end = not_before(position.as_ref(), instance, entry.end);
                            not_before(requested.as_ref(), instance, end)
                        }
                        _ => entry.end,
                    };
                    let bytes = match (&entry.kind, &entry.instance) {
                        (EntryKind::Gap(gap), Some(instance)) if end != entry.end => {
                            ring.encoder(params.representation).gap(Some((instance, end)), gap, *within_line)
                        }
                        _ => entry.message(ring, params.representation, *within_line),
                    };
                    let message = live_message(bytes, &entry, end, position, last_time, within_line);
                    record_run_change(changed_run, &entry);
                    batch.add(message, Some(entry.read_at));
                }
                if more { Poll::Ready(SendStep::More) } else { Poll::Pending }
            }
            ReadOutcome::Lagged => self.lagged(),
            ReadOutcome::Closed => {
                // If the replica is gone, all of its lines were sent. A new replica at its index gets a
                // stream of its own.
                if self.params.is_gone() || subscription.reader.is_gone() {
                    self.mode = Mode::Ended(Ending::Done);
                } else {
                    self.resubscribe();
                }
                Poll::Ready(SendStep::More)
            }
        }
    }

    fn subscribe(&mut self) {
        let BackfillParams { lease, replica, view, .. } = &self.params;
        self.mode = Mode::Subscribing(Box::pin(self.actors.subscribe(lease, replica, view)));
    }

    /// Subscribes again after the actor has ended, to continue after the last message sent.
    fn resubscribe(&mut self) {
        self.is_refilling = false;
        self.resume_after_last();
        self.subscribe();
    }

    /// Lets the next backfill continue after the last message sent.
    fn resume_after_last(&mut self) {
        let last = self.position.clone();
        (self.params.resume, self.params.run_ended) = match &self.changed_run {
            None => (last, false),
            Some((run, RunChange::Started)) => (Some((run.clone(), Position::START)), false),
            Some((run, RunChange::Ended)) => {
                let position = last.filter(|(last, _)| last == run).map_or(Position::START, |(_, at)| at);
                (Some((run.clone(), position)), true)
            }
        };
    }

    fn lagged(&mut self) -> Poll<SendStep> {
        match self.params.on_lag {
            LagPolicy::Close => return Poll::Ready(SendStep::Lagged),
            // The client resumes after its cursor.
            LagPolicy::Refill if self.control.end_requested().is_some() => return Poll::Pending,
            LagPolicy::Refill => {
                if !self.start_refill() {
                    self.skip(GapCause::Lag);
                }
            }
            LagPolicy::Drop => self.skip(GapCause::Lag),
        }
        Poll::Ready(SendStep::More)
    }

    /// Reads the lines that the follower lagged behind from the log. Returns `false` if no log can be asked
    /// for them: the follower's position is not known, or is ambiguous.
    fn start_refill(&mut self) -> bool {
        self.resume_after_last();
        let Mode::Live(subscription) = &mut self.mode else { return false };
        let Some((_, position)) = self.params.resume else { return false };
        if !subscription.reader.begin_refill(position) {
            return false;
        }
        let is_relapse = self.refilled_at.is_some_and(|at| at.elapsed() < RELAPSE_PERIOD);
        let start = if is_relapse { RefillStart::Again } else { RefillStart::First };
        let Mode::Live(subscription) = std::mem::replace(&mut self.mode, Mode::Ended(Ending::Done)) else {
            return false;
        };
        let (params, limiter) = (self.params.clone(), self.limiter.clone());
        let refill = Backfill::refill(params, limiter, Arc::clone(&self.control), subscription, start);
        self.mode = Mode::Backfill(refill.into_stream());
        self.is_refilling = true;
        true
    }

    fn start_backfill(&mut self, live: Option<Subscription>) {
        if let (Some(heartbeats), Some(live)) = (&mut self.heartbeats, &live) {
            heartbeats.actor = Some(Arc::clone(live.actor()));
        }
        let backfill =
            Backfill::new(self.params.clone(), self.limiter.clone(), Arc::clone(&self.control), live);
        self.mode = Mode::Backfill(backfill.into_stream());
    }

    /// Continues in the ring. A follower that was sent no position yet gets a cursor first: it can then
    /// resume even if it is disconnected before the first line.
    fn go_live(&mut self, mut subscription: Subscription) {
        self.control.mark_started();
        let is_refilled = std::mem::take(&mut self.is_refilling);
        if is_refilled {
            self.refilled_at = Some(Instant::now());
        }
        subscription.reader.report_progress(Arc::clone(&self.control));
        // After a refill the next line has a position, and a gap may come before it.
        if self.position.is_none()
            && !is_refilled
            && let Some((instance, position)) = subscription.reader.position()
        {
            let cursor = Cursor { replica: self.params.replica.clone(), instance, position };
            self.pending.push_back(Content::Cursor(cursor));
        }
        self.mode = Mode::Live(subscription);
    }

    /// Continues after the entries that were evicted, with a gap for them.
    fn skip(&mut self, cause: GapCause) {
        let Mode::Live(subscription) = &mut self.mode else { return };
        // Never `None`: a ring that has evicted entries has a newer one.
        let Some(Loss { lines, bytes, exact, next }) = subscription.reader.skip() else {
            return self.resubscribe();
        };
        let position = next.instance.clone().map(|instance| (instance, next.start));
        let gap = Gap { cause, lines, bytes, exact, from: self.last_time, to: next.first_time() };
        let run = self.unannounced_run(&next);
        self.pending.push_back(Content::Gap(position, gap));
        if let Some(run) = run {
            let event = Event::started(&run);
            self.pending.push_back(Content::Event(Some(run.instance), event));
        }
    }

    /// Returns the run of `next`, if its start event was lost in the gap.
    fn unannounced_run(&self, next: &Entry) -> Option<Run> {
        let instance = next.instance.as_ref()?;
        let current = self.changed_run.as_ref().map(|(run, _)| run);
        let current = current.or(self.position.as_ref().map(|(run, _)| run))?;
        if current == instance || matches!(next.kind, EntryKind::Event(_)) {
            return None;
        }
        let view = self.params.view.borrow();
        view.replica(&self.params.replica)?.run(instance).cloned()
    }

    /// Encodes the content for this follower.
    fn send(&mut self, content: Content, batch: &mut Batch) {
        match &content {
            Content::Event(run, event) => {
                let change = run.clone().zip(event.run_change());
                if change.is_some() && change == self.changed_run {
                    // The ring has sent it, before the follower lagged.
                    return;
                }
                // A gap may have a position in the run, and come before the event of its start.
                let is_placed =
                    self.position.as_ref().is_some_and(|(current, _)| Some(current) == run.as_ref());
                let change = change.filter(|(_, change)| *change == RunChange::Ended || !is_placed);
                self.changed_run = change.or(self.changed_run.take());
            }
            Content::Lines(..) | Content::Gap(..) | Content::Cursor(_) => self.changed_run = None,
        }
        let BackfillParams { context, replica, representation, .. } = &self.params;
        let encoder = Encoder { replica, names: context.names, representation: *representation };
        let within_line = self.within_line;
        let message = match content {
            Content::Lines(instance, chunk) => {
                let bytes = context.memory.hold(encoder.lines(&instance, &chunk), 0);
                let message = Message {
                    lines: chunk.lines(),
                    log_bytes: chunk.data.len() as u64,
                    ..Message::bare(bytes)
                };
                self.requested = None;
                self.within_line = chunk.is_unfinished();
                self.last_time = chunk.line_ends.last().map(|line| line.time).or(self.last_time);
                self.position = Some((instance, chunk.end));
                message
            }
            Content::Gap(position, gap) => {
                let at = position.map(|(instance, position)| {
                    let position = not_before(self.position.as_ref(), &instance, position);
                    let position = not_before(self.requested.as_ref(), &instance, position);
                    (instance, position)
                });
                // A backfill knows only its own lines.
                let gap = Gap { from: gap.from.or(self.last_time), ..gap };
                let place = at.as_ref().map(|(instance, position)| (instance, *position));
                let bytes = encoder.gap(place, &gap, within_line);
                self.within_line &= bytes.is_empty();
                self.position = at.or(self.position.take());
                Message { gap: Some(gap), ..Message::bare(bytes) }
            }
            Content::Event(instance, event) => {
                let bytes = encoder.event(instance.as_ref(), &event, within_line);
                self.within_line &= bytes.is_empty();
                Message::bare(bytes)
            }
            Content::Cursor(cursor) => {
                let bytes = encoder::cursors(*representation, [&cursor]);
                self.position = Some((cursor.instance, cursor.position));
                Message::bare(bytes)
            }
        };
        batch.add(message, None);
    }
}

/// Returns the position in the log of `instance`, or `least` if that is later in the same log.
fn not_before(least: Option<&(Instance, Position)>, instance: &Instance, position: Position) -> Position {
    match least {
        Some((run, least)) if run == instance => position.max(*least),
        _ => position,
    }
}

/// Makes the message of a ring entry, and advances the stream's position to `end`, its time and its place in
/// the line.
fn live_message(
    bytes: Bytes,
    entry: &Entry,
    end: Position,
    position: &mut Option<(Instance, Position)>,
    last_time: &mut Option<LogTime>,
    within_line: &mut bool,
) -> Message {
    let (lines, log_bytes) = entry.size();
    let mut message = Message { lines, log_bytes, ..Message::bare(bytes) };
    match &entry.kind {
        EntryKind::Event(_) => {
            *within_line &= message.bytes.is_empty();
            return message;
        }
        EntryKind::Lines(chunk, _) => {
            *within_line = chunk.is_unfinished();
            *last_time = chunk.line_ends.last().map(|line| line.time);
        }
        EntryKind::Gap(gap) => {
            *within_line &= message.bytes.is_empty();
            message.gap = Some(*gap);
        }
    }
    // In place, without a copy of the instance: the usual case.
    match (position, &entry.instance) {
        (Some((current, position)), Some(instance)) if current == instance => *position = end,
        (position, Some(instance)) => *position = Some((instance.clone(), end)),
        (_, None) => {}
    }
    message
}

/// Records whether the entry begins or ends a run.
fn record_run_change(changed_run: &mut Option<(Instance, RunChange)>, entry: &Entry) {
    match &entry.kind {
        EntryKind::Event(event) => {
            if let (Some(run), Some(change)) = (&entry.instance, event.run_change()) {
                *changed_run = Some((run.clone(), change));
            }
        }
        EntryKind::Lines(..) | EntryKind::Gap(_) => *changed_run = None,
    }
}
