//! Limits on how much of something each key holds at once.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts the permits that each key holds. Keys without permits use no memory. Cloning is cheap.
#[derive(Debug)]
pub(crate) struct ConcurrencyLimiter<K>(Arc<Mutex<HashMap<K, usize>>>);

/// Permits of a key, until it is dropped.
#[derive(Debug)]
pub(crate) struct ConcurrencyPermit<K: Eq + Hash> {
    counts: ConcurrencyLimiter<K>,
    key: K,
    count: usize,
}

// === impl ConcurrencyLimiter ===

impl<K: Clone + Eq + Hash> ConcurrencyLimiter<K> {
    /// Returns a permit for `key`, unless it holds `max` already.
    pub(crate) fn hold(&self, key: &K, max: usize) -> Option<ConcurrencyPermit<K>> {
        self.hold_many(key, 1, max)
    }

    /// Returns `count` permits for `key`, unless it would then hold more than `max`.
    pub(crate) fn hold_many(&self, key: &K, count: usize, max: usize) -> Option<ConcurrencyPermit<K>> {
        let mut counts = self.0.lock();
        let held = counts.get(key).copied().unwrap_or_default() + count;
        if held > max {
            return None;
        }
        counts.insert(key.clone(), held);
        Some(ConcurrencyPermit { counts: self.clone(), key: key.clone(), count })
    }

    #[cfg(test)]
    pub(crate) fn holders(&self) -> usize {
        self.0.lock().len()
    }
}

impl<K> Clone for ConcurrencyLimiter<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Default for ConcurrencyLimiter<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash> Drop for ConcurrencyPermit<K> {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock();
        if let Some(held) = counts.get_mut(&self.key) {
            *held -= self.count;
            if *held == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limiter_bounds_each_key_and_forgets_idle_ones() {
        let limiter = ConcurrencyLimiter::default();
        let held: Vec<_> = (0..3).map(|_| limiter.hold(&"greedy", 3).unwrap()).collect();
        assert!(limiter.hold(&"greedy", 3).is_none());
        let other = limiter.hold(&"other", 3).unwrap();
        assert_eq!(limiter.holders(), 2);
        drop(held);
        assert_eq!(limiter.holders(), 1);
        let again = limiter.hold(&"greedy", 3).unwrap();
        drop((again, other));
        assert_eq!(limiter.holders(), 0);
        assert!(limiter.hold(&"none", 0).is_none());
        assert!(limiter.hold_many(&"none", 4, 3).is_none());
        assert_eq!(limiter.holders(), 0);
        let many = limiter.hold_many(&"many", 3, 3).unwrap();
        assert!(limiter.hold(&"many", 3).is_none());
        drop(many);
        assert_eq!(limiter.holders(), 0);
    }
}
