//! The body of an event stream: sends the frames of a lease's feed that the client has not read yet.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use metrics::Counter;

use crate::events::{After, Batch, EventReader};
use crate::logs::LagPolicy;
use crate::logs::websocket::push_text_message;
use crate::model::event::{LeaseEvent, Object, REPORTER, Severity};
use crate::model::id::LeaseId;
use crate::model::limits::STREAM_SEND_MAX_BYTES;
use crate::model::view::Filter;
use crate::stream::{Messages, StreamControl, StreamEnd};

/// The reason of an event about skipped events.
const SKIPPED: &str = "EventsSkipped";

/// The parameters of an event stream.
pub(super) struct EventsRequest {
    pub(super) lease: LeaseId,
    pub(super) filter: Filter,
    pub(super) follow: bool,
    pub(super) on_lag: LagPolicy,
    /// Skipped events are reported by an event, and not only by the close frame.
    pub(super) reports_loss: bool,
}

/// Sends the events that exist, and with follow later ones. It reads the ring only when it is polled: a slow
/// client skips events and delays no other.
pub(super) struct EventsBody {
    request: EventsRequest,
    reader: EventReader,
    skipped: Counter,
    control: Arc<StreamControl>,
    ended: Arc<OnceLock<StreamEnd>>,
}

/// Encodes an event as a websocket frame.
pub(super) fn encode(event: &LeaseEvent) -> Bytes {
    let mut frame = Vec::new();
    push_text_message(event.json_line().as_bytes(), &mut frame);
    frame.into()
}

// === impl EventsRequest ===

impl EventsRequest {
    /// Returns the frame that reports skipped events.
    fn skipped_frame(&self, events: u64) -> Bytes {
        let unit = if events == 1 { "event" } else { "events" };
        // They may be of services that are not selected.
        let at_most = if self.filter == Filter::everything() { "" } else { "at most " };
        let note = format!("{at_most}{events} {unit} missing here: the follower fell behind");
        let object =
            Object { kind: "Lease".to_owned(), namespace: self.lease.namespace(), name: REPORTER.to_owned() };
        encode(&LeaseEvent::new(Severity::Warning, SKIPPED, &note, object).reported_by(REPORTER, ""))
    }
}

// === impl EventsBody ===

impl EventsBody {
    pub(super) fn new(
        request: EventsRequest,
        reader: EventReader,
        skipped: Counter,
        control: Arc<StreamControl>,
        ended: Arc<OnceLock<StreamEnd>>,
    ) -> Self {
        Self { request, reader, skipped, control, ended }
    }

    /// Waits for the next frames, or for the end of the stream.
    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<Messages, StreamEnd>> {
        loop {
            let end = self.control.end_requested();
            if let Some(end @ StreamEnd::Refused(_)) = end {
                return Poll::Ready(Err(end));
            }
            let Batch { mut frames, skipped, after } =
                self.reader.read(&self.request.filter, STREAM_SEND_MAX_BYTES);
            if skipped > 0 {
                self.skipped.increment(skipped);
                if self.request.on_lag == LagPolicy::Close {
                    return Poll::Ready(Err(StreamEnd::Lagged("events".to_owned())));
                }
                if self.request.reports_loss {
                    frames.insert(0, self.request.skipped_frame(skipped));
                } else {
                    self.control.record_lost_lines(skipped);
                }
            }
            if !frames.is_empty() {
                self.control.mark_started();
                return Poll::Ready(Ok(Messages::new(frames, Arc::clone(&self.control))));
            }
            match (after, end) {
                (After::More, _) => {}
                (_, Some(end)) => return Poll::Ready(Err(end)),
                (After::New | After::End, None) if !self.request.follow => {
                    return Poll::Ready(Err(StreamEnd::Done));
                }
                (After::End, None) => return Poll::Ready(Err(StreamEnd::LeaseEnded)),
                (After::Existing | After::New, None) => ready!(self.reader.poll_changed(cx)),
            }
        }
    }
}

impl Body for EventsBody {
    type Data = Messages;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Infallible>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(this.poll_frames(cx)) {
            Ok(messages) => Some(Ok(Frame::data(messages))),
            Err(end) => {
                let _ = this.ended.set(end);
                None
            }
        })
    }
}
