//! A websocket of logs, events or status: from the upgraded connection to its end.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::RestService;
use super::close::Ending;
use super::content::StreamContent;
use super::ends::{EndCell, EndForm, LostUnit, Source};
use super::events::{EventsBody, EventsRequest};
use super::query::{StreamKind, StreamQuery};
use super::status_json::lease_status;
use crate::access::authenticator::CredentialValidity;
use crate::edge::audit::AuditRecord;
use crate::edge::call_trace::{CallResult, CallTrace};
use crate::edge::errors::CallError;
use crate::edge::service::{ConnectionInfo, ViewReceiver};
use crate::edge::stream_supervisor;
use crate::edge::websocket::Session;
use crate::logs::LogsRequest;
use crate::logs::notice::{NoticeKind, Notices};
use crate::logs::representation::Representation;
use crate::logs::websocket::push_text_message;
use crate::model::id::{LeaseId, Owner};
use crate::model::metrics::{GaugeGuard, Metrics, WebsocketEnd};
use crate::model::proto::lease::ServiceStatusResponse;
use crate::model::view::Filter;
use crate::status::{StatusBody, StatusForm};
use crate::stream::{StreamControl, StreamEnd};
use crate::sys::gated_poll::Gated;

/// A checked request for a stream.
pub(super) struct StreamRequest {
    pub(super) lease: LeaseId,
    /// What is selected and granted.
    pub(super) content: StreamContent,
    pub(super) owner: Owner,
    pub(super) validity: CredentialValidity,
    pub(super) info: ConnectionInfo,
    pub(super) audit: AuditRecord,
    pub(super) trace: CallTrace,
}

/// Counts a websocket as open. On drop, counts it as ended and finishes its trace.
pub(super) struct OpenStream {
    metrics: Metrics,
    kind: StreamKind,
    trace: CallTrace,
    /// `Drain` until the end is known: only the drain deadline cuts a websocket.
    pub(super) end: WebsocketEnd,
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
        self.serve(service, parts.io.into_inner(), parts.read_buf).await;
    }

    /// Serves the websocket on `io`, from which the client's bytes in `received` were read already.
    pub(super) async fn serve<IO>(self, service: &RestService, io: IO, received: Bytes)
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let metrics = service.metrics().clone();
        let mut stream = OpenStream::new(&metrics, self.content.kind(), self.trace.clone());
        let control = StreamControl::new();
        let (supervisor, cut) =
            stream_supervisor::supervised(self.info.address, service.limits().stall, metrics);
        // Gated: the wake-ups for log lines need not poll this.
        let mut cut = Gated::new(Box::pin(cut));
        let ended = EndCell::default();
        let (form, unit) = self.end_form(service);
        let (source, close_of) = match self.open(service, &control, &ended, &supervisor).await {
            Ok(source) => form.of_stream(source, ended, unit, &control),
            Err(ending) => form.of_failure(&ending, &control),
        };
        let session = Session::new(io, received, source, Arc::clone(&control), close_of);
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
        let view = match &self.content {
            StreamContent::Lines(query, filter) | StreamContent::Events(query, filter) => {
                if let Some(name) = &query.unknown {
                    return Err(Ending::unknown_service(name));
                }
                self.view(rest, query, filter).await
            }
            StreamContent::Status(query, filter) => match &query.unknown {
                Some(name) => return Err(Ending::unknown_service(name)),
                None => service.checked_view(&self.lease, filter).await,
            },
            StreamContent::Entries(request) => service.logs_view(request).await,
        };
        let view = view.map_err(fail)?;
        if let StreamContent::Lines(query, filter) = &self.content
            && !query.follow
            && view.borrow().select(filter).next().is_none()
        {
            return Err(Ending::no_running_pods());
        }
        service.supervise(supervisor, &self.audit, self.validity.clone(), Arc::clone(control));
        Ok(match &self.content {
            StreamContent::Lines(query, filter) => {
                let request = LogsRequest {
                    lease: self.lease.clone(),
                    filter: filter.clone(),
                    range: query.range(),
                    representation: Representation::WebSocket(notices(query, rest)),
                    on_lag: query.on_lag,
                    heartbeat: None,
                    resume: HashMap::new(),
                };
                self.logs(rest, request, view, control, ended)
            }
            StreamContent::Entries(request) => self.logs(rest, (**request).clone(), view, control, ended),
            StreamContent::Status(query, filter) => {
                let (filter, control, ended) = (filter.clone(), Arc::clone(control), Arc::clone(ended));
                let trailers = Box::new(move |end: &StreamEnd| {
                    let _ = ended.set(end.clone());
                    HeaderMap::new()
                });
                let form = StatusForm::Whole(status_frame);
                Box::pin(StatusBody::new(view, filter, query.follow, control, form, trailers))
            }
            StreamContent::Events(query, filter) => {
                let request = EventsRequest {
                    lease: self.lease.clone(),
                    filter: filter.clone(),
                    follow: query.follow,
                    on_lag: query.on_lag,
                    reports_loss: notices(query, rest).includes(NoticeKind::Gap),
                };
                let reader = rest.events().subscribe(&self.lease, view);
                let skipped = rest.metrics().events_skipped.clone();
                Box::pin(EventsBody::new(request, reader, skipped, Arc::clone(control), Arc::clone(ended)))
            }
        })
    }

    /// Returns the view for a request of the Akash provider's form.
    async fn view(
        &self,
        rest: &RestService,
        query: &StreamQuery,
        filter: &Filter,
    ) -> Result<ViewReceiver, CallError> {
        if query.follow {
            // A deployment that is being updated may not have all services yet.
            rest.service().counted_view(&self.lease, filter).await
        } else {
            rest.service().checked_view(&self.lease, filter).await
        }
    }

    fn logs(
        &self,
        rest: &RestService,
        request: LogsRequest,
        view: ViewReceiver,
        control: &Arc<StreamControl>,
        ended: &EndCell,
    ) -> Source {
        let (audit, metrics, ended) = (self.audit.clone(), rest.metrics().clone(), Arc::clone(ended));
        let trailers = Box::new(move |end: &StreamEnd| {
            crate::edge::service::count_end(end, &metrics, &audit);
            let _ = ended.set(end.clone());
            HeaderMap::new()
        });
        Box::pin(rest.service().logs_body(request, view, Arc::clone(control), trailers))
    }

    /// Returns the form of the last frame, and what the close frame reports as lost. Events have no notices.
    fn end_form(&self, rest: &RestService) -> (EndForm, LostUnit) {
        let unit_of = |query, unit| Some(unit).filter(|_| !notices(query, rest).includes(NoticeKind::Gap));
        match &self.content {
            StreamContent::Lines(query, filter) => {
                let form = EndForm::Notice(notices(query, rest), filter.only_service().cloned());
                (form, unit_of(query, "line"))
            }
            StreamContent::Events(query, _) => {
                (EndForm::Notice(Notices::None, None), unit_of(query, "event"))
            }
            StreamContent::Entries(_) | StreamContent::Status(..) => (EndForm::Object, None),
        }
    }
}

/// Encodes a status as a websocket frame.
fn status_frame(response: ServiceStatusResponse) -> Bytes {
    let mut frame = Vec::new();
    push_text_message(lease_status(response).as_bytes(), &mut frame);
    frame.into()
}

/// Returns the notices that the client asked for, or the default.
fn notices(query: &StreamQuery, rest: &RestService) -> Notices {
    query.notices.unwrap_or(rest.settings().notices)
}

// === impl OpenStream ===

impl OpenStream {
    pub(super) fn new(metrics: &Metrics, kind: StreamKind, trace: CallTrace) -> Self {
        let open = GaugeGuard::new(metrics.websocket_streams.of(kind));
        Self { metrics: metrics.clone(), kind, trace, end: WebsocketEnd::Drain, _open: open }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.metrics.websocket_streams_ended.of((self.kind, self.end)).increment(1);
        self.trace.finish(CallResult::Websocket(self.end));
    }
}
