//! `ServiceLogs`: what was printed, and what is yet to be.

use std::sync::Arc;

use bytes::Bytes;
use http::Response;

use super::{LeaseService, trailers};
use crate::access::authenticator::Admission;
use crate::access::grants::TokenScope;
use crate::access::refusal::Refusal;
use crate::edge::audit::AuditRecord;
use crate::edge::errors::CallError;
use crate::edge::request;
use crate::edge::response::{self, ResponseBody};
use crate::edge::stream_supervisor::Watched;
use crate::logs::body::{LogsBody, Trailers};
use crate::logs::request::ReadRange;
use crate::model::proto::lease::ServiceLogsRequest;
use crate::stream::StreamEnd;

impl LeaseService {
    pub(super) async fn logs(
        &self,
        message: &Bytes,
        admission: Admission,
        watched: &Watched,
        case: &AuditRecord,
    ) -> Result<Response<ResponseBody>, CallError> {
        let message: ServiceLogsRequest = request::decode(message)?;
        let mut request = request::logs(&message, self.bounds().filters_per_request)?;
        case.about(&request.lease);
        let services = admission.identity.authorize(&request.lease, TokenScope::Logs)?;
        services.narrow(&mut request.filter)?;
        if !request.resume.keys().all(|replica| services.contains(&replica.service)) {
            return Err(Refusal::ServiceNotGranted.into());
        }
        let view = self.chosen(&request.lease, &request.filter).await?;
        if matches!(request.range, ReadRange::Previous(_)) {
            let view = Arc::clone(&view.borrow());
            if !view.select(&request.filter).any(|(_, slot)| slot.readable().count() > 1) {
                return Err(CallError::NoPreviousRun);
            }
        }
        let state = self.open(&admission, watched, case);
        tracing::debug!(lease = %request.lease, stream = state.id(), follow = request.range.follows(), "log stream opened");
        let (fanout, history) = (self.fanout.clone(), self.history.clone());
        let trailers = self.trailers_of_logs(case);
        Ok(response::of_logs(LogsBody::new(request, fanout, history, view, state, trailers)))
    }

    /// The trailers of a stream, which may have been refused only when it came to reading: that counts as any other refusal.
    fn trailers_of_logs(&self, case: &AuditRecord) -> Trailers {
        let (case, metrics) = (case.clone(), self.fanout.context().metrics.clone());
        Box::new(move |end| {
            if let StreamEnd::Exceeded(exceeded) = end {
                case.refused(exceeded.quota.label());
                metrics.quota_refusals.of(exceeded.quota).increment(1);
            }
            trailers(end)
        })
    }
}
