//! Limits of backfills: permits and a byte rate, for the gateway and for each tenant.
//!
//! A tenant gets only a share of both, so that a tenant that reads slowly, not at all, or everything leaves
//! enough for the others. A backfill waits for its permit, and is rejected after a while, since the client
//! would see a silent stream of unknown duration. Streams that have started are not rejected. A backfill that
//! reads too fast is throttled, never rejected.

use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::memory_budget::{MemoryBudget, ReadMemory};
use crate::model::id::Owner;
use crate::model::limits::QuotaLimits;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::rate::{Bucket, Buckets, Rate};

/// Owners in the map before those without permits are removed.
const OWNERS_MAX: usize = 1_024;

/// Retry-after hint when no permit became free. The wait is unknown; five seconds bounds the retry load, and
/// is short for a person.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Issues permits and throttles. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct BackfillLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: QuotaLimits,
    permits: Arc<Semaphore>,
    permits_per_owner: usize,
    owners: DashMap<Owner, Weak<Semaphore>>,
    /// Rate of log bytes; `None`: unlimited.
    rate: Option<Mutex<Bucket>>,
    rate_per_owner: Option<Buckets<Owner>>,
    memory: MemoryBudget,
}

/// Allows one backfill until it is dropped.
#[derive(Debug)]
pub(crate) struct BackfillPermit {
    _of_owner: Option<OwnedSemaphorePermit>,
    _of_gateway: Option<OwnedSemaphorePermit>,
    _memory: ReadMemory,
}

/// The limits of one owner, or of the whole gateway.
#[derive(Clone, Copy)]
enum LimitScope<'a> {
    Owner(&'a Owner),
    Gateway,
}

// === impl BackfillLimiter ===

impl BackfillLimiter {
    /// Creates a limiter with the permits and rates of `limits`.
    pub(crate) fn new(limits: &QuotaLimits, memory: MemoryBudget) -> Self {
        let rate = |bytes: u64| (bytes > 0).then(|| Rate::new(bytes, Duration::from_secs(1)));
        let rate_per_owner = rate(limits.history_bytes_per_second_per_owner);
        Self(Arc::new(Shared {
            permits: Arc::new(Semaphore::new(limits.history_reads)),
            // One owner never gets all permits, unless there is only one.
            permits_per_owner: limits
                .history_reads_per_owner
                .min(limits.history_reads.saturating_sub(1))
                .max(1),
            owners: DashMap::new(),
            rate: rate(limits.history_bytes_per_second).map(|rate| Mutex::new(Bucket::new(rate))),
            rate_per_owner: rate_per_owner.map(|rate| Buckets::new(rate, OWNERS_MAX)),
            limits: limits.clone(),
            memory,
        }))
    }

    /// Waits for a permit for `owner`, in order of arrival. Cancel safe.
    ///
    /// # Errors
    /// [`Exceeded`] if the wait takes longer than [`QuotaLimits::history_wait`], or would because of the
    /// rate, or if there is no memory, and `keep_waiting` returns false at that time. Otherwise the caller
    /// waits on, at the same place.
    pub(crate) async fn acquire(
        &self,
        owner: &Owner,
        keep_waiting: impl Fn() -> bool,
    ) -> Result<BackfillPermit, Exceeded> {
        let deadline = Instant::now() + self.0.limits.history_wait;
        // The owner's permit first: while waiting for it, the caller holds none of the gateway's.
        let of_owner = self.acquire_from(LimitScope::Owner(owner), deadline, &keep_waiting).await?;
        let of_gateway = self.acquire_from(LimitScope::Gateway, deadline, &keep_waiting).await?;
        // The memory last: at most as many reads wait for it as have a permit.
        let memory = self.0.memory.admit_read(&keep_waiting).await?;
        Ok(BackfillPermit { _of_owner: of_owner, _of_gateway: of_gateway, _memory: memory })
    }

    /// Whether the next caller of [`BackfillLimiter::acquire`] for `owner` has to wait.
    pub(crate) fn is_exhausted(&self, owner: &Owner) -> bool {
        let none_left = |permits: &Semaphore| permits.available_permits() == 0;
        none_left(&self.0.permits)
            || self.0.memory.is_exhausted()
            || self.0.owners.get(owner).and_then(|own| own.upgrade()).is_some_and(|own| none_left(&own))
    }

    /// Waits until `owner` may use `bytes` that it has read. They count even if the wait is cancelled.
    pub(crate) async fn throttle(&self, owner: &Owner, bytes: usize) {
        let bytes = bytes as u64;
        // The owner's rate first: while waiting for it, the caller uses none of the gateway's.
        if let Some(buckets) = &self.0.rate_per_owner {
            sleep(buckets.take(owner, bytes, Instant::now().into_std())).await;
        }
        if let Some(bucket) = &self.0.rate {
            let delay = bucket.lock().take(bytes, Instant::now().into_std());
            sleep(delay).await;
        }
    }

    async fn acquire_from(
        &self,
        scope: LimitScope<'_>,
        deadline: Instant,
        keep_waiting: &impl Fn() -> bool,
    ) -> Result<Option<OwnedSemaphorePermit>, Exceeded> {
        let excess = self.rate_delay(scope).saturating_sub(self.0.limits.history_wait);
        if !excess.is_zero() && !keep_waiting() {
            return Err(self.rate_exceeded(scope, excess));
        }
        let permit = self.permits(scope).acquire_owned();
        tokio::pin!(permit);
        let permit = match tokio::time::timeout_at(deadline, &mut permit).await {
            Ok(permit) => permit,
            // The same future, so that its place in the queue is kept.
            Err(_) if keep_waiting() => permit.await,
            // The holders may be slow because of the rate.
            Err(_) if !self.rate_delay(scope).is_zero() => return Err(self.rate_exceeded(scope, RETRY_AFTER)),
            Err(_) => return Err(self.permits_exceeded(scope)),
        };
        // `None` if the semaphore is closed, which never happens. Reading without a permit would then be the
        // lesser evil.
        Ok(permit.ok())
    }

    /// Returns how long a byte that is read now would have to wait.
    fn rate_delay(&self, scope: LimitScope<'_>) -> Duration {
        let now = Instant::now().into_std();
        let delay = match scope {
            LimitScope::Owner(owner) => {
                self.0.rate_per_owner.as_ref().map(|buckets| buckets.wait_for(owner, 1, now))
            }
            LimitScope::Gateway => self.0.rate.as_ref().map(|bucket| bucket.lock().wait_for(1, now)),
        };
        delay.unwrap_or_default()
    }

    fn permits(&self, scope: LimitScope<'_>) -> Arc<Semaphore> {
        let owner = match scope {
            LimitScope::Owner(owner) => owner,
            LimitScope::Gateway => return Arc::clone(&self.0.permits),
        };
        let owners = &self.0.owners;
        if owners.len() >= OWNERS_MAX {
            owners.retain(|_, permits| permits.strong_count() > 0);
        }
        // The entry stays locked, so that two callers cannot both create a semaphore.
        let mut entry = owners.entry(owner.clone()).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let permits = Arc::new(Semaphore::new(self.0.permits_per_owner));
            *entry = Arc::downgrade(&permits);
            permits
        })
    }

    fn permits_exceeded(&self, scope: LimitScope<'_>) -> Exceeded {
        let (quota, limit) = match scope {
            LimitScope::Owner(_) => (Quota::HistoryReadsPerOwner, self.0.permits_per_owner),
            LimitScope::Gateway => (Quota::HistoryReads, self.0.limits.history_reads),
        };
        Exceeded { quota, subject: scope.subject(), limit: limit as u64, retry_after: Some(RETRY_AFTER) }
    }

    fn rate_exceeded(&self, scope: LimitScope<'_>, retry_after: Duration) -> Exceeded {
        let limits = &self.0.limits;
        let (quota, limit) = match scope {
            LimitScope::Owner(_) => (Quota::HistoryRatePerOwner, limits.history_bytes_per_second_per_owner),
            LimitScope::Gateway => (Quota::HistoryRate, limits.history_bytes_per_second),
        };
        Exceeded { quota, subject: scope.subject(), limit, retry_after: Some(retry_after) }
    }
}

// === impl LimitScope ===

impl LimitScope<'_> {
    fn subject(self) -> Subject {
        match self {
            Self::Owner(owner) => Subject::Owner(owner.clone()),
            Self::Gateway => Subject::Gateway,
        }
    }
}

/// Sleeps, unless `delay` is zero: a timer would yield to other tasks even then.
async fn sleep(delay: Duration) {
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use metrics::NoopRecorder;

    use super::*;
    use crate::logs::memory_budget::READ_RESERVED_BYTES;
    use crate::model::id::Address;
    use crate::model::metrics::Metrics;

    const SECOND: Duration = Duration::from_secs(1);

    fn owners() -> [Owner; 2] {
        [1, 2].map(|number| Address::from_account([number; 20]))
    }

    /// Returns how many permits one owner gets.
    async fn permits_of_one_owner(history_reads: usize, history_reads_per_owner: usize) -> usize {
        let limits = QuotaLimits { history_reads, history_reads_per_owner, ..QuotaLimits::default() };
        let limiter = BackfillLimiter::new(&limits, MemoryBudget::default());
        let [greedy, other] = owners();
        let mut held = Vec::new();
        let acquire_all = async {
            loop {
                held.push(limiter.acquire(&greedy, || true).await.unwrap());
            }
        };
        tokio::time::timeout(SECOND, acquire_all).await.unwrap_err();
        let count = held.len();
        assert!(limiter.is_exhausted(&greedy));
        assert_eq!(limiter.is_exhausted(&other), count == history_reads);
        if count < history_reads {
            drop(limiter.acquire(&other, || true).await.unwrap());
        }
        drop(held);
        drop(limiter.acquire(&greedy, || true).await.unwrap());
        count
    }

    #[tokio::test(start_paused = true)]
    async fn one_owner_never_gets_all_permits() {
        assert_eq!(permits_of_one_owner(8, 2).await, 2);
        assert_eq!(permits_of_one_owner(8, 100).await, 7);
        assert_eq!(permits_of_one_owner(1, 1).await, 1);
    }

    /// Returns how long it takes to read `bytes`, `times` in a row.
    async fn time(limiter: &BackfillLimiter, owner: &Owner, times: usize, bytes: usize) -> Duration {
        let began = Instant::now();
        for _ in 0..times {
            limiter.throttle(owner, bytes).await;
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_throttled_per_owner_and_in_total() {
        let limits = QuotaLimits {
            history_bytes_per_second: 3_000,
            history_bytes_per_second_per_owner: 1_000,
            ..QuotaLimits::default()
        };
        let limiter = BackfillLimiter::new(&limits, MemoryBudget::default());
        let [greedy, other] = owners();
        // The bytes of the first second are free.
        assert_eq!(time(&limiter, &greedy, 4, 250).await, Duration::ZERO);
        let (slow, quick) = tokio::join!(time(&limiter, &greedy, 40, 250), time(&limiter, &other, 4, 250));
        assert_eq!((slow, quick), (10 * SECOND, Duration::ZERO));
        // The total rate limits many owners together.
        let many = (0..10).map(|number| {
            let (limiter, owner) = (limiter.clone(), Address::from_account([100 + number; 20]));
            async move { time(&limiter, &owner, 8, 250).await }
        });
        let slowest = futures_util::future::join_all(many).await.into_iter().max().unwrap();
        // 20,000 bytes, of which 3,000 at once.
        assert!(slowest >= Duration::from_millis(5_600) && slowest <= 6 * SECOND, "{slowest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn zero_rate_is_unlimited() {
        let limits = QuotaLimits {
            history_bytes_per_second: 0,
            history_bytes_per_second_per_owner: 0,
            ..QuotaLimits::default()
        };
        let limiter = BackfillLimiter::new(&limits, MemoryBudget::default());
        assert_eq!(time(&limiter, &owners()[0], 1_000, usize::MAX / 2_000).await, Duration::ZERO);
    }

    /// A limiter of two permits, one per owner, with this rate per owner.
    fn limiter_with(history_wait: Duration, bytes_per_second: u64) -> BackfillLimiter {
        let limits = QuotaLimits {
            history_reads: 2,
            history_reads_per_owner: 1,
            history_bytes_per_second_per_owner: bytes_per_second,
            history_wait,
            ..QuotaLimits::default()
        };
        BackfillLimiter::new(&limits, MemoryBudget::default())
    }

    #[tokio::test(start_paused = true)]
    async fn long_wait_is_rejected_and_keeps_no_permit() {
        let limiter = limiter_with(10 * SECOND, 0);
        let [greedy, other] = owners();
        let held = limiter.acquire(&greedy, || false).await.unwrap();
        let began = Instant::now();
        let exceeded = limiter.acquire(&greedy, || false).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 10);
        let subject = Subject::Owner(greedy.clone());
        let expected = Exceeded {
            quota: Quota::HistoryReadsPerOwner,
            subject,
            limit: 1,
            retry_after: Some(RETRY_AFTER),
        };
        assert_eq!(exceeded, expected);
        let others = limiter.acquire(&other, || false).await.unwrap();
        let third = Address::from_account([3; 20]);
        let exceeded = limiter.acquire(&third, || false).await.unwrap_err();
        assert_eq!(
            (exceeded.quota, exceeded.subject, exceeded.limit),
            (Quota::HistoryReads, Subject::Gateway, 2)
        );
        drop((held, others));
        for owner in [&greedy, &other, &third] {
            limiter.acquire(owner, || false).await.unwrap();
        }
    }

    #[tokio::test]
    async fn limiter_is_exhausted_while_running_streams_wait_for_memory() {
        let metrics = Metrics::register(&NoopRecorder);
        let memory = MemoryBudget::new(Some(READ_RESERVED_BYTES), &metrics);
        let limiter = BackfillLimiter::new(&QuotaLimits::default(), memory);
        let [greedy, other] = owners();
        assert!(!limiter.is_exhausted(&other));
        let held = limiter.acquire(&greedy, || true).await.unwrap();
        assert!(limiter.is_exhausted(&other));
        drop(held);
        assert!(!limiter.is_exhausted(&other));
    }

    #[tokio::test(start_paused = true)]
    async fn gateway_rate_is_checked_after_owner_wait() {
        let limits = limiter_with(10 * SECOND, 0).0.limits.clone();
        let limits = QuotaLimits { history_bytes_per_second: 1_000, ..limits };
        let limiter = BackfillLimiter::new(&limits, MemoryBudget::default());
        let [greedy, other] = owners();
        let held = limiter.acquire(&greedy, || false).await.unwrap();
        tokio::time::timeout(Duration::ZERO, limiter.throttle(&other, 12_000)).await.unwrap_err();
        let release = async {
            tokio::time::sleep(9 * SECOND).await;
            drop(held);
        };
        let (permit, ()) = tokio::join!(limiter.acquire(&greedy, || false), release);
        permit.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn started_stream_keeps_its_place_in_queue() {
        let limiter = limiter_with(SECOND, 0);
        let [greedy, _] = owners();
        let held = limiter.acquire(&greedy, || false).await.unwrap();
        let (first, second) = (limiter.acquire(&greedy, || true), limiter.acquire(&greedy, || true));
        tokio::pin!(first, second);
        // Both are past the deadline, the first before the second.
        tokio::time::timeout(5 * SECOND, &mut first).await.unwrap_err();
        tokio::time::timeout(5 * SECOND, &mut second).await.unwrap_err();
        drop(held);
        tokio::time::timeout(5 * SECOND, &mut second).await.unwrap_err();
        drop(first.await.unwrap());
        second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn rate_rejection_has_exact_retry_after() {
        let limiter = limiter_with(10 * SECOND, 1_000);
        let [greedy, other] = owners();
        let debt = tokio::time::timeout(Duration::ZERO, limiter.throttle(&greedy, 16_001));
        debt.await.unwrap_err();
        let exceeded = limiter.acquire(&greedy, || false).await.unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::HistoryRatePerOwner, 1_000));
        let retry_after = exceeded.retry_after.unwrap();
        // 1,000 bytes were available. 15,001 and the next byte accrue at 1,000 a second.
        assert_eq!(retry_after.as_millis(), 5_002);
        limiter.acquire(&other, || false).await.unwrap();
        limiter.acquire(&greedy, || true).await.unwrap();
        tokio::time::sleep(retry_after).await;
        let held = limiter.acquire(&greedy, || false).await.unwrap();
        tokio::time::sleep(10 * SECOND).await;
        // The holder of the permit is throttled.
        let reads = async {
            loop {
                limiter.throttle(&greedy, 3_000).await;
            }
        };
        let exceeded = tokio::select! {
            waited = limiter.acquire(&greedy, || false) => waited.unwrap_err(),
            () = reads => unreachable!(),
        };
        assert_eq!((exceeded.quota, exceeded.retry_after), (Quota::HistoryRatePerOwner, Some(RETRY_AFTER)));
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn zero_wait_rejects_at_once() {
        let limiter = limiter_with(Duration::ZERO, 1_000);
        let [greedy, _] = owners();
        let began = Instant::now();
        let held = limiter.acquire(&greedy, || false).await.unwrap();
        limiter.throttle(&greedy, 1_000).await;
        limiter.acquire(&greedy, || false).await.unwrap_err();
        drop(held);
        let exceeded = limiter.acquire(&greedy, || false).await.unwrap_err();
        assert_eq!(exceeded.quota, Quota::HistoryRatePerOwner);
        assert_eq!(began.elapsed(), Duration::ZERO);
        tokio::time::sleep(exceeded.retry_after.unwrap()).await;
        limiter.acquire(&greedy, || false).await.unwrap();
    }
}
