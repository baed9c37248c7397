//! The end of a stream as its client gets it: a last frame, and the close frame.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::Full;

use super::close::Ending;
use crate::edge::websocket::{Close, CloseOf};
use crate::logs::entries;
use crate::logs::notice::{Notice, NoticeKind, Notices};
use crate::logs::websocket::{self, NoticeSubject};
use crate::model::id::ServiceName;
use crate::stream::{Messages, Parts, StreamControl, StreamEnd};

/// The data of a stream: websocket frames.
pub(super) type Source = Pin<Box<dyn Body<Data = Messages, Error = Infallible> + Send>>;

/// Set when the stream ends.
pub(super) type EndCell = Arc<OnceLock<StreamEnd>>;

/// The form of a stream's last frame.
#[derive(Clone, Debug)]
pub(super) enum EndForm {
    /// A notice, if these include it. It has the name of this service.
    Notice(Notices, Option<ServiceName>),
    /// The object `end` of entries.
    Object,
}

/// What of a stream was lost, if only the reason of the close frame reports that.
pub(super) type LostUnit = Option<&'static str>;

/// Appends a last frame to the data of a stream.
struct WithLastFrame {
    source: Option<Source>,
    ended: EndCell,
    form: EndForm,
    control: Arc<StreamControl>,
}

// === impl EndForm ===

impl EndForm {
    /// Appends the last frame to `source`, which sets `ended`. Returns it with its close frame.
    pub(super) fn of_stream(
        self,
        source: Source,
        ended: EndCell,
        unit: LostUnit,
        control: &Arc<StreamControl>,
    ) -> (Source, CloseOf) {
        let close_of = {
            let (control, ended) = (Arc::clone(control), Arc::clone(&ended));
            move || close_of(&ended, &control, unit)
        };
        let source = WithLastFrame { source: Some(source), ended, form: self, control: Arc::clone(control) };
        (Box::pin(source), Box::new(close_of))
    }

    /// Returns a source that has only the last frame, that of a failed request, and the close frame.
    pub(super) fn of_failure(&self, ending: &Ending, control: &Arc<StreamControl>) -> (Source, CloseOf) {
        let frame = self.frame(NoticeKind::Error, ending);
        let messages = Messages::new(Parts::from([frame]), Arc::clone(control));
        let close = ending.close();
        (Box::pin(Full::new(messages)), Box::new(move || close))
    }

    /// Returns the last frame; empty if there is none.
    fn frame(&self, kind: NoticeKind, ending: &Ending) -> Bytes {
        match self {
            Self::Notice(notices, service) => {
                let notice = Notice::new(kind, &ending.text).with_reason(&ending.error);
                let subject = NoticeSubject::Stream { service: service.as_ref() };
                websocket::notice(subject, &notice, *notices)
            }
            Self::Object => entries::end(&ending.error, &ending.text, ending.retry_after),
        }
    }
}

// === impl WithLastFrame ===

impl Body for WithLastFrame {
    type Data = Messages;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Messages>, Infallible>>> {
        let this = self.get_mut();
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        if let Some(Ok(frame)) = ready!(source.as_mut().poll_frame(cx))
            && frame.is_data()
        {
            return Poll::Ready(Some(Ok(frame)));
        }
        this.source = None;
        let ending = this.ended.get().map(Ending::of_end);
        let Some(ending) = ending.filter(|ending| !ending.text.is_empty()) else { return Poll::Ready(None) };
        let frame = this.form.frame(NoticeKind::End, &ending);
        if frame.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Messages::new(Parts::from([frame]), Arc::clone(&this.control))))))
    }
}

/// Returns the close frame for the recorded end.
fn close_of(ended: &EndCell, control: &StreamControl, unit: LostUnit) -> Close {
    let ending = Ending::of_end(ended.get().unwrap_or(&StreamEnd::Done));
    let lost = unit.map_or(0, |_| control.lost_lines());
    ending.with_lost(lost, unit.unwrap_or_default()).close()
}
