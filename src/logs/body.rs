//! The response body of a log request: merges the streams of its replicas.
//!
//! A body works only when it is polled, and the connection polls it only while the peer takes data. So a slow
//! follower delays no other one: its reads stop, and the rings count the lines that it misses until it is
//! polled again.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use super::actor::ActorContext;
use super::actors::ActorRegistry;
use super::backfill::BackfillParams;
use super::backfill_limits::BackfillLimiter;
use super::encoder;
use super::heartbeat::{self, HeartbeatTimer};
use super::memory_budget::{Charge, RingMinimum};
use super::message::{Batch, Gap, Message};
use super::notice::NoticeKind;
use super::replica_stream::{ReplicaStream, SendStep};
use super::representation::Representation;
use super::{BackfillFilter, LogsRequest, ReadRange};
use crate::model::id::Replica;
use crate::model::limits::{CURSORS_MAX, STREAM_SEND_MAX_BYTES};
use crate::model::position::Cursor;
use crate::model::quota::Exceeded;
use crate::model::view::LeaseView;
use crate::platform;
use crate::stream::{Messages, StreamControl, StreamEnd};
use crate::sys::gated_poll::Gated;

/// A websocket that waits for lines gets a notice after this time: its clients give up on a stream that is
/// silent for three seconds.
const WAIT_NOTICE_AFTER: Duration = Duration::from_secs(1);

/// Without follow, the notice is repeated as often, since these clients take a longer pause for the end.
const WAIT_NOTICE_INTERVAL: Duration = Duration::from_secs(2);

/// The body of a response to `ServiceLogs`.
pub(crate) struct LogsBody {
    request: LogsRequest,
    actors: ActorRegistry,
    limiter: BackfillLimiter,
    view: watch::Receiver<Arc<LeaseView>>,
    /// Changes of the view; `None` without follow, and after the lease has ended.
    changes: Option<Gated<BoxStream<'static, Arc<LeaseView>>>>,
    /// Replicas that have, or had, a stream and are still in the view; sorted.
    served: Vec<Replica>,
    streams: Vec<ReplicaStream>,
    /// Index of the stream that was polled last: they take turns.
    last_polled: usize,
    /// Replicas whose log cannot be read at the moment. The stream ends with them after all others are done.
    unreadable: Vec<Replica>,
    /// Sent first, if no replica is deployed.
    notice: Option<Message>,
    /// Sends notices that the stream waits; `None` if it sends none, or no more.
    wait_timer: Option<WaitTimer>,
    /// `None` if no heartbeats were asked for.
    heartbeat_timer: Option<HeartbeatTimer>,
    /// The lease has ended: the stream ends after the remaining lines.
    lease_ended: bool,
    stage: Stage,
    /// Remainder of a message that the last frame had to cut. Sent before anything else.
    remainder: Option<Bytes>,
    control: Arc<StreamControl>,
    trailers: Trailers,
    /// The stream's memory; `None` if it was rejected.
    memory: Option<Charge>,
}

/// Returns the trailers for the end of a stream. Called once, as soon as the end is known.
pub(crate) type Trailers = Box<dyn Fn(&StreamEnd) -> HeaderMap + Send>;

enum Stage {
    /// Sends messages until the request is complete or the stream is asked to end.
    Running,
    /// Asked to end: sends the entries in the rings, up to this many bytes; becomes `Closing`.
    SendingRest(StreamEnd, usize),
    /// Sends the cursors; becomes `Trailers`.
    Closing(StreamEnd),
    /// Waits until HTTP/2 has taken all messages; becomes `Done`.
    Trailers(Box<HeaderMap>),
    Done,
}

/// When the next notice is due that the stream waits.
struct WaitTimer(Pin<Box<Sleep>>);

// === impl WaitTimer ===

impl WaitTimer {
    /// Returns `None` if the representation has no such notices.
    fn new(representation: Representation) -> Option<Self> {
        match representation {
            Representation::WebSocket(notices) if notices.includes(NoticeKind::Wait) => {
                Some(Self(Box::pin(tokio::time::sleep(WAIT_NOTICE_AFTER))))
            }
            _ => None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }

    fn restart(&mut self, delay: Duration) {
        self.0.as_mut().reset(Instant::now() + delay);
    }
}

// === impl LogsBody ===

impl LogsBody {
    pub(crate) fn new(
        request: LogsRequest,
        actors: ActorRegistry,
        limiter: BackfillLimiter,
        view: watch::Receiver<Arc<LeaseView>>,
        control: Arc<StreamControl>,
        trailers: Trailers,
    ) -> Self {
        let mut body = Self {
            changes: request.range.follows().then(|| Gated::new(platform::changes(view.clone()))),
            request,
            actors,
            limiter,
            view,
            served: Vec::new(),
            streams: Vec::new(),
            last_polled: 0,
            unreadable: Vec::new(),
            notice: None,
            wait_timer: None,
            heartbeat_timer: None,
            lease_ended: false,
            stage: Stage::Running,
            remainder: None,
            control,
            trailers,
            memory: None,
        };
        let view = Arc::clone(&body.view.borrow());
        let (memory, _of_rings) = match body.admit(&view) {
            Ok(admitted) => admitted,
            Err(exceeded) => {
                body.stage = Stage::Closing(StreamEnd::Exceeded(Box::new(exceeded)));
                return body;
            }
        };
        body.memory = Some(memory);
        body.add_streams(&view, false);
        let representation = body.request.representation;
        body.notice = body.streams.is_empty().then(|| {
            Message::bare(encoder::nothing_deployed(representation, body.request.filter.only_service()))
        });
        body.wait_timer = WaitTimer::new(representation);
        body.heartbeat_timer = body.request.heartbeat.map(HeartbeatTimer::new);
        body
    }

    /// Reserves memory for the stream, and for the rings that it starts.
    fn admit(&self, view: &LeaseView) -> Result<(Charge, RingMinimum), Exceeded> {
        let ActorContext { limits, memory, .. } = self.actors.context();
        let has_no_ring = |replica: &Replica| !self.actors.runs(&self.request.lease, replica);
        let new_rings = match self.request.range {
            ReadRange::Follow(_) => {
                view.select(&self.request.filter).filter(|(replica, _)| has_no_ring(replica)).count()
            }
            ReadRange::Previous(_) | ReadRange::UntilNow(_) => 0,
        };
        let rings = new_rings.min(limits.quota.replicas_per_request);
        memory.admit_stream(rings, limits.ring_max_bytes)
    }

    /// Adds a stream for each selected replica that has none, up to the quota. `are_new`: the replicas have
    /// appeared since the request.
    fn add_streams(&mut self, view: &LeaseView, are_new: bool) {
        self.lease_ended |= view.ended;
        self.served.retain(|replica| view.replica(replica).is_some());
        let max = self.actors.context().limits.quota.replicas_per_request;
        let existing = self.streams.len();
        for (replica, replica_view) in view.select(&self.request.filter) {
            // A replica that was removed and is back may still have its former stream, which sends its last
            // lines.
            let has_stream = || self.streams[..existing].iter().any(|stream| *stream.replica() == replica);
            let Err(index) = self.served.binary_search(&replica) else { continue };
            if self.streams.len() >= max || has_stream() {
                continue;
            }
            // A replica that is back continues after the last line sent, unless that run is no longer
            // readable.
            let cursor = self.request.resume.remove(&replica);
            let resume = cursor.filter(|(run, _)| {
                !are_new || replica_view.readable().any(|readable| readable.instance == *run)
            });
            // A replica that appears while it is followed is read from its first line.
            let range =
                if are_new { ReadRange::Follow(BackfillFilter::default()) } else { self.request.range };
            let params = BackfillParams {
                context: self.actors.context().clone(),
                lease: self.request.lease.clone(),
                view: self.view.clone(),
                range,
                resume,
                run_ended: false,
                representation: self.request.representation,
                on_lag: self.request.on_lag,
                is_new: are_new,
                source: None,
                replica: replica.clone(),
            };
            if self.streams.is_empty() {
                // Most requests follow one replica, and `push` would reserve memory for four.
                self.streams.reserve_exact(1);
                self.served.reserve_exact(1);
            }
            self.streams.push(ReplicaStream::new(
                params,
                self.actors.clone(),
                self.limiter.clone(),
                Arc::clone(&self.control),
                self.request.heartbeat.is_some(),
            ));
            self.served.insert(index, replica);
        }
    }

    fn poll_changes(&mut self, cx: &mut Context<'_>) {
        while let Some(changes) = &mut self.changes {
            match changes.poll_next_unpin(cx) {
                Poll::Ready(Some(view)) => self.add_streams(&view, true),
                Poll::Ready(None) => {
                    self.changes = None;
                    self.lease_ended = true;
                }
                Poll::Pending => return,
            }
        }
    }

    /// Fills `batch` from the streams, in turns. Returns why the response ends, if it does.
    fn fill(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Option<StreamEnd> {
        loop {
            // Streams in a row that reported nothing more.
            let mut idle = 0;
            while idle < self.streams.len() && batch.room() > 0 {
                self.last_polled = (self.last_polled + 1) % self.streams.len();
                let stream = &mut self.streams[self.last_polled];
                idle += 1;
                let messages = batch.messages;
                let step = stream.poll_send(batch, cx);
                if batch.messages > messages {
                    stream.mark_sent();
                }
                match step {
                    Poll::Ready(SendStep::Lagged) => {
                        return Some(StreamEnd::Lagged(stream.replica().to_string()));
                    }
                    Poll::Ready(SendStep::Rejected(exceeded)) => return Some(StreamEnd::Exceeded(exceeded)),
                    Poll::Ready(SendStep::More) => idle = 0,
                    Poll::Ready(SendStep::Ended) | Poll::Pending => {}
                }
            }
            // Added streams have not been polled, so they would not wake this task.
            let added = self.replace_ended_streams();
            if added == 0 || batch.room() == 0 {
                break;
            }
        }
        let stays_open = self.request.range.follows() && !self.lease_ended;
        if !self.streams.is_empty() || stays_open {
            return None;
        }
        if !self.unreadable.is_empty() {
            return Some(StreamEnd::Unreadable(std::mem::take(&mut self.unreadable)));
        }
        Some(if self.lease_ended && self.request.range.follows() {
            StreamEnd::LeaseEnded
        } else {
            StreamEnd::Done
        })
    }

    /// Removes streams that have ended. Adds streams for replicas that are back, or that the quota left out
    /// until now. Returns how many were added.
    fn replace_ended_streams(&mut self) -> usize {
        let before = self.streams.len();
        let (resume, served, unreadable) = (&mut self.request.resume, &mut self.served, &mut self.unreadable);
        // A watch channel has only the newest view: a replica may have been removed and be back without a
        // view that shows it.
        let may_return = !self.lease_ended && self.view.has_changed().is_ok() && !self.actors.is_stopped();
        self.streams.retain(|stream| {
            if !stream.is_ended() {
                return true;
            }
            if stream.is_unreadable() {
                unreadable.push(stream.replica().clone());
            }
            if may_return && let Ok(index) = served.binary_search(stream.replica()) {
                served.remove(index);
            }
            if resume.len() < CURSORS_MAX
                && let Some(cursor) = stream.cursor()
            {
                resume.insert(cursor.replica, (cursor.instance, cursor.position));
            }
            false
        });
        let remaining = self.streams.len();
        if remaining < before && self.follows_new_replicas() {
            let view = Arc::clone(&self.view.borrow());
            self.add_streams(&view, true);
        }
        self.streams.len() - remaining
    }

    /// Whether replicas that appear now are followed: not without follow, and not after the stream was asked
    /// to end.
    fn follows_new_replicas(&self) -> bool {
        self.request.range.follows() && self.control.end_requested().is_none()
    }

    fn poll_running(&mut self, cx: &mut Context<'_>, batch: &mut Batch) {
        if let Some(end) = self.control.end_requested() {
            self.stage = match end {
                // The caller is no longer permitted to read: send at most the rest of a message that
                // was begun.
                StreamEnd::Refused(_) => Stage::Closing(end),
                _ => Stage::SendingRest(end, self.actors.context().limits.ring_max_bytes),
            };
            return;
        }
        if let Some(notice) = self.notice.take() {
            self.control.mark_started();
            batch.add(notice, None);
        }
        self.poll_changes(cx);
        let are_heartbeats_due = self.heartbeat_timer.as_mut().is_some_and(|timer| timer.poll(cx).is_ready());
        if self.actors.context().memory.is_tight() {
            // One message at a time, so that send buffers do not grow.
            if self.control.poll_all_taken(cx).is_pending() {
                return;
            }
            batch.is_minimal = true;
        } else if are_heartbeats_due {
            // Half for each: neither lines nor heartbeats may take all that a slow peer takes.
            batch.reserved = STREAM_SEND_MAX_BYTES / 2;
        }
        let end = self.fill(cx, batch);
        // Heartbeats are small.
        (batch.is_minimal, batch.reserved) = (false, 0);
        if let Some(end) = end {
            self.stage = match end {
                StreamEnd::Done | StreamEnd::LeaseEnded => Stage::Trailers(Box::new((self.trailers)(&end))),
                _ => Stage::Closing(end),
            };
        } else if self.wait_timer.is_some() {
            self.poll_wait(cx, batch);
        } else if are_heartbeats_due {
            self.poll_heartbeats(cx, batch);
        }
    }

    /// Adds the heartbeats that are due. They are made only when the peer takes data, so none accumulate.
    /// If the batch has no room for all of them, the next one continues with the others.
    fn poll_heartbeats(&mut self, cx: &mut Context<'_>, batch: &mut Batch) {
        let Some(timer) = &mut self.heartbeat_timer else { return };
        while timer.poll(cx).is_ready() {
            for _ in 0..self.streams.len() {
                if batch.room() == 0 {
                    return;
                }
                let index = timer.next_index(self.streams.len());
                let stream = &mut self.streams[index];
                if stream.silent_since().is_some_and(|since| timer.is_due(since)) {
                    if let Some(heartbeat) = stream.heartbeat() {
                        batch.add_heartbeat(heartbeat);
                    }
                    // Also after the end: the timer must not fire again for it at once.
                    stream.mark_sent();
                }
            }
            if self.streams.is_empty() {
                let source = heartbeat::nothing_deployed(&self.view.borrow());
                batch.add_heartbeat(encoder::heartbeat(self.request.representation, None, None, source));
            }
            let oldest = self.streams.iter().filter_map(ReplicaStream::silent_since).min();
            timer.restart(oldest.unwrap_or_else(Instant::now));
        }
    }

    /// Adds a notice that the stream waits, if it is due. With follow there is at most one.
    fn poll_wait(&mut self, cx: &mut Context<'_>, batch: &mut Batch) {
        let Some(timer) = &mut self.wait_timer else { return };
        let follows = self.request.range.follows();
        if batch.log_bytes > 0 {
            if follows {
                self.wait_timer = None;
            } else {
                timer.restart(WAIT_NOTICE_AFTER);
            }
            return;
        }
        // A notice that goes out now does the same.
        if !batch.parts.is_empty() || timer.poll(cx).is_pending() {
            return;
        }
        let is_waiting = self.streams.iter().any(ReplicaStream::is_waiting);
        if is_waiting {
            let notice = encoder::wait(self.request.representation, self.request.filter.only_service());
            batch.add(Message::bare(notice), None);
        }
        if follows || !is_waiting {
            self.wait_timer = None;
        } else {
            timer.restart(WAIT_NOTICE_INTERVAL);
        }
    }

    /// Sends entries that the rings hold anyway. Backfills stop; clients resume them from the cursors. So the
    /// streams that are not live are not polled, but kept until the cursors are sent.
    fn poll_sending_rest(
        &mut self,
        cx: &mut Context<'_>,
        end: StreamEnd,
        max_bytes: usize,
        batch: &mut Batch,
    ) {
        let (live, others): (Vec<_>, Vec<_>) = self.streams.drain(..).partition(ReplicaStream::is_live);
        self.streams = live;
        let ended = self.fill(cx, batch);
        self.streams.extend(others);
        let remaining = max_bytes.saturating_sub(batch.bytes);
        self.stage = match ended {
            Some(StreamEnd::Lagged(_)) => Stage::Closing(end),
            _ if batch.bytes == 0 || remaining == 0 => Stage::Closing(end),
            _ => Stage::SendingRest(end, remaining),
        };
    }

    fn count_gaps(&mut self, gaps: &[Gap]) {
        let metrics = &self.actors.context().metrics;
        for gap in gaps {
            self.control.record_lost_lines(gap.lines);
            metrics.gaps.of(gap.cause).increment(1);
            metrics.lines_lost.of(gap.cause).increment(gap.lines);
            metrics.bytes_lost.of(gap.cause).increment(gap.bytes);
        }
    }

    fn make_frame(&mut self, batch: Batch) -> Frame<Messages> {
        self.count_gaps(&batch.gaps);
        let metrics = &self.actors.context().metrics;
        metrics.messages_delivered.increment(batch.messages);
        metrics.lines_delivered.increment(batch.lines);
        metrics.bytes_delivered.increment(batch.log_bytes);
        if let Some(oldest) = batch.oldest {
            metrics.delivery_delay.record(oldest.elapsed().as_secs_f64());
        }
        Frame::data(Messages::new(batch.parts, Arc::clone(&self.control)))
    }

    /// Encodes the cursors of all replicas, if the protocol has them. Without follow, also those of replicas
    /// that are done: a client that resumes without such a cursor would get all of their lines again.
    fn cursors(&self) -> Option<Bytes> {
        let mut cursors: Vec<_> = self.streams.iter().filter_map(ReplicaStream::cursor).collect();
        if !self.request.range.follows() {
            cursors.extend(self.request.resume.iter().map(|(replica, (instance, position))| Cursor {
                replica: replica.clone(),
                instance: instance.clone(),
                position: *position,
            }));
        }
        (!cursors.is_empty()).then(|| encoder::cursors(self.request.representation, &cursors))
    }
}

impl http_body::Body for LogsBody {
    type Data = Messages;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Infallible>>> {
        let this = self.get_mut();
        let mut batch = Batch::beginning_with(this.remainder.take());
        loop {
            // `Running` is also the placeholder: every other arm sets the next stage.
            match std::mem::replace(&mut this.stage, Stage::Running) {
                Stage::Running => this.poll_running(cx, &mut batch),
                Stage::SendingRest(end, max_bytes) => this.poll_sending_rest(cx, end, max_bytes, &mut batch),
                Stage::Closing(end) => {
                    this.stage = Stage::Trailers(Box::new((this.trailers)(&end)));
                    if let Some(cursors) = this.cursors() {
                        batch.add(Message::bare(cursors), None);
                    }
                    // Frees permits and subscriptions now: the peer may take long to read the trailers.
                    this.streams.clear();
                }
                Stage::Trailers(trailers) => {
                    // Not before the messages are taken: after the trailers, no supervisor watches the
                    // stream.
                    if this.control.poll_all_taken(cx).is_pending() {
                        this.stage = Stage::Trailers(trailers);
                        return Poll::Pending;
                    }
                    this.stage = Stage::Done;
                    return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
                }
                Stage::Done => {
                    this.stage = Stage::Done;
                    return Poll::Ready(None);
                }
            }
            if !batch.parts.is_empty() {
                // Not in later stages: `Trailers` may return `Pending`, and would lose a remainder. Not
                // within websocket frames, so that pings and the close frame can go between any two portions.
                if matches!(this.stage, Stage::Running) && !this.request.representation.is_websocket() {
                    this.remainder = batch.cut(STREAM_SEND_MAX_BYTES);
                }
                return Poll::Ready(Some(Ok(this.make_frame(batch))));
            }
            // Their messages were left out.
            this.count_gaps(&std::mem::take(&mut batch.gaps));
            if matches!(this.stage, Stage::Running) {
                return Poll::Pending;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

impl std::fmt::Debug for LogsBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogsBody").field("served", &self.served).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
