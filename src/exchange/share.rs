//! By how many gateways quotas are divided (`--fleet-share-quotas`). Pure.
//!
//! **The quotas of all gateways together should not grow while the fleet cannot be seen.** A gateway that
//! hears fewer others knows neither whether they have ended nor whether they serve followers, so a lower
//! number counts after a while only, and never while the bus is away. A higher one counts at once.

use std::time::Duration;

/// Time for which fewer gateways must be heard before the number is lowered. A rolling update replaces a
/// gateway within it.
const LOWER_AFTER: Duration = Duration::from_secs(60);

/// The number of gateways that share quotas.
#[derive(Debug)]
pub(super) struct QuotaShare {
    gateways: usize,
    /// Fewer are heard.
    lower: Option<Lower>,
}

#[derive(Debug)]
struct Lower {
    since: Duration,
    /// The most that were heard since then.
    gateways: usize,
}

// === impl QuotaShare ===

impl QuotaShare {
    /// Returns the number, now that `heard` gateways are heard. `usable`: whether the bus can be used.
    pub(super) fn update(&mut self, heard: usize, usable: bool, now: Duration) -> usize {
        if !usable {
            self.lower = None;
        } else if heard >= self.gateways {
            (self.gateways, self.lower) = (heard, None);
        } else {
            let lower = self.lower.get_or_insert(Lower { since: now, gateways: heard });
            lower.gateways = lower.gateways.max(heard);
            if now >= lower.since + LOWER_AFTER {
                (self.gateways, self.lower) = (lower.gateways, None);
            }
        }
        self.gateways
    }
}

impl Default for QuotaShare {
    /// Creates the state of a gateway that has heard no other yet.
    fn default() -> Self {
        Self { gateways: 1, lower: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn more_gateways_count_at_once_and_fewer_later() {
        let mut share = QuotaShare::default();
        assert_eq!(share.update(1, true, s(0)), 1);
        assert_eq!(share.update(3, true, s(1)), 3);
        assert_eq!(share.update(1, true, s(2)), 3);
        assert_eq!(share.update(2, true, s(30)), 3);
        assert_eq!(share.update(1, true, s(61)), 3);
        // The most that were heard within the time.
        assert_eq!(share.update(1, true, s(62)), 2);
        assert_eq!(share.update(1, true, s(63)), 2);
        // A gateway that comes back in time changes nothing.
        assert_eq!(share.update(2, true, s(122)), 2);
        assert_eq!(share.update(1, true, s(123)), 2);
        assert_eq!(share.update(1, true, s(182)), 2);
        assert_eq!(share.update(1, true, s(183)), 1);
    }

    #[test]
    fn number_stays_while_the_bus_is_away() {
        let mut share = QuotaShare::default();
        share.update(3, true, s(0));
        assert_eq!(share.update(1, true, s(1)), 3);
        assert_eq!(share.update(1, false, s(2)), 3);
        assert_eq!(share.update(1, false, s(1_000)), 3);
        // The time begins anew.
        assert_eq!(share.update(1, true, s(1_001)), 3);
        assert_eq!(share.update(1, true, s(1_060)), 3);
        assert_eq!(share.update(1, true, s(1_061)), 1);
    }
}
