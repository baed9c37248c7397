//! One replica's way into one stream: first what was, then what comes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::future::BoxFuture;
use futures_core::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};

use super::actor::Subscription;
use super::actors::{ActorRegistry, Stopped};
use super::backfill::{Backfill, BackfillEvent, BackfillParams};
use super::backfill_limits::BackfillLimiter;
use super::frame::{self, Event, Gap};
use super::message::{Batch, Message};
use super::ring::{Entry, EntryKind, ReadOutcome};
use crate::model::id::{Instance, Replica};
use crate::model::line::GapCause;
use crate::model::position::{Cursor, Position};
use crate::model::quota::Exceeded;
use crate::model::time::LogTime;
use crate::model::view::Run;
use crate::stream::StreamControl;

/// Messages that a lane may send before it is the next one's turn; in the ring, where one look gets several, as many as that.
const TURN_MESSAGES: usize = 4;

/// A replica being sent.
pub struct ReplicaStream {
    scope: BackfillParams,
    fanout: ActorRegistry,
    permits: BackfillLimiter,
    stream: Arc<StreamControl>,
    mode: Mode,
    /// Messages that go out before anything else.
    pending: VecDeque<Message>,
    /// The position behind everything that was sent.
    at: Option<(Instance, Position)>,
    last_time: Option<LogTime>,
}

/// What a lane was found to be when it had its turn; `Pending` if it waits now.
#[derive(Debug, PartialEq, Eq)]
pub enum SendStep {
    /// It may have more.
    More,
    /// The follower fell behind: a gap, which has not been sent yet, comes next.
    Lagged,
    /// Its older lines may not be read, since a quota is used up; the stream was sent nothing yet.
    Refused(Box<Exceeded>),
    /// Nothing more will come.
    Ended,
}

enum Mode {
    Subscribing(BoxFuture<'static, Result<Subscription, Stopped>>),
    History(BoxStream<'static, BackfillEvent>),
    Live(Subscription),
    Ended(Ending),
}

/// How a lane ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// All that was asked for was sent.
    Complete,
    /// The log cannot be read at the moment.
    Unreadable,
}

// === impl Lane ===

impl ReplicaStream {
    /// A lane for what `scope` says, into `stream`.
    pub fn new(
        scope: BackfillParams,
        fanout: ActorRegistry,
        permits: BackfillLimiter,
        stream: Arc<StreamControl>,
    ) -> Self {
        let mut lane = Self {
            at: scope.resume.clone(),
            scope,
            fanout,
            permits,
            stream,
            mode: Mode::Ended(Ending::Complete),
            pending: VecDeque::new(),
            last_time: None,
        };
        if lane.scope.extent.follows() {
            lane.subscribe();
        } else {
            lane.read(None);
        }
        lane
    }

    /// Its replica.
    pub fn replica(&self) -> &Replica {
        &self.scope.replica
    }

    /// The position behind everything that was sent.
    pub fn cursor(&self) -> Option<Cursor> {
        let (instance, position) = self.at.clone()?;
        Some(Cursor { replica: self.scope.replica.clone(), instance, position })
    }

    /// Whether it sends what is already held for everybody, and not what it reads for this follower alone.
    pub fn is_live(&self) -> bool {
        matches!(self.mode, Mode::Live(_))
    }

    /// Whether nothing more will come.
    pub fn is_ended(&self) -> bool {
        matches!(self.mode, Mode::Ended(_)) && self.pending.is_empty()
    }

    /// Whether nothing more will come because the log cannot be read at the moment.
    pub fn is_unreadable(&self) -> bool {
        matches!(self.mode, Mode::Ended(Ending::Unreadable))
    }

    /// Takes a turn: puts what comes next into `batch`, some messages at most, and those behind the first only as long as `batch`
    /// has room.
    pub fn poll_turn(&mut self, batch: &mut Batch, cx: &mut Context<'_>) -> Poll<SendStep> {
        for _ in 0..TURN_MESSAGES {
            if let Some(message) = self.pending.pop_front() {
                if self.pending.is_empty() {
                    // Most lanes never have any again, and there are many.
                    self.pending = VecDeque::new();
                }
                self.sent(&message);
                batch.add(message, None);
            } else {
                match &mut self.mode {
                    Mode::Subscribing(subscribing) => match ready!(subscribing.poll_unpin(cx)) {
                        Ok(subscription) => self.read(Some(subscription)),
                        Err(Stopped) => self.mode = Mode::Ended(Ending::Complete),
                    },
                    Mode::History(steps) => match ready!(steps.poll_next_unpin(cx)) {
                        Some(BackfillEvent::Send(message)) => {
                            self.sent(&message);
                            batch.add(message, None);
                        }
                        Some(BackfillEvent::Join(subscription)) => self.join(*subscription),
                        Some(BackfillEvent::Orphaned) => self.again(),
                        Some(BackfillEvent::Refused(exceeded)) => {
                            return Poll::Ready(SendStep::Refused(exceeded));
                        }
                        Some(BackfillEvent::Unreadable) => self.mode = Mode::Ended(Ending::Unreadable),
                        Some(BackfillEvent::End) | None => self.mode = Mode::Ended(Ending::Complete),
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

    /// A turn in the ring: one look at it gets all that the turn may have.
    fn poll_live(&mut self, batch: &mut Batch, cx: &mut Context<'_>) -> Poll<SendStep> {
        let Mode::Live(subscription) = &mut self.mode else {
            return Poll::Ready(SendStep::More);
        };
        match ready!(subscription.reader.poll_read(batch.room(), self.scope.representation, cx)) {
            ReadOutcome::Entries { entries, more } => {
                for entry in entries.into_iter().flatten() {
                    let message = self.live_message(&entry);
                    batch.add(message, Some(entry.read_at));
                }
                if more { Poll::Ready(SendStep::More) } else { Poll::Pending }
            }
            ReadOutcome::Lagged { lines, bytes, exact, next } => {
                self.lagged(lines, bytes, exact, &next);
                Poll::Ready(SendStep::Lagged)
            }
            ReadOutcome::Closed => {
                // For good, if the replica is gone; then everything was taken. Should another pod be in its slot by now, that is for a
                // lane of its own.
                if self.scope.is_gone() || subscription.reader.is_gone() {
                    self.mode = Mode::Ended(Ending::Complete);
                } else {
                    self.again();
                }
                Poll::Ready(SendStep::More)
            }
        }
    }

    fn subscribe(&mut self) {
        let (fanout, scope) = (self.fanout.clone(), self.scope.clone());
        let subscribing = async move { fanout.subscribe(&scope.lease, &scope.replica, &scope.view).await };
        self.mode = Mode::Subscribing(Box::pin(subscribing));
    }

    fn read(&mut self, live: Option<Subscription>) {
        let reading = Backfill::new(self.scope.clone(), self.permits.clone(), Arc::clone(&self.stream), live);
        self.mode = Mode::History(reading.into_stream());
    }

    /// Goes on in the ring. A follower that has not been sent a position yet is told where it stands, so that it can go on
    /// from there should it be cut off before the first line.
    fn join(&mut self, mut subscription: Subscription) {
        self.stream.mark_admitted();
        subscription.reader.follow_for(Arc::clone(&self.stream));
        if self.at.is_none()
            && let Some((instance, position)) = subscription.reader.position()
        {
            let cursor = Cursor { replica: self.scope.replica.clone(), instance, position };
            let at = Some((cursor.instance.clone(), position));
            self.pending.push_back(Message { at, ..Message::bare(frame::cursors([&cursor])) });
        }
        self.mode = Mode::Live(subscription);
    }

    /// The actor has ended: another one goes on behind what was sent.
    fn again(&mut self) {
        self.scope.resume.clone_from(&self.at);
        self.subscribe();
    }

    fn live_message(&mut self, entry: &Arc<Entry>) -> Message {
        let Mode::Live(subscription) = &self.mode else {
            return Message::bare(bytes::Bytes::new());
        };
        let bytes = entry.message(subscription.reader.ring(), self.scope.representation);
        let (lines, log_bytes) = entry.size();
        let mut message = Message { lines, log_bytes, ..Message::bare(bytes) };
        match &entry.kind {
            EntryKind::Event => return message,
            EntryKind::Lines(chunk, _) => self.last_time = chunk.marks.last().map(|mark| mark.time),
            EntryKind::Gap(gap) => message.gap = Some(*gap),
        }
        match (&mut self.at, &entry.instance) {
            (Some((known, position)), Some(instance)) if known == instance => *position = entry.end,
            (at, Some(instance)) => *at = Some((instance.clone(), entry.end)),
            (_, None) => {}
        }
        message
    }

    fn lagged(&mut self, lines: u64, bytes: u64, exact: bool, next: &Entry) {
        let place = next.instance.clone().map(|instance| (instance, next.start));
        let gap =
            Gap { cause: GapCause::Lag, lines, bytes, exact, from: self.last_time, to: next.first_time() };
        let at = place.as_ref().map(|(instance, position)| (instance, *position));
        let message = frame::gap(&self.scope.replica, at, &gap);
        let run = self.run_not_told(next);
        self.pending.push_back(Message { at: place, gap: Some(gap), ..Message::bare(message) });
        if let Some(run) = run {
            let event = frame::event(&self.scope.replica, &Event::started(&run));
            self.pending.push_back(Message::bare(event));
        }
    }

    /// The run of `next`, if the news of its start was among what was lost.
    fn run_not_told(&self, next: &Entry) -> Option<Run> {
        let instance = next.instance.as_ref()?;
        let (known, _) = self.at.as_ref()?;
        if known == instance || matches!(next.kind, EntryKind::Event) {
            return None;
        }
        let view = self.scope.view.borrow();
        view.replica(&self.scope.replica)?.run(instance).cloned()
    }

    fn sent(&mut self, message: &Message) {
        if let Some(at) = &message.at {
            self.at = Some(at.clone());
        }
        self.last_time = message.last_time.or(self.last_time);
    }
}

impl std::fmt::Debug for ReplicaStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("replica", &self.scope.replica)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}
