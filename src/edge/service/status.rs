//! `ServiceStatus`: how services are doing, and how they go on doing.

use bytes::Bytes;
use http::Response;

use super::{LeaseService, trailers};
use crate::access::authenticator::Admission;
use crate::access::grants::TokenScope;
use crate::edge::audit::AuditRecord;
use crate::edge::errors::CallError;
use crate::edge::request;
use crate::edge::response::{self, ResponseBody};
use crate::edge::stream_supervisor::Watched;
use crate::model::proto::lease::ServiceStatusRequest;
use crate::status::body::StatusBody;

impl LeaseService {
    pub(super) async fn status(
        &self,
        message: &Bytes,
        admission: Admission,
        watched: &Watched,
        case: &AuditRecord,
    ) -> Result<Response<ResponseBody>, CallError> {
        let message: ServiceStatusRequest = request::decode(message)?;
        let lease = request::lease(message.lease_id.as_ref())?;
        let mut filter =
            request::filter(message.filter.as_ref(), &message.filters, self.bounds().filters_per_request)?;
        case.about(&lease);
        admission.identity.authorize(&lease, TokenScope::Status)?.narrow(&mut filter)?;
        let view = self.chosen(&lease, &filter).await?;
        let state = self.open(&admission, watched, case);
        tracing::debug!(%lease, follow = message.follow, "status stream opened");
        Ok(response::of_status_stream(StatusBody::new(view, filter, message.follow, state, trailers)))
    }
}
