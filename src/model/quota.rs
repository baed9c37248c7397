//! Every quota that refuses: its name, and what whoever has used it up is told.

use std::fmt;
use std::time::Duration;

use super::id::{LeaseId, Owner};
use super::metrics::LabelValue as _;
use super::metrics::declare::label;

label! {
    /// What there is only so much of. The names ([`Quota::label`]) stay the same from release to release; each has its line in
    /// `docs/LIMITS.md`, which a test holds.
    pub enum Quota as "quota" {
        /// Streams open at once, of all owners.
        Streams = "streams",
        /// Streams open at once, of one owner.
        StreamsPerOwner = "streams_per_owner",
        /// Calls per second, of all owners.
        Requests = "requests",
        /// Calls of one owner per second.
        RequestsPerOwner = "requests_per_owner",
        /// Restarts per hour, of all leases.
        Restarts = "restarts",
        /// Restarts of all leases of one owner per hour.
        RestartsPerOwner = "restarts_per_owner",
        /// Restarts of one lease per hour.
        RestartsPerLease = "restarts_per_lease",
        /// Replicas in restarts of one owner, or of all, that are under way or remembered.
        RestartsRemembered = "restarts_remembered",
        /// Replicas that one call is about.
        ReplicasPerStream = "replicas_per_stream",
        /// Reads of older lines at once, of all owners.
        HistoryReads = "history_reads",
        /// Reads of older lines at once, of one owner.
        HistoryReadsPerOwner = "history_reads_per_owner",
        /// Bytes of older lines per second, of all owners.
        HistoryRate = "history_rate",
        /// Bytes of older lines per second, of one owner.
        HistoryRatePerOwner = "history_rate_per_owner",
        /// Calls without valid credentials, broken handshakes and broken HTTP/2 connections of one peer address per minute.
        AuthFailuresPerPeer = "auth_failures_per_peer",
        /// Calls of health and reflection open at once, which need no credentials, of one peer address.
        OpenCallsPerPeer = "open_calls_per_peer",
        /// Calls of health and reflection, which need no credentials, of one peer address per second.
        OpenCallRatePerPeer = "open_call_rate_per_peer",
        /// Questions to an Akash node about callers who are not known yet, of all, per second.
        ChainQueries = "chain_queries",
    }
}

/// A quota is used up. What it says is for the caller, and names nothing but the caller's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// Which.
    pub quota: Quota,
    /// Whose.
    pub subject: Subject,
    /// How much there is of it.
    pub limit: u64,
    /// When it is of use to call again; `None` = not before something else is asked for.
    pub retry_after: Option<Duration>,
}

/// Whose quota it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Everybody's.
    Gateway,
    /// Of the caller.
    Owner(Owner),
    /// Of one lease of the caller's.
    Lease(LeaseId),
    /// Of the address that the call came from; which is not repeated, since it may be that of a proxy within.
    Peer,
    /// Of the one stream that was asked for.
    Stream,
}

// === impl Quota ===

impl Quota {
    /// Its name, for programs and as a metric label.
    pub fn label(self) -> &'static str {
        Self::SET.values[self.index()]
    }
}

// === impl Exceeded ===

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.limit;
        write!(f, "{}: ", self.quota.label())?;
        match self.quota {
            Quota::Streams => write!(f, "the gateway has {limit} streams open, and no more"),
            Quota::StreamsPerOwner => write!(f, "at most {limit} streams of one owner are open at once"),
            Quota::Requests => write!(f, "the gateway takes {limit} calls a second"),
            Quota::RequestsPerOwner => write!(f, "at most {limit} calls of one owner a second"),
            Quota::Restarts => write!(f, "the gateway takes {limit} restarts an hour"),
            Quota::RestartsPerOwner => write!(f, "at most {limit} restarts of one owner an hour"),
            Quota::RestartsPerLease => write!(f, "at most {limit} restarts of one lease an hour"),
            Quota::RestartsRemembered => {
                write!(
                    f,
                    "at most {limit} restarts of single replicas are under way or remembered (for an hour)"
                )
            }
            Quota::ReplicasPerStream => {
                write!(f, "one call is about at most {limit} replicas; choose some by filters")
            }
            Quota::HistoryReads => {
                write!(
                    f,
                    "the gateway has {limit} reads of older lines open, and no more; none ended in time"
                )
            }
            Quota::HistoryReadsPerOwner => write!(
                f,
                "at most {limit} reads of older lines of one owner are open at once; none ended in time"
            ),
            Quota::HistoryRate => {
                write!(
                    f,
                    "the gateway reads {limit} bytes of older lines a second, and has more than that to read"
                )
            }
            Quota::HistoryRatePerOwner => write!(
                f,
                "at most {limit} bytes of older lines of one owner are read a second, and there is more than that to read"
            ),
            Quota::AuthFailuresPerPeer => write!(
                f,
                "more than {limit} failed authentications or broken connections from this address within a minute; \
                 try again later, or connect with a trusted certificate"
            ),
            Quota::OpenCallsPerPeer => write!(
                f,
                "at most {limit} calls of services that need no credentials are open at once from one address"
            ),
            Quota::OpenCallRatePerPeer => write!(
                f,
                "at most {limit} calls a second of services that need no credentials are answered to one address"
            ),
            Quota::ChainQueries => write!(
                f,
                "at most {limit} callers a second who are not known yet are asked for on the chain; try again later"
            ),
        }
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_quota_has_its_place_its_name_and_its_words() {
        let mut names = HashSet::new();
        for (index, quota) in Quota::ALL.iter().copied().enumerate() {
            assert_eq!(quota.index(), index);
            let name = quota.label();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            let told =
                Exceeded { quota, subject: Subject::Gateway, limit: 77, retry_after: None }.to_string();
            assert!(told.starts_with(&format!("{name}: ")) && told.contains("77"), "{told}");
            names.insert(name);
        }
        assert_eq!(names.len(), Quota::ALL.len());
    }
}
