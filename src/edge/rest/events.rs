//! The body of an event stream: synthetic events from the changes of a lease view.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_core::stream::BoxStream;
use futures_util::StreamExt as _;
use http_body::{Body, Frame};
use tokio::sync::watch;

use crate::events::synthetic;
use crate::logs::entry_name::{NameStyle, entry_name};
use crate::logs::websocket::push_text_message;
use crate::model::id::LeaseId;
use crate::model::time::LogTime;
use crate::model::view::{Filter, LeaseView};
use crate::platform;
use crate::stream::{Messages, Parts, StreamControl, StreamEnd};

/// Sends the events of all runs that the view has, and with follow those of later changes. It reads the view
/// only when it is polled: a slow client skips views, not memory.
pub(super) struct EventsBody {
    lease: LeaseId,
    filter: Filter,
    /// The view of which all events were sent.
    sent: Option<Arc<LeaseView>>,
    /// The first view, until it was sent.
    first: Option<Arc<LeaseView>>,
    /// Later views; `None` without follow.
    changes: Option<BoxStream<'static, Arc<LeaseView>>>,
    control: Arc<StreamControl>,
    ended: Arc<OnceLock<StreamEnd>>,
}

// === impl EventsBody ===

impl EventsBody {
    pub(super) fn new(
        lease: LeaseId,
        filter: Filter,
        view: watch::Receiver<Arc<LeaseView>>,
        follow: bool,
        control: Arc<StreamControl>,
        ended: Arc<OnceLock<StreamEnd>>,
    ) -> Self {
        let first = Some(Arc::clone(&view.borrow()));
        let changes = follow.then(|| platform::changes(view));
        Self { lease, filter, sent: None, first, changes, control, ended }
    }

    /// Returns the next view to send, or why the stream ends.
    fn poll_view(&mut self, cx: &mut Context<'_>) -> Poll<Result<Arc<LeaseView>, StreamEnd>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Ok(first));
        }
        if self.sent.as_ref().is_some_and(|view| view.ended) {
            return Poll::Ready(Err(StreamEnd::LeaseEnded));
        }
        if let Some(end) = self.control.end_requested() {
            return Poll::Ready(Err(end));
        }
        let Some(changes) = &mut self.changes else { return Poll::Ready(Err(StreamEnd::Done)) };
        Poll::Ready(ready!(changes.poll_next_unpin(cx)).ok_or(StreamEnd::LeaseEnded))
    }

    /// Encodes the events of a new view.
    fn encode(&self, view: &LeaseView) -> Bytes {
        let mut frames = Vec::new();
        let events =
            synthetic::changes(&self.lease, self.sent.as_deref(), view, LogTime::now(), |replica, run| {
                let pod = run.and_then(|run| run.instance.pod_name());
                entry_name(NameStyle::Pod, replica, pod).into_owned()
            });
        for event in events.iter().filter(|event| event.is_selected(&self.filter)) {
            push_text_message(event.frame().as_bytes(), &mut frames);
        }
        frames.into()
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
        loop {
            match ready!(this.poll_view(cx)) {
                Ok(view) => {
                    let frames = this.encode(&view);
                    this.sent = Some(view);
                    this.control.mark_started();
                    if !frames.is_empty() {
                        let messages = Messages::new(Parts::from([frames]), Arc::clone(&this.control));
                        return Poll::Ready(Some(Ok(Frame::data(messages))));
                    }
                }
                Err(end) => {
                    let _ = this.ended.set(end);
                    return Poll::Ready(None);
                }
            }
        }
    }
}
