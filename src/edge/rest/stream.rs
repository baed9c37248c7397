//! A websocket of logs or events: from the upgraded connection to its end.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use http::HeaderMap;
use http_body::{Body, Frame};
use http_body_util::Full;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::RestService;
use super::close::Ending;
use super::events::{EventsBody, EventsRequest};
use super::query::{StreamKind, StreamQuery};
use crate::access::authenticator::CredentialValidity;
use crate::edge::audit::AuditRecord;
use crate::edge::errors::CallError;
use crate::edge::service::ConnectionInfo;
use crate::edge::stream_supervisor;
use crate::edge::websocket::{Close, CloseOf, Session};
use crate::logs::LogsRequest;
use crate::logs::notice::{Notice, NoticeKind, Notices};
use crate::logs::representation::Representation;
use crate::logs::websocket::{self, NoticeSubject};
use crate::model::id::{LeaseId, Owner, ServiceName};
use crate::model::metrics::{GaugeGuard, Metrics, WebsocketEnd};
use crate::model::view::Filter;
use crate::stream::{Messages, Parts, StreamControl, StreamEnd};
use crate::sys::gated_poll::Gated;

/// A checked request for a stream.
pub(super) struct StreamRequest {
    pub(super) lease: LeaseId,
    pub(super) kind: StreamKind,
    pub(super) query: StreamQuery,
    /// The services that are selected and granted.
    pub(super) filter: Filter,
    pub(super) owner: Owner,
    pub(super) validity: CredentialValidity,
    pub(super) info: ConnectionInfo,
    pub(super) audit: AuditRecord,
}

/// The data of a stream: websocket frames.
type Source = Pin<Box<dyn Body<Data = Messages, Error = Infallible> + Send>>;

/// Set when the stream ends.
type EndCell = Arc<OnceLock<StreamEnd>>;

/// Appends a notice about its end to the data of a stream.
struct WithEndNotice {
    source: Option<Source>,
    ended: EndCell,
    notices: Notices,
    service: Option<ServiceName>,
    control: Arc<StreamControl>,
}

/// Counts a websocket as open, and on drop as ended.
struct OpenStream {
    metrics: Metrics,
    kind: StreamKind,
    /// `Drain` until the end is known: only the drain deadline cuts a websocket.
    end: WebsocketEnd,
    _open: GaugeGuard,
}

// === impl StreamRequest ===

impl StreamRequest {
    /// Serves the websocket until it ends. Cancellation cuts the connection.
    pub(super) async fn run<IO>(self, service: &RestService, upgraded: Upgraded)
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(parts) = upgraded.downcast::<TokioIo<IO>>() else {
            tracing::error!("failed to get the connection back after an upgrade");
            return;
        };
        let metrics = service.metrics().clone();
        let mut stream = OpenStream::new(&metrics, self.kind);
        let control = StreamControl::new();
        let (supervisor, cut) =
            stream_supervisor::supervised(self.info.address, service.limits().stall, metrics);
        // Gated: the wake-ups for log lines need not poll this.
        let mut cut = Gated::new(Box::pin(cut));
        let ended = EndCell::default();
        let asked = self.notices(service);
        let (source, close_of) = match self.open(service, &control, &ended, &supervisor).await {
            Ok(source) => self.with_end_notice(source, ended, asked, &control),
            Err(ending) => self.of_failure(&ending, asked, &control),
        };
        let io = parts.io.into_inner();
        let session = Session::new(io, parts.read_buf, source, Arc::clone(&control), close_of);
        stream.end = tokio::select! {
            biased;
            () = &mut cut => match control.end_requested() {
                // The client did not answer the close frame in time.
                Some(end @ StreamEnd::Refused(_)) => Ending::of_end(&end).label,
                _ => WebsocketEnd::Stalled,
            },
            end = session => end,
        };
        drop(supervisor);
        tracing::debug!(lease = %self.lease, end = ?stream.end, "websocket ended");
    }

    /// Takes the owner's quotas, and opens the source of the stream.
    async fn open(
        &self,
        rest: &RestService,
        control: &Arc<StreamControl>,
        ended: &EndCell,
        supervisor: &stream_supervisor::SupervisorHandle,
    ) -> Result<Source, Ending> {
        let service = rest.service();
        let fail = |error: CallError| {
            service.count_failure(&error, &self.audit);
            Ending::of_error(&error)
        };
        if service.drain.is_draining() {
            return Err(fail(CallError::Draining));
        }
        let permit = service.quotas.admit_call(&self.owner, Instant::now().into_std());
        supervisor.hold(permit.map_err(|exceeded| fail(exceeded.into()))?);
        if let Some(name) = &self.query.unknown {
            return Err(Ending::unknown_service(name));
        }
        let view = if self.query.follow {
            // A deployment that is being updated may not have all services yet.
            service.counted_view(&self.lease, &self.filter).await
        } else {
            service.checked_view(&self.lease, &self.filter).await
        };
        let view = view.map_err(fail)?;
        let is_empty = view.borrow().select(&self.filter).next().is_none();
        if self.kind == StreamKind::Logs && is_empty && !self.query.follow {
            return Err(Ending::no_running_pods());
        }
        service.supervise(supervisor, &self.audit, self.validity.clone(), Arc::clone(control));
        Ok(match self.kind {
            StreamKind::Logs => {
                let request = LogsRequest {
                    lease: self.lease.clone(),
                    filter: self.filter.clone(),
                    range: self.query.range(),
                    representation: Representation::WebSocket(self.notices(rest)),
                    on_lag: self.query.on_lag,
                    heartbeat: None,
                    resume: std::collections::HashMap::new(),
                };
                let (audit, metrics, ended) = (self.audit.clone(), rest.metrics().clone(), Arc::clone(ended));
                let trailers = Box::new(move |end: &StreamEnd| {
                    crate::edge::service::count_end(end, &metrics, &audit);
                    let _ = ended.set(end.clone());
                    HeaderMap::new()
                });
                Box::pin(service.logs_body(request, view, Arc::clone(control), trailers))
            }
            StreamKind::Events => {
                let request = EventsRequest {
                    lease: self.lease.clone(),
                    filter: self.filter.clone(),
                    follow: self.query.follow,
                    on_lag: self.query.on_lag,
                    reports_loss: self.notices(rest).includes(NoticeKind::Gap),
                };
                let reader = rest.events().subscribe(&self.lease, view);
                let skipped = rest.metrics().events_skipped.clone();
                Box::pin(EventsBody::new(request, reader, skipped, Arc::clone(control), Arc::clone(ended)))
            }
        })
    }

    /// Returns the notices that the client asked for, or the default.
    fn notices(&self, rest: &RestService) -> Notices {
        self.query.notices.unwrap_or(rest.settings().notices)
    }

    /// Returns the notices that the client gets, if it asked for `asked`. Event streams have none.
    fn sent_notices(&self, asked: Notices) -> Notices {
        match self.kind {
            StreamKind::Logs => asked,
            StreamKind::Events => Notices::None,
        }
    }

    /// Appends a notice about its end to `source`. Returns it with its close frame.
    fn with_end_notice(
        &self,
        source: Source,
        ended: EndCell,
        asked: Notices,
        control: &Arc<StreamControl>,
    ) -> (Source, CloseOf) {
        let service = self.filter.only_service().cloned();
        let close_of = {
            let (control, ended) = (Arc::clone(control), Arc::clone(&ended));
            let unit = match self.kind {
                StreamKind::Logs => "line",
                StreamKind::Events => "event",
            };
            let unit = (!asked.includes(NoticeKind::Gap)).then_some(unit);
            move || close_of(&ended, &control, unit)
        };
        let (control, notices) = (Arc::clone(control), self.sent_notices(asked));
        let source = WithEndNotice { source: Some(source), ended, notices, service, control };
        (Box::pin(source), Box::new(close_of))
    }

    /// Returns a source that has the notice of a failed request only, and the close frame.
    fn of_failure(&self, ending: &Ending, asked: Notices, control: &Arc<StreamControl>) -> (Source, CloseOf) {
        let notice = Notice::new(NoticeKind::Error, &ending.text).with_reason(&ending.error);
        let subject = NoticeSubject::Stream { service: self.filter.only_service() };
        let frame = websocket::notice(subject, &notice, self.sent_notices(asked));
        let messages = Messages::new(Parts::from([frame]), Arc::clone(control));
        let close = ending.close();
        (Box::pin(Full::new(messages)), Box::new(move || close))
    }
}

// === impl OpenStream ===

impl OpenStream {
    fn new(metrics: &Metrics, kind: StreamKind) -> Self {
        let open = GaugeGuard::new(metrics.websocket_streams.of(kind));
        Self { metrics: metrics.clone(), kind, end: WebsocketEnd::Drain, _open: open }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.metrics.websocket_streams_ended.of((self.kind, self.end)).increment(1);
    }
}

// === impl WithEndNotice ===

impl Body for WithEndNotice {
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
        let notice = Notice::new(NoticeKind::End, &ending.text).with_reason(&ending.error);
        let subject = NoticeSubject::Stream { service: this.service.as_ref() };
        let frame = websocket::notice(subject, &notice, this.notices);
        if frame.is_empty() {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(Messages::new(Parts::from([frame]), Arc::clone(&this.control))))))
    }
}

/// Returns the close frame for the recorded end. `unit`: of what was lost, if only the close frame's reason
/// reports that.
fn close_of(ended: &EndCell, control: &StreamControl, unit: Option<&str>) -> Close {
    let ending = Ending::of_end(ended.get().unwrap_or(&StreamEnd::Done));
    let lost = unit.map_or(0, |_| control.lost_lines());
    ending.with_lost(lost, unit.unwrap_or_default()).close()
}
