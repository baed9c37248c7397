//! The response body of `ServiceStatus`: one message, or with `follow` a message for each change.
//!
//! The body reads the view only when it is polled, and HTTP/2 polls it only while the peer accepts data. A
//! slow reader therefore costs at most one encoded message, and its next message is the newest: there is no
//! queue of older ones.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::watch;
use tokio::time::Sleep;

use super::response;
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::proto::framed;
use crate::model::proto::lease::ServiceStatusResponse;
use crate::model::view::{Filter, LeaseView};
use crate::platform;
use crate::stream::{Messages, Parts, StreamControl, StreamEnd};

/// Shortest time between two messages. Changes in between are sent together: fast enough for a person, and a
/// bound on the cost of a lease that changes all the time.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// The response body of `ServiceStatus`.
pub(crate) struct StatusBody {
    updates: Updates,
    /// The unsent part of the current message.
    unsent: Bytes,
    stage: Stage,
    state: Arc<StreamControl>,
    trailers: fn(&StreamEnd) -> HeaderMap,
}

enum Stage {
    Running,
    /// All messages are sent; the trailers follow.
    Trailers(StreamEnd),
    Done,
}

/// Responses, each different from the one before.
struct Updates {
    filter: Filter,
    /// The first view; `None` once it was read.
    first: Option<Arc<LeaseView>>,
    /// Later views; `None` without `follow`.
    changes: Option<BoxStream<'static, Arc<LeaseView>>>,
    last: ServiceStatusResponse,
    /// Completes when the next message may be sent.
    interval: Pin<Box<Sleep>>,
    lease_ended: bool,
}

// === impl StatusBody ===

impl StatusBody {
    /// Creates a body that sends the part of `view` that `filter` selects: once, or with `follow` until the stream ends.
    /// `trailers` converts the reason of the end to gRPC trailers.
    pub(crate) fn new(
        view: watch::Receiver<Arc<LeaseView>>,
        filter: Filter,
        follow: bool,
        state: Arc<StreamControl>,
        trailers: fn(&StreamEnd) -> HeaderMap,
    ) -> Self {
        // Subscribe before reading the first view, so that no change is missed.
        let changes = follow.then(|| platform::changes(view.clone()));
        let updates = Updates {
            filter,
            first: Some(Arc::clone(&view.borrow())),
            changes,
            last: ServiceStatusResponse::default(),
            interval: Box::pin(tokio::time::sleep(Duration::ZERO)),
            lease_ended: false,
        };
        Self { updates, unsent: Bytes::new(), stage: Stage::Running, state, trailers }
    }

    /// Polls for the next piece of a message; `None` after the last message.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Messages>> {
        // The next message is encoded only after the peer has taken the previous one.
        ready!(self.state.poll_flushed(cx));
        if self.unsent.is_empty() {
            let Some(update) = ready!(self.updates.poll_next(cx)) else {
                return Poll::Ready(None);
            };
            self.unsent = framed(&update);
        }
        let piece = self.unsent.split_to(self.unsent.len().min(STREAM_SEND_MAX_BYTES));
        Poll::Ready(Some(Messages::new(Parts::from([piece]), Arc::clone(&self.state))))
    }
}

impl http_body::Body for StatusBody {
    type Data = Messages;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Infallible>>> {
        let this = self.get_mut();
        loop {
            match &this.stage {
                Stage::Running => {
                    // A message that was begun is sent to its end, unless the caller's access was revoked.
                    let end = this
                        .state
                        .end_requested()
                        .filter(|end| this.unsent.is_empty() || matches!(end, StreamEnd::Refused(_)));
                    if let Some(end) = end {
                        this.stage = Stage::Trailers(end);
                        continue;
                    }
                    match ready!(this.poll_piece(cx)) {
                        Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                        None => this.stage = Stage::Trailers(this.updates.end()),
                    }
                }
                Stage::Trailers(end) => {
                    // HTTP/2 stops watching the stream once it has the trailers, so all data must be taken
                    // first.
                    ready!(this.state.poll_flushed(cx));
                    let trailers = (this.trailers)(end);
                    this.stage = Stage::Done;
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Stage::Done => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }
}

impl std::fmt::Debug for StatusBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StatusBody").field("filter", &self.updates.filter).finish_non_exhaustive()
    }
}

// === impl Updates ===

impl Updates {
    /// Polls for the next response that differs from the last one; `None` after the last.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<ServiceStatusResponse>> {
        let is_first = self.first.is_some();
        loop {
            let Some(view) = ready!(self.poll_view(cx)) else {
                return Poll::Ready(None);
            };
            self.lease_ended |= view.ended;
            let response = response(&view, &self.filter);
            if is_first || response != self.last {
                self.last = response.clone();
                self.interval.as_mut().reset(tokio::time::Instant::now() + MIN_INTERVAL);
                return Poll::Ready(Some(response));
            }
        }
    }

    fn poll_view(&mut self, cx: &mut Context<'_>) -> Poll<Option<Arc<LeaseView>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some(changes) = self.changes.as_mut().filter(|_| !self.lease_ended) else {
            return Poll::Ready(None);
        };
        ready!(self.interval.as_mut().poll(cx));
        let view = ready!(changes.poll_next_unpin(cx));
        // The view's sender is gone: the lease has ended.
        self.lease_ended |= view.is_none();
        Poll::Ready(view)
    }

    /// Returns why there are no more updates.
    fn end(&self) -> StreamEnd {
        if self.lease_ended && self.changes.is_some() { StreamEnd::LeaseEnded } else { StreamEnd::Done }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use futures_util::FutureExt as _;
    use http_body_util::BodyExt as _;
    use prost::Message as _;

    use super::*;
    use crate::model::proto::PREFIX_BYTES;
    use crate::model::view::{ReplicaView, ServiceView};

    fn view(restarts: u32) -> Arc<LeaseView> {
        let slot = ReplicaView { restarts, ..ReplicaView::default() };
        let service = ServiceView { count: 1, replicas: [(0, slot)].into(), ..ServiceView::default() };
        Arc::new(LeaseView { services: [("web".parse().unwrap(), service)].into(), ..LeaseView::default() })
    }

    fn restarts(mut piece: Messages) -> u32 {
        let mut bytes = piece.copy_to_bytes(piece.remaining());
        bytes.advance(PREFIX_BYTES);
        ServiceStatusResponse::decode(bytes).unwrap().services[0].replica_status[0].restarts
    }

    #[tokio::test(start_paused = true)]
    async fn slow_reader_gets_the_newest_status() {
        let (sender, receiver) = watch::channel(view(0));
        let (everything, state) = (Filter::everything(), StreamControl::new());
        let mut body = StatusBody::new(receiver, everything, true, state, |_| HeaderMap::new());
        let mut seen = Vec::new();
        for step in 1..=3 {
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            for change in 0..10 {
                sender.send_replace(view(100 * step + change));
                tokio::time::sleep(2 * MIN_INTERVAL).await;
                assert!(body.frame().now_or_never().is_none(), "the peer has not taken the previous message");
            }
            seen.push(restarts(piece));
        }
        assert_eq!(seen, [0, 109, 209]);
    }
}
