//! How long to wait before a service that ended is started again.

use std::time::Duration;

/// The waits between the runs of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// After the first end; each further one doubles it.
    pub first: Duration,
    /// The longest.
    pub longest: Duration,
    /// A run at least this long makes the next wait the first one again.
    pub reset_after: Duration,
}

/// The waits of one replica.
#[derive(Debug)]
pub(super) struct Waits {
    backoff: Backoff,
    next: Duration,
}

impl Default for Backoff {
    /// From 1 s to 5 min, reset by 10 min: the kubelet's, but for the first wait (10 s there), which is a person's patience
    /// at a terminal.
    fn default() -> Self {
        Self {
            first: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            reset_after: Duration::from_secs(600),
        }
    }
}

// === impl Waits ===

impl Waits {
    pub(super) fn new(backoff: Backoff) -> Self {
        let next = backoff.first;
        Self { backoff, next }
    }

    /// How long to wait after a run that was up for so long.
    pub(super) fn after(&mut self, up: Duration) -> Duration {
        if up >= self.backoff.reset_after {
            self.next = self.backoff.first;
        }
        let wait = self.next.min(self.backoff.longest);
        self.next = wait.saturating_mul(2).min(self.backoff.longest);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_long_run() {
        let mut waits = Waits::new(Backoff::default());
        let mut after = |up: u64| waits.after(Duration::from_secs(up)).as_secs();
        let quick: Vec<u64> = (0..11).map(|_| after(0)).collect();
        assert_eq!(quick, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!([after(599), after(600), after(0)], [300, 1, 2]);
    }
}
