//! The default of the memory budget.

use crate::model::limits::Limits;
use crate::sys::memory_limit::memory_limit;

/// The default budget is this part of the available memory. At their limits, connections and calls need about
/// as much again (docs/LIMITS.md).
const SHARE_DIVISOR: usize = 2;

/// Sets the memory budget to its share of the available memory, unless it is configured.
pub(super) fn apply(limits: &mut Limits) {
    let available = memory_limit();
    if limits.memory_budget.is_none() {
        limits.memory_budget = available.map(|bytes| bytes / SHARE_DIVISOR);
    }
    tracing::info!(budget = limits.memory_budget, available, "memory budget");
}
