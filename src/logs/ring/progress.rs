//! Progress of live followers, for lag reports.
//!
//! Each follower stores its progress in atomics of its own as it reads. Only a lag report loads them, so that
//! followers do not contend for a lock or a cache line.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::Ring;
use super::entry::Totals;
use crate::stream::StreamControl;

#[derive(Debug)]
pub(super) struct FollowerProgress {
    stream: Arc<StreamControl>,
    /// Sequence number of the entry that it reads next.
    next: AtomicU64,
    /// Lines before that entry.
    lines: AtomicU64,
    /// Bytes before that entry.
    bytes: AtomicU64,
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

/// A lagging follower, as its ring knows it.
#[derive(Clone, Debug)]
pub(crate) struct FollowerLag {
    pub(crate) stream: Arc<StreamControl>,
    /// Entries that it has not read.
    pub(crate) backlog: Backlog,
    /// The part of the backlog that was evicted.
    pub(crate) lost: Backlog,
    /// How long the oldest held entry of the backlog has waited, or the peer has taken nothing, whichever is
    /// longer.
    pub(crate) waiting: Duration,
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
        });
        let key = self.followers.lock().insert(Arc::clone(&progress));
        (key, progress)
    }

    pub(super) fn unregister(&self, key: usize) {
        self.followers.lock().remove(key);
    }

    /// Calls `visit` for each follower whose oldest unread entry is older than `threshold` or was evicted,
    /// and for each whose peer has taken nothing for `threshold`. The ring's state is not locked while
    /// `visit` runs.
    pub(crate) fn for_each_lagging(&self, threshold: Duration, mut visit: impl FnMut(FollowerLag)) {
        let followers = self.followers.lock();
        if followers.is_empty() {
            return;
        }
        let (oldest_in_time, next, totals) = {
            let state = self.state.lock();
            (state.first_read_after(Instant::now().checked_sub(threshold)), state.next(), state.totals)
        };
        for (_, follower) in followers.iter() {
            let unread = follower.next.load(Ordering::Relaxed);
            let stalled = follower.stream.stalled();
            if unread >= oldest_in_time && stalled < threshold {
                continue;
            }
            let (read_at, lost) = self.oldest_unread(follower, unread);
            visit(FollowerLag {
                stream: Arc::clone(&follower.stream),
                backlog: follower.backlog_to(next, totals),
                lost,
                waiting: read_at.map_or(stalled, |at| at.elapsed().max(stalled)),
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
        let lost = if unread < state.first {
            follower.backlog_to(state.first, oldest.totals_before)
        } else {
            Backlog::default()
        };
        (Some(oldest.read_at), lost)
    }
}
