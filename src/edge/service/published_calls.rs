//! The calls of the published proto. Authentication and quotas of calls come before, as for the draft.

use std::sync::{Arc, OnceLock};

use bytes::{BufMut as _, BytesMut};
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use prost::Message as _;

use super::{Call, LeaseService, ViewReceiver, count_end};
use crate::access::grants::TokenScope;
use crate::edge::errors::{CallError, of_end};
use crate::edge::published::{self, PublishedRequest};
use crate::edge::response::{self, ResponseBody};
use crate::logs::body::LogsBody;
use crate::logs::collector::{Collector, CollectorLimits};
use crate::logs::entry_name::{NameStyle, entry_name};
use crate::logs::notice::Notices;
use crate::model::id::Replica;
use crate::model::metrics::PublishedMethod;
use crate::model::proto::{lease, unframed};
use crate::model::published::ServiceLogsResponse;
use crate::stream::StreamEnd;

impl LeaseService {
    /// Answers a call of the published proto, whose request had these headers.
    pub(super) async fn published(
        &self,
        method: PublishedMethod,
        request: PublishedRequest,
        headers: &HeaderMap,
        call: Call<'_>,
    ) -> Result<Response<ResponseBody>, CallError> {
        let notices = published::notices(headers)?;
        self.metrics().published_calls.of(method).increment(1);
        let PublishedRequest { lease, mut filter } = request;
        call.audit.set_lease(&lease);
        let scope = match method {
            PublishedMethod::Logs | PublishedMethod::StreamLogs => TokenScope::Logs,
            PublishedMethod::Status | PublishedMethod::StreamStatus => TokenScope::Status,
        };
        call.caller.identity.authorize(&lease, scope)?.narrow(&mut filter)?;
        let view = self.checked_view(&lease, &filter).await?;
        let request = PublishedRequest { lease, filter };
        match method {
            PublishedMethod::Logs => self.collected_logs(request, notices, view, &call).await,
            PublishedMethod::StreamLogs => Ok(self.log_stream(request.stream_logs(notices), view, &call)),
            // One message without follow, which is what a unary client expects.
            PublishedMethod::Status => {
                Ok(self.status_stream(&request.lease, request.filter, view, false, &call))
            }
            PublishedMethod::StreamStatus => {
                Ok(self.status_stream(&request.lease, request.filter, view, true, &call))
            }
        }
    }

    /// Collects the last lines of a lease, and responds with one message.
    async fn collected_logs(
        &self,
        request: PublishedRequest,
        notices: Notices,
        view: ViewReceiver,
        call: &Call<'_>,
    ) -> Result<Response<ResponseBody>, CallError> {
        let permit = self.quotas.admit_unary_logs(call.caller.identity.owner()).await?;
        let held = (permit, self.actors.context().memory.admit_unary_logs()?);
        let control = self.open_stream(call);
        tracing::debug!(lease = %request.lease, stream = control.id(), "collecting logs");
        let ended = Arc::new(OnceLock::new());
        let (audit, metrics, end) = (call.audit.clone(), self.metrics().clone(), Arc::clone(&ended));
        let trailers = Box::new(move |reason: &StreamEnd| {
            count_end(reason, &metrics, &audit);
            let _ = end.set(reason.clone());
            HeaderMap::new()
        });
        let names = self.actors.context().names;
        let body = self.logs_body(request.unary_logs(), view.clone(), Arc::clone(&control), trailers);
        let response = collect(body, Collector::new(CollectorLimits::UNARY, notices), names, &view).await;
        // Set: the body returns `None` only after its trailers.
        match ended.get() {
            Some(StreamEnd::Done) | None => Ok(response::of_message(&response, control, held)),
            Some(end) => Ok(response::of_status(of_end(end))),
        }
    }
}

/// Reads `body` to its end.
async fn collect(
    body: LogsBody,
    mut collector: Collector,
    names: NameStyle,
    view: &ViewReceiver,
) -> ServiceLogsResponse {
    let mut body = Box::pin(body);
    let mut unread = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        // Trailers are last.
        let Ok(messages) = frame.into_data() else { break };
        unread.put(messages);
        while let Some(message) = unframed(&mut unread) {
            let response = lease::ServiceLogsResponse::decode(message.freeze());
            for entry in response.unwrap_or_default().services {
                collector.push_entry(&entry, |replica, instance| name_of(names, view, replica, instance));
            }
        }
        // A log in memory is always ready.
        tokio::task::consume_budget().await;
    }
    collector.finish()
}

/// Returns the name of a replica in the run with this identifier.
fn name_of(names: NameStyle, view: &ViewReceiver, replica: &Replica, instance: &str) -> String {
    let view = view.borrow();
    let mut runs = view.replica(replica).into_iter().flat_map(|replica| &replica.runs);
    let run = runs.find(|run| run.instance.as_str() == instance);
    entry_name(names, replica, run.and_then(|run| run.instance.pod_name())).into_owned()
}
