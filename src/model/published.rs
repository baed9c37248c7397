//! The messages of the published `LeaseRPC` proto (chain-sdk), which has the draft's service name and other
//! messages.
//!
//! Written by hand and not generated: a second set of descriptors for the same service would show up in
//! reflection, which describes the draft. Status responses are missing here because the draft's have the
//! same bytes, and its additions are unknown fields to a client of the published proto.

use bytes::Bytes;

use super::proto::market;

/// The request of `ServiceLogs`, `StreamServiceLogs`, `ServiceStatus` and `StreamServiceStatus`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServicesRequest {
    /// The lease.
    #[prost(message, optional, tag = "1")]
    pub lease_id: Option<market::LeaseId>,
    /// The selected services; empty = all.
    #[prost(string, repeated, tag = "2")]
    pub services: Vec<String>,
}

/// Lines of one replica.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServiceLogs {
    /// The name of the pod, or of the replica.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Lines with their newlines.
    #[prost(bytes = "bytes", tag = "2")]
    pub logs: Bytes,
}

/// The response of `ServiceLogs` and `StreamServiceLogs`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ServiceLogsResponse {
    /// The entries.
    #[prost(message, repeated, tag = "1")]
    pub services: Vec<ServiceLogs>,
}
