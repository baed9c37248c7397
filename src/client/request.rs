//! Requests and responses, shared by the calls.

use std::time::Duration;

use tonic::{Status, Streaming};

use super::clock::ClockOffset;
use super::connect::Client;
use super::error::CallError;
use crate::config::{CallConfig, ServiceSelector};
use crate::model::proto::lease::{ServiceFilter, ServiceStatusRequest, ServiceStatusResponse};
use crate::model::time::LogTime;

/// Limit on the start of a response. A gateway may have to ask others who the caller is.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the filters for the selected replicas of each selected service, which must be names. One filter
/// goes into the original field, which every gateway supports.
pub(crate) fn filters(call: &CallConfig) -> (Option<ServiceFilter>, Vec<ServiceFilter>) {
    let filter = |service: &ServiceSelector| ServiceFilter {
        name: service.to_string(),
        replicas: call.replicas.clone(),
    };
    match call.services.as_slice() {
        [] => (None, Vec::new()),
        [service] => (Some(filter(service)), Vec::new()),
        services => (None, services.iter().map(filter).collect()),
    }
}

/// Requests the status. Returns its responses, and the gateway's clock for the ages in them.
pub(super) async fn status(
    client: &mut Client,
    call: &CallConfig,
    follow: bool,
) -> Result<(Streaming<ServiceStatusResponse>, ClockOffset), CallError> {
    let (filter, filters) = filters(call);
    let request = ServiceStatusRequest { lease_id: Some((&call.lease).into()), filter, follow, filters };
    let sent = LogTime::now();
    let response = response(ANSWER_TIMEOUT, client.service_status(request)).await?;
    let clock = ClockOffset::from_response(response.metadata(), sent);
    Ok((response.into_inner(), clock))
}

/// Waits for the response of `call`. A timeout counts as an unavailable gateway.
pub(crate) async fn response<T>(
    timeout: Duration,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, CallError> {
    let response = tokio::time::timeout(timeout, call).await;
    let response = response.map_err(|_| Status::unavailable("the gateway did not answer in time"))?;
    Ok(response?)
}
