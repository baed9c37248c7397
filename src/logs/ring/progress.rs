//! Where those who follow live stand, for others to see: each writes it down as it goes, in memory of its own, and nobody reads
//! it but who asks how far behind they are.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use slab::Slab;
use tokio::time::Instant;

use super::{Ring, State, Totals};
use crate::stream::StreamControl;

/// Where one follower stands.
#[derive(Debug)]
pub(super) struct FollowerProgress {
    stream: Arc<StreamControl>,
    /// Sequence number of the entry that it takes next.
    next: AtomicU64,
    /// Lines up to there.
    lines: AtomicU64,
    /// Their bytes.
    bytes: AtomicU64,
}

/// So much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Entries of the ring.
    pub entries: u64,
    /// Lines that end in them.
    pub lines: u64,
    /// Their log bytes.
    pub bytes: u64,
}

/// Somebody who is behind.
#[derive(Clone, Debug)]
pub struct FollowerLag {
    /// Whose stream it is.
    pub stream: Arc<StreamControl>,
    /// What was not taken.
    pub behind: Backlog,
    /// What of that is no longer held.
    pub lost: Backlog,
    /// How long the oldest that is held and was not taken has been there, or the peer has taken nothing if that is longer.
    pub waiting: Duration,
}

// === impl Standing ===

impl FollowerProgress {
    /// For each to see alone: the numbers of one look may belong to two steps.
    pub(super) fn write(&self, next: u64, seen: Totals) {
        self.next.store(next, Ordering::Relaxed);
        self.lines.store(seen.lines, Ordering::Relaxed);
        self.bytes.store(seen.bytes, Ordering::Relaxed);
    }

    /// What lies between there and `next`, everything up to which is `totals`.
    fn until(&self, next: u64, totals: Totals) -> Backlog {
        let from = |at: &AtomicU64, to: u64| to.saturating_sub(at.load(Ordering::Relaxed));
        Backlog {
            entries: from(&self.next, next),
            lines: from(&self.lines, totals.lines),
            bytes: from(&self.bytes, totals.bytes),
        }
    }
}

// === impl Ring ===

impl Ring {
    /// Somebody stands there, until [`Ring::leave`].
    pub(super) fn register(
        &self,
        stream: Arc<StreamControl>,
        next: u64,
        seen: Totals,
    ) -> (usize, Arc<FollowerProgress>) {
        let standing = FollowerProgress {
            stream,
            next: AtomicU64::new(next),
            lines: AtomicU64::new(seen.lines),
            bytes: AtomicU64::new(seen.bytes),
        };
        let standing = Arc::new(standing);
        let place = self.standings().insert(Arc::clone(&standing));
        (place, standing)
    }

    /// They do no longer.
    pub(super) fn unregister(&self, place: usize) {
        self.standings().remove(place);
    }

    /// Tells of each who has not taken entries that were read more than `late` ago, or have been overwritten; and of each whose
    /// peer has taken nothing of what it was sent for as long. It is called without a lock that the fan-out needs.
    pub fn for_each_lagging(&self, late: Duration, mut tell: impl FnMut(FollowerLag)) {
        let standings = self.standings();
        if standings.is_empty() {
            return;
        }
        let (must_have, next, totals) = {
            let state = self.lock();
            (state.first_after(Instant::now().checked_sub(late)), state.next(), state.totals)
        };
        for (_, standing) in standings.iter() {
            let stands = standing.next.load(Ordering::Relaxed);
            let stalled = standing.stream.stalled();
            if stands >= must_have && stalled < late {
                continue;
            }
            let (since, lost) = self.oldest_for(standing, stands);
            let behind = standing.until(next, totals);
            let stream = Arc::clone(&standing.stream);
            tell(FollowerLag {
                stream,
                behind,
                lost,
                waiting: since.map_or(stalled, |at| at.elapsed().max(stalled)),
            });
        }
    }

    /// When the oldest entry was read that is held and that they have not taken, and what they have lost.
    fn oldest_for(&self, standing: &FollowerProgress, stands: u64) -> (Option<Instant>, Backlog) {
        let state = self.lock();
        let Some(oldest) = state.get(stands.max(state.first)) else {
            return (None, Backlog::default());
        };
        let is_behind_all = stands < state.first;
        let lost =
            if is_behind_all { standing.until(state.first, oldest.before) } else { Backlog::default() };
        (Some(oldest.read_at), lost)
    }

    fn standings(&self) -> MutexGuard<'_, Slab<Arc<FollowerProgress>>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl State {
    /// Sequence number of the first entry held that was read after `instant`; of the oldest if there is no such instant.
    fn first_after(&self, instant: Option<Instant>) -> u64 {
        let older = instant.map_or(0, |at| self.entries.partition_point(|entry| entry.read_at <= at));
        self.first + older as u64
    }
}
