//! Random delays, from a seed: gateways that see the same thing must not all act at once.

use std::time::Duration;

/// A generator of random delays, `SplitMix64`: small, and good enough for delays.
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

// === impl Jitter ===

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Returns a delay from `least` to `most`.
    pub(super) fn between(&mut self, least: Duration, most: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let steps = u32::try_from(mixed >> 48).unwrap_or_default();
        least + (most.saturating_sub(least)) * steps / (1 << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_spread_over_the_range() {
        let (least, most) = (Duration::from_millis(100), Duration::from_millis(900));
        let mut jitter = Jitter::new(7);
        let delays: Vec<Duration> = (0..1000).map(|_| jitter.between(least, most)).collect();
        assert!(delays.iter().all(|delay| (least..=most).contains(delay)));
        let early = delays.iter().filter(|delay| **delay < Duration::from_millis(300)).count();
        assert!((150..350).contains(&early), "{early}");
    }
}
