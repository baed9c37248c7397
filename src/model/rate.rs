//! How fast: token buckets, for one and for each of many.
//!
//! The time is passed in, so the same buckets serve a paused clock. A bucket is one instant: when it will be full again. What
//! is taken moves that instant into the future; what may be taken at once is how far.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait that is told. A bucket that is further in debt says so, and says more when it is asked again.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// So much in so long, and so much at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    amount: u64,
    per: Duration,
    burst: u64,
}

/// Tokens for one. Full when it is made.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    rate: Rate,
    /// `None` = full.
    full_at: Option<Instant>,
}

/// A bucket for each of many, of whom only the most recent are remembered: between `kept` and twice as many. Whoever is
/// forgotten begins with a full bucket, so `kept` should be more than can be in debt at a time.
#[derive(Debug)]
pub struct Buckets<K> {
    rate: Rate,
    kept: usize,
    known: Mutex<Known<K>>,
}

/// Two generations: who is asked for moves to the young one, and when that is full it becomes the old one, whose members are
/// forgotten. So nobody is searched for, and nothing grows.
#[derive(Debug)]
struct Known<K> {
    young: HashMap<K, Bucket>,
    old: HashMap<K, Bucket>,
}

// === impl Rate ===

impl Rate {
    /// `amount` in each `per`, at an even pace; all of `amount` at once after a rest. Zero counts as one, and no time as a
    /// nanosecond.
    pub const fn new(amount: u64, per: Duration) -> Self {
        let amount = if amount == 0 { 1 } else { amount };
        let per = if per.is_zero() { Duration::from_nanos(1) } else { per };
        Self { amount, per, burst: amount }
    }

    /// The same, with `burst` at once after a rest; at least one.
    #[must_use]
    pub const fn with_burst(self, burst: u64) -> Self {
        Self { burst: if burst == 0 { 1 } else { burst }, ..self }
    }

    /// The time in which `amount` comes in, rounded up.
    fn time_for(&self, amount: u64) -> Duration {
        let nanos = self.per.as_nanos().saturating_mul(u128::from(amount)).div_ceil(u128::from(self.amount));
        // Six hundred years and more are all the same.
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

// === impl Bucket ===

impl Bucket {
    /// A full bucket.
    pub const fn new(rate: Rate) -> Self {
        Self { rate, full_at: None }
    }

    /// Takes `amount` if it is there. More than the burst is never there: it counts as the whole burst.
    ///
    /// # Errors
    /// How long until it is, if nobody else takes any, and at most a day; nothing was taken then.
    pub fn try_take(&mut self, amount: u64, now: Instant) -> Result<(), Duration> {
        let wait = self.wait_for(amount, now);
        if wait > Duration::ZERO {
            return Err(wait);
        }
        self.take(amount.min(self.rate.burst), now);
        Ok(())
    }

    /// Takes `amount` now, on credit if it must. Answers how long the caller should wait before making use of it, at most a
    /// day; whoever waits keeps the pace, in the order of asking.
    pub fn take(&mut self, amount: u64, now: Instant) -> Duration {
        let full_in = self.full_in(now).saturating_add(self.rate.time_for(amount));
        self.full_at = now.checked_add(full_in).or(self.full_at);
        full_in.saturating_sub(self.rate.time_for(self.rate.burst)).min(WAIT_MAX)
    }

    /// How long until `amount` is there, if nobody takes any, and at most a day; zero if it is. More than the burst counts as
    /// the whole burst.
    pub fn wait_for(&self, amount: u64, now: Instant) -> Duration {
        let full_in = self.full_in(now).saturating_add(self.rate.time_for(amount.min(self.rate.burst)));
        full_in.saturating_sub(self.rate.time_for(self.rate.burst)).min(WAIT_MAX)
    }

    /// How long until it is full, if nobody takes any; zero if it is.
    pub fn full_in(&self, now: Instant) -> Duration {
        self.full_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }
}

// === impl Buckets ===

impl<K: Clone + Eq + Hash> Buckets<K> {
    /// A bucket of this rate for everybody; the last `kept` of those who took from theirs are remembered, and up to as many
    /// more.
    pub fn new(rate: Rate, kept: usize) -> Self {
        let known = Known { young: HashMap::new(), old: HashMap::new() };
        Self { rate, kept: kept.max(1), known: Mutex::new(known) }
    }

    /// [`Bucket::try_take`] from the bucket of `key`.
    ///
    /// # Errors
    /// How long until there is enough.
    pub fn try_take(&self, key: &K, amount: u64, now: Instant) -> Result<(), Duration> {
        self.with(key, now, |bucket| bucket.try_take(amount, now))
    }

    /// [`Bucket::take`] from the bucket of `key`.
    pub fn take(&self, key: &K, amount: u64, now: Instant) -> Duration {
        self.with(key, now, |bucket| bucket.take(amount, now))
    }

    /// [`Bucket::wait_for`] the bucket of `key`.
    pub fn wait_for(&self, key: &K, amount: u64, now: Instant) -> Duration {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = known.young.get(key).or_else(|| known.old.get(key));
        bucket.map_or(Duration::ZERO, |bucket| bucket.wait_for(amount, now))
    }

    /// How many are remembered: at most twice `kept`.
    pub fn known(&self) -> usize {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.young.len() + known.old.len()
    }

    fn with<R>(&self, key: &K, now: Instant, act: impl FnOnce(&mut Bucket) -> R) -> R {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
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
    fn a_burst_is_there_at_once_and_then_one_after_the_other() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate::new(10, SECOND).with_burst(3));
        for _ in 0..3 {
            assert_eq!(bucket.try_take(1, start), Ok(()));
        }
        let wait = bucket.try_take(1, start).unwrap_err();
        assert_eq!(wait, SECOND / 10);
        // What is told is true, to the nanosecond, and asking costs nothing.
        let just_before = start + wait.saturating_sub(Duration::from_nanos(1));
        assert!(bucket.try_take(1, just_before).is_err());
        assert_eq!(bucket.try_take(1, start + wait), Ok(()));
        assert_eq!(bucket.try_take(2, start + wait), Err(SECOND / 5));
        assert_eq!(bucket.full_in(start + wait), SECOND * 3 / 10);
        assert_eq!(bucket.try_take(3, start + wait + SECOND), Ok(()));
    }

    #[test]
    fn more_than_the_burst_counts_as_the_burst() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate::new(5, SECOND));
        assert_eq!(bucket.try_take(u64::MAX, start), Ok(()));
        assert_eq!(bucket.try_take(u64::MAX, start), Err(SECOND));
        assert_eq!(bucket.try_take(6, start + SECOND), Ok(()));
    }

    #[test]
    fn credit_is_given_and_paid_in_the_order_of_asking() {
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
    fn senseless_rates_do_no_harm() {
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
    fn each_has_their_own_and_only_the_recent_are_remembered() {
        let start = Instant::now();
        let buckets = Buckets::new(Rate::new(1, SECOND), 10);
        assert_eq!(buckets.try_take(&0, 1, start), Ok(()));
        assert_eq!(buckets.try_take(&0, 1, start), Err(SECOND));
        assert_eq!(buckets.wait_for(&0, 1, start), SECOND);
        for other in 1..=10_000 {
            assert_eq!(buckets.try_take(&other, 1, start), Ok(()), "{other}");
            // Who comes again and again is not forgotten.
            assert_eq!(buckets.try_take(&0, 1, start), Err(SECOND), "{other}");
            assert!(buckets.known() <= 20, "{other}");
        }
        assert_eq!(buckets.try_take(&1, 1, start), Ok(()), "forgotten");
        assert_eq!(buckets.wait_for(&77_777, 1, start), Duration::ZERO);
    }

    #[test]
    fn who_takes_nothing_is_not_remembered() {
        let start = Instant::now();
        let buckets = Buckets::new(Rate::new(1, SECOND), 10);
        for key in 0..100 {
            assert_eq!(buckets.take(&key, 0, start), Duration::ZERO);
        }
        assert_eq!(buckets.known(), 0);
    }

    proptest! {
        /// Whatever is asked for, whenever: within any stretch of time no more is given than the burst and what came in.
        #[test]
        fn never_more_than_the_rate(
            amount in 1_u64..50,
            burst in 1_u64..50,
            asks in prop::collection::vec((0_u64..3_000, 1_u64..20), 1..100),
        ) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(Rate::new(amount, SECOND).with_burst(burst));
            let mut given: Vec<(Instant, u64)> = Vec::new();
            for (pause, ask) in asks {
                now += Duration::from_millis(pause);
                let ask = ask.min(burst);
                match bucket.try_take(ask, now) {
                    Ok(()) => given.push((now, ask)),
                    Err(wait) => {
                        prop_assert!(wait > Duration::ZERO);
                        now += wait;
                        prop_assert_eq!(bucket.try_take(ask, now), Ok(()));
                        given.push((now, ask));
                    }
                }
                let mut sum = 0;
                for (at, taken) in given.iter().rev() {
                    sum += taken;
                    let time = now.duration_since(*at).as_nanos();
                    let came_in = time * u128::from(amount) / SECOND.as_nanos() + 1;
                    prop_assert!(u128::from(sum) <= u128::from(burst) + came_in);
                }
            }
        }
    }
}
