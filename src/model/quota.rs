//! Quotas that reject calls: their names, and the messages that callers receive.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::id::{LeaseId, Owner};
use super::label::{LabelValue as _, label};

label! {
    /// A limited resource. The names ([`Quota::label`]) never change. Each has a row in
    /// `docs/LIMITS.md`; a test compares them.
    pub enum Quota as "quota" {
        /// Open streams of all owners.
        Streams = "streams",
        /// Open streams of one owner.
        StreamsPerOwner = "streams_per_owner",
        /// Calls per second of all owners.
        Requests = "requests",
        /// Calls per second of one owner.
        RequestsPerOwner = "requests_per_owner",
        /// Restarts per hour of all leases.
        Restarts = "restarts",
        /// Restarts per hour of all leases of one owner.
        RestartsPerOwner = "restarts_per_owner",
        /// Restarts per hour of one lease.
        RestartsPerLease = "restarts_per_lease",
        /// Replicas in restarts, of one owner or of all, that are in progress or remembered.
        RestartsRemembered = "restarts_remembered",
        /// Replicas that one call selects.
        ReplicasPerStream = "replicas_per_stream",
        /// Concurrent history reads of all owners.
        HistoryReads = "history_reads",
        /// Concurrent history reads of one owner.
        HistoryReadsPerOwner = "history_reads_per_owner",
        /// Bytes per second of the history reads of all owners.
        HistoryRate = "history_rate",
        /// Bytes per second of the history reads of one owner.
        HistoryRatePerOwner = "history_rate_per_owner",
        /// Unary calls for logs in progress, of all owners.
        UnaryLogs = "unary_logs",
        /// Unary calls for logs in progress, of one owner.
        UnaryLogsPerOwner = "unary_logs_per_owner",
        /// Failed authentications, handshakes and HTTP/2 connections of one peer per minute.
        AuthFailuresPerPeer = "auth_failures_per_peer",
        /// Open calls of health and reflection, which need no credentials, of one peer.
        AnonymousCallsPerPeer = "open_calls_per_peer",
        /// Calls of health and reflection, which need no credentials, of one peer per second.
        AnonymousCallRatePerPeer = "open_call_rate_per_peer",
        /// Requests and calls of one peer per second that are forwarded to the provider behind the gateway.
        ForwardedRatePerPeer = "forwarded_rate_per_peer",
        /// Queries about unknown callers to an Akash node per second, of all peers.
        ChainQueries = "chain_queries",
        /// Memory for rings, send buffers and reads of older lines.
        Memory = "memory",
    }
}

/// The error of a call over a quota. Its message is for the caller and reveals nothing about other tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The quota that is used up.
    pub quota: Quota,
    /// Whose quota it is.
    pub subject: Subject,
    /// The size of the quota.
    pub limit: u64,
    /// When a retry may succeed; `None` if only another request can.
    pub retry_after: Option<Duration>,
}

/// The owner of a quota.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// All callers of the gateway together.
    Gateway,
    /// The tenant whose call it is.
    Owner(Owner),
    /// One lease of the caller.
    Lease(LeaseId),
    /// The address of the caller. It has no value here: it may be the address of an internal proxy.
    Peer,
    /// The requested stream: it is too large.
    Stream,
}

// === impl Exceeded ===

impl Exceeded {
    fn problem(&self) -> &'static str {
        match self.quota {
            Quota::Streams => "too many open streams",
            Quota::StreamsPerOwner => "too many open streams of this owner",
            Quota::Requests => "too many calls per second",
            Quota::RequestsPerOwner => "too many calls per second of this owner",
            Quota::Restarts => "too many restarts per hour",
            Quota::RestartsPerOwner => "too many restarts per hour of this owner",
            Quota::RestartsPerLease => "too many restarts per hour of this lease",
            Quota::RestartsRemembered => {
                "too many replicas in restarts that are in progress or remembered for an hour"
            }
            Quota::ReplicasPerStream => "too many replicas for one call",
            Quota::HistoryReads => "too many reads of older lines at once",
            Quota::HistoryReadsPerOwner => "too many reads of older lines of this owner at once",
            Quota::HistoryRate => "too many bytes of older lines per second",
            Quota::HistoryRatePerOwner => "too many bytes of older lines of this owner per second",
            Quota::UnaryLogs => "too many unary calls for logs at once",
            Quota::UnaryLogsPerOwner => "too many unary calls for logs of this owner at once",
            Quota::AuthFailuresPerPeer => {
                "too many failed authentications or broken connections per minute from this address"
            }
            Quota::AnonymousCallsPerPeer => "too many open calls without credentials from this address",
            Quota::AnonymousCallRatePerPeer => {
                "too many calls per second without credentials from this address"
            }
            Quota::ForwardedRatePerPeer => {
                "too many requests per second to the provider behind this gateway from this address"
            }
            Quota::ChainQueries => "too many unknown callers per second",
            Quota::Memory => "too many bytes of log lines in memory",
        }
    }

    /// Returns what the caller can do, if waiting is not enough.
    fn advice(&self) -> &'static str {
        match self.quota {
            Quota::ReplicasPerStream => "; select fewer by a filter",
            Quota::HistoryReads | Quota::HistoryReadsPerOwner => "; none ended in time",
            Quota::UnaryLogs | Quota::UnaryLogsPerOwner => "; call again, or call StreamServiceLogs",
            Quota::AuthFailuresPerPeer => "; try again later, or connect with a trusted certificate",
            Quota::ChainQueries => "; try again later",
            _ => "",
        }
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (quota, problem, advice) = (self.quota.label(), self.problem(), self.advice());
        write!(f, "{quota}: {problem} (limit {}){advice}", self.limit)
    }
}

impl std::error::Error for Exceeded {}

// === impl Subject ===

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway => f.write_str("gateway"),
            Self::Owner(owner) => write!(f, "owner:{owner}"),
            Self::Lease(lease) => write!(f, "lease:{lease}"),
            Self::Peer => f.write_str("peer"),
            Self::Stream => f.write_str("stream"),
        }
    }
}

/// The number of gateways that share quotas of owners; each allows its part. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct QuotaDivisor(Arc<AtomicUsize>);

// === impl QuotaDivisor ===

impl QuotaDivisor {
    /// Sets the number, for calls from now on.
    pub(crate) fn set(&self, gateways: usize) {
        self.0.store(gateways.max(1), Ordering::Relaxed);
    }

    /// Returns this gateway's part of a limit: rounded up, and at least 1.
    pub(crate) fn part_of(&self, limit: usize) -> usize {
        limit.div_ceil(self.0.load(Ordering::Relaxed)).max(1)
    }
}

impl Default for QuotaDivisor {
    /// Creates the divisor of a gateway that shares with no other.
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(1)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn quota_has_unique_name_and_message() {
        let mut names = HashSet::new();
        for (index, quota) in Quota::ALL.iter().copied().enumerate() {
            assert_eq!(quota.index(), index);
            let name = quota.label();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            let message =
                Exceeded { quota, subject: Subject::Gateway, limit: 77, retry_after: None }.to_string();
            assert!(message.starts_with(&format!("{name}: ")) && message.contains("77"), "{message}");
            names.insert(name);
        }
        assert_eq!(names.len(), Quota::ALL.len());
    }
}
