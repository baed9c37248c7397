//! What each owner may use, and all of them together.
//!
//! Asked once it is known who calls, and before the call costs anything. Owners who hold nothing and have not called lately are
//! not remembered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::concurrency::{ConcurrencyLimiter, ConcurrencyPermit};
use crate::model::id::{LeaseId, Owner};
use crate::model::limits::QuotaLimits;
use crate::model::quota::{Exceeded, Quota, Subject};
use crate::model::rate::{Buckets, Rate};

/// Who has too many streams may open another when one has ended; nobody knows when. Long enough for trying again not to be a
/// load, and short enough for a person.
const STREAMS_RETRY: Duration = Duration::from_secs(5);

/// Owners and leases of whom calls and restarts are remembered: more than one gateway has at a time.
const KEPT: usize = 16_384;

/// The quotas of one gateway. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Quotas(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: QuotaLimits,
    all_streams: ConcurrencyLimiter<()>,
    streams: ConcurrencyLimiter<Owner>,
    all_requests: Option<Buckets<()>>,
    requests: Option<Buckets<Owner>>,
    all_restarts: Option<Buckets<()>>,
    restarts_of_owners: Option<Buckets<Owner>>,
    restarts: Option<Buckets<LeaseId>>,
}

/// Counts a call as one of its owner's streams for as long as it lives.
#[derive(Debug)]
pub struct StreamPermit {
    _of_owner: ConcurrencyPermit<Owner>,
    _of_all: ConcurrencyPermit<()>,
}

// === impl Quotas ===

impl Quotas {
    /// All of them unused.
    pub fn new(limits: &QuotaLimits) -> Self {
        // Every stream may come back at once.
        let a_second = |calls: u32, streams: usize| {
            Rate::new(u64::from(calls), Duration::from_secs(1))
                .with_burst(u64::from(calls).max(streams as u64))
        };
        let an_hour = |restarts: u32| Rate::new(u64::from(restarts), Duration::from_secs(3_600));
        Self(Arc::new(Shared {
            all_requests: buckets(limits.requests_per_second_in_all, |calls| a_second(calls, limits.streams)),
            requests: buckets(limits.requests_per_second, |calls| a_second(calls, limits.streams_per_owner)),
            all_restarts: buckets(limits.restarts_per_hour_in_all, an_hour),
            restarts_of_owners: buckets(limits.restarts_per_hour_of_owner, an_hour),
            restarts: buckets(limits.restarts_per_hour, an_hour),
            limits: limits.clone(),
            all_streams: ConcurrencyLimiter::default(),
            streams: ConcurrencyLimiter::default(),
        }))
    }

    /// A call of `owner`, which may become a stream.
    ///
    /// # Errors
    /// They call too often, or have too many streams open, or all do.
    pub fn call(&self, owner: &Owner, now: Instant) -> Result<StreamPermit, Exceeded> {
        let limits = &self.0.limits;
        if let Some(requests) = &self.0.requests {
            requests.try_take(owner, 1, now).map_err(|wait| Exceeded {
                quota: Quota::RequestsPerOwner,
                subject: Subject::Owner(owner.clone()),
                limit: u64::from(limits.requests_per_second),
                retry_after: Some(wait),
            })?;
        }
        if let Some(requests) = &self.0.all_requests {
            requests.try_take(&(), 1, now).map_err(|wait| Exceeded {
                quota: Quota::Requests,
                subject: Subject::Gateway,
                limit: u64::from(limits.requests_per_second_in_all),
                retry_after: Some(wait),
            })?;
        }
        // The owner's own first: what is theirs alone is no news to the others.
        let of_owner = self.0.streams.hold(owner, limits.streams_per_owner).ok_or_else(|| Exceeded {
            quota: Quota::StreamsPerOwner,
            subject: Subject::Owner(owner.clone()),
            limit: limits.streams_per_owner as u64,
            retry_after: Some(STREAMS_RETRY),
        })?;
        let of_all = self.0.all_streams.hold(&(), limits.streams).ok_or(Exceeded {
            quota: Quota::Streams,
            subject: Subject::Gateway,
            limit: limits.streams as u64,
            retry_after: Some(STREAMS_RETRY),
        })?;
        Ok(StreamPermit { _of_owner: of_owner, _of_all: of_all })
    }

    /// A restart of something of `lease`, to be asked for before anything is done; a call that is an
    /// earlier one made again takes nothing.
    ///
    /// # Errors
    /// The lease was restarted too often within an hour, or its owner's leases together, or all. What was taken of a narrower
    /// quota before a wider one refused is gone: who asks again at once does not get further by it.
    pub fn restart(&self, lease: &LeaseId, now: Instant) -> Result<(), Exceeded> {
        let Shared { limits, .. } = &*self.0;
        let exceeded = |quota, subject, limit: u32| {
            move |wait| Exceeded { quota, subject, limit: u64::from(limit), retry_after: Some(wait) }
        };
        if let Some(restarts) = &self.0.restarts {
            let subject = Subject::Lease(lease.clone());
            restarts.try_take(lease, 1, now).map_err(exceeded(
                Quota::RestartsPerLease,
                subject,
                limits.restarts_per_hour,
            ))?;
        }
        if let Some(restarts) = &self.0.restarts_of_owners {
            let subject = Subject::Owner(lease.owner().clone());
            restarts.try_take(lease.owner(), 1, now).map_err(exceeded(
                Quota::RestartsPerOwner,
                subject,
                limits.restarts_per_hour_of_owner,
            ))?;
        }
        if let Some(restarts) = &self.0.all_restarts {
            restarts.try_take(&(), 1, now).map_err(exceeded(
                Quota::Restarts,
                Subject::Gateway,
                limits.restarts_per_hour_in_all,
            ))?;
        }
        Ok(())
    }
}

/// Buckets of so much per time; none for 0, which is for no limit.
fn buckets<K: Clone + Eq + std::hash::Hash>(most: u32, rate: impl FnOnce(u32) -> Rate) -> Option<Buckets<K>> {
    (most > 0).then(|| Buckets::new(rate(most), KEPT))
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

    fn owner(number: u8) -> Owner {
        Address::from_account([number; 20])
    }

    #[test]
    fn streams_are_counted_for_each_and_for_all() {
        let quotas = Quotas::new(&LIMITS());
        let now = Instant::now();
        let [greedy, other, third] = [1, 2, 3].map(owner);
        let mut held = vec![quotas.call(&greedy, now).unwrap(), quotas.call(&greedy, now).unwrap()];
        let exceeded = quotas.call(&greedy, now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::StreamsPerOwner, 2));
        assert_eq!(exceeded.subject, Subject::Owner(greedy.clone()));
        let others = quotas.call(&other, now).unwrap();
        // One who finds no room keeps none.
        for _ in 0..5 {
            assert_eq!(quotas.call(&third, now).unwrap_err().quota, Quota::Streams);
        }
        held.pop();
        let thirds = quotas.call(&third, now).unwrap();
        drop((others, thirds, held));
        assert_eq!((quotas.0.streams.holders(), quotas.0.all_streams.holders()), (0, 0));
    }

    #[test]
    fn calls_are_paced_for_each_and_the_wait_is_true() {
        let quotas = Quotas::new(&LIMITS());
        let mut now = Instant::now();
        let (greedy, other) = (owner(1), owner(2));
        for _ in 0..10 {
            drop(quotas.call(&greedy, now).unwrap());
        }
        for _ in 0..20 {
            let exceeded = quotas.call(&greedy, now).unwrap_err();
            assert_eq!(exceeded.quota, Quota::RequestsPerOwner);
            drop(quotas.call(&other, now).ok());
            now += exceeded.retry_after.unwrap();
            drop(quotas.call(&greedy, now).unwrap());
        }
    }

    #[test]
    fn all_streams_of_an_owner_may_come_back_at_once() {
        let limits = QuotaLimits { requests_per_second: 1, ..QuotaLimits::default() };
        let quotas = Quotas::new(&limits);
        let now = Instant::now();
        let held: Vec<_> =
            (0..limits.streams_per_owner).map(|_| quotas.call(&owner(1), now).unwrap()).collect();
        assert_eq!(quotas.call(&owner(1), now).unwrap_err().quota, Quota::RequestsPerOwner);
        drop(held);
    }

    #[test]
    fn restarts_are_counted_for_each_lease() {
        let quotas = Quotas::new(&QuotaLimits { restarts_per_hour: 2, ..QuotaLimits::default() });
        let now = Instant::now();
        let [one, other] =
            [7, 8].map(|dseq| LeaseId::new(owner(1).as_str(), dseq, 1, 1, owner(2).as_str()).unwrap());
        assert_eq!((quotas.restart(&one, now), quotas.restart(&one, now)), (Ok(()), Ok(())));
        let exceeded = quotas.restart(&one, now).unwrap_err();
        assert_eq!(
            (exceeded.quota, exceeded.retry_after),
            (Quota::RestartsPerLease, Some(Duration::from_secs(1_800)))
        );
        assert_eq!(quotas.restart(&other, now), Ok(()));
        assert_eq!(quotas.restart(&one, now + Duration::from_secs(1_800)), Ok(()));
        let unlimited = Quotas::new(&QuotaLimits {
            restarts_per_hour: 0,
            restarts_per_hour_of_owner: 0,
            restarts_per_hour_in_all: 0,
            ..QuotaLimits::default()
        });
        assert!((0..10_000).all(|_| unlimited.restart(&one, now).is_ok()));
    }

    #[test]
    fn restarts_are_counted_for_each_owner_and_in_all() {
        let quotas = Quotas::new(&QuotaLimits {
            restarts_per_hour: 2,
            restarts_per_hour_of_owner: 3,
            restarts_per_hour_in_all: 4,
            ..QuotaLimits::default()
        });
        let now = Instant::now();
        let lease =
            |account, dseq| LeaseId::new(owner(account).as_str(), dseq, 1, 1, owner(9).as_str()).unwrap();
        for lease in [lease(1, 7), lease(1, 7), lease(1, 8)] {
            assert_eq!(quotas.restart(&lease, now), Ok(()));
        }
        let exceeded = quotas.restart(&lease(1, 9), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.limit), (Quota::RestartsPerOwner, 3));
        assert_eq!(exceeded.subject, Subject::Owner(owner(1)));
        assert_eq!(exceeded.retry_after, Some(Duration::from_secs(1_200)));
        assert_eq!(quotas.restart(&lease(2, 7), now), Ok(()));
        let exceeded = quotas.restart(&lease(3, 7), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.subject), (Quota::Restarts, Subject::Gateway));
        assert_eq!((exceeded.limit, exceeded.retry_after), (4, Some(Duration::from_secs(900))));
    }

    #[test]
    fn calls_are_paced_in_all_but_all_streams_may_come_back() {
        let quotas = Quotas::new(&QuotaLimits { requests_per_second_in_all: 1, ..LIMITS() });
        let now = Instant::now();
        // As many as there may be streams, whosever they are.
        for account in 1..=3 {
            drop(quotas.call(&owner(account), now).unwrap());
        }
        let exceeded = quotas.call(&owner(4), now).unwrap_err();
        assert_eq!((exceeded.quota, exceeded.subject), (Quota::Requests, Subject::Gateway));
        assert_eq!((exceeded.limit, exceeded.retry_after), (1, Some(Duration::from_secs(1))));
    }
}
