//! How many at once: counts for each of many, each held by a guard.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts what each of many holds. Whoever holds nothing is not remembered. Cloning is cheap.
#[derive(Debug)]
pub struct ConcurrencyLimiter<K>(Arc<Mutex<HashMap<K, usize>>>);

/// One of what somebody holds, for as long as it lives.
#[derive(Debug)]
pub struct ConcurrencyPermit<K: Eq + Hash> {
    counts: ConcurrencyLimiter<K>,
    key: K,
}

// === impl Counts ===

impl<K: Clone + Eq + Hash> ConcurrencyLimiter<K> {
    /// One more for `key`, if that makes at most `max`.
    pub fn hold(&self, key: &K, max: usize) -> Option<ConcurrencyPermit<K>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let held = counts.get(key).copied().unwrap_or_default();
        if held >= max {
            return None;
        }
        counts.insert(key.clone(), held + 1);
        Some(ConcurrencyPermit { counts: self.clone(), key: key.clone() })
    }

    /// How many `key` holds.
    pub fn of(&self, key: &K) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or_default()
    }

    /// How many hold anything.
    pub fn holders(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
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
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = counts.get_mut(&self.key) {
            *held -= 1;
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
    fn each_may_hold_so_many_and_who_holds_nothing_is_forgotten() {
        let counts = ConcurrencyLimiter::default();
        let held: Vec<_> = (0..3).map(|_| counts.hold(&"greedy", 3).unwrap()).collect();
        assert!(counts.hold(&"greedy", 3).is_none());
        let other = counts.hold(&"other", 3).unwrap();
        assert_eq!((counts.of(&"greedy"), counts.of(&"other"), counts.holders()), (3, 1, 2));
        drop(held);
        assert_eq!((counts.of(&"greedy"), counts.holders()), (0, 1));
        let again = counts.hold(&"greedy", 3).unwrap();
        drop((again, other));
        assert_eq!(counts.holders(), 0);
        assert!(counts.hold(&"nobody", 0).is_none());
        assert_eq!(counts.holders(), 0);
    }
}
