//! Permits for history reads, and their pace: so many in all and so fast, and of that only a share for one tenant, so that one who
//! reads slowly, or not at all, or everything, keeps nobody else from reading.
//!
//! Nobody is refused: who may not read yet waits.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::model::id::Owner;
use crate::model::limits::QuotaLimits;
use crate::model::rate::{Bucket, Buckets, Rate};

/// Tenants that are remembered before those who hold nothing are forgotten.
const OWNERS_KEPT: usize = 1_024;

/// The permits. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct HistoryPermits(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    all: Arc<Semaphore>,
    per_owner: usize,
    owners: DashMap<Owner, Weak<Semaphore>>,
    /// Log bytes; `None` = as fast as they can be read.
    pace: Option<Mutex<Bucket>>,
    pace_per_owner: Option<Buckets<Owner>>,
}

/// Allows one history read for as long as it lives.
#[derive(Debug)]
pub struct HistoryPermit {
    _of_owner: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

// === impl HistoryPermits ===

impl HistoryPermits {
    /// So many, and so fast, as `limits` says.
    pub fn new(limits: &QuotaLimits) -> Self {
        let rate = |bytes: u64| (bytes > 0).then(|| Rate::new(bytes, Duration::from_secs(1)));
        let per_owner = rate(limits.history_bytes_per_second_per_owner);
        Self(Arc::new(Shared {
            all: Arc::new(Semaphore::new(limits.history_reads)),
            // Never the last one, if there is more than one.
            per_owner: limits.history_reads_per_owner.min(limits.history_reads.saturating_sub(1)).max(1),
            owners: DashMap::new(),
            pace: rate(limits.history_bytes_per_second).map(|rate| Mutex::new(Bucket::new(rate))),
            pace_per_owner: per_owner.map(|rate| Buckets::new(rate, OWNERS_KEPT)),
        }))
    }

    /// Waits for a permit for `owner`; first come, first served. Nothing is lost if it is cancelled.
    ///
    /// # Errors
    /// Never: the semaphores are not closed.
    pub async fn acquire(&self, owner: &Owner) -> Result<HistoryPermit, AcquireError> {
        // The tenant's own first: who waits for it holds nothing of the others'.
        let of_owner = self.of_owner(owner).acquire_owned().await?;
        let of_all = Arc::clone(&self.0.all).acquire_owned().await?;
        Ok(HistoryPermit { _of_owner: of_owner, _of_all: of_all })
    }

    /// Whether whoever asks for another one for `owner` has to wait.
    pub fn are_used_up(&self, owner: &Owner) -> bool {
        let none_left = |permits: &Semaphore| permits.available_permits() == 0;
        none_left(&self.0.all)
            || self.0.owners.get(owner).and_then(|own| own.upgrade()).is_some_and(|own| none_left(&own))
    }

    /// Waits until `owner` may make use of so many bytes that were read. They count even if it is cancelled.
    pub async fn pace(&self, owner: &Owner, bytes: usize) {
        let bytes = bytes as u64;
        // Here too: who is too fast for their own share takes nothing of the others' meanwhile.
        if let Some(buckets) = &self.0.pace_per_owner {
            wait(buckets.take(owner, bytes, Instant::now().into_std())).await;
        }
        if let Some(bucket) = &self.0.pace {
            let taken =
                bucket.lock().unwrap_or_else(PoisonError::into_inner).take(bytes, Instant::now().into_std());
            wait(taken).await;
        }
    }

    fn of_owner(&self, owner: &Owner) -> Arc<Semaphore> {
        let owners = &self.0.owners;
        if owners.len() >= OWNERS_KEPT {
            owners.retain(|_, permits| permits.strong_count() > 0);
        }
        let mut kept = owners.entry(owner.clone()).or_default();
        kept.upgrade().unwrap_or_else(|| {
            let fresh = Arc::new(Semaphore::new(self.0.per_owner));
            *kept = Arc::downgrade(&fresh);
            fresh
        })
    }
}

/// Not at all, if there is nothing to wait for.
async fn wait(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Address;

    const SECOND: Duration = Duration::from_secs(1);

    fn owners() -> [Owner; 2] {
        [1, 2].map(|number| Address::from_account([number; 20]))
    }

    /// How many permits one owner gets.
    async fn share(history_reads: usize, history_reads_per_owner: usize) -> usize {
        let limits = QuotaLimits { history_reads, history_reads_per_owner, ..QuotaLimits::default() };
        let permits = HistoryPermits::new(&limits);
        let [greedy, other] = owners();
        let mut held = Vec::new();
        let more = async {
            loop {
                held.push(permits.acquire(&greedy).await.unwrap());
            }
        };
        tokio::time::timeout(SECOND, more).await.unwrap_err();
        let share = held.len();
        assert!(permits.are_used_up(&greedy));
        assert_eq!(permits.are_used_up(&other), share == history_reads);
        if share < history_reads {
            drop(permits.acquire(&other).await.unwrap());
        }
        drop(held);
        drop(permits.acquire(&greedy).await.unwrap());
        share
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenant_never_has_all_of_them() {
        assert_eq!(share(8, 2).await, 2);
        assert_eq!(share(8, 100).await, 7);
        assert_eq!(share(1, 1).await, 1);
    }

    /// How long it takes to read so many times so much.
    async fn time(permits: &HistoryPermits, owner: &Owner, times: usize, bytes: usize) -> Duration {
        let began = Instant::now();
        for _ in 0..times {
            permits.pace(owner, bytes).await;
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_paced_for_each_and_for_all() {
        let limits = QuotaLimits {
            history_bytes_per_second: 3_000,
            history_bytes_per_second_per_owner: 1_000,
            ..QuotaLimits::default()
        };
        let permits = HistoryPermits::new(&limits);
        let [greedy, other] = owners();
        // The first second's worth is free.
        assert_eq!(time(&permits, &greedy, 4, 250).await, Duration::ZERO);
        let (slow, quick) = tokio::join!(time(&permits, &greedy, 40, 250), time(&permits, &other, 4, 250));
        assert_eq!((slow, quick), (10 * SECOND, Duration::ZERO));
        // All together are not faster than all may be.
        let many = (0..10).map(|number| {
            let (permits, owner) = (permits.clone(), Address::from_account([100 + number; 20]));
            async move { time(&permits, &owner, 8, 250).await }
        });
        let slowest = futures_util::future::join_all(many).await.into_iter().max().unwrap();
        // 20,000 bytes, of which 3,000 at once.
        assert!(slowest >= Duration::from_millis(5_600) && slowest <= 6 * SECOND, "{slowest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn zero_is_no_pace() {
        let limits = QuotaLimits {
            history_bytes_per_second: 0,
            history_bytes_per_second_per_owner: 0,
            ..QuotaLimits::default()
        };
        let permits = HistoryPermits::new(&limits);
        assert_eq!(time(&permits, &owners()[0], 1_000, usize::MAX / 2_000).await, Duration::ZERO);
    }
}
