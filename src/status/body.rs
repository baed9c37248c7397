//! The response to `ServiceStatus`: an answer, and if it is followed a new one whenever another is due.
//!
//! The body looks at the view only when it is polled, and HTTP/2 polls it only while its peer takes what it was sent. So a slow
//! reader costs one answer at most, and the next that it gets is the newest: there is no queue in which older ones could wait.

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

use super::answer;
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::proto::framed;
use crate::model::proto::lease::ServiceStatusResponse;
use crate::model::view::{Filter, LeaseView};
use crate::platform;
use crate::stream::{Messages, Parts, StreamControl, StreamEnd};

/// After an answer, further changes wait this long to be told together: quick for a person, and a bound on what a lease that
/// changes all the time costs for each of its followers.
const PACE: Duration = Duration::from_millis(100);

/// The body of a response to `ServiceStatus`.
pub struct StatusBody {
    answers: Answers,
    /// What is left to send of the present answer.
    rest: Bytes,
    stage: Stage,
    state: Arc<StreamControl>,
    trailers: fn(&StreamEnd) -> HeaderMap,
}

enum Stage {
    Running,
    /// Only the trailers are left.
    Trailers(StreamEnd),
    Done,
}

/// Answers that differ, each from the one before.
struct Answers {
    filter: Filter,
    /// The first view to answer from.
    first: Option<Arc<LeaseView>>,
    /// Each change of it; `None` if nobody stays for them.
    changes: Option<BoxStream<'static, Arc<LeaseView>>>,
    last: ServiceStatusResponse,
    /// Over when the next may be told.
    pace: Pin<Box<Sleep>>,
    lease_ended: bool,
}

// === impl StatusBody ===

impl StatusBody {
    /// A body that tells what `filter` wants of `view`, once, or with `follow` until something ends it. `trailers` says in gRPC's
    /// words why it ended.
    pub fn new(
        view: watch::Receiver<Arc<LeaseView>>,
        filter: Filter,
        follow: bool,
        state: Arc<StreamControl>,
        trailers: fn(&StreamEnd) -> HeaderMap,
    ) -> Self {
        // In this order, so that no change falls between the two.
        let changes = follow.then(|| platform::changes(view.clone()));
        let answers = Answers {
            filter,
            first: Some(Arc::clone(&view.borrow())),
            changes,
            last: ServiceStatusResponse::default(),
            pace: Box::pin(tokio::time::sleep(Duration::ZERO)),
            lease_ended: false,
        };
        Self { answers, rest: Bytes::new(), stage: Stage::Running, state, trailers }
    }

    /// The next piece of an answer; `None` once there will be no more.
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Messages>> {
        // Only once what it was sent before has left: until then nothing of a newer answer is made.
        ready!(self.state.poll_taken(cx));
        if self.rest.is_empty() {
            let Some(answer) = ready!(self.answers.poll_next(cx)) else {
                return Poll::Ready(None);
            };
            self.rest = framed(&answer);
        }
        let piece = self.rest.split_to(self.rest.len().min(STREAM_SEND_MAX_BYTES));
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
                    // An answer that was begun is told to its end, unless to somebody who may not any more.
                    let end = this
                        .state
                        .ends()
                        .filter(|end| this.rest.is_empty() || matches!(end, StreamEnd::Refused(_)));
                    if let Some(end) = end {
                        this.stage = Stage::Trailers(end);
                        continue;
                    }
                    match ready!(this.poll_piece(cx)) {
                        Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                        None => this.stage = Stage::Trailers(this.answers.end()),
                    }
                }
                Stage::Trailers(end) => {
                    // Once HTTP/2 has the trailers nobody watches over the stream any more.
                    ready!(this.state.poll_taken(cx));
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
        f.debug_struct("StatusBody").field("filter", &self.answers.filter).finish_non_exhaustive()
    }
}

// === impl Answers ===

impl Answers {
    /// The next answer that tells something new; `None` once there will be none.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<ServiceStatusResponse>> {
        let is_first = self.first.is_some();
        loop {
            let Some(view) = ready!(self.poll_view(cx)) else {
                return Poll::Ready(None);
            };
            self.lease_ended |= view.ended;
            let answer = answer(&view, &self.filter);
            if is_first || answer != self.last {
                self.last = answer.clone();
                self.pace.as_mut().reset(tokio::time::Instant::now() + PACE);
                return Poll::Ready(Some(answer));
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
        ready!(self.pace.as_mut().poll(cx));
        let view = ready!(changes.poll_next_unpin(cx));
        // A view that nobody keeps any more is that of a lease that has ended.
        self.lease_ended |= view.is_none();
        Poll::Ready(view)
    }

    /// Why there is none.
    fn end(&self) -> StreamEnd {
        if self.lease_ended && self.changes.is_some() { StreamEnd::LeaseEnded } else { StreamEnd::Complete }
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
    async fn nothing_is_made_while_something_waits_to_be_taken() {
        let (sender, receiver) = watch::channel(view(0));
        let (everything, state) = (Filter::everything(), StreamControl::new());
        let mut body = StatusBody::new(receiver, everything, true, state, |_| HeaderMap::new());
        let mut seen = Vec::new();
        for step in 1..=3 {
            let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
            for change in 0..10 {
                sender.send_replace(view(100 * step + change));
                tokio::time::sleep(2 * PACE).await;
                assert!(body.frame().now_or_never().is_none(), "one at a time");
            }
            seen.push(restarts(piece));
        }
        assert_eq!(seen, [0, 109, 209]);
    }
}
