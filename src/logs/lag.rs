//! Lag reports: which followers lag now. Computed from the rings on request, so that followers pay nothing
//! for it.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::Duration;

use super::ring::{Backlog, FollowerLag};
use crate::model::id::{LeaseId, Replica};

/// A follower lags if a line has waited for it for this long, or was evicted before it was read, or if its
/// peer has taken nothing for this long. A healthy follower needs a few round trips, which take less even
/// over a long distance.
pub(crate) const LAG_THRESHOLD: Duration = Duration::from_secs(1);

/// A lagging follower of one replica.
#[derive(Clone, Debug)]
pub struct LaggingFollower {
    /// The lease.
    pub lease: LeaseId,
    /// The replica.
    pub replica: Replica,
    /// Id of the stream.
    pub stream: u64,
    /// Address of the peer, if known.
    pub peer: Option<SocketAddr>,
    /// Entries that it has not read.
    pub backlog: Backlog,
    /// The part of the backlog that was evicted, and will be reported as a gap.
    pub lost: Backlog,
    /// How long the oldest held entry of the backlog has waited, or the peer has taken nothing, whichever is
    /// longer.
    pub waiting: Duration,
    /// Bytes of messages that HTTP/2 holds because the peer does not take them.
    pub unsent_bytes: u64,
    /// How long the peer has taken nothing; zero if nothing is unsent.
    pub stalled: Duration,
}

/// The lagging followers.
#[derive(Clone, Debug, Default)]
pub struct LagReport {
    /// How many followers lag.
    pub total: usize,
    /// The worst of them: by waiting time, then by bytes of the backlog, longest and most first.
    pub worst: Vec<LaggingFollower>,
}

// === impl LagReport ===

impl LagReport {
    /// Adds a follower, keeping about the `max` worst.
    pub(super) fn add(&mut self, max: usize, lease: &LeaseId, replica: &Replica, lag: FollowerLag) {
        self.total += 1;
        if max == 0 {
            return;
        }
        self.worst.push(LaggingFollower {
            lease: lease.clone(),
            replica: replica.clone(),
            stream: lag.stream.id(),
            peer: lag.stream.peer(),
            backlog: lag.backlog,
            lost: lag.lost,
            waiting: lag.waiting,
            unsent_bytes: lag.stream.unsent_bytes(),
            stalled: lag.stream.stalled(),
        });
        // At twice the size: the memory is bounded, and sorting costs little per follower.
        if self.worst.len() >= max.saturating_mul(2) {
            self.keep_worst(max);
        }
    }

    /// Sorts the followers and keeps the `max` worst.
    pub(super) fn keep_worst(&mut self, max: usize) {
        self.worst.sort_by_key(|follower| Reverse((follower.waiting, follower.backlog.bytes)));
        self.worst.truncate(max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Address;
    use crate::stream::StreamControl;

    #[test]
    fn report_keeps_worst_in_order() {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        let lease = LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str()).unwrap();
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let mut report = LagReport::default();
        for number in 0..1_000_u64 {
            let backlog = Backlog { entries: 1, lines: 1, bytes: number % 7 };
            let waiting = Duration::from_secs(number * 37 % 100);
            let stream = StreamControl::new();
            let lag = FollowerLag { stream, backlog, lost: Backlog::default(), waiting };
            report.add(10, &lease, &replica, lag);
            assert!(report.worst.len() < 20);
        }
        report.keep_worst(10);
        assert_eq!(report.total, 1_000);
        let seconds: Vec<_> = report.worst.iter().map(|follower| follower.waiting.as_secs()).collect();
        assert_eq!(seconds, [99; 10]);
        assert!(report.worst.is_sorted_by_key(|follower| Reverse(follower.backlog.bytes)));
        assert_eq!(report.worst[0].backlog.bytes, 6);
    }
}
