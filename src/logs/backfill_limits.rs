//! Permits for history reads, and their pace: so many in all and so fast, and of that only a share for one tenant, so that one who
//! reads slowly, or not at all, or everything, keeps nobody else from reading.
//!
//! Who may not read yet waits; and is refused, having waited for long, unless the stream was let in before: it would be silent for
//! nobody knows how long. Who reads is slowed down, and never refused.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::model::id::Owner;
use crate::model::limits::QuotaLimits;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::rate::{Bucket, Buckets, Rate};

/// Tenants that are remembered before those who hold nothing are forgotten.
const OWNERS_KEPT: usize = 1_024;

/// When to come again who was refused since no read ended; nobody knows when one will. Long enough for trying again not to be a
/// load, and short enough for a person.
const RETRY: Duration = Duration::from_secs(5);

/// The permits. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct BackfillLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: QuotaLimits,
    all: Arc<Semaphore>,
    per_owner: usize,
    owners: DashMap<Owner, Weak<Semaphore>>,
    /// Log bytes; `None` = as fast as they can be read.
    pace: Option<Mutex<Bucket>>,
    pace_per_owner: Option<Buckets<Owner>>,
}

/// Allows one history read for as long as it lives.
#[derive(Debug)]
pub struct BackfillPermit {
    _of_owner: Option<OwnedSemaphorePermit>,
    _of_all: Option<OwnedSemaphorePermit>,
}

/// Of whose permits, and at whose pace.
#[derive(Clone, Copy)]
enum LimitScope<'a> {
    Owner(&'a Owner),
    All,
}

// === impl BackfillLimiter ===

impl BackfillLimiter {
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
            limits: limits.clone(),
        }))
    }

    /// Waits for a permit for `owner`; first come, first served. Nothing is lost if it is cancelled.
    ///
    /// # Errors
    /// There is none within [`QuotaLimits::history_wait`], or what is read is so far behind its pace; and whoever asks for it is
    /// not let in, which is asked when it comes to that. Who is let in waits on, at the same place.
    pub async fn acquire(
        &self,
        owner: &Owner,
        is_let_in: impl Fn() -> bool,
    ) -> Result<BackfillPermit, Exceeded> {
        let until = Instant::now() + self.0.limits.history_wait;
        // The tenant's own first: who waits for it holds nothing of the others'.
        let of_owner = self.one(LimitScope::Owner(owner), until, &is_let_in).await?;
        let of_all = self.one(LimitScope::All, until, &is_let_in).await?;
        Ok(BackfillPermit { _of_owner: of_owner, _of_all: of_all })
    }

    /// Whether whoever asks for another one for `owner` has to wait.
    pub fn are_used_up(&self, owner: &Owner) -> bool {
        let none_left = |permits: &Semaphore| permits.available_permits() == 0;
        none_left(&self.0.all)
            || self.0.owners.get(owner).and_then(|own| own.upgrade()).is_some_and(|own| none_left(&own))
    }

    /// Waits until `owner` may make use of so many bytes that were read. They count even if it is cancelled.
    pub async fn throttle(&self, owner: &Owner, bytes: usize) {
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

    async fn one(
        &self,
        whose: LimitScope<'_>,
        until: Instant,
        is_let_in: &impl Fn() -> bool,
    ) -> Result<Option<OwnedSemaphorePermit>, Exceeded> {
        let too_late = self.behind(whose).saturating_sub(self.0.limits.history_wait);
        if !too_late.is_zero() && !is_let_in() {
            return Err(self.too_fast(whose, too_late));
        }
        let permit = self.permits(whose).acquire_owned();
        tokio::pin!(permit);
        let permit = match tokio::time::timeout_at(until, &mut permit).await {
            Ok(permit) => permit,
            Err(_) if is_let_in() => permit.await,
            // It may be the pace that the others are held up by.
            Err(_) if !self.behind(whose).is_zero() => return Err(self.too_fast(whose, RETRY)),
            Err(_) => return Err(self.too_many(whose)),
        };
        // Never closed; and if it were, reading on without a permit would be the lesser evil.
        Ok(permit.ok())
    }

    /// How much later than it is read a byte may be made use of, at present.
    fn behind(&self, whose: LimitScope<'_>) -> Duration {
        let now = Instant::now().into_std();
        let behind = match whose {
            LimitScope::Owner(owner) => {
                self.0.pace_per_owner.as_ref().map(|paces| paces.wait_for(owner, 1, now))
            }
            LimitScope::All => {
                let pace = self.0.pace.as_ref();
                pace.map(|pace| pace.lock().unwrap_or_else(PoisonError::into_inner).wait_for(1, now))
            }
        };
        behind.unwrap_or_default()
    }

    fn permits(&self, whose: LimitScope<'_>) -> Arc<Semaphore> {
        match whose {
            LimitScope::Owner(owner) => self.of_owner(owner),
            LimitScope::All => Arc::clone(&self.0.all),
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

    fn too_many(&self, whose: LimitScope<'_>) -> Exceeded {
        let (quota, limit) = match whose {
            LimitScope::Owner(_) => (Quota::HistoryReadsPerOwner, self.0.per_owner),
            LimitScope::All => (Quota::HistoryReads, self.0.limits.history_reads),
        };
        Exceeded { quota, subject: whose.subject(), limit: limit as u64, retry_after: Some(RETRY) }
    }

    fn too_fast(&self, whose: LimitScope<'_>, retry_after: Duration) -> Exceeded {
        let limits = &self.0.limits;
        let (quota, limit) = match whose {
            LimitScope::Owner(_) => (Quota::HistoryRatePerOwner, limits.history_bytes_per_second_per_owner),
            LimitScope::All => (Quota::HistoryRate, limits.history_bytes_per_second),
        };
        Exceeded { quota, subject: whose.subject(), limit, retry_after: Some(retry_after) }
    }
}

// === impl Whose ===

impl LimitScope<'_> {
    fn subject(self) -> Subject {
        match self {
            Self::Owner(owner) => Subject::Owner(owner.clone()),
            Self::All => Subject::Gateway,
        }
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
        let permits = BackfillLimiter::new(&limits);
        let [greedy, other] = owners();
        let mut held = Vec::new();
        let more = async {
            loop {
                held.push(permits.acquire(&greedy, || true).await.unwrap());
            }
        };
        tokio::time::timeout(SECOND, more).await.unwrap_err();
        let share = held.len();
        assert!(permits.are_used_up(&greedy));
        assert_eq!(permits.are_used_up(&other), share == history_reads);
        if share < history_reads {
            drop(permits.acquire(&other, || true).await.unwrap());
        }
        drop(held);
        drop(permits.acquire(&greedy, || true).await.unwrap());
        share
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenant_never_has_all_of_them() {
        assert_eq!(share(8, 2).await, 2);
        assert_eq!(share(8, 100).await, 7);
        assert_eq!(share(1, 1).await, 1);
    }

    /// How long it takes to read so many times so much.
    async fn time(permits: &BackfillLimiter, owner: &Owner, times: usize, bytes: usize) -> Duration {
        let began = Instant::now();
        for _ in 0..times {
            permits.throttle(owner, bytes).await;
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
        let permits = BackfillLimiter::new(&limits);
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
        let permits = BackfillLimiter::new(&limits);
        assert_eq!(time(&permits, &owners()[0], 1_000, usize::MAX / 2_000).await, Duration::ZERO);
    }

    /// Permits that are waited for so long, and reads at this pace of an owner.
    fn waiting(history_wait: Duration, bytes_per_second: u64) -> BackfillLimiter {
        BackfillLimiter::new(&QuotaLimits {
            history_reads: 2,
            history_reads_per_owner: 1,
            history_bytes_per_second_per_owner: bytes_per_second,
            history_wait,
            ..QuotaLimits::default()
        })
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_for_long_is_refused_and_keeps_nothing() {
        let permits = waiting(10 * SECOND, 0);
        let [greedy, other] = owners();
        let held = permits.acquire(&greedy, || false).await.unwrap();
        let began = Instant::now();
        let exceeded = permits.acquire(&greedy, || false).await.unwrap_err();
        assert_eq!(began.elapsed().as_secs(), 10);
        let subject = Subject::Owner(greedy.clone());
        let expected =
            Exceeded { quota: Quota::HistoryReadsPerOwner, subject, limit: 1, retry_after: Some(RETRY) };
        assert_eq!(exceeded, expected);
        let others = permits.acquire(&other, || false).await.unwrap();
        let third = Address::from_account([3; 20]);
        let exceeded = permits.acquire(&third, || false).await.unwrap_err();
        assert_eq!(
            (exceeded.quota, exceeded.subject, exceeded.limit),
            (Quota::HistoryReads, Subject::Gateway, 2)
        );
        drop((held, others));
        for owner in [&greedy, &other, &third] {
            permits.acquire(owner, || false).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_for_their_own_is_not_refused_when_their_turn_has_come() {
        let limits = waiting(10 * SECOND, 0).0.limits.clone();
        let permits = BackfillLimiter::new(&QuotaLimits { history_bytes_per_second: 1_000, ..limits });
        let [greedy, other] = owners();
        let held = permits.acquire(&greedy, || false).await.unwrap();
        tokio::time::timeout(Duration::ZERO, permits.throttle(&other, 12_000)).await.unwrap_err();
        let release = async {
            tokio::time::sleep(9 * SECOND).await;
            drop(held);
        };
        let (permit, ()) = tokio::join!(permits.acquire(&greedy, || false), release);
        permit.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_let_in_waits_on_at_their_place() {
        let permits = waiting(SECOND, 0);
        let [greedy, _] = owners();
        let held = permits.acquire(&greedy, || false).await.unwrap();
        let (first, second) = (permits.acquire(&greedy, || true), permits.acquire(&greedy, || true));
        tokio::pin!(first, second);
        // Each is past its time, the first before the second.
        tokio::time::timeout(5 * SECOND, &mut first).await.unwrap_err();
        tokio::time::timeout(5 * SECOND, &mut second).await.unwrap_err();
        drop(held);
        tokio::time::timeout(5 * SECOND, &mut second).await.unwrap_err();
        drop(first.await.unwrap());
        second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_cannot_read_at_the_pace_in_time_is_refused_and_told_when_they_can() {
        let permits = waiting(10 * SECOND, 1_000);
        let [greedy, other] = owners();
        let credit = tokio::time::timeout(Duration::ZERO, permits.throttle(&greedy, 16_001));
        credit.await.unwrap_err();
        let exceeded = permits.acquire(&greedy, || false).await.unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::HistoryRatePerOwner, 1_000));
        let retry_after = exceeded.retry_after.unwrap();
        // 1,000 were there, 15,001 come in at 1,000 a second, and so does the one to be read.
        assert_eq!(retry_after.as_millis(), 5_002);
        permits.acquire(&other, || false).await.unwrap();
        permits.acquire(&greedy, || true).await.unwrap();
        tokio::time::sleep(retry_after).await;
        let held = permits.acquire(&greedy, || false).await.unwrap();
        tokio::time::sleep(10 * SECOND).await;
        // The one that is waited for is held up by the pace.
        let reads = async {
            loop {
                permits.throttle(&greedy, 3_000).await;
            }
        };
        let exceeded = tokio::select! {
            waited = permits.acquire(&greedy, || false) => waited.unwrap_err(),
            () = reads => unreachable!(),
        };
        assert_eq!((exceeded.quota, exceeded.retry_after), (Quota::HistoryRatePerOwner, Some(RETRY)));
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_wait_whoever_would_have_to_is_refused_at_once() {
        let permits = waiting(Duration::ZERO, 1_000);
        let [greedy, _] = owners();
        let began = Instant::now();
        let held = permits.acquire(&greedy, || false).await.unwrap();
        permits.throttle(&greedy, 1_000).await;
        permits.acquire(&greedy, || false).await.unwrap_err();
        drop(held);
        let exceeded = permits.acquire(&greedy, || false).await.unwrap_err();
        assert_eq!(exceeded.quota, Quota::HistoryRatePerOwner);
        assert_eq!(began.elapsed(), Duration::ZERO);
        tokio::time::sleep(exceeded.retry_after.unwrap()).await;
        permits.acquire(&greedy, || false).await.unwrap();
    }
}
