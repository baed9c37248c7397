//! The response to one request for logs: what its lanes have, as HTTP/2 takes it.
//!
//! A body does nothing unless it is polled, and it is polled only while its peer takes what it is sent. So a slow follower costs
//! nobody anything: its lanes stand still, and what they miss in the rings is counted when they move again.

use std::collections::{BTreeSet, VecDeque};
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
use tokio::time::Instant;

use super::fanout::Fanout;
use super::follow::{Extent, History, LogsRequest, OnLag};
use super::frame;
use super::history::Scope;
use super::lane::{Item, Lane};
use super::message::Message;
use super::permits::HistoryPermits;
use crate::model::id::Replica;
use crate::model::limits::{CURSORS_MAX, STREAM_REPLICAS_MAX, STREAM_SEND_MAX_BYTES};
use crate::model::view::LeaseView;
use crate::platform;
use crate::stream::bell::WhenRung;
use crate::stream::{End, Messages, StreamState};

/// Messages that one lane may send before it is the next one's turn.
const TURN_MESSAGES: usize = 4;

/// The body of a response to `ServiceLogs`.
pub struct LogsBody {
    request: LogsRequest,
    fanout: Fanout,
    permits: HistoryPermits,
    view: watch::Receiver<Arc<LeaseView>>,
    /// Each change of the view; `None` once there will be no more, or if nobody stays for it.
    changes: Option<WhenRung<BoxStream<'static, Arc<LeaseView>>>>,
    /// The replicas that have, or had, a lane and are still there.
    known: BTreeSet<Replica>,
    lanes: Vec<Lane>,
    /// Whose turn it is.
    turn: usize,
    /// Whether the lease has ended: what is left is sent, and then the stream ends.
    lease_ended: bool,
    stage: Stage,
    /// The end of a message whose beginning was handed over, if one had to be cut. It goes before anything else.
    rest: Option<Bytes>,
    state: Arc<StreamState>,
    trailers: fn(&End) -> HeaderMap,
}

enum Stage {
    Running,
    /// What the rings hold is sent, up to so many more bytes; and then the cursors.
    Flushing(End, usize),
    /// Cursors are next.
    Closing(End),
    /// Only the trailers are left.
    Trailers(End),
    Done,
}

/// What is put together for one hand-over.
#[derive(Default)]
struct Batch {
    parts: VecDeque<Bytes>,
    bytes: usize,
    messages: u64,
    lines: u64,
    log_bytes: u64,
    oldest: Option<Instant>,
}

// === impl LogsBody ===

impl LogsBody {
    /// A body for `request`. `trailers` says in gRPC's words why it ended.
    pub fn new(
        request: LogsRequest,
        fanout: Fanout,
        permits: HistoryPermits,
        view: watch::Receiver<Arc<LeaseView>>,
        state: Arc<StreamState>,
        trailers: fn(&End) -> HeaderMap,
    ) -> Self {
        let mut body = Self {
            changes: request.extent.follows().then(|| WhenRung::new(platform::changes(view.clone()))),
            request,
            fanout,
            permits,
            view,
            known: BTreeSet::new(),
            lanes: Vec::new(),
            turn: 0,
            lease_ended: false,
            stage: Stage::Running,
            rest: None,
            state,
            trailers,
        };
        let view = Arc::clone(&body.view.borrow());
        body.look(&view, false);
        body
    }

    /// Opens a lane for each wanted replica that has none.
    fn look(&mut self, view: &LeaseView, newcomers: bool) {
        self.lease_ended |= view.ended;
        self.known.retain(|replica| view.replica(replica).is_some());
        for (replica, slot) in view.select(&self.request.filter) {
            let is_served = || self.lanes.iter().any(|lane| *lane.replica() == replica);
            if self.known.contains(&replica) || self.lanes.len() >= STREAM_REPLICAS_MAX || is_served() {
                continue;
            }
            // One that was away goes on behind what was sent, unless that was in another life.
            let cursor = self.request.resume.remove(&replica);
            let resume = cursor.filter(|(instance, _)| !newcomers || slot.run(instance).is_some());
            // One that appears while its follower is there is followed from its first line on.
            let extent = if newcomers { Extent::Follow(History::default()) } else { self.request.extent };
            let scope = Scope {
                world: self.fanout.world().clone(),
                lease: self.request.lease.clone(),
                view: self.view.clone(),
                extent,
                resume,
                representation: self.request.representation,
                newcomer: newcomers,
                replica: replica.clone(),
            };
            self.lanes.push(Lane::new(
                scope,
                self.fanout.clone(),
                self.permits.clone(),
                Arc::clone(&self.state),
            ));
            self.known.insert(replica);
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
    fn fill(&mut self, cx: &mut Context<'_>, batch: &mut Batch) -> Option<End> {
        let mut quiet = 0;
        while quiet < self.lanes.len() && batch.bytes < STREAM_SEND_MAX_BYTES {
            self.turn = (self.turn + 1) % self.lanes.len();
            let lane = &mut self.lanes[self.turn];
            quiet += 1;
            for _ in 0..TURN_MESSAGES {
                if batch.bytes >= STREAM_SEND_MAX_BYTES {
                    break;
                }
                match lane.poll_next(cx) {
                    Poll::Ready(Item::Message(message, read_at)) => {
                        quiet = 0;
                        count_gap(&self.fanout, &message);
                        batch.add(message, read_at);
                    }
                    Poll::Ready(Item::Lagged) if self.request.on_lag == OnLag::Close => {
                        return Some(End::Lagged(lane.replica().clone()));
                    }
                    Poll::Ready(Item::Lagged) => quiet = 0,
                    Poll::Ready(Item::Ended) | Poll::Pending => break,
                }
            }
        }
        self.retire();
        let stays = self.request.extent.follows() && !self.lease_ended;
        if !self.lanes.is_empty() || stays {
            return None;
        }
        Some(if self.lease_ended && self.request.extent.follows() { End::LeaseEnded } else { End::Complete })
    }

    /// Lets go of lanes that have ended. Their replica may have come back meanwhile.
    fn retire(&mut self) {
        let before = self.lanes.len();
        let resume = &mut self.request.resume;
        self.lanes.retain(|lane| {
            if lane.is_ended()
                && resume.len() < CURSORS_MAX
                && let Some(cursor) = lane.cursor()
            {
                resume.insert(cursor.replica, (cursor.instance, cursor.position));
            }
            !lane.is_ended()
        });
        if self.lanes.len() < before && self.request.extent.follows() {
            let view = Arc::clone(&self.view.borrow());
            self.look(&view, true);
        }
    }

    /// Sends what was asked to be sent, and finds out whether the stream is to end.
    fn poll_running(&mut self, cx: &mut Context<'_>, batch: &mut Batch) {
        if let Some(end) = self.state.ends() {
            self.stage = match end {
                // Not a line more for who may not.
                End::Refused(_) => Stage::Closing(end),
                _ => Stage::Flushing(end, self.fanout.world().limits.ring_max_bytes),
            };
            return;
        }
        self.poll_changes(cx);
        if let Some(end) = self.fill(cx, batch) {
            self.stage = match end {
                End::Complete | End::LeaseEnded => Stage::Trailers(end),
                _ => Stage::Closing(end),
            };
        }
    }

    /// Sends what is held in the rings anyway; what was being read for this follower alone is left to its cursor.
    fn poll_flushing(&mut self, cx: &mut Context<'_>, end: End, left: usize, batch: &mut Batch) {
        let (live, others): (Vec<_>, Vec<_>) = self.lanes.drain(..).partition(Lane::is_live);
        self.lanes = live;
        let ended = self.fill(cx, batch);
        self.lanes.extend(others);
        let left = left.saturating_sub(batch.bytes);
        self.stage = match ended {
            Some(End::Lagged(_)) => Stage::Closing(end),
            _ if batch.bytes == 0 || left == 0 => Stage::Closing(end),
            _ => Stage::Flushing(end, left),
        };
    }

    fn hand_over(&self, batch: Batch) -> Frame<Messages> {
        let metrics = &self.fanout.world().metrics;
        metrics.messages_delivered.increment(batch.messages);
        metrics.lines_delivered.increment(batch.lines);
        metrics.bytes_delivered.increment(batch.log_bytes);
        if let Some(oldest) = batch.oldest {
            metrics.delivery_delay.record(oldest.elapsed().as_secs_f64());
        }
        Frame::data(Messages::new(batch.parts, Arc::clone(&self.state)))
    }

    fn cursors(&self) -> Option<Bytes> {
        let cursors: Vec<_> = self.lanes.iter().filter_map(Lane::cursor).collect();
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
                    this.stage = Stage::Trailers(end);
                    if let Some(cursors) = this.cursors() {
                        batch.add(Message::bare(cursors), None);
                    }
                }
                Stage::Trailers(end) => {
                    // Once HTTP/2 has the trailers nobody watches over the stream any more.
                    if this.state.poll_taken(cx).is_pending() {
                        this.stage = Stage::Trailers(end);
                        return Poll::Pending;
                    }
                    this.stage = Stage::Done;
                    this.lanes.clear();
                    return Poll::Ready(Some(Ok(Frame::trailers((this.trailers)(&end)))));
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

fn count_gap(fanout: &Fanout, message: &Message) {
    if let Some(gap) = &message.gap {
        let metrics = &fanout.world().metrics;
        metrics.gaps.of(gap.cause).increment(1);
        metrics.lines_lost.of(gap.cause).increment(gap.lines);
        metrics.bytes_lost.of(gap.cause).increment(gap.bytes);
    }
}

// === impl Batch ===

impl Batch {
    /// With the rest of a message that was counted when its beginning was handed over.
    fn beginning_with(rest: Option<Bytes>) -> Self {
        Self {
            bytes: rest.as_ref().map_or(0, Bytes::len),
            parts: rest.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Cuts off what its last message has beyond `max_bytes`.
    fn cut(&mut self, max_bytes: usize) -> Option<Bytes> {
        let beyond = self.bytes.checked_sub(max_bytes).filter(|beyond| *beyond > 0)?;
        let last = self.parts.back_mut()?;
        let rest = last.split_off(last.len().saturating_sub(beyond));
        self.bytes -= rest.len();
        Some(rest)
    }

    fn add(&mut self, message: Message, read_at: Option<Instant>) {
        self.bytes += message.bytes.len();
        self.messages += 1;
        self.lines += message.lines;
        self.log_bytes += message.log_bytes;
        self.oldest = match (self.oldest, read_at) {
            (Some(known), Some(other)) => Some(known.min(other)),
            (known, other) => known.or(other),
        };
        self.parts.push_back(message.bytes);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Messages put in at random leave in pieces, byte for byte, each piece full but the last.
        #[test]
        fn cutting_loses_nothing(sizes in prop::collection::vec(1_usize..40, 1..60), max in 16_usize..64) {
            let mut source = sizes.iter().enumerate().map(|(i, size)| vec![u8::try_from(i).unwrap(); *size]);
            let all: Vec<u8> = source.clone().flatten().collect();
            let (mut sent, mut messages, mut rest) = (Vec::new(), 0, None);
            loop {
                let mut batch = Batch::beginning_with(rest.take());
                while batch.bytes < max && let Some(message) = source.next() {
                    batch.add(Message::bare(message.into()), None);
                }
                rest = batch.cut(max);
                messages += batch.messages;
                let bytes: Vec<u8> = batch.parts.iter().flatten().copied().collect();
                prop_assert_eq!(bytes.len(), batch.bytes);
                prop_assert!(bytes.len() == max || rest.is_none() && bytes.len() < max);
                sent.extend_from_slice(&bytes);
                if bytes.len() < max {
                    break;
                }
            }
            prop_assert_eq!(sent, all);
            prop_assert_eq!(messages, sizes.len() as u64);
        }
    }
}
