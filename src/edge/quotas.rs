//! Quotas of calls, streams and restarts: per owner, per lease and for the whole gateway.
//!
//! Checked after authentication and before the call costs anything. Owners that hold no stream and have not
//! called recently use no memory.

use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::concurrency::{ConcurrencyLimiter, ConcurrencyPermit};
use crate::model::id::{LeaseId, Owner};
use crate::model::limits::QuotaLimits;
use crate::model::quota::{Exceeded, Quota, QuotaDivisor, Subject};
use crate::model::rate::{Buckets, Rate};

/// Retry-after hint when too many streams are open. The wait is unknown; five seconds bounds the retry load
/// and is short enough for a person.
const STREAMS_RETRY: Duration = Duration::from_secs(5);

/// Unary calls for logs in progress. Each holds up to 3.5 MiB of lines, and for a moment twice as much:
/// together 224 MiB.
const UNARY_LOGS_MAX: usize = 32;

/// Those of one owner. A call takes milliseconds, unless its caller reads slowly.
const UNARY_LOGS_PER_OWNER_MAX: usize = 8;

/// Retry-after hint when an owner has too many of them in progress.
const UNARY_LOGS_RETRY: Duration = Duration::from_secs(1);

/// Time for which a call waits for those of other owners, so that more callers may come at once than are
/// answered at a time. Clients wait longer.
const UNARY_LOGS_WAIT: Duration = Duration::from_secs(2);

/// Owners and leases whose rates are remembered: more than one gateway serves at a time.
const KEYS_KEPT: usize = 16_384;

/// The quotas of one gateway. Cloning is cheap.
#[derive(Clone, Debug)]
pub(super) struct Quotas(Arc<QuotaTables>);

#[derive(Debug)]
struct QuotaTables {
    limits: QuotaLimits,
    divisor: QuotaDivisor,
    all_streams: ConcurrencyLimiter<()>,
    streams: ConcurrencyLimiter<Owner>,
    all_unary_logs: Arc<Semaphore>,
    unary_logs: ConcurrencyLimiter<Owner>,
    all_requests: RateQuota<()>,
    requests: RateQuota<Owner>,
    all_restarts: RateQuota<()>,
    restarts_of_owners: RateQuota<Owner>,
    restarts: RateQuota<LeaseId>,
}

/// A quota per time, for each key.
#[derive(Debug)]
pub(super) struct RateQuota<K> {
    quota: Quota,
    pub(super) limit: u32,
    /// `None`: no limit.
    pub(super) buckets: Option<Buckets<K>>,
}

/// Counts a call for its owner and for the gateway. Released on drop.
pub(super) type CallPermit = (ConcurrencyPermit<Owner>, ConcurrencyPermit<()>);

/// Counts a unary call for logs for its owner and for the gateway. Released on drop.
pub(super) type UnaryLogsPermit = (ConcurrencyPermit<Owner>, OwnedSemaphorePermit);

// === impl Quotas ===

impl Quotas {
    /// Creates quotas. Each allows an owner its part of `streams_per_owner` by `divisor`.
    pub(super) fn new(limits: &QuotaLimits, divisor: QuotaDivisor) -> Self {
        Self(Arc::new(QuotaTables {
            all_requests: per_second(Quota::Requests, limits.requests_per_second_in_all, limits.streams),
            requests: per_second(
                Quota::RequestsPerOwner,
                limits.requests_per_second,
                limits.streams_per_owner,
            ),
            all_restarts: per_hour(Quota::Restarts, limits.restarts_per_hour_in_all),
            restarts_of_owners: per_hour(Quota::RestartsPerOwner, limits.restarts_per_hour_of_owner),
            restarts: per_hour(Quota::RestartsPerLease, limits.restarts_per_hour),
            limits: limits.clone(),
            divisor,
            all_streams: ConcurrencyLimiter::default(),
            streams: ConcurrencyLimiter::default(),
            all_unary_logs: Arc::new(Semaphore::new(UNARY_LOGS_MAX)),
            unary_logs: ConcurrencyLimiter::default(),
        }))
    }

    /// Admits a call of `owner`: counts it, and holds a stream for it.
    ///
    /// # Errors
    /// The owner, or all owners together, call too often or have too many streams open.
    pub(super) fn admit_call(&self, owner: &Owner, now: Instant) -> Result<CallPermit, Exceeded> {
        let QuotaTables { limits, divisor, requests, all_requests, streams, all_streams, .. } = &*self.0;
        requests.take(owner, now, || Subject::Owner(owner.clone()))?;
        all_requests.take(&(), now, || Subject::Gateway)?;
        // The owner's own quota first: its error reveals nothing about other owners.
        let of_owner = (Quota::StreamsPerOwner, divisor.part_of(limits.streams_per_owner));
        let permit = hold_of_owner(streams, owner, of_owner, STREAMS_RETRY)?;
        let all_max = limits.streams;
        let permit_of_all = all_streams
            .hold(&(), all_max)
            .ok_or_else(|| exceeded(Quota::Streams, Subject::Gateway, all_max, STREAMS_RETRY))?;
        Ok((permit, permit_of_all))
    }

    /// Admits a unary call of `owner` for logs, which collects its response in memory. Waits for calls of
    /// other owners: first come, first served. The permit is released when the response is sent. Cancel safe.
    ///
    /// # Errors
    /// The owner has too many of them in progress or waiting, or all owners together still have too many
    /// after the wait.
    pub(super) async fn admit_unary_logs(&self, owner: &Owner) -> Result<UnaryLogsPermit, Exceeded> {
        let QuotaTables { unary_logs, all_unary_logs, .. } = &*self.0;
        let of_owner = (Quota::UnaryLogsPerOwner, UNARY_LOGS_PER_OWNER_MAX);
        let permit = hold_of_owner(unary_logs, owner, of_owner, UNARY_LOGS_RETRY)?;
        match tokio::time::timeout(UNARY_LOGS_WAIT, Arc::clone(all_unary_logs).acquire_owned()).await {
            Ok(Ok(permit_of_all)) => Ok((permit, permit_of_all)),
            _ => Err(exceeded(Quota::UnaryLogs, Subject::Gateway, UNARY_LOGS_MAX, UNARY_LOGS_RETRY)),
        }
    }

    /// Admits a restart in `lease`, and counts it. Called before anything is done; not for a repeated call.
    ///
    /// # Errors
    /// The lease, its owner's leases or all leases were restarted too often within an hour. A narrower quota
    /// stays taken when a wider one rejects, so a caller gains nothing by retrying at once.
    pub(super) fn admit_restart(&self, lease: &LeaseId, now: Instant) -> Result<(), Exceeded> {
        let QuotaTables { restarts, restarts_of_owners, all_restarts, .. } = &*self.0;
        restarts.take(lease, now, || Subject::Lease(lease.clone()))?;
        restarts_of_owners.take(lease.owner(), now, || Subject::Owner(lease.owner().clone()))?;
        all_restarts.take(&(), now, || Subject::Gateway)
    }
}

/// Takes a permit of `owner`.
fn hold_of_owner(
    limiter: &ConcurrencyLimiter<Owner>,
    owner: &Owner,
    (quota, max): (Quota, usize),
    retry: Duration,
) -> Result<ConcurrencyPermit<Owner>, Exceeded> {
    limiter.hold(owner, max).ok_or_else(|| exceeded(quota, Subject::Owner(owner.clone()), max, retry))
}

fn exceeded(quota: Quota, subject: Subject, limit: usize, retry: Duration) -> Exceeded {
    Exceeded { quota, subject, limit: limit as u64, retry_after: Some(retry) }
}

/// Creates a quota of calls. The burst lets all streams reconnect at once.
fn per_second<K: Clone + Eq + Hash>(quota: Quota, calls: u32, streams: usize) -> RateQuota<K> {
    let rate = Rate::new(u64::from(calls), Duration::from_secs(1));
    RateQuota::new(quota, calls, rate.with_burst(u64::from(calls).max(streams as u64)), KEYS_KEPT)
}

fn per_hour<K: Clone + Eq + Hash>(quota: Quota, restarts: u32) -> RateQuota<K> {
    let rate = Rate::new(u64::from(restarts), Duration::from_secs(3_600));
    RateQuota::new(quota, restarts, rate, KEYS_KEPT)
}

// === impl RateQuota ===

impl<K: Clone + Eq + Hash> RateQuota<K> {
    /// Creates a quota whose rate is `limit` per some time, and which remembers `kept` keys. A limit of zero
    /// means no limit.
    pub(super) fn new(quota: Quota, limit: u32, rate: Rate, kept: usize) -> Self {
        Self { quota, limit, buckets: (limit > 0).then(|| Buckets::new(rate, kept)) }
    }

    /// Takes one, if the quota allows it.
    pub(super) fn take(
        &self,
        key: &K,
        now: Instant,
        subject: impl FnOnce() -> Subject,
    ) -> Result<(), Exceeded> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        buckets.try_take(key, 1, now).map_err(|wait| self.exceeded(subject(), wait))
    }

    /// Checks whether the quota allows one more, without taking it.
    pub(super) fn check(
        &self,
        key: &K,
        now: Instant,
        subject: impl FnOnce() -> Subject,
    ) -> Result<(), Exceeded> {
        let wait = self.buckets.as_ref().map_or(Duration::ZERO, |buckets| buckets.wait_for(key, 1, now));
        if wait.is_zero() { Ok(()) } else { Err(self.exceeded(subject(), wait)) }
    }

    fn exceeded(&self, subject: Subject, wait: Duration) -> Exceeded {
        Exceeded { quota: self.quota, subject, limit: self.limit.into(), retry_after: Some(wait) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::Address;

    const LIMITS: fn() -> QuotaLimits = || QuotaLimits {
        streams: 3,
        streams_per_owner: 2,
        requests_per_second: 10,
        ..QuotaLimits::default()
    };

    fn new_quotas(limits: &QuotaLimits) -> Quotas {
        Quotas::new(limits, QuotaDivisor::default())
    }

    fn owner(number: u8) -> Owner {
        Address::from_account([number; 20])
    }

    #[test]
    fn streams_are_limited_per_owner_and_in_all() {
        let quotas = new_quotas(&LIMITS());
        let now = Instant::now();
        let [greedy, other, third] = [1, 2, 3].map(owner);
        let mut held =
            vec![quotas.admit_call(&greedy, now).unwrap(), quotas.admit_call(&greedy, now).unwrap()];
        let exceeded = quotas.admit_call(&greedy, now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::StreamsPerOwner, 2));
        assert_eq!(exceeded.subject, Subject::Owner(greedy.clone()));
        let others = quotas.admit_call(&other, now).unwrap();
        // A rejected call holds no permit.
        for _ in 0..5 {
            assert_eq!(quotas.admit_call(&third, now).unwrap_err().quota, Quota::Streams);
        }
        held.pop();
        let thirds = quotas.admit_call(&third, now).unwrap();
        drop((others, thirds, held));
        assert_eq!((quotas.0.streams.holders(), quotas.0.all_streams.holders()), (0, 0));
    }

    #[test]
    fn shared_quota_is_divided_and_ends_no_stream() {
        let divisor = QuotaDivisor::default();
        let limits = QuotaLimits { streams_per_owner: 5, ..QuotaLimits::default() };
        let (quotas, now) = (Quotas::new(&limits, divisor.clone()), Instant::now());
        let admit = || quotas.admit_call(&owner(1), now);
        let mut held: Vec<_> = (0..4).map(|_| admit().unwrap()).collect();
        divisor.set(2);
        // Rounded up.
        assert_eq!(admit().unwrap_err().limit, 3);
        held.truncate(2);
        held.push(admit().unwrap());
        divisor.set(4_096);
        assert_eq!(admit().unwrap_err().limit, 1);
        held.clear();
        let last = admit().unwrap();
        assert_eq!(admit().unwrap_err().limit, 1);
        divisor.set(0);
        drop((last, admit().unwrap()));
    }

    #[test]
    fn calls_are_limited_per_owner_until_retry_after() {
        let quotas = new_quotas(&LIMITS());
        let mut now = Instant::now();
        let (greedy, other) = (owner(1), owner(2));
        for _ in 0..10 {
            drop(quotas.admit_call(&greedy, now).unwrap());
        }
        for _ in 0..20 {
            let exceeded = quotas.admit_call(&greedy, now).unwrap_err();
            assert_eq!(exceeded.quota, Quota::RequestsPerOwner);
            drop(quotas.admit_call(&other, now).ok());
            now += exceeded.retry_after.unwrap();
            drop(quotas.admit_call(&greedy, now).unwrap());
        }
    }

    #[test]
    fn all_streams_of_an_owner_reconnect_at_once() {
        let limits = QuotaLimits { requests_per_second: 1, ..QuotaLimits::default() };
        let quotas = new_quotas(&limits);
        let now = Instant::now();
        let held: Vec<_> =
            (0..limits.streams_per_owner).map(|_| quotas.admit_call(&owner(1), now).unwrap()).collect();
        assert_eq!(quotas.admit_call(&owner(1), now).unwrap_err().quota, Quota::RequestsPerOwner);
        drop(held);
    }

    #[test]
    fn restarts_are_limited_per_lease() {
        let quotas = new_quotas(&QuotaLimits { restarts_per_hour: 2, ..QuotaLimits::default() });
        let now = Instant::now();
        let [one, other] =
            [7, 8].map(|dseq| LeaseId::new(owner(1).as_str(), dseq, 1, 1, owner(2).as_str()).unwrap());
        assert_eq!((quotas.admit_restart(&one, now), quotas.admit_restart(&one, now)), (Ok(()), Ok(())));
        let exceeded = quotas.admit_restart(&one, now).unwrap_err();
        assert_eq!(
            (exceeded.quota, exceeded.retry_after),
            (Quota::RestartsPerLease, Some(Duration::from_secs(1_800)))
        );
        assert_eq!(quotas.admit_restart(&other, now), Ok(()));
        assert_eq!(quotas.admit_restart(&one, now + Duration::from_secs(1_800)), Ok(()));
        let unlimited = new_quotas(&QuotaLimits {
            restarts_per_hour: 0,
            restarts_per_hour_of_owner: 0,
            restarts_per_hour_in_all: 0,
            ..QuotaLimits::default()
        });
        assert!((0..10_000).all(|_| unlimited.admit_restart(&one, now).is_ok()));
    }

    #[test]
    fn restarts_are_limited_per_owner_and_in_all() {
        let quotas = new_quotas(&QuotaLimits {
            restarts_per_hour: 2,
            restarts_per_hour_of_owner: 3,
            restarts_per_hour_in_all: 4,
            ..QuotaLimits::default()
        });
        let now = Instant::now();
        let lease =
            |account, dseq| LeaseId::new(owner(account).as_str(), dseq, 1, 1, owner(9).as_str()).unwrap();
        for lease in [lease(1, 7), lease(1, 7), lease(1, 8)] {
            assert_eq!(quotas.admit_restart(&lease, now), Ok(()));
        }
        let exceeded = quotas.admit_restart(&lease(1, 9), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::RestartsPerOwner, 3));
        assert_eq!(exceeded.subject, Subject::Owner(owner(1)));
        assert_eq!(exceeded.retry_after, Some(Duration::from_secs(1_200)));
        assert_eq!(quotas.admit_restart(&lease(2, 7), now), Ok(()));
        let exceeded = quotas.admit_restart(&lease(3, 7), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.subject), (Quota::Restarts, Subject::Gateway));
        assert_eq!((exceeded.limit, exceeded.retry_after), (4, Some(Duration::from_secs(900))));
    }

    #[test]
    fn calls_are_limited_in_all_after_a_burst_of_streams() {
        let quotas = new_quotas(&QuotaLimits { requests_per_second_in_all: 1, ..LIMITS() });
        let now = Instant::now();
        // The burst: as many calls as streams, of any owners.
        for account in 1..=3 {
            drop(quotas.admit_call(&owner(account), now).unwrap());
        }
        let exceeded = quotas.admit_call(&owner(4), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.subject), (Quota::Requests, Subject::Gateway));
        assert_eq!((exceeded.limit, exceeded.retry_after), (1, Some(Duration::from_secs(1))));
    }
}
