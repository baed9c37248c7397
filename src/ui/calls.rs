//! The calls of gRPC behind the page, each on a connection of its own.
//!
//! Identity, token and trusted certificates are read for each call, since a file may hold newer ones.

use std::time::Duration;

use tonic::Streaming;

use crate::client::connect::{Client, Connector};
use crate::client::error::CallError;
use crate::client::{ANSWER_TIMEOUT, response};
use crate::config::Target;
use crate::model::id::{LeaseId, RequestId, ServiceName};
use crate::model::proto::lease::{
    ServiceFilter, ServiceLogsRequest, ServiceLogsResponse, ServiceRestartRequest, ServiceRestartResponse,
    ServiceStatusRequest, ServiceStatusResponse,
};

/// Calls one gateway about one lease.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    target: Target,
    lease: LeaseId,
}

// === impl Calls ===

impl Calls {
    pub(super) fn new(target: Target, lease: LeaseId) -> Self {
        Self { target, lease }
    }

    pub(super) fn lease(&self) -> &LeaseId {
        &self.lease
    }

    /// Returns the gateway's address, for people.
    pub(super) fn gateway(&self) -> String {
        self.target.gateway.to_string()
    }

    pub(super) async fn logs(
        &self,
        request: ServiceLogsRequest,
    ) -> Result<Streaming<ServiceLogsResponse>, CallError> {
        let mut client = self.connect().await?;
        Ok(response(ANSWER_TIMEOUT, client.service_logs(request)).await?.into_inner())
    }

    pub(super) async fn status(&self, follow: bool) -> Result<Streaming<ServiceStatusResponse>, CallError> {
        let mut client = self.connect().await?;
        let request = ServiceStatusRequest {
            lease_id: Some((&self.lease).into()),
            follow,
            ..ServiceStatusRequest::default()
        };
        Ok(response(ANSWER_TIMEOUT, client.service_status(request)).await?.into_inner())
    }

    /// Restarts these replicas of a service, or all if there are none. Waits for their outcome for `timeout`.
    pub(super) async fn restart(
        &self,
        service: &ServiceName,
        replicas: Vec<u32>,
        request_id: &RequestId,
        timeout: Duration,
    ) -> Result<ServiceRestartResponse, CallError> {
        let mut client = self.connect().await?;
        let request = ServiceRestartRequest {
            lease_id: Some((&self.lease).into()),
            filter: Some(ServiceFilter { name: service.to_string(), replicas }),
            timeout: timeout.try_into().ok(),
            request_id: request_id.to_string(),
            filters: Vec::new(),
        };
        Ok(response(timeout + ANSWER_TIMEOUT, client.service_restart(request)).await?.into_inner())
    }

    async fn connect(&self) -> Result<Client, CallError> {
        let connector = Connector::new(&self.target)?;
        // Boxed: the future that connects is large and short-lived.
        Ok(Box::pin(connector.connect()).await?)
    }
}
