//! The version of a server.

/// The first version with `no_fast_producer_stall`, without which one slow subscriber delays all publishers.
const FIRST_GOOD: [u64; 3] = [2, 10, 26];

/// Returns whether a version is known, and older than the first good one.
pub(super) fn is_old(version: &str) -> bool {
    // Preliminary versions have a suffix: `2.11.0-RC.1`.
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Option<Vec<u64>> = numbers.split('.').map(|number| number.parse().ok()).collect();
    numbers.is_some_and(|numbers| numbers.as_slice() < FIRST_GOOD.as_slice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        for old in ["2.9.10", "2.10.25", "2.10.3-beta", "1.4.1"] {
            assert!(is_old(old), "{old}");
        }
        for good in ["2.10.26", "2.11.0-RC.1", "2.15.1", "3.0.0", "", "unknown"] {
            assert!(!is_old(good), "{good}");
        }
    }
}
