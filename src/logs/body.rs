//! The response to one request for logs: what its lanes have, as HTTP/2 takes it.
//!
//! A body does nothing unless it is polled, and it is polled only while its peer takes what it is sent. So a slow follower costs
//! nobody anything: its lanes stand still, and what they miss in the rings is counted when they move again.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::watch;

use super::actors::ActorRegistry;
use super::backfill::BackfillParams;
use super::backfill_limits::BackfillLimiter;
use super::frame::{self, Gap};
use super::message::{Batch, Message};
use super::replica_stream::{ReplicaStream, SendStep};
use super::request::{BackfillFilter, LagPolicy, LogsRequest, ReadRange};
use crate::model::id::Replica;
use crate::model::limits::{CURSORS_MAX, STREAM_SEND_MAX_BYTES};
use crate::model::metrics::Metrics;
use crate::model::position::Cursor;
use crate::model::view::LeaseView;
use crate::platform;
use crate::stream::gated_poll::Gated;
use crate::stream::{Messages, StreamControl, StreamEnd};

/// The body of a response to `ServiceLogs`.
pub struct LogsBody {
    request: LogsRequest,
    fanout: ActorRegistry,
    permits: BackfillLimiter,
    view: watch::Receiver<Arc<LeaseView>>,
    /// Each change of the view; `None` once there will be no more, or if nobody stays for it.
    changes: Option<Gated<BoxStream<'static, Arc<LeaseView>>>>,
    /// The replicas that have, or had, a lane and are still there; sorted.
    known: Vec<Replica>,
    lanes: Vec<ReplicaStream>,
    /// Whose turn it is.
    turn: usize,
    /// Replicas whose logs cannot be read at the moment: the others are sent, and then the stream ends with that.
    unreadable: Vec<Replica>,
    /// Sent first: that there is nothing to send.
    notice: Option<Message>,
    /// Whether the lease has ended: what is left is sent, and then the stream ends.
    lease_ended: bool,
    stage: Stage,
    /// The end of a message whose beginning was handed over, if one had to be cut. It goes before anything else.
    rest: Option<Bytes>,
    state: Arc<StreamControl>,
    trailers: Trailers,
}

/// Says in gRPC's words why a stream ends; asked once, as soon as it is to, whatever its peer takes of that.
pub type Trailers = Box<dyn Fn(&StreamEnd) -> HeaderMap + Send>;

enum Stage {
    Running,
    /// What the rings hold is sent, up to so many more bytes; and then the cursors.
    Flushing(StreamEnd, usize),
    /// Cursors are next.
    Closing(StreamEnd),
    /// Only the trailers are left.
    Trailers(Box<HeaderMap>),
    Done,
}

// === impl LogsBody ===

impl LogsBody {
    /// A body for `request`.
    pub fn new(
        request: LogsRequest,
        fanout: ActorRegistry,
        permits: BackfillLimiter,
        view: watch::Receiver<Arc<LeaseView>>,
        state: Arc<StreamControl>,
        trailers: Trailers,
    ) -> Self {
        let mut body = Self {
            changes: request.extent.follows().then(|| Gated::new(platform::changes(view.clone()))),
            request,
            fanout,
            permits,
            view,
            known: Vec::new(),
            lanes: Vec::new(),
            turn: 0,
            unreadable: Vec::new(),
            notice: None,
            lease_ended: false,
            stage: Stage::Running,
            rest: None,
            state,
            trailers,
        };
        let view = Arc::clone(&body.view.borrow());
        body.look(&view, false);
        body.notice = body.lanes.is_empty().then(|| Message::bare(frame::nothing_deployed()));
        body
    }

    /// Opens a lane for each wanted replica that has none.
    fn look(&mut self, view: &LeaseView, newcomers: bool) {
        self.lease_ended |= view.ended;
        self.known.retain(|replica| view.replica(replica).is_some());
        let most = self.fanout.world().limits.quota.replicas_per_request;
        let served = self.lanes.len();
        for (replica, slot) in view.select(&self.request.filter) {
            // One that was away and is there again may still be telling of its last life.
            let is_served = || self.lanes[..served].iter().any(|lane| *lane.replica() == replica);
            let Err(place) = self.known.binary_search(&replica) else { continue };
            if self.lanes.len() >= most || is_served() {
                continue;
            }
            // One that was away goes on behind what was sent, unless that was in another life.
            let cursor = self.request.resume.remove(&replica);
            let resume = cursor
                .filter(|(run, _)| !newcomers || slot.readable().any(|readable| readable.instance == *run));
            // One that appears while its follower is there is followed from its first line on.
            let extent =
                if newcomers { ReadRange::Follow(BackfillFilter::default()) } else { self.request.extent };
            let scope = BackfillParams {
                world: self.fanout.world().clone(),
                lease: self.request.lease.clone(),
                view: self.view.clone(),
                extent,
                resume,
                representation: self.request.representation,
                newcomer: newcomers,
                replica: replica.clone(),
            };
            if self.lanes.is_empty() {
                // Most streams follow one replica, and a vector would make room for four.
                self.lanes.reserve_exact(1);
                self.known.reserve_exact(1);
            }
            self.lanes.push(ReplicaStream::new(
                scope,
                self.fanout.clone(),
                self.permits.clone(),
                Arc::clone(&self.state),
            ));
            self.known.insert(place, replica);
        }
    }

    fn poll_changes(&mut self, cx: &mut Context<'_>) {
        while let Some(changes) = &mut self.changes {
            match changes.poll_next_unpin(cx) {
                Poll::Ready(Some(view)) => self.look(&view, true),
                Poll::Ready(None) => {
                    self.changes = None;
                    self.lease_ended = true;
                }
                Poll::Pending => return,
            }
        }
    }

    /// Takes what the lanes have, in turns, as much as HTTP/2 may hold. Answers why the stream ends, if it does.
    fn fill(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Option<StreamEnd> {
        loop {
            let mut quiet = 0;
            while quiet < self.lanes.len() && batch.room() > 0 {
                self.turn = (self.turn + 1) % self.lanes.len();
                let lane = &mut self.lanes[self.turn];
                quiet += 1;
                match lane.poll_turn(batch, cx) {
                    Poll::Ready(SendStep::Lagged) if self.request.on_lag == LagPolicy::Close => {
                        return Some(StreamEnd::Lagged(lane.replica().clone()));
                    }
                    Poll::Ready(SendStep::Refused(exceeded)) => return Some(StreamEnd::Exceeded(exceeded)),
                    Poll::Ready(SendStep::More | SendStep::Lagged) => quiet = 0,
                    Poll::Ready(SendStep::Ended) | Poll::Pending => {}
                }
            }
            let newcomers = self.retire();
            if newcomers == 0 || batch.room() == 0 {
                break;
            }
            // Those have not been asked yet, and so would wake nobody.
        }
        let stays = self.request.extent.follows() && !self.lease_ended;
        if !self.lanes.is_empty() || stays {
            return None;
        }
        if !self.unreadable.is_empty() {
            return Some(StreamEnd::Unreadable(std::mem::take(&mut self.unreadable)));
        }
        Some(if self.lease_ended && self.request.extent.follows() {
            StreamEnd::LeaseEnded
        } else {
            StreamEnd::Complete
        })
    }

    /// Lets go of lanes that have ended, and answers how many have come instead: their replicas may be there again, and others
    /// have had no place before.
    fn retire(&mut self) -> usize {
        let before = self.lanes.len();
        let (resume, known, unreadable) = (&mut self.request.resume, &mut self.known, &mut self.unreadable);
        // The view tells only its newest state: who has been away may never have been missed.
        let may_return = !self.lease_ended && self.view.has_changed().is_ok() && !self.fanout.is_stopped();
        self.lanes.retain(|lane| {
            if !lane.is_ended() {
                return true;
            }
            if lane.is_unreadable() {
                unreadable.push(lane.replica().clone());
            }
            if may_return && let Ok(place) = known.binary_search(lane.replica()) {
                known.remove(place);
            }
            if resume.len() < CURSORS_MAX
                && let Some(cursor) = lane.cursor()
            {
                resume.insert(cursor.replica, (cursor.instance, cursor.position));
            }
            false
        });
        let kept = self.lanes.len();
        if kept < before && self.stays_for_newcomers() {
            let view = Arc::clone(&self.view.borrow());
            self.look(&view, true);
        }
        self.lanes.len() - kept
    }

    /// Whether replicas that come now are followed: not for one who asked for what there is, and not once the stream is to end.
    fn stays_for_newcomers(&self) -> bool {
        self.request.extent.follows() && self.state.ends().is_none()
    }

    /// Sends what was asked to be sent, and finds out whether the stream is to end.
    fn poll_running(&mut self, cx: &mut Context<'_>, batch: &mut Batch) {
        if let Some(end) = self.state.ends() {
            self.stage = match end {
                // Not a line more for who may not.
                StreamEnd::Refused(_) => Stage::Closing(end),
                _ => Stage::Flushing(end, self.fanout.world().limits.ring_max_bytes),
            };
            return;
        }
        if let Some(notice) = self.notice.take() {
            self.state.mark_admitted();
            batch.add(notice, None);
        }
        self.poll_changes(cx);
        if let Some(end) = self.fill(cx, batch) {
            self.stage = match end {
                StreamEnd::Complete | StreamEnd::LeaseEnded => {
                    Stage::Trailers(Box::new((self.trailers)(&end)))
                }
                _ => Stage::Closing(end),
            };
        }
    }

    /// Sends what is held in the rings anyway; what was being read for this follower alone is left to its cursor.
    fn poll_flushing(&mut self, cx: &mut Context<'_>, end: StreamEnd, left: usize, batch: &mut Batch) {
        let (live, others): (Vec<_>, Vec<_>) = self.lanes.drain(..).partition(ReplicaStream::is_live);
        self.lanes = live;
        let ended = self.fill(cx, batch);
        self.lanes.extend(others);
        let left = left.saturating_sub(batch.bytes);
        self.stage = match ended {
            Some(StreamEnd::Lagged(_)) => Stage::Closing(end),
            _ if batch.bytes == 0 || left == 0 => Stage::Closing(end),
            _ => Stage::Flushing(end, left),
        };
    }

    fn hand_over(&self, batch: Batch) -> Frame<Messages> {
        let metrics = &self.fanout.world().metrics;
        metrics.messages_delivered.increment(batch.messages);
        metrics.lines_delivered.increment(batch.lines);
        metrics.bytes_delivered.increment(batch.log_bytes);
        batch.gaps.iter().for_each(|gap| count_gap(metrics, gap));
        if let Some(oldest) = batch.oldest {
            metrics.delivery_delay.record(oldest.elapsed().as_secs_f64());
        }
        Frame::data(Messages::new(batch.parts, Arc::clone(&self.state)))
    }

    /// One response with the cursor of each replica. Without follow, replicas that were sent to their end have one, too: a caller
    /// that resumes without it would get all of their lines again.
    fn cursors(&self) -> Option<Bytes> {
        let mut cursors: Vec<_> = self.lanes.iter().filter_map(ReplicaStream::cursor).collect();
        if !self.request.extent.follows() {
            cursors.extend(self.request.resume.iter().map(|(replica, (instance, position))| Cursor {
                replica: replica.clone(),
                instance: instance.clone(),
                position: *position,
            }));
        }
        (!cursors.is_empty()).then(|| frame::cursors(&cursors))
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
        let mut batch = Batch::beginning_with(this.rest.take());
        loop {
            match std::mem::replace(&mut this.stage, Stage::Running) {
                Stage::Running => this.poll_running(cx, &mut batch),
                Stage::Flushing(end, left) => this.poll_flushing(cx, end, left, &mut batch),
                Stage::Closing(end) => {
                    this.stage = Stage::Trailers(Box::new((this.trailers)(&end)));
                    if let Some(cursors) = this.cursors() {
                        batch.add(Message::bare(cursors), None);
                    }
                    // The peer may take its time, and others wait for what they hold.
                    this.lanes.clear();
                }
                Stage::Trailers(trailers) => {
                    // Once HTTP/2 has the trailers nobody watches over the stream any more.
                    if this.state.poll_taken(cx).is_pending() {
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
                if matches!(this.stage, Stage::Running) {
                    this.rest = batch.cut(STREAM_SEND_MAX_BYTES);
                }
                return Poll::Ready(Some(Ok(this.hand_over(batch))));
            }
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
        f.debug_struct("LogsBody").field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

fn count_gap(metrics: &Metrics, gap: &Gap) {
    metrics.gaps.of(gap.cause).increment(1);
    metrics.lines_lost.of(gap.cause).increment(gap.lines);
    metrics.bytes_lost.of(gap.cause).increment(gap.bytes);
}

#[cfg(test)]
mod tests;
