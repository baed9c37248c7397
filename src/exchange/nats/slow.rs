//! Subscriptions that drop messages, because their receiver is too slow. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A subscription that drops no message for this time is not slow any more: one burst counts once.
const SLOW_FOR: Duration = Duration::from_secs(10);

/// Maximum slow subscriptions that are remembered. With more, each dropped message counts.
const SLOW_MAX: usize = 1_024;

/// The slow subscriptions of one connection, with the time of the newest drop of each.
#[derive(Debug, Default)]
pub(super) struct SlowSubscriptions(BTreeMap<u64, Instant>);

// === impl SlowSubscriptions ===

impl SlowSubscriptions {
    /// Notes that the subscription with this number has dropped a message. Returns whether it begins to.
    pub(super) fn dropped(&mut self, subscription: u64, now: Instant) -> bool {
        let is_slow = |at: Instant| now.saturating_duration_since(at) < SLOW_FOR;
        if let Some(at) = self.0.get_mut(&subscription) {
            return !is_slow(std::mem::replace(at, now));
        }
        if self.0.len() == SLOW_MAX {
            self.0.retain(|_, at| is_slow(*at));
        }
        if self.0.len() < SLOW_MAX {
            self.0.insert(subscription, now);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_of_drops_counts_once_and_memory_is_bounded() {
        let (mut slow, start) = (SlowSubscriptions::default(), Instant::now());
        assert!(slow.dropped(1, start) && !slow.dropped(1, start) && slow.dropped(2, start));
        assert!(!slow.dropped(1, start + SLOW_FOR / 2));
        assert!(!slow.dropped(1, start + SLOW_FOR));
        assert!(slow.dropped(2, start + SLOW_FOR));
        let later = start + 10 * SLOW_FOR;
        assert!((0..2 * SLOW_MAX as u64).all(|number| slow.dropped(number, later)));
        assert_eq!(slow.0.len(), SLOW_MAX);
        assert!(slow.dropped(0, later + SLOW_FOR) && slow.dropped(5_000, later + SLOW_FOR));
        assert_eq!(slow.0.len(), 2);
    }
}
