//! Who lags now: looked up in the rings when somebody asks, so that it costs nothing while nobody does.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::time::Duration;

use super::ring::{Backlog, FollowerLag};
use crate::model::id::{LeaseId, Replica};

/// A follower lags once lines have waited for it for this long, or were overwritten before it took them, or its peer has taken
/// nothing of what it was sent for this long. Within it, a healthy one over a long way is a few round trips behind, and no more.
pub const LATE: Duration = Duration::from_secs(1);

/// A follower of one replica that lags.
#[derive(Clone, Debug)]
pub struct LaggingFollower {
    /// Of which lease.
    pub lease: LeaseId,
    /// Of which replica.
    pub replica: Replica,
    /// The number of its stream.
    pub stream: u64,
    /// Where that is sent to, if it is known.
    pub peer: Option<SocketAddr>,
    /// What it has not taken.
    pub behind: Backlog,
    /// What of that was overwritten, and will be reported to it as missing.
    pub lost: Backlog,
    /// How long the oldest entry that is held and that it has not taken has been there, or its peer has taken nothing if that is
    /// longer.
    pub waiting: Duration,
    /// What its stream has handed to HTTP/2, and its peer does not take, in bytes of messages.
    pub unsent_bytes: u64,
    /// How long its peer has taken nothing of what it was sent; zero if it has taken everything.
    pub stalled: Duration,
}

/// Those who lag.
#[derive(Clone, Debug, Default)]
pub struct LagReport {
    /// How many there are.
    pub total: usize,
    /// The worst of them: who has waited longest comes first, and of those who waited equally long, who is most bytes behind.
    pub worst: Vec<LaggingFollower>,
}

// === impl LagReport ===

impl LagReport {
    /// One more, of whom only the `most` worst are kept.
    pub(super) fn add(&mut self, most: usize, lease: &LeaseId, replica: &Replica, behind: FollowerLag) {
        self.total += 1;
        if most == 0 {
            return;
        }
        self.worst.push(LaggingFollower {
            lease: lease.clone(),
            replica: replica.clone(),
            stream: behind.stream.id(),
            peer: behind.stream.peer(),
            behind: behind.behind,
            lost: behind.lost,
            waiting: behind.waiting,
            unsent_bytes: behind.stream.held_bytes(),
            stalled: behind.stream.stalled(),
        });
        // Seldom enough that it costs little for each, often enough that the memory is bounded.
        if self.worst.len() >= most.saturating_mul(2) {
            self.keep(most);
        }
    }

    /// Keeps the `most` worst, in order.
    pub(super) fn keep(&mut self, most: usize) {
        self.worst.sort_by_key(|laggard| Reverse((laggard.waiting, laggard.behind.bytes)));
        self.worst.truncate(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Address;
    use crate::stream::StreamControl;

    #[test]
    fn only_the_worst_are_kept_and_they_are_in_order() {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        let lease = LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str()).unwrap();
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let mut lagging = LagReport::default();
        for number in 0..1_000_u64 {
            let behind = Backlog { entries: 1, lines: 1, bytes: number % 7 };
            let waiting = Duration::from_secs(number * 37 % 100);
            let stream = StreamControl::new();
            lagging.add(
                10,
                &lease,
                &replica,
                FollowerLag { stream, behind, lost: Backlog::default(), waiting },
            );
            assert!(lagging.worst.len() < 20);
        }
        lagging.keep(10);
        assert_eq!(lagging.total, 1_000);
        let seconds: Vec<_> = lagging.worst.iter().map(|laggard| laggard.waiting.as_secs()).collect();
        assert_eq!(seconds, [99; 10]);
        assert!(lagging.worst.is_sorted_by_key(|laggard| Reverse(laggard.behind.bytes)));
        assert_eq!(lagging.worst[0].behind.bytes, 6);
    }
}
