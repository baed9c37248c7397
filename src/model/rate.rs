//! Rate limits: token buckets, for one holder and for each of many.
//!
//! Callers pass the time, so that buckets work with a paused clock. The state of a bucket is the instant at
//! which it will be full again. Taking tokens moves that instant into the future, and the burst bounds how
//! far.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Longest wait that is returned: longer ones are as good as a rejection, and the caller asks again.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// An amount per period, and a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    amount: u64,
    per: Duration,
    burst: u64,
}

/// A token bucket; full when new.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    /// `None` for a full bucket.
    full_at: Option<Instant>,
}

/// A bucket for each key. Keeps only the most recently used ones: at least `kept`, at most twice as many. An
/// evicted key starts again with a full bucket, so `kept` should exceed the number of keys that can be in
/// debt at a time.
#[derive(Debug)]
pub(crate) struct Buckets<K> {
    rate: Rate,
    kept: usize,
    known: Mutex<Known<K>>,
}

/// Two generations. A used key moves to the young one; when that is full, it replaces the old one, whose keys
/// are evicted. This bounds memory without a search for the least recently used key.
#[derive(Debug)]
struct Known<K> {
    young: HashMap<K, Bucket>,
    old: HashMap<K, Bucket>,
}

// === impl Rate ===

impl Rate {
    /// Returns a rate of `amount` per `per`, with a burst of `amount`. Zero counts as one, and no time as a
    /// nanosecond.
    pub(crate) const fn new(amount: u64, per: Duration) -> Self {
        let amount = if amount == 0 { 1 } else { amount };
        let per = if per.is_zero() { Duration::from_nanos(1) } else { per };
        Self { amount, per, burst: amount }
    }

    /// Returns the same rate with another burst, at least one.
    #[must_use]
    pub(crate) const fn with_burst(self, burst: u64) -> Self {
        Self { burst: if burst == 0 { 1 } else { burst }, ..self }
    }

    /// Returns the time to refill `amount`, rounded up.
    fn time_for(&self, amount: u64) -> Duration {
        let nanos = self.per.as_nanos().saturating_mul(u128::from(amount)).div_ceil(u128::from(self.amount));
        // Saturates at about 600 years.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

// === impl Bucket ===

impl Bucket {
    pub(crate) const fn new(rate: Rate) -> Self {
        Self { rate, full_at: None }
    }

    /// Takes `amount` if it is available. More than the burst counts as the whole burst.
    ///
    /// # Errors
    /// The wait until it is available without other takers, at most a day. Nothing was taken.
    pub(crate) fn try_take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        let wait = self.wait_for(amount, now);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.take(amount.min(self.rate.burst), now);
        Ok(())
    }

    /// Takes `amount` now, on credit if necessary. Returns how long the caller must wait before it uses them,
    /// at most a day. Callers that wait keep the rate, in the order of their calls.
    pub(crate) fn take(&mut self, amount: u64, now: Instant) -> Duration {
        let full_in = self.full_in(now).saturating_add(self.rate.time_for(amount));
        self.full_at = now.checked_add(full_in).or(self.full_at);
        full_in.saturating_sub(self.rate.time_for(self.rate.burst)).min(WAIT_MAX)
    }

    /// Returns the wait until `amount` is available without other takers, at most a day. More than the burst
    /// counts as the whole burst.
    pub(crate) fn wait_for(&self, amount: u64, now: Instant) -> Duration {
        let full_in = self.full_in(now).saturating_add(self.rate.time_for(amount.min(self.rate.burst)));
        full_in.saturating_sub(self.rate.time_for(self.rate.burst)).min(WAIT_MAX)
    }

    /// Returns the wait until the bucket is full without other takers.
    pub(crate) fn full_in(&self, now: Instant) -> Duration {
        self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

// === impl Buckets ===

impl<K: Clone + Eq + Hash> Buckets<K> {
    pub(crate) fn new(rate: Rate, kept: usize) -> Self {
        let known = Known { young: HashMap::new(), old: HashMap::new() };
        Self { rate, kept: kept.max(1), known: Mutex::new(known) }
    }

    /// Calls [`Bucket::try_take`] on the bucket of `key`.
    pub(crate) fn try_take(&self, key: &K, amount: u64, now: Instant) -> Result<(), Duration> {
        self.with(key, now, |bucket| bucket.try_take(amount, now))
    }

    /// Calls [`Bucket::take`] on the bucket of `key`.
    pub(crate) fn take(&self, key: &K, amount: u64, now: Instant) -> Duration {
        self.with(key, now, |bucket| bucket.take(amount, now))
    }

    /// Calls [`Bucket::wait_for`] on the bucket of `key`.
    pub(crate) fn wait_for(&self, key: &K, amount: u64, now: Instant) -> Duration {
        let known = self.known.lock();
        let bucket = known.young.get(key).or_else(|| known.old.get(key));
        bucket.map_or(Duration::ZERO, |bucket| bucket.wait_for(amount, now))
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let known = self.known.lock();
        known.young.len() + known.old.len()
    }

    fn with<R>(&self, key: &K, now: Instant, act: impl FnOnce(&mut Bucket) -> R) -> R {
        let mut known = self.known.lock();
        if let Some(bucket) = known.young.get_mut(key) {
            return act(bucket);
        }
        let mut bucket = known.old.remove(key).unwrap_or(Bucket::new(self.rate));
        let answer = act(&mut bucket);
        if bucket.full_in(now).is_zero() {
            return answer;
        }
        if known.young.len() >= self.kept {
            known.old = std::mem::take(&mut known.young);
        }
        known.young.insert(key.clone(), bucket);
        answer
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn bucket_gives_burst_then_keeps_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate::new(10, SECOND).with_burst(3));
        for _ in 0..3 {
            assert_eq!(bucket.try_take(1, start), Ok(()));
        }
        let wait = bucket.try_take(1, start).unwrap_err();
        assert_eq!(wait, SECOND / 10);
        // The returned wait is exact to the nanosecond, and a failed attempt takes nothing.
        let just_before = start + wait.saturating_sub(Duration::from_nanos(1));
        assert!(bucket.try_take(1, just_before).is_err());
        assert_eq!(bucket.try_take(1, start + wait), Ok(()));
        assert_eq!(bucket.try_take(2, start + wait), Err(SECOND / 5));
        assert_eq!(bucket.full_in(start + wait), SECOND * 3 / 10);
        assert_eq!(bucket.try_take(3, start + wait + SECOND), Ok(()));
    }

    #[test]
    fn amount_over_burst_counts_as_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate::new(5, SECOND));
        assert_eq!(bucket.try_take(u64::MAX, start), Ok(()));
        assert_eq!(bucket.try_take(u64::MAX, start), Err(SECOND));
        assert_eq!(bucket.try_take(6, start + SECOND), Ok(()));
    }

    #[test]
    fn credit_is_repaid_in_call_order() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate::new(100, SECOND).with_burst(50));
        assert_eq!(bucket.take(50, start), Duration::ZERO);
        assert_eq!(bucket.take(100, start), SECOND);
        assert_eq!(bucket.take(100, start), 2 * SECOND);
        assert_eq!(bucket.take(100, start + SECOND), 2 * SECOND);
        assert_eq!(bucket.take(u64::MAX, start), WAIT_MAX);
        assert!(bucket.try_take(1, start + WAIT_MAX).is_err());
    }

    #[test]
    fn extreme_rates_do_not_panic() {
        let start = Instant::now();
        for rate in [
            Rate::new(0, Duration::ZERO).with_burst(0),
            Rate::new(u64::MAX, Duration::MAX),
            Rate::new(1, Duration::MAX).with_burst(u64::MAX),
        ] {
            let mut bucket = Bucket::new(rate);
            let _ = bucket.try_take(u64::MAX, start);
            let _ = bucket.take(u64::MAX, start);
            let _ = bucket.try_take(1, start);
        }
    }

    #[test]
    fn keys_have_own_buckets_and_old_ones_are_evicted() {
        let start = Instant::now();
        let buckets = Buckets::new(Rate::new(1, SECOND), 10);
        assert_eq!(buckets.try_take(&0, 1, start), Ok(()));
        assert_eq!(buckets.try_take(&0, 1, start), Err(SECOND));
        assert_eq!(buckets.wait_for(&0, 1, start), SECOND);
        for other in 1..=10_000 {
            assert_eq!(buckets.try_take(&other, 1, start), Ok(()), "{other}");
            // A key in use is not evicted.
            assert_eq!(buckets.try_take(&0, 1, start), Err(SECOND), "{other}");
            assert!(buckets.len() <= 20, "{other}");
        }
        assert_eq!(buckets.try_take(&1, 1, start), Ok(()), "evicted");
        assert_eq!(buckets.wait_for(&77_777, 1, start), Duration::ZERO);
    }

    #[test]
    fn key_that_takes_nothing_is_not_kept() {
        let start = Instant::now();
        let buckets = Buckets::new(Rate::new(1, SECOND), 10);
        for key in 0..100 {
            assert_eq!(buckets.take(&key, 0, start), Duration::ZERO);
        }
        assert_eq!(buckets.len(), 0);
    }

    proptest! {
        /// In any period, a bucket gives at most its burst plus the refill.
        #[test]
        fn bucket_never_exceeds_rate(
            amount in 1_u64..50,
            burst in 1_u64..50,
            requests in prop::collection::vec((0_u64..3_000, 1_u64..20), 1..100),
        ) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(Rate::new(amount, SECOND).with_burst(burst));
            let mut given: Vec<(Instant, u64)> = Vec::new();
            for (pause, request) in requests {
                now += Duration::from_millis(pause);
                let request = request.min(burst);
                match bucket.try_take(request, now) {
                    Ok(()) => given.push((now, request)),
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO);
                        now += wait;
                        prop_assert_eq!(bucket.try_take(request, now), Ok(()));
                        given.push((now, request));
                    }
                }
                let mut sum = 0;
                for (at, taken) in given.iter().rev() {
                    sum += taken;
                    let time = now.duration_since(*at).as_nanos();
                    let refill = time * u128::from(amount) / SECOND.as_nanos() + 1;
                    prop_assert!(u128::from(sum) <= u128::from(burst) + refill);
                }
            }
        }
    }
}
