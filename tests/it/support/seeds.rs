//! Seeds of random scenarios. A scenario depends on its seed alone.
//!
//! `LEASEMUX_TEST_SEED` sets the first seed (random by default), `LEASEMUX_TEST_SEEDS` the number of seeds.
//! To replay
//! a failed scenario, set its seed and the number 1.

use std::str::FromStr;

use rand::RngExt as _;

/// Returns the seeds to try, `count` of them unless the environment says otherwise.
pub(crate) fn seeds(count: u64) -> impl Iterator<Item = u64> {
    let first: u64 = number("LEASEMUX_TEST_SEED").unwrap_or_else(|| rand::rng().random());
    let count = number("LEASEMUX_TEST_SEEDS").unwrap_or(count);
    (0..count).map(move |more| first.wrapping_add(more))
}

/// Returns the number in an environment variable, if it is set.
pub(crate) fn number<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}
