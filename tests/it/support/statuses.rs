//! A follower of status.

use leasemux::model::proto::lease::lease_rpc_client::LeaseRpcClient;
use leasemux::model::proto::lease::{ReplicaStatus, ServiceStatusRequest, ServiceStatusResponse};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::gateway::{PATIENCE, Setup, proto_lease};

/// A follower of status on its own connection.
pub(crate) struct Statuses {
    stream: Streaming<ServiceStatusResponse>,
    /// The newest response.
    pub(crate) newest: ServiceStatusResponse,
    /// Number of responses.
    pub(crate) answers: usize,
    _client: LeaseRpcClient<Channel>,
}

/// Returns a request for the status of the whole lease.
pub(crate) fn request(setup: &Setup, follow: bool) -> ServiceStatusRequest {
    let lease_id = Some(proto_lease(&setup.lease));
    ServiceStatusRequest { lease_id, follow, ..ServiceStatusRequest::default() }
}

impl Statuses {
    /// Opens a call without reading a response.
    pub(crate) async fn open(setup: &Setup, request: ServiceStatusRequest) -> Result<Self, Status> {
        let mut client = setup.gateway.client(&setup.certificate).await;
        let stream = client.service_status(request).await?.into_inner();
        Ok(Self { stream, newest: ServiceStatusResponse::default(), answers: 0, _client: client })
    }

    /// Follows the whole lease.
    pub(crate) async fn follow(setup: &Setup) -> Self {
        Self::open(setup, request(setup, true)).await.unwrap()
    }

    /// Receives a response, which must differ from the one before. Returns `false` at the end.
    pub(crate) async fn next(&mut self) -> Result<bool, Status> {
        let next = tokio::time::timeout(PATIENCE, self.stream.message()).await;
        let Some(answer) = next.unwrap_or_else(|_| panic!("nothing comes after {:?}", self.newest))? else {
            return Ok(false);
        };
        assert!(self.answers == 0 || answer != self.newest, "told twice: {answer:?}");
        self.answers += 1;
        self.newest = answer;
        Ok(true)
    }

    /// Receives responses until `wanted` holds.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Self) -> bool) {
        while self.answers == 0 || !wanted(self) {
            assert!(self.next().await.unwrap(), "ended after {:?}", self.newest);
        }
    }

    /// Receives responses until the stream ends. Returns its status.
    pub(crate) async fn end(&mut self) -> Status {
        loop {
            match self.next().await {
                Ok(true) => {}
                Ok(false) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }

    /// Returns whether no response arrives while everything else is idle.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        // Time is paused: it advances only when no task can run.
        let quiet = std::time::Duration::from_secs(1);
        match tokio::time::timeout(quiet, self.stream.message()).await {
            Err(_) => true,
            Ok(next) => panic!("{next:?} after {:?}", self.newest),
        }
    }

    /// Returns a replica of the newest response.
    pub(crate) fn replica(&self, service: &str, index: u32) -> Option<&ReplicaStatus> {
        let service = self.newest.services.iter().find(|one| one.name == service)?;
        service.replica_status.iter().find(|one| one.replica == index)
    }
}
