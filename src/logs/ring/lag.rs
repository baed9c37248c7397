//! Reports of lagging followers.
//!
//! Each live follower stores its progress in atomics of its own as it reads. Only a report loads them, so
//! that followers do not contend for a lock or a cache line.

use std::cmp::Reverse;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Ring;
use super::entry::Totals;
use crate::model::id::{LeaseId, Replica};
use crate::stream::StreamControl;

/// A follower lags if a line has waited for it for this long, or was evicted before it was read, or if its
/// peer has taken nothing for this long. A healthy follower needs a few round trips, which take less even
/// over a long distance.
const LAG_THRESHOLD: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct FollowerProgress {
    stream: Arc<StreamControl>,
    /// Sequence number of the entry that it reads next.
    next: AtomicU64,
    /// Lines before that entry.
    lines: AtomicU64,
    /// Bytes before that entry.
    bytes: AtomicU64,
    /// Evicted lines are read from the log, so they are not lost.
    refilling: AtomicBool,
}

/// Entries between a follower and the head, or a part of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Entries of the ring.
    pub entries: u64,
    /// Lines that end in them.
    pub lines: u64,
    /// Their log bytes.
    pub bytes: u64,
}

/// A lagging follower of one replica.
#[derive(Clone, Debug)]
pub struct LaggingFollower {
    pub lease: LeaseId,
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
    /// Bytes handed to HTTP/2 that it has not written to the connection yet.
    pub unsent_bytes: u64,
    /// How long the peer has taken nothing; zero if nothing is unsent.
    pub stalled: Duration,
}

/// The lagging followers of all rings.
#[derive(Clone, Debug, Default)]
pub struct LagReport {
    /// How many followers lag.
    pub total: usize,
    /// The worst of them: by waiting time, then by bytes of the backlog, longest and most first.
    pub worst: Vec<LaggingFollower>,
}

// === impl FollowerProgress ===

impl FollowerProgress {
    /// Stores each number on its own: a report may combine numbers of two steps, which is precise enough for
    /// people.
    pub(super) fn store(&self, next: u64, seen: Totals) {
        self.next.store(next, Ordering::Relaxed);
        self.lines.store(seen.lines, Ordering::Relaxed);
        self.bytes.store(seen.bytes, Ordering::Relaxed);
    }

    pub(super) fn begin_refill(&self) {
        self.refilling.store(true, Ordering::Relaxed);
    }

    /// Returns the backlog up to entry `next`, before which lie `totals`.
    fn backlog_to(&self, next: u64, totals: Totals) -> Backlog {
        let until = |to: u64, from: &AtomicU64| to.saturating_sub(from.load(Ordering::Relaxed));
        Backlog {
            entries: until(next, &self.next),
            lines: until(totals.lines, &self.lines),
            bytes: until(totals.bytes, &self.bytes),
        }
    }
}

// === impl Ring ===

impl Ring {
    /// Registers a follower until [`Ring::unregister`]. Returns its key.
    pub(super) fn register(
        &self,
        stream: Arc<StreamControl>,
        next: u64,
        seen: Totals,
    ) -> (usize, Arc<FollowerProgress>) {
        let progress = Arc::new(FollowerProgress {
            stream,
            next: AtomicU64::new(next),
            lines: AtomicU64::new(seen.lines),
            bytes: AtomicU64::new(seen.bytes),
            refilling: AtomicBool::new(false),
        });
        let key = self.followers.lock().insert(Arc::clone(&progress));
        (key, progress)
    }

    pub(super) fn unregister(&self, key: usize) {
        self.followers.lock().remove(key);
    }

    /// Adds the lagging followers of this ring to `report`, which keeps the `max` worst.
    pub(crate) fn report_lagging(&self, lease: &LeaseId, max: usize, report: &mut LagReport) {
        let followers = self.followers.lock();
        if followers.is_empty() {
            return;
        }
        let (oldest_in_time, next, totals) = {
            let state = self.state.lock();
            (state.first_read_after(Instant::now().checked_sub(LAG_THRESHOLD)), state.next(), state.totals)
        };
        for (_, follower) in followers.iter() {
            let unread = follower.next.load(Ordering::Relaxed);
            let stalled = follower.stream.stalled();
            if unread >= oldest_in_time && stalled < LAG_THRESHOLD {
                continue;
            }
            report.add(max, || {
                let (read_at, lost) = self.oldest_unread(follower, unread);
                LaggingFollower {
                    lease: lease.clone(),
                    replica: self.replica.clone(),
                    stream: follower.stream.id(),
                    peer: follower.stream.peer(),
                    backlog: follower.backlog_to(next, totals),
                    lost,
                    waiting: read_at.map_or(stalled, |at| at.elapsed().max(stalled)),
                    unsent_bytes: follower.stream.unsent_bytes(),
                    stalled,
                }
            });
        }
    }

    /// Returns when the follower's oldest held entry was read from the log, and the part of its backlog that
    /// was evicted.
    fn oldest_unread(&self, follower: &FollowerProgress, unread: u64) -> (Option<Instant>, Backlog) {
        let state = self.state.lock();
        let Some(oldest) = state.get(unread.max(state.first)) else {
            return (None, Backlog::default());
        };
        let lost = if unread < state.first && !follower.refilling.load(Ordering::Relaxed) {
            follower.backlog_to(state.first, oldest.totals_before)
        } else {
            Backlog::default()
        };
        (Some(oldest.read_at), lost)
    }
}

// === impl LagReport ===

impl LagReport {
    /// Counts a follower, and describes it unless `max` is zero. Keeps at least the `max` worst.
    fn add(&mut self, max: usize, describe: impl FnOnce() -> LaggingFollower) {
        self.total += 1;
        if max == 0 {
            return;
        }
        self.worst.push(describe());
        // At twice the size: the memory is bounded, and sorting costs little per follower.
        if self.worst.len() >= max.saturating_mul(2) {
            self.keep_worst(max);
        }
    }

    /// Sorts the followers and keeps the `max` worst.
    pub(crate) fn keep_worst(&mut self, max: usize) {
        self.worst.sort_by_key(|follower| Reverse((follower.waiting, follower.backlog.bytes)));
        self.worst.truncate(max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Address;

    #[test]
    fn report_keeps_worst_in_order() {
        let [owner, provider] = [1, 2].map(|number| Address::from_account([number; 20]));
        let lease = LeaseId::new(owner.as_str(), 1, 1, 1, provider.as_str()).unwrap();
        let replica = Replica { service: "web".parse().unwrap(), index: 0 };
        let mut report = LagReport::default();
        for number in 0..1_000_u64 {
            let backlog = Backlog { entries: 1, lines: 1, bytes: number % 7 };
            let waiting = Duration::from_secs(number * 37 % 100);
            report.add(10, || LaggingFollower {
                lease: lease.clone(),
                replica: replica.clone(),
                stream: number,
                peer: None,
                backlog,
                lost: Backlog::default(),
                waiting,
                unsent_bytes: 0,
                stalled: Duration::ZERO,
            });
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
